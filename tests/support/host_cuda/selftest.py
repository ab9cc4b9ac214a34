"""What launches the kernels of ``selftest.cu``."""

from __future__ import annotations

import functools

import numpy as np

from host_cuda.runtime import SERVERS, SOURCES, HostRuntime


@functools.cache
def runtime(sanitizer: str = "plain", define: str = "") -> HostRuntime:
    return HostRuntime(sanitizer, SOURCES, f"#define {define}" if define else "")


def transpose(run: HostRuntime, m: int = 37, n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(m, n))
    out = np.zeros((n, m))
    grid = (-(-n // 16), -(-m // 16), 1)
    arguments = (x, out, np.int32(m), np.int32(n))
    run.launch("selftest.cu", "transpose<double>", grid, (16, 16, 1), arguments)
    return out, x.T


def server(sanitizer: str) -> int:
    """The process that launches."""
    transpose(runtime(sanitizer))
    return SERVERS[sanitizer].pid


def endless(flag: int = 0, timeout: float | None = None) -> None:
    """A launch that ends only if there is a flag."""
    run = HostRuntime("asan", SOURCES, timeout=timeout)
    arguments = (np.array([flag], np.int32),)
    run.launch("selftest.cu", "never_ends", (1, 1, 1), (1, 1, 1), arguments)
