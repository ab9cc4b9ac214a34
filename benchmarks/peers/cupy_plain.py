"""CuPy: the loop of plain NumPy, with arrays on the device."""

from __future__ import annotations

import numpy as np

from ..workloads import ProblemInstance, Workload
from . import DeviceType, absent
from .plain_numpy import Array, PlainTrainer


class PlainCuPy:
    name = "cupy"
    label = "plain CuPy"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        if device == "cpu":
            return "it runs on a CUDA device only"
        if reason := absent("cupy", "CuPy"):
            return reason
        import cupy

        return None if cupy.is_available() else "CuPy finds no CUDA device"

    def start(self, problem: ProblemInstance, device: DeviceType) -> PlainTrainer:
        return CuPyTrainer(problem)


class CuPyTrainer(PlainTrainer):
    def __init__(self, problem: ProblemInstance) -> None:
        import cupy

        super().__init__(problem, cupy)

    def run(self) -> None:
        super().run()
        self.xp.cuda.get_current_stream().synchronize()

    def to_numpy(self, array: Array) -> np.ndarray:
        host: np.ndarray = self.xp.asnumpy(array)
        return host
