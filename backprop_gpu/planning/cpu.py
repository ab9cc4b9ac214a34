"""How a CPU's resident engine divides its work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from . import residency


@dataclass(frozen=True)
class CpuWork:
    """How the CPU's resident engine divides a mini-batch. Its bits depend on none of this.

    Parameters
    ----------
    block : int
        Rows that a thread takes through the network, and back, at a time.
    threads : int
        That work on one network.
    in_place : bool
        Whether rows of X are read where they lie, and not first copied into strips.
    by_inputs : bool
        Whether threads share out the inputs of layer 1, by slices of its sums, and not its rows.
    """

    block: int
    threads: int
    in_place: bool
    by_inputs: bool = False

    def obstacle(self, rows: int) -> str | None:
        """Tell why a mini-batch cannot be divided so.

        Parameters
        ----------
        rows : int
            Rows m of the mini-batch.

        Returns
        -------
        str or None
            The obstacle, if there is one.
        """
        fits = 1 <= self.threads <= 4096 and 1 <= self.block <= rows
        if fits and (self.in_place or not self.by_inputs):
            return None
        return f"{self} do not divide {rows} rows"

    def __str__(self) -> str:
        threads = f"{self.threads} threads" if self.threads > 1 else "one thread"
        place = ", read in place" if self.in_place else ""
        first = ", layer 1 by inputs" if self.by_inputs else ""
        return f"{threads}, blocks of {self.block} rows{place}{first}"


#: Rows of a block: few enough that their activations and errors stay in a core's own cache, and a
#: multiple of what the products hold in registers.
CPU_BLOCK = 36

#: Operations of a step below which the waits of threads that share its rows cost more than they
#: save.
CPU_SERIAL = 2e6
#: Operations of a call below which to wake threads for it costs more than they save.
CPU_CALL = 1e7
#: Operations of a step for each thread that share its inputs.
CPU_BY_INPUTS = 3e5

#: Rows that a thread reads at a time.
CPU_READING_BLOCK = 64

#: Rows of a mini-batch up to which reading them twice where they lie costs less than copying them.
CPU_IN_PLACE = 32

#: Share of its numbers that a sparse X stores up to which its products are of what it stores. They
#: are faster than those of dense rows up to 0.01 for [784, 30, 10] by 10 rows, whose dense layer 1
#: has all threads, and up to 0.08 or more for [2000, 64, 10] by 64 and [10000, 100, 10] by 128 (two
#: idle cores of a Xeon, AVX-512): between these. docs/arrays.md has the figures.
CPU_SPARSE = 0.03


def stays_sparse(density: float) -> bool:
    """Whether an engine that can read an X of this density as it is should, or its rows dense."""
    return density <= CPU_SPARSE


def cpu_work(
    sizes: Sequence[int], batch: int, itemsize: int, bytes: bool, cores: int, ranks: int = 1
) -> CpuWork:
    """How a mini-batch of `batch` rows is divided, or what a rank has of it.

    `bytes`: X is of uint8, which is copied.
    """
    rows = math.ceil(batch / ranks)
    in_place = rows <= CPU_IN_PLACE and not bytes
    flops, slices = step_flops(sizes, rows), residency.all_slices(sizes, batch, itemsize)[0]
    by_inputs = in_place and slices > 1 and ranks == 1
    shares = min(slices, int(flops / CPU_BY_INPUTS)) if by_inputs else rows // 2
    threads = max(1, min(cores, shares)) if by_inputs or flops > CPU_SERIAL else 1
    return CpuWork(_even_block(rows, threads), threads, in_place, by_inputs and threads > 1)


#: Shards of a mini-batch, if there are no more ranks than that: all numbers of ranks up to it train
#: to the same bits.
SHARDS = 8
#: What the tree of the CPU's library has room for.
MOST_SHARDS = 1 << 10


def shards_of_batch(batch: int, ranks: int) -> int:
    """Into how many shards a mini-batch is cut for so many ranks: a power of two; 1 without ranks.

    Raises
    ------
    ValueError
        For more ranks than there can be shards.
    """
    if ranks == 0:
        return 1
    most = min(1 << batch.bit_length() - 1, MOST_SHARDS)
    if ranks > most:
        raise ValueError(
            f"{ranks} ranks share a mini-batch of {batch} rows, which is cut into {most} shards at "
            "most: give a larger batch_size, or fewer ranks"
        )
    return min(max(SHARDS, 1 << (ranks - 1).bit_length()), most)


def _even_block(rows: int, threads: int) -> int:
    """Rows of a block, `CPU_BLOCK` at most, so that all threads have as many blocks."""
    blocks = min(rows, threads * math.ceil(rows / (threads * CPU_BLOCK)))
    return math.ceil(rows / blocks)


#: Of a row.
_ALONE = CpuWork(1, 1, in_place=True)


def reading_work(sizes: Sequence[int], rows: int, cores: Callable[[], int]) -> CpuWork:
    """How rows are read: C is summed block by block, so a block is as large on every machine."""
    if rows == 1:
        return _ALONE
    block = min(CPU_READING_BLOCK, rows)
    forward = 2 * rows * sum(k * n for k, n in pairwise(sizes))
    threads = min(cores(), math.ceil(rows / block)) if forward > CPU_CALL else 1
    return CpuWork(block, threads, in_place=True)


def gradient_work(sizes: Sequence[int], rows: int, cores: Callable[[], int]) -> CpuWork:
    """How the gradients of all rows at once are divided."""
    if rows == 1:
        return _ALONE
    threads = max(1, min(cores(), rows // 2)) if step_flops(sizes, rows) > CPU_CALL else 1
    return CpuWork(_even_block(rows, threads), threads, in_place=True)


def steps_a_call(parameters: int, batch_size: int) -> int:
    """Steps that the resident engine runs before Python may look at Ctrl-C: about 0.1 s.

    A row costs as much as a thousand weights besides, and a step as 50,000 operations.
    """
    return max(1, int(1e10 / (6.0 * (parameters + 1000) * batch_size + 5e4)))


def epochs_a_call(parameters: int, batch_size: int, rows: int) -> int:
    """Epochs in so many steps, whose orders have a million numbers at most."""
    steps = steps_a_call(parameters, batch_size) // -(-rows // batch_size)
    return max(1, min(steps, (1 << 20) // rows))


def members_a_call(rows: int, steps: int) -> int:
    """Networks whose orders and coefficients of an epoch lie on the host at once: 1 GiB of them."""
    return max(1, (1 << 30) // (8 * rows + 32 * steps))


def step_flops(sizes: Sequence[int], batch: int) -> int:
    """Operations of a step's products: forward and BP4 over all weights, BP2 over all but w[1]."""
    weights = sum(k * n for k, n in pairwise(sizes))
    return 2 * batch * (3 * weights - sizes[0] * sizes[1])
