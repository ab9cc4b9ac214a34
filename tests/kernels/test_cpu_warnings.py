"""No compiler, and no check of clang-tidy, has a word to say about the CPU's library."""

from __future__ import annotations

import subprocess

import pytest

from cpu_calls import KERNELS
from machine import needs_tools

COMMON = ("-std=c++20", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", f"-I{KERNELS}")
WARNINGS = (
    "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wold-style-cast", "-Wno-unknown-pragmas",
    "-Werror",
)  # fmt: skip
ARM = "aarch64-linux-gnu"
#: Only what is seen without optimising: test_cpu_bits.py compiles with -O2 -Werror.
LEVELS = {
    "v2": ("-march=x86-64-v2",),
    "v3": ("-march=x86-64-v3",),
    "v4": ("-march=x86-64-v4",),
    "neon": (f"--target={ARM}",),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_no_compiler_warns(compiler: str, level: str) -> None:
    flags = LEVELS[level]
    if level == "neon":
        needs_tools(f"{ARM}-g++")  # clang takes the headers that come with it
        compiler, flags = (compiler, flags) if compiler == "clang++" else (f"{ARM}-g++", ())
    needs_tools(compiler)
    for source in sorted(KERNELS.glob("*.cpp")):
        command = [
            compiler, *COMMON, *WARNINGS, *flags, f"-DLEVEL={level}", "-fsyntax-only", str(source),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{source.name}: {done.stderr}"


def test_clang_tidy_finds_nothing() -> None:
    """What it looks for is in `kernels/cpu/.clang-tidy`."""
    needs_tools("clang-tidy")
    sources = map(str, sorted(KERNELS.glob("*.cpp")))
    command = ["clang-tidy", "--quiet", *sources, "--", *COMMON, *LEVELS["v3"], "-DLEVEL=v3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
