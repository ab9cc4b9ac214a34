"""Trials of an Optuna study, trained as populations that members join and leave in mid-run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import costs, engines, initializers, threads, validation
from .grids import (
    NEEDED,
    OPTIMIZER,
    SHAPE,
    Setting,
    check_keys,
    check_metric,
    has_classes,
    is_distribution,
    optimizer_of,
    shape_of,
    shown,
)
from .imports import optional
from .model import Model
from .network import Network
from .planning import Plan
from .planning.tasks import WorkerCapacity, trials_at_once
from .population import check_room
from .training import Callback, RowsAtOnce, Session
from .training.callbacks import FitRun, check_callbacks, for_member
from .training.checkpoint import Checkpoint
from .training.fitting import FitCourse, make_run
from .training.progress import ProgressBar
from .training.settings import Data, Settings, check_data, check_settings

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

    from .training.history import History

#: What may be any real number, and what (WHOLE) whole numbers alone.
_REAL = ("learning_rate", "dropout", "mixup", *(key for key in OPTIMIZER if key != "nesterov"))
WHOLE = ("epochs", "batch_size", "seed")
#: What a categorical distribution stores as it is.
_PLAIN = (bool, int, float, str, type(None))


def optuna_module() -> Any:
    """Optuna, if it is installed.

    Raises
    ------
    ImportError
        Naming the extra that brings it.
    """
    return optional("optuna", "optuna", "trials")


def default_metric(validated: bool, classes: bool) -> str:
    """What trials report where nothing else is asked for.

    Parameters
    ----------
    validated, classes : bool
        Whether there are validation data, and whether their targets are classes.
    """
    return "val_accuracy" if classes else "val_loss" if validated else "loss"


def direction_of(metric: str) -> str:
    """Of a study of trials that report a metric: "maximize" or "minimize"."""
    return "maximize" if metric == "val_accuracy" else "minimize"


class SearchSpace:
    """What Optuna draws settings from: a grid's distributions, and its lists as categories.

    Parameters
    ----------
    grid : dict of str to distribution or values

    Attributes
    ----------
    distributions : dict of str to optuna.distributions.BaseDistribution
        A value that Optuna cannot store, such as a list of sizes, has its text as a category.

    Raises
    ------
    TypeError, ValueError
        Naming the key.
    """

    def __init__(self, grid: Any) -> None:
        if isinstance(grid, Sequence) and not isinstance(grid, str):
            raise TypeError("with trials grid must be one dict: a study has one search space")
        check_keys(grid, "grid")
        if not grid:
            raise ValueError("grid is empty")
        #: As it was given.
        self.grid = grid
        self.distributions: dict[str, BaseDistribution] = {}
        #: What each category stands for.
        self._values: dict[str, dict[Any, Any]] = {}
        for key, values in grid.items():
            self._add(key, values)

    def _add(self, key: str, values: Any) -> None:
        kinds = optuna_module().distributions
        if isinstance(values, (kinds.FloatDistribution, kinds.IntDistribution)):
            allowed = [kinds.IntDistribution] if key in (*WHOLE, *_REAL) else []
            allowed += [kinds.FloatDistribution] if key in _REAL else []
            if type(values) not in allowed:
                names = [kind.__name__ for kind in (*allowed, kinds.CategoricalDistribution)]
                raise TypeError(
                    f"grid: {key} takes {' or '.join(names)}, or a list of values; got {values!r}"
                )
            self.distributions[key] = values
            return
        if isinstance(values, kinds.CategoricalDistribution):
            values = values.choices
        elif (
            isinstance(values, (str, bytes, Mapping))
            or is_distribution(values)
            or not validation.is_iterable(values)
        ):
            raise TypeError(
                f"grid must hold an optuna distribution or a list of values for {key!r}, got "
                f"{values!r}"
            )
        listed = [each.item() if isinstance(each, np.generic) else each for each in values]
        if not listed:
            raise ValueError(f"grid holds no value for {key!r}")
        names_of = [_category(each, i) for i, each in enumerate(listed)]
        if len(set(names_of)) < len(names_of):
            raise ValueError(f"grid holds a value for {key!r} twice: {listed!r}")
        self._values[key] = dict(zip(names_of, listed, strict=True))
        self.distributions[key] = kinds.CategoricalDistribution(names_of)

    def setting(self, params: Mapping[str, Any]) -> Setting:
        """The setting that a trial's parameters stand for, in the order of the grid."""
        return {
            key: self._values[key][params[key]] if key in self._values else params[key]
            for key in self.distributions
        }

    def corners(self) -> list[Setting]:
        """Settings that between them have every category and both ends of every range."""
        ends: dict[str, list[Any]] = {}
        for key, each in self.distributions.items():
            found: Any = each  # a range, if it has no categories
            ends[key] = list(self._values.get(key, {}).values()) or [found.low, found.high]
        first = {key: values[0] for key, values in ends.items()}
        return [first] + [
            first | {key: value} for key, values in ends.items() for value in values[1:]
        ]


