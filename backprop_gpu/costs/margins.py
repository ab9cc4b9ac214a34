"""Costs of how far an output is on the right side of 0."""

from __future__ import annotations

import numpy as np

from .base import BuiltinCost, Cost


class Hinge(BuiltinCost):
    """C_x = Σ_j max(0, 1 - t_j a_j), where y_j of 0 and 1 are t_j = 2 y_j - 1 of -1 and 1.

    ∂C_x/∂a_j = -t_j where t_j a_j < 1, else 0. The class of one output is 1 from a = 0 on.
    """

    name = "hinge"
    default_output = "identity"
    interior = Cost.domain
    targets = (0.0, 1.0)
    takes_labels = True
    takes_mixtures = False  # a target of 0.1 asks for a margin of 10
    threshold = 0.0

    def prepare(self, Y: np.ndarray, outputs: int) -> np.ndarray:
        return 2 * Y - 1

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.multiply(a, y, out=out)
        np.subtract(1.0, out, out=out)
        np.maximum(out, 0.0, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        slope.fill(0.0)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        self.terms(inside, y, scratch, scratch)
        np.sign(scratch, out=scratch)
        np.multiply(scratch, y, out=scratch)
        np.negative(scratch, out=scratch)
        np.multiply(slope, scratch, out=slope)


class SquaredHinge(Hinge):
    """C_x = Σ_j max(0, 1 - t_j a_j)², where y_j of 0 and 1 are t_j = 2 y_j - 1 of -1 and 1.

    ∂C_x/∂a_j = -2 t_j max(0, 1 - t_j a_j). The class of one output is 1 from a = 0 on.
    """

    name = "squared_hinge"

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        super().terms(a, y, out, scratch)
        np.multiply(out, out, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(slope, slope, out=slope)
        np.multiply(slope, 2 * (y * y) * (inside * y < 1), out=slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        super().terms(inside, y, scratch, scratch)
        np.multiply(scratch, y, out=scratch)
        np.multiply(scratch, -2.0, out=scratch)
        np.multiply(slope, scratch, out=slope)
