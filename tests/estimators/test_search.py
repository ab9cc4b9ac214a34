"""`PopulationSearchCV`: the scores of scikit-learn's searches, to the bit, from populations."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    RandomizedSearchCV,
    RepeatedKFold,
    ShuffleSplit,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, OneHotEncoder, StandardScaler

from backprop_gpu import MLPClassifier, MLPRegressor, PopulationSearchCV
from backprop_gpu.estimators import search as module

SUPPORT = Path(__file__).parent.parent / "support"
SMALL = {"hidden_layer_sizes": (5,), "max_iter": 6, "random_state": 3}
GRID = {"alpha": [0.0, 1e-3, 0.3], "learning_rate_init": [0.01, 0.1]}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def iris() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return X[order], y[order]


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many courses each session of a search has."""
    made: list[int] = []
    train = module.Together.train

    def counted(self: Any) -> None:
        made.append(len(self.parts))
        train(self)

    monkeypatch.setattr(module.Together, "train", counted)
    return made


def same(ours: Any, other: Any) -> None:
    """All that is in the results but the times."""
    assert list(ours.cv_results_) == list(other.cv_results_)
    for name, values in other.cv_results_.items():
        if not name.endswith("_time"):
            np.testing.assert_equal(ours.cv_results_[name], values, name)
    for name in ("best_index_", "best_params_", "best_score_", "n_splits_", "multimetric_"):
        assert getattr(ours, name, None) == getattr(other, name, None), name


def both(est: Any, X: Any, y: Any, grid: Any = GRID, fit: Any = (), **options: Any) -> Any:
    """The same search by a population and by scikit-learn."""
    options = {"cv": 3, "return_train_score": True} | options
    found = PopulationSearchCV(est, grid, **options).fit(X, y, **dict(fit))
    other = GridSearchCV(est, grid, **options).fit(X, y, **dict(fit))
    same(found, other)
    return found, other


# -- the same scores ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "layered"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_grid(iris: Any, sessions: list[int], dtype: str, engine: str) -> None:
    X, y = iris[0].astype(dtype), iris[1]
    grid = GRID | {"solver": ["adam", "sgd"], "batch_size": [7, 30]}
    ours, other = both(MLPClassifier(**SMALL, engine=engine), X, y, grid)
    assert sessions == [3 * 24]
    np.testing.assert_array_equal(ours.predict_proba(X), other.predict_proba(X))
    assert ours.best_estimator_.coefs_[0].dtype == dtype
    assert (ours.cv_results_["mean_fit_time"] > 0).all()
    assert ours.refit_time_ > 0
    np.testing.assert_array_equal(ours.classes_, [0, 1, 2])


def test_several_shapes(iris: Any, sessions: list[int]) -> None:
    grid = [
        {"hidden_layer_sizes": [(4,), (6, 3)], "alpha": [0, 1e-2]},
        {"activation": ["tanh"], "learning_rate_init": [0.1]},
    ]
    both(MLPClassifier(**SMALL), *iris, grid)
    assert sorted(sessions) == [3, 6, 6]


def test_engines_are_not_mixed(iris: Any, sessions: list[int]) -> None:
    ours, _ = both(MLPClassifier(**SMALL), *iris, {"engine": ["layered", "resident"]})
    assert sessions == [3, 3]
    assert "engine" in ours.best_estimator_.plan_


