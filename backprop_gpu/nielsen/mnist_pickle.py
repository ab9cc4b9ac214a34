"""The book's ``mnist.pkl.gz``, read without executing it.

A pickle is a program. This file's needs a few instructions and three names of NumPy's; the reader
has only those instructions, and for the names stand-ins that note what they are given, so that
nothing is called and nothing allocated that a check has not seen.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from pickle import _Unpickler  # the one in C allocates what a file declares
from typing import Any, BinaryIO, ClassVar

import numpy as np

from .. import reading, validation
from ..reading import MAX_BYTES, Budget

Pair = tuple[np.ndarray, np.ndarray]

#: Enough to put strings, integers, tuples, lists and arrays together: no dict or set, whose keys
#: would be hashed, and no class's instance.
_INSTRUCTIONS = re.compile(
    "PROTO|FRAME|STOP|MARK|POP|POP_MARK|NONE|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG1?|"
    "STRING|(SHORT_)?BINSTRING|UNICODE|(SHORT_)?BINUNICODE8?|(SHORT_)?BINBYTES8?|"
    "EMPTY_TUPLE|TUPLE[123]?|EMPTY_LIST|LIST|APPENDS?|"
    "(LONG_)?(BIN)?(PUT|GET)|MEMOIZE|GLOBAL|STACK_GLOBAL|REDUCE|BUILD"
)
#: The book's file has some two hundred.
_MOST_INSTRUCTIONS = 10_000


class _Ndarray:
    """Stands for ``numpy.ndarray``, which is only named."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a class is not an array")


class _Dtype:
    """Stands for ``numpy.dtype("f4", 0, 1)`` and its state."""

    __slots__ = ("_name", "_order")

    def __init__(self, name: object = None, *_: object) -> None:
        self._name, self._order = name, "|"

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a dtype without a byte order")
        self._order = order

    def resolve(self) -> np.dtype[Any]:
        """What it describes: a plain number."""
        if not isinstance(self._name, str) or not re.fullmatch("f[48]|[iu][1248]", self._name):
            raise ValueError("an array of something else than plain numbers")
        return np.dtype(self._order + self._name)


class _Array:
    """Stands for an array, of which it keeps what its state declares."""

    __slots__ = ("_state",)

    def __init__(self, *_: object) -> None:
        self._state: Any = None

    def __setstate__(self, state: object) -> None:
        self._state = state

    def resolve(self, budget: Budget) -> np.ndarray:
        """The array that its state describes.

        Raises
        ------
        ValueError
            If it describes none.
        """
        state = self._state
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without its five parts")
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, (str, bytes)):
            raise ValueError("an array without a dtype or without data")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array without a shape")
        kind = dtype.resolve()
        need = math.prod(shape) * kind.itemsize
        if len(raw) != need:
            raise ValueError(f"an array of shape {shape} with {len(raw)} bytes, not {need}")
        budget.take(need)
        # Python 2's strings are bytes; they are read as Latin-1, which has one character for each.
        data = raw.encode("latin-1") if isinstance(raw, str) else raw
        array = np.frombuffer(data, kind).astype(kind.newbyteorder("="))
        return array.reshape(shape, order="F" if fortran else "C")


_STANDINS: dict[tuple[str, str], type[Any]] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # NumPy 2's name of it
}


class _File:
    """An unpacked file of which no more is read than a budget allows."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file, self._budget = file, budget

    def read(self, count: int) -> bytes:
        self._budget.take(count)
        return reading.take(self._file, count, self._budget.path)

    def readline(self) -> bytes:
        with reading.gunzipping(self._budget.path):
            line = self._file.readline(reading.PIECE)
        self._budget.take(len(line))
        return line


def _instruction(code: pickletools.OpcodeInfo) -> Callable[[Any], None]:
    """What the reader does at an instruction."""
    follow: Any = _Unpickler.dispatch[ord(code.code)]
    known = _INSTRUCTIONS.fullmatch(code.name)

    def step(reader: _ArrayUnpickler) -> None:
        reader.steps += 1
        if not known or reader.steps > _MOST_INSTRUCTIONS:
            what = "more instructions" if known else "an instruction"
            raise pickle.UnpicklingError(f"it has {what} that data do not need")
        follow(reader)

    return step


class _ArrayUnpickler(_Unpickler):
    """An unpickler with few instructions, and stand-ins for three names."""

    steps = 0
    dispatch: ClassVar[Any] = {ord(code.code): _instruction(code) for code in pickletools.opcodes}

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what makes an array; everything else is refused."""
        if (module, name) in _STANDINS:
            return _STANDINS[module, name]
        raise pickle.UnpicklingError(
            f"it asks for {validation.brief(repr(f'{module}.{name}'))}, which data do not need"
        )


def read(path: Path, max_bytes: int = MAX_BYTES) -> list[Pair]:
    """[(X, y), (X, y), (X, y)]: the rows to train with, to validate with, to test with.

    Parameters
    ----------
    path : path
        Gzipped or not.
    max_bytes : int
        What the file may unpack to, and its arrays take.

    Raises
    ------
    ValueError
        Naming the file and what is wrong with it. Nothing in it has been executed.
    """
    failures = (
        pickle.UnpicklingError, EOFError, KeyError, IndexError, ValueError, TypeError,
        AttributeError, OverflowError, RecursionError, UnicodeError, struct.error, AssertionError,
    )  # fmt: skip
    try:
        with reading.open_file(path) as file:
            found = _ArrayUnpickler(_File(file, Budget(path, max_bytes)), encoding="latin1").load()
            if reading.take(file, 1, path):  # and at the end the checksum is compared
                raise ValueError("it goes on after its end")
        return _parts(found, Budget(path, max_bytes))
    except reading.TooLarge:
        raise
    except failures as error:
        text = str(error)
        if not text.startswith(str(path)):
            if not isinstance(error, (pickle.UnpicklingError, EOFError, ValueError)):
                text = "it is damaged"
            text = (
                f"{path} is not the book's pickle of three pairs of arrays: {text or 'cut short'}"
            )
        raise ValueError(text) from error


def _parts(found: object, budget: Budget) -> list[Pair]:
    if not isinstance(found, (tuple, list)) or len(found) != 3:
        raise ValueError("its top is not a tuple of three")
    parts = []
    for pair in found:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError("a part is not a pair of images and labels")
        if not all(isinstance(each, _Array) for each in pair):
            raise ValueError("images and labels are not arrays")
        parts.append((pair[0].resolve(budget), pair[1].resolve(budget)))
    return parts
