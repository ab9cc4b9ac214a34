"""The resident engine against the layered one: the same training, within rounding."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest

from backprop_gpu import (
    SGD,
    Activation,
    Adam,
    AdamW,
    Callback,
    Cost,
    Network,
    activations,
    costs,
    cpu,
    optimizers,
    planning,
)
from backprop_gpu.engines import Hyperparameters, Member
from backprop_gpu.parameters import Parameters
from reference import VALID_PAIRS

ALL_ON = {"l1": 0.01, "l2": 0.02, "clip_norm": 0.5, "clip_value": 0.1}


def problem(output: str, cost: str, rows: int = 70) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    X = rng.standard_normal((rows, 11))
    if cost and costs.get(cost).distribution:
        return X, rng.dirichlet(np.ones(3), rows)
    return X, rng.uniform(0.1, 0.9, (rows, 3))


def weights_after(engine: str, X: np.ndarray, Y: np.ndarray, **options: Any) -> list[np.ndarray]:
    training = {"epochs": 3, "batch_size": 32, "learning_rate": 0.02, "optimizer": "sgd"}
    training |= {key: options.pop(key) for key in list(options) if key in training}
    sizes = options.pop("sizes", (11, 9, 7, 3))
    net = Network(sizes, backend="numpy", seed=2, **options)
    history = net.fit(X, Y, engine=engine, **training)
    assert net.plan.engine == engine
    return [*net.weights, *net.biases, np.array(history.loss)]


def assert_same_training(X: np.ndarray, Y: np.ndarray, dtype: str, **options: Any) -> None:
    """A few steps amplify a rounding by little; a wrong term is far outside of this."""
    pairs = zip(
        weights_after("layered", X, Y, dtype=dtype, **options),
        weights_after("resident", X, Y, dtype=dtype, **options),
        strict=True,
    )
    for expected, got in pairs:
        scale = 1.0 + np.abs(expected).max()
        error = float(np.abs(got.astype(float) - expected).max())
        assert error <= 300 * float(np.finfo(dtype).eps) * scale


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("output", "cost"), VALID_PAIRS)
def test_every_output_and_cost(output: str, cost: str, dtype: str) -> None:
    X, Y = problem(output, cost)
    more: dict[str, Any] = {}
    if cost == "gaussian_nll":
        more, Y = {"sizes": (11, 9, 7, 4)}, Y[:, :2]
    chosen = ["tanh", "sigmoid", output]
    assert_same_training(X, Y, dtype, activation=chosen, cost=cost, **more)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in activations.names() if n != "softmax"])
def test_every_hidden_activation(name: str, dtype: str) -> None:
    assert_same_training(
        *problem("sigmoid", "quadratic"), dtype, activation=[name, name, "sigmoid"]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "optimizer",
    [
        *optimizers.names(),
        SGD(momentum=0.5, **ALL_ON),
        SGD(l1=0.01),
        Adam(epsilon=1e-3, l2=0.02, clip_value=0.1),
        AdamW(epsilon=1e-3, weight_decay=0.1, clip_norm=0.5),
        SGD(max_norm=0.7),
        Adam(epsilon=1e-3, max_norm=0.9, clip_norm=0.5),
    ],
    ids=str,
)
def test_every_rule(optimizer: Any, dtype: str) -> None:
    # Early in Adam a rounding of a tiny g changes g / √g² by more than itself.
    rate = 1e-3 if "adam" in str(optimizer).lower() else 0.02
    assert_same_training(
        *problem("sigmoid", "quadratic"), dtype, optimizer=optimizer, learning_rate=rate
    )


@pytest.mark.parametrize("batch", [1, 7, 70])
def test_batches_and_a_short_last_one(batch: int) -> None:
    X, Y = problem("sigmoid", "quadratic")
    assert_same_training(X, Y, "float64", batch_size=batch)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        ((1, 1), 1),
        ((2, 1, 2), 9),  # a tile of one row more than fits
        ((15, 16, 17), 8),
        ((16, 33, 8, 31), 25),
        ((7, 64, 3), 17),
        ((100, 5), 64),
    ],
)
def test_sizes_beside_the_edges_of_strips_and_tiles(
    sizes: tuple[int, ...], batch: int, dtype: str
) -> None:
    rng = np.random.default_rng(5)
    X, Y = rng.standard_normal((70, sizes[0])), rng.uniform(0.1, 0.9, (70, sizes[-1]))
    assert_same_training(X, Y, dtype, sizes=sizes, batch_size=batch, activation="tanh")


DIVISIONS = [
    planning.CpuWork(block=32, threads=1, in_place=True),
    planning.CpuWork(block=5, threads=1, in_place=False),  # 5 does not divide 32
    planning.CpuWork(block=11, threads=2, in_place=True),
    planning.CpuWork(block=4, threads=3, in_place=False),  # of 6 rows, the last, two have none
    planning.CpuWork(block=16, threads=2, in_place=True, by_inputs=True),
    planning.CpuWork(block=32, threads=3, in_place=True, by_inputs=True),  # more than strips
]


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(),
        SGD(l2=0.02),
        SGD(momentum=0.5, **ALL_ON),
        SGD(max_norm=0.7),
        Adam(epsilon=1e-3, clip_norm=0.1),
    ],
    ids=["sgd", "l2", "all", "max_norm", "adam"],
)
@pytest.mark.parametrize("work", DIVISIONS, ids=str)
def test_every_division_of_a_batch(
    work: planning.CpuWork, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning.plan, "cpu_work", lambda *_: work)
    assert_same_training(*problem("sigmoid", "quadratic"), "float64", optimizer=optimizer)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "optimizer", [SGD(), Adam(clip_norm=0.1, max_norm=0.9)], ids=["sgd", "adam"]
)
def test_no_division_changes_a_bit(
    optimizer: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for work in DIVISIONS:
        monkeypatch.setattr(planning.plan, "cpu_work", lambda *_, work=work: work)
        options = {"optimizer": optimizer, "dtype": dtype, "sizes": (11, 300, 20, 3)}
        runs.append(weights_after("resident", *problem("", ""), **options))
    for other in runs[1:]:
        for expected, got in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(got, expected)


def planned(net: Network, *batches: int) -> planning.Plan:
    """By the resident engine, with mini-batches of these sizes."""
    others = tuple((m, 0) for m in batches)
    run = planning.Run(4000, 3, max(batches), "resident", members=2, others=others)
    return net.model.plan(run)


def test_threads_do_not_share_what_they_write() -> None:
    """Members that are alike, and train long enough to be at it at the same time."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((4000, 40), np.float32), rng.random((4000, 10), np.float32)
    net = Network([40, 48, 10], backend="numpy", seed=0)
    sgd, order = SGD(), rng.permutation(4000)
    settings = Hyperparameters(10, sgd, sgd.coefficients(np.full(400, 0.1), 0))

    def members() -> list[Member]:
        flats = (net.model.read(net.parameters) * (1 + i) for i in range(12))
        return [Member(Parameters(net.model.layout, flat), (), order, settings) for flat in flats]

    engine = net.model.engine(planned(net, 10))
    together, alone = members(), members()
    for _ in range(3):
        engine.run_members(together, X, Y)
        for member in alone:
            engine.run_epoch(member, X, Y)
    engine.release()
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.parameters.flat, b.parameters.flat)


