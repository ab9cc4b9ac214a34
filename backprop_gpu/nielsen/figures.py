"""The book's figures, drawn anew: trainings by `experiments`, and functions.

>>> from backprop_gpu.nielsen import figures
>>> ax = figures.multiple_eta("digits")  # doctest: +SKIP

    python -m backprop_gpu.nielsen.figures [names] --out DIR

Functions that train take ``(data, epochs, seed, ax)``, all optional, as `experiments` says; those
of images ``(data, ax)``, of untrained networks ``(data, seed, ax)``, of functions ``(ax)``. ``ax``
are the Axes to draw into, one or as many as the figure has; by default those of a new figure. They
are returned, several as an array.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .. import files, imports
from ..pictures.axes import BLUE, GREEN, PURPLE, VERMILLION, array, axes, frame
from . import experiments
from .experiments import SEED, Given, section, shared_parameters
from .trainer import sigmoid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (BLUE, VERMILLION, GREEN, PURPLE)
#: Inches, of each of several Axes.
SMALL = 4.8, 3.6

#: All figures, by name.
ALL: dict[str, Callable[..., Any]] = {}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _figure(count: int = 1, projection: str = "") -> Callable[[_Function], _Function]:
    """Enter a function of so many Axes in `ALL`, and complete its docstring."""

    def enter(function: _Function) -> _Function:
        ALL[function.__name__] = function
        if function.__doc__:  # which ``python -OO`` removes
            function.__doc__ = _docstring(function, count, projection)
        return function

    return enter


def _docstring(function: Callable[..., Any], count: int, projection: str) -> str:
    """What the function says of itself, and numpydoc's sections, which are alike in all."""
    several = f"array of {count} Axes" if count > 1 else "Axes"
    wanted = (f"sequence of {count} Axes" if count > 1 else "Axes") + (
        f" with projection={projection!r}" if projection else ""
    )
    described = shared_parameters(function) | {
        "ax": (f"{wanted}, optional", "What to draw into; by default a new figure.")
    }
    errors = {"ImportError": "Without a package that it needs, naming the extra."}
    if "data" in described:
        errors["FileNotFoundError"] = "If there are no data at the path."
    errors["TypeError, ValueError"] = "For arguments that do not fit."
    lines = [inspect.cleandoc(function.__doc__ or ""), "", *section(described)]
    lines += ["", "Returns", "-------", several, "    What was drawn into.", "", "Raises", "------"]
    for name, when in errors.items():
        lines += [name, f"    {when}"]
    return "\n".join([*lines, ""])


# -- chapter 3: trainings -----------------------------------------------------------------


@_figure(4)
def learning_slowdown(epochs: int = 300, ax: Any = None) -> np.ndarray:
    """Chapter 3: one neuron from two starts; above the quadratic cost, below the cross-entropy."""
    numbers = experiments.learning_slowdown(epochs)
    drawn = axes("figures.learning_slowdown()", ax, 4, columns=2, size=SMALL)
    of_panels = [(name, i) for name in ("quadratic", "cross-entropy") for i in range(2)]
    for each, (name, i) in zip(drawn, of_panels, strict=True):
        w, b = numbers["starts"][i]
        each.plot(numbers[name][i]["cost"], color=BLUE)
        _label(each, f"{name}, from w = {w:g}, b = {b:g}", "Epoch", "Cost")
        each.set_xlim(0, epochs)
        each.set_ylim(bottom=0)
    return array(drawn)


