"""The notes' equations on PyTorch's tensors: our kernels on a device, PyTorch elsewhere."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.fx
from torch.nn import functional as F

from ..activations import Activation
from ..backends.cuda import CudaBackend
from ..cuda.runtime import Runtime, runtime
from ..self_check import layered_obstacle
from .modules import (
    IDENTITY,
    MODULES,
    SOFTPLUS_THRESHOLD,
    Users,
    UsersActivation,
    has_derivative,
    no_derivative,
)

Tensor = Any
aten = torch.ops.aten


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
def equations_of(x: Tensor, precision: str | None) -> Iterator[_Equations]:
    """The equations for tensors like x, on the stream that PyTorch uses there.

    Parameters
    ----------
    precision : str or None
        What factors of products are rounded to, if they are.
    """
    if _kind(x) == "cpu" or x.numel() == 0:  # no kernel is launched on nothing
        yield TORCH if precision is None else OnTorch(precision)
        return
    try:
        device = runtime(x.device.index)
    except ImportError as error:
        raise ImportError(
            "MLP on a CUDA device needs cuda.core: pip install 'backprop_gpu[cu13]' or "
            "'backprop_gpu[cu12]', after the driver's CUDA version"
        ) from error
    # A check in the midst of somebody's capture would be captured, or break it.
    if precision is not None and not device.device.multiplies_rounded:
        raise RuntimeError(
            f"{device.device.name} multiplies in float32 alone, and not in {precision}"
        )
    usable = torch.cuda.is_current_stream_capturing() or passed_check(device, x.dtype, precision)
    if not usable:
        yield TORCH if precision is None else OnTorch(precision)
        return
    with device.on(torch.cuda.current_stream(x.device).cuda_stream):
        yield OnCuda(device, x, precision)


#: By dtype and precision, the devices on which our kernels are right.
PASSED: dict[Any, weakref.WeakSet[Runtime]] = {}


def passed_check(device: Runtime, dtype: Any, precision: str | None = None) -> bool:
    """Whether our kernels compute what they should there; warns once if not (`self_check`)."""
    right = PASSED.setdefault((dtype, precision), weakref.WeakSet())
    if device not in right:
        numbers = np.dtype(str(dtype).removeprefix("torch."))
        if layered_obstacle(device, numbers, precision) is not None:
            return False
        right.add(device)
    return True


def _kind(x: Tensor) -> str:
    return str(x.device.type)


class OnCuda:
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
    precision : str or None
        What factors of products are rounded to, if they are.
    """

    def __init__(self, runtime: Runtime, like: Tensor, precision: str | None) -> None:
        self._runtime = runtime
        # Made afresh: scratch arrays must not be shared by two streams.
        dtype = str(like.dtype).removeprefix("torch.")
        self._backend = CudaBackend(dtype, runtime, precision=precision)
        self._backend.scratch = self._scratch
        self._like = like

    def _scratch(self, size: int, dtype: Any) -> Any:
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
        return self.hidden_error(w, delta, None, x, IDENTITY).div_(len(delta))

    def bias_gradient(self, delta: Tensor) -> Tensor:
        out = delta.new_empty(delta.shape[1])
        self._backend.bias_gradient(self._view(delta), self._view(out))
        return out

    def weight_gradient(self, delta: Tensor, a_prev: Tensor) -> Tensor:
        out = delta.new_empty((delta.shape[1], a_prev.shape[1]))
        self._backend.weight_gradient(self._view(delta), self._view(a_prev), self._view(out))
        return out


class OnTorch:
    """PyTorch's own operations, each into a tensor made for it or in place.

    On the CPU they keep to PyTorch's threads; NumPy's BLAS has threads of its own, which would
    wait for the cores that PyTorch's still spin on. ``out=`` also keeps autocast away.

    Parameters
    ----------
    precision : str or None
        What factors of products are rounded to, if they are.
    """

    def __init__(self, precision: str | None = None) -> None:
        self._precision = precision

    def _product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        if self._precision is not None:
            a, b = rounded(a, self._precision), rounded(b, self._precision)
        return torch.mm(a, b, out=out)

    def reads_z(self, sigma: Activation) -> bool:
        return _sigma(sigma).from_z

    def forward(
        self, w: Tensor, b: Tensor, a_prev: Tensor, sigma: Activation, keep_z: bool
    ) -> tuple[Tensor | None, Tensor]:
        if self._precision is not None:
            w, a_prev = rounded(w, self._precision), rounded(a_prev, self._precision)
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
        return self._product(delta, w, x.new_empty(x.shape))

    def bias_gradient(self, delta: Tensor) -> Tensor:
        return torch.sum(delta, 0, out=delta.new_empty(delta.shape[1]))

    def weight_gradient(self, delta: Tensor, a_prev: Tensor) -> Tensor:
        out = delta.new_empty((delta.shape[1], a_prev.shape[1]))
        return self._product(delta.t(), a_prev, out)


def rounded(x: Tensor, precision: str) -> Tensor:
    """x as `precision.round_factor` has it, in a tensor of its own."""
    if precision == "bf16":
        return x.detach().bfloat16().float()
    bits = x.detach().view(torch.int32)
    return torch.where(torch.isnan(x), x, ((bits + 0x1000) & ~0x1FFF).view(torch.float32))


