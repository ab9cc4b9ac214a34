"""What every kernel must compute: the cases that each backend with kernels of its own runs.

A case drives a `Backend` with random inputs and poisoned outputs and holds the result against
the float64 `reference`. `test_kernels.py` runs all of them over CUDA C++ on the CPU (plain and
under sanitizers) and on a device, `numba_cuda_cases.py` over the Numba kernels, and
`kernel_slips.py` counts how many broken kernels they catch.

To add a kernel, add a case that launches it: `@case`, a function of a `Subject`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import fused_cases
import persistent_cases
import reference
import resident_cases
from backprop_gpu import activations, costs, planning
from backprop_gpu.activations import Activation
from backprop_gpu.backends.base import Backend
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.backends.numpy import NumpyBackend
from backprop_gpu.costs import Cost
from backprop_gpu.cuda import catalogue
from backprop_gpu.cuda.catalogue import Catalogue
from backprop_gpu.optimizers import COEFFICIENTS, SGD, Adam, AdamW
from backprop_gpu.parameters import Layout, Parameters
from backprop_gpu.philox import Draws, factors, normals
from backprop_gpu.precision import round_factor
from reference import assert_close, product_bound

DTYPES = ("float32", "float64")
#: The ways CUDA C++ runs on the CPU, with the largest shapes, in multiply-adds, of each.
RUNS = {"plain": np.inf, "asan": np.inf, "tsan": 20_000}
Shapes = tuple[tuple[int, ...], ...]
#: (m, n, k): one of everything, prime and odd sizes, and tile edges plus and minus one.
SHAPES: Shapes = (
    (1, 1, 1),
    (1, 17, 5),
    (5, 1, 31),
    (17, 5, 2),
    (31, 33, 17),
    (33, 65, 129),
    (130, 31, 9),
)


class Subject:
    """A backend under test.

    Arrays are drawn in float64 and rounded to the backend's dtype and precision, so that it and
    the reference are given the same numbers, and products round nothing more. ``limit``, in
    multiply-adds, leaves out shapes that would take a slow way to run kernels too long.
    """

    def __init__(self, backend: Backend, limit: float = np.inf) -> None:
        self.backend = backend
        self.dtype = np.dtype(backend.dtype)
        self.eps = float(np.finfo(self.dtype).eps)
        self.limit = limit
        self.rng = np.random.default_rng(0)

    def shapes(self, *shapes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        return (shape for shape in shapes if np.prod(shape) <= self.limit)

    def exact(self, array: Any) -> np.ndarray:
        rounded = np.array(array, self.dtype)
        return round_factor(rounded, self.backend.precision, rounded).astype(np.float64)

    def normal(self, *shape: int) -> np.ndarray:
        return self.exact(self.rng.standard_normal(shape))

    def put(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        """Each in an allocation of its own, so that a sanitizer knows its ends."""
        return tuple(self.backend.asarray(array.astype(self.dtype)) for array in arrays)

    def poisoned(self, *shape: int) -> Any:
        """An output: NaN where nothing is written."""
        (array,) = self.put(np.full(shape, np.nan))
        return array

    def get(self, array: Any) -> np.ndarray:
        return self.backend.to_numpy(array).astype(np.float64)


#: Which kernels carry out products: what the planner takes, the library with a map behind, each
#: tile in turn, and, for sums that can be split, splits as well.
Products = Literal["planned", "library", "tiles", "splits"]


@dataclass(frozen=True)
class Case:
    name: str
    check: Callable[[Subject], None]
    products: Products = "planned"
    #: Calls Python functions of a user, which a sanitizer's process cannot.
    python: bool = False
    #: Of a kernel that is CUDA C++ only.
    cuda: bool = False

    def __str__(self) -> str:
        return self.name


CASES: list[Case] = []

#: What the cases launch, and some more: products with one σ, and every σ in maps, which are quick
#: to build. (A user's σ is built by itself.)
LAUNCHED = tuple(
    kernel
    for kernel in (
        *catalogue.everything(),
        *catalogue.tensor_products(planning.H200),
        *resident_cases.kernels(),
        *fused_cases.kernels(),
        *persistent_cases.kernels(),
    )
    if kernel.file == "weight_gradient.cu"
    or "Tile" not in kernel.expression
    or "Sigmoid" in kernel.expression
)


def case(
    each: Iterable[Any] | None = None,
    products: Products = "planned",
    python: bool = False,
    cuda: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a check; with ``each``, once for every value, which it gets as an argument."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        if each is None:
            CASES.append(Case(check.__name__, check, products, python, cuda))
            return check
        for value in each:
            name = "-".join(value) if isinstance(value, tuple) else getattr(value, "name", value)
            CASES.append(
                Case(
                    f"{check.__name__}[{name}]",
                    lambda subject, value=value: check(subject, value),
                    products,
                    python,
                    cuda,
                )
            )
        return check

    return register


def run_on_cuda(case: Case, dtype: str, runtime: Any, limit: float = np.inf) -> None:
    """A case on CUDA C++ kernels, with every way of forming products that it asks for."""
    choices: list[tuple[planning.Tile | None, int, str | None]] = []
    if case.products == "planned":
        case.check(Subject(CudaBackend(dtype, runtime), limit))
    if case.products in ("tiles", "splits"):
        choices += [(tile, 1, None) for tile in reversed(planning.TILES)]
        if dtype == "float32" and runtime.device.multiplies_rounded:
            for precision, tiles in planning.TENSOR_TILES.items():
                choices += [(tile, 1, precision) for tile in reversed(tiles)]
    if case.products == "splits":
        # More splits than the sum has slices, too: an empty part must be zero, not garbage.
        choices += [(planning.TILES[2], 3, None), (planning.TILES[3], 8, None)]
        if dtype == "float32" and runtime.device.multiplies_rounded:
            choices += [(planning.TENSOR_TILES["float32"][1], 3, "float32")]
    if case.products != "planned" and runtime.device.library:
        choices += [(None, 1, None)]
    for tile, splits, precision in choices:
        kernel = "cublas" if tile is None else "tiled"
        choice = planning.Product(kernel, tile, splits, 0.0, "forced by a test")
        try:
            backend = CudaBackend(dtype, runtime, lambda *_: choice, precision=precision)  # noqa: B023
            case.check(Subject(backend, limit))
        except AssertionError as error:
            form = f"{kernel} {tile or ''} {precision or ''} splits {splits}"
            raise AssertionError(f"{form}: {error}") from error


# -- the products -----------------------------------------------------------------------


@case(products="tiles")
def forward(s: Subject, shapes: Shapes = SHAPES) -> None:
    sigma = activations.get("sigmoid")
    for m, n, k in s.shapes(*shapes):
        w, b, a_prev = s.normal(n, k), s.normal(n), s.normal(m, k)
        arguments = *s.put(w, b, a_prev), sigma
        z, a = s.poisoned(m, n), s.poisoned(m, n)
        s.backend.forward(*arguments, z, a)
        z_exact, a_exact = reference.forward(w, b, a_prev, "sigmoid")
        bound = product_bound("jk,xk->xj", w, a_prev, s.dtype) + 8 * s.eps * np.abs(b)
        assert_close(s.get(z), z_exact, bound, f"z {m, n, k}")
        assert_close(s.get(a), a_exact, 2 * bound + 8 * s.eps, f"a {m, n, k}")
        only_a = s.poisoned(m, n)
        s.backend.forward(*arguments, None, only_a)
        np.testing.assert_array_equal(s.get(only_a), s.get(a))


@case(products="tiles")
def hidden_error(s: Subject, shapes: Shapes = SHAPES) -> None:
    sigma = activations.get("sigmoid")
    for m, n, k in s.shapes(*shapes):
        w_next, delta_next, z = s.normal(k, n), s.normal(m, k), s.normal(m, n)
        a = reference.activate("sigmoid", z)  # no factor of a product
        delta = s.poisoned(m, n)
        s.backend.hidden_error(*s.put(w_next, delta_next, z, a), sigma, delta)
        exact = reference.hidden_error(w_next, delta_next, z, "sigmoid")
        bound = product_bound("jk,xj->xk", w_next, delta_next, s.dtype)
        assert_close(s.get(delta), exact, bound, f"BP2 {m, n, k}")


@case(products="splits")
def weight_gradient(
    s: Subject, shapes: Shapes = (*SHAPES, (9, 17, 5), (9, 5, 40), (64, 33, 40), (301, 10, 31))
) -> None:
    for m, n, k in s.shapes(*shapes):
        delta, a_prev = s.normal(m, n), s.normal(m, k)
        on_device = s.put(delta, a_prev)
        gradient, biases = s.poisoned(n, k), s.poisoned(n)
        s.backend.weight_gradient(*on_device, gradient, biases)
        bound = product_bound("xj,xk->jk", delta, a_prev, s.dtype) / m
        assert_close(
            s.get(gradient), reference.weight_gradient(delta, a_prev), bound, f"BP4 {m, n, k}"
        )
        bound = product_bound("xj,x->j", delta, np.ones(m), s.dtype) / m
        assert_close(
            s.get(biases), reference.bias_gradient(delta), bound, f"BP3 beside BP4 {m, n, k}"
        )
        again, biases_again = s.poisoned(n, k), s.poisoned(n)
        s.backend.weight_gradient(*on_device, again, biases_again)
        np.testing.assert_array_equal(s.get(gradient), s.get(again))  # the same bits
        np.testing.assert_array_equal(s.get(biases), s.get(biases_again))
        alone = s.poisoned(n, k)
        s.backend.weight_gradient(*on_device, alone)
        np.testing.assert_array_equal(s.get(gradient), s.get(alone))


@case(products="splits")
def large_numbers(
    s: Subject, shapes: Shapes = ((3, 7, 70), (20, 5, 100), (5, 34, 70), (70, 5, 7), (300, 5, 9))
) -> None:
    """Finite sums of numbers near the largest, which no part of a sum may turn into infinity."""

    def factors(sum_of: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """By rows of the sum; some of them far apart in size, and all of their products not."""
        a, b = s.rng.standard_normal((sum_of, rows)), s.rng.standard_normal((sum_of, columns))
        size = float(np.finfo(s.dtype).max)
        for p in {1, sum_of - 2}:
            a[p] = s.rng.choice([-1, 1], rows) * s.rng.uniform(0.6, 0.95, rows) * size
            b[p] *= 1 / size * 8
        return s.exact(a), s.exact(b)

    sigma = activations.get("sigmoid")
    for m, n, k in s.shapes(*shapes):
        (a_prev, w), b = factors(k, m, n), np.zeros(n)
        z, a = s.poisoned(m, n), s.poisoned(m, n)
        s.backend.forward(*s.put(w.T, b, a_prev.T), sigma, z, a)
        bound = product_bound("kj,kx->xj", w, a_prev, s.dtype)
        assert_close(s.get(z), a_prev.T @ w, bound, f"z {m, n, k}")

        (delta_next, w_next), z0 = factors(k, m, n), np.zeros((m, n))
        delta = s.poisoned(m, n)
        s.backend.hidden_error(*s.put(w_next, delta_next.T, z0, z0 + 0.5), sigma, delta)
        bound = product_bound("jk,jx->xk", w_next, delta_next, s.dtype)
        assert_close(s.get(delta), delta_next.T @ w_next / 4, bound, f"BP2 {m, n, k}")

        delta_, a_prev = factors(m, n, k)
        gradient = s.poisoned(n, k)
        s.backend.weight_gradient(*s.put(delta_, a_prev), gradient)
        bound = product_bound("xj,xk->jk", delta_, a_prev, s.dtype) / m
        assert_close(s.get(gradient), delta_.T @ a_prev / m, bound, f"BP4 {m, n, k}")


@case(products="splits")
def one_product(s: Subject) -> None:
    """A sum of one product is that, rounded once; BP4's mean of it, three times."""
    m, n = 70, 40
    w, b, a_prev = s.normal(n, 1), np.zeros(n), s.normal(m, 1)
    z, a = s.poisoned(m, n), s.poisoned(m, n)
    s.backend.forward(*s.put(w, b, a_prev), activations.get("sigmoid"), z, a)
    np.testing.assert_array_equal(s.backend.to_numpy(z), (a_prev * w.T).astype(s.dtype))

    rows = 48  # few enough for plain multiply-adds, and as many in each of three parts
    delta, a_prev = np.zeros((rows, 5)), np.zeros((rows, 9))
    delta[-1] = a_prev[-1] = s.exact(1 + 0.49 * 2.0**-10)  # what TF32 leaves of it is large
    gradient = s.poisoned(5, 9)
    s.backend.weight_gradient(*s.put(delta, a_prev), gradient)
    exact = delta.T @ a_prev / rows
    assert_close(s.get(gradient), exact, 1.6 * s.eps * exact, "BP4")

    if s.backend.precision == "bf16":  # of which the nearest to float32's largest is infinite
        w, b, a_prev = np.full((3, 1), np.finfo(s.dtype).max), np.zeros(3), np.ones((2, 1))
        z, a = s.poisoned(2, 3), s.poisoned(2, 3)
        s.backend.forward(*s.put(w, b, a_prev), activations.get("sigmoid"), z, a)
        assert np.isposinf(s.get(z)).all()


