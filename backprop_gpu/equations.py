"""The four equations of backpropagation and the forward pass, as functions of arrays.

Each works on a batch, one sample per row, and on a single sample as a 1-d array.
NumPy arrays in, NumPy arrays out. Arrays of a CUDA device in, arrays of the same
library out (CuPy, PyTorch, JAX, Numba, or any other with ``__cuda_array_interface__``
or DLPack, which gets a `backprop_gpu.cuda.arrays.DeviceArray`), computed by the
kernels in ``kernels/cuda`` on the library's current stream, without copies of what is
C-contiguous. With ``out`` the result is written there. Arrays must be float32 or
float64, all of one kind and dtype::

    forward          z = w a + b,  a = σ(z)
    output_error     δ^L = ∇_a C ⊙ σ'(z^L)                          BP1
    hidden_error     δ^l = (w^{l+1}ᵀ δ^{l+1}) ⊙ σ'(z^l)             BP2
    bias_gradient    ∂C/∂b = δ, the mean over a batch               BP3
    weight_gradient  ∂C/∂w_jk = a_k δ_j, the mean over a batch      BP4
    hadamard         s ⊙ t
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import activations as _activations
from . import costs as _costs
from .activations import Activation
from .backends import create
from .backends.numpy import NumpyBackend
from .costs import Cost
from .cuda import interchange
from .cuda.arrays import DeviceArray

Array = Any
_quiet = np.errstate(over="ignore")  # e^-z of a saturated σ


@_quiet
def forward(
    w: Array,
    b: Array,
    a: Array,
    activation: str | Activation = "sigmoid",
    *,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Compute z = w a + b and σ(z), one layer on.

    Parameters
    ----------
    w : (n, k) array
        Weights of the layer.
    b : (n,) array
        Biases of the layer.
    a : (m, k) or (k,) array
        Activations of the layer before.
    activation : str or Activation
        The layer's σ.
    out : (z, a), optional
        Arrays of the results' shape, which the results are written to.

    Returns
    -------
    z : (m, n) or (n,) array
        Weighted inputs; ``out[0]``, where it is given.
    a : (m, n) or (n,) array
        Activations; ``out[1]``, where it is given.

    Raises
    ------
    ValueError, TypeError
        For arrays of different kinds or dtypes, or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu.equations import forward
    >>> w, b = np.array([[1.0, -1.0]]), np.array([0.5])
    >>> forward(w, b, np.array([2.0, 1.0]), "relu")
    (array([1.5]), array([1.5]))
    """
    activation = _activations.get(activation)
    given = (None, None) if out is None else out
    if len(given) != 2:
        raise ValueError("out must be a pair (z, a)")
    with _Call(w=w, b=b, a=a) as call:
        rows = call.rows("a")
        n, _ = call.shape("w", (None, rows.shape[1]))
        call.shape("b", (n,))
        z = call.result("out[0]", given[0], (len(rows), n))
        result = call.result("out[1]", given[1], (len(rows), n))
        if out is not None and call.overlap(z.array, result.array):
            raise ValueError("out[0] must not overlap out[1]")
        call.backend.forward(call["w"], call["b"], rows, activation, z.array, result.array)
        return call.done(z), call.done(result)


