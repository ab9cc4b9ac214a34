"""PyTorch's modules that are our activations, and ours where it has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import nn
from torch.nn import functional as F

from .. import activations
from ..activations import Activation
from ..network import Network

Tensor = Any

#: Above this z PyTorch's Softplus is z itself. From 20 on ln(1 + e^z) is z in float32, from 37
#: on in float64.
SOFTPLUS_THRESHOLD = {"float32": 20.0, "float64": 40.0}

#: name -> the module that is the same function, for a network of that dtype
MODULES: dict[str, Callable[[str], Any]] = {
    "sigmoid": lambda dtype: nn.Sigmoid(),
    "tanh": lambda dtype: nn.Tanh(),
    "relu": lambda dtype: nn.ReLU(),
    "leaky_relu": lambda dtype: nn.LeakyReLU(0.01),
    "elu": lambda dtype: nn.ELU(),
    "gelu": lambda dtype: nn.GELU(),
    "silu": lambda dtype: nn.SiLU(),
    "softplus": lambda dtype: nn.Softplus(threshold=SOFTPLUS_THRESHOLD[dtype]),
    "identity": lambda dtype: nn.Identity(),
    "softmax": lambda dtype: nn.Softmax(dim=-1),
}


def layers_of(net: Network, dtype: Any, device: Any) -> list[Any]:
    """Linear and activation modules in turn; an identity at the output is left out."""
    layers: list[Any] = []
    for w, b, activation in zip(net.weights, net.biases, net.activations, strict=True):
        linear = _empty_linear(w.shape[1], w.shape[0], dtype, device)
        _fill(linear, w, b)
        layers += [linear, _module_of(activation, net.dtype.name)]
    return layers[:-1] if net.activations[-1].name == "identity" else layers


def _module_of(activation: Activation, dtype: str) -> Any:
    if not activation.builtin:
        return UsersActivation(activation)
    return (
        ExponentialModule() if activation.name == "exponential" else MODULES[activation.name](dtype)
    )


class ExponentialModule(nn.Module):
    """e^z, which PyTorch has no module for."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # TorchScript reads this
        return torch.exp(z)


class UsersActivation(nn.Module):
    """A user's σ as a module, on the CPU."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def extra_repr(self) -> str:
        return repr(self.activation.name)

    def forward(self, z: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (  # the compiler reads NumPy
            transformed() or type(z) not in PLAIN or z.device.type != "cpu"
        ):
            raise self._error()
        return _UsersSigma.apply(self.activation, 0, z)

    def __prepare_scriptable__(self) -> Any:
        raise self._error()

    def _error(self) -> RuntimeError:
        return RuntimeError(
            f"activation {self.activation.name!r} is a user's, in NumPy: it cannot be traced "
            "or transformed by torch.func, or called by itself on another device than the cpu"
        )


#: The modules that are activations.
SIGMAS: dict[type, str] = {
    nn.Identity: "identity",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Softplus: "softplus",
    nn.Softmax: "softmax",
    ExponentialModule: "exponential",
}

#: The functions and methods that are.
FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((torch.sigmoid, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((torch.tanh, "tanh", "tanh_"), "tanh"),
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), "relu"),
    **dict.fromkeys((torch.exp, "exp"), "exponential"),
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), "softmax"),
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.softplus: "softplus",
}

#: Their settings in the order of a function's arguments, its defaults, and what is ours.
SETTINGS: dict[str, list[tuple[str, Any, Callable[[Any], bool]]]] = {
    "leaky_relu": [("negative_slope", 0.01, lambda slope: slope == 0.01)],
    "elu": [("alpha", 1.0, lambda alpha: alpha == 1.0)],
    "gelu": [("approximate", "none", lambda name: name == "none")],
    "softplus": [
        ("beta", 1.0, lambda beta: beta == 1.0),
        ("threshold", 20.0, lambda z: z >= 20.0),
    ],
    "softmax": [("dim", None, lambda dim: dim in (-1, 1))],
}


def _empty_linear(fan_in: int, n: int, dtype: Any, device: Any) -> Any:
    """A Linear that has drawn no weights, and so left PyTorch's random numbers alone."""
    linear = nn.Linear(fan_in, n, dtype=dtype, device="meta")
    return linear.to_empty(device=device)


def _fill(linear: Any, w: np.ndarray, b: np.ndarray) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(w, device="cpu"))
        linear.bias.copy_(torch.tensor(b, device="cpu"))


#: What may be read by its memory; other tensors only stand for numbers.
PLAIN = (torch.Tensor, nn.Parameter)


def transformed() -> bool:
    """Whether PyTorch traces or transforms the call, and must see its own operations."""
    return bool(
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()  # noqa: SLF001
        or torch.autograd.forward_ad._current_level >= 0  # noqa: SLF001
    )


class _UsersSigma(torch.autograd.Function):
    """A user's σ by itself, or its derivative of an order, up to the third."""

    @staticmethod
    def forward(ctx: Any, activation: Activation, order: int, z: Tensor) -> Tensor:
        ctx.activation, ctx.order = activation, order
        numbers = _for_numpy(z).contiguous()
        found = Users(activation).evaluate(numbers, torch.empty_like(numbers), order)
        ctx.save_for_backward(z)
        return found.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[None, None, Tensor]:
        (z,), activation, order = ctx.saved_tensors, ctx.activation, ctx.order + 1
        asks_again = torch.is_grad_enabled() and order == 1
        if not has_derivative(activation, order + asks_again):
            raise no_derivative(activation, order + asks_again)
        return None, None, error * _UsersSigma.apply(activation, order, z)


def _for_numpy(x: Tensor) -> Tensor:
    """x in a dtype that a user's σ is for: float64, or float32 for what has fewer bits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def has_derivative(sigma: Activation, order: int) -> bool:
    """Whether σ has a derivative of that order that can be computed here."""
    return sigma.builtin or order < 2 or sigma.higher.get(order) is not None


def no_derivative(sigma: Activation, order: int) -> RuntimeError:
    """What to raise where σ lacks it."""
    times, which = {2: ("twice", "second"), 3: ("three times", "third")}.get(
        order, ("so often", "higher")
    )
    return RuntimeError(
        f"MLP cannot be differentiated {times} (create_graph=True) with activation "
        f"{sigma.name!r}: it has no {which} derivative"
        + (f"; give it as Activation(..., {which}_derivative=...)" if order < 4 else "")
    )


class Users:
    """A user's σ: its NumPy functions, in the memory of the tensors."""

    from_z = True

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def evaluate(self, z: Tensor, out: Tensor, order: int = 0) -> Tensor:
        """out = σ(z), or its derivative of an order."""
        if z.numel():
            x, into = z.detach().numpy(), out.numpy()
            with np.errstate(all="ignore"):
                scratch = np.empty_like(x)
                if order == 0:
                    self._activation.evaluate(x, into, scratch)
                elif order == 1:
                    self._activation.evaluate_derivative(x, x, into, scratch)
                else:
                    self._activation.evaluate_higher(order, x, x, x, into, scratch)
        return out

    def pull_back(self, error: Tensor, z: Tensor, a: Tensor, out: Tensor) -> Tensor:
        if out is not error:
            out.copy_(error)
        if out.numel():
            with np.errstate(all="ignore"):
                scratch = torch.empty_like(out).numpy(), torch.empty_like(out).numpy()
                self._activation.pull_back(
                    out.numpy(), z.detach().numpy(), a.detach().numpy(), scratch
                )
        return out


IDENTITY = activations.get("identity")
