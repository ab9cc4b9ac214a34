"""JAX: all steps in one compiled function, a scan over the order of the rows."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..workloads import Arrays, ProblemInstance, Workload
from . import DeviceType, absent

Array = Any


class JaxScan:
    name = "jax"
    label = "JAX jit + scan"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        if reason := absent("jax", "JAX"):
            return reason
        try:
            _import_jax().devices(device)
        except RuntimeError:
            return f"JAX finds no {device} device"
        return None

    def start(self, problem: ProblemInstance, device: DeviceType) -> JaxTrainer:
        return JaxTrainer(problem, device)


def _import_jax() -> Any:
    # Else it takes most of the device's memory at once, also from the other libraries.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    return jax


class JaxTrainer:
    def __init__(self, problem: ProblemInstance, device: DeviceType) -> None:
        self.jax = jax = _import_jax()
        workload, eta = problem.workload, problem.learning_rate
        hidden = jax.nn.sigmoid if workload.classes else jax.nn.relu

        def cost(parameters: Any, x: Array, y: Array) -> Array:
            a = x
            for w, b in parameters[:-1]:
                a = hidden(a @ w.T + b)
            w, b = parameters[-1]
            z = a @ w.T + b
            if workload.classes:
                return -(y * jax.nn.log_softmax(z)).sum(axis=1).mean()
            return 0.5 * ((z - y) ** 2).sum(axis=1).mean()

        def train(parameters: Any, X: Array, Y: Array, order: Array) -> Any:
            def step(parameters: Any, rows: Array) -> tuple[Any, None]:
                gradients = jax.grad(cost)(parameters, X[rows], Y[rows])
                return jax.tree.map(lambda p, g: p - eta * g, parameters, gradients), None

            return jax.lax.scan(step, parameters, order)[0]

        self.one = workload.members == 1
        if not self.one:
            train = jax.vmap(train, in_axes=(0, None, None, None))

        place = jax.devices(device)[0]
        arrays = (problem.X, problem.Y, problem.order.astype(np.int32))
        self.data = tuple(jax.device_put(array, place) for array in arrays)
        #: [(w, b), …]
        self.state = [
            jax.device_put((w[0], b[0]) if self.one else (w, b), place)
            for w, b in zip(problem.weights, problem.biases, strict=True)
        ]
        # By default products of float32 on a GPU may be TF32.
        with jax.default_matmul_precision("float32"):
            lowered = jax.jit(train, donate_argnums=0).lower(self.state, *self.data)
        self.train = lowered.compile()

    def run(self) -> None:
        self.state = self.jax.block_until_ready(self.train(self.state, *self.data))

    def parameters(self) -> tuple[Arrays, Arrays]:
        weights, biases = (
            [np.array(array)[None] if self.one else np.array(array) for array in arrays]
            for arrays in zip(*self.state, strict=True)
        )
        return weights, biases
