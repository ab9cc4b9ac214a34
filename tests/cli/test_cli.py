"""The command line, end to end: what is printed, what is written, the exit status."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import backprop_gpu
from backprop_gpu import Checkpoint, Network, backends, cli, cpu, datasets
from backprop_gpu.cuda.compiler import KernelReport
from backprop_gpu.preprocessing import Category
from backprop_gpu.training import Course, Session
from shell import refused, run

FAST = ["--backend", "numpy", "--epochs", "2"]


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A csv file of three well separated classes with names."""
    rng = np.random.default_rng(0)
    names = ("iris", "lily", "rose")
    rows = [
        ",".join(f"{value:.3f}" for value in rng.normal(3 * (i % 3), 0.3, 2)) + f",{names[i % 3]}"
        for i in range(90)
    ]
    path = tmp_path / "flowers.csv"
    path.write_text("width,height,kind\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


# -- train ------------------------------------------------------------------------------


def test_train_on_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    assert run("train", "--backend", "numpy", "--epochs", 8, "--out", out) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("device: CPU (")
    assert lines[1] == "backend numpy: asked for"
    assert lines[2].startswith("engine ")
    assert lines[-2] == f"written: {out / 'learning_curve.png'}"
    assert lines[-3] == f"written: {out / 'model.safetensors'}"
    match = re.fullmatch(r"validation accuracy: (0\.\d{4})", lines[-1])
    assert match
    assert float(match[1]) >= 0.94
    assert "8/8" in printed.err  # the progress bar

    assert sorted(path.name for path in out.iterdir()) == [
        "learning_curve.png",
        "model.safetensors",
    ]
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    net = Network.load(out / "model.safetensors", backend="numpy")
    assert net.sizes == (64, 30, 10)
    data = datasets.load()
    assert f"{net.accuracy(data.X_val, data.y_val):.4f}" == match[1]


def test_every_option(tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        f"train --data {flowers} --validation 0.25 --shuffle --scale 1/2 --sizes 2,7 5,3 "
        "--activation tanh relu,softmax --cost categorical_cross_entropy --epochs 30 "
        "--batch-size 4 --learning-rate 0.01 --optimizer adam --dtype float64 --backend numpy "
        f"--seed 3 --out {tmp_path}"
    ).split()
    assert run(*command) == 0
    first = capsys.readouterr().out
    assert "68 rows to train, 22 to validate (taken at random, of each class its share)" in first
    assert "features scaled by 0.5" in first
    assert "classes, sorted: iris, lily, rose" in first
    assert "30 epochs, batch size 4, learning rate 0.01, adam, seed 3" in first
    assert first.splitlines()[-1] == "validation accuracy: 1.0000"
    net = Network.load(tmp_path / "model.safetensors", backend="numpy")
    assert net.preprocessing is not None
    assert net.preprocessing.target == Category("kind", ("iris", "lily", "rose"))
    assert net.sizes == (2, 7, 5, 3)
    assert [activation.name for activation in net.activations] == ["tanh", "relu", "softmax"]
    assert net.dtype == np.float64
    assert run(*command) == 0  # the same seed, the same run
    assert capsys.readouterr().out == first
    again = Network.load(tmp_path / "model.safetensors", backend="numpy")
    np.testing.assert_array_equal(again.weights[0], net.weights[0])


def test_train_on_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    X = np.linspace(-1, 1, 60).reshape(30, 2)
    np.savez(tmp_path / "a.npz", X=X, y=X.sum(axis=1) + 0.5)
    assert run("train", "--data", tmp_path / "a.npz", *FAST, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"validation loss: [\d.e-]+, R² -?[\d.]+", lines[-1])
    model = tmp_path / "model.safetensors"
    assert [a.name for a in Network.load(model).activations] == ["sigmoid", "identity"]
    assert run("predict", "--model", model, "--data", tmp_path / "a.npz") == 0
    assert capsys.readouterr().out.startswith("row,output_0\n0,")


@pytest.mark.parametrize("cost", ["categorical_cross_entropy", "poisson", "quadratic"])
def test_outputs_follow_the_cost(
    tmp_path: Path, cost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    X = np.random.default_rng(0).random((40, 3))
    np.savez(tmp_path / "a.npz", X=X, y=np.round(2 * X[:, 0]).astype(int))
    arguments = ["--data", tmp_path / "a.npz", "--cost", cost, *FAST, "--out", tmp_path]
    assert run("train", *arguments) == 0
    suits = {"categorical_cross_entropy": "softmax", "poisson": "exponential"}
    net = Network.load(tmp_path / "model.safetensors", backend="numpy")
    assert net.activations[-1].name == suits.get(cost, "sigmoid")
    # whole numbers are counts for poisson, classes for the others
    assert net.sizes == (3, 30, 1 if cost == "poisson" else 3)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("validation loss: " if cost == "poisson" else "validation accuracy: ")


def test_whole_numbers_as_targets(
    tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", X=np.eye(20), y=np.arange(20))
    arguments = [*FAST, "--out", tmp_path]
    assert run("train", "--data", tmp_path / "a.npz", "--task", "regression", *arguments) == 0
    net = Network.load(tmp_path / "model.safetensors", backend="numpy")
    assert net.sizes == (20, 30, 1)
    assert capsys.readouterr().out.splitlines()[-1].startswith("validation loss: ")
    message = refused(capsys, "train", "--data", flowers, "--task", "regression", *arguments)
    assert "line 2, column 'kind': 'iris' is not a number" in message
    np.savez(tmp_path / "b.npz", X=np.eye(20), y=["a", "b"] * 10)
    message = refused(
        capsys, "train", "--data", tmp_path / "b.npz", "--task", "regression", *arguments
    )
    assert "labels that are not numbers cannot be targets" in message


def test_default_rates_train(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for optimizer in ("momentum", "nesterov", "adam", "adamw"):
        arguments = ["--optimizer", optimizer, "--backend", "numpy", "--epochs", "6"]
        assert run("train", *arguments, "--out", tmp_path) == 0
        accuracy = float(capsys.readouterr().out.split()[-1])
        assert accuracy > 0.85, optimizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trane", "invalid choice: 'trane'"),
        ("train --epoch 3", "unrecognized arguments: --epoch 3"),
        ("train --epochs x", "'x' is not a whole number"),
        ("train --epochs 0", "epochs must be >= 1, got 0"),
        ("train --batch-size 0", "batch_size must be in [1, 1438], got 0"),
        ("train --batch-size 5000", "batch_size must be in [1, 1438], got 5000"),
        ("train --learning-rate nan", "nan"),
        ("train --seed -1", "seed must be >= 0"),
        ("train --sizes 64,x,10", "--sizes must be whole numbers such as 784,30,10"),
        ("train --sizes 64", "sizes must name an input and an output layer"),
        ("train --sizes 63,10", "--sizes begins with 63, but the data has 64 features"),
        ("train --sizes 64,9", "labels from 0 to 9; with 9 outputs"),
        ("train --activation sigmund", "unknown activation 'sigmund'; known: sigmoid, tanh"),
        ("train --activation relu,relu,sigmoid", "must name one for each of the 2 layers"),
        ("train --activation relu", "needs outputs in (0, 1)"),
        ("train --cost cubic", "unknown cost 'cubic'; known: quadratic"),
        ("train --optimizer sdg", "unknown optimizer 'sdg'; known: sgd"),
        ("train --backend tpu", "unknown backend 'tpu'; known: auto, numpy, cuda, numba_cuda"),
        ("train --dtype float16", "dtype must be 'float32' or 'float64'"),
        ("train --validation 2000", "leave none to train on"),
        ("train --scale a/b", "is not a number such as 0.1 or 1/255"),
        ("train --data nowhere", "no data at nowhere"),
        ("predict", "the following arguments are required: MODEL"),
        ("predict --model nowhere", "no model file at nowhere"),
        ("predict nowhere", "no model file at nowhere"),
        ("predict a b --model c", "unrecognized arguments: b"),
        ("train --target x", "--target is for tables, which the digits is not"),
        ("train --task both", "invalid choice: 'both'"),
        ("train --l2 -1", "l2 must be finite and >= 0"),
        ("train --max-norm 0", "max_norm must be finite and > 0"),
        ("train --patience -1", "patience must be >= 0"),
        ("train --dropout 1", "dropout must be in [0, 1), got 1"),
        ("train --dropout half", "--dropout must be numbers such as 0.2,0.5: could not convert"),
        ("train --dropout 0.2 0.5", "one for each of 1 hidden layers, got [0.2, 0.5]"),
        ("train --sizes 64,10 --dropout 0.5", "dropout=0.5 needs a hidden layer"),
        ("train --explain --dropout nan", "dropout must be in [0, 1), got nan"),
        ("train --sample-weight x", "--sample-weight is for tables, which the digits is not"),
        ("train --max-bytes lots", "is not a number of bytes, such as 4G"),
        (f"train --epochs {10**400}", "must be at most"),
        (f"train --batch-size {10**400}", "must be at most"),
        (f"train --patience {10**400}", "must be at most"),
        (f"train --sizes 64,{10**400},10", "must be at most"),
        ("train --sizes 64,1000000000000,10", "not enough memory"),
        ("train --validation 1e400", "a share below 1 or a number of rows"),
        ("train --learning-rate 1e400", "inf"),
        ("train --l2 1e400", "l2 must be finite and >= 0"),
        ("train --scale 1e400", "is not a number such as 0.1 or 1/255"),
    ],
)
def test_bad_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


def test_a_backend_without_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numpy_entry = backends.BACKENDS["numpy"]
    monkeypatch.setitem(backends.BACKENDS, "cuda", (lambda: "no CUDA device", numpy_entry[1]))
    message = refused(capsys, "train", "--backend", "cuda", "--out", tmp_path)
    assert "backend 'cuda' is not usable here: no CUDA device" in message


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "train", "--out", tmp_path / "file")


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "learning_curve.png").mkdir()
    assert run("train", *FAST, "--out", tmp_path) == 1
    printed = capsys.readouterr()
    assert "learning_curve.png" in printed.err.splitlines()[-1]
    assert "Traceback" not in printed.err


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Press Ctrl-C during that epoch (from 0)."""
    run_epoch = Session.run_epoch

    def stub(self: Any, live: list[Any], *rest: Any) -> list[Course]:
        if len(live[0].history) == epoch:
            raise KeyboardInterrupt
        return run_epoch(self, live, *rest)

    monkeypatch.setattr(Session, "run_epoch", stub)


def test_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, 3)
    arguments = ["--backend", "numpy", "--epochs", "9", "--out", tmp_path]
    assert run("train", *arguments) == 130
    printed = capsys.readouterr()
    assert "interrupted; the model has the weights after epoch 3" in printed.err
    accuracy = float(printed.out.split()[-1])
    data = datasets.load()
    net = Network.load(tmp_path / "model.safetensors", backend="numpy")
    assert f"{net.accuracy(data.X_val, data.y_val):.4f}" == f"{accuracy:.4f}"


def test_interrupted_in_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, 0)
    assert run("train", *FAST, "--out", tmp_path) == 130
    assert "nothing is written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--backend", "numpy", "--epochs", "6", "--optimizer", "adam", "--resume"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("train", *arguments, "--out", whole) == 0  # there is nothing to go on from
    with monkeypatch.context() as context:
        interrupt(context, 4)
        assert run("train", *arguments, "--checkpoint-every", "3", "--out", cut) == 130
    assert run("train", *arguments, "--out", cut) == 0
    assert f"resumed from {cut / 'checkpoint.safetensors'}" in capsys.readouterr().out
    models = [folder / "model.safetensors" for folder in (whole, cut)]
    assert models[0].read_bytes() == models[1].read_bytes()
    message = refused(capsys, "train", *arguments, "--learning-rate", "0.5", "--out", cut)
    assert "another learning_rate: the checkpoint has '0.003', fit '0.5'" in message


def test_a_checkpoint_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.mkdir()
    assert f"{path} is a folder" in refused(capsys, "train", *FAST, "--resume", "--out", tmp_path)
    path.rmdir()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Checkpoint, "write", full)
    assert run("train", *FAST, "--resume", "--out", tmp_path) == 1
    printed = capsys.readouterr().err
    assert "No space left on device" in printed
    assert "the model has the weights after epoch 1" in printed
    assert (tmp_path / "model.safetensors").is_file()


def test_terminated_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM ends the epoch it comes in, which is then in both files."""
    run_epoch = Session.run_epoch

    def stub(self: Any, live: list[Any], *rest: Any) -> list[Course]:
        if len(live[0].history) == 2:
            signal.raise_signal(signal.SIGTERM)
        return run_epoch(self, live, *rest)

    monkeypatch.setattr(Session, "run_epoch", stub)
    arguments = ["--backend", "numpy", "--epochs", "9", "--checkpoint-every", "100"]
    assert run("train", *arguments, "--out", tmp_path) == 143
    assert "terminated; the model has the weights after epoch 3" in capsys.readouterr().err
    model = Network.load(tmp_path / "model.safetensors", backend="numpy")
    checkpoint = Network.load(tmp_path / "checkpoint.safetensors", backend="numpy")
    X = datasets.load().X
    np.testing.assert_array_equal(model.predict(X), checkpoint.predict(X))


