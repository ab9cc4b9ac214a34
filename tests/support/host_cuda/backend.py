"""The CUDA backend on NumPy arrays, without a driver: for sanitizers and for broken kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from backprop_gpu import planning
from backprop_gpu.cuda.blas import WORKSPACE
from backprop_gpu.cuda.catalogue import Kernel

from .runtime import KERNELS, HostRuntime, Sanitizer


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
        precision: str | None = None,
    ) -> None:  # fmt: skip
        assert workspace.nbytes == WORKSPACE
        if self._recording is not None:
            self._recording.append(lambda: self._multiply(layout, a, b, out, scale))
        else:
            self._multiply(layout, a, b, out, scale)

    @staticmethod
    def _multiply(layout: planning.Transposes, a: Any, b: Any, out: Any, scale: float) -> None:
        left, right = (a.T if layout == "TN" else a), (b.T if layout == "NT" else b)
        np.matmul(left, right, out=out)
        np.multiply(out, scale, out=out)

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

    def use(self) -> None: ...

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        """Fresh memory holds garbage, as a device's does: NaN and -1."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        return array

    def zeros(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def clear(self, array: np.ndarray) -> None:
        array[...] = 0

    def array(self, values: Any, dtype: Any = None) -> np.ndarray:
        return np.ascontiguousarray(values, dtype)

    def copy(self, source: np.ndarray, out: np.ndarray) -> None:
        out[...] = source

    def upload(self, host: np.ndarray, out: np.ndarray) -> None:
        assert self._recording is None, "an upload during a capture"
        out[...] = host

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        assert self._recording is None, "a download during a capture"
        return array.copy()
