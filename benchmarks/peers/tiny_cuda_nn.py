"""tiny-cuda-nn: named as absent, with the reason."""

from __future__ import annotations

from ..workloads import ProblemInstance, Workload
from . import DeviceType, PeerTrainer


class TinyCudaNN:
    """Its networks, CutlassMLP and FullyFusedMLP, have no biases, and compute in float16. Nothing
    that it trains has the parameters of a workload here, so nothing could be compared.
    """

    name = "tinycudann"
    label = "tiny-cuda-nn"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        return "its networks have no biases and compute in float16: they are not the workload's"

    def start(self, problem: ProblemInstance, device: DeviceType) -> PeerTrainer:
        raise NotImplementedError(self.obstacle(problem.workload, device))
