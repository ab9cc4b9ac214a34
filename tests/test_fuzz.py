"""Random calls and random networks: results as the reference has them, training that runs."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzzed_equations
from backprop_gpu import SGD, Adam, AdamW, Network, activations, backends
from reference import COMMON_PAIRS, WITH_POLES, backpropagate

HIDDEN = [name for name in activations.names() if name not in ("softmax", "exponential")]
OPTIMIZERS = st.one_of(
    st.sampled_from(["sgd", "momentum", "nesterov", "adam", "adamw"]),
    st.builds(
        SGD,
        momentum=st.sampled_from([0.0, 0.5]),
        l1=st.sampled_from([0.0, 0.01]),
        l2=st.sampled_from([0.0, 0.1]),
        clip_norm=st.sampled_from([None, 1.0]),
        clip_value=st.sampled_from([None, 0.1]),
        max_norm=st.sampled_from([None, 0.5]),
    ),
    st.builds(Adam, l2=st.sampled_from([0.0, 0.1]), clip_norm=st.sampled_from([None, 1.0])),
    st.builds(AdamW, weight_decay=st.sampled_from([0.0, 0.1])),
)


@st.composite
def problems(draw, dtypes=("float32", "float64")):
    sizes = draw(st.lists(st.integers(1, 20), min_size=2, max_size=5))
    output, cost = draw(st.sampled_from(COMMON_PAIRS))
    if output == "softmax":
        sizes[-1] += 1  # of one output it is always 1, and refused
    chosen = [*(draw(st.sampled_from(HIDDEN)) for _ in sizes[2:]), output]
    rows = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    X = rng.standard_normal((rows, sizes[0]))
    shape = rows, sizes[-1]
    if cost == "categorical_cross_entropy":
        Y = rng.dirichlet(np.ones(sizes[-1]), rows)
    elif cost not in WITH_POLES:
        Y = rng.standard_normal(shape)
    else:
        Y = rng.uniform(0, 1, shape)
    dtype = draw(st.sampled_from(dtypes))
    seed = draw(st.integers(0, 1000))
    return {
        "sizes": sizes,
        "activation": chosen,
        "cost": cost,
        "dtype": dtype,
        "seed": seed,
    }, X.astype(dtype), Y.astype(dtype)  # fmt: skip


def make(described, backend):
    described = dict(described)
    return Network(described.pop("sizes"), backend=backend, **described)


@given(problem=fuzzed_equations.problems())
@settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_equations(backend, problem):
    fuzzed_equations.check(problem, backends.create(backend, np.dtype(problem.dtype)))


@given(problem=problems())
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_gradients(backend, problem):
    described, X, Y = problem
    net = make(described, backend)
    names = [activation.name for activation in net.activations]
    if described["cost"] == "categorical_cross_entropy" and described["dtype"] == "float32":
        Y = np.float32(Y / Y.sum(axis=1, keepdims=True))
    right = backpropagate(net.weights, net.biases, names, net.cost.name, X, Y)
    eps = float(np.finfo(net.dtype).eps)
    assert net.loss(X, Y) == pytest.approx(right.cost, rel=2e4 * eps, abs=1e3 * eps)
    tolerance = 1e-10 if net.dtype == np.float64 else 2e-3
    largest = max(np.abs(array).max() for pair in right.gradients for array in pair)
    for (w, b), (dw, db) in zip(net.gradients(X, Y), right.gradients, strict=True):
        for got, expected in ((w, dw), (b, db)):
            assert got.shape == expected.shape
            assert got.dtype == net.dtype
            scale = max(np.abs(expected).max(), 1e-3 * largest)
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def runs_away(described, X, Y, arguments):
    """Whether it is the training that diverges, and no kernel: in float64 on NumPy it does so too.

    e^z may leave the range of float32 in a step, and a few unbounded σ in two epochs.
    """
    net = make(described | {"dtype": "float64"}, "numpy")
    with np.errstate(all="ignore"):
        try:
            history = net.fit(X, Y, **arguments)
        except FloatingPointError:
            return True
        largest = max(np.abs(net.predict(X)).max(), *np.abs(history.loss))
    return not largest < 1e12


@given(
    problem=problems(),
    optimizer=OPTIMIZERS,
    batch=st.integers(1, 40),
    rate=st.sampled_from([1e-3, 1e-2]),
)
@settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_training_runs(backend, problem, optimizer, batch, rate):
    described, X, Y = problem
    arguments = {
        "epochs": 2,
        "batch_size": min(batch, len(X)),
        "learning_rate": rate,
        "optimizer": optimizer,
        "validation_data": (X, Y),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nets = [make(described, backend) for _ in range(2)]
        try:
            for net in nets:
                net.fit(X, Y, **arguments)
        except FloatingPointError:
            assert runs_away(described, X, Y, arguments)
    for w, v in zip(nets[0].weights, nets[1].weights, strict=True):
        assert np.isfinite(w).all()
        if len(nets[1].history or ()) == 2:
            np.testing.assert_array_equal(w, v)
    if not np.isfinite(nets[0].predict(X)).all():
        assert runs_away(described, X, Y, arguments)


@pytest.mark.parametrize(
    "way",
    [("numpy", "resident"), pytest.param(("cuda", "layered"), marks=pytest.mark.gpu)],
    ids=str,
)
@given(
    problem=problems(dtypes=["float64"]),
    optimizer=OPTIMIZERS,
    batch=st.integers(1, 40),
)
@settings(deadline=None, max_examples=40)
def test_every_way_to_train_gives_the_same_weights(way, problem, optimizer, batch):
    """Engines and backends differ in the order of their sums, and in nothing else."""
    described, X, Y = problem
    results = []
    for backend, engine in (("numpy", "layered"), way):
        net = make(described, backend)
        try:
            net.fit(
                X, Y, epochs=2, batch_size=min(batch, len(X)), learning_rate=1e-3,
                optimizer=optimizer, engine=engine,
            )  # fmt: skip
        except FloatingPointError:
            assert "exponential" in described["activation"]
            return
        results.append([*net.weights, *net.biases])
    for got, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


@given(problem=problems(dtypes=["float32"]), size=st.sampled_from([1e3, 1e8, 1e30, 1e-30, 1e-44]))
@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_data_of_any_size_gives_no_warning(backend, problem, size):
    """Large data may overflow: `fit` says so in an error of its own, `predict` in a warning."""
    described, X, Y = problem
    X = X * np.float32(size)
    net = make(described, backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the outputs of .* are NaN", RuntimeWarning)
        net.predict(X)
        net.loss(X, Y)
        net.gradients(X, Y)
        with contextlib.suppress(FloatingPointError):  # test_training has what it says
            net.fit(X, Y, epochs=1, batch_size=min(4, len(X)), learning_rate=1e-3)
    assert all(np.isfinite(array).all() for array in (*net.weights, *net.biases))
