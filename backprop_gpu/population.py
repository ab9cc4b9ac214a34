"""Populations: many networks of one shape that train at once, each for itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arrays, html, initializers, optimizers, planning, threads, validation
from .activations import Activation
from .costs import Cost
from .model import Model, losses_and_accuracies
from .network import Network
from .optimizers import Optimizer
from .parameters import Layout
from .schedules import Schedule
from .training import Callback, History, RowsAtOnce, Session
from .training.callbacks import FitRun, check_callbacks, for_member
from .training.cluster import Cluster, SharedArrays
from .training.fitting import Beginning, FitCourse, begin, run_session
from .training.member_tasks import ClusterPart, MemberOutcome, train_on_cluster
from .training.progress import Progress, ProgressBar
from .training.settings import Data, Settings, check_data, check_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Bytes of a member besides its parameters: the network, its generator and so on.
_OBJECT_BYTES = 2000

#: How many failed members a warning describes; the others are in `Population.failed`.
_DESCRIBED = 5


class Population:
    """Networks of one shape that train on the same rows at once, each for itself.

    Every member has its own initial weights, batch order, hyperparameters and early stop, and
    what it learns does not depend, to the bit, on which others are there: member i trains exactly
    as ``Network(sizes, ..., seed=seed + i)`` does alone on the same engine.

    Parameters
    ----------
    sizes : sequence of int
        Neurons per layer, (n_0, …, n_L), of every member.
    members : int
        How many networks, at least 1.
    activation : str, Activation or a sequence of them, default "sigmoid"
        As in `Network`, for all members.
    cost : str or Cost, default "quadratic"
        As in `Network`.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic.
    precision : {"float32", "tf32", "bf16"}, optional
        As in `Network`.
    backend : {"auto", "numpy", "cuda", "numba_cuda"}
        As in `Network`.
    seed : int or sequence of int, optional
        Member i has the seed ``seed + i``, or the i-th of a sequence with one per member.
    initial_weights : str, default "auto"
        As in `Network`.

    Attributes
    ----------
    members : tuple of Network
        Ordinary networks: to be used, saved, pickled or trained further alone. As in `Network`,
        several threads may read them, and the population, at once; each is trained by one.
    failed : dict of int to str
        The members whose cost or parameters turned NaN or infinite in the last `fit`, each with
        what happened, in which epoch and batch.
    plan : planning.Plan
        What runs and why, as in `Network`.

    Notes
    -----
    ``copy.copy``, as of a `Network`, gives a population that trains on independently.

    Examples
    --------
    >>> import numpy as np
    >>> from backprop_gpu import Population
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]); Y = np.array([0, 1, 1, 0])
    >>> population = Population(
    ...     [2, 8, 1], members=3, cost="binary_cross_entropy", seed=1, backend="numpy"
    ... )
    >>> histories = population.fit(
    ...     X, Y, epochs=500, batch_size=4, learning_rate=[0.001, 0.1, 2.0]
    ... )
    >>> population.best() is population.members[2]
    True
    >>> population.predict(X, combine="mean").shape
    (4, 1)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        members: int,
        activation: str | Activation | Sequence[str | Activation] = "sigmoid",
        cost: str | Cost = "quadratic",
        dtype: Any = "float32",
        precision: str | None = None,
        backend: str = "auto",
        seed: int | Sequence[int] | np.ndarray | None = None,
        initial_weights: str = "auto",
    ) -> None:
        members = validation.integer("members", members, 1)
        check_room("members", members, validation.sizes(sizes), validation.dtype(dtype))
        seeds = _seeds(seed, members)
        validation.one_of("initial_weights", initial_weights, ("auto", *initializers.names()))
        model = Model(
            sizes, activation=activation, cost=cost, dtype=dtype, precision=precision,
            backend=backend,
        )  # fmt: skip
        generators = [np.random.default_rng(seed) for seed in seeds]
        rules = initializers.rules(initial_weights, model.activations)
        rows = np.empty((members, model.layout.length), model.dtype)
        for row, generator in zip(rows, generators, strict=True):
            row[...] = model.layout.flat(
                *initializers.draw(rules, model.sizes, generator), model.dtype
            )
        self._assemble(model, rows, generators)

    @classmethod
    def from_networks(cls, networks: Iterable[Network]) -> Population:
        """Make a population of copies of networks; the networks themselves stay as they are.

        A copy has the weights, and shuffles as its network would have: trained with the same
        arguments, both end at the same weights.

        Parameters
        ----------
        networks : iterable of Network
            At least one; all of the same sizes, activations, cost, dtype, precision and backend.

        Returns
        -------
        Population
            One with a member per network, in their order.

        Raises
        ------
        ValueError
            If they differ. For settings of several shapes there is `sweep`.
        """
        if not validation.is_iterable(networks):
            raise TypeError(f"networks must be a sequence of Networks, got {networks!r}")
        networks = list(networks)
        if not networks:
            raise ValueError("networks is empty: a population has at least one member")
        for i, network in enumerate(networks):
            if not isinstance(network, Network):
                raise TypeError(f"networks[{i}] must be a Network, got {network!r}")
            _check_alike(networks[0], network, i)
        population = cls.__new__(cls)
        population._assemble(  # noqa: SLF001
            copy.copy(networks[0].model),  # on a backend of its own
            np.stack([network.model.read(network.parameters) for network in networks]),
            [copy.deepcopy(network.generator) for network in networks],
        )
        return population

    def _assemble(
        self, model: Model, rows: np.ndarray, generators: Sequence[np.random.Generator]
    ) -> None:
        """Members of one model, each with a row of one array for parameters.

        One array, so that an engine may run all members in one launch.
        """
        self.model, self._rows = model, model.backend.asarray(rows)
        self.members = tuple(
            Network.of(model, row, generator)
            for row, generator in zip(self._rows, generators, strict=True)
        )
        self.failed: dict[int, str] = {}
        self.plan = model.plan()

    # -- what all members share ---------------------------------------------------

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons per layer, (n_0, …, n_L)."""
        return self.model.sizes

    @property
    def activations(self) -> tuple[Activation, ...]:
        """Activations σ of layers 1 … L."""
        return self.model.activations

    @property
    def cost(self) -> Cost:
        """The cost C."""
        return self.model.cost

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of parameters and arithmetic."""
        return self.model.dtype

    @property
    def precision(self) -> str:
        """What factors of products are rounded to, as in `Network`."""
        return self.model.precision

    @property
    def backend(self) -> str:
        """The backend in use; ``plan.backend_reason`` says why."""
        return self.model.choice.backend

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Network]:
        return iter(self.members)

    def __repr__(self) -> str:
        shown = repr(self.members[0]).removeprefix("Network(")
        sizes = str(list(self.sizes))
        return f"Population({sizes}, members={len(self)}{shown.removeprefix(sizes)}"

    def _repr_html_(self) -> str:
        """What a notebook shows: the members, best first where they have been trained."""
        numbers = list(range(len(self)))
        histories = [member.history for member in self.members]
        trained = [i for i in numbers if histories[i] and i not in self.failed]
        if trained and len(trained) == len(self) - len(self.failed):
            first = self.ranking()
            numbers = [*first, *(i for i in numbers if i not in set(first))]
        names = [
            name
            for name in ("loss", "val_loss", "val_accuracy")
            if any(history and getattr(history, name) for history in histories)
        ]
        rows = []
        for i in numbers:
            history = histories[i] or History()
            values = [f"{history.final(name):.6g}" for name in names]
            rows.append([i, len(history), *values, self.failed.get(i, "")])
        headings = ["member", "epochs", *names, *(["failed"] if self.failed else [])]
        shown = [row[: len(headings)] for row in rows]
        return html.block(
            f"Population of {len(self)} networks {list(self.sizes)}",
            html.line(f"{self.members[0]!r}"),
            html.details("plan", html.pre(self.plan, 800)),
            html.long_table(headings, shown),
        )

    # -- training -------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        Y: Any = None,
        *,
        epochs: int | Sequence[int] | np.ndarray,
        batch_size: int | Sequence[int] | np.ndarray,
        learning_rate: float | Schedule | Sequence[float | Schedule] | np.ndarray,
        optimizer: str | Optimizer | Sequence[str | Optimizer] = "sgd",
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Iterable[Callback | Callable[[Network, History], bool | None]] = (),
        progress: bool = False,
        engine: str = "auto",
        plan: planning.Plan | None = None,
        resume_from: Any = None,
        client: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        dropout: Any = 0.0,
        mixup: Any = 0.0,
        rows: Sequence[Any] | np.ndarray | None = None,
    ) -> list[History]:
        """Run mini-batch gradient descent of every member from its current weights.

        Parameters
        ----------
        X : (n, n_0) array or table
            Rows x; also of uint8, as in `Network.fit`.
        Y : (n, n_L) array, or (n,) int array of labels
            Targets y; labels where the outputs are classes.
        epochs : int, or one per member
            Passes over the rows. One value for all, or a list, tuple or 1-d array with one per
            member, as of the three that follow. A member with fewer epochs is ready sooner and
            keeps its weights.
        batch_size : int, or one per member
            Rows m of a mini-batch.
        learning_rate : float or callable, or one per member
            Rate η, or a schedule of the time in epochs.
        optimizer : str or Optimizer, or one per member
            As in `Network.fit`.
        validation_data : (X, Y), optional
            The same for all members.
        callbacks : iterable of Callback or function (network, history) -> bool
            Called for every member with that member's network and history; a true result stops
            that member. A function is the same for all. Of a `Callback`, such as
            `EarlyStopping`, each member has a copy (see `Callback.for_member`), so one member's
            patience is not another's.
        progress : bool
            Show a progress bar over members and epochs.
        engine : {"auto", "layered", "resident", "fused", "persistent"}
            What runs an epoch of all members; ``population.plan`` says which and why.
        plan : planning.Plan, optional
            As in `Network.fit`.
        resume_from : path, optional
            As in `Network.fit`. A checkpoint's file has all members.
        client : distributed.Client, optional
            Train on the workers of a Dask cluster, to the bits that one process on a machine of
            theirs would reach (with engine "layered" on a CPU: one whose BLAS has one thread).
            With backend "auto" they take the best that they have. Members are sent in tasks of a
            size that `planning` chooses; each trains by a plan made where it runs, and
            ``population.plan`` is what a worker would plan for all of them. Callbacks run on the
            workers, on copies: what they write to variables or objects stays there. No
            `Checkpoint`, and no `resume_from`.
        sample_weight : (n,) array, optional
            As in `Network.fit`, the same for all members.
        class_weight : "balanced" or dict of class numbers to weights, optional
            As in `Network.fit`, the same for all members.
        dropout : float, optional
            As in `Network.fit`: one for all, or a list or array with one per member, each a number
            or a tuple of one per hidden layer.
        mixup : float, optional
            As in `Network.fit`, one for all, or one per member. Rows are mixed with those of the
            member alone.
        rows : sequence of (k,) int arrays, optional
            The rows of X and Y that each member trains on, one array per member, perhaps of
            different lengths, such as folds, bootstraps or the steps of a learning curve: member i
            trains to the same bits as alone on ``X[rows[i]]``, ``Y[rows[i]]``, but all read one X.
            A number that is there twice is two rows. Masks, (n,) of bool, are taken, too; negative
            numbers are not. An epoch, its steps and a schedule's time are each member's own, and
            each has a ``batch_size`` up to its number of rows.

        Returns
        -------
        list of History
            One per member; also ``members[i].history``.

        Raises
        ------
        ValueError, TypeError
            For arguments that do not fit, before anything has changed.
        FloatingPointError
            If all members failed.
        RuntimeError
            If the population, or one of its members, is being trained already; with a client, if
            a worker cannot train them, or all have died.

        Warns
        -----
        RuntimeWarning
            If the cost of some members turned NaN or infinite. Such a member stops alone, with
            the weights at the end of its last good epoch, and is listed in `failed`.

        Notes
        -----
        All members run epoch 1, then all are validated and their callbacks called, then epoch 2.
        After Ctrl-C, or an exception in a callback, every member has the weights at the end of
        its last whole epoch. `fit` trains all members again, also those that failed before.

        With a client members are as they were until all tasks are done, and remain so after an
        exception or Ctrl-C, which ends the workers' epochs, too. A task that raises is tried again
        twice, unless it was a ValueError or TypeError; one whose worker died, on another worker.
        A history's times are those of its task.
        """
        validation.boolean("progress", progress)
        cluster = None if client is None else Cluster(client)
        if cluster is not None and resume_from is not None:
            raise ValueError("resume_from and client exclude each other: give one of them")
        data = check_data(self.model, X, Y, validation_data, sample_weight, class_weight)
        settings = _settings(
            _check_rows(rows, len(self), len(data.X)),
            len(data.X), epochs, batch_size, learning_rate, optimizer,
            [validation.dropout(each, len(self.sizes) - 2) for each in self._one_each(dropout)],
            _one_a_member(
                "mixup", mixup, len(self), lambda value: validation.mixup(value, self.cost)
            ),
        )  # fmt: skip
        hooks = check_callbacks(callbacks, self.model, data.validation, data)
        total, done = sum(each.epochs for each in settings), 0
        if cluster is None:
            beginning = begin(
                self.model, data, settings, hooks, engine, plan, resume_from, population=True
            )
            done = beginning.done(settings)
        else:
            shared = SharedArrays()
            part = ClusterPart(self, data, shared, settings, hooks, engine, plan)
        with (
            threads.alone("population", self, *self.members),
            ProgressBar(total, progress, len(self), done) as bar,
        ):
            if cluster is None:
                histories = self.train(data, settings, hooks, beginning, bar)
            else:
                (histories,) = train_on_cluster(cluster, [part], shared, bar)
        if len(self.failed) == len(self):
            raise FloatingPointError(
                self.failed[0] if len(self) == 1 else f"all {_described(self.failed, len(self))}"
            )
        if self.failed:
            warnings.warn(
                f"{len(self.failed)} of {_described(self.failed, len(self))}",
                RuntimeWarning,
                stacklevel=2,
            )
        return histories

    def _one_each(self, dropout: Any) -> list[Any]:
        """What was given for all members, or for each."""
        if not isinstance(dropout, list | np.ndarray):
            return [dropout] * len(self)
        if len(dropout) != len(self):
            raise ValueError(f"dropout has {len(dropout)} values for {len(self)} members")
        return list(dropout)

    def train(
        self,
        data: Data,
        settings: Sequence[Settings],
        hooks: Sequence[Callback],
        beginning: Beginning,
        bar: Progress,
        runs: Sequence[FitRun] | None = None,
    ) -> list[History]:
        """Do what `fit` does, with checked arguments; what failed is in `failed`.

        Parameters
        ----------
        data : training.settings.Data
            X, Y, weights of the rows and validation data, as `training.settings.check_data` returns
            them.
        settings : sequence of training.settings.Settings
            Hyperparameters, one of them a member.
        hooks : sequence of Callback
            As `training.callbacks.check_callbacks` returns them.
        beginning : training.fitting.Beginning
            The plan, and where each member goes on from.
        bar : training.progress.Progress
            Hears of every epoch.
        runs : sequence of FitRun, optional
            What members are to callbacks; by default members.

        Returns
        -------
        list of History
            One per member.
        """
        if runs is None:
            call = object()
            runs = [FitRun(labels={"member": i}, call=call) for i in range(len(self))]
        backend, shape = self.model.backend, tuple(self._rows.shape)
        own = [for_member(hooks, member) for member in self.members]
        slots = [
            backend.zeros(shape) for _ in range(max(each.optimizer.slots for each in settings))
        ]
        good = backend.empty(shape)
        self.plan = plan = beginning.plan
        self.failed = {}
        courses = []
        for i, member in enumerate(self.members):
            member.plan = plan
            state = tuple(slot[i] for slot in slots[: settings[i].optimizer.slots])
            course = FitCourse(member, settings[i], own[i], state, good[i], weights=data.weights)
            courses.append(course)
            course.resumed, course.run = beginning.states[i], runs[i]
        session = Session(
            self.model,
            RowsAtOnce(
                self.model.engine(plan), data.X, data.Y, mixups=[each.mixup for each in settings]
            ),
            courses, data.validation, (self._rows, good),
        )  # fmt: skip
        for course in courses:
            course.history.time_spent = session.time_spent
        try:
            run_session(session, self.model, plan, data, courses, hooks, bar, population=True)
        finally:
            self.failed = {
                i: course.failure for i, course in enumerate(courses) if course.failure is not None
            }
        return [course.history for course in courses]

    # -- on a cluster -------------------------------------------------------------------

    def share(self, numbers: Sequence[int]) -> tuple[np.ndarray, list[np.random.Generator]]:
        """Read parameters and generators of some members, for another process.

        Parameters
        ----------
        numbers : sequence of int
            Which members.

        Returns
        -------
        rows : (len(numbers), length) array
            Parameters, on the host, one member a row.
        generators : list of numpy.random.Generator
            The members' own, not copies.
        """
        chosen = [self.members[i] for i in numbers]
        rows = np.stack([self.model.read(member.parameters) for member in chosen])
        return rows, [member.generator for member in chosen]

    @classmethod
    def of_share(
        cls, model: Model, rows: np.ndarray, generators: Sequence[np.random.Generator]
    ) -> Population:
        """Make a population that trains on independently of where its `share` came from.

        Parameters
        ----------
        model : Model
            Sizes, σ, C, dtype, precision and backend.
        rows : (members, length) array
            Parameters, as `share` returns them.
        generators : sequence of numpy.random.Generator
            One per member; copied.

        Returns
        -------
        Population
            One with a member per row.
        """
        population = cls.__new__(cls)
        population._assemble(model, rows, copy.deepcopy(generators))  # noqa: SLF001
        return population

    def outcomes(self) -> list[MemberOutcome]:
        """Describe what has become of the members, for `adopt` of another process.

        Returns
        -------
        list of training.member_tasks.MemberOutcome
            Parameters, history, generator, plan and failure of each member.
        """
        return [
            MemberOutcome(
                self.model.read(member.parameters),
                member.history or History(),
                member.generator,
                member.plan,
                self.failed.get(i),
            )
            for i, member in enumerate(self.members)
        ]

    def adopt(self, outcomes: Mapping[int, MemberOutcome], plan: planning.Plan) -> list[History]:
        """Make what has become of copies of all members elsewhere their own.

        Parameters
        ----------
        outcomes : mapping of int to training.member_tasks.MemberOutcome
            By the numbers of the members, every one of them.
        plan : planning.Plan
            What `plan` is from then on.

        Returns
        -------
        list of History
            One per member.
        """
        self.plan = plan
        self.failed = {
            i: each.failure for i, each in sorted(outcomes.items()) if each.failure is not None
        }
        for i, member in enumerate(self.members):
            each = outcomes[i]
            self.model.write(each.flat, member.parameters)
            member.history, member.plan = each.history, each.plan
            # The generator stays the object it was: it may be somebody else's, too.
            member.generator.bit_generator.state = each.generator.bit_generator.state
        return [outcomes[i].history for i in range(len(self))]

    # -- without training -------------------------------------------------------------

    def predict(self, X: Any, combine: str | None = None) -> Any:
        """Compute the outputs a^L of every row of X: of each member, or of all together.

        Parameters
        ----------
        X : (n, n_0) array, table or sparse matrix
            Rows x. What comes back is in its library, as from `Network.predict`.
        combine : {None, "mean", "vote"}
            "mean" is the mean of the members' outputs; "vote" the class that most members name,
            the lowest of equals. Members that failed in the last `fit` have no part in either,
            and one whose outputs of a row are NaN has no vote on it; -1 where none has.

        Returns
        -------
        (members, n, n_L) array, (n, n_L) array for "mean", or (n,) int array for "vote"
            With one output, a vote is 1 where a >= ½ (with a hinge cost, 0) and else 0.

        Raises
        ------
        ValueError
            For another `combine`, or if every member has failed and there is none to combine.
        """
        if combine is not None:
            validation.one_of("combine", combine, ("mean", "vote"))
        given, X = X, self.model.inputs(X)
        n, n_outputs = len(X), self.sizes[-1]
        if combine is None:
            outputs = np.empty((len(self), n, n_outputs), self.dtype)
            for i, rows, _, a in self._outputs(range(len(self)), X):
                outputs[i, rows] = a
            return arrays.as_given(validation.warn_of_nan(outputs), given)
        sound = self._sound()
        if combine == "mean":
            total = np.zeros((n, n_outputs))
            for _, rows, _, a in self._outputs(sound, X):
                total[rows] += a
            mean = validation.warn_of_nan(np.asarray(total / len(sound), self.dtype))
            return arrays.as_given(mean, given)
        votes = np.zeros((n, max(n_outputs, 2)), np.intp)
        for _, rows, _, a in self._outputs(sound, X):
            classes = validation.predicted(a, self.model.cost.threshold)
            votes[np.arange(n)[rows], classes] += classes != validation.NO_CLASS
        winners: np.ndarray = votes.argmax(axis=1)
        winners[~votes.any(axis=1)] = validation.NO_CLASS
        return arrays.as_given(winners, given)

    def loss(self, X: Any, Y: Any, sample_weight: Any = None) -> np.ndarray:
        """Compute C of each member: the mean cost over the rows, without penalties.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.
        Y : (n, n_L) array, or (n,) int array of labels
            Targets y.
        sample_weight : (n,) array, optional
            Weights of the rows, as in `Network.loss`.

        Returns
        -------
        (members,) array
            C of each; NaN of one whose outputs are.

        Raises
        ------
        ValueError, TypeError
            For arrays that do not fit the members or each other.
        """
        X, Y = self.model.check_data(X, Y, sparse_stays=True)
        return self._evaluate(X, Y, None, sample_weight)[0]

    def accuracy(self, X: Any, labels: Any, sample_weight: Any = None) -> np.ndarray:
        """Compute each member's share of rows whose class is right, as in `Network.accuracy`.

        Parameters
        ----------
        X : (n, n_0) array
            Rows x.
        labels : (n,) array, or (n, n_L) array
            Class numbers, or one-hot rows of them.
        sample_weight : (n,) array, optional
            Weights of the rows.

        Returns
        -------
        (members,) array
            Shares, in [0, 1].

        Raises
        ------
        ValueError, TypeError
            For arrays that do not fit the members or each other.
        """
        X = self.model.inputs(X)
        classes = validation.labels(self.model.on_host(labels), len(X), self.sizes[-1])
        return self._evaluate(X, None, classes, sample_weight)[1]

    def ranking(self, X: Any = None, Y: Any = None, *, metric: str | None = None) -> list[int]:
        """Rank the members, best first; those that failed are left out.

        Parameters
        ----------
        X, Y : arrays, optional
            Data to compare the members on. Without, they are compared by their histories.
        metric : str, optional
            With data "accuracy" or "loss", by default accuracy where the targets are classes.
            Without data "val_accuracy", "val_loss" or "loss", by default the first of these
            that the last `fit` has measured: its value for the weights that the member has,
            those of the last epoch unless `EarlyStopping` has restored others.

        Returns
        -------
        list of int
            Numbers of the members. Of members of equal accuracy the one with the smaller loss comes
            first, and of members equal in that too, the lower number.

        Raises
        ------
        ValueError
            If every member has failed, or the histories do not hold what is asked for.
        """
        sound = self._sound()
        if (X is None) != (Y is None):
            raise TypeError(
                f"{'X' if X is None else 'Y'} is missing: give both X and Y, or neither"
            )
        if X is None:
            histories = [self.members[i].history for i in sound]
            if any(history is None for history in histories):
                raise ValueError("the members have not been trained: give X and Y to compare them")
            keys = history_keys([history for history in histories if history is not None], metric)
        else:
            if metric is not None:
                validation.one_of("metric", metric, ("accuracy", "loss"))
            X, Y = self.model.check_data(X, Y, sparse_stays=True)
            classes = validation.classes_of(Y)
            if metric == "accuracy" and classes is None:
                raise ValueError("metric 'accuracy' needs a Y of classes")
            losses, accuracies = self._evaluate(X, Y, None if metric == "loss" else classes)
            keys = [_key(losses[i], accuracies[i]) for i in sound]
        return [i for _, i in sorted(zip(keys, sound, strict=True))]

    def best(self, X: Any = None, Y: Any = None, *, metric: str | None = None) -> Network:
        """Return the first member of `ranking`, which has the parameters.

        Parameters
        ----------
        X, Y : arrays, optional
            As in `ranking`.
        metric : str, optional
            As in `ranking`.

        Returns
        -------
        Network
            The member itself, not a copy.

        Raises
        ------
        ValueError
            If every member has failed, or the histories do not hold what is asked for.
        """
        return self.members[self.ranking(X, Y, metric=metric)[0]]

    def plot(self, ax: Any = None, *, metric: str | None = None) -> Axes | np.ndarray:
        """Draw where the members' curves of the last `fit` lie, with the median and the best.

        The band is from the 10th to the 90th percentile, or all that there is of fewer than ten
        members. Those that failed are left out, and the title says how many.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            To draw into; by default one of a new figure.
        metric : {"val_accuracy", "val_loss", "loss"}, optional
            What is drawn, and by which the best is found; by default "val_loss", or "loss" where
            there is none, and the best is the first of `ranking`.

        Returns
        -------
        matplotlib.axes.Axes
            With a curve a member.

        Raises
        ------
        ValueError
            If the members have not been trained, all failed, or the histories do not hold what is
            asked for.
        ImportError
            If there is no matplotlib (extra ``plot``).
        """
        best = self.ranking(metric=metric)[0]
        sound = self._sound()
        histories = [self.members[i].history or History() for i in sound]
        if metric is None:
            metric = history_metric(histories, "val_loss" if histories[0].val_loss else "loss")
        from . import pictures

        return pictures.members(
            ax, [getattr(history, metric) for history in histories], sound.index(best), metric,
            histories[sound.index(best)].restored, len(self) - len(sound),
        )  # fmt: skip

    def _sound(self) -> list[int]:
        """The members that have not failed."""
        sound = [i for i in range(len(self)) if i not in self.failed]
        if not sound:
            raise ValueError("every member failed in the last fit; see population.failed")
        return sound

    def _outputs(
        self, numbers: Sequence[int], X: np.ndarray, Y: np.ndarray | None = None
    ) -> Iterator[tuple[int, slice, float, np.ndarray]]:
        parameters = [self.members[i].parameters for i in numbers]
        return self.model.passes().outputs(parameters, X, Y)

    def _evaluate(
        self,
        X: np.ndarray,
        Y: np.ndarray | None,
        classes: np.ndarray | None,
        sample_weight: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        parameters = [member.parameters for member in self.members]
        if Y is not None:
            Y = self.model.cost.prepare(Y, self.sizes[-1])
        weights = self.model.mean_weights(sample_weight, len(X))
        passes = self.model.passes()
        return losses_and_accuracies(passes, parameters, X, Y, classes, weights)

    # -- copies -----------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "rows": self.model.backend.to_numpy(self._rows),
            "generators": [copy.deepcopy(member.generator) for member in self.members],
            "histories": [copy.deepcopy(member.history) for member in self.members],
            "failed": dict(self.failed),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # On a backend of its own.
        self._assemble(copy.copy(state["model"]), state["rows"], state["generators"])
        for member, history in zip(self.members, state["histories"], strict=True):
            member.history = history
        self.failed = state["failed"]


def check_room(name: str, count: int, sizes: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse more networks than fit in memory, by the argument that asks for them."""
    size = count * (Layout(sizes).length * dtype.itemsize + _OBJECT_BYTES)
    validation.room(f"{name}={count} of sizes {sizes}", size)


def history_keys(histories: Sequence[History], metric: str | None) -> list[tuple[float, float]]:
    """What to sort networks by, smallest first, from their histories.

    Raises
    ------
    ValueError
        For an unknown metric, or one that a history does not hold.
    """
    metric = history_metric(histories, metric)
    if metric == "val_accuracy":
        return [_key(each.final("val_loss"), each.final("val_accuracy")) for each in histories]
    return [_key(each.final(metric), float("nan")) for each in histories]


def history_metric(histories: Sequence[History], metric: str | None) -> str:
    """The metric, or the first of the known ones that all histories hold."""
    known = ("val_accuracy", "val_loss", "loss")
    held = [name for name in known if _is_held(histories, name)]
    if metric is None:
        return next(iter(held), "loss")
    validation.one_of("metric", metric, known)
    if metric not in held:
        needs = "validation_data" + (" of classes" if metric == "val_accuracy" else "")
        raise ValueError(
            f"metric {metric!r} needs a fit with {needs}"
            if metric != "loss"
            else "metric 'loss' needs a fit of an epoch at least"
        )
    return metric


def _is_held(histories: Sequence[History], name: str) -> bool:
    """Whether all have it. A NaN is a bad value of one of them, all NaN is none."""
    return all(getattr(each, name) for each in histories) and not all(
        np.isnan(each.final(name)) for each in histories
    )


def _key(loss: float, accuracy: float) -> tuple[float, float]:
    """Sorts by accuracy where there is one, then by loss; NaN last."""
    return 0.0 if np.isnan(accuracy) else -float(accuracy), validation.nan_last(loss)


def _seeds(seed: Any, members: int) -> list[int | None]:
    if seed is None:
        return [None] * members
    seeds = _one_a_member("seed", seed, members, validation.seed)
    return list(seeds) if _is_several(seed) else [seeds[0] + i for i in range(members)]


def _check_rows(rows: Any, members: int, n: int) -> list[np.ndarray | None]:
    """The numbers of each member's rows, of n; None for all."""
    if rows is None:
        return [None] * members
    if hasattr(rows, "ndim"):
        rows = arrays.to_numpy("rows", rows)
    if not isinstance(rows, Sequence | np.ndarray) or isinstance(rows, str | bytes):
        raise TypeError(f"rows must be a sequence with an int array for each member, got {rows!r}")
    if len(rows) != members:
        raise ValueError(
            f"rows has {len(rows)} entries for {members} members: it needs an int array for each"
        )
    entries = list(rows)
    checked: dict[int, np.ndarray] = {}  # what many members share stays one array
    for i, numbers in enumerate(entries):
        if id(numbers) not in checked:
            checked[id(numbers)] = validation.row_numbers(f"rows[{i}]", numbers, n)
    return [checked[id(numbers)] for numbers in entries]


def _settings(
    numbers: Sequence[np.ndarray | None],
    n: int,
    epochs: Any,
    batch_size: Any,
    learning_rate: Any,
    optimizer: Any,
    dropout: Sequence[tuple[float, ...]],
    mixup: Sequence[float],
) -> list[Settings]:
    """The hyperparameters of each member, from one value or one per member of each.

    `numbers` are those of each member's rows, of n.
    """
    members = len(numbers)
    counts = [n if each is None else len(each) for each in numbers]

    def spread(name: str, value: Any, check: Callable[[Any], Any]) -> list[Any]:
        return _one_a_member(name, value, members, check)

    columns = (
        spread("epochs", epochs, lambda value: validation.integer("epochs", value, 1)),
        spread(
            "batch_size",
            batch_size,
            lambda value: validation.integer("batch_size", value, 1, max(counts)),
        ),
        spread("learning_rate", learning_rate, lambda value: value),
        spread("optimizer", optimizer, optimizers.get),
    )
    for i, (m, count) in enumerate(zip(columns[1], counts, strict=True)):
        if m > count:
            raise ValueError(
                f"batch_size must be in [1, {count}], as many as rows[{i}] has, got {m}"
            )
    checked: dict[tuple[int, int, int], Any] = {}
    several = _is_several(learning_rate)

    def check(numbered: tuple[int, tuple[Any, Any, Any, Any]]) -> Settings:
        i, values = numbered
        place = f"learning_rate[{i}]" if several else ""
        return check_settings(
            counts[i], *values, checked, place, numbers=numbers[i], dropout=dropout[i],
            mixup=mixup[i],
        )  # fmt: skip

    rows_of_columns = list(enumerate(zip(*columns, strict=True)))
    if several:  # only a rate can still be wrong
        return _one_a_member("learning_rate", rows_of_columns, members, check)
    return [check(numbered) for numbered in rows_of_columns]


def _one_a_member(name: str, value: Any, members: int, check: Callable[[Any], Any]) -> list[Any]:
    """What `check` makes of the value, for every member, or of each of several values."""
    if not _is_several(value):
        return [check(value)] * members
    if hasattr(value, "ndim"):
        value = arrays.to_numpy(name, value)
    if len(value) != members:
        raise ValueError(
            f"{name} has {len(value)} values for {members} members: give one value for all, or "
            "one per member"
        )
    result = []
    for i, item in enumerate(value):
        with validation.within(f"{name}[{i}]"):
            result.append(check(item))
    return result


def _is_several(value: Any) -> bool:
    return isinstance(value, (list, tuple, range)) or getattr(value, "ndim", 0) == 1


def _check_alike(first: Network, other: Network, number: int) -> None:
    for what in ("sizes", "activations", "cost", "dtype", "precision", "backend"):
        expected, got = getattr(first, what), getattr(other, what)
        if got != expected:
            shown = " and ".join(
                str([each.name for each in value] if what == "activations" else value)
                for value in (expected, got)
            )
            raise ValueError(
                f"networks[0] and networks[{number}] differ in {what} ({shown}); a population "
                "has one shape, and backprop_gpu.sweep trains networks of several"
            )


def _described(failed: dict[int, str], members: int) -> str:
    lines = [f"member {i}: {text}" for i, text in list(failed.items())[:_DESCRIBED]]
    if len(failed) > _DESCRIBED:
        lines.append(f"and {len(failed) - _DESCRIBED} more, see population.failed")
    return f"{members} members stopped early. " + "; ".join(lines)
