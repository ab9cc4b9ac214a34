"""BP3: ∂C/∂b = δ, the mean over a batch."""

from functools import lru_cache

from numba import cuda

from . import TILE


@lru_cache
def make_bias_gradient(T):
    """The kernel of ∂C/∂b = 1/m Σ_x δ_x."""
    zero = T(0)

    @cuda.jit
    def bias_gradient(delta, out):
        """out_j = 1/m Σ_i δ_ij;  delta (m, n), out (n,).

        A block of TILE × TILE threads takes TILE columns. Thread (x, y) adds up rows
        y, y + TILE, … of column x; then thread (x, 0) adds up the TILE sums, in order.
        """
        partial = cuda.shared.array((TILE, TILE), T)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        j = cuda.blockIdx.x * TILE + x
        m, n = delta.shape

        total = zero
        if j < n:
            for i in range(y, m, TILE):
                total += delta[i, j]
        partial[y, x] = total
        cuda.syncthreads()

        if y == 0 and j < n:
            for q in range(1, TILE):
                total += partial[q, x]
            out[j] = total / T(m)

    return bias_gradient
