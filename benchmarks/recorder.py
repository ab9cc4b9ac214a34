"""The clock of device work, and the recorder of what `gpu_record` measures with it."""

from __future__ import annotations

import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import records
from ..cuda.arrays import DeviceArray
from ..cuda.runtime import Runtime
from ..records import Record

#: Seconds of some work on a device, several samples, as `GraphTimer` has them.
GpuClock = Callable[[Callable[[], None]], list[float]]


class GraphTimer:
    """Times device work with events around replays of a captured sequence."""

    def __init__(self, runtime: Runtime, budget: float) -> None:
        self.runtime = runtime
        self.budget = budget

    def __call__(self, work: Callable[[], None]) -> list[float]:
        """Seconds of one `work`, several samples within the budget."""
        work()  # compiles, and makes scratch memory, which a capture must not
        once = self.runtime.seconds(work)
        inner = int(min(50, max(1, 2e-3 / max(once, 1e-7))))

        def several() -> None:
            for _ in range(inner):
                work()

        replay = self.runtime.capture(several)
        replay()
        samples: list[float] = []
        stop = time.perf_counter() + self.budget
        while len(samples) < 5 or (len(samples) < 200 and time.perf_counter() < stop):
            samples.append(self.runtime.seconds(replay) / inner)
        return samples


class Recorder:
    """Runs stages and writes a line for each measurement as it is made."""

    def __init__(
        self, runtime: Runtime, clock: GpuClock, path: Path, common: Record, seconds: float
    ) -> None:
        self.runtime, self.clock, self.path, self.common = runtime, clock, path, common
        self.stop = time.perf_counter() + seconds
        self.rng = np.random.default_rng(0)

    def write(self, **record: Any) -> None:
        records.append(self.path, [self.common | record])
        shown = {k: v for k, v in record.items() if k not in ("quantiles_us", "samples")}
        print("  " + " ".join(f"{k}={v}" for k, v in shown.items()), flush=True)

    def stage(self, name: str, run: Callable[[], None]) -> None:
        """A stage that fails is a record too, and the next one goes on."""
        print(f"{name}:", flush=True)
        if time.perf_counter() > self.stop:
            self.write(op=name, skipped="out of time")
            return
        start = time.perf_counter()
        try:
            run()
        except Exception as error:
            self.write(op=name, failed=f"{type(error).__name__}: {error}")
            traceback.print_exc()
        print(f"  ({time.perf_counter() - start:.1f} s)", flush=True)

    def random(self, shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> DeviceArray:
        return self.runtime.array((scale * self.rng.standard_normal(shape)).astype(dtype))

    def timed(
        self, op: str, shape: tuple[int, ...], dtype: Any, plan: str, seconds: list[float], *,
        error: float, nbytes: int = 0, flops: int = 0, limit: float | None = None, **notes: Any,
    ) -> None:  # fmt: skip
        limit = limit if limit is not None else 1e-3 if dtype == np.float32 else 1e-11
        record = {"op": op, "shape": shape, "dtype": np.dtype(dtype).name, "plan": plan} | notes
        if not error <= limit:  # NaN too
            self.write(**record, error=error, failed=f"error above {limit:g}; not timed")
            return
        median = float(np.median(seconds))
        rates: Record = {"bytes": nbytes, "flops": flops, "error": error, "samples": len(seconds)}
        if nbytes:
            rates["gb_per_s"] = round(nbytes / median / 1e9, 1)
        if flops:
            rates["tflop_per_s"] = round(flops / median / 1e12, 3)
        self.write(**record, **records.quantiles(seconds), **rates)

    def logged(self, name: str, command: list[str]) -> tuple[int | None, str]:
        """(exit status, None if it was stopped; what it has printed, which a .log keeps)."""
        log = self.path.with_name(f"{name.replace(' ', '_')}.log")
        with log.open("w") as file:
            run = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            try:
                code = run.wait(max(1.0, self.stop - time.perf_counter() - 3.0))
            except subprocess.TimeoutExpired:
                code = None  # and what is left of it ends with this process
        return code, log.read_text(errors="replace")
