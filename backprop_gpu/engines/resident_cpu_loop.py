"""The loop behind the CPU's resident engine: many steps of gradient descent in one function.

A mini-batch is cut into *parts*, which threads take in turn, and a part into *blocks* of rows, few
enough that their activations and errors stay in a core's own cache: forward, BP1, BP2, BP3 and BP4
of one block follow each other before the next block begins. Each part sums its own gradient; when
all are there, they are added in order and the parameters updated, each thread doing its share. So
two waits per step suffice, and the result depends on the number of parts, but not of threads.

    for each part, for each block of its rows
        gather, forward 1 … L, C, BP1, then for l = L … 1: BP2 of layer l - 1, BP3 and BP4 of l
    wait
    for each strip of w: add the parts' gradients, apply the rule
    wait

Where there is one part of one block and the rule is plain SGD, BP4 needs no gradient: its product
adds -η δᵀ a' to w at once.

Matrices are in strips (`resident_cpu_product`). Activations, costs and rules are numbers here, so
that one compiled function, kept on disk, serves all networks of a dtype.

δ is ∂C/∂z for the batch's mean cost C, so 1/m enters once, in BP1.
"""

from __future__ import annotations

import math
import pickle
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import njit, types
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.extending import overload

from .. import cache
from . import resident_cpu_product
from .resident_cpu_product import (
    STRIPS,
    arrive,
    arrived,
    copy,
    lanes_of,
    part,
    prefetch,
    product,
    transposed_product,
)

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


class _Kept(NullCache):
    """A function's machine code in our cache, which is checked before Numba unpickles it.

    In Numba's own a damaged file, or a full disk, is an exception at the call of the function, or
    the end of the process.
    """

    def __init__(self, function: Any) -> None:
        self._function = function

    def _name(self, signature: Any, codegen: Any) -> str:
        parts = (
            numba.__version__, sys.version, _SOURCES, self._function.__qualname__, signature,
            codegen.magic_tuple(),
        )  # fmt: skip
        return f"{self._function.__name__}-{sha256(repr(parts).encode()).hexdigest()[:32]}"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        target_context.refresh()
        kept = cache.read(self._name(signature, target_context.codegen()))
        if kept is None:
            return None
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(kept))  # noqa: SLF001
        except Exception:  # another version's, whatever its number says: compile again
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        if not (result.lifted or result.library.has_dynamic_globals):
            cache.write(self._name(signature, result.codegen), dumps(result._reduce()))  # noqa: SLF001


#: A hash of all that the functions here are compiled from.
_SOURCES = sha256(
    b"".join(Path(file).read_bytes() for file in (__file__, resident_cpu_product.__file__))
).hexdigest()


def compile_cached(function: Any, **options: Any) -> Any:
    """Numba's decorator, with NumPy's rules for division: a check for zero would stop vectors."""
    usual: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    compiled = njit(**usual | options)(function)
    compiled._cache = _Kept(function)  # noqa: SLF001
    return compiled


def _inlined(function: Any, **options: Any) -> Any:
    """For what is called from compiled code and computes with floats.

    A function of its own would be there twice, by itself and beside its caller, optimised to other
    last bits; which of the two runs depends on whether this process has compiled it or has loaded
    it. And to pass all those arrays would take long.
    """
    return compile_cached(function, forceinline=True, **options)


def _pasted(function: Any) -> Any:
    """As `_inlined`, for what has one caller: it is not compiled by itself, too."""
    return compile_cached(function, inline="always")


@_inlined
def strips_of(columns: int, W: int) -> int:
    """How many strips hold so many columns."""
    return (columns + W - 1) // W


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


@_inlined
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


@_inlined
def _exp_float64(x: Any) -> Any:
    return math.exp(x)


