"""Train fully connected networks by backpropagation, on a GPU or a CPU.

>>> from backprop_gpu import Network
>>> net = Network([784, 30, 10], seed=1)
>>> net.fit(X, Y, epochs=30, batch_size=10, learning_rate=3.0)  # doctest: +SKIP
"""

from . import activations, costs, equations, optimizers, schedules
from .activations import Activation
from .costs import Cost
from .gradient_check import GradientReport
from .network import Network
from .optimizers import SGD, Adam, AdamW
from .population import Population
from .sweep import SweepResult, sweep
from .training import Callback, EarlyStopping, History

__version__ = "0.1.0"

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
    "Network",
    "Population",
    "SweepResult",
    "activations",
    "costs",
    "equations",
    "optimizers",
    "schedules",
    "sweep",
]
