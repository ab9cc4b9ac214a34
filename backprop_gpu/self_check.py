"""Whether an engine computes what it should on this GPU: found out before it is first used.

The engine trains a tiny network for a few steps, and the same is done by NumPy in float64. The
verdict is kept in the cache, by everything that it depends on (`facts`), so that a machine asks
once. `obstacle` is what the library asks, `results` what ``backprop-gpu check`` prints.

``BACKPROP_GPU_SELF_CHECK=0`` in the environment takes every engine as it is: for tests that make
a driver fail on purpose.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from . import activations, cache, costs, optimizers, planning
from .activations import Activation
from .backends.numpy import NumpyBackend
from .costs import Cost
from .cuda import compiler
from .cuda.catalogue import Catalogue, Kernel
from .engines import Engine, Hyperparameters, Member
from .engines.fused_cuda import FusedCudaEngine
from .engines.layered import LayeredEngine
from .engines.persistent_cuda import PersistentCudaEngine
from .engines.resident_cuda import ResidentCudaEngine
from .imports import uninterrupted
from .optimizers import SGD, Optimizer
from .parameters import Layout, Parameters
from .planning import Device, Fusion, Persistence, Product, fusion, persistence, residency
from .planning.residency import Residency
from .version import __version__

if TYPE_CHECKING:
    from .backends.cuda import CudaBackend
    from .cuda.runtime import Runtime

_log = logging.getLogger("backprop_gpu")
OFF = "BACKPROP_GPU_SELF_CHECK"
REPORT = "backprop-gpu-check.json"

#: The network: sizes that no tile divides, sums long enough for all slices of a cluster, a short
#: last batch.
SIZES, BATCH, ROWS, EPOCHS, MEMBERS = (67, 9, 5), 4, 11, 3, 3
_SIGMAS = (activations.get("sigmoid"),) * 2
#: Of products with epilogues: rows of whole 16 bytes, without which cuBLASLt may have none.
ALIGNED, _WITH_EPILOGUES = (64, 32, 16), (activations.get("relu"), activations.get("softmax"))
_COST = costs.get("quadratic")
#: Rounding errors of this many ε, of numbers about 1, are what nine steps may add up to.
TOLERANCE = 32
#: Of products whose factors are rounded it is so much: ten times what NumPy's rounding leaves.
ROUNDED: dict[str | None, float] = {"tf32": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True)
class Form:
    """What of an engine is checked.

    ``blocks`` are a network's of the resident kernel, in a cluster or ``apart``, 0 of other
    engines; ``library`` whether its products are cuBLASLt's, ``epilogues`` whether with what those
    can do besides; ``stored`` the bytes of a number of X; ``precision`` that of products on tensor
    cores.
    """

    engine: str
    blocks: int = 0
    library: bool = False
    stored: int | None = None
    apart: bool = False
    precision: str | None = None
    epilogues: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        return ALIGNED if self.epilogues else SIZES

    @property
    def sigmas(self) -> tuple[Activation, ...]:
        return _WITH_EPILOGUES if self.epilogues else _SIGMAS

    def __str__(self) -> str:
        if self.engine == "layered":
            products = "" if self.precision is None else f" of {self.precision}"
            products += " by cuBLASLt" if self.library else " on tensor cores" if products else ""
            products += " with epilogues" if self.epilogues else ""
            return f"layered, products{products}" if products else "layered"
        stored = ", X of uint8" if self.stored == 1 else ""
        if self.engine in ("fused", "persistent"):
            return f"{self.engine}, {self.precision}{stored}"
        blocks = "one block" if self.blocks == 1 else f"a cluster of {self.blocks}"
        if self.apart:
            blocks = f"{self.blocks} blocks apart"
        return f"resident, {blocks}{stored}"


LAYERED = Form("layered")


@dataclass(frozen=True)
class Result:
    """How far something was from NumPy in float64, as a share of the largest number.

    ``trouble`` is why it could not be found out: the first line of an error.
    """

    name: str
    dtype: str
    error: float
    bound: float
    trouble: str | None = None

    @property
    def ok(self) -> bool:
        return self.trouble is None and self.error <= self.bound

    def __str__(self) -> str:
        """What is wrong."""
        if self.trouble is not None:
            return self.trouble
        return f"{self.dtype} numbers are off by {self.error:.1e}, and {self.bound:.1e} is allowed"


def forms(device: Device, dtype: Any) -> Iterator[Form]:
    """All that a device has."""
    yield LAYERED
    if device.library:
        yield replace(LAYERED, library=True)
        yield replace(LAYERED, library=True, epilogues=True)
    if device.multiplies_rounded and np.dtype(dtype) == np.float32:
        for precision in planning.TENSOR_TILES:
            yield replace(LAYERED, precision=precision)
            if device.library and precision != "float32":
                yield replace(LAYERED, library=True, precision=precision)
                yield replace(LAYERED, library=True, precision=precision, epilogues=True)
        for engine in ("fused", "persistent"):
            for precision in planning.TENSOR_TILES:
                for stored in (None, 1):
                    yield Form(engine, stored=stored, precision=precision)
    for stored in (None, 1):
        ways = [(blocks, False) for blocks in residency.CLUSTERS]
        ways += [(blocks, True) for blocks in residency.APART]
        for blocks, apart in ways:
            form = Form("resident", blocks, stored=stored, apart=apart)
            if not isinstance(_cut(form, np.dtype(dtype).itemsize, device), str):
                yield form


# -- the check --------------------------------------------------------------------------------


def check_engine(
    runtime: Runtime, form: Form, dtype: Any, optimizer: Optimizer | None = None
) -> Result:
    """Train the tiny network, and two more beside it, and compare. Raises nothing of its own.

    Parameters
    ----------
    runtime : Runtime
    form : Form
    dtype : float32 or float64
    optimizer : Optimizer, optional
        SGD by default.
    """
    dtype = np.dtype(dtype)
    bound = ROUNDED.get(form.precision, TOLERANCE * float(np.finfo(dtype).eps))
    try:
        engine = _engine(runtime, form, dtype)
        plain = planning.Plan("numpy", "exact", "layered", "exact", captured=False)
        exact = LayeredEngine(NumpyBackend(np.float64), form.sizes, form.sigmas, _COST, plain)
        runs = [
            _train(each, dtype, optimizer or SGD(), form.stored == 1) for each in (engine, exact)
        ]
        error = max(distance(*pair) for pair in zip(*runs, strict=True))
        return Result(str(form), dtype.name, error, bound)
    except Exception as reason:  # whatever a driver, a compiler or a kernel may do
        return Result(str(form), dtype.name, np.inf, bound, first_line(reason))


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def distance(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest error beside the largest number, or 1; infinite where a number is none."""
    with np.errstate(all="ignore"):
        error = float(np.abs(got - exact).max() / max(1.0, np.abs(exact).max()))
    return error if np.isfinite(error) else np.inf