@_quiet
def output_error(
    z: Array,
    a: Array,
    y: Array,
    activation: str | Activation = "sigmoid",
    cost: str | Cost = "quadratic",
    *,
    out: Array | None = None,
) -> Array:
    """Compute BP1, δ^L = ∇_a C ⊙ σ'(z^L); a - y where cost and activation collapse.

    With a built-in cost an a of 0 or 1 is moved to the nearest float inside (`costs` has the rule).

    Parameters
    ----------
    z, a : (m, n) or (n,) arrays
        Weighted inputs and activations of the output layer, as `forward` gives them.
    y : (m, n) or (n,) array
        Targets.
    activation : str or Activation
        The output layer's σ.
    cost : str or Cost
        The cost C.
    out : (m, n) or (n,) array, optional
        Where the result is written.

    Returns
    -------
    (m, n) or (n,) array
        Errors δ^L; row x is ∂C_x/∂z, not divided by m.

    Raises
    ------
    ValueError, TypeError
        For arrays of different kinds or dtypes, shapes that do not fit, or a σ whose values the
        cost is not defined for.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu.equations import output_error
    >>> z = np.array([0.0]); a = np.array([0.5]); y = np.array([1.0])
    >>> output_error(z, a, y, "sigmoid", "quadratic")  # (a - y) a (1 - a)
    array([-0.125])
    >>> output_error(z, a, y, "sigmoid", "binary_cross_entropy")  # a - y
    array([-0.5])
    """
    activation, cost = _activations.get(activation), _costs.get(cost)
    _costs.check_pair(activation, cost)
    with _Call(z=z, a=a, y=y) as call:
        a_rows = call.rows("a")
        z_rows, y_rows = (call.rows(name, a_rows.shape) for name in ("z", "y"))
        result = call.result("out", out, a_rows.shape)
        call.backend.output_error(z_rows, a_rows, y_rows, activation, cost, result.array)
        return call.done(result)


@_quiet
def hidden_error(
    w_next: Array,
    delta_next: Array,
    z: Array,
    a: Array,
    activation: str | Activation = "sigmoid",
    *,
    out: Array | None = None,
) -> Array:
    """Compute BP2, δ^l = (w^{l+1}ᵀ δ^{l+1}) ⊙ σ'(z^l).

    Parameters
    ----------
    w_next : (n_{l+1}, n_l) array
        Weights of the layer after.
    delta_next : (m, n_{l+1}) or (n_{l+1},) array
        Errors of the layer after.
    z, a : (m, n_l) or (n_l,) arrays
        Weighted inputs and activations of layer l.
    activation : str or Activation
        The σ of layer l.
    out : (m, n_l) or (n_l,) array, optional
        Where the result is written.

    Returns
    -------
    (m, n_l) or (n_l,) array
        Errors δ^l.

    Raises
    ------
    ValueError, TypeError
        For arrays of different kinds or dtypes, or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu.equations import hidden_error
    >>> w_next = np.array([[1.0, 2.0]]); z = a = np.array([3.0, 4.0])
    >>> hidden_error(w_next, np.array([0.5]), z, a, "identity")
    array([0.5, 1. ])
    """
    activation = _activations.get(activation)
    with _Call(w_next=w_next, delta_next=delta_next, z=z, a=a) as call:
        delta_rows = call.rows("delta_next")
        _, n = call.shape("w_next", (delta_rows.shape[1], None))
        shape = (len(delta_rows), n)
        z_rows, a_rows = (call.rows(name, shape) for name in ("z", "a"))
        result = call.result("out", out, shape)
        call.backend.hidden_error(
            call["w_next"], delta_rows, z_rows, a_rows, activation, result.array
        )
        return call.done(result)


def bias_gradient(delta: Array, *, out: Array | None = None) -> Array:
    """Compute BP3, ∂C/∂b, the mean of δ over the rows.

    Parameters
    ----------
    delta : (m, n) or (n,) array
        Errors of the layer.
    out : (n,) array, optional
        Where the result is written.

    Returns
    -------
    (n,) array
        The gradient.

    Raises
    ------
    ValueError, TypeError
        For no rows, or an `out` that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu.equations import bias_gradient
    >>> bias_gradient(np.array([[1.0, 2.0], [3.0, 6.0]]))
    array([2., 4.])
    """
    with _Call(delta=delta) as call:
        rows = _mean_of("delta", call.rows("delta"))
        call.single = False
        result = call.result("out", out, (rows.shape[1],))
        call.backend.bias_gradient(rows, result.array)
        return call.done(result)