def _category(value: Any, number: int) -> Any:
    """What Optuna stores for a value: itself, or a text that is the same in another process."""
    if isinstance(value, _PLAIN):
        return value
    text = shown(value)
    if " at 0x" in text:  # an address
        text = f"{number}: {getattr(value, '__name__', type(value).__name__)}"
    return text


class Room:
    """Places for networks of one shape that train at once, each a row of the same arrays.

    Parameters
    ----------
    model : Model
    data : Data
    places : int
    engine : str
        As it was asked for.
    hooks : sequence of Callback
    corners : sequence of Settings
        Between them the largest batch, the most optimizer's state and so on that may come: they
        choose the engine, so that which it is does not depend on who trains here.
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        places: int,
        engine: str,
        hooks: Sequence[Callback],
        corners: Sequence[Settings],
    ) -> None:
        check_room("at_once", places, model.sizes, model.dtype)
        self.model, self.data, self.hooks, self.places = model, data, hooks, places
        self._kinds: dict[tuple[Any, ...], Settings] = {}
        self.engine = self._plan(corners, engine).engine
        self._free = list(range(places))[::-1]
        #: Parameters, and those of the last epoch.
        self._arrays: list[Any] = []
        self._slots: list[Any] = []
        self._session: Session | None = None
        self.running: list[RunningTrial] = []

    @property
    def session(self) -> Session:
        """Of those that were admitted."""
        assert self._session is not None
        return self._session

    def _zeros(self) -> Any:
        return self.model.backend.zeros((self.places, self.model.layout.length))

    def admit(self, coming: Sequence[RunningTrial]) -> None:
        """Let networks train here from the next epoch on. There must be places for all."""
        plan = self._plan([each.settings for each in coming], self.engine)
        if self._session is None:
            mixups = [each.mixup for each in self._kinds.values()]
            engine = self.model.engine(plan)
            rows = RowsAtOnce(engine, self.data.X, self.data.Y, mixups=mixups)
            self._arrays = [self._zeros(), self._zeros()]
            whole = self._arrays[0], self._arrays[1]
            self._session = Session(self.model, rows, [], self.data.validation, whole)
            self.session.__enter__()
        else:
            self.session.engine.go_by(plan)
        for each in coming:
            each.room, each.network.plan = self, plan
            each.course = self._course(each)
            self.running.append(each)
        self.session.join([each.course for each in coming])

    def _plan(self, settings: Sequence[Settings], engine: str) -> Plan:
        """Of what trains here by these settings and all that there were."""
        for each in settings:
            optimizer = each.optimizer
            options, drops, mixes = optimizer.options, bool(each.dropout), bool(each.mixup)
            kind = each.batch_size, optimizer.slots, optimizer.rule, options, drops, mixes
            self._kinds.setdefault(kind, each)
        run = make_run(list(self._kinds.values()), self.hooks, engine, self.data.bytes)
        return self.model.plan(replace(run, members=self.places))

    def _course(self, member: RunningTrial) -> FitCourse:
        """A network's course, from a place of its own."""
        backend, network, settings = self.model.backend, member.network, member.settings
        while len(self._slots) < settings.optimizer.slots:
            self._slots.append(self._zeros())
        place = member.place = self._free.pop()
        flat = self.model.read(network.parameters)
        network.parameters = self.model.parameters(self._arrays[0][place])
        self.model.write(flat, network.parameters)
        slots = tuple(slot[place] for slot in self._slots[: settings.optimizer.slots])
        nothing = np.zeros(self.model.layout.length, self.model.dtype)
        for slot in slots:
            backend.copy(backend.asarray(nothing), slot)
        hooks = for_member(self.hooks, network)
        good, weights = self._arrays[1][place], self.data.weights
        course = FitCourse(network, settings, hooks, slots, good, weights=weights)
        course.history.time_spent, course.run = self.session.time_spent, member.run
        return course

    def dismiss(self, member: RunningTrial) -> None:
        """Give a network that is ready parameters of its own, and its place to the next."""
        network = member.network
        flat = self.model.read(network.parameters)
        network.parameters = self.model.parameters()
        self.model.write(flat, network.parameters)
        self._free.append(member.place)
        self.running = [each for each in self.running if each is not member]

    def close(self) -> None:
        if self._session is not None:
            self._session.__exit__(None, None, None)


