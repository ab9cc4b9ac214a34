"""Cross-validation: every setting on every fold at once, as populations that read one X."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import validation
from .grids import SHAPE, Setting, given_settings, table
from .model import Model
from .network import Network
from .sweeps import Best, Trials
from .training import Callback, History
from .training.cluster import Cluster
from .training.settings import check_data


class Fold(NamedTuple):
    """The numbers of the rows that networks train on, and of those that they are scored by."""

    train: np.ndarray
    test: np.ndarray


class CrossValidation:
    """What `cross_validate` found, a row for each setting. ``print`` it for a table, best first.

    Parameters
    ----------
    rows : list of dict
        In the order of the settings: each setting with its seed, then the means over the folds,
        ``loss`` and, where the targets are classes, ``accuracy``, with their standard deviations
        ``loss_std`` and ``accuracy_std``; ``failed`` says what went wrong in which fold, or None.
    folds : list of Fold
        Pairs (train, test), the numbers of their rows.
    networks : list of list of Network
        That of setting s, trained on fold k, is networks[s][k], with its ``history``.
    losses, accuracies : (settings, folds) arrays
        Of each network on the fold's test rows: C without penalties, and the share of rows whose
        class is right (NaN where the targets are no classes). NaN, too, of one that failed.
    predictions : (settings, n, n_L) array
        Out-of-fold: a^L of each row by the network that was scored by it, the mean of these where
        several were, NaN where none was or it failed.
    metric : {"accuracy", "loss"}
        By which rows are ranked.

    Attributes
    ----------
    rows, folds, networks, losses, accuracies, predictions, metric
        As above.
    ranking : list of int
        Numbers of the settings, best first; those with a network that failed come last.
    """

    def __init__(
        self,
        rows: list[Setting],
        folds: list[Fold],
        networks: list[list[Network]],
        losses: np.ndarray,
        accuracies: np.ndarray,
        predictions: np.ndarray,
        metric: str,
    ) -> None:
        self.rows, self.folds, self.networks = rows, folds, networks
        self.losses, self.accuracies, self.predictions = losses, accuracies, predictions
        self.metric = metric

        def key(s: int) -> tuple[bool, float, float]:
            loss = validation.nan_last(rows[s]["loss"])
            accuracy = rows[s].get("accuracy", 0.0) if metric == "accuracy" else 0.0
            return rows[s]["failed"] is not None, -accuracy, loss

        self.ranking = sorted(range(len(rows)), key=key)

    @property
    def best(self) -> Best:
        """Pair (setting, network of its first fold) of the best row; train it anew on all rows."""
        first = self.ranking[0]
        return Best(self.rows[first], self.networks[first][0])

    @property
    def histories(self) -> list[list[History]]:
        """Histories of each setting and fold, as `networks`."""
        return [[_history(network) for network in networks] for networks in self.networks]

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
        order = [*(name for name in names if name not in _RESULTS)]
        order += [name for name in _RESULTS if name in names]
        return {name: [row.get(name) for row in self.rows] for name in order}

    def __str__(self) -> str:
        columns = self.to_dict()
        if not any(columns["failed"]):
            del columns["failed"]
        return table(columns, self.ranking)

    def __repr__(self) -> str:
        best = self.rows[self.ranking[0]]
        return (
            f"<CrossValidation of {len(self)} settings in {len(self.folds)} folds, best "
            f"{self.metric} {best[self.metric]:.4g} in row {self.ranking[0]}>"
        )


#: The columns that `cross_validate` adds to the settings.
_RESULTS = ("loss", "loss_std", "accuracy", "accuracy_std", "failed")


def cross_validate(
    X: Any,
    Y: Any,
    *,
    cv: Any = 5,
    groups: Any = None,
    grid: Mapping[str, Iterable[Any]] | Sequence[Mapping[str, Iterable[Any]]] | None = None,
    settings: Iterable[Mapping[str, Any]] | None = None,
    validation_data: tuple[Any, Any] | None = None,
    callbacks: Iterable[Callback | Callable[[Network, History], bool | None]] = (),
    metric: str | None = None,
    progress: bool = False,
    engine: str = "auto",
    client: Any = None,
    sample_weight: Any = None,
    class_weight: Any = None,
    **shared: Any,
) -> CrossValidation:
    """Train a network for every setting and fold, all of one shape at once, and score each.

    Parameters
    ----------
    X : (n, n_0) array
        In memory once, whatever the number of folds.
    Y : (n, n_L) array, or (n,) int array of labels
        Targets y; labels where the outputs are classes.
    cv : int, splitter or iterable of (train, test)
        So many folds, at least 2, of rows in a random order that the `seed` decides, each with its
        share of every class where the targets are classes; or an object with scikit-learn's
        ``split(X, y, groups)``; or the numbers of the rows themselves, (k,) int arrays or masks.
    groups : (n,) array, optional
        For the splitter.
    grid : dict of str to values, or a list of such dicts, optional
        As in `sweep`; without grid and settings the shared arguments are the one setting.
    settings : iterable of dict, optional
        As in `sweep`.
    validation_data : (X, Y), optional
        The same for all networks, for callbacks such as `EarlyStopping`; rows of no fold.
    callbacks : iterable of Callback or function (network, history) -> bool
        As in `Population.fit`.
    metric : {"accuracy", "loss"}, optional
        What settings are ranked by; by default accuracy where the targets are classes.
    progress : bool
        Show a progress bar over networks and epochs.
    engine : {"auto", "layered", "resident", "fused", "persistent"}
        As in `Population.fit`.
    client : distributed.Client, optional
        As in `Population.fit`.
    sample_weight : (n,) array, optional
        As in `Network.fit`, for training; the rows of a test count alike.
    class_weight : "balanced" or dict of class numbers to weights, optional
        As in `Network.fit`, for training.
    **shared
        As in `sweep`.

    Returns
    -------
    CrossValidation
        One row per setting. ``print`` it for a table, best first.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit, before anything is trained.
    FloatingPointError
        If all networks failed.

    Warns
    -----
    RuntimeWarning
        If the cost of some networks turned NaN or infinite; the others are not disturbed.

    Notes
    -----
    The network of a setting and a fold is to the bit what `Network` makes of the setting, with the
    seed in its row, when it is fitted on ``X[train]``, ``Y[train]`` with the same engine. All folds
    of a setting start from the same weights.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import cross_validate
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 2)); y = (X[:, 0] > 0).astype(int)
    >>> found = cross_validate(
    ...     X, y, cv=3, grid={"learning_rate": [0.0001, 2.0]}, sizes=[2, 4, 2], epochs=20,
    ...     batch_size=5, cost="binary_cross_entropy", seed=1,
    ... )
    >>> found.best.setting["learning_rate"], found.predictions.shape
    (2.0, (2, 60, 2))
    """
    validation.boolean("progress", progress)
    cluster = None if client is None else Cluster(client)
    if grid is None and settings is None:
        settings = [{}]
    given = given_settings("cross_validate", grid, settings, shared)
    if (shared | given[0]).get("seed") is None and "seed" not in shared:
        # The folds' too, and all settings of a search are to have the same.
        shared = shared | {"seed": int(np.random.SeedSequence().generate_state(1)[0])}
    first = shared | given[0]
    model = Model(**{k: first[k] for k in SHAPE if k in first and k != "initial_weights"})
    data = check_data(model, X, Y, None)
    classes = validation.classes_of(data.Y)
    if metric is not None:
        validation.one_of("metric", metric, ("accuracy", "loss"))
    if metric == "accuracy" and classes is None:
        raise ValueError("metric 'accuracy' needs a Y of classes")
    seed = validation.seed(first["seed"] if first.get("seed") is not None else shared["seed"])
    folds = _folds(cv, X, Y, groups, len(data.X), classes, seed)
    rows = X, Y, validation_data, sample_weight, class_weight
    trained_on = [fold.train for fold in folds]
    trials = Trials("cross_validate", given, shared, 1, trained_on, rows, callbacks)
    costs = {group.cost for group in trials.groups}
    if len(costs) > 1 and metric != "accuracy" and (metric == "loss" or classes is None):
        raise ValueError("settings with different costs cannot be ranked by their losses")
    trials.train(engine, cluster, progress)
    return _scored(trials, folds, classes, metric or ("loss" if classes is None else "accuracy"))


def _scored(
    trials: Trials, folds: list[Fold], classes: np.ndarray | None, metric: str
) -> CrossValidation:
    """What became of the networks, each on its fold's test rows."""
    count, failed, flat = len(folds), trials.failed, trials.networks
    shape = len(flat) // count, count
    networks = [flat[i : i + count] for i in range(0, len(flat), count)]
    losses, accuracies = np.full(shape, np.nan), np.full(shape, np.nan)
    predictions: np.ndarray | None = None
    times = np.zeros(0)
    for group in trials.groups:
        X, Y, *_ = trials.data
        data = check_data(group.model, X, Y, None)
        if predictions is None:
            predictions = np.zeros((shape[0], len(data.Y), group.model.sizes[-1]))
            times = np.zeros((shape[0], len(data.Y)), np.intp)
        passes = group.model.passes()
        for k, (_, test) in enumerate(folds):
            numbers = [i for i in group.numbers if i % count == k and i not in failed]
            total = np.zeros(len(numbers))
            right = np.zeros(len(numbers))
            parameters = [flat[i].parameters for i in numbers]
            x = data.X[test].astype(group.model.dtype, copy=False)
            y = group.cost.prepare(data.Y[test], group.model.sizes[-1])
            for which, rows, cost, a in passes.outputs(parameters, x, y):
                s, own = numbers[which] // count, test[rows]
                np.add.at(predictions[s], own, a)
                np.add.at(times[s], own, 1)
                total[which] += len(a) * cost
                if classes is not None:
                    right[which] += (
                        validation.predicted(a, group.cost.threshold) == classes[own]
                    ).sum()
            at = np.array(numbers, np.intp) // count
            losses[at, k] = total / len(test)
            if classes is not None:
                accuracies[at, k] = right / len(test)
    assert predictions is not None
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing was predicted
        predictions /= times[:, :, None]
    dtypes = [group.model.dtype for group in trials.groups]
    rows_found = []
    for s in range(shape[0]):
        row = dict(trials.rows[s * count])
        row["loss"], row["loss_std"] = float(losses[s].mean()), float(losses[s].std())
        if classes is not None:
            row["accuracy"] = float(accuracies[s].mean())
            row["accuracy_std"] = float(accuracies[s].std())
        texts = [
            f"fold {k}: {failed[s * count + k]}" for k in range(count) if s * count + k in failed
        ]
        row["failed"] = "; ".join(texts) or None
        rows_found.append(row)
    if failed:
        number = min(failed)
        warnings.warn(
            f"{len(failed)} of {len(flat)} networks stopped early, see their rows. Row "
            f"{number // count}, fold {number % count}: {failed[number]}",
            RuntimeWarning,
            stacklevel=3,
        )
    return CrossValidation(
        rows_found, folds, networks, losses, accuracies,
        predictions.astype(np.result_type(*dtypes), copy=False), metric,
    )  # fmt: skip


