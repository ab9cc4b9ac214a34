"""A small network, its data, and the engines that an option of a training is tested in."""

from __future__ import annotations

import numpy as np
import pytest

from backprop_gpu import Network
from machine import obstacle

SIGMAS = ["sigmoid", "gelu", "softmax"]
#: (backend, engine, dtype).
ENGINES = [
    ("numpy", "layered", "float64"),
    ("numpy", "resident", "float64"),
    ("numpy", "resident", "float32"),
    pytest.param("numba_cuda", "layered", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "layered", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "layered", "float32", marks=pytest.mark.gpu),
    pytest.param("cuda", "resident", "float64", marks=pytest.mark.gpu),
    pytest.param("cuda", "resident", "float32", marks=pytest.mark.gpu),
    pytest.param("cuda", "fused", "float32", marks=pytest.mark.gpu),
    pytest.param("cuda", "persistent", "float32", marks=pytest.mark.gpu),
]


def skip_without(backend: str) -> None:
    if obstacle(backend) is not None:
        pytest.skip(f"backend {backend}: {obstacle(backend)}")


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    return rng.standard_normal((rows, 7)), rng.dirichlet(np.ones(3), rows)


def network(backend: str = "numpy", dtype: str = "float64", seed: int = 1) -> Network:
    return Network(
        [7, 21, 10, 3], activation=SIGMAS, dtype=dtype, seed=seed,
        cost="categorical_cross_entropy", backend=backend,
    )  # fmt: skip


def flat(net: Network) -> np.ndarray:
    return net.model.read(net.parameters)
