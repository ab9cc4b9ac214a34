"""The host side of the CUDA engines: order, memory, graphs, cuBLASLt's arguments, several devices.

`host_slips.py` counts how many slips of the host side these tests, with those of
`test_cuda_device.py`, notice.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Cost, Network, Population, equations, planning
from backprop_gpu.backends import cuda as cuda_backend
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.cuda import runtime as runtimes
from backprop_gpu.cuda.blas import WORKSPACE
from backprop_gpu.cuda.catalogue import Kernel
from backprop_gpu.cuda.runtime import Runtime
from backprop_gpu.engines import fused_cuda, persistent_cuda
from backprop_gpu.planning import residency
from backprop_gpu.training.fitting import FitCourse
from machine import device_runtime
from reference import assert_close, product_bound
from resident_cases import FORMS, check

pytestmark = pytest.mark.gpu
RNG = np.random.default_rng(0)


@pytest.fixture
def runtime() -> Runtime:
    return device_runtime()


# -- memory and order ---------------------------------------------------------------------------


def test_what_is_uploaded_may_change_at_once(runtime: Runtime) -> None:
    host = np.arange(1000, dtype=np.float64)
    array = runtime.array(host)
    host[:] = -1
    np.testing.assert_array_equal(runtime.to_numpy(array), np.arange(1000.0))


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_the_next_order_is_drawn_while_an_epoch_runs(
    runtime: Runtime, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    def heard(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def call(self: Any, *arguments: Any) -> Any:
            events.append(name)
            return method(self, *arguments)

        monkeypatch.setattr(owner, name, call)

    network = Network([6, 5, 3], backend="cuda", seed=0)
    X, Y = RNG.standard_normal((20, 6)), RNG.uniform(size=(20, 3))
    options = {"batch_size": 4, "learning_rate": 0.1, "engine": engine}
    network.fit(X, Y, epochs=1, **options)
    for owner, name in ((FitCourse, "draw"), (Runtime, "upload"), (Runtime, "to_numpy")):
        heard(owner, name)
    network.fit(X, Y, epochs=3, **options)
    draws = [i for i, event in enumerate(events) if event == "draw"]
    assert len(draws) == 3
    for i in draws:  # an epoch's numbers are on their way, and its costs not yet waited for
        assert events[i - 1 : i + 2] == ["upload", "draw", "to_numpy"]


def test_a_view_keeps_the_memory(runtime: Runtime) -> None:
    row = runtime.array(np.arange(12.0).reshape(4, 3))[2].reshape(3, 1)
    others = [runtime.array(np.full((4, 3), float(i))) for i in range(20)]
    np.testing.assert_array_equal(runtime.to_numpy(row), [[6.0], [7.0], [8.0]])
    assert row.base is not None
    assert len(others) == 20


def test_views(runtime: Runtime) -> None:
    host = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    array = runtime.array(host)
    for got, expected in (
        (array[-1], host[-1]),
        (array[1:3], host[1:3]),
        (array[1:][0], host[1]),
        (array.reshape(6, 4)[5], host.reshape(6, 4)[5]),
        (array.reshape((-1, 8)), host.reshape(-1, 8)),
        (array[4:], host[4:]),
    ):
        np.testing.assert_array_equal(runtime.to_numpy(got), expected)
        assert got.nbytes == expected.nbytes
    with pytest.raises(IndexError, match="row 4 of 4"):
        array[4]
    with pytest.raises(IndexError, match="without a step"):
        array[::2]
    with pytest.raises(ValueError, match="cannot reshape"):
        array.reshape(5, 5)


@pytest.mark.parametrize("source", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("out", ["float32", "float64"])
def test_copies_between_dtypes(runtime: Runtime, source: str, out: str) -> None:
    host = RNG.integers(0, 200, (33, 17)).astype(source)
    array = runtime.array(host, out)
    np.testing.assert_array_equal(runtime.to_numpy(array), host.astype(out))
    again = runtime.empty(host.shape, out)
    runtime.copy(runtime.array(host), again)
    np.testing.assert_array_equal(runtime.to_numpy(again), host.astype(out))
    with pytest.raises(ValueError, match="does not fit"):
        runtime.copy(array, again[1:])
    with pytest.raises(ValueError, match="does not fit"):
        runtime.upload(host.astype("int64"), array)


def test_zeros_are_zero(runtime: Runtime) -> None:
    for _ in range(3):  # memory that held something else before
        array = runtime.zeros((5, 7), np.float64)
        assert not runtime.to_numpy(array).any()
        runtime.copy(runtime.array(np.ones((5, 7))), array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 70_000])
def test_finite_and_squares(runtime: Runtime, size: int, value: float) -> None:
    backend = CudaBackend("float32", runtime)
    host = RNG.standard_normal(size).astype(np.float32)
    array = runtime.array(host)
    assert backend.all_finite(array)
    exact = np.square(host.astype(np.float64)).sum()
    assert abs(backend.sum_of_squares(array) - exact) <= 1e-12 * size * exact
    host[size // 2] = value
    assert not backend.all_finite(runtime.array(host))


def test_what_another_stream_fills_is_waited_for(runtime: Runtime) -> None:
    """By the stream that the interface of an array names, and by DLPack's."""
    s = RNG.standard_normal((40, 30))
    other = runtime.cuda_device.create_stream()
    for way in ("interface", "dlpack"):
        filled, product = (runtime.empty(s.shape, s.dtype) for _ in range(2))
        runtime.synchronize()
        with runtime.on(other):
            # Work that is on its way there while ours begins.
            runtime.upload(s, filled)
            equations.hadamard(filled, filled, out=product)

        class Theirs:
            shape, dtype, ndim = s.shape, s.dtype, 2

        if way == "interface":
            with runtime.on(other):
                interface = product.__cuda_array_interface__
            assert interface["stream"] == int(other.handle)
            Theirs.__cuda_array_interface__ = interface
        else:

            def exported(self: Any, *, stream: int, product: Any = product, **rest: Any) -> Any:
                with runtime.on(other):
                    return product.__dlpack__(stream=stream, **rest)

            Theirs.__dlpack__ = exported
            Theirs.__dlpack_device__ = lambda self, product=product: product.__dlpack_device__()
        result = equations.hadamard(Theirs(), Theirs())
        np.testing.assert_array_equal(runtime.to_numpy(result), (s * s) ** 2)


