"""How the members of populations become tasks of a cluster's workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Tasks for each that a worker runs at once: as many so that all are busy until nearly the end,
#: and a worker that dies loses little.
TASKS_A_SLOT = 4
#: Trials at once for each core, where the more there are, the more a pruner can compare.
TRIALS_A_CORE = 64
#: Bytes of all trials that train at once.
TRIAL_BYTES = 1 << 30
#: Operations below which sending a task takes a share of its time that is worth saving: 0.1 s.
SHORTEST_TASK = 1e10


@dataclass(frozen=True)
class WorkerCapacity:
    """What the planner has to know of a worker.

    Attributes
    ----------
    cores : int
        That its tasks may use.
    multiprocessors : int
        Of its GPU; 0 where it trains on its cores.
    """

    cores: int
    multiprocessors: int = 0

    @property
    def at_once(self) -> int:
        """Tasks that it trains at once. A GPU trains one; of cores, each may have its own."""
        return 1 if self.multiprocessors else self.cores


@dataclass(frozen=True)
class TaskSize:
    """How many members a task has, at most, and why."""

    members: int
    reason: str


def member_operations(parameters: int, rows: int, batch_size: int, epochs: int) -> float:
    """What a member's training takes on a CPU, as `steps_a_call` counts it."""
    return epochs * (6.0 * (parameters + 1000) * rows + 5e4 * math.ceil(rows / batch_size))


def slots(workers: Sequence[WorkerCapacity]) -> int:
    """Tasks that all train at once."""
    return sum(worker.at_once for worker in workers)


def task_size(members: int, workers: Sequence[WorkerCapacity], operations: float) -> TaskSize:
    """How many members a task is to have.

    A task trains on one core, or has a GPU to itself. It is as small as lets the last tasks end
    together, but not so small that cores wait for tasks to come, or multiprocessors for members.

    Parameters
    ----------
    members : int
        That are to be trained by these workers, of all shapes.
    workers : sequence of WorkerCapacity
    operations : float
        `member_operations` of one of these.
    """
    room = slots(workers)
    widest = max(worker.multiprocessors for worker in workers)
    fair, balanced = math.ceil(members / room), math.ceil(members / (room * TASKS_A_SLOT))
    if widest and members <= room * widest:
        return TaskSize(fair, f"{members} members over {room} GPUs, each has room for {widest}")
    if widest:
        size = widest * math.ceil(balanced / widest)
        return TaskSize(size, f"a member for each of {widest} multiprocessors, or several")
    worthwhile = math.ceil(SHORTEST_TASK / operations)
    if fair <= max(balanced, worthwhile):
        return TaskSize(fair, f"{members} members over {room} cores, a task for each")
    if worthwhile > balanced:
        return TaskSize(worthwhile, "as many as are worth the sending of a task")
    return TaskSize(balanced, f"{members} members over {room} cores, {TASKS_A_SLOT} tasks for each")


def trials_at_once(machine: WorkerCapacity, learns: bool, size: int) -> int:
    """How many trials of a search train at once, where nothing else is asked for.

    Parameters
    ----------
    machine : WorkerCapacity
    learns : bool
        Whether what trials come to decides which are next. Then each core has `TASKS_A_SLOT`, so
        that all are busy until nearly the end of an epoch, and few are begun before the first have
        told anything; else `TRIALS_A_CORE`. A GPU has one for each multiprocessor.
    size : int
        Bytes of a trial's arrays, of which all have `TRIAL_BYTES`, if that is enough for all cores.
    """
    if machine.multiprocessors:
        return max(1, min(machine.multiprocessors, TRIAL_BYTES // size))
    wanted = machine.cores * (TASKS_A_SLOT if learns else TRIALS_A_CORE)
    return max(machine.cores, min(wanted, TRIAL_BYTES // size))


def task_cores(tasks: int, workers: Sequence[WorkerCapacity]) -> int:
    """Cores of a task: more than one where there are fewer tasks than cores."""
    return max(1, slots(workers) // tasks)


def divide(costs: Sequence[float], size: int) -> list[list[int]]:
    """The numbers of the members of each task, the dearest first, which are to start first.

    Members that cost much the same are together, and tasks are of much the same size.

    Parameters
    ----------
    costs : sequence of float
        Of each member, in any unit.
    size : int
        Members of a task, at most.
    """
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    tasks = math.ceil(len(order) / size)
    ends = [len(order) * k // tasks for k in range(tasks + 1)]
    return [order[a:b] for a, b in pairwise(ends)]
