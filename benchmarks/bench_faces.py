"""What a user of a face waits for, beside the library whose place it takes.

    python -m backprop_gpu.benchmarks.bench_faces [--only partial_fit] [--rounds 7] [--threads 1]

    search, partial_fit   the estimators beside scikit-learn's, on the data that it ships with
    nielsen               a sample at a time beside NumPy, in the book's column vectors
    torch                 a training step of `torch.MLP` beside nn.Sequential's, plain and compiled

Both sides take turns, once their numbers have agreed; shown are the medians over the rounds and the
median of the ratios within a round. What is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from ..nielsen import network
from .measure import settle


@dataclass(frozen=True)
class Case:
    """The same work done by two sides; each returns numbers that must agree."""

    name: str
    theirs: Callable[[], Any]
    ours: Callable[[], Any]
    #: The largest difference of a number, to its size.
    bound: float


# -- scikit-learn ----------------------------------------------------------------------------------


def searches(max_iter: int = 40) -> Iterator[Case]:
    """A grid of 18 small fits."""
    from sklearn import datasets, neural_network
    from sklearn.model_selection import GridSearchCV

    from .. import estimators

    grid = {"alpha": [1e-5, 1e-3, 1e-1], "hidden_layer_sizes": [(30,), (50, 20)]}
    for data, kind, solver in (
        ("digits", "MLPClassifier", "adam"),
        ("breast_cancer", "MLPClassifier", "adam"),
        ("diabetes", "MLPRegressor", "adam"),
        ("breast_cancer", "MLPClassifier", "lbfgs"),
    ):
        X, y = getattr(datasets, f"load_{data}")(return_X_y=True)
        X = (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-9)

        def search(
            module: Any, X: Any = X, y: Any = y, kind: str = kind, solver: str = solver
        ) -> Any:
            est = getattr(module, kind)(max_iter=max_iter, random_state=0, solver=solver)
            found = GridSearchCV(est, grid, cv=3, refit=False).fit(X, y)
            return found.cv_results_["mean_test_score"]

        yield Case(
            f"search {data} {solver}",
            lambda search=search: search(neural_network),  # type: ignore[misc]
            lambda search=search: search(estimators),  # type: ignore[misc]
            1e-2,  # a sample more or less that is right, where the last digits differ
        )


def partial_fits(rows: int = 200) -> Iterator[Case]:
    """One call, on digits, [64, 100, 10]."""
    from sklearn import datasets, neural_network

    from .. import estimators

    X, y = datasets.load_digits(return_X_y=True)
    X, y = X[:rows] / 16, y[:rows]
    sides = []
    for module in (neural_network, estimators):
        est = module.MLPClassifier(random_state=0)
        est.partial_fit(X, y, classes=np.arange(10))
        sides.append(lambda est=est: est.partial_fit(X, y).coefs_[0])
    yield Case("partial_fit digits", sides[0], sides[1], 1e-6)


# -- the book -------------------------------------------------------------------------------------


def _sigmoid(z: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-z))


class SampleBySample:
    """The notes' equations for column vectors, in NumPy."""

    def __init__(self, net: network.Network) -> None:
        self.weights, self.biases = list(net.weights), list(net.biases)

    def feedforward(self, a: np.ndarray) -> np.ndarray:
        for w, b in zip(self.weights, self.biases, strict=True):
            a = _sigmoid(np.dot(w, a) + b)
        return a

    def backprop(self, x: np.ndarray, y: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        a, z = [x], []
        for w, b in zip(self.weights, self.biases, strict=True):
            z.append(np.dot(w, a[-1]) + b)
            a.append(_sigmoid(z[-1]))
        slope = [_sigmoid(one) * (1 - _sigmoid(one)) for one in z]
        delta = (a[-1] - y) * slope[-1]
        nabla_b, nabla_w = [delta], [np.dot(delta, a[-2].T)]
        for l in range(len(z) - 2, -1, -1):
            delta = np.dot(self.weights[l + 1].T, delta) * slope[l]
            nabla_b.insert(0, delta)
            nabla_w.insert(0, np.dot(delta, a[l].T))
        return nabla_b, nabla_w


def samples(sizes: Sequence[int] = (784, 30, 10)) -> Iterator[Case]:
    """`feedforward` and `backprop` of one sample."""
    net = network.Network(list(sizes), backend="numpy")
    plain, rng = SampleBySample(net), np.random.default_rng(0)
    x, y = rng.random((sizes[0], 1)), rng.random((sizes[-1], 1))
    yield Case(
        "nielsen feedforward", lambda: plain.feedforward(x), lambda: net.feedforward(x), 1e-9
    )
    yield Case("nielsen backprop", lambda: plain.backprop(x, y), lambda: net.backprop(x, y), 1e-9)


# -- PyTorch --------------------------------------------------------------------------------------


def steps(threads: int | None = None) -> Iterator[Case]:
    """zero_grad, forward, loss, backward and a step of SGD."""
    import torch
    from torch import nn

    from ..torch import MLP, to_torch
    from ..torch.conversion import from_torch

    if threads:
        torch.set_num_threads(threads)

    def step(model: Any, X: Any, Y: Any) -> Callable[[], Any]:
        optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.01), nn.MSELoss()

        def run() -> Any:
            optimizer.zero_grad()
            value = loss(model(X), Y)
            value.backward()
            optimizer.step()
            return value.item()

        return run

    for sizes, batch in (((784, 64, 10), 10), ((784, 64, 10), 128), ((784, 512, 512, 10), 64)):
        X, Y = torch.rand(batch, sizes[0]), torch.rand(batch, sizes[-1])
        for compiled in (False, True):
            ours = MLP(sizes, seed=0)
            theirs = to_torch(from_torch(ours, cost="quadratic"))
            sides = [torch.compile(net) if compiled else net for net in (theirs, ours)]
            name = f"torch {list(sizes)} b{batch}{' compiled' if compiled else ''}"
            yield Case(name, step(sides[0], X, Y), step(sides[1], X, Y), 1e-3)


