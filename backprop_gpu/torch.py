"""PyTorch's models as ours and ours as PyTorch's, and our equations as a layer of PyTorch's.

    from_torch, to_torch    an nn.Sequential as a `Network`, and back: the same numbers
    MLP                     an nn.Module whose forward pass and gradients are the notes' equations

`docs/torch.md` tells what is the same and what differs. Only this module imports PyTorch
(``pip install 'backprop_gpu[torch]'``).

PyTorch differentiates C itself, whose gradient with respect to the outputs is
∂C/∂a = ∇_a C_x / m for a mean over m samples. δ is here ∂C/∂z, the notes' δ divided by m, so
that BP3 and BP4 are sums over the samples where the notes have means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from . import activations
from .activations import Activation
from .backends.cuda import CudaBackend, CupyRuntime
from .costs import Cost
from .imports import uninterrupted
from .network import Network

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
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
    "Softplus(beta=1, threshold>=20), Identity and, as the last, Softmax(dim=-1)"
)


# -- models as networks and back --------------------------------------------------------------


def from_torch(
    module: Any,
    *,
    cost: str | Cost = "quadratic",
    backend: str = "auto",
    seed: int | None = None,
) -> Network:
    """The network that computes what an nn.Sequential does, with a copy of its parameters.

    Parameters
    ----------
    module : nn.Sequential or MLP
        Linear modules (n_{l-1} -> n_l), after each at most one activation; none is identity.
        Sequentials inside are opened; a Flatten at the beginning is left out, for X has one
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
        For a module or setting that no network has, naming it, its position and what is
        supported; for parameters that are not of one dtype, shared by two layers, or not finite.
    """
    sigmas: Sequence[str | Activation]
    if isinstance(module, MLP):
        linears, sigmas = module.linears, module.activations
        places = [str(2 * l) for l in range(len(linears))]
    elif isinstance(module, nn.Sequential):
        places, linears, sigmas = _read(module)
    else:
        raise TypeError(f"module must be an nn.Sequential or an MLP, got {type(module).__name__}")

    dtypes = {str(p.dtype).removeprefix("torch.") for l in linears for p in (l.weight, l.bias)}
    if len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        raise TypeError(
            "parameters of module must all be float32 or all be float64, "
            f"got {', '.join(sorted(dtypes))}"
        )
    for (p, before), (q, linear) in pairwise(zip(places, linears, strict=True)):
        if before.out_features != linear.in_features:
            raise ValueError(
                f"layer {q}: {linear} does not fit layer {p}, which has "
                f"{before.out_features} outputs"
            )
    owners: dict[int, str] = {}
    for place, linear in zip(places, linears, strict=True):
        owner = owners.setdefault(id(linear.weight), place)
        if owner != place:
            raise ValueError(
                f"layer {place} shares its weight with layer {owner}: every layer of a Network "
                "has its own"
            )

    net = Network(
        [linears[0].in_features, *(linear.out_features for linear in linears)],
        activation=sigmas,
        cost=cost,
        dtype=dtypes.pop(),
        backend=backend,
        seed=seed,
    )
    net.weights = tuple(linear.weight.detach().cpu().numpy() for linear in linears)
    net.biases = tuple(linear.bias.detach().cpu().numpy() for linear in linears)
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
    layers: list[Any] = []
    for w, b, activation in zip(net.weights, net.biases, net.activations, strict=True):
        linear = _empty_linear(w.shape[1], w.shape[0], getattr(torch, net.dtype.name), None)
        _fill(linear, w, b)
        layers += [linear, _MODULES[activation.name](net.dtype.name)]
    return nn.Sequential(*(layers[:-1] if net.activations[-1].name == "identity" else layers))


def _read(module: Any) -> tuple[list[str], list[Any], list[str]]:
    """Where the Linear modules stand, the modules, and the names of the σ after each."""
    places: list[str] = []
    linears: list[Any] = []
    sigmas: list[str | None] = []
    for place, layer in _flattened(module):
        if isinstance(layer, nn.Identity):
            continue
        if isinstance(layer, nn.Flatten) and not linears:
            if (layer.start_dim, layer.end_dim) != (1, -1):
                raise _unsupported(place, layer, "only Flatten(start_dim=1, end_dim=-1) is known")
            continue
        if isinstance(layer, nn.Linear):
            if type(layer).forward is not nn.Linear.forward:
                raise _unsupported(place, layer, "it has a forward of its own")
            if layer.bias is None:
                raise _unsupported(
                    place, layer, "training would move the b that it does not have; give it a "
                    "bias of zeros",
                )  # fmt: skip
            if sigmas and sigmas[-1] == "softmax":
                raise _unsupported(place, layer, "it comes after a Softmax")
            places.append(place)
            linears.append(layer)
            sigmas.append(None)
            continue
        name = _sigma_of(place, layer)
        if not linears:
            raise _unsupported(place, layer, "no Linear comes before it")
        if sigmas[-1] is not None:
            raise _unsupported(place, layer, "a layer has one activation, and this is its second")
        sigmas[-1] = name
    if not linears:
        raise ValueError(f"module has no Linear; {_SUPPORTED}")
    return places, linears, [name or "identity" for name in sigmas]


def _flattened(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if type(module).forward is not nn.Sequential.forward:
        raise TypeError(f"module {type(module).__name__} is a Sequential with a forward of its own")
    for name, child in module._modules.items():  # named_children leaves a module's second use out
        place = prefix + name
        if child._forward_hooks or child._forward_pre_hooks:
            raise _unsupported(place, child, "it has hooks, which may change what it computes")
        if isinstance(child, nn.Sequential):
            yield from _flattened(child, f"{place}.")
        else:
            yield place, child


#: The modules that are activations, and the settings with which they are ours.
_SIGMAS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    nn.Sigmoid: ("sigmoid", lambda m: True),
    nn.Tanh: ("tanh", lambda m: True),
    nn.ReLU: ("relu", lambda m: True),
    nn.LeakyReLU: ("leaky_relu", lambda m: m.negative_slope == 0.01),
    nn.ELU: ("elu", lambda m: m.alpha == 1.0),
    nn.GELU: ("gelu", lambda m: m.approximate == "none"),
    nn.SiLU: ("silu", lambda m: True),
    nn.Softplus: ("softplus", lambda m: m.beta == 1.0 and m.threshold >= 20.0),
    nn.Softmax: ("softmax", lambda m: m.dim in (-1, 1)),
}


def _sigma_of(place: str, layer: Any) -> str:
    name, same = _SIGMAS.get(type(layer), (None, None))
    if name is None or same is None:
        raise _unsupported(place, layer, "a Network has nothing like it")
    if not same(layer):
        raise _unsupported(place, layer, "not with this setting")
    return name


def _unsupported(place: str, layer: Any, why: str) -> ValueError:
    return ValueError(f"layer {place}, {layer}, is not supported: {why}; {_SUPPORTED}")


def _empty_linear(fan_in: int, n: int, dtype: Any, device: Any) -> Any:
    """A Linear that has drawn no weights, and so left PyTorch's random numbers alone."""
    linear = nn.Linear(fan_in, n, dtype=dtype, device="meta")
    return linear.to_empty(device="cpu" if device is None else device)


