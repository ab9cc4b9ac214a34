"""Sweeps: a grid or list of settings, trained as populations and returned as a table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import html, validation
from .grids import (
    SHAPE,
    Setting,
    check_metric,
    given_settings,
    has_classes,
    named,
    optimizer_of,
    shape_of,
    shown,
    table,
)
from .model import Model
from .network import Network
from .population import Population, check_room, history_keys, history_metric
from .training import Callback, History
from .training.callbacks import FitRun, check_callbacks
from .training.checkpoint import Checkpoint
from .training.cluster import Cluster, SharedArrays
from .training.fitting import Beginning, make_run, resolve_plan
from .training.member_tasks import ClusterPart, train_on_cluster
from .training.progress import ProgressBar, SweepProgress
from .training.settings import Data, Settings, check_data, check_settings
from .tuning import OptunaTrials, default_metric

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes


class Best(NamedTuple):
    """The best row of a `SweepResult`, and its network."""

    setting: Setting
    network: Network


class SweepResult:
    """What a `sweep` found, one row per network. ``print`` it for a table, best first.

    Parameters
    ----------
    rows : list of dict
        In the order of the settings: each setting with its seed, then what came of it. ``loss``,
        ``val_loss`` and ``val_accuracy`` are those of the network's weights, which are those of
        the last epoch unless `EarlyStopping` restored others (see `History`);
        ``epochs_trained`` says how many epochs there were, ``failed`` what went wrong, or None.
        Of trials ``trial`` is the number in the study, and ``pruned`` whether it was.
    networks : list of Network
        The network of rows[i] is networks[i], with its ``history``.
    metric : str
        What rows are ranked by: "val_accuracy", "val_loss" or "loss".
    study : optuna.Study, optional
        Whose trials these are.

    Attributes
    ----------
    rows, networks, metric, study
        As above.
    ranking : list of int
        Numbers of the rows, best first; then come those that were pruned, then those that failed.
    """

    def __init__(
        self, rows: list[Setting], networks: list[Network], metric: str, study: Any = None
    ) -> None:
        self.rows, self.networks, self.metric, self.study = rows, networks, metric, study
        sound = [i for i, row in enumerate(rows) if row["failed"] is None]
        keys = history_keys([_history(networks[i]) for i in sound], metric)
        self.ranking = [i for _, i in sorted(zip(keys, sound, strict=True))]
        self.ranking.sort(key=lambda i: bool(rows[i].get("pruned")))  # as they were, else
        self.ranking += [i for i, row in enumerate(rows) if row["failed"] is not None]

    @property
    def best(self) -> Best:
        """Pair (setting, network) of the best row; the setting is as in `rows`."""
        first = self.ranking[0]
        return Best(self.rows[first], self.networks[first])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.rows)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the columns of the table, in the order of `rows`: what ``pandas.DataFrame`` takes.

        Returns
        -------
        dict of str to list
            Settings first, then results; a key that a row lacks is None there.
        """
        names = dict.fromkeys(name for row in self.rows for name in row)
        results = [name for name in _RESULTS if name in names]
        order = [*(name for name in names if name not in _RESULTS), *results]
        return {name: [row.get(name) for row in self.rows] for name in order}

    def _shown(self) -> dict[str, list[Any]]:
        """The columns in which there is something."""
        columns = self.to_dict()
        for name in ("pruned", "failed"):
            if not any(columns.get(name, ["shown"])):
                del columns[name]
        # Of numbers as targets there is no accuracy.
        loss, accuracy = (
            np.isnan(np.array(columns.get(name, []), float))
            for name in ("val_loss", "val_accuracy")
        )
        if accuracy.all() and not loss.all():
            del columns["val_accuracy"]
        return columns

    def __str__(self) -> str:
        return table(self._shown(), self.ranking)

    def plot(
        self, kind: str | None = None, ax: Any = None, *, settings: Iterable[str] | None = None
    ) -> Axes | np.ndarray:
        """Draw what the settings came to.

        Parameters
        ----------
        kind : {"parallel", "heatmap"}, optional
            "parallel" is a line for each row across all settings, coloured by the metric; rows that
            were pruned are grey, and those that failed grey and dotted. "heatmap" is the metric by
            two settings: the mean of those rows of a pair of values that were neither pruned nor
            failed. By default a heat map where two settings vary and most pairs have a row.
        ax : matplotlib.axes.Axes, optional
            To draw into; by default one of a new figure.
        settings : iterable of str, optional
            Which; by default all that vary, and seeds if nothing else does.

        Returns
        -------
        matplotlib.axes.Axes
            With a line, or a cell, a setting.

        Raises
        ------
        ValueError
            If nothing varies, for a setting that no row has, and for a heat map of other than two,
            or of more values than it has room for.
        ImportError
            If there is no matplotlib (extra ``plot``).
        """
        columns = self._columns(settings)
        if kind is None:
            pairs = {*zip(*columns.values(), strict=True)}
            whole = np.prod([len(set(column)) for column in columns.values()])
            kind = "heatmap" if len(columns) == 2 and len(pairs) >= whole / 2 else "parallel"
        validation.one_of("kind", kind, ("parallel", "heatmap"))
        if kind == "heatmap" and len(columns) != 2:
            raise ValueError(
                f"a heat map shows two settings, and here there are {', '.join(columns)}: give "
                "settings=(…, …), or kind='parallel'"
            )
        from . import pictures

        draw = pictures.heatmap if kind == "heatmap" else pictures.parallel
        values = [float(row.get(self.metric, np.nan)) for row in self.rows]
        states = [
            "failed" if row["failed"] is not None else "pruned" if row.get("pruned") else ""
            for row in self.rows
        ]
        return draw(ax, columns, self.metric, values, states)

    def _columns(self, settings: Iterable[str] | None) -> dict[str, list[float | str | None]]:
        """The settings to draw, numbers as numbers and all else as text."""
        columns = {
            name: [_number_or_text(value) for value in values]
            for name, values in self.to_dict().items()
            if name not in (*_RESULTS, "trial")
        }
        if settings is None:
            found = {name: each for name, each in columns.items() if len(set(each)) > 1}
            if len(found) > 1:
                found.pop("seed", None)
            if not found:
                raise ValueError("SweepResult.plot(): no setting varies")
            return found
        if isinstance(settings, str) or not validation.is_iterable(settings):
            raise TypeError(f"settings must be names of settings, got {settings!r}")
        names = list(settings)
        if not names:
            raise ValueError("settings is empty")
        return {validation.one_of("settings", name, columns): columns[name] for name in names}

    def _repr_html_(self) -> str:
        """What a notebook shows: the table, best first, as far as there is room."""
        columns = self._shown()
        rows = [[i, *(shown(each[i]) for each in columns.values())] for i in self.ranking]
        return html.block(f"{repr(self)[1:-1]}", html.long_table(["", *columns], rows))

    def __repr__(self) -> str:
        best = self.best.setting
        return (
            f"<SweepResult of {len(self)} networks, best {self.metric} "
            f"{shown(best.get(self.metric))} in row {self.ranking[0]}>"
        )


