"""Dropout: Philox's known answers, the same bits everywhere, and right gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backprop_gpu import Checkpoint, MLPClassifier, Network, Population, sweep, threads
from backprop_gpu.communicators import Communicator
from backprop_gpu.philox import Draws, factors, philox, scale, threshold
from reference import backpropagate
from small_training import ENGINES, data, network, skip_without

RATES = (0.5, 0.2)


FIT: dict[str, Any] = {"epochs": 3, "batch_size": 12, "learning_rate": 0.5, "dropout": RATES}


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)  # fmt: skip
def test_philoxs_known_answers(counter: Any, key: Any, answer: str) -> None:
    """Those of Random123, by its authors."""
    words = philox(tuple(np.array([word]) for word in counter), key)
    assert " ".join(f"{int(word[0]):08x}" for word in words) == answer


def test_shares_that_are_left_out() -> None:
    for rate in (0.1, 0.5, 0.9):
        found = factors(Draws((rate,), (7,)), 1, 0, 200, 501)
        assert set(np.unique(found)) == {0.0, scale(rate)}
        assert scale(rate) == pytest.approx(1.0 / (1.0 - rate), rel=1e-8)
        assert np.mean(found == 0.0) == pytest.approx(rate, abs=0.01)
        assert found.mean() == pytest.approx(1.0, abs=0.03)
    one = factors(Draws((0.5, 0.5), (7,)), 1, 0, 50, 40)
    others = [
        factors(Draws((0.5, 0.5), (8,)), 1, 0, 50, 40),
        factors(Draws((0.5, 0.5), (7,)), 2, 0, 50, 40),
        factors(Draws((0.5, 0.5), (7,)), 1, 1, 50, 40),
        factors(Draws((0.5, 0.5), (7 + 2**32,)), 1, 0, 50, 40),
    ]
    for other in others:
        assert np.mean(one == other) == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(factors(Draws((0.5,), (7,)), 1, 0, 20, 13, 30), one[30:, :13])
    assert threshold(0.0) == 0
    assert threshold(1 - 1e-12) == 2**32 - 1


@pytest.mark.parametrize(("backend_name", "engine", "dtype"), ENGINES)
def test_a_step_by_hand(backend_name: str, engine: str, dtype: str) -> None:
    """One step on all rows, its gradient from a network whose weights have the factors in them."""
    skip_without(backend_name)
    X, Y = data(9)
    net, right = network(backend_name, dtype), network()
    rng = np.random.default_rng(1)
    rng.bit_generator.state = net.generator.bit_generator.state
    net.fit(X, Y, epochs=1, batch_size=9, learning_rate=0.5, dropout=RATES, engine=engine)
    assert net.plan.engine == engine
    order = rng.permutation(9)
    dropout = Draws(RATES, (int(rng.integers(2**64, dtype=np.uint64)),))
    w = [x.astype(np.float64) for x in right.weights]
    b = [x.astype(np.float64) for x in right.biases]
    gradients = []
    for x, row in enumerate(order):
        kept = [factors(dropout, l, 0, 9, w[l - 1].shape[0])[x] for l in (1, 2)]
        thinned = [w[0], w[1] * kept[0], w[2] * kept[1]]
        names = ["sigmoid", "gelu", "softmax"]
        passed = backpropagate(thinned, b, names, "categorical_cross_entropy", X[[row]], Y[[row]])
        found = [pair[0] for pair in passed.gradients]
        gradients.append([found[0], found[1] * kept[0], found[2] * kept[1]])
    bound = 1e-13 if dtype == "float64" else 2e-6
    for l in range(3):
        mean = np.mean([each[l] for each in gradients], axis=0)
        np.testing.assert_allclose(net.weights[l], w[l] - 0.5 * mean, rtol=0, atol=bound)


@pytest.mark.parametrize(("backend_name", "engine", "dtype"), ENGINES)
def test_engines_leave_out_the_same(backend_name: str, engine: str, dtype: str) -> None:
    skip_without(backend_name)
    X, Y = data(33)
    one, other = network(backend_name, dtype), network()
    histories = [
        net.fit(X, Y, engine=kind, **FIT) for net, kind in ((one, engine), (other, "layered"))
    ]
    bound = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(histories[0].loss, histories[1].loss, rtol=bound)
    for a, b in zip((*one.weights, *one.biases), (*other.weights, *other.biases), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)
    plain = network()
    plain.fit(X, Y, **FIT | {"dropout": 0.0})
    assert not np.allclose(plain.weights[0], other.weights[0])


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_members_and_threads_change_no_bit(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = data(33)
    alone = [network(seed=seed) for seed in (1, 2, 3)]
    rates: list[Any] = [RATES, 0.3, 0.0]
    population = Population.from_networks(alone)
    population.fit(X, Y, engine=engine, **FIT | {"dropout": rates})
    monkeypatch.setattr(threads, "cores", lambda: 1)
    for net, rate, member in zip(alone, rates, population.members, strict=True):
        net.fit(X, Y, engine=engine, **FIT | {"dropout": rate})
        for a, b in zip(net.weights, member.weights, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_shards_leave_out_the_same(engine: str) -> None:
    X, Y = data(48)
    one, other = network(), network()
    one.fit(X, Y, engine=engine, communicator=Communicator(), **FIT)
    assert one.plan.shards > 1
    other.fit(X, Y, **FIT)
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_what_goes_on_from_a_checkpoint(tmp_path: Any) -> None:
    X, Y = data(33)
    path = tmp_path / "c.safetensors"
    whole, first, second = network(), network(), network(seed=5)
    whole.fit(X, Y, **FIT | {"epochs": 5})
    first.fit(X, Y, callbacks=[Checkpoint(path)], **FIT)
    with pytest.raises(ValueError, match="another dropout"):
        second.fit(X, Y, resume_from=path, **FIT | {"epochs": 5, "dropout": 0.5})
    second.fit(X, Y, resume_from=path, **FIT | {"epochs": 5})
    for a, b in zip(whole.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pieces_leave_out_the_same(tmp_path: Any) -> None:
    """Rows from a disk come in pieces, and a step is still that of its epoch."""
    X, Y = data(300)
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    one, other = network(), network()
    for net, rows in ((one, stored), (other, X)):
        net.fit(rows, Y, buffer_rows=60, engine="resident", **FIT)
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("rate", "kind", "message"),
    [
        (1.0, ValueError, r"dropout must be in \[0, 1\), got 1"),
        (-0.1, ValueError, r"dropout must be in \[0, 1\)"),
        (float("nan"), ValueError, "dropout must be"),
        ("half", TypeError, "dropout must be"),
        ((0.5,), ValueError, "one for each of 2 hidden layers"),
        ((0.5, 0.5, 0.5), ValueError, "one for each of 2 hidden layers"),
        ((0.5, 1.5), ValueError, r"dropout must be in \[0, 1\), got 1.5"),
    ],
)
def test_rates_that_are_none(rate: Any, kind: type[Exception], message: str) -> None:
    X, Y = data(33)
    with pytest.raises(kind, match=message):
        network().fit(X, Y, **FIT | {"dropout": rate})
    straight = Network([7, 3], activation="softmax", cost="categorical_cross_entropy")
    with pytest.raises(ValueError, match="needs a hidden layer"):
        straight.fit(X, Y, **FIT | {"dropout": 0.5})
    with pytest.raises(ValueError, match="2 values for 3 members"):
        Population([7, 5, 3], members=3, activation="sigmoid").fit(
            X, Y, **FIT | {"dropout": [0, 0]}
        )


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_an_estimator_and_a_sweep() -> None:
    X, Y = data(120)
    labels = Y.argmax(axis=1)
    settings: dict[str, Any] = {"max_iter": 4, "random_state": 0, "hidden_layer_sizes": (9, 8)}
    plain = MLPClassifier(**settings).fit(X, labels)
    found = [
        MLPClassifier(dropout=0.5, engine=engine, **settings).fit(X, labels)
        for engine in ("resident", "layered")
    ]
    assert "engine resident" in found[0].plan_
    np.testing.assert_allclose(found[0].coefs_[0], found[1].coefs_[0], rtol=1e-9, atol=1e-12)
    assert not np.allclose(plain.coefs_[0], found[0].coefs_[0])
    table = sweep(
        X, labels, grid={"dropout": [0.0, 0.5, (0.1, 0.2)]}, sizes=[7, 9, 8, 3], epochs=2,
        batch_size=20, learning_rate=0.1, backend="numpy", progress=False, seed=1,
    )  # fmt: skip
    assert len({row["loss"] for row in table.rows}) == 3
