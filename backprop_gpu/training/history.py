"""What a training run has seen."""

from __future__ import annotations

from dataclasses import dataclass, field

from .time_spent import TimeSpent


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
