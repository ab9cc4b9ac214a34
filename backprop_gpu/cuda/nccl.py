"""Ranks whose GPUs exchange gradients themselves, by NCCL.

nccl4py is imported where one is made, and nowhere else. On several GPUs this has never run.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from ..communicators import Communicator, Exchange, Looks, Messages, MPICommunicator
from ..imports import uninterrupted
from . import runtime


class NCCLCommunicator(Communicator):
    """Ranks with a GPU each: what lies on devices goes by NCCL, all else as `host` carries it.

    A rank's GPU is the current one of its thread. Where a launcher does not give each rank its own,
    CUDA_VISIBLE_DEVICES does.

    Parameters
    ----------
    host : Communicator, optional
        Of the same ranks, by default all of the MPI job. By it they find each other, too.

    Raises
    ------
    ImportError
        Naming what to install.
    """

    devices = True

    def __init__(self, host: Communicator | None = None) -> None:
        self._nccl = _nccl()
        self.host = MPICommunicator() if host is None else host
        self.rank, self.size, self.cores = self.host.rank, self.host.size, self.host.cores
        self.timeout, self.patience = self.host.timeout, self.host.patience
        self._joined: Any = None

    def exchange(
        self, outgoing: Messages, incoming: Messages, seconds: float | None = None
    ) -> Exchange:
        both = [array for _, array in (*outgoing, *incoming)]
        if not both or isinstance(both[0], np.ndarray):
            return self.host.exchange(outgoing, incoming, seconds)
        stream = runtime.current().stream
        joined = self._join()
        with self._nccl.group():  # or two ranks that send first would wait for each other
            for rank, array in outgoing:
                if array.size:
                    joined.send(array, rank, stream=stream)
            for rank, array in incoming:
                if array.size:
                    joined.recv(array, rank, stream=stream)
        wanted = self.timeout if seconds is None else seconds
        return _NCCLExchange(self, stream.record(), wanted)

    def abort(self, reason: str) -> NoReturn:
        self.host.abort(reason)

    def _join(self) -> Any:
        """NCCL's own communicator of these ranks; all make it at the same time."""
        if self._joined is None:
            runtime.current().use()
            size = len(bytes(self._nccl.get_unique_id(empty=True)))
            text = np.zeros(size, np.uint8)
            if self.rank == 0:
                text[:] = np.frombuffer(bytes(self._nccl.get_unique_id()), np.uint8)
            self.host.broadcast(text)
            unique = self._nccl.UniqueId.from_bytes(text.tobytes())
            self._joined = self._nccl.Communicator.init(self.size, self.rank, unique)
        return self._joined


class _NCCLExchange:
    """Queued on the stream, so what is queued behind it finds the arrays there."""

    def __init__(self, communicator: NCCLCommunicator, event: Any, seconds: float) -> None:
        self._communicator, self._event, self._seconds = communicator, event, seconds

    def wait(self) -> None:
        looks = Looks(self._seconds)
        while not self._event.is_done:
            if looks.are_over():
                self._communicator.abort(
                    f"has waited {self._seconds:g} s for gradients of other ranks' GPUs, one of "
                    "which may have died or hang"
                )


def _nccl() -> Any:
    try:
        with uninterrupted():
            import nccl.core as found
    except ImportError as error:
        raise ImportError(
            f"NCCLCommunicator needs nccl4py ({error}): install backprop_gpu[nccl]"
        ) from error
    return found
