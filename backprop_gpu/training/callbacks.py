"""Hooks into training: `Callback`, `EarlyStopping`, and what may stand for one."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import validation
from .history import History

if TYPE_CHECKING:
    from ..model import Model
    from .settings import Data, StoredData


@dataclass(eq=False)
class FitRun:
    """The training of one network, as a callback hears of it that keeps a log.

    Parameters
    ----------
    settings : dict of str to JSON value
        What the training was asked for, by the names that `Network`, `fit` and a sweep's setting
        have for it, and the backend and engine that it got.
    labels : dict of str to int
        Which of the networks it is that one call trains: ``member`` of a `Population`; ``row`` of
        a sweep's table, with ``trial``; ``row`` and ``fold`` of a cross-validation. Else empty.
    call : object
        The same for all networks that one call trains.
    done : int or None
        Epochs of the checkpoint that it goes on from; None where it begins anew.
    failure : str or None
        From `Callback.on_fit_end` on: why it ended, where it did not end well. An exception is
        there by the name of its class first.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    call: object = field(default_factory=object)
    done: int | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        self.settings = {name: json_value(value) for name, value in self.settings.items()}


def json_value(value: Any) -> Any:
    """A setting's value as JSON has it: of an object that JSON has not, the name or its text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | range):
        return [json_value(each) for each in value]
    text = str(getattr(value, "name", None) or repr(value))
    if " at 0x" in text:  # an address
        text = str(getattr(value, "__name__", type(value).__name__))
    return text


class Callback:
    """Hooks into `fit`. Override what is needed; ``network`` is the `Network` that trains.

    A plain function ``f(network, history)`` may stand for one with only `on_epoch_end`. A callback
    serves one `fit` at a time: threads that train at once need one each.

    Attributes
    ----------
    interval : int, default 1
        `on_batch_end` is called after every so many mini-batches of an epoch, and after its last.
        With 1 Python has to come between any two steps, which takes time and rules out engines
        that run a whole epoch on a device. With more an engine runs so many steps at a time, and
        the weights it trains are the same, to the bit.
    leaves_weights : bool, default False
        Whether it may leave other weights in the network than those of the last epoch.
    """

    interval: int = 1
    #: Whether it may leave other weights in the network than those of the last epoch.
    leaves_weights: bool = False
    #: Whether a training is the same without it. It then hears of everything after those that are
    #: not so, on the first of several ranks alone; and a training may be resumed with others.
    keeps_log: bool = False

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Look at what `fit` was given, before anything changes.

        Parameters
        ----------
        validation_data : (X, Y) or None
            The checked arrays, (n, n_0) and (n, targets).

        Raises
        ------
        ValueError
            Where they lack what the callback needs.
        """

    def check_rows(
        self, model: Model, first: Callable[[int], tuple[np.ndarray, np.ndarray]] | None
    ) -> None:
        """Raise where the rows to train on are not what is needed, before anything changes.

        Parameters
        ----------
        model : Model
            What trains: ``sizes``, ``cost`` and so on.
        first : callable or None
            ``first(k)`` gives the first k rows of X and Y, or as many as there are; None where
            `fit` has batches.
        """

    def on_run(self, network: Any, run: FitRun) -> None:
        """Hear what is trained, and how, before `on_fit_start`.

        Parameters
        ----------
        network : Network
            The one that trains.
        run : FitRun
            What the training was asked for, and which of several it is.
        """

    def on_fit_start(self, network: Any) -> None:
        """Hear that training begins, before the first epoch.

        Parameters
        ----------
        network : Network
            The one that trains.
        """

    def on_batch_end(self, network: Any, batch: int) -> None:
        """Hear that a mini-batch's update is done, as often as `interval` says.

        Parameters
        ----------
        network : Network
            The one that trains, with the weights after the update.
        batch : int
            Number of the mini-batch in its epoch, counted from 0.
        """

    def on_epoch_end(self, network: Any, history: History) -> bool | None:
        """Hear that an epoch is over, and validated; return True to stop training.

        Parameters
        ----------
        network : Network
            The one that trains.
        history : History
            With the values of this epoch.

        Returns
        -------
        bool or None
            Whether to stop.
        """

    def on_fit_end(self, network: Any, history: History) -> None:
        """Hear that training is over: after the last epoch, or what has ended it before.

        Parameters
        ----------
        network : Network
            The one that has been trained.
        history : History
            Of all epochs.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what it must know to go on after an epoch, for a `Checkpoint`.

        Returns
        -------
        dict
            Values are those of JSON, or NumPy arrays where it does not keep a log.
        """
        return {}

    def on_resume(self, network: Any, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, where `fit` goes on from a checkpoint.

        It is called after `on_fit_start`.

        Parameters
        ----------
        network : Network
            The one that trains, with the weights of the checkpoint.
        state : dict
            What `state_dict` gave then. The file may have been written by anybody. One that
            `keeps_log` gets {} where the checkpoint has nothing of it.

        Raises
        ------
        ValueError
            For a state that cannot be.
        """

    def for_member(self, network: Any) -> Callback:
        """Return the callback that hears of one member of a `Population`.

        A shallow copy, so that what the hooks assign belongs to that member. Override it to
        return ``self`` for one object that hears of all members.

        Parameters
        ----------
        network : Network
            The member.

        Returns
        -------
        Callback
            Whose hooks are called for the member.
        """
        return copy.copy(self)


def overrides(hook: Callback, name: str) -> bool:
    """Whether a method is overridden, in the class or on the object."""
    return getattr(getattr(hook, name), "__func__", None) is not getattr(Callback, name)


def watches_batches(hook: Callback) -> bool:
    """Whether it is to hear of mini-batches."""
    return overrides(hook, "on_batch_end")


def watches_each_batch(hook: Callback) -> bool:
    """Whether it is to hear of every one, so that Python is needed between any two steps."""
    return watches_batches(hook) and hook.interval == 1


def keeps_state(hook: Callback) -> bool:
    """Whether it has something to remember."""
    return overrides(hook, "state_dict")


def is_needed(hook: Callback) -> bool:
    """Whether a checkpoint's training cannot go on without it."""
    return keeps_state(hook) and not hook.keeps_log


class _Function(Callback):
    def __init__(self, function: Callable[[Any, History], bool | None]) -> None:
        self.on_epoch_end = function  # type: ignore[assignment,method-assign]


class EarlyStopping(Callback):
    """Stop when a monitored value has not improved for `patience` epochs.

    Parameters
    ----------
    monitor : {"val_loss", "val_accuracy", "loss"}
        ``val_accuracy`` is better when larger, the others when smaller.
    patience : int
        Epochs without improvement before training stops. One whose value is NaN or infinite is
        never an improvement; where all are, nothing is restored.
    min_delta : float
        By how much a value must beat the best to count.
    restore_best : bool
        Leave the weights of the best epoch rather than of the last, however
        training ended.

    Attributes
    ----------
    best : float
        The best value so far, ``val_accuracy`` negated.
    best_epoch : int
        The epoch of the best value, counted from 0; -1 before there is one.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import EarlyStopping, Network
    >>> X = np.random.default_rng(0).standard_normal((40, 2)); Y = np.sign(X[:, :1])
    >>> net = Network([2, 4, 1], activation="tanh", seed=1, backend="numpy")
    >>> history = net.fit(
    ...     X[:30], Y[:30], epochs=1000, batch_size=10, learning_rate=1.0,
    ...     validation_data=(X[30:], Y[30:]), callbacks=[EarlyStopping(patience=5)],
    ... )
    >>> len(history) < 1000
    True
    >>> history.final("val_loss") == min(history.val_loss)
    True
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        self.monitor = validation.one_of("monitor", monitor, ("val_loss", "val_accuracy", "loss"))
        self.patience = validation.integer("patience", patience, 0)
        self.min_delta = validation.finite("min_delta", min_delta, 0.0)
        self.restore_best = validation.boolean("restore_best", restore_best)
        self.leaves_weights = self.restore_best

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        if self.monitor == "loss":
            return
        needs = f"EarlyStopping(monitor={self.monitor!r}) needs validation_data"
        if validation_data is None:
            raise ValueError(needs)
        if self.monitor == "val_accuracy" and validation.classes_of(validation_data[1]) is None:
            raise ValueError(f"{needs} whose targets are classes")

    def on_fit_start(self, network: Any) -> None:
        self.best = np.inf
        #: The epoch, counted from 0, of the best value.
        self.best_epoch = -1
        self._best_parameters: np.ndarray | None = None

    def on_epoch_end(self, network: Any, history: History) -> bool:
        value = getattr(history, self.monitor)[-1]
        if self.monitor == "val_accuracy":
            value = -value
        if value < self.best - self.min_delta:
            self.best, self.best_epoch = value, len(history) - 1
            if self.restore_best:
                self._best_parameters = network.model.read(network.parameters)
        return len(history) - 1 - self.best_epoch >= max(self.patience, 1)

    def state_dict(self) -> dict[str, Any]:
        best, epoch, parameters = float(self.best), self.best_epoch, self._best_parameters
        return {"best": best, "best_epoch": epoch, "best_parameters": parameters}

    def on_resume(self, network: Any, state: dict[str, Any]) -> None:
        best, epoch, parameters = map(state.get, ("best", "best_epoch", "best_parameters"))
        length = network.model.layout.length
        if not isinstance(best, float) or math.isnan(best) or type(epoch) is not int:
            raise ValueError("EarlyStopping's best must be a number, and best_epoch an integer")
        if parameters is not None:
            parameters = validation.numbers("best_parameters", parameters, network.model.dtype)
            if parameters.shape != (length,):
                raise ValueError(f"best_parameters must be of shape ({length},)")
        self.best, self.best_epoch, self._best_parameters = best, epoch, parameters

    def on_fit_end(self, network: Any, history: History) -> None:
        if self._best_parameters is not None and self.best_epoch != len(history) - 1:
            network.model.write(self._best_parameters, network.parameters)
            history.restored = self.best_epoch
        self._best_parameters = None


def check_callbacks(
    callbacks: Any,
    model: Model,
    validation_data: tuple[np.ndarray, np.ndarray] | None,
    data: Data | StoredData | None = None,
) -> list[Callback]:
    """The callbacks of a `fit`, if they can be called and the data are what they need.

    `data` are the rows to train on, where they are known.

    Raises
    ------
    TypeError, ValueError
        For what is no callback, or lacks validation data; and for an average of weights beside
        another, or beside the best weights: a network is left with one of them.
    """
    if not validation.is_iterable(callbacks):
        raise TypeError(f"callbacks must be a list of Callbacks or functions, got {callbacks!r}")
    hooks = [_as_callback(callback) for callback in callbacks]
    leaving = [hook for hook in hooks if hook.leaves_weights]
    kinds = dict.fromkeys(type(hook).__name__ for hook in leaving)
    if len(leaving) > 1 and not all(isinstance(hook, EarlyStopping) for hook in leaving):
        raise ValueError(
            f"callbacks: {' and '.join(kinds)} would each leave weights of its own in the network; "
            "leave out all but one, or give EarlyStopping restore_best=False"
        )

    def first(count: int) -> tuple[np.ndarray, np.ndarray]:
        assert data is not None
        return data.read(model, np.arange(min(count, len(data.X))))

    for hook in hooks:
        hook.check_fit(validation_data)
        hook.check_rows(model, None if data is None else first)
    return sorted(hooks, key=lambda hook: hook.keeps_log)


def _as_callback(callback: Any) -> Callback:
    if isinstance(callback, Callback):
        for name, arguments in _HOOKS.items():
            if overrides(callback, name):
                _check_call(f"{name} of callback {callback!r}", getattr(callback, name), arguments)
        validation.integer(f"interval of callback {callback!r}", callback.interval, 1)
        return callback
    if callable(callback) and not isinstance(callback, type):
        _check_call(f"callback {callback!r}", callback, _HOOKS["on_epoch_end"])
        return _Function(callback)
    raise TypeError(f"callbacks must be Callback objects or functions, got {callback!r}")


#: What the hooks are called with.
_HOOKS = {
    "check_fit": ("validation_data",),
    "check_rows": ("model", "first"),
    "on_run": ("network", "run"),
    "on_fit_start": ("network",),
    "on_batch_end": ("network", "batch"),
    "on_epoch_end": ("network", "history"),
    "on_fit_end": ("network", "history"),
    "state_dict": (),
    "on_resume": ("network", "state"),
    "for_member": ("network",),
}


def _check_call(what: str, hook: Any, arguments: tuple[str, ...]) -> None:
    """Refuse now what could not be called after an epoch; what cannot be inspected passes."""
    expected = f"{what} must be a function ({', '.join(arguments)})"
    if not callable(hook):
        raise TypeError(f"{expected}, got {hook!r}")
    if inspect.iscoroutinefunction(hook) or inspect.isgeneratorfunction(hook):
        raise TypeError(f"{expected} that returns at once, not a coroutine or generator")
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{expected}, but it takes {signature}: {error}") from None


def for_member(hooks: Sequence[Callback], network: Any) -> list[Callback]:
    """What hears of one member of a population."""
    return [_as_callback(hook.for_member(network)) for hook in hooks]
