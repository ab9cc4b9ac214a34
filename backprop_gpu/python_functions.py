"""A user's σ or C in Python as C functions over whole arrays: Numba compiles them.

Numba is needed, and imported, for this alone.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int64, c_void_p
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from .activations import Activation
from .costs import Cost
from .imports import uninterrupted

Array = np.ndarray

#: What was compiled, by `_key`; kept, since the library has their addresses.
_compiled: dict[Any, Any] = {}
_lock = threading.Lock()


class NotCompiledError(RuntimeError):
    """A function that cannot be compiled; the message says why."""


def activation(activation: Activation, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The addresses of σ and σ' as C functions (z, out, count).

    Raises
    ------
    NotCompiledError
    """
    probe = np.array([-1.5, -0.25, 0.5, 2.0], dtype)
    what = f"activation {activation.name!r}"
    value, derivative = (
        _compile(function, dtype, _elementwise, (probe,), probe.shape, what)
        for function in (activation.function, activation.derivative)
    )
    return value, derivative


def cost(cost: Cost, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The addresses of C_x and ∇C as C functions (a, y, out, rows, columns).

    Raises
    ------
    NotCompiledError
    """
    a = np.array([[0.2, 0.7, 0.4], [0.5, 0.1, 0.9]], dtype)
    y = np.array([[0.0, 1.0, 0.25], [0.75, 0.5, 0.0]], dtype)
    what = f"cost {cost.name!r}"
    return (
        _compile(cost.function, dtype, _of_rows(1), (a, y), (2,), what),
        _compile(cost.gradient, dtype, _of_rows(2), (a, y), (2, 3), what),
    )


def _compile(
    function: Callable[..., Any],
    dtype: np.dtype[Any],
    wrap: Callable[[Any, Any], Any],
    arguments: tuple[Array, ...],
    shape: tuple[int, ...],
    what: str,
) -> int:
    if importlib.util.find_spec("numba") is None:
        raise NotCompiledError(f"{what} is not built in, and numba is not there to compile it")
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        raise NotCompiledError(f"{what} is not built in, and NUMBA_DISABLE_JIT is set")
    key = _key(function), dtype, wrap.__qualname__, shape
    with _lock:
        if key not in _compiled:
            with uninterrupted():
                _compiled[key] = _attempt(function, dtype, wrap, arguments, shape)
        found = _compiled[key]
    if isinstance(found, str):
        raise NotCompiledError(f"{what} is not built in, and {found}")
    return int(found.address)


def _attempt(
    function: Callable[..., Any],
    dtype: np.dtype[Any],
    wrap: Callable[[Any, Any], Any],
    arguments: tuple[Array, ...],
    shape: tuple[int, ...],
) -> Any:
    """The compiled function or, in words, why there is none."""
    import numba

    number = numba.types.float32 if dtype == np.float32 else numba.types.float64
    try:
        found = wrap(numba.njit(function, error_model="numpy"), number)
    except Exception as error:  # Numba has many
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"Numba cannot compile it: {first}"[:300]
    out = np.empty(shape, dtype)
    sizes = (out.size,) if len(arguments) == 1 else arguments[0].shape
    kinds = [c_void_p] * (len(arguments) + 1) + [c_int64] * len(sizes)
    pointers = [array.ctypes.data for array in (*arguments, out)]
    CFUNCTYPE(None, *kinds)(found.address)(*pointers, *sizes)
    with np.errstate(all="ignore"):
        expected = np.asarray(function(*arguments), np.float64)
    if not np.allclose(out, expected, rtol=1e-4, atol=1e-6, equal_nan=True):
        return f"as Numba compiles it, it gives other numbers: {out.ravel()[:3]}"
    return found


def _elementwise(function: Any, number: Any) -> Any:
    from numba import carray, cfunc, types  # type: ignore[attr-defined]

    pointer = types.CPointer(number)

    def loop(z: Any, out: Any, count: Any) -> None:
        values, results = carray(z, (count,)), carray(out, (count,))
        for i in range(count):
            results[i] = function(values[i])

    return cfunc(types.void(pointer, pointer, types.int64))(loop)


def _of_rows(dimensions: int) -> Callable[[Any, Any], Any]:
    """For functions of (a, y) whose result has so many dimensions."""

    def of_rows(function: Any, number: Any) -> Any:
        from numba import carray, cfunc, types  # type: ignore[attr-defined]

        pointer = types.CPointer(number)

        def samples(a: Any, y: Any, out: Any, rows: Any, columns: Any) -> None:
            shape = (rows, columns)
            carray(out, (rows,))[:] = function(carray(a, shape), carray(y, shape))

        def gradient(a: Any, y: Any, out: Any, rows: Any, columns: Any) -> None:
            shape = (rows, columns)
            carray(out, shape)[:, :] = function(carray(a, shape), carray(y, shape))

        signature = types.void(pointer, pointer, pointer, types.int64, types.int64)
        return cfunc(signature)(samples if dimensions == 1 else gradient)

    return of_rows


def _key(function: Any, seen: tuple[Any, ...] = ()) -> Any:
    """What the function is made of: Numba takes the values of the names in it for constants."""
    if not isinstance(function, FunctionType) or function in seen:
        return _value_key(function, seen)
    names = inspect.getclosurevars(function)
    used = sorted({**names.nonlocals, **names.globals}.items())
    values = tuple((name, _value_key(value, (*seen, function))) for name, value in used)
    return function.__code__, _value_key(function.__defaults__, seen), values


def _value_key(value: Any, seen: tuple[Any, ...]) -> Any:
    if isinstance(value, FunctionType) and value not in seen:
        return _key(value, seen)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple):
        return tuple(_value_key(one, seen) for one in value)
    if isinstance(value, (bool, int, float, complex, str, bytes, np.generic, type(None))):
        return type(value), value
    return value.__name__ if isinstance(value, ModuleType) else id(value)
