"""Every kernel computes what its equation says, on the CPU and on a device.

On the CPU three times: plain for the numbers, under AddressSanitizer and
UndefinedBehaviorSanitizer for memory, under ThreadSanitizer for accesses that no barrier orders.
What is computed is in `kernel_cases.py`.
"""

from __future__ import annotations

import functools

import pytest
from conftest import host_runtime
from kernel_cases import CASES, DTYPES, RUNS, Case, run_on_cuda

dtypes = pytest.mark.parametrize("dtype", DTYPES)
runtime = functools.cache(host_runtime)


# A sanitizer's process cannot call a user's Python function.
@pytest.mark.parametrize(
    ("case", "run"),
    [(case, run) for run in RUNS for case in CASES if run == "plain" or not case.python],
    ids=str,
)
@dtypes
def test_on_the_cpu(case: Case, run: str, dtype: str) -> None:
    run_on_cuda(case, dtype, runtime(run), RUNS[run])


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
@dtypes
def test_on_a_device(case: Case, dtype: str) -> None:
    from backprop_gpu.backends.cuda import CupyRuntime

    run_on_cuda(case, dtype, CupyRuntime())
