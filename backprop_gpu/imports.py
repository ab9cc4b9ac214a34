"""Imports of large packages in the middle of work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Around such an import: Ctrl-C is heard when it is over.

    A KeyboardInterrupt in its midst would leave some of a package's modules without the others
    they need, and no later import in this process mends that.
    """
    handler = signal.getsignal(signal.SIGINT)
    # Only the main thread hears signals; ignored or fatal ones have no handler to be called.
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    heard: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if heard:
            handler(*heard[0])
