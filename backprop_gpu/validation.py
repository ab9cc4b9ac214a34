"""Checks of what a caller passes in. Each names the argument and what was expected."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import arrays
from .activations import Activation
from .costs import Cosine, Cost

#: Instances of int and np.integer that are not taken for numbers.
_NO_NUMBERS = (bool, np.timedelta64)


def sizes(value: Sequence[int]) -> tuple[int, ...]:
    """(n_0, …, n_L), at least an input and an output layer."""
    if isinstance(value, (str, bytes, bytearray)) or not is_ordered(value):
        raise TypeError(f"sizes must be a sequence of layer sizes, got {value!r}")
    result = tuple(integer("sizes", n, 1) for n in value)
    if len(result) < 2:
        raise ValueError(f"sizes must name an input and an output layer, got {list(result)}")
    return result


def is_ordered(value: Any) -> bool:
    """Whether its items come in an order of their own, unlike those of a set or a dict."""
    return is_iterable(value) and not isinstance(value, (AbstractSet, Mapping))


def is_iterable(value: Any) -> bool:
    """Whether it has items: arrays of no dimension and classes have the method, but none."""
    try:
        iter(value)
    except TypeError:
        return False
    return True


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known names."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    return value


def integer(name: str, value: Any, low: int, high: int = sys.maxsize) -> int:
    """An int in [low, high]."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, _NO_NUMBERS):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low or value > high:
        span = f">= {low}" if value < low and high == sys.maxsize else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {span}, got {shown(value)}")
    return int(value)


def seed(value: Any, name: str = "seed") -> int:
    """An int >= 0 of any size: NumPy's generators take them all."""
    if isinstance(value, int) and value > sys.maxsize:
        return value
    return integer(name, value, 0)


def boolean(name: str, value: Any) -> bool:
    """True or False; any other value would count as one of them without a word."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def number(name: str, value: Any, span: str, kind: str = "a number") -> float:
    """A finite float in a span such as "[0, 1)"."""
    numbers = (int, float, np.floating, np.integer)
    if not isinstance(value, numbers) or isinstance(value, _NO_NUMBERS):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    if not is_within(value, span):
        low, high = span[1:-1].split(", ")
        expected = f"in {span}" if high != "inf" else "finite"
        if high == "inf" and low != "-inf":
            expected += f" and {'>=' if span[0] == '[' else '>'} {low}"
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
    return float(value)


def finite(name: str, value: Any, low: float = -math.inf) -> float:
    """A finite float >= low."""
    return number(name, value, f"[{low:g}, inf)")


def is_within(value: Any, span: str) -> bool:
    """Whether a number lies in the span, and is finite as a float."""
    try:
        x = float(value)
    except (OverflowError, TypeError):  # an int beyond any float; a duration
        return False
    low, high = map(float, span[1:-1].split(","))
    above = x >= low if span[0] == "[" else x > low
    return math.isfinite(x) and above and (x <= high if span[-1] == "]" else x < high)


def nan_last(value: float) -> float:
    """What to compare a loss by: nothing is smaller or larger than NaN, the worst of all."""
    return math.inf if math.isnan(value) else float(value)


def shown(value: Any) -> str:
    """A value for a message: Python refuses to write out an int of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return str(value) if isinstance(value, (float, np.number)) else repr(value)


def room(what: str, size: int) -> None:
    """Refuse so many bytes as can never be had, before any is filled: all are asked for at once.

    Raises
    ------
    MemoryError
        Naming `what` needs them, and how much that is.
    """
    try:
        if size > sys.maxsize:
            raise MemoryError("no array is so long")
        np.empty(size, np.uint8)
    except MemoryError as error:
        raise MemoryError(f"{what} needs {size / 2**30:,.1f} GiB, more than can be had") from error


def dtype(value: Any) -> np.dtype[Any]:
    """float32 or float64."""
    for known in (np.dtype(np.float32), np.dtype(np.float64)):
        try:
            if value is not None and known == value:  # None is float64 to NumPy
                return known
        except (TypeError, ValueError):  # a value of which NumPy cannot make a dtype
            pass
    raise ValueError(f"dtype must be 'float32' or 'float64', got {value!r}")


def is_ready(value: Any, to: np.dtype[Any]) -> bool:
    """Whether a value is what `numbers` would return. Of a row in less than a microsecond."""
    return (
        type(value) is np.ndarray
        and value.dtype is to
        and value.flags.c_contiguous
        and all_finite(value)
    )


