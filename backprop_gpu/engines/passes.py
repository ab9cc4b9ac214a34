"""Forward and backward passes over batches, one backend call per equation: any shape or option."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import costs, planning
from ..activations import Activation
from ..arrays import SparseMatrix
from ..backends.base import Backend
from ..costs import Cost
from ..parameters import Parameters
from ..planning import Plan, Product

if TYPE_CHECKING:
    from ..backends.cuda import CudaBackend

Array = Any


class Batch:
    """Activations and, for training, errors of m rows. Index l is layer l, 0 the input.

    `products` is how those of a step are formed, by equation, where that is planned.
    """

    def __init__(
        self,
        backend: Backend,
        sizes: tuple[int, ...],
        keeps_z: tuple[bool, ...],
        rows: int,
        errors: bool = True,
        products: Mapping[str, Product] = MappingProxyType({}),
        weighted: bool = False,
        drops: bool = False,
    ) -> None:
        self.rows, self.products, self.drops = rows, products, drops
        self.weights = backend.empty((rows,)) if weighted else None
        self.a = [backend.empty((rows, n)) for n in sizes]
        self.z = [
            backend.empty((rows, n)) if keep else None
            for n, keep in zip(sizes, keeps_z, strict=True)
        ]
        self.y = backend.empty((rows, sizes[-1]))
        self.delta = [None, *(backend.empty((rows, n)) for n in sizes[1:])] if errors else []
        #: Bits of ReLU's layers, where forward leaves them for BP2.
        self.mask: list[Array | None] = [None] * len(sizes)
        if any(product.kernel == "cublas" for product in products.values()):
            device = cast("CudaBackend", backend)
            self.a[:-1] = map(device.with_rounded, self.a[:-1])
            self.delta[1:] = map(device.with_rounded, self.delta[1:])
            for l, n in enumerate(sizes[1:], start=1):
                if products[f"forward layer {l}"].epilogue == "RELU_AUX_BIAS":
                    self.mask[l] = device.empty_mask(rows, n)
        #: What dropout has left of a.
        self.kept: dict[int, Array] = {}
        for l in range(1, len(sizes) - 1) if drops else ():
            self.kept[l] = backend.empty((rows, sizes[l]))
            if getattr(self.a[l], "rounded", None) is not None:
                self.kept[l] = cast("CudaBackend", backend).with_rounded(self.kept[l])

    def inputs(self, l: int) -> Array:
        """What the products of the layer behind read of layer l."""
        return self.kept.get(l, self.a[l])

    def twin(self, backend: Backend) -> Batch:
        """The same, but for the rows: to be filled while this one's are in use."""
        twin = copy.copy(self)
        twin.y, first = backend.empty(self.y.shape), backend.empty(self.a[0].shape)
        twin.weights = None if self.weights is None else backend.empty((self.rows,))
        if getattr(self.a[0], "rounded", None) is not None:
            first = cast("CudaBackend", backend).with_rounded(first)
        twin.a = [first, *self.a[1:]]
        return twin


#: Overflow has its right answer in σ, and a diverging cost is reported by `fit`.
quiet = np.errstate(all="ignore")


def keeps_z(activations: tuple[Activation, ...], cost: Cost) -> tuple[bool, ...]:
    """Whether z of layers 0 … L is needed after a: σ' takes a where it can.

    The output layer's z serves the cost of a collapsing pair.
    """
    output = activations[-1]
    return (
        False,
        *(activation.derivative_from == "z" for activation in activations[:-1]),
        output.derivative_from == "z" or costs.collapses(output, cost),
    )


