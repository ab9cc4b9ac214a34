"""`Demon` without a front end: what it computes, refuses, draws and saves."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed")

import comm
import ipywidgets
import traitlets
from comm.base_comm import BaseComm

from backprop_gpu import Activation, Cost, Network
from backprop_gpu.widgets import Demon

X = np.array([0.3, -0.8, 0.5])
Y = np.array([1.0, 0.0])


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def make(**options: Any) -> Network:
    given = {"activation": ["tanh", "sigmoid"], "dtype": "float64", "seed": 1, "backend": "numpy"}
    return Network([3, 4, 2], **(given | options))


def reference(net: Network, l: int, j: int, h: float) -> float:
    """C of a [3, 4, 2] network of tanh and sigmoid, after z_j^l was nudged by h."""
    (v, w), (b, c) = net.weights, net.biases
    z = v @ X + b
    z[j] += h if l == 1 else 0.0
    y = w @ np.tanh(z) + c
    y[j % 2] += h if l == 2 else 0.0
    return 0.5 * float(((sigmoid(y) - Y) ** 2).sum())


@pytest.mark.parametrize(("l", "j"), [(1, 0), (1, 3), (2, 0), (2, 1)])
def test_the_curve_is_c_of_a_nudged_network(l: int, j: int) -> None:
    net = make()
    demon = Demon(net, X, Y, span=3.0)
    demon.layer, demon.neuron, demon.nudge = l, j, 0.75
    h, costs = demon.curve
    assert len(h) == 81
    assert (h[0], h[40], h[80]) == (-3.0, 0.0, 3.0)
    assert costs == pytest.approx([reference(net, l, j, each) for each in h], rel=1e-12)
    assert demon.cost == pytest.approx(net.loss(X[None], Y[None]), rel=1e-12)
    moved = reference(net, l, j, 0.75) - reference(net, l, j, 0.0)
    assert demon.change == pytest.approx(moved, rel=1e-9)
    slope = (reference(net, l, j, 1e-6) - reference(net, l, j, -1e-6)) / 2e-6
    assert demon.delta == pytest.approx(slope, rel=1e-6)
    z = net.weights[0] @ X + net.biases[0]
    if l == 2:
        z = net.weights[1] @ np.tanh(z) + net.biases[1]
    assert (demon.z, demon.a) == pytest.approx((z[j], (np.tanh if l == 1 else sigmoid)(z[j])))


def test_a_nudge_between_the_curves_points_is_one_of_them() -> None:
    demon = Demon(make(), X, Y)
    demon.nudge = 0.123
    h, costs = demon.curve
    assert len(h) == 82
    assert (np.diff(h) > 0).all()
    assert demon.change == costs[h == 0.123][0] - demon.cost
    here = demon.layer, demon.neuron
    assert costs[h == 0.123][0] == pytest.approx(reference(make(), *here, 0.123), rel=1e-12)


def test_it_computes_on_every_backend(backend: str) -> None:
    net = Network([3, 4, 2], seed=1, backend=backend)
    demon, other = Demon(net, X, 1), Demon(Network([3, 4, 2], seed=1, backend="numpy"), X, 1)
    assert demon.curve[1].tolist() == other.curve[1].tolist()


def test_it_starts_downhill_where_delta_is_largest() -> None:
    for seed in range(5):
        demon = Demon(make(seed=seed), X, Y)
        assert demon.delta * demon.nudge < 0
        assert abs(demon.nudge) == 0.5
        largest = abs(demon.delta)
        for demon.layer, j in [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]:
            demon.neuron = j
            assert abs(demon.delta) <= largest


def test_a_layer_without_the_neuron_gives_its_own() -> None:
    demon = Demon(make(), X, Y)
    demon.layer, demon.neuron = 1, 1
    demon.layer = 2
    assert (demon.layer, demon.neuron) == (2, 1)  # there is one
    demon.layer, demon.neuron = 1, 3
    demon.layer = np.int64(2)
    delta = abs(demon.delta)
    demon.neuron = 1 - demon.neuron
    assert abs(demon.delta) < delta


def test_the_network_may_be_trained_on() -> None:
    net = make()
    demon = Demon(net, X, Y)
    before = demon.curve[1]
    net.fit(X[None], Y[None], epochs=3, batch_size=1, learning_rate=1.0)
    demon.layer = demon.layer
    assert demon.curve[1].tolist() == before.tolist()
    assert Demon(net, X, Y).cost < demon.cost


def test_missing_labels_and_softmax() -> None:
    net = make(activation=["relu", "softmax"], cost="categorical_cross_entropy")
    demon = Demon(net, X, 0)
    for demon.layer in (2, 1):
        slope = np.gradient(demon.curve[1], demon.curve[0])[40]
        assert demon.delta == pytest.approx(slope, abs=1e-2)
    net = make(cost="binary_cross_entropy")
    demon = Demon(net, X, [np.nan, 1.0])
    assert np.isfinite(demon.curve[1]).all()
    demon.layer, demon.neuron = 2, 0
    assert demon.delta == 0.0
    assert np.ptp(demon.curve[1]) == 0.0


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("layer", 0, r"layer must be in \[1, 2\], got 0"),
        ("layer", 3, r"layer must be in \[1, 2\], got 3"),
        ("layer", "1", "layer must be an integer, got '1'"),
        ("layer", None, "layer must be an integer, got None"),
        ("layer", True, "layer must be an integer, got True"),
        ("neuron", -1, r"neuron of layer 1 must be in \[0, 3\], got -1"),
        ("neuron", 4, r"neuron of layer 1 must be in \[0, 3\], got 4"),
        ("neuron", 1.0, "neuron of layer 1 must be an integer, got 1.0"),
        ("nudge", 2.1, r"nudge must be in \[-2.0, 2.0\], got 2.1"),
        ("nudge", float("nan"), r"nudge must be in \[-2.0, 2.0\], got nan"),
        ("nudge", "δ", "nudge must be a number, got 'δ'"),
        ("nudge", 10**400, r"nudge must be in \[-2.0, 2.0\]"),
        ("span", 3.0, "read-only"),
    ],
)
def test_what_it_cannot_be_set_to(name: str, value: Any, expected: str) -> None:
    demon = Demon(make(), X, Y)
    demon.layer = 1
    before = demon.get_state()
    with pytest.raises(traitlets.TraitError, match=expected):
        setattr(demon, name, value)
    assert demon.get_state() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([3, 4, 2], X, Y), "network must be a backprop_gpu.Network, got"),
        ((make(), X[None], Y), r"x must be one row of shape \(3,\), got shape \(1, 3\)"),
        ((make(), X[:2], Y), "x does not fit layer 0"),
        ((make(), [], Y), "x does not fit layer 0"),
        ((make(), [1, 2, np.nan], Y), "x contains NaN"),
        ((make(), "abc", Y), "x must be one row"),
        ((make(), None, Y), "x must be one row"),
        ((make(), X, Y[None]), r"y must be one target.*got shape \(1, 2\)"),
        ((make(), X, [1, 2, 3]), "y does not fit the output layer"),
        ((make(), X, None), "y must hold real numbers"),
        ((make(), X, 2), "y holds labels from 2 to 2"),
    ],
)
def test_what_it_refuses(arguments: tuple[Any, ...], expected: str) -> None:
    with pytest.raises((TypeError, ValueError), match=expected):
        Demon(*arguments)


@pytest.mark.parametrize("span", [0, -1, 1e308, np.inf, np.nan, "2", None, True])
def test_spans_it_refuses(span: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="span must be"):
        Demon(make(), X, Y, span=span)


def test_an_output_at_the_edge_of_the_cost_is_refused() -> None:
    shift = Activation("shift", lambda z: z + 0.0, lambda z: np.ones_like(z), range=(0.0, 1.0))
    net = make(activation=["tanh", shift], cost="binary_cross_entropy")
    net.weights = [net.weights[0], np.zeros((2, 4))]
    with pytest.raises(ValueError, match="x: every row has an output at the edge"):
        Demon(net, X, Y)


def test_a_users_cost_and_numbers_too_large() -> None:
    quartic = Cost(
        "quartic", lambda a, y: ((a - y) ** 4).sum(axis=1), lambda a, y: 4 * (a - y) ** 3
    )
    demon = Demon(make(cost=quartic, activation="identity"), X, Y)
    slope = np.gradient(demon.curve[1], demon.curve[0])[40]
    assert demon.delta == pytest.approx(slope, rel=0.05)
    net = make(activation=["exponential", "identity"])
    net.weights = [np.full((4, 3), -2e4), net.weights[1]]
    demon = Demon(net, X - 1.0, Y)  # a is infinite
    assert not np.isfinite(demon.curve[1]).any()
    assert "nan" in repr(demon)


def test_of_wide_layers_the_largest_are_shown() -> None:
    net = Network([5, 100, 70, 8], seed=1, backend="numpy")
    demon = Demon(net, np.arange(5) / 5, 3)
    layers = demon._layers  # noqa: SLF001
    assert [layer["size"] for layer in layers] == [5, 100, 70, 8]
    assert [len(layer["neurons"]) for layer in layers[1:]] == [26, 26, 8]
    for demon.layer in (1, 2):
        sizes = {}
        for j in range(net.sizes[demon.layer]):
            demon.neuron = j
            sizes[j] = abs(demon.delta)
        largest = sorted(sizes, key=lambda j: -sizes[j])[:26]
        assert layers[demon.layer]["neurons"] == sorted(largest)
        # The last one asked for is not among them, and is shown besides.
        demon.neuron = min(sizes, key=lambda j: sizes[j])
        shown = demon._layers  # noqa: SLF001
        assert shown[demon.layer]["neurons"] == sorted([*largest, demon.neuron])
        points = sum(len(layer["neurons"]) for layer in shown[1:])
        assert points == 61
        assert len(demon._curves) == points * 81 * 8  # noqa: SLF001
        assert len(demon._numbers) == points * 3 * 8  # noqa: SLF001
    deep = Demon(Network([2] * 100, seed=1, backend="numpy"), [0.5, 1.0], 0)
    assert [len(layer["neurons"]) for layer in deep._layers[1:]] in ([1] * 99, [1] * 98 + [2])  # noqa: SLF001


def test_the_picture() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    demon = Demon(make(), X, Y)
    demon.nudge = 0.123
    ax = demon.plot()
    curve, tangent, *_ = ax.get_lines()
    assert np.array(curve.get_data()).tolist() == np.array(demon.curve).tolist()
    ends = np.array([-2.0, 2.0])
    assert tangent.get_data()[1] == pytest.approx(demon.cost + demon.delta * ends)
    assert ax.get_title() == f"neuron {demon.neuron} of layer {demon.layer}"
    figure, mine = plt.subplots()
    assert demon.plot(mine) is mine
    figure.canvas.draw()
    plt.close("all")


def state_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="state">(.*?)</script>', page)
    state: dict[str, Any] = json.loads(text)
    return state


def test_the_page_has_all_curves_and_names_no_address(tmp_path: Path) -> None:
    demon = Demon(make(), X, Y)
    demon.nudge = 0.123
    demon.save_html(tmp_path / "demon.html")
    page = (tmp_path / "demon.html").read_text(encoding="utf-8")
    state = state_of(page)
    assert state["nudge"] == 0.123
    assert {"layer", "neuron", "span", "_layers", "_numbers", "_cost_after"} < set(state)
    curves = np.frombuffer(base64.b64decode(state["_curves"]), "<f8").reshape(6, 81)
    places = [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]
    for (l, j), costs in zip(places, curves, strict=True):
        assert costs == pytest.approx(
            [reference(make(), l, j, h) for h in 2 * np.arange(-40, 41) / 40], rel=1e-12
        )
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "url(" not in page
    assert page.count("</script") == page.count("<script") == 2
    assert len(page) < 60_000


def test_no_name_ends_the_pages_elements(tmp_path: Path) -> None:
    demon = Demon(make(), X, Y)
    name = "</script><script>alert(1)</script>"
    demon._layers = [*demon._layers[:1], {**demon._layers[1], "activation": name}]  # noqa: SLF001
    demon.save_html(tmp_path / "demon.html")
    page = (tmp_path / "demon.html").read_text(encoding="utf-8")
    assert page.count("</script") == 2
    assert state_of(page)["_layers"][1]["activation"] == name


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    demon = Demon(make(), X, Y)
    with pytest.raises(FileNotFoundError, match="none"):
        demon.save_html(tmp_path / "none" / "demon.html")
    with pytest.raises(IsADirectoryError):
        demon.save_html(tmp_path)
    with pytest.raises(TypeError):
        demon.save_html(None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    demon.save_html(str(tmp_path / "démon δ.html"))
    assert [path.name for path in tmp_path.iterdir()] == ["démon δ.html"]


class FrontEnd(BaseComm):
    """Hears what a widget tells the page."""

    def __init__(self, **keys: Any) -> None:
        self.heard: list[dict[str, Any]] = []
        super().__init__(**keys)

    def publish_msg(self, msg_type: str, data: Any = None, **keys: Any) -> None:
        self.heard.append({"type": msg_type, **(data or {}), "buffers": keys.get("buffers")})


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "create_comm", FrontEnd)


def send(demon: Demon, **state: Any) -> list[dict[str, Any]]:
    """What the demon says to what a page has set."""
    before = len(demon.comm.heard)
    message = {"method": "update", "state": state, "buffer_paths": []}
    demon.comm.handle_msg({"content": {"data": message}, "buffers": []})
    return list(demon.comm.heard[before:])


@pytest.mark.usefixtures("front_end")
def test_it_follows_the_page() -> None:
    demon = Demon(make(), X, Y)
    assert demon.comm.heard[0]["type"] == "comm_open"
    opened = demon.comm.heard[0]["state"]
    assert (opened["_model_module"], opened["layer"]) == ("anywidget", demon.layer)
    assert "export default" in opened["_esm"]
    assert ".backprop-gpu-demon" in opened["_css"]

    other = 1 if demon.layer == 2 else 2
    said = send(demon, layer=other, neuron=1, nudge=0.35)
    assert (demon.layer, demon.neuron, demon.nudge) == (other, 1, 0.35)
    (update,) = [each for each in said if each.get("method") == "update"]
    assert update["buffer_paths"] == [["_cost_after"]]
    after = np.frombuffer(update["buffers"][0], "<f8")
    assert after == pytest.approx([reference(make(), other, 1, 0.35)], rel=1e-12)
    assert send(demon, nudge=1)  # JSON has no 1.0
    assert type(demon.nudge) is float


@pytest.mark.usefixtures("front_end")
def test_what_a_page_cannot_set_changes_nothing() -> None:
    demon = Demon(make(), X, Y)
    before = demon.get_state()
    for wrong in ({"layer": 9, "neuron": 0}, {"layer": 1, "neuron": 4}, {"nudge": "<b>"}):
        send(demon, **wrong)  # the error is logged in the kernel
        assert demon.get_state() == before
    send(demon, nudge=0.5)
    assert demon.nudge == 0.5


@pytest.mark.usefixtures("front_end")
def test_a_neuron_that_is_not_shown_comes_in_one_message() -> None:
    demon = Demon(Network([3, 50, 2], seed=1, backend="numpy"), X, Y)
    demon.layer = 1
    hidden = set(range(50)).difference(demon._layers[1]["neurons"])  # noqa: SLF001
    demon.comm.heard.clear()
    demon.neuron = min(hidden)
    told = [set(each["state"]) for each in demon.comm.heard]
    assert {"_layers", "_numbers", "_curves"} in [
        names | {path[0] for path in each["buffer_paths"]}
        for names, each in zip(told, demon.comm.heard, strict=True)
    ]


def test_a_saved_notebook_holds_it_whole() -> None:
    """nbviewer and Sphinx show what `ipywidgets.embed` writes, with no kernel."""
    from ipywidgets.embed import dependency_state

    demon = Demon(make(), X, Y)
    (model,) = [
        each for each in dependency_state([demon]).values() if each["model_module"] == "anywidget"
    ]
    buffers = {each["path"][0]: base64.b64decode(each["data"]) for each in model["buffers"]}
    assert len(buffers["_curves"]) == 6 * 81 * 8
    assert {"layer", "neuron", "nudge", "span", "_layers", "_esm", "_css"} < set(model["state"])
    assert len(json.dumps(model)) < 60_000
    assert isinstance(demon, ipywidgets.DOMWidget)


def test_without_anywidget_it_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['anywidget'] = None\n"
        "try: import backprop_gpu.widgets\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "backprop_gpu.widgets: the package anywidget is not installed: "
        "pip install 'backprop_gpu[widget]'\n"
    )
