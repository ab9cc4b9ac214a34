"""Records: one JSON line a measurement, append-only, in ``benchmarks/results/``.

A line names its run, machine, versions and commit, so that it can be read on its own. A line
that a crash cut short, or that was damaged since, is reported with file and number and passed
over.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

#: Those of a clone, or those that were installed with the package.
RESULTS = Path(__file__).parent / "results"
#: The file of ``backprop-gpu bench``.
BENCH = "bench.jsonl"
#: That of ``python -m benchmarks.gpu_record``.
GPU = "gpu.jsonl"
#: The name of this library there.
OURS = "ours"
PACKAGES = ("backprop_gpu", "numpy", "scipy", "scikit-learn", "numba", "numba-cuda", "cuda-core",
            "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "jax", "jaxlib")  # fmt: skip

#: Environment variables that steer the threads and kernels of the libraries.
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
            "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "NUMBA_NUM_THREADS", "XLA_FLAGS",
            "CUDA_VISIBLE_DEVICES")  # fmt: skip

Record = dict[str, Any]

#: New records themselves do not make a tree dirty.
_CHANGES = ("status", "--porcelain", "--", ".", ":!benchmarks/results")


def environment() -> Record:
    """What a measurement depends on: machine, versions, commit, and whether the tree was dirty.

    ``run`` is its UTC time, the same for all that is measured with this environment.
    """
    now = datetime.now(UTC)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "run": now.strftime("%Y%m%dT%H%M%SZ"),
        "date": now.isoformat(timespec="seconds"),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": sys.platform,
            "blas": _blas(),
            "load_average": round(os.getloadavg()[0], 2),
            "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        },
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changed := _git(*_CHANGES)) is None else bool(changed),
    }


def append(path: Path, measurements: Collection[Record]) -> None:
    """Add one line a measurement."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(measurement) + "\n" for measurement in measurements)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # cut short: that line is lost, the next one must not be
                lines = "\n" + lines
        file.write(lines.encode())


def read(path: Path, keys: Collection[str] = ()) -> list[Record]:
    """The measurements of a file that have these keys; any other line is reported on stderr,
    as ``file:line``, and passed over."""
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is no object")
            if missing := [key for key in keys if key not in record]:
                raise ValueError(f"it lacks {', '.join(missing)}")
        except ValueError as error:
            print(f"{path}:{number}: not a record, passed over: {error}", file=sys.stderr)
        else:
            found.append(record)
    return found


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in microseconds."""
    q25, median, q75 = np.percentile(seconds, [25, 50, 75]) * 1e6
    return {"median_us": round(median, 3), "q25_us": round(q25, 3), "q75_us": round(q75, 3)}


def processor() -> str:
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
    root = Path(__file__).parents[1]
    if not (root / "pyproject.toml").exists():  # installed, perhaps inside another repository
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
