"""What the book's two networks share: columns in, an epoch as one engine call.

`feedforward`, `backprop` and `update_mini_batch` are passes of the CPU's library over the user's
own arrays; `SGD` trains as a `training.Session`. For users' own costs, and where there is no
library, the notes' equations stand here in NumPy for columns, (n_l, m): the transpose of what the
rest of the library calls a batch.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from .. import cpu, planning, threads, validation
from ..engines import Engine, Hyperparameters, Member
from ..engines.compiled_passes import CompiledPasses
from ..model import Model
from ..optimizers import SGD
from ..parameters import Parameters
from ..training import Course, RowsAtOnce, Session
from . import samples
from .samples import Samples

_FLOAT64 = np.dtype(np.float64)


def sigmoid(z: Any) -> Any:
    """Compute σ(z) = 1 / (1 + e^-z) (chapter 1, eq. 3).

    Where e^-z overflows σ is 0, without a warning.

    Parameters
    ----------
    z : array or number
        Of any shape.

    Returns
    -------
    array
        Of the same shape.
    """
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(np.negative(z)))


def sigmoid_prime(z: Any) -> Any:
    """Compute σ'(z) = σ(z) (1 - σ(z)).

    Parameters
    ----------
    z : array or number
        Of any shape.

    Returns
    -------
    array
        Of the same shape.
    """
    a = sigmoid(z)
    return a * (1.0 - a)


class BookNetwork:
    """A sigmoid network of float64 column vectors; `network` and `network2` say what it learns.

    Attributes
    ----------
    num_layers : int
        L + 1, with the input.
    sizes : list of int
        n_0 … n_L.
    weights : list of (n_l, n_{l-1}) arrays
    biases : list of (n_l, 1) arrays
        Both may be assigned or changed in place; every method uses them as they are when it is
        called, and `SGD` as they are at the start of each epoch.

    Notes
    -----
    Any number of threads may call what only reads. One trains, and a second `SGD` at the same time
    is refused.
    """

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    _requested = "auto"
    _connection: tuple[Any, Model] | None = None
    _plan: planning.Plan | None = None
    #: The model of what is done a sample at a time: the host's, on a GPU too.
    _host: Model | None = None

    def __init__(self, sizes: Sequence[int], backend: str) -> None:
        self.sizes = list(validation.sizes(sizes))
        self.num_layers = len(self.sizes)
        self._requested = backend
        self._connect()

    # -- what a subclass says ------------------------------------------------------

    def _cost_name(self) -> str | None:
        """The engine's name of C, or None where it is a user's."""
        raise NotImplementedError

    def _output_error(self, z: np.ndarray, a: np.ndarray, y: np.ndarray) -> Any:
        """BP1: δ^L of columns (n_L, m), or of one where the cost is a user's."""
        raise NotImplementedError

    def _slow(self) -> str | None:
        """Why an epoch cannot be one engine call, if it cannot."""
        for name in ("update_mini_batch", "backprop"):
            if self._replaced(name):
                return f"{name} is not the library's"
        return None

    def _say(self, line: str) -> None:
        """What `SGD` has to say."""
        print(line)

    # -- the engine ----------------------------------------------------------------

    def _replaced(self, name: str) -> bool:
        """Whether a user's subclass, or the instance, has its own method of that name."""
        ours = _our_class(type(self))
        return name in vars(self) or getattr(type(self), name) is not getattr(ours, name)

    def _connect(self) -> Model:
        """The model of these sizes and this cost."""
        key = tuple(self.sizes), self._cost_name(), self._requested
        if self._connection is None or self._connection[0] != key:
            model = Model(
                key[0], cost=key[1] or "quadratic", dtype=_FLOAT64, backend=self._requested
            )
            self._connection, self._plan, self._host = (key, model), None, None
            if key[1] is not None:
                on_host = model.choice.backend == "numpy"
                self._host = (
                    model
                    if on_host
                    else Model(key[0], cost=key[1], dtype=_FLOAT64, backend="numpy")
                )
        return self._connection[1]

    def _passes(self) -> tuple[CompiledPasses, Any] | None:
        """The library's passes and where w^1 … w^L, b^1 … b^L lie, if it can compute this.

        Whether all are finite is not looked at, which takes longer than a sample.
        """
        self._connect()
        compiled = None if self._host is None else self._host.compiled
        if compiled is None:
            return None
        weights, biases = self.weights, self.biases
        if type(weights) is list and type(biases) is list:
            where = compiled.known_addresses([*weights, *biases])
            if where is not None:  # these arrays fitted when they were last looked at
                return compiled, where
        n = self.sizes
        if (
            type(weights) is not list
            or type(biases) is not list
            or list(map(_shape, weights)) != list(zip(n[1:], n, strict=False))
            or list(map(_shape, biases)) != [(k, 1) for k in n[1:]]
        ):
            weights, biases = self._parameters()
        return compiled, compiled.addresses_of([*weights, *biases])

    def _load(self, model: Model, parameters: Parameters) -> None:
        """Put the weights and biases, as they are now, into parameters of the model."""
        weights, biases = self._parameters()
        model.write(model.layout.flat(weights, (b[:, 0] for b in biases), model.dtype), parameters)

    def _take(self, model: Model, parameters: Parameters) -> None:
        """Copy the parameters into the weights and biases."""
        weights, biases = model.layout.views(model.read(parameters))
        self.weights = [w.copy() for w in weights]
        self.biases = [b.reshape(-1, 1).copy() for b in biases]

    def _parameters(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Weights and biases, checked: a user may have assigned them."""
        n = self.sizes
        return (
            _checked("weights", self.weights, list(zip(n[1:], n[:-1], strict=True))),
            _checked("biases", self.biases, [(k, 1) for k in n[1:]]),
        )

    @property
    def backend(self) -> str:
        """The backend in use."""
        return self._connect().choice.backend

    @property
    def plan(self) -> planning.Plan:
        """What runs and why: the engine and kernels from the last `SGD`."""
        model = self._connect()
        return self._plan or model.plan()

    def _read(self, data: Iterable[Any], name: str, kind: samples.Kind) -> Samples:
        return samples.read(data, name, kind, self.sizes[0], self.sizes[-1])

    # -- one sample or a batch of columns -------------------------------------------

    def feedforward(self, a: Any) -> np.ndarray:
        """Compute the outputs a^L of the input `a` (chapter 1, eq. 22).

        Parameters
        ----------
        a : (n_0, 1) array, or (n_0, m) for m inputs at once
            Columns x.

        Returns
        -------
        (n_L, 1) or (n_L, m) array
            Columns a^L.

        Raises
        ------
        ValueError
            For another shape, a vector (n_0,) among them: adding b would make a matrix of it.
        """
        found = validation.numbers("a", a, _FLOAT64)
        if found.ndim != 2 or found.shape[0] != self.sizes[0]:
            shape = found.shape
            raise ValueError(f"a must be a column of shape ({self.sizes[0]}, 1), got {shape}")
        passes = self._passes()
        if passes is not None and found.shape[1]:
            library, where = passes
            rows = np.ascontiguousarray(found.T)
            outputs = library.predict_by(where, rows)
            if validation.all_finite(outputs):
                return outputs.reshape(-1, 1) if len(rows) == 1 else outputs.T
        for w, b in zip(*self._parameters(), strict=True):
            found = sigmoid(w @ found + b)
        return found

    def backprop(self, x: Any, y: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Compute (∇_b C_x, ∇_w C_x) of one sample by BP1–BP4 (chapter 2).

        Parameters
        ----------
        x : (n_0, 1) array
            The input.
        y : (n_L, 1) array
            The target.

        Returns
        -------
        nabla_b : list of (n_l, 1) arrays
            Layer by layer, as `biases`.
        nabla_w : list of (n_l, n_{l-1}) arrays
            Layer by layer, as `weights`.

        Raises
        ------
        ValueError
            For another shape.
        """
        return self._gradients(
            samples.column(x, "x", self.sizes[0]).T, samples.column(y, "y", self.sizes[-1]).T
        )

    def _gradients(self, X: np.ndarray, Y: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The sums of (∇_b C_x, ∇_w C_x) over the rows of X (m, n_0) and Y (m, n_L)."""
        passes = self._passes()
        if passes is None:
            return self._gradients_of_columns(X.T, Y.T)
        library, where = passes
        found = [np.empty(array.shape) for array in where.arrays]
        library.gradients_by(where, X, Y, cpu.addresses_of(found), total=1.0)
        nabla_w, nabla_b = found[: len(found) // 2], found[len(found) // 2 :]
        if not all(map(validation.all_finite, nabla_b)):
            self._parameters()  # which says what is wrong with them, if it is they
        return nabla_b, nabla_w

    def _gradients_of_columns(
        self, x: np.ndarray, y: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The same in NumPy, over the columns of x (n_0, m) and y (n_L, m)."""
        weights, biases = self._parameters()
        a, z = [x], []
        for w, b in zip(weights, biases, strict=True):
            z.append(w @ a[-1] + b)
            a.append(sigmoid(z[-1]))
        delta = self._error_of_columns(z[-1], a[-1], y)  # BP1
        nabla_b, nabla_w = [], []
        for l in range(len(weights) - 1, -1, -1):
            nabla_b.append(delta.sum(axis=1, keepdims=True))  # BP3
            nabla_w.append(delta @ a[l].T)  # BP4
            if l:
                delta = (weights[l].T @ delta) * sigmoid_prime(z[l - 1])  # BP2
        return nabla_b[::-1], nabla_w[::-1]

    def _error_of_columns(self, z: np.ndarray, a: np.ndarray, y: np.ndarray) -> np.ndarray:
        if self._cost_name() is not None:
            return np.asarray(self._output_error(z, a, y))
        # A user's cost is written for one column, and need not be elementwise.
        delta = np.empty_like(a)
        for k in range(a.shape[1]):
            one = slice(k, k + 1)
            value = np.asarray(self._output_error(z[:, one], a[:, one], y[:, one]))
            if value.shape != (len(a), 1):
                raise ValueError(
                    f"the cost's delta must be a column of shape ({len(a)}, 1), got {value.shape}"
                )
            delta[:, one] = value
        return delta

    def _update(self, mini_batch: Iterable[Any], eta: float, kept: float) -> None:
        """One step of gradient descent: w ← `kept` w - η/m Σ ∇_w C_x, b ← b - η/m Σ ∇_b C_x."""
        eta = validation.finite("eta", eta)
        batch = self._read(mini_batch, "mini_batch", "vectors")
        if self._replaced("backprop"):
            found = [self.backprop(x, y) for x, y in batch]
            nabla_b = [np.sum(layer, axis=0) for layer in zip(*(b for b, _ in found), strict=True)]
            nabla_w = [np.sum(layer, axis=0) for layer in zip(*(w for _, w in found), strict=True)]
        else:
            nabla_b, nabla_w = self._gradients(batch.X, batch.Y)
        rate = eta / len(batch)
        for g in (*nabla_w, *nabla_b):
            g *= -rate
        kept_weights = self.weights if kept == 1.0 else [kept * w for w in self.weights]
        self.weights = [np.add(g, w, out=g) for g, w in zip(nabla_w, kept_weights, strict=True)]
        self.biases = [np.add(g, b, out=g) for g, b in zip(nabla_b, self.biases, strict=True)]

    # -- many samples ---------------------------------------------------------------

    def _outputs(self, data: Samples) -> np.ndarray:
        """a^L of every sample, (n, n_L)."""
        if self._replaced("feedforward"):
            return np.concatenate([np.reshape(self.feedforward(x), (1, -1)) for x, _ in data])
        model = self._connect()
        if model.compiled is not None:
            weights, biases = self._parameters()
            return model.compiled.predict_by(cpu.addresses_of([*weights, *biases]), data.X)
        parameters = model.parameters()
        self._load(model, parameters)
        return model.passes().predict(parameters, data.X)

    def _train(
        self,
        training_data: Iterable[Any],
        epochs: int,
        mini_batch_size: int,
        eta: float,
        step: Callable[[list[Any], int], None],
        after: Callable[[int, Samples], bool],
        lmbda: float = 0.0,
    ) -> None:
        """`SGD`: whatever ends it, the caller's list is left in the last order, as by the book.

        Parameters
        ----------
        step : callable
            (mini-batch, n): `update_mini_batch` with the rest of its arguments, for where no engine
            can be used.
        after : callable
            (number of the epoch, data) -> whether to stop.
        lmbda : float
            λ.
        """
        if isinstance(epochs, (float, np.floating)) and float(epochs).is_integer():
            epochs = int(epochs)
        epochs = validation.integer("epochs", epochs, 0)
        size = validation.integer("mini_batch_size", mini_batch_size, 1)
        eta = validation.finite("eta", eta)
        lmbda = validation.finite("lmbda", lmbda, 0.0)
        data = self._read(training_data, "training_data", "vectors")
        rows, m = len(data), min(size, len(data))
        optimizer, model, slow = SGD(l2=lmbda / rows), self._connect(), self._slow()
        self._parameters()  # refuses weights that do not fit
        if slow is None:
            plan = model.plan(planning.Run(rows, epochs, m, rules=frozenset([optimizer.rule])))
            engine = model.engine(plan)
            if epochs:
                self._plan = plan
        else:
            engine = LoopEngine(model, data, step, slow)
            warnings.warn(
                f"training is a Python loop over mini-batches, much slower than the engine: {slow}",
                UserWarning,
                stacklevel=3,
            )
        parameters, before = model.parameters(), (self.weights, self.biases)

        def begin() -> None:
            nonlocal before
            before = self.weights, self.biases
            if slow is None:
                self._load(model, parameters)

        def end() -> None:
            nonlocal before
            if slow is None:
                self._take(model, parameters)
            if not all(np.isfinite(array).all() for array in (*self.weights, *self.biases)):
                raise FloatingPointError(
                    f"weights turned NaN or infinite in epoch {course.number - 1}: a smaller eta "
                    "or lmbda may help"
                )
            before = self.weights, self.biases

        course = BookCourse(
            parameters, rows, m, epochs, optimizer, eta, begin, end,
            lambda number: after(number, data),
        )  # fmt: skip
        with threads.alone("network", self):
            try:
                if epochs:
                    Session(model, RowsAtOnce(engine, data.X, data.Y), [course]).run()
            except BaseException:
                self.weights, self.biases = before
                raise
            finally:
                if isinstance(training_data, list) and course.number:
                    training_data[:] = [data[i] for i in course.order]

    def _hits(self, data: Samples) -> int:
        """How many samples have their largest output, the lowest of equals, at their label."""
        return int((self._outputs(data).argmax(axis=1) == data.labels).sum())


class BookCourse(Course):
    """A network of the book on its way through `SGD`.

    Parameters
    ----------
    parameters : Parameters
    rows, m, epochs : int
        Samples, those of a mini-batch, passes over them.
    optimizer : Optimizer
    eta : float
        η.
    begin, end : callable
        () -> None, around each epoch: the user's lists go in and come back.
    after : callable
        (number of the epoch) -> whether to stop.

    Attributes
    ----------
    order : list of int
        Shuffled with the draws of ``random.shuffle(training_data)``.
    number : int
        Epochs begun.
    """

    def __init__(
        self,
        parameters: Parameters,
        rows: int,
        m: int,
        epochs: int,
        optimizer: SGD,
        eta: float,
        begin: Callable[[], None],
        end: Callable[[], None],
        after: Callable[[int], bool],
    ) -> None:
        super().__init__(parameters)
        self.order, self.number, self.steps = list(range(rows)), 0, -(-rows // m)
        self._m, self._epochs, self._optimizer, self._eta = m, epochs, optimizer, eta
        self._begin, self._end, self._after = begin, end, after
        self._stops = False

    def epoch(self) -> Member:
        random.shuffle(self.order)
        self.number += 1
        self._begin()
        rates = np.full(self.steps, self._eta)
        coefficients = self._optimizer.coefficients(rates, (self.number - 1) * self.steps)
        hyperparameters = Hyperparameters(self._m, self._optimizer, coefficients)
        return Member(self.parameters, (), np.asarray(self.order), hyperparameters)

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        self._end()
        self._stops = self._after(self.number - 1)

    def is_over(self) -> bool:
        return self._stops or self.number >= self._epochs


class LoopEngine(Engine):
    """Epochs that call `update_mini_batch` for each step, for a subclass that overrides it.

    Parameters
    ----------
    data : Samples
    step : callable
        (mini-batch, number of all samples) -> None
    """

    name = "none"

    def __init__(
        self, model: Model, data: Samples, step: Callable[[list[Any], int], None], reason: str
    ) -> None:
        plan = planning.Plan(
            model.choice.backend, model.choice.reason, "none",
            f"a Python loop over mini-batches, because {reason}", captured=False,
        )  # fmt: skip
        super().__init__(model.backend, model.sizes, model.activations, model.cost, plan)
        self._data, self._step_of = data, step

    def run_epoch(
        self,
        member: Member,
        X: Any,
        Y: Any,
        on_step: Callable[[int], None] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        order, m = member.order.tolist(), member.hyperparameters.batch_size
        for begin in range(0, len(order), m):
            self._step_of([self._data[i] for i in order[begin : begin + m]], len(order))
        return np.empty(0)


def _our_class(kind: type) -> type:
    """The class of this package that a user's is derived from, or is."""
    if kind not in _OUR_CLASSES:
        package = __name__.rpartition(".")[0]
        ours = (c for c in kind.__mro__ if c.__module__.rpartition(".")[0] == package)
        _OUR_CLASSES[kind] = next(ours)
    return _OUR_CLASSES[kind]


_OUR_CLASSES: WeakKeyDictionary[type, type] = WeakKeyDictionary()


def _shape(array: Any) -> tuple[int, ...] | None:
    """The shape of an array that the library can read as it is."""
    fits = type(array) is np.ndarray and array.dtype is _FLOAT64 and array.flags.c_contiguous
    return array.shape if fits else None


def _checked(name: str, arrays: Any, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Arrays of these shapes in float64."""
    try:
        given = list(arrays)
    except TypeError:
        raise TypeError(f"{name} must be a list of arrays, got {arrays!r}") from None
    if len(given) != len(shapes):
        raise ValueError(f"{name} must be {len(shapes)} arrays, one per layer, got {len(given)}")
    found = []
    for l, (value, shape) in enumerate(zip(given, shapes, strict=True), start=1):
        array = validation.numbers(f"{name}[{l - 1}]", value, _FLOAT64)
        if array.shape != shape:
            raise ValueError(
                f"{name}[{l - 1}] does not fit layer {l}: expected shape {shape}, got {array.shape}"
            )
        found.append(array)
    return found
