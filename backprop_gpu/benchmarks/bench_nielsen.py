"""The book's first experiment through `backprop_gpu.nielsen` and sample by sample in NumPy.

    python -m backprop_gpu.benchmarks.bench_nielsen [--rows 10000] [--epochs 10] [--backend auto]

trains [784, 30, 10] in mini-batches of 10 on random data both ways, checks that the weights agree,
and prints µs a step of each and their ratio. Both start from the list of column vectors; ours is
a whole `SGD`, with stacking the list, shuffling and writing weights back. They take turns, and
figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from ..nielsen import network, network2

SIZES, BATCH, ETA = [784, 30, 10], 10, 3.0
#: As near as the weights of both must come before anything is timed.
TOLERANCE = 1e-9

Pairs = list[tuple[np.ndarray, np.ndarray]]


def per_sample(
    weights: list[np.ndarray], biases: list[np.ndarray], pairs: Pairs
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """An epoch on shuffled pairs, BP1–BP4 of a sample at a time.

    Leaner than the book's loop: gradients are summed in place, and σ is computed once.
    """
    w, b, layers = list(weights), list(biases), range(len(weights))
    order = list(pairs)
    random.shuffle(order)
    for k in range(0, len(order), BATCH):
        batch = order[k : k + BATCH]
        nabla_w, nabla_b = [np.zeros_like(x) for x in w], [np.zeros_like(x) for x in b]
        for x, y in batch:
            a = [x]
            for l in layers:
                a.append(1.0 / (1.0 + np.exp(-(w[l] @ a[-1] + b[l]))))
            delta = (a[-1] - y) * a[-1] * (1.0 - a[-1])
            for l in reversed(layers):
                nabla_b[l] += delta
                nabla_w[l] += delta @ a[l].T
                if l:
                    delta = (w[l].T @ delta) * a[l] * (1.0 - a[l])
        rate = ETA / len(batch)
        w = [p - rate * g for p, g in zip(w, nabla_w, strict=True)]
        b = [p - rate * g for p, g in zip(b, nabla_b, strict=True)]
    return w, b


def problem(rows: int) -> Pairs:
    """Random columns (784, 1) with random one-hot targets (10, 1)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, SIZES[-1], rows)
    columns = rng.random((rows, SIZES[0], 1))
    return [
        (x, network2.vectorized_result(int(j), SIZES[-1]))
        for x, j in zip(columns, labels, strict=True)
    ]


def check(pairs: Pairs, backend: str) -> float:
    """The largest difference of a parameter after one epoch of both; it must be tiny."""
    net = network.Network(SIZES, backend=backend)
    weights, biases = net.weights, net.biases
    random.seed(1)
    expected = per_sample(weights, biases, pairs)
    random.seed(1)
    _train(net, pairs, 1)
    found = [*net.weights, *net.biases]
    difference = max(
        float(np.abs(a - e).max()) for a, e in zip(found, [*expected[0], *expected[1]], strict=True)
    )
    if not difference < TOLERANCE:
        raise SystemExit(f"the two disagree by {difference:.1e}: nothing to time")
    return difference


def _train(net: network.Network, pairs: Pairs, epochs: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        net.SGD(tuple(pairs), epochs, BATCH, ETA)  # no list, so that it keeps its order


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print."""
    parser = argparse.ArgumentParser(
        prog="python -m backprop_gpu.benchmarks.bench_nielsen",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=10_000, help="a multiple of 10")
    parser.add_argument("--epochs", type=int, default=10, help="of ours, in one SGD")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args(argv)
    if args.rows < BATCH or args.rows % BATCH:
        parser.error(f"--rows must be a multiple of {BATCH}, got {args.rows}")
    np.random.seed(0)  # noqa: NPY002 - the book's generator
    pairs = problem(args.rows)
    steps = args.rows // BATCH
    print(f"largest difference after one epoch: {check(pairs[:2000], args.backend):.1e}")
    net = network.Network(SIZES, backend=args.backend)
    _train(net, pairs, args.epochs)  # loads and compiles what is not there yet
    ours, theirs = [], []
    for _ in range(args.rounds):
        start = time.perf_counter()
        _train(net, pairs, args.epochs)
        ours.append((time.perf_counter() - start) / (args.epochs * steps))
        start = time.perf_counter()
        per_sample(net.weights, net.biases, pairs)
        theirs.append((time.perf_counter() - start) / steps)
    print(net.plan)
    print(f"sample by sample  {median(theirs) * 1e6:8.1f} µs a step")
    print(f"nielsen.network   {median(ours) * 1e6:8.1f} µs a step")
    print(f"ratio             {median(a / b for a, b in zip(theirs, ours, strict=True)):8.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
