"""`client=`: workers of a Dask cluster train members to the bits that one process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from backprop_gpu import (
    Checkpoint,
    EarlyStopping,
    MLPClassifier,
    Network,
    Population,
    __version__,
    schedules,
    sweep,
    threads,
)
from backprop_gpu.planning.tasks import TaskSize, WorkerCapacity
from backprop_gpu.training import cluster as cluster_module
from backprop_gpu.training import member_tasks
from backprop_gpu.training.cluster import Cluster, SharedArrays, WorkerMachine, run_task
from machine import obstacle

ROWS = 200
ALL = {"batch_size": 16, "learning_rate": 0.5}


@contextmanager
def three_processes() -> Iterator[LocalCluster]:
    """With a thread each."""
    made = LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    )
    try:
        yield made
    finally:
        # LocalCluster looks for what it does not know, if a worker dies soon after it came; and
        # a worker that is slow to end is killed.
        with suppress(KeyError, TimeoutError):
            made.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with three_processes() as made:
        yield made


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as made:
        yield made


@pytest.fixture
def doomed() -> Iterator[Client]:
    """Of a cluster for this test alone: Dask does not always start anew what was killed."""
    with three_processes() as cluster, Client(cluster) as made:
        yield made


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, 6))
    return X, (X[:, 0] + X[:, 1] > 0).astype(int) + (X[:, 2] > 1)


def flats(networks: Any) -> list[np.ndarray]:
    return [net.model.read(net.parameters) for net in networks]


def alike(one: Any, other: Any) -> None:
    """Networks of the same bits, histories, generators, at the same place."""
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(*flats([a, b]))
        assert a.generator.bit_generator.state == b.generator.bit_generator.state
        for name in ("loss", "val_loss", "val_accuracy", "restored"):
            assert getattr(a.history, name) == getattr(b.history, name)
        assert len(a.history.seconds) == len(a.history)
        assert a.plan.engine == b.plan.engine


def population(members: int = 7, **settings: Any) -> Population:
    return Population([6, 9, 3], members=members, seed=3, backend="numpy", **settings)


# -- the same numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_population_is_that_of_one_process(client: Client, dtype: str) -> None:
    X, y = problem()
    settings: dict[str, Any] = {
        "epochs": [3, 9, 4, 6, 20, 2, 5],
        "batch_size": [16, 8, 16, 50, 16, 16, 200],
        "learning_rate": [0.1, 0.2, 0.5, schedules.StepDecay(1.0, 2), 3.0, 0.5, lambda t: 0.1 + t],
        "optimizer": ["sgd", "adam", "momentum", "sgd", "sgd", "adamw", "nesterov"],
        "validation_data": (X[:50], y[:50]),
        "callbacks": [EarlyStopping(patience=2)],
    }
    settings["learning_rate"][4] = 30.0
    here, there = population(dtype=dtype), population(dtype=dtype)
    here.fit(X, y, **settings)
    histories = there.fit(X, y, **settings, client=client)
    alike(there, here)
    assert [net.history for net in there] == histories
    assert any(net.history.restored is not None for net in there if net.history)
    assert there.plan == replace(here.plan, threads=1)
    assert there.failed == here.failed == {}
    # And both go on alike, from what the workers have left.
    here.fit(X, y, epochs=2, **ALL)
    there.fit(X, y, epochs=2, **ALL, client=client)
    alike(there, here)


def test_a_sweep_is_that_of_one_process(client: Client) -> None:
    X, y = problem()
    arguments: dict[str, Any] = {
        "grid": {
            "sizes": [[6, 5, 3], [6, 9, 3]],
            "learning_rate": [0.1, 1.0, schedules.StepDecay(1.0, 2)],
            "dtype": ["float32", "float64"],
        },
        "seeds": 2, "seed": 5, "epochs": 4, "batch_size": 16, "backend": "numpy",
        "validation_data": (X[:50], y[:50]), "callbacks": [EarlyStopping(patience=2)],
        "progress": False,
    }  # fmt: skip
    here, there = sweep(X, y, **arguments), sweep(X, y, **arguments, client=client)
    alike(there.networks, here.networks)
    assert there.ranking == here.ranking
    assert str(there) == str(here)


@pytest.fixture
def own_threads() -> Iterator[Client]:
    """A worker of three threads in this process."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=3, processes=False, dashboard_address=":0",
            silence_logs=50,
        ) as made,
        Client(made) as client,
    ):  # fmt: skip
        yield client


