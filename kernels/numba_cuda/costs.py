"""The costs, one sample or one output at a time.

A cost that is a sum over outputs is a function of T and its own constants that gives

    term(a, y, j)         c of output j, where C_x = Σ_j c(a_j, y_j)
    term_of_z(z, a, y)    c for the σ that suits the cost, from z: no rounding of a
    inside(a)             ā, a moved off the edge of where the cost is defined
    error(a, y, slope, j) ∂C_x/∂a_j · slope at ā: δ_j, where the slope is σ'(z_j)

and one of whole rows gives

    sample(a, y, i)       C_x of row i
    gradient(a, y, out, i)  ∂C_x/∂a_j of row i, into out

A y that is NaN is a missing label, for which c and δ are 0. ``backprop_gpu/costs`` has the same
formulas on whole arrays, says which σ suits which cost, and has the rule of BP1.
"""

import math
from functools import lru_cache

import numpy as np
from numba import cuda, float64
from numba.np.numpy_support import as_dtype


def limits(T):
    """The smallest normal number and the largest below 1: a is moved there from 0 and 1."""
    info = np.finfo(as_dtype(T))
    return T(info.tiny), T(1.0 - float(info.epsneg))


def _itself(a):
    return a


def _sign(T):
    zero, one = T(0), T(1)

    @cuda.jit(device=True)
    def sign(x):
        return one if x > zero else (-one if x < zero else x)

    return sign


def quadratic(T, _):
    """C_x = ½ ‖y - a‖²,  ∂C_x/∂a_j = a_j - y_j."""
    half = T(0.5)

    def term(a, y, j):
        return half * ((a - y) * (a - y))

    def term_of_z(z, a, y):
        return half * ((a - y) * (a - y))

    def inside(a):
        return a

    def error(a, y, slope, j):
        return (a - y) * slope

    return term, term_of_z, inside, error


def binary_cross_entropy(T, _):
    """C_x = -Σ_j [y_j ln a_j + (1 - y_j) ln(1 - a_j)],  ∂C_x/∂a_j = (a_j - y_j) / (a_j (1 - a_j)).

    With sigmoid, c = ln(1 + e^z) - y z.
    """
    zero, one = T(0), T(1)
    low, high = limits(T)

    def inside(a):
        return low if a < low else (high if a > high else a)

    def term(a, y, j):
        a = low if a < low else (high if a > high else a)
        other = math.log1p(-a)
        return -(other + y * (math.log(a) - other))

    def term_of_z(z, a, y):
        return (z if z > zero else zero) + math.log1p(math.exp(-abs(z))) - y * z

    def error(a, y, slope, j):
        return (a - y) * (slope / (a * (one - a)))

    return term, term_of_z, inside, error


def categorical_cross_entropy(T, _):
    """C_x = -Σ_j y_j ln a_j,  ∂C_x/∂a_j = -y_j / a_j."""
    low, _ = limits(T)

    def term(a, y, j):
        return -y * math.log(low if a < low else a)

    def inside(a):
        return low if a < low else a

    def error(a, y, slope, j):
        return -y * (slope / a)

    return term, None, inside, error  # softmax couples the z of a row: `_softmax_sample`


def poisson(T, _):
    """C_x = Σ_j (a_j - y_j ln a_j),  ∂C_x/∂a_j = 1 - y_j / a_j. With exponential, c = a - y z."""
    low, _ = limits(T)

    def term(a, y, j):
        return a - y * math.log(low if a < low else a)

    def term_of_z(z, a, y):
        return a - y * z

    def inside(a):
        return low if a < low else a

    def error(a, y, slope, j):
        return (a - y) * (slope / a)

    return term, term_of_z, inside, error


def absolute_error(T, _):
    """C_x = Σ_j |a_j - y_j|,  ∂C_x/∂a_j = sign(a_j - y_j)."""
    sign = _sign(T)

    def term(a, y, j):
        return abs(a - y)

    def error(a, y, slope, j):
        return sign(a - y) * slope

    return term, None, _itself, error


def huber(T, constants):
    """C_x = Σ_j k (|r| - ½ k), r = a_j - y_j and k = min(|r|, δ): ∂C_x/∂a_j = r within ± δ."""
    half, delta = T(0.5), T(constants[0])

    def term(a, y, j):
        kept = min(abs(a - y), delta)
        return kept * (abs(a - y) - half * kept)

    def error(a, y, slope, j):
        return max(-delta, min(a - y, delta)) * slope

    return term, None, _itself, error


