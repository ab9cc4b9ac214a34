"""A plan is an instruction: it is written, read, compared, and trained by."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Activation, Network, Population, cpu, engines, planning, self_check
from backprop_gpu.planning import BatchPlan, CpuWork, Plan, Run, residency

NIELSEN = (784, 30, 10)
RNG = np.random.default_rng(0)
X, y = RNG.random((53, 6)), RNG.integers(0, 3, 53)
RTX = replace(
    planning.H200, name="RTX 4090", compute_capability=(8, 9), shared_memory=99 * 1024, clusters=()
)
FIT: dict[str, Any] = {"epochs": 2, "learning_rate": 0.3}


def network(**options: Any) -> Network:
    return Network([6, 5, 3], **{"backend": "numpy", "seed": 1} | options)


def of_a_device(engine: str, **options: Any) -> Plan:
    run = Run(**{"rows": 1003, "epochs": 3, "batch_size": 10, "engine": engine} | options)
    return planning.choose_plan(
        NIELSEN, "float32", planning.Choice("cuda", "it is there"), planning.H200, run
    )


def wide_on_a_device(engine: str, **options: Any) -> Plan:
    run = Run(**{"rows": 100_003, "epochs": 3, "batch_size": 4096, "engine": engine} | options)
    choice = planning.Choice("cuda", "it is there")
    return planning.choose_plan(
        (20, 48, 33, 5), "float32", choice, planning.H200, run, precision="bf16",
        slopes=(True, False),
    )  # fmt: skip


def by_the_library(**options: Any) -> Plan:
    run = Run(**{"rows": 9000, "epochs": 3, "batch_size": 8192, "engine": "layered"} | options)
    choice = planning.Choice("cuda", "it is there")
    return planning.choose_plan(
        (2048,) * 5, "float32", choice, replace(planning.H200, tensor_cores=False), run,
        sigmas=("relu", "tanh", "relu", "softmax"),
    )  # fmt: skip


def plans() -> dict[str, Plan]:
    found = {
        "layered on a device": of_a_device("layered"),
        "library on a device": by_the_library(),
        "resident on a device": of_a_device("resident", members=132, others=((7, 2), (10, 0))),
        "bytes": of_a_device("resident", bytes=True),
        "fused on a device": wide_on_a_device("fused"),
        "persistent on a device": wide_on_a_device("persistent"),
    }
    for engine in ("layered", "resident"):
        net = network()
        net.fit(X, y, batch_size=8, engine=engine, **FIT)
        found[engine] = net.plan
    return found | {"of no training": network().plan}


PLANS = plans()


@pytest.mark.parametrize("name", PLANS)
def test_there_and_back(name: str) -> None:
    plan = PLANS[name]
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert str(again) == str(plan)
    assert len(set(PLANS.values())) == len(PLANS)


def test_reasons_and_predictions_are_no_part_of_it() -> None:
    plan = PLANS["resident on a device"]
    (first, *rest), *others = (batch.cuts for batch in plan.batches)
    slower = replace(first, seconds=1.0)
    batches = (replace(plan.batches[0], cuts=(slower, *rest)), *plan.batches[1:])
    assert replace(plan, engine_reason="another", batches=batches) == plan
    other = replace(first, threads=first.threads + 32)
    batches = (replace(plan.batches[0], cuts=(other, *rest)), *plan.batches[1:])
    assert replace(plan, batches=batches) != plan
    assert others


def test_what_a_device_runs_is_all_in_it() -> None:
    plan = PLANS["layered on a device"]
    assert [batch.rows for batch in plan.batches] == [10, 3]  # the last is short
    for rows in (10, 3):
        assert plan.products_of(rows).keys() == planning.product_shapes(NIELSEN, rows).keys()
    assert plan.products_of(10) == dict(plan.products)
    assert plan.products_of(4096) == {}  # of no mini-batch
    plan = PLANS["resident on a device"]
    for m, slots in ((10, 0), (7, 2)):
        for members in (1, 5, 132):
            cut = plan.cut(m, slots, members)
            assert (cut.batch, cut.slots) == (m, slots)
            others = [c for c in plan.batch(m).cuts if c.slots == slots]
            assert cut.seconds_for(members) == min(c.seconds_for(members) for c in others)
    with pytest.raises(ValueError, match="no mini-batch of 9 rows"):
        plan.cut(9, 0, 1)
    with pytest.raises(ValueError, match="no resident kernel for 7 rows and 1 numbers"):
        plan.cut(7, 1, 1)


def changed(**fields: Any) -> str:
    text = json.loads(PLANS["resident"].to_json())
    text["plan"] |= fields
    return json.dumps(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged JSON"),
        ('{"format": "backprop_gpu plan", "version": 7', "damaged JSON"),
        ("[" * 100_000, "damaged JSON"),
        ("[]", "not a plan that"),
        ('{"format": "another"}', "not a plan that"),
        ('{"format": "backprop_gpu plan", "version": 1}', "version 1; this backprop_gpu reads 7"),
        ('{"format": "backprop_gpu plan", "version": 7}', "plan must hold backend, "),
        (changed(engine=3), r"plan\.engine must be of type str, got 3"),
        (changed(captured=1), r"plan\.captured must be of type bool"),
        (changed(more=1), "plan must hold"),
        (changed(sizes=[6, "5", 3]), r"plan\.sizes\[1\] must be of type int"),
        (changed(batches=3), r"plan\.batches must be a list"),
        (changed(batches=[{"rows": 8}]), r"plan\.batches\[0\] must hold rows, products"),
    ],
)
def test_what_is_no_plan(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


# -- trained by -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_a_training_by_its_plan_gives_its_bits(backend: str, engine: str) -> None:
    if engine == "resident" and backend == "numba_cuda":
        engine = "layered"
    first, again = network(backend=backend), network(backend=backend)
    first.fit(X, y, batch_size=8, engine=engine, **FIT)
    again.fit(X, y, batch_size=8, plan=Plan.from_json(first.plan.to_json()), **FIT)
    assert again.plan == first.plan
    for a, b in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_population_by_its_plan() -> None:
    options: dict[str, Any] = {"batch_size": [8, 5, 8], "optimizer": ["sgd", "adam", "adam"]}
    both = [Population([6, 5, 3], members=3, backend="numpy", seed=1) for _ in range(2)]
    both[0].fit(X, y, engine="resident", **options, **FIT)
    both[1].fit(X, y, plan=both[0].plan, **options, **FIT)
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a.weights[0], b.weights[0])


def test_an_engine_does_what_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cores there are."""
    asked: list[tuple[int, ...]] = []
    train = cpu.CpuLibrary.train

    def watched(library: cpu.CpuLibrary, job: cpu.AbiJob) -> None:
        member = job.members[0]
        asked.append((member.block, job.threads, member.in_place))
        train(library, job)

    monkeypatch.setattr(cpu.CpuLibrary, "train", watched)
    run = Run(len(X), 2, 53, "resident")
    for work in (CpuWork(53, 1, True), CpuWork(9, 3, False)):
        plan = replace(network().model.plan(run), batches=(BatchPlan(53, work=work),), threads=3)
        net = network()
        net.fit(X, y, batch_size=53, plan=plan, **FIT)
        assert net.plan is plan
        assert set(asked) == {(work.block, work.threads, work.in_place)}
        asked.clear()


