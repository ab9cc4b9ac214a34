"""What each row counts: `sample_weight` and `class_weight`, and what engines make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import validation


def row_weights(
    sample_weight: Any, class_weight: Any, Y: np.ndarray | None, rows: int
) -> np.ndarray | None:
    """w_x of every row, (rows,) float64, or None where all are 1.

    Parameters
    ----------
    sample_weight : (rows,) array, optional
    class_weight : "balanced" or mapping of class numbers to weights, optional
        Multiplies them. "balanced" is rows / (classes · rows of the class), so that all classes
        count alike; what a mapping does not name has 1. Rows whose labels are missing have 1.
    Y : (rows, targets) array, optional
        None where they are not in memory.

    Raises
    ------
    ValueError, TypeError
    """
    weights = None
    if sample_weight is not None:
        weights = validation.weights(sample_weight, rows)
    if class_weight is None:
        return weights
    if Y is None:
        raise ValueError("class_weight needs a Y in memory; sample_weight does not")
    known = ~np.isnan(Y).any(axis=1)
    classes = validation.classes_of(Y[known]) if known.any() else None
    if classes is None:
        raise ValueError("class_weight needs a Y of classes")
    of_rows = np.ones(rows)
    of_rows[known] = _of_classes(class_weight, max(Y.shape[1], 2), classes)[classes]
    weights = of_rows if weights is None else weights * of_rows
    if not weights.any():
        raise ValueError("class_weight and sample_weight leave no row with a weight above 0")
    return weights


def _of_classes(class_weight: Any, count: int, classes: np.ndarray) -> np.ndarray:
    if isinstance(class_weight, str) and class_weight == "balanced":
        counts = np.bincount(classes, minlength=count)
        return len(classes) / (np.count_nonzero(counts) * np.maximum(counts, 1.0))
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            f'class_weight must be "balanced" or a dict of class numbers to weights, '
            f"got {class_weight!r}"
        )
    found = np.ones(count)
    for label, weight in class_weight.items():
        number = validation.integer("class_weight: a class", label, 0, count - 1)
        found[number] = validation.finite(f"class_weight of class {label}", weight, 0.0)
    return found


def relative_weights(
    weights: np.ndarray, batch_size: int, epochs: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Weights over the mean of their mini-batch, as engines take them, and each mini-batch's sum.

    Parameters
    ----------
    weights : (epochs n,) array
        In the order in which the rows are taken.

    Returns
    -------
    ((epochs n,), (epochs steps,)) float64 arrays
        Where a mini-batch's weights are all 0, it has no gradient, and they stay 0.
    """
    each = np.asarray(weights, np.float64).reshape(epochs, -1)
    rows = each.shape[1]
    starts = np.arange(0, rows, batch_size)
    totals = np.add.reduceat(each, starts, axis=1)
    sizes = np.diff(starts, append=rows)
    shares = np.divide(sizes, totals, out=np.zeros_like(totals), where=totals > 0)
    return (each * np.repeat(shares, sizes, axis=1)).ravel(), totals.ravel()
