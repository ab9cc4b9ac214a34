"""Counts a kernel's accesses by line: wavefronts of shared memory and sectors of global memory."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backprop_gpu.testing.build import build

from .runtime import SOURCES, HostRuntime, Local, Size

#: Calls before each access, and no sanitizer's library to take them.
FLAGS = (
    "-g1",
    "-fsanitize=thread",
    "-nodefaultlibs",
    "-fno-threadsafe-statics",
    "--param=tsan-distinguish-volatile=1",
)


@dataclass(frozen=True)
class Line:
    """What warps did at one instruction.

    ``served`` are wavefronts of shared memory or sectors of global memory, and ``least`` how many
    would do for what the lanes asked for.
    """

    file: str
    line: int
    memory: str
    times: int
    served: int
    least: int

    @property
    def ratio(self) -> float:
        return self.served / self.least


class CountingRuntime(HostRuntime):
    """Runs kernels without clusters; `lines` is what each launch did, by instruction."""

    def __init__(self) -> None:
        super().__init__(extra_sources='#include "accesses.h"')
        self.lines: list[Line] = []

    def launch(
        self,
        file: str,
        expression: str,
        grid: Size,
        block: Size,
        arguments: Sequence[Any],
        shared_memory: int = 0,
        activation: Any = None,
        cluster: Size = (1, 1, 1),
    ) -> None:
        alone = cluster == (1, 1, 1) or tuple(grid) == (1, 1, 1)
        if not alone:
            raise NotImplementedError("blocks that run at once are on several threads")
        path = build(
            self.sources / file, [expression], "plain", [self.sources, SOURCES],
            self.extra_sources, FLAGS,
        )  # fmt: skip
        kernel, library = Local(path, 0), ctypes.CDLL(str(path))
        ranges = [
            (a.ctypes.data, a.ctypes.data + a.nbytes)
            for a in arguments
            if isinstance(a, np.ndarray)
        ]
        flat = (ctypes.c_size_t * (2 * len(ranges)))(*sum(ranges, ()))
        library.accesses_start(len(ranges), flat)
        kernel.launch((*grid, *block, *cluster), shared_memory, arguments)
        library.accesses_end.restype = ctypes.c_char_p
        self.lines += _lines(path, library.accesses_end().decode())


def _lines(path: Path, report: str) -> Iterator[Line]:
    rows = [line.split() for line in report.splitlines()]
    command = ["addr2line", "-e", str(path), *(row[0] for row in rows)]
    places = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for place, (_, memory, *counts) in zip(places, rows, strict=True):
        file, number = place.split(" ")[0].rsplit(":", 1)
        yield Line(Path(file).name, int(number), memory, *map(int, counts))
