"""Records: one JSON line a measurement, append-only, in ``benchmarks/results``.

A line names its run, machine, versions and commit, so that it can be read on its own. A line
that a crash cut short, or that was damaged since, is reported with file and number and passed
over.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

#: Those of a clone, or those that were installed with the package.
RESULTS = Path(__file__).parent / "benchmarks" / "results"
#: The file of ``backprop-gpu bench``.
BENCH = "bench.jsonl"
#: That of ``python -m backprop_gpu.benchmarks.gpu_record``.
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


def provenance() -> Record:
    """What a measurement depends on: machine, versions, commit, and whether the tree was dirty.

    ``run`` is its UTC time, the same for all that is measured together.
    """
    from importlib import metadata

    now = datetime.now(UTC)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
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


def read(path: Path, check: Callable[[Record], None] | None = None) -> list[Record]:
    """The measurements of a file in which `check`, if it is given, finds nothing wrong.

    Any other line is reported on stderr, as ``file:line``, and passed over.
    """
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is no object")
            if check is not None:
                check(record)
        except (ValueError, RecursionError) as error:
            print(f"{path}:{number}: not a record, passed over: {error}", file=sys.stderr)
        else:
            found.append(record)
    return found


def of_bench(record: Record) -> None:
    """Check a record of `BENCH`.

    Raises
    ------
    ValueError
        If it lacks what a measurement of its kind has, or something is not of its type.
    """
    # A NaN, or half of a surrogate pair, would come to light when it is drawn or written.
    json.dumps(record, allow_nan=False, ensure_ascii=False).encode()
    holds: dict[str, Any] = _ALWAYS | _OF_KIND.get(str(record.get("kind")), _OF_OTHER_KINDS)
    if record.get("ratio_to_ours") is not None:
        holds |= _OF_RATIO
    if "curve" in record:
        holds |= _OF_CURVE
    holds |= {key: what for key, what in _OPTIONAL.items() if key in record}
    # These may be null, too.
    holds |= {key: _text for key in ("commit", "plan") if record.get(key) is not None}
    _check(record, holds)


def _check(record: Any, holds: Mapping[str, Any], where: str = "") -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{where or 'it'} is no object")
    for key, what in holds.items():
        place = f"{where}.{key}" if where else key
        if key not in record:
            raise ValueError(f"it lacks {place}")
        if isinstance(what, dict):
            _check(record[key], what, place)
        elif not what(record[key]):
            raise ValueError(f"{place} is no {what.__name__.strip('_')}: {str(record[key])[:40]!r}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    """Short, on one line, and no formula in a figure, as what is between two "$" would be."""
    return isinstance(value, str) and re.fullmatch(r"[^$\x00-\x1f]{1,200}", value) is not None


def _number(value: Any) -> bool:
    """Not negative, and of a size that fits on an axis."""
    return type(value) in (int, float) and 0 <= value <= 1e21


def _positive(value: Any) -> bool:
    return _number(value) and value >= 1e-15


def _rates(value: Any) -> bool:
    return isinstance(value, dict) and "float32" in value and all(map(_positive, value.values()))


#: What the records of `BENCH` hold, as far as it is shown.
_SPREAD = {"0.1": _positive, "0.9": _positive}
_PLACE = {"workload": _name, "variant": _name}
_PEER = {"peer": _name, "label": _name}
_ALWAYS = {
    "kind": _name, "run": _name, "device": _name, "date": _name, "machine": {}, "versions": {},
}  # fmt: skip
_OF_KIND: dict[str, dict[str, Any]] = {
    "rates": {"products": _rates, "bandwidth": _positive, "call": _number, "on_chip": _number},
    "step": _PLACE | _PEER | {
        "median_us": _positive, "quantiles_us": _SPREAD, "flops": _positive, "bytes": _positive,
        "floor_us": _number, "share_of_floor": _number,
    },
    "first step": _PLACE | _PEER | {"cold_s": _number, "warm_s": _number, "peak_mib": _number},
}  # fmt: skip
_OF_OTHER_KINDS = _PLACE | {"reason": _text}
_OF_CURVE = {"curve": _name, "x": _positive}
_OF_RATIO = {"ratio_to_ours": _positive, "ratio_quantiles": _SPREAD}
#: What may be absent.
_OPTIONAL = _PLACE | {"peer": _name, "x": _positive, "device_mib": _number}


def quantiles(seconds: Sequence[float]) -> Record:
    """Median and quantiles, in microseconds."""
    levels = ("0.1", "0.25", "0.5", "0.75", "0.9")
    values = np.quantile(seconds, [float(level) for level in levels]) * 1e6
    found = dict(zip(levels, values.round(3).tolist(), strict=True))
    return {"median_us": found.pop("0.5"), "quantiles_us": found}


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