def weight_gradient(delta: Array, a_prev: Array, *, out: Array | None = None) -> Array:
    """Compute BP4, ∂C/∂w = δᵀ a_prev / m, the mean of δ_j a_k over the rows.

    Parameters
    ----------
    delta : (m, n) or (n,) array
        Errors of the layer.
    a_prev : (m, k) or (k,) array
        Activations of the layer before.
    out : (n, k) array, optional
        Where the result is written.

    Returns
    -------
    (n, k) array
        The gradient.

    Raises
    ------
    ValueError, TypeError
        For no rows, arrays of different kinds or dtypes, or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu.equations import weight_gradient
    >>> weight_gradient(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    array([[3., 4.],
           [6., 8.]])
    """
    with _Call(delta=delta, a_prev=a_prev) as call:
        delta_rows = _mean_of("delta", call.rows("delta"))
        a_rows = call.rows("a_prev", (len(delta_rows), None))
        call.single = False
        result = call.result("out", out, (delta_rows.shape[1], a_rows.shape[1]))
        call.backend.weight_gradient(delta_rows, a_rows, result.array)
        return call.done(result)


def hadamard(s: Array, t: Array, *, out: Array | None = None) -> Array:
    """Compute s ⊙ t, the elementwise product of two arrays of one shape.

    Parameters
    ----------
    s, t : arrays
        Of one shape, kind and dtype.
    out : array, optional
        Where the result is written; it may be s or t itself.

    Returns
    -------
    array
        The product, of their shape.

    Raises
    ------
    ValueError, TypeError
        For arrays of different kinds, dtypes or shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu.equations import hadamard
    >>> hadamard(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    array([3., 8.])
    """
    with _Call(s=s, t=t) as call:
        if s.shape != t.shape:
            raise ValueError(f"s and t must have one shape, got {s.shape} and {t.shape}")
        result = call.result("out", out, tuple(s.shape), may_overlap=True)
        call.backend.hadamard(call["s"], call["t"], result.array)
        return call.done(result)


@dataclass(frozen=True)
class _Result:
    """Where the backend writes, what the caller gets, and the `out` that was given, if any."""

    array: Array
    returned: Array
    out: Array | None


