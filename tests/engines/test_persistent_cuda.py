"""Epochs on the persistent CUDA kernel, run on the CPU, held against `layered`.

`persistent_cases.py` has the forms that run under the sanitizers, too, as cases of
`kernel_cases.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backprop_gpu import (
    Cost,
    activations,
    costs,
    planning,
)
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.cuda import compiler
from backprop_gpu.cuda.catalogue import RULES, Catalogue
from backprop_gpu.cuda.runtime import Runtime
from backprop_gpu.engines import persistent_cuda
from backprop_gpu.engines.persistent_cuda import PersistentCudaEngine
from backprop_gpu.optimizers import SGD
from backprop_gpu.parameters import Layout
from backprop_gpu.planning import H200, Device, Plan, persistence
from backprop_gpu.testing import twins
from fused_cases import Run, check, gentle
from machine import device_runtime
from persistent_cases import FORMS, Form
from reference import ACTIVATIONS, ENGINE_PAIRS, same_bits

CHOICE = planning.Choice("cuda", "it is there")
T4 = Device("T4", (7, 5), 40, 1.6e9, 3e11)
CASE = (784, 128, 128, 10)


# -- what it computes -------------------------------------------------------------------------


def _settings() -> list[Form]:
    """Every σ inside, every pair of last σ and cost, every rule."""
    bounded = ("exponential", "tanh")  # of large z it is no number
    others = (name for name in ACTIVATIONS if activations.get(name).elementwise)
    inside = (*bounded, *(name for name in others if name not in bounded))
    found = [((*inside, "identity"), "quadratic", "sgd")]
    found += [(("tanh", "sigmoid", last), cost, "sgd") for last, cost in ENGINE_PAIRS]
    found += [(("relu", "tanh", "softmax"), "categorical_cross_entropy", rule) for rule in RULES]
    return [
        Form(
            "-".join([*sigmas[-3:], cost, rule]), (18, *[9] * (len(sigmas) - 1), 4), sigmas, cost,
            (gentle(rule),), batch=30, rows=50, tiles=(16, 16, 16), grid=2,
        )
        for sigmas, cost, rule in dict.fromkeys(found)
    ]  # fmt: skip


def _random_form(number: int) -> Form:
    """Any shape, cut in any way."""
    rng = np.random.default_rng(number)

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    sizes = tuple(rng.integers(1, 151, rng.integers(2, 6)).tolist())
    hidden = ("sigmoid", "tanh", "relu", "elu", "gelu", "silu", "identity")
    batch = int(rng.integers(1, 150))
    return Form(
        f"random {number}", sizes,
        (*(one_of(*hidden) for _ in sizes[2:]), one_of("sigmoid", "softplus", "tanh")),
        "quadratic", (one_of(SGD(), SGD(momentum=0.5, l2=0.1)),) * int(rng.integers(1, 3)),
        batch=batch, rows=batch + int(rng.integers(0, 2 * batch)),
        tiles=tuple(one_of(*persistence.EXTENTS) for _ in range(3)),
        grid=int(rng.integers(1, 8)), precisions=(one_of("bf16", "tf32", "float32"),),
    )  # fmt: skip


SETTINGS = {form.name: form for form in _settings()}
RANDOM = tuple(map(_random_form, range(10)))


@functools.cache
def runtime() -> Runtime:
    """What these tests launch is built together, where g++ builds it."""
    kernels = [kernel for form in RANDOM for kernel in form.kernels()]
    kernels += [kernel for form in SETTINGS.values() for kernel in _of_bf16(form).kernels()]
    twins.together(list(dict.fromkeys(kernels)))
    return device_runtime()


def _of_bf16(form: Form) -> Form:
    return replace(form, precisions=("bf16",))


def _backend(precision: str = "bf16") -> CudaBackend:
    return CudaBackend("float32", runtime(), precision=precision)


def _train(form: Form, precision: str = "bf16") -> list[np.ndarray]:
    backend = _backend(precision)
    return Run(form, backend, "float32").train(form.engine(backend))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETTINGS)
def test_every_activation_cost_and_rule(name: str) -> None:
    check(_backend(), SETTINGS[name])


@pytest.mark.gpu
@pytest.mark.parametrize("form", RANDOM, ids=lambda form: form.name)
def test_any_shape_in_any_form(form: Form) -> None:
    (precision,) = form.precisions
    check(_backend(precision), form, ties=True)


# -- bits -------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_number_of_blocks_changes_no_bit() -> None:
    form = FORMS["tiles"]
    expected = _train(form)
    for grid in (1, 2, 7):
        same_bits(expected, _train(replace(form, grid=grid)))


def test_what_a_member_needs_of_scratch_does_not_overlap() -> None:
    """x twice; a, z where σ' is computed from it, and δ of hidden layers; z and δ of the last."""
    sigmas = [activations.get(name) for name in ("relu", "gelu", "relu", "softmax")]
    sizes, m = (7, 5, 6, 5, 9), 3
    table, length = persistent_cuda.layers(Layout(sizes), sigmas, m)
    assert table[:, 0].tolist() == list(sizes)
    assert table[:, 1].tolist() == [8, 8, 8, 8, 12]
    assert table[1:-1, 2].tolist() == [0, 1, 0]
    assert table[1:, 3].tolist() == list(Layout(sizes).weight_starts)
    assert table[1:, 4].tolist() == list(Layout(sizes).bias_starts)
    arrays = [(table[0, 5], 2 * m * 8)]
    arrays += [(row[at], m * row[1]) for row in table[1:-1] for at in (5, 7)]
    arrays += [(table[2, 6], m * 8), (table[-1, 6], m * 12), (table[-1, 7], m * 12)]
    ends = 0
    for begin, size in sorted(map(tuple, np.array(arrays).tolist())):
        assert begin == ends
        ends = begin + size
    assert ends == length


