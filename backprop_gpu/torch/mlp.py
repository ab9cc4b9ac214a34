"""`MLP`, an nn.Sequential whose forward pass and gradients are one function."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.fx
from torch import nn
from torch.nn.modules.module import _has_any_global_hook as _any_global_hook

from .. import activations
from ..activations import Activation
from ..network import Network
from ..precision import resolve
from .equations import differentiable, equations_of
from .library import LibraryFunction, library_of, rows_of
from .modules import (
    IDENTITY,
    PLAIN,
    SETTINGS,
    SIGMAS,
    UsersActivation,
    layers_of,
    transformed,
)

Tensor = Any


class MLP(nn.Sequential):
    """A fully connected network a^l = σ(w^l a^{l-1} + b^l) as a module of PyTorch.

    The forward pass and the gradients (BP2-BP4) are one function to autograd. On CPU tensors
    each is a call of the compiled library, in PyTorch's memory and on as many threads as
    ``torch.get_num_threads()``; with a user's activation, which is evaluated by NumPy in the
    tensors' memory, and where there is no library, PyTorch's own products and elementwise
    operations. On CUDA tensors it launches the kernels of `backends.cuda` on PyTorch's current
    stream, without copies.

    Parameters
    ----------
    sizes : sequence of int
        Neurons per layer, (n_0, …, n_L), input first.
    activation : str, Activation or a sequence of them
        As in `Network`.
    dtype : torch.float32 or torch.float64
        Of the parameters.
    device : torch.device, optional
        PyTorch's default device unless given.
    seed : int, optional
        The initial parameters are those of ``Network(sizes, activation=..., seed=seed)``. Left
        out, it is drawn from PyTorch's generator, so ``torch.manual_seed`` makes them repeatable.
    initial_weights : str
        As in `Network`.
    precision : str, optional
        What factors of products are rounded to, as in `Network`. Left out, PyTorch's settings
        decide: ``torch.autocast``, and on CUDA tensors ``torch.set_float32_matmul_precision``,
        whose "high" is "tf32" here and whose "medium" is "bf16"; a backward pass is as its forward
        pass was. An attribute that may be set, and is no part of the ``state_dict``.

    Notes
    -----
    It is the nn.Sequential of `to_torch`: nn.Linear and activation modules in turn, which
    ``model[0]``, ``len(model)`` and iteration give, and whose parameters are called 0.weight
    (n_1, n_0), 0.bias (n_1,), 2.weight, …, so a ``state_dict`` of either loads into the other.

    The modules are called one after another, by PyTorch, where one function would not do:
    `layer_by_layer` says why, if it is a matter of the model (hooks on a module, a module that was
    replaced or quantized, parameters of bfloat16 or float16, a device other than cpu and cuda). So
    they are under autocast, in the dtype that it chooses, while PyTorch traces, exports or
    compiles, under torch.func's transforms, and for subclasses of torch.Tensor. PyTorch's modules
    round nothing for a `precision`: with "tf32" or "bf16" these are errors, but for autocast, which
    then is without effect.

    With ``create_graph=True`` gradients are computed by PyTorch's own differentiable operations,
    so that they can be differentiated again.

    Any number of threads may call it, forward and backward, as they may any nn.Module: a call has
    no memory but its own. Gradients of several threads add up in ``.grad``, as PyTorch's do.

    Examples
    --------
    >>> import torch
    >>> from backprop_gpu.torch import MLP
    >>> mlp = MLP([784, 30, 10], seed=1)
    >>> mlp(torch.zeros(5, 784)).shape
    torch.Size([5, 10])
    """

    #: What was made before there were precisions has none.
    precision: str | None = None

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Activation | Sequence[str | Activation] = "sigmoid",
        *,
        dtype: Any = torch.float32,
        device: Any = None,
        seed: int | None = None,
        initial_weights: str = "auto",
        precision: str | None = None,
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
            precision=precision,
        )
        super().__init__(*layers_of(drawn, dtype, device or torch.empty(0).device))
        self.precision = precision

    @property
    def linears(self) -> list[Any]:
        """The modules that hold w^l and b^l, as ``weight`` and ``bias``, l = 1 … L."""
        return [module for module in self if isinstance(module, nn.Linear)]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons per layer, (n_0, …, n_L)."""
        linears = self.linears
        return (linears[0].in_features, *(linear.out_features for linear in linears))

    @property
    def activations(self) -> tuple[Activation, ...]:
        """Activations σ of layers 1 … L.

        Reading them raises ValueError where the modules are no longer Linear and activations in
        turn.
        """
        found = self._layers()
        if isinstance(found, str):
            raise ValueError(f"the modules are no longer Linear and activations in turn: {found}")
        return found.sigmas

    @property
    def layer_by_layer(self) -> str | None:
        """Why the modules are called one after another, rather than as one function; or None."""
        found = self._layers()
        return found if isinstance(found, str) else found.apart

    def _layers(self) -> _Layers | str:
        """What the modules are as layers, or which of them is none."""
        weights: list[Any] = []
        biases: list[Any] = []
        sigmas: list[Activation] = []
        open_ = False  # whether the last Linear has no σ yet
        apart = "there are hooks on all modules" if _any_global_hook() else None
        for name, module in self._modules.items():
            if (
                module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001
                or module._backward_hooks or module._backward_pre_hooks  # noqa: SLF001
            ):  # fmt: skip
                apart = f"module {name} has hooks"
            if type(module).forward is nn.Linear.forward and _held(module, "bias") is not None:
                if sigmas and not sigmas[-1].elementwise:
                    return f"module {name} comes after a Softmax"
                weights.append(_held(module, "weight"))
                biases.append(_held(module, "bias"))
                sigmas.append(IDENTITY)
                open_ = True
                continue
            sigma = _sigma_of_module(module)
            if sigma is None or not open_:
                return f"module {name} is {module}"
            sigmas[-1], open_ = sigma, False
        if not weights:
            return "there is no Linear"
        if apart is None and weights[0].dtype in _HALF:
            apart = f"its parameters are {weights[0].dtype}"
        if apart is None and not weights[0].is_cpu and not weights[0].is_cuda:
            apart = f"its parameters are on {weights[0].device}"
        return _Layers([*weights, *biases], tuple(sigmas), apart)

    def __getitem__(self, index: Any) -> Any:
        """A module, or an nn.Sequential of some of them, sharing their parameters."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script compiles instead."""
        self._check_apart("torch.jit.script")
        return self[:]

    def extra_repr(self) -> str:
        """Return what ``repr`` shows besides the modules.

        Returns
        -------
        str
            The precision, where one was given.
        """
        return "" if self.precision is None else f"precision={self.precision!r}"

    def _one_by_one(self, x: Tensor, why: str) -> Tensor:
        """What the modules make of x, called by PyTorch one after another."""
        self._check_apart(why)
        return super().forward(x)

    def _check_apart(self, why: str) -> None:
        if self.precision in ("tf32", "bf16"):
            raise RuntimeError(
                f"precision {self.precision!r} is of MLP's own passes, and because of {why} "
                "PyTorch calls its modules one after another; set precision = None"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs a^L of every sample.

        Parameters
        ----------
        x : (…, n_0) tensor
            Samples, in the parameters' dtype and on their device.

        Returns
        -------
        (…, n_L) tensor
            Outputs, which autograd can differentiate.

        Raises
        ------
        TypeError
            If x is no tensor, or not of the parameters' dtype.
        ValueError
            If its last dimension is not n_0, or it is on another device; if `precision` is not
            one of the parameters' dtype.
        RuntimeError
            If there is a `precision` to round to, and PyTorch would call the modules.
        """
        if torch.compiler.is_compiling() or transformed() or isinstance(x, torch.fx.Proxy):
            return self._one_by_one(x, "a transformation or trace")
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        found = self._layers()
        if isinstance(found, str):  # nothing is known of what these modules take
            return self._one_by_one(x, found)
        parameters, sigmas, apart = found
        if _autocasting(parameters[0]):
            if self.precision is None:
                return super().forward(x)
            x = x.to(parameters[0].dtype)
        dtype, device = self._check_parameters(parameters)
        self._check_input(x, parameters[0].shape[1], dtype, device)
        if type(x) not in PLAIN or apart is not None:
            return self._one_by_one(x, apart or f"x, a {type(x).__name__}")
        rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
        precision = self._rounds_to(rows)
        library = library_of(sigmas, rows, parameters) if precision is None else None
        if torch.is_grad_enabled() and (
            rows.requires_grad or any(p.requires_grad for p in parameters)
        ):
            if library is not None:
                a = LibraryFunction.apply(library, rows, *parameters)
            else:
                a = _Backpropagation.apply(sigmas, precision, rows, *parameters)
        elif library is not None:
            a = library.infer(rows_of(rows), [p.contiguous() for p in parameters])
        else:
            with torch.no_grad():
                a = _infer(sigmas, precision, rows, parameters)
        return a.reshape(*x.shape[:-1], a.shape[-1]) if x.dim() != 2 else a

    def _rounds_to(self, x: Tensor) -> str | None:
        """What factors are rounded to in passes over x, if they are."""
        if self.precision is None:
            return _matmul_precision(x.device) if x.is_cuda and x.dtype is torch.float32 else None
        dtype = str(x.dtype).removeprefix("torch.")
        precision = resolve(self.precision, np.dtype(dtype))
        return None if precision == dtype else precision

    def _check_parameters(self, parameters: list[Any]) -> tuple[Any, Any]:
        dtype, device = parameters[0].dtype, parameters[0].device
        for p in parameters:
            if p.dtype is not dtype or p.device != device:
                raise ValueError(
                    "parameters must all have one dtype and device, got "
                    + ", ".join(sorted({f"{p.dtype} on {p.device}" for p in parameters}))
                )
        if dtype not in (torch.float32, torch.float64, *_HALF):
            raise TypeError(
                "parameters must be torch.float32 or torch.float64, or for PyTorch's modules "
                f"torch.bfloat16 or torch.float16, got {dtype}"
            )
        return dtype, device

    def _check_input(self, x: Tensor, n_inputs: int, dtype: Any, device: Any) -> None:
        if x.dim() == 0 or x.shape[-1] != n_inputs:
            raise ValueError(f"x must have shape (…, {n_inputs}), got {tuple(x.shape)}")
        if x.device != device:
            raise ValueError(f"x must be on {device}, where the parameters are, got {x.device}")
        if x.dtype is not dtype:
            raise TypeError(f"x must be {dtype}, as the parameters are, got {x.dtype}")
        if x.layout is not torch.strided:
            raise TypeError(f"x must be a dense tensor, got {x.layout}; pass x.to_dense()")


class _Layers(NamedTuple):
    """What an `MLP`'s modules are when it is called."""

    #: w^1 … w^L and b^1 … b^L.
    parameters: list[Any]
    sigmas: tuple[Activation, ...]
    #: Why they are not one function, or None.
    apart: str | None


#: What PyTorch's modules compute in, and our passes do not.
_HALF = (torch.bfloat16, torch.float16)


def _matmul_precision(device: Any) -> str | None:
    """What PyTorch may round factors of float32 products to on a CUDA device."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        return {"high": "tf32", "medium": "bf16"}.get(torch.get_float32_matmul_precision())
    except RuntimeError:  # it was set by backend, from PyTorch 2.9 on
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else None


def _held(module: Any, name: str) -> Any:
    """``module.name``, sooner than PyTorch finds it."""
    held = module._parameters  # noqa: SLF001
    return held[name] if name in held else getattr(module, name)


def _sigma_of_module(module: Any) -> Activation | None:
    """The activation that a module is on tensors of any number of dimensions."""
    name = SIGMAS.get(type(module))
    if name is None:
        return module.activation if isinstance(module, UsersActivation) else None
    for setting, _, is_ours in SETTINGS.get(name, ()):
        value = getattr(module, setting)
        if not is_ours(value) or (setting == "dim" and value != -1):
            return None
    return activations.get(name)


def _autocasting(parameter: Tensor) -> bool:
    """Whether autocast is on where a parameter is."""
    if not parameter.is_cpu and not parameter.is_cuda:
        return False
    device = "cpu" if parameter.is_cpu else "cuda"
    try:
        return bool(torch.is_autocast_enabled(device))
    except TypeError:  # before PyTorch 2.4
        return bool(
            torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()
        )


class _Backpropagation(torch.autograd.Function):
    """a^L of x, (m, n_0), as a function of x, w^1 … w^L and b^1 … b^L."""

    @staticmethod
    def forward(
        ctx: Any,
        sigmas: tuple[Activation, ...],
        precision: str | None,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        depth = len(sigmas)
        weights, biases = parameters[:depth], parameters[depth:]
        a, z = [x], [None]
        with equations_of(x, precision) as equations:
            for w, b, sigma in zip(weights, biases, sigmas, strict=True):
                kept, out = equations.forward(w, b, a[-1], sigma, equations.reads_z(sigma))
                z.append(kept)
                a.append(out)
        ctx.sigmas, ctx.precision = sigmas, precision
        # a^L itself is for σ' alone, and for that only where z does not do.
        spared = sigmas[-1].builtin and (sigmas[-1].name == "identity" or z[-1] is not None)
        output = None if spared else a[-1]
        ctx.save_for_backward(*parameters, *a[:-1], output, *z[1:])
        return a[-1]

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        """From ∂C/∂a^L to ∂C/∂x, ∂C/∂w and ∂C/∂b, of those that are asked for."""
        sigmas, precision, saved = ctx.sigmas, ctx.precision, ctx.saved_tensors
        depth = len(sigmas)
        wanted = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            x, parameters = saved[2 * depth], saved[: 2 * depth]
            return None, None, *differentiable(sigmas, precision, x, parameters, wanted, error)
        weights, a, z = saved[:depth], saved[2 * depth : 3 * depth + 1], saved[3 * depth + 1 :]
        w_wanted, b_wanted = wanted[1 : depth + 1], wanted[depth + 1 :]
        gradients: list[Any] = [None] * (2 * depth + 1)
        with equations_of(error, precision) as equations:
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
        return None, None, *gradients


def _infer(
    sigmas: tuple[Activation, ...], precision: str | None, x: Tensor, parameters: list[Any]
) -> Tensor:
    """a^L alone."""
    depth, a = len(sigmas), x
    with equations_of(x, precision) as equations:
        for w, b, sigma in zip(parameters[:depth], parameters[depth:], sigmas, strict=True):
            a = equations.forward(w, b, a, sigma, False)[1]
    return a
