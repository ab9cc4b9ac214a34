"""The backend that launches the CUDA C++ kernels.

What each kernel computes is tried in `test_kernels.py`.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from backprop_gpu import Network
from backprop_gpu.cuda import catalogue
from backprop_gpu.cuda.catalogue import Kernel
from host_cuda.runtime import KERNELS
from kernel_cases import CASES, run_on_cuda
from machine import device_runtime
from reference import assert_close

pytestmark = pytest.mark.gpu


def test_the_cases_run_every_kernel(launched: list[Kernel]) -> None:
    for case in CASES:
        run_on_cuda(case, "float32", device_runtime(), limit=3000)
    text = "".join(path.read_text() for path in KERNELS.glob("*.cu"))
    kernels = set(re.findall(r"__global__ void\s*(?:__launch_bounds__\(.*\)\s*)?(\w+)\(", text))
    assert {kernel.expression.partition("<")[0] for kernel in launched} == kernels


def test_training_takes_every_path(launched: list[Kernel]) -> None:
    """A whole fit launches gathers, products, maps, costs and updates, and agrees with NumPy."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((70, 33)), rng.integers(0, 5, 70)
    nets = []
    for backend in ("numpy", "cuda"):
        net = Network(
            [33, 17, 9, 5], activation=["gelu", "relu", "softmax"], dtype="float64", seed=1,
            cost="categorical_cross_entropy", backend=backend,
        )  # fmt: skip
        net.fit(X, y, epochs=2, batch_size=32, learning_rate=0.05, optimizer="adam")
        nets.append(net)
    assert nets[1].plan.captured
    for got, exact in zip(nets[1].weights, nets[0].weights, strict=True):
        assert_close(got, exact, 1e-12)
    names = {kernel.expression.partition("<")[0] for kernel in launched}
    known = {k.expression.partition("<")[0] for k in catalogue.everything()}
    assert names <= known
    assert {"gather", "advance", "softmax", "mean_cost", "update"} <= names
