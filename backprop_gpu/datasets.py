"""Data for the command line: handwritten digits, IDX folders, npz files and tables.

Files are only ever parsed: nothing in them is executed, no pickle is opened. What they declare
is checked before it is read, and takes no more memory than `reading.Budget` allows.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import preprocessing, reading, sources, tables
from .preprocessing import Category, Number, Options, Preprocessing, moments
from .reading import MAX_BYTES, Budget
from .sources import Part
from .validation import integer

#: The share of rows kept for validation where the data brings no rows of its own for it.
VALIDATION = 0.2
#: Seed of the fixed order of the digits. Over 40 such orders a [64, 30, 10] network reaches
#: 0.958 to 0.992, median 0.975; this one is typical.
DIGITS_ORDER = 2


@dataclass(frozen=True)
class Table:
    """Rows as a file holds them, features scaled, labels untouched.

    Parameters
    ----------
    X : (n, n_0) array
        Features; of a store, rows that stay on the disk.
    y : (n,) array or None
        Labels, if there are any.
    test : (array, array or None) or None
        Features and labels that the data itself sets apart.
    description : str
        Where they are from.
    scaled : str
        How features were scaled.
    """

    X: Any
    y: np.ndarray | None
    test: tuple[np.ndarray, np.ndarray | None] | None
    description: str
    scaled: str


@dataclass(frozen=True)
class Dataset:
    """Rows to train on and rows to validate with, ready for `Network.fit`.

    Parameters
    ----------
    X : (n, n_0) array
        Rows to train on.
    y : (n,) or (n, k) array
        Class numbers (n,), or targets where ``classes`` is None.
    X_val : (n_val, n_0) array
        Rows to validate with.
    y_val : (n_val,) or (n_val, k) array
        As y.
    description : str
        Where they are from, how they were scaled and split.
    classes : tuple of str or None
        Names of what the outputs stand for, in order.
    preprocessing : Preprocessing or None
        What the rows of a table have been through, or names the classes of other data; None where
        there is nothing to keep.
    weights, weights_val : (n,) and (n_val,) arrays, or None
        What each row counts, where a table says so.
    """

    X: Any
    y: np.ndarray
    X_val: np.ndarray
    y_val: np.ndarray
    description: str
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None = None
    weights: np.ndarray | None = None
    weights_val: np.ndarray | None = None

    @property
    def n_outputs(self) -> int:
        """Number of outputs that a network for this data needs."""
        return self.y.shape[1] if self.classes is None else len(self.classes)

    @property
    def named(self) -> bool:
        """Whether the classes have names of their own, rather than 0, 1, 2 and so on."""
        return self.classes is not None and self.classes != numbered(len(self.classes))

    def standardize_target(self) -> Dataset:
        """Give the target of a table mean 0 and deviation 1 over the training rows.

        Returns
        -------
        Dataset
            A new one, whose ``preprocessing`` leads back.

        Raises
        ------
        ValueError
            If the target is no column of numbers in a table, or they are too large.
        """
        if self.preprocessing is None or not isinstance(self.preprocessing.target, Number):
            raise ValueError("only the numbers in a table's column can be standardised")
        mean, deviation = (float(moment[0]) for moment in moments(self.y))
        if not np.isfinite([mean, deviation]).all():
            raise ValueError("the numbers of the target are too large")
        target = replace(self.preprocessing.target, mean=mean, deviation=deviation)
        return replace(
            self,
            y=(self.y - mean) / deviation,
            y_val=(self.y_val - mean) / deviation,
            description=f"{self.description}\ntarget standardised: mean {mean:.6g}, "
            f"deviation {deviation:.6g}; losses are in such units",
            preprocessing=replace(self.preprocessing, target=target),
        )


def numbered(count: int) -> tuple[str, ...]:
    """("0", "1", …): the names of classes that are plain numbers."""
    return tuple(map(str, range(count)))


def load(
    path: str | Path | None = None,
    *,
    validation: float | None = None,
    scale: float | None = None,
    shuffle: int | None = None,
    task: str | None = None,
    table: Options | None = None,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """Read data and set validation rows apart.

    Parameters
    ----------
    path : path, optional
        A folder of IDX files, an ``.npz`` file or a table (see `read` and `tables.read`);
        without one, the handwritten `digits` in a fixed random order, because their
        last rows are by other writers than the first.
    validation : float, optional
        A share below 1, or a number, of the rows to keep for validation.
        Default 0.2; not allowed where the data has test rows, which are used then.
    scale : float, optional
        Features are multiplied by it; default 1/255 for uint8, else 1. Those of a table are
        standardised unless it is given.
    shuffle : int, optional
        Take the rows for validation at random, by this seed, rather than the last; of each
        class its share, where there are rows enough. The rest is shuffled, too.
    task : {"classification", "regression"}, optional
        Whether labels are classes or numbers to fit; default: see `is_class`.
    table : Options, optional
        How the columns of a table are used.
    max_bytes : int
        What the data in the file may take, in bytes.

    Returns
    -------
    Dataset
        Rows to train on and to validate with.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file and what is wrong with it, or the option that does not suit it.
    """
    table = Options() if table is None else table
    if path is not None and tables.is_table(Path(path)) and Path(path).is_file():
        return _load_table(Path(path), validation, scale, shuffle, task, table, max_bytes)
    given = {"target": table.target, "drop": table.drop, "keep": table.keep,
             "categories": table.categories, "impute": table.impute,
             "sample-weight": table.sample_weight}  # fmt: skip
    if path is not None and Path(path).suffix.lower() in sources.STORES and Path(path).exists():
        held = _read_store(Path(path), scale, max_bytes)
    else:
        held = _digits() if path is None else read(path, scale=scale, max_bytes=max_bytes)
    where = "the digits" if path is None else str(path)
    if misplaced := [f"--{name}" for name, value in given.items() if value]:
        raise ValueError(f"{misplaced[0]} is for tables, which {where} is not")
    if held.y is None:
        raise ValueError(f"{where} has no labels to train on")
    if held.test is None:
        y, classes, notes = _prepare(held.y, task, "labels")
        train, kept, how = _split(y, classes, validation, shuffle)
        X = held.X
        if isinstance(X, Part):  # which takes rows in ascending order; a training shuffles them
            train, kept = np.sort(train), np.sort(kept)
            size = 8 * len(kept) * X.shape[1]
            Budget(Path(where), max_bytes).take(size, "its rows for validation")
        dataset = Dataset(_part(X, train), y[train], X[kept], y[kept], held.description, classes)
        return _described(dataset, held.scaled, how, notes)
    X_val, y_val = held.test
    if y_val is None:
        raise ValueError(f"{where} has labels for the training rows, but not for the test rows")
    if validation is not None:
        raise ValueError(
            f"{where} comes with {len(X_val)} test rows, which are used for validation: "
            "a validation share does not apply"
        )
    both, classes, notes = _prepare(_together(held.y, y_val, where), task, "labels")
    y, y_val = both[: len(held.y)], both[len(held.y) :]
    dataset = Dataset(held.X, y, X_val, y_val, held.description, classes)
    return _described(dataset, held.scaled, "its own test rows", notes)


def _load_table(
    path: Path,
    validation: float | None,
    scale: float | None,
    shuffle: int | None,
    task: str | None,
    options: Options,
    max_bytes: int,
) -> Dataset:
    budget = Budget(path, max_bytes)
    frame = tables.read(path, budget, options.header)
    roles = preprocessing.roles(frame, options)
    name = frame.names[roles.target]
    y, classes, notes = _prepare(_target(frame, roles.target, task), task, f"target {name!r}")
    train, kept, how = _split(y, classes, validation, shuffle)
    weights, weights_val = None, None
    if roles.weight is not None:
        of_rows = _weights(frame, roles.weight)
        weights, weights_val = of_rows[train], of_rows[kept]
        for some, what in ((weights, "train"), (weights_val, "validate")):
            if not some.any():
                raise ValueError(
                    f"{path}: column {frame.names[roles.weight]!r}, which --sample-weight names, "
                    f"is 0 in all {len(some)} rows that {what}"
                )
        notes.append(f"rows count by: {frame.names[roles.weight]}")
    learned = preprocessing.learn(frame, roles, train, options, scale)
    if classes is not None:
        learned = replace(learned, target=Category(name, classes))
    budget.take(8 * len(frame) * learned.width, "its columns, the categories one-hot,")
    learned.to_json()  # which refuses what a model file could not hold
    X, remarks = learned.transform(frame)
    found = [f"{c.name} ({c.width})" for c in learned.columns or () if type(c) is Category]
    if found:
        notes.append(f"categories, one-hot: {', '.join(found)}")
    if frame.header:
        notes.insert(0, f"target: {name}")
    scaled = f"features scaled by {scale:g}" if scale is not None else "columns standardised"
    if scale is None and not options.standardize:
        scaled = _as_they_are(X)
    without = " (without its header)" if frame.header and frame.unit == "line" else ""
    dataset = Dataset(
        X[train], y[train], X[kept], y[kept], f"{path}{without}", classes, learned, weights,
        weights_val,
    )  # fmt: skip
    notes = [*roles.notes, *notes, *(f"note: {remark}" for remark in remarks)]
    return _described(dataset, scaled, how, notes)


def _weights(frame: tables.Frame, j: int) -> np.ndarray:
    """What each row counts."""
    _check_no_gaps(frame, j, "which --sample-weight names")
    weights = frame.numeric(j)
    if (negative := weights < 0).any():
        row = int(np.argmax(negative))
        raise ValueError(
            f"{frame.place(row, j)}, which --sample-weight names: a weight must be at least 0, "
            f"got {weights[row]:g}"
        )
    return weights


def _check_no_gaps(frame: tables.Frame, j: int, role: str) -> None:
    frame.check_usable(j)
    if (gaps := frame.missing(j)).any():
        raise ValueError(
            f"{frame.place(int(np.argmax(gaps)), j)}, {role}: missing value, the first of "
            f"{np.count_nonzero(gaps):,}"
        )


def _target(frame: tables.Frame, j: int, task: str | None) -> np.ndarray:
    _check_no_gaps(frame, j, "which is the target")
    if j not in frame.codes or task == "regression":
        return frame.numeric(j)
    codes, texts = frame.categorical(j)
    return np.asarray(np.array(texts)[codes])


def _split(
    y: np.ndarray, classes: tuple[str, ...] | None, validation: float | None, shuffle: int | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Which rows train, which validate, and how they were chosen."""
    rows = len(y)
    count = _validation_rows(VALIDATION if validation is None else validation, rows)
    order = np.arange(rows)
    if shuffle is None:
        return order[:-count], order[-count:], "the last"
    seeds = np.random.SeedSequence(integer("seed", shuffle, 0))
    if classes is not None:
        each = np.unique(y, return_counts=True)[1]
        if each.min() >= 2 and min(count, rows - count) >= len(each):
            train, kept = _share_of_classes(y, count, np.random.default_rng(seeds))
            return train, kept, "taken at random, of each class its share"
    order = np.random.default_rng(seeds).permutation(rows)
    return order[:-count], order[-count:], "taken at random"