@case()
def bias_gradient(s: Subject) -> None:
    for m, n in s.shapes(
        (1, 1), (7, 31), (9, 70), (255, 33), (300, 70), (1000, 1), (1000, 33), (4000, 5)
    ):
        delta = s.normal(m, n)
        out = s.poisoned(n)
        s.backend.bias_gradient(*s.put(delta), out)
        bound = product_bound("xj,x->j", delta, np.ones(m), s.dtype) / m
        assert_close(s.get(out), reference.bias_gradient(delta), bound, f"BP3 {m, n}")


@case()
def hadamard(s: Subject) -> None:
    for n in (1, 2, 5, 511, 513, 1023, 1024, 1025, 2053):
        x, y = s.normal(n), s.normal(n)
        out = s.poisoned(n)
        s.backend.hadamard(*s.put(x, y), out)
        assert_close(s.get(out), x * y, s.eps * np.abs(x * y), f"{n} elements")


@case()
def tangent(s: Subject) -> None:
    """t ← t + more; out = slope ⊙ t + bend ⊙ error."""
    for n in (1, 5, 511, 513, 1025, 2053):
        slope, t, more, bend, error = (s.normal(1, n) for _ in range(5))
        for with_more, with_bend in ((0, 0), (1, 0), (1, 1)):
            sums, out = s.put(t)[0], s.poisoned(1, n)
            rest = s.put(bend, error) if with_bend else (None, None)
            s.backend.tangent(
                *s.put(slope), sums, s.put(more)[0] if with_more else None, out, *rest
            )
            exact = t + with_more * more
            assert_close(s.get(sums), exact, s.eps * (np.abs(t) + np.abs(more)), f"t of {n}")
            terms = np.abs(slope) * (np.abs(t) + np.abs(more)) + np.abs(bend * error)
            exact = slope * exact + with_bend * bend * error
            assert_close(s.get(out), exact, 4 * s.eps * terms, f"{n}, {with_more}, {with_bend}")


