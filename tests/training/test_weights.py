"""`sample_weight` and `class_weight`: a row of weight 2 is two rows, one of weight 0 is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backprop_gpu import Network, Population, sweep
from backprop_gpu.optimizers import SGD, Adam
from backprop_gpu.training.weights import relative_weights
from machine import obstacle

ENGINES = [
    ("numpy", "layered", "float64"),
    ("numpy", "resident", "float64"),
    pytest.param("numba_cuda", "layered", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "layered", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "resident", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "fused", "float32", marks=pytest.mark.gpu),
    pytest.param("cuda", "persistent", "float32", marks=pytest.mark.gpu),
]
RULES = {
    "sgd": SGD(l2=0.1),
    "momentum": SGD(momentum=0.5, l1=0.01, clip_norm=0.05),
    "adam": Adam(epsilon=1e-3, clip_value=0.01),
}
PAIRS = [
    ("sigmoid", "binary_cross_entropy"),
    ("softmax", "categorical_cross_entropy"),
    ("identity", "gaussian_nll"),
    ("softmax", "cosine"),
    ("identity", "huber"),
]


def skip_without(backend: str) -> None:
    if obstacle(backend) is not None:
        pytest.skip(f"backend {backend}: {obstacle(backend)}")


def data(rows: int = 19, cost: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, Y and weights of 0, 1, 2 and 3."""
    rng = np.random.default_rng(rows)
    Y = rng.dirichlet(np.ones(4), rows)
    Y = Y[:, :2] if cost == "gaussian_nll" else Y
    return rng.standard_normal((rows, 5)), Y, rng.permutation(np.arange(rows) % 4)


def network(backend: str, dtype: str, sigma: str, cost: str, seed: int = 3) -> Network:
    return Network(
        [5, 6, 4], activation=["tanh", sigma], cost=cost, dtype=dtype, backend=backend, seed=seed
    )


def assert_alike(one: Network, other: Network) -> None:
    bound = 1e-12 if one.dtype == np.float64 else 2e-5
    for a, b in zip((*one.weights, *one.biases), (*other.weights, *other.biases), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * max(1.0, np.abs(b).max()))
    assert one.history is not None
    assert other.history is not None
    np.testing.assert_allclose(one.history.loss, other.history.loss, rtol=bound)


@pytest.mark.parametrize(("backend_name", "engine", "dtype"), ENGINES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("sigma", "cost"), PAIRS)
def test_weights_are_rows(
    backend_name: str, engine: str, dtype: str, rule: str, sigma: str, cost: str
) -> None:
    skip_without(backend_name)
    optimizer = RULES[rule]
    if optimizer.clip_norm and engine in ("fused", "persistent", "resident") and (
        backend_name == "cuda"
    ):  # fmt: skip
        optimizer = SGD(momentum=0.5, l1=0.01)
    X, Y, weights = data(cost=cost)
    repeated = np.repeat(np.arange(len(X)), weights)
    settings: dict[str, Any] = {"epochs": 4, "learning_rate": 0.1, "optimizer": optimizer}
    one, other = (network(backend_name, dtype, sigma, cost) for _ in range(2))
    one.fit(X, Y, batch_size=len(X), sample_weight=weights, engine=engine, **settings)
    other.fit(X[repeated], Y[repeated], batch_size=len(repeated), engine=engine, **settings)
    assert one.plan.engine == engine
    assert_alike(one, other)


@pytest.mark.parametrize(("backend_name", "engine", "dtype"), ENGINES)
def test_mini_batches_are_weighted_means(backend_name: str, engine: str, dtype: str) -> None:
    """Of each mini-batch, the short last one included, as written by hand."""
    skip_without(backend_name)
    X, Y, weights = data()
    weights = weights + 0.25
    one, by_hand = (network(backend_name, dtype, *PAIRS[1]) for _ in range(2))
    order = np.random.default_rng(3)
    by_hand.generator.bit_generator.state = order.bit_generator.state
    one.generator.bit_generator.state = order.bit_generator.state
    one.fit(X, Y, epochs=2, batch_size=8, learning_rate=0.3, sample_weight=weights, engine=engine)
    w, b = ([np.array(x, np.float64) for x in xs] for xs in (by_hand.weights, by_hand.biases))
    losses = []
    for _ in range(2):
        rows, total = order.permutation(19), 0.0
        for begin in (0, 8, 16):
            of = rows[begin : begin + 8]
            s = weights[of] / weights[of].sum()
            a1 = np.tanh(X[of] @ w[0].T + b[0])
            z = a1 @ w[1].T + b[1]
            a2 = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            total += weights[of].sum() * float(s @ -(Y[of] * np.log(a2)).sum(axis=1))
            d2 = (a2 - Y[of]) * s[:, None]
            d1 = (d2 @ w[1]) * (1 - a1**2)
            for l, (delta, a) in enumerate(((d1, X[of]), (d2, a1))):
                w[l] -= 0.3 * delta.T @ a
                b[l] -= 0.3 * delta.sum(axis=0)
        losses.append(total / weights.sum())
    bound = 1e-12 if dtype == "float64" else 1e-5
    for mine, right in zip((*one.weights, *one.biases), (*w, *b), strict=True):
        np.testing.assert_allclose(mine, right, rtol=0, atol=bound * np.abs(right).max())
    assert one.history is not None
    np.testing.assert_allclose(one.history.loss, losses, rtol=bound)


