"""Every CUDA kernel: which file, which template arguments, which block, for which equation.

A `Kernel` is a description; `compiler` turns it into device code and a backend
launches it. Each method of `Catalogue` is one kernel's row, with the values that its
arguments can take; `everything` lists all combinations, which the tests compile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from .. import activations, costs, optimizers
from ..activations import Activation
from ..costs import BuiltinCost, Cost
from ..planning import TENSOR_TILES, TILES, Device, Tile, fusion, persistence, residency
from ..planning.fusion import Fusion
from ..planning.persistence import Persistence
from ..planning.residency import Residency

Dimensions = tuple[int, int, int]

MAP_THREADS = 256
MAP_BYTES = 16  # of each array, that a thread of an elementwise kernel takes (`map.cuh`)
WARPS = 4  # rows per block where a warp takes a row
#: Files whose multiply-adds are written out, and none is made of a product and a sum: they give the
#: bits of the CPU's engine.
ROUNDED = ("resident.cu",)

_MAP = (MAP_THREADS, 1, 1)
_ROWS = (32, WARPS, 1)
_COST = (32, 8, 1)
_ONE = (1, 1, 1)
_PERSISTENT = (persistence.THREADS, 1, 1)


@dataclass(frozen=True)
class Kernel:
    """A kernel specialisation and the block it is launched with.

    ``expression`` is the C++ template-id in ``kernels/cuda/<file>``; ``activation`` is set
    only for a user's σ, whose Python functions are compiled and linked in. ``cluster`` is the
    blocks of a cluster, along x; ``shared_memory`` a block's dynamic part, in bytes. All blocks
    of a ``cooperative`` one must run at once. A thread of a map takes ``elements`` of the result.
    A ``programmatic`` one begins with ``await_prerequisites`` (`launch.cuh`): it may start before
    the one before it has ended.
    """

    file: str
    expression: str
    block: Dimensions
    activation: Activation | None = None
    cluster: int = 1
    shared_memory: int = 0
    cooperative: bool = False
    elements: int = 1
    programmatic: bool = False

    @property
    def threads(self) -> int:
        return math.prod(self.block)

    def blocks(self, count: int) -> int:
        """How many blocks of a map `count` elements take."""
        return math.ceil(count / (self.threads * self.elements))


_TYPES = {"float32": "float", "float64": "double"}
#: What a precision's factors are called on tensor cores (`tensor_gemm.cuh`).
FACTORS = {"float32": "Tf32x3", "tf32": "Tf32", "bf16": "Bf16"}


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


SIGMAS = {name: _camel(name) for name in activations.names() if activations.get(name).elementwise}
RULES = {
    "sgd": "Sgd",
    "momentum": "Momentum",
    "nesterov": "Nesterov",
    "adam": "Adam",
    "adamw": "AdamW",
}


_ALL_SIGMAS = tuple(activations.get(name) for name in SIGMAS)
_ALL_COSTS = tuple(cost for cost in costs.REGISTRY.values() if isinstance(cost, BuiltinCost))
_BY_OUTPUT, _BY_ROW, _BY_PAIR = (
    tuple(cost for cost in _ALL_COSTS if cost.couples == how) for how in ("", "row", "pair")
)
#: Of exponential families, whose kernels are listed with every σ; those of the others with two, one
#: whose σ' is computed from a, and one from z.
_COMMON = _BY_OUTPUT[:4]
_TWO_SIGMAS = activations.get("sigmoid"), activations.get("gelu")
#: σ of a last layer and costs that go with it.
_PAIRS = [
    (activations.get(last), costs.get(cost))
    for cost, last in (
        ("categorical_cross_entropy", "softmax"), ("quadratic", "sigmoid"),
        ("binary_cross_entropy", "sigmoid"), ("poisson", "exponential"),
        ("binary_cross_entropy", "softmax"), ("quadratic", "softmax"),
    )
]  # fmt: skip
_Row = TypeVar("_Row", bound=Callable[..., Kernel])
_rows: list[tuple[Callable[..., Kernel], tuple[Sequence[Any], ...]]] = []


def _of(*values: Sequence[Any]) -> Callable[[_Row], _Row]:
    """Enter a kernel: what each of its arguments can be, apart from a user's own σ."""

    def enter(row: _Row) -> _Row:
        _rows.append((row, values))
        return row

    return enter


