"""What the stand-in tells and a GPU does not, or not always; `test_standin` runs it.

pytest --stand-in H100 tests/support/standin_rules.py
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

from backprop_gpu.activations import Activation
from backprop_gpu.cuda.catalogue import Catalogue
from backprop_gpu.testing import standin, twins
from driver_rules import BYTES, CU, PUT, STEP, Gpu, N, do, fork, in_thread, result


@pytest.fixture
def stand_in() -> Iterator[standin.Standin]:
    running = standin.running()
    assert running is not None, "run it with --stand-in CARD"
    running.order("late")
    yield running
    running.reset()
    running.order("late")


@pytest.fixture
def gpu(stand_in: standin.Standin) -> Gpu:
    return Gpu()


@pytest.fixture
def broken(gpu: Gpu, stand_in: standin.Standin) -> Callable[..., None]:
    """Expects that a wait for `gpu.stream` fails, and why: these words in this order."""

    def expect(*words: Any, error: Any = CU.CUDA_ERROR_ILLEGAL_ADDRESS, stream: Any = None) -> None:
        assert result(driver.cuStreamSynchronize, stream or gpu.stream) == error
        said(stand_in, *words)

    return expect


def said(stand_in: standin.Standin, *words: Any) -> None:
    at = 0
    for word in map(str, words):
        assert word in stand_in.reason()[at:], (word, stand_in.reason())
        at = stand_in.reason().index(word, at) + len(word)


# -- memory --------------------------------------------------------------------------------


def test_fresh_memory_is_nan(gpu: Gpu) -> None:
    a, out = gpu.floats(), np.zeros(N, np.float32)
    do(driver.cuMemcpyDtoH, out, a, BYTES)
    assert np.isnan(out).all()
    assert np.isnan(gpu.pinned()[1]).all()


@pytest.mark.usefixtures("survives")
@pytest.mark.parametrize("count", [N + 1, N + 64])
def test_a_write_behind_a_buffer(gpu: Gpu, broken: Any, count: int) -> None:
    kernel, a = gpu.kernel("put"), gpu.floats()
    gpu.launch(kernel, (int(a), 1, count), PUT, grid=(2, 1, 1))
    broken("put wrote at byte 1024 of buffer", "1024 bytes")


@pytest.mark.usefixtures("survives")
def test_a_write_in_front_of_a_buffer(gpu: Gpu, broken: Any) -> None:
    arguments = (int(gpu.floats()), -1), (ctypes.c_void_p, ctypes.c_longlong)
    gpu.launch(gpu.kernel("write_at"), *arguments, block=(1, 1, 1))
    broken("write_at wrote at byte -4 of buffer")


@pytest.mark.usefixtures("survives")
def test_a_buffer_that_the_kernel_was_not_given(gpu: Gpu, broken: Any) -> None:
    a, b = sorted(int(gpu.floats()) for _ in range(2))
    values = a, (b - a) // 4, a
    types = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p
    gpu.launch(gpu.kernel("read_at"), values, types, block=(1, 1, 1))
    broken("read_at", "block (0,0,0)", "thread (0,0,0) touched", "byte 0 of buffer", hex(b))


def test_a_kernel_on_what_was_freed(gpu: Gpu, broken: Any) -> None:
    a = gpu.floats()
    do(driver.cuMemFree, a)
    assert gpu.put(a) == CU.CUDA_SUCCESS
    broken("put: parameter 0", "was freed by cuMemFree")


def test_a_kernel_after_the_free_in_its_stream(gpu: Gpu, broken: Any) -> None:
    a = do(driver.cuMemAllocAsync, BYTES, gpu.stream)
    do(driver.cuMemFreeAsync, a, gpu.stream)
    assert gpu.put(a) == CU.CUDA_SUCCESS
    broken("put: parameter 0", "was freed by cuMemFreeAsync")


def test_what_another_stream_frees(gpu: Gpu, broken: Any) -> None:
    other = gpu.new_stream()
    a = do(driver.cuMemAllocAsync, BYTES, gpu.stream)
    assert gpu.put(a) == CU.CUDA_SUCCESS
    do(driver.cuMemFreeAsync, a, other)
    broken("put uses buffer", "which another stream frees; nothing makes that wait")


def test_what_another_stream_frees_after_an_event(gpu: Gpu) -> None:
    other, event = gpu.new_stream(), gpu.new_event()
    a = do(driver.cuMemAllocAsync, BYTES, gpu.stream)
    assert gpu.put(a) == CU.CUDA_SUCCESS
    do(driver.cuEventRecord, event, gpu.stream)
    do(driver.cuStreamWaitEvent, other, event, 0)
    do(driver.cuMemFreeAsync, a, other)
    do(driver.cuStreamSynchronize, other)
    do(driver.cuStreamSynchronize, gpu.stream)


def test_what_another_stream_has_yet_to_allocate(gpu: Gpu, broken: Any) -> None:
    a = do(driver.cuMemAllocAsync, BYTES, gpu.new_stream())
    assert gpu.put(a) == CU.CUDA_SUCCESS
    broken("put: buffer", "was allocated on another stream, and nothing waits for that")


def test_a_pinned_buffer_that_is_freed_before_its_copy(gpu: Gpu, broken: Any) -> None:
    pinned, _ = gpu.pinned()
    do(driver.cuMemcpyHtoDAsync, gpu.floats(), pinned, BYTES, gpu.stream)
    do(driver.cuMemFreeHost, pinned)
    broken("cuMemcpyHtoDAsync: pinned buffer", "was freed by cuMemFreeHost")


@pytest.mark.usefixtures("survives")
def test_an_overrun_of_a_pinned_buffer(gpu: Gpu, stand_in: standin.Standin) -> None:
    pinned, _ = gpu.pinned()
    ctypes.memset(pinned + BYTES, 0, 1)
    assert result(driver.cuMemFreeHost, pinned) == CU.CUDA_ERROR_ILLEGAL_ADDRESS
    said(stand_in, "wrote at byte 1024 of pinned buffer")


@pytest.mark.parametrize("faulthandler", [False, True])
def test_the_host_reads_device_memory(faulthandler: bool) -> None:
    code = (
        "from backprop_gpu.testing import standin\n"
        "standin.start()\n"
        "import ctypes, faulthandler\n"
        f"if {faulthandler}: faulthandler.enable()\n"
        "from driver_rules import Gpu\n"
        "ctypes.string_at(int(Gpu().floats()) + 8, 1)\n"
    )
    folder = str(Path(__file__).parent)
    command = ["env", "-u", "LD_PRELOAD", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == -11
    assert "the host touched device memory" in done.stderr
    assert "byte 8 of buffer 1 (1024 bytes" in done.stderr


# -- late ----------------------------------------------------------------------------------


def test_pinned_memory_is_read_late(gpu: Gpu) -> None:
    a, (pinned, values), out = gpu.floats(), gpu.pinned(), np.zeros(N, np.float32)
    values[:] = 5
    do(driver.cuMemcpyHtoDAsync, a, pinned, BYTES, gpu.stream)
    values[:] = 7
    do(driver.cuMemcpyDtoHAsync, out, a, BYTES, gpu.stream)
    np.testing.assert_array_equal(out, np.full(N, 7))


def test_pinned_memory_is_written_late(gpu: Gpu) -> None:
    a, (pinned, values) = gpu.floats(), gpu.pinned()
    gpu.put(a, 5)
    do(driver.cuMemcpyDtoHAsync, pinned, a, BYTES, gpu.stream)
    assert np.isnan(values).all()
    do(driver.cuStreamSynchronize, gpu.stream)
    np.testing.assert_array_equal(values, np.full(N, 5))


def test_filling_and_copies_within_the_device_do_not_wait(gpu: Gpu) -> None:
    """Though their names do not say Async."""
    pinned, values = gpu.pinned()
    a = gpu.floats()
    do(driver.cuMemsetD32, a, 0, N)
    do(driver.cuMemcpyDtoHAsync, pinned, a, BYTES, gpu.stream)
    do(driver.cuStreamSynchronize, gpu.stream)  # which does not wait for the legacy stream
    assert np.isnan(values).all()


@pytest.mark.parametrize("order", ["late", "others", "random"])
def test_the_order_of_what_nothing_orders(gpu: Gpu, stand_in: standin.Standin, order: Any) -> None:
    """One stream writes, another reads, and only the second is waited for."""
    found = set()
    for seed in range(10):
        stand_in.order(order, seed)
        a, out, other = gpu.floats(), np.zeros(N, np.float32), gpu.new_stream()
        gpu.put(a, 2)
        do(driver.cuMemcpyDtoHAsync, out, a, BYTES, other)
        found.add(str(out[0]))
        do(driver.cuStreamSynchronize, gpu.stream)
    assert found == {"late": {"nan"}, "others": {"2.0"}, "random": {"nan", "2.0"}}[order]


@pytest.mark.parametrize("order", ["late", "others", "random"])
def test_branches_of_a_graph_that_nothing_orders(
    gpu: Gpu, stand_in: standin.Standin, order: Any
) -> None:
    a, event = gpu.floats(), gpu.new_event()
    other = gpu.new_stream()
    do(driver.cuStreamBeginCapture, gpu.stream, driver.CUstreamCaptureMode(0))
    gpu.put(a, 0)
    do(driver.cuEventRecord, event, gpu.stream)
    do(driver.cuStreamWaitEvent, other, event, 0)
    gpu.put(a, 1)
    gpu.put(a, 2, other)
    do(driver.cuEventRecord, event, other)
    do(driver.cuStreamWaitEvent, gpu.stream, event, 0)
    graph = do(driver.cuStreamEndCapture, gpu.stream)
    executable = do(driver.cuGraphInstantiate, graph, 0)
    found = set()
    for seed in range(10):
        stand_in.order(order, seed)
        out = np.zeros(N, np.float32)
        do(driver.cuGraphLaunch, executable, gpu.stream)
        do(driver.cuMemcpyDtoHAsync, out, a, BYTES, gpu.stream)
        found.add(float(out[0]))
    assert found == {"late": {1.0}, "others": {2.0}, "random": {1.0, 2.0}}[order]


def test_a_question_is_first_answered_with_no(gpu: Gpu) -> None:
    event = gpu.new_event()
    gpu.put(gpu.floats())
    do(driver.cuEventRecord, event, gpu.stream)
    assert result(driver.cuEventQuery, event) == CU.CUDA_ERROR_NOT_READY
    assert result(driver.cuEventQuery, event) == CU.CUDA_SUCCESS


def test_more_work_than_the_queue_holds(gpu: Gpu) -> None:
    a, out = gpu.floats(), np.zeros(N, np.float32)
    kernel = gpu.kernel("add_one")
    types = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
    do(driver.cuMemsetD32Async, a, 0, N, gpu.stream)
    for _ in range(2000):
        gpu.launch(kernel, (int(a), int(a), 1), types, block=(1, 1, 1))
    do(driver.cuMemcpyDtoHAsync, out, a, BYTES, gpu.stream)
    assert out[0] == 2000


# -- programmatic launches -----------------------------------------------------------------


def too_early(gpu: Gpu, kernel: Any, captured: bool, order: str) -> None:
    """Queue a kernel that may start before the one that writes what it reads."""
    stand_in = standin.running()
    assert stand_in is not None
    stand_in.order(order)
    a, b = gpu.floats(2 * N), gpu.floats(2 * N)
    if captured:
        gpu.begin()
    gpu.put(a, 1, count=2 * N)
    values = int(a), int(b), 2 * N
    error = gpu.launch(kernel, values, STEP, grid=(2, 1, 1), programmatic=True)
    assert error == CU.CUDA_SUCCESS
    if captured:
        graph = do(driver.cuStreamEndCapture, gpu.stream)
        do(driver.cuGraphLaunch, do(driver.cuGraphInstantiate, graph, 0), gpu.stream)


@pytest.mark.usefixtures("survives")
@pytest.mark.parametrize("order", ["late", "others", "random"])
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(
    ("name", "block"), [("add_one", 0), ("waits_too_late", 0), ("one_block_waits", 1)]
)
def test_memory_is_touched_before_the_wait(
    gpu: Gpu, broken: Any, name: str, block: int, captured: bool, order: str
) -> None:
    too_early(gpu, gpu.kernel(name), captured, order)
    broken(name, f"block ({block},0,0)", "thread (0,0,0) touched", "and has not waited")


def test_behind_several_branches(gpu: Gpu, stand_in: standin.Standin) -> None:
    a, b = gpu.floats(), gpu.floats()
    gpu.begin()
    gpu.put(a)
    other, event = fork(gpu)
    assert gpu.put(b, 2, other) == CU.CUDA_SUCCESS
    gpu.put(a)
    do(driver.cuEventRecord, event, other)
    do(driver.cuStreamWaitEvent, gpu.stream, event, 0)
    kernel, values = gpu.kernel("all_wait"), (int(a), int(a), 1)
    error = gpu.launch(kernel, values, STEP, programmatic=True)
    assert error == CU.CUDA_ERROR_NOT_SUPPORTED
    said(stand_in, "all_wait is captured as a programmatic launch behind 2 branches")
    assert gpu.launch(kernel, values, STEP) == CU.CUDA_SUCCESS
    assert gpu.end() == CU.CUDA_SUCCESS


@pytest.mark.parametrize("captured", [False, True])
def test_no_thread_waits(gpu: Gpu, broken: Any, captured: bool) -> None:
    if captured:
        gpu.begin()
    error = gpu.launch(gpu.put_kernel, (0, 1, 0), PUT, programmatic=True)  # which touches nothing
    assert error == CU.CUDA_SUCCESS
    if captured:
        graph = do(driver.cuStreamEndCapture, gpu.stream)
        do(driver.cuGraphLaunch, do(driver.cuGraphInstantiate, graph, 0), gpu.stream)
    broken("put was launched programmatically", "none of its threads has waited",
           error=CU.CUDA_ERROR_LAUNCH_FAILED)  # fmt: skip


@pytest.mark.usefixtures("survives")
def test_a_kernel_of_ours_that_has_lost_its_wait(
    gpu: Gpu, broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(twins.sources, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "hadamard.cu"
    source = path.read_text()
    assert source.count("  await_prerequisites();\n") == 1
    path.write_text(source.replace("  await_prerequisites();\n", ""))
    kernel = Catalogue(np.dtype("float32")).hadamard()
    types = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong
    a, out = gpu.floats(), gpu.floats()
    for sources in (twins.sources, tmp_path):
        monkeypatch.setattr(twins, "sources", sources)
        cubin = twins.compile_kernels([kernel], f"sm_{gpu.major}{gpu.minor}a")
        library = do(driver.cuLibraryLoadData, cubin.code, [], [], 0, [], [], 0)
        symbol = cubin.symbols[kernel.expression].encode()
        function = do(driver.cuLibraryGetKernel, library, symbol)
        values = int(a), int(a), int(out), N
        error = gpu.launch(function, values, types, programmatic=kernel.programmatic)
        assert error == CU.CUDA_SUCCESS
        if sources != tmp_path:
            do(driver.cuStreamSynchronize, gpu.stream)
    broken("hadamard", "touched", "and has not waited")


# -- objects -------------------------------------------------------------------------------


def test_what_was_destroyed(gpu: Gpu, stand_in: standin.Standin) -> None:
    stream, event = gpu.new_stream(), gpu.new_event()
    do(driver.cuStreamDestroy, stream)
    do(driver.cuEventDestroy, event)
    assert result(driver.cuStreamSynchronize, stream) == CU.CUDA_ERROR_INVALID_HANDLE
    said(stand_in, "cuStreamSynchronize", "no stream's handle, or it was destroyed")
    assert result(driver.cuEventRecord, event, gpu.stream) == CU.CUDA_ERROR_INVALID_HANDLE
    assert result(driver.cuEventDestroy, event) == CU.CUDA_ERROR_INVALID_HANDLE


def graph_of_one(gpu: Gpu, a: Any, kernel: Any) -> Any:
    gpu.begin()
    assert gpu.launch(kernel, (int(a), 1, N), PUT) == CU.CUDA_SUCCESS
    return do(driver.cuGraphInstantiate, do(driver.cuStreamEndCapture, gpu.stream), 0)


def test_a_graph_that_outlives_its_memory(gpu: Gpu, broken: Any) -> None:
    a = gpu.floats()
    executable = graph_of_one(gpu, a, gpu.kernel("put"))
    do(driver.cuMemFree, a)
    do(driver.cuGraphLaunch, executable, gpu.stream)
    broken("put", "was freed by cuMemFree")


def test_a_graph_that_outlives_its_memory_in_another_stream(gpu: Gpu, broken: Any) -> None:
    a = do(driver.cuMemAllocAsync, BYTES, gpu.stream)
    do(driver.cuStreamSynchronize, gpu.stream)
    executable = graph_of_one(gpu, a, gpu.kernel("put"))
    do(driver.cuMemFreeAsync, a, gpu.new_stream())
    do(driver.cuGraphLaunch, executable, gpu.stream)
    broken("put", "was freed by cuMemFreeAsync")


def test_a_graph_that_outlives_its_kernels(gpu: Gpu, stand_in: standin.Standin) -> None:
    library, kernel = gpu.library("put")
    executable = graph_of_one(gpu, gpu.floats(), kernel)
    do(driver.cuLibraryUnload, library)
    error = result(driver.cuGraphLaunch, executable, gpu.stream)
    assert error == CU.CUDA_ERROR_INVALID_HANDLE
    said(stand_in, "the library of the graph's put was unloaded")


def test_code_for_another_card(gpu: Gpu, stand_in: standin.Standin) -> None:
    kernel = Catalogue(np.dtype("float32")).hadamard()
    code = twins.compile_kernels([kernel], "sm_120a").code
    error = result(driver.cuLibraryLoadData, code, [], [], 0, [], [], 0)
    assert error == CU.CUDA_ERROR_NO_BINARY_FOR_GPU
    said(stand_in, "the code is for sm_120a, the card is of")


def test_after_a_fork(gpu: Gpu) -> None:
    child = os.fork()
    if child == 0:
        error = result(driver.cuCtxSynchronize)
        os._exit(int(error == CU.CUDA_ERROR_NOT_INITIALIZED))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


# -- failing on command --------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_the_nth_allocation_fails(gpu: Gpu, stand_in: standin.Standin, n: int) -> None:
    stand_in.fail("allocation", n, CU.CUDA_ERROR_OUT_OF_MEMORY)
    errors = [result(driver.cuMemAlloc, 16) for _ in range(4)]
    expected = [CU.CUDA_SUCCESS] * 4
    expected[n - 1] = CU.CUDA_ERROR_OUT_OF_MEMORY
    assert errors == expected


def test_a_failure_that_stays(gpu: Gpu, stand_in: standin.Standin) -> None:
    a = gpu.floats()
    stand_in.fail("launch", 1, CU.CUDA_ERROR_LAUNCH_FAILED)
    assert gpu.put(a) == CU.CUDA_ERROR_LAUNCH_FAILED
    assert result(driver.cuStreamSynchronize, gpu.stream) == CU.CUDA_ERROR_LAUNCH_FAILED
    said(stand_in, "it was told to fail")
    stand_in.reset()
    assert gpu.put(a) == CU.CUDA_SUCCESS
    do(driver.cuStreamSynchronize, gpu.stream)


def test_failures_are_forgotten(gpu: Gpu, stand_in: standin.Standin) -> None:
    stand_in.fail("any", 2, CU.CUDA_ERROR_UNKNOWN)
    stand_in.fail_no_more()
    for _ in range(3):
        do(driver.cuMemAlloc, 16)


def test_calls_are_counted(gpu: Gpu, stand_in: standin.Standin) -> None:
    kinds = ("allocation", "launch", "copy", "synchronization", "release")
    before = {kind: stand_in.count(kind) for kind in kinds}
    kernel, a = gpu.kernel("put"), gpu.floats()
    for _ in range(2):
        gpu.launch(kernel, (int(a), 1, N), PUT)
    do(driver.cuMemsetD8Async, a, 0, 1, gpu.stream)
    do(driver.cuStreamSynchronize, gpu.stream)
    do(driver.cuMemFree, a)
    found = {kind: stand_in.count(kind) - before[kind] for kind in kinds}
    assert found == {"allocation": 1, "launch": 2, "copy": 1, "synchronization": 1, "release": 1}


def test_what_a_broken_context_gives_back(gpu: Gpu, stand_in: standin.Standin) -> None:
    before = stand_in.live()
    a = do(driver.cuMemAllocAsync, BYTES, gpu.stream)
    stream, event = gpu.new_stream(), gpu.new_event()
    stand_in.fail("copy", 1, CU.CUDA_ERROR_ILLEGAL_ADDRESS)
    assert result(driver.cuMemsetD8Async, a, 0, 1, stream) == CU.CUDA_ERROR_ILLEGAL_ADDRESS
    for give_back, handle in (
        (driver.cuMemFree, a),
        (driver.cuEventDestroy, event),
        (driver.cuStreamDestroy, stream),
    ):
        assert result(give_back, handle) == CU.CUDA_ERROR_ILLEGAL_ADDRESS
    assert stand_in.live() == before


# -- Python within kernels -----------------------------------------------------------------


def test_an_activation_of_python_s(gpu: Gpu) -> None:
    """The kernel takes Python's lock, while another thread that has it calls the driver."""
    sigma = Activation("half", lambda z: z / 2, lambda z: 0.5 + 0 * z)
    kernel = Catalogue(np.dtype("float32")).bias_activation(sigma)
    cubin = twins.compile_kernels([kernel], f"sm_{gpu.major}{gpu.minor}a")
    library = do(driver.cuLibraryLoadData, cubin.code, [], [], 0, [], [], 0)
    symbol = cubin.symbols[kernel.expression].encode()
    function = do(driver.cuLibraryGetKernel, library, symbol)
    z, b, a = gpu.floats(), gpu.floats(), gpu.floats()
    do(driver.cuMemsetD32Async, z, int(np.float32(3).view(np.uint32)), N, gpu.stream)
    do(driver.cuMemsetD32Async, b, 0, N, gpu.stream)
    pointer = ctypes.c_void_p
    types = (*[pointer] * 5, ctypes.c_int, ctypes.c_int)
    values = int(z), int(b), 0, int(a), 0, 1, N
    for _ in range(20):
        assert gpu.launch(function, values, types) == CU.CUDA_SUCCESS
    done: list[bool] = []

    def call_the_driver() -> None:
        while not done:
            do(driver.cuDeviceGetCount)

    thread = threading.Thread(target=call_the_driver)
    thread.start()
    out = np.zeros(N, np.float32)
    do(driver.cuMemcpyDtoHAsync, out, a, BYTES, gpu.stream)
    done.append(True)
    thread.join()
    np.testing.assert_array_equal(out, np.full(N, 1.5))


def test_two_threads_wait_for_one_stream(gpu: Gpu) -> None:
    a = gpu.floats()
    for _ in range(50):
        gpu.put(a)

    def wait() -> Any:
        do(driver.cuCtxSetCurrent, gpu.context)
        return result(driver.cuStreamSynchronize, gpu.stream)

    assert in_thread(wait) == CU.CUDA_SUCCESS
    assert wait() == CU.CUDA_SUCCESS
