"""The estimators in skl2onnx, in a pipeline, with nothing registered by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_classification, make_multilabel_classification, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from backprop_gpu import (
    EnsembleClassifier,
    EnsembleRegressor,
    MLPClassifier,
    MLPRegressor,
    PopulationSearchCV,
    costs,
)

skl2onnx = pytest.importorskip("skl2onnx", reason="the extra onnx has skl2onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra test has onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
FEW = {"max_iter": 5, "random_state": 0}
X, Y = make_classification(80, 6, n_informative=5, n_redundant=0, n_classes=3, random_state=0)
LABELS, NAMES = Y - 1, np.array(["a", "b", "ç"])[Y]
MANY = make_multilabel_classification(80, 6, random_state=0)[1]


def run(model: Any, rows: np.ndarray) -> list[Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: list[Any] = session.run(None, {session.get_inputs()[0].name: rows})
    return found


def mlp(**parameters: Any) -> MLPClassifier:
    return MLPClassifier(**(FEW | {"hidden_layer_sizes": (8,)} | parameters))


def ensemble(**parameters: Any) -> EnsembleClassifier:
    return EnsembleClassifier(3, **(FEW | {"hidden_layer_sizes": (8,)} | parameters))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("estimator", "y"),
    [
        (mlp(), LABELS),
        (mlp(), NAMES),
        (mlp(), Y == 1),
        (mlp(), (Y == 1).astype(float)),
        (mlp(), NAMES == "ç"),
        (mlp(hidden_layer_sizes=()), LABELS),
        (mlp(hidden_layer_sizes=(7, 6, 5), activation=["gelu", "elu", "softplus"]), LABELS),
        (mlp(activation="logistic", solver="lbfgs", max_iter=5), LABELS),
        (mlp(), MANY),
        (mlp(), MANY[:, :2]),
        (ensemble(), NAMES),
        (ensemble(activation=["silu"]), Y == 1),
        (PopulationSearchCV(mlp(), {"alpha": [1e-4, 1e-1]}, cv=2), NAMES),
    ],
)
def test_classifiers(estimator: Any, y: np.ndarray, dtype: str) -> None:
    rows = X.astype(dtype)
    pipeline = make_pipeline(StandardScaler(), estimator).fit(rows, y)
    for opset in (13, None):
        model = skl2onnx.to_onnx(pipeline, rows[:1], options={"zipmap": False}, target_opset=opset)
        labels, probabilities = run(model, rows)
        expected = pipeline.predict_proba(rows)
        assert probabilities.dtype == np.dtype(dtype)
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)
        assert labels.shape == np.shape(y)
        assert (labels == pipeline.predict(rows)).all()


@pytest.mark.parametrize("estimator", [mlp(), ensemble()])
def test_options(estimator: Any) -> None:
    rows = X.astype("float32")
    fitted = estimator.fit(rows, NAMES)
    labels, probabilities = run(skl2onnx.to_onnx(fitted, rows[:1]), rows)
    assert list(probabilities[0]) == ["a", "b", "ç"]
    found = run(skl2onnx.to_onnx(fitted, rows[:1], options={"zipmap": "columns"}), rows)
    assert len(found) == 4
    found = run(skl2onnx.to_onnx(fitted, rows[:1], options={"zipmap": False, "nocl": True}), rows)
    assert (NAMES[np.unique(NAMES, return_index=True)[1]][found[0]] == labels).all()
    options = {"zipmap": False, "output_class_labels": True}
    found = run(skl2onnx.to_onnx(fitted, rows[:1], options=options), rows)
    assert found[2].tolist() == ["a", "b", "ç"]
    with pytest.raises(NameError, match="raw_scores"):
        skl2onnx.to_onnx(fitted, rows[:1], options={"raw_scores": True})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize(
    "loss",
    ["squared_error", "poisson", "gaussian_nll", costs.Quantile((0.1, 0.5, 0.9)), "huber"],
    ids=str,
)
@pytest.mark.parametrize("kind", [MLPRegressor, EnsembleRegressor])
def test_regressors(kind: Any, loss: Any, targets: int, dtype: str) -> None:
    rows, y = make_regression(60, 5, n_targets=targets, random_state=0)
    rows, y = rows.astype(dtype), np.abs(y) / 100
    few = {"n_members": 3} if kind is EnsembleRegressor else {}
    estimator = kind(loss=loss, hidden_layer_sizes=(8,), **few, **FEW).fit(rows, y)
    (found,) = run(skl2onnx.to_onnx(estimator, rows[:1]), rows)
    assert found.shape == (60, targets)
    assert found.dtype == np.dtype(dtype)
    expected = estimator.predict(rows).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)


def test_numbers_of_other_types_and_members_that_failed() -> None:
    rows = np.random.default_rng(0).integers(0, 9, (50, 4))
    y = rows.sum(axis=1) > 16
    fitted = ensemble().fit(rows.astype("float32"), y)
    fitted.population_.failed[1] = FloatingPointError("as if")
    probabilities = run(skl2onnx.to_onnx(fitted, rows[:1], options={"zipmap": False}), rows)[1]
    expected = fitted.predict_proba(rows.astype("float32"))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_a_search_over_a_pipeline() -> None:
    rows = X.astype("float32")
    pipeline = make_pipeline(StandardScaler(), mlp())
    search = PopulationSearchCV(pipeline, {"mlpclassifier__alpha": [1e-4, 1.0]}, cv=2)
    search.fit(rows, NAMES)
    found = run(skl2onnx.to_onnx(search, rows[:1], options={"zipmap": False}), rows)
    assert (found[0] == search.predict(rows)).all()
    np.testing.assert_allclose(found[1], search.predict_proba(rows), atol=1e-6)


def test_what_is_refused() -> None:
    rows = X.astype("float32")
    with pytest.raises(NotFittedError):
        skl2onnx.to_onnx(mlp(), rows[:1], options={"zipmap": False})
    fitted = mlp().fit(rows, Y)
    fitted.classes_ = fitted.classes_ + 0.5
    with pytest.raises(ValueError, match="classes_ of MLPClassifier must be whole numbers or text"):
        skl2onnx.to_onnx(fitted, rows[:1], options={"zipmap": False})


# argv: what is imported first
PROGRAM = """
import sys
for name in sys.argv[1:]:
    __import__(name)
