"""A few broken kernels, drawn at random, and each must be noticed (see kernel_slips.py)."""

from __future__ import annotations

import re
import subprocess
import sys

from host_cuda.mutants import BARRIERS, KINDS, mutants
from host_cuda.runtime import KERNELS
from kernel_slips import Outcome, reason, report, survivors
from machine import ROOT, SUPPORT, needs_compiler


def test_a_sample_of_mutants_is_caught() -> None:
    needs_compiler()
    command = [sys.executable, str(SUPPORT / "kernel_slips.py"), "--sample", "8", "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_every_kind_of_slip_is_tried() -> None:
    found = mutants(KERNELS)
    assert {mutant.kind for mutant in found} == KINDS.keys()
    text = "".join(path.read_text() for path in KERNELS.rglob("*.cu*"))
    barriers = [mutant for mutant in found if mutant.kind == "barrier"]
    waits = sum(text.count(f"{name}();") for name in BARRIERS) + len(re.findall(r"\.wait\(", text))
    assert len(barriers) == waits > 0
    for mutant in found:
        source = (KERNELS / mutant.file).read_text()
        assert mutant.apply(source) != source


def test_survivors_are_of_the_kernels_as_they_are() -> None:
    """An entry whose code has changed must be thought about again."""
    found = mutants(KERNELS)
    for survivor in survivors():
        assert any(survivor.matches(mutant) for mutant in found), survivor
        assert len(survivor.reason) > 20, survivor


def test_the_report_wants_a_reason_for_every_survivor() -> None:
    found = [mutant for mutant in mutants(KERNELS) if reason(mutant, survivors()) is None]
    caught = [Outcome(mutant, "numbers") for mutant in found[:300]]
    table, good = report(caught)
    assert good
    assert "100" in table
    table, good = report([*caught, Outcome(found[300], "survived")])
    assert not good
    assert "NOT EXPLAINED" in table
    table, good = report([*caught[:10], Outcome(found[300], "no C++")])
    assert good  # it says nothing about the tests
