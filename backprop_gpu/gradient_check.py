"""The demon of the notes as a tool: nudge z, w and b, and see whether C moves as δ says.

The demon sits at neuron j of layer l and changes its z_j^l by a little; C then
changes by ∂C/∂z_j^l = δ_j^l times as much. Here it does so for every neuron and
sample by central differences in float64, and for weights and biases too.

At a kink (relu at z = 0) C has a slope to the left and one to the right, and a
central difference measures neither. Where it disagrees with backpropagation,
the demon therefore looks at both sides, and whatever lies between is right.

Where even float64 has rounded an output to the edge of what the cost is defined
for, C is flat and δ is not (`costs` says why): such a row is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import costs, validation
from .backends.numpy import NumpyBackend
from .engines.passes import Batch, Passes
from .model import Model
from .parameters import Parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Nudges, relative to 1 + |value|; the best of them counts. Large ones drown in curvature
#: and meet kinks, small ones drown in rounding.
STEPS = (1e-4, 1e-5, 1e-6)

#: The nudge that looks at one side of a kink, so small that curvature hardly shows.
SIDE_STEP = 1e-7

#: Slopes of less than this part of C and z^L drown in the rounding of C.
RESOLUTION = 1e-6

#: By how much every z of the layers above moves besides: a number, or (m, 1).
Aside = float | np.ndarray

#: (h, aside) -> C_x of every sample, (m,), after a nudge by h and with every z of the
#: layers above moved by `aside`. Both hold for all samples, or are one number per sample.
Costs = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Nudge:
    """One comparison: what backpropagation predicts and what the nudge measured."""

    quantity: str
    predicted: float
    measured: float
    error: float


@dataclass(frozen=True)
class GradientReport:
    """What the demon of `Network.check_gradients` found; ``print`` it.

    Parameters
    ----------
    worst_neuron, worst_weight, worst_bias : Nudge
        The comparisons of ∂C/∂z, ∂C/∂w and ∂C/∂b with the largest error: each has ``quantity``,
        ``predicted``, ``measured`` and ``error``.
    comparisons : int
        How many nudges there were.
    tolerance : float
        The largest error that counts as agreement.
    left_out : int
        Rows of which C cannot be told: an output of theirs is at an edge of the cost's domain.
    deltas : tuple of (n_l,) arrays
        The mean over the samples of abs(δ_xj), for each of the layers 1 … L.
    errors : tuple of (n_l,) arrays
        The error of the worst sample of each neuron.

    Notes
    -----
    ``error`` of a comparison is abs(predicted - measured) relative to the largest of the two
    and of the mean size, over the samples and the layer, of what predictions are made of:
    abs(δ_xj), and abs(δ_xj a_xk) for a weight. So a derivative that is near zero, or cancels
    over the samples, is held against its neighbours, and one that is lost in the rounding
    of C (`RESOLUTION`) against what float64 can tell. At a kink ``measured`` is the slope
    nearest to the predicted one; where a number is NaN, ``error`` is inf.
    """

    worst_neuron: Nudge
    worst_weight: Nudge
    worst_bias: Nudge
    comparisons: int
    tolerance: float
    #: Rows of which C cannot be told: an output of theirs is at an edge of the cost's domain.
    left_out: int = 0
    deltas: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    errors: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)

    def plot(self, ax: Any = None) -> Axes | np.ndarray:
        """Draw |δ_j^l|, and the error of its check, of every neuron, on logarithmic scales.

        Each is ``deltas`` and ``errors`` of a neuron; all layers are as wide. What is 0 lies at the
        lower edge, hollow, and an infinite error at the upper.

        Parameters
        ----------
        ax : two matplotlib.axes.Axes, optional
            To draw into; by default those of a new figure.

        Returns
        -------
        array of two matplotlib.axes.Axes
            Of δ, and of the errors.

        Raises
        ------
        ValueError
            If the report has no figures of neurons, since it was not made by `check_gradients`.
        ImportError
            If there is no matplotlib (extra ``plot``).
        """
        from . import pictures

        return pictures.gradient_report(ax, self.deltas, self.errors, self.tolerance)

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
        if self.left_out:
            lines.append(f"  left out: {self.left_out} rows with an output at the cost's edge")
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


@np.errstate(all="ignore")
def check_gradients(
    model: Model,
    parameters: Parameters,
    X: np.ndarray,
    Y: np.ndarray,
    *,
    tolerance: float,
    max_weights: int,
) -> GradientReport:
    """Compare δ, ∂C/∂w and ∂C/∂b with central differences, in float64 on NumPy.

    Parameters
    ----------
    model : Model
        Its activations and cost are used, not its backend or dtype.
    parameters : Parameters
    X, Y : (n, n_0), (n, n_L)
    tolerance : float
        The largest relative error that counts as agreement, > 0.
    max_weights : int
        Weights, and biases, nudged in each layer, spread evenly; z is nudged for every neuron.

    Returns
    -------
    GradientReport
        Naming the worst neuron, weight and bias.

    Raises
    ------
    ValueError
        If there is no row of which C can be told (see ``left_out``).
    """
    tolerance = validation.finite("tolerance", tolerance, 0.0)
    if tolerance <= 0.0:
        raise ValueError(f"tolerance must be > 0, got {tolerance:g}")
    max_weights = validation.integer("max_weights", max_weights, 1)
    demon = _Demon(model, model.read(parameters), X, Y, tolerance)
    layers = range(1, len(model.sizes))
    of_neurons = [list(demon.nudge_neurons(l)) for l in layers]
    neurons, weights, biases = (
        max((nudge for nudges in found for nudge in nudges), key=lambda nudge: nudge.error)
        for found in (
            of_neurons,
            (demon.nudge_parameters("w", l, max_weights) for l in layers),
            (demon.nudge_parameters("b", l, max_weights) for l in layers),
        )
    )
    return GradientReport(
        neurons,
        weights,
        biases,
        demon.comparisons,
        tolerance,
        left_out=len(X) - len(demon.rows),
        deltas=tuple(np.abs(np.asarray(delta)).mean(axis=0) for delta in demon.batch.delta[1:]),
        errors=tuple(np.array([nudge.error for nudge in nudges]) for nudges in of_neurons),
    )


class NudgedPass:
    """A pass over some rows in float64, and what C_x of each becomes when the demon nudges a z.

    Any number of threads may ask it.

    Parameters
    ----------
    model : Model
        Its activations and cost are used, not its backend or dtype.
    flat : (layout.length,) array
        The parameters, on the host.
    X, Y : (n, n_0), (n, targets)
        As `Model.check_data` returns them.
    name : str
        What X is called, for an error.

    Attributes
    ----------
    rows : (m,) array of intp
        Those of X that are passed on; the others have an output at the edge of what the cost is
        defined for.
    batch : Batch
        Their z, a and δ, each (m, n_l).
    parameters, gradients : Parameters
        In float64; the gradients are of the mean over `rows`.

    Raises
    ------
    ValueError
        If that leaves no row.
    """

    def __init__(
        self, model: Model, flat: np.ndarray, X: np.ndarray, Y: np.ndarray, name: str = "X"
    ) -> None:
        self.activations, self.cost = model.activations, model.cost
        backend = NumpyBackend(np.float64)
        passes = Passes(backend, model.sizes, self.activations, self.cost)
        self.parameters = Parameters(model.layout, flat.astype(np.float64))
        self.gradients = passes.zeros_like(self.parameters)
        ((_, _, _, outputs),) = passes.outputs([self.parameters], X, None, len(X))
        at_edge = self._at_edge(outputs)
        self.rows = np.flatnonzero(~at_edge)
        if not self.rows.size:
            raise ValueError(
                f"{name}: every row has an output at the edge of what cost {self.cost.name!r} is "
                f"defined for, where its slope cannot be measured: make {name} or the weights "
                "smaller"
            )
        sizes = model.sizes
        self.batch = Batch(backend, sizes, (True,) * len(sizes), len(self.rows))
        self.batch.a[0][...] = X[self.rows]
        self.batch.y[...] = self.cost.prepare(Y[self.rows], sizes[-1]).astype(np.float64)
        passes.forward(self.parameters, self.batch)
        passes.backward(self.parameters, self.gradients, self.batch)

    def _at_edge(self, a: np.ndarray) -> np.ndarray:
        """(n,), whether an output is where ā ends, or within a nudge of that."""
        if not isinstance(self.cost, costs.BuiltinCost) or costs.collapses(
            self.activations[-1], self.cost
        ):
            return np.zeros(len(a), bool)
        info, (low, high) = np.finfo(a.dtype), self.cost.interior
        edge = np.zeros(a.shape, bool)
        if low == 0.0:
            edge |= a < 4.0 * float(info.tiny)
        if high == 1.0:
            edge |= a > 1.0 - 4.0 * float(info.eps)
        return np.asarray(edge.any(axis=1))

    def costs_after(self, l: int, j: int, h: np.ndarray, aside: Aside = 0.0) -> np.ndarray:
        """C_x, (k,), after z_j^l was nudged by each of h, (k,).

        Of several rows each has its own nudge, k = m; one row has them all in turn.
        """
        z = np.asarray(self.batch.z[l])
        nudged = np.array(np.broadcast_to(z, (len(h), z.shape[1])))
        nudged[:, j] += h
        return self.costs_from(l, nudged, aside)

    def costs_from(self, l: int, z: np.ndarray, aside: Aside = 0.0) -> np.ndarray:
        """C_x, (k,), when layer l's weighted input is z, (k, n_l), and those above go `aside`."""
        a, scratch = np.empty_like(z), np.empty_like(z)
        self.activations[l - 1].evaluate(z, a, scratch)
        for k in range(l, len(self.activations)):
            z = a @ self.parameters.weights[k].T + (self.parameters.biases[k] + aside)
            a, scratch = np.empty_like(z), np.empty_like(z)
            self.activations[k].evaluate(z, a, scratch)
        y = np.broadcast_to(self.batch.y, a.shape)
        if costs.collapses(self.activations[-1], self.cost):
            assert isinstance(self.cost, costs.BuiltinCost)
            out = np.empty_like(z)
            self.cost.terms_from_z(z, a, y, out, scratch)
            costs.leave_out(y, out)
            return np.asarray(out.sum(axis=1))
        return np.asarray(self.cost.samples(a, y))


