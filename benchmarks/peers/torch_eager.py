"""PyTorch as it is: every step called from Python."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ..workloads import Arrays, ProblemInstance, Workload
from . import DeviceType, absent

Tensor = Any


class TorchEager:
    name = "torch"
    label = "PyTorch eager"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        if reason := absent("torch", "PyTorch"):
            return reason
        import torch

        usable = device == "cpu" or torch.cuda.is_available()
        return None if usable else "PyTorch finds no CUDA device"

    def start(self, problem: ProblemInstance, device: DeviceType) -> TorchTrainer:
        return TorchTrainer(problem, device)


class TorchTrainer:
    """A model or, of many networks, one with all their parameters stacked; data; optimizer."""

    def __init__(self, problem: ProblemInstance, device: DeviceType) -> None:
        import torch
        from torch.nn import functional as F

        torch.set_float32_matmul_precision("highest")  # no TF32
        workload = problem.workload
        self.torch, self.problem, self.device = torch, problem, device
        self.one = workload.members == 1

        self.model = self.new_model(workload)
        #: As `Module.named_parameters`; of many networks with one more axis, in front.
        self.state: dict[str, Tensor] = {
            name: torch.nn.Parameter(array.to(device, copy=True)) for name, array in self._initial()
        }
        if self.one:
            self.model.load_state_dict(self.state, assign=True)
            self.state = dict(self.model.named_parameters())
        self.optimizer = torch.optim.SGD(self.state.values(), lr=problem.learning_rate, fused=True)

        def quadratic(a: Tensor, y: Tensor) -> Tensor:
            return 0.5 * F.mse_loss(a, y, reduction="sum") / len(y)

        self.loss = F.cross_entropy if workload.classes else quadratic
        Y = torch.from_numpy(problem.Y)
        self.X = torch.from_numpy(problem.X).to(device)
        self.Y = (Y.argmax(dim=1) if workload.classes else Y).to(device)
        self.order = torch.from_numpy(problem.order).to(device)

    def new_model(self, workload: Workload) -> Any:
        """Without parameters, and without an activation at the end: the softmax is part of the
        cost."""
        from torch import nn

        layers: list[nn.Module] = []
        for k, n in pairwise(workload.sizes):
            layers += [nn.Linear(k, n, device="meta")]
            layers += [nn.Sigmoid() if workload.classes else nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _initial(self) -> list[tuple[str, Tensor]]:
        """The problem's parameters, by the model's names."""
        p, torch = self.problem, self.torch
        return [
            (f"{2 * l}.{kind}", torch.from_numpy(arrays[l][0] if self.one else arrays[l]))
            for l in range(len(p.weights))
            for kind, arrays in (("weight", p.weights), ("bias", p.biases))
        ]

    def reset(self) -> None:
        """Back to the problem's parameters, after steps that were to compile or capture."""
        with self.torch.no_grad():
            for name, array in self._initial():
                self.state[name].copy_(array)

    def run(self) -> None:
        for rows in self.order:
            self.step(rows)
        self.wait()

    def step(self, rows: Tensor) -> None:
        self.optimizer.zero_grad()
        x, y = self.X[rows], self.Y[rows]
        cost = self.loss(self.model(x), y) if self.one else self.cost(self.state, x, y)
        cost.backward()
        self.optimizer.step()

    def cost(self, state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """As a function of the parameters; of many networks the sum of their costs."""
        func = self.torch.func

        def of_one(state: dict[str, Tensor]) -> Tensor:
            return self.loss(func.functional_call(self.model, state, (x,)), y)

        return of_one(state) if self.one else func.vmap(of_one)(state).sum()

    def wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def parameters(self) -> tuple[Arrays, Arrays]:
        arrays = [tensor.detach().cpu().numpy().copy() for tensor in self.state.values()]
        arrays = [array[None] for array in arrays] if self.one else arrays
        return arrays[::2], arrays[1::2]