def test_diverging(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", X=np.eye(20), y=np.linspace(0, 1, 20))
    arguments = ["--data", tmp_path / "a.npz", *FAST, "--learning-rate", "1e30", "--out", tmp_path]
    with np.errstate(all="ignore"):
        assert run("train", *arguments) == 1
    assert "epoch 1, batch" in capsys.readouterr().err


# -- predict ----------------------------------------------------------------------------


def test_predict_with_names(
    tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--backend", "numpy", "--epochs", "40", "--out", tmp_path]
    assert run("train", "--data", flowers, *arguments) == 0
    capsys.readouterr()
    model, out = tmp_path / "model.safetensors", tmp_path / "predictions.csv"
    assert run("predict", "--model", model, "--data", flowers, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"written: {out}"
    assert lines[-1] == "accuracy: 1.0000 (90 rows)"
    assert out.read_text().splitlines()[:3] == ["row,class,label", "0,iris,iris", "1,lily,lily"]

    # without labels, to stdout, with a^L
    (tmp_path / "new.csv").write_text("6.1,5.9\n0.1,0\n")
    command = ["predict", "--model", model, "--data", tmp_path / "new.csv", "--outputs"]
    assert run(*command) == 0
    printed = capsys.readouterr()
    header, first, second = printed.out.splitlines()
    assert header == "row,class,output_0,output_1,output_2"
    assert first.startswith("0,rose,")
    assert second.startswith("1,iris,")
    assert "accuracy" not in printed.err

    (tmp_path / "wide.csv").write_text("6.1,5.9,1,2,3\n")
    command[4] = tmp_path / "wide.csv"
    message = refused(capsys, *command)
    assert "wide.csv has 5 columns; the model takes 2: width, height" in message


def test_predict_a_folder_and_one_idx_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 2, 2), dtype=np.uint8)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 12, 2, 2) + images.tobytes())
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 12) + bytes(i % 2 for i in range(12)))
    net = Network([4, 1], seed=0, backend="numpy")
    model = tmp_path / "model.safetensors"
    net.save(model)
    expected = (net.predict(images.reshape(12, 4) / np.float32(255))[:, 0] >= 0.5).astype(int)
    for data in (tmp_path, path):
        assert run("predict", "--model", model, "--data", data) == 0
        printed = capsys.readouterr()
        rows = [line.split(",") for line in printed.out.splitlines()]
        assert [int(row[1]) for row in rows[1:]] == expected.tolist()
        assert ("accuracy: " in printed.err) == (data == tmp_path)


