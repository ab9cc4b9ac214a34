"""Curves by epoch: of a training, of many, and of δ in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import BLUE, GREEN, GREY, VERMILLION, axes, by_value, frame, result, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: More layers than these have a colour bar in place of a legend.
NAMED_LAYERS = 8

#: What the values of a history are called.
TITLES = {"loss": "training loss C", "val_loss": "validation loss C", "val_accuracy": "accuracy"}


def history(
    ax: Any,
    loss: Sequence[float],
    val_loss: Sequence[float],
    val_accuracy: Sequence[float],
    restored: int | None = None,
    averaged: bool = False,
    caller: str = "History.plot()",
) -> Axes | np.ndarray:
    """C and, where there is one, the accuracy by epoch.

    Parameters
    ----------
    ax : Axes, two Axes or None
        Of one the accuracy is drawn on a twin, with its scale at the right.
    loss, val_loss, val_accuracy : sequence of float
        By epoch; the latter two may be empty.
    restored : int, optional
        The epoch, counted from 0, whose weights the network was left with.
    averaged : bool
        Whether it was left with others than any of these epochs'.
    """
    if not len(loss):
        raise ValueError(f"{caller}: the history is empty: it has no epoch yet")
    accurate = bool(np.isfinite(val_accuracy).any())
    pair = accurate and (ax is None or isinstance(ax, list | tuple | np.ndarray))
    drawn = axes(caller, ax, 1 + pair, size=(5.0 if accurate else 5.6, 4.2))
    if accurate and not pair:
        drawn.append(drawn[0].twinx())
    costs = drawn[0]
    _curve(costs, loss, BLUE, "training, during the epoch")
    if len(val_loss):
        _curve(costs, val_loss, VERMILLION, "validation, after it")
    seen = np.concatenate((np.asarray(loss, float), np.asarray(val_loss, float)))
    costs.set_ylim(bottom=float(seen[np.isfinite(seen)].min(initial=0.0)))
    costs.set_ylabel("mean cost C")
    if accurate:
        accuracy, at = drawn[1], len(val_accuracy) - 1 if restored is None else restored
        value = val_accuracy[at]
        _curve(accuracy, val_accuracy, GREEN, f"accuracy: {value:.4f} after epoch {at + 1}")
        accuracy.plot([at + 1], [value], "o", color=GREEN, markersize=5, zorder=3)
        accuracy.set_ylabel("validation accuracy")
        if pair:  # of a twin the curve had better be far from those of C
            accuracy.set_ylim(top=1.0)
    for each in drawn if pair or not accurate else drawn[:1]:
        frame(each)
        each.set_xlabel("epoch")
        whole_numbers(each)
        if restored is not None:
            each.axvline(
                restored + 1, color=GREY, linestyle="--", linewidth=1.2, zorder=1,
                label=f"weights kept: epoch {restored + 1}",
            )  # fmt: skip
    kept = "weights kept: an average,\nwhich no curve is of" if averaged else None
    style: dict[str, Any] = {"fontsize": "small", "title_fontsize": "small", "edgecolor": "none"}
    if pair:
        accuracy.legend(handles=accuracy.lines[:1], loc="lower right", **style)
    if not accurate or pair:
        costs.legend(title=kept, **style)
        return result(drawn)
    accuracy.spines["top"].set_visible(False)
    accuracy.yaxis.label.set_color(GREEN)
    # Of the twin, which is drawn later: its curve must not lie on the legend.
    lines = costs.get_legend_handles_labels()[0] + accuracy.lines[:1]
    accuracy.legend(handles=lines, title=kept, loc="center right", **style)
    return result(drawn)


def members(
    ax: Any,
    curves: Sequence[Sequence[float]],
    best: int,
    name: str,
    restored: int | None = None,
    left_out: int = 0,
    caller: str = "Population.plot()",
) -> Axes | np.ndarray:
    """Where the curves of many networks lie, with the median and the best of them.

    Parameters
    ----------
    curves : sequence of sequences of float
        By member and epoch, of different lengths where some have stopped before others.
    best : int
        Which curve, and `restored` the epoch of it whose weights it was left with.
    name : {"loss", "val_loss", "val_accuracy"}
    left_out : int
        Members that are none of these.
    """
    longest = max(map(len, curves), default=0)
    if not longest:
        raise ValueError(f"{caller}: the histories are empty: they have no epoch yet")
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    table[~np.isfinite(table)] = np.nan
    epochs = np.flatnonzero(np.isfinite(table).any(axis=0))
    if not epochs.size:
        raise ValueError(f"{caller}: no {name} is a finite number")
    if len(curves) >= 10:
        low, middle, high = np.nanpercentile(table[:, epochs], (10, 50, 90), axis=0)
        band = "80% of them"
    else:
        low, middle, high = np.nanpercentile(table[:, epochs], (0, 50, 100), axis=0)
        band = "all of them"
    if len({len(curve) for curve in curves}) > 1:
        band += ", as long as they train"
    (drawn,) = axes(caller, ax)
    drawn.fill_between(epochs + 1, low, high, color=BLUE, alpha=0.25, linewidth=0, label=band)
    _curve(drawn, middle, BLUE, "median", epochs + 1)
    _curve(drawn, curves[best], VERMILLION, "best")
    at = len(curves[best]) - 1 if restored is None else restored
    drawn.plot([at + 1], [curves[best][at]], "o", color=VERMILLION, markersize=5)
    drawn.set_ylabel(TITLES[name])
    drawn.set_xlabel("epoch")
    without = f", {left_out} that failed left out" if left_out else ""
    drawn.set_title(f"{len(curves)} networks{without}", fontsize="medium")
    whole_numbers(drawn)
    frame(drawn)
    drawn.legend(frameon=False, fontsize="small")
    return result([drawn])


def delta_norms(ax: Any, norms: np.ndarray, caller: str = "DeltaNorms.plot()") -> Axes | np.ndarray:
    """The size of δ^l by epoch, a curve for each layer, on a logarithmic scale.

    Parameters
    ----------
    norms : (epochs, L) array
    """
    if not len(norms):
        raise ValueError(f"{caller}: there is no epoch yet: give it to a fit as a callback")
    (drawn,) = axes(caller, ax)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    depth, colours = norms.shape[1], by_value()
    # A logarithm has no 0: neurons that are dead, or saturated, leave a gap.
    seen = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
    for l in range(depth):
        colour = colours(l / max(depth - 1, 1))
        _curve(drawn, seen[:, l], colour, rf"$\delta^{{{l + 1}}}$")
    if np.isfinite(seen).any():
        drawn.set_yscale("log")
    drawn.set_xlabel("epoch")
    drawn.set_ylabel(r"root mean square of $\delta^l$")
    whole_numbers(drawn)
    frame(drawn)
    if depth <= NAMED_LAYERS:
        drawn.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        scale = ScalarMappable(Normalize(1, depth), colours)
        drawn.get_figure().colorbar(scale, ax=drawn, label="layer $l$")  # type: ignore[union-attr]
    return result([drawn])


def _curve(
    ax: Axes, values: Sequence[float] | np.ndarray, colour: Any, label: str, epochs: Any = None
) -> None:
    """Values by epoch, counted from 1; so few that a line would not be seen have marks."""
    marker = "o" if len(values) < 3 else None
    where = range(1, len(values) + 1) if epochs is None else epochs
    ax.plot(where, values, color=colour, label=label, marker=marker, linewidth=1.8)
