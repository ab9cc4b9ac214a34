"""`from_torch` and `to_torch`: a module as a `Network`, and back."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.nn import functional as F

from .. import activations
from ..activations import Activation
from ..costs import Cost
from ..network import Network
from .mlp import MLP
from .modules import (
    FUNCTIONS,
    IDENTITY,
    MODULES,
    SETTINGS,
    SIGMAS,
    ExponentialModule,
    UsersActivation,
    layers_of,
)

Tensor = Any


_SUPPORTED = (
    "supported are Linear(bias=True) and, after one, Sigmoid, Tanh, ReLU, "
    "LeakyReLU(negative_slope=0.01), ELU(alpha=1), GELU(approximate='none'), SiLU, "
    "Softplus(beta=1, threshold>=20), Identity and, as the last, Softmax(dim=-1), as modules or "
    "functions; Dropout in eval mode; a Flatten before the first"
)


def from_torch(
    module: Any,
    *,
    cost: str | Cost = "quadratic",
    backend: str = "auto",
    seed: int | None = None,
) -> Network:
    """Make the network that computes what a module does, with a copy of its parameters.

    Parameters
    ----------
    module : nn.Module
        An nn.Sequential, an MLP, or any whose forward torch.fx can read and which is a chain of
        Linear layers (n_{l-1} -> n_l), after each at most one activation; none is identity.
        Dropout in eval mode is left out, and so is a Flatten at the beginning, for X has one
        sample per row. Parameters all float32 or all float64, on any device.
    cost : str or Cost
        As in `Network`.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}
        As in `Network`.
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
        # An MLP's own forward is one function, but is what its modules are.
        if isinstance(module, MLP) and type(module).forward is MLP.forward:
            layers = _read(module[:])
        else:
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
        activation=[layer.sigma or IDENTITY for layer in layers],
        cost=cost,
        dtype=dtypes.pop(),
        backend=backend,
        seed=seed,
        precision=getattr(module, "precision", None) if isinstance(module, MLP) else None,
    )
    net.weights = tuple(layer.weight.detach().cpu().numpy() for layer in layers)
    net.biases = tuple(layer.bias.detach().cpu().numpy() for layer in layers)
    return net


def to_torch(net: Network) -> Any:
    """Make the nn.Sequential that computes what a network does, with a copy of its parameters.

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
        if not (activation.builtin and activation.name in MODULES):
            raise ValueError(
                f"PyTorch has no module for activation {activation.name!r} of layer {l}; "
                f"it has for {', '.join(MODULES)}"
            )
    return nn.Sequential(*layers_of(net, getattr(torch, net.dtype.name), "cpu"))


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
        if type(m).forward is nn.Linear.forward or isinstance(
            m, (ExponentialModule, UsersActivation)
        ):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))


def _read(module: Any) -> list[_Layer]:
    """The layers, if all that the module does is Linear and activations, one after another."""
    for place, child in module.named_modules():
        if child._forward_hooks or child._forward_pre_hooks:  # noqa: SLF001
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
            if isinstance(each, torch.fx.Node) and each.op == "get_attr"
            else each
            for each in (_argument(node, 1, "weight"), _argument(node, 2, "bias"))
        )
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
    if isinstance(what, UsersActivation):
        return what.activation
    is_module = isinstance(what, nn.Module)
    name = SIGMAS.get(type(what)) if is_module else FUNCTIONS.get(node.target)
    if name is None:
        raise _unsupported(place, what, "a Network has nothing like it")
    for at, (setting, default, is_ours) in enumerate(SETTINGS.get(name, ()), start=1):
        value = getattr(what, setting) if is_module else _argument(node, at, setting, default)
        if not is_ours(value):
            why = "not with this setting" if is_module else f"not with {setting}={value}"
            raise _unsupported(place, what, why)
    return activations.get(name)


def _unsupported(place: str, layer: Any, why: str) -> ValueError:
    return ValueError(f"layer {place}, {layer}, is not supported: {why}; {_SUPPORTED}")