def exp(x):  # type: ignore[no-untyped-def]
    """e^x for the type of x; in float32 it stays between e^-87.3 = 1.2e-38 and e^88.4 = 2.4e38.

    So the a of a saturated sigmoid or softmax, 0 elsewhere, is 4e-39 or 1.2e-38 here. In BP1
    either is ā (`costs`), and in any other product it is nothing beside a rounding. silu has
    4e-39 z in place of -0, which is something from z = -1e31 on.
    """
    raise NotImplementedError("for compiled code only")


@overload(exp)
def _exp(x):  # type: ignore[no-untyped-def]  # Numba compares this signature with the lambdas'
    if x == types.float32:
        return lambda x: _exp_float32(x)
    return lambda x: _exp_float64(x)


# -- activations -----------------------------------------------------------------------


@_inlined
def activate(kind: int, v: Array) -> None:
    """v ← σ(v), elementwise."""
    T = v.dtype.type
    zero, half, one = T(0), T(0.5), T(1)
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


@_inlined
def pull_back(kind: int, d: Array, w: Array, v: Array) -> None:
    """δ ← δ ⊙ σ'(z), elementwise: from ∂C/∂a to ∂C/∂z; d is δ, w is z and v is a."""
    T = v.dtype.type
    zero, half, one = T(0), T(0.5), T(1)
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


@_inlined
def softmax(a: Array, at: int, strip: int, rows: int, n: int) -> None:
    """a ← softmax of each row of n numbers; zeros in the columns that fill up a strip."""
    W = lanes_of(a)
    T = a.dtype.type
    strips = strips_of(n, W)
    for x in range(rows):
        top = a[at + x * W]
        for s in range(strips):
            row = part(a, at + s * strip + x * W, W)
            for j in range(min(W, n - s * W)):
                top = row[j] if row[j] > top else top
        total = T(0)
        for s in range(strips):
            row, here = part(a, at + s * strip + x * W, W), n - s * W
            for j in range(W):
                row[j] = exp(row[j] - top) if j < here else T(0)
            for j in range(W):
                total += row[j]
        for s in range(strips):
            row = part(a, at + s * strip + x * W, W)
            for j in range(W):
                row[j] /= total


@_inlined
def pull_back_softmax(delta: Array, a: Array, at: int, strip: int, rows: int, n: int) -> None:
    """δ_j ← a_j (δ_j - Σ_k δ_k a_k)."""
    W = lanes_of(a)
    strips = strips_of(n, W)
    for x in range(rows):
        mean = a.dtype.type(0)
        for s in range(strips):
            first = at + s * strip + x * W
            for i in range(first, first + min(W, n - s * W)):
                mean += delta[i] * a[i]
        for s in range(strips):
            first = at + s * strip + x * W
            for i in range(first, first + min(W, n - s * W)):
                delta[i] = a[i] * (delta[i] - mean)


# -- costs -------------------------------------------------------------------------------


@_inlined
def sum_of_costs(
    kind: int, from_z: bool, z: Array, a: Array, at: int, y: Array, strip: int, rows: int, n: int,
    low: float, high: float,
) -> float:  # fmt: skip
    """Σ_x C_x in float64; `from_z` takes the partner's form, which rounding of a cannot hurt.

    ``at`` is where the output layer begins in z and a; y has but that layer.
    """
    W = lanes_of(a)
    total = 0.0
    for x in range(rows):
        z_max, log_a_max = 0.0, 0.0
        if kind == CATEGORICAL and from_z:
            z_top, a_top = z[at + x * W], a[at + x * W]
            for s in range(strips_of(n, W)):
                first = at + s * strip + x * W
                for i in range(first, first + min(W, n - s * W)):
                    z_top = z[i] if z[i] > z_top else z_top
                    a_top = a[i] if a[i] > a_top else a_top
            z_max, log_a_max = float(z_top), math.log(float(a_top))
        for s in range(strips_of(n, W)):
            first = at + s * strip + x * W
            last = first + min(W, n - s * W)
            if kind == QUADRATIC:
                for i in range(first, last):
                    error = float(a[i]) - float(y[i - at])
                    total += 0.5 * error * error
            elif kind == BINARY and from_z:
                for i in range(first, last):
                    weighted = float(z[i])
                    total += max(weighted, 0.0) + math.log1p(math.exp(-abs(weighted)))
                    total -= float(y[i - at]) * weighted
            elif kind == BINARY:
                for i in range(first, last):
                    inside = low if a[i] < low else float(a[i])
                    inside = high if inside > high else inside
                    rest = math.log1p(-inside)
                    total -= float(y[i - at]) * (math.log(inside) - rest) + rest
            elif kind == CATEGORICAL and from_z:
                for i in range(first, last):
                    total -= float(y[i - at]) * (float(z[i]) - z_max + log_a_max)
            elif kind == CATEGORICAL:
                for i in range(first, last):
                    inside = low if a[i] < low else float(a[i])
                    inside = high if inside > high else inside
                    total -= float(y[i - at]) * math.log(inside)
            elif from_z:
                for i in range(first, last):
                    total += float(a[i]) - float(y[i - at]) * float(z[i])
            else:
                for i in range(first, last):
                    inside = low if a[i] < low else float(a[i])
                    total += float(a[i]) - float(y[i - at]) * math.log(inside)
    return total


