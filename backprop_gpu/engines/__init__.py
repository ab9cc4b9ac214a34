"""Engines: each trains members of one model for an epoch (`base.Engine`).

This module knows which there are for each backend.
"""

from .base import Engine, Hyperparameters, Member
from .layered import LayeredEngine

#: The engines of all backends.
NAMES = ("layered", "resident", "fused", "persistent")


def find(name: str, backend: str) -> type[Engine] | None:
    """The engine of that name for a backend, if there is one."""
    if name == "layered":
        return LayeredEngine
    if backend == "cuda" and name == "fused":
        from .fused_cuda import FusedCudaEngine

        return FusedCudaEngine
    if backend == "cuda" and name == "persistent":
        from .persistent_cuda import PersistentCudaEngine

        return PersistentCudaEngine
    if name != "resident":
        return None
    if backend == "numpy":
        from .resident_cpu import ResidentCpuEngine

        return ResidentCpuEngine
    if backend == "cuda":
        from .resident_cuda import ResidentCudaEngine

        return ResidentCudaEngine
    return None


__all__ = ["NAMES", "Engine", "Hyperparameters", "Member", "find"]
