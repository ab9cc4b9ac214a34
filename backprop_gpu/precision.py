"""Precisions: how the factors of each product are rounded before they are multiplied.

A training of float32 may multiply in "float32" (nothing is rounded), "tf32" (10 bits of fraction)
or "bf16" (7 bits), both with float32's range of exponents. Forward, BP2 and BP4 are products of
matrices and round both factors; their sums, b, σ, C, BP1, BP3, the update and what it updates stay
float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import validation

#: Those of a float32 training, by the bits of a factor's fraction.
FRACTION_BITS = {"float32": 23, "tf32": 10, "bf16": 7}


def resolve(precision: Any, dtype: np.dtype[Any]) -> str:
    """The precision that is asked for, or, for None, the dtype's own.

    Raises
    ------
    ValueError
        If there is none of that name, or a dtype other than float32 is to be rounded.
    """
    if precision is None:
        return dtype.name
    validation.one_of("precision", precision, (*FRACTION_BITS, "float64"))
    if precision != dtype.name and (dtype != np.float32 or precision == "float64"):
        raise ValueError(
            f"precision {precision!r} does not go with dtype {dtype.name}, which multiplies in "
            + ("float64" if dtype == np.float64 else ", ".join(FRACTION_BITS))
        )
    return str(precision)


def round_factor(x: np.ndarray, precision: str, out: np.ndarray) -> np.ndarray:
    """x as a product in a precision takes it: x itself, or rounded into `out`, which may be x.

    To the nearest, as the device's conversions do: of two that are as near, bf16 takes the even
    one, tf32 the larger. Beyond the largest is infinity; a NaN stays one.
    """
    bits = FRACTION_BITS.get(precision, 23)
    if bits == 23:
        return x
    lost = 23 - bits
    whole, rounded = x.view(np.uint32), out.view(np.uint32)
    nan = np.isnan(x)
    half: Any = np.uint32(1 << (lost - 1))
    if precision == "bf16":
        half = half - np.uint32(1) + (whole >> np.uint32(lost) & np.uint32(1))
    np.add(whole, half, out=rounded)
    np.bitwise_and(rounded, np.uint32(0xFFFFFFFF << lost & 0xFFFFFFFF), out=rounded)
    if nan.any():
        out[nan] = np.nan
    return out
