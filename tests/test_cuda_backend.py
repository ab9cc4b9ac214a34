"""The CUDA C++ kernels and the backend that launches them, run on the CPU.

Every tile, split and map is forced in turn, also where the planner would not take it, at shapes
beside a tile's edges. Outputs are poisoned first, so that an element left out is found.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import reference
from host_cuda.backend import BackendRuntime
from host_cuda.build import CompilerMissing
from reference import assert_close, product_bound

from backprop_gpu import Network, activations, catalogue, costs, optimizers, planning
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.backends.numpy import NumpyBackend
from backprop_gpu.parameters import Layout, Parameters

DTYPES = ("float32", "float64")
#: (m, n, k): one of everything, prime and odd sizes, and tile edges plus and minus one.
SHAPES = ((1, 1, 1), (1, 17, 5), (5, 1, 31), (31, 33, 17), (33, 65, 129), (130, 31, 9))


@pytest.fixture(scope="module")
def runtime() -> BackendRuntime:
    made = BackendRuntime()
    try:
        made.host.prepare([("hadamard.cu", "hadamard<float>")])
    except CompilerMissing as error:
        if os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"):
            raise
        pytest.skip(str(error))
    return made


@pytest.fixture(scope="module")
def library_runtime(runtime: BackendRuntime) -> BackendRuntime:
    return BackendRuntime(library=True)


def forced(
    runtime: BackendRuntime, dtype: str, tile: planning.Tile | None, splits: int = 1
) -> CudaBackend:
    """A backend whose planner always gives this answer."""
    kernel = "cublas" if tile is None else "fused"
    choice = planning.Product(kernel, tile, splits, 0.0, "forced by a test")
    return CudaBackend(dtype, runtime, lambda *_: choice)


def draw(rng: np.random.Generator, dtype: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def poisoned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.full(shape, np.nan, dtype)


tiles = pytest.mark.parametrize("tile", planning.TILES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@tiles
@dtypes
def test_products_with_every_tile(runtime: BackendRuntime, tile: Any, dtype: str) -> None:
    backend = forced(runtime, dtype, tile)
    _check_products(backend, dtype, activations.get("sigmoid"))


@dtypes
def test_products_by_a_library_with_a_map_behind(
    library_runtime: BackendRuntime, dtype: str
) -> None:
    backend = forced(library_runtime, dtype, None)
    for name in ("sigmoid", "gelu"):
        _check_products(backend, dtype, activations.get(name))


def _check_products(backend: CudaBackend, dtype: str, sigma: activations.Activation) -> None:
    rng = np.random.default_rng(3)
    for m, n, k in SHAPES:
        w, b, a_prev = draw(rng, dtype, (n, k), (n,), (m, k))
        z, a = poisoned((m, n), dtype), poisoned((m, n), dtype)
        backend.forward(w, b, a_prev, sigma, z, a)
        z_exact, a_exact = reference.forward(w, b, a_prev, sigma.name)
        bound = product_bound("jk,xk->xj", w, a_prev, dtype) + 8 * np.finfo(dtype).eps * np.abs(b)
        assert_close(z, z_exact, bound, f"z {m, n, k}")
        assert_close(a, a_exact, 2 * bound + 8 * np.finfo(dtype).eps, f"a {m, n, k}")
        only_a = poisoned((m, n), dtype)
        backend.forward(w, b, a_prev, sigma, None, only_a)
        np.testing.assert_array_equal(only_a, a)

        w_next, delta_next = draw(rng, dtype, (k, n), (m, k))
        delta = poisoned((m, n), dtype)
        backend.hidden_error(w_next, delta_next, z, a, sigma, delta)
        exact = reference.hidden_error(w_next, delta_next, z, sigma.name)
        bound = product_bound("jk,xj->xk", w_next, delta_next, dtype)
        assert_close(delta, exact, 2 * bound, f"BP2 {m, n, k}")

        gradient = poisoned((n, k), dtype)
        backend.weight_gradient(delta, a_prev, gradient)
        exact = reference.weight_gradient(delta, a_prev)
        bound = product_bound("xj,xk->jk", delta, a_prev, dtype) / m
        assert_close(gradient, exact, bound, f"BP4 {m, n, k}")


@pytest.mark.parametrize("splits", [2, 3, 8])
@dtypes
def test_split_sums(runtime: BackendRuntime, splits: int, dtype: str) -> None:
    """More splits than the batch has slices, too: an empty part must be zero, not garbage."""
    rng = np.random.default_rng(splits)
    for m, n, k in ((9, 17, 5), (64, 33, 40), (301, 10, 31)):
        backend = forced(runtime, dtype, planning.TILES[2], splits)
        delta, a_prev = draw(rng, dtype, (m, n), (m, k))
        gradient = poisoned((n, k), dtype)
        backend.weight_gradient(delta, a_prev, gradient)
        bound = product_bound("xj,xk->jk", delta, a_prev, dtype) / m
        assert_close(gradient, reference.weight_gradient(delta, a_prev), bound, f"{m, n, k}")


@pytest.mark.parametrize("m", [1, 7, 255, 1000])
@dtypes
def test_column_sum(runtime: BackendRuntime, m: int, dtype: str) -> None:
    backend = CudaBackend(dtype, runtime)
    for n in (1, 31, 33, 70):
        (delta,) = draw(np.random.default_rng(m + n), dtype, (m, n))
        out = poisoned((n,), dtype)
        backend.bias_gradient(delta, out)
        bound = product_bound("xj,x->j", delta, np.ones(m), dtype) / m
        assert_close(out, reference.bias_gradient(delta), bound, f"{m, n}")
    assert planning.column_splits(1000, 33, runtime.device) > 1  # else sum_splits was not tried


@pytest.mark.parametrize("name", optimizers.names())
@dtypes
def test_update_rules(runtime: BackendRuntime, name: str, dtype: str) -> None:
    """Three steps with everything switched on, against NumPy in float64."""
    optimizer = type(optimizers.get(name))(
        **vars(optimizers.get(name)) | {"l1": 0.01, "l2": 0.02, "clip_value": 1.5, "clip_norm": 3.0}
    )
    layout = Layout((7, 9, 3))
    rng = np.random.default_rng(5)
    rates = optimizer.coefficients(np.array([0.1, 0.05, 0.2]), 4)
    start = rng.standard_normal(layout.length).astype(dtype)
    gradients = rng.standard_normal((3, layout.length)).astype(dtype)
    results = []
    for backend, kind in ((CudaBackend(dtype, runtime), dtype), (NumpyBackend("f8"), "float64")):
        p = Parameters(layout, start.astype(kind))
        slots = tuple(backend.zeros((layout.length,)) for _ in range(optimizer.slots))
        epoch = backend.epoch(3, 1)
        epoch.load(np.arange(3), rates)
        for g in gradients:
            backend.update(p, Parameters(layout, g.astype(kind)), slots, optimizer, epoch)
            backend.advance(epoch)
        results.append((p.flat, *slots))
    for got, exact in zip(*results, strict=True):
        assert_close(got, exact, 64 * np.finfo(dtype).eps * (1 + np.abs(exact)), name)


@dtypes
def test_gather_takes_this_steps_rows(runtime: BackendRuntime, dtype: str) -> None:
    backend = CudaBackend(dtype, runtime)
    (source,) = draw(np.random.default_rng(0), dtype, (11, 7))
    order = np.random.default_rng(1).permutation(11)
    epoch = backend.epoch(11, 4)
    epoch.load(order, np.zeros((3, 4)))
    for rows in (order[:4], order[4:8], order[8:]):
        out = poisoned((len(rows), 7), dtype)
        backend.gather(source, epoch, out)
        np.testing.assert_array_equal(out, source[rows])
        backend.advance(epoch)


@pytest.mark.parametrize("cost", costs.names())
@dtypes
def test_cost_of_saturated_outputs(runtime: BackendRuntime, cost: str, dtype: str) -> None:
    """At |z| = 40 a is rounded to 0 or 1, and the cost of a collapsing pair still is right."""
    made = costs.get(cost)
    activation = activations.get(str(made.partner))
    z = np.array([[40.0, -40.0, 3.0], [-40.0, 1.0, 40.0]], dtype)
    y = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype)
    a = np.empty_like(z)
    numpy = NumpyBackend(dtype)
    with np.errstate(over="ignore"):
        activation.evaluate(z, a, np.empty_like(z))
    expected = numpy.cost(z, a, y, activation, made)
    got = CudaBackend(dtype, runtime).cost(z, a, y, activation, made)
    assert got == pytest.approx(expected, rel=16 * float(np.finfo(dtype).eps))


def test_a_nan_is_not_lost(runtime: BackendRuntime) -> None:
    """Through every σ and the cost: a network that has diverged must be seen to."""
    backend = CudaBackend("float64", runtime)
    w, b, a_prev = np.full((2, 3), np.nan), np.zeros(2), np.ones((4, 3))
    for name in activations.names():
        activation = activations.get(name)
        z, a = np.zeros((4, 2)), np.zeros((4, 2))
        backend.forward(w, b, a_prev, activation, z, a)
        assert np.isnan(a).all(), name
        cost = backend.cost(None, a, np.ones((4, 2)), activation, costs.get("quadratic"))
        assert np.isnan(cost), name


def test_training_takes_every_path(library_runtime: BackendRuntime) -> None:
    """A whole fit launches gathers, products, maps, costs and updates, and agrees with NumPy."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((70, 33)), rng.integers(0, 5, 70)
    nets = []
    for backend in (NumpyBackend("f8"), CudaBackend("f8", library_runtime)):
        net = Network(
            [33, 17, 9, 5], activation=["gelu", "relu", "softmax"], dtype="float64", seed=1,
            cost="categorical_cross_entropy", backend="numpy",
        )  # fmt: skip
        net._backend = net._engine.backend = backend
        net._parameters = Parameters(net._layout, backend.asarray(net._get_flat()))
        net.fit(X, y, epochs=2, batch_size=32, learning_rate=0.05, optimizer="adam")
        nets.append(net)
    assert nets[1].plan.captured
    for got, exact in zip(nets[1].weights, nets[0].weights, strict=True):
        assert_close(got, exact, 1e-12)
    launched = {kernel.expression.partition("<")[0] for kernel in library_runtime.launched}
    known = {k.expression.partition("<")[0] for k in catalogue.everything()}
    assert launched <= known
    assert {"gather", "advance", "softmax", "sample_costs", "mean_cost", "update"} <= launched


def test_same_launch_same_bits(runtime: BackendRuntime) -> None:
    backend = CudaBackend("float32", runtime)
    delta, a_prev = draw(np.random.default_rng(9), "float32", (300, 33), (300, 40))
    results = []
    for _ in range(2):
        gradient = poisoned((33, 40), "float32")
        backend.weight_gradient(delta, a_prev, gradient)
        results.append(gradient)
    np.testing.assert_array_equal(*results)
