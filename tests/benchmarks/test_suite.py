"""The benchmark suite with libraries and a clock of our own. No timing is asserted."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from backprop_gpu import cli, records
from backprop_gpu.benchmarks import compare, first_step, floor, measure, report, suite
from backprop_gpu.benchmarks.cli import folder
from backprop_gpu.benchmarks.floor import MachineRates
from backprop_gpu.benchmarks.peers import agreement
from backprop_gpu.benchmarks.workloads import WORKLOADS, ProblemInstance, Workload

TINY = Workload("nielsen", (5, 4, 3), 2, classes=True)
RATES = MachineRates("cpu", 1e10, {"float32": 1e11, "float64": 5e10}, 1e-6, 1 << 25)


class Clock:
    """Time that passes only when someone says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A library whose steps take as long as it is told, round by round."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        log: list[str],
        step: Callable[[int], float] = lambda call: 1e-3,
        *,
        absent: str | None = None,
        fails: str = "",
        parameters: float = 0.0,
    ) -> None:
        self.name, self.label = name, name.title()
        self.clock, self.log, self.step = clock, log, step
        self.absent, self.fails, self.value = absent, fails, parameters
        self.calls = 0
        self.plan = f"plan of {name}"

    def obstacle(self, workload: Workload, device: str) -> str | None:
        return self.absent

    def start(self, problem: ProblemInstance, device: str) -> Fake:
        if self.fails == "start":
            raise RuntimeError("no kernel\nfor this")
        self.steps = problem.steps
        self.calls = 0
        return self

    def run(self) -> None:
        self.calls += 1
        self.log.append(self.name)
        if self.fails == "run" and self.calls > 3:
            raise MemoryError("too much")
        self.clock.now += self.steps * self.step(self.calls)

    def parameters(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [np.full((1, 2, 2), self.value)], [np.zeros((1, 2))]


def agree(peer: Any, workload: Workload, device: str, steps: int) -> float:
    return 0.0


def measured(
    peers: list[Fake], clock: Clock, rounds: int = 5, disagreement: Any = agree, **more: Any
) -> dict[str, measure.PeerResult]:
    results = measure.time_peers(
        TINY, "cpu", peers, seconds=0.1, rounds=rounds, disagreement=disagreement,
        clock=clock, pause=lambda seconds: None, **more,
    )  # fmt: skip
    return {result.peer.name: result for result in results}


# -- measuring --------------------------------------------------------------------------


def test_libraries_take_turns_and_a_ratio_is_of_one_round() -> None:
    clock, log = Clock(), list[str]()
    # The machine slows down threefold from round to round; the ratio stays 2.
    slower = [1.0, 1.0, 1.0, 3.0, 9.0, 27.0, 81.0]
    ours = Fake("ours", clock, log, lambda call: 1e-3 * slower[call - 1])
    other = Fake("other", clock, log, lambda call: 2e-3 * slower[call - 1])
    found = measured([ours, other], clock)
    assert log[-10:] == ["ours", "other"] * 5
    np.testing.assert_allclose(found["ours"].seconds, [1e-3, 3e-3, 9e-3, 27e-3, 81e-3])
    np.testing.assert_allclose(measure.ratios(found["other"], found["ours"]), 2.0)
    record = suite.step_record(found["other"], found["ours"], TINY, RATES)
    assert record["ratio_to_ours"] == 2.0
    assert record["median_us"] == pytest.approx(18e3)
    assert record["plan"] == "plan of other"


@pytest.mark.parametrize("step", [1e-6, 1e-4, 1e-3])
def test_a_run_is_as_long_as_asked(step: float) -> None:
    clock = Clock()
    fake = Fake("ours", clock, [], lambda call: step)
    _, steps = measure.prepare(fake, TINY, "cpu", 0.1, clock=clock)
    assert steps == pytest.approx(0.1 / step, rel=1e-6)


def test_a_run_has_enough_steps_for_what_happens_once_a_call() -> None:
    fake = Fake("ours", clock := Clock(), [], lambda call: 0.1)
    _, steps = measure.prepare(fake, TINY, "cpu", 0.1, clock=clock)
    assert steps == measure.PILOT


def test_a_long_step_is_not_repeated_to_find_that_out() -> None:
    fake = Fake("ours", clock := Clock(), [], lambda call: 7.0)
    _, steps = measure.prepare(fake, TINY, "cpu", 0.1, least=5.0, clock=clock)
    assert steps == 1
    assert clock.now == 14.0  # one step to warm up, one to time


@pytest.mark.parametrize("when", ["start", "run"])
def test_a_library_that_fails_is_named_and_the_rest_goes_on(when: str) -> None:
    clock, log = Clock(), list[str]()
    peers = [Fake("ours", clock, log), Fake("bad", clock, log, fails=when), Fake("c", clock, log)]
    found = measured(peers, clock)
    message = {"start": "RuntimeError: no kernel for this", "run": "MemoryError: too much"}
    assert found["bad"].failed == message[when]
    assert not found["bad"].timed
    assert len(found["ours"].seconds) == len(found["c"].seconds) == 5
    record = suite.step_record(found["bad"], found["ours"], TINY, RATES)
    assert record["kind"] == "failed"
    assert "median_us" not in record


def test_who_says_that_it_rounds_more_may_disagree_by_more() -> None:
    clock, log = Clock(), list[str]()
    peers = [Fake("ours", clock, log), Fake("coarse", clock, log)]
    peers[1].bound = 1e-2  # type: ignore[attr-defined]
    found = measured(peers, clock, disagreement=lambda *_: 2e-3)
    assert "disagrees" in str(found["ours"].failed)
    assert found["coarse"].timed


@pytest.mark.parametrize("by", [2e-3, float("nan")])
def test_who_disagrees_is_not_timed(by: float) -> None:
    clock, log = Clock(), list[str]()
    peers = [Fake("ours", clock, log), Fake("wrong", clock, log)]
    errors = {"ours": 1e-6, "wrong": by}
    found = measured(peers, clock, disagreement=lambda peer, *rest: errors[peer.name])
    assert "wrong" not in log
    assert found["wrong"].failed is not None
    assert "disagrees" in found["wrong"].failed
    assert found["ours"].timed


def test_who_loses_its_parameters_is_not_reported() -> None:
    clock = Clock()
    found = measured([Fake("ours", clock, [], parameters=float("inf"))], clock)
    assert "not finite" in (found["ours"].failed or "")
    assert not found["ours"].timed


def test_who_is_absent_is_named_with_the_reason() -> None:
    clock, log = Clock(), list[str]()
    peers = [Fake("ours", clock, log), Fake("gone", clock, log, absent="not installed")]
    found = measured(peers, clock)
    assert "gone" not in log
    record = suite.step_record(found["gone"], found["ours"], TINY, RATES)
    assert (record["kind"], record["reason"]) == ("absent", "not installed")


def test_when_time_is_up_nothing_new_begins() -> None:
    clock, log = Clock(), list[str]()
    peers = [Fake("ours", clock, log), Fake("late", clock, log, lambda call: 2e-3)]
    found = measured(peers, clock, rounds=9, spent=lambda: clock.now > 0.0)
    assert "late" not in log
    assert found["late"].absent == found["ours"].absent == "out of time"  # no round, no result

    log.clear()
    preparing = 8  # runs
    found = measured(peers, clock, rounds=9, spent=lambda: len(log) >= preparing + 5)
    assert [len(found[name].seconds) for name in ("ours", "late")] == [3, 2]
    assert found["ours"].absent is None
    assert found["late"].absent == "out of time"  # two rounds tell nothing of a spread


# -- the suite --------------------------------------------------------------------------


def run_suite(
    monkeypatch: pytest.MonkeyPatch, cases: list[suite.BenchCase], settings: suite.SuiteSettings,
    step: float = 1e-3,
) -> list[dict[str, Any]]:  # fmt: skip
    monkeypatch.setattr(floor, "machine_rates", lambda device, budget: RATES)
    monkeypatch.setattr(measure, "settle", lambda pause: None)
    clock = Clock()
    peers = [Fake(name, clock, [], lambda call: step) for name in ("ours", "other")]
    return list(
        suite.run(peers, cases, "cpu", settings, {"run": "r"}, disagreement=agree, clock=clock)
    )


def test_a_run_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_step, "cold_and_warm", lambda *which: {"cold_s": 2.0, "warm_s": 1.0})
    found = run_suite(monkeypatch, suite.cases(["nielsen"]), suite.FULL)
    assert [record["kind"] for record in found] == ["rates", *["step"] * 2, *["first step"] * 2]
    assert all(record["run"] == "r" and record["device"] == "cpu" for record in found)
    step, other = found[1:3]
    assert step["expected_us"] > 0  # beside what was measured; of others nothing is expected
    assert "expected_us" not in other
    assert step["ratio_to_ours"] == 1.0
    assert step["floor_us"] == pytest.approx(WORKLOADS["nielsen"][0].flops / 1e11 * 1e6, rel=1e-3)
    assert step["share_of_floor"] == pytest.approx(step["floor_us"] / 1e3, rel=1e-3)
    json.dumps(found)


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (wide,) = suite.cases(["wide"])
    (_, left_out) = run_suite(monkeypatch, [wide], suite.FULL)
    assert left_out["kind"] == "left out"
    assert re.search(r"would take about 60 s \(3,024 GFLOP\)", left_out["reason"])
    fast = MachineRates("cuda", 1e12, {"float32": 5e13}, 1e-6, 1 << 25)
    assert suite.obstacle(wide.workload, fast, 4, 80 << 30, suite.FULL) is None
    assert "free" in str(suite.obstacle(wide.workload, fast, 4, 8 << 30, suite.FULL))


