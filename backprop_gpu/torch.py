"""PyTorch's models as ours and ours as PyTorch's, and our equations as a layer of PyTorch's.

    from_torch, to_torch    a module as a `Network`, and back as an nn.Sequential: the same numbers
    MLP                     an nn.Sequential whose forward pass and gradients are one function, the
                            notes' equations

`docs/torch.md` tells what is the same and what differs. Only this module imports PyTorch
(``pip install 'backprop_gpu[torch]'``).

PyTorch differentiates C itself, whose gradient with respect to the outputs is
∂C/∂a = ∇_a C_x / m for a mean over m samples. δ is here ∂C/∂z, the notes' δ divided by m, so
that BP3 and BP4 are sums over the samples where the notes have means.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from . import activations
from .activations import Activation
from .backends.cuda import CudaBackend
from .costs import Cost
from .cuda.arrays import DeviceArray
from .cuda.runtime import Runtime, runtime
from .network import Network
from .self_check import layered_obstacle

try:
    import torch
    import torch.fx
    from torch import nn
    from torch.nn import functional as F
    from torch.nn.modules.module import _has_any_global_hook as _any_global_hook
except ImportError as error:
    raise ImportError(
        "backprop_gpu.torch needs PyTorch, which is not installed: "
        "pip install 'backprop_gpu[torch]'"
    ) from error

__all__ = ["MLP", "from_torch", "to_torch"]

Tensor = Any
aten = torch.ops.aten

#: Above this z PyTorch's Softplus is z itself. From 20 on ln(1 + e^z) is z in float32, from 37
#: on in float64.
_SOFTPLUS_THRESHOLD = {"float32": 20.0, "float64": 40.0}

#: name -> the module that is the same function, for a network of that dtype
_MODULES: dict[str, Callable[[str], Any]] = {
    "sigmoid": lambda dtype: nn.Sigmoid(),
    "tanh": lambda dtype: nn.Tanh(),
    "relu": lambda dtype: nn.ReLU(),
    "leaky_relu": lambda dtype: nn.LeakyReLU(0.01),
    "elu": lambda dtype: nn.ELU(),
    "gelu": lambda dtype: nn.GELU(),
    "silu": lambda dtype: nn.SiLU(),
    "softplus": lambda dtype: nn.Softplus(threshold=_SOFTPLUS_THRESHOLD[dtype]),
    "identity": lambda dtype: nn.Identity(),
    "softmax": lambda dtype: nn.Softmax(dim=-1),
}

_SUPPORTED = (
    "supported are Linear(bias=True) and, after one, Sigmoid, Tanh, ReLU, "
    "LeakyReLU(negative_slope=0.01), ELU(alpha=1), GELU(approximate='none'), SiLU, "
    "Softplus(beta=1, threshold>=20), Identity and, as the last, Softmax(dim=-1), as modules or "
    "functions; Dropout in eval mode; a Flatten before the first"
)


# -- models as networks and back --------------------------------------------------------------


def from_torch(
    module: Any,
    *,
    cost: str | Cost = "quadratic",
    backend: str = "auto",
    seed: int | None = None,
) -> Network:
    """The network that computes what a module does, with a copy of its parameters.

    Parameters
    ----------
    module : nn.Module
        An nn.Sequential, an MLP, or any whose forward torch.fx can read and which is a chain of
        Linear layers (n_{l-1} -> n_l), after each at most one activation; none is identity.
        Dropout in eval mode is left out, and so is a Flatten at the beginning, for X has one
        sample a row. Parameters all float32 or all float64, on any device.
    cost : str or Cost
    backend : as of `Network`
    seed : int, optional
        Makes the shuffling of training repeatable.

    Returns
    -------
    Network
        Of the module's dtype. It trains all its parameters, also those that do not require
        a gradient in PyTorch.

    Raises
    ------
    TypeError, ValueError
        For a module or setting that no network has, naming it, its position, what is supported
        and which submodule could be passed; for parameters that are not of one dtype, not
        finite, or shared by two layers (training would make two different ones of them).
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    try:
        layers = _read(module)
    except ValueError as error:
        parts = _readable(module)
        if not parts:
            raise
        raise ValueError(f"{error}. Of this module from_torch takes {', '.join(parts)}") from error

    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    dtypes = {str(p.dtype).removeprefix("torch.") for p in parameters}
    if len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        raise TypeError(
            "parameters of module must all be float32 or all be float64, "
            f"got {', '.join(sorted(dtypes))}"
        )
    if any(p.is_meta for p in parameters):
        raise ValueError("parameters of module are on the meta device, where they have no numbers")
    for before, layer in pairwise(layers):
        if before.weight.shape[0] != layer.weight.shape[1]:
            raise ValueError(
                f"layer {layer.place}: a Linear of {layer.weight.shape[1]} inputs does not fit "
                f"layer {before.place}, which has {before.weight.shape[0]} outputs"
            )
    owners: dict[int, str] = {}
    for layer in layers:
        for name, p in (("weight", layer.weight), ("bias", layer.bias)):
            owner = owners.setdefault(p.data_ptr(), layer.place)
            if owner is not layer.place:
                raise ValueError(
                    f"layer {layer.place} shares its {name} with layer {owner}: every layer of a "
                    "Network has its own"
                )

    net = Network(
        [layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers)],
        activation=[layer.sigma or _IDENTITY for layer in layers],
        cost=cost,
        dtype=dtypes.pop(),
        backend=backend,
        seed=seed,
    )
    net.weights = tuple(layer.weight.detach().cpu().numpy() for layer in layers)
    net.biases = tuple(layer.bias.detach().cpu().numpy() for layer in layers)
    return net


