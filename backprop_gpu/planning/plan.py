"""The one place that chooses: backend, engine, and what the engine runs.

Pure functions of a description (sizes, batch, dtype, device), each answer with
its reason, so that every choice can be tested on a machine without a device.
Nothing else in the package looks at a shape to decide something.

The kernel of a product is chosen in `products`, how the resident kernel is cut in `residency`, how
a CPU divides its work in `cpu`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .. import validation
from . import residency
from .cpu import LOADING, cpu_obstacle, cpu_work, layered_seconds
from .device import Device
from .products import Product, Transposes, choose_product, layered_step_seconds
from .residency import Residency

#: Seconds that building the resident kernel of a network takes, the first time on a machine.
BUILDING = 1.5

#: Rows that `predict` and `loss` push through the network at a time: enough to
#: fill a device, few enough that the activations stay small beside the data.
CHUNK_ROWS = 4096


def choose_engine(
    requested: str, backend: str, obstacle: str | None, seconds: float
) -> tuple[str, str]:
    """(engine, reason). Never depends on what the process ran before: same run, same bits.

    Parameters
    ----------
    requested : "auto", "layered" or "resident"
    backend : str
    obstacle : str or None
        Why the resident engine cannot run this, if it cannot.
    seconds : float
        How long the layered engine is expected to train.

    Raises
    ------
    ValueError
        For an unknown name, or the resident engine where it cannot run, with the obstacle.
    """
    _check_engine(requested)
    if backend != "numpy":
        obstacle = f"it works on NumPy arrays, and the backend is {backend}"
    if requested == "layered":
        return "layered", "asked for"
    if requested == "resident":
        if obstacle is not None:
            raise ValueError(f"engine 'resident' cannot run this: {obstacle}")
        return "resident", "asked for"
    if backend != "numpy":
        return "layered", "one backend call an equation; the only engine of this backend so far"
    if obstacle is not None:
        return "layered", f"one backend call an equation; not resident, because {obstacle}"
    if seconds > LOADING:
        return "resident", "an epoch is one loop of compiled code"
    return (
        "layered",
        f"one backend call an equation; about {seconds:.1f} s of training do not repay loading "
        "the resident loop",
    )


def _check_engine(requested: str) -> None:
    validation.one_of("engine", requested, ("auto", "layered", "resident"))


def _choose_on_device(
    sizes: Sequence[int],
    itemsize: int,
    device: Device,
    run: Run,
    obstacle: str | None,
) -> tuple[str, str]:
    """(engine, reason) for a CUDA device, as `choose_engine` for a CPU."""
    if run.engine == "layered":
        return "layered", "asked for"
    m, members = run.batch_size, run.members
    if obstacle is None and run.clips_norm:
        obstacle = "clip_norm needs the norm of all gradients before the first of them is used"
    cut: Residency | None = None
    if obstacle is None:
        found = residency.choose(sizes, m, itemsize, run.slots, device, members)
        cut, obstacle = (None, found) if isinstance(found, str) else (found, None)
    # What is chosen does not depend on how X is stored, and neither do the bits.
    if cut is None:
        if run.engine == "resident":
            raise ValueError(f"engine 'resident' cannot run this: {obstacle}")
        return "layered", f"one backend call an equation; not resident, because {obstacle}"
    layered = members * layered_step_seconds(sizes, m, itemsize, device)

    def predicted(cut: Residency) -> str:
        ours, theirs = f"{cut.seconds * 1e6:.1f} µs", f"{layered * 1e6:.0f} µs"
        of_all = f", of all {members} networks" if members > 1 else ""
        return f"predicted {ours} a step against {theirs}, layered{of_all}"

    saved = (layered - cut.seconds) * run.epochs * math.ceil(run.rows / m)
    if run.engine == "resident" or saved > BUILDING:
        stored = 1 if run.bytes else itemsize
        taken = residency.choose(sizes, m, itemsize, run.slots, device, members, stored)
        assert not isinstance(taken, str)
        asked = "asked for; " if run.engine == "resident" else ""
        return "resident", f"{asked}an epoch is one launch, {taken}; {predicted(taken)}"
    why = (
        f"would save {saved:.2f} s of training, less than building it takes"
        if saved > 0
        else "is not expected to be faster"
    )
    return "layered", f"one backend call an equation; the resident kernel {why} ({predicted(cut)})"


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
class Plan:
    """What `fit` will run, and why. ``str(plan)`` is meant to be read."""

    backend: str
    backend_reason: str
    engine: str
    engine_reason: str
    captured: bool
    products: tuple[tuple[str, Product], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"backend {self.backend}: {self.backend_reason}",
            f"engine {self.engine}: {self.engine_reason}",
        ]
        for equation, chosen in self.products:
            lines.append(f"  {equation}: {_describe(chosen)} ({chosen.reason})")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Work:
    """What one equation of a step asks of the machine."""

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
        Numbers of optimizer state a parameter.
    """
    products = {label: _describe(chosen) for label, chosen in plan.products}
    resident = plan.engine == "resident"
    library = "BLAS" if plan.backend == "numpy" else "our tiled product"
    other = "NumPy" if plan.backend == "numpy" else "a map"
    if resident:
        other = "the resident loop" if plan.backend == "numpy" else "the resident kernel"
    m, found = batch, []

    def product(label: str, rows: int, columns: int, summed: int, extra: int) -> None:
        kernel = products.get(label, other if resident else library)
        moved = rows * summed + summed * columns + rows * columns + extra
        found.append(Work(label, kernel, 2 * rows * columns * summed, moved * itemsize))

    def elementwise(label: str, flops: int, moved: int, kernel: str = other) -> None:
        found.append(Work(label, kernel, flops, moved * itemsize))

    layers = list(enumerate(pairwise(sizes), start=1))
    for l, (k, n) in layers:
        product(f"forward layer {l}", m, n, k, n)
    elementwise("BP1", 2 * m * sizes[-1], 3 * m * sizes[-1])
    for l, (k, n) in reversed(layers):
        if products.get(f"BP4 layer {l}", "").startswith("fused"):
            elementwise(f"BP3 layer {l}", m * n, n, "that of BP4")  # which reads δ
        else:
            elementwise(f"BP3 layer {l}", m * n, m * n + n)
        product(f"BP4 layer {l}", n, k, m, 0)
        if l > 1:
            product(f"BP2 layer {l - 1}", m, k, n, m * k)
    parameters = sum(k * n + n for k, n in pairwise(sizes))
    elementwise("update", 2 * parameters, (3 + 2 * slots) * parameters)
    return tuple(found)


