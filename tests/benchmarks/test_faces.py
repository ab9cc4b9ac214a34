"""`bench_faces`: both sides do the same, and what disagrees or is absent is said, not timed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from backprop_gpu.benchmarks import bench_faces
from backprop_gpu.benchmarks.bench_faces import Case, differs, main, samples

QUICK = ["--rounds", "1", "--seconds", "0.001"]


def test_a_line_for_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--only", "nielsen"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["theirs", "ours", "ratio"]
    lines = [line for line in lines if "left out" not in line]  # what is not installed here
    assert [line[:20].strip() for line in lines] == ["nielsen feedforward", "nielsen backprop"]
    assert all(float(line.split()[-1]) > 0 for line in lines)


def test_scikit_learns_and_ours_agree() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for case in [*bench_faces.searches(max_iter=3), *bench_faces.partial_fits()]:
        assert differs(case.theirs(), case.ours()) <= case.bound, case.name


def test_torchs_and_ours_agree() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    for case in bench_faces.steps():
        if "compiled" not in case.name:
            assert differs(case.theirs(), case.ours()) <= case.bound, case.name


def test_numbers_that_differ_are_not_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("odd", lambda: [np.ones(2), [2.0]], lambda: [np.ones(2), [2.1]], 1e-3)
    monkeypatch.setattr(bench_faces, "GROUPS", {"odd": lambda: iter([case])})
    assert main(QUICK) == 1
    assert "odd                                 not timed: the numbers differ by 5.0e-02" in (
        capsys.readouterr().out
    )
    assert np.isnan(differs([1.0], [np.nan]))


def test_what_is_not_installed_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(bench_faces, "GROUPS", {"search": bench_faces.searches, "nielsen": samples})
    assert main(QUICK) == 0
    out = capsys.readouterr().out
    assert "left out" in out
    assert "nielsen backprop" in out