@_inlined
def move_inside(a: Array) -> None:
    """a ← ā of the costs but the quadratic; of 1 - a see `softmax_output_error`."""
    smallest = a.dtype.type(np.finfo(a.dtype).tiny)
    for i in range(a.size):
        a[i] = smallest if a[i] < smallest else a[i]


@_inlined
def difference(a: Array, y: Array, out: Array) -> None:
    for i in range(a.size):
        out[i] = a[i] - y[i]


@_inlined
def times_gradient(kind: int, d: Array, a: Array, y: Array) -> None:
    """σ' ← δ = r σ' / V(ā) of `costs`, elementwise; d is σ', and a is ā."""
    if kind == CATEGORICAL:
        for i in range(a.size):
            d[i] = -y[i] * (d[i] / a[i])
    else:  # the binary cross entropy collapses with sigmoid, and softmax is not elementwise
        for i in range(a.size):
            d[i] = (a[i] - y[i]) * (d[i] / a[i])


@_inlined
def softmax_output_error(
    kind: int, delta: Array, a: Array, y: Array, at: int, strip: int, rows: int, n: int
) -> None:
    """δ_j = q_j - ā_j Σ_k q_k, for the binary cross entropy and Poisson; a ← ā.

    Above ½ the former's 1 - ā is the sum of the other ā, and δ_j = r_j - ā_j Σ_{k≠j} q_k.
    """
    W = lanes_of(a)
    T = a.dtype.type
    half, one = T(0.5), T(1)
    strips = strips_of(n, W)
    for x in range(rows):
        below, rest, above = T(0), T(0), T(0)
        for s in range(strips):
            first = at + s * strip + x * W
            last = first + min(W, n - s * W)
            move_inside(a[first:last])
            for i in range(first, last):
                delta[i] = a[i] - y[i - at]
                if kind == BINARY and a[i] > half:
                    above += delta[i]
                    continue
                if kind == BINARY:
                    delta[i] /= one - a[i]
                    rest += a[i]
                below += delta[i]
        total = below + above / rest if kind == BINARY else below
        for s in range(strips):
            first = at + s * strip + x * W
            for i in range(first, first + min(W, n - s * W)):
                delta[i] -= a[i] * (below if kind == BINARY and a[i] > half else total)


# -- the update --------------------------------------------------------------------------


@_inlined
def clip(g: Array, limit: Any) -> None:
    """Each component to ± limit; a NaN stays one."""
    for i in range(g.size):
        g[i] = limit if g[i] > limit else (-limit if g[i] < -limit else g[i])


@_inlined
def largest_of(g: Array) -> float:
    largest = 0.0
    for i in range(g.size):
        largest = max(largest, abs(float(g[i])))
    return largest


