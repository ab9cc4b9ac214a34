"""The book's ``mnist_loader``: handwritten digits from files that are there already."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from .. import datasets, validation
from ..reading import MAX_BYTES
from . import mnist_pickle
from .mnist_pickle import Pair
from .network2 import vectorized_result

__all__ = ["load_data", "load_data_wrapper", "vectorized_result"]

#: Says where the data are, if the caller does not.
VARIABLE = "BACKPROP_GPU_MNIST"
#: What stands for scikit-learn's digits in place of a path.
DIGITS = "digits"
#: Where the book's programs, started in ``src`` or beside the data, find it.
FOLDERS = ("../data", "data", ".")
PICKLE = "mnist.pkl.gz"

Columns = list[tuple[np.ndarray, np.ndarray]]
Labelled = list[tuple[np.ndarray, int]]


def load_data(
    path: str | os.PathLike[str] | None = None, *, max_bytes: int = MAX_BYTES
) -> tuple[Pair, Pair, Pair]:
    """(training_data, validation_data, test_data), each images X (n, n_0) and labels y (n,).

    Parameters
    ----------
    path : path or "digits", optional
        - the book's ``mnist.pkl.gz``: nothing in it is executed, and what is no array is refused;
        - a folder with that file, or with the four IDX files of MNIST, plain or gzipped;
        - an ``.npz`` with x_train, y_train, x_test, y_test and, perhaps, x_validation and
          y_validation, such as `expand_mnist` writes;
        - ``"digits"``: scikit-learn's 1797 digits of 8 x 8 pixels, with a warning.

        By default what the environment variable ``BACKPROP_GPU_MNIST`` names, else the first of
        ``../data``, ``data`` and the current folder that has some. Nothing is downloaded.
    max_bytes : int
        What each file may unpack to.

    Returns
    -------
    three pairs (X, y)
        X float32 in [0, 1), y int64. Bytes are divided by 256, as in the book's file. Where the
        data set no rows for validation apart, those are the last sixth of the rows to train with:
        of MNIST's 60,000 the last 10,000, which are the book's.

    Raises
    ------
    FileNotFoundError
        That says where it looked, and what may be done.
    ValueError
        Naming the file and what is wrong with it.
    """
    return _load(path, max_bytes)


def load_data_wrapper(
    path: str | os.PathLike[str] | None = None, *, max_bytes: int = MAX_BYTES
) -> tuple[Columns, Labelled, Labelled]:
    """The same as lists of (x, y), as `network` and `network2` take them.

    Parameters
    ----------
    path : path or "digits", optional
        As of `load_data`.
    max_bytes : int
        As of `load_data`.

    Returns
    -------
    training_data : list of (x, y)
        Each x (n_0, 1) float32, and y (10, 1), 1 at the digit and 0 elsewhere.
    validation_data, test_data : lists of (x, label)
        A label is an int.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_data`.
    """
    (X, y), *others = _load(path, max_bytes)
    classes = max(10, 1 + max(int(labels.max()) for labels in (y, *(part[1] for part in others))))
    held, test = (labelled(part) for part in others)
    return columns((X, y), classes), held, test


def columns(data: Pair, classes: int = 10) -> Columns:
    """Rows (X, y) as a list of (x, y), x (n_0, 1) and y (classes, 1)."""
    # Each y an array of its own, as in the book: somebody may change one.
    pairs = zip(*data, strict=True)
    return [(x.reshape(-1, 1), vectorized_result(int(j), classes)) for x, j in pairs]


def labelled(data: Pair) -> Labelled:
    """Rows (X, y) as a list of (x, label), x (n_0, 1)."""
    return [(x.reshape(-1, 1), int(j)) for x, j in zip(*data, strict=True)]


def _load(path: str | os.PathLike[str] | None, max_bytes: int) -> tuple[Pair, Pair, Pair]:
    source = _find(path)
    if source == DIGITS:
        return _digits()
    where = Path(source)
    if where.is_dir():
        where = where / PICKLE if (where / PICKLE).is_file() else where
    if where.is_dir():
        parts = _of_idx(where, max_bytes)
    elif where.suffix.lower() == ".npz":
        parts = _of_npz(where, max_bytes)
    else:
        parts = mnist_pickle.read(where, max_bytes)
    training, held, test = (_checked(*part, where) for part in parts)
    if len({part[0].shape[1] for part in (training, held, test)}) > 1:
        raise ValueError(f"{where}: images of training, validation and test data differ in size")
    return training, held, test


def _find(path: str | os.PathLike[str] | None) -> str:
    """Where the data are: an existing path, or "digits"."""
    given = os.fspath(path) if path is not None else os.environ.get(VARIABLE) or None
    if given is not None:
        if given != DIGITS and not Path(given).exists():
            who = "" if path is not None else f", which {VARIABLE} names"
            raise FileNotFoundError(f"no data at {given}{who}: {_choices()}")
        return given
    for folder in map(Path, FOLDERS):
        if (folder / PICKLE).is_file():
            return str(folder / PICKLE)
        if all(any(folder.glob(f"{part}-images?idx3-ubyte*")) for part in ("train", "t10k")):
            return str(folder)
    raise FileNotFoundError(
        f"found neither {PICKLE} nor MNIST's IDX files in "
        f"{', '.join(str(Path(folder).resolve()) for folder in FOLDERS)}: {_choices()}"
    )


def _choices() -> str:
    return (
        f"give load_data the path of the book's {PICKLE}, of a folder with MNIST's IDX files, of "
        f"an .npz, or {DIGITS!r} for scikit-learn's 8 x 8 digits; or set {VARIABLE} to it. "
        "Nothing is downloaded"
    )


def _of_idx(folder: Path, max_bytes: int) -> list[Pair]:
    table = datasets.read(folder, scale=1 / 256, max_bytes=max_bytes)
    if table.y is None or table.test is None or table.test[1] is None:
        raise ValueError(f"{folder} must hold images and labels both of train and of t10k")
    return [*_halves(table.X, table.y, folder), (table.test[0], table.test[1])]


def _of_npz(path: Path, max_bytes: int) -> list[Pair]:
    names = [f"{kind}_{part}" for part in ("train", "validation", "test") for kind in "xy"]
    arrays = datasets.read_npz(path, names, max_bytes=max_bytes)
    missing = [n for n in names if n not in arrays and not n.endswith("_validation")]
    if missing or ("x_validation" in arrays) != ("y_validation" in arrays):
        raise ValueError(
            f"{path} needs arrays x_train, y_train, x_test, y_test, and both or neither of "
            f"x_validation and y_validation; it holds {', '.join(sorted(arrays)) or 'none'}"
        )
    for name, array in arrays.items():
        if name.startswith("x") and array.ndim >= 2 and len(array):
            rows = array.reshape(len(array), -1)
            arrays[name] = rows * np.float32(1 / 256) if rows.dtype == np.uint8 else rows
    pairs = {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}
    if "x_validation" in arrays:
        held = arrays["x_validation"], arrays["y_validation"]
        return [pairs["train"], held, pairs["test"]]
    return [*_halves(*pairs["train"], path), pairs["test"]]


def _halves(X: np.ndarray, y: np.ndarray, where: Path) -> list[Pair]:
    """Rows to train with, and the last sixth, to validate with."""
    kept = len(X) // 6
    if not kept:
        raise ValueError(f"{where}: {len(X)} rows to train with are too few to set some apart")
    return [(X[:-kept], y[:-kept]), (X[-kept:], y[-kept:])]


def _checked(X: np.ndarray, y: np.ndarray, where: Path) -> Pair:
    """Images as float32 and their labels as int64."""
    if X.ndim != 2 or X.dtype.kind not in "biuf" or 0 in X.shape:
        raise ValueError(f"{where}: images must be rows of numbers, got {X.dtype} {X.shape}")
    if y.shape != (len(X),) or y.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: labels must be {len(X)} integers, one an image, got {y.dtype} {y.shape}"
        )
    if y.min() < 0 or y.max() >= 1000:
        raise ValueError(f"{where}: a label is {y.min() if y.min() < 0 else y.max()}: no class")
    X = np.ascontiguousarray(X, np.float32)
    if not validation.all_finite(X):
        raise ValueError(f"{where}: images contain NaN or infinity")
    return X, y.astype(np.int64)


def _digits() -> tuple[Pair, Pair, Pair]:
    data = datasets.load(validation=597)
    warnings.warn(
        "these are scikit-learn's digits, 1200 of 8 x 8 pixels to train with, not MNIST",
        UserWarning,
        stacklevel=4,  # of load_data and load_data_wrapper alike
    )
    X, X_val = data.X.astype(np.float32), data.X_val.astype(np.float32)
    return (X, data.y), (X_val[:297], data.y_val[:297]), (X_val[297:], data.y_val[297:])
