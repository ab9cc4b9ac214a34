"""Averages of weights, and callbacks that hear of every few mini-batches."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from backprop_gpu import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ExponentialAverage,
    MLPClassifier,
    MLPRegressor,
    Network,
    Population,
    PopulationSearchCV,
    StochasticWeightAverage,
    sweep,
)
from backprop_gpu.communicators import Communicator
from machine import obstacle
from rank_threads import on_ranks
from small_training import ENGINES, data, flat, network

#: Eleven steps an epoch, the last of three rows.
FIT: dict[str, Any] = {
    "epochs": 3, "batch_size": 12, "learning_rate": 0.5, "optimizer": "adam", "dropout": 0.2,
}  # fmt: skip
STEPS = 11


class Hears(Callback):
    """Of every few batches, and of all weights then."""

    def __init__(self, interval: int = 1, ends: tuple[int, int] | None = None) -> None:
        self.interval, self.ends = interval, ends
        self.batches: list[int] = []
        self.weights: list[np.ndarray] = []
        self.epochs = 0

    def on_batch_end(self, network: Network, batch: int) -> None:
        self.batches.append(batch)
        self.weights.append(flat(network).astype(np.float64))
        if (self.epochs, batch) == self.ends:
            raise KeyboardInterrupt

    def on_epoch_end(self, network: Network, history: Any) -> None:
        self.epochs += 1

    def for_member(self, network: Network) -> Callback:
        return self


def exponential(start: np.ndarray, weights: list[np.ndarray], decay: float) -> np.ndarray:
    """The average of steps in order, of which each is averaged."""
    average = start.copy()
    for each in weights:
        average = decay * average + (1.0 - decay) * each
    return average


# -- intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "engine", "dtype"), ENGINES)
@pytest.mark.parametrize("intervals", [(4,), (4, 6), (11,), (50,)])
def test_intervals_change_no_bits(
    backend: str, engine: str, dtype: str, intervals: tuple[int, ...]
) -> None:
    if obstacle(backend) is not None:
        pytest.skip(f"backend {backend}: {obstacle(backend)}")
    X, Y = data(123)
    weights = np.random.default_rng(1).random(len(X))
    plain, watched = network(backend, dtype), network(backend, dtype)
    plain.fit(X, Y, engine=engine, sample_weight=weights, **FIT)
    hears = [Hears(interval) for interval in intervals]
    watched.fit(X, Y, engine=engine, sample_weight=weights, callbacks=hears, **FIT)
    assert watched.plan == plain.plan
    np.testing.assert_array_equal(flat(watched), flat(plain))
    assert watched.history.loss == plain.history.loss
    for each in hears:
        expected = [i for i in range(STEPS) if (i + 1) % each.interval == 0 or i == STEPS - 1]
        assert each.batches == expected * FIT["epochs"]
        np.testing.assert_array_equal(each.weights[-1], flat(plain))


def test_an_interval_beside_one_that_hears_of_every_batch() -> None:
    X, Y = data(123)
    each, some = Hears(), Hears(4)
    network().fit(X, Y, callbacks=[each, some], **FIT)
    assert each.batches == [*range(STEPS)] * 3
    assert some.batches == [3, 7, 10] * 3
    np.testing.assert_array_equal(some.weights[0], each.weights[3])


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_intervals_of_members_with_other_steps(engine: str) -> None:
    """Members have 11, 41 and 5 steps an epoch; each is as alone."""
    X, Y = data(123)
    alone = [network(seed=seed) for seed in (1, 2, 3)]
    population = Population.from_networks(alone)
    sizes, hears = [12, 3, 25], Hears(4)
    settings = FIT | {"dropout": [0.2, 0.0, 0.5], "engine": engine}
    population.fit(X, Y, callbacks=[hears], **settings | {"batch_size": sizes})
    assert hears.batches.count(3) == 9  # steps 4 of three members and epochs
    assert hears.batches.count(10) == hears.batches.count(40) == hears.batches.count(4) == 3
    for net, m, rate, member in zip(alone, sizes, settings["dropout"], population, strict=True):
        net.fit(X, Y, **settings | {"batch_size": m, "dropout": rate})
        np.testing.assert_array_equal(flat(net), flat(member))
        assert net.history.loss == member.history.loss


def test_intervals_of_rows_that_come_in_pieces(tmp_path: Any) -> None:
    X, Y = data(123)
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    plain, watched, hears = network(), network(), Hears(4)
    plain.fit(X, Y, buffer_rows=36, **FIT)
    watched.fit(stored, Y, buffer_rows=36, callbacks=[hears], **FIT)
    np.testing.assert_array_equal(flat(watched), flat(plain))
    assert hears.batches == [3, 7, 10] * 3

    chunks = [(X[:60], Y[:60]), (X[60:96], Y[60:96]), (X[96:], Y[96:])]  # 5, 3 and 3 steps
    plain, watched, hears = network(), network(), Hears(2)
    plain.fit(batches=chunks, **FIT)
    watched.fit(batches=chunks, callbacks=[hears], **FIT)
    np.testing.assert_array_equal(flat(watched), flat(plain))
    assert hears.batches == [1, 3, 5, 7, 9, 10] * 3


@pytest.mark.parametrize("interval", [0, -1, 2.0, "often"])
def test_intervals_that_are_none(interval: Any) -> None:
    X, Y = data(123)
    with pytest.raises((ValueError, TypeError), match="interval of callback"):
        network().fit(X, Y, callbacks=[Hears(interval)], **FIT)


# -- averages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "engine", "dtype"), ENGINES)
@pytest.mark.parametrize(("every", "start"), [(4, 0), (16, 1), (1, 0)])
def test_an_exponential_average_by_hand(
    backend: str, engine: str, dtype: str, every: int, start: int
) -> None:
    if obstacle(backend) is not None:
        pytest.skip(f"backend {backend}: {obstacle(backend)}")
    if every == 1 and backend == "cuda" and engine != "layered":
        pytest.skip("Python has to come between steps")
    X, Y = data(123)
    hears, net = Hears(every), network(backend, dtype)
    before = flat(net).astype(np.float64)
    average = ExponentialAverage(0.9, every=every, start=start)
    history = net.fit(X, Y, engine=engine, callbacks=[hears, average], **FIT)
    decays = [0.9**k for k in np.diff([-1, *hears.batches[: hears.batches.index(10) + 1]])]
    each_epoch = len(decays)
    if start:
        before = hears.weights[start * each_epoch - 1]
    expected = before.copy()
    for i, weights in enumerate(hears.weights[start * each_epoch :]):
        decay = decays[i % each_epoch]
        expected = decay * expected + (1.0 - decay) * weights
    bound = {"rtol": 1e-12, "atol": 1e-14} if dtype == "float64" else {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(flat(net), expected, **bound)
    assert history.averaged
    assert history.restored is None
    assert not np.allclose(flat(net), hears.weights[-1])


def test_every_step_is_the_textbooks() -> None:
    X, Y = data(123)
    hears, net = Hears(), network()
    before = flat(net)
    net.fit(X, Y, callbacks=[ExponentialAverage(0.95, every=1), hears], **FIT)
    expected = exponential(before, hears.weights, 0.95)
    np.testing.assert_allclose(flat(net), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("start", "every", "taken"), [(1, 1, [1, 2, 3, 4, 5]), (2, 2, [2, 4])])
def test_a_stochastic_weight_average_by_hand(start: int, every: int, taken: list[int]) -> None:
    X, Y = data(123)
    net, ends = network(), []
    history = net.fit(
        X, Y, **FIT | {"epochs": 5},
        callbacks=[StochasticWeightAverage(start, every=every), lambda n, h: ends.append(flat(n))],
    )  # fmt: skip
    expected = np.mean([ends[epoch - 1] for epoch in taken], axis=0)
    np.testing.assert_allclose(flat(net), expected, rtol=1e-13, atol=1e-15)
    assert history.averaged


def averages() -> list[Callback]:
    return [ExponentialAverage(0.9, every=4, start=1), StochasticWeightAverage(2)]


@pytest.mark.parametrize("kind", [0, 1])
def test_training_that_ends_early(kind: int) -> None:
    """By Ctrl-C, or an epoch that fails: the average is as of the last whole epoch."""
    X, Y = data(123)
    whole, cut, failed, short = (network() for _ in range(4))
    settings = FIT | {"epochs": 3, "learning_rate": 0.01}
    whole.fit(X, Y, callbacks=[averages()[kind]], **settings)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(
            X, Y, callbacks=[averages()[kind], Hears(2, ends=(3, 7))], **settings | {"epochs": 5}
        )
    np.testing.assert_array_equal(flat(cut), flat(whole))
    assert cut.history.averaged

    def diverges(t: np.ndarray) -> np.ndarray:
        return np.where(t < 3.4, 0.01, 1e300)

    with pytest.raises(FloatingPointError):
        failed.fit(
            X, Y, callbacks=[averages()[kind]],
            **settings | {"epochs": 5, "learning_rate": diverges},
        )  # fmt: skip
    np.testing.assert_array_equal(flat(failed), flat(whole))
    assert len(failed.history) == 3
    late = [ExponentialAverage(start=3), StochasticWeightAverage(3)][kind]
    history = short.fit(X, Y, callbacks=[late], **settings | {"epochs": 2})
    assert not history.averaged


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_averages_go_on_from_a_checkpoint(kind: int, epochs: int, tmp_path: Any) -> None:
    X, Y = data(123)
    path = tmp_path / "c"
    whole, first, second, over = (network(seed=seed) for seed in (1, 1, 2, 3))
    whole.fit(X, Y, callbacks=[averages()[kind]], **FIT | {"epochs": 5})
    first.fit(X, Y, callbacks=[averages()[kind], Checkpoint(path)], **FIT | {"epochs": epochs})
    hooks = [averages()[kind], Checkpoint(path)]
    history = second.fit(X, Y, callbacks=hooks, resume_from=path, **FIT | {"epochs": 5})
    np.testing.assert_array_equal(flat(second), flat(whole))
    assert history.averaged
    # The last file has the weights that train; it is over, and is left with the average again.
    assert not np.array_equal(flat(Network.load(path, backend="numpy")), flat(whole))
    over.fit(X, Y, callbacks=[averages()[kind]], resume_from=path, **FIT | {"epochs": 5})
    np.testing.assert_array_equal(flat(over), flat(whole))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("stop", [(1, 4), (1, 8), (2, 6), (2, 10)])
def test_averages_go_on_in_the_midst_of_an_epoch(
    kind: int, stop: tuple[int, int], tmp_path: Any
) -> None:
    """Buffers end at steps 3, 6 and 9, intervals at 4 and 8: what was averaged last is kept."""
    X, Y = data(123)
    path = tmp_path / "c"
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    whole, first, second, third = (network(seed=seed) for seed in (1, 1, 2, 3))
    settings = FIT | {"buffer_rows": 36}
    whole.fit(X, Y, callbacks=[averages()[kind]], **settings)
    often = Checkpoint(path, every=datetime.timedelta(microseconds=1))
    with pytest.raises(KeyboardInterrupt):
        first.fit(stored, Y, callbacks=[averages()[kind], Hears(1, stop), often], **settings)
    for net, rows in ((second, stored), (third, X)):
        net.fit(rows, Y, callbacks=[averages()[kind]], resume_from=path, **settings)
        np.testing.assert_array_equal(flat(net), flat(whole))


@pytest.mark.parametrize(
    "change",
    [
        {"average": np.zeros(3)},
        {"average": None},
        {"of_whole_epochs": "zero"},
        {"steps": -1},
    ],
)
def test_states_that_cannot_be(change: dict[str, Any]) -> None:
    net, average = network(), ExponentialAverage()
    average.on_fit_start(net)
    state = average.state_dict()
    average.on_resume(net, state)
    with pytest.raises((ValueError, TypeError)):
        average.on_resume(net, state | change)


@pytest.mark.parametrize("kind", [0, 1])
def test_members_have_averages_of_their_own(kind: int) -> None:
    X, Y = data(123)
    alone = [network(seed=seed) for seed in (1, 2)]
    population = Population.from_networks(alone)
    settings: dict[str, Any] = {"batch_size": [12, 30], "epochs": [3, 4]}
    population.fit(X, Y, callbacks=[averages()[kind]], **FIT | settings)
    for i, (net, member) in enumerate(zip(alone, population, strict=True)):
        own = {name: values[i] for name, values in settings.items()}
        net.fit(X, Y, callbacks=[averages()[kind]], **FIT | own)
        np.testing.assert_array_equal(flat(net), flat(member))
        assert member.history.averaged


def test_a_sweep_with_an_average() -> None:
    X, Y = data(123)
    shared: dict[str, Any] = {"sizes": [7, 5, 3], "batch_size": 12, "epochs": 3, "seed": 1}
    table = sweep(
        X, Y, grid={"learning_rate": [0.1, 0.5]}, callbacks=[StochasticWeightAverage(2)],
        progress=False, backend="numpy", **shared,
    )  # fmt: skip
    net = Network([7, 5, 3], seed=1, backend="numpy")
    net.fit(
        X, Y, epochs=3, batch_size=12, learning_rate=0.5, callbacks=[StochasticWeightAverage(2)]
    )
    np.testing.assert_array_equal(flat(table.networks[1]), flat(net))


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_shards_have_the_same_average(engine: str) -> None:
    X, Y = data(123)
    one, other = network(), network()
    for net, communicator in ((one, Communicator()), (other, "none")):
        net.fit(
            X, Y, engine=engine, communicator=communicator, callbacks=[ExponentialAverage(0.9)],
            **FIT,
        )  # fmt: skip
    assert one.plan.shards > 1
    np.testing.assert_allclose(flat(one), flat(other), rtol=0, atol=1e-11)


@pytest.mark.parametrize("stored", [False, True])
def test_ranks_have_the_same_average(stored: bool, tmp_path: Any) -> None:
    X, Y = data(123)
    np.save(tmp_path / "X.npy", X)
    rows = np.load(tmp_path / "X.npy", mmap_mode="r") if stored else X

    def train(communicator: Communicator) -> np.ndarray:
        net = network()
        net.fit(
            rows, Y, communicator=communicator, callbacks=[ExponentialAverage(0.9, every=4)],
            buffer_rows=36, **FIT,
        )  # fmt: skip
        return flat(net)

    alone = train(Communicator())
    for found in on_ranks(2, train):
        np.testing.assert_array_equal(found, alone)


def test_a_network_is_left_with_one_of_them() -> None:
    X, Y = data(123)
    best, average = EarlyStopping("loss"), ExponentialAverage()
    for callbacks in ([best, average], [StochasticWeightAverage(1), average], [average, average]):
        net = network()
        before = flat(net)
        with pytest.raises(ValueError, match=r"would each leave weights .*leave out all but one"):
            net.fit(X, Y, callbacks=callbacks, **FIT)
        np.testing.assert_array_equal(flat(net), before)
    stops = EarlyStopping("loss", restore_best=False)
    assert network().fit(X, Y, callbacks=[stops, average], **FIT).averaged
    network().fit(X, Y, callbacks=[best, EarlyStopping("loss")], **FIT)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: ExponentialAverage(1.0), ValueError, r"decay must be in \[0, 1\), got 1.0"),
        (lambda: ExponentialAverage("0.9"), TypeError, "decay must be a number"),
        (lambda: ExponentialAverage(every=0), ValueError, "every must be >= 1"),
        (lambda: ExponentialAverage(start=-1), ValueError, "start must be >= 0"),
        (lambda: StochasticWeightAverage(0), ValueError, "start must be >= 1"),
        (lambda: StochasticWeightAverage(0.75), TypeError, "start must be an integer"),
        (lambda: StochasticWeightAverage(1, every=0), ValueError, "every must be >= 1"),
    ],
)
def test_arguments_that_are_none(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


# -- estimators ---------------------------------------------------------------------------------

SHAPE: dict[str, Any] = {"hidden_layer_sizes": (9,), "random_state": 0, "batch_size": 12}


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_an_estimator_with_a_stochastic_weight_average() -> None:
    """The mean of what training for as many epochs gives, without it, of the last quarter."""
    X, Y = data(123)
    labels = Y.argmax(axis=1)
    found = MLPClassifier(weight_average="swa", max_iter=8, **SHAPE).fit(X, labels)
    ends = [MLPClassifier(max_iter=k, **SHAPE).fit(X, labels) for k in (7, 8)]
    for i in range(2):
        expected = np.mean([each.coefs_[i] for each in ends], axis=0)
        np.testing.assert_allclose(found.coefs_[i], expected, rtol=1e-12)
        expected = np.mean([each.intercepts_[i] for each in ends], axis=0)
        np.testing.assert_allclose(found.intercepts_[i], expected, rtol=1e-12)
    assert found.loss_curve_ == ends[1].loss_curve_


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_an_estimator_with_an_exponential_average(engine: str) -> None:
    """As the callback's, of a network that trains the same: in the order of one step an epoch."""
    X, Y = data(20)
    y = Y[:, 0]
    settings = SHAPE | {"solver": "sgd", "momentum": 0.0, "alpha": 0.0, "batch_size": 20}
    settings |= {"learning_rate_init": 0.1, "engine": engine}
    net = Network([7, 9, 1], activation=["relu", "identity"], backend="numpy", dtype="float64")
    start = MLPRegressor(max_iter=1, **settings | {"learning_rate_init": 1e-300}).fit(X, y)
    net.weights = [w.T for w in start.coefs_]
    net.biases = start.intercepts_
    found = MLPRegressor(max_iter=30, weight_average="ema", **settings).fit(X, y)
    net.fit(
        X, y, epochs=30, batch_size=20, learning_rate=0.1, callbacks=[ExponentialAverage()],
    )  # fmt: skip
    np.testing.assert_allclose(found.coefs_[0], net.weights[0].T, rtol=1e-9)
    plain = MLPRegressor(max_iter=30, **settings).fit(X, y)
    assert found.loss_curve_ == plain.loss_curve_
    assert not np.allclose(found.coefs_[0], plain.coefs_[0], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_a_search_averages_as_each_fit_alone() -> None:
    X, Y = data(240)
    labels = Y.argmax(axis=1)
    net = MLPClassifier(max_iter=4, **SHAPE | {"batch_size": 7})
    grid = {"weight_average": [None, "ema", "swa"], "alpha": [1e-4, 1e-2]}
    ours = PopulationSearchCV(net, grid, cv=2).fit(X, labels)
    theirs = GridSearchCV(net, grid, cv=2).fit(X, labels)
    name = "split0_test_score"
    np.testing.assert_array_equal(ours.cv_results_[name], theirs.cv_results_[name])
    np.testing.assert_array_equal(ours.best_estimator_.coefs_[0], theirs.best_estimator_.coefs_[0])


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_an_estimators_average_that_cannot_be() -> None:
    X, Y = data(20)
    y = Y[:, 0]
    for wrong, message in (
        ({"solver": "lbfgs"}, "has no epochs"),
        ({"early_stopping": True}, "early_stopping leaves"),
        ({"weight_average": "mean"}, "must be None or a str among"),
    ):
        with pytest.raises(ValueError, match=message):
            MLPRegressor(**{"weight_average": "ema"} | wrong).fit(X, y)
    with pytest.raises(ValueError, match="partial_fit is one epoch"):
        MLPRegressor(weight_average="ema").partial_fit(X, y)
    with pytest.warns(UserWarning, match="epochs from 31 on, and training ended after"):
        MLPRegressor(weight_average="swa", max_iter=40, tol=10.0).fit(X, y)
