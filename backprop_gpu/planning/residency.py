"""How the resident CUDA kernel is cut to a network: threads, blocks, tiles, shared memory, time.

`planning` asks here whether an epoch fits on a multiprocessor, or on the few of a cluster, and how
long a step would take there. Pure functions. The names are those of ``kernels/cuda/resident.cu``
and ``resident.cuh``, where the same bytes are counted again by the compiler.

The form (threads, blocks, tiles) may depend on how many networks train at once. What a network
computes does not, to the bit: each sum has one order, which only `slices` decides, and `slices`
looks at nothing but the layer.

The time of a step is predicted from what its phases issue: fused multiply-adds over the lanes,
instructions over the four schedulers, wavefronts of 128 bytes over the one path to shared memory,
and the latency of a phase, a barrier included. The constants are estimates until a record in
``benchmarks/results`` replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, product
from math import ceil

from .device import Device

THREADS = (64, 128, 192, 256, 320, 384, 448, 512)
#: What a thread's tile may be, in rows and in outputs of a forward pass; in rows of BP2; in weights
#: of the update.
TILES = (1, 2, 3, 4, 5, 6, 8)
ERROR_TILES = (1, 2, 4, 8)
UPDATE_TILES = (1, 2, 4, 8, 16)
#: Blocks of a cluster: 16 only where a kernel may ask for more than every device has to allow.
CLUSTERS = (1, 2, 4, 8, 16)
PORTABLE_CLUSTER = 8
LARGE_CLUSTERS = ((9, 0), (10, 0), (10, 3))
#: Blocks of a network that are no cluster, and write to each other through device memory.
APART = (2, 4, 8)
#: Batches that are on their way or in use, where there is room.
STAGES = (3, 2)
#: Parts of a sum, at most, and the numbers that all parts of a layer may take: the first layer's
#: are spread over a cluster, and the more of them, the larger it may be.
SLICES = 16
FIRST_PARTS = 1 << 15
PARTS = 1 << 13

SCHEDULERS = 4
#: Share of the peak that a phase's busiest unit reaches: on an H200, as PHASE, by the record of
#: 2026-11-26 (``backprop_gpu.benchmarks.gpu_constants``).
EFFICIENCY = 0.36
#: Cycles of a phase until its first result, with the barrier behind it.
PHASE = 190
#: The same of a cluster, an estimate: twice a store through distributed shared memory, 250 cycles,
#: and a look that finds it, 100; and how much longer a phase took than predicted.
EXCHANGE = 1100
#: Of blocks that are no cluster: letters on their way to the L2 cache, 300 cycles, then a look that
#: comes too early by half of its time, on average, and one that finds them, 600 each; and the bytes
#: per cycle that a look reads from the cache.
LETTERS = 1200
LETTER_BYTES = 64
#: Registers that a thread needs beside its tile.
REGISTERS = 72


@dataclass(frozen=True)
class LayerTiles:
    """A layer's numbers, in the order of ``Layer`` in ``resident.cuh``."""

    n: int
    x: int
    j: int
    slices: int
    xb: int
    ju: int


