"""The GPU record: every stage writes what it should, on a GPU or on the stand-in for one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import optimizers, records
from backprop_gpu.benchmarks import gpu_record, suite
from backprop_gpu.benchmarks.peers import registry
from backprop_gpu.benchmarks.recorder import GraphTimer
from backprop_gpu.benchmarks.workloads import Workload
from backprop_gpu.cuda import compiler
from backprop_gpu.cuda.catalogue import Catalogue
from backprop_gpu.testing import standin
from machine import ROOT, device_runtime, needs_compiler

NO_RUNTIME: Any = None


def recorder_of(runtime: Any, folder: Path) -> gpu_record.GpuRecorder:
    clock = GraphTimer(runtime, budget=0.0)
    return gpu_record.GpuRecorder(runtime, clock, folder / "gpu.jsonl", {"gpu": "tried"}, 600)


@pytest.fixture
def recorder(tmp_path: Path) -> gpu_record.GpuRecorder:
    """Of stages that need no device."""
    return recorder_of(NO_RUNTIME, tmp_path)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


@pytest.mark.gpu
def test_every_stage(tmp_path: Path) -> None:
    recorder = recorder_of(device_runtime(), tmp_path)
    stages = gpu_record.stages(recorder, small=True)
    for name in ("floors", "maps", "updates", "resident", "persistent", "fused", "products"):
        recorder.stage(name, stages[name])
    tiny = suite.BenchCase(Workload("tiny", (20, 9, 5), 10, classes=True))
    peers = [registry.get(name) for name in ("ours", "numpy", "torch.graph")]
    recorder.stage("training", lambda: recorder.training(peers, [tiny], "cpu"))
    assert "launch" not in vars(recorder.runtime)  # what timed each launch is gone
    lines = written(tmp_path)
    assert not [line for line in lines if "failed" in line]
    timed = [line for line in lines if "median_us" in line]
    for line in timed:
        assert line["gpu"] == "tried"
        if line["op"] not in ("training", "empty launch", "cluster barrier"):
            rounds = [bound for name, bound in gpu_record.LIMITS.items() if name in line["plan"]]
            assert line["error"] < (rounds[0] if rounds else 1e-5)
    assert {line["op"] for line in timed} >= {
        "copy", "empty launch", "training", "bias_gradient", "hadamard", "cost",
        "update", "forward", "hidden_error", "weight_gradient", "resident", "persistent",
        "fused",
    }  # fmt: skip
    assert "matmul" in {line["op"] for line in lines}
    assert {line["cluster"] for line in lines if line["op"] == "cluster barrier"} == {2, 4, 8, 16}
    resident = [line for line in timed if line["op"] == "resident"]
    forms = {(line["members"], line["cluster"], line["stored"]) for line in resident}
    assert forms >= set(product((1, 3), (1,), ("float32", "uint8")))
    plans = {("read as uint8" in line["plan"], line["stored"]) for line in resident}
    assert plans == {(False, "float32"), (True, "uint8")}
    assert all(line["expected_us"] > 0 for line in resident)
    kinds = [line["kind"] for line in lines if line["op"] == "training"]
    assert kinds == ["rates", "step", "step", "absent"]
    assert any("planned" in line["plan"] for line in timed if line["op"] == "forward")


@pytest.mark.gpu
def test_from_plan_to_report(tmp_path: Path) -> None:
    """Each stage in a process of its own, and what they write is read by `records`."""
    running = standin.running()
    options = ["--stand-in", running.card] if running is not None else []
    done = subprocess.run(
        [sys.executable, "-m", "backprop_gpu.benchmarks.gpu_record", "--out", str(tmp_path),
         "--small", "--only", "check", "--only", "maps", "--only", "ncu", *options],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = records.read(tmp_path / records.GPU)
    maps = {"bias_gradient", "hadamard", "row_norms", "directions", "cost"}
    assert {line["op"] for line in lines} == {"check", *maps, "ncu"}
    for line in lines:
        assert line["properties"]["multiprocessors"] == device_runtime().device.multiprocessors
        assert line.get("stand_in") == (running.card if running is not None else None)
    assert not [line for line in lines if line["op"] == "hadamard" and "median_us" not in line]


def test_what_a_record_needs_is_compiled_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, and what is found later is not compiled again."""
    needs_compiler()
    try:
        compiler.version()
    except compiler.CompilerNotFoundError as error:
        if os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"):
            raise
        pytest.skip(str(error))
    tmp_path.chmod(0o700)
    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "backprop_gpu.benchmarks.gpu_record", "--prepare", "--small",
         "--only", "updates", "--only", "ncu"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    def build(*arguments: Any) -> None:
        raise AssertionError(f"not in the cache: {arguments[:2]}")

    monkeypatch.setattr(compiler, "build", build)
    kernels = Catalogue(np.dtype(np.float32))
    for name in optimizers.names():
        compiler.compile_kernels([kernels.update(optimizers.get(name).rule)], "sm_90a")
    compiler.compile_kernels([kernels.gather()], "sm_90a")  # of the training that ncu profiles
    with pytest.raises(AssertionError, match="not in the cache"):
        compiler.compile_kernels([kernels.hadamard()], "sm_90a")


