"""The four costs, one sample or one output at a time.

A cost is a function of T that gives

    term(a, y)         c of one output, where C_x = Σ_j c(a_j, y_j)
    term_of_z(z, a, y) c for the σ that suits the cost, from z: no rounding of a
    inside(a)          ā, a moved off the edge of where the cost is defined
    error(a, y, slope) ∂C_x/∂a_j · slope at ā: δ_j, where the slope is σ'(z_j)

``backprop_gpu/costs.py`` has the same formulas on whole arrays, says which σ suits
which cost, and has the rule of BP1.
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


def quadratic(T):
    """C_x = ½ ‖y - a‖²,  ∂C_x/∂a_j = a_j - y_j."""
    half = T(0.5)

    def term(a, y):
        return half * ((a - y) * (a - y))

    def term_of_z(z, a, y):
        return half * ((a - y) * (a - y))

    def inside(a):
        return a

    def error(a, y, slope):
        return (a - y) * slope

    return term, term_of_z, inside, error


def binary_cross_entropy(T):
    """C_x = -Σ_j [y_j ln a_j + (1 - y_j) ln(1 - a_j)],  ∂C_x/∂a_j = (a_j - y_j) / (a_j (1 - a_j)).

    With sigmoid, c = ln(1 + e^z) - y z.
    """
    zero, one = T(0), T(1)
    low, high = limits(T)

    def inside(a):
        return low if a < low else (high if a > high else a)

    def term(a, y):
        a = low if a < low else (high if a > high else a)
        other = math.log1p(-a)
        return -(other + y * (math.log(a) - other))

    def term_of_z(z, a, y):
        return (z if z > zero else zero) + math.log1p(math.exp(-abs(z))) - y * z

    def error(a, y, slope):
        return (a - y) * (slope / (a * (one - a)))

    return term, term_of_z, inside, error


def categorical_cross_entropy(T):
    """C_x = -Σ_j y_j ln a_j,  ∂C_x/∂a_j = -y_j / a_j."""
    low, _ = limits(T)

    def term(a, y):
        return -y * math.log(low if a < low else a)

    def inside(a):
        return low if a < low else a

    def error(a, y, slope):
        return -y * (slope / a)

    return term, None, inside, error  # softmax couples the z of a row: `_softmax_sample`


def poisson(T):
    """C_x = Σ_j (a_j - y_j ln a_j),  ∂C_x/∂a_j = 1 - y_j / a_j. With exponential, c = a - y z."""
    low, _ = limits(T)

    def term(a, y):
        return a - y * math.log(low if a < low else a)

    def term_of_z(z, a, y):
        return a - y * z

    def inside(a):
        return low if a < low else a

    def error(a, y, slope):
        return (a - y) * (slope / a)

    return term, term_of_z, inside, error


COSTS = {
    f.__name__: f for f in (quadratic, binary_cross_entropy, categorical_cross_entropy, poisson)
}


@lru_cache
def functions(name, T):
    """The device functions inside(a) and error(a, y, slope) of a built-in cost."""
    _, _, inside, error = COSTS[name](T)
    return cuda.jit(device=True)(inside), cuda.jit(device=True)(error)


@cuda.jit(device=True)
def _as_it_is(a):
    return a


@cuda.jit(device=True)
def _given(a, y, slope):
    return y * slope


#: The same of a user's cost, where y already holds its gradient.
given = _as_it_is, _given


@lru_cache
def sample(name, T, from_z):
    """The device function C_x of (z, a, y, i): the cost of row i, summed in float64."""
    term, term_of_z, _, _ = COSTS[name](T)
    if from_z and term_of_z is None:
        return _softmax_sample(T)
    c = cuda.jit(device=True)(term_of_z if from_z else term)

    def sum_of_terms(z, a, y, i):
        total = float64(0)
        for j in range(a.shape[1]):
            total += c(a[i, j], y[i, j])
        return total

    def sum_of_terms_of_z(z, a, y, i):
        total = float64(0)
        for j in range(a.shape[1]):
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
            total += -y[i, j] * ((z[i, j] - top_z) + log_top_a)
        return total

    return sample
