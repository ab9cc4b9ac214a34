"""Rounded factors: what they are, where they are rounded, and who has them."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import MLPClassifier, MLPRegressor, Network, Population, sweep
from backprop_gpu.backends.numpy import NumpyBackend
from backprop_gpu.planning import Plan
from backprop_gpu.precision import FRACTION_BITS, resolve, round_factor

ROUNDED = ("tf32", "bf16")
RNG = np.random.default_rng(3)
X = RNG.standard_normal((120, 6)).astype("f4")
Y = (X[:, 0] * X[:, 1] > 0).astype(int)
FIT: dict[str, Any] = {"epochs": 3, "batch_size": 16, "learning_rate": 0.5}


def nearest(x: float, precision: str) -> float:
    """x rounded by its value, in float64: of two that are as near bf16 takes the even one."""
    if not np.isfinite(x) or x == 0:
        return x
    exponent = max(int(np.floor(np.log2(abs(x)))), -126)
    unit = 2.0 ** (exponent - FRACTION_BITS[precision])
    steps = abs(x) / unit
    whole = np.floor(steps + 0.5) if precision == "tf32" else np.round(steps)
    found = float(np.copysign(whole * unit, x))
    return float(np.copysign(np.inf, x)) if abs(found) >= 2.0**128 else found


@pytest.mark.parametrize("precision", ROUNDED)
def test_factors_are_rounded_to_the_nearest(precision: str) -> None:
    lost = 23 - FRACTION_BITS[precision]
    random = RNG.integers(0, 2**32, 20_000, dtype=np.uint32)
    ties = (RNG.integers(0, 2**32, 2_000, dtype=np.uint32) >> lost << lost) + (1 << (lost - 1))
    x = np.concatenate([random, ties.astype(np.uint32)]).view(np.float32)
    x = np.append(x, np.array([0, -0.0, np.inf, -np.inf, 1e-45, 3.4028235e38], "f4"))
    with np.errstate(all="ignore"):
        found = round_factor(x, precision, np.empty_like(x))
    expected = np.array([nearest(float(value), precision) for value in x])
    nan = np.isnan(x)
    assert nan.any()
    assert np.isnan(found[nan]).all()
    assert np.array_equal(found[~nan], expected[~nan])
    assert np.array_equal(np.signbit(found[~nan]), np.signbit(x[~nan]))


def test_of_float32_nothing_is_rounded() -> None:
    assert round_factor(X, "float32", np.empty_like(X)) is X


@pytest.mark.parametrize("precision", ROUNDED)
def test_products_round_both_factors_and_nothing_else(precision: str) -> None:
    net = Network([6, 6, 2], activation=["tanh", "softmax"], cost="categorical_cross_entropy",
                  precision=precision, backend="numpy", seed=1)  # fmt: skip

    def r(x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, "f4")
        return round_factor(x, precision, np.empty_like(x)).astype("f8")

    (w1, w2), (b1, b2) = net.weights, net.biases
    y = np.eye(2)[Y]
    a1 = np.tanh(r(X) @ r(w1).T + b1)
    z2 = r(a1) @ r(w2).T + b2
    a2 = np.exp(z2) / np.exp(z2).sum(1, keepdims=True)
    d2 = a2 - y
    d1 = (r(d2) @ r(w2)) * (1 - a1**2)
    # A value that is near the middle between two rounded ones may go to either.
    near = 4 * 2.0 ** -FRACTION_BITS[precision] / len(X)
    np.testing.assert_allclose(net.predict(X), a2, rtol=0, atol=2.0**-20 + near)
    for (w, b), delta, a in zip(net.gradients(X, Y), (d1, d2), (X, a1), strict=True):
        np.testing.assert_allclose(w, r(delta).T @ r(a) / len(X), rtol=0, atol=2.0**-20 + near)
        np.testing.assert_allclose(b, delta.mean(0), rtol=0, atol=2.0**-20 + near)


@pytest.mark.parametrize("precision", ROUNDED)
def test_factors_stay_as_they_are(precision: str) -> None:
    backend = NumpyBackend("float32", precision)
    w, a, out = (backend.asarray(RNG.standard_normal((5, 5))) for _ in range(3))
    kept = w.copy(), a.copy()
    sigma = Network([2, 2]).activations[0]
    backend.forward(w, w[0], a, sigma, None, out)
    backend.hidden_error(w, a, None, a.copy(), sigma, out)
    backend.weight_gradient(w, a, out)
    assert np.array_equal(w, kept[0])
    assert np.array_equal(a, kept[1])


def test_who_has_it(tmp_path: Path) -> None:
    for precision in (None, *FRACTION_BITS):
        expected = precision or "float32"
        net = Network([6, 4, 2], precision=precision, seed=1, backend="numpy")
        history = net.fit(X, Y, **FIT)
        population = Population([6, 4, 2], members=2, precision=precision, seed=1, backend="numpy")
        histories = population.fit(X, Y, **FIT)
        net.save(tmp_path / "net.safetensors")
        loaded = Network.load(tmp_path / "net.safetensors", backend="numpy")
        assert {n.precision for n in (net, population, *population, loaded)} == {expected}
        assert pickle.loads(pickle.dumps(net)).precision == expected
        assert history.loss == histories[0].loss
        assert np.array_equal(loaded.predict(X), net.predict(X))
        assert net.plan.precision == expected
        assert Plan.from_json(net.plan.to_json()) == net.plan
        rounds = expected != "float32"
        for text in (str(net.plan), str(net.explain(batch_size=16)), repr(net)):
            assert ("precision" in text) == rounds
            assert (expected in text) or not rounds


def test_rounding_changes_a_training() -> None:
    losses = [
        Network([6, 4, 2], precision=p, seed=1, backend="numpy").fit(X, Y, **FIT).loss
        for p in FRACTION_BITS
    ]
    for one, other in itertools.combinations(losses, 2):
        assert one != other
        np.testing.assert_allclose(one, other, rtol=0.01)


def test_sweep() -> None:
    table = sweep(X, Y, grid={"precision": [None, "float32", "bf16"]}, seed=1, sizes=[6, 4, 2],
                  backend="numpy", progress=False, **FIT)  # fmt: skip
    none, plain, rounded = (row["loss"] for row in table.rows)
    assert none == plain != rounded


def test_a_plan_is_for_its_precision() -> None:
    net = Network([6, 4, 2], seed=1, backend="numpy")
    other = Network([6, 4, 2], seed=1, precision="bf16", backend="numpy")
    other.fit(X, Y, **FIT)
    before = net.weights
    with pytest.raises(ValueError, match="plan is for precision 'bf16', and this network has"):
        net.fit(X, Y, plan=other.plan, **FIT)
    assert all(map(np.array_equal, net.weights, before))


def test_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="unknown precision 'fp8'; known: float32, tf32, bf16"):
        Network([2, 2], precision="fp8")
    with pytest.raises(ValueError, match="'bf16' does not go with dtype float64"):
        Network([2, 2], dtype="float64", precision="bf16")
    with pytest.raises(ValueError, match="'float64' does not go with dtype float32"):
        Network([2, 2], precision="float64")
    assert resolve("float64", np.dtype("f8")) == "float64"
    with pytest.raises(
        ValueError, match="cannot run this: it multiplies in float32 alone, and not"
    ):
        Network([6, 2], precision="tf32", backend="numpy").fit(X, Y, engine="resident", **FIT)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("kind", [Network, Population])
def test_tensor_cores_round_as_numpy_does(kind: Any, precision: str) -> None:
    options: dict[str, Any] = {"precision": precision, "seed": 1}
    if kind is Population:
        options["members"] = 3
    on_device = kind([6, 40, 2], backend="cuda", **options)
    on_host = kind([6, 40, 2], backend="numpy", **options)
    exact = kind([6, 40, 2], backend="numpy", **options | {"precision": None})
    for net in (on_device, on_host, exact):
        net.fit(X, Y, **FIT)
    assert on_device.plan.precision == precision
    assert (
        f"not resident, because its kernel multiplies in float32 alone, and not in {precision}"
        in str(on_device.plan)
    )
    nets = [[net] if kind is Network else list(net) for net in (on_device, on_host, exact)]
    for members in zip(*nets, strict=True):
        for got, rounded, plain in zip(*(net.weights for net in members), strict=True):
            # A number that is near the middle between two may be rounded to either.
            assert np.abs(got - rounded).max() <= np.abs(plain - rounded).max() / 4


def test_numba_cuda_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    with pytest.raises(RuntimeError, match="multiplies in float32 alone, and not in bf16"):
        Network([2, 2], precision="bf16", backend="numba_cuda")


def test_a_damaged_precision_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    Network([2, 2], precision="bf16", seed=1).save(path)
    path.write_bytes(path.read_bytes().replace(b"bf16", b"fp16"))
    with pytest.raises(ValueError, match=r"damaged description.*unknown precision 'fp16'"):
        Network.load(path)


# -- estimators -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_estimators_train_and_read_in_it(kind: Any) -> None:
    settings = {"max_iter": 3, "random_state": 0, "hidden_layer_sizes": (5,), "backend": "numpy"}
    plain = kind(**settings).fit(X, Y)
    found = kind(precision="bf16", **settings).fit(X, Y)
    assert "precision bf16" in found.plan_
    assert not np.array_equal(found.coefs_[0], plain.coefs_[0])
    np.testing.assert_allclose(found.coefs_[0], plain.coefs_[0], atol=0.01)
    # Read as it is trained: by a network of the same parameters.
    names = ["relu", found.out_activation_.replace("logistic", "sigmoid")]
    net = Network([6, 5, 1], activation=names, precision="bf16", backend="numpy")
    net.weights = [w.T for w in found.coefs_]
    net.biases = found.intercepts_
    outputs = found.predict(X) if kind is MLPRegressor else found.predict_proba(X)[:, 1]
    assert np.array_equal(outputs, net.predict(X).ravel())
    hidden = np.maximum(
        round_factor(X, "bf16", X.copy()) @ round_factor(found.coefs_[0].copy(), "bf16",
        np.empty_like(found.coefs_[0])) + found.intercepts_[0], 0,
    )  # fmt: skip
    np.testing.assert_allclose(found.transform(X), hidden, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_estimators_say_what_they_cannot() -> None:
    from scipy.sparse import csr_matrix

    def refuses(match: str, X: Any = X, **settings: Any) -> None:
        one = MLPClassifier(precision="bf16", max_iter=2, **settings)
        with pytest.raises(ValueError, match=match):
            one.fit(X, Y)
        assert not hasattr(one, "coefs_")

    refuses("solver 'lbfgs' needs a loss without its noise", solver="lbfgs")
    refuses("X is of float64", X.astype("f8"))
    refuses("X is sparse", csr_matrix(X))
    for more in ({"class_weight": "balanced"}, {"dropout": 0.5}):
        one = MLPClassifier(precision="bf16", max_iter=2, backend="numpy", **more).fit(X, Y)
        assert "engine layered" in one.plan_
    with pytest.raises(ValueError, match="'precision' parameter of MLPClassifier must be None or"):
        MLPClassifier(precision="half").fit(X, Y)
    trained = MLPClassifier(precision="bf16", max_iter=2, backend="numpy").fit(X, Y)
    with pytest.raises(ValueError, match="X must be dense"):
        trained.predict(csr_matrix(X))


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_an_estimator_pickled_before_there_were_precisions() -> None:
    trained = MLPClassifier(max_iter=2, backend="numpy").fit(X, Y)
    state = trained.__getstate__()
    del state["precision"], state["engine"]
    old = MLPClassifier.__new__(MLPClassifier)
    old.__setstate__(state)
    assert np.array_equal(old.predict(X), trained.predict(X))
    old.fit(X, Y)