def _share_of_classes(
    y: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows at random, the second array `count` of them: of each class its share.

    Shares are rounded by largest remainders, but no class is left without a row on either side.
    """
    of_class = [np.flatnonzero(y == one) for one in np.unique(y)]
    sizes = np.array([len(rows) for rows in of_class])
    exact = sizes * count / len(y)
    shares = np.clip(exact.astype(int), 1, sizes - 1)
    while (left := count - shares.sum()) != 0:
        step = np.sign(left)
        movable = shares < sizes - 1 if step > 0 else shares > 1
        shares[np.argmax(np.where(movable, step * (exact - shares), -np.inf))] += step
    shuffled = [random.permutation(rows) for rows in of_class]
    kept = np.concatenate([rows[:share] for rows, share in zip(shuffled, shares, strict=True)])
    train = np.concatenate([rows[share:] for rows, share in zip(shuffled, shares, strict=True)])
    return random.permutation(train), random.permutation(kept)


def _described(dataset: Dataset, scaled: str, how: str, notes: list[str]) -> Dataset:
    """The dataset with the whole of its description, and the names of its classes kept."""
    classes = dataset.classes
    outputs = f"{dataset.n_outputs} {'target(s)' if classes is None else 'classes'}"
    lines = [
        f"{dataset.description}: {len(dataset.X)} rows to train, {len(dataset.X_val)} to validate "
        f"({how}), {dataset.X.shape[1]} features, {outputs}; {scaled}",
        *notes,
    ]
    if dataset.named and classes is not None:
        shown = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
        lines.append(f"classes, sorted: {shown}")
        if dataset.preprocessing is None:
            kept = Preprocessing(None, Category("y", classes))
            kept.to_json()  # which refuses what a model file could not hold
            dataset = replace(dataset, preprocessing=kept)
    if classes is not None:
        unseen = np.setdiff1d(dataset.y_val, dataset.y)
        if len(unseen):
            names = ", ".join(classes[i] for i in unseen[:5])
            lines.append(
                f"note: no training row is of class {names}; are the rows sorted? (see --shuffle)"
            )
    return replace(dataset, description="\n".join(lines))


def read(
    path: str | Path,
    *,
    scale: float | None = None,
    features: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Table:
    """Read the rows of a file or folder, as a network without a `Preprocessing` takes them.

    Parameters
    ----------
    path : path
        A folder with MNIST's file names (``train-images-idx3-ubyte`` and so on, plain or
        gzipped; with only the ``t10k`` pair that is the data), one IDX file of images, an
        ``.npz`` with arrays X, y or x_train, y_train, x_test, y_test, or a table of numbers
        whose last column is the label.
    scale : float, optional
        Features are multiplied by it; default 1/255 for uint8, else 1.
    features : int, optional
        How many features a network takes: a table of just as many columns is then
        one without labels.
    max_bytes : int
        What the data in each file may take, in bytes.

    Returns
    -------
    Table
        Features, labels and test rows, as far as there are any.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, scale, max_bytes)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}")
    if tables.is_table(path):
        return _read_table(path, scale, features, max_bytes)
    if path.suffix.lower() == ".npz":
        return _read_npz(path, scale, max_bytes)
    if "idx" in path.name or path.name.removesuffix(".gz").endswith("ubyte"):
        X, scaled = _scale(_rows(read_idx(path, max_bytes=max_bytes), path), scale)
        return Table(X, None, None, str(path), scaled)
    raise ValueError(
        f"{path} is not data that can be read: it must be a folder of IDX files, "
        "an IDX file, an .npz, a .csv, a .tsv or a .parquet (or, to train on, an .h5 or .zarr)"
    )