def _number_or_text(value: Any) -> float | str | None:
    number = isinstance(value, int | float | np.integer | np.floating)
    if number and not isinstance(value, bool) and abs(value) < 1e300:  # a NaN is text
        return float(value)
    return None if value is None else shown(value)


#: The columns that `sweep` adds to the settings.
_RESULTS = ("loss", "val_loss", "val_accuracy", "epochs_trained", "pruned", "failed")


def sweep(
    X: Any,
    Y: Any,
    *,
    grid: Mapping[str, Iterable[Any] | optuna.distributions.BaseDistribution]
    | Sequence[Mapping[str, Iterable[Any]]]
    | None = None,
    settings: Iterable[Mapping[str, Any]] | None = None,
    seeds: int = 1,
    validation_data: tuple[Any, Any] | None = None,
    callbacks: Iterable[Callback | Callable[[Network, History], bool | None]] = (),
    metric: str | None = None,
    progress: bool = True,
    engine: str = "auto",
    client: Any = None,
    sample_weight: Any = None,
    class_weight: Any = None,
    trials: int | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    study: optuna.Study | None = None,
    at_once: int | None = None,
    **shared: Any,
) -> SweepResult:
    """Train a network for every setting; networks of one shape train at once, as a `Population`.

    With `trials` the settings are drawn from the grid by Optuna: see Notes.

    Parameters
    ----------
    X : (n, n_0) array or table
        Rows x, as in `Network.fit`.
    Y : (n, n_L) array, or (n,) int array of labels
        Targets y; labels where the outputs are classes.
    grid : dict of str to values, or a list of such dicts
        Every combination of the values is a setting; of a list, the combinations of each dict.
        With `trials` one dict, in which an optuna distribution may stand in place of values.
    settings : iterable of dict
        The settings themselves, instead of a grid.
    seeds : int
        Networks a setting, whose seeds are ``seed``, ``seed + 1`` and so on.
    validation_data : (X, Y), optional
        Rows whose loss, and accuracy where they are classes, are taken after every epoch.
    callbacks : iterable
        As in `Population.fit`; give `EarlyStopping` here.
    metric : {"val_accuracy", "val_loss", "loss"}, optional
        What the table is sorted by; by default the first of these that there is.
    progress : bool
        Show a progress bar over networks and epochs, and the settings that are best so far: a table
        with rich (extra ``progress``) in a terminal or a notebook, but with a client.
    engine : {"auto", "layered", "resident", "fused", "persistent"}
        As in `Population.fit`.
    client : distributed.Client, optional
        Train on the workers of a Dask cluster, the networks of all shapes at once; see
        `Population.fit`. Data are sent once, however many shapes there are.
    sample_weight : (n,) array, optional
        As in `Network.fit`.
    class_weight : "balanced" or dict of class numbers to weights, optional
        As in `Network.fit`.
    trials : int, optional
        How many settings to draw from the grid, with Optuna (extra ``optuna``).
    sampler : optuna.samplers.BaseSampler, optional
        What draws them; by default a TPESampler, seeded by `seed` if that is given.
    pruner : optuna.pruners.BasePruner, optional
        What ends trials in mid-training; by default nothing does.
    study : optuna.Study, optional
        Takes the trials, in place of a study in memory; it has a sampler and a pruner of its own,
        and a storage that `optuna-dashboard` shows. Trials that are enqueued there come first.
    at_once : int, optional
        How many trials train at once: the more there are, the more a pruner has to compare, and
        the less a sampler has heard of when it draws the next. By default four a core, 64 where
        the sampler does not heed what trials come to (RandomSampler, GridSampler,
        BruteForceSampler), or one for each multiprocessor of a GPU; and what 1 GiB has room for.
    **shared
        What all settings have in common, for example ``sizes=[784, 30, 10], epochs=10``; a
        setting that names the same key goes first.

    Returns
    -------
    SweepResult
        One row per network. ``print`` it for a table, best first.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit, naming the setting, before anything is trained.
    FloatingPointError
        If all networks failed.
    RuntimeError
        If a worker cannot train them, or all have died.
    ImportError
        If there are trials, and no Optuna.

    Warns
    -----
    RuntimeWarning
        If the cost of some networks turned NaN or infinite; the others are not disturbed.

    Notes
    -----
    With `trials` each network is a trial. After every epoch it reports the metric (the step is the
    epoch, counted from 0); one that the pruner ends gives its place to the next trial at once, and
    keeps the weights of its last epoch. Of trials that have reported the same epoch the pruner is
    asked about the best first. The study maximises ``val_accuracy``, or minimises a loss. A trial
    whose cost turned NaN or infinite has the state FAIL; after Ctrl-C, or an exception in a
    callback, so have those that were training. What a trial's network learns depends, to the bit,
    neither on the others nor on when it joined them.

    A setting may hold the arguments of `Network` (sizes, activation, cost, dtype, precision,
    backend, seed, initial_weights), of `fit` (epochs, batch_size, learning_rate, optimizer,
    dropout, mixup) and of the optimizer (momentum, nesterov, beta1, beta2, epsilon, weight_decay,
    l1, l2, clip_norm, clip_value). Without a ``seed`` one is drawn for the whole sweep, so that all
    networks of one shape start from the same weights; the table shows it. Each row can be repeated
    alone with `Network`.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import sweep
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]); Y = np.array([0, 1, 1, 0])
    >>> result = sweep(
    ...     X, Y, grid={"sizes": [[2, 3, 1], [2, 8, 1]], "learning_rate": [0.001, 2.0]}, seed=1,
    ...     cost="binary_cross_entropy", epochs=500, batch_size=4, progress=False,
    ... )
    >>> len(result), result.best.setting["learning_rate"]
    (4, 2.0)
    """
    seeds = validation.integer("seeds", seeds, 1)
    validation.boolean("progress", progress)
    if any(each is not None for each in (trials, sampler, pruner, study, at_once)):
        for name, given_too in (
            ("settings", settings is not None), ("seeds", seeds > 1), ("client", client is not None)
        ):  # fmt: skip
            if given_too:
                raise TypeError(f"trials and {name} exclude each other: give one of them")
        of_optuna = OptunaTrials(
            "sweep", grid, shared, (X, Y, validation_data, sample_weight, class_weight), callbacks,
            metric=metric, trials=trials, at_once=at_once, sampler=sampler, pruner=pruner,
            study=study, engine=engine,
        )  # fmt: skip
        with SweepProgress(
            of_optuna.expected, progress, of_optuna.trials, list(of_optuna.space.distributions),
            of_optuna.metric, of_optuna.rows.__getitem__,
        ) as bar:  # fmt: skip
            of_optuna.run(bar)
        for i, row in enumerate(of_optuna.rows):
            row["pruned"] = i in of_optuna.pruned
        return _result(of_optuna, of_optuna.metric, of_optuna.study)
    cluster = None if client is None else Cluster(client)
    given = given_settings("sweep", grid, settings, shared)
    rows = X, Y, validation_data, sample_weight, class_weight
    of_grid = Trials("sweep", given, shared, seeds, [None], rows, callbacks)
    check_metric(
        metric,
        of_grid.groups[0].validated,
        all(group.classes for group in of_grid.groups),
        {group.cost for group in of_grid.groups},
    )
    validated = of_grid.groups[0].validated
    classes = all(group.classes for group in of_grid.groups)
    of_grid.train(engine, cluster, progress, metric or default_metric(validated, classes))
    return _result(of_grid, metric)


