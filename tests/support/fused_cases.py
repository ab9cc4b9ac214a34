"""Forms of the fused kernel, each with a training run that it must carry out as `layered` does.

Small networks, cut in ways that the planner keeps for large ones: tiles that do not divide a batch,
layers that do not fill a fragment, warps that share rows, columns or both, one block and several.
`kernel_cases.py` makes a case of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backprop_gpu import activations, costs, optimizers, planning
from backprop_gpu.backends.base import Backend
from backprop_gpu.backends.numpy import NumpyBackend
from backprop_gpu.cuda.catalogue import Catalogue, Kernel
from backprop_gpu.engines.fused_cuda import FusedCudaEngine
from backprop_gpu.engines.layered import LayeredEngine
from backprop_gpu.optimizers import SGD, Adam, AdamW, Optimizer
from backprop_gpu.parameters import Layout
from backprop_gpu.planning import fusion
from reference import assert_close
from resident_cases import Run


@dataclass(frozen=True)
class Form:
    """A network, how the kernel is cut to it, and what it trains on.

    One of ``optimizers`` a member; ``grid`` blocks of a network.
    """

    name: str
    sizes: tuple[int, ...]
    sigmas: tuple[str, ...]
    cost: str
    optimizers: tuple[Optimizer, ...]
    batch: int
    rows: int
    tile: int
    warps: tuple[int, int]
    grid: int = 1
    #: The planner's, if not given.
    sharers: tuple[int, ...] = ()
    in_registers: bool = True
    #: X of uint8, read as such.
    bytes: bool = False
    #: Of hidden layers.
    dropout: tuple[float, ...] = ()
    #: Rows count by weights, of which some are 0, and two labels are missing.
    weighted: bool = False
    far: tuple[tuple[slice, float], ...] = ()
    large: bool = False
    precisions: tuple[str, ...] = ("bf16", "tf32", "float32")

    def fusion(self, precision: str, batch: int) -> planning.Fusion:
        sigmas = [activations.get(name) for name in self.sigmas]
        slopes = fusion.kept_slopes(sigmas, precision, bool(self.dropout))
        sharers = self.sharers or fusion.choose_sharers(self.sizes, self.warps[0] * self.warps[1])
        form = planning.Fusion(
            self.sizes, precision, 1 if self.bytes else 4, slopes, batch, self.tile,
            *self.warps, sharers, 1, min(self.grid, -(-batch // self.tile)), self.in_registers,
            0, 0,
        )  # fmt: skip
        return replace(form, shared_memory=fusion.block_bytes(form))

    def rounds_slopes(self, precision: str) -> bool:
        return precision == "bf16" and any(self.fusion("bf16", 1).slopes)

    def kernels(self) -> Iterator[Kernel]:
        """What it launches."""
        sigmas = [activations.get(name) for name in self.sigmas]
        for precision in self.precisions:
            catalogue = Catalogue(np.dtype("float32"), precision)
            form = self.fusion(precision, self.batch)
            yield catalogue.fused(form, sigmas, costs.get(self.cost), bool(self.dropout))
            yield catalogue.fused_update(self.optimizers[0].rule)

    def engine(self, backend: Backend) -> FusedCudaEngine:
        sigmas = tuple(map(activations.get, self.sigmas))
        plan = self.plan(backend.precision)
        return FusedCudaEngine(backend, self.sizes, sigmas, costs.get(self.cost), plan)

    def plan(self, precision: str) -> planning.Plan:
        planned = planning.BatchPlan(self.batch, fusion=self.fusion(precision, self.batch))
        return planning.Plan(
            "cuda", "", "fused", "", captured=False, sizes=self.sizes, batches=(planned,),
            precision=precision,
        )  # fmt: skip


_FORMS = (
    Form(  # two blocks, of which one takes two tiles, the last a short one
        "blocks", (37, 40, 19, 5), ("relu", "tanh", "softmax"), "categorical_cross_entropy",
        (Adam(l2=0.02, l1=0.01, epsilon=0.01), Adam(epsilon=0.1, max_norm=0.9)),
        batch=69, rows=150, tile=32,
        warps=(2, 2), grid=2,
    ),
    Form(
        "long sums", (70, 64, 66), ("gelu", "sigmoid"), "quadratic",
        (SGD(momentum=0.8, clip_value=0.05, max_norm=0.8),), batch=70, rows=70, tile=64,
        warps=(2, 1), large=True,
    ),
    Form(  # outputs in both halves of a fragment
        "in memory", (20, 33, 12), ("silu", "exponential"), "poisson", (SGD(), SGD(l2=0.3)),
        batch=48, rows=60, tile=16, warps=(1, 4), grid=2, in_registers=False,
        dropout=(0.4,),
    ),
    Form(
        "odd, in memory", (3, 17, 2, 1), ("elu", "leaky_relu", "sigmoid"), "binary_cross_entropy",
        (AdamW(weight_decay=0.2),), batch=33, rows=33, tile=32, warps=(2, 1), in_registers=False,
        weighted=True,
    ),
    Form(
        "one layer", (8, 32), ("softplus",), "huber(delta=0.3)",
        (SGD(momentum=0.9, nesterov=True),) * 2, batch=20, rows=45, tile=32, warps=(1, 2),
    ),
    Form(  # e^z of no row can be formed without its maximum: all of it low, the last or first high
        "softmax", (6, 44), ("softmax",), "quadratic", (SGD(),) * 4, batch=16, rows=20, tile=16,
        warps=(1, 1), far=((slice(None), -300.0), (slice(-1, None), 300.0), (slice(1), 300.0)),
        precisions=("bf16", "float32"),
    ),
    Form(
        "bytes", (20, 6, 3), ("identity", "softmax"), "categorical_cross_entropy",
        (SGD(l2=0.1), SGD()), batch=18, rows=40, tile=16, warps=(1, 2), grid=2, bytes=True,
    ),
    Form(
        "odd bytes", (21, 4), ("tanh",), "quantile(q=(0.1, 0.3, 0.5, 0.9))", (SGD(),), batch=30,
        rows=30, tile=32, warps=(2, 1), bytes=True, precisions=("bf16", "float32"),
    ),
    Form(
        "pairs", (9, 20, 6), ("sigmoid", "tanh"), "gaussian_nll", (SGD(), SGD(l1=0.1)),
        batch=20, rows=30, tile=16, warps=(1, 2), grid=2, dropout=(0.3,), weighted=True,
    ),
    Form(  # more than a warp adds up at once
        "many blocks", (3, 2), ("sigmoid",), "quadratic", (SGD(), SGD(l2=0.3)), batch=530,
        rows=530, tile=16, warps=(1, 1), grid=34, precisions=("float32",),
    ),
)  # fmt: skip

FORMS = {form.name: form for form in _FORMS}
#: (form, precision).
TRAININGS = [(form.name, precision) for form in _FORMS for precision in form.precisions]


def gentle(rule: str) -> Optimizer:
    """Of Adam with an ε beside which a rounded gradient that is nearly 0 makes no step."""
    optimizer = optimizers.get(rule)
    return replace(optimizer, epsilon=0.1) if isinstance(optimizer, Adam) else optimizer


def kernels() -> Iterator[Kernel]:
    """What `FORMS` launch."""
    for form in _FORMS:
        yield from form.kernels()


def check(backend: Any, form: Any, ties: bool = False) -> list[np.ndarray]:
    """The results, where they are as near to NumPy as so many steps allow.

    NumPy rounds the same factors, to the same bits, so that what is left is float32's own error;
    but σ', which it does not round where the fused kernel does. With `ties` a factor in bf16 may be
    rounded the other way, too, where this machine's BLAS sums in another order.
    """
    got = Run(form, backend, np.float32).train(form.engine(backend))
    sigmas, precision = tuple(map(activations.get, form.sigmas)), backend.precision
    plan = planning.Plan("numpy", "", "layered", "", captured=False)
    rounds = precision != "float32"
    numpy = NumpyBackend("float32", precision) if rounds else NumpyBackend("float64")
    layered = LayeredEngine(numpy, form.sizes, sigmas, costs.get(form.cost), plan)
    exact = Run(form, numpy, np.float32).train(layered)
    unit = 2.0**-10 if form.rounds_slopes(precision) else 2.0**-18
    if ties and precision == "bf16":
        unit = max(unit, 2.0**-16)
    steps = 2 * -(-form.rows // form.batch)
    for i, (a, b) in enumerate(zip(got, exact, strict=True)):
        b = b.astype(np.float64)
        assert_close(a, b, unit * steps * (1 + np.abs(b)), f"{form.name}, array {i}")
    gaps = np.ones(Layout(form.sizes).length, bool)
    for views in Layout(form.sizes).views(np.arange(len(gaps))):
        for view in views:
            gaps[view] = False
    for array in got:
        if array.shape == gaps.shape:
            assert not array[gaps].any(), "between the arrays"
    return got
