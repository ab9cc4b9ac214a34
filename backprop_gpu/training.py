"""The training loop: epochs, history, callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import optimizers, planning, schedules, validation
from .engines.layered import Hyperparameters

if TYPE_CHECKING:
    from .network import Network


@dataclass
class History:
    """What `fit` saw, one value an epoch.

    ``loss`` is the mean cost over the epoch's mini-batches, each before its update and
    without penalties; ``val_loss`` and ``val_accuracy`` are of the validation data after
    the epoch, empty without such data (``val_accuracy`` is NaN where the targets are not
    classes). ``seconds`` is the time of the epoch without validation.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.loss)


class Callback:
    """Hooks into `fit`. Override what is needed.

    A plain function ``f(network, history)`` may stand for one with only `on_epoch_end`.
    """

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Before anything changes; raise where the validated data lack what is needed."""

    def on_fit_start(self, network: Network) -> None:
        """Before the first epoch."""

    def on_batch_end(self, network: Network, batch: int) -> None:
        """After each mini-batch's update. Overriding it costs the replay of captured steps."""

    def on_epoch_end(self, network: Network, history: History) -> bool | None:
        """After each epoch; return True to stop training."""

    def on_fit_end(self, network: Network, history: History) -> None:
        """After the last epoch."""


def watches_batches(hook: Callback) -> bool:
    """Whether `on_batch_end` is overridden, in the class or on the object."""
    return getattr(hook.on_batch_end, "__func__", None) is not Callback.on_batch_end


class _Function(Callback):
    def __init__(self, function: Callable[[Network, History], bool | None]) -> None:
        self.on_epoch_end = function  # type: ignore[assignment,method-assign]


