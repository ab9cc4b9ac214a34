"""What is shown while networks train: bars, the best settings of a sweep, that kernels compile."""

from __future__ import annotations

import io
import re
import sys
import time

import numpy as np
import pytest

from backprop_gpu import EarlyStopping, Network, cross_validate, sweep
from backprop_gpu.cuda import announcement
from backprop_gpu.cuda.announcement import announced
from backprop_gpu.training.progress import ProgressBar

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3))
Y = (X.sum(axis=1) > 0).astype(int)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)

    def open_terminal():  # called by the test: before it runs pytest puts its own stderr there
        found = Terminal()
        monkeypatch.setattr(sys, "stderr", found)
        return found

    return open_terminal


def run(**how):
    return sweep(
        X, Y, **{"grid": {"learning_rate": [0.001, 1.5, 0.5]}, "sizes": [3, 4, 1], "epochs": 4,
                 "batch_size": 8, "backend": "numpy", "seed": 0, "validation_data": (X, Y)} | how
    )  # fmt: skip


def last_table(text):
    """The cells of its rows, as it was left."""
    text = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", text)
    rows = [line for line in text[text.rindex("best so far") :].splitlines() if "│" in line]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in rows]


def test_a_sweep_shows_its_best_settings(open_terminal):
    terminal = open_terminal()
    pytest.importorskip("rich", reason="rich is not installed")
    found = run()
    rows = last_table(terminal.getvalue())
    assert [int(row[0]) for row in rows] == found.ranking
    best = found.best.setting
    assert rows[0][1:] == [str(best["learning_rate"]), f"{best['val_accuracy']:.4g}", "4/4"]


def test_restored_weights_count_there(open_terminal):
    terminal = open_terminal()
    pytest.importorskip("rich", reason="rich is not installed")
    found = run(epochs=30, callbacks=[EarlyStopping(patience=2)], metric="val_loss")
    rows = last_table(terminal.getvalue())
    assert [int(row[0]) for row in rows] == found.ranking
    assert rows[0][2] == f"{found.best.setting['val_loss']:.4g}"


def test_trials_show_theirs(open_terminal):
    terminal = open_terminal()
    pytest.importorskip("rich", reason="rich is not installed")
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    rates = optuna.distributions.FloatDistribution(0.01, 1.0)
    found = run(grid={"learning_rate": rates}, trials=7, at_once=2)
    rows = last_table(terminal.getvalue())
    assert [int(row[0]) for row in rows] == found.ranking[:5]


@pytest.mark.parametrize("why", ["no rich", "no terminal", "another display"])
def test_else_the_best_stands_beside_the_bar(why, open_terminal, monkeypatch):
    terminal = open_terminal()
    if why == "no rich":
        for name in [each for each in sys.modules if each.partition(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rich", None)
    elif why == "no terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False, raising=False)
    else:
        live = pytest.importorskip("rich.live", reason="rich is not installed")

        from rich.errors import LiveError

        def refuse(self):
            raise LiveError("one is enough")

        monkeypatch.setattr(live.Live, "start", refuse)
    found = run()
    text = terminal.getvalue()
    assert "best so far" not in text
    best = found.best.setting
    end = f"best val_accuracy={best['val_accuracy']:.4g}, learning_rate={best['learning_rate']}"
    assert end in text.split("\r")[-1]


def test_nothing_is_shown_that_was_not_asked_for(open_terminal):
    terminal = open_terminal()
    run(progress=False)
    cross_validate(X, Y, cv=2, sizes=[3, 1], epochs=1, batch_size=4, learning_rate=0.1)
    assert terminal.getvalue() == ""
    assert announcement.hearers == []


def test_a_training_that_stops_early_has_a_full_bar(open_terminal):
    terminal = open_terminal()
    net = Network([3, 4, 1], backend="numpy", seed=0)
    history = net.fit(
        X, Y, epochs=50, batch_size=8, learning_rate=0.0, validation_data=(X, Y), progress=True,
        callbacks=[EarlyStopping(patience=2)],
    )  # fmt: skip
    assert "100%" in (end := terminal.getvalue().split("\r")[-1])
    assert f" {len(history)}/{len(history)} " in end
    assert f"val_loss={history.val_loss[-1]:.4f}" in end


# -- kernels that are compiled ----------------------------------------------------------------


@pytest.fixture(autouse=True)
def _silent(monkeypatch):
    monkeypatch.setattr(announcement, "PATIENCE", 0.1)
    announcement.forget()
    yield
    announcement.forget()


def test_compiling_is_announced_once(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path))
    with announced(5, "sm_90a"):
        pass  # found in the cache
    assert caplog.messages == []
    for _ in range(2):
        with announced(3, "sm_90a"):
            time.sleep(0.3)
    assert caplog.messages == [f"compiling 3 kernels for sm_90a (once; kept in {tmp_path})"]
    with announced(1, "sm_80"):
        time.sleep(0.3)
    assert caplog.messages[1:] == [f"compiling 1 kernel for sm_80 (once; kept in {tmp_path})"]


def test_many_that_take_little_each_are_announced(caplog):
    for _ in range(4):
        with announced(1, "sm_90a"):
            time.sleep(0.06)
    (line,) = caplog.messages
    assert line.startswith(("compiling 2 kernels", "compiling 3 kernels"))


def test_a_folder_that_keeps_nothing_is_not_named(caplog, monkeypatch, tmp_path):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path))
    with announced(2, "sm_90a"):
        time.sleep(0.3)
    assert caplog.messages == ["compiling 2 kernels for sm_90a (not kept)"]


def test_a_bar_shows_it_instead(open_terminal, caplog):
    terminal = open_terminal()
    with ProgressBar(3, True), announced(2, "sm_90a"):
        time.sleep(0.3)
    assert caplog.messages == []
    assert "compiling 2 kernels for sm_90a" in terminal.getvalue()
    announcement.forget()
    with ProgressBar(3, False), announced(2, "sm_90a"):
        time.sleep(0.3)
    assert len(caplog.messages) == 1


@pytest.mark.gpu
@pytest.mark.standin
def test_the_runtime_announces_what_it_compiles(open_terminal, monkeypatch):
    terminal = open_terminal()
    from backprop_gpu.cuda import runtime
    from backprop_gpu.cuda.catalogue import Catalogue

    compile_kernels = runtime.compile_kernels

    def slowly(kernels, arch):
        time.sleep(0.3)
        return compile_kernels(kernels, arch)

    fresh = runtime.Runtime(0)  # which compiles one to see what the card can do
    announcement.forget()
    monkeypatch.setattr(runtime, "compile_kernels", slowly)
    kernels = Catalogue(np.dtype("float32"))
    with ProgressBar(3, True):
        fresh.prepare([kernels.gather(), kernels.hadamard()])
    assert "compiling 2 kernels for sm_" in terminal.getvalue()
