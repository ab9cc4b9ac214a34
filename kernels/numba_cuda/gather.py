"""The mini-batch of a step, and the count of steps, which lives on the device."""

from numba import cuda

from . import TILE


@cuda.jit
def gather(source, order, step, batch, out):
    """out_i = source row order[step · batch + i].

    source (rows, n), order (rows,) int, step (1,) int, out (m, n) with m ≤ batch: the
    last mini-batch of an epoch may be short. One thread per element.
    """
    i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
    j = cuda.blockIdx.y * TILE + cuda.threadIdx.x
    m, n = out.shape
    if i < m and j < n:
        out[i, j] = source[order[step[0] * batch + i], j]


@cuda.jit
def gather_weights(source, step, batch, out):
    """out_i = source_{step · batch + i}: weights in the order of the steps. One thread each."""
    i = cuda.grid(1)
    if i < out.shape[0]:
        out[i] = source[step[0] * batch + i]


@cuda.jit
def advance(step):
    """step ← step + 1, by one thread."""
    step[0] += 1