class _Demon(NudgedPass):
    """Nudges one number at a time, and compares."""

    def __init__(
        self, model: Model, flat: np.ndarray, X: np.ndarray, Y: np.ndarray, tolerance: float
    ) -> None:
        super().__init__(model, flat, X, Y)
        self.tolerance = tolerance
        self.comparisons = 0
        z = np.asarray(self.batch.z[-1])
        self.floor = _mean_size(self.costs_from(len(self.activations), z))
        if self.cost.builtin:  # of order z where σ is saturated; a user's may have any unit
            self.floor += _mean_size(z)
        self.floor *= RESOLUTION

    def nudge_neurons(self, l: int) -> Iterator[Nudge]:
        """The worst sample of every neuron j of layer l: samples do not meet in C_x."""
        z, delta = np.asarray(self.batch.z[l]), np.asarray(self.batch.delta[l])
        scale = _mean_size(delta)
        for j in range(z.shape[1]):

            def costs_of(h: np.ndarray, aside: np.ndarray, j: int = j) -> np.ndarray:
                return self.costs_after(l, j, h, aside)

            unit = 1.0 + np.abs(z[:, j])
            measured, errors = self._compare(delta[:, j], costs_of, unit, scale, np.asarray)
            x = int(errors.argmax())
            name = f"z_{j}^{l} of sample {self.rows[x]}"
            yield Nudge(name, float(delta[x, j]), float(measured[x]), float(errors[x]))

    def nudge_parameters(self, letter: str, l: int, limit: int) -> Iterator[Nudge]:
        """At most `limit` weights ("w") or biases ("b") of layer l: the mean of C_x counts."""
        w, b = self.parameters.weights[l - 1], self.parameters.biases[l - 1]
        a, delta = self.batch.a[l - 1], np.asarray(self.batch.delta[l])
        if letter == "w":
            array, gradient = w, self.gradients.weights[l - 1]
            scale = _mean_size(np.abs(delta).mean(axis=1) * np.abs(a).mean(axis=1))
        else:
            array, gradient = b, self.gradients.biases[l - 1]
            scale = _mean_size(delta)
        for i in np.unique(np.linspace(0, array.size - 1, min(limit, array.size)).astype(int)):
            index = np.unravel_index(i, array.shape)
            value = array[index]

            def costs_of(
                h: np.ndarray,
                aside: np.ndarray,
                index: tuple[np.intp, ...] = index,
                value: np.float64 = value,
            ) -> np.ndarray:
                array[index] = value + h
                z = a @ w.T + b
                array[index] = value
                return self.costs_from(l, z, aside)

            predicted, unit = gradient[index], 1.0 + np.abs(value)
            measured, error = self._compare(predicted, costs_of, unit, scale, np.mean)
            name = f"{letter}_{'_'.join(map(str, index))}^{l}"
            yield Nudge(name, float(predicted), float(measured), float(error))

    def _compare(
        self,
        predicted: np.ndarray,
        costs_of: Costs,
        unit: np.ndarray,
        scale: float,
        gather: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(measured, error), where `gather` makes the slopes of C_x what was predicted."""
        self.comparisons += predicted.size
        scale = max(scale, self.floor)
        level = np.zeros((1, 1))
        slopes = []
        for step in STEPS:
            h = step * unit
            slopes.append(gather((costs_of(h, level) - costs_of(-h, level)) / (2.0 * h)))
        measured, error = _best(predicted, np.array(slopes), scale)
        if (error > self.tolerance).any():
            low, high = map(gather, _sides(costs_of, SIDE_STEP * unit))
            slopes.append(np.clip(predicted, low, high))
            measured, error = _best(predicted, np.array(slopes), scale)
        return measured, error


def _sides(costs_of: Costs, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest one-sided slope of every C_x, on both sides of each kink.

    Stepping aside by more than the nudge puts the kinks of the layers above, which may all
    be met at once (z = 0 where x and b are 0), on one side and then on the other.
    """
    slopes = []
    for aside in (np.reshape(-10.0 * h, (-1, 1)), np.reshape(10.0 * h, (-1, 1))):
        left, here, right = (costs_of(nudge, aside) for nudge in (-h, 0.0 * h, h))
        slopes += [(here - left) / h, (right - here) / h]
    return np.min(slopes, axis=0), np.max(slopes, axis=0)


def _best(predicted: np.ndarray, slopes: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """(measured, error) of the slope, along axis 0, that agrees best."""
    size = np.maximum(np.maximum(np.abs(predicted), np.abs(slopes)), scale)
    errors = np.abs(predicted - slopes) / np.where(size == 0.0, 1.0, size)
    errors = np.where(np.isnan(errors), np.inf, errors)
    best = errors.argmin(axis=0)[np.newaxis]
    return np.take_along_axis(slopes, best, 0)[0], errors.min(axis=0)


def _mean_size(values: np.ndarray) -> float:
    """The mean of |values|, in which a NaN or infinity counts as 0."""
    return float(np.nan_to_num(np.abs(values), nan=0.0, posinf=0.0).mean())
