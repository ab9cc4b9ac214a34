"""`Network`'s derivatives against automatic differentiation, and the demon of `check_gradients`."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import kernel_cases
from backprop_gpu import Activation, Cost, Network, activations, costs, threads
from backprop_gpu.backends.numpy import NumpyBackend
from reference import (
    COMMON_PAIRS,
    INVALID_PAIRS,
    VALID_PAIRS,
    WITH_POLES,
    backpropagate,
    output_error,
    random_targets,
)

# On a GPU machine without it the rest of the tests should still run.
autograd = pytest.importorskip("autograd", reason="the test extra has HIPS autograd")
anp = pytest.importorskip("autograd.numpy")
erf = pytest.importorskip("autograd.scipy.special").erf

XOR = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def test_the_table_of_pairs_covers_all():
    assert set(VALID_PAIRS) | set(INVALID_PAIRS) == {
        (a, c) for a in activations.names() for c in costs.names()
    }


# -- automatic differentiation ----------------------------------------------------------


def logistic(z):
    return 0.5 * (anp.tanh(0.5 * z) + 1.0)


def log_sum_exp(z):
    top = anp.max(z, axis=1, keepdims=True)
    return top + anp.log(anp.sum(anp.exp(z - top), axis=1, keepdims=True))


AUTOGRAD_ACTIVATIONS = {
    "sigmoid": logistic,
    "tanh": anp.tanh,
    "relu": lambda z: anp.maximum(z, 0.0),
    "leaky_relu": lambda z: anp.where(z > 0, z, 0.01 * z),
    "elu": lambda z: anp.where(z > 0, z, anp.exp(anp.minimum(z, 0.0)) - 1.0),
    "gelu": lambda z: 0.5 * z * (1.0 + erf(z / anp.sqrt(2.0))),
    "silu": lambda z: z * logistic(z),
    "softplus": lambda z: anp.logaddexp(0.0, z),
    "identity": lambda z: z,
    "exponential": anp.exp,
    "softmax": lambda z: anp.exp(z - log_sum_exp(z)),
}
AUTOGRAD_COSTS = {
    "quadratic": lambda a, y: 0.5 * anp.sum((y - a) ** 2),
    "binary_cross_entropy": lambda a, y: -anp.sum(y * anp.log(a) + (1 - y) * anp.log(1 - a)),
    "categorical_cross_entropy": lambda a, y: -anp.sum(y * anp.log(a)),
    "poisson": lambda a, y: anp.sum(a - y * anp.log(a)),
    "absolute_error": lambda a, y: anp.sum(anp.abs(a - y)),
    "huber": lambda a, y: anp.sum(
        anp.where(anp.abs(a - y) > 1, anp.abs(a - y) - 0.5, 0.5 * (a - y) ** 2)
    ),
    "quantile": lambda a, y: anp.sum(anp.maximum(0.5 * (y - a), -0.5 * (y - a))),
    "hinge": lambda a, y: anp.sum(anp.maximum(0.0, 1 - (2 * y - 1) * a)),
    "squared_hinge": lambda a, y: anp.sum(anp.maximum(0.0, 1 - (2 * y - 1) * a) ** 2),
    "focal": lambda a, y: -anp.sum(y * (1 - a) ** 2 * anp.log(a) + (1 - y) * a**2 * anp.log(1 - a)),
    "categorical_focal": lambda a, y: -anp.sum(y * (1 - a) ** 2 * anp.log(a)),
    "cosine": lambda a, y: anp.sum(
        1
        - anp.sum(a * y, axis=1) / anp.sqrt(anp.sum(a**2, axis=1)) / anp.sqrt(anp.sum(y**2, axis=1))
    ),
    "gaussian_nll": lambda a, y: (
        0.5
        * anp.sum(a[:, y.shape[1] :] + (a[:, : y.shape[1]] - y) ** 2 / anp.exp(a[:, y.shape[1] :]))
    ),
}


def differentiate(net, X, Y):
    """(C, [(∂C/∂w, ∂C/∂b), …]) by reverse-mode automatic differentiation (HIPS autograd)."""

    def mean_cost(parameters):
        a = X
        for (w, b), activation in zip(parameters, net.activations, strict=True):
            a = AUTOGRAD_ACTIVATIONS[activation.name](anp.dot(a, w.T) + b)
        return AUTOGRAD_COSTS[net.cost.name](a, Y) / len(X)

    start = list(zip(net.weights, net.biases, strict=True))
    return mean_cost(start), autograd.grad(mean_cost)(start)


def assert_gradients_equal(got, expected, tolerance):
    for l, (pair, right) in enumerate(zip(got, expected, strict=True), start=1):
        for name, array, other in zip("wb", pair, right, strict=True):
            error = np.linalg.norm(array - other) / max(np.linalg.norm(other), 1e-12)
            assert error <= tolerance, f"{name}[{l}] is off by {error:.2e}"
            scale = np.abs(other).max()
            np.testing.assert_allclose(array, other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("activation", "cost"), VALID_PAIRS)
def test_every_output_pair_against_autograd(backend, activation, cost):
    rng = np.random.default_rng([len(activation), len(cost)])
    X = rng.standard_normal((7, 5))
    Y = random_targets(cost, (7, 4), rng)
    net = Network(
        [5, 6, 3, 4],
        activation=["tanh", "silu", activation],
        cost=cost,
        dtype="float64",
        backend=backend,
        seed=1,
    )
    mean_cost, expected = differentiate(net, X, Y)
    assert_gradients_equal(net.gradients(X, Y), expected, 1e-10)
    assert net.loss(X, Y) == pytest.approx(mean_cost, rel=1e-12)


@pytest.mark.parametrize("activation", [n for n in activations.names() if n != "softmax"])
def test_every_hidden_activation_against_autograd(backend, activation):
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((9, 4)), rng.standard_normal((9, 2))
    net = Network(
        [4, 5, 6, 2],
        activation=[activation, activation, "identity"],
        dtype="float64",
        backend=backend,
        seed=2,
        initial_weights="book",
    )
    _, expected = differentiate(net, X, Y)
    assert_gradients_equal(net.gradients(X, Y), expected, 1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_against_autograd(backend, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, rng.integers(2, 6)).tolist()
    pair = COMMON_PAIRS[rng.integers(len(COMMON_PAIRS))]
    hidden = [n for n in activations.names() if n not in ("softmax", "exponential")]
    chosen = [*rng.choice(hidden, len(sizes) - 2).tolist(), pair[0]]
    rows = int(rng.integers(1, 20))
    X, Y = rng.standard_normal((rows, sizes[0])), random_targets(pair[1], (rows, sizes[-1]), rng)
    net = Network(
        sizes, activation=chosen, cost=pair[1], dtype="float64", backend=backend, seed=seed
    )
    _, expected = differentiate(net, X, Y)
    assert_gradients_equal(net.gradients(X, Y), expected, 1e-10)


def test_float32_gradients(backend):
    rng = np.random.default_rng(5)
    X, Y = rng.standard_normal((31, 33)), rng.uniform(0, 1, (31, 17))
    net = Network([33, 129, 17], cost="binary_cross_entropy", backend=backend, seed=1)
    names = [activation.name for activation in net.activations]
    right = backpropagate(net.weights, net.biases, names, net.cost.name, np.float32(X), Y)
    got = net.gradients(X, Y)
    assert got[0][0].dtype == np.float32
    assert_gradients_equal(got, right.gradients, 2e-6)


def test_gradients_are_copies(backend):
    net = Network([2, 3, 1], backend=backend, seed=1)
    first = net.gradients(XOR, [0, 1, 1, 0])
    kept = [(w.copy(), b.copy()) for w, b in first]
    second = net.gradients(XOR + 1, [0, 1, 1, 0])
    assert not np.shares_memory(first[0][0], second[0][0])
    for (w, b), (w_kept, b_kept) in zip(first, kept, strict=True):
        np.testing.assert_array_equal(w, w_kept)
        np.testing.assert_array_equal(b, b_kept)
    assert [(w.shape, b.shape) for w, b in first] == [((3, 2), (3,)), ((1, 3), (1,))]


# -- which pairs there are ---------------------------------------------------------------


@pytest.mark.parametrize(("activation", "cost"), INVALID_PAIRS)
def test_pairs_without_meaning_are_refused(activation, cost):
    with pytest.raises(ValueError, match=f"{cost!r} needs outputs in .*{activation!r} gives"):
        Network([3, 2], activation=activation, cost=cost, backend="numpy")


def test_the_refusal_reads_well():
    with pytest.raises(ValueError, match="'exponential' suits it") as error:
        Network([3, 2], activation="relu", cost="poisson", backend="numpy")
    assert "e-324" not in str(error.value)


# -- the demon ----------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "cost"), VALID_PAIRS)
def test_central_differences_of_every_pair(activation, cost):
    rng = np.random.default_rng([len(activation), len(cost)])
    n = 4 if cost == "gaussian_nll" else 3
    X, Y = rng.standard_normal((5, 3)), random_targets(cost, (5, n), rng)
    hidden = "sigmoid" if activation == "softmax" else activation
    net = Network(
        [3, 4, n],
        activation=[hidden, activation],
        cost=cost,
        backend="numpy",
        dtype="float64",
        seed=1,
        initial_weights="book",
    )
    report = net.check_gradients(X, Y)
    assert report.ok, str(report)
    assert report.error < 1e-6
    # every z of every sample, every weight, every bias
    assert report.comparisons == 5 * (4 + n) + (4 * 3 + n * 4) + (4 + n)
    assert "agree" in str(report)


def test_check_gradients_in_float32_leaves_the_network_alone(backend):
    net = Network([2, 3, 1], backend=backend, seed=1)
    before = [*net.weights, *net.biases]
    report = net.check_gradients(XOR, [0, 1, 1, 0])
    assert report.ok
    for old, new in zip(before, [*net.weights, *net.biases], strict=True):
        np.testing.assert_array_equal(old, new)


def square(name="square", slope=2.0):
    return Activation(name, lambda z: z * z, lambda z: slope * z)


def test_users_activation(backend, registries):
    activations.register(square())
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    net = Network(
        [3, 4, 2], activation=["square", "identity"], dtype="float64", backend=backend, seed=1
    )
    assert net.check_gradients(X, Y).ok
    z = X @ net.weights[0].T + net.biases[0]
    a = (z * z) @ net.weights[1].T + net.biases[1]
    np.testing.assert_allclose(net.predict(X), a, rtol=1e-12)
    delta2 = a - Y
    delta1 = (delta2 @ net.weights[1]) * 2 * z
    np.testing.assert_allclose(net.gradients(X, Y)[0][0], delta1.T @ X / 6, rtol=1e-11)
    net.fit(X, Y, epochs=2, batch_size=4, learning_rate=1e-3)


@pytest.mark.parametrize("activation", ["identity", "sigmoid", "softmax"])
def test_users_cost(backend, activation):
    quartic = Cost(
        "quartic", lambda a, y: ((a - y) ** 4).sum(axis=1), lambda a, y: 4 * (a - y) ** 3
    )
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    net = Network(
        [3, 4, 2],
        activation=["tanh", activation],
        cost=quartic,
        dtype="float64",
        backend=backend,
        seed=1,
    )
    report = net.check_gradients(X, Y)
    assert report.ok, str(report)
    loss = ((net.predict(X) - Y) ** 4).sum() / 6
    assert net.loss(X, Y) == pytest.approx(loss, rel=1e-12)
    history = net.fit(X, Y, epochs=1, batch_size=6, learning_rate=1e-4)
    assert history.loss == pytest.approx([loss], rel=1e-12)
    assert net.loss(X, Y) < loss


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_wrong_derivative_is_found_in_its_layer(layer):
    chosen = ["tanh", "tanh", "identity"]
    chosen[layer - 1] = square("wrong", slope=2.02)
    rng = np.random.default_rng(2)
    X, Y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    net = Network([3, 4, 4, 2], activation=chosen, dtype="float64", backend="numpy", seed=1)
    report = net.check_gradients(X, Y)
    assert not report.ok
    assert report.error == pytest.approx(0.01, rel=0.2)
    assert "DISAGREE" in str(report)
    assert report.worst_neuron.quantity in str(report)
    # All layers up to the wrong one inherit its error; no layer above it has one.
    where = report.worst_neuron.quantity.split(" of sample ")[0]
    assert where.startswith("z_")
    assert int(where.split("^")[1]) <= layer
    assert report.worst_neuron.predicted == pytest.approx(
        1.01 * report.worst_neuron.measured, rel=1e-3
    )


def test_a_single_wrong_neuron_is_named():
    def one_sided(z):
        slope = 2 * z
        slope[:, 2] += 0.5  # only neuron 2 lies
        return slope

    liar = Activation("liar", lambda z: z * z, one_sided)
    rng = np.random.default_rng(2)
    X, Y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    net = Network([3, 4, 2], activation=[liar, "identity"], backend="numpy", seed=1)
    report = net.check_gradients(X, Y)
    assert report.worst_neuron.quantity.startswith("z_2^1 of sample ")
    assert report.worst_weight.quantity.startswith("w_2_")
    assert report.worst_bias.quantity == "b_2^1"


def test_a_wrong_cost_gradient_is_found():
    wrong = Cost("wrong", lambda a, y: ((a - y) ** 2).sum(axis=1), lambda a, y: a - y)
    net = Network([2, 3, 1], cost=wrong, backend="numpy", seed=1)
    report = net.check_gradients(XOR, [0, 1, 1, 0])
    assert not report.ok
    assert report.error == pytest.approx(0.5, rel=0.1)


def test_a_derivative_that_is_nan_is_reported():
    broken = Activation("broken", lambda z: z * z, lambda z: z * np.nan)
    net = Network([2, 3, 1], activation=[broken, "identity"], backend="numpy", seed=1)
    assert not net.check_gradients(XOR, [0, 1, 1, 0]).ok


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-7, -1e-7, 5e-5])
def test_kinks_are_not_reported(name, distance):
    net = Network([2, 3, 1], activation=[name, "sigmoid"], dtype="float64", backend="numpy", seed=1)
    # The first row's z is at, or a hair from, the kink.
    net.biases = [np.full(3, distance), net.biases[1]]
    report = net.check_gradients(XOR, [1, 1, 1, 0])
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("activation", "cost"),
    [
        ("sigmoid", "binary_cross_entropy"),
        ("softmax", "categorical_cross_entropy"),
        ("exponential", "poisson"),
    ],
)
@pytest.mark.parametrize("size", [5.0, 30.0])
def test_saturated_outputs_are_not_reported(activation, cost, size):
    """The demon must see the cost as exactly as backpropagation does."""
    net = Network(
        [1, 2], activation=activation, cost=cost, dtype="float64", backend="numpy", seed=1
    )
    net.weights, net.biases = [[[1.0], [-1.0]]], [np.zeros(2)]
    Y = np.array([[0.0, 1.0], [1.0, 0.0]])
    report = net.check_gradients([[size], [-1.0]], Y)
    assert report.ok, str(report)


@pytest.mark.parametrize(("activation", "cost"), COMMON_PAIRS)
def test_outputs_at_the_edge_of_the_cost_are_left_out(activation, cost):
    """There C is flat, and δ is not: only a pair that collapses has a C that knows better."""
    net = Network(
        [1, 2], activation=activation, cost=cost, dtype="float64", backend="numpy", seed=1
    )
    net.weights, net.biases = [[[1.0], [-1.0]]], [np.zeros(2)]
    Y = np.array([[0.25, 0.75]] * 3)
    flat = cost in WITH_POLES and not costs.collapses(activations.get(activation), costs.get(cost))
    size = 300.0 if activation == "exponential" else 1000.0
    report = net.check_gradients([[0.5], [size], [-1.0]], Y)
    assert report.left_out == flat
    assert ("left out: 1 rows" in str(report)) == flat
    if flat:
        assert report.ok, str(report)
        assert report.worst_neuron.quantity.endswith((" of sample 0", " of sample 2"))
        with pytest.raises(ValueError, match=f"every row has an output at the edge.*{cost}"):
            net.check_gradients([[size], [-size]], Y[:2])


def test_gradients_that_cancel_are_not_reported():
    """Where the mean over samples vanishes, rounding is all that is left to compare."""
    settings = {"activation": "identity", "dtype": "float64", "backend": "numpy", "seed": 1}
    net = Network([1, 1], **settings)
    net.weights, net.biases = [[[2.0]]], [[0.3]]
    # y is off by +0.1 and by -0.1 at every x: the regression line is the optimum.
    x = np.repeat([-0.7, 0.4, 1.3], 2)[:, None]
    y = 2.0 * x + 0.3 + np.tile([0.1, -0.1], 3)[:, None]
    assert max(np.abs(g).max() for g in net.gradients(x, y)[0]) < 1e-14
    report = net.check_gradients(x, y)
    assert report.ok, str(report)


def test_check_gradients_arguments():
    net = Network([2, 3, 1], backend="numpy", seed=1)
    Y = [0, 1, 1, 0]
    for bad in (0, -1):
        with pytest.raises(ValueError, match="max_weights"):
            net.check_gradients(XOR, Y, max_weights=bad)
    with pytest.raises(TypeError, match="tolerance"):
        net.check_gradients(XOR, Y, tolerance="small")
    few = net.check_gradients(XOR, Y, max_weights=2)
    assert few.comparisons == 4 * (3 + 1) + (2 + 2) + (2 + 1)


# -- what a name means -------------------------------------------------------------------


def test_a_users_function_is_never_taken_for_a_builtin():
    """A user's σ or cost under a built-in's name is refused, or computed as the user's."""

    def steep(name):
        def sigma(z):
            return 1.0 / (1.0 + np.exp(-3.0 * z))

        return Activation(name, sigma, lambda z: 3.0 * sigma(z) * (1.0 - sigma(z)))

    def loss(activation):
        settings = {"cost": "binary_cross_entropy", "backend": "numpy", "seed": 1}
        return Network([2, 1], activation=activation, **settings).loss(XOR, [0, 1, 1, 0])

    try:
        named_sigmoid = steep("sigmoid")
    except ValueError:
        return
    assert loss(named_sigmoid) == pytest.approx(loss(steep("steep")), rel=1e-6)


