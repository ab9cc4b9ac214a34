"""The gradient of a mini-batch whose shards several ranks have, summed along one binary tree.

A mini-batch is cut into S = 2^k shards of ⌈m/S⌉ rows, the last of which may have less, or none.
Rank r of R has shards ⌊rS/R⌋ … ⌊(r+1)S/R⌋ - 1. Sums of shards 2i and 2i + 1 are added, then those
of the pairs, and so on: one tree, whoever has which leaf. So the sum has the same bits for any R.

    each rank     sums the largest trees that have its shards alone, one or a few
    slices        the flat gradient is cut into R slices; each rank sends of its sums each slice to
                  the rank that owns it, which adds up the rest of the tree
    allgather     each rank sends its slice to all others

Bytes. A rank sends, and gets, about 2 G a step, G being the gradient's bytes: (R-1)/R G twice
where R is a power of two; where it is not, (R-1)/R G in the first half for each of its trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, starmap
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..communicators import Communicator, Exchange

Array = Any


class Tree(NamedTuple):
    """`size` shards from the first on, a power of two."""

    first: int
    size: int


def shards_of(rank: int, ranks: int, shards: int) -> range:
    """The shards of one rank."""
    return range(rank * shards // ranks, (rank + 1) * shards // ranks)


def trees_of(shards: range) -> list[Tree]:
    """The largest trees that have these shards alone, in their order."""
    trees, first = [], shards.start
    while first < shards.stop:
        size = 1
        while first % (2 * size) == 0 and first + 2 * size <= shards.stop:
            size *= 2
        trees.append(Tree(first, size))
        first += size
    return trees


def rows_of_shards(rows: int, shards: int) -> list[int]:
    """The rows of each shard of a mini-batch."""
    each = -(-rows // shards)
    return [max(0, min(each, rows - i * each)) for i in range(shards)]


def own_positions(
    rows: int, batch_size: int, communicator: Communicator, shards: int
) -> np.ndarray:
    """Of an order of rows, (rows,), which positions are in this rank's shards."""
    if communicator.size == 1:
        return np.ones(rows, bool)
    own = shards_of(communicator.rank, communicator.size, shards)

    def of_step(count: int) -> np.ndarray:
        each, inside = -(-count // shards), np.zeros(count, bool)
        inside[own.start * each : own.stop * each] = True
        return inside

    whole, rest = divmod(rows, batch_size)
    return np.concatenate([np.tile(of_step(batch_size), whole), of_step(rest)])


def all_costs(communicator: Communicator, costs: np.ndarray) -> np.ndarray:
    """The mean cost of each step, from (steps, shards), its parts, of which a rank has its own."""
    if costs.shape[1] == 1:
        return costs[:, 0]
    if communicator.size > 1:
        everyone = communicator.allgather(costs, communicator.timeout)
        for rank, of_rank in enumerate(everyone):
            own = shards_of(rank, communicator.size, costs.shape[1])
            costs[:, own.start : own.stop] = of_rank[:, own.start : own.stop]
    found: np.ndarray = costs.sum(axis=1)
    return found


class SummedArrays(Protocol):
    """Where gradients lie that are summed, and how."""

    def rows(self, count: int, length: int) -> list[Array]: ...
    def empty(self, length: int) -> Array: ...
    def copy(self, source: Array, out: Array) -> None: ...
    def add(self, left: Array, right: Array) -> None:
        """left += right."""


class HostArrays:
    """In the host's memory, beginning at a cache line."""

    def __init__(self, dtype: np.dtype[np.floating]) -> None:
        self.dtype = dtype

    def rows(self, count: int, length: int) -> list[Array]:
        """One after the other."""
        raw = np.zeros(count * length + 64 // self.dtype.itemsize, self.dtype)
        first = -raw.ctypes.data % 64 // self.dtype.itemsize
        return list(raw[first : first + count * length].reshape(count, length))

    def empty(self, length: int) -> Array:
        return np.empty(length, self.dtype)

    def copy(self, source: Array, out: Array) -> None:
        out[...] = source

    def add(self, left: Array, right: Array) -> None:
        np.add(left, right, out=left)


class Reduction:
    """Sums gradients over ranks, a region of numbers after the other.

    Parameters
    ----------
    communicator : Communicator
    shards : int
        S, a power of two, at least as many as ranks.
    starts : sequence of int
        Where each region of a gradient begins, and where the last one ends.
    dtype : numpy dtype
    arrays : SummedArrays
        Where they lie.

    Attributes
    ----------
    rows : list of (length,) arrays
        One for each of this rank's trees; in the first the sum of all ranks' appears.
    """

    #: Numbers of a cache line: where slices begin.
    _UNIT = 16

    def __init__(
        self,
        communicator: Communicator,
        shards: int,
        starts: Sequence[int],
        dtype: np.dtype[np.floating],
        arrays: SummedArrays | None = None,
    ) -> None:
        self.communicator, self.shards = communicator, shards
        self.arrays = arrays or HostArrays(dtype)
        size, me = communicator.size, communicator.rank
        self.trees = [trees_of(shards_of(rank, size, shards)) for rank in range(size)]
        self.rows = self.arrays.rows(len(self.trees[me]), starts[-1])
        self.slices = [self._cut(begin, end, size) for begin, end in pairwise(starts)]
        #: Of each region and tree of another rank, what arrives here.
        self.received = [
            {
                (rank, tree): self.arrays.empty(slices[me].stop - slices[me].start)
                for rank in communicator.others
                for tree in self.trees[rank]
            }
            for slices in self.slices
        ]

    def _cut(self, begin: int, end: int, size: int) -> list[slice]:
        """A slice of a region for each rank."""
        units = -(-(end - begin) // self._UNIT)
        edges = [min(begin + units * i // size * self._UNIT, end) for i in range(size + 1)]
        return list(starmap(slice, pairwise(edges)))

    def begin(self, region: int) -> RegionSum:
        """Start to sum a region, which is ready in all `rows`."""
        return RegionSum(self, region)


class RegionSum:
    """The sum of one region, on its way: `add`, and then `wait`."""

    def __init__(self, reduction: Reduction, region: int) -> None:
        self._reduction = reduction
        self._slices = reduction.slices[region]
        self._received = reduction.received[region]
        of_rank, communicator = reduction.trees[reduction.communicator.rank], reduction.communicator
        outgoing = [
            (rank, row[self._slices[rank]])
            for rank in communicator.others
            for row, _ in zip(reduction.rows, of_rank, strict=True)
        ]
        incoming = [(rank, array) for (rank, _), array in self._received.items()]
        self._exchange: Exchange = communicator.exchange(outgoing, incoming)

    def add(self) -> None:
        """Add up this rank's slice, once all of it is here, and send it to the others."""
        self._exchange.wait()
        rows, communicator = self._reduction.rows, self._reduction.communicator
        arrays = self._reduction.arrays
        own = self._slices[communicator.rank]
        sums = {tree: array for (_, tree), array in self._received.items()}
        of_rank = self._reduction.trees[communicator.rank]
        sums |= {tree: row[own] for tree, row in zip(of_rank, rows, strict=True)}
        with np.errstate(all="ignore"):  # of a cost that overflows
            found = _sum(sums, Tree(0, self._reduction.shards), arrays)
        out = sums[of_rank[0]]
        if found is not out:
            arrays.copy(found, out)
        self._exchange = communicator.exchange(
            [(rank, out) for rank in communicator.others],
            [(rank, rows[0][self._slices[rank]]) for rank in communicator.others],
        )

    def wait(self) -> None:
        """Until the region is there."""
        self._exchange.wait()


def _sum(sums: dict[Tree, Array], tree: Tree, arrays: SummedArrays) -> Array:
    """Of a tree, from those of its parts, which it overwrites."""
    if tree in sums:
        return sums[tree]
    half = tree.size // 2
    left, right = (_sum(sums, Tree(tree.first + i * half, half), arrays) for i in range(2))
    arrays.add(left, right)
    return left
