"""Dropout and noise by Philox4x32-10; `backprop_gpu/philox.py` says which bits are whose."""

import math
from functools import lru_cache

from numba import cuda, float64, uint32, uint64

from . import TILE


@cuda.jit(device=True)
def word(c0, c1, c2, c3, k0, k1, which):
    """Word `which` of the four for a counter and a key, all uint32."""
    for _ in range(10):
        first, second = uint64(0xD2511F53) * uint64(c0), uint64(0xCD9E8D57) * uint64(c2)
        c0, c1, c2, c3 = (
            uint32(second >> uint64(32)) ^ c1 ^ k0,
            uint32(second & uint64(0xFFFFFFFF)),
            uint32(first >> uint64(32)) ^ c3 ^ k1,
            uint32(first & uint64(0xFFFFFFFF)),
        )
        k0 = uint32((uint64(k0) + uint64(0x9E3779B9)) & uint64(0xFFFFFFFF))
        k1 = uint32((uint64(k1) + uint64(0xBB67AE85)) & uint64(0xFFFFFFFF))
    return c0 if which == 0 else (c1 if which == 1 else (c2 if which == 2 else c3))


@lru_cache
def make_dropout(T):
    """The kernel that leaves out activations."""
    zero = T(0)

    @cuda.jit
    def dropout(source, out, step, first_step, k0, k1, threshold, scale, layer, first_row):
        """out_xj = source_xj · scale where its bits reach the threshold, else 0.

        source, out (m, n), which may be one; one thread per element.
        """
        x = cuda.blockIdx.x * TILE + cuda.threadIdx.y
        j = cuda.blockIdx.y * TILE + cuda.threadIdx.x
        m, n = out.shape
        if x < m and j < n:
            number = uint32(first_step + uint32(step[0]))
            bits = word(uint32(first_row + uint32(x)), uint32(j // 4), layer, number, k0, k1, j % 4)
            out[x, j] = source[x, j] * scale if bits >= threshold else zero

    return dropout


@lru_cache
def make_add_noise(T):
    """The kernel that adds noise to a gradient."""
    part = 2.0**-32

    @cuda.jit
    def add_noise(g, coefficients, step, first_step, k0, k1, start):
        """g_e += σ n, of components from `start` on. Two neighbours a thread."""
        i = cuda.grid(1)
        e = 2 * i
        if e < g.size:
            s = step[0]
            number, block = uint32(first_step + uint32(s)), uint32((start + uint32(e)) // 4)
            zero, first = uint32(0), e % 4
            u = (float64(word(block, zero, zero, number, k0, k1, first)) + 0.5) * part
            v = (float64(word(block, zero, zero, number, k0, k1, first + 1)) + 0.5) * part
            radius = float64(coefficients[s, 5]) * math.sqrt(-2.0 * math.log(u))
            g[e] += T(radius * math.cos(2.0 * math.pi * v))
            if e + 1 < g.size:
                g[e + 1] += T(radius * math.sin(2.0 * math.pi * v))

    return add_noise