def _read_table(path: Path, scale: float | None, features: int | None, max_bytes: int) -> Table:
    frame = tables.read(path, Budget(path, max_bytes))
    count = len(frame.names)
    labelled = count != features
    for j in range(count - labelled):
        if (gaps := frame.missing(j)).any():
            raise ValueError(f"{frame.place(int(np.argmax(gaps)), j)}: missing value")
        frame.numeric(j)
    y = _target(frame, count - 1, None) if labelled else None
    X, scaled = _scale(_rows(frame.numbers[:, : count - labelled], path), scale)
    return Table(X, y, None, str(path), scaled)


def _part(X: Any, rows: np.ndarray) -> Any:
    return X.part(rows) if isinstance(X, Part) else X[rows]


def _read_store(path: Path, scale: float | None, max_bytes: int) -> Table:
    """Arrays X and y, or x_train, y_train, x_test and y_test; X and x_train stay on the disk."""
    arrays = {name.lower(): array for name, array in sources.open_store(path).items()}
    budget = Budget(path, max_bytes)

    def rows(name: str) -> Part:
        stored = sources.source(name, arrays[name])
        _check_rows(Declared(stored.shape, stored.dtype), path)
        flat = partial(_flat, scale=scale)
        return Part(stored, np.arange(len(stored)), flat)

    def labels(name: str, count: int) -> np.ndarray | None:
        if name not in arrays:
            return None
        stored = sources.source(name, arrays[name])
        declared = Declared(stored.shape, stored.dtype)
        _check_labels(declared, count, path)
        budget.take(declared.bytes, f"its {name}")
        return _decoded(stored.read(np.arange(count)))

    if "x" in arrays:
        X = rows("x")
        y, test = labels("y", len(X)), None
    elif "x_train" in arrays:
        X = rows("x_train")
        y = labels("y_train", len(X))
        test = None
        if "x_test" in arrays:
            others = rows("x_test")
            budget.take(8 * others.shape[0] * others.shape[1], "its x_test")
            test = others[np.arange(len(others))], labels("y_test", len(others))
    else:
        names = ", ".join(sorted(arrays)) or "none"
        raise ValueError(f"{path} needs arrays X and y, or x_train and y_train; it has {names}")
    _, scaled = _scale(arrays["x" if "x" in arrays else "x_train"][:1], scale)
    return Table(X, y, test, f"{path} (read as it is needed)", scaled)


