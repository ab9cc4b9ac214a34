"""A page of `Demon.save_html` in a browser: it shows what Python computes, and fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed")

from backprop_gpu import Network
from backprop_gpu.widgets import Demon

X = np.array([0.3, -0.8, 0.5])

#: Opens a demon's page, with options of the browser's.
Opens = Callable[..., Any]


@pytest.fixture
def opens(browser: Any, tmp_path: Path) -> Iterator[Opens]:
    """At the end: no page has asked for anything, and none has complained."""
    complaints: list[str] = []
    contexts = []

    def opens(demon: Demon, **options: Any) -> Any:
        path = tmp_path / f"{len(contexts)}.html"
        demon.save_html(path)
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()

        def route(route: Any) -> None:
            if route.request.url == path.as_uri():
                route.continue_()
            else:
                complaints.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", route)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("path.curve", state="attached")
        return page

    yield opens
    for context in contexts:
        context.close()
    assert complaints == []


def make() -> Demon:
    net = Network([3, 12, 2], activation=["tanh", "sigmoid"], seed=1, backend="numpy")
    return Demon(net, X, 1)


def numbers(page: Any) -> dict[str, float]:
    """What the page shows, by name."""
    names = page.locator(".numbers dt").all_text_contents()
    shown = page.locator(".numbers dd").all_text_contents()
    known = {"∞": "inf", "−∞": "-inf"}
    return {
        name: float(known.get(text, text.replace("−", "-")))
        for name, text in zip(names, shown, strict=True)
    }


def expected(demon: Demon) -> dict[str, float]:
    return {
        "z": demon.z,
        "a": demon.a,
        "δ": demon.delta,
        "Δz": demon.nudge,
        "C": demon.cost,
        "C(Δz)": demon.cost + demon.change,
        "ΔC": demon.change,
        "δ Δz": demon.delta * demon.nudge,
    }


def neuron(page: Any, l: int, j: int) -> Any:
    return page.locator(f'.neuron[aria-label^="neuron {j} of layer {l},"]')


def title(page: Any) -> str:
    return str(page.locator(".title").text_content())


def test_clicks_and_the_slider_show_what_python_computes(opens: Opens) -> None:
    demon = make()
    page = opens(demon)
    assert numbers(page) == pytest.approx(expected(demon), rel=1e-6)
    slider = page.get_by_role("slider")
    for l, j, step in [(1, 0, 7), (1, 11, -40), (2, 1, 40), (2, 0, 0), (1, 5, -1)]:
        demon.layer, demon.neuron, demon.nudge = l, j, 2 * step / 40
        neuron(page, l, j).click()
        slider.fill(str(step))
        assert numbers(page) == pytest.approx(expected(demon), rel=1e-6)
        assert f"neuron {j} of layer {l} " in title(page)
        pressed = page.locator('.neuron[aria-pressed="true"]')
        assert pressed.get_attribute("aria-label").startswith(f"neuron {j} of layer {l}, δ = ")


def test_the_keyboard_alone_suffices(opens: Opens) -> None:
    demon = make()
    demon.layer, demon.neuron, demon.nudge = 2, 1, 0.0
    page = opens(demon)
    press = page.keyboard.press

    def focused() -> str:
        return str(page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.type"))

    press("Tab")
    assert focused().startswith("neuron 1 of layer 2,")
    # Arrows neither scroll the page nor lead to another of a notebook's cells.
    page.evaluate("addEventListener('keydown', ({ key }) => (document.body.title += key))")
    press("ArrowUp")
    assert focused().startswith("neuron 0 of layer 2,")
    press("ArrowUp")  # there is none above
    assert focused().startswith("neuron 0 of layer 2,")
    press("ArrowLeft")  # two columns of six
    assert focused().startswith("neuron 6 of layer 1,")
    press("ArrowLeft")
    press("ArrowDown")
    assert focused().startswith("neuron 1 of layer 1,")
    assert "neuron 1 of layer 2 " in title(page)  # not yet chosen
    press("Enter")
    assert "neuron 1 of layer 1 " in title(page)
    press("ArrowRight")
    press("Space")
    assert "neuron 7 of layer 1 " in title(page)
    press("Tab")
    assert focused() == "range"
    press("ArrowRight")
    press("ArrowRight")
    demon.layer, demon.neuron, demon.nudge = 1, 7, 0.1
    assert numbers(page) == pytest.approx(expected(demon), rel=1e-6)
    text = page.get_by_role("slider").get_attribute("aria-valuetext")
    assert re.fullmatch(r"Δz = 0\.1, ΔC = −?[0-9.e−]+", text)
    press("Shift+Tab")
    assert focused().startswith("neuron 7 of layer 1,")
    assert "Arrow" not in page.locator("body").get_attribute("title").split("Tab")[0]
    # One stop for all neurons, and one for the slider.
    assert page.locator('[tabindex="0"]').count() == 1


def test_a_nudge_that_the_slider_lacks(opens: Opens) -> None:
    demon = make()
    demon.layer, demon.nudge = 1, 0.123
    page = opens(demon)
    assert numbers(page) == pytest.approx(expected(demon), rel=1e-6)
    neuron(page, 2, 0).click()  # whose C there nobody has computed
    demon.layer, demon.neuron, demon.nudge = 2, 0, 0.1
    assert numbers(page) == pytest.approx(expected(demon), rel=1e-6)


def test_the_tangent_touches_the_curve(opens: Opens) -> None:
    demon = make()
    page = opens(demon)
    for l, j in [(1, 3), (2, 0)]:
        demon.layer, demon.neuron = l, j
        neuron(page, l, j).click()
        path = page.locator("path.curve").get_attribute("d")
        points = np.array([pair.split(" ") for pair in re.split("[ML]", path)[1:]], float)
        h, costs = demon.curve
        assert len(points) == len(h) == 81
        x, y = np.polyfit(h, points[:, 0], 1), np.polyfit(costs, points[:, 1], 1)
        assert points[:, 1] == pytest.approx(np.polyval(y, costs), abs=1e-3)
        line = page.locator("line.tangent")
        ends = np.array([[float(line.get_attribute(f"{c}{i}")) for c in "xy"] for i in (1, 2)])
        # In the picture its slope is δ, and it goes through the curve at Δz = 0.
        slope = np.diff(ends[:, 1])[0] / np.diff(ends[:, 0])[0]
        assert slope * x[0] / y[0] == pytest.approx(demon.delta, rel=1e-6)
        assert points[0, 0] <= ends[0, 0] < ends[1, 0] <= points[80, 0]
        through = ends[0, 1] + slope * (points[40, 0] - ends[0, 0])
        assert through == pytest.approx(points[40, 1], abs=1e-6)
        point = page.locator("circle.point")
        assert float(point.get_attribute("cx")) == pytest.approx(np.polyval(x, demon.nudge))


def test_colours_tell_delta(opens: Opens) -> None:
    demon = make()
    page = opens(demon)
    largest = abs(demon.delta)  # where it starts
    for l, j in [(1, 0), (1, 1), (2, 0), (2, 1)]:
        demon.layer, demon.neuron = l, j
        style = neuron(page, l, j).get_attribute("style")
        assert ("negative" in style) == (demon.delta < 0)
        strength = int(re.findall(r"--strength: (\d+)%", style)[0])
        assert strength == pytest.approx(100 * (abs(demon.delta) / largest) ** 0.5, abs=1)


def test_it_fits_windows_and_themes(opens: Opens) -> None:
    net = Network([30, 200, 200, 10], seed=1, backend="numpy")
    page = opens(Demon(net, np.linspace(-1, 1, 30), 3), viewport={"width": 400, "height": 800})
    assert "25 of 200 neurons" in page.locator(".network").text_content()
    assert "largest" in page.locator(".note").text_content()
    for width, scheme in [(400, "light"), (320, "dark"), (1280, "light"), (1000, "dark")]:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # The chosen neuron is in view, though the network may scroll.
        box = page.locator('.neuron[aria-pressed="true"]').bounding_box()
        assert 0 <= box["x"] <= width - box["width"]
        assert min(box["width"], box["height"]) >= 24
        plot, network = (page.locator(name).bounding_box() for name in (".plot", ".network"))
        assert (plot["y"] >= network["y"] + network["height"]) == (width < 700)
        assert page.locator("svg").bounding_box()["width"] == plot["width"] > 250
        colour = page.evaluate(
            "getComputedStyle(document.querySelector('.title')).color.match(/\\d+/g).map(Number)"
        )
        assert max(colour[:3]) < 60 if scheme == "light" else min(colour[:3]) > 195
    script = "getComputedStyle(document.querySelector('.neuron')).transitionDuration"
    assert page.evaluate(script) != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(script) == "0s"


def test_names_are_text(opens: Opens) -> None:
    demon = make()
    name = "</script><img src=x onerror=alert(1)>"
    first, second, third = demon._layers  # noqa: SLF001
    demon._layers = [first, {**second, "activation": name}, third]  # noqa: SLF001
    page = opens(demon)
    assert name in page.locator(".network").text_content()
    assert page.locator("img").count() == 0


def test_what_is_no_number_is_shown_as_such(opens: Opens) -> None:
    net = Network([3, 4, 2], activation=["exponential", "identity"], seed=1, backend="numpy")
    net.weights = [np.full((4, 3), -2e4), net.weights[1]]
    page = opens(Demon(net, X - 1.0, [1.0, 0.0]))
    shown = numbers(page)
    assert not np.isfinite(shown["C"])
    assert not np.isfinite(shown["C(Δz)"])
    assert page.locator("circle.point").count() == 0


def test_small_changes_of_a_large_cost(opens: Opens) -> None:
    net = Network([3, 4, 2], activation="identity", seed=1, backend="numpy", dtype="float64")
    net.weights = [net.weights[0], net.weights[1] * 1e-9]
    demon = Demon(net, X, [1000.0, 0.0])
    demon.layer = 1
    page = opens(demon)
    shown = expected(demon)
    assert numbers(page) == pytest.approx(shown, rel=1e-6)
    assert 0 < abs(shown["ΔC"]) < 1e-5
    levels = page.locator('svg text[text-anchor="end"]').all_text_contents()
    assert len(levels) == len(set(levels))


def test_curves_of_any_size_are_drawn(opens: Opens) -> None:
    demon = make()
    rounding = 0.3 + np.spacing(0.3) * (np.arange(81) % 2)
    sizes = [rounding, 1e12 * rounding, 1e-200 * rounding, np.geomspace(1e-9, 1e308, 81)]
    curves = np.frombuffer(demon._curves).reshape(-1, 81).copy()  # noqa: SLF001
    curves[: len(sizes)] = sizes
    demon._curves = curves.tobytes()  # noqa: SLF001
    page = opens(demon)
    for j, costs in enumerate(sizes):
        neuron(page, 1, j).click()
        assert numbers(page)["C"] == pytest.approx(costs[40], rel=1e-6)
        levels = page.locator('svg text[text-anchor="end"]').all_text_contents()
        assert 3 < len(levels) == len(set(levels)) < 10
        assert max(map(len, levels)) < 16