def _engine(runtime: Runtime, form: Form, dtype: np.dtype[Any]) -> Engine:
    from .backends.cuda import CudaBackend

    kinds = LayeredEngine, ResidentCudaEngine, FusedCudaEngine, PersistentCudaEngine
    kind = next(kind for kind in kinds if kind.name == form.engine)
    backend = CudaBackend(dtype, runtime, precision=form.precision)
    plan = _plan(backend, form, dtype)
    return kind(backend, form.sizes, form.sigmas, _COST, plan)


def _plan(backend: CudaBackend, form: Form, dtype: np.dtype[Any]) -> planning.Plan:
    """The tiny network's training in that form, for rules of any number of slots."""
    device = backend.device
    if form.epilogues:
        names = [sigma.name for sigma in form.sigmas]
        batches = tuple(
            planning.BatchPlan(
                m,
                tuple(
                    planning.products_of_step(
                        form.sizes, m, _by_library, names, backend.precision, backend.algorithm
                    ).items()
                ),
            )
            for m in (BATCH, ROWS % BATCH)
        )
    elif form.engine == "layered":
        batches = tuple(
            planning.BatchPlan(
                m,
                tuple(
                    (label, _product(form, dtype, device, *shape))
                    for label, shape in planning.product_shapes(SIZES, m).items()
                ),
            )
            for m in (BATCH, ROWS % BATCH)
        )
    elif form.engine == "fused":
        batches = (planning.BatchPlan(BATCH, fusion=_fusion(form, device)),)
    elif form.engine == "persistent":
        batches = (planning.BatchPlan(BATCH, persistence=_persistence(form, device)),)
    else:
        cuts = []
        for slots in (0, 1, 2):
            cut = _cut(form, dtype.itemsize, device, slots)
            if isinstance(cut, str):
                raise RuntimeError(cut)
            cuts.append(cut)
        batches = (planning.BatchPlan(BATCH, cuts=tuple(cuts)),)
    return planning.Plan(
        "cuda", "to be checked", form.engine, "to be checked",
        captured=form.engine in ("layered", "fused"), sizes=form.sizes, dtype=dtype.name,
        batches=batches, precision=form.precision or dtype.name,
    )  # fmt: skip