def _flat(rows: np.ndarray, scale: float | None) -> np.ndarray:
    return _scale(rows.reshape(len(rows), -1), scale)[0]


# -- labels ---------------------------------------------------------------------------


def encode(y: np.ndarray) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as class numbers with the names of all classes, or targets with None.

    Whole numbers from 0 on are class numbers as they are. Strings, and numbers that are
    negative or leave more than half of the numbers below them unused, are names: classes
    are then numbered in sorted order. One-hot rows become class numbers; anything else
    that is not whole is a target, (n, k).
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2:
        if ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all():
            return y.argmax(axis=1), numbered(y.shape[1])
        return y, None
    if y.ndim != 1:
        raise ValueError(f"labels must have shape (n,) or (n, k), got {y.shape}")
    if y.dtype.kind == "f":
        # NaN is not whole either: such targets are refused by name when training starts.
        if not (np.isfinite(y).all() and (y == np.floor(y)).all() and (np.abs(y) < 2**53).all()):
            return y.reshape(-1, 1), None
        y = y.astype(np.int64)
    values, numbers = np.unique(y, return_inverse=True)
    if y.dtype.kind in "biu":
        low, high = int(values[0]), int(values[-1])
        if low >= 0 and high + 1 <= max(2 * len(values), 2):
            return y.astype(np.int64), numbered(max(high + 1, 2))
    return numbers.reshape(-1), tuple(map(str, values))


