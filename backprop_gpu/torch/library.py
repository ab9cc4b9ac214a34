"""Passes of CPU tensors through the compiled library, as one function to autograd."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from .. import costs, cpu, planning
from ..activations import Activation
from .equations import differentiable

Tensor = Any


class TensorPasses:
    """The library's passes over tensors of one shape of network. Any number of threads may use it.

    It reads and writes PyTorch's memory, and takes as many threads as PyTorch would.

    Parameters
    ----------
    sizes : (n_0, …, n_L)
    sigmas : σ of layers 1 … L, built in
    dtype : numpy dtype
    """

    def __init__(
        self, sizes: tuple[int, ...], sigmas: tuple[Activation, ...], dtype: np.dtype[Any]
    ) -> None:
        self.sizes, self.sigmas = sizes, sigmas
        self._library = cpu.library()
        # C is the caller's: what is asked for is a^L, and what is given ∂C/∂a^L.
        self._network = cpu.describe(sizes, sigmas, costs.get("quadratic"), dtype)
        #: Round trips whose graphs are gone, by what they are for: new ones' pages are faulted in.
        self._idle: dict[Any, list[_RoundTrip]] = {}

    def _lend(self, stage: int, rows: int, inputs_error: bool) -> _Lent:
        key = stage, rows, torch.get_num_threads(), inputs_error
        try:
            trip = self._idle[key].pop()
        except LookupError:
            work = planning.gradient_work(self.sizes, rows, lambda: key[2])
            trip = _RoundTrip(self._library, self._network, stage, rows, work, inputs_error)
        return _Lent(trip, self._idle, key)

    def infer(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """a^L, (m, n_L), of x (m, n_0), whose rows are contiguous, like the parameters."""
        out = x.new_empty((x.shape[0], self.sizes[-1]))
        self._lend(cpu.READ, x.shape[0], False).trip.forward(x, parameters, out)
        return out

    def forward(
        self, x: Tensor, parameters: Sequence[Tensor], inputs_error: bool
    ) -> tuple[Tensor, _Lent]:
        """a^L, and what `backward` needs besides; it will want ∂C/∂x if `inputs_error`."""
        out = x.new_empty((x.shape[0], self.sizes[-1]))
        lent = self._lend(cpu.FORWARD, x.shape[0], inputs_error)
        lent.trip.forward(x, parameters, out)
        return out, lent

    def backward(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        lent: _Lent,
        error: Tensor,
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """∂C/∂x, ∂C/∂w^1 … ∂C/∂w^L, ∂C/∂b^1 … ∂C/∂b^L, of those that are wanted.

        Parameters
        ----------
        error : (m, n_L) contiguous tensor
            ∂C/∂a^L.
        """
        # Where things lie in the memory depends on what the forward pass was told.
        found = [x.new_empty(x.shape) if lent.trip.inputs_error else None]
        found += [
            torch.empty_like(p) if want else None
            for p, want in zip(parameters, wanted[1:], strict=True)
        ]
        lent.trip.backward(x, parameters, error, found)
        return found


#: Bytes beyond which memory is not kept: what a step computes takes longer than its pages.
_KEPT = 1 << 25


class _RoundTrip:
    """A pass as the library is told of it, with its memory: there, and back if it goes back."""

    def __init__(
        self,
        library: cpu.CpuLibrary,
        network: cpu.AbiNetwork,
        stage: int,
        rows: int,
        work: planning.CpuWork,
        inputs_error: bool,
    ) -> None:
        self.inputs_error = inputs_error
        self._library, self._stage = library, stage
        self._parameters = cpu.addresses_from([None] * (2 * network.depth))
        self._gradients = cpu.addresses_from([None] * (2 * network.depth))
        self._run = cpu.AbiPass(
            ctypes.pointer(network), None, None, 0, ctypes.addressof(self._parameters), False,
            stage, rows, work.threads, work.block, work.in_place, 0,
        )  # fmt: skip
        self._run.total = 1.0
        self._run.inputs_error = 1 if inputs_error else None  # only whether there is one, forward
        self._memory = torch.empty(library.pass_bytes(self._run), dtype=torch.uint8)
        self._run.memory = self._memory.data_ptr()
        self.worth_keeping = len(self._memory) <= _KEPT

    def forward(self, x: Tensor, parameters: Sequence[Tensor], out: Tensor) -> None:
        run = self._run
        run.stage, run.outputs = self._stage, out.data_ptr()
        self._go(x, parameters)

    def backward(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        error: Tensor,
        found: Sequence[Tensor | None],
    ) -> None:
        run = self._run
        run.stage, run.error = cpu.BACKWARD, error.data_ptr()
        self._gradients[:] = [None if g is None else g.data_ptr() for g in found[1:]]
        run.gradients = ctypes.addressof(self._gradients)
        run.inputs_error = None if found[0] is None else found[0].data_ptr()
        self._go(x, parameters)

    def _go(self, x: Tensor, parameters: Sequence[Tensor]) -> None:
        run = self._run
        run.X, run.x_row = x.data_ptr(), x.stride(0)
        self._parameters[:] = [p.data_ptr() for p in parameters]
        self._library.run(run, openmp())


class _Lent:
    """A round trip that goes back where it came from when nobody needs it any more."""

    __slots__ = ("_idle", "_key", "trip")

    def __init__(self, trip: _RoundTrip, idle: dict[Any, list[_RoundTrip]], key: Any) -> None:
        self.trip, self._idle, self._key = trip, idle, key

    def __del__(self) -> None:
        if self.trip.worth_keeping:
            kept = self._idle.setdefault(self._key, [])
            if len(kept) < 2 and len(self._idle) < 8:  # what few training loops need
                kept.append(self.trip)


def library_of(sigmas: tuple[Activation, ...], x: Tensor, parameters: Sequence[Tensor]) -> Any:
    """The library's passes for CPU tensors, or None where PyTorch's operations must do."""
    if not x.is_cpu or x.numel() == 0 or cpu_obstacle() is not None:
        return None
    return _library_of(sigmas, x.dtype, x.shape[1], tuple([p.shape for p in parameters]))


@lru_cache(maxsize=1)
def openmp() -> cpu.AbiOpenMP | None:
    """PyTorch's own threads. The library's would wait for the cores on which these spin."""
    try:
        functions = ctypes.CDLL(torch._C.__file__)  # noqa: SLF001 - it depends on OpenMP
        found = [getattr(functions, name) for name, *_ in cpu.AbiOpenMP._fields_]
    except (OSError, AttributeError):  # PyTorch is built with other threads
        return None
    return cpu.AbiOpenMP(*(ctypes.cast(function, ctypes.c_void_p) for function in found))


@lru_cache(maxsize=1)
def cpu_obstacle() -> str | None:
    """Why there is no library here, if there is none."""
    return cpu.obstacle((), np.dtype(np.float32))


@lru_cache(maxsize=64)
def _library_of(
    sigmas: tuple[Activation, ...], dtype: Any, n_inputs: int, shapes: tuple[Any, ...]
) -> TensorPasses | None:
    sizes = (n_inputs, *(b[0] for b in shapes[len(sigmas) :]))
    of_layers = *((n, k) for k, n in pairwise(sizes)), *((n,) for n in sizes[1:])
    # Modules may have been replaced; where their shapes do not fit, PyTorch says so.
    if shapes != of_layers or not all(sigma.builtin for sigma in sigmas):
        return None
    return TensorPasses(sizes, sigmas, np.dtype(str(dtype).removeprefix("torch.")))


def rows_of(x: Tensor) -> Tensor:
    """x (m, n) with contiguous rows, as it is if it has them."""
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


class LibraryFunction(torch.autograd.Function):
    """a^L of x, (m, n_0), as a function of x, w^1 … w^L and b^1 … b^L."""

    @staticmethod
    def forward(ctx: Any, library: TensorPasses, x: Tensor, *parameters: Tensor) -> Tensor:
        a, lent = library.forward(
            rows_of(x), [p.contiguous() for p in parameters], ctx.needs_input_grad[1]
        )
        ctx.library, ctx.lent, ctx.lock = library, lent, threading.Lock()
        ctx.save_for_backward(x, *parameters)
        return a

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        """From ∂C/∂a^L to ∂C/∂x, ∂C/∂w and ∂C/∂b, of those that are asked for."""
        x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *differentiable(ctx.library.sigmas, None, x, parameters, wanted, error)
        with ctx.lock:  # a graph that is kept may be gone through by several threads
            return None, *ctx.library.backward(
                rows_of(x), [p.contiguous() for p in parameters], ctx.lent, error.contiguous(),
                wanted,
            )  # fmt: skip
