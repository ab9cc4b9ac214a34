"""Where the project is, and what of it this machine can run."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import pytest

from backprop_gpu import cpu
from backprop_gpu.backends import Obstacles
from backprop_gpu.cuda.runtime import Runtime, runtime
from backprop_gpu.testing import standin

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent


@functools.cache
def obstacle(backend: str) -> str | None:
    """Why a backend cannot run here, if it cannot."""
    if backend == "numba_cuda" and standin.running() is not None:
        return "the stand-in of a driver runs no code that Numba has compiled"
    return Obstacles()[backend]


def needs_compiler() -> None:
    """The test skips where there is no g++; where there must be one, it fails."""
    missing = None if shutil.which(os.environ.get("CXX", "g++")) else "there is no g++"
    if os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"):
        assert missing is None, missing
    elif missing is not None:
        pytest.skip(f"CUDA kernels on the CPU: {missing}")


def needs_tools(*names: str) -> None:
    """The test skips where one of these programs is missing; where all must be there, it fails."""
    for name in names:
        if shutil.which(name) is None:
            assert not os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"), f"{name} is missing"
            pytest.skip(f"{name} is missing")


def needs_avx2() -> None:
    """The test skips where the processor does not run what is built for x86-64-v3."""
    processor = Path("/proc/cpuinfo")
    if not (processor.exists() and "avx2" in processor.read_text()):
        pytest.skip("this processor has no AVX2")


def device_runtime() -> Runtime:
    """The device of a test that is marked `gpu`: a GPU, or the stand-in for one."""
    return runtime(0)


def without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the CPU's compiled library could not be built."""
    monkeypatch.setattr(cpu, "obstacle", lambda *_: "a test does without the library")
