"""Costs with parameters, their names, targets that are missing or fewer than the outputs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Network, Population, activations, costs
from backprop_gpu.costs import (
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    CategoricalFocal,
    Cosine,
    Cost,
    Focal,
    GaussianNLL,
    Huber,
    Quantile,
)
from reference import ENGINE_PAIRS, random_targets

autograd = pytest.importorskip("autograd", reason="the test extra has HIPS autograd")
anp = pytest.importorskip("autograd.numpy")

#: A cost, the last σ, how many targets and outputs it has, and C of all rows.
PARAMETERS: list[tuple[Cost, str, int, int, Callable[..., Any]]] = [
    (
        Huber(0.3), "identity", 3, 3,
        lambda a, y: anp.sum(
            anp.where(anp.abs(a - y) > 0.3, 0.3 * (anp.abs(a - y) - 0.15), 0.5 * (a - y) ** 2)
        ),
    ),
    (
        Quantile(0.9), "gelu", 2, 2,
        lambda a, y: anp.sum(anp.maximum(0.9 * (y - a), -0.1 * (y - a))),
    ),
    (
        Quantile((0.1, 0.5, 0.75)), "identity", 2, 6,
        lambda a, y: sum(
            anp.sum(anp.maximum(q * (y - a[:, i::3]), (q - 1) * (y - a[:, i::3])))
            for i, q in enumerate((0.1, 0.5, 0.75))
        ),
    ),
    (
        Quantile((0.2, 0.7)), "softmax", 2, 4,
        lambda a, y: sum(
            anp.sum(anp.maximum(q * (y - a[:, i::2]), (q - 1) * (y - a[:, i::2])))
            for i, q in enumerate((0.2, 0.7))
        ),
    ),
    (
        Focal(1.5), "sigmoid", 3, 3,
        lambda a, y: -anp.sum(
            y * (1 - a) ** 1.5 * anp.log(a) + (1 - y) * a**1.5 * anp.log(1 - a)
        ),
    ),
    (
        CategoricalFocal(0.5), "softmax", 3, 3,
        lambda a, y: -anp.sum(y * (1 - a) ** 0.5 * anp.log(a)),
    ),
    (
        BinaryCrossEntropy(smoothing=0.2), "sigmoid", 3, 3,
        lambda a, y: -anp.sum(
            (0.8 * y + 0.1) * anp.log(a) + (0.9 - 0.8 * y) * anp.log(1 - a)
        ),
    ),
    (
        CategoricalCrossEntropy(smoothing=0.2), "softmax", 4, 4,
        lambda a, y: -anp.sum((0.8 * y + 0.05) * anp.log(a)),
    ),
    (
        CategoricalCrossEntropy(smoothing=0.2), "sigmoid", 4, 4,
        lambda a, y: -anp.sum((0.8 * y + 0.05) * anp.log(a)),
    ),
]  # fmt: skip
IDS = [f"{cost.name} {sigma}" for cost, sigma, *_ in PARAMETERS]

SIGMAS = {
    "identity": lambda z: z,
    "sigmoid": lambda z: 0.5 * (anp.tanh(0.5 * z) + 1.0),
    "gelu": None,
    "softmax": lambda z: (
        anp.exp(z - anp.max(z, axis=1, keepdims=True))
        / anp.sum(anp.exp(z - anp.max(z, axis=1, keepdims=True)), axis=1, keepdims=True)
    ),
}


def gelu(z: Any) -> Any:
    from autograd.scipy.special import erf

    return 0.5 * z * (1.0 + erf(z / anp.sqrt(2.0)))


SIGMAS["gelu"] = gelu


def targets_for(cost: Cost, rows: int, targets: int, rng: np.random.Generator) -> np.ndarray:
    kind = cost.name.partition("(")[0]
    if cost.distribution:
        return rng.dirichlet(np.ones(targets), rows)
    if kind in ("focal", "binary_cross_entropy"):
        return rng.uniform(size=(rows, targets))
    return rng.standard_normal((rows, targets))


@pytest.mark.parametrize(("cost", "sigma", "targets", "outputs", "total"), PARAMETERS, ids=IDS)
def test_parameters_against_autograd(
    backend: str, cost: Cost, sigma: str, targets: int, outputs: int, total: Any
) -> None:
    rng = np.random.default_rng(outputs)
    X, Y = rng.standard_normal((7, 5)), targets_for(cost, 7, targets, rng)
    net = Network(
        [5, 6, outputs], activation=["tanh", sigma], cost=cost, dtype="float64", backend=backend,
        seed=3,
    )  # fmt: skip

    def mean_cost(flat: Any) -> Any:
        hidden = anp.tanh(anp.dot(X, flat[0].T) + flat[1])
        return total(SIGMAS[sigma](anp.dot(hidden, flat[2].T) + flat[3]), Y) / 7

    flat = [net.weights[0], net.biases[0], net.weights[1], net.biases[1]]
    exact = autograd.grad(mean_cost)(flat)
    found = [array for pair in net.gradients(X, Y) for array in pair]
    for mine, right in zip(found, exact, strict=True):
        assert np.abs(mine - right).max() <= 1e-11 * np.abs(right).max()
    assert net.loss(X, Y) == pytest.approx(mean_cost(flat), rel=1e-12)
    report = net.check_gradients(X, Y)
    assert report.ok, str(report)


ENGINES = [
    ("numpy", "layered", "float64"),
    ("numpy", "resident", "float64"),
    ("numpy", "resident", "float32"),
    pytest.param("cuda", "layered", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "resident", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "fused", "float32", marks=pytest.mark.gpu),
    pytest.param("cuda", "persistent", "float32", marks=pytest.mark.gpu),
]


def trained(
    backend: str,
    engine: str,
    dtype: str,
    cost: Any,
    sigma: str,
    outputs: int,
    Y: np.ndarray,
    **more: Any,
) -> Network:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((len(Y), 5))
    net = Network(
        [5, 6, outputs], activation=["tanh", sigma], cost=cost, dtype=dtype, backend=backend, seed=3
    )
    net.fit(X, Y, epochs=3, batch_size=8, learning_rate=0.05, engine=engine, **more)
    return net


def assert_alike(one: Network, other: Network) -> None:
    eps = np.finfo(one.dtype).eps
    for a, b in zip((*one.weights, *one.biases), (*other.weights, *other.biases), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=400 * eps * max(1.0, np.abs(b).max()))
    assert one.history is not None
    assert other.history is not None
    np.testing.assert_allclose(one.history.loss, other.history.loss, rtol=400 * eps)


@pytest.mark.parametrize(("backend_name", "engine", "dtype"), ENGINES)
@pytest.mark.parametrize(("cost", "sigma", "targets", "outputs", "_"), PARAMETERS, ids=IDS)
def test_every_engine_trains_with_parameters(
    backend_name: str, engine: str, dtype: str, cost: Cost, sigma: str, targets: int, outputs: int,
    _: Any, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    skip_without(backend_name)
    Y = targets_for(cost, 21, targets, np.random.default_rng(1))
    one = trained(backend_name, engine, dtype, cost, sigma, outputs, Y)
    other = trained("numpy", "layered", "float64", cost, sigma, outputs, Y)
    assert_alike(one, other)


def skip_without(backend: str) -> None:
    from machine import obstacle

    if obstacle(backend) is not None:
        pytest.skip(f"backend {backend}: {obstacle(backend)}")


# -- missing labels ------------------------------------------------------------------------------

MISSING = [
    pair for pair in ENGINE_PAIRS if pair[0] in ("identity", "sigmoid", "softmax", "gelu", "silu")
]


def with_gaps(cost: Cost, Y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    Y = Y.copy()
    if cost.distribution:
        Y[rng.random(len(Y)) < 0.3] = np.nan
    else:
        Y[rng.random(Y.shape) < 0.3] = np.nan
        Y[2] = np.nan
    return Y


@pytest.mark.parametrize(("sigma", "name"), MISSING)
def test_missing_labels_have_no_part(backend: str, sigma: str, name: str) -> None:
    rng = np.random.default_rng(7)
    X, outputs, cost = rng.standard_normal((9, 4)), 4, costs.get(name)
    Y = with_gaps(cost, random_targets(name, (9, 4), rng), rng)
    net = Network(
        [4, outputs], activation=sigma, cost=cost, dtype="float64", backend=backend, seed=1
    )
    report = net.check_gradients(X, Y)
    assert report.ok, str(report)
    known = ~np.isnan(Y).all(axis=1)
    assert 0 < known.sum() < 9
    loss, (gradient, _) = net.loss(X, Y), net.gradients(X, Y)[0]
    share = known.sum() / 9
    assert loss == pytest.approx(net.loss(X[known], Y[known]) * share, rel=1e-12)
    right = net.gradients(X[known], Y[known])[0][0] * share
    np.testing.assert_allclose(gradient, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("backend_name", "engine", "dtype"), ENGINES)
@pytest.mark.parametrize(("sigma", "name"), ENGINE_PAIRS[::3])
def test_every_engine_leaves_missing_labels_out(
    backend_name: str, engine: str, dtype: str, sigma: str, name: str
) -> None:
    skip_without(backend_name)
    rng = np.random.default_rng(7)
    Y = with_gaps(costs.get(name), random_targets(name, (21, 4), rng), rng)
    one = trained(backend_name, engine, dtype, name, sigma, 4, Y)
    other = trained("numpy", "layered", "float64", name, sigma, 4, Y)
    assert np.isfinite(other.weights[0]).all()
    assert_alike(one, other)


def test_a_users_cost_has_no_missing_labels() -> None:
    cost = Cost("mine", lambda a, y: ((a - y) ** 2).sum(axis=1), lambda a, y: 2 * (a - y))
    net = Network([2, 2], cost=cost, backend="numpy", seed=1)
    with pytest.raises(ValueError, match=r"Y contains NaN or infinity, first at index \(0, 1\)"):
        net.loss([[1.0, 2.0]], [[1.0, np.nan]])
    built_in = Network([2, 2], backend="numpy", seed=1)
    with pytest.raises(ValueError, match=r"Y contains infinity, first at index \(0, 1\)"):
        built_in.loss([[1.0, 2.0]], [[np.nan, np.inf]])
    half = Network([2, 2], cost="categorical_cross_entropy", activation="softmax", backend="numpy")
    with pytest.raises(ValueError, match="to sum to 1 or to be all NaN, row 0 sums to nan"):
        half.loss([[1.0, 2.0]], [[1.0, np.nan]])


# -- targets and classes -------------------------------------------------------------------------


def test_targets_that_do_not_fit_are_refused() -> None:
    X = np.zeros((3, 2))
    several = Network([2, 4], cost=Quantile((0.1, 0.9)), activation="identity", backend="numpy")
    with pytest.raises(ValueError, match=r"expected shape \(n, 2\).*got \(3, 4\)"):
        several.loss(X, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="a multiple of 2 outputs, one a quantile, got 3"):
        Network([2, 3], cost=Quantile((0.1, 0.9)), activation="identity", backend="numpy")
    with pytest.raises(ValueError, match="even number of outputs, means and log-variances, got 3"):
        Network([2, 3], cost="gaussian_nll", activation="identity", backend="numpy")
    gaussian = Network([2, 2], cost=GaussianNLL(), activation="identity", backend="numpy")
    assert np.isfinite(gaussian.loss(X, np.zeros(3)))
    direction = Network([2, 2], cost=Cosine(), activation="identity", backend="numpy")
    with pytest.raises(ValueError, match="needs a direction, and row 1 of Y is all 0"):
        direction.loss(X, [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    margin = Network([2, 2], cost="hinge", activation="identity", backend="numpy")
    with pytest.raises(
        ValueError, match=r"cost 'hinge' needs Y in \[0, 1\], got values in \[-1, 1\]"
    ):
        margin.loss(X, [[1.0, -1.0]] * 3)
    robust = Network([2, 2], cost="huber", activation="identity", backend="numpy")
    with pytest.raises(ValueError, match="no single meaning for cost 'huber'"):
        robust.loss(X, [0, 1, 1])


@pytest.mark.parametrize("name", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_margins_part_classes(name: str, outputs: int) -> None:
    rng = np.random.default_rng(2)
    X = rng.standard_normal((90, 2))
    labels = (X[:, 0] > 0).astype(int) if outputs == 1 else X @ [[1, 0, -1], [0, 1, 0]]
    labels = labels if outputs == 1 else labels.argmax(axis=1)
    net = Network([2, outputs], cost=name, activation="identity", backend="numpy", seed=1)
    history = net.fit(
        X, labels, epochs=60, batch_size=10, learning_rate=0.05, validation_data=(X, labels)
    )
    assert history.val_accuracy[-1] > 0.95
    assert net.accuracy(X, labels) == history.val_accuracy[-1]
    vote = Population.from_networks([net, copy.copy(net)]).predict(X, combine="vote")
    assert np.mean(vote == labels) == net.accuracy(X, labels)


def test_smoothed_classes_are_classes() -> None:
    X, labels = np.eye(3), np.arange(3)
    net = Network(
        [3, 3], activation="softmax", cost=CategoricalCrossEntropy(smoothing=0.1), backend="numpy",
        seed=1,
    )  # fmt: skip
    history = net.fit(
        X, labels, epochs=400, batch_size=3, learning_rate=3.0, validation_data=(X, labels)
    )
    assert history.val_accuracy[-1] == 1.0
    np.testing.assert_allclose(net.predict(X), np.where(np.eye(3), 1 - 0.2 / 3, 0.1 / 3), atol=1e-3)


def test_quantiles_are_learnt() -> None:
    rng = np.random.default_rng(3)
    X, y = np.ones((4000, 1)), rng.standard_normal(4000)
    net = Network(
        [1, 3], cost=Quantile((0.1, 0.5, 0.9)), activation="identity", backend="numpy", seed=1
    )
    net.fit(X, y, epochs=40, batch_size=100, learning_rate=lambda t: 0.3 / (1 + t))
    np.testing.assert_allclose(net.predict(X[:1])[0], np.quantile(y, (0.1, 0.5, 0.9)), atol=0.05)


def test_variances_are_learnt() -> None:
    rng = np.random.default_rng(3)
    X, y = np.ones((4000, 1)), 2.0 + 0.5 * rng.standard_normal(4000)
    net = Network([1, 2], cost=GaussianNLL(), activation="identity", backend="numpy", seed=1)
    net.fit(X, y, epochs=40, batch_size=100, learning_rate=lambda t: 0.1 / (1 + 0.2 * t))
    mean, log_variance = net.predict(X[:1])[0]
    assert mean == pytest.approx(y.mean(), abs=0.02)
    assert np.exp(log_variance / 2) == pytest.approx(y.std(), abs=0.02)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [cost for cost, *_ in PARAMETERS], ids=lambda cost: cost.name)
def test_a_name_says_it_all(cost: Cost, tmp_path: Any) -> None:
    assert costs.get(cost.name) == cost
    assert hash(costs.get(cost.name)) == hash(cost)
    assert pickle.loads(pickle.dumps(cost)) == cost
    outputs = 12  # a multiple of all quantiles'
    sigma = "softmax" if cost.distribution else "sigmoid"
    net = Network([2, outputs], cost=cost, activation=sigma, backend="numpy", seed=1)
    net.save(tmp_path / "net.safetensors")
    loaded = Network.load(tmp_path / "net.safetensors", backend="numpy")
    assert loaded.cost == cost
    assert cost.name in repr(net)


def test_defaults_have_the_plain_name() -> None:
    assert Huber().name == "huber"
    assert Huber(1) == costs.get("huber")
    assert Quantile([0.5]).name == "quantile(q=(0.5,))" != Quantile(0.5).name
    assert Huber(2) != Huber(1)
    assert Huber(2).name == "huber(delta=2.0)"
    assert BinaryCrossEntropy() == costs.get("binary_cross_entropy")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("huber(2)", r"not of the form huber\(parameter=number"),
        ("huber(delta=-1)", r"delta must be in \(0, inf\), got -1"),
        ("huber(delta=nan)", "not of the form"),
        ("huber(delta=True)", "delta must be a number"),
        ("huber(slope=1)", "unexpected keyword argument 'slope'"),
        ("huber(delta=1", "not of the form"),
        ("huber(**{'delta': 1})", "not of the form"),
        ("huber(delta=__import__('os'))", "not of the form"),
        ("huber(delta=1)(2)", "not of the form"),
        ("quantile(q=())", "1 to 32 numbers"),
        ("quantile(q='0.5')", "1 to 32 numbers"),
        ("quantile(q=(0.1, 1.0))", r"q must be in \(0, 1\), got 1.0"),
        ("focal(gamma=-1)", r"gamma must be in \[0, inf\)"),
        ("binary_cross_entropy(smoothing=1)", r"smoothing must be in \[0, 1\)"),
        ("poisson(delta=1)", "takes no arguments|unexpected keyword"),
        ("nothing(delta=1)", "unknown cost"),
    ],
)
def test_wrong_names_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        costs.get(spec)


def test_a_cosine_of_nothing_is_1() -> None:
    a, y = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 2.0]])
    cost, sigma = Cosine(), activations.get("identity")
    np.testing.assert_allclose(cost.samples(a, y), [1.0, 0.0], atol=1e-15)
    delta, scratch = np.empty((2, 2)), (np.empty((2, 2)), np.empty((2, 2)))
    cost.output_error(a, a, y, sigma, delta, scratch)
    np.testing.assert_allclose(delta, 0.0, atol=1e-15)