def test_register(registries):
    with pytest.raises(ValueError, match="'tanh' is a built-in"):
        activations.register(square("tanh"))
    with pytest.raises(ValueError, match="'poisson' is a built-in"):
        costs.register(Cost("poisson", lambda a, y: a[:, 0], lambda a, y: a))
    with pytest.raises(ValueError, match="must be elementwise"):
        activations.register(Activation("total", lambda z: z.sum(), lambda z: z))
    with pytest.raises(ValueError, match="derivative of activation 'flat' must be elementwise"):
        activations.register(Activation("flat", lambda z: z, lambda z: 1.0))
    with pytest.raises(TypeError, match="register takes an Activation"):
        activations.register("square")
    with pytest.raises(ValueError, match="identifier"):
        Activation("not a name", np.sin, np.cos)
    with pytest.raises(TypeError, match="derivative of activation 'sine' must be callable"):
        Activation("sine", np.sin, None)
    activations.register(square())
    assert "square" in activations.names()
    with pytest.raises(ValueError, match=r"unknown activation 'cube'; known: .*square"):
        Network([2, 1], activation="cube", backend="numpy")


def test_a_cost_must_give_one_number_a_sample():
    total = Cost("total", lambda a, y: ((a - y) ** 2).sum(), lambda a, y: 2 * (a - y))
    net = Network([2, 3, 1], cost=total, backend="numpy", seed=1)
    with pytest.raises(ValueError, match=r"one number per sample.*\(4,\)"):
        net.loss(XOR, [0, 1, 1, 0])


