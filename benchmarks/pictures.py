"""Draws the pictures of docs/pictures.md, on scikit-learn's digits.

python -m backprop_gpu.benchmarks.pictures [--folder docs]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from backprop_gpu import DeltaNorms, EarlyStopping, Network, sweep


def figure_of(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def draw_a_training(path: Path, X: Any, y: Any, held_out: Any) -> None:
    """A network's weights, history and confusion, and a sweep."""
    figure, axes = figure_of(2, 2, (12.0, 9.0))
    net = Network([64, 30, 10], cost="binary_cross_entropy", backend="numpy", seed=1)
    history = net.fit(
        X, y, epochs=60, batch_size=10, learning_rate=0.5, validation_data=held_out,
        callbacks=[EarlyStopping(patience=5)],
    )  # fmt: skip
    net.plot(axes[0, 0])
    history.plot(axes[0, 1])
    X_test, y_test = held_out
    net.plot_confusion(X_test, y_test, axes[1, 0])
    result = sweep(
        X, y, validation_data=held_out, epochs=3, batch_size=10, seed=0, backend="numpy",
        grid={"learning_rate": [0.03, 0.1, 0.3, 1.0, 3.0], "sizes": [[64, 10], [64, 30, 10]],
              "l2": [0.0, 1e-4, 1e-3]},
        cost="binary_cross_entropy", progress=False,
    )  # fmt: skip
    result.plot(ax=axes[1, 1])
    figure.savefig(path, dpi=110)


def draw_vanishing_gradients(path: Path, X: Any, y: Any) -> None:
    """δ in each layer of a deep network of sigmoids, and of ReLU."""
    figure, axes = figure_of(1, 2, (11.0, 4.2))
    for ax, sigma, rate in zip(axes, ("sigmoid", "relu"), (0.5, 0.05), strict=True):
        norms = DeltaNorms()
        activation = [*[sigma] * 6, "softmax"]
        net = Network(
            [64, *[30] * 6, 10], activation=activation, cost="categorical_cross_entropy",
            backend="numpy", seed=0,
        )  # fmt: skip
        net.fit(X, y, epochs=20, batch_size=10, learning_rate=rate, callbacks=[norms])
        norms.plot(ax)
        ax.set_title(f"six layers of {sigma}", fontsize="medium")
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="docs", help="default %(default)s")
    folder = Path(parser.parse_args(arguments).folder)
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.3, random_state=0, stratify=y)
    draw_a_training(folder / "pictures-training.png", X, y, (X_test, y_test))
    draw_vanishing_gradients(folder / "pictures-deltas.png", X, y)


if __name__ == "__main__":
    main()