def all_finite(array: np.ndarray) -> bool:
    """Whether no number of an array is NaN or infinite."""
    return bool(np.count_nonzero(np.isfinite(array)) == array.size)  # half the time of `all`


def numbers(name: str, value: Any, to: np.dtype[Any], missing: bool = False) -> np.ndarray:
    """A C-contiguous, finite array of dtype `to`; copies only where it must.

    NaN may stand for what is `missing`.
    """
    if is_ready(value, to):
        return np.asarray(value)
    return _converted(name, arrays.to_numpy(name, value, missing), value, to, missing)


def _converted(
    name: str, given: np.ndarray, value: Any, to: np.dtype[Any], missing: bool = False
) -> np.ndarray:
    """`numbers` of a value that is `given`, as an array."""
    if given.dtype.kind not in arrays.NUMBERS:
        raise TypeError(
            f"{name} must hold real numbers, got dtype {given.dtype}"
            + ("; convert it, for example with .astype(float)" if given.dtype.kind == "O" else "")
        )
    with np.errstate(over="ignore"):  # too large for `to` becomes inf, and is refused below
        array = np.asarray(given, to, order="C")
    if not all_finite(array):
        wrong = np.isinf(array) if missing else ~np.isfinite(array)
        if not wrong.any():
            return array
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        label = arrays.column_label(value, where[-1]) if len(where) == 2 else None
        place = f"index {where}" + (f", column {label!r}" if label is not None else "")
        if np.isfinite(given[where]):
            raise ValueError(f"{name} does not fit {to}: {given[where]} at {place}")
        what = "infinity" if missing else "NaN or infinity"
        raise ValueError(f"{name} contains {what}, first at {place}")
    return array


def inputs(
    value: Any, n_inputs: int, to: np.dtype[Any], name: str = "X", bytes_stay: bool = False
) -> np.ndarray:
    """X as (n, n_0) with n >= 1, of dtype `to`, or of uint8 if it is and `bytes_stay`.

    A sparse one becomes dense, all of it: `sparse_inputs` leaves it what it is.
    """
    if is_ready(value, to) and value.ndim == 2 and value.shape[1] == n_inputs and len(value):
        return np.asarray(value)
    if arrays.is_sparse(value):
        matrix = sparse_inputs(value, n_inputs, to, name)
        room(f"{name}, made dense,", matrix.shape[0] * matrix.shape[1] * to.itemsize)
        return np.asarray(matrix)
    given = arrays.to_numpy(name, value)
    if bytes_stay and given.dtype == np.uint8:
        to = given.dtype
    array = _converted(name, given, value, to)
    check_shape(name, array.shape, n_inputs)
    return array


def sparse_inputs(
    value: Any, n_inputs: int, to: np.dtype[Any], name: str = "X"
) -> arrays.SparseMatrix:
    """A sparse X of SciPy's as (n, n_0) with n >= 1, of dtype `to`; it shares what it can."""
    check_shape(name, tuple(value.shape), n_inputs)
    if type(value).__module__.startswith("cupyx."):
        value = value.get()
    csr = value.tocsr()
    if not csr.has_canonical_format:
        csr = csr.copy() if csr is value else csr
        csr.sum_duplicates()
    data = numbers(f"{name}.data", csr.data, to)
    if data is not csr.data:
        csr = type(csr)((data, csr.indices, csr.indptr), shape=csr.shape)
        csr.has_canonical_format = True
    return arrays.SparseMatrix(csr)


def check_shape(name: str, shape: tuple[int, ...], n_inputs: int) -> None:
    """Refuse what is not (n, n_0), or has no rows."""
    if len(shape) != 2:
        hint = f"; one sample is {name}.reshape(1, -1)" if len(shape) == 1 else ""
        raise ValueError(f"{name} must have shape (n, {n_inputs}), got {shape}{hint}")
    if shape[1] != n_inputs:
        raise ValueError(
            f"{name} does not fit layer 0: expected shape (n, {n_inputs}), got {shape}"
        )
    if shape[0] == 0:
        raise ValueError(f"{name} is empty: shape {shape}")


