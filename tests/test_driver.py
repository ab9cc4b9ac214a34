"""`driver.Driver`: epochs in the caller's order, Σ w² before every step, clipped costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backprop_gpu import Network, costs, optimizers
from backprop_gpu.driver import Driver

ROWS, SIZES = 61, (5, 9, 4)


def problem(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    X = rng.random((ROWS, SIZES[0])).astype(dtype)
    return X, np.eye(SIZES[-1], dtype=dtype)[rng.integers(0, SIZES[-1], ROWS)]


def network(dtype: Any, backend: str, output: str = "softmax", scale: float = 1.0) -> Network:
    kind = {
        "softmax": costs.CategoricalCrossEntropy,
        "sigmoid": costs.BinaryCrossEntropy,
    }[output]
    net = Network(
        SIZES, activation=["tanh", output], cost=kind(clipped=True), dtype=dtype,
        backend=backend, seed=2,
    )  # fmt: skip
    net.weights = [w * scale for w in net.weights]
    return net


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("batch", [7, 61])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_the_squares_of_the_weights_before_each_step(engine: str, batch: int, rule: str) -> None:
    X, Y = problem("float64")
    net, followed = network("float64", "numpy"), network("float64", "numpy")
    optimizer, steps = optimizers.get(rule), -(-ROWS // batch)
    order = np.random.default_rng(0).permutation(ROWS)
    driver = Driver(net, X, Y, epochs=1, batch_size=batch, optimizer=optimizer, engine=engine,
                    squares=True)  # fmt: skip
    squares = np.full(steps, np.nan)
    driver.run(order, 0.1, squares=squares)
    driver.close()
    # The same, a step a call.
    stepwise = Driver(followed, X, Y, epochs=1, batch_size=batch, optimizer=optimizer,
                      engine="layered")  # fmt: skip
    expected = []
    for begin in range(0, ROWS, batch):
        expected.append(sum(float((w**2).sum()) for w in followed.weights))
        stepwise.run(order[begin : begin + batch], 0.1)
    np.testing.assert_allclose(squares, expected, rtol=1e-13)
    np.testing.assert_allclose(net._get_flat(), followed._get_flat(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_clipped_cost_is_scikit_learns(engine: str, dtype: str, output: str) -> None:
    from sklearn.metrics import log_loss

    X, Y = problem(dtype)
    net = network(dtype, "numpy", output, scale=300.0)  # so that outputs are 0 and 1
    a = net.predict(X)
    assert ((a < np.finfo(dtype).eps).any(axis=1) & (a > 0.5).any(axis=1)).any()
    driver = Driver(net, X, Y, epochs=1, batch_size=ROWS, optimizer=optimizers.get("sgd"),
                    engine=engine)  # fmt: skip
    found = driver.run(np.arange(ROWS), 0.01)
    if output == "softmax":
        expected = log_loss(Y.argmax(axis=1), a.astype(dtype))
    else:
        expected = sum(log_loss(y, p, labels=[0, 1]) for y, p in zip(Y.T, a.T, strict=True))
    np.testing.assert_allclose(found, [expected], rtol=200 * float(np.finfo(dtype).eps))


def test_orders_and_penalties_are_the_callers() -> None:
    X, Y = problem("float64")
    found = {}
    for name, order, l2 in (
        ("there", np.arange(20), 0.0),
        ("and back", np.arange(20)[::-1], 0.0),
        ("penalised", np.arange(20), 0.5),
    ):
        net = network("float64", "numpy")
        driver = Driver(net, X, Y, epochs=1, batch_size=10, optimizer=optimizers.SGD(),
                        engine="resident")  # fmt: skip
        costs = driver.run(order, np.array([0.1, 0.2]), optimizer=optimizers.SGD(l2=l2))
        assert driver.step == 2
        found[name] = costs, net.weights[1]
    assert found["there"][0][0] != found["and back"][0][0]
    # One step with l2 more takes η l2 w more away; the second starts from there.
    assert np.abs(found["penalised"][1]).sum() < np.abs(found["there"][1]).sum()


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("backend", ["numpy", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_adams_moments_keep_the_digits_of_float32(engine: str, backend: str) -> None:
    """1 - β2 must not be taken from a rounded β2: it would be off by 1.3e-5."""
    X, Y = problem("float32")
    net = network("float32", backend)
    g = net.gradients(X, Y)
    driver = Driver(net, X, Y, epochs=10**6, batch_size=ROWS, optimizer=optimizers.get("adam"),
                    engine=engine)  # fmt: skip
    driver.run(np.arange(ROWS), 1e-3)
    m, v = (net._layout.views(net._backend.to_numpy(slot))[0] for slot in driver.slots)
    for l, (gradient, _) in enumerate(g):
        np.testing.assert_allclose(m[l], 0.1 * gradient, rtol=2e-6, atol=1e-9)
        large = np.abs(gradient) > 1e-4  # of the others the gradient's own rounding is seen
        np.testing.assert_allclose(v[l][large], 0.001 * np.float64(gradient[large]) ** 2, rtol=6e-6)
