"""BP1: δ^L = ∇_a C ⊙ σ'(z^L), over a batch."""

from functools import lru_cache

from numba import cuda

from . import TILE


@lru_cache
def make_output_error(gradient, derivative):
    """The kernel of BP1 for the device functions ∂C_x/∂a_j = gradient(a, y) and
    σ' = derivative(z, a)."""

    @cuda.jit
    def output_error(z, a, y, delta):
        """δ_ij = ∂C_i/∂a_ij · σ'(z_ij); all arrays (m, n), one thread an element.

        Where cost and σ match the two factors collapse to a - y: that is this kernel
        with the quadratic cost's gradient and the identity's σ' = 1.
        """
        i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
        j = cuda.blockIdx.y * TILE + cuda.threadIdx.x
        m, n = delta.shape
        if i < m and j < n:
            delta[i, j] = gradient(a[i, j], y[i, j]) * derivative(z[i, j], a[i, j])

    return output_error
