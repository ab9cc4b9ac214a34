"""Training steps of several libraries, timed side by side.

A library is timed only after its parameters have agreed with the reference's. Then the libraries
take turns, ours first, so that a slow moment of the machine hits all of them; a ratio is formed
within a round, and its median over the rounds is what counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from .floor import Clock
from .peers import DeviceType, Peer, PeerTrainer
from .peers.agreement import bound
from .workloads import Workload, problem

#: Steps after which the parameters must agree with the reference's, to `agreement.bound`.
CHECKED = 4
#: Steps of the run by which the length of the timed runs is chosen. They have no fewer, or what a
#: library does once per call would count as part of a step.
PILOT = 20
OUT_OF_TIME = "out of time"
#: Rounds without which there is nothing to report.
FEWEST = 3
#: Rows that a problem names at most over all its steps: 128 MiB of indices.
ROWS = 1 << 24
#: Between two runs: seconds of a look at whether threads still spin, the share of a core that
#: is taken for none, and the seconds after which to go on all the same. OpenBLAS's threads spin
#: for 2²⁸ cycles before they sleep, on cores that the next library needs.
LOOK, IDLE, PATIENCE = 0.01, 0.2, 1.0

Disagreement = Callable[[Peer, Workload, DeviceType, int], float]


@dataclass
class PeerResult:
    """What became of one library on one workload."""

    peer: Peer
    #: Seconds a step, one for each round.
    seconds: list[float] = field(default_factory=list)
    #: Steps that each of these is the mean of.
    steps: int = 0
    disagreement: float | None = None
    #: Why the library was not tried.
    absent: str | None = None
    #: What went wrong.
    failed: str | None = None
    #: What the library says that it runs, and why, if it does.
    plan: str | None = None

    @property
    def timed(self) -> bool:
        return bool(self.seconds) and self.absent is None and self.failed is None


def time_peers(
    workload: Workload,
    device: DeviceType,
    peers: Sequence[Peer],
    *,
    seconds: float,
    rounds: int,
    disagreement: Disagreement,
    least: float = 0.0,
    spent: Callable[[], bool] = lambda: False,
    clock: Clock = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
    progress: Callable[[str], None] = lambda doing: None,
) -> list[PeerResult]:
    """One result for each library.

    Parameters
    ----------
    seconds : float
        How long a timed run should take.
    rounds : int
        How often each library is timed.
    least : float
        Seconds that a step takes at least, so that nothing long is begun where one step is enough.
    disagreement : callable
        As `peers.agreement.disagreement`.
    spent : callable
        Whether the time for all is over: then nothing new is begun.
    progress : callable
        Is told what is being done.
    """
    results, trainers = [], {}
    for peer in peers:
        result = PeerResult(peer)
        results.append(result)
        progress(f"{peer.name}: preparing")
        try:
            result.absent = OUT_OF_TIME if spent() else peer.obstacle(workload, device)
            if result.absent is not None:
                continue
            result.disagreement = disagreement(peer, workload, device, CHECKED)
            if not result.disagreement < bound(peer):  # NaN too
                result.failed = f"disagrees by {result.disagreement:.1e}: not timed"
                continue
            trainers[peer.name], result.steps = prepare(
                peer, workload, device, seconds, least, clock
            )
        except Exception as error:  # a library may fail in any way; the rest goes on
            result.failed = describe(error)
    for done in range(rounds):
        for result in results:
            if result.peer.name not in trainers or spent():
                continue
            progress(f"{result.peer.name}: round {done + 1} of {rounds}")
            settle(pause)
            try:
                begin = clock()
                trainers[result.peer.name].run()
                result.seconds.append((clock() - begin) / result.steps)
            except Exception as error:
                result.failed = describe(error)
                del trainers[result.peer.name]
    for result in results:
        if (trainer := trainers.get(result.peer.name)) is not None:
            _look(result, trainer)
            if len(result.seconds) < min(FEWEST, rounds):
                result.absent = OUT_OF_TIME
    return results


def prepare(
    peer: Peer,
    workload: Workload,
    device: DeviceType,
    seconds: float,
    least: float = 0.0,
    clock: Clock = time.perf_counter,
) -> tuple[PeerTrainer, int]:
    """A warm trainer whose runs take about this long, and how many steps that is.

    A run has at least `PILOT` steps, or what would take so long if each took the ``least``.
    """
    most = max(1, ROWS // workload.batch)
    pilot = wanted = min(PILOT, most, ceil(seconds / least) if least else PILOT)
    for _ in range(3):  # a short run tells little of a long one
        steps = wanted
        trainer = peer.start(problem(workload, steps), device)
        trainer.run()  # whatever happens once happens here
        begin = clock()
        trainer.run()
        took = max(clock() - begin, 1e-9)
        wanted = min(most, max(pilot, round(steps * seconds / took)))
        if steps / 2 <= wanted <= steps * 2:
            break
    return trainer, steps


def settle(pause: Callable[[float], None] = time.sleep, cpu: Clock = time.process_time) -> None:
    """Wait until the threads of what ran last have gone to sleep."""
    for _ in range(round(PATIENCE / LOOK)):
        before = cpu()
        pause(LOOK)
        if cpu() - before < IDLE * LOOK:
            return


def ratios(result: PeerResult, ours: PeerResult) -> list[float]:
    """Of a library's time to ours, round by round."""
    pairs = zip(result.seconds, ours.seconds, strict=False)  # who failed has fewer rounds
    return [theirs / own for theirs, own in pairs]


def describe(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _look(result: PeerResult, trainer: PeerTrainer) -> None:
    weights, biases = trainer.parameters()
    if not all(np.isfinite(array).all() for array in weights + biases):
        result.failed = "its parameters are not finite after the timed steps"
    plan = getattr(trainer, "plan", None)
    result.plan = None if plan is None else str(plan)
