"""The compiled engine: a whole epoch on the CPU in Numba's compiled code, without Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np

from .. import costs, planning
from ..parameters import Parameters
from .layered import Hyperparameters, LayeredEngine

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Buffers:
    """What stays the same from epoch to epoch, in the order that the loop takes it."""

    parameters: Parameters
    batch_size: int
    shape: tuple[Any, ...]
    gradients: Array
    batch: tuple[Array, ...]
    network: tuple[Any, ...]


class CompiledEngine(LayeredEngine):
    """`run_epoch` as one loop of compiled code over NumPy arrays; the rest as `LayeredEngine`.

    For built-in activations and costs. The loop is in `compiled_epoch`; the first use in a
    process loads it from Numba's cache on disk, the very first on a machine compiles it.
    """

    name = "compiled"
    _buffers: Buffers | None = None

    def run_epoch(
        self,
        parameters: Parameters,
        slots: tuple[Array, ...],
        X: Array,
        Y: Array,
        order: Array,
        hyperparameters: Hyperparameters,
        on_step: Callable[[int], None] | None = None,
    ) -> Array:
        if on_step is not None:  # Python has to be called between steps
            return super().run_epoch(parameters, slots, X, Y, order, hyperparameters, on_step)
        from . import compiled_epoch as loop

        m, optimizer = hyperparameters.batch_size, hyperparameters.optimizer
        buffers = self._prepare_buffers(parameters, m)
        none = np.empty(0, self.backend.dtype)
        state = (*slots, none, none)[:2]
        limits = (inf if c is None else c for c in (optimizer.clip_value, optimizer.clip_norm))
        penalties = np.array([optimizer.l1, optimizer.l2, *limits])
        steps = -(-len(order) // m)
        step_costs = np.empty(steps)
        order = np.ascontiguousarray(order, np.intp)
        # Between two calls Ctrl-C is heard.
        at_once = planning.steps_a_call(parameters.layout.count, m)
        for first in range(0, steps, at_once):
            loop.run_steps(
                first, min(first + at_once, steps), m, X, Y, order,
                *buffers.shape, parameters.flat, buffers.gradients, *state, *buffers.batch,
                *buffers.network, loop.RULES.index(optimizer.rule), hyperparameters.coefficients,
                np.array(optimizer.constants), penalties, step_costs,
            )  # fmt: skip
        return step_costs

    def _prepare_buffers(self, parameters: Parameters, m: int) -> Buffers:
        kept = self._buffers
        if kept is not None and kept.parameters is parameters and kept.batch_size == m:
            return kept
        from . import compiled_epoch as loop

        layout, sizes, dtype = parameters.layout, self.sizes, self.backend.dtype
        starts = np.cumsum([0, *(m * n for n in sizes)])
        flat = (int(starts[-1]),)
        info = np.finfo(dtype)
        self._buffers = Buffers(
            parameters,
            m,
            shape=(
                np.array(sizes),
                np.array([0, *layout.weight_starts]),
                np.array([0, *layout.bias_starts]),
                layout.weights_end,
            ),
            gradients=np.zeros(layout.length, dtype),
            batch=(*(np.empty(flat, dtype) for _ in range(3)), np.empty(m * sizes[-1], dtype)),
            network=(
                starts[:-1].copy(),
                np.array(self._keeps_z),
                np.array([False, *(planning.is_small(m, n, k) for k, n in pairwise(sizes))]),
                np.array([-1, *(loop.ACTIVATIONS.index(a.name) for a in self.activations)]),
                loop.COSTS.index(self.cost.name),
                costs.collapses(self.output, self.cost),
                np.array([info.tiny, 1.0 - info.epsneg if self.cost.domain[1] == 1.0 else inf]),
            ),
        )
        return self._buffers

    def release(self) -> None:
        self._buffers = None
        super().release()