@pytest.mark.parametrize(
    ("plan", "options", "error", "message"),
    [
        ("layered", {"engine": "layered"}, TypeError, "engine and plan exclude each other"),
        (3, {}, TypeError, "plan must be a Plan, got 3"),
        ("of no training", {}, ValueError, r"plan is for sizes \(\)"),
        ("layered on a device", {}, ValueError, "plan is for backend 'cuda'"),
        ("layered", {"batch_size": 7}, ValueError, "no mini-batch of 7 rows"),
        ("resident", {"batch_size": 7}, ValueError, "no mini-batch of 7 rows"),
    ],
)
def test_a_plan_for_something_else(
    plan: Any, options: Any, error: type[Exception], message: str
) -> None:
    net = network()
    before = net.weights, net.plan, net.history
    with pytest.raises(error, match=message):
        net.fit(X, y, plan=PLANS.get(plan, plan), **{"batch_size": 8} | options, **FIT)
    np.testing.assert_array_equal(net.weights[0], before[0][0])
    assert (net.plan, net.history) == before[1:]


def test_a_plan_of_another_network() -> None:
    for other, message in (
        (Network([6, 4, 3], backend="numpy"), r"this network has \(6, 4, 3\)"),
        (network(dtype="float64"), "this network has 'float64'"),
        (network(activation=Activation("own", lambda z: z.astype(z.dtype), lambda z: 1 + 0 * z)),
         "activation 'own' is not built in"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            other.fit(X, np.eye(3)[y], batch_size=8, plan=PLANS["resident"], **FIT)


def test_a_plan_of_another_device() -> None:
    run = Run(1003, 3, 10)
    book = PLANS["resident on a device"]
    assert book.obstacle(run, 4, planning.H200) is None
    assert "RTX 4090 does not hold one block of" in str(book.obstacle(run, 4, RTX))
    assert "reads an X of uint8" in str(PLANS["bytes"].obstacle(run, 4, planning.H200))
    assert residency.largest_cluster(RTX) == 1


def of_a_file(name: str, **part: Any) -> Plan:
    """A plan whose file somebody has changed, where these names first stand in its first batch."""
    whole = json.loads(PLANS[name].to_json())
    batch = whole["plan"]["batches"][0]
    products = (product for _, product in batch["products"])
    parts = [batch["work"], batch["fusion"], batch["persistence"], *batch["cuts"], *products]
    for place in parts:
        if place is not None and part.keys() <= place.keys():
            place |= part
            break
    else:
        (whole["plan"] if part.keys() <= whole["plan"].keys() else batch).update(part)
    return Plan.from_json(json.dumps(whole))


LAYERS = json.loads(PLANS["resident on a device"].to_json())["plan"]["batches"][0]["cuts"][0][
    "layers"
]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("resident", {"threads": 0}),
        ("resident", {"block": 0}),
        ("resident", {"block": 9}),
        ("resident", {"threads": 1 << 20}),
        ("resident", {"by_inputs": True, "in_place": False}),
        ("resident", {"rows": 0}),
        ("resident", {"work": None}),
        ("resident", {"batches": []}),
        ("layered", {"batches": []}),
        ("layered on a device", {"splits": 3}),
        ("layered on a device", {"splits": 2}),  # of the first, which is no BP4
        ("layered on a device", {"kernel": "cublas", "splits": 2}),
        ("layered on a device", {"kernel": "tiled", "tile": None}),
        ("layered on a device", {"products": []}),
        ("library on a device", {"epilogue": "DRELU_BGRAD"}),  # of a forward product
        ("library on a device", {"epilogue": "BGRADB"}),
        *(("resident on a device", part) for part in (
            {"inputs": 783}, {"batch": 11}, {"itemsize": 8}, {"stored": 2}, {"stored": 1},
            {"slots": 3}, {"slots": -1}, {"stages": 1}, {"stages": 4}, {"threads": 0},
            {"threads": 100}, {"threads": 2048}, {"blocks": 0}, {"blocks": 3}, {"blocks": 32},
            {"at_once": 0}, {"members": 0}, {"shared_memory": 1024}, {"apart": True},
            {"layers": []}, {"layers": LAYERS[:1]},
            {"layers": [LAYERS[0] | {"slices": 0}, LAYERS[1]]},
            {"layers": [LAYERS[0] | {"slices": 3}, LAYERS[1]]},
            {"layers": [LAYERS[0] | {"n": 31}, LAYERS[1]]},
            *({"layers": [LAYERS[0], LAYERS[1] | {tile: wrong}]}
              for tile in ("x", "j", "xb", "ju") for wrong in (0, 7)),
        )),
        *(("fused on a device", part) for part in (
            {"sizes": [20, 48, 33, 6]}, {"sizes": [20, 48, 33]}, {"batch": 4095}, {"stored": 2},
            {"stored": 1}, {"precision": "tf32"}, {"slopes": [True]}, {"slopes": [True, True]},
            {"rows": 0}, {"rows": 24}, {"row_warps": 3}, {"row_warps": 0}, {"column_warps": 16},
            {"sharers": [1, 1]}, {"sharers": [1, 1, 3]}, {"sharers": [1, 0, 1]}, {"blocks": 3},
            {"grid": 0}, {"grid": 4097}, {"shared_memory": 1024}, {"fusion": None},
        )),
        *(("persistent on a device", part) for part in (
            {"sizes": [20, 48, 33, 6]}, {"batch": 4095}, {"stored": 2}, {"stored": 1},
            {"precision": "tf32"}, {"forward": 0}, {"error": 48}, {"gradient": 128}, {"grid": 0},
            {"grid": 133}, {"shared_memory": 1024}, {"persistence": None},
        )),
    ],
)  # fmt: skip
def test_a_plan_that_is_not_the_planners(name: str, part: dict[str, Any]) -> None:
    """Compiled code does not check its bounds: no such plan may reach it."""
    plan, of_device = of_a_file(name, **part), "device" in name
    run = Run(1003, 3, 10, members=132) if of_device else Run(len(X), 2, 8)
    if name.startswith(("fused", "persistent")):
        run = Run(100_003, 3, 4096)
    if name.startswith("library"):
        run = Run(9000, 3, 8192)
    device = planning.H200 if of_device else None
    assert PLANS[name].obstacle(run, 4, device) is None
    assert plan.to_json() != PLANS[name].to_json()
    assert plan.obstacle(run, 4, device) is not None
    if not of_device:
        with pytest.raises(ValueError, match="this training cannot run by plan"):
            network().fit(X, y, batch_size=8, plan=plan, **FIT)


