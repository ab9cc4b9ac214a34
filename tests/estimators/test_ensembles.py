"""`EnsembleClassifier`, `EnsembleRegressor`: all they say follows from members and rows."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from backprop_gpu import SGD, Adam, EnsembleClassifier, EnsembleRegressor, Network, threads
from backprop_gpu.costs import Quantile
from backprop_gpu.estimators import ensemble_file, ensembles
from backprop_gpu.estimators.resampling import MemberRows

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*were left out of no member's training:UserWarning"),
]

SMALL = {"n_members": 5, "hidden_layer_sizes": (6,), "max_iter": 12, "learning_rate_init": 0.02}
FORMAT = ensemble_file.FORMAT


@pytest.fixture(scope="module")
def iris() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def diabetes() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(X)[:150], ((y - y.mean()) / y.std())[:150]


def classifier(**given: Any) -> EnsembleClassifier:
    return EnsembleClassifier(**{**SMALL, "random_state": 3, **given})


def regressor(**given: Any) -> EnsembleRegressor:
    return EnsembleRegressor(**{**SMALL, "random_state": 3, **given})


# -- scikit-learn's checks ------------------------------------------------------------------------

#: What cannot pass, and why.
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "a weight of 2 is not a row drawn and shuffled"
    " twice: bootstraps, mini-batches and their order differ; so it is with scikit-learn's MLP and"
    " forests",
}


@parametrize_with_checks(
    [
        EnsembleClassifier(n_members=4, learning_rate_init=0.01),
        EnsembleRegressor(n_members=4, learning_rate_init=0.01),
        EnsembleClassifier(n_members=3, learning_rate_init=0.01, bootstrap=False),
    ],
    expected_failed_checks=lambda estimator: EXPECTED,
)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# -- members --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bootstrap": False}, {"cv": 3}, {"solver": "sgd", "momentum": 0.8}, {"dropout": 0.3},
     {"mixup": 0.4}, {"solver": "sgd", "momentum": 0.0, "hidden_layer_sizes": ()}],
)  # fmt: skip
def test_a_member_is_a_network_of_its_rows(iris: Any, options: Any, kind: str) -> None:
    X, y = iris[0].astype(kind), iris[1]
    ensemble = classifier(batch_size=16, alpha=0.3, **options).fit(X, y)
    rows: MemberRows = ensemble._rows
    momentum = options.get("momentum", 0.0)
    optimizer = (
        SGD(l2=0.3 / 16, momentum=momentum, nesterov=momentum > 0)
        if "solver" in options
        else Adam(l2=0.3 / 16)
    )
    sizes = ensemble.population_.sizes
    for i, member in enumerate(ensemble.population_):
        alone = Network(
            sizes, activation=["relu", "softmax"][-len(sizes) + 1 :],
            cost="categorical_cross_entropy", dtype=kind, seed=rows.network_seed(i),
            initial_weights="xavier",
        )  # fmt: skip
        numbers = ensemble.estimators_samples_[i]
        alone.fit(
            X[numbers], y[numbers], epochs=12, batch_size=16, learning_rate=0.02,
            optimizer=optimizer, dropout=options.get("dropout", 0.0),
            mixup=options.get("mixup", 0.0),
            engine=ensemble.population_.plan.engine,
        )  # fmt: skip
        for ours, its in zip(member.weights, alone.weights, strict=True):
            np.testing.assert_array_equal(ours, its)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_member_does_not_depend_on_how_many_there_are(iris: Any, early_stopping: bool) -> None:
    given = {"early_stopping": early_stopping, "n_iter_no_change": 2, "max_iter": 30}
    few, many = (classifier(n_members=n, **given).fit(*iris) for n in (2, 9))
    assert (
        few.plan_.split("engine ")[1].split(":")[0] == many.plan_.split("engine ")[1].split(":")[0]
    )
    for one, other in zip(few.population_, many.population_, strict=False):
        assert one.history.loss == other.history.loss
        for a, b in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(few.estimators_samples_, many.estimators_samples_[:2])
    seeds = {many._rows.network_seed(i) for i in range(9)}
    assert len(seeds) == 9
    assert len({tuple(rows) for rows in many.estimators_samples_}) == 9


def test_seeds_stay_what_they_are() -> None:
    """Those of another release would train other members."""
    rows = MemberRows(np.ones(5, bool), 7, bootstrap=True)
    assert rows.network_seed(2) == 597975213468823588459525358965043702
    assert rows.trained(2).tolist() == [3, 2, 0, 1, 1]


def test_random_state(iris: Any) -> None:
    first, second = (classifier().fit(*iris).predict_proba(iris[0]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (classifier(random_state=4).fit(*iris).predict_proba(iris[0]) != first).any()
    state = np.random.RandomState(3)
    one, other = (classifier(random_state=state).fit(*iris) for _ in range(2))
    assert (one.predict_proba(iris[0]) != other.predict_proba(iris[0])).any()


# -- predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_soft_vote(iris: Any, dtype: str) -> None:
    X, y = iris[0].astype(dtype), np.array(["a", "b", "c"])[iris[1]]
    ensemble = classifier().fit(X, y)
    each = np.stack([member.predict(X).astype(float) for member in ensemble.population_])
    found = ensemble.predict_proba(X)
    assert found.dtype == dtype
    epsilon = np.finfo(dtype).eps
    np.testing.assert_allclose(found, each.mean(axis=0), rtol=4 * epsilon, atol=0)
    np.testing.assert_array_equal(ensemble.predict(X), ensemble.classes_[found.argmax(axis=1)])
    np.testing.assert_allclose(ensemble.predict_log_proba(X), np.log(found), rtol=4 * epsilon)
    deviation = ensemble.predict_std(X)
    assert deviation.dtype == dtype
    np.testing.assert_allclose(deviation, each.std(axis=0), rtol=1e2 * epsilon, atol=epsilon)


def test_two_classes_have_one_output(iris: Any) -> None:
    X, y = iris[0][:100], iris[1][:100] == 1
    ensemble = classifier().fit(X, y)
    assert ensemble.population_.sizes == (4, 6, 1)
    each = np.stack([member.predict(X) for member in ensemble.population_]).astype(float)
    found = ensemble.predict_proba(X)
    np.testing.assert_allclose(found[:, 1], each.mean(axis=0)[:, 0], rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_array_equal(ensemble.predict(X), each.mean(axis=0)[:, 0] > 0.5)
    np.testing.assert_allclose(
        ensemble.predict_std(X), each.std(axis=0)[:, [0, 0]], rtol=1e-9, atol=1e-14
    )


def test_the_deviation_is_that_of_all_rows_in_any_pieces(
    diabetes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = regressor(loss="gaussian_nll").fit(*diabetes)
    whole = ensemble.predict_std(diabetes[0]), ensemble.predict_std(diabetes[0], noise=True)
    monkeypatch.setattr(ensembles, "_NUMBERS_AT_ONCE", 7 * 5 * 2)
    np.testing.assert_allclose(ensemble.predict_std(diabetes[0]), whole[0], rtol=1e-9)
    np.testing.assert_allclose(ensemble.predict_std(diabetes[0], noise=True), whole[1], rtol=1e-9)


def test_regression_of_several_numbers(diabetes: Any) -> None:
    X, y = diabetes
    Y = np.stack([y, -y, y**2], axis=1)
    ensemble = regressor().fit(X, Y)
    each = np.stack([member.predict(X) for member in ensemble.population_])
    np.testing.assert_allclose(ensemble.predict(X), each.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(ensemble.predict_std(X), each.std(axis=0), rtol=1e-9)
    assert ensemble.oob_prediction_.shape == Y.shape
    with pytest.raises(ValueError, match="gaussian_nll"):
        ensemble.predict_std(X, noise=True)


def test_variances_that_members_predict(diabetes: Any) -> None:
    X, y = diabetes
    Y = np.stack([y, 2 * y], axis=1)
    ensemble = regressor(loss="gaussian_nll").fit(X, Y)
    each = np.stack([member.predict(X) for member in ensemble.population_])
    mean, variance = each[..., :2], np.exp(each[..., 2:])
    np.testing.assert_allclose(ensemble.predict(X), mean.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(ensemble.predict_std(X), mean.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(
        ensemble.predict_std(X, noise=True),
        np.sqrt(variance.mean(axis=0) + mean.var(axis=0)),
        rtol=1e-9,
    )
    assert ensemble.oob_prediction_.shape == Y.shape
    noisy = np.random.default_rng(0).normal(0, 0.5, 300)
    sure = regressor(loss="gaussian_nll", max_iter=100).fit(np.zeros((300, 1)), noisy)
    assert sure.predict_std([[0.0]], noise=True) == pytest.approx(0.5, rel=0.2)
    assert sure.predict_std([[0.0]])[0] < 0.2


def test_quantiles(diabetes: Any, tmp_path: Path) -> None:
    X, y = diabetes
    Y = np.stack([y, 3 * y], axis=1)
    for targets in (y, Y):
        ensemble = regressor(loss=Quantile((0.1, 0.5, 0.9))).fit(X, targets)
        each = np.stack([member.predict(X) for member in ensemble.population_]).mean(axis=0)
        expected = each if targets is y else each.reshape(len(X), 2, 3)
        np.testing.assert_allclose(ensemble.predict_quantiles(X), expected, rtol=1e-12)
        np.testing.assert_allclose(ensemble.predict(X), expected[..., 1], rtol=1e-12)
        assert ensemble.oob_prediction_.shape == targets.shape
        ensemble.save(tmp_path / "e")
        loaded = EnsembleRegressor.load(tmp_path / "e")
        assert loaded.loss == "quantile(q=(0.1, 0.5, 0.9))"
        np.testing.assert_array_equal(loaded.predict_quantiles(X), ensemble.predict_quantiles(X))
    with pytest.raises(ValueError, match="predict_quantiles needs loss 'quantile', not 'quadratic"):
        regressor().fit(X, y).predict_quantiles(X)


def test_dropout(iris: Any) -> None:
    dropped = classifier(dropout=0.5).fit(*iris)
    assert (dropped.predict_proba(iris[0]) != classifier().fit(*iris).predict_proba(iris[0])).any()
    linear = classifier(hidden_layer_sizes=(), dropout=0.5).fit(*iris)  # nothing to leave out
    other = classifier(hidden_layer_sizes=()).fit(*iris)
    np.testing.assert_array_equal(linear.predict_proba(iris[0]), other.predict_proba(iris[0]))


@pytest.mark.parametrize(
    "loss", ["squared_error", "absolute_error", "huber(delta=2.0)", "quantile", "poisson"]
)
def test_losses(diabetes: Any, loss: str) -> None:
    X, y = diabetes
    y = np.exp(y) if loss == "poisson" else y
    ensemble = regressor(loss=loss, max_iter=60).fit(X, y)
    name = "quadratic" if loss == "squared_error" else loss
    assert ensemble.population_.cost.name == name
    assert (ensemble.predict(X) > 0).all() or loss != "poisson"
    assert ensemble.score(X, y) > 0.3


def test_members_that_failed_have_no_part(iris: Any, tmp_path: Path) -> None:
    ensemble = classifier().fit(*iris)
    kept = [m.predict(iris[0]) for i, m in enumerate(ensemble.population_) if i not in (1, 3)]
    ensemble.population_.failed = {1: "cost became nan", 3: "cost became nan"}
    np.testing.assert_allclose(ensemble.predict_proba(iris[0]), np.mean(kept, axis=0), rtol=1e-12)
    np.testing.assert_allclose(ensemble.predict_std(iris[0]), np.std(kept, axis=0), rtol=1e-9)
    rows = ensemble._rows
    found = ensemble._out_of_bag(ensemble.population_, *iris, None, rows)
    out = [set(rows.left_out(i)) for i in range(5)]
    for row in range(0, 150, 10):
        expected = [
            m.predict(iris[0][row : row + 1])[0]
            for i, m in enumerate(ensemble.population_)
            if i not in (1, 3) and row in out[i]
        ]
        if expected:
            mean = found["oob_decision_function_"][row]
            np.testing.assert_allclose(mean, np.mean(expected, axis=0), rtol=1e-9)
    ensemble.save(tmp_path / "e")
    loaded = EnsembleClassifier.load(tmp_path / "e")
    assert len(loaded.population_) == 3
    np.testing.assert_array_equal(loaded.predict_proba(iris[0]), ensemble.predict_proba(iris[0]))


def test_all_members_failed(diabetes: Any) -> None:
    ensemble = regressor(solver="sgd", learning_rate_init=1e30, activation="identity")
    with pytest.raises(FloatingPointError, match="5 members"):
        ensemble.fit(*diabetes)
    assert not hasattr(ensemble, "population_")


# -- rows left out --------------------------------------------------------------------------------


def by_hand(ensemble: Any, X: np.ndarray, left_out: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The mean outputs of each row by members that have not seen it, and how many these are."""
    means, counts = [], []
    for row in range(len(X)):
        outputs = [
            member.predict(X[row : row + 1])[0].astype(float)
            for i, member in enumerate(ensemble.population_)
            if (
                row not in ensemble.estimators_samples_[i]
                if left_out is None
                else row in left_out[i]
            )
        ]
        counts.append(len(outputs))
        width = ensemble.population_.sizes[-1]
        means.append(np.mean(outputs, axis=0) if outputs else np.full(width, np.nan))
    return np.array(means), np.array(counts)


