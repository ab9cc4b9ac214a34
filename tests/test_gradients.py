"""`Network.gradients` against automatic differentiation, and the demon of `check_gradients`."""

from __future__ import annotations

import numpy as np
import pytest

from backprop_gpu import Activation, Cost, Network, activations, costs
from reference import (
    COMMON_PAIRS,
    INVALID_PAIRS,
    VALID_PAIRS,
    WITH_POLES,
    backpropagate,
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
