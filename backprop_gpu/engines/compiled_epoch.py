"""The loop behind the compiled engine: many steps of gradient descent in one Numba function.

Products go to BLAS; everything between two products is one pass over memory. Activations,
costs and rules are numbers here, so that one compiled function, kept on disk, serves all
networks of a dtype. Parameters, gradients and optimizer state are the flat arrays of
`parameters`; a layer's arrays are views of flat buffers.

δ is ∂C/∂z for the batch's mean cost C, so 1/m enters once, in BP1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

Array = np.ndarray

ACTIVATIONS = (
    "sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "identity",
    "exponential", "softmax",
)  # fmt: skip
(SIGMOID, TANH, RELU, LEAKY_RELU, ELU, GELU, SILU, SOFTPLUS, IDENTITY, EXPONENTIAL, SOFTMAX) = (
    range(len(ACTIVATIONS))
)
COSTS = ("quadratic", "binary_cross_entropy", "categorical_cross_entropy", "poisson")
QUADRATIC, BINARY, CATEGORICAL, POISSON = range(len(COSTS))
RULES = ("sgd", "momentum", "nesterov", "adam", "adamw")
SGD, MOMENTUM, NESTEROV, ADAM, ADAMW = range(len(RULES))


def _compile(function: Any, fastmath: tuple[str, ...] = ("contract",)) -> Any:
    """Numba's decorator, with NumPy's rules for division: a check for zero would stop vectors."""
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere on disk to keep it: then every process compiles its own
        return njit(**options)(function)


# -- e^x, written so that a loop over it uses vector instructions ----------------------

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.33654), np.float32(88.37626)
_SHIFT, _ONE = np.float32(1.5 * 2**23), np.float32(1.0)  # x + 1.5 · 2²³ rounds x to an integer
_C2, _C3, _C4 = (
    np.float32(5.0000001201e-1),
    np.float32(1.6666665459e-1),
    np.float32(4.1665795894e-2),
)
_C5, _C6, _C7 = (
    np.float32(8.3334519073e-3),
    np.float32(1.3981999507e-3),
    np.float32(1.9875691500e-4),
)


@_compile
def _exp_float32(x: Any) -> Any:
    """2^n e^r, x = n ln 2 + r, e^r by the polynomial of the Cephes library: within 2 ulp."""
    x = _LOWEST if x < _LOWEST else x  # in this form a NaN stays one
    x = _HIGHEST if x > _HIGHEST else x
    shifted = x * _LOG2_E + _SHIFT  # the low bits of its mantissa are n
    n = shifted - _SHIFT
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    e = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    e = (e * r) * r + r + _ONE
    power = np.float32(shifted).view(np.int32) << 23  # n, in the bits of the exponent
    return np.int32(np.float32(e).view(np.int32) + power).view(np.float32)


@_compile
def _exp_float64(x: Any) -> Any:
    return math.exp(x)


def exp(x):  # type: ignore[no-untyped-def]
    """e^x for the type of x; float32 saturates at ± 88, where σ has no digits left to lose."""
    raise NotImplementedError("for compiled code only")


@overload(exp)
def _exp(x):  # type: ignore[no-untyped-def]  # Numba compares this signature with the lambdas'
    if x == types.float32:
        return lambda x: _exp_float32(x)
    return lambda x: _exp_float64(x)


# -- a product too small for BLAS to be quick at ----------------------------------------


def _reassociated(function: Any) -> Any:
    """As `_compile`, for sums whose order the compiler may choose, once and for all."""
    return _compile(function, ("contract", "reassoc", "nsz"))


@_reassociated
def small_product(a: Array, w: Array, z: Array) -> None:
    """z = a wᵀ; 2 × 3 sums at a time, so that each number loaded is used more than once."""
    T = a.dtype.type
    (m, k), n = a.shape, w.shape[0]
    even, threes = m - m % 2, n - n % 3
    for x in range(0, even, 2):
        a0, a1 = a[x], a[x + 1]
        for j in range(0, threes, 3):
            w0, w1, w2 = w[j], w[j + 1], w[j + 2]
            s00, s01, s02, s10, s11, s12 = T(0), T(0), T(0), T(0), T(0), T(0)
            for q in range(k):
                s00 += a0[q] * w0[q]
                s01 += a0[q] * w1[q]
                s02 += a0[q] * w2[q]
                s10 += a1[q] * w0[q]
                s11 += a1[q] * w1[q]
                s12 += a1[q] * w2[q]
            z[x, j], z[x, j + 1], z[x, j + 2] = s00, s01, s02
            z[x + 1, j], z[x + 1, j + 1], z[x + 1, j + 2] = s10, s11, s12
    for x in range(m):  # what is left: the last columns, and the last row of an odd m
        for j in range(threes if x < even else 0, n):
            total = T(0)
            for q in range(k):
                total += a[x, q] * w[j, q]
            z[x, j] = total


# -- activations -----------------------------------------------------------------------


@_compile
def add_bias(z: Array, b: Array) -> None:
    """z ← z + b, row by row."""
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] += b[j]


@_compile
def activate(kind: int, a: Array) -> None:
    """a ← σ(a)."""
    T = a.dtype.type
    zero, half, one = T(0), T(0.5), T(1)
    v = a.reshape(a.size)
    if kind == SIGMOID:
        for i in range(v.size):
            v[i] = one / (one + exp(-v[i]))
    elif kind == TANH:
        for i in range(v.size):
            v[i] = math.tanh(v[i])
    elif kind == RELU:
        for i in range(v.size):
            v[i] = zero if v[i] < zero else v[i]
    elif kind == LEAKY_RELU:
        for i in range(v.size):
            v[i] = T(0.01) * v[i] if v[i] < zero else v[i]
    elif kind == ELU:
        for i in range(v.size):
            v[i] = math.expm1(v[i]) if v[i] < zero else v[i]
    elif kind == GELU:
        for i in range(v.size):
            v[i] = v[i] * half * math.erfc(-T(math.sqrt(0.5)) * v[i])
    elif kind == SILU:
        for i in range(v.size):
            v[i] = v[i] / (one + exp(-v[i]))
    elif kind == SOFTPLUS:
        for i in range(v.size):
            v[i] = (zero if v[i] < zero else v[i]) + math.log1p(math.exp(-abs(v[i])))
    elif kind == EXPONENTIAL:
        for i in range(v.size):
            v[i] = math.exp(v[i])
    elif kind == SOFTMAX:
        for x in range(a.shape[0]):
            row = a[x]
            top = row[0]
            for j in range(row.size):
                top = row[j] if row[j] > top else top
            total = zero
            for j in range(row.size):
                row[j] = math.exp(row[j] - top)
                total += row[j]
            for j in range(row.size):
                row[j] /= total


@_compile
def pull_back(kind: int, delta: Array, z: Array, a: Array) -> None:
    """δ ← δ ⊙ σ'(z): from ∂C/∂a to ∂C/∂z."""
    T = a.dtype.type
    zero, half, one = T(0), T(0.5), T(1)
    d, v, w = delta.reshape(delta.size), a.reshape(a.size), z.reshape(z.size)
    if kind == SIGMOID:
        for i in range(v.size):
            d[i] *= v[i] * (one - v[i])
    elif kind == TANH:
        for i in range(v.size):
            d[i] *= one - v[i] * v[i]
    elif kind == RELU:
        for i in range(v.size):
            d[i] *= one if v[i] > zero else zero
    elif kind == LEAKY_RELU:
        for i in range(v.size):
            d[i] *= one if v[i] > zero else T(0.01)
    elif kind == ELU:
        for i in range(v.size):
            d[i] *= v[i] + one if v[i] < zero else one
    elif kind == GELU:
        for i in range(v.size):
            density = T(1.0 / math.sqrt(2.0 * math.pi)) * math.exp(-half * w[i] * w[i])
            d[i] *= half * math.erfc(-T(math.sqrt(0.5)) * w[i]) + w[i] * density
    elif kind == SILU:
        for i in range(v.size):
            s = one / (one + exp(-w[i]))
            d[i] *= s + v[i] * (one - s)
    elif kind == SOFTPLUS:
        for i in range(v.size):
            d[i] *= -math.expm1(-v[i])
    elif kind == EXPONENTIAL:
        for i in range(v.size):
            d[i] *= v[i]
    elif kind == SOFTMAX:
        for x in range(a.shape[0]):
            mean = zero
            for j in range(a.shape[1]):
                mean += delta[x, j] * a[x, j]
            for j in range(a.shape[1]):
                delta[x, j] = a[x, j] * (delta[x, j] - mean)


