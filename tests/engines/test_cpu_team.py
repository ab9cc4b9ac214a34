"""The threads of the CPU's library, and how it is found: used at once, lost in a fork, kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Network, Population, cpu, planning
from backprop_gpu.kernels.cpu import build

TASKS = Path("/proc/self/task")
#: So many that cores are shared, and waits end in sleep.
THREADS = 3


@pytest.fixture(autouse=True)
def _in_teams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks are trained by several threads, too."""
    work = planning.CpuWork(4, THREADS, True)
    monkeypatch.setattr(planning.plan, "cpu_work", lambda *_: work)


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((90, 12)).astype(np.float32), rng.integers(0, 5, 90)


def trained(seed: int, hidden: int = 20, epochs: int = 20) -> list[np.ndarray]:
    X, y = problem()
    net = Network([12, hidden, 5], backend="numpy", seed=seed)
    net.fit(X, y, epochs=epochs, batch_size=16, learning_rate=0.1, engine="resident")
    assert net.plan.work(16).threads == THREADS
    return [*net.weights, *net.biases, net.predict(X)]


def trained_population(seed: int) -> list[np.ndarray]:
    X, y = problem()
    population = Population([12, 20, 5], members=5, backend="numpy", seed=seed)
    population.fit(X, y, epochs=5, batch_size=16, learning_rate=0.1, engine="resident")
    return [array for net in population for array in (*net.weights, *net.biases)]


def assert_same(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_networks_trained_at_once_are_as_alone() -> None:
    jobs: list[Callable[[], list[np.ndarray]]] = [
        *(lambda i=i: trained(i, 20 + 13 * i) for i in range(4)),
        *(lambda i=i: trained_population(i) for i in range(2)),
    ]
    alone = [job() for job in jobs]
    for _ in range(3):
        with ThreadPoolExecutor(len(jobs)) as pool:
            together = [pool.submit(job) for job in jobs]
        for one, other in zip(together, alone, strict=True):
            assert_same(one.result(), other)


def test_one_predicts_while_another_trains() -> None:
    X, _ = problem()
    net = Network([12, 20, 5], backend="numpy", seed=9)
    expected, wanted = net.predict(X), trained(1, epochs=100)
    with ThreadPoolExecutor(1) as pool:
        training, reads = pool.submit(trained, 1, epochs=100), 0
        while not training.done() or reads < 10:
            np.testing.assert_array_equal(net.predict(X), expected)
            reads += 1
    assert_same(training.result(), wanted)


def threads_and_bytes() -> tuple[int, int]:
    fields = Path("/proc/self/statm").read_text().split()
    return len(list(TASKS.iterdir())), int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not TASKS.exists(), reason="no /proc tells of threads here")
def test_a_hundred_fits_leave_no_threads_and_no_memory() -> None:
    for _ in range(5):
        trained(0, epochs=1)
    threads, size = threads_and_bytes()
    for i in range(100):
        trained(i, epochs=1)
    after, now = threads_and_bytes()
    assert after == threads
    assert now - size < 1 << 23  # one fit's arrays and threads, kept, would be ten times that


def run(code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which must end."""
    command = [sys.executable, "-c", BEGIN + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


BEGIN = """
import os, sys, threading, warnings
import numpy as np
from backprop_gpu import Network, planning

planning.plan.cpu_work = lambda *_: planning.CpuWork(4, 3, True)
X, y = np.random.default_rng(3).standard_normal((90, 12)), np.arange(90) % 5

def trained(epochs=20):
    net = Network([12, 20, 5], backend="numpy", seed=1)
    net.fit(X, y, epochs=epochs, batch_size=16, learning_rate=0.1, engine="resident")
    return b"".join(array.tobytes() for array in net.weights)

wanted = trained()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not on this platform")
def test_a_forked_child_trains_and_its_parent_goes_on() -> None:
    done = run(
        """
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
busy = threading.Thread(target=trained, args=(2000,))
busy.start()
for _ in range(5):
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if trained() == wanted else 2
            grandchild = os.fork()
            if not grandchild:
                os._exit(0 if trained() == wanted else 3)
            code |= os.waitpid(grandchild, 0)[1]
        finally:
            os._exit(bool(code))
    assert trained() == wanted
    assert os.waitpid(child, 0)[1] == 0
busy.join()
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_daemon_in_training_does_not_hold_up_the_exit() -> None:
    done = run(
        """
threading.Thread(target=trained, args=(10**7,), daemon=True).start()
while not threading.active_count() > 1:
    pass
assert trained() == wanted
print("done")
"""
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# -- which library ---------------------------------------------------------------------------------


@pytest.fixture
def anew() -> Iterator[None]:
    """The library is looked for again: by the test, and after it."""
    cpu.library.cache_clear()
    yield
    cpu.library.cache_clear()


def assert_layered(why: str) -> None:
    """The engine is refused with a reason, and training goes on without it."""
    X, y = problem()
    net = Network([12, 8, 5], backend="numpy", seed=0)
    training: dict[str, Any] = {"epochs": 1, "batch_size": 16, "learning_rate": 0.1}
    with pytest.raises(ValueError, match=why):
        net.fit(X, y, engine="resident", **training)
    net.fit(X, y, **training)
    assert net.plan.engine == "layered"
    assert re.search(why, net.plan.engine_reason)
    assert np.isfinite(net.predict(X)).all()
    assert all(np.isfinite(array).all() for array in net.gradients(X, y)[0])


def levels() -> list[str]:
    """Those of the library that this processor has."""
    found = []
    for level in cpu.LEVELS:
        with suppress(cpu.NoLibraryError):
            found.append(cpu.CpuLibrary(build.HERE / build.LIBRARY, level).level)
    return found


def test_every_level_may_be_chosen(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKPROP_GPU_CPU", raising=False)
    assert cpu.library().level == levels()[0]
    results = {}
    for level in levels():
        monkeypatch.setenv("BACKPROP_GPU_CPU", level)
        cpu.library.cache_clear()
        assert cpu.library().level == level
        results[level] = trained(1)
        for one, other in zip(results[level], results[levels()[0]], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
        if cpu.library().fma:
            assert_same(results[level], results[levels()[0]])


def test_a_level_that_is_not_there(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKPROP_GPU_CPU", "v9")
    with pytest.raises(cpu.NoLibraryError, match=r"='v9' is no level of this library: \w+"):
        cpu.library()
    assert_layered("BACKPROP_GPU_CPU='v9' is no level")


def test_a_library_of_another_version(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_ABI", -1)
    assert_layered("is of another version of backprop_gpu: install it again")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("missing", "cannot be loaded: "),
        ("half", "is damaged, since it is too short: install backprop_gpu again"),
        ("zeros", "cannot be loaded: "),
    ],
)
def test_a_library_that_cannot_be_loaded(
    damage: str, why: str, anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = (build.HERE / build.LIBRARY).read_bytes()
    (tmp_path / "cpu").mkdir()
    if damage != "missing":
        data = whole[: len(whole) // 2] if damage == "half" else bytes(len(whole))
        (tmp_path / "cpu" / build.LIBRARY).write_bytes(data)
    record = {"library": build.LIBRARY, "editable": False, "size": len(whole)}
    (tmp_path / "cpu" / "build.json").write_text(json.dumps(record))
    monkeypatch.setattr(cpu.kernels, "__file__", str(tmp_path / "__init__.py"))
    assert_layered(f"{build.LIBRARY} {why}")
