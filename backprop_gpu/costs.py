"""Cost functions C = 1/n Σ_x C_x, each C_x a function of the outputs a^L and the target y.

`collapses` is the one place that knows the pairs of output activation and cost
for which BP1 reads δ^L = a^L - y: there the division in ∇_a C and the factor
σ'(z^L) cancel, and leaving both out is faster and does not lose digits where σ
is saturated. The cost of such a pair is computed from z^L for the same reason.

For all other pairs of a built-in cost this is BP1, in every engine and kernel.
∂C/∂a = r / V(a), with V the variance that the cost's distribution has at mean a
(McCullagh & Nelder 1989, section 2.2):

    quadratic                  r = a - y   V = 1
    binary_cross_entropy       r = a - y   V = a (1 - a)
    categorical_cross_entropy  r = -y      V = a
    poisson                    r = a - y   V = a

    δ^L = r(ā, y) ⊙ σ' / V(ā)         σ' of ā too, where it is computed from a
    δ_j = q_j - ā_j Σ_k q_k           softmax, with q = r ā / V(ā) = ā ∂C/∂a

- ā is a, moved to the nearest normal float inside the cost's `interior`. Where σ
  is saturated a is rounded to 0 or 1, or to a float that has lost its digits, and
  σ' / V would be 0 / 0 or noise; at ā it is the limit that it has there. So
  learning does not stop at z = -200: sigmoid with poisson has δ = -y (1 - ā).
- σ' / V comes first. It is about 1, while r / V may overflow: y / ā, where y > 4.
- 1 - ā of the one output of softmax that may be above ½ is the sum of the others'
  ā: they have the digits that 1 - a has lost, and δ has a pole there.
- A NaN stays one, so that a diverged cost is seen.

C takes the same ā, with 1 - ā from ā itself. A user's cost gets a as it is: it
says itself what happens at an edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .activations import BELOW_ZERO, Activation

Array = Any


class Cost:
    """A cost C_x(a, y) of one sample, with its gradient ∇_a C_x.

    Parameters
    ----------
    name : str
        What ``Network(cost=...)`` and saved models call it.
    function : callable
        (a, y), both (m, n_L) -> (m,): C_x of every sample.
    gradient : callable
        (a, y), both (m, n_L) -> (m, n_L): ∂C_x/∂a_j. The cuda backend calls both with
        CuPy arrays, so write them with operators and NumPy functions; without CuPy, and on
        numba_cuda, a and y are copied to the host for them.
    curvature : callable, optional
        (a, y, v), each (m, n_L) -> (m, n_L): ∇²_a C_x v, what Hessians need besides. It is given
        NumPy's arrays on every backend.

    Examples
    --------
    >>> quartic = Cost("quartic", lambda a, y: ((a - y) ** 4).sum(axis=1),
    ...                 lambda a, y: 4 * (a - y) ** 3)
    """

    #: The open interval in which outputs must lie, and the closed one for targets.
    domain: tuple[float, float] = (-math.inf, math.inf)
    targets: tuple[float, float] = (-math.inf, math.inf)
    #: Whether the targets of a sample must sum to 1.
    distribution: bool = False
    #: The output activation with which BP1 collapses to a - y.
    partner: str | None = None
    #: The output activation where none is named; None takes sigmoid for classes, identity for
    #: numbers. The quadratic cost's partner is identity, and the book pairs it with sigmoid.
    default_output: str | None = None
    builtin: bool = False
    _curvature: Callable[[Array, Array, Array], Array] | None = None

    def __init__(
        self,
        name: str,
        function: Callable[[Array, Array], Array],
        gradient: Callable[[Array, Array], Array],
        *,
        curvature: Callable[[Array, Array, Array], Array] | None = None,
    ) -> None:
        check_name(name)
        given = {"function": function, "gradient": gradient}
        for argument, value in (given | ({"curvature": curvature} if curvature else {})).items():
            if not callable(value):
                raise TypeError(f"{argument} of cost {name!r} must be callable, got {value!r}")
        self.name = name
        self.function = function
        self.gradient = gradient
        self._curvature = curvature

    def __repr__(self) -> str:
        return f"<cost {self.name}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A registered one is pickled and copied by name, since most lambdas cannot be pickled."""
        if REGISTRY.get(self.name) is self:
            return get, (self.name,)
        return super().__reduce_ex__(protocol)

    def samples(self, a: Array, y: Array) -> Array:
        """C_x of every sample, (m,)."""
        value = self.function(a, y)
        if np.shape(value) != (a.shape[0],):
            raise ValueError(
                f"function of cost {self.name!r} must give one number per sample: "
                f"expected shape {(a.shape[0],)}, got {np.shape(value)}"
            )
        return value

    def mean(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> float:
        """C, the mean of C_x over the rows."""
        return float(np.mean(self.samples(a, y)))

    def evaluate_gradient(
        self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        """out = ∇_a C_x, row by row."""
        value = self.gradient(a, y)
        if np.shape(value) != np.shape(a):
            raise ValueError(
                f"gradient of cost {self.name!r} must have the shape of a, {np.shape(a)}, "
                f"got {np.shape(value)}"
            )
        out[...] = value

    def output_error(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        out: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """BP1, out = δ^L, for a pair that does not collapse."""
        self.evaluate_gradient(a, y, out, scratch[0])
        activation.pull_back(out, z, a, scratch)

    def curvature(self, a: np.ndarray, y: np.ndarray, v: np.ndarray) -> np.ndarray:
        """∇²_a C_x v, row by row: how ∇_a C_x changes as a does by v.

        A cost of this library defines this, or where C_x = Σ_j c(a_j, y_j) `BuiltinCost.bend`, from
        which this follows. At a kink it is 0, as beside it.

        Parameters
        ----------
        a, y, v : (m, n_L) arrays
            On the host, of one dtype. a is σ's as it is: it may lie on an end of `domain`.

        Returns
        -------
        (m, n_L) array
            A new one: neither a nor y nor v.

        Raises
        ------
        ValueError
            If the cost has none.
        """
        if self._curvature is None:
            raise ValueError(
                f"cost {self.name!r} has no curvature ∇²_a C, which this needs: "
                "give it as Cost(..., curvature=...)"
            )
        value = self._curvature(a, y, v)
        if np.shape(value) != np.shape(a):
            raise ValueError(
                f"curvature of cost {self.name!r} must have the shape of a, {np.shape(a)}, "
                f"got {np.shape(value)}"
            )
        return np.array(value, a.dtype)

    def output_tangent(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        tangent: np.ndarray,
    ) -> np.ndarray:
        """How BP1's δ^L changes as z^L does by `tangent`, of a pair that does not collapse.

        It is (∂²C_x/∂z²) tangent, row by row; all arrays are (m, n_L), on the host. z is a where σ'
        is computed from a.
        """
        scratch = np.empty_like(a), np.empty_like(a)
        da = tangent.copy()
        activation.pull_back(da, z, a, scratch)  # ∂a/∂z is symmetric
        gradient = np.empty_like(a)
        self.evaluate_gradient(a, y, gradient, scratch[0])
        out = self.curvature(a, y, da)
        if activation.elementwise:
            slope, second = np.empty_like(a), np.empty_like(a)
            activation.evaluate_derivative(z, a, slope, second)
            activation.evaluate_higher(2, z, a, slope, second, scratch[0])
            return np.asarray(out * slope + second * gradient * tangent)
        means = (gradient * a).sum(axis=1, keepdims=True)  # δ_j = a_j (g_j - Σ_k g_k a_k)
        changes = (out * a + gradient * da).sum(axis=1, keepdims=True)
        return np.asarray(da * (gradient - means) + a * (out - changes))


class BuiltinCost(Cost):
    """C_x = Σ_j c(a_j, y_j), so that one elementwise map and one sum are the whole cost."""

    builtin = True
    name: str
    #: The open interval that ā is moved into: without an end of `domain` where C is finite.
    interior: tuple[float, float]
    #: Whether C of the partner is `terms_from_z`.
    from_z: bool = True

    def __init__(self) -> None:
        """Unlike a user's cost, a built-in one is a class, and takes no functions."""

    def limits(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        """The interval that C moves a into before it takes logarithms: ā's, unless overridden.

        A CUDA device takes ā all the same.
        """
        return _limits(self.interior, dtype)

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        """out = c(a_j, y_j)."""
        raise NotImplementedError

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        """out = c(σ(z_j), y_j) for the partner σ, without the rounding of a."""
        raise NotImplementedError

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        """slope ← r · slope / V at ā: δ of σ'(z), q of ā. `inside` is ā; scratch has its shape."""
        raise NotImplementedError

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        """slope ← c''(ā) · slope², the quotient first. `inside` is ā; scratch has its shape.

        For C_x = Σ_j c(a_j, y_j). A cost that is no such sum leaves this as it is and overrides
        `curvature`.
        """
        raise NotImplementedError

    def _bends(self) -> bool:
        return type(self).bend is not BuiltinCost.bend

    def output_error(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        out: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        inside, term = scratch
        _clip(a, self.interior, inside)
        if activation.elementwise:
            activation.evaluate_derivative(z, inside, out, term)
            self.error(inside, y, out, term)
        else:
            np.copyto(out, inside)
            self.error(inside, y, out, term)
            np.sum(out, axis=1, keepdims=True, out=term[:, :1])
            np.multiply(inside, term[:, :1], out=inside)
            np.subtract(out, inside, out=out)

    def curvature(self, a: np.ndarray, y: np.ndarray, v: np.ndarray) -> np.ndarray:
        if not self._bends():
            return super().curvature(a, y, v)
        a, y = _rows(a, y)
        out: np.ndarray = np.ones_like(a)
        inside = np.empty_like(a)
        _clip(a, self.interior, inside)
        self.bend(inside, y, out, np.empty_like(a))
        return np.asarray(out * v)

    def output_tangent(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        tangent: np.ndarray,
    ) -> np.ndarray:
        if not self._bends():
            return super().output_tangent(z, a, y, activation, tangent)
        inside, term, second, square = (np.empty_like(a) for _ in range(4))
        _clip(a, self.interior, inside)
        if activation.elementwise:  # of δ = r σ' / V, at ā
            activation.evaluate_derivative(z, inside, square, term)
            activation.evaluate_higher(2, z, inside, square, second, term)
            self.bend(inside, y, square, term)
            self.error(inside, y, second, term)
            return np.asarray((square + second) * tangent)
        # Of δ_j = q_j - ā_j Σ_k q_k: what a changes by is ā t.
        np.copyto(second, inside)
        self.error(inside, y, second, term)
        np.copyto(square, inside)
        self.bend(inside, y, square, term)
        t = tangent - (inside * tangent).sum(axis=1, keepdims=True)
        dq = t * (second + square)
        sums = second.sum(axis=1, keepdims=True), dq.sum(axis=1, keepdims=True)
        return np.asarray(dq - inside * (t * sums[0] + sums[1]))

    def mean(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> float:
        if z is not None and self.from_z and collapses(activation, self):
            self.terms_from_z(z, a, y, *scratch)
        else:
            self.terms(a, y, *scratch)
        return float(np.add.reduce(scratch[0], axis=None)) / len(a)

    def function(self, a: Array, y: Array) -> np.ndarray:
        a, y = _rows(a, y)
        out = np.empty_like(a)
        self.terms(a, y, out, np.empty_like(a))
        return np.asarray(out.sum(axis=1))

    def gradient(self, a: Array, y: Array) -> np.ndarray:
        a, y = _rows(a, y)
        out: np.ndarray = np.ones_like(a)
        inside = np.empty_like(a)
        _clip(a, self.interior, inside)
        self.error(inside, y, out, np.empty_like(a))
        return out


def _rows(a: Array, y: Array) -> tuple[np.ndarray, np.ndarray]:
    """a and y as floats of one (m, n) shape and dtype."""
    a, y = np.broadcast_arrays(*map(np.atleast_2d, (a, y)))
    dtype = np.result_type(a, y, np.float32)
    return a.astype(dtype), y.astype(dtype)


def _limits(interior: tuple[float, float], dtype: np.dtype[Any]) -> tuple[float, float]:
    """Of ā: the smallest normal number in place of less, the largest below 1 in place of 1."""
    info = np.finfo(dtype)
    lower = float(info.tiny) if interior[0] == 0.0 else -math.inf
    upper = 1.0 - float(info.epsneg) if interior[1] == 1.0 else math.inf
    return lower, upper


def _clip(a: np.ndarray, interior: tuple[float, float], out: np.ndarray) -> None:
    """out = ā."""
    np.clip(a, *_limits(interior, a.dtype), out=out)


def _bend_of_logarithm(inside: np.ndarray, y: np.ndarray, slope: np.ndarray) -> None:
    """slope ← y (slope / ā)², of c = -y ln a."""
    np.divide(slope, inside, out=slope)
    np.multiply(slope, slope, out=slope)
    np.multiply(slope, y, out=slope)


class Quadratic(BuiltinCost):
    """C_x = ½ ‖y - a‖²,  ∂C_x/∂a_j = a_j - y_j."""

    name = "quadratic"
    interior = Cost.domain
    partner = "identity"

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.subtract(a, y, out=out)
        np.multiply(out, out, out=out)
        np.multiply(out, 0.5, out=out)

    def mean(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> float:
        difference = scratch[0]
        np.subtract(a, y, out=difference)
        return 0.5 * float(np.vdot(difference, difference)) / len(a)

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        self.terms(a, y, out, scratch)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(slope, slope, out=slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.subtract(inside, y, out=scratch)
        np.multiply(slope, scratch, out=slope)

    def output_error(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        out: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        np.subtract(a, y, out=out)  # there is nothing to move a into, and no V
        activation.pull_back(out, z, a, scratch)


class BinaryCrossEntropy(BuiltinCost):
    """C_x = -Σ_j [y_j ln a_j + (1 - y_j) ln(1 - a_j)],  ∂C_x/∂a_j = (a_j - y_j) / (a_j (1 - a_j)).

    With sigmoid, c = ln(1 + e^z) - y z.
    """

    name = "binary_cross_entropy"
    domain = interior = (0.0, 1.0)
    targets = (0.0, 1.0)
    partner = "sigmoid"

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        # -(ln(1-a) + y (ln a - ln(1-a)))
        np.clip(a, *self.limits(a.dtype), out=out)
        np.negative(out, out=scratch)
        np.log1p(scratch, out=scratch)
        np.log(out, out=out)
        np.subtract(out, scratch, out=out)
        np.multiply(out, y, out=out)
        np.add(out, scratch, out=out)
        np.negative(out, out=out)

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.logaddexp(z, 0.0, out=out)
        np.multiply(y, z, out=scratch)
        np.subtract(out, scratch, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        # y / ā² + (1 - y) / (1 - ā)²
        np.subtract(1.0, inside, out=scratch)
        np.divide(slope, scratch, out=scratch)
        np.multiply(scratch, scratch, out=scratch)
        np.multiply(scratch, 1.0 - y, out=scratch)
        _bend_of_logarithm(inside, y, slope)
        np.add(slope, scratch, out=slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.subtract(1.0, inside, out=scratch)
        np.multiply(scratch, inside, out=scratch)
        np.divide(slope, scratch, out=slope)
        np.subtract(inside, y, out=scratch)
        np.multiply(slope, scratch, out=slope)

    def output_error(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        out: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        if activation.elementwise:
            super().output_error(z, a, y, activation, out, scratch)
            return
        # q = r / (1 - ā). Above ½ δ_j is r_j - ā_j Σ_{k≠j} q_k: the same, without a pole.
        inside, q = scratch
        _clip(a, (0.0, math.inf), inside)
        below = ~(inside > 0.5)  # a NaN is below
        np.subtract(1.0, inside, out=q)
        np.copyto(q, np.sum(inside, axis=1, keepdims=True, where=below), where=~below)
        np.subtract(inside, y, out=out)
        np.divide(out, q, out=q)
        np.copyto(out, q, where=below)
        sums = [np.sum(q, axis=1, keepdims=True, where=which) for which in (True, below)]
        np.multiply(inside, np.where(below, *sums), out=q)
        np.subtract(out, q, out=out)

    def output_tangent(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        tangent: np.ndarray,
    ) -> np.ndarray:
        if activation.elementwise:
            return super().output_tangent(z, a, y, activation, tangent)
        # With p the output above ½, if there is one, r = a_p - y_p and sums over k ≠ p alone:
        # δ_p = r - a_p Σ q_k, δ_j = q_j - a_j Σ q_k - r a_j / Σ a_k. Nothing here has a pole.
        inside = np.empty_like(a)
        _clip(a, (0.0, math.inf), inside)
        below = ~(inside > 0.5)

        def total(x: np.ndarray, where: np.ndarray) -> np.ndarray:
            return np.asarray(np.sum(x, axis=1, keepdims=True, where=where))

        da = inside * (tangent - (inside * tangent).sum(axis=1, keepdims=True))
        np.copyto(da, -total(da, below), where=~below)
        rest = np.where(below, 1.0 - inside, 1.0)
        q = (inside - y) / rest
        dq = da * (1.0 - y) / (rest * rest)
        sum_q, sum_dq = total(q, below), total(dq, below)
        r, dr = total(inside - y, ~below), total(da, ~below)
        share = inside / total(inside, below)
        turn = tangent - total(share * tangent, below)
        out = -da * sum_q - inside * sum_dq
        return np.asarray(out + np.where(below, dq - share * (dr + r * turn), da))


class CategoricalCrossEntropy(BuiltinCost):
    """C_x = -Σ_j y_j ln a_j,  ∂C_x/∂a_j = -y_j / a_j;  Σ_j y_j = 1.

    With softmax, c = y_j (ln Σ_k e^z_k - z_j).
    """

    name = "categorical_cross_entropy"
    default_output = "softmax"
    domain, interior = (0.0, 1.0), (0.0, math.inf)
    targets = (0.0, 1.0)
    distribution = True
    partner = "softmax"

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.clip(a, *self.limits(a.dtype), out=scratch)
        np.log(scratch, out=scratch)
        np.multiply(y, scratch, out=out)
        np.negative(out, out=out)

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        column = scratch[:, :1]
        np.max(z, axis=1, keepdims=True, out=column)
        np.subtract(z, column, out=out)
        # ln Σ e^(z - max): the exponentials would need a third buffer, a gives them back
        # as a = e^(z - max) / Σ, and the largest a is exactly 1 / Σ.
        np.max(a, axis=1, keepdims=True, out=column)
        np.log(column, out=column)
        np.add(out, column, out=out)
        np.multiply(out, y, out=out)
        np.negative(out, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        _bend_of_logarithm(inside, y, slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.divide(slope, inside, out=slope)
        np.multiply(slope, y, out=slope)
        np.negative(slope, out=slope)


class Poisson(BuiltinCost):
    """C_x = Σ_j (a_j - y_j ln a_j),  ∂C_x/∂a_j = 1 - y_j / a_j: the negative log-likelihood
    of counts y with mean a, less ln y!. With exponential, c = a - y z.
    """

    name = "poisson"
    default_output = "exponential"
    domain = interior = (0.0, math.inf)
    targets = (0.0, math.inf)
    partner = "exponential"

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.clip(a, *self.limits(a.dtype), out=scratch)
        np.log(scratch, out=scratch)
        np.multiply(y, scratch, out=out)
        np.subtract(a, out, out=out)

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(y, z, out=out)
        np.subtract(a, out, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        _bend_of_logarithm(inside, y, slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.divide(slope, inside, out=slope)
        np.subtract(inside, y, out=scratch)
        np.multiply(slope, scratch, out=slope)


REGISTRY: dict[str, Cost] = {
    cost.name: cost
    for cost in (Quadratic(), BinaryCrossEntropy(), CategoricalCrossEntropy(), Poisson())
}


def names() -> tuple[str, ...]:
    """The names `get` knows: the built-ins and what `register` added."""
    return tuple(REGISTRY)


def get(cost: str | Cost) -> Cost:
    """The cost of that name, or the `Cost` itself."""
    if isinstance(cost, Cost):
        return cost
    if not isinstance(cost, str):
        raise TypeError(f"cost must be a name or a Cost, got {cost!r}")
    if cost not in REGISTRY:
        raise ValueError(f"unknown cost {cost!r}; known: {', '.join(REGISTRY)}")
    return REGISTRY[cost]


def check_name(name: str) -> None:
    """Refuse a name that a user's cost cannot have."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be a Python identifier, got {name!r}")
    if name in REGISTRY and REGISTRY[name].builtin:
        raise ValueError(f"{name!r} is a built-in cost; choose another name")


def register(cost: Cost) -> Cost:
    """Make a cost known by its name, to `Network` and to `Network.load`."""
    if not isinstance(cost, Cost):
        raise TypeError(f"register takes a Cost, got {cost!r}")
    check_name(cost.name)
    REGISTRY[cost.name] = cost
    return cost


def collapses(activation: Activation, cost: Cost) -> bool:
    """Whether BP1 is δ^L = a^L - y for this pair."""
    return activation.builtin and cost.builtin and cost.partner == activation.name


def output_tangent(
    z: np.ndarray | None,
    a: np.ndarray,
    y: np.ndarray,
    activation: Activation,
    cost: Cost,
    tangent: np.ndarray,
) -> np.ndarray:
    """R{δ^L} of R{z^L} = tangent: how BP1's δ^L changes as z^L does (Pearlmutter 1994, section 3).

    Parameters
    ----------
    z, a, y, tangent : (m, n_L) arrays
        On the host; z may be None where σ' is computed from a.

    Returns
    -------
    (m, n_L) array
        (∂²C_x/∂z²) tangent of every sample; where the pair collapses R{a^L}.

    Raises
    ------
    ValueError
        If σ has no second derivative, or C no curvature.
    """
    z = a if z is None else z
    if not collapses(activation, cost):
        return cost.output_tangent(z, a, y, activation, tangent)
    out = tangent.copy()
    activation.pull_back(out, z, a, (np.empty_like(a), np.empty_like(a)))
    return out


def check_pair(activation: Activation, cost: Cost) -> None:
    """Refuse an output activation whose values the cost is not defined for.

    Raises
    ------
    ValueError
        Naming both intervals and the activation that suits the cost.
    """
    if activation.range is None:
        return
    low, high = activation.range
    if low < cost.domain[0] or high > cost.domain[1]:
        raise ValueError(
            f"cost {cost.name!r} needs outputs in {_interval(cost.domain)}, but activation "
            f"{activation.name!r} gives {_interval(activation.range)}; "
            f"{cost.partner!r} suits it"
        )


def _interval(ends: tuple[float, float]) -> str:
    low = "[0" if ends[0] == BELOW_ZERO else f"({ends[0]:.3g}"
    return f"{low}, {ends[1]:.3g})"
