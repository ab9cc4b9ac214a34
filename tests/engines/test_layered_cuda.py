"""The layered engine with cuBLASLt's products and what those do besides, held against NumPy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Activation, Callback, Network, Population, activations, planning
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.communicators import ALONE
from backprop_gpu.cuda.nccl import NCCLCommunicator, _NCCLExchange
from backprop_gpu.cuda.runtime import Runtime
from backprop_gpu.planning import Plan, Product
from backprop_gpu.testing import standin
from fake_nccl import FakeBindings
from kernel_cases import assert_rounded
from machine import device_runtime
from rank_threads import RankError, on_ranks
from reference import same_bits

pytestmark = pytest.mark.gpu

PRECISIONS = ["float64", "float32", "tf32", "bf16"]
#: Of a weight after a few steps: what rounding leaves, as NumPy rounds factors too.
CLOSE = {"float64": 1e-13, "float32": 1e-5, "tf32": 1e-3, "bf16": 1e-3}
#: Rows of whole 16 bytes and rows that are none.
SIZES = [(64, 48, 32, 16), (7, 33, 130, 3)]


def _data(sizes: Sequence[int], rows: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    Y = rng.uniform(size=(rows, sizes[-1]))
    return rng.standard_normal((rows, sizes[0])), Y / Y.sum(axis=1, keepdims=True)


def _network(backend: str, sizes: Sequence[int], precision: str, **options: Any) -> Network:
    dtype = "float64" if precision == "float64" else "float32"
    rounds = planning.rounds(precision) and backend == "cuda"
    if rounds and not device_runtime().device.multiplies_rounded:
        pytest.skip(f"this device does not multiply in {precision}")
    return Network(sizes, backend=backend, precision=precision, dtype=dtype, seed=3, **options)


def _by_library(*shape: Any) -> Product:
    return Product("cublas", None, 1, 0.0, "forced by a test", shape[-1])


def _plan(net: Network, rows: int = 150, batch: int = 64, **run: Any) -> Plan:
    """All products are the library's, with the epilogues that it has."""
    model: Any = net.model
    if not model.device.library:
        pytest.skip("there is no cuBLASLt")
    chosen = planning.Run(rows, 3, batch, engine="layered", **run)
    sigmas = [sigma.name if sigma.builtin else "" for sigma in net.activations]
    batches = tuple(
        planning.BatchPlan(
            m,
            tuple(
                planning.products_of_step(
                    net.sizes, m, _by_library, sigmas, net.precision, model.backend.algorithm
                ).items()
            ),
        )
        for m in chosen.batch_sizes
    )
    return replace(model.plan(chosen), batches=batches)


def _epilogues(plan: Plan) -> set[str]:
    return {product.epilogue for planned in plan.batches for _, product in planned.products}


@pytest.mark.parametrize("sizes", SIZES, ids=["aligned", "odd"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sigmas", [("relu", "relu", "softmax"), ("tanh", "relu", "identity"),
                                    ("relu", "tanh", "relu"), ("sigmoid",) * 3])  # fmt: skip
def test_a_training(sizes: tuple[int, ...], precision: str, sigmas: tuple[str, ...]) -> None:
    """In captured steps with a short last batch, and one by one; weights, biases and costs."""
    X, Y = _data(sizes)
    nets = []
    for backend in ("cuda", "numpy"):
        net = _network(backend, sizes, precision, activation=list(sigmas))
        plan = _plan(net) if backend == "cuda" else None
        net.fit(X, Y, epochs=3, batch_size=64, learning_rate=0.02, plan=plan)
        nets.append(net)
    expected = {
        "relu": {"RELU_AUX_BIAS", "DRELU_BGRAD"}, "tanh": {"BIAS", "RELU_AUX_BIAS", "DRELU_BGRAD"},
    }.get(sigmas[0], set())  # fmt: skip
    assert expected <= _epilogues(nets[0].plan)
    assert ("BGRADB" in _epilogues(nets[0].plan)) == (precision in ("float64", "float32"))
    for got, exact in zip(
        nets[0].weights + nets[0].biases, nets[1].weights + nets[1].biases, strict=True
    ):
        np.testing.assert_allclose(got, exact, rtol=0, atol=CLOSE[precision])
    losses = [net.history.loss for net in nets if net.history is not None]
    np.testing.assert_allclose(losses[0], losses[1], rtol=CLOSE[precision])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("rows", [64, 150, 199, 320])
