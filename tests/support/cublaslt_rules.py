"""cuBLASLt's rules, as `driver_rules` has the driver's; `test_standin` runs them.

    pytest --stand-in H100 tests/support/cublaslt_rules.py       on the stand-in
    pytest -m "not standin" tests/support/cublaslt_rules.py      on a GPU

Those marked ``standin`` are what the library lets pass, or may: it reads what it was not given,
or reckons with an alignment that is not there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

from backprop_gpu.testing import standin
from driver_rules import CU, Gpu, do, result

SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15
FLOAT, DOUBLE = 0, 1
COMPUTE = {FLOAT: 68, DOUBLE: 70}
COLUMNS, ROWS = 0, 1
#: Attributes: of a layout, a description, a preference, an algorithm.
ORDER, TRANSPOSE_A, TRANSPOSE_B = 1, 3, 4
MAX_WORKSPACE, ALIGNMENTS = 1, (5, 6, 7, 8)
TILE, SPLITS, REDUCTION = 1, 2, 3
WORKSPACE = 4 << 20
DTYPES = {FLOAT: np.float32, DOUBLE: np.float64}


class Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def library() -> Any:
    if standin.running() is not None:
        return ctypes.CDLL(None)  # as it was loaded for all
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)


class Blas:
    """A handle, and a product D = alpha op(A) op(B) + beta C whose parts a test may change."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.library = library()
        self.handle = self.made("cublasLtCreate")
        self.workspace = int(do(driver.cuMemAlloc, WORKSPACE))
        self.preference = self.made("cublasLtMatmulPreferenceCreate")
        self.set("cublasLtMatmulPreferenceSetAttribute", self.preference, MAX_WORKSPACE, WORKSPACE)

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        out = ctypes.c_void_p()
        assert self.library[name](ctypes.byref(out), *arguments) == SUCCESS
        return out

    def set(self, name: str, handle: Any, which: int, value: int, bits: int = 64) -> None:
        number = ctypes.c_uint64(value) if bits == 64 else ctypes.c_int32(value)
        size = ctypes.c_size_t(bits // 8)
        assert self.library[name](handle, which, ctypes.byref(number), size) == SUCCESS

    def layout(self, type: int, rows: int, columns: int, ld: int, order: int = ROWS) -> Any:
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(ld)
        layout = self.made("cublasLtMatrixLayoutCreate", type, *sizes)
        self.set("cublasLtMatrixLayoutSetAttribute", layout, ORDER, order, 32)
        return layout

    def description(self, type: int, a: bool = False, b: bool = False) -> Any:
        description = self.made("cublasLtMatmulDescCreate", COMPUTE[type], type)
        for which, transposed in ((TRANSPOSE_A, a), (TRANSPOSE_B, b)):
            name = "cublasLtMatmulDescSetAttribute"
            self.set(name, description, which, int(transposed), 32)
        return description

    def heuristic(self, description: Any, layouts: Any) -> tuple[int, Result]:
        """(status, the first algorithm)"""
        results, found = (Result * 2)(), ctypes.c_int()
        a, b, d = layouts
        status = self.library.cublasLtMatmulAlgoGetHeuristic(
            self.handle, description, a, b, d, d, self.preference, 2, results, ctypes.byref(found)
        )
        assert status != SUCCESS or found.value >= 1
        return status, results[0]

    def config(self, algorithm: Result, which: int) -> int:
        value = ctypes.c_int32()
        status = self.library.cublasLtMatmulAlgoConfigGetAttribute(
            ctypes.byref(algorithm), which, ctypes.byref(value), ctypes.c_size_t(4), None
        )
        assert status == SUCCESS
        return value.value

    def matmul(
        self,
        type: int,
        description: Any,
        layouts: Any,
        places: Any,
        algorithm: Result | None,
        alpha: float = 1,
        beta: float = 0,
        workspace: Any = None,
    ) -> int:
        scalar = ctypes.c_float if type == FLOAT else ctypes.c_double
        address, size = (self.workspace, WORKSPACE) if workspace is None else workspace
        a, b, d = layouts
        pa, pb, pd = map(ctypes.c_void_p, map(int, places))
        return self.library.cublasLtMatmul(
            self.handle, description, ctypes.byref(scalar(alpha)), pa, a, pb, b,
            ctypes.byref(scalar(beta)), pd, d, pd, d,
            None if algorithm is None else ctypes.byref(algorithm),
            ctypes.c_void_p(address), ctypes.c_size_t(size),
            ctypes.c_void_p(int(self.gpu.stream)),
        )  # fmt: skip


@pytest.fixture
def blas() -> Iterator[Blas]:
    blas = Blas(Gpu())
    yield blas
    running = standin.running()
    if running is not None:
        running.reset()


def array(values: np.ndarray) -> int:
    """On the device."""
    place = do(driver.cuMemAlloc, values.nbytes)
    do(driver.cuMemcpyHtoD, place, np.ascontiguousarray(values), values.nbytes)
    return int(place)


def host(blas: Blas, place: int, like: np.ndarray) -> np.ndarray:
    out = np.empty_like(like)
    do(driver.cuMemcpyDtoHAsync, out, place, out.nbytes, blas.gpu.stream)
    return out


class Example:
    """A product of matrices stored by rows, and what it needs."""

    def __init__(
        self, blas: Blas, m: int = 17, n: int = 12, k: int = 30, type: int = FLOAT
    ) -> None:
        random = np.random.default_rng(0)
        dtype = DTYPES[type]
        self.type = type
        self.a = random.standard_normal((m, k)).astype(dtype)
        self.b = random.standard_normal((k, n)).astype(dtype)
        self.d = random.standard_normal((m, n)).astype(dtype)
        self.places = [array(x) for x in (self.a, self.b, self.d)]
        self.layouts = [blas.layout(type, *x.shape, x.shape[1]) for x in (self.a, self.b, self.d)]
        self.description = blas.description(type)
        self.status, self.algorithm = blas.heuristic(self.description, self.layouts)

    def matmul(self, blas: Blas, **changed: Any) -> int:
        given = {
            "description": self.description,
            "layouts": self.layouts,
            "places": self.places,
            "algorithm": self.algorithm,
        } | changed
        return blas.matmul(self.type, **given)


# -- products ------------------------------------------------------------------------------


@pytest.mark.parametrize("type", [FLOAT, DOUBLE])
@pytest.mark.parametrize("order", [COLUMNS, ROWS])
@pytest.mark.parametrize(("a", "b"), [(False, True), (False, False), (True, False), (True, True)])
def test_a_product(blas: Blas, type: int, order: int, a: bool, b: bool) -> None:
    m, n, k, pad = 17, 12, 30, 3
    random, dtype = np.random.default_rng(0), DTYPES[type]

    def stored(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """(its memory, the matrix in it, its layout)"""
        lines, line = (rows, columns) if order == ROWS else (columns, rows)
        memory = random.standard_normal((lines, line + pad)).astype(dtype)
        matrix = memory[:, :line]
        layout = blas.layout(type, rows, columns, line + pad, order)
        return memory, matrix if order == ROWS else matrix.T, layout

    left = stored(k, m) if a else stored(m, k)
    right = stored(n, k) if b else stored(k, n)
    out = stored(m, n)
    description = blas.description(type, a, b)
    layouts = left[2], right[2], out[2]
    status, algorithm = blas.heuristic(description, layouts)
    assert status == SUCCESS
    places = [array(left[0]), array(right[0]), array(out[0])]
    assert blas.matmul(type, description, layouts, places, algorithm, 0.5, 2) == SUCCESS
    found = host(blas, places[2], out[0])
    x, y, z = (part[1].astype(np.float64) for part in (left, right, out))
    expected = 0.5 * (x.T if a else x) @ (y.T if b else y) + 2 * z
    matrix = found[:, :-pad] if order == ROWS else found[:, :-pad].T
    np.testing.assert_allclose(matrix, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[:, -pad:], out[0][:, -pad:])


def test_a_product_that_splits_k(blas: Blas) -> None:
    example = Example(blas, 8, 8, 4096)
    assert example.matmul(blas) == SUCCESS
    found = host(blas, example.places[2], example.d)
    expected = example.a.astype(np.float64) @ example.b
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert blas.config(example.algorithm, SPLITS) >= 0
    assert example.algorithm.workspace <= WORKSPACE


def test_what_beta_0_does_not_read(blas: Blas) -> None:
    example = Example(blas)
    example.places[2] = array(np.full_like(example.d, np.nan))
    assert example.matmul(blas) == SUCCESS
    assert np.isfinite(host(blas, example.places[2], example.d)).all()


def test_a_product_in_a_graph(blas: Blas) -> None:
    """Descriptions are read when it is captured, matrices when it runs."""
    example = Example(blas)
    blas.gpu.begin()
    assert example.matmul(blas) == SUCCESS
    graph = do(driver.cuStreamEndCapture, blas.gpu.stream)
    for layout in example.layouts:
        assert blas.library.cublasLtMatrixLayoutDestroy(layout) == SUCCESS
    executable = do(driver.cuGraphInstantiate, graph, 0)
    twice = 2 * example.a
    do(driver.cuMemcpyHtoD, example.places[0], twice, twice.nbytes)
    do(driver.cuGraphLaunch, executable, blas.gpu.stream)
    found = host(blas, example.places[2], example.d)
    np.testing.assert_allclose(found, twice @ example.b, rtol=1e-5, atol=1e-5)


# -- refused -------------------------------------------------------------------------------


def test_a_leading_dimension_below_a_row(blas: Blas) -> None:
    example = Example(blas)
    example.layouts[0] = blas.layout(FLOAT, 17, 30, 29)
    assert blas.heuristic(example.description, example.layouts)[0] != SUCCESS
    assert example.matmul(blas) == INVALID_VALUE


def test_sizes_that_do_not_meet(blas: Blas) -> None:
    example = Example(blas)
    example.layouts[1] = blas.layout(FLOAT, 29, 12, 12)
    assert blas.heuristic(example.description, example.layouts)[0] != SUCCESS
    assert example.matmul(blas) == INVALID_VALUE


def test_types_that_do_not_meet(blas: Blas) -> None:
    example = Example(blas)
    example.layouts[1] = blas.layout(DOUBLE, 30, 12, 12)
    assert blas.heuristic(example.description, example.layouts)[0] == NOT_SUPPORTED
    assert example.matmul(blas) != SUCCESS


def test_a_workspace_that_is_too_small(blas: Blas) -> None:
    example = Example(blas, 8, 8, 4096)
    if example.algorithm.workspace == 0:
        pytest.skip("the algorithm needs no workspace")
    workspace = blas.workspace, example.algorithm.workspace - 1
    assert example.matmul(blas, workspace=workspace) != SUCCESS


@pytest.fixture
def stand_in() -> standin.Standin:
    running = standin.running()
    assert running is not None, "run it with --stand-in CARD"
    return running


def said(stand_in: standin.Standin, words: str) -> None:
    assert words in stand_in.reason(), stand_in.reason()


@pytest.mark.standin
def test_a_workspace_that_is_none(blas: Blas, stand_in: standin.Standin) -> None:
    example = Example(blas, 8, 8, 4096)
    assert blas.config(example.algorithm, SPLITS) > 1
    assert blas.config(example.algorithm, REDUCTION) == 2
    freed = int(do(driver.cuMemAlloc, WORKSPACE))
    do(driver.cuMemFree, freed)
    for address, why in (
        (0, "the workspace, (nil), lies in no allocation"),
        (freed, "was freed by cuMemFree"),
        (blas.workspace + 16, "the workspace ends at byte"),
    ):
        assert example.matmul(blas, workspace=(address, WORKSPACE)) == INVALID_VALUE
        said(stand_in, why)
    assert example.matmul(blas, workspace=(blas.workspace + 16, 1 << 20)) == NOT_SUPPORTED
    said(stand_in, "is not aligned to 256 bytes")


@pytest.mark.standin
def test_a_workspace_is_written_to(blas: Blas) -> None:
    example = Example(blas, 8, 8, 4096)
    do(driver.cuMemsetD8, blas.workspace, 0, WORKSPACE)
    do(driver.cuCtxSynchronize)
    assert example.matmul(blas) == SUCCESS
    found = host(blas, blas.workspace, np.zeros(example.algorithm.workspace, np.uint8))
    assert (found == 0xFF).all()


@pytest.mark.standin
def test_choosing_while_a_stream_is_captured(blas: Blas, stand_in: standin.Standin) -> None:
    example = Example(blas)
    blas.gpu.begin()
    status, _ = blas.heuristic(example.description, example.layouts)
    assert status == NOT_SUPPORTED
    said(stand_in, "choose the algorithm before")
    assert example.matmul(blas, algorithm=None) == NOT_SUPPORTED
    blas.gpu.end()
    assert example.matmul(blas, algorithm=None) == SUCCESS


@pytest.mark.standin
def test_an_algorithm_of_another_problem(blas: Blas, stand_in: standin.Standin) -> None:
    example, other = Example(blas), Example(blas, k=31)
    assert example.matmul(blas, algorithm=other.algorithm) == INVALID_VALUE
    said(stand_in, "the algorithm was chosen for another problem")
    assert example.matmul(blas, algorithm=Result()) == INVALID_VALUE


@pytest.mark.standin
def test_matrices_outside_of_their_memory(blas: Blas, stand_in: standin.Standin) -> None:
    example = Example(blas)
    places = list(example.places)
    for i, name in enumerate("ABD"):
        for place, why in (
            (places[i] + 256, f"{name} ends at byte"),
            (example.a.ctypes.data, f"{name}, "),
            (0, f"{name}, (nil), lies in no allocation"),
        ):
            example.places = [*places[:i], place, *places[i + 1 :]]
            assert example.matmul(blas) == INVALID_VALUE
            said(stand_in, why)


@pytest.mark.standin
def test_less_aligned_than_was_said(blas: Blas, stand_in: standin.Standin) -> None:
    example = Example(blas)
    longer = array(np.zeros(example.a.size + 8, np.float32))
    example.places[0] = longer + 16
    assert example.matmul(blas) == NOT_SUPPORTED
    said(stand_in, "A, ")
    said(stand_in, "is not aligned to 256 bytes, which the algorithm was chosen for")
    for which in ALIGNMENTS:
        blas.set("cublasLtMatmulPreferenceSetAttribute", blas.preference, which, 16, 32)
    status, algorithm = blas.heuristic(example.description, example.layouts)
    assert status == SUCCESS
    assert example.matmul(blas, algorithm=algorithm) == SUCCESS


@pytest.mark.standin
def test_a_product_over_its_own_factor(blas: Blas, stand_in: standin.Standin) -> None:
    example = Example(blas, 16, 16, 16)
    example.places[2] = example.places[0]
    assert example.matmul(blas) == INVALID_VALUE
    said(stand_in, "A and D overlap")


@pytest.mark.standin
def test_what_was_destroyed(blas: Blas, stand_in: standin.Standin) -> None:
    example = Example(blas)
    assert blas.library.cublasLtMatmulDescDestroy(example.description) == SUCCESS
    assert example.matmul(blas) == INVALID_VALUE
    said(stand_in, "no matmul description's handle, or it was destroyed")


@pytest.mark.standin
def test_an_attribute_of_another_size(blas: Blas, stand_in: standin.Standin) -> None:
    layout = blas.layout(FLOAT, 2, 2, 2)
    name, order = "cublasLtMatrixLayoutSetAttribute", ctypes.c_int64(1)
    status = blas.library[name](layout, ORDER, ctypes.byref(order), ctypes.c_size_t(8))
    assert status == INVALID_VALUE
    said(stand_in, "attribute 1 has 4 bytes, not 8")


@pytest.mark.standin
def test_a_product_runs_late(blas: Blas) -> None:
    example = Example(blas)
    fresh = int(do(driver.cuMemAlloc, example.d.nbytes))
    example.places[2] = fresh
    assert example.matmul(blas) == SUCCESS
    out = np.empty_like(example.d)
    do(driver.cuMemcpyDtoHAsync, out, fresh, out.nbytes, blas.gpu.new_stream())
    assert np.isnan(out).all()


@pytest.mark.standin
def test_a_product_that_is_told_to_fail(blas: Blas, stand_in: standin.Standin) -> None:
    example = Example(blas)
    stand_in.fail("launch", 1, CU.CUDA_ERROR_LAUNCH_FAILED)
    assert example.matmul(blas) == 13
    assert result(driver.cuCtxSynchronize) == CU.CUDA_ERROR_LAUNCH_FAILED
