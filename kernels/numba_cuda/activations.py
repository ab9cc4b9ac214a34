"""a = σ(z) and σ'(z), one scalar at a time; softmax, one row at a time.

Each elementwise activation is a function of T that gives the pair (σ(z), σ'(z, a)).
σ' takes both z and a and uses one of them: where it uses a alone, a caller that
kept no z may pass anything for it. ``backprop_gpu/activations.py`` has the same
formulas on whole arrays.
"""

import math
from functools import lru_cache
from types import CellType, FunctionType, ModuleType

import numpy as np
from numba import config, cuda

from . import BLOCK


def sigmoid(T):
    """σ(z) = 1 / (1 + e^-z),  σ' = a (1 - a)."""
    zero, one = T(0), T(1)

    def value(z):
        e = math.exp(-abs(z))  # never overflows; e^z / (1 + e^z) on the left
        return (one if z >= zero else e) / (one + e)

    def derivative(z, a):
        return (one - a) * a

    return value, derivative


def tanh(T):
    """σ(z) = tanh z,  σ' = 1 - a²."""
    one = T(1)

    def value(z):
        return math.tanh(z)

    def derivative(z, a):
        return one - a * a

    return value, derivative


def relu(T):
    """σ(z) = max(z, 0),  σ' = [a > 0]."""
    zero, one = T(0), T(1)

    def value(z):
        return zero if z < zero else z  # a NaN stays one

    def derivative(z, a):
        return one if a > zero else zero

    return value, derivative


def leaky_relu(T):
    """σ(z) = max(z, 0.01 z),  σ' = 1 where a > 0, else 0.01."""
    zero, one, slope = T(0), T(1), T(0.01)

    def value(z):
        return z if z > zero else slope * z

    def derivative(z, a):
        return one if a > zero else slope

    return value, derivative


def elu(T):
    """σ(z) = z where z > 0, else e^z - 1;  σ' = 1 where z > 0, else a + 1."""
    zero, one = T(0), T(1)

    def value(z):
        return z if z > zero else math.expm1(z)

    def derivative(z, a):
        return one if a > zero else a + one

    return value, derivative


def gelu(T):
    """σ(z) = z Φ(z),  σ' = Φ(z) + z φ(z),  Φ(z) = ½ erfc(-z/√2), φ(z) = e^(-z²/2) / √2π."""
    half, root, peak = T(0.5), T(math.sqrt(0.5)), T(1.0 / math.sqrt(2.0 * math.pi))

    def value(z):
        return z * (half * math.erfc(-root * z))

    def derivative(z, a):
        return half * math.erfc(-root * z) + z * (peak * math.exp(-half * z * z))

    return value, derivative


def silu(T):
    """σ(z) = z s(z) with s the sigmoid,  σ' = s + a (1 - s)."""
    zero, one = T(0), T(1)

    def value(z):
        e = math.exp(-abs(z))
        return z * ((one if z >= zero else e) / (one + e))

    def derivative(z, a):
        e = math.exp(-abs(z))
        s = (one if z >= zero else e) / (one + e)
        return s + a * (one - s)

    return value, derivative


def softplus(T):
    """σ(z) = ln(1 + e^z) = max(z, 0) + ln(1 + e^-|z|),  σ' = 1 - e^-a."""
    zero = T(0)

    def value(z):
        return (z if z > zero else zero) + math.log1p(math.exp(-abs(z)))

    def derivative(z, a):
        return -math.expm1(-a)

    return value, derivative


def identity(T):
    """σ(z) = z,  σ' = 1."""
    one = T(1)

    def value(z):
        return z

    def derivative(z, a):
        return one

    return value, derivative


def exponential(T):
    """σ(z) = e^z,  σ' = a."""

    def value(z):
        return math.exp(z)

    def derivative(z, a):
        return a

    return value, derivative


ELEMENTWISE = {
    f.__name__: f
    for f in (
        sigmoid, tanh, relu, leaky_relu, elu, gelu, silu, softplus, identity, exponential,
    )
}  # fmt: skip


