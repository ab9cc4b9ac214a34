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

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import activations, costs, equations, formats, optimizers, schedules
    from .activations import Activation
    from .costs import Cost
    from .cross_validation import CrossValidation, cross_validate
    from .estimators import (
        EnsembleClassifier,
        EnsembleRegressor,
        MLPClassifier,
        MLPRegressor,
        PopulationSearchCV,
    )
    from .gradient_check import GradientReport
    from .loggers import CSVLogger, JSONLogger, MLflowLogger, TensorBoardLogger, WandbLogger
    from .network import Network
    from .optimizers import SGD, Adam, AdamW
    from .population import Population
    from .sweeps import SweepResult, sweep
    from .training import (
        Callback,
        Checkpoint,
        DeltaNorms,
        EarlyStopping,
        ExponentialAverage,
        History,
        StochasticWeightAverage,
    )

__all__ = [
    "SGD",
    "Activation",
    "Adam",
    "AdamW",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "Cost",
    "CrossValidation",
    "DeltaNorms",
    "EarlyStopping",
    "EnsembleClassifier",
    "EnsembleRegressor",
    "ExponentialAverage",
    "GradientReport",
    "History",
    "JSONLogger",
    "MLPClassifier",
    "MLPRegressor",
    "MLflowLogger",
    "Network",
    "Population",
    "PopulationSearchCV",
    "StochasticWeightAverage",
    "SweepResult",
    "TensorBoardLogger",
    "WandbLogger",
    "__version__",
    "activations",
    "costs",
    "cross_validate",
    "equations",
    "formats",
    "optimizers",
    "schedules",
    "sweep",
]


#: Where each name is, which is imported when it is first asked for: `Network` alone needs a third
#: of the whole, and the estimators import scikit-learn.
_MODULES = {
    "SGD": "optimizers", "Activation": "activations", "Adam": "optimizers", "AdamW": "optimizers",
    "CSVLogger": "loggers", "Callback": "training", "Checkpoint": "training", "Cost": "costs",
    "CrossValidation": "cross_validation", "DeltaNorms": "training", "EarlyStopping": "training",
    "EnsembleClassifier": "estimators", "EnsembleRegressor": "estimators",
    "ExponentialAverage": "training", "GradientReport": "gradient_check", "History": "training",
    "JSONLogger": "loggers", "MLPClassifier": "estimators", "MLPRegressor": "estimators",
    "MLflowLogger": "loggers", "Network": "network",
    "Population": "population", "PopulationSearchCV": "estimators",
    "StochasticWeightAverage": "training", "SweepResult": "sweeps",
    "TensorBoardLogger": "loggers", "WandbLogger": "loggers",
    "cross_validate": "cross_validation", "sweep": "sweeps",
}  # fmt: skip
#: Modules that have moved.
_MOVED = {
    "catalogue": "cuda.catalogue", "compiler": "cuda.compiler", "occupancy": "cuda.occupancy",
    "explanation": "planning.explanation", "residency": "planning.residency",
    "perceptron": "estimators.perceptron",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MOVED:
        message = f"backprop_gpu.{name} is backprop_gpu.{_MOVED[name]} now"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return importlib.import_module(f"{__name__}.{_MOVED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