def test_the_norm_is_that_of_weights_and_biases() -> None:
    """Without an input only the biases have a gradient, and it is clipped all the same."""
    X, Y = problem("identity", "quadratic")
    options: dict[str, Any] = {"sizes": (11, 3), "activation": "identity"}
    optimizer = SGD(clip_norm=1e-3)
    assert_same_training(np.zeros_like(X), Y, "float64", optimizer=optimizer, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_hundred_steps_stay_near_float64(dtype: str) -> None:
    """A step adds its rounding, of some eps relative to the weights, to what it was given."""
    X, Y = problem("softmax", "categorical_cross_entropy", rows=200)
    options: dict[str, Any] = {
        "activation": ["tanh", "gelu", "softmax"], "cost": "categorical_cross_entropy",
        "epochs": 10, "batch_size": 10, "learning_rate": 0.1,
    }  # fmt: skip
    exact = weights_after("layered", X, Y, dtype="float64", **options)
    got = weights_after("resident", X, Y, dtype=dtype, **options)
    for expected, found in zip(exact, got, strict=True):
        scale = 1.0 + np.abs(expected).max()
        assert np.abs(found - expected).max() <= 200 * 4 * np.finfo(dtype).eps * scale


def test_members_are_the_same_alone_and_beside_others() -> None:
    """Different batch sizes, rules and orders at once, on all cores."""
    X, Y = (array.astype(np.float32) for array in problem("", ""))
    net = Network([11, 9, 3], backend="numpy", seed=0)
    rng = np.random.default_rng(1)
    engine = net.model.engine(planned(net, 7, 8, 9, 10))

    def member(i: int) -> Member:
        optimizer = [SGD(), Adam(), SGD(momentum=0.5)][i % 3]
        batch = 7 + i % 4
        rates = np.full(-(-len(X) // batch), 0.1 / (1 + i))
        slots = tuple(np.zeros(net.model.layout.length, np.float32) for _ in range(optimizer.slots))
        return Member(
            Parameters(net.model.layout, net.model.read(net.parameters)), slots, orders[i],
            Hyperparameters(batch, optimizer, optimizer.coefficients(rates, 0)),
        )  # fmt: skip

    orders = [rng.permutation(len(X)) for _ in range(9)]
    members = [member(i) for i in range(9)]
    done: list[int] = []
    costs = engine.run_members(members, X, Y, done.append)
    assert done == list(range(9))
    for i, (together, cost) in enumerate(zip(members, costs, strict=True)):
        alone = member(i)
        np.testing.assert_array_equal(
            engine.run_epoch(alone, X, Y),
            cost,
        )
        np.testing.assert_array_equal(alone.parameters.flat, together.parameters.flat)
        for expected, got in zip(alone.slots, together.slots, strict=True):
            np.testing.assert_array_equal(got, expected)
    engine.release()


def test_same_seed_same_bits() -> None:
    X, Y = problem("sigmoid", "quadratic")
    runs = [weights_after("resident", X, Y) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_diverging_cost_is_seen_and_the_weights_kept() -> None:
    X, Y = problem("identity", "quadratic")
    net = Network([11, 9, 3], activation="identity", backend="numpy", seed=0)
    before = net.weights
    with pytest.raises(FloatingPointError, match="epoch 1, batch"):
        net.fit(X, Y, epochs=3, batch_size=5, learning_rate=1e6, engine="resident")
    for got, expected in zip(net.weights, before, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_ctrl_c_is_heard_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = problem("sigmoid", "quadratic")
    net = Network([11, 9, 3], backend="numpy", seed=0)
    before = net.weights
    monkeypatch.setattr(planning, "steps_a_call", lambda *_: 1)
    train, calls = cpu.CpuLibrary.train, []

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        train(*arguments)

    monkeypatch.setattr(cpu.CpuLibrary, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, epochs=1, batch_size=10, learning_rate=0.1, engine="resident")
    for got, expected in zip(net.weights, before, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_where_a_call_ends_changes_no_bit(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights_after("resident", *problem("", ""), optimizer="adam", batch_size=7)
    monkeypatch.setattr(planning, "steps_a_call", lambda *_: steps)
    pieces = weights_after("resident", *problem("", ""), optimizer="adam", batch_size=7)
    for expected, got in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(got, expected)


def one_epoch_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "epochs_a_call", lambda *_: 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_epochs_at_once_change_nothing(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = problem("sigmoid", "quadratic")

    def trained() -> tuple[Any, ...]:
        net = Network([11, 9, 3], backend="numpy", seed=0)
        options: dict[str, Any] = {"batch_size": 32, "learning_rate": 0.02, "optimizer": optimizer}
        history = net.fit(X, Y, epochs=9, engine="resident", **options)
        assert len(history.seconds) == 9
        more = net.fit(X, Y, epochs=2, engine="resident", **options)  # the generator goes on
        return history.loss, more.loss, [w.tolist() for w in net.weights]

    calls, train = [], cpu.CpuLibrary.train
    monkeypatch.setattr(
        cpu.CpuLibrary, "train", lambda self, job: calls.append(1) or train(self, job)
    )
    together = trained()
    assert len(calls) == 2
    one_epoch_a_call(monkeypatch)
    assert trained() == together
    assert len(calls) == 13


@pytest.mark.parametrize("epoch", [1, 4])
@pytest.mark.parametrize("parameter", [False, True])
def test_what_goes_wrong_among_epochs_at_once(
    epoch: int, parameter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error, history, weights and generator are those of an epoch a call."""
    X, Y = problem("sigmoid", "quadratic")
    train, nets = cpu.CpuLibrary.train, []

    def breaks(self: cpu.CpuLibrary, job: cpu.AbiJob) -> None:
        """The last cost of an epoch, or a parameter after it, becomes NaN."""
        member, done = job.members[0], len(nets[-1].history)
        train(self, job)
        if done + member.epochs < epoch:
            return
        if parameter:
            ctypes.cast(member.p, ctypes.POINTER(ctypes.c_float))[0] = np.nan
        else:
            last = 3 * (epoch - done) - 1
            ctypes.cast(member.costs, ctypes.POINTER(ctypes.c_double))[last] = np.nan

    monkeypatch.setattr(cpu.CpuLibrary, "train", breaks)

    def failed() -> tuple[Any, ...]:
        net = Network([11, 9, 3], backend="numpy", seed=0)
        nets.append(net)
        options: dict[str, Any] = {"batch_size": 32, "learning_rate": 0.02, "optimizer": "adam"}
        with pytest.raises(FloatingPointError, match=f"epoch {epoch}, batch 3 of 3") as error:
            net.fit(X, Y, epochs=6, engine="resident", **options)
        assert net.history is not None
        assert len(net.history) == epoch - 1
        weights = [w.tolist() for w in net.weights]
        return str(error.value), net.history.loss, weights, net.generator.bit_generator.state

    together = failed()
    one_epoch_a_call(monkeypatch)
    assert failed() == together


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_train_to_the_bits_of_numbers(dtype: str) -> None:
    rng = np.random.default_rng(6)
    X, Y = rng.integers(0, 256, (70, 11), np.uint8), rng.uniform(0.1, 0.9, (70, 3))
    options: dict[str, Any] = {"dtype": dtype, "learning_rate": 1e-4}
    numbers = weights_after("resident", X.astype(dtype), Y, **options)
    for expected, got in zip(numbers, weights_after("resident", X, Y, **options), strict=True):
        np.testing.assert_array_equal(got, expected)


class EveryBatch(Callback):
    """Reads the network after every step, and halves a weight after the third."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def on_batch_end(self, network: Network, batch: int) -> None:
        self.seen.append(network.weights[0].copy())
        if batch == 2:
            network.parameters.weights[0][0, 0] /= 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_callback_after_every_batch_reads_and_writes(optimizer: str) -> None:
    X, Y = problem("sigmoid", "quadratic")
    seen = []
    for engine in ("layered", "resident"):
        hook, net = EveryBatch(), Network([11, 9, 3], backend="numpy", seed=0, dtype="float64")
        training: dict[str, Any] = {"epochs": 2, "batch_size": 10, "learning_rate": 0.01}
        net.fit(X, Y, engine=engine, optimizer=optimizer, callbacks=[hook], **training)
        assert net.plan.engine == engine
        seen.append(hook.seen)
    assert len(seen[0]) == len(seen[1]) == 14
    for expected, got in zip(*seen, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_the_choice_depends_on_the_shape_only() -> None:
    network, (X, Y) = Network([11, 3], backend="numpy"), problem("sigmoid", "quadratic")
    assert planning.choose_engine("auto", None)[0] == "resident"
    assert planning.choose_engine("auto", "there is none")[0] == "layered"
    with pytest.raises(ValueError, match="engine 'resident' cannot run this: there is none"):
        planning.choose_engine("resident", "there is none")
    training: dict[str, Any] = {"batch_size": 10, "learning_rate": 0.01}
    with pytest.raises(ValueError, match="unknown engine 'fast'; known: auto, layered, resident"):
        network.fit(X, Y, engine="fast", epochs=1, **training)
    for epochs in (1, 100):
        network.fit(X, Y, epochs=epochs, **training)
        assert network.plan.engine == "resident"
        assert cpu.library().description in network.plan.engine_reason


LEAKY = 0.3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_users_functions(dtype: str) -> None:
    mine = Activation(
        "mine",
        lambda z: np.where(z > 0, z, LEAKY * np.tanh(z)),
        lambda z: np.where(z > 0, 1.0, LEAKY * (1 - np.tanh(z) ** 2)),
    )
    square = Cost("square", lambda a, y: ((a - y) ** 2).sum(axis=1), lambda a, y: 2 * (a - y))
    mean = Cost(  # Numba compiles no mean along an axis: Python runs a cost
        "mean", lambda a, y: ((a - y) ** 2).mean(axis=1), lambda a, y: 2 * (a - y) / a.shape[1]
    )
    for activation, cost in (
        (mine, "quadratic"),
        (mine, square),
        ("tanh", mean),
        ([mine, "tanh", "softmax"], square),
        (["tanh", "gelu", "sigmoid"], square),
    ):
        X, Y = problem("sigmoid", "quadratic")
        assert_same_training(X, Y, dtype, activation=activation, cost=cost)


def test_names_in_a_users_function_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba takes them for constants."""
    mine = Activation("mine", lambda z: LEAKY * z, lambda z: LEAKY + 0 * z)
    X, Y = problem("sigmoid", "quadratic")
    for value in (0.3, 0.7):
        monkeypatch.setitem(globals(), "LEAKY", value)
        assert_same_training(X, Y, "float64", activation=mine)


@pytest.mark.parametrize("error", [ValueError("no such y"), KeyboardInterrupt()])
@pytest.mark.parametrize("epochs", [0, 2])
def test_what_a_users_cost_raises(error: BaseException, epochs: int) -> None:
    """In a thread of the library's, too: the training stops, with the weights of whole epochs."""
    calls: list[int] = []
    at = 7 * epochs + 4

    def gradient(a: Any, y: Any) -> Any:
        calls.append(threading.get_ident())
        if len(calls) == at:
            raise error
        return a - y

    mine = Cost("mine", lambda a, y: ((a - y) ** 2).sum(axis=1) / 2, gradient)
    X, Y = problem("sigmoid", "quadratic")
    net, whole = (Network([11, 9, 3], cost=mine, backend="numpy", seed=0) for _ in range(2))
    with pytest.raises(type(error)) as raised:
        net.fit(X, Y, epochs=9, batch_size=10, learning_rate=0.1, engine="resident")
    assert raised.value is error
    assert len(calls) == at
    if epochs:
        whole.fit(X, Y, epochs=epochs, batch_size=10, learning_rate=0.1, engine="resident")
    for now, then in zip(net.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(now, then)
    net.fit(X, Y, epochs=1, batch_size=10, learning_rate=0.1, engine="resident")


@pytest.mark.parametrize("returned", [np.zeros((4, 4)), "x", None])
def test_what_a_users_cost_returns_is_checked(returned: Any) -> None:
    mine = Cost("mine", lambda a, y: ((a - y) ** 2).sum(axis=1), lambda a, y: returned)
    X, Y = problem("sigmoid", "quadratic")
    net = Network([11, 3], cost=mine, backend="numpy", seed=0)
    messages = []
    for engine in ("layered", "resident"):
        with pytest.raises((ValueError, TypeError)) as raised:
            net.fit(X, Y, epochs=1, batch_size=10, learning_rate=0.1, engine=engine)
        messages.append((raised.type, str(raised.value)))
    assert messages[0][0] == messages[1][0], messages


def clipped(z: Any) -> Any:
    return np.array([min(max(one, 0), 1) for one in np.ravel(z)]).reshape(np.shape(z))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"activation": Activation("clipped", clipped, lambda z: 1.0 * (z > 0))},
            "activation 'clipped' is not built in, and Numba cannot compile it",
        ),
        (
            {"activation": Activation("odd", lambda z: z + np.int8(100) * np.int8(2), abs)},
            "activation 'odd' is not built in, and as Numba compiles it, it gives other numbers",
        ),
    ],
)
def test_what_it_cannot_run_is_refused_or_left_to_layered(
    options: dict[str, Any], why: str
) -> None:
    X, Y = problem("sigmoid", "quadratic")
    net = Network([11, 3], backend="numpy", seed=0, **options)
    before = net.weights
    training = {"epochs": 1, "batch_size": 10, "learning_rate": 0.01}
    with pytest.raises(ValueError, match=f"resident.*{why}"):
        net.fit(X, Y, engine="resident", **training)
    np.testing.assert_array_equal(net.weights[0], before[0])
    net.fit(X, Y, **training)
    assert net.plan.engine == "layered"
    assert why in net.plan.engine_reason


def test_without_numba_a_users_function_is_left_to_layered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    mine = Activation("mine", lambda z: 2 * z, lambda z: 2 + 0 * z)
    X, Y = problem("sigmoid", "quadratic")
    net = Network([11, 3], backend="numpy", activation=mine, seed=0)
    net.fit(X, Y, epochs=1, batch_size=10, learning_rate=0.01)
    assert "NUMBA_DISABLE_JIT is set" in net.plan.engine_reason
