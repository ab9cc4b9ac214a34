"""What stands in kernels/cuda/primitives does what it says, and nothing else is unportable."""

from __future__ import annotations

import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from backprop_gpu.cuda.catalogue import all_of
from host_cuda.runtime import KERNELS, SOURCES, HostRuntime, LaunchFailed, Sanitizer
from kernel_cases import RUNS

FILES = sorted(KERNELS.rglob("*.cu*"))

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++: CUDA kernels cannot run on the CPU"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ptx_and_host_code_stand_in_primitives_only(path: Path) -> None:
    code = re.sub(r"//.*", "", path.read_text())
    outside = path.parent.name != "primitives"
    if outside:
        found = re.findall(r"\basm\b|__CUDACC\w*|__CUDA_ARCH__|__GNUC__|cuda_host\w*", code)
        assert not found, f"{path.name}: {found} belong into primitives/"
    assert path.read_text().startswith("// "), "a file starts with what it computes"


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.name)
def test_what_is_launched_programmatically_waits_first(path: Path) -> None:
    waits = {
        kernel.programmatic for kernel in all_of(HostRuntime.device) if kernel.file == path.name
    }
    assert len(waits) == 1, "one rule for a file"
    kernels = re.findall(r"__global__[^;{]*\{\s*([^;]*;)", path.read_text())
    assert kernels
    expected = ["await_prerequisites();"] * len(kernels) if waits == {True} else []
    assert [first for first in kernels if "await_prerequisites" in first] == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_load_may_move_in_front_of_the_wait(path: Path) -> None:
    code = re.sub(r"//.*", "", path.read_text())
    assert not re.search(r"restrict|__ldg|\.nc\b", code), "the compiler may move such a load up"


@needs_compiler
@pytest.mark.parametrize("sanitizer", RUNS)
def test_an_ordinary_launch_awaits_nothing(sanitizer: Sanitizer) -> None:
    x, out = np.arange(32, dtype=np.float32), np.full(32, np.nan, np.float32)
    runtime = HostRuntime(sanitizer, sources=SOURCES)
    runtime.launch("primitives.cu", "copy_after_wait", (1, 1, 1), (32, 1, 1), (x, out))
    np.testing.assert_array_equal(out, x)


@needs_compiler
def test_a_prefetch_is_of_memory_that_there_is() -> None:
    x, out = np.zeros(4, np.float32), np.zeros(1, np.float32)
    for at, fails in ((3, False), (4, True)):
        runtime = HostRuntime("asan", sources=SOURCES)
        arguments = x, out, np.int32(at)
        with pytest.raises(LaunchFailed, match="prefetch") if fails else nullcontext():
            runtime.launch("primitives.cu", "prefetch_at", (1, 1, 1), (1, 1, 1), arguments)


def test_every_primitive_is_tested() -> None:
    tested = (SOURCES / "primitives.cu").read_text()
    for path in FILES:
        if path.parent.name == "primitives":
            assert f"primitives/{path.name}" in tested


def launch(kernel: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, np.nan)
    HostRuntime(sources=SOURCES).launch("primitives.cu", kernel, (1, 1, 1), (32, 1, 1), (x, out))
    return out


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_warp_sum(dtype: str) -> None:
    """Every lane gets the same bits, those of the butterfly: x_i + x_(i^16), then ^8, …"""
    T = "float" if dtype == "float32" else "double"
    x = np.random.default_rng(0).standard_normal(32).astype(dtype)
    expected = x
    for distance in (16, 8, 4, 2, 1):
        expected = expected + expected[np.arange(32) ^ distance]
    np.testing.assert_array_equal(launch(f"sum_of_warp<{T}>", x), expected)
    assert len(set(expected)) == 1


@needs_compiler
def test_warp_max() -> None:
    x = -np.random.default_rng(0).uniform(1, 2, 32).astype(np.float32)
    for lane in (0, 13, 31):
        x[lane] += 1
        np.testing.assert_array_equal(launch("max_of_warp<float>", x), np.full(32, x.max()))