@lru_cache
def builtin(name, T):
    """The device functions (σ(z), σ'(z, a)) of a built-in elementwise activation."""
    value, derivative = ELEMENTWISE[name](T)
    return cuda.jit(device=True)(value), cuda.jit(device=True)(derivative)


@lru_cache
def user(function, derivative, T):
    """The device functions (σ(z), σ'(z, a)) of a user's σ and σ', each a function of z."""
    sigma = cuda.jit(device=True)(translated(function))
    sigma_prime = cuda.jit(device=True)(translated(derivative))

    # What the user computes in float64, say by writing 2 * z, is rounded once, at the end.
    def value(z):
        return T(sigma(z))

    def slope(z, a):
        return T(sigma_prime(z))

    return cuda.jit(device=True)(value), cuda.jit(device=True)(slope)


# -- softmax -------------------------------------------------------------------


@lru_cache
def make_softmax(T):
    """The kernel of a_j = e^z_j / Σ_k e^z_k over each row."""
    zero = T(0)

    @cuda.jit
    def softmax(z, a):
        """a = softmax(z), both (m, n); z and a may be one array.

        One thread per row. The largest z_j is taken off first: no exponential exceeds 1.
        """
        i = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        m, n = z.shape
        if i < m:
            top = z[i, 0]
            for j in range(1, n):
                if z[i, j] > top:
                    top = z[i, j]
            total = zero
            for j in range(n):
                e = math.exp(z[i, j] - top)
                a[i, j] = e
                total += e
            for j in range(n):
                a[i, j] /= total

    return softmax


@lru_cache
def make_softmax_pull_back(T):
    """The kernel of δ_j = a_j (g_j - Σ_k g_k a_k): from g = ∂C/∂a to δ = ∂C/∂z."""
    zero = T(0)

    @cuda.jit
    def softmax_pull_back(a, error):
        """error: g in, δ out; both (m, n). One thread per row."""
        i = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        m, n = a.shape
        if i < m:
            mean = zero
            for j in range(n):
                mean += error[i, j] * a[i, j]
            for j in range(n):
                error[i, j] = a[i, j] * (error[i, j] - mean)

    return softmax_pull_back


# -- a user's function -----------------------------------------------------------


@cuda.jit(device=True)
def _where(condition, x, y):
    return x if condition else y


@cuda.jit(device=True)
def _sign(x):
    return (1 if x > 0 else 0) - (1 if x < 0 else 0)


@cuda.jit(device=True)
def _square(x):
    return x * x


@cuda.jit(device=True)
def _logaddexp(x, y):
    return max(x, y) + math.log1p(math.exp(-abs(x - y)))


@cuda.jit(device=True)
def _clip(x, low, high):
    return min(max(x, low), high)


#: NumPy's elementwise functions that Numba does not compile for a device, and what it does.
_STAND_INS = {
    np.exp: math.exp, np.expm1: math.expm1, np.log1p: math.log1p, np.sqrt: math.sqrt,
    np.absolute: abs, np.fabs: math.fabs, np.power: math.pow, np.square: _square,
    np.sign: _sign, np.logaddexp: _logaddexp, np.where: _where, np.clip: _clip,
}  # fmt: skip


class _Numpy(ModuleType):
    """NumPy as a device knows it."""

    def __getattr__(self, name):
        return _stand_in(getattr(np, name))


_NUMPY = _Numpy("numpy")


def _stand_in(value):
    if value is np:
        return _NUMPY
    try:
        return _STAND_INS.get(value, value)
    except TypeError:  # not hashable
        return value


def translated(function):
    """A user's function, with NumPy's functions looked up among those that a device has."""
    in_simulator = config.ENABLE_CUDASIM  # which runs Python and NumPy as they are
    if not isinstance(function, FunctionType):  # np.tanh itself, or what Numba compiled before
        stand_in = function if in_simulator else _stand_in(function)
        return lambda z: stand_in(z)
    if in_simulator:
        return function
    namespace = {name: _stand_in(value) for name, value in function.__globals__.items()}
    closure = tuple(CellType(_stand_in(cell.cell_contents)) for cell in function.__closure__ or ())
    return FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, closure
    )
