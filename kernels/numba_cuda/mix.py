"""Mixed rows, for mixup."""

from functools import lru_cache

from numba import cuda

from . import TILE


@lru_cache
def make_mix(T):
    """The kernel that mixes rows."""
    one = T(1)

    @cuda.jit
    def mix(source, rows, partners, shares, out):
        """out_i = s_i source row rows[i] + (1 - s_i) source row partners[i].

        source (n, n_x), rows, partners (m,) int, shares s (m,), out of at least m rows (, n_x). One
        thread per element.
        """
        i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
        j = cuda.blockIdx.y * TILE + cuda.threadIdx.x
        if i < rows.shape[0] and j < out.shape[1]:
            s = shares[i]
            out[i, j] = s * T(source[rows[i], j]) + (one - s) * T(source[partners[i], j])

    return mix
