"""Some slips of the host side, drawn at random, and each must be noticed (see host_slips.py)."""

from __future__ import annotations

import pytest

from host_slips import ROOT, SLIPS, SURVIVORS, Slip, main
from machine import needs_compiler

pytest.importorskip("cuda.core", reason="cuda-core is not installed")


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.what)
def test_a_slip_is_of_the_code_as_it_is(slip: Slip) -> None:
    source = (ROOT / "backprop_gpu" / slip.file).read_text()
    assert slip.apply(source) != source


def test_a_sample_is_caught() -> None:
    needs_compiler()
    assert main(["--sample", "4", "--jobs", "1"]) == 0


def test_survivors_are_slips_with_a_reason() -> None:
    assert SURVIVORS.keys() <= {slip.what for slip in SLIPS}
    assert all(SURVIVORS.values())
    assert len(SLIPS) - len(SURVIVORS) >= 40