def _describe(chosen: Product) -> str:
    tile = f" tile {chosen.tile}" if chosen.tile else ""
    split = f" split {chosen.splits}" if chosen.splits > 1 else ""
    return f"{chosen.kernel}{tile}{split}"


def least_bytes(sizes: Sequence[int], batch: int, itemsize: int, on_chip: int = 0) -> int:
    """What a step moves at least: its rows, and the parameters twice if the chip cannot keep them.

    ``on_chip`` is in bytes.
    """
    parameters = sum(k * n + n for k, n in pairwise(sizes))
    kept = parameters * itemsize <= on_chip
    return itemsize * (batch * (sizes[0] + sizes[-1]) + (0 if kept else 2 * parameters))


@dataclass(frozen=True)
class Run:
    """A training run, as far as the choice of an engine depends on it."""

    rows: int
    epochs: int
    batch_size: int
    engine: str = "auto"
    #: Why the resident engine cannot run it, if it cannot.
    obstacle: str | None = None
    #: Networks that train at once.
    members: int = 1
    step_callbacks: bool = False
    user_cost: bool = False
    #: Numbers of optimizer state a parameter.
    slots: int = 0
    #: The optimizers' rules, as far as they are known.
    rules: frozenset[str] = frozenset()
    #: Whether gradients are clipped by their norm.
    clips_norm: bool = False
    #: Whether X is stored as uint8.
    bytes: bool = False


def choose_plan(
    sizes: Sequence[int],
    itemsize: int,
    choice: Choice,
    device: Device | None,
    run: Run | None = None,
    cores: int = 1,
    algorithm: Callable[[Transposes, int, int, int], str] | None = None,
) -> Plan:
    """The plan of a training run: which engine, which kernels, and why.

    Without `run` it is the plan of a network that has not been asked to train. ``cores``
    are those of the CPU. ``algorithm`` tells how the library forms an (m, n) product summed over k.
    """
    if run is None:
        reason = "one backend call an equation; `fit` chooses its own"
        return Plan(choice.backend, choice.reason, "layered", reason, captured=False)
    _check_engine(run.engine)
    obstacle = run.obstacle
    if run.step_callbacks:
        obstacle = "a callback after every batch needs Python between steps"
    if device is not None:
        engine, reason = _choose_on_device(sizes, itemsize, device, run, obstacle)
        if engine == "resident":
            return Plan(choice.backend, choice.reason, engine, reason, captured=False)
    else:
        slower = None
        if run.engine == "auto":
            slower = cpu_obstacle(sizes, run.batch_size, itemsize, cores)
        engine, reason = choose_engine(
            run.engine,
            choice.backend,
            obstacle or slower,
            run.members * layered_seconds(sizes, run.batch_size, run.rows, run.epochs),
        )
    if device is None:
        if engine == "resident" and run.members > 1:
            reason += f"; a thread a network, {min(cores, run.members)} at a time"
        elif engine == "resident":
            reason += f"; {cpu_work(sizes, run.batch_size, itemsize, cores)}"
        return Plan(choice.backend, choice.reason, engine, reason, captured=False)
    notes = []
    if run.user_cost:
        notes.append(
            "a user's cost runs as CuPy array operations, without CuPy as NumPy's on the host: "
            "steps are not captured"
        )
    if run.step_callbacks:
        notes.append("a callback after every batch: steps are launched one by one, not captured")
    captured = not notes
    if captured:
        notes.append("whole steps are captured in a CUDA graph and replayed")
    m = run.batch_size
    products = []
    for l, (fan_in, n) in enumerate(pairwise(sizes), start=1):
        shapes: list[tuple[str, Transposes, int, int, int]] = [
            (f"forward layer {l}", "NT", m, n, fan_in),
            (f"BP4 layer {l}", "TN", n, fan_in, m),
        ]
        if l > 1:
            shapes.append((f"BP2 layer {l - 1}", "NN", m, fan_in, n))
        for label, layout, rows, columns, k in shapes:
            chosen = choose_product(layout, rows, columns, k, itemsize, device, device.library)
            if chosen.tile is None and algorithm is not None:
                named = algorithm(layout, rows, columns, k)
                chosen = replace(chosen, reason=f"{chosen.reason}; {named}")
            products.append((label, chosen))
    return Plan(
        choice.backend, choice.reason, engine, reason, captured, tuple(products), tuple(notes)
    )