def to_torch(net: Network) -> Any:
    """The nn.Sequential that computes what a network does, with a copy of its parameters.

    Parameters
    ----------
    net : Network
        On any backend.

    Returns
    -------
    nn.Sequential
        On the CPU, of the network's dtype. Linear and activation modules take turns, so the
        keys of its ``state_dict`` are 0.weight, 0.bias, 2.weight, …; an identity at the output
        is left out.

    Raises
    ------
    ValueError
        If PyTorch has no module for an activation, naming it.
    """
    if not isinstance(net, Network):
        raise TypeError(f"net must be a Network, got {type(net).__name__}")
    for l, activation in enumerate(net.activations, start=1):
        if not (activation.builtin and activation.name in _MODULES):
            raise ValueError(
                f"PyTorch has no module for activation {activation.name!r} of layer {l}; "
                f"it has for {', '.join(_MODULES)}"
            )
    return nn.Sequential(*_layers_of(net, getattr(torch, net.dtype.name), "cpu"))


def _layers_of(net: Network, dtype: Any, device: Any) -> list[Any]:
    """Linear and activation modules in turn; an identity at the output is left out."""
    layers: list[Any] = []
    for w, b, activation in zip(net.weights, net.biases, net.activations, strict=True):
        linear = _empty_linear(w.shape[1], w.shape[0], dtype, device)
        _fill(linear, w, b)
        layers += [linear, _module_of(activation, net.dtype.name)]
    return layers[:-1] if net.activations[-1].name == "identity" else layers


def _module_of(activation: Activation, dtype: str) -> Any:
    if not activation.builtin:
        return _UsersActivation(activation)
    return _Exponential() if activation.name == "exponential" else _MODULES[activation.name](dtype)


class _Exponential(nn.Module):
    """e^z, which PyTorch has no module for."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # TorchScript reads this
        return torch.exp(z)


class _UsersActivation(nn.Module):
    """A user's σ as a module, on the CPU."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def extra_repr(self) -> str:
        return repr(self.activation.name)

    def forward(self, z: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (  # the compiler reads NumPy
            _transformed() or type(z) not in _PLAIN or z.device.type != "cpu"
        ):
            raise self._error()
        return _UsersSigma.apply(self.activation, z)

    def __prepare_scriptable__(self) -> Any:
        raise self._error()

    def _error(self) -> RuntimeError:
        return RuntimeError(
            f"activation {self.activation.name!r} is a user's, in NumPy: it cannot be traced "
            "or transformed by torch.func, or called by itself on another device than the cpu"
        )


# -- reading a module ---------------------------------------------------------------------------

#: The modules that are activations.
_SIGMAS: dict[type, str] = {
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
    _Exponential: "exponential",
}

#: The functions and methods that are.
_FUNCTIONS: dict[Any, str] = {
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
_SETTINGS: dict[str, list[tuple[str, Any, Callable[[Any], bool]]]] = {
    "leaky_relu": [("negative_slope", 0.01, lambda slope: slope == 0.01)],
    "elu": [("alpha", 1.0, lambda alpha: alpha == 1.0)],
    "gelu": [("approximate", "none", lambda name: name == "none")],
    "softplus": [
        ("beta", 1.0, lambda beta: beta == 1.0),
        ("threshold", 20.0, lambda z: z >= 20.0),
    ],
    "softmax": [("dim", None, lambda dim: dim in (-1, 1))],
}

#: What may stand before the first Linear, if it leaves (n, n_0) as it is.
_SHAPES = (torch.flatten, torch.reshape, getattr, operator.getitem, operator.mul,
           "flatten", "view", "reshape", "size", "contiguous")  # fmt: skip


@dataclass
class _Layer:
    """w^l and b^l, where they were found, and σ, if one was found after them."""

    place: str
    weight: Tensor
    bias: Tensor
    sigma: Activation | None = None


class _Tracer(torch.fx.Tracer):
    """Does not look into what is known."""

    def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
        if type(m).forward is nn.Linear.forward or isinstance(m, (_Exponential, _UsersActivation)):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))