def quantile(T, constants):
    """C_x = Σ_j max((1 - q) r, -q r), r = a_j - y_j; ∂C_x/∂a_j is 1 - q above y and -q below."""
    zero, one, count = T(0), T(1), len(constants)
    above = tuple(T(1.0 - q) for q in constants)

    def term(a, y, j):
        share, r = above[j % count], a - y
        return share * r if r > zero else (share - one) * r

    def error(a, y, slope, j):
        share, r = above[j % count], a - y
        return (share if r > zero else (share - one if r < zero else r)) * slope

    return term, None, _itself, error


def hinge(T, _):
    """C_x = Σ_j max(0, 1 - y_j a_j), y_j of -1 and 1."""
    zero, one = T(0), T(1)

    def term(a, y, j):
        lack = one - a * y
        return zero if lack < zero else lack

    def error(a, y, slope, j):
        lack = one - a * y
        return -y * slope if lack > zero else zero * lack

    return term, None, _itself, error


def squared_hinge(T, _):
    """C_x = Σ_j max(0, 1 - y_j a_j)², y_j of -1 and 1."""
    zero, one, two = T(0), T(1), T(2)

    def term(a, y, j):
        lack = one - a * y
        return zero if lack < zero else lack * lack

    def error(a, y, slope, j):
        lack = one - a * y
        return zero if lack < zero else -two * (lack * y) * slope

    return term, None, _itself, error


def focal(T, constants):
    """C_x = -Σ_j [y_j (1 - a_j)^γ ln a_j + (1 - y_j) a_j^γ ln(1 - a_j)]."""
    one, gamma = T(1), T(constants[0])
    low, high = limits(T)

    def inside(a):
        return low if a < low else (high if a > high else a)

    def term(a, y, j):
        a = low if a < low else (high if a > high else a)
        ln, other = math.log(a), math.log1p(-a)
        return -(math.exp(gamma * other) * (y * ln) + math.exp(gamma * ln) * ((one - y) * other))

    def error(a, y, slope, j):
        rest, ln, other = one - a, math.log(a), math.log1p(-a)
        right = math.exp(gamma * other) * (gamma * a * ln - rest)
        wrong = math.exp(gamma * ln) * (gamma * rest * other - a)
        return (slope / (a * rest)) * (y * right - (one - y) * wrong)

    return term, None, inside, error


def categorical_focal(T, constants):
    """C_x = -Σ_j y_j (1 - a_j)^γ ln a_j."""
    one, gamma = T(1), T(constants[0])
    low, high = limits(T)

    def inside(a):
        return low if a < low else (high if a > high else a)

    def term(a, y, j):
        a = low if a < low else (high if a > high else a)
        return math.exp(gamma * math.log1p(-a)) * (-y * math.log(a))

    def error(a, y, slope, j):
        rest = one - a
        right = math.exp(gamma * math.log1p(-a)) * (gamma * a * math.log(a) - rest)
        return (slope / (a * rest)) * (y * right)

    return term, None, inside, error


def cosine(T):
    """C_x = 1 - a·y / (‖a‖ ‖y‖),  ∂C_x/∂a_j = (a_j a·y / ‖a‖² - y_j) / (‖a‖ ‖y‖)."""
    zero, one = T(0), T(1)

    @cuda.jit(device=True)
    def products(a, y, i):
        both, of_a, of_y = zero, zero, zero
        for j in range(a.shape[1]):
            if y[i, j] == y[i, j]:
                both += a[i, j] * y[i, j]
                of_a += a[i, j] * a[i, j]
                of_y += y[i, j] * y[i, j]
        return both, of_a, of_y

    def sample(a, y, i):
        both, of_a, of_y = products(a, y, i)
        size = math.sqrt(of_a) * math.sqrt(of_y)
        if size == zero:
            return one if of_y > zero else zero
        return one - both / size

    def gradient(a, y, out, i):
        both, of_a, of_y = products(a, y, i)
        size = math.sqrt(of_a) * math.sqrt(of_y)
        for j in range(a.shape[1]):
            out[i, j] = zero
            if y[i, j] == y[i, j] and size != zero:
                out[i, j] = (a[i, j] * (both / of_a) - y[i, j]) / size

    return sample, gradient


