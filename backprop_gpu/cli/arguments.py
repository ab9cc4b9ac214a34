"""Arguments, and their errors."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from .. import backends
from ..errors import ArgumentError
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


def integers(name: str, values: Sequence[str]) -> list[int]:
    try:
        return [whole(part) for part in split(values)]
    except argparse.ArgumentTypeError as error:
        raise ArgumentError(f"{name} must be whole numbers such as 784,30,10: {error}") from None
