"""The equations on a CUDA device: the kernels of ``kernels/cuda`` on device arrays.

`CudaBackend` knows the kernels, their grids and their arguments; `cuda.runtime` knows the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np

from .. import activations, costs, planning
from ..activations import Activation
from ..costs import Cost
from ..cuda.arrays import DeviceArray
from ..cuda.blas import BF16, WORKSPACE, mask_bytes
from ..cuda.catalogue import Catalogue, Kernel
from ..cuda.runtime import Runtime
from ..imports import uninterrupted
from ..optimizers import COEFFICIENTS, Optimizer
from ..parameters import Parameters
from ..philox import Draws, scale, threshold
from ..precision import resolve

Array = Any

#: Blocks, of eight warps each, that C takes at most: enough to fill a device.
_COST_BLOCKS = 1024


class CudaEpoch:
    """Order, weights, coefficients, costs and step number of an epoch, in device memory."""

    def __init__(self, runtime: Runtime, rows: int, batch: int) -> None:
        steps = ceil(rows / batch)
        self._runtime = runtime
        self.batch, self.whole = batch, rows // batch
        self.order = runtime.empty(rows, np.int32)
        #: Of the rows, in their order; there from the first epoch on that has some.
        self.weights: DeviceArray | None = None
        #: What `draws` has for the kernels: its key's two words, and the number of the first step.
        self.key: DeviceArray | None = None
        self.draws: Draws | None = None
        self.coefficients = runtime.empty((steps, COEFFICIENTS), np.float64)
        self.step_costs = runtime.empty(steps, np.float64)
        self.step = runtime.zeros(1, np.int32)

    def load(
        self,
        order: np.ndarray,
        coefficients: np.ndarray,
        weights: np.ndarray | None = None,
        draws: Draws | None = None,
    ) -> None:
        self.draws = draws
        if draws is not None:
            if self.key is None:
                self.key = self._runtime.empty(3, np.uint32)
            words = np.array([*draws.words(), draws.first_step], np.uint32)
            self._runtime.upload(words, self.key)
        self._runtime.upload(order.astype(np.int32), self.order)
        if weights is not None:
            if self.weights is None:
                self.weights = self._runtime.empty(len(order), weights.dtype)
            self._runtime.upload(np.ascontiguousarray(weights), self.weights)
        self._runtime.upload(np.ascontiguousarray(coefficients), self.coefficients)
        self._runtime.clear(self.step)

    def costs(self) -> np.ndarray:
        done = int(self._runtime.to_numpy(self.step)[0])
        return self._runtime.to_numpy(self.step_costs)[:done]


class CudaBackend:
    """Runs each equation with the kernel that `planning.choose_product` chooses.

    Parameters
    ----------
    dtype : float32 or float64
    runtime : Runtime
    choose : callable, optional
        How products are formed that no plan names; the tests use it to try every kernel.
    precision : str, optional
        What factors of products are rounded to, if they are.
    """

    name = "cuda"

    def __init__(
        self,
        dtype: Any,
        runtime: Runtime,
        choose: Callable[..., planning.Product] = planning.choose_product,
        precision: str | None = None,
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.precision = resolve(precision, self.dtype)
        self.runtime = runtime
        self.device = runtime.device
        self._kernels = Catalogue(self.dtype, self.precision)
        self._choose = choose
        self.scratch: Callable[[int, Any], Array] = runtime.empty
        self._scratch: dict[tuple[str, int], Array] = {}
        self._captured: dict[Callable[[], None], Callable[[], None]] = {}
        self._ran: set[Callable[[], None]] = set()

    # -- memory -----------------------------------------------------------------

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        return self.runtime.array(host, self.dtype if dtype is None else dtype)

    def to_numpy(self, array: Array) -> np.ndarray:
        return self.runtime.to_numpy(array)

    def empty(self, shape: Sequence[int]) -> Array:
        return self.runtime.empty(tuple(shape), self.dtype)

    def zeros(self, shape: Sequence[int]) -> Array:
        return self.runtime.zeros(tuple(shape), self.dtype)

    def copy(self, source: Array, out: Array) -> None:
        self.runtime.copy(source, out)

    def all_finite(self, array: Array) -> bool:
        blocks = min(256, ceil(array.size / 256))
        parts = self.scratch_array("finite parts", blocks, np.int32)
        self.runtime.launch(
            self._kernels.all_finite(), (blocks, 1, 1), (array, parts, np.int64(array.size))
        )
        return bool(self.to_numpy(parts).all())

    def sum_of_squares(self, array: Array) -> float:
        return float(self.to_numpy(self._squares(array, np.inf)).sum())

    def fork(self) -> CudaBackend:
        self.runtime.use()
        return type(self)(self.dtype, self.runtime, self._choose, self.precision)

    def with_rounded(self, array: DeviceArray) -> DeviceArray:
        """The array with a copy as the library's products take it, yet to be written, if rounded.

        Who writes such an array writes both; a copy that is not there is made for each product.
        """
        if self.precision != "bf16":
            return array
        return array.beside(self.runtime.empty(array.shape, BF16))

    def round(self, array: DeviceArray) -> None:
        """Write the array's copy, if it has one."""
        self.runtime.round(array)

    def empty_mask(self, m: int, n: int) -> Array:
        """For ReLU's bits of an (m, n) activation."""
        return self.runtime.empty((m, mask_bytes(n)), np.uint8)

    def scratch_array(self, name: str, size: int, dtype: Any = None, zeros: bool = False) -> Array:
        """A flat scratch array for one purpose, kept as long as the backend; zeroed first, or not.

        Never replaced by a larger one: a captured step may hold its address.
        """
        array = self._scratch.get((name, size))
        if array is None:
            array = self._scratch[name, size] = self.scratch(size, dtype or self.dtype)
            if zeros:
                self.runtime.clear(array)
        return array

    # -- launches ---------------------------------------------------------------

    def _map(self, kernel: Kernel, count: int, *arguments: Any) -> None:
        """Launch over `count` elements."""
        self.runtime.launch(kernel, (kernel.blocks(count), 1, 1), arguments)

    def _rows(self, kernel: Kernel, m: int, *arguments: Any) -> None:
        """Launch with a warp per row."""
        self.runtime.launch(kernel, (ceil(m / kernel.block[1]), 1, 1), arguments)

    def _scalar(self, value: float) -> Any:
        return self.dtype.type(value)

    def _chosen(self, layout: planning.Transposes, m: int, n: int, k: int) -> planning.Product:
        """How a product is formed that no plan names."""
        return self._choose(
            layout, m, n, k, self.dtype.itemsize, self.device, self.device.library, self.precision
        )

    def algorithm(
        self, layout: planning.Transposes, m: int, n: int, k: int, epilogue: planning.Epilogue = ""
    ) -> str | None:
        """Which algorithm the library takes for a product, by its own numbering; None for none."""
        return self.runtime.algorithm(layout, m, n, k, self.dtype, self.precision, epilogue)

    def _multiply(
        self,
        layout: planning.Transposes,
        a: Array,
        b: Array,
        out: Array,
        scale: float = 1.0,
        **epilogue: Any,
    ) -> None:
        """A product by the library."""
        workspace = self.scratch_array("workspace", WORKSPACE, np.uint8)
        if self.precision == "bf16":
            a, b = self._rounded("first factor", a), self._rounded("second factor", b)
        self.runtime.product(
            layout, a, b, out, scale, workspace, precision=self.precision, **epilogue
        )

    def _rounded(self, name: str, array: DeviceArray) -> DeviceArray:
        """The array as a product in bf16 takes it."""
        if array.rounded is not None:
            return array.rounded
        rounded: DeviceArray = self.scratch_array(name, array.size, BF16).reshape(array.shape)
        self.runtime.round(array, rounded)
        return rounded

    # -- the equations ------------------------------------------------------------

    def forward(
        self,
        w: Array,
        b: Array,
        a_prev: Array,
        activation: Activation,
        z: Array | None,
        a: Array,
        *,
        product: planning.Product | None = None,
        mask: Array | None = None,
    ) -> None:
        (m, k), n = a_prev.shape, len(b)
        how = product or self._chosen("NT", m, n, k)
        # Softmax is a kernel of its own, from z to a.
        sigma = activation if activation.elementwise else _IDENTITY
        z_out = z if activation.elementwise else None
        target = a if activation.elementwise or z is None else z
        sizes = np.int32(m), np.int32(n)
        if how.tile is not None:
            self.runtime.launch(
                self._kernels.forward(sigma, how.tile),
                (ceil(m / how.tile.bm), ceil(n / how.tile.bn), 1),
                (w, b, a_prev, z_out, target, *sizes, np.int32(k)),
            )
        elif how.epilogue:
            self._multiply("NT", a_prev, w, target, epilogue=how.epilogue, bias=b, mask=mask)
            if z_out is not None:  # of the identity
                self.runtime.copy(target, z_out)
        else:
            self._multiply("NT", a_prev, w, target)
            rounded = target.rounded if activation.elementwise else None
            self._map(
                self._kernels.bias_activation(sigma),
                m * n, target, b, z_out, target, rounded, *sizes,
            )  # fmt: skip
        if not activation.elementwise:
            self._rows(self._kernels.softmax(), m, target, a, *sizes)
        elif how.tile is None and not how.epilogue:
            return  # the map has rounded
        self.round(a)

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
        m, n = a.shape
        sizes = np.int32(m), np.int32(n)
        self._output_error(z, a, y, activation, cost, out)
        if weights is not None:
            self._map(self._kernels.scale_rows(), m * n, weights, out, *sizes)
        self.round(out)

    def _output_error(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        out: Array,
    ) -> None:
        m, n = a.shape
        sizes = np.int32(m), np.int32(n)
        if costs.collapses(activation, cost):
            self._map(self._kernels.collapsed_output_error(), m * n, a, y, out, *sizes)
        elif not cost.builtin:
            self.runtime.copy(self._of_user(_gradient(cost), a, y), out)
            self.pull_back(z, a, activation, out)
        elif activation.elementwise:
            assert isinstance(cost, costs.BuiltinCost)
            saved = _saved(z, a, activation)
            if cost.couples == "row":
                kernel = self._kernels.row_output_error(activation, cost)
                self._rows(kernel, m, saved, a, y, out, *sizes)
            elif cost.couples == "pair":
                kernel = self._kernels.pair_output_error(activation, cost)
                self._map(kernel, m * n // 2, saved, a, y, out, *sizes)
            else:
                kernel = self._kernels.output_error(activation, cost)
                self._map(kernel, m * n, saved, a, y, out, *sizes)
        else:
            self._rows(self._kernels.row_output_error(activation, cost), m, a, a, y, out, *sizes)

    def pull_back(self, z: Array | None, a: Array, activation: Activation, delta: Array) -> None:
        """δ holds ∂C/∂a and becomes ∂C/∂z."""
        m, n = a.shape
        sizes = np.int32(m), np.int32(n)
        if activation.elementwise:
            saved = _saved(z, a, activation)
            self._map(
                self._kernels.pull_back(activation), m * n, saved, delta, delta.rounded, *sizes
            )
        else:
            self._rows(self._kernels.softmax_pull_back(), m, a, delta, *sizes)
            self.round(delta)

    def hidden_error(
        self,
        w_next: Array,
        delta_next: Array,
        z: Array | None,
        a: Array,
        activation: Activation,
        out: Array,
        *,
        product: planning.Product | None = None,
        mask: Array | None = None,
        biases: Array | None = None,
    ) -> None:
        (m, k), n = delta_next.shape, w_next.shape[1]
        how = product or self._chosen("NN", m, n, k)
        if how.epilogue:
            self._multiply(
                "NN", delta_next, w_next, out, epilogue=how.epilogue, bias=biases, mask=mask
            )
            self.round(out)
            self._sum_splits(1, 1.0 / m, biases, biases)
            return
        tile = how.tile
        if tile is None:
            self._multiply("NN", delta_next, w_next, out)
            self.pull_back(z, a, activation, out)
            return
        sigma = activation if activation.elementwise else _IDENTITY
        self.runtime.launch(
            self._kernels.hidden_error(sigma, tile),
            (ceil(m / tile.bm), ceil(n / tile.bn), 1),
            (
                w_next, delta_next, _saved(z, a, sigma), out,
                np.int32(m), np.int32(n), np.int32(k),
            ),
        )  # fmt: skip
        if not activation.elementwise:
            self.pull_back(z, a, activation, out)
        else:
            self.round(out)

    def bias_gradient(self, delta: Array, out: Array) -> None:
        m, n = delta.shape
        splits = planning.column_splits(m, n, self.device)
        rows = ceil(m / splits)
        parts = out if splits == 1 else self.scratch_array("bias parts", splits * n)
        scale = 1.0 / m if splits == 1 else 1.0
        self.runtime.launch(
            self._kernels.bias_gradient(),
            (ceil(n / 32), splits, 1),
            (delta, parts, np.int32(m), np.int32(n), np.int32(rows), self._scalar(scale)),
        )
        if splits > 1:
            self._sum_splits(splits, 1.0 / m, parts, out)

    def weight_gradient(
        self,
        delta: Array,
        a_prev: Array,
        out: Array,
        biases: Array | None = None,
        *,
        product: planning.Product | None = None,
    ) -> None:
        (m, n), k = delta.shape, a_prev.shape[1]
        how = product or self._chosen("TN", n, k, m)
        if how.tile is None:
            beside = how.epilogue if biases is not None else ""
            bias = biases if beside else None
            self._multiply("TN", delta, a_prev, out, 1.0 / m, epilogue=beside, bias=bias)
            if beside:
                self._sum_splits(1, 1.0 / m, biases, biases)
            elif biases is not None:
                self.bias_gradient(delta, biases)
            return
        tile, splits = how.tile, how.splits
        rows = ceil(ceil(m / splits) / tile.bk) * tile.bk
        parts, bias_parts = out, biases
        if splits > 1:
            parts = self.scratch_array("weight parts", splits * n * k)
            bias_parts = None if biases is None else self.scratch_array("bias parts", splits * n)
        scale = 1.0 / m if splits == 1 else 1.0
        self.runtime.launch(
            self._kernels.weight_gradient(tile),
            (ceil(n / tile.bm), ceil(k / tile.bn), splits),
            (
                delta, a_prev, parts, bias_parts,
                np.int32(m), np.int32(n), np.int32(k), np.int32(rows), self._scalar(scale),
            ),
        )  # fmt: skip
        if splits > 1:
            self._sum_splits(splits, 1.0 / m, parts, out, bias_parts, biases)

    def _sum_splits(
        self,
        splits: int,
        scale: float,
        parts: Array,
        out: Array,
        more_parts: Array | None = None,
        more_out: Array | None = None,
    ) -> None:
        more = 0 if more_out is None else more_out.size
        self._map(
            self._kernels.sum_splits(), out.size + more,
            parts, out, np.int64(out.size), more_parts, more_out, np.int32(more),
            np.int32(splits), self._scalar(scale),
        )  # fmt: skip

    def hadamard(self, s: Array, t: Array, out: Array) -> None:
        self._map(self._kernels.hadamard(), s.size, s, t, out, np.int64(s.size))

    # -- derivatives beyond those -----------------------------------------------------

    def multiply(self, u: Array, w: Array, out: Array) -> None:
        zeros = self.scratch_array("zeros", len(w), zeros=True)
        self.forward(w, zeros, u, _IDENTITY, None, out)

    def slopes(
        self, z: Array | None, a: Array, activation: Activation, outs: Sequence[Array]
    ) -> None:
        if activation.builtin:
            self._map(
                self._kernels.slopes(activation), a.size,
                _saved(z, a, activation), *outs, *[None] * (3 - len(outs)), np.int64(a.size),
            )  # fmt: skip
            return
        assert z is not None, "a user's σ' is computed from z"
        functions = (activation.derivative, activation.higher[2], activation.higher[3])
        for function, out in zip(functions, outs, strict=False):
            assert function is not None, "the caller has asked `check_order`"
            self.runtime.copy(self._of_user(function, z), out)

    def tangent(
        self,
        slope: Array,
        t: Array,
        more: Array | None,
        out: Array,
        bend: Array | None = None,
        error: Array | None = None,
    ) -> None:
        count = np.int64(t.size)
        self._map(self._kernels.tangent(), t.size, slope, t, more, bend, error, out, count)

    def directions(self, slopes: Sequence[Array], u: Array, out: Array) -> None:
        first, second = (*slopes, None)[:2]
        self._along(self._kernels.directions(), out, u, first, second, u, out)

    def directions_error(self, slopes: Sequence[Array], u: Array, out: Array, error: Array) -> None:
        self._along(self._kernels.directions_error(), out, u, *slopes, u, out, error)

    def _along(self, kernel: Kernel, out: Array, u: Array, *arrays: Array | None) -> None:
        """Launch with a thread for every j of every sample."""
        count, m, n = out.shape
        shared = np.int32(u.shape[1] != m)
        self._map(kernel, m * n, *arrays, np.int32(m), np.int32(n), np.int32(count), shared)

    def row_norms(self, x: Array, out: Array) -> None:
        m, n = x.shape
        self._rows(self._kernels.row_norms(), m, x, out, np.int32(m), np.int32(n))

    def cost(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        weights: Array | None = None,
    ) -> float:
        result = self.scratch_array("cost", 1, np.float64)
        first = self.scratch_array("first step", 1, np.int32, zeros=True)
        self._cost(z, a, y, activation, cost, result, first, weights)
        return float(self.to_numpy(result)[0])

    def _cost(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        result: Array,
        step: Array,
        weights: Array | None,
    ) -> None:
        m, n = a.shape
        if cost.builtin:
            kernel = self._kernels.mean_cost(
                cost, from_z=z is not None and costs.collapses(activation, cost)
            )
        else:
            kernel, n = self._kernels.mean_of_samples(), 1
            a = y = self._of_user(cost.samples, a, y)
        blocks = min(_COST_BLOCKS, ceil(m / kernel.block[1]))
        parts = self.scratch_array("cost parts", blocks * kernel.block[1], np.float64)
        finished = self.scratch_array("finished blocks", 1, np.uint32, zeros=True)
        self.runtime.launch(
            kernel,
            (blocks, 1, 1),
            (z, a, y, weights, parts, finished, result, step, np.int32(m), np.int32(n)),
        )

    def _of_user(self, function: Callable[..., Any], *arrays: DeviceArray) -> Array:
        """A user's function(*arrays), on CuPy arrays or, without CuPy, on copies on the host."""
        cupy = usable_cupy()
        if cupy is None:
            return self.asarray(function(*map(self.to_numpy, arrays)))
        stream = cupy.cuda.ExternalStream(int(self.runtime.stream.handle))
        with stream:
            given = (cupy.asarray(_OnOneStream(array)) for array in arrays)
            return self.asarray(cupy.ascontiguousarray(function(*given)))

    # -- one step of an epoch -----------------------------------------------------

    def epoch(self, rows: int, batch: int) -> CudaEpoch:
        return CudaEpoch(self.runtime, rows, batch)

    def gather(
        self,
        X: Array,
        Y: Array,
        epoch: CudaEpoch,
        x: Array,
        y: Array,
        weights: Array | None = None,
        ahead: int = 0,
    ) -> None:
        """The rows of this step, or of the one `ahead`, if there is a whole one."""
        sizes = epoch.batch, len(x), x.shape[1], y.shape[1], ahead, epoch.whole
        kernel = self._kernels.gather()
        self.runtime.launch(
            kernel,
            (sum(kernel.blocks(out.size) for out in (x, y, weights) if out is not None), 1, 1),
            (
                X,
                Y,
                epoch.order,
                epoch.weights,
                epoch.step,
                x,
                x.rounded,
                y,
                weights,
                *map(np.int32, sizes),
            ),
        )

    def record_cost(
        self,
        z: Array | None,
        a: Array,
        y: Array,
        activation: Activation,
        cost: Cost,
        epoch: CudaEpoch,
        weights: Array | None = None,
    ) -> None:
        self._cost(z, a, y, activation, cost, epoch.step_costs, epoch.step, weights)

    def drop_out(
        self, source: Array, out: Array, layer: int, epoch: CudaEpoch, first_row: int = 0
    ) -> None:
        assert epoch.draws is not None
        rate, (m, n) = epoch.draws.rates[layer - 1], source.shape
        kernel = self._kernels.dropout()
        self.runtime.launch(
            kernel,
            (ceil(m * ceil(n / 4) / kernel.threads), 1, 1),
            (
                source, out, out.rounded, epoch.key, epoch.step, np.uint32(threshold(rate)),
                self._scalar(scale(rate)), *map(np.int32, (layer, first_row, m, n)),
            ),
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
        array = self.runtime.array
        numbers = array(rows, np.int32), array(partners, np.int32), array(shares, self.dtype)
        for source, out in ((X, x), (Y, y)):
            n = out.shape[1]
            kernel = self._kernels.mix(source.dtype == np.uint8)
            count = len(rows) * n
            self._map(kernel, count, source, *numbers, out, np.int64(count), np.int32(n))

    def update(
        self,
        parameters: Parameters,
        gradients: Parameters,
        slots: tuple[Array, ...],
        optimizer: Optimizer,
        epoch: CudaEpoch,
    ) -> None:
        if optimizer.gradient_noise:
            self._add_noise(gradients, epoch)
        count = parameters.layout.length
        clip_value = np.inf if optimizer.clip_value is None else optimizer.clip_value
        scale = None
        if optimizer.clip_norm is not None:
            scale = self.scratch_array("clip scale", 1)
            parts = self._squares(gradients.flat, clip_value)
            self.runtime.launch(
                self._kernels.clip_scale(),
                (1, 1, 1),
                (parts, scale, np.int32(parts.size), np.float64(optimizer.clip_norm)),
            )
        first, second = (*slots, None, None)[:2]
        self._map(
            self._kernels.update(optimizer.rule), count,
            parameters.flat, parameters.flat.rounded, gradients.flat, first, second,
            epoch.coefficients, epoch.step, scale,
            np.int64(count), np.int64(parameters.layout.weights_end),
            *map(self._scalar, (clip_value, optimizer.l1)),
            *map(self._scalar, optimizer.kernel_constants),
        )  # fmt: skip
        if optimizer.max_norm is not None:
            limit = self._scalar(optimizer.max_norm)
            for w in parameters.weights:
                self._rows(
                    self._kernels.limit_norms(), len(w), w, w.rounded, limit,
                    *map(np.int32, w.shape),
                )  # fmt: skip

    def _add_noise(self, gradients: Parameters, epoch: CudaEpoch) -> None:
        kernel = self._kernels.add_noise()
        arrays = (*gradients.weights, *gradients.biases)
        for array, start in zip(arrays, gradients.layout.starts, strict=True):
            self.runtime.launch(
                kernel,
                (ceil(array.size / (4 * kernel.threads)), 1, 1),
                (
                    array, epoch.coefficients, epoch.step, epoch.key, np.uint32(start),
                    np.int32(array.size),
                ),
            )  # fmt: skip

    def _squares(self, array: Array, limit: float) -> Array:
        """Parts of Σ x², of numbers clipped at ± limit, in float64."""
        blocks = min(256, ceil(array.size / 256))
        parts = self.scratch_array("norm parts", blocks, np.float64)
        self.runtime.launch(
            self._kernels.squared_norm(),
            (blocks, 1, 1),
            (array, parts, np.int64(array.size), self._scalar(limit)),
        )
        return parts

    def advance(self, epoch: CudaEpoch) -> None:
        self.runtime.launch(self._kernels.advance(), (1, 1, 1), (epoch.step,))

    def repeat(self, step: Callable[[], None], times: int, captured: bool = True) -> None:
        for _ in range(times):
            replay = self._captured.get(step)
            if replay is None and captured and step in self._ran:
                replay = self._captured[step] = self.runtime.capture(step)
            # The first time a step runs as it is: it compiles kernels and makes scratch memory,
            # which a capture must not.
            (replay or step)()
            self._ran.add(step)

    def side_by_side(self, aside: Callable[[], None], work: Callable[[], None]) -> None:
        """Two works of which neither needs the other's results; in a captured step at one time."""
        self.runtime.side_by_side(aside, work)


class _OnOneStream:
    """An array for CuPy on the stream that fills it: for a named stream, CuPy blocks the host."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array  # whose memory CuPy's array is in
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | {"stream": None}


def _gradient(cost: Cost) -> Callable[[Any, Any], Any]:
    def gradient(a: Any, y: Any) -> Any:
        out = np.empty_like(a)  # of a's own kind
        cost.evaluate_gradient(a, y, out, out)
        return out

    return gradient


@lru_cache
def usable_cupy() -> Any:
    """CuPy, on which a user's cost may run; None where it is not installed or does not work."""
    try:
        with uninterrupted():
            import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as reason:  # its own library of the driver's, a folder it cannot write
        _log.warning("a cost of your own is computed on the host, without CuPy: %s", reason)
        return None
    return cupy


_log = logging.getLogger("backprop_gpu")
_IDENTITY = activations.get("identity")


def _saved(z: Array | None, a: Array, activation: Activation) -> Array:
    """What σ' is computed from."""
    return a if activation.derivative_from == "a" else z
