"""BP1: δ^L = ∇_a C ⊙ σ'(z^L), over a batch."""

from functools import lru_cache

from numba import cuda

from . import BLOCK, TILE, costs


@lru_cache
def make_output_error(inside, error, derivative):
    """The kernel of BP1 for the device functions ā = inside(a), error(a, y, slope, j) of the cost
    and σ' = derivative(z, a)."""

    @cuda.jit
    def output_error(z, a, y, delta):
        """δ_ij = ∂C_i/∂a_ij · σ'(z_ij); all arrays (m, n), one thread per element.

        Where cost and σ match the two factors collapse to a - y: that is this kernel
        with the quadratic cost and the identity's σ' = 1.
        """
        i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
        j = cuda.blockIdx.y * TILE + cuda.threadIdx.x
        m, n = delta.shape
        if i < m and j < n:
            a_ij = inside(a[i, j])
            delta[i, j] = error(a_ij, y[i, j], derivative(z[i, j], a_ij), j)

    return output_error


@lru_cache
def make_softmax_output_error(cost, constants, T):
    """The kernel of BP1 with softmax and a built-in cost that is a sum over outputs."""
    if cost == "BinaryCrossEntropy":
        return _make_softmax_binary_output_error(T)
    zero = T(0)
    inside, error = costs.functions(cost, constants, T)

    @cuda.jit
    def softmax_output_error(a, y, delta):
        """δ_j = q_j - ā_j Σ_k q_k with q = ā ∂C/∂a; all arrays (m, n). One thread per row."""
        i = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        m, n = a.shape
        if i < m:
            total = zero
            for j in range(n):
                a_ij = inside(a[i, j])
                delta[i, j] = error(a_ij, y[i, j], a_ij, j)
                total += delta[i, j]
            for j in range(n):
                delta[i, j] -= inside(a[i, j]) * total

    return softmax_output_error


def _make_softmax_binary_output_error(T):
    zero, half, one = T(0), T(0.5), T(1)
    low, _ = costs.limits(T)

    @cuda.jit
    def softmax_binary_output_error(a, y, delta):
        """The same with q = (ā - y) / (1 - ā); all arrays (m, n). One thread per row.

        Above ½, where 1 - ā is the sum of the other ā, δ_j is ā_j - y_j - ā_j Σ_{k≠j} q_k.
        """
        i = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        m, n = a.shape
        if i < m:
            below, rest, above = zero, zero, zero
            for j in range(n):
                a_ij = low if a[i, j] < low else a[i, j]
                r = a_ij - y[i, j] if y[i, j] == y[i, j] else zero
                if a_ij > half:
                    above += r
                else:
                    below += r / (one - a_ij)
                    rest += a_ij
            above = below + above / rest
            for j in range(n):
                a_ij = low if a[i, j] < low else a[i, j]
                r = a_ij - y[i, j] if y[i, j] == y[i, j] else zero
                if a_ij > half:
                    delta[i, j] = r - a_ij * below
                else:
                    delta[i, j] = r / (one - a_ij) - a_ij * above

    return softmax_binary_output_error


@cuda.jit
def scale_rows(weights, delta):
    """δ_ij ← w_i δ_ij; weights (m,), δ (m, n), one thread per element."""
    i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
    j = cuda.blockIdx.y * TILE + cuda.threadIdx.x
    m, n = delta.shape
    if i < m and j < n:
        delta[i, j] *= weights[i]
