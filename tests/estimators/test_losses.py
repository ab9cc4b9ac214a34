"""`MLPRegressor(loss=…)` beyond scikit-learn's: Huber, quantiles, a mean with a variance."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone

from backprop_gpu import MLPRegressor, costs
from backprop_gpu.costs import GaussianNLL, Huber, Quantile


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """A sine whose noise grows from the middle."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (1500, 1))
    noise = (0.1 + 0.2 * np.abs(X[:, 0])) * rng.standard_normal(1500)
    return X, np.sin(X[:, 0]) + noise


SETTINGS: dict[str, Any] = {"hidden_layer_sizes": (30,), "max_iter": 120, "random_state": 1}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_means_and_deviations(data: Any, solver: str) -> None:
    X, y = data
    est = MLPRegressor(loss="gaussian_nll", solver=solver, **SETTINGS).fit(X, y)
    mean, deviation = est.predict(X, return_std=True)
    np.testing.assert_array_equal(mean, est.predict(X))
    assert mean.shape == deviation.shape == (1500,)
    assert est.n_outputs_ == 1
    assert est.coefs_[-1].shape == (30, 2)
    assert np.abs(deviation - (0.1 + 0.2 * np.abs(X[:, 0]))).max() < 0.2
    assert np.mean(np.abs(mean - y) < deviation) == pytest.approx(0.683, abs=0.04)
    cost = costs.get("gaussian_nll")
    a = np.c_[mean, 2 * np.log(deviation)]
    exact = float(np.mean(cost.samples(a, cost.prepare(y[:, None], 2))))
    assert est.loss_ == pytest.approx(exact, abs=0.02)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_quantiles(data: Any) -> None:
    X, y = data
    est = MLPRegressor(loss=Quantile((0.1, 0.4, 0.9)), **SETTINGS).fit(X, y)
    found = est.predict_quantiles(X)
    assert found.shape == (1500, 3)
    np.testing.assert_allclose((y[:, None] <= found).mean(axis=0), (0.1, 0.4, 0.9), atol=0.03)
    np.testing.assert_array_equal(est.predict(X), found[:, 1])
    two = MLPRegressor(loss="quantile(q=(0.2, 0.8))", **SETTINGS | {"max_iter": 3})
    two.fit(X, np.c_[y, -y])
    assert two.predict_quantiles(X).shape == (1500, 2, 2)
    assert two.predict(X).shape == (1500, 2)
    np.testing.assert_array_equal(two.predict(X), two.predict_quantiles(X)[:, :, 0])
    assert two.n_outputs_ == 2


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_few_wild_values_matter_less(data: Any) -> None:
    X, y = data[0], np.sin(data[0][:, 0])
    wild = y + 50.0 * (np.arange(len(y)) % 20 == 0)
    fits = {
        loss: MLPRegressor(loss=loss, **SETTINGS).fit(X, wild).predict(X)
        for loss in ("squared_error", "huber(delta=0.1)", "absolute_error")
    }
    errors = {loss: np.abs(found - y).mean() for loss, found in fits.items()}
    assert errors["huber(delta=0.1)"] < 0.2 * errors["squared_error"]
    assert errors["absolute_error"] < 0.2 * errors["squared_error"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("loss", [Huber(0.3), Quantile((0.1, 0.9)), GaussianNLL(), "huber"])
def test_they_are_estimators_as_others(data: Any, loss: Any) -> None:
    X, y = data
    est = clone(MLPRegressor(loss=loss, **SETTINGS | {"max_iter": 3}))
    assert est.get_params()["loss"] == loss
    est.fit(X, y, sample_weight=np.ones(len(y)))
    by_name = MLPRegressor(loss=getattr(loss, "name", loss), **SETTINGS | {"max_iter": 3})
    np.testing.assert_allclose(est.predict(X), by_name.fit(X, y).predict(X), rtol=1e-9)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(est)).predict(X), est.predict(X))
    stopped = clone(est).set_params(early_stopping=True).fit(X, y)
    assert len(stopped.validation_loss_curve_) == stopped.n_iter_
    est.partial_fit(X, y)
    with pytest.raises(ValueError, match="scikit-learn's MLPRegressor has no loss"):
        est.to_sklearn()
    dropping = clone(est).set_params(dropout=0.2).fit(X, y)
    assert np.isfinite(dropping.loss_)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_weights_are_rows(data: Any) -> None:
    X, y = data[0][:60], data[1][:60]
    weights = np.arange(60) % 3
    repeated = np.repeat(np.arange(60), weights)
    settings = SETTINGS | {"solver": "lbfgs", "alpha": 0.0, "max_iter": 5}
    for loss in ("gaussian_nll", "huber", "quantile(q=(0.1, 0.9))"):
        a = MLPRegressor(loss=loss, **settings).fit(X, y, sample_weight=weights)
        b = MLPRegressor(loss=loss, **settings).fit(X[repeated], y[repeated])
        assert a.loss_ == pytest.approx(b.loss_, rel=1e-9)


def test_what_is_no_loss_is_refused(data: Any) -> None:
    X, y = data
    for bad in ("hinge", "cosine", 3, None, costs.get("hinge"), "nothing(delta=1)"):
        with pytest.raises(ValueError, match="The 'loss' parameter of MLPRegressor must be"):
            MLPRegressor(loss=bad).fit(X, y)
    with pytest.raises(ValueError, match=r"delta must be in \(0, inf\), got -1"):
        MLPRegressor(loss="huber(delta=-1)").fit(X, y)
    est = MLPRegressor(max_iter=1, loss="huber")
    with pytest.warns(UserWarning, match="Maximum iterations"):
        est.fit(X, y)
    with pytest.raises(ValueError, match=r"return_std needs loss 'gaussian_nll'.*not 'huber'"):
        est.predict(X, return_std=True)
    with pytest.raises(ValueError, match="predict_quantiles needs loss 'quantile', not 'huber'"):
        est.predict_quantiles(X)
