"""Draws C of an output by its distance from y, and what networks learn by some costs.

python -m backprop_gpu.benchmarks.costs docs/costs.png
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from backprop_gpu import Network, costs

#: By distance: a number that is to be met.
DISTANCES = ("quadratic", "absolute_error", "huber", "quantile(q=0.8)")


def noisy_sine(rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """A sine whose noise grows to the right, with a few values that are wrong."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 6, rows)
    y = np.sin(x) + (0.05 + 0.08 * x) * rng.standard_normal(rows)
    y[::40] += 3.0
    return x[:, None], y


def learnt(cost: str, X: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[Any, np.ndarray]:
    """The cost, and the outputs that a network trained with it has."""
    chosen = costs.get(cost)
    net = Network(
        [1, 40, 40, chosen.outputs_of(1)], activation=["tanh", "tanh", "identity"], cost=chosen,
        backend="numpy", seed=1,
    )  # fmt: skip
    net.fit(
        (X - 3) / 2, y, epochs=400, batch_size=50, optimizer="adam",
        learning_rate=lambda t: 0.005 * (1 - t / 400) + 1e-5,
    )  # fmt: skip
    return chosen, net.predict((at - 3) / 2)


def draw(path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    colors = ("#1f5fa8", "#d1602b", "#2a8050", "#b03060")
    r = np.linspace(-3, 3, 301)[:, None]
    for name, color in zip(DISTANCES, colors, strict=True):
        axes[0].plot(r, costs.get(name).samples(r, np.zeros_like(r)), color=color, label=name)
    axes[0].set(xlabel="a − y", ylabel="C", ylim=(0, 3), title="a number")
    a = np.linspace(-3, 3, 301)[:, None]
    for name, color in zip(("hinge", "squared_hinge"), colors, strict=False):
        axes[1].plot(a, costs.get(name).samples(a, np.ones_like(a)), color=color, label=name)
    probability = 1 / (1 + np.exp(-a))
    for name, color in zip(("binary_cross_entropy", "focal"), colors[2:], strict=True):
        of_row = costs.get(name).samples(probability, np.ones_like(a))
        axes[1].plot(a, of_row, color=color, label=f"{name}, z")
    axes[1].set(xlabel="a, or z of a sigmoid; y = 1", ylim=(0, 3), title="a class")
    X, y = noisy_sine()
    at = np.linspace(0, 6, 200)[:, None]
    axes[2].plot(X[:, 0], y, ".", color="#bbbbbb", markersize=2.5)
    cost, outputs = learnt("quantile(q=(0.1, 0.5, 0.9))", X, y, at)
    for j in range(len(cost.q)):
        label = f"quantiles {', '.join(map(str, cost.q))}" if j == 0 else None
        axes[2].plot(at, outputs[:, j], color=colors[3], linewidth=1.4, label=label)
    cost, outputs = learnt("huber(delta=0.2)", X, y, at)
    axes[2].plot(at, outputs, color=colors[2], linewidth=1.4, label="huber")
    cost, outputs = learnt("quadratic", X, y, at)
    axes[2].plot(at, outputs, color=colors[0], linewidth=1.4, label="quadratic")
    axes[2].set(xlabel="x", ylim=(-2.2, 4.2), title="learnt from noisy rows")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("picture", help="where to draw it")
    draw(parser.parse_args().picture)


if __name__ == "__main__":
    main()
