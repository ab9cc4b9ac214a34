"""Where a session's rows are: all of them with the engine, or a part at a time from a `Source`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..communicators import Communicator
from ..engines import Engine, Member
from ..engines.reduction import own_positions
from ..model import Model
from .settings import StoredData

Array = Any
OnStep = Callable[[int], None] | None


class Rows(Protocol):
    """Rows that an engine trains on."""

    engine: Engine

    def __len__(self) -> int: ...
    def run_epoch(
        self, member: Member, on_step: OnStep, meanwhile: Callable[[], None]
    ) -> np.ndarray: ...
    def run_members(
        self,
        members: Sequence[Member],
        on_member: Callable[[int], None],
        meanwhile: Callable[[], None],
    ) -> list[np.ndarray]: ...


class RowsAtOnce:
    """All rows, where the engine reads them.

    Parameters
    ----------
    engine : Engine
    X, Y : (n, n_0), (n, n_L) arrays on the host
    """

    def __init__(self, engine: Engine, X: Any, Y: np.ndarray) -> None:
        self.engine = engine
        self.X, self.Y = engine.put(X, Y)

    def __len__(self) -> int:
        return len(self.Y)

    def run_epoch(
        self, member: Member, on_step: OnStep, meanwhile: Callable[[], None]
    ) -> np.ndarray:
        """As an engine does."""
        return self.engine.run_epoch(member, self.X, self.Y, on_step, meanwhile)

    def run_members(
        self,
        members: Sequence[Member],
        on_member: Callable[[int], None],
        meanwhile: Callable[[], None],
    ) -> list[np.ndarray]:
        """As an engine does."""
        return self.engine.run_members(members, self.X, self.Y, on_member, meanwhile)


class Piece(NamedTuple):
    """Rows that were read, and the order in which steps take them."""

    X: np.ndarray
    Y: np.ndarray
    order: np.ndarray


class RowsInPieces:
    """Rows of sources: a thread reads the next while the engine trains one network on these.

    Parameters
    ----------
    engine : Engine
    model : Model
    data : StoredData
    rows : int
        Of a piece: of the order that `Settings.draw_order` has shuffled.
    communicator : Communicator
        Of whose ranks each reads its own rows.
    """

    def __init__(
        self, engine: Engine, model: Model, data: StoredData, rows: int, communicator: Communicator
    ) -> None:
        self.engine, self.model, self.data, self.rows = engine, model, data, rows
        self.communicator = communicator

    def __len__(self) -> int:
        return len(self.data.X)

    def run_epoch(
        self, member: Member, on_step: OnStep, meanwhile: Callable[[], None]
    ) -> np.ndarray:
        """An epoch, piece by piece, each of whole mini-batches: they are steps like any others."""
        m, n = member.hyperparameters.batch_size, len(member.order)
        begins = range(0, n, self.rows)
        costs = []
        with ThreadPoolExecutor(1, "backprop_gpu-reading") as thread:

            def start(begin: int) -> Future[Piece]:
                return thread.submit(self._read, member.order[begin : begin + self.rows], m)

            coming = start(0)
            for begin in begins:
                piece = coming.result()
                if begin + self.rows < n:
                    coming = start(begin + self.rows)
                X, Y = self.engine.put(piece.X, piece.Y)
                steps = slice(begin // m, -(-min(begin + self.rows, n) // m))
                settings = replace(
                    member.hyperparameters, coefficients=member.hyperparameters.coefficients[steps]
                )
                part = replace(member, order=piece.order, hyperparameters=settings)
                after = None if on_step is None else _later(on_step, steps.start)
                last = begin + self.rows >= n
                costs.append(
                    self.engine.run_epoch(part, X, Y, after, meanwhile if last else _nothing)
                )
        return np.concatenate(costs)

    def run_members(
        self,
        members: Sequence[Member],
        on_member: Callable[[int], None],
        meanwhile: Callable[[], None],
    ) -> list[np.ndarray]:
        """One after the other."""
        found = []
        for i, member in enumerate(members):
            found.append(self.run_epoch(member, None, meanwhile))
            on_member(i)
        return found

    def _read(self, order: np.ndarray, m: int) -> Piece:
        """The rows of this rank that the order has, each once, checked as those in memory are."""
        own = own_positions(len(order), m, self.communicator, self.engine.plan.shards)
        rows, places = np.unique(order[own], return_inverse=True)
        local = np.zeros(len(order), np.intp)  # of other ranks' rows nobody asks
        local[own] = places
        return Piece(*self.data.read(self.model, rows), local)


def _later(on_step: Callable[[int], None], first: int) -> Callable[[int], None]:
    return lambda number: on_step(first + number)


def _nothing() -> None:
    pass
