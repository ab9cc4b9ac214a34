"""Records: one JSON line a measurement, append-only, in ``benchmarks/results/``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("backprop_gpu", "numpy", "scipy", "scikit-learn", "numba", "numba-cuda", "cuda-core",
            "cupy-cuda13x", "cupy-cuda12x", "torch", "jax")  # fmt: skip


#: New records themselves do not make a tree dirty.
_CHANGES = ("status", "--porcelain", "--", ".", ":!benchmarks/results")


def environment() -> dict[str, Any]:
    """What a measurement depends on: machine, versions, commit, and whether the tree was dirty."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": sys.platform,
            "blas": _blas(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changed := _git(*_CHANGES)) is None else bool(changed),
    }


def append(path: Path, measurements: list[dict[str, Any]]) -> None:
    """Add one line a measurement."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for measurement in measurements:
            file.write(json.dumps(measurement) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The measurements of a file; a damaged line is reported on stderr and passed over."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            print(f"{path}:{number}: not a record, passed over: {error}", file=sys.stderr)
    return found


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in microseconds."""
    q25, median, q75 = np.percentile(seconds, [25, 50, 75]) * 1e6
    return {"median_us": round(median, 3), "q25_us": round(q25, 3), "q75_us": round(q75, 3)}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _blas() -> str:
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    found = {
        f"{info['internal_api']} {info['version']}, {info['num_threads']} threads"
        for info in threadpool_info()
        if info["user_api"] == "blas"
    }
    return "; ".join(sorted(found)) or "unknown"


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(Path(__file__).parents[1]), *arguments],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