def _by_library(*shape: Any) -> Product:
    return Product("cublas", None, 1, 0.0, "to be checked", shape[-1])


def _product(form: Form, dtype: np.dtype[Any], device: Device, *shape: Any) -> Product:
    """How a form of the layered engine forms a product."""
    if form.library or form.precision is not None:
        tile = None if form.library else planning.TENSOR_TILES[str(form.precision)][0]
        return Product("cublas" if form.library else "tiled", tile, 1, 0.0, "to be checked")
    plain = replace(device, tensor_cores=False)
    return planning.choose_product(*shape, dtype.itemsize, plain, False)


def _cut(form: Form, itemsize: int, device: Device, slots: int = 0) -> Residency | str:
    slices = max(1, form.blocks), 1
    return residency.choose(
        SIZES, BATCH, itemsize, slots, device, MEMBERS, form.stored, cut=slices,
        clusters=None if form.apart else (form.blocks,),
        apart=(form.blocks,) if form.apart else None,
    )  # fmt: skip


def _fusion(form: Form, device: Device) -> Fusion:
    """A tile long enough that all sums over its rows are of tensor cores."""
    precision = str(form.precision)
    found = fusion.choose(SIZES, BATCH, device, precision, fusion.kept_slopes(_SIGMAS, precision))
    if isinstance(found, str):
        raise RuntimeError(found)
    found = replace(
        found, stored=form.stored or 4, rows=64, row_warps=2, column_warps=2, blocks=1,
        sharers=fusion.choose_sharers(SIZES, 4), in_registers=True, grid=1,
    )  # fmt: skip
    return replace(found, shared_memory=fusion.block_bytes(found))


def _persistence(form: Form, device: Device) -> Persistence:
    """Blocks that have several tiles each."""
    found = persistence.choose(SIZES, BATCH, device, str(form.precision))
    if isinstance(found, str):
        raise RuntimeError(found)
    grid = min(4, device.multiprocessors)
    return replace(found.of_tiles(16, 16, 16), stored=form.stored or 4, grid=grid)


