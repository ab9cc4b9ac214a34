"""Tasks on the workers of a Dask cluster: data scattered once, results as they come.

Dask is imported where a client is given, and nowhere else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from .. import backends, cpu, threads
from ..imports import optional
from ..planning.tasks import WorkerCapacity
from ..version import __version__
from .callbacks import Callback
from .checkpoint import Checkpoint
from .delta_norms import DeltaNorms
from .progress import Progress

#: How often a task that raised is tried again.
RETRIES = 2
#: How often data are scattered again that have died with the last worker that held them.
LOSSES = 3
#: Seconds to wait for a worker to come back then.
PATIENCE = 120


@dataclass(frozen=True)
class WorkerMachine:
    """What a worker says of itself."""

    version: str
    capacity: WorkerCapacity
    #: What it trains on, as far as its bits may differ from another's.
    kind: str
    #: Why it cannot train.
    obstacle: str | None = None


def describe(backend: str, dask_worker: Any = None) -> WorkerMachine:
    """Of the worker that this runs on, for networks that asked for a backend.

    Dask gives it the worker.
    """
    obstacles = backends.Obstacles()
    name = backend
    if backend == "auto":
        name = "cuda" if obstacles["cuda"] is None else "numpy"
    cores = min(dask_worker.state.nthreads, threads.cores())
    obstacle = obstacles[name]
    if obstacle is not None:
        why = f"backend {name!r} is not usable there: {obstacle}"
        return WorkerMachine(__version__, WorkerCapacity(cores), name, why)
    if name == "cuda":
        from ..cuda import runtime

        device = runtime.current().device
        capacity = WorkerCapacity(cores, device.multiprocessors)
        return WorkerMachine(__version__, capacity, f"cuda on {device.name}")
    kind = name
    if name == "numpy":
        try:
            fused = "with" if cpu.library().fma else "without"
            kind = f"a CPU {fused} fused multiply-add"
        except cpu.NoLibraryError:
            kind = "a CPU without the compiled library"
    return WorkerMachine(__version__, WorkerCapacity(cores), kind)


class ClusterTask(NamedTuple):
    """A call of ``function(*arguments, *arrays)`` on a worker."""

    arguments: tuple[Any, ...]
    #: Places in `SharedArrays`.
    arrays: tuple[int, ...]


class SharedArrays:
    """The arrays that tasks read, each once, however many tasks and shapes of network read it."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self._places: dict[Any, int] = {}

    def add(self, array: np.ndarray) -> int:
        """The place of this array, or of one like it."""
        array = np.ascontiguousarray(array)
        content = blake2b(array.view(np.uint8).data).digest()
        key = array.shape, array.dtype.str, content
        if key not in self._places:
            self._places[key] = len(self.arrays)
            self.arrays.append(array)
        return self._places[key]


