"""Epochs in one launch on the resident CUDA kernel, run on the CPU, held against `layered`.

`resident_cases.py` has the forms that run under the sanitizers, too, as cases of `kernel_cases.py`.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backprop_gpu import (
    Activation,
    Callback,
    Cost,
    Network,
    Population,
    activations,
    costs,
    planning,
    sweep,
)
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.cuda import catalogue
from backprop_gpu.cuda.catalogue import RULES, Catalogue, Kernel
from backprop_gpu.cuda.runtime import Runtime
from backprop_gpu.engines.layered import LayeredEngine
from backprop_gpu.engines.resident_cpu import ResidentCpuEngine
from backprop_gpu.engines.resident_cuda import ResidentCudaEngine
from backprop_gpu.optimizers import SGD, Adam, Optimizer
from backprop_gpu.optimizers import get as rule_of
from backprop_gpu.parameters import Parameters
from backprop_gpu.planning import residency
from backprop_gpu.testing import twins
from machine import device_runtime
from reference import ACTIVATIONS, COSTS, ENGINE_PAIRS, assert_close
from resident_cases import FORMS, Form, Run, check

SIZES, BATCH, ROWS = (18, 7, 5, 4), 6, 33


pytestmark = pytest.mark.gpu


def _settings() -> list[tuple[tuple[str, ...], str, str]]:
    """Every σ inside and last, every pair of last σ and cost, every rule."""
    elementwise = [name for name in ACTIVATIONS if activations.get(name).elementwise]
    inner = [((name, "tanh", "identity"), "quadratic", "sgd") for name in elementwise]
    inner += [(("tanh", name, "sigmoid"), "quadratic", "sgd") for name in elementwise[::2]]
    pairs = [(("tanh", "sigmoid", last), cost, "sgd") for last, cost in ENGINE_PAIRS]
    rules = [(("sigmoid", "tanh", "softmax"), "categorical_cross_entropy", rule) for rule in RULES]
    return list(dict.fromkeys([*inner, *pairs, *rules]))


SETTINGS = _settings()


def _kernel(sigmas: Sequence[str], cost: str, rule: str, dtype: str) -> Kernel:
    found = residency.choose(
        SIZES, BATCH, np.dtype(dtype).itemsize, rule_of(rule).slots, device_runtime().device
    )
    assert not isinstance(found, str)
    chosen = [activations.get(name) for name in sigmas]
    return Catalogue(np.dtype(dtype)).resident(found, chosen, costs.get(cost), rule)


def _random_form(number: int) -> Form:
    """Any shape, cut in any way."""
    rng = np.random.default_rng(number)

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    sizes = tuple(rng.integers(1, 41, rng.integers(2, 6)).tolist())
    layers = len(sizes) - 1
    cluster = one_of(1, 1, 2, 4)
    hidden = ("sigmoid", "tanh", "relu", "elu", "gelu", "silu", "identity")
    batch = int(rng.integers(1, 13))
    return Form(
        f"random {number}", sizes,
        (*(one_of(*hidden) for _ in range(layers - 1)), one_of("sigmoid", "softplus", "tanh")),
        "quadratic",
        (one_of(SGD(), SGD(momentum=0.5, l2=0.1), Adam(epsilon=1e-3)),) * int(rng.integers(1, 3)),
        batch=batch, rows=batch + int(rng.integers(0, 3 * batch)), threads=one_of(32, 64, 96),
        cut=(cluster * one_of(1, 2), *(one_of(1, 1, 4) for _ in range(layers - 1))),
        tiles=tuple(
            (one_of(1, 2, 3, 5), one_of(1, 2, 4, 6), one_of(1, 2, 4, 8), one_of(1, 2, 4, 8, 16))
            for _ in range(layers)
        ),
        cluster=cluster, stages=one_of(2, 3),
    )  # fmt: skip


RANDOM = tuple(map(_random_form, range(10)))


@functools.cache
def runtime() -> Runtime:
    """What these tests launch is built together, where g++ builds it."""
    kernels = [_kernel(*setting, "float32") for setting in SETTINGS]
    kernels += [kernel for form in RANDOM for kernel in form.kernels("float64")]
    kernels += [_kernel(*setting, "float64") for setting in SETTINGS[::4]]
    twins.together(kernels)
    return device_runtime()


def on(net: Network, backend: CudaBackend) -> Network:
    """The network on another backend, and planned for it."""
    flat = net.model.read(net.parameters)
    net.model.backend = backend
    net.model.choice = planning.Choice("cuda", "asked for")
    net.parameters = Parameters(net.model.layout, backend.asarray(flat))
    return net


def train(
    backend: str | CudaBackend,
    engine: str,
    sigmas: Any = "sigmoid",
    cost: str = "quadratic",
    optimizer: str | Optimizer = "sgd",
    dtype: str = "float32",
    sizes: Sequence[int] = SIZES,
    rows: int = ROWS,
    batch: int = BATCH,
    epochs: int = 2,
    rate: float = 0.05,
    **rest: Any,
) -> Network:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((rows, sizes[0]))
    Y = np.abs(rng.standard_normal((rows, sizes[-1]))) + 0.01
    Y /= Y.sum(axis=1, keepdims=True)
    Y = Y[:, : costs.get(cost).targets_of(sizes[-1])]
    net = Network(sizes, activation=sigmas, cost=cost, dtype=dtype, seed=5, backend="numpy")
    if not isinstance(backend, str):
        net = on(net, backend)
    net.fit(
        X, Y, epochs=epochs, batch_size=batch, learning_rate=rate, optimizer=optimizer,
        engine=engine, **rest,
    )  # fmt: skip
    return net


def same_training(got: Network, exact: Network, steps: int, what: str) -> None:
    """Rounding errors add up with the steps."""
    bound = 64 * steps * np.finfo(got.dtype).eps
    for name in ("weights", "biases"):
        for a, b in zip(getattr(got, name), getattr(exact, name), strict=True):
            assert_close(a, b, bound * (1 + np.abs(b)), f"{name}, {what}")
    assert got.history is not None
    assert exact.history is not None
    np.testing.assert_allclose(got.history.loss, exact.history.loss, rtol=bound, err_msg=what)


@pytest.mark.parametrize(("sigmas", "cost", "rule"), SETTINGS, ids=str)
def test_every_activation_cost_and_rule(sigmas: Any, cost: str, rule: str) -> None:
    arguments = {"sigmas": list(sigmas), "cost": cost, "optimizer": rule, "rate": 0.01}
    exact = train("numpy", "layered", dtype="float64", **arguments)
    dtypes = (
        ("float32", "float64") if SETTINGS.index((sigmas, cost, rule)) % 4 == 0 else ("float32",)
    )
    for dtype in dtypes:
        net = train(CudaBackend(dtype, runtime()), "resident", dtype=dtype, **arguments)
        assert net.plan.engine == "resident"
        same_training(net, exact, 12, f"{sigmas} {cost} {rule}")


def test_the_kernels_are_all_there() -> None:
    """What the test above goes through, by the catalogue's own count."""
    used = {name for sigmas, _, _ in SETTINGS for name in sigmas}
    assert used == set(activations.names())
    assert {cost for _, cost, _ in SETTINGS} == set(COSTS) == set(costs.names())
    assert {rule for _, _, rule in SETTINGS} == set(RULES)