@dataclass(eq=False)
class RunningTrial:
    """A trial's network on its way."""

    trial: Trial
    #: In the table.
    number: int
    network: Network
    settings: Settings
    run: FitRun
    #: Where it trains, once it does.
    room: Room = field(init=False)
    place: int = field(init=False)
    course: FitCourse = field(init=False)


class OptunaTrials:
    """Trials of a study that are asked for, trained, reported, pruned and told.

    Parameters
    ----------
    caller : str
        The function that was called, for messages.
    grid : dict
        The search space, see `SearchSpace`.
    shared : dict
        What all settings have in common.
    data : tuple
        (X, Y, validation_data, sample_weight, class_weight), as in `sweep`.
    callbacks : iterable
    metric : str, optional
        What trials report after every epoch, as in `sweep`.
    trials, at_once, sampler, pruner, study
        As in `sweep`.
    engine : str

    Attributes
    ----------
    rows : list of dict
        In the order in which trials were asked for: ``trial`` is the number in the study, then
        comes the setting with its seed.
    networks : list of Network
    failed : dict of int to str
        Rows whose network failed, each with what happened.
    pruned : set of int
        Rows that were pruned.
    metric : str
    study : optuna.Study
    """

    def __init__(
        self,
        caller: str,
        grid: Any,
        shared: Setting,
        data: tuple[Any, ...],
        callbacks: Iterable[Any],
        *,
        metric: str | None,
        trials: Any,
        at_once: Any,
        sampler: Any,
        pruner: Any,
        study: Any,
        engine: str,
    ) -> None:
        self._optuna = optuna_module()
        if trials is None:
            raise TypeError(
                f"{caller} needs trials, how many settings to try, beside sampler, pruner, study "
                "or at_once"
            )
        self.trials = validation.integer("trials", trials, 1)
        check_keys(shared, "the arguments that all settings share")
        for key, value in shared.items():
            if is_distribution(value):
                raise TypeError(f"{key} is a distribution: it belongs in the grid")
        if grid is None:
            raise TypeError(f"{caller} needs a grid for its trials: what they are drawn from")
        self.space, self.shared, self.caller = SearchSpace(grid), shared, caller
        for name in NEEDED:
            if name not in shared and name not in self.space.distributions:
                raise ValueError(f"the grid has no {name}: give it there, or to {caller} for all")
        if validation.is_iterable(callbacks):
            callbacks = list(callbacks)
        self._arguments, self._callbacks, self._engine = data, callbacks, engine
        self._drawn = int(np.random.SeedSequence().generate_state(1)[0])
        self._models: dict[tuple[Any, ...], Model] = {}
        self._data: dict[tuple[Any, ...], tuple[Data, list[Callback]]] = {}
        self._corners: list[Settings] = []
        self._check_corners()
        self._most_epochs = max(each.epochs for each in self._corners)
        known = list(self._data.values())
        self.classes = all(has_classes(each) for each, _ in known)
        self.validated = known[0][0].validation is not None
        costs = {model.cost for model in self._models.values()}
        check_metric(metric, self.validated, self.classes, costs)
        self.metric = metric or default_metric(self.validated, self.classes)
        self.study = self._study(sampler, pruner, study)
        self.at_once = self._places(at_once)
        self._prunes = not isinstance(self.study.pruner, self._optuna.pruners.NopPruner)
        if self._prunes and metric is None and not self.validated:
            raise ValueError(
                "a pruner needs validation_data, by which members are compared in mid-training; "
                "to go by the training loss give metric='loss'"
            )
        for model in self._models.values():
            self._room(model)  # whether there is an engine for it, and memory
        self._rooms: dict[tuple[Any, ...], Room] = {}
        self._exhausted = False
        #: Tells callbacks that all networks are of one call.
        self._call = object()
        self.rows: list[Setting] = []
        self.failed: dict[int, str] = {}
        self.pruned: set[int] = set()
        self._networks: dict[int, Network] = {}

    @property
    def networks(self) -> list[Network]:
        """In the order of `rows`."""
        return [self._networks[i] for i in range(len(self.rows))]

    # -- what is checked before anything runs ------------------------------------------------

    def _check_corners(self) -> None:
        """See that every value, and both ends of every range, can be trained with."""
        validation.one_of("engine", self._engine, ("auto", *engines.NAMES))
        for corner in self.space.corners():
            place = ", ".join(f"{key}={shown(value)}" for key, value in corner.items())
            with validation.within(f"setting ({place})"):
                self._shape(self.shared | corner)
                settings = self._settings(self.shared | corner, place)
                seed = (self.shared | corner).get("seed")
                if seed is not None:
                    validation.seed(seed)
                self._corners.append(settings)

    def _shape(self, setting: Setting) -> tuple[tuple[Any, ...], Model]:
        """(what tells shapes apart, its model), with its data checked."""
        key = shape_of(setting)
        model = self._models.get(key)
        if model is None:
            names = [name for name in SHAPE if name in setting and name != "initial_weights"]
            model = Model(**{name: setting[name] for name in names})
        self._rows_of(model)
        self._models[key] = model
        return key, model

    def _rows_of(self, model: Model) -> tuple[Data, list[Callback]]:
        """The rows as networks of this model take them, and what hears of these."""
        key = model.sizes[0], model.sizes[-1], model.activations[-1], model.cost, model.dtype
        if key not in self._data:
            data = check_data(model, *self._arguments)
            hooks = check_callbacks(self._callbacks, model, data.validation, data)
            if any(isinstance(hook, Checkpoint) for hook in hooks):
                raise ValueError(
                    f"{self.caller} keeps no Checkpoint: it is for Network.fit and Population.fit"
                )
            self._data[key] = data, hooks
        return self._data[key]

    def _settings(self, setting: Setting, place: str) -> Settings:
        rows = len(next(iter(self._data.values()))[0].X)
        return check_settings(
            rows,
            setting["epochs"],
            setting["batch_size"],
            setting["learning_rate"],
            optimizer_of(setting),
            place=place,
            dropout=validation.dropout(setting.get("dropout", 0.0), len(setting["sizes"]) - 2),
            mixup=validation.mixup(
                setting.get("mixup", 0.0), costs.get(setting.get("cost", "quadratic"))
            ),
        )

    def _room(self, model: Model) -> Room:
        data, hooks = self._rows_of(model)
        return Room(model, data, self.at_once, self._engine, hooks, self._corners)

    def _places(self, at_once: Any) -> int:
        if at_once is not None:
            return min(validation.integer("at_once", at_once, 1), self.trials)
        models, kinds = self._models.values(), self._optuna.samplers
        devices = [model.device for model in models]
        widest = max((each.multiprocessors for each in devices if each is not None), default=0)
        lone = kinds.RandomSampler, kinds.GridSampler, kinds.BruteForceSampler
        # Parameters, those of the epoch before, and two of the optimizer's.
        size = max(4 * model.layout.length * model.dtype.itemsize for model in models)
        machine = WorkerCapacity(threads.cores(), widest)
        learns = not isinstance(self.study.sampler, lone)
        return min(trials_at_once(machine, learns, size), self.trials)

    def _study(self, sampler: Any, pruner: Any, study: Any) -> Study:
        optuna = self._optuna
        direction = direction_of(self.metric)
        for name, value, kind, example in (
            ("sampler", sampler, optuna.samplers.BaseSampler, "TPESampler"),
            ("pruner", pruner, optuna.pruners.BasePruner, "HyperbandPruner"),
        ):
            if value is not None and not isinstance(value, kind):
                raise TypeError(
                    f"{name} must be one of Optuna's, such as optuna.{name}s.{example}(), got "
                    f"{value!r}"
                )
            if value is not None and study is not None:
                raise TypeError(f"study and {name} exclude each other: a study has its own")
        if study is None:
            seed = self.shared.get("seed")
            if sampler is None:
                sampler = optuna.samplers.TPESampler(
                    seed=None if seed is None else int(seed) % 2**32, constant_liar=True
                )
            return optuna.create_study(  # type: ignore[no-any-return]
                # Hyperband goes by the name which bracket a trial is of.
                study_name="sweep",
                sampler=sampler,
                pruner=pruner or optuna.pruners.NopPruner(),
                direction=direction,
            )
        if not isinstance(study, optuna.Study):
            raise TypeError(f"study must be an optuna.Study, got {study!r}")
        if len(study.directions) > 1:
            raise ValueError(f"study has {len(study.directions)} objectives, and trials report one")
        if study.direction.name.lower() != direction:
            raise ValueError(
                f"study must {direction} {self.metric}, and it is to "
                f"{study.direction.name.lower()}: make it with direction={direction!r}"
            )
        return study  # type: ignore[no-any-return]

    # -- trials --------------------------------------------------------------------------------

    @property
    def _running(self) -> list[RunningTrial]:
        """In the order in which they were asked for."""
        running = [each for room in self._rooms.values() for each in room.running]
        return sorted(running, key=lambda each: each.number)

    def run(self, bar: ProgressBar) -> None:
        """Train them all. Whatever ends this early: trials that run are told to have failed.

        Raises
        ------
        FloatingPointError
            If all did.
        """
        self._asked: list[Trial] = []
        try:
            self._fill(bar)
            while self._rooms:
                self._run_epoch(bar)
                self._fill(bar)
        except BaseException:
            with ExitStack() as last:
                for trial in self._asked:
                    last.callback(self._give_up, trial)
                for room in self._rooms.values():
                    last.callback(room.close)
            raise
        if len(self.failed) == len(self.rows):
            raise FloatingPointError(f"every network failed. Row 0: {self.failed[0]}")

    @property
    def expected(self) -> int:
        """Epochs of all trials, if none ends early."""
        return self.trials * self._most_epochs

    def _fill(self, bar: ProgressBar) -> None:
        """Ask for as many trials as there are places; close rooms where nobody is left."""
        coming: dict[tuple[Any, ...], list[RunningTrial]] = {}
        free = self.at_once - len(self._running)
        while free > 0 and len(self.rows) < self.trials and not self._exhausted:
            trial = self.study.ask(self.space.distributions)
            self._asked.append(trial)
            key, running = self._begin(trial)
            coming.setdefault(key, []).append(running)
            bar.expect(running.settings.epochs - self._most_epochs)
            free -= 1
        for key in [key for key, room in self._rooms.items() if not room.running]:
            if key not in coming:
                self._rooms.pop(key).close()
        for key, several in coming.items():
            if key not in self._rooms:
                self._rooms[key] = self._room(several[0].network.model)
            self._rooms[key].admit(several)

    def _begin(self, trial: Trial) -> tuple[tuple[Any, ...], RunningTrial]:
        """A trial's network, as `Network` would begin with it, and what room it belongs to."""
        drawn = self.space.setting(trial.params)
        setting = self.shared | drawn
        place = f"trial {trial.number}"
        with validation.within(place):
            key, model = self._shape(setting)
            settings = self._settings(setting, place)
        seed = self._drawn if setting.get("seed") is None else validation.seed(setting["seed"])
        generator = np.random.default_rng(seed)
        rules = initializers.rules(setting.get("initial_weights", "auto"), model.activations)
        network = Network.of(model, None, generator)
        network.weights, network.biases = initializers.draw(rules, model.sizes, generator)
        number = len(self.rows)
        self.rows.append({"trial": trial.number} | drawn | {"seed": seed})
        self._networks[number] = network
        run = FitRun(setting, {"row": number, "trial": trial.number}, self._call)
        return key, RunningTrial(trial, number, network, settings, run)

    def _run_epoch(self, bar: ProgressBar) -> None:
        """An epoch of every network, and what its study makes of it."""
        rooms = list(self._rooms.values())
        ran = []
        for room in rooms:
            ran.append(room.session.run_epoch(room.session.live, bar))
        bar.epoch_is_over([course for of_room in ran for course in of_room])
        for room, of_room in zip(rooms, ran, strict=True):
            room.session.end_round(of_room, bar)
        running = self._running
        for each in running:
            if each.course.failure is None:
                self._report(each)
        for each in [each for each in running if each.course.ended]:
            self._end(each)
        if not self._prunes:
            return
        # The best first: a pruner judges each beside those that it has judged.
        for each in sorted(self._running, key=self._rank):
            if each.trial.should_prune():
                each.room.session.leave(each.course)
                bar.ended(each.course, 0)
                self.pruned.add(each.number)
                self._tell(each, self._optuna.trial.TrialState.PRUNED)

    def _value(self, history: History) -> float:
        """What the last epoch has come to."""
        return float(getattr(history, self.metric)[-1])

    def _rank(self, each: RunningTrial) -> float:
        value = self._value(each.course.history)
        return validation.nan_last(-value if self.metric == "val_accuracy" else value)

    def _report(self, each: RunningTrial) -> None:
        history = each.course.history
        each.trial.report(self._value(history), len(history) - 1)

    def _end(self, each: RunningTrial) -> None:
        """Tell what a network has come to that is ready, or has failed."""
        states, failure = self._optuna.trial.TrialState, each.course.failure
        value = each.course.history.final(self.metric)
        if failure is None and math.isnan(value):
            failure = f"{self.metric} is NaN"
        if failure is None:
            self._tell(each, states.COMPLETE, value)
            return
        self.failed[each.number] = failure
        each.trial.set_user_attr("failed", failure)
        self._tell(each, states.FAIL)

    def _tell(self, each: RunningTrial, state: Any, value: float | None = None) -> None:
        each.room.dismiss(each)
        try:
            self.study.tell(each.trial, value, state)
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
            self._exhausted = True  # the sampler has nothing left; the trial has been told
        self._asked.remove(each.trial)

    def _give_up(self, trial: Trial) -> None:
        """Tell that a trial failed, where nobody waits for its value any longer."""
        with contextlib.suppress(Exception):
            self.study.tell(trial, state=self._optuna.trial.TrialState.FAIL, skip_if_finished=True)
