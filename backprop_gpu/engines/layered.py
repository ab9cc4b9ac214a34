"""The layered engine: one backend call per equation. Any shape, any option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..backends.base import Epoch
from ..optimizers import Optimizer
from ..parameters import Layout, Parameters
from ..planning import Run
from .base import Described, Engine, Member
from .layered_shards import ShardedSteps
from .passes import Batch, Passes, quiet

Array = Any


#: What a training's buffers are made for; compared by identity, but for numbers.
Arguments = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Bound:
    """The buffers and steps bound to the arrays of one training, kept from epoch to epoch."""

    arguments: Arguments
    passes: Passes
    epoch: Epoch
    #: One step, with a whole mini-batch and with the last one.
    whole_step: Callable[[], None]
    last_step: Callable[[], None]
    #: So many whole steps.
    whole_steps: Callable[[int], None]
    #: Round what products take rounded of the parameters, for what others have written to them.
    refresh: Callable[[], None]


class LayeredEngine(Engine):
    """Forward, BP1–BP4 and the update as calls to a backend, layer by layer."""

    name = "layered"
    shards = True
    #: The last two: members of two rules, or of two batch sizes, alternate.
    _bounds: tuple[Bound, ...] = ()
    _sharded: tuple[Arguments, ShardedSteps, Callable[[], None]] | None = None
    _turns: tuple[Parameters, dict[int, tuple[Array, ...]]] | None = None

    @classmethod
    def obstacle(cls, model: Described, run: Run) -> str | None:
        return None

    # -- an epoch ---------------------------------------------------------------

    @quiet
    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        hyperparameters = member.hyperparameters
        if self.plan.shards > 1:
            return self._run_shards(member, X, Y, on_step)
        whole, rest = divmod(len(member.order), hyperparameters.batch_size)
        bound = self._bind(member, X, Y)
        bound.epoch.load(member.order, hyperparameters.coefficients, member.weights, member.draws)
        if hyperparameters.squares is not None:
            on_step = self._sums_squares(member.parameters, hyperparameters.squares, on_step)
        bound.refresh()
        if on_step is None:
            bound.whole_steps(whole)
            bound.passes.backend.repeat(bound.last_step, int(rest > 0), self.plan.captured)
        else:
            for number in range(whole + bool(rest)):
                (bound.whole_step if number < whole else bound.last_step)()
                on_step(number)
                bound.refresh()
        meanwhile()
        return bound.epoch.costs()

    def _run_shards(
        self, member: Member, X: Array, Y: Array, on_step: Callable[[int], None] | None
    ) -> np.ndarray:
        arguments = _arguments(member, X, Y)
        if self._sharded is None or not _alike(self._sharded[0], arguments):
            passes, parameters, refresh = self._prepare(member)
            steps = ShardedSteps(passes, member, parameters, self.communicator, self.plan.shards)
            self._sharded = arguments, steps, refresh
        _, steps, refresh = self._sharded
        squares = member.hyperparameters.squares
        if squares is not None:
            on_step = self._sums_squares(member.parameters, squares, on_step)
        refresh()

        def after(number: int) -> None:
            if on_step is not None:
                on_step(number)
                refresh()

        return steps.run(member, X, Y, after)

    def _prepare(self, member: Member) -> tuple[Passes, Parameters, Callable[[], None]]:
        """Passes, the parameters as products take them, and what refreshes their rounded copy."""
        backend: Any = self.backend.fork()
        passes = Passes(backend, self.sizes, self.activations, self.cost, plan=self.plan)
        parameters = member.parameters
        products = (one for planned in self.plan.batches for _, one in planned.products)
        if not any(product.kernel == "cublas" for product in products):
            return passes, parameters, _nothing
        parameters = Parameters(parameters.layout, backend.with_rounded(parameters.flat))
        return passes, parameters, partial(backend.round, parameters.flat)

    def _sums_squares(
        self, parameters: Parameters, squares: np.ndarray, on_step: Callable[[int], None] | None
    ) -> Callable[[int], None]:
        """Fill `squares`: the first now, each of the others when the step before it is over."""
        weights = parameters.flat[: parameters.layout.weights_end]
        squares[0] = self.backend.sum_of_squares(weights)

        def after(number: int) -> None:
            if number + 1 < len(squares):
                squares[number + 1] = self.backend.sum_of_squares(weights)
            if on_step is not None:
                on_step(number)

        return after

    def run_members(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        on_member: Callable[[int], None] = lambda i: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        # Buffers and captured steps are made for one set of arrays. In these, members take turns:
        # a copy there and back is nothing beside an epoch. Only another rule, batch size or number
        # of rows needs other buffers, so members that agree in all three follow each other.
        alike: dict[tuple[Optimizer, int, int], list[int]] = {}
        for i, member in enumerate(members):
            settings = member.hyperparameters
            key = settings.optimizer, settings.batch_size, len(member.order)
            alike.setdefault(key, []).append(i)
        costs = [np.empty(0)] * len(members)
        for (optimizer, _, _), numbers in alike.items():
            for i in numbers:
                member = members[i]
                parameters, slots = self._turn(member.parameters.layout, len(member.slots))
                own = (member.parameters.flat, *member.slots)
                lent = (parameters.flat, *slots)
                for source, out in zip(own, lent, strict=True):
                    self.backend.copy(source, out)
                settings = replace(member.hyperparameters, optimizer=optimizer)
                turn = replace(member, parameters=parameters, slots=slots, hyperparameters=settings)
                costs[i] = self.run_epoch(turn, X, Y, meanwhile=meanwhile)
                for source, out in zip(lent, own, strict=True):
                    self.backend.copy(source, out)
                on_member(i)
        return costs

    def _turn(self, layout: Layout, slots: int) -> tuple[Parameters, tuple[Array, ...]]:
        """The parameters and optimizer state in which members take turns, always the same ones."""
        zeros = self.backend.zeros
        if self._turns is None:
            self._turns = Parameters(layout, zeros((layout.length,))), {}
        parameters, states = self._turns
        if slots not in states:
            states[slots] = tuple(zeros((layout.length,)) for _ in range(slots))
        return parameters, states[slots]

    def _bind(self, member: Member, X: Array, Y: Array) -> Bound:
        arguments = _arguments(member, X, Y)
        for bound in self._bounds:
            if _alike(bound.arguments, arguments):
                return bound
        self._bounds = self._bounds[-1:]  # room for another
        slots, rows, m = member.slots, len(member.order), member.hyperparameters.batch_size
        passes, parameters, refresh = self._prepare(member)
        backend: Any = passes.backend
        epoch, gradients = backend.epoch(rows, m), passes.zeros_like(parameters)
        optimizer, weighted = member.hyperparameters.optimizer, member.weights is not None
        drops = member.drops

        def compute(batch: Batch) -> None:
            """From rows to an update of the parameters."""
            passes.forward(parameters, batch, epoch)
            backend.record_cost(
                batch.z[-1], batch.a[-1], batch.y, passes.output, self.cost, epoch, batch.weights
            )
            passes.backward(parameters, gradients, batch, epoch)
            backend.update(parameters, gradients, slots, optimizer, epoch)

        def step(batch: Batch) -> None:
            backend.gather(X, Y, epoch, batch.a[0], batch.y, batch.weights)
            compute(batch)
            backend.advance(epoch)

        batch = passes.batch(m, weighted=weighted, drops=drops)
        whole = partial(step, batch)
        last = whole
        if rows % m:
            last = partial(step, passes.batch(rows % m, weighted=weighted, drops=drops))
        steps: Callable[[int], None] = partial(backend.repeat, whole, captured=False)
        if self.plan.captured:
            steps = _gathering_ahead(backend, compute, batch, X, Y, epoch)
        bound = Bound(arguments, passes, epoch, whole, last, steps, refresh)
        self._bounds += (bound,)
        return bound

    def release(self) -> None:
        self._bounds, self._turns, self._sharded = (), None, None


def _arguments(member: Member, X: Array, Y: Array) -> Arguments:
    """What the buffers of a member's training are made for."""
    settings = member.hyperparameters
    return (
        member.parameters, member.slots, X, Y, settings.optimizer, settings.batch_size,
        len(member.order), member.weights is not None,
        None if member.draws is None else hash(member.draws.rates),
    )  # fmt: skip


def _alike(some: Arguments, others: Arguments) -> bool:
    return all(
        old is new or (isinstance(new, int | float) and old == new)
        for old, new in zip(some, others, strict=True)
    )


def _gathering_ahead(
    backend: Any, compute: Callable[[Batch], None], batch: Batch, X: Array, Y: Array, epoch: Any
) -> Callable[[int], None]:
    """Steps of which each brings the next one's rows while it computes: two take turns."""
    other = batch.twin(backend)

    def gather(rows: Batch, ahead: int) -> None:
        backend.gather(X, Y, epoch, rows.a[0], rows.y, rows.weights, ahead)

    def step(now: Batch, then: Batch) -> None:
        backend.side_by_side(partial(gather, then, 1), partial(compute, now))
        backend.advance(epoch)

    def two() -> None:
        step(batch, other)
        step(other, batch)

    def odd() -> None:
        compute(batch)
        backend.advance(epoch)

    def steps(count: int) -> None:
        if count:
            gather(batch, 0)
        backend.repeat(two, count // 2)
        backend.repeat(odd, count % 2)

    return steps


def _nothing() -> None:
    """Products take the parameters as they are."""
