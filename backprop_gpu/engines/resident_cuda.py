"""The resident engine of a CUDA device: an epoch, of one network or of many, in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..cuda.catalogue import Catalogue
from ..planning import Run, residency
from .base import Described, Member
from .members import MembersEngine, constants, draws_of, weights_of
from .passes import quiet

Array = Any


class ResidentCudaEngine(MembersEngine):
    """Epochs by ``kernels/cuda/resident.cu``, weights in shared memory, cut as the plan says."""

    name = "resident"

    @classmethod
    def obstacle(cls, model: Described, run: Run) -> str | None:
        if model.precision != model.dtype.name:
            return (
                f"its kernel multiplies in {model.dtype.name} alone, and not in {model.precision}"
            )
        shared = cls.shared_obstacle(model, run)
        if shared is not None:
            return shared
        if "max_norm" in run.options:
            return "max_norm is of rows of w, of which its blocks have some columns each"
        assert model.device is not None
        found = residency.choose(
            model.sizes, run.batch_size, model.dtype.itemsize, run.slots, model.device, run.members
        )
        return found if isinstance(found, str) else None

    @quiet
    def _launch(
        self, members: Sequence[Member], X: Array, Y: Array, meanwhile: Callable[[], None]
    ) -> list[np.ndarray]:
        """An epoch of members of one rule and one batch size: the costs of each."""
        backend, runtime = self.backend, self.backend.runtime  # type: ignore[attr-defined]
        settings = members[0].hyperparameters
        optimizer, m = settings.optimizer, settings.batch_size
        cut = self.plan.cut(m, optimizer.slots, len(members))
        if cut.stored != X.dtype.itemsize:
            X = self._numbers(X)
        drops = members[0].drops
        kernel = Catalogue(backend.dtype).resident(
            cut, self.activations, self.cost, optimizer.rule, drops
        )

        rows = len(members[0].order)
        costs = runtime.empty((len(members), -(-rows // m)), np.float64)
        arrays, found, give_back = self._states(members)
        weights = weights_of(members)
        arguments = (
            X, Y,
            runtime.array(np.stack([member.order for member in members]), np.int32),
            None if weights is None else runtime.array(weights),
            runtime.array(draws_of(members, len(self.sizes) - 2)) if drops else None,
            runtime.array(np.stack([m.hyperparameters.coefficients for m in members]), "f8"),
            runtime.array(np.array([constants(member) for member in members]), backend.dtype),
            runtime.array(found), *arrays, costs, np.int32(rows),
        )  # fmt: skip
        if not cut.apart:
            runtime.launch(kernel, (len(members) * cut.blocks, 1, 1), arguments)
        else:  # blocks that wait for each other must all run at once
            at_once = min(len(members), cut.at_once)
            letters = runtime.zeros(at_once * cut.letters, np.uint64)
            for begin in range(0, len(members), at_once):
                count = min(at_once, len(members) - begin)
                runtime.launch(
                    kernel, (count * cut.blocks, 1, 1), (*arguments, np.int32(begin), letters)
                )
        give_back()
        meanwhile()
        return list(runtime.to_numpy(costs))