# -- derivatives beyond the mean gradient --------------------------------------------------

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
HIDDEN = [name for name in activations.names() if name not in ("softmax", "exponential")]


class Automatic:
    """A network, rows, and its derivatives by automatic differentiation, in float64."""

    def __init__(self, sizes, chosen, cost, *, rows=7, seed=1, **options):
        self.rng = np.random.default_rng([seed, *map(len, chosen), len(cost)])
        self.net = Network(
            sizes, activation=chosen, cost=cost, seed=seed, **{"dtype": "float64"} | options
        )
        self.net.biases = [self.rng.standard_normal(b.shape) for b in self.net.biases]
        self.X = self.rng.standard_normal((rows, sizes[0])).astype(self.net.dtype).astype(float)
        targets = random_targets(cost, (rows, sizes[-1]), self.rng)
        self.Y = targets.astype(self.net.dtype).astype(float)
        self.w_b = [
            (w.astype(float), b.astype(float))
            for w, b in zip(self.net.weights, self.net.biases, strict=True)
        ]

    def outputs(self, X, w_b=None):
        a = anp.atleast_2d(X)
        for (w, b), sigma in zip(w_b or self.w_b, self.net.activations, strict=True):
            a = AUTOGRAD_ACTIVATIONS[sigma.name](anp.dot(a, w.T) + b)
        return a

    def costs(self, X, Y, w_b=None):
        """The sum of all rows' C_x."""
        return AUTOGRAD_COSTS[self.net.cost.name](self.outputs(X, w_b), Y)

    def jacobian(self, x):
        return autograd.jacobian(lambda x: self.outputs(x)[0])(x)

    def laplacian(self, x, w_b=None):
        """Σ_k ∂²a_j/∂x_k² of one row: the second derivatives along each input."""
        total = 0.0
        for k in range(len(x)):
            along = np.eye(len(x))[k]

            def slope(t, along=along):
                def at(t):
                    return self.outputs(x + t * along, w_b)[0]

                return autograd.jacobian(at)(t)

            total = total + autograd.jacobian(slope)(0.0)
        return total

    def along(self):
        return [
            (self.rng.standard_normal(w.shape), self.rng.standard_normal(b.shape))
            for w, b in self.w_b
        ]

    def hessian_vector_product(self, v):
        def inner(w_b):
            gradients = autograd.grad(lambda w_b: self.costs(self.X, self.Y, w_b))(w_b)
            return sum(
                anp.sum(g * d)
                for pair, other in zip(gradients, v, strict=True)
                for g, d in zip(pair, other, strict=True)
            ) / len(self.X)

        return autograd.grad(inner)(self.w_b)