@_inlined
def relative_squares(g: Array, largest: float) -> float:
    """Σ (g / largest)²: the square of the largest itself might overflow."""
    total = 0.0
    for i in range(g.size):
        total += (float(g[i]) / largest) ** 2
    return total


@_inlined
def penalize(p: Array, g: Array, l1: float, l2: float) -> None:
    """g ← g + l2 w + l1 sign(w)."""
    T = p.dtype.type
    for i in range(p.size):
        sign = T(1) if p[i] > T(0) else (T(-1) if p[i] < T(0) else T(0))
        g[i] += T(l2) * p[i] + T(l1) * sign


@_inlined
def apply_rule(rule: int, p: Array, g: Array, s: Array, t: Array, c: Array, d: Array) -> None:
    """One of the rules of `optimizers`, c being the step's coefficients and d the constants."""
    T = p.dtype.type
    c0, c1, c2 = T(c[0]), T(c[1]), T(c[2])
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
        beta1, beta2, epsilon, keep = T(d[0]), T(d[1]), T(d[2]), T(1.0 - c[3])
        # In float32 1 - β2 would lose what β2 was rounded by, a hundred-thousandth of it.
        rest1, rest2 = T(1.0 - d[0]), T(1.0 - d[1])
        for i in range(p.size):
            s[i] = beta1 * s[i] + rest1 * g[i]
            t[i] = beta2 * t[i] + rest2 * g[i] * g[i]
            p[i] = keep * p[i] - c1 * s[i] / (math.sqrt(t[i]) * c2 + epsilon)


# -- what the loop works on ----------------------------------------------------------------


class Shape(NamedTuple):
    """A network. Index l is layer l; ``…_at[l]`` is where its matrix begins in a flat array."""

    sizes: Array
    #: In the flat arrays of `parameters`, and in those of the loop.
    flat_w_at: Array
    flat_b_at: Array
    w_at: Array
    b_at: Array
    #: w[l] once more, as BP2 reads it: rows are the neurons of layer l.
    transposed_at: Array
    a_at: Array
    #: (strips of all w, 2): layer, and number in it.
    strips: Array
    kinds: Array
    keeps_z: Array
    cost: int
    collapses: bool
    #: Whether C is computed from z.
    from_z: bool
    #: What a is kept within before C's logarithms.
    low: float
    high: float
    #: Rows that go through the network at a time.
    block: int


class Memory(NamedTuple):
    """What a thread, or the threads of one network, write. All flat but where a shape is given."""

    p: Array
    s: Array
    t: Array
    transposed: Array
    #: (parts, parameters)
    gradients: Array
    #: (threads, neurons of all layers × block)
    a: Array
    z: Array
    delta: Array
    y: Array
    zeros: Array
    ones: Array
    part_costs: Array
    #: For each strip of `Shape.strips`: the largest |g|, and the sum of squares relative to it.
    norms: Array
    #: Σ w² of each strip.
    squares: Array
    counter: Array


class Rule(NamedTuple):
    """What `optimizers` describes: `RULES`' number, (μ, 0, 0) or (β1, β2, ε), and penalties."""

    number: int
    constants: Array
    l1: float
    l2: float
    clip_value: float
    clip_norm: float


# -- into strips and back ------------------------------------------------------------------