def test_memory_of_another_stream_is_kept_until_it_is_done(runtime: Runtime) -> None:
    s = RNG.standard_normal((40, 30))
    out = runtime.empty(s.shape, s.dtype)
    stream = runtime.cuda_device.create_stream()
    with runtime.on(stream):
        filled = runtime.array(s)
        runtime.copy(filled, out)
        del filled
    gc.collect()
    later = [runtime.array(np.zeros_like(s)) for _ in range(5)]  # may be given the same memory
    stream.sync()
    np.testing.assert_array_equal(runtime.to_numpy(out), s)
    assert len(later) == 5


def test_arrays_that_do_not_fit_are_refused(runtime: Runtime) -> None:
    array = runtime.array(np.ones((4, 6)))

    class Columns:
        __cuda_array_interface__ = array.__cuda_array_interface__ | {
            "shape": (6, 4),
            "strides": (8, 48),
        }

    with pytest.raises(ValueError, match=r"must be C-contiguous, got strides \(8, 48\)"):
        runtime.view(Columns())


def test_an_array_of_another_device_is_refused(runtime: Runtime) -> None:
    if runtimes.count() < 2:
        pytest.skip("there is one device")
    other = runtimes.runtime(1)
    other.use()
    there = other.array(np.ones((2, 3)))
    runtime.use()

    class Theirs:
        __cuda_array_interface__ = there.__cuda_array_interface__ | {"stream": None}

    with pytest.raises(ValueError, match=r"must be on device 0, the current one, got .* device 1"):
        runtime.view(Theirs())


