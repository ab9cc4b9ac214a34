"""One epoch of each CPU workload, for pytest-benchmark: ``pytest benchmarks/bench_cpu.py``."""

from __future__ import annotations

from typing import Any

import pytest

from backprop_gpu import Network
from benchmarks.cpu import LEARNING_RATE, WORKLOADS, Workload, one_hot


@pytest.mark.parametrize("load", WORKLOADS, ids=lambda load: load.name)
def test_epoch(benchmark: Any, load: Workload) -> None:
    X, labels = load.data()
    Y = one_hot(labels, load.sizes[-1])
    net = Network(load.sizes, seed=0, backend="numpy")

    def epoch() -> None:
        net.fit(X, Y, epochs=1, batch_size=load.batch, learning_rate=LEARNING_RATE)

    benchmark.extra_info["steps"] = load.steps
    benchmark.pedantic(epoch, rounds=5, warmup_rounds=1)
