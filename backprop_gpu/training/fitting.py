"""`Network.fit` and `Population.fit`: random orders, schedules, callbacks, histories."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import gcd
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from .. import planning, threads, validation
from ..communicators import ALONE, Communicator, resolved
from ..engines import Engine, Hyperparameters, Member
from ..model import Model
from ..optimizers import COEFFICIENTS
from ..parameters import Parameters
from ..philox import Draws
from ..planning import Plan
from ..preprocessing import Preprocessing
from . import checkpoint
from .callbacks import (
    Callback,
    FitRun,
    check_callbacks,
    is_needed,
    json_value,
    watches_batches,
    watches_each_batch,
)
from .checkpoint import Checkpoint, CheckpointWriter, MemberState, generator_of
from .history import History
from .mixing import mixed
from .progress import Progress, ProgressBar
from .rows import Rows, RowsAtOnce, RowsInPieces, RowsOfBatches
from .session import Course, Session
from .settings import (
    BUFFER_BYTES,
    Data,
    ExplainedSchedule,
    Settings,
    StoredData,
    check_rows,
    check_settings,
    check_validation,
    rows_of,
)
from .time_spent import TimeSpent
from .weights import relative_weights

Array = Any


class Trainee(Protocol):
    """What `fit` has to know of a network, and tells it."""

    parameters: Parameters
    generator: np.random.Generator
    plan: Plan
    history: History | None
    preprocessing: Preprocessing | None

    @property
    def model(self) -> Model: ...


class Drawn(NamedTuple):
    """What is drawn for an epoch, and the generator's state before and after that."""

    order: np.ndarray
    #: Of what it draws.
    key: int
    #: λ of each mini-batch.
    mixup: np.ndarray | None
    before: Any
    after: Any