assert ("skl2onnx" in sys.modules) == (sys.argv[1] == "skl2onnx")
import numpy as np
from sklearn.datasets import load_iris
from backprop_gpu import MLPClassifier
X, y = load_iris(return_X_y=True)
fitted = MLPClassifier(max_iter=1, random_state=0).fit(X, y)
import skl2onnx
print(len(skl2onnx.to_onnx(fitted, X[:1], options={"zipmap": False}).graph.output))
"""


@pytest.mark.parametrize("first", ["skl2onnx", "backprop_gpu.estimators"])
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, first], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"


# argv: what is imported first
ACCELERATED = """
import sys
for name in sys.argv[1:]:
    __import__(name)
from backprop_gpu import accel
accel.install()
import numpy as np
from sklearn.datasets import make_regression
from sklearn.neural_network import MLPRegressor
X, y = make_regression(50, 3, n_targets=2, random_state=0)
fitted = MLPRegressor(max_iter=1, random_state=0).fit(X, y)
import skl2onnx
print(type(fitted).__module__, skl2onnx.to_onnx(fitted, X[:1]).graph.output[0].type.tensor_type)
"""


@pytest.mark.parametrize("first", [["skl2onnx"], []])
def test_under_accel(first: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ACCELERATED, *first], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("backprop_gpu.accel")
    assert "dim_value: 2" in done.stdout  # scikit-learn's own converter has one for all targets


def test_a_skl2onnx_that_is_another_does_not_fail_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    from backprop_gpu import estimators
    from backprop_gpu.estimators import onnx_converters

    def register(*kinds: type) -> None:
        raise AttributeError("it has no such function")

    monkeypatch.setattr(onnx_converters, "register", register)
    with pytest.warns(RuntimeWarning, match=r"skl2onnx .* does not know the estimators"):
        estimators.announce(MLPClassifier)
