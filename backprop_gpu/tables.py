"""Tables: the cells of csv, tsv and parquet files.

Files are only ever parsed, in bounded pieces. `preprocessing` makes a network's inputs of cells.
"""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .imports import optional
from .reading import Budget, TooLarge, gunzipping, open_file

#: Endings, before which .gz may not and after which it may stand, with what parts two cells.
SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
#: Cells that mark a missing value, in lower case.
MISSING = ("", "?", "na", "n/a", "<na>", "nan", "null", "none")
#: The most characters of a row, and different texts in a column, that are read.
ROW, LEVELS = 2**24, 10_000
_BLOCK = 2**16  # cells parsed at once


# -- what a file holds ----------------------------------------------------------------


@dataclass
class Frame:
    """The cells of a table: a number, a text, or missing.

    Parameters
    ----------
    path : path
        The file.
    names : tuple of str
        Names of the columns; one without a name is called by its number, counted from 1.
    header : bool
        Whether the file has names.
    numbers : (n, k) float64 array
        NaN where a cell is a text or missing.
    codes : dict of int to (n,) int32 array
        Of the columns with texts: the place of each in ``levels``, -1 where there is none.
    levels : dict of int to list of str
        Texts of these columns.
    unusable : dict of int to str
        Why a column cannot be used at all.
    places : (n,) int array
        Where each row stands in the file: the number of a line, or of a row.
    unit : {"line", "row"}
        What `places` count.
    """

    path: Path
    names: tuple[str, ...]
    header: bool
    numbers: np.ndarray
    codes: dict[int, np.ndarray]
    levels: dict[int, list[str]]
    unusable: dict[int, str]
    places: np.ndarray
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.numbers)

    def find(self, wanted: str) -> int:
        """Find the column of that name, or else of that number, counted from 1.

        Parameters
        ----------
        wanted : str
            Name or number.

        Returns
        -------
        int
            The column, counted from 0.

        Raises
        ------
        ValueError
            If there is none.
        """
        if wanted in self.names:
            return self.names.index(wanted)
        if re.fullmatch(r"[0-9]{1,9}", wanted) and 1 <= int(wanted) <= len(self.names):
            return int(wanted) - 1
        raise ValueError(f"{self.path} has no column {wanted!r}: it has {listed(self.names)}")

    def place(self, row: int, column: int) -> str:
        """Say where a cell stands in the file.

        Parameters
        ----------
        row, column : int
            Counted from 0.

        Returns
        -------
        str
            As in "data.csv: line 7, column 'age'".
        """
        name = self.names[column]
        shown = repr(name) if self.header else name
        return f"{self.path}: {self.unit} {self.places[row]}, column {shown}"

    def missing(self, column: int) -> np.ndarray:
        """Tell which cells of a column are empty.

        Parameters
        ----------
        column : int
            Counted from 0.

        Returns
        -------
        (n,) bool array
            True where there is neither a number nor a text.
        """
        gaps: np.ndarray = np.isnan(self.numbers[:, column])
        if column in self.codes:
            gaps &= self.codes[column] == -1
        return gaps

    def mixed(self, column: int) -> bool:
        """Tell whether a column has both numbers and texts.

        Parameters
        ----------
        column : int
            Counted from 0.

        Returns
        -------
        bool
            Whether it has.
        """
        return column in self.codes and not np.isnan(self.numbers[:, column]).all()

    def check_usable(self, column: int) -> None:
        """Refuse a column that cannot be used at all.

        Parameters
        ----------
        column : int
            Counted from 0.

        Raises
        ------
        ValueError
            With the reason.
        """
        if column in self.unusable:
            raise ValueError(
                f"{self.path}: column {self.names[column]!r} {self.unusable[column]}: "
                f"--drop {shlex.quote(self.names[column])} leaves it out"
            )

    def numeric(self, column: int) -> np.ndarray:
        """Return the numbers of a column.

        Parameters
        ----------
        column : int
            Counted from 0.

        Returns
        -------
        (n,) float64 array
            NaN where missing.

        Raises
        ------
        ValueError
            If there are texts or infinite numbers, naming the place of the first.
        """
        self.check_usable(column)
        if column in self.codes:
            row = int(np.argmax(self.codes[column] >= 0))
            text = self.levels[column][self.codes[column][row]]
            hint = ""
            if self.mixed(column):
                hint = (
                    ", as others of the column are; "
                    f"--categories {shlex.quote(self.names[column])} takes all as categories"
                )
            raise ValueError(f"{self.place(row, column)}: {text[:60]!r} is not a number{hint}")
        values = self.numbers[:, column]
        if (infinite := np.isinf(values)).any():
            raise ValueError(f"{self.place(int(np.argmax(infinite)), column)}: not a finite number")
        return values

    def categorical(self, column: int) -> tuple[np.ndarray, list[str]]:
        """Return the cells of a column as texts, numbers too.

        Parameters
        ----------
        column : int
            Counted from 0.

        Returns
        -------
        codes : (n,) int array
            Places in `texts`; -1 where missing.
        texts : list of str
            The texts that there are.

        Raises
        ------
        ValueError
            If the column cannot be used at all.
        """
        self.check_usable(column)
        codes = np.full(len(self), -1)
        texts = list(self.levels.get(column, ()))
        if column in self.codes:
            codes[:] = self.codes[column]
        there = np.flatnonzero(~np.isnan(self.numbers[:, column]))
        if len(there):
            values, which = np.unique(self.numbers[there, column], return_inverse=True)
            codes[there] = len(texts) + which
            texts += map(_name, values.tolist())
        return codes, texts


