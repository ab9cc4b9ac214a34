"""Arguments, and their errors."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from .. import backends, costs, datasets
from ..datasets import Dataset
from ..errors import ArgumentError
from ..preprocessing import Options
from ..reading import MAX_BYTES


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} ({self.prog} --help shows what there is)")


@contextmanager
def refused_as_arguments() -> Iterator[None]:
    """Within it, what the package refuses becomes a one-line error of the command line."""
    try:
        yield
    except (ValueError, TypeError, OSError, OverflowError, ImportError) as error:
        raise ArgumentError(str(error)) from error
    except MemoryError as error:
        raise ArgumentError(f"not enough memory: {error}") from error


def known(names: Sequence[str]) -> str:
    return ", ".join(names)


def add_header(parser: Any) -> None:
    parser.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line has the names of the columns; default: found out",
    )


def add_max_bytes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bytes",
        type=bytes_of,
        default=MAX_BYTES,
        metavar="N",
        help="refuse data that would take more memory, 500M or 4G; default 1G",
    )


def bytes_of(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of bytes, such as 4G")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where rows come from, and which of them validate."""
    option = parser.add_argument
    option(
        "--data",
        metavar="PATH",
        help="a table (.csv, .tsv or .parquet, see below), a folder of MNIST's IDX files, or "
        "arrays X, y or x_train, y_train, x_test, y_test in an .npz, or in an .h5 or .zarr, "
        "whose rows train reads as they are needed; default: the digits, in a fixed "
        "random order because their last rows are by other writers",
    )
    option(
        "--task",
        choices=("classification", "regression"),
        help="whether the labels are classes or numbers to fit; default: texts are classes, and "
        "so are whole numbers of which each comes often enough; with poisson, numbers",
    )
    # Its name before there was --task.
    option(
        "--targets", action="store_const", const="regression", dest="task", help=argparse.SUPPRESS
    )
    option(
        "--validation",
        type=float,
        metavar="N",
        help="a share below 1, or a number, of the "
        "rows to keep for validation; default 0.2, or the data's own test rows",
    )
    option(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        help="take the rows for validation at random (by --seed), of each class its share; "
        "default for all but the digits. --no-shuffle: take the last rows",
    )
    add_scale(parser)


def add_table(parser: argparse.ArgumentParser) -> None:
    """How the columns of a table are used."""
    table = parser.add_argument_group(
        "tables (.csv, .tsv, .parquet)",
        "Columns are called by their name, or by their number, counted from 1. Texts become "
        "one-hot, numbers get mean 0 and deviation 1, and so does a target that is numbers; the "
        "model file keeps it all, and predict applies it.",
    )
    option = table.add_argument
    option(
        "--target",
        metavar="COLUMN",
        help="what to predict; default: the last column but that of --sample-weight",
    )
    option(
        "--sample-weight",
        metavar="COLUMN",
        help="what each row counts, 0 or more, in training and in validation; it is no feature, "
        "and predict does not ask for it",
    )
    option("--drop", nargs="+", default=[], metavar="COLUMN", help="leave out these columns")
    option(
        "--keep",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="use these although they only count the rows",
    )
    option(
        "--categories",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="take the numbers in these columns as names",
    )
    option(
        "--impute",
        action="store_true",
        help="fill missing cells with the mean of their column, or its most frequent text; "
        "default: they are an error",
    )
    option(
        "--no-standardize",
        dest="standardize",
        action="store_false",
        help="take numbers as they are (--scale multiplies them, in place of standardising)",
    )
    add_header(table)


def read_data(args: argparse.Namespace, cost: str | None) -> Dataset:
    """The rows that `add_data` and `add_table` tell of; some costs are of numbers alone."""
    shuffle = args.data is not None if args.shuffle is None else args.shuffle
    return datasets.load(
        args.data,
        validation=args.validation,
        scale=args.scale,
        shuffle=args.seed if shuffle else None,
        task="regression" if cost and not costs.get(cost).takes_labels else args.task,
        table=Options(
            args.target,
            args.drop,
            args.keep,
            args.categories,
            args.impute,
            args.standardize,
            args.header,
            args.sample_weight,
        ),
        max_bytes=args.max_bytes,
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    names = known(("auto", *backends.names()))
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help=f"{names}; default %(default)s"
    )


def add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale",
        type=fraction,
        metavar="FACTOR",
        help="multiply the features by it, 0.1 or 1/255; default 1/255 for uint8, else 1",
    )


def whole(text: str) -> int:
    """A whole number that NumPy can count to."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
    if abs(value) > sys.maxsize:
        raise argparse.ArgumentTypeError(f"must be at most {sys.maxsize}")
    return value


def fraction(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if not np.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.1 or 1/255")
    return value


def split(values: Sequence[str]) -> list[str]:
    return [part for part in re.split(r"[,\s]+", ",".join(values)) if part]


def numbers(name: str, values: Sequence[str]) -> list[float]:
    try:
        return [float(part) for part in split(values)]
    except ValueError as error:
        raise ArgumentError(f"{name} must be numbers such as 0.2,0.5: {error}") from None


def integers(name: str, values: Sequence[str]) -> list[int]:
    try:
        return [whole(part) for part in split(values)]
    except argparse.ArgumentTypeError as error:
        raise ArgumentError(f"{name} must be whole numbers such as 784,30,10: {error}") from None
