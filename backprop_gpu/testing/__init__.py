"""CUDA on a machine without a GPU, for tests of what would run on one.

``driver`` is a CUDA driver of our own that cuda.core loads, ``emulator`` runs device code as C++
on the CPU: ``emulator/fibers.h`` has the picture of what a thread, a block and a barrier are then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .standin import Standin


def start(card: str = "H100", seed: int = 0, **options: object) -> Standin:
    """Put the stand-in under this process, which it keeps until it ends."""
    from ..cuda import runtime
    from . import standin, twins

    started = standin.start(card, seed, **options)  # type: ignore[arg-type]
    runtime.compile_kernels = twins.compile_kernels
    return started