@pytest.mark.parametrize("optimizer", [SGD(l1=0.01, l2=0.05), SGD(clip_value=0.01), Adam(l2=0.1)])
def test_penalties_and_clipping(optimizer: Optimizer) -> None:
    arguments = {"sigmas": ["sigmoid", "tanh", "softmax"], "cost": "categorical_cross_entropy"}
    exact = train("numpy", "layered", dtype="float64", optimizer=optimizer, **arguments)
    net = train(CudaBackend("float32", runtime()), "resident", optimizer=optimizer, **arguments)
    same_training(net, exact, 12, str(optimizer))


@pytest.mark.parametrize("form", RANDOM, ids=lambda form: form.name)
def test_any_shape_in_any_form(form: Form) -> None:
    check(CudaBackend("float64", runtime()), form)


def test_by_the_name_of_the_backend() -> None:
    X, Y = np.random.default_rng(0).uniform(size=(2, 12, 3))
    nets = [Network([3, 4, 3], seed=1, backend=name) for name in ("numpy", "cuda")]
    for net, engine in zip(nets, ("layered", "resident"), strict=True):
        net.fit(X, Y, epochs=3, batch_size=5, learning_rate=0.3, engine=engine)
    assert nets[1].plan.engine_reason.startswith("asked for; an epoch is one launch")
    same_training(nets[1], nets[0], 9, "cuda")
    assert nets[1].predict(X).shape == (12, 3)


