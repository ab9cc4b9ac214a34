"""A few broken kernels, each of which must be noticed (see kernel_slips.py and cpu_slips.py)."""

from __future__ import annotations

import re
import subprocess
import sys

from cpu_calls import KERNELS as CPU_KERNELS
from cpu_slips import PATTERNS
from host_cuda.mutants import BARRIERS, KINDS, mutants
from host_cuda.runtime import KERNELS
from kernel_slips import Outcome, reason, report, survivors
from machine import ROOT, SUPPORT, needs_avx2, needs_compiler


def test_a_sample_of_mutants_is_caught() -> None:
    needs_compiler()
    # Always the same: a new draw may find an equivalent that is not listed yet.
    command = [
        sys.executable, str(SUPPORT / "kernel_slips.py"), "--sample", "8", "--seed", "1",
        "--jobs", "1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_slips_in_the_cpus_library_are_caught() -> None:
    """Always the same few: who survives of all of them is not known (see CONTRIBUTING.md)."""
    needs_compiler()
    needs_avx2()
    command = [
        sys.executable, str(SUPPORT / "cpu_slips.py"), "--only", "^maps.*index", "--sample", "3",
        "--seed", "1", "--jobs", "1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_every_kind_of_slip_is_tried() -> None:
    found = mutants(KERNELS)
    assert {mutant.kind for mutant in found} == KINDS.keys()
    text = "".join(path.read_text() for path in KERNELS.rglob("*.cu*"))
    # What g++ does not see is not broken.
    text = re.sub(r"#ifdef __CUDACC__.*?#else", "", text, flags=re.DOTALL)
    barriers = [mutant for mutant in found if mutant.kind == "barrier"]
    waits = sum(text.count(f"{name}();") for name in (*BARRIERS, "meet")) + len(
        re.findall(r"\.wait(?:<\d>)?\(", text)
    )
    assert len(barriers) == waits > 0
    for mutant in found:
        source = (KERNELS / mutant.file).read_text()
        assert mutant.apply(source) != source


def test_survivors_are_of_the_kernels_as_they_are() -> None:
    """An entry whose code has changed must be thought about again."""
    of_the_cpu = mutants(CPU_KERNELS, *PATTERNS)
    assert {mutant.kind for mutant in of_the_cpu} >= {"barrier", "bounds", "index", "sign"}
    for name, found in (
        ("kernel_survivors.toml", mutants(KERNELS)),
        ("cpu_survivors.toml", of_the_cpu),
    ):
        for survivor in survivors(name):
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