class RoundedProduct(torch.autograd.Function):
    """a bᵀ of rounded factors; the products of its derivatives round theirs, too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, precision: str) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.precision = precision
        out = a.new_empty((len(a), len(b)))
        return torch.mm(rounded(a, precision), rounded(b, precision).t(), out=out)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, None]:
        (a, b), precision = ctx.saved_tensors, ctx.precision
        return (
            RoundedProduct.apply(error, b.t(), precision),
            RoundedProduct.apply(error.t(), a.t(), precision),
            None,
        )


def differentiable(
    sigmas: tuple[Activation, ...],
    precision: str | None,
    x: Tensor,
    parameters: Sequence[Tensor],
    wanted: Sequence[bool],
    error: Tensor,
) -> tuple[Any, ...]:
    """∂C/∂x, ∂C/∂w, ∂C/∂b as PyTorch's own operations, of which PyTorch knows the derivatives."""
    depth = len(sigmas)
    for sigma in sigmas:
        if not has_derivative(sigma, 2):
            raise no_derivative(sigma, 2)
    with torch.enable_grad(), torch.autocast(error.device.type, enabled=False):
        a = x
        for w, b, sigma in zip(parameters[:depth], parameters[depth:], sigmas, strict=True):
            if precision is None:
                z = F.linear(a, w, b)
            else:
                z = RoundedProduct.apply(a, w, precision) + b
            if not sigma.builtin:
                a = UsersActivation(sigma)(z)
            elif sigma.name == "exponential":
                a = torch.exp(z)
            else:
                a = MODULES[sigma.name](str(z.dtype).removeprefix("torch."))(z)
        asked = [t for t, want in zip((x, *parameters), wanted, strict=True) if want]
        found = iter(torch.autograd.grad(a, asked, error, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


class _Sigma(Protocol):
    """σ on tensors of one shape, (m, n)."""

    #: Whether the pull-back reads z; otherwise it reads a.
    from_z: bool

    def evaluate(self, z: Tensor, out: Tensor) -> Tensor:
        """out = σ(z). z and out may be the same tensor."""

    def pull_back(self, error: Tensor, z: Tensor, a: Tensor, out: Tensor) -> Tensor:
        """out = error ⊙ σ'(z). error and out may be the same tensor."""


class _BuiltinSigma:
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
SIGMA_OPERATIONS: dict[str, _BuiltinSigma] = {
    "sigmoid": _BuiltinSigma(
        lambda z, out: torch.sigmoid(z, out=out),
        lambda error, z, a, out: aten.sigmoid_backward.grad_input(error, a, grad_input=out),
    ),
    "tanh": _BuiltinSigma(
        lambda z, out: torch.tanh(z, out=out),
        lambda error, z, a, out: aten.tanh_backward.grad_input(error, a, grad_input=out),
    ),
    "relu": _BuiltinSigma(
        lambda z, out: torch.clamp(z, min=0.0, out=out),
        lambda error, z, a, out: aten.threshold_backward.grad_input(error, a, 0.0, grad_input=out),
    ),
    "leaky_relu": _BuiltinSigma(
        lambda z, out: aten.leaky_relu.out(z, 0.01, out=out),
        lambda error, z, a, out: aten.leaky_relu_backward.grad_input(
            error, a, 0.01, True, grad_input=out
        ),
    ),
    "elu": _BuiltinSigma(
        lambda z, out: aten.elu.out(z, out=out),
        lambda error, z, a, out: aten.elu_backward.grad_input(
            error, 1.0, 1.0, 1.0, True, a, grad_input=out
        ),
    ),
    "gelu": _BuiltinSigma(
        _gelu,  # σ' in one pass is PyTorch's: 1 + erf is off by one part in 10^7 of 1, in float32
        lambda error, z, a, out: aten.gelu_backward.grad_input(error, z, grad_input=out),
        from_z=True,
    ),
    "silu": _BuiltinSigma(
        lambda z, out: aten.silu.out(z, out=out),
        lambda error, z, a, out: aten.silu_backward.grad_input(error, z, grad_input=out),
        from_z=True,
    ),
    "softplus": _BuiltinSigma(
        lambda z, out: aten.softplus.out(z, 1.0, SOFTPLUS_THRESHOLD["float64"], out=out),
        lambda error, z, a, out: aten.softplus_backward.grad_input(
            error, z, 1.0, SOFTPLUS_THRESHOLD["float64"], grad_input=out
        ),
        from_z=True,
    ),
    "identity": _BuiltinSigma(lambda z, out: None, lambda error, z, a, out: None),
    "exponential": _BuiltinSigma(
        lambda z, out: torch.exp(z, out=out),
        lambda error, z, a, out: torch.mul(error, a, out=out),
    ),
    "softmax": _BuiltinSigma(_softmax, _softmax_pull_back),
}


def _sigma(activation: Activation) -> _Sigma:
    return SIGMA_OPERATIONS[activation.name] if activation.builtin else Users(activation)


TORCH = OnTorch()
