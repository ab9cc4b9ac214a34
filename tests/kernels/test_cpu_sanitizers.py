"""Calls of the CPU's library under sanitizers, which stop it at the first thing they report.

`cpu_calls.cpp` calls it as Python does: every σ, C and rule, readings, populations, several threads
at once, a fork. What it prints is in `cpu_calls.py`. It holds on every machine that rounds a
multiply-add once, and changes only where a sum is made in another order, or a formula is written
another way.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cpu_calls import BUILDS, LINES
from machine import needs_avx2, needs_tools


@pytest.mark.parametrize("name", BUILDS)
def test_no_call_is_reported(name: str, tmp_path: Path) -> None:
    build = BUILDS[name]
    needs_avx2()
    needs_tools(build.compiler)
    done = build.run(build.make(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == LINES
