"""The harness that runs CUDA kernels on the CPU does what the kernel tests rely on."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from backprop_gpu.testing.build import INIT, BuildFailed, knows
from host_cuda.runtime import SOURCES, HostRuntime, LaunchFailed
from host_cuda.selftest import endless, runtime, server, transpose
from machine import ROOT, SUPPORT

SOURCE = (SOURCES / "selftest.cu").read_text().splitlines()
RULES = (
    "legal",
    "deadlock",
    "different_barriers",
    "absent_lane",
    "past_dynamic_shared",
    "past_static_shared",
    "past_the_end",
    "race_between_blocks",
    "shuffle_orders_nothing",
)
CLUSTER_RULES = (
    "lawful",
    "one_at_another_barrier",
    "arrives_twice",
    "does_not_arrive",
    "rank_too_large",
    "not_shared",
    "race_in_cluster",
)
SANITIZERS = ("plain", "asan", "tsan")

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++: CUDA kernels cannot run on the CPU"
)


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    kernels = (
        "transpose<double>",
        "block_sums<float>",
        "break_rule",
        "keep",
        "forgotten_start",
        "ring",
        "introduce",
        "break_cluster_rule",
    )
    for sanitizer in SANITIZERS:
        runtime(sanitizer).prepare(("selftest.cu", kernel) for kernel in kernels)


def line(text: str, occurrence: int = 0) -> str:
    """Where `text` stands, as a report names it."""
    return f"selftest.cu:{[i for i, l in enumerate(SOURCE, 1) if text in l][occurrence]}"


def break_rule(sanitizer: str, rule: str, blocks: int = 3) -> np.ndarray:
    out, count = np.zeros(blocks, np.int32), np.zeros(1, np.int32)
    run = runtime(sanitizer)
    arguments = (np.int32(RULES.index(rule)), out, count)
    run.launch("selftest.cu", "break_rule", (blocks, 1, 1), (64, 1, 1), arguments, 20)
    return np.append(out, count)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_shared_memory_shuffles_and_barriers_give_the_right_numbers(sanitizer):
    np.testing.assert_array_equal(*transpose(runtime(sanitizer)))
    x = np.arange(480, dtype=np.float32).reshape(5, 96)
    sums = np.zeros(5, np.float32)
    run = runtime(sanitizer)
    run.launch("selftest.cu", "block_sums<float>", (5, 1, 1), (96, 1, 1), (x, sums), 12)
    np.testing.assert_array_equal(sums, x.sum(axis=1))


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_a_legal_kernel_passes(sanitizer):
    # Lanes ordered by __syncwarp, threads that leave early, blocks ordered by fence and count.
    np.testing.assert_array_equal(break_rule(sanitizer, "legal"), [1, 1, 1, 300])


def test_a_named_barrier_orders_those_who_arrive_and_those_who_wait():
    out, flag = np.zeros(32, np.int32), np.zeros(1, np.int32)
    runtime("tsan").launch("selftest.cu", "hand_over", (1, 1, 1), (64, 1, 1), (out, flag))
    np.testing.assert_array_equal(out, np.arange(32) ** 2)


def test_a_missing_barrier_is_a_race_at_a_line():
    with pytest.raises(LaunchFailed, match="data race") as caught:
        transpose(runtime("tsan", "WITHOUT_BARRIER"))
    assert line("tile[threadIdx.y][threadIdx.x] = in") in str(caught.value)
    assert line("= tile[threadIdx.x][threadIdx.y]") in str(caught.value)


def test_a_missing_barrier_shows_as_nan_where_nothing_sanitizes():
    out, _ = transpose(runtime("plain", "WITHOUT_BARRIER"))
    assert np.isnan(out).any()


@pytest.mark.parametrize(
    ("sanitizer", "rule", "report", "where"),
    [
        ("tsan", "race_between_blocks", "data race", "out[broken == race_between_blocks"),
        ("tsan", "shuffle_orders_nothing", "data race", "right = mine[neighbour]"),
        ("asan", "past_the_end", "heap-buffer-overflow", "out[broken == race_between_blocks"),
        ("asan", "past_static_shared", "index 64 out of bounds", "mine[broken =="),
        ("asan", "past_dynamic_shared", "use-after-poison", "dynamic_shared[20]"),
    ],
)
def test_a_sanitizer_names_the_line(sanitizer, rule, report, where):
    with pytest.raises(LaunchFailed, match=report) as caught:
        break_rule(sanitizer, rule)
    assert line(where) in str(caught.value)


def test_a_deadlock_names_kernel_block_threads_and_lines():
    with pytest.raises(LaunchFailed) as caught:
        break_rule("plain", "deadlock")
    message = str(caught.value)
    assert "kernel break_rule, block (0,0,0): " in message
    assert "deadlock: 0 of 64 threads returned" in message
    assert f"{line('__syncwarp()')}: (0,0,0) (1,0,0)" in message
    assert f"{line('  __syncthreads()', 2)}: (31,0,0) (32,0,0)" in message


def test_different_barriers_are_named():
    with pytest.raises(LaunchFailed, match="threads meet at different barriers") as caught:
        break_rule("plain", "different_barriers")
    where = line("if (broken == different_barriers")
    assert f"(62,0,0) at __syncthreads, {SOURCES}/{where}" in str(caught.value)


def test_a_shuffle_from_a_lane_that_is_not_there():
    with pytest.raises(LaunchFailed, match="reads lane 9, which does not take part"):
        break_rule("plain", "absent_lane")


def test_dynamic_shared_memory_is_guarded_in_the_plain_build():
    with pytest.raises(LaunchFailed, match="byte 20 of dynamic shared memory was written"):
        break_rule("plain", "past_dynamic_shared")


@pytest.mark.parametrize(
    ("block", "complaint"), [((1025, 1, 1), "1 to 1024 threads"), ((1, 1, 65), "64 deep")]
)
def test_launches_that_a_device_refuses(block, complaint):
    with pytest.raises(LaunchFailed, match=complaint):
        runtime().launch("selftest.cu", "break_rule", (1, 1, 1), block, (np.int32(0), None, None))


def test_arguments_have_the_parameters_types():
    run = runtime()
    x = np.zeros((4, 4))

    def launch(*arguments):
        run.launch("selftest.cu", "transpose<double>", (1, 1, 1), (16, 16, 1), arguments)

    with pytest.raises(TypeError, match="takes 4 arguments, got 2"):
        launch(x, x)
    with pytest.raises(TypeError, match=r"argument 2 of transpose<double> has type i, got int64"):
        launch(x, x, np.int64(4), np.int32(4))
    with pytest.raises(TypeError, match=r"argument 0 .* has type PKd, got float32"):
        launch(x.astype(np.float32), x, np.int32(4), np.int32(4))
    with pytest.raises(ValueError, match="not C-contiguous"):
        launch(x, x[:, ::2], np.int32(4), np.int32(4))


def test_arrays_may_share_memory_in_a_sanitizers_process():
    whole = np.arange(16.0)
    arguments = (whole[:4], whole[4:8], np.int32(2), np.int32(2))
    run = runtime("asan")
    run.launch("selftest.cu", "transpose<double>", (1, 1, 1), (16, 16, 1), arguments)
    np.testing.assert_array_equal(whole, [0, 1, 2, 3, 0, 2, 1, 3, *range(8, 16)])
    arguments = (whole[:4], whole[2:6], np.int32(2), np.int32(2))  # overlap
    run.launch("selftest.cu", "transpose<double>", (1, 1, 1), (16, 16, 1), arguments)
    np.testing.assert_array_equal(whole[:8], [0, 1, 0, 2, 1, 3, 1, 3])


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_what_was_not_written_is_never_zero_by_luck(sanitizer):
    if not knows(INIT):
        pytest.skip("this g++ cannot fill variables")
    out = np.zeros(1, np.float32)
    arguments = (np.zeros(4, np.float32), out)
    runtime(sanitizer).launch("selftest.cu", "forgotten_start", (1, 1, 1), (1, 1, 1), arguments)
    np.testing.assert_array_equal(out.view(np.uint32), 0xFEFEFEFE)


# -- clusters ----------------------------------------------------------------------------


def ring(
    sanitizer: str, define: str = "", blocks: int = 4, clusters: int = 3, rounds: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).integers(0, 100, (clusters, blocks, 32), np.int32)
    out = x.copy()
    runtime(sanitizer, define).launch(
        "selftest.cu", "ring", (clusters * blocks, 1, 1), (32, 1, 1), (out, np.int32(rounds)), 128,
        cluster=(blocks, 1, 1),
    )  # fmt: skip
    for _ in range(rounds):
        x = 2 * x + np.roll(x, -1, axis=1)
    return out, x


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("blocks", [1, 2, 4, 16])
def test_blocks_of_a_cluster_read_each_others_shared_memory(sanitizer, blocks):
    np.testing.assert_array_equal(*ring(sanitizer, blocks=blocks))


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("shape", [(2, 3, 2), (4, 4, 1), (1, 1, 2)])
def test_ranks_and_places_in_a_cluster(sanitizer, shape):
    grid = (2 * shape[0], shape[1], 3 * shape[2])
    blocks = int(np.prod(shape))
    out = np.zeros((*reversed(grid), blocks, 4), np.int32)
    runtime(sanitizer).launch(
        "selftest.cu", "introduce", grid, (33, 1, 1), (out,), 16, cluster=shape
    )
    for z, y, x in np.ndindex(*reversed(grid)):
        for rank, place in enumerate(np.ndindex(*reversed(shape))):
            k, j, i = place
            block = np.array((x, y, z)) // shape * shape + (i, j, k)
            np.testing.assert_array_equal(out[z, y, x, rank, :3], block)
            assert out[z, y, x, rank, 3] == i + 10 * j + 100 * k + 1000 * rank


def test_a_missing_cluster_barrier_is_a_race_at_a_line():
    with pytest.raises(LaunchFailed, match="data race") as caught:
        ring("tsan", "WITHOUT_CLUSTER_BARRIER")
    assert line("at_rank(old, next)[thread]") in str(caught.value)
    out, exact = ring("plain", "WITHOUT_CLUSTER_BARRIER")
    assert (out != exact).any()


def test_a_block_that_leaves_takes_its_shared_memory_along():
    with pytest.raises(LaunchFailed, match="use-after-poison") as caught:
        ring("asan", "LEAVE_EARLY")
    assert line("at_rank(old, next)[thread]") in str(caught.value)
    with pytest.raises(LaunchFailed, match="data race") as caught:
        ring("tsan", "LEAVE_EARLY")
    assert line("at_rank(old, next)[thread]") in str(caught.value)
    out, exact = ring("plain", "LEAVE_EARLY", rounds=1)
    np.testing.assert_array_equal(out[:, :3], exact[:, :3])
    # The last block reads -1 of the first, which has left; its last thread, which opens the
    # barrier, is faster.
    (before, _), last = ring("plain", rounds=0), np.s_[:, 3, :31]
    np.testing.assert_array_equal(out[last], 2 * before[last] - 1)


def break_cluster_rule(sanitizer: str, rule: str) -> np.ndarray:
    out = np.zeros(8, np.int32)
    arguments = (np.int32(CLUSTER_RULES.index(rule)), out)
    size = (8, 1, 1), (40, 1, 1)
    run = runtime(sanitizer)
    run.launch("selftest.cu", "break_cluster_rule", *size, arguments, cluster=(4, 1, 1))
    return out


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_a_cluster_barrier_does_not_wait_for_those_who_left(sanitizer):
    np.testing.assert_array_equal(break_cluster_rule(sanitizer, "lawful"), [1, 0, 0, 1] * 2)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("arrives_twice", r"thread \(0,0,0\) arrives again before it has waited"),
        ("does_not_arrive", r"thread \(0,0,0\) waits and has not arrived"),
        ("rank_too_large", r"block \(0,0,0\): map_shared: rank 4 in a cluster of 4"),
        ("not_shared", "is not in the block's shared memory"),
    ],
)
def test_rules_of_a_cluster(sanitizer, rule, complaint):
    with pytest.raises(LaunchFailed, match=complaint):
        break_cluster_rule(sanitizer, rule)
    np.testing.assert_array_equal(break_cluster_rule(sanitizer, "lawful"), [1, 0, 0, 1] * 2)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_a_deadlock_in_a_cluster_names_the_blocks(sanitizer):
    with pytest.raises(LaunchFailed) as caught:
        break_cluster_rule(sanitizer, "one_at_another_barrier")
    message = str(caught.value)
    assert "deadlock: 7 of 160 threads returned" in message
    wait = line("CLUSTER_WAIT;", 4)
    assert f"{wait}: block (0,0,0): (0,0,0) (1,0,0) (2,0,0) (3,0,0) and others, 39 thr" in message
    assert f"{wait}: block (1,0,0): (0,0,0) (1,0,0) (2,0,0) (4,0,0) and others, 37 thr" in message
    assert f"{line('rank == 1) __syncthreads')}: block (1,0,0): (3,0,0), 1 threads" in message


def test_a_race_between_blocks_of_a_cluster():
    with pytest.raises(LaunchFailed, match="data race") as caught:
        break_cluster_rule("tsan", "race_in_cluster")  # ranks 2 and 3
    assert line("out[0] = rank") in str(caught.value)


@pytest.mark.parametrize(
    ("grid", "cluster", "complaint"),
    [
        ((6, 1, 1), (4, 1, 1), "no multiple of the cluster"),
        ((4, 3, 1), (2, 2, 1), "no multiple of the cluster"),
        ((17, 1, 1), (17, 1, 1), "1 to 16 blocks"),
        ((4, 1, 1), (0, 1, 1), "1 to 16 blocks"),
    ],
)
def test_clusters_that_a_device_refuses(grid, cluster, complaint):
    run, arguments = runtime(), (None, np.int32(0))
    with pytest.raises(LaunchFailed, match=complaint):
        run.launch("selftest.cu", "ring", grid, (32, 1, 1), arguments, cluster=cluster)


#: Seconds after which what should have ended is said to hang: not a measure of speed.
HANGS = 300


def _ring_in_a_child() -> None:
    np.testing.assert_array_equal(*ring("plain"))


def test_a_forked_process_makes_threads_of_its_own():
    ring("plain")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply_async(_ring_in_a_child).get(timeout=HANGS)


# -- servers -----------------------------------------------------------------------------


def alive(process: int) -> bool:
    """Also a process that is not our child; one that nobody has waited for has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_lives_until_a_report():
    first = server("asan")
    assert server("asan") == first
    for rule, report in (("past_the_end", "heap-buffer-overflow"), ("deadlock", "deadlock")):
        with pytest.raises(LaunchFailed, match=report):
            break_rule("asan", rule)
        assert not alive(first)
        second = server("asan")
        assert second != first
        first = second