@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 30},
        {"tol": 0.02, "n_iter_no_change": 1, "max_iter": 40},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1},
        {"solver": "sgd", "learning_rate": "invscaling", "shuffle": False},
        {"class_weight": "balanced", "clip_norm": 0.3, "activation": "logistic"},
        {"batch_size": 1000},
        {"max_norm": 0.5, "solver": "sgd"},
        {"gradient_noise": 0.1, "dropout": 0.2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings(iris: Any, sessions: list[int], settings: Any) -> None:
    """Each member has its own end, split, rate and weights."""
    both(MLPClassifier(**SMALL | settings), *iris)
    assert sessions == [18]


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_regressors(iris: Any, sessions: list[int], loss: str) -> None:
    X, y = iris[0][:, :3], iris[0][:, 3]
    both(MLPRegressor(loss, **SMALL), X, y)
    both(MLPRegressor(loss, **SMALL, early_stopping=True), X, np.stack([y, y**2], axis=1))
    assert sessions == [18, 18]


def test_labels_of_many_kinds(iris: Any, sessions: list[int]) -> None:
    X, y = iris
    both(MLPClassifier(**SMALL), X, np.array(["a", "b", "c"])[y])
    both(MLPClassifier(**SMALL), X, y == 1)
    both(MLPClassifier(**SMALL), *make_multilabel_classification(90, 4, random_state=0))
    assert sessions == [18, 18, 18]


def test_a_fold_that_lacks_a_class(iris: Any, sessions: list[int]) -> None:
    X, y = iris
    order = np.argsort(y, kind="stable")
    folds = [(range(100), range(50, 150)), (range(150), range(100))]
    both(MLPClassifier(**SMALL), X[order], y[order], cv=folds)
    # Two outputs are one sigmoid, and a network of another shape.
    assert sessions == [6, 6]


def test_folds_that_lack_different_classes(sessions: list[int]) -> None:
    """As many outputs, which mean others."""
    X, y = load_digits(n_class=4, return_X_y=True)
    folds = [(np.flatnonzero(y != lacking)[:90], range(100)) for lacking in (0, 3)]
    both(MLPClassifier(**SMALL), X[:400] / 16, y[:400], {"alpha": [0.0, 0.1]}, cv=folds)
    assert sessions == [2, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda X: X.tolist(),
        lambda X: pd.DataFrame(X, columns=list("abcd")),
        lambda X: (X * 10).astype(int),
        np.asfortranarray,
        lambda X: X[::-1],
    ],
    ids=["list", "frame", "int", "fortran", "reversed"],
)
def test_rows_of_many_kinds(iris: Any, sessions: list[int], make: Any) -> None:
    X, y = iris
    ours, _ = both(MLPClassifier(**SMALL), make(X), y)
    assert sessions == [18]
    assert ours.n_features_in_ == 4
    assert hasattr(ours, "feature_names_in_") == isinstance(make(X), pd.DataFrame)


@pytest.mark.parametrize(
    "cv",
    [
        5,
        RepeatedKFold(n_splits=2, n_repeats=3, random_state=1),
        ShuffleSplit(3, train_size=0.3, random_state=1),
        [(np.random.default_rng(k).integers(0, 100, 120), range(100, 150)) for k in range(3)],
        [(np.arange(150) % 2 == 0, np.arange(150) % 2 == 1)],
        [(np.arange(-150, -50), np.arange(-50, 0))],
    ],
    ids=["int", "repeated", "shuffled", "bootstraps", "masks", "negative"],
)
def test_splitters(iris: Any, sessions: list[int], cv: Any) -> None:
    both(MLPClassifier(**SMALL), *iris, cv=cv)
    assert len(sessions) == 1


