"""Averages of weights over a training: `ExponentialAverage` and `StochasticWeightAverage`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import validation
from .callbacks import Callback
from .history import History


class WeightAverage(Callback):
    """What averages of weights have in common: they keep one, and leave it in the network.

    It is kept in float64 on the host, (length,) like ``parameters.flat``. Of a network they use
    ``model`` and ``parameters`` alone.
    """

    leaves_weights = True

    def on_fit_start(self, network: Any) -> None:
        #: None before it begins.
        self._average: np.ndarray | None = None
        #: What it was at the end of the last whole epoch: its weights are those that remain when
        #: an epoch fails or is cut short.
        self._of_whole_epochs: np.ndarray | None = None

    def _begin(self, network: Any) -> None:
        self._average = _read(network)
        self._of_whole_epochs = self._average.copy()

    def _move(self, network: Any, share: float) -> None:
        """average ← average + share (p - average)."""
        assert self._average is not None
        step = _read(network)
        step -= self._average
        step *= share
        self._average += step

    def epoch_is_over(self, network: Any, epochs: int) -> None:
        """Take note that so many epochs have gone well.

        Parameters
        ----------
        network : Network
            The one that trains.
        epochs : int
            How many there were.
        """
        raise NotImplementedError

    def on_epoch_end(self, network: Any, history: History) -> None:
        self.epoch_is_over(network, len(history))

    def leave(self, network: Any) -> bool:
        """Leave the average in the network, if it has begun.

        Parameters
        ----------
        network : Network
            Whose parameters are overwritten.

        Returns
        -------
        bool
            Whether it had begun.
        """
        average, self._average, self._of_whole_epochs = self._of_whole_epochs, None, None
        if average is not None:
            network.model.write(average.astype(network.model.dtype), network.parameters)
        return average is not None

    def on_fit_end(self, network: Any, history: History) -> None:
        if self.leave(network):
            history.averaged = True

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "of_whole_epochs": self._of_whole_epochs}

    def on_resume(self, network: Any, state: dict[str, Any]) -> None:
        both = state.get("average"), state.get("of_whole_epochs")
        self._average = self._of_whole_epochs = None
        if any(values is not None for values in both):
            self._average, self._of_whole_epochs = (
                self._checked(values, network.model.layout.length) for values in both
            )

    def _checked(self, values: Any, length: int) -> np.ndarray:
        name = f"{type(self).__name__}'s average"
        average = validation.numbers(name, values, np.dtype(np.float64)).copy()
        if average.shape != (length,):
            raise ValueError(f"{name} must be of shape ({length},)")
        return average


class ExponentialAverage(WeightAverage):
    """Leave an exponential moving average of the weights in the network.

    Every `every` steps, and after an epoch's last, average ← average + (1 - decay^k) (p - average),
    where p are the weights and biases, and k the steps since it was done last. It begins as a copy
    of them. The network trains as it would without, to the bit; when `fit` ends, however it does,
    it is left with the average as of the last whole epoch, and ``history.averaged`` is True.
    Validation, `EarlyStopping` and the file of a `Checkpoint` have the weights that train.

    Parameters
    ----------
    decay : float in [0, 1), default 0.999
        Per step: the average is over about the last 1 / (1 - decay) steps.
    every : int, default 16
        Steps. Of 1, Python comes between any two steps, which costs much time.
    start : int, default 0
        It begins after so many epochs; where training ends before, the network keeps its weights.

    References
    ----------
    Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Tarvainen &
    Valpola 2017, "Mean teachers are better role models".
    """

    def __init__(self, decay: float = 0.999, *, every: int = 16, start: int = 0) -> None:
        self.decay = float(validation.number("decay", decay, "[0, 1)"))
        self.interval = self.every = validation.integer("every", every, 1)
        self.start = validation.integer("start", start, 0)

    def on_fit_start(self, network: Any) -> None:
        super().on_fit_start(network)
        #: Steps of this epoch that the average knows of.
        self._steps = 0
        if self.start == 0:
            self._begin(network)

    def on_batch_end(self, network: Any, batch: int) -> None:
        if self._average is not None:
            self._move(network, 1.0 - self.decay ** (batch + 1 - self._steps))
            self._steps = batch + 1

    def epoch_is_over(self, network: Any, epochs: int) -> None:
        self._steps = 0
        if self._average is not None:
            self._of_whole_epochs = self._average.copy()
        elif epochs == self.start:
            self._begin(network)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"steps": self._steps}

    def on_resume(self, network: Any, state: dict[str, Any]) -> None:
        super().on_resume(network, state)
        self._steps = validation.integer("ExponentialAverage's steps", state.get("steps"), 0)


class StochasticWeightAverage(WeightAverage):
    """Leave the mean of the weights at the ends of some epochs in the network (SWA).

    Those are the epochs start, start + every, start + 2 every, …, counted from 1. A learning rate
    that stays large over them, constant or in cycles, lets their weights differ. The network trains
    as it would without, to the bit; when `fit` ends, however it does, it is left with the mean, and
    ``history.averaged`` is True. Validation, `EarlyStopping` and the file of a `Checkpoint` have
    the weights that train.

    Parameters
    ----------
    start : int
        Epochs after which the first weights are taken, at least 1; where training ends before, the
        network keeps its weights.
    every : int, default 1
        Epochs.

    References
    ----------
    Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization".
    """

    def __init__(self, start: int, *, every: int = 1) -> None:
        self.start = validation.integer("start", start, 1)
        self.every = validation.integer("every", every, 1)

    def epoch_is_over(self, network: Any, epochs: int) -> None:
        taken, rest = divmod(epochs - self.start, self.every)
        if taken < 0 or rest:
            return
        if self._average is None:
            self._begin(network)
            return
        self._move(network, 1.0 / (taken + 1))
        self._of_whole_epochs = self._average.copy()


def _read(network: Any) -> np.ndarray:
    """A float64 copy of the parameters."""
    return np.asarray(network.model.read(network.parameters), np.float64)