def test_when_the_budget_is_spent_the_rest_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = suite.SuiteSettings(budget=5.0, first_steps=False)
    found = run_suite(monkeypatch, suite.cases(["nielsen", "classic"]), settings)
    reasons = [(record["workload"], record["reason"]) for record in found if "reason" in record]
    assert reasons == [("classic", "out of time")]
    steps = [record for record in found if record["kind"] == "step"]
    assert [record["peer"] for record in steps] == ["ours", "other"]
    assert all(3 <= record["rounds"] < settings.rounds for record in steps)

    settings = suite.SuiteSettings(budget=0.5, first_steps=False)
    found = run_suite(monkeypatch, suite.cases(["nielsen", "classic"]), settings)
    reasons = [(record["workload"], record["kind"], record["reason"]) for record in found[1:]]
    assert reasons == [(name, "left out", "out of time") for name in ("nielsen", "classic")]


def test_every_workload_comes_once_before_its_variants() -> None:
    cases = suite.cases()
    assert [case.workload.name for case in cases[: len(WORKLOADS)]] == list(WORKLOADS)
    assert len(cases) == sum(len(loads) for loads in WORKLOADS.values())
    curves = [case for case in suite.cases(["nielsen"], curves=True) if case.curve]
    assert {case.curve for case in curves} == {"population"}