def _fill(linear: Any, w: np.ndarray, b: np.ndarray) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(w))
        linear.bias.copy_(torch.tensor(b))


# -- the module ---------------------------------------------------------------------------------


class MLP(nn.Module):
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
        The CPU unless given.
    seed : int, optional
        The initial parameters are those of ``Network(sizes, activation=..., seed=seed)``. Left
        out, it is drawn from PyTorch's generator, so ``torch.manual_seed`` makes them repeatable.
    initial_weights : str
        As of `Network`.

    Attributes
    ----------
    sizes : tuple of int
    activations : tuple of Activation
        σ of layers 1 … L.

    Notes
    -----
    Parameters are called as those of the same nn.Sequential: 0.weight (n_1, n_0), 0.bias (n_1,),
    2.weight, …, so a ``state_dict`` of either loads into the other. The modules 0, 2, … hold the
    parameters and are not called: hooks on them do not run.

    Under autocast inputs are cast to the parameters' dtype and the arithmetic stays what it is.
    With ``create_graph=True`` gradients are computed by PyTorch's own differentiable operations,
    so that they can be differentiated again.

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
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        drawn = Network(
            sizes,
            activation=activation,
            dtype=str(dtype).removeprefix("torch."),
            backend="numpy",
            seed=seed,
            initial_weights=initial_weights,
        )
        self.sizes = drawn.sizes
        self.activations = drawn.activations
        for l, (w, b) in enumerate(zip(drawn.weights, drawn.biases, strict=True)):
            linear = _empty_linear(w.shape[1], w.shape[0], dtype, device)
            _fill(linear, w, b)
            self.add_module(str(2 * l), linear)

    @property
    def linears(self) -> list[Any]:
        """The modules that hold w^l and b^l, as ``weight`` and ``bias``, l = 1 … L."""
        return [self._modules[str(2 * l)] for l in range(len(self.activations))]

    def extra_repr(self) -> str:
        names = [activation.name for activation in self.activations]
        return f"{list(self.sizes)}, activation={names[0] if len(set(names)) == 1 else names!r}"

    def forward(self, x: Tensor) -> Tensor:
        """a^L of every sample: (…, n_0) -> (…, n_L).

        Raises
        ------
        TypeError
            If x is no tensor, or not of the parameters' dtype.
        ValueError
            If its last dimension is not n_0, or it is on another device.
        """
        linears = self.linears
        weights = [linear.weight for linear in linears]
        parameters = [*weights, *(linear.bias for linear in linears)]
        dtype, device = self._check_parameters(parameters)
        x = self._check_input(x, dtype, device)
        rows = x.reshape(-1, self.sizes[0]) if x.dim() != 2 else x
        if torch.is_grad_enabled() and (
            rows.requires_grad or any(p.requires_grad for p in parameters)
        ):
            a = _Backpropagation.apply(self.activations, rows, *parameters)
        else:
            with torch.no_grad():
                a = _infer(self.activations, rows, parameters)
        return a.reshape(*x.shape[:-1], self.sizes[-1]) if x.dim() != 2 else a

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
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"parameters must be on cpu or cuda, got {device}")
        return dtype, device

    def _check_input(self, x: Tensor, dtype: Any, device: Any) -> Tensor:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() == 0 or x.shape[-1] != self.sizes[0]:
            raise ValueError(f"x must have shape (…, {self.sizes[0]}), got {tuple(x.shape)}")
        if x.device != device:
            raise ValueError(f"x must be on {device}, where the parameters are, got {x.device}")
        if x.dtype is not dtype:
            if not (x.dtype.is_floating_point and _autocasting(device.type)):
                raise TypeError(f"x must be {dtype}, as the parameters are, got {x.dtype}")
            x = x.to(dtype)
        if x.layout is not torch.strided:
            raise TypeError(f"x must be a dense tensor, got {x.layout}; pass x.to_dense()")
        return x


