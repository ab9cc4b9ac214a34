"""`bench_cluster`: all ways give the same numbers, and what does not is not timed."""

from __future__ import annotations

import numpy as np
import pytest

from backprop_gpu.benchmarks import bench_cluster
from backprop_gpu.benchmarks.bench_cluster import Ways, main


def test_a_line_for_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "1", "--only", "fit"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines] == [["fit", "digits", "here"], ["fit", "digits", "dask"]]
    assert float(lines[0][-1]) == 1.0


def test_what_disagrees_is_not_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = Ways("odd", {"here": lambda: np.zeros(2), "there": lambda: np.ones(2)})
    monkeypatch.setattr(bench_cluster, "GROUPS", {"odd": lambda client, workers: iter([ways])})
    assert main(["--rounds", "1", "--workers", "1"]) == 1
    assert capsys.readouterr().out.split()[1:3] == ["not", "timed:"]
