"""s ⊙ t, the elementwise product."""

from numba import cuda


@cuda.jit
def hadamard(s, t, out):
    """out_i = s_i t_i; all flat and of one length, one thread per element."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = s[i] * t[i]