def names_of(y: np.ndarray) -> np.ndarray | None:
    """Labels as the strings that `encode` names them by, or None where they are targets."""
    numbers, classes = encode(y)
    return None if classes is None else np.array(classes)[numbers]


def is_class(values: np.ndarray, rows: int) -> bool:
    """Whether labels that are whole, of these different values, are taken as classes.

    One or two values are. Up to 20 are where each comes twice or more on average, and more of
    them where they leave no gap and each comes ten times or more.
    """
    if len(values) <= 20:
        return len(values) <= 2 or rows >= 2 * len(values)
    return bool(values[-1] - values[0] + 1 == len(values) and rows >= 10 * len(values))


def _prepare(
    y: np.ndarray, task: str | None, what: str
) -> tuple[np.ndarray, tuple[str, ...] | None, list[str]]:
    """Class numbers and names, or targets and None; and what to say about the choice."""
    if task == "regression":
        return (*_as_targets(y), [])
    numbers, classes = encode(y)
    if classes is None and task == "classification":
        raise ValueError(f"{what}: numbers that are not whole cannot be classes")
    if classes is None or task is not None or y.dtype.kind not in "biuf" or y.size != len(y):
        return numbers, classes, []
    values = np.unique(y)
    if not is_class(values, len(y)):
        note = (
            f"note: {what}: {len(values):,} different whole numbers in {len(y):,} rows, taken as "
            "numbers to fit; --task classification takes them as classes"
        )
        return (*_as_targets(y), [note])
    if len(values) > 20:
        note = (
            f"note: {what}: {len(values):,} different whole numbers, taken as classes; "
            "--task regression fits them as numbers"
        )
        return numbers, classes, [note]
    return numbers, classes, []


def _as_targets(y: np.ndarray) -> tuple[np.ndarray, None]:
    if y.dtype.kind not in "biuf":
        raise ValueError(f"labels that are not numbers cannot be targets, the first is {y[0]!r}")
    return y.reshape(len(y), -1).astype(np.float64), None


