"""Networks as C: compiled as C99 and C++11 without a warning, it gives what `predict` does."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from backprop_gpu import Activation, Network, activations
from backprop_gpu.formats import to_c
from backprop_gpu.preprocessing import Number, Preprocessing
from machine import needs_tools

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]
BUILTIN = [name for name in activations.names() if activations.get(name).builtin]


def network(name: str, dtype: str) -> Network:
    hidden = "tanh" if name in ("softmax", "exponential") else name
    net = Network(
        [5, 8, 7, 3], activation=[hidden, hidden, name], dtype=dtype, seed=1, backend="numpy"
    )
    rng = np.random.default_rng(0)
    net.biases = [rng.standard_normal(b.shape) for b in net.biases]
    return net


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compiled_it_gives_what_predict_does(dtype: str, tmp_path: Path) -> None:
    needs_tools("cc", "c++")
    kind = "float" if dtype == "float32" else "double"
    nets, lines = {name: network(name, dtype) for name in BUILTIN}, []
    for name, net in nets.items():
        to_c(net, tmp_path / f"{name}.h", name=f"a_{name}")
        lines += [
            f'#include "{name}.h"',
            f"void run_{name}(const {kind} *x, {kind} *a);",
            f"void run_{name}(const {kind} *x, {kind} *a) {{ a_{name}_forward(x, a); }}",
            f"#if A_{name.upper()}_INPUTS != 5 || A_{name.upper()}_OUTPUTS != 3",
            "#error sizes",
            "#endif",
        ]
    source = tmp_path / "all.c"
    source.write_text("\n".join(lines) + "\n")
    library = tmp_path / "all.so"
    for compiler in (
        ["cc", "-std=c99", "-shared", "-fPIC", "-o", str(library), str(source), "-lm"],
        ["c++", "-std=c++11", "-x", "c++", "-c", "-o", str(tmp_path / "all.o"), str(source)],
    ):
        done = subprocess.run([*compiler, *WARNINGS], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    X = np.random.default_rng(1).normal(0, 3, (30, 5)).astype(dtype)
    for name, net in nets.items():
        found = np.empty((len(X), 3), dtype)
        for row, out in zip(X, found, strict=True):
            getattr(loaded, f"run_{name}")(
                row.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)
            )
        expected = net.predict(X)
        tolerance = 2e-6 if dtype == "float32" else 4e-15
        assert np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1), name
        row, out = np.full(5, np.nan, dtype), np.zeros(3, dtype)  # which ONNX keeps, too
        getattr(loaded, f"run_{name}")(
            row.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)
        )
        assert np.isnan(out).all(), name


def test_every_digit_is_there(tmp_path: Path) -> None:
    """The numbers read back to the same bits, the smallest and the largest too."""
    values = np.array([[0.1, -1e-45, 3.4028235e38, 1e-38, -0.0, 123456.79, 1.0]], np.float32)
    net = Network([7, 1], backend="numpy")
    net.weights = [values]
    text = to_c(net, tmp_path / "net.h")
    assert (tmp_path / "net.h").read_text() == text
    inside = text.split("network_w1[7] = {")[1].split("}")[0]
    found = np.array([float(each.rstrip("f")) for each in inside.split(",")[:-1]], np.float32)
    assert (found.view(np.uint32) == values[0].view(np.uint32)).all()


def test_the_comment_of_a_table() -> None:
    net = Network([1, 1], activation="identity", backend="numpy")
    net.preprocessing = Preprocessing((Number("a */ b"),), Number("y", 3.0, 2.0), ("a */ b", "y"))
    head = to_c(net).split("#ifndef")[0]
    assert "layer 1: w (1, 1), row after row; b (1); identity" in head
    assert f"mean = {(3.0).hex()}, deviation = {(2.0).hex()}" in head
    assert head.count("*/") == 1


@pytest.mark.parametrize("name", ["", "1a", "a b", "_a", "a__b", "ä", "a;", "a" * 200, 3, None])
def test_names(name: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be an identifier of C"):
        to_c(Network([1, 1]), tmp_path / "net.h", name=name)
    assert os.listdir(tmp_path) == []


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="net must be a Network"):
        to_c(None)
    mine = Activation("mine", lambda z: z * z, lambda z: 2 * z)
    with pytest.raises(ValueError, match="activation 'mine' of layer 2 is Python of your own"):
        to_c(Network([1, 2, 1], activation=["relu", mine], backend="numpy"))
