"""A pytest plugin that runs scikit-learn's tests of its searches on ours:

    pytest -p sklearn_search_plugin --pyargs sklearn.model_selection.tests.test_search

In the test modules, as they are installed, the names of the four searches are bound to these
classes. No estimator there is a perceptron of ours: all are searched as by scikit-learn's own.
"""

from __future__ import annotations

from typing import Any

import pytest
import sklearn.model_selection as theirs
from sklearn.experimental import enable_halving_search_cv  # noqa: F401

from backprop_gpu.estimators.search import CandidatesTogether


class GridSearchCV(CandidatesTogether, theirs.GridSearchCV):
    pass


class RandomizedSearchCV(CandidatesTogether, theirs.RandomizedSearchCV):
    pass


class HalvingGridSearchCV(CandidatesTogether, theirs.HalvingGridSearchCV):
    pass


class HalvingRandomSearchCV(CandidatesTogether, theirs.HalvingRandomSearchCV):
    pass


@pytest.hookimpl(hookwrapper=True)
def pytest_pycollect_makemodule() -> Any:
    """Before the module is imported, so that parametrised tests see our classes too."""
    for kind in (GridSearchCV, RandomizedSearchCV, HalvingGridSearchCV, HalvingRandomSearchCV):
        setattr(theirs, kind.__name__, kind)
    yield
