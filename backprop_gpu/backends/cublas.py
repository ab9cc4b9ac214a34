"""cuBLAS's matrix product, bound by ctypes.

CuPy binds it too, but sets the stream before every product, which it refuses to do while that
stream is captured (CuPy 14): no product of its own can stand in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import threading
from functools import partial
from typing import Any, Literal

import numpy as np

Array = Any

#: Bytes of the workspace that cuBLAS recommends on Hopper. It is the caller's, so that a product
#: allocates nothing in a capture, and takes the same algorithm in one and outside.
WORKSPACE = 32 << 20
_NORMAL, _TRANSPOSED = 0, 1


class Cublas(threading.local):
    """Products of row-major CuPy arrays on the current device, on CuPy's current stream.

    A thread has a handle of its own: with one handle, another thread could set the stream between
    a product and its own.

    Raises
    ------
    ImportError
        If there is no cuBLAS.
    """

    def __init__(self) -> None:
        import cupy
        from cuda.pathfinder import load_nvidia_dynamic_lib

        self._cupy = cupy
        try:
            self._library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        except (RuntimeError, OSError) as error:
            raise ImportError(f"no cuBLAS: {error}") from error
        self._handle: _Handle | None = None

    def product(
        self,
        layout: Literal["NT", "NN", "TN"],
        a: Array,
        b: Array,
        out: Array,
        scale: float,
        workspace: Array,
    ) -> None:
        """out = scale · a bᵀ ("NT"), a b ("NN") or aᵀ b ("TN").

        `workspace` are bytes of device memory that nothing else uses until the product is done.
        """
        if self._handle is None:
            self._handle = _Handle(self._library)
        call, handle = partial(_call, self._library), self._handle.value
        stream = self._cupy.cuda.get_current_stream().ptr
        call("cublasSetStream_v2", handle, ctypes.c_void_p(stream))
        call(  # which setting the stream has taken away
            "cublasSetWorkspace_v2", handle,
            ctypes.c_void_p(workspace.data.ptr), ctypes.c_size_t(workspace.nbytes),
        )  # fmt: skip
        # cuBLAS counts columns first, so it sees every array transposed: outᵀ = b'ᵀ a'ᵀ.
        single = out.dtype == np.float32
        number = ctypes.c_float if single else ctypes.c_double
        rows, columns = out.shape
        call(
            "cublasSgemm_v2" if single else "cublasDgemm_v2",
            handle,
            _TRANSPOSED if layout == "NT" else _NORMAL,
            _TRANSPOSED if layout == "TN" else _NORMAL,
            columns, rows, a.shape[0] if layout == "TN" else a.shape[1],
            ctypes.byref(number(scale)),
            ctypes.c_void_p(b.data.ptr), b.shape[1],
            ctypes.c_void_p(a.data.ptr), a.shape[1],
            ctypes.byref(number(0.0)),
            ctypes.c_void_p(out.data.ptr), columns,
        )  # fmt: skip


class _Handle:
    """cuBLAS's context of one thread, given back when that has ended."""

    def __init__(self, library: Any) -> None:
        self._library, self.value = library, ctypes.c_void_p()
        _call(library, "cublasCreate_v2", ctypes.byref(self.value))

    def __del__(self) -> None:
        if self.value:
            self._library.cublasDestroy_v2(self.value)


def _call(library: Any, name: str, *arguments: Any) -> None:
    status = getattr(library, name)(*arguments)
    if status:
        raise RuntimeError(f"{name} failed with status {status}")
