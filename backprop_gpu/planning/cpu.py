"""How a CPU's resident engine divides its work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class CpuWork:
    """How the CPU's resident engine divides a mini-batch. Its bits depend on none of this.

    Attributes
    ----------
    block : int
        Rows that a thread takes through the network, and back, at a time.
    threads : int
        That work on one network.
    in_place : bool
        Whether rows of X are read where they lie, and not first copied into strips.
    by_neurons : bool
        Whether threads share out the neurons of layer 1, and not its rows.
    """

    block: int
    threads: int
    in_place: bool
    by_neurons: bool = False

    def obstacle(self, rows: int) -> str | None:
        """Why a mini-batch of so many rows cannot be divided so, if it cannot."""
        fits = 1 <= self.threads <= 4096 and 1 <= self.block <= rows
        if fits and (self.in_place or not self.by_neurons):
            return None
        return f"{self} do not divide {rows} rows"

    def __str__(self) -> str:
        threads = f"{self.threads} threads" if self.threads > 1 else "one thread"
        place = ", read in place" if self.in_place else ""
        first = ", layer 1 by neurons" if self.by_neurons else ""
        return f"{threads}, blocks of {self.block} rows{place}{first}"


#: Rows of a block: few enough that their activations and errors stay in a core's own cache, and a
#: multiple of what the products hold in registers.
CPU_BLOCK = 36

#: Operations of a step below which the threads' waits cost more than they save, by rows and by
#: neurons.
CPU_SERIAL = 2e6
CPU_SERIAL_BY_NEURONS = 6e5
#: Neurons of layer 1 that a thread has at a time: two strips of float32, more of float64.
CPU_NEURONS = 16

#: Rows of a mini-batch up to which reading them twice where they lie costs less than copying them.
CPU_IN_PLACE = 32


def cpu_work(sizes: Sequence[int], batch: int, bytes: bool, cores: int) -> CpuWork:
    """How a mini-batch of `batch` rows is divided. `bytes`: X is of uint8, which is copied."""
    in_place = batch <= CPU_IN_PLACE and not bytes
    by_neurons = in_place and cores > 1 and sizes[1] > CPU_NEURONS
    serial = step_flops(sizes, batch) <= (CPU_SERIAL_BY_NEURONS if by_neurons else CPU_SERIAL)
    shares = math.ceil(sizes[1] / CPU_NEURONS) if by_neurons else batch // 2
    threads = 1 if serial else max(1, min(cores, shares))
    blocks = min(batch, threads * math.ceil(batch / (threads * CPU_BLOCK)))
    return CpuWork(math.ceil(batch / blocks), threads, in_place, by_neurons and threads > 1)


def steps_a_call(parameters: int, batch_size: int) -> int:
    """Steps that the resident engine runs before Python may look at Ctrl-C: about 0.1 s."""
    return max(1, int(1e10 / (6.0 * parameters * batch_size)))


def members_a_call(rows: int, steps: int) -> int:
    """Networks whose orders and coefficients of an epoch lie on the host at once: 1 GiB of them."""
    return max(1, (1 << 30) // (8 * rows + 32 * steps))


def step_flops(sizes: Sequence[int], batch: int) -> int:
    """Operations of a step's products: forward and BP4 over all weights, BP2 over all but w[1]."""
    weights = sum(k * n for k, n in pairwise(sizes))
    return 2 * batch * (3 * weights - sizes[0] * sizes[1])