def _read(module: Any) -> list[_Layer]:
    """The layers, if all that the module does is Linear and activations, one after another."""
    for place, child in module.named_modules():
        if child._forward_hooks or child._forward_pre_hooks:
            raise _unsupported(
                place or "module", child, "it has hooks, which may change what it computes"
            )
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception as error:  # whatever a forward does with a stand-in for a tensor
        raise ValueError(
            f"torch.fx cannot read the forward of {type(module).__name__}: {error}; {_SUPPORTED}"
        ) from error
    layers: list[_Layer] = []
    before: list[Any] = []
    last, output = None, None
    for node in graph.nodes:
        if node.op == "output":
            output = node.args[0]
        elif node.op == "placeholder":
            if last is None:
                last = node
            elif node.users:
                raise ValueError(f"forward takes a second input, {node.target}; {_SUPPORTED}")
        elif node.op != "get_attr" and node.users:
            place, what = _described(module, node)
            linear = _linear_of(module, node, place, what)
            if linear is not None:
                if not layers:
                    _check_front(module, before, node.all_input_nodes[0], linear)
                    last = node.all_input_nodes[0]
                elif layers[-1].sigma is not None and not layers[-1].sigma.elementwise:
                    raise _unsupported(place, what, "it comes after a Softmax")
                if any(each.place == place for each in layers):
                    raise _unsupported(
                        place, what, "it is used twice, and every layer of a Network has its own "
                        "weight and bias",
                    )  # fmt: skip
                layers.append(linear)
            elif not layers and (
                node.target in _SHAPES or isinstance(what, nn.Flatten) or _is_nothing(node, what)
            ):
                before.append(node)
                continue
            elif not _is_nothing(node, what):
                sigma = _sigma_of(place, what, node)
                if not layers:
                    raise _unsupported(place, what, "no Linear comes before it")
                if layers[-1].sigma is not None:
                    raise _unsupported(
                        place, what, "a layer has one activation, and this is its second"
                    )
                layers[-1].sigma = sigma
            if [each for each in node.all_input_nodes if each.op != "get_attr"] != [last]:
                raise _unsupported(
                    place, what, "it takes something else than what the layer before gives"
                )
            last = node
    if not layers:
        raise ValueError(f"module has no Linear; {_SUPPORTED}")
    if output is not last:
        raise ValueError(f"forward returns more than its last layer's outputs; {_SUPPORTED}")
    return layers


def _readable(module: Any, prefix: str = "module") -> list[str]:
    """The largest submodules, of several layers, that `_read` takes."""
    found: list[str] = []
    for name, child in module.named_children():
        place = f"{prefix}[{name}]" if name.isdigit() else f"{prefix}.{name}"
        try:
            _read(child)
        except ValueError:
            found += _readable(child, place)
        else:
            found += [place] if list(child.children()) else []
    return found


def _described(module: Any, node: Any) -> tuple[str, Any]:
    """The place of a step, and the module or the name of the function."""
    if node.op == "call_module":
        return node.target, module.get_submodule(node.target)
    return node.name, getattr(node.target, "__name__", node.target)


def _argument(node: Any, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _linear_of(module: Any, node: Any, place: str, what: Any) -> _Layer | None:
    weight = bias = None
    if isinstance(what, nn.Module):
        if type(what).forward is not nn.Linear.forward:
            return None
        weight, bias = what.weight, what.bias
    elif node.target is F.linear:
        weight, bias = (
            operator.attrgetter(str(each.target))(module)
            if isinstance(each, torch.fx.Node) and each.op == "get_attr" else each
            for each in (_argument(node, 1, "weight"), _argument(node, 2, "bias"))
        )  # fmt: skip
        if isinstance(weight, torch.fx.Node) or isinstance(bias, torch.fx.Node):
            raise _unsupported(place, what, "its weight or bias is computed")
    else:
        return None
    if bias is None:
        raise _unsupported(
            place, what, "training would move the b that it does not have; give it a bias of zeros"
        )
    return _Layer(place, weight, bias)


def _check_front(module: Any, nodes: list[Any], end: Any, linear: _Layer) -> None:
    """What stands before the first Linear must leave rows (n, n_0) alone."""
    if not nodes:
        return
    n_inputs = linear.weight.shape[1]
    rows = torch.arange(3.0 * n_inputs).reshape(3, n_inputs)
    interpreter = torch.fx.Interpreter(torch.fx.GraphModule(module, nodes[0].graph))
    try:
        for node in nodes[0].graph.nodes:
            if node.op == "placeholder":
                interpreter.env[node] = rows.clone()
            elif node in nodes or node is end:
                interpreter.env[node] = interpreter.run_node(node)
        same = torch.equal(interpreter.env[end], rows)
    except (RuntimeError, IndexError, KeyError, TypeError):
        same = False
    if not same:
        place, what = _described(module, nodes[-1])
        raise _unsupported(
            place, what, f"a Network takes rows (n, {n_inputs}), and it would change them"
        )


def _is_nothing(node: Any, what: Any) -> bool:
    """Whether a step leaves its input alone: identity, or Dropout in eval mode."""
    if isinstance(what, nn.Dropout):
        if what.training:
            raise _unsupported(node.target, what, "it drops activations; call module.eval()")
        return True
    if node.target is F.dropout:
        if _argument(node, 2, "training", True):
            raise _unsupported(node.name, "dropout", "it drops activations; call module.eval()")
        return True
    return isinstance(what, nn.Identity) or node.target == "contiguous"


def _sigma_of(place: str, what: Any, node: Any) -> Activation:
    if isinstance(what, _UsersActivation):
        return what.activation
    is_module = isinstance(what, nn.Module)
    name = _SIGMAS.get(type(what)) if is_module else _FUNCTIONS.get(node.target)
    if name is None:
        raise _unsupported(place, what, "a Network has nothing like it")
    for at, (setting, default, is_ours) in enumerate(_SETTINGS.get(name, ()), start=1):
        value = getattr(what, setting) if is_module else _argument(node, at, setting, default)
        if not is_ours(value):
            why = "not with this setting" if is_module else f"not with {setting}={value}"
            raise _unsupported(place, what, why)
    return activations.get(name)


def _unsupported(place: str, layer: Any, why: str) -> ValueError:
    return ValueError(f"layer {place}, {layer}, is not supported: {why}; {_SUPPORTED}")


def _empty_linear(fan_in: int, n: int, dtype: Any, device: Any) -> Any:
    """A Linear that has drawn no weights, and so left PyTorch's random numbers alone."""
    linear = nn.Linear(fan_in, n, dtype=dtype, device="meta")
    return linear.to_empty(device=device)


def _fill(linear: Any, w: np.ndarray, b: np.ndarray) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(w, device="cpu"))
        linear.bias.copy_(torch.tensor(b, device="cpu"))


