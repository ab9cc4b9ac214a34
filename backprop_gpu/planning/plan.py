"""The one place that chooses: backend, engine, and what the engine runs.

Pure functions of a description (sizes, batch, dtype, device), each answer with
its reason, so that every choice can be tested on a machine without a device.
Nothing else in the package looks at a shape to decide something.

The kernel of a product is chosen in `products`; how the resident, the fused and the persistent
kernel are cut in `residency`, `fusion` and `persistence`; how a CPU divides its work in `cpu`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .. import html, validation
from . import fusion, persistence, residency
from .cpu import MOST_SHARDS, CpuWork, cpu_work, shards_of_batch, stays_sparse
from .device import Device
from .fusion import Fusion
from .persistence import Persistence
from .products import (
    Algorithm,
    Product,
    layered_products,
    layered_step_seconds,
    product_shapes,
)
from .residency import Residency
from .restore import restored

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

#: Seconds that building an engine's kernel takes, the first time on a machine.
BUILDING = {"resident": 1.5, "fused": 5.0, "persistent": 5.0}

#: Rows that `predict` and `loss` push through the network at a time: enough to
#: fill a device, few enough that the activations stay small beside the data.
CHUNK_ROWS = 4096

#: Bytes of rows of a sparse X that `predict` and `loss` make dense at a time.
_DENSE_BYTES = 1 << 28


def dense_rows_at_once(row_bytes: int) -> int:
    """Rows of a sparse X that `predict` and `loss` make dense, and push through, at a time."""
    return min(CHUNK_ROWS, max(1, _DENSE_BYTES // row_bytes))


#: Bytes of rows that are mixed at a time: few enough to stay in a CPU's cache, and on a device
#: enough that the host's calls take little beside them.
MIXED_BYTES, MIXED_BYTES_ON_DEVICE = 1 << 22, 1 << 27


def rows_mixed_at_once(row_bytes: int, on_device: bool) -> int:
    """Rows that are mixed before an engine trains on them."""
    return max(1, (MIXED_BYTES_ON_DEVICE if on_device else MIXED_BYTES) // row_bytes)


def choose_engine(requested: str, obstacle: str | None) -> tuple[str, str]:
    """(engine, reason). Of the shape alone: a training of one epoch or a hundred has the same bits.

    Parameters
    ----------
    requested : str
        "auto", or an engine's name.
    obstacle : str or None
        Why that engine, or the resident one for "auto", cannot run this, if it cannot.

    Raises
    ------
    ValueError
        For an engine that is asked for and cannot run this, with the obstacle.
    """
    if requested != "auto":
        if obstacle is not None:
            raise ValueError(f"engine {requested!r} cannot run this: {obstacle}")
        return requested, "asked for"
    if obstacle is not None:
        return "layered", f"one backend call per equation; not resident, because {obstacle}"
    return "resident", "an epoch is one call of compiled code"


def _choose_on_device(
    sizes: Sequence[int],
    itemsize: int,
    device: Device,
    run: Run,
    obstacles: Mapping[str, str | None],
    slopes: Sequence[bool],
    precision: str,
    sigmas: Sequence[str],
) -> tuple[str, str]:
    """(engine, reason) for a CUDA device, as `choose_engine` for a CPU."""
    m, members = run.batch_size, run.members
    if run.engine == "layered":
        return choose_engine(run.engine, obstacles.get(run.engine))
    forms: dict[str, Residency | Fusion | Persistence | str] = {
        "resident": obstacles.get("resident")
        or residency.choose(sizes, m, itemsize, run.slots, device, members),
        "fused": obstacles.get("fused")
        or (
            fusion.choose(sizes, m, device, precision, slopes)
            if itemsize == 4 and len(slopes) == len(sizes) - 2
            else "its activations are not known"
        ),
        "persistent": obstacles.get("persistent")
        or (
            persistence.choose(sizes, m, device, precision)
            if itemsize == 4
            else "its kernel computes in float32"
        ),
    }
    wanted = forms.get(run.engine)
    if isinstance(wanted, str):
        raise ValueError(f"engine {run.engine!r} cannot run this: {wanted}")
    layered = members * layered_step_seconds(
        sizes, m, itemsize, device, precision, sigmas, run.slots
    )
    of_all = f", of all {members} networks" if members > 1 else ""

    def predicted(seconds: float) -> str:
        ours, theirs = f"{seconds * 1e6:.1f} µs", f"{layered * 1e6:.0f} µs"
        return f"predicted {ours} per step against {theirs}, layered{of_all}"

    # What is chosen does not depend on how X is stored, and neither do the bits.
    seconds = {
        name: form.seconds if isinstance(form, Residency) else form.seconds(device, members)
        for name, form in forms.items()
        if not isinstance(form, str) and run.engine in ("auto", name)
    }
    not_resident = (
        f"; not resident, because {forms['resident']}" if isinstance(forms["resident"], str) else ""
    )
    if not seconds:
        return "layered", f"one backend call per equation{not_resident}"
    best = min(seconds, key=seconds.__getitem__)
    saved = (layered - seconds[best]) * run.epochs * math.ceil(run.rows / m)
    if run.engine == best or saved > BUILDING[best]:
        asked, stored = "asked for; " if run.engine == best else "", 1 if run.bytes else itemsize
        launch = "forward and BP1 to BP4 are" if best == "fused" else "an epoch is"
        taken = forms[best]
        assert not isinstance(taken, str)
        expected = seconds[best]
        if isinstance(taken, Residency):
            read = residency.choose(sizes, m, itemsize, run.slots, device, members, stored)
            assert not isinstance(read, str)
            taken, expected = read, read.seconds
        else:
            taken = replace(taken, stored=stored)
        return best, (f"{asked}{launch} one launch, {taken}; {predicted(expected)}{not_resident}")
    why = (
        f"would save {saved:.2f} s of training, less than building it takes"
        if saved > 0
        else "is not expected to be faster"
    )
    return "layered", (
        f"one backend call per equation; the {best} kernel {why} ({predicted(seconds[best])})"
        f"{not_resident}"
    )


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
class BatchPlan:
    """How a step with a mini-batch of ``rows`` runs; which parts there are depends on the engine.

    Parameters
    ----------
    rows : int
        Rows m of the mini-batch.
    products : tuple of (str, Product)
        Kernels of the layered engine on a device, by equation.
    work : CpuWork or None
        How the resident engine of a CPU divides a batch.
    cuts : tuple of Residency
        Forms of the resident kernel, for one network and for all.
    fusion : Fusion or None
        The form of the fused kernel.
    persistence : Persistence or None
        The form of the persistent kernel.
    """

    rows: int
    products: tuple[tuple[str, Product], ...] = ()
    work: CpuWork | None = None
    cuts: tuple[Residency, ...] = ()
    fusion: Fusion | None = None
    persistence: Persistence | None = None

    @property
    def forms(self) -> tuple[Residency | Fusion | Persistence, ...]:
        """Forms of the kernels that are cut to a network."""
        others = (form for form in (self.fusion, self.persistence) if form is not None)
        return (*self.cuts, *others)


@dataclass(frozen=True)
class Plan:
    """What a training runs, and why. ``str(plan)`` is meant to be read.

    An engine does what its plan says and decides nothing again, so the same plan on a machine of
    the same kind gives the same results: ``fit(plan=Plan.from_json(text))`` repeats one that
    `to_json` wrote. Plans are equal if they run the same; reasons and predicted times are no part
    of that.

    Parameters
    ----------
    backend : {"numpy", "cuda", "numba_cuda"}
        What computes.
    backend_reason : str
        Why that backend.
    engine : {"layered", "resident", "fused", "persistent"}
        What runs an epoch.
    engine_reason : str
        Why that engine.
    captured : bool
        Whether whole steps are captured in a CUDA graph.
    sizes : tuple of int
        Of the networks that it is for; () where no training is planned.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic.
    threads : int
        Of a CPU, for networks that train side by side.
    batches : tuple of BatchPlan
        The first is that of the largest mini-batch.
    notes : tuple of str
        What else there is to say.
    precision : {"float32", "float64", "tf32", "bf16"}
        What the factors of products are rounded to.
    shards : int
        Into how many a mini-batch is cut, each summing its gradient, so that ranks may share them:
        1, or a power of two, and then the bits are the same for any number of ranks up to it.

    Examples
    --------
    >>> from backprop_gpu import Network
    >>> from backprop_gpu.planning import Plan
    >>> plan = Network([784, 30, 10], backend="numpy").plan
    >>> plan.backend, plan.backend_reason
    ('numpy', 'asked for')
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    backend: str
    backend_reason: str = field(compare=False)
    engine: str
    engine_reason: str = field(compare=False)
    captured: bool
    sizes: tuple[int, ...] = ()
    dtype: str = "float32"
    threads: int = 1
    batches: tuple[BatchPlan, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    precision: str = "float32"
    shards: int = 1

    @property
    def products(self) -> tuple[tuple[str, Product], ...]:
        """Kernels of each equation's product, for the largest mini-batch."""
        return self.batches[0].products if self.batches else ()

    @property
    def one_launch(self) -> float | None:
        """Seconds predicted of a step of one network in the resident kernel, if it is planned."""
        cuts = self.batches[0].cuts if self.batches else ()
        return min((cut.seconds_for(1) for cut in cuts), default=None)

    def batch(self, rows: int) -> BatchPlan:
        """Return what is planned for a mini-batch.

        Parameters
        ----------
        rows : int
            Rows m of the mini-batch.

        Returns
        -------
        BatchPlan
            That of just so many rows.

        Raises
        ------
        ValueError
            If there is none.
        """
        for planned in self.batches:
            if planned.rows == rows:
                return planned
        raise ValueError(f"the plan has no mini-batch of {rows} rows")

    def work(self, rows: int) -> CpuWork:
        """Return how the CPU's resident engine divides a mini-batch.

        Parameters
        ----------
        rows : int
            Rows m of the mini-batch.

        Returns
        -------
        CpuWork
            The blocks and threads of it.

        Raises
        ------
        ValueError
            If that is not planned.
        """
        work = self.batch(rows).work
        if work is None:
            raise ValueError(f"the plan does not divide a mini-batch of {rows} rows")
        return work

    def cut(self, rows: int, slots: int, members: int) -> Residency:
        """Return the form of the resident kernel for so many networks: the fastest that is planned.

        Parameters
        ----------
        rows : int
            Rows m of the mini-batch.
        slots : int
            Numbers of optimizer state per parameter.
        members : int
            Networks that train at once.

        Returns
        -------
        Residency
            The form.

        Raises
        ------
        ValueError
            If none is planned.
        """
        cuts = [cut for cut in self.batch(rows).cuts if cut.slots == slots]
        if not cuts:
            raise ValueError(
                f"the plan has no resident kernel for {rows} rows and {slots} numbers of optimizer "
                "state per parameter"
            )
        return min(cuts, key=lambda cut: cut.seconds_for(members))

    def fusion(self, rows: int) -> Fusion:
        """Return the form of the fused kernel.

        Parameters
        ----------
        rows : int
            Rows m of the mini-batch.

        Returns
        -------
        Fusion
            The form.

        Raises
        ------
        ValueError
            If none is planned.
        """
        found = self.batch(rows).fusion
        if found is None:
            raise ValueError(f"the plan has no fused kernel for {rows} rows")
        return found

    def persistence(self, rows: int) -> Persistence:
        """Return the form of the persistent kernel.

        Parameters
        ----------
        rows : int
            Rows m of the mini-batch.

        Returns
        -------
        Persistence
            The form.

        Raises
        ------
        ValueError
            If none is planned.
        """
        found = self.batch(rows).persistence
        if found is None:
            raise ValueError(f"the plan has no persistent kernel for {rows} rows")
        return found

    def products_of(self, rows: int) -> dict[str, Product]:
        """Return the kernel of each equation's product.

        Parameters
        ----------
        rows : int
            Rows m of the mini-batch.

        Returns
        -------
        dict of str to Product
            By equation; empty where nothing is planned for so many rows.
        """
        return next((dict(each.products) for each in self.batches if each.rows == rows), {})

    def obstacle(self, run: Run, itemsize: int, device: Device | None) -> str | None:
        """Tell what a training run needs and the plan, or the device, does not have.

        Kernels do not check what they are told, and a plan may come from a damaged file: none
        passes that could not be the planner's.

        Parameters
        ----------
        run : Run
            The training.
        itemsize : int
            Bytes of a number.
        device : Device or None
            The CUDA device, if that is to run it.

        Returns
        -------
        str or None
            The obstacle, if there is one.
        """
        if self.threads < 1:
            return f"it has {self.threads} threads"
        if self.shards < 1 or self.shards.bit_count() > 1 or self.shards > MOST_SHARDS:
            return f"it has {self.shards} shards, which is no power of two up to {MOST_SHARDS}"
        if self.shards < run.ranks:
            return f"it cuts a mini-batch into {self.shards} shards, for {run.ranks} ranks"
        for planned in self.batches:
            obstacle = self._batch_obstacle(planned, itemsize, device)
            if obstacle is not None:
                return obstacle
            if not run.bytes and any(form.stored < itemsize for form in planned.forms):
                return "its kernel reads an X of uint8"
        try:
            if self.engine == "layered":
                for m in layered_rows(run, self.shards):
                    self.batch(m)
            elif self.engine == "fused":
                for m, _ in run.kinds:
                    self.fusion(m)
            elif self.engine == "persistent":
                for m, _ in run.kinds:
                    self.persistence(m)
            for m, slots in run.kinds if self.engine == "resident" else ():
                if device is None:
                    self.work(m)
                else:
                    self.cut(m, slots, 1)
        except ValueError as error:
            return str(error)
        return None

    def _batch_obstacle(
        self, planned: BatchPlan, itemsize: int, device: Device | None
    ) -> str | None:
        """Why mini-batches cannot run as planned, if they cannot."""
        m = planned.rows
        if m < 1:
            return f"it has a mini-batch of {m} rows"
        found = [] if planned.work is None else [planned.work.obstacle(m)]
        if device is not None:
            found += [cut.obstacle(self.sizes, m, itemsize, device) for cut in planned.cuts]
            found += [
                form.obstacle(self.sizes, m, itemsize, device, self.precision)
                for form in (planned.fusion, planned.persistence)
                if form is not None
            ]
            if self.engine == "layered":
                shapes = product_shapes(self.sizes, m)
                products = dict(planned.products)
                if len(planned.products) != len(shapes) or products.keys() != shapes.keys():
                    return f"it has not one kernel for each product of {m} rows"
                found += [
                    products[label].obstacle(layout, k, itemsize, device, self.precision)
                    for label, (layout, _, _, k) in shapes.items()
                ]
        return next((obstacle for obstacle in found if obstacle is not None), None)

    def to_json(self) -> str:
        """Write the plan as a text that `from_json` reads.

        Returns
        -------
        str
            JSON, with the version of its format.
        """
        return json.dumps({"format": _FORMAT, "version": _VERSION, "plan": asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read the plan that `to_json` wrote. Nothing in the text is executed.

        Parameters
        ----------
        text : str
            JSON.

        Returns
        -------
        Plan
            One that is equal to it.

        Raises
        ------
        ValueError
            If it is no plan, or one of another version.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a plan, but damaged JSON: {error}") from None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError("not a plan that Plan.to_json wrote")
        if found.get("version") != _VERSION:
            raise ValueError(
                f"a plan of version {found.get('version')!r}; this backprop_gpu reads {_VERSION}"
            )
        return restored(cls, found.get("plan"), "plan")

    def __str__(self) -> str:
        lines = [
            f"backend {self.backend}: {self.backend_reason}",
            f"engine {self.engine}: {self.engine_reason}",
        ]
        if self.precision != self.dtype:
            lines.append(f"precision {self.precision}: factors are rounded, sums are {self.dtype}")
        for equation, chosen in self.products:
            lines.append(f"  {equation}: {chosen} ({chosen.reason})")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Axes | np.ndarray:
        """Draw how long each product of a step is predicted to take.

        A plan has times of the products that run as CUDA kernels of their own; of all others, and
        on a CPU, the operations of each equation are drawn, which the axis says. What a step takes
        at least on a machine, and the share of that, are ``network.explain(...).plot()``'s.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            To draw into; by default one of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            With a bar an equation.

        Raises
        ------
        ValueError
            If no training is planned.
        ImportError
            If there is no matplotlib (extra ``plot``).
        """
        if not self.sizes or not self.batches:
            raise ValueError(
                "Plan.plot(): no training is planned: fit first, or draw "
                "network.explain(batch_size=…)"
            )
        from .. import pictures

        rows, predicted = self.batches[0].rows, {k: v.seconds for k, v in self.products}
        itemsize = 4 if self.dtype == "float32" else 8
        work = step_work(self.sizes, rows, itemsize, 0, self)
        if predicted:
            work = tuple(each for each in work if each.label in predicted)
        where = f"{self.backend}, {self.engine}"
        total = (
            f"predicted {sum(predicted.values()) * 1e6:,.3g} µs for its products"
            if predicted
            else f"{sum(each.flops for each in work) / 1e6:,.3g} MFLOP"
        )
        if self.one_launch is not None:
            total += f", predicted {self.one_launch * 1e6:,.3g} µs"
        return pictures.step(
            ax,
            [each.label for each in work],
            [each.kernel for each in work],
            [each.flops for each in work],
            [predicted.get(each.label) for each in work],
            [None] * len(work),
            f"{list(self.sizes)}, batch {rows}, {self.dtype}, {where}\na step: {total}",
            "Plan.plot()",
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: backend and engine with their reasons, and the products."""
        sizes = f" of {list(self.sizes)}" if self.sizes else ""
        parts = [
            html.line(f"backend {self.backend}: {self.backend_reason}"),
            html.line(f"engine {self.engine}: {self.engine_reason}"),
        ]
        if self.precision != self.dtype:
            parts.append(
                html.line(f"precision {self.precision}: factors are rounded, sums are {self.dtype}")
            )
        if self.products:
            rows = [
                [label, product, f"{product.seconds * 1e6:.1f}", product.reason]
                for label, product in self.products
            ]
            headings = ["equation", "kernel", "predicted µs", "why"]
            parts.append(html.details("products", html.table(headings, rows)))
        if self.notes:
            parts.append(html.details("notes", html.pre("\n".join(self.notes), 600)))
        return html.block(f"Plan{sizes}", *parts)


_FORMAT, _VERSION = "backprop_gpu plan", 7


@dataclass(frozen=True)
class Work:
    """What one equation of a step asks of the machine.

    Parameters
    ----------
    label : str
        Which equation, of which layer.
    kernel : str
        What carries it out.
    flops : int
        Floating-point operations, a σ or c counted as one.
    bytes : int
        Read and written, if nothing stays on the chip from the equation before.
    """

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
        Numbers of optimizer state per parameter.
    """
    products = {label: str(chosen) for label, chosen in plan.products}
    library = "BLAS" if plan.backend == "numpy" else "our tiled product"
    other = "NumPy" if plan.backend == "numpy" else "a map"
    together = plan.engine != "layered"
    if together:
        other = "compiled code" if plan.backend == "numpy" else f"the {plan.engine} kernel"
    m, found = batch, []

    def product(label: str, rows: int, columns: int, summed: int, extra: int) -> None:
        kernel = products.get(label, other if together else library)
        moved = rows * summed + summed * columns + rows * columns + extra
        found.append(Work(label, kernel, 2 * rows * columns * summed, moved * itemsize))

    def elementwise(label: str, flops: int, moved: int, kernel: str = other) -> None:
        found.append(Work(label, kernel, flops, moved * itemsize))

    layers = list(enumerate(pairwise(sizes), start=1))
    for l, (k, n) in layers:
        product(f"forward layer {l}", m, n, k, n)
    elementwise("BP1", 2 * m * sizes[-1], 3 * m * sizes[-1])
    for l, (k, n) in reversed(layers):
        bp4 = products.get(f"BP4 layer {l}", "")
        beside = "BP4" if bp4.startswith("tiled") or bp4.endswith("BGRADB") else ""
        beside = "BP2" if products.get(f"BP2 layer {l}", "").endswith("DRELU_BGRAD") else beside
        if beside:
            elementwise(f"BP3 layer {l}", m * n, n, f"that of {beside}")  # which has δ
        else:
            elementwise(f"BP3 layer {l}", m * n, m * n + n)
        product(f"BP4 layer {l}", n, k, m, 0)
        if l > 1:
            product(f"BP2 layer {l - 1}", m, k, n, m * k)
    parameters = sum(k * n + n for k, n in pairwise(sizes))
    elementwise("update", 2 * parameters, (3 + 2 * slots) * parameters)
    return tuple(found)


def least_bytes(sizes: Sequence[int], batch: int, itemsize: int, on_chip: int = 0) -> int:
    """What a step moves at least: its rows, and the parameters twice if the chip cannot keep them.

    ``on_chip`` is in bytes.
    """
    parameters = sum(k * n + n for k, n in pairwise(sizes))
    kept = parameters * itemsize <= on_chip
    return itemsize * (batch * (sizes[0] + sizes[-1]) + (0 if kept else 2 * parameters))


@dataclass(frozen=True)
class Run:
    """A training run, as far as its plan depends on it.

    Parameters
    ----------
    rows : int
        Rows n to train on.
    epochs : int
        Passes over them.
    batch_size : int
        Rows m of the largest mini-batch.
    engine : {"auto", "layered", "resident", "fused", "persistent"}
        What is asked for.
    members : int
        Networks that train at once.
    step_callbacks : bool
        Whether Python is called after every step.
    slots : int
        The most numbers of optimizer state per parameter.
    others : tuple of (int, int)
        Pairs (batch size, slots) that some members have in place of these.
    rules : frozenset of str
        The optimizers' rules, as far as they are known.
    options : frozenset of str
        What `Optimizer.options` names, of all.
    bytes : bool
        Whether X is stored as uint8.
    squares : bool
        Whether Σ w² is wanted before every step.
    drops : bool
        Whether activations are dropped out.
    ranks : int
        Processes that share each mini-batch; 0 where that is not asked for.
    short : tuple of int
        Rows of short last mini-batches of members that have fewer rows than these.
    density : float, optional
        Of a sparse X, the share of its numbers that it stores; 1 where mixtures are trained on.
    """

    rows: int
    epochs: int
    #: The largest.
    batch_size: int
    engine: str = "auto"
    #: Networks that train at once.
    members: int = 1
    step_callbacks: bool = False
    #: The most numbers of optimizer state per parameter.
    slots: int = 0
    #: (batch size, slots) that some members have in place of these.
    others: tuple[tuple[int, int], ...] = ()
    #: The optimizers' rules, as far as they are known.
    rules: frozenset[str] = frozenset()
    #: `Optimizer.options` of all.
    options: frozenset[str] = frozenset()
    #: Whether X is stored as uint8.
    bytes: bool = False
    #: Whether Σ w² is wanted before every step.
    squares: bool = False
    #: Whether activations are dropped out.
    drops: bool = False
    #: Processes that share each mini-batch; 0 where that is not asked for.
    ranks: int = 0
    #: Rows of short last mini-batches of members that have fewer rows than these.
    short: tuple[int, ...] = ()
    #: Of a sparse X, the share of its numbers that it stores; 1 where mixtures are trained on.
    density: float | None = None

    @property
    def kinds(self) -> tuple[tuple[int, int], ...]:
        """Pairs (batch size, slots) of all members, the largest first."""
        return tuple(dict.fromkeys(((self.batch_size, self.slots), *self.others)))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of every mini-batch that there is, short last ones too, the largest first."""
        sizes = {m for m, _ in self.kinds} | {self.rows % m for m, _ in self.kinds}
        sizes.update(self.short)
        return tuple(sorted(sizes - {0}, reverse=True))


def layered_rows(run: Run, shards: int) -> tuple[int, ...]:
    """The rows of what the layered engine takes at once: mini-batches, or shards of them."""
    if shards == 1:
        return run.batch_sizes
    sizes: set[int] = set()
    for m in run.batch_sizes:
        each = -(-m // shards)
        sizes |= {each, m % each}
    return tuple(sorted(sizes - {0}, reverse=True))


def choose_plan(
    sizes: Sequence[int],
    dtype: str,
    choice: Choice,
    device: Device | None,
    run: Run | None = None,
    obstacles: Mapping[str, str | None] = MappingProxyType({}),
    cores: int = 1,
    builtin: bool = True,
    algorithm: Algorithm | None = None,
    processor: str = "",
    precision: str | None = None,
    slopes: Sequence[bool] = (),
    sigmas: Sequence[str] = (),
) -> Plan:
    """The plan of a training run: which engine, which kernels, and why.

    Parameters
    ----------
    sizes : n_0 … n_L
    dtype : {"float32", "float64"}
    choice : Choice
        Of the backend.
    device : Device or None
        Of a CUDA backend.
    run : Run, optional
        Without it is the plan of a network that has not been asked to train.
    obstacles : mapping
        Of engines that cannot run it, why.
    cores : int
        Of the CPU.
    builtin : bool
        Whether C is one of ours.
    algorithm : callable, optional
        Asks the library how it forms a product.
    processor : str
        What the CPU's engine is compiled for.
    precision : str
        Of products, if it is not the dtype's.
    slopes : sequence of bool
        Of each hidden layer, whether the fused engine keeps σ' (`fusion.kept_slopes`); where they
        are not given, it is not considered.
    sigmas : sequence of str
        The names of σ of layers 1 … L, "" of a user's own.

    Raises
    ------
    ValueError
        For an engine that is asked for and cannot run this, with the obstacle.
    """
    if run is None:
        reason = "one backend call per equation; `fit` chooses its own"
        return Plan(
            choice.backend, choice.reason, "layered", reason, False, dtype=dtype,
            precision=precision or dtype,
        )  # fmt: skip
    itemsize = 4 if dtype == "float32" else 8
    shards = shards_of_batch(min(m for m, _ in run.kinds), run.ranks)

    def work(m: int) -> CpuWork:
        alone = cores if run.members == 1 else 1
        return cpu_work(sizes, m, itemsize, run.bytes, alone, max(run.ranks, 1))

    if device is not None:
        engine, reason = _choose_on_device(
            sizes, itemsize, device, run, obstacles, slopes, precision or dtype, sigmas
        )
    else:
        wanted = "resident" if run.engine == "auto" else run.engine
        engine, reason = choose_engine(run.engine, obstacles.get(wanted))
        if engine == "resident" and run.engine == "auto" and run.ranks > 1:
            reason = "compiled code, between whose calls ranks add up their gradients"
        if engine == "resident" and run.members > 1:
            reason += f"; a thread per network, {min(cores, run.members)} at a time"
        elif engine == "resident":
            reason += f"; {work(run.batch_size)}"
        if engine == "resident":
            reason += f"; {processor}"
    notes: list[str] = []
    if run.ranks:
        notes.append(
            f"a mini-batch is cut into {shards} shards, of which {run.ranks} "
            f"rank{'s have' if run.ranks > 1 else ' has'} {shards / run.ranks:.3g} each"
        )
    if device is None and engine == "resident" and not builtin:
        notes.append("a user's cost runs in Python, twice for each block of rows")
    if device is not None and engine == "layered":
        if not builtin:
            notes.append(
                "a user's cost runs as CuPy array operations, without CuPy as NumPy's on the host: "
                "steps are not captured"
            )
        if run.step_callbacks:
            notes.append(
                "a callback after every batch: steps are launched one by one, not captured"
            )
    captured = device is not None and engine in ("layered", "fused") and not notes
    if captured:
        notes.append("whole steps are captured in a CUDA graph and replayed")
    if run.density is not None:
        stays = device is None and engine == "resident" and stays_sparse(run.density)
        done = "read as it is" if stays else "made dense, some rows at a time"
        notes.append(f"a sparse X is {done}")
    if engine == "layered":
        batches = tuple(
            BatchPlan(m, ())
            if device is None
            else BatchPlan(
                m,
                tuple(
                    layered_products(
                        sizes, m, itemsize, device, precision, sigmas, algorithm
                    ).items()
                ),
            )
            for m in layered_rows(run, shards)
        )
    elif device is None:
        batches = tuple(
            BatchPlan(m, work=work(m)) for m in sorted({m for m, _ in run.kinds}, reverse=True)
        )
    elif engine in ("fused", "persistent"):
        batches = tuple(
            _form(engine, sizes, m, device, precision or dtype, slopes, run.bytes)
            for m in sorted({m for m, _ in run.kinds}, reverse=True)
        )
    else:
        batches = _cuts(sizes, itemsize, device, run)
    return Plan(
        choice.backend, choice.reason, engine, reason, captured, tuple(sizes), dtype, cores,
        batches, tuple(notes), precision or dtype, shards,
    )  # fmt: skip


def _form(
    engine: str,
    sizes: Sequence[int],
    m: int,
    device: Device,
    precision: str,
    slopes: Sequence[bool],
    bytes: bool,
) -> BatchPlan:
    """The form of a kernel: that for numbers, which may read X as it is stored."""
    form: Fusion | Persistence | str = (
        fusion.choose(sizes, m, device, precision, slopes)
        if engine == "fused"
        else persistence.choose(sizes, m, device, precision)
    )
    if isinstance(form, str):  # no batch size changes what fits
        raise ValueError(f"engine {engine!r} cannot run this: {form}")
    form = replace(form, stored=1 if bytes else 4)
    return BatchPlan(m, fusion=form) if isinstance(form, Fusion) else BatchPlan(m, persistence=form)


def _cuts(sizes: Sequence[int], itemsize: int, device: Device, run: Run) -> tuple[BatchPlan, ...]:
    """The resident kernel's forms for all members, and for one: the last to train may be alone."""
    found: dict[int, list[Residency]] = {}
    stored = 1 if run.bytes else itemsize
    for m, slots in run.kinds:
        for members in sorted({1, run.members}, reverse=True):
            cut = residency.choose(sizes, m, itemsize, slots, device, members, stored)
            if isinstance(cut, str):  # what is smaller than the largest fits where that does
                raise ValueError(f"engine 'resident' cannot run this: {cut}")
            found.setdefault(m, []).append(cut)
    return tuple(BatchPlan(m, cuts=tuple(dict.fromkeys(cuts))) for m, cuts in found.items())