def test_blocks_that_cannot_all_run_at_once_would_wait_for_ever() -> None:
    run = Run(1003, 3, 10, "resident", members=99)
    plan = planning.choose_plan(NIELSEN, "float32", planning.Choice("cuda", ""), RTX, run)
    (cut, *_) = plan.batches[0].cuts
    assert cut.apart
    assert plan.obstacle(run, 4, RTX) is None
    more = replace(plan, batches=(BatchPlan(10, cuts=(replace(cut, at_once=cut.at_once + 1),)),))
    assert "does not hold" in str(more.obstacle(run, 4, RTX))
    smaller = replace(RTX, multiprocessors=RTX.multiprocessors // 2)
    assert "does not hold" in str(plan.obstacle(run, 4, smaller))


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("card", [planning.H200, RTX])
def test_every_plan_of_the_planner_passes(card: planning.Device, itemsize: int) -> None:
    """Random networks, batches, members; both engines; both kinds of memory for X."""
    rng, tried = np.random.default_rng(itemsize), 0
    dtype = "float32" if itemsize == 4 else "float64"
    for _ in range(60):
        sizes = tuple(int(n) for n in rng.integers(1, 150, rng.integers(2, 5)))
        run = Run(
            int(rng.integers(1, 2000)), 3, int(rng.integers(1, 64)),
            members=int(rng.integers(1, 200)), slots=int(rng.integers(0, 3)),
            bytes=bool(rng.integers(2)),
        )  # fmt: skip
        for device in (card, None):
            for engine in engines.NAMES if device else ("layered", "resident"):
                choice = planning.Choice("numpy" if device is None else "cuda", "")
                try:
                    plan = planning.choose_plan(
                        sizes,
                        dtype,
                        choice,
                        device,
                        replace(run, engine=engine),
                        cores=8,
                        slopes=rng.random(len(sizes) - 2) < 0.5,
                    )
                except ValueError:  # too large for the resident kernel, or too wide for the fused
                    assert device is not None
                    continue
                assert plan.obstacle(run, itemsize, device) is None
                tried += 1
    assert tried >= 185


@pytest.mark.gpu
def test_a_plan_whose_kernel_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other engine takes over: the plan was asked for."""
    net = network(backend="cuda")
    net.fit(X, y, batch_size=8, engine="resident", **FIT)
    before = net.weights
    monkeypatch.setattr(self_check, "engine_obstacle", lambda *_: "it fails the check of BP4")
    with pytest.raises(ValueError, match=r"engine resident\): it fails the check of BP4"):
        net.fit(X, y, batch_size=8, plan=net.plan, **FIT)
    np.testing.assert_array_equal(net.weights[0], before[0])
