"""What became of many settings: parallel coordinates, and a heat map of two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .axes import (
    GREY,
    VERMILLION,
    axes,
    by_value,
    frame,
    needs_matplotlib,
    on_colour,
    plain,
    result,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A setting's value in each row: a number, a text, or None where the row has none.
Column = Sequence[float | str | None]

#: Numbers are spread by their logarithms where the largest is so many times the smallest.
WIDE = 30.0
#: Where a value lies that is missing, or no number; the others lie from 0 to 1.
BELOW = -0.12
#: Values of one setting that a heat map has room for.
MOST_CELLS = 40


def parallel(
    ax: Any,
    columns: Mapping[str, Column],
    metric: str,
    values: Sequence[float],
    states: Sequence[str],
    caller: str = "SweepResult.plot()",
) -> Axes | np.ndarray:
    """A line for every row across all settings, to what it came to.

    Parameters
    ----------
    columns : mapping of str to (rows,) sequences
        The settings.
    metric : str
        What `values`, (rows,), are; of a name that ends in "loss" the smaller is better.
    states : (rows,) sequence of {"", "pruned", "failed"}
        Those that are pruned are grey, and those that failed grey and dotted.
    """
    needs_matplotlib(caller)
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patheffects import withStroke

    outcome = [float(v) if np.isfinite(v) else None for v in values]
    scales = [*map(_scale, columns.values()), _scale(outcome)]
    (drawn,) = axes(caller, ax, size=(max(5.6, 1.5 * len(scales) + 1.2), 4.4))
    places = np.column_stack([scale.places for scale in scales])
    lines = np.stack(np.broadcast_arrays(np.arange(len(scales))[None], places), axis=-1)
    sound = np.array([not state for state in states]) & np.isfinite(np.asarray(values, float))
    pruned = np.array([state == "pruned" for state in states])
    alpha = float(np.clip(40 / max(len(lines), 1), 0.25, 0.9))

    for which, style, label in (
        (pruned, "-", "pruned"), (~sound & ~pruned, ":", "failed")
    ):  # fmt: skip
        if which.any():
            drawn.add_collection(
                LineCollection(
                    list(lines[which]), colors=GREY, linestyles=style, linewidths=0.9,
                    alpha=0.5, label=f"{which.sum()} {label}",
                )
            )  # fmt: skip
    if sound.any():
        # The best come last, and so on top.
        order = np.flatnonzero(sound)
        order = order[np.argsort(np.asarray(values, float)[order], kind="stable")]
        if metric.endswith("loss"):
            order = order[::-1]
        found, colours = np.asarray(values, float)[order], by_value()
        norm = (LogNorm if scales[-1].logarithmic else Normalize)(found.min(), found.max())
        if metric.endswith("loss"):
            colours = colours.reversed()
        drawn.add_collection(
            LineCollection(
                list(lines[order]), array=found, cmap=colours, norm=norm, linewidths=1.4,
                alpha=alpha,
            )
        )  # fmt: skip
        drawn.plot(*lines[order[-1]].T, color=VERMILLION, linewidth=2.8, zorder=3, label="best")
        figure = drawn.get_figure()
        assert figure is not None
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=drawn, label=metric, pad=0.02)
        bar.outline.set_visible(False)
    behind = withStroke(linewidth=4, foreground=drawn.get_facecolor())
    for i, scale in enumerate(scales):
        drawn.axvline(i, color=GREY, linewidth=0.8, zorder=1)
        last = i == len(scales) - 1
        for place, text in scale.ticks:
            drawn.text(
                i + (0.03 if last else -0.03), place, text, ha="left" if last else "right",
                va="center", fontsize="small", zorder=4, path_effects=[behind],
            )  # fmt: skip
    drawn.set_xlim(-0.45, len(scales) - 0.75)
    drawn.set_ylim(BELOW - 0.06 if (places < 0).any() else -0.06, 1.06)
    names = [plain(name, 24) for name in (*columns, metric)]
    turned = len(names) > 6
    drawn.set_xticks(
        range(len(names)), names, rotation=25 if turned else 0, ha="right" if turned else "center"
    )
    drawn.set_yticks([])
    drawn.spines[:].set_visible(False)
    drawn.tick_params(axis="x", length=0)
    drawn.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return result([drawn])


def heatmap(
    ax: Any,
    columns: Mapping[str, Column],
    metric: str,
    values: Sequence[float],
    states: Sequence[str],
    caller: str = "SweepResult.plot()",
) -> Axes | np.ndarray:
    """What two settings came to: the mean of the rows of each pair of their values.

    Parameters are those of `parallel`; of a pair whose rows were all pruned, or failed, that is
    said, and where some were they are left out of the mean.
    """
    (x_name, x), (y_name, y) = columns.items()
    xs, ys = _distinct(x), _distinct(y)
    for name, found in ((x_name, xs), (y_name, ys)):
        if len(found) > MOST_CELLS:
            raise ValueError(
                f"{caller}: {name} has {len(found)} values, and a heat map room for {MOST_CELLS}: "
                "give kind='parallel'"
            )
    cells: list[list[list[int]]] = [[[] for _ in xs] for _ in ys]
    for row, (column, line) in enumerate(zip(x, y, strict=True)):
        cells[ys.index(line)][xs.index(column)].append(row)
    table = np.full((len(ys), len(xs)), np.nan)
    texts = np.full(table.shape, "", object)
    most = 1
    for place in np.ndindex(*table.shape):
        rows = cells[place[0]][place[1]]
        sound = [values[row] for row in rows if not states[row] and np.isfinite(values[row])]
        most = max(most, len(sound))
        if sound:
            table[place] = np.mean(sound)
            texts[place] = f"{table[place]:.3g}"
        elif rows:
            texts[place] = next((states[row] for row in rows if states[row]), "no number")
    (drawn,) = axes(
        caller, ax, size=(min(4.0 + 0.6 * len(xs), 14.0), min(2.6 + 0.45 * len(ys), 12.0))
    )
    from matplotlib import colormaps

    colours = colormaps["viridis_r" if metric.endswith("loss") else "viridis"]
    image = drawn.imshow(
        np.ma.masked_invalid(table), cmap=colours.with_extremes(bad=(0, 0, 0, 0)), origin="lower",
        aspect="auto", interpolation="nearest",
    )  # fmt: skip
    for line, column in np.ndindex(*table.shape) if table.size <= 150 else ():
        inside = np.isfinite(table[line, column])
        colour = on_colour(image.to_rgba(table[line, column])[:3]) if inside else GREY
        drawn.text(
            column, line, str(texts[line, column]), ha="center", va="center", fontsize="small",
            color=colour,
        )  # fmt: skip
    x_texts = [_text(value) for value in xs]
    turned = max(map(len, x_texts)) > 8 and len(xs) > 3
    drawn.set_xticks(
        range(len(xs)), x_texts, rotation=30 if turned else 0, ha="right" if turned else "center"
    )
    drawn.set_yticks(range(len(ys)), [_text(value) for value in ys])
    drawn.set_xlabel(plain(x_name))
    drawn.set_ylabel(plain(y_name))
    frame(drawn)
    drawn.grid(False)
    drawn.spines[:].set_visible(False)
    if np.isfinite(table).any():
        figure = drawn.get_figure()
        assert figure is not None
        bar = figure.colorbar(image, ax=drawn, label=metric)
        if most > 1:
            drawn.set_title(f"mean of up to {most} networks", fontsize="medium")
        bar.outline.set_visible(False)
    return result([drawn])


class _Scale(NamedTuple):
    """Where values lie along an axis, and what is written there."""

    places: np.ndarray
    ticks: list[tuple[float, str]]
    logarithmic: bool = False


def _scale(column: Column) -> _Scale:
    """Numbers by their size, or by its logarithm; others side by side."""
    numbers = [value for value in column if value is not None]
    if not numbers or any(isinstance(value, str | bool) for value in numbers):
        known = _distinct(column)
        spread = np.linspace(0.0, 1.0, len(known)) if len(known) > 1 else np.array([0.5])
        some = max(1, -(-len(known) // 12))
        ticks = [
            (float(place), _text(value))
            for place, value in list(zip(spread, known, strict=True))[::some]
        ]
        return _Scale(np.array([spread[known.index(value)] for value in column]), ticks)
    array = np.array([np.nan if value is None else value for value in column], float)
    low, high = np.nanmin(array), np.nanmax(array)
    logarithmic = bool(1e-290 < low <= high / WIDE < 1e290)
    if low == high:
        places, marks = np.full(len(array), 0.5), [float(low)]
    else:

        def place(value: Any) -> Any:
            if logarithmic:
                return (np.log(value) - np.log(low)) / (np.log(high) - np.log(low))
            return (value / 2 - low / 2) / (high / 2 - low / 2)

        places, marks = place(array), _marks(array, logarithmic)
    ticks, last = [], -1.0
    for mark in marks:
        where = 0.5 if low == high else float(place(mark))
        if where - last >= 0.045:
            ticks.append((where, f"{mark:.3g}"))
            last = where
    missing = np.isnan(array)
    if missing.any():
        places = np.where(missing, BELOW, places)
        ticks.append((BELOW, "–"))
    return _Scale(places, ticks, logarithmic)


def _marks(array: np.ndarray, logarithmic: bool) -> list[float]:
    """What is written beside an axis: the values themselves where they are few."""
    known = np.unique(array[np.isfinite(array)])
    if len(known) <= 8:
        return list(known)
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = known[0], known[-1]
    found = (
        LogLocator(numticks=8) if logarithmic else MaxNLocator(6, steps=[1, 2, 5, 10])
    ).tick_values(low, high)
    inner = [mark for mark in found if low <= mark <= high]
    return inner if len(inner) >= 3 else [low, *inner, high]


def _distinct(column: Column) -> list[float | str | None]:
    """Each value once: numbers in order, else as they come."""
    known = list(dict.fromkeys(column))
    if all(isinstance(value, int | float) for value in known):
        known.sort()
    return known


def _text(value: float | str | None) -> str:
    if value is None:
        return "–"
    return plain(value, 22) if isinstance(value, str) else f"{value:.4g}"
