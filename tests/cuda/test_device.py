"""What only a device can show: streams, captured steps, memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backprop_gpu import Activation, Callback, Cost, Network, activations, equations
from machine import device_runtime

pytestmark = pytest.mark.gpu


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((301, 33)), rng.integers(0, 5, 301)


def trained(backend: str = "cuda", **options: Any) -> Network:
    X, y = problem()
    fit = {"epochs": 3, "batch_size": 32, "learning_rate": 0.1, "optimizer": "momentum"}
    fit |= {key: options.pop(key) for key in list(options) if key in ("callbacks", "optimizer")}
    options = {"activation": ["tanh", "sigmoid"], "seed": 3} | options
    net = Network([33, 17, 5], backend=backend, **options)
    net.fit(X, y, **fit)
    return net


def assert_same(nets: list[Network], bound: float) -> None:
    for got, expected in zip(nets[0].weights, nets[1].weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound)


class EveryBatch(Callback):
    def on_batch_end(self, network: Network, batch: int) -> None: ...


def test_captured_steps_give_the_bits_of_launched_ones() -> None:
    captured, launched = trained(), trained(callbacks=[EveryBatch()])
    assert captured.plan.captured
    assert not launched.plan.captured
    assert_same([captured, launched], 0.0)


def test_a_captured_step_may_hold_cublas() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.random((1000, 784)), rng.integers(0, 10, 1000)
    nets = []
    for callbacks in ([], [EveryBatch()]):
        # Tiles are for small products and short sums: cuBLAS is the planner's for one of these.
        net = Network([784, 512, 10], backend="cuda", seed=3)
        net.fit(
            X, y, epochs=2, batch_size=250, learning_rate=0.1, engine="layered", callbacks=callbacks
        )
        nets.append(net)
    assert nets[0].plan.captured
    assert "cublas (" in str(nets[0].plan)
    assert_same(nets, 0.0)


def test_another_stream() -> None:
    """Where the work of a caller is queued, memory that is made and given back there included."""
    runtime = device_runtime()
    w, b, a = (runtime.array(x) for x in (np.ones((4, 3)), np.zeros(4), np.ones((2, 3))))
    for _ in range(3):
        with runtime.on(runtime.cuda_device.create_stream()):
            z, _ = equations.forward(w, b, a)
            copy = runtime.empty(z.shape, z.dtype)
            runtime.copy(z, copy)
        np.testing.assert_array_equal(runtime.to_numpy(copy), np.full((2, 4), 3.0))


def test_no_memory_is_made_in_a_capture() -> None:
    runtime = device_runtime()
    with pytest.raises(RuntimeError, match="memory cannot be made while steps are captured"):
        runtime.capture(lambda: runtime.empty(3, np.float32))
    assert_same([trained(), trained()], 0.0)  # and all goes on


def test_as_numpy_does() -> None:
    assert_same([trained(dtype="float64"), trained("numpy", dtype="float64")], 1e-12)


def test_an_activation_written_in_python(registries: None) -> None:
    swish = Activation(
        "swish",
        lambda z: z / (1 + np.exp(-z)),
        lambda z: (1 + np.exp(-z) + z * np.exp(-z)) / (1 + np.exp(-z)) ** 2,
    )
    activations.register(swish)
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-12)):
        options: dict[str, Any] = {"activation": ["swish", "sigmoid"], "dtype": dtype}
        assert_same([trained(**options), trained("numpy", **options)], bound)


def test_a_users_cost_runs_on_device_arrays() -> None:
    quartic = Cost(
        "quartic", lambda a, y: ((a - y) ** 4).sum(axis=1), lambda a, y: 4 * (a - y) ** 3
    )
    nets = []
    for backend in ("cuda", "numpy"):
        X, y = problem()
        net = Network([33, 17, 5], cost=quartic, backend=backend, dtype="float64", seed=3)
        net.fit(X, np.eye(5)[y], epochs=2, batch_size=32, learning_rate=0.1)
        nets.append(net)
    assert not nets[0].plan.captured
    assert_same(nets, 1e-12)


def test_training_again_takes_no_more_memory() -> None:
    used = device_runtime().memory.attributes
    trained()
    before = used.used_mem_current
    for _ in range(3):
        trained()
    assert used.used_mem_current <= before + (1 << 20)
