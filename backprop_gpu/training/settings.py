"""Data and hyperparameters of a training run, checked before anything changes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .. import optimizers, schedules, validation
from ..model import Model


@dataclass(frozen=True, eq=False)
class Data:
    """Checked rows on the host: (n, n_0) and (n, n_L), and perhaps the same for validation.

    All are of the networks' dtype, but for an X that was given as uint8, which it stays.
    """

    _SAMPLED: ClassVar[int] = 256

    X: np.ndarray
    Y: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None

    @property
    def bytes(self) -> bool:
        """Whether X is of uint8."""
        return self.X.dtype == np.uint8

    @cached_property
    def fingerprint(self) -> str:
        """Of some of the rows: enough to notice other data, or another order of them."""
        n = len(self.X)
        rows = np.linspace(0, n - 1, min(n, self._SAMPLED)).astype(np.intp)
        crc = 0
        for array in (self.X, self.Y):
            crc = zlib.crc32(np.ascontiguousarray(array[rows]).tobytes(), crc)
        return f"{crc:08x}"


@dataclass(frozen=True, eq=False)
class Settings:
    """The checked hyperparameters of one network."""

    rows: int
    epochs: int
    batch_size: int
    optimizer: optimizers.Optimizer
    rates: LearningRates


def check_data(model: Model, X: Any, Y: Any, validation_data: Any) -> Data:
    """The rows to train on, and those to validate with, if they fit the model.

    Raises
    ------
    ValueError, TypeError
    """
    X, Y = model.check_data(X, Y, bytes_stay=True)
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise TypeError("validation_data must be a pair (X, Y)")
        X_val, Y_val = validation_data
        validation_data = model.check_data(X_val, Y_val, ("validation X", "validation Y"))
    return Data(X, Y, validation_data)


def check_settings(
    rows: int,
    epochs: Any,
    batch_size: Any,
    learning_rate: Any,
    optimizer: Any,
    checked: dict[tuple[int, int, int], Any] | None = None,
    place: str = "",
) -> Settings:
    """The hyperparameters of one network, if they fit.

    Parameters
    ----------
    checked : dict, optional
        Remembers schedules that were tried.
    place : str
        Names the rate of one of many.

    Raises
    ------
    ValueError, TypeError
    """
    epochs = validation.integer("epochs", epochs, 1)
    batch_size = validation.integer("batch_size", batch_size, 1, rows)
    optimizer = optimizers.get(optimizer)
    rates = LearningRates(learning_rate, -(-rows // batch_size), place)
    checked = {} if checked is None else checked
    key = id(learning_rate), epochs, batch_size
    if rates.constant or key not in checked:
        rates.check(epochs)
        checked[key] = learning_rate  # which keeps its id from being given away
    return Settings(rows, epochs, batch_size, optimizer, rates)


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
