"""Pictures: plain values and arrays in, matplotlib's Axes in and out.

Each function is what a method named `plot` calls, and says in its `caller` which one, for messages.
matplotlib is imported when the first of them draws.
"""

from .curves import delta_norms, history, members
from .demon import gradient_report, nudges
from .networks import confusion, weights
from .settings import heatmap, parallel
from .steps import step

__all__ = [
    "confusion",
    "delta_norms",
    "gradient_report",
    "heatmap",
    "history",
    "members",
    "nudges",
    "parallel",
    "step",
    "weights",
]
