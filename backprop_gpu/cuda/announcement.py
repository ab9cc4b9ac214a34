"""That kernels are being compiled, where somebody has to wait for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .. import cache

_log = logging.getLogger("backprop_gpu")
#: Seconds of waiting before anything is said.
PATIENCE = 1.0
#: A kernel that is there sooner was compiled before.
_KEPT = 0.05

#: Those that show it, a bar for example; the last is told, and where there is none, the logger.
hearers: list[Callable[[str], None]] = []

_lock = threading.Lock()
_counts: dict[str, int] = {}
_waited: dict[str, float] = {}
_told: set[str] = set()


@contextmanager
def announced(count: int, arch: str) -> Iterator[None]:
    """Around what compiles so many kernels, or finds them in the cache: said once an architecture.

    Once `PATIENCE` is over, counted over all that a process compiles.
    """
    with _lock:
        _counts[arch] = _counts.get(arch, 0) + count
        left = max(0.0, PATIENCE - _waited.get(arch, 0.0))
        timer = None if arch in _told else threading.Timer(left, _tell, [arch])
    if timer is not None:
        timer.daemon = True
        timer.start()
    begun = time.perf_counter()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        seconds = time.perf_counter() - begun
        with _lock:
            if seconds > _KEPT:
                _waited[arch] = _waited.get(arch, 0.0) + seconds
            else:
                _counts[arch] -= count


def _tell(arch: str) -> None:
    with _lock:
        if arch in _told:
            return
        _told.add(arch)
        count, hearer = _counts[arch], hearers[-1] if hearers else None
    folder = cache.folder()
    kept = "not kept" if folder is None else f"once; kept in {folder}"
    text = f"compiling {count} kernel{'s' * (count != 1)} for {arch} ({kept})"
    if hearer is None:
        _log.warning("%s", text)
    else:
        hearer(text)


def forget() -> None:
    """Say it again next time."""
    with _lock:
        for each in (_counts, _waited, _told):
            each.clear()
