"""Training: a `Session` runs epochs of members of one `Model`, whoever the trainer is."""

from .callbacks import Callback, EarlyStopping
from .history import History
from .session import Course, Session

__all__ = ["Callback", "Course", "EarlyStopping", "History", "Session"]
