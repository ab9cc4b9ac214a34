"""Members of populations as tasks of a cluster: what a worker is sent, does and answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np

from .. import engines, planning, validation
from ..model import Model
from ..planning.tasks import divide, member_operations, task_cores, task_size
from .callbacks import Callback
from .cluster import Cluster, ClusterTask, SharedArrays, WorkerMachine, place_of_task
from .fitting import Beginning, Trainee, make_run, resolve_plan
from .history import History
from .progress import Progress, ProgressBar
from .settings import Data, Settings


class TrainablePopulation(Protocol):
    """What tasks have to know of a `Population`, which has the documentation."""

    model: Model

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Trainee]: ...

    def share(self, numbers: Sequence[int]) -> tuple[np.ndarray, list[np.random.Generator]]: ...

    @classmethod
    def of_share(
        cls, model: Model, rows: np.ndarray, generators: Sequence[np.random.Generator]
    ) -> TrainablePopulation: ...

    def train(
        self,
        data: Data,
        settings: Sequence[Settings],
        hooks: Sequence[Callback],
        beginning: Beginning,
        bar: Progress,
    ) -> list[History]: ...

    def outcomes(self) -> list[MemberOutcome]: ...

    def adopt(
        self, outcomes: Mapping[int, MemberOutcome], plan: planning.Plan
    ) -> list[History]: ...


class MemberOutcome(NamedTuple):
    """What has become of a member."""

    flat: np.ndarray
    history: History
    generator: np.random.Generator
    plan: planning.Plan
    failure: str | None


@dataclass(frozen=True, eq=False)
class MemberShare:
    """Some members of a population as a task takes them: all that it needs besides the data."""

    #: What makes a population of them.
    kind: type[TrainablePopulation]
    model: Model
    rows: np.ndarray
    generators: Sequence[np.random.Generator]
    settings: Sequence[Settings]
    hooks: Sequence[Callback]
    #: Of all members of the population.
    run: planning.Run
    plan: planning.Plan | None

    def plans(self, model: Model) -> tuple[planning.Plan, planning.Plan]:
        """(of all members, of these): by the same engine, which their bits depend on."""
        of_all = resolve_plan(model, self.run, self.plan)
        if self.plan is not None:
            return of_all, of_all
        own = make_run(self.settings, self.hooks, of_all.engine, self.run.bytes)
        return of_all, replace(model.plan(own), engine_reason=of_all.engine_reason)


def train_share(
    share: MemberShare, cores: int, *arrays: np.ndarray
) -> tuple[planning.Plan, list[MemberOutcome]]:
    """A task: train a population of these members. (the plan of all members, what became of each).

    Parameters
    ----------
    cores : int
        That it may use, where it trains on a CPU.
    *arrays
        X, Y, those for validation and the rows' weights, if there are any.
    """
    model = share.model.here()
    with place_of_task(cores, model.device is not None) as progress:
        population = share.kind.of_share(model, share.rows, share.generators)
        of_all, plan = share.plans(model)
        weights = arrays[-1] if len(arrays) % 2 else None
        data = Data(
            arrays[0], arrays[1], (arrays[2], arrays[3]) if len(arrays) > 3 else None, weights
        )
        beginning = Beginning(plan, [None] * len(population))
        population.train(data, share.settings, share.hooks, beginning, progress)
        return of_all, population.outcomes()


class ClusterPart:
    """A population that is to be trained on a cluster, its arguments checked.

    Raises
    ------
    ValueError, TypeError
        For what one process refuses, and for generators that members share.
    """

    def __init__(
        self,
        population: TrainablePopulation,
        data: Data,
        shared: SharedArrays,
        settings: Sequence[Settings],
        hooks: Sequence[Callback],
        engine: str,
        plan: planning.Plan | None,
    ) -> None:
        self.population, self.settings, self.hooks, self.plan = population, settings, hooks, plan
        self.run = make_run(settings, hooks, engine, data.bytes)
        validation.one_of("engine", engine, ("auto", *engines.NAMES))
        if plan is not None or population.model.requested != "auto":
            resolve_plan(population.model, self.run, plan)  # no worker can do what this cannot
        if len({id(member.generator) for member in population}) < len(population):
            raise ValueError("members share a generator: with a client each needs its own")
        #: Where its data are among the shared arrays.
        weights = () if data.weights is None else (data.weights,)
        arrays = (data.X, data.Y, *(data.validation or ()), *weights)
        self.places = tuple(map(shared.add, arrays))

    def costs(self) -> list[float]:
        """Operations of each member's training."""
        parameters = self.population.model.layout.length
        return [
            member_operations(parameters, each.rows, each.batch_size, each.epochs)
            for each in self.settings
        ]

    def share(self, numbers: Sequence[int]) -> MemberShare:
        """What the task of some members is sent."""
        rows, generators = self.population.share(numbers)
        settings = [self.settings[i] for i in numbers]
        return MemberShare(
            type(self.population), self.population.model, rows, generators, settings, self.hooks,
            self.run, self.plan,
        )  # fmt: skip


def train_on_cluster(
    cluster: Cluster,
    parts: Sequence[ClusterPart],
    shared: SharedArrays,
    bar: ProgressBar,
    stacklevel: int = 3,
) -> list[list[History]]:
    """Train populations, all at once; they are as they were until the last task is done.

    Parameters
    ----------
    stacklevel : int
        Of a warning, from here: whose call it is about.

    Raises
    ------
    As `Cluster.workers` and `Cluster.results`.
    """
    for part in parts:
        cluster.check_hooks(part.hooks)
        cluster.check_sent("learning_rate, optimizer, activation or cost", part.share([0]))
    machines = {
        requested: cluster.workers(requested)
        for requested in dict.fromkeys(part.population.model.requested for part in parts)
    }
    _warn_of_kinds(machines.values(), stacklevel + 1)
    members = sum(len(part.population) for part in parts)
    tasks: list[tuple[float, ClusterPart, list[int]]] = []
    for part in parts:
        costs = part.costs()
        workers = [machine.capacity for machine in machines[part.population.model.requested]]
        size = task_size(members, workers, sum(costs) / len(costs)).members
        tasks += [(sum(costs[i] for i in chosen), part, chosen) for chosen in divide(costs, size)]
    tasks.sort(key=itemgetter(0), reverse=True)  # the last to start are soon over
    cores = task_cores(len(tasks), workers)
    calls = [ClusterTask((part.share(numbers), cores), part.places) for _, part, numbers in tasks]
    bar.describe(f"{len(calls)} tasks on {len(workers)} workers")
    found: dict[int, dict[int, MemberOutcome]] = {id(part): {} for part in parts}
    plans: dict[int, planning.Plan] = {}
    with closing(cluster.results(train_share, calls, shared)) as results:
        for i, (of_all, outcomes) in results:
            _, part, numbers = tasks[i]
            found[id(part)] |= zip(numbers, outcomes, strict=True)
            plans[id(part)] = of_all  # as any other, but for a warning
            bar.members_are_over(
                [each.history for each in outcomes], [part.settings[k].epochs for k in numbers]
            )
    return [part.population.adopt(found[id(part)], plans[id(part)]) for part in parts]


def _warn_of_kinds(machines: Iterable[Sequence[WorkerMachine]], stacklevel: int) -> None:
    for each in machines:
        kinds = sorted({machine.kind for machine in each})
        if len(kinds) == 1:
            continue
        warnings.warn(
            f"workers train on {' and on '.join(kinds)}: a member's last digits depend on which "
            "worker trains it",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