class FitCourse(Course):
    """One network on its way through `fit`: its hyperparameters, callbacks and history.

    Parameters
    ----------
    slots : tuple of (length,) backend arrays
        The optimizer's state, all 0.
    good : (length,) backend array
        As in `Course`.
    communicator : Communicator
        Of whose ranks all end when a callback of any of them says so.
    weights : (rows,) float64 array, optional
        What each row counts.
    """

    def __init__(
        self,
        network: Trainee,
        settings: Settings,
        hooks: list[Callback],
        slots: tuple[Array, ...],
        good: Array,
        communicator: Communicator = ALONE,
        weights: np.ndarray | None = None,
    ) -> None:
        super().__init__(network.parameters, good)
        self.communicator, self.weights = communicator, weights
        #: The sum of each mini-batch's weights, of the epochs that run.
        self._totals: np.ndarray | None = None
        self.network, self.settings, self.hooks, self.slots = network, settings, hooks, slots
        self.steps, self.rows = settings.rates.steps, settings.rows
        self.history = network.history = History()
        self._watching = [hook for hook in hooks if watches_batches(hook)]
        if any(map(watches_each_batch, self._watching)):
            self.on_step = self.piece_is_over
        elif self._watching:
            self.piece = gcd(*(hook.interval for hook in self._watching))
        self._running = False
        self._drawn: Drawn | None = None
        #: What callbacks hear of it; a sweep puts its setting there, and a population the member.
        self.run = FitRun()
        #: Those whose `on_fit_start` has been called.
        self._started: list[Callback] = []
        #: What it goes on from, and whether a callback has ended it.
        self.resumed: MemberState | None = None
        self.stopped = False
        #: How many epochs may be one member; nobody is to look between them.
        self.at_once = 1
        self._state: Any = None
        #: The generator's, before this epoch's order was drawn.
        self._before: Any = None

    @classmethod
    def alone(
        cls,
        network: Trainee,
        settings: Settings,
        hooks: list[Callback],
        communicator: Communicator = ALONE,
        weights: np.ndarray | None = None,
    ) -> Self:
        """A network that no other trains beside, with arrays of its own."""
        model = network.model
        length, count = (model.layout.length,), settings.optimizer.slots
        slots = tuple(model.backend.zeros(length) for _ in range(count))
        good = model.backend.empty(length)
        return cls(network, settings, hooks, slots, good, communicator, weights)

    def start(self) -> None:
        self._running = True
        self.run.settings |= self.described()
        if self.resumed is not None:
            self.run.done = len(self.resumed.history)
        for hook in self.hooks:
            hook.on_run(self.network, self.run)
        for hook in self.hooks:
            self._started.append(hook)
            hook.on_fit_start(self.network)
        if self.resumed is not None:
            remember = [hook for hook in self.hooks if is_needed(hook)]
            for hook, (_, values) in zip(remember, self.resumed.callbacks, strict=True):
                hook.on_resume(self.network, values)
            logs = list(self.resumed.logs)
            for hook in self.hooks:
                if hook.keeps_log:
                    kind = type(hook).__qualname__
                    own = next((each for each in logs if each[0] == kind), (kind, {}))
                    logs = [each for each in logs if each is not own]
                    hook.on_resume(self.network, own[1])

    def described(self) -> dict[str, Any]:
        """What is trained and how, for `FitRun.settings`."""
        return described(self.network, self.settings)

    def withdraw(self, error: BaseException) -> None:
        # Logs end. The others would leave weights in a network that is to stay as it was.
        self._started = [hook for hook in self._started if hook.keeps_log]
        self.interrupt(error)

    def go_on(self) -> None:
        if self.resumed is None:
            return
        state, network, backend = self.resumed, self.network, self.network.model.backend
        self.stopped, self.failure, self.begun = state.stopped, state.failure, state.begun
        if state.good is not None:
            backend.copy(backend.asarray(state.good), self.good)
        spent = self.history.time_spent
        self.history = network.history = replace(state.history, time_spent=spent)
        network.model.write(state.parameters, network.parameters)
        for slot, values in zip(self.slots, state.slots, strict=True):
            backend.copy(backend.asarray(values), slot)
        take_state(network, state.generator)

    def state(self) -> MemberState:
        """What another has to know to go on from here."""
        model = self.network.model
        return MemberState(
            model.read(self.parameters),
            tuple(map(model.backend.to_numpy, self.slots)),
            replace(self.history),  # what ends a member may still write to it
            self._before if len(self.begun) else self.network.generator.bit_generator.state,
            self.stopped,
            self.failure,
            tuple(
                (type(hook).__qualname__, hook.state_dict())
                for hook in self.hooks
                if is_needed(hook)
            ),
            self.begun,
            model.backend.to_numpy(self.good) if len(self.begun) else None,
            tuple(
                (type(hook).__qualname__, hook.state_dict())
                for hook in self.hooks
                if hook.keeps_log
            ),
        )

    def draw(self, ahead: int) -> None:
        # Until the epoch begins the generator stays as it is: it may never do so.
        if self._drawn is None and len(self.history) + ahead < self.settings.epochs:
            bits = self.network.generator.bit_generator
            before = bits.state
            drawn = self._draw(self.network.generator)
            self._drawn = Drawn(*drawn, before, bits.state)
            bits.state = before

    def _draw(self, generator: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray | None]:
        settings = self.settings
        order, key = settings.draw_order(generator), settings.draw_key(generator)
        return order, key, settings.draw_mixup(generator, self.steps)

    def draw_now(self) -> tuple[np.ndarray, int, np.ndarray | None]:
        """An epoch's order, the key of what it draws a step, and `Settings.draw_mixup`'s."""
        drawn, self._drawn = self._drawn, None
        rng = self.network.generator
        self._before = rng.bit_generator.state
        # Somebody else may have drawn from the generator since.
        if drawn is None or rng.bit_generator.state != drawn.before:
            return self._draw(rng)
        rng.bit_generator.state = drawn.after
        return drawn.order, drawn.key, drawn.mixup

    def epoch(self) -> Member:
        settings, epoch, rates = self.settings, len(self.history), self.settings.rates
        # One that has begun is ended first.
        epochs = 1 if len(self.begun) else min(self.at_once, settings.epochs - epoch)
        if epochs > 1:
            self._state = self.network.generator.bit_generator.state
        orders, keys, mixups = zip(*(self.draw_now() for _ in range(epochs)), strict=True)
        order = orders[0] if epochs == 1 else np.concatenate(orders)
        # Of several epochs they are constant.
        now = rates.now(epoch) if epochs == 1 else np.tile(rates.now(epoch), epochs)
        coefficients = settings.optimizer.coefficients(now, epoch * rates.steps)
        hyperparameters = Hyperparameters(settings.batch_size, settings.optimizer, coefficients)
        weights = None
        if self.weights is not None:
            weights, self._totals = relative_weights(
                self.weights[order], settings.batch_size, epochs
            )
            if settings.mixup:
                # A mini-batch's mean stays what it was.
                weights = mixed(weights, mixups[0], settings.batch_size)
            weights = weights.astype(self.network.model.dtype)
        draws = Draws(settings.dropout, keys) if settings.has_draws else None
        return Member(
            self.parameters, self.slots, order, hyperparameters, weights, epochs, draws,
            mixups[0],
        )  # fmt: skip

    def begin_again(self) -> None:
        self.at_once = 1
        self.network.generator.bit_generator.state = self._state

    def piece_is_over(self, batch: int) -> None:
        self._tell_of_batch(
            batch, [hook for hook in self._watching if (batch + 1) % hook.interval == 0]
        )

    def steps_are_over(self, steps: int) -> None:
        # Of the last step only those are still to hear whose interval has not ended with it.
        self._tell_of_batch(steps - 1, [hook for hook in self._watching if steps % hook.interval])

    def _tell_of_batch(self, batch: int, hooks: Sequence[Callback]) -> None:
        if not hooks:
            return
        spent = self.history.time_spent
        spent.add("engine")
        for hook in hooks:
            hook.on_batch_end(self.network, batch)
        spent.add("callbacks")

    def trouble(self, costs: np.ndarray, finite: bool) -> str | None:
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
        each = costs.reshape(-1, self.steps)
        if self._totals is None:
            sizes = np.full(self.steps, m)
            sizes[-1] = rows - m * (self.steps - 1)
            self.history.loss += [float(row @ sizes) / rows for row in each]
        else:
            totals = self._totals.reshape(each.shape)
            self.history.loss += ((each * totals).sum(axis=1) / totals.sum(axis=1)).tolist()
        self.history.seconds += [seconds / len(each)] * len(each)

    def validated(self, loss: float, accuracy: float) -> None:
        self.history.val_loss.append(loss)
        self.history.val_accuracy.append(accuracy)

    def is_over(self) -> bool:
        # Each callback hears of every epoch.
        stops = [hook.on_epoch_end(self.network, self.history) for hook in self.hooks]
        self.stopped = self.communicator.any(any(stops))
        return self.ended

    @property
    def ended(self) -> bool:
        done = len(self.history) >= self.settings.epochs
        return done or self.stopped or self.failure is not None

    def finish(self) -> None:
        if self._running:
            self._running = False
            self.run.failure = self.failure or self.interruption
            raised: BaseException | None = None
            for hook in self._started:  # each ends, whatever another raises
                try:
                    hook.on_fit_end(self.network, self.history)
                except BaseException as error:
                    raised = raised or error
            if raised is not None:
                raise raised