def assert_near(got, expected, tolerance, what):
    """Within so much of the largest number there is."""
    expected = np.asarray(expected)
    assert got.shape == expected.shape, what
    largest = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest, err_msg=what)


def flatten(pairs):
    return np.concatenate([np.ravel(array) for pair in pairs for array in pair])


def check_all(right: Automatic) -> None:
    net, X, Y = right.net, right.X, right.Y
    tolerance = TOLERANCE[net.dtype.name]
    near = {"tolerance": tolerance}
    expected = np.array([autograd.grad(right.costs)(x, y[None]) for x, y in zip(X, Y, strict=True)])
    assert_near(net.input_gradients(X, Y), expected, what="∂C/∂x", **near)
    jacobian = np.array([right.jacobian(x) for x in X])
    assert_near(net.jacobian(X), jacobian, what="∂a/∂x", **near)
    last = net.sizes[-1] - 1
    assert_near(net.input_gradients(X, output=last), jacobian[:, last], what="∂a_j/∂x", **near)

    gradient = autograd.grad(lambda w_b, x, y: right.costs(x, y, w_b))
    samples = [gradient(right.w_b, x, y[None]) for x, y in zip(X, Y, strict=True)]
    got, norms = net.gradients(X, Y, per_sample=True), net.gradient_norms(X, Y)
    for l, (w, b) in enumerate(got):
        ws, bs = (np.array([sample[l][i] for sample in samples]) for i in (0, 1))
        assert_near(w, ws, what=f"∂C_x/∂w[{l}]", **near)
        assert_near(b, bs, what=f"∂C_x/∂b[{l}]", **near)
        squares = (ws**2).sum(axis=(1, 2)), (bs**2).sum(axis=1)
        assert_near(norms[:, l], np.sqrt(sum(squares)), what=f"norms of layer {l}", **near)
        for of, square in zip(("weights", "biases"), squares, strict=True):
            found = net.gradient_norms(X, Y, of=of)
            assert_near(found[:, l], np.sqrt(square), what=f"norms of {of} {l}", **near)

    v = right.along()
    found, exact = net.hessian_vector_product(X, Y, v), right.hessian_vector_product(v)
    assert [(w.shape, b.shape) for w, b in found] == [(w.shape, b.shape) for w, b in right.w_b]
    assert_near(flatten(found), flatten(exact), what="H v", **near)

    if net.sizes[0] > 1 or len(net.sizes) > 2:
        laplacian = np.array([right.laplacian(x) for x in X])
        scale = np.abs(jacobian).max()  # of a straight network there is none
        np.testing.assert_allclose(
            net.laplacian(X),
            laplacian,
            rtol=0,
            atol=tolerance * max(scale, np.abs(laplacian).max()),
        )