def _together(y: np.ndarray, y_val: np.ndarray, where: str) -> np.ndarray:
    if y.shape[1:] != y_val.shape[1:] or (y.dtype.kind in "US") != (y_val.dtype.kind in "US"):
        raise ValueError(
            f"{where}: training labels are {y.dtype} of shape {y.shape}, "
            f"test labels {y_val.dtype} of shape {y_val.shape}"
        )
    return np.concatenate([y, y_val])


def _validation_rows(validation: float, rows: int) -> int:
    if not (math.isfinite(validation) and validation > 0):
        raise ValueError(
            f"validation must be a share below 1 or a number of rows, got {validation}"
        )
    if validation >= 1 and validation != int(validation):
        raise ValueError(f"validation must be a whole number of rows, got {validation}")
    count = max(1, int(rows * validation + 1e-9)) if validation < 1 else int(validation)
    if count >= rows:
        raise ValueError(f"{count} of {rows} rows for validation leave none to train on")
    return count


@dataclass(frozen=True)
class Declared:
    """What a file says that an array is, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _check_labels(y: Declared, rows: int, path: Path) -> None:
    """Labels are numbers or strings, of as many rows as there are samples."""
    if not y.shape or y.shape[0] != rows:
        raise ValueError(f"{path}: {rows} rows of features, but labels of shape {y.shape}")
    if y.dtype.kind not in "biufUS":
        raise ValueError(f"{path}: labels must be numbers or strings, got dtype {y.dtype}")


def _decoded(y: np.ndarray) -> np.ndarray:
    return np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y


# -- features -------------------------------------------------------------------------


def _check_rows(X: Declared, path: Path) -> None:
    if len(X.shape) < 2 or 0 in X.shape:
        raise ValueError(f"{path}: features must have shape (n, …), not empty, got {X.shape}")
    if X.dtype.kind not in "biuf":
        raise ValueError(f"{path}: features must be numbers, got dtype {X.dtype}")


def _rows(array: np.ndarray, path: Path) -> np.ndarray:
    """One sample per row: images are flattened."""
    _check_rows(Declared(array.shape, array.dtype), path)
    return array.reshape(len(array), -1)


def _scale(array: np.ndarray, scale: float | None) -> tuple[np.ndarray, str]:
    if scale is not None:
        return array * np.float64(scale), f"features scaled by {scale:g}"
    if array.dtype == np.uint8:
        # float32 holds k/255 to its last digit and half the memory of float64.
        return array * np.float32(1.0 / 255.0), "uint8 features scaled by 1/255"
    return array, _as_they_are(array)


def _as_they_are(array: np.ndarray) -> str:
    largest = max(float(array.max()), -float(array.min()))
    hint = f" (the largest is {largest:g}: consider --scale)" if largest > 50.0 else ""
    return f"features as they are{hint}"


# -- the digits -----------------------------------------------------------------------


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 handwritten digits of 8×8 pixels, the rows of `sklearn.datasets.load_digits`.

    E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning
    Repository, 1998 (CC BY 4.0): its test set.

    Returns
    -------
    X : ndarray, shape (1797, 64), float64
        Pixels from 0 to 16.
    y : ndarray, shape (1797,), int64
        The digits.
    """
    with np.load(Path(__file__).parent / "data" / "digits.npz", allow_pickle=False) as file:
        rows = file["rows"]
    return rows[:, :-1].astype(np.float64), rows[:, -1].astype(np.int64)


def _digits() -> Table:
    X, y = digits()
    order = np.random.default_rng(DIGITS_ORDER).permutation(len(y))
    return Table(
        X[order] / 16.0,
        y[order],
        None,
        "handwritten digits (8×8 pixels), in a fixed random order",
        "features scaled by 1/16",
    )