@dataclass(frozen=True)
class Residency:
    """A specialisation of the resident kernel, and the time it is expected to take.

    ``stored`` are the bytes of a number of X in device memory, ``slots`` the numbers of optimizer
    state per parameter; ``shared_memory`` is a block's, in bytes; ``cycles`` a step's, by phase;
    ``seconds`` are what all ``members`` take for a step, those that wait for a multiprocessor
    included. The ``blocks`` of a network are a cluster unless they are ``apart``; ``at_once`` are
    the networks that the device can run at a time.
    """

    inputs: int
    itemsize: int
    stored: int
    batch: int
    threads: int
    blocks: int
    stages: int
    shared_memory: int
    layers: tuple[LayerTiles, ...]
    cycles: tuple[tuple[str, int], ...] = field(compare=False)
    seconds: float = field(compare=False)
    apart: bool
    at_once: int
    slots: int
    members: int = field(compare=False)

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return 1 if self.apart else self.blocks

    def seconds_for(self, members: int) -> float:
        """Seconds that so many networks take for a step."""
        return self.seconds / ceil(self.members / self.at_once) * ceil(members / self.at_once)

    def obstacle(
        self, sizes: Sequence[int], rows: int, itemsize: int, device: Device
    ) -> str | None:
        """Why mini-batches of so many rows cannot be trained so on a device, if they cannot."""
        slices = tuple(layer.slices for layer in self.layers)
        sound = (
            (self.inputs, *(layer.n for layer in self.layers)) == tuple(sizes)
            and (self.batch, self.itemsize) == (rows, itemsize)
            and self.stored in (1, itemsize)
            and self.slots in range(3)
            and self.stages in STAGES
            and self.threads in THREADS
            and self.blocks in (APART if self.apart else CLUSTERS)
            and all(count > 0 and SLICES % count == 0 for count in slices)
            and slices[0] >= self.blocks
            and all(layer.x in TILES and layer.j in TILES for layer in self.layers)
            and all(layer.xb in ERROR_TILES for layer in self.layers)
            and all(layer.ju in UPDATE_TILES for layer in self.layers)
            and min(self.at_once, self.members) >= 1
            and self.shared_memory
            == block_bytes(
                sizes, rows, itemsize, self.slots, self.blocks, self.stages, slices, self.stored,
                self.apart,
            )
        )  # fmt: skip
        if not sound:
            return f"the kernel has no such form for {rows} rows: {self}"
        at_once = _at_once(device, self.blocks, self.apart)
        too_many = self.at_once > at_once if self.apart else at_once < 1
        if too_many or self.shared_memory > device.shared_memory:
            return f"{device.name} does not hold {self}"
        return None

    @property
    def letters(self) -> int:
        """Letters, of 8 bytes each, in which a network's blocks write to each other."""
        first = self.layers[0]
        return 2 * first.slices * self.batch * first.n * self.itemsize // 4 if self.apart else 0

    @property
    def step_cycles(self) -> int:
        return sum(cycles for _, cycles in self.cycles)

    def __str__(self) -> str:
        blocks = "one block" if self.blocks == 1 else f"a cluster of {self.blocks} blocks"
        if self.apart:
            blocks = f"{self.blocks} blocks that meet in device memory,"
        rows = ", rows of X read as uint8" if self.stored == 1 else ""
        return f"{blocks} of {self.threads} threads, {_kilobytes(self.shared_memory)} KB each{rows}"


def choose(
    sizes: Sequence[int],
    batch: int,
    itemsize: int,
    slots: int,
    device: Device,
    members: int = 1,
    stored: int | None = None,
    threads: tuple[int, ...] = THREADS,
    clusters: tuple[int, ...] | None = None,
    apart: tuple[int, ...] | None = None,
    cut: tuple[int, ...] | None = None,
) -> Residency | str:
    """The fastest specialisation that fits, or why there is none.

    How X is stored decides how a network is cut and never whether: else another engine could train
    on bytes than on the same numbers, and the results differ in their last bits.

    Parameters
    ----------
    sizes : n_0 … n_L
    batch : int
        m.
    itemsize : int
        Bytes of a number.
    slots : int
        Numbers of optimizer state per parameter.
    members : int
        Networks that train at once, a block or cluster each.
    stored : int, optional
        Bytes of a number of X in device memory: 1, of uint8, or `itemsize`. Where there is room
        for the numbers only, the result's ``stored`` is `itemsize` all the same.
    threads : tuple of int
        What to choose from; tests narrow it.
    clusters, apart : tuple of int, optional
        The same of a network's blocks, in a cluster and not: `CLUSTERS`, and `APART` where the
        device has no clusters; or where either is given no others.
    cut : tuple of int, optional
        A layer's slices, in place of `slices`: for tests of narrow ones.
    """
    if clusters is None and apart is None:
        # Where there are clusters they have been measured, and blocks apart have not.
        clusters, apart = CLUSTERS, APART if largest_cluster(device) == 1 else ()
    if cut is None:
        cut = all_slices(sizes, batch, itemsize)

    def fitting(stored: int) -> Residency | str:
        return choose_as_stored(
            tuple(sizes), batch, itemsize, slots, device, members, stored, threads,
            clusters or (), apart or (), cut,
        )  # fmt: skip

    found = fitting(itemsize)
    if stored is None or stored == itemsize or isinstance(found, str):
        return found
    read_as_stored = fitting(stored)
    return found if isinstance(read_as_stored, str) else read_as_stored


