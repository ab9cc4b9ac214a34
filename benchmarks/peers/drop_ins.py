"""Our drop-in replacements, at work where the peers that they replace are."""

from __future__ import annotations

from typing import Any

from ..workloads import ProblemInstance, Workload
from . import DeviceType
from .ours import Ours
from .scikit_learn import ScikitLearn, ScikitLearnTrainer
from .torch_eager import TorchEager, TorchTrainer


class OurEstimators(ScikitLearn):
    name = "ours.estimators"
    label = "our MLPClassifier"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        return Ours().obstacle(workload, device)

    def start(self, problem: ProblemInstance, device: DeviceType) -> ScikitLearnTrainer:
        return OurEstimatorsTrainer(problem, "cuda" if device == "cuda" else "numpy")


class OurEstimatorsTrainer(ScikitLearnTrainer):
    def __init__(self, problem: ProblemInstance, backend: str) -> None:
        self.backend = backend
        super().__init__(problem)

    def new_model(self, classes: bool, **settings: Any) -> Any:
        from ... import MLPClassifier, MLPRegressor

        return (MLPClassifier if classes else MLPRegressor)(backend=self.backend, **settings)

    @property
    def plan(self) -> str:
        return str(self.models[0].plan_)


class OurModule(TorchEager):
    name = "ours.torch"
    label = "our torch.MLP"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        if workload.members > 1:
            return "under torch.func's transforms it is an nn.Sequential"
        return super().obstacle(workload, device)

    def start(self, problem: ProblemInstance, device: DeviceType) -> TorchTrainer:
        return OurModuleTrainer(problem, device)


class OurModuleTrainer(TorchTrainer):
    def new_model(self, workload: Workload) -> Any:
        from ...torch import MLP

        # The softmax is part of the cost.
        return MLP(workload.sizes, [*workload.activations[:-1], "identity"], device="meta")

    @property
    def plan(self) -> str:
        return self.model.layer_by_layer or "one function to autograd"
