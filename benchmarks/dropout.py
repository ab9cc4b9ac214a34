"""Nielsen's chapter 3 experiment: a network alone, with dropout, and with dropout and max-norm.

    python -m backprop_gpu.benchmarks.dropout [--data FOLDER] [--results FILE.json] [--picture FILE]
    python -m backprop_gpu.benchmarks.dropout --tune [--data FOLDER]

The folder has MNIST's IDX files: all of them, or only the pair t10k, of which a fifth then tests.
Without a folder it is scikit-learn's digits. Hidden layers are ReLUs, which train in sixty epochs,
and the outputs softmax with cross-entropy; SGD with momentum 0.9, mini-batches of 100, a learning
rate that falls by 5 % an epoch. Each way to train has its rate of `RATES`, and max-norm
its limit, as --tune finds them on MNIST's t10k: it trains on four fifths of the rows to train on,
prints the accuracy on the fifth left, and does not look at the rows that test. All networks of one
size train at once, as a population; what the file of results holds already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from backprop_gpu import datasets, sweep
from backprop_gpu.datasets import Dataset
from backprop_gpu.schedules import ExponentialDecay

#: What each way to train has of its own.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.5},
    "dropout, max-norm": {"dropout": 0.5, "max_norm": 3.0},
}
#: Hidden layers -> way -> the learning rate of its first epoch.
RATES = {
    "100": {"plain": 0.1, "dropout": 0.1, "dropout, max-norm": 0.1},
    "800,800": {"plain": 0.1, "dropout": 0.1, "dropout, max-norm": 0.1},
}
#: What --tune chooses from.
TRIED, LIMITS = (0.03, 0.1, 0.3), (2.0, 3.0)
COLORS = {"plain": "#777777", "dropout": "#1f5fa8", "dropout, max-norm": "#d1602b"}

#: Hidden layers -> way -> test accuracy after each epoch, of each seed.
Results = dict[str, dict[str, list[list[float]]]]


def train(
    data: Dataset, hidden: str, settings: Sequence[dict[str, Any]], epochs: int, seeds: int
) -> list[list[list[float]]]:
    """Of each setting and seed the accuracy on the validation rows after every epoch."""
    layers = [int(size) for size in hidden.split(",")]
    result = sweep(
        data.X, data.y, settings=settings, seeds=seeds, seed=0,
        sizes=[data.X.shape[1], *layers, data.n_outputs],
        activation=["relu"] * len(layers) + ["softmax"], cost="categorical_cross_entropy",
        epochs=epochs, batch_size=100, momentum=0.9,
        validation_data=(data.X_val, data.y_val), progress=sys.stderr.isatty(),
    )  # fmt: skip
    histories = [network.history for network in result.networks]
    curves = [list(history.val_accuracy) for history in histories if history is not None]
    return [curves[i : i + seeds] for i in range(0, len(curves), seeds)]


def with_rate(setting: dict[str, Any], rate: float) -> dict[str, Any]:
    return setting | {"learning_rate": ExponentialDecay(rate, 0.95)}


def compare(data: Dataset, hidden: str, epochs: int, seeds: int) -> dict[str, list[list[float]]]:
    """Way -> seeds -> test accuracy after each epoch."""
    rates = RATES.get(hidden, RATES["800,800"])
    settings = [with_rate(setting, rates[way]) for way, setting in WAYS.items()]
    return dict(zip(WAYS, train(data, hidden, settings, epochs, seeds), strict=True))


def without_test_rows(data: Dataset) -> Dataset:
    """The rows to train on, a fifth of them to validate with, in place of those that test."""
    count = len(data.y) // 5  # they are in a random order
    return replace(
        data, X=data.X[count:], y=data.y[count:], X_val=data.X[:count], y_val=data.y[:count]
    )


def tune(data: Dataset, hidden: str, epochs: int, seeds: int) -> str:
    """Markdown: the median accuracy at the end by rate, on rows that neither train nor test."""
    ways = {way: setting for way, setting in WAYS.items() if "max_norm" not in setting}
    ways |= {
        f"dropout, max-norm {limit:g}": ways["dropout"] | {"max_norm": limit} for limit in LIMITS
    }
    settings = [with_rate(setting, rate) for setting in ways.values() for rate in TRIED]
    found = iter(train(without_test_rows(data), hidden, settings, epochs, seeds))
    lines = [f"| {hidden} | {' | '.join(map(str, TRIED))} |", "| --- |" + " --- |" * len(TRIED)]
    for way in ways:
        cells = [f"{100 * median(curve[-1] for curve in next(found)):.2f}" for _ in TRIED]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(found: Results) -> str:
    """Markdown: medians over the seeds, and the range, in per cent."""
    lines = [
        "| hidden layers | | test accuracy at the end | in the best epoch | errors beside plain |",
        "| --- | --- | --- | --- | --- |",
    ]
    for hidden, ways in found.items():
        for way, curves in ways.items():
            ends, tops = [c[-1] for c in curves], [max(c) for c in curves]
            wrong = (1 - median(ends)) / (1 - median(c[-1] for c in ways["plain"]))
            lines.append(
                f"| {hidden} | {way} | {_percent(ends)} | {_percent(tops)} | {wrong:.0%} |"
            )
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    low, middle, high = (100 * each for each in (min(values), median(values), max(values)))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def draw(found: Results, path: str) -> None:
    """Test accuracy by epoch: a thin line a seed, thick ones their medians."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(found), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (hidden, ways) in zip(axes, found.items(), strict=True):
        lowest = 100.0
        for way, curves in ways.items():
            each = 100 * np.array(curves)
            epochs = np.arange(1, each.shape[1] + 1)
            middle = np.median(each, axis=0)
            axis.plot(epochs, each.T, color=COLORS[way], linewidth=0.6, alpha=0.45)
            axis.plot(epochs, middle, color=COLORS[way], linewidth=2.0, label=way)
            lowest = min(lowest, float(middle[min(9, len(middle) - 1)]))
        highest = 100 * max(max(curve) for curves in ways.values() for curve in curves)
        axis.set_ylim(lowest - 0.3, highest + 0.15)
        axis.set(xlabel="epoch", title=f"hidden layers of {hidden.replace(',', ' and ')}")
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy, %")
    axes[-1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", metavar="FOLDER", help="MNIST's IDX files; default: the digits")
    parser.add_argument(
        "--hidden", nargs="+", default=list(RATES), metavar="N,N", help="layers of each network"
    )
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--tune", action="store_true", help="compare learning rates instead")
    parser.add_argument("--results", type=Path, help="a file to keep, and go on from")
    parser.add_argument("--picture", metavar="FILE", help="where to draw it")
    given = parser.parse_args(arguments)
    data = datasets.load(given.data, shuffle=0)
    data = replace(data, X=np.asarray(data.X, np.float32))
    print(data.description, flush=True)
    if given.tune:
        for hidden in given.hidden:
            print("\n" + tune(data, hidden, given.epochs, given.seeds), flush=True)
        return
    found: Results = {}
    if given.results is not None and given.results.exists():
        found = json.loads(given.results.read_text(encoding="utf-8"))
    for hidden in given.hidden:
        if hidden not in found:
            found[hidden] = compare(data, hidden, given.epochs, given.seeds)
        if given.results is not None:
            given.results.write_text(json.dumps(found), encoding="utf-8")
    found = {hidden: found[hidden] for hidden in given.hidden}
    print("\n" + table(found))
    if given.picture:
        draw(found, given.picture)


if __name__ == "__main__":
    main()
