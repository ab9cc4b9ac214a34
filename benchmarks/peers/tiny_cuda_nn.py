"""tiny-cuda-nn: named as absent, with the reason."""

from __future__ import annotations

from ..workloads import Problem, Workload
from . import Device, Trainer


class TinyCudaNN:
    """Its networks, CutlassMLP and FullyFusedMLP, have no biases, and compute in float16. Nothing
    that it trains has the parameters of a workload here, so nothing could be compared.
    """

    name = "tinycudann"
    label = "tiny-cuda-nn"

    def obstacle(self, workload: Workload, device: Device) -> str | None:
        return "its networks have no biases and compute in float16: they are not the workload's"

    def start(self, problem: Problem, device: Device) -> Trainer:
        raise NotImplementedError(self.obstacle(problem.workload, device))
