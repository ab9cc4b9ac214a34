"""Reading and gradients in the CPU's compiled library."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from operator import is_
from typing import Any

import numpy as np

from .. import cpu, planning, threads
from ..arrays import SparseMatrix
from ..parameters import Parameters
from .passes import Reader

Array = np.ndarray
#: (rows, n_0) on the host: of the dtype, or sparse.
Rows = Any
_ALL = slice(None)


class CompiledPasses(Reader):
    """`Reader` in the library, on all cores. Any number of threads may use one.

    Rows are summed in the order of the engine that trains, but for a row that is read alone, and up
    to 16 whose gradients are made: nothing is packed for so few, their sums over a layer's inputs
    are made in lanes, and the last bits are others.

    Parameters
    ----------
    backend : Backend
        NumPy's: who converts arrays.
    sizes, activations, cost
        As in `base.Engine`; σ and C are ours.
    inputs_first : bool
        Whether w^l is (n_{l-1}, n_l), as scikit-learn has it, and its gradient.
    """

    uses_blas = False

    def __init__(self, *arguments: Any, inputs_first: bool = False) -> None:
        super().__init__(*arguments)
        self.inputs_first, self.dtype = inputs_first, self.backend.dtype
        self._library = cpu.library()
        self._dense = cpu.describe(self.sizes, self.activations, self.cost, self.dtype)
        self._sparse = cpu.stored_as(self._dense, 0)
        self._own = threading.local()
        self.description = f"compiled for {self._library.description}"

    @cached_property
    def transposed(self) -> CompiledPasses:
        """The same, of w^l as (n_{l-1}, n_l)."""
        described = self.backend, self.sizes, self.activations, self.cost
        return CompiledPasses(*described, inputs_first=True)

    def reads(self, arrays: Sequence[Any], X: Any) -> bool:
        """Whether w^1 … w^L, b^1 … b^L can be read as they are, and X without losing digits."""
        shapes = [*pairwise(self.sizes), *((n,) for n in self.sizes[1:])]
        if not self.inputs_first:
            shapes[: len(self.sizes) - 1] = [(n, k) for k, n in pairwise(self.sizes)]
        return len(arrays) == len(shapes) and all(
            type(array) is np.ndarray
            and array.dtype == self.dtype
            and array.shape == shape
            and array.flags.c_contiguous
            for array, shape in zip(arrays, shapes, strict=True)
        ) and np.result_type(X.dtype, self.dtype) == self.dtype  # fmt: skip

    def addresses_of(self, arrays: Sequence[Array]) -> Any:
        """`cpu.addresses` of w^1 … w^L, b^1 … b^L; kept, for the thread's next call."""
        found = self.known_addresses(arrays)
        if found is None:
            found = self._own.addresses = cpu.addresses_of(arrays)
        return found

    def known_addresses(self, arrays: Sequence[Array]) -> Any:
        """`addresses_of`, if this thread has asked for the same arrays last; else None."""
        found: Any = self._own.__dict__.get("addresses")
        if found is None or len(found.arrays) != len(arrays):
            return None
        return found if all(map(is_, found.arrays, arrays)) else None

    # -- reading ------------------------------------------------------------------------------

    def outputs(
        self,
        members: Sequence[Parameters],
        X: Array,
        Y: Array | None,
        chunk: int | None = None,
        weights: Array | None = None,
    ) -> Iterator[tuple[int, slice, float, Array]]:
        chunk = chunk or planning.CHUNK_ROWS
        for start in range(0, len(X), chunk):  # between two calls Ctrl-C is heard
            rows = slice(start, min(start + chunk, len(X)))
            x = self._readable(X, rows)
            y = None if Y is None else self.backend.asarray(Y[rows])
            for i, parameters in enumerate(members):
                of_rows = None if weights is None else weights[rows]
                cost, a = self._read(cpu.addresses(parameters), x, y, of_rows)
                yield i, rows, cost, a

    def _readable(self, X: Rows, rows: slice = _ALL) -> Rows:
        """Some rows as the library reads them: of a sparse matrix what it stores."""
        if isinstance(X, SparseMatrix):
            return cpu.SparseRows(X.csr if rows is _ALL else X.csr[rows], self.dtype)
        return X if rows is _ALL else self.backend.asarray(X[rows])

    def predict(self, parameters: Parameters, X: Rows) -> Array:
        return self.predict_by(cpu.addresses(parameters), self._readable(X))

    def predict_by(self, addresses: Any, X: Rows) -> Array:
        """`predict` by the parameters that lie at `cpu.addresses`."""
        if X.shape[0] == 1 and type(X) is np.ndarray:
            return self._of_one_row(addresses, X)
        return self._read(addresses, X, None)[1]

    def _of_one_row(self, addresses: Any, X: Array) -> Array:
        own = self._own
        if not hasattr(own, "reads"):
            own.x = np.empty((1, self.sizes[0]), self.dtype)
            own.a = np.empty((1, self.sizes[-1]), self.dtype)
            own.reads = cpu.AbiPass(
                ctypes.pointer(self._dense), cpu.address(own.x), None, self.sizes[0], None,
                self.inputs_first, cpu.READ, 1, 1, 1, True, 0, cpu.address(own.a),
            )  # fmt: skip
        own.x[...] = X
        own.reads.parameters = ctypes.addressof(addresses)
        self._library.run(own.reads)
        found: Array = own.a.copy()
        return found

    def _read(
        self, addresses: Any, X: Rows, Y: Array | None, weights: Array | None = None
    ) -> tuple[float, Array]:
        """(C, a^L) of some rows; C is 0.0 without Y."""
        rows = X.shape[0]
        work = planning.reading_work(self.sizes, rows, threads.cores)
        a = np.empty((rows, self.sizes[-1]), self.dtype)
        costs = np.zeros(-(-rows // work.block))
        reading = self._pass(cpu.READ, addresses, X, Y, work)
        reading.outputs = cpu.address(a)
        reading.costs = None if Y is None else cpu.address(costs)
        reading.weights = None if weights is None else cpu.address(weights)
        self._library.run(reading)
        return float(costs.sum()) / rows, a

    def _pass(
        self, stage: int, addresses: Any, X: Rows, Y: Array | None, work: planning.CpuWork
    ) -> cpu.AbiPass:
        network = self._dense if type(X) is np.ndarray else self._sparse
        return cpu.AbiPass(
            ctypes.pointer(network), cpu.address(X), None if Y is None else cpu.address(Y),
            self.sizes[0], ctypes.addressof(addresses), self.inputs_first, stage, X.shape[0],
            work.threads, work.block, work.in_place,
        )  # fmt: skip

    # -- gradients ----------------------------------------------------------------------------

    def gradients(
        self, parameters: Parameters, X: Array, Y: Array, weights: Array | None = None
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        layout = parameters.layout
        flat, X = np.empty(layout.length, self.dtype), self._readable(X)
        where = cpu.addresses_in(layout, flat)
        self.gradients_by(cpu.addresses(parameters), X, Y, where, float(len(X)), weights)
        return layout.views(flat)

    def gradients_by(
        self,
        addresses: Any,
        X: Rows,
        Y: Array,
        gradients: Any,
        total: float,
        weights: Array | None = None,
    ) -> float:
        """Σ s_x C_x; its gradients, over `total`, where `cpu.addresses` says.

        Parameters
        ----------
        addresses, gradients
            Of parameters and gradients.
        total : float
            What gradients are divided by: the sum of the weights, for means.
        weights : (n,) array, optional
            s, by which rows count.
        """
        cost = ctypes.c_double()
        work = planning.gradient_work(self.sizes, X.shape[0], threads.cores)
        run = self._pass(cpu.GRADIENTS, addresses, X, Y, work)
        run.costs, run.total = ctypes.addressof(cost), total
        run.weights = None if weights is None else cpu.address(weights)
        run.gradients = ctypes.addressof(gradients)
        self._library.run(run)
        return cost.value
