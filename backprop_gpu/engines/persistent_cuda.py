"""The persistent engine of a CUDA device: an epoch in one launch, all blocks at work on a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np

from .. import testing
from ..activations import Activation
from ..cuda.catalogue import Catalogue, hidden_sigmas
from ..parameters import Layout
from ..planning import Run, persistence
from .base import Described, Member
from .members import MembersEngine, constants, draws_of, limits_norms, weights_of
from .passes import quiet

Array = Any

#: Bytes that the activations of a launch may take; more members are several launches.
SCRATCH = 1 << 30


class PersistentCudaEngine(MembersEngine):
    """Epochs by ``kernels/cuda/persistent.cu``, parameters in the L2 cache, as the plan says."""

    name = "persistent"

    @classmethod
    def obstacle(cls, model: Described, run: Run) -> str | None:
        shared = cls.float32_obstacle(model, run)
        if shared is not None:
            return shared
        assert model.device is not None
        found = persistence.choose(model.sizes, run.batch_size, model.device, model.precision)
        return found if isinstance(found, str) else None

    @quiet
    def _launch(
        self, members: Sequence[Member], X: Array, Y: Array, meanwhile: Callable[[], None]
    ) -> list[np.ndarray]:
        backend, runtime = self.backend, self.backend.runtime  # type: ignore[attr-defined]
        settings, rows = members[0].hyperparameters, len(members[0].order)
        m, count = settings.batch_size, len(members)
        form, drops = self.plan.persistence(m), members[0].drops
        if form.stored != X.dtype.itemsize:
            X = self._numbers(X)
        kernel = Catalogue(backend.dtype, backend.precision).persistent(
            form, self.activations, self.cost, settings.optimizer.rule, drops
        )
        layout = members[0].parameters.layout
        table, length = layers(layout, self.activations, m)
        at_once = max(1, min(count, SCRATCH // (4 * length)))

        arrays, found, give_back = self._states(members)
        costs = runtime.empty((count, ceil(rows / m)), np.float64)
        with np.errstate(over="ignore"):  # a limit beyond float32 is none
            of_members = np.array([constants(member) for member in members]).astype(np.float32)
        weights = weights_of(members)
        arguments = (
            X, Y,
            runtime.array(np.stack([member.order for member in members]), np.int32),
            None if weights is None else runtime.array(weights),
            runtime.array(draws_of(members, len(self.sizes) - 2)) if drops else None,
            runtime.array(np.stack([m.hyperparameters.coefficients for m in members]), "f8"),
            runtime.array(of_members),
            runtime.array(found), *arrays,
            runtime.empty(at_once * length, np.float32),
            runtime.empty(at_once * m, np.float64),
            costs,
            runtime.array(table),
        )  # fmt: skip
        # How many blocks there are changes no bit, and all of them have to run at once.
        most = testing.blocks_at_once() or form.grid
        for begin in range(0, count, at_once):
            now = min(at_once, count - begin)
            runtime.launch(
                kernel, (min(form.blocks_for(now), most), 1, 1),
                (
                    *arguments, runtime.zeros(1, np.uint32),
                    *map(np.int64, (layout.length, length)),
                    *map(np.int32, (rows, m, now, begin, len(table) - 1)),
                    np.int32(limits_norms(members)),
                ),
            )  # fmt: skip
        give_back()
        meanwhile()
        return list(runtime.to_numpy(costs))


def layers(layout: Layout, activations: Sequence[Activation], m: int) -> tuple[np.ndarray, int]:
    """The rows of ``PersistentLayer`` in ``persistent.cu``, and the length of a member's scratch.

    x is there twice; hidden layers have a, δ and, where σ' is computed from it, z; the last has z
    and δ.
    """
    end = 0

    def room(rows: int) -> int:
        nonlocal end
        begin, end = end, end + rows * stride
        return begin

    sizes, hidden = layout.sizes, hidden_sigmas(activations)
    starts = list(zip(layout.weight_starts, layout.bias_starts, strict=True))
    stride = ceil(sizes[0] / 4) * 4
    table = [(sizes[0], stride, 0, 0, 0, room(2 * m), 0, 0)]
    for l, (n, sigma) in enumerate(zip(sizes[1:], activations, strict=True), start=1):
        stride, last = ceil(n / 4) * 4, l + 1 == len(sizes)
        a = 0 if last else room(m)
        z = room(m) if last or sigma.derivative_from == "z" else 0
        number = 0 if last else hidden.index(sigma)
        table.append((n, stride, number, *starts[l - 1], a, z, room(m)))
    return np.array(table, np.int64), end
