"""What is done to the columns of a table before a network, learned from the rows that train.

It goes into the model file, so that the same is done to the rows to predict: as numbers and texts,
for a model file holds nothing to execute.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .tables import LEVELS, Frame, listed

#: The most characters of a `Preprocessing` in a model file.
JSON = 2**23


@dataclass(frozen=True)
class Options:
    """How the columns of a table are used; each is called by its name, or its number from 1.

    Parameters
    ----------
    target : str, optional
        What to predict; default: the last column that is not `sample_weight`.
    drop, keep : sequence of str
        Columns to leave out, and to use although they only count the rows.
    categories : sequence of str
        Columns whose numbers are names.
    impute : bool
        Fill missing cells with the mean of the column, or its most frequent text.
    standardize : bool
        Give every column of numbers mean 0 and deviation 1.
    header : bool, optional
        Whether the first line of a csv has names; default: found out.
    sample_weight : str, optional
        What each row counts: neither a feature nor the target.
    """

    target: str | None = None
    drop: Sequence[str] = ()
    keep: Sequence[str] = ()
    categories: Sequence[str] = ()
    impute: bool = False
    standardize: bool = True
    header: bool | None = None
    sample_weight: str | None = None


@dataclass(frozen=True)
class Number:
    """A column of numbers, which becomes (x - mean) / deviation; `fill` stands for a gap.

    Parameters
    ----------
    name : str
        Of the column, or its number.
    mean, deviation : float
        What standardises it.
    fill : float or None
        What stands for a gap; None where gaps are refused.
    """

    name: str
    mean: float = 0.0
    deviation: float = 1.0
    fill: float | None = None

    @property
    def width(self) -> int:
        """Number of inputs that it makes: 1."""
        return 1


@dataclass(frozen=True)
class Category:
    """A column of texts, which becomes one-hot; a text that is no level becomes zeros.

    Parameters
    ----------
    name : str
        Of the column, or its number.
    levels : tuple of str
        Texts, in the order of the inputs.
    fill : str or None
        What stands for a gap; None where gaps are refused.
    """

    name: str
    levels: tuple[str, ...]
    fill: str | None = None

    @property
    def width(self) -> int:
        """Number of inputs that it makes: one a level."""
        return len(self.levels)


@dataclass(frozen=True)
class Preprocessing:
    """What stands between data and a network; all of it is learned from rows that train.

    Parameters
    ----------
    columns : tuple of Number and Category, or None
        Of a table, in the order of the network's inputs. None: rows are taken as they are.
    target : Number, Category or None
        What the outputs stand for: a Category's levels are the names of the classes, a Number's
        mean and deviation lead from outputs to what was to be predicted.
    file : tuple of str
        Names, or numbers from 1, of all columns that the file had.
    header : bool
        Whether they are names.
    """

    columns: tuple[Number | Category, ...] | None
    target: Number | Category | None
    file: tuple[str, ...] = ()
    header: bool = False

    @property
    def width(self) -> int:
        """Number of inputs that the columns make."""
        return sum(column.width for column in self.columns or ())

    def transform(self, frame: Frame) -> tuple[np.ndarray, list[str]]:
        """Make the network's inputs of a table.

        Parameters
        ----------
        frame : tables.Frame
            One with the columns that were learnt.

        Returns
        -------
        X : (n, width) float64 array
            Inputs.
        notes : list of str
            What there is to say about them, such as texts that are no level.

        Raises
        ------
        ValueError
            For a missing column, or a cell that does not fit, naming its place.
        """
        X, notes, at = np.zeros((len(frame), self.width)), [], 0
        for column, j in zip(self.columns or (), self.match(frame), strict=True):
            gaps = frame.missing(j)
            if gaps.any() and column.fill is None:
                raise ValueError(
                    f"{frame.place(int(np.argmax(gaps)), j)}: missing value, the first of "
                    f"{np.count_nonzero(gaps):,} in the column, and the model was trained "
                    "without --impute"
                )
            if isinstance(column, Number):
                values = frame.numeric(j)
                if column.fill is not None:
                    values = np.where(gaps, column.fill, values)
                with np.errstate(over="ignore"):
                    X[:, at] = (values - column.mean) / column.deviation
            else:
                note = _one_hot(X[:, at : at + column.width], column, frame, j)
                notes += [note] if note else []
            at += column.width
        return X, notes

    def match(self, frame: Frame) -> list[int]:
        """Find where each column stands in a table: by name, or by order where there are no names.

        Parameters
        ----------
        frame : tables.Frame
            The table.

        Returns
        -------
        list of int
            Columns of the table, in the order of `columns`.

        Raises
        ------
        ValueError
            If one is missing, or the number of columns does not fit.
        """
        wanted = [column.name for column in self.columns or ()]
        if self.header and frame.header:
            if absent := [name for name in wanted if name not in frame.names]:
                raise ValueError(
                    f"{frame.path} lacks the column {listed(absent)}, which the model takes: "
                    f"it has {listed(frame.names)}"
                )
            return [frame.names.index(name) for name in wanted]
        count = len(frame.names)
        if count == len(self.file):
            return [self.file.index(name) for name in wanted]
        if self.target is not None and count == len(self.file) - 1:
            rest = [name for name in self.file if name != self.target.name]
            return [rest.index(name) for name in wanted]
        if count == len(wanted):
            return list(range(count))
        raise ValueError(
            f"{frame.path} has {count} columns; the model takes {len(wanted)}: {listed(wanted)}"
        )

    def labels(self, frame: Frame) -> np.ndarray | None:
        """Return what a table knows of the target.

        Parameters
        ----------
        frame : tables.Frame
            The table.

        Returns
        -------
        (n,) array or None
            Numbers, or texts; None where there is no such column, or a cell is missing.
        """
        if self.target is None:
            return None
        if self.header and frame.header:
            if self.target.name not in frame.names:
                return None
            j = frame.names.index(self.target.name)
        elif len(frame.names) == len(self.file):
            j = self.file.index(self.target.name)
        else:
            return None
        if frame.missing(j).any():
            return None
        if isinstance(self.target, Number):
            return frame.numeric(j)
        codes, texts = frame.categorical(j)
        return np.asarray(np.array(texts)[codes])

    def to_json(self) -> str:
        """Write it as a text, for a model file.

        Returns
        -------
        str
            JSON, with the version of its format.

        Raises
        ------
        ValueError
            If that would be longer than a model file may hold.
        """
        text = json.dumps({"version": 1, **asdict(self)}, ensure_ascii=False, allow_nan=False)
        if len(text) > JSON:
            raise ValueError(
                f"names and categories of the columns take {len(text):,} characters, more than "
                f"the {JSON:,} that a model file may hold: leave some columns out with --drop"
            )
        return text

    @classmethod
    def from_json(cls, text: str, sizes: Sequence[int]) -> Preprocessing:
        """Read what `to_json` wrote, and check it. Nothing in the text is executed.

        Parameters
        ----------
        text : str
            JSON.
        sizes : sequence of int
            Neurons per layer of the network that it has to fit.

        Returns
        -------
        Preprocessing
            One that is equal to it.

        Raises
        ------
        ValueError
            If it is no such text, or does not fit the network.
        """
        if len(text) > JSON:
            raise ValueError(f"it takes {len(text):,} characters, more than {JSON:,}")
        try:
            given = json.loads(text)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        fields = ["version", "columns", "target", "file", "header"]
        if not isinstance(given, dict) or sorted(given) != sorted(fields):
            raise ValueError(f"it must be an object of {', '.join(fields)}")
        if type(given["version"]) is not int or given["version"] != 1:
            raise ValueError(f"its version is {given['version']!r}, not 1")
        if type(given["header"]) is not bool:
            raise ValueError("header must be true or false")
        columns, target = given["columns"], given["target"]
        if columns is not None:
            columns = tuple(map(_column, _list("columns", columns)))
        target = None if target is None else _column(target)
        result = cls(columns, target, _texts("file", given["file"]), given["header"])
        result._check(sizes)
        return result

    def _check(self, sizes: Sequence[int]) -> None:
        if self.columns is not None:
            if self.width != sizes[0]:
                raise ValueError(f"columns of {self.width} inputs, but the network has {sizes[0]}")
            names = {column.name for column in self.columns}
            if len(names) < len(self.columns) or not names <= set(self.file):
                raise ValueError("columns must be different ones of file")
            if self.target is None or self.target.name not in set(self.file) - names:
                raise ValueError("target must be another column of file")
            if isinstance(self.target, Number) and sizes[-1] != 1:
                raise ValueError(f"one target, but the network has {sizes[-1]} outputs")
        if isinstance(self.target, Category) and len(self.target.levels) != max(sizes[-1], 2):
            raise ValueError(
                f"{len(self.target.levels)} classes, but the network has {sizes[-1]} outputs"
            )


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = _list(name, value)
    if not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
        raise ValueError(f"{name} must be a list of different texts")
    return tuple(texts)


def _column(value: Any) -> Number | Category:
    keys = set(value) if isinstance(value, dict) else set()
    if keys == {"name", "mean", "deviation", "fill"} and isinstance(value["name"], str):
        numbers = [value["mean"], value["deviation"]]
        numbers += [] if value["fill"] is None else [value["fill"]]
        if all(type(x) is float and math.isfinite(x) for x in numbers) and numbers[1] > 0.0:
            return Number(**value)
    if keys == {"name", "levels", "fill"} and isinstance(value["name"], str):
        levels = _texts("levels", value["levels"])
        if levels and (value["fill"] is None or value["fill"] in levels):
            return Category(value["name"], levels, value["fill"])
    raise ValueError("a column is neither one of numbers nor one of categories")


def _one_hot(out: np.ndarray, column: Category, frame: Frame, j: int) -> str | None:
    codes, texts = frame.categorical(j)
    places = {level: place for place, level in enumerate(column.levels)}
    place_of = np.array([places.get(text, -1) for text in texts] + [-1], np.int64)
    if column.fill is not None:
        place_of[-1] = places[column.fill]  # of the code -1
    places_of_rows = place_of[codes]
    known = np.flatnonzero(places_of_rows >= 0)
    out[known, places_of_rows[known]] = 1.0
    if len(known) == len(frame):
        return None
    row = int(np.argmax(places_of_rows < 0))
    return (
        f"{frame.place(row, j)}: {texts[codes[row]][:60]!r} is no category of the rows that "
        f"trained; {len(frame) - len(known):,} such cells become zeros"
    )


# -- learning it ----------------------------------------------------------------------


@dataclass(frozen=True)
class Roles:
    """Which column is the target, which are features, and what to say about it.

    Parameters
    ----------
    target : int
        Column of the target, counted from 0.
    features : list of int
        Columns of the features.
    notes : list of str
        What there is to say.
    weight : int or None
        Column of what each row counts.
    """

    target: int
    features: list[int]
    notes: list[str] = field(default_factory=list)
    weight: int | None = None


def roles(frame: Frame, options: Options) -> Roles:
    """Tell what each column is for.

    Parameters
    ----------
    frame : tables.Frame
        The table.
    options : Options
        What the user says about it.

    Returns
    -------
    Roles
        By the numbers of the columns.

    Raises
    ------
    ValueError
        For a column that is not there, options that contradict each other, or no feature.
    """
    count = len(frame.names)
    weight = None if options.sample_weight is None else frame.find(options.sample_weight)
    if options.target is not None:
        target = frame.find(options.target)
    else:
        target = count - 2 if weight == count - 1 and count > 1 else count - 1
    drop, keep = ({frame.find(name) for name in names} for names in (options.drop, options.keep))
    if target in drop:
        raise ValueError(f"{frame.path}: --drop leaves out the target, {frame.names[target]!r}")
    if weight == target:
        raise ValueError(f"{frame.path}: --sample-weight names the target, {frame.names[target]!r}")
    if weight is not None and weight in drop:
        raise ValueError(
            f"{frame.path}: --drop leaves out {frame.names[weight]!r}, which --sample-weight names"
        )
    features = [j for j in range(count) if j not in (target, weight) and j not in drop]
    notes = []
    counting = [j for j in features if j not in keep and _counts_rows(frame, j)]
    if len(counting) < len(features):
        for j in counting:
            features.remove(j)
            name = frame.names[j]
            called = f"column {name!r}" if frame.header else f"column {name}"
            notes.append(
                f"note: {called} only counts the rows and is left out; --keep {shlex.quote(name)} "
                "uses it"
            )
    if not features:
        hint = ""
        if count == 1:
            codes, texts = frame.categorical(0)
            first = frame.names[0] if frame.header or codes[0] < 0 else texts[codes[0]]
            hint = f"; the first line is {first[:60]!r}, and cells must be separated by commas"
        raise ValueError(f"{frame.path}: a row needs a feature beside the target{hint}")
    return Roles(target, features, notes, weight)


#: Names of columns that may be left out if they count up.
_COUNTERS = re.compile(r"(?i).*id|idx|index|no|nr|n|#|rows?|row_?names|unnamed:.*|__index_level_.*")


def _counts_rows(frame: Frame, j: int) -> bool:
    values = frame.numbers[:, j]
    if j in frame.codes or len(values) < 3 or values[0] != np.floor(values[0]):
        return False
    if not (values == values[0] + np.arange(len(values))).all():
        return False
    name = frame.names[j]
    if not frame.header or name == str(j + 1):  # it has no name
        return j == 0 and values[0] in (0.0, 1.0)
    return _COUNTERS.fullmatch(name) is not None


def learn(
    frame: Frame, roles: Roles, rows: np.ndarray, options: Options, scale: float | None
) -> Preprocessing:
    """Learn the preprocessing of the features from some rows; the target is yet to be set.

    Parameters
    ----------
    frame : tables.Frame
        The table.
    roles : Roles
        What each column is for.
    rows : (k,) int array
        Numbers of the rows that train.
    options : Options
        What the user says about the columns.
    scale : float or None
        What numbers are multiplied by instead of being standardised.

    Returns
    -------
    Preprocessing
        Of the features; its target is the column's name alone.

    Raises
    ------
    ValueError
        For a column that cannot be used so, naming it and the place of the first wrong cell.
    """
    if scale is not None and not (scale > 0.0 and math.isfinite(1.0 / scale)):
        raise ValueError(f"the columns of a table need a --scale above 0, got {scale:g}")
    as_category = {frame.find(name) for name in options.categories}
    if strange := sorted(as_category - set(roles.features)):
        raise ValueError(f"--categories {frame.names[strange[0]]!r} is not a feature")
    numbers: list[int] = []
    learned: dict[int, Number | Category] = {}
    for j in roles.features:
        frame.check_usable(j)
        _check_gaps(frame, j, rows, options.impute)
        if j in as_category or (j in frame.codes and not frame.mixed(j)):
            learned[j] = _levels(frame, j, rows, options.impute, j in as_category)
        else:
            numbers.append(j)
            frame.numeric(j)
    for first in range(0, len(numbers), 64):
        some = numbers[first : first + 64]
        learned.update(zip(some, _moments(frame, some, rows, options, scale), strict=True))
    columns = tuple(learned[j] for j in roles.features)
    target = Number(frame.names[roles.target])
    return Preprocessing(columns, target, frame.names, frame.header)


def _check_gaps(frame: Frame, j: int, rows: np.ndarray, impute: bool) -> None:
    gaps = frame.missing(j)
    name = shlex.quote(frame.names[j])
    if gaps.any() and not impute:
        raise ValueError(
            f"{frame.place(int(np.argmax(gaps)), j)}: missing value, the first of "
            f"{np.count_nonzero(gaps):,} in the column; --impute fills them with the mean or the "
            f"most frequent text, --drop {name} leaves the column out"
        )
    if gaps[rows].all():
        raise ValueError(
            f"{frame.path}: column {frame.names[j]!r} has no value in the rows that train: "
            f"--drop {name} leaves it out"
        )


def _levels(frame: Frame, j: int, rows: np.ndarray, impute: bool, told: bool) -> Category:
    codes, texts = frame.categorical(j)
    found, counts = np.unique(codes[rows][codes[rows] >= 0], return_counts=True)
    name = frame.names[j]
    if not told and len(found) > 20 and counts.sum() < 2 * len(found):
        raise ValueError(
            f"{frame.path}: column {name!r} has {len(found):,} different texts in "
            f"{counts.sum():,} rows, too many for categories: --drop {shlex.quote(name)} leaves it "
            f"out, --categories {shlex.quote(name)} takes them all the same"
        )
    if len(found) > LEVELS:
        raise ValueError(f"{frame.path}: column {name!r} has more than {LEVELS:,} categories")
    fill = texts[found[np.argmax(counts)]] if impute else None
    return Category(name, tuple(sorted(texts[code] for code in found)), fill)


def _moments(
    frame: Frame, columns: list[int], rows: np.ndarray, options: Options, scale: float | None
) -> Iterator[Number]:
    means, deviations = moments(frame.numbers[rows[:, np.newaxis], columns])
    for j, mean, deviation in zip(columns, means, deviations, strict=True):
        name, standardize = frame.names[j], options.standardize and scale is None
        if (standardize or options.impute) and not np.isfinite([mean, deviation]).all():
            raise ValueError(f"{frame.path}: the numbers of column {name!r} are too large")
        fill = float(mean) if options.impute else None
        if standardize:
            yield Number(name, float(mean), float(deviation), fill)
        else:
            yield Number(name, 0.0, 1.0 / (1.0 if scale is None else scale), fill)


def moments(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each column; gaps (NaN) are passed over.

    The deviation of a column that is constant, to the rounding of its sum, is 1, so that to divide
    by it leaves zeros. One that overflows is infinite or NaN. Two passes, with the correction of
    Chan, Golub and LeVeque (1983), eq. 1.7.

    Parameters
    ----------
    X : ndarray, shape (m, n)

    Returns
    -------
    means, deviations : ndarray, shape (n,), float64
    """
    X = np.asarray(X, np.float64)
    gaps = np.isnan(X)
    count = len(X) - gaps.sum(axis=0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        means = np.where(gaps, 0.0, X).sum(axis=0) / count
        off = np.where(gaps, 0.0, X - means)
        variances = ((off**2).sum(axis=0) - off.sum(axis=0) ** 2 / count) / count
        rounding = np.finfo(np.float64).eps * count
        constant = variances <= rounding * variances + (rounding * means) ** 2
        return means, np.where(constant, 1.0, np.sqrt(variances))
