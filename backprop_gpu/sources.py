"""Rows that stay where they are, on a disk or elsewhere, and are read a few thousand at a time.

    Source(shape, dtype).read(rows) -> array

What is such a source: a NumPy memory map; HDF5's and Zarr's arrays; Dask's; Arrow's tables and
Parquet files, whose columns are the numbers of a row; and any object that has a shape and a dtype,
takes row numbers in brackets, and is no array in memory.
"""

from __future__ import annotations

import importlib
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import arrays
from .imports import uninterrupted

#: What says that an object's numbers lie in memory.
_IN_MEMORY = ("__array__", "__array_interface__", "__cuda_array_interface__", "__dlpack__")
#: Packages whose objects are sources although they can be made arrays.
_STORES = ("h5py", "zarr", "dask", "pyarrow")


class Source:
    """Rows of an object in brackets: it gets numbers of rows in ascending order, none twice.

    Parameters
    ----------
    name : str
        What the object is called, for an error.
    stored : object
        With ``shape``, ``dtype`` and ``__getitem__``.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy dtype
    """

    def __init__(self, name: str, stored: Any) -> None:
        self.name, self.stored = name, stored
        try:
            self.shape = tuple(map(int, stored.shape))
            self.dtype = np.dtype(stored.dtype)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} has no shape or dtype of an array: {error}") from None
        if not self.shape:
            raise ValueError(f"{name} must have rows, got one number")

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows, whose numbers ascend, as an array in memory.

        Raises
        ------
        ValueError
            If what comes has another shape.
        """
        found = np.asarray(self._read(rows))
        expected = (len(rows), *self.shape[1:])
        if found.shape != expected:
            raise ValueError(
                f"{self.name}[rows] gave an array of shape {found.shape} for {len(rows)} rows; "
                f"expected {expected}"
            )
        return found

    def _read(self, rows: np.ndarray) -> Any:
        return self.stored[rows]


class _Runs(Source):
    """Of what reads slices fast: rows that follow each other at once."""

    def _read(self, rows: np.ndarray) -> Any:
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        done = 0
        for begin, end in _runs(rows):
            found[done : done + end - begin] = self._slice(begin, end)
            self._forget()
            done += end - begin
        return found

    def _forget(self) -> None:
        """A run has been copied."""

    def _slice(self, begin: int, end: int) -> Any:
        return self.stored[begin:end]


class _MemoryMap(_Runs):
    """Pages that have been copied are given back: they would count as this process's memory."""

    def __init__(self, name: str, stored: np.memmap[Any, Any]) -> None:
        super().__init__(name, stored)
        base: Any = stored
        while isinstance(base, np.ndarray):
            base = base.base
        # Of a copy-on-write map that would undo what was written to it.
        self._map = base if stored.mode in ("r", "r+") and hasattr(base, "madvise") else None

    def _forget(self) -> None:
        if self._map is not None:  # all of it: the system may have mapped more than was asked for
            self._map.madvise(mmap.MADV_DONTNEED)


class _Dask(_Runs):
    def _slice(self, begin: int, end: int) -> Any:
        return self.stored[begin:end].compute()


class _Table(_Runs):
    """Columns of an Arrow table."""

    def __init__(self, name: str, stored: Any, missing: bool = False) -> None:
        self.name, self.stored, self.missing = name, stored, missing
        kinds = [np.dtype(field.type.to_pandas_dtype()) for field in self._schema]
        if not kinds or any(kind.kind not in "biuf" for kind in kinds):
            texts = ", ".join(f"{field.name} ({field.type})" for field in self._schema)
            raise TypeError(f"{name} must be a table of numbers, got the columns {texts}")
        self.dtype = np.result_type(*kinds)
        self.shape = (self._count, len(kinds))

    @property
    def _schema(self) -> Any:
        return self.stored.schema

    @property
    def _count(self) -> int:
        return int(self.stored.num_rows)

    def _slice(self, begin: int, end: int) -> Any:
        return self._columns(self.stored.slice(begin, end - begin), begin)

    def _columns(self, table: Any, first_row: int) -> np.ndarray:
        found = np.empty((table.num_rows, table.num_columns), self.dtype)
        for i, column in enumerate(table.columns):
            place = f"{self.name}: column {table.schema.names[i]!r}"
            found[:, i] = arrays.arrow_column(place, column, self.missing, first_row)
        return found


