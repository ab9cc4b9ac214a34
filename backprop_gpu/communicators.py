"""The ranks of one training: processes that train one network together, and what carries arrays
between them.

A communicator needs two methods, `exchange` and `abort`; all else is made of these.
`Communicator` itself is one process alone, `MPICommunicator` is ranks of an MPI job, which exchange
what lies in the memory of the host, and `cuda.nccl.NCCLCommunicator` is ranks with a GPU each.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from .imports import uninterrupted

Found = TypeVar("Found")

#: Of the ranks that are to send an array, or get one, and these: C-contiguous.
Messages = Sequence[tuple[int, Any]]


class Exchange(Protocol):
    """Messages on their way."""

    def wait(self) -> None:
        """Wait until all have arrived: arrays that were sent may change again."""


class Communicator:
    """The ranks of one training; this class is a rank that is alone.

    All ranks call the same methods in the same order. For one thread.

    Attributes
    ----------
    rank, size : int
        This rank's number, from 0, and how many there are.
    cores : int or None
        CPUs that this rank may use, where it shares them with others.
    timeout : float
        Seconds that a rank waits for another in the midst of a step.
    patience : float
        Seconds that a rank waits for another elsewhere: before the first step, and between two
        epochs, where a callback may take long on one of them.
    devices : bool
        Whether `exchange` takes arrays of a CUDA device, too.
    parting : bool
        Whether all ranks have agreed to end what they do `together`, by an exception of each.
    """

    rank: int = 0
    size: int = 1
    cores: int | None = None
    timeout: float = 10.0
    patience: float = 600.0
    #: Whether `exchange` takes arrays of a CUDA device, too.
    devices: bool = False
    #: Whether all ranks have agreed to end what they do `together`, by an exception of each.
    parting: bool = False

    def exchange(
        self, outgoing: Messages, incoming: Messages, seconds: float | None = None
    ) -> Exchange:
        """Start to send arrays to ranks, and to receive others.

        Two ranks have as many messages for each other, in the same order, as the other expects.

        Parameters
        ----------
        outgoing : sequence of (int, array)
            Which rank gets what; C-contiguous arrays, that must not change until all have arrived.
        incoming : sequence of (int, array)
            Which rank's message fills which C-contiguous array.
        seconds : float, optional
            In place of `timeout`. A rank that another has waited for so long ends the job.

        Returns
        -------
        Exchange
            Whose `wait` returns when all have arrived.
        """
        if outgoing or incoming:
            raise ValueError("there is no other rank")
        return _ARRIVED

    def abort(self, reason: str) -> NoReturn:
        """Say why on standard error, and end all ranks at once.

        Parameters
        ----------
        reason : str
            What to say.

        Raises
        ------
        RuntimeError
            Of a rank that is alone, which does not end the process.
        """
        raise RuntimeError(reason)

    # -- what is made of these ------------------------------------------------------------------

    @property
    def others(self) -> list[int]:
        """Numbers of all ranks but this one."""
        return [rank for rank in range(self.size) if rank != self.rank]

    def allgather(self, array: np.ndarray, seconds: float | None = None) -> np.ndarray:
        """Gather the arrays of all ranks, of one shape and dtype.

        Parameters
        ----------
        array : array
            This rank's.
        seconds : float, optional
            In place of `patience`.

        Returns
        -------
        (size, …) array
            The arrays, in the order of the ranks.
        """
        everyone = np.empty((self.size, *array.shape), array.dtype)
        everyone[self.rank] = array
        rows = [everyone[rank : rank + 1] for rank in range(self.size)]
        self.exchange(
            [(rank, rows[self.rank]) for rank in self.others],
            [(rank, rows[rank]) for rank in self.others],
            self.patience if seconds is None else seconds,
        ).wait()
        return everyone

    def broadcast(self, array: np.ndarray, root: int = 0) -> None:
        """Fill the array with that of the root's.

        Parameters
        ----------
        array : array
            Of one shape and dtype on all ranks; C-contiguous.
        root : int
            Whose array all get.
        """
        out = [(rank, array) for rank in self.others] if self.rank == root else []
        self.exchange(out, [] if self.rank == root else [(root, array)], self.patience).wait()

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Tell whether the flag of any rank is set.

        Parameters
        ----------
        flag : bool
            This rank's.

        Returns
        -------
        bool
            The same on all ranks.
        """
        return flag if self.size == 1 else bool(self.allgather(np.array(flag)).any())

    def allgather_text(self, text: str) -> list[str]:
        """Gather the texts of all ranks.

        Parameters
        ----------
        text : str
            This rank's, of any length.

        Returns
        -------
        list of str
            The texts, in the order of the ranks.
        """
        own = np.frombuffer(text.encode(), np.uint8)
        lengths = self.allgather(np.array(len(own)))
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: len(own)] = own
        texts = self.allgather(padded)
        return [row[:length].tobytes().decode() for row, length in zip(texts, lengths, strict=True)]

    def agree(self, check: Callable[[], Found]) -> Found:
        """Return what `check` returns, if it raises nothing on any rank.

        Parameters
        ----------
        check : callable
            Called without arguments, on every rank.

        Returns
        -------
        object
            This rank's result.

        Raises
        ------
        RuntimeError
            With the error of the first other rank that had one. A rank's own is raised as it is.
        """
        if self.size == 1:
            return check()
        try:
            found, problem, text = check(), None, ""
        except Exception as error:
            problem, text = error, f"{type(error).__name__}: {error}"
        texts = self.allgather_text(text)
        if problem is not None:
            raise problem
        for rank, of_rank in enumerate(texts):
            if of_rank:
                raise RuntimeError(f"rank {rank}: {of_rank}")
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """Surround what all ranks do in step: an exception on one of them ends the job.

        Yields
        ------
        None
            Once; a context manager.
        """
        if self.size == 1:
            yield
            return
        self.parting = False
        try:
            yield
        except BaseException as error:
            if self.parting:
                raise
            traceback.print_exc()
            self.abort(f"{type(error).__name__}: {error}")