def test_reading_by_weights(backend: str) -> None:
    X, Y, weights = data()
    repeated = np.repeat(np.arange(len(X)), weights)
    net = network(backend, "float64", *PAIRS[1])
    assert net.loss(X, Y, weights) == pytest.approx(net.loss(X[repeated], Y[repeated]), rel=1e-13)
    found, right = net.gradients(X, Y, weights), net.gradients(X[repeated], Y[repeated])
    for pair, other in zip(found, right, strict=True):
        for mine, theirs in zip(pair, other, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-15)
    labels = Y.argmax(axis=1)
    hits = net.accuracy(X[repeated], labels[repeated])
    assert net.accuracy(X, labels, weights) == pytest.approx(hits, rel=1e-15)
    both = Population.from_networks([net, network(backend, "float64", *PAIRS[1], seed=4)])
    assert both.loss(X, Y, weights)[0] == pytest.approx(net.loss(X, Y, weights), rel=1e-13)
    assert both.accuracy(X, labels, weights)[0] == pytest.approx(hits, rel=1e-13)


@pytest.mark.parametrize(("backend_name", "engine", "dtype"), ENGINES)
def test_members_are_networks(backend_name: str, engine: str, dtype: str) -> None:
    skip_without(backend_name)
    X, Y, weights = data()
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 0.2}
    alone = [network(backend_name, dtype, *PAIRS[1], seed=seed) for seed in (1, 2, 3)]
    population = Population.from_networks(alone)
    population.fit(X, Y, sample_weight=weights, engine=engine, **settings)
    for net, member in zip(alone, population.members, strict=True):
        net.fit(X, Y, sample_weight=weights, engine=engine, **settings)
        assert_alike(member, net)


def test_rows_of_weight_1_change_nothing() -> None:
    X, Y, _ = data()
    one, other = (network("numpy", "float64", *PAIRS[1]) for _ in range(2))
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 0.2}
    one.fit(X, Y, sample_weight=np.full(19, 7.5), **settings)
    other.fit(X, Y, **settings)
    assert_alike(one, other)


def test_a_mini_batch_without_weight_is_no_step() -> None:
    X, Y, _ = data()
    net = network("numpy", "float64", *PAIRS[1])
    before = [w.copy() for w in net.weights]
    history = net.fit(
        X, Y, epochs=1, batch_size=1, learning_rate=0.2, sample_weight=np.arange(19) == 4
    )
    assert np.isfinite(history.loss).all()
    assert history.loss[0] == pytest.approx(
        Network.loss(_copy(net, before), X[4:5], Y[4:5]), rel=1e-12
    )


def _copy(net: Network, weights: list[np.ndarray]) -> Network:
    other = network("numpy", "float64", *PAIRS[1])
    other.weights, other.biases = weights, [np.zeros_like(b) for b in net.biases]
    other.biases = network("numpy", "float64", *PAIRS[1]).biases
    return other


def test_shards_are_weighted(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y, weights = data(48)
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 20, "learning_rate": 0.2}
    from backprop_gpu.communicators import Communicator

    nets = [network("numpy", "float64", *PAIRS[1]) for _ in range(3)]
    nets[0].fit(X, Y, sample_weight=weights, **settings)
    for net, engine in zip(nets[1:], ("resident", "layered"), strict=True):
        net.fit(X, Y, sample_weight=weights, engine=engine, communicator=Communicator(), **settings)
        assert net.plan.shards > 1
        assert_alike(net, nets[0])


def test_rows_on_a_disk_have_weights(tmp_path: Any) -> None:
    X, Y, weights = data(400)
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 20, "learning_rate": 0.2}
    nets = [network("numpy", "float64", *PAIRS[1]) for _ in range(2)]
    nets[0].fit(stored, Y, sample_weight=weights, buffer_rows=100, **settings)
    nets[1].fit(X, Y, sample_weight=weights, buffer_rows=100, **settings)
    assert_alike(*nets)
    with pytest.raises(ValueError, match="class_weight needs a Y in memory"):
        nets[0].fit(stored, Y, class_weight="balanced", buffer_rows=100, **settings)