def test_two_hundred_steps() -> None:
    """The book's shape, a short last batch, a schedule: near float64 all the way."""
    arguments = {
        "sizes": (784, 30, 10), "rows": 503, "batch": 10, "epochs": 4, "rate": 0.5,
    }  # fmt: skip
    exact = train("numpy", "layered", dtype="float64", **arguments)
    for dtype in ("float32", "float64"):
        net = train(CudaBackend(dtype, runtime()), "resident", dtype=dtype, **arguments)
        assert "predicted" in net.plan.engine_reason
        same_training(net, exact, 204, dtype)


def test_a_batch_callback_and_validation() -> None:
    """A callback after every batch is layered's; validation is no hindrance."""
    X, Y = np.ones((5, 18)), np.full((5, 4), 0.25)
    net = train(CudaBackend("float32", runtime()), "resident", validation_data=(X, Y))
    assert net.history is not None
    assert len(net.history.val_loss) == 2


def test_a_users_activation() -> None:
    swish = Activation("my_swish", lambda z: z / (1 + np.exp(-z)), lambda z: _slope(z))
    exact = train("numpy", "layered", [swish, swish, "sigmoid"], dtype="float64")
    net = train(CudaBackend("float32", runtime()), "resident", [swish, swish, "sigmoid"])
    assert net.plan.engine == "resident"
    same_training(net, exact, 12, "swish")


def _slope(z: Any) -> Any:
    s = 1 / (1 + np.exp(-z))
    return s + z * s * (1 - s)


# -- bits -------------------------------------------------------------------------------------


def _form(name: str) -> Form:
    return _here(next(form for form in FORMS if form.name == name))


def _here(form: Form) -> Form:
    """The form; where the device has no such cluster, with its blocks apart."""
    largest = residency.largest_cluster(runtime().device)
    return form if form.cluster <= largest else replace(form, apart=True)


def _on_host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else runtime().to_numpy(array)


def parameters_of(net: Network) -> np.ndarray:
    return net.model.read(net.parameters)


def _train(form: Form) -> list[np.ndarray]:
    backend = CudaBackend("float32", runtime())
    return Run(form, backend, "float32").train(form.engine(backend))


def same_bits(a: Sequence[Any], b: Sequence[Any]) -> None:
    """Of arrays on the host and on the device."""
    assert len(a) == len(b)
    for x, y in zip(map(_on_host, a), map(_on_host, b), strict=True):
        np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


@pytest.mark.parametrize("name", ["cluster", "members", "apart"])
def test_the_same_launch_gives_the_same_bits(name: str) -> None:
    same_bits(_train(_form(name)), _train(_form(name)))


def test_every_form_of_a_network_gives_the_same_bits() -> None:
    """Threads, cluster, tiles, stages: what may follow from the number of members."""
    form = _form("cluster")
    wide = replace(form, cut=(8, 1, 1))
    one = ((1, 1, 1, 1),) * 3
    results = [
        _train(_here(each))
        for each in (
            wide,
            replace(wide, cluster=1, threads=32),
            replace(wide, cluster=8, threads=96, tiles=one),
            replace(wide, cluster=2, stages=2),
            replace(wide, apart=True),
            replace(wide, apart=True, cluster=2, threads=96, tiles=one, stages=2),
            replace(wide, apart=True, cluster=8, threads=32),
        )
    ]
    for result in results[1:]:
        same_bits(results[0], result)


def test_a_member_is_as_it_would_be_alone() -> None:
    form = _form("members")
    backend = CudaBackend("float32", runtime())
    together = Run(form, backend, "float32")
    alone = Run(form, backend, "float32")
    engine = form.engine(backend)
    whole = together.train(engine)
    size = len(whole) // len(form.optimizers)
    for i, member in enumerate(alone.members):
        costs = [engine.run_epoch(m, alone.X, alone.Y) for m in member]
        mine = [np.concatenate(costs), member[0].parameters.flat]
        same_bits(whole[i * size : (i + 1) * size], mine)