class _Arrived:
    def wait(self) -> None:
        """There was nothing to wait for."""


_ARRIVED = _Arrived()

#: A rank that is alone.
ALONE = Communicator()


class MPICommunicator(Communicator):
    """Ranks of an MPI job, by mpi4py.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        By default all ranks of the job. All of them have to make this object, since it
        duplicates `comm`: its messages are never mistaken for the user's.
    timeout, patience : float
        As in `Communicator`. A rank that is waited for longer is named on standard error, and the
        job ends, with status 1.
    """

    def __init__(self, comm: Any = None, *, timeout: float = 10.0, patience: float = 600.0) -> None:
        MPI = _mpi()
        if comm is not None and not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be an mpi4py Intracomm, got {comm!r}")
        for name, seconds in (("timeout", timeout), ("patience", patience)):
            if not seconds > 0:
                raise ValueError(f"{name} must be a number of seconds > 0, got {seconds!r}")
        given = MPI.COMM_WORLD if comm is None else comm
        self.rank, self.size = given.Get_rank(), given.Get_size()
        self.timeout, self.patience = timeout, patience
        self._comm, ready = given.Idup()
        looks = Looks(patience)
        while not ready.Test():
            if looks.are_over():
                given.Abort(
                    said(self.rank, f"the other ranks have not called fit for {patience:g} s")
                )
        self.cores = self._cores(MPI)

    def _cores(self, MPI: Any) -> int | None:
        """The CPUs that this process may use, over the ranks that may use just the same."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        usable = sorted(os.sched_getaffinity(0))
        here = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        sharing: int = here.allgather(usable).count(usable)
        here.Free()
        return max(1, len(usable) // sharing)

    def exchange(
        self, outgoing: Messages, incoming: Messages, seconds: float | None = None
    ) -> Exchange:
        requests = [self._comm.Irecv(array, rank) for rank, array in incoming]
        requests += [self._comm.Isend(array, rank) for rank, array in outgoing]
        ranks = [rank for rank, _ in (*incoming, *outgoing)]
        return _MPIExchange(self, requests, ranks, self.timeout if seconds is None else seconds)

    def abort(self, reason: str) -> NoReturn:
        self._comm.Abort(said(self.rank, reason))
        os._exit(1)

    def free(self) -> None:
        """Give the duplicate back, on all ranks."""
        self._comm.Free()


def said(rank: int, reason: str) -> int:
    """The status to end with, once the reason is on standard error."""
    print(f"backprop_gpu: rank {rank}: {reason}", file=sys.stderr, flush=True)
    return 1


class Looks:
    """How often to look whether others have come, and when to look no more."""

    #: A rank looks so often, and then lets others have its core between two looks; a rank that is
    #: slower than this by milliseconds has not much to lose by sleep.
    LOOKS, YIELDS, SLEEP = 500, 5000, 1e-4

    def __init__(self, seconds: float) -> None:
        self._seconds, self._count, self._begin = seconds, 0, 0.0

    def are_over(self) -> bool:
        """Asked between two looks, and perhaps a while after the first."""
        self._count += 1
        if self._count < self.LOOKS:
            return False
        if self._count == self.LOOKS:
            self._begin = time.monotonic()
        time.sleep(0 if self._count < self.YIELDS else self.SLEEP)
        return self._count % 64 == 0 and time.monotonic() - self._begin > self._seconds


class _MPIExchange:
    def __init__(
        self, communicator: MPICommunicator, requests: list[Any], ranks: list[int], seconds: float
    ) -> None:
        self._communicator, self._requests, self._ranks = communicator, requests, ranks
        self._seconds = seconds

    def wait(self) -> None:
        test, requests, looks = _mpi().Request.Testall, self._requests, Looks(self._seconds)
        while not test(requests):
            if looks.are_over():
                self._give_up()

    def _give_up(self) -> None:
        late = sorted(
            {
                rank
                for rank, request in zip(self._ranks, self._requests, strict=True)
                if not request.Test()
            }
        )
        if late:
            names = ", ".join(map(str, late))
            self._communicator.abort(
                f"has waited {self._seconds:g} s for rank {names}, which may have died or hang"
            )


def _mpi() -> Any:
    try:
        with uninterrupted():
            from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            f"training on several ranks needs mpi4py and an MPI library ({error}): install "
            'backprop_gpu[mpi], or give communicator="none" to train on each rank alone'
        ) from error
    return MPI


#: Where launchers of MPI jobs say a process's rank: Open MPI's; MPICH's and Intel's; Slurm's.
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def launched_rank() -> int | None:
    """This process's rank in the MPI job that it is part of, by its environment."""
    found = (os.environ.get(name, "") for name in _RANKS)
    return next((int(rank) for rank in found if rank.isdecimal()), None)


@contextmanager
def resolved(communicator: Any) -> Iterator[Communicator | None]:
    """The communicator that is meant, around its use; None for "none".

    Parameters
    ----------
    communicator : "auto", "none", Communicator or mpi4py.MPI.Intracomm
        "auto" is all ranks of the MPI job that this process is part of, if it is of one.

    Raises
    ------
    ValueError, TypeError
        For anything else.
    ImportError
        In an MPI job without mpi4py.
    """
    own = None
    if isinstance(communicator, str):
        if communicator not in ("auto", "none"):
            raise ValueError(
                f'communicator must be "auto", "none", a Communicator or an mpi4py Intracomm, '
                f"got {communicator!r}"
            )
        if communicator == "auto" and launched_rank() is not None:
            own = MPICommunicator()
    elif isinstance(communicator, Communicator):
        yield communicator
        return
    elif type(communicator).__module__.partition(".")[0] == "mpi4py":
        own = MPICommunicator(communicator)
    else:
        raise TypeError(
            f'communicator must be "auto", "none", a Communicator or an mpi4py Intracomm, '
            f"got {communicator!r}"
        )
    yield own
    if own is not None:  # after an exception the others may be elsewhere
        own.free()
