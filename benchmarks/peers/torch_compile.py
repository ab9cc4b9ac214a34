"""PyTorch with its compiler: the gathering, gradients and update of a step in one graph."""

from __future__ import annotations

from ..workloads import ProblemInstance
from . import DeviceType
from .torch_eager import Tensor, TorchEager, TorchTrainer


class TorchCompile(TorchEager):
    name = "torch.compile"
    label = "PyTorch compiled"

    def start(self, problem: ProblemInstance, device: DeviceType) -> TorchTrainer:
        return CompiledTrainer(problem, device)


class CompiledTrainer(TorchTrainer):
    def __init__(self, problem: ProblemInstance, device: DeviceType) -> None:
        super().__init__(problem, device)
        torch, X, Y = self.torch, self.X, self.Y
        # The optimizer's step and `backward` would break the graph; this has no breaks.
        state = {name: tensor.detach() for name, tensor in self.state.items()}

        def step(rows: Tensor) -> None:
            gradients = torch.func.grad(self.cost)(state, X[rows], Y[rows])
            for name, tensor in state.items():
                tensor.sub_(gradients[name], alpha=problem.learning_rate)

        # Every workload is one more compilation of the same Python function.
        torch._dynamo.config.recompile_limit = 64  # noqa: SLF001
        if device == "cuda":
            # Else the CUDA graph copies them to where it wants them, before every step.
            for tensor in (X, Y, *state.values()):
                torch._dynamo.mark_static_address(tensor)  # noqa: SLF001
        mode = "reduce-overhead" if device == "cuda" else "default"
        compiled = torch.compile(step, fullgraph=True, dynamic=False, mode=mode)
        self.step = compiled  # type: ignore[method-assign]
        for _ in range(3):  # compile, record the CUDA graph, replay it
            self.step(self.order[0])
        self.reset()
        self.wait()
