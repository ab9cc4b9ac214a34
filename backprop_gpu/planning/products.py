"""The kernel of each matrix product: ours in one of its tiles, or cuBLAS.

The choice rests on a time predicted from operations, bytes and launches (`Product.seconds`). The
efficiencies are estimates until a record in ``benchmarks/results`` replaces them
(``backprop_gpu.benchmarks.gpu_constants``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from .device import Device

Transposes = Literal["NT", "NN", "TN"]

#: What cuBLASLt does to a product before it writes it, by its own names (CUBLASLT_EPILOGUE_… of
#: cublasLt.h): BIAS adds b; RELU_BIAS takes ReLU then, and RELU_AUX_BIAS leaves a bit for each
#: a > 0; DRELU_BGRAD is BP2 of ReLU by those bits, with BP3 of its layer; BGRADB is BP3 of BP4's
#: layer. Its GELU is another function than ours, the approximation with tanh.
Epilogue = Literal["", "BIAS", "RELU_BIAS", "RELU_AUX_BIAS", "DRELU_BGRAD", "BGRADB"]

#: Those that a product may have, by its layout.
EPILOGUES: dict[Transposes, tuple[Epilogue, ...]] = {
    "NT": ("", "BIAS", "RELU_BIAS", "RELU_AUX_BIAS"),
    "NN": ("", "DRELU_BGRAD"),
    "TN": ("", "BGRADB"),
}

#: Which algorithm cuBLASLt has for an (m, n) product summed over k with an epilogue, if any.
Algorithm = Callable[[Transposes, int, int, int, Epilogue], str | None]


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
#: The same with rounded factors: those cores cost power, and the clock falls.
LIBRARY_TENSOR_EFFICIENCY = 0.75
LIBRARY_TILE = 128

#: The latency of each step of a sum in our kernels: a trip to memory, and a barrier. On tensor
#: cores the trips of the next two steps are under way, and a fragment's way through them is left.
SUM_STEP = 0.4e-6
TENSOR_SUM_STEP = 0.2e-6


@dataclass(frozen=True)
class Product:
    """How one matrix product of the equations is carried out.

    Parameters
    ----------
    kernel : {"tiled", "cublas"}
        Ours, or cuBLAS's.
    tile : Tile or None
        What a block of ours computes.
    splits : int
        Into how many parts the sum is cut, which are added up afterwards.
    seconds : float
        What it is expected to take.
    reason : str
        Why it was chosen.
    epilogue : str
        What cuBLAS does to the result before it is written; "" for nothing.
    """

    kernel: Literal["tiled", "cublas"]
    tile: Tile | None
    splits: int
    seconds: float = field(compare=False)
    reason: str = field(compare=False)
    epilogue: Epilogue = ""

    def obstacle(
        self, layout: Transposes, k: int, itemsize: int, device: Device, precision: str | None
    ) -> str | None:
        """Tell why a product summed over k cannot be carried out so.

        Parameters
        ----------
        layout : {"NT", "NN", "TN"}
            Of the forward pass, BP2 or BP4.
        k : int
            Terms of a sum.
        itemsize : int
            Bytes of a number.
        device : Device
            Where it is to run.
        precision : str or None
            What factors are rounded to, if they are.

        Returns
        -------
        str or None
            The obstacle, if there is one.
        """
        if self.kernel == "cublas":
            fits = self.epilogue in EPILOGUES[layout] and not (
                self.epilogue == "BGRADB" and rounds(precision)
            )
            possible = (self.tile, self.splits) == (None, 1) and fits
            missing = None if device.library else "there is no cuBLAS"
        else:
            forms = _forms(layout, k, itemsize, device, precision)
            possible, missing = (self.tile, self.splits) in forms and not self.epilogue, None
        return missing if possible else f"there is no kernel {self} for it"

    def __str__(self) -> str:
        tile = f" tile {self.tile}" if self.tile else ""
        split = f" split {self.splits}" if self.splits > 1 else ""
        epilogue = f" with {self.epilogue}" if self.epilogue else ""
        return f"{self.kernel}{tile}{split}{epilogue}"


def rounds(precision: str | None) -> bool:
    """Whether factors of products are rounded."""
    return precision in ("tf32", "bf16")


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
    epilogue: Epilogue = "",
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
    epilogue : str
        The one that cuBLAS would have.

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
        found = by_library(layout, m, n, k, itemsize, device, precision, epilogue)
        return replace(found, reason=f"cuBLAS: our kernels have no {precision} here")
    ours = min(candidates, key=lambda c: c.seconds)
    if not library:
        return replace(ours, reason="our tiled product: no cuBLAS on this backend")
    theirs = by_library(layout, m, n, k, itemsize, device, precision, epilogue)
    us = f"{ours.seconds * 1e6:.1f} µs against {theirs.seconds * 1e6:.1f} µs"
    behind = f" with {epilogue}" if epilogue else "" if layout == "TN" else " and a map"
    library_way = f"cuBLAS{behind}"
    if ours.seconds <= theirs.seconds:
        return replace(ours, reason=f"our tiled product, predicted {us} for {library_way}")
    return replace(theirs, reason=f"{library_way}, predicted faster: our tiled product {us}")


def tiles(itemsize: int, device: Device, precision: str | None = None) -> tuple[Tile, ...]:
    """The tiles that our kernels have on a device, largest first; plain cores round nothing."""
    if itemsize != 4:
        return TILES
    faster = rounds(precision) or device.mma_rate("float32") > device.rate(4)
    tensor = device.multiplies_rounded and device.tensor_cores and faster
    return (() if rounds(precision) else TILES) + (
        TENSOR_TILES[precision or "float32"] if tensor else ()
    )


def _forms(
    layout: Transposes, k: int, itemsize: int, device: Device, precision: str | None
) -> list[tuple[Tile, int]]:
    """The (tile, splits) that our kernels have for sums over k: of equals, the first is taken."""
    return [
        (tile, splits)
        for tile in reversed(tiles(itemsize, device, precision))
        for splits in (SPLITS if layout == "TN" else (1,))
        if splits == 1 or k // splits >= tile.bk
        if tile.cores == "plain" or rounds(precision) or k // splits >= LONG_SUM
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
    epilogue: Epilogue = "",
) -> Product:
    """cuBLAS, and how long it should take, with what has to follow where the epilogue does not."""
    tiles = math.ceil(m / LIBRARY_TILE) * math.ceil(n / LIBRARY_TILE)
    # The library splits long sums too, so small results do not leave the device idle; from
    # the second wave on, every wave is a whole one.
    waves = math.ceil(tiles / device.multiprocessors)
    paid = tiles if waves == 1 else waves * device.multiprocessors
    flops = 2.0 * min(m, LIBRARY_TILE) * min(n, LIBRARY_TILE) * k * paid
    factor = 2 if precision == "bf16" else itemsize
    efficiency = LIBRARY_TENSOR_EFFICIENCY if rounds(precision) else LIBRARY_EFFICIENCY
    rate = efficiency * device.library_rate(itemsize, precision)
    moving = (factor * (m * k + n * k) + itemsize * m * n) / device.bandwidth
    seconds = LIBRARY_LAUNCH + max(flops / rate, moving)
    copies = m * n * (2 if precision == "bf16" else 0)  # of what the next product takes
    if layout != "TN" and (not epilogue or copies):
        written = copies if epilogue else copies + itemsize * m * n
        seconds += LAUNCH + (itemsize * m * n + written) / device.bandwidth
    if epilogue == "DRELU_BGRAD":
        seconds += LAUNCH  # its BP3 is a sum, and becomes a mean
    return Product("cublas", None, 1, seconds, "", epilogue)


def product_shapes(sizes: Sequence[int], m: int) -> dict[str, tuple[Transposes, int, int, int]]:
    """The products of a step with m rows, by equation: (layout, rows, columns, length of a sum)."""
    found: dict[str, tuple[Transposes, int, int, int]] = {}
    for l, (k, n) in enumerate(pairwise(sizes), start=1):
        found[f"forward layer {l}"] = "NT", m, n, k
        found[f"BP4 layer {l}"] = "TN", n, k, m
        if l > 1:
            found[f"BP2 layer {l - 1}"] = "NN", m, k, n
    return found


def layered_products(
    sizes: Sequence[int],
    m: int,
    itemsize: int,
    device: Device,
    precision: str | None = None,
    sigmas: Sequence[str] = (),
    algorithm: Algorithm | None = None,
) -> dict[str, Product]:
    """How the layered engine forms the products of a step with m rows, as `products_of_step`."""

    def choose(layout: Transposes, m: int, n: int, k: int, epilogue: Epilogue) -> Product:
        return choose_product(
            layout, m, n, k, itemsize, device, device.library, precision, epilogue
        )

    return products_of_step(
        sizes, m, choose, sigmas if device.epilogues else (), precision, algorithm
    )


def products_of_step(
    sizes: Sequence[int],
    m: int,
    choose: Callable[[Transposes, int, int, int, Epilogue], Product],
    sigmas: Sequence[str] = (),
    precision: str | None = None,
    algorithm: Algorithm | None = None,
) -> dict[str, Product]:
    """How the products of a step with m rows are formed, by equation.

    Parameters
    ----------
    choose : callable
        The kernel of an (m, n) product summed over k, where the library's has that epilogue.
    sigmas : sequence of str
        The names of σ of layers 1 … L, "" of a user's own; without them no epilogue is planned.
    precision : str, optional
        What factors are rounded to, if they are: the library's BP3 would sum rounded δ.
    algorithm : callable, optional
        Asks the library; without it is expected to have every epilogue.
    """
    shapes, depth, found = product_shapes(sizes, m), len(sizes) - 1, dict[str, Product]()
    refused: dict[str, dict[str, None]] = {label: {} for label in shapes}

    def take(label: str, *wanted: Epilogue) -> None:
        """Take the first of these epilogues that there is, or none."""
        shape = shapes[label]
        plain: Epilogue = ""
        for epilogue in (*wanted, plain):
            chosen = choose(*shape, epilogue)
            if chosen.tile is None and algorithm is not None:
                taken = algorithm(*shape, epilogue)
                if taken is None:
                    refused[label][f"; cuBLASLt has no algorithm with {epilogue or 'none'}"] = None
                    continue
                chosen = replace(chosen, reason=f"{chosen.reason}; {taken}")
            found[label] = replace(chosen, reason="".join((chosen.reason, *refused[label])))
            return
        raise RuntimeError(f"cuBLASLt has no algorithm for {label}, {shape}")

    for l, sigma in enumerate(sigmas or [""] * depth, start=1):
        forward, bp2, bp4 = f"forward layer {l}", f"BP2 layer {l}", f"BP4 layer {l}"
        together = sigma == "relu" and l < depth
        if together:
            take(bp2, "DRELU_BGRAD")
            take(forward, "RELU_AUX_BIAS")
            together = (found[bp2].epilogue, found[forward].epilogue) == (
                "DRELU_BGRAD", "RELU_AUX_BIAS",
            )  # fmt: skip
        if not together:  # one of the two alone is of no use
            if l < depth:
                take(bp2)
            linear = sigma in ("identity", "softmax")  # whose σ, if any, couples the outputs
            take(forward, *(("RELU_BIAS",) if sigma == "relu" else ("BIAS",) if linear else ()))
        takes_bp3 = bool(sigmas) and not together and not rounds(precision)
        take(bp4, *(("BGRADB",) if takes_bp3 else ()))
    return {label: found[label] for label in shapes}


def misfit(products: Mapping[str, Product], sigmas: Sequence[str]) -> str | None:
    """Why the epilogues of a step's products are none for these σ, if so."""
    for l, sigma in enumerate(sigmas, start=1):
        forward = products[f"forward layer {l}"].epilogue
        back = products[f"BP2 layer {l}"].epilogue if l < len(sigmas) else ""
        fitting = ("relu",) if "RELU" in forward else ("identity", "softmax")
        if forward and sigma not in fitting:
            return "its products are for other activations"
        if (forward == "RELU_AUX_BIAS") != (back == "DRELU_BGRAD"):
            return f"of RELU_AUX_BIAS and DRELU_BGRAD, layer {l} has one alone"
        if back and products[f"BP4 layer {l}"].epilogue:
            return f"BP3 of layer {l} is computed twice"
    return None