class _Parquet(_Table):
    """A Parquet file: whole row groups are read, and the last one is kept."""

    def __init__(self, name: str, stored: Any, missing: bool = False) -> None:
        super().__init__(name, stored, missing)
        groups = range(stored.num_row_groups)
        counts = [stored.metadata.row_group(i).num_rows for i in groups]
        self._ends = np.cumsum(counts)
        self._kept: tuple[int, np.ndarray] | None = None
        self._lock = threading.Lock()

    @property
    def _schema(self) -> Any:
        return self.stored.schema_arrow

    @property
    def _count(self) -> int:
        return int(self.stored.metadata.num_rows)

    def _slice(self, begin: int, end: int) -> Any:
        parts = []
        while begin < end:
            group = int(np.searchsorted(self._ends, begin, side="right"))
            first = int(self._ends[group - 1]) if group else 0
            last = min(end, int(self._ends[group]))
            parts.append(self._group(group)[begin - first : last - first])
            begin = last
        return np.concatenate(parts)

    def _group(self, group: int) -> np.ndarray:
        with self._lock:
            if self._kept is None or self._kept[0] != group:
                self._kept = None  # two would not have to fit
                first = int(self._ends[group - 1]) if group else 0
                self._kept = group, self._columns(self.stored.read_row_group(group), first)
            return self._kept[1]


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """The first and the end of each run of rows that follow each other."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for run in np.split(rows, breaks):
        if len(run):
            yield int(run[0]), int(run[-1]) + 1


def is_stored(value: Any) -> bool:
    """Whether a value's rows are to be read from where they are, and not an array in memory."""
    if type(value) is np.ndarray:
        return False
    if isinstance(value, np.memmap):
        return True
    if type(value).__module__.partition(".")[0] in _STORES:
        return not _is_group(value)
    if isinstance(value, (list, tuple, np.ndarray)) or any(hasattr(value, n) for n in _IN_MEMORY):
        return False
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__")) and not hasattr(
        value, "toarray"
    )


def _is_group(value: Any) -> bool:
    return not hasattr(value, "shape") and not hasattr(value, "schema")


def source(name: str, value: Any, missing: bool = False) -> Source:
    """A source of a value's rows, or of those of an array in memory.

    What is `missing` in a table becomes NaN, or is refused.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, np.memmap):
        return _MemoryMap(name, value)
    package = type(value).__module__.partition(".")[0]
    if package in ("h5py", "zarr"):
        return _Runs(name, value)
    if package == "dask":
        return _Dask(name, value)
    if package == "pyarrow":
        if hasattr(value, "read_row_group"):
            return _Parquet(name, value, missing)
        if hasattr(value, "slice") and hasattr(value, "schema"):
            return _Table(name, value, missing)
        raise TypeError(
            f"{name} must be a pyarrow Table or ParquetFile, got a {type(value).__name__}"
        )
    return Source(name, value if is_stored(value) else arrays.to_numpy(name, value))


class Part:
    """Some rows of a stored array, flat, each as `change` makes them: in brackets, as a source.

    Parameters
    ----------
    stored : (n, …) array of a store
    rows : (k,) int array
        Ascending.
    change : callable
        From rows as they are stored to (rows, columns).
    """

    def __init__(self, stored: Source, rows: np.ndarray, change: Any) -> None:
        self._stored, self._rows, self._change = stored, rows, change
        sample = self[np.arange(1)]
        self.shape, self.dtype = (len(rows), sample.shape[1]), sample.dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._change(self._stored.read(self._rows[rows]))
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, rows: np.ndarray) -> Part:
        """Some of these rows."""
        return Part(self._stored, self._rows[rows], self._change)


#: Ends of names of files, and folders, that hold arrays by name.
STORES = (".zarr", ".h5", ".hdf5")


def open_store(path: Path) -> dict[str, Any]:
    """The arrays of an HDF5 file or a Zarr group, by their names; they stay where they are.

    Raises
    ------
    ImportError
        Naming what to install.
    ValueError
        For what is neither.
    """
    package = "zarr" if path.suffix.lower() == ".zarr" else "h5py"
    try:
        with uninterrupted():
            module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{path} needs {package}: install backprop_gpu[data]") from error
    try:
        if package == "zarr":
            group = module.open_group(str(path), mode="r")
            return dict(group.arrays())
        file = module.File(path, "r")
        return {name: item for name, item in file.items() if hasattr(item, "dtype")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no {package} store of arrays: {error}") from error
