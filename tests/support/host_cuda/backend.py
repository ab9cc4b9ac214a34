"""The CUDA backend on NumPy arrays, without a driver: for sanitizers and for broken kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from backprop_gpu import planning
from backprop_gpu.cuda.blas import BF16, WORKSPACE
from backprop_gpu.cuda.catalogue import Catalogue, Kernel

from .runtime import KERNELS, HostRuntime, Sanitizer


class HostArray(np.ndarray):
    """An array that may have a copy in bf16 beside it, as a `DeviceArray` may, and so its views."""

    rounded: HostArray | None = None

    def beside(self, rounded: HostArray) -> HostArray:
        array = self.view()
        array.rounded = rounded
        return array

    def __getitem__(self, index: Any) -> Any:
        return self._with(super().__getitem__(index), lambda rounded: rounded[index])

    def reshape(self, *shape: Any, **order: Any) -> Any:
        view = super().reshape(*shape, **order)
        return self._with(view, lambda rounded: rounded.reshape(*shape, **order))

    def _with(self, view: Any, of: Callable[[HostArray], Any]) -> Any:
        if self.rounded is not None and isinstance(view, HostArray):
            view.rounded = of(self.rounded)
        return view


class BackendRuntime:
    """`HostRuntime` behind what `CudaBackend` asks of `cuda.runtime.Runtime`.

    Parameters
    ----------
    library : bool
        NumPy plays cuBLAS, so that the maps behind a library product run too.
    together : kernels
        When one of them is needed, all of its file are built: sooner than one by one.
    sources, timeout
        As in `HostRuntime`.
    """

    def __init__(
        self,
        sanitizer: Sanitizer = "plain",
        library: bool = False,
        together: Iterable[Kernel] = (),
        sources: Path = KERNELS,
        timeout: float | None = None,
    ) -> None:
        self.host = HostRuntime(sanitizer, sources, timeout=timeout)
        self._together = [(kernel.file, kernel.expression) for kernel in together]
        self.device = dataclasses.replace(self.host.device, library=library)
        self.launched: set[Kernel] = set()
        self._recording: list[Callable[[], None]] | None = None

    def launch(self, kernel: Kernel, grid: Any, arguments: tuple[Any, ...]) -> None:
        self.launched.add(kernel)
        if self._recording is not None:
            self._recording.append(lambda: self._run(kernel, grid, arguments))
        else:
            self._run(kernel, grid, arguments)

    def _run(self, kernel: Kernel, grid: Any, arguments: tuple[Any, ...]) -> None:
        if (kernel.file, kernel.expression) in self._together:
            self.host.prepare(pair for pair in self._together if pair[0] == kernel.file)
            self._together = [pair for pair in self._together if pair[0] != kernel.file]
        self.host.launch(
            kernel.file,
            kernel.expression,
            grid,
            kernel.block,
            arguments,
            shared_memory=kernel.shared_memory,
            activation=kernel.activation,
            cluster=(0, 0, 0) if kernel.cooperative else (kernel.cluster, 1, 1),
        )

    def product(
        self, layout: planning.Transposes, a: Any, b: Any, out: Any, scale: float, workspace: Any,
        precision: str | None = None, epilogue: planning.Epilogue = "", bias: Any = None,
        mask: Any = None,
    ) -> None:  # fmt: skip
        assert workspace.nbytes == WORKSPACE

        def multiply() -> None:
            left, right = (_numbers(x, precision) for x in (a, b))
            left, right = (left.T if layout == "TN" else left), right
            right = right.T if layout == "NT" else right
            np.matmul(left, right, out=out)
            np.multiply(out, scale, out=out)
            finish(epilogue, out, left, bias, mask)

        if self._recording is not None:
            self._recording.append(multiply)
        else:
            multiply()

    def algorithm(self, *_: Any) -> str:
        return "NumPy's"

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """As a CUDA graph: launches are recorded and not run, and nothing may wait for them."""
        self._recording = recorded = []
        try:
            step()
        finally:
            self._recording = None

        def replay() -> None:
            for launch in recorded:
                launch()

        return replay

    def side_by_side(self, aside: Callable[[], None], work: Callable[[], None]) -> None:
        """Which comes first must not matter."""
        for each in (aside, work) if self._recording is None else (work, aside):
            each()

    def use(self) -> None: ...

    def empty(self, shape: Any, dtype: Any) -> HostArray:
        """Fresh memory holds garbage, as a device's does: NaN and -1."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        return array.view(HostArray)

    def zeros(self, shape: Any, dtype: Any) -> HostArray:
        return np.zeros(shape, dtype).view(HostArray)

    def clear(self, array: HostArray) -> None:
        array[...] = 0
        if array.rounded is not None:
            array.rounded[...] = 0

    def array(self, values: Any, dtype: Any = None) -> HostArray:
        if isinstance(values, HostArray) and dtype in (None, values.dtype):
            return values
        return np.ascontiguousarray(values, dtype).view(HostArray)

    def copy(self, source: HostArray, out: HostArray) -> None:
        out[...] = source
        self.round(out)

    def round(self, array: HostArray, out: HostArray | None = None) -> None:
        out = array.rounded if out is None else out
        if out is not None and array.size:
            kernel = Catalogue(array.dtype).round()
            grid = (kernel.blocks(array.size), 1, 1)
            self.launch(kernel, grid, (array, out, np.int64(array.size)))

    def upload(self, host: np.ndarray, out: HostArray) -> None:
        assert self._recording is None, "an upload during a capture"
        out[...] = host
        self.round(out)

    def to_numpy(self, array: HostArray) -> np.ndarray:
        assert self._recording is None, "a download during a capture"
        return np.array(array)


def _numbers(factor: np.ndarray, precision: str | None) -> np.ndarray:
    """The numbers of a factor, which are kept as the bits of bf16 if products are of that."""
    factor = np.asarray(factor)
    if precision != "bf16":
        return factor
    assert factor.dtype == BF16, "a factor that nobody has rounded"
    return (factor.astype(np.uint32) << 16).view(np.float32)


def finish(
    epilogue: planning.Epilogue, out: np.ndarray, left: np.ndarray, bias: Any, mask: Any
) -> None:
    """What cuBLASLt does to a product besides, by the equations of its documentation."""
    if "BIAS" in epilogue:
        out += bias
    if epilogue == "RELU_AUX_BIAS":
        bits = np.packbits(np.asarray(out) > 0, axis=1, bitorder="little")
        mask[:, : bits.shape[1]] = bits
    if "RELU" in epilogue and "DRELU" not in epilogue:
        np.maximum(out, 0, out=out)
    if epilogue == "DRELU_BGRAD":
        kept = np.unpackbits(np.asarray(mask), axis=1, count=out.shape[1], bitorder="little")
        out[kept == 0] = 0
        bias[...] = out.sum(axis=0)
    if epilogue == "BGRADB":  # its B is our first factor, δᵀ
        bias[...] = left.sum(axis=1)