def targets(
    value: Any,
    rows: int,
    activation: Activation,
    cost: Cost,
    n_outputs: int,
    to: np.dtype[Any],
    name: str = "Y",
    inputs_name: str = "X",
) -> np.ndarray:
    """Y as (n, targets), from numbers of that shape, a column, or integer labels.

    There are n_L targets, but for costs that have less. A NaN is a missing label.
    """
    n_targets = cost.targets_of(n_outputs)
    if value is None:
        raise TypeError(f"{name} must hold real numbers of shape ({rows}, {n_targets}), got None")
    given = array = arrays.to_numpy(name, value, missing=cost.builtin)
    if array.ndim == 1 and n_targets > 1 and array.dtype.kind in "iub" and len(array):
        if not cost.takes_labels:
            raise ValueError(
                f"{name} holds integer labels, which have no single meaning for cost "
                f"{cost.name!r}: pass targets of shape (n, {n_targets})"
            )
        array = one_hot(name, array, n_targets, to)
    array = _converted(name, array, value, to, missing=cost.builtin)
    if array.ndim == 1 and n_targets == 1:
        array = array.reshape(-1, 1)
    if array.ndim == 1 and n_targets > 1 and np.isnan(array).any():
        row = int(np.isnan(array).argmax())
        raise ValueError(
            f"{name} lacks the label of row {row}: leave such rows out, or give one-hot rows "
            f"(n, {n_targets}), in which NaN is a missing label"
        )
    if array.ndim != 2 or array.shape[1] != n_targets:
        labels = " or integer labels of shape (n,)" if n_targets > 1 else " or (n,)"
        raise ValueError(
            f"{name} does not fit the output layer: expected shape (n, {n_targets}){labels}, "
            f"got {array.shape} of dtype {given.dtype}"
        )
    if len(array) != rows:
        raise ValueError(f"{inputs_name} has {rows} rows but {name} has {len(array)}")
    low, high = cost.targets
    if (low > -math.inf and (array < low).any()) or (high < math.inf and (array > high).any()):
        raise ValueError(
            f"cost {cost.name!r} needs {name} in [{low:g}, {high:g}], "
            f"got values in [{np.nanmin(array):g}, {np.nanmax(array):g}]"
        )
    if cost.distribution:
        off = np.abs(array.sum(axis=1, dtype=np.float64) - 1.0)
        wrong = ~(off <= 1e-4) & ~np.isnan(array).all(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"cost {cost.name!r} needs every row of {name} to sum to 1 or to be all NaN, "
                f"row {row} sums to {array[row].sum():g}"
            )
    if isinstance(cost, Cosine) and not array.any(axis=1).all():
        row = int(np.argmin(array.any(axis=1)))
        raise ValueError(f"cost {cost.name!r} needs a direction, and row {row} of {name} is all 0")
    return array


def weights(value: Any, rows: int, name: str = "sample_weight") -> np.ndarray:
    """What each row counts, (rows,) float64: at least 0, and not all 0."""
    array = numbers(name, value, np.dtype(np.float64))
    if array.shape != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), a number a row, got {array.shape}")
    if (array < 0).any():
        raise ValueError(f"{name} must not be negative, got {array.min():g}")
    if not array.any():
        raise ValueError(f"{name} is 0 for every row")
    return array


def dropout(value: Any, layers: int) -> tuple[float, ...]:
    """The rates of so many hidden layers, from one for all or one per layer; () where all are 0."""
    several = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
    given = list(value) if several else [value] * layers
    for each in given or [value]:
        number("dropout", each, "[0, 1)")
    if len(given) != layers:
        raise ValueError(
            f"dropout must be one number, or one for each of {layers} hidden layers, got {value!r}"
        )
    rates = tuple(map(float, given))
    if not several and value and not layers:
        raise ValueError(f"dropout={value} needs a hidden layer, and the network has none")
    return rates if any(rates) else ()


def mixup(value: Any, cost: Cost) -> float:
    """α of mixup, if targets of the cost can be mixed."""
    alpha = finite("mixup", value, 0.0)
    if alpha and not cost.takes_mixtures:
        raise ValueError(f"mixup={shown(value)}: targets of cost {cost.name!r} cannot be mixed")
    return alpha


def one_hot(name: str, labels: np.ndarray, classes: int, to: np.dtype[Any]) -> np.ndarray:
    """Integer labels (n,) in [0, classes) as rows of the identity, (n, classes)."""
    check_labels(name, labels, classes)
    array = np.zeros((len(labels), classes), to)
    array[np.arange(len(labels)), labels.astype(np.intp)] = 1.0
    return array


def check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name} holds labels from {low} to {high}; with {classes} outputs they must be "
            f"in [0, {classes - 1}]"
        )


