"""How members become tasks: pure functions of what a cluster has."""

from __future__ import annotations

import pytest

from backprop_gpu.planning.tasks import (
    SHORTEST_TASK,
    TASKS_A_SLOT,
    WorkerCapacity,
    divide,
    member_operations,
    slots,
    task_cores,
    task_size,
)

LONG = 10 * SHORTEST_TASK
EIGHT = [WorkerCapacity(4), WorkerCapacity(4)]
GPUS = [WorkerCapacity(16, 132), WorkerCapacity(16, 132)]


@pytest.mark.parametrize(
    ("members", "workers", "operations", "size", "reason"),
    [
        # Long members: four tasks for each core, so that the last ones end together.
        (320, EIGHT, LONG, 10, "320 members over 8 cores, 4 tasks for each"),
        (321, EIGHT, LONG, 11, "321 members over 8 cores, 4 tasks for each"),
        # Too few for four: tasks of one.
        (20, EIGHT, LONG, 1, "20 members over 8 cores, 4 tasks for each"),
        (8, EIGHT, LONG, 1, "8 members over 8 cores, a task for each"),
        (3, EIGHT, LONG, 1, "3 members over 8 cores, a task for each"),
        # Short ones: as many as make a task worth sending, but none that leaves cores idle.
        (3200, EIGHT, SHORTEST_TASK / 150, 150, "as many as are worth the sending of a task"),
        (3200, EIGHT, SHORTEST_TASK / 1e6, 400, "3200 members over 8 cores, a task for each"),
        # GPUs, whose worker has cores that train nothing.
        (100, GPUS, LONG, 50, "100 members over 2 GPUs, each has room for 132"),
        (264, GPUS, LONG, 132, "264 members over 2 GPUs, each has room for 132"),
        (265, GPUS, LONG, 132, "a member for each of 132 multiprocessors, or several"),
        (4000, GPUS, LONG, 528, "a member for each of 132 multiprocessors, or several"),
    ],
)
def test_the_size_of_a_task(
    members: int, workers: list[WorkerCapacity], operations: float, size: int, reason: str
) -> None:
    found = task_size(members, workers, operations)
    assert (found.members, found.reason) == (size, reason)


@pytest.mark.parametrize("members", [1, 2, 7, 8, 9, 31, 32, 33, 1000])
@pytest.mark.parametrize("operations", [1.0, SHORTEST_TASK / 3, LONG])
def test_no_core_is_without_a_task(members: int, operations: float) -> None:
    size = task_size(members, EIGHT, operations).members
    tasks = divide([1.0] * members, size)
    assert len(tasks) >= min(members, slots(EIGHT)) or size == -(-members // slots(EIGHT))
    assert len(tasks) <= max(slots(EIGHT) * TASKS_A_SLOT, members)


def test_fewer_tasks_than_cores_have_several_each() -> None:
    assert [task_cores(tasks, EIGHT) for tasks in (1, 2, 3, 8, 9, 100)] == [8, 4, 2, 1, 1, 1]
    assert task_cores(1, GPUS) == 2


def test_tasks_are_of_members_that_cost_the_same_the_dearest_first() -> None:
    assert divide([1.0, 9.0, 1.0, 5.0, 9.0], 2) == [[1], [4, 3], [0, 2]]
    assert divide([2.0, 2.0, 2.0], 3) == [[0, 1, 2]]
    for members in range(1, 40):
        for size in range(1, 12):
            tasks = divide([1.0] * members, size)
            assert sorted(i for task in tasks for i in task) == list(range(members))
            lengths = set(map(len, tasks))
            assert max(lengths) <= size
            assert max(lengths) - min(lengths) <= 1


def test_operations_are_those_of_the_epochs() -> None:
    one = member_operations(24_000, 1000, 10, 1)
    assert one == 6.0 * 25_000 * 1000 + 5e4 * 100
    assert member_operations(24_000, 1000, 10, 30) == 30 * one