class Reader:
    """What reads networks of one shape: outputs, C and its gradients over arrays of the host."""

    #: Whether it may wake BLAS's threads.
    uses_blas = True

    def __init__(
        self,
        backend: Backend,
        sizes: tuple[int, ...],
        activations: tuple[Activation, ...],
        cost: Cost,
    ) -> None:
        self.backend, self.sizes, self.activations, self.cost = backend, sizes, activations, cost

    def outputs(
        self,
        members: Sequence[Parameters],
        X: Array,
        Y: Array | None,
        chunk: int | None = None,
        weights: np.ndarray | None = None,
    ) -> Iterator[tuple[int, slice, float, np.ndarray]]:
        """a^L of every row for each of several networks, `chunk` rows at a time.

        Parameters
        ----------
        X, Y : (n, n_0), (n, n_L) arrays, on the host or the backend's
            X may be a `SparseMatrix`; Y as `Cost.prepare` makes it.
        weights : (n,) array of the dtype, optional
            By which C_x of the rows count; their mean over all rows is 1.

        Yields
        ------
        (i, rows, C, a)
            Member i's a^L of some rows, (rows, n_L) on the host, and the mean cost over them
            (0.0 without Y). Every member's rows come in order.
        """
        raise NotImplementedError

    def gradients(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """∂C/∂w[l] and ∂C/∂b[l] of the mean cost over all rows, on the host, as in `outputs`."""
        raise NotImplementedError

    def predict(self, parameters: Parameters, X: np.ndarray) -> np.ndarray:
        """a^L of every row of a host array, (n, n_L)."""
        return self._outputs(parameters, X, None)[1]

    def evaluate(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """(C, a^L) of the rows of host arrays, as in `outputs`."""
        return self._outputs(parameters, X, Y, weights)

    def _outputs(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray | None,
        weights: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        total = 0.0
        out = np.empty((len(X), self.sizes[-1]), self.backend.dtype)
        for _, rows, cost, a in self.outputs([parameters], X, Y, weights=weights):
            total += len(a) * cost
            out[rows] = a
        return total / len(X), out


class Passes(Reader):
    """Forward and BP1–BP4 for networks of one shape. For one use, and for one thread.

    Parameters
    ----------
    backend : Backend
        A fork, which nothing else uses.
    sizes, activations, cost
        As in `base.Engine`.
    plan : Plan, optional
        Says how the products of batches are formed; without one the backend chooses.
    """

    def __init__(self, *described: Any, plan: Plan | None = None) -> None:
        super().__init__(*described)
        self._plan = plan
        self.output: Activation = self.activations[-1]
        self._keeps_z = keeps_z(self.activations, self.cost)

    def batch(
        self, rows: int, errors: bool = True, weighted: bool = False, drops: bool = False
    ) -> Batch:
        """Buffers for `rows` rows, perhaps with weights, or with room for what dropout keeps."""
        products = {} if self._plan is None else self._plan.products_of(rows)
        described = self.backend, self.sizes, self._keeps_z, rows
        return Batch(*described, errors, products, weighted, drops)

    def forward(
        self, parameters: Parameters, batch: Batch, epoch: Any = None, first_row: int = 0
    ) -> None:
        """z and a of layers 1 … L, from ``batch.a[0]``.

        Where the batch drops out activations: of this step of an epoch, the batch's rows being
        those of the mini-batch from `first_row` on.
        """
        for l in range(1, len(self.sizes)):
            self.backend.forward(
                parameters.weights[l - 1],
                parameters.biases[l - 1],
                batch.inputs(l - 1),
                self.activations[l - 1],
                batch.z[l],
                batch.a[l],
                product=batch.products.get(f"forward layer {l}"),
                mask=batch.mask[l],
            )
            if batch.drops and l < len(self.sizes) - 1:
                self.backend.drop_out(batch.a[l], batch.kept[l], l, epoch, first_row)

    def backward(
        self,
        parameters: Parameters,
        gradients: Parameters,
        batch: Batch,
        epoch: Any = None,
        first_row: int = 0,
    ) -> None:
        """δ of layers L … 1 (BP1, BP2) and the mean gradients (BP3, BP4), after `forward`."""
        a, z, delta = batch.a, batch.z, batch.delta
        self.backend.output_error(
            z[-1], a[-1], batch.y, self.output, self.cost, delta[-1], batch.weights
        )
        for l in range(len(self.activations), 0, -1):
            self.backend.weight_gradient(
                delta[l],
                batch.inputs(l - 1),
                gradients.weights[l - 1],
                gradients.biases[l - 1] if batch.mask[l] is None else None,
                product=batch.products.get(f"BP4 layer {l}"),
            )
            if l > 1:
                self.backend.hidden_error(
                    parameters.weights[l - 1],
                    delta[l],
                    z[l - 1],
                    a[l - 1],
                    self.activations[l - 2],
                    delta[l - 1],
                    product=batch.products.get(f"BP2 layer {l - 1}"),
                    mask=batch.mask[l - 1],
                    biases=None if batch.mask[l - 1] is None else gradients.biases[l - 2],
                )
                if batch.drops:
                    self.backend.drop_out(delta[l - 1], delta[l - 1], l - 1, epoch, first_row)

    # -- whole arrays of the host -------------------------------------------------

    def outputs(
        self,
        members: Sequence[Parameters],
        X: Array,
        Y: Array | None,
        chunk: int | None = None,
        weights: np.ndarray | None = None,
    ) -> Iterator[tuple[int, slice, float, np.ndarray]]:
        chunk = chunk or planning.CHUNK_ROWS
        if isinstance(X, SparseMatrix):
            chunk = planning.dense_rows_at_once(X.shape[1] * X.dtype.itemsize)
        batch: Batch | None = None
        for start in range(0, len(X), chunk):
            rows = slice(start, min(start + chunk, len(X)))
            if batch is None or batch.rows != rows.stop - start:
                size = rows.stop - start
                batch = self.batch(size, errors=False)
            self.backend.copy(self.backend.asarray(X[rows]), batch.a[0])
            if Y is not None:
                self.backend.copy(self.backend.asarray(Y[rows]), batch.y)
            of_rows = None if weights is None else self.backend.asarray(weights[rows])
            for i, parameters in enumerate(members):
                with np.errstate(all="ignore"):
                    self.forward(parameters, batch)
                    a, z, y = batch.a[-1], batch.z[-1], batch.y
                    cost = 0.0
                    if Y is not None:
                        cost = self.backend.cost(z, a, y, self.output, self.cost, of_rows)
                yield i, rows, cost, self.backend.to_numpy(a)

    @quiet
    def gradients(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        gradients = self.zeros_like(parameters)
        batch = self.batch(len(X))
        batch.weights = None if weights is None else self.backend.asarray(weights)
        self.backend.copy(self.backend.asarray(X), batch.a[0])
        self.backend.copy(self.backend.asarray(Y), batch.y)
        self.forward(parameters, batch)
        self.backward(parameters, gradients, batch)
        return gradients.layout.views(self.backend.to_numpy(gradients.flat))

    @quiet
    def predict_into(self, parameters: Parameters, X: Array, out: Array) -> None:
        """a^L of every row, where X, (n, n_0), and `out`, (n, n_L), are the backend's."""
        batch: Batch | None = None
        for start in range(0, len(X), planning.CHUNK_ROWS):
            rows = slice(start, min(start + planning.CHUNK_ROWS, len(X)))
            if batch is None or batch.rows != rows.stop - start:
                batch = self.batch(rows.stop - start, errors=False)
            self.backend.copy(X[rows], batch.a[0])
            self.forward(parameters, batch)
            self.backend.copy(batch.a[-1], out[rows])

    @quiet
    def layers(self, parameters: Parameters, X: np.ndarray) -> list[np.ndarray]:
        """a^1 … a^L of every row of a host array, each (n, n_l)."""
        batch = self.batch(len(X), errors=False)
        self.backend.copy(self.backend.asarray(X), batch.a[0])
        self.forward(parameters, batch)
        return [self.backend.to_numpy(a) for a in batch.a[1:]]

    def zeros_like(self, parameters: Parameters) -> Parameters:
        """Zeros in the same layout."""
        return Parameters(parameters.layout, self.backend.zeros((parameters.layout.length,)))
