"""A network's weights, and what it takes classes for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import imports, validation
from .axes import GREY, axes, largest, needs_matplotlib, result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

#: Blue is below 0, red above.
COLOURS = "RdBu_r"
#: The least number of inputs that are taken for an image where nobody says so.
LEAST_IMAGE = 16


def image_shape(given: Any, inputs: int) -> tuple[int, int] | None:
    """(height, width) of the input where it is an image.

    Raises
    ------
    ValueError, TypeError
        If `given` is no pair whose product is the number of inputs.
    """
    if given is None:
        side = math.isqrt(inputs)
        return (side, side) if side * side == inputs >= LEAST_IMAGE else None
    if given is False:
        return None
    pair = list(given) if validation.is_ordered(given) else []
    if len(pair) != 2:
        raise TypeError(f"image_shape must be (height, width), False or None, got {given!r}")
    height, width = (
        validation.integer(f"image_shape[{i}]", side, 1) for i, side in enumerate(pair)
    )
    if height * width != inputs:
        raise ValueError(
            f"image_shape {height}x{width} has {height * width} pixels, and there are {inputs} "
            "inputs"
        )
    return height, width


def weights(
    ax: Any,
    w: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    shape: Any = None,
    neurons: int = 25,
    caller: str = "Network.plot()",
) -> Axes | np.ndarray:
    """The first layer's weights as images, or the weights and biases of all layers.

    Parameters
    ----------
    w, b : sequences of arrays
        (n_l, n_{l-1}) and (n_l,) of layers 1 … L.
    shape : (int, int), False or None
        Of the input where it is an image; None: a square of 16 pixels or more is one.
    neurons : int
        Images at most.
    """
    neurons = validation.integer("neurons", neurons, 1)
    pixels = image_shape(shape, w[0].shape[1])
    if pixels is None:
        return _layers(caller, ax, w, b)
    return _images(caller, ax, w[0], pixels, neurons)


def _images(
    caller: str, ax: Any, w: np.ndarray, shape: tuple[int, int], neurons: int
) -> Axes | np.ndarray:
    """Rows of w as images on one sheet."""
    needs_matplotlib(caller)
    from matplotlib.patches import Rectangle

    shown = min(neurons, len(w))
    columns = math.ceil(math.sqrt(shown))
    (height, width), rows = shape, -(-shown // columns)
    sheet = np.full((rows * height, columns * width), np.nan)
    corners = [((j // columns) * height, (j % columns) * width) for j in range(shown)]
    for j, (top, left) in enumerate(corners):
        sheet[top : top + height, left : left + width] = w[j].reshape(shape)
    (drawn,) = axes(caller, ax, size=(5.2, 4.6))
    image = _image(drawn, sheet, largest(w[:shown]))
    drawn.set_xlim(-0.5, columns * width - 0.5)
    for top, left in corners:
        drawn.add_patch(
            Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color=GREY, linewidth=1.2)
        )
    drawn.set_axis_off()
    drawn.set_title(rf"$w^1$ of {shown} of {len(w)} neurons", fontsize="medium")
    _colour_bar(image, [drawn], r"weight $w^1_{jk}$ of pixel $k$")
    return result([drawn])


def _layers(
    caller: str, ax: Any, w: Sequence[np.ndarray], b: Sequence[np.ndarray]
) -> Axes | np.ndarray:
    """(w, b) of every layer as heat maps of one scale."""
    drawn = axes(caller, ax, len(w), columns=min(len(w), 4), size=(3.4, 3.4))
    limit = largest(*w, *b)
    for l, (each, matrix, biases) in enumerate(zip(drawn, w, b, strict=True), start=1):
        n, k = matrix.shape
        # b stands beside w, at some distance, and as wide as can be seen.
        left = k + max(0.5, 0.03 * k)
        right = left + max(1.0, 0.06 * k)
        image = _image(each, matrix, limit, (0, k, n, 0))
        _image(each, biases[:, None], limit, (left, right, n, 0))
        each.set_xlim(0, right)
        each.set_ylim(n, 0)
        each.set_aspect("auto")
        each.spines[:].set_visible(False)
        inputs = sorted({0, k - 1})
        each.set_xticks(
            [*(i + 0.5 for i in inputs), (left + right) / 2], [*map(str, inputs), "$b$"]
        )
        outputs = sorted({0, n - 1})
        each.set_yticks([i + 0.5 for i in outputs], list(map(str, outputs)))
        each.set_xlabel(rf"neuron $k$ of layer {l - 1}" if l > 1 else "input $k$", labelpad=2)
        each.set_ylabel(rf"neuron $j$ of layer {l}", labelpad=2)
        each.set_title(rf"$w^{{{l}}}$ ({n} × {k}) and $b^{{{l}}}$", fontsize="medium")
    _colour_bar(image, drawn, r"weight $w_{jk}$, bias $b_j$")
    return result(drawn)


def _image(
    ax: Axes, values: np.ndarray, limit: float, extent: tuple[float, ...] | None = None
) -> AxesImage:
    """Values from -limit to limit; what is no number stays blank."""
    from matplotlib import colormaps

    colours = colormaps[COLOURS].with_extremes(bad=(0, 0, 0, 0))
    return ax.imshow(
        np.ma.masked_invalid(values), cmap=colours, vmin=-limit, vmax=limit,
        interpolation="nearest", extent=extent,  # type: ignore[arg-type]
    )  # fmt: skip


def _colour_bar(image: AxesImage, drawn: Sequence[Axes], label: str) -> None:
    figure = drawn[0].get_figure()
    assert figure is not None
    bar = figure.colorbar(image, ax=list(drawn), label=label, shrink=0.9)
    bar.outline.set_visible(False)


def confusion(
    ax: Any,
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: int,
    normalize: str | None = None,
    caller: str = "Network.plot_confusion()",
) -> Axes | np.ndarray:
    """How many rows of each class were taken for which, by scikit-learn's display.

    Parameters
    ----------
    labels, predicted : (n,) int arrays
    classes : int
    normalize : {"true", "pred", "all"}, optional
        As in ``sklearn.metrics.confusion_matrix``.
    """
    if normalize is not None:
        validation.one_of("normalize", normalize, ("true", "pred", "all"))
    if not len(labels):
        raise ValueError(f"{caller}: there are no rows")
    metrics = imports.optional("sklearn.metrics", "sklearn", caller)
    side = min(max(4.6, 0.5 * classes), 12.0)
    (drawn,) = axes(caller, ax, size=(side + 0.8, side))
    metrics.ConfusionMatrixDisplay.from_predictions(
        labels, predicted, labels=np.arange(classes), normalize=normalize, ax=drawn,
        include_values=classes <= 25, values_format=None if normalize is None else ".2f",
    )  # fmt: skip
    return result([drawn])
