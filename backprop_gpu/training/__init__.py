"""Training: a `Session` runs epochs of members of one `Model`, whoever the trainer is."""

from .averages import ExponentialAverage, StochasticWeightAverage
from .callbacks import Callback, EarlyStopping, FitRun
from .checkpoint import Checkpoint
from .delta_norms import DeltaNorms
from .history import History
from .rows import RowsAtOnce
from .session import Course, Session
from .time_spent import TimeSpent

__all__ = [
    "Callback",
    "Checkpoint",
    "Course",
    "DeltaNorms",
    "EarlyStopping",
    "ExponentialAverage",
    "FitRun",
    "History",
    "RowsAtOnce",
    "Session",
    "StochasticWeightAverage",
    "TimeSpent",
]
