"""NCCL for ranks that are threads of this process: in place of the functions beneath nccl4py.

What nccl4py itself does (arrays to pointers, the check of their device, groups) is its own. A group
is queued on one stream, sends match the receives of the other rank in order, count and type, and
outside of a group a send would wait for ever.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rank_threads import Box

ITEMSIZES = {7: 4, 8: 8}  # ncclFloat32, ncclFloat64


@dataclass
class World:
    """Who has joined by a unique id."""

    size: int
    boxes: dict[tuple[int, int], Box]
    joined: threading.Barrier
    ranks: set[int] = field(default_factory=set)


class FakeBindings:
    """`nccl.bindings.nccl`, but for what would need a library."""

    def __init__(self, real: Any) -> None:
        self._real, self._worlds, self._lock = real, {}, threading.Lock()
        self._own = threading.local()
        self.sent = 0  # bytes

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("comm_", "group_", "all_", "send", "recv")):
            raise AssertionError(f"the stand-in has no {name}")
        return getattr(self._real, name)

    def get_unique_id(self) -> Any:
        return self._real.UniqueId.from_buffer(np.random.default_rng().bytes(128))

    def comm_init_rank_scalable(
        self, size: int, rank: int, ids: int, text: bytearray, config: int
    ) -> Any:
        assert ids == 1
        assert len(text) == 128
        assert any(text)
        with self._lock:
            if bytes(text) not in self._worlds:
                boxes = {(i, j): Box() for i in range(size) for j in range(size)}
                self._worlds[bytes(text)] = World(size, boxes, threading.Barrier(size))
            world = self._worlds[bytes(text)]
            assert world.size == size
            assert rank not in world.ranks
            world.ranks.add(rank)
        world.joined.wait(60)
        return world, rank

    def comm_cu_device(self, joined: Any) -> int:
        return int(_driver().cuCtxGetDevice()[1])

    def group_start(self) -> None:
        assert not hasattr(self._own, "group"), "a group in a group"
        self._own.group = []

    def send(self, *call: Any) -> None:
        self._own.group.append(("send", *call))

    def recv(self, *call: Any) -> None:
        self._own.group.append(("recv", *call))

    def group_end(self) -> None:
        group = self._own.group
        del self._own.group
        streams = {call[-1] for call in group}
        assert len(streams) <= 1, "NCCL would queue on several streams"
        for stream in streams:
            _check(_driver().cuStreamSynchronize(stream))
        asked = []
        for what, pointer, count, kind, peer, (world, rank), _ in group:
            size = count * ITEMSIZES[kind]
            assert peer != rank
            if what == "send":
                host = np.empty(size, np.uint8)
                _check(_driver().cuMemcpyDtoH(host.ctypes.data, pointer, size))
                self.sent += size
                world.boxes[rank, peer].put((kind, host))
            else:
                box = world.boxes[peer, rank]
                asked.append((box, box.ask(), pointer, kind, size))
        for box, number, pointer, kind, size in asked:
            found_kind, host = box.get(number)
            assert (found_kind, host.size) == (kind, size), "NCCL would hang, or worse"
            _check(_driver().cuMemcpyHtoD(pointer, host.ctypes.data, size))


def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _check(result: Any) -> None:
    assert int(result[0]) == 0, result
