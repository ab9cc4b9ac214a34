"""The resident engine of the CPU: epochs in the compiled library, without Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from .. import cpu, planning
from ..arrays import SparseMatrix
from ..optimizers import Optimizer
from ..parameters import Layout
from ..planning import Run, residency
from ..threads import one_blas_thread
from .base import Described, Engine, Hyperparameters, Member
from .reduction import Reduction, RegionSum, all_costs, shards_of

Array = np.ndarray


class ResidentCpuEngine(Engine):
    """An epoch in one call of `kernels/cpu`, over NumPy arrays; or a step, if Python is to hear.

    One network's step is shared out to threads as the plan says. Of several networks each has a
    thread to itself.
    """

    name = "resident"
    reads_bytes = True
    reads_sparse = True
    shards = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._library = cpu.library()
        #: Memory that no epoch is using, by what it was made for.
        self._idle: dict[Any, list[Array]] = {}
        self._network = cpu.describe(self.sizes, self.activations, self.cost, self.backend.dtype)
        self._parameters = Layout(self.sizes).count
        self._last: _Template | None = None
        self._reduction: Reduction | None = None
        if self.communicator.size > 1:
            starts = self._library.layers(self._network)
            self._reduction = Reduction(
                self.communicator, self.plan.shards, starts, self.backend.dtype
            )

    @classmethod
    def obstacle(cls, model: Described, run: Run) -> str | None:
        if model.precision != model.dtype.name:
            return f"it multiplies in {model.dtype.name} alone, and not in {model.precision}"
        if "gradient_noise" in run.options:
            return "it draws no gradient_noise, which takes longer than the rest of a step"
        return cpu.obstacle(model.activations, model.dtype)

    def epochs_at_once(self, rows: int, batch_size: int) -> int:
        if self._network.called is not None:  # who may fail, or be long
            return 1
        return planning.epochs_a_call(self._parameters, batch_size, rows)

    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,  # there is no device to wait for
    ) -> Array:
        threads = self.plan.work(member.hyperparameters.batch_size).threads
        return self._train([member], X, Y, 1, threads, on_step)[0]

    def run_members(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        on_member: Callable[[int], None] = lambda i: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[Array]:
        found: list[Array] = []
        teams = min(self.plan.threads, len(members))
        while len(found) < len(members):
            first = members[len(found)]
            a_call = self._steps_a_call(first) * teams // _steps(first)
            group = members[len(found) : len(found) + max(teams, a_call)]
            for costs_of_one in self._train(group, X, Y, teams, 1):
                found.append(costs_of_one)
                on_member(len(found) - 1)
        return found

    def put(self, X: Any, Y: Array) -> tuple[Any, Array]:
        if isinstance(X, SparseMatrix):
            X = cpu.SparseRows(X.csr, self.backend.dtype)
        if isinstance(X, cpu.SparseRows):
            return X, self.backend.asarray(self.cost.prepare(Y, self.sizes[-1]))
        return super().put(X, Y)

    def between(self) -> AbstractContextManager[Any]:
        return one_blas_thread

    def release(self) -> None:
        self._idle.clear()

    def _train(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        teams: int,
        threads: int,
        on_step: Callable[[int], None] | None = None,
    ) -> list[Array]:
        """An epoch of each, by teams of so many threads; the costs of each one's steps."""
        network = self._network
        network.stored = 0 if isinstance(X, cpu.SparseRows) else X.itemsize
        # What the library reads and writes, and Python must keep until it is done.
        kept = [self._part(member, threads) for member in members]
        described = (cpu.AbiMember * len(members))(*(part for part, *_ in kept))
        job = cpu.AbiJob(
            ctypes.pointer(network), cpu.address(X), cpu.address(Y), described,
            len(members), min(teams, len(members)), threads, on_step is not None,
        )  # fmt: skip
        alone = on_step is None and self._reduction is None
        at_once = self._steps_a_call(members[0]) if alone else 1
        steps = max(len(costs_of_one) for *_, costs_of_one in kept)
        for first in range(0, steps, at_once):  # between two calls Ctrl-C is heard
            job.first, job.last = first, first + at_once
            if self._reduction is None:
                self._library.train(job)
            else:
                self._run_parts(job, self._reduction)
            if network.called is not None:
                network.called.check()
            if on_step is not None:
                on_step(first)
        for _, memory, key, *_ in kept:
            self._idle.setdefault(key, []).append(memory)
        return [all_costs(self.communicator, of_shards) for *_, of_shards in kept]

    def _run_parts(self, job: cpu.AbiJob, reduction: Reduction) -> None:
        """A step, in which other ranks' sums come while this one makes those of the layer below."""
        job.part = cpu.ROWS_OF_STEP
        self._library.train(job)
        sums: list[RegionSum] = []
        job.part = cpu.GRADIENT
        for job.layer in reversed(range(len(self.activations))):
            self._library.train(job)
            sums.append(reduction.begin(job.layer))
            if len(sums) > 1:
                sums[-2].add()
        sums[-1].add()
        for each in sums:
            each.wait()
        job.part = cpu.CHANGE
        self._library.train(job)

    def _part(self, member: Member, threads: int) -> tuple[Any, ...]:
        """A member as the library takes it, its memory and that one's key, and other arrays."""
        settings = member.hyperparameters
        template = self._template(settings, len(member.slots), threads)
        part = cpu.AbiMember.from_buffer_copy(template.part)
        order = np.ascontiguousarray(member.order, np.int64)
        coefficients = np.ascontiguousarray(settings.coefficients, np.float64)
        costs_of_one = np.zeros((_steps(member), self.plan.shards))
        part.epochs, part.order = member.epochs, cpu.address(order)
        part.rows = len(order) // member.epochs
        part.coefficients = cpu.address(coefficients)
        part.p, part.costs = cpu.address(member.parameters.flat), cpu.address(costs_of_one)
        for i, slot in enumerate(member.slots):
            part.state[i] = cpu.address(slot)
        if settings.squares is not None:
            part.squares = cpu.address(settings.squares)
        if member.weights is not None:
            part.weights = cpu.address(member.weights)
        dropped = member.draws
        kept: tuple[Any, ...] = ()
        if dropped is not None:
            kept = np.array(dropped.rates), np.array(dropped.keys, np.uint64)
            part.rates, part.keys = map(cpu.address, kept)
            part.first_step = dropped.first_step
        if self._reduction is not None:
            part.gradient = cpu.address(self._reduction.rows[0])
        key = (*template.key, dropped is not None)
        idle = self._idle.get(key)
        memory = idle.pop() if idle else self._library.memory(self._network, part, threads)
        part.memory = cpu.address(memory)
        return part, memory, key, template, order, coefficients, kept, costs_of_one

    def _template(self, settings: Hyperparameters, slots: int, threads: int) -> _Template:
        """What members of the same settings have in common: that of the last one, where it fits."""
        optimizer, m = settings.optimizer, settings.batch_size
        sparse = self._network.stored == 0
        key: tuple[Any, ...] = m, slots, settings.squares is None, threads, sparse
        last = self._last
        if last is not None and last.optimizer is optimizer and last.key[: len(key)] == key:
            return last
        # Sparse rows are read where they lie: nothing is copied, nor shared out by its columns.
        work, ranks = self.plan.work(m), self.communicator
        own = shards_of(ranks.rank, ranks.size, self.plan.shards)
        limits = optimizer.clip_value, optimizer.clip_norm, optimizer.max_norm
        slices = np.array(
            residency.all_slices(self.sizes, m, self.backend.dtype.itemsize), np.int32
        )
        part = cpu.AbiMember(
            m, work.block, work.in_place or sparse, cpu.RULES.index(optimizer.rule),
            work.by_inputs and threads > 1 and not sparse, 0, self.plan.shards, own.start, own.stop,
            0, None, None, None, None, None, 0,
            *(inf if limit is None else limit for limit in limits), optimizer.l1,
            *optimizer.kernel_constants,
            slices.ctypes.data,
        )  # fmt: skip
        key = (*key, optimizer.clip_norm is None)
        self._last = _Template(optimizer, key, part, slices)
        return self._last

    def _steps_a_call(self, member: Member) -> int:
        return planning.steps_a_call(self._parameters, member.hyperparameters.batch_size)


@dataclass(frozen=True)
class _Template:
    """What members of the same optimizer, batch and threads have in common."""

    optimizer: Optimizer
    #: Of the memory that they need.
    key: tuple[Any, ...]
    part: cpu.AbiMember
    slices: Array


def _steps(member: Member) -> int:
    """Of all its epochs."""
    return len(member.hyperparameters.coefficients)
