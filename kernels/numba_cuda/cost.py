"""C = 1/m Σ_x C_x, the mean cost of a batch."""

from functools import lru_cache

from numba import cuda, float64

from . import BLOCK


@cuda.jit(device=True)
def block_sum(value):
    """Σ `value` over the block's BLOCK threads, halving: t adds t + 64, then t + 32, …"""
    partial = cuda.shared.array(BLOCK, float64)
    t = cuda.threadIdx.x
    partial[t] = value
    cuda.syncthreads()
    half = BLOCK // 2
    while half > 0:
        if t < half:
            partial[t] += partial[t + half]
        cuda.syncthreads()
        half //= 2
    return partial[0]


@lru_cache
def make_cost(sample, weighted=False):
    """The kernel of C for the device function C_x = sample(z, a, y, x)."""

    @cuda.jit
    def cost(z, a, y, weights, step, costs):
        """costs[step] = 1/m Σ_x w_x C_x;  z, a, y (m, n), weights (m,) where the kernel is
        weighted, step (1,) int, costs float64.

        One block. Thread t adds up rows t, t + BLOCK, …; then the threads' sums are
        added in a tree. C_x is of the kernel's dtype, its sum float64.
        """
        m = a.shape[0]
        total = float64(0)
        for x in range(cuda.threadIdx.x, m, BLOCK):
            c = sample(z, a, y, x)
            total += c * weights[x] if weighted else c
        total = block_sum(total)
        if cuda.threadIdx.x == 0:
            costs[step[0]] = total / m

    return cost
