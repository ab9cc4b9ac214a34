"""What a search over a perceptron takes: as a population, and fit by fit.

    python -m backprop_gpu.benchmarks.bench_search [--rounds 3] [--folds 10] [--epochs 100]

    population        `PopulationSearchCV` over our `MLPClassifier`
    ours, n_jobs      scikit-learn's `GridSearchCV` over the same
    sklearn, n_jobs   the same over scikit-learn's own `MLPClassifier`

16 settings of 4 alphas and 4 learning rates, on the digits that scikit-learn ships with. All sides
take turns, and processes of `n_jobs` start within each; shown are the medians over the rounds, and
of the ratios to the population of the same round. The scores of ours must be equal.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from .measure import settle

GRID = {
    "alpha": [1e-5, 1e-4, 1e-3, 1e-2],
    "learning_rate_init": [3e-4, 1e-3, 3e-3, 1e-2],
}


def sides(
    folds: int, epochs: int, hidden: Sequence[int], batch: int | str, jobs: Sequence[int]
) -> dict[str, Callable[[], Any]]:
    """Name -> () -> the mean score of each setting."""
    from sklearn import datasets, neural_network
    from sklearn.model_selection import GridSearchCV

    from .. import estimators

    X, y = datasets.load_digits(return_X_y=True)
    X = X / 16
    settings = {
        "hidden_layer_sizes": tuple(hidden), "max_iter": epochs, "batch_size": batch,
        "random_state": 0,
    }  # fmt: skip

    def of(kind: Any, module: Any, **options: Any) -> Callable[[], Any]:
        def search() -> Any:
            est = module.MLPClassifier(**settings)
            found = kind(est, GRID, cv=folds, refit=False, **options).fit(X, y)
            return found.cv_results_["mean_test_score"]

        return search

    named = {"population": of(estimators.PopulationSearchCV, estimators)}
    for name, module in (("ours", estimators), ("sklearn", neural_network)):
        for count in jobs:
            named[f"{name}, n_jobs={count}"] = of(GridSearchCV, module, n_jobs=count)
    return named


def fresh_processes() -> None:
    """End those that joblib keeps: whoever calls a search once waits for them to start."""
    from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

    get_reusable_executor().shutdown(wait=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print; 1 if the scores of ours differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="sides whose name has this in it, beside ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--hidden", type=int, nargs="*", default=[64])
    parser.add_argument(
        "--batch", type=lambda text: text if text == "auto" else int(text), default="auto"
    )
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message=".*converge")
    named = sides(args.folds, args.epochs, args.hidden, args.batch, args.jobs)
    named = {k: v for k, v in named.items() if k == "population" or args.only in k}
    seconds: dict[str, list[float]] = {name: [] for name in named}
    scores: dict[str, Any] = {}
    for number in range(args.rounds):
        for name in list(named)[:: 1 if number % 2 == 0 else -1]:
            fresh_processes()
            settle()
            begin = time.perf_counter()
            scores[name] = named[name]()
            seconds[name].append(time.perf_counter() - begin)
    print(f"{'':<20}{'seconds':>10}{'ratio':>8}{'best score':>12}")
    wrong = 0
    for name, found in seconds.items():
        equal = np.array_equal(scores[name], scores["population"])
        wrong |= name.startswith("ours") and not equal
        ratio = median(a / b for a, b in zip(found, seconds["population"], strict=True))
        note = "" if equal or name.startswith("sklearn") else "  THE SCORES DIFFER"
        print(f"{name:<20}{median(found):>10.2f}{ratio:>8.2f}{scores[name].max():>12.4f}{note}")
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