#: (m, K, n): directions of samples.
DIRECTIONS: Shapes = ((1, 1, 1), (1, 2, 5), (3, 2, 1), (5, 4, 31), (7, 3, 40), (130, 2, 3))


@case()
def directions(s: Subject) -> None:
    for m, count, n in s.shapes(*DIRECTIONS):
        first, second = s.normal(m, n), s.normal(m, n)
        for own, summed, in_place in ((1, 0, 0), (0, 0, 0), (1, 1, 1), (0, 1, 0)):
            u = s.normal(count, m if own else 1, n)
            slopes = first, second
            given, out = s.put(u)[0], s.poisoned(count, m, n)
            out = given if in_place else out
            s.backend.directions(s.put(*slopes[: 1 + summed]), given, out)
            exact = first * u
            bound = 2 * s.eps * np.abs(exact)
            if summed:
                squares = np.einsum("kxj,kxj->xj", u[:-1], u[:-1])
                exact[-1] += second * squares
                bound[-1] += (count + 4) * s.eps * np.abs(second) * squares
            what = f"directions {m, count, n}, own {own}, summed {summed}"
            assert_close(s.get(out), exact, bound, what)


@case()
def directions_error(s: Subject) -> None:
    for m, count, n in s.shapes(*DIRECTIONS):
        first, second, third, error = (s.normal(m, n) for _ in range(4))
        t = s.normal(count, m, n)
        for own in (1, 0):
            u = np.broadcast_to(s.normal(count, m if own else 1, n), t.shape)
            got, into = s.put(t, error)
            s.backend.directions_error(
                s.put(first, second, third), *s.put(u[:, : m if own else 1]), got, into
            )
            of_sum = t[-1]
            squares = np.einsum("kxj,kxj->xj", u[:-1], u[:-1])
            terms = [first * error, third * of_sum * squares]
            terms += [second * t[k] * u[k] for k in range(count)]
            bound = (count + 4) * s.eps * sum(map(np.abs, terms))
            assert_close(s.get(into), sum(terms), bound, f"error {m, count, n}, own {own}")
            exact, added = first * t, 2 * second * of_sum * u
            added[-1] = 0.0
            bound = 4 * s.eps * (np.abs(exact) + np.abs(added))
            assert_close(s.get(got), exact + added, bound, f"directions' {m, count, n}, own {own}")


@case()
def row_norms(s: Subject) -> None:
    for m, n in s.shapes((1, 1), (3, 31), (5, 32), (4, 33), (9, 70)):
        x, tiny = s.normal(m, n), 1e-30 if s.dtype == np.float32 else 1e-200
        x[0] = 0.0
        x[-1] = s.exact(-np.abs(x[-1]) * tiny)
        if m > 2:
            x[1] = s.exact(np.abs(x[1]) * tiny)
            x[1, 32:] = 0.0
        out = s.poisoned(m)
        s.backend.row_norms(*s.put(x), out)
        size = np.abs(x).max(axis=1, keepdims=True)
        exact = size[:, 0] * np.sqrt(((x / np.where(size > 0, size, 1)) ** 2).sum(axis=1))
        assert_close(s.get(out), exact, (8 + n) * s.eps * exact, f"norms {m, n}")


@case(products="library", cuda=True)
def maps_of_views(s: Subject) -> None:
    """Arrays that start at any element: the same bits, and nothing is written beside them."""
    # Around a thread's elements and a block's, in both dtypes; widths of whole runs, and others.
    for m, n in (
        (1, 1),
        (1, 3),
        (2, 2),
        (1, 511),
        (4, 128),
        (19, 27),
        (3, 341),
        (4, 256),
        (5, 205),
    ):
        _maps_of_views(s, m, n)


def _maps_of_views(s: Subject, m: int, n: int) -> None:
    backend, sigma, quadratic = s.backend, activations.get("tanh"), costs.get("quadratic")
    identity = activations.get("identity")
    (weights,) = s.put(s.normal(n, 2))
    (x,) = s.put(s.normal(m, 2))
    epoch = backend.epoch(m, m)
    epoch.load(s.rng.permutation(m), np.zeros((1, COEFFICIENTS)))
    maps: tuple[tuple[Callable[..., None], int, tuple[int, ...]], ...] = (
        (backend.hadamard, 3, (2,)),
        (lambda a, y, out: backend.output_error(None, a, y, sigma, quadratic, out), 3, (2,)),
        (lambda a, y, out: backend.output_error(a, a, y, identity, quadratic, out), 3, (2,)),
        (lambda a, delta: backend.pull_back(None, a, sigma, delta), 2, (1,)),
        (lambda z, a: backend.forward(weights, b, x, sigma, z, a), 2, (0, 1)),
        (lambda X, Y, x, y: backend.gather(X, Y, epoch, x, y), 4, (2, 3)),
        (lambda a, s1, s2, s3: backend.slopes(None, a, sigma, (s1, s2, s3)), 4, (1, 2, 3)),
        (backend.tangent, 6, (1, 3)),
    )
    for number, (function, count, outputs) in enumerate(maps):
        given = [s.normal(m, n) for _ in range(count)]
        (b,) = s.put(s.normal(n))
        expected: list[np.ndarray] | None = None
        for starts in ([0] * count, [1] * count, *s.rng.integers(0, 4, (3, count))):
            memory = [
                s.put(np.concatenate([np.full(start, np.nan), array.ravel()]))[0]
                for start, array in zip(starts, given, strict=True)
            ]
            views = [
                array[int(start) :].reshape(m, n)
                for start, array in zip(starts, memory, strict=True)
            ]
            function(*views)
            got = [s.get(views[at]) for at in outputs]
            expected = got if expected is None else expected
            what = f"map {number}, starts {starts}"
            np.testing.assert_array_equal(got, expected, what)
            for start, array in zip(starts, memory, strict=True):
                assert np.isnan(s.get(array)[:start]).all(), what


@case(cuda=True)
def rounded_copies(s: Subject) -> None:
    """What products take in bf16 is written with what it is rounded from, by the same kernel."""
    runtime: Any = s.backend.runtime  # type: ignore[attr-defined]
    if s.dtype != np.float32 or not runtime.device.multiplies_rounded:
        return
    library = planning.Product("cublas", None, 1, 0.0, "forced by a test")
    backend = CudaBackend(s.dtype, runtime, lambda *_: library, precision="bf16")
    _special_numbers(backend)
    for m, n, start in ((1, 1, 0), (3, 341, 0), (4, 256, 0), (5, 205, 1), (4, 128, 3)):
        _rounded_copies(Subject(backend), m, n, start)


