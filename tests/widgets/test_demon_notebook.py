"""`Demon` in a notebook that runs: a kernel, Jupyter's widgets and a browser, by way of Voilà."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

for package in ("anywidget", "ipykernel", "voila"):
    pytest.importorskip(package, reason=f"the package {package} is not installed")

#: It writes what it has heard, and answers a nudge by 1 with a neuron that the page has not seen.
CODE = """
import json
import numpy as np
from backprop_gpu import Network
from backprop_gpu.widgets import Demon

net = Network([3, 40, 2], cost="binary_cross_entropy", seed=1, backend="numpy")
demon = Demon(net, [0.2, -0.5, 1.0], 1)
hidden = min(set(range(40)) - set(demon._layers[1]["neurons"]))

def heard(change):
    if demon.nudge == 1.0:
        demon.layer, demon.neuron, demon.nudge = 1, hidden, 0.123
        return
    with open("heard.jsonl", "a") as file:
        seen = {"at": [demon.layer, demon.neuron], "nudge": demon.nudge, "ΔC": demon.change}
        file.write(json.dumps({**seen, "hidden": hidden}) + "\\n")

demon.observe(heard, "nudge")
demon
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server with that notebook."""
    cell = {"cell_type": "code", "source": CODE, "metadata": {}, "outputs": []}
    notebook = {
        "cells": [{**cell, "execution_count": None}],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    (tmp_path / "demon.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "voila", "demon.ipynb", "--no-browser", f"--port={port}"],
            cwd=tmp_path,
            env=os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)},
            stdout=file,
            stderr=file,
        )
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()
            try:
                urlopen(f"http://127.0.0.1:{port}/voila/static/nothing")
            except URLError as error:
                if hasattr(error, "code"):  # it answers
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)


def lines(path: Path, count: int) -> list[dict[str, Any]]:
    """What the kernel has written, once it is so much."""
    for _ in range(100):
        found = path.read_text().splitlines() if path.exists() else []
        if len(found) >= count:
            return [json.loads(line) for line in found]
        time.sleep(0.1)
    raise AssertionError(f"the kernel has heard {found}")


def test_page_and_kernel_follow_each_other(address: str, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".backprop-gpu-demon path.curve", timeout=120_000)

    def number(name: str) -> float:
        names = page.locator(".numbers dt").all_text_contents()
        texts = page.locator(".numbers dd").all_text_contents()
        return float(texts[names.index(name)].replace("−", "-"))

    page.locator(".neuron").nth(3).click()
    slider = page.get_by_role("slider")
    slider.fill("-7")
    (last,) = lines(tmp_path / "heard.jsonl", 1)
    label = page.locator('.neuron[aria-pressed="true"]').get_attribute("aria-label")
    assert label.startswith("neuron {1} of layer {0},".format(*last["at"]))
    assert last["nudge"] == number("Δz") == -0.35
    assert number("ΔC") == pytest.approx(last["ΔC"], rel=1e-6)

    count = page.locator(".neuron").count()
    slider.fill("20")
    last = lines(tmp_path / "heard.jsonl", 2)[-1]
    chosen = f'.neuron[aria-pressed="true"][aria-label^="neuron {last["hidden"]} of layer 1,"]'
    page.wait_for_selector(chosen)
    assert page.locator(".neuron").count() == count + 1
    page.wait_for_function("document.querySelector('input').ariaValueText.includes('0.123')")
    assert number("ΔC") == pytest.approx(last["ΔC"], rel=1e-6)
    assert errors == []
    page.close()