def test_threads_of_this_process_train_copies(own_threads: Client) -> None:
    X, y = problem()
    here, there = population(4), population(4)
    here.fit(X, y, epochs=3, **ALL)
    there.fit(X, y, epochs=3, **ALL, client=own_threads)
    alike(there, here)


@pytest.mark.parametrize("where", ["client", "own_threads"])
def test_the_layered_engine_is_that_of_one_blas_thread(
    where: str, request: pytest.FixtureRequest
) -> None:
    """Whatever number BLAS has: of 512 rows by 512, two threads round otherwise than one."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((1000, 200)), rng.integers(3, size=1000)
    both = [Population([200, 512, 512, 3], members=2, seed=1, backend="numpy") for _ in range(2)]
    settings: dict[str, Any] = {
        "epochs": 2, "batch_size": 500, "learning_rate": 0.1, "engine": "layered",
    }  # fmt: skip
    with threads.one_blas_thread:
        both[0].fit(X, y, **settings)
    both[1].fit(X, y, **settings, client=request.getfixturevalue(where))
    assert both[0].plan.engine == both[1].plan.engine == "layered"
    alike(both[1], both[0])


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["auto", "resident", "layered"])
def test_a_gpu_trains_a_task_at_a_time(
    own_threads: Client, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle("cuda") is not None:
        pytest.skip(f"backend cuda: {obstacle('cuda')}")
    X, y = problem()
    (machine,) = Cluster(own_threads).workers("auto")
    assert machine.capacity.multiprocessors > 0
    assert machine.kind.startswith("cuda on ")
    # As small as to make several tasks.
    monkeypatch.setattr(member_tasks, "task_size", lambda *_: TaskSize(2, "for a test"))
    at_once, most = [], []
    train = Population.train

    def watched(self: Population, *arguments: Any) -> Any:
        at_once.append(self)
        most.append(len(at_once))
        try:
            return train(self, *arguments)
        finally:
            at_once.remove(self)

    here, there = (Population([6, 9, 3], members=5, seed=3) for _ in range(2))
    settings: dict[str, Any] = {
        "epochs": 2, "engine": engine, "validation_data": (X[:50], y[:50]),
        "batch_size": [16, 8, 16, 16, 8], "learning_rate": 0.5,
    }  # fmt: skip
    here.fit(X, y, **settings)
    monkeypatch.setattr(Population, "train", watched)
    there.fit(X, y, **settings, client=own_threads)
    assert most == [1, 1, 1]
    assert there.backend == "cuda"
    assert there.plan == here.plan
    alike(there, here)


def test_bytes_stay_bytes(client: Client) -> None:
    X, y = problem()
    X = (40 * np.clip(X, 0, 5)).astype(np.uint8)
    here, there = population(3), population(3)
    here.fit(X, y, epochs=2, batch_size=16, learning_rate=0.001)
    there.fit(X, y, epochs=2, batch_size=16, learning_rate=0.001, client=client)
    alike(there, here)


def test_a_plan_is_heeded(client: Client) -> None:
    X, y = problem()
    first, again = population(3), population(3)
    with threads.one_blas_thread:
        first.fit(X, y, epochs=2, **ALL, engine="layered")
    again.fit(X, y, epochs=2, **ALL, plan=first.plan, client=client)
    assert again.plan == first.plan
    alike(again, first)


# -- members that fail, tasks that fail, workers that die ---------------------------------------


def test_a_member_that_fails_does_so_alone(client: Client) -> None:
    X, y = problem()
    settings: dict[str, Any] = {"activation": "identity", "dtype": "float64"}
    rates = [0.01, 1e300, 0.02]
    both = []
    for given in (None, client):
        both.append(population(3, **settings))
        with pytest.warns(RuntimeWarning, match="1 of 3 members stopped early") as warned:
            both[-1].fit(X, y, epochs=3, batch_size=8, learning_rate=rates, client=given)
        assert warned[0].filename == __file__
    assert both[1].failed == both[0].failed
    assert list(both[1].failed) == [1]
    alike(both[1], both[0])
    with pytest.raises(FloatingPointError, match="all 3 members stopped early"):
        population(3, **settings).fit(
            X, y, epochs=3, batch_size=8, learning_rate=1e300, client=client
        )


def test_a_task_that_fails_is_tried_again(client: Client, tmp_path: Path) -> None:
    """To the bits that it would have reached: a try leaves nothing behind."""
    X, y = problem()

    def fails_at_first(network: Network, history: Any) -> None:
        tried = tmp_path / f"{network.parameters.flat.size}"
        if len(history) == 2 and not tried.exists():
            tried.touch()
            raise OSError("a full disk, say")

    here, there = population(2), population(2)
    here.fit(X, y, epochs=4, **ALL)
    there.fit(X, y, epochs=4, **ALL, callbacks=[fails_at_first], client=client)
    assert len(list(tmp_path.iterdir())) == 1
    alike(there, here)


@pytest.mark.parametrize(("kind", "tries"), [(OSError, 3), (ValueError, 1)])
def test_an_error_that_comes_again_leaves_all_as_it_was(
    client: Client, tmp_path: Path, kind: type[Exception], tries: int
) -> None:
    X, y = problem()
    there = population(4)
    there.fit(X, y, epochs=1, **ALL)
    before, histories, plan = flats(there), [net.history for net in there], there.plan

    def fails(network: Network, history: Any) -> None:
        if np.array_equal(network.generator.bit_generator.state["state"]["state"], state):
            (tmp_path / f"{time.time_ns()}").touch()
            raise kind("as ever")

    one = population(4)
    one.fit(X, y, epochs=2, **ALL)
    state = one.members[2].generator.bit_generator.state["state"]["state"]
    with pytest.raises(kind, match="as ever"):
        there.fit(X, y, epochs=3, **ALL, callbacks=[fails], client=client)
    assert len(list(tmp_path.iterdir())) == tries
    for now, then in zip(flats(there), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert [net.history for net in there] == histories
    assert there.plan is plan
    there.fit(X, y, epochs=1, **ALL)  # and as if it had never been tried
    for now, then in zip(flats(there), flats(one), strict=True):
        np.testing.assert_array_equal(now, then)


def slowly(seconds: float, folder: Path) -> Callable[[Network, Any], None]:
    """A callback that takes time, and leaves the number of its process."""

    def wait(network: Network, history: Any) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(seconds)

    return wait


@contextmanager
def killing(condition: Callable[[], list[int]]) -> Iterator[None]:
    """Kill the processes that are told, once there are any: before the block is over."""
    over = threading.Event()
    killed: list[int] = []

    def watch() -> None:
        while not killed and not over.wait(0.02):
            for pid in condition():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert killed, "no worker was killed"


def at_work(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def test_a_worker_that_dies_loses_nothing_but_time(doomed: Client, tmp_path: Path) -> None:
    X, y = problem()
    here, there = population(9), population(9)
    here.fit(X, y, epochs=3, **ALL)
    with killing(lambda: at_work(tmp_path)[:1]):
        there.fit(X, y, epochs=3, **ALL, callbacks=[slowly(0.1, tmp_path)], client=doomed)
    alike(there, here)


def test_data_that_die_with_all_workers_are_sent_again(doomed: Client, tmp_path: Path) -> None:
    X, y = problem()
    workers = list(doomed.run(os.getpid).values())
    here, there = population(6), population(6)
    here.fit(X, y, epochs=3, **ALL)
    with killing(lambda: workers if at_work(tmp_path) else []):
        there.fit(X, y, epochs=3, **ALL, callbacks=[slowly(0.1, tmp_path)], client=doomed)
    alike(there, here)


def test_data_that_die_every_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = problem()
    there = population(2)
    before = flats(there)
    monkeypatch.setattr(cluster_module, "LOSSES", 0)
    submit = Client.submit

    def lost(self: Client, *arguments: Any, **named: Any) -> Any:
        future = submit(self, *arguments, **named)
        self.cancel([future])
        return future

    monkeypatch.setattr(Client, "submit", lost)
    with pytest.raises(RuntimeError, match="the cluster has lost its data 1 times"):
        there.fit(X, y, epochs=1, **ALL, client=client)
    for now, then in zip(flats(there), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_workers_that_do_not_come_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: Client, *arguments: Any, **named: Any) -> None:
        raise OSError("a worker has died")

    monkeypatch.setattr(Client, "scatter", dies)
    monkeypatch.setattr(cluster_module, "LOSSES", 1)
    refused(RuntimeError, "the cluster has lost its data 2 times", client)
    machine = WorkerMachine(__version__, WorkerCapacity(1), "a CPU")
    monkeypatch.setattr(Client, "run", lambda *_, **named: {"tcp://a": machine})
    monkeypatch.setattr(Client, "nthreads", lambda self: {})
    monkeypatch.setattr(cluster_module, "PATIENCE", 0.3)
    refused(RuntimeError, r"no worker to send them to, after 0.3 s \(client running\)", client)


def test_what_is_there_is_not_trained_again(doomed: Client, tmp_path: Path) -> None:
    """Where a worker dies that has trained what has been received."""
    X, y = problem()
    here, there = population(3), population(3)
    here.fit(X, y, epochs=[1, 1, 40], **ALL)

    def wait(network: Network, history: Any) -> None:
        with open(tmp_path / str(os.getpid()), "a", encoding="utf-8") as file:
            file.write("x")
        if len(history) > 1:
            time.sleep(0.05)

    def two_are_over() -> list[int]:
        """Those that did an epoch, once another is in the midst of forty."""
        found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        if max(found.values(), default=0) < 10:
            return []
        return [int(name) for name, size in found.items() if size < 10]

    with killing(two_are_over):
        there.fit(X, y, epochs=[1, 1, 40], **ALL, callbacks=[wait], client=doomed)
    alike(there, here)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 42


def test_a_task_that_kills_its_workers(doomed: Client) -> None:
    X, y = problem()
    there = population(2)
    before = flats(there)
    with pytest.raises(RuntimeError, match=r"a task is given up, since each worker|has lost its"):
        there.fit(X, y, epochs=1, **ALL, callbacks=[lambda *_: os._exit(1)], client=doomed)
    for now, then in zip(flats(there), before, strict=True):
        np.testing.assert_array_equal(now, then)


INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np
from distributed import Client
from backprop_gpu import Population

def main(address, mark):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 6))
    population = Population([6, 9, 3], members=6, seed=3, backend="numpy")
    before = [net.model.read(net.parameters) for net in population]

    def wait(network, history):
        open(mark, "a").write("x")
        time.sleep(0.2)

    def interrupt():
        while not os.path.exists(mark):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with Client(address) as client:
        threading.Thread(target=interrupt).start()
        try:
            population.fit(
                X, X[:, :3], epochs=1000, batch_size=10, learning_rate=0.1, callbacks=[wait],
                client=client,
            )
        except KeyboardInterrupt as error:
            kept = error  # as a shell keeps it, and so the futures
            after = [net.model.read(net.parameters) for net in population]
            time.sleep(2)
            size = os.path.getsize(mark)
            time.sleep(1)
            same = all(map(np.array_equal, before, after))
            print("same", same, "still", os.path.getsize(mark) == size)

main(*sys.argv[1:])
"""


