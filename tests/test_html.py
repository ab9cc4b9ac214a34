"""What a notebook shows: small, well formed, escaped, and of the page's own colours."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from backprop_gpu import History, Network, Population, SweepResult, html, sweep
from backprop_gpu.planning import H200, choose_plan
from backprop_gpu.planning.explanation import explain
from backprop_gpu.planning.plan import Choice, Run

X = np.random.default_rng(0).normal(size=(40, 6)).astype("f4")
Y = (X[:, 0] > 0).astype(int)
FIT: dict[str, Any] = {"epochs": 3, "batch_size": 10, "learning_rate": 0.5}
HOSTILE = "<script>alert('x')</script>&\"<img src=x onerror=y>"


class Page(HTMLParser):
    """Tags in balance, their attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def page(shown: Any) -> Page:
    source = shown if isinstance(shown, str) else shown._repr_html_()
    found = Page(source)
    assert len(source.encode()) < 6144
    allowed = {"div", "b", "table", "tr", "th", "td", "details", "summary", "pre"}
    assert set(found.tags) <= allowed
    assert {name for name, _ in found.attributes} <= {"style"}
    for _, style in found.attributes:
        assert "url(" not in str(style)
        for name, value in re.findall(r"([a-z-]*color|background):([^;]*)", str(style)):
            assert value in ("inherit", "transparent"), name
    return found


def on_a_gpu() -> Any:
    sizes, run = (64, *[512] * 24, 10), Run(50_000, 30, 1024, engine="layered")
    plan = choose_plan(sizes, "float32", Choice("cuda", HOSTILE), H200, run)
    plan = replace(plan, notes=(HOSTILE,) * 30)
    explanation = explain(sizes, 1024, np.dtype("float32"), plan, H200, last_fit=HOSTILE)
    return plan, explanation


def test_a_network() -> None:
    net = Network([6, 4, 1], cost="binary_cross_entropy", backend="numpy", seed=0)
    assert "not trained yet" in page(net).text
    net.fit(X, Y, **FIT)
    found = page(net)
    assert "trained: 3 epochs: loss " in found.text
    assert found.rows[1:] == [
        ["0", "6", "", "", ""],
        ["1", "4", "sigmoid", "4 × 6", "28"],
        ["2", "1", "sigmoid", "1 × 4", "5"],
    ]
    assert "33 parameters" in found.text
    assert "engine resident" in found.text or "engine layered" in found.text


def test_a_history() -> None:
    history = Network([6, 4, 2], backend="numpy", seed=0).fit(X, Y, validation_data=(X, Y), **FIT)
    found = page(history)
    assert [row[0] for row in found.rows] == ["epoch", "1", "2", "3"]
    assert found.rows[3][1] == f"{history.loss[2]:.6g}"
    assert f"val_accuracy {history.val_accuracy[2]:.6g}" in found.text
    long = History([1.0 / (1 + i) for i in range(900)], [0.5] * 899, restored=400)
    found = page(long)
    assert "900 epochs; of epoch 401, which is kept: loss 0.00249377" in found.text
    assert [row[0] for row in found.rows[1:4]] == ["1", "401", "891"]
    assert found.rows[-1] == ["900", "0.00111111", ""]
    assert "888 rows more" in found.text
    assert "no epoch yet" in page(History()).text


def test_a_plan_and_an_explanation() -> None:
    plan, explanation = on_a_gpu()
    found = page(plan)
    assert HOSTILE in found.text
    assert any("forward layer 1" in row for row in found.rows)
    found = page(explanation)
    assert "rows more" in found.text
    assert f"at least {explanation.floor * 1e6:,.3g} µs" in found.text
    net = Network([6, 4, 1], backend="numpy")
    assert "backend numpy" in page(net.plan).text
    assert "BP2 layer 1" in page(net.explain(batch_size=10)).text


def test_a_sweep_whose_settings_are_hostile() -> None:
    found = sweep(
        X, Y, grid={"learning_rate": [0.1, 0.5, 1.0], "l2": [0.0, 0.1]}, sizes=[6, 3, 2], seed=3,
        epochs=2, batch_size=10, progress=False, backend="numpy",
    )  # fmt: skip
    shown = page(found)
    assert [row[0] for row in shown.rows[1:]] == [str(i) for i in found.ranking]
    for row in found.rows:
        row["activation"] = HOSTILE
    shown = page(found)
    # `escape` has made text of it, or the page would have had a tag that is not allowed.
    assert "<script>alert('x')</script>" in shown.text


def test_long_tables_are_folded_and_cut() -> None:
    net = Network([2, 1], backend="numpy")
    net.history = History([1.0])
    rows = [
        {f"setting_{k}": HOSTILE for k in range(30)} | {"loss": float(i), "failed": None}
        for i in range(300)
    ]
    found = page(SweepResult(rows, [net] * 300, "loss"))
    assert found.tags.count("details") == 1
    assert re.search(r"\d+ rows? and \d+ columns more", found.text)
    population = Population([6, 2, 2], members=200, seed=0, backend="numpy")
    assert "188 rows more" in page(population).text


def test_a_population_best_first() -> None:
    population = Population([6, 4, 2], members=4, activation="relu", seed=0, backend="numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        population.fit(X, Y, **FIT | {"learning_rate": [0.01, 1e30, 0.3, 0.1]})
    found = page(population)
    assert [int(row[0]) for row in found.rows[1:]] == [*population.ranking(), 1]
    assert found.rows[-1][-1].startswith(population.failed[1][:20])
    population.failed = dict.fromkeys(range(4), HOSTILE)
    assert HOSTILE[:20] in page(population).text


def test_pieces() -> None:
    assert html.text("<&>\"'") == "&lt;&amp;&gt;&quot;&#x27;"
    assert html.text("x" * 100) == "x" * 47 + "…"
    assert "… 1 row more" in html.table(["a"], [[1]], 2)
    assert "more" not in html.table(["a"], [[1], [2]])
    ((heading,), (cell,)) = page(html.table([HOSTILE], [[HOSTILE]])).rows
    assert heading == cell
    assert HOSTILE.startswith(cell.removesuffix("…"))
    assert len(html.pre("<" * 10_000)) < 2 * 1500 + 200
