"""The resident engine of a CUDA device: an epoch, of one network or of many, in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np

from ..cuda.catalogue import Catalogue
from ..planning import residency
from ..planning.residency import Residency
from .layered import LayeredEngine, Member, _quiet

Array = Any


class ResidentCudaEngine(LayeredEngine):
    """`run_epoch` and `run_members` by ``kernels/cuda/resident.cu``; the rest as `LayeredEngine`.

    For built-in costs, gradients that are not clipped by their norm, and shapes that
    `residency.choose` finds room for. It does not sum w².
    """

    name = "resident"
    reads_bytes = True
    #: How the kernel is cut; tests put another in its place.
    cut: Callable[..., Residency | str] = staticmethod(residency.choose)
    #: An X of uint8, and the same as numbers.
    _converted: tuple[Array, Array] | None = None

    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        if on_step is not None or member.hyperparameters.squares is not None:
            # the host is needed between steps
            return super().run_epoch(member, self._numbers(X), Y, on_step, meanwhile)
        return self._launch([member], X, Y, meanwhile)[0]

    def run_members(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        on_member: Callable[[int], None] = lambda i: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        """All members of one rule and batch size in one launch, a block or a cluster each."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, member in enumerate(members):
            settings = member.hyperparameters
            clips = settings.optimizer.clip_norm is not None
            key = settings.optimizer.rule, clips, settings.batch_size, len(member.order)
            groups.setdefault(key, []).append(i)
        found: dict[int, np.ndarray] = {}
        for group in groups.values():
            costs = self._launch([members[i] for i in group], X, Y, meanwhile)
            found |= zip(group, costs, strict=True)
            for i in group:
                on_member(i)
        return [found[i] for i in range(len(members))]

    @_quiet
    def _launch(
        self, members: Sequence[Member], X: Array, Y: Array, meanwhile: Callable[[], None]
    ) -> list[np.ndarray]:
        """An epoch of members of one rule and one batch size: the costs of each."""
        backend, runtime = self.backend, self.backend.runtime  # type: ignore[attr-defined]
        settings = members[0].hyperparameters
        optimizer, m = settings.optimizer, settings.batch_size
        cut = self.cut(
            self.sizes, m, backend.dtype.itemsize, optimizer.slots, runtime.device, len(members),
            X.dtype.itemsize,
        )  # fmt: skip
        if isinstance(cut, str) or optimizer.clip_norm is not None:
            # Some members of a population may be too large: they get what they would alone.
            alone, X = super().run_epoch, self._numbers(X)
            return [alone(member, X, Y, meanwhile=meanwhile) for member in members]
        if cut.stored != X.dtype.itemsize:
            X = self._numbers(X)
        kernel = Catalogue(backend.dtype).resident(cut, self.activations, self.cost, optimizer.rule)

        rows = len(members[0].order)
        costs = runtime.empty((len(members), -(-rows // m)), np.float64)
        states = [(member.parameters.flat, *member.slots) for member in members]
        places = _places(states)
        arrays = _owners(states) if places is not None else self._gathered(states)
        parameters, first, second = (*arrays, None, None)[:3]
        arguments = (
            X, Y,
            runtime.array(np.stack([member.order for member in members]), np.int32),
            runtime.array(np.stack([m.hyperparameters.coefficients for m in members]), "f8"),
            runtime.array(np.array([_constants(member) for member in members]), backend.dtype),
            runtime.array(np.arange(len(members)) if places is None else places, np.int32),
            parameters, first, second, costs, np.int32(rows),
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
        if places is None:
            for i, state in enumerate(states):
                for array, whole in zip(state, arrays, strict=True):
                    backend.copy(whole[i], array)
        meanwhile()
        return list(runtime.to_numpy(costs))

    def _numbers(self, X: Array) -> Array:
        """X in the backend's dtype: always the same array for one of uint8, as buffers hold it."""
        if X.dtype == self.backend.dtype:
            return X
        if self._converted is None or self._converted[0] is not X:
            numbers = self.backend.empty(X.shape)
            self.backend.copy(X, numbers)
            self._converted = X, numbers
        return self._converted[1]

    def release(self) -> None:
        self._converted = None
        super().release()

    def _gathered(self, states: Sequence[tuple[Array, ...]]) -> list[Array]:
        """(members, length) copies of the parameters and of each slot."""
        found = []
        for arrays in zip(*states, strict=True):
            whole = self.backend.empty((len(arrays), len(arrays[0])))
            for i, array in enumerate(arrays):
                self.backend.copy(array, whole[i])
            found.append(whole)
        return found


def _owners(states: Sequence[tuple[Array, ...]]) -> list[Array]:
    """The arrays of which the first state's are rows, or are themselves."""
    return [array if len(states) == 1 else array.base for array in states[0]]


def _places(states: Sequence[tuple[Array, ...]]) -> np.ndarray | None:
    """Which row of `_owners` each state is; None if they are not rows of the same arrays."""
    if len(states) == 1:
        return np.zeros(1, np.int32)
    rows = [[_row(array) for array in state] for state in states]
    for state, numbers in zip(states, rows, strict=True):
        same = all(array.base is first.base for array, first in zip(state, states[0], strict=True))
        if not same or None in numbers or len(set(numbers)) != 1:
            return None
    return np.array([numbers[0] for numbers in rows], np.int32)


def _row(array: Array) -> int | None:
    """Which row an array is of the one that owns its memory, if it is one."""
    whole = array.base
    if whole is None or whole.shape[1:] != array.shape:
        return None
    row, rest = divmod(array.pointer - whole.pointer, array.nbytes)
    return None if rest else int(row)


def _constants(member: Member) -> tuple[float, ...]:
    """What the kernel takes as numbers, a row of ``constants``."""
    optimizer = member.hyperparameters.optimizer
    limit = inf if optimizer.clip_value is None else optimizer.clip_value
    return limit, optimizer.l1, optimizer.l2, *optimizer.kernel_constants
