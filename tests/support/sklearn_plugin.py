"""A pytest plugin that runs scikit-learn's tests of its perceptrons on ours:

    pytest -p sklearn_plugin --pyargs sklearn.neural_network.tests.test_mlp

In the test module, as it is installed, the two names are bound to our classes.
"""

from __future__ import annotations

from typing import Any

import pytest

NAMES = ("MLPClassifier", "MLPRegressor")


@pytest.hookimpl(hookwrapper=True)
def pytest_pycollect_makemodule() -> Any:
    """Before the module is imported, so that parametrised tests see our classes too."""
    import sklearn.neural_network

    import backprop_gpu

    for name in NAMES:
        setattr(sklearn.neural_network, name, getattr(backprop_gpu, name))
    yield
