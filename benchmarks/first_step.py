"""The first step of a library in a fresh process: its time and its memory.

`main` prints one JSON object: ``seconds`` from the start of the process to the end of a first
training step, so with imports, data and compilation, and ``peak_mib``, the most memory that the
process had in use (resident set). `cold_and_warm` runs it twice: cold, with every cache folder
empty, and warm, with what the cold one left there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..records import OURS
from .peers import registry
from .workloads import WORKLOADS, problem

#: The folders that ours and the peers keep compiled code in.
CACHES = (
    "BACKPROP_GPU_CACHE", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "CUPY_CACHE_DIR",
    "CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR",
    "JAX_COMPILATION_CACHE_DIR",
)  # fmt: skip

#: NumPy, in which every library gets the data, counts for all of them; what else is imported here
#: is imported by ours, and counts for ours only.
_START = """
import sys, time, numpy
begin = time.monotonic()
from backprop_gpu.benchmarks.first_step import main
sys.exit(main(imports=time.monotonic() - begin))
"""


_IMPORTED = time.monotonic()


class FirstStepFailed(RuntimeError):
    """The process of a library came to no result."""


def cold_and_warm(
    peer: str, workload: str, variant: int, device: str, timeout: float = 300.0
) -> dict[str, float]:
    """``cold_s``, ``warm_s`` (seconds) and ``peak_mib`` (of the warm process)."""
    with tempfile.TemporaryDirectory(prefix="first_step_") as folder:
        caches = {name: str(Path(folder, name.lower())) for name in CACHES}
        cold, warm = (_fresh(peer, workload, variant, device, caches, timeout) for _ in range(2))
    found = {"cold_s": cold["seconds"], "warm_s": warm["seconds"], "peak_mib": warm["peak_mib"]}
    if "device_mib" in warm:
        found["device_mib"] = warm["device_mib"]
    return found


def _fresh(
    peer: str, workload: str, variant: int, device: str, caches: dict[str, str], timeout: float
) -> dict[str, float]:
    arguments = [peer, workload, "--variant", str(variant), "--device", device]
    command = [sys.executable, "-c", _START, *arguments]
    for folder in caches.values():
        Path(folder).mkdir(0o700, exist_ok=True)  # ours uses none that others may write to
    try:
        done = subprocess.run(
            command, env=os.environ | caches, capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FirstStepFailed(f"no first step within {timeout:.0f} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise FirstStepFailed(last[0][:300])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(imports: float) -> int:
    """Do one step and print what it took; ``imports`` are the seconds that importing ours did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--variant", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    uncounted = 0.0 if args.peer == OURS else imports
    before = time.monotonic()
    used = _device_mib() if args.device == "cuda" else None
    uncounted += time.monotonic() - before

    load = WORKLOADS[args.workload][args.variant]
    trainer = registry.get(args.peer).start(problem(load, steps=1), args.device)
    trainer.run()
    seconds = process_age() - uncounted
    found = {"seconds": round(seconds, 4), "peak_mib": round(peak_mib(), 1)}
    if used is not None and (now := _device_mib()) is not None:
        found["device_mib"] = now - used
    print(json.dumps(found))
    return 0


def process_age() -> float:
    """Seconds since this process was started; by Linux to a hundredth, else since this import."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - _IMPORTED
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the machine was
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def peak_mib() -> float:
    """The largest resident set of this process so far, in MiB."""
    # Linux starts getrusage's maximum at that of the process that launched this one.
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _device_mib() -> float | None:
    """Memory in use on the first GPU, by whoever it is; a CUDA context of our own would count."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
