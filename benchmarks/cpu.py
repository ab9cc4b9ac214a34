"""Time per epoch on the CPU, beside scikit-learn and a plain NumPy loop, in one run.

    python -m benchmarks.cpu [--quick] [--record]

Every repetition times the three libraries one after the other, each by the difference
between a long and a short training run, so that what happens once (checks, set-up) drops
out and a machine that slows down slows all three. Ratios are formed within a repetition,
then their median is taken. Before timing, ours and the plain loop must agree.

scikit-learn's outputs are softmax with cross-entropy: its `MLPClassifier` has no other
choice for classes. ours and the plain loop use sigmoid and the quadratic cost.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from backprop_gpu import Network

from . import records

RESULTS = records.RESULTS / "cpu.jsonl"
LIBRARIES = ("backprop_gpu", "scikit-learn", "numpy loop")
LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Workload:
    """A network, a batch, and how much faster than scikit-learn it should be."""

    sizes: tuple[int, ...]
    batch: int
    rows: int
    target: float

    @property
    def name(self) -> str:
        return f"{list(self.sizes)} batch {self.batch}"

    @property
    def steps(self) -> int:
        return self.rows // self.batch

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Random rows of MNIST's shape, and labels."""
        rng = np.random.default_rng(0)
        X = rng.random((self.rows, self.sizes[0]), np.float32)
        return X, rng.integers(0, self.sizes[-1], self.rows)


WORKLOADS = (
    Workload((784, 30, 10), 10, 10_000, 4.0),
    Workload((784, 128, 128, 10), 128, 128 * 80, 2.0),
    Workload((784, 512, 512, 10), 512, 512 * 20, 1.3),
)


# -- the three libraries: each trains for a number of epochs -------------------------


def ours(load: Workload, X: np.ndarray, labels: np.ndarray, backend: str) -> Callable[[int], None]:
    """This package."""
    net = Network(load.sizes, seed=0, backend=backend)
    Y = one_hot(labels, load.sizes[-1])
    # Runs this short would be left to the layered engine; what is timed is a long one.
    engine = "compiled" if backend == "numpy" else "auto"

    def train(epochs: int) -> None:
        net.fit(
            X,
            Y,
            epochs=epochs,
            batch_size=load.batch,
            learning_rate=LEARNING_RATE,
            engine=engine,
        )

    return train


def sklearn(load: Workload, X: np.ndarray, labels: np.ndarray) -> Callable[[int], None]:
    """scikit-learn's MLPClassifier, float32 like its input, plain SGD without a penalty."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    def train(epochs: int) -> None:
        model = MLPClassifier(
            load.sizes[1:-1],
            solver="sgd",
            activation="logistic",
            batch_size=load.batch,
            learning_rate="constant",
            learning_rate_init=LEARNING_RATE,
            momentum=0.0,
            nesterovs_momentum=False,
            alpha=0.0,
            shuffle=True,
            max_iter=epochs,
            tol=0.0,
            n_iter_no_change=epochs + 1,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, labels)
        if model.n_iter_ != epochs or model.coefs_[0].dtype != np.float32:
            raise RuntimeError("scikit-learn did not train as asked: the times would not compare")

    return train


def plain(load: Workload, X: np.ndarray, labels: np.ndarray) -> Callable[[int], None]:
    """A NumPy loop over whole mini-batches, as the exercise in the book's chapter 2 asks for."""
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal((n, m)) / np.sqrt(m)).astype(np.float32)
        for m, n in pairwise(load.sizes)
    ]
    biases = [rng.standard_normal(n).astype(np.float32) for n in load.sizes[1:]]
    Y = one_hot(labels, load.sizes[-1])

    def train(epochs: int) -> None:
        for _ in range(epochs):
            order = rng.permutation(len(X))
            plain_epoch(weights, biases, X, Y, order, load.batch, LEARNING_RATE)

    return train


def plain_epoch(
    weights: list[np.ndarray],
    biases: list[np.ndarray],
    X: np.ndarray,
    Y: np.ndarray,
    order: np.ndarray,
    batch: int,
    eta: float,
) -> None:
    """One epoch of the plain loop. σ' is taken from a, which is faster than the book's σ'(z)."""
    for start in range(0, len(X), batch):
        rows = order[start : start + batch]
        x, y = X[rows], Y[rows]
        m = len(rows)
        activations = [x]
        for w, b in zip(weights, biases, strict=True):
            activations.append(sigmoid(activations[-1] @ w.T + b))
        a = activations[-1]
        delta = (a - y) * a * (1 - a)
        gradients = []
        for l in range(len(weights) - 1, -1, -1):
            gradients.append((delta.T @ activations[l] / m, delta.sum(axis=0) / m))
            if l:
                a = activations[l]
                delta = delta @ weights[l] * a * (1 - a)
        for l, (dw, db) in enumerate(reversed(gradients)):
            weights[l] = weights[l] - eta * dw
            biases[l] = biases[l] - eta * db


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-z)."""
    return 1 / (1 + np.exp(-z))


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels as rows of the identity."""
    return np.eye(classes, dtype=np.float32)[labels]


# -- checked, then timed --------------------------------------------------------------


