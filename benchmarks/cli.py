"""``backprop-gpu bench``: measure, and show what was measured."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import records
from ..errors import ArgumentError
from ..records import OURS, Record
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from .peers import DeviceType, Peer
    from .suite import SuiteSettings

#: Where a clone of the project has the records of its machines.
_IN_A_CLONE = Path("benchmarks", "results")
_LINE = "{:<50} {:<18} {:>11} {:>17} {:>8} {:>8}"
_HEAD = ("workload", "library", "µs per step", "10–90 %", "to ours", "of floor")


def add(commands: Any) -> None:
    """Add the command to those of `backprop_gpu.cli`."""
    parser = commands.add_parser(
        "bench",
        allow_abbrev=False,
        help="time training steps beside other libraries and the machine's own limits",
        description="Time training steps of this library and of others, which take turns in one "
        "process, and hold them against the floor: the time that the arithmetic or the bytes take "
        "at the rates of this machine. Libraries whose parameters disagree are not timed.",
    )
    option = parser.add_argument
    option("--quick", action="store_true", help="end within a minute, less certain")
    option(
        "--workload",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(WORKLOADS)}; default: all",
    )
    option(
        "--against",
        nargs="+",
        metavar="NAME",
        help="only these libraries beside ours; default: all that are there, but for our drop-in "
        "replacements, ours.estimators and ours.torch",
    )
    option(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda or auto (cuda where it is usable); default %(default)s",
    )
    option(
        "--curves",
        action="store_true",
        help="also show how time grows with width, depth, batch and population "
        "(of the workloads classic and nielsen)",
    )
    option("--record", action="store_true", help=f"append what is measured to {records.BENCH}")
    option("--out", metavar="FOLDER", help=f"where --record has it; default: {_DEFAULT}")
    parser.set_defaults(run=_bench)
    actions = parser.add_subparsers(dest="action", metavar="report | tables | compare")
    _add_report(actions)
    _add_tables(actions)
    _add_compare(actions)


_DEFAULT = f"{_IN_A_CLONE} in a clone of the project, else ./backprop_gpu_bench"


def _add_report(actions: Any) -> None:
    parser = actions.add_parser(
        "report",
        allow_abbrev=False,
        help="write one HTML page of all that is recorded",
        description="Write one HTML page of all that is recorded: plots, tables, machine and "
        "versions. It needs no network and no JavaScript.",
    )
    parser.add_argument("--out", default="bench.html", metavar="FILE", help="default %(default)s")
    _add_records(parser)
    parser.set_defaults(run=_report)


def _add_tables(actions: Any) -> None:
    parser = actions.add_parser(
        "tables",
        allow_abbrev=False,
        help="print what is recorded as Markdown tables",
        description="Print the newest run of each workload as Markdown tables.",
    )
    _add_records(parser)
    parser.set_defaults(run=_tables)


def _add_records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--records", metavar="PATH", help=f"a {records.BENCH}, or its folder; default: {_DEFAULT}"
    )


def _add_compare(actions: Any) -> None:
    from . import compare

    parser = actions.add_parser(
        "compare",
        allow_abbrev=False,
        help="by how much times moved between two runs, and whether that is more than their spread",
        description=compare.__doc__,
        epilog="Exits with 1 where something got slower beyond its spread.",
    )
    what = "a run's id, the beginning of a commit (all its runs), or a .jsonl file"
    parser.add_argument("before", metavar="A", help=what)
    parser.add_argument("after", metavar="B", help="as A")
    _add_records(parser)
    parser.set_defaults(run=_compare)


# -- bench ----------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> int:
    from . import suite
    from .peers.agreement import disagreement

    names = _names("workload", args.workload, list(WORKLOADS))
    settings = suite.QUICK if args.quick else suite.FULL
    peers, left_out = _peers(args.against, settings)
    device = _device(args.device)
    path = folder(args.out) / records.BENCH
    common = records.provenance() | {"quick": args.quick}
    about = common["machine"]
    if device == "cuda":
        from ..cuda.runtime import runtime

        about["gpu"] = runtime().device.name
    cases = suite.cases(names, args.curves)
    print(
        f"run {common['run']} on {device}: {about.get('gpu', about['processor'])}, "
        f"{about['cores']} cores; {about['blas']}"
    )
    print(", ".join(f"{name} {version}" for name, version in common["versions"].items()))
    if about["load_average"] > 0.5:
        print(f"note: other work is running here (load average {about['load_average']:.1f})")
    for name, value in about["settings"].items():
        print(f"note: {name}={value} is set, which may hold other libraries back")
    with _Shown(len(cases)) as shown:
        for record in suite.run(
            peers, cases, device, settings, common,
            disagreement=disagreement, progress=shown.doing,
        ):  # fmt: skip
            if args.record:
                records.append(path, [record])
            shown.show(record)
    for name in left_out:
        print(f"left out of --quick: {name}, which compiles for long (--against {name})")
    if args.record:
        print(f"recorded in {path}")
    return 1 if shown.failures else 0


def _names(what: str, asked: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The names asked for, each once, or all."""
    if asked is None:
        return list(known)
    names = [name for name in re.split(r"[,\s]+", ",".join(asked)) if name]
    for name in names:
        if name not in known:
            raise ArgumentError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return list(dict.fromkeys(names))


def _peers(against: Sequence[str] | None, settings: SuiteSettings) -> tuple[list[Peer], list[str]]:
    """Ours and the others, and the names of those that --quick leaves out."""
    from .peers import registry

    known = [*registry.PEERS, *registry.DROP_INS]
    names = list(registry.PEERS) if against is None else _names("library", against, known)
    left_out = [name for name in names if against is None and name in settings.left_out]
    names = [name for name in names if name != OURS and name not in left_out]
    return [registry.get(name) for name in [OURS, *names]], left_out


