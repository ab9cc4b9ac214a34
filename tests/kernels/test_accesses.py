"""How many wavefronts and sectors the accesses of the kernels on tensor cores take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fused_cases
import persistent_cases
from backprop_gpu import activations, planning
from backprop_gpu.backends.cuda import CudaBackend
from backprop_gpu.optimizers import SGD
from host_cuda.accesses import CountingRuntime, Line
from host_cuda.backend import BackendRuntime, HostArray
from host_cuda.runtime import KERNELS, SOURCES
from machine import needs_compiler

#: Times the fewest there could be: for shared memory in an inner loop, and for global memory.
WAVEFRONTS, SECTORS = 1.1, 1.1


def aligned(*shape: int, dtype: Any = np.float32) -> HostArray:
    """As the device's memory begins: at a multiple of 256 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + size].view(dtype).reshape(shape).view(HostArray)


class AlignedRuntime(BackendRuntime):
    def empty(self, shape: Any, dtype: Any) -> HostArray:
        return aligned(*np.atleast_1d(shape).tolist(), dtype=dtype)

    zeros = empty

    def array(self, values: Any, dtype: Any = None) -> HostArray:
        host = np.ascontiguousarray(values, dtype)
        array = self.empty(host.shape, host.dtype)
        array[...] = host
        return array


def drawn(*shape: int) -> HostArray:
    array = aligned(*shape)
    array[...] = np.random.default_rng(0).standard_normal(shape)
    return array


def lines_of(op: str, tile: planning.Tile, precision: str) -> list[Line]:
    needs_compiler()
    runtime, counting = BackendRuntime(), CountingRuntime()
    runtime.host = counting
    choice = planning.Product("tiled", tile, 1, 0.0, "forced by a test")
    backend = CudaBackend("float32", runtime, lambda *_: choice, precision=precision)
    sigma = activations.get("identity")
    m, n, k = tile.bm, 2 * tile.bn, 4 * tile.bk
    if op == "forward":
        backend.forward(drawn(n, k), drawn(n), drawn(m, k), sigma, aligned(m, n), aligned(m, n))
    elif op == "hidden_error":
        backend.hidden_error(drawn(k, n), drawn(m, k), None, drawn(m, n), sigma, aligned(m, n))
    else:
        backend.weight_gradient(drawn(k, m), drawn(k, n), aligned(m, n), aligned(m))
    return counting.lines


@pytest.mark.parametrize("op", ["forward", "hidden_error", "weight_gradient"])
@pytest.mark.parametrize(
    ("precision", "tile"),
    [(name, tile) for name, tiles in planning.TENSOR_TILES.items() for tile in tiles],
    ids=lambda value: str(value).replace(" on tensor cores", ""),
)
def test_of_products_on_tensor_cores(op: str, precision: str, tile: planning.Tile) -> None:
    lines = lines_of(op, tile, precision)
    check_inner_loop(lines)
    stored = [line for line in lines if line.memory == "global"]
    assert stored
    for line in stored:
        assert line.ratio <= SECTORS, line


def check_inner_loop(lines: list[Line]) -> None:
    source = (KERNELS / "tensor_gemm.cuh").read_text().splitlines()

    def number(text: str) -> int:
        (found,) = (i for i, line in enumerate(source, 1) if text in line)
        return found

    begin, end = number("for (int p = p_begin; p < p_end; p += "), number("slices have been read")
    loop = {number("return by_p ? buffer[i][p]"), *range(begin, end)}
    inner = [
        line
        for line in lines
        if line.memory == "shared"
        and (
            line.file == "async_copy.cuh" or (line.file == "tensor_gemm.cuh" and line.line in loop)
        )
    ]
    assert {line.file for line in inner} == {"async_copy.cuh", "tensor_gemm.cuh"}
    for line in inner:
        assert line.ratio <= WAVEFRONTS, line


@pytest.mark.parametrize(
    ("tiles", "precision"),
    [((16, 32, 64), "bf16"), ((32, 64, 16), "tf32"), ((64, 16, 32), "tf32")],
)
def test_of_the_persistent_kernel(tiles: tuple[int, int, int], precision: str) -> None:
    """Each tile in each product; of global memory rows, epilogues and the update."""
    needs_compiler()
    form = persistent_cases.Form(
        "aligned", (64, 64, 64), ("relu", "softmax"), "quadratic", (SGD(momentum=0.5),),
        batch=64, rows=64, tiles=tiles,
    )  # fmt: skip
    runtime, counting = AlignedRuntime(), CountingRuntime()
    runtime.host = counting
    backend = CudaBackend("float32", runtime, precision=precision)
    fused_cases.Run(form, backend, np.float32).train(form.engine(backend))
    check_inner_loop(counting.lines)
    source = (KERNELS / "persistent.cu").read_text().splitlines()
    (end,) = (i for i, line in enumerate(source, 1) if "float(run.x[0]), float(run" in line)
    split = range(end - 2, end + 1)  # g++ makes four accesses of 16 bytes
    for line in counting.lines:
        if line.memory == "global" and line.times >= 64 and line.line not in split:
            assert line.ratio <= SECTORS, line


FUSED = {  # sizes, warps that share rows and columns
    "rows to themselves": ((48, 80, 16), (4, 1)),
    "rows in common": ((16, 64, 32), (2, 2)),
}


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("name", FUSED)
def test_of_the_fused_kernel(name: str, precision: str) -> None:
    """Fragments, forward and back: of the other accesses there is one for several products."""
    needs_compiler()
    sizes, warps = FUSED[name]
    form = fused_cases.Form(
        name, sizes, ("relu",) * (len(sizes) - 1), "quadratic", (SGD(),), 64, 64, 64, warps
    )
    runtime, counting = BackendRuntime(), CountingRuntime()
    runtime.host = counting
    backend = CudaBackend("float32", runtime, precision=precision)
    fused_cases.Run(form, backend, np.float32).train(form.engine(backend))
    source = (KERNELS / "fused.cuh").read_text().splitlines()
    (number,) = (i for i, line in enumerate(source, 1) if "x[i][place(i, p)] : x[p]" in line)
    inner = [
        line
        for line in counting.lines
        if line.memory == "shared"
        and (line.file == "load_matrix.cuh" if precision == "bf16" else line.line == number)
        and line.file in ("load_matrix.cuh", "fused.cuh")
    ]
    assert sum(line.times for line in inner) > 500
    plain = [line for line in inner if line.ratio > WAVEFRONTS]
    assert not plain, plain[:3]


def test_the_counter_counts() -> None:
    """Strides of a word, two, 32 and none; of 16 bytes a lane, side by side and eight apart."""
    needs_compiler()
    runtime = CountingRuntime()
    runtime.sources = SOURCES
    out = aligned(32)
    runtime.launch("accesses.cu", "strides", (1, 1, 1), (32, 1, 1), (out, aligned(32 * 32)))
    source = (SOURCES / "accesses.cu").read_text().splitlines()
    found = {}
    for line in runtime.lines:
        label = source[line.line - 1].partition("//")[2].strip()
        if label:
            found[label] = (line.memory, line.times, line.served, line.least)
    assert found == {
        "a word": ("shared", 1, 1, 1),
        "two words": ("shared", 1, 2, 1),
        "32 words": ("shared", 1, 32, 1),
        "one word for all": ("shared", 1, 1, 1),
        "16 bytes": ("shared", 1, 4, 4),
        "16 bytes, every other": ("shared", 1, 8, 4),
        "half a warp": ("shared", 1, 1, 1),
        "neighbours": ("global", 1, 4, 4),
        "a sector each": ("global", 1, 32, 4),
    }
