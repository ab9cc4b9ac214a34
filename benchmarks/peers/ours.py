"""This package, with the engine that `fit` takes where training is long."""

from __future__ import annotations

import numpy as np

from ..workloads import Arrays, Problem, Workload
from . import Device

#: Of a training run that repays every preparation.
_LONG = 1_000_000


class Ours:
    name = "ours"
    label = "backprop_gpu"

    def obstacle(self, workload: Workload, device: Device) -> str | None:
        from backprop_gpu import backends

        return backends.Obstacles()["cuda"] if device == "cuda" else None

    def start(self, problem: Problem, device: Device) -> OursTrainer:
        return OursTrainer(problem, device)


class OursTrainer:
    """`fit` shuffles for itself, and the order is given here: so the engine is driven directly,
    as `fit` drives it, without its checks and history.
    """

    def __init__(self, problem: Problem, device: Device) -> None:
        from backprop_gpu import Network, optimizers, planning
        from backprop_gpu.engines.layered import Hyperparameters

        workload, steps = problem.workload, problem.steps
        self.network = net = Network(
            workload.sizes,
            activation=workload.activations,
            cost=workload.cost,
            backend="cuda" if device == "cuda" else "numpy",
            seed=0,
        )
        self.backend = net._backend
        run = planning.Training(
            len(problem.X), _LONG, workload.batch, obstacle=net._resident_obstacle()
        )
        self.plan = net._make_plan(run)
        self.engine = net._engine_for(self.plan)
        self.X, self.Y = self.backend.asarray(problem.X), self.backend.asarray(problem.Y)
        self.order = problem.order.ravel()
        #: All parameters of each network. There is no engine for many yet: they take turns.
        self.members = []
        for member in range(workload.members):
            net.weights = [w[member] for w in problem.weights]
            net.biases = [b[member] for b in problem.biases]
            self.members.append(self.backend.asarray(net._get_flat()))
        if workload.members == 1:
            self.members = [net._parameters.flat]

        def hyperparameters(eta: float) -> Hyperparameters:
            sgd = optimizers.get("sgd")
            return Hyperparameters(workload.batch, sgd, sgd.coefficients(np.full(steps, eta), 0))

        self.hyperparameters = hyperparameters(problem.learning_rate)
        # A run with η = 0 trains nothing, but leaves all compiled and captured. What is captured
        # is for runs of this length; the CPU captures nothing, and a step is enough.
        order = self.order if device == "cuda" else self.order[: workload.batch]
        self.engine.run_epoch(net._parameters, (), self.X, self.Y, order, hyperparameters(0.0))

    def run(self) -> None:
        parameters, data = self.network._parameters, (self.X, self.Y, self.order)
        for member in self.members:
            if member is not parameters.flat:
                self.backend.copy(member, parameters.flat)
            # Returns the costs, and so waits for the device.
            self.engine.run_epoch(parameters, (), *data, self.hyperparameters)
            if member is not parameters.flat:
                self.backend.copy(parameters.flat, member)

    def parameters(self) -> tuple[Arrays, Arrays]:
        views = [self.network._layout.views(self.backend.to_numpy(flat)) for flat in self.members]
        weights, biases = zip(*views, strict=True)
        return (
            [np.stack(layer) for layer in zip(*weights, strict=True)],
            [np.stack(layer) for layer in zip(*biases, strict=True)],
        )
