"""Training on several ranks: the bits of one, whatever their number; and what goes wrong."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ranked
from backprop_gpu import Callback, Checkpoint, Network
from backprop_gpu.communicators import ALONE
from backprop_gpu.engines.reduction import Reduction, all_costs, shards_of, trees_of
from backprop_gpu.planning import Plan
from rank_threads import RankError, on_ranks

X, Y = ranked.rows()
SETTINGS = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05}

needs_mpi = pytest.mark.skipif(
    ranked.mpirun() is None, reason="there is no mpirun: install backprop_gpu[mpi]"
)


def fit(ranks, net=None, **changed):
    net = net or ranked.network()
    net.fit(X, Y, **(SETTINGS | {"communicator": ranks} | changed))
    return net


# -- shards and trees ---------------------------------------------------------------------------


@given(st.integers(0, 7), st.data())
def test_every_shard_is_in_one_tree_of_one_rank(log, data):
    shards = 1 << log
    size = data.draw(st.integers(1, shards))
    found = []
    for rank in range(size):
        own = shards_of(rank, size, shards)
        assert len(own) >= 1
        for tree in trees_of(own):
            assert tree.size.bit_count() == 1
            assert tree.first % tree.size == 0
            found += range(tree.first, tree.first + tree.size)
        merged = {(t.first // (2 * t.size), t.size) for t in trees_of(own)}
        assert len(merged) == len(trees_of(own)), "two trees could be one"
    assert found == list(range(shards))


def tree_sum(leaves):
    while len(leaves) > 1:
        leaves = [a + b for a, b in zip(leaves[::2], leaves[1::2], strict=True)]
    return leaves[0]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(0, 99))
def test_a_reduction_is_the_sum_along_the_tree(size, lengths, seed):
    shards = 16
    starts = np.cumsum([0, *lengths]).tolist()
    leaves = np.random.default_rng(seed).standard_normal((shards, starts[-1])).astype(np.float32)

    def work(ranks):
        reduction = Reduction(ranks, shards, starts, leaves.dtype)
        for row, tree in zip(
            reduction.rows, trees_of(shards_of(ranks.rank, size, shards)), strict=True
        ):
            row[...] = tree_sum(list(leaves[tree.first : tree.first + tree.size]))
        sums = [reduction.begin(i) for i in reversed(range(len(lengths)))]
        for each in sums:
            each.add()
        for each in sums:
            each.wait()
        return reduction.rows[0].copy(), ranks.sent

    expected = tree_sum(list(leaves))
    for found, _ in on_ranks(size, work):
        assert found.tobytes() == expected.tobytes()


def test_a_rank_sends_twice_the_gradient_at_most():
    length = 1 << 12
    for size in (2, 4, 8):

        def work(ranks):
            reduction = Reduction(ranks, 8, [0, length], np.dtype(np.float32))
            part = reduction.begin(0)
            part.add()
            part.wait()
            return ranks.sent

        for sent in on_ranks(size, work):
            assert sent == 2 * (size - 1) * length * 4 // size


# -- bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["resident", "layered"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ranked.OPTIMIZERS)
def test_any_number_of_ranks_trains_to_the_same_bits(name, dtype, engine):
    X, Y = ranked.rows(dtype=dtype)

    def work(ranks):
        net = ranked.network(dtype)
        net.fit(
            X, Y, epochs=2, batch_size=50, learning_rate=0.05, optimizer=ranked.OPTIMIZERS[name],
            validation_data=(X[:40], Y[:40]), engine=engine, communicator=ranks,
        )  # fmt: skip
        assert net.plan.engine == engine
        return ranked.digest(net)

    found = {digest for size in (1, 3, 8) for digest in on_ranks(size, work)}
    assert len(found) == 1


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.integers(1, 64),
    st.sampled_from(["float32", "float64"]),
    st.integers(2, 8),
    st.integers(0, 999),
)
def test_bits_of_any_shape(sizes, batch_size, dtype, size, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(batch_size, 3 * batch_size + 1)
    A, B = rng.standard_normal((rows, sizes[0])), rng.random((rows, sizes[-1]))
    most = 1 << (batch_size.bit_length() - 1)
    size = min(size, most)

    def work(ranks):
        net = Network(sizes, dtype=dtype, seed=seed, backend="numpy")
        net.fit(A, B, epochs=2, batch_size=batch_size, learning_rate=0.1, communicator=ranks)
        return ranked.digest(net)

    assert len(set(on_ranks(size, work)) | {work(ALONE)}) == 1


def test_a_plan_of_ranks_has_the_same_bits_in_one_process():
    net = on_ranks(3, fit)[0]
    assert net.plan.shards == 8
    plan = Plan.from_json(net.plan.to_json())
    alone = ranked.network()
    alone.fit(X, Y, **SETTINGS, plan=plan, communicator="none")
    assert ranked.digest(alone) == ranked.digest(net)
    assert ranked.digest(fit("none")) != ranked.digest(net)  # summed otherwise


def test_shards_differ_from_the_plain_sum_by_rounding():
    shards, plain = fit(ALONE), fit("none")
    difference = np.abs(shards.parameters.flat - plain.parameters.flat).max()
    assert 0 < difference < 1e-5
    np.testing.assert_allclose(shards.history.loss, plain.history.loss, rtol=1e-5)


def test_costs_and_gradients_of_shards_are_those_of_the_batch():
    """In float64, where rounding hides nothing."""
    A, B = ranked.rows(dtype="float64")
    nets = []
    for ranks in (ALONE, "none"):
        net = ranked.network("float64")
        net.fit(
            A, B, epochs=3, batch_size=50, learning_rate=0.1, optimizer="adam", communicator=ranks
        )
        nets.append(net)
    np.testing.assert_allclose(nets[0].parameters.flat, nets[1].parameters.flat, atol=1e-11)
    np.testing.assert_allclose(nets[0].history.loss, nets[1].history.loss, rtol=1e-12)


def test_more_ranks_than_eight_take_more_shards():
    (net, *_) = on_ranks(9, lambda ranks: fit(ranks))
    assert net.plan.shards == 16


# -- the start ----------------------------------------------------------------------------------


def test_ranks_begin_with_the_first_ones_weights_and_order():
    def work(ranks):
        return ranked.digest(fit(ranks, ranked.network(seed=None)))

    assert len(set(on_ranks(3, work))) == 1

    def seeded(ranks):
        return ranked.digest(fit(ranks, ranked.network(seed=1 + ranks.rank)))

    assert set(on_ranks(3, seeded)) == {ranked.digest(fit(ALONE))}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 17}, "batch_size=16, and rank 1 batch_size=17"),
        ({"epochs": 3}, "epochs=2, and rank 1 epochs=3"),
        ({"optimizer": "adam"}, "rank 0 has SGD.* and rank 1 Adam"),
        ({"learning_rate": 0.1}, "rank 0 has 0.05, and rank 1 0.1"),
        ({"X": X[::-1]}, "checksum"),
        ({"X": X[1:], "Y": Y[1:]}, "203 rows, and rank 1 202 rows"),
    ],
)
def test_ranks_that_were_given_different_things_say_what(changed, message):
    def work(ranks):
        net = ranked.network(seed=1 + ranks.rank)
        before = ranked.network(seed=1 + ranks.rank).parameters.flat
        arguments = {"X": X, "Y": Y} | SETTINGS | (changed if ranks.rank == 1 else {})
        with pytest.raises(ValueError, match=message):
            net.fit(**arguments, communicator=ranks)
        assert (net.parameters.flat == before).all()
        assert net.history is None

    on_ranks(2, work)


def test_an_argument_that_is_wrong_on_one_rank_is_refused_on_all():
    def work(ranks):
        net = ranked.network()
        error, message = (
            (TypeError, "epochs") if ranks.rank == 1 else (RuntimeError, "rank 1: .*epochs")
        )
        with pytest.raises(error, match=message):
            fit(ranks, net, epochs="2" if ranks.rank == 1 else 2)
        assert net.history is None

    on_ranks(3, work)


def test_there_are_no_more_ranks_than_shards():
    def work(ranks):
        with pytest.raises(ValueError, match="3 ranks share a mini-batch of 2 rows"):
            fit(ranks, batch_size=2)

    on_ranks(3, work)


@pytest.mark.parametrize("given", ["all", 3, None, b"auto"])
def test_what_is_no_communicator_is_refused(given):
    with pytest.raises((TypeError, ValueError), match="communicator must be"):
        fit(given)


def test_a_plan_of_one_process_is_not_for_ranks():
    plan = fit("none").plan

    def work(ranks):
        with pytest.raises(ValueError, match="cuts a mini-batch into 1 shards, for 2 ranks"):
            fit(ranks, plan=plan)

    on_ranks(2, work)


@pytest.mark.parametrize("shards", [0, 3, -4, 1 << 20])
def test_a_damaged_number_of_shards_is_refused(shards):
    with pytest.raises(ValueError, match="shards"):
        fit("none", plan=replace(fit(ALONE).plan, shards=shards))


def test_without_mpi_an_mpi_job_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PMIX_RANK", "0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"backprop_gpu\[mpi\]"):
        fit("auto")


# -- the course ---------------------------------------------------------------------------------


class StopsOn(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, network, history):
        return len(history) == self.epoch


def test_a_callback_of_any_rank_ends_all_in_the_same_epoch():
    def work(ranks):
        net = fit(ranks, epochs=9, callbacks=[StopsOn(3)] if ranks.rank == 1 else [])
        return len(net.history), ranked.digest(net)

    found = on_ranks(3, work)
    assert len(set(found)) == 1
    assert found[0][0] == 3


def test_an_exception_on_one_rank_ends_all(capsys):
    class Fails(Callback):
        def on_epoch_end(self, network, history):
            raise ZeroDivisionError("here")

    def work(ranks):
        fit(ranks, callbacks=[Fails()] if ranks.rank == 1 else [])

    with pytest.raises(RankError, match="ZeroDivisionError: here"):
        on_ranks(3, work)
    assert "here" in capsys.readouterr().err  # with its traceback


def test_a_cost_that_overflows_ends_all_alike():
    def work(ranks):
        net = Network([21, 5], activation="identity", seed=1, backend="numpy")
        with pytest.raises(FloatingPointError, match="epoch"):
            net.fit(X * 1e20, Y, epochs=9, batch_size=20, learning_rate=1e30, communicator=ranks)
        return net.parameters.flat.tobytes(), len(net.history)

    assert len(set(on_ranks(3, work))) == 1


def test_the_first_rank_alone_writes_and_any_number_resumes(tmp_path):
    whole = on_ranks(2, lambda ranks: ranked.digest(fit(ranks, epochs=5)))[0]
    path = tmp_path / "net.safetensors"
    written = []

    class Watched(Checkpoint):
        def write(self, *arguments):
            written.append(1)
            super().write(*arguments)

    def first(ranks):
        fit(ranks, epochs=3, callbacks=[Watched(path)])

    on_ranks(3, first)
    assert len(written) == 3
    for size in (1, 2, 5):
        found = on_ranks(size, lambda ranks: ranked.digest(fit(ranks, epochs=5, resume_from=path)))
        assert set(found) == {whole}


def test_progress_is_shown_by_the_first_rank_alone(capsys):
    on_ranks(2, lambda ranks: fit(ranks, progress=ranks.rank == 1))
    assert "epoch" not in capsys.readouterr().err


def test_ranks_wait_longer_between_epochs_than_in_them():
    waited = []

    class Watched(type(ALONE)):
        size, timeout, patience = 2, 1.0, 2.0

        def exchange(self, outgoing, incoming, seconds=None):
            waited.append(seconds)
            return super().exchange([], [])

    ranks = Watched()
    ranks.allgather(np.zeros(3))
    ranks.broadcast(np.zeros(3))
    ranks.barrier()
    all_costs(ranks, np.zeros((3, 2)))
    assert waited == [2.0, 2.0, 2.0, 1.0]


# -- MPI ----------------------------------------------------------------------------------------


@needs_mpi
def test_mpi_has_the_same_bits_on_any_number_of_ranks():
    found = {size: ranked.run(size, "bits", "resident") for size in (1, 2, 3, 4, 8)}
    assert len(set(found.values())) == 1, found
    assert len(found[1].splitlines()) == 24


@needs_mpi
def test_a_rank_that_is_killed_ends_the_job(tmp_path):
    path = tmp_path / "net.safetensors"
    expected = ranked.run(2, "train", tmp_path / "whole.safetensors")
    job = ranked.start(3, "train", path)
    pids = [int(pid) for pid in job.stdout.readline().split()[1:]]
    while not path.exists():
        time.sleep(0.01)
    time.sleep(random.random() / 2)
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    status, out, err = ranked.finish(job)
    assert time.monotonic() - begin < 15
    assert status != 0
    assert "end" not in out
    assert "signal 9" in err
    assert f"PID {pids[1]}" in err
    found = ranked.run(4, "train", path)
    assert found.split("end")[1] == expected.split("end")[1]


@needs_mpi
def test_a_rank_that_hangs_is_named(tmp_path):
    path = tmp_path / "net.safetensors"
    job = ranked.start(3, "hang", path)
    begin = time.monotonic()
    status, _, err = ranked.finish(job)
    assert status != 0
    assert "has waited 3 s for rank 2" in err
    assert time.monotonic() - begin < 15


@needs_mpi
@pytest.mark.parametrize("kind", ["world", "part", "mine"])
def test_mpi_communicators(kind):
    out = ranked.run(3, "communicators", kind)
    assert "ok" in out


@needs_mpi
def test_an_exception_on_one_rank_ends_the_job():
    status, _, err = ranked.finish(ranked.start(2, "raises"))
    assert status != 0
    assert "rank 1: ZeroDivisionError: on rank 1" in err
    assert "Traceback" in err


@needs_mpi
def test_a_rank_that_is_alone_says_what_it_waits_for():
    begin = time.monotonic()
    status, _, err = ranked.finish(ranked.start(2, "alone"))
    assert status != 0
    assert "rank 0: the other ranks have not called fit for 2 s" in err
    assert time.monotonic() - begin < 15


@needs_mpi
def test_sigterm_ends_all_ranks_with_a_checkpoint(tmp_path):
    path = tmp_path / "net.safetensors"
    job = ranked.start(2, "train", path)
    pids = [int(pid) for pid in job.stdout.readline().split()[1:]]
    while not path.exists():
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)  # as a scheduler may, of one of them
    status, out, _ = ranked.finish(job)
    assert status == 143
    assert "end" not in out
    expected = ranked.run(3, "train", tmp_path / "whole.safetensors")
    assert ranked.run(2, "train", path).split("end")[1] == expected.split("end")[1]


COMMAND = ("-m", "backprop_gpu", "train", "--epochs", "3")


@needs_mpi
def test_the_command_prints_once_and_has_the_same_bits(tmp_path):
    models = []
    for ranks in (1, 3):
        out = tmp_path / str(ranks)
        status, printed, err = ranked.finish(ranked.start(ranks, "--out", out, program=COMMAND))
        assert status == 0, err
        assert printed.count("device:") == printed.count("validation accuracy:") == 1
        assert err.count("| 0/3") == 1
        assert f"of which {ranks} rank" in printed
        models.append((out / "model.safetensors").read_bytes())
    assert models[0] == models[1]


@needs_mpi
def test_the_command_refuses_once(tmp_path):
    wrong = ("--out", tmp_path, "--data", tmp_path / "none.npz")
    status, printed, err = ranked.finish(ranked.start(3, *wrong, program=COMMAND))
    assert status == 2
    assert printed == ""
    assert err.count("error:") == 1


@needs_mpi
def test_the_command_ends_by_sigterm_with_a_checkpoint_and_goes_on(tmp_path):
    program = ("-m", "backprop_gpu", "train", "--epochs", "60", "--checkpoint-every", "1")
    whole = ranked.finish(ranked.start(2, "--out", tmp_path / "whole", program=program))
    assert whole[0] == 0, whole
    program += ("--resume", "--out", str(tmp_path / "out"))
    job = ranked.start(2, program=program)
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    while not checkpoint.exists():
        time.sleep(0.01)
    pids = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout
    os.kill(int(pids.split()[-1]), signal.SIGTERM)
    status, printed, err = ranked.finish(job)
    assert status == 143, err
    assert "terminated; the model has the weights after epoch" in err
    status, printed, err = ranked.finish(ranked.start(3, program=program))
    assert status == 0, err
    assert "resumed from" in printed
    models = [tmp_path / folder / "model.safetensors" for folder in ("whole", "out")]
    assert models[0].read_bytes() == models[1].read_bytes()
