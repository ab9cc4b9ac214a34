"""Data and hyperparameters of a training run, checked before anything changes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import optimizers, schedules, validation
from ..arrays import SparseMatrix, is_sparse
from ..model import Model
from ..sources import Source, is_stored, source
from .weights import row_weights


@dataclass(frozen=True, eq=False)
class Data:
    """Checked rows on the host: (n, n_0) and (n, n_L), and perhaps the same for validation.

    All are of the networks' dtype, but for an X that was given as uint8, which it stays. An X may
    be a `SparseMatrix` where the caller of `check_data` can do with one.
    """

    X: Any
    Y: np.ndarray
    validation: tuple[Any, np.ndarray] | None
    #: Of the rows to train on, float64; None where all are 1.
    weights: np.ndarray | None = None

    @property
    def bytes(self) -> bool:
        """Whether X is of uint8."""
        return bool(self.X.dtype == np.uint8)

    @property
    def density(self) -> float | None:
        """Of a sparse X."""
        return self.X.density if isinstance(self.X, SparseMatrix) else None

    def read(self, model: Model, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(X, Y) of some rows, dense."""
        return self.X[rows], self.Y[rows]

    @cached_property
    def fingerprint(self) -> str:
        """Of some of the rows: enough to notice other data, or another order of them."""
        rows = sampled(len(self.X))
        arrays = (self.X, self.Y) if self.weights is None else (self.X, self.Y, self.weights)
        return checksum(*(array[rows] for array in arrays))


