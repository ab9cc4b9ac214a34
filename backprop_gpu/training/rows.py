"""Where a session's rows are: all of them with the engine, or a part at a time from a `Source`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import validation
from ..communicators import Communicator
from ..engines import Engine, Member
from ..engines.reduction import own_positions
from ..model import Model
from .mixing import MixingEngine, partners
from .parts import from_step, later, nothing, part_of_member
from .settings import Data, StoredData

Array = Any
OnStep = Callable[[int], None] | None


class Rows:
    """Rows that an engine trains on."""

    engine: Engine

    def __len__(self) -> int:
        raise NotImplementedError

    def run_epoch(
        self,
        member: Member,
        on_step: OnStep,
        meanwhile: Callable[[], None],
        first: int = 0,
        piece: int = 0,
    ) -> Iterator[np.ndarray]:
        """An epoch from step `first` on, in pieces: the mean costs of each piece's steps.

        Between two pieces all that the member has is as between two steps. Unless `piece` is 0, one
        ends after every so many steps of the epoch, wherever else one may.
        """
        raise NotImplementedError

    def run_members(
        self,
        members: Sequence[Member],
        on_member: Callable[[int], None],
        meanwhile: Callable[[], None],
    ) -> list[np.ndarray]:
        """An epoch of each, as an engine does."""
        raise ValueError("these rows train one network")


class RowsAtOnce(Rows):
    """All rows, where the engine reads them.

    Parameters
    ----------
    engine : Engine
    X, Y : (n, n_0), (n, n_L) arrays on the host
    in_pieces : bool
        Whether somebody looks within an epoch, and about every second is soon enough.
    mixups : sequence of float
        `Settings.mixup` of all who train on them. Where some mix and others do not, an X of uint8
        becomes numbers: the plan is for these, which mixtures are.
    """

    #: Seconds of a piece.
    _PIECE = 1.0

    def __init__(
        self,
        engine: Engine,
        X: Any,
        Y: np.ndarray,
        in_pieces: bool = False,
        mixups: Sequence[float] = (),
    ) -> None:
        self.engine, self.trains, self.in_pieces = engine, MixingEngine(engine), in_pieces
        if any(mixups) and not all(mixups):
            X = X.astype(engine.backend.dtype, copy=False)
        self.X, self.Y = engine.put(X, Y)
        #: Steps of a piece, doubled until it takes its time: few lengths are few sets of buffers.
        self._steps = 1

    def __len__(self) -> int:
        return len(self.Y)

    def run_epoch(
        self,
        member: Member,
        on_step: OnStep,
        meanwhile: Callable[[], None],
        first: int = 0,
        piece: int = 0,
    ) -> Iterator[np.ndarray]:
        """As `Rows` says."""
        steps = len(member.hyperparameters.coefficients)
        while first < steps:
            length = piece - first % piece if piece else self._steps if self.in_pieces else steps
            last = min(first + length, steps)
            begin = time.perf_counter()
            part = part_of_member(member, first, last)
            after = None if on_step is None else later(on_step, first)
            yield self.trains.run_epoch(
                part, self.X, self.Y, after, meanwhile if last == steps else nothing
            )
            if last - first == self._steps and time.perf_counter() - begin < self._PIECE / 2:
                self._steps *= 2
            first = last

    def run_members(
        self,
        members: Sequence[Member],
        on_member: Callable[[int], None],
        meanwhile: Callable[[], None],
    ) -> list[np.ndarray]:
        """As an engine does."""
        return self.trains.run_members(members, self.X, self.Y, on_member, meanwhile)


class ReadRows(NamedTuple):
    """Rows that were read, and the order in which steps take them."""

    X: np.ndarray
    Y: np.ndarray
    order: np.ndarray


class RowsInPieces(Rows):
    """Rows of sources, or of a sparse X: a thread reads the next while one network trains on these.

    Parameters
    ----------
    engine : Engine
    model : Model
    data : StoredData or Data
    rows : int
        Of a piece: of the order that `Settings.draw_order` has shuffled.
    communicator : Communicator
        Of whose ranks each reads its own rows.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        data: Data | StoredData,
        rows: int,
        communicator: Communicator,
    ) -> None:
        self.engine, self.model, self.data, self.rows = engine, model, data, rows
        self.communicator, self.trains = communicator, MixingEngine(engine)

    def __len__(self) -> int:
        return len(self.data.X)

    def run_epoch(
        self,
        member: Member,
        on_step: OnStep,
        meanwhile: Callable[[], None],
        first: int = 0,
        piece: int = 0,
    ) -> Iterator[np.ndarray]:
        """As `Rows` says; a buffer of rows ends a piece, too."""
        m, n = member.hyperparameters.batch_size, len(member.order)
        inner = range((first * m // self.rows + 1) * self.rows, n, self.rows)
        edges = [first * m, *inner, n]
        with ThreadPoolExecutor(1, "backprop_gpu-reading") as thread:

            def start(begin: int, end: int) -> Future[ReadRows]:
                mixes = member.mixup is not None
                return thread.submit(self._read, member.order[begin:end], m, mixes)

            coming = start(*edges[:2])
            for i, (begin, end) in enumerate(pairwise(edges)):
                read = coming.result()
                if end < n:
                    coming = start(end, edges[i + 2])
                X, Y = self.engine.put(read.X, read.Y)
                last = -(-end // m)
                for a, b in pairwise(_edges(begin // m, last, piece)):
                    order = read.order[a * m - begin : b * m - begin]
                    part = part_of_member(member, a, b, order)
                    after = None if on_step is None else later(on_step, a)
                    then = meanwhile if end == n and b == last else nothing
                    yield self.trains.run_epoch(part, X, Y, after, then)

    def _read(self, order: np.ndarray, m: int, mixes: bool) -> ReadRows:
        """The rows of this rank that the order has, each once, checked as those in memory are."""
        own = own_positions(len(order), m, self.communicator, self.engine.plan.shards)
        if mixes:
            own[partners(len(order), m)[own]] = True
        rows, places = np.unique(order[own], return_inverse=True)
        local = np.zeros(len(order), np.intp)  # of other ranks' rows nobody asks
        local[own] = places
        return ReadRows(*self.data.read(self.model, rows), local)


class RowsOfBatches(Rows):
    """Chunks of rows as they come, the next of which a thread fetches meanwhile.

    Parameters
    ----------
    engine : Engine
    model : Model
    batches : iterable of (X, Y)
        An epoch goes through it once.
    settle : callable
        (order, coefficients, mixup) of the steps of a chunk of so many rows.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        batches: Iterable[Any],
        settle: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    ) -> None:
        self.engine, self.model, self.batches, self.settle = engine, model, batches, settle
        self.trains = MixingEngine(engine)

    def __len__(self) -> int:
        return 0  # nobody knows

    def run_epoch(
        self,
        member: Member,
        on_step: OnStep,
        meanwhile: Callable[[], None],
        first: int = 0,
        piece: int = 0,
    ) -> Iterator[np.ndarray]:
        """As `Rows` says; a chunk, whose last mini-batch may be short, ends a piece, too."""
        with ThreadPoolExecutor(1, "backprop_gpu-reading") as thread:
            chunks = thread.submit(iter, self.batches).result()
            coming = thread.submit(self._next, chunks, 0)
            number = 0
            while (chunk := coming.result()) is not None:
                number += 1
                coming = thread.submit(self._next, chunks, number)
                order, coefficients, mixup = self.settle(len(chunk[1]))
                settings = replace(member.hyperparameters, coefficients=coefficients)
                draws = from_step(member.draws, first)
                of_chunk = replace(
                    member, order=order, hyperparameters=settings, draws=draws, mixup=mixup
                )
                X, Y = self.engine.put(*chunk)
                for a, b in pairwise(_edges(first, first + len(coefficients), piece)):
                    part = part_of_member(of_chunk, a - first, b - first)
                    after = None if on_step is None else later(on_step, a)
                    yield self.trains.run_epoch(part, X, Y, after, meanwhile)
                first += len(coefficients)
        if number == 0:
            raise ValueError("batches gave nothing to train on")

    def _next(self, chunks: Iterator[Any], number: int) -> tuple[np.ndarray, np.ndarray] | None:
        chunk = next(chunks, None)
        if chunk is None:
            return None
        with validation.within(f"batches, chunk {number}"):
            if not isinstance(chunk, (tuple, list)) or len(chunk) != 2:
                raise TypeError(f"expected a pair (X, Y), got a {type(chunk).__name__}")
            return self.model.check_data(*chunk)


def _edges(first: int, last: int, piece: int) -> list[int]:
    """Where the pieces of these steps begin, and the last ends."""
    inner = range((first // piece + 1) * piece, last, piece) if piece else ()
    return [first, *inner, last]