@pytest.mark.parametrize(("activation", "cost"), VALID_PAIRS)
def test_derivatives_of_every_output_pair(backend, activation, cost):
    chosen = ["tanh", "silu", activation]
    outputs = 4 if cost == "gaussian_nll" else 3
    check_all(Automatic([4, 5, 3, outputs], chosen, cost, rows=4, backend=backend))


@pytest.mark.parametrize("activation", HIDDEN)
def test_derivatives_of_every_hidden_activation(backend, activation):
    chosen = [activation, activation, "sigmoid"]
    check_all(Automatic([2, 5, 4, 3], chosen, "binary_cross_entropy", rows=4, backend=backend))


@pytest.mark.parametrize("sizes", [[5, 2], [2, 5], [1, 4, 1], [6, 3, 4, 2]])
def test_derivatives_forward_and_reverse(backend, sizes):
    chosen = ["softplus"] * (len(sizes) - 2) + ["sigmoid"]
    check_all(Automatic(sizes, chosen, "quadratic", rows=3, backend=backend))
    if sizes[-1] > 1:
        chosen[-1] = "softmax"
        check_all(Automatic(sizes, chosen, "quadratic", rows=3, backend=backend))


@pytest.mark.parametrize(("activation", "cost"), [COMMON_PAIRS[0], ("softmax", "poisson")])
def test_derivatives_in_float32(backend, activation, cost):
    chosen = ["tanh", "gelu", activation]
    check_all(Automatic([6, 12, 10, 3], chosen, cost, backend=backend, dtype="float32"))


