"""Where the time of a training goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class TimeSpent:
    """Seconds of a training since it began, by what they went into; ``str`` is meant to be read.

    Attributes
    ----------
    data : float
        Checks, conversion, the plan, and what is set up by it.
    orders : float
        What each epoch needs besides: the order of the rows, rates, coefficients.
    engine : float
        Gradient descent.
    validation : float
        The validation data, or held-out rows.
    callbacks : float
        Users' functions, and the history.
    """

    data: float = 0.0
    orders: float = 0.0
    engine: float = 0.0
    validation: float = 0.0
    callbacks: float = 0.0
    _last: float = field(default_factory=time.perf_counter, repr=False, compare=False)

    def add(self, part: str) -> None:
        """Count the time since the last call, or the beginning, as a part's."""
        now = time.perf_counter()
        setattr(self, part, getattr(self, part) + now - self._last)
        self._last = now

    @property
    def total(self) -> float:
        return self.data + self.orders + self.engine + self.validation + self.callbacks

    def __str__(self) -> str:
        total = self.total
        parts = ("engine", "orders", "data", "validation", "callbacks")
        shares = ", ".join(
            f"{part} {getattr(self, part) / total:.0%}"
            for part in parts
            if total and getattr(self, part) / total >= 0.005
        )
        return f"{total:.3g} s: {shares}" if shares else "no time"
