"""Ranks that torchrun has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import pytest

pytest.importorskip("torch")

from backprop_gpu.communicators import ALONE
from backprop_gpu.torch import TorchCommunicator

PROGRAM = textwrap.dedent(
    """
    import os, sys
    import torch.distributed as dist
    import ranked
    from backprop_gpu.torch import TorchCommunicator

    dist.init_process_group("gloo")
    ranks = TorchCommunicator(timeout=3)
    X, Y = ranked.rows()
    net = ranked.network(seed=1 + ranks.rank)

    class Hangs(ranked.Callback):
        def on_batch_end(self, network, batch):
            if sys.argv[1] == "hang" and ranks.rank == 1 and len(network.history) == 1:
                import signal
                os.kill(os.getpid(), signal.SIGSTOP)
            if sys.argv[1] == "die" and ranks.rank == 1 and len(network.history) == 1:
                os._exit(7)

    net.fit(
        X, Y, epochs=3, batch_size=16, learning_rate=0.05, communicator=ranks, callbacks=[Hangs()]
    )
    found = ranks.allgather_text(ranked.digest(net))
    assert len(set(found)) == 1
    if ranks.rank == 0:
        print("end", found[0])
    dist.destroy_process_group()
    """
)


def launch(ranks, way, folder):
    support = os.path.join(os.path.dirname(__file__), "..", "support")
    (folder / "program.py").write_text(PROGRAM)
    job = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
            "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
            str(folder / "program.py"), way,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": support},
    )  # fmt: skip
    try:
        out, err = job.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, out, err


def test_torchruns_ranks_have_the_bits_of_one(tmp_path):
    import ranked

    X, Y = ranked.rows()
    alone = ranked.network(seed=1)
    alone.fit(X, Y, epochs=3, batch_size=16, learning_rate=0.05, communicator=ALONE)
    for ranks in (2, 3):
        status, out, err = launch(ranks, "end", tmp_path)
        assert status == 0, err
        assert out.split()[-1] == ranked.digest(alone)


@pytest.mark.parametrize("way", ["hang", "die"])
def test_a_rank_that_is_lost_is_named(way, tmp_path):
    begin = time.monotonic()
    status, out, err = launch(2, way, tmp_path)
    assert status != 0
    assert "end" not in out
    assert "rank 0: has waited for rank 1" in err
    assert time.monotonic() - begin < 60


def test_without_a_process_group():
    with pytest.raises(ValueError, match="init_process_group"):
        TorchCommunicator()