def _autocasting(device: str) -> bool:
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
            raise RuntimeError(
                f"MLP cannot be differentiated twice (create_graph=True) with activation "
                f"{sigma.name!r}: a user's activation has no second derivative"
            )
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
        with uninterrupted():
            import cupy
    except ImportError as error:
        raise ImportError(
            "MLP on a CUDA device needs CuPy: pip install 'backprop_gpu[cu13]' or "
            "'backprop_gpu[cu12]', after the driver's CUDA version"
        ) from error
    index = x.device.index
    stream = cupy.cuda.Stream.from_external(_Stream(torch.cuda.current_stream(x.device)))
    with cupy.cuda.Device(index), stream:
        # A backend is made afresh: scratch arrays must not be shared by two streams.
        dtype = str(x.dtype).removeprefix("torch.")
        yield _OnCuda(CudaBackend(dtype, _runtime(index)), cupy.from_dlpack)


def _kind(x: Tensor) -> str:
    return str(x.device.type)


class _Stream:
    """PyTorch's stream, as CuPy takes one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream


@lru_cache
def _runtime(index: int) -> Any:
    """The current device, which is that of this number, with the kernels loaded so far."""
    return CupyRuntime()


class _OnCuda:
    """Our kernels, in the memory of PyTorch's tensors.

    They take means over the rows, as the notes do. So δ is m times ∂C/∂z here, as in the notes,
    and what leaves is right: means of the m-fold are sums.

    Parameters
    ----------
    backend : CudaBackend
    array : callable
        The backend's array in the memory of a tensor.
    """

    def __init__(self, backend: CudaBackend, array: Callable[[Tensor], Any]) -> None:
        self._backend = backend
        self._array = array

    def _view(self, tensor: Tensor | None) -> Any:
        return None if tensor is None else self._array(tensor.detach().contiguous())

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
