"""The driver's rules, each a test with the CUresult that it answers; `test_standin` runs them.

    pytest --stand-in H100 tests/support/driver_rules.py         on the stand-in
    pytest -m "not sticky" tests/support/driver_rules.py         on a GPU

They were written down from the driver's documentation. The first run on a GPU confirms or
corrects them, and the stand-in with them. What only a stand-in can tell (a write a few bytes
behind a buffer, a wait that is missing) is in `standin_rules.py`.

An error that breaks the context ends the process's use of a GPU: those tests are marked
``sticky``, and run in a process each.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

from backprop_gpu.cuda.catalogue import Kernel
from backprop_gpu.testing import standin, twins

CU = driver.CUresult
ATTRIBUTE = driver.CUdevice_attribute
FUNCTION = driver.CUfunction_attribute
GLOBAL, THREAD_LOCAL, RELAXED = (
    driver.CUstreamCaptureMode(i) for i in range(3)
)  # as the enumeration has them
N = 256
BYTES = 4 * N
#: Threads a block and blocks a cluster that a kernel is compiled for, where not 1024 and 1.
COMPILED_FOR = {"bounded": (64, 1), "cluster_of_4": (1024, 4)}
NO_CLUSTERS = "the card has no clusters"
PROGRAMMATIC = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
NO_PROGRAMMATIC = "programmatic launches are there from 9.0 on"


def result(function: Callable[..., Any], *arguments: Any) -> Any:
    """The CUresult alone."""
    return function(*arguments)[0]


def do(function: Callable[..., Any], *arguments: Any) -> Any:
    """The call must succeed; its values."""
    error, *values = function(*arguments)
    running = standin.running()
    assert error == CU.CUDA_SUCCESS, (error, running and running.reason())
    return values[0] if len(values) == 1 else tuple(values)


class Gpu:
    """A device with what the rules need, and its objects, given back at the end."""

    def __init__(self, number: int = 0) -> None:
        do(driver.cuInit, 0)
        self.device = do(driver.cuDeviceGet, number)
        self.context = do(driver.cuDevicePrimaryCtxRetain, self.device)
        do(driver.cuCtxSetCurrent, self.context)
        self.major = self.attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        self.minor = self.attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self._libraries: list[Any] = []
        self.stream = self.new_stream()
        self.put_kernel = self.kernel("put")  # before anybody captures

    def attribute(self, which: Any) -> int:
        return do(driver.cuDeviceGetAttribute, which, self.device)

    def new_stream(self, blocking: bool = False) -> Any:
        return do(driver.cuStreamCreate, 0 if blocking else 1)

    def new_event(self, timing: bool = False) -> Any:
        return do(driver.cuEventCreate, 0 if timing else 2)

    def floats(self, count: int = N) -> Any:
        return do(driver.cuMemAlloc, 4 * count)

    def pinned(self, count: int = N) -> tuple[int, np.ndarray]:
        address = do(driver.cuMemAllocHost, 4 * count)
        memory = (ctypes.c_float * count).from_address(int(address))
        return int(address), np.frombuffer(memory, np.float32)

    def library(self, name: str) -> tuple[Any, Any]:
        """(the library, the kernel of that name), compiled for this device."""
        threads, cluster = COMPILED_FOR.get(name, (1024, 1))
        arch = f"sm_{self.major}{self.minor}" + ("a" if self.major >= 9 else "")
        if standin.running() is not None:
            before, twins.sources = twins.sources, Path(__file__).parent
            kernel = Kernel("rule_kernels.cu", name, (threads, 1, 1), cluster=cluster)
            code = twins.compile_kernels([kernel], arch).code
            twins.sources = before
        else:
            from cuda.core import Program, ProgramOptions

            source = Path(__file__).with_name("rule_kernels.cu").read_text()
            if self.major < 9:
                source = source.replace("__cluster_dims__(4, 1, 1)", "")
            options = ProgramOptions(arch=arch, include_path=str(Path(__file__).parent))
            program = Program(source, "c++", options)
            code = bytes(program.compile("cubin").code)
        library = do(driver.cuLibraryLoadData, code, [], [], 0, [], [], 0)
        return library, do(driver.cuLibraryGetKernel, library, name.encode())

    def kernel(self, name: str) -> Any:
        library, kernel = self.library(name)
        self._libraries.append(library)
        return kernel

    def launch(
        self,
        kernel: Any,
        values: tuple[Any, ...],
        types: tuple[Any, ...],
        *,
        grid: tuple[int, int, int] = (1, 1, 1),
        block: tuple[int, int, int] = (N, 1, 1),
        shared: int = 0,
        stream: Any = None,
        cluster: tuple[int, int, int] | None = None,
        cooperative: bool = False,
        programmatic: bool = False,
    ) -> Any:
        """The CUresult of the launch."""
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes = shared
        config.hStream = self.stream if stream is None else stream
        attributes = []
        if cluster is not None:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            dim = attribute.value.clusterDim
            dim.x, dim.y, dim.z = cluster
            attributes.append(attribute)
        if cooperative:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            attribute.value.cooperative = 1
            attributes.append(attribute)
        if programmatic:
            attribute = driver.CUlaunchAttribute()
            attribute.id = PROGRAMMATIC
            attribute.value.programmaticStreamSerializationAllowed = 1
            attributes.append(attribute)
        config.attrs = attributes
        config.numAttrs = len(attributes)
        function = driver.CUfunction(int(kernel))
        return result(driver.cuLaunchKernelEx, config, function, (values, types), 0)

    def put(self, out: Any, value: float = 1, stream: Any = None, count: int = N) -> Any:
        types = ctypes.c_void_p, ctypes.c_float, ctypes.c_int
        return self.launch(self.put_kernel, (int(out), value, count), types, stream=stream)

    def begin(self, stream: Any = None, mode: Any = GLOBAL) -> None:
        do(driver.cuStreamBeginCapture, self.stream if stream is None else stream, mode)

    def end(self, stream: Any = None) -> Any:
        return result(driver.cuStreamEndCapture, self.stream if stream is None else stream)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    running = standin.running()
    if running is not None:
        running.reset()


def clusters(gpu: Gpu) -> None:
    if not gpu.attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH):
        pytest.skip(NO_CLUSTERS)


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


# -- contexts and handles ------------------------------------------------------------------


def test_a_thread_has_no_context_of_itself(gpu: Gpu) -> None:
    a = gpu.floats()
    for call in (
        lambda: result(driver.cuMemAlloc, 16),
        lambda: result(driver.cuStreamCreate, 0),
        lambda: result(driver.cuEventCreate, 0),
        lambda: result(driver.cuCtxSynchronize),
        lambda: result(driver.cuMemsetD8, a, 0, 16),
    ):
        assert in_thread(call) == CU.CUDA_ERROR_INVALID_CONTEXT


def test_no_such_device(gpu: Gpu) -> None:
    count = do(driver.cuDeviceGetCount)
    assert result(driver.cuDeviceGet, count) == CU.CUDA_ERROR_INVALID_DEVICE


# -- memory --------------------------------------------------------------------------------


def test_an_allocation_of_nothing(gpu: Gpu) -> None:
    assert result(driver.cuMemAlloc, 0) == CU.CUDA_ERROR_INVALID_VALUE


def test_more_than_the_card_has(gpu: Gpu) -> None:
    _, total = do(driver.cuMemGetInfo)
    assert result(driver.cuMemAlloc, total + 1) == CU.CUDA_ERROR_OUT_OF_MEMORY
    pool = do(driver.cuDeviceGetDefaultMemPool, gpu.device)
    error = result(driver.cuMemAllocFromPoolAsync, total + 1, pool, gpu.stream)
    assert error == CU.CUDA_ERROR_OUT_OF_MEMORY


def test_what_is_freed_twice(gpu: Gpu) -> None:
    a = gpu.floats()
    do(driver.cuMemFree, a)
    assert result(driver.cuMemFree, a) == CU.CUDA_ERROR_INVALID_VALUE


def test_null_may_be_freed(gpu: Gpu) -> None:
    do(driver.cuMemFree, 0)


def test_the_middle_of_an_allocation_is_not_freed(gpu: Gpu) -> None:
    a = gpu.floats()
    assert result(driver.cuMemFree, int(a) + 256) == CU.CUDA_ERROR_INVALID_VALUE
    do(driver.cuMemFree, a)


def test_a_copy_beyond_an_allocation(gpu: Gpu) -> None:
    """Of a whole granule beyond, since a driver may round what it allocates."""
    a, host = gpu.floats(), np.zeros(1 << 24, np.uint8)
    for address in (int(a), int(a) + BYTES):
        error = result(driver.cuMemcpyHtoD, address, host, host.nbytes)
        assert error == CU.CUDA_ERROR_INVALID_VALUE


def test_a_copy_to_the_host_s_memory_as_if_it_were_the_device_s(gpu: Gpu) -> None:
    host = np.zeros(N, np.float32)
    error = result(driver.cuMemcpyHtoD, host.ctypes.data, host, BYTES)
    assert error == CU.CUDA_ERROR_INVALID_VALUE


def test_a_copy_after_the_free(gpu: Gpu) -> None:
    a, host = gpu.floats(1 << 22), np.zeros(16, np.float32)
    do(driver.cuMemFree, a)
    assert result(driver.cuMemcpyHtoD, a, host, 64) == CU.CUDA_ERROR_INVALID_VALUE


def test_filling_at_an_odd_address(gpu: Gpu) -> None:
    a = gpu.floats()
    for function in (driver.cuMemsetD16, driver.cuMemsetD32):
        assert result(function, int(a) + 1, 0, 4) == CU.CUDA_ERROR_INVALID_VALUE


def test_what_a_pointer_is(gpu: Gpu) -> None:
    kinds = driver.CUpointer_attribute
    which = [
        kinds.CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        kinds.CU_POINTER_ATTRIBUTE_IS_MANAGED,
        kinds.CU_POINTER_ATTRIBUTE_RANGE_SIZE,
    ]
    a, (pinned, _), host = gpu.floats(), gpu.pinned(), np.zeros(4)
    for address, kind, size in ((int(a) + 8, 2, BYTES), (pinned + 8, 1, BYTES)):
        found = do(driver.cuPointerGetAttributes, len(which), which, address)
        assert [int(value) for value in found] == [kind, 0, 0, size]
    ordinary = do(driver.cuPointerGetAttributes, 1, which[:1], host.ctypes.data)
    assert int(ordinary[0]) == 0
    error = result(driver.cuPointerGetAttribute, which[0], host.ctypes.data)
    assert error == CU.CUDA_ERROR_INVALID_VALUE


# -- streams and events --------------------------------------------------------------------


def test_time_between_events(gpu: Gpu) -> None:
    timed, other = [gpu.new_event(timing=True) for _ in range(2)], gpu.new_event()
    elapsed = driver.cuEventElapsedTime
    assert result(elapsed, *timed) == CU.CUDA_ERROR_INVALID_HANDLE, "not recorded"
    for event in (*timed, other):
        do(driver.cuEventRecord, event, gpu.stream)
    do(driver.cuStreamSynchronize, gpu.stream)
    assert do(elapsed, *timed) >= 0
    assert result(elapsed, timed[0], other) == CU.CUDA_ERROR_INVALID_HANDLE, "no timing"


def test_an_event_that_was_not_recorded_is_done(gpu: Gpu) -> None:
    event = gpu.new_event()
    do(driver.cuEventQuery, event)
    do(driver.cuEventSynchronize, event)
    do(driver.cuStreamWaitEvent, gpu.stream, event, 0)


def test_work_becomes_done(gpu: Gpu) -> None:
    a, event = gpu.floats(), gpu.new_event()
    gpu.put(a)
    do(driver.cuEventRecord, event, gpu.stream)
    for query, handle in ((driver.cuEventQuery, event), (driver.cuStreamQuery, gpu.stream)):
        for _ in range(1_000_000):
            error = result(query, handle)
            if error == CU.CUDA_SUCCESS:
                break
            assert error == CU.CUDA_ERROR_NOT_READY
        assert error == CU.CUDA_SUCCESS


def test_work_of_a_destroyed_stream_is_done(gpu: Gpu) -> None:
    a, stream, event = gpu.floats(), gpu.new_stream(), gpu.new_event()
    assert gpu.put(a, 3, stream) == CU.CUDA_SUCCESS
    do(driver.cuEventRecord, event, stream)
    do(driver.cuStreamDestroy, stream)
    do(driver.cuStreamWaitEvent, gpu.stream, event, 0)
    do(driver.cuEventDestroy, event)
    out, values = gpu.pinned()
    do(driver.cuMemcpyDtoHAsync, out, a, BYTES, gpu.stream)
    do(driver.cuStreamSynchronize, gpu.stream)
    np.testing.assert_array_equal(values, np.full(N, 3))


def test_the_legacy_stream_waits_for_blocking_ones(gpu: Gpu) -> None:
    a, out, stream = gpu.floats(), np.zeros(N, np.float32), gpu.new_stream(blocking=True)
    assert gpu.put(a, 3, stream) == CU.CUDA_SUCCESS
    do(driver.cuMemcpyDtoH, out, a, BYTES)
    np.testing.assert_array_equal(out, np.full(N, 3))


def test_blocking_streams_wait_for_the_legacy_one(gpu: Gpu) -> None:
    a, stream = gpu.floats(), gpu.new_stream(blocking=True)
    pinned, values = gpu.pinned()
    assert gpu.put(a, 3, driver.CUstream(0)) == CU.CUDA_SUCCESS
    do(driver.cuMemcpyDtoHAsync, pinned, a, BYTES, stream)
    do(driver.cuStreamSynchronize, stream)
    np.testing.assert_array_equal(values, np.full(N, 3))


def test_pageable_memory_is_read_before_a_copy_returns(gpu: Gpu) -> None:
    a, host, out = gpu.floats(), np.full(N, 5, np.float32), np.zeros(N, np.float32)
    do(driver.cuMemcpyHtoDAsync, a, host, BYTES, gpu.stream)
    host[:] = 7
    do(driver.cuMemcpyDtoHAsync, out, a, BYTES, gpu.stream)
    np.testing.assert_array_equal(out, np.full(N, 5))


# -- capture -------------------------------------------------------------------------------


def test_capture_runs_nothing_until_the_graph_is_launched(gpu: Gpu) -> None:
    a, (out, values) = gpu.floats(), gpu.pinned()
    values[:] = 0
    gpu.put(a, 1)
    gpu.begin()
    assert gpu.put(a, 2) == CU.CUDA_SUCCESS
    graph = do(driver.cuStreamEndCapture, gpu.stream)
    for expected in (1, 2):
        do(driver.cuMemcpyDtoHAsync, out, a, BYTES, gpu.stream)
        do(driver.cuStreamSynchronize, gpu.stream)
        np.testing.assert_array_equal(values, np.full(N, expected))
        executable = do(driver.cuGraphInstantiate, graph, 0)
        do(driver.cuGraphLaunch, executable, gpu.stream)


REFUSED: dict[str, Callable[[Gpu], Any]] = {
    "cuStreamSynchronize": lambda gpu: result(driver.cuStreamSynchronize, gpu.stream),
    "cuStreamQuery": lambda gpu: result(driver.cuStreamQuery, gpu.stream),
    "cuCtxSynchronize": lambda gpu: result(driver.cuCtxSynchronize),
    "cuMemAlloc": lambda gpu: result(driver.cuMemAlloc, 16),
    "cuMemAllocHost": lambda gpu: result(driver.cuMemAllocHost, 16),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_refuses_ends_it(gpu: Gpu, name: str) -> None:
    a = gpu.floats()
    gpu.begin()
    assert REFUSED[name](gpu) == CU.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    assert gpu.put(a) == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    assert gpu.end() == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


@pytest.mark.parametrize("to_device", [True, False])
def test_a_capture_of_a_pageable_copy(gpu: Gpu, to_device: bool) -> None:
    a, host = gpu.floats(), np.zeros(N, np.float32)
    gpu.begin()
    if to_device:
        error = result(driver.cuMemcpyHtoDAsync, a, host, BYTES, gpu.stream)
    else:
        error = result(driver.cuMemcpyDtoHAsync, host, a, BYTES, gpu.stream)
    assert error == CU.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    assert gpu.end() == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


def test_a_synchronous_copy_while_a_stream_is_captured(gpu: Gpu) -> None:
    a, host = gpu.floats(), np.zeros(N, np.float32)
    gpu.begin()
    error = result(driver.cuMemcpyHtoD, a, host, BYTES)
    assert error == CU.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    assert gpu.end() == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


def test_the_legacy_stream_is_not_captured(gpu: Gpu) -> None:
    error = result(driver.cuStreamBeginCapture, driver.CUstream(0), GLOBAL)
    assert error == CU.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED


def test_the_legacy_stream_while_one_that_it_waits_for_is_captured(gpu: Gpu) -> None:
    a, stream = gpu.floats(), gpu.new_stream(blocking=True)
    gpu.begin(stream, RELAXED)
    error = result(driver.cuMemsetD8Async, a, 0, 16, driver.CUstream(0))
    assert error == CU.CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
    assert gpu.end(stream) == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


def test_the_legacy_stream_while_another_is_captured(gpu: Gpu) -> None:
    a = gpu.floats()
    gpu.begin(mode=RELAXED)
    do(driver.cuMemsetD8Async, a, 0, 16, driver.CUstream(0))
    assert gpu.end() == CU.CUDA_SUCCESS


@pytest.mark.parametrize(
    ("mode", "own", "others"),
    [(GLOBAL, False, False), (THREAD_LOCAL, False, True), (RELAXED, True, True)],
)
def test_who_may_allocate_while_a_stream_is_captured(
    gpu: Gpu, mode: Any, own: bool, others: bool
) -> None:
    def allocate() -> Any:
        do(driver.cuCtxSetCurrent, gpu.context)
        return result(driver.cuMemAlloc, 16)

    for allowed, ask in ((own, allocate), (others, lambda: in_thread(allocate))):
        gpu.begin(mode=mode)
        error = CU.CUDA_SUCCESS if allowed else CU.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        assert ask() == error
        ended = CU.CUDA_SUCCESS if allowed else CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        assert gpu.end() == ended


def test_a_thread_may_relax_its_mode(gpu: Gpu) -> None:
    gpu.begin()
    before = do(driver.cuThreadExchangeStreamCaptureMode, RELAXED)
    do(driver.cuMemAlloc, 16)
    assert do(driver.cuThreadExchangeStreamCaptureMode, before) == RELAXED
    assert gpu.end() == CU.CUDA_SUCCESS


def test_a_capture_within_a_capture(gpu: Gpu) -> None:
    gpu.begin()
    error = result(driver.cuStreamBeginCapture, gpu.stream, GLOBAL)
    assert error == CU.CUDA_ERROR_ILLEGAL_STATE
    gpu.end()


def test_the_end_of_no_capture(gpu: Gpu) -> None:
    assert gpu.end() == CU.CUDA_ERROR_ILLEGAL_STATE


def test_another_thread_ends_a_capture(gpu: Gpu) -> None:
    gpu.begin()
    assert in_thread(gpu.end) == CU.CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD
    gpu.end()
    gpu.begin(mode=RELAXED)
    assert in_thread(gpu.end) == CU.CUDA_SUCCESS


def fork(gpu: Gpu) -> tuple[Any, Any]:
    """Another stream that belongs to the capture of `gpu.stream`; (it, an event for its end)."""
    other, event = gpu.new_stream(), gpu.new_event()
    do(driver.cuEventRecord, event, gpu.stream)
    do(driver.cuStreamWaitEvent, other, event, 0)
    return other, event


def test_a_fork_that_is_not_joined(gpu: Gpu) -> None:
    a = gpu.floats()
    gpu.begin()
    gpu.put(a)
    other, _ = fork(gpu)
    assert gpu.put(a, 2, other) == CU.CUDA_SUCCESS
    assert gpu.end() == CU.CUDA_ERROR_STREAM_CAPTURE_UNJOINED


def test_a_fork_that_is_joined(gpu: Gpu) -> None:
    a = gpu.floats()
    gpu.begin()
    gpu.put(a)
    other, event = fork(gpu)
    assert gpu.put(a, 2, other) == CU.CUDA_SUCCESS
    do(driver.cuEventRecord, event, other)
    do(driver.cuStreamWaitEvent, gpu.stream, event, 0)
    do(driver.cuStreamDestroy, other)
    assert gpu.end() == CU.CUDA_SUCCESS


def test_the_end_on_the_stream_that_was_forked(gpu: Gpu) -> None:
    a = gpu.floats()
    gpu.begin()
    gpu.put(a)
    other, _ = fork(gpu)
    assert gpu.end(other) == CU.CUDA_ERROR_STREAM_CAPTURE_UNMATCHED
    gpu.end()


def test_two_captures_do_not_meet(gpu: Gpu) -> None:
    other, event = gpu.new_stream(), gpu.new_event()
    gpu.begin()
    gpu.begin(other)
    do(driver.cuEventRecord, event, gpu.stream)
    error = result(driver.cuStreamWaitEvent, other, event, 0)
    assert error == CU.CUDA_ERROR_STREAM_CAPTURE_MERGE
    assert gpu.end(other) == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    assert gpu.end() == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


def test_a_capture_waits_for_nothing_outside(gpu: Gpu) -> None:
    event = gpu.new_event()
    do(driver.cuEventRecord, event, gpu.new_stream())
    gpu.begin()
    error = result(driver.cuStreamWaitEvent, gpu.stream, event, 0)
    assert error == CU.CUDA_ERROR_STREAM_CAPTURE_ISOLATION
    assert gpu.end() == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


@pytest.mark.parametrize("wait", [driver.cuEventSynchronize, driver.cuEventQuery])
def test_an_event_of_a_capture_never_happens(gpu: Gpu, wait: Any) -> None:
    event = gpu.new_event()
    gpu.begin()
    do(driver.cuEventRecord, event, gpu.stream)
    assert result(wait, event) == CU.CUDA_ERROR_CAPTURED_EVENT
    assert gpu.end() == CU.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


def test_the_status_of_a_capture(gpu: Gpu) -> None:
    status = driver.CUstreamCaptureStatus

    def found() -> Any:
        return do(driver.cuStreamIsCapturing, gpu.stream)

    assert found() == status.CU_STREAM_CAPTURE_STATUS_NONE
    gpu.begin()
    assert found() == status.CU_STREAM_CAPTURE_STATUS_ACTIVE
    result(driver.cuStreamSynchronize, gpu.stream)
    assert found() == status.CU_STREAM_CAPTURE_STATUS_INVALIDATED
    gpu.end()
    assert found() == status.CU_STREAM_CAPTURE_STATUS_NONE


def test_a_graph_is_copied_when_it_is_instantiated(gpu: Gpu) -> None:
    a, out = gpu.floats(), np.zeros(N, np.float32)
    gpu.begin()
    gpu.put(a, 4)
    graph = do(driver.cuStreamEndCapture, gpu.stream)
    executable = do(driver.cuGraphInstantiate, graph, 0)
    do(driver.cuGraphDestroy, graph)
    do(driver.cuGraphLaunch, executable, gpu.stream)
    do(driver.cuGraphExecDestroy, executable)
    do(driver.cuMemcpyDtoHAsync, out, a, BYTES, gpu.stream)
    np.testing.assert_array_equal(out, np.full(N, 4))


def test_what_a_graph_owns_lives_as_long_as_its_copies(gpu: Gpu) -> None:
    """A driver may tell of the end later, from a thread of its own."""
    ended = threading.Event()
    destroy = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: ended.set())
    address = driver.CUhostFn(_ptr=ctypes.addressof(ctypes.c_void_p.from_buffer(destroy)))
    owned = do(driver.cuUserObjectCreate, 1, address, 1, 1)
    a = gpu.floats()
    gpu.begin()
    gpu.put(a)
    graph = do(driver.cuStreamEndCapture, gpu.stream)
    move = driver.CUuserObjectRetain_flags.CU_GRAPH_USER_OBJECT_MOVE
    do(driver.cuGraphRetainUserObject, graph, owned, 1, move)
    executable = do(driver.cuGraphInstantiate, graph, 0)
    do(driver.cuGraphDestroy, graph)
    do(driver.cuGraphLaunch, executable, gpu.stream)
    do(driver.cuStreamSynchronize, gpu.stream)
    assert not ended.is_set()
    do(driver.cuGraphExecDestroy, executable)
    assert ended.wait(10)


# -- launches ------------------------------------------------------------------------------

PUT = ctypes.c_void_p, ctypes.c_float, ctypes.c_int


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((0, 1, 1), (32, 1, 1)),
        ((1, 65536, 1), (32, 1, 1)),
        ((1, 1, 65536), (32, 1, 1)),
        ((1, 1, 1), (0, 1, 1)),
        ((1, 1, 1), (1025, 1, 1)),
        ((1, 1, 1), (32, 33, 1)),
        ((1, 1, 1), (1, 1, 65)),
    ],
)
def test_sizes_that_no_card_has(gpu: Gpu, grid: Any, block: Any) -> None:
    error = gpu.launch(gpu.kernel("put"), (int(gpu.floats()), 1, 0), PUT, grid=grid, block=block)
    assert error == CU.CUDA_ERROR_INVALID_VALUE


def test_more_threads_than_a_kernel_was_compiled_for(gpu: Gpu) -> None:
    bounded, a = gpu.kernel("bounded"), gpu.floats()
    pointer = ((int(a),), (ctypes.c_void_p,))
    assert gpu.launch(bounded, *pointer, block=(64, 1, 1)) == CU.CUDA_SUCCESS
    error = gpu.launch(bounded, *pointer, block=(65, 1, 1))
    assert error == CU.CUDA_ERROR_INVALID_VALUE


def test_dynamic_shared_memory_has_to_be_asked_for(gpu: Gpu) -> None:
    kernel, pointer = gpu.kernel("through_shared"), ((int(gpu.floats()),), (ctypes.c_void_p,))
    most = gpu.attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    without = 48 * 1024
    which = FUNCTION.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert gpu.launch(kernel, *pointer, shared=without) == CU.CUDA_SUCCESS
    assert gpu.launch(kernel, *pointer, shared=without + 16) == CU.CUDA_ERROR_INVALID_VALUE
    error = result(driver.cuKernelSetAttribute, which, most + 16, kernel, gpu.device)
    assert error == CU.CUDA_ERROR_INVALID_VALUE
    do(driver.cuKernelSetAttribute, which, most, kernel, gpu.device)
    assert do(driver.cuKernelGetAttribute, which, kernel, gpu.device) == most
    assert gpu.launch(kernel, *pointer, shared=most) == CU.CUDA_SUCCESS
    assert gpu.launch(kernel, *pointer, shared=most + 16) == CU.CUDA_ERROR_INVALID_VALUE
    do(driver.cuStreamSynchronize, gpu.stream)


def test_an_opt_in_counts_for_its_device(gpu: Gpu) -> None:
    if do(driver.cuDeviceGetCount) < 2:
        pytest.skip("there is one device")
    kernel = gpu.kernel("through_shared")
    which = FUNCTION.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    do(driver.cuKernelSetAttribute, which, 60 * 1024, kernel, gpu.device)
    second = Gpu(1)
    pointer = ((int(second.floats()),), (ctypes.c_void_p,))
    error = second.launch(kernel, *pointer, shared=60 * 1024)
    assert error == CU.CUDA_ERROR_INVALID_VALUE
    which = FUNCTION.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    if gpu.attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH):
        do(driver.cuKernelSetAttribute, which, 1, kernel, gpu.device)
        assert do(driver.cuKernelGetAttribute, which, kernel, second.device) == 0


def test_a_stream_of_another_device(gpu: Gpu) -> None:
    if do(driver.cuDeviceGetCount) < 2:
        pytest.skip("there is one device")
    put, a = gpu.kernel("put"), gpu.floats()
    second = Gpu(1)
    do(driver.cuCtxSetCurrent, gpu.context)
    error = gpu.launch(put, (int(a), 1, N), PUT, stream=second.stream)
    assert error == CU.CUDA_ERROR_INVALID_HANDLE


def test_a_cooperative_grid_must_fit(gpu: Gpu) -> None:
    put, a = gpu.kernel("put"), gpu.floats()
    blocks = gpu.attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) * 32 + 1
    sizes = {"block": (1024, 1, 1), "cooperative": True}
    error = gpu.launch(put, (int(a), 1, N), PUT, grid=(blocks, 1, 1), **sizes)
    assert error == CU.CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
    assert gpu.launch(put, (int(a), 1, N), PUT, grid=(2, 1, 1), **sizes) == CU.CUDA_SUCCESS


def test_clusters_divide_the_grid(gpu: Gpu) -> None:
    clusters(gpu)
    arguments = (gpu.kernel("put"), (int(gpu.floats()), 1, N), PUT)
    assert gpu.launch(*arguments, grid=(8, 1, 1), cluster=(4, 1, 1)) == CU.CUDA_SUCCESS
    error = gpu.launch(*arguments, grid=(6, 1, 1), cluster=(4, 1, 1))
    assert error == CU.CUDA_ERROR_INVALID_CLUSTER_SIZE


def test_a_compiled_in_cluster(gpu: Gpu) -> None:
    clusters(gpu)
    kernel = gpu.kernel("cluster_of_4")
    arguments = (kernel, (int(gpu.floats()),), (ctypes.c_void_p,))
    width = FUNCTION.CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH
    assert do(driver.cuKernelGetAttribute, width, kernel, gpu.device) == 4
    assert gpu.launch(*arguments, grid=(8, 1, 1)) == CU.CUDA_SUCCESS
    assert gpu.launch(*arguments, grid=(8, 1, 1), cluster=(4, 1, 1)) == CU.CUDA_SUCCESS
    for wrong in ({"grid": (6, 1, 1)}, {"grid": (8, 1, 1), "cluster": (2, 1, 1)}):
        assert gpu.launch(*arguments, **wrong) == CU.CUDA_ERROR_INVALID_CLUSTER_SIZE


def test_clusters_of_16_have_to_be_allowed(gpu: Gpu) -> None:
    clusters(gpu)
    kernel = gpu.kernel("put")
    arguments = (kernel, (int(gpu.floats()), 1, N), PUT)
    sizes = {"grid": (16, 1, 1), "cluster": (16, 1, 1)}
    assert gpu.launch(*arguments, **sizes) == CU.CUDA_ERROR_INVALID_CLUSTER_SIZE
    which = FUNCTION.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    do(driver.cuKernelSetAttribute, which, 1, kernel, gpu.device)
    assert gpu.launch(*arguments, **sizes) == CU.CUDA_SUCCESS
    too_large = {"grid": (32, 1, 1), "cluster": (32, 1, 1)}
    assert gpu.launch(*arguments, **too_large) == CU.CUDA_ERROR_INVALID_CLUSTER_SIZE


def test_a_card_without_clusters(gpu: Gpu) -> None:
    if gpu.attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH):
        pytest.skip("the card has clusters")
    arguments = (gpu.kernel("put"), (int(gpu.floats()), 1, N), PUT)
    error = gpu.launch(*arguments, grid=(4, 1, 1), cluster=(4, 1, 1))
    assert error == CU.CUDA_ERROR_NOT_SUPPORTED


STEP = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int


@pytest.mark.parametrize("name", ["all_wait", "one_of_block_waits"])
@pytest.mark.parametrize("captured", [False, True])
def test_programmatic_launches_come_one_after_another(gpu: Gpu, name: str, captured: bool) -> None:
    if gpu.major < 9:
        pytest.skip(NO_PROGRAMMATIC)
    count, blocks = 64 * N, 64
    kernel, a, b = gpu.kernel(name), gpu.floats(count), gpu.floats(count)
    if captured:
        gpu.begin()
    do(driver.cuMemsetD32Async, a, 0, count, gpu.stream)
    for step in range(20):
        values = (int(b), int(a), count) if step % 2 else (int(a), int(b), count)
        options = {"grid": (blocks, 1, 1), "programmatic": step % 7 != 6}
        assert gpu.launch(kernel, values, STEP, **options) == CU.CUDA_SUCCESS
    if captured:
        graph = do(driver.cuStreamEndCapture, gpu.stream)
        do(driver.cuGraphLaunch, do(driver.cuGraphInstantiate, graph, 0), gpu.stream)
    out = np.zeros(count, np.float32)
    do(driver.cuMemcpyDtoHAsync, out, a, 4 * count, gpu.stream)
    np.testing.assert_array_equal(out, np.full(count, 20))


@pytest.mark.standin
def test_a_card_without_programmatic_launches(gpu: Gpu) -> None:
    """What a GPU answers is not documented."""
    if gpu.major >= 9:
        pytest.skip("the card has programmatic launches")
    values = int(gpu.floats()), int(gpu.floats()), N
    error = gpu.launch(gpu.kernel("all_wait"), values, STEP, programmatic=True)
    assert error == CU.CUDA_ERROR_NOT_SUPPORTED


def test_a_null_pointer_that_is_not_followed(gpu: Gpu) -> None:
    assert gpu.launch(gpu.kernel("put"), (0, 1, 0), PUT) == CU.CUDA_SUCCESS
    do(driver.cuStreamSynchronize, gpu.stream)


def test_an_image_that_is_none(gpu: Gpu) -> None:
    for image in (b"\x7fELF, but no more" + bytes(100), b"nothing of the kind" + bytes(100)):
        error = result(driver.cuLibraryLoadData, image, [], [], 0, [], [], 0)
        assert error in (CU.CUDA_ERROR_INVALID_IMAGE, CU.CUDA_ERROR_NO_BINARY_FOR_GPU)


def test_a_kernel_that_the_library_has_not(gpu: Gpu) -> None:
    library, _ = gpu.library("put")
    assert result(driver.cuLibraryGetKernel, library, b"set") == CU.CUDA_ERROR_NOT_FOUND


# -- errors that stay ----------------------------------------------------------------------


def broken(gpu: Gpu, error: Any) -> None:
    """The next wait tells, and every call from then on."""
    assert result(driver.cuStreamSynchronize, gpu.stream) == error
    for call in (
        lambda: result(driver.cuMemAlloc, 16),
        lambda: result(driver.cuStreamCreate, 0),
        lambda: result(driver.cuStreamSynchronize, gpu.stream),
        lambda: result(driver.cuCtxSynchronize),
    ):
        assert call() == error


def ordinary_memory_is_the_device_s(gpu: Gpu) -> bool:
    return bool(gpu.attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS))


@pytest.mark.sticky
def test_a_pointer_to_ordinary_memory(gpu: Gpu) -> None:
    if ordinary_memory_is_the_device_s(gpu):
        pytest.skip("this device reads the host's memory")
    host = np.zeros(N, np.float32)
    assert gpu.put(host.ctypes.data) == CU.CUDA_SUCCESS
    broken(gpu, CU.CUDA_ERROR_ILLEGAL_ADDRESS)


@pytest.mark.usefixtures("survives")
@pytest.mark.sticky
def test_a_null_pointer_that_is_followed(gpu: Gpu) -> None:
    assert gpu.put(0) == CU.CUDA_SUCCESS
    broken(gpu, CU.CUDA_ERROR_ILLEGAL_ADDRESS)


@pytest.mark.usefixtures("survives")
@pytest.mark.sticky
@pytest.mark.parametrize("name", ["write_at", "read_at"])
def test_far_out_of_bounds(gpu: Gpu, name: str) -> None:
    a, far = gpu.floats(), 1 << 36
    if name == "write_at":
        arguments = (int(a), far), (ctypes.c_void_p, ctypes.c_longlong)
    else:
        arguments = (int(a), far, int(a)), (ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p)
    assert gpu.launch(gpu.kernel(name), *arguments, block=(1, 1, 1)) == CU.CUDA_SUCCESS
    broken(gpu, CU.CUDA_ERROR_ILLEGAL_ADDRESS)


@pytest.mark.sticky
def test_a_vector_at_an_odd_address(gpu: Gpu) -> None:
    a = int(gpu.floats())
    types = ctypes.c_void_p, ctypes.c_void_p
    kernel = gpu.kernel("copy_4")
    assert gpu.launch(kernel, (a + 4, a + 64), types, block=(1, 1, 1)) == CU.CUDA_SUCCESS
    broken(gpu, CU.CUDA_ERROR_MISALIGNED_ADDRESS)


@pytest.mark.sticky
def test_a_kernel_that_gives_up(gpu: Gpu) -> None:
    assert gpu.launch(gpu.kernel("trap"), (), (), block=(1, 1, 1)) == CU.CUDA_SUCCESS
    broken(gpu, CU.CUDA_ERROR_LAUNCH_FAILED)


@pytest.mark.sticky
def test_another_device_s_memory(gpu: Gpu) -> None:
    if do(driver.cuDeviceGetCount) < 2:
        pytest.skip("there is one device")
    a = gpu.floats()
    second = Gpu(1)
    assert second.put(a) == CU.CUDA_SUCCESS
    broken(second, CU.CUDA_ERROR_ILLEGAL_ADDRESS)
