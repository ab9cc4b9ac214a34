"""CUDA on a machine without a GPU, for tests of what would run on one: `stand_in`.

``driver`` is a CUDA driver of our own that cuda.core loads, ``emulator`` runs device code as C++
on the CPU: ``emulator/fibers.h`` has the picture of what a thread, a block and a barrier are then.
``docs/testing.md`` is the guide.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .standin import Standin

_lock = threading.Lock()
#: How many callers want the stand-in now.
_users = 0


def start(card: str = "H100", seed: int = 0, **options: object) -> Standin:
    """Put the stand-in under this process, for as long as it runs.

    As `standin.start`, with the package's kernels built by g++ from here on.

    Parameters
    ----------
    card : {"H100", "A100", "RTX 4090", "T4"}
        Whose limits there are.
    seed : int
        Of ``order="random"``.
    **options
        ``devices``, ``order``, ``sanitizer``, as in `standin.start`.

    Returns
    -------
    standin.Standin
        As `stand_in` yields.

    Raises
    ------
    ImportError
        If cuda.core is not installed.
    build.CompilerMissing
        If there is no C++ compiler.
    RuntimeError
        If this process has loaded a CUDA driver already, or a stand-in for another card.
    """
    global _users
    started = _start(card, seed, **options)
    with _lock:
        _users += 1
    return started


@contextmanager
def stand_in(card: str = "H100", seed: int = 0, **options: object) -> Iterator[Standin]:
    """Put CUDA there in a ``with`` block: ``Network(backend="cuda")`` trains, without a GPU.

    It is slow, and computes what a GPU would. Behind the block, new networks do without CUDA
    again; those made inside go on working. The driver itself stays in the process, which can
    have no other one, and no other card. Blocks may be nested, and follow each other.

    Parameters
    ----------
    card : {"H100", "A100", "RTX 4090", "T4"}
        Whose limits there are.
    seed : int
        Of ``order="random"``.
    **options
        ``devices``, ``order``, ``sanitizer``, as in `standin.start`.

    Yields
    ------
    standin.Standin
        Makes calls fail, counts what is left over, says why a call was refused.

    Raises
    ------
    ImportError
        If cuda.core is not installed.
    build.CompilerMissing
        If there is no C++ compiler.
    RuntimeError
        If this process has loaded a CUDA driver already, or a stand-in for another card.

    Examples
    --------
    >>> from backprop_gpu import Network, testing
    >>> with testing.stand_in("RTX 4090"):  # doctest: +SKIP
    ...     print(Network([2, 3, 1], backend="cuda").plan)
    """
    global _users
    started = _start(card, seed, **options)
    with _lock:
        _users += 1
    try:
        yield started
    finally:
        with _lock:
            _users -= 1
            over = not _users
        if over:
            _forget()


def running() -> Standin | None:
    """Return the stand-in of this process, if there is one and it is in use.

    Returns
    -------
    standin.Standin or None
        What `start` returned.
    """
    standin = sys.modules.get(f"{__name__}.standin")  # not imported: not running
    return standin.running() if standin is not None and _users else None


def is_over() -> bool:
    """Tell whether this process's driver is a stand-in that is no longer in use.

    Returns
    -------
    bool
        Whether it is.
    """
    standin = sys.modules.get(f"{__name__}.standin")
    return standin is not None and standin.running() is not None and not _users


def blocks_at_once() -> int | None:
    """Tell how many blocks that wait for each other the stand-in runs.

    Fewer than the card that it stands for: `emulator/fibers.h` has as many, as `blocks_of_cluster`.

    Returns
    -------
    int or None
        None where it is not this process's driver.
    """
    standin = sys.modules.get(f"{__name__}.standin")
    return 16 if standin is not None and standin.running() is not None else None


def _start(card: str, seed: int, **options: object) -> Standin:
    try:
        found = importlib.util.find_spec("cuda.core")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ImportError(
            "a stand-in takes the driver's place beneath cuda.core, which is not installed: "
            "pip install 'backprop_gpu[compile]'"
        )
    from ..cuda import runtime
    from . import standin, twins

    started = standin.start(card, seed, **options)  # type: ignore[arg-type]
    runtime.compile_kernels = twins.compile_kernels
    return started


def _forget() -> None:
    """What the package keeps of a device, but for what builds kernels: networks may need it."""
    from ..cuda import runtime

    runtime.forget()
