"""The bits of the CPU's engine depend on neither compiler, registers, threads nor blocks.

`cpu_trainings.cpp` is built with the sources of the library, and trains ten small networks. What
it prints is here: it holds on every machine that rounds a multiply-add once. It changes only where
a sum is made in another order, or a formula is written another way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "cpu"
HASHES = [
    "f913a6861be7fa69",
    "e7f3d6a3746cac90",
    "1b78ec4bf7b30a6d",
    "f7632fd51ef095b9",
    "c1e9af77e9d9deea",
    "16b32e85d293fc9c",
    "96397403416a6a7d",
    "103fcd79df905915",
    "7222e85016ad86e3",
    "3aeca80daeb70aec",
]


@dataclass(frozen=True)
class Build:
    compiler: str
    level: str
    flags: tuple[str, ...]
    #: What /proc/cpuinfo lists where the program runs as it is.
    needs: str = "avx2"
    emulator: tuple[str, ...] = ()


AVX2 = ("-march=x86-64-v3",)
AVX512 = ("-march=x86-64-v4", "-mprefer-vector-width=512")
BUILDS = {
    "gcc": Build("g++", "v3", AVX2),
    "gcc, registers of 16 bytes": Build("g++", "v3", (*AVX2, "-DREGISTER=16")),
    "gcc, registers of 64 bytes": Build("g++", "v3", (*AVX2, "-DREGISTER=64", "-Wno-psabi", "-O1")),
    "gcc, AVX-512": Build("g++", "v4", AVX512, "avx512vl"),
    "clang": Build("clang++", "v3", AVX2),
    "gcc, NEON": Build("aarch64-linux-gnu-g++", "neon", ("-static",), "", ("qemu-aarch64",)),
}
#: Threads, rows in a block, and whether layer 1 is shared out by its inputs.
SHARED_OUT = (
    ("1", "11"),
    ("2", "3"),
    ("5", "4"),
    ("2", "11", "by inputs"),
    ("3", "11", "by inputs"),
)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=KERNELS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", BUILDS)
def test_one_result(name: str, tmp_path: Path) -> None:
    build = BUILDS[name]
    processor = Path("/proc/cpuinfo")
    if build.needs and not (processor.exists() and build.needs in processor.read_text()):
        pytest.skip(f"this processor has no {build.needs}")
    for tool in (build.compiler, *build.emulator):
        if shutil.which(tool) is None:
            assert not os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"), f"{tool} is missing"
            pytest.skip(f"{tool} is missing")
    program = str(tmp_path / "trainings")
    run(
        [
            build.compiler, "-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off",
            "-Wno-unknown-pragmas", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions",
            "-fno-rtti", "-I.",
            *build.flags, f"-DLEVEL={build.level}", f"-DLEVEL_TABLE=backprop_cpu_{build.level}",
            str(ROOT / "tests/support/cpu_trainings.cpp"), "level.cpp", "team.cpp", "-o", program,
            "-lpthread",
        ]
    )  # fmt: skip
    for arguments in SHARED_OUT:
        assert run([*build.emulator, program, *arguments]).split() == HASHES, arguments
