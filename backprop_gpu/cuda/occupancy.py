"""How many blocks of a kernel a multiprocessor holds at once, from the architecture's limits.

Numbers and rules are those of the CUDA C++ Programming Guide (Technical Specifications per
Compute Capability) and of NVIDIA's ``cuda_occupancy.h``, against which the tests hold them.
A kernel is taken to use one barrier per block, and the driver to split the memory that L1 and
shared memory have in common in the kernel's favour.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

WARP = 32
BLOCK_THREADS = 1024
REGISTERS = 64 * 1024  # of 32 bits, per multiprocessor
REGISTER_UNIT = 256  # a warp's registers come in multiples of it
PARTITIONS = 4  # of a multiprocessor: each has a quarter of the registers, for its own warps


class Limits(NamedTuple):
    """What a multiprocessor can hold; shared memory in KiB."""

    warps: int
    blocks: int
    shared_memory: int


#: By compute capability: all that CUDA 13 documents.
LIMITS = {
    (7, 5): Limits(32, 16, 64),
    (8, 0): Limits(64, 32, 164),
    (8, 6): Limits(48, 16, 100),
    (8, 7): Limits(48, 16, 164),
    (8, 8): Limits(48, 16, 100),
    (8, 9): Limits(48, 24, 100),
    (9, 0): Limits(64, 32, 228),
    (10, 0): Limits(64, 32, 228),
    (10, 3): Limits(64, 32, 228),
    (11, 0): Limits(48, 24, 228),
    (12, 0): Limits(48, 24, 100),
    (12, 1): Limits(48, 24, 100),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks per multiprocessor, the share of its warps that they fill, and what allows no more.

    ``limit`` is "warps", "registers", "shared memory" or "blocks". A block that fits on no
    multiprocessor has ``blocks`` 0.
    """

    blocks: int
    share: float
    limit: str


def occupancy(
    capability: tuple[int, int], threads: int, registers: int, shared_memory: int = 0
) -> Occupancy:
    """The occupancy of a kernel.

    Parameters
    ----------
    capability : (int, int)
        The compute capability, one of `LIMITS`.
    threads : int
        A block's.
    registers : int
        A thread's, as the assembler reports them.
    shared_memory : int
        A block's, in bytes, static and dynamic.

    Raises
    ------
    ValueError
        For an unlisted compute capability, naming the known ones.
    """
    if capability not in LIMITS:
        known = ", ".join(f"{major}.{minor}" for major, minor in LIMITS)
        major, minor = capability
        raise ValueError(f"compute capability {major}.{minor} is not listed; known: {known}")
    limits = LIMITS[capability]
    warps = ceil(threads / WARP)
    warp_registers = _whole(registers * WARP, REGISTER_UNIT)
    unit, reserved = (256 if capability < (8, 0) else 128), _reserved(capability)
    most = {
        "warps": limits.warps // warps if threads <= BLOCK_THREADS else 0,
        "registers": PARTITIONS * (REGISTERS // PARTITIONS // warp_registers) // warps,
        "shared memory": limits.shared_memory * 1024 // _whole(shared_memory + reserved, unit),
        "blocks": limits.blocks,
    }
    limit, blocks = min(most.items(), key=lambda item: item[1])  # of equals, the first
    return Occupancy(blocks, blocks * warps / limits.warps, limit)


def shared_memory(capability: tuple[int, int]) -> int:
    """Bytes of shared memory that a block can have on an architecture in `LIMITS`."""
    return LIMITS[capability].shared_memory * 1024 - _reserved(capability)


def _reserved(capability: tuple[int, int]) -> int:
    """From 8.0 on the system takes 1 KiB of each block's shared memory."""
    return 0 if capability < (8, 0) else 1024


def capability(arch: str) -> tuple[int, int]:
    """The compute capability of an architecture: (9, 0) of "sm_90a"."""
    match = re.fullmatch(r"sm_(\d+)(\d)[af]?", arch)
    if match is None:
        raise ValueError(f"an architecture looks like sm_90a, got {arch!r}")
    return int(match[1]), int(match[2])


def _whole(amount: int, unit: int) -> int:
    """Round up to whole units, at least one: no limit ever depends on that one."""
    return max(1, ceil(amount / unit)) * unit
