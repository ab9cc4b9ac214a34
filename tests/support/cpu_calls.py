"""Builds `cpu_calls.cpp`, which calls the CPU's library as Python does, with that one's sources."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from machine import ROOT, SUPPORT

KERNELS = ROOT / "kernels" / "cpu"
#: What the program prints: a group of calls, and the hash of what they wrote.
HASHES = {
    "float activations": "b98ac1aa781e8835",
    "float costs": "ad07aa2571877fb5",
    "float saturated": "bcf5a44d42dd3a29",
    "float rules": "658344fe7f21bb6d",
    "float shapes": "06542c85c6b48d96",
    "float bytes": "76e0eda97e1c3490",
    "float readings": "6f159371bb95adb5",
    "float populations": "363752125a495769",
    "double activations": "03a26becfe014c9b",
    "double costs": "00917e7af8174b58",
    "double saturated": "490b9c5549ef84e2",
    "double rules": "aa043ed3ed4f3bd9",
    "double shapes": "80f072d7cb121a7b",
    "double bytes": "09a196dd8070eb19",
    "double readings": "7f541c524d488141",
    "double populations": "7aea5f0667f11df2",
}

FLAGS = (
    "-std=c++20", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-fno-exceptions", "-fno-rtti", "-Dpthread_create=create_thread",
    "-Dposix_memalign=take_memory",
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
