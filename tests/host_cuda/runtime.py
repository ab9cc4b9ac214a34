"""Launches kernels on the CPU, with the interface the CUDA backend uses on a device."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backprop_gpu.planning import Device

from .build import Job, Sanitizer, build, build_all

KERNELS = Path(__file__).parents[2] / "kernels" / "cuda"

Size = tuple[int, int, int]


class LaunchFailed(RuntimeError):
    """The launch broke a rule of CUDA, or a sanitizer found something; the message says what."""


class Parameter(NamedTuple):
    """A kernel's parameter: C++'s name of its type (``PKf`` is const float*) and its size."""

    type: str
    size: int


class HostRuntime:
    """Kernels run in this process, or with a sanitizer in one of their own.

    Parameters
    ----------
    sanitizer : "plain", "asan" or "tsan"
        "asan" finds accesses outside of an array and undefined behaviour, "tsan"
        accesses that no barrier orders. Both copy all arrays there and back.
    sources : Path
        Where the `.cu` files lie.
    extra_sources : str
        C++ that comes before each of them.
    """

    xp = np
    library = False
    device = Device(
        "host", (9, 0), multiprocessors=4, clock=1e9, bandwidth=1e10, shared_memory=227 * 1024
    )

    def __init__(
        self, sanitizer: Sanitizer = "plain", sources: Path = KERNELS, extra_sources: str = ""
    ) -> None:
        self.sanitizer = sanitizer
        self.sources = sources
        self.extra_sources = extra_sources
        self._kernels: dict[tuple[str, str, Any], Library | Program] = {}

    def launch(
        self,
        file: str,
        expression: str,
        grid: Size,
        block: Size,
        arguments: Sequence[Any],
        shared_memory: int = 0,
        activation: Any = None,
    ) -> None:
        """Run one kernel to its end.

        ``arguments`` are C-contiguous arrays, None for a null pointer, or NumPy scalars,
        each of exactly the parameter's type. ``activation`` is a user's, for ``User`` in
        `activations.cuh`.
        """
        kernel = self._kernel(file, expression, activation)
        _check(expression, kernel.parameters, arguments)
        kernel.launch(grid, block, shared_memory, arguments)

    def prepare(self, kernels: Iterable[tuple[str, str]]) -> None:
        """Build (file, expression) pairs ahead, two at a time."""
        build_all(self._job(file, expression) for file, expression in kernels)

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        return step

    def synchronize(self) -> None: ...

    def _job(self, file: str, expression: str, extra: str = "") -> Job:
        source = self.sources / file
        return Job(
            source, [expression], self.sanitizer, [self.sources], self.extra_sources + "\n" + extra
        )

    def _kernel(self, file: str, expression: str, activation: Any) -> Library | Program:
        key = (file, expression, activation)
        if key not in self._kernels:
            path = build(*self._job(file, expression, USER_ACTIVATION if activation else ""))
            if self.sanitizer == "plain":
                self._kernels[key] = Library(path, activation)
            elif activation is None:
                self._kernels[key] = Program(path, self.sanitizer)
            else:
                raise NotImplementedError("a sanitizer's process cannot call a Python activation")
        return self._kernels[key]


# ------------------------------------------------------------------ plain: in this process

# The functions that Numba compiles and the linker inlines on a device.
USER_ACTIVATION = "#define BACKPROP_USER_ACTIVATION\n" + "\n".join(
    f'extern "C" {T} (*pointer_{name})({T});\n'
    f"{T} (*pointer_{name})({T}) = nullptr;\n"
    f'extern "C" {T} {name}({T} z) {{ return pointer_{name}(z); }}'
    for T, dtype in (("float", "float32"), ("double", "float64"))
    for name in (f"backprop_user_value_{dtype}", f"backprop_user_derivative_{dtype}")
)

# The scheduler has one state for the process.
_one_launch = threading.Lock()


class Library:
    """One kernel of a shared library."""

    def __init__(self, path: Path, activation: Any = None) -> None:
        library = ctypes.CDLL(str(path))
        self._start = library.launch_0
        self._start.restype = ctypes.c_char_p
        self._start.argtypes = [ctypes.c_uint] * 6 + [ctypes.c_size_t, ctypes.c_void_p]
        self.parameters = _parameters(library)
        # A library is loaded once, so each launch sets the functions it means.
        self._functions = _callbacks(library, activation) if activation else []

    def launch(self, grid: Size, block: Size, shared_memory: int, arguments: Sequence[Any]) -> None:
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        with _one_launch:
            for pointer, function in self._functions:
                pointer.value = ctypes.cast(function, ctypes.c_void_p).value
            message = self._start(*grid, *block, shared_memory, pointers)
        if message is not None:
            raise LaunchFailed(message.decode())


def _parameters(library: ctypes.CDLL) -> list[Parameter]:
    describe = library.parameter_0
    describe.restype = ctypes.c_char_p
    size = ctypes.c_size_t()
    found: list[Parameter] = []
    while (name := describe(len(found), ctypes.byref(size))) is not None:
        found.append(Parameter(name.decode(), size.value))
    return found


def _callbacks(library: ctypes.CDLL, activation: Any) -> list[tuple[ctypes.c_void_p, Any]]:
    found = []
    for dtype, number in ((np.float32, ctypes.c_float), (np.float64, ctypes.c_double)):
        for role, function in (
            ("value", activation.function),
            ("derivative", activation.derivative),
        ):
            name = f"pointer_backprop_user_{role}_{dtype.__name__}"
            scalar = ctypes.CFUNCTYPE(number, number)(lambda z, f=function, d=dtype: float(f(d(z))))
            found.append((ctypes.c_void_p.in_dll(library, name), scalar))
    return found


def _value(argument: Any) -> ctypes.Array[ctypes.c_char]:
    """The bytes of one parameter."""
    if argument is None or isinstance(argument, np.ndarray):
        address = 0 if argument is None else argument.ctypes.data
        return ctypes.create_string_buffer(address.to_bytes(8, "little"), 8)
    data = argument.tobytes()
    return ctypes.create_string_buffer(data, len(data))


# --------------------------------------------------------- sanitizers: a process a launch

ENVIRONMENT = {
    # Leaks would need ptrace; there are none to find in device code.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0:history_size=3",
}


class Program:
    """One kernel of a program; `run_file.cpp` describes its input."""

    def __init__(self, path: Path, sanitizer: Sanitizer) -> None:
        self.path = path
        lines = self._run("parameters").splitlines()
        self.parameters = [Parameter(name, int(size)) for _, name, size in map(str.split, lines)]

    def launch(self, grid: Size, block: Size, shared_memory: int, arguments: Sequence[Any]) -> None:
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        groups = _overlapping(arrays)
        place = {id(a): (i, _begin(a) - _begin(g[0])) for i, g in enumerate(groups) for a in g}
        head = [0, *grid, *block, shared_memory, len(groups), len(arguments)]
        sizes = []
        for group in groups:
            size = max(_begin(a) + a.nbytes for a in group) - _begin(group[0])
            head += [_offset(group[0]) % 256, size]
            sizes.append(size)
        values = []
        for argument in arguments:
            if argument is None:
                head += [1, 2**64 - 1, 0]
            elif isinstance(argument, np.ndarray):
                head += [1, *place[id(argument)]]
            else:
                values.append(argument.tobytes())
                head += [0, len(values[-1]), 0]
        with tempfile.TemporaryDirectory() as folder:
            launch, result = Path(folder, "launch"), Path(folder, "result")
            with launch.open("wb") as file:
                file.write(np.array(head, dtype=np.uint64).tobytes())
                for group, size in zip(groups, sizes, strict=True):
                    file.write(_bytes(group[0], size))
                file.writelines(values)
            self._run("run", str(launch), str(result))
            out = result.read_bytes()
        begin = 0
        for group, size in zip(groups, sizes, strict=True):
            for a in group:
                if a.flags.writeable:
                    at = begin + _begin(a) - _begin(group[0])
                    a[...] = np.frombuffer(out[at : at + a.nbytes], a.dtype).reshape(a.shape)
            begin += size

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [self.path, *words], capture_output=True, text=True, env=os.environ | ENVIRONMENT
        )
        if done.returncode != 0:
            raise LaunchFailed(done.stderr or f"{self.path.name} ended with {done.returncode}")
        return done.stdout


def _begin(array: np.ndarray) -> int:
    return array.ctypes.data


def _offset(array: np.ndarray) -> int:
    """How far into its allocation an array starts."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return _begin(array) - _begin(root)