def test_members_as_rows_of_one_array_are_not_copied() -> None:
    """And any of them may be left out, as after an early stop."""
    form = replace(_form("members"), optimizers=(SGD(momentum=0.5),) * 4)
    backend = CudaBackend("float32", runtime())
    scattered, rows = Run(form, backend, "float32"), Run(form, backend, "float32")
    layout = rows.members[0][0].parameters.layout
    flats, slots = (backend.zeros((4, layout.length)) for _ in range(2))
    members = []
    for i, member in enumerate(rows.members):
        backend.copy(member[0].parameters.flat, flats[i])
        own = Parameters(layout, flats[i])
        members.append([replace(m, parameters=own, slots=(slots[i],)) for m in member])
    chosen = [3, 1]
    engine = form.engine(backend)
    engine.gathered = None  # type: ignore[method-assign,assignment]
    for epoch in range(2):
        engine.run_members([members[i][epoch] for i in chosen], rows.X, rows.Y)
    scattered.train(form.engine(backend))
    for i in range(4):
        expected = scattered.members[i][0]
        if i in chosen:
            same_bits([flats[i], slots[i]], [expected.parameters.flat, *expected.slots])
        else:
            assert not _on_host(slots[i]).any()


def test_members_of_several_rules_and_batch_sizes() -> None:
    """Each kind in a launch of its own; what a member gets is what it gets alone."""
    form = _form("members")
    backend = CudaBackend("float32", runtime())

    def members() -> list[Any]:
        run = Run(replace(form, optimizers=(SGD(), Adam(), SGD())), backend, "float32")
        found = [member[0] for member in run.members]
        settings = found[2].hyperparameters
        found[2] = replace(
            found[2],
            hyperparameters=replace(settings, batch_size=8, coefficients=settings.coefficients[:3]),
        )
        return [run.X, run.Y, found]

    engine = form.engine(backend)
    engine.plan = form.plan(4, 8)
    X, Y, together = members()
    heard: list[int] = []
    costs = engine.run_members(together, X, Y, heard.append)
    assert sorted(heard) == [0, 1, 2]
    _, _, alone = members()
    for got, a, b in zip(costs, together, alone, strict=True):
        expected = engine.run_epoch(b, X, Y)
        same_bits([got, a.parameters.flat], [expected, b.parameters.flat])


@pytest.mark.parametrize("cluster", [1, 2])
def test_a_member_that_diverges_does_so_alone(cluster: int) -> None:
    form = _here(replace(_form("members"), cluster=cluster, apart=False))
    backend = CudaBackend("float32", runtime())
    healthy, one_ill = Run(form, backend, "float32"), Run(form, backend, "float32")
    backend.copy(backend.asarray(np.array([np.nan])), one_ill.members[1][0].parameters.flat[:1])
    engine = form.engine(backend)
    expected, got = healthy.train(engine), one_ill.train(engine)
    assert not np.isfinite(got[2]).any()  # its costs
    same_bits(expected[:2] + expected[4:], got[:2] + got[4:])


def test_more_members_than_the_device_holds() -> None:
    """A grid of several waves: as on a device, one block after another."""
    form = replace(_form("members"), optimizers=(SGD(),) * 9)
    results = check(CudaBackend("float32", runtime()), form)
    assert len(results) == 18


# -- the order, and where the rows are ---------------------------------------------------------


def test_the_order_is_honoured() -> None:
    form = _form("block")
    backend = CudaBackend("float64", runtime())
    first, again = Run(form, backend, "float64"), Run(form, backend, "float64")
    engine = form.engine(backend)
    a, b = first.members[0][0], again.members[0][0]
    shuffled = np.random.default_rng(9).permutation(form.rows)
    inverse = np.argsort(shuffled)
    costs = engine.run_epoch(a, first.X, first.Y)
    moved = engine.run_epoch(
        replace(b, order=inverse[b.order]),
        *(backend.asarray(_on_host(array)[shuffled]) for array in (again.X, again.Y)),
    )
    same_bits([costs, a.parameters.flat], [moved, b.parameters.flat])


# -- X of uint8 --------------------------------------------------------------------------------

BYTES = tuple(form for form in FORMS if form.bytes)


