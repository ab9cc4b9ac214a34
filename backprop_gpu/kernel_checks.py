"""Every kernel beside NumPy in float64: what ``backprop-gpu check`` runs on what is there.

A case is a function of `On`, a backend and the numbers for it. It runs on the device and again on
NumPy, and gives the arrays to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import activations, costs, planning, self_check
from .activations import Activation
from .backends.base import Backend
from .backends.cuda import CudaBackend
from .backends.numpy import NumpyBackend
from .costs import Cost
from .cuda import catalogue
from .cuda.catalogue import Catalogue, Kernel
from .optimizers import COEFFICIENTS, SGD, Adam, AdamW, Optimizer
from .parameters import Layout, Parameters
from .planning import Product, Tile
from .precision import round_factor
from .self_check import Result, check_engine, first_line, forms

if TYPE_CHECKING:
    from .cuda.runtime import Runtime

Array = Any
#: m, n, k: no tile divides them.
M, N, K = 33, 17, 70
#: Rounding errors of this many ε, of sums of some hundred numbers about 1.
TOLERANCE = 64
#: An update rule each, with every penalty and clip between them.
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(l1=0.01, l2=0.1),
    "momentum": SGD(momentum=0.9, clip_value=0.7),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "adam": Adam(l2=0.01),
    "adamw": AdamW(weight_decay=0.3),
    "clip_norm": SGD(clip_norm=2.0),
}


class On:
    """A backend, and numbers that are the same on every one.

    They are drawn, then rounded to `dtype` and to `precision`, so that products round nothing more.
    """

    def __init__(self, backend: Backend, dtype: np.dtype[Any], precision: str) -> None:
        self.backend, self.dtype, self.precision = backend, dtype, precision
        self.rng = np.random.default_rng(0)

    def put(self, host: Any) -> Array:
        array = self.backend.empty(np.shape(host))
        rounded = np.array(host, self.dtype)
        round_factor(rounded, self.precision, rounded)
        self.backend.copy(self.backend.asarray(rounded), array)
        return array

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return self.put(scale * self.rng.standard_normal(shape))

    def out(self, *shape: int) -> Array:
        """An output filled with NaN, which shows what is not written."""
        return self.put(np.full(shape, np.nan))

    def get(self, *arrays: Array) -> list[np.ndarray]:
        return [self.backend.to_numpy(array).astype(np.float64) for array in arrays]


Case = Callable[[On], list[np.ndarray]]


def results(runtime: Runtime, dtype: Any) -> Iterator[Result]:
    """The verdict on each kernel, then on each engine in each of its forms."""
    dtype = np.dtype(dtype)
    _build(runtime, dtype)
    for name, case, choice, precision in _cases(runtime.device, dtype):
        choose = planning.choose_product if choice is None else lambda *_, choice=choice: choice
        backend = CudaBackend(dtype, runtime, choose, precision=precision)
        yield _compared(name, case, backend, dtype)
    for name, case in _device_cases(runtime, dtype):
        yield _compared(name, case, CudaBackend(dtype, runtime), dtype)
    for form in forms(runtime.device, dtype):
        yield self_check.verdict(runtime, form, dtype, again=True)
        if form.blocks == 1 and form.stored is None:
            for rule, optimizer in OPTIMIZERS.items():
                if optimizer.clip_norm is None:
                    found = check_engine(runtime, form, dtype, optimizer)
                    yield Result(f"{found.name}, {rule}", *_rest(found))


def _rest(result: Result) -> tuple[str, float, float, str | None]:
    return result.dtype, result.error, result.bound, result.trouble


def _compared(name: str, case: Case, backend: CudaBackend, dtype: np.dtype[Any]) -> Result:
    bound = TOLERANCE * float(np.finfo(dtype).eps)
    exact = case(On(NumpyBackend(np.float64), dtype, backend.precision))
    try:
        got = case(On(backend, dtype, backend.precision))
    except Exception as reason:  # whatever a driver, a compiler or a kernel may do
        return Result(name, dtype.name, np.inf, bound, first_line(reason))
    pairs = zip(got, exact, strict=True)
    return Result(name, dtype.name, max(self_check.distance(*pair) for pair in pairs), bound)


def _cases(
    device: planning.Device, dtype: np.dtype[Any]
) -> Iterator[tuple[str, Case, Product | None, str | None]]:
    """(name, case, how products are formed if not as planned, their precision)."""
    sigmas = [activations.get(name) for name in activations.names()]
    sigmas = [sigma for sigma in sigmas if sigma.builtin]
    for sigma in sigmas:
        yield f"forward, {sigma.name}", partial(_forward, sigma=sigma), None, None
        yield f"BP2, {sigma.name}", partial(_hidden_error, sigma=sigma), None, None
    sigmoid = activations.get("sigmoid")
    ways: list[tuple[str, Tile | None, int, str | None]]
    ways = [(f"tile {t}", t, 1, None) for t in planning.TILES]
    ways += [("tile 32x32x32, 3 splits", planning.TILES[2], 3, None)]
    ways += [("cuBLASLt", None, 1, None)] if device.library else []
    if device.multiplies_rounded and dtype == np.float32:
        for precision, tiles in planning.TENSOR_TILES.items():
            ways += [(f"tile {tile}, {precision}", tile, 1, precision) for tile in tiles]
            if device.library and precision != "float32":
                ways += [(f"cuBLASLt, {precision}", None, 1, precision)]
    for way, tile, splits, rounded in ways:
        choice = Product("cublas" if tile is None else "tiled", tile, splits, 0.0, "to be checked")
        if splits == 1:
            yield f"forward, {way}", partial(_forward, sigma=sigmoid), choice, rounded
            yield f"BP2, {way}", partial(_hidden_error, sigma=sigmoid), choice, rounded
        yield f"BP4, {way}", _weight_gradient, choice, rounded
    yield "BP3", _bias_gradient, None, None
    yield "hadamard", _hadamard, None, None
    for sigma in sigmas:
        for cost in (costs.get(name) for name in costs.names()):
            with suppress(ValueError):  # outputs that the cost is not defined for
                costs.check_pair(sigma, cost)
                if cost.builtin:
                    yield (
                        f"C and BP1, {sigma.name} and {cost.name}",
                        partial(_output_error, sigma=sigma, cost=cost),
                        None,
                        None,
                    )
    yield "gather, C of a step, advance", _epoch, None, None
    yield "mix", _mix, None, None
    for rule, optimizer in OPTIMIZERS.items():
        yield f"update, {rule}", partial(_update, optimizer=optimizer), None, None
    yield "sum of squares", _sum_of_squares, None, None
    yield "all finite", _all_finite, None, None


def _forward(on: On, sigma: Activation) -> list[np.ndarray]:
    w, b, x = on.normal(N, K, scale=K**-0.5), on.normal(N), on.normal(M, K)
    z, a, only_a = on.out(M, N), on.out(M, N), on.out(M, N)
    on.backend.forward(w, b, x, sigma, z, a)
    on.backend.forward(w, b, x, sigma, None, only_a)
    return on.get(z, a, only_a)


def _evaluated(on: On, sigma: Activation, n: int = N) -> tuple[Array, Array]:
    """(z, a), the same a everywhere."""
    z = on.rng.standard_normal((M, n)).astype(on.dtype).astype(np.float64)
    a = np.empty_like(z)
    sigma.evaluate(z, a, np.empty_like(z))
    return on.put(z), on.put(a)


def _hidden_error(on: On, sigma: Activation) -> list[np.ndarray]:
    z, a = _evaluated(on, sigma)
    w_next, delta_next, delta = on.normal(K, N, scale=K**-0.5), on.normal(M, K), on.out(M, N)
    on.backend.hidden_error(w_next, delta_next, z, a, sigma, delta)
    return on.get(delta)


def _weight_gradient(on: On) -> list[np.ndarray]:
    delta, a_prev, out, biases = on.normal(301, N), on.normal(301, K), on.out(N, K), on.out(N)
    on.backend.weight_gradient(delta, a_prev, out, biases)
    return on.get(out, biases)


def _bias_gradient(on: On) -> list[np.ndarray]:
    found = []
    for m, n in ((7, 31), (300, 70), (4000, 5)):
        delta, out = on.normal(m, n), on.out(n)
        on.backend.bias_gradient(delta, out)
        found += on.get(out)
    return found


def _hadamard(on: On) -> list[np.ndarray]:
    s, t, out = on.normal(1000), on.normal(1000), on.out(1000)
    on.backend.hadamard(s, t, out)
    return on.get(out)


def _output_error(on: On, sigma: Activation, cost: Cost) -> list[np.ndarray]:
    n = N + N % 2  # outputs may be pairs
    z, a = _evaluated(on, sigma, n)
    y = on.rng.random((M, n))
    y[0] = np.arange(n) == 0
    shares = on.put(y / y.sum(axis=1, keepdims=True))
    delta = on.out(M, n)
    on.backend.output_error(z, a, shares, sigma, cost, delta)
    return [*on.get(delta), np.array([on.backend.cost(z, a, shares, sigma, cost)])]


def _epoch(on: On) -> list[np.ndarray]:
    rows, batch, found = 7, 3, []
    X, Y = on.normal(rows, 90), on.normal(rows, 90)
    sigma, cost = activations.get("tanh"), costs.get("quadratic")
    epoch = on.backend.epoch(rows, batch)
    epoch.load(np.array([6, 0, 3, 1, 5, 2, 4]), np.zeros((3, COEFFICIENTS)))
    for size in (3, 3, 1):
        x, y = on.out(size, 90), on.out(size, 90)
        on.backend.gather(X, Y, epoch, x, y)
        on.backend.record_cost(None, x, y, sigma, cost, epoch)
        on.backend.advance(epoch)
        found += on.get(x, y)
    return [*found, epoch.costs()]


def _mix(on: On) -> list[np.ndarray]:
    X, Y, x, y = on.normal(M, N), on.normal(M, 90), on.out(M, N), on.out(M, 90)
    rows, partners = on.rng.integers(0, M, (2, M))
    on.backend.mix(X, Y, rows, partners, on.rng.random(M), x, y)
    return on.get(x, y)


def _update(on: On, optimizer: Optimizer) -> list[np.ndarray]:
    layout, steps = Layout((21, 20, 9)), 3
    epoch = on.backend.epoch(steps, 1)
    rates = np.array([0.1, 0.2, 0.05])
    epoch.load(np.arange(steps), optimizer.coefficients(rates, 4))
    parameters = Parameters(layout, on.normal(layout.length))
    slots = tuple(on.put(np.zeros(layout.length)) for _ in range(optimizer.slots))
    for _ in range(steps):
        gradients = Parameters(layout, on.normal(layout.length))
        on.backend.update(parameters, gradients, slots, optimizer, epoch)
        on.backend.advance(epoch)
    return on.get(parameters.flat, *slots)


def _sum_of_squares(on: On) -> list[np.ndarray]:
    return [np.array([on.backend.sum_of_squares(on.normal(1700)) / 1700])]


def _all_finite(on: On) -> list[np.ndarray]:
    found = []
    for value in (0.0, np.inf, -np.inf, np.nan):
        x = on.rng.standard_normal(1700)
        x[769] = value
        found.append(on.backend.all_finite(on.put(x)))
    return [np.array(found, float)]


def _device_cases(runtime: Runtime, dtype: np.dtype[Any]) -> Iterator[tuple[str, Case]]:
    """Checks of kernels that no method of a backend launches by itself."""

    def convert(on: On, source: str) -> list[np.ndarray]:
        x = on.rng.integers(0, 256, 700).astype(source)
        if not isinstance(on.backend, CudaBackend):
            return [x.astype(np.float64)]
        out = on.out(700)
        kernel = Catalogue(dtype).convert(source)
        arguments = runtime.array(x), out, np.int64(700)
        runtime.launch(kernel, (kernel.blocks(700), 1, 1), arguments)
        return on.get(out)

    for source in ("uint8", "float32", "float64"):
        yield f"convert, {source}", partial(convert, source=source)


def launched(device: planning.Device, dtype: np.dtype[Any]) -> list[Kernel]:
    """The kernels that the checks of a dtype need on a device."""
    planned = str(planning.choose_product("NT", M, N, K, dtype.itemsize, device, False).tile)
    planned = planned.replace("x", ", ")
    own = f"<{'float' if dtype.itemsize == 4 else 'double'}"
    kernels: list[Kernel] = [
        kernel
        for kernel in (*catalogue.everything(), *catalogue.tensor_products(device))
        if (own in kernel.expression or "<" not in kernel.expression)
        and (
            "Tile" not in kernel.expression
            or kernel.file == "weight_gradient.cu"
            or "Sigmoid" in kernel.expression
            or planned in kernel.expression
        )
    ]
    for form in forms(device, dtype):
        kernels += self_check.launched(device, form, dtype)
        if form.blocks == 1 and form.stored is None:
            kernels += [
                self_check.kernel(form, dtype, device, optimizer)
                for optimizer in OPTIMIZERS.values()
                if optimizer.clip_norm is None
            ]
    return list(dict.fromkeys(kernels))


def _build(runtime: Runtime, dtype: np.dtype[Any]) -> None:
    """Build what will be launched, several at a time; what cannot be built fails later."""
    kernels = launched(runtime.device, dtype)
    if self_check.is_stand_in():
        from .testing import twins

        twins.together(kernels)
    with suppress(Exception):
        runtime.prepare(kernels)