def loss_of(rng, shape):
    """A loss of a and s that is no sum of one of each, and its derivatives."""
    c = rng.standard_normal(shape)

    def loss(rows, a, s):
        return (c[rows] * a * s * s + s).sum(), c[rows] * s * s, 2 * c[rows] * a * s + 1

    return loss


@pytest.mark.parametrize("activation", [*HIDDEN, "exponential"])
def test_gradients_of_a_laplacian(backend, activation):
    hidden = "tanh" if activation == "exponential" else activation
    right = Automatic(
        [2, 4, 3, 2], [hidden, hidden, activation], "quadratic", rows=3, backend=backend
    )
    if activation in ("relu", "leaky_relu", "identity"):  # some of a Laplacian is wanted
        right = Automatic(
            [2, 4, 3, 2], ["tanh", hidden, activation], "quadratic", rows=3, backend=backend
        )
    loss = loss_of(right.rng, (3, 2))

    def total(w_b):
        a = right.outputs(right.X, w_b)
        s = anp.array([right.laplacian(x, w_b) for x in right.X])
        return loss(slice(None), a, s)[0]

    value, got = right.net.laplacian_gradients(right.X, loss)
    assert value == pytest.approx(total(right.w_b), rel=1e-9)
    assert_near(flatten(got), flatten(autograd.grad(total)(right.w_b)), 1e-9, "∂L/∂w")


def test_hessians_are_symmetric_and_a_difference_of_gradients(backend):
    right = Automatic([4, 6, 3], ["elu", "softmax"], "categorical_cross_entropy", backend=backend)
    net, X, Y = right.net, right.X, right.Y
    u, v = right.along(), right.along()
    of_u, of_v = (net.hessian_vector_product(X, Y, d) for d in (u, v))
    assert flatten(u) @ flatten(of_v) == pytest.approx(flatten(v) @ flatten(of_u), rel=1e-10)

    def moved(step):
        other = Network([4, 6, 3], activation=["elu", "softmax"], cost=net.cost.name,
                        dtype="float64", backend=backend)  # fmt: skip
        other.weights = [w + step * d for (w, _), (d, _) in zip(right.w_b, v, strict=True)]
        other.biases = [b + step * d for (_, b), (_, d) in zip(right.w_b, v, strict=True)]
        return flatten(other.gradients(X, Y))

    assert_near(flatten(of_v), (moved(1e-5) - moved(-1e-5)) / 2e-5, 1e-8, "H v")


