"""What the estimators take from scikit-learn: its callbacks, and the place it warns from."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import column_or_1d

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupportMixin
    from sklearn.callback import with_callbacks as with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""

    def with_callbacks(method: Any) -> Any:
        return method


# -- scikit-learn's callbacks ---------------------------------------------------------------------


class Hooks:
    """The hooks of scikit-learn's callbacks, an epoch being a subtask of `fit`."""

    def __init__(
        self, estimator: Any, context: Any, X: Any, y: Any, metadata: dict[str, Any]
    ) -> None:
        self._estimator, self._context = estimator, context
        self._data = {"X": X, "y": y, "metadata": metadata}
        self._epoch: Any = None

    @property
    def are_set(self) -> bool:
        """Whether there are callbacks."""
        return self._context is not None

    def begin(self) -> None:
        self._context.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def begin_epoch(self) -> None:
        if self._context is not None:
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def end_epoch(self) -> bool:
        """Whether a callback asks to stop."""
        if self._context is None:
            return False
        return bool(
            self._epoch.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes=self._fitted, **self._data
            )
        )

    def end(self) -> None:
        if self._context is not None:
            self._context.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes={}, **self._data
            )

    def _fitted(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self._estimator).items()
            if name.endswith("_") and not name.startswith("__")
        } | {"_label_binarizer": getattr(self._estimator, "_label_binarizer", None)}


# -- warnings -------------------------------------------------------------------------------------

#: Where scikit-learn's perceptrons warn.
THEIRS = "sklearn.neural_network._multilayer_perceptron"


def warn(message: str, category: type[Warning] = UserWarning, module: str = THEIRS) -> None:
    """Warn at the user's line, in the name of the module that scikit-learn warns in.

    A program's ``filterwarnings(..., module="sklearn")`` silences then what it would silence with
    scikit-learn. File and line are those of the caller's, for theirs has not run.
    """
    frame = sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and package(frame) in ("backprop_gpu", "sklearn"):
        frame = frame.f_back
    warnings.warn_explicit(
        message, category, frame.f_code.co_filename, frame.f_lineno, module=module,
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )  # fmt: skip


def package(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def flattened(y: np.ndarray) -> np.ndarray:
    """y (n, 1) as (n,), with scikit-learn's warning."""
    warn(
        "A column-vector y was passed when a 1d array was expected. Please change the shape of y "
        "to (n_samples, ), for example using ravel().",
        DataConversionWarning,
    )
    return np.asarray(column_or_1d(y))
