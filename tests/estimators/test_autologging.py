"""`mlflow.sklearn.autolog` logs of our estimators what it logs of scikit-learn's."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed"
)

# argv: what is imported and called first, in what order.
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from mlflow import MlflowClient, set_tracking_uri

uri, order, accelerated = sys.argv[1:]
set_tracking_uri(uri)
if accelerated == "accel":
    import backprop_gpu.accel
    backprop_gpu.accel.install()
for step in order.split():
    if step == "autolog":
        import mlflow.sklearn
        mlflow.sklearn.autolog(log_models=False, log_datasets=False, max_tuning_runs=2,
                               log_post_training_metrics=False)
    else:
        import backprop_gpu.estimators as ours
from sklearn.model_selection import GridSearchCV
import sklearn.neural_network as theirs

X = np.random.default_rng(0).standard_normal((60, 3)); y = (X[:, 0] > 0).astype(int)
client, found = MlflowClient(), []

def show(estimator, y):
    estimator.fit(X, y)
    runs = client.search_runs(["0"])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    (parent,) = parents
    found.append({
        "metrics": parent.data.metrics,
        "params": {key: value for key, value in parent.data.params.items()},
        "class": parent.data.tags["estimator_class"],
        "status": parent.info.status,
        "children": [run.data.metrics["mean_test_score"] for run in runs if run is not parent],
        "score": estimator.score(X, y),
    })
    for run in runs:
        client.delete_run(run.info.run_id)

small = {"hidden_layer_sizes": (4,), "max_iter": 5, "random_state": 0}
if accelerated == "accel":
    show(theirs.MLPClassifier(**small), y)
    show(ours.MLPClassifier(**small), y)
else:
    show(theirs.MLPClassifier(**small), y)
    show(ours.MLPClassifier(**small), y)
    show(ours.MLPRegressor(**small), X[:, 0])
    show(ours.EnsembleClassifier(n_members=2, **small), y)
    grid = {"alpha": [0.1, 0.2, 0.3]}
    show(GridSearchCV(ours.MLPClassifier(**small), grid, cv=2), y)
    show(ours.PopulationSearchCV(ours.MLPClassifier(**small), grid, cv=2), y)
mlflow.sklearn.autolog(disable=True)
ours.MLPClassifier(**small).fit(X, y)
print(json.dumps([found, len(client.search_runs(["0"]))]))
"""


def logged(folder: Path, order: str, accelerated: str = "plain") -> list[dict[str, Any]]:
    # In files: in a database two threads of MLflow's may add the same data set, and one fails.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, (folder / "runs").as_uri(), order, accelerated],
        cwd=folder, env=os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "does not log" not in done.stderr
    print(done.stderr)
    found, left = json.loads(done.stdout.splitlines()[-1])
    assert left == 0  # once autolog is off
    return list(found)


def test_where_autolog_is_on_already(tmp_path: Path) -> None:
    theirs, classifier, regressor, ensemble, grid, search = logged(tmp_path, "autolog ours")
    for run in (theirs, classifier, regressor, ensemble, grid, search):
        assert run["status"] == "FINISHED"
        assert run["metrics"]["training_score"] == run["score"]
    assert classifier["class"] == "backprop_gpu.estimators.MLPClassifier"
    assert classifier["metrics"].keys() == theirs["metrics"].keys()
    assert classifier["metrics"]["training_score"] == theirs["metrics"]["training_score"]
    assert classifier["params"].keys() >= theirs["params"].keys()
    assert "training_r2_score" in regressor["metrics"]
    assert ensemble["params"]["n_members"] == "2"
    assert search["class"] == "backprop_gpu.estimators.PopulationSearchCV"
    assert search["params"]["best_alpha"] == grid["params"]["best_alpha"]
    assert search["metrics"]["best_cv_score"] == grid["metrics"]["best_cv_score"]
    assert sorted(search["children"]) == sorted(grid["children"])
    assert len(search["children"]) == 2
    # The best of them all is trained once more, and not logged by itself.
    assert "estimator__alpha" not in search["params"]


def test_where_autolog_comes_after_under_accel(tmp_path: Path) -> None:
    for run in logged(tmp_path, "ours autolog", "accel"):
        assert run["metrics"]["training_score"] == run["score"]


def test_another_mlflow_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from backprop_gpu.estimators.autologging import log_as_scikit_learn

    for name in [each for each in sys.modules if each.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "mlflow/sklearn").mkdir(parents=True)
    for name in ("mlflow/__init__.py", "mlflow/sklearn/__init__.py", "mlflow/sklearn/utils.py"):
        (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    log_as_scikit_learn([], [])
    with caplog.at_level("WARNING", "backprop_gpu"):
        importlib.import_module("mlflow.sklearn.utils")
    assert "does not log backprop_gpu's" in caplog.text