# -- costs -------------------------------------------------------------------------------


@_compile
def mean_cost(
    kind: int, from_z: bool, z: Array, a: Array, y: Array, low: float, high: float
) -> Any:
    """C, summed in float64; with `from_z` the partner's form, which rounding of a cannot hurt."""
    total = 0.0
    for x in range(a.shape[0]):
        z_max, a_max = z[x, 0], a[x, 0]
        if kind == CATEGORICAL and from_z:
            for j in range(a.shape[1]):
                z_max = z[x, j] if z[x, j] > z_max else z_max
                a_max = a[x, j] if a[x, j] > a_max else a_max
        for j in range(a.shape[1]):
            out, target, weighted = float(a[x, j]), float(y[x, j]), float(z[x, j])
            inside = low if out < low else out
            if kind == QUADRATIC:
                total += 0.5 * (out - target) * (out - target)
            elif kind == BINARY and from_z:
                total += max(weighted, 0.0) + math.log1p(math.exp(-abs(weighted)))
                total -= target * weighted
            elif kind == BINARY:
                inside = high if inside > high else inside
                rest = math.log1p(-inside)
                total -= target * (math.log(inside) - rest) + rest
            elif kind == CATEGORICAL and from_z:
                total -= target * (weighted - float(z_max) + math.log(float(a_max)))
            elif kind == CATEGORICAL:
                total -= target * math.log(inside)
            elif from_z:
                total += out - target * weighted
            else:
                total += out - target * math.log(inside)
    return total / a.shape[0]


