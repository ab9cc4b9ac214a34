"""scikit-learn's perceptrons as ours: their numbers, their own tests, and what is added."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import pickletools
import re
import subprocess
import sys
import types
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import _multilayer_perceptron as theirs
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from backprop_gpu import MLPClassifier, MLPRegressor, cpu, planning, threads
from backprop_gpu.engines.resident_cpu import ResidentCpuEngine
from backprop_gpu.estimators import perceptron
from backprop_gpu.estimators.perceptron import PerceptronCourse
from machine import SUPPORT, device_runtime, without_the_library

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PAIRS = [(MLPClassifier, theirs.MLPClassifier), (MLPRegressor, theirs.MLPRegressor)]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X / 16, y


@pytest.fixture(scope="module")
def iris() -> tuple[np.ndarray, np.ndarray]:
    return load_iris(return_X_y=True)


def same_curve(ours: Any, other: Any, tolerance: float) -> None:
    assert len(ours.loss_curve_) == len(other.loss_curve_)
    np.testing.assert_allclose(ours.loss_curve_, other.loss_curve_, rtol=tolerance)


# -- the same numbers ---------------------------------------------------------------------------


def test_scikit_learns_own_tests() -> None:
    """All of ``sklearn/neural_network/tests/test_mlp.py``, with the two names bound to ours."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "sklearn_plugin", "-p", "no:cacheprovider",
         "--pyargs", "sklearn.neural_network.tests.test_mlp"],
        cwd=SUPPORT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(SUPPORT), "PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    last = run.stdout.strip().splitlines()[-1]
    assert run.returncode == 0, run.stdout
    assert "passed" in last
    assert not {"failed", "skipped", "error"} & set(last.replace(",", "").split()), run.stdout