class _Call:
    """The checks and conversions around one equation: one kind of array, one dtype, shapes.

    Inside it, as a context, the equation runs on the stream of the arrays' library.
    """

    def __init__(self, **arguments: Array) -> None:
        self.single = False
        kinds = {name: _kind(name, value) for name, value in arguments.items()}
        if len(set(kinds.values())) > 1:
            raise TypeError(
                "arrays must all be of one kind, got "
                + ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
            )
        self.kind = next(iter(kinds.values()))
        dtypes = {name: _dtype(value) for name, value in arguments.items()}
        if len(set(dtypes.values())) > 1 or next(iter(dtypes.values())) not in (
            "float32",
            "float64",
        ):
            raise TypeError(
                "arrays must all be float32 or all be float64, got "
                + ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
            )
        self.dtype = next(iter(dtypes.values()))
        self._given = arguments
        self._arrays: dict[str, Array] = {}
        self._stream = ExitStack()

    def __enter__(self) -> _Call:
        self.backend: Any = backend_of(self.kind, self.dtype)
        if self.kind != "numpy":
            self._library = interchange.library(self.kind)
            stream = self._library.stream(next(iter(self._given.values())))
            if stream is not None:
                self._stream.enter_context(self.backend.runtime.on(stream))
        try:
            self._arrays = {name: self._array(value) for name, value in self._given.items()}
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getitem__(self, name: str) -> Array:
        """The argument as a contiguous array of the backend's."""
        return self._arrays[name]

    def _array(self, value: Array) -> Array:
        if self.kind == "numpy":
            # A contiguous copy has at least one dimension, the argument may have none.
            return self.backend.asarray(value).reshape(value.shape)
        return self.backend.runtime.view(self._library.contiguous(value))

    def rows(self, name: str, shape: tuple[int | None, ...] | None = None) -> Array:
        """The argument as (m, n), one sample being one row."""
        value = self[name]
        if value.ndim == 1:
            self.single = True
            value = value.reshape(1, len(value))
        if value.ndim != 2:
            raise ValueError(f"{name} must be (m, n) or (n,), got shape {value.shape}")
        if shape is not None:
            _check_shape(name, value, shape)
        return value

    def shape(self, name: str, expected: tuple[int | None, ...]) -> tuple[int, ...]:
        return _check_shape(name, self[name], expected)

    def result(
        self, name: str, out: Array | None, shape: tuple[int, ...], may_overlap: bool = False
    ) -> _Result:
        """Where the backend writes: `out` itself where it can be written to directly."""
        returned = shape[1:] if self.single else shape
        if out is None:
            return self._new(returned, shape, None)
        if _kind(name, out) != self.kind or _dtype(out) != self.dtype:
            raise TypeError(
                f"{name} must be a {self.kind} array of {self.dtype}, "
                f"got {_kind(name, out)} of {_dtype(out)}"
            )
        if tuple(out.shape) != returned:
            raise ValueError(f"{name} must have shape {returned}, got {tuple(out.shape)}")
        if isinstance(out, np.ndarray) and not out.flags.writeable:
            raise ValueError(f"{name} is read-only")
        contiguous = self._contiguous_out(name, out)
        if not may_overlap:
            for argument, value in self._given.items():
                # A copy that was made of it cannot overlap anything.
                known = value if self.kind == "numpy" else self[argument]
                if self.overlap(out if contiguous is None else contiguous, known):
                    raise ValueError(f"{name} must not overlap {argument}")
        if contiguous is None:
            return self._new(returned, shape, out)
        return _Result(contiguous.reshape(shape), out, out)

    def _contiguous_out(self, name: str, out: Array) -> Array | None:
        """The backend's array in the memory of `out`; None where it is not contiguous."""
        if self.kind == "numpy":
            return out if out.flags.c_contiguous else None
        try:
            return self.backend.runtime.view(out)
        except ValueError as error:
            if self._library.empty is None:
                raise ValueError(f"{name}: {error}") from error
            return None

    def _new(self, returned: tuple[int, ...], shape: tuple[int, ...], out: Array | None) -> _Result:
        if self.kind == "numpy" or self._library.empty is None:
            array = self.backend.empty(shape)
            return _Result(array, array.reshape(returned), out)
        made = self._library.empty(next(iter(self._given.values())), returned, self.dtype)
        return _Result(self.backend.runtime.view(made).reshape(shape), made, out)

    def overlap(self, s: Array, t: Array) -> bool:
        if isinstance(s, np.ndarray):
            return np.shares_memory(s, t)
        if isinstance(s, DeviceArray):
            return interchange.overlap(s, t)
        return False  # of a strided device array, which the result is copied to at the end

    def done(self, result: _Result) -> Array:
        if result.out is None:
            if self.kind == "numpy":
                return result.returned
            return self._library.taken(result.returned)
        if result.returned is not result.out:
            result.out[...] = result.returned
        return result.out


def _check_shape(name: str, value: Array, expected: tuple[int | None, ...]) -> tuple[int, ...]:
    if value.ndim != len(expected) or any(
        want is not None and have != want for have, want in zip(value.shape, expected, strict=True)
    ):
        wanted = ", ".join("any" if n is None else str(n) for n in expected)
        raise ValueError(f"{name} must have shape ({wanted}), got {value.shape}")
    return tuple(value.shape)


def _mean_of(name: str, rows: Array) -> Array:
    if len(rows) == 0:
        raise ValueError(f"{name} must have at least one row to take a mean, got {rows.shape}")
    return rows


def _kind(name: str, value: Array) -> str:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, not a masked one")
    if isinstance(value, np.ndarray):
        return "numpy"
    kind = interchange.name(value)
    if kind is None:
        raise TypeError(
            f"{name} must be a NumPy array or one on a CUDA device, got {type(value).__name__}"
        )
    return kind


def _dtype(value: Array) -> str:
    return str(value.dtype).removeprefix("torch.")


def backend_of(kind: str, dtype: str) -> Any:
    # Made afresh: scratch arrays should not outlive the call, nor be another thread's.
    return NumpyBackend(dtype) if kind == "numpy" else create("cuda", np.dtype(dtype))
