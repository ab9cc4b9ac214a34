"""Kills trainings at random moments, resumes them, and compares their ends with an unkilled one.

    python tests/support/killed.py KIND ENGINE OPTIMIZER KILLS FOLDER

KIND is network or population. Prints how many trainings ended, and fails if any of them has other
bits, or a checkpoint is not whole. This process imports, and trains in forks: so a life is short.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from backprop_gpu import Checkpoint, EarlyStopping, Network, Population, model_file
from backprop_gpu.training import checkpoint

#: A network's checkpoints are written within epochs, too.
OFTEN = timedelta(microseconds=1)
EPOCHS, SETTINGS = 12, {"batch_size": 8, "learning_rate": 0.05}


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 6)).astype("float32")
    return X, (X.sum(axis=1) > 0).astype("float32")[:, None]


def train(kind: str, engine: str, optimizer: str, path: Path, end: Path) -> None:
    """A training from its checkpoint, if there is one; what came of it is written to `end`."""
    X, Y = problem()
    shape: dict[str, Any] = {"cost": "binary_cross_entropy", "backend": "numpy", "seed": 7}
    trainer: Any = (
        Network([6, 9, 1], **shape)
        if kind == "network"
        else Population([6, 9, 1], members=3, **shape)
    )
    trainer.fit(
        X, Y, epochs=EPOCHS, optimizer=optimizer, engine=engine, validation_data=(X, Y),
        callbacks=[EarlyStopping(patience=5), Checkpoint(path, every=OFTEN)],
        resume_from=path if path.exists() else None, **SETTINGS,
    )  # fmt: skip
    members = [trainer] if kind == "network" else list(trainer)
    text = repr([(m.history.loss, m.history.val_loss, m.history.restored) for m in members])
    flats = b"".join(m.model.read(m.parameters).tobytes() for m in members)
    states = repr([m.generator.bit_generator.state for m in members])
    end.with_suffix(".part").write_bytes(flats + text.encode() + states.encode())
    end.with_suffix(".part").rename(end)


def fork(work: Callable[[], None]) -> int:
    """The number of a process that does the work."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main(kind: str, engine: str, optimizer: str, kills: int, folder: Path) -> None:
    def life(path: Path, end: Path) -> int:
        return fork(lambda: train(kind, engine, optimizer, path, end))

    start = time.monotonic()
    _, status = os.waitpid(life(folder / "whole.safetensors", folder / "expected"), 0)
    assert status == 0, "the training that nobody kills fails"
    longest, expected = time.monotonic() - start, (folder / "expected").read_bytes()
    path, end = folder / "run.safetensors", folder / "end"
    rng, killed, ended = random.Random(0), 0, 0
    while killed < kills or ended == 0:
        child = life(path, end)
        if killed < kills:
            time.sleep(rng.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            assert status == 0, f"a life after {killed} kills fails"
        if path.exists():
            with model_file.opened(path, "checkpoint") as file:
                for name in set(file.keys()):
                    file.get_tensor(name)
            assert checkpoint.newest(path) == path
        if end.exists():  # perhaps killed after it
            assert end.read_bytes() == expected, f"other bits after {killed} kills"
            end.unlink()
            path.unlink()
            ended += 1
    others = {"run.safetensors", "whole.safetensors", "expected", "end", "end.part"}
    left = [name for name in os.listdir(folder) if name not in others]
    assert len(left) <= 1, left  # of the last kill; the next writing removes it
    print(f"{killed} kills, {ended} trainings ended")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), Path(sys.argv[5]))
