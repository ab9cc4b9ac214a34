"""Gradient descent, w ← w - η ∂C/∂w, and its variants, over all parameters at once.

p, g and the optimizer's slots are flat, (length,), weights before biases: w is
p[:weights_end]. A step's learning rate and what follows from it are the row
(c0, c1, c2, c3, l2) = coefficients[step]; `backprop_gpu/optimizers.py` says what they are.
One thread per parameter.
"""

import math
from functools import lru_cache

from numba import cuda, float64

from . import BLOCK
from .cost import block_sum

# -- clipping, before the update -------------------------------------------------


@cuda.jit
def clip_value(g, limit):
    """g_i ← g_i, but not beyond ± limit."""
    i = cuda.grid(1)
    if i < g.size:
        if g[i] > limit:
            g[i] = limit
        elif g[i] < -limit:
            g[i] = -limit


@cuda.jit
def sum_of_squares(g, partials):
    """partials_p = Σ g_i² over the elements of block p, in float64.

    Thread t of block p adds up elements p BLOCK + t, then a grid further on, …; then
    the block's sums are added in a tree.
    """
    total = float64(0)
    for i in range(cuda.grid(1), g.size, cuda.gridsize(1)):
        total += float64(g[i]) * float64(g[i])
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@cuda.jit
def norm(partials, out):
    """out = √Σ_p partials_p. One block."""
    total = float64(0)
    for p in range(cuda.threadIdx.x, partials.size, BLOCK):
        total += partials[p]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        out[0] = math.sqrt(total)


@lru_cache
def make_clip_norm(T):
    """The kernel of g ← g · limit / ‖g‖ where ‖g‖ > limit."""

    @cuda.jit
    def clip_norm(g, length, limit):
        """g of length ‖g‖ = length[0], a float64 like limit."""
        i = cuda.grid(1)
        if i < g.size and length[0] > limit:
            g[i] *= T(limit / length[0])

    return clip_norm


# -- after the update --------------------------------------------------------------


@cuda.jit
def limit_norms(w, limit):
    """w_j ← w_j min(1, limit / ‖w_j‖) of each row of w, (n, fan_in). A block per row."""
    j = cuda.blockIdx.x
    shared = cuda.shared.array(1, float64)
    total = float64(0)
    for k in range(cuda.threadIdx.x, w.shape[1], BLOCK):
        total += float64(w[j, k]) * float64(w[j, k])
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        shared[0] = math.sqrt(total)
    cuda.syncthreads()
    if limit < shared[0] < math.inf:
        for k in range(cuda.threadIdx.x, w.shape[1], BLOCK):
            w[j, k] *= limit / shared[0]


# -- the rules ---------------------------------------------------------------------


@lru_cache
def make_update(rule, T):
    """The kernel of one step of "sgd", "momentum", "nesterov", "adam" or "adamw"."""
    zero, one = T(0), T(1)

    @cuda.jit(device=True)
    def penalized(g, w, l2, l1):
        """g + l2 w + l1 sign(w)."""
        sign = one if w > zero else (-one if w < zero else zero)
        return g + l2 * w + l1 * sign

    @cuda.jit
    def sgd(p, g, coefficients, step, weights_end, l1):
        """p ← p - c0 g."""
        i = cuda.grid(1)
        if i < p.size:
            c0 = coefficients[step[0], 0]
            g_i = penalized(g[i], p[i], coefficients[step[0], 4], l1) if i < weights_end else g[i]
            p[i] -= c0 * g_i

    @cuda.jit
    def momentum(p, g, v, coefficients, step, weights_end, l1, mu):
        """v ← μ v - c0 g,  p ← p + v."""
        i = cuda.grid(1)
        if i < p.size:
            c0 = coefficients[step[0], 0]
            g_i = penalized(g[i], p[i], coefficients[step[0], 4], l1) if i < weights_end else g[i]
            v[i] = mu * v[i] - c0 * g_i
            p[i] += v[i]

    @cuda.jit
    def nesterov(p, g, v, coefficients, step, weights_end, l1, mu):
        """v ← μ v - c0 g,  p ← p + μ v - c0 g."""
        i = cuda.grid(1)
        if i < p.size:
            c0 = coefficients[step[0], 0]
            g_i = penalized(g[i], p[i], coefficients[step[0], 4], l1) if i < weights_end else g[i]
            v[i] = mu * v[i] - c0 * g_i
            p[i] += mu * v[i] - c0 * g_i

    @cuda.jit
    def adam(p, g, m, v, coefficients, step, weights_end, l1, beta1, rest1, beta2, rest2, epsilon):
        """m ← β1 m + (1-β1) g,  v ← β2 v + (1-β2) g²,  p ← p - c1 m / (√v c2 + ε),

        after w ← w - c3 w: adamw's decay, 0 for adam. rest1 is 1 - β1, rest2 is 1 - β2.
        """
        i = cuda.grid(1)
        if i < p.size:
            s = step[0]
            c1, c2, c3 = coefficients[s, 1], coefficients[s, 2], coefficients[s, 3]
            g_i = penalized(g[i], p[i], coefficients[step[0], 4], l1) if i < weights_end else g[i]
            decay = c3 * p[i] if i < weights_end else zero
            m[i] = beta1 * m[i] + rest1 * g_i
            v[i] = beta2 * v[i] + rest2 * (g_i * g_i)
            p[i] = (p[i] - decay) - c1 * (m[i] / (math.sqrt(v[i]) * c2 + epsilon))

    return {"sgd": sgd, "momentum": momentum, "nesterov": nesterov, "adam": adam, "adamw": adam}[
        rule
    ]
