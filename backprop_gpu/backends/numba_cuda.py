"""The equations as the Numba CUDA kernels of ``kernels/numba_cuda``, one launch after another.

Made to be read and to be stepped through: with NUMBA_ENABLE_CUDASIM=1 in the
environment the same kernels run in Numba's simulator, without a GPU. For speed
there is the ``cuda`` backend.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numba
import numpy as np
from numba import cuda
from numba.core.errors import NumbaPerformanceWarning

from .. import activations, costs
from ..activations import Activation
from ..costs import Cost
from ..kernels.numba_cuda import (
    BLOCK,
    TILE,
    bias_gradient,
    dropout,
    forward,
    gather,
    hadamard,
    hidden_error,
    mix,
    output_error,
    update,
    weight_gradient,
)
from ..kernels.numba_cuda import activations as device_activations
from ..kernels.numba_cuda import cost as device_cost
from ..kernels.numba_cuda import costs as device_costs
from ..optimizers import COEFFICIENTS, Optimizer
from ..parameters import Parameters
from ..philox import Draws, scale, threshold
from .numpy import NumpyBackend

Array = Any  # numba.cuda.cudadrv.devicearray.DeviceNDArray, or the simulator's stand-in

# A mini-batch of a small network does not fill a device, and Numba says so at every launch.
warnings.filterwarnings("ignore", "Grid size .* low occupancy", NumbaPerformanceWarning)

_IDENTITY = activations.get("identity")
_TYPES = {"float32": numba.float32, "float64": numba.float64}

#: At most so many blocks add up squares before one block adds up their sums.
_PARTIALS = 256


class NumbaCudaEpoch:
    """Order, weights, coefficients and costs of an epoch, with the step number, on the device."""

    def __init__(self, rows: int, batch: int, dtype: np.dtype[Any]) -> None:
        steps = -(-rows // batch)
        self.batch = batch
        self.order = cuda.device_array(rows, np.int64)
        self.coefficients = cuda.device_array((steps, COEFFICIENTS), dtype)
        self.step = cuda.to_device(np.zeros(1, np.int32))
        self.step_costs = cuda.to_device(np.zeros(steps, np.float64))

    def load(
        self,
        order: np.ndarray,
        coefficients: np.ndarray,
        weights: np.ndarray | None = None,
        draws: Draws | None = None,
    ) -> None:
        self.draws = draws
        self.order.copy_to_device(np.ascontiguousarray(order, np.int64))
        self.weights = None if weights is None else cuda.to_device(np.ascontiguousarray(weights))
        self.coefficients.copy_to_device(
            np.ascontiguousarray(coefficients, self.coefficients.dtype)
        )
        self.step.copy_to_device(np.zeros(1, np.int32))

    def costs(self) -> np.ndarray:
        costs: np.ndarray = self.step_costs.copy_to_host()
        return costs[: self.step.copy_to_host()[0]]


class NumbaCudaBackend:
    """Runs each equation as a kernel launch on the default stream.

    Built-in activations and costs are compiled into the kernels. A user's σ and σ' are
    compiled by Numba for one scalar; a user's cost is evaluated on the host by NumPy,
    which copies a and y there for every batch.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    """

    name = "numba_cuda"

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.precision = self.dtype.name
        self.T = _TYPES[self.dtype.name]
        self._scratch: dict[str, Array] = {}
        self._sigmas: dict[Activation, tuple[Any, Any]] = {}

    # -- memory -----------------------------------------------------------------

    def asarray(self, host: Array, dtype: Any = None) -> Array:
        """The array on the device; one of this dtype that is already there is returned as it is."""
        dtype = self.dtype if dtype is None else dtype
        if getattr(host, "__cuda_ndarray__", False):
            if host.dtype == dtype and host.is_c_contiguous():
                return host
            host = host.copy_to_host()
        return cuda.to_device(np.ascontiguousarray(host, dtype))

    def to_numpy(self, array: Array) -> np.ndarray:
        host: np.ndarray = array.copy_to_host()
        return host

    def empty(self, shape: Sequence[int]) -> Array:
        return cuda.device_array(tuple(shape), self.dtype)

    def zeros(self, shape: Sequence[int]) -> Array:
        return cuda.to_device(np.zeros(tuple(shape), self.dtype))

    def copy(self, source: Array, out: Array) -> None:
        out.copy_to_device(source)

    def all_finite(self, array: Array) -> bool:
        return bool(np.isfinite(array.copy_to_host()).all())

    def sum_of_squares(self, array: Array) -> float:
        host = array.copy_to_host()
        return float(np.dot(host, host))

    def fork(self) -> NumbaCudaBackend:
        fork = type(self)(self.dtype)
        fork._sigmas = self._sigmas  # compiling a user's σ again would take long  # noqa: SLF001
        return fork

    def _buffer(self, name: str, size: int, dtype: Any) -> Array:
        """A small array of zeros, kept by name; earlier kernels are done with it."""
        buffer = self._scratch.get(name)
        if buffer is None:
            buffer = self._scratch[name] = cuda.to_device(np.zeros(size, dtype))
        return buffer

    # -- the equations ------------------------------------------------------------

    def forward(
        self,
        w: Array,
        b: Array,
        a_prev: Array,
        activation: Activation,
        z: Array | None,
        a: Array,
        **_: Any,
    ) -> None:
        sigma, _ = self.device_functions(activation)
        kernel = forward.make_forward(sigma, self.T, z is not None)
        kernel[_tiles(a.shape)](w, b, a_prev, a if z is None else z, a)
        if not activation.elementwise:
            softmax = device_activations.make_softmax(self.T)
            softmax[_blocks(a.shape[0])](a if z is None else z, a)

    def output_error(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        out: Array,
        weights: Array | None = None,
    ) -> None:
        self._output_error(z, a, y, activation, cost, out)
        if weights is not None:
            output_error.scale_rows[_tiles(out.shape)](weights, out)

    def _output_error(
        self, z: Array | None, a: Array, y: Array, activation: Activation, cost: Cost, out: Array
    ) -> None:
        if costs.collapses(activation, cost):
            functions = device_costs.functions("Quadratic", (), self.T)
            _, derivative = device_activations.builtin("identity", self.T)
            output_error.make_output_error(*functions, derivative)[_tiles(out.shape)](a, a, y, out)
            return
        if isinstance(cost, costs.BuiltinCost) and not cost.couples and not activation.elementwise:
            softmax = output_error.make_softmax_output_error(cost.kernel, cost.constants, self.T)
            softmax[_blocks(a.shape[0])](a, y, out)
            return
        if isinstance(cost, costs.BuiltinCost) and not cost.couples:
            functions = device_costs.functions(cost.kernel, cost.constants, self.T)
        elif isinstance(cost, costs.BuiltinCost):
            gradient = device_costs.make_row_gradient(cost.kernel, self.T)
            gradient[_blocks(a.shape[0])](a, y, out)
            functions, y = device_costs.given, out
        else:
            out.copy_to_device(self._gradient_on_host(a, y, cost))
            functions, y = device_costs.given, out
        _, derivative = self.device_functions(activation)
        kernel = output_error.make_output_error(*functions, derivative)
        kernel[_tiles(out.shape)](a if z is None else z, a, y, out)
        self._pull_back_rows(activation, a, out)

    def hidden_error(
        self,
        w_next: Array,
        delta_next: Array,
        z: Array | None,
        a: Array,
        activation: Activation,
        out: Array,
        **_: Any,
    ) -> None:
        _, derivative = self.device_functions(activation)
        kernel = hidden_error.make_hidden_error(derivative, self.T)
        kernel[_tiles(out.shape)](w_next, delta_next, a if z is None else z, a, out)
        self._pull_back_rows(activation, a, out)

    def bias_gradient(self, delta: Array, out: Array) -> None:
        kernel = bias_gradient.make_bias_gradient(self.T)
        kernel[-(-out.shape[0] // TILE), (TILE, TILE)](delta, out)

    def weight_gradient(
        self, delta: Array, a_prev: Array, out: Array, biases: Array | None = None, **_: Any
    ) -> None:
        if biases is not None:
            self.bias_gradient(delta, biases)
        weight_gradient.make_weight_gradient(self.T)[_tiles(out.shape)](delta, a_prev, out)

    def hadamard(self, s: Array, t: Array, out: Array) -> None:
        size = prod(out.shape)
        hadamard.hadamard[_blocks(size)](s.reshape(size), t.reshape(size), out.reshape(size))

    # Derivatives beyond those: what is elementwise is NumPy's, on copies on the host.

    def multiply(self, u: Array, w: Array, out: Array) -> None:
        self.forward(w, self.zeros((w.shape[0],)), u, _IDENTITY, None, out)

    def slopes(
        self, z: Array | None, a: Array, activation: Activation, outs: Sequence[Array]
    ) -> None:
        self._by_numpy("slopes", z, a, activation, list(outs), results=outs)

    def tangent(
        self,
        slope: Array,
        t: Array,
        more: Array | None,
        out: Array,
        bend: Array | None = None,
        error: Array | None = None,
    ) -> None:
        self._by_numpy("tangent", slope, t, more, out, bend, error, results=(t, out))

    def directions(self, slopes: Sequence[Array], u: Array, out: Array) -> None:
        self._by_numpy("directions", list(slopes), u, out, results=(out,))

    def directions_error(self, slopes: Sequence[Array], u: Array, out: Array, error: Array) -> None:
        self._by_numpy("directions_error", list(slopes), u, out, error, results=(out, error))

    def row_norms(self, x: Array, out: Array) -> None:
        self._by_numpy("row_norms", x, out, results=(out,))

    def _by_numpy(self, method: str, *arguments: Any, results: Sequence[Array]) -> None:
        """A method of `NumpyBackend` on copies on the host, and its results back."""
        copies: dict[int, np.ndarray] = {}

        def on_host(value: Any) -> Any:
            if isinstance(value, list):
                return [on_host(item) for item in value]
            if not hasattr(value, "copy_to_host"):
                return value
            return copies.setdefault(id(value), value.copy_to_host())

        getattr(NumpyBackend(self.dtype), method)(*map(on_host, arguments))
        for array in results:
            array.copy_to_device(copies[id(array)])

    def cost(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        weights: Array | None = None,
    ) -> float:
        if not cost.builtin:
            return self._cost_on_host(a, y, activation, cost, weights)
        first, result = self._buffer("first", 1, np.int32), self._buffer("cost", 1, np.float64)
        self._launch_cost(z, a, y, activation, cost, first, result, weights)
        return float(result.copy_to_host()[0])

    # -- one step of an epoch -------------------------------------------------------

    def epoch(self, rows: int, batch: int) -> NumbaCudaEpoch:
        return NumbaCudaEpoch(rows, batch, self.dtype)

    def gather(
        self,
        X: Array,
        Y: Array,
        epoch: NumbaCudaEpoch,
        x: Array,
        y: Array,
        weights: Array | None = None,
    ) -> None:
        for source, out in ((X, x), (Y, y)):
            gather.gather[_tiles(out.shape)](source, epoch.order, epoch.step, epoch.batch, out)
        if weights is not None:
            gather.gather_weights[_blocks(len(weights))](
                epoch.weights, epoch.step, epoch.batch, weights
            )

    def record_cost(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        epoch: NumbaCudaEpoch,
        weights: Array | None = None,
    ) -> None:
        if cost.builtin:
            self._launch_cost(z, a, y, activation, cost, epoch.step, epoch.step_costs, weights)
        else:
            step = int(epoch.step.copy_to_host()[0])
            value = np.array([self._cost_on_host(a, y, activation, cost, weights)])
            epoch.step_costs[step : step + 1].copy_to_device(value)

    def drop_out(
        self, source: Array, out: Array, layer: int, epoch: NumbaCudaEpoch, first_row: int = 0
    ) -> None:
        assert epoch.draws is not None
        rate, words = epoch.draws.rates[layer - 1], epoch.draws.words()
        dropout.make_dropout(self.T)[_tiles(out.shape)](
            source, out, epoch.step, np.uint32(epoch.draws.first_step), *map(np.uint32, words),
            np.uint32(threshold(rate)), self.dtype.type(scale(rate)), np.uint32(layer),
            np.uint32(first_row),
        )  # fmt: skip

    def mix(
        self,
        X: Array,
        Y: Array,
        rows: np.ndarray,
        partners: np.ndarray,
        shares: np.ndarray,
        x: Array,
        y: Array,
    ) -> None:
        given = [np.asarray(numbers, np.int64) for numbers in (rows, partners)]
        on_device = [cuda.to_device(array) for array in (*given, shares.astype(self.dtype))]
        for source, out in ((X, x), (Y, y)):
            shape = len(rows), out.shape[1]
            mix.make_mix(self.T)[_tiles(shape)](source, *on_device, out)

    def update(
        self,
        parameters: Parameters,
        gradients: Parameters,
        slots: tuple[Array, ...],
        optimizer: Optimizer,
        epoch: NumbaCudaEpoch,
    ) -> None:
        g = gradients.flat
        length = g.shape[0]
        number = self.dtype.type
        if optimizer.gradient_noise:
            self._add_noise(gradients, epoch)
        if optimizer.clip_value is not None:
            update.clip_value[_blocks(length)](g, number(optimizer.clip_value))
        if optimizer.clip_norm is not None:
            blocks = min(-(-length // BLOCK), _PARTIALS)
            partials = self._buffer("partials", _PARTIALS, np.float64)[:blocks]
            norm = self._buffer("norm", 1, np.float64)
            update.sum_of_squares[blocks, BLOCK](g, partials)
            update.norm[1, BLOCK](partials, norm)
            clip_norm = update.make_clip_norm(self.T)
            clip_norm[_blocks(length)](g, norm, np.float64(optimizer.clip_norm))
        constants: tuple[float, ...] = optimizer.constants[: len(slots)]  # μ, if there is a v
        if optimizer.rule in ("adam", "adamw"):
            beta1, beta2, epsilon = optimizer.constants
            constants = (beta1, 1.0 - beta1, beta2, 1.0 - beta2, epsilon)
        update.make_update(optimizer.rule, self.T)[_blocks(length)](
            parameters.flat,
            g,
            *slots,
            epoch.coefficients,
            epoch.step,
            parameters.layout.weights_end,
            number(optimizer.l1),
            *map(number, constants),
        )

        if optimizer.max_norm is not None:
            for w in parameters.weights:
                update.limit_norms[len(w), BLOCK](w, optimizer.max_norm)

    def _add_noise(self, gradients: Parameters, epoch: NumbaCudaEpoch) -> None:
        draws = epoch.draws
        assert draws is not None
        for array, start in zip(
            (*gradients.weights, *gradients.biases), gradients.layout.starts, strict=True
        ):
            dropout.make_add_noise(self.T)[_blocks(array.size)](
                array.reshape(array.size), epoch.coefficients, epoch.step,
                np.uint32(draws.first_step), *map(np.uint32, draws.words()), np.uint32(start),
            )  # fmt: skip

    def advance(self, epoch: NumbaCudaEpoch) -> None:
        gather.advance[1, 1](epoch.step)

    def repeat(self, step: Callable[[], None], times: int, captured: bool = True) -> None:
        """A plain loop: Numba's launches are not captured in a graph."""
        for _ in range(times):
            step()

    # -- device functions and what runs on the host -----------------------------------

    def device_functions(self, activation: Activation) -> tuple[Any, Any]:
        """(σ, σ') for the kernels. Softmax is the identity, followed by a map of rows."""
        if activation.builtin:
            name = activation.name if activation.elementwise else "identity"
            pair: tuple[Any, Any] = device_activations.builtin(name, self.T)
            return pair
        if activation not in self._sigmas:
            self._sigmas[activation] = self._compile(activation)
        return self._sigmas[activation]

    def _compile(self, activation: Activation) -> tuple[Any, Any]:
        """A user's (σ, σ'), compiled once here so that an error names the activation.

        Raises
        ------
        TypeError
            With Numba's message.
        """
        pair: tuple[Any, Any] = device_activations.user(
            activation.function, activation.derivative, self.T
        )
        if not hasattr(pair[0], "compile_device"):  # the simulator runs Python as it is
            return pair
        for what, compiled, arity in (("function", pair[0], 1), ("derivative", pair[1], 2)):
            try:
                compiled.compile_device((self.T,) * arity)
            except Exception as error:
                raise TypeError(
                    f"Numba cannot compile the {what} of activation {activation.name!r} for a "
                    f"scalar on a CUDA device: {error}"
                ) from error
        return pair

    def _pull_back_rows(self, activation: Activation, a: Array, error: Array) -> None:
        """Softmax's part of error ← error ⊙ σ'(z)."""
        if not activation.elementwise:
            kernel = device_activations.make_softmax_pull_back(self.T)
            kernel[_blocks(a.shape[0])](a, error)

    def _launch_cost(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        step: Array,
        out: Array,
        weights: Array | None,
    ) -> None:
        assert isinstance(cost, costs.BuiltinCost)
        from_z = z is not None and activation.name == cost.partner
        sample = device_costs.sample(cost.kernel, cost.constants, self.T, from_z)
        kernel = device_cost.make_cost(sample, weights is not None)
        given = out if weights is None else weights  # which then nobody reads
        kernel[1, BLOCK](z if from_z else a, a, y, given, step, out)

    # A user's cost sums over a row in whatever way it likes, so it cannot be compiled for
    # one scalar: NumPy evaluates it on the host. Slow, and the only such thing here.

    def _cost_on_host(
        self, a: Array, y: Array, activation: Activation, cost: Cost, weights: Array | None
    ) -> float:
        a, y = a.copy_to_host(), y.copy_to_host()
        w = None if weights is None else weights.copy_to_host()
        return cost.mean(None, a, y, activation, (np.empty_like(a), np.empty_like(a)), w)

    def _gradient_on_host(self, a: Array, y: Array, cost: Cost) -> np.ndarray:
        a, y = a.copy_to_host(), y.copy_to_host()
        out: np.ndarray = np.empty_like(a)
        cost.evaluate_gradient(a, y, out, np.empty_like(a))
        return out


def _tiles(shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(grid, block) of TILE × TILE threads over a matrix, tiles along rows first."""
    rows, columns = shape
    return (-(-rows // TILE), -(-columns // TILE)), (TILE, TILE)


def _blocks(length: int) -> tuple[int, int]:
    """(grid, block) of BLOCK threads over a flat array or the rows of a matrix."""
    return -(-length // BLOCK), BLOCK
