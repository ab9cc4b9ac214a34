"""`max_norm` and `gradient_noise` of an optimizer, in every engine that has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backprop_gpu import Checkpoint, Network, Population
from backprop_gpu.optimizers import SGD, Adam
from backprop_gpu.philox import Draws, normals
from small_training import skip_without

LIMITED = [
    ("numpy", "layered", "float32"),
    ("numpy", "resident", "float64"),
    ("numpy", "resident", "float32"),
    pytest.param("numba_cuda", "layered", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "layered", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "layered", "float32", marks=pytest.mark.gpu),
    pytest.param("cuda", "fused", "float32", marks=pytest.mark.gpu),
    pytest.param("cuda", "persistent", "float32", marks=pytest.mark.gpu),
]
NOISY = [LIMITED[0], *LIMITED[3:6]]
SIZES = [41, 22, 9, 3]
FIT: dict[str, Any] = {"epochs": 3, "batch_size": 12, "learning_rate": 0.3}


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.standard_normal((45, SIZES[0])), rng.uniform(0.1, 0.9, (45, SIZES[-1]))


def network(backend: str = "numpy", dtype: str = "float64", seed: int = 1) -> Network:
    return Network(SIZES, dtype=dtype, seed=seed, backend=backend)


def row_norms(net: Network) -> np.ndarray:
    return np.concatenate([np.linalg.norm(w.astype(float), axis=1) for w in net.weights])


def assert_near(net: Network, right: Network, dtype: str) -> None:
    bound = 1e-12 if dtype == "float64" else 2e-5
    for a, b in zip((*net.weights, *net.biases), (*right.weights, *right.biases), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize(("backend", "engine", "dtype"), LIMITED)
@pytest.mark.parametrize(
    "optimizer", [SGD(max_norm=0.7), SGD(momentum=0.5, clip_value=0.1, max_norm=0.8)], ids=str
)
def test_limits_in_every_engine(backend: str, engine: str, dtype: str, optimizer: SGD) -> None:
    skip_without(backend)
    X, Y = data()
    net, right, free = network(backend, dtype), network(), network()
    net.fit(X, Y, engine=engine, optimizer=optimizer, **FIT)
    right.fit(X, Y, engine="layered", optimizer=optimizer, **FIT)
    free.fit(X, Y, **FIT)
    assert net.plan is not None
    assert net.plan.engine == engine
    assert_near(net, right, dtype)
    limit = optimizer.max_norm
    assert limit is not None
    assert row_norms(net).max() <= limit * (1 + 4 * np.finfo(dtype).eps)
    assert row_norms(free).max() > 1.2 * limit


@pytest.mark.parametrize(("backend", "engine", "dtype"), LIMITED)
def test_a_limit_for_each_member(backend: str, engine: str, dtype: str) -> None:
    skip_without(backend)
    X, Y = data()
    limits = [SGD(max_norm=0.7), SGD(), SGD(max_norm=1.1)]
    alone = [network(backend, dtype, seed) for seed in (1, 2, 3)]
    population = Population.from_networks(alone)
    population.fit(X, Y, engine=engine, optimizer=limits, **FIT)
    for net, optimizer, member in zip(alone, limits, population.members, strict=True):
        net.fit(X, Y, engine=engine, optimizer=optimizer, **FIT)
        for a, b in zip(net.weights, member.weights, strict=True):
            if backend == "numpy":
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_rows_whose_squares_overflow(engine: str) -> None:
    weights = np.array([[3e30, 4e30], [1.0, 2.0]], np.float32)
    net = Network([2, 2], activation="identity", backend="numpy")
    net.weights = [weights]
    optimizer = SGD(max_norm=1e31)
    zero = np.zeros((1, 2), np.float32)
    net.fit(
        zero, zero, epochs=1, batch_size=1, learning_rate=0.0, optimizer=optimizer, engine=engine
    )
    np.testing.assert_array_equal(net.weights[0], weights)
    optimizer = SGD(max_norm=2.5)
    net.fit(
        zero, zero, epochs=1, batch_size=1, learning_rate=0.0, optimizer=optimizer, engine=engine
    )
    np.testing.assert_allclose(net.weights[0], [[1.5, 2.0], [1.0, 2.0]], rtol=1e-6)


def test_noise_is_of_a_normal_distribution() -> None:
    n = normals(Draws((), (5,)), 64, 200_001, 3)
    assert n.shape == (200_001,)
    assert n.mean() == pytest.approx(0.0, abs=0.01)
    assert n.std() == pytest.approx(1.0, abs=0.01)
    assert np.mean(np.abs(n) < 1) == pytest.approx(0.6827, abs=0.005)
    assert np.mean(n**3) == pytest.approx(0.0, abs=0.05)
    assert np.mean(n**4) == pytest.approx(3.0, abs=0.1)
    assert abs(np.corrcoef(n[:-1], n[1:])[0, 1]) < 0.01
    for other in (
        normals(Draws((), (5,)), 64, 200_001, 4),
        normals(Draws((), (6,)), 64, 200_001, 3),
    ):
        assert abs(np.corrcoef(n, other)[0, 1]) < 0.01
    np.testing.assert_array_equal(normals(Draws((), (5,)), 96, 10, 3), n[32:42])


@pytest.mark.parametrize(("backend", "engine", "dtype"), NOISY)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_noise_in_every_engine(backend: str, engine: str, dtype: str, dropout: float) -> None:
    skip_without(backend)
    X, Y = data()
    optimizer = Adam(gradient_noise=0.01, epsilon=1e-3)
    net, right, calm = network(backend, dtype), network(), network()
    fit = FIT | {"learning_rate": 0.01, "dropout": dropout}
    net.fit(X, Y, optimizer=optimizer, engine=engine, **fit)
    right.fit(X, Y, optimizer=optimizer, **fit)
    calm.fit(X, Y, optimizer=Adam(epsilon=1e-3), **fit)
    assert right.plan is not None
    assert right.plan.engine == "layered"
    assert "gradient_noise" in str(right.plan)
    assert_near(net, right, dtype)
    assert np.abs(right.weights[0] - calm.weights[0]).max() > 0.01


def test_noise_goes_on_after_a_checkpoint(tmp_path: Any) -> None:
    X, Y = data()
    optimizer = SGD(gradient_noise=0.1)
    straight, first, second = network(), network(), network()
    fit = FIT | {"optimizer": optimizer}
    straight.fit(X, Y, **fit | {"epochs": 5})
    path = tmp_path / "net.safetensors"
    first.fit(X, Y, callbacks=[Checkpoint(path)], **fit)
    second.fit(X, Y, resume_from=path, **fit | {"epochs": 5})
    for a, b in zip(straight.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_members_have_noise_of_their_own() -> None:
    X, Y = data()
    alone = [network(seed=seed) for seed in (1, 2)]
    population = Population.from_networks(alone)
    optimizers = [SGD(gradient_noise=0.1), SGD()]
    population.fit(X, Y, optimizer=optimizers, **FIT)
    for net, optimizer, member in zip(alone, optimizers, population.members, strict=True):
        net.fit(X, Y, engine="layered", optimizer=optimizer, **FIT)
        for a, b in zip(net.weights, member.weights, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_norm": 0.0}, r"max_norm must be finite and > 0"),
        ({"max_norm": float("nan")}, "max_norm"),
        ({"gradient_noise": -1.0}, r"gradient_noise must be finite and >= 0"),
        ({"noise_decay": float("inf")}, "noise_decay"),
    ],
)
def test_bad_values(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGD(**settings)
