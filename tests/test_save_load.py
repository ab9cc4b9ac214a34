"""Saved networks: the same bits back, whole files or none, and nothing else is read as one."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import random
import stat
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from backprop_gpu import Activation, Cost, Network, activations, costs, model_file
from backprop_gpu.parameters import Layout

X = np.random.default_rng(0).standard_normal((5, 3))


def network(**settings):
    settings = {"activation": ["tanh", "sigmoid"], "backend": "numpy", "seed": 1} | settings
    return Network([3, 4, 2], **settings)


def same(one, other):
    assert one.sizes == other.sizes
    assert one.activations == other.activations
    assert one.cost is other.cost
    assert one.dtype == other.dtype
    for a, b in zip((*one.weights, *one.biases), (*other.weights, *other.biases), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    assert one.predict(X).tobytes() == other.predict(X).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(backend, dtype, tmp_path):
    path = tmp_path / "net.safetensors"
    net = network(dtype=dtype, cost="binary_cross_entropy", backend=backend)
    net.fit(X, [0, 1, 0, 1, 1], epochs=2, batch_size=2, learning_rate=0.1)
    net.save(path)
    loaded = Network.load(path, backend=backend)
    same(net, loaded)
    assert loaded.backend == backend
    loaded.fit(X, [0, 1, 0, 1, 1], epochs=1, batch_size=2, learning_rate=0.1)
    loaded.save(str(path))  # a string, over an older file
    same(loaded, Network.load(str(path), backend=backend))


def test_a_seed_repeats_further_training(tmp_path):
    network().save(tmp_path / "net")
    nets = [Network.load(tmp_path / "net", backend="numpy", seed=seed) for seed in (5, 5, 6)]
    for net in nets:
        net.fit(X, [0, 1, 0, 1, 1], epochs=2, batch_size=2, learning_rate=0.1)
    same(*nets[:2])
    assert nets[0].predict(X).tobytes() != nets[2].predict(X).tobytes()


def test_denormals_and_negative_zero_survive(tmp_path):
    net = network(dtype="float32")
    w = np.array([[-0.0, 1e-45, 3.4e38]] * 4, np.float32)
    net.weights = [w, net.weights[1]]
    net.save(tmp_path / "net")
    assert Network.load(tmp_path / "net", backend="numpy").weights[0].tobytes() == w.tobytes()


def test_the_file_is_plain_safetensors(tmp_path):
    net = network()
    net.save(tmp_path / "net")
    tensors = safetensors.numpy.load_file(tmp_path / "net")
    assert sorted(tensors) == ["b1", "b2", "w1", "w2"]
    np.testing.assert_array_equal(tensors["w2"], net.weights[1])
    with safetensors.safe_open(tmp_path / "net", framework="numpy") as file:
        description = json.loads(file.metadata()["backprop_gpu"])
    assert description == {
        "version": 1,
        "sizes": [3, 4, 2],
        "activations": ["tanh", "sigmoid"],
        "cost": "quadratic",
        "dtype": "float32",
    }


# -- writing ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "net"
    network(seed=1).save(path)
    old = path.read_bytes()

    def fail(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "no space left", "some temporary file", None, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="no space left") as error:
            network(seed=2).save(path)
    assert str(error.value) == f"[Errno {errno.ENOSPC}] no space left: {str(path)!r}"
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["net"]


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            network().save(tmp_path / "net")
    assert os.listdir(tmp_path) == []


def test_where_it_cannot_be_saved(tmp_path):
    with pytest.raises(FileNotFoundError):
        network().save(tmp_path / "missing" / "net")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        network().save(tmp_path / "folder")
    with pytest.raises(TypeError):
        network().save(None)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_the_file_has_the_usual_mode(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    network().save(tmp_path / "net")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("net", "other")}
    assert len(modes) == 1


# -- reading what is not a saved network ----------------------------------------------------


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model file at .*none"):
        Network.load(tmp_path / "none")
    with pytest.raises((FileNotFoundError, IsADirectoryError)):
        Network.load(tmp_path)


def test_a_file_cut_short_anywhere(tmp_path):
    path = tmp_path / "net"
    network().save(path)
    data = path.read_bytes()
    for length in (*range(0, 24), len(data) // 2, *range(len(data) - 9, len(data))):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut short or not a safetensors file") as error:
            Network.load(path, backend="numpy")
        assert str(path) in str(error.value)
    for other in (data + b"\0", b"\0" * 4096, b"PK\x03\x04" + data, os.urandom(999)):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="cut short or not a safetensors file"):
            Network.load(path, backend="numpy")


def test_another_librarys_file(tmp_path):
    path = tmp_path / "net"
    safetensors.numpy.save_file({"w1": np.zeros((2, 2))}, path)
    with pytest.raises(ValueError, match="not a model saved by backprop_gpu"):
        Network.load(path)
    safetensors.numpy.save_file({"w1": np.zeros((2, 2))}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="not a model saved by backprop_gpu"):
        Network.load(path)


def write(path, description=None, tensors=None, text=None):
    """A file like a saved network's, with some of it changed; None takes something out."""
    net = network()
    arrays = {f"w{l}": w for l, w in enumerate(net.weights, 1)}
    arrays |= {f"b{l}": b for l, b in enumerate(net.biases, 1)}
    arrays = {k: v for k, v in (arrays | (tensors or {})).items() if v is not None}
    settings = {
        "version": 1,
        "sizes": [3, 4, 2],
        "activations": ["tanh", "sigmoid"],
        "cost": "quadratic",
        "dtype": "float32",
    }
    settings = {k: v for k, v in (settings | (description or {})).items() if v != "absent"}
    text = json.dumps(settings) if text is None else text
    safetensors.numpy.save_file(arrays, path, {"backprop_gpu": text})


