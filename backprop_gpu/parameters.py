"""All w and b of a network in one flat array."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

Array = Any

#: Every block starts at a multiple of this many elements, so that device code
#: may load 16 bytes at a time and BLAS sees aligned rows.
ALIGNMENT = 32


@dataclass(frozen=True)
class Layout:
    """Where w[1] … w[L], then b[1] … b[L], stand in the flat array.

    Weights come first so that penalties, which leave biases alone, are a prefix.
    The gaps between blocks hold zeros and stay zero under every update rule.
    """

    sizes: tuple[int, ...]

    @cached_property
    def weight_shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple((n, fan_in) for fan_in, n in zip(self.sizes, self.sizes[1:], strict=False))

    @cached_property
    def bias_shapes(self) -> tuple[tuple[int], ...]:
        return tuple((n,) for n in self.sizes[1:])

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        offsets = [0]
        for shape in (*self.weight_shapes, *self.bias_shapes):
            offsets.append(offsets[-1] + -(-prod(shape) // ALIGNMENT) * ALIGNMENT)
        return tuple(offsets)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where w[1] … w[L] and b[1] … b[L] begin."""
        return self._offsets[:-1]

    @cached_property
    def _blocks(self) -> tuple[tuple[slice, tuple[int, ...]], ...]:
        shapes = (*self.weight_shapes, *self.bias_shapes)
        return tuple(
            (slice(start, start + prod(shape)), shape)
            for start, shape in zip(self.starts, shapes, strict=True)
        )

    @property
    def length(self) -> int:
        """Elements of the flat array, gaps included."""
        return self._offsets[-1]

    @property
    def weights_end(self) -> int:
        """Where the biases begin."""
        return self._offsets[len(self.weight_shapes)]

    @property
    def weight_starts(self) -> tuple[int, ...]:
        """Where w[1] … w[L] begin."""
        return self._offsets[: len(self.weight_shapes)]

    @property
    def bias_starts(self) -> tuple[int, ...]:
        """Where b[1] … b[L] begin."""
        return self._offsets[len(self.weight_shapes) : -1]

    @property
    def count(self) -> int:
        """How many parameters the network has, gaps not counted."""
        return sum(map(prod, (*self.weight_shapes, *self.bias_shapes)))

    def views(self, flat: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """(weights, biases) as views of a flat array of any kind."""
        blocks = [flat[where].reshape(shape) for where, shape in self._blocks]
        depth = len(self.sizes) - 1
        return tuple(blocks[:depth]), tuple(blocks[depth:])

    def flat(self, weights: Iterable[Any], biases: Iterable[Any], dtype: Any) -> np.ndarray:
        """A flat array, on the host, of these weights and biases."""
        flat = np.zeros(self.length, dtype)
        for views, arrays in zip(self.views(flat), (weights, biases), strict=True):
            for view, array in zip(views, arrays, strict=True):
                view[...] = array
        return flat


class Parameters:
    """The flat array and its views; also used for gradients and optimizer state.

    ``weights[l - 1]`` is w[l], (n_l, n_{l-1}); ``biases[l - 1]`` is b[l], (n_l,).
    """

    def __init__(self, layout: Layout, flat: Array) -> None:
        self.layout = layout
        self.flat = flat
        self.weights, self.biases = layout.views(flat)
