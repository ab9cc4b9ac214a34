"""mixup: rows that an engine trains on are mixtures of two rows of their mini-batch.

Zhang et al. 2018, "mixup: Beyond empirical risk minimization": with λ ~ Beta(α, α) of a mini-batch,

    x̃_i = λ x_i + (1 - λ) x_i+1,   ỹ_i = λ y_i + (1 - λ) y_i+1,   w̃_i = λ w_i + (1 - λ) w_i+1

for its rows in the order they are taken, of which the last has the first for a partner. Targets are
mixed as `Cost.prepare` makes them, and a mixture with one that is missing is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import planning
from ..engines import Engine, Member
from .parts import later, nothing, part_of_member

Array = Any


def partners(rows: int, batch_size: int) -> np.ndarray:
    """(rows,) int: the place of each row's partner; the last mini-batch may be short."""
    found = np.arange(1, rows + 1)
    found[batch_size - 1 :: batch_size] -= batch_size
    if rest := rows % batch_size:
        found[-1] -= rest
    return found


def shares_of_rows(shares: np.ndarray, rows: int, batch_size: int) -> np.ndarray:
    """(rows,): λ of every row's mini-batch."""
    return np.repeat(shares, batch_size)[:rows]


def mixed(values: np.ndarray, shares: np.ndarray, batch_size: int) -> np.ndarray:
    """Mixtures of values (rows, …), which are in the order the rows are taken."""
    rows = len(values)
    own = shares_of_rows(shares, rows, batch_size).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(own * values + (1.0 - own) * values[partners(rows, batch_size)])


class MixedPart(NamedTuple):
    """Steps `first` to `last` of a member's epoch."""

    number: int
    first: int
    last: int
    member: Member


class MixingEngine:
    """An engine, before which rows are mixed for members that have `Member.mixup`.

    They are mixed where the engine reads them, for as many steps at a time as a buffer has room,
    and the engine trains on the buffer: to the bits of rows that had been mixed before.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        #: Mixed rows, and their targets: as long as they have room the same arrays, for an engine
        #: binds its own to what it reads.
        self._X: Array = None
        self._Y: Array = None

    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = nothing,
    ) -> np.ndarray:
        """As `Engine.run_epoch`."""
        if member.mixup is None:
            return self.engine.run_epoch(member, X, Y, on_step, meanwhile)
        costs = []
        for (part,) in self._parts([member], X, Y):
            after = None if on_step is None else later(on_step, part.first)
            then = meanwhile if part.last == len(member.mixup) else nothing
            costs.append(self.engine.run_epoch(part.member, self._X, self._Y, after, then))
        return np.concatenate(costs)

    def run_members(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        on_member: Callable[[int], None] = lambda i: None,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[np.ndarray]:
        """As `Engine.run_members`."""
        costs: list[list[np.ndarray]] = [[] for _ in members]

        def run(parts: Sequence[MixedPart], X: Array, Y: Array) -> None:
            def on_part(k: int) -> None:
                if parts[k].last == _steps(members[parts[k].number]):
                    on_member(parts[k].number)

            found = self.engine.run_members(
                [part.member for part in parts], X, Y, on_part, meanwhile
            )
            for part, of_part in zip(parts, found, strict=True):
                costs[part.number].append(of_part)

        plain = [
            MixedPart(i, 0, _steps(member), member)
            for i, member in enumerate(members)
            if member.mixup is None
        ]
        if plain:
            run(plain, X, Y)
        for parts in self._parts(members, X, Y):
            run(parts, self._X, self._Y)
        return [np.concatenate(each) for each in costs]

    def _parts(self, members: Sequence[Member], X: Array, Y: Array) -> Iterator[list[MixedPart]]:
        """Steps of the members that mix, each time when the buffer has their rows.

        Those at the head of the queue come first, as many as there is room for.
        """
        queue = [(i, 0) for i, member in enumerate(members) if member.mixup is not None]
        if not queue:
            return
        sizes = [min(member.hyperparameters.batch_size, len(member.order)) for member in members]
        room = self._make_room(
            X.shape[1], Y.shape[1], max(sizes[i] for i, _ in queue),
            sum(len(members[i].order) for i, _ in queue),
        )  # fmt: skip
        while queue:
            taken, of_a_step = 0, 0
            while taken < len(queue) and of_a_step + sizes[queue[taken][0]] <= room:
                of_a_step += sizes[queue[taken][0]]
                taken += 1
            parts = []
            for i, first in queue[:taken]:
                last = min(first + room // of_a_step, _steps(members[i]))
                parts.append(MixedPart(i, first, last, part_of_member(members[i], first, last)))
            yield self._mix(parts, X, Y)
            unfinished = [(i, last) for i, _, last, _ in parts if last < _steps(members[i])]
            queue = unfinished + queue[taken:]

    def _make_room(self, inputs: int, outputs: int, least: int, most: int) -> int:
        """For how many rows there is a buffer: at least those of a step, at most all."""
        backend = self.engine.backend
        device = getattr(backend, "device", None)
        wanted = planning.rows_mixed_at_once(
            (inputs + outputs) * backend.dtype.itemsize, device is not None
        )
        room = min(max(wanted, least), most)
        if self._X is None or len(self._X) < room:
            self._X, self._Y = backend.empty((room, inputs)), backend.empty((room, outputs))
        return room

    def _mix(self, parts: Sequence[MixedPart], X: Array, Y: Array) -> list[MixedPart]:
        """Fill the buffer: parts whose orders are of its rows."""
        orders = [part.member.order for part in parts]
        sizes = [part.member.hyperparameters.batch_size for part in parts]
        of_partners, shares = [], []
        for part, order, m in zip(parts, orders, sizes, strict=True):
            assert part.member.mixup is not None
            of_partners.append(order[partners(len(order), m)])
            shares.append(shares_of_rows(part.member.mixup, len(order), m))
        rows, others = np.concatenate(orders), np.concatenate(of_partners)
        self.engine.backend.mix(X, Y, rows, others, np.concatenate(shares), self._X, self._Y)
        ends = np.cumsum([len(order) for order in orders])
        return [
            part._replace(
                member=replace(
                    part.member, mixup=None, order=np.arange(end - len(part.member.order), end)
                )
            )
            for part, end in zip(parts, ends, strict=True)
        ]


def _steps(member: Member) -> int:
    return len(member.hyperparameters.coefficients)
