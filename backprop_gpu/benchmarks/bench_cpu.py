"""Training runs on the CPU for pytest-benchmark: ``pytest benchmarks/bench_cpu.py -k nielsen``.

A round is one `PeerTrainer.run`. pytest-benchmark times one library after the other, so that a slow
moment of the machine hits only one of them: take ratios from ``backprop-gpu bench``, which lets
the libraries take turns.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from .measure import prepare
from .peers import registry
from .workloads import WORKLOADS, Workload

#: Operations of a step above which a round would take seconds.
LARGEST = 2e10


@pytest.mark.parametrize("peer", list(registry.PEERS))
@pytest.mark.parametrize(
    "load", [load for loads in WORKLOADS.values() for load in loads], ids=lambda w: f"{w.name} {w}"
)
def test_training(benchmark: Any, load: Workload, peer: str) -> None:
    library = registry.get(peer)
    reason = library.obstacle(load, "cpu")
    if load.flops > LARGEST:
        reason = f"{load.flops / 1e9:,.0f} GFLOP a step"
    if reason is not None:
        pytest.skip(f"{peer}: {reason}")
    trainer, steps = prepare(library, load, "cpu", seconds=0.1)
    benchmark.extra_info["steps"] = steps
    benchmark.pedantic(trainer.run, rounds=5)


@pytest.mark.parametrize("module", ["numpy", "backprop_gpu"])
def test_import(benchmark: Any, module: str) -> None:
    """A process that imports it: ours should take little longer than NumPy alone."""
    command = [sys.executable, "-c", f"import {module}"]
    benchmark.pedantic(
        subprocess.run, args=(command,), kwargs={"check": True}, rounds=10, warmup_rounds=1
    )
