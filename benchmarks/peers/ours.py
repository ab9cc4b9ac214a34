"""This package, with the engine that `fit` takes where training is long."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..workloads import Arrays, ProblemInstance, Workload
from . import DeviceType

if TYPE_CHECKING:
    from backprop_gpu.engines import Member

#: Of a training run that repays every preparation.
_LONG = 1_000_000


class Ours:
    name = "ours"
    label = "backprop_gpu"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        from backprop_gpu import backends

        return backends.Obstacles()["cuda"] if device == "cuda" else None

    def start(self, problem: ProblemInstance, device: DeviceType) -> OursTrainer:
        return OursTrainer(problem, device)


class OursTrainer:
    """`fit` shuffles for itself, and the order is given here: so the engine is driven directly,
    as `fit` drives it, without its checks and history.
    """

    def __init__(self, problem: ProblemInstance, device: DeviceType) -> None:
        from backprop_gpu import optimizers, planning
        from backprop_gpu.engines import Hyperparameters, Member
        from backprop_gpu.model import Model
        from backprop_gpu.parameters import Parameters

        workload, steps = problem.workload, problem.steps
        self.model = model = Model(
            workload.sizes,
            activation=workload.activations,
            cost=workload.cost,
            backend="cuda" if device == "cuda" else "numpy",
        )
        self.backend, layout = model.backend, model.layout
        run = planning.Run(len(problem.X), _LONG, workload.batch, members=workload.members)
        self.plan = model.plan(run)
        self.engine = model.engine(self.plan)
        self.X, self.Y = self.backend.asarray(problem.X), self.backend.asarray(problem.Y)
        order = problem.order.ravel()
        sgd = optimizers.get("sgd")

        def hyperparameters(eta: float) -> Hyperparameters:
            return Hyperparameters(workload.batch, sgd, sgd.coefficients(np.full(steps, eta), 0))

        #: All networks' parameters, a row each.
        self.flat = self.backend.asarray(
            np.stack([
                layout.flat((w[i] for w in problem.weights), (b[i] for b in problem.biases), "f4")
                for i in range(workload.members)
            ])
        )  # fmt: skip
        self.members = [
            Member(Parameters(layout, row), (), order, hyperparameters(problem.learning_rate))
            for row in self.flat
        ]
        # A run with η = 0 trains nothing, but leaves all compiled and captured. What is captured
        # is for runs of this length; the CPU captures nothing, and a step is enough.
        short = order if device == "cuda" else order[: workload.batch]
        self._run(
            [replace(m, order=short, hyperparameters=hyperparameters(0.0)) for m in self.members]
        )

    def run(self) -> None:
        self._run(self.members)

    def _run(self, members: list[Member]) -> None:
        # Returns the costs, and so waits for the device.
        if len(members) > 1:
            self.engine.run_members(members, self.X, self.Y)
            return
        self.engine.run_epoch(members[0], self.X, self.Y)

    def parameters(self) -> tuple[Arrays, Arrays]:
        views = [self.model.layout.views(flat) for flat in self.backend.to_numpy(self.flat)]
        weights, biases = zip(*views, strict=True)
        return (
            [np.stack(layer) for layer in zip(*weights, strict=True)],
            [np.stack(layer) for layer in zip(*biases, strict=True)],
        )
