"""The resident engine of the CPU: epochs in the compiled library, without Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import Any

import numpy as np

from .. import cpu, planning
from ..planning import Run, residency
from ..threads import one_blas_thread
from .base import Described, Engine, Member

Array = np.ndarray


class ResidentCpuEngine(Engine):
    """An epoch in one call of `kernels/cpu`, over NumPy arrays; or a step, if Python is to hear.

    One network's step is shared out to threads as the plan says. Of several networks each has a
    thread to itself.
    """

    name = "resident"
    reads_bytes = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._library = cpu.library()
        #: Memory that no epoch is using, by what it was made for.
        self._idle: dict[Any, list[Array]] = {}
        self._network = cpu.describe(self.sizes, self.activations, self.cost, self.backend.dtype)

    @classmethod
    def obstacle(cls, model: Described, run: Run) -> str | None:
        return cpu.obstacle(model.activations, model.dtype)

    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,  # there is no device to wait for
    ) -> Array:
        return self._train([member], X, Y, 1, self._work(member).threads, on_step)[0]

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
        network.stored = X.itemsize
        steps = [_steps(member) for member in members]
        # What the library reads and writes, and Python must keep until it is done.
        kept = [self._part(member, threads) for member in members]
        described = (cpu.AbiMember * len(members))(*(part for part, *_ in kept))
        job = cpu.AbiJob(
            ctypes.pointer(network), X.ctypes.data, Y.ctypes.data, described,
            len(members), min(teams, len(members)), threads, on_step is not None,
        )  # fmt: skip
        at_once = self._steps_a_call(members[0]) if on_step is None else 1
        for first in range(0, max(steps), at_once):  # between two calls Ctrl-C is heard
            job.first, job.last = first, first + at_once
            self._library.train(job)
            if network.called is not None:
                network.called.check()
            if on_step is not None:
                on_step(first)
        for _, memory, key, *_ in kept:
            self._idle.setdefault(key, []).append(memory)
        return [costs_of_one for *_, costs_of_one in kept]

    def _part(self, member: Member, threads: int) -> tuple[Any, ...]:
        """A member as the library takes it, its memory and that one's key, and other arrays."""
        settings, work = member.hyperparameters, self._work(member)
        optimizer, m = settings.optimizer, settings.batch_size
        order = np.ascontiguousarray(member.order, np.int64)
        coefficients = np.ascontiguousarray(settings.coefficients, np.float64)
        costs_of_one = np.empty(_steps(member))
        clips = (inf if c is None else c for c in (optimizer.clip_value, optimizer.clip_norm))
        flat, state = member.parameters.flat, (ctypes.c_void_p * 2)()
        slices = np.array(residency.all_slices(self.sizes, m, flat.itemsize), np.int32)
        for i, slot in enumerate(member.slots):
            state[i] = slot.ctypes.data
        part = cpu.AbiMember(
            m, work.block, work.in_place, cpu.RULES.index(optimizer.rule),
            work.by_neurons and threads > 1, 0, len(order),
            order.ctypes.data, coefficients.ctypes.data, *clips, optimizer.l1, optimizer.l2,
            *optimizer.kernel_constants, slices.ctypes.data, flat.ctypes.data, state,
            costs_of_one.ctypes.data,
            None if settings.squares is None else settings.squares.ctypes.data,
        )  # fmt: skip
        key = work, m, len(member.slots), optimizer.clip_norm is None, threads
        idle = self._idle.get(key)
        memory = idle.pop() if idle else self._library.memory(self._network, part, threads)
        part.memory = memory.ctypes.data
        return part, memory, key, order, coefficients, slices, costs_of_one

    def _work(self, member: Member) -> planning.CpuWork:
        return self.plan.work(member.hyperparameters.batch_size)

    def _steps_a_call(self, member: Member) -> int:
        parameters = member.parameters.layout.count
        return planning.steps_a_call(parameters, member.hyperparameters.batch_size)


def _steps(member: Member) -> int:
    return -(-len(member.order) // member.hyperparameters.batch_size)
