"""Training: a `Session` runs epochs of members of one `Model`, whoever the trainer is."""

from .callbacks import Callback, EarlyStopping
from .history import History
from .session import Course, Session
from .time_spent import TimeSpent

__all__ = ["Callback", "Course", "EarlyStopping", "History", "Session", "TimeSpent"]
