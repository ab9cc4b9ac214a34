"""Ctrl-C while a large package is imported: heard afterwards, and nothing is left half-imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from backprop_gpu.imports import optional, uninterrupted, when_imported


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_is_heard_afterwards_and_once() -> None:
    handler, done = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                interrupt()
                done.append("inner")
            done.append("outer")
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(ImportError), uninterrupted():
        raise ImportError
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_handler_of_the_users_is_called() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with uninterrupted():
        interrupt()
        assert heard == []
    assert heard == [signal.SIGINT]


def test_what_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_leave_signals_alone() -> None:
    found = []

    def run() -> None:
        with uninterrupted():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


# argv: the module that is being looked for when Ctrl-C is pressed
PROGRAM = """
import os, signal, sys
import numpy as np
import backprop_gpu

class Finder:
    pressed = 0
    def find_spec(self, name, *rest):
        if name == sys.argv[1] and not Finder.pressed:
            Finder.pressed += 1
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
X, Y = np.zeros((8, 3)), np.zeros((8, 2))

mine = backprop_gpu.Activation("mine", lambda z: z / 2, lambda z: 0.5 + 0 * z)  # for Numba

def work():
    net = backprop_gpu.Network([3, 4, 2], activation=mine, seed=0, backend="numpy")
    history = net.fit(
        X, Y, epochs=2, batch_size=2, learning_rate=0.1, engine="resident", progress=True
    )
    return len(history.loss)

try:
    work()
except KeyboardInterrupt:
    pass
else:
    sys.exit("Ctrl-C was lost")
assert Finder.pressed
print(work())
"""


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("numba", "numba.core.typing"),
        ("numba", "numba.cpython.builtins"),
        ("tqdm", "tqdm.std"),
    ],
)
def test_interrupted_training_can_be_begun_again(package: str, module: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, module], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert optional("json.decoder", "plot", "this").JSONDecoder
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    for name in ("matplotlib", "matplotlib.pyplot"):
        with pytest.raises(
            ImportError,
            match=r"^plot\(\): the package matplotlib is not installed: "
            r"pip install 'backprop_gpu\[plot\]'$",
        ):
            optional(name, "plot", "plot()")


def test_what_is_installed_and_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_package'"):
        optional("broken_package", "plot", "plot()")


def test_modules_are_told_of_once_they_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "waited_for").mkdir()
    (tmp_path / "waited_for/__init__.py").write_text("value = 1")
    (tmp_path / "waited_for/part.py").write_text("from . import value")
    monkeypatch.syspath_prepend(tmp_path)
    heard: list[tuple[str, int]] = []
    for name in ("waited_for", "waited_for.part"):
        when_imported(name, lambda module: heard.append((module.__name__, module.value)))
    when_imported("waited_for.missing", lambda module: heard.append(("missing", 0)))
    assert heard == []
    part = importlib.import_module("waited_for.part")
    assert heard == [("waited_for", 1), ("waited_for.part", 1)]
    # It is as if nobody had waited.
    assert type(part.__loader__) is type(part.__spec__.loader) is SourceFileLoader
    assert importlib.import_module("waited_for.part") is part
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("waited_for.missing")
    when_imported("waited_for", lambda module: heard.append(("at once", module.value)))
    assert heard[2:] == [("at once", 1)]