def program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_ncu(
    recorder: gpu_record.GpuRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = ("gpu__time_duration.sum", "1,234.5"), ("sm__throughput", "61.2")
    with (tmp_path / "printed").open("w") as file:
        file.write("==PROF== Connected\n")
        rows = csv.writer(file, quoting=csv.QUOTE_ALL)
        rows.writerow(["ID", "Kernel Name", "Metric Name", "Metric Unit", "Metric Value"])
        for i, kernel in enumerate(("forward<float, 8>", "resident<float>")):
            rows.writerows([i, kernel, name, "", value] for name, value in metrics)
    program(tmp_path, "ncu", f"cat {tmp_path / 'printed'}", monkeypatch)
    recorder.ncu()
    program(tmp_path, "ncu", "echo ERR_NVGPUCTRPERM; exit 9", monkeypatch)
    recorder.ncu()
    first, second, failed = written(tmp_path)
    assert (first["kernel"], second["kernel"]) == ("forward<float, 8>", "resident<float>")
    assert first["metrics"] == {"gpu__time_duration.sum": 1234.5, "sm__throughput": 61.2}
    assert (failed["code"], failed["failed"]) == (9, "ERR_NVGPUCTRPERM")


def test_what_a_stopped_program_has_printed_is_kept(
    recorder: gpu_record.GpuRecorder, tmp_path: Path
) -> None:
    recorder.stop = 0.0
    code, text = recorder.logged("a program", ["sh", "-c", "echo so far; exec sleep 20"])
    assert (code, text) == (None, "so far\n")
    assert (tmp_path / "a_program.log").read_text() == text


def test_what_is_wrong_is_not_timed(recorder: gpu_record.GpuRecorder, tmp_path: Path) -> None:
    recorder.timed("forward", (1,), np.float32, "tiled", [1e-6], error=0.5)
    recorder.timed("forward", (1,), np.float32, "tiled", [1e-6], error=float("nan"))
    for line in written(tmp_path):
        assert "not timed" in line["failed"]
        assert "median_us" not in line


def test_a_stage_that_fails_is_recorded_and_the_next_runs(
    recorder: gpu_record.GpuRecorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.stage("first", lambda: 1 / 0)
    recorder.stage("second", lambda: recorder.write(op="second"))
    errors = [line.get("failed", "")[:17] for line in written(tmp_path)]
    assert errors == ["ZeroDivisionError", ""]
    recorder.stop = 0.0
    recorder.stage("third", lambda: pytest.fail("no time was left"))
    assert written(tmp_path)[-1] == {"gpu": "tried", "op": "third", "skipped": "out of time"}


def test_damaged_records_are_reported_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "records.jsonl"
    records.append(path, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": 3')
    assert records.read(path) == [{"a": 1}, {"a": 2}]
    assert "records.jsonl:3" in capsys.readouterr().err
