"""The CUDA backend with its kernels run on the CPU: a backend for tests only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from backprop_gpu import planning
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.catalogue import Kernel

from .runtime import HostRuntime, Sanitizer


class BackendRuntime:
    """`HostRuntime` behind the interface that `CudaBackend` asks of a device.

    With ``library`` NumPy plays cuBLAS, so that the maps behind a library product run too.
    """

    xp = np

    def __init__(self, sanitizer: Sanitizer = "plain", library: bool = False) -> None:
        self.host = HostRuntime(sanitizer)
        self.device = dataclasses.replace(self.host.device, library=library)
        self.library = library
        self.launched: set[Kernel] = set()
        self._recording: list[Callable[[], None]] | None = None

    def launch(self, kernel: Kernel, grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
        self.launched.add(kernel)
        if self._recording is not None:
            self._recording.append(lambda: self._run(kernel, grid, block, arguments))
        else:
            self._run(kernel, grid, block, arguments)

    def _run(self, kernel: Kernel, grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
        self.host.launch(
            kernel.file, kernel.expression, grid, block, arguments, activation=kernel.activation
        )

    def product(self, layout: planning.Layout, a: Any, b: Any, out: Any, scale: float) -> None:
        if self._recording is not None:
            self._recording.append(lambda: self._multiply(layout, a, b, out, scale))
        else:
            self._multiply(layout, a, b, out, scale)

    @staticmethod
    def _multiply(layout: planning.Layout, a: Any, b: Any, out: Any, scale: float) -> None:
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

    def upload(self, host: np.ndarray, out: np.ndarray) -> None:
        assert self._recording is None, "an upload during a capture"
        out[...] = host

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        assert self._recording is None, "a download during a capture"
        return array.copy()


def create(dtype: np.dtype[Any]) -> CudaBackend:
    return CudaBackend(dtype, BackendRuntime())
