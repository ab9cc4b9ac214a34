"""Forward pass and BP1-BP4 written a second time, in float64, sharing no code with the package.

Every product is an einsum whose indices are those of the notes: x a sample, j a neuron
of layer l, k one of the layer before. The bounds say how far a computation in
`dtype` may be from this one; they grow with the size of the terms that are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _sigmoid(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _cdf(z: Array) -> Array:
    return 0.5 * _erfc(-z / math.sqrt(2.0))  # 1 + erf would cancel for z < 0


def _pdf(z: Array) -> Array:
    return np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


#: name -> (σ, σ'); softmax has a Jacobian instead and stands apart.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "tanh": (np.tanh, lambda z: 1.0 / np.cosh(np.clip(z, -300, 300)) ** 2),
    "relu": (lambda z: np.where(z > 0, z, 0.0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1.0, 0.01)),
    "elu": (
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 1.0, np.exp(np.minimum(z, 0))),
    ),
    "gelu": (lambda z: z * _cdf(z), lambda z: _cdf(z) + z * _pdf(z)),
    "silu": (
        lambda z: z * _sigmoid(z),
        lambda z: _sigmoid(z) + z * _sigmoid(z) * _sigmoid(-z),
    ),
    "softplus": (lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))), _sigmoid),
    "identity": (lambda z: z, np.ones_like),
    "exponential": (np.exp, np.exp),
}

#: name -> (σ'', σ'''), 0 at a kink
HIGHER: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "sigmoid": (
        lambda z: -np.tanh(z / 2) * _sigmoid(z) * _sigmoid(-z),
        lambda z: _sigmoid(z) * _sigmoid(-z) * (1 - 6 * _sigmoid(z) * _sigmoid(-z)),
    ),
    "tanh": (
        lambda z: -2 * np.tanh(z) / np.cosh(np.clip(z, -300, 300)) ** 2,
        lambda z: (
            (4 * np.tanh(z) ** 2 - 2 / np.cosh(np.clip(z, -300, 300)) ** 2)
            / np.cosh(np.clip(z, -300, 300)) ** 2
        ),
    ),
    "relu": (np.zeros_like, np.zeros_like),
    "leaky_relu": (np.zeros_like, np.zeros_like),
    "elu": (
        lambda z: np.where(z < 0, np.exp(np.minimum(z, 0)), 0.0),
        lambda z: np.where(z < 0, np.exp(np.minimum(z, 0)), 0.0),
    ),
    "gelu": (lambda z: (2 - z * z) * _pdf(z), lambda z: (z**3 - 4 * z) * _pdf(z)),
    "silu": (
        lambda z: _sigmoid(z) * _sigmoid(-z) * (2 - z * np.tanh(z / 2)),
        lambda z: (
            _sigmoid(z)
            * _sigmoid(-z)
            * (z * (1 - 6 * _sigmoid(z) * _sigmoid(-z)) - 3 * np.tanh(z / 2))
        ),
    ),
    "softplus": (
        lambda z: _sigmoid(z) * _sigmoid(-z),
        lambda z: -np.tanh(z / 2) * _sigmoid(z) * _sigmoid(-z),
    ),
    "identity": (np.zeros_like, np.zeros_like),
    "exponential": (np.exp, np.exp),
}

#: name -> (C_x, ∇_a C_x)
COSTS: dict[str, tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]] = {
    "quadratic": (lambda a, y: 0.5 * ((y - a) ** 2).sum(axis=1), lambda a, y: a - y),
    "binary_cross_entropy": (
        lambda a, y: -(y * np.log(a) + (1 - y) * np.log1p(-a)).sum(axis=1),
        lambda a, y: (1 - y) / (1 - a) - y / a,
    ),
    "categorical_cross_entropy": (
        lambda a, y: -(y * np.log(a)).sum(axis=1),
        lambda a, y: -y / a,
    ),
    "poisson": (lambda a, y: (a - y * np.log(a)).sum(axis=1), lambda a, y: 1 - y / a),
    "absolute_error": (lambda a, y: np.abs(a - y).sum(axis=1), lambda a, y: np.sign(a - y)),
    "huber": (
        lambda a, y: np.where(np.abs(a - y) > 1, np.abs(a - y) - 0.5, (a - y) ** 2 / 2).sum(axis=1),
        lambda a, y: np.clip(a - y, -1, 1),
    ),
    "quantile": (lambda a, y: 0.5 * np.abs(a - y).sum(axis=1), lambda a, y: 0.5 * np.sign(a - y)),
    "hinge": (
        lambda a, y: np.maximum(0, 1 - a * y).sum(axis=1),
        lambda a, y: np.where(a * y < 1, -y, 0.0),
    ),
    "squared_hinge": (
        lambda a, y: (np.maximum(0, 1 - a * y) ** 2).sum(axis=1),
        lambda a, y: -2 * y * np.maximum(0, 1 - a * y),
    ),
    "focal": (
        lambda a, y: -(y * (1 - a) ** 2 * np.log(a) + (1 - y) * a**2 * np.log(1 - a)).sum(axis=1),
        lambda a, y: (
            y * (1 - a) * (2 * np.log(a) - (1 - a) / a)
            - (1 - y) * a * (2 * np.log(1 - a) - a / (1 - a))
        ),
    ),
    "categorical_focal": (
        lambda a, y: -(y * (1 - a) ** 2 * np.log(a)).sum(axis=1),
        lambda a, y: y * (1 - a) * (2 * np.log(a) - (1 - a) / a),
    ),
    "cosine": (
        lambda a, y: 1 - (a * y).sum(axis=1) / (_size(a) * _size(y))[:, 0],
        lambda a, y: (
            a * (a * y).sum(axis=1, keepdims=True) / (_size(a) ** 3 * _size(y))
            - y / (_size(a) * _size(y))
        ),
    ),
    "gaussian_nll": (
        lambda a, y: 0.5 * (_halves(a)[1] + _squares(a, y)).sum(axis=1),
        lambda a, y: np.concatenate(
            [
                (_halves(a)[0] - _halves(y)[0]) * np.exp(-_halves(a)[1]),
                0.5 * (1 - _squares(a, y)),
            ],
            axis=1,
        ),
    ),
}


def _size(a: Array) -> Array:
    return np.sqrt((a**2).sum(axis=1, keepdims=True))


def _halves(a: Array) -> list[Array]:
    return np.split(a, 2, axis=1)


def _squares(a: Array, y: Array) -> Array:
    mean, log_variance = _halves(a)
    return (mean - _halves(y)[0]) ** 2 * np.exp(-log_variance)


#: The costs that are infinite, or whose slope is, at an end of what they are defined for.
WITH_POLES = ("binary_cross_entropy", "categorical_cross_entropy", "poisson")
#: The largest float below 1 and the smallest normal one: where a cost has a pole, a is kept within.
_BELOW_ONE = {"float32": 1 - 2.0**-24, "float64": 1 - 2.0**-53}
_SMALLEST = {"float32": 2.0**-126, "float64": 2.0**-1022}

#: The pairs that make sense, written out rather than asked from the package.
_ANY = (*ACTIVATIONS, "softmax")
_FREE = (
    "absolute_error", "huber", "quantile", "hinge", "squared_hinge", "cosine", "gaussian_nll",
)  # fmt: skip
#: Of exponential families.
COMMON_PAIRS: tuple[tuple[str, str], ...] = (
    *((name, "quadratic") for name in _ANY),
    *((name, "binary_cross_entropy") for name in ("sigmoid", "softmax")),
    *((name, "categorical_cross_entropy") for name in ("sigmoid", "softmax")),
    *((name, "poisson") for name in ("sigmoid", "softplus", "exponential", "softmax")),
)
VALID_PAIRS: tuple[tuple[str, str], ...] = (
    *COMMON_PAIRS,
    *((name, cost) for cost in _FREE for name in _ANY if (name, cost) != ("softmax", _FREE[-1])),
    *((name, cost) for cost in ("focal", "categorical_focal") for name in ("sigmoid", "softmax")),
)
#: For what is compiled anew for each: every cost in them, alone and in whole rows.
ENGINE_PAIRS: tuple[tuple[str, str], ...] = (
    *COMMON_PAIRS,
    ("identity", "absolute_error"),
    ("softplus", "huber"),
    ("gelu", "quantile"),
    ("softmax", "quantile"),
    ("tanh", "hinge"),
    ("identity", "squared_hinge"),
    ("sigmoid", "focal"),
    ("softmax", "categorical_focal"),
    ("silu", "cosine"),
    ("softmax", "cosine"),
    ("gelu", "gaussian_nll"),
)
INVALID_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (name, cost) for name in _ANY for cost in COSTS if (name, cost) not in VALID_PAIRS
)


def random_targets(cost: str, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Y for so many rows and outputs."""
    if cost == "categorical_cross_entropy":
        return rng.dirichlet(np.ones(shape[1]), shape[0])
    if cost == "binary_cross_entropy":
        return rng.uniform(0, 1, shape)
    if cost == "poisson":
        return rng.poisson(2.0, shape).astype(float)
    if cost == "categorical_focal":
        return rng.dirichlet(np.ones(shape[1]), shape[0])
    if cost in ("focal", "hinge", "squared_hinge"):
        return rng.uniform(0, 1, shape)
    if cost == "gaussian_nll":
        return rng.standard_normal((shape[0], shape[1] // 2))
    return rng.standard_normal(shape)


def activate(name: str, z: Array) -> Array:
    return _softmax(z) if name == "softmax" else ACTIVATIONS[name][0](z)


def pull_back(name: str, error: Array, z: Array) -> Array:
    """∂C/∂z from ∂C/∂a."""
    if name != "softmax":
        return error * ACTIVATIONS[name][1](z)
    a = _softmax(z)
    jacobian = np.einsum("xk,kj->xkj", a, np.eye(z.shape[1])) - np.einsum("xk,xj->xkj", a, a)
    return np.einsum("xk,xkj->xj", error, jacobian)


def forward(w: Array, b: Array, a: Array, activation: str) -> tuple[Array, Array]:
    z = np.einsum("jk,xk->xj", *_double(w, a)) + _double(b)[0]
    return z, activate(activation, z)


def output_error(
    z: Array, y: Array, activation: str, cost: str, dtype: object = np.float64
) -> Array:
    """BP1 with the quotients in exact arithmetic, where a is at least `dtype`'s smallest normal."""
    z, y = _double(z, y)
    if cost not in WITH_POLES:
        return pull_back(activation, COSTS[cost][1](activate(activation, z), y), z)
    a = np.maximum(activate(activation, z), _SMALLEST[np.dtype(dtype).name])
    if activation == "softmax":
        others = 1.0 - np.eye(z.shape[1])
        rest = np.einsum("xk,kj->xj", a, others)  # 1 - a, with its digits
        q = -y if cost == "categorical_cross_entropy" else a - y
        if cost == "binary_cross_entropy":
            q = q / rest
        return q * rest - a * np.einsum("xk,kj->xj", q, others)
    if (activation, cost) in (("sigmoid", "binary_cross_entropy"), ("exponential", "poisson")):
        return a - y
    shares = {"sigmoid": _sigmoid(-z), "softplus": -np.expm1(-a) / a}  # σ' / a
    return (-y if cost == "categorical_cross_entropy" else a - y) * shares[activation]


def hidden_error(w_next: Array, delta_next: Array, z: Array, activation: str) -> Array:
    w_next, delta_next, z = _double(w_next, delta_next, z)
    return pull_back(activation, np.einsum("jk,xj->xk", w_next, delta_next), z)


def bias_gradient(delta: Array) -> Array:
    return np.einsum("xj->j", *_double(delta)) / len(delta)


def weight_gradient(delta: Array, a_prev: Array) -> Array:
    return np.einsum("xj,xk->jk", *_double(delta, a_prev)) / len(delta)


@dataclass
class Pass:
    """Everything a forward and a backward pass compute; index l is layer l."""

    a: list[Array]
    z: list[Array]
    cost: float
    delta: list[Array]
    gradients: list[tuple[Array, Array]]


def backpropagate(
    weights: Sequence[Array],
    biases: Sequence[Array],
    names: Sequence[str],
    cost: str,
    X: Array,
    Y: Array,
    dtype: object = np.float64,
) -> Pass:
    """All of it in float64; `dtype` is the one that saturated outputs are kept normal in."""
    X, Y = _double(X, Y)
    a, z = [X], [X]
    for w, b, name in zip(weights, biases, names, strict=True):
        layer = forward(w, b, a[-1], name)
        z.append(layer[0])
        a.append(layer[1])
    deltas = [output_error(z[-1], Y, names[-1], cost, dtype)]
    for l in range(len(names) - 1, 0, -1):
        deltas.insert(0, hidden_error(weights[l], deltas[0], z[l], names[l - 1]))
    gradients = [
        (weight_gradient(delta, before), bias_gradient(delta))
        for delta, before in zip(deltas, a, strict=False)
    ]
    inside = a[-1]
    if cost in WITH_POLES:
        inside = np.maximum(inside, _SMALLEST[np.dtype(dtype).name])
    if cost == "binary_cross_entropy":
        inside = np.minimum(inside, _BELOW_ONE[np.dtype(dtype).name])
    mean_cost = float(np.mean(COSTS[cost][0](inside, Y)))
    return Pass(a, z, mean_cost, [X, *deltas], gradients)


def product_bound(subscripts: str, s: Array, t: Array, dtype: object, factor: float = 8.0) -> Array:
    """How far Σ s t, summed in `dtype` in any order, may be from the exact sum.

    A sum of k terms is off by at most about k ε Σ|s||t| (Higham 2002, section 3.1), and by
    √k ε Σ|s||t| for roundings that do not conspire; the latter times `factor` is what is
    allowed. A wrong or missing term is far outside of it. Below the normal numbers a rounding is of
    the smallest one there is, not of ε.
    """
    s, t = (np.abs(array) for array in _double(s, t))
    sizes = dict(
        zip(subscripts.replace(",", "").partition("->")[0], s.shape + t.shape, strict=True)
    )
    output = subscripts.partition("->")[2]
    terms = math.prod(n for index, n in sizes.items() if index not in output)
    info = np.finfo(dtype)
    bound = math.sqrt(terms + 1) * info.eps * np.einsum(subscripts, s, t)
    return factor * (bound + terms * float(info.smallest_subnormal))


def assert_close(got: Array, expected: Array, bound: Array | float, what: str = "") -> None:
    """|got - expected| <= bound, element by element, naming the worst."""
    got = np.asarray(got, np.float64)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    error = np.abs(got - expected)
    excess = error - bound
    assert np.isfinite(got).all(), f"{what}: not finite"
    if excess.size and not (excess <= 0).all():
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        allowed = np.broadcast_to(bound, error.shape)[worst]
        raise AssertionError(
            f"{what} at {worst}: got {got[worst]!r}, expected {expected[worst]!r}, "
            f"off by {error[worst]:.3g}, allowed {allowed:.3g}"
        )


def _double(*arrays: Array) -> list[Array]:
    return [np.asarray(array, np.float64) for array in arrays]


def same_bits(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> None:
    """Arrays one by one, NaN of the same payload included."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))
