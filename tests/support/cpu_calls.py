"""Builds `cpu_calls.cpp`, which calls the CPU's library as Python does, with that one's sources."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from machine import ROOT, SUPPORT

KERNELS = ROOT / "kernels" / "cpu"
#: What the program prints: a group of calls, and the hash of what they wrote.
HASHES = {
    "float activations": "3c77d8c808e8a144",
    "float costs": "91dec841d8a204e3",
    "float saturated": "6a10508a56b1fd3d",
    "float rules": "077b5017a4ee9e23",
    "float limits": "c88268b0ebc564c7",
    "float shapes": "06c8d6903a1d6afe",
    "float bytes": "c2cffc534a1b8401",
    "float weights": "ae2bec2daac7dc67",
    "float sparse": "04c6a779617b3828",
    "float epochs": "7599ffa27a911162",
    "float shards": "84e8b210a287e8b1",
    "float readings": "37631a904eb9d7e6",
    "float gradients": "a1a46bc8df17029f",
    "float populations": "bb51326da7b529b5",
    "double activations": "c81682e3e3e03a7b",
    "double costs": "45fbd5b6f35f9cfe",
    "double saturated": "60e84ef3704e5180",
    "double rules": "a1bf063436081fce",
    "double limits": "af39d2fef46021bc",
    "double shapes": "509139ce6fe559c1",
    "double bytes": "a37fb792664b32bf",
    "double weights": "b3fb7a0687008586",
    "double sparse": "2d4bd1fc5af95a04",
    "double epochs": "7531375880331753",
    "double shards": "a76ac833a1a654be",
    "double readings": "b67aba7651f2a584",
    "double gradients": "a2bad0f62823e2d8",
    "double populations": "2ba41b8816c28568",
}

FLAGS = (
    "-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off",
    "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-rtti",
    "-Dpthread_create=create_thread", "-Dposix_memalign=take_memory",
)  # fmt: skip

#: The program's line of each group, in its order: what a run is compared with while it runs.
LINES = [" ".join(item) for item in HASHES.items()]


@dataclass(frozen=True)
class Build:
    """A compiler and its flags for one level, and how the program is run."""

    compiler: str
    level: str
    flags: tuple[str, ...]
    arguments: tuple[str, ...] = ("forks",)

    def make(self, folder: Path) -> str:
        """The program, compiled into a folder."""
        program = str(folder / "calls")
        names = ("level.cpp", "team.cpp", "library.cpp")
        command = [
            self.compiler, *FLAGS, *self.flags, f"-DLEVEL={self.level}", f"-I{KERNELS}",
            str(SUPPORT / "cpu_calls.cpp"), *(str(KERNELS / name) for name in names),
            "-o", program, "-lpthread",
        ]  # fmt: skip
        subprocess.run(command, check=True)
        return program

    def run(self, program: str) -> subprocess.CompletedProcess[str]:
        command = [program, *self.arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)


#: A sanitizer's checks stand in every function: with all of them inlined, g++ takes minutes.
_SMALL = ("-march=x86-64-v3", "-DINLINE=inline", "-g1")
_ADDRESS = (*_SMALL, "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
#: A forked process that starts threads is beyond ThreadSanitizer.
_THREAD = (*_SMALL, "-O1", "-fsanitize=thread")
BUILDS = {
    "gcc, addresses and undefined behaviour": Build("g++", "v3", _ADDRESS),
    "gcc, threads": Build("g++", "v3", _THREAD, ()),
    "clang, addresses and undefined behaviour": Build("clang++", "v3", _ADDRESS),
    "clang, threads": Build("clang++", "v3", _THREAD, ()),
}
