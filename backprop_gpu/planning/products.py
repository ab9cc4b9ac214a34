"""The kernel of each matrix product: ours in one of its tiles, or cuBLAS.

The choice rests on a time predicted from operations, bytes and launches (`Product.seconds`). The
efficiencies are estimates until a record in ``benchmarks/results`` replaces them
(``backprop_gpu.benchmarks.gpu_constants``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from .device import Device

Transposes = Literal["NT", "NN", "TN"]


@dataclass(frozen=True)
class Tile:
    """A block computes bm × bn of the result, bk of the sum at a time.

    Of them a thread has tm × tn, or on tensor cores a warp.
    """

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    #: Share of its cores' rate that a full machine of such blocks reaches, estimated.
    efficiency: float
    cores: Literal["plain", "tensor"] = "plain"

    @property
    def threads(self) -> int:
        parts = (self.bm // self.tm) * (self.bn // self.tn)
        return parts if self.cores == "plain" else 32 * parts

    def __str__(self) -> str:
        on = "" if self.cores == "plain" else " on tensor cores"
        return f"{self.bm}x{self.bn}x{self.bk}{on}"


TILES: tuple[Tile, ...] = (
    Tile(128, 128, 8, 8, 8, 0.80),
    Tile(64, 64, 16, 4, 4, 0.60),
    Tile(32, 32, 32, 2, 4, 0.30),
    Tile(16, 32, 32, 2, 2, 0.15),
)

#: Those on tensor cores, by the precision of the factors. In float32 a warp has three sums for each
#: number, so its tiles are smaller.
TENSOR_TILES: dict[str, tuple[Tile, ...]] = {
    "float32": (
        Tile(64, 64, 16, 32, 32, 0.70, "tensor"),
        Tile(32, 32, 16, 16, 16, 0.40, "tensor"),
    ),
    "tf32": (
        Tile(128, 64, 16, 64, 32, 0.65, "tensor"),
        Tile(64, 64, 16, 32, 32, 0.50, "tensor"),
        Tile(32, 32, 16, 16, 16, 0.25, "tensor"),
    ),
    "bf16": (
        Tile(128, 64, 16, 64, 32, 0.40, "tensor"),
        Tile(64, 64, 16, 32, 32, 0.30, "tensor"),
        Tile(32, 32, 16, 16, 16, 0.15, "tensor"),
    ),
}

#: Of shorter sums three products of TF32 are off by more than twice what the plain cores are.
LONG_SUM = 64

#: The split counts that are tried where a product's sum is long and its result small.
SPLITS = (1, 2, 4, 8, 16, 32, 64)

#: Seconds that the shortest kernel of ours, and of cuBLAS, takes inside a CUDA graph.
LAUNCH = 2.0e-6
LIBRARY_LAUNCH = 4.0e-6
LIBRARY_EFFICIENCY = 0.92
LIBRARY_TILE = 128

#: The latency of each step of a sum in our kernels: a trip to memory, and a barrier. On tensor
#: cores the trips of the next two steps are under way, and a fragment's way through them is left.
SUM_STEP = 0.4e-6
TENSOR_SUM_STEP = 0.2e-6


@dataclass(frozen=True)
class Product:
    """How one matrix product of the equations is carried out."""

    kernel: Literal["tiled", "cublas"]
    tile: Tile | None
    splits: int
    seconds: float = field(compare=False)
    reason: str = field(compare=False)

    def obstacle(
        self, layout: Transposes, k: int, itemsize: int, device: Device, precision: str | None
    ) -> str | None:
        """Why a product summed over k cannot be carried out so, if it cannot."""
        if self.kernel == "cublas":
            possible = (self.tile, self.splits) == (None, 1)
            missing = None if device.library else "there is no cuBLAS"
        else:
            forms = _forms(layout, k, itemsize, device, precision)
            possible, missing = (self.tile, self.splits) in forms, None
        return missing if possible else f"there is no kernel {self} for it"

    def __str__(self) -> str:
        tile = f" tile {self.tile}" if self.tile else ""
        split = f" split {self.splits}" if self.splits > 1 else ""
        return f"{self.kernel}{tile}{split}"


@lru_cache(maxsize=4096)
def choose_product(
    layout: Transposes,
    m: int,
    n: int,
    k: int,
    itemsize: int,
    device: Device,
    library: bool = True,
    precision: str | None = None,
) -> Product:
    """The kernel for an (m, n) result summed over k.

    Parameters
    ----------
    layout : "NT" (forward), "NN" (BP2) or "TN" (BP4)
        Only BP4, whose sum runs over the batch, may split it: the other two end
        in an epilogue that is not linear.
    library : bool
        Whether cuBLAS is there to be chosen.
    precision : str, optional
        What factors are rounded to, if they are.

    Raises
    ------
    ValueError
        If the device has no way to multiply so.
    """
    forms = _forms(layout, k, itemsize, device, precision)
    if not forms and not library:
        raise ValueError(f"{device.name} cannot multiply in {precision}")
    candidates = [tiled(*form, m, n, k, itemsize, device, precision) for form in forms]
    if not candidates:
        found = by_library(layout, m, n, k, itemsize, device, precision)
        return replace(found, reason=f"cuBLAS: our kernels have no {precision} here")
    ours = min(candidates, key=lambda c: c.seconds)
    if not library:
        return replace(ours, reason="our tiled product: no cuBLAS on this backend")
    theirs = by_library(layout, m, n, k, itemsize, device, precision)
    us = f"{ours.seconds * 1e6:.1f} µs against {theirs.seconds * 1e6:.1f} µs"
    if ours.seconds <= theirs.seconds:
        return replace(ours, reason=f"our tiled product, predicted {us} for cuBLAS and a map")
    return replace(theirs, reason=f"cuBLAS and a map, predicted faster: our tiled product {us}")


def tiles(itemsize: int, device: Device, precision: str | None = None) -> tuple[Tile, ...]:
    """The tiles that our kernels have on a device, largest first; plain cores round nothing."""
    if itemsize != 4:
        return TILES
    rounds = precision in ("tf32", "bf16")
    faster = rounds or device.mma_rate("float32") > device.rate(4)
    tensor = device.multiplies_rounded and device.tensor_cores and faster
    return (() if rounds else TILES) + (TENSOR_TILES[precision or "float32"] if tensor else ())


def _forms(
    layout: Transposes, k: int, itemsize: int, device: Device, precision: str | None
) -> list[tuple[Tile, int]]:
    """The (tile, splits) that our kernels have for sums over k: of equals, the first is taken."""
    rounds = precision in ("tf32", "bf16")
    return [
        (tile, splits)
        for tile in reversed(tiles(itemsize, device, precision))
        for splits in (SPLITS if layout == "TN" else (1,))
        if splits == 1 or k // splits >= tile.bk
        if tile.cores == "plain" or rounds or k // splits >= LONG_SUM
    ]


def column_splits(m: int, n: int, device: Device) -> int:
    """Into how many parts BP3 splits the m rows of an (m, n) column sum.

    Enough that its blocks (32 columns each) are twice the multiprocessors, and no more
    than leaves each of a block's eight warps 16 rows.
    """
    wanted = math.ceil(2 * device.multiprocessors / math.ceil(n / 32))
    return max(1, min(wanted, m // 128, 64))


def _moving(m: int, n: int, k: int, itemsize: int, device: Device) -> float:
    """Seconds in which both factors are read, and the result is written, once.

    They are added to those of computing: how much of them is hidden behind it is not known.
    """
    return itemsize * (m * k + n * k + m * n) / device.bandwidth


def tiled(
    tile: Tile,
    splits: int,
    m: int,
    n: int,
    k: int,
    itemsize: int,
    device: Device,
    precision: str | None = None,
) -> Product:
    """Our kernel, and how long it should take."""
    tensor = tile.cores == "tensor"
    rate = device.mma_rate(precision or "float32") if tensor else device.rate(itemsize)
    blocks = math.ceil(m / tile.bm) * math.ceil(n / tile.bn) * splits
    waves = math.ceil(blocks / device.multiprocessors)
    steps = math.ceil(math.ceil(k / splits) / tile.bk)
    flops = 2.0 * tile.bm * tile.bn * tile.bk * steps * waves
    computing = flops / (tile.efficiency * rate / device.multiprocessors)
    seconds = LAUNCH + computing + _moving(m, n, k, itemsize, device)
    seconds += steps * (TENSOR_SUM_STEP if tensor else SUM_STEP)
    if splits > 1:
        seconds += LAUNCH + 2.0 * splits * m * n * itemsize / device.bandwidth
    return Product("tiled", tile, splits, seconds, "")


def by_library(
    layout: Transposes,
    m: int,
    n: int,
    k: int,
    itemsize: int,
    device: Device,
    precision: str | None = None,
) -> Product:
    """cuBLAS, and how long it and the map behind it should take."""
    tiles = math.ceil(m / LIBRARY_TILE) * math.ceil(n / LIBRARY_TILE)
    # The library splits long sums too, so small results do not leave the device idle; from
    # the second wave on, every wave is a whole one.
    waves = math.ceil(tiles / device.multiprocessors)
    paid = tiles if waves == 1 else waves * device.multiprocessors
    flops = 2.0 * min(m, LIBRARY_TILE) * min(n, LIBRARY_TILE) * k * paid
    computing = flops / (LIBRARY_EFFICIENCY * device.library_rate(itemsize, precision))
    seconds = LIBRARY_LAUNCH + computing + _moving(m, n, k, itemsize, device)
    if layout != "TN":  # the epilogue becomes a map that reads and writes the result
        seconds += LAUNCH + 2.0 * m * n * itemsize / device.bandwidth
    return Product("cublas", None, 1, seconds, "")


def layered_step_seconds(
    sizes: Sequence[int], batch: int, itemsize: int, device: Device, precision: str | None = None
) -> float:
    """How long the layered engine is expected to take for a step on a CUDA device."""
    seconds = 0.0
    for l, (k, n) in enumerate(pairwise(sizes)):
        shapes: list[tuple[Transposes, int, int, int]] = [("TN", n, k, batch), ("NT", batch, n, k)]
        shapes += [("NN", batch, k, n)] if l else []
        chosen = [
            choose_product(*shape, itemsize, device, device.library, precision) for shape in shapes
        ]
        seconds += sum(one.seconds for one in chosen)
        seconds += LAUNCH if chosen[0].tile is None else 0.0  # BP3, if not beside BP4
    return seconds + 5 * LAUNCH  # gather, C, BP1, update, advance
