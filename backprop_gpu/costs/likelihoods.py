"""Costs of probabilities, counts and means: negative log-likelihoods."""

from __future__ import annotations

import math

import numpy as np

from ..activations import Activation
from .base import BuiltinCost, Cost, CostOfRows, clip, leave_out, number


class Quadratic(BuiltinCost):
    """C_x = ½ ‖y - a‖²,  ∂C_x/∂a_j = a_j - y_j."""

    name = "quadratic"
    interior = Cost.domain
    partner = "identity"
    takes_labels = True

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.subtract(a, y, out=out)
        np.multiply(out, out, out=out)
        np.multiply(out, 0.5, out=out)

    def mean(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        scratch: tuple[np.ndarray, np.ndarray],
        weights: np.ndarray | None = None,
    ) -> float:
        difference = scratch[0]
        np.subtract(a, y, out=difference)
        leave_out(y, difference)
        if weights is not None:
            return 0.5 * float(weights @ np.einsum("xj,xj->x", difference, difference)) / len(a)
        return 0.5 * float(np.vdot(difference, difference)) / len(a)

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        self.terms(a, y, out, scratch)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(slope, slope, out=slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.subtract(inside, y, out=scratch)
        np.multiply(slope, scratch, out=slope)

    def output_error(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        out: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        np.subtract(a, y, out=out)  # there is nothing to move a into, and no V
        leave_out(y, out)
        activation.pull_back(out, z, a, scratch)


class _Smoothed(BuiltinCost):
    """A cross-entropy whose targets may be mixed with those of a guess.

    Parameters
    ----------
    smoothing : float in [0, 1), default 0
        ε of label smoothing (Szegedy et al. 2016, section 7): y is replaced by (1 - ε) y + ε / k,
        k = 2 for each output of the binary one, n_L for the categorical.
    """

    targets = (0.0, 1.0)
    takes_labels = True

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = number("smoothing", smoothing, 0.0, 1.0, low_too=True)
        if self.smoothing:
            self._set(smoothing=self.smoothing)

    def _guess(self, outputs: int) -> float:
        raise NotImplementedError

    def prepare(self, Y: np.ndarray, outputs: int) -> np.ndarray:
        if not self.smoothing:
            return Y
        keeps = Y.dtype.type(1.0 - self.smoothing)
        return np.asarray(Y * keeps + Y.dtype.type(self.smoothing * self._guess(outputs)))


class BinaryCrossEntropy(_Smoothed):
    """C_x = -Σ_j [y_j ln a_j + (1 - y_j) ln(1 - a_j)],  ∂C_x/∂a_j = (a_j - y_j) / (a_j (1 - a_j)).

    With sigmoid, c = ln(1 + e^z) - y z.

    Parameters
    ----------
    smoothing : float in [0, 1), default 0
        Label smoothing ε: y is replaced by (1 - ε) y + ε / 2 (Szegedy et al. 2016, section 7).
    """

    name = "binary_cross_entropy"
    domain = interior = (0.0, 1.0)
    partner = "sigmoid"

    def _guess(self, outputs: int) -> float:
        return 0.5

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        # -(ln(1-a) + y (ln a - ln(1-a)))
        np.clip(a, *self.limits(a.dtype), out=out)
        np.negative(out, out=scratch)
        np.log1p(scratch, out=scratch)
        np.log(out, out=out)
        np.subtract(out, scratch, out=out)
        np.multiply(out, y, out=out)
        np.add(out, scratch, out=out)
        np.negative(out, out=out)

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.logaddexp(z, 0.0, out=out)
        np.multiply(y, z, out=scratch)
        np.subtract(out, scratch, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        # y / ā² + (1 - y) / (1 - ā)²
        np.subtract(1.0, inside, out=scratch)
        np.divide(slope, scratch, out=scratch)
        np.multiply(scratch, scratch, out=scratch)
        np.multiply(scratch, 1.0 - y, out=scratch)
        _bend_of_logarithm(inside, y, slope)
        np.add(slope, scratch, out=slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.subtract(1.0, inside, out=scratch)
        np.multiply(scratch, inside, out=scratch)
        np.divide(slope, scratch, out=slope)
        np.subtract(inside, y, out=scratch)
        np.multiply(slope, scratch, out=slope)

    def output_error(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        out: np.ndarray,
        scratch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        if activation.elementwise:
            super().output_error(z, a, y, activation, out, scratch)
            return
        # q = r / (1 - ā). Above ½ δ_j is r_j - ā_j Σ_{k≠j} q_k: the same, without a pole.
        inside, q = scratch
        clip(a, (0.0, math.inf), inside)
        below = ~(inside > 0.5)  # a NaN is below
        np.subtract(1.0, inside, out=q)
        np.copyto(q, np.sum(inside, axis=1, keepdims=True, where=below), where=~below)
        np.subtract(inside, y, out=out)
        leave_out(y, out)
        np.divide(out, q, out=q)
        np.copyto(out, q, where=below)
        sums = [np.sum(q, axis=1, keepdims=True, where=which) for which in (True, below)]
        np.multiply(inside, np.where(below, *sums), out=q)
        np.subtract(out, q, out=out)

    def output_tangent(
        self,
        z: np.ndarray,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        tangent: np.ndarray,
    ) -> np.ndarray:
        if activation.elementwise:
            return super().output_tangent(z, a, y, activation, tangent)
        # With p the output above ½, if there is one, r = a_p - y_p and sums over k ≠ p alone:
        # δ_p = r - a_p Σ q_k, δ_j = q_j - a_j Σ q_k - r a_j / Σ a_k. Nothing here has a pole.
        inside = np.empty_like(a)
        clip(a, (0.0, math.inf), inside)
        below = ~(inside > 0.5)

        def total(x: np.ndarray, where: np.ndarray) -> np.ndarray:
            return np.asarray(np.sum(x, axis=1, keepdims=True, where=where))

        da = inside * (tangent - (inside * tangent).sum(axis=1, keepdims=True))
        np.copyto(da, -total(da, below), where=~below)
        rest = np.where(below, 1.0 - inside, 1.0)
        known = np.where(y == y, y, inside)  # of a missing one r and q are 0, and stay it
        q = (inside - known) / rest
        dq = da * (1.0 - known) / (rest * rest) * (y == y)
        sum_q, sum_dq = total(q, below), total(dq, below)
        r, dr = total(inside - known, ~below), total(da, ~below & (y == y))
        share = inside / total(inside, below)
        turn = tangent - total(share * tangent, below)
        out = -da * sum_q - inside * sum_dq
        return np.asarray(out + np.where(below, dq - share * (dr + r * turn), da * (y == y)))


class CategoricalCrossEntropy(_Smoothed):
    """C_x = -Σ_j y_j ln a_j,  ∂C_x/∂a_j = -y_j / a_j;  Σ_j y_j = 1.

    With softmax, c = y_j (ln Σ_k e^z_k - z_j).

    Parameters
    ----------
    smoothing : float in [0, 1), default 0
        Label smoothing ε: y is replaced by (1 - ε) y + ε / n_L (Szegedy et al. 2016, section 7).
    """

    name = "categorical_cross_entropy"
    default_output = "softmax"
    domain, interior = (0.0, 1.0), (0.0, math.inf)
    distribution = True
    partner = "softmax"

    def _guess(self, outputs: int) -> float:
        return 1.0 / outputs

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.clip(a, *self.limits(a.dtype), out=scratch)
        np.log(scratch, out=scratch)
        np.multiply(y, scratch, out=out)
        np.negative(out, out=out)

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        column = scratch[:, :1]
        np.max(z, axis=1, keepdims=True, out=column)
        np.subtract(z, column, out=out)
        # ln Σ e^(z - max): the exponentials would need a third buffer, a gives them back
        # as a = e^(z - max) / Σ, and the largest a is exactly 1 / Σ.
        np.max(a, axis=1, keepdims=True, out=column)
        np.log(column, out=column)
        np.add(out, column, out=out)
        np.multiply(out, y, out=out)
        np.negative(out, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        _bend_of_logarithm(inside, y, slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.divide(slope, inside, out=slope)
        np.multiply(slope, y, out=slope)
        np.negative(slope, out=slope)


class Focal(BuiltinCost):
    """A cross-entropy in which outputs that are right already count less (Lin et al. 2017).

    C_x = -Σ_j [y_j (1 - a_j)^γ ln a_j + (1 - y_j) a_j^γ ln(1 - a_j)].

    Parameters
    ----------
    gamma : float >= 0, default 2
        Exponent γ; with 0 it is the cross-entropy.
    """

    name = "focal"
    domain = interior = (0.0, 1.0)
    targets = (0.0, 1.0)
    takes_labels = True

    def __init__(self, gamma: float = 2.0) -> None:
        self.gamma = number("gamma", gamma, 0.0, math.inf, low_too=True)
        self.constants = (self.gamma,)
        if self.gamma != 2.0:
            self._set(gamma=self.gamma)

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        inside = np.clip(a, *self.limits(a.dtype))
        ln, other = np.log(inside), np.log1p(-inside)
        np.multiply(_power(other, self.gamma), y * ln, out=out)
        np.multiply(_power(ln, self.gamma), (1 - y) * other, out=scratch)
        np.add(out, scratch, out=out)
        np.negative(out, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(slope, slope, out=slope)
        np.multiply(slope, self._bend(inside, y), out=slope)

    def _bend(self, a: np.ndarray, y: np.ndarray) -> np.ndarray:
        """c''."""
        ln, other = np.log(a), np.log1p(-a)
        return np.asarray(
            y * self._bend_of(a, ln, other) + (1 - y) * self._bend_of(1 - a, other, ln)
        )

    def _bend_of(self, a: np.ndarray, ln: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Of -(1 - a)^γ ln a: with b = 1 - a, b^γ [1 / a² + 2 γ / (a b) - γ (γ - 1) ln a / b²]."""
        g, b = self.gamma, 1 - a
        found = 1 / a**2 + 2 * g / (a * b) - g * (g - 1) * ln / b**2
        return np.asarray(_power(other, g) * found)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        # a (1 - a) ∂c/∂a = y (1 - a)^γ [γ a ln a - (1 - a)] - (1 - y) a^γ [γ (1 - a) ln(1 - a) - a]
        rest = 1 - inside
        ln, other = np.log(inside), np.log1p(-inside)
        right = _power(other, self.gamma) * (self.gamma * inside * ln - rest)
        wrong = _power(ln, self.gamma) * (self.gamma * rest * other - inside)
        np.divide(slope, inside * rest, out=slope)
        np.multiply(slope, y * right - (1 - y) * wrong, out=slope)


class CategoricalFocal(Focal):
    """The same of one class a sample: C_x = -Σ_j y_j (1 - a_j)^γ ln a_j, with Σ_j y_j = 1.

    ∂C_x/∂a_j = y_j (1 - a_j)^γ [γ ln a_j / (1 - a_j) - 1 / a_j].

    Parameters
    ----------
    gamma : float >= 0, default 2
        Exponent γ; with 0 it is the cross-entropy.
    """

    name = "categorical_focal"
    default_output = "softmax"
    distribution = True

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        inside = np.clip(a, *self.limits(a.dtype))
        np.multiply(_power(np.log1p(-inside), self.gamma), -y * np.log(inside), out=out)

    def _bend(self, a: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray(y * self._bend_of(a, np.log(a), np.log1p(-a)))

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        rest = 1 - inside
        right = _power(np.log1p(-inside), self.gamma) * (
            self.gamma * inside * np.log(inside) - rest
        )
        np.divide(slope, inside * rest, out=slope)
        np.multiply(slope, y * right, out=slope)


def _bend_of_logarithm(inside: np.ndarray, y: np.ndarray, slope: np.ndarray) -> None:
    """slope ← y (slope / ā)², of c = -y ln a."""
    np.divide(slope, inside, out=slope)
    np.multiply(slope, slope, out=slope)
    np.multiply(slope, y, out=slope)


def _power(ln: np.ndarray, exponent: float) -> np.ndarray:
    """x to a power, from ln x."""
    return np.asarray(np.exp(ln * ln.dtype.type(exponent)))


class Poisson(BuiltinCost):
    """C_x = Σ_j (a_j - y_j ln a_j),  ∂C_x/∂a_j = 1 - y_j / a_j.

    The negative log-likelihood of counts y with mean a, less ln y!. With exponential, c = a - y z.
    """

    name = "poisson"
    default_output = "exponential"
    domain = interior = (0.0, math.inf)
    targets = (0.0, math.inf)
    partner = "exponential"

    def terms(self, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.clip(a, *self.limits(a.dtype), out=scratch)
        np.log(scratch, out=scratch)
        np.multiply(y, scratch, out=out)
        np.subtract(a, out, out=out)

    def terms_from_z(
        self, z: np.ndarray, a: np.ndarray, y: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.multiply(y, z, out=out)
        np.subtract(a, out, out=out)

    def bend(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        _bend_of_logarithm(inside, y, slope)

    def error(
        self, inside: np.ndarray, y: np.ndarray, slope: np.ndarray, scratch: np.ndarray
    ) -> None:
        np.divide(slope, inside, out=slope)
        np.subtract(inside, y, out=scratch)
        np.multiply(slope, scratch, out=slope)


class GaussianNLL(CostOfRows):
    """The negative log-likelihood of y_j under N(μ_j, e^s_j) (Nix & Weigend 1994).

    The first half of the outputs are the means μ, the second half the logarithms s of the
    variances; Y has half as many columns as there are outputs.

    C_x = ½ Σ_j [s_j + (y_j - μ_j)² e^(-s_j)], without the constant ½ ln 2π. With r = μ - y,
    ∂C_x/∂μ_j = r_j e^(-s_j) and ∂C_x/∂s_j = ½ (1 - r_j² e^(-s_j)).
    """

    name = "gaussian_nll"
    couples = "pair"

    def targets_of(self, outputs: int) -> int:
        if outputs % 2:
            raise ValueError(
                f"cost {self.name!r} needs an even number of outputs, means and log-variances, "
                f"got {outputs}"
            )
        return outputs // 2

    def outputs_of(self, targets: int) -> int:
        return 2 * targets

    def predictions(self, a: np.ndarray) -> np.ndarray:
        """Return the means μ.

        Parameters
        ----------
        a : (n, n_L) array
            Outputs.

        Returns
        -------
        (n, n_L / 2) array
            One column a target.
        """
        return a[:, : a.shape[1] // 2]

    def deviations(self, a: np.ndarray) -> np.ndarray:
        """Return the standard deviations e^(s / 2).

        Parameters
        ----------
        a : (n, n_L) array
            Outputs.

        Returns
        -------
        (n, n_L / 2) array
            One column a target, in the unit of y.
        """
        return np.asarray(np.exp(0.5 * a[:, a.shape[1] // 2 :]))

    def prepare(self, Y: np.ndarray, outputs: int) -> np.ndarray:
        return np.concatenate([Y, Y], axis=1)

    def evaluate(self, a: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = a.shape[1] // 2
        mean, log_variance, y = a[:, :half], a[:, half:], y[:, :half]
        with np.errstate(all="ignore"):
            r, precision = mean - y, np.exp(-log_variance)
            square = r * r * precision
            terms = 0.5 * (log_variance + square)
            gradient = np.concatenate([r * precision, 0.5 * (1 - square)], axis=1)
        leave_out(y, terms)
        leave_out(np.concatenate([y, y], axis=1), gradient)
        return np.asarray(terms.sum(axis=1)), gradient

    def curvature(self, a: np.ndarray, y: np.ndarray, v: np.ndarray) -> np.ndarray:
        # ∂²/∂μ² = e^-s, ∂²/∂μ∂s = -r e^-s, ∂²/∂s² = ½ r² e^-s
        half = a.shape[1] // 2
        r, precision = a[:, :half] - y[:, :half], np.exp(-a[:, half:])
        of_mean, of_log_variance = v[:, :half], v[:, half:]
        out = np.concatenate(
            [
                precision * (of_mean - r * of_log_variance),
                precision * r * (0.5 * r * of_log_variance - of_mean),
            ],
            axis=1,
        )
        leave_out(y, out)
        return out
