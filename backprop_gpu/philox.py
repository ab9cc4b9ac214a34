"""Philox4x32-10, random bits by counter (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"): who asks for which does not matter, so that engines, threads and ranks draw the same.

What dropout leaves out of layer l, a^l (m, n_l), in a step:

    bits of (x, j) = word j mod 4 of philox(counter = (x, j div 4, l, step), key)
    kept where bits >= t, t = rate · 2³², and divided by what stays, 1 - t / 2³²

x is a row's place in its whole mini-batch, and step the step's in its epoch, which has a key.

Noise of N(0, 1) for component e of the gradient, e being its place among all parameters: of two
words of philox(counter = (e div 4, 0, 0, step), key), two numbers (Box & Muller 1958)

    u = (word + 1/2) / 2³²,   √(-2 ln u_0) cos 2πu_1,   √(-2 ln u_0) sin 2πu_1
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
ROUNDS = 10


def philox(counter: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Four words of uint32 for each counter, of four; all arrays of one shape."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


@dataclass(frozen=True)
class Draws:
    """What an epoch draws: what it leaves out, and its noise.

    Parameters
    ----------
    rates : tuple of float
        The share of layers 1 … L-1 that is left out, each in [0, 1); () for none.
    keys : tuple of int
        Of each epoch that is run, of 64 bits.
    first_step : int
        The number, in its epoch, of the first step that is run.
    """

    rates: tuple[float, ...]
    keys: tuple[int, ...]
    first_step: int = 0

    def words(self, epoch: int = 0) -> tuple[int, int]:
        """The key of an epoch as philox takes it."""
        return self.keys[epoch] & 0xFFFFFFFF, self.keys[epoch] >> 32


def threshold(rate: float) -> int:
    """What bits must reach to be kept."""
    return min(round(rate * 2.0**32), 2**32 - 1)


def scale(rate: float) -> float:
    """What is kept is multiplied by it."""
    return 2.0**32 / (2.0**32 - threshold(rate))


def factors(
    draws: Draws, layer: int, step: int, rows: int, n: int, first_row: int = 0, epoch: int = 0
) -> np.ndarray:
    """(rows, n) float64: 0 for what is left out of a^layer, else `scale`."""
    rate = draws.rates[layer - 1]
    x = np.arange(first_row, first_row + rows, dtype=np.uint64)[:, None]
    blocks = np.arange(-(-n // 4), dtype=np.uint64)[None, :]
    x, blocks = np.broadcast_arrays(x, blocks)
    place = np.full(x.shape, layer, np.uint64), np.full(x.shape, step, np.uint64)
    words = philox((x, blocks, *place), draws.words(epoch))
    bits = np.stack(words, axis=-1).reshape(rows, -1)[:, :n]
    return np.where(bits >= threshold(rate), scale(rate), 0.0)


def normals(draws: Draws, start: int, count: int, step: int) -> np.ndarray:
    """(count,) float64, the noise of components from `start` on, a multiple of 4."""
    blocks = np.arange(start // 4, start // 4 + -(-count // 4), dtype=np.uint64)
    zeros, steps = np.zeros_like(blocks), np.full_like(blocks, step)
    words = np.stack(philox((blocks, zeros, zeros, steps), draws.words()), axis=-1)
    u = (words.reshape(-1, 2) + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2.0 * np.log(u[:, 0])), 2.0 * np.pi * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).ravel()[:count]
