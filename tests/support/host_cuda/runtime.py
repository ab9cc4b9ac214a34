"""Launches kernels on the CPU, with the interface the CUDA backend uses on a device."""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backprop_gpu.planning import Device
from backprop_gpu.testing.build import Job, Sanitizer, build, build_all, server

#: Of this folder's own kernels.
SOURCES = Path(__file__).parent
KERNELS = Path(__file__).parents[3] / "kernels" / "cuda"

Size = tuple[int, int, int]


class LaunchFailed(RuntimeError):
    """The launch broke a rule of CUDA, or a sanitizer found something; the message says what."""


class Parameter(NamedTuple):
    """A kernel's parameter: C++'s name of its type (``PKf`` is const float*) and its size."""

    type: str
    size: int


class HostRuntime:
    """Kernels run in this process, or with a sanitizer in a `Server`.

    Parameters
    ----------
    sanitizer : "plain", "asan" or "tsan"
        "asan" finds accesses outside of an array and undefined behaviour, "tsan"
        accesses that no barrier orders. Both copy all arrays there and back.
    sources : Path
        Where the `.cu` files lie.
    extra_sources : str
        C++ that comes before each of them.
    timeout : float, optional
        Seconds after which a launch under a sanitizer is given up.
    """

    xp = np
    library = False
    device = Device(
        "host", (9, 0), multiprocessors=4, clock=1e9, bandwidth=1e10, shared_memory=227 * 1024
    )

    def __init__(
        self,
        sanitizer: Sanitizer = "plain",
        sources: Path = KERNELS,
        extra_sources: str = "",
        timeout: float | None = None,
    ) -> None:
        self.sanitizer = sanitizer
        self.sources = sources
        self.extra_sources = extra_sources
        self.timeout = timeout
        self._prepared: dict[tuple[str, str], tuple[Path, int]] = {}
        self._kernels: dict[tuple[str, str, Any], Local | Remote] = {}

    def launch(
        self,
        file: str,
        expression: str,
        grid: Size,
        block: Size,
        arguments: Sequence[Any],
        shared_memory: int = 0,
        activation: Any = None,
        cluster: Size = (1, 1, 1),
    ) -> None:
        """Run one kernel to its end.

        ``arguments`` are C-contiguous arrays, None for a null pointer, or NumPy scalars,
        each of exactly the parameter's type. ``activation`` is a user's, for ``User`` in
        `activations.cuh`.
        """
        kernel = self._kernel(file, expression, activation)
        _check(expression, kernel.parameters, arguments)
        kernel.launch((*grid, *block, *cluster), shared_memory, arguments)

    def prepare(self, kernels: Iterable[tuple[str, str]]) -> None:
        """Build (file, expression) pairs ahead, those of a file together; two builds at a time.

        The same set makes the same libraries, in any order.
        """
        files: dict[str, set[str]] = {}
        for file, expression in kernels:
            if (file, expression) not in self._prepared:
                files.setdefault(file, set()).add(expression)
        # Enough in one build to share the front end's work, not so much that a core is idle.
        most = min(16, -(-sum(map(len, files.values())) // 2))
        parts = [(f, part) for f in sorted(files) for part in _parts(sorted(files[f]), most)]
        parts.sort(key=lambda part: -len(part[1]))
        paths = build_all(self._job(file, part) for file, part in parts)
        for (file, part), path in zip(parts, paths, strict=True):
            self._prepared |= {(file, expression): (path, i) for i, expression in enumerate(part)}

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        return step

    def synchronize(self) -> None: ...

    def _job(self, file: str, expressions: Sequence[str], extra: str = "") -> Job:
        extra = f"{self.extra_sources}\n{extra}"
        return Job(self.sources / file, expressions, self.sanitizer, [self.sources], extra)

    def _kernel(self, file: str, expression: str, activation: Any) -> Local | Remote:
        key = (file, expression, activation)
        if key not in self._kernels:
            if activation is not None:
                if self.sanitizer != "plain":
                    raise NotImplementedError("a server cannot call a Python activation")
                path, number = build(*self._job(file, [expression], USER_ACTIVATION)), 0
            elif key[:2] in self._prepared:
                path, number = self._prepared[key[:2]]
            else:
                path, number = build(*self._job(file, [expression])), 0
            if self.sanitizer == "plain":
                self._kernels[key] = Local(path, number, activation)
            else:
                self._kernels[key] = Remote(path, number, expression, self.sanitizer, self.timeout)
        return self._kernels[key]


def _parts(expressions: list[str], most: int) -> list[list[str]]:
    count = -(-len(expressions) // most)
    return [expressions[i::count] for i in range(count)]


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


class Local:
    """A kernel of a library in this process."""

    def __init__(self, path: Path, number: int, activation: Any = None) -> None:
        library = ctypes.CDLL(str(path))
        self._start = library[f"launch_{number}"]
        self._start.restype = ctypes.c_char_p
        self._start.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        self.parameters = _parameters(library[f"parameter_{number}"])
        # A library is loaded once, so each launch sets the functions it means.
        self._functions = _callbacks(library, activation) if activation else []

    def launch(self, sizes: Sequence[int], shared_memory: int, arguments: Sequence[Any]) -> None:
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        with _one_launch:
            for pointer, function in self._functions:
                pointer.value = ctypes.cast(function, ctypes.c_void_p).value
            message = self._start((ctypes.c_uint * len(sizes))(*sizes), shared_memory, pointers)
        if message is not None:
            raise LaunchFailed(message.decode())


def _parameters(describe: Any) -> list[Parameter]:
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


# ------------------------------------------------------------- sanitizers: in a server

ENVIRONMENT = {
    # Leaks would need ptrace; there are none to find in device code.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0:history_size=3",
}


class Server:
    """A process that launches kernels one after another; `serve.cpp` describes its input.

    It ends with a sanitizer's first report, and when nobody can write to it any more.
    """

    def __init__(self, sanitizer: Sanitizer) -> None:
        # A pipe that nobody reads would fill up.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [server(sanitizer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=os.environ | ENVIRONMENT,
        )
        self._requests: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: bytes, timeout: float | None, what: str) -> bytearray:
        try:
            return self._ask(request, None if timeout is None else time.monotonic() + timeout)
        except TimeoutError:
            raise LaunchFailed(f"{what} did not end within {timeout} s") from None
        except (EOFError, BrokenPipeError):
            status = self._process.wait()
            self._errors.seek(0)
            report = self._errors.read().decode(errors="replace")
            raise LaunchFailed(report or f"{what} ended its process with {status}") from None

    def _ask(self, request: bytes, end: float | None) -> bytearray:
        try:
            rest = memoryview(request)
            while len(rest) > 0:
                rest = rest[self._requests.write(rest) :]
            return self._read(int.from_bytes(self._read(8, end), "little"), end)
        except (EOFError, BrokenPipeError):
            raise
        except BaseException:  # Ctrl-C, too: its answer would be taken for the next one's
            self.stop()
            raise

    def _read(self, size: int, end: float | None) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        ready = select.poll()
        ready.register(self._answers, select.POLLIN)
        while len(rest) > 0:
            if not ready.poll(None if end is None else max(0.0, 1000 * (end - time.monotonic()))):
                raise TimeoutError
            count = self._answers.readinto(rest)
            if count == 0:
                raise EOFError
            rest = rest[count:]
        return data

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self.forget()

    def forget(self) -> None:
        """The process may live on, another's."""
        self._process.returncode = self._process.returncode or 0
        for file in (self._requests, self._answers, self._errors):
            file.close()


# One for each sanitizer: what costs a second under ThreadSanitizer is a launch's first fibers.
SERVERS: dict[Sanitizer, Server] = {}


def _ask(sanitizer: Sanitizer, request: bytes, timeout: float | None, what: str) -> bytearray:
    with _one_launch:
        if sanitizer not in SERVERS or not SERVERS[sanitizer].alive():
            SERVERS[sanitizer] = Server(sanitizer)
        return SERVERS[sanitizer].ask(request, timeout, what)


@atexit.register
def _stopSERVERS() -> None:
    for running in SERVERS.values():
        running.stop()


def _after_fork() -> None:
    global _one_launch
    _one_launch = threading.Lock()
    for running in SERVERS.values():
        running.forget()
    SERVERS.clear()


os.register_at_fork(after_in_child=_after_fork)


class Remote:
    """A kernel of a library in a server."""

    def __init__(
        self, path: Path, number: int, what: str, sanitizer: Sanitizer, timeout: float | None
    ) -> None:
        self._path = os.fsencode(path)
        self._number = number
        self._what = what
        self._sanitizer = sanitizer
        self._timeout = timeout
        lines = self._ask(False, [0] * 12, b"").decode().splitlines()
        self.parameters = [Parameter(name, int(size)) for name, size in map(str.split, lines)]

    def launch(self, sizes: Sequence[int], shared_memory: int, arguments: Sequence[Any]) -> None:
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        groups = _overlapping(arrays)
        place = {id(a): (i, _begin(a) - _begin(g[0])) for i, g in enumerate(groups) for a in g}
        head = [len(groups), len(arguments), shared_memory, *sizes]
        table, data, values = [], [], []
        for group in groups:
            size = max(_begin(a) + a.nbytes for a in group) - _begin(group[0])
            table += [_offset(group[0]) % 256, size]
            data.append(_bytes(group[0], size))
        for argument in arguments:
            if argument is None:
                table += [1, 2**64 - 1, 0]
            elif isinstance(argument, np.ndarray):
                table += [1, *place[id(argument)]]
            else:
                values.append(argument.tobytes())
                table += [0, len(values[-1]), 0]
        out = self._ask(True, head, b"".join([_numbers(table), *data, *values]))
        begin = 0
        for group, old in zip(groups, data, strict=True):
            for a in group:
                if a.flags.writeable:
                    at = begin + _begin(a) - _begin(group[0])
                    a[...] = np.frombuffer(out, a.dtype, a.size, at).reshape(a.shape)
            begin += len(old)

    def _ask(self, is_launch: bool, head: list[int], rest: bytes) -> bytearray:
        request = _numbers([is_launch, self._number, len(self._path), *head]) + self._path + rest
        return _ask(self._sanitizer, request, self._timeout, self._what)


def _numbers(numbers: Sequence[int]) -> bytes:
    return np.array(numbers, dtype=np.uint64).tobytes()


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
