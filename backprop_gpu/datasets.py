"""Data for the command line: handwritten digits, IDX folders, npz and csv files.

Files are only ever parsed: nothing in them is executed, no pickle is opened.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

#: The share of rows kept for validation where the data brings no rows of its own for it.
VALIDATION = 0.2
#: Seed of the fixed order of the digits. Over 40 such orders a [64, 30, 10] network reaches
#: 0.958 to 0.992, median 0.975; this one is typical.
DIGITS_ORDER = 2


@dataclass(frozen=True)
class Table:
    """Rows as a file holds them, features scaled, labels untouched.

    ``test`` is the pair (features, labels) that the data itself sets apart.
    """

    X: np.ndarray
    y: np.ndarray | None
    test: tuple[np.ndarray, np.ndarray | None] | None
    description: str
    scaled: str


@dataclass(frozen=True)
class Dataset:
    """Rows to train on and rows to validate with, ready for `Network.fit`.

    ``y`` and ``y_val`` are class numbers (n,), or targets (n, k) where ``classes`` is None;
    ``classes`` names what the outputs stand for, in order.
    """

    X: np.ndarray
    y: np.ndarray
    X_val: np.ndarray
    y_val: np.ndarray
    description: str
    classes: tuple[str, ...] | None

    @property
    def n_outputs(self) -> int:
        """How many outputs a network for this data needs."""
        return self.y.shape[1] if self.classes is None else len(self.classes)

    @property
    def named(self) -> bool:
        """Whether the classes have names of their own, rather than 0, 1, 2, …"""
        return self.classes is not None and self.classes != numbered(len(self.classes))


def numbered(count: int) -> tuple[str, ...]:
    """("0", "1", …): the names of classes that are plain numbers."""
    return tuple(map(str, range(count)))


def load(
    path: str | Path | None = None,
    *,
    validation: float | None = None,
    scale: float | None = None,
    shuffle: int | None = None,
    targets: bool = False,
) -> Dataset:
    """Read data and set validation rows apart.

    Parameters
    ----------
    path : path, optional
        A folder of IDX files, an ``.npz`` or a ``.csv`` file (see `read`); without one,
        scikit-learn's handwritten digits in a fixed random order, because their last
        rows are by other writers than the first.
    validation : float, optional
        A share below 1, or a number of rows: the last ones are kept for validation.
        Default 0.2; not allowed where the data has test rows, which are used then.
    scale : float, optional
        Features are multiplied by it; default 1/255 for uint8, else 1.
    shuffle : int, optional
        Put the rows in the random order of this seed before the last are taken.
    targets : bool
        Labels are numbers to fit, whole or not, rather than classes.
    """
    table = _digits() if path is None else read(path, scale=scale)
    where = "the digits" if path is None else str(path)
    if table.y is None:
        raise ValueError(f"{where} has no labels to train on")
    y, classes = table.y, None
    prepare = _as_targets if targets else encode
    held: tuple[np.ndarray, np.ndarray]
    if table.test is not None:
        X_val, y_val = table.test
        if y_val is None:
            raise ValueError(f"{where} has labels for the training rows, but not for the test rows")
        if validation is not None:
            raise ValueError(
                f"{where} brings {len(X_val)} test rows, which are used for validation: "
                "a validation share does not apply"
            )
        if X_val.shape[1] != table.X.shape[1]:
            raise ValueError(
                f"{where}: training rows have {table.X.shape[1]} features, "
                f"test rows {X_val.shape[1]}"
            )
        both, classes = prepare(_together(y, y_val, where))
        y, held = both[: len(y)], (X_val, both[len(y) :])
        X, kept = table.X, "its own test rows"
    else:
        y, classes = prepare(y)
        X = table.X
        if shuffle is not None:
            order = np.random.default_rng(shuffle).permutation(len(X))
            X, y = X[order], y[order]
        count = _validation_rows(VALIDATION if validation is None else validation, len(X))
        held = X[-count:], y[-count:]
        X, y = X[:-count], y[:-count]
        kept = "the last" + (" of the shuffled rows" if shuffle is not None else "")
    outputs = f"{len(classes)} classes" if classes is not None else f"{y.shape[1]} target(s)"
    lines = [
        f"{table.description}: {len(X)} rows to train, {len(held[0])} to validate ({kept}), "
        f"{X.shape[1]} features, {outputs}; {table.scaled}"
    ]
    dataset = Dataset(X, y, *held, lines[0], classes)
    if dataset.named and classes is not None:
        shown = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
        lines.append(f"classes, sorted: {shown}")
    if classes is not None:
        unseen = np.setdiff1d(held[1], y)
        if len(unseen):
            names = ", ".join(classes[i] for i in unseen[:5])
            lines.append(
                f"note: no training row is of class {names}; are the rows sorted? (see --shuffle)"
            )
    return replace(dataset, description="\n".join(lines))


def read(path: str | Path, *, scale: float | None = None, features: int | None = None) -> Table:
    """The rows of a file or folder.

    Parameters
    ----------
    path : path
        A folder with MNIST's file names (``train-images-idx3-ubyte`` and so on, plain or
        gzipped; with only the ``t10k`` pair that is the data), one IDX file of images, an
        ``.npz`` with arrays X, y or x_train, y_train, x_test, y_test, or a ``.csv`` whose
        last column is the label and whose first line may be a header.
    scale : float, optional
        Features are multiplied by it; default 1/255 for uint8, else 1.
    features : int, optional
        How many features a network takes: a csv file of just as many columns is then
        one without labels.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, scale)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if ".csv" in suffixes:
        return _read_csv(path, scale, features)
    if suffixes[-1:] == [".npz"]:
        return _read_npz(path, scale)
    if "idx" in path.name or path.name.removesuffix(".gz").endswith("ubyte"):
        X, scaled = _scale(_rows(read_idx(path), path), scale)
        return Table(X, None, None, str(path), scaled)
    raise ValueError(
        f"{path} is not data that can be read: it must be a folder of IDX files, "
        "an IDX file, an .npz or a .csv"
    )


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