@_figure(4)
def overfitting(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> np.ndarray:
    """Chapter 3: costs and accuracies of a network with few samples, without regularisation."""
    return _four_curves("overfitting", experiments.overfitting(data, epochs, seed), ax)


@_figure(4)
def regularized(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> np.ndarray:
    """Chapter 3: as `overfitting`, with L2 regularisation: the test cost keeps falling."""
    return _four_curves("regularized", experiments.regularized(data, epochs, seed), ax)


@_figure()
def overfitting_full(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> Axes:
    """Chapter 3: both accuracies with all samples, without regularisation."""
    return _overlay("overfitting_full", experiments.overfitting_full(data, epochs, seed), ax)


@_figure()
def regularized_full(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> Axes:
    """Chapter 3: as `overfitting_full`, with L2 regularisation."""
    return _overlay("regularized_full", experiments.regularized_full(data, epochs, seed), ax)


def _four_curves(name: str, numbers: experiments.Numbers, ax: Any) -> np.ndarray:
    """The late part of what has settled, and all of what goes far."""
    drawn = axes(f"figures.{name}()", ax, 4, columns=2, size=SMALL)
    epochs = len(numbers["test_cost"])
    panels = (
        ("training_cost", "Cost on the training data", epochs // 2),
        ("test_accuracy", "Accuracy (%) on the test data", epochs // 2),
        ("test_cost", "Cost on the test data", 0),
        ("training_accuracy", "Accuracy (%) on the training data", 0),
    )
    for each, (key, title, first) in zip(drawn, panels, strict=True):
        each.plot(range(first, epochs), numbers[key][first:], color=BLUE)
        each.set_xlim(first, epochs)
        _label(each, title, "Epoch")
    return array(drawn)


def _overlay(name: str, numbers: experiments.Numbers, ax: Any) -> Axes:
    (drawn,) = axes(f"figures.{name}()", ax, 1)
    for key, color in (("test", BLUE), ("training", VERMILLION)):
        drawn.plot(numbers[f"{key}_accuracy"], color=color, label=f"on the {key} data")
    drawn.set_ylim(90, 100.2)
    _label(drawn, "Accuracy (%)", "Epoch")
    drawn.legend(loc="lower right")
    return drawn


@_figure(2)
def weight_initialization(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> np.ndarray:
    """Chapter 3: wide and narrow initial weights, with 30 hidden neurons and with 100."""
    numbers = experiments.weight_initialization(data, epochs, seed)
    drawn = axes("figures.weight_initialization()", ax, len(numbers), size=SMALL)
    for each, (hidden, curves) in zip(drawn, numbers.items(), strict=True):
        each.plot(curves["old"], color=BLUE, label="w of N(0, 1)")
        each.plot(curves["new"], color=VERMILLION, label=r"w of N(0, 1/$n_{in}$)")
        each.set_ylim(85 if min(curves["old"]) > 80 else 40, 100.5)
        _label(each, f"Accuracy (%), {hidden} hidden neurons", "Epoch")
        each.legend(loc="lower right")
    return array(drawn)


@_figure()
def multiple_eta(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> Axes:
    """Chapter 3: the cost with a learning rate that is small, one that is right, one too large."""
    (drawn,) = axes("figures.multiple_eta()", ax, 1)
    numbers = experiments.multiple_eta(data, epochs, seed)
    for (eta, costs), color in zip(numbers.items(), COLORS, strict=False):
        drawn.plot(costs, "o-", markersize=3, color=color, label=rf"$\eta$ = {eta}")
    drawn.set_ylim(bottom=0)
    _label(drawn, "", "Epoch", "Cost on the training data")
    drawn.legend()
    return drawn


@_figure(3)
def more_data(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> np.ndarray:
    """Chapter 3: accuracy by samples, linear, logarithmic, and beside a support vector machine.

    That is scikit-learn's, with what were its defaults when the book was written.
    """
    numbers = experiments.more_data(data, epochs, seed)
    drawn = axes("figures.more_data()", ax, 3, size=SMALL)
    sizes = numbers["sizes"]
    for each in drawn:
        each.plot(sizes, numbers["network"], "o-", color=BLUE, label="network")
        _label(each, "Accuracy (%) on the validation data", "Training samples")
    drawn[2].plot(sizes, numbers["svm"], "o-", color=VERMILLION, label="support vector machine")
    drawn[2].legend(loc="lower right")
    for each in drawn[1:]:
        each.set_xscale("log")
    return array(drawn)


@_figure(2)
def expanded_mnist(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> np.ndarray:
    """Chapter 3: an image and how it is displaced; accuracy without and with such images."""
    numbers = experiments.expanded_mnist(data, epochs, seed)
    drawn = axes("figures.expanded_mnist()", ax, 2, size=SMALL)
    shown = [numbers["image"], *numbers["displaced"]]
    _show(drawn[0], _in_a_row(shown))
    drawn[0].set_title("An image, and it displaced by one pixel")
    steps = 5 * np.arange(1, len(numbers["expanded"]) + 1)
    for name, color in (("as they are", BLUE), ("expanded", VERMILLION)):
        drawn[1].plot(steps, numbers[name], color=color, label=name)
    _label(drawn[1], f"Accuracy (%), of {numbers['size']} samples", "Epochs' worth of steps")
    drawn[1].legend(loc="lower right")
    return array(drawn)


@_figure()
def dropout(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> Axes:
    """Accuracy on the validation data without and with dropout (chapters 3 and 6)."""
    (drawn,) = axes("figures.dropout()", ax, 1)
    numbers = experiments.dropout(data, epochs, seed)
    lowest = 100.0
    for (rate, curves), color in zip(numbers.items(), COLORS, strict=False):
        held = curves["validation"]
        label = f"dropout {rate} ({curves['training']:.1f} % on the training data)"
        drawn.plot(held, color=color, label=label)
        lowest = min(lowest, *held[len(held) // 10 :])
    drawn.set_ylim(5 * np.floor(lowest / 5), 100)
    _label(drawn, "Accuracy (%) on the validation data", "Epoch")
    drawn.legend(loc="upper right")
    return drawn


# -- chapters 2 and 5: gradients -------------------------------------------------------------


@_figure()
def initial_gradient(data: Given = None, seed: int = SEED, ax: Any = None) -> Axes:
    """Chapter 5: how fast the first six neurons of two hidden layers would learn, untrained."""
    (drawn,) = axes("figures.initial_gradient()", ax, 1)
    numbers = experiments.initial_gradient(data, seed)
    for l, (gradient, color) in enumerate(zip(numbers["gradients"], COLORS, strict=False)):
        place = np.arange(1, len(gradient) + 1) + 0.4 * l - 0.2
        label = rf"hidden layer {l + 1}: $\Vert\delta\Vert$ = {numbers['norms'][l]:.3f}"
        drawn.bar(place, np.abs(gradient), 0.4, color=color, label=label)
    drawn.set_xticks(range(1, len(numbers["gradients"][0]) + 1))
    _label(drawn, r"$|\partial C / \partial b^l_j|$ before training", "Neuron $j$")
    drawn.legend()
    return drawn


@_figure(3)
def training_speed(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> np.ndarray:
    """Chapter 5: how fast the hidden layers learn, of two, of three and of four."""
    numbers = experiments.training_speed(data, epochs, seed)
    drawn = axes("figures.training_speed()", ax, len(numbers), size=SMALL)
    for each, (count, norms) in zip(drawn, numbers.items(), strict=True):
        for l, (curve, color) in enumerate(zip(np.transpose(norms), COLORS, strict=False)):
            each.plot(curve, color=color, label=f"Hidden layer {l + 1}")
        each.set_yscale("log")
        _label(each, f"Speed of learning: {count} hidden layers", "Epoch", _NORM_OF_B)
        each.legend(loc="upper right")
    return array(drawn)


_NORM_OF_B = r"$\Vert\partial C / \partial b^l\Vert$"


@_figure()
def backprop_magnitude_nabla(data: Given = None, seed: int = SEED, ax: Any = None) -> Axes:
    """Chapter 2: gradients of a deep network's layers in three mini-batches."""
    (drawn,) = axes("figures.backprop_magnitude_nabla()", ax, 1)
    numbers = experiments.backprop_magnitude_nabla(data, seed)
    for k, (norms, color) in enumerate(zip(numbers["norms"], COLORS, strict=False), start=8):
        layers = range(1, len(norms) + 1)
        drawn.plot(layers, norms, "o-", color=color, label=f"mini-batch {k}")
    drawn.set_xticks(range(1, len(numbers["norms"][0]) + 1))
    drawn.set_ylim(bottom=0)
    _label(drawn, "", "Layer $l$", r"$\Vert\nabla C^l_w\Vert$")
    drawn.legend()
    return drawn


# -- images -------------------------------------------------------------------------------


@_figure()
def hundred_digits(data: Given = None, ax: Any = None) -> Axes:
    """Chapter 1: the first hundred images."""
    return _images("hundred_digits", data, 10, 10, ax)


@_figure()
def six_digits(data: Given = None, ax: Any = None) -> Axes:
    """Chapter 1: the first six images in a row."""
    return _images("six_digits", data, 1, 6, ax)


@_figure()
def first_digit(data: Given = None, ax: Any = None) -> Axes:
    """Chapter 1: the first image."""
    return _images("first_digit", data, 1, 1, ax)


@_figure(5)
def features(data: Given = None, ax: Any = None) -> np.ndarray:
    """Chapter 1: a 0, and each of its quarters alone."""
    given = experiments.images(data)
    (X, y), side = given.training, given.side
    zeros = np.flatnonzero(y == 0)
    image = X[zeros[0] if len(zeros) else 0].reshape(side, side)
    drawn = axes("figures.features()", ax, 5, size=(2.2, 2.4))
    half = side // 2
    names = ("whole", "top left", "top right", "bottom left", "bottom right")
    for k, (each, name) in enumerate(zip(drawn, names, strict=True)):
        part = image.copy()
        if k:
            kept = np.zeros_like(part)
            rows = slice(0, half) if k < 3 else slice(half, side)
            columns = slice(0, half) if k % 2 else slice(half, side)
            kept[rows, columns] = 1
            part = part * kept
        _show(each, part)
        each.set_title(name)
    return array(drawn)


@_figure(2)
def rotated_digit(data: Given = None, ax: Any = None) -> np.ndarray:
    """Chapter 3: the first image, and it rotated by 15 degrees."""
    ndimage = imports.optional("scipy.ndimage", "sklearn", "figures.rotated_digit()")
    given = experiments.images(data)
    (X, _), side = given.training, given.side
    image = X[0].reshape(side, side)
    drawn = axes("figures.rotated_digit()", ax, 2, size=(2.6, 2.8))
    _show(drawn[0], image)
    _show(drawn[1], ndimage.rotate(image, 15, reshape=False, order=1))
    for each, name in zip(drawn, ("an image", "rotated by 15°"), strict=True):
        each.set_title(name)
    return array(drawn)


@_figure()
def misclassified(
    data: Given = None, epochs: int | None = None, seed: int = SEED, ax: Any = None
) -> Axes:
    """What a trained network gets wrong, and its answers (chapters 1 and 6)."""
    (drawn,) = axes("figures.misclassified()", ax, 1, size=(7.5, 2.9))
    numbers = experiments.misclassified(data, epochs, seed)
    shown = numbers["images"]
    if shown:
        side, gap = shown[0].shape[0], max(1, shown[0].shape[0] // 4)
        shown = shown + [np.zeros_like(shown[0])] * (-len(shown) % 9)
        low = side // 2  # for labels
        rows = [_in_a_row(shown[k : k + 9], gap) for k in range(0, len(shown), 9)]
        _show(drawn, np.concatenate([np.pad(row, ((0, low), (0, 0))) for row in rows]))
        for k, (label, said) in enumerate(
            zip(numbers["labels"], numbers["predictions"], strict=True)
        ):
            x, y = k % 9 * (side + gap), k // 9 * (side + low) + side - 0.5
            drawn.text(x + 0.2 * side, y, str(label), color=BLUE, va="top", ha="center")
            drawn.text(x + 0.8 * side, y, str(said), color=VERMILLION, va="top", ha="center")
    right = f"{numbers['accuracy']:.2f} % of the test images are right"
    drawn.set_title(f"Wrong ones (label in blue, answer in red); {right}")
    return drawn


def _images(name: str, data: Given, rows: int, columns: int, ax: Any) -> Axes:
    given = experiments.images(data)
    (X, _), side = given.training, given.side
    size = max(2.4, 0.6 * columns), max(0.8, 0.6 * rows) if columns > 1 else 2.4
    (drawn,) = axes(f"figures.{name}()", ax, 1, size=size)
    shown = [x.reshape(side, side) for x in X[: rows * columns]]
    shown += [np.zeros((side, side))] * (rows * columns - len(shown))
    gap = side // 7
    lines = [_in_a_row(shown[k : k + columns], gap) for k in range(0, rows * columns, columns)]
    _show(drawn, np.concatenate([np.pad(line, ((0, gap), (0, 0))) for line in lines]))
    return drawn


def _in_a_row(shown: Sequence[np.ndarray], gap: int = 1) -> np.ndarray:
    return np.concatenate([np.pad(each, ((0, 0), (0, gap))) for each in shown], axis=1)


def _show(ax: Axes, image: np.ndarray) -> None:
    ax.imshow(image, cmap="binary", interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])


# -- functions ----------------------------------------------------------------------------


@_figure(4)
def activation_functions(ax: Any = None) -> np.ndarray:
    """Step, sigmoid, tanh and rectified linear neurons (chapters 1 and 6)."""
    z = np.linspace(-5.0, 5.0, 401)
    drawn = axes("figures.activation_functions()", ax, 4, columns=2, size=(4.2, 3.0))
    shapes: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
        ("step function", lambda z: (z > 0) * 1.0),
        ("sigmoid function", sigmoid),
        ("tanh function", np.tanh),
        ("rectified linear unit", lambda z: np.maximum(0.0, z)),
    )
    for each, (name, shape) in zip(drawn, shapes, strict=True):
        each.plot(z, shape(z), color=BLUE)
        _label(each, name, "z")
    return array(drawn)


@_figure(projection="3d")
def valley(ax: Any = None) -> Axes:
    """Chapter 1: C = v_1² + v_2², which gradient descent goes down."""
    return _surface("valley", ax, 1.0, lambda x, y: x**2 + y**2, ("$v_1$", "$v_2$", "$C$"))


@_figure(projection="3d")
def false_minima(ax: Any = None) -> Axes:
    """Chapter 1: sin x sin y + 0.2 x, with many minima."""
    return _surface("false_minima", ax, 5.0, lambda x, y: np.sin(x) * np.sin(y) + 0.2 * x)


@_figure(projection="3d")
def misleading_gradient(ax: Any = None) -> Axes:
    """Chapter 5: C = w_1² + 10 w_2², whose gradient seldom points to the minimum."""
    return _surface(
        "misleading_gradient", ax, 1.0, lambda x, y: x**2 + 10 * y**2, ("$w_1$", "$w_2$", "$C$")
    )


@_figure()
def misleading_gradient_contours(ax: Any = None) -> Axes:
    """Chapter 5: the contours of `misleading_gradient`."""
    (drawn,) = axes("figures.misleading_gradient_contours()", ax, 1)
    x, y = np.meshgrid(np.linspace(-1, 1, 101), np.linspace(-1, 1, 101))
    lines = drawn.contour(x, y, x**2 + 10 * y**2, levels=[0.5, *range(1, 9)])
    drawn.clabel(lines)
    _label(drawn, "", "$w_1$", "$w_2$")
    return drawn


@_figure(2, projection="3d")
def pca_limitations(ax: Any = None) -> np.ndarray:
    """A helix, which no plane fits: points about it alone, and with the helix."""
    drawn = axes("figures.pca_limitations()", ax, 2, size=SMALL, projection="3d")
    rng = np.random.default_rng(SEED)
    z, turn = np.linspace(-2, 2, 20), np.linspace(-4 * np.pi, 4 * np.pi, 20)
    noise = 0.03 * rng.standard_normal((2, 20))
    finer = np.linspace(-4 * np.pi, 4 * np.pi, 400)
    for each in drawn:
        each.plot(np.sin(turn) + noise[0], np.cos(turn) + noise[1], z, "o", color=VERMILLION)
    drawn[1].plot(np.sin(finer), np.cos(finer), np.linspace(-2, 2, 400), color=BLUE)
    return array(drawn)


def _surface(
    name: str,
    ax: Any,
    reach: float,
    height: Callable[[np.ndarray, np.ndarray], np.ndarray],
    labels: Sequence[str] = ("", "", ""),
) -> Axes:
    drawn: Any = axes(f"figures.{name}()", ax, 1, projection="3d")[0]
    x, y = np.meshgrid(*[np.linspace(-reach, reach, 61)] * 2)
    drawn.plot_surface(x, y, height(x, y), cmap="viridis", rstride=1, cstride=1, linewidth=0)
    drawn.locator_params(nbins=4)  # more would overlap
    for axis, label in zip("xyz", labels, strict=True):
        getattr(drawn, f"set_{axis}label")(label)
    return drawn  # type: ignore[no-any-return]


# -- what they have in common -----------------------------------------------------------------


def _label(ax: Axes, title: str, x: str, y: str = "") -> None:
    ax.set_title(title)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    frame(ax)


#: Those that take ``data``.
OF_DATA = {
    name: function
    for name, function in ALL.items()
    if "data" in inspect.signature(function).parameters
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m backprop_gpu.nielsen.figures", description="Draw the book's figures anew."
    )
    parser.add_argument("names", nargs="*", metavar="name", help="by default all; see --list")
    parser.add_argument("--out", type=Path, help="the folder for PNG files")
    parser.add_argument("--data", help="a path that mnist_loader reads, or digits")
    parser.add_argument("--list", action="store_true", help="name all figures, and draw none")
    given = parser.parse_args(arguments)
    if given.list:
        for name, figure in ALL.items():
            print(f"{name:30}{(figure.__doc__ or '').splitlines()[0]}")
        return 0
    if unknown := [name for name in given.names if name not in ALL]:
        parser.error(f"unknown figure {unknown[0]!r}; known: {', '.join(ALL)}")
    if given.out is None:
        parser.error("--out is needed")
    try:
        _draw_all(given.names or list(ALL), given.data, given.out)
    except (OSError, ValueError, ImportError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 1
    return 0


def _draw_all(names: Sequence[str], data: str | None, out: Path) -> None:
    import io

    imports.optional("matplotlib", "plot", "figures")
    from matplotlib import use

    use("Agg")
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    images = experiments.images(data) if any(name in OF_DATA for name in names) else None
    for name in names:
        drawn = ALL[name](images) if name in OF_DATA else ALL[name]()
        figure = np.ravel(np.array(drawn, object))[0].figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        pyplot.close(figure)
        files.write_whole(out / f"{name}.png", buffer.getvalue())
        print(out / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
