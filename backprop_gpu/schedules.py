"""Learning-rate schedules: η as a function of the time t, in epochs.

A schedule is any callable that takes an array of times and returns an array of
rates; t is fractional inside an epoch and counts from 0 at the start of `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import arrays, validation

Schedule = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ExponentialDecay:
    """Exponential decay, η(t) = initial · decay^t.

    Parameters
    ----------
    initial : float
        Rate at t = 0, >= 0.
    decay : float
        Factor an epoch, >= 0.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu.schedules import ExponentialDecay
    >>> ExponentialDecay(1.0, 0.5)(np.array([0.0, 1.0, 2.0]))
    array([1.  , 0.5 , 0.25])
    """

    initial: float
    decay: float

    def __post_init__(self) -> None:
        _check(self, initial="[0, inf)", decay="[0, inf)")

    def __call__(self, t: np.ndarray) -> np.ndarray:
        rates: np.ndarray = self.initial * np.power(self.decay, t)
        return rates


@dataclass(frozen=True)
class StepDecay:
    """Decay in steps, η(t) = initial · factor^⌊t / every⌋.

    Parameters
    ----------
    initial : float
        Rate at t = 0, >= 0.
    every : float
        Epochs between two steps, > 0.
    factor : float, default 0.5
        What each step multiplies by, >= 0.
    """

    initial: float
    every: float
    factor: float = 0.5

    def __post_init__(self) -> None:
        _check(self, initial="[0, inf)", every="(0, inf)", factor="[0, inf)")

    def __call__(self, t: np.ndarray) -> np.ndarray:
        return self.initial * np.power(self.factor, np.floor(t / self.every))


@dataclass(frozen=True)
class CosineDecay:
    """Half a cosine, from `initial` to `final` over `epochs` (Loshchilov & Hutter 2017, eq. 5).

    The rate stays `final` from then on; there are no restarts.

    Parameters
    ----------
    initial : float
        Rate at t = 0, >= 0.
    epochs : float
        Epochs until the end of the decay, > 0.
    final : float, default 0
        Rate from then on, >= 0.
    """

    initial: float
    epochs: float
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self, initial="[0, inf)", epochs="(0, inf)", final="[0, inf)")

    def __call__(self, t: np.ndarray) -> np.ndarray:
        phase = math.pi * np.minimum(t / self.epochs, 1.0)
        return self.final + 0.5 * (self.initial - self.final) * (1.0 + np.cos(phase))


@dataclass(frozen=True)
class Warmup:
    """A straight rise from 0 over the first `epochs`, times the schedule or rate that follows.

    Parameters
    ----------
    epochs : float
        Epochs of the rise, > 0.
    then : float or callable
        The rate, or the schedule, whose time counts from the start of the rise, too.
    """

    epochs: float
    then: float | Schedule

    def __post_init__(self) -> None:
        _check(self, epochs="(0, inf)")
        if not callable(self.then):
            validation.number("then", self.then, "[0, inf)", "a number or a schedule")

    def __call__(self, t: np.ndarray) -> np.ndarray:
        rates: np.ndarray = np.minimum(t / self.epochs, 1.0) * evaluate(self.then, t)
        return rates


def _check(schedule: Any, **spans: str) -> None:
    for name, span in spans.items():
        validation.number(name, getattr(schedule, name), span)


def evaluate(learning_rate: float | Schedule, t: np.ndarray) -> np.ndarray:
    """Compute the rates at times t, and check them.

    Parameters
    ----------
    learning_rate : float or callable
        A rate, or a schedule.
    t : array
        Times, in epochs since the start of `fit`.

    Returns
    -------
    float64 array
        Rates, of t's shape.

    Raises
    ------
    TypeError
        If a rate is no real number.
    ValueError
        If a rate is negative, NaN or infinite, or a schedule changes the shape.
    """
    if not callable(learning_rate):
        rate = validation.number(
            "learning_rate", learning_rate, "[0, inf)", "a number or a callable"
        )
        return np.full(t.shape, rate)
    given = arrays.to_numpy("what learning_rate returns", learning_rate(t))
    if given.dtype.kind not in "iuf":
        raise TypeError(f"learning_rate must return real numbers, got dtype {given.dtype}")
    rates = np.asarray(given, dtype=np.float64)
    if rates.shape == ():
        rates = np.full(t.shape, float(rates))
    if rates.shape != t.shape:
        raise ValueError(
            f"learning_rate must return one rate a time: expected shape {t.shape}, "
            f"got {rates.shape}"
        )
    bad = ~(np.isfinite(rates) & (rates >= 0.0))
    if bad.any():
        where = float(t[bad][0])
        raise ValueError(
            f"learning_rate must be finite and >= 0, got {float(rates[bad][0])} at t = {where:g}"
        )
    return rates