@_compile
def cost_gradient(kind: int, a: Array, y: Array, low: float, high: float, out: Array) -> None:
    """out = ∇_a C_x / m."""
    T = a.dtype.type
    one, below, above = T(1), T(low), T(high)
    largest = T(np.finfo(a.dtype).max)
    m = T(a.shape[0])
    for x in range(a.shape[0]):
        for j in range(a.shape[1]):
            inside = below if a[x, j] < below else a[x, j]
            if kind == QUADRATIC:
                out[x, j] = a[x, j] - y[x, j]
            elif kind == BINARY:
                inside = above if inside > above else inside
                out[x, j] = (a[x, j] - y[x, j]) / (inside * (one - inside))
            elif kind == CATEGORICAL:
                out[x, j] = -y[x, j] / inside
            else:
                ratio = y[x, j] / inside
                out[x, j] = one - (largest if ratio > largest else ratio)
            out[x, j] /= m


# -- the update --------------------------------------------------------------------------


@_compile
def clip(g: Array, clip_value: float, clip_norm: float) -> None:
    """g clipped by value, then by norm; infinite limits mean none."""
    T = g.dtype.type
    if clip_value < np.inf:
        limit = T(clip_value)
        for i in range(g.size):
            g[i] = limit if g[i] > limit else (-limit if g[i] < -limit else g[i])
    if clip_norm < np.inf:
        largest = 0.0
        for i in range(g.size):
            largest = max(largest, abs(float(g[i])))
        if largest > 0.0 and largest < np.inf:
            total = 0.0
            for i in range(g.size):  # relative to the largest, whose square might overflow
                total += (float(g[i]) / largest) ** 2
            norm = largest * math.sqrt(total)
            if norm > clip_norm:
                scale = T(clip_norm / norm)
                for i in range(g.size):
                    g[i] *= scale


@_compile
def penalize(p: Array, g: Array, l1: float, l2: float) -> None:
    """g ← g + l2 w + l1 sign(w)."""
    T = p.dtype.type
    for i in range(p.size):
        sign = T(1) if p[i] > T(0) else (T(-1) if p[i] < T(0) else T(0))
        g[i] += T(l2) * p[i] + T(l1) * sign


@_compile
def apply_rule(rule: int, p: Array, g: Array, s: Array, t: Array, c: Array, d: Array) -> None:
    """One of the rules of `optimizers`, c being the step's coefficients and d the constants."""
    T = p.dtype.type
    c0, c1, c2, c3 = T(c[0]), T(c[1]), T(c[2]), T(c[3])
    if rule == SGD:
        for i in range(p.size):
            p[i] -= c0 * g[i]
    elif rule == MOMENTUM:
        mu = T(d[0])
        for i in range(p.size):
            s[i] = mu * s[i] - c0 * g[i]
            p[i] += s[i]
    elif rule == NESTEROV:
        mu = T(d[0])
        for i in range(p.size):
            s[i] = mu * s[i] - c0 * g[i]
            p[i] += mu * s[i] - c0 * g[i]
    else:
        beta1, beta2, epsilon, one = T(d[0]), T(d[1]), T(d[2]), T(1)
        keep = one - c3
        for i in range(p.size):
            s[i] = beta1 * s[i] + (one - beta1) * g[i]
            t[i] = beta2 * t[i] + (one - beta2) * g[i] * g[i]
            p[i] = keep * p[i] - c1 * s[i] / (math.sqrt(t[i]) * c2 + epsilon)