def described(network: Trainee, settings: Settings) -> dict[str, Any]:
    """`FitRun.settings` of a network with these hyperparameters."""
    model = network.model
    rate: Any = settings.rates.learning_rate
    if isinstance(rate, ExplainedSchedule):
        rate = rate.schedule
    names = [activation.name for activation in model.activations]
    dropout = list(settings.dropout)
    # Of a generator that goes on from another's state, or was spawned by it, there is no seed.
    source = getattr(network.generator.bit_generator, "seed_seq", None)
    seed = None if getattr(source, "spawn_key", ()) else getattr(source, "entropy", None)
    return {
        "sizes": list(model.sizes),
        "activation": names[0] if len(set(names)) == 1 else names,
        "cost": model.cost.name,
        "dtype": model.dtype.name,
        "precision": model.precision,
        "backend": model.choice.backend,
        "engine": network.plan.engine,
        # One that nobody has given has 128 bits, which few readers of numbers can take.
        "seed": seed if type(seed) is int and seed < 2**63 else None,
        "rows": settings.rows,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": json_value(rate),
        "optimizer": repr(settings.optimizer),
        "dropout": (dropout[0] if len(set(dropout)) == 1 else dropout) if dropout else 0.0,
        "mixup": settings.mixup,
    }


def take_state(network: Trainee, state: Any) -> None:
    """Let the network's generator go on from the state of another bit generator."""
    generator, own = generator_of(state), network.generator.bit_generator
    if type(own) is type(generator.bit_generator):  # perhaps not the network's alone
        own.state = generator.bit_generator.state
    else:
        network.generator = generator


