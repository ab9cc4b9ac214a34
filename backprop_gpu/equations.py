"""The four equations of backpropagation and the forward pass, as functions of arrays.

Each works on a batch, one sample a row, and on a single sample as a 1-d array.
NumPy arrays in, NumPy arrays out; CuPy arrays in, CuPy arrays out, computed by
the kernels in ``kernels/cuda`` on CuPy's current stream. With ``out`` the result
is written there. Arrays must be float32 or float64, all of one kind and dtype.

    forward          z = w a + b,  a = σ(z)
    output_error     δ^L = ∇_a C ⊙ σ'(z^L)                          BP1
    hidden_error     δ^l = (w^{l+1}ᵀ δ^{l+1}) ⊙ σ'(z^l)             BP2
    bias_gradient    ∂C/∂b = δ, the mean over a batch               BP3
    weight_gradient  ∂C/∂w_jk = a_k δ_j, the mean over a batch      BP4
    hadamard         s ⊙ t
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from . import activations as _activations
from . import costs as _costs
from .activations import Activation
from .backends import create
from .backends.base import Backend
from .backends.numpy import NumpyBackend
from .costs import Cost

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
    """z = w a + b and σ(z), one layer on.

    Parameters
    ----------
    w : (n, k) array
    b : (n,) array
    a : (m, k) or (k,) array
        Activations of the layer before.
    activation : str or Activation
    out : (z, a), optional
        Arrays of the results' shape.

    Returns
    -------
    z, a : (m, n) or (n,) arrays
    """
    activation = _activations.get(activation)
    call = _Call(w=w, b=b, a=a)
    rows = call.rows("a", a)
    n, _ = call.shape("w", w, (None, rows.shape[1]))
    call.shape("b", b, (n,))
    given = (None, None) if out is None else out
    if len(given) != 2:
        raise ValueError("out must be a pair (z, a)")
    z = call.result("out[0]", given[0], (len(rows), n))
    result = call.result("out[1]", given[1], (len(rows), n))
    if out is not None and _overlap(*out):
        raise ValueError("out[0] must not overlap out[1]")
    call.backend.forward(call.array(w), call.array(b), rows, activation, z, result)
    return call.done(z, given[0]), call.done(result, given[1])


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
    """BP1: δ^L = ∇_a C ⊙ σ'(z^L); a - y where cost and activation collapse.

    With a built-in cost an a of 0 or 1 is moved to the nearest float inside (`costs` has the rule).

    Parameters
    ----------
    z, a : (m, n) or (n,) arrays
        Weighted inputs and activations of the output layer, as `forward` gives them.
    y : array of the same shape
        Targets.
    activation : str or Activation
    cost : str or Cost
    out : array of the same shape, optional

    Returns
    -------
    δ^L, of the same shape; row x is ∂C_x/∂z, not divided by m.
    """
    activation, cost = _activations.get(activation), _costs.get(cost)
    _costs.check_pair(activation, cost)
    call = _Call(z=z, a=a, y=y)
    a_rows = call.rows("a", a)
    z_rows, y_rows = (call.rows(name, x, a_rows.shape) for name, x in (("z", z), ("y", y)))
    result = call.result("out", out, a_rows.shape)
    call.backend.output_error(z_rows, a_rows, y_rows, activation, cost, result)
    return call.done(result, out)


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
    """BP2: δ^l = (w^{l+1}ᵀ δ^{l+1}) ⊙ σ'(z^l).

    Parameters
    ----------
    w_next : (n_{l+1}, n_l) array
    delta_next : (m, n_{l+1}) or (n_{l+1},) array
    z, a : (m, n_l) or (n_l,) arrays
    activation : str or Activation
        Of layer l.
    out : array shaped like z, optional

    Returns
    -------
    δ^l, shaped like z.
    """
    activation = _activations.get(activation)
    call = _Call(w_next=w_next, delta_next=delta_next, z=z, a=a)
    delta_rows = call.rows("delta_next", delta_next)
    _, n = call.shape("w_next", w_next, (delta_rows.shape[1], None))
    shape = (len(delta_rows), n)
    z_rows, a_rows = (call.rows(name, x, shape) for name, x in (("z", z), ("a", a)))
    result = call.result("out", out, shape)
    call.backend.hidden_error(call.array(w_next), delta_rows, z_rows, a_rows, activation, result)
    return call.done(result, out)


def bias_gradient(delta: Array, *, out: Array | None = None) -> Array:
    """BP3: ∂C/∂b = mean of δ over the rows. delta is (m, n) or (n,); returns (n,)."""
    call = _Call(delta=delta)
    rows = _mean_of("delta", call.rows("delta", delta))
    call.single = False
    result = call.result("out", out, (rows.shape[1],))
    call.backend.bias_gradient(rows, result)
    return call.done(result, out)


def weight_gradient(delta: Array, a_prev: Array, *, out: Array | None = None) -> Array:
    """BP4: ∂C/∂w = δᵀ a_prev / m. delta (m, n) or (n,), a_prev (m, k) or (k,); returns (n, k)."""
    call = _Call(delta=delta, a_prev=a_prev)
    delta_rows = _mean_of("delta", call.rows("delta", delta))
    a_rows = call.rows("a_prev", a_prev, (len(delta_rows), None))
    call.single = False
    result = call.result("out", out, (delta_rows.shape[1], a_rows.shape[1]))
    call.backend.weight_gradient(delta_rows, a_rows, result)
    return call.done(result, out)


def hadamard(s: Array, t: Array, *, out: Array | None = None) -> Array:
    """s ⊙ t, the elementwise product of two arrays of one shape."""
    call = _Call(s=s, t=t)
    if s.shape != t.shape:
        raise ValueError(f"s and t must have one shape, got {s.shape} and {t.shape}")
    result = call.result("out", out, s.shape, may_overlap=True)
    # A contiguous copy has at least one dimension, s and t may have none.
    call.backend.hadamard(*(call.array(x).reshape(s.shape) for x in (s, t)), result)
    return call.done(result, out)


class _Call:
    """The checks and conversions around one equation: one kind of array, one dtype, shapes."""

    def __init__(self, **arguments: Array) -> None:
        self.arguments = arguments
        self.single = False
        kinds = {name: _kind(name, value) for name, value in arguments.items()}
        if len(set(kinds.values())) > 1:
            raise TypeError(
                "arrays must all be of one kind, got "
                + ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
            )
        self.kind = next(iter(kinds.values()))
        dtypes = {name: np.dtype(value.dtype) for name, value in arguments.items()}
        if len(set(dtypes.values())) > 1 or next(iter(dtypes.values())).name not in (
            "float32",
            "float64",
        ):
            raise TypeError(
                "arrays must all be float32 or all be float64, got "
                + ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
            )
        self.dtype = next(iter(dtypes.values()))
        self.backend: Any = _backend(self.kind, self.dtype.name)

    def array(self, value: Array) -> Array:
        return self.backend.asarray(value)

    def rows(self, name: str, value: Array, shape: tuple[int | None, ...] | None = None) -> Array:
        """The argument as (m, n), one sample being one row."""
        if value.ndim == 1:
            self.single = True
            value = value.reshape(1, -1)
        if value.ndim != 2:
            raise ValueError(f"{name} must be (m, n) or (n,), got shape {value.shape}")
        if shape is not None:
            self.shape(name, value, shape)
        return self.array(value)

    def shape(self, name: str, value: Array, expected: tuple[int | None, ...]) -> tuple[int, ...]:
        if value.ndim != len(expected) or any(
            want is not None and have != want
            for have, want in zip(value.shape, expected, strict=True)
        ):
            wanted = ", ".join("any" if n is None else str(n) for n in expected)
            raise ValueError(f"{name} must have shape ({wanted}), got {value.shape}")
        return tuple(value.shape)

    def result(
        self, name: str, out: Array | None, shape: tuple[int, ...], may_overlap: bool = False
    ) -> Array:
        """Where the backend writes: `out` itself where it can be written to directly."""
        if out is None:
            return self.backend.empty(shape)
        if _kind(name, out) != self.kind or np.dtype(out.dtype) != self.dtype:
            raise TypeError(
                f"{name} must be a {self.kind} array of {self.dtype}, "
                f"got {_kind(name, out)} of {out.dtype}"
            )
        expected = shape[1:] if self.single else shape
        if tuple(out.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {out.shape}")
        if isinstance(out, np.ndarray) and not out.flags.writeable:
            raise ValueError(f"{name} is read-only")
        if not may_overlap:
            for argument, value in self.arguments.items():
                if _overlap(out, value):
                    raise ValueError(f"{name} must not overlap {argument}")
        return out.reshape(shape) if out.flags.c_contiguous else self.backend.empty(shape)

    def done(self, result: Array, out: Array | None) -> Array:
        result = result.reshape(result.shape[1:]) if self.single else result
        if out is None:
            return result
        if not out.flags.c_contiguous:
            out[...] = result
        return out


def _mean_of(name: str, rows: Array) -> Array:
    if len(rows) == 0:
        raise ValueError(f"{name} must have at least one row to take a mean, got {rows.shape}")
    return rows


def _overlap(s: Array, t: Array) -> bool:
    if isinstance(s, np.ndarray):
        return np.shares_memory(s, t)
    import cupy

    return bool(cupy.may_share_memory(s, t))


def _kind(name: str, value: Array) -> str:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, not a masked one")
    if isinstance(value, np.ndarray):
        return "numpy"
    if type(value).__module__.partition(".")[0] == "cupy":
        return "cupy"
    raise TypeError(f"{name} must be a NumPy or CuPy array, got {type(value).__name__}")


def _backend(kind: str, dtype: str) -> Any:
    # Made afresh: scratch arrays should not outlive the call, nor be another thread's.
    return NumpyBackend(dtype) if kind == "numpy" else _cuda_backend(dtype).fork()


@lru_cache
def _cuda_backend(dtype: str) -> Backend:
    return create("cuda", np.dtype(dtype))