class Trials:
    """Networks for every setting, a seed for each on the rows of each fold; everything checked.

    Parameters
    ----------
    caller : str
        The function that was called, for messages.
    given : list of dict
        The settings as they were given.
    shared : dict
        What they have in common; a setting that names the same key goes first.
    seeds : int
        Networks a setting and fold.
    folds : sequence of (k,) int array, or None
        The numbers of the rows that they train on; None for all.
    data : tuple
        (X, Y, validation_data, sample_weight, class_weight), as in `sweep`.
    callbacks : iterable

    Attributes
    ----------
    rows : list of dict
        Setting and seed of each network: all of the first setting, then of the next; of these all
        seeds of the first fold, then of the next.
    groups : list of _Group
    """

    def __init__(
        self,
        caller: str,
        given: Sequence[Setting],
        shared: Setting,
        seeds: int,
        folds: Sequence[np.ndarray | None],
        data: tuple[Any, ...],
        callbacks: Iterable[Any],
    ) -> None:
        if validation.is_iterable(callbacks):
            callbacks = list(callbacks)  # every shape takes them
        self.data, self.callbacks = data, callbacks
        self.given, self.a_setting, self._folds = given, seeds * len(folds), folds
        #: Of each row: the setting with what all share.
        self._whole: list[Setting] = []
        drawn = int(np.random.SeedSequence().generate_state(1)[0])
        self.rows: list[Setting] = []
        groups: dict[tuple[Any, ...], _Group] = {}
        schedules: dict[tuple[int, int, int], Any] = {}
        for i, setting in enumerate(shared | each for each in given):
            place = named(i, given)
            with validation.within(place):
                key = shape_of(setting)
                if key not in groups:
                    groups[key] = _Group(caller, setting, data, callbacks)
                group = groups[key]
                seed = setting.get("seed")
                first = drawn if seed is None else validation.seed(seed)
                check_room("seeds", self.a_setting, key[0], key[3])
                for fold in folds:
                    hyperparameters = check_settings(
                        group.rows_of_data if fold is None else len(fold),
                        setting["epochs"],
                        setting["batch_size"],
                        setting["learning_rate"],
                        optimizer_of(setting),
                        schedules,
                        place,
                        numbers=fold,
                        dropout=validation.dropout(
                            setting.get("dropout", 0.0), len(setting["sizes"]) - 2
                        ),
                        mixup=validation.mixup(setting.get("mixup", 0.0), group.cost),
                    )
                    for seed in range(first, first + seeds):
                        group.add(len(self.rows), seed, hyperparameters)
                        self.rows.append(given[i] | {"seed": seed})
                        self._whole.append(setting)
        self.groups = list(groups.values())

    def train(
        self, engine: str, cluster: Cluster | None, progress: bool, metric: str | None = None
    ) -> None:
        """Train all; those that failed are in `failed`.

        With a `metric`, and no cluster, progress shows the settings that are best by it.
        """
        arrays, parts = SharedArrays(), []
        for group in self.groups:
            with validation.within(named(group.numbers[0] // self.a_setting, self.given)):
                if cluster is None:
                    group.make(engine)
                else:
                    # Shapes whose checked data are the same share them.
                    data = check_data(group.model, *self.data)
                    parts.append(group.part(data, arrays, engine))
        runs = self._runs()
        with self._bar(progress, None if cluster is not None else metric) as bar:
            if cluster is not None:
                train_on_cluster(cluster, parts, arrays, bar, stacklevel=4)
                return
            for k, group in enumerate(self.groups, start=1):
                population = group.population
                if len(self.groups) > 1:
                    bar.describe(f"shape {k} of {len(self.groups)}, {group.label}")
                # Checked before, and again now: to keep all groups' data would fill the memory.
                data = check_data(population.model, *self.data)
                hooks = check_callbacks(self.callbacks, population.model, data.validation, data)
                of_group = [runs[i] for i in group.numbers]
                population.train(data, group.settings, hooks, group.beginning, bar, of_group)

    def _bar(self, progress: bool, metric: str | None) -> ProgressBar:
        total = sum(settings.epochs for group in self.groups for settings in group.settings)
        if metric is None:
            return ProgressBar(total, progress, len(self.rows))
        names = list(dict.fromkeys(name for setting in self.given for name in setting))
        if len(self.rows) > len(self.given):
            names = list(dict.fromkeys([*names, "seed"]))
        return SweepProgress(total, progress, len(self.rows), names, metric, self.rows.__getitem__)

    def _runs(self) -> list[FitRun]:
        """What callbacks are told of each row's network."""
        names = dict.fromkeys(name for setting in self._whole for name in setting)
        call, count, runs = object(), len(self._folds), []
        for i, setting in enumerate(self._whole):
            row, fold = divmod(i, count)
            labels = {"row": i} if self._folds[0] is None else {"row": row, "fold": fold}
            # The same names for all, so that they can be the columns of a table.
            runs.append(FitRun({name: setting.get(name) for name in names}, labels, call))
        return runs

    @property
    def networks(self) -> list[Network]:
        """In the order of `rows`."""
        trained: dict[int, Network] = {}
        for group in self.groups:
            trained |= zip(group.numbers, group.population.members, strict=True)
        return [trained[i] for i in range(len(trained))]

    @property
    def failed(self) -> dict[int, str]:
        """The numbers of the networks that failed, each with what happened.

        Raises
        ------
        FloatingPointError
            If all did.
        """
        failed = {
            group.numbers[i]: text
            for group in self.groups
            for i, text in group.population.failed.items()
        }
        if len(failed) == len(self.rows):
            raise FloatingPointError(f"every network failed. Row 0: {failed[0]}")
        return failed


def _result(trials: Trials | OptunaTrials, metric: str | None, study: Any = None) -> SweepResult:
    rows, networks, failed = trials.rows, trials.networks, trials.failed
    if failed:
        first = min(failed)
        warnings.warn(
            f"{len(failed)} of {len(rows)} networks stopped early, see their rows. "
            f"Row {first}: {failed[first]}",
            RuntimeWarning,
            stacklevel=3,
        )
    for i, (row, network) in enumerate(zip(rows, networks, strict=True)):
        history = _history(network)
        row["loss"] = history.final("loss")
        if any(_history(each).val_loss for each in networks):
            row["val_loss"] = history.final("val_loss")
            row["val_accuracy"] = history.final("val_accuracy")
        row["epochs_trained"] = len(history)
        row["failed"] = failed.get(i)
    sound = [_history(network) for i, network in enumerate(networks) if i not in failed]
    return SweepResult(rows, networks, history_metric(sound, metric), study)


class _Group:
    """The networks of one shape."""

    def __init__(
        self,
        caller: str,
        setting: Setting,
        rows: tuple[Any, ...],
        callbacks: Iterable[Any],
    ) -> None:
        self.shape = {name: setting[name] for name in SHAPE if name in setting}
        model = self.model = Model(
            **{k: v for k, v in self.shape.items() if k != "initial_weights"}
        )
        data = check_data(model, *rows)
        self.hooks = check_callbacks(callbacks, model, data.validation, data)
        if any(isinstance(hook, Checkpoint) for hook in self.hooks):
            raise ValueError(
                f"{caller} keeps no Checkpoint: it is for Network.fit and Population.fit"
            )
        self.rows_of_data, self.bytes = len(data.X), data.bytes
        self.cost = model.cost
        self.classes = has_classes(data)
        self.validated = data.validation is not None
        self.label = "-".join(map(str, model.sizes))
        self.numbers: list[int] = []
        self.seeds: list[int] = []
        self.settings: list[Settings] = []

    def add(self, number: int, seed: int, settings: Settings) -> None:
        """Row `number` of the table."""
        self.numbers.append(number)
        self.seeds.append(seed)
        self.settings.append(settings)

    def make(self, engine: str) -> None:
        self._make_population()
        run = make_run(self.settings, self.hooks, engine, self.bytes)
        plan = resolve_plan(self.population.model, run, None)
        self.beginning = Beginning(plan, [None] * len(self.settings))

    def part(self, data: Data, shared: SharedArrays, engine: str) -> ClusterPart:
        """As `make`, for the workers of a cluster."""
        self._make_population()
        return ClusterPart(self.population, data, shared, self.settings, self.hooks, engine, None)

    def _make_population(self) -> None:
        self.population = Population(**self.shape, members=len(self.numbers), seed=self.seeds)


def _history(network: Network) -> History:
    assert network.history is not None
    return network.history