class Catalogue:
    """The kernels for one dtype, by what they compute; their products are of a precision."""

    def __init__(self, dtype: np.dtype[Any], precision: str | None = None) -> None:
        self._type = _TYPES[np.dtype(dtype).name]
        self._factors = FACTORS.get(precision or "float32", "")
        self._elements = MAP_BYTES // np.dtype(dtype).itemsize

    def _kernel(
        self,
        file: str,
        name: str,
        block: Dimensions,
        *arguments: str,
        activation: Activation | None = None,
    ) -> Kernel:
        expression = f"{name}<{', '.join((self._type, *arguments))}>"
        return Kernel(file, expression, block, activation, programmatic=True)

    def _tile(self, tile: Tile) -> str:
        sizes = f"{tile.bm}, {tile.bn}, {tile.bk}, {tile.tm}, {tile.tn}"
        return (
            f"Tile<{sizes}>" if tile.cores == "plain" else f"TensorTile<{sizes}, {self._factors}>"
        )

    def _map(self, kernel: Kernel) -> Kernel:
        return replace(kernel, elements=self._elements)

    def _with_sigma(
        self, file: str, name: str, block: Dimensions, sigma: Activation, *rest: str
    ) -> Kernel:
        if sigma.builtin:
            return self._kernel(file, name, block, SIGMAS[sigma.name], *rest)
        return self._kernel(file, name, block, "User", *rest, activation=sigma)

    @_of(_ALL_SIGMAS, TILES)
    def forward(self, sigma: Activation, tile: Tile) -> Kernel:
        return self._with_sigma("forward.cu", "forward", _block(tile), sigma, self._tile(tile))

    @_of(_ALL_SIGMAS)
    def bias_activation(self, sigma: Activation) -> Kernel:
        return self._map(self._with_sigma("forward.cu", "bias_activation", _MAP, sigma))

    @_of()
    def softmax(self) -> Kernel:
        return self._kernel("forward.cu", "softmax", _ROWS)

    @_of()
    def collapsed_output_error(self) -> Kernel:
        return self._map(self._kernel("output_error.cu", "collapsed_output_error", _MAP))

    @_of(_ALL_SIGMAS, _COMMON)
    @_of(_TWO_SIGMAS, _BY_OUTPUT[4:])
    def output_error(self, sigma: Activation, cost: Cost) -> Kernel:
        kernel = "output_error.cu", "output_error", _MAP, sigma, _type_of(cost)
        return self._map(self._with_sigma(*kernel))

    @_of((activations.get("softmax"),), (*_BY_OUTPUT, *_BY_ROW))
    @_of(_TWO_SIGMAS, _BY_ROW)
    def row_output_error(self, sigma: Activation, cost: Cost) -> Kernel:
        kernel = "output_error.cu", "row_output_error", _ROWS
        if sigma.elementwise:
            return self._with_sigma(*kernel, sigma, _type_of(cost))
        return self._kernel(*kernel, "Softmax", _type_of(cost))

    @_of(_TWO_SIGMAS, _BY_PAIR)
    def pair_output_error(self, sigma: Activation, cost: Cost) -> Kernel:
        return self._with_sigma("output_error.cu", "pair_output_error", _MAP, sigma, _type_of(cost))

    @_of()
    def dropout(self) -> Kernel:
        return self._kernel("dropout.cu", "dropout", _MAP)

    @_of()
    def add_noise(self) -> Kernel:
        return self._kernel("noise.cu", "add_noise", _MAP)

    @_of()
    def scale_rows(self) -> Kernel:
        return self._map(self._kernel("output_error.cu", "scale_rows", _MAP))

    @_of()
    def softmax_pull_back(self) -> Kernel:
        return self._kernel("output_error.cu", "softmax_pull_back", _ROWS)

    @_of(_ALL_SIGMAS, TILES)
    def hidden_error(self, sigma: Activation, tile: Tile) -> Kernel:
        tiled = self._tile(tile)
        return self._with_sigma("hidden_error.cu", "hidden_error", _block(tile), sigma, tiled)

    @_of(_ALL_SIGMAS)
    def pull_back(self, sigma: Activation) -> Kernel:
        return self._map(self._with_sigma("hidden_error.cu", "pull_back", _MAP, sigma))

    @_of()
    def bias_gradient(self) -> Kernel:
        return self._kernel("bias_gradient.cu", "bias_gradient", (32, 8, 1))

    @_of(TILES)
    def weight_gradient(self, tile: Tile) -> Kernel:
        return self._kernel("weight_gradient.cu", "weight_gradient", _block(tile), self._tile(tile))

    @_of()
    def sum_splits(self) -> Kernel:
        return self._kernel("reduce.cu", "sum_splits", _MAP)

    @_of(_COMMON, (False, True))
    @_of(_ALL_COSTS, (False,))
    def mean_cost(self, cost: Cost, from_z: bool) -> Kernel:
        return self._kernel("cost.cu", "mean_cost", _COST, _type_of(cost), str(from_z).lower())

    @_of()
    def mean_of_samples(self) -> Kernel:
        """C from the C_x that a user's cost has computed."""
        return self._kernel("cost.cu", "mean_cost", _COST, "Given", "false")

    @_of()
    def gather(self) -> Kernel:
        return self._map(self._kernel("gather.cu", "gather", _MAP))

    @_of()
    def advance(self) -> Kernel:
        return Kernel("gather.cu", "advance", _ONE, programmatic=True)

    @_of(("uint8", *_TYPES))
    def convert(self, source: str) -> Kernel:
        """The conversion from the dtype of that name."""
        return self._map(
            self._kernel("convert.cu", "convert", _MAP, _TYPES.get(source, "unsigned char"))
        )

    def round(self) -> Kernel:
        """The conversion to bf16, where there are products of that."""
        return self._map(self._kernel("convert.cu", "round_to_bf16", _MAP))

    @_of()
    def all_finite(self) -> Kernel:
        return self._kernel("all_finite.cu", "all_finite", (256, 1, 1))

    @_of()
    def hadamard(self) -> Kernel:
        return self._map(self._kernel("hadamard.cu", "hadamard", _MAP))

    @_of(_ALL_SIGMAS)
    def slopes(self, sigma: Activation) -> Kernel:
        """σ', σ'' and σ''' of a built-in σ."""
        return self._map(self._kernel("derivatives.cu", "slopes", _MAP, SIGMAS[sigma.name]))

    @_of()
    def tangent(self) -> Kernel:
        return self._map(self._kernel("derivatives.cu", "tangent", _MAP))

    @_of()
    def directions(self) -> Kernel:
        return self._kernel("derivatives.cu", "directions", _MAP)

    @_of()
    def directions_error(self) -> Kernel:
        return self._kernel("derivatives.cu", "directions_error", _MAP)

    @_of()
    def row_norms(self) -> Kernel:
        return self._kernel("derivatives.cu", "row_norms", _ROWS)

    @_of(tuple(RULES))
    def update(self, rule: str) -> Kernel:
        return self._map(self._kernel("update.cu", "update", _MAP, RULES[rule]))

    @_of()
    def squared_norm(self) -> Kernel:
        return self._kernel("update.cu", "squared_norm", (256, 1, 1))

    @_of()
    def limit_norms(self) -> Kernel:
        return self._kernel("update.cu", "limit_norms", _ROWS)

    @_of()
    def clip_scale(self) -> Kernel:
        return self._kernel("update.cu", "clip_scale", _ONE)

    def resident(
        self,
        residency: Residency,
        sigmas: Sequence[Activation],
        cost: Cost,
        rule: str,
        drops: bool = False,
    ) -> Kernel:
        """A whole epoch, specialised to a network; `residents` has examples."""
        user = _users_own(sigmas)
        layers = (
            f"Layer<{tiles.n}, {'User' if sigma is user else _camel(sigma.name)}, {tiles.x}, "
            f"{tiles.j}, {tiles.slices}, {tiles.xb}, {tiles.ju}>"
            for tiles, sigma in zip(residency.layers, sigmas, strict=True)
        )
        r = residency
        arguments = (
            self._type,
            "unsigned char" if r.stored == 1 else self._type,
            f"Form<{r.batch}, {r.threads}, {r.blocks}, {r.stages}, {r.shared_memory}"
            f"{', true' if r.apart else ', false' if drops else ''}{', true' if drops else ''}>",
            _objective(sigmas[-1], cost),
            RULES[rule],
            str(r.inputs),
            *layers,
        )
        name = "resident" if r.blocks == 1 else "resident_apart" if r.apart else "resident_cluster"
        return Kernel(
            "resident.cu",
            f"{name}<{', '.join(arguments)}>",
            (r.threads, 1, 1),
            user,
            cluster=r.cluster,
            shared_memory=r.shared_memory,
            cooperative=r.apart,
        )

    def fused(
        self, fusion: Fusion, sigmas: Sequence[Activation], cost: Cost, drops: bool = False
    ) -> Kernel:
        """Forward, C and BP1 to BP4 of a network at once; `fusions` has examples."""
        user = _users_own(sigmas)
        f = fusion
        arguments = (
            "unsigned char" if f.stored == 1 else self._type,
            self._factors,
            f"FusedForm<{f.rows}, {f.row_warps}, {f.column_warps}, {f.blocks}, "
            f"{str(f.in_registers).lower()}, {f.shared_memory}{', true' if drops else ''}>",
            _objective(sigmas[-1], cost),
            str(f.sizes[0]),
            *(
                f"FusedLayer<{n}, {'User' if sigma is user else _camel(sigma.name)}, {sharers}>"
                for n, sigma, sharers in zip(f.sizes[1:], sigmas, f.sharers, strict=True)
            ),
        )
        return Kernel(
            "fused.cu",
            f"fused<{', '.join(arguments)}>",
            (f.threads, 1, 1),
            user,
            shared_memory=f.shared_memory,
            programmatic=True,
        )

    def persistent(
        self,
        persistence: Persistence,
        sigmas: Sequence[Activation],
        cost: Cost,
        rule: str,
        drops: bool = False,
    ) -> Kernel:
        """A whole epoch by all blocks, for any sizes; `persistents` has examples."""
        user = _users_own(sigmas)
        p = persistence
        arguments = (
            "unsigned char" if p.stored == 1 else self._type,
            f"PersistentForm<{self._factors}, {p.forward}, {p.error}, {p.gradient}, "
            f"{p.shared_memory}{', true' if drops else ''}>",
            _objective(sigmas[-1], cost),
            RULES[rule],
            *(
                "User" if sigma is user else _camel(sigma.name)
                for sigma in (sigmas[-1], *hidden_sigmas(sigmas))
            ),
        )
        return Kernel(
            "persistent.cu",
            f"persistent<{', '.join(arguments)}>",
            _PERSISTENT,
            user,
            shared_memory=p.shared_memory,
            cooperative=True,
        )

    def fused_update(self, rule: str) -> Kernel:
        """The sum of all blocks' gradients, and what a rule makes of it."""
        return Kernel("fused.cu", f"fused_update<{RULES[rule]}>", (32, 8, 1), programmatic=True)


