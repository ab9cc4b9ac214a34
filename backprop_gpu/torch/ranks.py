"""Ranks that torch.distributed has started: one training on several processes, under torchrun."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

from ..communicators import Communicator, Exchange, Messages, said


class TorchCommunicator(Communicator):
    """The ranks of torch.distributed's process group, which exchange what the host has, by Gloo.

    Also as the host of a `cuda.nccl.NCCLCommunicator`. All ranks make one.

    Parameters
    ----------
    timeout, patience : float
        As in `Communicator`. A rank that is waited for longer is named on standard error, and this
        process ends, with status 1; the launcher ends the others.

    Raises
    ------
    ValueError
        Without a process group.
    """

    def __init__(self, *, timeout: float = 10.0, patience: float = 600.0) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("torch.distributed.init_process_group has to be called before")
        for name, seconds in (("timeout", timeout), ("patience", patience)):
            if not seconds > 0:
                raise ValueError(f"{name} must be a number of seconds > 0, got {seconds!r}")
        self._group = dist.new_group(backend="gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.timeout, self.patience = timeout, patience
        if hasattr(os, "sched_getaffinity"):
            here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self.cores = max(1, len(os.sched_getaffinity(0)) // here)

    def exchange(
        self, outgoing: Messages, incoming: Messages, seconds: float | None = None
    ) -> Exchange:
        works = [
            (rank, work(_bytes(array), rank, group=self._group))
            for work, messages in ((dist.irecv, incoming), (dist.isend, outgoing))
            for rank, array in messages
            if array.size
        ]
        return _TorchExchange(self, works, self.timeout if seconds is None else seconds)

    def abort(self, reason: str) -> NoReturn:
        os._exit(said(self.rank, reason))


def _bytes(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.reshape(-1).view(np.uint8))


class _TorchExchange:
    def __init__(
        self, communicator: TorchCommunicator, works: list[tuple[int, Any]], seconds: float
    ) -> None:
        self._communicator, self._works, self._seconds = communicator, works, seconds

    def wait(self) -> None:
        for rank, work in self._works:
            try:
                work.wait(timedelta(seconds=self._seconds))
            except RuntimeError as error:  # it is late, or its connection is closed
                self._communicator.abort(
                    f"has waited for rank {rank}, which may have died or hang: {error}"
                )
        self._works = []
