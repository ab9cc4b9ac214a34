"""Files of Keras', without Keras; what no Network is, what is damaged, and what leads elsewhere."""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import reading
from backprop_gpu.formats import from_keras
from machine import ROOT

h5py = pytest.importorskip("h5py", reason="the extra keras has h5py")
FILES = ROOT / "tests/data/formats"
EXPECTED = json.loads((FILES / "expected.json").read_text())
SEQUENTIAL, FUNCTIONAL = FILES / "keras_sequential.keras", FILES / "keras_functional.keras"


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    ("name", "sigmas", "dtype"),
    [
        ("keras_sequential", ["gelu", "leaky_relu", "silu", "softmax"], "float32"),
        ("keras_functional", ["elu", "relu", "softplus", "sigmoid"], "float64"),
    ],
)
def test_what_keras_wrote(name: str, sigmas: list[str], dtype: str, suffix: str) -> None:
    net = from_keras(FILES / f"{name}{suffix}")
    assert [sigma.name for sigma in net.activations] == sigmas
    assert net.dtype == np.dtype(dtype)
    suits = {"softmax": "categorical_cross_entropy", "sigmoid": "binary_cross_entropy"}
    assert net.cost.name == suits[sigmas[-1]]
    np.testing.assert_allclose(net.predict(EXPECTED["X"]), EXPECTED[name], rtol=2e-6)


# -- files made here -------------------------------------------------------------------------------


def layer(kind: str, **config: Any) -> dict[str, Any]:
    name = config.pop("name", kind.lower())
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": name, **config},
        "registered_name": None,
    }


def dense(units: int = 2, **config: Any) -> dict[str, Any]:
    return layer("Dense", **{"units": units, "activation": "linear", "use_bias": True, **config})


def model(*layers: dict[str, Any], shape: Any = (None, 3)) -> dict[str, Any]:
    begin = layer("InputLayer", batch_shape=list(shape))
    return {"class_name": "Sequential", "config": {"name": "m", "layers": [begin, *layers]}}


W = np.random.default_rng(0).normal(0, 1, (3, 2)).astype(np.float32)
B = np.array([0.5, -1.5], np.float32)
X = np.random.default_rng(1).normal(0, 1, (5, 3)).astype(np.float32)
Z = X @ W + B


