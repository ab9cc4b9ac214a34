"""Steps of the layered engine in which each shard is a mini-batch of its own.

    for each shard   forward, C, BP1 – BP4: the mean gradient over its rows, times their share
    tree             the shards' are added, and other ranks' sums to them (`reduction`)
    update           by every rank

To add is an update, too: p - η g, with the sum for p and η = -1, or minus a share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..communicators import Communicator
from ..cuda.arrays import DeviceArray
from ..optimizers import SGD
from ..parameters import Parameters
from .base import Member
from .passes import Batch, Passes
from .reduction import Reduction, Tree, all_costs, rows_of_shards, shards_of, trees_of

Array = Any

_ADDS = SGD()


class ShardedSteps:
    """The buffers of one training in shards.

    Parameters
    ----------
    passes : Passes
    member : Member
        Of all epochs: its slots, batch size and rule.
    parameters : Parameters
        The member's, perhaps with a rounded copy.
    communicator : Communicator
    shards : int
    """

    def __init__(
        self,
        passes: Passes,
        member: Member,
        parameters: Parameters,
        communicator: Communicator,
        shards: int,
    ) -> None:
        self._passes, self._member, self._parameters = passes, member, parameters
        self._backend: Any = passes.backend
        self._communicator, self._shards = communicator, shards
        self._own = shards_of(communicator.rank, communicator.size, shards)
        self._trees = trees_of(self._own)
        m, rows = member.hyperparameters.batch_size, len(member.order)
        self._rows = [rows_of_shards(m, shards)] * (rows // m)
        if rows % m:
            self._rows.append(rows_of_shards(rows % m, shards))
        self._slots = -(-m // shards)  # of a shard, in the order
        self._epoch = self._backend.epoch(rows, m)
        steps = len(self._rows) * len(self._own)
        self._of_shards = self._backend.epoch(steps * self._slots, self._slots)
        self._once = self._backend.epoch(1, 1)
        self._once.load(np.zeros(1, np.intp), _ADDS.coefficients(np.array([-1.0]), 0))
        self._zeros, self._gradients = self._buffer(), self._buffer()
        levels = max(tree.size for tree in self._trees).bit_length()
        self._free = [self._buffer() for _ in range(levels + len(self._trees))]
        self._on_device = False
        self._batches: dict[int, Batch] = {}
        self._weighted, self._drops = member.weights is not None, member.drops
        self._reduction: Reduction | None = None
        if communicator.size > 1:
            regions, dtype = [0, parameters.layout.length], passes.backend.dtype
            self._on_device = communicator.devices and isinstance(self._zeros.flat, DeviceArray)
            arrays = DeviceArrays(self._backend, self._once) if self._on_device else None
            self._reduction = Reduction(communicator, shards, regions, dtype, arrays)

    def _buffer(self) -> Parameters:
        return self._passes.zeros_like(self._parameters)

    def run(self, member: Member, X: Array, Y: Array, on_step: Callable[[int], None]) -> np.ndarray:
        """An epoch; the mean cost of each step."""
        shares = self._load(member)
        for number, rows in enumerate(self._rows):
            self._step(rows, X, Y, member)
            on_step(number)
        costs = np.zeros((len(self._rows), self._shards))
        found = self._of_shards.costs().reshape(len(self._rows), len(self._own))
        own = slice(self._own.start, self._own.stop)
        # Of a shard without rows there is no cost.
        costs[:, own] = np.where(shares[:, own] > 0, found * shares[:, own], 0.0)
        return all_costs(self._communicator, costs)

    def _load(self, member: Member) -> np.ndarray:
        """The order of this rank's shards; (steps, shards), their shares in the steps' rows."""
        m, settings = member.hyperparameters.batch_size, member.hyperparameters
        counts = np.array(self._rows)
        ends = counts.cumsum(axis=1) + m * np.arange(len(counts))[:, None]
        order = np.zeros((len(counts), len(self._own), self._slots), np.intp)
        places = (ends - counts)[:, self._own, None] + np.arange(self._slots)
        inside = np.arange(self._slots) < counts[:, self._own, None]
        order[inside] = np.asarray(member.order)[places[inside]]
        weights = None
        if member.weights is not None:
            weights = np.zeros(order.shape, member.weights.dtype)
            weights[inside] = member.weights[places[inside]]
            weights = weights.ravel()
        shares: np.ndarray = counts / counts.sum(axis=1, keepdims=True)
        rates = -shares[:, self._own].ravel()
        self._of_shards.load(order.ravel(), _ADDS.coefficients(rates, 0), weights)
        self._epoch.load(member.order, settings.coefficients, None, member.draws)
        return shares

    def _step(self, rows: list[int], X: Array, Y: Array, member: Member) -> None:
        backend, reduction = self._backend, self._reduction
        totals = []
        for i, tree in enumerate(self._trees):
            totals.append(self._sum(tree, rows, X, Y))
            if reduction is not None and not self._on_device:
                reduction.rows[i][...] = backend.to_numpy(totals[-1].flat)
                self._free.append(totals.pop())
        if reduction is not None:
            if self._on_device:
                reduction.rows = [total.flat for total in totals]
            region = reduction.begin(0)
            region.add()
            region.wait()
            if not self._on_device:
                totals.append(self._free.pop())
                backend.copy(backend.asarray(reduction.rows[0]), totals[0].flat)
        optimizer = member.hyperparameters.optimizer
        backend.update(self._parameters, totals[0], member.slots, optimizer, self._epoch)
        backend.advance(self._epoch)
        self._free += totals

    def _sum(self, tree: Tree, rows: list[int], X: Array, Y: Array) -> Parameters:
        """The gradient of a tree's shards, in one of the free buffers."""
        sums: list[Parameters] = []
        for i in range(tree.size):
            shard = tree.first + i
            found = self._of_shard(rows[shard], sum(rows[:shard]), X, Y)
            for _ in range(_trailing_ones(i)):  # as many shards as in this sum
                left = sums.pop()
                self._backend.update(left, found, (), _ADDS, self._once)
                self._free.append(found)
                found = left
            sums.append(found)
        return sums[0]

    def _of_shard(self, rows: int, first_row: int, X: Array, Y: Array) -> Parameters:
        """The gradient of the next shard, its part of the step's mean."""
        backend, passes, epoch = self._backend, self._passes, self._of_shards
        found = self._free.pop()
        backend.copy(self._zeros.flat, found.flat)
        if rows:
            if rows not in self._batches:
                self._batches[rows] = passes.batch(rows, weighted=self._weighted, drops=self._drops)
            batch = self._batches[rows]
            backend.gather(X, Y, epoch, batch.a[0], batch.y, batch.weights)
            passes.forward(self._parameters, batch, self._epoch, first_row)
            backend.record_cost(
                batch.z[-1], batch.a[-1], batch.y, passes.output, passes.cost, epoch,
                batch.weights,
            )  # fmt: skip
            passes.backward(self._parameters, self._gradients, batch, self._epoch, first_row)
            backend.update(found, self._gradients, (), _ADDS, epoch)
        backend.advance(epoch)
        return found


class Numbers(NamedTuple):
    """A layout of as many numbers, none of which is a weight."""

    length: int
    weights_end: int = 0


class FlatArray(NamedTuple):
    """Numbers that an update may add to, as it does to `Parameters`."""

    flat: Array
    layout: Numbers


class DeviceArrays:
    """On a CUDA device, by its own kernels; rows are given when they are there."""

    def __init__(self, backend: Any, once: Any) -> None:
        self._backend, self._once = backend, once

    def rows(self, count: int, length: int) -> list[Array]:
        return []

    def empty(self, length: int) -> Array:
        return self._backend.empty((length,))

    def copy(self, source: Array, out: Array) -> None:
        self._backend.copy(source, out)

    def add(self, left: Array, right: Array) -> None:
        sides = (FlatArray(side, Numbers(len(side))) for side in (left, right))
        self._backend.update(*sides, (), _ADDS, self._once)


def _trailing_ones(i: int) -> int:
    return (~i & (i + 1)).bit_length() - 1