def test_an_array_without_elements_is_on_every_device(runtime: Runtime) -> None:
    empty = runtime.empty((0, 3), np.float64)
    assert empty.__cuda_array_interface__["data"] == (0, False)

    class Theirs:
        __cuda_array_interface__ = empty.__cuda_array_interface__

    assert runtime.view(Theirs()).shape == (0, 3)


def test_a_users_cost_gets_cupys_arrays(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stream of its values, so that CuPy need not let the host wait for another."""
    streams: list[int] = []

    class CuPy:
        class cuda:
            @staticmethod
            def ExternalStream(pointer: int) -> Any:
                streams.append(pointer)
                return nullcontext()

        ascontiguousarray = staticmethod(np.ascontiguousarray)

        @staticmethod
        def asarray(array: Any) -> np.ndarray:
            assert array.__cuda_array_interface__["stream"] is None
            return runtime.to_numpy(runtime.view(array))

    monkeypatch.setattr(cuda_backend, "usable_cupy", lambda: CuPy)
    quartic = Cost(
        "quartic", lambda a, y: ((a - y) ** 4).sum(axis=1), lambda a, y: 4 * (a - y) ** 3
    )
    X, y = problem(40)
    nets = []
    for backend in ("cuda", "numpy"):
        net = Network([33, 9, 5], cost=quartic, backend=backend, dtype="float64", seed=3)
        net.fit(X, np.eye(5)[y], epochs=2, batch_size=16, learning_rate=0.1)
        nets.append(net)
    assert set(streams) == {int(runtime.stream.handle)}
    np.testing.assert_allclose(nets[0].weights[0], nets[1].weights[0], rtol=0, atol=1e-13)


# -- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["NT", "NN", "TN"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 5, 7), (16, 8, 32), (33, 17, 9)])
def test_products_of_the_library(
    runtime: Runtime, layout: Any, dtype: str, m: int, n: int, k: int
) -> None:
    if not runtime.device.library:
        pytest.skip("there is no cuBLASLt")
    a = RNG.standard_normal((k, m) if layout == "TN" else (m, k)).astype(dtype)
    b = RNG.standard_normal((n, k) if layout == "NT" else (k, n)).astype(dtype)
    exact = (a.T if layout == "TN" else a).astype("f8") @ (b.T if layout == "NT" else b)
    arrays, out = [runtime.array(x) for x in (a, b)], runtime.empty((m, n), dtype)
    workspace = runtime.empty(WORKSPACE, np.uint8)

    def multiply() -> None:
        runtime.product(layout, *arrays, out, 0.5, workspace)

    left, right = (a.T if layout == "TN" else a), (b.T if layout == "NT" else b)
    bound = product_bound("ij,jk->ik", left, right, np.dtype(dtype))
    multiply()
    assert_close(runtime.to_numpy(out), 0.5 * exact, bound)
    replay = runtime.capture(multiply)
    runtime.clear(out)
    replay()
    assert_close(runtime.to_numpy(out), 0.5 * exact, bound)
    assert runtime.blas is not None
    assert "algorithm" in runtime.blas.algorithm(layout, m, n, k, np.dtype(dtype))


def test_products_of_unaligned_rows(runtime: Runtime) -> None:
    """An array that starts 4 bytes on is not given to an algorithm that reads 16 at a time."""
    if not runtime.device.library:
        pytest.skip("there is no cuBLASLt")
    a = RNG.standard_normal((9, 16)).astype(np.float32)
    flat = runtime.array(np.concatenate([[0], a.ravel()]).astype(np.float32))
    b, out = runtime.array(np.eye(16, dtype=np.float32)), runtime.empty((9, 16), np.float32)
    workspace = runtime.empty(WORKSPACE, np.uint8)
    for array in (runtime.array(a), flat[1:].reshape(9, 16)):
        runtime.product("NN", array, b, out, 1.0, workspace)
        np.testing.assert_array_equal(runtime.to_numpy(out), a)


# -- whole trainings ------------------------------------------------------------------------------


@contextmanager
def on_this_card() -> Iterator[None]:
    """A card with too little shared memory for the resident kernel says so."""
    try:
        yield
    except ValueError as error:
        if "KB of shared memory" not in str(error):
            raise
        pytest.skip(str(error))


def problem(rows: int = 301, inputs: int = 33) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, inputs)), rng.integers(0, 5, rows)


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("batch", [32, 43, 150])
def test_as_numpy_does(engine: Any, optimizer: Any, batch: int) -> None:
    X, y = problem()
    nets = []
    for backend in ("cuda", "numpy"):
        net = Network([33, 17, 5], backend=backend, dtype="float64", seed=3)
        chosen = engine if backend == "cuda" else "layered"
        options = {"epochs": 3, "batch_size": batch, "learning_rate": 0.01}
        with on_this_card():
            net.fit(X, y, optimizer=optimizer, engine=chosen, validation_data=(X, y), **options)
        net.fit(X, y, optimizer=optimizer, engine=chosen, **options)
        nets.append(net)
    for got, expected in zip(nets[0].weights, nets[1].weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(nets[0].predict(X), nets[1].predict(X), atol=1e-12)
    np.testing.assert_allclose(nets[0].history.loss, nets[1].history.loss, rtol=1e-11)


@pytest.mark.parametrize("engine", ["fused", "persistent"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_members_on_tensor_cores(
    engine: Any, optimizer: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three networks, a launch each, as they are on NumPy."""
    if not runtime.device.multiplies_rounded:
        pytest.skip(f"{runtime.device.name} has no tensor cores for the engine {engine}")
    monkeypatch.setattr(fused_cuda, "PARTS", 1)
    monkeypatch.setattr(persistent_cuda, "SCRATCH", 1)
    X, y = problem(90)
    found = []
    for backend, chosen in (("cuda", engine), ("numpy", "layered")):
        nets = Population([33, 17, 5], members=3, backend=backend, dtype="float32", seed=3)
        options = {"epochs": 2, "batch_size": 40, "learning_rate": 0.01}
        with on_this_card():
            nets.fit(X, y, optimizer=optimizer, engine=chosen, validation_data=(X, y), **options)
        nets.fit(X, y, optimizer=optimizer, engine=chosen, **options)
        found.append([w for net in nets for w in net.weights])
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=1e-4 if optimizer == "adam" else 1e-6
        )


