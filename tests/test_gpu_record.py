"""The GPU record, run with the kernels on the CPU: every stage writes what it should."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_cuda.backend import BackendRuntime

from backprop_gpu.testing.build import CompilerMissing
from benchmarks import gpu_record, records, suite
from benchmarks.peers import registry
from benchmarks.workloads import Workload


def two_samples(work: Any) -> list[float]:
    work()
    return [1e-6, 2e-6]


@pytest.fixture
def recorder(tmp_path: Path) -> gpu_record.Recorder:
    runtime = BackendRuntime(library=True)
    try:
        runtime.host.prepare([("hadamard.cu", "hadamard<float>")])
    except CompilerMissing as error:
        if os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"):
            raise
        pytest.skip(str(error))
    return gpu_record.Recorder(runtime, two_samples, tmp_path / "gpu.jsonl", {"gpu": "host"}, 600)


def written(recorder: gpu_record.Recorder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in recorder.path.read_text().splitlines()]


def test_every_stage(recorder: gpu_record.Recorder) -> None:
    tiny = suite.Case(Workload("tiny", (20, 9, 5), 10, classes=True))
    peers = [registry.get(name) for name in ("ours", "numpy", "torch.graph")]
    recorder.stage("ceilings", lambda: recorder.ceilings(size=4096, product=64))
    recorder.stage("training", lambda: recorder.training(peers, [tiny], "cpu"))
    recorder.stage("maps", lambda: recorder.maps(((5, 7),)))
    recorder.stage("updates", lambda: recorder.updates(((9, 7, 5),)))
    recorder.stage("resident", lambda: recorder.residents((((70, 5, 3), 4),), (1, 3), 16, 1))
    recorder.stage("products", lambda: recorder.products(((10, 30, 40),), (np.float32,)))
    lines = written(recorder)
    assert not [line for line in lines if "failed" in line]
    timed = [line for line in lines if "median_us" in line]
    for line in timed:
        assert line["gpu"] == "host"
        if line["op"] not in ("training", "resident"):
            assert line["median_us"] == 1.5
        if line["op"] != "training":
            assert line["error"] < 1e-5
    ops = {line["op"] for line in timed}
    assert ops == {
        "copy", "matmul", "training", "bias_gradient", "hadamard", "update",
        "forward", "hidden_error", "weight_gradient", "resident",
    }  # fmt: skip
    resident = [line for line in timed if line["op"] == "resident"]
    forms = {(line["members"], line["cluster"], line["stored"]) for line in resident}
    assert forms >= set(product((1, 3), (1,), ("float32", "uint8")))
    plans = {("read as uint8" in line["plan"], line["stored"]) for line in resident}
    assert plans == {(False, "float32"), (True, "uint8")}
    assert all(line["expected_us"] > 0 for line in resident)
    kinds = [line["kind"] for line in lines if line["op"] == "training"]
    assert kinds == ["rates", "step", "step", "absent"]
    assert any("planned" in line["plan"] for line in timed if line["op"] == "forward")


def test_what_is_wrong_is_not_timed(recorder: gpu_record.Recorder) -> None:
    recorder.timed("forward", (1,), np.float32, "fused", [1e-6], error=0.5)
    recorder.timed("forward", (1,), np.float32, "fused", [1e-6], error=float("nan"))
    for line in written(recorder):
        assert "not timed" in line["failed"]
        assert "median_us" not in line


def test_a_stage_that_fails_is_recorded_and_the_next_runs(
    recorder: gpu_record.Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.stage("first", lambda: 1 / 0)
    recorder.stage("second", lambda: recorder.write(op="second"))
    assert [line.get("failed", "")[:17] for line in written(recorder)] == ["ZeroDivisionError", ""]
    recorder.stop = 0.0
    recorder.stage("third", lambda: pytest.fail("no time was left"))
    assert written(recorder)[-1] == {"gpu": "host", "op": "third", "skipped": "out of time"}


def test_damaged_records_are_reported_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "records.jsonl"
    records.append(path, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": 3')
    assert records.read(path) == [{"a": 1}, {"a": 2}]
    assert "records.jsonl:3" in capsys.readouterr().err