def _name(value: float) -> str:
    """A number as a text: 3 rather than 3.0."""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def is_table(path: Path) -> bool:
    """Whether the name ends as that of a table."""
    return _separator(path) is not None or path.suffix.lower() == ".parquet"


def read(
    path: Path,
    budget: Budget | None = None,
    header: bool | None = None,
    known: Sequence[str] = (),
) -> Frame:
    """Read the cells of a csv, tsv or parquet file.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv`` or ``.tab``, each perhaps with ``.gz``, or ``.parquet``.
    budget : Budget, optional
        Default: `reading.MAX_BYTES`.
    header : bool, optional
        Whether the first line has the names of the columns; default: found out.
    known : sequence of str
        Names of which the first line has one if it is a header.

    Returns
    -------
    Frame
        All of them.

    Raises
    ------
    ValueError
        Naming the file, the line and the column.
    """
    path = Path(path)
    budget = Budget(path) if budget is None else budget
    separator = _separator(path)
    if separator is None:
        return _read_parquet(path, budget)
    return _read_csv(path, separator, budget, header, known)


def _separator(path: Path) -> str | None:
    endings = [suffix.lower() for suffix in path.suffixes]
    if endings[-1:] == [".gz"]:
        endings.pop()
    return SEPARATORS.get(endings[-1]) if endings else None


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


