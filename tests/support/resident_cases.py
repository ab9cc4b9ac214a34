"""Forms of the resident kernel, each with a training run that it must carry out as `layered` does.

Small networks, cut in ways that the planner keeps for large ones: tiles that do not divide a layer,
sums in slices, clusters, a short last batch. `kernel_cases.py` makes a case of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backprop_gpu import activations, costs, planning
from backprop_gpu.backends.base import Backend
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.backends.numpy import NumpyBackend
from backprop_gpu.cuda.catalogue import Catalogue, Kernel
from backprop_gpu.engines import Engine, Hyperparameters, Member
from backprop_gpu.engines.layered import LayeredEngine
from backprop_gpu.engines.resident_cuda import ResidentCudaEngine
from backprop_gpu.optimizers import SGD, Adam, AdamW, Optimizer
from backprop_gpu.parameters import Layout, Parameters
from backprop_gpu.philox import Draws
from backprop_gpu.planning import residency
from reference import assert_close

#: What TF32 leaves of it, 2^13 times as large (factors.cuh), is infinite.
LARGE = np.float32(2.0**127 * (1 + 700.4 / 1024))


@dataclass(frozen=True)
class Form:
    """A network, how the kernel is cut to it, and what it trains on.

    ``tiles`` are X, J, XB, JU of each layer, ``cut`` its slices; one of ``optimizers`` a member.
    """

    name: str
    sizes: tuple[int, ...]
    sigmas: tuple[str, ...]
    cost: str
    optimizers: tuple[Optimizer, ...]
    batch: int
    rows: int
    threads: int
    cut: tuple[int, ...]
    tiles: tuple[tuple[int, int, int, int], ...]
    cluster: int = 1
    #: Whether its blocks are no cluster.
    apart: bool = False
    stages: int = 3
    #: First biases of the last layer that are far from the rest, (slice, value), one per member.
    far: tuple[tuple[slice, float], ...] = ()
    #: A number of X is near the largest, and what it is multiplied by as small, at first; another
    #: of w[1], too.
    large: bool = False
    #: X of uint8, read as such.
    bytes: bool = False
    #: Of hidden layers.
    dropout: tuple[float, ...] = ()
    #: Rows count by weights, of which some are 0, and two labels are missing.
    weighted: bool = False

    def residency(self, itemsize: int) -> residency.Residency:
        # With room for two networks, so that three of them run in two launches.
        device = replace(planning.H200, clusters=(), multiprocessors=2 * self.cluster)
        for _ in residency.STAGES:
            found = residency.choose_as_stored(  # `choose` would ask for room for the numbers, too
                self.sizes, self.batch, itemsize, self.optimizers[0].slots, device, 1,
                1 if self.bytes else itemsize, (self.threads,),
                () if self.apart else (self.cluster,), (self.cluster,) if self.apart else (),
                self.cut,
            )  # fmt: skip
            assert not isinstance(found, str), found
            if found.stages == self.stages:
                break
            device = replace(device, shared_memory=found.shared_memory - 1)
        layers = (
            residency.LayerTiles(n, x, j, slices, xb, ju)
            for n, (x, j, xb, ju), slices in zip(self.sizes[1:], self.tiles, self.cut, strict=True)
        )
        return replace(found, layers=tuple(layers))

    def kernels(self, *dtypes: str) -> Iterator[Kernel]:
        """What it launches."""
        sigmas = [activations.get(name) for name in self.sigmas]
        for dtype in map(np.dtype, dtypes):
            cut = self.residency(dtype.itemsize)
            rule = self.optimizers[0].rule
            yield Catalogue(dtype).resident(
                cut, sigmas, costs.get(self.cost), rule, bool(self.dropout)
            )

    def engine(self, backend: Backend) -> ResidentCudaEngine:
        sigmas = tuple(map(activations.get, self.sigmas))
        plan = self.plan(backend.dtype.itemsize)
        return ResidentCudaEngine(backend, self.sizes, sigmas, costs.get(self.cost), plan)

    def plan(self, itemsize: int, *batches: int) -> planning.Plan:
        """In this form, for rules of any number of slots; `batches` are sizes beside its own."""
        planned = []
        for m in (self.batch, *batches):
            rules = (SGD(),), (SGD(momentum=0.5),), (Adam(),)
            cuts = (replace(self, batch=m, optimizers=rule).residency(itemsize) for rule in rules)
            planned.append(planning.BatchPlan(m, cuts=tuple(cuts)))
        return planning.Plan(
            "cuda", "", "resident", "", captured=False, sizes=self.sizes, batches=tuple(planned)
        )


FORMS = (
    Form(
        "cluster", (37, 11, 6, 5), ("gelu", "tanh", "softmax"), "categorical_cross_entropy",
        (Adam(l2=0.02, l1=0.01), Adam()), batch=7, rows=31, threads=64, cluster=4, cut=(8, 1, 1),
        tiles=((3, 2, 2, 4), (2, 4, 3, 2), (1, 2, 1, 1)),
    ),
    Form(  # three members, of which two run at once
        "apart", (37, 11, 6, 5), ("gelu", "tanh", "softmax"), "categorical_cross_entropy",
        (Adam(l2=0.02, l1=0.01), Adam(), Adam()), batch=7, rows=31, threads=64, cluster=4,
        cut=(8, 1, 1), tiles=((3, 2, 2, 4), (2, 4, 3, 2), (1, 2, 1, 1)), apart=True,
    ),
    Form(
        "bytes, apart", (52, 6), ("sigmoid",), "quadratic", (SGD(), SGD()), batch=4,
        rows=11, threads=32, cut=(4,), tiles=((2, 1, 1, 2),), cluster=2, apart=True, stages=2,
        bytes=True,
    ),
    Form(
        "block", (25, 18, 13, 4), ("relu", "silu", "sigmoid"), "quadratic",
        (SGD(momentum=0.8, clip_value=0.05),), batch=5, rows=23, threads=96, cut=(2, 4, 1),
        tiles=((2, 5, 4, 2), (5, 3, 1, 8), (2, 2, 1, 16)), stages=2, dropout=(0.25, 0.5),
        weighted=True,
    ),
    Form(  # a warp has more rows than its softmax takes at once
        "members", (12, 9, 8), ("sigmoid", "softmax"), "quadratic",
        (SGD(), SGD(l2=0.3), SGD(l1=0.1)), batch=6, rows=20, threads=32,
        cut=(4, 1), tiles=((1, 1, 8, 1), (4, 1, 1, 4)), cluster=2,
    ),
    Form(
        "pairs", (9, 8, 6), ("tanh", "silu"), "gaussian_nll", (Adam(epsilon=0.1),) * 2, batch=5,
        rows=13,
        threads=64, cut=(2, 1), tiles=((2, 2, 2, 2), (2, 3, 2, 1)), cluster=2, dropout=(0.3,),
        weighted=True,
    ),
    Form(
        "one layer", (8, 33), ("silu",), "quadratic",
        (SGD(momentum=0.9, nesterov=True),) * 2, batch=1, rows=5, threads=32, cut=(1,),
        tiles=((1, 8, 1, 8),),
    ),
    Form(  # e^z of no row can be formed without its maximum: all of it low, the last or first high
        "softmax", (6, 37), ("softmax",), "categorical_cross_entropy", (SGD(),) * 3, batch=4,
        rows=9, threads=64, cut=(1,), tiles=((2, 4, 1, 4),),
        far=((slice(None), -300.0), (slice(-1, None), 300.0), (slice(1), 300.0)),
    ),
    Form(
        "narrow", (3, 2, 1, 2, 3), ("elu", "softplus", "identity", "sigmoid"),
        "binary_cross_entropy", (AdamW(weight_decay=0.2),), batch=6, rows=6, threads=128,
        cut=(16, 1, 1, 1), tiles=((1, 1, 1, 1),) * 4, cluster=8,
    ),
    Form(
        "bytes", (32, 6, 3), ("tanh", "softmax"), "categorical_cross_entropy",
        (SGD(l2=0.1), SGD()), batch=4, rows=10, threads=64, cut=(2, 1),
        tiles=((2, 3, 4, 4), (1, 1, 1, 1)), stages=2, bytes=True,
    ),
    Form(  # blocks that start between two copies, have less or, at T = float, nothing
        "bytes, cluster", (80, 5, 2), ("sigmoid", "sigmoid"), "quadratic", (Adam(epsilon=1e-3),),
        batch=3, rows=8, threads=32, cut=(8, 1), tiles=((3, 2, 1, 8), (1, 2, 1, 1)), cluster=8,
        bytes=True,
    ),
    Form(
        "bytes by four", (20, 7), ("sigmoid",), "quadratic", (SGD(momentum=0.5),), batch=5,
        rows=13, threads=96, cut=(4,), tiles=((2, 2, 1, 4),), bytes=True,
    ),
    Form(
        "bytes by four, cluster", (52, 6), ("sigmoid",), "quadratic", (SGD(), SGD()), batch=4,
        rows=11, threads=32, cut=(4,), tiles=((2, 1, 1, 2),), cluster=2, stages=2, bytes=True,
    ),
    Form(
        "odd bytes", (37, 4), ("tanh",), "quantile(q=(0.1, 0.3, 0.5, 0.9))", (SGD(),), batch=3,
        rows=7, threads=64, cut=(1,), tiles=((1, 4, 1, 1),), bytes=True,
    ),
    Form(
        "odd bytes, cluster", (27, 5, 4), ("tanh", "sigmoid"), "cosine", (SGD(),), batch=6,
        rows=15, threads=32, cut=(4, 1), tiles=((3, 1, 2, 4), (1, 1, 1, 2)), cluster=4, bytes=True,
    ),
)  # fmt: skip


def kernels() -> Iterator[Kernel]:
    """What `FORMS` launch."""
    for form in FORMS:
        yield from form.kernels("float32", "float64")


class Run:
    """Training runs of a form's members on any backend, from the same numbers."""

    def __init__(self, form: Form, backend: Backend, dtype: Any) -> None:
        """`dtype` is what data and first parameters are rounded to."""
        self.form, self.backend = form, backend
        rng = np.random.default_rng(1)
        inputs, outputs = form.sizes[0], form.sizes[-1]
        X = rng.standard_normal((form.rows, inputs)).astype(dtype)
        if form.large:
            X[0, 1] = LARGE
            X[:, 2] *= 8 / LARGE
        if form.bytes:
            X = rng.integers(0, 256, X.shape, np.uint8)
        Y = rng.uniform(size=(form.rows, outputs))
        Y[0] = np.arange(outputs) == 0
        Y = (Y / Y.sum(axis=1, keepdims=True)).astype(dtype)
        if form.weighted:
            Y[1, 0] = Y[-1, -1] = np.nan
        if form.cost == "gaussian_nll":
            Y = costs.get(form.cost).prepare(Y[:, : outputs // 2], outputs)
        drawn = np.random.default_rng(2)
        rows: list[Any] = [None, None]
        if form.weighted:
            rows = [drawn.uniform(size=form.rows).astype(dtype) for _ in range(2)]
            for each in rows:
                each[[1, -2]] = 0.0
        keys = drawn.integers(2**64, size=2, dtype=np.uint64).tolist()
        draws = [Draws(form.dropout, (key,), 3) if form.dropout else None for key in keys]
        stored = np.uint8 if form.bytes and isinstance(backend, CudaBackend) else None
        self.X, self.Y = backend.asarray(X, stored), backend.asarray(Y)
        layout = Layout(form.sizes)
        steps = -(-form.rows // form.batch)
        self.members = []
        for optimizer in form.optimizers:
            flat = np.zeros(layout.length, dtype)
            weights, biases = layout.views(flat)
            for array in (*weights, *biases):
                array[...] = rng.standard_normal(array.shape) / array.shape[-1] ** 0.5
            # With large inputs w[1] is small, and the steps as small as its gradient is large.
            weights[0][...] /= 128 if form.bytes else 1
            weights[0].flat[0] = 0.0  # sign(0) is 0
            if form.large:
                weights[0][:, 1] *= 8 / LARGE
                weights[0][-1, 2] = LARGE
            for place, value in form.far[len(self.members) :][:1]:
                biases[-1][place] += value
            orders = [rng.permutation(form.rows) for _ in range(2)]
            rates = rng.uniform(0.02, 0.1, (2, steps)) / (128**2 if form.bytes else 1)
            self.members.append(
                [
                    Member(
                        parameters, slots, order,
                        Hyperparameters(
                            form.batch, optimizer, optimizer.coefficients(rate, epoch * steps)
                        ),
                        rows[epoch], draws=draws[epoch],
                    )
                    for parameters in [Parameters(layout, self._array(flat))]
                    for slots in [
                        tuple(self._array(np.zeros_like(flat)) for _ in range(optimizer.slots))
                    ]
                    for epoch, (order, rate) in enumerate(zip(orders, rates, strict=True))
                ]
            )  # fmt: skip

    def _array(self, host: np.ndarray) -> Any:
        """One of its own: what a member has is written."""
        array = self.backend.empty(host.shape)
        self.backend.copy(self.backend.asarray(host), array)
        return array

    def train(self, engine: Engine) -> list[np.ndarray]:
        """Two epochs: costs of all steps, parameters and state, of one member after the other."""
        costs = [
            engine.run_members([member[epoch] for member in self.members], self.X, self.Y)
            for epoch in range(2)
        ]
        found = []
        for i, member in enumerate(self.members):
            found.append(np.concatenate([costs[0][i], costs[1][i]]))
            for array in (member[0].parameters.flat, *member[0].slots):
                found.append(self.backend.to_numpy(array))
        return found


def check(backend: Any, form: Form, run: Callable[..., Run] = Run) -> list[np.ndarray]:
    """The results, where they are as near to float64 as so many steps allow."""
    if not form.apart and form.cluster > residency.largest_cluster(backend.device):
        return []
    dtype = backend.dtype
    got = run(form, backend, dtype).train(form.engine(backend))
    exact_backend = NumpyBackend("float64")
    sigmas = tuple(map(activations.get, form.sigmas))
    plan = planning.Plan("numpy", "", "layered", "", captured=False)
    layered = LayeredEngine(exact_backend, form.sizes, sigmas, costs.get(form.cost), plan)
    exact = run(form, exact_backend, dtype).train(layered)
    steps = 2 * -(-form.rows // form.batch)
    for i, (a, b) in enumerate(zip(got, exact, strict=True)):
        bound = 64 * steps * np.finfo(dtype).eps * (1 + np.abs(b))
        assert_close(a, b, bound, f"{form.name}, array {i}")
    gaps = np.ones(Layout(form.sizes).length, bool)
    for view in (lambda views: (*views[0], *views[1]))(
        Layout(form.sizes).views(np.arange(len(gaps)))
    ):
        gaps[view] = False
    for array in got:
        if array.shape == gaps.shape:
            assert not array[gaps].any(), "between the arrays"
    return got
