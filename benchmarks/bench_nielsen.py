"""The book's first experiment through `backprop_gpu.nielsen` and sample by sample in NumPy.

    python -m backprop_gpu.benchmarks.bench_nielsen [--seconds 2] [--rounds 5] [--device cpu|cuda]

trains [784, 30, 10] in mini-batches of 10 on random data both ways, in turns, once their parameters
have agreed. Both start from the list of column vectors; ours is a whole `SGD`, with stacking the
list, shuffling and writing weights back. It is no part of ``backprop-gpu bench``, for the book's
cost, quadratic with sigmoids, is that of no workload.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ..nielsen import network
from .measure import ratios, time_peers
from .peers import DeviceType, Peer
from .peers.ours import Ours
from .workloads import Arrays, ProblemInstance, Workload, problem

BOOK = Workload("book", (784, 30, 10), 10, classes=True)
ETA = 3.0


class SGDTrainer:
    """`network.Network.SGD`; also what the loop over samples has in common with it."""

    def __init__(self, given: ProblemInstance, device: DeviceType) -> None:
        self.net = network.Network(BOOK.sizes, backend="cuda" if device == "cuda" else "numpy")
        self.net.weights = [w[0].astype(float) for w in given.weights]
        self.net.biases = [b[0, :, None].astype(float) for b in given.biases]
        # Whole epochs: as many steps as were asked for but for less than one per epoch.
        self.epochs = -(-given.steps * BOOK.batch // len(given.X))
        rows = given.steps // self.epochs * BOOK.batch
        columns = given.X[:rows, :, None].astype(float), given.Y[:rows, :, None].astype(float)
        self.pairs = tuple(zip(*columns, strict=True))  # no list, so that it keeps its order

    def run(self) -> None:
        random.seed(1)
        with contextlib.redirect_stdout(io.StringIO()):
            self.net.SGD(self.pairs, self.epochs, BOOK.batch, ETA)

    @property
    def plan(self) -> object:
        return self.net.plan

    def parameters(self) -> tuple[Arrays, Arrays]:
        return list(self.net.weights), list(self.net.biases)


class LoopTrainer(SGDTrainer):
    """BP1–BP4 of a sample at a time. Leaner than the book's loop: gradients are summed in place,
    and σ is computed once.
    """

    def run(self) -> None:
        random.seed(1)
        w, b = self.parameters()
        order = list(self.pairs)
        for _ in range(self.epochs):
            random.shuffle(order)
            for k in range(0, len(order), BOOK.batch):
                self.step(w, b, order[k : k + BOOK.batch])
        self.net.weights, self.net.biases = w, b

    def step(self, w: Arrays, b: Arrays, batch: list[tuple[np.ndarray, np.ndarray]]) -> None:
        nabla_w, nabla_b = [np.zeros_like(x) for x in w], [np.zeros_like(x) for x in b]
        for x, y in batch:
            a = [x]
            for l in range(len(w)):
                a.append(1.0 / (1.0 + np.exp(-(w[l] @ a[-1] + b[l]))))
            delta = (a[-1] - y) * a[-1] * (1.0 - a[-1])
            for l in reversed(range(len(w))):
                nabla_b[l] += delta
                nabla_w[l] += delta @ a[l].T
                if l:
                    delta = (w[l].T @ delta) * a[l] * (1.0 - a[l])
        for p, g in zip([*w, *b], [*nabla_w, *nabla_b], strict=True):
            p -= ETA / len(batch) * g


@dataclass
class Way:
    """A `Peer`; on a CUDA device the loop over samples stays on the CPU."""

    name: str
    label: str
    trainer: type[SGDTrainer]
    #: Both are float64.
    bound = 1e-9

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        return Ours().obstacle(workload, device)

    def start(self, problem: ProblemInstance, device: DeviceType) -> SGDTrainer:
        return self.trainer(problem, device)


WAYS = (
    Way("nielsen", "nielsen.network", SGDTrainer),
    Way("loop", "sample by sample", LoopTrainer),
)


def _disagreement(peer: Peer, workload: Workload, device: DeviceType, steps: int) -> float:
    """The largest difference of a parameter after a few steps of both."""
    trainers = [way.start(problem(workload, steps), device) for way in WAYS]
    found = []
    for trainer in trainers:
        trainer.run()
        weights, biases = trainer.parameters()
        found.append([*weights, *biases])
    return max(float(np.abs(a - b).max()) for a, b in zip(*found, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of a run of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args(argv)
    results = time_peers(
        BOOK, args.device, WAYS, seconds=args.seconds, rounds=args.rounds,
        disagreement=_disagreement,
    )  # fmt: skip
    for result in results:
        if not result.timed:
            raise SystemExit(f"{result.peer.label}: {result.absent or result.failed}")
        ratio = median(ratios(result, results[0]))
        print(
            f"{result.peer.label:<17}{median(result.seconds) * 1e6:8.1f} µs per step{ratio:8.2f}×"
        )
    print(f"largest difference {results[0].disagreement:.1e}\n{results[0].plan}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
