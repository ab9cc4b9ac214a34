"""`Demon` in a notebook that runs: a kernel, JupyterLab and a browser."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import TimeoutError

#: It writes what it has heard, and answers a nudge by 1 with a neuron that the page has not seen.
CODE = """
import json
import numpy as np
from backprop_gpu import Network
from backprop_gpu.widgets import Demon

net = Network([3, 40, 2], cost="binary_cross_entropy", seed=1, backend="numpy")
demon = Demon(net, [0.2, -0.5, 1.0], 1)
first = demon.nudge
hidden = min(set(range(40)) - set(demon._layers[1]["neurons"]))

def follow(change):
    if demon.nudge == 1.0:
        demon.layer, demon.neuron, demon.nudge = 1, hidden, 0.123
        return
    with open("heard.jsonl", "a") as file:
        seen = {"at": [demon.layer, demon.neuron], "nudge": demon.nudge, "ΔC": demon.change}
        file.write(json.dumps({**seen, "hidden": hidden, "first": first}) + "\\n")

demon.observe(follow, "nudge")
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
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token="),
            ],
            cwd=tmp_path,
            env=os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)},
            stdout=file,
            stderr=file,
        )
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()
            with suppress(URLError), urlopen(f"http://127.0.0.1:{port}/api"):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree/demon.ipynb"
    finally:
        server.terminate()
        server.wait(30)


def heard(path: Path, nudge: float) -> dict[str, Any]:
    """What the kernel knows, once it has heard of a nudge; the page sends not all on its way."""
    found: dict[str, Any] = {}
    for _ in range(100):
        if path.exists() and path.read_text().endswith("\n"):
            found = json.loads(path.read_text().splitlines()[-1])
            if found["nudge"] == pytest.approx(nudge):
                return found
        time.sleep(0.1)
    raise AssertionError(f"the kernel has heard of {found}, and not of {nudge}")


def test_page_and_kernel_follow_each_other(address: str, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
    for _ in range(20):  # it may be idle, and not yet listen
        page.locator(".jp-Cell .cm-content").first.click()
        page.keyboard.press("Control+Enter")
        with suppress(TimeoutError):
            page.wait_for_selector(".backprop-gpu-demon path.curve", timeout=5_000)
            break

    def number(name: str) -> float:
        names = page.locator(".numbers dt").all_text_contents()
        texts = page.locator(".numbers dd").all_text_contents()
        return float(texts[names.index(name)].replace("−", "-"))

    # By the keys, which JupyterLab would take for its own: from the last layer into the first.
    chosen = page.locator('.neuron[aria-pressed="true"]')
    chosen.click()
    for key in ("ArrowLeft", "ArrowDown", "Enter", "Tab", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    last = heard(tmp_path / "heard.jsonl", number("Δz"))
    label = chosen.get_attribute("aria-label")
    assert label.startswith("neuron {1} of layer 1,".format(*last["at"]))
    assert last["at"][0] == 1
    assert last["nudge"] == pytest.approx(last["first"] + 0.1)
    assert number("ΔC") == pytest.approx(last["ΔC"], rel=1e-6)

    count = page.locator(".neuron").count()
    page.locator(".slider input").fill("20")
    last = heard(tmp_path / "heard.jsonl", 0.123)
    page.wait_for_selector(f'.neuron[aria-pressed="true"][aria-label^="neuron {last["hidden"]} "]')
    assert page.locator(".neuron").count() == count + 1
    page.wait_for_function(
        "document.querySelector('.slider input').ariaValueText.includes('0.123')"
    )
    assert number("ΔC") == pytest.approx(last["ΔC"], rel=1e-6)
    assert errors == []
    page.close()
