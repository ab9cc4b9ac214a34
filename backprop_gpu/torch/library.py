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
        self._pointer = ctypes.pointer(self._network)
        #: Memory of passes whose graphs are gone: a new one's pages would all be faulted in.
        self._idle: dict[int, list[Tensor]] = {}
        self._work = lru_cache(maxsize=64)(self._planned)
        #: Of w^1 … w^L and b^1 … b^L.
        self.shapes = [(n, k) for k, n in pairwise(sizes)] + [(n,) for n in sizes[1:]]

    def _planned(self, rows: int, threads: int) -> planning.CpuWork:
        return planning.gradient_work(self.sizes, rows, lambda: threads)

    def _pass(
        self,
        stage: int,
        x: Tensor,
        parameters: Sequence[Tensor],
        work: planning.CpuWork,
    ) -> cpu.AbiPass:
        rows = x.shape[0]
        where = _addresses(parameters)
        found = cpu.AbiPass(
            self._pointer, x.data_ptr(), None, x.stride(0), ctypes.addressof(where), False, stage,
            rows, work.threads, work.block, work.in_place, 0,
        )  # fmt: skip
        found.where = where  # which must not go before the pass does
        return found

    def infer(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """a^L, (m, n_L), of x (m, n_0), whose rows are contiguous, like the parameters."""
        out = torch.empty((x.shape[0], self.sizes[-1]), dtype=x.dtype)
        work = self._work(x.shape[0], torch.get_num_threads())
        reading = self._pass(cpu.READ, x, parameters, work)
        reading.outputs = out.data_ptr()
        self._library.run(reading, openmp())
        return out

    def forward(
        self, x: Tensor, parameters: Sequence[Tensor], inputs_error: bool
    ) -> tuple[Tensor, _Lent]:
        """a^L, and what `backward` needs besides; it will want ∂C/∂x if `inputs_error`."""
        out = torch.empty((x.shape[0], self.sizes[-1]), dtype=x.dtype)
        work = self._work(x.shape[0], torch.get_num_threads())
        run = self._pass(cpu.FORWARD, x, parameters, work)
        run.inputs_error = 1 if inputs_error else None  # only whether there is one, here
        memory = _Lent(self._idle, self._library.pass_bytes(run), work, inputs_error)
        run.outputs, run.memory = out.data_ptr(), memory.tensor.data_ptr()
        self._library.run(run, openmp())
        return out, memory

    def backward(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        memory: _Lent,
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
        wanted = (memory.inputs_error, *wanted[1:])
        like = [x.shape, *self.shapes]
        found = [
            torch.empty(shape, dtype=x.dtype) if want else None
            for shape, want in zip(like, wanted, strict=True)
        ]
        run = self._pass(cpu.BACKWARD, x, parameters, memory.work)
        where = _addresses(found[1:])
        run.memory, run.error, run.total = memory.tensor.data_ptr(), error.data_ptr(), 1.0
        run.gradients = ctypes.addressof(where)
        run.inputs_error = None if found[0] is None else found[0].data_ptr()
        self._library.run(run, openmp())
        return found


#: Bytes beyond which memory is not kept: what a step computes takes longer than its pages.
_KEPT = 1 << 25


class _Lent:
    """Memory that goes back where it came from when nobody needs it any more.

    It is for passes that are divided by `work`, with ∂C/∂x if `inputs_error`.
    """

    def __init__(
        self,
        idle: dict[int, list[Tensor]],
        size: int,
        work: planning.CpuWork,
        inputs_error: bool,
    ) -> None:
        self._idle, self._size, self.work, self.inputs_error = idle, size, work, inputs_error
        try:
            self.tensor = idle[size].pop()
        except LookupError:
            self.tensor = torch.empty(size, dtype=torch.uint8)

    def __del__(self) -> None:
        if self._size > _KEPT:
            return
        kept = self._idle.setdefault(self._size, [])
        if len(kept) < 2 and len(self._idle) < 8:  # what few training loops need
            kept.append(self.tensor)


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    return cpu.addresses_from([None if t is None else t.data_ptr() for t in tensors])


def library_of(sigmas: tuple[Activation, ...], x: Tensor, parameters: Sequence[Tensor]) -> Any:
    """The library's passes for CPU tensors, or None where PyTorch's operations must do."""
    depth = len(sigmas)
    if x.device.type != "cpu" or x.numel() == 0 or cpu_obstacle() is not None:
        return None
    sizes = (x.shape[1], *(b.shape[0] for b in parameters[depth:]))
    found = _library_of(sizes, sigmas, x.dtype)
    # Modules may have been replaced; where their shapes do not fit, PyTorch says so.
    if found is None or any(p.shape != s for p, s in zip(parameters, found.shapes, strict=True)):
        return None
    return found


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
    sizes: tuple[int, ...], sigmas: tuple[Activation, ...], dtype: Any
) -> TensorPasses | None:
    if not all(sigma.builtin for sigma in sigmas):
        return None
    return TensorPasses(sizes, sigmas, np.dtype(str(dtype).removeprefix("torch.")))


def rows_of(x: Tensor) -> Tensor:
    """x (m, n) with contiguous rows, as it is if it has them."""
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


class LibraryFunction(torch.autograd.Function):
    """a^L of x, (m, n_0), as a function of x, w^1 … w^L and b^1 … b^L."""

    @staticmethod
    def forward(ctx: Any, library: TensorPasses, x: Tensor, *parameters: Tensor) -> Tensor:
        a, memory = library.forward(
            rows_of(x), [p.contiguous() for p in parameters], ctx.needs_input_grad[1]
        )
        ctx.library, ctx.memory, ctx.lock = library, memory, threading.Lock()
        ctx.save_for_backward(x, *parameters)
        return a

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        """From ∂C/∂a^L to ∂C/∂x, ∂C/∂w and ∂C/∂b, of those that are asked for."""
        x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *differentiable(ctx.library.sigmas, x, parameters, wanted, error)
        with ctx.lock:  # a graph that is kept may be gone through by several threads
            return None, *ctx.library.backward(
                rows_of(x), [p.contiguous() for p in parameters], ctx.memory, error.contiguous(),
                wanted,
            )  # fmt: skip
