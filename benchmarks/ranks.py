"""Ranks that share one training, against one process with all their threads.

    mpirun -n 2 --bind-to none python -m backprop_gpu.benchmarks.ranks

Both take turns in one run: while rank 0 trains alone, with as many threads as there are ranks, the
others sleep. What is printed are medians of seconds a step, and the ratio; and what one rank alone
loses by summing its gradients in shards.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median
from typing import Any

import numpy as np

from backprop_gpu import Network, threads
from backprop_gpu.communicators import Communicator, MPICommunicator

SIZES, BATCH, STEPS, ROUNDS = (784, 512, 512, 10), 512, 40, 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    ranks = MPICommunicator()
    own = sorted(os.sched_getaffinity(0))
    rng = np.random.default_rng(0)
    X = rng.random((given.batch * given.steps, given.sizes[0]), np.float32)
    Y = rng.integers(0, given.sizes[-1], len(X))

    def seconds_a_step(communicator: Any, cores: int) -> float:
        with threads.at_most(cores):
            network = Network(
                given.sizes, activation=["relu"] * (len(given.sizes) - 2) + ["softmax"],
                cost="categorical_cross_entropy", seed=1, backend="numpy",
            )  # fmt: skip
            network.fit(
                X, Y, epochs=1, batch_size=given.batch, learning_rate=0.01,
                communicator=communicator,
            )  # fmt: skip
            begin: float = time.perf_counter()
            network.fit(
                X, Y, epochs=1, batch_size=given.batch, learning_rate=0.01,
                communicator=communicator,
            )  # fmt: skip
            return float(time.perf_counter() - begin) / int(given.steps)

    found: dict[str, list[float]] = {}
    alone = Communicator()
    for _ in range(given.rounds):
        for name, communicator, cores in (
            (f"one process, {ranks.size} threads", "none", ranks.size),
            ("the same in shards", alone, ranks.size),
            (f"{ranks.size} ranks, one thread each", ranks, 1),
        ):
            if communicator is ranks or ranks.rank == 0:
                os.sched_setaffinity(
                    0, own if communicator is not ranks else [own[ranks.rank % len(own)]]
                )
                found.setdefault(name, []).append(seconds_a_step(communicator, cores))
            ranks.barrier()
    if ranks.rank == 0:
        first = median(next(iter(found.values())))
        for name, seconds in found.items():
            ms, speed = median(seconds) * 1e3, first / median(seconds)
            print(f"{name:28} {ms:8.3f} ms a step  speed {speed:.3f}")


if __name__ == "__main__":
    main()