class _Lines:
    """The lines of a text, of which a row may take no more than `ROW` characters."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self.file, self.row, self.block, self.underscores = file, 0, 0, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(ROW + 1)
        self.row += len(line)
        self.block += len(line)
        if self.row > ROW:
            raise ValueError(f"it goes on for more than {ROW:,} characters")
        self.underscores |= "_" in line  # "1_000" is a number to Python alone
        if not line:
            raise StopIteration
        return line


class _Cells:
    """Collects the cells of a table, block by block."""

    def __init__(self, width: int, budget: Budget) -> None:
        self.width, self.budget, self.rows = width, budget, 0
        self.blocks: list[np.ndarray] = []
        self.texts: dict[int, list[tuple[int, np.ndarray]]] = {}
        self.known: dict[int, dict[str, int]] = {}
        self.unusable: dict[int, str] = {}

    def add(self, rows: list[list[str]], careful: bool) -> None:
        numbers = np.empty((len(rows), self.width))
        try:
            if careful:
                raise ValueError
            numbers.reshape(-1)[:] = list(map(float, chain.from_iterable(rows)))
        except ValueError:
            for column in range(self.width):
                self.parse(numbers[:, column], column, [row[column] for row in rows], careful)
        self.append(numbers)

    def append(self, numbers: np.ndarray) -> None:
        self.blocks.append(numbers)
        self.rows += len(numbers)

    def parse(self, out: np.ndarray, column: int, cells: Sequence[str], careful: bool) -> None:
        """The cells of a column's next rows: numbers into `out`, texts as codes."""
        if not careful:
            try:
                out[:] = list(map(float, cells))
                return
            except ValueError:
                pass
        codes = np.full(len(cells), -1, np.int32)
        for i, cell in enumerate(cells):
            out[i], codes[i] = self.cell(column, cell)
        self.add_codes(column, codes)

    def cell(self, column: int, cell: str) -> tuple[float, int]:
        """(number, code) of a cell; (NaN, -1) where it is missing."""
        cell = cell.strip()
        if cell.lower() in MISSING:
            return math.nan, -1
        if "_" not in cell:
            try:
                return float(cell), -1
            except ValueError:
                pass
        known = self.known.setdefault(column, {})
        if cell not in known:
            if len(known) == LEVELS:
                self.unusable[column] = f"has more than {LEVELS:,} different texts"
                return math.nan, 0
            self.budget.take(64 + 4 * len(cell))
            known[cell] = len(known)
        return math.nan, known[cell]

    def add_codes(self, column: int, codes: np.ndarray) -> None:
        if (codes >= 0).any():
            self.texts.setdefault(column, []).append((self.rows, codes))

    def frame(self, path: Path, names: Sequence[str], places: Sequence[int], unit: str) -> Frame:
        codes = {}
        for column, pieces in self.texts.items():
            codes[column] = np.full(self.rows, -1, np.int32)
            for first, piece in pieces:
                codes[column][first : first + len(piece)] = piece
        levels = {column: list(self.known[column]) for column in codes}
        numbers = np.concatenate(self.blocks) if self.blocks else np.empty((0, self.width))
        return Frame(
            path, tuple(names), True, numbers, codes, levels, self.unusable,
            np.array(places, np.int64), unit,
        )  # fmt: skip


def _read_csv(
    path: Path, separator: str, budget: Budget, header: bool | None, known: Sequence[str]
) -> Frame:
    with gunzipping(path), open_file(path) as file:
        lines = _Lines(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        cells: _Cells | None = None
        first: list[str] = []
        places, block = array("q"), list[list[str]]()
        try:
            while True:
                lines.row, start = 0, reader.line_num + 1
                row = next(reader, None)
                if row is not None and len(row) <= 1 and not "".join(row).strip():
                    continue
                if row is not None:
                    if cells is None:
                        cells, first = _Cells(len(row), budget), row
                    if len(row) != len(first):
                        raise ValueError(f"{len(row)} cells, but the first line has {len(first)}")
                    block.append(row)
                    places.append(start)
                if cells is not None and (row is None or len(block) * len(first) >= _BLOCK):
                    budget.take(max(lines.block, 8 * len(block) * len(first)))
                    cells.add(block, lines.underscores)
                    lines.block, lines.underscores, block = 0, False, []
                if row is None:
                    break
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
        except TooLarge:
            raise
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path}: line {start}: {error}") from error
    if cells is None:
        raise ValueError(f"{path}: the file is empty")
    names = [cell.strip() or str(number) for number, cell in enumerate(first, start=1)]
    frame = cells.frame(path, names, places, "line")
    if header is None:
        header = not set(known).isdisjoint(names) or _has_header(frame, bool(known))
    if not header:
        return replace(frame, header=False, names=tuple(map(str, range(1, len(names) + 1))))
    if len(frame) == 1:
        raise ValueError(f"{path}: there are no rows after the header")
    frame.codes = {j: codes[1:] for j, codes in frame.codes.items() if (codes[1:] >= 0).any()}
    frame.numbers, frame.places = frame.numbers[1:], frame.places[1:]
    return _checked_names(frame)