def test_forms_of_bytes_cover_every_way_to_copy() -> None:
    ways = {
        (form.cluster > 1, next(n for n in (16, 4, 1) if form.sizes[0] % n == 0)) for form in BYTES
    }
    assert ways == {(split, unit) for split in (False, True) for unit in (16, 4, 1)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", BYTES, ids=lambda form: form.name)
def test_bytes_give_the_bits_of_numbers(form: Form, dtype: str) -> None:
    backend, form = CudaBackend(dtype, runtime()), _here(form)
    stored, numbers = Run(form, backend, dtype), Run(form, backend, dtype)
    assert stored.X.dtype == np.uint8
    assert (_on_host(stored.X) > 127).any()
    numbers.X = backend.asarray(numbers.X)
    as_numbers = replace(form, bytes=False)
    same_bits(stored.train(form.engine(backend)), numbers.train(as_numbers.engine(backend)))


def test_every_form_of_bytes_gives_the_same_bits() -> None:
    form = next(form for form in BYTES if form.name == "bytes, cluster")
    results = [
        _train(_here(each))
        for each in (
            form,
            replace(form, cluster=1, threads=96, stages=2),
            replace(form, cluster=4, tiles=((1, 1, 1, 1),) * 2),
            replace(form, cluster=2, apart=True),
        )
    ]
    for result in results[1:]:
        same_bits(results[0], result)


def _images(inputs: int, rows: int = 23) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(inputs)
    return rng.integers(0, 256, (rows, inputs), np.uint8), rng.integers(0, 3, rows)


FIT = {"epochs": 2, "batch_size": 5, "learning_rate": 0.01}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.dtype[Any]]:
    """The dtypes of X in every epoch that an engine is asked for."""
    found: list[np.dtype[Any]] = []

    def spied(run: Any) -> Any:
        def call(self: Any, what: Any, X: Any, *rest: Any) -> Any:
            found.append(X.dtype)
            return run(self, what, X, *rest)

        return call

    for engine in (LayeredEngine, ResidentCpuEngine, ResidentCudaEngine):
        for name in ("run_epoch", "run_members"):
            monkeypatch.setattr(engine, name, spied(getattr(engine, name)))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inputs", [48, 36, 27])
def test_a_network_of_bytes(
    inputs: int, dtype: str, seen: list[np.dtype[Any]], launched: list[Kernel]
) -> None:
    X, y = _images(inputs)
    nets = []
    for given in (X, X.astype(dtype)):
        net = Network([inputs, 6, 3], seed=2, backend="cuda", dtype=dtype)
        net.fit(given, y, engine="resident", validation_data=(X, y), **FIT)
        nets.append(net)
    assert seen == [np.uint8] * 2 + [np.dtype(dtype)] * 2
    for net, reads in zip(nets, (True, False), strict=True):
        assert ("rows of X read as uint8" in net.plan.engine_reason) == reads
    resident = ["unsigned char" in k.expression for k in launched if k.file == "resident.cu"]
    assert resident == [True] * 2 + [False] * 2  # an epoch each
    same_bits([parameters_of(nets[0])], [parameters_of(nets[1])])
    assert nets[0].history == replace(nets[1].history, seconds=nets[0].history.seconds)


def test_a_population_and_a_sweep_of_bytes(seen: list[np.dtype[Any]]) -> None:
    X, y = _images(32)
    found = []
    for given in (X, X.astype(np.float32)):
        population = Population([32, 6, 3], members=3, seed=2, backend="cuda")
        population.fit(given, y, engine="resident", **FIT)
        grid = {"sizes": [[32, 6, 3]], "learning_rate": [0.01, 0.001]}
        swept = sweep(
            given, y, grid=grid, backend="cuda", engine="resident", seed=4, epochs=2, batch_size=5
        )
        found.append([*population.members, *swept.networks])
    assert seen == [np.uint8] * 4 + [np.float32] * 4
    for one, other in zip(*found, strict=True):
        assert "rows of X read as uint8" in one.plan.engine_reason
        same_bits([parameters_of(one)], [parameters_of(other)])


def test_other_engines_get_numbers(backend: str, seen: list[np.dtype[Any]]) -> None:
    X, y = _images(20)

    class Watch(Callback):
        def on_batch_end(self, network: Network, batch: int) -> None:
            pass

    for how in ({"engine": "layered"}, {"callbacks": [Watch()]}):
        if "callbacks" in how and backend == "numpy":
            continue  # its resident engine hears of every step, and reads bytes
        nets = [Network([20, 6, 3], seed=2, backend=backend) for _ in range(2)]
        for net, given in zip(nets, (X, X.astype(np.float32)), strict=True):
            net.fit(given, y, **FIT, **how)
        assert set(seen) == {np.dtype(np.float32)}, how
        same_bits([parameters_of(nets[0])], [parameters_of(nets[1])])


