"""Breaks the CPU's library in small ways, one at a time, and counts how many the tests notice.

    python tests/support/cpu_slips.py --sample 20  some of about 1,500, drawn at random
    python tests/support/cpu_slips.py --only team  those whose description matches
    python tests/support/cpu_slips.py --listed     those of cpu_survivors.toml, too
    python tests/support/cpu_slips.py --list       what would be broken

A mutant is caught when `cpu_calls.cpp` fails on it or prints another hash: plain, under
AddressSanitizer and UndefinedBehaviorSanitizer, or under ThreadSanitizer; one of `elementary.cuh`
also when the tests of that file fail. A caught one takes some 10 s of a core, and a survivor more
than a minute: all of them, hours. `cpu_survivors.toml` lists those that no test can catch, with the
reason; one that is not there makes the exit status 1, and so does a score below 95 %.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from cpu_calls import FLAGS, KERNELS, LINES
from host_cuda.mutants import Mutant, mutants
from kernel_slips import Outcome, choose, parser_of, reason, report, survivors
from machine import ROOT, SUPPORT

PATTERNS = "*.h", "*.cpp"
#: Seconds for a compiler, and until the program's next line; a mutant may run forever.
PATIENCE = 90
#: Of the CUDA kernels, too, and held to its last digits by tests of its own.
ELEMENTARY = "elementary.cuh"
_ELEMENTARY = "tests/kernels/test_elementary.py"
_UNITS = "level", "team", "library"
_PLAIN = ("-O0", "-march=x86-64-v3", "-DINLINE=inline", "-DLEVEL=v3", "-w")
#: What the program is built with, and its arguments, those first that take the least time.
RUNS = {
    "plain": ((), ("forks",)),
    "addresses": (("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ("forks",)),
    "threads": (("-fsanitize=thread",), ()),
}
_making = threading.Lock()


def compile_one(source: Path, kernels: Path, flags: Sequence[str], target: Path) -> bool:
    """Whether the compiler takes a source."""
    command = [
        "g++", *FLAGS, *_PLAIN, *flags, f"-I{kernels}", "-c", str(source), "-o", str(target),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, timeout=10 * PATIENCE).returncode == 0


def as_they_are(run: str, folder: Path) -> Path:
    """Where the objects of the sources as they are lie for a run; made when first asked for."""
    with _making:
        ready = folder / run
        if not ready.exists():
            ready.mkdir()
            names = (SUPPORT / "cpu_calls.cpp", *(KERNELS / f"{unit}.cpp" for unit in _UNITS))
            for source in names:
                target = ready / f"{source.stem}.o"
                assert compile_one(source, KERNELS, RUNS[run][0], target), source
        return ready


def broken_units(file: str) -> list[str]:
    """The sources that are compiled anew where a file has changed."""
    included = {"level": set(KERNELS.glob("*.h")), "team": {KERNELS / "team.h"}}
    included["level"].add(KERNELS / ELEMENTARY)
    included["library"] = {KERNELS / name for name in ("level.h", "abi.h", "team.h")}
    return [unit for unit in _UNITS if file == f"{unit}.cpp" or KERNELS / file in included[unit]]


def attempt(mutant: Mutant, shared: Path) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        kernels = folder / "cpu"
        shutil.copytree(KERNELS, kernels, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copytree(KERNELS.parent / "cuda", folder / "cuda")
        path = (folder / "cuda" if mutant.file == ELEMENTARY else kernels) / mutant.file
        path.write_text(mutant.apply(path.read_text()))
        units = broken_units(mutant.file)
        for run, (flags, arguments) in RUNS.items():
            ready = as_they_are(run, shared)
            objects = []
            for unit in ("cpu_calls", *_UNITS):
                made = (folder if unit in units else ready) / f"{unit}.o"
                if unit in units and not compile_one(kernels / f"{unit}.cpp", kernels, flags, made):
                    return Outcome(mutant, "no C++", run)
                objects.append(str(made))
            program = str(folder / "calls")
            linked = ["g++", *flags, *objects, "-o", program, "-lpthread"]
            if subprocess.run(linked, capture_output=True).returncode != 0:
                return Outcome(mutant, "no C++", run)
            how = noticed([program, *arguments])
            if how is not None:
                return Outcome(mutant, how, run)
        if mutant.file == ELEMENTARY and not elementary_passes(folder / "cuda"):
            return Outcome(mutant, "numbers", _ELEMENTARY)
    return Outcome(mutant, "survived")


def elementary_passes(headers: Path) -> bool:
    """Whether the tests of exp, log and so on do: of edges that no network comes to."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", _ELEMENTARY]
    environment = os.environ | {"ELEMENTARY_HEADERS": str(headers)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 0


def noticed(command: Sequence[str]) -> str | None:
    """How the program fails, if it does; at its first line that is another."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        for line in [*LINES, ""]:  # and its end
            if not select.select([process.stdout], [], [], PATIENCE)[0]:
                return "no end"
            got = process.stdout.readline()
            if got.strip() == line:
                continue
            if got:
                return "numbers"
            break
        says = process.stderr.read()
        code = process.wait()
    finally:
        process.kill()
        process.communicate()
    if code == 0:
        return None
    return "report" if re.search("Sanitizer|runtime error", says) else "crash"


def main() -> int:
    parser = parser_of("python tests/support/cpu_slips.py", __doc__)
    args = parser.parse_args()
    broken = mutants(KERNELS, *PATTERNS) + mutants(KERNELS.parent / "cuda", ELEMENTARY)
    chosen = choose(parser, args, broken)
    if args.list:
        return 0
    start, listed = time.monotonic(), survivors("cpu_survivors.toml")
    known = [m for m in chosen if reason(m, listed) is not None and not args.listed]
    outcomes = [Outcome(mutant, "survived") for mutant in known]
    waiting = [mutant for mutant in chosen if mutant not in known]
    with tempfile.TemporaryDirectory(prefix="slips-") as name:
        os.environ["TSAN_OPTIONS"] = "halt_on_error=1"
        with ThreadPoolExecutor(args.jobs) as pool:
            running = [pool.submit(partial(attempt, mutant, Path(name))) for mutant in waiting]
            for done in as_completed(running):
                outcomes.append(done.result())
                last = outcomes[-1]
                print(f"{len(outcomes):>4}/{len(chosen)} {last.how:<8} {last.mutant}", flush=True)
    table, good = report(outcomes, listed)
    print(f"\n{table}\n{time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