@dataclass(frozen=True, eq=False)
class StoredData:
    """As `Data`, of rows that are read, and checked, when they are needed."""

    X: Source
    Y: Source
    validation: tuple[np.ndarray, np.ndarray] | None
    fingerprint: str
    weights: np.ndarray | None = None
    density = None

    @property
    def bytes(self) -> bool:
        return bool(self.X.dtype == np.uint8)

    def in_memory(self, model: Model) -> Data:
        """All rows."""
        return Data(*self.read(model, np.arange(len(self.X))), self.validation, self.weights)

    def read(self, model: Model, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(X, Y) of rows whose numbers ascend, as `Data` has them.

        Raises
        ------
        ValueError, TypeError
            For numbers that do not fit the model, naming the rows.
        """
        if len(rows) == 0:
            rows = np.zeros(1, np.intp)  # of an order that has nothing for this rank
        with validation.within(f"rows {rows[0]} to {rows[-1]}"):
            return model.check_data(self.X.read(rows), self.Y.read(rows), bytes_stay=True)


def rows_of(size: int, data: Data | StoredData, model: Model) -> int:
    """How many rows, dense, take so many bytes in memory."""
    itemsize = 1 if data.bytes else model.dtype.itemsize
    return size // (itemsize * model.sizes[0] + model.dtype.itemsize * model.sizes[-1])


def sampled(n: int) -> np.ndarray:
    """Some of n rows, from the first to the last."""
    return np.linspace(0, n - 1, min(n, 256)).astype(np.intp)


def checksum(*arrays: np.ndarray) -> str:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return f"{crc:08x}"


@dataclass(frozen=True, eq=False)
class Settings:
    """The checked hyperparameters of one network."""

    rows: int
    epochs: int
    batch_size: int
    optimizer: optimizers.Optimizer
    rates: LearningRates
    #: Rows that are shuffled among themselves: all, or so many whole mini-batches at a time.
    buffer: int
    #: (rows,) the numbers of the rows that it trains on, which may repeat; all where it is None.
    numbers: np.ndarray | None = None
    #: The share of layers 1 … L-1 that each step leaves out; () for none.
    dropout: tuple[float, ...] = ()
    #: α of λ ~ Beta(α, α), the share of a row in a mixture of two; 0 for none.
    mixup: float = 0.0

    def draw_mixup(self, generator: np.random.Generator, steps: int) -> np.ndarray | None:
        """λ of each of so many mini-batches; without any nothing is drawn."""
        return generator.beta(self.mixup, self.mixup, steps) if self.mixup else None

    @property
    def has_draws(self) -> bool:
        """Whether its steps draw: dropout, or noise."""
        return bool(self.dropout) or self.optimizer.gradient_noise > 0

    def draw_key(self, generator: np.random.Generator) -> int:
        """What an epoch's steps draw from; where they do not nothing is drawn."""
        return int(generator.integers(2**64, dtype=np.uint64)) if self.has_draws else 0

    def draw_order(self, generator: np.random.Generator) -> np.ndarray:
        """The order in which an epoch takes the rows, (rows,).

        In buffers that have not all rows, a buffer has blocks of rows that follow each other,
        `BLOCKS` if it begins and ends with one, from anywhere.
        """
        if self.buffer >= self.rows:
            order = generator.permutation(self.rows)
            return order if self.numbers is None else self.numbers[order]
        block = max(1, self.buffer // BLOCKS)
        firsts = generator.permutation(-(-self.rows // block)) * block
        order = (firsts[:, None] + np.arange(block)).ravel()
        order = order[order < self.rows]  # the last block may be shorter
        for begin in range(0, self.rows, self.buffer):
            generator.shuffle(order[begin : begin + self.buffer])
        return order


#: Blocks of rows in a buffer.
BLOCKS = 16
#: Bytes of a buffer's rows, where nothing else is asked for.
BUFFER_BYTES = 1 << 28


def check_data(
    model: Model,
    X: Any,
    Y: Any,
    validation_data: Any,
    sample_weight: Any = None,
    class_weight: Any = None,
    sparse_stays: bool = False,
) -> Data:
    """The rows to train on, and those to validate with, if they fit the model; all in memory.

    A sparse X becomes dense, unless `sparse_stays`.

    Raises
    ------
    ValueError, TypeError
    """
    X, Y = _in_memory("X", X), _in_memory("Y", Y, model.cost.builtin)
    X, Y = model.check_data(X, Y, bytes_stay=True, sparse_stays=sparse_stays)
    weights = row_weights(sample_weight, class_weight, Y, len(X))
    return Data(X, Y, check_validation(model, validation_data, sparse_stays), weights)


def check_rows(
    model: Model,
    X: Any,
    Y: Any,
    validation_data: Any,
    sample_weight: Any = None,
    class_weight: Any = None,
) -> Data | StoredData:
    """The same, but that rows on a disk stay there, but for those to validate with.

    And what is sparse stays so.
    """
    if is_sparse(X) or not (is_stored(X) or is_stored(Y)):
        return check_data(model, X, Y, validation_data, sample_weight, class_weight, True)
    sources = source("X", X), source("Y", Y, missing=model.cost.builtin)
    fingerprint = _check_sources(model, *sources)
    weights = row_weights(sample_weight, class_weight, None, len(sources[0]))
    if weights is not None:
        fingerprint += checksum(weights)
    checked = check_validation(model, validation_data, sparse_stays=True)
    return StoredData(*sources, checked, fingerprint, weights)


def check_validation(
    model: Model, validation_data: Any, sparse_stays: bool = False
) -> tuple[Any, np.ndarray] | None:
    if validation_data is None:
        return None
    if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
        raise TypeError("validation_data must be a pair (X, Y)")
    names = "validation X", "validation Y"
    X, Y = validation_data
    X, Y = _in_memory(names[0], X), _in_memory(names[1], Y, model.cost.builtin)
    return model.check_data(X, Y, names, sparse_stays=sparse_stays)


def _in_memory(name: str, value: Any, missing: bool = False) -> Any:
    """All rows of what is stored elsewhere; an array, and a memory map, as it is."""
    if isinstance(value, np.memmap) or not is_stored(value):
        return value
    rows = source(name, value, missing)
    return rows.read(np.arange(len(rows)))


def _check_sources(model: Model, X: Source, Y: Source) -> str:
    """See that rows of these can be trained on; what `Data` calls their fingerprint."""
    if len(X.shape) != 2 or X.shape[1] != model.sizes[0]:
        raise ValueError(f"X must be (n, {model.sizes[0]}), got shape {X.shape}")
    if len(Y) != len(X):
        raise ValueError(f"Y has {len(Y)} rows, and X {len(X)}")
    if len(X) == 0:
        raise ValueError("X has no rows")
    rows = sampled(len(X))
    return checksum(*model.check_data(X.read(rows), Y.read(rows), bytes_stay=True))


def check_settings(
    rows: int,
    epochs: Any,
    batch_size: Any,
    learning_rate: Any,
    optimizer: Any,
    checked: dict[tuple[int, int, int], Any] | None = None,
    place: str = "",
    buffer_rows: Any = None,
    numbers: np.ndarray | None = None,
    dropout: tuple[float, ...] = (),
    mixup: float = 0.0,
) -> Settings:
    """The hyperparameters of one network, if they fit.

    Parameters
    ----------
    checked : dict, optional
        Remembers schedules that were tried.
    place : str
        Names the rate of one of many.
    buffer_rows : int, optional
        `Settings.buffer`, but for being a multiple of batch_size.
    numbers : (rows,) int array, optional
        `Settings.numbers`, checked; never with `buffer_rows`.
    dropout : tuple of float
        `validation.dropout` of what was given.
    mixup : float
        `validation.mixup` of what was given.

    Raises
    ------
    ValueError, TypeError
    """
    epochs = validation.integer("epochs", epochs, 1)
    batch_size = validation.integer("batch_size", batch_size, 1, rows)
    optimizer = optimizers.get(optimizer)
    rates = LearningRates(learning_rate, -(-rows // batch_size), place)
    checked = {} if checked is None else checked
    key = id(learning_rate), epochs, rates.steps
    if rates.constant or key not in checked:
        rates.check(epochs)
        checked[key] = learning_rate  # which keeps its id from being given away
    buffer = rows
    if buffer_rows is not None:
        wanted = validation.integer("buffer_rows", buffer_rows, batch_size)
        buffer = rows if wanted >= rows else wanted // batch_size * batch_size
    return Settings(rows, epochs, batch_size, optimizer, rates, buffer, numbers, dropout, mixup)


class LearningRates:
    """η at every step, an epoch at a time: those of all epochs could fill the memory."""

    #: At most so many epochs are tried before the first: a million of them would take minutes.
    TRIED = 16

    def __init__(
        self, learning_rate: float | schedules.Schedule, steps: int, place: str = ""
    ) -> None:
        self.constant = not callable(learning_rate)
        self.learning_rate = (
            ExplainedSchedule(learning_rate) if callable(learning_rate) else learning_rate
        )
        self.steps, self.place = steps, place

    def check(self, epochs: int) -> None:
        """Try the first epoch, the last and some between."""
        last = 0 if self.constant else epochs - 1
        for epoch in sorted({last * i // (self.TRIED - 1) for i in range(self.TRIED)}):
            self.of(epoch)

    def of(self, epoch: int) -> np.ndarray:
        times = (epoch * self.steps + np.arange(self.steps, dtype=np.float64)) / self.steps
        return schedules.evaluate(self.learning_rate, times)

    def now(self, epoch: int) -> np.ndarray:
        """As `of`, in the midst of training."""
        with validation.within(f"{self.place}{', ' if self.place else ''}epoch {epoch + 1}"):
            return self.of(epoch)


class ExplainedSchedule:
    """The schedule, whose errors say how it is called."""

    def __init__(self, schedule: schedules.Schedule) -> None:
        self.schedule = schedule

    def __call__(self, t: np.ndarray) -> np.ndarray:
        try:
            return self.schedule(t)
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"learning_rate failed: {type(error).__name__}: {error}. It is called with an "
                "array of times: write np.where(t < 5, 0.1, 0.01) for 0.1 if t < 5 else 0.01"
            ) from error
