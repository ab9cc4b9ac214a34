"""Ensembles beside a single network, a random forest and gradient boosting, on scikit-learn's data.

    python -m backprop_gpu.benchmarks.ensembles [--results FILE.json] [--picture PICTURE.png]

Every estimator gets the same splits, 5 folds repeated, and nobody's settings are tuned: the forest
and the boosting have scikit-learn's, the networks one setting for all data, `NETWORK`. Printed are
the mean and the deviation over all folds, as Markdown, and the median processor seconds of fit and
predict: on a busy machine hold it to one core, `OMP_NUM_THREADS=1 taskset -c 0 python -m …`, for
threads that wait for each other take processor time. What the file of results holds already is not
run again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from backprop_gpu import EnsembleClassifier, EnsembleRegressor, MLPClassifier, MLPRegressor

#: Of all networks, alone and in ensembles.
NETWORK = {
    "hidden_layer_sizes": (64,), "learning_rate_init": 0.003, "batch_size": 32, "max_iter": 100,
}  # fmt: skip
FOLDS = 5

#: Data -> contestant -> metric -> values of all folds.
Results = dict[str, dict[str, dict[str, list[float]]]]

#: Name -> what loads it, and how often the folds are repeated.
DATA = {
    "iris": (datasets.load_iris, 5),
    "wine": (datasets.load_wine, 5),
    "breast_cancer": (datasets.load_breast_cancer, 5),
    "diabetes": (datasets.load_diabetes, 5),
    "digits": (datasets.load_digits, 2),
}


def scaled(network: Any) -> Any:
    """The network behind a scaler; a regressor learns a scaled y, too."""
    pipeline = make_pipeline(StandardScaler(), network)
    if hasattr(network, "predict_proba"):
        return pipeline
    return TransformedTargetRegressor(pipeline, transformer=StandardScaler())


def contestants(classes: bool) -> dict[str, Callable[[int], Any]]:
    """Name -> what makes an estimator from a seed."""
    one = MLPClassifier if classes else MLPRegressor
    many = EnsembleClassifier if classes else EnsembleRegressor
    forest = RandomForestClassifier if classes else RandomForestRegressor
    boosting = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    return {
        "one network": lambda seed: scaled(one(**NETWORK, random_state=seed)),
        "32, bootstrap": lambda seed: scaled(many(**NETWORK, random_state=seed)),
        "32, stopped by out-of-bag rows": lambda seed: scaled(
            many(**NETWORK, early_stopping=True, random_state=seed)
        ),
        "32, all rows": lambda seed: scaled(many(**NETWORK, bootstrap=False, random_state=seed)),
        "random forest": lambda seed: forest(n_jobs=-1, random_state=seed),
        "gradient boosting": lambda seed: boosting(random_state=seed),
    }


def compare(name: str) -> dict[str, dict[str, list[float]]]:
    """Contestant -> metric -> its values of all folds, "seconds" among them."""
    load, repeats = DATA[name]
    X, y = load(return_X_y=True)
    classes = name != "diabetes"
    kind = RepeatedStratifiedKFold if classes else RepeatedKFold
    splits = list(kind(n_splits=FOLDS, n_repeats=repeats, random_state=0).split(X, y))
    found: dict[str, dict[str, list[float]]] = {}
    for seed, (train, test) in enumerate(splits):
        for who, make in contestants(classes).items():
            values = found.setdefault(who, {})
            estimator = make(seed)
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                estimator.fit(X[train], y[train])
            scores = measure(estimator, X[test], y[test], classes)
            scores["seconds"] = time.process_time() - start
            for metric, value in scores.items():
                values.setdefault(metric, []).append(float(value))
    return found


def measure(estimator: Any, X: np.ndarray, y: np.ndarray, classes: bool) -> dict[str, float]:
    if not classes:
        return {"R²": r2_score(y, estimator.predict(X))}
    probabilities = estimator.predict_proba(X)
    right = estimator.classes_[probabilities.argmax(axis=1)]
    return {
        "accuracy": accuracy_score(y, right),
        "log loss": log_loss(y, probabilities, labels=estimator.classes_),
    }


def table(found: Results, metric: str) -> str:
    """Markdown: a row a contestant, a column a data set that has the metric."""
    columns = [name for name, of in found.items() if metric in next(iter(of.values()))]
    lines = [f"| {metric} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    digits = 3 if metric != "seconds" else 2
    for who in found[columns[0]]:
        cells = []
        for name in columns:
            values = np.array(found[name][who][metric])
            if metric == "seconds":
                cells.append(f"{np.median(values):.{digits}f}")
            else:
                cells.append(f"{values.mean():.{digits}f} ± {values.std():.{digits}f}")
        lines.append(f"| {who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Results, path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [(name, next(iter(next(iter(of.values()))))) for name, of in found.items()]
    panels += [(name, "log loss") for name, metric in panels if metric == "accuracy"]
    axes = figure.subplots(2, len(found), sharey=True, squeeze=False).ravel()
    for axis, (name, metric) in zip(axes, panels, strict=False):
        contest = found[name]
        for place, (who, values) in enumerate(contest.items()):
            each = np.array(values[metric])
            color = "#1f5fa8" if who.startswith("32") else "#b03060" if "one" in who else "#777777"
            axis.errorbar(each.mean(), place, xerr=each.std(), fmt="o", color=color, capsize=3)
        axis.set_yticks(range(len(contest)), contest)
        axis.set_title(f"{name.replace('_', ' ')}: {metric}", fontsize=9)
        if axis.get_ylim()[0] < axis.get_ylim()[1]:
            axis.invert_yaxis()
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--results", type=Path, help="a file to keep, and go on from")
    parser.add_argument("--picture", help="where to draw it")
    given = parser.parse_args(arguments)
    found: Results = {}
    if given.results is not None and given.results.exists():
        found = json.loads(given.results.read_text(encoding="utf-8"))
    for name in given.data:
        if name not in found:
            found[name] = compare(name)
        if given.results is not None:
            given.results.write_text(json.dumps(found), encoding="utf-8")
        print(f"{name}: {DATA[name][1]} × {FOLDS} folds", flush=True)
    found = {name: found[name] for name in given.data}
    metrics = dict.fromkeys(m for of in found.values() for m in next(iter(of.values())))
    for metric in sorted(metrics, key=lambda each: each == "seconds"):
        print("\n" + table(found, metric))
    if given.picture:
        draw(found, given.picture)


if __name__ == "__main__":
    main()
