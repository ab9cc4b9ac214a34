"""How derivatives beyond BP1–BP4 are formed: which way, and how many rows at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from .plan import CHUNK_ROWS

#: Bytes of directions that are worked on at a time: what lies in a core's cache, and on a device
#: what fills it without filling its memory.
_CACHE = 1 << 19
_DEVICE = 1 << 28
#: Rows at least, of directions all together, for a product that is worth a call.
_LEAST_ROWS = 2048


def jacobian_mode(sizes: tuple[int, ...], seeds: int) -> Literal["forward", "reverse"]:
    """Which way the Jacobian of `seeds` outputs takes fewer multiply-adds.

    Forward, n_0 directions go through layers 2 … L; the first layer's are w^1 itself. Reverse,
    `seeds` rows come back through all layers.
    """
    pairs = [n * k for k, n in pairwise(sizes)]
    forward, reverse = sizes[0] * sum(pairs[1:]), seeds * sum(pairs)
    return "forward" if forward < reverse else "reverse"


def rows_at_a_time(
    rows: int, sizes: tuple[int, ...], directions: int, itemsize: int, on_device: bool
) -> int:
    """How many of so many samples' directions, (directions, n_l) each, go through together.

    Not how many cores there are decides it, and so no bit does: of several parts there is an even
    number, which two share fairly.
    """
    layer = max(n + k for k, n in pairwise((0, *sizes[1:])))
    row = itemsize * max(sizes[0] + sizes[1], directions * layer)
    fit = max((_DEVICE if on_device else _CACHE) // row, -(-_LEAST_ROWS // directions))
    parts = -(-rows // min(CHUNK_ROWS, fit))
    return -(-rows // (parts + parts % 2)) if parts > 1 else rows
