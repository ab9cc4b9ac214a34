"""PyTorch with whole steps captured in a CUDA graph."""

from __future__ import annotations

from ..workloads import ProblemInstance, Workload
from . import DeviceType
from .torch_eager import TorchEager, TorchTrainer


class TorchGraph(TorchEager):
    name = "torch.graph"
    label = "PyTorch CUDA graph"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        if device == "cpu":
            return "it runs on a CUDA device only"
        return super().obstacle(workload, device)

    def start(self, problem: ProblemInstance, device: DeviceType) -> TorchTrainer:
        return GraphTrainer(problem, device)


class TorchGraphTF32(TorchGraph):
    """Its products round what they read to TF32: ten bits of fraction, as tensor cores take it."""

    name = "torch.graph.tf32"
    label = "PyTorch CUDA graph, TF32"
    bound = 1e-2

    def start(self, problem: ProblemInstance, device: DeviceType) -> TorchTrainer:
        return GraphTrainer(problem, device, precision="high")


class GraphTrainer(TorchTrainer):
    def __init__(
        self, problem: ProblemInstance, device: DeviceType, precision: str = "highest"
    ) -> None:
        super().__init__(problem, device)
        self.torch.set_float32_matmul_precision(precision)
        cuda = self.torch.cuda
        # The step's number is on the device too, so that a step is one launch and no copies.
        self.number = self.torch.zeros(1, dtype=self.torch.int64, device=device)

        # As PyTorch asks for: some steps beside the main stream, then the capture.
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(3):
                self.number.zero_()
                self.next_step()
        cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad()  # so that the gradients are of the graph's own memory
        self.graph = cuda.CUDAGraph()
        with cuda.graph(self.graph):
            self.next_step()
        # What is captured stays as it is; PyTorch's other trainers take no TF32.
        self.torch.set_float32_matmul_precision("highest")
        self.reset()
        self.wait()

    def next_step(self) -> None:
        self.step(self.order.index_select(0, self.number)[0])
        self.number.add_(1)

    def run(self) -> None:
        self.number.zero_()
        for _ in range(self.problem.steps):
            self.graph.replay()
        self.wait()
