"""A CUDA driver on the CPU: what cuda.core and others load in this process as ``libcuda.so.1``.

With it comes a ``libcublasLt.so.13`` for products (``driver/cublaslt.cpp``).

``driver/driver.h`` describes it. It is a device for everybody in the process who uses CUDA, so
it starts before anybody does, and stays until the process ends.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Literal, get_args

from . import build, twins
from .build import Sanitizer

Card = Literal["H100", "A100", "RTX 4090", "T4"]
CARDS: tuple[str, ...] = get_args(Card)
Order = Literal["late", "others", "random"]
#: What can be made to fail and is counted; "any" is all but giving back.
What = Literal["any", "allocation", "launch", "copy", "synchronization", "other", "release"]
#: What can outlive its use.
KINDS = (
    "allocation", "pinned", "stream", "event", "graph", "executable graph", "library",
    "memory pool", "user object", "cublasLt handle", "matrix layout", "matmul description",
    "matmul preference",
)  # fmt: skip

DRIVER = "libcuda.so.1"


class Standin:
    """The driver that runs in this process; `start` makes it.

    Parameters
    ----------
    library : ctypes.CDLL
        The driver.
    card : {"H100", "A100", "RTX 4090", "T4"}
        Whose limits there are.
    devices : int
        How many of that card there are.
    sanitizer : {"plain", "asan", "tsan"}
        What the kernels that it runs are built with.

    Attributes
    ----------
    card, devices, sanitizer
        As above.
    """

    def __init__(self, library: ctypes.CDLL, card: str, devices: int, sanitizer: Sanitizer) -> None:
        self.card, self.devices, self.sanitizer = card, devices, sanitizer
        self._library = library
        library.standin_reason.restype = ctypes.c_char_p
        library.standin_count.restype = library.standin_live.restype = ctypes.c_long
        library.standin_order.argtypes = [ctypes.c_char_p, ctypes.c_uint64]

    def reason(self) -> str:
        """Say why the last call that failed did: the call, the rule and what broke it.

        Returns
        -------
        str
            Empty where none has failed.
        """
        reason: bytes = self._library.standin_reason()
        return reason.decode()

    def fail(self, what: What, n: int, error: int) -> None:
        """Make the `n`-th call of a sort from now, 1 being the next, return a CUresult.

        An error after which a context is of no use (LAUNCH_FAILED, ILLEGAL_ADDRESS, …) stays
        until `reset`.

        Parameters
        ----------
        what : {"any", "allocation", "launch", "copy", "synchronization", "other", "release"}
            The sort.
        n : int
            Which call, from 1.
        error : int
            The CUresult.

        Raises
        ------
        ValueError
            For an `n` below 1.
        """
        if n < 1:
            raise ValueError(f"the next call is 1, got {n}")
        self._library.standin_fail(what.encode(), n, int(error))

    def fail_no_more(self) -> None:
        """Forget what `fail` was told and has not come yet."""
        self._library.standin_fail(b"any", 0, 0)

    def count(self, what: What) -> int:
        """Return how many calls of a sort there have been.

        Parameters
        ----------
        what : {"any", "allocation", "launch", "copy", "synchronization", "other", "release"}
            The sort.

        Returns
        -------
        int
            Since the driver was loaded.
        """
        count: int = self._library.standin_count(what.encode())
        return count

    def live(self) -> dict[str, int]:
        """Count the objects that were made and not given back.

        Returns
        -------
        dict of str to int
            By `KINDS`.
        """
        return {kind: self._library.standin_live(kind.encode()) for kind in KINDS}

    def order(self, order: Order, seed: int = 0) -> None:
        """Change the order in which work runs.

        "late" runs only what somebody waits for; "others" first everything that does not wait
        for that; "random" draws by `seed`.

        Parameters
        ----------
        order : {"late", "others", "random"}
            Which order.
        seed : int
            Of "random".

        Raises
        ------
        ValueError
            For another order.
        """
        self._library.standin_order(_order(order), seed)

    def reset(self) -> None:
        """Begin anew after an error that stays: drop what was submitted, end captures.

        Memory and handles stay as they are.
        """
        self._library.standin_reset()


def environment(sanitizer: Sanitizer) -> dict[str, str]:
    """What a process needs in its environment from its start to run kernels under a sanitizer."""
    if sanitizer == "plain":
        return {}
    libraries = ("libasan.so", "libubsan.so") if sanitizer == "asan" else ("libtsan.so",)
    return {
        "LD_PRELOAD": " ".join(map(build.compiler_file, libraries)),
        # Leaks would be Python's own. Its code is not instrumented, and what it does not seen.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0:history_size=3"
        ":ignore_noninstrumented_modules=1",
    }


_running: Standin | None = None


def running() -> Standin | None:
    """That of this process, if there is one."""
    return _running


def start(
    card: str = "H100",
    seed: int = 0,
    devices: int = 1,
    order: Order = "late",
    sanitizer: Sanitizer = "plain",
) -> Standin:
    """Put the stand-in under this process.

    Parameters
    ----------
    card : {"H100", "A100", "RTX 4090", "T4"}
    seed : int
        Of the order "random".
    devices : int
        How many of that card, 1 to 8.
    order : {"late", "others", "random"}
        See `Standin.order`.
    sanitizer : {"plain", "asan", "tsan"}
        What the kernels are built with. The process must have been started with
        `environment`, and ends with the first report.

    Returns
    -------
    Standin
        The same one each time; a second call sets the order anew.

    Raises
    ------
    build.CompilerMissing
        If there is no g++.
    RuntimeError
        If a driver is loaded already, or a stand-in with another card; or if the sanitizer is
        not loaded.
    """
    global _running
    if card not in CARDS:
        raise ValueError(f"card is one of {', '.join(CARDS)}, got {card!r}")
    if _running is not None:
        running = _running.card, _running.devices, _running.sanitizer
        if running != (card, devices, sanitizer):
            raise RuntimeError(
                f"the stand-in of this process is {running}, asked for "
                f"{(card, devices, sanitizer)}: start another process"
            )
        _running.order(order, seed)
        return _running
    loaded = _loaded()
    if loaded is not None:
        raise RuntimeError(
            f"a CUDA driver is loaded in this process ({loaded}): start the stand-in before "
            "anything uses CUDA"
        )
    if sanitizer != "plain" and not hasattr(ctypes.CDLL(None), f"__{sanitizer}_init"):
        raise RuntimeError(
            f"this process was not started for {sanitizer}: its environment must have "
            f"{environment(sanitizer)}"
        )
    library = ctypes.CDLL(str(build.driver(sanitizer)), ctypes.RTLD_GLOBAL)
    library.standin_configure.restype = ctypes.c_char_p
    wrong = library.standin_configure(card.encode(), devices, _order(order), ctypes.c_uint64(seed))
    if wrong is not None:
        raise ValueError(wrong.decode())
    ctypes.CDLL(str(build.cublaslt(sanitizer)), ctypes.RTLD_GLOBAL)
    twins.sanitizer = sanitizer
    _running = Standin(library, card, devices, sanitizer)
    return _running


def _order(order: str) -> bytes:
    if order not in get_args(Order):
        raise ValueError(f"order is one of {', '.join(get_args(Order))}, got {order!r}")
    return order.encode()


def _loaded() -> str | None:
    """The driver of this process, if there is one."""
    try:
        ctypes.CDLL(DRIVER, os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        if DRIVER in line:
            return line.split(maxsplit=5)[-1]
    return DRIVER