@needs_compiler
@pytest.mark.parametrize("sanitizer", RUNS)
@pytest.mark.parametrize(
    ("T", "dtype"), [("float", np.float32), ("double", np.float64), ("unsigned char", np.uint8)]
)
@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_async_copies(sanitizer: Sanitizer, T: str, dtype: type, ahead: int) -> None:
    """A copy is there after its wait, and the place it will take holds nothing usable before."""
    rounds = 5
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rounds, 32)).astype(dtype)
    if dtype == np.uint8:
        x = rng.integers(0, 255, x.shape, np.uint8)
    out, early = np.zeros_like(x), np.zeros_like(x)
    runtime = HostRuntime(sanitizer, sources=SOURCES)
    runtime.prepare(
        ("primitives.cu", f"fetch_ahead<{name}, {n}>")
        for name in ("float", "double", "unsigned char")
        for n in (1, 2, 3)
    )
    kernel = f"fetch_ahead<{T}, {ahead}>"
    runtime.launch("primitives.cu", kernel, (1, 1, 1), (32, 1, 1), (x, out, early, np.int32(5)))
    np.testing.assert_array_equal(out, x[:, ::-1])
    assert (early[: rounds - ahead].view(np.uint8) == 255).all()


@needs_compiler
def test_async_copy_of_sixteen_bytes() -> None:
    x = np.arange(129, dtype=np.float32)
    out = np.full(128, np.nan, np.float32)
    runtime = HostRuntime(sources=SOURCES)

    def run(source: np.ndarray) -> None:
        kernel = "fetch_sixteen_bytes"
        runtime.launch("primitives.cu", kernel, (1, 1, 1), (32, 1, 1), (source, out))

    aligned = x[(-x.ctypes.data % 16) // 4 :][:128]
    run(aligned)
    np.testing.assert_array_equal(out, aligned)
    with pytest.raises(LaunchFailed, match="16 bytes from or to another multiple"):
        run(x[1:])


def sums_of_four(dtype: type, blocks: int, rounds: int) -> np.ndarray:
    """What each thread of four blocks adds, (blocks, rounds, 32)."""
    block, round, lane = np.ogrid[:blocks, :rounds, :32]
    expected = np.zeros((blocks, rounds, 32), dtype)
    for rank in range(4):
        expected += dtype(1) / (1 + block // 4 * 4 + rank + 8 * round + lane).astype(dtype)
    return expected


def send_in_cluster(sanitizer: Sanitizer, dtype: type, places: int = 2) -> None:
    """In two clusters of four."""
    T, rounds, blocks = "float" if dtype == np.float32 else "double", 5, 8
    out = np.full((blocks, rounds, 32), np.nan, dtype)
    HostRuntime(sanitizer, sources=SOURCES).launch(
        "primitives.cu", f"send_in_cluster<{T}, {places}>", (blocks, 1, 1), (32, 1, 1),
        (out, np.int32(rounds)), cluster=(4, 1, 1),
    )  # fmt: skip
    np.testing.assert_array_equal(out, sums_of_four(dtype, blocks, rounds))


@needs_compiler
@pytest.mark.parametrize("sanitizer", RUNS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cluster(sanitizer: Sanitizer, dtype: type) -> None:
    """Rank, barrier and numbers sent to all."""
    send_in_cluster(sanitizer, dtype)


@needs_compiler
def test_numbers_that_may_be_sent_too_early_are_seen() -> None:
    """With one place, a block sends the next number while others still read the last one."""
    with pytest.raises(LaunchFailed, match="data race"):
        send_in_cluster("tsan", np.float32, places=1)


@needs_compiler
@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (0, "an mbarrier expects 1048576 bytes"),
        (1, "told twice in a phase what to expect"),
        (2, "phase 1 is waited for in phase 0"),
        (3, "the bytes of phase 0 do not come"),
        (4, "counts 4 bytes more than it expects|phase 0 is waited for in phase"),
    ],
)
def test_rules_of_a_transaction_barrier(rule: int, complaint: str) -> None:
    with pytest.raises(LaunchFailed, match=complaint):
        HostRuntime(sources=SOURCES).launch(
            "primitives.cu", "break_transaction_rule", (2, 1, 1), (1, 1, 1),
            (np.int32(rule),), cluster=(2, 1, 1),
        )  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("sanitizer", RUNS)
def test_last_block(sanitizer: Sanitizer) -> None:
    """It alone says so, it has what all threads wrote, and the count starts over."""
    finished = np.zeros(1, np.uint32)
    for blocks in (1, 3, 2, 3):
        parts, out = np.full(40 * blocks, -1, np.int32), np.full(1, -1, np.int32)
        last = np.full(blocks, -1, np.int32)
        HostRuntime(sanitizer, sources=SOURCES).launch(
            "primitives.cu", "add_when_last", (blocks, 1, 1), (10, 4, 1),
            (parts, out, last, finished),
        )  # fmt: skip
        assert out[0] == 40 * blocks * (blocks + 1) // 2
        assert sorted(last) == [0] * (blocks - 1) + [1]
        assert finished[0] == 0


TOGETHER = (0, 0, 0)  # in place of a cluster's size: a cooperative launch


def tell_others(
    sanitizer: Sanitizer, dtype: type, places: int = 2, cluster: tuple[int, int, int] = TOGETHER
) -> None:
    T, rounds, blocks = "float" if dtype == np.float32 else "double", 5, 8
    out = np.full((blocks, rounds, 32), np.nan, dtype)
    letters = np.zeros(blocks // 4 * places * 128 * out.itemsize // 4, np.uint64)
    HostRuntime(sanitizer, sources=SOURCES).launch(
        "primitives.cu", f"tell_others<{T}, {places}>", (blocks, 1, 1), (32, 1, 1),
        (out, letters, np.int32(rounds)), cluster=cluster,
    )  # fmt: skip
    np.testing.assert_array_equal(out, sums_of_four(dtype, blocks, rounds))


@needs_compiler
@pytest.mark.parametrize("sanitizer", RUNS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_letters(sanitizer: Sanitizer, dtype: type) -> None:
    tell_others(sanitizer, dtype)


@needs_compiler
def test_letters_that_may_be_written_too_early_are_seen() -> None:
    """With one place, a block writes the next message while others still read the last one."""
    with pytest.raises(LaunchFailed, match="data race"):
        tell_others("tsan", np.float32, places=1)


def pass_on(sanitizer: Sanitizer, blocks: int, meets: bool = True) -> None:
    rounds = 4
    x = np.full((rounds + 1, 32 * blocks), np.nan, np.float32)
    x[0] = np.arange(32 * blocks)
    expected = [np.roll(x[0], -32 * round) + round for round in range(rounds + 1)]
    HostRuntime(sanitizer, sources=SOURCES).launch(
        "primitives.cu", "pass_on", (blocks, 1, 1), (32, 1, 1),
        (x, np.zeros(1, np.uint32), np.int32(rounds), np.int32(meets)), cluster=TOGETHER,
    )  # fmt: skip
    np.testing.assert_array_equal(x, expected)


@needs_compiler
@pytest.mark.parametrize("sanitizer", RUNS)
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_the_barrier_of_a_grid(sanitizer: Sanitizer, blocks: int) -> None:
    pass_on(sanitizer, blocks)


@needs_compiler
def test_blocks_that_do_not_meet_are_seen() -> None:
    with pytest.raises(LaunchFailed, match="data race"):
        pass_on("tsan", 3, meets=False)


@needs_compiler
def test_blocks_that_do_not_run_at_once_wait_in_vain() -> None:
    with pytest.raises(LaunchFailed, match=r"the barrier of the grid at .* is not met"):
        HostRuntime(sources=SOURCES).launch(
            "primitives.cu", "pass_on", (2, 1, 1), (32, 1, 1),
            (np.zeros((2, 64), np.float32), np.zeros(1, np.uint32), np.int32(1), np.int32(1)),
        )  # fmt: skip
    with pytest.raises(LaunchFailed, match="message 1 does not come"):
        tell_others("plain", np.float32, cluster=(1, 1, 1))
    with pytest.raises(LaunchFailed, match="the blocks of a cooperative launch are no cluster"):
        HostRuntime(sources=SOURCES).launch(
            "primitives.cu", "rank_of_no_cluster", (2, 1, 1), (1, 1, 1),
            (np.zeros(1, np.int32),), cluster=TOGETHER,
        )  # fmt: skip