# -- IDX ------------------------------------------------------------------------------

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Read the array in an IDX file, plain or gzipped (told by its content, not its name).

    Parameters
    ----------
    path : path
        The file.
    max_bytes : int
        What its data may take, in bytes.

    Returns
    -------
    array
        Of the shape and type that the file declares, in the machine's byte order.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no IDX file, is cut short, goes on after its end, or holds too much.
    """
    path = Path(path)
    with reading.open_file(path) as file:
        declared = _idx_header(file, path)
        shape, dtype, expected = declared.shape, declared.dtype, declared.bytes
        need = f"{path} is cut short: {shape} of {dtype.newbyteorder('=')} need {expected} bytes"
        size = path.stat().st_size
        if reading.is_gzip(path):
            if expected > reading.INFLATION * size:
                raise ValueError(f"{need}, more than its {size} can unpack to")
        elif (there := size - file.tell()) < expected:
            raise ValueError(f"{need}, but {there} are there")
        Budget(path, max_bytes).take(expected)
        data = np.empty(expected, np.uint8)
        with reading.gunzipping(path):
            got = reading.fill(file, data)
            got += len(file.read(1))
    if got < expected:
        raise ValueError(f"{need}, but {got} are there")
    if got > expected:
        raise ValueError(f"{path} goes on after the {expected} bytes of its {shape} array")
    try:
        return data.view(dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)
    except ValueError as error:  # too many dimensions, or none of some and too many of others
        raise ValueError(f"{path}: no array has shape {shape}: {error}") from error


def _idx_header(file: BinaryIO, path: Path) -> Declared:
    magic = reading.take(file, 4, path)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not magic[3]:
        raise ValueError(
            f"{path} is not an IDX file: it starts with {magic.hex(' ') or 'nothing'}, "
            "not with 00 00, a type from 08 to 0e and the number of dimensions"
        )
    header = reading.take(file, 4 * magic[3], path)
    if len(header) < 4 * magic[3]:
        raise ValueError(f"{path} is cut short: its header ends after {4 + len(header)} bytes")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
    return Declared(shape, np.dtype(_IDX_TYPES[magic[2]]))


def _idx_declared(path: Path) -> Declared:
    with reading.open_file(path) as file:
        return _idx_header(file, path)


def _read_folder(folder: Path, scale: float | None, max_bytes: int) -> Table:
    parts = {part: _find(folder, part) for part in ("train", "t10k")}
    if not any(images for images, _ in parts.values()):
        raise ValueError(
            f"{folder} holds no MNIST files: expected train-images-idx3-ubyte[.gz] or "
            "t10k-images-idx3-ubyte[.gz], with the labels beside them"
        )
    declared = []
    for images, labels in parts.values():
        if images is None:
            continue
        declared.append(_idx_declared(images))
        _check_rows(declared[-1], images)
        if labels is not None:
            _check_labels(_idx_declared(labels), declared[-1].shape[0], labels)
    _check_same_features(declared, folder)
    pairs, scaled = [], ""
    for images, labels in parts.values():
        if images is None:
            continue
        array = _rows(read_idx(images, max_bytes=max_bytes), images)
        X, scaled = _scale(array, scale)
        y = None if labels is None else read_idx(labels, max_bytes=max_bytes)
        pairs.append((X, y))
    first, test = pairs[0], pairs[1] if len(pairs) == 2 else None
    which = "" if test else " (train)" if parts["train"][0] else " (t10k)"
    return Table(*first, test, f"IDX files in {folder}{which}", scaled)


def _check_same_features(parts: list[Declared], where: Path) -> None:
    counts = [math.prod(each.shape[1:]) for each in parts]
    if len(counts) == 2 and counts[0] != counts[1]:
        raise ValueError(f"{where}: training rows have {counts[0]} features, test rows {counts[1]}")


def _find(folder: Path, part: str) -> tuple[Path | None, Path | None]:
    """(images, labels) of a part; the usual spellings, each plain or gzipped."""

    def first(kind: str, dimensions: int) -> Path | None:
        for separator in "-.":  # some archives unpack to train-images.idx3-ubyte
            for ending in ("", ".gz"):
                path = folder / f"{part}-{kind}{separator}idx{dimensions}-ubyte{ending}"
                if path.is_file():
                    return path
        return None

    return first("images", 3), first("labels", 1)


# -- npz ------------------------------------------------------------------------------


def read_npz(
    path: str | Path, names: Iterable[str], *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Those arrays of an ``.npz`` file that have one of these names, whatever their case.

    Parameters
    ----------
    path : path
        The file; arrays of Python objects are refused, and nothing in it is executed.
    names : iterable of str
        In lower case.
    max_bytes : int
        What all of them may take.

    Returns
    -------
    dict of str to array
        Those that are there, by these names.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file and what is wrong with it; all that is declared is checked before anything
        is unpacked.
    """
    path = Path(path)
    with _archive(path) as archive:
        members = _members(archive)
        there = {name: members[name] for name in names if name in members}
        budget = Budget(path, max_bytes)
        for name, info in there.items():
            budget.take(_npy_declared(archive, info, path).bytes, name)
        return {name: _read_npy(archive, info, path) for name, info in there.items()}