# -- the floor --------------------------------------------------------------------------


def test_the_floor_is_the_longer_of_two() -> None:
    load = WORKLOADS["classic"][0]
    assert floor.seconds(load, RATES) == pytest.approx(load.flops / 1e11)
    assert floor.limit(load, RATES) == "arithmetic"
    slow = MachineRates("cpu", 1e6, RATES.products, 1e-6, on_chip=0)
    assert floor.seconds(load, slow) == pytest.approx(load.least_bytes(0) / 1e6)
    many = replace(load, members=1000)  # more than the chip keeps at once, but not than one by one
    assert many.least_bytes(1 << 20) == 1000 * load.least_bytes(1 << 20)
    assert floor.limit(load, slow) == "bandwidth"
    assert floor.attainable(2.0, 100.0, 10.0) == 20.0


def test_what_is_expected_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the arithmetic of a core, three layers' calls for each block, and the rows."""
    monkeypatch.setattr(floor, "usable_cores", lambda: 2)
    load = WORKLOADS["nielsen"][0]
    rates = MachineRates("cpu", 4e10, {"float32": 4e11}, 1e-6, on_chip=0)
    arithmetic = 958_800 / (floor.EXPECTED_RATE * 2e11)
    rows = 4 * 10 * 794 / 2e10
    shared = (arithmetic + 24 * floor.EXPECTED_CALL + rows) / 2
    assert floor.expected(load, rates) == pytest.approx(shared)
    alone = arithmetic + 12 * floor.EXPECTED_CALL + rows
    assert floor.expected(replace(load, members=6), rates) == pytest.approx(3 * alone)
    assert floor.expected(load, replace(rates, device="cuda")) is None
    large = WORKLOADS["classic"][0]
    least = large.flops / (floor.EXPECTED_RATE * 4e11)
    assert least < floor.expected(large, rates) < 2 * least
    assert floor.attainable(20.0, 100.0, 10.0) == 100.0


