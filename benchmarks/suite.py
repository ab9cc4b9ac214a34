"""The whole suite: which workloads, in which order, which fit, and a record of each result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np

from ..records import Record, quantiles
from . import first_step, floor, measure
from .floor import MachineRates
from .measure import OUT_OF_TIME
from .peers import DeviceType, Peer
from .workloads import WORKLOADS, Workload

_CLASSIC, _NIELSEN = WORKLOADS["classic"][0], WORKLOADS["nielsen"][0]


def _hidden(*neurons: int) -> tuple[int, ...]:
    return (_CLASSIC.sizes[0], *neurons, _CLASSIC.sizes[-1])


#: Curves: the name of what grows -> its value -> the workload.
CURVES: dict[str, dict[int, Workload]] = {
    "width": {
        n: replace(_CLASSIC, sizes=_hidden(n, n)) for n in (32, 64, 128, 256, 512, 1024, 2048)
    },
    "depth": {
        layers: replace(_CLASSIC, sizes=_hidden(*(128,) * layers)) for layers in (1, 2, 4, 8, 16)
    },
    "batch": {m: replace(_CLASSIC, batch=m) for m in (8, 32, 128, 512, 2048, 8192)},
    "population": {n: replace(_NIELSEN, members=n) for n in (1, 4, 16, 64, 256)},
}

#: The share of the floor that a prediction assumes.
EXPECTED_SHARE = 0.5
#: Of the memory that is free, the part that may be used.
MEMORY = 0.7


@dataclass(frozen=True)
class BenchCase:
    """A workload, and where it stands: in the list of its name, or on a curve at ``x``."""

    workload: Workload
    variant: int = 0
    curve: str | None = None
    x: int | None = None

    @property
    def fields(self) -> Record:
        """What its records say of it."""
        load = self.workload
        about: Record = {
            "workload": load.name,
            "variant": str(load),
            "sizes": list(load.sizes),
            "batch": load.batch,
            "members": load.members,
        }
        return about if self.curve is None else about | {"curve": self.curve, "x": self.x}


@dataclass(frozen=True)
class SuiteSettings:
    """How thoroughly to measure."""

    #: Of a timed run.
    seconds: float = 0.3
    rounds: int = 15
    curve_rounds: int = 7
    #: For all; infinite where everything is to be measured.
    budget: float = float("inf")
    #: Of a step, predicted; what is slower is left out.
    longest_step: float = 20.0
    #: For each of the machine's rates.
    rate_seconds: float = 0.7
    first_steps: bool = True
    #: Peers that are tried only where they are asked for by name.
    left_out: tuple[str, ...] = ()


FULL = SuiteSettings()
#: Ends within a minute on two cores. Compiling for half of that would leave too little for the
#: rest.
QUICK = SuiteSettings(
    seconds=0.05,
    rounds=5,
    curve_rounds=3,
    budget=40.0,
    longest_step=0.3,
    rate_seconds=0.2,
    first_steps=False,
    left_out=("torch.compile",),
)


def cases(names: Sequence[str] = tuple(WORKLOADS), curves: bool = False) -> list[BenchCase]:
    """What to measure: the first variant of every workload, then the second ones, then curves."""
    found = [BenchCase(load, i) for name in names for i, load in enumerate(WORKLOADS[name])]
    found.sort(key=lambda case: case.variant)
    if curves:
        found += [
            BenchCase(load, curve=curve, x=x)
            for curve, loads in CURVES.items()
            for x, load in loads.items()
            if load.name in names
        ]
    return found


def obstacle(
    load: Workload, rates: MachineRates, trainers: int, free: int | None, settings: SuiteSettings
) -> str | None:
    """Why a workload does not fit this machine, by what its rates predict."""
    predicted = floor.seconds(load, rates) / EXPECTED_SHARE
    if predicted > settings.longest_step:
        return (
            f"a step would take about {predicted:.2g} s ({load.flops / 1e9:,.0f} GFLOP); "
            f"more than {settings.longest_step:g} s is left out"
        )
    needed = floor.memory(load, trainers)
    if free is not None and needed > MEMORY * free:
        return (
            f"{trainers} trainers would take about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free"
        )
    return None


def run(
    peers: Sequence[Peer],
    chosen: Sequence[BenchCase],
    device: DeviceType,
    settings: SuiteSettings,
    common: Record,
    *,
    disagreement: measure.Disagreement,
    clock: floor.Clock = time.perf_counter,
    progress: Callable[[str], None] = lambda doing: None,
) -> Iterator[Record]:
    """The records of a run, each as soon as it is there.

    The first of the ``peers`` is ours. ``common`` is in every record.
    """
    stop = clock() + settings.budget
    common = common | {"device": device}

    def spent() -> bool:
        return clock() >= stop

    progress("rates of the machine")
    rates = floor.machine_rates(device, settings.rate_seconds)
    yield common | {"kind": "rates"} | rates.as_record()
    for case in chosen:
        about = common | case.fields
        load = case.workload
        why = obstacle(load, rates, len(peers), floor.free_memory(device), settings)
        if why is not None:
            yield about | {"kind": "left out", "reason": why}
            continue
        least = floor.seconds(load, rates)
        rounds = settings.rounds if case.curve is None else settings.curve_rounds
        results = measure.time_peers(
            load,
            device,
            peers,
            seconds=settings.seconds,
            rounds=affordable_rounds(rounds, least, settings.seconds),
            disagreement=disagreement,
            least=least,
            spent=spent,
            clock=clock,
            progress=partial(_progress, progress, load),
        )
        if any(result.absent == OUT_OF_TIME for result in results) and not any(
            result.timed or result.failed for result in results
        ):
            yield about | {"kind": "left out", "reason": OUT_OF_TIME}
            continue
        for result in results:
            yield about | step_record(result, results[0], load, rates)
    if settings.first_steps:
        yield from first_steps(peers, chosen, device, common, rates, settings, progress)


def _progress(progress: Callable[[str], None], load: Workload, doing: str) -> None:
    progress(f"{load.name} {load}, {doing}")


def affordable_rounds(rounds: int, least: float, seconds: float) -> int:
    """Fewer rounds, but three, where a single step takes longer than a run should."""
    return max(3, min(rounds, int(rounds * seconds / max(seconds, least / EXPECTED_SHARE))))


def step_record(
    result: measure.PeerResult, ours: measure.PeerResult, load: Workload, rates: MachineRates
) -> Record:
    """What one library did."""
    peer = result.peer
    found: Record = {"kind": "step", "peer": peer.name, "label": peer.label}
    if result.absent is not None:
        return found | {"kind": "absent", "reason": result.absent}
    if not result.timed:
        return found | {"kind": "failed", "reason": result.failed or "it was not timed"}
    least = floor.seconds(load, rates)
    found |= quantiles(result.seconds) | {
        "rounds": len(result.seconds),
        "steps": result.steps,
        "disagreement": result.disagreement,
        "flops": load.flops,
        "bytes": load.least_bytes(rates.on_chip),
        "floor_us": _us(least),
        "limited_by": floor.limit(load, rates),
        "share_of_floor": round(least / median(result.seconds), 5),
    }
    if result is ours and (expected := floor.expected(load, rates)) is not None:
        found["expected_us"] = _us(expected)
    if ours.timed:
        low, middle, high = np.quantile(measure.ratios(result, ours), (0.1, 0.5, 0.9)).tolist()
        found["ratio_to_ours"] = round(middle, 4)
        found["ratio_quantiles"] = {"0.1": round(low, 4), "0.9": round(high, 4)}
    return found if result.plan is None else found | {"plan": result.plan}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def first_steps(
    peers: Sequence[Peer],
    chosen: Sequence[BenchCase],
    device: DeviceType,
    common: Record,
    rates: MachineRates,
    settings: SuiteSettings,
    progress: Callable[[str], None],
) -> Iterator[Record]:
    """Fresh processes, for the first variant of each workload that fits."""
    for case in chosen:
        load = case.workload
        if case.variant or case.curve:
            continue
        if obstacle(load, rates, 1, floor.free_memory(device), settings):
            continue
        for peer in peers:
            if peer.obstacle(load, device) is not None:
                continue
            progress(f"{load.name}, {peer.name}: first step of a fresh process, cold and warm")
            about = common | case.fields | {"peer": peer.name, "label": peer.label}
            try:
                found = first_step.cold_and_warm(peer.name, load.name, case.variant, device)
            except first_step.FirstStepFailed as error:
                reason = f"first step of a fresh process: {error}"
                yield about | {"kind": "failed", "reason": reason}
            else:
                yield about | {"kind": "first step"} | found
