"""How a CPU's resident engine divides its work, and how long the layered one takes there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Seconds that the resident engine costs a process before its first step, from Numba's cache:
#: the recorded warm first steps, 0.7–0.8 s with the 0.2 s that NumPy's take too.
LOADING = 0.7


@dataclass(frozen=True)
class CpuWork:
    """How the CPU's resident engine divides a mini-batch.

    Each of ``parts`` sums its own gradient and is one thread's at a time; of a part, ``block``
    rows go through the network at a time.
    """

    block: int
    parts: int
    threads: int

    def obstacle(self, rows: int) -> str | None:
        """Why a mini-batch of so many rows cannot be divided so, if it cannot."""
        if 1 <= self.threads <= self.parts <= rows and 1 <= self.block <= rows:
            return None
        return f"{self.parts} parts for {self} do not divide {rows} rows"

    def __str__(self) -> str:
        threads = f"{self.threads} threads" if self.threads > 1 else "one thread"
        return f"{threads}, blocks of {self.block} rows"


#: Bytes of a core's own cache that the activations and errors of a block may take.
CPU_CACHE = 512 * 1024

#: Operations of a step below which the threads' waits cost more than they save.
CPU_SERIAL = 6e6

#: Bytes for the gradients of all parts.
CPU_GRADIENTS = 1 << 30


def cpu_work(sizes: Sequence[int], batch: int, itemsize: int, cores: int) -> CpuWork:
    """How a mini-batch of `batch` rows is divided; results depend on it, so the plan says it."""
    parts = _cpu_parts(sizes, batch, cores)
    parts = max(1, min(parts, CPU_GRADIENTS // _parameter_bytes(sizes, itemsize)))
    rows = math.ceil(batch / parts)
    fitting = max(32, min(256, CPU_CACHE // (2 * sum(sizes) * itemsize)))
    return CpuWork(math.ceil(rows / math.ceil(rows / fitting)), parts, parts)


def _cpu_parts(sizes: Sequence[int], batch: int, cores: int) -> int:
    return 1 if step_flops(sizes, batch) <= CPU_SERIAL else max(1, min(cores, batch // 8))


def _parameter_bytes(sizes: Sequence[int], itemsize: int) -> int:
    return itemsize * sum(n * (k + 1) for k, n in pairwise(sizes))


def cpu_obstacle(sizes: Sequence[int], batch: int, itemsize: int, cores: int) -> str | None:
    """Why a network is better trained by BLAS, which needs one gradient for all threads."""
    parts = _cpu_parts(sizes, batch, cores)
    if parts <= cpu_work(sizes, batch, itemsize, cores).parts:
        return None
    size = parts * _parameter_bytes(sizes, itemsize) / 2**30
    return f"a gradient for each of {parts} threads would take {size:.1f} GiB"


def steps_a_call(parameters: int, batch_size: int) -> int:
    """Steps that the resident engine runs before Python may look at Ctrl-C: about 0.1 s."""
    return max(1, int(1e10 / (6.0 * parameters * batch_size)))


def members_a_call(rows: int, steps: int) -> int:
    """Networks whose orders and coefficients of an epoch lie on the host at once: 1 GiB of them."""
    return max(1, (1 << 30) // (8 * rows + 32 * steps))


def layered_seconds(sizes: Sequence[int], batch_size: int, rows: int, epochs: int) -> float:
    """How long the layered engine takes on a CPU core or two, roughly: calls and operations."""
    steps = epochs * math.ceil(rows / batch_size)
    weights = sum(k * n for k, n in pairwise(sizes))
    return steps * (20e-6 * len(sizes) + 6.0 * weights * batch_size / 5e10)


def step_flops(sizes: Sequence[int], batch: int) -> int:
    """Operations of a step's products: forward and BP4 over all weights, BP2 over all but w[1]."""
    weights = sum(k * n for k, n in pairwise(sizes))
    return 2 * batch * (3 * weights - sizes[0] * sizes[1])
