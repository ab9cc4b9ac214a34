"""BP2: δ^l = (w^{l+1}ᵀ δ^{l+1}) ⊙ σ'(z^l), over a batch."""

from functools import lru_cache

from numba import cuda

from . import TILE


@lru_cache
def make_hidden_error(derivative, T):
    """The kernel of Δ = (Δ⁺ W⁺) ⊙ σ'(Z) for the device function σ' = derivative(z, a)."""
    zero = T(0)

    @cuda.jit
    def hidden_error(w_next, delta_next, z, a, delta):
        """δ_ij = Σ_q δ⁺_iq w⁺_qj · σ'(z_ij).

        w_next (n⁺, n), delta_next (m, n⁺), z, a and delta (m, n).

        Tiled like `forward`, without a transpose: both tiles are read as they lie.
        """
        d_tile = cuda.shared.array((TILE, TILE), T)
        w_tile = cuda.shared.array((TILE, TILE), T)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        i = cuda.blockIdx.x * TILE + y
        j = cuda.blockIdx.y * TILE + x
        m, n = delta.shape
        n_next = w_next.shape[0]

        total = zero
        for start in range(0, n_next, TILE):
            d_tile[y, x] = delta_next[i, start + x] if i < m and start + x < n_next else zero
            w_tile[y, x] = w_next[start + y, j] if start + y < n_next and j < n else zero
            cuda.syncthreads()
            for q in range(TILE):
                total += d_tile[y, q] * w_tile[q, x]
            cuda.syncthreads()

        if i < m and j < n:
            delta[i, j] = total * derivative(z[i, j], a[i, j])

    return hidden_error
