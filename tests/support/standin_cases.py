"""cuda.core on the stand-in driver, as the library uses it; `test_standin` runs them.

pytest --stand-in H100 tests/support/standin_cases.py
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver
from cuda.core import (
    Device,
    DeviceMemoryResource,
    EventOptions,
    LaunchConfig,
    LegacyPinnedMemoryResource,
    ObjectCode,
    launch,
)
from cuda.core.graph import GraphBuilder
from cuda.core.utils import StridedMemoryView

from backprop_gpu.cuda.catalogue import Catalogue
from backprop_gpu.testing import standin, twins

N = 1000


@pytest.fixture(scope="module")
def stand_in() -> standin.Standin:
    running = standin.running()
    assert running is not None, "run it with --stand-in CARD"
    return running


@pytest.fixture
def gpu(stand_in: standin.Standin) -> Iterator[Any]:
    device = Device(0)
    device.set_current()
    kernel = Catalogue(np.dtype("float32")).hadamard()
    cubin = twins.compile_kernels([kernel], f"sm_{device.arch}")
    hadamard = ObjectCode.from_cubin(cubin.code).get_kernel(cubin.symbols[kernel.expression])
    pinned = LegacyPinnedMemoryResource()

    def host(size: int = N) -> tuple[Any, np.ndarray]:
        buffer = pinned.allocate(4 * size)
        return buffer, np.from_dlpack(buffer).view(np.float32)

    def multiply(stream: Any, s: Any, t: Any, out: Any) -> None:
        launch(stream, LaunchConfig(grid=4, block=256), hadamard, s, t, out, np.int64(N))

    stream = device.create_stream()
    yield SimpleNamespace(
        device=device, stream=stream, hadamard=hadamard, host=host, multiply=multiply
    )
    stream.sync()


def test_a_kernel_on_copied_arrays(gpu: Any) -> None:
    source, x = gpu.host()
    target, y = gpu.host()
    x[:] = np.arange(N)
    a, out = (gpu.device.allocate(4 * N, stream=gpu.stream) for _ in range(2))
    a.copy_from(source, stream=gpu.stream)
    gpu.multiply(gpu.stream, a, a, out)
    out.copy_to(target, stream=gpu.stream)
    assert np.isnan(y).all(), "the copy is not late"
    gpu.stream.sync()
    np.testing.assert_array_equal(y, x * x)


def test_a_graph_that_splits_and_joins(gpu: Any) -> None:
    source, x = gpu.host()
    target, y = gpu.host()
    x[:] = np.arange(N)
    a, b, out = (gpu.device.allocate(4 * N, stream=gpu.stream) for _ in range(3))
    gpu.stream.sync()
    builder = gpu.device.create_graph_builder()
    builder.begin_building()
    a.copy_from(source, stream=builder)
    left, right = builder.split(2)
    gpu.multiply(left, a, a, b)
    gpu.multiply(right, a, a, out)
    builder = GraphBuilder.join(left, right)
    gpu.multiply(builder, b, out, out)
    graph = builder.end_building().complete()
    graph.upload(gpu.stream)
    for scale in (1, 2):
        x[:] = scale * np.arange(N) / N
        graph.launch(gpu.stream)
        out.copy_to(target, stream=gpu.stream)
        gpu.stream.sync()
        np.testing.assert_array_equal(y, (x * x) * (x * x))


def test_streams_wait_by_events(gpu: Any) -> None:
    other = gpu.device.create_stream()
    target, y = gpu.host()
    a = gpu.device.allocate(4 * N, stream=gpu.stream)
    a.fill(b"\0\0\x80\x3f", stream=gpu.stream)
    other.wait(gpu.stream.record())
    a.copy_to(target, stream=other)
    other.sync()
    np.testing.assert_array_equal(y, np.ones(N))


def test_a_missing_wait_shows(gpu: Any, stand_in: standin.Standin) -> None:
    other = gpu.device.create_stream()
    target, y = gpu.host()
    a = gpu.device.allocate(4 * N, stream=gpu.stream)
    gpu.stream.sync()
    a.fill(b"\0\0\x80\x3f", stream=gpu.stream)
    a.copy_to(target, stream=other)
    stand_in.order("late")
    other.sync()
    assert np.isnan(y).all()


def test_timing(gpu: Any) -> None:
    start = gpu.stream.record(options=EventOptions(timing_enabled=True))
    end = gpu.stream.record(options=EventOptions(timing_enabled=True))
    end.sync()
    assert end - start >= 0


def test_views_of_device_memory(gpu: Any) -> None:
    a = DeviceMemoryResource(gpu.device).allocate(4 * N, stream=gpu.stream)
    view = StridedMemoryView.from_buffer(a, (N,), itemsize=4, dtype=np.dtype(np.float32))
    assert view.device_id == 0
    assert view.is_device_accessible
    again = StridedMemoryView.from_any_interface(view, stream_ptr=-1)
    assert again.ptr == int(a.handle)
    assert again.shape == (N,)


def test_occupancy_of_clusters(gpu: Any) -> None:
    """As an H200 answers, whose chip is an H100's."""
    hadamard = gpu.hadamard
    expected = {
        227: {1: 132, 2: 66, 4: 30, 8: 15, 16: 7},
        100: {1: 264, 2: 132, 4: 62, 8: 30, 16: 14},
        48: {1: 528, 2: 264, 4: 124, 8: 62, 16: 28},
    }
    attribute = driver.CUfunction_attribute
    for which, value in (
        (attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 227 * 1024),
        (attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
    ):
        assert driver.cuKernelSetAttribute(which, value, hadamard.handle, 0) == (0,)
    for kilobytes, clusters in expected.items():
        for size, count in clusters.items():
            config = LaunchConfig(grid=size, cluster=size, block=256, shmem_size=kilobytes * 1024)
            found = hadamard.occupancy.max_active_clusters(config, stream=gpu.stream)
            assert found == count, (kilobytes, size)


def test_nothing_is_left_over(gpu: Any, stand_in: standin.Standin) -> None:
    before = stand_in.live()
    a = gpu.device.allocate(4 * N, stream=gpu.stream)
    stream = gpu.device.create_stream()
    event = stream.record()
    assert stand_in.live() != before
    a.close()
    event.close()
    stream.close()
    assert stand_in.live() == before
