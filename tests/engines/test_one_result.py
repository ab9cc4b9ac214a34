"""The CPU's engine and the resident CUDA kernel train to the same bits.

Random networks, in any form that the kernel can have. Here g++ has compiled it, unless there is a
GPU.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

from backprop_gpu import activations, costs, planning
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.backends.numpy import NumpyBackend
from backprop_gpu.cuda.catalogue import RULES
from backprop_gpu.engines.resident_cpu import ResidentCpuEngine
from backprop_gpu.optimizers import SGD, Adam, AdamW, Optimizer
from backprop_gpu.planning import residency
from backprop_gpu.testing import twins
from machine import device_runtime
from reference import ACTIVATIONS, ENGINE_PAIRS
from resident_cases import Form, Run

#: Each is a kernel, and trains so many networks.
FORMS, MEMBERS = 20, 5
HIDDEN = tuple(name for name in ACTIVATIONS if activations.get(name).elementwise)

pytestmark = pytest.mark.gpu


def _optimizer(rule: str, rng: np.random.Generator) -> Optimizer:
    """Of a rule, with any penalties and limits that the kernel has."""
    penalties: dict[str, Any] = {}
    if rng.integers(2):
        penalties["clip_value"] = float(rng.choice([0.001, 0.05]))
    for name in ("l1", "l2"):
        if rng.integers(2):
            penalties[name] = float(rng.choice([0.001, 0.1]))
    if rule == "adam":
        return Adam(**penalties)
    if rule == "adamw":
        return AdamW(**penalties, weight_decay=0.1)
    return SGD(momentum=0.0 if rule == "sgd" else 0.8, nesterov=rule == "nesterov", **penalties)


def _form(number: int) -> Form:
    """The first of those drawn that fits into a block."""
    drawn = (_drawn(number, again) for again in itertools.count())
    return next(form for form in drawn if _bytes(form) <= planning.H200.shared_memory)


def _bytes(form: Form) -> int:
    itemsize = np.dtype(_dtype(form)).itemsize
    return residency.block_bytes(  # `Form.plan` is for rules of any state
        form.sizes, form.batch, itemsize, 2, form.cluster, 3, form.cut,
        1 if form.bytes else itemsize, form.apart,
    )  # fmt: skip


def _drawn(number: int, again: int) -> Form:
    rng = np.random.default_rng([number, again])

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    layers = 1 + number % 4
    sizes = tuple(rng.integers(1, 71, layers + 1).tolist())
    last, cost = ENGINE_PAIRS[number % len(ENGINE_PAIRS)]
    rule = tuple(RULES)[number % len(RULES)]
    blocks = one_of(1, 2, 4)
    batch = int(rng.integers(1, 41))
    hidden = [HIDDEN[(3 * number + l) % len(HIDDEN)] for l in range(layers - 1)]
    return Form(
        f"{number}", sizes, (*hidden, last), cost,
        tuple(_optimizer(rule, rng) for _ in range(MEMBERS)),
        batch=batch, rows=batch + int(rng.integers(1, 2 * batch + 1)), threads=one_of(32, 64, 96),
        cut=(blocks * one_of(1, 2, 4), *(one_of(1, 2, 8) for _ in range(layers - 1))),
        tiles=tuple(
            (one_of(1, 2, 3), one_of(1, 2), one_of(1, 2), one_of(1, 2, 4)) for _ in range(layers)
        ),
        cluster=blocks, apart=blocks > 1 and bool(rng.integers(2)), stages=one_of(2, 3),
        bytes=number % 7 == 3,
    )  # fmt: skip


def _dtype(form: Form) -> str:
    return ("float32", "float64")[int(form.name) // 4 % 2]


RANDOM = tuple(map(_form, range(FORMS)))


@functools.cache
def _build_together() -> None:
    twins.together(kernel for form in RANDOM for kernel in form.kernels(_dtype(form)))


def _on_cpu(form: Form, dtype: str) -> list[np.ndarray]:
    backend = NumpyBackend(dtype)
    work = planning.cpu_work(form.sizes, form.batch, backend.dtype.itemsize, form.bytes, 2)
    plan = planning.Plan(
        "numpy", "", "resident", "", captured=False, sizes=form.sizes, dtype=dtype,
        batches=(planning.BatchPlan(form.batch, work=work),),
    )  # fmt: skip
    sigmas = tuple(map(activations.get, form.sigmas))
    engine = ResidentCpuEngine(backend, form.sizes, sigmas, costs.get(form.cost), plan)
    run = Run(form, backend, dtype)
    if form.bytes:
        run.X = run.X.astype(np.uint8)
    return run.train(engine)


@pytest.mark.parametrize("form", RANDOM, ids=lambda form: form.name)
def test_one_result(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    _build_together()
    dtype = _dtype(form)
    backend = CudaBackend(dtype, device_runtime())
    on_device = Run(form, backend, dtype).train(form.engine(backend))
    monkeypatch.setattr(residency, "all_slices", lambda *_: form.cut)
    for a, b in zip(on_device, _on_cpu(form, dtype), strict=True):
        assert a.dtype == b.dtype
        assert np.isfinite(a).all(), "a network diverged, and NaN has many bits"
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