@pytest.mark.parametrize("sizes", [(784, 30, 10), (2000, 8, 10)])
def test_clusters(sizes: tuple[int, ...]) -> None:
    """Networks that one block cannot hold, or not fast: large shared memory and clusters."""
    rng = np.random.default_rng(0)
    X, y = rng.random((60, sizes[0])), rng.integers(0, 10, 60)
    nets = []
    for backend, engine in (("cuda", "resident"), ("numpy", "layered")):
        net = Network(list(sizes), backend=backend, dtype="float32", seed=3)
        with on_this_card():
            net.fit(X, y, epochs=2, batch_size=10, learning_rate=0.5, engine=engine)
        nets.append(net)
    for got, expected in zip(nets[0].weights, nets[1].weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_blocks_that_are_no_cluster(runtime: Runtime) -> None:
    """Four of them a network, of which two at a time have room: as if each network were a block."""
    rng = np.random.default_rng(0)
    X, y = rng.random((23, 300)), rng.integers(0, 3, 23)
    results = []
    for ways in ({"clusters": (1,)}, {"apart": (4,)}):
        population = Population([300, 6, 3], members=5, seed=2, backend="cuda")
        small = replace(runtime.device, multiprocessors=8)
        cut = residency.choose((300, 6, 3), 5, 4, 0, small, 5, **ways)
        assert not isinstance(cut, str)
        run = planning.Run(23, 3, 5, "resident", members=5)
        plan = replace(population.model.plan(run), batches=(planning.BatchPlan(5, cuts=(cut,)),))
        population.fit(X, y, epochs=3, batch_size=5, learning_rate=0.5, plan=plan)
        results.append([member.model.read(member.parameters) for member in population.members])
    assert len({array.tobytes() for array in results[0]}) == 5
    np.testing.assert_array_equal(*results)


def test_the_layered_engine_launches_what_its_plan_names(
    runtime: Runtime, launched: list[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tiles than the planner's, and steps that are captured or not."""
    X, y = problem(40)  # two steps of 16, and a short one
    network = Network([33, 17, 5], backend="cuda", seed=3)
    planned = network.model.plan(planning.Run(40, 2, 16, "layered"))
    of = {str(tile): tile for tile in planning.TILES}
    captures = []
    capture = runtime.capture
    monkeypatch.setattr(runtime, "capture", lambda step: captures.append(step) or capture(step))

    def tiled(tile: str) -> planning.Plan:
        def product(label: str, product: planning.Product) -> planning.Product:
            return replace(product, kernel="tiled", tile=of[tile], splits=1)

        return replace(
            planned,
            batches=tuple(
                replace(b, products=tuple((label, product(label, p)) for label, p in b.products))
                for b in planned.batches
            ),
            captured=tile != "16x32x32",
        )

    for tile in ("64x64x16", "16x32x32"):
        launched.clear()
        captures.clear()
        network.fit(X, y, epochs=2, batch_size=16, learning_rate=0.1, plan=tiled(tile))
        products = {
            kernel.file: kernel.expression
            for kernel in launched
            if kernel.file in ("forward.cu", "weight_gradient.cu", "hidden_error.cu")
        }
        assert len(products) == 3
        bm, bn, bk = tile.split("x")
        for expression in products.values():
            assert f"{bm}, {bn}, {bk}" in expression
        assert len(captures) == (2 if tile != "16x32x32" else 0)  # two whole steps, and the last


def test_the_plan_names_the_librarys_algorithm(runtime: Runtime) -> None:
    if not runtime.device.library:
        pytest.skip("no cuBLASLt here")
    network = Network([1024, 2048, 10], backend="cuda", seed=0)
    plan = network.model.plan(planning.Run(rows=4096, epochs=1, batch_size=1024))
    by_library = [product.reason for _, product in plan.products if product.kernel == "cublas"]
    assert by_library
    for reason in by_library:
        assert re.search(r"; cuBLASLt's algorithm \d+, tile \d+", reason)


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_which_kernels_are_launched_programmatically(runtime: Runtime, engine: Any) -> None:
    """Those that wait for the kernels before them, where a device has such launches."""
    runtime.configurations.clear()
    X, y = problem(40)
    net = Network([33, 9, 5], backend="cuda", seed=3)
    net.fit(X, y, epochs=1, batch_size=16, learning_rate=0.1, engine=engine)
    found = {
        kernel.file: configuration.programmatic_stream_serialization
        for (kernel, *_), configuration in runtime.configurations.items()
    }
    assert ("resident.cu" if engine == "resident" else "gather.cu") in found
    there = runtime.device.compute_capability >= (9, 0)
    assert found == {file: there and file != "resident.cu" for file in found}


def test_a_population_is_its_members() -> None:
    X, y = problem()
    together = Population([33, 9, 5], members=3, seed=1, backend="cuda", dtype="float64")
    alone = Population([33, 9, 5], members=3, seed=1, backend="numpy", dtype="float64")
    for population in (together, alone):
        population.fit(X, y, epochs=2, batch_size=30, learning_rate=[0.1, 0.2, 0.3])
    for got, expected in zip(together.members, alone.members, strict=True):
        for a, b in zip(got.weights, expected.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_rows_of_bytes() -> None:
    X = np.random.default_rng(0).integers(0, 2, (100, 33)).astype(np.uint8)
    y = problem(100)[1]
    nets = []
    for data in (X, X.astype(np.float32)):
        for engine in ("resident", "layered"):
            net = Network([33, 9, 5], backend="cuda", seed=2)
            net.fit(data, y, epochs=2, batch_size=25, learning_rate=0.3, engine=engine)
            nets.append(net)
    for net in nets[1:]:
        np.testing.assert_allclose(net.weights[0], nets[0].weights[0], rtol=0, atol=1e-5)


def test_a_network_is_trained_where_it_was_made() -> None:
    """Each device has functions, attributes and memory of its own."""
    if runtimes.count() < 2:
        pytest.skip("there is one device")
    y = problem()[1]
    results = []
    for index in (0, 1):
        runtimes.runtime(index).use()
        assert runtimes.current() is runtimes.runtime(index)
        net = Network([784, 30, 10], backend="cuda", seed=1)
        rows = np.random.default_rng(0).random((30, 784))
        runtimes.runtime(1 - index).use()
        net.fit(rows, y[:30], epochs=2, batch_size=10, learning_rate=0.5, engine="layered")
        if runtimes.runtime(index).device.shared_memory > 200_000:
            net.fit(rows, y[:30], epochs=2, batch_size=10, learning_rate=0.5, engine="resident")
        results.append(net.weights[0])
    runtimes.runtime(0).use()
    np.testing.assert_array_equal(*results)


def test_the_device_says_how_many_clusters_it_holds(runtime: Runtime) -> None:
    device = runtime.device
    if device.compute_capability < (9, 0):
        assert device.clusters == ()
        return
    sizes, counts = zip(*device.clusters, strict=True)
    assert sizes == residency.CLUSTERS
    assert counts[0] == device.multiprocessors
    assert all(n * count <= device.multiprocessors for n, count in device.clusters)
    # A size of which the device holds none is not taken, though it may be the fastest.
    without = replace(device, clusters=tuple((n, c if n < 8 else 0) for n, c in device.clusters))
    found = residency.choose((784, 30, 10), 10, 4, 0, without)
    assert not isinstance(found, str)
    assert found.cluster < 8


def test_members_with_arrays_of_their_own_get_them_back(runtime: Runtime) -> None:
    (form,) = (form for form in FORMS if form.name == "members")
    check(CudaBackend("float64", runtime), form)


def test_split_sums(runtime: Runtime) -> None:
    """Of so long a batch that BP3 and BP4 sum it in parts."""
    delta, a = RNG.standard_normal((5000, 6)), RNG.standard_normal((5000, 9))
    whole = equations.weight_gradient(*map(runtime.array, (delta, a)))
    np.testing.assert_allclose(runtime.to_numpy(whole), delta.T @ a / 5000, atol=1e-13)
    mean = equations.bias_gradient(runtime.array(delta))
    np.testing.assert_allclose(runtime.to_numpy(mean), delta.mean(axis=0), atol=1e-13)


def test_a_fork_has_scratch_memory_of_its_own(runtime: Runtime) -> None:
    backend = CudaBackend("float32", runtime)
    mine, again, other = (b.scratch_array("parts", 8) for b in (backend, backend, backend.fork()))
    assert mine.pointer == again.pointer != other.pointer


def test_a_result_is_not_written_over_an_argument(runtime: Runtime) -> None:
    delta = runtime.array(np.ones((3, 4)))
    with pytest.raises(ValueError, match="out must not overlap delta"):
        equations.bias_gradient(delta, out=delta[1])


def test_scratch_of_one_size_is_not_anothers(runtime: Runtime) -> None:
    """One block has one part, and 256 blocks write as many."""
    backend = CudaBackend("float32", runtime)
    for size in (10, 100_000, 300):
        assert backend.all_finite(backend.zeros((size,)))
    assert backend.sum_of_squares(backend.asarray(np.full(100_000, 0.5))) == 25_000.0
