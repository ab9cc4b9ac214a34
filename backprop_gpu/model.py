"""What networks of one shape have in common, and how they are trained: `Model`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from . import (
    activations,
    arrays,
    backends,
    costs,
    cpu,
    engines,
    planning,
    threads,
    validation,
)
from .activations import Activation
from .communicators import ALONE, Communicator
from .costs import Cost
from .engines import Engine
from .engines.compiled_passes import CompiledPasses
from .engines.derivatives import Derivatives
from .engines.passes import Passes, Reader
from .parameters import Layout, Parameters
from .planning import Choice, Device, Plan, Run, fusion
from .precision import resolve as resolve_precision

if TYPE_CHECKING:
    from .backends.cuda import CudaBackend

Array = Any


class Model:
    """Sizes, σ of every layer, C, dtype, precision and backend; makes their plans and engines.

    A network is a model, its parameters and a generator; a population is one model and several of
    the rest. Any number of threads may use one model.

    Parameters
    ----------
    sizes, activation, cost, dtype, precision, backend
        As in `Network`.

    Attributes
    ----------
    sizes : tuple of int
        (n_0, …, n_L).
    activations : tuple of Activation
        σ of layers 1 … L.
    cost : Cost
    dtype : numpy dtype
    precision : str
        Of products: the dtype's name, "tf32" or "bf16" (`precision`).
    layout : Layout
        Where w and b stand in a flat array.
    choice : planning.Choice
        The backend's name, and why.
    requested : str
        The backend that was asked for; "auto" where none was.
    backend : backends.base.Backend
        Keeps the arrays. Work is done on forks of it, one a use.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str | Activation | Sequence[str | Activation] = "sigmoid",
        cost: str | Cost = "quadratic",
        dtype: Any = "float32",
        precision: str | None = None,
        backend: str = "auto",
    ) -> None:
        self.sizes = validation.sizes(sizes)
        self.activations = resolve_activations(activation, len(self.sizes) - 1)
        self.cost = costs.get(cost)
        costs.check_pair(self.activations[-1], self.cost)
        self.cost.targets_of(self.sizes[-1])  # or says what it needs
        if self.sizes[-1] == 1 and not self.activations[-1].elementwise:
            raise ValueError("softmax of one output is always 1: use sigmoid, or two outputs")
        self.dtype = validation.dtype(dtype)
        self.precision = resolve_precision(precision, self.dtype)
        self.requested = backend
        obstacles = _Obstacles(self.dtype, self.precision)
        self._connect(planning.choose_backend(backend, obstacles))

    def _connect(self, choice: Choice) -> None:
        self.choice, self.layout = choice, Layout(self.sizes)
        self.backend = backends.create(choice.backend, self.dtype, self.precision)
        #: Of the CPU, by what they were chosen for.
        self._plans: dict[Any, Plan] = {}

    @property
    def device(self) -> Device | None:
        """The CUDA device, where the backend is cuda."""
        return getattr(self.backend, "device", None)

    # -- arrays --------------------------------------------------------------------

    def parameters(self, flat: Array | None = None) -> Parameters:
        """w and b in a flat array of the backend's, by default a new one of zeros."""
        if flat is None:
            flat = self.backend.zeros((self.layout.length,))
        return Parameters(self.layout, flat)

    def read(self, parameters: Parameters) -> np.ndarray:
        """The flat array of the parameters, on the host."""
        return self.backend.to_numpy(parameters.flat)

    def write(self, flat: np.ndarray, parameters: Parameters) -> None:
        """Replace the parameters by a flat host array."""
        self.backend.copy(self.backend.asarray(flat), parameters.flat)

    def inputs(self, X: Any, name: str = "X") -> Any:
        """X as an (n, n_0) array of the dtype on the host, or the `arrays.SparseMatrix` it is.

        Raises
        ------
        ValueError, TypeError
            For what does not fit the model.
        """
        if arrays.is_sparse(X):
            return validation.sparse_inputs(X, self.sizes[0], self.dtype, name)
        return validation.inputs(self.on_host(X), self.sizes[0], self.dtype, name)

    def on_host(self, value: Any) -> Any:
        """Of this model's device, what its library cannot bring to the host; else as it is."""
        if self.device is None or type(value) is np.ndarray or arrays.package_of(value):
            return value
        from .cuda import interchange

        if interchange.name(value) is None:
            return value
        runtime = cast("CudaBackend", self.backend).runtime
        try:
            return runtime.to_numpy(runtime.view(value))
        except (ValueError, TypeError):  # on another device, or with strides
            return value

    def check_data(
        self,
        X: Any,
        Y: Any,
        names: tuple[str, str] = ("X", "Y"),
        bytes_stay: bool = False,
        sparse_stays: bool = False,
    ) -> tuple[Any, np.ndarray]:
        """(X, Y) as (n, n_0) and (n, targets) arrays of the dtype, on the host.

        Parameters
        ----------
        names : (str, str)
            What the two are called, for an error.
        bytes_stay : bool
            Whether an X of uint8 stays what it is.
        sparse_stays : bool
            Whether a sparse X becomes an `arrays.SparseMatrix`, and not dense.

        Raises
        ------
        ValueError, TypeError
            For what does not fit the model.
        """
        if sparse_stays and arrays.is_sparse(X):
            X = self.inputs(X, names[0])
        else:
            X = validation.inputs(self.on_host(X), self.sizes[0], self.dtype, names[0], bytes_stay)
        Y = validation.targets(
            self.on_host(Y), len(X), self.activations[-1], self.cost, self.sizes[-1], self.dtype,
            names[1], names[0],
        )  # fmt: skip
        return X, Y

    def mean_weights(self, sample_weight: Any, rows: int) -> np.ndarray | None:
        """Checked weights of the rows over their mean, (rows,) of the dtype, if there are any."""
        if sample_weight is None:
            return None
        weights = validation.weights(self.on_host(sample_weight), rows)
        return np.ascontiguousarray(weights / weights.mean(), self.dtype)

    # -- training -----------------------------------------------------------------

    def plan(self, run: Run | None = None) -> Plan:
        """The plan that trains networks of this model so, with an engine that passes its check.

        Raises
        ------
        ValueError
            For an engine that is asked for and cannot.
        """
        if run is None:
            return self._choose_plan(None, {})
        validation.one_of("engine", run.engine, ("auto", *engines.NAMES))
        obstacles = {name: self.obstacle(name, run) for name in engines.NAMES}
        while True:
            plan = self._choose_plan(run, obstacles)
            failed = self._failed_check(plan, run)
            if failed is None:
                return plan
            obstacles[plan.engine] = failed

    def obstacle(self, engine: str, run: Run) -> str | None:
        """Why an engine cannot train networks of this model so, if it cannot."""
        kind = engines.find(engine, self.choice.backend)
        if kind is None:
            return f"backend {self.choice.backend} has no engine {engine!r}"
        if run.ranks and not kind.shards:
            return "it does not sum gradients over ranks"
        return kind.obstacle(self, run)

    def _choose_plan(self, run: Run | None, obstacles: dict[str, str | None]) -> Plan:
        algorithm = None
        if self.device is not None and self.device.library:
            algorithm = cast("CudaBackend", self.backend).algorithm
        resident = run is not None and obstacles.get("resident") is None
        compiled = resident and self.choice.backend == "numpy"
        processor = f"compiled for {cpu.library().description}" if compiled else ""
        key = run, tuple(obstacles.items()), threads.cores(), processor
        plan, drops = self._plans.get(key), run is not None and run.drops
        if plan is None:
            plan = planning.choose_plan(
                self.sizes, self.dtype.name, self.choice, self.device, run, obstacles, key[2],
                self.cost.builtin, algorithm, processor, self.precision,
                fusion.kept_slopes(self.activations, self.precision, drops),
                self._sigmas_of(run),
            )  # fmt: skip
            if self.device is None:
                if len(self._plans) >= 8:  # what a search needs
                    self._plans = {}
                self._plans[key] = plan
        return plan

    def _sigmas_of(self, run: Run | None) -> tuple[str, ...]:
        """The names of our σ, for the planner: of those that an epilogue of a product may apply."""
        if run is not None and run.drops:  # which comes between σ and the next product
            return ("",) * len(self.activations)
        return tuple(sigma.name if sigma.builtin else "" for sigma in self.activations)

    def _failed_check(self, plan: Plan, run: Run) -> str | None:
        if plan.engine == "layered" or self.device is None:
            return None
        from . import self_check

        return self_check.engine_obstacle(
            cast("CudaBackend", self.backend),
            self.activations,
            self.cost,
            plan,
            run.rules,
            run.drops,
        )

    def check_plan(self, plan: Any, run: Run) -> Plan:
        """The plan, if networks of this model can be trained so by it.

        Raises
        ------
        ValueError, TypeError
            If it is for another model, backend or device, or lacks what the run needs.
        """
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a Plan, got {plan!r}")
        for what, mine, its in (
            ("backend", self.choice.backend, plan.backend),
            ("sizes", self.sizes, plan.sizes),
            ("dtype", self.dtype.name, plan.dtype),
            ("precision", self.precision, plan.precision),
        ):
            if its != mine:
                raise ValueError(f"plan is for {what} {its!r}, and this network has {mine!r}")
        obstacle = self.obstacle(plan.engine, replace(run, ranks=run.ranks or int(plan.shards > 1)))
        if obstacle is None and plan.captured and not self.cost.builtin:
            obstacle = "it captures steps, and a user's cost cannot be captured"
        slopes = fusion.kept_slopes(self.activations, self.precision, run.drops)
        forms = [planned.fusion for planned in plan.batches if planned.fusion is not None]
        if obstacle is None and any(form.slopes != slopes for form in forms):
            obstacle = "its kernel is for other activations"
        obstacle = obstacle or plan.obstacle(run, self.dtype.itemsize, self.device)
        for planned in plan.batches if obstacle is None else ():
            if planned.products:
                obstacle = obstacle or planning.misfit(dict(planned.products), self._sigmas_of(run))
        obstacle = obstacle or self._failed_check(plan, run)
        if obstacle is not None:
            raise ValueError(f"this training cannot run by plan (engine {plan.engine}): {obstacle}")
        return plan

    def engine(self, plan: Plan, communicator: Communicator = ALONE) -> Engine:
        """A new engine, for one training by a plan, on ranks that share it."""
        kind = engines.find(plan.engine, self.choice.backend)
        assert kind is not None, "the plan was chosen or checked for this backend"
        described = self.backend, self.sizes, self.activations, self.cost
        return kind(*described, plan, communicator)

    def arithmetic(self, plan: Plan) -> str:
        """What a step's bits depend on besides the plan: ranks must have it in common."""
        if self.device is not None:
            return self.device.name
        if plan.engine != "resident":
            return "NumPy"
        return f"a processor with{'' if cpu.library().fma else 'out'} fused multiply-add"

    # -- reading -------------------------------------------------------------------

    def passes(self) -> Reader:
        """Forward and backward passes over arrays of the host: several threads may read at once."""
        return self.compiled or Passes(self.backend.fork(), self.sizes, self.activations, self.cost)

    @cached_property
    def derivatives(self) -> Derivatives:
        """Derivatives beyond the mean gradient: several threads may ask for them at once."""
        return Derivatives(self.backend, self.sizes, self.activations, self.cost)

    @cached_property
    def compiled(self) -> CompiledPasses | None:
        """The passes of the CPU's library, where it can make them."""
        # To compile a user's function takes longer than most readings.
        if (
            self.choice.backend == "numpy"
            and self.precision == self.dtype.name
            and self.cost.builtin
            and all(activation.builtin for activation in self.activations)
            and cpu.obstacle(self.activations, self.dtype) is None
        ):
            return CompiledPasses(self.backend, self.sizes, self.activations, self.cost)
        return None

    def predict_on_device(self, parameters: Parameters, X: Any) -> Any:
        """a^L of rows that lie on this model's device, as an array of X's library.

        Nothing comes to the host. It is computed on the stream that the library uses now.

        Returns
        -------
        (n, n_L) array, or None
            None if X does not lie there, or is not read there: it has strides that its library
            cannot do away with, or another dtype than float32 and float64.

        Raises
        ------
        ValueError
            For what does not fit the model, or is not finite.
        """
        if self.device is None or type(X) is np.ndarray or getattr(X, "requires_grad", False):
            return None  # `arrays.to_numpy` says what is wrong with the last
        from .cuda import interchange

        kind = interchange.name(X)
        if kind is None:
            return None
        library = interchange.library(kind)
        backend = cast("CudaBackend", self.backend.fork())
        stream = library.stream(X)
        # Where memory is made for it, it waits for what has been written to the parameters.
        with nullcontext() if stream is None else backend.runtime.on(stream):
            try:
                rows = backend.runtime.view(library.contiguous(X))
            except (ValueError, TypeError):  # on another device, or with strides
                return None
            validation.check_shape("X", rows.shape, self.sizes[0])
            if rows.dtype.name not in ("float32", "float64"):
                return None
            rows = backend.runtime.array(rows, self.dtype)
            if not backend.all_finite(rows):
                raise ValueError("X contains NaN or infinity")
            shape = len(rows), self.sizes[-1]
            made = None if library.empty is None else library.empty(X, shape, self.dtype.name)
            out = backend.empty(shape) if made is None else backend.runtime.view(made)
            Passes(backend, self.sizes, self.activations, self.cost).predict_into(
                parameters, rows, out
            )
            if not backend.all_finite(out):
                validation.warn_of_nan(backend.to_numpy(out), stacklevel=4)
            return library.taken(out) if made is None else made

    # -- copies --------------------------------------------------------------------

    def here(self) -> Model:
        """A copy, with the best backend of this machine where no other was asked for.

        Raises
        ------
        RuntimeError
            If that which was asked for cannot be used here.
        """
        other = object.__new__(type(self))
        vars(other).update(self.__getstate__())
        obstacles = _Obstacles(self.dtype, self.precision)
        other._connect(planning.choose_backend(self.requested, obstacles))
        return other

    def __getstate__(self) -> dict[str, Any]:
        left = ("backend", "layout", "compiled", "derivatives", "_plans")
        return {k: v for k, v in vars(self).items() if k not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.precision = state.get("precision", self.dtype.name)  # pickled before there were any
        obstacles, choice = _Obstacles(self.dtype, self.precision), state["choice"]
        self.requested = state.get("requested", choice.backend)  # as above
        if obstacles[choice.backend] is not None:  # the original had a device, here is none
            choice = planning.choose_backend("auto", obstacles)
        self._connect(choice)


class _Obstacles(backends.Obstacles):
    """Why a backend cannot be used here for a dtype: cuda must have passed its check, too."""

    def __init__(self, dtype: np.dtype[Any], precision: str) -> None:
        super().__init__()
        self._dtype, self._precision = dtype, precision

    def __getitem__(self, name: str) -> str | None:
        found = super().__getitem__(name)
        if found is None and self._precision != self._dtype.name:
            found = self._rounding_obstacle(name)
        if found is not None or name != "cuda":
            return found
        from . import self_check
        from .cuda import runtime

        return self_check.layered_obstacle(runtime.current(), self._dtype, self._precision)

    def _rounding_obstacle(self, name: str) -> str | None:
        if name == "numpy":
            return None
        who = "it"
        if name == "cuda":
            from .cuda import runtime

            device = runtime.current().device
            if device.multiplies_rounded:
                return None
            who = f"{device.name}, of compute capability below 8.0,"
        return f"{who} multiplies in {self._dtype.name} alone, and not in {self._precision}"


def losses_and_accuracies(
    passes: Reader,
    members: Sequence[Parameters],
    X: Array,
    Y: Array | None,
    classes: np.ndarray | None,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(C, accuracy) over all rows, (members,) each; NaN without Y or classes.

    Y is as `Cost.prepare` makes it; the mean of the weights is 1.
    """
    losses, right = np.zeros(len(members)), np.zeros(len(members))
    threshold = passes.cost.threshold
    for i, rows, cost, outputs in passes.outputs(members, X, Y, weights=weights):
        losses[i] += len(outputs) * cost
        if classes is not None:
            hits = validation.predicted(outputs, threshold) == classes[rows]
            right[i] += hits.sum() if weights is None else hits @ weights[rows]
    unknown = np.full(len(members), np.nan)
    return (
        unknown if Y is None else losses / len(X),
        unknown if classes is None else right / len(X),
    )


def resolve_activations(
    value: str | Activation | Sequence[str | Activation], layers: int
) -> tuple[Activation, ...]:
    """σ of layers 1 … L, from one for all or one per layer; softmax at the output only."""
    if isinstance(value, (str, Activation)):
        result = (activations.get(value),) * layers
        if not result[0].elementwise and layers > 1:
            raise ValueError(
                f"activation {result[0].name!r} is for the output layer only: name one per layer, "
                f"for example {['sigmoid'] * (layers - 1) + [result[0].name]}"
            )
        return result
    if not validation.is_ordered(value):
        raise TypeError(f"activation must be a name, an Activation or one per layer, got {value!r}")
    result = tuple(activations.get(item) for item in value)
    if len(result) != layers:
        raise ValueError(
            f"activation must name one for each of the {layers} layers after the input, "
            f"got {len(result)}"
        )
    for l, activation in enumerate(result[:-1], start=1):
        if not activation.elementwise:
            raise ValueError(
                f"activation {activation.name!r} is for the output layer only, not layer {l}"
            )
    return result
