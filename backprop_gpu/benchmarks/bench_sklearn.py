"""Our `MLPClassifier` beside scikit-learn's, on the CPU.

Both train from the same seed with the same settings, in turns, and must have the same
``loss_curve_``; times are medians of whole ``fit`` calls. ``--data FOLDER`` with MNIST's IDX files
takes their rows where the workload asks for them; without it random rows of that shape stand in.
``--record`` appends to ``benchmarks/results/dropin.jsonl``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import records

RECORDS = "dropin.jsonl"


@dataclass(frozen=True)
class Case:
    name: str
    X: np.ndarray
    y: np.ndarray
    settings: dict[str, Any]
    #: The ratio that is asked for.
    asked: float


def cases(folder: str | None) -> list[Case]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    digits = {"hidden_layer_sizes": (64,), "batch_size": 32, "random_state": 1}
    wide = {"hidden_layer_sizes": (256, 128), "batch_size": 200, "max_iter": 5, "random_state": 1}
    if folder is not None:
        from .. import datasets

        table = datasets.read(folder)
        rows, labels, name = table.X, table.y, "MNIST rows"
    else:
        rng = np.random.default_rng(0)
        rows, name = rng.random((10_000, 784)), "random rows"
        labels = rng.integers(0, 10, len(rows))
    assert labels is not None
    return [
        Case("digits (64,) batch 32", X / 16, y, digits, 3.0),
        Case(
            f"{len(rows):,} {name} (256, 128) batch 200", rows.astype(np.float64), labels, wide, 1.3
        ),
    ]


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of `fit`, ours and theirs in turns, and how far their loss curves are apart."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import _multilayer_perceptron

    import backprop_gpu

    kinds = {
        "ours": backprop_gpu.MLPClassifier,
        "sklearn": _multilayer_perceptron.MLPClassifier,
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    fitted = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # What is loaded or compiled once is no part of it.
        kinds["ours"](**case.settings).fit(case.X, case.y)
        for _ in range(rounds):
            for name, kind in kinds.items():
                begin = time.perf_counter()
                fitted[name] = kind(**case.settings).fit(case.X, case.y)
                seconds[name].append(time.perf_counter() - begin)
    curves = [np.array(fitted[name].loss_curve_) for name in kinds]
    if len(curves[0]) != len(curves[1]):
        raise RuntimeError(f"{case.name}: {len(curves[0])} epochs against {len(curves[1])}")
    return {
        "kind": "fit",
        "workload": case.name,
        "dtype": str(case.X.dtype),
        "epochs": len(curves[0]),
        "seconds": {name: [round(s, 4) for s in each] for name, each in seconds.items()},
        "ratio": median(
            theirs / own for own, theirs in zip(seconds["ours"], seconds["sklearn"], strict=True)
        ),
        "asked": case.asked,
        "loss_curves_differ_by": float(np.abs(curves[0] / curves[1] - 1).max()),
        "plan": fitted["ours"].plan_,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", metavar="FOLDER", help="MNIST's IDX files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args(arguments)
    common = records.provenance()
    for case in cases(asked.data):
        found = measure(case, asked.rounds)
        own, theirs = (median(found["seconds"][name]) for name in ("ours", "sklearn"))
        print(
            f"{case.name}, {found['epochs']} epochs: {own:.3f} s, scikit-learn {theirs:.3f} s: "
            f"{found['ratio']:.2f}× (asked: {case.asked}×); loss curves within "
            f"{found['loss_curves_differ_by']:.0e}\n    {found['plan'].splitlines()[-1]}"
        )
        if asked.record:
            path = Path(records.RESULTS) / RECORDS
            records.append(path, [common | found])


if __name__ == "__main__":
    main()
