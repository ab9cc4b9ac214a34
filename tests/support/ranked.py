"""Trainings on the ranks of an MPI job, for the tests; and ranks that are killed at random moments.

    python tests/support/ranked.py KILLS FOLDER

starts as many jobs of 2 to 4 ranks, kills one rank of each and prints how long the others went on.
Now and then the last checkpoint is resumed, on another number of ranks, and its end compared with
that of a job that nobody kills.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from backprop_gpu import SGD, Adam, AdamW, Callback, Checkpoint, EarlyStopping, Network
from backprop_gpu.communicators import Communicator, MPICommunicator

OPTIMIZERS = {
    "sgd": SGD(),
    "sgd, all options": SGD(clip_norm=0.1, clip_value=0.02, l1=1e-4, l2=0.01, max_norm=0.9),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True, l2=0.01),
    "adam": Adam(clip_value=0.01),
    "adamw": AdamW(clip_norm=0.2),
}


def mpirun() -> str | None:
    """Where this environment's, or the system's, is."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def start(ranks: int, *arguments: Any, program: tuple[str, ...] = (__file__,)) -> Any:
    """An MPI job of this program, or another; its processes are a group of their own."""
    may = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # One job must not be part of another, nor a rank take all cores for its BLAS.
    keeps = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_"))}
    return subprocess.Popen(
        [
            mpirun(), "--oversubscribe", "--bind-to", "none", "-n", str(ranks),
            sys.executable, *program, *map(str, arguments),
        ],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=keeps | may | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(job: Any, seconds: float = 120) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a job; all its processes are gone."""
    try:
        out, err = job.communicate(timeout=seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, out, err


def run(ranks: int, *arguments: Any) -> str:
    """What a job that ends well prints."""
    status, out, err = finish(start(ranks, *arguments))
    assert status == 0, f"status {status}: {err}"
    return out


# -- what a rank does -------------------------------------------------------------------------


def rows(n: int = 203, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 21)).astype(dtype), rng.integers(0, 5, n)


def network(dtype: str = "float32", seed: int | None = 1, **settings: Any) -> Network:
    return Network(
        [21, 19, 33, 5], activation=["tanh", "relu", "softmax"], cost="categorical_cross_entropy",
        dtype=dtype, seed=seed, backend="numpy", **settings,
    )  # fmt: skip


def digest(net: Network) -> str:
    """Of all that a training leaves."""
    assert net.history is not None
    text = repr((net.history.loss, net.history.val_loss, net.generator.bit_generator.state))
    flat = net.model.read(net.parameters).tobytes()
    return hashlib.sha256(flat + text.encode()).hexdigest()[:16]


def bits(engine: str) -> None:
    """Train with every optimizer, in both dtypes, on batches that shards do not divide evenly."""
    ranks = MPICommunicator()
    for dtype in ("float32", "float64"):
        X, Y = rows(dtype=dtype)
        for name, optimizer in OPTIMIZERS.items():
            for batch_size in (16, 50):
                net = network(dtype)
                net.fit(
                    X, Y, epochs=3, batch_size=batch_size, learning_rate=0.05, optimizer=optimizer,
                    engine=engine, validation_data=(X[:50], Y[:50]),
                )  # fmt: skip
                found = ranks.allgather_text(digest(net))
                assert len(set(found)) == 1, (name, dtype, batch_size, found)
                if ranks.rank == 0:
                    print(name, dtype, batch_size, found[0])


def train(path: str, epochs: int = 300) -> None:
    """A training with a checkpoint, from it if it is there; says who the ranks are, and its end."""
    ranks = MPICommunicator(timeout=3)
    pids = ranks.allgather(np.array(os.getpid()))
    if ranks.rank == 0:
        print("pids", *pids, flush=True)
    X, Y = rows()
    net = network()
    net.fit(
        X, Y, epochs=epochs, batch_size=16, learning_rate=0.05, optimizer="adam",
        validation_data=(X, Y), callbacks=[EarlyStopping(patience=200), Checkpoint(path)],
        resume_from=path if Path(path).exists() else None, communicator=ranks,
    )  # fmt: skip
    if ranks.rank == 0:
        print("end", digest(net), flush=True)


def hang(path: str) -> None:
    """The last rank stops in its third epoch, where a debugger, or the system, might stop it."""
    ranks = MPICommunicator(timeout=3)
    X, Y = rows()

    def step(network: Network, batch: int) -> None:
        assert network.history is not None
        if ranks.rank == ranks.size - 1 and len(network.history) == 2 and batch == 4:
            os.kill(os.getpid(), signal.SIGSTOP)

    class Stops(Callback):
        def on_batch_end(self, network: Any, batch: int) -> None:
            step(network, batch)

    network().fit(
        X, Y, epochs=9, batch_size=16, learning_rate=0.05, callbacks=[Stops(), Checkpoint(path)],
        communicator=ranks,
    )  # fmt: skip


def communicators(kind: str) -> None:
    """Ranks of all the job, of a part of it, and of a user's own kind."""
    from mpi4py import MPI

    X, Y = rows()
    world = MPI.COMM_WORLD
    expected, net = network(), network()
    settings: Any = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05}
    expected.fit(X, Y, **settings, communicator=Communicator())
    given: Any = world
    if kind == "part":
        given = world.Split(world.rank == 0, -world.rank)
    elif kind == "mine":
        given = MPICommunicator(world, patience=20)
    net.fit(X, Y, **settings, communicator=given)
    net2 = network()
    net2.fit(X, Y, **settings, communicator=given)  # once more, on the same
    assert digest(net) == digest(net2) == digest(expected)
    alone = network()
    if world.rank == 0:
        alone.fit(X, Y, **settings, communicator="none")
        assert digest(alone) != digest(net)
        print("ok")


