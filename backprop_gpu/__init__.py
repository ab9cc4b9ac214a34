"""Train fully connected networks by backpropagation, on a GPU or a CPU.

>>> from backprop_gpu import Network
>>> net = Network([784, 30, 10], seed=1)
>>> net.fit(X, Y, epochs=30, batch_size=10, learning_rate=3.0)  # doctest: +SKIP
"""

import sys

if (
    sys.argv[:1] == ["-m"]
    and sys.orig_argv[-len(sys.argv) :][0].endswith("backprop_gpu.accel")
    and not sys.flags.safe_path
):
    # `python -m` has put the current folder first. accel runs somebody's script, and must not
    # import a ./numpy.py that `python script.py` would not import. It puts there what belongs
    # there when the script runs.
    del sys.path[0]

from typing import Any

from . import activations, costs, equations, optimizers, schedules
from .activations import Activation
from .costs import Cost
from .gradient_check import GradientReport
from .network import Network
from .optimizers import SGD, Adam, AdamW
from .population import Population
from .sweep import SweepResult, sweep
from .training import Callback, EarlyStopping, History
from .version import __version__

__all__ = [
    "SGD",
    "Activation",
    "Adam",
    "AdamW",
    "Callback",
    "Cost",
    "EarlyStopping",
    "GradientReport",
    "History",
    "MLPClassifier",
    "MLPRegressor",
    "Network",
    "Population",
    "SweepResult",
    "__version__",
    "activations",
    "costs",
    "equations",
    "optimizers",
    "schedules",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """The estimators, which import scikit-learn, when they are first asked for."""
    if name in ("MLPClassifier", "MLPRegressor"):
        from . import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
