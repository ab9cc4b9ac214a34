"""Reading data files in bounded pieces: a small file must not claim the memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

#: How many bytes the data in a file may take, where nothing else is asked for: 1 GiB.
MAX_BYTES = 2**30
#: What is read at once.
PIECE = 2**20
#: The most that deflate makes of one byte.
INFLATION = 1032


class TooLarge(ValueError):
    """The data would take more than a budget allows."""


class Budget:
    """How many bytes the data in a file may still take."""

    def __init__(self, path: Path, limit: int = MAX_BYTES) -> None:
        self.path, self.limit, self.taken = path, limit, 0

    def take(self, count: int, what: str = "its data") -> None:
        """Refuse more than the limit, before it is read."""
        self.taken += count
        if self.taken > self.limit:
            raise TooLarge(
                f"{self.path}: {what} would take {self.taken:,} bytes, more than the "
                f"{self.limit:,} that --max-bytes allows"
            )


def is_gzip(path: Path) -> bool:
    """Told by the content, not by the name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def open_file(path: Path) -> BinaryIO:
    """The file's bytes, unpacked if it is gzipped."""
    return cast(BinaryIO, gzip.open(path, "rb")) if is_gzip(path) else open(path, "rb")


def take(file: BinaryIO, count: int, path: Path) -> bytes:
    """Up to `count` bytes, in pieces: a false header must not claim the memory at once."""
    pieces: list[bytes] = []
    with gunzipping(path):
        while count > 0 and (piece := file.read(min(count, PIECE))):
            pieces.append(piece)
            count -= len(piece)
    return b"".join(pieces)


def fill(file: IO[bytes], array: np.ndarray) -> int:
    """Read into a C-contiguous array, in pieces; returns how many bytes there were."""
    whole: Any = array.reshape(-1).view(np.uint8)
    view, got = memoryview(whole), 0
    while got < len(view) and (piece := file.read(min(len(view) - got, PIECE))):
        view[got : got + len(piece)] = piece
        got += len(piece)
    return got


@contextmanager
def gunzipping(path: Path) -> Iterator[None]:
    """Errors of a damaged gzip file, as one that names it."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or not a sound gzip file: {error}") from error
