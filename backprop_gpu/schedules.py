"""Learning-rate schedules: η as a function of the time t, in epochs.

A schedule is any callable that takes an array of times and returns an array of
rates; t is fractional inside an epoch and counts from 0 at the start of `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Schedule = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ExponentialDecay:
    """η(t) = initial · decay^t."""

    initial: float
    decay: float

    def __call__(self, t: np.ndarray) -> np.ndarray:
        return self.initial * np.power(self.decay, t)


@dataclass(frozen=True)
class StepDecay:
    """η(t) = initial · factor^⌊t / every⌋."""

    initial: float
    every: float
    factor: float = 0.5

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise ValueError(f"every must be > 0 epochs, got {self.every!r}")

    def __call__(self, t: np.ndarray) -> np.ndarray:
        return self.initial * np.power(self.factor, np.floor(t / self.every))


@dataclass(frozen=True)
class CosineDecay:
    """From initial to final over `epochs` along half a cosine (Loshchilov & Hutter 2017)."""

    initial: float
    epochs: float
    final: float = 0.0

    def __post_init__(self) -> None:
        if not self.epochs > 0:
            raise ValueError(f"epochs must be > 0, got {self.epochs!r}")

    def __call__(self, t: np.ndarray) -> np.ndarray:
        phase = math.pi * np.minimum(t / self.epochs, 1.0)
        return self.final + 0.5 * (self.initial - self.final) * (1.0 + np.cos(phase))


@dataclass(frozen=True)
class Warmup:
    """A straight rise from 0 over the first `epochs`, times the schedule or rate that follows."""

    epochs: float
    then: float | Schedule

    def __post_init__(self) -> None:
        if not self.epochs > 0:
            raise ValueError(f"epochs must be > 0, got {self.epochs!r}")

    def __call__(self, t: np.ndarray) -> np.ndarray:
        return np.minimum(t / self.epochs, 1.0) * evaluate(self.then, t)


def evaluate(learning_rate: float | Schedule, t: np.ndarray) -> np.ndarray:
    """The rates at times t, checked.

    Raises
    ------
    ValueError
        If a rate is negative, NaN or infinite, or a schedule changes the shape.
    """
    if callable(learning_rate):
        rates = np.asarray(learning_rate(t), dtype=np.float64)
        if rates.shape == ():
            rates = np.full(t.shape, float(rates))
        if rates.shape != t.shape:
            raise ValueError(
                f"learning_rate must return one rate a time: expected shape {t.shape}, "
                f"got {rates.shape}"
            )
    elif isinstance(learning_rate, bool) or not isinstance(
        learning_rate, (int, float, np.floating, np.integer)
    ):
        raise TypeError(f"learning_rate must be a number or a callable, got {learning_rate!r}")
    else:
        rates = np.full(t.shape, float(learning_rate))
    bad = ~(np.isfinite(rates) & (rates >= 0.0))
    if bad.any():
        where = float(t[bad][0])
        raise ValueError(
            f"learning_rate must be finite and >= 0, got {float(rates[bad][0])} at epoch {where:g}"
        )
    return rates
