"""``backprop-gpu export`` and ``backprop-gpu import``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from backprop_gpu import Network
from backprop_gpu.cli import main
from backprop_gpu.preprocessing import Number, Preprocessing
from machine import ROOT

FILES = ROOT / "tests/data/formats"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    net = Network([2, 3, 1], activation=["tanh", "identity"], seed=0, backend="numpy")
    columns = Number("a", 5.0, 2.0), Number("b", 0.0, 0.5)
    net.preprocessing = Preprocessing(columns, Number("y", 1.0, 3.0), ("a", "b", "y"), True)
    net.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_export(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model.parent / "net.ONNX"
    assert main(["export", str(model), "--out", str(path), "--opset", "15"]) == 0
    assert capsys.readouterr().out == f"written: {path}\n"
    session = onnxruntime.InferenceSession(path.read_bytes())
    outputs, prediction = session.run(None, {"X": np.array([[7.0, 1.0]])})
    expected = Network.load(model).predict([[1.0, 2.0]])
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    np.testing.assert_allclose(prediction, 1 + 3 * expected, rtol=1e-6)
    assert main(["export", str(model), "--out", str(path), "--no-preprocessing"]) == 0
    session = onnxruntime.InferenceSession(path.read_bytes())
    np.testing.assert_allclose(
        session.run(None, {"X": np.float32([[1, 2]])})[0], expected, rtol=1e-6
    )
    header = model.parent / "net.h"
    assert main(["export", str(model), "--out", str(header), "--name", "ours"]) == 0
    assert "void ours_forward(const float x[2], float a[1])" in header.read_text()


def test_export_refuses(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, more, message in (
        ("net.pb", (), "--out must end with .onnx or .h, got net.pb"),
        ("net.h", ("--opset", 17), "--opset is for .onnx files, and --out is net.h"),
        ("net.h", ("--no-preprocessing",), "--no-preprocessing is for .onnx files"),
        ("net.onnx", ("--name", "x"), "--name is for .h files"),
        ("net.h", ("--name", "1"), "name must be an identifier of C"),
        ("net.onnx", ("--opset", 3), "opset must be in [13, "),
        ("missing/net.onnx", (), "No such file or directory"),
    ):
        assert message in refused(capsys, "export", model, "--out", out, *more)
    assert "no model file at" in refused(capsys, "export", "missing", "--out", "net.h")
    assert "required: --out" in refused(capsys, "export", model)
    assert os.listdir(model.parent) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("torch_script.onnx", "network: 4 inputs, 6 gelu, 5 silu, 5 elu, 3 softmax; cost "
         "categorical_cross_entropy, float32"),
        ("keras_functional.keras", "network: 4 inputs, 5 elu, 4 relu, 4 softplus, 1 sigmoid; cost "
         "binary_cross_entropy, float64"),
        ("keras_sequential.h5", "network: 4 inputs, 5 gelu, 6 leaky_relu, 6 silu, 3 softmax; cost "
         "categorical_cross_entropy, float32"),
    ],
)  # fmt: skip
def test_import(name: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.safetensors"
    assert main(["import", str(FILES / name), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [line, f"written: {out}"]
    assert Network.load(out).sizes[0] == 4
    assert main(["import", str(FILES / name), "--out", str(out), "--cost", "quadratic"]) == 0
    assert Network.load(out).cost.name == "quadratic"


def test_import_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.safetensors"
    keras, onnx = FILES / "keras_sequential.h5", FILES / "torch_script.onnx"
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    for arguments, message in (
        (("model.pt",), "FILE must end with .onnx, .keras or .h5, got model.pt"),
        (("missing.onnx",), "no ONNX model at missing.onnx"),
        (("missing.keras",), "no file of Keras' at missing.keras"),
        ((tmp_path / "bad.onnx",), f"{tmp_path / 'bad.onnx'}: "),
        ((keras, "--output", "y"), "--output is for .onnx files"),
        ((onnx, "--output", "y"), "it has no output 'y'"),
        ((onnx, "--cost", "none"), "unknown cost 'none'"),
    ):
        assert message in refused(capsys, "import", *arguments, "--out", out)
    assert "required: --out" in refused(capsys, "import", keras)
    assert not out.exists()


def test_import_says_what_a_table_loses(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "\n".join(f"{i},{2 * i},{50 * i + 1000}" for i in range(40))
    (tmp_path / "rows.csv").write_text(f"a,b,y\n{rows}\n")
    table = tmp_path / "model.safetensors"
    training = ["train", "--data", tmp_path / "rows.csv", "--task", "regression", "--epochs", "2"]
    assert main(list(map(str, [*training, "--out", tmp_path]))) == 0
    assert main(["export", str(table), "--out", str(tmp_path / "m.h")]) == 0
    assert "note: the header takes what stands behind the table" in capsys.readouterr().out
    assert main(["export", str(table), "--out", str(tmp_path / "m.onnx")]) == 0
    assert main(["import", str(tmp_path / "m.onnx"), "--out", str(tmp_path / "b.safetensors")]) == 0
    assert "a target of numbers is standardised" in capsys.readouterr().out
