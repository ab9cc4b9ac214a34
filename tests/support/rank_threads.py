"""Ranks that are threads of this process: a `Communicator` as strict as MPI is allowed to be.

What is sent must not change, and what is to be received holds rubbish, until `wait`; messages of
two ranks must match in number, order, shape and dtype.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from backprop_gpu.communicators import Communicator


class RankError(Exception):
    pass


class Box:
    """Messages from one rank to another. Whoever asks first to receive gets the first."""

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._asked = 0
        self._news = threading.Condition()

    def put(self, message: Any) -> None:
        with self._news:
            self._messages.append(message)
            self._news.notify_all()

    def ask(self) -> int:
        self._asked += 1
        return self._asked - 1

    def get(self, number: int) -> Any:
        with self._news:
            assert self._news.wait_for(lambda: len(self._messages) > number or self._failed, 60)
            return self._failed[0] if len(self._messages) <= number else self._messages[number]

    @property
    def _failed(self) -> list[Any]:
        return [each for each in self._messages if isinstance(each, RankError)]

    def empty(self) -> bool:
        return len(self._messages) == self._asked


class ThreadCommunicator(Communicator):
    def __init__(self, rank: int, size: int, boxes: dict[tuple[int, int], Box]) -> None:
        self.rank, self.size, self._boxes = rank, size, boxes
        #: Bytes sent to others.
        self.sent = 0

    def exchange(self, outgoing, incoming, seconds=None):
        for rank, array in (*outgoing, *incoming):
            assert rank != self.rank
            assert 0 <= rank < self.size
            assert array.flags.c_contiguous
        for rank, array in outgoing:
            self.sent += array.nbytes
            self._boxes[self.rank, rank].put(array.copy())
        asked = []
        for rank, array in incoming:
            array.view(np.uint8)[...] = 0xFF
            box = self._boxes[rank, self.rank]
            asked.append((box, box.ask(), array))
        return _ThreadExchange([(array, array.copy()) for _, array in outgoing], asked)

    def abort(self, reason: str) -> NoReturn:
        for other in self.others:
            self._boxes[self.rank, other].put(RankError(f"rank {self.rank}: {reason}"))
        raise RankError(reason)


class _ThreadExchange:
    def __init__(self, sent, asked) -> None:
        self._sent, self._asked = sent, asked

    def wait(self) -> None:
        for box, number, array in self._asked:
            found = box.get(number)
            if isinstance(found, RankError):
                raise found
            assert (found.shape, found.dtype) == (array.shape, array.dtype), (found, array)
            array[...] = found
        for array, before in self._sent:
            assert array.tobytes() == before.tobytes(), "changed before it was sent"
        self._sent, self._asked = [], []


def on_ranks(size: int, work: Callable[[ThreadCommunicator], Any]) -> list[Any]:
    """What `work` returns on each rank, or the first exception."""
    boxes = {(i, j): Box() for i in range(size) for j in range(size)}
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        ranks = ThreadCommunicator(rank, size, boxes)
        try:
            found[rank] = work(ranks)
        except BaseException as error:
            found[rank] = error
            for other in ranks.others:
                boxes[rank, other].put(RankError(f"rank {rank} has failed: {error!r}"))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [each for each in found if isinstance(each, BaseException)]
    for error in errors:
        if not isinstance(error, RankError):
            raise error
    if errors:
        raise errors[0]
    assert all(box.empty() for box in boxes.values()), "a message that nobody wanted"
    return found
