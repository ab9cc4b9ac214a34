"""The training loop, for one network and for many: epochs, history, callbacks."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import optimizers, planning, schedules, validation
from .engines.layered import Hyperparameters, LayeredEngine, Member
from .imports import uninterrupted
from .parameters import Parameters

if TYPE_CHECKING:
    from .network import Network

Array = Any


@dataclass
class History:
    """What `fit` saw, one value an epoch.

    ``loss`` is the mean cost over the epoch's mini-batches, each before its update and
    without penalties; ``val_loss`` and ``val_accuracy`` are of the validation data after
    the epoch, empty without such data (``val_accuracy`` is NaN where the targets are not
    classes). ``seconds`` is the time of the epoch without validation, in a `Population`
    that of all members together. ``restored`` is the epoch, counted from 0, whose weights
    `EarlyStopping` has left in the network; None where they are those of the last.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    restored: int | None = None

    def __len__(self) -> int:
        return len(self.loss)

    def final(self, name: str) -> float:
        """The value, such as "val_loss", of the epoch whose weights the network has; else NaN."""
        values = getattr(self, name)
        if not values:
            return float("nan")
        return float(values[-1 if self.restored is None else self.restored])


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

    def for_member(self, network: Network) -> Callback:
        """The callback that hears of one member of a `Population`.

        A shallow copy, so that what the hooks assign belongs to that member. Override it to
        return ``self`` for one object that hears of all members.
        """
        return copy.copy(self)


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
        Epochs without improvement before training stops. One whose value is NaN or infinite is
        never an improvement; where all are, nothing is restored.
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
        self.monitor = validation.one_of("monitor", monitor, ("val_loss", "val_accuracy", "loss"))
        self.patience = validation.integer("patience", patience, 0)
        self.min_delta = validation.finite("min_delta", min_delta, 0.0)
        self.restore_best = validation.boolean("restore_best", restore_best)

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
        if value < self.best - self.min_delta:
            self.best, self.best_epoch = value, len(history) - 1
            if self.restore_best:
                self._best_parameters = network._get_flat()
        return len(history) - 1 - self.best_epoch >= max(self.patience, 1)

    def on_fit_end(self, network: Network, history: History) -> None:
        if self._best_parameters is not None and self.best_epoch != len(history) - 1:
            network._set_flat(self._best_parameters)
            history.restored = self.best_epoch
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
    validation.boolean("progress", progress)
    data = check_data(network, X, Y, validation_data)
    settings = check_settings(len(data.X), epochs, batch_size, learning_rate, optimizer)
    hooks = check_callbacks(callbacks, data)
    network.plan = plan([network], [settings], hooks, engine, data.bytes)
    backend = network._backend
    length = network._layout.length
    course = Course(
        network,
        settings,
        hooks,
        tuple(backend.zeros((length,)) for _ in range(settings.optimizer.slots)),
        backend.empty((length,)),
    )
    loop = Loop(network._engine_for(network.plan), [course], data)
    with Progress(settings.epochs, progress) as shown:
        loop.run(shown)
    if course.failure is not None:
        raise FloatingPointError(course.failure)
    return course.history


# -- what is checked before anything changes -------------------------------------------------


@dataclass(frozen=True, eq=False)
class Data:
    """Checked rows on the host: (n, n_0) and (n, n_L), and perhaps the same for validation.

    All are of the networks' dtype, but for an X that was given as uint8, which it stays.
    """

    X: np.ndarray
    Y: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None

    @property
    def bytes(self) -> bool:
        """Whether X is of uint8."""
        return self.X.dtype == np.uint8


@dataclass(frozen=True, eq=False)
class Settings:
    """The checked hyperparameters of one network."""

    rows: int
    epochs: int
    batch_size: int
    optimizer: optimizers.Optimizer
    rates: Rates


def check_data(network: Network, X: Any, Y: Any, validation_data: Any) -> Data:
    X, Y = network._check_data(X, Y, bytes_stay=True)
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise TypeError("validation_data must be a pair (X, Y)")
        X_val, Y_val = validation_data
        validation_data = network._check_data(X_val, Y_val, ("validation X", "validation Y"))
    return Data(X, Y, validation_data)


