"""``mnist.pkl.gz`` as Python 2 wrote it, from the description of pickles."""

from __future__ import annotations

import struct

import numpy as np


def book_pickle(parts: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """A pickle of protocol 2 of ((X, y), (X, y), (X, y)), with strings of bytes."""
    pairs = b"".join(_array(X) + _array(y) + b"\x86" for X, y in parts)
    return b"\x80\x02" + pairs + b"\x87."


def _array(array: np.ndarray) -> bytes:
    raw = np.ascontiguousarray(array).tobytes()
    shape = b"(" + b"".join(map(_integer, array.shape)) + b"t"
    name = array.dtype.str[1:].encode()
    dtype = b"cnumpy\ndtype\n(" + _short(name) + b"K\0K\x01tR" + b"(K\x03" + _short(b"<")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85" + _short(b"b") + b"tR"
    state = b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    return made + state


def _short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def _integer(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)
