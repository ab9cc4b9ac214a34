"""cuBLAS's matrix product, bound by ctypes.

CuPy binds it too, but sets the stream before every product, which it refuses to do while that
stream is captured (CuPy 14): no product of its own can stand in a CUDA graph.
"""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import numpy as np

Array = Any

#: Bytes that cuBLAS recommends on Hopper. Ours, so that a product allocates nothing in a capture
#: and takes the same algorithm in and outside of one.
WORKSPACE = 32 << 20
_NORMAL, _TRANSPOSED = 0, 1


class Cublas:
    """Products of row-major CuPy arrays on the current device, on CuPy's current stream.

    Not for several threads at once: they would share the workspace.

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
        self._handle = ctypes.c_void_p()
        self._workspace: Array = None
        self._stream: int | None = None

    def product(
        self, layout: Literal["NT", "NN", "TN"], a: Array, b: Array, out: Array, scale: float
    ) -> None:
        """out = scale · a bᵀ ("NT"), a b ("NN") or aᵀ b ("TN")."""
        self._follow(self._cupy.cuda.get_current_stream().ptr)
        # cuBLAS counts columns first, so it sees every array transposed: outᵀ = b'ᵀ a'ᵀ.
        single = out.dtype == np.float32
        number = ctypes.c_float if single else ctypes.c_double
        rows, columns = out.shape
        self._call(
            "cublasSgemm_v2" if single else "cublasDgemm_v2",
            self._handle,
            _TRANSPOSED if layout == "NT" else _NORMAL,
            _TRANSPOSED if layout == "TN" else _NORMAL,
            columns, rows, a.shape[0] if layout == "TN" else a.shape[1],
            ctypes.byref(number(scale)),
            ctypes.c_void_p(b.data.ptr), b.shape[1],
            ctypes.c_void_p(a.data.ptr), a.shape[1],
            ctypes.byref(number(0.0)),
            ctypes.c_void_p(out.data.ptr), columns,
        )  # fmt: skip

    def _follow(self, stream: int) -> None:
        """Run what follows on this stream."""
        if self._stream == stream:
            return
        if not self._handle:
            self._workspace = self._cupy.empty(WORKSPACE, np.uint8)
            self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
        # Another stream takes the workspace away again.
        self._call(
            "cublasSetWorkspace_v2",
            self._handle, ctypes.c_void_p(self._workspace.data.ptr), ctypes.c_size_t(WORKSPACE),
        )  # fmt: skip
        self._stream = stream

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with status {status}")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.cublasDestroy_v2(self._handle)