def test_where_numbers_only_have_room_bytes_become_them_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = BYTES[0]
    backend = CudaBackend("float32", runtime())
    run, exact = Run(form, backend, "float32"), Run(form, backend, "float32")
    form = _here(replace(form, bytes=False))
    engine, again = form.engine(backend), form.engine(backend)
    numbers = backend.asarray(exact.X)
    made = []
    copy = CudaBackend.copy

    def watched(backend: CudaBackend, source: Any, out: Any) -> None:
        made.extend([out] if source is run.X else [])
        copy(backend, source, out)

    monkeypatch.setattr(CudaBackend, "copy", watched)  # of every fork
    for mine, theirs in zip(run.members, exact.members, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            same_bits(
                [engine.run_epoch(one, run.X, run.Y), one.parameters.flat],
                [again.run_epoch(other, numbers, exact.Y), other.parameters.flat],
            )
    engine.run_members([member[0] for member in run.members], run.X, run.Y)
    assert [array.dtype for array in made] == [np.float32]


@pytest.mark.parametrize("needs", ["a callback", "squares"])
def test_what_needs_the_host_between_steps_is_refused(needs: str) -> None:
    form = _form("block")
    backend = CudaBackend("float32", runtime())
    run = Run(form, backend, "float32")
    member = run.members[0][0]
    if needs == "squares":
        settings = replace(member.hyperparameters, squares=np.zeros(5))
        member = replace(member, hyperparameters=settings)
    with pytest.raises(ValueError, match="the host is needed between steps"):
        form.engine(backend).run_epoch(
            member, run.X, run.Y, (lambda step: None) if needs == "a callback" else None
        )


def _kernel_size(found: residency.Residency | str) -> int:
    assert not isinstance(found, str)
    return found.shared_memory


@pytest.mark.parametrize(
    ("cluster", "numbers", "stored"), [(1, 197 * 16, 49 * 16), (8, 27 * 16, 9 * 16)]
)
def test_what_bytes_take_of_shared_memory(cluster: int, numbers: int, stored: int) -> None:
    """Rows of bytes in three stages and one of numbers, for rows of numbers in three stages."""
    plain, read = (
        residency.choose(NIELSEN, 10, 4, 0, planning.H200, stored=each, clusters=(cluster,))
        for each in (None, 1)
    )
    assert _kernel_size(plain) - _kernel_size(read) == 10 * (3 * numbers - 3 * stored - numbers)


def test_what_the_conversion_takes() -> None:
    plain, read = (
        residency.choose(NIELSEN, 10, 4, 0, planning.H200, stored=each) for each in (4, 1)
    )
    assert not isinstance(plain, str)
    assert not isinstance(read, str)
    assert [name for name, _ in read.cycles] == [
        "X from uint8",
        *(name for name, _ in plain.cycles),
    ]
    assert dict(read.cycles)["X from uint8"] > 0
    assert read.seconds > plain.seconds


@pytest.mark.parametrize(
    ("sizes", "batch", "less"), [((784, 30, 10), 10, True), ((3, 2, 1), 500, False)]
)
def test_bytes_are_resident_where_numbers_are(
    sizes: tuple[int, ...], batch: int, less: bool
) -> None:
    """The engine decides about the last bits, so how X is stored must not decide about it."""
    fit = partial(residency.choose, sizes, batch, 4, 0, clusters=(1,), cut=(1, 1))
    needs = [
        residency.block_bytes(sizes, batch, 4, 0, 1, 2, (1, 1), stored, False) for stored in (4, 1)
    ]
    assert (needs[1] < needs[0]) == less
    tight, ample = (replace(planning.H200, shared_memory=of(needs)) for of in (min, max))
    assert isinstance(fit(tight, stored=1), str) == isinstance(fit(tight, stored=4), str) == less
    assert less or fit(tight, stored=1).stored == 4
    assert fit(ample, stored=1).stored == 1


def test_bytes_that_have_no_room_become_numbers() -> None:
    form = BYTES[0]
    backend = CudaBackend("float32", runtime())
    as_numbers = replace(form, bytes=False)
    run, exact = Run(form, backend, "float32"), Run(form, backend, "float32")
    exact.X = backend.asarray(exact.X)
    same_bits(run.train(as_numbers.engine(backend)), exact.train(as_numbers.engine(backend)))


# -- the plan ---------------------------------------------------------------------------------

CHOICE = planning.Choice("cuda", "a CUDA device is usable")
NIELSEN = (784, 30, 10)


def plan(sizes: Sequence[int], batch: int, **rest: Any) -> planning.Plan:
    device, cost = rest.pop("device", planning.H200), rest.pop("cost", costs.get("quadratic"))
    run = planning.Run(**{"rows": 50_000, "epochs": 30, "batch_size": batch} | rest)
    model = SimpleNamespace(
        sizes=tuple(sizes), activations=(activations.get("sigmoid"),) * (len(sizes) - 1),
        cost=cost, dtype=np.dtype(np.float32), precision="float32", device=device,
    )  # fmt: skip
    obstacle = ResidentCudaEngine.obstacle(model, run)
    return planning.choose_plan(sizes, "float32", CHOICE, device, run, {"resident": obstacle})


def test_the_book_is_resident_and_the_reason_has_both_figures() -> None:
    chosen = plan(NIELSEN, 10)
    assert chosen.engine == "resident"
    assert "one launch" in chosen.engine_reason
    assert "µs per step against" in chosen.engine_reason
    work = planning.step_work(NIELSEN, 10, 4, 0, chosen)
    assert {each.kernel for each in work} == {"the resident kernel"}


def test_the_plan_says_that_rows_are_bytes() -> None:
    numbers, read = (plan(NIELSEN, 10, bytes=each) for each in (False, True))
    assert numbers.engine == read.engine == "resident"
    assert "rows of X read as uint8" in read.engine_reason
    assert "uint8" not in numbers.engine_reason

    def enough(stored_bytes: bool) -> int:
        """Rows from which on building pays."""
        return bisect(
            range(50_000),
            False,
            key=lambda n: plan(NIELSEN, 10, bytes=stored_bytes, rows=n).engine == "resident",
        )

    assert 0 < enough(True) == enough(False) < 50_000


CUBIC = Cost("cubic", lambda a, y: (abs(a - y) ** 3).sum(axis=1), lambda a, y: a - y)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cost": CUBIC}, "cost 'cubic' is not built in"),
        ({"step_callbacks": True}, "a callback after every batch"),
        ({"options": frozenset(["clip_norm"])}, "clip_norm needs the norm of all gradients"),
        ({"options": frozenset(["max_norm"])}, "max_norm needs all of a neuron's new weights"),
        ({"options": frozenset(["gradient_noise"])}, "draws no gradient_noise"),
        ({"sizes": (4096, 4096, 10)}, r"need \d+ KB of shared memory .* the device has 227 KB"),
        ({"batch_size": 8192}, r"KB of shared memory"),
        ({"rows": 1000, "epochs": 1}, "less than building it takes"),
    ],
)
def test_why_not_resident(changes: dict[str, Any], reason: str) -> None:
    sizes = changes.pop("sizes", NIELSEN)
    chosen = plan(sizes, changes.pop("batch_size", 10), **changes)
    assert chosen.engine != "resident"
    assert re.search(reason, chosen.engine_reason), chosen.engine_reason
    if "building" not in reason:
        with pytest.raises(ValueError, match="engine 'resident' cannot run this"):
            plan(sizes, 8192 if reason.startswith("KB") else 10, engine="resident", **changes)