def all_slices(sizes: Sequence[int], batch: int, itemsize: int) -> tuple[int, ...]:
    """The slices of each layer, on a device and on a CPU: one order of the sums, and one result."""
    return tuple(
        slices(k, batch * n, itemsize, PARTS if l else FIRST_PARTS)
        for l, (k, n) in enumerate(pairwise(sizes))
    )


def slices(fan_in: int, outputs: int, itemsize: int, parts: int) -> int:
    """Into how many parts, 1 to 16, the sums over `fan_in` of `outputs` numbers are cut.

    ``parts`` is what they may be for all of the numbers together.
    """
    runs = ceil(fan_in * itemsize / 16)
    count = SLICES
    while count > 1 and (runs < 8 * count or count * outputs > parts):
        count //= 2
    return count


def largest_cluster(device: Device) -> int:
    """The largest cluster of the device, in blocks; 1 where it has none."""
    if device.compute_capability < (9, 0):
        return 1
    return SLICES if device.compute_capability in LARGE_CLUSTERS else PORTABLE_CLUSTER


def _at_once(device: Device, blocks: int, apart: bool) -> int:
    """How many networks of so many blocks the device runs at a time, at most."""
    if apart:
        return device.multiprocessors // blocks
    return device.clusters_at_once(blocks) if blocks <= largest_cluster(device) else 0


@lru_cache(maxsize=256)
def choose_as_stored(
    sizes: tuple[int, ...],
    batch: int,
    itemsize: int,
    slots: int,
    device: Device,
    members: int,
    stored: int,
    threads: tuple[int, ...],
    clusters: tuple[int, ...],
    apart: tuple[int, ...],
    cut: tuple[int, ...],
) -> Residency | str:
    """As `choose`, among those that read X with ``stored`` bytes per number."""
    ways = [(n, False) for n in clusters] + [(n, True) for n in apart]
    each = [(*way, _at_once(device, *way)) for way in ways if way[0] <= cut[0]]
    allowed = [way for way in each if way[2] > 0]
    found, least, read = [], 1 << 62, (sizes[0], itemsize, stored)
    for blocks, are_apart, at_once in allowed:
        for stages in STAGES:
            size = block_bytes(
                sizes, batch, itemsize, slots, blocks, stages, cut, stored, are_apart
            )
            least = min(least, size)
            if size <= device.shared_memory:
                for count in threads:
                    tiles, cycles = _Machine(device, count, itemsize).step(
                        sizes, batch, slots, blocks, cut, stored, are_apart
                    )
                    seconds = sum(c for _, c in cycles) / device.clock * ceil(members / at_once)
                    found.append(
                        Residency(
                            *read, batch, count, blocks, stages, size, tiles, cycles, seconds,
                            are_apart, at_once, slots, members,
                        )
                    )  # fmt: skip
                break
    if found:
        return min(found, key=lambda r: (r.seconds, r.blocks, r.threads))  # of equals, the smaller
    if not allowed:
        return f"neither a cluster of {clusters} blocks nor {apart} blocks at once are possible"
    most = max(blocks for blocks, *_ in allowed)
    where = f"each of {most} blocks" if most > 1 else "one block"
    state = ", optimizer state" if slots else ""
    return (
        f"weights{state}, activations and batches of {batch} need {_kilobytes(least)} KB of shared "
        f"memory in {where}, and the device has {_kilobytes(device.shared_memory)} KB a block"
    )


def _kilobytes(size: int) -> int:
    return ceil(size / 1024)