def hidden_sigmas(sigmas: Sequence[Activation]) -> list[Activation]:
    """Those of hidden layers, each once, in the order that the persistent kernel has them."""
    return list(dict.fromkeys(sigmas[:-1]))


def _users_own(sigmas: Sequence[Activation]) -> Activation | None:
    """The one of a user among them, if there is one."""
    users = {sigma for sigma in sigmas if not sigma.builtin}
    if len(users) > 1:
        raise ValueError("a kernel takes one user's activation, and here are more")
    return next(iter(users), None)


def _type_of(cost: Cost) -> str:
    """What `costs.cuh` calls a cost, with its own numbers as the bits of doubles."""
    assert isinstance(cost, BuiltinCost), "kernels have no cost of a user"
    if not cost.constants:
        return cost.kernel
    bits = np.array(cost.constants, np.float64).view(np.uint64).tolist()
    return f"{cost.kernel}<Constants<{', '.join(f'{each:#x}ull' for each in bits)}>>"


def _objective(sigma: Activation, cost: Cost) -> str:
    return f"Objective<{_type_of(cost)}, {str(costs.collapses(sigma, cost)).lower()}>"


def everything() -> Iterator[Kernel]:
    """All specialisations of the built-in activations, costs, optimizers and tiles.

    But for `tensor_products`, which not every device has, and for those of `residents`, `fusions`
    and `persistents`, of which there is one for each kind of network.
    """
    catalogues = [Catalogue(np.dtype(name)) for name in _TYPES]
    found = (
        row(catalogue, *values)
        for row, domains in _rows
        for catalogue in catalogues
        for values in itertools.product(*domains)
    )
    yield from dict.fromkeys(found)  # `advance` is one and the same for every dtype