def test_a_row_of_nan_is_of_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Network([2, 3, 2], activation=["relu", "softmax"], backend="numpy", seed=0)
    net.weights = [np.ones((3, 2)), np.ones((2, 3))]
    net.save(tmp_path / "model.safetensors")
    np.savez(tmp_path / "rows.npz", X=np.float32([[0, 0], [3e38, 3e38]]), y=[0, 1])
    with pytest.warns(RuntimeWarning, match="first of row 1"):
        assert run("predict", tmp_path / "model.safetensors", tmp_path / "rows.npz") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[2] == "1,,1"


def test_predict_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *FAST, "--out", tmp_path) == 0
    trained = capsys.readouterr().out.split()[-1]
    assert run("predict", "--model", tmp_path / "model.safetensors") == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + 359
    assert f"accuracy: {trained} (359 rows)" in printed.err


def test_a_model_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.safetensors"
    Network([64, 10], backend="numpy").save(model)
    model.write_bytes(model.read_bytes()[:-5])
    assert "cut short or not a safetensors file" in refused(capsys, "predict", "--model", model)


# -- info, compile, the rest --------------------------------------------------------------


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    out = capsys.readouterr().out
    assert re.search(rf"^backprop_gpu +{re.escape(backprop_gpu.__version__)}$", out, re.M)
    assert re.search(r"^numpy +" + re.escape(np.__version__) + "$", out, re.M)
    assert re.search(r"^  numpy +usable$", out, re.M)
    level = re.escape(cpu.library().description)
    assert re.search(rf"^CPU library +{level}$", out, re.M)
    assert re.search(r"^backend auto takes (cuda|numpy): ", out, re.M)
    for name in backends.names():
        assert re.search(rf"^  {name} +(usable|not usable: .+)$", out, re.M)


