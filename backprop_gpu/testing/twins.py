"""Kernels built with g++ in place of cubins: what the stand-in driver is given to load.

`compile_kernels` has the signature of `compiler.compile_kernels`. Its "code" is a few lines of
text that name a shared library and its kernels; ``driver/kernels.cpp`` describes them.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..activations import Activation
from ..cuda import compiler
from ..cuda.catalogue import Kernel
from .build import Job, Sanitizer, build_all

#: Where the `.cu` files lie; a test of changed kernels has its own.
sources: Path = compiler.folder()
#: C++ that comes before each of them.
extra_sources = ""
#: The sanitizer of what is built from now on.
sanitizer: Sanitizer = "plain"

# The functions that Numba compiles and the linker inlines on a device.
USER_ACTIVATION = "#define BACKPROP_USER_ACTIVATION\n" + "\n".join(
    f'extern "C" {T} (*pointer_{name})({T});\n'
    f"{T} (*pointer_{name})({T}) = nullptr;\n"
    f'extern "C" {T} {name}({T} z) {{ return pointer_{name}(z); }}'
    for T, dtype in (("float", "float32"), ("double", "float64"))
    for name in (f"backprop_user_value_{dtype}", f"backprop_user_derivative_{dtype}")
)

_Place = tuple[Path, int]
_lock = threading.Lock()
_together: set[Kernel] = set()
_built: dict[tuple[Path, str, Sanitizer, str, str], _Place] = {}
#: By activation: the C functions, which must live as long as a library that has their addresses.
_functions: dict[Activation, dict[str, Any]] = {}


def together(kernels: Iterable[Kernel]) -> None:
    """When one of these is needed, build all of its file: sooner than one by one."""
    with _lock:
        _together.update(kernel for kernel in kernels if kernel.activation is None)


def compile_kernels(kernels: Sequence[Kernel], arch: str) -> compiler.Cubin:
    """Build the twins of kernels of one file, or take them from the cache.

    Parameters
    ----------
    kernels : sequence of Kernel
        All of one file and with one user activation, or none.
    arch : str
        What the card must be, such as "sm_90a".

    Raises
    ------
    build.CompilerMissing
        If there is no g++.
    build.BuildFailed
        If g++ refuses a source.
    """
    (_,) = {kernel.file for kernel in kernels}
    (activation,) = {kernel.activation for kernel in kernels}
    lines = ["backprop_gpu twin 1", f"arch {arch}"]
    symbols = {}
    with _lock:
        _build(kernels)
        for kernel in kernels:
            path, number = _built[_key(kernel)]
            symbol = symbols[kernel.expression] = kernel.expression.replace(" ", "")
            lines += [
                f"library {path}",
                f"kernel {symbol} {number} {kernel.threads} {kernel.cluster} 0",
            ]
        if activation is not None:
            for name, function in _callbacks(activation).items():
                address = ctypes.cast(function, ctypes.c_void_p).value
                lines.append(f"function {name} {address:x}")
    return compiler.Cubin("\n".join([*lines, "\0"]).encode(), symbols, ())


def _extra(kernel: Kernel) -> str:
    return extra_sources + ("\n" + USER_ACTIVATION if kernel.activation is not None else "")


def _key(kernel: Kernel) -> tuple[Path, str, Sanitizer, str, str]:
    return sources, _extra(kernel), sanitizer, kernel.file, kernel.expression


def _build(kernels: Sequence[Kernel]) -> None:
    missing = {_key(kernel): kernel for kernel in kernels if _key(kernel) not in _built}
    if not missing:
        return
    file = kernels[0].file
    for kernel in _together:
        if kernel.file == file and _key(kernel) not in _built and kernels[0].activation is None:
            missing[_key(kernel)] = kernel
    # Enough in one build to share the front end's work, not so much that a core is idle. Sorted:
    # the same set makes the same libraries.
    ordered = [missing[key] for key in sorted(missing, key=lambda key: key[-1])]
    parts = -(-len(ordered) // min(16, -(-len(ordered) // 2)))
    groups = [ordered[i::parts] for i in range(parts)]
    jobs = [
        Job(
            sources / file,
            [kernel.expression for kernel in group],
            sanitizer,
            [sources],
            _extra(group[0]),
        )
        for group in groups
    ]
    for group, path in zip(groups, build_all(jobs), strict=True):
        for i, kernel in enumerate(group):
            _built[_key(kernel)] = path, i


def _callbacks(activation: Activation) -> dict[str, Any]:
    """By the pointer to set, which `USER_ACTIVATION` declares."""
    if activation not in _functions:
        _functions[activation] = {
            f"pointer_backprop_user_{role}_{dtype.__name__}": ctypes.CFUNCTYPE(number, number)(
                lambda z, f=function, d=dtype: float(f(d(z)))
            )
            for dtype, number in ((np.float32, ctypes.c_float), (np.float64, ctypes.c_double))
            for role, function in (
                ("value", activation.function),
                ("derivative", activation.derivative),
            )
        }
    return _functions[activation]
