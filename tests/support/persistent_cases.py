"""Forms of the persistent kernel, each with a training that it must carry out as `layered` does.

Small networks, of sizes that no tile divides, on fewer blocks than there are tiles.
`kernel_cases.py` makes a case of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from backprop_gpu import activations, costs, planning
from backprop_gpu.backends.base import Backend
from backprop_gpu.cuda.catalogue import Catalogue, Kernel
from backprop_gpu.engines.persistent_cuda import PersistentCudaEngine
from backprop_gpu.optimizers import SGD, Adam, AdamW, Optimizer
from backprop_gpu.planning import H200, persistence


@dataclass(frozen=True)
class Form:
    """A network, how the kernel is cut to it, and what it trains on.

    One of ``optimizers`` a member; ``tiles`` of forward, BP2 and BP4.
    """

    name: str
    sizes: tuple[int, ...]
    sigmas: tuple[str, ...]
    cost: str
    optimizers: tuple[Optimizer, ...]
    batch: int
    rows: int
    tiles: tuple[int, int, int]
    grid: int = 1
    #: X of uint8, read as such.
    bytes: bool = False
    #: Of hidden layers.
    dropout: tuple[float, ...] = ()
    #: Rows count by weights, of which some are 0, and two labels are missing.
    weighted: bool = False
    far: tuple[tuple[slice, float], ...] = ()
    large: bool = False
    precisions: tuple[str, ...] = ("bf16", "tf32", "float32")

    def persistence(self, precision: str) -> planning.Persistence:
        found = persistence.choose(self.sizes, self.batch, H200, precision)
        assert not isinstance(found, str)
        stored = 1 if self.bytes else 4
        return replace(found.of_tiles(*self.tiles), grid=self.grid, stored=stored)

    def rounds_slopes(self, precision: str) -> bool:
        return False

    def kernels(self) -> Iterator[Kernel]:
        """What it launches."""
        sigmas = [activations.get(name) for name in self.sigmas]
        for precision in self.precisions:
            yield Catalogue(np.dtype("float32"), precision).persistent(
                self.persistence(precision), sigmas, costs.get(self.cost), self.optimizers[0].rule,
                bool(self.dropout),
            )  # fmt: skip

    def engine(self, backend: Backend) -> PersistentCudaEngine:
        sigmas = tuple(map(activations.get, self.sigmas))
        plan = self.plan(backend.precision)
        return PersistentCudaEngine(backend, self.sizes, sigmas, costs.get(self.cost), plan)

    def plan(self, precision: str) -> planning.Plan:
        planned = planning.BatchPlan(self.batch, persistence=self.persistence(precision))
        return planning.Plan(
            "cuda", "", "persistent", "", captured=False, sizes=self.sizes, batches=(planned,),
            precision=precision,
        )  # fmt: skip


_FORMS = (
    Form(  # each tile once; blocks that forward of layer 1 leaves idle; sums of 70, and short ones
        "tiles", (70, 40, 19, 5), ("relu", "gelu", "softmax"), "categorical_cross_entropy",
        (Adam(l2=0.02, l1=0.01, epsilon=0.01), Adam(epsilon=0.1, max_norm=0.9)),
        batch=67, rows=71,
        tiles=(16, 32, 64), grid=4,
    ),
    Form(
        "long sums", (141, 67, 66), ("tanh", "sigmoid"), "quadratic",
        (SGD(momentum=0.8, clip_value=0.05, max_norm=0.8),), batch=68, rows=72,
        tiles=(64, 16, 32), grid=2, large=True,
    ),
    Form(  # rows of outputs that no tile holds
        "wide outputs", (12, 33, 40), ("silu", "exponential"), "poisson", (SGD(), SGD(l2=0.3)),
        batch=24, rows=60, tiles=(32, 64, 16), grid=3, dropout=(0.4,),
    ),
    Form(
        "odd", (3, 17, 2, 1), ("elu", "leaky_relu", "sigmoid"), "binary_cross_entropy",
        (AdamW(weight_decay=0.2),), batch=33, rows=33, tiles=(16, 16, 16), grid=2, weighted=True,
    ),
    Form(
        "one layer", (8, 32), ("softplus",), "huber(delta=0.3)",
        (SGD(momentum=0.9, nesterov=True),) * 2, batch=20, rows=45, tiles=(16, 16, 64), grid=3,
        precisions=("bf16", "float32"),
    ),
    Form(  # e^z of no row can be formed without its maximum: all of it low, the last or first high
        "softmax", (6, 37), ("softmax",), "quadratic", (SGD(),) * 4, batch=16, rows=20,
        tiles=(64, 16, 16), precisions=("bf16", "float32"),
        far=((slice(None), -300.0), (slice(-1, None), 300.0), (slice(1), 300.0)),
    ),
    Form(
        "bytes", (20, 6, 3), ("identity", "softmax"), "categorical_cross_entropy",
        (SGD(l2=0.1), SGD()), batch=18, rows=40, tiles=(16, 32, 16), grid=2, bytes=True,
        precisions=("bf16", "float32"),
    ),
    Form(
        "odd bytes", (21, 4), ("gelu",), "cosine", (SGD(),), batch=30, rows=30,
        tiles=(32, 16, 32), bytes=True, precisions=("float32",),
    ),
    Form(
        "pairs", (9, 20, 6), ("sigmoid", "gelu"), "gaussian_nll", (SGD(), SGD(l1=0.1)),
        batch=20, rows=30, tiles=(16, 32, 16), grid=2, dropout=(0.3,), weighted=True,
    ),
    Form(
        "deep", (2,) * (persistence.MOST_LAYERS + 1), ("leaky_relu",) * persistence.MOST_LAYERS,
        "quadratic", (SGD(),), batch=3, rows=3, tiles=(16, 16, 16), precisions=("float32",),
    ),
)  # fmt: skip

FORMS = {form.name: form for form in _FORMS}
#: (form, precision).
TRAININGS = [(form.name, precision) for form in _FORMS for precision in form.precisions]


def kernels() -> Iterator[Kernel]:
    """What `FORMS` launch."""
    for form in _FORMS:
        yield from form.kernels()
