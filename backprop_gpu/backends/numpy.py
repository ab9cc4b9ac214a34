"""The equations in NumPy: the reference that every other backend is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import costs, philox
from ..activations import Activation
from ..costs import Cost
from ..optimizers import Optimizer
from ..parameters import Parameters
from ..philox import Draws
from ..precision import resolve, round_factor

#: Rows that are mixed at a time: what lies between stays in a core's own cache.
_MIXED = 64


class NumpyEpoch:
    """Order, weights, coefficients and costs of an epoch, with the step number, on the host."""

    def __init__(self, rows: int, batch: int) -> None:
        self.order = np.empty(rows, np.intp)
        self.batch = batch
        self.step = 0
        self.step_costs = np.empty(-(-rows // batch), np.float64)

    def load(
        self,
        order: np.ndarray,
        coefficients: np.ndarray,
        weights: np.ndarray | None = None,
        draws: Draws | None = None,
    ) -> None:
        self.order[...] = order
        self.weights, self.draws = weights, draws
        #: Of this step, by layer and rows: BP2 wants them again.
        self.factors: dict[tuple[int, int, int], np.ndarray] = {}
        self.coefficients = coefficients.tolist()
        self.step = 0

    def costs(self) -> np.ndarray:
        return self.step_costs[: self.step].copy()


class NumpyBackend:
    """Runs each equation with NumPy's own operations, in place.

    Scratch arrays are made once for each shape that is asked for, so that a
    training step allocates nothing after the first batch.

    Parameters
    ----------
    dtype : float32 or float64
    precision : str, optional
        Factors are rounded so before each product, which shows what that does to a training and
        makes none faster.
    """

    name = "numpy"

    def __init__(self, dtype: Any, precision: str | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.precision = resolve(precision, self.dtype)
        self._rounds = self.precision != self.dtype.name
        self._scratch: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
        self._means: dict[int, np.ndarray] = {}

    def asarray(self, host: np.ndarray, dtype: Any = None) -> np.ndarray:
        return np.ascontiguousarray(host, self.dtype if dtype is None else dtype)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def empty(self, shape: Sequence[int]) -> np.ndarray:
        return np.empty(shape, self.dtype)

    def zeros(self, shape: Sequence[int]) -> np.ndarray:
        return np.zeros(shape, self.dtype)

    def copy(self, source: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out, source)

    def all_finite(self, array: np.ndarray) -> bool:
        return bool(np.isfinite(array).all())

    def sum_of_squares(self, array: np.ndarray) -> float:
        return float(np.dot(array, array))

    def fork(self) -> NumpyBackend:
        return type(self)(self.dtype, self.precision)

    def _mean_of(self, rows: int) -> np.ndarray:
        """The vector (1/m, …, 1/m), whose product with m rows is their mean."""
        weights = self._means.get(rows)
        if weights is None:
            weights = self._means[rows] = np.full(rows, 1.0 / rows, self.dtype)
        return weights

    def scratch(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Two arrays of that shape, free between any two calls of this backend."""
        pair = self._scratch.get(shape)
        if pair is None:
            pair = np.empty(shape, self.dtype), np.empty(shape, self.dtype)
            self._scratch[shape] = pair
        return pair

    def _factor(self, x: np.ndarray, number: int) -> np.ndarray:
        """x as factor 0 or 1 of a product: itself, or rounded in scratch memory."""
        if not self._rounds:
            return x
        return round_factor(x, self.precision, self.scratch(x.shape)[number])

    def forward(
        self,
        w: np.ndarray,
        b: np.ndarray,
        a_prev: np.ndarray,
        activation: Activation,
        z: np.ndarray | None,
        a: np.ndarray,
        **_: Any,
    ) -> None:
        z = a if z is None else z
        np.dot(self._factor(a_prev, 0), self._factor(w, 1).T, out=z)
        np.add(z, b, out=z)
        activation.evaluate(z, a, self.scratch(a.shape)[0])

    def output_error(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        cost: Cost,
        out: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        if costs.collapses(activation, cost):
            np.subtract(a, y, out=out)
            costs.leave_out(y, out)
        else:
            scratch = self.scratch(a.shape)
            cost.output_error(a if z is None else z, a, y, activation, out, scratch)
        if weights is not None:
            np.multiply(out, weights[:, None], out=out)

    def hidden_error(
        self,
        w_next: np.ndarray,
        delta_next: np.ndarray,
        z: np.ndarray | None,
        a: np.ndarray,
        activation: Activation,
        out: np.ndarray,
        **_: Any,
    ) -> None:
        np.dot(self._factor(delta_next, 0), self._factor(w_next, 1), out=out)
        activation.pull_back(out, a if z is None else z, a, self.scratch(a.shape))

    def bias_gradient(self, delta: np.ndarray, out: np.ndarray) -> None:
        np.dot(self._mean_of(len(delta)), delta, out=out)  # a BLAS call; a sum along axis 0 is not

    def weight_gradient(
        self,
        delta: np.ndarray,
        a_prev: np.ndarray,
        out: np.ndarray,
        biases: np.ndarray | None = None,
        **_: Any,
    ) -> None:
        if biases is not None:
            self.bias_gradient(delta, biases)
        mean = self.scratch(delta.shape)[0]
        # m is divided out of δ, the smaller factor, after it is rounded.
        np.divide(self._factor(delta, 0), len(delta), out=mean)
        np.dot(mean.T, self._factor(a_prev, 1), out=out)

    def hadamard(self, s: np.ndarray, t: np.ndarray, out: np.ndarray) -> None:
        np.multiply(s, t, out=out)

    def cost(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        cost: Cost,
        weights: np.ndarray | None = None,
    ) -> float:
        return cost.mean(z, a, y, activation, self.scratch(a.shape), weights)

    def multiply(self, u: np.ndarray, w: np.ndarray, out: np.ndarray) -> None:
        np.dot(self._factor(u, 0), self._factor(w, 1).T, out=out)

    def slopes(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        activation: Activation,
        outs: Sequence[np.ndarray],
    ) -> None:
        z, scratch = a if z is None else z, self.scratch(a.shape)[0]
        activation.evaluate_derivative(z, a, outs[0], scratch)
        for order, out in enumerate(outs[1:], start=2):
            activation.evaluate_higher(order, z, a, outs[0], out, scratch)

    def tangent(
        self,
        slope: np.ndarray,
        t: np.ndarray,
        more: np.ndarray | None,
        out: np.ndarray,
        bend: np.ndarray | None = None,
        error: np.ndarray | None = None,
    ) -> None:
        if more is not None:
            np.add(t, more, out=t)
        np.multiply(slope, t, out=out)
        if bend is not None:
            term = self.scratch(out.shape)[0]
            np.multiply(bend, np.asarray(error), out=term)
            np.add(out, term, out=out)

    def directions(self, slopes: Sequence[np.ndarray], u: np.ndarray, out: np.ndarray) -> None:
        first, *second = slopes
        squares = [_squares(u) for _ in second]
        np.multiply(u, first, out=out)
        for bend, term in zip(second, squares, strict=True):
            out[-1] += np.multiply(bend, term, out=self.scratch(bend.shape)[0])

    def directions_error(
        self, slopes: Sequence[np.ndarray], u: np.ndarray, out: np.ndarray, error: np.ndarray
    ) -> None:
        first, second, third = slopes
        term, bend = self.scratch(error.shape)
        np.multiply(error, first, out=error)
        np.multiply(third, out[-1], out=term)
        np.multiply(term, _squares(u), out=term)
        np.add(error, term, out=error)
        np.multiply(second, out[-1], out=bend)
        np.multiply(bend, 2.0, out=bend)
        np.einsum("kxj,kxj->xj", np.broadcast_to(u, out.shape), out, out=term)
        np.multiply(term, second, out=term)
        np.add(error, term, out=error)
        np.multiply(out, first, out=out)
        for k in range(len(out) - 1):
            np.multiply(u[k], bend, out=term)
            np.add(out[k], term, out=out[k])

    def row_norms(self, x: np.ndarray, out: np.ndarray) -> None:
        out[...] = row_norms(x)

    def epoch(self, rows: int, batch: int) -> NumpyEpoch:
        return NumpyEpoch(rows, batch)

    def gather(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        epoch: NumpyEpoch,
        x: np.ndarray,
        y: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        start = epoch.step * epoch.batch
        rows = epoch.order[start : start + len(x)]
        # mode="clip" is what makes take write into out directly; the order is a permutation.
        X.take(rows, axis=0, out=x, mode="clip")
        Y.take(rows, axis=0, out=y, mode="clip")
        if weights is not None and epoch.weights is not None:
            weights[...] = epoch.weights[start : start + len(x)]

    def record_cost(
        self,
        z: np.ndarray | None,
        a: np.ndarray,
        y: np.ndarray,
        activation: Activation,
        cost: Cost,
        epoch: NumpyEpoch,
        weights: np.ndarray | None = None,
    ) -> None:
        epoch.step_costs[epoch.step] = self.cost(z, a, y, activation, cost, weights)

    def drop_out(
        self,
        source: np.ndarray,
        out: np.ndarray,
        layer: int,
        epoch: NumpyEpoch,
        first_row: int = 0,
    ) -> None:
        assert epoch.draws is not None
        key = layer, first_row, len(source)
        if key not in epoch.factors:
            step = epoch.draws.first_step + epoch.step
            m, n = source.shape
            found = philox.factors(epoch.draws, layer, step, m, n, first_row)
            epoch.factors[key] = found.astype(self.dtype)
        np.multiply(source, epoch.factors[key], out=out)

    def update(
        self,
        parameters: Parameters,
        gradients: Parameters,
        slots: tuple[np.ndarray, ...],
        optimizer: Optimizer,
        epoch: NumpyEpoch,
    ) -> None:
        row = epoch.coefficients[epoch.step]
        if optimizer.gradient_noise:
            assert epoch.draws is not None
            add_noise(gradients, row[5], epoch.draws, epoch.step)
        clip(gradients.flat, optimizer)
        penalize(
            parameters, gradients, optimizer.l1, row[4], self.scratch(parameters.flat.shape)[0]
        )
        apply_rule(parameters, gradients.flat, slots, optimizer, row, self.scratch)
        if optimizer.max_norm is not None:
            limit_norms(parameters, optimizer.max_norm)

    def mix(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        rows: np.ndarray,
        partners: np.ndarray,
        shares: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
    ) -> None:
        own = shares.astype(self.dtype)[:, None]
        for source, out in ((X, x), (Y, y)):
            scratch = self.scratch((_MIXED, out.shape[1]))[0]
            for first in range(0, len(rows), _MIXED):
                some = slice(first, min(first + _MIXED, len(rows)))
                mixture, other = out[some], scratch[: some.stop - first]
                _take(source, rows[some], mixture)
                _take(source, partners[some], other)
                mixture *= own[some]
                other *= 1 - own[some]
                mixture += other

    def advance(self, epoch: NumpyEpoch) -> None:
        epoch.step += 1
        epoch.factors = {}

    def repeat(self, step: Callable[[], None], times: int, captured: bool = True) -> None:
        for _ in range(times):
            step()


def _take(source: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """out = rows of a source, as numbers of out's dtype."""
    if source.dtype == out.dtype:
        source.take(rows, axis=0, out=out, mode="clip")
    else:
        np.copyto(out, source[rows])


def _squares(u: np.ndarray) -> np.ndarray:
    """Σ_k u_k² over all but the last."""
    return np.asarray(np.einsum("kxj,kxj->xj", u[:-1], u[:-1]))


class RecyclingBackend(NumpyBackend):
    """One whose arrays are made of those it has made before: their pages are faulted in.

    `recycle` takes back all that `empty` has given.
    """

    def __init__(self, dtype: Any, precision: str | None = None) -> None:
        super().__init__(dtype, precision)
        self._given: list[np.ndarray] = []
        self._free: dict[tuple[int, ...], list[np.ndarray]] = {}
        self.nbytes = 0

    def empty(self, shape: Sequence[int]) -> np.ndarray:
        free = self._free.get(tuple(shape))
        if free:
            array = free.pop()
        else:
            array = super().empty(shape)
            self.nbytes += array.nbytes
        self._given.append(array)
        return array

    def recycle(self) -> None:
        for array in self._given:
            self._free.setdefault(array.shape, []).append(array)
        self._given = []


def add_noise(gradients: Parameters, sigma: float, draws: Draws, step: int) -> None:
    """g ← g + σ n, on what is between no two arrays."""
    arrays = (*gradients.weights, *gradients.biases)
    for array, start in zip(arrays, gradients.layout.starts, strict=True):
        n = philox.normals(draws, start, array.size, draws.first_step + step)
        array += (sigma * n).astype(array.dtype).reshape(array.shape)


def row_norms(x: np.ndarray) -> np.ndarray:
    """‖x_i‖ of each row."""
    squares = np.einsum("xj,xj->x", x, x)
    info = np.finfo(x.dtype)
    rare = ~((squares > info.tiny / info.eps) & (squares < np.inf))
    out: np.ndarray = np.sqrt(squares)
    if rare.any():  # a square may have become 0 or infinite
        rows = x[rare]
        largest = np.abs(rows).max(axis=1, keepdims=True)
        rows /= np.where(largest > 0, largest, 1.0)
        out[rare] = largest[:, 0] * np.sqrt(np.einsum("xj,xj->x", rows, rows))
    return out


def limit_norms(parameters: Parameters, limit: float) -> None:
    """w_j ← w_j min(1, limit / ‖w_j‖) of the weights into each neuron."""
    for w in parameters.weights:
        norms = row_norms(w)
        over = norms > limit
        w[over] *= (limit / norms[over])[:, None]


def clip(g: np.ndarray, optimizer: Optimizer) -> None:
    """g ← g clipped by value, then by norm."""
    if optimizer.clip_value is not None:
        np.clip(g, -optimizer.clip_value, optimizer.clip_value, out=g)
    if optimizer.clip_norm is not None:
        norm = float(np.dot(g, g)) ** 0.5
        if norm == np.inf:  # the squares overflowed, the norm need not
            largest = float(np.abs(g).max())
            norm = largest * float(np.linalg.norm(g / largest))
        if norm > optimizer.clip_norm:
            np.multiply(g, optimizer.clip_norm / norm, out=g)


def penalize(
    parameters: Parameters, gradients: Parameters, l1: float, l2: float, scratch: np.ndarray
) -> None:
    """g ← g + l2 w + l1 sign(w), on weights only."""
    if l2 == 0.0 and l1 == 0.0:
        return
    end = parameters.layout.weights_end
    w, g, term = parameters.flat[:end], gradients.flat[:end], scratch[:end]
    if l2:
        np.multiply(w, l2, out=term)
        np.add(g, term, out=g)
    if l1:
        np.sign(w, out=term)
        np.multiply(term, l1, out=term)
        np.add(g, term, out=g)


def apply_rule(
    parameters: Parameters,
    g: np.ndarray,
    slots: tuple[np.ndarray, ...],
    optimizer: Optimizer,
    row: Sequence[float],
    scratch: Callable[[tuple[int, ...]], tuple[np.ndarray, np.ndarray]],
) -> None:
    """The five rules of `optimizers`, with its names for the coefficients. g is overwritten."""
    c0, c1, c2, c3 = row[:4]
    p = parameters.flat
    if optimizer.rule == "sgd":
        np.multiply(g, c0, out=g)
        np.subtract(p, g, out=p)
    elif optimizer.rule in ("momentum", "nesterov"):
        (v,) = slots
        mu = optimizer.constants[0]
        np.multiply(g, c0, out=g)
        np.multiply(v, mu, out=v)
        np.subtract(v, g, out=v)
        if optimizer.rule == "momentum":
            np.add(p, v, out=p)
        else:
            np.subtract(p, g, out=p)
            np.multiply(v, mu, out=g)
            np.add(p, g, out=p)
    elif optimizer.rule in ("adam", "adamw"):
        m, v = slots
        beta1, beta2, epsilon = optimizer.constants
        term = scratch(p.shape)[0]
        if c3:
            w = p[: parameters.layout.weights_end]
            np.multiply(w, 1.0 - c3, out=w)
        np.multiply(m, beta1, out=m)
        np.multiply(g, 1.0 - beta1, out=term)
        np.add(m, term, out=m)
        np.multiply(v, beta2, out=v)
        np.multiply(g, g, out=g)
        np.multiply(g, 1.0 - beta2, out=g)
        np.add(v, g, out=v)
        np.sqrt(v, out=term)
        np.multiply(term, c2, out=term)
        np.add(term, epsilon, out=term)
        np.divide(m, term, out=term)
        np.multiply(term, c1, out=term)
        np.subtract(p, term, out=p)
    else:
        raise ValueError(f"the numpy backend has no rule {optimizer.rule!r}")
