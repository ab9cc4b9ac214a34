"""The resident engine of the CPU: a whole epoch in compiled code, without Python."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import costs, planning
from ..imports import uninterrupted
from ..parameters import Layout
from ..planning import Run
from ..threads import one_blas_thread
from .base import Described, Engine, Member
from .passes import keeps_z

if TYPE_CHECKING:
    from .resident_cpu_loop import Memory, Shape

Array = np.ndarray
#: More arrivals than any thread waits for.
_ABANDONED = 1 << 62

_log = logging.getLogger("backprop_gpu")
#: Seconds of compilation after which a user is told what takes so long.
PATIENCE = 2.0
#: The dtypes for which this process has loaded the loop.
loaded: set[np.dtype[Any]] = set()


@lru_cache(maxsize=1)  # to be uninterrupted costs as much as a step
def _loop() -> Any:
    """The module of the compiled loop, which imports Numba."""
    with uninterrupted():
        from . import resident_cpu_loop

    return resident_cpu_loop


@contextmanager
def _announced(dtype: np.dtype[Any]) -> Iterator[None]:
    """A context for what compiles or loads the loop the first time in a process."""
    if dtype in loaded:
        yield
        return
    timer = threading.Timer(
        PATIENCE,
        _log.warning,
        ("compiling the resident loop for %s: ten to twenty seconds, once on this machine", dtype),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    loaded.add(dtype)


class ResidentCpuEngine(Engine):
    """An epoch as one loop of compiled code over NumPy arrays.

    For built-in activations and costs. The loop is in `resident_cpu_loop`; the first use in a
    process loads it from Numba's cache on disk, the very first on a machine compiles it.

    One network's step is shared out to threads as the plan says. Of several networks each has a
    thread to itself.
    """

    name = "resident"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pool: ThreadPoolExecutor | None = None
        #: Memory that no epoch is using, by what it was made for.
        self._idle: dict[Any, list[Memory]] = {}
        self._shapes: dict[int, Shape] = {}

    @classmethod
    def obstacle(cls, model: Described, run: Run) -> str | None:
        if run.step_callbacks:
            return "a callback after every batch needs Python between steps"
        if not model.cost.builtin:
            return f"cost {model.cost.name!r} is not built in"
        for activation in model.activations:
            if not activation.builtin:
                return f"activation {activation.name!r} is not built in"
        if importlib.util.find_spec("numba") is None:
            return "numba is not installed"
        if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
            return "NUMBA_DISABLE_JIT is set"
        return None

    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,  # there is no device to wait for
    ) -> Array:
        if on_step is not None:
            raise ValueError("an epoch is one loop, and Python is needed between steps")
        return self._train(member, X, Y, self._work(member).threads)

    def run_members(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        on_member: Callable[[int], None] = lambda i: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[Array]:
        pool = self._workers(self.plan.threads)
        futures = [pool.submit(self._train, member, X, Y, 1) for member in members]
        found = []
        try:
            for i, future in enumerate(futures):
                found.append(future.result())
                on_member(i)
        except BaseException:  # Ctrl-C: the caller may touch the parameters once this returns
            for future in futures:
                future.cancel()
            for future in futures:
                if not future.cancelled():
                    future.exception()
            raise
        return found

    def between(self) -> AbstractContextManager[Any]:
        return one_blas_thread

    def _train(self, member: Member, X: Array, Y: Array, threads: int) -> Array:
        loop = _loop()
        layout, flat = member.parameters.layout, member.parameters.flat
        optimizer, work = member.hyperparameters.optimizer, self._work(member)
        m, shape = member.hyperparameters.batch_size, self._shape(layout, work.block)
        idle = self._idle.setdefault((work, len(member.slots), threads), [])
        memory = idle.pop() if idle else self._memory(work, len(member.slots), threads)
        limits = (inf if c is None else c for c in (optimizer.clip_value, optimizer.clip_norm))
        rule = loop.Rule(
            loop.RULES.index(optimizer.rule),
            np.array(optimizer.constants),
            float(optimizer.l1),
            float(optimizer.l2),
            *map(float, limits),
        )
        state = list(zip((flat, *member.slots), (memory.p, memory.s, memory.t), strict=False))
        steps = -(-len(member.order) // m)
        step_costs = np.empty(steps)
        order = np.ascontiguousarray(member.order, np.intp)
        coefficients = np.ascontiguousarray(member.hyperparameters.coefficients)
        squares = member.hyperparameters.squares
        squares = np.empty(0) if squares is None else squares
        rows, targets = X.reshape(-1), Y.reshape(-1)

        def run_steps(thread: int, first: int, last: int) -> None:
            loop.run_steps(
                first, last, thread, threads, m, rows, targets, order, shape, memory, rule,
                coefficients, step_costs, squares,
            )  # fmt: skip

        with _announced(flat.dtype):
            for array, strips in state:
                loop.convert(shape, array, strips, True)
            loop.transpose_all(shape, memory)
            run_steps(0, 0, 0)

        # Between two calls Ctrl-C is heard.
        at_once = planning.steps_a_call(layout.count, m)
        for first in range(0, steps, at_once):
            last = min(first + at_once, steps)
            memory.counter[0] = 0
            others: list[Future[None]] = []
            try:
                for thread in range(1, threads):
                    workers = self._workers(max(threads, self.plan.threads))
                    others.append(workers.submit(run_steps, thread, first, last))
                run_steps(0, first, last)
            except BaseException:  # Ctrl-C before this thread was there: none may wait for it
                memory.counter[0] = _ABANDONED
                raise
            finally:
                for other in others:
                    other.result()
        for array, strips in state:
            loop.convert(shape, array, strips, False)
        idle.append(memory)  # not after an exception: a thread may still write to it
        return step_costs

    def _workers(self, threads: int) -> ThreadPoolExecutor:
        """A pool of at least `threads`: threads that wait for each other all need a worker."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads)
        return self._pool

    def _work(self, member: Member) -> planning.CpuWork:
        return self.plan.work(member.hyperparameters.batch_size)

    def _shape(self, layout: Layout, block: int) -> Shape:
        from .resident_cpu_product import lanes

        loop = _loop()
        if block not in self._shapes:
            assert isinstance(self.cost, costs.BuiltinCost)
            collapses = costs.collapses(self.activations[-1], self.cost)
            W = lanes(self.backend.dtype.itemsize)
            filled = [-(-n // W) * W for n in self.sizes]
            weights = [n * k for k, n in zip(self.sizes, filled[1:], strict=False)]
            copies = [n * k for k, n in zip(filled, self.sizes[1:], strict=False)]
            w_at, b_at = _starts(weights), _starts(filled[1:], sum(weights))
            self._shapes[block] = loop.Shape(
                np.array(self.sizes),
                np.array([0, *layout.weight_starts]),
                np.array([0, *layout.bias_starts]),
                np.array([0, *w_at]),
                np.array([0, *b_at]),
                np.array([0, 0, *_starts(copies[1:])]),
                np.array(_starts([n * block for n in filled])),
                np.array([(l, i) for l, n in enumerate(filled) if l for i in range(n // W)]),
                np.array([-1, *(loop.ACTIVATIONS.index(a.name) for a in self.activations)]),
                np.array(keeps_z(self.activations, self.cost)),
                loop.COSTS.index(self.cost.name),
                collapses,
                collapses and self.cost.from_z,
                *self.cost.limits(self.backend.dtype),
                block,
            )
        return self._shapes[block]

    def _memory(self, work: planning.CpuWork, slots: int, threads: int) -> Memory:
        from .resident_cpu_product import lanes

        loop = _loop()
        dtype, block = self.backend.dtype, work.block
        W = lanes(dtype.itemsize)
        filled = [-(-n // W) * W for n in self.sizes]
        length = sum(n * (k + 1) for k, n in zip(self.sizes, filled[1:], strict=False))
        copies = sum(k * n for k, n in zip(filled[1:], self.sizes[2:], strict=False))
        batch = (threads, sum(filled) * block)

        def zeros(*shape: int) -> Array:
            return _aligned(shape, dtype)

        memory: Memory = loop.Memory(
            zeros(length), zeros(length * (slots > 0)), zeros(length * (slots > 1)),
            zeros(copies), zeros(work.parts, length),
            zeros(*batch), zeros(*batch), zeros(*batch), zeros(threads, filled[-1] * block),
            zeros(loop.STRIPS * W), np.ones(block * W, dtype),
            np.zeros(work.parts), np.zeros((sum(filled[1:]) // W, 2)),
            np.zeros(sum(filled[1:]) // W), np.zeros(1, np.int64),
        )  # fmt: skip
        return memory

    def release(self) -> None:
        self._idle.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _starts(lengths: Sequence[int], first: int = 0) -> list[int]:
    return [first + sum(lengths[:i]) for i in range(len(lengths))]


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros that start on a cache line, so that no vector straddles two."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(dtype).reshape(shape)