def all_of(device: Device) -> Iterator[Kernel]:
    """Those of `everything`, and of a device its own and examples of what is built per network."""
    yield from everything()
    yield from tensor_products(device)
    yield from residents(device)
    yield from fusions(device)
    yield from persistents(device)


def tensor_products(device: Device) -> Iterator[Kernel]:
    """Of a device's tensor cores, if it has such: products of every tile, and one with every σ."""
    if not device.multiplies_rounded:
        return
    found = [Catalogue(np.dtype("float32")).round()]
    for precision, tiles in TENSOR_TILES.items():
        catalogue = Catalogue(np.dtype("float32"), precision)
        for tile in tiles:
            sigmas = _ALL_SIGMAS if tile is TENSOR_TILES["float32"][0] else _ALL_SIGMAS[:1]
            found += [catalogue.forward(sigma, tile) for sigma in sigmas]
            found += [catalogue.hidden_error(sigma, tile) for sigma in sigmas]
            found.append(catalogue.weight_gradient(tile))
    yield from found


def residents(device: Device) -> Iterator[Kernel]:
    """Examples of the resident kernel that fit on a device.

    The book's network in every form, with every rule; and small ones, where every activation,
    cost and rule appears. Of both there are some with X of bytes, too.
    """
    nielsen, deep, small = (784, 30, 10), (64, 128, 128, 10), (20, 16, 12, 6)
    sigmoids, relus = ["sigmoid"] * 2, ["relu"] * 2 + ["softmax"]
    rules, sigmas = itertools.cycle(RULES), itertools.cycle(SIGMAS)
    for dtype in _TYPES:
        for cluster in residency.CLUSTERS:
            yield from _resident(device, dtype, nielsen, 10, sigmoids, "quadratic", "sgd", cluster)
        for name, last in _costs_and_outputs():
            chosen = [next(sigmas), next(sigmas), last]
            yield from _resident(device, dtype, small, 7, chosen, name, next(rules))
    for rule in tuple(RULES)[1:]:
        yield from _resident(device, "float32", nielsen, 10, sigmoids, "quadratic", rule, 8)
    yield from _resident(device, "float32", deep, 32, relus, "categorical_cross_entropy", "sgd")
    yield from _resident(device, "float32", deep, 32, relus, "categorical_cross_entropy", "adam", 2)
    for dtype, sizes in itertools.product(_TYPES, (small, (27, 16, 5))):
        chosen = ["sigmoid"] * (len(sizes) - 1)
        yield from _resident(device, dtype, sizes, 7, chosen, "quadratic", "sgd", stored=1)
    for dtype, cluster in itertools.product(_TYPES, residency.CLUSTERS):
        yield from _resident(device, dtype, nielsen, 10, sigmoids, "quadratic", "sgd", cluster, 1)
    for rule in ("sgd", "adam"):
        classifier = ["sigmoid", "softmax"], "categorical_cross_entropy"
        yield from _resident(device, "float32", nielsen, 10, *classifier, rule, 8, 1)
    yield from _resident(
        device, "float32", deep, 32, relus, "categorical_cross_entropy", "sgd", stored=1
    )
    if residency.largest_cluster(device) > 1:
        return
    for dtype, blocks, stored in itertools.product(_TYPES, residency.APART, (None, 1)):
        yield from _resident(
            device, dtype, nielsen, 10, sigmoids, "quadratic", "sgd", blocks, stored, apart=True
        )
    for rule in ("momentum", "adam"):
        yield from _resident(
            device, "float32", nielsen, 10, sigmoids, "quadratic", rule, 4, apart=True
        )