# -- measured -------------------------------------------------------------------------------------

GROUPS: dict[str, Callable[..., Iterator[Case]]] = {
    "search": searches, "partial_fit": partial_fits, "nielsen": samples, "torch": steps,
}  # fmt: skip


def differs(theirs: Any, ours: Any) -> float:
    """The largest difference of two numbers, to the largest number."""
    if isinstance(theirs, (list, tuple)):
        return max(differs(a, b) for a, b in zip(theirs, ours, strict=True))
    a, b = np.asarray(theirs, float), np.asarray(ours, float)
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-300))


def timed(case: Case, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds a call of both sides, round by round; a side's round lasts about `seconds`."""
    found: tuple[list[float], list[float]] = [], []
    calls = []
    for side in (case.theirs, case.ours):
        begin = time.perf_counter()
        side()
        calls.append(max(1, int(seconds / (time.perf_counter() - begin))))
    for number in range(rounds):
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            side = (case.theirs, case.ours)[i]
            settle()
            begin = time.perf_counter()
            for _ in range(calls[i]):
                side()
            found[i].append((time.perf_counter() - begin) / calls[i])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print; 1 if the two sides of a case disagree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a side's round, about")
    parser.add_argument("--threads", type=int, help="of every library (default: its own)")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="sklearn")
    warnings.filterwarnings("ignore", message=".*(converge|STOP)")
    failed = 0
    print(f"{'':<36}{'theirs':>12}{'ours':>12}{'ratio':>8}")
    with ExitStack() as limits:
        if args.threads:
            from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

            limits.enter_context(threadpool_limits(args.threads))
        for group, cases in GROUPS.items():
            try:
                for case in cases(threads=args.threads) if group == "torch" else cases():
                    if args.only in case.name:
                        failed |= not _show(case, args.rounds, args.seconds)
            except ImportError as error:
                print(f"{group:<36}left out: {error}")
    return failed


def _show(case: Case, rounds: int, seconds: float) -> bool:
    difference = differs(case.theirs(), case.ours())
    if not difference <= case.bound:
        print(f"{case.name:<36}not timed: the numbers differ by {difference:.1e}")
        return False
    theirs, ours = timed(case, rounds, seconds)
    ratio = median(a / b for a, b in zip(theirs, ours, strict=True))
    a, b = (f"{median(side) * 1e6:,.0f} µs" for side in (theirs, ours))
    print(f"{case.name:<36}{a:>12}{b:>12}{ratio:>8.2f}")
    return True


if __name__ == "__main__":
    raise SystemExit(main())
