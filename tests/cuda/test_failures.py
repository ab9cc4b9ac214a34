"""The n-th call of a driver fails, for every n of a training: what is left is whole, and said."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Network
from backprop_gpu.testing import standin
from backprop_gpu.testing.standin import Standin
from machine import device_runtime

pytestmark = pytest.mark.gpu
OUT_OF_MEMORY, LAUNCH_FAILED, INVALID_VALUE = 2, 719, 1
EPOCHS = 3


@pytest.fixture
def driver() -> Any:
    running = standin.running()
    if running is None:
        pytest.skip("only a stand-in fails on command")
    device_runtime()
    yield running
    running.fail_no_more()
    gc.collect()
    running.reset()  # which a device that is lost needs


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((70, 12)), rng.integers(0, 4, 70)


def alive(driver: Standin) -> dict[str, int]:
    """But for kernels, which stay loaded."""
    return {kind: count for kind, count in driver.live().items() if kind != "library"}


def trained(engine: Any, epochs: int = EPOCHS, after: Any = None) -> tuple[Network, list[Any]]:
    """A network, and its weights after each epoch; what goes wrong after `after` is raised."""
    X, y = problem()
    net = Network([12, 6, 4], backend="cuda", dtype="float64", seed=1)
    seen = [net.weights]
    if after is not None:
        after()
    net.fit(
        X, y, epochs=epochs, batch_size=16, learning_rate=0.3, optimizer="momentum", engine=engine,
        callbacks=[lambda net, history: seen.append(net.weights)],
    )  # fmt: skip
    return net, seen


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize(
    ("what", "error"),
    [("allocation", OUT_OF_MEMORY), ("launch", OUT_OF_MEMORY), ("copy", INVALID_VALUE)],
)
def test_the_nth_call_fails(driver: Standin, engine: Any, what: Any, error: int) -> None:
    _, whole = trained(engine)
    gc.collect()
    live = alive(driver)
    before = driver.count(what)
    trained(engine)
    calls = driver.count(what) - before
    assert calls > 0
    reasons: list[str] = []
    for n in range(1, calls + 1):
        X, y = problem()
        net = Network([12, 6, 4], backend="cuda", dtype="float64", seed=1)
        epochs: list[Any] = []
        driver.fail(what, n, error)
        try:
            net.fit(
                X, y, epochs=EPOCHS, batch_size=16, learning_rate=0.3, optimizer="momentum",
                engine=engine, callbacks=[lambda net, history, epochs=epochs: epochs.append(1)],
            )  # fmt: skip
        except Exception as reason:
            reasons.append(str(reason))
        driver.fail_no_more()
        got = net.weights
        for mine, expected in zip(got, whole[len(epochs)], strict=True):
            np.testing.assert_array_equal(mine, expected, f"{what} {n} of {calls}")
        # And it goes on as if nothing had been.
        net.fit(X, y, epochs=1, batch_size=16, learning_rate=0.3, engine=engine)
        del net, got
    assert len(reasons) >= calls // 2
    assert all("CUDA" in reason or "memory" in reason for reason in reasons), set(reasons)
    gc.collect()
    device_runtime().synchronize()
    assert alive(driver) == live


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_a_device_that_is_lost(driver: Standin, engine: Any) -> None:
    """After a failed launch nothing works any more, and that is what is said."""
    with pytest.raises(Exception, match="CUDA_ERROR_LAUNCH_FAILED"):
        trained(engine, after=lambda: driver.fail("launch", 3, LAUNCH_FAILED))
    with pytest.raises(Exception, match="CUDA_ERROR"):
        trained(engine)