# -- the module ---------------------------------------------------------------------------------


class MLP(nn.Sequential):
    """A fully connected network a^l = σ(w^l a^{l-1} + b^l) as a module of PyTorch.

    The forward pass and the gradients (BP2-BP4) are one function to autograd. On CPU tensors
    it calls PyTorch's own products and elementwise operations, in place; a user's activation is
    evaluated by NumPy in the tensors' memory. On CUDA tensors it launches the kernels of
    `backends.cuda` on PyTorch's current stream, without copies.

    Parameters
    ----------
    sizes : sequence of int
        (n_0, …, n_L): neurons a layer, input first.
    activation : str, Activation or a sequence of them
        As of `Network`.
    dtype : torch.float32 or torch.float64
    device : torch.device, optional
        PyTorch's default device unless given.
    seed : int, optional
        The initial parameters are those of ``Network(sizes, activation=..., seed=seed)``. Left
        out, it is drawn from PyTorch's generator, so ``torch.manual_seed`` makes them repeatable.
    initial_weights : str
        As of `Network`.

    Notes
    -----
    It is the nn.Sequential of `to_torch`: nn.Linear and activation modules in turn, which
    ``model[0]``, ``len(model)`` and iteration give, and whose parameters are called 0.weight
    (n_1, n_0), 0.bias (n_1,), 2.weight, …, so a ``state_dict`` of either loads into the other.

    The modules are called one after another, by PyTorch, where one function would not do:
    `layer_by_layer` says why, if it is a matter of the model (hooks on a module, a module that was
    replaced or quantized, a device other than cpu and cuda). So they are under autocast, in the
    dtype that it chooses, while PyTorch traces, exports or compiles, under torch.func's
    transforms, and for subclasses of torch.Tensor.

    With ``create_graph=True`` gradients are computed by PyTorch's own differentiable operations,
    so that they can be differentiated again.

    Any number of threads may call it, forward and backward, as they may any nn.Module: a call has
    no memory but its own. Gradients of several threads add up in ``.grad``, as PyTorch's do.

    Examples
    --------
    >>> mlp = MLP([784, 30, 10], seed=1)
    >>> mlp(torch.zeros(5, 784)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Activation | Sequence[str | Activation] = "sigmoid",
        *,
        dtype: Any = torch.float32,
        device: Any = None,
        seed: int | None = None,
        initial_weights: str = "auto",
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        drawn = Network(
            sizes,
            activation=activation,
            dtype=str(dtype).removeprefix("torch."),
            backend="numpy",
            seed=seed,
            initial_weights=initial_weights,
        )
        super().__init__(*_layers_of(drawn, dtype, device or torch.empty(0).device))

    @property
    def linears(self) -> list[Any]:
        """The modules that hold w^l and b^l, as ``weight`` and ``bias``, l = 1 … L."""
        return [module for module in self if isinstance(module, nn.Linear)]

    @property
    def sizes(self) -> tuple[int, ...]:
        """(n_0, …, n_L)."""
        linears = self.linears
        return (linears[0].in_features, *(linear.out_features for linear in linears))

    @property
    def activations(self) -> tuple[Activation, ...]:
        """σ of layers 1 … L."""
        found = self._pairs()
        if isinstance(found, str):
            raise ValueError(f"the modules are no longer Linear and activations in turn: {found}")
        return found[1]

    @property
    def layer_by_layer(self) -> str | None:
        """Why the modules are called one after another, rather than as one function; or None."""
        found = self._pairs()
        return found if isinstance(found, str) else self._hooked(found[0][0].bias.device)

    def _hooked(self, device: Any) -> str | None:
        for name, module in self._modules.items():
            if (
                module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks
            ):  # fmt: skip
                return f"module {name} has hooks"
        if _any_global_hook():
            return "there are hooks on all modules"
        return None if device.type in ("cpu", "cuda") else f"its parameters are on {device}"

    def _pairs(self) -> tuple[list[Any], tuple[Activation, ...]] | str:
        """The Linear modules and the σ after each, or what else there is."""
        linears: list[Any] = []
        sigmas: list[Activation] = []
        open_ = False  # whether the last Linear has no σ yet
        for name, module in self._modules.items():
            if type(module).forward is nn.Linear.forward and module.bias is not None:
                if sigmas and not sigmas[-1].elementwise:
                    return f"module {name} comes after a Softmax"
                linears.append(module)
                sigmas.append(_IDENTITY)
                open_ = True
                continue
            sigma = _sigma_of_module(module)
            if sigma is None or not open_:
                return f"module {name} is {module}"
            sigmas[-1], open_ = sigma, False
        return (linears, tuple(sigmas)) if linears else "there is no Linear"

    def __getitem__(self, index: Any) -> Any:
        """A module, or an nn.Sequential of some of them, sharing their parameters."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script compiles instead."""
        return self[:]

    def forward(self, x: Tensor) -> Tensor:
        """a^L of every sample: (…, n_0) -> (…, n_L).

        Raises
        ------
        TypeError
            If x is no tensor, or not of the parameters' dtype.
        ValueError
            If its last dimension is not n_0, or it is on another device.
        """
        if torch.compiler.is_compiling() or _transformed() or isinstance(x, torch.fx.Proxy):
            return super().forward(x)
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        found = self._pairs()
        if isinstance(found, str):  # nothing is known of what these modules take
            return super().forward(x)
        linears, sigmas = found
        if _autocasting(linears[0].weight.device.type):
            return super().forward(x)
        weights = [linear.weight for linear in linears]
        parameters = [*weights, *(linear.bias for linear in linears)]
        dtype, device = self._check_parameters(parameters)
        x = self._check_input(x, weights[0].shape[1], dtype, device)
        if type(x) not in _PLAIN or self._hooked(device) is not None:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
        if torch.is_grad_enabled() and (
            rows.requires_grad or any(p.requires_grad for p in parameters)
        ):
            a = _Backpropagation.apply(sigmas, rows, *parameters)
        else:
            with torch.no_grad():
                a = _infer(sigmas, rows, parameters)
        return a.reshape(*x.shape[:-1], a.shape[-1]) if x.dim() != 2 else a

    def _check_parameters(self, parameters: list[Any]) -> tuple[Any, Any]:
        dtype, device = parameters[0].dtype, parameters[0].device
        for p in parameters:
            if p.dtype is not dtype or p.device != device:
                raise ValueError(
                    "parameters must all have one dtype and device, got "
                    + ", ".join(sorted({f"{p.dtype} on {p.device}" for p in parameters}))
                )
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"parameters must be torch.float32 or torch.float64, got {dtype}")
        return dtype, device

    def _check_input(self, x: Tensor, n_inputs: int, dtype: Any, device: Any) -> Tensor:
        if x.dim() == 0 or x.shape[-1] != n_inputs:
            raise ValueError(f"x must have shape (…, {n_inputs}), got {tuple(x.shape)}")
        if x.device != device:
            raise ValueError(f"x must be on {device}, where the parameters are, got {x.device}")
        if x.dtype is not dtype:
            raise TypeError(f"x must be {dtype}, as the parameters are, got {x.dtype}")
        if x.layout is not torch.strided:
            raise TypeError(f"x must be a dense tensor, got {x.layout}; pass x.to_dense()")
        return x


