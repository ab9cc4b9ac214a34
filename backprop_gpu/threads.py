"""What several threads of a process share: the cores, BLAS's own threads, and what is trained."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_Result = TypeVar("_Result")

#: The ids of what is being trained just now.
_trained: set[int] = set()
_lock = threading.Lock()


@contextmanager
def alone(what: str, *things: object) -> Iterator[None]:
    """Around the training of things, which nothing else may train meanwhile.

    Parameters
    ----------
    what : str
        What they are called, for the error.

    Raises
    ------
    RuntimeError
        At once, if one of them is being trained: by another thread, or by the `fit` whose
        callback asks for this one.
    """
    keys = set(map(id, things))
    with _lock:
        if keys & _trained:
            raise RuntimeError(
                f"this {what} is being trained already, by another thread or by the call whose "
                "callback this is; train a copy.deepcopy of it, or one after the other"
            )
        _trained.update(keys)
    try:
        yield
    finally:
        with _lock:
            _trained.difference_update(keys)


class _OneBlasThread:
    """BLAS held to one thread for as long as anybody asks for it.

    The number is the process's, so the first to ask sets it and the last to leave puts it back.
    Both happen on a thread kept for it, since threadpoolctl heeds but the thread that set a limit
    until that one has lifted it.
    """

    def __init__(self) -> None:
        self._limit = ExitStack()
        self.forget()

    def forget(self) -> None:
        """Nobody holds it: those who did are threads of the process that this was forked from."""
        self._lock = threading.Lock()
        self._held = 0
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._held:
                if self._thread is None:
                    from concurrent.futures import ThreadPoolExecutor

                    self._thread = ThreadPoolExecutor(1, "backprop_gpu-blas")
                self._thread.submit(self._begin).result()
            self._held += 1

    def _begin(self) -> None:
        self._limit.close()  # what was forgotten
        self._limit.enter_context(blas().limit(limits=1, user_api="blas"))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._held = max(0, self._held - 1)
            if not self._held and self._thread is not None:
                self._thread.submit(self._limit.close).result()


#: For products between two epochs: OpenBLAS's other threads would spin for a tenth of a second
#: behind them, on the cores that the resident loop's threads need.
one_blas_thread = _OneBlasThread()


@lru_cache(maxsize=1)
def blas() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def cores() -> int:
    """The CPUs that this thread may use.

    At most NUMBA_NUM_THREADS, which joblib sets in its workers so that they do not all use all of
    them, and what ``threadpoolctl.threadpool_limits`` says around the call. In a task of Dask one,
    if that says nothing: a worker runs a task for each of its threads.
    """
    if "threadpoolctl" in sys.modules:
        _heed_threadpoolctl()
    usable = getattr(os, "sched_getaffinity", None)
    count = len(usable(0)) if usable else os.cpu_count() or 1
    limit = os.environ.get("NUMBA_NUM_THREADS", "")
    if limit.isdecimal():
        count = min(count, int(limit))
    own = getattr(_own, "limit", None)
    if own is None:
        own = 1 if _in_dask_task() else count
    return max(1, min(count, own))


def _in_dask_task() -> bool:
    state = getattr(sys.modules.get("distributed.utils"), "thread_state", None)
    return getattr(state, "key", None) is not None


#: `limit`, of the cores that this thread may use.
_own = threading.local()


def shared_out(work: Callable[[int], _Result], numbers: range) -> list[_Result]:
    """[work(i) for i in numbers], by this thread and as many others as there are `cores`.

    Others take what is left when they have started, so nothing waits for one that has not. An
    exception of theirs is raised here.
    """
    from concurrent.futures import Future

    found: dict[int, Future[_Result]] = {i: Future() for i in numbers}
    left = iter(numbers)
    lock = threading.Lock()

    def take() -> None:
        while True:
            with lock:
                i = next(left, None)
            if i is None:
                return
            try:
                found[i].set_result(work(i))
            except BaseException as error:
                found[i].set_exception(error)
                if not isinstance(error, Exception):
                    raise

    for _ in range(min(cores(), len(numbers)) - 1):
        threading.Thread(target=take, daemon=True).start()
    take()
    return [found[i].result() for i in numbers]


@contextmanager
def at_most(count: int | None) -> Iterator[None]:
    """Within it, this thread may use so many of the `cores`; None: as many as before."""
    if count is None:
        yield
        return
    before = getattr(_own, "limit", None)
    _own.limit = count if before is None else min(count, before)
    try:
        yield
    finally:
        if before is None:
            del _own.limit
        else:
            _own.limit = before


@lru_cache(maxsize=1)
def _heed_threadpoolctl() -> None:
    """Make it known to threadpoolctl how many threads the CPU's library takes."""
    import threadpoolctl

    class CpuLibraryController(threadpoolctl.LibController):
        user_api = internal_api = "backprop_gpu"
        filename_prefixes = ("libbackprop_cpu",)

        def get_num_threads(self) -> int:
            return cores()

        def set_num_threads(self, num_threads: int) -> None:
            _own.limit = num_threads

        def get_version(self) -> None:
            return None

    threadpoolctl.register(CpuLibraryController)


def _after_fork() -> None:
    """The threads that trained, or held a lock, are not there in the child."""
    global _lock
    _lock = threading.Lock()
    _trained.clear()
    one_blas_thread.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