def _special_numbers(backend: CudaBackend) -> None:
    edges = [0.0, -0.0, np.nan, np.inf, -np.inf, 3.4e38, 1e-40, -1e-45]
    ties = 1 + np.arange(8) * 2.0**-9  # every other one lies between two of bf16
    numbers = np.concatenate([edges, ties, -ties]).astype(np.float32)
    array = backend.with_rounded(backend.empty(numbers.shape))
    backend.copy(backend.asarray(numbers), array)
    assert_rounded(backend, array)


def _rounded_copies(s: Subject, m: int, n: int, start: int) -> None:
    backend: Any = s.backend
    tanh, softmax, identity = map(activations.get, ("tanh", "softmax", "identity"))

    def out(*shape: int) -> Any:
        """A view from that element on, of an array of NaN with a copy."""
        size = int(np.prod(shape))
        array = backend.with_rounded(backend.asarray(np.full(start + size, np.nan, s.dtype)))
        return array[start:].reshape(*shape)

    w, b, x = s.put(s.normal(n, 2), s.normal(n), s.normal(m, 2))
    z, y = s.put(s.normal(m, n), s.normal(m, n))
    for sigma in (tanh, softmax):
        a, delta = out(m, n), out(m, n)
        backend.forward(w, b, x, sigma, None, a)
        assert_rounded(backend, a)
        backend.output_error(z, a, y, sigma, costs.get("quadratic"), delta)
        assert_rounded(backend, delta)
        below = out(m, 2)
        hidden = backend.asarray(s.rng.random((m, 2)).astype(s.dtype))
        backend.hidden_error(w, delta, None, hidden, sigma, below)
        assert_rounded(backend, below)
    relu, mask, biases = activations.get("relu"), backend.empty_mask(m, n), s.poisoned(n)
    a, delta = out(m, n), out(m, n)
    with_mask = planning.Product("cublas", None, 1, 0.0, "", "RELU_AUX_BIAS")
    backend.forward(w, b, x, relu, None, a, product=with_mask, mask=mask)
    assert_rounded(backend, a)
    (v,) = s.put(s.normal(2, n))
    by_mask = planning.Product("cublas", None, 1, 0.0, "", "DRELU_BGRAD")
    backend.hidden_error(v, x, None, a, relu, delta, product=by_mask, mask=mask, biases=biases)
    assert_rounded(backend, delta)
    backend.pull_back(z, z, identity, delta)
    assert_rounded(backend, delta)

    epoch, rows, targets = backend.epoch(m, m), out(m, n), s.poisoned(m, n)
    epoch.load(
        s.rng.permutation(m), SGD().coefficients(np.array([0.1]), 0), None, Draws((0.5,), (1,))
    )
    backend.gather(z, y, epoch, rows, targets)
    assert_rounded(backend, rows)
    backend.drop_out(z, rows, 1, epoch)
    assert_rounded(backend, rows)
    layout = Layout((n, m))
    flat = backend.with_rounded(s.put(s.normal(layout.length))[0])
    gradients = Parameters(layout, s.put(s.normal(layout.length))[0])
    for optimizer in (SGD(), SGD(max_norm=0.5)):
        backend.update(Parameters(layout, flat), gradients, (), optimizer, epoch)
        assert_rounded(backend, flat)
    backend.runtime.clear(flat)
    assert_rounded(backend, flat)


def assert_rounded(backend: Any, array: Any) -> None:
    """Its copy has each of its numbers, rounded."""
    exact = np.array(backend.to_numpy(array), np.float32)
    round_factor(exact, "bf16", exact)
    got = (backend.to_numpy(array.rounded).astype(np.uint32) << 16).view(np.float32)
    assert not np.isnan(exact).all()
    np.testing.assert_array_equal(got, exact)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(exact))


# -- σ ----------------------------------------------------------------------------------

# Zero, where slopes have corners; both sides of it; where exp, erfc and tanh saturate.
EDGES = np.array(
    [-700.0, -85.0, -20.0, -9.0, -1.0, -1e-4, 0.0, 1e-4, 0.7, 3.0, 9.0, 20.0, 85.0, 800.0]
)


@case(each=reference.ACTIVATIONS, products="library")
def activation(s: Subject, name: str) -> None:
    """σ and σ' alone: identity matrices make z and ∂C/∂a exact."""
    sigma = activations.get(name)
    edges = EDGES[EDGES <= 20] if name == "exponential" else EDGES
    z = s.exact(np.concatenate([edges, 4 * s.rng.standard_normal(40 - len(edges))])).reshape(8, 5)
    one, none = s.put(np.eye(5), np.zeros(5))
    z_got, a = s.poisoned(8, 5), s.poisoned(8, 5)
    s.backend.forward(one, none, *s.put(z), sigma, z_got, a)
    np.testing.assert_array_equal(s.get(z_got), z)
    with np.errstate(all="ignore"):
        value, slope = (function(z) for function in reference.ACTIVATIONS[name])
    tiny = float(np.finfo(s.dtype).tiny)
    # exp(z) of a rounded product is off by |z| ε; Φ's tail likewise by z².
    bound = 4 * s.eps * (2 + np.abs(z)) * np.abs(value) + tiny
    if name == "gelu":
        bound += 4 * s.eps * z * z * np.abs(value)
    assert_close(s.get(a), value, bound, f"σ = {name}")

    delta_next, y = s.normal(8, 5), s.normal(8, 5)
    bound = 16 * s.eps * (1 + np.abs(slope) + np.abs(z) * (np.abs(z) < 40))
    delta = s.poisoned(8, 5)
    s.backend.hidden_error(one, *s.put(delta_next), z_got, a, sigma, delta)
    assert_close(s.get(delta), delta_next * slope, bound * np.abs(delta_next), f"BP2 {name}")
    gradient = s.get(a) - y
    s.backend.output_error(z_got, a, *s.put(y), sigma, costs.get("quadratic"), delta)
    assert_close(s.get(delta), gradient * slope, bound * np.abs(gradient), f"BP1 {name}")


@case(each=reference.ACTIVATIONS)
def slopes(s: Subject, name: str) -> None:
    """σ', σ'' and σ''' alone, of as many as are asked for."""
    sigma = activations.get(name)
    edges = EDGES[EDGES <= 20] if name == "exponential" else EDGES
    z = s.exact(np.concatenate([edges, 4 * s.rng.standard_normal(40 - len(edges))])).reshape(8, 5)
    with np.errstate(all="ignore"):
        a = sigma.function(z.astype(s.dtype))
        functions = reference.ACTIVATIONS[name][1], *reference.HIGHER[name]
        exact = [function(z) for function in functions]
    near = np.abs(z) * (np.abs(z) < 40)
    for count in (1, 2, 3):
        outs = [s.poisoned(8, 5) for _ in range(count)]
        s.backend.slopes(*s.put(z, a), sigma, outs)
        for order, (out, expected) in enumerate(zip(outs, exact, strict=False), start=1):
            bound = 16 * s.eps * (1 + near * (1 + near) * (near < 10) + near * np.abs(expected))
            assert_close(s.get(out), expected, bound, f"derivative {order} of {name}")