class EarlyStopping(Callback):
    """Stop when a monitored value has not improved for `patience` epochs.

    Parameters
    ----------
    monitor : {"val_loss", "val_accuracy", "loss"}
        ``val_accuracy`` is better when larger, the others when smaller.
    patience : int
        Epochs without improvement before training stops.
    min_delta : float
        By how much a value must beat the best to count.
    restore_best : bool
        Leave the weights of the best epoch rather than of the last, however
        training ended.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if monitor not in ("val_loss", "val_accuracy", "loss"):
            raise ValueError(f"unknown monitor {monitor!r}; known: val_loss, val_accuracy, loss")
        self.monitor = monitor
        self.patience = validation.integer("patience", patience, 0)
        self.min_delta = validation.finite("min_delta", min_delta, 0.0)
        self.restore_best = restore_best

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        if self.monitor == "loss":
            return
        needs = f"EarlyStopping(monitor={self.monitor!r}) needs validation_data"
        if validation_data is None:
            raise ValueError(needs)
        if self.monitor == "val_accuracy" and validation.classes_of(validation_data[1]) is None:
            raise ValueError(f"{needs} whose targets are classes")

    def on_fit_start(self, network: Network) -> None:
        self.best = np.inf
        #: The epoch, counted from 0, of the best value.
        self.best_epoch = -1
        self._best_parameters: np.ndarray | None = None

    def on_epoch_end(self, network: Network, history: History) -> bool:
        value = getattr(history, self.monitor)[-1]
        if self.monitor == "val_accuracy":
            value = -value
        if value < self.best - self.min_delta or self.best_epoch < 0:
            self.best, self.best_epoch = value, len(history) - 1
            if self.restore_best:
                self._best_parameters = network._get_flat()
        return len(history) - 1 - self.best_epoch >= max(self.patience, 1)

    def on_fit_end(self, network: Network, history: History) -> None:
        if self._best_parameters is not None and self.best_epoch != len(history) - 1:
            network._set_flat(self._best_parameters)
        self._best_parameters = None


def fit(
    network: Network,
    X: Any,
    Y: Any,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float | schedules.Schedule,
    optimizer: str | optimizers.Optimizer,
    validation_data: tuple[Any, Any] | None,
    callbacks: Iterable[Callback | Callable[[Network, History], bool | None]],
    progress: bool,
    engine: str,
) -> History:
    """`Network.fit`, which has the documentation."""
    # Everything is checked before anything changes.
    X, Y = network._check_data(X, Y)
    epochs = validation.integer("epochs", epochs, 1)
    batch_size = validation.integer("batch_size", batch_size, 1, len(X))
    optimizer = optimizers.get(optimizer)
    rates = _Rates(learning_rate, -(-len(X) // batch_size))
    rates.check(epochs)
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise TypeError("validation_data must be a pair (X, Y)")
        validation_data = network._check_data(
            *validation_data, names=("validation X", "validation Y")
        )
    if not hasattr(callbacks, "__iter__"):
        raise TypeError(f"callbacks must be a list of Callbacks or functions, got {callbacks!r}")
    hooks = [_as_callback(callback) for callback in callbacks]
    for hook in hooks:
        hook.check_fit(validation_data)

    network.plan = network._make_plan(
        planning.Training(
            rows=len(X),
            epochs=epochs,
            batch_size=batch_size,
            engine=engine,
            obstacle=network._resident_obstacle(),
            step_callbacks=any(map(watches_batches, hooks)),
            user_cost=not network.cost.builtin,
        )
    )
    history = network.history = History()
    loop = _Loop(network, X, Y, validation_data, batch_size, optimizer, rates)
    for hook in hooks:
        hook.on_fit_start(network)
    try:
        with _bar(epochs, progress) as bar:
            for epoch in range(epochs):
                loop.run(epoch, hooks, history)
                loop.validate(history)
                _report(bar, history)
                if any([hook.on_epoch_end(network, history) for hook in hooks]):
                    break
    finally:
        loop.end()
        for hook in hooks:
            hook.on_fit_end(network, history)
    return history


class _Rates:
    """η at every step, an epoch at a time: those of all epochs could fill the memory."""

    def __init__(self, learning_rate: float | schedules.Schedule, steps: int) -> None:
        self.constant = not callable(learning_rate)
        self.learning_rate = _explained(learning_rate) if callable(learning_rate) else learning_rate
        self.steps = steps

    def check(self, epochs: int) -> None:
        for epoch in range(1 if self.constant else epochs):
            self.of(epoch)

    def of(self, epoch: int) -> np.ndarray:
        first = epoch * self.steps
        times = np.arange(first, first + self.steps) / self.steps
        return schedules.evaluate(self.learning_rate, times)


def _explained(schedule: schedules.Schedule) -> schedules.Schedule:
    """The schedule, whose errors say how it is called."""

    def call(t: np.ndarray) -> np.ndarray:
        try:
            return schedule(t)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"learning_rate failed: {error}. It is called with an array of times: "
                "write np.where(t < 5, 0.1, 0.01) for 0.1 if t < 5 else 0.01"
            ) from error

    return call


class _Loop:
    """The device's side of one `fit`: data, optimizer state and the last good weights."""

    def __init__(
        self,
        network: Network,
        X: np.ndarray,
        Y: np.ndarray,
        validation_data: tuple[np.ndarray, np.ndarray] | None,
        batch_size: int,
        optimizer: optimizers.Optimizer,
        rates: _Rates,
    ) -> None:
        backend = network._backend
        self.network, self.backend, self.engine = (
            network,
            backend,
            network._engine_for(network.plan),
        )
        self.parameters = network._parameters
        self.X, self.Y = backend.asarray(X), backend.asarray(Y)
        self.validation = None
        if validation_data is not None:
            X_val, Y_val = validation_data
            classes = validation.classes_of(Y_val)
            self.validation = backend.asarray(X_val), backend.asarray(Y_val), classes
        length = (self.parameters.layout.length,)
        self.slots = tuple(backend.zeros(length) for _ in range(optimizer.slots))
        self.good = backend.empty(length)
        self.batch_size, self.optimizer, self.rates = batch_size, optimizer, rates

    def run(self, epoch: int, hooks: list[Callback], history: History) -> None:
        """One epoch; if it does not end well, the parameters are those before it."""
        network, steps = self.network, self.rates.steps
        self.backend.copy(self.parameters.flat, self.good)
        order = network._rng.permutation(len(self.X))
        hyperparameters = Hyperparameters(
            self.batch_size,
            self.optimizer,
            self.optimizer.coefficients(self.rates.of(epoch), epoch * steps),
            network.plan.captured,
        )
        batch_hooks = [hook for hook in hooks if watches_batches(hook)]

        def on_step(batch: int) -> None:
            for hook in batch_hooks:
                hook.on_batch_end(network, batch)

        try:
            start = time.perf_counter()
            costs = self.engine.run_epoch(
                self.parameters,
                self.slots,
                self.X,
                self.Y,
                order,
                hyperparameters,
                on_step if batch_hooks else None,
            )
            elapsed = time.perf_counter() - start
            self._check(costs, epoch)
        except BaseException:  # Ctrl-C too: a network between two epochs is a usable one
            self.backend.copy(self.good, self.parameters.flat)
            raise
        sizes = np.full(steps, self.batch_size)
        sizes[-1] = len(self.X) - self.batch_size * (steps - 1)
        history.loss.append(float(costs @ sizes) / len(self.X))
        history.seconds.append(elapsed)

    def _check(self, costs: np.ndarray, epoch: int) -> None:
        kept = "the weights are those before this epoch"
        if not np.isfinite(costs).all():
            batch = int(np.argmin(np.isfinite(costs)))
            raise FloatingPointError(
                f"the cost became {costs[batch]} in epoch {epoch + 1}, batch {batch + 1} "
                f"of {len(costs)}; {kept}. A smaller learning_rate or clip_norm may help"
            )
        if not self.backend.all_finite(self.parameters.flat):
            raise FloatingPointError(
                f"a parameter became NaN or infinite in epoch {epoch + 1}, batch {len(costs)} "
                f"of {len(costs)}; {kept}. A smaller learning_rate or clip_norm may help"
            )

    def validate(self, history: History) -> None:
        if self.validation is None:
            return
        X, Y, classes = self.validation
        loss, outputs = self.engine.evaluate(self.parameters, X, Y, planning.CHUNK_ROWS)
        history.val_loss.append(loss)
        history.val_accuracy.append(
            float("nan") if classes is None else validation.accuracy(outputs, classes)
        )

    def end(self) -> None:
        self.engine.release()


def _as_callback(callback: Any) -> Callback:
    if isinstance(callback, Callback):
        return callback
    if callable(callback) and not isinstance(callback, type):
        return _Function(callback)
    raise TypeError(f"callbacks must be Callback objects or functions, got {callback!r}")


def _bar(epochs: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=epochs, unit="epoch", disable=not progress)


def _report(bar: Any, history: History) -> None:
    values = {"loss": f"{history.loss[-1]:.4f}"}
    if history.val_loss:
        values["val_loss"] = f"{history.val_loss[-1]:.4f}"
        values["val_accuracy"] = f"{history.val_accuracy[-1]:.4f}"
    bar.set_postfix(values, refresh=False)
    bar.update()