# -- when it is taken -------------------------------------------------------------------------


def _plan(
    sizes: Sequence[int] = CASE,
    precision: str = "float32",
    device: Device = H200,
    dtype: str = "float32",
    cost: Any = "quadratic",
    **run: Any,
) -> Plan:
    chosen = planning.Run(**{"rows": 60_000, "epochs": 1000, "batch_size": 128} | run)
    model: Any = SimpleNamespace(
        sizes=tuple(sizes), activations=(activations.get("relu"),) * (len(sizes) - 1),
        cost=costs.get(cost), dtype=np.dtype(dtype), precision=precision, device=device,
    )  # fmt: skip
    obstacles = {"persistent": PersistentCudaEngine.obstacle(model, chosen)}
    return planning.choose_plan(
        sizes, dtype, CHOICE, device, chosen, obstacles, precision=precision
    )


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_middling_networks_over_middling_batches(precision: str) -> None:
    plan = _plan(precision=precision)
    assert plan.engine == "persistent"
    assert not plan.captured
    assert "µs per step against" in plan.engine_reason
    assert "not resident, because" in plan.engine_reason
    form = plan.persistence(128)
    assert form.obstacle(CASE, 128, 4, H200, precision) is None
    assert plan.obstacle(planning.Run(60_000, 1000, 128), 4, H200) is None
    assert form.seconds(H200) < 12e-6
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float64", "precision": "float64"}, "computes in float32, and not in float64"),
        ({"step_callbacks": True}, "a callback after every batch"),
        ({"squares": True}, "does not sum w² at every step"),
        ({"options": frozenset(["clip_norm"])}, "clip_norm needs the norm"),
        ({"options": frozenset(["max_norm"])}, "max_norm needs all of a neuron's new weights"),
        ({"options": frozenset(["gradient_noise"])}, "draws no gradient_noise"),
        ({"cost": Cost("own", lambda a, y: a, lambda a, y: a)}, "cost 'own' is not built in"),
        ({"sizes": (3,) * 66}, "65 layers are more than 64"),
        ({"device": T4}, "T4 has no tensor cores for it"),
        ({"device": replace(H200, tensor_cores=False)}, "its tensor cores have failed"),
        ({"device": replace(H200, shared_memory=48 << 10)}, "needs 7. KB of shared memory"),
    ],
)
def test_why_not_persistent(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"engine 'persistent' cannot run this: .*{reason}"):
        _plan(engine="persistent", **changes)
    assert _plan(**changes).engine != "persistent"


def test_others_are_left_to_others() -> None:
    assert _plan((784, 30, 10), batch_size=10).engine == "resident"
    assert _plan((784, 30, 10), batch_size=128).engine == "persistent"
    assert _plan((4096,) * 5, precision="tf32", batch_size=8192).engine == "layered"
    assert _plan(epochs=1, rows=6000).engine == "layered"
    assert "would save" in _plan(epochs=1, rows=6000).engine_reason


def test_planning_and_the_kernel_mean_the_same() -> None:
    source = (compiler.folder() / "persistent.cu").read_text()
    assert f"constexpr int most_layers = {persistence.MOST_LAYERS};" in source


def test_more_members_take_longer_and_no_other_form() -> None:
    one, many = (_plan(members=members, engine="persistent").persistence(128) for members in (1, 9))
    assert one == many
    assert many.seconds(H200, 90) > 8 * many.seconds(H200, 1)
    assert one.blocks_for(1) <= one.grid == H200.multiprocessors


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_random_networks_get_forms_that_fit(precision: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        sizes = tuple(int(n) for n in rng.integers(1, 3000, rng.integers(2, 8)))
        m = int(rng.integers(1, 1 << 12))
        form = persistence.choose(sizes, m, H200, precision)
        assert not isinstance(form, str)
        assert form.obstacle(sizes, m, 4, H200, precision) is None
        assert 1 <= form.blocks_for(1) <= form.grid
        kernel = Catalogue(np.dtype("float32"), precision).persistent(
            form, [activations.get("relu")] * (len(sizes) - 2) + [activations.get("sigmoid")],
            costs.get("quadratic"), "sgd",
        )  # fmt: skip
        assert kernel.shared_memory == form.shared_memory
        assert len(form.phases(H200)) == 2 * len(sizes) - 1