@case()
def softmax(s: Subject) -> None:
    sigma = activations.get("softmax")
    # Around 0; so low, and so high, that e^z is 0 or infinite if the maximum is not taken off.
    for (m, n), shift in zip(((1, 2), (5, 31), (3, 33), (6, 70)), (0, -2000, 2000, 0), strict=True):
        w, b, x = s.normal(n, 3), s.exact(3 * s.normal(n) + shift), 3 * s.normal(m, 3)
        # One output far above the others: the first, and the last.
        w[:, :2], x[:, :2] = 0.0, 0.0
        w[0, 0] = w[-1, 1] = 1000.0
        x[0, 0] = x[-1, 1] = 1.0
        z, a, only_a = s.poisoned(m, n), s.poisoned(m, n), s.poisoned(m, n)
        on_device = s.put(w, b, x)
        s.backend.forward(*on_device, sigma, z, a)
        s.backend.forward(*on_device, sigma, None, only_a)
        np.testing.assert_array_equal(s.get(only_a), s.get(a))
        exact = reference.activate("softmax", s.get(z))
        bound = 8 * s.eps * (4 + np.ptp(s.get(z), axis=1, keepdims=True)) * exact
        assert_close(s.get(a), exact, bound, f"softmax {m, n}")

        w_next, delta_next = s.normal(2, n), s.normal(m, 2)
        delta = s.poisoned(m, n)
        s.backend.hidden_error(*s.put(w_next, delta_next), z, a, sigma, delta)
        exact = reference.hidden_error(w_next, delta_next, s.get(z), "softmax")
        largest = np.abs(delta_next @ w_next).max(axis=1, keepdims=True)
        assert_close(s.get(delta), exact, 32 * s.eps * largest, f"BP2 softmax {m, n}")


SWISH = Activation(
    "swish_twice",
    lambda z: 2 * z / (1 + np.exp(-z)),
    lambda z: 2 / (1 + np.exp(-z)) * (1 + z * (1 - 1 / (1 + np.exp(-z)))),
)
BENT = Activation(
    "bent", lambda z: np.where(z > 0, z, 0.5 * z), lambda z: np.where(z > 0, 1.0, 0.5)
)
ARCTAN = Activation("arctan", np.arctan, lambda z: 1 / (1 + z * z))


@case(each=(SWISH, BENT, ARCTAN), python=True)
def user_activation(s: Subject, sigma: Activation) -> None:
    w, b, x = s.normal(6, 3), s.normal(6), s.normal(5, 3)
    z, a, delta = s.poisoned(5, 6), s.poisoned(5, 6), s.poisoned(5, 6)
    s.backend.forward(*s.put(w, b, x), sigma, z, a)
    z_exact = s.get(z)
    bound = 16 * s.eps * (1 + np.abs(z_exact))
    assert_close(s.get(a), sigma.function(z_exact), bound, sigma.name)
    w_next, delta_next = s.normal(2, 6), s.normal(5, 2)
    s.backend.hidden_error(*s.put(w_next, delta_next), z, a, sigma, delta)
    exact = (delta_next @ w_next) * sigma.derivative(z_exact)
    bound = 3 * product_bound("jk,xj->xk", w_next, delta_next, s.dtype)
    assert_close(s.get(delta), exact, bound, f"BP2 {sigma.name}")
    y = s.normal(5, 6)
    s.backend.output_error(z, a, *s.put(y), sigma, costs.get("quadratic"), delta)
    exact = (s.get(a) - y) * sigma.derivative(z_exact)
    assert_close(s.get(delta), exact, 16 * s.eps * (1 + np.abs(exact)), f"BP1 {sigma.name}")


# -- the cost and BP1 -------------------------------------------------------------------

CUBIC = Cost(
    "cubic",
    lambda a, y: (np.abs(a - y) ** 3).sum(axis=1),
    lambda a, y: 3 * np.abs(a - y) * (a - y),
)
_COSTS = reference.COSTS | {
    "cubic": (
        lambda a, y: (np.abs(a - y) ** 3).sum(axis=1),
        lambda a, y: 3 * np.abs(a - y) * (a - y),
    )
}
#: Costs of outputs in (0, 1) without a rule for what is beyond.
_IN_UNIT = ("focal", "categorical_focal")
PAIRS = (*reference.ENGINE_PAIRS, ("sigmoid", "cubic"), ("gelu", "cubic"), ("softmax", "cubic"))


def _targets(s: Subject, m: int, n: int) -> np.ndarray:
    """Shares of a whole, the first row of them 0 and 1: a target that every cost takes."""
    y = s.rng.uniform(size=(m, n))
    y[0] = np.arange(n) == 0
    return s.exact(y / y.sum(axis=1, keepdims=True))


@case(each=PAIRS)
def cost_and_output_error(s: Subject, pair: tuple[str, str]) -> None:
    sigma, cost = activations.get(pair[0]), CUBIC if pair[1] == "cubic" else costs.get(pair[1])
    function, gradient = _COSTS[cost.name]
    # A warp per row: fewer columns than lanes, and more; one block of eight rows, and more, the
    # last not whole. Of the map, a block of runs and a rest.
    for m, n in ((1, 2), (5, 3), (8, 37), (9, 2), (300, 2), (31, 35)):
        n += n % 2 if pair[1] == "gaussian_nll" else 0
        z, y = s.normal(m, n), _targets(s, m, n)
        a = s.exact(reference.activate(sigma.name, z))
        on_device = s.put(z, a, y)
        slope = gradient(a, y)
        delta_exact = reference.pull_back(sigma.name, slope, z)
        collapses = costs.collapses(sigma, cost)
        size = np.abs(slope).max(axis=1, keepdims=True)
        bound = 16 * s.eps * (2 + size) * (1 + np.abs(a) + np.abs(z))
        # The exact difference of what was given, where BP1 collapses to it.
        delta_exact, bound = (a - y, s.eps * np.abs(a - y)) if collapses else (delta_exact, bound)
        terms = 1 + np.abs(z).max() + np.abs(np.log(np.abs(a) + 1e-3)).max()
        for kept in (True, False):
            if not kept and sigma.derivative_from == "z":
                continue
            arguments = (on_device[0] if kept else None, *on_device[1:], sigma, cost)
            what = f"{pair} {m, n} z {'kept' if kept else 'not kept'}"
            got = s.backend.cost(*arguments)
            exact = float(np.mean(function(a, y)))
            assert isinstance(got, float), what
            assert abs(got - exact) <= 16 * n**0.5 * s.eps * terms**2, (what, got, exact)
            delta = s.poisoned(m, n)
            s.backend.output_error(*arguments, delta)
            assert_close(s.get(delta), delta_exact, bound, f"BP1 {what}")
        weights = s.exact(s.rng.uniform(size=m))
        s.backend.output_error(*on_device, sigma, cost, delta, *s.put(weights))
        by = weights[:, None]
        bound = by * bound + s.eps * by * np.abs(delta_exact)
        assert_close(s.get(delta), by * delta_exact, bound, f"BP1 {pair} {m, n}, weighted")


