"""Occupancy against NVIDIA's own calculator, and by hand."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from backprop_gpu.cuda import compiler
from backprop_gpu.cuda.occupancy import LIMITS, Occupancy, capability, occupancy

#: Threads and KiB of shared memory that cudaGetDeviceProperties gives for a multiprocessor.
DEVICES = {
    (7, 5): (1024, 64),
    (8, 0): (2048, 164),
    (8, 6): (1536, 100),
    (8, 7): (1536, 164),
    (8, 8): (1536, 100),
    (8, 9): (1536, 100),
    (9, 0): (2048, 228),
    (10, 0): (2048, 228),
    (10, 3): (2048, 228),
    (11, 0): (1536, 228),
    (12, 0): (1536, 100),
    (12, 1): (1536, 100),
}

#: From lines of integers to blocks and limiting factors, a line each.
CALCULATOR = r"""
#include <climits>
#include <cstdio>
#include "cuda_occupancy.h"

int main() {
  int major, minor, device_threads, device_shared, threads, registers, shared;
  while (std::scanf("%d%d%d%d%d%d%d", &major, &minor, &device_threads, &device_shared, &threads,
                    &registers, &shared) == 7) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = device_threads;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.numSms = 1;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = device_shared * 1024;
    device.reservedSharedMemPerBlock = major >= 8 ? 1024 : 0;
    device.sharedMemPerBlockOptin =
        device.sharedMemPerMultiprocessor - device.reservedSharedMemPerBlock;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    const int error =
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0);
    if (error) return error;
    std::printf("%d %u\n", result.activeBlocksPerMultiprocessor, result.limitingFactors);
  }
}
"""
FACTORS = {"warps": 1, "registers": 2, "shared memory": 4, "blocks": 8}


@pytest.fixture(scope="module")
def calculator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in (spec and spec.submodule_search_locations) or ()]
    headers = [header for f in folders for header in f.glob("*/include/cuda_occupancy.h")]
    if not headers:
        pytest.skip("NVIDIA's cuda_occupancy.h is not installed (pip install nvidia-cuda-runtime)")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        assert not os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"), "there is no g++"
        pytest.skip("it needs g++, and there is none")
    folder = tmp_path_factory.mktemp("occupancy")
    source, program = folder / "calculator.cpp", folder / "calculator"
    source.write_text(CALCULATOR)
    subprocess.run([compiler, source, f"-I{headers[0].parent}", "-o", program], check=True)
    return program


@pytest.mark.parametrize("device", LIMITS, ids=lambda device: f"{device[0]}.{device[1]}")
def test_agrees_with_nvidia(calculator: Path, device: tuple[int, int]) -> None:
    rng = np.random.default_rng(device)
    threads = rng.integers(1, 1100, 3000)
    registers = rng.integers(0, 256, 3000)
    # As many small as large ones, whole units among them, and some more than there is.
    shared = np.exp(rng.uniform(0, np.log(240 * 1024), 3000)).astype(int)
    shared[::4] = shared[::4] // 128 * 128
    cases = np.stack([threads, registers, shared], axis=1).tolist()
    given = "\n".join(" ".join(map(str, (*device, *DEVICES[device], *case))) for case in cases)
    done = subprocess.run([calculator], input=given, capture_output=True, text=True, check=True)
    answers = done.stdout.splitlines()
    assert len(answers) == len(cases)
    seen = set()
    for case, answer in zip(cases, answers, strict=True):
        blocks, factors = map(int, answer.split())
        found = occupancy(device, *case)
        assert found.blocks == blocks, case
        assert FACTORS[found.limit] & factors, case
        warps = DEVICES[device][0] / 32
        assert found.share == blocks * -(-case[0] // 32) / warps, case
        seen.add(found.limit)
    assert seen == set(FACTORS)


def test_by_hand() -> None:
    # 9.0 has 64 warps. 8 warps with 255 registers: 255·32 = 8160, rounded up to 8192 a warp;
    # a quarter of 65536 is 16384, so 2 warps a quarter, 8 in all: 1 block, 8 warps of 64.
    assert occupancy((9, 0), 256, 255, 33 * 1024) == Occupancy(1, 0.125, "registers")
    # 12.0: 100 KiB hold two blocks of 48 + 1 KiB; 2·8 warps of 48.
    assert occupancy((12, 0), 256, 32, 48 * 1024) == Occupancy(2, 16 / 48, "shared memory")
    # 7.5 reserves nothing, so a block may have all of the 64 KiB, and 8.6 1 KiB of the 100.
    assert occupancy((7, 5), 256, 32, 64 * 1024).blocks == 1
    assert occupancy((8, 6), 256, 32, 99 * 1024).blocks == 1
    assert occupancy((8, 6), 256, 32, 99 * 1024 + 1).blocks == 0
    # Blocks of one warp: 8.6 takes 16 of them, a third of its 48 warps.
    assert occupancy((8, 6), 1, 16) == Occupancy(16, 1 / 3, "blocks")
    # Nothing stands in the way of all warps.
    assert occupancy((8, 0), 256, 32, 0) == Occupancy(8, 1.0, "warps")


def test_every_architecture_we_compile_for_is_listed() -> None:
    assert {capability(arch) for arch in compiler.ARCHITECTURES} <= LIMITS.keys()
    assert capability("sm_90a") == (9, 0)
    assert capability("sm_120f") == (12, 0)


def test_unknown_architectures() -> None:
    with pytest.raises(ValueError, match=r"7\.0 is not listed; known: 7\.5, 8\.0, .*, 12\.1$"):
        occupancy((7, 0), 256, 32)
    with pytest.raises(ValueError, match="looks like sm_90a, got 'hopper'"):
        capability("hopper")