class Cluster:
    """The workers behind a client.

    Parameters
    ----------
    client : distributed.Client
        Connected, and not asynchronous.

    Raises
    ------
    ImportError, TypeError, ValueError
        Naming the argument ``client``.
    """

    def __init__(self, client: Any) -> None:
        distributed = optional("distributed", "dask", "client")
        if not isinstance(client, distributed.Client):
            raise TypeError(f"client must be a distributed.Client, got {client!r}")
        if client.asynchronous:
            raise ValueError(
                "client must not be asynchronous: fit and sweep return when all is done"
            )
        if client.status != "running":
            raise ValueError(f"client is {client.status}: it must be connected to a scheduler")
        self.client = client

    def check_hooks(self, hooks: Sequence[Callback]) -> None:
        """Refuse callbacks that cannot do their work on a worker.

        Raises
        ------
        ValueError, TypeError
        """
        if any(isinstance(hook, Checkpoint) for hook in hooks):
            raise ValueError(
                "with a client there is no Checkpoint: what a worker that dies had trained is "
                "trained again"
            )
        if any(isinstance(hook, DeltaNorms) for hook in hooks):
            raise ValueError(
                "with a client there is no DeltaNorms: what it records would stay on the workers"
            )
        for hook in hooks:
            if hook.keeps_log:
                raise ValueError(
                    f"{type(hook).__name__} keeps its log in this process, and with a client "
                    "networks train in others: log their histories when `fit` or `sweep` is over"
                )
        self.check_sent("callbacks", list(hooks))

    def check_sent(self, name: str, value: Any) -> None:
        """Refuse what no worker could be sent."""
        from distributed.protocol import pickle

        try:
            pickle.dumps(value)
        except Exception as error:  # whatever an object's own methods raise
            raise TypeError(f"{name} cannot be sent to a worker: {error}") from error

    def workers(self, backend: str) -> list[WorkerMachine]:
        """The workers that there are, for networks that asked for a backend.

        Raises
        ------
        ValueError
            If there is none.
        RuntimeError
            If one cannot train them, naming it.
        """
        found = []
        for address, machine in self.client.run(describe, backend, on_error="return").items():
            if isinstance(machine, OSError) and address not in self.client.nthreads():
                continue  # it has died just now
            if not isinstance(machine, WorkerMachine):
                raise RuntimeError(
                    f"worker {address} does not know backprop_gpu {__version__}: "
                    f"{type(machine).__name__}: {machine}"
                )
            if machine.version != __version__:
                raise RuntimeError(
                    f"worker {address} has backprop_gpu {machine.version}, this is {__version__}"
                )
            if machine.obstacle is not None:
                raise RuntimeError(f"worker {address}: {machine.obstacle}")
            found.append(machine)
        if not found:
            raise ValueError("client has no workers; client.wait_for_workers(1) waits for one")
        return found

    def results(
        self, function: Callable[..., Any], tasks: Sequence[ClusterTask], shared: SharedArrays
    ) -> Generator[tuple[int, Any], None, None]:
        """(number of the task, what it returned), in the order in which they end.

        If it is left early, what is still to be done is cancelled.

        Raises
        ------
        RuntimeError
            If workers died, again and again, with a task or with all the data.
        Exception
            What a task has raised, at every try; ValueError and TypeError at the first, since they
            would come again.
        """
        open_tasks = dict(enumerate(tasks))
        for _ in range(LOSSES + 1):
            yield from self._attempt(function, open_tasks, shared)
            if not open_tasks:
                return
            self._wait_for_workers()
        raise RuntimeError(
            f"the cluster has lost its data {LOSSES + 1} times: all workers that held them died"
        )

    def _wait_for_workers(self) -> None:
        """Until the scheduler has one: what LocalCluster knows of its workers may be old."""
        last = time.monotonic() + PATIENCE
        while self.client.status == "running" and time.monotonic() < last:
            if self.client.nthreads():
                return
            time.sleep(0.1)
        raise RuntimeError(
            f"the cluster has lost its data, and there is no worker to send them to, after "
            f"{PATIENCE} s (client {self.client.status})"
        )

    def _attempt(
        self,
        function: Callable[..., Any],
        open_tasks: dict[int, ClusterTask],
        shared: SharedArrays,
    ) -> Generator[tuple[int, Any], None, None]:
        """As `results`, until all are done or data have been lost; removes what is done."""
        import dask
        from distributed import KilledWorker, as_completed

        # What has been received is forgotten at once: a worker that dies with it costs nothing.
        futures: dict[Any, int] = {}
        try:
            try:
                # No names by content: to scatter what has just been released under its old name
                # is a race.
                data = self.client.scatter(shared.arrays, broadcast=True, hash=False)
            except OSError:  # of a worker that dies just now
                return
            # A task has its members' weights with it, and can so be run anywhere, again.
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
                for i, task in open_tasks.items():
                    arrays = [data[place] for place in task.arrays]
                    future = self.client.submit(
                        run_task, function, task.arguments, *arrays, pure=False, retries=RETRIES
                    )
                    futures[future] = i
            for future in as_completed(list(futures)):
                i = futures.pop(future)
                if future.status in ("cancelled", "lost"):
                    continue
                try:
                    result = future.result()
                except CancelledError:  # lost just now
                    continue
                except KilledWorker as error:
                    raise RuntimeError(
                        f"a task is given up, since each worker that had it died, perhaps for want "
                        f"of memory: {error}"
                    ) from error
                if isinstance(result, Refusal):
                    raise result.error
                del open_tasks[i], future
                yield i, result
        finally:
            if futures and self.client.status == "running":
                self.client.cancel(list(futures))


@dataclass(frozen=True)
class Refusal:
    """What would be raised again however often it is tried."""

    error: Exception


def run_task(function: Callable[..., Any], arguments: tuple[Any, ...], *arrays: np.ndarray) -> Any:
    """On a worker: what the function returns, or a `Refusal`."""
    # What comes off a wire may begin anywhere; the tasks of a worker share what it gave them.
    aligned = [np.require(array, requirements=["C", "A"]) for array in arrays]
    try:
        return function(*arguments, *aligned)
    except (ValueError, TypeError) as error:
        error.__traceback__ = None  # its frames' arrays would be sent, too
        return Refusal(error)


# -- on a worker ----------------------------------------------------------------------------------

#: A GPU trains one task at a time, whatever number of threads its worker has.
_device = threading.Lock()


@contextmanager
def place_of_task(cores: int, on_device: bool) -> Iterator[Progress]:
    """Around a training on a worker: its share of the machine, and a `Progress` to give to it."""
    watch = TaskWatch()
    with ExitStack() as stack:
        if on_device:
            stack.enter_context(_device)
            cores = watch.threads
        else:
            # BLAS has one number of threads for the process, and its bits depend on it.
            stack.enter_context(threads.one_blas_thread)
        stack.enter_context(threads.at_most(cores))
        yield watch


class TaskWatch(Progress):
    """Ends a training whose task has been cancelled."""

    def __init__(self) -> None:
        from distributed import get_worker

        self._worker: Any = get_worker()
        self._key = self._worker.get_current_task()
        #: Of its worker.
        self.threads: int = self._worker.state.nthreads

    def epoch_is_over(self, ran: Sequence[Any]) -> None:
        task = self._worker.state.tasks.get(self._key)
        if task is None or task.state == "cancelled":
            raise CancelledError(f"task {self._key} has been cancelled")
