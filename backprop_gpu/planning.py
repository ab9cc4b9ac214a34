"""The one place that chooses: backend, engine, kernel, tile and split.

Pure functions of a description (sizes, batch, dtype, device), each answer with
its reason, so that every choice can be tested on a machine without a device.
Nothing else in the package looks at a shape to decide something.

How the resident kernel is cut to a network, and how fast it is then, is in `residency`.
The choice of a product's kernel rests on a time predicted from operations,
bytes and launches (`Product.seconds`). The efficiencies below are estimates
until a record in ``benchmarks/results`` replaces them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from . import residency, validation
from .residency import Residency

Layout = Literal["NT", "NN", "TN"]

#: Seconds that the resident engine costs a process before its first step, from Numba's cache:
#: the recorded warm first steps, 0.7–0.8 s with the 0.2 s that NumPy's take too.
LOADING = 0.7
#: Seconds that building the resident kernel of a network takes, the first time on a machine.
BUILDING = 1.5

#: Rows that `predict` and `loss` push through the network at a time: enough to
#: fill a device, few enough that the activations stay small beside the data.
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Device:
    """What the planner needs to know of a CUDA device.

    ``clock`` is in Hz, ``bandwidth`` in bytes/s, ``shared_memory`` in bytes a block.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    clock: float
    bandwidth: float
    shared_memory: int = 48 * 1024
    #: Whether cuBLAS is installed.
    library: bool = True
    #: (blocks of a cluster, such clusters at once) where each block has all of `shared_memory`.
    #: Sizes that are not told take no more than the multiprocessors do.
    clusters: tuple[tuple[int, int], ...] = ()

    def clusters_at_once(self, size: int) -> int:
        """How many clusters of `size` blocks the device holds, each with a block's whole memory."""
        return dict(self.clusters).get(size, self.multiprocessors // size)

    def rate(self, itemsize: int) -> float:
        """Multiply-adds on the plain cores, in FLOP/s, for 4- or 8-byte floats."""
        major = self.compute_capability[0]
        single, double = _LANES.get(self.compute_capability) or _LANES.get((major, 0), (128, 2))
        lanes = single if itemsize == 4 else double
        return 2.0 * lanes * self.multiprocessors * self.clock

    def library_rate(self, itemsize: int) -> float:
        """What cuBLAS can reach: as `rate`, but float64 has tensor cores on 8.0, 9.0 and 10.0."""
        tensor = itemsize == 8 and self.compute_capability in ((8, 0), (9, 0), (10, 0))
        return self.rate(itemsize) * (2.0 if tensor else 1.0)


#: (float32, float64) lanes a multiprocessor, by compute capability (CUDA C++ Programming
#: Guide, table of arithmetic throughput). An unlisted minor version uses its major's .0,
#: an unlisted major one what most have, (128, 2).
_LANES: dict[tuple[int, int], tuple[int, int]] = {
    (7, 0): (64, 32), (7, 5): (64, 2),
    (8, 0): (64, 32), (8, 6): (128, 2), (8, 9): (128, 2),
    (9, 0): (128, 64), (10, 0): (128, 64), (10, 3): (128, 2), (11, 0): (128, 2),
    (12, 0): (128, 2), (12, 1): (128, 2),
}  # fmt: skip

#: A stand-in for plans on machines without a device.
H200 = Device(
    "NVIDIA H200", (9, 0), 132, 1.98e9, 4.3e12, 227 * 1024,
    clusters=((1, 132), (2, 66), (4, 30), (8, 15), (16, 7)),
)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """A block computes bm × bn of the result, bk of the sum at a time; a thread tm × tn."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    #: Share of the plain rate that a full machine of such blocks reaches, estimated.
    efficiency: float

    @property
    def threads(self) -> int:
        return (self.bm // self.tm) * (self.bn // self.tn)

    def __str__(self) -> str:
        return f"{self.bm}x{self.bn}x{self.bk}"


TILES: tuple[Tile, ...] = (
    Tile(128, 128, 8, 8, 8, 0.80),
    Tile(64, 64, 16, 4, 4, 0.60),
    Tile(32, 32, 32, 2, 4, 0.30),
    Tile(16, 32, 32, 2, 2, 0.15),
)
#: The split counts that are tried where a product's sum is long and its result small.
SPLITS = (1, 2, 4, 8, 16, 32, 64)

#: Seconds that the shortest kernel of ours, and of cuBLAS, takes inside a CUDA graph.
LAUNCH = 2.0e-6
LIBRARY_LAUNCH = 4.0e-6
LIBRARY_EFFICIENCY = 0.92
LIBRARY_TILE = 128
#: The latency of each step of a sum in our kernels: a trip to memory, and a barrier.
SUM_STEP = 0.4e-6


@dataclass(frozen=True)
class Product:
    """How one matrix product of the equations is carried out."""

    kernel: Literal["fused", "cublas"]
    tile: Tile | None
    splits: int
    seconds: float
    reason: str


@lru_cache(maxsize=4096)
def product(
    layout: Layout, m: int, n: int, k: int, itemsize: int, device: Device, library: bool = True
) -> Product:
    """The kernel for an (m, n) result summed over k.

    Parameters
    ----------
    layout : "NT" (forward), "NN" (BP2) or "TN" (BP4)
        Only BP4, whose sum runs over the batch, may split it: the other two end
        in an epilogue that is not linear.
    library : bool
        Whether cuBLAS is there to be chosen.
    """
    candidates = [
        _fused(tile, splits, m, n, k, itemsize, device)
        for tile in reversed(TILES)  # of equals, min takes the first: the smaller tile
        for splits in (SPLITS if layout == "TN" else (1,))
        if splits == 1 or k // splits >= tile.bk
    ]
    fused = min(candidates, key=lambda c: c.seconds)
    if not library:
        return _because(fused, "fused kernel: no cuBLAS on this backend")
    cublas = _cublas(layout, m, n, k, itemsize, device)
    us = f"{fused.seconds * 1e6:.1f} µs against {cublas.seconds * 1e6:.1f} µs"
    if fused.seconds <= cublas.seconds:
        return _because(fused, f"fused kernel, predicted {us} for cuBLAS and a map")
    return _because(cublas, f"cuBLAS and a map, predicted faster: fused kernel {us}")


def column_splits(m: int, n: int, device: Device) -> int:
    """Into how many parts BP3 splits the m rows of an (m, n) column sum.

    Enough that its blocks (32 columns each) are twice the multiprocessors, and no more
    than leaves each of a block's eight warps 16 rows.
    """
    wanted = math.ceil(2 * device.multiprocessors / math.ceil(n / 32))
    return max(1, min(wanted, m // 128, 64))


def _because(choice: Product, reason: str) -> Product:
    return Product(choice.kernel, choice.tile, choice.splits, choice.seconds, reason)


def _fused(
    tile: Tile, splits: int, m: int, n: int, k: int, itemsize: int, device: Device
) -> Product:
    blocks = math.ceil(m / tile.bm) * math.ceil(n / tile.bn) * splits
    waves = math.ceil(blocks / device.multiprocessors)
    steps = math.ceil(math.ceil(k / splits) / tile.bk)
    flops = 2.0 * tile.bm * tile.bn * tile.bk * steps * waves
    seconds = LAUNCH + flops / (tile.efficiency * device.rate(itemsize) / device.multiprocessors)
    seconds += steps * SUM_STEP
    if splits > 1:
        seconds += LAUNCH + 2.0 * splits * m * n * itemsize / device.bandwidth
    return Product("fused", tile, splits, seconds, "")


def _cublas(layout: Layout, m: int, n: int, k: int, itemsize: int, device: Device) -> Product:
    tiles = math.ceil(m / LIBRARY_TILE) * math.ceil(n / LIBRARY_TILE)
    # The library splits long sums too, so small results do not leave the device idle; from
    # the second wave on, every wave is a whole one.
    waves = math.ceil(tiles / device.multiprocessors)
    paid = tiles if waves == 1 else waves * device.multiprocessors
    flops = 2.0 * min(m, LIBRARY_TILE) * min(n, LIBRARY_TILE) * k * paid
    seconds = LIBRARY_LAUNCH + flops / (LIBRARY_EFFICIENCY * device.library_rate(itemsize))
    if layout != "TN":  # the epilogue becomes a map that reads and writes the result
        seconds += LAUNCH + 2.0 * m * n * itemsize / device.bandwidth
    return Product("cublas", None, 1, seconds, "")


@dataclass(frozen=True)
class CpuWork:
    """How the CPU's resident engine divides a mini-batch.

    Each of ``parts`` sums its own gradient and is one thread's at a time; of a part, ``block``
    rows go through the network at a time.
    """

    block: int
    parts: int
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} threads" if self.threads > 1 else "one thread"
        return f"{threads}, blocks of {self.block} rows"


#: Of a core's own cache, bytes for the activations and errors of a block.
CPU_CACHE = 512 * 1024
#: Operations of a step below which the threads' waits cost more than they save.
CPU_SERIAL = 6e6
#: Bytes for the gradients of all parts.
CPU_GRADIENTS = 1 << 30


def cpu_work(sizes: Sequence[int], batch: int, itemsize: int, cores: int) -> CpuWork:
    """How a mini-batch of `batch` rows is divided; results depend on it, so the plan says it."""
    parts = _cpu_parts(sizes, batch, cores)
    parts = max(1, min(parts, CPU_GRADIENTS // _parameter_bytes(sizes, itemsize)))
    rows = math.ceil(batch / parts)
    fitting = max(32, min(256, CPU_CACHE // (2 * sum(sizes) * itemsize)))
    return CpuWork(math.ceil(rows / math.ceil(rows / fitting)), parts, parts)


def _cpu_parts(sizes: Sequence[int], batch: int, cores: int) -> int:
    return 1 if step_flops(sizes, batch) <= CPU_SERIAL else max(1, min(cores, batch // 8))


def _parameter_bytes(sizes: Sequence[int], itemsize: int) -> int:
    return itemsize * sum(n * (k + 1) for k, n in pairwise(sizes))


def cpu_obstacle(sizes: Sequence[int], batch: int, itemsize: int, cores: int) -> str | None:
    """Why a network is better trained by BLAS, which needs one gradient for all threads."""
    parts = _cpu_parts(sizes, batch, cores)
    if parts <= cpu_work(sizes, batch, itemsize, cores).parts:
        return None
    size = parts * _parameter_bytes(sizes, itemsize) / 2**30
    return f"a gradient for each of {parts} threads would take {size:.1f} GiB"


def steps_a_call(parameters: int, batch_size: int) -> int:
    """Steps that the resident engine runs before Python may look at Ctrl-C: about 0.1 s."""
    return max(1, int(1e10 / (6.0 * parameters * batch_size)))


def members_a_call(rows: int, steps: int) -> int:
    """Networks whose orders and coefficients of an epoch lie on the host at once: 1 GiB of them."""
    return max(1, (1 << 30) // (8 * rows + 32 * steps))


def choose_engine(
    requested: str, backend: str, obstacle: str | None, seconds: float
) -> tuple[str, str]:
    """(engine, reason). Never depends on what the process ran before: same run, same bits.

    Parameters
    ----------
    requested : "auto", "layered" or "resident"
    backend : str
    obstacle : str or None
        Why the resident engine cannot run this, if it cannot.
    seconds : float
        How long the layered engine is expected to train.

    Raises
    ------
    ValueError
        For an unknown name, or the resident engine where it cannot run, with the obstacle.
    """
    _check_engine(requested)
    if backend != "numpy":
        obstacle = f"it works on NumPy arrays, and the backend is {backend}"
    if requested == "layered":
        return "layered", "asked for"
    if requested == "resident":
        if obstacle is not None:
            raise ValueError(f"engine 'resident' cannot run this: {obstacle}")
        return "resident", "asked for"
    if backend != "numpy":
        return "layered", "one backend call an equation; the only engine of this backend so far"
    if obstacle is not None:
        return "layered", f"one backend call an equation; not resident, because {obstacle}"
    if seconds > LOADING:
        return "resident", "an epoch is one loop of compiled code"
    return (
        "layered",
        f"one backend call an equation; about {seconds:.1f} s of training do not repay loading "
        "the resident loop",
    )


def _check_engine(requested: str) -> None:
    validation.one_of("engine", requested, ("auto", "layered", "resident"))


def layered_seconds(sizes: Sequence[int], batch_size: int, rows: int, epochs: int) -> float:
    """How long the layered engine takes on a CPU core or two, roughly: calls and operations."""
    steps = epochs * math.ceil(rows / batch_size)
    weights = sum(k * n for k, n in pairwise(sizes))
    return steps * (20e-6 * len(sizes) + 6.0 * weights * batch_size / 5e10)


def _choose_on_device(
    sizes: Sequence[int],
    itemsize: int,
    device: Device,
    training: Training,
    obstacle: str | None,
) -> tuple[str, str]:
    """(engine, reason) for a CUDA device, as `choose_engine` for a CPU."""
    if training.engine == "layered":
        return "layered", "asked for"
    m, members = training.batch_size, training.members
    if obstacle is None and training.clips_norm:
        obstacle = "clip_norm needs the norm of all gradients before the first of them is used"
    cut: Residency | None = None
    if obstacle is None:
        found = residency.fit(sizes, m, itemsize, training.slots, device, members)
        cut, obstacle = (None, found) if isinstance(found, str) else (found, None)
    # What is chosen does not depend on how X is stored, and neither do the bits.
    if cut is None:
        if training.engine == "resident":
            raise ValueError(f"engine 'resident' cannot run this: {obstacle}")
        return "layered", f"one backend call an equation; not resident, because {obstacle}"
    layered = members * layered_step_seconds(sizes, m, itemsize, device)

    def predicted(cut: Residency) -> str:
        ours, theirs = f"{cut.seconds * 1e6:.1f} µs", f"{layered * 1e6:.0f} µs"
        of_all = f", of all {members} networks" if members > 1 else ""
        return f"predicted {ours} a step against {theirs}, layered{of_all}"

    saved = (layered - cut.seconds) * training.epochs * math.ceil(training.rows / m)
    if training.engine == "resident" or saved > BUILDING:
        stored = 1 if training.bytes else itemsize
        taken = residency.fit(sizes, m, itemsize, training.slots, device, members, stored)
        assert not isinstance(taken, str)
        asked = "asked for; " if training.engine == "resident" else ""
        return "resident", f"{asked}an epoch is one launch, {taken}; {predicted(taken)}"
    why = (
        f"would save {saved:.2f} s of training, less than building it takes"
        if saved > 0
        else "is not expected to be faster"
    )
    return "layered", f"one backend call an equation; the resident kernel {why} ({predicted(cut)})"


def layered_step_seconds(sizes: Sequence[int], batch: int, itemsize: int, device: Device) -> float:
    """How long the layered engine is expected to take for a step on a CUDA device."""
    seconds = 0.0
    for l, (k, n) in enumerate(pairwise(sizes)):
        shapes: list[tuple[Layout, int, int, int]] = [("TN", n, k, batch), ("NT", batch, n, k)]
        shapes += [("NN", batch, k, n)] if l else []
        chosen = [product(*shape, itemsize, device, device.library) for shape in shapes]
        seconds += sum(one.seconds for one in chosen)
        seconds += LAUNCH if chosen[0].tile is None else 0.0  # BP3, if not beside BP4
    return seconds + 5 * LAUNCH  # gather, C, BP1, update, advance


@dataclass(frozen=True)
class Choice:
    """A backend and why it was taken."""

    backend: str
    reason: str


def choose_backend(requested: str, obstacles: Mapping[str, str | None]) -> Choice:
    """The backend to use.

    Parameters
    ----------
    requested : str
        "auto" or a backend's name.
    obstacles : mapping
        For every known backend, why it cannot be used here, or None where it can.

    Raises
    ------
    ValueError
        For an unknown name, listing the known ones.
    RuntimeError
        For a backend that was asked for and cannot be used here, with the obstacle.
    """
    validation.one_of("backend", requested, ("auto", *obstacles))
    if requested == "auto":
        if obstacles["cuda"] is None:
            return Choice("cuda", "a CUDA device is usable")
        return Choice("numpy", f"cuda is not usable: {obstacles['cuda']}")
    obstacle = obstacles[requested]
    if obstacle is not None:
        raise RuntimeError(f"backend {requested!r} is not usable here: {obstacle}")
    return Choice(requested, "asked for")


@dataclass(frozen=True)
class Plan:
    """What `fit` will run, and why. ``str(plan)`` is meant to be read."""

    backend: str
    backend_reason: str
    engine: str
    engine_reason: str
    captured: bool
    products: tuple[tuple[str, Product], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"backend {self.backend}: {self.backend_reason}",
            f"engine {self.engine}: {self.engine_reason}",
        ]
        for equation, chosen in self.products:
            lines.append(f"  {equation}: {_describe(chosen)} ({chosen.reason})")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Work:
    """What one equation of a step asks of the machine."""

    label: str
    kernel: str
    #: Floating-point operations, a σ or c counted as one.
    flops: int
    #: Read and written, if nothing stays on the chip from the equation before.
    bytes: int


def step_work(
    sizes: Sequence[int], batch: int, itemsize: int, slots: int, plan: Plan
) -> tuple[Work, ...]:
    """The equations of one step in the order they run, each with the kernel that `plan` takes.

    Parameters
    ----------
    sizes : n_0 … n_L
    batch : int
        Rows of a mini-batch, m.
    itemsize : int
        Bytes of a number.
    slots : int
        Numbers of optimizer state a parameter.
    """
    products = {label: _describe(chosen) for label, chosen in plan.products}
    resident = plan.engine == "resident"
    library = "BLAS" if plan.backend == "numpy" else "our tiled product"
    other = "NumPy" if plan.backend == "numpy" else "a map"
    if resident:
        other = "the resident loop" if plan.backend == "numpy" else "the resident kernel"
    m, found = batch, []

    def product(label: str, rows: int, columns: int, summed: int, extra: int) -> None:
        kernel = products.get(label, other if resident else library)
        moved = rows * summed + summed * columns + rows * columns + extra
        found.append(Work(label, kernel, 2 * rows * columns * summed, moved * itemsize))

    def elementwise(label: str, flops: int, moved: int, kernel: str = other) -> None:
        found.append(Work(label, kernel, flops, moved * itemsize))

    layers = list(enumerate(pairwise(sizes), start=1))
    for l, (k, n) in layers:
        product(f"forward layer {l}", m, n, k, n)
    elementwise("BP1", 2 * m * sizes[-1], 3 * m * sizes[-1])
    for l, (k, n) in reversed(layers):
        if products.get(f"BP4 layer {l}", "").startswith("fused"):
            elementwise(f"BP3 layer {l}", m * n, n, "that of BP4")  # which reads δ
        else:
            elementwise(f"BP3 layer {l}", m * n, m * n + n)
        product(f"BP4 layer {l}", n, k, m, 0)
        if l > 1:
            product(f"BP2 layer {l - 1}", m, k, n, m * k)
    parameters = sum(k * n + n for k, n in pairwise(sizes))
    elementwise("update", 2 * parameters, (3 + 2 * slots) * parameters)
    return tuple(found)


def _describe(chosen: Product) -> str:
    tile = f" tile {chosen.tile}" if chosen.tile else ""
    split = f" split {chosen.splits}" if chosen.splits > 1 else ""
    return f"{chosen.kernel}{tile}{split}"


def step_flops(sizes: Sequence[int], batch: int) -> int:
    """Operations of a step's products: forward and BP4 over all weights, BP2 over all but w[1]."""
    weights = sum(k * n for k, n in pairwise(sizes))
    return 2 * batch * (3 * weights - sizes[0] * sizes[1])


def least_bytes(sizes: Sequence[int], batch: int, itemsize: int, on_chip: int = 0) -> int:
    """What a step moves at least: its rows, and the parameters twice if the chip cannot keep them.

    ``on_chip`` is in bytes.
    """
    parameters = sum(k * n + n for k, n in pairwise(sizes))
    kept = parameters * itemsize <= on_chip
    return itemsize * (batch * (sizes[0] + sizes[-1]) + (0 if kept else 2 * parameters))


@dataclass(frozen=True)
class Training:
    """A training run, as far as the choice of an engine depends on it."""

    rows: int
    epochs: int
    batch_size: int
    engine: str = "auto"
    #: Why the resident engine cannot run it, if it cannot.
    obstacle: str | None = None
    #: Networks that train at once.
    members: int = 1
    step_callbacks: bool = False
    user_cost: bool = False
    #: Numbers of optimizer state a parameter.
    slots: int = 0
    #: The optimizers' rules, as far as they are known.
    rules: frozenset[str] = frozenset()
    #: Whether gradients are clipped by their norm.
    clips_norm: bool = False
    #: Whether X is stored as uint8.
    bytes: bool = False


def plan(
    sizes: Sequence[int],
    itemsize: int,
    choice: Choice,
    device: Device | None,
    training: Training | None = None,
    cores: int = 1,
    algorithm: Callable[[Layout, int, int, int], str] | None = None,
) -> Plan:
    """The plan of a training run: which engine, which kernels, and why.

    Without `training` it is the plan of a network that has not been asked to train. ``cores``
    are those of the CPU. ``algorithm`` tells how the library forms an (m, n) product summed over k.
    """
    if training is None:
        reason = "one backend call an equation; `fit` chooses its own"
        return Plan(choice.backend, choice.reason, "layered", reason, captured=False)
    _check_engine(training.engine)
    obstacle = training.obstacle
    if training.step_callbacks:
        obstacle = "a callback after every batch needs Python between steps"
    if device is not None:
        engine, reason = _choose_on_device(sizes, itemsize, device, training, obstacle)
        if engine == "resident":
            return Plan(choice.backend, choice.reason, engine, reason, captured=False)
    else:
        slower = None
        if training.engine == "auto":
            slower = cpu_obstacle(sizes, training.batch_size, itemsize, cores)
        engine, reason = choose_engine(
            training.engine,
            choice.backend,
            obstacle or slower,
            training.members
            * layered_seconds(sizes, training.batch_size, training.rows, training.epochs),
        )
    if device is None:
        if engine == "resident" and training.members > 1:
            reason += f"; a thread a network, {min(cores, training.members)} at a time"
        elif engine == "resident":
            reason += f"; {cpu_work(sizes, training.batch_size, itemsize, cores)}"
        return Plan(choice.backend, choice.reason, engine, reason, captured=False)
    notes = []
    if training.user_cost:
        notes.append(
            "a user's cost runs as CuPy array operations, without CuPy as NumPy's on the host: "
            "steps are not captured"
        )
    if training.step_callbacks:
        notes.append("a callback after every batch: steps are launched one by one, not captured")
    captured = not notes
    if captured:
        notes.append("whole steps are captured in a CUDA graph and replayed")
    m = training.batch_size
    products = []
    for l, (fan_in, n) in enumerate(pairwise(sizes), start=1):
        shapes: list[tuple[str, Layout, int, int, int]] = [
            (f"forward layer {l}", "NT", m, n, fan_in),
            (f"BP4 layer {l}", "TN", n, fan_in, m),
        ]
        if l > 1:
            shapes.append((f"BP2 layer {l - 1}", "NN", m, fan_in, n))
        for label, layout, rows, columns, k in shapes:
            chosen = product(layout, rows, columns, k, itemsize, device, device.library)
            if chosen.tile is None and algorithm is not None:
                named = algorithm(layout, rows, columns, k)
                chosen = _because(chosen, f"{chosen.reason}; {named}")
            products.append((label, chosen))
    return Plan(
        choice.backend, choice.reason, engine, reason, captured, tuple(products), tuple(notes)
    )