def _labels(y: np.ndarray, rows: int, path: Path) -> np.ndarray:
    """Labels as numbers or strings, of as many rows as there are samples."""
    if y.ndim == 0 or len(y) != rows:
        raise ValueError(f"{path}: {rows} rows of features, but labels of shape {y.shape}")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    if y.dtype.kind not in "biufU":
        raise ValueError(f"{path}: labels must be numbers or strings, got dtype {y.dtype}")
    return y


# -- features -------------------------------------------------------------------------


def _rows(array: np.ndarray, path: Path) -> np.ndarray:
    """One sample a row: images are flattened."""
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{path}: features must have shape (n, …), not empty, got {array.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: features must be numbers, got dtype {array.dtype}")
    return array.reshape(len(array), -1)


def _scale(array: np.ndarray, scale: float | None) -> tuple[np.ndarray, str]:
    if scale is not None:
        return array * np.float64(scale), f"features scaled by {scale:g}"
    if array.dtype == np.uint8:
        # float32 holds k/255 to its last digit and half the memory of float64.
        return array * np.float32(1.0 / 255.0), "uint8 features scaled by 1/255"
    largest = float(np.abs(array).max())
    hint = f" (the largest is {largest:g}: consider --scale)" if largest > 50.0 else ""
    return array, f"features as they are{hint}"


# -- the digits -----------------------------------------------------------------------


def _digits() -> Table:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(DIGITS_ORDER).permutation(len(digits.target))
    return Table(
        digits.data[order] / 16.0,
        digits.target[order],
        None,
        "scikit-learn's handwritten digits, in a fixed random order",
        "features scaled by 1/16",
    )


# -- IDX ------------------------------------------------------------------------------

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file, plain or gzipped (told by its content, not its name)."""
    path = Path(path)
    with _open(path) as file:
        magic = _take(file, 4, path)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not magic[3]:
            raise ValueError(
                f"{path} is not an IDX file: it starts with {magic.hex(' ') or 'nothing'}, "
                "not with 00 00, a type from 08 to 0e and the number of dimensions"
            )
        header = _take(file, 4 * magic[3], path)
        if len(header) < 4 * magic[3]:
            raise ValueError(f"{path} is cut short: its header ends after {4 + len(header)} bytes")
        shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
        dtype = np.dtype(_IDX_TYPES[magic[2]])
        expected = math.prod(shape) * dtype.itemsize
        data = _take(file, expected + 1, path)
    if len(data) < expected:
        raise ValueError(
            f"{path} is cut short: {shape} of {dtype.newbyteorder('=')} need {expected} bytes, "
            f"but {len(data)} are there"
        )
    if len(data) > expected:
        raise ValueError(f"{path} goes on after the {expected} bytes of its {shape} array")
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")).reshape(shape)


def _open(path: Path) -> BinaryIO:
    with open(path, "rb") as probe:
        zipped = probe.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else open(path, "rb")


def _take(file: BinaryIO, count: int, path: Path) -> bytes:
    """Up to `count` bytes, in pieces: a false header must not claim the memory at once."""
    pieces: list[bytes] = []
    try:
        while count > 0 and (piece := file.read(min(count, 1 << 20))):
            pieces.append(piece)
            count -= len(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or not a sound gzip file: {error}") from error
    return b"".join(pieces)


def _read_folder(folder: Path, scale: float | None) -> Table:
    parts = {part: _find(folder, part) for part in ("train", "t10k")}
    if not any(images for images, _ in parts.values()):
        raise ValueError(
            f"{folder} holds no MNIST files: expected train-images-idx3-ubyte[.gz] or "
            "t10k-images-idx3-ubyte[.gz], with the labels beside them"
        )
    pairs, scaled = [], ""
    for images, labels in parts.values():
        if images is None:
            continue
        array = _rows(read_idx(images), images)
        X, scaled = _scale(array, scale)
        pairs.append((X, None if labels is None else _labels(read_idx(labels), len(X), labels)))
    first, test = pairs[0], pairs[1] if len(pairs) == 2 else None
    which = "" if test else " (train)" if parts["train"][0] else " (t10k)"
    return Table(*first, test, f"IDX files in {folder}{which}", scaled)


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


def _read_npz(path: Path, scale: float | None) -> Table:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds one array, not named ones")
        with file:
            wanted = {name.lower(): name for name in file.files}
            arrays = {
                name: file[wanted[name]]
                for name in ("x", "y", "x_train", "y_train", "x_test", "y_test")
                if name in wanted
            }
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    trained = "x_train" in arrays
    X = arrays.get("x_train" if trained else "x")
    if X is None:
        raise ValueError(
            f"{path} needs arrays X and y, or x_train, y_train, x_test and y_test; "
            f"it holds {', '.join(sorted(wanted)) or 'none'}"
        )
    X = _rows(X, path)
    y = _optional_labels(arrays.get("y_train" if trained else "y"), len(X), path)
    test = None
    if trained and "x_test" in arrays:
        X_test = _rows(arrays["x_test"], path)
        y_test = _optional_labels(arrays.get("y_test"), len(X_test), path)
        test = _scale(X_test, scale)[0], y_test
    X, scaled = _scale(X, scale)
    return Table(X, y, test, str(path), scaled)


def _optional_labels(y: np.ndarray | None, rows: int, path: Path) -> np.ndarray | None:
    return None if y is None else _labels(y, rows, path)


# -- csv ------------------------------------------------------------------------------

#: Cells that mark a missing value: no number, but no sign of a header either.
_MISSING = ("", "?", "na", "n/a", "null", "none")


def _read_csv(path: Path, scale: float | None, features: int | None) -> Table:
    try:
        first = next(_lines(path), None)
        if first is None:
            raise ValueError("the file is empty")
        cells = next(csv.reader([first]))
        labelled = len(cells) != features
        columns = len(cells) - labelled
        if columns == 0:
            raise ValueError(
                "a row needs features and a label, separated by commas; "
                f"the first line is {first.strip()[:60]!r}"
            )
        header = any(not _number(cell) and not _missing(cell) for cell in cells[:columns])
        X = _columns(path, header, range(columns), np.dtype(np.float64))
        y = None
        if labelled:
            y = np.char.strip(_columns(path, header, (columns,), np.dtype(np.str_))[:, 0])
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
    if y is not None:
        missing = np.flatnonzero(y == "")
        if len(missing):
            raise ValueError(f"{path}: row {missing[0]} (counted from 0) has no label")
        if all(map(_number, y.tolist())):
            y = y.astype(np.float64)
    X, scaled = _scale(X, scale)
    return Table(X, y, None, f"{path}{' (without its header)' if header else ''}", scaled)


def _columns(path: Path, header: bool, columns: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    lines = islice(_lines(path), int(header), None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "input contained no data": raised below
        array = np.loadtxt(
            lines, dtype, comments=None, delimiter=",", quotechar='"', usecols=columns, ndmin=2
        )
    if not len(array):
        raise ValueError("there are no rows after the header")
    return array


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as file:
        for line in io.TextIOWrapper(file, encoding="utf-8-sig"):
            if line.strip():
                yield line


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _missing(cell: str) -> bool:
    return cell.strip().lower() in _MISSING