def test_asked_for() -> None:
    assert plan(NIELSEN, 10, engine="layered").engine == "layered"
    assert plan(NIELSEN, 10, engine="resident", epochs=1, rows=10).engine == "resident"
    network = Network([3, 2], backend="cuda")
    with pytest.raises(ValueError, match="unknown engine 'fast'; known: auto, layered, resident"):
        network.fit(np.zeros((5, 3)), np.zeros((5, 2)), engine="fast", **FIT)


def test_older_devices_have_no_clusters() -> None:
    ampere = replace(planning.H200, compute_capability=(8, 0), shared_memory=163 * 1024)
    found = residency.choose((400, 30, 10), 10, 4, 0, ampere)
    assert not isinstance(found, str)
    assert found.cluster == 1
    reason = residency.choose(NIELSEN, 10, 4, 2, ampere, clusters=residency.CLUSTERS)
    assert isinstance(reason, str)
    assert "optimizer state" in reason
    assert "in one block" in reason


RTX = replace(
    planning.H200, name="RTX 4090", compute_capability=(8, 9), multiprocessors=128, clusters=(),
    shared_memory=99 * 1024,
)  # fmt: skip


@pytest.mark.parametrize("capability", [(8, 6), (8, 9)])
def test_where_there_are_no_clusters_several_blocks_share_the_book(
    capability: tuple[int, int],
) -> None:
    device = replace(RTX, compute_capability=capability)
    found = residency.choose(NIELSEN, 10, 4, 0, device)
    assert not isinstance(found, str)
    assert found.apart
    assert found.cluster == 1 < found.blocks
    assert found.at_once == 128 // found.blocks
    assert f"{found.blocks} blocks that meet in device memory" in str(found)
    kernel = Catalogue(np.dtype("float32")).resident(
        found, [activations.get("sigmoid")] * 2, costs.get("quadratic"), "sgd"
    )
    assert kernel.cooperative
    assert kernel.cluster == 1
    assert "resident_apart<" in kernel.expression
    assert plan(NIELSEN, 10, device=device).engine == "resident"


