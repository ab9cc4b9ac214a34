"""Importing ours, for pytest-benchmark: ``pytest backprop_gpu/benchmarks/bench_import.py``."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest


@pytest.mark.parametrize("module", ["numpy", "backprop_gpu"])
def test_import(benchmark: Any, module: str) -> None:
    """A process that imports it: ours should take little longer than NumPy alone."""
    command = [sys.executable, "-c", f"import {module}"]
    benchmark.pedantic(
        subprocess.run, args=(command,), kwargs={"check": True}, rounds=10, warmup_rounds=1
    )
