"""Engines: each trains members of one model for an epoch (`base.Engine`).

This module knows which there are for each backend.
"""

from .base import Engine, Hyperparameters, Member
from .layered import LayeredEngine
from .resident_cpu import ResidentCpuEngine
from .resident_cuda import ResidentCudaEngine

_KINDS: dict[str, tuple[type[Engine], ...]] = {
    "numpy": (LayeredEngine, ResidentCpuEngine),
    "cuda": (LayeredEngine, ResidentCudaEngine),
    "numba_cuda": (LayeredEngine,),
}
#: backend -> its engines by name; all have the layered one.
ENGINES = {backend: {kind.name: kind for kind in kinds} for backend, kinds in _KINDS.items()}


def names() -> tuple[str, ...]:
    """The engines of all backends."""
    return tuple(dict.fromkeys(name for kinds in ENGINES.values() for name in kinds))


__all__ = ["ENGINES", "Engine", "Hyperparameters", "Member", "names"]
