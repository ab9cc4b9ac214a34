"""Where the time of a training goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class TimeSpent:
    """Seconds of a training since it began, by what they went into; ``str`` is meant to be read.

    Parameters
    ----------
    data : float
        Seconds of checks, conversion, the plan, and what is set up by it.
    orders : float
        Seconds of what each epoch needs besides: the order of the rows, rates, coefficients.
    engine : float
        Seconds of gradient descent.
    validation : float
        Seconds of the validation data, or held-out rows.
    callbacks : float
        Seconds of users' functions, and the history.
    """

    data: float = 0.0
    orders: float = 0.0
    engine: float = 0.0
    validation: float = 0.0
    callbacks: float = 0.0
    _last: float = field(default_factory=time.perf_counter, repr=False, compare=False)

    def add(self, part: str) -> None:
        """Count the time since the last call, or the beginning, as a part's.

        Parameters
        ----------
        part : {"data", "orders", "engine", "validation", "callbacks"}
            Whose seconds grow.
        """
        now = time.perf_counter()
        setattr(self, part, getattr(self, part) + now - self._last)
        self._last = now

    @property
    def total(self) -> float:
        """Seconds of all parts."""
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
