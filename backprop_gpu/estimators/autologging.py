"""`mlflow.sklearn.autolog` for these estimators: it knows those that scikit-learn lists."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ..imports import when_imported

_log = logging.getLogger("backprop_gpu")


def log_as_scikit_learn(estimators: Sequence[type], searches: Sequence[type]) -> None:
    """Let autolog log of these classes what it logs of scikit-learn's.

    Whichever is imported first: autolog that is on already is called again, as it was.

    Parameters
    ----------
    estimators : sequence of classes
        That have `fit`.
    searches : sequence of classes
        Those of them that are to autolog what `GridSearchCV` is: it logs the best parameters, and a
        run for each of the best candidates.
    """

    def action(utils: ModuleType) -> None:
        try:
            _extend(utils, tuple(estimators), tuple(searches))
        except Exception as reason:  # it is MLflow's inside, which any version may change
            _log.warning("mlflow.sklearn.autolog() does not log backprop_gpu's: %r", reason)

    when_imported("mlflow.sklearn.utils", action)


def _extend(utils: Any, estimators: tuple[type, ...], searches: tuple[type, ...]) -> None:
    all_estimators = utils._all_estimators  # noqa: SLF001
    is_search = utils._is_parameter_search_estimator  # noqa: SLF001

    def with_ours() -> list[tuple[str, type]]:
        return [*all_estimators(), *((each.__name__, each) for each in estimators)]

    def is_search_or_ours(estimator: Any) -> bool:
        return isinstance(estimator, searches) or bool(is_search(estimator))

    utils._all_estimators = with_ours  # noqa: SLF001
    utils._is_parameter_search_estimator = is_search_or_ours  # noqa: SLF001
    autolog = getattr(sys.modules.get("mlflow.sklearn"), "autolog", None)
    if autolog is None:  # it is being imported
        return
    from mlflow.utils.autologging_utils import AUTOLOGGING_INTEGRATIONS

    given = dict(AUTOLOGGING_INTEGRATIONS.get("sklearn", {}))
    if given.get("disable", True):
        return
    names = inspect.signature(autolog).parameters
    autolog(**{name: value for name, value in given.items() if name in names})
    AUTOLOGGING_INTEGRATIONS["sklearn"] = given