def disagreement(load: Workload, backend: str, steps: int = 20) -> float:
    """The largest difference between our weights and the plain loop's after a few steps from
    the same weights in the same order, over the largest change that training made."""
    X, labels = load.data()
    rows = min(load.rows, steps * load.batch)
    X, Y = X[:rows], one_hot(labels[:rows], load.sizes[-1])
    net = Network(load.sizes, seed=1, backend=backend)
    start = net.weights + net.biases
    weights, biases = [w.copy() for w in net.weights], [b.copy() for b in net.biases]
    order = copy.deepcopy(net._rng).permutation(rows)
    plain_epoch(weights, biases, X, Y, order, load.batch, LEARNING_RATE)
    net.fit(X, Y, epochs=1, batch_size=load.batch, learning_rate=LEARNING_RATE)
    change = max(float(abs(a - b).max()) for a, b in zip(weights + biases, start, strict=True))
    found = net.weights + net.biases
    return (
        max(float(abs(a - b).max()) for a, b in zip(weights + biases, found, strict=True)) / change
    )


def measure(
    load: Workload, repetitions: int, seconds: float, backend: str = "numpy"
) -> dict[str, np.ndarray]:
    """Seconds an epoch of each library, (repetitions,), interleaved."""
    X, labels = load.data()
    trains = dict(
        zip(
            LIBRARIES,
            (ours(load, X, labels, backend), sklearn(load, X, labels), plain(load, X, labels)),
            strict=True,
        )
    )
    epochs = {}
    for name, train in trains.items():  # also the warm-up
        train(1)
        took = _seconds(train, 1)
        epochs[name] = max(1, round(seconds / took))
    times: dict[str, list[float]] = {name: [] for name in trains}
    for _ in range(repetitions):
        for name, train in trains.items():
            short = _seconds(train, 1)
            times[name].append((_seconds(train, 1 + epochs[name]) - short) / epochs[name])
    return {name: np.array(values) for name, values in times.items()}


def _seconds(train: Callable[[int], None], epochs: int) -> float:
    start = time.perf_counter()
    train(epochs)
    return time.perf_counter() - start


# -- results --------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, append the records if asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a few seconds, less certain")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    parser.add_argument("--repetitions", type=int, help="default 11, with --quick 3")
    parser.add_argument("--backend", default="numpy", help="of ours; default %(default)s")
    args = parser.parse_args(argv)
    repetitions = args.repetitions or (3 if args.quick else 11)
    seconds = 0.25 if args.quick else 1.0

    about = records.environment()
    machine = about["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores; {machine['blas']}")
    if machine["load_average"] > 0.5:
        print(f"note: other work is running here (load average {machine['load_average']:.1f})")
    print(", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    print(f"median of {repetitions} interleaved repetitions; times in µs a step\n")
    head = f"{'workload':<30} {'library':<13} {'median':>9} {'10%':>9} {'90%':>9} {'ms/epoch':>9}"
    print(f"{head}  ours is faster by")
    missed = 0
    for load in WORKLOADS:
        error = disagreement(load, args.backend)
        if not error < 1e-4:
            print(f"{load.name}: ours and the plain loop differ by {error:.1e} of the change")
            return 1
        times = measure(load, repetitions, seconds, args.backend)
        if min(values.min() for values in times.values()) <= 0.0:
            print(f"{load.name}: a long run took less than a short one: the machine is too busy")
            return 1
        measured: list[dict[str, Any]] = []
        for name, values in times.items():
            ratios = values / times["backprop_gpu"]
            ratio = float(np.median(ratios))
            low, median, high = np.quantile(values / load.steps * 1e6, (0.1, 0.5, 0.9)).tolist()
            note = ""
            if name != "backprop_gpu":
                target = load.target if name == "scikit-learn" else 1.0
                missed += ratio < target
                note = (
                    f"{ratio:.2f}x (target {target:g}x: {'met' if ratio >= target else 'MISSED'})"
                )
            print(
                f"{load.name:<30} {name:<13} {median:>9.1f} {low:>9.1f} {high:>9.1f} "
                f"{np.median(values) * 1e3:>9.1f}  {note}",
                flush=True,
            )
            measured.append(
                {
                    "workload": load.name,
                    "library": name,
                    "backend": args.backend if name == "backprop_gpu" else None,
                    "engine": "compiled"
                    if name == "backprop_gpu" and args.backend == "numpy"
                    else None,
                    "dtype": "float32",
                    "rows": load.rows,
                    "median_us_per_step": round(median, 3),
                    "quantiles_us_per_step": {"0.1": round(low, 3), "0.9": round(high, 3)},
                    "ratio_to_ours": round(ratio, 4),
                    "repetitions": repetitions,
                    "relative_difference_from_numpy_loop": error
                    if name == "backprop_gpu"
                    else None,
                    **about,
                }
            )
        if args.record:
            records.append(RESULTS, measured)
    print(f"\n{'every target met' if not missed else f'{missed} target(s) missed'}")
    if args.record:
        print(f"recorded in {RESULTS}")
    return 0


def readme_table() -> str:
    """README's table of CPU times, from the newest record of each workload and library."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records.read(RESULTS):
        newest[record["workload"], record["library"]] = record
    any_record = next(iter(newest.values()))
    lines = [
        f"µs a step on {any_record['machine']['processor']}, {any_record['machine']['cores']} "
        f"cores, float32, {any_record['date'][:10]} (`python -m benchmarks.cpu --record`). Ours is "
        "the compiled engine, which `fit` takes where training lasts longer than loading it:",
        "",
        "| network | backprop_gpu | scikit-learn | plain NumPy loop |",
        "| --- | --- | --- | --- |",
    ]
    for load in WORKLOADS:
        cells = []
        for library in LIBRARIES:
            record = newest[load.name, library]
            ratio = "" if library == LIBRARIES[0] else f" ({record['ratio_to_ours']:.2f}×)"
            cells.append(f"{record['median_us_per_step']:,.0f}{ratio}")
        lines.append(f"| {load.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