def test_a_cluster_comes_before_blocks_that_are_none() -> None:
    cluster, apart = (
        residency.choose(NIELSEN, 10, 4, 0, planning.H200, **{way: (8,)})
        for way in ("clusters", "apart")
    )
    assert not isinstance(cluster, str)
    assert not isinstance(apart, str)
    assert cluster.seconds < apart.seconds
    assert not cluster.apart
    assert [t.slices for t in cluster.layers] == [t.slices for t in apart.layers]


def test_networks_that_have_to_wait_are_counted() -> None:
    one, many = (residency.choose(NIELSEN, 10, 4, 0, RTX, n, apart=(4,)) for n in (32, 33))
    assert not isinstance(one, str)
    assert not isinstance(many, str)
    assert many.seconds == pytest.approx(2 * one.seconds)


def test_a_cluster_that_the_device_does_not_hold_is_not_taken() -> None:
    """As part of a device: eight blocks at once, of which no sixteen are neighbours."""
    some = replace(planning.H200, clusters=((1, 132), (2, 66), (4, 30), (8, 15), (16, 0)))
    none = replace(planning.H200, clusters=tuple((size, 0) for size in (2, 4, 8, 16)))
    found = residency.choose(NIELSEN, 10, 4, 0, some)
    assert not isinstance(found, str)
    assert found.cluster == 8
    found = residency.choose(NIELSEN, 10, 4, 0, none)
    assert not isinstance(found, str)
    assert found.cluster == 1
    assert found.at_once >= 1


def test_many_members_share_the_device() -> None:
    """A cluster each while there is room, then a block each: what is faster for all."""
    one, all_at_once, waves = (
        residency.choose(NIELSEN, 10, 4, 0, planning.H200, members) for members in (1, 132, 264)
    )
    for each in (one, all_at_once, waves):
        assert not isinstance(each, str)
    assert one.cluster > all_at_once.cluster == 1
    assert waves.seconds == pytest.approx(2 * all_at_once.seconds)
    # The sum's slices, and so the bits, are of the network alone.
    assert [t.slices for t in one.layers] == [t.slices for t in all_at_once.layers]


def test_tiles_stay_within_registers_and_slices_within_rows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        sizes = np.exp(rng.uniform(0, 6, rng.integers(2, 5))).astype(int).tolist()
        batch = int(np.exp(rng.uniform(0, 5)))
        found = residency.choose(sizes, batch, 4, int(rng.integers(3)), planning.H200)
        if isinstance(found, str):
            continue
        assert found.shared_memory <= planning.H200.shared_memory
        assert found.layers[0].slices % found.cluster == 0
        assert found.threads % 32 == 0
        for tiles, fan_in in zip(found.layers, sizes, strict=False):
            assert tiles.slices == 1 or tiles.slices * 8 <= -(-fan_in // 4)
            assert tiles.x * tiles.j <= 64


def test_the_examples_cover_the_benchmarks() -> None:
    kernels = list(catalogue.residents(planning.H200))
    assert {kernel.cluster for kernel in kernels} == set(residency.CLUSTERS)
    assert len(kernels) == len(set(kernels))
    for rule in RULES.values():
        assert any(f", {rule}, 784," in kernel.expression for kernel in kernels)
    read = [kernel for kernel in kernels if ", unsigned char, " in kernel.expression]
    assert {kernel.cluster for kernel in read if ", 784," in kernel.expression} == set(
        residency.CLUSTERS
    )
