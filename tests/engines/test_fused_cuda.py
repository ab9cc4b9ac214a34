"""Steps on the fused CUDA kernel, run on the CPU, held against `layered`.

`fused_cases.py` has the forms that run under the sanitizers, too, as cases of `kernel_cases.py`.
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
    Network,
    activations,
    costs,
    planning,
)
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.cuda import compiler
from backprop_gpu.cuda.catalogue import RULES, Catalogue
from backprop_gpu.cuda.runtime import Runtime
from backprop_gpu.engines.fused_cuda import FusedCudaEngine
from backprop_gpu.optimizers import SGD
from backprop_gpu.planning import H200, Device, Plan, fusion
from backprop_gpu.testing import twins
from fused_cases import FORMS, Form, Run, check, gentle
from machine import device_runtime
from reference import ACTIVATIONS, ENGINE_PAIRS, same_bits

CHOICE = planning.Choice("cuda", "it is there")
T4 = Device("T4", (7, 5), 40, 1.6e9, 3e11)


# -- what it computes -------------------------------------------------------------------------


def _settings() -> list[Form]:
    """Every σ inside and last, every pair of last σ and cost, every rule."""
    elementwise = [name for name in ACTIVATIONS if activations.get(name).elementwise]
    found = [((name, "tanh", "identity"), "quadratic", "sgd") for name in elementwise]
    found += [(("tanh", "sigmoid", last), cost, "sgd") for last, cost in ENGINE_PAIRS]
    found += [(("relu", "tanh", "softmax"), "categorical_cross_entropy", rule) for rule in RULES]
    return [
        Form(
            "-".join([*sigmas, cost, rule]), (18, 7, 20, 4), sigmas, cost,
            (gentle(rule),), batch=30, rows=50, tile=16, warps=(1, 2),
        )
        for sigmas, cost, rule in dict.fromkeys(found)
    ]  # fmt: skip


def _random_form(number: int) -> Form:
    """Any shape, cut in any way."""
    rng = np.random.default_rng(number)

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    sizes = tuple(rng.integers(1, 81, rng.integers(2, 6)).tolist())
    hidden = ("sigmoid", "tanh", "relu", "elu", "gelu", "silu", "identity")
    tile, warps = one_of(
        (16, (1, 1)), (16, (1, 4)), (32, (2, 1)), (32, (1, 2)), (48, (1, 2)), (64, (4, 1)),
        (64, (2, 2)), (96, (6, 1)),
    )  # fmt: skip
    count = warps[0] * warps[1]
    sharers = tuple(
        one_of(*(s for s in (1, 2, 3, 4, 6) if count % s == 0)) for _ in range(len(sizes) - 1)
    )
    batch = int(rng.integers(1, 100))
    return Form(
        f"random {number}", sizes,
        (*(one_of(*hidden) for _ in sizes[2:]), one_of("sigmoid", "softplus", "tanh")),
        "quadratic", (one_of(SGD(), SGD(momentum=0.5, l2=0.1)),) * int(rng.integers(1, 3)),
        batch=batch, rows=batch + int(rng.integers(0, 2 * batch)), tile=tile, warps=warps,
        grid=int(rng.integers(1, 4)), sharers=sharers, in_registers=one_of(True, False),
        precisions=(one_of("bf16", "tf32", "float32"),),
    )  # fmt: skip


SETTINGS = {form.name: form for form in _settings()}
RANDOM = tuple(map(_random_form, range(12)))


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


def _train(form: Form, precision: str = "bf16", captured: bool = False) -> list[np.ndarray]:
    backend = _backend(precision)
    engine = form.engine(backend)
    engine.plan = replace(engine.plan, captured=captured)
    return Run(form, backend, "float32").train(engine)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETTINGS)
def test_every_activation_cost_and_rule(name: str) -> None:
    check(_backend(), SETTINGS[name])


@pytest.mark.gpu
@pytest.mark.parametrize("form", RANDOM, ids=lambda form: form.name)
def test_any_shape_in_any_form(form: Form) -> None:
    (precision,) = form.precisions
    check(_backend(precision), form)


# -- bits -------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_same_training_gives_the_same_bits() -> None:
    form = FORMS["blocks"]
    same_bits(_train(form), _train(form))
    same_bits(_train(form), _train(form, captured=True))


# -- when it is taken -------------------------------------------------------------------------


def _plan(
    sizes: Sequence[int] = (64,) * 5,
    sigma: str = "relu",
    precision: str = "float32",
    device: Device = H200,
    dtype: str = "float32",
    cost: Any = "quadratic",
    **run: Any,
) -> Plan:
    chosen = planning.Run(**{"rows": 1 << 20, "epochs": 20_000, "batch_size": 1 << 16} | run)
    model: Any = SimpleNamespace(
        sizes=tuple(sizes), activations=(activations.get(sigma),) * (len(sizes) - 1),
        cost=costs.get(cost), dtype=np.dtype(dtype), precision=precision, device=device,
    )  # fmt: skip
    obstacles = {"fused": FusedCudaEngine.obstacle(model, chosen)}
    slopes = fusion.kept_slopes(model.activations, precision)
    return planning.choose_plan(
        sizes, dtype, CHOICE, device, chosen, obstacles, precision=precision, slopes=slopes
    )


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_narrow_networks_over_wide_batches_are_fused(precision: str) -> None:
    plan = _plan(precision=precision)
    assert plan.engine == "fused"
    assert plan.captured
    assert "µs per step against" in plan.engine_reason
    assert "not resident, because" in plan.engine_reason
    form = plan.fusion(1 << 16)
    assert form.obstacle((64,) * 5, 1 << 16, 4, H200, precision) is None
    assert plan.obstacle(planning.Run(1 << 20, 20_000, 1 << 16), 4, H200) is None


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
        ({"sizes": (64, 129, 64)}, "a layer of 129 is wider than 128"),
        ({"sizes": (128,) * 9}, "need .* KB of shared memory, and the device has 227 KB a block"),
        ({"device": T4}, "T4 has no tensor cores for it"),
        ({"device": replace(H200, tensor_cores=False)}, "its tensor cores have failed"),
    ],
)
def test_why_not_fused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"engine 'fused' cannot run this: .*{reason}"):
        _plan(engine="fused", **changes)
    assert _plan(**changes).engine != "fused"


def test_planning_and_the_kernel_mean_the_same_by_a_long_sum() -> None:
    source = (compiler.folder() / "factors.cuh").read_text()
    assert f"constexpr int long_sum = {planning.LONG_SUM};" in source


def test_small_steps_are_left_to_others() -> None:
    assert _plan((64, 30, 10), batch_size=10).engine == "resident"
    assert _plan(rows=4096, epochs=1, batch_size=4096).engine == "layered"
    assert "would save" in _plan(rows=4096, epochs=1, batch_size=4096).engine_reason


def test_what_waits_beside_a() -> None:
    names = ("relu", "leaky_relu", "identity", "sigmoid", "gelu", "tanh")
    sigmas = [activations.get(name) for name in names]
    assert fusion.kept_slopes(sigmas, "bf16") == (False, False, False, True, True)
    assert fusion.kept_slopes(sigmas, "tf32") == (False, False, False, False, True)


def test_more_members_take_longer_and_no_other_form() -> None:
    one, many = (_plan(members=members).fusion(1 << 16) for members in (1, 200))
    assert one == many
    assert many.seconds(H200, 200) > 100 * many.seconds(H200, 1)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_random_networks_get_forms_that_fit(precision: str) -> None:
    rng, tried = np.random.default_rng(1), 0
    for _ in range(40):
        sizes = tuple(int(n) for n in rng.integers(1, 129, rng.integers(2, 8)))
        slopes = tuple((rng.random(len(sizes) - 2) < 0.5).tolist())
        form = fusion.choose(sizes, int(rng.integers(1, 1 << 18)), H200, precision, slopes)
        if isinstance(form, str):
            assert "KB of shared memory" in form or "no warp has registers" in form
            continue
        tried += 1
        assert form.shared_memory == fusion.block_bytes(form) <= H200.shared_memory
        assert form.threads <= 512
        kernel = Catalogue(np.dtype("float32"), precision).fused(
            form, [activations.get("relu")] * len(slopes) + [activations.get("sigmoid")],
            costs.get("quadratic"),
        )  # fmt: skip
        assert kernel.shared_memory == form.shared_memory
    assert tried > 20


@pytest.mark.gpu
def test_a_plan_of_other_activations_is_refused() -> None:
    rng = np.random.default_rng(4)
    X, Y = rng.standard_normal((64, 6)), rng.random((64, 3))
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 64, "learning_rate": 0.3}
    net = Network([6, 20, 3], activation="relu", backend="cuda", precision="bf16", seed=2)
    net.fit(X, Y, engine="fused", **settings)
    other = Network([6, 20, 3], activation="tanh", backend="cuda", precision="bf16", seed=2)
    before = other.weights
    with pytest.raises(ValueError, match="its kernel is for other activations"):
        other.fit(X, Y, plan=net.plan, **settings)
    same_bits(before, other.weights)
    again = Network([6, 20, 3], activation="relu", backend="cuda", precision="bf16", seed=2)
    again.fit(X, Y, plan=Plan.from_json(net.plan.to_json()), **settings)
    same_bits(net.weights, again.weights)