def test_captured_or_not_with_epilogues_or_without(rows: int, precision: str) -> None:
    """Steps one by one give the bits of captured ones, of which each brings the rows of the next.

    One step, two and a short one, three and a short one, five; a map is as good as an epilogue.
    """
    sizes = SIZES[0]
    X, Y = _data(sizes, rows)

    class Look(Callback):
        def on_batch_end(self, *_: Any) -> None:
            """Steps that are looked at are not captured."""

    found: list[list[np.ndarray]] = []
    for callbacks, epilogues in (([], True), ([Look()], True), ([], False)):
        net = _network("cuda", sizes, precision, activation=["relu", "relu", "softmax"])
        plan = _plan(net, rows, step_callbacks=bool(callbacks))
        assert plan.captured == (not callbacks)
        if not epilogues:
            plan = replace(plan, batches=tuple(
                replace(planned, products=tuple(
                    (label, replace(product, epilogue="")) for label, product in planned.products
                )) for planned in plan.batches
            ))  # fmt: skip
        net.fit(X, Y, epochs=3, batch_size=64, learning_rate=0.1, plan=plan, callbacks=callbacks)
        found.append([*net.weights, *net.biases])
    same_bits(found[0], found[1])
    for got, exact in zip(found[0], found[2], strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5)


def test_what_a_callback_writes_is_what_products_take() -> None:
    """In bf16 products take copies of the weights, which others do not know of."""
    sizes = SIZES[0]
    X, Y = _data(sizes)

    def step_by_step(net: Network, plan: Plan | None) -> list[np.ndarray]:
        class Writes(Callback):
            def on_batch_end(self, *_: Any) -> None:
                net.weights = [0.5 * w for w in net.weights]

        net.fit(X, Y, epochs=2, batch_size=64, learning_rate=0.1, plan=plan, callbacks=[Writes()])
        return net.weights

    cuda = _network("cuda", sizes, "bf16", activation=["relu", "relu", "softmax"])
    plan = _plan(cuda, step_callbacks=True)
    got = step_by_step(cuda, plan)
    numpy = _network("numpy", sizes, "bf16", activation=["relu", "relu", "softmax"])
    for a, b in zip(got, step_by_step(numpy, None), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_members_take_turns(precision: str) -> None:
    """Each with the copies of its own weights, from epoch to epoch."""
    sizes, options = SIZES[0], {"activation": ["relu", "relu", "softmax"]}
    X, Y = _data(sizes)
    found = []
    _network("cuda", sizes, precision)  # or skip
    for backend in ("cuda", "numpy"):
        many = Population(sizes, members=3, backend=backend, precision=precision, seed=3, **options)
        plan = _plan(_network(backend, sizes, precision, **options)) if backend == "cuda" else None
        many.fit(X, Y, epochs=3, batch_size=64, learning_rate=[0.1, 0.05, 0.2], plan=plan)
        found.append([w for net in many for w in net.weights])
    for got, exact in zip(*found, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=CLOSE[precision])


def test_a_users_activation_has_no_epilogue() -> None:
    """Not even where it is called as one of ours is."""
    sizes = SIZES[0]
    X, Y = _data(sizes)
    relu = Activation("relu_of_a_user", lambda z: z * (z > 0), lambda z: 1.0 * (z > 0))
    nets = []
    for backend in ("cuda", "numpy"):
        net = _network(backend, sizes, "float32", activation=[relu, "relu", "softmax"])
        plan = _plan(net) if backend == "cuda" else None
        net.fit(X, Y, epochs=2, batch_size=64, learning_rate=0.1, plan=plan)
        nets.append(net)
    labels = dict(nets[0].plan.batches[0].products)
    assert labels["forward layer 1"].epilogue == labels["BP2 layer 1"].epilogue == ""
    assert labels["forward layer 2"].epilogue == "RELU_AUX_BIAS"
    for got, exact in zip(nets[0].weights, nets[1].weights, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5)


def test_copies_are_written_by_the_kernels_that_write_what_they_are_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bf16 a step converts what epilogues and BP1 leave, and nothing else by itself."""
    sizes = SIZES[0]
    X, Y = _data(sizes, 128)
    converted: list[tuple[int, ...]] = []
    convert = Runtime.round

    def watched(self: Runtime, array: Any, out: Any = None) -> None:
        if out is not None or array.rounded is not None:
            converted.append(array.shape)
        convert(self, array, out)

    monkeypatch.setattr(Runtime, "round", watched)
    net = _network("cuda", sizes, "bf16", activation=["relu", "tanh", "sigmoid"])
    net.fit(X, Y, epochs=1, batch_size=64, learning_rate=0.1, plan=_plan(net, rows=128))
    flat = (net.model.layout.length,)
    # a^1 and δ^1 of epilogues, δ^3 of BP1; once as it runs and once captured.
    assert sorted(converted) == sorted([flat, *2 * [(64, 48), (64, 48), (64, 16)]])


def test_what_is_written_to_an_array_is_written_to_its_copy() -> None:
    """By whatever the runtime has for it."""
    runtime: Any = device_runtime()
    if not runtime.device.multiplies_rounded:
        pytest.skip("products of this device round nothing")
    backend: Any = CudaBackend("float32", runtime, precision="bf16")
    numbers = np.random.default_rng(0).standard_normal((9, 7))
    array = backend.with_rounded(backend.zeros((9, 7)))
    for write in (
        lambda: backend.copy(backend.asarray(numbers), array),
        lambda: backend.copy(runtime.array(numbers), array),  # of another dtype
        lambda: runtime.upload(numbers.astype(np.float32), array),
        lambda: runtime.clear(array),
    ):
        runtime.upload(np.full((9, 7), 7777, np.uint16), array.rounded)
        write()
        assert_rounded(backend, array)
        assert_rounded(backend, array[2:5])
        assert_rounded(backend, array.reshape(3, 21)[1])


def test_a_training_that_diverges_is_seen() -> None:
    """The library's ReLU may make 0 of what is no number; of 0 · ∞ it is none again."""
    sizes = SIZES[0]
    X, Y = _data(sizes)
    net = _network("cuda", sizes, "float32", activation=["relu", "relu", "identity"])
    before = net.weights
    with pytest.raises(FloatingPointError, match="epoch 1"):
        net.fit(X, Y, epochs=3, batch_size=64, learning_rate=1e30, plan=_plan(net))
    same_bits(net.weights, before)


@pytest.mark.standin
def test_an_epilogue_that_the_library_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan says so, and a map does it."""
    if standin.running() is None:
        pytest.skip("a card has what it has")
    sizes = (64, 56, 40, 16)  # which nobody has asked the library for before
    X, Y = _data(sizes)
    monkeypatch.setenv("STANDIN_NO_EPILOGUES", "134,4")  # RELU_AUX_BIAS, BIAS
    net = _network("cuda", sizes, "float32", activation=["relu", "relu", "softmax"])
    plan = _plan(net)
    products = dict(plan.batches[0].products)
    assert products["forward layer 1"].epilogue == "RELU_BIAS"
    assert products["BP2 layer 1"].epilogue == products["forward layer 3"].epilogue == ""
    assert "cuBLASLt has no algorithm with RELU_AUX_BIAS" in str(plan)
    assert "cuBLASLt has no algorithm with BIAS" in str(plan)
    other = _network("numpy", sizes, "float32", activation=["relu", "relu", "softmax"])
    for each, by in ((net, plan), (other, None)):
        each.fit(X, Y, epochs=2, batch_size=64, learning_rate=0.1, plan=by)
    for got, exact in zip(net.weights, other.weights, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5)


def test_a_plan_for_other_activations_is_refused() -> None:
    """A mask of ReLU is no slope of tanh."""
    sizes = SIZES[0]
    X, Y = _data(sizes)
    plan = _plan(_network("cuda", sizes, "float32", activation=["relu", "relu", "softmax"]))
    net = _network("cuda", sizes, "float32", activation=["tanh", "relu", "softmax"])
    before = net.weights
    with pytest.raises(ValueError, match="its products are for other activations"):
        net.fit(X, Y, epochs=1, batch_size=64, learning_rate=0.1, plan=plan)
    same_bits(net.weights, before)


def test_networks_that_train_at_once_each_have_their_bias() -> None:
    """Descriptions of products are one of all threads', and have pointers in them."""
    sizes = SIZES[0]
    X, Y = _data(sizes, 640)
    options: dict[str, Any] = {"activation": ["relu", "relu", "softmax"]}

    def trained(seed: int) -> list[np.ndarray]:
        net = Network(sizes, backend="cuda", seed=seed, **options)
        net.fit(X, Y, epochs=2, batch_size=64, learning_rate=0.1, plan=_plan(net, 640))
        return [*net.weights, *net.biases]

    alone = [trained(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(trained, range(4)), strict=True):
            same_bits(one, other)


def test_a_bias_that_starts_anywhere() -> None:
    """An algorithm that reads 16 bytes of it at a time is not asked to."""
    runtime: Any = device_runtime()
    if not runtime.device.library:
        pytest.skip("there is no cuBLASLt")
    backend: Any = CudaBackend("float32", runtime)
    m, n, k = 24, 32, 16
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, k), (m, k)))
    biases = rng.standard_normal(n + 1).astype(np.float32)
    z = backend.empty((m, n))
    product = Product("cublas", None, 1, 0.0, "forced by a test", "BIAS")
    for start in (0, 1):
        b = biases[start : start + n]
        on_device = runtime.array(w), runtime.array(biases)[start : start + n], runtime.array(x)
        backend.forward(*on_device, activations.get("identity"), None, z, product=product)
        np.testing.assert_allclose(backend.to_numpy(z), x @ w.T + b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("precision", "alone"), [("float32", 0), ("tf32", 1), ("bf16", 1)])
