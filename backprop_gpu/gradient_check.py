"""The demon of the notes as a tool: nudge z, w and b, and see whether C moves as δ says.

The demon sits at neuron j of layer l and changes its z_j^l by a little; C then
changes by ∂C/∂z_j^l = δ_j^l times as much. Here it does so for every neuron and
sample by central differences in float64, and for weights and biases too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .backends.numpy import NumpyBackend
from .engines.layered import Batch, LayeredEngine
from .parameters import Parameters

if TYPE_CHECKING:
    from .network import Network

#: Nudges, relative to 1 + |value|. A difference that only the largest shows is a kink
#: (relu at 0) inside the nudge, not a wrong derivative, so the best of the three counts.
STEPS = (1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Nudge:
    """One comparison: what backpropagation predicts and what the nudge measured."""

    quantity: str
    predicted: float
    measured: float
    error: float


@dataclass(frozen=True)
class GradientReport:
    """What the demon found.

    ``error`` of a comparison is |predicted - measured| relative to the larger of the two
    and of the mean size of such predictions in the layer, so that a derivative near zero
    is held against its neighbours.
    """

    worst_neuron: Nudge
    worst_weight: Nudge
    worst_bias: Nudge
    comparisons: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every comparison is within the tolerance."""
        return self.error <= self.tolerance

    @property
    def error(self) -> float:
        """The largest error of all."""
        return max(n.error for n in (self.worst_neuron, self.worst_weight, self.worst_bias))

    def __str__(self) -> str:
        verdict = "agree" if self.ok else "DISAGREE"
        lines = [
            f"gradients {verdict}: {self.comparisons} nudges, largest relative error "
            f"{self.error:.2e} (tolerance {self.tolerance:.0e})"
        ]
        for title, nudge in (
            ("worst neuron", self.worst_neuron),
            ("worst weight", self.worst_weight),
            ("worst bias", self.worst_bias),
        ):
            lines.append(
                f"  {title} {nudge.quantity}: predicted {nudge.predicted:.9g}, "
                f"measured {nudge.measured:.9g}, error {nudge.error:.2e}"
            )
        return "\n".join(lines)


def check_gradients(
    network: Network, X: np.ndarray, Y: np.ndarray, *, tolerance: float, max_weights: int
) -> GradientReport:
    """Compare δ, ∂C/∂w and ∂C/∂b with central differences, in float64 on NumPy.

    Parameters
    ----------
    network : Network
        Its parameters, activations and cost are used, not its backend or dtype.
    X, Y : (n, n_0), (n, n_L)
    tolerance : float
        The largest relative error that counts as agreement.
    max_weights : int
        Weights, and biases, nudged in each layer, spread evenly; z is nudged for every neuron.

    Returns
    -------
    GradientReport
        Naming the worst neuron, weight and bias.
    """
    demon = _Demon(network, X.astype(np.float64), Y.astype(np.float64))
    neurons, weights, biases = [], [], []
    for l in range(1, len(network.sizes)):
        neurons += demon.nudge_neurons(l)
        weights += demon.nudge_array("w", l, demon.parameters.weights[l - 1], max_weights)
        biases += demon.nudge_array("b", l, demon.parameters.biases[l - 1], max_weights)
    worst = [max(found, key=_badness) for found in (neurons, weights, biases)]
    count = demon.count
    return GradientReport(worst[0], worst[1], worst[2], count, tolerance)


def _badness(nudge: Nudge) -> float:
    return np.inf if np.isnan(nudge.error) else nudge.error


class _Demon:
    def __init__(self, network: Network, X: np.ndarray, Y: np.ndarray) -> None:
        backend = NumpyBackend(np.float64)
        self.engine = LayeredEngine(backend, network.sizes, network.activations, network.cost)
        self.backend, self.network, self.X, self.Y = backend, network, X, Y
        self.parameters = Parameters(network._layout, network._get_flat().astype(np.float64))
        self.batch = Batch(backend, network.sizes, (True,) * len(network.sizes), len(X))
        self.batch.a[0][...] = X
        self.batch.y[...] = Y
        self.engine._forward(self.parameters, self.batch)
        self.gradients = self.engine._zeros_like(self.parameters)
        self.engine._backward(self.parameters, self.gradients, self.batch)
        self.count = 0

    def costs_from(self, l: int, z: np.ndarray) -> np.ndarray:
        """C_x of every sample, (m,), when layer l's weighted input is z."""
        sigma = self.network.activations
        a = np.empty_like(z)
        sigma[l - 1].evaluate(z, a, np.empty_like(z))
        for k in range(l, len(sigma)):
            z = a @ self.parameters.weights[k].T + self.parameters.biases[k]
            a = np.empty_like(z)
            sigma[k].evaluate(z, a, np.empty_like(z))
        return np.asarray(self.network.cost.samples(a, self.Y))

    def nudge_neurons(self, l: int) -> list[Nudge]:
        """The worst sample of every neuron j of layer l: samples do not meet in C_x."""
        z, delta = self.batch.z[l], self.batch.delta[l]
        assert z is not None
        assert delta is not None
        scale = float(np.abs(delta).mean())
        found = []
        for j in range(z.shape[1]):

            def change(step: float, j: int = j) -> np.ndarray:
                h = step * (1.0 + np.abs(z[:, j]))
                up, down = z.copy(), z.copy()
                up[:, j] += h
                down[:, j] -= h
                return (self.costs_from(l, up) - self.costs_from(l, down)) / (2.0 * h)

            errors, measured = self._compare(delta[:, j], change, scale)
            x = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
            found.append(
                Nudge(
                    f"z_{j}^{l} of sample {x}",
                    float(delta[x, j]),
                    float(measured[x]),
                    float(errors[x]),
                )
            )
        return found

    def nudge_array(self, name: str, l: int, array: np.ndarray, limit: int) -> list[Nudge]:
        gradient = (self.gradients.weights if name == "w" else self.gradients.biases)[l - 1]
        scale = float(np.abs(gradient).mean())
        flat, predicted = array.reshape(-1), gradient.reshape(-1)
        chosen = np.unique(np.linspace(0, flat.size - 1, min(limit, flat.size)).astype(int))
        a_prev = self.batch.a[l - 1]
        found = []
        for i in chosen:

            def change(step: float, i: int = int(i)) -> np.ndarray:
                old, costs = flat[i], []
                h = step * (1.0 + abs(old))
                for value in (old + h, old - h):
                    flat[i] = value
                    z = a_prev @ self.parameters.weights[l - 1].T + self.parameters.biases[l - 1]
                    costs.append(self.costs_from(l, z))
                flat[i] = old
                return np.atleast_1d(np.mean(costs[0] - costs[1]) / (2.0 * h))

            errors, measured = self._compare(predicted[i : i + 1], change, scale)
            index = "_".join(str(int(k)) for k in np.unravel_index(i, array.shape))
            found.append(
                Nudge(
                    f"{name}_{index}^{l}", float(predicted[i]), float(measured[0]), float(errors[0])
                )
            )
        return found

    def _compare(
        self, predicted: np.ndarray, change: Callable[[float], np.ndarray], scale: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(error, measured) of the nudge that agrees best."""
        self.count += predicted.size
        best = np.full(predicted.shape, np.inf)
        measured = np.full(predicted.shape, np.nan)
        for step in STEPS:
            value = change(step)
            size = np.maximum(np.maximum(np.abs(predicted), np.abs(value)), scale)
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.abs(predicted - value) / size
            error = np.where(size == 0.0, 0.0, error)
            better = (error < best) | np.isnan(measured)
            best, measured = np.where(better, error, best), np.where(better, value, measured)
        return best, measured
