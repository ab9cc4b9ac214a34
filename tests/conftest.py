"""The backends that this machine can run, as a fixture, and a count of what it cannot."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from backprop_gpu import activations, costs, self_check, testing
from backprop_gpu.backends import names
from backprop_gpu.cuda.catalogue import Kernel
from backprop_gpu.testing import standin, twins
from kernel_cases import LAUNCHED
from machine import device_runtime, obstacle

GPU_BACKENDS = ("cuda", "numba_cuda")
GPU = ("gpu", True)
# It is for this pytest, and not for those that tests start.
os.environ.pop("PYTEST_ADDOPTS", None)


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.gpu if name in GPU_BACKENDS else ())
        for name in names()
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend in turn; those that cannot run here skip and say why."""
    name: str = request.param
    if obstacle(name) is not None:
        pytest.skip(f"backend {name}: {obstacle(name)}")
    return name


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """The kernels that the device is given, each time that it is."""
    runtime, seen = type(device_runtime()), []
    launch = runtime.launch

    def recorded(self: Any, kernel: Kernel, grid: Any, arguments: Any) -> None:
        seen.append(kernel)
        launch(self, kernel, grid, arguments)

    monkeypatch.setattr(runtime, "launch", recorded)
    return seen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    running = standin.running()
    if report.failed and running is not None:
        report.sections.append(("why the stand-in's last refusal", running.reason()))
    return report


@pytest.fixture
def survives() -> None:
    """For tests in which device code faults, or a sanitizer would report what they do."""
    running = standin.running()
    if running is not None and running.sanitizer != "plain":
        pytest.skip("a fault ends a process that a sanitizer watches")


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget after the test what it registers."""
    tables: list[dict[str, Any]] = [activations.REGISTRY, costs.REGISTRY]  # type: ignore[list-item]
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


class TellsAtOnce:
    """Prints a failure when it happens: pytest's own summary is lost where a run is stopped."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}", flush=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tell-at-once", action="store_true", help=TellsAtOnce.__doc__)
    parser.addoption(
        "--stand-in", metavar="CARD", help="run on a stand-in for this card, such as H100"
    )
    parser.addoption("--stand-in-devices", type=int, default=1, help="how many of that card")
    parser.addoption("--stand-in-sanitizer", default="plain", help="plain, asan or tsan")
    parser.addoption("--stand-in-order", default="late", help="late, others or random:SEED")


def pytest_configure(config: pytest.Config) -> None:
    # A shell lets what it runs in the background ignore Ctrl-C, which some tests press.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if card := config.getoption("--stand-in"):
        # Tests make the driver fail, and count its calls: test_check.py has the self-check's own.
        os.environ.setdefault(self_check.OFF, "0")
        order, _, seed = config.getoption("--stand-in-order").partition(":")
        devices = config.getoption("--stand-in-devices")
        sanitizer = config.getoption("--stand-in-sanitizer")
        options = {"devices": devices, "order": order, "sanitizer": sanitizer}
        testing.start(card, seed=int(seed or 0), **options)
        twins.together(LAUNCHED)  # sooner than one by one
    # With xdist the reports of all workers pass through the process that started them.
    if config.getoption("--tell-at-once") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(TellsAtOnce())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") is None:
            continue
        item.user_properties.append(GPU)  # a report has no marks, and xdist sends reports
        name = item.callspec.params.get("backend", "cuda") if hasattr(item, "callspec") else "cuda"
        reason = obstacle(name)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"backend {name}: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats
    skipped = [
        report
        for report in reports.get("skipped", ())
        # a whole file that skips itself is reported without properties
        if GPU in map(tuple, getattr(report, "user_properties", ()))
    ]
    ran = [
        report
        for outcome in ("passed", "failed")
        for report in reports.get(outcome, ())
        if GPU in map(tuple, report.user_properties) and report.when == "call"
    ]
    if not (skipped or ran):
        return
    terminalreporter.section("gpu tests")
    terminalreporter.write_line(f"{len(ran)} gpu tests ran, {len(skipped)} were skipped")
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} skipped: {reason}")