@pytest.mark.parametrize("scale", [30.0, 300.0])
@pytest.mark.parametrize(
    ("activation", "cost"), [pair for pair in VALID_PAIRS if pair[1] in WITH_POLES]
)
def test_curvature_where_outputs_saturate(activation, cost, scale):
    """R{δ} against the difference of exact δ: no pole, and no digits lost to 1 - a."""
    rng = np.random.default_rng(4)
    z, dz = scale * rng.standard_normal((9, 4)), rng.standard_normal((9, 4))
    if activation == "exponential":
        z = np.minimum(z, 20.0)
    y, h = random_targets(cost, z.shape, rng), 1e-4
    ahead, behind = (output_error(z + step * dz, y, activation, cost) for step in (h, -h))
    sigma = activations.get(activation)
    with np.errstate(all="ignore"):
        a = sigma.function(z)
        got = costs.output_tangent(z, a, y, sigma, costs.get(cost), dz)
    bound = 1e-9 + 1e-11 * np.abs(ahead).max() / h
    np.testing.assert_allclose(got, (ahead - behind) / (2 * h), rtol=1e-6, atol=bound)


def test_float32_is_as_near_as_plain_float32():
    """Errors against float64 beside those of automatic differentiation in float32."""
    right = Automatic([6, 20, 15, 3], ["tanh", "silu", "sigmoid"], "binary_cross_entropy",
                      rows=40, dtype="float32")  # fmt: skip
    exact = np.array([right.laplacian(x) for x in right.X]), right.hessian_vector_product
    v = [(w.astype("f4").astype(float), b.astype("f4").astype(float)) for w, b in right.along()]
    hv = flatten(right.hessian_vector_product(v))
    got = (
        right.net.laplacian(right.X),
        flatten(right.net.hessian_vector_product(right.X, right.Y, v)),
    )
    narrow = [(w.astype("f4"), b.astype("f4")) for w, b in right.w_b]
    right.X, right.Y, right.w_b = right.X.astype("f4"), right.Y.astype("f4"), narrow
    plain = flatten(right.hessian_vector_product([(w.astype("f4"), b.astype("f4")) for w, b in v]))
    ours, theirs = np.abs(got[1] - hv).max(), np.abs(plain - hv).max()
    assert ours <= 4 * max(theirs, np.finfo("f4").eps * np.abs(hv).max())
    assert np.abs(got[0] - exact[0]).max() <= 2e-6 * np.abs(exact[0]).max()


