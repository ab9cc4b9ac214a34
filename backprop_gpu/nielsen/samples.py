"""The book's data, (x, y) pairs of column vectors, as rows of two arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from .. import validation
from ..arrays import to_numpy

_FLOAT64 = np.dtype(np.float64)
Kind = Literal["vectors", "labels"]


class Samples(tuple[Any, ...]):
    """The (x, y) pairs as they were given, and stacked.

    Attributes
    ----------
    X : (n, n_0) float64 array
    Y : (n, n_L) float64 array
        The targets; the rows of the identity where the data have labels.
    labels : (n,) int array
        The classes; where the data have targets, the largest component of each.
    """

    X: np.ndarray
    Y: np.ndarray
    labels: np.ndarray


def read(data: Iterable[Any], name: str, kind: Kind, inputs: int, outputs: int) -> Samples:
    """`data`, consumed once, checked and stacked; stacked already, it is passed on.

    Parameters
    ----------
    data : iterable of (x, y)
        x is (n_0, 1). y is (n_L, 1), one-hot for a class, or an integer label in [0, n_L).
    name : str
        What a message calls the data.
    kind : {"vectors", "labels"}
        What y is.
    inputs, outputs : int
        n_0 and n_L.

    Raises
    ------
    ValueError, TypeError
        Naming the first sample that does not fit, and what was expected of it.
    """
    if isinstance(data, Samples):
        return data
    try:
        samples = Samples(data)
    except TypeError:
        raise TypeError(
            f"{name} must be (x, y) pairs, in a list or an iterator, got {data!r}"
        ) from None
    if not samples:
        raise ValueError(f"{name} is empty: expected at least one (x, y) pair")
    xs, ys = [], []
    for i, sample in enumerate(samples):
        try:
            x, y = sample
        except (TypeError, ValueError):
            raise ValueError(
                f"{name}[{i}] must be a pair (x, y), got {_described(sample)}"
            ) from None
        xs.append(x)
        ys.append(y)
    samples.X = stack(xs, name, "x", inputs)
    if kind == "vectors":
        samples.Y = stack(ys, name, "y", outputs)
        samples.labels = samples.Y.argmax(axis=1)
    else:
        samples.labels = _labels(ys, name, outputs)
        samples.Y = np.eye(outputs)[samples.labels]
    return samples


def column(value: Any, name: str, length: int) -> np.ndarray:
    """A column vector as a float64 array (length, 1)."""
    array = validation.numbers(name, value, _FLOAT64)
    if array.shape != (length, 1) and not (length == 1 and array.ndim == 0):
        raise ValueError(
            f"{name} must be a column of shape ({length}, 1), got {_hint(array, length)}"
        )
    return array.reshape(length, 1)


def stack(columns: list[Any], name: str, part: str, length: int) -> np.ndarray:
    """Columns (length, 1) as rows, (n, length) float64."""
    arrays = []
    for i, value in enumerate(columns):
        array = value if type(value) is np.ndarray else to_numpy(f"{name}[{i}]", value)
        if array.shape != (length, 1):
            if length != 1 or array.ndim:
                raise ValueError(
                    f"{part} of {name}[{i}] must be a column of shape ({length}, 1), "
                    f"got {_hint(array, length)}"
                )
            array = array.reshape(1, 1)
        arrays.append(array)
    rows = np.concatenate([array.reshape(1, length) for array in arrays])
    try:
        return validation.numbers(f"{part} of {name}", rows, _FLOAT64)
    except ValueError:  # the message would speak of an array that the caller has not seen
        bad = int(np.argwhere(~np.isfinite(rows.astype(np.float64)))[0][0])
        raise ValueError(f"{part} of {name}[{bad}] contains NaN or infinity") from None


def _labels(ys: list[Any], name: str, classes: int) -> np.ndarray:
    found = np.empty(len(ys), np.intp)
    for i, y in enumerate(ys):
        array = np.asarray(y)
        if array.size != 1 or array.dtype.kind not in "biuf":
            raise ValueError(
                f"y of {name}[{i}] must be an integer label in [0, {classes - 1}], "
                f"got {_described(y)}"
            )
        label = array.item()
        if not 0 <= label < classes or label != int(label):  # NaN fails the first
            raise ValueError(
                f"y of {name}[{i}] must be an integer label in [0, {classes - 1}], got {label!r}; "
                f"the output layer has {classes} neuron{'s' if classes > 1 else ''}"
            )
        found[i] = label
    return found


def _hint(array: np.ndarray, length: int) -> str:
    if array.size == length and length > 1:
        return f"shape {array.shape}: give it as .reshape(-1, 1)"
    if array.ndim == 0:
        return f"the number {array.item()!r}: network2.vectorized_result makes a column of a label"
    return f"shape {array.shape}"


def _described(value: Any) -> str:
    return f"shape {value.shape}" if isinstance(value, np.ndarray) and value.ndim else repr(value)
