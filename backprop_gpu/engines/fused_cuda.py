"""The fused engine of a CUDA device: narrow networks over wide batches, a step in two launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np

from ..cuda.catalogue import Catalogue
from ..optimizers import COEFFICIENTS
from ..planning import Run, fusion
from .base import Described, Member
from .members import (
    MembersEngine,
    constants,
    draws_of,
    limits_norms,
    owners,
    places,
    weights_of,
)
from .passes import quiet

Array = Any

#: Bytes that the gradients of all blocks of a launch may take; more members are several launches.
PARTS = 1 << 28


class FusedCudaEngine(MembersEngine):
    """Steps by ``kernels/cuda/fused.cu``, activations on the chip, cut as the plan says."""

    name = "fused"
    #: The last two: a short last mini-batch may be bound by itself.
    _bounds: tuple[FusedSteps, ...] = ()

    @classmethod
    def obstacle(cls, model: Described, run: Run) -> str | None:
        shared = cls.float32_obstacle(model, run)
        if shared is not None:
            return shared
        assert model.device is not None
        slopes = fusion.kept_slopes(model.activations, model.precision, run.drops)
        found = fusion.choose(model.sizes, run.batch_size, model.device, model.precision, slopes)
        return found if isinstance(found, str) else None

    @quiet
    def _launch(
        self, members: Sequence[Member], X: Array, Y: Array, meanwhile: Callable[[], None]
    ) -> list[np.ndarray]:
        settings = members[0].hyperparameters
        if self.plan.fusion(settings.batch_size).stored != X.dtype.itemsize:
            X = self._numbers(X)
        bound = self.bind(members, X, Y)
        bound.load(members)
        whole, rest = divmod(len(members[0].order), settings.batch_size)
        bound.backend.repeat(bound.whole_step, whole, self.plan.captured)
        if rest:
            bound.last_step()
        meanwhile()
        bound.unload(members)
        return list(bound.backend.to_numpy(bound.costs))

    def bind(self, members: Sequence[Member], X: Array, Y: Array) -> FusedSteps:
        """Steps of these members on these rows: as long as they are the same arrays, the same."""
        key = _key(members, X, Y)
        for bound in self._bounds:
            if len(bound.key) == len(key) and all(
                old is new or (isinstance(new, int | str) and old == new)
                for old, new in zip(bound.key, key, strict=True)
            ):
                return bound
        self._bounds = self._bounds[-1:]  # room for another
        bound = FusedSteps(self, members, X, Y)
        self._bounds += (bound,)
        return bound

    def release(self) -> None:
        super().release()
        self._bounds = ()


class FusedSteps:
    """Steps bound to the arrays of some members, and the buffers of an epoch."""

    def __init__(
        self, engine: FusedCudaEngine, members: Sequence[Member], X: Array, Y: Array
    ) -> None:
        self.key = _key(members, X, Y)
        backend: Any = engine.backend.fork()
        self.backend, runtime = backend, backend.runtime
        settings, rows, count = members[0].hyperparameters, len(members[0].order), len(members)
        m = settings.batch_size
        steps, form = ceil(rows / m), engine.plan.fusion(m)
        self.order = runtime.empty((count, rows), np.int32)
        self.coefficients = runtime.empty((count, steps, COEFFICIENTS), np.float64)
        self.constants = runtime.empty((count, 6), np.float32)
        self.weights = None
        if members[0].weights is not None:
            self.weights = runtime.empty((count, rows), np.float32)
        self.costs = runtime.empty((count, steps), np.float64)
        self.step = runtime.zeros(1, np.int32)
        states = [(member.parameters.flat, *member.slots) for member in members]
        found = places(states)
        #: Copies of members that are not rows of one array.
        self.copies = None if found is not None else engine.gathered(states)
        at = runtime.array(np.arange(count) if found is None else found, np.int32)
        p, s0, s1 = (*(owners(states) if self.copies is None else self.copies), None, None)[:3]

        layout = members[0].parameters.layout
        at_once = max(1, min(count, PARTS // (4 * form.grid * layout.length)))
        # Between the arrays are zeros, and nobody writes there.
        parts = runtime.zeros(at_once * form.grid * layout.length, np.float32)
        cost_parts = runtime.empty(at_once * form.grid, np.float64)
        finished = runtime.zeros(at_once, np.uint32)
        kernels = Catalogue(backend.dtype, backend.precision)
        # A plan that drops out keeps every σ': another kernel's memory is not as large.
        plain = fusion.kept_slopes(engine.activations, backend.precision)
        drops = members[0].drops or form.slopes != plain
        fused = kernels.fused(form, engine.activations, engine.cost, drops)
        self.hidden = len(engine.sizes) - 2
        self.dropout = runtime.empty((count, 3 + self.hidden), np.uint32) if drops else None
        update = kernels.fused_update(settings.optimizer.rule)
        advance = kernels.advance()
        limits, limit_norms = limits_norms(members), kernels.fused_limit_norms()
        weights = list(zip(layout.weight_starts, layout.weight_shapes, strict=True))

        def step_of(size: int) -> Callable[[], None]:
            blocks = form.blocks_for(size)

            def step() -> None:
                for first in range(0, count, at_once):
                    now = min(at_once, count - first)
                    runtime.launch(
                        fused, (blocks, now, 1),
                        (
                            X, Y, self.order, self.weights, self.dropout, self.step, at, p, parts,
                            cost_parts,
                            finished, self.costs, *map(np.int32, (rows, m, size, first)),
                        ),
                    )  # fmt: skip
                    runtime.launch(
                        update, (ceil(layout.length / 32), now, 1),
                        (
                            parts, self.coefficients, self.constants, self.step, at, p, s0, s1,
                            *map(np.int32, (layout.length, layout.weights_end, blocks, steps)),
                            *map(np.int32, (size, first)),
                        ),
                    )  # fmt: skip
                    for start, (n, fan_in) in weights if limits else ():
                        runtime.launch(
                            limit_norms, (ceil(n / 8), now, 1),
                            (
                                self.constants, at, p,
                                *map(np.int32, (layout.length, start, n, fan_in, first)),
                            ),
                        )  # fmt: skip
                runtime.launch(advance, (1, 1, 1), (self.step,))

            return step

        self.whole_step = step_of(m)
        self.last_step = step_of(rows % m) if rows % m else self.whole_step

    def load(self, members: Sequence[Member]) -> None:
        """What the next epoch takes from the host."""
        upload = self.backend.runtime.upload
        upload(np.stack([member.order for member in members]).astype(np.int32), self.order)
        weights = weights_of(members)
        if weights is not None:
            upload(weights, self.weights)
        if self.dropout is not None:
            upload(draws_of(members, self.hidden), self.dropout)
        upload(
            np.stack([member.hyperparameters.coefficients for member in members]),
            self.coefficients,
        )
        of_members = np.array([constants(member) for member in members])
        with np.errstate(over="ignore"):  # a limit beyond float32 is none
            upload(of_members.astype(np.float32), self.constants)
        self.backend.runtime.clear(self.step)
        self._copy(members, to_members=False)

    def unload(self, members: Sequence[Member]) -> None:
        """Give members what was trained in copies."""
        self._copy(members, to_members=True)

    def _copy(self, members: Sequence[Member], to_members: bool) -> None:
        for i, member in enumerate(members if self.copies is not None else ()):
            own = (member.parameters.flat, *member.slots)
            for array, whole in zip(own, self.copies or (), strict=True):
                pair = (whole[i], array) if to_members else (array, whole[i])
                self.backend.copy(*pair)


def _key(members: Sequence[Member], X: Array, Y: Array) -> tuple[Any, ...]:
    """What steps are bound to."""
    settings = members[0].hyperparameters
    arrays = [array for each in members for array in (each.parameters, *each.slots)]
    weighted = members[0].weights is not None
    drops = members[0].drops
    rows, limits = len(members[0].order), limits_norms(members)
    numbers = settings.batch_size, rows, len(members), weighted, drops, limits
    return (settings.optimizer.rule, *numbers, X, Y, *arrays)