def row_numbers(name: str, value: Any, rows: int) -> np.ndarray:
    """Numbers of some of so many rows, (k,) of intp; of a mask, where it is True. Repeats stay.

    Raises
    ------
    ValueError, TypeError
        For anything but whole numbers in [0, rows), k of them and k >= 1, or a mask of all rows.
    """
    array = arrays.to_numpy(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name} must be numbers of rows, (k,), got shape {array.shape}")
    if array.dtype.kind == "b":
        if len(array) != rows:
            raise ValueError(f"{name} is a mask of {len(array)} rows, and X has {rows}")
        array = np.flatnonzero(array)
    if len(array) == 0:
        raise ValueError(f"{name} is empty: it must name a row at least")
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be whole numbers of rows, or a mask of them, got dtype {array.dtype}"
        )
    low, high = array.min(), array.max()
    if low < 0 or high >= rows:
        raise ValueError(
            f"{name} names row {low if low < 0 else high}, and X has rows 0 to {rows - 1}"
        )
    return np.ascontiguousarray(array, np.intp)


def labels(value: Any, rows: int, n_outputs: int, name: str = "labels") -> np.ndarray:
    """Class numbers (n,), from labels, or from one-hot rows or a column of 0 and 1."""
    array = arrays.to_numpy(name, value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be class numbers, got dtype {array.dtype}")
    if array.ndim == 2 and array.shape[1] == n_outputs:
        if n_outputs > 1:
            wrong = ((array != 0) & (array != 1)).any(axis=1) | ((array == 1).sum(axis=1) != 1)
            if wrong.any():
                row = int(np.argmax(wrong))
                raise ValueError(
                    f"{name} of shape (n, {n_outputs}) must be one-hot rows, of one 1 and else 0; "
                    f"row {row} is not: pass class numbers (n,)"
                )
        array = array[:, 0] if n_outputs == 1 else array.argmax(axis=1)
    if array.shape != (rows,):
        raise ValueError(
            f"{name} must have shape ({rows},) or ({rows}, {n_outputs}), got {array.shape}"
        )
    if not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise ValueError(f"{name} must be whole class numbers")
    check_labels(name, array, max(n_outputs, 2))
    return array.astype(np.intp)


def accuracy(
    outputs: np.ndarray,
    classes: np.ndarray,
    weights: np.ndarray | None = None,
    threshold: float = 0.5,
) -> float:
    """The share of rows, by their weights if they have any, that are of the predicted class."""
    return float(np.average(predicted(outputs, threshold) == classes, weights=weights))


#: The class of a row whose outputs are not all numbers.
NO_CLASS = -1


def predicted(outputs: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The class of each row: its largest output, the lowest of equals; with one output, 1 where it
    has reached the cost's threshold.

    `NO_CLASS` where an output is NaN.
    """
    if outputs.shape[1] == 1:
        classes = (outputs[:, 0] >= threshold).astype(np.intp)
    else:
        classes = np.asarray(outputs.argmax(axis=1))
    classes[nan_rows(outputs)] = NO_CLASS
    return classes


def nan_rows(outputs: np.ndarray) -> np.ndarray:
    """Which rows hold a NaN, (n,) bool."""
    return np.asarray(np.isnan(outputs).any(axis=-1))


def warn_of_nan(outputs: np.ndarray, stacklevel: int = 3) -> np.ndarray:
    """The outputs, (…, n, n_L), of the method that calls this, with a warning if some are NaN."""
    if not all_finite(outputs) and np.isnan(outputs).any():
        rows = np.flatnonzero(nan_rows(outputs).reshape(-1, outputs.shape[-2]).any(axis=0))
        warnings.warn(
            f"the outputs of {len(rows)} of {outputs.shape[-2]} rows are NaN, first of row "
            f"{rows[0]}: z overflowed. Are its inputs of the size of those in training?",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    return outputs


def classes_of(Y: np.ndarray) -> np.ndarray | None:
    """The class numbers in validated targets, or None where they are not classes."""
    if ((Y != 0.0) & (Y != 1.0)).any():
        return None
    if Y.shape[1] == 1:
        return Y[:, 0].astype(np.intp)
    if (Y.sum(axis=1) != 1.0).any():
        return None
    return np.asarray(Y.argmax(axis=1))


@contextmanager
def within(place: str) -> Iterator[None]:
    """A refused value is said to stand in this place."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{place}: {error}") from error


def brief(text: object, length: int = 200) -> str:
    """One line of at most so many characters, for what may come from a file."""
    line = " ".join(str(text)[: 4 * length].split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
