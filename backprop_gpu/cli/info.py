"""``backprop-gpu info``."""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
from collections.abc import Sequence
from typing import Any

from .. import backends, cpu, planning
from ..version import __version__
from .shown import obstacle_of, print_aligned, processor

#: What is looked up: a title and the names of distributions that may provide it.
_PACKAGES = (
    ("numpy", ("numpy",)),
    ("cupy", ("cupy", "cupy-cuda13x", "cupy-cuda12x")),
    ("numba", ("numba",)),
    ("numba-cuda", ("numba-cuda",)),
    ("cuda.core", ("cuda-core",)),
    ("nvrtc", ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")),
    ("safetensors", ("safetensors",)),
)


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "info",
        allow_abbrev=False,
        help="versions, devices, and which backend is used and why",
        description="Versions, devices, which backends can be used here and which one is taken.",
    )
    parser.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> int:
    version, devices = _driver()
    rows = [
        ("backprop_gpu", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((title, _version(names)) for title, names in _PACKAGES),
        ("CPU library", _library()),
        ("CUDA driver", version),
    ]
    print_aligned(rows)
    print("devices")
    print_aligned([("CPU", processor()[5:-1]), *devices], "  ")
    print("backends")
    obstacles = {name: obstacle_of(name) for name in backends.names()}
    print_aligned(
        [
            (name, "usable" if obstacle is None else f"not usable: {obstacle}")
            for name, obstacle in obstacles.items()
        ],
        "  ",
    )
    choice = planning.choose_backend("auto", obstacles)
    print(f"backend auto takes {choice.backend}: {choice.reason}")
    return 0


def _library() -> str:
    try:
        return cpu.library().description
    except cpu.NoLibraryError as error:
        return f"none, so NumPy does its work: {error}"


def _version(names: Sequence[str]) -> str:
    from importlib import metadata

    for name in names:
        try:
            return metadata.version(name) + ("" if name == names[0] else f" ({name})")
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute


def _driver() -> tuple[str, list[tuple[str, str]]]:
    """The driver's CUDA version and its devices, asked of the driver itself: this needs no
    package and creates no context."""
    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return f"not found (no {library})", []
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = f"supports CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    if status := cuda.cuInit(0):
        return f"{version}, but cuInit fails with error {status}", []
    cuda.cuDeviceGetCount(ctypes.byref(number))
    return version, [(f"GPU {i}", _gpu(cuda, i)) for i in range(number.value)]


def _gpu(cuda: Any, index: int) -> str:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    status = cuda.cuDeviceGet(ctypes.byref(device), index)
    status = status or cuda.cuDeviceGetName(name, len(name), device)
    status = status or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    if status:
        return f"cannot be asked: error {status}"

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    return (
        f"{name.value.decode(errors='replace')}, compute capability "
        f"{attribute(_MAJOR)}.{attribute(_MINOR)}, {attribute(_MULTIPROCESSORS)} multiprocessors, "
        f"{memory.value / 2**30:.1f} GiB"
    )