def check_settings(
    rows: int,
    epochs: Any,
    batch_size: Any,
    learning_rate: Any,
    optimizer: Any,
    checked: dict[tuple[int, int, int], Any] | None = None,
    place: str = "",
) -> Settings:
    """`checked` remembers schedules that were tried; `place` names the rate of one of many."""
    epochs = validation.integer("epochs", epochs, 1)
    batch_size = validation.integer("batch_size", batch_size, 1, rows)
    optimizer = optimizers.get(optimizer)
    rates = Rates(learning_rate, -(-rows // batch_size), place)
    checked = {} if checked is None else checked
    key = id(learning_rate), epochs, batch_size
    if rates.constant or key not in checked:
        rates.check(epochs)
        checked[key] = learning_rate  # which keeps its id from being given away
    return Settings(rows, epochs, batch_size, optimizer, rates)


def check_callbacks(callbacks: Any, data: Data) -> list[Callback]:
    if not validation.is_iterable(callbacks):
        raise TypeError(f"callbacks must be a list of Callbacks or functions, got {callbacks!r}")
    hooks = [_as_callback(callback) for callback in callbacks]
    for hook in hooks:
        hook.check_fit(data.validation)
    return hooks


def _as_callback(callback: Any) -> Callback:
    if isinstance(callback, Callback):
        for name, arguments in _HOOKS.items():
            hook = getattr(callback, name)
            if getattr(hook, "__func__", None) is not getattr(Callback, name):
                _check_call(f"{name} of callback {callback!r}", hook, arguments)
        return callback
    if callable(callback) and not isinstance(callback, type):
        _check_call(f"callback {callback!r}", callback, _HOOKS["on_epoch_end"])
        return _Function(callback)
    raise TypeError(f"callbacks must be Callback objects or functions, got {callback!r}")


#: What the hooks are called with.
_HOOKS = {
    "check_fit": ("validation_data",),
    "on_fit_start": ("network",),
    "on_batch_end": ("network", "batch"),
    "on_epoch_end": ("network", "history"),
    "on_fit_end": ("network", "history"),
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


def plan(
    networks: Sequence[Network],
    settings: Sequence[Settings],
    hooks: list[Callback],
    engine: str,
    stored_bytes: bool,
) -> planning.Plan:
    """What trains networks of one shape: by the largest batch and the most epochs among them.

    ``stored_bytes`` is `Data.bytes`.
    """
    network = networks[0]
    return network._make_plan(
        planning.Run(
            rows=settings[0].rows,
            epochs=max(each.epochs for each in settings),
            batch_size=max(each.batch_size for each in settings),
            engine=engine,
            obstacle=network._resident_obstacle(),
            members=len(networks),
            step_callbacks=any(map(watches_batches, hooks)),
            user_cost=not network.cost.builtin,
            slots=max(each.optimizer.slots for each in settings),
            rules=frozenset(each.optimizer.rule for each in settings),
            clips_norm=any(each.optimizer.clip_norm is not None for each in settings),
            bytes=stored_bytes,
        )
    )


class Rates:
    """η at every step, an epoch at a time: those of all epochs could fill the memory."""

    #: At most so many epochs are tried before the first: a million of them would take minutes.
    TRIED = 16

    def __init__(
        self, learning_rate: float | schedules.Schedule, steps: int, place: str = ""
    ) -> None:
        self.constant = not callable(learning_rate)
        self.learning_rate = _explained(learning_rate) if callable(learning_rate) else learning_rate
        self.steps, self.place = steps, place

    def check(self, epochs: int) -> None:
        """Try the first epoch, the last and some between."""
        last = 0 if self.constant else epochs - 1
        for epoch in sorted({last * i // (self.TRIED - 1) for i in range(self.TRIED)}):
            self.of(epoch)

    def of(self, epoch: int) -> np.ndarray:
        times = (epoch * self.steps + np.arange(self.steps, dtype=np.float64)) / self.steps
        return schedules.evaluate(self.learning_rate, times)

    def now(self, epoch: int) -> np.ndarray:
        """As `of`, in the midst of training."""
        with validation.within(f"{self.place}{', ' if self.place else ''}epoch {epoch + 1}"):
            return self.of(epoch)


def _explained(schedule: schedules.Schedule) -> schedules.Schedule:
    """The schedule, whose errors say how it is called."""

    def call(t: np.ndarray) -> np.ndarray:
        try:
            return schedule(t)
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"learning_rate failed: {type(error).__name__}: {error}. It is called with an "
                "array of times: write np.where(t < 5, 0.1, 0.01) for 0.1 if t < 5 else 0.01"
            ) from error

    return call


# -- the loop ----------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """An epoch's order, and the generator's state before and after it was drawn."""

    order: np.ndarray
    before: Any
    after: Any


class Course:
    """One network on its way through `fit`: its hyperparameters, callbacks and history.

    Parameters
    ----------
    slots : tuple of (length,) backend arrays
        The optimizer's state, all 0.
    good : (length,) backend array
        Takes the parameters at the end of the last whole epoch.

    Attributes
    ----------
    failure : str or None
        Why it stopped, if its cost or a parameter turned NaN or infinite.
    """

    def __init__(
        self,
        network: Network,
        settings: Settings,
        hooks: list[Callback],
        slots: tuple[Array, ...],
        good: Array,
    ) -> None:
        self.network, self.settings, self.hooks = network, settings, hooks
        self.parameters: Parameters = network._parameters
        self.slots, self.good = slots, good
        self.history = network.history = History()
        self.failure: str | None = None
        self._watching = [hook for hook in hooks if watches_batches(hook)]
        self._running = False
        self._drawn: Drawn | None = None

    def start(self) -> None:
        self._running = True
        for hook in self.hooks:
            hook.on_fit_start(self.network)

    def draw(self, ahead: int = 0) -> None:
        """Draw the order of an epoch, `ahead` epochs from now, that has not begun.

        Until it does, the generator stays as it is: the epoch may never begin.
        """
        if self._drawn is None and len(self.history) + ahead < self.settings.epochs:
            bits = self.network._rng.bit_generator
            before = bits.state
            order = self.network._rng.permutation(self.settings.rows)
            self._drawn = Drawn(order, before, bits.state)
            bits.state = before

    def _order(self) -> np.ndarray:
        drawn, self._drawn = self._drawn, None
        rng = self.network._rng
        # Somebody else may have drawn from the generator since.
        if drawn is None or rng.bit_generator.state != drawn.before:
            return rng.permutation(self.settings.rows)
        rng.bit_generator.state = drawn.after
        return drawn.order

    def next_epoch(self) -> Member:
        settings, epoch = self.settings, len(self.history)
        rates = settings.rates
        return Member(
            self.parameters,
            self.slots,
            self._order(),
            Hyperparameters(
                settings.batch_size,
                settings.optimizer,
                settings.optimizer.coefficients(rates.now(epoch), epoch * rates.steps),
                self.network.plan.captured,
            ),
        )

    @property
    def on_step(self) -> Callable[[int], None] | None:
        """What the engine has to call after every step, if anything."""
        if not self._watching:
            return None

        def call(batch: int) -> None:
            for hook in self._watching:
                hook.on_batch_end(self.network, batch)

        return call

    def trouble(self, costs: np.ndarray, finite: bool) -> str | None:
        """What went wrong in an epoch with these costs; `finite` is of the parameters after it."""
        where = f"in epoch {len(self.history) + 1}, batch"
        advice = (
            "the weights are those before this epoch. A smaller learning_rate or clip_norm may help"
        )
        if not np.isfinite(costs).all():
            batch = int(np.argmin(np.isfinite(costs)))
            return f"the cost became {costs[batch]} {where} {batch + 1} of {len(costs)}; {advice}"
        if not finite:
            return (
                f"a parameter became NaN or infinite {where} {len(costs)} of {len(costs)}; {advice}"
            )
        return None

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        rows, m = self.settings.rows, self.settings.batch_size
        sizes = np.full(len(costs), m)
        sizes[-1] = rows - m * (len(costs) - 1)
        self.history.loss.append(float(costs @ sizes) / rows)
        self.history.seconds.append(seconds)

    def is_over(self) -> bool:
        """Asks the callbacks, each of which hears of every epoch."""
        stops = any([hook.on_epoch_end(self.network, self.history) for hook in self.hooks])
        return stops or len(self.history) >= self.settings.epochs

    def finish(self) -> None:
        """Once, however the course ended."""
        if self._running:
            self._running = False
            for hook in self.hooks:
                hook.on_fit_end(self.network, self.history)


def _draw(courses: Iterable[Course], ahead: int) -> None:
    for course in courses:
        course.draw(ahead)


class Loop:
    """Epochs of networks of one shape, on one backend, until the last has ended.

    Parameters
    ----------
    engine : LayeredEngine
    courses : sequence of Course
    data : Data
    whole : (array, array), optional
        The arrays of which all ``parameters.flat``, and all ``good``, are the rows.
    """

    def __init__(
        self,
        engine: LayeredEngine,
        courses: Sequence[Course],
        data: Data,
        whole: tuple[Array, Array] | None = None,
    ) -> None:
        self.engine, self.backend = engine, engine.backend
        self.courses, self.whole = courses, whole
        as_bytes = data.bytes and engine.reads_bytes
        self.X = self.backend.asarray(data.X, data.X.dtype if as_bytes else None)
        self.Y = self.backend.asarray(data.Y)
        self.validation = None
        if data.validation is not None:
            X_val, Y_val = data.validation
            classes = validation.classes_of(Y_val)
            self.validation = self.backend.asarray(X_val), self.backend.asarray(Y_val), classes

    def run(self, progress: Progress) -> None:
        """Train; a course that fails says so in its `failure`, and the others go on.

        Whatever ends this early, Ctrl-C or a callback's exception: every network is left at the
        end of its last whole epoch.
        """
        for course in self.courses:
            course.start()
        with ExitStack() as last:
            for course in reversed(self.courses):
                last.callback(course.finish)
            last.callback(self.engine.release)
            live = list(self.courses)
            while live:
                ran = self._run_epoch(live, progress)
                self._validate(ran)
                progress.epoch_is_over(ran)
                live = []
                for course in ran:
                    if course.is_over():
                        course.finish()
                        progress.skip(course.settings.epochs - len(course.history))
                    else:
                        live.append(course)

    def _run_epoch(self, live: list[Course], progress: Progress) -> list[Course]:
        """One epoch of each; those that did well are returned, the others back where they were."""
        self._keep(live)
        try:
            start = time.perf_counter()
            costs: list[np.ndarray] = []
            waves = list(self._waves(live))
            for wave, upcoming in zip(waves, [*waves[1:], waves[0]], strict=True):
                ahead = int(upcoming is waves[0])  # of the epoch after this one
                costs += self._run_wave(wave, progress, partial(_draw, upcoming, ahead))
            seconds = time.perf_counter() - start
            failures = [
                course.trouble(cost, finite)
                for course, cost, finite in zip(live, costs, self._finite(live), strict=True)
            ]
            for course, failure in zip(live, failures, strict=True):
                if failure is not None:
                    self._put_back(course)
        except BaseException:  # Ctrl-C too: a network between two epochs is a usable one
            for course in live:
                self._put_back(course)
            raise
        ran = []
        for course, cost, failure in zip(live, costs, failures, strict=True):
            if failure is None:
                course.end_epoch(cost, seconds)
                ran.append(course)
                continue
            course.failure = failure
            course.finish()
            progress.skip(course.settings.epochs - len(course.history) - 1)
        return ran

    def _run_wave(
        self, wave: list[Course], progress: Progress, meanwhile: Callable[[], None]
    ) -> list[np.ndarray]:
        if len(self.courses) > 1 and not any(course.on_step for course in wave):
            members = [course.next_epoch() for course in wave]
            return self.engine.run_members(
                members, self.X, self.Y, lambda i: progress.member_is_over(), meanwhile
            )
        costs = []
        for course in wave:
            member = course.next_epoch()
            costs.append(self.engine.run_epoch(member, self.X, self.Y, course.on_step, meanwhile))
            progress.member_is_over()
        return costs

    def _waves(self, live: list[Course]) -> Iterable[list[Course]]:
        """As many at a time as have room for their orders and coefficients on the host."""
        steps = max(course.settings.rates.steps for course in live)
        size = planning.members_a_call(len(self.X), steps)
        return (live[i : i + size] for i in range(0, len(live), size))

    def _keep(self, live: list[Course]) -> None:
        if self.whole is not None and len(live) == len(self.courses):
            self.backend.copy(*self.whole)  # on a device one launch instead of one a member
            return
        for course in live:
            self.backend.copy(course.parameters.flat, course.good)

    def _put_back(self, course: Course) -> None:
        self.backend.copy(course.good, course.parameters.flat)

    def _finite(self, live: list[Course]) -> list[bool]:
        """Whether the parameters of each are finite; of all at once, where that may be."""
        everyone = self.whole if len(live) == len(self.courses) else None
        if everyone is not None and self.backend.all_finite(everyone[0]):
            return [True] * len(live)
        return [self.backend.all_finite(course.parameters.flat) for course in live]

    def _validate(self, ran: list[Course]) -> None:
        if self.validation is None or not ran:
            return
        X, Y, classes = self.validation
        losses, accuracies = evaluate(
            self.engine, [course.parameters for course in ran], X, Y, classes
        )
        for course, loss, accuracy in zip(ran, losses.tolist(), accuracies.tolist(), strict=True):
            course.history.val_loss.append(loss)
            course.history.val_accuracy.append(accuracy)


def evaluate(
    engine: LayeredEngine,
    members: Sequence[Parameters],
    X: Array,
    Y: Array | None,
    classes: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(C, accuracy) of each member over all rows, (members,) each; NaN without Y or classes."""
    losses, right = np.zeros(len(members)), np.zeros(len(members))
    for i, rows, cost, outputs in engine.outputs(members, X, Y, planning.CHUNK_ROWS):
        losses[i] += len(outputs) * cost
        if classes is not None:
            right[i] += (validation.predicted(outputs) == classes[rows]).sum()
    unknown = np.full(len(members), np.nan)
    return (
        unknown if Y is None else losses / len(X),
        unknown if classes is None else right / len(X),
    )


def for_member(hooks: Sequence[Callback], network: Network) -> list[Callback]:
    """What hears of one member of a population."""
    return [_as_callback(hook.for_member(network)) for hook in hooks]


class Progress:
    """The bar of a training run: an epoch of one network is a step of it.

    Parameters
    ----------
    epochs : int
        Of all networks together.
    shown : bool
    members : int
        How many networks train at once.
    """

    def __init__(self, epochs: int, shown: bool, members: int = 1) -> None:
        with uninterrupted():
            from tqdm.auto import tqdm

        unit = "epoch" if members == 1 else "member epoch"
        self._bar = tqdm(total=epochs, unit=unit, disable=not shown)
        self._many = members > 1

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def describe(self, text: str) -> None:
        self._bar.set_description(text, refresh=False)

    def member_is_over(self) -> None:
        if self._many:  # its epoch ends long before the others'
            self._bar.update()

    def epoch_is_over(self, ran: Sequence[Course]) -> None:
        if not ran:
            return
        history = min(
            (course.history for course in ran),
            key=lambda history: validation.nan_last((history.val_loss or history.loss)[-1]),
        )
        values = {"loss": f"{history.loss[-1]:.4f}"}
        if history.val_loss:
            values["val_loss"] = f"{history.val_loss[-1]:.4f}"
            if not np.isnan(history.val_accuracy[-1]):  # the targets are classes
                values["val_accuracy"] = f"{history.val_accuracy[-1]:.4f}"
        if self._many:
            values = {f"best {name}": value for name, value in values.items()}
            values["training"] = str(len(ran))
        self._bar.set_postfix(values, refresh=False)
        if not self._many:
            self._bar.update()

    def skip(self, epochs: int) -> None:
        """Epochs that a network of many will not train."""
        if self._many and epochs:
            self._bar.total -= epochs
            self._bar.refresh()
