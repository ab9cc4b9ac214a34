"""Backends: each runs one equation on one kind of array. `base.Backend` is the interface.

This module knows which there are, what keeps each from being used on this
machine, and how to make one. Asking creates no CUDA context.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import testing
from ..imports import uninterrupted
from ..precision import resolve
from .base import Backend


def _numpy_obstacle() -> str | None:
    return None


def _cuda_obstacle() -> str | None:
    if not _installed("cuda.core"):
        return "cuda.core is not installed (pip install 'backprop_gpu[cu13]')"
    if testing.is_over():
        return "no CUDA device (the driver of this process is a stand-in, which is not active)"
    try:
        from ..cuda import runtime

        count = runtime.count()
    except Exception as error:  # a broken driver shows itself in many ways
        return f"no CUDA device ({_first_line(error)})"
    return None if count else "no CUDA device"


def _numba_cuda_obstacle() -> str | None:
    if not _installed("numba_cuda"):  # Numba's own CUDA target is an older one
        return "numba-cuda is not installed (pip install 'backprop_gpu[cu13]')"
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return None
    try:
        from numba import cuda

        cuda.gpus[0]
    except Exception as error:
        return (
            f"no CUDA device ({_first_line(error)}); with NUMBA_ENABLE_CUDASIM=1 in the "
            "environment it runs in Numba's simulator, slowly"
        )
    return None


def _make_numpy(dtype: np.dtype[Any], precision: str) -> Backend:
    from .numpy import NumpyBackend

    return NumpyBackend(dtype, precision)


def _make_cuda(dtype: np.dtype[Any], precision: str) -> Backend:
    from ..cuda import runtime
    from .cuda import CudaBackend

    return CudaBackend(dtype, runtime.current(), precision=precision)


def _make_numba_cuda(dtype: np.dtype[Any], precision: str) -> Backend:
    from .numba_cuda import NumbaCudaBackend

    return NumbaCudaBackend(dtype)


#: name -> (what keeps it from being used here, how to make one)
BACKENDS: dict[str, tuple[Callable[[], str | None], Callable[[np.dtype[Any], str], Backend]]] = {
    "numpy": (_numpy_obstacle, _make_numpy),
    "cuda": (_cuda_obstacle, _make_cuda),
    "numba_cuda": (_numba_cuda_obstacle, _make_numba_cuda),
}


class Obstacles(dict[str, "str | None"]):
    """Why each backend cannot be used here, or None; found out when asked for."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(BACKENDS))

    def __getitem__(self, name: str) -> str | None:
        with uninterrupted():  # it may import the package that the backend is made with
            return BACKENDS[name][0]()


def names() -> tuple[str, ...]:
    """The backends that exist, usable here or not."""
    return tuple(BACKENDS)


def create(name: str, dtype: np.dtype[Any], precision: str | None = None) -> Backend:
    """A new backend for arrays of that dtype, whose products are of a precision."""
    with uninterrupted():
        return BACKENDS[name][1](dtype, resolve(precision, dtype))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
