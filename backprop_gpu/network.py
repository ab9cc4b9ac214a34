"""A fully connected network: parameters, prediction, training, saving."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import (
    activations,
    backends,
    costs,
    initializers,
    optimizers,
    planning,
    threads,
    training,
    validation,
)
from .activations import Activation
from .backends.cuda import CudaBackend
from .costs import Cost
from .engines.layered import LayeredEngine
from .engines.resident_cpu import ResidentEngine
from .engines.resident_cuda import ResidentCudaEngine
from .gradient_check import GradientReport, check_gradients
from .optimizers import Optimizer
from .parameters import Layout, Parameters
from .planning.explanation import Explanation, explain
from .schedules import Schedule
from .training import Callback, History

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

#: Activations whose signal He's wider weights are made for.
_RECTIFIERS = ("relu", "leaky_relu", "elu", "gelu", "silu", "softplus")


class Network:
    """A fully connected network a^l = σ(w^l a^{l-1} + b^l), trained by gradient descent.

    Parameters
    ----------
    sizes : sequence of int
        (n_0, …, n_L): neurons a layer, input first.
    activation : str, Activation or a sequence of them, default "sigmoid"
        σ of every layer after the input, or one a layer. A name: sigmoid, tanh, relu,
        leaky_relu, elu, gelu, silu, softplus, identity, exponential, softmax (output
        layer only), or one that `activations.register` added.
    cost : str or Cost, default "quadratic"
        "quadratic" (½‖y - a‖²), "binary_cross_entropy", "categorical_cross_entropy",
        "poisson", or one that `costs.register` added.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic. float32 is strict: no TF32.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}
        "auto" takes cuda where a device is usable, else numpy; ``network.plan`` says
        which and why.
    seed : int, optional
        Makes initial weights and shuffling repeatable: same seed, machine and plan,
        same bits.
    initial_weights : str, default "auto"
        "book" (N(0, 1/n_in), chapter 3), "book_large" (N(0, 1), chapter 1), "xavier",
        "he"; "auto" takes he for layers of the relu family and book for the rest.

    Attributes
    ----------
    sizes : tuple of int
    plan : planning.Plan
        What runs and why: the backend from the start, kernels from the last `fit`.
    history : History or None
        Of the last `fit`, also of one that was interrupted.
    preprocessing : preprocessing.Preprocessing or None
        What the command line does to a table's columns before this network, kept in its file;
        the methods here take rows as they are after it.

    Notes
    -----
    Any number of threads may read one network at once: `predict`, `loss`, `accuracy`,
    `gradients`, `weights`, `save`. One may train it, and a second that tries is refused. What is
    read while it trains, or while another thread assigns weights, may be a mixture of weights
    before and after a step.

    ``copy.copy`` and ``copy.deepcopy`` give a network that trains on independently: parameters,
    generator and history are its own. Only activations and cost are shared by the former.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]); Y = np.array([0, 1, 1, 0])
    >>> net = Network([2, 8, 1], cost="binary_cross_entropy", seed=1, backend="numpy")
    >>> history = net.fit(X, Y, epochs=500, batch_size=4, learning_rate=2.0)
    >>> net.accuracy(X, Y)
    1.0
    """

    preprocessing: Preprocessing | None = None

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str | Activation | Sequence[str | Activation] = "sigmoid",
        cost: str | Cost = "quadratic",
        dtype: Any = "float32",
        backend: str = "auto",
        seed: int | None = None,
        initial_weights: str = "auto",
    ) -> None:
        self.sizes = validation.sizes(sizes)
        self._activations = resolve_activations(activation, len(self.sizes) - 1)
        self._cost = costs.get(cost)
        costs.check_pair(self._activations[-1], self._cost)
        if self.sizes[-1] == 1 and not self._activations[-1].elementwise:
            raise ValueError("softmax of one output is always 1: use sigmoid, or two outputs")
        self.dtype = validation.dtype(dtype)
        if seed is not None:
            seed = validation.seed(seed)
        validation.one_of("initial_weights", initial_weights, ("auto", *initializers.names()))
        self._rng = np.random.default_rng(seed)
        self.history: History | None = None
        chosen = [
            initial_weights
            if initial_weights != "auto"
            else "he"
            if activation.name in _RECTIFIERS
            else "book"
            for activation in self._activations
        ]
        self._initial_weights = tuple(chosen)
        self._choice = planning.choose_backend(backend, backends.Obstacles(self.dtype))
        # Drawn in float64, beside what it becomes.
        size = Layout(self.sizes).length * (8 + self.dtype.itemsize)
        validation.room(f"a network of sizes {self.sizes}", size)
        weights, biases = initializers.draw(chosen, self.sizes, self._rng)

        self._connect()
        self.weights, self.biases = tuple(weights), tuple(biases)

    def _connect(self) -> None:
        """Make backend, engine and parameters, all 0, and the plan that names them."""
        self._layout = Layout(self.sizes)
        self._backend = backends.create(self._choice.backend, self.dtype)
        self._parameters = Parameters(self._layout, self._backend.zeros((self._layout.length,)))
        self.plan = self._make_plan(None)

    def _sibling(self, flat: Any, rng: np.random.Generator) -> Network:
        """A network like this one, on its backend and engine, whose parameters are `flat`."""
        sibling = object.__new__(type(self))
        sibling.__dict__.update(self.__dict__)
        sibling._rng, sibling.history = rng, None
        sibling._parameters = Parameters(self._layout, flat)
        return sibling

    def _with(self, weights: Sequence[Any], biases: Sequence[Any]) -> Network:
        """A network like this one with other parameters, which this one's users do not meet."""
        sibling = self._sibling(self._backend.zeros((self._layout.length,)), self._rng)
        sibling.weights, sibling.biases = weights, biases
        return sibling

    def _make_plan(self, run: planning.Run | None) -> planning.Plan:
        plan = self._plan(run)
        if run is None or plan.engine != "resident" or not isinstance(self._backend, CudaBackend):
            return plan
        from . import self_check

        failed = self_check.resident_obstacle(
            self._backend, self.sizes, self._activations, self._cost, run
        )
        return plan if failed is None else self._plan(replace(run, obstacle=failed))

    def _plan(self, run: planning.Run | None) -> planning.Plan:
        device, algorithm = getattr(self._backend, "device", None), None
        if isinstance(self._backend, CudaBackend) and self._backend.device.library:
            algorithm = self._backend.algorithm
        return planning.choose_plan(
            self.sizes, self.dtype.itemsize, self._choice, device, run, threads.cores(), algorithm
        )

    def _engine_for(self, plan: planning.Plan) -> LayeredEngine:
        """A new engine, for one training."""
        if plan.engine == "layered":
            return self._reader()
        engine = ResidentEngine if self._choice.backend == "numpy" else ResidentCudaEngine
        return engine(self._backend, self.sizes, self._activations, self._cost)

    def _reader(self) -> LayeredEngine:
        """A new engine for one call that reads: several threads may read at once."""
        return LayeredEngine(self._backend, self.sizes, self._activations, self._cost)

    def _resident_obstacle(self) -> str | None:
        """Why the resident engine cannot train this network, if it cannot."""
        if not self._cost.builtin:
            return f"cost {self._cost.name!r} is not built in"
        users = list(dict.fromkeys(a for a in self._activations if not a.builtin))
        if isinstance(self._backend, CudaBackend):
            names = " and ".join(repr(user.name) for user in users)
            return f"a kernel takes one user's activation, not {names}" if len(users) > 1 else None
        if self._choice.backend != "numpy":
            return f"backend {self._choice.backend} has a kernel for each equation and no other"
        if users:
            return f"activation {users[0].name!r} is not built in"
        if importlib.util.find_spec("numba") is None:
            return "numba is not installed"
        if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
            return "NUMBA_DISABLE_JIT is set"
        return None

    def __repr__(self) -> str:
        names = [activation.name for activation in self._activations]
        shown = names[0] if len(set(names)) == 1 else names
        return (
            f"Network({list(self.sizes)}, activation={shown!r}, cost={self.cost.name!r}, "
            f"dtype={self.dtype.name!r}, backend={self._choice.backend!r})"
        )

    # -- parameters ---------------------------------------------------------------

    @property
    def activations(self) -> tuple[Activation, ...]:
        """σ of layers 1 … L."""
        return self._activations

    @property
    def cost(self) -> Cost:
        """C."""
        return self._cost

    @property
    def backend(self) -> str:
        """The backend in use; ``plan.backend_reason`` says why."""
        return self._choice.backend

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        """w[1] … w[L], each (n_l, n_{l-1}): read-only copies. Assign a sequence to replace them."""
        return _read_only(self._layout.views(self._get_flat())[0])

    @weights.setter
    def weights(self, value: Sequence[Any]) -> None:
        self._replace("weights", value, self._layout.weight_shapes)

    @property
    def biases(self) -> tuple[np.ndarray, ...]:
        """b[1] … b[L], each (n_l,): read-only copies. Assign a sequence to replace them."""
        return _read_only(self._layout.views(self._get_flat())[1])

    @biases.setter
    def biases(self, value: Sequence[Any]) -> None:
        self._replace("biases", value, self._layout.bias_shapes)

    def _replace(self, name: str, value: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> None:
        try:
            value = list(value)
        except TypeError:
            raise TypeError(f"{name} must be a sequence of arrays, got {value!r}") from None
        if len(value) != len(shapes):
            raise ValueError(f"{name} must be {len(shapes)} arrays, one a layer, got {len(value)}")
        arrays = [
            validation.numbers(f"{name}[{i}]", array, self.dtype) for i, array in enumerate(value)
        ]
        for l, (array, shape) in enumerate(zip(arrays, shapes, strict=True), start=1):
            if array.shape != shape:
                raise ValueError(
                    f"{name}[{l - 1}] does not fit layer {l}: expected shape {shape}, "
                    f"got {array.shape}"
                )
        flat = self._get_flat()
        views = self._layout.views(flat)[0 if name == "weights" else 1]
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
        self._set_flat(flat)

    def _get_flat(self) -> np.ndarray:
        return self._backend.to_numpy(self._parameters.flat)

    def _set_flat(self, flat: np.ndarray) -> None:
        self._backend.copy(self._backend.asarray(flat), self._parameters.flat)

    # -- training -------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        Y: Any = None,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float | Schedule,
        optimizer: str | Optimizer = "sgd",
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Iterable[Callback | Callable[[Network, History], bool | None]] = (),
        progress: bool = False,
        engine: str = "auto",
    ) -> History:
        """Mini-batch gradient descent from the current weights.

        Parameters
        ----------
        X : (n, n_0) array
            Of uint8 it means its numbers, 0 to 255, and trains to the same bits as
            ``X.astype(dtype)``; on a GPU the resident engine keeps and reads it as the
            bytes it is, a quarter of float32's.
        Y : (n, n_L) array, or integer labels (n,) where the outputs are classes
        epochs : int
            Passes over the rows, each in a new random order; the last mini-batch of a
            pass may be shorter than the rest.
        batch_size : int
            m, in [1, n].
        learning_rate : float or callable
            η, or a schedule (see `schedules`) of the time in epochs.
        optimizer : str or Optimizer
            "sgd", "momentum", "nesterov", "adam", "adamw", or one of `optimizers`' classes
            with its settings, penalties and clipping. It starts afresh in every `fit`.
        validation_data : (X, Y), optional
        callbacks : iterable of Callback or function (network, history) -> bool
            A true result stops training after that epoch.
        progress : bool
            Show a progress bar.
        engine : {"auto", "layered", "resident"}
            What runs an epoch; "auto" takes what the planner expects to be faster, and
            ``network.plan`` says which and why.

        Returns
        -------
        History

        Raises
        ------
        ValueError, TypeError
            For arguments that do not fit, before anything has changed. Of a schedule some epochs
            are tried; where another fails, training ends there with the weights before it.
        FloatingPointError
            If the cost turns NaN or infinite, naming epoch and batch. The weights are
            then those at the end of the last good epoch, as they are after Ctrl-C.
        RuntimeError
            If this network is being trained already: by another thread, or by the `fit`
            whose callback calls this one.
        """
        with threads.alone("network", self):
            return training.fit(
                self,
                X,
                Y,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                optimizer=optimizer,
                validation_data=validation_data,
                callbacks=callbacks,
                progress=progress,
                engine=engine,
            )

    # -- without training -------------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray:
        """a^L of every row of X: (n, n_0) -> (n, n_L).

        Warns
        -----
        RuntimeWarning
            If outputs are NaN, naming the first row: z overflowed there.
        """
        X = validation.inputs(X, self.sizes[0], self.dtype)
        outputs = self._reader().predict(self._parameters, X, planning.CHUNK_ROWS)
        return validation.warn_of_nan(outputs)

    def loss(self, X: Any, Y: Any) -> float:
        """C, the mean cost over the rows, without penalties."""
        X, Y = self._check_data(X, Y)
        return self._reader().evaluate(self._parameters, X, Y, planning.CHUNK_ROWS)[0]

    def accuracy(self, X: Any, labels: Any) -> float:
        """The share of rows whose largest output is the label's; with one output, a >= ½ is 1.

        A row with an output that is NaN is never right.
        """
        X = validation.inputs(X, self.sizes[0], self.dtype)
        classes = validation.labels(labels, len(X), self.sizes[-1])
        return validation.accuracy(
            self._reader().predict(self._parameters, X, planning.CHUNK_ROWS), classes
        )

    def gradients(self, X: Any, Y: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """[(∂C/∂w[1], ∂C/∂b[1]), …] of the mean cost over all rows (BP1–BP4)."""
        X, Y = self._check_data(X, Y)
        flat = self._backend.to_numpy(self._reader().gradients(self._parameters, X, Y).flat)
        return list(zip(*self._layout.views(flat), strict=True))

    def check_gradients(
        self, X: Any, Y: Any, *, tolerance: float = 1e-5, max_weights: int = 200
    ) -> GradientReport:
        """Compare backpropagation with the demon who nudges z (and w and b), in float64.

        See `gradient_check.check_gradients`.
        """
        X, Y = self._check_data(X, Y)
        return check_gradients(self, X, Y, tolerance=tolerance, max_weights=max_weights)

    def _check_data(
        self, X: Any, Y: Any, names: tuple[str, str] = ("X", "Y"), bytes_stay: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        X = validation.inputs(X, self.sizes[0], self.dtype, names[0], bytes_stay)
        Y = validation.targets(
            Y,
            len(X),
            self._activations[-1],
            self.cost,
            self.sizes[-1],
            self.dtype,
            names[1],
            names[0],
        )
        return X, Y

    def explain(
        self,
        *,
        batch_size: int,
        optimizer: str | Optimizer = "sgd",
        rows: int = 50_000,
        epochs: int = 30,
        engine: str = "auto",
    ) -> Explanation:
        """What `fit` would run for a step, and how near that comes to what the machine allows.

        Parameters
        ----------
        batch_size : int
            m, in [1, rows].
        optimizer : str or Optimizer
        rows, epochs : int
            Of the training in mind, by default the book's: the choice of an engine depends on
            how long it takes.
        engine : as of `fit`

        Returns
        -------
        Explanation
            Engine and kernels with their reasons; operations, bytes and the floor that follows;
            the newest recorded time of this shape on such a machine. ``print`` it.
        """
        rows = validation.integer("rows", rows, 1)
        batch_size = validation.integer("batch_size", batch_size, 1, rows)
        epochs = validation.integer("epochs", epochs, 1)
        optimizer = optimizers.get(optimizer)
        obstacle = self._resident_obstacle()
        run = planning.Run(
            rows,
            epochs,
            batch_size,
            engine,
            obstacle,
            user_cost=not self._cost.builtin,
            slots=optimizer.slots,
            clips_norm=optimizer.clip_norm is not None,
        )
        return explain(
            self.sizes, batch_size, self.dtype, self._make_plan(run),
            getattr(self._backend, "device", None), optimizer.slots,
        )  # fmt: skip

    # -- files and copies -------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the network to a safetensors file, replacing what is there in one step."""
        from .model_file import save

        save(self, path)

    @classmethod
    def load(cls, path: Any, *, backend: str = "auto", seed: int | None = None) -> Network:
        """The network in a file written by `save`. Nothing in the file is executed.

        `seed` makes the shuffling of further training repeatable.

        Raises
        ------
        ValueError
            If the file is cut short, is no model of this library, has another version,
            or names an activation or cost that is not registered.
        """
        from .model_file import load

        return load(cls, path, backend, seed)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_backend", "_parameters", "_layout", "plan"):
            del state[name]
        own = {name: copy.deepcopy(state[name]) for name in ("_rng", "history")}
        return state | own | {"flat": self._get_flat()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        flat = state.pop("flat")
        self.__dict__.update(state)
        obstacles = backends.Obstacles(self.dtype)
        if obstacles[self.backend] is not None:  # the original had a device, this machine has none
            self._choice = planning.choose_backend("auto", obstacles)
        self._connect()
        self._set_flat(flat)


def resolve_activations(
    value: str | Activation | Sequence[str | Activation], layers: int
) -> tuple[Activation, ...]:
    """σ of layers 1 … L, from one for all or one a layer; softmax at the output only."""
    if isinstance(value, (str, Activation)):
        result = (activations.get(value),) * layers
        if not result[0].elementwise and layers > 1:
            raise ValueError(
                f"activation {result[0].name!r} is for the output layer only: name one a layer, "
                f"for example {['sigmoid'] * (layers - 1) + [result[0].name]}"
            )
        return result
    if not validation.is_ordered(value):
        raise TypeError(f"activation must be a name, an Activation or one a layer, got {value!r}")
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


def _read_only(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    for array in arrays:
        array.flags.writeable = False
    return arrays