def alone() -> None:
    """Rank 0 alone calls fit, as a script may that was not meant for ranks."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        MPICommunicator(patience=2)
    else:
        time.sleep(60)


def raises() -> None:
    X, Y = rows()

    class Fails(Callback):
        def on_epoch_end(self, network: Any, history: Any) -> None:
            rank = os.environ["OMPI_COMM_WORLD_RANK"]
            if rank == "1":
                raise ZeroDivisionError(f"on rank {rank}")

    network().fit(X, Y, epochs=9, batch_size=16, learning_rate=0.05, callbacks=[Fails()])


def kills(count: int, folder: Path) -> None:
    """As this module says."""
    whole = folder / "whole.safetensors"
    expected = run(3, "train", whole).split("end ")[1].split()[0]
    path, spans, ends = folder / "run.safetensors", [], 0
    longest = 2.0
    while len(spans) < count:
        job = start(random.choice([2, 3, 4]), "train", path)
        pids = list(map(int, job.stdout.readline().split()[1:]))
        time.sleep(random.uniform(0, longest))
        try:
            os.kill(random.choice(pids), signal.SIGKILL)
            begin = time.monotonic()
        except ProcessLookupError:  # it was over
            begin = None
        status, out, err = finish(job, 60)
        if begin is not None and "end" not in out:
            spans.append(time.monotonic() - begin)
            assert status != 0
            assert "signal 9" in err or "has waited" in err, err
        else:
            longest *= 0.9
        others = [each.name for each in folder.iterdir() if each.suffix != ".safetensors"]
        assert len(others) <= 1, others  # of this kill; the next writing removes it
        if path.exists():
            Network.load(path)
        if path.exists() and (len(spans) % 5 == 4 or len(spans) == count):
            found = run(random.choice([1, 2, 3]), "train", path).split("end ")[1].split()[0]
            assert found == expected, "a resumed training has other bits"
            ends += 1
            path.unlink()
    print(
        f"{len(spans)} killed; the others ended {max(spans):.1f} s later at most; "
        f"{ends} resumed to equal bits"
    )


if __name__ == "__main__":
    first, *rest = sys.argv[1:]
    if first.isdecimal():
        kills(int(first), Path(rest[0]))
    else:
        work: Any = globals()[first]
        work(*rest)