@compile_cached
def convert(shape: Shape, flat: Array, strips: Array, into_strips: bool) -> None:
    """From the arrays of `parameters` to the loop's, or back."""
    W = lanes_of(flat)
    for l in range(1, shape.sizes.size):
        k, n = shape.sizes[l - 1], shape.sizes[l]
        for j in range(n):
            row = flat[shape.flat_w_at[l] + j * k : shape.flat_w_at[l] + (j + 1) * k]
            lane = strips[shape.w_at[l] + j // W * k * W + j % W :]
            b, b_lane = shape.flat_b_at[l] + j, shape.b_at[l] + j
            if into_strips:
                for q in range(k):
                    lane[q * W] = row[q]
                strips[b_lane] = flat[b]
            else:
                for q in range(k):
                    row[q] = lane[q * W]
                flat[b] = strips[b_lane]


@_inlined
def transpose(shape: Shape, memory: Memory, l: int, s: int) -> None:
    """The neurons of one strip of w[l], into the copy that BP2 reads."""
    W = lanes_of(memory.p)
    k, n = shape.sizes[l - 1], shape.sizes[l]
    here = min(W, n - s * W)
    for q_strip in range(strips_of(k, W)):
        source = memory.p[shape.w_at[l] + (s * k + q_strip * W) * W :]
        to = memory.transposed[shape.transposed_at[l] + (q_strip * n + s * W) * W :]
        for j in range(here):
            for q in range(min(W, k - q_strip * W)):
                to[j * W + q] = source[q * W + j]


@compile_cached
def transpose_all(shape: Shape, memory: Memory) -> None:
    """Every strip."""
    for u in range(shape.strips.shape[0]):
        if shape.strips[u, 0] > 1:
            transpose(shape, memory, shape.strips[u, 0], shape.strips[u, 1])


@_inlined
def gather(source: Array, n: int, rows: Array, out: Array, strip: int) -> None:
    """out = those rows, of n numbers, of the source, in strips."""
    W = lanes_of(out)
    rest = n % W
    for x in range(rows.size):
        first = rows[x] * n
        for s in range(n // W):
            copy(out, s * strip + x * W, source, first + s * W)
        if rest:
            to, row = part(out, n // W * strip + x * W, W), part(source, first + n - rest, rest)
            for j in range(rest):
                to[j] = row[j]


# -- a block of rows -------------------------------------------------------------------------


@_pasted
def forward(shape: Shape, memory: Memory, thread: int, rows: int) -> None:
    """z = a' wᵀ + b, a = σ(z), layer by layer."""
    a, z = memory.a[thread], memory.z[thread]
    W = lanes_of(a)
    strip = shape.block * W
    for l in range(1, shape.sizes.size):
        k, n = shape.sizes[l - 1], shape.sizes[l]
        strips = strips_of(n, W)
        out = z if shape.keeps_z[l] else a
        for s in range(0, strips, STRIPS):
            here = min(STRIPS, strips - s)
            product(
                out, shape.a_at[l] + s * strip, strip,
                memory.p, shape.b_at[l] + s * W, 0, W, 1.0,
                a, shape.a_at[l - 1], strip,
                memory.p, shape.w_at[l] + s * k * W, k * W,
                k, rows, here,
            )  # fmt: skip
            for i in range(here):
                first = shape.a_at[l] + (s + i) * strip
                activated = part(a, first, rows * W)
                if shape.keeps_z[l]:
                    activated[:] = part(z, first, rows * W)
                activate(shape.kinds[l], activated)
        if shape.kinds[l] == SOFTMAX:
            softmax(a, shape.a_at[l], strip, rows, n)


@_pasted
def output_error(shape: Shape, memory: Memory, thread: int, rows: int, m: int) -> None:
    """BP1, times 1/m; zeros in the columns that fill up a strip."""
    a, z, delta, y = memory.a[thread], memory.z[thread], memory.delta[thread], memory.y[thread]
    W = lanes_of(a)
    T = a.dtype.type
    strip, depth = shape.block * W, shape.sizes.size - 1
    at, n = shape.a_at[depth], shape.sizes[depth]
    has_v = not shape.collapses and shape.cost != QUADRATIC
    softmax_last = shape.kinds[depth] == SOFTMAX
    if has_v and softmax_last:
        softmax_output_error(shape.cost, delta, a, y, at, strip, rows, n)
    else:
        for s in range(strips_of(n, W)):
            first, count = at + s * strip, rows * W
            errors, activated = part(delta, first, count), part(a, first, count)
            targets = part(y, first - at, count)
            if has_v:
                move_inside(activated)
                errors[:] = T(1)
            else:
                difference(activated, targets, errors)
            if not shape.collapses and not softmax_last:
                pull_back(shape.kinds[depth], errors, part(z, first, count), activated)
            if has_v:
                times_gradient(shape.cost, errors, activated, targets)
        if not shape.collapses and softmax_last:
            pull_back_softmax(delta, a, at, strip, rows, n)
    for s in range(strips_of(n, W)):
        here = n - s * W
        for x in range(rows):
            row = part(delta, at + s * strip + x * W, W)
            for j in range(W):
                row[j] = row[j] / T(m) if j < here else T(0)


@_pasted
def hidden_error(shape: Shape, memory: Memory, thread: int, rows: int, l: int) -> None:
    """BP2: δ of layer l - 1 from that of l."""
    a, z, delta = memory.a[thread], memory.z[thread], memory.delta[thread]
    W = lanes_of(a)
    strip = shape.block * W
    k, n = shape.sizes[l - 1], shape.sizes[l]
    strips = strips_of(k, W)
    for s in range(0, strips, STRIPS):
        here = min(STRIPS, strips - s)
        product(
            delta, shape.a_at[l - 1] + s * strip, strip,
            memory.zeros, 0, 0, 0, 0.0,
            delta, shape.a_at[l], strip,
            memory.transposed, shape.transposed_at[l] + s * n * W, n * W,
            n, rows, here,
        )  # fmt: skip
        for i in range(here):
            first, count = shape.a_at[l - 1] + (s + i) * strip, rows * W
            errors = part(delta, first, count)
            pull_back(shape.kinds[l - 1], errors, part(z, first, count), part(a, first, count))


@_pasted
def gradients(
    shape: Shape, memory: Memory, thread: int, rows: int, l: int, out: Array, add: bool, scale: Any,
    X: Array, following: Array,
) -> None:  # fmt: skip
    """BP3 and BP4: out = scale · out + (δ, δᵀ a') with `add`, else out = (δ, δᵀ a').

    A bias is the weight of a neuron whose activation is 1. In layer 1, whose strips are the
    input's, the rows that are needed next come in meanwhile.
    """
    a, delta = memory.a[thread], memory.delta[thread]
    W = lanes_of(a)
    strip = shape.block * W
    k, n = shape.sizes[l - 1], shape.sizes[l]
    strips = strips_of(n, W)
    one = out.dtype.type(1)
    old, row = (out, W) if add else (memory.zeros, 0)
    for s in range(0, strips, STRIPS):
        here = min(STRIPS, strips - s)
        errors = shape.a_at[l] + s * strip
        at = shape.b_at[l] + s * W
        transposed_product(
            out, at, W,
            old, at if add else 0, row, row, one,
            memory.ones, 0, 0,
            delta, errors, strip,
            rows, 1, here,
        )  # fmt: skip
        for q in range(0, k, W):
            if l == 1 and s == 0:
                for x in range(following.size):
                    prefetch(X, following[x] * k + q)
            at = shape.w_at[l] + (s * k + q) * W
            transposed_product(
                out, at, k * W,
                old, at if add else 0, row, k * row, scale,
                a, shape.a_at[l - 1] + q // W * strip, 0,
                delta, errors, strip,
                rows, min(W, k - q), here,
            )  # fmt: skip


@_pasted
def backpropagate(
    shape: Shape, memory: Memory, thread: int, X: Array, Y: Array, rows: Array,
    following: Array, m: int, out: Array, add: bool, rate: Any, decay: Any,
) -> float:  # fmt: skip
    """The equations for a block of rows, `following` being the next one's; the sum of its costs.

    Gradients are added to `out`, or replace what is there. With `rate` > 0 `out` are the
    parameters themselves, w ← decay · w - rate · ∂C/∂w.
    """
    a, delta, y = memory.a[thread], memory.delta[thread], memory.y[thread]
    W = lanes_of(a)
    strip, depth, count = shape.block * W, shape.sizes.size - 1, rows.size
    gather(X, shape.sizes[0], rows, a, strip)
    gather(Y, shape.sizes[depth], rows, y, strip)
    forward(shape, memory, thread, count)
    total: float = sum_of_costs(
        shape.cost, shape.from_z, memory.z[thread], a, shape.a_at[depth], y, strip, count,
        shape.sizes[depth], shape.low, shape.high,
    )  # fmt: skip
    output_error(shape, memory, thread, count, m)
    for l in range(depth, 0, -1):
        if l > 1:
            hidden_error(shape, memory, thread, count, l)
        if rate > 0:
            for s in range(strips_of(shape.sizes[l], W)):
                errors = part(delta, shape.a_at[l] + s * strip, count * W)
                for i in range(errors.size):
                    errors[i] *= -rate
        gradients(shape, memory, thread, count, l, out, add, decay, X, following)
        if rate > 0 and l > 1:
            for s in range(strips_of(shape.sizes[l], W)):
                transpose(shape, memory, l, s)
    return total


# -- the update of a strip -------------------------------------------------------------------


@_inlined
def place(shape: Shape, W: int, u: int) -> tuple[int, int, int, int]:
    """Where the u-th strip of `Shape.strips` begins and ends, in w and in b."""
    l, s = shape.strips[u, 0], shape.strips[u, 1]
    size = shape.sizes[l - 1] * W
    w, b = shape.w_at[l] + s * size, shape.b_at[l] + s * W
    return w, w + size, b, b + W


@_inlined
def sum_parts(memory: Memory, first: int, last: int, clip_value: Any) -> None:
    """The parts' gradients, added in order into the first, and clipped by value."""
    g = memory.gradients[0, first:last]
    for number in range(1, memory.gradients.shape[0]):
        more = memory.gradients[number, first:last]
        for i in range(g.size):
            g[i] += more[i]
    if clip_value < np.inf:
        clip(g, g.dtype.type(clip_value))


def _sum_of_squares(p: Array) -> float:
    total = 0.0
    for i in range(p.size):
        total += float(p[i]) * float(p[i])
    return total


#: A sum that may be regrouped is made in vectors; for one machine code it is still one order.
sum_of_squares = _inlined(_sum_of_squares, fastmath={"contract", "reassoc", "nsz"})


@_inlined
def clip_scale(norms: Array, clip_norm: float) -> float:
    """What the gradient is multiplied by to be of that norm at most."""
    largest = 0.0
    for u in range(norms.shape[0]):
        largest = max(largest, norms[u, 0])
    if not (0.0 < largest < np.inf):
        return 1.0
    total = 0.0
    for u in range(norms.shape[0]):
        total += norms[u, 1] * (norms[u, 0] / largest) ** 2
    norm = largest * math.sqrt(total)
    return clip_norm / norm if norm > clip_norm else 1.0


@_inlined
def update(memory: Memory, rule: Rule, first: int, last: int, c: Array, weights: bool) -> None:
    """Penalise and apply the rule to a range of the parameters."""
    p, g = memory.p[first:last], memory.gradients[0, first:last]
    if weights and (rule.l1 != 0.0 or rule.l2 != 0.0):
        penalize(p, g, rule.l1, rule.l2)
    apply_rule(rule.number, p, g, memory.s[first:last], memory.t[first:last], c, rule.constants)


# -- steps -----------------------------------------------------------------------------------


_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@compile_cached
def meet(counter: Array, threads: int, meetings: int) -> int:
    """Wait until all threads are here; how often they have met by then."""
    meetings += 1
    if threads > 1:
        arrive(counter)
        tries = 0
        while arrived(counter) < meetings * threads:
            tries += 1
            if tries > 2000:  # a core may be taken: let others run
                _sched_yield()
    return meetings


@compile_cached
def run_steps(
    first: int, last: int, thread: int, threads: int, batch: int, X: Array, Y: Array, order: Array,
    shape: Shape, memory: Memory, rule: Rule, coefficients: Array, costs: Array, squares: Array,
) -> None:  # fmt: skip
    """Steps first … last - 1 of an epoch, as thread `thread` of `threads` that all call this.

    `squares` takes Σ w² before each step, if it is not empty.

    X and Y are flat here: what is made of an array inside a step costs, and a view is.
    """
    T = memory.p.dtype.type
    W = lanes_of(memory.p)
    parts, met = memory.gradients.shape[0], 0
    plain = rule.number == SGD and rule.l1 == 0.0
    plain = plain and rule.clip_value == np.inf and rule.clip_norm == np.inf
    for step in range(first, last):
        rows = order[step * batch : min((step + 1) * batch, order.size)]
        m, c = rows.size, coefficients[step]
        if squares.size > 0:
            for u in range(thread, shape.strips.shape[0], threads):
                w, w_end, b, b_end = place(shape, W, u)
                memory.squares[u] = sum_of_squares(memory.p[w:w_end])
        # A rate of 0 would be taken for none, and changes nothing either way.
        at_once = plain and parts == 1 and m <= shape.block and T(c[0]) > 0
        for number in range(thread, parts, threads):
            begin, end = m * number // parts, m * (number + 1) // parts
            out = memory.p if at_once else memory.gradients[number]
            rate, decay = (T(c[0]), T(1.0 - c[0] * rule.l2)) if at_once else (T(0), T(1))
            if begin == end:
                out[:] = 0
            total = 0.0
            for x in range(begin, end, shape.block):
                x_end = min(x + shape.block, end)
                next_x = step * batch + x_end if x_end < end else (step + 1) * batch + begin
                total += backpropagate(
                    shape, memory, thread, X, Y, rows[x:x_end],
                    order[next_x : min(next_x + shape.block, order.size)], m, out,
                    at_once or x > begin, rate, decay,
                )  # fmt: skip
            memory.part_costs[number] = total
        met = meet(memory.counter, threads, met)
        if thread == 0:
            total = 0.0
            for number in range(parts):
                total += memory.part_costs[number]
            costs[step] = total / m
            if squares.size > 0:
                total = 0.0
                for u in range(shape.strips.shape[0]):
                    total += memory.squares[u]
                squares[step] = total
        if at_once:
            continue
        scale = T(1)
        if rule.clip_norm < np.inf:
            for u in range(thread, shape.strips.shape[0], threads):
                w, w_end, b, b_end = place(shape, W, u)
                sum_parts(memory, w, w_end, rule.clip_value)
                sum_parts(memory, b, b_end, rule.clip_value)
                g_w, g_b = memory.gradients[0, w:w_end], memory.gradients[0, b:b_end]
                largest = max(largest_of(g_w), largest_of(g_b))
                memory.norms[u, 0] = largest
                memory.norms[u, 1] = 0.0
                if 0.0 < largest < np.inf:
                    relative = relative_squares(g_w, largest)
                    memory.norms[u, 1] = relative + relative_squares(g_b, largest)
            met = meet(memory.counter, threads, met)
            scale = T(clip_scale(memory.norms, rule.clip_norm))
        undecayed = c.copy()
        undecayed[3] = 0.0
        for u in range(thread, shape.strips.shape[0], threads):
            w, w_end, b, b_end = place(shape, W, u)
            if rule.clip_norm == np.inf:
                sum_parts(memory, w, w_end, rule.clip_value)
                sum_parts(memory, b, b_end, rule.clip_value)
            elif scale != 1:
                memory.gradients[0, w:w_end] *= scale
                memory.gradients[0, b:b_end] *= scale
            update(memory, rule, w, w_end, c, True)
            update(memory, rule, b, b_end, undecayed, False)
            if shape.strips[u, 0] > 1:
                transpose(shape, memory, shape.strips[u, 0], shape.strips[u, 1])
        met = meet(memory.counter, threads, met)