def test_ctrl_c_ends_the_workers_tasks(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, cluster.scheduler_address, str(mark)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "same True still True\n", done.stderr


# -- what is sent, and shown ------------------------------------------------------------------


def test_data_are_scattered_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = problem()
    scattered = []
    scatter = Client.scatter

    def counted(self: Client, data: Any, **named: Any) -> Any:
        scattered.extend(data)
        assert named["broadcast"] is True
        return scatter(self, data, **named)

    monkeypatch.setattr(Client, "scatter", counted)
    sweep(
        X, y, grid={"sizes": [[6, 5, 3], [6, 9, 3], [6, 3]], "learning_rate": [0.1, 0.2, 0.3]},
        epochs=1, batch_size=16, backend="numpy", progress=False, client=client,
        validation_data=(X, y),
    )  # fmt: skip
    # X is its own validation data, and so is Y.
    assert [array.shape for array in scattered] == [(ROWS, 6), (ROWS, 3)]


def test_equal_arrays_are_one() -> None:
    shared = SharedArrays()
    ones = np.ones((4, 2))
    others = [np.ones((2, 4)), np.ones((4, 2), "f"), np.zeros((4, 2)), np.ones((2, 4)).T]
    assert [shared.add(array) for array in (ones, ones.copy(), *others)] == [0, 0, 1, 2, 3, 0]
    assert len(shared.arrays) == 4


def test_a_task_reads_arrays_that_begin_anywhere() -> None:
    """As they do that come off a wire. The compiled library reads numbers where they may lie."""
    odd = np.zeros(81, np.uint8)[1:].view(np.float64)
    assert not odd.flags.aligned
    function = lambda *arrays: [array.flags.aligned for array in arrays]  # noqa: E731
    assert run_task(function, (), odd) == [True]
    even = np.zeros(8)
    assert run_task(lambda array: array is even, (), even) is True


def test_what_a_task_trains_is_a_copy() -> None:
    """A second try finds what the first did."""
    X, y = problem()
    one = population(3)
    before = flats(one)
    other = Population.of_share(one.model.here(), *one.share(range(3)))
    other.fit(X, y, epochs=2, **ALL)
    for now, then in zip(flats(one), before, strict=True):
        np.testing.assert_array_equal(now, then)
    one.fit(X, y, epochs=2, **ALL)
    alike(one, other)


def test_progress(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    X, y = problem()
    population(5).fit(X, y, epochs=4, **ALL, progress=True, client=client)
    err = capsys.readouterr().err
    assert "tasks on 3 workers: 100%" in err
    assert "20/20" in err
    assert "best loss=" in err
    # What early stopping leaves out is no part of the whole.
    stop = EarlyStopping(patience=1, monitor="loss")
    population(2).fit(
        X, y, epochs=40, batch_size=16, learning_rate=0.0, callbacks=[stop], progress=True,
        client=client,
    )  # fmt: skip
    assert "100%" in (err := capsys.readouterr().err)
    assert "4/4" in err


def test_a_task_has_its_share_of_the_cores(client: Client, tmp_path: Path) -> None:
    X, y = problem()

    def note(network: Network, history: Any) -> None:
        from backprop_gpu.threads import cores

        (tmp_path / str(cores())).touch()

    population(3).fit(X, y, epochs=1, **ALL, callbacks=[note], client=client)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_the_cores_of_a_task(own_threads: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Dask's own tasks each has one, of ours what we say."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_own", threading.local())  # what threadpoolctl put back

    def within(count: int) -> int:
        with threads.at_most(count), threads.at_most(5):
            return threads.cores()

    assert own_threads.submit(threads.cores, pure=False).result() == 1
    assert own_threads.submit(within, 3).result() == 3
    assert own_threads.submit(within, 6).result() == 5
    assert own_threads.submit(within, 9).result() == 5
    assert threads.cores() == 8
    (machine,) = Cluster(own_threads).workers("numpy")
    assert machine.capacity == WorkerCapacity(3)  # of three threads
    X, y = problem()
    one = population(1)
    one.fit(X, y, epochs=1, **ALL, client=own_threads)
    assert one.plan.threads == 3  # there is but one task


# -- bad arguments ----------------------------------------------------------------------------


def refused(kind: type[Exception], match: str, client: Any, **arguments: Any) -> None:
    X, y = problem()
    one = population(3)
    before, plan = flats(one), one.plan
    with pytest.raises(kind, match=match):
        one.fit(X, y, **({"epochs": 2} | ALL | arguments), client=client)
    for now, then in zip(flats(one), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert one.plan is plan
    assert all(net.history is None for net in one)


def test_what_is_no_client() -> None:
    refused(TypeError, r"^client must be a distributed.Client, got 'tcp://…'", "tcp://…")
    X, y = problem()
    with pytest.raises(TypeError, match=r"^client must be a distributed.Client"):
        sweep(X, y, settings=[{}], sizes=[6, 3], epochs=1, **ALL, client=3)


def test_a_client_that_is_closed(cluster: LocalCluster) -> None:
    closed = Client(cluster)
    closed.close()
    refused(ValueError, "^client is closed", closed)


def test_a_client_that_is_asynchronous() -> None:
    import asyncio

    async def asks() -> None:
        async with (
            LocalCluster(
                n_workers=0, processes=False, asynchronous=True, dashboard_address=":0"
            ) as own,
            Client(own, asynchronous=True) as asynchronous,
        ):
            refused(ValueError, "^client must not be asynchronous", asynchronous)

    asyncio.run(asks())


def test_a_client_without_workers() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0", silence_logs=50) as own,
        Client(own) as alone,
    ):
        refused(ValueError, "^client has no workers", alone)


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused(
        ImportError,
        r"^client: the package distributed is not installed.*backprop_gpu\[dask\]",
        object(),
    )


def test_what_has_no_place_on_a_worker(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    refused(
        ValueError, "with a client there is no Checkpoint", client, callbacks=[Checkpoint(path)]
    )
    refused(ValueError, "^resume_from and client exclude", client, resume_from=path)
    lock = threading.Lock()
    refused(
        TypeError, "^callbacks cannot be sent", client, callbacks=[lambda net, h: lock.locked()]
    )
    rate = lambda t: 0.1 * t + lock.locked()  # noqa: E731
    refused(TypeError, "^learning_rate, .* cannot be sent", client, learning_rate=rate)
    refused(ValueError, "unknown engine 'fast'", client, engine="fast")
    refused(ValueError, "no engine 'fused'", client, engine="fused")
    if obstacle("cuda") is not None:  # what a worker has may be another; each says it
        one = Population([6, 9, 3], members=2)
        with pytest.raises(ValueError, match="no engine 'fused'"):
            one.fit(*problem(), epochs=1, **ALL, engine="fused", client=client)
        assert all(net.history is None for net in one)
    X, y = problem()
    one = population(2)
    one.members[1].generator = one.members[0].generator
    with pytest.raises(ValueError, match="members share a generator"):
        one.fit(X, y, epochs=1, **ALL, client=client)


def test_an_error_names_the_setting(client: Client) -> None:
    X, y = problem()
    with pytest.raises(ValueError, match=r"setting 1 \(engine|setting 0 .*no engine 'fused'"):
        sweep(
            X, y, settings=[{}], sizes=[6, 3], epochs=1, **ALL, backend="numpy", engine="fused",
            client=client,
        )  # fmt: skip


def test_workers_of_two_kinds(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = problem()
    run = Client.run

    def pretended(self: Client, *arguments: Any, **named: Any) -> Any:
        found = run(self, *arguments, **named)
        for i, machine in enumerate(found.values()):
            object.__setattr__(machine, "kind", f"kind {i % 2}")
        return found

    monkeypatch.setattr(Client, "run", pretended)
    with pytest.warns(RuntimeWarning, match="^workers train on kind 0 and on kind 1") as warned:
        population(2).fit(X, y, epochs=1, **ALL, client=client)
    assert warned[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="^workers train on kind 0 and on kind 1") as warned:
        sweep(X, y, settings=[{}], sizes=[6, 3], epochs=1, **ALL, client=client, backend="numpy")
    assert warned[0].filename == __file__


def test_workers_that_cannot(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {}
    run = Client.run

    def pretended(self: Client, *arguments: Any, **named: Any) -> Any:
        found = run(self, *arguments, **named)
        for machine in found.values():
            vars(machine).update(changes)
        return found

    monkeypatch.setattr(Client, "run", pretended)
    changes = {"version": "0.0.1"}
    refused(RuntimeError, r"^worker tcp://.* has backprop_gpu 0\.0\.1", client)
    changes = {"obstacle": "backend 'cuda' is not usable there: no CUDA device"}
    refused(RuntimeError, r"^worker tcp://.*: backend 'cuda' is not usable there", client)
    monkeypatch.setattr(
        Client, "run", lambda self, *_, **named: {"tcp://a": ModuleNotFoundError("backprop_gpu")}
    )
    refused(RuntimeError, "^worker tcp://a does not know backprop_gpu", client)


# -- scikit-learn's own searches ---------------------------------------------------------------


def test_a_grid_search_over_dask_is_the_serial_one(client: Client) -> None:
    import joblib
    from sklearn.model_selection import GridSearchCV

    X, y = problem()
    grid = {"alpha": [1e-5, 1e-1], "hidden_layer_sizes": [(5,), (7, 4)]}

    def search() -> Any:
        found = GridSearchCV(MLPClassifier(max_iter=8, random_state=0), grid, cv=3)
        return found.fit(X.astype(np.float32), y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eight iterations do not converge
        serial = search()
        with joblib.parallel_config(backend="dask", client=client):
            spread = search()
    assert spread.best_params_ == serial.best_params_
    for name, values in serial.cv_results_.items():
        if "time" not in name:
            np.testing.assert_array_equal(spread.cv_results_[name], values, err_msg=name)
    for one, other in zip(
        spread.best_estimator_.coefs_, serial.best_estimator_.coefs_, strict=True
    ):
        np.testing.assert_array_equal(one, other)