@pytest.mark.parametrize("ours", [MLPClassifier, MLPRegressor])
def test_scikit_learns_checks(ours: Any) -> None:
    """What is skipped has no bearing on a perceptron, and is skipped of scikit-learn's own too."""
    kind = dict(PAIRS)[ours]
    reference = {
        r["check_name"]: r["status"] for r in check_estimator(kind(max_iter=20), on_fail=None)
    }
    found = {r["check_name"]: r for r in check_estimator(ours(max_iter=20), on_fail=None)}
    assert reference.keys() <= found.keys()
    for name, result in found.items():
        if reference.get(name, "passed") == "passed":
            assert result["status"] == "passed", (name, result["exception"])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_the_same_loss_curve(digits: Any, activation: str, solver: str, dtype: str) -> None:
    X, y = digits[0].astype(dtype), digits[1]
    settings = {
        "hidden_layer_sizes": (64,), "activation": activation, "solver": solver, "max_iter": 30,
        "random_state": 3,
    }  # fmt: skip
    ours = MLPClassifier(**settings).fit(X, y)
    other = theirs.MLPClassifier(**settings).fit(X, y)
    same_curve(ours, other, 1e-12 if dtype == "float64" else 1e-6)
    assert ours.coefs_[0].dtype == dtype
    if dtype == "float64":
        for a, b in zip(
            ours.coefs_ + ours.intercepts_, other.coefs_ + other.intercepts_, strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_the_same_loss_curve_from_the_resident_engine(digits: Any, solver: str, dtype: str) -> None:
    """It sums in another order; of float32 only a smooth σ keeps the digits."""
    X, y = digits[0].astype(dtype), digits[1]
    activation = "relu" if dtype == "float64" else "tanh"
    settings = {"activation": activation, "solver": solver, "max_iter": 20, "random_state": 0}
    ours = MLPClassifier(**settings).fit(X, y)
    assert "engine resident" in ours.plan_
    same_curve(
        ours, theirs.MLPClassifier(**settings).fit(X, y), 1e-12 if dtype == "float64" else 1e-6
    )


SETTINGS: list[dict[str, Any]] = [
    {"learning_rate": "invscaling", "solver": "sgd", "power_t": 0.3},
    {"learning_rate": "adaptive", "solver": "sgd", "learning_rate_init": 0.5, "tol": 0.1,
     "n_iter_no_change": 1},
    {"solver": "sgd", "momentum": 1.0, "learning_rate_init": 1e-5},
    {"solver": "sgd", "nesterovs_momentum": False},
    {"solver": "sgd", "momentum": 0.0},
    {"beta_1": 0.0, "beta_2": 0.5, "epsilon": 1e-3},
    {"batch_size": 7, "alpha": 0.3},
    {"batch_size": 150, "alpha": 0.0},
    {"shuffle": False, "batch_size": 20},
    {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 15},
    {"hidden_layer_sizes": (5, 4, 3), "activation": "logistic"},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("ours", "other"), PAIRS)
def test_the_same_for_every_setting(iris: Any, ours: Any, other: Any, settings: Any) -> None:
    X, y = iris
    settings = {"max_iter": 8, "random_state": 5, "hidden_layer_sizes": (6,)} | settings
    a, b = ours(**settings).fit(X, y), other(**settings).fit(X, y)
    same_curve(a, b, 1e-12)
    assert a._optimizer.learning_rate == pytest.approx(b._optimizer.learning_rate, rel=1e-12)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("loss_", "best_loss_", "validation_scores_", "best_validation_score_"):
        expected = getattr(b, name)
        if expected is None:
            assert getattr(a, name) is None
        else:
            np.testing.assert_allclose(getattr(a, name), expected, rtol=1e-10)
    np.testing.assert_allclose(a.predict(X), b.predict(X), rtol=1e-9)
    assert a.score(X, y) == pytest.approx(b.score(X, y), rel=1e-9)


@pytest.mark.parametrize(("ours", "other"), PAIRS)
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("library", [True, False])
def test_sample_weights_and_sparse_rows(
    iris: Any, ours: Any, other: Any, solver: str, sparse: bool, library: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not library:
        without_the_library(monkeypatch)
        monkeypatch.setattr(perceptron, "_model_of", perceptron._model_of.__wrapped__)
    X, y = iris
    weights = np.random.default_rng(0).random(len(y)) * 3
    if sparse:
        X = scipy.sparse.csr_matrix(X)
    settings = {"max_iter": 6, "random_state": 5, "solver": solver, "alpha": 0.1}
    a = ours(**settings).fit(X, y, sample_weight=weights)
    b = other(**settings).fit(X, y, sample_weight=weights)
    assert a.loss_ == pytest.approx(b.loss_, rel=1e-10)
    for mine, their in zip(a.coefs_, b.coefs_, strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-7, atol=1e-10)
    without = "engine none" if sparse or solver == "lbfgs" else "engine layered"
    assert ("engine resident" if library else without) in a.plan_
    held = {"early_stopping": True, "max_iter": 3, "random_state": 0, "hidden_layer_sizes": (5,)}
    if solver == "adam":
        a, b = (kind(**held).fit(X, y, sample_weight=weights) for kind in (ours, other))
        np.testing.assert_allclose(a.validation_scores_, b.validation_scores_, rtol=1e-9)


def test_weights_of_a_mini_batch_that_sum_to_zero(iris: Any) -> None:
    X, y = iris
    weights = np.r_[np.zeros(140), np.ones(10)]
    for other in (MLPClassifier, theirs.MLPClassifier):
        with pytest.raises(ZeroDivisionError, match="sum to zero"):
            other(batch_size=10, shuffle=False).fit(X, y, sample_weight=weights)


@pytest.mark.parametrize("engine", ["layered", "resident", "auto"])
def test_an_engine_that_is_asked_for(iris: Any, engine: str) -> None:
    X, y = iris
    est = MLPClassifier(max_iter=2, random_state=0, engine=engine, backend="numpy").fit(X, y)
    assert f"engine {'resident' if engine == 'auto' else engine}" in est.plan_
    with pytest.raises(ValueError, match="The 'engine' parameter of MLPClassifier must be"):
        MLPClassifier(engine="fast").fit(X, y)


@pytest.mark.parametrize("outputs", ["multilabel", "binary", "poisson", "regressions"])
def test_every_kind_of_output(outputs: str) -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((120, 5))
    kinds, more = PAIRS[0], {}
    if outputs == "multilabel":
        X, y = make_multilabel_classification(120, 5, random_state=0)
    elif outputs == "binary":
        y = np.where(X[:, 0] > 0, "yes", "no")
    elif outputs == "poisson":
        kinds, more, y = PAIRS[1], {"loss": "poisson"}, rng.poisson(2.0, (120, 2)).astype(float)
    else:
        kinds, y = PAIRS[1], rng.standard_normal((120, 3))
    settings = {"max_iter": 10, "random_state": 2, "batch_size": 50, "alpha": 0.5} | more
    a, b = (kind(**settings).fit(X, y) for kind in kinds)
    same_curve(a, b, 1e-12)
    assert (
        (a.predict(X) == b.predict(X)).all()
        if kinds is PAIRS[0]
        else np.allclose(a.predict(X), b.predict(X), rtol=1e-9)
    )
    if kinds is PAIRS[0]:
        np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=1e-9)
        np.testing.assert_allclose(a.predict_log_proba(X), b.predict_log_proba(X), rtol=1e-8)


def test_training_goes_on_as_scikit_learns(iris: Any) -> None:
    """partial_fit after fit, warm starts, and a pickle in between keep moments and steps."""
    X, y = iris
    found = []
    for kind in PAIRS[0]:
        est = kind(max_iter=3, random_state=1, warm_start=True).fit(X, y).fit(X, y)
        est = pickle.loads(pickle.dumps(est))
        est.partial_fit(X, y).partial_fit(X[::2], y[::2])
        found.append(est)
    same_curve(*found, 1e-12)
    assert found[0].t_ == found[1].t_


def test_verbose_prints_scikit_learns_lines(iris: Any, capsys: Any) -> None:
    lines = []
    for kind in PAIRS[0]:
        kind(max_iter=4, random_state=1, verbose=True, early_stopping=True).fit(*iris)
        lines.append(capsys.readouterr().out.splitlines())
    assert lines[0] == lines[1]
    assert lines[0][0].startswith("Iteration 1, loss = ")


def test_ctrl_c_ends_training_with_a_warning(iris: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch, calls = PerceptronCourse.epoch, []

    def interrupted(self: PerceptronCourse) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return epoch(self)

    monkeypatch.setattr(PerceptronCourse, "epoch", interrupted)
    with pytest.warns(UserWarning, match="interrupted by user"):
        est = MLPClassifier(random_state=0).fit(*iris)
    whole = MLPClassifier(random_state=0, max_iter=est.n_iter_)
    monkeypatch.undo()
    assert est.loss_curve_ == whole.fit(*iris).loss_curve_
    assert all(map(np.array_equal, est.coefs_, whole.coefs_))


@pytest.mark.parametrize(
    "settings",
    [
        {"n_iter_no_change": 3, "tol": 1e-2},
        {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 2, "tol": 1e-2},
        {"solver": "sgd", "learning_rate": "invscaling"},
        {"batch_size": 40, "alpha": 0.5, "max_iter": 23},
        {"n_iter_no_change": np.inf, "max_iter": 30, "shuffle": False},
        {"warm_start": True, "n_iter_no_change": 1, "max_iter": 7},
        {"early_stopping": True, "max_iter": 9},
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_epochs_at_once_change_nothing(
    iris: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], weighted: bool
) -> None:
    """Those among which none can be the last are one call of the engine."""
    X, y = iris
    weights = np.random.default_rng(0).random(len(y)) if weighted else None
    kinds = [(MLPClassifier, y), (MLPRegressor, y + 1.0)]
    kinds.append((partial(MLPRegressor, loss="poisson"), y + 1.0))

    def trained() -> list[Any]:
        found = []
        for kind, targets in kinds:
            est = kind(**{"random_state": 0, "max_iter": 150, **settings})
            for _ in range(2 if est.warm_start else 1):
                est.fit(X, targets, weights)
            found.append(
                (est.n_iter_, est.loss_curve_, est.t_, *map(np.ndarray.tolist, est.coefs_))
            )
        return found

    calls = []
    train = cpu.CpuLibrary.train
    monkeypatch.setattr(
        cpu.CpuLibrary, "train", lambda self, job: calls.append(1) or train(self, job)
    )
    together = trained()
    many = len(calls)
    monkeypatch.setattr(ResidentCpuEngine, "epochs_at_once", lambda self, rows, batch_size: 1)
    assert trained() == together
    one_by_one = len(calls) - many
    looks = settings.get("early_stopping") or settings.get("learning_rate") == "invscaling"
    assert one_by_one == sum(len(losses) for _, losses, *_ in together) or "warm_start" in settings
    assert many == one_by_one if looks else many < one_by_one


# -- among scikit-learn's tools -----------------------------------------------------------------


def test_inside_pipelines_searches_and_frames(iris: Any) -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    X, y = pd.DataFrame(iris[0], columns=list("abcd")), iris[1]
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(max_iter=30, random_state=0))
    search = GridSearchCV(
        pipeline, {"mlpclassifier__hidden_layer_sizes": [(3,), (12,)]}, cv=3, n_jobs=2
    ).fit(X, y)
    assert search.best_params_ == {"mlpclassifier__hidden_layer_sizes": (12,)}
    assert cross_val_score(clone(pipeline), X, y, cv=3).mean() > 0.6
    est = MLPClassifier(max_iter=2).fit(X, y)
    assert est.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        est.predict(X.rename(columns={"a": "z"}))


def test_a_workers_threads_are_those_that_joblib_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert threads.cores() == 1
    monkeypatch.setenv("NUMBA_NUM_THREADS", "4096")
    assert threads.cores() <= (os.cpu_count() or 1)


def test_sample_weights_are_routed(iris: Any) -> None:
    from sklearn import config_context

    X, y = iris
    weights = np.random.default_rng(0).random(len(y))
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(
            MLPClassifier(max_iter=5, random_state=0).set_fit_request(sample_weight=True)
        )
        routed = pipeline.fit(X, y, sample_weight=weights)[-1]
    direct = MLPClassifier(max_iter=5, random_state=0).fit(X, y, sample_weight=weights)
    assert routed.loss_curve_ == direct.loss_curve_


def test_scikit_learns_callbacks(iris: Any) -> None:
    pytest.importorskip("sklearn.callback", reason="scikit-learn has no callbacks before 1.9")

    class Stop:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def setup(self, estimator: Any, context: Any) -> None:
            self.heard.append("setup")

        def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
            self.heard.append(f"begin {context.task_name}")

        def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any) -> bool:
            score = fitted_estimator.score(*iris)
            self.heard.append(f"end {context.task_name}")
            assert 0 <= score <= 1
            return context.task_name == "epoch" and self.heard.count("end epoch") == 3

        def teardown(self, estimator: Any, context: Any) -> None:
            self.heard.append("teardown")

    stop = Stop()
    est = MLPClassifier(random_state=0).set_callbacks(stop).fit(*iris)
    assert est.n_iter_ == 3
    assert stop.heard == [
        "setup",
        "begin fit",
        *["begin epoch", "end epoch"] * 3,
        "end fit",
        "teardown",
    ]


@pytest.mark.parametrize(("ours", "other"), PAIRS)
def test_a_genuine_estimator(iris: Any, ours: Any, other: Any) -> None:
    X, y = iris
    est = ours(max_iter=10, random_state=0, dropout=0.1).fit(X, y)
    genuine = est.to_sklearn()
    assert type(genuine) is other
    np.testing.assert_allclose(genuine.predict(X), est.predict(X), rtol=1e-12)
    genuine.partial_fit(X, y)  # its own from here on
    assert not np.array_equal(genuine.coefs_[0], est.coefs_[0])
    assert ours(max_iter=7).to_sklearn().max_iter == 7


def test_what_scikit_learn_cannot_be(iris: Any) -> None:
    X, y = iris
    for est in (
        MLPClassifier((4, 3), ["relu", "tanh"]),
        MLPClassifier((4,), "gelu"),
        MLPClassifier(()),
        MLPRegressor("absolute_error"),
    ):
        with pytest.raises(ValueError, match="scikit-learn's"):
            est.set_params(max_iter=1).fit(X, y).to_sklearn()


# -- scikit-learn's private names ----------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("ours", "other"), PAIRS)
def test_recipes_with_the_private_forward_passes(
    iris: Any, ours: Any, other: Any, sparse: bool
) -> None:
    X, y = scipy.sparse.csr_matrix(iris[0]) if sparse else iris[0], iris[1]
    found = []
    for kind in (ours, other):
        est = kind(hidden_layer_sizes=(6, 5), max_iter=3, random_state=0).fit(X, y)
        passed = est._forward_pass([X] + [None] * (est.n_layers_ - 1))
        found.append([*passed[1:], est._forward_pass_fast(X), est._forward_pass_fast(X, False)])
        with pytest.raises(ValueError, match="3 features, but"):
            est._forward_pass_fast(X[:, :3], check_input=True)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_a_learning_rate_set_between_epochs(iris: Any, solver: str) -> None:
    """As recipes set scikit-learn's, which of Adam's has only the initial one left to set."""
    name = "learning_rate" if solver == "sgd" else "learning_rate_init"
    found = []
    for kind in PAIRS[0]:
        est = kind((6,), solver=solver, random_state=0).partial_fit(*iris, classes=[0, 1, 2])
        setattr(est._optimizer, name, 0.03)
        found.append(est.partial_fit(*iris).partial_fit(*iris))
    same_curve(*found, 1e-12)
    if solver == "adam":
        with pytest.raises(AttributeError, match=r"set _optimizer\.learning_rate_init"):
            found[0]._optimizer.learning_rate = 0.1


def test_what_is_private_and_cannot_be_says_what_to_use(iris: Any) -> None:
    """Of all that scikit-learn's estimators have and ours have not."""
    settings = {"max_iter": 2, "random_state": 0, "early_stopping": True}
    est, other = (kind(**settings).fit(*iris) for kind in PAIRS[0])
    other._coef_indptr = other._intercept_indptr = []  # of lbfgs
    missing = {n for n in dir(other) if not n.startswith("__") and not hasattr(est, n)}
    missing -= {"_abc_impl", "_parameter_constraints"}
    assert len(missing) > 8
    for name in missing:
        with pytest.raises(AttributeError, match=f"has no {name}, which is private") as raised:
            getattr(est, name)
        assert re.search(r"transform\(X, layer=i\)|score|coefs_|intercepts_|predict", str(raised))
    for name in ("ms", "vs", "t", "update_params", "params"):
        with pytest.raises(AttributeError, match=rf"no {name}: .*transform\(X, layer=i\)"):
            getattr(est._optimizer, name)
    with pytest.raises(AttributeError, match="'MLPClassifier' object has no attribute 'nothing'"):
        _ = est.nothing
    with pytest.raises(AttributeError, match="partial_fit"):
        _ = MLPClassifier(solver="lbfgs").partial_fit
    assert not hasattr(MLPClassifier(), "_optimizer")


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_a_pickle_names_one_type_of_ours(iris: Any, solver: str) -> None:
    """So that a loader which asks for trusted types, as skops does, asks for one."""
    settings = {"clip_norm": 3.0, "solver": solver, "max_iter": 3, "early_stopping": True}
    est = MLPClassifier(**settings, random_state=0).fit(*iris)
    est.early_stopping = False
    est.best_loss_ = np.inf
    pickled = pickle.dumps(est, 0)
    globals_ = {each for code, each, _ in pickletools.genops(pickled) if code.name == "GLOBAL"}
    ours = {each for each in globals_ if each.startswith("backprop_gpu")}
    assert ours == {"backprop_gpu.estimators MLPClassifier"}
    again = pickle.loads(pickled)
    assert again._optimizer.rule == est._optimizer.rule
    for each in (est, again):
        each.partial_fit(*iris)
    assert again.loss_curve_ == est.loss_curve_


# -- beyond scikit-learn ------------------------------------------------------------------------


def test_no_hidden_layer_is_a_linear_model(iris: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    X, y = StandardScaler().fit_transform(iris[0]), iris[1]
    est = MLPClassifier((), solver="lbfgs", alpha=1.0, max_iter=500, tol=1e-8).fit(X, y)
    # Their C is 1/α, and they do not divide by the rows.
    linear = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(est.predict_proba(X), linear.predict_proba(X), atol=2e-4)
    with pytest.raises(ValueError, match="layer must be one of the 0 hidden layers"):
        est.transform(X)
    MLPClassifier((), max_iter=3).fit(X, y)


def test_an_activation_a_layer(iris: Any) -> None:
    X, y = iris
    est = MLPClassifier((5, 4), ["gelu", "softplus"], max_iter=3, random_state=0).fit(X, y)
    a = est.transform(X)
    assert a.shape == (150, 4)
    assert (a > 0).all()  # softplus
    assert est.transform(X, layer=0).shape == (150, 5)
    assert est.get_feature_names_out().tolist() == [f"mlpclassifier{i}" for i in range(4)]
    proba = np.exp(a @ est.coefs_[-1] + est.intercepts_[-1])
    np.testing.assert_allclose(est.predict_proba(X), proba / proba.sum(1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_the_absolute_error_finds_the_median(solver: str) -> None:
    y = np.r_[np.zeros(60), np.full(40, 10.0)]
    X = np.zeros((100, 1))
    est = MLPRegressor("absolute_error", (), solver=solver, alpha=0, learning_rate_init=0.05,
                       max_iter=400, random_state=0).fit(X, y)  # fmt: skip
    assert est.predict(X[:1])[0] == pytest.approx(0.0, abs=0.2)
    mean = MLPRegressor("squared_error", (), solver="lbfgs", alpha=0).fit(X, y)
    assert mean.predict(X[:1])[0] == pytest.approx(4.0, abs=0.01)


def test_gradients_of_all_losses() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((9, 4))
    weights = rng.random(9)
    cases: list[tuple[Any, np.ndarray]] = [
        (MLPRegressor("absolute_error", (5, 3), ["gelu", "elu"]), rng.standard_normal((9, 2))),
        (MLPRegressor("poisson", (5,), "tanh"), rng.poisson(2, 9).astype(float)),
        (MLPClassifier((5,), "silu"), rng.integers(0, 3, 9)),
        (MLPClassifier((), "relu"), rng.integers(0, 2, 9)),
    ]
    for est, y in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            est.set_params(solver="lbfgs", max_iter=1, alpha=0.3, random_state=0).fit(X, y)
        targets = (
            est._label_binarizer.transform(y) if hasattr(est, "classes_") else y.reshape(9, -1)
        )
        theta = np.hstack([p.ravel() for p in est.coefs_ + est.intercepts_])
        _, gradient = est._loss_grad_lbfgs(theta, X, targets.astype(float), weights)
        for i in rng.choice(len(theta), min(12, len(theta)), replace=False):
            nudge = np.zeros_like(theta)
            nudge[i] = 1e-6
            up, down = (
                est._loss_grad_lbfgs(theta + s * nudge, X, targets.astype(float), weights)[0]
                for s in (1, -1)
            )
            assert (up - down) / 2e-6 == pytest.approx(gradient[i], rel=1e-5, abs=1e-8)


def test_class_weights_are_sample_weights(iris: Any) -> None:
    X, y = iris
    settings = {"max_iter": 5, "random_state": 0}
    by_class = MLPClassifier(class_weight={0: 2.0, 1: 0.5, 2: 1.0}, **settings).fit(X, y)
    weights = np.array([2.0, 0.5, 1.0])[y]
    assert (
        by_class.loss_curve_
        == MLPClassifier(**settings).fit(X, y, sample_weight=weights).loss_curve_
    )
    even = MLPClassifier(class_weight="balanced", **settings).fit(X, y)
    assert (
        even.loss_curve_
        == MLPClassifier(**settings).fit(X, y, sample_weight=np.ones(150)).loss_curve_
    )


def test_dropout_is_of_training_only(digits: Any) -> None:
    X, y = digits
    est = MLPClassifier((64,), dropout=0.5, max_iter=25, random_state=0).fit(X, y)
    assert "engine resident" in est.plan_
    assert est.score(X, y) > 0.9
    np.testing.assert_array_equal(est.predict(X), est.predict(X))
    dense = MLPClassifier((64,), max_iter=25, random_state=0).fit(X, y)
    assert est.loss_ > 1.5 * dense.loss_


@pytest.mark.parametrize("batch", [10, 40])
def test_wide_sparse_rows_have_the_bits_of_dense_ones(batch: int) -> None:
    """Rows of 10 share out layer 1 by its inputs, and of 40 are copied, if they are dense."""
    rng = np.random.default_rng(0)
    X = scipy.sparse.random_array((120, 30_000), density=1e-3, format="csr", rng=rng)
    X, y = X.astype(np.float32), rng.standard_normal(120).astype(np.float32)
    settings = {"hidden_layer_sizes": (16,), "batch_size": batch, "max_iter": 2, "alpha": 0.0}
    settings |= {"random_state": 0, "solver": "sgd"}
    with threads.at_most(2):
        dense = MLPRegressor(**settings).fit(X.toarray(), y)
        sparse = MLPRegressor(**settings).fit(X, y)
    for a, b in zip(dense.coefs_, sparse.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("library", [True, False])
def test_dropout_of_sparse_rows(iris: Any, library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = iris
    settings = {"dropout": 0.3, "max_iter": 4, "random_state": 0, "hidden_layer_sizes": (9, 5)}
    dense = MLPClassifier(**settings).fit(X, y)
    if not library:
        without_the_library(monkeypatch)
        monkeypatch.setattr(perceptron, "_model_of", perceptron._model_of.__wrapped__)
    sparse = MLPClassifier(**settings).fit(scipy.sparse.csr_matrix(X), y)
    assert ("engine resident" if library else "engine none") in sparse.plan_
    for a, b in zip(dense.coefs_, sparse.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_gradients_are_clipped(iris: Any) -> None:
    X, y = iris
    settings = {"solver": "sgd", "momentum": 0.0, "alpha": 0.0, "learning_rate_init": 1.0,
                "batch_size": 150, "max_iter": 1, "random_state": 0,
                "activation": "tanh"}  # fmt: skip
    start = MLPClassifier(**settings | {"learning_rate_init": 1e-12}).fit(X, y)
    for more in ({}, {"sample_weight": np.full(150, 2.0)}):
        est = MLPClassifier(clip_norm=1e-3, **settings).fit(X, y, **more)
        moved = sum(
            float(((a - b) ** 2).sum())
            for a, b in zip(
                est.coefs_ + est.intercepts_, start.coefs_ + start.intercepts_, strict=True
            )
        )
        assert moved**0.5 == pytest.approx(1e-3, rel=1e-6)
        each = MLPClassifier(clip_value=1e-4, **settings).fit(X, y, **more)
        assert np.abs(each.coefs_[0] - start.coefs_[0]).max() == pytest.approx(1e-4, rel=1e-6)


def test_norms_of_weights_are_limited(iris: Any) -> None:
    X, y = iris
    settings: dict[str, Any] = {"max_iter": 5, "random_state": 0, "hidden_layer_sizes": (12, 9)}
    norms = {}
    for limit in (None, 0.7):
        est = MLPClassifier(max_norm=limit, **settings).fit(X, y)
        norms[limit] = np.concatenate([np.linalg.norm(w, axis=0) for w in est.coefs_])
    assert (norms[None] > 0.8).any()
    assert norms[0.7].max() <= 0.7 * (1 + 1e-12)


@pytest.mark.parametrize("more", [{"max_norm": 0.7}, {"gradient_noise": 0.01, "clip_norm": 0.5}])
def test_limits_and_noise_by_equations(
    iris: Any, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    X, y = iris
    settings = {"max_iter": 4, "random_state": 0, "dropout": 0.2, "batch_size": 40} | more
    dense = MLPClassifier(**settings).fit(X, y)
    plain = MLPClassifier(**settings | dict.fromkeys(more) | {"gradient_noise": 0.0}).fit(X, y)
    assert np.abs(dense.coefs_[0] - plain.coefs_[0]).max() > 1e-4
    without_the_library(monkeypatch)
    monkeypatch.setattr(perceptron, "_model_of", perceptron._model_of.__wrapped__)
    sparse = MLPClassifier(**settings).fit(scipy.sparse.csr_matrix(X), y)
    assert "engine none" in sparse.plan_
    for a, b in zip(dense.coefs_, sparse.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("more", [{"max_norm": 1.0}, {"gradient_noise": 0.1}])
def test_a_solver_without_steps_has_no_limits_and_noise(iris: Any, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be: solver 'lbfgs' has no steps"):
        MLPClassifier(solver="lbfgs", **more).fit(*iris)


def test_a_validation_loss_curve(iris: Any) -> None:
    est = MLPClassifier(early_stopping=True, max_iter=6, random_state=0).fit(*iris)
    assert len(est.validation_loss_curve_) == est.n_iter_
    assert est.validation_loss_curve_[-1] < est.validation_loss_curve_[0]
    assert MLPClassifier(max_iter=1).fit(*iris).validation_loss_curve_ is None


def test_what_was_asked_of_a_device_and_runs_on_the_cpu_is_said(iris: Any) -> None:
    X, y = iris
    with pytest.warns(UserWarning, match="'cuda' was asked for, but the CPU trains this: X is sp"):
        MLPClassifier(backend="cuda", max_iter=2).fit(scipy.sparse.csr_matrix(X), y)


@pytest.mark.gpu
def test_on_a_device(iris: Any) -> None:
    X, y = iris[0].astype("float32"), iris[1]
    settings = {"hidden_layer_sizes": (6,), "activation": "tanh", "max_iter": 3, "random_state": 0}
    # On a device the penalty of an epoch is that of the mean of two sums.
    for alpha, tolerance in ((0.0, 2e-6), (0.01, 1e-5), (1.0, 2e-3)):
        ours = MLPClassifier(backend="cuda", alpha=alpha, **settings).fit(X, y)
        assert "backend cuda" in ours.plan_
        other = theirs.MLPClassifier(alpha=alpha, **settings).fit(X, y)
        same_curve(ours, other, tolerance)
        np.testing.assert_allclose(ours.predict_proba(X), other.predict_proba(X), rtol=1e-4)


def test_cupy_in_cupy_out(iris: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in: rows are taken to the host, numbers are given back on the device."""
    X, y = iris

    class ndarray:
        __cuda_array_interface__ = None
        device = contextlib.nullcontext()

        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def get(self) -> np.ndarray:
            return self.array

    ndarray.__module__ = "cupy"
    stand_in = types.ModuleType("cupy")
    stand_in.asarray = stand_in.ndarray = ndarray  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    est = MLPClassifier(max_iter=3, random_state=0, backend="numpy").fit(ndarray(X), ndarray(y))
    plain = MLPClassifier(max_iter=3, random_state=0, backend="numpy").fit(X, y)
    assert est.loss_curve_ == plain.loss_curve_
    for method in ("predict", "predict_proba", "transform"):
        found = getattr(est, method)(ndarray(X))
        assert isinstance(found, ndarray)
        np.testing.assert_array_equal(found.array, getattr(plain, method)(X))
        assert isinstance(getattr(est, method)(X), np.ndarray)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "alpha",
            -1,
            r"'alpha' parameter of MLPClassifier must be a float in the range \[0, inf\)",
        ),
        ("solver", "rmsprop", "must be a str among {'adam', 'lbfgs', 'sgd'}. Got 'rmsprop'"),
        ("activation", "sine", "'activation' parameter"),
        ("activation", ["relu", "tanh"], "one for each of the 1 hidden layers"),
        ("hidden_layer_sizes", (3, 0), "must be > 0"),
        ("hidden_layer_sizes", "ten", "must be > 0"),
        ("batch_size", 0, "'batch_size'"),
        ("batch_size", "all", "'batch_size'"),
        ("max_iter", True, "'max_iter'"),
        ("n_iter_no_change", 2.5, "'n_iter_no_change'"),
        ("validation_fraction", 1.0, "'validation_fraction'"),
        ("momentum", "much", "'momentum'"),
        ("dropout", 1.0, r"in the range \[0, 1\)"),
        ("clip_norm", 0.0, "'clip_norm'"),
        ("max_norm", 0.0, "'max_norm'"),
        ("gradient_noise", -1.0, "'gradient_noise'"),
        ("backend", "tpu", "'backend'"),
        ("random_state", "seven", "seven"),
        pytest.param("alpha", 10**400, "'alpha' .* Got an integer of 1329 bits", id="alpha huge"),
        pytest.param(
            "learning_rate_init",
            10**4000,
            "'learning_rate_init' .* Got an integer of 13288 bits",
            id="learning_rate_init huge",
        ),
        pytest.param("batch_size", 10**400, "'batch_size'", id="batch_size huge"),
        pytest.param(
            "hidden_layer_sizes",
            10**400,
            "hidden_layer_sizes must be in .* an integer of 1329 bits",
            id="hidden_layer_sizes huge",
        ),
        ("hidden_layer_sizes", {3, 4}, "'hidden_layer_sizes'"),
        ("hidden_layer_sizes", {3: 1, 4: 1}, "'hidden_layer_sizes'"),
    ],
)
def test_parameters_that_mean_nothing(iris: Any, name: str, value: Any, message: str) -> None:
    est = MLPClassifier().set_params(**{name: value})
    with pytest.raises(ValueError, match=message):
        est.fit(*iris)
    assert not hasattr(est, "coefs_")


def test_layers_that_no_memory_holds(iris: Any) -> None:
    est = MLPClassifier((10, 10**12))
    with pytest.raises(MemoryError, match=r"^hidden_layer_sizes=\[10, 1000000000000\] needs"):
        est.fit(*iris)
    assert not hasattr(est, "coefs_")
    assert MLPClassifier(batch_size=10**30, max_iter=1).fit(*iris).n_iter_ == 1


@pytest.mark.parametrize("early_stopping", [False, True])
def test_nan_is_no_improvement(
    iris: Any, monkeypatch: pytest.MonkeyPatch, early_stopping: bool
) -> None:
    """scikit-learn takes it for one, and trains on to `max_iter`."""
    end_epoch = PerceptronCourse.end_epoch
    monkeypatch.setattr(
        PerceptronCourse,
        "end_epoch",
        lambda self, costs, seconds: end_epoch(self, costs * np.nan, seconds),
    )
    monkeypatch.setattr(MLPClassifier, "_score_of", lambda *arguments: float("nan"))
    est = MLPClassifier(max_iter=50, n_iter_no_change=3, early_stopping=early_stopping).fit(*iris)
    assert est.n_iter_ == 4
    assert est.best_loss_ == (None if early_stopping else np.inf)


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_copy_trains_on_independently(iris: Any, solver: str) -> None:
    settings = {"solver": solver, "max_iter": 5, "random_state": 0, "warm_start": True}
    est, alone = (MLPClassifier(**settings).fit(*iris) for _ in range(2))
    kept = pickle.dumps(est)
    other = copy.copy(est)
    assert other.get_params() == est.get_params()
    other.fit(*iris)
    if solver != "lbfgs":
        other.partial_fit(*iris)
    assert pickle.dumps(est) == kept
    for each in (est, alone):
        each.fit(*iris)
    for ours, expected in zip(est.coefs_, alone.coefs_, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_errors_are_scikit_learns(iris: Any) -> None:
    X, y = iris
    with pytest.raises(NotFittedError):
        MLPClassifier().predict(X)
    with pytest.raises(ValueError, match="NaN"):
        MLPClassifier().fit(np.where(X > 5, np.nan, X), y)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        MLPClassifier().fit(X, y[:-1])
    with pytest.raises(ValueError, match="y >= 0"):
        MLPRegressor("poisson").fit(X, -y - 1.0)
    with pytest.raises(ValueError, match="classes must be passed"):
        MLPClassifier().partial_fit(X, y)
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(1\)"):
        MLPClassifier(max_iter=1).fit(X, y)
    with pytest.warns(UserWarning, match="batch_size"):
        MLPClassifier(max_iter=1, batch_size=1000).fit(X, y)
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")


@pytest.mark.parametrize(
    "y", [["a", "b"] * 3, ["1.5", "2"] * 3, np.array(["2026-01-01"] * 6, "M8[D]")], ids=str
)
@pytest.mark.parametrize("kind", PAIRS[1])
def test_a_regressors_targets_are_numbers(kind: Any, y: Any) -> None:
    """Of scikit-learn's own it is an accident, but a TypeError."""
    est = kind(max_iter=2)
    with pytest.raises(TypeError):
        est.fit(np.arange(12.0).reshape(6, 2), y)


def test_invalid_parameters_are_scikit_learns_error(iris: Any) -> None:
    from sklearn.utils._param_validation import InvalidParameterError

    with pytest.raises(InvalidParameterError):
        MLPClassifier(alpha=-1).fit(*iris)


WARNED = [
    ({"max_iter": 1}, ConvergenceWarning),
    ({"max_iter": 1, "solver": "lbfgs"}, ConvergenceWarning),
    ({"max_iter": 1, "batch_size": 1000, "tol": 1e9}, UserWarning),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize(("settings", "category"), WARNED, ids=str)
def test_warnings_are_silenced_as_scikit_learns(
    iris: Any, settings: Any, category: Any, accelerated: bool
) -> None:
    """Under scikit-learn's name, and at the line that called `fit`."""
    from backprop_gpu import accel

    X, y = iris
    ours = accel.MLPClassifier if accelerated else MLPClassifier
    heard = []
    for kind in (ours, theirs.MLPClassifier):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            kind(**settings).fit(X, y[:, None])
        heard.append([(each.category, str(each.message)[:40]) for each in found])
        if kind is ours:
            assert {each.filename for each in found} == {__file__}
            with open(__file__) as file:
                line = file.readlines()[found[0].lineno - 1]
            assert "kind(**settings).fit(X, y[:, None])" in line
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for each in (category, UserWarning):
                warnings.filterwarnings("ignore", category=each, module="^sklearn.neural_network")
            kind(**settings).fit(X, y[:, None])
    assert heard[0] == heard[1]
    assert category in dict(heard[0])


def test_regressors_and_a_gpu_sized_prediction() -> None:
    """Enough rows for a device are predicted by a network; on this machine that is NumPy too."""
    X, y = make_regression(planning.CHUNK_ROWS + 5, 6, random_state=0)
    est = MLPRegressor(max_iter=2, random_state=0).fit(X, y)
    np.testing.assert_allclose(est.predict(X)[:10], est.predict(X[:10]), rtol=1e-9)


@pytest.mark.gpu
def test_a_short_last_batch_has_its_own_penalty_and_is_captured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime, captures = device_runtime(), []
    capture = runtime.capture
    monkeypatch.setattr(runtime, "capture", lambda step: captures.append(step) or capture(step))
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 33)), rng.integers(0, 3, 40)
    MLPClassifier(8, batch_size=16, max_iter=5, random_state=0, backend="cuda").fit(X, y)
    assert len(captures) == 2  # of two steps with whole batches, and of the last one


def test_verbose_says_where_the_time_went(iris: Any, capsys: pytest.CaptureFixture[str]) -> None:
    MLPClassifier(max_iter=2, verbose=True, early_stopping=True, random_state=0).fit(*iris)
    printed = capsys.readouterr()
    assert printed.err.startswith("MLPClassifier: ")
    assert "validation" in printed.err
    assert "engine" in printed.err
    theirs.MLPClassifier(max_iter=2, verbose=True, early_stopping=True, random_state=0).fit(*iris)
    assert capsys.readouterr().out == printed.out


def test_what_scikit_learn_would_refuse_is_refused_as_it_does(iris: Any) -> None:
    """Also where rows and labels are so plain that it is not asked."""
    X, y = iris
    for kind in (MLPClassifier, theirs.MLPClassifier):
        est = kind(max_iter=1, random_state=0).fit(X, y)
        with pytest.raises(ValueError, match="NaN"):
            est.predict(np.full((2, 4), np.nan))
        with pytest.raises(ValueError, match="NaN"):
            kind(max_iter=1).fit(np.full((2, 4), np.nan), [0, 1])
        with pytest.raises(ValueError, match="X has 3 features, but"):
            est.predict(X[:, :3])
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            est.fit(X, y[:-1])
        with pytest.raises(ValueError, match="X has 3 features, but"):
            est.partial_fit(X[:, :3], y)
        with pytest.raises(ValueError, match="`y` has classes not in"):
            est.partial_fit(X, y + 1)
        with pytest.raises(ValueError, match="0 sample"):
            est.fit(X[:0], y[:0])
        with pytest.raises(ValueError, match="same classes"):
            est.set_params(warm_start=True).fit(X[:100], y[:100])


@pytest.mark.parametrize("labels", ["int", "str", "bool", "unsigned", "one", "column", "object"])
def test_labels_of_every_kind_are_scikit_learns(iris: Any, labels: str) -> None:
    X, y = iris
    y = {
        "int": lambda: y * 10 - 7, "str": lambda: np.array(["c", "a", "bb"])[y],
        "bool": lambda: y > 0, "unsigned": lambda: y.astype(np.uint8), "one": lambda: y * 0 + 5,
        "column": lambda: y.reshape(-1, 1), "object": lambda: np.array(["c", "a", "b"], object)[y],
    }[labels]()  # fmt: skip
    found = []
    for kind in (MLPClassifier, theirs.MLPClassifier):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            est = kind(max_iter=3, random_state=0).fit(X, y)
        binarizer = est._label_binarizer
        found.append(
            (
                est.predict(X), est.classes_, binarizer.classes_, binarizer.y_type_,
                binarizer.sparse_input_, est.n_features_in_, est.predict(X).dtype,
            )
        )  # fmt: skip
    for mine, their in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, their)


def test_parameters_are_looked_at_again_where_they_have_changed(iris: Any) -> None:
    est = MLPClassifier(max_iter=1, random_state=0, hidden_layer_sizes=[3])
    est.fit(*iris)
    est.hidden_layer_sizes.append(0)
    with pytest.raises(ValueError, match="hidden_layer_sizes must be > 0"):
        est.fit(*iris)
    for sizes in (((1, [2]),), ([1],)):
        with pytest.raises(ValueError, match="hidden_layer_sizes must be > 0"):
            MLPClassifier(sizes).fit(*iris)
    MLPClassifier(max_iter=1, random_state=0).fit(*iris)
    with pytest.raises(ValueError, match="'max_iter' parameter"):
        MLPClassifier(max_iter=True, random_state=0).fit(*iris)
