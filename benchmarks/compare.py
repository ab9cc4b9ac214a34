"""How times moved between two sets of runs, and whether that is more than their spread.

The spread of a measurement is the range from the 10 % to the 90 % quantile of its rounds; where
several runs are compared together it is the range that covers all of theirs. A time has moved
when the two spreads have nothing in common: it is *slower* when the lowest of B lies above the
highest of A, *faster* when the highest of B lies below the lowest of A.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .. import records
from ..records import Record

#: What a record of a step has at least.
STEP_KEYS = {"kind", "run", "device", "workload", "variant", "peer", "median_us", "quantiles_us"}
#: Characters of a commit or run that are enough to mean it.
SHORTEST = 4

#: device, workload, variant, curve, peer
Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Spread:
    """Microseconds a step."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Movement:
    """One library on one workload, before (A) and after (B)."""

    key: Key
    before: Spread
    after: Spread

    @property
    def change(self) -> float:
        """0.1 where a step takes 10 % longer."""
        return self.after.median / self.before.median - 1.0

    @property
    def verdict(self) -> Literal["slower", "faster", "within the spread"]:
        if self.after.low > self.before.high:
            return "slower"
        if self.after.high < self.before.low:
            return "faster"
        return "within the spread"


def select(which: str, files: Iterable[Path]) -> list[Record]:
    """The steps that a run id, a commit's beginning or a .jsonl file names.

    Raises
    ------
    ValueError
        If nothing is named so; it lists the runs that there are.
    """
    if which.endswith(".jsonl"):
        if not Path(which).is_file():
            raise ValueError(f"there is no file {which}")
        if found := steps(records.read(Path(which), records.of_bench)):
            return found
        raise ValueError(f"{which} has no record of a step")
    known = [record for file in files for record in steps(records.read(file, records.of_bench))]
    if len(which) >= SHORTEST:
        found = [
            record
            for record in known
            if record["run"].startswith(which) or (record.get("commit") or "").startswith(which)
        ]
        if found:
            return found
    runs = {record["run"]: (record.get("commit") or "no commit")[:9] for record in known}
    listed = ", ".join(f"{run} ({commit})" for run, commit in runs.items()) or "none"
    raise ValueError(f"no run or commit begins with {which!r}; recorded: {listed}")


def steps(found: Iterable[Record]) -> list[Record]:
    """The records of steps among others."""
    return [
        record for record in found if record["kind"] == "step" and set(STEP_KEYS) <= set(record)
    ]


def spreads(found: Iterable[Record]) -> dict[Key, Spread]:
    """Of each library on each workload, over all runs."""
    by_key: dict[Key, list[Record]] = {}
    for record in found:
        curve = f"{record['curve']} {record['x']}" if record.get("curve") else ""
        key = (record["device"], record["workload"], record["variant"], curve, record["peer"])
        by_key.setdefault(key, []).append(record)
    return {
        key: Spread(
            min(record["quantiles_us"]["0.1"] for record in some),
            float(np.median([record["median_us"] for record in some])),
            max(record["quantiles_us"]["0.9"] for record in some),
        )
        for key, some in by_key.items()
    }


def movements(before: Iterable[Record], after: Iterable[Record]) -> list[Movement]:
    """Of what both have measured, in A's order."""
    a, b = spreads(before), spreads(after)
    return [Movement(key, a[key], b[key]) for key in a if key in b]


def differences(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """What else is not the same: then a change of times may not be the code's."""
    found = []
    for what in ("machine", "versions"):
        a, b = _values(before, what), _values(after, what)
        for name in sorted(a.keys() | b.keys()):
            if name != "load_average" and a.get(name) != b.get(name):
                found.append(f"{name}: {_listed(a.get(name))} in A, {_listed(b.get(name))} in B")
    return found


def _values(found: Iterable[Record], what: str) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for record in found:
        for name, value in record.get(what, {}).items():
            values.setdefault(name, set()).add(str(value))
    return values


def _listed(values: set[str] | None) -> str:
    return " and ".join(sorted(values)) if values else "nothing"
