"""Breaks the kernels in small ways, one at a time, and counts how many the tests notice.

    python tests/support/kernel_slips.py              all: some hours on two cores
    python tests/support/kernel_slips.py --listed     those of kernel_survivors.toml, too
    python tests/support/kernel_slips.py --sample 20  some of them, drawn at random
    python tests/support/kernel_slips.py --only gemm  those whose description matches
    python tests/support/kernel_slips.py --list       what would be broken

A mutant is caught when a case of `kernel_cases.py` fails on it: wrong numbers, a sanitizer's
report, a crash or no end. `kernel_survivors.toml` lists those that no test can catch, with the
reason; one that is not listed there makes the exit status 1, and so does a score below 95 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from backprop_gpu.cuda.catalogue import Kernel
from backprop_gpu.testing.build import BuildFailed, headers, server
from host_cuda.backend import BackendRuntime
from host_cuda.mutants import KINDS, Mutant, mutants
from host_cuda.runtime import KERNELS, LaunchFailed
from kernel_cases import CASES, DTYPES, LAUNCHED, RUNS, Case, run_on_cuda

SCORE = 0.95
#: Seconds for one case of a run, building its kernels included; a mutant may run forever. Sound
#: kernels, built already, took 6, 12 and 30 s: what is only slow must not count as caught.
PATIENCE = {"plain": 60, "asan": 90, "tsan": 240}

CAUGHT = {
    "numbers": "wrong numbers",
    "report": "the harness or a sanitizer reports it",
    "crash": "crash",
    "no end": "no end",
}


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    how: str  # of CAUGHT, or "survived" or "no C++"
    where: str = ""

    @property
    def caught(self) -> bool:
        return self.how in CAUGHT


Launches = dict[str, set[Kernel]]  # by the name of the case


def launches() -> Launches:
    """Which kernels each case runs; and that none fails as long as nothing is broken."""
    found = {}
    for case in CASES:
        runtime = BackendRuntime("plain", library=True, together=LAUNCHED)
        run_on_cuda(case, "float32", runtime)
        found[case.name] = runtime.launched
    return found


def relevant(mutant: Mutant, launches: Launches) -> list[Case]:
    """The cases that run the broken code, those with the fewest kernels to build first."""
    files = {
        path.name
        for path in KERNELS.glob("*.cu")
        if path.name == mutant.file
        or KERNELS / mutant.file in headers(path.read_text(), KERNELS, ())
    }
    name = re.compile(rf"\b{mutant.inside}\b")

    def touches(kernels: Iterable[Kernel], named: bool) -> bool:
        return any(
            kernel.file in files and (not named or name.search(kernel.expression))
            for kernel in kernels
        )

    cases = [case for case in CASES if touches(launches[case.name], named=True)]
    cases = cases or [case for case in CASES if touches(launches[case.name], named=False)]
    return sorted(cases, key=lambda case: len(launches[case.name]))


def attempt(mutant: Mutant, folder: Path, cases: Sequence[Case], answer: Connection) -> None:
    """Run the cases on the broken kernels until one fails; in a process of its own."""
    sources = folder / "kernels"
    shutil.copytree(KERNELS, sources)
    broken = sources / mutant.file
    broken.write_text(mutant.apply(broken.read_text()))
    os.environ["HOST_CUDA_CACHE"] = str(folder / "cache")
    for run, limit in RUNS.items():
        runtime = BackendRuntime(run, library=True, sources=sources, timeout=PATIENCE[run])
        for dtype in DTYPES:
            for case in cases:
                if case.python and run != "plain":
                    continue
                where = f"{case} {dtype} {run}"
                answer.send((run, where))
                try:
                    run_on_cuda(case, dtype, runtime, limit)
                except AssertionError:
                    return answer.send(("numbers", where))
                except LaunchFailed as error:
                    how = "no end" if "did not end" in str(error) else "report"
                    return answer.send((how, where))
                except BuildFailed:
                    return answer.send(("no C++", where))
    answer.send(("survived", ""))
    return None


class Trial:
    """A mutant on its way."""

    def __init__(self, mutant: Mutant, cases: Sequence[Case]) -> None:
        self.mutant = mutant
        self.where = ""
        self._folder = tempfile.TemporaryDirectory(prefix="mutant-")
        self.answer, theirs = multiprocessing.Pipe(duplex=False)
        # A fork, since importing everything again would take longer than most mutants live.
        self._process = multiprocessing.get_context("fork").Process(
            target=_quietly, args=(mutant, Path(self._folder.name), cases, theirs)
        )
        self._process.start()
        theirs.close()
        self._deadline = time.monotonic() + PATIENCE["plain"]

    def outcome(self) -> Outcome | None:
        """What became of it, if it is decided."""
        if not self.answer.poll():
            late = time.monotonic() > self._deadline
            return self._end("no end") if late else None
        try:
            word, where = self.answer.recv()
        except EOFError:
            return self._end("crash")
        self.where = where
        if word not in PATIENCE:
            return self._end(word)
        self._deadline = time.monotonic() + PATIENCE[word]
        return None

    def _end(self, how: str) -> Outcome:
        self._process.kill()
        self._process.join()
        self._folder.cleanup()
        return Outcome(self.mutant, how, self.where)


def _quietly(*arguments: Any) -> None:
    """A crash of the child is an outcome, not news."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    attempt(*arguments)