def test_rates_count_what_was_done() -> None:
    """By a clock on which every look takes a second: so does every piece of work."""
    clock = Clock()

    def tick() -> float:
        clock.now += 1.0
        return clock.now

    rates = floor.cpu_rates(0.0, tick, copied=1 << 20, product=8)
    assert rates.bandwidth == 2 * (1 << 20)
    assert rates.products == {"float32": 1024.0, "float64": 1024.0}
    assert rates.call == 1e-3


def test_caches_that_cores_share_count_once(tmp_path: Path) -> None:
    for cpu, (shared, level, size) in enumerate(
        [("0-1", 3, "1024K"), ("0-1", 3, "1024K"), ("2", 3, "512K")]
    ):
        for index, values in ((0, (str(cpu), 2, "64K")), (1, (shared, level, size))):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in zip(("shared_cpu_list", "level", "size"), values, strict=True):
                (folder / name).write_text(f"{value}\n")
    assert floor.last_level_cache(tmp_path) == (1024 + 512) * 1024
    assert floor.last_level_cache(tmp_path / "nothing") == 0


def test_rates_of_a_device() -> None:
    class Runtime:
        zeros, empty, array = staticmethod(np.zeros), staticmethod(np.empty), staticmethod(np.array)

        def copy(self, source: Any, out: Any) -> None:
            out[:] = source

        def product(
            self, layout: str, a: Any, b: Any, out: Any, scale: float, workspace: Any
        ) -> None:
            np.matmul(a, b, out=out)

    def clock(work: Callable[[], None]) -> list[float]:
        work()
        return [2.0, 1.0]

    rates = floor.cuda_rates(Runtime(), clock, 7, copied=1 << 10, product=4)
    assert rates == MachineRates("cuda", 2048.0, {"float32": 128.0, "float64": 128.0}, 1.0, 7)


@pytest.mark.gpu
def test_rates_of_the_device_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = floor.cuda_rates
    monkeypatch.setattr(
        floor, "cuda_rates", lambda *which: rates(*which, copied=1 << 16, product=32)
    )
    found = floor.machine_rates("cuda", 0.0)
    assert found.on_chip > 1 << 20
    assert {"float32", "float64"} <= found.products.keys()
    assert min(found.bandwidth, found.call, *found.products.values()) > 0


# -- records ----------------------------------------------------------------------------


def test_damaged_lines_are_reported_and_nothing_else_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def has_a_run(record: Any) -> None:
        if "run" not in record:
            raise ValueError("it lacks run")

    path = tmp_path / "bench.jsonl"
    records.append(path, [{"kind": "a", "run": "1"}])
    with path.open("ab") as file:
        file.write(b'12\n{"kind": "b"}\n\xff\xfe\n' + b"[" * 100_000)
        file.write(b'\n{"kind": "c", "ru')  # cut short by a crash
    records.append(path, [{"kind": "d", "run": "2"}])
    found = records.read(path, has_a_run)
    assert [record["kind"] for record in found] == ["a", "d"]
    reported = re.findall(r"bench\.jsonl:(\d): not a record", capsys.readouterr().err)
    assert reported == ["2", "3", "4", "5", "6"]


def test_older_records_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    for path in records.RESULTS.glob("*.jsonl"):
        assert records.read(path)
    assert records.read(records.RESULTS / records.BENCH, records.of_bench)
    assert capsys.readouterr().err == ""


WRONG = (
    None, True, -1, 0, 0.5, float("nan"), float("inf"), 1e300, 1e-300, 10**400, "", "text",
    "$\\x$", "\ud800", "a\nb", "x" * 10_000, [], [1], {}, {"float32": 1}, {"0.1": "x", "0.9": []},
)  # fmt: skip


