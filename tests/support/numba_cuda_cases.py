"""The Numba kernels through the cases that all kernels are tried with.

Not collected by itself: `test_numba_cuda.py` runs it in a process of its own, in
Numba's simulator, which must be chosen before numba is imported. There a block costs
a Python thread a CUDA thread, so most cases run with small tiles: every shape below
is then many tiles and no multiple of one. A few run with the tiles of a device.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import fuzzed_equations
import kernel_cases
from backprop_gpu import Network, activations, costs
from backprop_gpu.kernels import numba_cuda as kernels
from backprop_gpu.optimizers import Adam
from kernel_cases import CASES, DTYPES, Subject

REAL = (kernels.TILE, kernels.BLOCK)
SMALL = (4, 8)


def _one_shared_array_a_line() -> None:
    """Make the simulator's shared memory safe: two threads that ask for an array at once
    may each get their own there (numba-cuda 0.30), and a kernel then reads garbage."""
    import threading

    from numba.cuda.np.numpy_support import as_dtype
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    lock = threading.Lock()

    def array(self, shape, dtype, alignment=None):
        line = sys._getframe(1)  # noqa: SLF001
        key = (line.f_code.co_filename, line.f_lineno)
        with lock:
            if key not in self._allocations:
                self._allocations[key] = np.full(shape, np.nan, as_dtype(dtype))
            return self._allocations[key]

    FakeCUDAShared.array = array


def _backend_module(tile: int, block: int) -> ModuleType:
    """The backend with kernels made for blocks of that size."""
    kernels.TILE, kernels.BLOCK = tile, block
    package = kernels.__name__
    for name in (
        "activations", "costs", "cost", "forward", "output_error", "hidden_error",
        "bias_gradient", "weight_gradient", "gather", "update", "hadamard", "mix",
    ):  # fmt: skip
        importlib.reload(importlib.import_module(f"{package}.{name}"))
    return importlib.reload(importlib.import_module("backprop_gpu.backends.numba_cuda"))


@pytest.fixture(scope="session", autouse=True)
def _simulator():
    from numba import config

    if config.ENABLE_CUDASIM:
        _one_shared_array_a_line()
    # The simulator's threads hand over every 5 ms otherwise, and it waits for them in a loop.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="module")
def module():
    yield _backend_module(*SMALL)
    _backend_module(*REAL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if not case.cuda], ids=str)
def test_kernels(module, case, dtype):
    case.check(Subject(module.NumbaCudaBackend(dtype), limit=3000))


# -- memory ------------------------------------------------------------------------------


@given(problem=fuzzed_equations.problems(largest=9))
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_equations(module, problem):
    fuzzed_equations.check(problem, module.NumbaCudaBackend(problem.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory(module, dtype):
    backend = module.NumbaCudaBackend(dtype)
    host = np.arange(20.0).reshape(4, 5)
    array = backend.asarray(host.astype(np.float64))
    assert array.dtype == dtype
    assert backend.asarray(array) is array
    np.testing.assert_array_equal(backend.to_numpy(array[1:3]), host[1:3])
    assert backend.asarray(array[1:3]).shape == (2, 5)
    np.testing.assert_array_equal(backend.to_numpy(backend.asarray(host[:, ::2])), host[:, ::2])
    read_only = host.copy()
    read_only.flags.writeable = False
    out = backend.empty((4, 5))
    backend.copy(backend.asarray(read_only), out)
    np.testing.assert_array_equal(backend.to_numpy(out), host)
    out_host = backend.to_numpy(out)
    out_host[...] = -1
    np.testing.assert_array_equal(backend.to_numpy(out), host)
    assert not backend.to_numpy(backend.zeros((3,))).any()
    other = type(backend)("float32" if dtype == "float64" else "float64")
    assert other.asarray(array).dtype == other.dtype

    assert backend.all_finite(array)
    for value in (np.nan, np.inf):
        assert not backend.all_finite(backend.asarray(np.array([0.0, value])))
    backend.hadamard(array, array, out)
    np.testing.assert_array_equal(backend.to_numpy(out), host * host)


# -- a whole run ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((3, 5, 2), {"activation": ["tanh", "softmax"], "cost": "categorical_cross_entropy"}),
        ((2, 3, 3, 1), {"activation": ["gelu", "relu", "sigmoid"], "cost": "quadratic"}),
    ],
    ids=["softmax", "deep"],
)
def test_fit(module, dtype, sizes, settings):
    """Two epochs with a short last mini-batch: the weights of the NumPy backend."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(7, sizes[0]))
    Y = np.eye(sizes[-1])[rng.integers(0, sizes[-1], 7)] if sizes[-1] > 1 else rng.random((7, 1))
    networks = []
    for backend in ("numba_cuda", "numpy"):
        network = Network(list(sizes), dtype=dtype, seed=2, backend=backend, **settings)
        network.fit(X, Y, epochs=2, batch_size=3, learning_rate=0.3, optimizer=Adam(l2=0.01))
        networks.append(network)
    got, want = networks
    tolerance = 1000 * float(np.finfo(dtype).eps)
    for name in ("weights", "biases"):
        for ours, theirs in zip(getattr(got, name), getattr(want, name), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got.predict(X), want.predict(X), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("sigma", "cost"),
    [
        ("sigmoid", "categorical_cross_entropy"),
        ("softmax", "binary_cross_entropy"),
        ("softplus", "poisson"),
    ],
)
def test_fit_of_saturated_outputs(module, sigma, cost):
    X, Y = np.random.default_rng(5).normal(size=(5, 3)), np.eye(3)[[0, 1, 2, 2, 0]]
    changes = []
    for backend in ("numba_cuda", "numpy"):
        network = Network([3, 3], activation=sigma, cost=cost, seed=2, backend=backend)
        network.biases = [np.array([-200, 200, 0])]
        network.fit(X, Y, epochs=1, batch_size=5, learning_rate=1.0)
        changes.append(network.biases[0] - [-200, 200, 0])
    got, want = changes
    assert np.abs(want[0]) > 0.1, "it learns where it is saturated"
    np.testing.assert_allclose(got, want, rtol=0, atol=200 * 1e-5)


# -- the blocks of a device: last, since it swaps the kernels ---------------------------------


@pytest.fixture(scope="module")
def real_module(module):
    return _backend_module(*REAL)


def test_products_in_whole_tiles(real_module):
    """At the blocks that a device runs; the cases above run many small ones."""
    for dtype, shapes in (
        ("float32", ((1, 1, 1), (5, 31, 33))),
        ("float64", ((5, 1, 17), (1, 17, 1), (17, 3, 2))),
    ):
        subject = Subject(real_module.NumbaCudaBackend(dtype))
        for check in (
            kernel_cases.forward,
            kernel_cases.hidden_error,
            kernel_cases.weight_gradient,
        ):
            check(subject, shapes)


def test_sum_in_a_whole_block(real_module):
    backend = real_module.NumbaCudaBackend("float64")
    a, y = np.random.default_rng(0).normal(size=(2, 150, 1))
    arguments = backend.asarray(a), backend.asarray(y), activations.get("tanh")
    got = backend.cost(None, *arguments, costs.get("quadratic"))
    np.testing.assert_allclose(got, 0.5 * ((a - y) ** 2).sum() / 150, rtol=1e-14)
