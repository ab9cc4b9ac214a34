"""Arrays of other libraries: how to read theirs, and how to give them ours.

A library that has a row in `_LIBRARIES` gets its own arrays back, on the stream that it uses then.
Any other array with ``__cuda_array_interface__`` or DLPack is read as it is, and what comes back
is a `DeviceArray`, which such libraries take in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .arrays import DeviceArray
from .runtime import is_on_device

Array = Any


class Library(NamedTuple):
    """One library of device arrays; its own functions are called only if it has made an array."""

    #: The address of the stream that it uses now, for an array; None: the runtime's own will do.
    stream: Callable[[Array], int | None]
    #: An array like this one, of undefined values: (array, shape, dtype's name) -> array. None: it
    #: has no arrays that others write to, and takes ours at the end.
    empty: Callable[[Array, tuple[int, ...], str], Array] | None
    #: The same values, C-contiguous.
    contiguous: Callable[[Array], Array]
    #: What its users get for ours.
    taken: Callable[[DeviceArray], Array]


def _cupy() -> Any:
    import cupy

    return cupy


def _torch() -> Any:
    import torch

    return torch


def _jax() -> Any:
    import jax

    return jax


def _same(array: Any) -> Any:
    return array


_OTHER = Library(lambda array: None, None, _same, _same)
_LIBRARIES = {
    "cupy": Library(
        lambda array: _cupy().cuda.get_current_stream().ptr,
        lambda array, shape, dtype: _cupy().empty(shape, dtype),
        lambda array: _cupy().ascontiguousarray(array),
        _same,
    ),
    "torch": Library(
        lambda array: _torch().cuda.current_stream(array.device).cuda_stream,
        lambda array, shape, dtype: array.new_empty(shape, dtype=getattr(_torch(), dtype)),
        lambda array: array.detach().contiguous(),
        _same,
    ),
    "jax": Library(lambda array: None, None, _same, lambda ours: _jax().dlpack.from_dlpack(ours)),
    "numba": Library(lambda array: None, None, _same, lambda ours: _numba_array(ours)),
}


def _numba_array(ours: DeviceArray) -> Any:
    from numba import cuda

    return cuda.as_cuda_array(ours)


def name(array: Array) -> str | None:
    """The library of an array on a device: "cupy", "torch", …; None if it is not on one."""
    if isinstance(array, DeviceArray):
        return "backprop_gpu"
    if not is_on_device(array):
        return None
    package = type(array).__module__.partition(".")[0]
    return {"jaxlib": "jax", "numba_cuda": "numba"}.get(package, package)


def library(kind: str) -> Library:
    return _LIBRARIES.get(kind, _OTHER)


def overlap(a: DeviceArray, b: DeviceArray) -> bool:
    """Whether two arrays share memory."""
    return max(a.pointer, b.pointer) < min(a.pointer + a.nbytes, b.pointer + b.nbytes)