#: What may be read by its memory; other tensors only stand for numbers.
_PLAIN = (torch.Tensor, nn.Parameter)


def _transformed() -> bool:
    """Whether PyTorch traces or transforms the call, and must see its own operations."""
    return bool(
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _sigma_of_module(module: Any) -> Activation | None:
    """The activation that a module is on tensors of any number of dimensions."""
    name = _SIGMAS.get(type(module))
    if name is None:
        return module.activation if isinstance(module, _UsersActivation) else None
    for setting, _, is_ours in _SETTINGS.get(name, ()):
        value = getattr(module, setting)
        if not is_ours(value) or (setting == "dim" and value != -1):
            return None
    return activations.get(name)


class _UsersSigma(torch.autograd.Function):
    """A user's σ by itself."""

    @staticmethod
    def forward(ctx: Any, activation: Activation, z: Tensor) -> Tensor:
        z = z.contiguous()
        a = _Users(activation).evaluate(z, torch.empty_like(z))
        ctx.activation = activation
        ctx.save_for_backward(z, a)
        return a

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[None, Tensor]:
        if torch.is_grad_enabled():
            raise _no_second_derivative(ctx.activation)
        z, a = ctx.saved_tensors
        return None, _Users(ctx.activation).pull_back(error, z, a, torch.empty_like(z))


def _no_second_derivative(sigma: Activation) -> RuntimeError:
    return RuntimeError(
        f"MLP cannot be differentiated twice (create_graph=True) with activation "
        f"{sigma.name!r}: a user's activation has no second derivative"
    )


def _autocasting(device: str) -> bool:
    if device not in ("cpu", "cuda"):
        return False
    try:
        return bool(torch.is_autocast_enabled(device))
    except TypeError:  # before PyTorch 2.4
        return bool(
            torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()
        )


class _Backpropagation(torch.autograd.Function):
    """a^L of x, (m, n_0), as a function of x, w^1 … w^L and b^1 … b^L."""

    @staticmethod
    def forward(ctx: Any, sigmas: tuple[Activation, ...], x: Tensor, *parameters: Tensor) -> Tensor:
        depth = len(sigmas)
        weights, biases = parameters[:depth], parameters[depth:]
        a, z = [x], [None]
        with _equations(x) as equations:
            for w, b, sigma in zip(weights, biases, sigmas, strict=True):
                kept, out = equations.forward(w, b, a[-1], sigma, equations.reads_z(sigma))
                z.append(kept)
                a.append(out)
        ctx.sigmas = sigmas
        # a^L itself is for σ' alone, and for that only where z does not do.
        spared = sigmas[-1].builtin and (sigmas[-1].name == "identity" or z[-1] is not None)
        output = None if spared else a[-1]
        ctx.save_for_backward(*parameters, *a[:-1], output, *z[1:])
        return a[-1]

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        """From ∂C/∂a^L to ∂C/∂x, ∂C/∂w and ∂C/∂b, of those that are asked for."""
        sigmas, saved = ctx.sigmas, ctx.saved_tensors
        depth = len(sigmas)
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_differentiable(sigmas, saved, wanted, error)
        weights, a, z = saved[:depth], saved[2 * depth : 3 * depth + 1], saved[3 * depth + 1 :]
        w_wanted, b_wanted = wanted[1 : depth + 1], wanted[depth + 1 :]
        gradients: list[Any] = [None] * (2 * depth + 1)
        with _equations(error) as equations:
            delta = equations.output_error(error, z[-1], a[-1], sigmas[-1])
            for l in range(depth, 0, -1):
                if w_wanted[l - 1]:
                    gradients[l] = equations.weight_gradient(delta, a[l - 1])
                if b_wanted[l - 1]:
                    gradients[depth + l] = equations.bias_gradient(delta)
                if not any((wanted[0], *w_wanted[: l - 1], *b_wanted[: l - 1])):
                    break
                if l > 1:
                    delta = equations.hidden_error(
                        weights[l - 1], delta, z[l - 2], a[l - 1], sigmas[l - 2]
                    )
                else:
                    gradients[0] = equations.input_error(weights[0], delta, a[0])
        return None, *gradients


def _infer(sigmas: tuple[Activation, ...], x: Tensor, parameters: list[Any]) -> Tensor:
    """a^L alone."""
    depth, a = len(sigmas), x
    with _equations(x) as equations:
        for w, b, sigma in zip(parameters[:depth], parameters[depth:], sigmas, strict=True):
            a = equations.forward(w, b, a, sigma, False)[1]
    return a


def _differentiable(
    sigmas: tuple[Activation, ...], saved: Sequence[Any], wanted: Sequence[bool], error: Tensor
) -> tuple[Any, ...]:
    """The gradients as PyTorch's own operations, of which PyTorch knows the derivatives."""
    depth = len(sigmas)
    x, parameters = saved[2 * depth], saved[: 2 * depth]
    for sigma in sigmas:
        if not sigma.builtin:
            raise _no_second_derivative(sigma)
    with torch.enable_grad(), torch.autocast(error.device.type, enabled=False):
        a = x
        for w, b, sigma in zip(parameters[:depth], parameters[depth:], sigmas, strict=True):
            z = F.linear(a, w, b)
            dtype = str(z.dtype).removeprefix("torch.")
            a = torch.exp(z) if sigma.name == "exponential" else _MODULES[sigma.name](dtype)(z)
        asked = [t for t, want in zip((x, *parameters), wanted, strict=True) if want]
        found = iter(torch.autograd.grad(a, asked, error, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


# -- the equations on tensors -------------------------------------------------------------------


class _Equations(Protocol):
    """The equations on tensors, for a batch of m rows. δ is ∂C/∂z of the whole batch's C."""

    def reads_z(self, sigma: Activation) -> bool:
        """Whether BP1 and BP2 need z to compute σ'."""

    def forward(
        self, w: Tensor, b: Tensor, a_prev: Tensor, sigma: Activation, keep_z: bool
    ) -> tuple[Tensor | None, Tensor]:
        """z = a_prev wᵀ + b where it is to be kept, and a = σ(z)."""

    def output_error(self, error: Tensor, z: Tensor, a: Tensor, sigma: Activation) -> Tensor:
        """BP1: δ^L = ∂C/∂a^L ⊙ σ'(z^L). Leaves its arguments alone."""

    def hidden_error(
        self, w_next: Tensor, delta_next: Tensor, z: Tensor, a: Tensor, sigma: Activation
    ) -> Tensor:
        """BP2: δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l)."""

    def input_error(self, w: Tensor, delta: Tensor, x: Tensor) -> Tensor:
        """∂C/∂x = δ^1 w^1."""

    def bias_gradient(self, delta: Tensor) -> Tensor:
        """BP3: ∂C/∂b = the sum of δ's rows."""

    def weight_gradient(self, delta: Tensor, a_prev: Tensor) -> Tensor:
        """BP4: ∂C/∂w = δᵀ a_prev."""


@contextmanager
def _equations(x: Tensor) -> Iterator[_Equations]:
    """The equations for tensors like x, on the stream that PyTorch uses there."""
    if _kind(x) == "cpu" or x.numel() == 0:  # no kernel is launched on nothing
        yield _TORCH
        return
    try:
        device = runtime(x.device.index)
    except ImportError as error:
        raise ImportError(
            "MLP on a CUDA device needs cuda.core: pip install 'backprop_gpu[cu13]' or "
            "'backprop_gpu[cu12]', after the driver's CUDA version"
        ) from error
    # A check in the midst of somebody's capture would be captured, or break it.
    if not torch.cuda.is_current_stream_capturing() and not _passed_check(device, x.dtype):
        yield _TORCH
        return
    with device.on(torch.cuda.current_stream(x.device).cuda_stream):
        yield _OnCuda(device, x)


#: By dtype, the devices on which our kernels are right.
_right: dict[Any, weakref.WeakSet[Runtime]] = {}


def _passed_check(device: Runtime, dtype: Any) -> bool:
    """Whether our kernels compute what they should there; warns once if not (`self_check`)."""
    right = _right.setdefault(dtype, weakref.WeakSet())
    if device not in right:
        if layered_obstacle(device, np.dtype(str(dtype).removeprefix("torch."))) is not None:
            return False
        right.add(device)
    return True


def _kind(x: Tensor) -> str:
    return str(x.device.type)


class _OnCuda:
    """Our kernels, in the memory of PyTorch's tensors.

    They take means over the rows, as the notes do. So δ is m times ∂C/∂z here, as in the notes,
    and what leaves is right: means of the m-fold are sums.

    Scratch memory is PyTorch's, too, which knows what a captured graph of its own may hold.

    Parameters
    ----------
    runtime : Runtime
        Of the tensors' device, on PyTorch's current stream.
    like : Tensor
        One of those tensors.
    """

    def __init__(self, runtime: Runtime, like: Tensor) -> None:
        self._runtime = runtime
        # Made afresh: scratch arrays must not be shared by two streams.
        self._backend = CudaBackend(str(like.dtype).removeprefix("torch."), runtime)
        self._backend.scratch = self._scratch
        self._like = like

    def _scratch(self, size: int, dtype: Any) -> DeviceArray:
        dtype = getattr(torch, np.dtype(dtype).name)
        return self._view(torch.empty(size, dtype=dtype, device=self._like.device))

    def _view(self, tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        return self._runtime.borrow(tensor.data_ptr(), tuple(tensor.shape), dtype, tensor)

    def reads_z(self, sigma: Activation) -> bool:
        return sigma.derivative_from == "z"

    def forward(
        self, w: Tensor, b: Tensor, a_prev: Tensor, sigma: Activation, keep_z: bool
    ) -> tuple[Tensor | None, Tensor]:
        shape = (len(a_prev), len(b))
        a = a_prev.new_empty(shape)
        z = a_prev.new_empty(shape) if keep_z else None
        view = self._view
        self._backend.forward(view(w), view(b), view(a_prev), sigma, view(z), view(a))
        return z, a

    def output_error(self, error: Tensor, z: Tensor, a: Tensor, sigma: Activation) -> Tensor:
        delta = torch.mul(error, len(error), out=error.new_empty(error.shape))
        if sigma.name != "identity":
            a = z if a is None else a
            self._backend.pull_back(self._view(z), self._view(a), sigma, self._view(delta))
        return delta

    def hidden_error(
        self, w_next: Tensor, delta_next: Tensor, z: Tensor, a: Tensor, sigma: Activation
    ) -> Tensor:
        out, view = a.new_empty(a.shape), self._view
        self._backend.hidden_error(
            view(w_next), view(delta_next), view(z), view(a), sigma, view(out)
        )
        return out

    def input_error(self, w: Tensor, delta: Tensor, x: Tensor) -> Tensor:
        return self.hidden_error(w, delta, None, x, _IDENTITY).div_(len(delta))

    def bias_gradient(self, delta: Tensor) -> Tensor:
        out = delta.new_empty(delta.shape[1])
        self._backend.bias_gradient(self._view(delta), self._view(out))
        return out

    def weight_gradient(self, delta: Tensor, a_prev: Tensor) -> Tensor:
        out = delta.new_empty((delta.shape[1], a_prev.shape[1]))
        self._backend.weight_gradient(self._view(delta), self._view(a_prev), self._view(out))
        return out


class _OnTorch:
    """PyTorch's own operations, each into a tensor made for it or in place.

    On the CPU they keep to PyTorch's threads; NumPy's BLAS has threads of its own, which would
    wait for the cores that PyTorch's still spin on. ``out=`` also keeps autocast away.
    """

    def reads_z(self, sigma: Activation) -> bool:
        return _sigma(sigma).from_z

    def forward(
        self, w: Tensor, b: Tensor, a_prev: Tensor, sigma: Activation, keep_z: bool
    ) -> tuple[Tensor | None, Tensor]:
        z = torch.addmm(b, a_prev, w.t(), out=a_prev.new_empty((len(a_prev), len(b))))
        if keep_z:
            return z, _sigma(sigma).evaluate(z, torch.empty_like(z))
        return None, _sigma(sigma).evaluate(z, z)

    def output_error(self, error: Tensor, z: Tensor, a: Tensor, sigma: Activation) -> Tensor:
        if sigma.name == "identity":
            return error
        return _sigma(sigma).pull_back(error, z, a, error.new_empty(error.shape))

    def hidden_error(
        self, w_next: Tensor, delta_next: Tensor, z: Tensor, a: Tensor, sigma: Activation
    ) -> Tensor:
        error = self.input_error(w_next, delta_next, a)
        return _sigma(sigma).pull_back(error, z, a, error)

    def input_error(self, w: Tensor, delta: Tensor, x: Tensor) -> Tensor:
        return torch.mm(delta, w, out=x.new_empty(x.shape))

    def bias_gradient(self, delta: Tensor) -> Tensor:
        return torch.sum(delta, 0, out=delta.new_empty(delta.shape[1]))

    def weight_gradient(self, delta: Tensor, a_prev: Tensor) -> Tensor:
        out = delta.new_empty((delta.shape[1], a_prev.shape[1]))
        return torch.mm(delta.t(), a_prev, out=out)


class _Sigma(Protocol):
    """σ on tensors of one shape, (m, n)."""

    #: Whether the pull-back reads z; otherwise it reads a.
    from_z: bool

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        """out = σ(z). z and out may be the same tensor."""

    def pull_back(self, error: Tensor, z: Tensor, a: Tensor, out: Tensor) -> Tensor:
        """out = error ⊙ σ'(z). error and out may be the same tensor."""


class _Builtin:
    """σ and its pull-back as operations that write into `out`."""

    def __init__(
        self,
        evaluate: Callable[..., Any],
        pull_back: Callable[..., Any],
        from_z: bool = False,
    ) -> None:
        self.from_z = from_z
        self._evaluate = evaluate
        self._pull_back = pull_back

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        self._evaluate(z, out)
        return out

    def pull_back(self, error: Tensor, z: Tensor, a: Tensor, out: Tensor) -> Tensor:
        self._pull_back(error, z, a, out)
        return out


class _Users:
    """A user's σ: its NumPy functions, in the memory of the tensors."""

    from_z = True

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        if z.numel():
            with np.errstate(all="ignore"):
                scratch = torch.empty_like(z).numpy()
                self._activation.evaluate(z.numpy(), out.numpy(), scratch)
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


def _cdf(z: Tensor, out: Tensor) -> Tensor:
    """out = Φ(z); erfc keeps the digits of the left tail that PyTorch's 1 + erf cancels."""
    return torch.erfc(torch.mul(z, -math.sqrt(0.5), out=out), out=out).mul_(0.5)


def _gelu(z: Tensor, out: Tensor) -> None:
    torch.mul(z, _cdf(z, torch.empty_like(z)), out=out)


def _softmax_pull_back(error: Tensor, z: Tensor, a: Tensor, out: Tensor) -> None:
    """a_j (error_j - Σ_k error_k a_k)."""
    mean = torch.mul(error, a).sum(1, keepdim=True)
    torch.mul(torch.sub(error, mean, out=out), a, out=out)


def _softmax(z: Tensor, out: Tensor) -> None:
    torch.sub(z, z.amax(1, keepdim=True), out=out).exp_()
    out.div_(out.sum(1, keepdim=True))


#: name -> σ(z, out) and its pull-back (error, z, a, out)
_SIGMA_OPERATIONS: dict[str, _Builtin] = {
    "sigmoid": _Builtin(
        lambda z, out: torch.sigmoid(z, out=out),
        lambda error, z, a, out: aten.sigmoid_backward.grad_input(error, a, grad_input=out),
    ),
    "tanh": _Builtin(
        lambda z, out: torch.tanh(z, out=out),
        lambda error, z, a, out: aten.tanh_backward.grad_input(error, a, grad_input=out),
    ),
    "relu": _Builtin(
        lambda z, out: torch.clamp(z, min=0.0, out=out),
        lambda error, z, a, out: aten.threshold_backward.grad_input(error, a, 0.0, grad_input=out),
    ),
    "leaky_relu": _Builtin(
        lambda z, out: aten.leaky_relu.out(z, 0.01, out=out),
        lambda error, z, a, out: aten.leaky_relu_backward.grad_input(
            error, a, 0.01, True, grad_input=out
        ),
    ),
    "elu": _Builtin(
        lambda z, out: aten.elu.out(z, out=out),
        lambda error, z, a, out: aten.elu_backward.grad_input(
            error, 1.0, 1.0, 1.0, True, a, grad_input=out
        ),
    ),
    "gelu": _Builtin(
        _gelu,  # σ' in one pass is PyTorch's: 1 + erf is off by one part in 10^7 of 1, in float32
        lambda error, z, a, out: aten.gelu_backward.grad_input(error, z, grad_input=out),
        from_z=True,
    ),
    "silu": _Builtin(
        lambda z, out: aten.silu.out(z, out=out),
        lambda error, z, a, out: aten.silu_backward.grad_input(error, z, grad_input=out),
        from_z=True,
    ),
    "softplus": _Builtin(
        lambda z, out: aten.softplus.out(z, 1.0, _SOFTPLUS_THRESHOLD["float64"], out=out),
        lambda error, z, a, out: aten.softplus_backward.grad_input(
            error, z, 1.0, _SOFTPLUS_THRESHOLD["float64"], grad_input=out
        ),
        from_z=True,
    ),
    "identity": _Builtin(lambda z, out: None, lambda error, z, a, out: None),
    "exponential": _Builtin(
        lambda z, out: torch.exp(z, out=out),
        lambda error, z, a, out: torch.mul(error, a, out=out),
    ),
    "softmax": _Builtin(_softmax, _softmax_pull_back),
}


def _sigma(activation: Activation) -> _Sigma:
    return _SIGMA_OPERATIONS[activation.name] if activation.builtin else _Users(activation)


_IDENTITY = activations.get("identity")
_TORCH = _OnTorch()