def weights(fill: Callable[[Any], None] | None = None, **arrays: Any) -> bytes:
    """model.weights.h5 of one Dense, or of these layers."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, found in (arrays or {"dense": [W, B]}).items():
            group = file.create_group(f"layers/{name}/vars")
            for i, array in enumerate(found):
                group[str(i)] = array
        if fill is not None:
            fill(file)
    return buffer.getvalue()


def written(path: Path, config: Any, data: bytes, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", data)
        for name, content in others.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.keras"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([dense()], Z),
        ([dense(activation="relu")], np.maximum(Z, 0)),
        ([dense(activation="swish")], Z / (1 + np.exp(-Z))),
        ([dense(), layer("ReLU", max_value=None, negative_slope=0.01)], np.maximum(Z, 0.01 * Z)),
        ([dense(), layer("LeakyReLU", alpha=0.01)], np.maximum(Z, 0.01 * Z)),
        ([dense(), layer("ELU", alpha=1.0)], np.where(Z > 0, Z, np.expm1(Z))),
        ([dense(activation=layer("LeakyReLU", negative_slope=0.01))], np.maximum(Z, 0.01 * Z)),
        ([dense(), layer("Dropout", rate=0.5), layer("Activation", activation="exponential")],
         np.exp(Z)),
        ([layer("Rescaling", scale=2.0, offset=[1.0, 2.0, 3.0]), dense()],
         (2 * X + [1, 2, 3]) @ W + B),
        ([layer("Normalization", axis=[-1], mean=[1.0, 2.0, 3.0], variance=[4.0, 1.0, 0.25]),
          dense()], (X - [1, 2, 3]) / [2, 1, 0.5] @ W + B),
    ],
)  # fmt: skip
def test_layers(layers: list[Any], expected: np.ndarray, path: Path) -> None:
    net = from_keras(written(path, model(*layers), weights()))
    np.testing.assert_allclose(net.predict(X), expected, rtol=2e-5, atol=1e-6)


def test_a_dense_without_bias_and_half_floats(path: Path) -> None:
    file = written(path, model(dense(use_bias=False)), weights(dense=[W.astype(np.float16)]))
    net = from_keras(file, cost="huber", seed=1, backend="numpy")
    assert net.dtype == np.float32
    assert not net.biases[0].any()
    assert net.cost.name == "huber"


def test_an_older_file(tmp_path: Path) -> None:
    """As Keras 2 writes it: no InputLayer, and a number behind the names."""
    path = tmp_path / "net.h5"
    one = {"class_name": "Dense", "config": {"name": "d", "units": 2, "activation": "tanh",
           "use_bias": True, "batch_input_shape": [None, 3]}}  # fmt: skip
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": {"layers": [one]}}
        ).encode()
        group = file.create_group("model_weights/d")
        group["d/kernel:0"], group["d/bias:0"] = W, B
    np.testing.assert_allclose(from_keras(path).predict(X), np.tanh(Z), rtol=2e-6)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([layer("Lambda", name="evil", function={"class_name": "__lambda__"}), dense()],
         r"layer 'evil' \(Lambda\) is not supported: a Network has nothing like it"),
        ([layer("Conv1D"), dense()], r"layer 'conv1d' \(Conv1D\)"),
        ([layer("Sequential"), dense()], r"\(Sequential\)"),
        ([{**dense(), "registered_name": "mine>Dense"}], "a class of somebody's own"),
        ([{**dense(), "module": "mine"}], "a class of somebody's own"),
        ([dense(activation="my_function")], "activation 'my_function' is not known here"),
        ([dense(activation={"class_name": "function", "config": "f"})], "activation 'function'"),
        ([dense(activation="leaky_relu")], "slope 0.2"),
        ([dense(), layer("LeakyReLU")], "slope is 0.3"),
        ([dense(), layer("ReLU", max_value=6.0)], "max_value or a threshold"),
        ([dense(), layer("ELU", alpha=2.0)], "alpha is 2.0"),
        ([dense(), layer("Softmax", axis=0)], "axis is 0"),
        ([dense(activation="relu"), layer("ReLU")], "a layer has one activation"),
        ([layer("ReLU"), dense()], "no layer comes before it"),
        ([dense(activation="softmax"), dense(name="b")], "no weights at 'layers/dense_1"),
        ([dense(3)], r"layer 'dense' \(Dense\).*weights of shape \(3, 2\)"),
        ([dense(use_bias=False)], "has 2 weights, not 1"),
        ([layer("Normalization", invert=True), dense()], "it inverts"),
        ([layer("Rescaling", scale="x"), dense()], "numbers are none"),
        ([], "no layer with weights"),
    ],
)  # fmt: skip
def test_what_no_network_is(layers: list[Any], message: str, path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_keras(written(path, model(*layers), weights()))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model(dense(), shape=(None, 4)), "takes 3 numbers, and gets 4"),
        (model(dense(), shape=(None, 2, 3)), "a Flatten must come before it"),
        (
            model(layer("Flatten", data_format="channels_first"), dense(), shape=(None, 3, 1)),
            "it puts the channels last",
        ),
        ({"class_name": "Mine", "config": {}}, "a Sequential or a Functional is read"),
        ({"class_name": "Sequential", "config": {"layers": 3}}, "no list of layers"),
        ({"class_name": "Sequential", "config": None}, "no list of layers"),
        ([1], "its description is no object"),
        ("{", "its description is damaged"),
        ("[" * 10**5, "nested too deeply"),
    ],
)
def test_descriptions(config: Any, message: str, path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_keras(written(path, config, weights()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers[3].update(inbound_nodes=layers[2]["inbound_nodes"]),
         "takes flatten"),
        (lambda layers: layers[3]["inbound_nodes"].append(layers[2]["inbound_nodes"][0]),
         "takes rescaling, flatten"),
        (lambda layers: layers.pop(), "other outputs than those of its last layer"),
        (lambda layers: layers[3].update(inbound_nodes=3), "takes nothing"),
    ],
)  # fmt: skip
def test_a_functional_is_one_layer_after_another(change: Any, message: str, path: Path) -> None:
    with zipfile.ZipFile(FUNCTIONAL) as archive:
        config = json.loads(archive.read("config.json"))
        data = archive.read("model.weights.h5")
    from_keras(written(path, config, data))
    changed = copy.deepcopy(config)
    change(changed["config"]["layers"])
    with pytest.raises(ValueError, match=message):
        from_keras(written(path, changed, data))


# -- archives and HDF5 that mean harm --------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_names_that_lead_out_of_the_archive(name: str, path: Path) -> None:
    with pytest.raises(ValueError, match=r"which leads out of it"):
        from_keras(written(path, model(dense()), weights(), **{name: b"x"}))


def test_archives_that_unpack_to_more_than_they_should(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (2**24 + 1))
        archive.writestr("model.weights.h5", weights())
    with pytest.raises(ValueError, match=r"config.json would take 16,777,217 bytes"):
        from_keras(path)
    written(path, model(dense()), weights())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MAX_BYTES", 100)
        with pytest.raises(ValueError, match=r"model.weights.h5 would take .* more than 100"):
            from_keras(path)


def test_what_an_archive_lacks_or_has_twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"it holds no model.weights.h5"):
        from_keras(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"'config.json' twice"):
        from_keras(path)


def links(kind: str) -> Callable[[Any], None]:
    def fill(file: Any) -> None:
        group = file["layers/dense/vars"]
        del group["0"]
        if kind == "external":
            group["0"] = h5py.ExternalLink("/etc/hostname", "/secret")
        elif kind == "soft":
            file["elsewhere"] = W
            group["0"] = h5py.SoftLink("/elsewhere")
        elif kind == "stored elsewhere":
            group.create_dataset("0", W.shape, "f4", external=[("/etc/hostname", 0, 24)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(W.shape, "f4")
            layout[...] = h5py.VirtualSource("/etc/hostname", "w", W.shape)
            group.create_virtual_dataset("0", layout)
        elif kind == "packed":
            group.create_dataset("0", data=W, compression="gzip")
        elif kind == "not there":
            group.create_dataset("0", W.shape, "f4", chunks=(1, 1))
        elif kind == "group":
            group.create_group("0")
        elif kind == "huge":
            group.create_dataset("0", (2**40, 2**10), "f4", chunks=(1, 1))
        elif kind == "whole numbers":
            group["0"] = W.astype(int)
        elif kind == "texts":
            group["0"] = ["a", "b"]
        elif kind == "of another name":
            group["x"] = W

    return fill


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external", "'0' is a link to somewhere else"),
        ("soft", "'0' is a link to somewhere else"),
        ("stored elsewhere", "does not lie in the file as it is"),
        ("virtual", "does not lie in the file as it is"),
        ("packed", "does not lie in the file as it is"),
        ("not there", "is not there as a whole"),
        ("group", "is no array"),
        ("huge", "take more than 1,073,741,824 bytes"),
        ("whole numbers", "not of floating-point numbers"),
        ("texts", "not of floating-point numbers"),
        ("of another name", "other arrays than 0, 1"),
    ],
)
def test_weights_that_are_none(kind: str, message: str, path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_keras(written(path, model(dense()), weights(links(kind))))


def test_a_heap_that_hdf5_would_go_round_in(tmp_path: Path) -> None:
    data = bytearray((FILES / "keras_sequential.h5").read_bytes())
    heap = data.find(b"GCOL")
    assert heap > 0
    at = heap + 16
    while data[at : at + 2] != b"\0\0":
        at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
    data[at + 8 : at + 16] = bytes(8)
    path = tmp_path / "net.h5"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a heap in it has no end"):
        from_keras(path)


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="path must be a path, got NoneType"):
        from_keras(None)
    with pytest.raises(FileNotFoundError, match="no file of Keras' at"):
        from_keras(tmp_path / "missing.keras")
    with pytest.raises(FileNotFoundError, match="no file of Keras' at"):
        from_keras(tmp_path)
    for name, content in (
        ("empty.keras", b""),
        ("text.h5", b"hello"),
        ("zip.keras", b"PK\x05\x06"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{tmp_path / name}: "):
            from_keras(tmp_path / name)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["w"] = W
    with pytest.raises(ValueError, match="no model of Keras': it has no model_config"):
        from_keras(tmp_path / "weights.h5")
    with pytest.raises(ValueError, match="unknown cost"):
        from_keras(SEQUENTIAL, cost="none")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'backprop_gpu\[keras\]'"):
        from_keras(SEQUENTIAL)


@pytest.mark.parametrize(
    "name", ["keras_sequential.keras", "keras_functional.keras", "keras_sequential.h5"]
)
def test_damaged_files_are_refused_by_their_names(name: str, tmp_path: Path) -> None:
    whole, draw = (FILES / name).read_bytes(), random.Random(0)
    path, refused = tmp_path / name, 0
    for _ in range(80):
        data = bytearray(whole)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        for _ in range(draw.choice([1, 2, 8, 50]) if data else 0):
            data[draw.randrange(min(len(data), draw.choice([300, 10**9])))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            from_keras(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            refused += 1
    assert 40 < refused < 80


def test_damaged_weights_in_a_sound_archive(path: Path) -> None:
    with zipfile.ZipFile(FUNCTIONAL) as archive:
        config, whole = archive.read("config.json"), archive.read("model.weights.h5")
    draw, refused = random.Random(1), 0
    for _ in range(80):
        data, text = bytearray(whole), bytearray(config)
        changed = draw.choice([data, text])
        for _ in range(draw.choice([1, 4])):
            changed[draw.randrange(min(len(changed), 4000))] = draw.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", bytes(text))
            archive.writestr("model.weights.h5", bytes(data))
        try:
            from_keras(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            refused += 1
    assert refused > 10