def gaussian_nll(T):
    """C_x = ½ Σ_j [s_j + r_j² e^(-s_j)], r = μ - y, of μ_j = a_j and s_j = a_{j + n/2}:
    ∂C_x/∂μ_j = r_j e^(-s_j),  ∂C_x/∂s_j = ½ (1 - r_j² e^(-s_j))."""
    zero, half, one = T(0), T(0.5), T(1)

    def sample(a, y, i):
        total, count = float64(0), a.shape[1] // 2
        for j in range(count):
            if y[i, j] == y[i, j]:
                r, s = a[i, j] - y[i, j], a[i, j + count]
                total += half * (s + r * r * math.exp(-s))
        return total

    def gradient(a, y, out, i):
        count = a.shape[1] // 2
        for j in range(count):
            out[i, j] = out[i, j + count] = zero
            if y[i, j] == y[i, j]:
                r, precision = a[i, j] - y[i, j], math.exp(-a[i, j + count])
                out[i, j] = r * precision
                out[i, j + count] = half * (one - r * r * precision)

    return sample, gradient


#: By the name of the class in ``backprop_gpu/costs``.
COSTS = {
    "".join(part.capitalize() for part in f.__name__.split("_")): f
    for f in (
        quadratic, binary_cross_entropy, categorical_cross_entropy, poisson, absolute_error, huber,
        quantile, hinge, squared_hinge, focal, categorical_focal,
    )
}  # fmt: skip
OF_ROWS = {"Cosine": cosine, "GaussianNll": gaussian_nll}


@lru_cache
def functions(kernel, constants, T):
    """The device functions inside(a) and error(a, y, slope, j) of a built-in cost."""
    _, _, inside, error = COSTS[kernel](T, constants)
    error, zero = cuda.jit(device=True)(error), T(0)

    def error_of_label(a, y, slope, j):
        return error(a, y, slope, j) if y == y else zero

    return cuda.jit(device=True)(inside), cuda.jit(device=True)(error_of_label)


@cuda.jit(device=True)
def _as_it_is(a):
    return a


@cuda.jit(device=True)
def _given(a, y, slope, j):
    return y * slope


#: The same of a cost of rows or a user's, where y already holds its gradient.
given = _as_it_is, _given


@lru_cache
def make_row_gradient(kernel, T):
    """The kernel of ∇_a C for a cost of rows."""
    _, gradient = OF_ROWS[kernel](T)
    of_row = cuda.jit(device=True)(gradient)

    @cuda.jit
    def row_gradient(a, y, out):
        """out = ∇_a C_x, row by row; all arrays (m, n). One thread per row."""
        i = cuda.grid(1)
        if i < a.shape[0]:
            of_row(a, y, out, i)

    return row_gradient


@lru_cache
def sample(kernel, constants, T, from_z):
    """The device function C_x of (z, a, y, i): the cost of row i, summed in float64."""
    if kernel in OF_ROWS:
        of_row = cuda.jit(device=True)(OF_ROWS[kernel](T)[0])

        def sample_of_row(z, a, y, i):
            return of_row(a, y, i)

        return cuda.jit(device=True)(sample_of_row)
    term, term_of_z, _, _ = COSTS[kernel](T, constants)
    if from_z and term_of_z is None:
        return _softmax_sample(T)
    c = cuda.jit(device=True)(term_of_z if from_z else term)

    def sum_of_terms(z, a, y, i):
        total = float64(0)
        for j in range(a.shape[1]):
            if y[i, j] == y[i, j]:
                total += c(a[i, j], y[i, j], j)
        return total

    def sum_of_terms_of_z(z, a, y, i):
        total = float64(0)
        for j in range(a.shape[1]):
            if y[i, j] == y[i, j]:
                total += c(z[i, j], a[i, j], y[i, j])
        return total

    return cuda.jit(device=True)(sum_of_terms_of_z if from_z else sum_of_terms)


def _softmax_sample(T):
    """C_x = Σ_j y_j (ln Σ_k e^z_k - z_j). With z* the largest z and a* the largest a,
    ln Σ_k e^z_k = z* - ln a*."""

    @cuda.jit(device=True)
    def sample(z, a, y, i):
        top_z, top_a = z[i, 0], a[i, 0]
        for j in range(1, a.shape[1]):
            top_z = max(top_z, z[i, j])
            top_a = max(top_a, a[i, j])
        log_top_a = math.log(top_a)
        total = float64(0)
        for j in range(a.shape[1]):
            if y[i, j] == y[i, j]:
                total += -y[i, j] * ((z[i, j] - top_z) + log_top_a)
        return total

    return sample
