"""What the demon of the notes does to C, and what it found: δ and its error in every neuron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import BLUE, GREY, VERMILLION, axes, by_value, frame, result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def nudges(
    ax: Any,
    nudged: np.ndarray,
    costs: np.ndarray,
    *,
    cost: float,
    delta: float,
    nudge: float,
    after: float,
    title: str,
    caller: str = "Demon.plot()",
) -> Axes | np.ndarray:
    """C(Δz) of one neuron, its tangent, and one of the nudges.

    Parameters
    ----------
    ax : Axes or None
    nudged, costs : (k,) arrays
        Δz, and C after it; what is not finite is not drawn.
    cost, delta : float
        C and δ where Δz is 0.
    nudge, after : float
        The one nudge, and C after it.
    """
    drawn = axes(caller, ax)
    (each,) = drawn
    finite = costs[np.isfinite(costs)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    moves = high - low > 1e-12 * abs(high)  # and is not rounding
    room = (high - low if moves else abs(high)) / 5 or 1.0
    each.plot(nudged, costs, color=BLUE, linewidth=2, label=r"$C(\Delta z)$")
    ends = nudged[[0, -1]]
    tangent = cost + delta * ends
    each.plot(ends, tangent, "--", color=VERMILLION, label=r"$C + \delta\,\Delta z$")
    each.plot([0, nudge, nudge], [cost, cost, after], ":", color=GREY)
    each.plot([nudge], [after], "o", color=BLUE)
    each.set(
        title=title, xlabel=r"$\Delta z$", ylabel="$C$",
        xlim=(ends[0], ends[1]), ylim=(low - room, high + room),
    )  # fmt: skip
    frame(each)
    each.legend(frameon=False)
    return result(drawn)


def gradient_report(
    ax: Any,
    deltas: Sequence[np.ndarray],
    errors: Sequence[np.ndarray],
    tolerance: float,
    caller: str = "GradientReport.plot()",
) -> Axes | np.ndarray:
    """|δ_j^l| and the error of its check, neuron by neuron, on logarithmic scales.

    Parameters
    ----------
    ax : two Axes or None
    deltas, errors : sequences of (n_l,) arrays
        Of layers 1 … L. What is 0 lies at the lower edge, hollow; what is infinite at the upper.
    tolerance : float
    """
    if not deltas:
        raise ValueError(f"{caller}: the report has no figures of single neurons")
    drawn = axes(caller, ax, 2, columns=1, size=(6.4, 2.8), share_x=True)
    _by_neuron(drawn[0], deltas)
    _by_neuron(drawn[1], errors)
    drawn[1].axhline(tolerance, color=GREY, linestyle="--", linewidth=1.2)
    drawn[1].annotate(
        f"tolerance {tolerance:.0e}", (0.0, tolerance), xycoords=("axes fraction", "data"),
        xytext=(4, 3), textcoords="offset points", fontsize="small",
    )  # fmt: skip
    drawn[0].set_ylabel(r"mean $|\delta_j^l|$ of a sample")
    drawn[1].set_ylabel("largest relative error")
    sizes = ", ".join(str(len(each)) for each in deltas)
    drawn[1].set_xlabel(f"layer $l$, its neurons $j$ side by side ({sizes})")
    return result(drawn)


def _by_neuron(ax: Axes, layers: Sequence[np.ndarray]) -> None:
    """A point for every neuron; all layers are as wide."""
    values = np.concatenate(layers)
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    colours = by_value()
    for l, layer in enumerate(layers):
        n = len(layer)
        x = l + 1 + 0.8 * ((np.arange(n) + 0.5) / n - 0.5)
        y = np.where(np.isfinite(layer), np.where(layer > 0, layer, low / 10), high * 10)
        colour = colours(l / max(len(layers) - 1, 1))
        plain = np.isfinite(layer) & (layer > 0)
        size = float(np.clip(900 / n, 4, 30))
        ax.scatter(x[plain], y[plain], s=size, color=colour, linewidths=0)
        for odd, marker in ((layer == 0, "o"), (~np.isfinite(layer), "^")):
            if odd.any():
                ax.scatter(
                    x[odd], y[odd], s=size, marker=marker, facecolors="none", edgecolors=[colour]
                )
    ax.set_yscale("log")
    ax.set_xlim(0.5, len(layers) + 0.5)
    ax.set_xticks(np.arange(1, len(layers) + 1))
    frame(ax, "y")
