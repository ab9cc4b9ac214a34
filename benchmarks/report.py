"""Recorded runs as Markdown tables and as one HTML page that needs nothing else.

Shown is the newest run of each workload on each machine: all libraries of a row come from one
run, and so do a time and the floor that it is held against.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records import OURS, Record
from .workloads import WORKLOADS

#: Series readable on white and on near-black; ours first.
COLORS = ("#d1602b", "#4e79a7", "#59a14f", "#b07aa1", "#76b7b2", "#c9a227", "#9c755f", "#e06c9f",
          "#7f8fa6", "#8a9a2f")  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
#: Colours that no series has: the page puts its own in their places, light or dark.
INK, _LINE = "#010203", "#040506"


@dataclass
class Machine:
    """What was recorded on one machine with one device."""

    title: str
    device: str
    rates: Record | None = None
    steps: list[Record] = field(default_factory=list)
    first_steps: list[Record] = field(default_factory=list)
    #: Absent, failed and left out.
    others: list[Record] = field(default_factory=list)
    #: One of each run, newest first.
    runs: list[Record] = field(default_factory=list)

    @property
    def peers(self) -> dict[str, str]:
        """Names and labels of who was timed, ours first."""
        found = {record["peer"]: record["label"] for record in [*self.steps, *self.first_steps]}
        ours = {OURS: found.pop(OURS)} if OURS in found else {}
        return ours | found

    @property
    def places(self) -> list[tuple[str, str]]:
        """Workload and variant of what is in tables, in the suite's order."""
        found = dict.fromkeys((r["workload"], r["variant"]) for r in self.steps if "curve" not in r)
        order = {
            (name, str(load)): (i, j)
            for i, (name, loads) in enumerate(WORKLOADS.items())
            for j, load in enumerate(loads)
        }
        return sorted(found, key=lambda place: order.get(place, (len(WORKLOADS), 0)))

    def at(self, workload: str, variant: str) -> dict[str, Record]:
        """The steps of a row of the table, by library."""
        return {
            r["peer"]: r
            for r in self.steps
            if (r["workload"], r["variant"]) == (workload, variant) and "curve" not in r
        }

    def curve(self, name: str) -> dict[str, list[Record]]:
        """The points of a curve by library, in order of size."""
        found: dict[str, list[Record]] = {}
        for record in sorted(
            (r for r in self.steps if r.get("curve") == name), key=lambda r: float(r["x"])
        ):
            found.setdefault(record["peer"], []).append(record)
        return found

    @property
    def curves(self) -> list[str]:
        return list(dict.fromkeys(r["curve"] for r in self.steps if r.get("curve")))


def machines(found: Iterable[Record]) -> list[Machine]:
    """The newest run of every workload, by machine; the machine measured last comes first."""
    by_machine: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        if "device" in record:
            by_machine.setdefault((record["device"], _title(record)), []).append(record)
    result = [_machine(device, title, some) for (device, title), some in by_machine.items()]
    return sorted(result, key=lambda machine: machine.runs[0]["run"], reverse=True)


def _title(record: Record) -> str:
    about = record.get("machine", {})
    if record["device"] == "cuda":
        return str(about.get("gpu", "a CUDA device"))
    return f"{about.get('processor', 'a CPU')}, {about.get('cores', '?')} cores"


def _machine(device: str, title: str, found: Sequence[Record]) -> Machine:
    machine = Machine(title, device)
    newest: dict[Any, str] = {}
    for record in found:
        place = _place(record)
        newest[place] = max(record["run"], newest.get(place, ""))
    lists = {"step": machine.steps, "first step": machine.first_steps}
    runs: dict[str, Record] = {}
    for record in found:
        if record["run"] != newest[_place(record)]:
            continue
        runs.setdefault(record["run"], record)
        if record["kind"] == "rates":
            machine.rates = record
        else:
            lists.get(record["kind"], machine.others).append(record)
    machine.runs = [runs[run] for run in sorted(runs, reverse=True)]
    return machine


def _place(record: Record) -> Any:
    if record["kind"] in ("rates", "first step"):
        return record["kind"], record.get("workload")
    return tuple(record.get(key) for key in ("workload", "variant", "curve", "x"))


# -- Markdown ---------------------------------------------------------------------------