class BatchesCourse(FitCourse):
    """One network on its way through `fit` of chunks of rows, of which nobody knows how many come.

    η is that of the epoch's beginning: a schedule's time is in epochs, and how long one is shows
    at its end.
    """

    _done = 0  # steps of all epochs

    def described(self) -> dict[str, Any]:
        return super().described() | {"rows": None}

    def draw(self, ahead: int) -> None:
        """Each chunk's order is drawn when it is there."""

    def epoch(self) -> Member:
        settings = self.settings
        self._rate = settings.rates.now(len(self.history))[0]
        self._sizes: list[int] = []
        nothing = Hyperparameters(
            settings.batch_size, settings.optimizer, np.empty((0, COEFFICIENTS))
        )
        draws = None
        if settings.has_draws:
            draws = Draws(settings.dropout, (settings.draw_key(self.network.generator),))
        order = np.empty(0, np.intp)
        return Member(self.parameters, self.slots, order, nothing, draws=draws)

    def settle(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Of a chunk of so many rows the order, and its steps' coefficients and λ."""
        whole, rest = divmod(rows, self.settings.batch_size)
        self._sizes += [self.settings.batch_size] * whole + [rest] * bool(rest)
        rates = np.full(whole + bool(rest), self._rate)
        coefficients = self.settings.optimizer.coefficients(rates, self._done)
        self._done += len(rates)
        generator = self.network.generator
        order = generator.permutation(rows)
        return order, coefficients, self.settings.draw_mixup(generator, len(rates))

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        self.history.loss.append(float(costs @ self._sizes) / sum(self._sizes))
        self.history.seconds.append(seconds)


def make_run(
    settings: Sequence[Settings],
    hooks: Iterable[Callback],
    engine: str,
    stored_bytes: bool,
    ranks: int = 0,
    density: float | None = None,
) -> planning.Run:
    """The run of networks of one shape: by the largest batch and the most epochs among them.

    `ranks` share each mini-batch, if that is not 0. ``stored_bytes`` is `Data.bytes`, and `density`
    that of `Data`.
    """
    mixes = any(each.mixup for each in settings)  # mixtures are numbers
    kinds = dict.fromkeys((each.batch_size, each.optimizer.slots) for each in settings)
    rows = max(each.rows for each in settings)
    short = {each.rows % each.batch_size for each in settings if each.rows != rows}
    return planning.Run(
        rows=rows,
        epochs=max(each.epochs for each in settings),
        batch_size=max(m for m, _ in kinds),
        engine=engine,
        members=len(settings),
        step_callbacks=any(map(watches_each_batch, hooks)),
        slots=max(slots for _, slots in kinds),
        others=tuple(kinds),
        rules=frozenset(each.optimizer.rule for each in settings),
        options=frozenset().union(*(each.optimizer.options for each in settings)),
        drops=any(each.dropout for each in settings),
        bytes=stored_bytes and not mixes,
        ranks=ranks,
        short=tuple(sorted(short - {0})),
        density=1.0 if density is not None and mixes else density,
    )


def resolve_plan(model: Model, run: planning.Run, plan: Plan | None) -> Plan:
    """The plan that is asked for, if it can train this, or the planner's."""
    if plan is None:
        return model.plan(run)
    if run.engine != "auto":
        raise TypeError("engine and plan exclude each other: a plan names its engine")
    return model.check_plan(plan, run)


class Beginning(NamedTuple):
    """How a training of checked arguments begins: with what plan, and from where."""

    plan: Plan
    #: Of each member, where it goes on from a checkpoint.
    states: Sequence[MemberState | None]

    def done(self, settings: Sequence[Settings]) -> int:
        """The epochs of all members that are over, or will not be, where a callback ended one."""
        return sum(
            0 if state is None
            else given.epochs if state.stopped or state.failure is not None
            else len(state.history)
            for state, given in zip(self.states, settings, strict=True)
        )  # fmt: skip


def begin(
    model: Model,
    data: Data | StoredData,
    settings: Sequence[Settings],
    hooks: Sequence[Callback],
    engine: str,
    plan: Plan | None,
    resume_from: Any,
    population: bool = False,
    ranks: int = 0,
) -> Beginning:
    """What `fit` begins with, from its arguments or from a checkpoint that fits them."""
    run = make_run(settings, hooks, engine, data.bytes, ranks, data.density)
    if resume_from is None:
        for hook in hooks:
            if isinstance(hook, Checkpoint):
                hook.check_new()
        return Beginning(resolve_plan(model, run, plan), [None] * len(settings))
    saved, states = checkpoint.load(resume_from, model, data, settings, hooks, population)
    if engine not in ("auto", saved.engine):
        raise ValueError(
            f"engine={engine!r}, but the checkpoint's training runs on {saved.engine!r}"
        )
    if plan not in (None, saved):
        raise ValueError("plan is not that of the checkpoint; leave it out to take that")
    return Beginning(model.check_plan(saved, replace(run, engine="auto")), states)


def run_session(
    session: Session,
    model: Model,
    plan: Plan,
    data: Data | StoredData,
    courses: Sequence[FitCourse],
    hooks: Sequence[Callback],
    progress: Progress,
    population: bool = False,
    communicator: Communicator = ALONE,
) -> None:
    """Run the session, writing its checkpoints."""
    make = partial(
        checkpoint.to_file,
        model, plan, data, [course.settings for course in courses],
        population=population,
        preprocessing=None if population else courses[0].network.preprocessing,
    )  # fmt: skip
    own = [hook for hook in hooks if isinstance(hook, Checkpoint)]
    with CheckpointWriter(own, make, courses, communicator) as writer:
        session.run(progress, writer.after_epoch, writer.within_epoch)


def begin_alike(
    communicator: Communicator,
    network: Trainee,
    data: Data | StoredData,
    settings: Settings,
    plan: Plan,
    done: int,
) -> None:
    """See that all ranks train the same, and give them the first one's weights and generator.

    Raises
    ------
    ValueError
        Naming what a rank was given that the first was not.
    """
    if communicator.size == 1:
        return
    model = network.model
    mine = {
        "network": repr(network),
        "rows": f"{settings.rows} rows",
        "data": f"rows with the checksum {data.fingerprint}",
        "batch_size": f"batch_size={settings.batch_size}",
        "epochs": f"epochs={settings.epochs}",
        "optimizer": repr(settings.optimizer),
        "learning_rate": checkpoint.rates_of(settings, settings.epochs),
        "dropout": f"dropout={settings.dropout}",
        "mixup": f"mixup={settings.mixup}",
        "plan": f"engine {plan.engine!r} with {plan.shards} shards",
        "arithmetic": model.arithmetic(plan),
        "start": f"a start after epoch {done}",
    }
    everyone = communicator.allgather_text(json.dumps(mine))
    first = json.loads(everyone[0])
    for rank, text in enumerate(everyone):
        for what, its in json.loads(text).items():
            if its != first[what]:
                raise ValueError(
                    f"all ranks train one network on the same rows: rank 0 has {first[what]}, and "
                    f'rank {rank} {its}; communicator="none" trains on each rank alone'
                )
    flat = model.read(network.parameters)
    communicator.broadcast(flat)
    model.write(flat, network.parameters)
    state = json.dumps(network.generator.bit_generator.state, default=np.ndarray.tolist)
    take_state(network, json.loads(communicator.allgather_text(state)[0]))


def fit(
    network: Trainee,
    X: Any,
    Y: Any,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: Any,
    optimizer: Any,
    validation_data: Any,
    callbacks: Iterable[Callback | Callable[[Any, History], bool | None]],
    progress: bool,
    engine: str,
    plan: Plan | None,
    resume_from: Any,
    communicator: Any,
    buffer_rows: Any,
    sample_weight: Any,
    class_weight: Any,
    dropout: Any,
    mixup: Any,
) -> History:
    """`Network.fit`, which has the documentation."""
    spent = TimeSpent()
    model = network.model
    with resolved(communicator) as found, threads.at_most(found.cores if found else None):
        ranks, size = found or ALONE, found.size if found else 0

        def check() -> tuple[Data | StoredData, Settings, list[Callback], Beginning]:
            """Everything, before anything changes."""
            validation.boolean("progress", progress)
            data = check_rows(model, X, Y, validation_data, sample_weight, class_weight)
            buffer = buffer_rows
            if buffer is None and isinstance(data, StoredData):
                least = validation.integer("batch_size", batch_size, 1, len(data.X))
                buffer = max(least, rows_of(BUFFER_BYTES, data, model))
            settings = check_settings(
                len(data.X),
                epochs,
                batch_size,
                learning_rate,
                optimizer,
                buffer_rows=buffer,
                dropout=validation.dropout(dropout, len(model.sizes) - 2),
                mixup=validation.mixup(mixup, model.cost),
            )
            if isinstance(data, StoredData) and settings.buffer == settings.rows and size <= 1:
                data = data.in_memory(model)  # and not anew for each epoch
            hooks = check_callbacks(callbacks, model, data.validation, data)
            if ranks.rank:
                hooks = [hook for hook in hooks if not hook.keeps_log]
            beginning = begin(model, data, [settings], hooks, engine, plan, resume_from, ranks=size)
            return data, settings, hooks, beginning

        data, settings, hooks, beginning = ranks.agree(check)
        done = beginning.done([settings])
        begin_alike(ranks, network, data, settings, beginning.plan, done)
        network.plan = beginning.plan
        course = FitCourse.alone(network, settings, hooks, ranks, data.weights)
        (course.resumed,), course.history.time_spent = beginning.states, spent
        trains = model.engine(network.plan, ranks)
        rows = _rows_of(data, settings, model, trains, hooks, ranks)
        in_pieces = isinstance(rows, RowsInPieces)
        watched = hooks or in_pieces or data.validation is not None or not settings.rates.constant
        if not ranks.any(bool(watched or settings.mixup)):
            course.at_once = trains.epochs_at_once(settings.rows, settings.batch_size)
        session = Session(model, rows, [course], data.validation, time_spent=spent)
        shown = progress and ranks.rank == 0
        with ranks.together(), ProgressBar(settings.epochs, shown, done=done) as bar:
            run_session(
                session, model, network.plan, data, [course], hooks, bar, communicator=ranks
            )
    if course.failure is not None:
        raise FloatingPointError(course.failure)
    return course.history


def _rows_of(
    data: Data | StoredData,
    settings: Settings,
    model: Model,
    engine: Engine,
    hooks: Sequence[Callback],
    ranks: Communicator,
) -> Rows:
    """The rows where the engine reads them, a part at a time of what is stored, or is not dense."""
    if isinstance(data, StoredData):
        return RowsInPieces(engine, model, data, settings.buffer, ranks)
    # Ranks would have to agree on how long a piece takes.
    looks = ranks.size == 1 and any(isinstance(hook, Checkpoint) for hook in hooks)
    X = data.X
    if data.density is not None and not (
        engine.reads_sparse and planning.stays_sparse(data.density) and not settings.mixup
    ):
        m, piece = settings.batch_size, rows_of(BUFFER_BYTES, data, model)
        if piece < settings.rows:
            return RowsInPieces(engine, model, data, max(m, piece // m * m), ranks)
        X = np.asarray(X)
    return RowsAtOnce(engine, X, data.Y, looks)


def fit_batches(
    network: Trainee,
    batches: Any,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: Any,
    optimizer: Any,
    validation_data: Any,
    callbacks: Iterable[Callback | Callable[[Any, History], bool | None]],
    progress: bool,
    engine: str,
    plan: Plan | None,
    dropout: Any,
    mixup: Any,
) -> History:
    """`Network.fit` of chunks of rows as they come."""
    spent = TimeSpent()
    validation.boolean("progress", progress)
    if not validation.is_iterable(batches):
        raise TypeError(f"batches must be an iterable of pairs (X, Y), got {batches!r}")
    model, m = network.model, batch_size
    # Of an epoch of one step.
    settings = check_settings(
        m, epochs, m, learning_rate, optimizer,
        dropout=validation.dropout(dropout, len(model.sizes) - 2),
        mixup=validation.mixup(mixup, model.cost),
    )  # fmt: skip
    if settings.epochs > 1 and iter(batches) is batches:
        raise ValueError(
            f"epochs={epochs}, and batches is an iterator, which can be gone through once: give a "
            "list, or an object that makes a new iterator for each epoch"
        )
    validation_data = check_validation(model, validation_data)
    hooks = check_callbacks(callbacks, model, validation_data)
    if any(isinstance(hook, Checkpoint) for hook in hooks):
        raise ValueError("Checkpoint: nobody could see that batches go on with the same rows")
    network.plan = resolve_plan(model, make_run([settings], hooks, engine, False), plan)
    course = BatchesCourse.alone(network, settings, hooks)
    course.history.time_spent = spent
    rows = RowsOfBatches(model.engine(network.plan), model, batches, course.settle)
    session = Session(model, rows, [course], validation_data, time_spent=spent)
    with ProgressBar(settings.epochs, progress) as bar:
        session.run(bar)
    if course.failure is not None:
        raise FloatingPointError(course.failure)
    return course.history