def test_info_where_nothing_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> Any:
        raise metadata.PackageNotFoundError

    def worse() -> Any:
        raise RuntimeError("driver on fire")

    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(metadata, "version", broken)
    monkeypatch.setattr(cli.info.ctypes, "CDLL", missing)
    monkeypatch.setitem(backends.BACKENDS, "cuda", (worse, lambda dtype: worse()))
    assert run("info") == 0
    out = capsys.readouterr().out
    assert re.search("^cupy +not installed$", out, re.M)
    assert re.search("^CUDA driver +not found", out, re.M)
    assert "backend auto takes numpy: cuda is not usable: RuntimeError: driver on fire" in out


def test_info_without_the_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Any:
        raise cpu.NoLibraryError("no C++20 compiler works here: set CXX")

    monkeypatch.setattr(cpu, "library", none)
    assert run("info") == 0
    assert re.search(
        "^CPU library +none, so NumPy does its work: no C.* set CXX$", capsys.readouterr().out, re.M
    )


class FakeDriver:
    """libcuda of a machine with one device, or whose cuInit fails."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    @staticmethod
    def _set(pointer: Any, value: int) -> int:
        pointer._obj.value = value  # noqa: SLF001
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        return self._set(version, 13010)

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        return self._set(count, 1)

    def cuDeviceGet(self, device: Any, index: int) -> int:
        return self._set(device, index)

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"NVIDIA H200"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        return self._set(memory, 140 * 2**30)

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:
        return self._set(value, {16: 132, 75: 9, 76: 0}[which])


def test_info_with_a_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, status = cli.info.ctypes.CDLL, 0

    def fake(name: str, *rest: Any, **options: Any) -> Any:
        """What others load meanwhile, they get."""
        is_driver = name in ("libcuda.so.1", "nvcuda.dll")
        return FakeDriver(status) if is_driver else load(name, *rest, **options)

    monkeypatch.setattr(cli.info.ctypes, "CDLL", fake)
    assert run("info") == 0
    out = capsys.readouterr().out
    assert "supports CUDA 13.1" in out
    assert "GPU 0  NVIDIA H200, compute capability 9.0, 132 multiprocessors, 140.0 GiB" in out
    status = 100
    assert run("info") == 0
    assert "supports CUDA 13.1, but cuInit fails with error 100" in capsys.readouterr().out


def report(arch: str, kernel: str, registers: int, **rest: int) -> KernelReport:
    rest = {"threads": 256, "shared_memory": 4096, "stack": 0, "spills": 0} | rest
    return KernelReport(kernel, arch, registers=registers, **rest)


@pytest.fixture
def fake_compiler(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A compiler whose reports a test may choose; reports[arch] may be an exception."""

    def compile_all(arch: str) -> Iterator[KernelReport]:
        value = fake.reports[arch]
        if isinstance(value, Exception):
            raise value
        yield from value

    fake = SimpleNamespace(
        ARCHITECTURES=("sm_80", "sm_90a"),
        compile_all=compile_all,
        reports={
            "sm_80": [
                report("sm_80", "forward<float>", 140, shared_memory=16896),
                report("sm_80", "hidden_error<float>", 150),
                report("sm_80", "update<float>", 20),
            ],
            "sm_90a": [report("sm_90a", "forward<float>", 255, spills=8)],
        },
    )
    monkeypatch.setitem(sys.modules, "backprop_gpu.cuda.compiler", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(backprop_gpu.cuda, "compiler", fake)
    return fake


def test_compile(fake_compiler: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compile", "--arch", "sm_80") == 0
    lines = capsys.readouterr().out.splitlines()
    head = "arch threads regs shared stack spills blocks occ. limit kernel"
    assert lines[0].split() == head.split()
    # 140 registers: 18 units of 256 a warp, 3 warps a quarter, so one block of 8 warps of 64.
    row = "sm_80 256 140 16896 0 0 1 12% regs forward<float>"
    assert lines[1].split() == row.split()
    assert lines[1].index("forward") == lines[0].index("kernel")
    assert lines[3].split()[6:] == ["8", "100%", "warps", "update<float>"]
    assert lines[4] == "most registers: sm_80 150"
    assert lines[5] == "least occupancy (kernels): sm_80 12% (2)"
    assert re.fullmatch(
        r"3 kernels compiled in [\d.]+ s; none with spills, a stack frame or too large a block",
        lines[6],
    )
    assert len(lines) == 7


def test_compile_finds_a_spill(
    fake_compiler: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--arch", "sm_80", "--arch", "sm_90a"], ["--arch", "sm_80,sm_90a"]):
        assert run("compile", *arguments) == 1
        out = capsys.readouterr().out
        row = r"^sm_90a +256 +255 +4096 +0 +8 +1 +12% regs +forward<float>  <-- spills$"
        assert re.search(row, out, re.M)
        assert "4 kernels compiled" in out
        assert out.endswith("; 1 with spills\n")


def test_compile_finds_a_stack_frame_and_a_block_that_does_not_fit(
    fake_compiler: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_compiler.reports["sm_80"] = [
        report("sm_80", "forward<float>", 32, stack=16),
        report("sm_80", "gather<float>", 128, threads=1024),
        report("sm_80", "update<float>", 32),
    ]
    assert run("compile", "--arch", "sm_80") == 1
    out = capsys.readouterr().out
    assert re.search(r" +16 +0 +8 +100% warps +forward<float>  <-- a stack frame$", out, re.M)
    assert re.search(r" +0 +0% regs +gather<float>  <-- too large a block$", out, re.M)
    assert out.count("<--") == 2
    assert out.endswith("; 1 with a stack frame, 1 with too large a block\n")


def test_compile_for_an_architecture_whose_limits_are_not_known(
    fake_compiler: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_compiler.reports["sm_70"] = [report("sm_70", "forward<float>", 32)]
    assert run("compile", "--arch", "sm_70") == 0
    out = capsys.readouterr().out
    assert re.search(r"^sm_70 +256 +32 +4096 +0 +0 +\? +\? \? +forward<float>$", out, re.M)
    assert "least occupancy (kernels): sm_70 ?\n" in out


def test_compile_errors(fake_compiler: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "compile", "--arch", "hopper")
    assert "--arch takes names like sm_90a, got 'hopper'; known: sm_80, sm_90a" in message
    fake_compiler.reports["sm_80"] = RuntimeError("forward.cu does not compile\nline 3")
    assert run("compile") == 1
    assert "forward.cu does not compile\nline 3" in capsys.readouterr().err
    fake_compiler.reports["sm_80"] = ImportError("pip install 'backprop_gpu[compile]'")
    assert run("compile") == 2
    assert "pip install 'backprop_gpu[compile]'" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"backprop-gpu {backprop_gpu.__version__}\n"
    assert run("--help") == 0
    assert "train" in capsys.readouterr().out
    assert run("train", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "sigmoid, tanh, relu" in out
    assert "auto, numpy, cuda, numba_cuda" in out
    for command in ("predict", "info", "compile"):
        assert run(command, "--help") == 0


def test_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backprop_gpu", "train", "--sizes", "3", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_importing_the_command_imports_nothing_heavy() -> None:
    heavy = ("sklearn", "matplotlib", "scipy", "cupy", "numba", "cuda", "tqdm")
    present = [name for name in heavy if importlib.util.find_spec(name)]
    code = f"import sys, backprop_gpu.cli; print([m for m in {present} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- costs beyond the usual ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "columns"),
    [
        ("gaussian_nll", ["prediction", "deviation", "label"]),
        (
            "quantile(q=(0.1, 0.5, 0.9))",
            ["prediction", "quantile_0.1", "quantile_0.5", "quantile_0.9", "label"],
        ),
        ("huber(delta=0.5)", ["prediction", "label"]),
        ("absolute_error", ["prediction", "label"]),
    ],
)
def test_costs_of_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cost: str, columns: list[str]
) -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.uniform(-1, 1, 300), rng.standard_normal(300)
    table = tmp_path / "table.csv"
    rows = [f"{a:.6g},{1000 + 100 * a + 10 * b:.6g}" for a, b in zip(x, noise, strict=True)]
    table.write_text("\n".join(["x,price", *rows]))
    arguments = ["--backend", "numpy", "--epochs", "200", "--out", tmp_path, "--optimizer", "adam"]
    arguments += ["--learning-rate", "0.005", "--batch-size", "30"]
    assert run("train", "--data", table, "--target", "price", "--cost", cost, *arguments) == 0
    out = tmp_path / "out.csv"
    assert run("predict", tmp_path / "model.safetensors", table, "--out", out) == 0
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert lines[0] == ["row", *columns]
    numbers = np.array(lines[1:], float)
    assert np.abs(numbers[:, 1] - numbers[:, -1]).mean() < 12  # of numbers from 900 to 1100
    if cost == "gaussian_nll":
        assert numbers[:, 2].mean() == pytest.approx(10, abs=3)
    if cost.startswith("quantile"):
        share = (numbers[:, -1:] < numbers[:, 2:5]).mean(axis=0)
        np.testing.assert_allclose(share, [0.1, 0.5, 0.9], atol=0.1)


def test_a_margin_and_balanced_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cost", "hinge", "--class-weight", "balanced", "--epochs", "3"]
    assert run("train", *arguments, "--backend", "numpy", "--out", tmp_path) == 0
    assert "classes balanced" in capsys.readouterr().out
    assert run("predict", tmp_path / "model.safetensors", "--backend", "numpy") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("row,class,label")
    assert "accuracy: 0." in printed.out + printed.err


@pytest.mark.parametrize(
    ("given", "rates", "shown"),
    [
        (["0.5"], 0.5, "sgd, dropout 0.5 0.5, seed 0"),
        (["0.2,0.5"], [0.2, 0.5], "sgd, dropout 0.2 0.5, seed 0"),
        (["0", "0.5"], [0.0, 0.5], "sgd, dropout 0 0.5, seed 0"),
        (["0"], 0.0, "sgd, seed 0"),
    ],
)
def test_dropout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], rates: Any, shown: str
) -> None:
    arguments = ["--sizes", "64,20,15,10", "--epochs", "2", "--backend", "numpy"]
    assert run("train", *arguments, "--dropout", *given, "--out", tmp_path) == 0
    assert shown in capsys.readouterr().out
    data = datasets.load()
    net = Network([64, 20, 15, 10], cost="binary_cross_entropy", backend="numpy", seed=0)
    net.fit(
        data.X, data.y, epochs=2, batch_size=10, learning_rate=0.5, dropout=rates,
        validation_data=(data.X_val, data.y_val),
    )  # fmt: skip
    trained = Network.load(tmp_path / "model.safetensors", backend="numpy")
    np.testing.assert_array_equal(trained.weights[1], net.weights[1])


def test_a_cost_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cost, message in (
        ("huber(delta=-1)", "delta must be in (0, inf), got -1"),
        ("hubert", "unknown cost 'hubert'"),
    ):
        assert run("train", "--cost", cost, "--out", tmp_path) == 2
        assert message in capsys.readouterr().err
