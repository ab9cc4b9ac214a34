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
FLOAT, DOUBLE, BF16 = 0, 1, 14
COMPUTE = {FLOAT: 68, DOUBLE: 70, BF16: 68}
PEDANTIC, PEDANTIC_DOUBLE, FAST_BF16, FAST_TF32 = 69, 71, 75, 77
COLUMNS, ROWS = 0, 1
#: Attributes: of a layout, a description, a preference, an algorithm.
ORDER, TRANSPOSE_A, TRANSPOSE_B = 1, 3, 4
EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LD, BIAS_TYPE = 7, 8, 11, 12, 26
MAX_WORKSPACE, ALIGNMENTS = 1, (5, 6, 7, 8)
TILE, SPLITS, REDUCTION = 1, 2, 3
WORKSPACE = 4 << 20
#: NumPy has no bfloat16: its bits.
DTYPES: dict[int, Any] = {FLOAT: np.float32, DOUBLE: np.float64, BF16: np.uint16}
EPILOGUES = {
    "DEFAULT": 1,
    "RELU": 2,
    "RELU_AUX": 130,
    "BIAS": 4,
    "RELU_BIAS": 6,
    "RELU_AUX_BIAS": 134,
    "DRELU": 136,
    "DRELU_BGRAD": 152,
    "GELU": 32,
    "GELU_AUX": 160,
    "GELU_BIAS": 36,
    "GELU_AUX_BIAS": 164,
    "DGELU": 192,
    "DGELU_BGRAD": 208,
    "BGRADA": 256,
    "BGRADB": 512,
}
#: What their numbers are made of.
BIAS, AUX, WRITES_BIAS = 4, 128, 16 | 256 | 512


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

    def description(
        self, type: int, a: bool = False, b: bool = False, compute: int | None = None
    ) -> Any:
        compute = COMPUTE[type] if compute is None else compute
        scale = DOUBLE if type == DOUBLE else FLOAT
        description = self.made("cublasLtMatmulDescCreate", compute, scale)
        self.describe(description, TRANSPOSE_A, int(a))
        self.describe(description, TRANSPOSE_B, int(b))
        return description

    def describe(self, description: Any, which: int, value: int) -> None:
        bits = 64 if which in (BIAS_POINTER, AUX_POINTER, AUX_LD) else 32
        self.set("cublasLtMatmulDescSetAttribute", description, which, value, bits)

    def heuristic(self, description: Any, layouts: Any) -> tuple[int, Result]:
        """(status, the first algorithm)"""
        results, found = (Result * 2)(), ctypes.c_int(-1)
        a, b, d = layouts
        status = self.library.cublasLtMatmulAlgoGetHeuristic(
            self.handle, description, a, b, d, d, self.preference, 2, results, ctypes.byref(found)
        )
        assert found.value >= 1 if status == SUCCESS else found.value <= 0
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
        c: int | None = None,
    ) -> int:
        scalar = ctypes.c_double if type == DOUBLE else ctypes.c_float
        address, size = (self.workspace, WORKSPACE) if workspace is None else workspace
        a, b, d = layouts
        pa, pb, pd = map(ctypes.c_void_p, map(int, places))
        pc = pd if c is None else ctypes.c_void_p(c)
        return self.library.cublasLtMatmul(
            self.handle, description, ctypes.byref(scalar(alpha)), pa, a, pb, b,
            ctypes.byref(scalar(beta)), pc, d, pd, d,
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


def stored(numbers: np.ndarray, type: int) -> np.ndarray:
    """The nearest numbers of a type, of two the even one."""
    if type != BF16:
        return numbers.astype(DTYPES[type])
    bits = numbers.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def numbers(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: np.ndarray) -> np.ndarray:
    h = 1e-5
    return (gelu(x + h) - gelu(x - h)) / (2 * h)


def bits_of(mask: np.ndarray, n: int) -> np.ndarray:
    return np.unpackbits(mask, axis=1, bitorder="little")[:, :n].astype(bool)


class Fused:
    """``out = f(alpha a b + beta out)`` of arrays stored by rows, by an epilogue f.

    The library takes them as stored by columns, so as transposed: its D, of n rows, is outᵀ, its A
    is b and its B is a. A bias has n numbers, and a row of aux is for a row of out.

    Attributes
    ----------
    a, b, out, bias, aux : ndarray
        As stored. The bias has as many numbers as what the epilogue writes there, and aux as many
        columns as its leading dimension, in bits or numbers.
    x : ndarray
        alpha a b + beta out, with the bias where the epilogue adds one, in float64.
    """

    alpha, beta = 0.5, 2.0

    def __init__(
        self,
        blas: Blas,
        epilogue: str,
        m: int = 24,
        n: int = 136,
        k: int = 40,
        type: int = FLOAT,
        out_type: int | None = None,
        *,
        transposed: tuple[bool, bool] = (False, False),
        compute: int | None = None,
        order: int = COLUMNS,
    ) -> None:
        random = np.random.default_rng(0)
        self.blas, self.epilogue, self.n = blas, epilogue, n
        self.type, self.out_type = type, type if out_type is None else out_type

        def drawn(shape: tuple[int, ...], type: int) -> np.ndarray:
            return stored(random.standard_normal(shape), type)

        self.a = drawn((k, m) if transposed[0] else (m, k), type)
        self.b = drawn((n, k) if transposed[1] else (k, n), type)
        self.factors = (
            numbers(self.a.T if transposed[0] else self.a),
            numbers(self.b.T if transposed[1] else self.b),
        )
        self.out = drawn((m, n), self.out_type)
        self.x = self.alpha * self.factors[0] @ self.factors[1] + self.beta * numbers(self.out)
        self.bias = drawn((m if epilogue == "BGRADB" else n,), self.out_type)
        if "BIAS" in epilogue:
            self.x += numbers(self.bias)
        self.ld = -(-n // 128) * 128 if "RELU" in epilogue else -(-n // 8) * 8
        if "RELU" in epilogue:
            self.aux = random.integers(0, 256, (m, self.ld // 8), np.uint8)
        else:
            self.aux = drawn((m, self.ld), self.out_type)
        self.places = [array(x) for x in (self.b, self.a, self.out)]
        self.bias_place, self.aux_place = array(self.bias), array(self.aux)

        self.layouts = [
            blas.layout(t, x.shape[1], x.shape[0], x.shape[1], COLUMNS)
            for x, t in ((self.b, type), (self.a, type))
        ]
        self.layouts += [blas.layout(self.out_type, n, m, n if order == COLUMNS else m, order)]
        self.description = blas.description(type, transposed[1], transposed[0], compute)
        self.describe(EPILOGUE, EPILOGUES[epilogue])
        if EPILOGUES[epilogue] & (BIAS | WRITES_BIAS):
            self.describe(BIAS_POINTER, self.bias_place)
        if EPILOGUES[epilogue] & AUX:
            self.describe(AUX_POINTER, self.aux_place)
            self.describe(AUX_LD, self.ld)
        self.choose()

    def describe(self, which: int, value: int) -> None:
        self.blas.describe(self.description, which, value)

    def choose(self) -> int:
        """An algorithm for what the description is now; the status."""
        self.status, self.algorithm = self.blas.heuristic(self.description, self.layouts)
        return self.status

    def matmul(self, **changed: Any) -> int:
        given = {
            "description": self.description,
            "layouts": self.layouts,
            "places": self.places,
            "algorithm": self.algorithm,
            "alpha": self.alpha,
            "beta": self.beta,
        } | changed
        return self.blas.matmul(self.type, **given)

    def run(self) -> None:
        """Or skip the test, where the library has no algorithm; the stand-in has."""
        if self.status == NOT_SUPPORTED and standin.running() is None:
            pytest.skip("the library has no algorithm")
        assert self.status == SUCCESS
        assert self.matmul() == SUCCESS

    def found(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(out, bias, aux), as stored."""
        return (
            host(self.blas, self.places[2], self.out),
            host(self.blas, self.bias_place, self.bias),
            host(self.blas, self.aux_place, self.aux),
        )

    def expected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(out, bias, aux) in float64, a bit mask as bools."""
        x, bias = self.x, numbers(self.bias)
        relu = "RELU" in self.epilogue
        aux = bits_of(self.aux, self.n) if relu else numbers(self.aux)[:, : self.n]
        out = x
        match self.epilogue.split("_")[0]:
            case "RELU":
                out = np.maximum(x, 0)
                aux = x > 0 if "AUX" in self.epilogue else aux
            case "DRELU":
                out = np.where(aux, x, 0)
            case "GELU":
                out = gelu(x)
                aux = x if "AUX" in self.epilogue else aux
            case "DGELU":
                out = x * gelu_slope(aux)
            case "BGRADA":
                bias = self.factors[1].sum(0)
            case "BGRADB":
                bias = self.factors[0].sum(1)
        if self.epilogue.endswith("_BGRAD"):
            bias = out.sum(0)
        return out, bias, aux

    def check(self) -> None:
        """What is there against NumPy's."""
        out, bias, aux = self.found()
        expected = self.expected()
        self.near(out, expected[0])
        self.near(bias, expected[1])
        if "RELU" in self.epilogue:
            sure = np.abs(self.x) > 1e-4
            np.testing.assert_array_equal(bits_of(aux, self.n)[sure], expected[2][sure])
        else:
            self.near(aux[:, : self.n], expected[2])
            np.testing.assert_array_equal(aux[:, self.n :], self.aux[:, self.n :])

    def near(self, found: np.ndarray, expected: np.ndarray) -> None:
        if standin.running() is not None:
            expected = numbers(stored(expected, self.out_type))
            error = 1e-8 if self.out_type == DOUBLE else 1e-6
        else:  # sums are float32's, and a GELU may be tanh.approx's
            error = 2**-7 if self.out_type == BF16 else 2e-3 if "GELU" in self.epilogue else 1e-4
        np.testing.assert_allclose(numbers(found), expected, rtol=error, atol=error)


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


SIZES = [
    {"m": 24, "n": 136, "k": 40},
    pytest.param({"m": 5, "n": 13, "k": 7}, marks=pytest.mark.standin),  # rows of no 16 bytes
]
TYPES = [
    pytest.param(FLOAT, FLOAT, id="float"),
    pytest.param(BF16, FLOAT, id="bf16-float"),
    pytest.param(BF16, BF16, id="bf16"),
    pytest.param(DOUBLE, DOUBLE, marks=pytest.mark.standin, id="double"),
]


@pytest.mark.parametrize("sizes", SIZES, ids=["aligned", "odd"])
@pytest.mark.parametrize(("type", "out_type"), TYPES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_an_epilogue(
    blas: Blas, epilogue: str, type: int, out_type: int, sizes: dict[str, int]
) -> None:
    product = Fused(blas, epilogue, type=type, out_type=out_type, **sizes)
    product.run()
    product.check()


@pytest.mark.parametrize("epilogue", ["RELU_AUX_BIAS", "BGRADA", "BGRADB"])
@pytest.mark.parametrize("transposed", [(False, True), (True, False), (True, True)])
def test_an_epilogue_of_transposed_factors(
    blas: Blas, epilogue: str, transposed: tuple[bool, bool]
) -> None:
    product = Fused(blas, epilogue, transposed=transposed)
    product.run()
    product.check()


@pytest.mark.parametrize("epilogue", ["RELU_AUX_BIAS", "DRELU_BGRAD", "GELU_AUX_BIAS", "BGRADA"])
def test_an_epilogue_where_k_is_split(blas: Blas, epilogue: str) -> None:
    product = Fused(blas, epilogue, 8, 16, 4096, BF16, FLOAT)
    product.run()
    if standin.running() is not None:
        assert blas.config(product.algorithm, SPLITS) > 1
    product.check()


@pytest.mark.parametrize("epilogue", ["RELU_AUX", "DRELU", "GELU_AUX", "DGELU"])
def test_a_longer_leading_dimension_of_aux(blas: Blas, epilogue: str) -> None:
    product = Fused(blas, epilogue)
    longer = 512 if "RELU" in epilogue else 200
    wide = np.zeros((24, longer // 8 if "RELU" in epilogue else longer), product.aux.dtype)
    wide[:, : product.aux.shape[1]] = product.aux
    product.aux, product.aux_place = wide, array(wide)
    product.describe(AUX_POINTER, product.aux_place)
    product.describe(AUX_LD, longer)
    product.choose()
    product.run()
    product.check()
    if "RELU" in epilogue:  # between the columns' whole words is somebody else's
        np.testing.assert_array_equal(product.found()[2][:, 32:], wide[:, 32:])


def test_bf16_is_rounded_to_the_nearest_even(blas: Blas) -> None:
    product = Fused(blas, "DEFAULT", 8, 8, 8, BF16)
    last = 2.0**-7
    a, b = np.zeros((8, 8)), np.ones((8, 8))
    a[:6, :2] = [
        (1, 0.5 * last), (1, 1.5 * last), (1, 2.5 * last), (1, 0.75 * last),
        (-1, -1.5 * last), (2.0**127, 2.0**127),
    ]  # fmt: skip
    product.places[:2] = array(stored(b, BF16)), array(stored(a, BF16))
    assert product.matmul(alpha=1, beta=0) == SUCCESS
    found = numbers(product.found()[0])[:6, 0]
    expected = 1, 1 + 2 * last, 1 + 2 * last, 1 + last, -1 - 2 * last, np.inf
    np.testing.assert_array_equal(found, expected)


@pytest.mark.standin
def test_bf16_is_rounded_once(blas: Blas) -> None:
    """Not to float32 before; and below what is normal, too."""
    product = Fused(blas, "DEFAULT", 8, 8, 8, BF16)
    tiny = 2.0**-133
    a, b = np.zeros((8, 8)), np.ones((8, 8))
    a[0, :3] = 1, 2.0**-8, 2.0**-40
    a[1, 0], a[2, :2], a[3, 0] = tiny, (tiny, tiny), 3 * tiny
    product.places[:2] = array(stored(b, BF16)), array(stored(a, BF16))
    assert product.matmul(alpha=1, beta=0) == SUCCESS
    np.testing.assert_array_equal(
        numbers(product.found()[0])[:4, 0], [1 + 2.0**-7, tiny, 2 * tiny, 3 * tiny]
    )
    assert product.matmul(alpha=0.5, beta=0) == SUCCESS
    np.testing.assert_array_equal(numbers(product.found()[0])[1:4, 0], [0, tiny, 2 * tiny])


@pytest.mark.parametrize("compute", [FAST_BF16, FAST_TF32])
@pytest.mark.parametrize("epilogue", ["BIAS", "BGRADA", "BGRADB"])
def test_factors_that_a_compute_type_rounds(blas: Blas, epilogue: str, compute: int) -> None:
    product = Fused(blas, epilogue, compute=compute)
    product.run()
    found = product.found()
    expected = product.expected()
    np.testing.assert_allclose(found[0], expected[0], rtol=0.05, atol=0.2)
    np.testing.assert_allclose(found[1], expected[1], rtol=0.02, atol=0.1)
    if standin.running() is None:
        return
    if compute == FAST_BF16:
        product.factors = tuple(numbers(stored(x, BF16)) for x in product.factors)
        bias = product.expected()[1]
        np.testing.assert_allclose(found[1], bias, rtol=1e-6, atol=1e-6)
        assert epilogue == "BIAS" or np.abs(bias - expected[1]).max() > 1e-3


@pytest.mark.standin
def test_what_is_no_number_under_an_epilogue(blas: Blas) -> None:
    """The documentation does not say what becomes of it; users have seen that ReLU makes it 0."""
    for epilogue in ("RELU_AUX", "DRELU"):
        product = Fused(blas, epilogue)
        out = np.full_like(product.out, np.nan)
        product.places[2] = array(out)
        assert product.matmul() == SUCCESS
        out, _, aux = product.found()
        mask = bits_of(aux, product.n)
        if epilogue == "DRELU":
            np.testing.assert_array_equal(np.isnan(out), mask)
            assert (out[~mask] == 0).all()
        else:
            assert (out == 0).all()
            assert not mask.any()


@pytest.mark.standin
def test_bits_behind_the_last_row_are_anything(blas: Blas) -> None:
    product = Fused(blas, "RELU_AUX", 5, 13)
    do(driver.cuMemsetD8, product.aux_place, 0, product.aux.nbytes)
    assert product.matmul() == SUCCESS
    assert bits_of(product.found()[2], 128)[:, 13:].all()


@pytest.mark.parametrize("epilogue", ["RELU_AUX_BIAS", "DRELU_BGRAD"])
def test_an_epilogue_in_a_graph(blas: Blas, epilogue: str) -> None:
    """Its pointers are read when it is captured, and what is there when it runs."""
    product = Fused(blas, epilogue)
    other = array(np.full_like(product.bias, 7)), array(np.full_like(product.aux, 0xFF))
    blas.gpu.begin()
    product.run()
    graph = do(driver.cuStreamEndCapture, blas.gpu.stream)
    product.describe(BIAS_POINTER, other[0])
    product.describe(AUX_POINTER, other[1])
    product.describe(EPILOGUE, EPILOGUES["DEFAULT"])
    executable = do(driver.cuGraphInstantiate, graph, 0)
    if epilogue == "RELU_AUX_BIAS":
        product.x += numbers(product.bias)
        product.bias *= 2
        do(driver.cuMemcpyHtoD, product.bias_place, product.bias, product.bias.nbytes)
    do(driver.cuGraphLaunch, executable, blas.gpu.stream)
    product.check()
    assert (host(blas, other[0], product.bias) == 7).all()
    assert (host(blas, other[1], product.aux) == 0xFF).all()


# -- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", [68, PEDANTIC, 70, PEDANTIC_DOUBLE, FAST_BF16, FAST_TF32])
@pytest.mark.parametrize("out_type", [FLOAT, DOUBLE, BF16])
@pytest.mark.parametrize("type", [FLOAT, DOUBLE, BF16])
def test_types_of_a_compute_type(blas: Blas, type: int, out_type: int, compute: int) -> None:
    there = {(FLOAT, FLOAT)}
    if compute in (68, PEDANTIC):
        there |= {(BF16, FLOAT), (BF16, BF16)}
    elif compute in (70, PEDANTIC_DOUBLE):
        there = {(DOUBLE, DOUBLE)}
    layouts = [blas.layout(t, 16, 16, 16) for t in (type, type, out_type)]
    scale = DOUBLE if compute in (70, PEDANTIC_DOUBLE) else FLOAT
    description = blas.description(scale, compute=compute)
    status, algorithm = blas.heuristic(description, layouts)
    assert status == (SUCCESS if (type, out_type) in there else NOT_SUPPORTED)
    places = [array(np.ones((16, 16))) for _ in range(3)]
    status = blas.matmul(scale, description, layouts, places, algorithm)
    assert (status == SUCCESS) == ((type, out_type) in there)


def test_types_that_differ(blas: Blas) -> None:
    description = blas.description(BF16)
    bf16, single = (blas.layout(t, 16, 16, 16) for t in (BF16, FLOAT))
    for layouts in ((bf16, single, single), (single, bf16, single), (single, bf16, bf16)):
        assert blas.heuristic(description, layouts)[0] == NOT_SUPPORTED
    scaled = blas.made("cublasLtMatmulDescCreate", 68, DOUBLE)
    assert blas.heuristic(scaled, (single, single, single))[0] == NOT_SUPPORTED


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
def test_a_workspace_holds_sums_of_float32(blas: Blas) -> None:
    product = Fused(blas, "BIAS", 8, 16, 4096, BF16)
    splits = blas.config(product.algorithm, SPLITS)
    assert product.algorithm.workspace == splits * 8 * 16 * 4


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
def test_a_product_runs_late(blas: Blas, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--stand-in-order") != "late":
        pytest.skip("it runs when the order draws it")
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


@pytest.mark.standin
def test_types_of_c_and_d(blas: Blas, stand_in: standin.Standin) -> None:
    product = Fused(blas, "DEFAULT", type=BF16)
    b, a, d = product.layouts
    single = blas.layout(FLOAT, 136, 24, 136, COLUMNS)
    results, found = (Result * 2)(), ctypes.c_int(-1)
    status = blas.library.cublasLtMatmulAlgoGetHeuristic(
        blas.handle, product.description, b, a, single, d, blas.preference, 2, results,
        ctypes.byref(found),
    )  # fmt: skip
    assert (status, found.value) == (NOT_SUPPORTED, 0)
    said(stand_in, "A, B, C and D are of types 14, 14, 0 and 14, for compute type 68")


@pytest.mark.standin
def test_epilogues_that_are_not_there(blas: Blas, stand_in: standin.Standin) -> None:
    product = Fused(blas, "DEFAULT")
    for number in set(range(1100)) - set(EPILOGUES.values()):
        product.describe(EPILOGUE, number)
        assert product.choose() == NOT_SUPPORTED
        said(stand_in, f"there is no epilogue {number}")
        assert product.matmul() == NOT_SUPPORTED


@pytest.mark.standin
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_an_epilogue_by_rows(blas: Blas, stand_in: standin.Standin, epilogue: str) -> None:
    product = Fused(blas, epilogue, 16, 16, order=ROWS)
    if epilogue == "DEFAULT":
        assert product.status == SUCCESS
        return
    assert product.status == NOT_SUPPORTED
    said(stand_in, f"epilogue {EPILOGUES[epilogue]} takes D by columns only")


@pytest.mark.standin
@pytest.mark.parametrize("epilogue", [name for name, n in EPILOGUES.items() if n & AUX])
def test_the_leading_dimension_of_aux(blas: Blas, stand_in: standin.Standin, epilogue: str) -> None:
    product = Fused(blas, epilogue)  # of 136 rows
    multiple = 128 if "RELU" in epilogue else 8
    for ld, why in (
        (0, "leading dimension 0, less than D's 136 rows"),
        (128, "leading dimension 128, less than D's 136 rows"),
        (256 + multiple // 2, f"which is no multiple of {multiple}"),
    ):
        product.describe(AUX_LD, ld)
        assert product.choose() == INVALID_VALUE
        said(stand_in, why)
        assert product.matmul() == INVALID_VALUE


@pytest.mark.standin
@pytest.mark.parametrize("epilogue", [name for name in EPILOGUES if name != "DEFAULT"])
def test_pointers_that_are_null(blas: Blas, stand_in: standin.Standin, epilogue: str) -> None:
    """To choose an algorithm none is needed."""
    product = Fused(blas, epilogue)
    number = EPILOGUES[epilogue]
    for which, parts, place, name in (
        (BIAS_POINTER, BIAS | WRITES_BIAS, product.bias_place, "the bias"),
        (AUX_POINTER, AUX, product.aux_place, "aux"),
    ):
        product.describe(which, 0)
        assert product.choose() == SUCCESS
        if number & parts:
            assert product.matmul() == INVALID_VALUE
            said(stand_in, f"the pointer to {name}, which epilogue {number} needs, is null")
            product.describe(which, place)
        assert product.matmul() == SUCCESS


@pytest.mark.standin
def test_a_bias_of_another_type(blas: Blas, stand_in: standin.Standin) -> None:
    product = Fused(blas, "BIAS", type=BF16)
    product.describe(BIAS_TYPE, BF16)
    assert product.choose() == SUCCESS
    product.describe(BIAS_TYPE, FLOAT)
    assert product.choose() == NOT_SUPPORTED
    said(stand_in, "the bias is of type 0, D of type 14")
    product.describe(BIAS_TYPE, -1)
    product.choose()
    product.run()
    product.check()


@pytest.mark.standin
def test_a_bias_and_aux_outside_of_their_memory(blas: Blas, stand_in: standin.Standin) -> None:
    for epilogue, which, size, name in (
        ("BIAS", BIAS_POINTER, 136 * 4, "the bias"),
        ("DRELU_BGRAD", BIAS_POINTER, 136 * 4, "the bias"),
        ("BGRADA", BIAS_POINTER, 136 * 4, "the bias"),
        ("BGRADB", BIAS_POINTER, 24 * 4, "the bias"),
        ("RELU_AUX", AUX_POINTER, 24 * 32, "aux"),
        ("DRELU", AUX_POINTER, 24 * 32, "aux"),
        ("GELU_AUX", AUX_POINTER, 24 * 136 * 4, "aux"),
        ("DGELU", AUX_POINTER, 24 * 136 * 4, "aux"),
    ):
        product = Fused(blas, epilogue)
        exact, short, freed = (int(do(driver.cuMemAlloc, n)) for n in (size, size - 4, size))
        do(driver.cuMemFree, freed)
        for there, why in (
            (short, f"{name} ends at byte {size} of"),
            (freed, "was freed by cuMemFree"),
            (product.a.ctypes.data & -16, f"{name}, 0x"),
        ):
            product.describe(which, there)
            assert product.matmul() == INVALID_VALUE
            said(stand_in, why)
        product.describe(which, exact)
        assert product.matmul() == SUCCESS


@pytest.mark.standin
@pytest.mark.parametrize("epilogue", ["BIAS", "DRELU_BGRAD", "BGRADB", "RELU_AUX", "GELU_AUX"])
def test_a_bias_or_aux_less_aligned_than_was_chosen_for(
    blas: Blas, stand_in: standin.Standin, epilogue: str
) -> None:
    product = Fused(blas, epilogue)
    which = AUX_POINTER if epilogue.endswith("_AUX") else BIAS_POINTER
    name = "aux" if which == AUX_POINTER else "the bias"
    place = int(do(driver.cuMemAlloc, product.aux.nbytes + 64))
    for chosen, aligned in ((0, 16), (place, 16), (place + 32, 16), (place + 8, 8)):
        product.describe(which, chosen)
        assert product.choose() == SUCCESS
        for offset in (4, 8, 12, 16, 24, 32):
            product.describe(which, place + offset)
            if offset % aligned == 0:
                assert product.matmul() == SUCCESS
                continue
            assert product.matmul() == NOT_SUPPORTED
            said(stand_in, f"{name}, {place + offset:#x}, is less aligned than the one the ")
            said(stand_in, f"algorithm was chosen for ({aligned} bytes)")
            assert product.matmul(algorithm=None) == SUCCESS  # chosen for this
    if epilogue != "RELU_AUX":  # never less than a number
        product.describe(which, place + 2)
        assert product.choose() == SUCCESS
        assert product.matmul() == NOT_SUPPORTED
        said(stand_in, "algorithm was chosen for (4 bytes)")


@pytest.mark.standin
def test_an_algorithm_of_another_epilogue(blas: Blas, stand_in: standin.Standin) -> None:
    product = Fused(blas, "RELU_AUX_BIAS")
    for which, value in ((EPILOGUE, EPILOGUES["RELU_AUX"]), (AUX_LD, 512)):
        before = EPILOGUES["RELU_AUX_BIAS"] if which == EPILOGUE else product.ld
        product.describe(which, value)
        assert product.matmul() == INVALID_VALUE
        said(stand_in, "the algorithm was chosen for another problem")
        product.describe(which, before)
    narrow = Fused(blas, "BIAS", type=BF16)
    wide = Fused(blas, "BIAS", type=BF16, out_type=FLOAT)
    assert narrow.matmul(algorithm=wide.algorithm) == INVALID_VALUE
    said(stand_in, "the algorithm was chosen for another problem")


@pytest.mark.standin
def test_memory_of_an_epilogue_that_overlaps(blas: Blas, stand_in: standin.Standin) -> None:
    def refused(product: Fused, which: int, place: int, why: str, **changed: Any) -> None:
        product.describe(which, place)
        assert product.matmul(**changed) == INVALID_VALUE
        said(stand_in, f"{why} overlap")

    for epilogue in ("BIAS", "DRELU_BGRAD", "BGRADA"):
        product = Fused(blas, epilogue)
        b, a, d = product.places
        refused(product, BIAS_POINTER, d + 16, "D and the bias")
        refused(product, BIAS_POINTER, blas.workspace, "the bias and the workspace")
        product.describe(BIAS_POINTER, b + 16)
        if epilogue == "BIAS":  # it is only read
            assert product.matmul() == SUCCESS
            continue
        refused(product, BIAS_POINTER, b + 16, "A and the bias")
        refused(product, BIAS_POINTER, a + 16, "B and the bias")
        c = array(product.out)
        refused(product, BIAS_POINTER, c + 16, "the bias and C", c=c)
        assert product.matmul(c=c, beta=0) == SUCCESS  # not looked at
    for epilogue in ("RELU_AUX_BIAS", "DRELU_BGRAD", "GELU_AUX_BIAS", "DGELU_BGRAD"):
        # As many numbers in A and B as D has: an aux fits in.
        product = Fused(blas, epilogue, 136, 136, 136)
        b, a, d = product.places
        refused(product, AUX_POINTER, d, "D and aux")
        if "AUX" in epilogue:
            refused(product, AUX_POINTER, b, "A and aux")
            refused(product, AUX_POINTER, a, "B and aux")
        else:
            product.describe(AUX_POINTER, b)
            assert product.matmul() == SUCCESS
        product.describe(AUX_POINTER, product.aux_place)
        refused(product, BIAS_POINTER, product.aux_place + 16, "the bias and aux")


@pytest.mark.standin
def test_a_c_that_overlaps_d(blas: Blas, stand_in: standin.Standin) -> None:
    product = Fused(blas, "DEFAULT", 16, 16, 16)
    longer = array(np.zeros(1024, np.float32))
    product.places[2] = longer
    assert product.matmul(c=longer + 256) == INVALID_VALUE
    said(stand_in, "D and C overlap")
    assert product.matmul(c=longer) == SUCCESS
    assert product.matmul(c=longer + 1024) == SUCCESS


@pytest.mark.standin
def test_an_epilogue_whose_memory_was_freed(blas: Blas, stand_in: standin.Standin) -> None:
    for epilogue, place in (("BIAS", "bias_place"), ("DRELU_BGRAD", "bias_place"),
                            ("RELU_AUX", "aux_place"), ("DGELU", "aux_place")):  # fmt: skip
        product = Fused(blas, epilogue)
        blas.gpu.begin()
        assert product.matmul() == SUCCESS
        graph = do(driver.cuStreamEndCapture, blas.gpu.stream)
        executable = do(driver.cuGraphInstantiate, graph, 0)
        do(driver.cuMemFree, getattr(product, place))
        result(driver.cuGraphLaunch, executable, blas.gpu.stream)
        assert result(driver.cuStreamSynchronize, blas.gpu.stream) != CU.CUDA_SUCCESS
        said(stand_in, "was freed by cuMemFree")
        stand_in.reset()


@pytest.mark.standin
def test_epilogues_without_an_algorithm(
    blas: Blas, stand_in: standin.Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, other = Fused(blas, "DRELU_BGRAD"), Fused(blas, "RELU_BIAS")
    monkeypatch.setenv("STANDIN_NO_EPILOGUES", "152,15,61")
    chosen = without.algorithm
    assert without.choose() == NOT_SUPPORTED  # with none found
    said(stand_in, "no algorithm has epilogue 152")
    assert without.matmul(algorithm=None) == NOT_SUPPORTED
    assert without.matmul(algorithm=chosen) == SUCCESS
    assert other.choose() == SUCCESS
    monkeypatch.setenv("STANDIN_NO_EPILOGUES", "6")
    assert without.choose() == SUCCESS
    assert other.choose() == NOT_SUPPORTED
    for wrong in ("RELU_BIAS", "1;6", "2,,6", "152 6"):
        monkeypatch.setenv("STANDIN_NO_EPILOGUES", wrong)
        assert other.choose() == INVALID_VALUE
        said(stand_in, f'"{wrong}", is not numbers and commas')
    for nothing in ("", "5,66"):
        monkeypatch.setenv("STANDIN_NO_EPILOGUES", nothing)
        assert other.choose() == SUCCESS


@pytest.mark.standin
def test_attributes_of_a_description(blas: Blas, stand_in: standin.Standin) -> None:
    """Their sizes, and what they are at first."""
    description = blas.description(FLOAT)
    for which, size, first in (
        (EPILOGUE, 4, 1), (BIAS_POINTER, 8, 0), (AUX_POINTER, 8, 0), (AUX_LD, 8, 0),
        (BIAS_TYPE, 4, 0xFFFFFFFF),
    ):  # fmt: skip
        value, written = ctypes.c_uint64(0), ctypes.c_size_t()
        get = blas.library.cublasLtMatmulDescGetAttribute
        arguments = description, which, ctypes.byref(value)
        assert get(*arguments, ctypes.c_size_t(size), ctypes.byref(written)) == SUCCESS
        assert (value.value, written.value) == (first, size)
        assert get(*arguments, ctypes.c_size_t(12 - size), None) == INVALID_VALUE
        said(stand_in, f"attribute {which} has {size} bytes, not {12 - size}")