def _folds(
    cv: Any, X: Any, Y: Any, groups: Any, n: int, classes: np.ndarray | None, seed: int
) -> list[Fold]:
    """The checked folds of n rows."""
    if isinstance(cv, (int, np.integer)):
        if groups is not None:
            raise ValueError("groups are for a splitter: give cv=GroupKFold(…) of scikit-learn")
        return random_folds(validation.integer("cv", cv, 2, n), n, classes, seed)
    if hasattr(cv, "split") and not isinstance(cv, str):
        pairs: Any = cv.split(X, Y if classes is None else classes, groups)
    elif isinstance(cv, (str, bytes, Mapping)) or not validation.is_iterable(cv):
        raise TypeError(
            "cv must be a number of folds, an object with split(X, y, groups), or pairs of the "
            f"numbers of rows (train, test), got {cv!r}"
        )
    else:
        if groups is not None:
            raise ValueError("groups are for a splitter, and cv has the folds themselves")
        pairs = cv
    folds = []
    for k, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"cv[{k}] must be a pair (train, test), got a {type(pair).__name__}")
        folds.append(
            Fold(
                *(
                    validation.row_numbers(f"cv[{k}], {name}", numbers, n)
                    for name, numbers in zip(Fold._fields, pair, strict=True)
                )
            )
        )
    if not folds:
        raise ValueError("cv gave no folds")
    return folds


def random_folds(count: int, n: int, classes: np.ndarray | None, seed: int) -> list[Fold]:
    """Folds whose test rows are all n, each once, in a random order.

    Sizes differ by a row at most, and so do the rows of each class in them.

    Parameters
    ----------
    count : int
        In [2, n].
    classes : (n,) int array, optional
    seed : int
    """
    order = np.random.default_rng(seed).permutation(n)
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]
    fold_of = np.empty(n, np.intp)
    fold_of[order] = np.arange(n) % count  # as cards are dealt
    return [Fold(np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k)) for k in range(count)]


def _history(network: Network) -> History:
    assert network.history is not None
    return network.history
