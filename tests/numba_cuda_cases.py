"""Every method of the numba_cuda backend against the NumPy backend in float64.

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
from backprop_gpu.kernels import numba_cuda as kernels

from backprop_gpu import Network, activations, costs
from backprop_gpu.activations import Activation
from backprop_gpu.backends.numpy import NumpyBackend
from backprop_gpu.costs import Cost
from backprop_gpu.optimizers import SGD, Adam, AdamW
from backprop_gpu.parameters import Layout, Parameters

REAL = (kernels.TILE, kernels.BLOCK)
SMALL = (4, 8)
DTYPES = ("float32", "float64")


def _one_shared_array_a_line() -> None:
    """Make the simulator's shared memory safe: two threads that ask for an array at once
    may each get their own there (numba-cuda 0.30), and a kernel then reads garbage."""
    import threading

    from numba.cuda.np.numpy_support import as_dtype
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    lock = threading.Lock()

    def array(self, shape, dtype, alignment=None):
        line = sys._getframe(1)
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
        "bias_gradient", "weight_gradient", "gather", "update", "hadamard",
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


class Pair:
    """The backend under test and the reference, given the same numbers."""

    def __init__(self, module: ModuleType, dtype: str, seed: int = 0) -> None:
        self.got = module.NumbaCudaBackend(dtype)
        self.reference = NumpyBackend("float64")
        self.dtype = np.dtype(dtype)
        self.eps = float(np.finfo(dtype).eps)
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int) -> np.ndarray:
        """Numbers that the dtype holds exactly, in float64."""
        return self.rng.normal(size=shape).astype(self.dtype).astype(np.float64)

    def device(self, *arrays: np.ndarray):
        return tuple(self.got.asarray(array) for array in arrays)

    def poisoned(self, *shape: int):
        """An output array, NaN where nothing is written."""
        return self.got.asarray(np.full(shape, np.nan))

    def host(self, array) -> np.ndarray:
        return self.got.to_numpy(array).astype(np.float64)


def assert_within(got: np.ndarray, want: np.ndarray, bound: np.ndarray | float) -> None:
    assert got.shape == want.shape
    worst = np.max(np.abs(got - want) - bound)
    assert worst <= 0, f"off by {worst:.3g} more than the bound"  # and fails on NaN


@pytest.fixture(params=DTYPES)
def pair(module, request):
    return Pair(module, request.param)


# -- the products ----------------------------------------------------------------


def check_products(pair: Pair, m: int, n: int, k: int) -> None:
    """forward, hidden_error, weight_gradient and bias_gradient of a layer k -> n, m rows."""
    w, b, a_prev, delta = pair.normal(n, k), pair.normal(n), pair.normal(m, k), pair.normal(m, n)
    on_device = pair.device(w, b, a_prev, delta)
    identity = activations.get("identity")

    z, a = pair.poisoned(m, n), pair.poisoned(m, n)
    pair.got.forward(*on_device[:3], identity, z, a)
    bound = (k + 2) * pair.eps * (np.abs(a_prev) @ np.abs(w).T + np.abs(b))
    assert_within(pair.host(z), a_prev @ w.T + b, bound)
    np.testing.assert_array_equal(pair.host(z), pair.host(a))
    only_a = pair.poisoned(m, n)
    pair.got.forward(*on_device[:3], identity, None, only_a)
    np.testing.assert_array_equal(pair.host(a), pair.host(only_a))

    back = pair.poisoned(m, k)
    pair.got.hidden_error(on_device[0], on_device[3], None, on_device[2], identity, back)
    bound = (n + 2) * pair.eps * (np.abs(delta) @ np.abs(w))
    assert_within(pair.host(back), delta @ w, bound)

    gradient = pair.poisoned(n, k)
    pair.got.weight_gradient(on_device[3], on_device[2], gradient)
    bound = (m + 2) * pair.eps * (np.abs(delta).T @ np.abs(a_prev)) / m
    assert_within(pair.host(gradient), delta.T @ a_prev / m, bound)

    mean = pair.poisoned(n)
    pair.got.bias_gradient(on_device[3], mean)
    assert_within(pair.host(mean), delta.mean(axis=0), (m + 2) * pair.eps * np.abs(delta).mean(0))


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 17), (17, 1), (7, 9), (4, 8)])
def test_products(pair, m, n, k):
    check_products(pair, m, n, k)


def test_same_bits_twice(pair):
    delta, a_prev = pair.device(pair.normal(11, 3), pair.normal(11, 5))
    runs = []
    for _ in range(2):
        w, b = pair.poisoned(3, 5), pair.poisoned(3)
        pair.got.weight_gradient(delta, a_prev, w)
        pair.got.bias_gradient(delta, b)
        runs.append((pair.host(w), pair.host(b)))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


# -- σ ---------------------------------------------------------------------------

SWISH = Activation(
    "swish_twice",
    lambda z: 2 * z / (1 + np.exp(-z)),
    lambda z: 2 / (1 + np.exp(-z)) * (1 + z * (1 - 1 / (1 + np.exp(-z)))),
)
BENT = Activation(
    "bent", lambda z: np.where(z > 0, z, 0.5 * z), lambda z: np.where(z > 0, 1.0, 0.5)
)
ARCTAN = Activation("arctan", np.arctan, lambda z: 1 / (1 + z * z))
ACTIVATIONS = [*map(activations.get, activations.names()), SWISH, BENT, ARCTAN]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_activation(pair, activation):
    """Forward and BP2 through σ, over a range of z that saturates what can saturate."""
    m, n, k = 5, 6, 3
    w, b, a_prev = 3 * pair.normal(n, k), pair.normal(n), pair.normal(m, k)
    b[:2] = -9.0, 9.0
    z, a = np.empty((m, n)), np.empty((m, n))
    pair.reference.forward(w, b, a_prev, activation, z, a)
    z_got, a_got = pair.poisoned(m, n), pair.poisoned(m, n)
    pair.got.forward(*pair.device(w, b, a_prev), activation, z_got, a_got)
    off = (k + 2) * pair.eps * (np.abs(a_prev) @ np.abs(w).T + np.abs(b))
    assert_within(pair.host(z_got), z, off)
    off = off.max(axis=1, keepdims=True) if activation.name == "softmax" else off
    slope = 1 + np.abs(a)  # at least |σ'| for each of them, e^z being its own
    assert_within(pair.host(a_got), a, 2 * slope * (off + 8 * pair.eps * (1 + np.abs(z))))

    keeps_z = activation.derivative_from == "z"
    a = pair.host(a_got)
    w_next, delta_next = pair.normal(2, n), pair.normal(m, 2)
    want, got = np.empty((m, n)), pair.poisoned(m, n)
    z = pair.host(z_got)
    pair.reference.hidden_error(w_next, delta_next, z if keeps_z else None, a, activation, want)
    pair.got.hidden_error(
        *pair.device(w_next, delta_next), z_got if keeps_z else None, a_got, activation, got
    )
    products = (np.abs(delta_next) @ np.abs(w_next)).max(axis=1, keepdims=True)
    slope = 1 + np.abs(a) + np.abs(z)
    assert_within(pair.host(got), want, 16 * n * pair.eps * products * slope)


def test_saturated_sigmoid_does_not_overflow(pair):
    z = pair.device(np.array([[-650.0, 650.0]]))[0]
    w, b = pair.device(np.eye(2), np.zeros(2))
    a = pair.poisoned(1, 2)
    for name, want in (("sigmoid", [0, 1]), ("softplus", [0, 650]), ("silu", [0, 650])):
        pair.got.forward(w, b, z, activations.get(name), None, a)
        np.testing.assert_allclose(pair.host(a), [want], atol=1e-30)


# -- the cost and BP1 ---------------------------------------------------------------

CUBIC = Cost(
    "cubic",
    lambda a, y: (np.abs(a - y) ** 3).sum(axis=1),
    lambda a, y: 3 * np.abs(a - y) * (a - y),
)


def _valid_pairs():
    for cost in (*map(costs.get, costs.names()), CUBIC):
        for activation in ACTIVATIONS:
            try:
                costs.check_pair(activation, cost)
            except ValueError:
                continue
            if activation.range is None and cost.builtin and cost.domain[0] == 0:
                continue  # allowed, but these user's activations leave the domain
            yield pytest.param(activation, cost, id=f"{activation.name}-{cost.name}")


@pytest.mark.parametrize(("activation", "cost"), list(_valid_pairs()))
def test_cost_and_output_error(pair, activation, cost):
    m, n = 5, 3
    z = pair.normal(m, n)
    a = np.empty((m, n))
    activation.evaluate(z, a, np.empty((m, n)))
    a = a.astype(pair.dtype).astype(np.float64)
    y = pair.rng.uniform(size=(m, n))
    y[0] = (0.0, 1.0, 0.0)
    y = (y / y.sum(axis=1, keepdims=True)).astype(pair.dtype).astype(np.float64)
    z_device, a_device, y_device = pair.device(z, a, y)

    for kept in (True, False):
        if not kept and activation.derivative_from == "z":
            continue
        got = pair.got.cost(z_device if kept else None, a_device, y_device, activation, cost)
        want = pair.reference.cost(z if kept else None, a, y, activation, cost)
        assert isinstance(got, float)
        size = 1 + np.max(np.abs(z)) + np.max(np.abs(np.log(np.abs(a) + 1e-3)))
        assert abs(got - want) <= 16 * n * pair.eps * size**2

        delta, want_delta = pair.poisoned(m, n), np.empty((m, n))
        pair.got.output_error(
            z_device if kept else None, a_device, y_device, activation, cost, delta
        )
        pair.reference.output_error(z if kept else None, a, y, activation, cost, want_delta)
        gradient = np.empty((m, n))
        cost.evaluate_gradient(a, y, gradient, np.empty((m, n)))
        size = (2 + np.abs(gradient).max(axis=1, keepdims=True)) * (1 + np.abs(a) + np.abs(z))
        assert_within(pair.host(delta), want_delta, 16 * n * pair.eps * size)


@pytest.mark.parametrize(
    ("output", "cost"),
    [
        ("tanh", "quadratic"),
        ("softmax", "binary_cross_entropy"),
        ("sigmoid", "categorical_cross_entropy"),
        ("relu", "quadratic"),
    ],
)
def test_cost_at_the_edge_of_its_domain(pair, output, cost):
    """a = 0 and 1 are moved inside the domain as the NumPy backend of the dtype does it."""
    same = NumpyBackend(pair.dtype)
    a = np.array([[0.0, 1.0], [1.0, 0.0]], pair.dtype)
    y = np.array([[0.0, 1.0], [0.0, 1.0]], pair.dtype)
    arguments = activations.get(output), costs.get(cost)
    got = pair.got.cost(None, *pair.device(a, y), *arguments)
    np.testing.assert_allclose(got, same.cost(None, a, y, *arguments), rtol=8 * pair.eps)
    delta, want = pair.poisoned(2, 2), np.empty((2, 2), pair.dtype)
    pair.got.output_error(None, *pair.device(a, y), *arguments, delta)
    same.output_error(None, a, y, *arguments, want)
    np.testing.assert_allclose(pair.got.to_numpy(delta), want, rtol=8 * pair.eps, atol=pair.eps)


def test_cost_of_many_rows(pair):
    """More rows than threads, and not a multiple."""
    a, y = pair.normal(21, 2), pair.normal(21, 2)
    sigma, cost = activations.get("tanh"), costs.get("quadratic")
    got = pair.got.cost(None, *pair.device(a, y), sigma, cost)
    want = 0.5 * ((a - y) ** 2).sum() / 21
    assert abs(got - want) <= 8 * pair.eps * want


# -- a step of an epoch ----------------------------------------------------------------


def test_epoch(pair):
    """Gather, record_cost and advance read and count the step on the device."""
    rows, batch = 7, 3
    source = pair.normal(rows, 5)
    order = np.array([6, 0, 3, 1, 5, 2, 4])
    on_device = pair.got.asarray(source)
    epoch = pair.got.epoch(rows, batch)
    sigma = activations.get("tanh")
    for _ in range(2):  # an epoch may be loaded again
        epoch.load(order, np.zeros((3, 4)))
        assert epoch.costs().shape == (0,)
        want = []
        for number, cost in enumerate((costs.get("quadratic"), CUBIC, costs.get("quadratic"))):
            part = source[order[number * batch : (number + 1) * batch]]
            out = pair.poisoned(*part.shape)
            pair.got.gather(on_device, epoch, out)
            np.testing.assert_array_equal(pair.host(out), part)
            y = np.zeros_like(part)
            pair.got.record_cost(None, out, pair.got.asarray(y), sigma, cost, epoch)
            want.append(pair.reference.cost(None, part, y, sigma, cost))
            pair.got.advance(epoch)
        assert epoch.costs().dtype == np.float64
        np.testing.assert_allclose(epoch.costs(), want, rtol=16 * pair.eps)


OPTIMIZERS = {
    "sgd": SGD(),
    "sgd_l2": SGD(l2=0.1),
    "sgd_l1": SGD(l1=0.1),
    "sgd_clip_value": SGD(clip_value=0.7, l2=0.1),
    "momentum": SGD(momentum=0.9, l1=0.05, l2=0.1),
    "momentum_clip_norm": SGD(momentum=0.8, clip_norm=1.5),
    "nesterov": SGD(momentum=0.9, nesterov=True, clip_value=1.0, clip_norm=2.0, l1=0.01),
    "clip_norm_not_reached": SGD(clip_norm=1e6),
    "adam": Adam(l2=0.01, clip_norm=3.0),
    "adamw": AdamW(weight_decay=0.3, clip_value=0.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_update(pair, optimizer):
    layout = Layout((3, 5, 2))
    steps = 3
    coefficients = optimizer.coefficients(np.array([0.1, 0.2, 0.05]), 4)
    states = []
    for backend in (pair.got, pair.reference):
        epoch = backend.epoch(steps, 1)
        epoch.load(np.arange(steps), coefficients)
        flat, gradients = (Parameters(layout, backend.zeros((layout.length,))) for _ in range(2))
        slots = tuple(backend.zeros((layout.length,)) for _ in range(optimizer.slots))
        rng = np.random.default_rng(3)
        for array in (*flat.weights, *flat.biases):
            start = rng.normal(size=array.shape).astype(pair.dtype)
            start.flat[0] = 0.0  # sign(0) is 0
            backend.copy(backend.asarray(start), array)
        for _ in range(steps):
            for array in (*gradients.weights, *gradients.biases):
                step = rng.normal(size=array.shape).astype(pair.dtype)
                backend.copy(backend.asarray(step), array)
            backend.update(flat, gradients, slots, optimizer, epoch)
            backend.advance(epoch)
        states.append([backend.to_numpy(array) for array in (flat.flat, *slots)])
    for got, want in zip(*states, strict=True):
        assert got.dtype == pair.dtype
        assert_within(got, want, 16 * steps * pair.eps * (1 + np.abs(want)))
    gaps = np.ones(layout.length, bool)
    for view in (lambda v: [*v[0], *v[1]])(layout.views(np.arange(layout.length))):
        gaps[view] = False
    assert gaps.any()
    assert not states[0][0][gaps].any()


# -- memory ------------------------------------------------------------------------------


def test_memory(pair):
    backend = pair.got
    host = np.arange(20.0).reshape(4, 5)
    array = backend.asarray(host.astype(np.float64))
    assert array.dtype == pair.dtype
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
    other = type(backend)("float32" if pair.dtype == np.float64 else "float64")
    assert other.asarray(array).dtype == other.dtype

    assert backend.all_finite(array)
    for value in (np.nan, np.inf):
        assert not backend.all_finite(backend.asarray(np.array([0.0, value])))
    backend.hadamard(array, array, out)
    np.testing.assert_array_equal(backend.to_numpy(out), host * host)
    backend.release()


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


# -- the blocks of a device: last, since it swaps the kernels ---------------------------------


@pytest.fixture(scope="module")
def real_module(module):
    return _backend_module(*REAL)


@pytest.mark.parametrize(
    ("dtype", "m", "n", "k"),
    [
        ("float32", 1, 1, 1),
        ("float32", 5, 31, 33),
        ("float64", 5, 1, 17),
        ("float64", 1, 17, 1),
        ("float64", 17, 3, 2),
    ],
)
def test_products_in_whole_tiles(real_module, dtype, m, n, k):
    check_products(Pair(real_module, dtype), m, n, k)


def test_sum_in_a_whole_block(real_module):
    pair = Pair(real_module, "float64")
    a, y = pair.normal(150, 1), pair.normal(150, 1)
    got = pair.got.cost(None, *pair.device(a, y), activations.get("tanh"), costs.get("quadratic"))
    want = 0.5 * ((a - y) ** 2).sum() / 150
    assert abs(got - want) <= 8 * pair.eps * want
