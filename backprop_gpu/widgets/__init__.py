"""Widgets for notebooks: `Demon`.

`docs/demon.md` shows it. Only this package imports anywidget
(``pip install 'backprop_gpu[widget]'``).
"""

from .demon import Demon

__all__ = ["Demon"]
