"""Which rows each member of an ensemble trains on, and which are left out and judge it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class MemberRows:
    """The rows of every member: a bootstrap of its own, a fold's, or all.

    Member i's depend on the seed and i alone, and are drawn anew when they are asked for: those of
    many members would take more memory than X.

    Parameters
    ----------
    counted : (n,) bool array
        The rows of X whose weight is above 0; no member trains on others.
    seed : int
    bootstrap : bool
        Draw as many rows as are counted, with replacement (Breiman 1996).
    splits : sequence of (int array, int array), optional
        (train, test) of each fold. Member i has fold i modulo their number; never with `bootstrap`.
    """

    def __init__(
        self,
        counted: np.ndarray,
        seed: int,
        bootstrap: bool,
        splits: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        self.counted, self.seed, self.bootstrap, self.splits = counted, seed, bootstrap, splits

    @property
    def leaves_out(self) -> bool:
        """Whether members do not see all rows."""
        return self.bootstrap or self.splits is not None

    def trained(self, member: int) -> np.ndarray:
        """The numbers of the rows that a member trains on, perhaps some of them twice."""
        if self.splits is not None:
            train, _ = self.splits[member % len(self.splits)]
            return np.asarray(train[self.counted[train]])
        rows = np.flatnonzero(self.counted)
        if not self.bootstrap:
            return rows
        return rows[self._generator(member).integers(0, len(rows), len(rows))]

    def left_out(self, member: int) -> np.ndarray:
        """The numbers of the rows that judge a member, each once."""
        if self.splits is not None:
            return np.unique(self.splits[member % len(self.splits)][1])
        if not self.bootstrap:
            return np.empty(0, np.intp)
        out = np.ones(len(self.counted), bool)
        out[self.trained(member)] = False
        return np.flatnonzero(out)

    def network_seed(self, member: int) -> int:
        """What draws a member's initial weights and order."""
        words = np.random.SeedSequence(self.seed, spawn_key=(member, 0)).generate_state(4)
        return int.from_bytes(words.astype("<u4").tobytes(), "little")

    def _generator(self, member: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(member, 1)))
