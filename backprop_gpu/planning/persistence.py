"""How the persistent CUDA kernel is cut to a network: tiles, blocks, scratch memory, time.

`planning` asks here how long a step would take with all blocks of a device at work on it. Pure
functions. The names are those of ``kernels/cuda/persistent.cu``.

The time of a step is predicted phase by phase, each the tiles of one product, from the bytes that
they take from the L2 cache, the multiply-adds of tensor cores and what fragments issue. The
constants are estimates: no record has measured them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import ceil

from . import products
from .device import Device

#: What a tile may be, in rows and in columns of a product.
EXTENTS = (16, 32, 64)
THREADS = 256
#: Layers whose sizes the kernel has room for.
MOST_LAYERS = 64
#: Slices of a product's sum that are on their way or in use, of 2048 numbers of each factor.
BUFFERS = 4

#: Bytes a cycle that a multiprocessor takes from the L2 cache, and that all of them do together.
L2_BYTES = 64
L2_BYTES_OF_ALL = 2600
#: Bytes that the L2 cache keeps from step to step; what is more comes from memory.
L2_SIZE = 32 << 20
#: Cycles until a phase's first slices are there; in which its epilogue reads and writes; and of a
#: barrier of the grid.
FIRST, EPILOGUE, MEETING = 600, 500, 1600
#: Cycles of C and BP1 of 16 rows, whose outputs 16 lanes each share.
OUTPUTS = 500
#: Share of its busiest unit's rate that a block of eight warps reaches.
EFFICIENCY = 0.55
SCHEDULERS = 4
#: Instructions of a number of a fragment: its read, and how it is rounded.
FRAGMENT = {"float32": 6, "tf32": 2, "bf16": 2}


@dataclass(frozen=True)
class Persistence:
    """A specialisation of the persistent kernel.

    ``stored`` are the bytes of a number of X in device memory. Tiles of ``forward``, of BP2
    (``error``) and of BP4 (``gradient``) are so many rows and columns, and decide the order of
    sums, so none depends on how many networks train at once, or on how X is stored. There are at
    most ``grid`` blocks; ``shared_memory`` is a block's, in bytes.
    """

    sizes: tuple[int, ...]
    precision: str
    stored: int
    batch: int
    forward: int
    error: int
    gradient: int
    grid: int
    shared_memory: int

    def phases(self, device: Device, members: int = 1) -> tuple[tuple[str, int], ...]:
        """The cycles that each part of a step is expected to take, of so many networks."""
        return tuple(_phases(self, device, members))

    def seconds(self, device: Device, members: int = 1) -> float:
        """What so many networks are expected to take for a step."""
        cycles = sum(cycles for _, cycles in self.phases(device, members))
        parameters = members * sum(k * n + n for k, n in pairwise(self.sizes)) * 4
        beyond = 5 * parameters if parameters > L2_SIZE else 0  # read three times, and changed
        rows = members * self.batch * (self.sizes[0] * self.stored + 4 * self.sizes[-1])
        return max(cycles / device.clock, (beyond + rows) / device.bandwidth)

    def of_tiles(self, forward: int, error: int, gradient: int) -> Persistence:
        """The same with other tiles."""
        return replace(
            self, forward=forward, error=error, gradient=gradient,
            shared_memory=block_bytes(forward, error, gradient),
        )  # fmt: skip

    def blocks_for(self, members: int) -> int:
        """Blocks that so many networks have work for."""
        m, most = self.batch, 0
        for k, n in pairwise(self.sizes):
            most = max(most, _tiles(m, n, self.forward), _tiles(m, k, self.error))
        gradients = sum(_tiles(n, k, self.gradient) for k, n in pairwise(self.sizes))
        return min(self.grid, members * max(most, gradients + 1))

    def obstacle(
        self, sizes: Sequence[int], m: int, itemsize: int, device: Device, precision: str
    ) -> str | None:
        """Why mini-batches of m rows cannot be trained so on a device, if they cannot."""
        sound = (
            self.sizes == tuple(sizes)
            and (self.batch, self.precision) == (m, precision)
            and itemsize == 4
            and self.stored in (1, 4)
            and len(sizes) - 1 <= MOST_LAYERS
            and {self.forward, self.error, self.gradient} <= set(EXTENTS)
            and self.grid > 0
            and self.shared_memory == block_bytes(self.forward, self.error, self.gradient)
        )
        if not sound:
            return f"the kernel has no such form for {m} rows: {self}"
        held = self.grid <= device.multiprocessors and _holds(self.shared_memory, device)
        if not device.multiplies_rounded or not held:
            return f"{device.name} does not hold {self}"
        return None

    def __str__(self) -> str:
        rows = ", X read as uint8" if self.stored == 1 else ""
        return (
            f"at most {self.grid} blocks of {THREADS} threads, tiles of {self.forward} forward, "
            f"{self.error} for BP2 and {self.gradient} for BP4{rows}"
        )


def choose(sizes: Sequence[int], batch: int, device: Device, precision: str) -> Persistence | str:
    """The fastest specialisation for one network, or why there is none.

    Parameters
    ----------
    sizes : n_0 … n_L
    batch : int
        m.
    device : Device
    precision : {"float32", "tf32", "bf16"}
    """
    if not device.multiplies_rounded:
        return f"{device.name} has no tensor cores for it"
    if not device.tensor_cores:
        return "its tensor cores have failed their check"
    if len(sizes) - 1 > MOST_LAYERS:
        return f"{len(sizes) - 1} layers are more than {MOST_LAYERS}"
    return _choose(tuple(sizes), batch, device, precision)


@lru_cache(maxsize=256)
def _choose(
    sizes: tuple[int, ...], batch: int, device: Device, precision: str
) -> Persistence | str:
    def fastest(a_by_sum: bool, b_by_sum: bool, cycles: Callable[[int], float]) -> int:
        fitting = (e for e in EXTENTS if _holds(_product_bytes(e, a_by_sum, b_by_sum), device))
        return min(fitting, key=cycles, default=0)

    def phase(extent: int, tiles: int, k: int) -> float:
        return _phase(extent, tiles, k, device, precision, device.multiprocessors)

    layers = list(pairwise(sizes))
    forward = fastest(
        True, True, lambda e: sum(phase(e, _tiles(batch, n, e), k) for k, n in layers)
    )
    error = fastest(
        True, False, lambda e: sum(phase(e, _tiles(batch, k, e), n) for k, n in layers[1:])
    )
    gradient = fastest(
        False, False, lambda e: phase(e, sum(_tiles(n, k, e) for k, n in layers), batch)
    )
    if not (forward and error and gradient):
        least = block_bytes(*[EXTENTS[-1]] * 3)
        return f"a block needs {ceil(least / 1024)} KB of shared memory, and the device has less"
    return Persistence(
        sizes, precision, 4, batch, forward, error, gradient, device.multiprocessors,
        block_bytes(forward, error, gradient),
    )  # fmt: skip


def _holds(shared_memory: int, device: Device) -> bool:
    """Beside what the kernel has statically: the sizes of layers, and sums of BP3."""
    return shared_memory + 64 * (MOST_LAYERS + 1) + 4 * THREADS <= device.shared_memory


def block_bytes(forward: int, error: int, gradient: int) -> int:
    """Bytes of ``Shared`` in ``persistent.cu``, the largest of three products'."""

    return max(
        _product_bytes(forward, True, True),
        _product_bytes(error, True, False),
        _product_bytes(gradient, False, False),
    )


