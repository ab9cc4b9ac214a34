"""Derivatives beyond the mean gradient, on any backend: of inputs, of samples, of second order.

Products are the backend's forward pass and BP2 with σ the identity; what is elementwise are its
`slopes`, `tangent`, `directions` and `row_norms`. The output layer's own second derivative, of C
and of softmax, is NumPy's on every backend: it is (m, n_L), and so stands in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import activations, costs, planning
from ..parameters import Parameters
from .passes import Batch, Passes, quiet

Array = Any
#: ∂/∂w[l] and ∂/∂b[l] of layers 1 … L, on the host.
Gradients = list[tuple[np.ndarray, np.ndarray]]
#: (a, s) of m samples -> L, ∂L/∂a and ∂L/∂s.
Loss = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray, np.ndarray]]

_IDENTITY = activations.get("identity")


class Derivatives:
    """Derivatives of networks of one shape. For one use, and for one thread.

    X and Y are arrays of the host, and so are results.

    Parameters
    ----------
    passes : Passes
        On a fork, which nothing else uses.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes, self._backend = passes, passes.backend
        self._sizes, self._sigmas, self._cost = passes.sizes, passes.activations, passes.cost
        self._depth = len(self._sigmas)
        self._zeros = {n: self._backend.zeros((n,)) for n in self._sizes}

    # -- of inputs ------------------------------------------------------------------

    @quiet
    def input_gradients(self, parameters: Parameters, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """∂C_x/∂x = w^1ᵀ δ^1 of every sample, (m, n_0)."""
        out = np.empty_like(X)
        for rows, batch in self._chunks(parameters, X, Y):
            self._errors(parameters, batch)
            found = self._back(batch.delta[1], parameters.weights[0])
            out[rows] = self._backend.to_numpy(found)
        return out

    @quiet
    def jacobian(
        self, parameters: Parameters, X: np.ndarray, output: int | None = None
    ) -> np.ndarray:
        """∂a^L_j/∂x_k, (m, n_L, n_0); of one output j alone (m, 1, n_0)."""
        seeds = np.eye(self._sizes[-1], dtype=X.dtype)
        if output is not None:
            seeds = seeds[output : output + 1]
        out = np.empty((len(X), len(seeds), self._sizes[0]), X.dtype)
        mode = planning.jacobian_mode(self._sizes, len(seeds))
        count = self._sizes[0] if mode == "forward" else len(seeds)
        for rows, batch in self._chunks(parameters, X, directions=count):
            if mode == "forward":
                found = np.moveaxis(self._directions(parameters, batch, 1)[-1], 1, 2)
                out[rows] = found if output is None else found[:, [output]]
            else:
                out[rows] = self._reverse(parameters, batch, seeds)
        return out

    def _reverse(self, parameters: Parameters, batch: Batch, seeds: np.ndarray) -> np.ndarray:
        """Rows `seeds`, (K, n_L), of ∂a^L back to the inputs: (m, K, n_0)."""
        m, count = batch.rows, len(seeds)
        if self._sigmas[-1].elementwise:
            u = self._backend.empty((m, count, self._sizes[-1]))
            given = self._backend.asarray(seeds[None])
            self._backend.directions(self._slopes(batch, self._depth, 1), given, u)
        else:
            a = self._backend.to_numpy(batch.a[-1])[:, None]
            chosen = (a * seeds).sum(axis=2, keepdims=True)
            u = self._backend.asarray(chosen * (seeds - a))
        for l in range(self._depth, 0, -1):
            u = self._back(u, parameters.weights[l - 1])
            if l > 1:
                self._backend.directions(self._slopes(batch, l - 1, 1), u, u)
        return self._backend.to_numpy(u)

    # -- of samples -----------------------------------------------------------------

    @quiet
    def per_sample(self, parameters: Parameters, X: np.ndarray, Y: np.ndarray) -> Gradients:
        """δ_j a'_k and δ_j of every sample and layer: (m, n_l, n_{l-1}) and (m, n_l)."""
        shapes = parameters.layout.weight_shapes
        out = [
            (np.empty((len(X), *shape), X.dtype), np.empty((len(X), shape[0]), X.dtype))
            for shape in shapes
        ]
        for rows, batch in self._chunks(parameters, X, Y):
            self._errors(parameters, batch)
            for l, (w, b) in enumerate(out, start=1):
                b[rows] = self._backend.to_numpy(batch.delta[l])
                a = self._backend.to_numpy(batch.a[l - 1])
                np.multiply(b[rows][:, :, None], a[:, None], out=w[rows])
        return out

    @quiet
    def norms(
        self, parameters: Parameters, X: np.ndarray, Y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """‖δ^l‖ and ‖a^{l-1}‖ of every sample and layer, (m, L) each."""
        found = np.empty((2, self._depth, len(X)), X.dtype)
        for rows, batch in self._chunks(parameters, X, Y):
            self._errors(parameters, batch)
            norms = self._backend.empty((batch.rows,))
            for which, arrays in enumerate((batch.delta[1:], batch.a[:-1])):
                for l, array in enumerate(arrays):
                    self._backend.row_norms(array, norms)
                    found[which, l, rows] = self._backend.to_numpy(norms)
        return found[0].T, found[1].T

    # -- of second order ------------------------------------------------------------

    def _check_order(self, order: int) -> None:
        for sigma in self._sigmas:
            sigma.check_order(order)

    @quiet
    def hessian_vector_product(
        self, parameters: Parameters, X: np.ndarray, Y: np.ndarray, v: np.ndarray
    ) -> Gradients:
        """H v of the mean cost, by Pearlmutter's R{·}; v as a flat array in the layout's order.

        R{z^l} = w^l R{a'} + v_w a' + v_b;  R{a^l} = σ' ⊙ R{z^l}
        R{δ^l} = σ' ⊙ (wᵀ R{δ} + v_wᵀ δ) + σ'' ⊙ R{z^l} ⊙ wᵀ δ
        R{∂C/∂w} = R{δ} a'ᵀ + δ R{a'}ᵀ,  R{∂C/∂b} = R{δ}
        """
        self._check_order(2)
        total = np.zeros(parameters.layout.length)
        direction = Parameters(parameters.layout, self._backend.asarray(v))
        for _, batch in self._chunks(parameters, X, Y, chunk=planning.CHUNK_ROWS):
            share = batch.rows / len(X)
            for part in self._second_order(parameters, direction, batch):
                total += share * self._backend.to_numpy(part.flat).astype(np.float64)
        weights, biases = parameters.layout.views(total.astype(X.dtype))
        return list(zip(weights, biases, strict=True))

    def _second_order(
        self, parameters: Parameters, v: Parameters, batch: Batch
    ) -> tuple[Parameters, Parameters]:
        """Two parts whose sum is H v of a batch: means of R{δ} a' and R{δ}, and of δ R{a'}."""
        backend, m = self._backend, batch.rows
        slopes: list[Any] = [None]
        dz: list[Array] = [None]
        da: list[Array] = [None]
        for l in range(1, self._depth + 1):
            rz = self._ahead(batch.a[l - 1], v.weights[l - 1], v.biases[l - 1])
            more = None if l == 1 else self._ahead(da[-1], parameters.weights[l - 1])
            ra = backend.empty(rz.shape)
            # Of the last layer nobody asks for R{a}: the sum alone is wanted.
            slopes.append(self._slopes(batch, l, 2) if l < self._depth else (batch.a[l],))
            backend.tangent(slopes[l][0], rz, more, ra)
            dz.append(rz)
            da.append(ra)

        backend.output_error(
            batch.z[-1], batch.a[-1], batch.y, self._sigmas[-1], self._cost, batch.delta[-1]
        )
        z = None if batch.z[-1] is None else backend.to_numpy(batch.z[-1])
        a, y, tangent = map(backend.to_numpy, (batch.a[-1], batch.y, dz[-1]))
        found = costs.output_tangent(z, a, y, self._sigmas[-1], self._cost, tangent)
        d_delta = backend.asarray(found)

        first, second = (self._passes.zeros_like(parameters) for _ in range(2))
        for l in range(self._depth, 0, -1):
            delta, w = batch.delta[l], parameters.weights[l - 1]
            backend.weight_gradient(
                d_delta, batch.a[l - 1], first.weights[l - 1], first.biases[l - 1]
            )
            if l == 1:
                break
            backend.weight_gradient(delta, da[l - 1], second.weights[l - 1])
            error, more = self._back(delta, w), self._back(delta, v.weights[l - 1])
            t, out = self._back(d_delta, w), backend.empty((m, self._sizes[l - 1]))
            slope, bend = slopes[l - 1]
            backend.hadamard(bend, dz[l - 1], dz[l - 1])
            backend.tangent(slope, t, more, out, dz[l - 1], error)
            backend.hadamard(slope, error, batch.delta[l - 1])
            d_delta = out
        return first, second

    @quiet
    def laplacian(self, parameters: Parameters, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """a^L and Σ_k ∂²a^L_j/∂x_k² of every sample, (m, n_L) each."""
        self._check_order(2)
        outputs, sums = (np.empty((len(X), self._sizes[-1]), X.dtype) for _ in range(2))
        for rows, batch in self._chunks(parameters, X, directions=self._sizes[0] + 1):
            sums[rows] = self._directions(parameters, batch, 2)[-1][:, -1]
            outputs[rows] = self._backend.to_numpy(batch.a[-1])
        return outputs, sums

    @quiet
    def laplacian_gradients(
        self, parameters: Parameters, X: np.ndarray, loss: Loss
    ) -> tuple[float, Gradients]:
        """L of a^L and of their Laplacians, and its gradients; (a, s) all rows'.

        Backpropagation through `laplacian`: with u_k = ∂z/∂x_k, and t_k, s̄ and ā for ∂L/∂(∂a/∂x_k),
        ∂L/∂s and ∂L/∂a of a layer,
            ∂L/∂z = σ' ā + σ'' (Σ_k t_k u_k + s̄ Σ_k ∂²z/∂x_k²) + σ''' s̄ Σ_k u_k².
        """
        self._check_order(3)
        if not self._sigmas[-1].elementwise:
            raise ValueError("gradients of a Laplacian need an elementwise output, not softmax")
        backend, layout = self._backend, parameters.layout
        ((_, batch),) = self._chunks(parameters, X, chunk=len(X))
        slopes: list[Any] = []
        before: list[Array] = []
        outputs = backend.to_numpy(batch.a[-1])
        after = self._directions(parameters, batch, 3, slopes, before)
        value, *found = loss(outputs, after[-1][:, -1])
        of_outputs, of_sums = (np.asarray(array, X.dtype) for array in found)
        for array in (of_outputs, of_sums):
            if array.shape != outputs.shape:
                raise ValueError(
                    f"loss must give derivatives of shape {outputs.shape}, got {array.shape}"
                )
        out = np.zeros_like(after[-1])
        out[:, -1] = of_sums
        error, u = backend.asarray(of_outputs), backend.asarray(out)

        first, second = (self._passes.zeros_like(parameters) for _ in range(2))
        for l in range(self._depth, 0, -1):
            backend.directions_error(slopes[l - 1], before[l - 1], u, error)
            w, flat = parameters.weights[l - 1], u.reshape(-1, self._sizes[l])
            backend.weight_gradient(
                error, batch.a[l - 1], first.weights[l - 1], first.biases[l - 1]
            )
            if l == 1:  # whose directions are w itself
                break
            inputs = after[l - 2].reshape(-1, self._sizes[l - 1])
            backend.weight_gradient(flat, inputs, second.weights[l - 1])
            error, u = self._back(error, w), self._back(u, w)
        total = batch.rows * backend.to_numpy(first.flat).astype(np.float64)
        total += batch.rows * (self._sizes[0] + 1) * backend.to_numpy(second.flat)
        weights, biases = layout.views(total.astype(X.dtype))
        weights[0][...] += backend.to_numpy(u).sum(axis=0)[:-1].T
        return value, list(zip(weights, biases, strict=True))

    def _directions(
        self,
        parameters: Parameters,
        batch: Batch,
        order: int,
        slopes: list[Any] | None = None,
        before: list[Array] | None = None,
    ) -> list[Array]:
        """∂a^l/∂x_k of layers 1 … L, (m, K, n_l), the last on the host.

        From order 2 on Σ_k ∂²a^l/∂x_k² stands after them. Lists that are given get `slopes`, and
        the same of z, `before`.
        """
        backend, n_inputs = self._backend, self._sizes[0]
        eye = np.eye(n_inputs + (order > 1), n_inputs, dtype=backend.dtype)
        u: Array = backend.asarray(eye[None])
        found: list[Array] = []
        for l, sigma in enumerate(self._sigmas, start=1):
            u = self._ahead(u, parameters.weights[l - 1])
            if not sigma.elementwise:
                a = backend.to_numpy(batch.a[-1])
                host = np.broadcast_to(backend.to_numpy(u), (len(a), *u.shape[1:]))
                found.append(_softmax_directions(a, host, order > 1))
                break
            found_slopes = self._slopes(batch, l, order)
            keep = before is not None or l == 1
            out = backend.empty((batch.rows, *u.shape[1:])) if keep else u
            backend.directions(found_slopes[:2], u, out)
            if before is not None and slopes is not None:
                before.append(u)
                slopes.append(found_slopes)
            u = out
            found.append(u)
        else:
            found[-1] = backend.to_numpy(found[-1])
        return found

    # -- parts ----------------------------------------------------------------------

    def _chunks(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray | None = None,
        *,
        directions: int = 1,
        chunk: int | None = None,
    ) -> Iterator[tuple[slice, Batch]]:
        """Rows and their forward pass, as many at a time as `directions` of each allow."""
        if chunk is None:
            device = self._backend.name != "numpy"
            itemsize = self._backend.dtype.itemsize
            chunk = planning.rows_at_a_time(self._sizes, directions, itemsize, device)
        batch: Batch | None = None
        for start in range(0, len(X), chunk):
            rows = slice(start, min(start + chunk, len(X)))
            if batch is None or batch.rows != rows.stop - start:
                batch = self._passes.batch(rows.stop - start, errors=Y is not None)
            self._backend.copy(self._backend.asarray(X[rows]), batch.a[0])
            if Y is not None:
                self._backend.copy(self._backend.asarray(Y[rows]), batch.y)
            self._passes.forward(parameters, batch)
            yield rows, batch

    def _errors(self, parameters: Parameters, batch: Batch) -> None:
        """δ of layers L … 1 (BP1, BP2)."""
        a, z, delta = batch.a, batch.z, batch.delta
        backend = self._backend
        backend.output_error(z[-1], a[-1], batch.y, self._sigmas[-1], self._cost, delta[-1])
        for l in range(self._depth - 1, 0, -1):
            backend.hidden_error(
                parameters.weights[l], delta[l + 1], z[l], a[l], self._sigmas[l - 1], delta[l]
            )

    def _slopes(self, batch: Batch, l: int, order: int) -> tuple[Array, ...]:
        """σ', σ'' … up to an order, of layer l."""
        outs = tuple(self._backend.empty(batch.a[l].shape) for _ in range(order))
        self._backend.slopes(batch.z[l], batch.a[l], self._sigmas[l - 1], outs)
        return outs

    def _ahead(self, u: Array, w: Array, b: Array | None = None) -> Array:
        """u wᵀ + b, for u (…, n_{l-1})."""
        n, k = w.shape
        out = self._backend.empty((*u.shape[:-1], n))
        b = self._zeros[n] if b is None else b
        flat = out.reshape(-1, n)
        self._backend.forward(w, b, u.reshape(-1, k), _IDENTITY, None, flat)
        return out

    def _back(self, u: Array, w: Array) -> Array:
        """u w, for u (…, n_l)."""
        n, k = w.shape
        out = self._backend.empty((*u.shape[:-1], k))
        flat = out.reshape(-1, k)
        self._backend.hidden_error(w, u.reshape(-1, n), None, flat, _IDENTITY, flat)
        return out


def _softmax_directions(a: np.ndarray, u: np.ndarray, with_sum: bool) -> np.ndarray:
    """`Backend.directions` of softmax, on the host: u (m, K, n) of z to those of a.

    ∂a_j/∂x_k = a_j t_kj, t_k = u_k - Σ_i a_i u_ki;  the derivative of t_kj along x_k again is
    ∂²z_j/∂x_k² less the mean of that, and of t_k² over outputs with weights a.
    """
    means = np.einsum("xj,xkj->xk", a, u)
    t = u - means[:, :, None]
    out = t * a[:, None]
    if with_sum:
        squares = np.einsum("xkj,xkj->xj", t[:, :-1], t[:, :-1])
        spread = np.einsum("xj,xj->x", a, squares)
        out[:, -1] = a * (t[:, -1] + squares - spread[:, None])
    return np.asarray(out)
