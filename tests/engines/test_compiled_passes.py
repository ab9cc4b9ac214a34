"""Reading and gradients in the CPU's library, against NumPy's equations in float64."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from backprop_gpu import Network, cpu
from backprop_gpu.engines.compiled_passes import CompiledPasses
from backprop_gpu.engines.passes import Passes
from backprop_gpu.model import Model
from backprop_gpu.parameters import Parameters

SIZES = (37, 20, 33, 5)
#: (σ of the hidden layers, of the last, C)
FORMS = (
    ("sigmoid", "sigmoid", "quadratic"),
    ("relu", "softmax", "categorical_cross_entropy"),
    ("gelu", "identity", "quadratic"),
    ("tanh", "sigmoid", "binary_cross_entropy"),
    ("silu", "exponential", "poisson"),
)
ROWS = (1, 2, 7, 64, 131)


class Case:
    """A model, its parameters and rows, in one dtype; and what NumPy makes of it in float64."""

    def __init__(self, form: tuple[str, str, str], dtype: str, rows: int, seed: int = 0) -> None:
        hidden, last, cost = form
        rng = np.random.default_rng(seed)
        sigmas = [hidden] * (len(SIZES) - 2) + [last]
        self.model = Model(SIZES, activation=sigmas, cost=cost, dtype=dtype, backend="numpy")
        exact = Model(SIZES, activation=sigmas, cost=cost, dtype="float64", backend="numpy")
        layout = self.model.layout
        self.weights = [
            (rng.normal(size=shape) / np.sqrt(shape[1])).astype(dtype)
            for shape in layout.weight_shapes
        ]
        self.biases = [rng.normal(size=shape).astype(dtype) for shape in layout.bias_shapes]
        self.parameters = self.model.parameters(layout.flat(self.weights, self.biases, dtype))
        self.X = rng.normal(size=(rows, SIZES[0])).astype(dtype)
        self.X[rng.random(self.X.shape) < 0.6] = 0
        targets = rng.random((rows, SIZES[-1])) + 0.1
        self.Y = (targets / targets.sum(axis=1, keepdims=True)).astype(dtype)
        self.exact = Passes(exact.backend.fork(), SIZES, exact.activations, exact.cost)
        self.exactly = exact.parameters(layout.flat(self.weights, self.biases, "float64"))
        self.tolerance = (2e-5 if dtype == "float32" else 1e-13) * 37

    def compiled(self, inputs_first: bool = False) -> CompiledPasses:
        model = self.model
        return CompiledPasses(
            model.backend, model.sizes, model.activations, model.cost, inputs_first=inputs_first
        )

    def arrays(self, inputs_first: bool) -> list[np.ndarray]:
        weights = (
            [np.ascontiguousarray(w.T) for w in self.weights] if inputs_first else self.weights
        )
        return [*weights, *self.biases]

    def gradients(self, s: np.ndarray) -> tuple[float, list[np.ndarray]]:
        """Σ s_x C_x and its gradients, a row at a time."""
        total, found = 0.0, [np.zeros(w.shape) for w in (*self.weights, *self.biases)]
        for x, y, weight in zip(self.X, self.Y, s.tolist(), strict=True):
            x, y = x[None].astype("f8"), y[None].astype("f8")
            total += weight * self.exact.evaluate(self.exactly, x, y)[0]
            weights, biases = self.exact.gradients(self.exactly, x, y)
            for sum_of, one in zip(found, (*weights, *biases), strict=True):
                sum_of += weight * one
        return total, found


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form))
def test_outputs_and_costs(form: tuple[str, str, str], dtype: str, rows: int) -> None:
    case = Case(form, dtype, rows)
    cost, outputs = case.exact.evaluate(case.exactly, case.X.astype("f8"), case.Y.astype("f8"))
    scale = np.abs(outputs).max()
    for inputs_first in (False, True):
        passes = case.compiled(inputs_first)
        where = cpu.addresses_of(case.arrays(inputs_first))
        for X in (case.X, cpu.SparseRows(sparse.csr_array(case.X), dtype)):
            np.testing.assert_allclose(
                passes.predict_by(where, X), outputs, rtol=0, atol=case.tolerance * scale
            )
    found, again = case.compiled().evaluate(case.parameters, case.X, case.Y)
    assert found == pytest.approx(cost, rel=case.tolerance)
    np.testing.assert_allclose(again, outputs, rtol=0, atol=case.tolerance * scale)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form))
def test_gradients(form: tuple[str, str, str], dtype: str, rows: int) -> None:
    case = Case(form, dtype, rows)
    s = np.random.default_rng(1).random(rows).astype(dtype) + np.asarray(0.5, dtype)
    s[rows // 2] = 0 if rows > 1 else 2
    cost, gradients = case.gradients(s)
    for inputs_first in (False, True):
        passes = case.compiled(inputs_first)
        arrays = case.arrays(inputs_first)
        for X in (case.X, cpu.SparseRows(sparse.csr_array(case.X), dtype)):
            found = [np.full_like(array, np.nan) for array in arrays]
            total = float(s.sum())
            sum_of_costs = passes.gradients_by(
                cpu.addresses_of(arrays), X, case.Y, cpu.addresses_of(found), total, s
            )
            assert sum_of_costs == pytest.approx(cost, rel=case.tolerance)
            for array, exact in zip(found, gradients, strict=True):
                exact = exact.T if inputs_first and exact.ndim == 2 else exact
                np.testing.assert_allclose(
                    array, exact / total, rtol=0, atol=case.tolerance * np.abs(exact / total).max()
                )


@pytest.mark.parametrize("rows", ROWS)
def test_sparse_rows_have_the_bits_of_dense_ones(rows: int) -> None:
    case = Case(FORMS[1], "float32", rows)
    passes, where = case.compiled(), cpu.addresses(case.parameters)
    results = []
    for X in (case.X, cpu.SparseRows(sparse.csr_array(case.X), "float32")):
        found = [np.empty_like(array) for array in case.arrays(False)]
        passes.gradients_by(where, X, case.Y, cpu.addresses_of(found), float(rows))
        results.append([passes.predict_by(where, X), *found])
    for number, (dense, thin) in enumerate(zip(*results, strict=True)):
        # Where few dense rows go back, or one is read, sums are made in lanes.
        if rows <= (16 if number else 1):
            np.testing.assert_allclose(thin, dense, rtol=1e-4, atol=1e-6)
        else:
            np.testing.assert_array_equal(thin, dense)


def test_a_sparse_matrix_in_any_order_and_form() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(6, 9)).astype("f4")
    dense[rng.random(dense.shape) < 0.5] = 0
    rows, columns = np.nonzero(dense)
    order = rng.permutation(len(rows))
    twice = sparse.coo_array(
        (
            np.tile(dense[rows, columns][order] / 2, 2),
            (np.tile(rows[order], 2), np.tile(columns[order], 2)),
        ),
        shape=dense.shape,
    )
    jumbled = sparse.csr_matrix(dense)
    jumbled.indices = jumbled.indices[::-1].copy()  # no longer what it was, but out of order
    jumbled.has_sorted_indices = False
    for matrix in (twice, sparse.csc_array(dense), sparse.csr_matrix(dense), jumbled):
        before = matrix.toarray()
        found = cpu.SparseRows(matrix, "f4")
        again = sparse.csr_array(found._arrays[::-1], shape=found.shape)  # noqa: SLF001
        np.testing.assert_allclose(again.toarray(), before, rtol=1e-6)
        np.testing.assert_array_equal(matrix.toarray(), before)
        for x in range(6):
            begin, end = found._arrays[0][x : x + 2]  # noqa: SLF001
            assert (np.diff(found._arrays[1][begin:end]) > 0).all()  # noqa: SLF001


def test_threads_read_one_network_at_once() -> None:
    net = Network(list(SIZES), seed=0, backend="numpy")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, SIZES[0])).astype("f4")
    alone = [net.predict(X[i : i + 1]) for i in range(200)]
    wrong: list[Any] = []

    def read(offset: int) -> None:
        for i in range(2000):
            row = (i + offset) % 200
            if not np.array_equal(net.predict(X[row : row + 1]), alone[row]):
                wrong.append(row)

    workers = [threading.Thread(target=read, args=(50 * i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_addresses_follow_the_arrays() -> None:
    case = Case(FORMS[0], "float32", 3)
    passes, arrays = case.compiled(), case.arrays(False)
    first = passes.predict_by(passes.addresses_of(arrays), case.X)
    arrays[0] = arrays[0] + 1
    second = passes.predict_by(passes.addresses_of(arrays), case.X)
    assert not np.array_equal(first, second)
    arrays[0] -= 1  # in place: the same address
    np.testing.assert_allclose(
        passes.predict_by(passes.addresses_of(arrays), case.X), first, atol=1e-6
    )
    case.parameters.flat = case.parameters.flat.copy()  # others than before
    case.parameters.flat[:] = 0
    assert not np.array_equal(passes.predict(case.parameters, case.X), first)
    copied = Parameters(case.parameters.layout, case.parameters.flat.copy())
    np.testing.assert_array_equal(
        passes.predict(copied, case.X), passes.predict(case.parameters, case.X)
    )
