"""Every kernel computes what its equation says.

On a device, or the stand-in for one, for the numbers; and on the CPU under AddressSanitizer and
UndefinedBehaviorSanitizer for memory, under ThreadSanitizer for accesses that no barrier orders.
What is computed is in `kernel_cases.py`.
"""

from __future__ import annotations

import functools

import pytest

from backprop_gpu.testing.build import Sanitizer
from host_cuda.backend import BackendRuntime
from kernel_cases import CASES, DTYPES, LAUNCHED, RUNS, Case, run_on_cuda
from machine import device_runtime, needs_compiler

dtypes = pytest.mark.parametrize("dtype", DTYPES)


@functools.cache
def sanitized(run: Sanitizer) -> BackendRuntime:
    needs_compiler()
    return BackendRuntime(run, library=True, together=LAUNCHED)


# A sanitizer's process cannot call a user's Python function.
@pytest.mark.parametrize("case", [case for case in CASES if not case.python], ids=str)
@pytest.mark.parametrize("run", [run for run in RUNS if run != "plain"])
@dtypes
def test_under_sanitizers(case: Case, run: Sanitizer, dtype: str) -> None:
    run_on_cuda(case, dtype, sanitized(run), RUNS[run])


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
@dtypes
def test_on_a_device(case: Case, dtype: str) -> None:
    run_on_cuda(case, dtype, device_runtime())