@case(each=reference.ENGINE_PAIRS)
def missing_labels(s: Subject, pair: tuple[str, str]) -> None:
    """An output whose y is NaN counts neither in C nor in ∇_a C, as on NumPy in float64."""
    sigma, cost, exact = activations.get(pair[0]), costs.get(pair[1]), NumpyBackend("float64")
    for m, n in ((5, 4), (3, 38)):
        z, y = s.normal(m, n), _targets(s, m, n)
        if pair[1] == "gaussian_nll":
            y[:, n // 2 :] = y[:, : n // 2]
        for part in (y[:, : n // 2], y[:, n // 2 :]):
            part[1] = np.nan
            if not cost.distribution:  # of which a row has all labels, or none
                part[0, 0] = part[2, 1] = np.nan
        a = s.exact(reference.activate(sigma.name, z))
        arguments = sigma, cost
        got, expected = s.backend.cost(*s.put(z, a, y), *arguments), exact.cost(z, a, y, *arguments)
        assert abs(got - expected) <= 64 * s.eps * (1 + abs(expected)), (pair, m, n, got, expected)
        delta, delta_exact = s.poisoned(m, n), np.empty((m, n))
        s.backend.output_error(*s.put(z, a, y), *arguments, delta)
        exact.output_error(z, a, y, *arguments, delta_exact)
        bound = 64 * s.eps * (1 + np.abs(delta_exact))
        assert_close(s.get(delta), delta_exact, bound, f"BP1 {pair} {m, n}")
        assert not sigma.elementwise or not s.get(delta)[np.isnan(y)].any()


@case(cuda=True)
def cost_of_several_blocks(s: Subject) -> None:
    """Warps with more samples than one, and with none; more parts than a block has threads."""
    backend, kernel = s.backend, Catalogue(s.dtype).mean_cost(costs.get("quadratic"), False)
    assert isinstance(backend, CudaBackend)
    finished, step = (backend.asarray(np.zeros(1), dtype) for dtype in (np.uint32, np.int32))
    for m, blocks in ((1, 1), (60, 1), (3, 2), (70, 3), (5, 1), (300, 37)):  # one count for all
        a, y = s.normal(m, 5), s.normal(m, 5)
        results = []
        for _ in range(2):
            parts, result = (
                backend.asarray(np.full(count, np.nan), np.float64) for count in (8 * blocks, 1)
            )
            backend.runtime.launch(
                kernel,
                (blocks, 1, 1),
                (None, *s.put(a, y), None, parts, finished, result, step, *map(np.int32, (m, 5))),
            )
            results.append(float(backend.to_numpy(result)[0]))
        exact = float(reference.COSTS["quadratic"][0](a, y).mean())
        assert abs(results[0] - exact) <= 16 * s.eps * exact, (m, blocks)
        assert results[0] == results[1], (m, blocks)


@case(each=reference.COMMON_PAIRS)
def error_of_saturated_outputs(s: Subject, pair: tuple[str, str]) -> None:
    """Where a has lost its digits, or is rounded to 0 or 1, δ is the limit that it has there."""
    sigma, cost = activations.get(pair[0]), costs.get(pair[1])
    for n in (2, 37):
        size = np.array([0.0, 1.0, 17.0, 30.0, 90.0, 200.0, 1000.0])
        if pair[0] in ("exponential", "elu"):
            size = size[:4]
        z = s.exact(size[s.rng.integers(0, len(size), (24, n))] * s.rng.choice([-1, 1], (24, n)))
        z[0], z[1], z[2], z[3, 0], z[3, 1:] = 0.0, size[-1], -size[-1], size[-1], -size[-1]
        y = _targets(s, 24, n)
        if not cost.distribution:
            y[12:] = s.rng.integers(0, 2, (12, n))
        if pair[1] == "poisson":
            y[4:8] = s.exact(1000 * y[4:8])  # y / a overflows, δ does not
        a = s.exact(reference.activate(pair[0], z))
        delta = s.poisoned(24, n)
        s.backend.output_error(*s.put(z, a, y), sigma, cost, delta)
        exact = reference.output_error(z, y, *pair, s.dtype)
        terms = 1 + np.abs(a - y)
        if pair[0] == "softmax":
            terms = terms.sum(axis=1, keepdims=True)
        assert_close(s.get(delta), exact, 16 * s.eps * terms * (1 + np.abs(a)), f"{pair} {n}")


@case(each=[name for name in costs.names() if name not in ("cosine", *_IN_UNIT)])
def error_at_the_edges_of_a_cost(s: Subject, name: str) -> None:
    """With another σ' from a, e^z, whose a is 1 or, but for rounding, not 0."""
    z = np.array([[0.0, -1.0, -40.0, -1000.0]] * 3)
    y = np.array([[0.0] * 4, [1.0] * 4, [0.25] * 4])
    a = s.exact(np.exp(z))
    info = np.finfo(s.dtype)
    exact = a - y  # of Poisson, which collapses
    if name not in reference.WITH_POLES:
        exact = reference.COSTS[name][1](a, y) * a
    elif name == "categorical_cross_entropy":
        exact = -y
    elif name == "binary_cross_entropy":
        a_inside = np.clip(a, float(info.tiny), 1.0 - float(info.epsneg))
        exact = (a_inside - y) / (1.0 - a_inside)
    delta = s.poisoned(3, 4)
    s.backend.output_error(*s.put(z, a, y), activations.get("exponential"), costs.get(name), delta)
    assert_close(s.get(delta), exact, 8 * s.eps * np.abs(exact), name)


@case(
    each=(
        ("tanh", "quadratic"),
        ("softmax", "binary_cross_entropy"),
        ("sigmoid", "categorical_cross_entropy"),
        ("softplus", "poisson"),
    )
)
def edge_of_the_domain(s: Subject, pair: tuple[str, str]) -> None:
    """a = 0 and 1, of which there is no logarithm: moved inside, as NumPy in this dtype does."""
    same = NumpyBackend(s.dtype)
    a = np.array([[0.0, 1.0], [1.0, 0.0]], s.dtype)
    y = np.array([[0.0, 1.0], [0.0, 1.0]], s.dtype)
    if pair[1] == "poisson":
        y *= 100  # y / a is infinite
        a[0] = 1.0, 0.0
    arguments = activations.get(pair[0]), costs.get(pair[1])
    got = s.backend.cost(None, *s.put(a, y), *arguments)
    np.testing.assert_allclose(got, same.cost(None, a, y, *arguments), rtol=8 * s.eps)
    delta, expected = s.poisoned(2, 2), np.empty((2, 2), s.dtype)
    s.backend.output_error(None, *s.put(a, y), *arguments, delta)
    with np.errstate(over="ignore"):
        same.output_error(None, a, y, *arguments, expected)
    np.testing.assert_allclose(s.backend.to_numpy(delta), expected, rtol=8 * s.eps, atol=s.eps)


@case(each=tuple(name for name in costs.names() if costs.get(name).partner))
def cost_of_saturated_outputs(s: Subject, name: str) -> None:
    """Where a is rounded to 0 or 1, the cost of a collapsing pair still is right."""
    cost = costs.get(name)
    sigma = activations.get(str(cost.partner))
    z = np.array([[40.0, -40.0, 3.0], [-40.0, 1.0, 40.0]], s.dtype)
    if name != "poisson":  # its a is e^z
        z *= 20  # in float64, too, e^-800 is 0 and e^800 infinite
    y = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], s.dtype)
    a = np.empty_like(z)
    with np.errstate(over="ignore"):
        sigma.evaluate(z, a, np.empty_like(z))
    expected = NumpyBackend(s.dtype).cost(z, a, y, sigma, cost)
    got = s.backend.cost(*s.put(z, a, y), sigma, cost)
    np.testing.assert_allclose(got, expected, rtol=16 * s.eps)


@case()
def nan_is_not_lost(s: Subject) -> None:
    """Through σ, softmax's maximum and the cost: a network that has diverged must be seen to."""
    x = np.array([[0.5, 1.0, 0.25], [0.5, np.nan, 0.25]])
    one, none, on_device = s.put(np.eye(3), np.zeros(3), x)
    for name in ("relu", "leaky_relu", "elu", "softplus", "softmax"):
        sigma = activations.get(name)
        z, a = s.put(x, x)
        s.backend.forward(one, none, on_device, sigma, z, a)
        assert np.isnan(s.get(a)[1]).any(), name
        got = s.backend.cost(None, a, *s.put(np.ones((2, 3))), sigma, costs.get("quadratic"))
        assert np.isnan(got), name
    a, y = np.array([[0.5, 0.5, 0.25], [0.5, np.nan, 0.25]]), np.full((2, 3), 0.5)
    for pair in reference.COMMON_PAIRS:
        delta = s.poisoned(2, 3)
        sigma, cost = activations.get(pair[0]), costs.get(pair[1])
        if sigma.derivative_from == "z":
            continue
        s.backend.output_error(None, *s.put(a, y), sigma, cost, delta)
        got = s.get(delta)
        assert np.isfinite(got[0]).all(), pair
        assert np.isnan(got[1, 1]), pair


# -- a step of an epoch -----------------------------------------------------------------


@case(each=(90, 349, 700))
def epoch(s: Subject, width: int) -> None:
    """Gather, record_cost and advance read and count the step on the device; rows have weights,
    too."""
    rows, batch = 7, 3
    source, targets = s.normal(rows, width), s.normal(rows, 800 - width)
    order = np.array([6, 0, 3, 1, 5, 2, 4])
    on_device = s.put(source, targets)
    epoch = s.backend.epoch(rows, batch)
    sigma = activations.get("tanh")
    for weights in (None, s.exact(s.rng.uniform(size=rows)), None):  # it may be loaded again
        in_order = None if weights is None else weights[order].astype(s.dtype)
        epoch.load(order, np.zeros((3, COEFFICIENTS)), in_order)
        assert epoch.costs().shape == (0,)
        expected = []
        for number, cost in enumerate((costs.get("quadratic"), CUBIC, costs.get("quadratic"))):
            taken = order[number * batch :][:batch]
            part = source[taken]
            out, y = s.poisoned(*part.shape), s.poisoned(len(part), 800 - width)
            w = None if weights is None else s.poisoned(len(part))
            s.backend.gather(*on_device, epoch, out, y, w)
            np.testing.assert_array_equal(s.get(out), part)
            np.testing.assert_array_equal(s.get(y), targets[taken])
            s.backend.record_cost(None, out, *s.put(np.zeros_like(part)), sigma, cost, epoch, w)
            terms = cost.function(part, np.zeros_like(part))
            if weights is not None:
                np.testing.assert_array_equal(s.get(w), weights[taken])
                terms *= weights[taken]
            expected.append(terms.mean())
            s.backend.advance(epoch)
        assert epoch.costs().dtype == np.float64
        np.testing.assert_allclose(epoch.costs(), expected, rtol=32 * s.eps)


@case(cuda=True)
def gather_ahead(s: Subject) -> None:
    """The rows of the next whole step; where there is none, nothing is written."""
    backend: Any = s.backend
    # x is whole blocks of elements, and y is more.
    rows, batch, widths = 11, 4, (256, 301)
    whole = [s.normal(rows, width) for width in widths]
    order = s.rng.permutation(rows)
    on_device = s.put(*whole)
    epoch = backend.epoch(rows, batch)
    epoch.load(order, np.zeros((3, COEFFICIENTS)))
    for number, ahead in ((0, 0), (0, 1), (1, 1), (1, 0)):
        while int(s.get(epoch.step)[0]) < number:
            backend.advance(epoch)
        outs = [s.poisoned(batch, width) for width in widths]
        backend.gather(*on_device, epoch, *outs, None, ahead)
        taken = order[(number + ahead) * batch :][:batch]
        for out, source in zip(outs, whole, strict=True):
            expected = source[taken] if number + ahead < 2 else np.full(out.shape, np.nan)
            np.testing.assert_array_equal(s.get(out), expected)


@case()
def drop_out(s: Subject) -> None:
    """What is left out, and by what the rest is multiplied, of some rows of a mini-batch."""
    draws = Draws((0.25, 0.7), (0x9ABCDEF012345678,), 3)
    for m, n in s.shapes((1, 1), (5, 30), (7, 259), (64, 16)):  # a whole block of threads
        epoch = s.backend.epoch(2, 1)
        epoch.load(np.arange(2), np.zeros((2, COEFFICIENTS)), None, draws)
        for step in (0, 1):
            source, other = s.normal(m, n), s.normal(m, n)
            on_device, out = s.put(source, other), s.poisoned(m, n)
            s.backend.drop_out(on_device[0], out, 2, epoch)
            s.backend.drop_out(on_device[1], on_device[1], 1, epoch, 5)
            for layer, exact, got, first in ((2, source, out, 0), (1, other, on_device[1], 5)):
                exact = exact * factors(draws, layer, 3 + step, m, n, first)
                assert_close(s.get(got), exact, 2 * s.eps * np.abs(exact), f"{layer, m, n}")
            s.backend.advance(epoch)


@case(("numbers", "bytes"))
def mix(s: Subject, stored: str) -> None:
    """Mixtures of two rows of X and of Y; what is missing stays so, and no other row is written.

    Rows of Y are whole runs of elements, those of X are not.
    """
    n, m, widths = 7, 5, (301, 516)
    X, Y = (s.normal(n, width) for width in widths)
    if stored == "bytes":
        X = s.rng.integers(0, 256, (n, 516), np.uint8)
        widths = 516, 516
    Y[2, 1] = np.nan
    rows, partners, shares = np.array([6, 2, 2, 0, 3]), np.array([0, 2, 1, 2, 4]), s.rng.random(m)
    shares[0], shares[4] = 1.0, 0.0
    outs = [s.poisoned(m + 1, width) for width in widths]
    on_device = (s.backend.asarray(X, X.dtype), *s.put(Y)) if stored == "bytes" else s.put(X, Y)
    s.backend.mix(*on_device, rows, partners, shares, *outs)
    own = shares[:, None]
    for source, out in zip((X.astype(np.float64), Y), outs, strict=True):
        expected = own * source[rows] + (1 - own) * source[partners]
        np.testing.assert_allclose(
            s.get(out)[:m], expected, rtol=0, atol=4 * s.eps * np.nanmax(abs(source))
        )
        assert np.isnan(s.get(out)[m]).all()


OPTIMIZERS = {
    "sgd": SGD(),
    "sgd_l2": SGD(l2=0.1),
    "sgd_l1": SGD(l1=0.1),
    "sgd_clip_value": SGD(clip_value=0.7, l2=0.1),
    "momentum": SGD(momentum=0.9, l1=0.05, l2=0.1),
    "momentum_clip_norm": SGD(momentum=0.8, clip_norm=1.5),
    "nesterov": SGD(momentum=0.9, nesterov=True, clip_value=1.0, clip_norm=2.0, l1=0.01),
    "clip_norm_not_reached": SGD(clip_norm=1e6),
    "adam": Adam(l2=0.01, clip_norm=3.0),
    "adamw": AdamW(weight_decay=0.3, clip_value=0.5),
    "max_norm": SGD(momentum=0.5, max_norm=1.5),
    "max_norm_not_reached": Adam(max_norm=1e6),
    "gradient_noise": SGD(gradient_noise=0.3, l2=0.1),
    "noise_and_limits": AdamW(gradient_noise=0.1, clip_value=0.8, clip_norm=3.0, max_norm=2.0),
}


@case(each=OPTIMIZERS)
def update(s: Subject, name: str) -> None:
    # Less than a block of elements, and more; biases in a block that is full.
    sizes = [(3, 5, 2), (41, 30, 9), (1, 340, 1)]
    if OPTIMIZERS[name].clip_norm is not None:
        sizes.append((280, 240, 2))  # more elements than the norm's 256 blocks of 256 threads
    for layers in s.shapes(*sizes):
        _update(s, name, layers)


@case()
def noise(s: Subject) -> None:
    """Of gradients that are 0: as near as the angle, and the root of a logarithm, can be."""
    optimizer = SGD(gradient_noise=1.0, noise_decay=0.0)
    draws = Draws((), (0xFEDCBA9876543210,), 1)
    for sizes in s.shapes((5, 3), (37, 200)):
        layout = Layout(sizes)
        p, gradients = (Parameters(layout, s.backend.zeros((layout.length,))) for _ in range(2))
        epoch = s.backend.epoch(1, 1)
        epoch.load(np.arange(1), optimizer.coefficients(np.ones(1), 0), None, draws)
        s.backend.update(p, gradients, (), optimizer, epoch)
        for array, start in zip((*p.weights, *p.biases), layout.starts, strict=True):
            size = int(np.prod(array.shape))
            exact = -normals(draws, start, size + size % 2, 1)
            radii = np.hypot(exact[::2], exact[1::2]).repeat(2)
            bound = 16 * s.eps * radii[:size]
            assert_close(s.get(array).ravel(), exact[:size], bound, f"noise {sizes}")


def _update(s: Subject, name: str, sizes: tuple[int, ...]) -> None:
    optimizer = OPTIMIZERS[name]
    layout = Layout(sizes)
    steps = 3
    coefficients = optimizer.coefficients(np.array([0.1, 0.2, 0.05]), 4)
    results = []
    for backend in (s.backend, NumpyBackend("float64")):
        epoch = backend.epoch(steps, 1)
        epoch.load(np.arange(steps), coefficients, None, Draws((), (0x123456789ABCDEF0,), 5))
        p, gradients = (Parameters(layout, backend.zeros((layout.length,))) for _ in range(2))
        slots = tuple(backend.zeros((layout.length,)) for _ in range(optimizer.slots))
        rng = np.random.default_rng(3)
        for array in (*p.weights, *p.biases):
            start = rng.standard_normal(array.shape).astype(s.dtype)
            start.flat[0] = 0.0  # sign(0) is 0
            backend.copy(backend.asarray(start), array)
        for _ in range(steps):
            for array in (*gradients.weights, *gradients.biases):
                step = rng.standard_normal(array.shape).astype(s.dtype)
                backend.copy(backend.asarray(step), array)
            backend.update(p, gradients, slots, optimizer, epoch)
            backend.advance(epoch)
        results.append([backend.to_numpy(array) for array in (p.flat, *slots)])
    for got, exact in zip(*results, strict=True):
        assert_close(got, exact, 16 * steps * s.eps * (1 + np.abs(exact)), f"{name} {sizes}")
    gaps = np.ones(layout.length, bool)  # between the arrays, for alignment
    weights, biases = layout.views(np.arange(layout.length))
    for view in (*weights, *biases):
        gaps[view] = False
    assert not results[0][0][gaps].any()


# -- what the host asks of an array ------------------------------------------------------


@case(each=("uint8", *DTYPES), cuda=True)
def convert(s: Subject, source: str) -> None:
    """To the nearest, as NumPy converts; what is too large for float32 becomes infinite."""
    backend = s.backend
    assert isinstance(backend, CudaBackend)
    for count in (1, 255, 256, 257, 512, 1024, 1025, 2100):
        x = s.rng.standard_normal(count) * 10.0 ** s.rng.integers(-30, 30, count)
        if source == "uint8":
            x = s.rng.integers(0, 256, count)
        else:
            x[:3] = [np.nan, -np.inf, 1e300][:count]
        with np.errstate(over="ignore"):
            x = x.astype(source)
            expected = x.astype(s.dtype)
        out = s.poisoned(count)
        kernel = Catalogue(s.dtype).convert(source)
        backend.runtime.launch(
            kernel,
            (kernel.blocks(count), 1, 1),
            (backend.asarray(x, np.dtype(source)), out, np.int64(count)),
        )
        np.testing.assert_array_equal(backend.to_numpy(out), expected)


def _parts(s: Subject, kernel: catalogue.Kernel, x: np.ndarray, dtype: Any, *rest: Any) -> Any:
    """What each of three blocks says of x."""
    backend = s.backend
    assert isinstance(backend, CudaBackend)
    parts = backend.asarray(np.full(3, 77), dtype)
    backend.runtime.launch(kernel, (3, 1, 1), (*s.put(x), parts, np.int64(x.size), *rest))
    return backend.to_numpy(parts)


@case(cuda=True)
def all_finite(s: Subject) -> None:
    kernel, info = Catalogue(s.dtype).all_finite(), np.finfo(s.dtype)
    for count in (1, 256, 769, 1700):  # one pass of a block, and more
        x = s.normal(count)
        x[-1] = info.max
        x[0] = info.smallest_subnormal
        np.testing.assert_array_equal(_parts(s, kernel, x, np.int32), 1)
        for at in {0, count // 2, count - 1}:
            for value in (np.inf, -np.inf, np.nan):
                ill = x.copy()
                ill[at] = value
                expected = np.arange(3) != at // 256 % 3
                np.testing.assert_array_equal(_parts(s, kernel, ill, np.int32), expected)


@case(cuda=True)
def sum_of_squares(s: Subject) -> None:
    """`squared_norm` without a limit."""
    kernel, limit = Catalogue(s.dtype).squared_norm(), s.dtype.type(np.inf)
    for count in (1, 256, 769, 1700):
        x = s.normal(count)
        got = _parts(s, kernel, x, np.float64, limit)
        np.testing.assert_allclose(got.sum(), (x**2).sum(), rtol=64 * np.finfo(np.float64).eps)
        for value in (np.inf, np.nan):
            x[-1] = value
            assert np.isnan(_parts(s, kernel, x, np.float64, limit).sum()) == np.isnan(value)


# -- an epoch in one launch -------------------------------------------------------------


@case(each=resident_cases.FORMS, cuda=True)
def resident(s: Subject, form: resident_cases.Form) -> None:
    """Two epochs, as the layered engine runs them in float64."""
    resident_cases.check(s.backend, form)


@case(each=fused_cases.TRAININGS, cuda=True)
def fused(s: Subject, training: tuple[str, str]) -> None:
    """Two epochs, as the layered engine runs them."""
    name, precision = training
    _train(s, fused_cases.FORMS[name], precision)


@case(each=persistent_cases.TRAININGS, cuda=True)
def persistent(s: Subject, training: tuple[str, str]) -> None:
    """Two epochs, as the layered engine runs them."""
    name, precision = training
    _train(s, persistent_cases.FORMS[name], precision)


def _train(s: Subject, form: Any, precision: str) -> None:
    backend = s.backend
    assert isinstance(backend, CudaBackend)
    if s.dtype == np.float32 and backend.device.multiplies_rounded:
        fused_cases.check(CudaBackend(s.dtype, backend.runtime, precision=precision), form)