def test_an_array_of_an_earlier_launch_is_gone():
    keep = functools.partial(runtime("asan").launch, "selftest.cu", "keep", (1, 1, 1), (1, 1, 1))
    keep((np.zeros(3, np.int32),))
    with pytest.raises(LaunchFailed, match="heap-use-after-free"):
        keep((np.zeros(3, np.int32),))


def test_a_launch_that_does_not_end():
    endless(1)
    process = server("asan")
    with pytest.raises(LaunchFailed, match=r"never_ends did not end within 0\.5 s"):
        endless(0, timeout=0.5)
    assert not alive(process)
    endless(1)


def test_a_server_that_is_killed_is_replaced():
    process = server("asan")
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    np.testing.assert_array_equal(*transpose(runtime("asan")))


def _launch_in_a_child(parents_server: int) -> bool:
    return server("asan") != parents_server


def test_a_forked_process_has_servers_of_its_own():
    mine = server("asan")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_launch_in_a_child, (mine,))
    assert server("asan") == mine


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
ENDINGS = {
    "end": "",
    "killed": KILL,
    "killed while waiting": f"threading.Timer(0.5, lambda: {KILL}).start(); endless()",
    "killed after a fork": f"""
if os.fork() > 0: {KILL}
os.closerange(1, 3)
os.read(0, 1)  # until the test has ended
os._exit(0)
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_servers_end_with_python(ending):
    code = f"""
import os, signal, sys, threading
sys.path.insert(0, {str(SUPPORT)!r})
from host_cuda.selftest import endless, server
print(server("asan"), flush=True)
{ENDINGS[ending]}
"""
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        process = int(run.stdout.read())
        assert run.stderr.read() == ""
        end = time.monotonic() + HANGS
        while alive(process):
            assert time.monotonic() < end
            time.sleep(0.01)


# -- builds ------------------------------------------------------------------------------


def test_what_the_compiler_says_is_passed_on():
    with pytest.raises(BuildFailed, match="no_such_kernel"):
        runtime().launch("selftest.cu", "no_such_kernel", (1, 1, 1), (1, 1, 1), ())


def test_prepared_kernels_share_a_build(tmp_path, monkeypatch):
    monkeypatch.setenv("HOST_CUDA_CACHE", str(tmp_path))
    names = [f"block_sums<{T}>" for T in ("int", "float", "double", "long")]
    run = HostRuntime("plain", SOURCES)
    run.prepare(("selftest.cu", name) for name in names)
    built = sorted(tmp_path.glob("selftest*"))
    assert len(built) == 2  # a core each
    for name, dtype in zip(names, ("i4", "f4", "f8", "i8"), strict=True):
        x, out = np.arange(96, dtype=dtype), np.zeros(1, dtype)
        run.launch("selftest.cu", name, (1, 1, 1), (96, 1, 1), (x, out), 24)
        assert out == x.sum()
    HostRuntime("plain", SOURCES).prepare(("selftest.cu", name) for name in reversed(names))
    assert sorted(tmp_path.glob("selftest*")) == built


def _prepare(_: int) -> None:
    HostRuntime("plain", SOURCES).prepare([("selftest.cu", "break_rule")])


def test_processes_do_not_build_the_same_twice(tmp_path, monkeypatch):
    """Nor wait for a lock whose owner is gone."""
    monkeypatch.setenv("HOST_CUDA_CACHE", str(tmp_path))
    _prepare(0)
    (built,) = tmp_path.glob("selftest*")
    built.unlink()
    built.with_name(f"{built.name}.lock").touch()
    log, compiler = tmp_path / "log", tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_prepare, range(2), chunksize=1)
    compiled = [line for line in log.read_text().splitlines() if "-shared" in line]
    assert sum("selftest" in line for line in compiled) == 1
