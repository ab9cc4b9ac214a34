"""Breaks the host side of the CUDA engines, one line at a time, and counts what the tests notice.

    python tests/support/host_slips.py                all slips: some minutes on two cores
    python tests/support/host_slips.py --sample 6     some of them, drawn at random
    python tests/support/host_slips.py --only wait    those whose description matches

Each slip is a line of the package as somebody in a hurry might have written it; they stand in
``host_slips.toml``. It is made in a copy of the package, where `TESTS` run on the stand-in for a
driver, with work as late as a driver may do it. A slip is caught when a test fails or the process
dies. `SURVIVORS` are those that no test here can catch, each with its reason.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/cuda/test_host.py", "tests/cuda/test_device.py", "tests/engines/test_layered_cuda.py",
)  # fmt: skip
SCORE = 0.95


@dataclass(frozen=True)
class Slip:
    """`right` is in the file once, and becomes `wrong`."""

    what: str
    file: str
    right: str
    wrong: str

    def apply(self, source: str) -> str:
        if source.count(self.right) != 1:
            raise ValueError(f"{self.what}: {source.count(self.right)} times in {self.file}")
        return source.replace(self.right, self.wrong)


def _read() -> tuple[tuple[Slip, ...], dict[str, str]]:
    found = tomllib.loads((ROOT / "tests/support/host_slips.toml").read_text())["slip"]
    reasons = {each["what"]: each.pop("survives") for each in found if "survives" in each}
    return tuple(Slip(**each) for each in found), reasons


SLIPS, SURVIVORS = _read()


def caught(slip: Slip) -> str | None:
    """How `TESTS` notice it; None if they do not."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__", "kernels", "benchmarks", "testing")
        shutil.copytree(ROOT / "backprop_gpu", copy / "backprop_gpu", ignore=ignored)
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=ignored)
        # What is built of these is kept by their path.
        for folder in ("kernels", "benchmarks", "backprop_gpu/testing"):
            (copy / "backprop_gpu" / Path(folder).name).symlink_to(ROOT / folder)
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "backprop_gpu" / slip.file
        path.write_text(slip.apply(path.read_text()))
        command = [
            sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider",
            "--stand-in", "H100", "--stand-in-devices", "2", *TESTS,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=copy, capture_output=True, text=True, timeout=300,
                env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "no end"
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 1 and failed:
        return failed[0].removeprefix("FAILED ")
    if done.returncode < 0:
        return f"the process ends with {done.returncode}"
    raise RuntimeError(f"{slip.what}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def run(slips: Iterable[Slip], jobs: int = 2) -> list[tuple[Slip, str | None]]:
    found = []
    with ThreadPoolExecutor(jobs) as pool:
        slips = list(slips)
        for slip, how in zip(slips, pool.map(caught, slips), strict=True):
            print(f"{'caught' if how else 'SURVIVED':9}{slip.what}: {how or ''}", flush=True)
            found.append((slip, how))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many, drawn at random")
    parser.add_argument("--seed", type=int, help="of the draw")
    parser.add_argument("--only", default="", help="part of the description")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args(argv)
    slips = [s for s in SLIPS if arguments.only in s.what and s.what not in SURVIVORS]
    if arguments.sample:
        slips = random.Random(arguments.seed).sample(slips, min(arguments.sample, len(slips)))
    results = run(slips, arguments.jobs)
    count = sum(how is not None for _, how in results)
    print(f"{count} of {len(results)} slips caught")
    return 0 if count >= SCORE * len(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