def _bytes(array: np.ndarray, size: int) -> bytes:
    return ctypes.string_at(_begin(array), size)


def _overlapping(arrays: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Arrays that share memory, together, the one that starts first in front."""
    groups: list[list[np.ndarray]] = []
    end = -1
    for array in sorted(arrays, key=_begin):
        if array.nbytes > 0 and _begin(array) < end:
            groups[-1].append(array)
        else:
            groups.append([array])
        end = max(end, _begin(array) + array.nbytes)
    return groups


# ------------------------------------------------------------------------------ checking

# Of types that have one letter, as C++'s names of types have it.
DTYPES = {
    "f": np.float32, "d": np.float64, "b": np.bool_, "a": np.int8, "h": np.uint8,
    "s": np.int16, "t": np.uint16, "i": np.int32, "j": np.uint32,
    "l": np.int64, "m": np.uint64, "x": np.int64, "y": np.uint64,
}  # fmt: skip


def _check(expression: str, parameters: list[Parameter], arguments: Sequence[Any]) -> None:
    """A device would take wrong arguments and compute nonsense."""
    if len(parameters) != len(arguments):
        raise TypeError(f"{expression} takes {len(parameters)} arguments, got {len(arguments)}")
    for i, (parameter, argument) in enumerate(zip(parameters, arguments, strict=True)):
        where = f"argument {i} of {expression}"
        pointer = re.fullmatch("P(K?)(.*)", parameter.type)
        if pointer is None:
            if not isinstance(argument, np.generic):
                raise TypeError(f"{where} must be a NumPy scalar, got {type(argument).__name__}")
            expected = DTYPES.get(parameter.type)
            if argument.nbytes != parameter.size or (expected and argument.dtype != expected):
                raise TypeError(f"{where} has type {parameter.type}, got {argument.dtype}")
        elif argument is not None:
            if not isinstance(argument, np.ndarray):
                raise TypeError(f"{where} must be an array or None, got {type(argument).__name__}")
            expected = DTYPES.get(pointer[2])
            if expected and argument.dtype != expected:
                raise TypeError(f"{where} has type {parameter.type}, got {argument.dtype}")
            if not argument.flags.c_contiguous:
                raise ValueError(f"{where} is not C-contiguous")
            if not pointer[1] and not argument.flags.writeable:
                raise ValueError(f"{where} is written, but the array is read-only")