def test_rows_are_taken_some_at_a_time(backend):
    """As many rows as take several pieces, on one core and on all: the bits of each alone."""
    net = Network([3, 200, 2], activation=["tanh", "identity"], seed=2, backend=backend)
    rng = np.random.default_rng(0)
    rows = 3000 if backend == "numpy" else 40
    X, Y = rng.standard_normal((rows, 3)), rng.standard_normal((rows, 2))
    v = net.gradients(X[:5], Y[:5])
    sums = {
        "H v": lambda X, Y: flatten(net.hessian_vector_product(X, Y, v)) * len(X),
        "∂L": lambda X, Y: flatten(net.laplacian_gradients(X, lambda _, a, s: (0.0, a, s))[1]),
    }
    calls = sums | {
        "jacobian": lambda X, Y: net.jacobian(X),
        "laplacian": lambda X, Y: net.laplacian(X),
        "inputs": net.input_gradients,
        "norms": net.gradient_norms,
    }
    for name, call in calls.items():
        with threads.at_most(1):
            whole = call(X, Y)
        np.testing.assert_array_equal(call(X, Y), whole, name)
        parts = [call(X[rows], Y[rows]) for rows in (slice(rows // 3), slice(rows // 3, None))]
        together = sum(parts) if name in sums else np.concatenate(parts)
        np.testing.assert_allclose(
            together, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max(), err_msg=name
        )


def test_norms_form_no_gradient():
    net = Network([200, 300, 10], seed=1, backend="numpy")
    rng = np.random.default_rng(0)
    X, Y = rng.random((1000, 200), np.float32), rng.random((1000, 10), np.float32)
    net.gradient_norms(X, Y)
    tracemalloc.start()
    try:
        net.gradient_norms(X, Y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Its memory is the first call's. That is of activations and errors, and never of a gradient.
    assert peak < 1000 * 300 * 4
    assert peak < 1000 * 200 * 300 * 4 / 100


@pytest.mark.parametrize(
    "name", ["slopes", "tangent", "directions", "directions_error", "row_norms"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_passes_the_kernels_cases(name, dtype):
    found = [case for case in kernel_cases.CASES if case.name.partition("[")[0] == name]
    assert found
    for case in found:
        with np.errstate(all="ignore"):
            case.check(kernel_cases.Subject(NumpyBackend(dtype)))


SQUARE = dict(function=lambda z: z * z, derivative=lambda z: 2 * z)
QUARTIC = dict(function=lambda a, y: ((a - y) ** 4).sum(axis=1),
               gradient=lambda a, y: 4 * (a - y) ** 3)  # fmt: skip


def test_a_users_own(backend):
    """What is missing is named; what is given is used."""
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    bare, cost = Activation("square", **SQUARE), Cost("quartic", **QUARTIC)

    def network(sigma, cost):
        return Network(
            [3, 4, 2], activation=sigma, cost=cost, dtype="float64", seed=1, backend=backend
        )

    net = network(bare, cost)
    assert net.jacobian(X).shape == (5, 2, 3)
    for call in (net.laplacian, lambda X: net.hessian_vector_product(X, Y, net.gradients(X, Y))):
        with pytest.raises(
            ValueError, match=r"'square' has no second derivative.*second_derivative="
        ):
            call(X)
    curved = Activation("square", **SQUARE, second_derivative=lambda z: 2 + 0 * z)
    net = network(curved, cost)
    with pytest.raises(ValueError, match=r"'quartic' has no curvature.*curvature="):
        net.hessian_vector_product(X, Y, net.gradients(X, Y))
    with pytest.raises(ValueError, match="'square' has no third derivative"):
        net.laplacian_gradients(X, lambda _, a, s: (0.0, a, s))
    bent = Cost("quartic", **QUARTIC, curvature=lambda a, y, v: 12 * (a - y) ** 2 * v)
    for sigma in (curved, [curved, "softmax"]):
        net = network(sigma, bent)
        v = [
            (rng.standard_normal(w.shape), rng.standard_normal(b.shape))
            for w, b in zip(net.weights, net.biases, strict=True)
        ]
        moved = []
        for step in (1e-5, -1e-5):
            other = network(sigma, bent)
            other.weights = [w + step * d for w, (d, _) in zip(net.weights, v, strict=True)]
            other.biases = [b + step * d for b, (_, d) in zip(net.biases, v, strict=True)]
            moved.append(flatten(other.gradients(X, Y)))
        expected = (moved[0] - moved[1]) / 2e-5
        assert_near(flatten(net.hessian_vector_product(X, Y, v)), expected, 1e-6, "H v")
    # a = (w x)², summed: Δa_j = 2 Σ_k w_jk²
    flat = Network([3, 2], activation=curved, dtype="float64", seed=1, backend=backend)
    expected = np.broadcast_to(2 * (flat.weights[0] ** 2).sum(axis=1), (5, 2))
    np.testing.assert_allclose(flat.laplacian(X), expected, rtol=1e-12)


def test_functions_of_a_users_must_be_callable_and_keep_their_shape():
    with pytest.raises(TypeError, match="second_derivative of activation 'square'"):
        Activation("square", **SQUARE, second_derivative=2)
    with pytest.raises(TypeError, match="curvature of cost 'quartic'"):
        Cost("quartic", **QUARTIC, curvature=3)
    sigma = Activation("square", **SQUARE, second_derivative=lambda z: 2.0)
    with pytest.raises(ValueError, match="elementwise"):
        Network([2, 2], activation=sigma, backend="numpy").laplacian(XOR)
    cost = Cost("quartic", **QUARTIC, curvature=lambda a, y, v: 1.0)
    net = Network([2, 2], cost=cost, backend="numpy")
    with pytest.raises(ValueError, match="curvature of cost 'quartic' must have the shape"):
        net.hessian_vector_product(XOR, XOR, net.gradients(XOR, XOR))


def test_a_kink_is_flat_as_beside_it(backend):
    net = Network([2, 2, 1], activation=["relu", "identity"], dtype="float64", backend=backend)
    net.weights, net.biases = [np.eye(2), np.ones((1, 2))], [np.zeros(2), np.zeros(1)]
    assert not net.laplacian(XOR).any()
    np.testing.assert_array_equal(net.jacobian(XOR)[:, 0], (XOR > 0).astype(float))


def test_what_does_not_fit_is_refused():
    net = Network([2, 3, 2], seed=1, backend="numpy")
    v = net.gradients(XOR, XOR)
    for call, message in (
        (lambda: net.input_gradients(XOR), "needs Y, for the cost, or output, one of 2"),
        (lambda: net.input_gradients(XOR, XOR, output=0), "not both"),
        (lambda: net.input_gradients(XOR, output=2), r"output must be in \[0, 1\]"),
        (lambda: net.gradient_norms(XOR, XOR, of="w"), "unknown of 'w'"),
        (lambda: net.hessian_vector_product(XOR, XOR, v[:1]), r"v must be 2 pairs \(w, b\)"),
        (lambda: net.hessian_vector_product(XOR, XOR, v[::-1]), r"v\[0\]\[0\] must be \(3, 2\)"),
        (
            lambda: net.laplacian_gradients(XOR, lambda _, a, s: (0, a, 1.0)),
            "must give derivatives",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in (
        (lambda: net.gradients(XOR, XOR, per_sample=1), "per_sample must be True or False"),
        (lambda: net.laplacian_gradients(XOR, None), "loss must be callable"),
        (lambda: net.hessian_vector_product(XOR, XOR, 3.0), "v must be 2 pairs"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    softmax = Network([2, 2], activation="softmax", backend="numpy")
    with pytest.raises(ValueError, match="elementwise output, not softmax"):
        softmax.laplacian_gradients(XOR, lambda _, a, s: (0.0, a, s))