@_compile
def update(
    rule: int, p: Array, g: Array, s: Array, t: Array, weights_end: int, c: Array,
    constants: Array, penalties: Array,
) -> None:  # fmt: skip
    """Clip, penalise and apply the rule; weights come first in the flat arrays."""
    l1, l2, clip_value, clip_norm = penalties
    clip(g, clip_value, clip_norm)
    if l1 != 0.0 or l2 != 0.0:
        penalize(p[:weights_end], g[:weights_end], l1, l2)
    e = weights_end
    # Optimizers without that state pass empty arrays.
    s_w, s_b = (s[:e], s[e:]) if s.size else (s, s)
    t_w, t_b = (t[:e], t[e:]) if t.size else (t, t)
    apply_rule(rule, p[:e], g[:e], s_w, t_w, c, constants)
    undecayed = c.copy()
    undecayed[3] = 0.0
    apply_rule(rule, p[e:], g[e:], s_b, t_b, undecayed, constants)


# -- the epoch ---------------------------------------------------------------------------


@_compile
def _matrix(flat: Array, start: int, rows: int, columns: int) -> Array:
    return flat[start : start + rows * columns].reshape(rows, columns)


@_compile
def gather(source: Array, rows: Array, out: Array) -> None:
    """out = those rows of the source."""
    for x in range(rows.size):
        row = rows[x]
        for j in range(out.shape[1]):
            out[x, j] = source[row, j]


@_compile
def run_steps(
    first: int, last: int, batch: int, X: Array, Y: Array, order: Array, sizes: Array,
    w_at: Array, b_at: Array, weights_end: int, p: Array, g: Array, s: Array, t: Array,
    a_flat: Array, z_flat: Array, delta_flat: Array, y_flat: Array, a_at: Array, keeps_z: Array,
    small: Array, kinds: Array, cost: int, collapses: bool, limits: Array, rule: int,
    coefficients: Array, constants: Array, penalties: Array, costs: Array,
) -> None:  # fmt: skip
    """Steps first … last - 1 of an epoch: forward, BP1–BP4 and update for each mini-batch.

    Index l is layer l. ``w_at[l]``, ``b_at[l]`` and ``a_at[l]`` say where a layer's w, b and
    batch arrays begin in the flat ones; ``small[l]`` says that BLAS is not worth a call.
    """
    depth = sizes.size - 1
    for step in range(first, last):
        rows = order[step * batch : min((step + 1) * batch, order.size)]
        m = rows.size
        a = _matrix(a_flat, a_at[0], m, sizes[0])
        y = _matrix(y_flat, 0, m, sizes[depth])
        gather(X, rows, a)
        gather(Y, rows, y)
        z = a
        for l in range(1, depth + 1):
            w = _matrix(p, w_at[l], sizes[l], sizes[l - 1])
            a_prev, a = a, _matrix(a_flat, a_at[l], m, sizes[l])
            z = _matrix(z_flat, a_at[l], m, sizes[l]) if keeps_z[l] else a
            if small[l]:
                small_product(a_prev, w, z)
            else:
                np.dot(a_prev, w.T, z)
            add_bias(z, p[b_at[l] : b_at[l] + sizes[l]])
            if keeps_z[l]:
                a.reshape(a.size)[:] = z.reshape(z.size)
            activate(kinds[l], a)

        costs[step] = mean_cost(cost, collapses, z, a, y, limits[0], limits[1])
        delta = _matrix(delta_flat, a_at[depth], m, sizes[depth])
        if collapses:
            cost_gradient(QUADRATIC, a, y, limits[0], limits[1], delta)
        else:
            cost_gradient(cost, a, y, limits[0], limits[1], delta)
            pull_back(kinds[depth], delta, z, a)
        for l in range(depth, 0, -1):
            delta = _matrix(delta_flat, a_at[l], m, sizes[l])
            a_prev = _matrix(a_flat, a_at[l - 1], m, sizes[l - 1])
            b_gradient = g[b_at[l] : b_at[l] + sizes[l]]
            b_gradient[:] = 0
            for x in range(m):
                for j in range(sizes[l]):
                    b_gradient[j] += delta[x, j]
            np.dot(delta.T, a_prev, _matrix(g, w_at[l], sizes[l], sizes[l - 1]))
            if l > 1:
                w = _matrix(p, w_at[l], sizes[l], sizes[l - 1])
                delta_prev = _matrix(delta_flat, a_at[l - 1], m, sizes[l - 1])
                np.dot(delta, w, delta_prev)
                z_prev = _matrix(z_flat if keeps_z[l - 1] else a_flat, a_at[l - 1], m, sizes[l - 1])
                pull_back(kinds[l - 1], delta_prev, z_prev, a_prev)
        update(rule, p, g, s, t, weights_end, coefficients[step], constants, penalties)
