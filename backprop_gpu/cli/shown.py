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
    from sklearn.metrics import r2_score

    if len(y) < 2:
        return ""
    unit = target.deviation if isinstance(target, Number) else 1.0
    squares = ((y - outputs) ** 2).mean(axis=1)
    error = unit * float(np.sqrt(np.average(squares, weights=weights)))
    r2 = float(r2_score(y, outputs, sample_weight=weights))
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