def malformed(record: Any, rng: random.Random) -> Any:
    """With something missing, or something else, at any depth."""
    record = json.loads(json.dumps(record))
    inside = [record, *(value for value in record.values() if isinstance(value, dict) and value)]
    for _ in range(rng.choice((1, 1, 3))):
        where = rng.choice(inside)
        key = rng.choice(list(where) or ["x"])
        if rng.random() < 0.25:
            where.pop(key, None)
        else:
            where[rng.choice((key, key, "curve", "x", "plan"))] = rng.choice(WRONG)
    return record


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_whatever_is_in_a_record_it_is_shown_or_passed_over(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    sound = [json.loads(line) for line in results.read_text().splitlines()]
    kinds: dict[str, list[Any]] = {}
    for record in sound:
        kinds.setdefault(record["kind"] + " curve" * ("curve" in record), []).append(record)
    damaged = tmp_path / "bench.jsonl"
    passed_over = 0
    for _ in range(18):
        some = [rng.choice(kinds[rng.choice(list(kinds))]) for _ in range(40)]
        lines = [*(malformed(record, rng) for record in some), *rng.sample(sound, 20)]
        damaged.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = rng.choice(("tables", "compare", "report"))
        ours = {"tables": [], "report": ["--out", tmp_path / "page.html"]}
        arguments = ours.get(command, [damaged, results])
        assert bench(command, *arguments, "--records", damaged) in (0, 1)
        passed_over += capsys.readouterr().err.count("not a record, passed over: ")
    assert passed_over > 200


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"median_us": float("nan")}, "Out of range float"),
        ({"median_us": "1.5"}, "median_us is no positive: '1.5'"),
        ({"quantiles_us": {"0.1": 1}}, "it lacks quantiles_us.0.9"),
        ({"quantiles_us": []}, "quantiles_us is no object"),
        ({"label": 3}, "label is no name"),
        ({"curve": "width"}, "it lacks x"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, reason: str
) -> None:
    sound = [json.loads(line) for line in results.read_text().splitlines()]
    step = next(r for r in sound if r["kind"] == "step" and "curve" not in r)
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (step, step | change)))
    assert bench("tables", "--records", path) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}:2: not a record, passed over: {reason}")


def test_a_record_says_what_it_depends_on() -> None:
    about = records.provenance()
    assert re.fullmatch(r"\d{8}T\d{6}Z", about["run"])
    assert {"python", "numpy", "backprop_gpu"} <= about["versions"].keys()
    assert {"processor", "cores", "blas"} <= about["machine"].keys()
    assert {"commit", "dirty", "date"} <= about.keys()


def recorded(run: str, commit: str, scale: float = 1.0, curves: bool = False) -> list[Any]:
    """A run as the suite would write it, with times by formula."""
    common = {
        "run": run, "date": "2026-11-23T12:00:00+00:00", "commit": commit, "dirty": False,
        "device": "cpu", "machine": {"processor": "Z80 <3", "cores": 2, "load_average": 0.1,
                                     "blas": "openblas 1"},
        "versions": {"python": "3.11", "numpy": "2.4"},
    }  # fmt: skip
    rng = np.random.default_rng(0)
    names = {"ours": 1.0, "numpy": 2.2, "torch": 0.8, "sklearn": 9.0}
    found: list[Any] = [common | {"kind": "rates"} | RATES.as_record()]
    for case in suite.cases(curves=curves):
        load = case.workload
        if load.name == "wide":
            reason = "a step would take about 60 s"
            found.append(common | case.fields | {"kind": "left out", "reason": reason})
            continue
        results = []
        for name, factor in names.items():
            fake = Fake(name, Clock(), [])
            middle = scale * factor * (2 * load.flops / 1e11 + 2e-5)
            seconds = (middle * rng.uniform(0.95, 1.05, 15)).tolist()
            results.append(measure.PeerResult(fake, seconds, 10, 1e-6, plan=f"engine <{name}>"))
        if load.members > 1:
            results[-1] = measure.PeerResult(results[-1].peer, absent="one network at a time")
        for result in results:
            about = common | case.fields
            found.append(about | suite.step_record(result, results[0], load, RATES))
        if not case.variant and not case.curve:
            took = {"cold_s": 12.0, "warm_s": 2.0, "peak_mib": 300.0}
            found += [
                common | case.fields | {"kind": "first step", "peer": n, "label": n.title()} | took
                for n in names
            ]
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "bench.jsonl"
    records.append(path, recorded("20261101T000000Z", "aaaa1111", curves=True))
    records.append(path, recorded("20261102T000000Z", "bbbb2222", scale=1.02))
    records.append(path, recorded("20261103T000000Z", "cccc3333", scale=1.3))
    return path