def _train(
    engine: Engine, dtype: np.dtype[Any], optimizer: Optimizer, as_bytes: bool
) -> list[np.ndarray]:
    """Parameters, optimizer state and costs of all members, from numbers rounded to `dtype`."""
    rng = np.random.default_rng(0)
    backend, layout, steps = engine.backend, Layout(engine.sizes), -(-ROWS // BATCH)
    X = rng.standard_normal((ROWS, engine.sizes[0])).astype(dtype)
    if as_bytes:
        X = rng.integers(0, 4, X.shape, np.uint8)
    Y = rng.random((ROWS, engine.sizes[-1])).astype(dtype)
    rows = backend.asarray(X, X.dtype if as_bytes and engine.reads_bytes else None)
    targets = backend.asarray(Y)
    states = []
    for _ in range(MEMBERS):
        flat = np.zeros(layout.length, dtype)
        for views in layout.views(flat):
            for view in views:
                view[...] = rng.standard_normal(view.shape) / view.shape[-1] ** 0.5
        arrays = [backend.zeros(flat.shape) for _ in range(1 + optimizer.slots)]
        backend.copy(backend.asarray(flat), arrays[0])
        states.append(arrays)
    found: list[np.ndarray] = []
    for epoch in range(EPOCHS):
        members = []
        for number, (flat, *slots) in enumerate(states):
            rates = np.full(steps, 0.1 * (number + 1))
            settings = Hyperparameters(
                BATCH, optimizer, optimizer.coefficients(rates, epoch * steps)
            )
            parameters = Parameters(layout, flat)
            members.append(Member(parameters, tuple(slots), rng.permutation(ROWS), settings))
        found += engine.run_members(members, rows, targets)
    found += [backend.to_numpy(array) for arrays in states for array in arrays]
    engine.release()
    return [array.astype(np.float64) for array in found]


# -- the verdict ------------------------------------------------------------------------------

_lock = threading.RLock()


class _Known:
    """Of one device: what was found, and what was warned of."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Result] = {}
        self.warned: set[tuple[Form, str]] = set()


_known: WeakKeyDictionary[Runtime, _Known] = WeakKeyDictionary()


def obstacle(runtime: Runtime, form: Form, dtype: Any, soon: Sequence[Kernel] = ()) -> str | None:
    """Why an engine must not be used on a device, if so; checks it where that is not known yet.

    The first that asks checks, and others wait for it. `soon` are kernels that will be launched
    if all is well, to be compiled beside the check's.

    Warns
    -----
    RuntimeWarning
        Once per process of each engine that fails.

    Raises
    ------
    RuntimeError
        If the check has left the device of no use to this process.
    """
    if os.environ.get(OFF) == "0":
        return None
    with _lock:
        result = verdict(runtime, form, dtype, soon=soon)
        if result.ok:
            return None
        failed = f"the {form} engine failed its check on {runtime.device.name}: {result}"
        warned, key = _known[runtime].warned, (form, result.dtype)
        if key not in warned:
            warned.add(key)
            warnings.warn(
                f"{failed}. The next best is used. Please report this with {REPORT}, which "
                "`backprop-gpu check` writes",
                RuntimeWarning,
                stacklevel=3,
            )
    return f"{failed}; `backprop-gpu check` writes a report of it"


def layered_obstacle(runtime: Runtime, dtype: Any, precision: str | None = None) -> str | None:
    """Why our kernels must not be used on a device, if so; does without a part that fails.

    ``precision`` is what factors of products are rounded to, if they are.
    """
    failed = obstacle(runtime, LAYERED, dtype)
    if failed is not None:
        return failed
    dtype, device = np.dtype(dtype), runtime.device
    rounds = precision is not None and precision != dtype.name
    if device.library:
        check_library(runtime, dtype)
        if rounds:
            check_library(runtime, dtype, precision)
    if any(tile.cores == "tensor" for tile in planning.tiles(dtype.itemsize, device, precision)):
        form = replace(LAYERED, precision=precision or dtype.name)
        failed = obstacle(runtime, form, dtype)
        if failed is not None:
            runtime.device = replace(runtime.device, tensor_cores=False)
    return failed if rounds else None


def engine_obstacle(
    backend: CudaBackend,
    sigmas: tuple[Activation, ...],
    cost: Cost,
    plan: planning.Plan,
    rules: Iterable[str],
    drops: bool = False,
) -> str | None:
    """Why an engine's kernel must not be used in the forms of a plan, if so."""
    catalogue = Catalogue(backend.dtype, backend.precision)
    # While the check's kernel is compiled, another core has time for the run's own.
    wanted: dict[Form, list[Kernel]] = {}
    for planned in plan.batches:
        for cut in planned.cuts:
            form = Form("resident", cut.blocks, stored=_as_bytes(cut.stored), apart=cut.apart)
            own = [rule for rule in sorted(rules) if optimizers.get(rule).slots == cut.slots]
            kernels = [catalogue.resident(cut, sigmas, cost, rule, drops) for rule in own]
            wanted.setdefault(form, []).extend(kernels)
        if planned.fusion is not None:
            fused = planned.fusion
            form = Form("fused", stored=_as_bytes(fused.stored), precision=fused.precision)
            whole = catalogue.fused(fused, sigmas, cost, drops)
            kernels = [whole, *map(catalogue.fused_update, rules)]
            wanted.setdefault(form, []).extend(kernels)
        if planned.persistence is not None:
            p = planned.persistence
            form = Form("persistent", stored=_as_bytes(p.stored), precision=p.precision)
            kernels = [catalogue.persistent(p, sigmas, cost, rule, drops) for rule in sorted(rules)]
            wanted.setdefault(form, []).extend(kernels)
    for form, kernels in wanted.items():
        failed = obstacle(backend.runtime, form, backend.dtype, list(dict.fromkeys(kernels)))
        if failed is not None:
            return failed
    return None


def _as_bytes(stored: int) -> int | None:
    return 1 if stored == 1 else None


def check_library(runtime: Runtime, dtype: Any, precision: str | None = None) -> None:
    """Let a device do without cuBLASLt whose products are wrong: our kernels form them all.

    Where it is what it does besides that is wrong, let it do without that.
    """
    form = replace(LAYERED, library=True, precision=precision)
    if obstacle(runtime, form, dtype) is not None:
        runtime.device = replace(runtime.device, library=False)
    elif obstacle(runtime, replace(form, epilogues=True), dtype) is not None:
        runtime.device = replace(runtime.device, epilogues=False)


def verdict(
    runtime: Runtime, form: Form, dtype: Any, again: bool = False, soon: Sequence[Kernel] = ()
) -> Result:
    """That of the cache, or of a check now; `again` does not ask the cache."""
    dtype = np.dtype(dtype)
    name = _name(facts(runtime), form, dtype)
    with _lock:
        verdicts = _known.setdefault(runtime, _Known()).verdicts
        if name in verdicts and not again:
            return verdicts[name]
        kept = not is_stand_in() and not again
        result = _unpack(cache.read(name)) if kept else None
        if result is None:
            with suppress(Exception):  # the check will say it
                runtime.prepare([*launched(runtime.device, form, dtype), *soon])
            result = check_engine(runtime, form, dtype)
            usable = result.trouble is None or _is_usable(runtime)
            # What was raised may not be next time (a device that is full, say), unless it has
            # taken the device along: the next process must not run into that again.
            if (result.trouble is None or not usable) and not is_stand_in():
                cache.write(name, json.dumps(asdict(result)).encode())
            if not usable:
                raise RuntimeError(
                    f"the {form} engine failed its check and left {runtime.device.name} of no "
                    f"use to this process ({result.trouble}): start it again, and it will take "
                    f"another engine. Please report this with {REPORT}, which "
                    "`backprop-gpu check` writes"
                )
        verdicts[name] = result
        return result


def forget() -> None:
    """All verdicts of this process; those on disk stay."""
    with _lock:
        _known.clear()


def _is_usable(runtime: Runtime) -> bool:
    try:
        return not runtime.to_numpy(runtime.zeros(1, np.int32)).any()
    except Exception:
        return False


def kernel(form: Form, dtype: np.dtype[Any], device: Device, optimizer: Optimizer) -> Kernel:
    """What the resident engine launches in the check."""
    cut = _cut(form, dtype.itemsize, device, optimizer.slots)
    if isinstance(cut, str):
        raise ValueError(cut)
    return Catalogue(dtype).resident(cut, _SIGMAS, _COST, optimizer.rule)


def launched(device: Device, form: Form, dtype: np.dtype[Any]) -> list[Kernel]:
    """What the check launches, or most of it: compiled at once it takes less time."""
    if form.engine == "resident":
        return [kernel(form, dtype, device, SGD())]
    if form.engine == "fused":
        fused = Catalogue(dtype, form.precision)
        whole = fused.fused(_fusion(form, device), _SIGMAS, _COST)
        return [whole, fused.fused_update("sgd"), fused.advance()]
    if form.engine == "persistent":
        of_precision = Catalogue(dtype, form.precision)
        return [of_precision.persistent(_persistence(form, device), _SIGMAS, _COST, "sgd")]
    kernels, sigma = Catalogue(dtype, form.precision), form.sigmas[0]
    found = [
        kernels.gather(), kernels.advance(), kernels.mean_cost(_COST, False),
        kernels.update("sgd"), kernels.all_finite(),
    ]  # fmt: skip
    if form.epilogues:
        softmax = kernels.softmax(), kernels.row_output_error(activations.get("softmax"), _COST)
        bf16 = [kernels.round()] if form.precision == "bf16" else []
        return [*found, *softmax, *bf16, kernels.sum_splits(), kernels.bias_gradient()]
    found.append(kernels.output_error(sigma, _COST))
    if form.library:
        maps = [kernels.bias_activation(sigma), kernels.pull_back(sigma), kernels.bias_gradient()]
        maps += [kernels.round()] if form.precision == "bf16" else []
        return [*found, *maps]
    tile = _product(form, dtype, device, "NT", BATCH, SIZES[1], SIZES[0]).tile
    assert tile is not None
    products = kernels.forward(sigma, tile), kernels.hidden_error(sigma, tile)
    return [*found, *products, kernels.weight_gradient(tile)]


def _name(known: dict[str, str], form: Form, dtype: np.dtype[Any]) -> str:
    text = json.dumps([known, asdict(form), dtype.name], sort_keys=True)
    return f"check-{form.engine}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _unpack(entry: bytes | None) -> Result | None:
    try:
        return None if entry is None else Result(**json.loads(entry))
    except (ValueError, TypeError):
        return None  # another version's


# -- what a verdict depends on ----------------------------------------------------------------


def facts(runtime: Runtime) -> dict[str, str]:
    """Device, driver, libraries, package and kernels."""
    return {
        "device": runtime.device.name,
        "driver": _driver(),
        "cuda.core": _version("cuda-core"),
        "compiler": _compiler(),
        "cuBLASLt": str(runtime.library_version),
        "backprop_gpu": __version__,
        "kernels": _kernels(_sources()),
    }


def is_stand_in() -> bool:
    """Whether a stand-in takes the driver's place in this process."""
    from . import testing

    return testing.running() is not None


def _sources() -> Path:
    if not is_stand_in():
        return compiler.folder()
    from .testing import twins

    return twins.sources


@lru_cache
def _kernels(folder: Path) -> str:
    key = hashlib.sha256()
    for path in sorted(folder.rglob("*.cu*")):
        key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return key.hexdigest()[:16]


@lru_cache
def _driver() -> str:
    """Its CUDA version, and where Linux tells it its own."""
    with uninterrupted():
        from cuda.bindings import driver

    _, version = driver.cuDriverGetVersion()
    if is_stand_in():
        return f"a stand-in, CUDA {version}"
    try:
        own = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        own = ""
    return f"CUDA {version} {own}".strip()


def _compiler() -> str:
    try:
        return compiler.version()
    except ImportError:
        return "none"


@lru_cache
def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
