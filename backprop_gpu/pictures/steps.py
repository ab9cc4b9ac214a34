"""What a step of training does, equation by equation, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import BLUE, VERMILLION, axes, frame, plain, result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def step(
    ax: Any,
    equations: Sequence[str],
    kernels: Sequence[str],
    flops: Sequence[int],
    predicted: Sequence[float | None],
    least: Sequence[float | None],
    title: str,
    caller: str,
) -> Axes | np.ndarray:
    """A bar for every equation of a step, in the order that they run.

    Parameters
    ----------
    equations, kernels : sequence of str
        Each equation, and what computes it.
    flops : sequence of int
        Operations; these are drawn where no time is known.
    predicted : sequence of float or None
        Seconds that the planner expects each to take.
    least : sequence of float or None
        Seconds that each takes at least on this machine, alone.
    """
    count = len(equations)
    (drawn,) = axes(caller, ax, size=(7.6, max(2.6, 0.9 + 0.27 * count)))
    y = np.arange(count)
    names = [
        f"{name}: {plain(kernel, 44)}" for name, kernel in zip(equations, kernels, strict=True)
    ]
    expects = any(each is not None for each in predicted)
    floored = any(each is not None for each in least)
    if expects:
        seconds = np.array([np.nan if each is None else 1e6 * each for each in predicted])
        drawn.barh(y, seconds, height=0.72, color=BLUE, label="predicted")
    if floored:
        bounds = np.array([np.nan if each is None else 1e6 * each for each in least])
        height = 0.36 if expects else 0.72
        drawn.barh(
            y,
            bounds,
            height=height,
            color=VERMILLION,
            label="at least, on its own",
        )
    if expects and floored:
        for where, (time, bound) in enumerate(zip(seconds, bounds, strict=True)):
            if np.isfinite(time) and np.isfinite(bound) and time > 0:
                drawn.annotate(
                    f"{bound / time:.0%}", (max(time, bound), where), xytext=(3, 0),
                    textcoords="offset points", va="center", fontsize="small",
                )  # fmt: skip
    if expects or floored:
        both = "; the least as a share of the prediction" if expects and floored else ""
        drawn.set_xlabel(f"time in µs{both}")
        drawn.legend(frameon=False, fontsize="small", loc="best")
    else:
        drawn.barh(y, np.asarray(flops) / 1e6, height=0.72, color=BLUE)
        drawn.set_xlabel("operations of a step in MFLOP (times are not known here)")
    drawn.set_yticks(y, names, fontsize="small")
    drawn.set_ylim(count - 0.4, -0.6)
    drawn.margins(x=0.08)
    drawn.set_title(title, fontsize="medium", loc="left")
    frame(drawn, "x")
    return result([drawn])
