"""What pictures have in common: the Axes that they are drawn into, their colours and texts.

Colours are of Okabe and Ito's palette, which the colour-blind can tell apart, and of these the four
whose contrast is 3 or more with white and with black. Texts have matplotlib's own colour, which
a dark style changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import imports

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
GREY = "#808080"


def needs_matplotlib(caller: str) -> None:
    """Raise ImportError, naming the extra, if it is not installed."""
    imports.optional("matplotlib", "plot", caller)


def axes(
    caller: str,
    ax: Any,
    count: int = 1,
    *,
    size: tuple[float, float] = (5.6, 4.2),
    columns: int | None = None,
    share_x: bool = False,
    projection: str | None = None,
) -> list[Axes]:
    """The Axes that were given, or those of a new figure of pyplot's.

    Parameters
    ----------
    caller : str
        Such as "History.plot()", for messages.
    ax : Axes, sequence of Axes or None
    count : int
        How many are needed.
    size : (float, float)
        Inches, of each where a figure is new.
    columns : int, optional
        Of a new figure's Axes; by default all are side by side.
    share_x : bool
        Whether a new figure's Axes have one x axis.
    projection : str, optional
        Of all of them: "3d", say.

    Raises
    ------
    ImportError
        If there is no matplotlib, naming the extra.
    TypeError, ValueError
        If `ax` is something else, or not as many as are needed.
    """
    needs_matplotlib(caller)
    from matplotlib.axes import Axes

    if ax is None:
        from matplotlib import pyplot

        columns = columns or count
        rows = -(-count // columns)
        figure, made = pyplot.subplots(
            rows, columns, squeeze=False, sharex=share_x, layout="constrained",
            figsize=(size[0] * columns, size[1] * rows), subplot_kw={"projection": projection},
        )  # fmt: skip
        for spare in made.flat[count:]:
            figure.delaxes(spare)
        return list(made.flat[:count])
    given = list(ax.flat) if isinstance(ax, np.ndarray) else ax
    given = list(given) if isinstance(given, list | tuple) else [given]
    for each in given:
        if not isinstance(each, Axes) or (projection and each.name != projection):
            kind = f"Axes with projection={projection!r}" if projection else "Axes"
            raise TypeError(f"{caller}: ax must be a matplotlib {kind}, got {each!r}")
    if len(given) != count:
        wanted = "one Axes" if count == 1 else f"{count} Axes"
        raise ValueError(f"{caller}: ax must be {wanted} here, got {len(given)}")
    return given


def result(drawn: Sequence[Axes]) -> Axes | np.ndarray:
    """The Axes, or an array of several."""
    return drawn[0] if len(drawn) == 1 else array(drawn)


def array(drawn: Sequence[Axes]) -> np.ndarray:
    """Several Axes as NumPy has them, one after another."""
    found = np.empty(len(drawn), object)
    found[:] = drawn
    return found


def frame(ax: Axes, grid: str = "both") -> None:
    """A faint grid, and no lines on top and at the right."""
    ax.grid(True, axis=grid, color=GREY, alpha=0.3, linewidth=0.6)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    for side in {"top", "right"} & set(ax.spines):  # which polar Axes have not
        ax.spines[side].set_visible(False)


def whole_numbers(ax: Axes) -> None:
    """Ticks of the x axis that count something."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def plain(text: object, length: int = 40) -> str:
    """A text that matplotlib does not take for a formula, on one line and not too long."""
    line = " ".join(str(text).split())
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return line.replace("$", r"\$")


def by_value() -> Colormap:
    """Colours of lines by a value from 0 to 1, all of a brightness between black and white."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blue to vermillion", [BLUE, GREY, VERMILLION])


def on_colour(colour: Any) -> str:
    """Black or white, whichever reads better on it."""
    from matplotlib.colors import to_rgb

    channels = np.asarray(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "white" if float(linear @ (0.2126, 0.7152, 0.0722)) < 0.179 else "black"


def largest(*arrays: Any) -> float:
    """The largest finite |value| of all, or 1 where there is none but 0: half of a colour scale."""
    sizes = [np.abs(each[np.isfinite(each)]).max(initial=0.0) for each in map(np.asarray, arrays)]
    return min(float(max(sizes)), 8e307) or 1.0  # twice as much is still a number
