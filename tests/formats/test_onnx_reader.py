"""Models of other libraries in ONNX, and what is no Network, or damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backprop_gpu import Network, reading
from backprop_gpu.formats import from_onnx, to_onnx
from machine import ROOT

FILES = ROOT / "tests/data/formats"
EXPECTED = json.loads((FILES / "expected.json").read_text())
W = np.array([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]], np.float32)  # (2, 3)
B = np.array([0.5, -0.5], np.float32)
X = np.random.default_rng(0).normal(0, 1, (9, 3)).astype(np.float32)
Z = X @ W.T + B


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=f"{kind}_{output}", **attributes)


def graph(
    *nodes: Any,
    output: str = "y",
    shape: Sequence[Any] | None = ("N", 3),
    kind: int = TensorProto.FLOAT,
    out: int = TensorProto.FLOAT,
    **constants: Any,
) -> Any:
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info(output, out, ["N", "M"])],
            made,
        )
    )


def dense(*nodes: Any, **constants: Any) -> Any:
    """z = w x + b, and what comes behind it."""
    return graph(node("Gemm", "x w b", "z", transB=1), *nodes, **({"w": W, "b": B} | constants))


# -- files of others -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch_script", "torch_dynamo"])
def test_pytorch(name: str) -> None:
    net = from_onnx(FILES / f"{name}.onnx")
    assert [sigma.name for sigma in net.activations] == ["gelu", "silu", "elu", "softmax"]
    assert net.cost.name == "categorical_cross_entropy"
    np.testing.assert_allclose(net.predict(EXPECTED["X"]), EXPECTED["torch"], rtol=1e-5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_scikit_learn(classes: int, zipmap: bool) -> None:
    skl2onnx = pytest.importorskip("skl2onnx", reason="the extra onnx has skl2onnx")
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    rows = rng.normal(5, 3, (60, 4)).astype(np.float32)
    labels = rng.integers(0, classes, 60)
    theirs = MLPClassifier((6, 5), activation="tanh", max_iter=3, random_state=0)
    pipeline = make_pipeline(StandardScaler(), theirs).fit(rows, labels)
    model = skl2onnx.to_onnx(pipeline, rows[:1], options={"zipmap": zipmap})
    net = from_onnx(model)
    expected = pipeline.predict_proba(rows)
    if classes == 2:
        expected = expected[:, 1:]
    assert net.sizes == (4, 6, 5, 1 if classes == 2 else 3)
    np.testing.assert_allclose(net.predict(rows), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learns_regressor() -> None:
    skl2onnx = pytest.importorskip("skl2onnx", reason="the extra onnx has skl2onnx")
    from sklearn.neural_network import MLPRegressor

    theirs = MLPRegressor(hidden_layer_sizes=(6,), max_iter=3, random_state=0).fit(X, X[:, 0])
    net = from_onnx(skl2onnx.to_onnx(theirs, X[:1]))
    assert net.cost.name == "quadratic"
    np.testing.assert_allclose(net.predict(X)[:, 0], theirs.predict(X), rtol=1e-4, atol=1e-6)


# -- what nodes do ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (dense(output="z"), Z),
        (graph(node("Gemm", "x w", "y"), w=W.T), X @ W.T),
        (
            graph(node("Gemm", "x w b", "y", transB=1, alpha=2.0, beta=-1.0), w=W, b=B),
            2 * X @ W.T - B,
        ),
        (graph(node("Gemm", "x w b", "y", transB=1), w=W, b=np.float32(3)), X @ W.T + 3),
        (graph(node("MatMul", "x w", "m"), node("Add", "b m", "y"), w=W.T, b=B), Z),
        (
            graph(
                node("Transpose", "w", "wt", perm=[1, 0]), node("MatMul", "x wt", "m"),
                node("Add", "m b", "y"), w=W, b=B[np.newaxis],
            ),
            Z,
        ),
        (dense(node("Identity", "z", "i"), node("Cast", "i", "y", to=1)), Z),
        (dense(node("Dropout", "z", "d"), node("Relu", "d", "y")), np.maximum(Z, 0)),
        (
            graph(
                node("Cast", "x", "c", to=1), node("Gemm", "c w b", "y", transB=1), w=W, b=B,
                kind=TensorProto.INT64,
            ),
            Z,
        ),
        (
            graph(
                node("Flatten", "x", "f"), node("Gemm", "f w b", "y", transB=1), w=W, b=B,
                shape=("N", 3, 1),
            ),
            Z,
        ),
        (
            graph(
                node("Reshape", "x s", "f"), node("Gemm", "f w b", "y", transB=1), w=W, b=B,
                s=np.array([-1, 3]), shape=("N", 1, 3),
            ),
            Z,
        ),
        # columns scaled before, outputs behind
        (
            graph(
                node("Sub", "x m", "c"), node("Div", "c s", "d"),
                node("Gemm", "d w b", "y", transB=1), w=W, b=B,
                m=np.float32([1, 2, 3]), s=np.float32([2, 4, 0.5]),
            ),
            (X - np.float32([1, 2, 3])) / np.float32([2, 4, 0.5]) @ W.T + B,
        ),
        (
            graph(
                node("Div", "x s", "d"), node("Gemm", "d w b", "y", transB=1), w=W, b=B,
                s=np.float32(255), shape=None,
            ),
            X / 255 @ W.T + B,
        ),
        (
            dense(
                node("Mul", "z s", "m"), node("Add", "m t", "y"), s=np.float32(3), t=np.float32(7)
            ),
            3 * Z + 7,
        ),
        (dense(node("Sub", "t z", "y"), t=np.float32([1, 2])), np.float32([1, 2]) - Z),
        (dense(node("Gemm", "z v", "y"), v=np.eye(2, dtype=np.float32)), Z),
        # activations, from here on by their curves
        (dense(node("LeakyRelu", "z", "y")), np.maximum(Z, 0.01 * Z)),
        (dense(node("Sigmoid", "z", "s"), node("Mul", "z s", "y")), Z / (1 + np.exp(-Z))),
        (dense(node("Clip", "z low", "y"), low=np.float32(0)), np.maximum(Z, 0)),
        (
            dense(node("Mul", "z s", "m"), node("Max", "m z", "y"), s=np.float32(0.01)),
            np.maximum(Z, 0.01 * Z),
        ),
        (
            dense(node("Softmax", "z", "y", axis=1)),
            np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True),
        ),
        (dense(node("Exp", "z", "y")), np.exp(Z)),
        # which overflows
        (
            dense(node("Exp", "z", "e"), node("Add", "e one", "f"), node("Log", "f", "y"),
                  one=np.float32(1)),
            np.logaddexp(Z, 0),
        ),
    ],
)  # fmt: skip
def test_nodes(model: Any, expected: np.ndarray) -> None:
    if model.graph.input[0].type.tensor_type.HasField("shape"):  # else it is not quite valid
        onnx.checker.check_model(model)
    net = from_onnx(model)
    np.testing.assert_allclose(net.predict(X), expected, rtol=2e-5, atol=1e-6)


def test_float64_anywhere_is_float64() -> None:
    model = graph(
        node("Gemm", "x w b", "y", transB=1), w=W.astype(float), b=B.astype(float),
        kind=TensorProto.DOUBLE, out=TensorProto.DOUBLE,
    )  # fmt: skip
    assert from_onnx(model).dtype == np.float64


def test_the_output_that_is_asked_for() -> None:
    model = dense(node("Sigmoid", "z", "y"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert from_onnx(model).activations[-1].name == "sigmoid"
    assert from_onnx(model, output="z").activations[-1].name == "identity"
    with pytest.raises(ValueError, match="the model: it has no output 'a', but 'y', 'z'"):
        from_onnx(model, output="a")


def test_cost_and_seed() -> None:
    net = from_onnx(dense(node("Sigmoid", "z", "y")), cost="quadratic", seed=4, backend="numpy")
    assert net.cost.name == "quadratic"
    with pytest.raises(ValueError, match="unknown cost 'none'"):
        from_onnx(dense(output="z"), cost="none")
    net.fit(X, Z > 0, epochs=1, batch_size=3, learning_rate=0.1)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph(node("Conv", "x w", "y"), w=W), r"node 'Conv_y' \(Conv\) is not supported"),
        (graph(node("Relu", "x", "y")), r"\(Relu\).*no layer comes before it"),
        (dense(node("Relu", "z", "r"), node("Tanh", "r", "y")), r"'Tanh_y'.*none of a Network's"),
        (
            dense(node("Softmax", "z", "s"), node("Gemm", "s v", "y"), v=np.eye(2, dtype="f4")),
            r"\(Gemm\).*after a softmax",
        ),
        (dense(node("Softmax", "z", "y", axis=0)), "its axis is 0"),
        (dense(node("Cast", "z", "i", to=7), node("Cast", "i", "y", to=1)), r"\(Cast\).*float32"),
        (dense(node("Cast", "w", "v", to=7), node("Gemm", "z v", "y")), r"'Cast_v'"),
        (graph(node("Div", "x s", "d"), node("Cast", "d", "f", to=1), node("Gemm", "f w", "y"),
               w=W.T, s=np.array(255), kind=TensorProto.INT64), "a Cast must come first"),
        (graph(node("Reshape", "x", "f"), node("Gemm", "f w", "y"), w=W.T), "something else than"),
        (dense(node("Softmax", "z", "s"), node("Relu", "s", "y")), "this is its second"),
        (dense(node("LeakyRelu", "z", "y", alpha=0.2)), r"'LeakyRelu_y'.*none of a Network's"),
        (dense(node("Elu", "z", "y", alpha=0.5)), r"'Elu_y'.*none of a Network's"),
        (dense(node("Gelu", "z", "y", approximate="tanh")), "none of a Network's"),
        (dense(node("Elu", "z", "y", alpha=[1.0])), "its alpha is of another type"),
        (dense(node("Relu", "z", "y", domain="mine")), "its domain is 'mine'"),
        (graph(node("Gemm", "x w", "y", transA=1), w=W), "takes the rows transposed"),
        (graph(node("Gemm", "w x", "y"), w=W), "rows must be its first factor"),
        (graph(node("MatMul", "x x", "y")), "its weights are no constant"),
        (graph(node("MatMul", "x w", "y"), w=np.ones((2, 2), "f4")), "takes 2 numbers, and gets 3"),
        (graph(node("MatMul", "x w", "y"), w=np.ones((3, 2, 2), "f4")), "weights of shape"),
        (graph(node("Gemm", "x w", "y"), w=np.ones((3, 0), "f4")), "weights of shape"),
        (
            graph(node("Gemm", "x w b", "y"), w=W.T, b=np.ones((9, 2), "f4")),
            "a bias of shape",
        ),
        (graph(node("MatMul", "x w", "y"), w=W.T.astype(int)), "floating-point numbers"),
        (graph(node("Gemm", "x w", "y"), w=W.T, shape=("N", 4, 3)), "a Flatten must come before"),
        (graph(node("Gemm", "x w", "y"), w=W.T, shape=(3,)), "must be rows"),
        (graph(node("Gemm", "x w", "z"), w=W.T), "depends on none|no function of the input"),
        (dense(node("Add", "z z", "y")), "none of a Network's"),
        (dense(node("Relu", "z", "r"), node("Gemm", "r v", "q"), node("Mul", "r q", "y"),
               v=np.eye(2, dtype="f4")), "rows of two layers"),
        (dense(node("Relu", "z", "r"), node("Mul", "r s", "y"), s=np.float32([1, 2])),
         "scaled or shifted behind the last activation"),
        (dense(node("Dropout", "z r t", "y"), r=np.float32(0.5), t=np.array(True)), "drops"),
        (dense(node("Concat", "z z", "y", axis=1)), "rows are put together"),
        (dense(node("Clip", "z low high", "y"), low=np.float32(0), high=np.float32(1e6)),
         "'Clip_y'.*none of a Network's"),
        (dense(node("Mul", "z s", "y"), s=np.ones(0, "f4")), "a row has 2 numbers"),
        (dense(node("Mul", "z s", "y"), s=np.ones(3, "f4")), "a row has 2 numbers"),
        (dense(node("Div", "t z", "y"), t=np.float32([1, 2])), "divides by the rows"),
        (dense(node("Relu", "q", "y"), node("Neg", "z", "q")), "not known before it"),
        (dense(node("Relu", "z", "y"), node("Tanh", "z", "y")), "two nodes make 'y'"),
        (dense(output="z", w=np.full_like(W, np.nan)), "NaN"),
    ],
)  # fmt: skip
def test_what_no_network_is(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_onnx(model)
    assert str(caught.value).startswith("the model: ")
    assert len(str(caught.value)) < 300


def test_two_inputs() -> None:
    model = dense(node("Add", "z other", "y"))
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 2]))
    with pytest.raises(ValueError, match="one input, and 'y' depends on 'x', 'other'"):
        from_onnx(model)


def test_shapes_that_are_not_there() -> None:
    model = dense(output="z")
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**31, 3])
    with pytest.raises(ValueError, match=r"take more than 1,073,741,824 bytes"):
        from_onnx(model)
    model.graph.initializer[0].dims[0] = 2**20
    with pytest.raises(ValueError, match=r"constant 'w' of shape .* has 24 numbers"):
        from_onnx(model)
    model.graph.initializer[0].dims[0] = -1
    with pytest.raises(ValueError, match=r"constant 'w' has shape \[-1, 3\]"):
        from_onnx(model)


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"model must be a path or an onnx\.ModelProto, got int"):
        from_onnx(3)
    with pytest.raises(FileNotFoundError, match="no ONNX model at"):
        from_onnx(tmp_path / "missing.onnx")
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^{path}: cut short or not an ONNX model"):
        from_onnx(path)
    to_onnx(Network([3, 2]), path)
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=rf"^{path}: .* more than the 100 that are read"):
        from_onnx(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'backprop_gpu\[onnx\]'"):
        from_onnx(path)


# -- constants in other files ----------------------------------------------------------------------


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose constants lie beside it, in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("torch_dynamo.onnx", "torch_dynamo.onnx.data"):
        shutil.copy(FILES / name, folder)
    return folder / "torch_dynamo.onnx"


def relocated(path: Path, **entries: str) -> Path:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for each in tensor.external_data:
            each.value = entries.get(each.key, each.value)
    path.write_bytes(model.SerializeToString())
    return path


def test_constants_in_another_file(external: Path) -> None:
    from_onnx(external)
    with pytest.raises(ValueError, match="give the path of the model"):
        from_onnx(onnx.load(external, load_external_data=False))


@pytest.mark.parametrize(
    "location",
    ["../outside.data", "/etc/hostname", "link.data", "a/../../outside.data", "a\0b", ""],
)
def test_files_outside_of_the_folder_are_not_read(external: Path, location: str) -> None:
    outside = external.parent.parent / "outside.data"
    shutil.copy(FILES / "torch_dynamo.onnx.data", outside)
    (external.parent / "link.data").symlink_to(outside)
    (external.parent / "a").mkdir()
    with pytest.raises(ValueError, match=rf"^{external}: .*outside of the model's folder"):
        from_onnx(relocated(external, location=location))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "missing.data"}, "which is not there"),
        ({"location": "."}, "which is not there"),
        ({"location": "round"}, "which is not there"),
        ({"offset": "-4"}, "too short for it"),
        ({"offset": str(10**30)}, "too short for it"),
        ({"length": "4"}, "too short for it"),
        ({"offset": "four"}, "the place of its data is damaged"),
    ],
)
def test_places_of_data(external: Path, entries: dict[str, str], message: str) -> None:
    (external.parent / "round").symlink_to("round")
    with pytest.raises(ValueError, match=message):
        from_onnx(relocated(external, **entries))


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch_script.onnx", "torch_dynamo.onnx"])
def test_damaged_files_are_refused_by_their_names(name: str, external: Path) -> None:
    whole, draw = (FILES / name).read_bytes(), random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        for _ in range(draw.choice([1, 2, 8, 50]) if data else 0):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        external.write_bytes(data)
        try:
            from_onnx(external)
        except ValueError as error:
            assert str(error).startswith(f"{external}: ")  # noqa: PT017
            refused += 1
    assert 200 < refused < 400
    assert sorted(os.listdir(external.parent)) == ["torch_dynamo.onnx", "torch_dynamo.onnx.data"]


def test_ours_keeps_its_cost() -> None:
    model = to_onnx(Network([3, 2], cost="huber(delta=2.0)", seed=0))
    assert from_onnx(model).cost.name == "huber(delta=2.0)"
    assert from_onnx(model, cost="quadratic").cost.name == "quadratic"
    for entry in model.metadata_props:
        if entry.key == "cost":
            entry.value = "no_such_cost"
    assert from_onnx(model).cost.name == from_onnx(model, cost=None).cost.name
