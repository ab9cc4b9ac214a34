"""The same work in one process and on the workers of a Dask cluster here, with as many cores.

    python -m backprop_gpu.benchmarks.bench_cluster [--workers 2] [--rounds 5] [--only search]

    search   scikit-learn's GridSearchCV over MLPClassifier: serial, by loky, by joblib's Dask
    sweep    a sweep of many small networks: here, and by client=
    fit      a population whose task is over in milliseconds: what a cluster costs at least

All must agree to the bit before they are timed, and take turns. Shown are the medians over the
rounds, and of the ratio to the first within a round.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from .. import estimators
from ..population import Population
from ..sweeps import sweep
from .measure import settle


@dataclass(frozen=True)
class Ways:
    """Several ways to do the same; each returns an array."""

    name: str
    ways: dict[str, Callable[[], np.ndarray]]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    X, y = datasets.load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def searches(client: Any, workers: int) -> Iterator[Ways]:
    """18 fits of a grid."""
    import joblib  # type: ignore[import-untyped]
    from sklearn.model_selection import GridSearchCV

    X, y = _digits()
    grid = {"alpha": [1e-5, 1e-3, 1e-1], "hidden_layer_sizes": [(30,), (50, 20)]}

    def search(backend: str | None) -> np.ndarray:
        kind: Any = estimators.MLPClassifier  # which has no types
        est = kind(max_iter=40, random_state=0)
        over: Any = nullcontext()
        if backend is not None:
            named = {"client": client} if backend == "dask" else {"n_jobs": workers}
            over = joblib.parallel_config(backend=backend, **named)
        with over:
            found = GridSearchCV(est, grid, cv=3, refit=False).fit(X, y)
        return np.asarray(found.cv_results_["mean_test_score"])

    yield Ways(
        "search digits",
        {
            "serial": lambda: search(None),
            "loky": lambda: search("loky"),
            "dask": lambda: search("dask"),
        },
    )


def sweeps(client: Any, workers: int) -> Iterator[Ways]:
    """48 networks of two shapes."""
    X, y = _digits()

    def run(given: Any) -> np.ndarray:
        result = sweep(
            X, y,
            grid={
                "sizes": [[64, 30, 10], [64, 50, 20, 10]],
                "learning_rate": np.geomspace(0.1, 3, 8),
            },
            seeds=3, seed=0, epochs=20, batch_size=10, cost="binary_cross_entropy",
            backend="numpy", progress=False, client=given,
        )  # fmt: skip
        return np.concatenate([net.model.read(net.parameters) for net in result.networks])

    yield Ways("sweep digits", {"here": lambda: run(None), "dask": lambda: run(client)})


def fits(client: Any, workers: int) -> Iterator[Ways]:
    """4 networks for an epoch."""
    X, y = _digits()

    def run(given: Any) -> np.ndarray:
        population = Population([64, 30, 10], members=4, seed=0, backend="numpy")
        population.fit(X, y, epochs=1, batch_size=10, learning_rate=0.5, client=given)
        return np.concatenate([net.model.read(net.parameters) for net in population])

    yield Ways("fit digits", {"here": lambda: run(None), "dask": lambda: run(client)})


#: Of a cluster's client and its number of workers.
GROUPS: dict[str, Callable[[Any, int], Iterator[Ways]]] = {
    "search": searches, "sweep": sweeps, "fit": fits,
}  # fmt: skip


def timed(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    found: dict[str, list[float]] = {name: [] for name in ways.ways}
    names = list(ways.ways)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            settle()
            begin = time.perf_counter()
            ways.ways[name]()
            found[name].append(time.perf_counter() - begin)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print; 1 if the ways of a case disagree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="sklearn")
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        print(f"left out: {error}")
        return 0
    failed = 0
    with (
        LocalCluster(
            n_workers=args.workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        for group, cases in GROUPS.items():
            if args.only in group:
                for case in cases(client, args.workers):
                    failed |= not _show(case, args.rounds)
    return failed


def _show(case: Ways, rounds: int) -> bool:
    first, *others = [way() for way in case.ways.values()]  # and all is started, once
    if not all(np.array_equal(first, other) for other in others):
        print(f"{case.name:<20}not timed: the numbers differ")
        return False
    seconds = timed(case, rounds)
    reference = next(iter(seconds.values()))
    for name, found in seconds.items():
        ratio = median(a / b for a, b in zip(reference, found, strict=True))
        print(f"{case.name:<20}{name:<8}{median(found) * 1e3:>10,.1f} ms{ratio:>8.2f}")
    return True


if __name__ == "__main__":
    raise SystemExit(main())
