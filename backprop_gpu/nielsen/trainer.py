"""What the book's two networks share: columns in, an epoch as one engine call.

The notes' equations stand here for a single sample or a mini-batch of columns, (n_l, m): the
transpose of what the rest of the library calls a batch. They serve `backprop`,
`update_mini_batch` and users' own costs; `SGD` trains with `driver.Driver`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from .. import planning, threads, validation
from ..driver import Driver
from ..network import Network as EngineNetwork
from ..optimizers import SGD
from . import samples
from .samples import Samples

_FLOAT64 = np.dtype(np.float64)


def sigmoid(z: Any) -> Any:
    """σ(z) = 1 / (1 + e^-z) of a number or of every element of an array (chapter 1, eq. 3).

    Where e^-z overflows σ is 0, without a warning.
    """
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(np.negative(z)))


def sigmoid_prime(z: Any) -> Any:
    """σ'(z) = σ(z) (1 - σ(z)), of the shape of z."""
    a = sigmoid(z)
    return a * (1.0 - a)


class Trainer:
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
    _connection: tuple[Any, EngineNetwork] | None = None

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

    # -- the engine ----------------------------------------------------------------

    def _replaced(self, name: str) -> bool:
        """Whether a user's subclass, or the instance, has its own method of that name."""
        package = __name__.rpartition(".")[0]
        ours = next(c for c in type(self).__mro__ if c.__module__.rpartition(".")[0] == package)
        return name in vars(self) or getattr(type(self), name) is not getattr(ours, name)

    def _connect(self) -> EngineNetwork:
        """The engine's network of these sizes and this cost; its parameters are not yet ours."""
        key = tuple(self.sizes), self._cost_name(), self._requested
        if self._connection is None or self._connection[0] != key:
            made = EngineNetwork(
                key[0], cost=key[1] or "quadratic", dtype=_FLOAT64, backend=self._requested
            )
            self._connection = key, made
        return self._connection[1]

    def _loaded(self) -> EngineNetwork:
        """A new one of the engine's networks, with the weights and biases as they are now."""
        weights, biases = self._parameters()
        return self._connect()._with(weights, [b[:, 0] for b in biases])

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
        return self._connect().backend

    @property
    def plan(self) -> planning.Plan:
        """What runs and why: the engine and kernels from the last `SGD`."""
        return self._connect().plan

    def _read(self, data: Iterable[Any], name: str, kind: samples.Kind) -> Samples:
        return samples.read(data, name, kind, self.sizes[0], self.sizes[-1])

    # -- one sample or a batch of columns -------------------------------------------

    def feedforward(self, a: Any) -> np.ndarray:
        """a^L of the input `a` (chapter 1, eq. 22).

        Parameters
        ----------
        a : (n_0, 1) array, or (n_0, m) for m inputs at once

        Returns
        -------
        (n_L, 1) or (n_L, m) array

        Raises
        ------
        ValueError
            For another shape, a vector (n_0,) among them: adding b would make a matrix of it.
        """
        a = validation.numbers("a", a, _FLOAT64)
        if a.ndim != 2 or a.shape[0] != self.sizes[0]:
            raise ValueError(f"a must be a column of shape ({self.sizes[0]}, 1), got {a.shape}")
        for w, b in zip(*self._parameters(), strict=True):
            a = sigmoid(w @ a + b)
        return a

    def backprop(self, x: Any, y: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(∇_b C_x, ∇_w C_x) of one sample by BP1–BP4 (chapter 2).

        Parameters
        ----------
        x : (n_0, 1) array
        y : (n_L, 1) array

        Returns
        -------
        list of (n_l, 1) arrays, list of (n_l, n_{l-1}) arrays
            Layer by layer, as `biases` and `weights` are.

        Raises
        ------
        ValueError
            For another shape.
        """
        return self._gradients(
            samples.column(x, "x", self.sizes[0]), samples.column(y, "y", self.sizes[-1])
        )

    def _gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The sums of (∇_b C_x, ∇_w C_x) over the columns of x (n_0, m) and y (n_L, m)."""
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
        weights, biases = self._parameters()
        if self._replaced("backprop"):
            found = [self.backprop(x, y) for x, y in batch]
            nabla_b = [np.sum(layer, axis=0) for layer in zip(*(b for b, _ in found), strict=True)]
            nabla_w = [np.sum(layer, axis=0) for layer in zip(*(w for _, w in found), strict=True)]
        else:
            nabla_b, nabla_w = self._gradients(batch.X.T, batch.Y.T)
        rate = eta / len(batch)
        self.weights = [kept * w - rate * g for w, g in zip(weights, nabla_w, strict=True)]
        self.biases = [b - rate * g for b, g in zip(biases, nabla_b, strict=True)]

    # -- many samples ---------------------------------------------------------------

    def _outputs(self, data: Samples) -> np.ndarray:
        """a^L of every sample, (n, n_L)."""
        if self._replaced("feedforward"):
            return np.concatenate([np.reshape(self.feedforward(x), (1, -1)) for x, _ in data])
        engine = self._loaded()
        return engine._reader().predict(engine._parameters, data.X, planning.CHUNK_ROWS)

    def _hits(self, data: Samples) -> int:
        """How many samples have their largest output, the lowest of equals, at their label."""
        return int((self._outputs(data).argmax(axis=1) == data.labels).sum())


class Training:
    """The epochs of one `SGD`; as a context it leaves the caller's list in the last order.

    Parameters
    ----------
    trainer : Trainer
    data : list or other iterable of (x, y)
        A list is left in the order of the last epoch, as the book leaves it.
    epochs : int or whole float
    mini_batch_size : int
    eta : float
        η.
    step : callable (mini_batch, n)
        `update_mini_batch` with the rest of its arguments, for where the engine cannot be used.
    lmbda : float
        λ.

    Raises
    ------
    ValueError, TypeError
        For what does not fit, before anything has changed.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: Iterable[Any],
        epochs: int,
        mini_batch_size: int,
        eta: float,
        step: Callable[[list[Any], int], None],
        lmbda: float = 0.0,
    ) -> None:
        if isinstance(epochs, (float, np.floating)) and float(epochs).is_integer():
            epochs = int(epochs)
        self.epochs = validation.integer("epochs", epochs, 0)
        size = validation.integer("mini_batch_size", mini_batch_size, 1)
        self._eta = validation.finite("eta", eta)
        lmbda = validation.finite("lmbda", lmbda, 0.0)
        self._step = step
        self._trainer = trainer
        self._list = data if isinstance(data, list) else None
        self.data = trainer._read(data, "training_data", "vectors")
        self._batch = min(size, len(self.data))
        self._order = list(range(len(self.data)))
        self._epoch = 0
        self._driver: Driver | None = None
        self._alone = threads.alone("network", trainer)
        self._engine = trainer._loaded()  # refuses weights that do not fit
        slow = trainer._slow()
        if slow is not None:
            warnings.warn(
                f"training is a Python loop over mini-batches, much slower than the engine: {slow}",
                UserWarning,
                stacklevel=3,
            )
        elif self.epochs:
            self._driver = Driver(
                self._engine, self.data.X, self.data.Y, epochs=self.epochs,
                batch_size=self._batch, optimizer=SGD(l2=lmbda / len(self.data)),
            )  # fmt: skip
            trainer._connect().plan = self._driver.plan

    def __enter__(self) -> Training:
        self._alone.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._alone.__exit__(kind, error, trace)
        if self._driver is not None:
            self._driver.close()
        if self._list is not None and self._epoch:
            self._list[:] = [self.data[i] for i in self._order]

    def run_epoch(self) -> None:
        """Shuffle, with the draws of ``random.shuffle(training_data)``, and descend once.

        Raises
        ------
        FloatingPointError
            If weights turn NaN or infinite, naming the epoch. They are then those at the end of
            the epoch before, as they are after any other error and after Ctrl-C.
        """
        trainer, epoch = self._trainer, self._epoch
        random.shuffle(self._order)
        self._epoch += 1
        before = trainer.weights, trainer.biases
        try:
            if self._driver is None:
                self._loop()
            else:
                engine = self._engine
                weights, biases = trainer._parameters()
                engine.weights, engine.biases = tuple(weights), tuple(b[:, 0] for b in biases)
                self._driver.run(np.asarray(self._order), self._eta)
                trainer.weights = [w.copy() for w in engine.weights]
                trainer.biases = [b.reshape(-1, 1).copy() for b in engine.biases]
            for array in (*trainer.weights, *trainer.biases):
                if not np.isfinite(array).all():
                    raise FloatingPointError(
                        f"weights turned NaN or infinite in epoch {epoch}: a smaller eta or lmbda "
                        "may help"
                    )
        except BaseException:
            trainer.weights, trainer.biases = before
            raise

    def _loop(self) -> None:
        """The same epoch, a Python call of `update_mini_batch` a step."""
        n = len(self.data)
        for begin in range(0, n, self._batch):
            batch = [self.data[i] for i in self._order[begin : begin + self._batch]]
            self._step(batch, n)


def _checked(name: str, arrays: Any, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Arrays of these shapes in float64."""
    try:
        given = list(arrays)
    except TypeError:
        raise TypeError(f"{name} must be a list of arrays, got {arrays!r}") from None
    if len(given) != len(shapes):
        raise ValueError(f"{name} must be {len(shapes)} arrays, one a layer, got {len(given)}")
    found = []
    for l, (value, shape) in enumerate(zip(given, shapes, strict=True), start=1):
        array = validation.numbers(f"{name}[{l - 1}]", value, _FLOAT64)
        if array.shape != shape:
            raise ValueError(
                f"{name}[{l - 1}] does not fit layer {l}: expected shape {shape}, got {array.shape}"
            )
        found.append(array)
    return found
