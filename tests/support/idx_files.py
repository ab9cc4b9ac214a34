"""Files in the IDX format, as MNIST's are."""

from __future__ import annotations

import struct

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """The IDX file of an array, written from the format's description."""
    codes = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
    code = codes[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()