def layered_step_seconds(
    sizes: Sequence[int],
    batch: int,
    itemsize: int,
    device: Device,
    precision: str | None = None,
    sigmas: Sequence[str] = (),
    slots: int = 0,
) -> float:
    """How long the layered engine is expected to take for a step on a CUDA device."""
    chosen = layered_products(sizes, batch, itemsize, device, precision, sigmas)
    seconds = sum(one.seconds for one in chosen.values())
    moved = 0
    for l, n in enumerate(sizes[1:], start=1):
        bp2, bp4 = chosen.get(f"BP2 layer {l}"), chosen[f"BP4 layer {l}"]
        if bp4.tile is None and not bp4.epilogue and not (bp2 and bp2.epilogue):
            seconds += LAUNCH  # BP3
            moved += batch * n
    parameters = sum(n * (k + 1) for k, n in pairwise(sizes))
    moved += 2 * batch * (sizes[0] + sizes[-1])  # gather
    moved += 5 * batch * sizes[-1]  # C, BP1
    moved += (3 + 2 * slots) * parameters  # update
    copies = 0
    if precision == "bf16" and any(one.tile is None for one in chosen.values()):
        copies = parameters + batch * (sizes[0] + sizes[-1])
    seconds += (itemsize * moved + 2 * copies) / device.bandwidth
    return seconds + 5 * LAUNCH  # gather, C, BP1, update, advance