def test_groups_and_weights(iris: Any, sessions: list[int]) -> None:
    X, y = iris
    both(MLPClassifier(**SMALL), X, y, fit={"groups": np.arange(150) // 30}, cv=GroupKFold(3))
    weights = np.random.default_rng(0).random(150)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        both(MLPClassifier(**SMALL), X, y, fit={"sample_weight": weights})
    assert sessions == [18, 18]


def test_scoring(iris: Any) -> None:
    est = MLPClassifier(**SMALL)
    both(est, *iris, scoring="neg_log_loss")
    both(est, *iris, scoring=["accuracy", "f1_macro"], refit="f1_macro")
    both(est, *iris, scoring=lambda e, X, y: float((e.predict(X) == y).sum()))
    ours, other = both(est, *iris, refit=lambda results: 4)
    assert ours.best_estimator_.get_params() == other.best_estimator_.get_params()
    ours, _ = both(est, *iris, scoring={"a": "accuracy"}, refit=False)
    assert not hasattr(ours, "best_estimator_")


def test_draws_and_halving(iris: Any) -> None:
    est, options = MLPClassifier(**SMALL), {"cv": 3, "random_state": 5}
    ours = PopulationSearchCV(est, GRID, n_iter=4, **options).fit(*iris)
    same(ours, RandomizedSearchCV(est, GRID, n_iter=4, **options).fit(*iris))
    halving = options | {"return_train_score": True}
    ours = PopulationSearchCV(est, GRID, factor=2, **halving).fit(*iris)
    other = HalvingGridSearchCV(est, GRID, factor=2, **halving).fit(*iris)
    same(ours, other)
    assert ours.n_resources_ == other.n_resources_
    ours = PopulationSearchCV(
        est, GRID, n_iter=5, factor=2, resource="max_iter", max_resources=20, **halving
    ).fit(*iris)
    other = HalvingRandomSearchCV(
        est,
        GRID,
        n_candidates=5,
        factor=2,
        resource="max_iter",
        max_resources=20,
        min_resources="exhaust",
        **halving,
    ).fit(*iris)
    same(ours, other)
    with pytest.raises(ValueError, match="one metric"):
        PopulationSearchCV(est, GRID, factor=2, scoring=["accuracy", "f1_macro"]).fit(*iris)


# -- pipelines ------------------------------------------------------------------------------------


class CountedScaler(StandardScaler):
    fitted: ClassVar[list[int]] = []

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        self.fitted.append(len(X))
        return super().fit(X, y, sample_weight)


def test_a_pipeline_prepares_a_fold_once(iris: Any, sessions: list[int]) -> None:
    CountedScaler.fitted.clear()
    pipeline = make_pipeline(CountedScaler(), MLPClassifier(**SMALL))
    grid = {f"mlpclassifier__{name}": values for name, values in GRID.items()}
    PopulationSearchCV(pipeline, grid, cv=3, refit=False).fit(*iris)
    assert CountedScaler.fitted == [100] * 3
    assert sessions == [6] * 3
    both(pipeline, *iris, grid)


def test_pipelines(iris: Any, sessions: list[int]) -> None:
    X, y = iris
    pipeline = Pipeline(
        [("scale", StandardScaler()), ("pca", PCA(2)), ("mlp", MLPClassifier(**SMALL))]
    )
    grid = {
        "scale": [StandardScaler(), MinMaxScaler(), "passthrough"],
        "pca__n_components": [2, 3],
        "mlp__alpha": [0.0, 0.1],
    }
    ours, other = both(pipeline, X, y, grid)
    np.testing.assert_array_equal(ours.predict_proba(X), other.predict_proba(X))
    assert set(sessions) == {2}
    # The last step is another estimator in some candidates, or nobody's.
    both(pipeline, X, y, {"mlp": [MLPClassifier(**SMALL), GaussianNB()]})
    alone = Pipeline([("mlp", MLPClassifier(**SMALL))])
    sessions.clear()
    both(alone, X, y, {"mlp__alpha": [0.0, 0.1]})
    assert sessions == [6]


def test_a_pipeline_over_a_table(sessions: list[int]) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.random(90), "b": rng.choice(["x", "y", "z"], 90)})
    y = (table.a > 0.5) ^ (table.b == "x")
    for sparse in (False, True):
        first = ColumnTransformer(
            [("hot", OneHotEncoder(sparse_output=sparse), ["b"])], remainder="passthrough",
            sparse_threshold=1.0 * sparse,
        )  # fmt: skip
        both(
            make_pipeline(first, MLPClassifier(**SMALL)), table, y, {"mlpclassifier__alpha": [0, 1]}
        )
    assert sessions == [2, 2, 2]  # what is sparse trains alone


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_candidate_fails_alone(iris: Any) -> None:
    grid = {"learning_rate_init": [0.1, -1.0, 1e300], "solver": ["sgd", "adam"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, _ = both(MLPClassifier(**SMALL), *iris, grid, error_score=-7.0)
    assert sum(w.category is FitFailedWarning for w in caught) == 2
    scores = ours.cv_results_["mean_test_score"]
    assert (scores == -7.0).sum() >= 2
    assert (scores > 0).sum() >= 2
    for kind in (PopulationSearchCV, GridSearchCV):
        with pytest.raises(ValueError, match=r"learning_rate_init.*range"):
            kind(MLPClassifier(**SMALL), grid, error_score="raise").fit(*iris)
        with pytest.raises(ValueError, match="Invalid parameter"):
            kind(MLPClassifier(**SMALL), {"nothing": [1]}).fit(*iris)


def test_warnings_are_each_candidates_own(iris: Any) -> None:
    counts = []
    for kind in (PopulationSearchCV, GridSearchCV):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind(MLPClassifier(**SMALL | {"batch_size": 1000}), GRID, cv=3).fit(*iris)
        counts.append(
            [
                sum(issubclass(w.category, c) for w in caught)
                for c in (ConvergenceWarning, UserWarning)
            ]
        )
    assert counts[0] == counts[1]
    assert counts[0][0] == 19


def test_a_warning_that_is_an_error_ends_one(iris: Any) -> None:
    est = MLPClassifier(**SMALL | {"tol": 0.5, "n_iter_no_change": 1})
    grid = {"max_iter": [2, 100], "alpha": [0.0, 0.1]}  # the first does not converge
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", ConvergenceWarning)
        ours, _ = both(est, *iris, grid, error_score=-1.0, refit=False)
    scores = ours.cv_results_["mean_test_score"]
    assert (scores == -1.0).sum() == 2
    assert (scores > 0).sum() == 2


def test_weights_that_sum_to_zero_end_one(iris: Any) -> None:
    X, y = iris
    weights = np.ones(150)
    weights[60:110] = 0.0
    grid = {"batch_size": [5, 100], "shuffle": [False]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, _ = both(
            MLPClassifier(**SMALL), X, y, grid, {"sample_weight": weights}, error_score=-1.0,
            refit=False,
        )  # fmt: skip
    assert list(ours.cv_results_["mean_test_score"] == -1.0) == [True, False]


def test_ctrl_c_ends_the_search(iris: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Session, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PopulationSearchCV(MLPClassifier(**SMALL), GRID).fit(*iris)


def test_no_more_is_kept_than_may_be(
    iris: Any, sessions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 20_000)
    both(MLPClassifier(**SMALL), *iris)
    assert len(sessions) > 1
    assert sum(sessions) == 18


# -- one by one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"solver": "lbfgs"}, {"verbose": True}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_what_cannot_share(iris: Any, sessions: list[int], settings: Any, capsys: Any) -> None:
    both(MLPClassifier(**SMALL | settings), *iris, {"alpha": [0.0, 0.1]})
    both(MLPClassifier(**SMALL), csr_matrix(iris[0]), iris[1], {"alpha": [0.0, 0.1]})
    assert sessions == []


def test_those_that_drop_out_share(iris: Any, sessions: list[int]) -> None:
    both(MLPClassifier(**SMALL), *iris, {"dropout": [0.0, 0.2, 0.5]})
    assert sum(sessions) >= 6


def test_some_of_a_grid_share(iris: Any, sessions: list[int]) -> None:
    both(MLPClassifier(**SMALL), *iris, {"solver": ["lbfgs", "adam", "sgd"]}, n_jobs=2)
    assert sessions == [6]


def test_another_estimator(iris: Any, sessions: list[int]) -> None:
    both(GaussianNB(), *iris, {"var_smoothing": [0.1, 1.0]})
    pipeline = make_pipeline(FunctionTransformer(), GaussianNB())
    both(pipeline, *iris, {"gaussiannb__var_smoothing": [0.1, 1.0]})
    assert sessions == []


def test_a_subclass_with_a_fit_of_its_own(iris: Any, sessions: list[int]) -> None:
    class Own(MLPClassifier):
        def fit(self, X: Any, y: Any) -> Any:
            return super().fit(X, y % 2)

    both(Own(**SMALL), *iris, {"alpha": [0.0, 0.1]})
    assert sessions == []


def test_clone_pickle_and_parameters(iris: Any) -> None:
    search = PopulationSearchCV(MLPClassifier(**SMALL), GRID, cv=3, verbose=0)
    again = clone(search).set_params(estimator__max_iter=3)
    assert again.estimator.max_iter == 3
    assert search.estimator.max_iter == 6
    found = pickle.loads(pickle.dumps(search.fit(*iris)))
    np.testing.assert_array_equal(found.predict(iris[0]), search.predict(iris[0]))
    assert "fit" not in vars(search.best_estimator_)
    with pytest.raises(ValueError, match="n_iter"):
        PopulationSearchCV(MLPClassifier(), GRID, n_iter=0).fit(*iris)


def test_digits_ten_folds_sixteen_settings() -> None:
    """The search that is measured, with fewer epochs."""
    X, y = load_digits(return_X_y=True)
    grid = {"alpha": [1e-5, 1e-4, 1e-3, 1e-2], "learning_rate_init": [3e-4, 1e-3, 3e-3, 1e-2]}
    est = MLPClassifier((64,), max_iter=2, random_state=0)
    both(est, X / 16, y, grid, cv=10, refit=False)


@pytest.mark.gpu
def test_on_a_device(iris: Any, sessions: list[int]) -> None:
    est = MLPClassifier(**SMALL | {"max_iter": 2}, backend="cuda")
    both(est, *iris, {"alpha": [0.0, 0.1], "batch_size": [20, 30], "solver": ["adam", "sgd"]}, cv=2)
    assert sum(sessions) == 16


@pytest.mark.parametrize("name", ["test_search", "test_successive_halving"])
def test_scikit_learns_own_tests(name: str) -> None:
    """What they try of searches over other estimators."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "sklearn_search_plugin", "-p",
         "no:cacheprovider", "--pyargs", f"sklearn.model_selection.tests.{name}",
         "-k", "not array_api"],
        cwd=SUPPORT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(SUPPORT), "PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:]
    last = run.stdout.strip().splitlines()[-1]
    assert "passed" in last
    assert not {"failed", "skipped", "error"} & set(last.replace(",", "").split()), run.stdout[
        -4000:
    ]