def _product_bytes(extent: int, a_by_sum: bool, b_by_sum: bool) -> int:
    """Of slices of A and of B, each with its lines along the sum or across it."""
    steps = 2048 // extent
    along, across = 4 * extent * (steps + 4), 4 * steps * (extent + 8)
    slices = BUFFERS * sum(along if by_sum else across for by_sum in (a_by_sum, b_by_sum))
    sharers = {16: 8, 32: 4, 64: 2}[extent]
    return max(slices, 4 * sharers * extent * (extent + 8))


def _tiles(m: int, n: int, extent: int) -> int:
    return ceil(m / extent) * ceil(n / extent)


def _phases(form: Persistence, device: Device, members: int) -> Iterator[tuple[str, int]]:
    m, grid = form.batch, form.blocks_for(members)

    def product(extent: int, tiles: int, k: int) -> int:
        return round(_phase(extent, tiles * members, k, device, form.precision, grid))

    layers = list(enumerate(pairwise(form.sizes), start=1))
    for l, (k, n) in layers:
        yield f"forward layer {l}", product(form.forward, _tiles(m, n, form.forward), k)
    tiles = ceil(m / form.forward)
    rows = ceil(tiles * members / grid) * OUTPUTS * form.forward / 16
    yield "C and BP1", round(rows + (MEETING if form.sizes[-1] > form.forward else 0))
    for l, (k, n) in reversed(layers[1:]):
        yield f"BP2 layer {l - 1}", product(form.error, _tiles(m, k, form.error), n)
    tiles = sum(_tiles(n, k, form.gradient) for _, (k, n) in layers)
    yield "BP3, BP4 and update", product(form.gradient, tiles, m)


def _phase(extent: int, tiles: int, k: int, device: Device, precision: str, grid: int) -> float:
    """Cycles of so many tiles, each a product over k, on `grid` blocks, and of the barrier."""
    turns, bytes_of_tile = ceil(tiles / grid), 2 * extent * k * 4
    steps = 2048 // extent
    padded = k if precision == "float32" and k < products.LONG_SUM else ceil(k / steps) * steps
    macs = extent * extent * padded
    lanes = 2.0 * device.multiprocessors * device.clock
    if padded < products.LONG_SUM and precision == "float32":
        computing = macs / (device.rate(4) / lanes) * 2  # and as many loads
    else:
        # A warp's part of the tile, in matrices of mma, and what it issues for eight steps.
        rows, columns = {16: (1, 2), 32: (1, 4), 64: (2, 4)}[extent]
        parts = extent * extent // (rows * columns * 128)
        numbers = 4 * rows + 2 * columns
        mma = rows * columns * (3 if precision == "float32" else 1)
        issued = padded / 8 * parts * (numbers * FRAGMENT[precision] + mma)
        computing = max(macs / (device.mma_rate(precision) / lanes), issued / SCHEDULERS)
    moving = max(turns * bytes_of_tile / L2_BYTES, tiles * bytes_of_tile / L2_BYTES_OF_ALL)
    busy = max(turns * computing / EFFICIENCY, moving)
    return busy + turns * EPILOGUE + FIRST + MEETING
