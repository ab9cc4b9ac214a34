"""A user's σ or C in Python as C functions, for the CPU's compiled library.

σ is called for every number, so Numba compiles it: Numba is needed, and imported, for this alone. C
is called twice for a block of rows: Python runs it, as it is.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_char, c_int64, c_void_p, cast
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from .activations import Activation
from .costs import Cost
from .imports import uninterrupted

Array = np.ndarray

#: Where σ is tried in both languages.
_PROBE = np.array([-1.5, -0.25, 0.5, 2.0])
#: What was compiled, by `_key`; kept, since the library has their addresses.
_compiled: dict[Any, Any] = {}
_lock = threading.Lock()
_OF_NUMBERS = CFUNCTYPE(None, c_void_p, c_void_p, c_int64)
_OF_ROWS = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_int64, c_int64)


class NotCompiledError(RuntimeError):
    """A function that cannot be compiled; the message says why."""


def activation(activation: Activation, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The addresses of σ and σ' as C functions (z, out, count).

    Raises
    ------
    NotCompiledError
    """
    found = []
    for function in (activation.function, activation.derivative):
        compiled = _compile(function, dtype)
        if isinstance(compiled, str):
            what = f"activation {activation.name!r}"
            raise NotCompiledError(f"{what} is not built in, and {compiled}")
        found.append(int(compiled.address))
    value, derivative = found
    return value, derivative


def _compile(function: Callable[..., Any], dtype: np.dtype[Any]) -> Any:
    """The compiled function or, in words, why there is none."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not there to compile it: pip install 'backprop_gpu[numba]'"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return "NUMBA_DISABLE_JIT is set"
    key = _key(function), dtype
    with _lock:
        if key not in _compiled:
            with uninterrupted():
                _compiled[key] = _attempt(function, dtype)
        return _compiled[key]


def _attempt(function: Callable[..., Any], dtype: np.dtype[Any]) -> Any:
    from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]

    pointer = types.CPointer(types.float32 if dtype == np.float32 else types.float64)
    z = _PROBE.astype(dtype)
    try:
        of_one = njit(function, error_model="numpy")

        def loop(z: Any, out: Any, count: Any) -> None:
            values, results = carray(z, (count,)), carray(out, (count,))
            for i in range(count):
                results[i] = of_one(values[i])

        found = cfunc(types.void(pointer, pointer, types.int64))(loop)
    except Exception as error:  # Numba has many
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"Numba cannot compile it: {first}"[:300]
    out = np.empty_like(z)
    _OF_NUMBERS(int(found.address or 0))(z.ctypes.data, out.ctypes.data, z.size)
    with np.errstate(all="ignore"):
        expected = np.asarray(function(z), np.float64)
    if not np.allclose(out, expected, rtol=1e-4, atol=1e-6, equal_nan=True):
        return f"as Numba compiles it, it gives other numbers: {out}, not {expected}"
    return found


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


class CalledCost:
    """A user's C and ∇C as C functions (a, y, out, rows, columns) that call Python.

    Nothing can be raised through the library: the first exception is kept, what is asked for after
    it is NaN, and `check` raises it.
    """

    def __init__(self, cost: Cost, dtype: np.dtype[Any]) -> None:
        self._cost, self._dtype = cost, dtype
        self._error: BaseException | None = None
        self._functions = _OF_ROWS(self._samples), _OF_ROWS(self._gradient)
        self.addresses = tuple(cast(function, c_void_p).value for function in self._functions)

    def check(self) -> None:
        """Raise what a call has raised, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _samples(self, a: int, y: int, out: int, rows: int, columns: int) -> None:
        def work(a: Array, y: Array, out: Array) -> None:
            out[...] = self._cost.samples(a, y)

        self._call(work, (a, y, out), (rows, columns), (rows,))

    def _gradient(self, a: int, y: int, out: int, rows: int, columns: int) -> None:
        def work(a: Array, y: Array, out: Array) -> None:
            self._cost.evaluate_gradient(a, y, out, out)

        self._call(work, (a, y, out), (rows, columns), (rows, columns))

    def _call(
        self,
        work: Callable[[Array, Array, Array], None],
        places: tuple[int, int, int],
        shape: tuple[int, ...],
        out_shape: tuple[int, ...],
    ) -> None:
        a, y = (self._array(place, shape) for place in places[:2])
        out = self._array(places[2], out_shape)
        try:
            if self._error is None:
                with np.errstate(all="ignore"):
                    work(a, y, out)
                return
        except BaseException as error:  # Ctrl-C, too
            self._error = error
        out.fill(np.nan)

    def _array(self, place: int, shape: tuple[int, ...]) -> Array:
        memory = (c_char * (math.prod(shape) * self._dtype.itemsize)).from_address(place)
        return np.ndarray(shape, self._dtype, memoryview(memory))
