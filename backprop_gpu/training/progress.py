"""The bar that a training run shows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import validation
from ..imports import uninterrupted
from .history import History


class Progress:
    """Hears how far a session is; shows nothing."""

    def member_is_over(self) -> None:
        """A member's epoch is over."""

    def epoch_is_over(self, ran: Sequence[Any]) -> None:
        """An epoch of all members is over: the courses that it went well for."""

    def ended(self, course: Any, lost: int) -> None:
        """A course has ended; `lost` epochs have run that it does not count."""


class ProgressBar(Progress):
    """The bar of a training run: an epoch of one network is a step of it.

    Parameters
    ----------
    epochs : int
        Of all networks together.
    shown : bool
    members : int
        How many networks train at once.
    done : int
        Of the epochs, where a training is resumed.
    """

    def __init__(self, epochs: int, shown: bool, members: int = 1, done: int = 0) -> None:
        self._many = members > 1
        #: Of those that trained elsewhere.
        self._best = History()
        self.bar: Any = None
        if not shown:
            return
        with uninterrupted():
            if "IPython" in sys.modules:  # a notebook has a bar of its own
                from tqdm.auto import tqdm
            else:
                from tqdm import tqdm
        unit = "member epoch" if self._many else "epoch"
        self.bar = tqdm(total=epochs, unit=unit, initial=done)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def describe(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_description(text, refresh=False)

    def member_is_over(self) -> None:
        if self.bar is not None and self._many:  # its epoch ends long before the others'
            self.bar.update()

    def epoch_is_over(self, ran: Sequence[Any]) -> None:
        if self.bar is None or not ran:
            return
        history = min((course.history for course in ran), key=_last_cost)
        values = self._values(history)
        if self._many:
            values["training"] = str(len(ran))
        self.bar.set_postfix(values, refresh=False)
        if not self._many:
            self.bar.update(len(history.loss) - self.bar.n)

    def members_are_over(self, histories: Sequence[History], epochs: Sequence[int]) -> None:
        """Members that trained elsewhere are ready; each was to have so many epochs."""
        if self.bar is None:
            return
        measured = [history for history in (*histories, self._best) if history.loss]
        if measured:
            self._best = min(measured, key=_last_cost)
            self.bar.set_postfix(self._values(self._best), refresh=False)
        trained = sum(map(len, histories))
        self.bar.total -= sum(epochs) - trained
        self.bar.update(trained)

    def _values(self, history: History) -> dict[str, str]:
        """What a history has come to, as the bar shows it."""
        values = {"loss": f"{history.loss[-1]:.4f}"}
        if history.val_loss:
            values["val_loss"] = f"{history.val_loss[-1]:.4f}"
            if not np.isnan(history.val_accuracy[-1]):  # the targets are classes
                values["val_accuracy"] = f"{history.val_accuracy[-1]:.4f}"
        if self._many:
            values = {f"best {name}": value for name, value in values.items()}
        return values

    def expect(self, epochs: int) -> None:
        """So many more epochs are to come than were known of, or fewer, where it is negative."""
        if self.bar is not None and epochs:
            self.bar.total += epochs
            self.bar.refresh()

    def ended(self, course: Any, lost: int) -> None:
        left = course.settings.epochs - len(course.history) - lost
        if self.bar is not None and self._many and left:
            self.bar.total -= left
            self.bar.refresh()


def _last_cost(history: History) -> Any:
    return validation.nan_last((history.val_loss or history.loss)[-1])
