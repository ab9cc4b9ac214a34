"""The book's ``expand_mnist``: five images of each, four displaced by one pixel.

    python -m backprop_gpu.nielsen.expand_mnist data/mnist.pkl.gz data/mnist_expanded.npz

`mnist_loader` and `network3.load_data_shared` read what it writes.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import files, reading, validation
from ..arrays import to_numpy
from . import mnist_loader
from .mnist_pickle import Pair

#: (rows down, columns to the right), in the book's order.
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def expand(training_data: Pair) -> Pair:
    """Each image, and the same one pixel further down, up, right and left; what enters is 0.

    Parameters
    ----------
    training_data : (X, y)
        X (n, k²), squares row by row, and y (n,), as of `mnist_loader.load_data`.

    Returns
    -------
    (X, y)
        (5n, k²) and (5n,), in the order of ``random.shuffle``, as the book shuffles them.

    Raises
    ------
    ValueError, TypeError
        For images that are no squares, or labels that are not as many.
    """
    try:
        X, y = training_data
    except (TypeError, ValueError):
        raise TypeError(
            "training_data must be a pair (X, y), as of mnist_loader.load_data, got "
            f"{type(training_data).__name__}"
        ) from None
    X, y = to_numpy("X", X), to_numpy("y", y)
    side = math.isqrt(X.shape[1]) if X.ndim == 2 else 0
    if side < 2 or side**2 != X.shape[1]:
        raise ValueError(f"X must be rows of square images, (n, k²), got {X.shape}")
    if y.shape != (len(X),):
        raise ValueError(f"y must be ({len(X)},), a label for each image, got {y.shape}")
    validation.room("the displaced images", len(SHIFTS) * X.nbytes)
    images = X.reshape(-1, side, side)
    expanded = np.zeros((len(X), len(SHIFTS), side, side), X.dtype)
    for k, (down, right) in enumerate(SHIFTS):
        to = slice(max(down, 0), side + min(down, 0)), slice(max(right, 0), side + min(right, 0))
        source = (
            slice(max(-down, 0), side - max(down, 0)),
            slice(max(-right, 0), side - max(right, 0)),
        )
        expanded[:, k, *to] = images[:, *source]
    order = list(range(len(SHIFTS) * len(X)))
    random.shuffle(order)
    return expanded.reshape(-1, side * side)[order], np.repeat(y, len(SHIFTS))[order]


def write(path: str | os.PathLike[str], parts: Sequence[Pair]) -> None:
    """Write training, validation and test data as an ``.npz``, whole or not at all.

    Images that are multiples of 1/256, as MNIST's, are kept as bytes.

    Parameters
    ----------
    path : path
        Ending in ``.npz``.
    parts : three pairs (X, y)
        Training, validation and test data, as of `mnist_loader.load_data`.

    Raises
    ------
    ValueError
        For another ending.
    OSError
        If it cannot be written; an older file is then as it was.
    """
    if Path(path).suffix.lower() != ".npz":
        raise ValueError(f"the file to write must end in .npz, got {os.fspath(path)!r}")
    arrays = {}
    for part, (X, y) in zip(("train", "validation", "test"), parts, strict=True):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = _bytes(X), y
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    files.write_whole(path, buffer.getvalue())


def _bytes(X: np.ndarray) -> np.ndarray:
    scaled = X * np.float32(256)
    numbers = scaled.clip(0, 255).astype(np.uint8)
    return numbers if np.array_equal(numbers, scaled) else X


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m backprop_gpu.nielsen.expand_mnist",
        description="Displace each training image by one pixel in four directions.",
    )
    parser.add_argument("source", help=f"a path that mnist_loader reads, or {mnist_loader.DIGITS}")
    parser.add_argument("target", help="the .npz to write")
    parser.add_argument("--seed", type=int, help="of the order; by default another each time")
    parser.add_argument("--max-bytes", type=int, default=reading.MAX_BYTES)
    given = parser.parse_args(arguments)
    if given.seed is not None:
        random.seed(given.seed)
    try:
        training, *others = mnist_loader.load_data(given.source, max_bytes=given.max_bytes)
        expanded = expand(training)
        write(given.target, [expanded, *others])
    except (OSError, ValueError) as error:
        print(f"expand_mnist: {error}", file=sys.stderr)
        return 1
    print(f"{len(training[0])} images became {len(expanded[0])}, in {given.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
