"""How the fused CUDA kernel is cut to a narrow network: rows, warps, shared memory, time.

`planning` asks here whether a network's weights and a tile of its activations fit on a
multiprocessor, and how long a step would take there. Pure functions. The names are those of
``kernels/cuda/fused.cu`` and ``fused.cuh``, where the same bytes are counted again by the compiler.

The time of a step is predicted from what a tile of rows issues: multiply-adds of tensor cores,
wavefronts of shared memory, instructions of σ and its like. The constants are estimates: no record
has measured them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from math import ceil

from ..activations import Activation
from . import products
from .device import Device

#: The widest layer, inputs included: of wider ones a warp's rows leave the registers.
WIDEST = 128
#: Rows of a tile, and (warps that share them, warps that share their columns).
ROWS = (256, 192, 128, 96, 64, 48, 32, 16)
WARPS = tuple(
    (along, across) for along in (8, 6, 4, 2, 1) for across in (1, 2, 4, 8) if along * across <= 16
)
#: Blocks that a multiprocessor holds.
BLOCKS = (1, 2)
#: Bytes of a factor as it lies in shared memory.
FACTOR_BYTES = {"float32": 4, "tf32": 4, "bf16": 2}

#: Warps of a multiprocessor with which its busiest unit reaches half of its peak: w reach
#: w / (w + this), since each waits for what it has asked for.
HALF_BUSY = 8
#: Cycles of a barrier, with what waits for its first result behind it.
BARRIER = 150
#: Instructions that a number of z or δ takes: σ, its slope, rounding, sums.
INSTRUCTIONS = 10
#: The same of a factor of Tf32 and Tf32x3 as it becomes part of a fragment.
ROUNDING = {"float32": 5, "tf32": 2, "bf16": 0}
#: Registers that a thread needs beside its sums.
REGISTERS = {"float32": 104, "tf32": 100, "bf16": 68}


@dataclass(frozen=True)
class Fusion:
    """A specialisation of the fused kernel, and the time it is expected to take.

    ``stored`` are the bytes of a number of X in device memory; ``slopes`` which hidden layers keep
    σ' beside a. A tile has ``rows``, which ``row_warps`` share, as ``column_warps`` do a layer's
    columns; of each layer's ∂C/∂w ``sharers`` of the warps share the rows, the others the columns.
    A multiprocessor holds ``blocks``, and a network has ``grid`` of them. ``shared_memory`` is a
    block's, in bytes; ``cycles`` a tile's.

    The order of a network's sums depends on ``rows`` and ``grid``, and so neither does on how many
    networks train at once, or on how X is stored.
    """

    sizes: tuple[int, ...]
    precision: str
    stored: int
    slopes: tuple[bool, ...]
    batch: int
    rows: int
    row_warps: int
    column_warps: int
    sharers: tuple[int, ...]
    blocks: int
    grid: int
    in_registers: bool
    shared_memory: int
    cycles: int = field(compare=False)

    @property
    def threads(self) -> int:
        return 32 * self.row_warps * self.column_warps

    def seconds(self, device: Device, members: int = 1) -> float:
        """What so many networks are expected to take for a step."""
        tiles, held = ceil(self.batch / self.rows), device.multiprocessors * self.blocks
        turns = ceil(tiles / self.grid) * ceil(members * self.grid / held)
        parameters = sum(k * n for k, n in pairwise(map(padded, self.sizes)))
        # Weights come once a launch; parts go out and are added up.
        computing = self.blocks * (turns * self.cycles + parameters / 8) / device.clock
        rows = members * self.batch * (self.sizes[0] * self.stored + self.sizes[-1] * 4)
        parts = 2 * members * self.grid * parameters * 4
        moving = rows / device.bandwidth
        return 3 * products.LAUNCH + max(computing, moving) + parts / device.bandwidth

    def blocks_for(self, m: int) -> int:
        """Blocks that take a mini-batch of m rows, a short last one perhaps."""
        return min(self.grid, ceil(m / self.rows))

    def obstacle(
        self, sizes: Sequence[int], m: int, itemsize: int, device: Device, precision: str
    ) -> str | None:
        """Why mini-batches of m rows cannot be trained so on a device, if they cannot."""
        sound = (
            self.sizes == tuple(sizes)
            and (self.batch, self.precision) == (m, precision)
            and itemsize == 4
            and self.stored in (1, 4)
            and len(self.slopes) == len(sizes) - 2
            and max(sizes) <= WIDEST
            and self.rows in ROWS
            and (self.row_warps, self.column_warps) in WARPS
            and self.blocks in BLOCKS
            and len(self.sharers) == len(sizes) - 1
            and all(n > 0 and self.threads // 32 % n == 0 for n in self.sharers)
            and self.rows // 16 % self.row_warps == 0
            and 1 <= self.grid <= ceil(m / self.rows)
            and self.shared_memory == block_bytes(self)
        )
        if not sound:
            return f"the kernel has no such form for {m} rows: {self}"
        if not device.multiplies_rounded or not _fits(self, device):
            return f"{device.name} does not hold {self}"
        return None

    def __str__(self) -> str:
        shared = ceil(self.shared_memory / 1024)
        rows = ", X read as uint8" if self.stored == 1 else ""
        kept = "" if self.in_registers else ", gradients in device memory"
        return (
            f"{self.grid} blocks of {self.threads} threads, {self.rows} rows at a time, "
            f"{shared} KB each{kept}{rows}"
        )


def kept_slopes(
    activations: Sequence[Activation], precision: str, drops: bool = False
) -> tuple[bool, ...]:
    """Of σ of layers 1 … L, for each hidden layer: whether σ' waits beside a, as ``keeps_slope``.

    Of bf16 where a's rounding would make another of it, of others where it is computed from z; and
    always where a is dropped out.
    """
    rounded = precision == "bf16"
    return tuple(
        drops or sigma.derivative_from == "z" or (rounded and not sigma.piecewise_linear)
        for sigma in activations[:-1]
    )


def choose(
    sizes: Sequence[int],
    batch: int,
    device: Device,
    precision: str,
    slopes: Sequence[bool],
) -> Fusion | str:
    """The fastest specialisation that fits, or why there is none.

    Parameters
    ----------
    sizes : n_0 … n_L
    batch : int
        m.
    precision : {"float32", "tf32", "bf16"}
    slopes : sequence of bool
        Of each hidden layer, whether σ' is kept beside a: `kept_slopes`.
    """
    if not device.multiplies_rounded:
        return f"{device.name} has no tensor cores for it"
    if not device.tensor_cores:
        return "its tensor cores have failed their check"
    if max(sizes) > WIDEST:
        return f"a layer of {max(sizes)} is wider than {WIDEST}"
    return _choose(tuple(sizes), batch, device, precision, tuple(slopes))


@lru_cache(maxsize=256)
def _choose(
    sizes: tuple[int, ...],
    batch: int,
    device: Device,
    precision: str,
    slopes: tuple[bool, ...],
) -> Fusion | str:
    found, least = [], 1 << 62
    for rows, (row_warps, column_warps), blocks in _ways():
        form = Fusion(
            sizes, precision, 4, slopes, batch, rows, row_warps, column_warps,
            choose_sharers(sizes, row_warps * column_warps), blocks,
            min(ceil(batch / rows), device.multiprocessors * blocks), True, 0, 0,
        )  # fmt: skip
        form = replace(form, shared_memory=block_bytes(form))
        least = min(least, form.shared_memory)
        for kept in (True, False):
            form = replace(form, in_registers=kept)
            if _fits(form, device):
                found.append(_timed(form, device))
                break
    if not found and least <= device.shared_memory:
        return "no warp has registers for its part of a layer"
    if not found:
        return (
            f"weights and the activations of {ROWS[-1]} rows need {ceil(least / 1024)} KB of "
            f"shared memory, and the device has {device.shared_memory // 1024} KB a block"
        )
    return min(found, key=lambda form: form.seconds(device))


def _ways() -> Iterator[tuple[int, tuple[int, int], int]]:
    for rows in ROWS:
        for warps in WARPS:
            for blocks in BLOCKS:
                if rows // 16 % warps[0] == 0:
                    yield rows, warps, blocks


def padded(n: int) -> int:
    """Numbers of a layer as whole fragments have them."""
    return ceil(n / 16) * 16


def block_bytes(form: Fusion) -> int:
    """Bytes of ``FusedShared`` in ``fused.cuh``, a block's shared memory."""

    def matrix(rows: int, columns: int) -> int:
        if form.precision == "bf16":
            return rows * (columns // 8 | 1) * 16
        return rows * ceil(columns / 32) * 128

    warps = form.row_warps * form.column_warps
    total = matrix(form.rows, padded(form.sizes[0]))
    for l, (k, n) in enumerate(pairwise(map(padded, form.sizes))):
        last = l + 2 == len(form.sizes)
        total += matrix(n, k) + matrix(form.rows, n)
        if not last and form.slopes[l]:
            total += matrix(form.rows, n)
        total += 4 * n * (1 + (warps if last else form.row_warps))
    return total + 2 * 4 * form.rows + ceil(8 * warps / 16) * 16


def _fits(form: Fusion, device: Device) -> bool:
    shared = (form.shared_memory + 1024) * form.blocks <= device.shared_memory + 1024
    return shared and _registers(form) <= min(255, 65536 // (form.threads * form.blocks) // 8 * 8)


def _gradient_squares(form: Fusion) -> Iterator[tuple[int, int]]:
    """(rows, columns) of a warp's share of each layer's ∂C/∂w, in squares."""
    warps = form.row_warps * form.column_warps
    for (k, n), sharers in zip(pairwise(form.sizes), form.sharers, strict=True):
        yield ceil(padded(n) // 16 / sharers), ceil(padded(k) // 16 / (warps // sharers))


def choose_sharers(sizes: Sequence[int], warps: int) -> tuple[int, ...]:
    """Of each layer, what gives a warp the fewest squares, the most nearly square, the least high.

    A warp makes a few columns of squares at a time, of all of its rows.
    """

    def load(k: int, n: int, sharers: int) -> tuple[int, int, int]:
        i, j = ceil(padded(n) // 16 / sharers), ceil(padded(k) // 16 / (warps // sharers))
        return i * j, i + j, i

    ways = [sharers for sharers in (1, 2, 4, 8, 16) if warps % sharers == 0]
    return tuple(min(ways, key=lambda s: load(k, n, s)) for k, n in pairwise(sizes))


def _registers(form: Fusion) -> int:
    """Registers of a thread, an estimate."""
    sums = 24 if form.precision == "float32" else 8  # of a square, while it is made

    def product(rows: int, columns: int) -> int:
        together = min(columns, 2 if form.precision == "float32" else 4)
        return 8 * rows * (columns - together) + rows * together * sums + 8 * together

    outputs, shares = padded(form.sizes[-1]) // 16, list(_gradient_squares(form))
    most = max(product(1, outputs), 12 * outputs + 16, *(product(*share) for share in shares))
    for n in form.sizes[1:-1]:
        columns = ceil(padded(n) // 16 / form.column_warps)
        most = max(most, product(form.rows // 16 // form.row_warps, columns))
    kept = 8 * sum(i * j for i, j in shares)
    return REGISTERS[form.precision] + most + (kept if form.in_registers else 0)


def _timed(form: Fusion, device: Device) -> Fusion:
    """With the cycles that it is expected to take."""
    per_cycle = device.mma_rate(form.precision) / (2.0 * device.multiprocessors * device.clock)
    lanes = device.rate(4) / (2.0 * device.multiprocessors * device.clock)
    tensor = waves = issued = 0.0
    layers = list(pairwise(map(padded, form.sizes)))
    row_units, warps = form.rows // 16 // form.row_warps, form.row_warps * form.column_warps
    factor = FACTOR_BYTES[form.precision] / 2  # of bf16's wavefronts for a 16 × 16 square, 4

    def product(macs: float, length: int, fragments: float) -> None:
        nonlocal tensor, waves, issued
        if form.precision == "float32" and length < products.LONG_SUM:
            tensor += 2.0 * macs / lanes  # and as many loads
            return
        tensor += macs / per_cycle
        waves += 4 * factor * fragments
        issued += fragments * (2 + 8 * ROUNDING[form.precision]) + macs / 2048 * 1.1

    for l, ((k, n), (i, j)) in enumerate(zip(layers, _gradient_squares(form), strict=True)):
        columns = ceil(n // 16 / form.column_warps)
        macs = form.rows * k * n

        def passing(length: int, columns: int = columns) -> float:
            """Squares that all warps read for a product of the forward pass or BP2."""
            return warps * length / 16 * (row_units + columns)

        product(macs, form.sizes[l], passing(k))
        if l:
            product(macs, form.sizes[l + 1], passing(n, ceil(k // 16 / form.column_warps)))
        product(macs, form.rows, warps * form.rows / 16 * (i + j))
        numbers = form.rows * (2 * n + (k if l == 0 else 0))
        waves += numbers * FACTOR_BYTES[form.precision] / 128
        issued += numbers / 32 * INSTRUCTIONS
        if not form.in_registers:
            waves += 2 * k * n * 4 / 24  # bytes a cycle between a multiprocessor and the L2 cache
    busiest = max(tensor, waves, issued / 4)
    active = warps * form.blocks
    cycles = busiest * (1 + HALF_BUSY / active) + BARRIER * 3 * len(layers) / form.blocks
    return replace(form, cycles=round(cycles))
