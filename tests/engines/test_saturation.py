"""Where outputs are saturated, every engine learns the same, and goes on learning.

The rule stands in `costs`. `kernel_cases.error_of_saturated_outputs` holds BP1 of each kernel to
it; here are whole trainings.
"""

from __future__ import annotations

import numpy as np
import pytest

import reference
from backprop_gpu import Network, activations, costs
from reference import VALID_PAIRS, WITH_POLES, assert_close

PAIRS = [
    (sigma, cost)
    for sigma, cost in VALID_PAIRS
    if cost in WITH_POLES and not costs.collapses(activations.get(sigma), costs.get(cost))
]
SIZES, ROWS, STEPS, RATE = (4, 3), 10, 6, 0.05


def problem(cost: str, size: float, dtype: str) -> tuple[np.ndarray, ...]:
    """(X, Y, w, b): one output with z at + or - size, one at the other end, one in between."""
    rng = np.random.default_rng(7)
    X, w, b = (rng.standard_normal(shape) for shape in ((ROWS, 4), (3, 4), 3))
    X[:, 0] = np.where(np.arange(ROWS) % 3, 1.0, -1.0)
    w[:, 0] = size, -size, 0.0
    Y = rng.dirichlet(np.ones(3), ROWS)
    if cost == "poisson":
        Y[::2] *= 20
    elif cost == "binary_cross_entropy":
        Y[::2] = rng.integers(0, 2, (ROWS // 2, 3))
    X, Y, w, b = (array.astype(dtype) for array in (X, Y, w, b))
    return X, Y, w, b


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [30.0, 90.0, 200.0, 1000.0])
@pytest.mark.parametrize(("sigma", "cost"), PAIRS)
@pytest.mark.parametrize("backend", ["numpy", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_engines_learn_the_same(
    sigma: str, cost: str, size: float, dtype: str, backend: str
) -> None:
    X, Y, w_given, b_given = problem(cost, size, dtype)
    eps = float(np.finfo(dtype).eps)
    w, b = np.float64(w_given), np.float64(b_given)
    for _ in range(STEPS):
        found = reference.backpropagate([w], [b], [sigma], cost, X, Y, dtype)
        ((dw, db),) = found.gradients
        w, b = w - RATE * dw, b - RATE * db
    # Where σ is not flat δ is off by as much as z, whose error is of z's size.
    bound = 4 * STEPS * eps * RATE * (1 + size) * (1 + np.abs(found.delta[-1]).max())
    # What is learned is far more than the bound: an engine that stops would be seen.
    changes = np.abs(b - b_given)
    assert (changes > 30 * bound).any(), (changes, bound)

    losses = []
    for engine in ("layered", "resident"):
        net = Network(SIZES, activation=sigma, cost=cost, dtype=dtype, backend=backend)
        net.weights, net.biases = [w_given], [b_given]
        history = net.fit(X, Y, epochs=STEPS, batch_size=ROWS, learning_rate=RATE, engine=engine)
        what = f"{net.backend}, {engine}"
        assert net.plan.engine == engine
        assert_close(net.biases[0], b, bound + 8 * STEPS * eps * np.abs(b), f"b, {what}")
        assert_close(net.weights[0], w, 3 * bound + 8 * STEPS * eps * np.abs(w), f"w, {what}")
        losses.append(history.loss)
    for loss in losses[1:]:  # ln(1 - a) of an a near 1 has few digits, in any engine
        np.testing.assert_allclose(loss, losses[0], rtol=1e-3)