def fusions(device: Device) -> Iterator[Kernel]:
    """Examples of the fused kernel that fit on a device, with all rules.

    Two networks at their widest in every precision, and small ones, where every activation and cost
    appears; of X of bytes, too.
    """
    for rule in RULES:
        yield Catalogue(np.dtype("float32")).fused_update(rule)
    sigmas = itertools.cycle(SIGMAS)
    classifier, rectifiers = "categorical_cross_entropy", ["relu"] * 4
    for precision in FACTORS:
        yield from _fused(device, precision, (64,) * 5, rectifiers, "quadratic")
        chosen = ["gelu", "gelu", "softmax"]
        yield from _fused(device, precision, (32, 128, 128, 10), chosen, classifier)
        for name, last in _costs_and_outputs():
            chosen = [next(sigmas), next(sigmas), last]
            yield from _fused(device, precision, (20, 16, 12, 6), chosen, name)
        yield from _fused(device, precision, (32, 64, 10), ["tanh", "softmax"], classifier, 1)


def persistents(device: Device) -> Iterator[Kernel]:
    """Examples of the persistent kernel that a device can run.

    All tiles in every precision, in turn with every cost and rule, and X of bytes; and all
    activations at once.
    """
    sizes, rules, pairs = (784, 128, 10), itertools.cycle(RULES), itertools.cycle(_PAIRS)
    for precision in FACTORS:
        found = persistence.choose(sizes, 128, device, precision)
        if isinstance(found, str):
            return
        catalogue = Catalogue(np.dtype("float32"), precision)
        for stored, extent in zip((4, 1, 4), persistence.EXTENTS, strict=True):
            form = replace(found.of_tiles(extent, extent, extent), stored=stored)
            if form.obstacle(sizes, 128, 4, device, precision) is not None:
                form = replace(found, stored=stored)  # of 16 × 16 BP4 takes the most memory
            last, cost = next(pairs)
            yield catalogue.persistent(form, [activations.get("relu"), last], cost, next(rules))
            if stored == 1 and precision == "float32":
                yield catalogue.persistent(form, [*_ALL_SIGMAS, last], cost, next(rules))


