"""Validation by weighted rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..datasets import Dataset
from ..training import Callback, History


class WeightedValidation(Callback):
    """Puts C and accuracy by the rows' weights into the history, where `fit` counts rows alike.

    It stands before callbacks that read them, such as `EarlyStopping`.
    """

    def __init__(self, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> None:
        self.X, self.y, self.weights = X, y, weights

    def on_epoch_end(self, network: Any, history: History) -> None:
        history.val_loss[-1] = network.loss(self.X, self.y, self.weights)
        if not np.isnan(history.val_accuracy[-1]):  # the targets are classes
            history.val_accuracy[-1] = network.accuracy(self.X, self.y, self.weights)


def weighted_validation(data: Dataset) -> Sequence[Callback]:
    """The callback, where the data have weights."""
    if data.weights_val is None:
        return ()
    return (WeightedValidation(data.X_val, data.y_val, data.weights_val),)
