"""The forward pass of a layer, a = σ(w a' + b), over a batch."""

from functools import lru_cache

from numba import cuda

from . import TILE


@lru_cache
def make_forward(sigma, T, keep_z):
    """The kernel of Z = A' Wᵀ + b, A = σ(Z). Without `keep_z` Z is not written."""
    zero = T(0)
    padded = (TILE, TILE + 1)  # here, since Numba takes no arithmetic in an array's shape

    @cuda.jit
    def forward(w, b, a_prev, z, a):
        """z_ij = Σ_q a'_iq w_jq + b_j,  a_ij = σ(z_ij).

        w (n, k), b (n,), a_prev (m, k), z and a (m, n).

        A block makes a TILE × TILE tile of z, one element per thread. It walks along q
        in steps of TILE; each step brings a tile of a_prev and a tile of w to shared
        memory, read there TILE times. A padded row of w keeps its columns, read by
        neighbouring threads, in different banks.
        """
        a_tile = cuda.shared.array((TILE, TILE), T)
        w_tile = cuda.shared.array(padded, T)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        i = cuda.blockIdx.x * TILE + y
        j = cuda.blockIdx.y * TILE + x
        j_load = cuda.blockIdx.y * TILE + y  # the row of w that this thread brings
        m, k = a_prev.shape
        n = w.shape[0]

        total = zero
        for start in range(0, k, TILE):
            a_tile[y, x] = a_prev[i, start + x] if i < m and start + x < k else zero
            w_tile[y, x] = w[j_load, start + x] if j_load < n and start + x < k else zero
            cuda.syncthreads()
            for q in range(TILE):
                total += a_tile[y, q] * w_tile[x, q]
            cuda.syncthreads()  # before the next step overwrites the tiles

        if i < m and j < n:
            z_ij = total + b[j]
            if keep_z:
                z[i, j] = z_ij
            a[i, j] = sigma(z_ij)

    return forward