def _archive(path: Path) -> zipfile.ZipFile:
    with open(path, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise ValueError(f"{path} cannot be read as .npz: it holds one array, not named ones")
    try:
        return zipfile.ZipFile(path)
    except (ValueError, OSError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {
        info.filename.removesuffix(".npy").lower(): info
        for info in archive.infolist()
        if info.filename.endswith(".npy")
    }


def _read_npz(path: Path, scale: float | None, max_bytes: int) -> Table:
    with _archive(path) as archive:
        return _read_archive(archive, path, scale, Budget(path, max_bytes))


def _read_archive(
    archive: zipfile.ZipFile, path: Path, scale: float | None, budget: Budget
) -> Table:
    members = _members(archive)
    parts = [("x_train", "y_train"), ("x_test", "y_test")]
    if "x_train" not in members:
        parts = [("x", "y")]
    if parts[0][0] not in members:
        raise ValueError(
            f"{path} needs arrays X and y, or x_train, y_train, x_test and y_test; "
            f"it holds {', '.join(sorted(members)) or 'none'}"
        )
    names = [name for part in parts for name in part if name in members]
    # All that is declared is checked before anything is unpacked.
    declared = {name: _npy_declared(archive, members[name], path) for name in names}
    features = []
    for X, y in parts:
        if X in declared:
            features.append(declared[X])
            _check_rows(declared[X], path)
            if y in declared:
                _check_labels(declared[y], declared[X].shape[0], path)
    _check_same_features(features, path)
    for name in names:
        # uint8 becomes float32.
        budget.take(declared[name].bytes * (4 if declared[name].dtype == np.uint8 else 1), name)
    arrays = {name: _read_npy(archive, members[name], path) for name in names}
    pairs, scaled = [], ""
    for X, y in parts:
        if X in arrays:
            rows, scaled = _scale(_rows(arrays[X], path), scale)
            pairs.append((rows, _decoded(arrays[y]) if y in arrays else None))
    return Table(*pairs[0], pairs[1] if len(pairs) == 2 else None, str(path), scaled)


@contextmanager
def _unpacking(path: Path, info: zipfile.ZipInfo) -> Iterator[None]:
    """What is wrong with a member, as one line that names it."""
    try:
        yield
    except Exception as error:
        # NumPy reads a header as a literal of Python, which fails in a dozen ways, and zipfile
        # raises RuntimeError for a password, NotImplementedError for an unknown compression, …
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as .npz: {info.filename}: {reason}") from error


def _npy_header(file: Any) -> tuple[Declared, bool]:
    """What an array is, and whether its first index changes fastest."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"format version {version} of an array, not 1.0 or 2.0")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never opened")
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return Declared(shape, dtype), fortran


def _npy_declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Declared:
    with _unpacking(path, info), archive.open(info) as file:
        declared, _ = _npy_header(file)
        there = info.file_size - file.tell()
        if declared.bytes != there:
            raise ValueError(
                f"{declared.shape} of {declared.dtype} need {declared.bytes} bytes, but "
                f"{there} are there"
            )
        if info.file_size > reading.INFLATION * (info.compress_size + 64) and (
            info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ):
            raise ValueError(f"{info.compress_size} bytes cannot unpack to {info.file_size}")
    return declared


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    with _unpacking(path, info), archive.open(info) as file:
        declared, fortran = _npy_header(file)
        flat = np.empty(math.prod(declared.shape), declared.dtype)
        if reading.fill(file, flat) < flat.nbytes:
            raise ValueError("it is cut short")
        file.read(1)  # the end, where the checksum is compared
    return flat.reshape(declared.shape, order="F" if fortran else "C")
