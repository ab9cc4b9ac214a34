"""What a training run has seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import html
from .time_spent import TimeSpent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class History:
    """What `fit` saw, one value per epoch.

    Parameters
    ----------
    loss : list of float
        Mean cost over the epoch's mini-batches, each before its update and without penalties.
    val_loss : list of float
        Cost of the validation data after the epoch; empty without such data.
    val_accuracy : list of float
        Accuracy of the validation data after the epoch; empty without such data, NaN where the
        targets are not classes.
    seconds : list of float
        Time of the epoch without validation; in a `Population`, that of all members together.
    restored : int or None
        The epoch, counted from 0, whose weights `EarlyStopping` has left in the network; None where
        they are those of the last.
    averaged : bool
        Whether an average of weights has been left in the network, of which ``loss``, ``val_loss``
        and ``val_accuracy`` say nothing: they are of the weights that were trained.
    time_spent : training.TimeSpent
        Where the time of the whole `fit` went; of a `Population`, all members'.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    restored: int | None = None
    averaged: bool = False
    time_spent: TimeSpent = field(default_factory=TimeSpent, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.loss)

    def final(self, name: str) -> float:
        """Return the value of the epoch whose weights the network has.

        Where it has an average of weights, that of the last epoch.

        Parameters
        ----------
        name : {"loss", "val_loss", "val_accuracy", "seconds"}
            Which value.

        Returns
        -------
        float
            NaN if there is none.
        """
        values = getattr(self, name)
        if not values:
            return float("nan")
        return float(values[-1 if self.restored is None else self.restored])

    def summary(self) -> str:
        """Say how long it was and what came of it, on a line.

        Returns
        -------
        str
            Such as "30 epochs: loss 0.08, val_loss 0.2".
        """
        if not self.loss:
            return "no epoch yet"
        values = ", ".join(f"{name} {self.final(name):.6g}" for name in self._held())
        kept = "" if self.restored is None else f"; of epoch {self.restored + 1}, which is kept"
        of_average = "; the network has an average of weights" if self.averaged else ""
        return f"{len(self)} epoch{'s' * (len(self) > 1)}{kept}: {values}{of_average}"

    def _held(self) -> list[str]:
        """What there are values of."""
        return [name for name in ("loss", "val_loss", "val_accuracy") if getattr(self, name)]

    def plot(self, ax: Any = None) -> Axes | np.ndarray:
        """Draw C by epoch and, where the validation data have classes, the accuracy.

        The epoch whose weights `EarlyStopping` has restored is marked.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or two of them, optional
            To draw into; by default those of a new figure. In one Axes the accuracy has a scale
            of its own at the right.

        Returns
        -------
        matplotlib.axes.Axes, or array of two
            Of C and of the accuracy, if there is one.

        Raises
        ------
        ValueError
            If there has been no epoch.
        ImportError
            If there is no matplotlib (extra ``plot``).
        """
        from .. import pictures

        return pictures.history(
            ax, self.loss, self.val_loss, self.val_accuracy, self.restored, self.averaged
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the values at the end, and those of some epochs."""
        if not self.loss:
            return html.block(f"History: {self.summary()}")
        names, kept = self._held(), len(self) if self.restored is None else self.restored + 1
        some = sorted({0, kept - 1, *range(max(0, len(self) - 10), len(self))})
        # Of an epoch that Ctrl-C has cut short there may be no validation.
        columns = [[f"{value:.6g}" for value in getattr(self, name)] for name in names]
        rows = [[i + 1, *("".join(each[i : i + 1]) for each in columns)] for i in some]
        return html.block(
            f"History: {self.summary()}",
            html.details("the last epochs", html.table(["epoch", *names], rows, len(self))),
            html.line(f"It took {self.time_spent}"),
        )