def _costs_and_outputs() -> Iterator[tuple[str, str]]:
    """Names of every cost, each with some last σ."""
    for cost in _ALL_COSTS:
        several = (
            ("sigmoid", "softmax", "exponential") if cost in _COMMON else ("sigmoid", "softmax")
        )
        for last in several:
            with suppress(ValueError):  # outputs that the cost is not defined for
                costs.check_pair(activations.get(last), cost)
                yield cost.name, last


def _fused(
    device: Device,
    precision: str,
    sizes: tuple[int, ...],
    sigmas: Sequence[str],
    cost: str,
    stored: int = 4,
) -> Iterator[Kernel]:
    chosen = [activations.get(name) for name in sigmas]
    found = fusion.choose(sizes, 1 << 16, device, precision, fusion.kept_slopes(chosen, precision))
    if not isinstance(found, str):
        catalogue = Catalogue(np.dtype("float32"), precision)
        yield catalogue.fused(replace(found, stored=stored), chosen, costs.get(cost))


def _resident(
    device: Device,
    dtype: str,
    sizes: tuple[int, ...],
    batch: int,
    sigmas: Sequence[str],
    cost: str,
    rule: str,
    cluster: int = 1,
    stored: int | None = None,
    apart: bool = False,
) -> Iterator[Kernel]:
    slots, itemsize = optimizers.get(rule).slots, np.dtype(dtype).itemsize
    found = residency.choose(
        sizes, batch, itemsize, slots, device, stored=stored,
        clusters=None if apart else (cluster,), apart=(cluster,) if apart else None,
    )  # fmt: skip
    if not isinstance(found, str):
        chosen = [activations.get(name) for name in sigmas]
        yield Catalogue(np.dtype(dtype)).resident(found, chosen, costs.get(cost), rule)


def _block(tile: Tile) -> Dimensions:
    return tile.threads, 1, 1