def block_bytes(
    sizes: Sequence[int],
    batch: int,
    itemsize: int,
    slots: int,
    blocks: int,
    stages: int,
    cut: Sequence[int],
    stored: int,
    apart: bool,
) -> int:
    """Bytes of ``Shared`` in ``resident.cu``, a block's shared memory."""

    def row(runs: int) -> int:
        return (runs | 1) * 16

    def whole(size: int) -> int:
        return ceil(size / 16) * 16

    columns = _block_runs(sizes[0], itemsize, blocks, cut[0])
    total, parts = 0, 0
    for l, (k, n) in enumerate(pairwise(sizes)):
        held = columns if l == 0 else ceil(k * itemsize / 16)
        total += (1 + slots) * n * row(held) + whole((1 + slots) * n * itemsize)
        total += batch * (row(ceil(n * itemsize / 16)) + ceil(n / 16) * 16 * itemsize)
        if cut[l] > 1 and not (l == 0 and blocks > 1):
            parts = max(parts, cut[l] * batch * n)
    fetched = columns
    if stored < itemsize:
        total += batch * row(columns)
        aligned = 16 // stored - 16 // itemsize if blocks > 1 else 0
        fetched = ceil((columns * 16 // itemsize + aligned) * stored / 16)
    of_rows = batch * row(fetched) + whole(batch * sizes[-1] * itemsize) + whole(batch * itemsize)
    stage = of_rows + 6 * 8
    first = batch * sizes[1]
    if blocks == 1:
        exchange = 16
    elif apart:
        exchange = whole(cut[0] // blocks * first * itemsize)
    else:
        exchange = whole((2 * cut[0] * ceil(first / blocks) + first) * itemsize) + 16
    return total + stages * stage + whole(parts * itemsize) + 16 + exchange


def _block_runs(inputs: int, itemsize: int, blocks: int, cut: int) -> int:
    """Runs of 16 bytes in a row of w[1] that a block has: those of its slices."""
    runs = ceil(inputs * itemsize / 16)
    return runs if blocks == 1 else cut // blocks * ceil(runs / cut)


class _Machine:
    """What a phase costs a multiprocessor, for one number of threads and one dtype, in cycles."""

    def __init__(self, device: Device, threads: int, itemsize: int) -> None:
        self.threads, self.itemsize = threads, itemsize
        self.per_run = 16 // itemsize
        self.lanes = device.rate(itemsize) / (2.0 * device.multiprocessors * device.clock)
        self.registers = min(255, 65536 // threads // 8 * 8)

    def step(
        self,
        sizes: tuple[int, ...],
        batch: int,
        slots: int,
        blocks: int,
        cut: Sequence[int],
        stored: int,
        apart: bool,
    ) -> tuple[tuple[LayerTiles, ...], tuple[tuple[str, int], ...]]:
        """The fastest tiles, and the cycles of each phase."""
        layers, cycles = [], []
        updates = 0.0
        if stored < self.itemsize:
            # A conversion takes the place of two instructions; 512 bytes of a warp are written.
            runs = batch * _block_runs(sizes[0], self.itemsize, blocks, cut[0])
            converted = self.phase(runs, 0, 2 * self.per_run + 12, 5)
            cycles.append(("X from uint8", round(converted + PHASE)))
        for l, (k, n) in enumerate(pairwise(sizes)):
            split = l == 0 and blocks > 1
            runs = ceil(k * self.itemsize / 16)
            turns = ceil(runs / cut[l])
            held = _block_runs(k, self.itemsize, blocks if split else 1, cut[l])
            x, j, forward = self.forward(batch, n, turns, cut[l] // (blocks if split else 1))
            if cut[l] > 1:
                forward += self.phase(batch * n, 0, 2 * cut[l] + 20, cut[l])
                if split and not apart:  # of what a block has added, all get their copies
                    forward += self.phase(batch * n, 0, 20, 1)
                forward += PHASE if not split else LETTERS if apart else EXCHANGE
                if split and apart:
                    received = (cut[l] - cut[l] // blocks) * batch * n * 2 * self.itemsize
                    forward += 1.5 * received / LETTER_BYTES
            ju, update = self.update(batch, n, held, slots)
            updates += update
            cycles.append((f"forward layer {l + 1}", round(forward + PHASE)))
            xb = 1
            if l + 2 < len(sizes):
                xb, error = self.error(batch, n, sizes[l + 2])
                cycles.append((f"BP2 layer {l + 1}", round(error + PHASE)))
            layers.append(LayerTiles(n, x, j, cut[l], xb, ju))
        # σ, c and their slopes take a hundred instructions, and wait for each other.
        outputs = self.phase(batch * sizes[-1], 0, 100, 10)
        cycles.append(("C and BP1", round(outputs + PHASE)))
        cycles.append(("BP3, BP4 and update", round(updates + 2 * PHASE)))
        return tuple(layers), tuple(cycles)

    def phase(self, units: int, fmas: float, others: float, wavefronts: float) -> float:
        """Cycles of `units` pieces of work, each one thread's; the rest is what a warp issues."""
        warps, rounds = ceil(units / 32), ceil(units / self.threads)
        busiest = max(
            warps * fmas * 32 / self.lanes,
            warps * (fmas + others) / SCHEDULERS,
            warps * wavefronts,
        )
        # A warp alone issues at most every other cycle: its results depend on each other.
        alone = rounds * (fmas * max(1.0, 32 * SCHEDULERS / self.lanes) + others) * 1.5
        return max(busiest / EFFICIENCY, alone)

    def _fits(self, numbers: int) -> bool:
        """Whether a tile of so many numbers stays in registers."""
        return numbers * self.itemsize // 4 + REGISTERS <= self.registers

    def forward(self, batch: int, n: int, turns: int, parts: int) -> tuple[int, int, float]:
        """(X, J, cycles) of `parts` slices of `turns` runs each."""
        candidates = []
        for x, j in product(TILES, repeat=2):
            if (x > 1 and x > batch) or (j > 1 and j > n):
                continue
            if x * j > 1 and not self._fits(x * j + (x + j) * self.per_run):
                continue
            x_tiles, j_tiles = ceil(batch / x), ceil(n / j)
            tiles = x_tiles * j_tiles
            # Addresses that differ within a warp, and so the wavefronts of a load.
            in_warp = min(parts, max(1, 32 // tiles))
            of_w = min(32, min(j_tiles, 32) * in_warp)
            of_a = min(32, min(x_tiles, ceil(32 / j_tiles)) * in_warp)
            cycles = self.phase(
                tiles * parts,
                turns * x * j * self.per_run,
                turns * (x + j + 4) + x * j * 3,
                turns * (x * ceil(of_a / 8) + j * ceil(of_w / 8)) + x * j * (1 + (parts > 1)),
            )
            candidates.append((cycles, x, j))
        cycles, x, j = min(candidates)
        return x, j, cycles

    def error(self, batch: int, n: int, next_n: int) -> tuple[int, float]:
        """The (XB, cycles) of BP2."""
        runs = ceil(n / self.per_run)
        candidates = []
        for xb in ERROR_TILES:
            if xb == 1 or (xb <= batch and self._fits((xb + 4) * self.per_run)):
                cycles = self.phase(
                    ceil(batch / xb) * runs,
                    next_n * xb * self.per_run,
                    next_n * (1 + xb) + 12 * xb * self.per_run,
                    next_n * (ceil(min(32, runs) / 8) + xb),
                )
                candidates.append((cycles, xb))
        cycles, xb = min(candidates)
        return xb, cycles

    def update(self, batch: int, n: int, runs: int, slots: int) -> tuple[int, float]:
        """The (JU, cycles) of the update."""
        candidates = []
        for ju in UPDATE_TILES:
            if ju == 1 or self._fits(ju * self.per_run + ju + 3 * self.per_run):
                reads, moved = ceil(ju / self.per_run), 2 * (1 + slots) * ju
                rule = (3, 5, 40)[slots]  # Adam divides and takes a root
                cycles = self.phase(
                    ceil(n / ju) * runs,
                    batch * ju * self.per_run,
                    batch * (2 + reads) + moved + rule * ju * self.per_run,
                    batch * (4 + reads) + 4 * moved,
                )
                candidates.append((cycles, ju))
        cycles, ju = min(candidates)
        return ju, cycles
