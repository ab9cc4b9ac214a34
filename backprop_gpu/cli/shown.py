"""What several commands show."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np

from .. import backends, planning
from ..network import Network
from ..preprocessing import Category, Number
from ..threads import cores


def device_of(network: Network) -> str:
    """Where a network trains and predicts."""
    device = network.model.device
    if isinstance(device, planning.Device):
        major, minor = device.compute_capability
        return (
            f"{device.name}, compute capability {major}.{minor}, "
            f"{device.multiprocessors} multiprocessors"
        )
    return processor()


def processor() -> str:
    """The processor's name, and its cores."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(
                (line.partition(":")[2].strip() for line in file if line.startswith("model name")),
                name,
            )
    except OSError:
        pass
    count = cores()
    return f"CPU ({name}, {count} core{'' if count == 1 else 's'})"


def goodness(
    y: np.ndarray,
    outputs: np.ndarray,
    target: Number | Category | None,
    weights: np.ndarray | None = None,
) -> str:
    """How well numbers are met: in their own units, and beside their mean as a guess."""
    if len(y) < 2:
        return ""
    unit = target.deviation if isinstance(target, Number) else 1.0
    squares = np.average((y - outputs) ** 2, axis=0, weights=weights)
    error = unit * float(np.sqrt(squares.mean()))
    # R² of each output, their mean: scikit-learn's r2_score, constant targets included.
    mean = np.average(y, axis=0, weights=weights)
    spread = np.average((y - mean) ** 2, axis=0, weights=weights)
    ratio = np.divide(squares, spread, out=(squares > 0.0).astype(np.float64), where=spread > 0.0)
    r2 = float((1.0 - ratio).mean())
    worse = ", no better than to guess their mean" if r2 <= 0.0 else ""
    return f", R² {r2:.4f}{worse}, root mean square error {error:.6g}"


def obstacle_of(name: str) -> str | None:
    try:
        return backends.Obstacles()[name]
    except Exception as error:  # an installation may be broken in any way; say so and go on
        return f"{type(error).__name__}: {error}"


def print_aligned(rows: Sequence[tuple[str, str]], indent: str = "") -> None:
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        print(f"{indent}{title:<{width}}  {text}")
