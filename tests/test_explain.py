"""`Network.explain`: what a step would run, its work and floor, and what was reached."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Callback, History, Network, Population, cli, planning, records
from backprop_gpu.planning.explanation import Explanation, explain
from backprop_gpu.training import TimeSpent
from machine import obstacle

SIZES = (784, 30, 10)
CPU = {"processor": records.processor(), "cores": os.cpu_count()}
# 784·30 + 30·10 weights: 2·10·23,820 operations forward, as many for BP4, and for BP2 those of
# the last layer, 2·10·300.
FLOPS = 2 * 2 * 10 * 23_820 + 2 * 10 * 300
# A batch of 794 numbers per row, and 23,860 parameters read and written.
BYTES = 4 * (10 * 794 + 2 * 23_860)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the records are; none yet."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return tmp_path


def write(folder: Path, *found: dict[str, Any]) -> None:
    with (folder / records.BENCH).open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in found)


def rates(date: str, product: float, on_chip: int = 0, **machine: Any) -> dict[str, Any]:
    return {
        "kind": "rates", "device": "cpu", "date": date, "machine": CPU | machine,
        "products": {"float32": product, "float64": product / 2}, "bandwidth": 1e10,
        "on_chip": on_chip,
    }  # fmt: skip


def step(date: str, median_us: float, device: str = "cpu", **fields: Any) -> dict[str, Any]:
    return {
        "kind": "step", "peer": "ours", "device": device, "date": date, "machine": CPU,
        "sizes": list(SIZES), "batch": 10, "members": 1, "median_us": median_us,
        "plan": "backend numpy: asked for\nengine resident: one loop",
    } | fields  # fmt: skip


def of_cpu(**options: Any) -> Explanation:
    return Network(SIZES, backend="numpy", seed=0).explain(batch_size=10, **options)


def test_work_of_a_step_by_hand(folder: Path) -> None:
    found = of_cpu()
    assert found.flops == FLOPS
    assert found.bytes == BYTES
    work = {w.label: w for w in found.work}
    assert list(work) == [
        "forward layer 1", "forward layer 2", "BP1", "BP3 layer 2", "BP4 layer 2", "BP2 layer 1",
        "BP3 layer 1", "BP4 layer 1", "update",
    ]  # fmt: skip
    assert work["forward layer 1"].flops == 2 * 10 * 784 * 30
    assert work["forward layer 1"].bytes == 4 * (10 * 784 + 784 * 30 + 10 * 30 + 30)
    assert work["BP2 layer 1"].flops == 2 * 10 * 30 * 10
    assert work["BP2 layer 1"].bytes == 4 * (10 * 10 + 10 * 30 + 10 * 30 + 10 * 30)
    assert work["BP4 layer 1"].bytes == 4 * (10 * 784 + 10 * 30 + 784 * 30)
    assert work["update"].bytes == 4 * 3 * 23_860
    products = [w for w in found.work if not w.label.startswith(("BP1", "BP3", "update"))]
    assert sum(w.flops for w in products) == FLOPS
    assert {w.label: w for w in of_cpu(optimizer="adam").work}["update"].bytes == 4 * 7 * 23_860


def test_engine_and_kernels(folder: Path) -> None:
    found = of_cpu()
    assert found.plan.engine == "resident"
    assert {w.kernel for w in found.work} == {"compiled code"}
    short = of_cpu(engine="layered")
    assert short.plan.engine == "layered"
    assert {w.kernel for w in short.work} == {"BLAS", "NumPy"}
    net = Network(SIZES, backend="numpy", seed=0)
    before = str(net.plan), [w.copy() for w in net.weights]
    net.explain(batch_size=10)
    assert str(net.plan) == before[0]  # nothing has changed
    np.testing.assert_array_equal(net.weights[0], before[1][0])


def test_without_a_record_nothing_is_claimed(folder: Path) -> None:
    found = of_cpu()
    assert found.floor is found.share is found.measured is None
    assert "floor: not known here" in str(found)
    assert "measured: no record of this shape" in str(found)


def test_floor_and_share_of_the_newest_record(folder: Path) -> None:
    write(
        folder,
        rates("2026-02-01", 1e11),
        rates("2026-01-01", 1e12),
        rates("2026-03-01", 1, cores=0),
    )
    write(folder, step("2026-02-01", 40.0), step("2026-01-01", 10.0))
    write(folder, step("2026-03-01", 1.0, batch=20), step("2026-03-01", 1.0, device="cuda"))
    write(folder, step("2026-03-01", 1.0, machine=CPU | {"processor": "another"}))
    write(folder, step("2026-03-01", 1.0, plan="engine layered: of a short run"))
    found = of_cpu()
    # 222 kB at 10 GB/s take longer than 0.96 MFLOP at 100 GFLOP/s.
    assert found.floor == pytest.approx(BYTES / 1e10)
    assert found.measured == pytest.approx(40e-6)
    assert found.share == pytest.approx(BYTES / 1e10 / 40e-6)
    assert "at 10 GB/s" in str(found)
    assert "40.00 µs, 56% of the floor (record of 2026-02-01)" in str(found)
    write(folder, rates("2026-04-01", 1e11, on_chip=1 << 20))  # the parameters stay on the chip
    found = of_cpu()
    assert found.bytes == 4 * 10 * 794
    assert found.floor == pytest.approx(FLOPS / 1e11)
    double = Network(SIZES, backend="numpy", dtype="float64").explain(batch_size=10)
    assert double.floor == pytest.approx(FLOPS / 5e10)
    assert double.measured is None  # what was measured was float32


def test_the_resident_kernel_on_a_device() -> None:
    choice = planning.Choice("cuda", "asked for")
    plan = planning.choose_plan(
        SIZES, "float32", choice, planning.H200, planning.Run(50_000, 30, 10)
    )
    found = explain(SIZES, 10, np.dtype("float32"), plan, planning.H200)
    assert "engine resident: an epoch is one launch" in str(found)
    assert {work.kernel for work in found.work} == {"the resident kernel"}
    assert found.bytes == 4 * 10 * (SIZES[0] + SIZES[-1])  # its rows: the weights stay on the chip


def test_of_a_precision(folder: Path) -> None:
    """Its floor is that of its tensor cores, and what was measured was float32."""
    record = step("2026-01-01", 5.0, "cuda", machine={"gpu": planning.H200.name})
    record["plan"] = "engine layered: one backend call per equation"
    (folder / records.GPU).write_text(json.dumps(record) + "\n")
    choice = planning.Choice("cuda", "asked for")
    sizes, run = (4096, 4096), planning.Run(50_000, 30, 4096, "layered")
    plan = planning.choose_plan(sizes, "float32", choice, planning.H200, run, precision="bf16")
    found = explain(sizes, 4096, np.dtype("float32"), plan, planning.H200)
    assert found.floor == pytest.approx(found.flops / planning.H200.peak_rate(4, "bf16"))
    assert found.measured is None
    assert "precision bf16" in str(found)


def test_of_a_device(folder: Path) -> None:
    record = step("2026-01-01", 5.0, "cuda", machine={"gpu": planning.H200.name})
    record["plan"] = "engine layered: one backend call per equation"
    lines = ({"op": "copy", "gb_per_s": 4000}, record)  # as gpu_record writes them
    (folder / records.GPU).write_text("".join(json.dumps(line) + "\n" for line in lines))
    choice = planning.Choice("cuda", "asked for")
    run = planning.Run(50_000, 30, 10, "layered")
    plan = planning.choose_plan(SIZES, "float32", choice, planning.H200, run)
    found = explain(SIZES, 10, np.dtype("float32"), plan, planning.H200)
    kernels = {w.label: w.kernel for w in found.work}
    for label, product in plan.products:
        assert kernels[label].startswith(product.kernel)
    assert kernels["BP1"] == "a map"
    assert kernels["BP3 layer 1"] == kernels["BP3 layer 2"] == "that of BP4"
    assert found.floor == pytest.approx(
        max(FLOPS / planning.H200.peak_rate(4, "float32"), BYTES / planning.H200.bandwidth)
    )
    assert found.measured == pytest.approx(5e-6)
    assert "peak of NVIDIA H200" in str(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 60_000}, "batch_size"),
        ({"batch_size": 10, "rows": 0}, "rows"),
        ({"batch_size": 10, "epochs": -1}, "epochs"),
        ({"batch_size": 10, "engine": "fastest"}, "unknown engine"),
        ({"batch_size": 10, "optimizer": "magic"}, "unknown optimizer"),
        ({"batch_size": 10, "dropout": 1.0}, "dropout must be in"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(SIZES, backend="numpy").explain(**arguments)


@pytest.mark.gpu
def test_of_dropout() -> None:
    """Its kernels keep more of each layer: the plan is that of `fit`, and another than without."""
    if (why := obstacle("cuda")) is not None:
        pytest.skip(f"backend cuda: {why}")
    X, Y = np.zeros((256, 20)), np.zeros((256, 3))
    net = Network([20, 16, 3], seed=0, backend="cuda")
    settings: dict[str, Any] = {"batch_size": 64, "epochs": 2, "engine": "fused"}
    plans = [net.explain(rows=256, dropout=rate, **settings).plan for rate in (0.0, 0.5)]
    net.fit(X, Y, learning_rate=0.1, dropout=0.5, **settings)
    assert net.plan == plans[1] != plans[0]


def test_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nothing"
    assert cli.main(["train", "--explain", "--backend", "numpy", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "[64, 30, 10], batch 10, float32" in text
    assert "forward layer 1" in text
    assert not out.exists()


def test_where_the_time_of_the_last_fit_went() -> None:
    net = Network([3, 4, 2], seed=0, backend="numpy")
    assert "the last fit" not in str(net.explain(batch_size=5))
    X, Y = np.zeros((20, 3)), np.zeros((20, 2))

    def slow(network: Network, history: History) -> None:
        time.sleep(0.02)

    begin = time.perf_counter()
    history = net.fit(
        X, Y, epochs=3, batch_size=5, learning_rate=0.1, validation_data=(X, Y), callbacks=[slow]
    )
    taken = time.perf_counter() - begin
    spent = history.time_spent
    assert 0.06 < spent.callbacks < spent.total <= taken
    assert min(spent.data, spent.orders, spent.engine, spent.validation) > 0
    assert f"the last fit took {spent}" in str(net.explain(batch_size=5))
    assert f"{spent.total:.3g} s: " in str(spent)
    assert f"callbacks {spent.callbacks / spent.total:.0%}" in str(spent)
    assert str(TimeSpent()) == "no time"


def test_batches_callbacks_are_told_from_the_engine() -> None:
    class Slow(Callback):
        def on_batch_end(self, network: Network, batch: int) -> None:
            time.sleep(0.01)

    members = Population([3, 4, 2], members=2, seed=0, backend="numpy")
    X, Y = np.zeros((20, 3)), np.zeros((20, 2))
    histories = members.fit(X, Y, epochs=1, batch_size=5, learning_rate=0.1, callbacks=[Slow()])
    spent = histories[0].time_spent
    assert histories[1].time_spent is spent
    assert spent.callbacks > 8 * 0.01 > spent.engine