def markdown(found: Iterable[Record], command: str = "backprop-gpu bench --record") -> str:
    """A table for each machine: µs per step, and in brackets the ratio to ours."""
    return "\n\n".join(_markdown(machine, command) for machine in machines(found) if machine.places)


def _markdown(machine: Machine, command: str) -> str:
    run = machine.runs[0]
    peers = [name for name in machine.peers if any(r["peer"] == name for r in machine.steps)]
    head = ["workload", *(machine.peers[name] for name in peers), "share of the floor, ours"]
    lines = [
        f"µs per step on {machine.title}, float32, {run['date'][:10]} "
        f"(`{command}`); in brackets the ratio to ours, from the same run:",
        "",
        _row(head),
        _row(["---"] * len(head)),
    ]
    for workload, variant in machine.places:
        at = machine.at(workload, variant)
        share = f"{at[OURS]['share_of_floor']:.0%}" if OURS in at else "–"
        cells = [_cell(at.get(name)) for name in peers]
        lines.append(_row([f"{workload}: {variant}", *cells, share]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(record: Record | None) -> str:
    if record is None:
        return "–"
    ratio = record.get("ratio_to_ours")
    shown = f" ({ratio:.2f}×)" if ratio is not None and record["peer"] != OURS else ""
    return f"{microseconds(record['median_us'])}{shown}"


def microseconds(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# -- the page ---------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --quiet: #5b5f66; --line: #d5d8dd;
  --ground: #ffffff; --band: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --quiet: #a3a8b0; --line: #43474e; --ground: #16181b; --band: #1f2226; }
}
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; color: var(--ink);
  background: var(--ground); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h1, h2, h3 { line-height: 1.25; }
p, li, figcaption { max-width: 48rem; } figcaption, small { color: var(--quiet); }
figure { margin: 1.5rem 0; } figure svg { display: block; max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding: 0.3rem 0; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
tr.ours td { background: var(--band); font-weight: 600; }
code { font-size: 0.9em; }
"""

_INTRODUCTION = """<p>Every library trains the same network on the same rows in the same order, and
its parameters agreed with a float64 reference before it was timed. The libraries took turns, round
by round; times are medians over the rounds, and a ratio is the median of the ratios within a round:
above 1, ours is faster. The floor is the time that the arithmetic, or the bytes that have to be
moved, take at the rates of a large matrix product and a large copy, measured in the same run.</p>
"""


def page(found: Iterable[Record]) -> str:
    """The HTML page of all that is recorded."""
    shown = machines(found)
    newest = max((machine.runs[0]["date"] for machine in shown), default="")
    figures = _Figures()
    body = "\n".join(_section(machine, figures) for machine in shown)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>backprop_gpu: benchmarks</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>backprop_gpu: benchmarks</h1>\n<p>Newest run: {html.escape(newest)}.</p>\n"
        f"{_INTRODUCTION}{body}\n</body>\n</html>\n"
    )


def _section(machine: Machine, figures: _Figures) -> str:
    parts = [f"<h2>{html.escape(machine.title)}</h2>", _about(machine)]
    if machine.places:
        parts += [figures.ratios(machine), figures.roofline(machine)]
    if machine.curves:
        parts.append(figures.curves(machine))
    parts += [_steps_table(machine), _first_steps_table(machine), _others(machine)]
    return "\n".join(part for part in parts if part)


def _about(machine: Machine) -> str:
    lines = []
    if machine.rates:
        rates = machine.rates
        products = ", ".join(
            f"{rate / 1e9:,.0f} GFLOP/s in {precision}"
            for precision, rate in rates["products"].items()
        )
        lines.append(
            f"Rates: copy {rates['bandwidth'] / 1e9:,.1f} GB/s; matrix product {products}; "
            f"shortest call {rates['call'] * 1e6:.2f} µs; "
            f"the chip keeps {rates['on_chip'] / 2**20:.0f} MiB."
        )
    for run in machine.runs:
        commit = (run.get("commit") or "unknown")[:12]
        dirty = ", with changes that are not committed" if run.get("dirty") else ""
        about = run.get("machine", {})
        versions = ", ".join(f"{name} {v}" for name, v in run.get("versions", {}).items())
        lines.append(
            f"Run {run['run']} of {run.get('date', '')}: commit {commit}{dirty}; load average "
            f"{about.get('load_average', '?')} at its start; {about.get('blas', '')}; {versions}."
        )
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _steps_table(machine: Machine) -> str:
    head = ("workload", "library", "µs per step", "10–90 %", "ratio to ours", "share of the floor")
    rows = []
    for workload, variant in machine.places:
        at = machine.at(workload, variant)
        for name in machine.peers:
            if name not in at:
                continue
            record = at[name]
            rows.append(
                (name == OURS, [f"{workload}: {variant}", record["label"], *step_cells(record)])
            )
    plans = _plans(machine)
    return _table("Time of a training step", head, rows, text=2) + plans if rows else ""


def step_cells(record: Record) -> list[str]:
    """Median, spread, ratio and share of a step, as tables show them."""
    spread = record["quantiles_us"]
    ratio = record.get("ratio_to_ours")
    return [
        microseconds(record["median_us"]),
        f"{microseconds(spread['0.1'])}–{microseconds(spread['0.9'])}",
        "–" if ratio is None else f"{ratio:.2f}×",
        f"{record['share_of_floor']:.1%}",
    ]


def _plans(machine: Machine) -> str:
    plans: dict[str, list[str]] = {}
    for workload, variant in machine.places:
        plan = machine.at(workload, variant).get(OURS, {}).get("plan")
        if plan:
            plans.setdefault(plan, []).append(f"{workload}: {variant}")
    items = []
    for plan, where in plans.items():
        lines = "<br>".join(html.escape(line) for line in plan.splitlines())
        items.append(f"<li>{lines}<br><small>{html.escape('; '.join(where))}</small></li>")
    return f"<h3>What ours ran, and why</h3><ul>{''.join(items)}</ul>" if items else ""


def _first_steps_table(machine: Machine) -> str:
    head = ("workload", "library", "cold, s", "warm, s", "peak memory, MiB")
    order = list(machine.peers)
    rows = [
        (
            r["peer"] == OURS,
            [
                f"{r['workload']}: {r['variant']}",
                r["label"],
                f"{r['cold_s']:.2f}",
                f"{r['warm_s']:.2f}",
                f"{r['peak_mib']:,.0f}"
                + (f" and {r['device_mib']:,.0f} on the GPU" if "device_mib" in r else ""),
            ],
        )
        for r in sorted(machine.first_steps, key=lambda r: (r["workload"], order.index(r["peer"])))
    ]
    title = (
        "From the start of a process to the end of its first step, with imports and compilation: "
        "cold with empty caches, warm with filled ones"
    )
    return _table(title, head, rows, text=2) if rows else ""


def _others(machine: Machine) -> str:
    counted: dict[str, list[str]] = {}
    for record in machine.others:
        who = f"{record['peer']}: " if "peer" in record else ""
        where = f"{record['workload']} {record['variant']}"
        counted.setdefault(f"{record['kind']}: {who}{record['reason']}", []).append(where)
    if not counted:
        return ""
    items = "".join(
        f"<li>{html.escape(what)} <small>({html.escape('; '.join(dict.fromkeys(where)))})</small>"
        "</li>"
        for what, where in counted.items()
    )
    return f"<h3>What is not in the tables</h3><ul>{items}</ul>"


def _table(
    title: str, head: Sequence[str], rows: Sequence[tuple[bool, list[str]]], text: int
) -> str:
    """The first ``text`` columns are text, the others numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i >= text else ''}>{html.escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    lines = [
        f"<tr{' class=ours' if ours else ''}>{cells('td', values)}</tr>" for ours, values in rows
    ]
    return (
        f'<div class="wide"><table><caption>{html.escape(title)}</caption>\n'
        f"<thead><tr>{cells('th', head)}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


# -- figures ----------------------------------------------------------------------------


class _Figures:
    """Plots as SVG elements for the page, each with a caption and a text for who cannot see it."""

    def __init__(self) -> None:
        self.count = 0

    def ratios(self, machine: Machine) -> str:
        """Bars from 1, one panel per workload, the libraries in the same order in all of them."""
        names = [name for name in machine.peers if name != OURS]
        places = [p for p in machine.places if _ratios(machine.at(*p))]
        if not places:
            return ""
        columns = min(3, len(places))
        rows = -(-len(places) // columns)
        figure, axes = _figure(10.0, rows * (0.75 + 0.3 * len(names)) + 0.5, rows, columns)
        spoken = []
        ends = [1.0]
        for axis, place in zip(axes, places, strict=False):
            found = _ratios(machine.at(*place))
            listed = (f"{machine.peers[n]} {r['ratio_to_ours']:.2f}" for n, r in found.items())
            spoken.append(f"{place[0]} {place[1]}: {', '.join(listed)}")
            ends += _bars(axis, names, found, machine)
            if place not in places[::columns]:  # the same order in all: named once
                axis.set_yticklabels([])
            axis.set_title(f"{place[0]}\n{place[1]}", fontsize=9, color=INK, loc="left")
        low, high = min(ends), max(ends)
        for axis in axes:  # one scale for all, with room for the numbers beside the bars
            axis.set_xlim(low / 1.2, high * (high / low) ** 0.25 * 1.5)
            _plain_ticks(axis, low, high)
        for axis in axes[len(places) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(places) - columns) : len(places)]:
            axis.set_xlabel("time of a step / ours (log scale)", fontsize=9)
        caption = (
            "Time of a step, by how many times it is ours: to the right of 1 ours is faster. "
            "The lines span 10–90 % of the rounds."
        )
        return self._svg(figure, caption, f"{caption} {'; '.join(spoken)}.")

    def roofline(self, machine: Machine) -> str:
        """FLOP/s over operations per byte, under what the machine can do."""
        from .floor import attainable

        if machine.rates is None:
            return ""
        peak, bandwidth = machine.rates["products"]["float32"], machine.rates["bandwidth"]
        figure, (axis,) = _figure(8.0, 4.6, 1, 1)
        spoken = []
        points: list[tuple[str, float, float, bool]] = []
        for place in machine.places:
            at = machine.at(*place)
            if any(record["run"] != machine.rates["run"] for record in at.values()):
                continue  # the roof was measured in another run
            others = [record for name, record in at.items() if name != OURS]
            best = min(others, key=lambda record: float(record["median_us"]), default=None)
            for record, own in ((at.get(OURS), True), (best, False)):
                if record is not None:
                    rate = record["flops"] / record["median_us"] / 1e3
                    points.append((place[0], record["flops"] / record["bytes"], rate, own))
                    if own:
                        spoken.append(f"{place[0]} {place[1]} {rate:.3g} GFLOP/s")
        if not points:
            return ""
        intensities = [point[1] for point in points] + [peak / bandwidth]
        x = [min(intensities) / 3, peak / bandwidth, max(intensities) * 3]
        roof = [attainable(value, peak, bandwidth) / 1e9 for value in x]
        axis.plot(x, roof, color=INK, linewidth=1.6)
        axis.annotate(
            f"matrix product in float32, {peak / 1e9:,.0f} GFLOP/s",
            (x[-1], roof[-1]), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=8,
            color=INK,
        )  # fmt: skip
        names = list(dict.fromkeys(point[0] for point in points))
        for own, what in ((True, "ours"), (False, "the fastest other")):
            for i, name in enumerate(names):
                some = [p for p in points if p[0] == name and p[3] == own]
                axis.plot(
                    [p[1] for p in some], [p[2] for p in some], linestyle="none", markersize=7,
                    marker=MARKERS[i % len(MARKERS)], markeredgewidth=1.5,
                    color=COLORS[0] if own else COLORS[1],
                    markerfacecolor=COLORS[0] if own else "none", label=f"{name}, {what}",
                )  # fmt: skip
        axis.set(xscale="log", yscale="log")
        axis.set_ylim(top=peak / 1e9 * 2)
        for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            ticks("{x:,g}")
        axis.set_xlabel("operations a byte that has to be moved (FLOP/B)", fontsize=9)
        axis.set_ylabel("reached (GFLOP/s)", fontsize=9)
        _legend(figure, axis)
        caption = (
            f"Roofline: the slope is a copy at {bandwidth / 1e9:,.1f} GB/s, and what lies on the "
            "line takes no longer than the floor."
        )
        return self._svg(figure, caption, f"{caption} Ours: {'; '.join(spoken)}.")

    def curves(self, machine: Machine) -> str:
        """Time against width, depth, batch and population."""
        names = list(machine.peers)
        curves = machine.curves
        columns = min(2, len(curves))
        rows = -(-len(curves) // columns)
        figure, axes = _figure(10.0, 3.1 * rows, rows, columns)
        spoken = []
        for axis, curve in zip(axes, curves, strict=False):
            lines = machine.curve(curve)
            for name, points in lines.items():
                i = names.index(name)
                axis.plot(
                    [p["x"] for p in points], [p["median_us"] for p in points],
                    color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], markersize=4,
                    linewidth=2.6 if name == OURS else 1.3, label=machine.peers[name],
                    zorder=3 if name == OURS else 2,
                )  # fmt: skip
            longest = max(lines.values(), key=len)
            axis.plot(
                [p["x"] for p in longest], [p["floor_us"] for p in longest],
                color=INK, linestyle=":", linewidth=1.2, label="floor",
            )  # fmt: skip
            axis.set(xscale="log", yscale="log")
            ticks = sorted({p["x"] for points in lines.values() for p in points})
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axis.set_xticks([], minor=True)
            axis.set_xlabel(_AXES.get(curve, curve), fontsize=9)
            axis.set_ylabel("µs per step", fontsize=9)
            own = lines.get(OURS)
            if own:
                spoken.append(
                    f"{curve} from {own[0]['x']} to {own[-1]['x']}: ours from "
                    f"{microseconds(own[0]['median_us'])} to "
                    f"{microseconds(own[-1]['median_us'])} µs"
                )
        for axis in axes[len(curves) :]:
            axis.set_visible(False)
        _legend(figure, *axes)
        caption = "How the time of a step grows; both axes are logarithmic."
        return self._svg(figure, caption, f"{caption} {'; '.join(spoken)}.")

    def _svg(self, figure: Any, caption: str, spoken: str) -> str:
        from matplotlib import rc_context

        self.count += 1
        name = f"figure{self.count}"
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
            figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :]
        # The ids of one figure must not be those of another on the same page.
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
        svg = svg.replace(INK, "currentColor").replace(_LINE, "var(--line)")
        svg = svg.replace("<svg", f'<svg role="img" aria-labelledby="{name}-alt"', 1)
        svg = svg.replace(">", f'>\n <title id="{name}-alt">{html.escape(spoken)}</title>', 1)
        return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


_AXES = {
    "width": "neurons of each of two hidden layers",
    "depth": "hidden layers of 128 neurons",
    "batch": "rows of a mini-batch",
    "population": "networks trained at once",
}


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.tick_params(which="both", colors=INK, labelsize=8)
        axis.grid(True, color=_LINE, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.xaxis.label.set_color(INK)
        axis.yaxis.label.set_color(INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
    return figure, axes


def _legend(figure: Any, *axes: Any) -> None:
    """Beside the axes, each label once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()), list(found), loc="outside right center", frameon=False, fontsize=8,
        labelcolor=INK,
    )  # fmt: skip


def _ratios(at: dict[str, Record]) -> dict[str, Record]:
    return {n: r for n, r in at.items() if n != OURS and r.get("ratio_to_ours") is not None}


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    """0.5, 1, 2, 5, 10, … as far as they are needed."""
    ticks = [digit * 10.0**power for power in range(-4, 7) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high or tick == 1.0]
    if len(inside) > 6:
        inside = [tick for tick in inside if f"{tick:e}"[0] == "1"]
    axis.set_xticks(inside, [f"{tick:g}" for tick in inside])
    axis.set_xticks([], minor=True)


def _bars(
    axis: Any, names: Sequence[str], found: dict[str, Record], machine: Machine
) -> list[float]:
    """A bar from 1 to each ratio, its value beside it. Returns what the axis has to show."""
    axis.set_xscale("log")
    axis.axvline(1.0, color=INK, linewidth=1.0)
    ends = [1.0]
    for row, name in enumerate(names):
        record = found.get(name)
        if record is None:
            axis.text(1.0, row, " not timed", va="center", fontsize=8, color=INK, alpha=0.7)
            continue
        ratio = record["ratio_to_ours"]
        low, high = record["ratio_quantiles"]["0.1"], record["ratio_quantiles"]["0.9"]
        color = COLORS[list(machine.peers).index(name) % len(COLORS)]
        axis.barh(row, ratio - 1.0, left=1.0, height=0.62, color=color)
        axis.plot([low, high], [row, row], color=INK, linewidth=1.0)
        axis.annotate(
            f"{ratio:.2f}×", (max(1.0, high), row), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8, color=INK,
        )  # fmt: skip
        ends += [low, high]
    axis.set_yticks(range(len(names)), [machine.peers[name] for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    return ends