def _checked_names(frame: Frame) -> Frame:
    if len(set(frame.names)) < len(frame.names):
        name = next(name for name in frame.names if frame.names.count(name) > 1)
        raise ValueError(f"{frame.path}: two columns are called {name!r}")
    return frame


def _has_header(frame: Frame, modelled: bool) -> bool:
    """Whether the first row is a header.

    It is where a text stands over numbers; if none does, where all of it is text that is found
    once only.
    """
    all_text = len(set(frame.names)) == len(frame.names)
    for column in range(len(frame.names)):
        codes = frame.codes.get(column)
        if codes is None or codes[0] == -1:  # a number, or no name
            all_text = all_text and np.isnan(frame.numbers[0, column])
            continue
        rest = frame.numbers[1:, column]
        if (codes[1:] == -1).all() and not np.isnan(rest).all():
            return True
        all_text = all_text and not (codes[1:] == codes[0]).any()
    return all_text and (len(frame) > 1 or not modelled)


def _read_parquet(path: Path, budget: Budget) -> Frame:
    try:
        pa = optional("pyarrow", "parquet", f"{path}: to read parquet")
        parquet = optional("pyarrow.parquet", "parquet", f"{path}: to read parquet")
    except ImportError as error:
        raise ValueError(str(error)) from error
    try:
        # A text that is repeated stays one text: it would unpack to any size.
        with parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            groups = range(file.metadata.num_row_groups)
            texts = [f.name for f in schema if _is_text(pa, f.type)]
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
        width = len(schema.names)
        budget.take(max(size, 8 * rows * max(width, 1)))
        cells = _Cells(width, budget)
        usable = []
        for column, each in enumerate(schema):
            if _is_text(pa, each.type) or _is_number(pa, each.type):
                usable.append(column)
            else:
                cells.unusable[column] = f"is of type {each.type}, neither numbers nor texts"
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            names = [schema.names[column] for column in usable]
            for batch in file.iter_batches(batch_size=2**14, columns=names):
                numbers = np.full((batch.num_rows, width), np.nan)
                for column, values in zip(usable, batch.columns, strict=True):
                    _add_arrow(pa, cells, numbers[:, column], column, values)
                cells.append(numbers)
    except (TooLarge, MemoryError):
        raise
    except Exception as error:  # Arrow's own, of many kinds
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    if not cells.rows:
        raise ValueError(f"{path}: there are no rows")
    return _checked_names(cells.frame(path, schema.names, range(1, cells.rows + 1), "row"))


def _is_text(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(pa: Any, kind: Any) -> bool:
    types = pa.types
    return any(
        test(kind)
        for test in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal,
                     types.is_null)
    )  # fmt: skip


def _add_arrow(pa: Any, cells: _Cells, out: np.ndarray, column: int, values: Any) -> None:
    """The next rows of a column: numbers into `out`, texts as codes."""
    if pa.types.is_null(values.type):
        return
    if pa.types.is_boolean(values.type):  # as texts, which they are in a csv
        values = pa.array([None if value is None else str(value) for value in values.to_pylist()])
    if not _is_text(pa, values.type):
        out[:] = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    parsed = [cells.cell(column, text or "") for text in values.dictionary.to_pylist()]
    parsed.append((math.nan, -1))  # of a missing index
    indices = values.indices.cast(pa.int64()).fill_null(len(parsed) - 1).to_numpy()
    out[:] = np.array([number for number, _ in parsed])[indices]
    cells.add_codes(column, np.array([code for _, code in parsed], np.int32)[indices])