def test_what_is_launched_beside_the_librarys_products(
    precision: str, alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No map behind an epilogue, and BP3 by itself for the last layer alone, if at all."""
    X, Y = _data(SIZES[0], 64)
    launched: list[str] = []
    launch = Runtime.launch

    def watched(self: Runtime, kernel: Any, *arguments: Any) -> None:
        launched.append(kernel.expression.partition("<")[0])
        launch(self, kernel, *arguments)

    net = _network("cuda", SIZES[0], precision, activation=["relu", "relu", "softmax"])
    plan = _plan(net, 64)
    monkeypatch.setattr(Runtime, "launch", watched)
    net.fit(X, Y, epochs=1, batch_size=64, learning_rate=0.1, plan=plan)
    assert launched.count("bias_gradient") == alone
    assert "bias_activation" not in launched
    assert "pull_back" not in launched
    assert launched.count("gather") == 1


# -- ranks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_ranks_have_the_bits_of_one_and_numpys_result(precision, optimizer):
    sizes = SIZES[1]
    X, Y = _data(sizes)

    def work(ranks, backend="cuda"):
        net = _network(backend, sizes, precision)
        net.fit(
            X, Y, epochs=2, batch_size=40, learning_rate=0.05, optimizer=optimizer,
            engine="layered", communicator=ranks,
        )  # fmt: skip
        assert net.plan.shards == 8
        assert not net.plan.captured
        return net.model.read(net.parameters)

    alone = work(ALONE)
    for size in (2, 3):
        for found in on_ranks(size, work):
            same_bits([found], [alone])
    np.testing.assert_allclose(alone, work(ALONE, "numpy"), atol=2 * CLOSE[precision])


@pytest.mark.parametrize("engine", ["resident", "fused", "persistent"])
def test_other_engines_leave_ranks_to_this_one(engine):
    net, (X, Y) = _network("cuda", SIZES[0], "float32"), _data(SIZES[0])
    with pytest.raises(ValueError, match="does not sum gradients over ranks"):
        net.fit(
            X, Y, epochs=1, batch_size=40, learning_rate=0.05, engine=engine, communicator=ALONE
        )


@pytest.fixture
def nccl(monkeypatch):
    """NCCL's functions, for ranks that are threads; nccl4py above them is its own."""
    import nccl.core

    fake = FakeBindings(nccl.core.communicator._nccl_bindings)  # noqa: SLF001
    for name in ("communicator", "group", "utils"):  # of them "group" is a function's name, too
        monkeypatch.setattr(sys.modules[f"nccl.core.{name}"], "_nccl_bindings", fake)
    return fake


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [2, 3, 8])
def test_gradients_may_go_from_device_to_device(precision, size, nccl):
    if standin.running() is None:
        pytest.skip("ranks of NCCL need a GPU each")
    sizes = SIZES[1]
    X, Y = _data(sizes)

    def work(host, of=lambda ranks: ranks):
        net = _network("cuda", sizes, precision)
        net.fit(
            X, Y, epochs=2, batch_size=40, learning_rate=0.05, optimizer="adam",
            engine="layered", communicator=of(host),
        )  # fmt: skip
        return net.model.read(net.parameters)

    alone = work(ALONE)
    for found in on_ranks(size, lambda host: work(host, NCCLCommunicator)):
        same_bits([found], [alone])
    assert nccl.sent > 0


def test_a_gpu_whose_gradients_do_not_come_ends_the_job():
    class Never:
        is_done = False

    def work(host):
        ranks = NCCLCommunicator(host)
        exchange = _NCCLExchange(ranks, Never(), 0.2)
        with pytest.raises(RankError, match=r"has waited 0.2 s for gradients"):
            exchange.wait()

    on_ranks(1, work)
