"""Networks as ONNX: onnxruntime gives what `predict` does, for every activation and both dtypes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from backprop_gpu import Activation, Network, activations, costs, onnx_nodes
from backprop_gpu.formats import from_onnx, to_onnx
from backprop_gpu.preprocessing import Category, Number, Preprocessing

DTYPES = ("float32", "float64")


def run(model, feeds) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def network(name: str, dtype: str, sizes=(5, 8, 7, 3)) -> Network:
    hidden = "tanh" if name in ("softmax", "exponential") else name
    layers = len(sizes) - 1
    net = Network(
        sizes, activation=[hidden] * (layers - 1) + [name], dtype=dtype, seed=1, backend="numpy"
    )
    rng = np.random.default_rng(0)
    net.biases = [rng.standard_normal(b.shape) for b in net.biases]
    return net


def test_every_activation_has_an_operator() -> None:
    builtin = {name for name in activations.names() if activations.get(name).builtin}
    assert set(onnx_nodes.OPERATORS) == builtin


@pytest.mark.parametrize("opset", [13, None, 20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(onnx_nodes.OPERATORS))
def test_onnxruntime_gives_what_predict_does(name: str, dtype: str, opset: int | None) -> None:
    net = network(name, dtype)
    X = np.random.default_rng(2).normal(0, 2, (40, 5)).astype(dtype)
    model = to_onnx(net, opset=opset)
    assert [each.version for each in model.opset_import] == [opset or 17]
    outputs = run(model, {"X": X})["outputs"]
    expected = net.predict(X)
    assert outputs.dtype == np.dtype(dtype)
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    assert np.abs(outputs - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in onnx_nodes.OPERATORS if name != "softmax"])
def test_activations_from_far_left_to_far_right(name: str, dtype: str) -> None:
    net = Network([1, 1], activation=name, dtype=dtype, backend="numpy")
    net.weights, net.biases = [[[1.0]]], [[0.0]]
    reach = 80.0 if dtype == "float32" else 600.0
    z = np.concatenate([np.linspace(-reach, reach, 4001), np.linspace(-6, 6, 4001), [0.0]])
    z = z[:, np.newaxis].astype(dtype)
    outputs, expected = run(to_onnx(net), {"X": z})["outputs"], net.predict(z)
    tolerance = 1e-6 if dtype == "float32" else 1e-15
    # relative to 1, or to z or a where that is larger: a left tail has lost its digits
    scale = np.maximum(np.maximum(np.abs(expected), np.abs(z)), 1)
    assert (np.abs(outputs - expected) <= tolerance * scale).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(onnx_nodes.OPERATORS))
def test_what_is_written_is_read_to_the_bit(name: str, dtype: str, tmp_path: Path) -> None:
    net = network(name, dtype)
    path = tmp_path / "net.onnx"
    assert to_onnx(net, path) == onnx.load(path)
    back = from_onnx(path)
    assert back.activations == net.activations
    assert back.dtype == net.dtype
    for ours, theirs in zip(net.weights + net.biases, back.weights + back.biases, strict=True):
        assert (ours == theirs).all()


def test_one_row_and_many() -> None:
    net = network("relu", "float32")
    model = to_onnx(net)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    for rows in (1, 7):
        X = np.ones((rows, 5), np.float32)
        assert run(model, {"X": X})["outputs"].shape == (rows, 3)


def test_metadata() -> None:
    net = Network([2, 3], activation="softmax", cost="categorical_cross_entropy", backend="numpy")
    levels = ("ja", "nein", "日本")
    net.preprocessing = Preprocessing(None, Category("y", levels))
    model = to_onnx(net)
    found = {each.key: each.value for each in model.metadata_props}
    assert found["cost"] == "categorical_cross_entropy"
    assert json.loads(found["classes"]) == list(levels)
    assert json.loads(found["backprop_gpu"])["sizes"] == [2, 3]
    assert model.producer_name == "backprop_gpu"
    assert model.producer_version
    got = run(model, {"X": np.array([[9, -9], [-9, 9]], np.float32)})
    assert [levels[i] for i in got["outputs"].argmax(axis=1)] == got["class"].tolist()
    assert "class" not in run(
        to_onnx(net, preprocessing=False), {"X": np.zeros((1, 2), np.float32)}
    )


# -- tables ----------------------------------------------------------------------------------------


def table(*columns, target, outputs=1, cost="quadratic", activation="identity") -> Network:
    preprocessing = Preprocessing(
        columns, target, (*(column.name for column in columns), "y"), header=True
    )
    net = Network(
        [preprocessing.width, outputs], activation=activation, cost=cost, seed=0, backend="numpy"
    )
    net.preprocessing = preprocessing
    return net


def test_numbers_are_standardised_in_float64() -> None:
    # Of so large a mean float32 would leave no digit.
    columns = Number("t", 1.7e9, 12.5), Number("p", -2.0, 0.5)
    net = table(*columns, target=Number("y", 100.0, 7.0))
    X = np.array([[1.7e9 + 3, -1.9], [1.7e9 - 20, 0.0]])
    got = run(to_onnx(net), {"X": X})
    inputs = (X - [1.7e9, -2.0]) / [12.5, 0.5]
    expected = net.predict(inputs)
    np.testing.assert_allclose(got["outputs"], expected, rtol=1e-6)
    assert got["prediction"].dtype == np.float64
    np.testing.assert_allclose(got["prediction"], 100 + 7 * expected.astype(float), rtol=1e-6)
    plain = run(to_onnx(net, preprocessing=False), {"X": inputs.astype(np.float32)})
    np.testing.assert_allclose(plain["outputs"], expected, rtol=1e-6)
    assert list(plain) == ["outputs"]


def test_gaps_are_filled_where_the_training_filled_them() -> None:
    net = table(Number("a", 3.0, 2.0, fill=3.0), Number("b", 1.0, 1.0), target=Number("y"))
    got = run(to_onnx(net), {"X": np.array([[np.nan, 1.0], [3.0, 1.0], [3.0, np.nan]])})
    assert got["outputs"][0] == got["outputs"][1]
    assert np.isnan(got["outputs"][2])


@pytest.mark.parametrize("fill", [None, "red"])
def test_texts(fill: str | None) -> None:
    net = table(
        Category("colour", ("blue", "red"), fill), Number("x", 1.0, 2.0), target=Number("y")
    )
    texts = np.array([["red"], ["blue"], ["green"], [""]], object)
    got = run(to_onnx(net), {"colour": texts, "x": np.full((4, 1), 5.0)})["outputs"]
    gap = [0, 0] if fill is None else [0, 1]
    expected = net.predict([[0, 1, 2], [1, 0, 2], [0, 0, 2], [*gap, 2]])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "activation", "cost"),
    [
        (1, "sigmoid", "binary_cross_entropy"),
        (1, "identity", "hinge"),
        (2, "softmax", "categorical_cross_entropy"),
        (2, "identity", "hinge"),
    ],
)
def test_names_of_classes(outputs: int, activation: str, cost: str) -> None:
    net = table(
        Number("x"), target=Category("y", ("no", "yes")), outputs=outputs, cost=cost,
        activation=activation,
    )  # fmt: skip
    x = np.linspace(-3, 3, 8)[:, np.newaxis]
    got = run(to_onnx(net), {"X": x})
    from backprop_gpu.validation import predicted

    expected = predicted(net.predict(x), net.cost.threshold)
    assert got["class"].tolist() == [("no", "yes")[i] for i in expected]
    assert len(set(got["class"].tolist())) == 2


def test_means_and_medians_predict() -> None:
    for cost, column in ((costs.GaussianNLL(), 0), (costs.Quantile((0.1, 0.5, 0.9)), 1)):
        net = table(
            Number("x"), target=Number("y", 5.0, 2.0), outputs=cost.outputs_of(1), cost=cost
        )
        got = run(to_onnx(net), {"X": np.ones((3, 1))})
        expected = 5 + 2 * got["outputs"][:, [column]].astype(float)
        np.testing.assert_allclose(got["prediction"], expected)


def test_columns_whose_names_outputs_have() -> None:
    net = table(Category("outputs", ("a", "b")), target=Number("y"))
    with pytest.raises(ValueError, match="no input can be called 'outputs'"):
        to_onnx(net)
    to_onnx(net, preprocessing=False)
    # Numbers alone are one input, whatever they are called.
    to_onnx(table(Number("outputs"), target=Number("y")))
    # Nodes make way for columns.
    net = table(Category("Gemm_1", ("a", "b")), Number("constant_1"), target=Number("y"))
    run(to_onnx(net), {"Gemm_1": np.array([["a"]]), "constant_1": np.ones((1, 1))})


# -- what is refused -------------------------------------------------------------------------------


def test_python_has_no_operator(tmp_path: Path) -> None:
    mine = Activation("mine", lambda z: z * z, lambda z: 2 * z)
    net = Network([2, 3, 1], activation=[mine, "sigmoid"], backend="numpy")
    with pytest.raises(ValueError, match=r"activation 'mine' of layer 1 is Python of your own"):
        to_onnx(net, tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


def test_arguments(tmp_path: Path) -> None:
    net = network("relu", "float32")
    with pytest.raises(TypeError, match="net must be a Network, got str"):
        to_onnx("net")
    for opset in (12, 10**6, 17.5):
        with pytest.raises((ValueError, TypeError), match="opset must be"):
            to_onnx(net, opset=opset)
    with pytest.raises((ValueError, TypeError), match="preprocessing must be"):
        to_onnx(net, preprocessing="yes")
    with pytest.raises(FileNotFoundError):
        to_onnx(net, tmp_path / "missing" / "net.onnx")


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = r"to_onnx: .* pip install 'backprop_gpu\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        to_onnx(network("relu", "float32"))
