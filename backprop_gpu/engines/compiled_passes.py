"""Reading and gradients in the CPU's compiled library: the bits that its engine trains with."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import numpy as np

from .. import cpu, planning, threads
from ..parameters import Parameters
from .passes import Passes

Array = np.ndarray

#: Rows that a thread takes through the network at a time. C is summed block by block.
_BLOCK = 64


class CompiledPasses(Passes):
    """`Passes` over whole arrays, on all cores. Single passes are the backend's, as ever."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._library = cpu.library()
        self._network = cpu.describe(self.sizes, self.activations, self.cost, self.backend.dtype)

    def outputs(
        self, members: Sequence[Parameters], X: Array, Y: Array | None, chunk: int | None = None
    ) -> Iterator[tuple[int, slice, float, Array]]:
        chunk = chunk or planning.CHUNK_ROWS
        for start in range(0, len(X), chunk):  # between two calls Ctrl-C is heard
            rows = slice(start, min(start + chunk, len(X)))
            x = self.backend.asarray(X[rows])
            y = None if Y is None else self.backend.asarray(Y[rows])
            for i, parameters in enumerate(members):
                cost, a = self._read(parameters, x, y)
                yield i, rows, cost, a

    def _read(self, parameters: Parameters, X: Array, Y: Array | None) -> tuple[float, Array]:
        """(C, a^L) of some rows; C is 0.0 without Y."""
        n = len(X)
        block = min(_BLOCK, n)
        blocks = -(-n // block)
        a, costs = np.empty((n, self.sizes[-1]), self.backend.dtype), np.zeros(blocks)
        reading = cpu.AbiReading(
            ctypes.pointer(self._network), X.ctypes.data, None if Y is None else Y.ctypes.data,
            parameters.flat.ctypes.data, n, min(threads.cores(), -(-blocks // 2)), block,
            a.ctypes.data, None if Y is None else costs.ctypes.data,
        )  # fmt: skip
        self._library.read(reading)
        return float(costs.sum()) / n, a

    def gradients(self, parameters: Parameters, X: Array, Y: Array) -> Parameters:
        gradients = self.zeros_like(parameters)
        X, Y = self.backend.asarray(X), self.backend.asarray(Y)
        work = planning.cpu_work(self.sizes, len(X), False, threads.cores())
        order, coefficients, cost = np.arange(len(X)), np.zeros((1, 4)), np.zeros(1)
        state = (ctypes.c_void_p * 2)(gradients.flat.ctypes.data, None)
        part = cpu.AbiMember(
            len(X), work.block, work.in_place, cpu.GRADIENT, False, 0, len(X), order.ctypes.data,
            coefficients.ctypes.data, inf, inf, 0.0, 0.0, 0.0, 0.0, 0.0, None,
            parameters.flat.ctypes.data, state, cost.ctypes.data, None,
        )  # fmt: skip
        memory = self._library.memory(self._network, part, work.threads)
        part.memory = memory.ctypes.data
        job = cpu.AbiJob(
            ctypes.pointer(self._network), X.ctypes.data, Y.ctypes.data, ctypes.pointer(part),
            1, 1, work.threads, True, 0, 1,
        )  # fmt: skip
        self._library.train(job)
        return gradients