# -- compare ----------------------------------------------------------------------------


def moved(before: tuple[float, float, float], after: tuple[float, float, float]) -> Any:
    key = ("cpu", "nielsen", "x", "", "ours")
    return compare.Movement(key, compare.Spread(*before), compare.Spread(*after))


def test_what_moved_by_more_than_its_spread() -> None:
    a = (9.0, 10.0, 12.0)
    assert moved(a, (11.9, 13.0, 14.0)).verdict == "within the spread"
    assert moved(a, (12.1, 13.0, 14.0)).verdict == "slower"
    assert moved(a, (7.0, 8.0, 8.9)).verdict == "faster"
    assert moved(a, (7.0, 8.0, 9.1)).verdict == "within the spread"
    assert moved(a, (12.1, 13.0, 14.0)).change == pytest.approx(0.3)


def test_several_runs_have_the_spread_of_all() -> None:
    def record(run: str, low: float, middle: float, high: float) -> Any:
        return {
            "kind": "step", "run": run, "device": "cpu", "workload": "nielsen", "variant": "x",
            "peer": "ours", "median_us": middle, "quantiles_us": {"0.1": low, "0.9": high},
        }  # fmt: skip

    (spread,) = compare.spreads([record("a", 1, 2, 3), record("b", 4, 5, 9)]).values()
    assert spread == compare.Spread(1, 3.5, 9)


def bench(*arguments: object) -> int:
    return cli.main(["bench", *map(str, arguments)])


