"""Train fully connected networks by backpropagation, on a GPU or a CPU.

>>> from backprop_gpu import Network
>>> net = Network([784, 30, 10], seed=1)
>>> net.fit(X, Y, epochs=30, batch_size=10, learning_rate=3.0)  # doctest: +SKIP
"""

import importlib
import sys
import warnings

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


#: Modules that have moved.
_MOVED = {
    "catalogue": "cuda.catalogue", "compiler": "cuda.compiler", "occupancy": "cuda.occupancy",
    "explanation": "planning.explanation", "residency": "planning.residency",
    "perceptron": "estimators.perceptron",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The estimators, which import scikit-learn, when they are first asked for."""
    if name in ("MLPClassifier", "MLPRegressor"):
        from . import estimators

        return getattr(estimators, name)
    if name in _MOVED:
        message = f"backprop_gpu.{name} is backprop_gpu.{_MOVED[name]} now"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return importlib.import_module(f"{__name__}.{_MOVED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
