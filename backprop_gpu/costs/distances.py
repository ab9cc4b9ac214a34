"""Costs of the distance from a to y: absolute, Huber's, quantiles', and the angle between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import BuiltinCost, Cost, CostOfRows, number


class AbsoluteError(BuiltinCost):
    """C_x = Σ_j abs(a_j - y_j),  ∂C_x/∂a_j = sign(a_j - y_j), and 0 where they are equal."""

    name = "absolute_error"
    default_output = "identity"
    interior = Cost.domain

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.subtract(a, y, out=out)
        np.abs(out, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        slope.fill(0.0)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.subtract(inside, y, out=scratch)
        np.sign(scratch, out=scratch)
        np.multiply(slope, scratch, out=slope)


class Huber(BuiltinCost):
    """C_x = Σ_j h(a_j - y_j) with h(r) = ½ r² up to abs(r) = δ, δ (abs(r) - ½ δ) beyond.

    ∂C_x/∂a_j = a_j - y_j, kept within [-δ, δ] (Huber 1964).

    Parameters
    ----------
    delta : float > 0, default 1
        Residual δ where the square becomes a line, in the unit of the outputs.
    """

    name = "huber"
    default_output = "identity"
    interior = Cost.domain

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = number("delta", delta, 0.0, math.inf)
        self.constants = (self.delta,)
        if self.delta != 1.0:
            self._set(delta=self.delta)

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        # With c = min(|r|, δ), h = c (|r| - ½ c).
        np.subtract(a, y, out=out)
        np.abs(out, out=out)
        np.minimum(out, self.delta, out=scratch)
        np.multiply(scratch, -0.5, out=scratch)
        np.add(out, scratch, out=out)
        np.multiply(scratch, -2.0, out=scratch)
        np.multiply(out, scratch, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(slope, slope, out=slope)
        np.multiply(slope, np.abs(inside - y) <= self.delta, out=slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.subtract(inside, y, out=scratch)
        np.clip(scratch, -self.delta, self.delta, out=scratch)
        np.multiply(slope, scratch, out=slope)


class Quantile(BuiltinCost):
    """The pinball loss C_x = Σ_j max(q (y_j - a_j), (q - 1) (y_j - a_j)).

    With it a_j learns the q-th quantile of y_j (Koenker & Bassett 1978).
    ∂C_x/∂a_j = 1 - q where a_j > y_j, -q where a_j < y_j, and 0 where they are equal.

    Parameters
    ----------
    q : float in (0, 1), or a sequence of them, default 0.5
        Of several, a target has an output for each, side by side: the network has as many outputs
        as Y has columns, times as many.
    """

    name = "quantile"
    default_output = "identity"
    interior = Cost.domain
    #: Quantiles that a kernel has room for.
    MOST = 32

    def __init__(self, q: float | Sequence[float] = 0.5) -> None:
        several = np.ndim(q) > 0
        qs = tuple(q) if isinstance(q, Sequence) or several else (q,)  # type: ignore[arg-type]
        if not 1 <= len(qs) <= self.MOST or isinstance(q, str):
            raise ValueError(f"q must be 1 to {self.MOST} numbers in (0, 1), got {q!r}")
        self.constants = tuple(number("q", each, 0.0, 1.0) for each in qs)
        self.q = self.constants if several else self.constants[0]
        if self.q != 0.5:
            self._set(q=self.q)

    def targets_of(self, outputs: int) -> int:
        count = len(self.constants)
        if outputs % count:
            raise ValueError(
                f"cost {self.name!r} needs a multiple of {count} outputs, one a quantile, "
                f"got {outputs}"
            )
        return outputs // count

    def outputs_of(self, targets: int) -> int:
        return targets * len(self.constants)

    def predictions(self, a: np.ndarray) -> np.ndarray:
        """Return the outputs of the quantile nearest to ½.

        Parameters
        ----------
        a : (n, n_L) array
            Outputs.

        Returns
        -------
        (n, targets) array
            One column a target.
        """
        nearest = min(range(len(self.constants)), key=lambda i: abs(self.constants[i] - 0.5))
        return a[:, nearest :: len(self.constants)]

    def prepare(self, Y: np.ndarray, outputs: int) -> np.ndarray:
        return Y if len(self.constants) == 1 else np.repeat(Y, len(self.constants), axis=1)

    def _above(self, like: np.ndarray) -> Any:
        """1 - q of each output."""
        count = like.shape[-1] // len(self.constants)
        return 1.0 - np.tile(np.array(self.constants, like.dtype), count)

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        above = self._above(a)
        np.subtract(a, y, out=scratch)
        np.multiply(scratch, above, out=out)
        np.multiply(scratch, above - 1, out=scratch)
        np.maximum(out, scratch, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        slope.fill(0.0)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        above = self._above(inside)
        np.subtract(inside, y, out=scratch)
        np.sign(scratch, out=scratch)
        np.multiply(slope, np.where(scratch < 0, above - 1, scratch * above), out=slope)


class Cosine(CostOfRows):
    """C_x = 1 - cos(a, y) = 1 - a·y / (‖a‖ ‖y‖): only the direction of a counts.

    ∂C_x/∂a_j = (a_j a·y / ‖a‖² - y_j) / (‖a‖ ‖y‖), and 0 where a is 0: there C_x is 1. No y may be
    0.
    """

    name = "cosine"
    takes_labels = True

    def evaluate(self, a: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        missing = y != y
        if missing.any():
            a, y = np.where(missing, 0, a), np.where(missing, 0, y)
        sums = [np.einsum("xj,xj->x", u, v)[:, None] for u, v in ((a, y), (a, a), (y, y))]
        with np.errstate(all="ignore"):
            both = np.sqrt(sums[1]) * np.sqrt(sums[2])
            cosine, gradient = sums[0] / both, (a * (sums[0] / sums[1]) - y) / both
        for found in (cosine, gradient):
            found[(both == 0)[:, 0]] = 0
        return (1 - cosine)[:, 0] * (sums[2][:, 0] > 0), gradient

    def curvature(self, a: np.ndarray, y: np.ndarray, v: np.ndarray) -> np.ndarray:
        # Of g = (â cos - ŷ) / ‖a‖, with â and ŷ of length 1.
        missing = y != y
        if missing.any():
            a, y, v = (np.where(missing, 0, each) for each in (a, y, v))
        sizes = [np.sqrt(np.einsum("xj,xj->x", each, each))[:, None] for each in (a, y)]
        with np.errstate(all="ignore"):
            u, t = a / sizes[0], y / sizes[1]
            cosine = (u * t).sum(axis=1, keepdims=True)
            of_u, of_t = ((v * each).sum(axis=1, keepdims=True) for each in (u, t))
            out = cosine * v + u * (of_t - 3 * cosine * of_u) + t * of_u
            out = out / sizes[0] ** 2
        out[(sizes[0] == 0)[:, 0]] = 0
        return np.asarray(np.where(missing, 0, out), a.dtype)
