"""The harness that runs CUDA kernels on the CPU does what the kernel tests rely on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from host_cuda.build import BuildFailed
from host_cuda.runtime import HostRuntime, LaunchFailed

HERE = Path(__file__).parent / "host_cuda"
SOURCE = (HERE / "selftest.cu").read_text().splitlines()
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
SANITIZERS = ("plain", "asan", "tsan")

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++: CUDA kernels cannot run on the CPU"
)


def runtime(sanitizer: str = "plain", define: str = "") -> HostRuntime:
    return HostRuntime(sanitizer, HERE, f"#define {define}" if define else "")


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    kernels = ("transpose<double>", "block_sums<float>", "break_rule")
    for sanitizer in SANITIZERS:
        runtime(sanitizer).prepare(("selftest.cu", kernel) for kernel in kernels)


def line(text: str, occurrence: int = 0) -> str:
    """Where `text` stands, as a report names it."""
    return f"selftest.cu:{[i for i, l in enumerate(SOURCE, 1) if text in l][occurrence]}"


def transpose(run: HostRuntime, m: int = 37, n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(m, n))
    out = np.zeros((n, m))
    grid = (-(-n // 16), -(-m // 16), 1)
    arguments = (x, out, np.int32(m), np.int32(n))
    run.launch("selftest.cu", "transpose<double>", grid, (16, 16, 1), arguments)
    return out, x.T


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
    assert f"(62,0,0) at __syncthreads, {HERE}/{where}" in str(caught.value)


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


def test_what_the_compiler_says_is_passed_on():
    with pytest.raises(BuildFailed, match="no_such_kernel"):
        runtime().launch("selftest.cu", "no_such_kernel", (1, 1, 1), (1, 1, 1), ())