def test_class_weights() -> None:
    X, Y, weights = data(40)
    labels = np.minimum(Y.argmax(axis=1), 2) * (np.arange(40) % 3 > 0)
    counts = np.bincount(labels, minlength=3)
    nets = [network("numpy", "float64", *PAIRS[1]) for _ in range(4)]
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 9, "learning_rate": 0.2}
    nets[0].fit(X, labels, class_weight="balanced", **settings)
    nets[1].fit(X, labels, sample_weight=(40 / (3 * counts))[labels], **settings)
    assert_alike(*nets[:2])
    nets[2].fit(X, labels, class_weight={1: 3.0, 2: 0.5}, sample_weight=weights, **settings)
    nets[3].fit(X, labels, sample_weight=weights * np.array([1, 3, 0.5])[labels], **settings)
    assert_alike(*nets[2:])
    table = sweep(
        X, labels, grid={"learning_rate": [0.1, 0.2]}, sizes=[5, 4, 4], epochs=1, batch_size=9,
        activation=["tanh", "softmax"], cost="categorical_cross_entropy", backend="numpy",
        class_weight="balanced", sample_weight=weights, progress=False,
    )  # fmt: skip
    assert len(table) == 2


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"sample_weight": np.ones(3)}, ValueError, r"sample_weight must have shape \(19,\)"),
        ({"sample_weight": -np.ones(19)}, ValueError, "sample_weight must not be negative, got -1"),
        ({"sample_weight": np.zeros(19)}, ValueError, "sample_weight is 0 for every row"),
        ({"sample_weight": np.full(19, np.nan)}, ValueError, "sample_weight contains NaN"),
        ({"sample_weight": ["a"] * 19}, TypeError, "sample_weight must hold real numbers"),
        ({"class_weight": "balanced"}, ValueError, "class_weight needs a Y of classes"),
        ({"batches": []}, TypeError, "X and Y, or batches"),
    ],
)
def test_weights_that_mean_nothing(more: Any, kind: type[Exception], message: str) -> None:
    X, Y, _ = data()
    net = network("numpy", "float64", *PAIRS[1])
    before = [w.copy() for w in net.weights]
    with pytest.raises(kind, match=message):
        net.fit(X, Y, epochs=1, batch_size=8, learning_rate=0.2, **more)
    for old, new in zip(before, net.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    labels = Y.argmax(axis=1)
    with pytest.raises(ValueError, match=r"class_weight: a class must be .* \[0, 3\], got 4"):
        net.fit(X, labels, epochs=1, batch_size=8, learning_rate=0.2, class_weight={4: 1.0})
    with pytest.raises(TypeError, match='class_weight must be "balanced" or a dict'):
        net.fit(X, labels, epochs=1, batch_size=8, learning_rate=0.2, class_weight="balance")
    with pytest.raises(ValueError, match="leave no row"):
        net.fit(
            X, labels * 0, epochs=1, batch_size=8, learning_rate=0.2, class_weight={0: 0.0}
        )  # fmt: skip
    with pytest.raises(ValueError, match="sample_weight needs X and Y"):
        net.fit(
            batches=[(X, Y)], epochs=1, batch_size=8, learning_rate=0.2, sample_weight=np.ones(19)
        )


def test_relative_weights() -> None:
    relative, totals = relative_weights(np.array([1.0, 3, 0, 0, 5, 2, 2, 4, 4, 9]), 2, epochs=2)
    np.testing.assert_allclose(relative, [0.5, 1.5, 0, 0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(totals, [4, 0, 5, 4, 8, 9])


def test_a_checkpoint_knows_its_weights(tmp_path: Any) -> None:
    from backprop_gpu import Checkpoint

    X, Y, weights = data()
    settings: dict[str, Any] = {"batch_size": 8, "learning_rate": 0.2}
    path = tmp_path / "c.safetensors"
    whole, first, second = (network("numpy", "float64", *PAIRS[1]) for _ in range(3))
    whole.fit(X, Y, epochs=4, sample_weight=weights, **settings)
    first.fit(X, Y, epochs=2, sample_weight=weights, callbacks=[Checkpoint(path)], **settings)
    with pytest.raises(ValueError, match="another fingerprint of X and Y"):
        second.fit(X, Y, epochs=4, resume_from=path, **settings)
    second.fit(X, Y, epochs=4, sample_weight=weights, resume_from=path, **settings)
    for a, b in zip(whole.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)
