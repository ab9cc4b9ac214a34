"""Derivatives beyond the mean gradient, on any backend: of inputs, of samples, of second order.

Products are the backend's forward pass and BP2 with σ the identity; what is elementwise are its
`slopes`, `tangent`, `directions` and `row_norms`. The output layer's own second derivative, of C
and of softmax, is NumPy's on every backend: it is (m, n_L), and so stands in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np

from .. import activations, costs, planning, threads
from ..activations import Activation
from ..backends.base import Backend
from ..backends.numpy import RecyclingBackend
from ..costs import Cost
from ..parameters import Parameters
from .passes import Passes, quiet

Array = Any
#: ∂/∂w[l] and ∂/∂b[l] of layers 1 … L, on the host.
Gradients = list[tuple[np.ndarray, np.ndarray]]
#: Which rows, and their a and s -> L, ∂L/∂a and ∂L/∂s.
Loss = Callable[[slice, np.ndarray, np.ndarray], tuple[float, np.ndarray, np.ndarray]]

_IDENTITY = activations.get("identity")
_Result = TypeVar("_Result")
#: Bytes of memory that are kept for the next call.
_KEPT = 1 << 25


class Derivatives:
    """Derivatives of networks of one shape. X and Y are arrays of the host, and so are results.

    Rows are taken some at a time; on the CPU every core has some of its own, and how many cores
    there are changes no bit.

    Parameters
    ----------
    backend : Backend
        Work is done on forks of it.
    sizes, activations, cost
        As in `base.Engine`.
    """

    def __init__(
        self,
        backend: Backend,
        sizes: tuple[int, ...],
        activations: tuple[Activation, ...],
        cost: Cost,
    ) -> None:
        self._described = backend, sizes, activations, cost
        self._backend, self._sizes, self._sigmas = backend, sizes, activations
        self._depth = len(activations)
        #: Forks with memory that nobody uses just now.
        self._idle: list[RecyclingBackend] = []

    # -- of inputs ------------------------------------------------------------------

    def input_gradients(self, parameters: Parameters, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """∂C_x/∂x = w^1ᵀ δ^1 of every sample, (m, n_0)."""
        out = np.empty(X.shape, X.dtype)

        def work(rows: slice, piece: _Piece) -> None:
            piece.find_errors()
            found = piece.back(piece.batch.delta[1], parameters.weights[0])
            out[rows] = piece.backend.to_numpy(found)

        self._each(work, parameters, X, Y)
        return out

    def jacobian(
        self, parameters: Parameters, X: np.ndarray, output: int | None = None
    ) -> np.ndarray:
        """∂a^L_j/∂x_k, (m, n_L, n_0); of one output j alone (m, 1, n_0)."""
        seeds = np.eye(self._sizes[-1], dtype=X.dtype)
        if output is not None:
            seeds = seeds[output : output + 1]
        out = np.empty((len(X), len(seeds), self._sizes[0]), X.dtype)
        mode = planning.jacobian_mode(self._sizes, len(seeds))

        def forward(rows: slice, piece: _Piece) -> None:
            found = np.moveaxis(piece.find_directions(1), 0, 2)
            out[rows] = found if output is None else found[:, [output]]

        def reverse(rows: slice, piece: _Piece) -> None:
            out[rows] = np.moveaxis(piece.jacobian_rows(seeds), 0, 1)

        if mode == "forward":
            self._each(forward, parameters, X, directions=self._sizes[0])
        else:
            self._each(reverse, parameters, X, directions=len(seeds))
        return out

    # -- of samples -----------------------------------------------------------------

    def per_sample(self, parameters: Parameters, X: np.ndarray, Y: np.ndarray) -> Gradients:
        """δ_j a'_k and δ_j of every sample and layer: (m, n_l, n_{l-1}) and (m, n_l)."""
        out = [
            (np.empty((len(X), *shape), X.dtype), np.empty((len(X), shape[0]), X.dtype))
            for shape in parameters.layout.weight_shapes
        ]

        def work(rows: slice, piece: _Piece) -> None:
            piece.find_errors()
            for l, (w, b) in enumerate(out, start=1):
                b[rows] = piece.backend.to_numpy(piece.batch.delta[l])
                a = piece.backend.to_numpy(piece.batch.a[l - 1])
                np.multiply(b[rows][:, :, None], a[:, None], out=w[rows])

        self._each(work, parameters, X, Y)
        return out

    def norms(
        self, parameters: Parameters, X: np.ndarray, Y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """‖δ^l‖ and ‖a^{l-1}‖ of every sample and layer, (m, L) each."""
        found = np.empty((2, len(X), self._depth), X.dtype)

        def work(rows: slice, piece: _Piece) -> None:
            piece.find_errors()
            norms = piece.backend.empty((piece.batch.rows,))
            for which, arrays in enumerate((piece.batch.delta[1:], piece.batch.a[:-1])):
                for l, array in enumerate(arrays):
                    piece.backend.row_norms(array, norms)
                    found[which, rows, l] = piece.backend.to_numpy(norms)

        self._each(work, parameters, X, Y)
        return found[0], found[1]

    # -- of second order ------------------------------------------------------------

    def hessian_vector_product(
        self, parameters: Parameters, X: np.ndarray, Y: np.ndarray, v: np.ndarray
    ) -> Gradients:
        """H v of the mean cost; v is a flat array of the layout.

        Raises
        ------
        ValueError
            If a σ has no second derivative or C no curvature.
        """
        self._check_order(2)
        direction = Parameters(parameters.layout, self._backend.asarray(v))

        def work(rows: slice, piece: _Piece) -> np.ndarray:
            found = piece.hessian_vector_product(direction)
            found *= (rows.stop - rows.start) / len(X)
            return found

        # 4 passes' memory a row: z, a, and how they change.
        parts = self._each(work, parameters, X, Y, directions=4)
        return self._gradients(parameters, parts, X.dtype)

    def laplacian(self, parameters: Parameters, X: np.ndarray) -> np.ndarray:
        """Σ_k ∂²a^L_j/∂x_k² of every sample, (m, n_L)."""
        self._check_order(2)
        out = np.empty((len(X), self._sizes[-1]), X.dtype)

        def work(rows: slice, piece: _Piece) -> None:
            out[rows] = piece.find_directions(2)[-1]

        self._each(work, parameters, X, directions=self._sizes[0] + 1)
        return out

    def laplacian_gradients(
        self, parameters: Parameters, X: np.ndarray, loss: Loss
    ) -> tuple[float, Gradients]:
        """The sum of what `loss` makes of rows' a^L and their Laplacians, and its gradients."""
        self._check_order(3)
        if not self._sigmas[-1].elementwise:
            raise ValueError("gradients of a Laplacian need an elementwise output, not softmax")

        def work(rows: slice, piece: _Piece) -> tuple[float, np.ndarray]:
            sums = piece.find_directions(3)[-1]
            value, *found = loss(rows, piece.backend.to_numpy(piece.batch.a[-1]), sums)
            of_outputs, of_sums = (np.asarray(array, X.dtype) for array in found)
            for array in (of_outputs, of_sums):
                if array.shape != sums.shape:
                    raise ValueError(
                        f"loss must give derivatives of shape {sums.shape}, got {array.shape}"
                    )
            return float(value), piece.laplacian_gradients(of_outputs, of_sums)

        parts = self._each(work, parameters, X, directions=self._sizes[0] + 1)
        gradients = self._gradients(parameters, [part[1] for part in parts], X.dtype)
        return sum(part[0] for part in parts), gradients

    def _check_order(self, order: int) -> None:
        for sigma in self._sigmas:
            sigma.check_order(order)

    @staticmethod
    def _gradients(parameters: Parameters, parts: list[np.ndarray], dtype: Any) -> Gradients:
        """The sum of flat arrays."""
        total = parts[0]
        for part in parts[1:]:
            total += part
        return list(zip(*parameters.layout.views(total.astype(dtype)), strict=True))

    # -- some rows at a time ----------------------------------------------------------

    def _each(
        self,
        work: Callable[[slice, _Piece], _Result],
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray | None = None,
        *,
        directions: int = 1,
    ) -> list[_Result]:
        """What `work` makes of each piece, in order; `directions` of a sample lie in memory."""
        on_device = self._backend.name != "numpy"
        itemsize = self._backend.dtype.itemsize
        count = planning.rows_at_a_time(len(X), self._sizes, directions, itemsize, on_device)

        def of(start: int) -> _Result:
            rows = slice(start, min(start + count, len(X)))
            fork = self._fork()
            described = fork, *self._described[1:]
            y = None if Y is None else Y[rows]
            found = work(rows, _Piece(described, parameters, X[rows], y))
            self._give_back(fork)
            return found

        return self._on_all_cores(of, range(0, len(X), count))

    def _fork(self) -> Backend:
        try:
            return self._idle.pop()
        except IndexError:
            if self._backend.name != "numpy":
                return self._backend.fork()
            return RecyclingBackend(self._backend.dtype, self._backend.precision)

    def _give_back(self, fork: Backend) -> None:
        if isinstance(fork, RecyclingBackend) and fork.nbytes <= _KEPT // 2:
            fork.recycle()
            if sum(idle.nbytes for idle in self._idle) + fork.nbytes <= _KEPT:
                self._idle.append(fork)

    def _on_all_cores(self, work: Callable[[int], _Result], numbers: range) -> list[_Result]:
        if self._backend.name != "numpy":
            return [quiet(work)(number) for number in numbers]
        with self._one_blas_thread():
            return threads.shared_out(quiet(work), numbers)

    def _one_blas_thread(self) -> AbstractContextManager[Any]:
        """On the CPU, where BLAS's other threads would wait for ours."""
        return threads.one_blas_thread if self._backend.name == "numpy" else nullcontext()


class _Piece:
    """Some rows' forward pass, and what is made of it, by a backend of its own. For one thread."""

    def __init__(
        self,
        described: tuple[Backend, tuple[int, ...], tuple[Activation, ...], Cost],
        parameters: Parameters,
        x: np.ndarray,
        y: np.ndarray | None,
    ) -> None:
        self.backend, self.sizes, self.sigmas, self.cost = described
        self.parameters = parameters
        self.depth = len(self.sigmas)
        passes = Passes(self.backend, self.sizes, self.sigmas, self.cost)
        self.batch = batch = passes.batch(len(x), errors=y is not None)
        batch.a[0] = self.backend.asarray(x)
        if y is not None:
            batch.y = self.backend.asarray(y)
        passes.forward(parameters, batch)
        #: Of layers 1 … L, where the way back needs them: σ', σ'' …, and directions of z and a.
        self._kept: list[tuple[tuple[Array, ...], Array, Array]] = []

    # -- products ---------------------------------------------------------------------

    def ahead(self, u: Array, w: Array) -> Array:
        """u wᵀ, for u (…, n_{l-1})."""
        n, k = w.shape
        out = self.backend.empty((*u.shape[:-1], n))
        self.backend.multiply(u.reshape(-1, k), w, out.reshape(-1, n))
        return out

    def back(self, u: Array, w: Array) -> Array:
        """u w, for u (…, n_l)."""
        n, k = w.shape
        out = self.backend.empty((*u.shape[:-1], k))
        flat = out.reshape(-1, k)
        self.backend.hidden_error(w, u.reshape(-1, n), None, flat, _IDENTITY, flat)
        return out

    def slopes(self, l: int, order: int) -> tuple[Array, ...]:
        """σ', σ'' … up to an order, of layer l."""
        batch = self.batch
        outs = tuple(self.backend.empty(batch.a[l].shape) for _ in range(order))
        self.backend.slopes(batch.z[l], batch.a[l], self.sigmas[l - 1], outs)
        return outs

    # -- first derivatives ------------------------------------------------------------

    def find_errors(self) -> None:
        """δ of layers L … 1 (BP1, BP2)."""
        a, z, delta = self.batch.a, self.batch.z, self.batch.delta
        self._find_output_error()
        for l in range(self.depth - 1, 0, -1):
            w = self.parameters.weights[l]
            self.backend.hidden_error(w, delta[l + 1], z[l], a[l], self.sigmas[l - 1], delta[l])

    def _find_output_error(self) -> None:
        a, z, delta = self.batch.a, self.batch.z, self.batch.delta
        sigma = self.sigmas[-1]
        self.backend.output_error(z[-1], a[-1], self.batch.y, sigma, self.cost, delta[-1])

    def jacobian_rows(self, seeds: np.ndarray) -> np.ndarray:
        """The rows of ∂a^L/∂x that `seeds` (K, n_L) choose, by going back: (K, m, n_0)."""
        m, (count, n) = self.batch.rows, seeds.shape
        if self.sigmas[-1].elementwise:
            u = self.backend.empty((count, m, n))
            slopes = self.slopes(self.depth, 1)
            self.backend.directions(slopes, self.backend.asarray(seeds[:, None]), u)
        else:
            a, seeds = self.backend.to_numpy(self.batch.a[-1]), seeds[:, None]
            u = self.backend.asarray((a * seeds).sum(axis=2, keepdims=True) * (seeds - a))
        for l in range(self.depth, 0, -1):
            u = self.back(u, self.parameters.weights[l - 1])
            if l > 1:
                self.backend.directions(self.slopes(l - 1, 1), u, u)
        return self.backend.to_numpy(u)

    def find_directions(self, order: int) -> np.ndarray:
        """∂a^L/∂x_k, (n_0, m, n_L), and from order 2 on Σ_k ∂²a^L/∂x_k² after them, on the host.

        u_k = ∂z/∂x_k = w ∂a'/∂x_k;  ∂a/∂x_k = σ' u_k;  Σ_k ∂²a/∂x_k² = σ' w Σ_k ∂²a'/∂x_k² +
        σ'' Σ_k u_k². With order 3 all layers' are kept.
        """
        backend, n_inputs = self.backend, self.sizes[0]
        seeds = np.eye(n_inputs + (order > 1), n_inputs, dtype=backend.dtype)
        u: Array = backend.asarray(seeds[:, None])  # every sample's: so is the first layer's
        for l, sigma in enumerate(self.sigmas, start=1):
            u = self.ahead(u, self.parameters.weights[l - 1])
            if not sigma.elementwise:
                a, host = backend.to_numpy(self.batch.a[-1]), backend.to_numpy(u)
                return _softmax_directions(a, host, order > 1)
            slopes = self.slopes(l, order)
            out = u
            if order > 2 or l == 1:
                out = backend.empty((len(u), self.batch.rows, u.shape[2]))
            backend.directions(slopes[:2], u, out)
            if order > 2:
                self._kept.append((slopes, u, out))
            u = out
        return backend.to_numpy(u)

    # -- second derivatives -----------------------------------------------------------

    def hessian_vector_product(self, v: Parameters) -> np.ndarray:
        """H v of these rows' mean cost, flat, in float64 on the host (Pearlmutter 1994).

        R{z^l} = w^l R{a'} + v_w a' + v_b;  R{a^l} = σ' ⊙ R{z^l}
        R{δ^l} = σ' ⊙ (wᵀ R{δ} + v_wᵀ δ) + σ'' ⊙ R{z^l} ⊙ wᵀ δ
        R{∂C/∂w} = R{δ} a'ᵀ + δ R{a'}ᵀ,  R{∂C/∂b} = R{δ}
        """
        backend, batch = self.backend, self.batch
        slopes: list[Any] = [None]
        dz: list[Array] = [None]
        da: list[Array] = [None]
        for l in range(1, self.depth + 1):
            changed = backend.empty(batch.a[l].shape)
            into = v.weights[l - 1], v.biases[l - 1]
            backend.forward(*into, batch.a[l - 1], _IDENTITY, None, changed)
            more = None if l == 1 else self.ahead(da[-1], self.parameters.weights[l - 1])
            # Of the last layer nobody asks for R{a}: the sum alone is wanted.
            slopes.append(self.slopes(l, 2) if l < self.depth else (batch.a[l],))
            da.append(backend.empty(changed.shape))
            backend.tangent(slopes[l][0], changed, more, da[l])
            dz.append(changed)

        self._find_output_error()
        z = None if batch.z[-1] is None else backend.to_numpy(batch.z[-1])
        a, y, tangent = map(backend.to_numpy, (batch.a[-1], batch.y, dz[-1]))
        d_delta = backend.asarray(
            costs.output_tangent(z, a, y, self.sigmas[-1], self.cost, tangent)
        )
        first, second = self._zero_gradients(), self._zero_gradients()
        for l in range(self.depth, 0, -1):
            delta, w = batch.delta[l], self.parameters.weights[l - 1]
            inputs, biases = batch.a[l - 1], first.biases[l - 1]
            backend.weight_gradient(d_delta, inputs, first.weights[l - 1], biases)
            if l == 1:
                break
            backend.weight_gradient(delta, da[l - 1], second.weights[l - 1])
            error, more = self.back(delta, w), self.back(delta, v.weights[l - 1])
            changed, (slope, bend) = self.back(d_delta, w), slopes[l - 1]
            d_delta = backend.empty(changed.shape)
            backend.hadamard(bend, dz[l - 1], dz[l - 1])
            backend.tangent(slope, changed, more, d_delta, dz[l - 1], error)
            backend.hadamard(slope, error, batch.delta[l - 1])
        total: np.ndarray = self._on_host(first) + self._on_host(second)
        return total

    def laplacian_gradients(self, of_outputs: np.ndarray, of_sums: np.ndarray) -> np.ndarray:
        """∂L/∂w and ∂L/∂b, flat, of an L with these derivatives, after `find_directions(3)`.

        Back through it: with u_k = ∂z/∂x_k, and t_k, s̄ and ā for ∂L/∂(∂a/∂x_k), ∂L/∂s and ∂L/∂a,
        ∂L/∂z = σ' ā + σ'' (Σ_k t_k u_k + s̄ Σ_k ∂²z/∂x_k²) + σ''' s̄ Σ_k u_k².
        """
        backend, m, count = self.backend, self.batch.rows, self.sizes[0] + 1
        seeds = np.zeros((count, m, self.sizes[-1]), backend.dtype)
        seeds[-1] = of_sums
        error, u = backend.asarray(of_outputs.copy()), backend.asarray(seeds)
        first, second = self._zero_gradients(), self._zero_gradients()
        for l in range(self.depth, 0, -1):
            slopes, before, _ = self._kept[l - 1]
            backend.directions_error(slopes, before, u, error)
            inputs, biases = self.batch.a[l - 1], first.biases[l - 1]
            backend.weight_gradient(error, inputs, first.weights[l - 1], biases)
            if l == 1:
                break
            after = self._kept[l - 2][2].reshape(-1, self.sizes[l - 1])
            backend.weight_gradient(u.reshape(-1, self.sizes[l]), after, second.weights[l - 1])
            w = self.parameters.weights[l - 1]
            error, u = self.back(error, w), self.back(u, w)
        total: np.ndarray = m * self._on_host(first) + m * count * self._on_host(second)
        weights = self.parameters.layout.views(total)[0]
        weights[0][...] += backend.to_numpy(u).sum(axis=1)[:-1].T  # its directions are w^1 itself
        return total

    def _zero_gradients(self) -> Parameters:
        layout = self.parameters.layout
        return Parameters(layout, self.backend.zeros((layout.length,)))

    def _on_host(self, gradients: Parameters) -> np.ndarray:
        found: np.ndarray = self.backend.to_numpy(gradients.flat).astype(np.float64)
        return found


def _softmax_directions(a: np.ndarray, u: np.ndarray, with_sum: bool) -> np.ndarray:
    """`Backend.directions` of softmax, on the host: of z, u (K, m or 1, n), to those of a.

    ∂a_j/∂x_k = a_j t_kj, t_k = u_k - Σ_i a_i u_ki;  the derivative of t_kj along x_k again is
    ∂²z_j/∂x_k² less the mean of that, and of t_k², over outputs with weights a.
    """
    t = u - (a * u).sum(axis=2, keepdims=True)
    out = t * a
    if with_sum:
        squares = (t[:-1] ** 2).sum(axis=0)
        out[-1] = a * (t[-1] + squares - (a * squares).sum(axis=1, keepdims=True))
    return np.asarray(out)
