"""Engines: each trains members of one model for an epoch (`base.Engine`).

This module knows which there are for each backend.
"""

from .base import Engine, Hyperparameters, Member
from .layered import LayeredEngine
from .resident_cpu import ResidentCpuEngine
from .resident_cuda import ResidentCudaEngine

#: backend -> its engines by name; all have the layered one.
ENGINES: dict[str, dict[str, type[Engine]]] = {
    "numpy": {"layered": LayeredEngine, "resident": ResidentCpuEngine},
    "cuda": {"layered": LayeredEngine, "resident": ResidentCudaEngine},
    "numba_cuda": {"layered": LayeredEngine},
}

__all__ = ["ENGINES", "Engine", "Hyperparameters", "Member"]