def test_write_writes_what_save_does(tmp_path):
    write(tmp_path / "net")
    same(network(), Network.load(tmp_path / "net", backend="numpy"))


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, True, 1.0])
def test_another_version(tmp_path, version):
    write(tmp_path / "net", {"version": version})
    with pytest.raises(ValueError, match=f"format version {version!r}; .* reads version 1"):
        Network.load(tmp_path / "net")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"version": "absent"}, "damaged"),
        ({"sizes": "absent"}, "damaged"),
        ({"sizes": [3]}, "damaged"),
        ({"sizes": [3, -4, 2]}, "damaged"),
        ({"sizes": [3, 4.0, 2]}, "damaged"),
        ({"sizes": "342"}, "damaged"),
        ({"sizes": None}, "damaged"),
        ({"activations": "absent"}, "damaged"),
        ({"activations": None}, "damaged"),
        ({"activations": {}}, "damaged"),
        ({"activations": "tanh"}, "damaged"),
        ({"activations": [1, {}]}, "activation"),
        ({"activations": ["tanh"]}, "activation"),
        ({"activations": ["softmax", "tanh"]}, "activation"),
        ({"activations": ["tanh", "cube"]}, "activation 'cube', which is not registered"),
        ({"cost": "cubic"}, "cost 'cubic', which is not registered"),
        ({"cost": ["quadratic"]}, "cost"),
        ({"cost": "poisson"}, "cost|activation 'tanh'"),
        ({"cost": "absent"}, "damaged"),
        ({"dtype": "float16"}, "dtype"),
        ({"dtype": "bananas"}, "dtype"),
        ({"dtype": None}, "dtype"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"dtype": "float64"}, "dtype|float32"),
        ({"dtype": "absent"}, "damaged"),
    ],
)
def test_a_damaged_description(tmp_path, description, message):
    if description == {"cost": "poisson"}:
        description = description | {"activations": ["tanh", "tanh"]}
    write(tmp_path / "net", description)
    with pytest.raises(ValueError, match=message):
        Network.load(tmp_path / "net", backend="numpy")


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", "3", '"version"', "[" * 100_000])
def test_a_description_that_is_none(tmp_path, text):
    write(tmp_path / "net", text=text)
    with pytest.raises(ValueError, match="damaged description"):
        Network.load(tmp_path / "net", backend="numpy")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w2": None}, "should hold w and b of 2 layers, but lacks 'w2'"),
        ({"w3": np.zeros((2, 2))}, "should hold w and b of 2 layers, but holds 'w3', too"),
        ({"w2": np.zeros((4, 2), np.float32)}, r"layer 2: expected shape \(2, 4\), got \(4, 2\)"),
        ({"b1": np.zeros((4, 1), np.float32)}, r"layer 1: expected shape \(4,\), got \(4, 1\)"),
        ({"b1": np.full(4, np.nan, np.float32)}, "NaN or infinity"),
        ({"w2": np.zeros((2, 4), np.float64)}, "float64"),
        ({"w2": np.zeros((2, 4), np.float16)}, "float16"),
        ({"w2": np.zeros((2, 4), np.int32)}, "int32"),
        ({"w2": np.zeros((2, 4), bool)}, "bool"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors, message):
    write(tmp_path / "net", tensors=tensors)
    with pytest.raises(ValueError, match=message):
        Network.load(tmp_path / "net", backend="numpy")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_tensors_that_numpy_does_not_know(tmp_path, dtype):
    path = tmp_path / "net"
    network().save(path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    size, end = {"BF16": 2, "F8_E4M3": 1}[dtype], 0
    for name in ("b1", "b2", "w1", "w2"):
        header[name]["dtype"] = dtype
        start, end = end, end + size * int(np.prod(header[name]["shape"]))
        header[name]["data_offsets"] = [start, end]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * end)
    with pytest.raises(ValueError, match="net"):
        Network.load(path, backend="numpy")


def test_a_description_of_a_giant_takes_no_memory(tmp_path):
    """A short file cannot make `load` fill the memory with weights it does not hold."""
    write(tmp_path / "net", {"sizes": [3, 1_000_000, 2]})
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"layer 1|w1"):
            Network.load(tmp_path / "net", backend="numpy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def test_a_description_of_a_million_layers_is_refused_at_once(tmp_path, monkeypatch):
    """Before anything is done a layer, and in a short line."""

    class Counted(Layout):
        def __init__(self, sizes):
            assert len(sizes) < 100
            super().__init__(sizes)

    monkeypatch.setattr(model_file, "Layout", Counted)
    many = 1_000_000
    for description in (
        {"sizes": [1] * many, "activations": ["tanh"] * (many - 1)},
        {"activations": ["tanh"] * many},
        {"sizes": ["x" * many, 1]},
        {"version": "x" * many},
        {"cost": "x" * many},
        {"activations": ["x" * many] * 2},
    ):
        write(tmp_path / "net", description)
        with pytest.raises(ValueError, match="net: ") as error:
            Network.load(tmp_path / "net", backend="numpy")
        assert len(str(error.value)) < len(str(tmp_path)) + 300
        assert "\n" not in str(error.value)
        assert error.value.__suppress_context__  # a traceback would print the long one
    write(tmp_path / "net", tensors={"x" * many: np.zeros(1)})
    with pytest.raises(ValueError, match="holds 'xxx") as error:
        Network.load(tmp_path / "net", backend="numpy")
    assert len(str(error.value)) < len(str(tmp_path)) + 300


ODD = (
    None, True, -1, 0, 3, 1.5, 10**400, 1e308, float("nan"), "", "tanh", "x\ny", [], {}, [[]],
    [3, 4, 2], ["tanh", "sigmoid"], {"a": 1}, [10**400, 4, 2], [3, 4, 2] * 50, "float64",
)  # fmt: skip


def mutants(data):
    """Whole files with something changed: bytes, lengths, or a value of the JSON in them."""
    rng = random.Random(0)
    (length,) = struct.unpack("<Q", data[:8])
    for _ in range(600):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(rng.choice((8, 8 + length, len(data))))
            changed[at] = rng.randrange(256)
        if rng.random() < 0.3:
            at, end = sorted(rng.choices(range(len(data)), k=2))
            changed[at:end] = rng.choice((b"", changed[:20], b"[" * 5000))
        yield bytes(changed)
    for _ in range(600):
        header = json.loads(data[8 : 8 + length])
        description = json.loads(header["__metadata__"]["backprop_gpu"])
        where = rng.choice((description, header, header[rng.choice(("w1", "b2"))]))
        key = rng.choice(list(where))
        if rng.random() < 0.2:
            where["another"] = where.pop(key)
        else:
            where[key] = rng.choice(ODD)
        if isinstance(header.get("__metadata__"), dict):
            header["__metadata__"]["backprop_gpu"] = json.dumps(description)
        text = json.dumps(header).encode()
        yield struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_whatever_is_in_a_file_is_refused_in_a_line(tmp_path):
    path = tmp_path / "net"
    network().save(path)
    loaded = 0
    for data in mutants(path.read_bytes()):
        path.write_bytes(data)
        try:
            Network.load(path, backend="numpy")
            loaded += 1  # other weights, say
        except ValueError as error:
            text = str(error)
            assert text.startswith(str(path))
            assert len(text) < len(str(path)) + 300
            assert "\n" not in text
    assert loaded < 600


def test_errors_of_load_name_the_file(tmp_path):
    write(tmp_path / "some_net", {"activations": ["tanh"]})
    with pytest.raises(ValueError, match="some_net"):
        Network.load(tmp_path / "some_net", backend="numpy")


# -- users' own functions ---------------------------------------------------------------------


def cube(name="cube"):
    return Activation(name, lambda z: z**3, lambda z: 3 * z**2)


def quartic(name="quartic"):
    return Cost(name, lambda a, y: ((a - y) ** 4).sum(axis=1), lambda a, y: 4 * (a - y) ** 3)


def test_registered_functions_round_trip(tmp_path, registries):
    activations.register(cube())
    costs.register(quartic())
    net = network(activation=["cube", "identity"], cost="quartic")
    net.save(tmp_path / "net")
    loaded = Network.load(tmp_path / "net", backend="numpy")
    same(net, loaded)
    assert loaded.loss(X, np.ones((5, 2))) == net.loss(X, np.ones((5, 2)))


def test_unregistered_functions_must_be_registered_to_load(tmp_path, registries):
    network(activation=[cube(), "identity"]).save(tmp_path / "net")
    with pytest.raises(ValueError, match=r"'cube', which is not registered.*activations.register"):
        Network.load(tmp_path / "net")
    network(cost=quartic()).save(tmp_path / "net")
    with pytest.raises(ValueError, match=r"'quartic', which is not registered.*costs.register"):
        Network.load(tmp_path / "net")


def test_a_builtins_name_cannot_be_borrowed(tmp_path):
    """Saved under a built-in's name, a user's σ would come back as another function."""
    with pytest.raises(ValueError, match=r"'sigmoid'.*built-in"):
        network(activation=[cube("sigmoid"), "identity"]).save(tmp_path / "net")
    with pytest.raises(ValueError, match=r"'quadratic'.*built-in"):
        network(cost=quartic("quadratic")).save(tmp_path / "net")


# -- copies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net))]
)
def test_copies(backend, duplicate):
    net = network(backend=backend, cost="binary_cross_entropy")
    labels = [0, 1, 0, 1, 1]
    net.fit(X, labels, epochs=2, batch_size=2, learning_rate=0.1)
    twin = duplicate(net)
    same(net, twin)
    assert twin.backend == backend
    assert twin.history.loss == net.history.loss
    assert str(twin.plan)
    before = net.predict(X)
    twin.weights = [w + 1 for w in twin.weights]
    np.testing.assert_array_equal(net.predict(X), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_shuffles_as_the_original_would(duplicate):
    net = network()
    twin = duplicate(net)
    for n in (net, twin):
        n.fit(X, [0, 1, 0, 1, 1], epochs=2, batch_size=2, learning_rate=0.1)
    same(net, twin)


def test_a_network_can_be_copied_while_it_trains():
    net, copies = network(), []
    net.fit(
        X,
        [0, 1, 0, 1, 1],
        epochs=2,
        batch_size=2,
        learning_rate=0.1,
        callbacks=[lambda n, h: copies.append(copy.deepcopy(n))],
    )
    same(net, copies[-1])
    assert copies[0].predict(X).tobytes() != copies[1].predict(X).tobytes()


def test_a_registered_function_can_be_pickled(registries):
    activations.register(cube())
    costs.register(quartic())
    net = network(activation=["cube", "identity"], cost="quartic")
    same(net, pickle.loads(pickle.dumps(net)))


def test_builtins_stay_single_objects():
    for module in (activations, costs):
        for name in module.names():
            one = module.get(name)
            assert pickle.loads(pickle.dumps(one)) is one
            assert copy.deepcopy(one) is one