@pytest.mark.parametrize("weighted", [False, True])
def test_out_of_bag_score_of_a_classifier(iris: Any, weighted: bool) -> None:
    X, y = iris
    weights = np.random.default_rng(0).integers(0, 4, len(y)) if weighted else None
    names = np.array(["x", "y", "z"])[y]
    ensemble = classifier(n_members=3)
    with pytest.warns(UserWarning, match="of 150 rows were left out of no member's training"):
        ensemble.fit(X, names, sample_weight=weights)
    means, counts = by_hand(ensemble, X)
    assert (counts == 0).any()
    np.testing.assert_allclose(ensemble.oob_decision_function_, means, rtol=1e-9)
    known = counts > 0
    expected = accuracy_score(
        names[known],
        ensemble.classes_[means[known].argmax(axis=1)],
        sample_weight=weights[known] if weighted else None,
    )
    assert ensemble.oob_score_ == pytest.approx(expected, abs=1e-12)
    for rows in ensemble.estimators_samples_:
        assert weights is None or (weights[rows] > 0).all()
        assert len(rows) == (np.count_nonzero(weights) if weighted else len(X))
        assert len(np.unique(rows)) < 0.75 * len(rows)


@pytest.mark.parametrize("weighted", [False, True])
def test_out_of_bag_score_of_a_regressor(diabetes: Any, weighted: bool) -> None:
    X, y = diabetes
    weights = np.random.default_rng(0).random(len(y)) if weighted else None
    ensemble = regressor(n_members=12).fit(X, y, weights)
    means, counts = by_hand(ensemble, X)
    np.testing.assert_allclose(ensemble.oob_prediction_, means[:, 0], rtol=1e-9)
    known = counts > 0
    expected = r2_score(
        y[known], means[known, 0], sample_weight=weights[known] if weighted else None
    )
    assert ensemble.oob_score_ == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "cv", [4, KFold(3), "pairs", ShuffleSplit(3, test_size=0.4, random_state=0)]
)
def test_out_of_fold_score(iris: Any, cv: Any) -> None:
    X, y = iris
    if cv == "pairs":
        cv = [(np.arange(0, 100), np.arange(100, 150)), (np.arange(50, 150), np.arange(0, 50))]
    ensemble = classifier(cv=cv, n_members=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ensemble.fit(X, y)
    rows = ensemble.estimators_samples_
    folds = 4 if cv == 4 else 2 if isinstance(cv, list) else 3
    left_out = [np.setdiff1d(np.arange(len(X)), each) for each in rows]
    if isinstance(cv, list):
        left_out = [cv[i % 2][1] for i in range(7)]
    for i in range(7):
        np.testing.assert_array_equal(rows[i], rows[i % folds])
    if cv == 4:  # stratified, each row in one fold
        assert all(np.bincount(y[each]).tolist() in ([12, 13, 13], [13, 12, 13], [13, 13, 12],
                                                     [12, 12, 13], [12, 13, 12], [13, 12, 12])
                   for each in left_out[:4])  # fmt: skip
        assert sorted(np.concatenate(left_out[:4])) == list(range(150))
        assert not np.array_equal(left_out[0][:12], np.arange(12))  # shuffled
    means, counts = by_hand(ensemble, X, left_out)
    np.testing.assert_allclose(ensemble.oob_decision_function_, means, rtol=1e-9)
    known = counts > 0
    expected = accuracy_score(y[known], means[known].argmax(axis=1))
    assert ensemble.oob_score_ == pytest.approx(expected, abs=1e-12)


def test_nothing_is_left_out_without_a_bootstrap(iris: Any) -> None:
    ensemble = classifier().fit(*iris)
    assert hasattr(ensemble, "oob_score_")
    ensemble.set_params(bootstrap=False).fit(*iris)
    for name in ("oob_score_", "oob_decision_function_"):
        assert not hasattr(ensemble, name)
    np.testing.assert_array_equal(ensemble.estimators_samples_[2], np.arange(150))


@pytest.mark.parametrize("options", [{}, {"bootstrap": False}, {"cv": KFold(3)}])
def test_a_row_of_weight_0_is_not_there(iris: Any, options: Any) -> None:
    X, y = iris
    order = np.random.default_rng(1).permutation(150)
    X, y = X[order], y[order]
    weights = np.ones(150)
    weights[120:] = 0
    if "cv" in options:
        folds = [(a[a < 120], b[b < 120]) for a, b in KFold(3).split(X)]
        short: Any = {"cv": folds}
    else:
        short = options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ours = classifier(**options).fit(X, y, weights)
        other = classifier(**short).fit(X[:120], y[:120])
    np.testing.assert_array_equal(ours.predict_proba(X), other.predict_proba(X))
    if not options:
        np.testing.assert_array_equal(
            ours.oob_decision_function_[:120], other.oob_decision_function_
        )
        assert ours.oob_score_ == other.oob_score_


def test_no_score_where_no_row_counts(iris: Any, diabetes: Any) -> None:
    for ensemble, (X, y) in ((classifier(), iris), (regressor(), diabetes)):
        order = np.random.default_rng(1).permutation(150)
        cv = [(np.arange(120), np.arange(120, 150))]
        ensemble.set_params(cv=cv).fit(X[order], y[order], np.arange(150) < 120)
        assert np.isnan(ensemble.oob_score_)


def test_class_weights(iris: Any) -> None:
    X, y = iris[0][:70], np.array(["much", "little"])[(iris[1][:70] == 1).astype(int)]
    given = classifier(class_weight={"little": 5.0, "much": 2.0}).fit(X, y)
    other = classifier().fit(X, y, np.where(y == "little", 5.0, 2.0))
    np.testing.assert_array_equal(given.predict_proba(X), other.predict_proba(X))
    balanced = classifier(class_weight="balanced").fit(X, y)
    assert (balanced.predict_proba(X) != classifier().fit(X, y).predict_proba(X)).any()


def test_early_stopping_keeps_the_best_epoch_of_the_rows_left_out(diabetes: Any) -> None:
    X, y = diabetes
    weights = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    ensemble = regressor(
        early_stopping=True, n_iter_no_change=4, max_iter=200, hidden_layer_sizes=(40,), tol=0.0
    ).fit(X, y, weights)
    assert (ensemble.n_iter_ < 200).all()
    assert len(set(ensemble.n_iter_)) > 1
    for i, member in enumerate(ensemble.population_):
        out = np.setdiff1d(np.flatnonzero(weights), ensemble.estimators_samples_[i])
        history = member.history
        best = int(np.argmin(history.val_loss))
        assert best == len(history) - 1 - 4
        a = member.predict(X[out])[:, 0]
        expected = np.average((a - y[out]) ** 2 / 2, weights=weights[out])
        assert history.val_loss[best] == pytest.approx(expected, rel=1e-9)
    endless = regressor(early_stopping=True, n_iter_no_change=np.inf, max_iter=30, tol=0.0)
    endless.fit(X, y)
    assert (endless.n_iter_ == 30).all()
    assert any(member.history.restored is not None for member in endless.population_)


def test_convergence(iris: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="5 of 5 members have reached max_iter=12"):
        classifier().fit(*iris)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = classifier(tol=0.5, n_iter_no_change=2, n_members=20).fit(*iris)
        classifier(n_iter_no_change=np.inf, n_members=20).fit(*iris)
    assert (stopped.n_iter_ < 12).all()


# -- labels ---------------------------------------------------------------------------------------

LABELS = {
    "int": [7, -3, 9],
    "uint8": np.array([0, 4, 255], np.uint8),
    "float": [0.0, 1.0, 2.0],
    "str": ["é", "b", "a longer one"],
    "object": np.array(["é", "b", "a"], object),
    "big": np.array([2**62 + 1, 0, -(2**62) - 1]),
    "bool": [True, False],
    "two": ["no", "yes"],
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_survive_a_file(iris: Any, kind: str, tmp_path: Path) -> None:
    labels = np.array(LABELS[kind])
    X = iris[0][: 50 * len(labels)]
    y = labels[iris[1][: 50 * len(labels)]]
    ensemble = classifier(max_iter=40).fit(X, y)
    assert ensemble.score(X, y) > 0.8
    ensemble.save(tmp_path / "e.safetensors")
    loaded = EnsembleClassifier.load(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(loaded.classes_, ensemble.classes_)
    assert loaded.classes_.dtype.kind == ensemble.classes_.dtype.kind
    np.testing.assert_array_equal(loaded.predict(X), ensemble.predict(X))
    np.testing.assert_array_equal(loaded.predict_proba(X), ensemble.predict_proba(X))


def test_labels_that_no_file_can_hold(iris: Any, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    classifier().fit(*iris).save(path)
    before = path.read_bytes()
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[D]")
    ensemble = classifier().fit(*iris)
    ensemble.classes_ = days
    with pytest.raises(ValueError, match="cannot be saved: labels must be numbers or texts"):
        ensemble.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["squared_error", "gaussian_nll", "huber(delta=0.5)"])
def test_the_same_predictions_from_a_file(
    diabetes: Any, loss: str, dtype: str, tmp_path: Path
) -> None:
    X = pd.DataFrame(diabetes[0].astype(dtype), columns=[f"c{i}" for i in range(10)])
    ensemble = regressor(
        loss=loss, hidden_layer_sizes=(5, 4), activation=["gelu", "tanh"], cv=3,
        random_state=np.random.RandomState(0), n_iter_no_change=np.inf,
    ).fit(X, diabetes[1])  # fmt: skip
    ensemble.save(tmp_path / "e")
    loaded = EnsembleRegressor.load(tmp_path / "e")
    np.testing.assert_array_equal(loaded.predict(X), ensemble.predict(X))
    np.testing.assert_array_equal(loaded.predict_std(X), ensemble.predict_std(X))
    assert loaded.predict(X).dtype == dtype
    assert loaded.oob_score_ == ensemble.oob_score_
    assert list(loaded.feature_names_in_) == list(X.columns)
    np.testing.assert_array_equal(loaded.n_iter_, ensemble.n_iter_)
    expected = ensemble.get_params() | {"random_state": None, "activation": ("gelu", "tanh")}
    assert loaded.get_params() == expected
    with pytest.raises(AttributeError, match="does not know the rows"):
        loaded.estimators_samples_  # noqa: B018
    loaded.save(tmp_path / "again")
    for name, tensor in load_file(tmp_path / "e").items():
        np.testing.assert_array_equal(load_file(tmp_path / "again")[name], tensor)
    loaded.fit(X, diabetes[1])  # an estimator as any other


def test_parameters_that_are_objects_stay_behind(iris: Any, tmp_path: Path) -> None:
    classifier(cv=KFold(3, shuffle=True), class_weight={0: 2.0, 1: 1.0, 2: 1.0}).fit(*iris).save(
        tmp_path / "e"
    )
    loaded = EnsembleClassifier.load(tmp_path / "e")
    assert loaded.cv is None
    assert loaded.class_weight is None
    assert loaded.n_members == 5


@pytest.fixture(scope="module")
def saved(iris: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "e.safetensors"
    classifier(n_members=2).fit(*iris).save(path)
    return path


def described(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="numpy") as file:
        found: dict[str, Any] = json.loads(file.metadata()[FORMAT])
    return found


HOSTILE: list[dict[str, Any]] = [
    {"version": 2}, {"version": True}, {"version": "1"}, {"estimator": "os.system"},
    {"members": 3}, {"members": 0}, {"members": 10**30}, {"members": "2"}, {"members": None},
    {"sizes": [4, 7, 3]}, {"sizes": [4, 6]}, {"sizes": []}, {"sizes": 5}, {"sizes": [4, 10**18, 3]},
    {"sizes": [4, -6, 3]}, {"sizes": [[4], 6, 3]}, {"sizes": [4] * 10**5},
    {"activations": ["relu", "os"]}, {"activations": ["relu"]}, {"activations": "relu"},
    {"activations": [["relu"], "softmax"]}, {"activations": ["softmax", "relu"]},
    {"cost": "no"}, {"cost": "huber(delta=__import__('os'))"}, {"cost": ["quadratic"]},
    {"cost": "gaussian_nll"}, {"dtype": "float32"}, {"dtype": "object"}, {"dtype": None},
    {"precision": "fp4"}, {"outputs": 2}, {"outputs": "3"}, {"epochs": [1]}, {"epochs": ["1", 2]},
    {"epochs": None}, {"score": "1"}, {"score": [1.0]}, {"features": ["a"]},
    {"features": [1, 2, 3, 4]}, {"features": {}}, {"classes": None}, {"classes": [1, 2, 3]},
    {"classes": {"dtype": "int64", "labels": [1, 2]}},
    {"classes": {"dtype": "int64", "labels": [1, 2, 2]}},
    {"classes": {"dtype": "int8", "labels": [1, 2, 1000]}},
    {"classes": {"dtype": "int64", "labels": [1, 2, "3"]}},
    {"classes": {"dtype": "V9", "labels": ["a", "b", "c"]}},
    {"classes": {"dtype": "<U999999999", "labels": ["a", "b", "c"]}},
    {"classes": {"dtype": ["int64"], "labels": [1, 2, 3]}},
    {"classes": {"dtype": "object", "labels": [[1], [2], [3]]}},
    {"classes": {"dtype": "object", "labels": ["a", 1, 2]}},
    {"parameters": None}, {"parameters": {"unknown": 1}}, {"parameters": {"n_members": -1}},
    {"parameters": {"self": 1}}, {"parameters": {"solver": "lbfgs"}}, {"parameters": [1]},
    {"parameters": {"random_state": "x"}}, {"parameters": {"hidden_layer_sizes": [0]}},
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: str(change)[:60])
def test_a_description_that_lies(saved: Path, change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_file(load_file(saved), path, {FORMAT: json.dumps(described(saved) | change)})
    with pytest.raises(ValueError, match=r"e\.safetensors: ") as caught:
        EnsembleClassifier.load(path)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("name", ["version", "estimator", "members", "sizes", "activations", "cost",
                                  "dtype", "precision", "outputs", "epochs", "score", "features",
                                  "parameters", "classes"])  # fmt: skip
def test_a_description_that_lacks_something(saved: Path, name: str, tmp_path: Path) -> None:
    path, description = tmp_path / "e", described(saved)
    del description[name]
    save_file(load_file(saved), path, {FORMAT: json.dumps(description)})
    with pytest.raises(ValueError, match="damaged description"):
        EnsembleClassifier.load(path)


def test_tensors_that_do_not_fit(saved: Path, tmp_path: Path) -> None:
    path, tensors = tmp_path / "e", load_file(saved)
    header = {FORMAT: json.dumps(described(saved))}
    infinite = tensors["w2"].copy()
    infinite[1, 0, 0] = np.inf
    for change in (
        {"w1": tensors["w1"][:1]}, {"w1": tensors["w1"].astype("float32")}, {"w3": tensors["w1"]},
        {"b2": tensors["b2"][:, :2]}, {"w2": infinite}, {"w2": tensors["w2"].reshape(-1)},
    ):  # fmt: skip
        save_file({k: np.ascontiguousarray(v) for k, v in (tensors | change).items()}, path, header)
        with pytest.raises(ValueError, match=str(path)):
            EnsembleClassifier.load(path)
    save_file({k: v for k, v in tensors.items() if k != "b1"}, path, header)
    with pytest.raises(ValueError, match=str(path)):
        EnsembleClassifier.load(path)


def test_files_that_are_none(saved: Path, tmp_path: Path, iris: Any) -> None:
    path, whole = tmp_path / "e", saved.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut short or not a safetensors file"):
            EnsembleClassifier.load(path)

    class Trap:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        EnsembleClassifier.load(path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ValueError, match="it holds an 'EnsembleClassifier', and no EnsembleRegr"):
        EnsembleRegressor.load(saved)
    for text in ("[", "[" * 100_000, "5", "null", "[]"):
        save_file(load_file(saved), path, {FORMAT: text})
        with pytest.raises(ValueError, match="damaged description"):
            EnsembleClassifier.load(path)
    Network([4, 3], seed=0, backend="numpy").save(path)
    with pytest.raises(ValueError, match="not an ensemble"):
        EnsembleClassifier.load(path)
    with pytest.raises(ValueError, match="not a model saved by backprop_gpu"):
        Network.load(saved)
    with pytest.raises(FileNotFoundError, match="no file of an ensemble at"):
        EnsembleClassifier.load(tmp_path / "nothing")
    with pytest.raises(NotFittedError):
        classifier().save(path)


# -- as scikit-learn's ----------------------------------------------------------------------------


def test_clones_copies_pickles(iris: Any) -> None:
    ensemble = classifier(activation=["tanh"], cv=3).fit(*iris)
    assert clone(ensemble).get_params() == ensemble.get_params()
    expected = ensemble.predict_proba(iris[0])
    for other in (
        pickle.loads(pickle.dumps(ensemble)), copy.copy(ensemble), copy.deepcopy(ensemble)
    ):  # fmt: skip
        np.testing.assert_array_equal(other.predict_proba(iris[0]), expected)
        np.testing.assert_array_equal(other.estimators_samples_, ensemble.estimators_samples_)
        other.set_params(random_state=9).fit(*iris)
        np.testing.assert_array_equal(ensemble.predict_proba(iris[0]), expected)
    assert b"backprop_gpu.estimators" in pickle.dumps(ensemble)


def test_pipelines_and_searches(iris: Any) -> None:
    model = make_pipeline(StandardScaler(), classifier(max_iter=40))
    assert cross_val_score(model, *load_iris(return_X_y=True), cv=3).mean() > 0.8
    search = GridSearchCV(classifier(), {"alpha": [0.0, 1.0], "n_members": [1, 2]}, cv=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rows that one member has all seen
        search.fit(*iris)
    assert set(search.best_params_) == {"alpha", "n_members"}


def test_it_learns() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), classifier(n_members=16, max_iter=40)).fit(X, y)
    assert model[-1].oob_score_ > 0.95


def test_several_threads_predict(iris: Any) -> None:
    ensemble = classifier(n_members=8).fit(*iris)
    expected = ensemble.predict_proba(iris[0]), ensemble.predict_std(iris[0])

    def read(_: int) -> bool:
        found = ensemble.predict_proba(iris[0]), ensemble.predict_std(iris[0])
        return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(64)))
    with threads.alone("estimator", ensemble), pytest.raises(RuntimeError, match="trained already"):
        ensemble.fit(*iris)


# -- what is refused ------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n_members": 0}, "'n_members' parameter of EnsembleClassifier must be an int in the range"),
    ({"n_members": 2.0}, "'n_members'"),
    ({"n_members": True}, "'n_members'"),
    ({"hidden_layer_sizes": (5, 0)}, "hidden_layer_sizes must be >= 1"),
    ({"activation": "softmax"}, "'activation'"),
    ({"activation": ["relu", "relu"]}, "activation must name one for each of the 1 hidden layers"),
    ({"solver": "lbfgs"}, "'solver' parameter of EnsembleClassifier must be a str among"),
    ({"alpha": -1.0}, "'alpha'"),
    ({"batch_size": 0}, "'batch_size'"),
    ({"learning_rate_init": np.nan}, "'learning_rate_init'"),
    ({"max_iter": 0}, "'max_iter'"),
    ({"momentum": 1.0}, "'momentum'"),
    ({"bootstrap": "yes"}, "'bootstrap'"),
    ({"bootstrap": 1}, "'bootstrap'"),
    ({"bootstrap": np.True_, "cv": 3}, "bootstrap=True and cv exclude each other"),
    ({"bootstrap": True, "cv": 3}, "bootstrap=True and cv exclude each other"),
    ({"cv": 1}, "cv must be >= 2"),
    ({"cv": "folds"}, "cv"),
    ({"cv": [([0, 1], [500])]}, "cv: test of fold 0 names row 500"),
    ({"cv": [([], [1])]}, "cv: train of fold 0"),
    ({"cv": []}, "cv"),
    ({"early_stopping": True, "bootstrap": False}, "early_stopping needs rows left out"),
    ({"early_stopping": "yes"}, "'early_stopping'"),
    ({"tol": -1.0}, "'tol'"),
    ({"n_iter_no_change": 0}, "'n_iter_no_change'"),
    ({"random_state": "x"}, "seed a numpy.random.RandomState"),
    ({"backend": "gpu"}, "'backend'"),
    ({"engine": "fast"}, "'engine'"),
    ({"precision": "int8"}, "'precision'"),
    ({"class_weight": {7: 1.0}}, "are not in class_weight"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_parameters_that_mean_nothing(iris: Any, given: Any, message: str) -> None:
    ensemble = classifier().fit(*iris)
    before = dict(vars(ensemble))
    ensemble.set_params(**given)
    with pytest.raises((ValueError, TypeError), match=message):
        ensemble.fit(*iris)
    assert vars(ensemble) == before | given


@pytest.mark.parametrize("loss", ["cosine", "huber(", "huber(gamma=1)", "no", None, "hinge"])
def test_losses_that_are_none(diabetes: Any, loss: Any) -> None:
    with pytest.raises(ValueError, match=r"loss|huber"):
        regressor(loss=loss).fit(*diabetes)


def test_data_that_do_not_fit(iris: Any, diabetes: Any) -> None:
    X, y = iris
    hole = X.copy()
    hole[3, 2] = np.nan
    ensemble = classifier().fit(X, y)
    before = dict(vars(ensemble))
    for bad, labels, weights, message in (
        (hole, y, None, "contains NaN"),
        (X[:, :2], y[:-1], None, "inconsistent numbers of samples"),
        (csr_matrix(X), y, None, "[Ss]parse"),
        (X[:, :2], np.zeros(150), None, "one class"),
        (X, y, np.where(y == 1, 1.0, 0.0), "one class"),
        (X, np.random.default_rng(0).random(150), None, "continuous"),
        (X, np.eye(3)[y], None, "y should be a 1d array"),
        (X, y, -np.ones(150), "must not be negative"),
        (X, y, np.zeros(150), "non-zero"),
        (X, y, np.ones(149), "sample_weight.shape"),
        (X, y, np.full(150, np.nan), "NaN"),
        (X[0], y, None, "1D array"),
        (X.astype(complex), y, None, "Complex"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            ensemble.fit(bad, labels, sample_weight=weights)
        assert vars(ensemble) == before
    for bad, message in (
        (hole, "NaN"),
        (X[:, :2], "2 features"),
        (csr_matrix(X), "[Ss]parse"),
        (np.full((1, 4), np.inf), "infinity"),
    ):
        for read in (ensemble.predict, ensemble.predict_proba, ensemble.predict_std):
            with pytest.raises((ValueError, TypeError), match=message):
                read(bad)
    with pytest.raises((ValueError, TypeError), match=r"could not convert|must hold numbers"):
        regressor().fit(diabetes[0], np.full(150, "a"))
    with pytest.raises(ValueError, match=r"needs Y in \[0, inf\]"):
        regressor(loss="poisson").fit(*diabetes)
    with pytest.raises(TypeError, match="noise must be True or False"):
        regressor().fit(*diabetes).predict_std(diabetes[0], noise=1)


def test_early_stopping_without_a_row_left_out() -> None:
    X, y = np.array([[0.0], [1.0]]), np.array([0.0, 1.0])
    with pytest.raises(ValueError, match="early_stopping needs rows left out, and member"):
        regressor(early_stopping=True, n_members=20).fit(X, y)


def test_early_stopping_by_rows_of_weight_0() -> None:
    X, y = np.linspace(-1, 1, 8)[:, None], np.linspace(0, 1, 8)
    cv = [(np.arange(5), np.arange(5, 8))]
    with pytest.raises(ValueError, match="early_stopping needs rows left out, and member 0"):
        regressor(early_stopping=True, cv=cv).fit(X, y, np.arange(8) < 5)


def test_a_batch_larger_than_the_data(iris: Any) -> None:
    with pytest.warns(UserWarning, match="batch_size=500 is more than the 150 rows of a member"):
        large = classifier(batch_size=500).fit(*iris)
    np.testing.assert_array_equal(
        large.predict_proba(iris[0]), classifier(batch_size=150).fit(*iris).predict_proba(iris[0])
    )


# -- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_on_a_device(iris: Any, tmp_path: Path) -> None:
    X, y = iris[0].astype("float32"), iris[1]
    given = {"n_members": 3, "max_iter": 4, "batch_size": 50, "early_stopping": True}
    ours, other = (classifier(backend=each, **given).fit(X, y) for each in ("cuda", "numpy"))
    np.testing.assert_allclose(ours.predict_proba(X), other.predict_proba(X), atol=1e-4)
    assert "backend cuda" in ours.plan_
    ours.save(tmp_path / "e")
    loaded = EnsembleClassifier.load(tmp_path / "e", backend="cuda")
    np.testing.assert_array_equal(loaded.predict_proba(X), ours.predict_proba(X))
