"""What the engines of a CUDA device have in common that train many members at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np

from ..philox import Draws, threshold
from ..planning import Run
from .base import Described, Engine, Member

Array = Any

#: What an optimizer may ask for that no such kernel does, and why.
_LAYERED = {
    "clip_norm": "clip_norm needs the norm of all gradients before the first of them is used",
    "gradient_noise": "its kernel draws no gradient_noise",
}


class MembersEngine(Engine):
    """Epochs of all members of one rule and batch size at once."""

    reads_bytes = True
    #: An X of uint8, and the same as numbers.
    _converted: tuple[Array, Array] | None = None

    @classmethod
    def shared_obstacle(cls, model: Described, run: Run) -> str | None:
        """Why no such engine can train the model so, if none can."""
        if run.step_callbacks:
            return "a callback after every batch needs Python between steps"
        if not model.cost.builtin:
            return f"cost {model.cost.name!r} is not built in"
        users = list(dict.fromkeys(a for a in model.activations if not a.builtin))
        if len(users) > 1:
            names = " and ".join(repr(user.name) for user in users)
            return f"a kernel takes one user's activation, not {names}"
        if run.squares:
            return "its kernel does not sum w² at every step"
        return next((why for option, why in _LAYERED.items() if option in run.options), None)

    @classmethod
    def float32_obstacle(cls, model: Described, run: Run) -> str | None:
        """The same, of a kernel on tensor cores."""
        if model.dtype != np.float32:
            return f"its kernel computes in float32, and not in {model.dtype.name}"
        return cls.shared_obstacle(model, run)

    def run_epoch(
        self,
        member: Member,
        X: Array,
        Y: Array,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        if on_step is not None or member.hyperparameters.squares is not None:
            raise ValueError(
                "the host is needed between steps, and here they follow each other on the device"
            )
        return self._launch([member], X, Y, meanwhile)[0]

    def run_members(
        self,
        members: Sequence[Member],
        X: Array,
        Y: Array,
        on_member: Callable[[int], None] = lambda i: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        """All members of one rule, batch size and number of rows together."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, member in enumerate(members):
            settings = member.hyperparameters
            weighted = member.weights is not None
            rows, drops = len(member.order), member.drops
            key = settings.optimizer.rule, settings.batch_size, rows, weighted, drops
            groups.setdefault(key, []).append(i)
        found: dict[int, np.ndarray] = {}
        for group in groups.values():
            costs = self._launch([members[i] for i in group], X, Y, meanwhile)
            found |= zip(group, costs, strict=True)
            for i in group:
                on_member(i)
        return [found[i] for i in range(len(members))]

    def _launch(
        self, members: Sequence[Member], X: Array, Y: Array, meanwhile: Callable[[], None]
    ) -> list[np.ndarray]:
        """An epoch of members of one rule and one batch size: the costs of each."""
        raise NotImplementedError

    def _states(
        self, members: Sequence[Member]
    ) -> tuple[tuple[Array | None, ...], np.ndarray, Callable[[], None]]:
        """(p, s0, s1), which row of them each member is, and what gives copies back to members."""
        states = [(member.parameters.flat, *member.slots) for member in members]
        found = places(states)
        arrays = owners(states) if found is not None else self.gathered(states)

        def give_back() -> None:
            for i, state in enumerate(states if found is None else ()):
                for array, whole in zip(state, arrays, strict=True):
                    self.backend.copy(whole[i], array)

        rows = np.arange(len(members), dtype=np.int32) if found is None else found
        return (*arrays, None, None)[:3], rows, give_back

    def _numbers(self, X: Array) -> Array:
        """X in the backend's dtype, converted once for all epochs."""
        if X.dtype == self.backend.dtype:
            return X
        if self._converted is None or self._converted[0] is not X:
            numbers = self.backend.empty(X.shape)
            self.backend.copy(X, numbers)
            self._converted = X, numbers
        return self._converted[1]

    def release(self) -> None:
        self._converted = None

    def gathered(self, states: Sequence[tuple[Array, ...]]) -> list[Array]:
        """(members, length) copies of the parameters and of each slot."""
        found = []
        for arrays in zip(*states, strict=True):
            whole = self.backend.empty((len(arrays), len(arrays[0])))
            for i, array in enumerate(arrays):
                self.backend.copy(array, whole[i])
            found.append(whole)
        return found


def weights_of(members: Sequence[Member]) -> np.ndarray | None:
    """(members, rows), if rows have weights."""
    if members[0].weights is None:
        return None
    return np.stack([member.weights for member in members if member.weights is not None])


def draws_of(members: Sequence[Member], hidden: int) -> np.ndarray:
    """(members, 3 + hidden layers) uint32, as the kernels' `Dropping` has them."""
    rows = []
    for member in members:
        draws = member.draws or Draws((0.0,) * hidden, (0,))
        rows.append([*draws.words(), draws.first_step, *map(threshold, draws.rates)])
    return np.array(rows, np.uint32)


def owners(states: Sequence[tuple[Array, ...]]) -> list[Array]:
    """The arrays of which the first state's are rows, or are themselves."""
    return [array if len(states) == 1 else array.base for array in states[0]]


def places(states: Sequence[tuple[Array, ...]]) -> np.ndarray | None:
    """Which row of `owners` each state is; None if they are not rows of the same arrays."""
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


def constants(member: Member) -> tuple[float, ...]:
    """What the kernel takes as numbers, a row of ``constants``."""
    optimizer = member.hyperparameters.optimizer
    clip_value, max_norm = (
        inf if limit is None else limit for limit in (optimizer.clip_value, optimizer.max_norm)
    )
    return clip_value, optimizer.l1, *optimizer.kernel_constants, max_norm


def limits_norms(members: Sequence[Member]) -> bool:
    """Whether any member's weights have a limit."""
    return any(member.hyperparameters.optimizer.max_norm is not None for member in members)