def test_compare(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def compared(a: object, b: object) -> tuple[int, str]:
        status = bench("compare", a, b, "--records", results)
        return status, capsys.readouterr().out.splitlines()[-1]

    status, text = compared("aaaa1", "bbbb2222")
    count = text.split(":")[0].removeprefix("of ")
    assert int(count) > 40  # grows with the suite
    assert (status, text) == (0, f"of {count}: 0 slower and 0 faster beyond their spread")
    assert compared("20261101", "cccc3333") == (
        1,
        f"of {count}: {count} slower and 0 faster beyond their spread",
    )
    assert compared("cccc3333", "aaaa1111")[0] == 0
    assert compared(results, results)[0] == 0
    assert bench("compare", "aaaa1111", "nothing", "--records", results) == 2
    error = capsys.readouterr().err
    assert "'nothing'" in error
    assert "20261103T000000Z (cccc3333)" in error


# -- tables and the page ----------------------------------------------------------------


def test_tables_show_the_newest_run_of_each_workload(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("tables", "--records", results) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| workload | Ours | Numpy | Torch | Sklearn | share of the floor, ours |"
    newest = recorded("20261103T000000Z", "cccc3333", scale=1.3)
    ours, numpy = newest[1], newest[2]
    cell = f"{numpy['median_us']:.3g} ({numpy['ratio_to_ours']:.2f}×)"
    assert f"| {ours['median_us']:.3g} | {cell} |" in lines[4]
    population = next(line for line in lines if "8 networks" in line)
    assert "| – |" in population


class Page(HTMLParser):
    """Checks that elements nest, and keeps their names and attributes."""

    VOID = ("meta", "link", "br", "img", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    out = results.with_name("page.html")
    assert bench("report", "--records", results, "--out", out) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page: str) -> None:
    elements = Page(page).elements
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in elements}
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http" not in without_namespaces
    assert not re.search(r"@import|url\((?!#)", page)
    for _, attributes in elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in page


def test_the_page_has_plots_that_can_be_read_aloud(page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 3  # ratios, roofline, curves
    for figure in figures:
        tree = ElementTree.fromstring(figure)
        title = tree.find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert tree.get("role") == "img"
        assert tree.get("aria-labelledby") == title.get("id")
        assert len(title.text or "") > 80
        assert "currentColor" in figure
        assert report.INK not in figure
    assert re.search(r"nielsen \[784, 30, 10\] batch 10: Numpy 2\.\d\d, Torch 0\.", figures[0])
    assert "width from 32 to 2048" in figures[2]


def test_the_page_tells_what_was_measured_where(page: str) -> None:
    for text in ("Z80 &lt;3, 2 cores", "numpy 2.4", "cccc3333", "2026-11-23", "openblas 1"):
        assert text in page
    assert "engine &lt;ours&gt;" in page
    assert "left out: a step would take about 60 s" in page
    assert "absent: sklearn: one network at a time" in page
    assert "aaaa1111" in page  # its curves are the newest there are
    assert "bbbb2222" not in page  # all that it has was measured again later


# -- the command ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--workload", "nielsen", "huge"], "unknown workload 'huge'; known: nielsen, classic"),
        (["--against", "abacus"], "unknown library 'abacus'; known: ours, "),
        (["--device", "tpu"], "unknown device 'tpu'; known: cpu, cuda, auto"),
        (["report", "--records", "nowhere"], "no records in nowhere"),
        (["compare", "a.jsonl", "b.jsonl"], "there is no file a.jsonl"),
        (["tables", "--no-such-option"], "unrecognized arguments"),
    ],
)
def test_what_is_unknown_is_refused_in_a_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert bench(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert told in printed.err


def test_quick(tmp_path: Path) -> None:
    """As a user would: in a process of its own, beside NumPy, recorded."""
    run = subprocess.run(
        [
            sys.executable, "-c", "import sys; from backprop_gpu.cli import main; sys.exit(main())",
            "bench", "--quick", "--workload", "nielsen", "--against", "numpy", "--device", "cpu",
            "--record",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    path = tmp_path / "backprop_gpu_bench" / "bench.jsonl"
    found = records.read(path)
    assert [record["kind"] for record in found] == ["rates", "step", "step"]
    assert [record.get("peer") for record in found] == [None, "ours", "numpy"]
    for record in found[1:]:
        assert record["disagreement"] < agreement.BOUND
        assert record["rounds"] >= 3
        assert record["label"] in run.stdout
    assert "of floor" in run.stdout


def test_first_step_in_a_fresh_process() -> None:
    found = first_step.cold_and_warm("numpy", "nielsen", 0, "cpu")
    assert set(found) == {"cold_s", "warm_s", "peak_mib"}
    with pytest.raises(first_step.FirstStepFailed, match="abacus"):
        first_step.cold_and_warm("abacus", "nielsen", 0, "cpu")


@pytest.mark.parametrize(("peer", "seconds"), [("ours", 9.0), ("numpy", 7.0)])
def test_importing_ours_counts_for_ours_only(
    peer: str, seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", peer, "nielsen"])
    monkeypatch.setattr(first_step, "process_age", lambda: 9.0)
    assert first_step.main(imports=2.0) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == pytest.approx(seconds, abs=0.1)


def test_where_records_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder(None) == Path("backprop_gpu_bench")
    Path("pyproject.toml").touch()
    assert folder(None) == Path("backprop_gpu_bench")
    results = Path("benchmarks/results")
    results.mkdir(parents=True)
    assert folder(None) == results
    assert folder("elsewhere") == Path("elsewhere")


def test_a_library_begins_when_the_threads_of_the_last_one_sleep() -> None:
    from backprop_gpu.benchmarks.measure import LOOK, PATIENCE, settle

    now, waits = [0.0], []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds if len(waits) <= 14 else 0.0  # a core's worth, 0.14 s long

    settle(pause, lambda: now[0])
    assert len(waits) == 15
    waits.clear()

    def forever(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    settle(forever, lambda: now[0])
    assert sum(waits) == pytest.approx(PATIENCE)
    assert waits[0] == LOOK
