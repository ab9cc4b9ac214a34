"""mixup: by hand, the same bits everywhere, and what cannot be mixed."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.model_selection import GridSearchCV

from backprop_gpu import (
    Callback,
    Checkpoint,
    ExponentialAverage,
    MLPClassifier,
    MLPRegressor,
    Network,
    Population,
    PopulationSearchCV,
    planning,
    sweep,
    threads,
)
from backprop_gpu.communicators import Communicator
from backprop_gpu.planning import plan as planner
from backprop_gpu.training.mixing import mixed, partners
from rank_threads import on_ranks
from reference import backpropagate
from small_training import ENGINES, SIGMAS, data, flat, network, skip_without

#: Four steps an epoch, the last of five rows.
FIT: dict[str, Any] = {"epochs": 3, "batch_size": 12, "learning_rate": 0.5, "mixup": 0.4}


@pytest.fixture(params=[0, 12, 30])
def room(request: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of the buffer: 0 for as many as there are by default."""
    if request.param:
        for name in ("MIXED_BYTES", "MIXED_BYTES_ON_DEVICE"):
            monkeypatch.setattr(planner, name, 10 * 8 * request.param)
    return request.param


def by_hand(
    net: Network, X: np.ndarray, Y: np.ndarray, weights: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> tuple[list[np.ndarray], list[float]]:  # fmt: skip
    """SGD over mixtures, row by row: (w and b of each layer, the loss of every epoch)."""
    rng = np.random.default_rng()
    rng.bit_generator.state = net.generator.bit_generator.state
    w = [x.astype(np.float64) for x in net.weights]
    b = [x.astype(np.float64) for x in net.biases]
    m, alpha, losses = FIT["batch_size"], FIT["mixup"], []
    n = len(X) if rows is None else len(rows)
    for _ in range(FIT["epochs"]):
        order = rng.permutation(n)
        order = order if rows is None else rows[order]
        shares = rng.beta(alpha, alpha, -(-n // m))
        of_epoch, total = 0.0, 0.0
        for step, share in enumerate(shares):
            batch = order[step * m : (step + 1) * m]
            found, sum_of_weights = [0.0] * (2 * len(w)), 0.0
            for k, i in enumerate(batch):
                j = batch[(k + 1) % len(batch)]
                x, y = (share * A[[i]] + (1 - share) * A[[j]] for A in (X, Y))
                one = 1.0 if weights is None else share * weights[i] + (1 - share) * weights[j]
                passed = backpropagate(w, b, SIGMAS, "categorical_cross_entropy", x, y)
                gradients = [g for pair in passed.gradients for g in pair]
                found = [f + one * g for f, g in zip(found, gradients, strict=True)]
                of_epoch += one * passed.cost
                sum_of_weights += one
            total += sum_of_weights
            for l in range(len(w)):
                w[l] = w[l] - FIT["learning_rate"] * found[2 * l] / sum_of_weights
                b[l] = b[l] - FIT["learning_rate"] * found[2 * l + 1] / sum_of_weights
        losses.append(of_epoch / total)
    return [*w, *b], losses


def test_partners() -> None:
    np.testing.assert_array_equal(partners(8, 3), [1, 2, 0, 4, 5, 3, 7, 6])
    np.testing.assert_array_equal(partners(7, 3), [1, 2, 0, 4, 5, 3, 6])  # alone: its own
    np.testing.assert_array_equal(partners(2, 3), [1, 0])
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    np.testing.assert_array_equal(
        mixed(values, np.array([0.5, 1.0, 0.25]), 2), [1.5, 1.5, 4, 8, 16]
    )


@pytest.mark.parametrize(("backend", "engine", "dtype"), ENGINES)
@pytest.mark.parametrize("weighted", [False, True])
def test_by_hand(backend: str, engine: str, dtype: str, weighted: bool, room: int) -> None:
    skip_without(backend)
    X, Y = data(41)
    weights = np.random.default_rng(2).random(len(X)) if weighted else None
    net = network(backend, dtype)
    expected, losses = by_hand(net, X, Y, weights)
    history = net.fit(X, Y, engine=engine, sample_weight=weights, **FIT)
    assert net.plan.engine == engine
    bound = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(history.loss, losses, rtol=bound)
    for found, right in zip((*net.weights, *net.biases), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=0, atol=bound)


@pytest.mark.parametrize(("backend", "engine", "dtype"), ENGINES)
def test_bytes_are_their_numbers(backend: str, engine: str, dtype: str) -> None:
    skip_without(backend)
    X, Y = data(41)
    X = np.random.default_rng(3).integers(0, 3, X.shape, np.uint8)
    one, other, plain = (network(backend, dtype) for _ in range(3))
    one.fit(X, Y, engine=engine, **FIT)
    other.fit(X.astype(dtype), Y, engine=engine, **FIT)
    np.testing.assert_array_equal(flat(one), flat(other))
    # Two that mix and one that does not; then the latter alone.
    members = Population.from_networks([network(backend, dtype) for _ in range(3)])
    members.fit(X, Y, engine=engine, **FIT | {"mixup": [0.4, 0.0, 0.4], "epochs": [3, 4, 3]})
    plain.fit(X, Y, engine=engine, **FIT | {"mixup": 0.0, "epochs": 4})
    for member, alone in zip(members, (one, plain, one), strict=True):
        np.testing.assert_array_equal(flat(member), flat(alone))


def test_without_it_nothing_is_drawn() -> None:
    X, Y = data(41)
    plain, none = network(), network()
    plain.fit(X, Y, epochs=3, batch_size=12, learning_rate=0.5)
    none.fit(X, Y, **FIT | {"mixup": 0})
    np.testing.assert_array_equal(flat(plain), flat(none))
    assert plain.generator.bit_generator.state == none.generator.bit_generator.state


@pytest.mark.parametrize(
    ("backend", "engine"),
    [
        ("numpy", "layered"),
        ("numpy", "resident"),
        pytest.param("cuda", "resident", marks=pytest.mark.gpu),
        pytest.param("cuda", "fused", marks=pytest.mark.gpu),
    ],
)
def test_members_and_threads_change_no_bit(
    backend: str, engine: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their batches, and whether they mix; each with its dropout."""
    skip_without(backend)
    X, Y = data(41)
    alone = [network(backend, "float32", seed) for seed in (1, 2, 3, 4)]
    own: dict[str, list[Any]] = {
        "mixup": [0.4, 0.0, 1.0, 0.2], "batch_size": [12, 12, 5, 12], "epochs": [3, 3, 3, 2],
        "dropout": [0.2, 0.5, 0.0, 0.0],
    }  # fmt: skip
    monkeypatch.setattr(threads, "cores", lambda: 2)
    population = Population.from_networks(alone)
    callbacks = [ExponentialAverage(0.9, every=2)]
    population.fit(X, Y, engine=engine, callbacks=callbacks, **FIT | own)
    monkeypatch.setattr(threads, "cores", lambda: 1)
    for i, (net, member) in enumerate(zip(alone, population.members, strict=True)):
        settings = FIT | {name: values[i] for name, values in own.items()}
        history = net.fit(X, Y, engine=engine, callbacks=callbacks, **settings)
        np.testing.assert_array_equal(flat(net), flat(member))
        assert history.loss == member.history.loss


def test_members_mix_with_rows_of_their_own() -> None:
    """Rows that a member does not train on are NaN, where any mixture would show it."""
    X, Y = data(41)
    rows = [np.arange(20), np.arange(20, 41)]
    population = Population.from_networks([network(seed=seed) for seed in (1, 2)])
    expected = [by_hand(net, X, Y, rows=own)[0] for net, own in zip(population, rows, strict=True)]
    population.fit(X, Y, rows=rows, **FIT)
    for member, right in zip(population, expected, strict=True):
        for found, each in zip((*member.weights, *member.biases), right, strict=True):
            np.testing.assert_allclose(found, each, rtol=0, atol=1e-12)


def test_missing_targets() -> None:
    """A mixture with one that is missing is missing: of all rows but one nothing is left."""
    X = np.array([[1.0], [2.0], [3.0]])
    Y = np.array([[1.0], [np.nan], [2.0]])
    net = Network([1, 1], activation="identity", seed=1, backend="numpy", dtype="float64")
    rng = np.random.default_rng()
    rng.bit_generator.state = net.generator.bit_generator.state
    order, share = rng.permutation(3), rng.beta(0.4, 0.4, 1)[0]
    w, b = net.weights[0][0, 0], net.biases[0][0]
    net.fit(X, Y, epochs=1, batch_size=3, learning_rate=0.1, mixup=0.4)
    place = list(order)
    pairs = [(i, place[(k + 1) % 3]) for k, i in enumerate(place)]
    ((i, j),) = [pair for pair in pairs if 1 not in pair]
    x, y = share * X[i, 0] + (1 - share) * X[j, 0], share * Y[i, 0] + (1 - share) * Y[j, 0]
    assert net.weights[0][0, 0] == pytest.approx(w - 0.1 * (w * x + b - y) * x / 3, rel=1e-12)


@pytest.mark.parametrize("buffer", [24, 100])
def test_rows_from_a_disk(buffer: int, tmp_path: Any) -> None:
    X, Y = data(90)
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")

    def train(rows: Any, communicator: Any = "none", engine: str = "resident") -> np.ndarray:
        net = network()
        net.fit(rows, Y, buffer_rows=buffer, communicator=communicator, engine=engine, **FIT)
        return flat(net)

    np.testing.assert_array_equal(train(stored), train(X))
    for engine in ("layered", "resident"):
        alone = train(X, Communicator(), engine)
        np.testing.assert_allclose(alone, train(X), rtol=0, atol=1e-12)
        for rows in (stored, X):
            for found in on_ranks(2, lambda ranks, r=rows, e=engine: train(r, ranks, e)):
                np.testing.assert_array_equal(found, alone)


def test_rows_that_come_in_chunks() -> None:
    X, Y = data(41)
    one, other = network(), network()
    one.fit(batches=[(X, Y)], **FIT)
    other.fit(X, Y, **FIT)
    np.testing.assert_array_equal(flat(one), flat(other))
    several = network()
    several.fit(batches=[(X[:20], Y[:20]), (X[20:], Y[20:])], **FIT)
    assert np.isfinite(flat(several)).all()
    assert not np.array_equal(flat(several), flat(one))


class Stops(Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        self.stop, self.epoch = (epoch, batch), 0

    def on_batch_end(self, network: Network, batch: int) -> None:
        if (self.epoch, batch) == self.stop:
            raise KeyboardInterrupt

    def on_epoch_end(self, network: Network, history: Any) -> None:
        self.epoch += 1


def test_what_goes_on_from_a_checkpoint(tmp_path: Any, room: int) -> None:
    X, Y = data(41)
    path = tmp_path / "c"
    whole, first, second, third = (network(seed=seed) for seed in (1, 1, 5, 6))
    whole.fit(X, Y, **FIT | {"epochs": 5})
    first.fit(X, Y, callbacks=[Checkpoint(path)], **FIT)
    with pytest.raises(ValueError, match=r"another mixup: the checkpoint has 0\.4, fit 0\.5"):
        second.fit(X, Y, resume_from=path, **FIT | {"epochs": 5, "mixup": 0.5})
    second.fit(X, Y, resume_from=path, **FIT | {"epochs": 5})
    np.testing.assert_array_equal(flat(second), flat(whole))

    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    often = Checkpoint(path, every=datetime.timedelta(microseconds=1))
    settings = FIT | {"buffer_rows": 24, "epochs": 5}
    whole, first = network(), network()
    whole.fit(X, Y, **settings)
    with pytest.raises(KeyboardInterrupt):
        first.fit(stored, Y, callbacks=[often, Stops(1, 3)], **settings)
    third.fit(stored, Y, resume_from=path, **settings)
    np.testing.assert_array_equal(flat(third), flat(whole))


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (-0.1, ValueError, r"mixup must be finite and >= 0, got -0\.1"),
        (float("nan"), ValueError, "mixup must be finite"),
        (float("inf"), ValueError, "mixup must be finite"),
        ("some", TypeError, "mixup must be a number, got 'some'"),
        (True, TypeError, "mixup must be a number"),
    ],
)
def test_shares_that_are_none(value: Any, kind: type[Exception], message: str) -> None:
    X, Y = data(41)
    net = network()
    before = flat(net)
    with pytest.raises(kind, match=message):
        net.fit(X, Y, **FIT | {"mixup": value})
    with pytest.raises(kind, match=message):
        net.fit(batches=[(X, Y)], **FIT | {"mixup": value})
    np.testing.assert_array_equal(flat(net), before)
    with pytest.raises(kind, match=rf"mixup\[1\]: {message}"):
        Population.from_networks([net, net]).fit(X, Y, **FIT | {"mixup": [0.1, value]})


def test_what_cannot_be_mixed() -> None:
    X, Y = data(41)
    for cost in ("hinge", "squared_hinge"):
        net = Network([7, 1], activation="identity", cost=cost, backend="numpy")
        with pytest.raises(ValueError, match=rf"mixup=0\.4: targets of cost '{cost}' cannot be"):
            net.fit(X, (Y[:, :1] > 0.3), **FIT)
        with pytest.raises(ValueError, match="cannot be mixed"):
            sweep(
                X, (Y[:, :1] > 0.3), grid={"mixup": [0.0, 0.4]}, sizes=[7, 1], cost=cost,
                activation="identity", epochs=1, batch_size=9, learning_rate=0.1, progress=False,
            )  # fmt: skip
        net.fit(X, (Y[:, :1] > 0.3), **FIT | {"mixup": 0.0})
    with pytest.raises(ValueError, match="mixup has 2 values for 3 members"):
        Population([7, 5, 3], members=3, activation="sigmoid").fit(
            X, Y, **FIT | {"mixup": [0.1, 0.2]}
        )


def test_a_sweep() -> None:
    X, Y = data(41)
    table = sweep(
        X, Y, grid={"mixup": [0.0, 0.2, 1.0]}, sizes=[7, 5, 3], epochs=2, batch_size=20,
        learning_rate=0.1, backend="numpy", progress=False, seed=1,
    )  # fmt: skip
    assert len({row["loss"] for row in table.rows}) == 3
    net = Network([7, 5, 3], seed=1, backend="numpy")
    net.fit(X, Y, epochs=2, batch_size=20, learning_rate=0.1, mixup=0.2)
    np.testing.assert_array_equal(flat(table.networks[1]), flat(net))


def test_trials() -> None:
    optuna = pytest.importorskip("optuna", reason="Optuna is not installed")
    X, Y = data(41)
    table = sweep(
        X, Y, grid={"mixup": optuna.distributions.FloatDistribution(0.1, 1.0)}, trials=2,
        sizes=[7, 5, 3], epochs=2, batch_size=20, learning_rate=0.1, backend="numpy",
        progress=False, seed=1, metric="loss",
    )  # fmt: skip
    for row, network_of_row in zip(table.rows, table.networks, strict=True):
        net = Network([7, 5, 3], seed=1, backend="numpy")
        net.fit(X, Y, epochs=2, batch_size=20, learning_rate=0.1, mixup=row["mixup"])
        np.testing.assert_array_equal(flat(network_of_row), flat(net))


def test_rows_at_once() -> None:
    assert planning.rows_mixed_at_once(1 << 10, on_device=False) == 1 << 12
    assert planning.rows_mixed_at_once(1 << 40, on_device=True) == 1


# -- estimators ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_a_regressor_by_hand(engine: str, loss: str) -> None:
    """An epoch of steps by sgd: what is drawn, and the loss, weighted, without its penalty."""
    X, Y = data(41)
    y, weights = 3 * Y[:, 0], np.random.default_rng(4).random(len(X))
    settings: dict[str, Any] = {
        "loss": loss, "hidden_layer_sizes": (), "solver": "sgd", "momentum": 0.0, "alpha": 0.0,
        "batch_size": 12, "learning_rate_init": 0.1, "max_iter": 1, "engine": engine,
    }  # fmt: skip
    rng = np.random.RandomState(5)
    net = MLPRegressor(mixup=0.4, random_state=5, **settings).fit(X, y, weights)
    bound = np.sqrt(6.0 / 8)
    w, b = rng.uniform(-bound, bound, (7, 1)), rng.uniform(-bound, bound, 1)
    order = np.arange(41)
    rng.shuffle(order)
    shares, total = rng.beta(0.4, 0.4, 4), 0.0
    for step, share in enumerate(shares):
        batch = order[12 * step : 12 * (step + 1)]
        x, t, v = (
            share * A[batch] + (1 - share) * A[np.roll(batch, -1)] for A in (X, y[:, None], weights)
        )
        z = x @ w + b
        a = np.exp(z) if loss == "poisson" else z
        v = v / v.mean()
        each = a - t + t * np.log(t / a) if loss == "poisson" else 0.5 * (a - t) ** 2
        total += v @ each[:, 0]
        delta = v[:, None] * (a - t) / len(batch)
        w, b = w - 0.1 * x.T @ delta, b - 0.1 * delta.sum()
    np.testing.assert_allclose(net.coefs_[0], w, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(net.intercepts_[0], b, rtol=1e-12)
    assert net.loss_ == pytest.approx(total / 41, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_a_search_mixes_as_each_fit_alone() -> None:
    X, Y = data(240)
    labels = Y.argmax(axis=1)
    net = MLPClassifier((9,), max_iter=3, random_state=0, batch_size=7)
    grid = {"mixup": [0.0, 0.3], "dropout": [0.0, 0.2]}
    ours = PopulationSearchCV(net, grid, cv=2).fit(X, labels)
    theirs = GridSearchCV(net, grid, cv=2).fit(X, labels)
    name = "split0_test_score"
    np.testing.assert_array_equal(ours.cv_results_[name], theirs.cv_results_[name])
    np.testing.assert_array_equal(ours.best_estimator_.coefs_[0], theirs.best_estimator_.coefs_[0])


def test_what_an_estimator_cannot_mix() -> None:
    X, Y = data(41)
    y = Y[:, 0]
    with pytest.raises(ValueError, match="solver 'lbfgs' has no steps"):
        MLPRegressor(mixup=0.2, solver="lbfgs").fit(X, y)
    with pytest.raises(ValueError, match=r"mixup=0\.2 needs a dense X"):
        MLPRegressor(mixup=0.2).fit(scipy.sparse.csr_matrix(X), y)
    with pytest.raises(ValueError, match="The 'mixup' parameter"):
        MLPRegressor(mixup=-1.0).fit(X, y)