def trials(chosen: Sequence[Mutant], jobs: int) -> Iterator[Outcome]:
    """The outcomes, as they come."""
    known = launches()
    for sanitizer in ("asan", "tsan"):  # built once, here, and not once a mutant
        server(sanitizer)
    waiting, running = list(chosen), []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            running.append(Trial(mutant, relevant(mutant, known)))
        wait([trial.answer for trial in running], timeout=1)
        for trial in list(running):
            outcome = trial.outcome()
            if outcome is not None:
                running.remove(trial)
                yield outcome


@dataclass(frozen=True)
class Survivor:
    """An entry of survivors.toml: a mutant that computes the same, and why."""

    file: str
    code: str
    broken: str
    reason: str

    def matches(self, mutant: Mutant) -> bool:
        return (self.file, self.code, self.broken) == (mutant.file, mutant.code, mutant.broken)


def survivors(name: str = "kernel_survivors.toml") -> list[Survivor]:
    entries = tomllib.loads(Path(__file__).with_name(name).read_text())
    return [Survivor(**entry) for entry in entries["survivor"]]


def reason(mutant: Mutant, known: Sequence[Survivor]) -> str | None:
    return next((entry.reason for entry in known if entry.matches(mutant)), None)


def report(
    outcomes: Sequence[Outcome], known: Sequence[Survivor] | None = None
) -> tuple[str, bool]:
    """The table, and whether the tests are good enough."""
    known = survivors() if known is None else known
    counted = [outcome for outcome in outcomes if outcome.how != "no C++"]
    lines = [f"{'mutation':<58} {'mutants':>8} {'caught':>7}"]
    for kind, description in KINDS.items():
        of_kind = [outcome for outcome in counted if outcome.mutant.kind == kind]
        if of_kind:
            caught = sum(outcome.caught for outcome in of_kind)
            lines.append(
                f"{kind + ': ' + description:<58} {len(of_kind):>8} "
                f"{caught:>4} {caught / len(of_kind):>4.0%}"
            )
    caught = sum(outcome.caught for outcome in counted)
    score = caught / len(counted) if counted else 1.0
    lines.append(f"{'all':<58} {len(counted):>8} {caught:>4} {score:>4.1%}")
    ways = Counter(outcome.how for outcome in counted if outcome.caught)
    lines.append("caught by: " + ", ".join(f"{CAUGHT[how]} {n}" for how, n in ways.most_common()))
    alive = [outcome.mutant for outcome in counted if not outcome.caught]
    unexplained = [mutant for mutant in alive if reason(mutant, known) is None]
    for mutant in alive:
        lines.append(f"survived: {mutant}\n    {reason(mutant, known) or 'NOT EXPLAINED'}")
    stale = [o.mutant for o in counted if o.caught and reason(o.mutant, known) is not None]
    lines += [f"listed as a survivor, but caught: {mutant}" for mutant in stale]
    # Of a small sample the share of harmless mutants says nothing.
    good = not unexplained and (score >= SCORE or len(counted) < 200)
    return "\n".join(lines), good


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text!r}")
    return int(text)


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {error}") from error


def parser_of(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description.partition("\n")[0])
    parser.add_argument(
        "--sample", type=_positive, metavar="N", help="only N mutants, drawn at random"
    )
    parser.add_argument("--seed", type=int, help="of the sample, to repeat it")
    parser.add_argument(
        "--only", type=_regex, metavar="REGEX", help="only mutants whose description matches"
    )
    parser.add_argument("--listed", action="store_true", help="try the listed survivors again")
    parser.add_argument("--list", action="store_true", help="show the mutants and end")
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="processes")
    return parser


def choose(
    parser: argparse.ArgumentParser, args: argparse.Namespace, all_of_them: Sequence[Mutant]
) -> list[Mutant]:
    """Those that the arguments ask for."""
    chosen = [m for m in all_of_them if args.only is None or args.only.search(str(m))]
    if not chosen:
        parser.error(f"no mutant matches --only {args.only.pattern!r}; --list shows them all")
    if args.sample is not None:
        seed = random.randrange(10**6) if args.seed is None else args.seed
        print(f"{args.sample} of {len(chosen)} mutants, seed {seed}")
        chosen = random.Random(seed).sample(chosen, min(args.sample, len(chosen)))
    if args.list:
        print("\n".join(map(str, chosen)))
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("python tests/support/kernel_slips.py", __doc__)
    args = parser.parse_args(arguments)
    chosen = choose(parser, args, mutants(KERNELS))
    if args.list:
        return 0
    start, listed = time.monotonic(), survivors()
    # All cases would have to pass on each of those, in all three runs: most of the time.
    outcomes = [
        Outcome(mutant, "survived")
        for mutant in chosen
        if reason(mutant, listed) is not None and not args.listed
    ]
    skipped = {outcome.mutant for outcome in outcomes}
    for outcome in trials([mutant for mutant in chosen if mutant not in skipped], args.jobs):
        outcomes.append(outcome)
        print(f"{len(outcomes):>4}/{len(chosen)} {outcome.how:<8} {outcome.mutant}", flush=True)
        if outcome.where:
            print(f"          {outcome.where}", flush=True)
    table, good = report(outcomes)
    print(f"\n{table}\n{time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
