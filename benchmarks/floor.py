"""The floor: the time that no program can beat on the machine at hand.

A step takes at least the time of its arithmetic at the rate of a large matrix product, and at
least the time of the bytes that it has to move at the bandwidth of a large copy. Both rates are
measured in the run whose times are held against them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import planning
from ..cuda.blas import WORKSPACE
from ..threads import cores as usable_cores
from .peers import DeviceType
from .recorder import GpuClock, GraphTimer
from .workloads import Workload

Clock = Callable[[], float]


@dataclass(frozen=True)
class MachineRates:
    """What a machine can do."""

    device: DeviceType
    #: Bytes/s of a copy beyond every cache, what is read and what is written together.
    bandwidth: float
    #: FLOP/s of a large matrix product, by precision.
    products: dict[str, float]
    #: Seconds of the shortest call: a NumPy ufunc; on CUDA a launch inside a graph.
    call: float
    #: Bytes that the chip keeps: the CPU's last-level cache, the GPU's L2. 0 where unknown.
    on_chip: int

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


# -- by formula -----------------------------------------------------------------------


def seconds(workload: Workload, rates: MachineRates, precision: str = "float32") -> float:
    """Of a step, at least."""
    return max(_parts(workload, rates, precision).values())


def limit(workload: Workload, rates: MachineRates) -> Literal["arithmetic", "bandwidth"]:
    """Which of the two takes longer."""
    parts = _parts(workload, rates, "float32")
    return "arithmetic" if parts["arithmetic"] >= parts["bandwidth"] else "bandwidth"


def _parts(workload: Workload, rates: MachineRates, precision: str) -> dict[str, float]:
    return {
        "arithmetic": workload.flops / rates.products[precision],
        "bandwidth": workload.least_bytes(rates.on_chip) / rates.bandwidth,
    }


#: Of the rate of a large product, what the CPU's resident engine should reach in tiles whose sums
#: are loaded and stored once.
EXPECTED_RATE = 0.85
#: Seconds that a product, its σ or σ' and what leads to them take beside the arithmetic.
EXPECTED_CALL = 0.15e-6


def expected(workload: Workload, rates: MachineRates) -> float | None:
    """Seconds a step of ours should take on a CPU: operations, bytes of the rows, and calls.

    The two constants were guessed before the loop ran and set down after its first timings;
    nothing is fitted to a record. On CUDA the plan says its own.
    """
    if rates.device != "cpu":
        return None
    cores, batch = usable_cores(), workload.batch
    work = planning.cpu_work(workload.sizes, batch, 4, False, cores if workload.members == 1 else 1)
    busy = min(cores, workload.members) if workload.members > 1 else work.threads
    blocks = workload.members * ceil(batch / work.block)
    calls = blocks * 4 * len(workload.sizes) * EXPECTED_CALL
    arithmetic = workload.flops / (EXPECTED_RATE * rates.products["float32"] / cores)
    rows = workload.members * 4 * batch * (workload.sizes[0] + workload.sizes[-1])
    moved = rows / (rates.bandwidth / 2)  # one core copies at about half of what all do
    return (arithmetic + calls + moved) / busy


def attainable(intensity: float, product_rate: float, bandwidth: float) -> float:
    """FLOP/s under the roofline for operations a byte."""
    return min(product_rate, intensity * bandwidth)


def memory(workload: Workload, trainers: int, itemsize: int = 4) -> int:
    """Bytes that several trainers of a workload take, roughly.

    Each holds the data, the parameters and gradients with copies of both, and of every layer
    z, a and δ.
    """
    batches = max(2, 10_000 // workload.batch)
    data = batches * workload.batch * (workload.sizes[0] + workload.sizes[-1])
    parameters = 4 * workload.members * workload.parameters
    layers = 3 * workload.members * workload.batch * sum(workload.sizes)
    return trainers * itemsize * (data + parameters + layers)


# -- measured -------------------------------------------------------------------------


def machine_rates(device: DeviceType, budget: float = 0.5) -> MachineRates:
    """The rates of this machine; ``budget`` is seconds for each of them."""
    if device == "cpu":
        return cpu_rates(budget)
    from cuda import core

    from ..cuda.runtime import runtime

    found = runtime()
    on_chip = core.Device().properties.l2_cache_size
    rates = cuda_rates(found, GraphTimer(found, budget), on_chip)
    bfloat16 = _bfloat16(budget)
    if bfloat16 is None:
        return rates
    return replace(rates, products=rates.products | {"bfloat16": bfloat16})


def cpu_rates(
    budget: float = 0.5,
    clock: Clock = time.perf_counter,
    copied: int | None = None,
    product: int = 1536,
) -> MachineRates:
    """``copied`` is the bytes of the array that is copied, by default eight caches;
    ``product`` the rows and columns of the matrices that are multiplied."""
    on_chip = last_level_cache()
    bandwidth = _copy_rate(copied or min(max(8 * on_chip, 1 << 27), 1 << 29), budget, clock)
    products = {}
    for precision in ("float32", "float64"):
        a = np.random.default_rng(0).random((product, product)).astype(precision)
        multiply = partial(np.matmul, a, a, np.empty_like(a))
        products[precision] = 2 * product**3 / shortest(multiply, budget, clock)
    one = np.zeros(1, np.float32)

    def calls() -> None:
        for _ in range(1000):
            np.negative(one, one)

    return MachineRates(
        "cpu", bandwidth, products, shortest(calls, budget / 5, clock) / 1000, on_chip
    )


def _copy_rate(size: int, budget: float, clock: Clock) -> float:
    """Bytes/s of a copy by all cores; NumPy copies without the GIL."""
    cores = usable_cores()
    source, target = (np.full(size, value, np.uint8) for value in (1, 0))  # touches every page
    parts = np.array_split(target, cores), np.array_split(source, cores)
    with ThreadPoolExecutor(cores) as pool:
        return 2 * size / shortest(lambda: list(pool.map(np.copyto, *parts)), budget, clock)


def cuda_rates(
    runtime: Any, clock: GpuClock, on_chip: int, copied: int = 1 << 28, product: int = 8192
) -> MachineRates:
    """With a runtime and its `GraphTimer`.

    The clock replays graphs, in which an H200 copies 1 GiB at two thirds of the rate of 256 MiB.
    """
    a, b = (runtime.zeros(copied // 4, np.float32) for _ in range(2))
    bandwidth = 2 * copied / min(clock(partial(runtime.copy, a, b)))
    call = min(clock(partial(runtime.copy, a[:1], b[:1])))
    del a, b
    products = {}
    for precision in (np.float32, np.float64):
        a = runtime.array(np.full((product, product), 0.5, precision))
        out, workspace = runtime.empty(a.shape, precision), runtime.empty(WORKSPACE, np.uint8)
        multiply = partial(runtime.product, "NN", a, a, out, 1.0, workspace)
        products[np.dtype(precision).name] = 2 * product**3 / min(clock(multiply))
    return MachineRates("cuda", bandwidth, products, call, on_chip)


def _bfloat16(budget: float, size: int = 8192) -> float | None:
    """FLOP/s of PyTorch's product, where PyTorch is there."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    a = torch.full((size, size), 0.5, dtype=torch.bfloat16, device="cuda")

    def product() -> None:
        a @ a
        torch.cuda.synchronize()

    return 2 * size**3 / shortest(product, budget, time.perf_counter)


def shortest(work: Callable[[], object], budget: float, clock: Clock) -> float:
    """Seconds of the fastest of at least three runs, after one to warm up."""
    work()
    times: list[float] = []
    stop = clock() + budget
    while len(times) < 3 or clock() < stop:
        begin = clock()
        work()
        times.append(clock() - begin)
    return min(times)


# -- the machine ----------------------------------------------------------------------


def last_level_cache(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Bytes of all last-level caches together, 0 where Linux does not say."""
    caches: dict[tuple[int, str], int] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, shared, size = (
                (index / name).read_text().strip() for name in ("level", "shared_cpu_list", "size")
            )
            caches[int(level), shared] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def free_memory(device: DeviceType) -> int | None:
    """Bytes that can still be taken, None where nobody says."""
    if device == "cuda":
        from cuda.bindings import driver

        from ..cuda.runtime import runtime

        runtime().use()
        error, free, _ = driver.cuMemGetInfo()
        return None if int(error) else int(free)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable")]
    return int(found[0]) * 1024 if found else None
