"""Activation functions a = σ(z) and their derivatives σ'(z).

Every built-in writes into a buffer it is given, so that a training step
allocates nothing. The same functions stand in ``kernels/cuda/activations.cuh``
and ``kernels/numba_cuda/activations.py``; the tests hold the three together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from .imports import require

Array = Any  # numpy.ndarray, cupy.ndarray or a Numba device array
Function = Callable[[Array], Array]

#: The low end of an open interval in which 0 itself lies.
BELOW_ZERO = math.nextafter(0.0, -1.0)

#: Overflow and underflow have their right answer in σ.
_quiet = np.errstate(all="ignore")


class Activation:
    """An elementwise function a = σ(z) with its derivative.

    Parameters
    ----------
    name : str
        What ``Network(activation=...)`` and saved models call it.
    function, derivative : callable
        The two σ and σ', each taking z and returning an array of the same shape. On the
        CUDA backends Numba compiles both for one scalar, so write them with
        arithmetic and NumPy's elementwise functions.
    range : (float, float), optional
        The open interval in which a lies. Given, costs that need another one are
        refused; left out, every cost is allowed.
    second_derivative, third_derivative : callable, optional
        The two σ'' and σ''', like the two before: what Hessians and Laplacians, and what gradients
        of a Laplacian, need besides. The CUDA backends evaluate them on whole arrays, CuPy's or,
        without CuPy and on numba_cuda, copies on the host.

    Attributes
    ----------
    elementwise : bool
        Whether a_j depends on z_j alone; softmax's does not.
    derivative_from : {"a", "z"}
        What σ' is computed from: "a" spares storing z, "z" needs it.
    builtin : bool
        Whether it is one of this library's.
    rectifier : bool
        Whether it passes about half of what comes in, which He's wider initial weights make up for.
    piecewise_linear : bool
        Whether σ' is a constant on either side of 0.

    Examples
    --------
    >>> from backprop_gpu import Activation
    >>> square = Activation("square", lambda z: z * z, lambda z: 2 * z)
    >>> square.function(3.0), square.derivative(3.0)
    (9.0, 6.0)
    """

    elementwise: bool = True
    #: What σ' is computed from: "a" spares storing z, "z" needs it.
    derivative_from: str = "z"
    builtin: bool = False
    #: Whether it passes about half of what comes in, which He's wider initial weights make up for.
    rectifier: bool = False
    #: Whether σ' is a constant on either side of 0, and so told by a rounded a.
    piecewise_linear: bool = False

    def __init__(
        self,
        name: str,
        function: Function,
        derivative: Function,
        *,
        range: tuple[float, float] | None = None,
        second_derivative: Function | None = None,
        third_derivative: Function | None = None,
    ) -> None:
        check_name(name)
        given = {"function": function, "derivative": derivative}
        higher = {"second_derivative": second_derivative, "third_derivative": third_derivative}
        given |= {argument: value for argument, value in higher.items() if value is not None}
        for argument, value in given.items():
            if not callable(value):
                raise TypeError(
                    f"{argument} of activation {name!r} must be callable, got {value!r}"
                )
        if range is not None and not _is_interval(range):
            raise ValueError(
                f"range of activation {name!r} must be (low, high), low < high, got {range!r}"
            )
        self.name = name
        self.range = range
        self.function = function
        self.derivative = derivative
        #: σ'' and σ''' of a user's, by order.
        self.higher = {2: second_derivative, 3: third_derivative}

    def __repr__(self) -> str:
        return f"<activation {self.name}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A registered one is pickled and copied by name, since most lambdas cannot be pickled."""
        if REGISTRY.get(self.name) is self:
            return get, (self.name,)
        return super().__reduce_ex__(protocol)

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        """Write σ(z) into `out`.

        Parameters
        ----------
        z : (m, n) array
            Weighted inputs.
        out : (m, n) array
            Where the result is written; it may be z itself.
        scratch : (m, n) array
            Overwritten.
        """
        out[...] = _same_shape(self.function(z), z, f"function of activation {self.name!r}")

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        """Write σ'(z) into `out`.

        Built-ins read z or a, whichever `derivative_from` names.

        Parameters
        ----------
        z, a : (m, n) arrays
            Weighted inputs and a = σ(z).
        out : (m, n) array
            Where the result is written.
        scratch : (m, n) array
            Overwritten.
        """
        out[...] = _same_shape(self.derivative(z), z, f"derivative of activation {self.name!r}")

    def check_order(self, order: int) -> None:
        """Refuse what needs a derivative that this σ has not.

        Parameters
        ----------
        order : {1, 2, 3}
            Which derivative is needed.

        Raises
        ------
        ValueError
            Naming the argument of `Activation` that gives it.
        """
        if not self.builtin and order > 1 and self.higher[order] is None:
            argument = {2: "second_derivative", 3: "third_derivative"}[order]
            raise ValueError(
                f"activation {self.name!r} has no {argument.replace('_', ' ')}, which this needs: "
                f"give it as Activation(..., {argument}=...)"
            )

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        """Write σ''(z) or σ'''(z) into `out`. At a kink it is 0, as beside it.

        Built-ins read z or a, whichever `derivative_from` names.

        Parameters
        ----------
        order : {2, 3}
            Which derivative.
        z, a : (m, n) arrays
            Weighted inputs and a = σ(z).
        first : (m, n) array
            The first derivative, σ'(z).
        out : (m, n) array
            Where the result is written.
        scratch : (m, n) array
            Overwritten.

        Raises
        ------
        ValueError
            If a σ of your own has no such derivative.
        """
        self.check_order(order)
        function = self.higher[order]
        assert function is not None, "check_order has refused it"
        what = f"derivative {order} of activation {self.name!r}"
        out[...] = _same_shape(function(z), z, what)

    def pull_back(
        self,
        error: np.ndarray,
        z: np.ndarray,
        a: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Multiply `error` by σ'(z) in place: from ∂C/∂a to δ = ∂C/∂z.

        Parameters
        ----------
        error : (m, n) array
            The derivatives ∂C/∂a, which δ replaces.
        z, a : (m, n) arrays
            Weighted inputs and a = σ(z).
        scratch : (array, array)
            Two of z's shape and dtype, which are overwritten.
        """
        self.evaluate_derivative(z, a, scratch[0], scratch[1])
        np.multiply(error, scratch[0], out=error)


def _is_interval(value: Any) -> bool:
    """Whether it is two numbers, the smaller first; either may be infinite."""
    numbers = (int, float, np.integer, np.floating)
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(end, numbers) and not isinstance(end, bool) for end in value)
        and bool(value[0] < value[1])
    )


def _same_shape(result: Any, z: np.ndarray, what: str) -> Any:
    if np.shape(result) != np.shape(z):
        raise ValueError(
            f"{what} must be elementwise: it gave shape {np.shape(result)} for {np.shape(z)}"
        )
    return result


class BuiltinActivation(Activation):
    """An activation of this library: a class, whose functions write into buffers they are given."""

    builtin = True
    name: str
    interval: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __init__(self) -> None:
        self.range = self.interval

    @_quiet
    def function(self, z: Array) -> np.ndarray:
        """Compute σ(z) in a new array of z's shape.

        Parameters
        ----------
        z : array
            Of any shape; softmax's rows are the last axis of (m, n) or (n,).

        Returns
        -------
        array
            Of z's dtype, if that is a float's, else float64.
        """
        z = _as_float(z)
        out: np.ndarray = np.empty_like(z)
        self.evaluate(z, out, np.empty_like(z))
        return out

    @_quiet
    def derivative(self, z: Array) -> np.ndarray:
        """Compute σ'(z) in a new array of z's shape.

        Parameters
        ----------
        z : array
            Of any shape.

        Returns
        -------
        array
            Of z's dtype, if that is a float's, else float64.

        Raises
        ------
        TypeError
            Of softmax, which has a Jacobian.
        """
        z = _as_float(z)
        out: np.ndarray = np.empty_like(z)
        self.evaluate_derivative(z, self.function(z), out, np.empty_like(z))
        return out

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        out.fill(0.0)  # of what is piecewise linear


def _as_float(z: Array) -> np.ndarray:
    found: np.ndarray = np.asarray(z)
    return found if found.dtype.kind == "f" else found.astype(np.float64)


class Sigmoid(BuiltinActivation):
    """The logistic function σ(z) = 1 / (1 + e^-z),  σ' = a (1 - a)."""

    name = "sigmoid"
    interval = (0.0, 1.0)
    derivative_from = "a"

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        # e^-z may overflow to inf, and 1 / inf = 0 is the right answer.
        np.negative(z, out=out)
        np.exp(out, out=out)
        np.add(out, 1.0, out=out)
        np.reciprocal(out, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.subtract(1.0, a, out=out)
        np.multiply(out, a, out=out)

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        # p = σ';  σ'' = p (1 - 2 a),  σ''' = p (1 - 6 p)
        np.multiply(*((a, -2.0) if order == 2 else (first, -6.0)), out=out)
        np.add(out, 1.0, out=out)
        np.multiply(out, first, out=out)


class Tanh(BuiltinActivation):
    """The hyperbolic tangent σ(z) = tanh z,  σ' = 1 - a²."""

    name = "tanh"
    interval = (-1.0, 1.0)
    derivative_from = "a"

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.tanh(z, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(a, a, out=out)
        np.subtract(1.0, out, out=out)

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        # p = σ';  σ'' = -2 a p,  σ''' = p (4 - 6 p)
        if order == 2:
            np.multiply(a, -2.0, out=out)
        else:
            np.multiply(first, -6.0, out=out)
            np.add(out, 4.0, out=out)
        np.multiply(out, first, out=out)


class Relu(BuiltinActivation):
    """The rectifier σ(z) = max(z, 0),  σ' = [a > 0]."""

    name = "relu"
    rectifier = True
    interval = (BELOW_ZERO, math.inf)
    derivative_from = "a"
    piecewise_linear = True

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.maximum(z, 0.0, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.greater(a, 0.0, out=out)


class LeakyRelu(BuiltinActivation):
    """The leaky rectifier σ(z) = max(z, 0.01 z),  σ' = 1 where a > 0, else 0.01."""

    name = "leaky_relu"
    rectifier = True
    derivative_from = "a"
    piecewise_linear = True
    slope: ClassVar[float] = 0.01

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.multiply(z, self.slope, out=scratch)
        np.maximum(z, scratch, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.greater(a, 0.0, out=out)
        np.maximum(out, self.slope, out=out)


class Elu(BuiltinActivation):
    """Exponential linear unit: σ(z) = z where z > 0, else e^z - 1.

    σ' = 1 where z > 0, else a + 1 (Clevert et al. 2016).
    """

    name = "elu"
    rectifier = True
    interval = (-1.0, math.inf)
    derivative_from = "a"

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        # e^z - 1 >= z everywhere, so the larger of z and e^min(z,0) - 1 is right.
        np.minimum(z, 0.0, out=scratch)
        np.expm1(scratch, out=scratch)
        np.maximum(z, scratch, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.minimum(a, 0.0, out=out)
        np.add(out, 1.0, out=out)

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        # a + 1 where a < 0, else 0
        np.less(a, 0.0, out=scratch)
        np.minimum(a, 0.0, out=out)
        np.add(out, scratch, out=out)


class Gelu(BuiltinActivation):
    """Gaussian error linear unit σ(z) = z Φ(z) (Hendrycks & Gimpel 2016).

    σ' = Φ(z) + z φ(z), with the exact normal distribution Φ and its density φ.
    """

    name = "gelu"
    rectifier = True
    interval = (-0.17, math.inf)

    @staticmethod
    def _cdf(z: np.ndarray, out: np.ndarray) -> None:
        from scipy.special import erfc  # here: SciPy would double the package's import time

        # erfc keeps the digits of the left tail that 1 + erf cancels.
        np.multiply(z, -math.sqrt(0.5), out=out)
        erfc(out, out=out)
        np.multiply(out, 0.5, out=out)

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        self._cdf(z, scratch)
        np.multiply(z, scratch, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(z, z, out=out)
        np.multiply(out, -0.5, out=out)
        np.exp(out, out=out)
        np.multiply(out, 1.0 / math.sqrt(2.0 * math.pi), out=out)
        np.multiply(out, z, out=out)
        self._cdf(z, scratch)
        np.add(out, scratch, out=out)

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        # φ the density;  σ'' = φ (2 - z²),  σ''' = φ z (z² - 4)
        np.multiply(z, z, out=scratch)
        np.multiply(scratch, -0.5, out=out)
        np.exp(out, out=out)
        np.multiply(out, 1.0 / math.sqrt(2.0 * math.pi), out=out)
        if order == 2:
            np.subtract(2.0, scratch, out=scratch)
        else:
            np.subtract(scratch, 4.0, out=scratch)
            np.multiply(scratch, z, out=scratch)
        np.multiply(out, scratch, out=out)


class Silu(BuiltinActivation):
    """Sigmoid linear unit σ(z) = z s(z) with s the sigmoid,  σ' = s + a (1 - s)."""

    name = "silu"
    rectifier = True
    interval = (-0.2785, math.inf)

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        _SIGMOID.evaluate(z, scratch, scratch)
        np.multiply(z, scratch, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        _SIGMOID.evaluate(z, scratch, scratch)
        np.subtract(1.0, scratch, out=out)
        np.multiply(out, a, out=out)
        np.add(out, scratch, out=out)

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        # σ'' = 2 s' + z s'',  σ''' = 3 s'' + z s'''
        s, slope = np.empty_like(z), np.empty_like(z)
        _SIGMOID.evaluate(z, s, scratch)
        _SIGMOID.evaluate_derivative(z, s, slope, scratch)
        _SIGMOID.evaluate_higher(order, z, s, slope, out, scratch)
        np.multiply(out, z, out=out)
        if order == 3:
            _SIGMOID.evaluate_higher(2, z, s, slope, scratch, scratch)
            slope = scratch
        np.multiply(slope, order, out=scratch)
        np.add(out, scratch, out=out)


class Softplus(BuiltinActivation):
    """The smooth rectifier σ(z) = ln(1 + e^z),  σ' = 1 - e^-a."""

    name = "softplus"
    rectifier = True
    interval = (0.0, math.inf)
    derivative_from = "a"

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.logaddexp(z, 0.0, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.negative(a, out=out)
        np.expm1(out, out=out)
        np.negative(out, out=out)

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        # s = σ' = 1 - e^-a;  σ'' = s e^-a,  σ''' = σ'' (e^-a - s)
        np.negative(a, out=out)
        np.exp(out, out=out)
        if order == 3:
            np.subtract(out, first, out=scratch)
            np.multiply(out, scratch, out=out)
        np.multiply(out, first, out=out)


class Identity(BuiltinActivation):
    """A linear layer's σ(z) = z,  σ' = 1."""

    name = "identity"
    derivative_from = "a"
    piecewise_linear = True

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        if out is not z:
            np.copyto(out, z)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        out.fill(1.0)

    def pull_back(
        self,
        error: np.ndarray,
        z: np.ndarray,
        a: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Do nothing: σ' is 1.

        Parameters
        ----------
        error : (m, n) array
            The derivatives ∂C/∂a, which are δ already.
        z, a : (m, n) arrays
            Not read.
        scratch : (array, array)
            Not touched.
        """


class Exponential(BuiltinActivation):
    """The output σ(z) = e^z,  σ' = a, whose Poisson cost has δ = a - y."""

    name = "exponential"
    interval = (0.0, math.inf)
    derivative_from = "a"

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.exp(z, out=out)

    def evaluate_derivative(
        self, z: np.ndarray, a: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.copyto(out, a)

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        np.copyto(out, a)


class Softmax(BuiltinActivation):
    """Probabilities a_j = e^z_j / Σ_k e^z_k over a row; output layers only.

    Its Jacobian ∂a_k/∂z_j = a_k ([j = k] - a_j) couples the outputs of a sample.
    """

    name = "softmax"
    interval = (0.0, 1.0)
    derivative_from = "a"
    elementwise = False

    def evaluate(self, z: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        column = scratch[:, :1]
        np.max(z, axis=1, keepdims=True, out=column)
        np.subtract(z, column, out=out)
        np.exp(out, out=out)
        np.sum(out, axis=1, keepdims=True, out=column)
        np.divide(out, column, out=out)

    def pull_back(
        self,
        error: np.ndarray,
        z: np.ndarray,
        a: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Replace error_j by a_j (error_j - Σ_k error_k a_k).

        Parameters
        ----------
        error : (m, n) array
            The derivatives ∂C/∂a, which δ replaces.
        z : (m, n) array
            Not read.
        a : (m, n) array
            The probabilities.
        scratch : (array, array)
            Two of a's shape and dtype, which are overwritten.
        """
        product, column = scratch[0], scratch[1][:, :1]
        np.multiply(error, a, out=product)
        np.sum(product, axis=1, keepdims=True, out=column)
        np.subtract(error, column, out=error)
        np.multiply(error, a, out=error)

    def function(self, z: Array) -> np.ndarray:
        return super().function(np.atleast_2d(_as_float(z))).reshape(np.shape(z))

    def derivative(self, z: Array) -> np.ndarray:
        raise TypeError("softmax is not elementwise: it has a Jacobian, not a σ'(z)")

    def evaluate_higher(
        self,
        order: int,
        z: np.ndarray,
        a: np.ndarray,
        first: np.ndarray,
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        raise TypeError("softmax is not elementwise: it has no σ''(z)")


_SIGMOID = Sigmoid()
_BUILTINS: tuple[BuiltinActivation, ...] = (
    _SIGMOID, Tanh(), Relu(), LeakyRelu(), Elu(), Gelu(), Silu(), Softplus(),
    Identity(), Exponential(), Softmax(),
)  # fmt: skip
REGISTRY: dict[str, Activation] = {activation.name: activation for activation in _BUILTINS}


def names() -> tuple[str, ...]:
    """List the names that `get` knows: the built-ins and what `register` added.

    Returns
    -------
    tuple of str
        In the order of their registration.
    """
    return tuple(REGISTRY)


def get(activation: str | Activation) -> Activation:
    """Return the activation of that name, or the `Activation` itself.

    Parameters
    ----------
    activation : str or Activation
        One of `names`, or an object.

    Returns
    -------
    Activation
        The registered one, or the object.

    Raises
    ------
    ValueError
        For an unknown name.
    TypeError
        For anything but a name or an Activation.
    """
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(f"activation must be a name or an Activation, got {activation!r}")
    if activation not in REGISTRY:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(REGISTRY)}")
    found = REGISTRY[activation]
    if isinstance(found, Gelu):  # before anything is trained
        require("scipy", "sklearn", "activation 'gelu'")
    return found


def check_name(name: str) -> None:
    """Refuse a name that a user's activation cannot have."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be a Python identifier, got {name!r}")
    if name in REGISTRY and REGISTRY[name].builtin:
        raise ValueError(f"{name!r} is a built-in activation; choose another name")


def register(activation: Activation) -> Activation:
    """Make an activation known by its name, to `Network` and to `Network.load`.

    Parameters
    ----------
    activation : Activation
        One of your own; another of the same name is replaced.

    Returns
    -------
    Activation
        The same.

    Raises
    ------
    ValueError
        If the name is a built-in's, or a function does not keep its argument's shape.
    TypeError
        For anything but an Activation.
    """
    if not isinstance(activation, Activation):
        raise TypeError(f"register takes an Activation, got {activation!r}")
    check_name(activation.name)
    probe = np.linspace(-1.0, 1.0, 6).reshape(2, 3)
    _same_shape(activation.function(probe), probe, f"function of activation {activation.name!r}")
    _same_shape(
        activation.derivative(probe), probe, f"derivative of activation {activation.name!r}"
    )
    REGISTRY[activation.name] = activation
    return activation
