"""What a cost is, and what built-in ones have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..activations import Activation
from .registry import REGISTRY, check_name

Array = Any


class Cost:
    """A cost C_x(a, y) of one sample, with its gradient ∇_a C_x.

    Parameters
    ----------
    name : str
        What ``Network(cost=...)`` and saved models call it.
    function : callable
        Called as (a, y), both (m, n_L), it returns (m,): C_x of every sample.
    gradient : callable
        Called as (a, y), both (m, n_L), it returns (m, n_L): ∂C_x/∂a_j. The cuda backend calls both
        with CuPy arrays, so write them with operators and NumPy functions; without CuPy, and on
        numba_cuda, a and y are copied to the host for them.
    curvature : callable, optional
        Called as (a, y, v), each (m, n_L), it returns (m, n_L): ∇²_a C_x v, what Hessians need
        besides. It is given NumPy's arrays on every backend.

    Attributes
    ----------
    domain : (float, float)
        The open interval in which outputs must lie.
    targets : (float, float)
        The closed interval in which targets must lie.
    distribution : bool
        Whether the targets of a sample must sum to 1.
    partner : str or None
        The output activation with which BP1 collapses to a - y.
    default_output : str or None
        The output activation where none is named; with None, sigmoid for classes, identity for
        numbers.
    takes_labels : bool
        Whether int labels (n,) mean one-hot rows.
    takes_mixtures : bool
        Whether targets between two classes mean what lies between them.
    threshold : float
        With one output, the a from which on the class is 1.
    builtin : bool
        Whether it is one of this library's.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import Cost
    >>> quartic = Cost(
    ...     "quartic",
    ...     lambda a, y: ((a - y) ** 4).sum(axis=1),
    ...     lambda a, y: 4 * (a - y) ** 3,
    ... )
    >>> quartic.samples(np.array([[3.0, 1.0]]), np.array([[1.0, 1.0]]))
    array([16.])
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
    #: Whether integer labels (n,) mean one-hot rows.
    takes_labels: bool = False
    #: Whether targets between two classes mean what lies between them.
    takes_mixtures: bool = True
    #: With one output, the a from which on the class is 1.
    threshold: float = 0.5
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
        from . import get

        if REGISTRY.get(self.name) is self:
            return get, (self.name,)
        return super().__reduce_ex__(protocol)

    def targets_of(self, outputs: int) -> int:
        """Return how many targets a sample has, for so many outputs.

        Parameters
        ----------
        outputs : int
            Neurons n_L of the output layer.

        Returns
        -------
        int
            Columns of Y.

        Raises
        ------
        ValueError
            For a number of outputs that the cost cannot have.
        """
        return outputs

    def outputs_of(self, targets: int) -> int:
        """Return how many outputs so many targets need.

        Parameters
        ----------
        targets : int
            Columns of Y.

        Returns
        -------
        int
            Neurons n_L of the output layer.
        """
        return targets

    def predictions(self, a: np.ndarray) -> np.ndarray:
        """Return what is predicted of each target.

        Parameters
        ----------
        a : (n, n_L) array
            Outputs.

        Returns
        -------
        (n, targets) array
            One column a target: of most costs, `a` itself.
        """
        return a

    def prepare(self, Y: np.ndarray, outputs: int) -> np.ndarray:
        """Return the targets as kernels take them.

        Parameters
        ----------
        Y : (n, targets) array
            Targets as the user gives them.
        outputs : int
            Neurons n_L of the output layer.

        Returns
        -------
        (n, n_L) array
            One number an output: of most costs, `Y` itself.
        """
        return Y

    def samples(self, a: Array, y: Array) -> Array:
        """Compute C_x of every sample.

        Parameters
        ----------
        a : (m, n_L) array
            Outputs.
        y : (m, n_L) array
            Targets, as `prepare` returns them.

        Returns
        -------
        (m,) array
            C_x of each row.

        Raises
        ------
        ValueError
            If `function` does not return one number a sample.
        """
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
        weights: np.ndarray | None = None,
    ) -> float:
        """Compute C, the mean of C_x over the rows; of w_x C_x, where rows have weights.

        Parameters
        ----------
        z : (m, n_L) array or None
            Weighted inputs of the output layer, where they are kept.
        a : (m, n_L) array
            Outputs.
        y : (m, n_L) array
            Targets, as `prepare` returns them.
        activation : Activation
            The output layer's σ.
        scratch : (array, array)
            Two of a's shape and dtype, which are overwritten.
        weights : (m,) array, optional
            Weights w_x, whose mean over all rows of the data is 1.

        Returns
        -------
        float
            The mean cost C.
        """
        samples = self.samples(a, y)
        return float(np.mean(samples if weights is None else samples * weights))

    def evaluate_gradient(
        self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        """Write ∇_a C_x into `out`, row by row.

        Parameters
        ----------
        a : (m, n_L) array
            Outputs.
        y : (m, n_L) array
            Targets, as `prepare` returns them.
        out : (m, n_L) array
            Where the result is written.
        scratch : (m, n_L) array
            Overwritten.

        Raises
        ------
        ValueError
            If `gradient` does not return an array of a's shape.
        """
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
        """Write BP1's δ^L into `out`, for a pair that does not collapse.

        Parameters
        ----------
        z : (m, n_L) array
            Weighted inputs of the output layer; a, where σ' is computed from a.
        a : (m, n_L) array
            Outputs.
        y : (m, n_L) array
            Targets, as `prepare` returns them.
        activation : Activation
            The output layer's σ.
        out : (m, n_L) array
            Where the result is written.
        scratch : (array, array)
            Two of a's shape and dtype, which are overwritten.
        """
        self.evaluate_gradient(a, y, out, scratch[0])
        activation.pull_back(out, z, a, scratch)

    def curvature(self, a: np.ndarray, y: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Compute ∇²_a C_x v, row by row: how ∇_a C_x changes as a does by v.

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
        """Compute how BP1's δ^L changes as z^L does by `tangent`, of a pair that does not collapse.

        It is (∂²C_x/∂z²) tangent, row by row; all arrays are on the host.

        Parameters
        ----------
        z : (m, n_L) array
            Weighted inputs of the output layer; a, where σ' is computed from a.
        a : (m, n_L) array
            Outputs.
        y : (m, n_L) array
            Targets, as `prepare` returns them.
        activation : Activation
            The output layer's σ.
        tangent : (m, n_L) array
            How z^L changes.

        Returns
        -------
        (m, n_L) array
            How δ^L changes.

        Raises
        ------
        ValueError
            If σ has no second derivative, or C no curvature.
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
    """C_x = Σ_j c(a_j, y_j), so that one elementwise map and one sum are the whole cost.

    Two of one class with the same parameters are equal. `name` names both class and parameters, as
    `get` reads them: "huber(delta=2.0)".
    """

    builtin = True
    name: str
    #: What kernels call it.
    kernel: str
    #: Numbers that kernels are compiled with.
    constants: tuple[float, ...] = ()
    #: Where C_x is no sum over the outputs: "row", or "pair" where outputs j and j + n_L/2 belong
    #: together.
    couples: str = ""
    #: The open interval that ā is moved into: without an end of `domain` where C is finite.
    interior: tuple[float, float]
    #: Whether C of the partner is `terms_from_z`.
    from_z: bool = True

    def __init__(self) -> None:
        """Unlike a user's cost, a built-in one is a class, and takes no functions."""

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            cls.kernel = "".join(part.capitalize() for part in cls.name.split("_"))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.name == self.name

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def _set(self, **parameters: Any) -> None:
        """Name the cost by those of its parameters that are not the defaults."""
        if parameters:
            given = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
            self.name = f"{type(self).name}({given})"

    def limits(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        """Return the interval that C moves a into before it takes logarithms.

        It is ā's, unless overridden. A CUDA device takes ā all the same.

        Parameters
        ----------
        dtype : numpy.dtype
            Of a, float32 or float64.

        Returns
        -------
        (float, float)
            The smallest and the largest a.
        """
        return limits(self.interior, dtype)

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        """Write c(a_j, y_j) into `out`.

        Parameters
        ----------
        a : (m, n_L) array
            Outputs.
        y : (m, n_L) array
            Targets, as `prepare` returns them.
        out : (m, n_L) array
            Where the result is written.
        scratch : (m, n_L) array
            Overwritten.
        """
        raise NotImplementedError

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        """Write c(σ(z_j), y_j) into `out`, for the partner σ, without the rounding of a.

        Parameters
        ----------
        z : (m, n_L) array
            Weighted inputs of the output layer.
        a : (m, n_L) array
            Outputs.
        y : (m, n_L) array
            Targets, as `prepare` returns them.
        out : (m, n_L) array
            Where the result is written.
        scratch : (m, n_L) array
            Overwritten.
        """
        raise NotImplementedError

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        """Multiply `slope` by r / V at ā: it becomes δ of σ'(z), q of ā (see `backprop_gpu.costs`).

        Parameters
        ----------
        inside : (m, n_L) array
            The outputs ā, moved inside the cost's domain.
        y : (m, n_L) array
            Targets, as `prepare` returns them.
        slope : (m, n_L) array
            Factors σ'(z) or ā, which the result replaces.
        scratch : (m, n_L) array
            Overwritten.
        """
        raise NotImplementedError

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        """Replace `slope` by c''(ā) · slope², the quotient first.

        For C_x = Σ_j c(a_j, y_j). A cost that is no such sum leaves this as it is and overrides
        `curvature`.

        Parameters
        ----------
        inside : (m, n_L) array
            The outputs ā, moved inside the cost's domain.
        y : (m, n_L) array
            Targets, as `prepare` returns them.
        slope : (m, n_L) array
            Factors, which the result replaces.
        scratch : (m, n_L) array
            Overwritten.
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
        clip(a, self.interior, inside)
        if activation.elementwise:
            activation.evaluate_derivative(z, inside, out, term)
            self.error(inside, y, out, term)
            leave_out(y, out)
        else:
            np.copyto(out, inside)
            self.error(inside, y, out, term)
            leave_out(y, out)
            np.sum(out, axis=1, keepdims=True, out=term[:, :1])
            np.multiply(inside, term[:, :1], out=inside)
            np.subtract(out, inside, out=out)

    def curvature(self, a: np.ndarray, y: np.ndarray, v: np.ndarray) -> np.ndarray:
        if not self._bends():
            return super().curvature(a, y, v)
        a, y = _rows(a, y)
        out: np.ndarray = np.ones_like(a)
        inside = np.empty_like(a)
        clip(a, self.interior, inside)
        self.bend(inside, y, out, np.empty_like(a))
        leave_out(y, out)
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
        clip(a, self.interior, inside)
        if activation.elementwise:  # of δ = r σ' / V, at ā
            activation.evaluate_derivative(z, inside, square, term)
            activation.evaluate_higher(2, z, inside, square, second, term)
            self.bend(inside, y, square, term)
            self.error(inside, y, second, term)
            np.add(square, second, out=second)
            leave_out(y, second)
            return np.asarray(second * tangent)
        # Of δ_j = q_j - ā_j Σ_k q_k: what a changes by is ā t.
        np.copyto(second, inside)
        self.error(inside, y, second, term)
        np.copyto(square, inside)
        self.bend(inside, y, square, term)
        leave_out(y, second)
        leave_out(y, square)
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
        weights: np.ndarray | None = None,
    ) -> float:
        if z is not None and self.from_z and collapses(activation, self):
            self.terms_from_z(z, a, y, *scratch)
        else:
            self.terms(a, y, *scratch)
        leave_out(y, scratch[0])
        if weights is not None:
            np.multiply(scratch[0], weights[:, None], out=scratch[0])
        return float(np.add.reduce(scratch[0], axis=None)) / len(a)

    def function(self, a: Array, y: Array) -> np.ndarray:
        """Compute C_x of every sample.

        Parameters
        ----------
        a : (m, n_L) or (n_L,) array
            Outputs.
        y : (m, n_L) or (n_L,) array
            Targets, as `prepare` returns them; NaN for a missing one, which does not count.

        Returns
        -------
        (m,) array
            C_x of each row; (1,) of a single sample.
        """
        a, y = _rows(a, y)
        out = np.empty_like(a)
        self.terms(a, y, out, np.empty_like(a))
        leave_out(y, out)
        return np.asarray(out.sum(axis=1))

    def gradient(self, a: Array, y: Array) -> np.ndarray:
        """Compute ∂C_x/∂a_j of every sample.

        Parameters
        ----------
        a : (m, n_L) or (n_L,) array
            Outputs; one at an edge of the cost's domain is moved inside.
        y : (m, n_L) or (n_L,) array
            Targets, as `prepare` returns them; NaN for a missing one, whose gradient is 0.

        Returns
        -------
        (m, n_L) array
            The gradient of each row; (1, n_L) of a single sample.
        """
        a, y = _rows(a, y)
        out: np.ndarray = np.ones_like(a)
        inside = np.empty_like(a)
        clip(a, self.interior, inside)
        self.error(inside, y, out, np.empty_like(a))
        leave_out(y, out)
        return out


class CostOfRows(BuiltinCost):
    """A cost of the whole row: its C_x and ∇_a C_x are computed at once, σ' comes behind them."""

    couples = "row"
    interior = Cost.domain
    default_output = "identity"

    def evaluate(self, a: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute C_x and its gradient of every sample.

        Parameters
        ----------
        a : (m, n_L) array
            Outputs.
        y : (m, n_L) array
            Targets, as `prepare` returns them; NaN for a missing one.

        Returns
        -------
        costs : (m,) array
            C_x of each row.
        gradients : (m, n_L) array
            ∇_a C_x of each row.
        """
        raise NotImplementedError

    def mean(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        scratch: tuple[np.ndarray, np.ndarray],
        weights: np.ndarray | None = None,
    ) -> float:
        samples = self.evaluate(a, y)[0]
        return float(np.mean(samples if weights is None else samples * weights))

    def output_error(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        out: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        np.copyto(out, self.evaluate(a, y)[1])
        activation.pull_back(out, z, a, scratch)

    def function(self, a: Array, y: Array) -> np.ndarray:
        return self.evaluate(*_rows(a, y))[0]

    def gradient(self, a: Array, y: Array) -> np.ndarray:
        return self.evaluate(*_rows(a, y))[1]


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
    leave_out(y, out)
    return out


def leave_out(y: np.ndarray, out: np.ndarray) -> None:
    """out = 0 where y is NaN."""
    missing = y != y
    if missing.any():
        out[missing] = 0.0


def number(name: str, value: Any, low: float, high: float, low_too: bool = False) -> float:
    """A parameter of a cost: a float between the two, or also the lower."""
    valid = isinstance(value, int | float | np.integer | np.floating)
    if not valid or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (low < value < high or (low_too and value == low)):
        raise ValueError(
            f"{name} must be in {'[' if low_too else '('}{low:g}, {high:g}), got {value!r}"
        )
    return float(value)


def _rows(a: Array, y: Array) -> tuple[np.ndarray, np.ndarray]:
    """a and y as floats of one (m, n) shape and dtype."""
    a, y = np.broadcast_arrays(*map(np.atleast_2d, (a, y)))
    dtype = np.result_type(a, y, np.float32)
    return a.astype(dtype), y.astype(dtype)


def limits(interior: tuple[float, float], dtype: np.dtype[Any]) -> tuple[float, float]:
    """Of ā: the smallest normal number in place of less, the largest below 1 in place of 1."""
    info = np.finfo(dtype)
    lower = float(info.tiny) if interior[0] == 0.0 else -math.inf
    upper = 1.0 - float(info.epsneg) if interior[1] == 1.0 else math.inf
    return lower, upper


def clip(a: np.ndarray, interior: tuple[float, float], out: np.ndarray) -> None:
    """out = ā."""
    np.clip(a, *limits(interior, a.dtype), out=out)
