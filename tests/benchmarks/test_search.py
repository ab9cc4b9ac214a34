"""`bench_search`: all sides do the same search, and scores that differ are said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backprop_gpu.benchmarks import bench_search

QUICK = ["--rounds", "1", "--folds", "2", "--epochs", "1", "--hidden", "3", "--jobs", "1"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_all_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_search.main(QUICK) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["population", "ours, n_jobs=1", "sklearn, n_jobs=1"]
    # Both begin from the same weights, and part in the last digits.
    sides = bench_search.sides(2, 1, [3], "auto", [1])
    np.testing.assert_allclose(sides["sklearn, n_jobs=1"](), sides["population"](), atol=0.01)


def test_scores_that_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sides(*_: Any) -> Any:
        return {"population": lambda: np.array([1.0]), "ours, n_jobs=1": lambda: np.array([0.5])}

    monkeypatch.setattr(bench_search, "sides", sides)
    assert bench_search.main(QUICK) == 1
    assert "DIFFER" in capsys.readouterr().out