def _device(asked: str) -> DeviceType:
    from .. import backends

    if asked not in ("cpu", "cuda", "auto"):
        raise ArgumentError(f"unknown device {asked!r}; known: cpu, cuda, auto")
    if asked == "cpu":
        return "cpu"
    obstacle = backends.Obstacles()["cuda"]
    if obstacle is None:
        return "cuda"
    if asked == "cuda":
        raise ArgumentError(f"device 'cuda' is not usable here: {obstacle}")
    return "cpu"


class _Shown:
    """The bar, and above it the table, line by line."""

    def __init__(self, cases: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=cases, unit="workload", leave=False, disable=None)
        self.failures = 0
        self.place: tuple[object, ...] | None = None
        self.plan: str | None = None
        #: What was not measured, and why -> where.
        self.missing: dict[str, list[str]] = {}

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_of_place()
        self.bar.close()
        for what, where in self.missing.items():
            print(f"{what} ({'; '.join(dict.fromkeys(where))})")

    def doing(self, what: str) -> None:
        self.bar.set_postfix_str(what)

    def show(self, record: Record) -> None:
        """Write a record as a line of the table, or keep it for the end."""
        kind = record["kind"]
        if kind == "rates":
            self.bar.write(f"{_rates(record)}\n\n{_LINE.format(*_HEAD)}")
            return
        where = f"{record['workload']}: {record['variant']}"
        place = (where, record.get("curve"))
        if place != self.place and kind != "first step":
            self._end_of_place()
            self.place = place
            self.bar.update()
        who = f"{where:<50} {record.get('label', ''):<18}"
        if kind == "step":
            from .report import step_cells

            self.bar.write(_LINE.format(where, record["label"], *step_cells(record)))
            if record["peer"] == OURS:
                self.plan = record.get("plan")
        elif kind == "first step":
            self.bar.write(
                f"{who} first step: {record['cold_s']:.2f} s cold, {record['warm_s']:.2f} s warm; "
                f"{record['peak_mib']:,.0f} MiB"
            )
        elif kind == "failed":
            self.failures += 1
            self.bar.write(f"{who} failed: {record['reason']}")
        elif kind == "absent":
            what = f"absent: {record['peer']}: {record['reason']}"
            self.missing.setdefault(what, []).append(record["workload"])
        else:
            self.missing.setdefault(f"{kind}: {record['reason']}", []).append(where)

    def _end_of_place(self) -> None:
        for line in (self.plan or "").splitlines():
            self.bar.write(f"    {line}")
        self.plan = None


def _rates(record: Record) -> str:
    products = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s {precision}" for precision, rate in record["products"].items()
    )
    return (
        f"this machine: copy {record['bandwidth'] / 1e9:,.1f} GB/s; matrix product {products}; "
        f"shortest call {record['call'] * 1e6:.2f} µs; on chip {record['on_chip'] / 2**20:.0f} MiB"
    )


# -- report, tables, compare ------------------------------------------------------------


def folder(asked: str | None) -> Path:
    """Where records go."""
    if asked is not None:
        return Path(asked)
    if _IN_A_CLONE.is_dir() and Path("pyproject.toml").is_file():
        return _IN_A_CLONE
    return Path("backprop_gpu_bench")


def _file(asked: str | None) -> Path:
    """The records to show: those asked for, those of the default folder, else those that came
    with the package."""
    if asked is not None and Path(asked).is_file():
        return Path(asked)
    path = folder(asked) / records.BENCH
    if path.is_file():
        return path
    came_with_it = records.RESULTS / records.BENCH
    if asked is None and came_with_it.is_file():
        return came_with_it
    raise ArgumentError(f"no records in {path}; `backprop-gpu bench --record` makes some")


def _read(asked: str | None) -> list[Record]:
    path = _file(asked)
    found = records.read(path, records.of_bench)
    if not found:
        raise ArgumentError(f"no records in {path}; `backprop-gpu bench --record` makes some")
    return found


def _report(args: argparse.Namespace) -> int:
    from ..files import write_whole
    from . import report

    text = report.page(_read(args.records))
    try:
        write_whole(args.out, text.encode())
    except OSError as error:
        raise ArgumentError(str(error)) from error
    print(f"written: {args.out}")
    return 0


def _tables(args: argparse.Namespace) -> int:
    from . import report

    print(report.markdown(_read(args.records)))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from . import compare

    files = [args.before, args.after]
    known = [] if all(name.endswith(".jsonl") for name in files) else [_file(args.records)]
    try:
        before, after = (compare.select(name, known) for name in files)
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    moved = compare.movements(before, after)
    if not moved:
        raise ArgumentError("A and B have no workload and library in common")
    line = "{:<58} {:<16} {:>10} {:>10} {:>8}  {}"
    print(line.format("workload", "library", "A, µs", "B, µs", "change", ""))
    for movement in moved:
        device, workload, variant, curve, peer = movement.key
        where = f"{device}, {workload}: {variant}{f', {curve}' if curve else ''}"
        a, b = movement.before, movement.after
        print(
            line.format(
                where, peer, f"{a.median:,.1f}", f"{b.median:,.1f}", f"{movement.change:+.1%}",
                movement.verdict,
            )
        )  # fmt: skip
    slower = sum(movement.verdict == "slower" for movement in moved)
    faster = sum(movement.verdict == "faster" for movement in moved)
    print(f"of {len(moved)}: {slower} slower and {faster} faster beyond their spread")
    for difference in compare.differences(before, after):
        print(f"note: {difference}")
    return 1 if slower else 0
