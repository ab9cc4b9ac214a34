"""What is passed to cuBLAS, read as cuBLAS reads it; its own numbers are tried on a device."""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reference import assert_close, product_bound

from backprop_gpu.backends.cublas import WORKSPACE, Cublas

pytest.importorskip("cupy", reason="the binding asks CuPy for the current stream")

STREAM = 0x5EED


class DeviceArray:
    """As much of a CuPy array as the binding looks at."""

    def __init__(self, host: np.ndarray) -> None:
        self.host = np.ascontiguousarray(host)
        self.data = SimpleNamespace(ptr=self.host.ctypes.data)
        self.shape, self.dtype, self.nbytes = host.shape, host.dtype, host.nbytes


class Library:
    """cuBLAS's functions over host memory, column-major, refusing what cuBLAS refuses."""

    def __init__(self) -> None:
        self.handles: dict[int, dict[str, Any]] = {}
        self.made: list[int] = []
        self.destroyed: list[int] = []
        self.status = 0

    def cublasCreate_v2(self, handle: Any) -> int:
        number = 1 + len(self.made)
        self.made.append(number)
        handle._obj.value = number
        self.handles[number] = {"thread": threading.get_ident()}
        return self.status

    def cublasDestroy_v2(self, handle: Any) -> int:
        del self.handles[handle.value]
        self.destroyed.append(handle.value)
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        self.handles[handle.value] |= {"stream": stream.value, "workspace": None}
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, workspace: Any, size: Any) -> int:
        self.handles[handle.value]["workspace"] = workspace.value, size.value
        return 0

    def cublasSgemm_v2(self, *arguments: Any) -> int:
        return self._gemm(ctypes.c_float, *arguments)

    def cublasDgemm_v2(self, *arguments: Any) -> int:
        return self._gemm(ctypes.c_double, *arguments)

    def _gemm(
        self, number: Any, handle: Any, a_op: int, b_op: int, m: int, n: int, k: int, alpha: Any,
        a: Any, lda: int, b: Any, ldb: int, beta: Any, c: Any, ldc: int,
    ) -> int:  # fmt: skip
        state = self.handles[handle.value]
        assert state["thread"] == threading.get_ident()
        assert state["stream"] == STREAM
        assert state["workspace"][1] == WORKSPACE

        def columns(pointer: Any, op: int, rows: int, count: int, leading: int) -> np.ndarray:
            if op:
                rows, count = count, rows
            assert leading >= max(1, rows)
            flat = np.ctypeslib.as_array(
                ctypes.cast(pointer, ctypes.POINTER(number)), (count, leading)
            )
            return flat[:, :rows] if op else flat[:, :rows].T

        left, right = columns(a, a_op, m, k, lda), columns(b, b_op, k, n, ldb)
        out = columns(c, 0, m, n, ldc)
        product = alpha._obj.value * (left @ right)
        out[...] = product if beta._obj.value == 0.0 else product + beta._obj.value * out
        return self.status


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    import cuda.pathfinder
    import cupy

    made = Library()
    found = SimpleNamespace(abs_path="libcublas.so")
    monkeypatch.setattr(cuda.pathfinder, "load_nvidia_dynamic_lib", lambda name: found)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: made)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: SimpleNamespace(ptr=STREAM))
    return made


def workspace() -> DeviceArray:
    return DeviceArray(np.empty(WORKSPACE, np.uint8))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["NT", "NN", "TN"])
@pytest.mark.parametrize(("m", "n", "k"), [(5, 3, 7), (1, 4, 2), (6, 1, 1)])
def test_products_of_rows(
    library: Library, dtype: str, layout: Any, m: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m) if layout == "TN" else (m, k)).astype(dtype)
    b = rng.standard_normal((n, k) if layout == "NT" else (k, n)).astype(dtype)
    out = DeviceArray(np.full((m, n), np.nan, dtype))
    Cublas().product(layout, DeviceArray(a), DeviceArray(b), out, 0.25, workspace())
    left, right = (a.T if layout == "TN" else a), (b.T if layout == "NT" else b)
    exact = 0.25 * (left.astype(np.float64) @ right.astype(np.float64))
    assert_close(out.host, exact, 0.25 * product_bound("ik,kj->ij", left, right, dtype))


def test_each_thread_has_a_handle_and_gives_it_back(library: Library) -> None:
    owner = [Cublas()]
    one, out = DeviceArray(np.ones((2, 2))), DeviceArray(np.empty((2, 2)))

    def multiply() -> None:
        for _ in range(2):
            owner[0].product("NN", one, one, out, 1.0, workspace())

    multiply()
    other = threading.Thread(target=multiply)
    other.start()
    other.join()
    assert library.made == [1, 2]
    assert library.destroyed == [2]
    owner.clear()
    assert library.destroyed == [2, 1]


def test_a_refusal_names_the_function(library: Library) -> None:
    cublas = Cublas()
    one = DeviceArray(np.ones((2, 2), np.float32))
    cublas.product("NN", one, one, DeviceArray(np.empty((2, 2), np.float32)), 1.0, workspace())
    library.status = 13
    with pytest.raises(RuntimeError, match="cublasSgemm_v2 failed with status 13"):
        cublas.product("NN", one, one, one, 1.0, workspace())


def test_without_the_library(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.pathfinder

    def missing(name: str) -> None:
        raise RuntimeError(f"no {name} here")

    monkeypatch.setattr(cuda.pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(ImportError, match="no cuBLAS: no cublas here"):
        Cublas()
