"""BP4: ∂C/∂w_jk = a_k δ_j, the mean over a batch."""

from functools import lru_cache

from numba import cuda

from . import TILE


@lru_cache
def make_weight_gradient(T):
    """The kernel of ∂C/∂W = Δᵀ A' / m."""
    zero = T(0)

    @cuda.jit
    def weight_gradient(delta, a_prev, out):
        """out_jk = 1/m Σ_q δ_qj a'_qk;  delta (m, n), a_prev (m, k), out (n, k).

        Tiled like `forward`. The sum runs over the samples q, down the rows of both
        arrays, so both tiles are loaded by rows and δ's is read transposed: all threads
        with one y read one element, and no banks conflict.
        """
        d_tile = cuda.shared.array((TILE, TILE), T)
        a_tile = cuda.shared.array((TILE, TILE), T)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        j = cuda.blockIdx.x * TILE + y
        k = cuda.blockIdx.y * TILE + x
        j_load = cuda.blockIdx.x * TILE + x  # the column of δ that this thread brings
        m = delta.shape[0]
        rows, columns = out.shape

        total = zero
        for start in range(0, m, TILE):
            d_tile[y, x] = delta[start + y, j_load] if start + y < m and j_load < rows else zero
            a_tile[y, x] = a_prev[start + y, k] if start + y < m and k < columns else zero
            cuda.syncthreads()
            for q in range(TILE):
                total += d_tile[q, y] * a_tile[q, x]
            cuda.syncthreads()

        if j < rows and k < columns:
            out[j, k] = total / T(m)

    return weight_gradient
