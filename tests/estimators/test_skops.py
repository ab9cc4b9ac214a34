"""skops files: which types they ask for, and that what comes back is the same."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from backprop_gpu import (
    EnsembleClassifier,
    EnsembleRegressor,
    MLPClassifier,
    MLPRegressor,
    PopulationSearchCV,
)
from backprop_gpu.estimators.resampling import MemberRows
from backprop_gpu.population import Population

sio = pytest.importorskip("skops.io", reason="the extra test has skops")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
FEW = {"max_iter": 4, "hidden_layer_sizes": (6,), "random_state": 0}
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((60, 4)), np.repeat([0, 1, 2], 20)
X[:, 0] += Y


def through(estimator: Any, *others: str) -> Any:
    data = sio.dumps(estimator)
    kind = f"backprop_gpu.estimators.{type(estimator).__name__}"
    trusted = sio.get_untrusted_types(data=data)
    assert trusted == sorted([kind, *others])
    return sio.loads(data, trusted=trusted)


@pytest.mark.parametrize(
    "estimator",
    [
        MLPClassifier(**FEW),
        MLPClassifier(solver="lbfgs", **FEW),
        MLPClassifier(solver="sgd", early_stopping=True, **FEW),
        MLPRegressor(loss="huber(delta=2.0)", **FEW),
        EnsembleClassifier(n_members=3, **FEW),
        EnsembleClassifier(n_members=2, cv=2, **FEW),
        EnsembleRegressor(n_members=2, loss="gaussian_nll", early_stopping=True, **FEW),
    ],
)
def test_one_type_is_to_be_trusted(estimator: Any) -> None:
    estimator.fit(X, Y)
    loaded = through(estimator)
    assert (loaded.predict(X) == estimator.predict(X)).all()
    assert loaded.plan_ == estimator.plan_


def test_a_search_names_what_it_has_found() -> None:
    search = PopulationSearchCV(MLPClassifier(**FEW), {"alpha": [1e-4, 1e-1]}, cv=2).fit(X, Y)
    loaded = through(
        search,
        "backprop_gpu.estimators.MLPClassifier",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.model_selection._split.StratifiedKFold",
    )
    assert (loaded.predict(X) == search.predict(X)).all()


def test_an_ensemble_comes_back_whole() -> None:
    ensemble = EnsembleClassifier(n_members=3, **FEW).fit(X.astype("float32"), Y)
    ensemble.population_.failed[1] = "as if it had"
    loaded = through(ensemble)
    ours, theirs = ensemble.population_, loaded.population_
    assert isinstance(theirs, Population)
    assert theirs.failed == {1: "as if it had"}
    assert theirs.dtype == np.float32
    assert theirs.model.cost.name == "categorical_cross_entropy"
    for one, other in zip(ours, theirs, strict=True):
        assert one.history == other.history
        assert str(one.history.time_spent) == str(other.history.time_spent)
        assert one.generator is not other.generator
        assert copy.deepcopy(one.generator).random() == other.generator.random()
    assert isinstance(loaded._rows, MemberRows)
    for one, other in zip(ensemble.estimators_samples_, loaded.estimators_samples_, strict=True):
        assert (one == other).all()
    assert (loaded.predict_proba(X) == ensemble.predict_proba(X)).all()
    loaded.fit(X, Y)  # and it learns anew


def test_what_was_pickled_with_our_classes_loads() -> None:
    ensemble = EnsembleRegressor(n_members=2, **FEW).fit(X, Y)
    old = object.__new__(EnsembleRegressor)
    old.__setstate__(copy.deepcopy(vars(ensemble)))
    assert (old.predict(X) == ensemble.predict(X)).all()


def test_a_copy_shares_what_was_learnt() -> None:
    ensemble = EnsembleRegressor(n_members=2, **FEW).fit(X, Y)
    assert copy.copy(ensemble).population_ is ensemble.population_
