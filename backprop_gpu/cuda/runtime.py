"""A CUDA device through cuda.core: memory, copies, launches, graphs, time.

Everything is queued on one stream, the runtime's own, or another one inside `Runtime.on`. What a
copy to the host gives is there when the call returns; all else may still be on its way.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..imports import uninterrupted
from ..planning import Device, Epilogue, Transposes
from ..planning.residency import CLUSTERS, PORTABLE_CLUSTER, largest_cluster
from ..threads import cores
from .announcement import announced
from .arrays import DeviceArray
from .blas import Blas
from .catalogue import Catalogue, Dimensions, Kernel
from .compiler import Cubin
from .compiler import compile_kernels as compile_kernels  # the stand-in puts another in its place

#: Bytes of dynamic shared memory that any kernel may have.
WITHOUT_ASKING = 48 * 1024
_NOTHING = np.uintp(0)


class Runtime:
    """One CUDA device. Several threads may use it.

    Without cuBLASLt (installed without the toolkit's libraries) the planner is told so, and every
    product runs on our kernels.

    Parameters
    ----------
    index : int
        The device's number.

    Raises
    ------
    RuntimeError
        If there is no such device.
    """

    def __init__(self, index: int = 0) -> None:
        with uninterrupted():
            from cuda import core
            from cuda.bindings import driver
            from cuda.core._utils.cuda_utils import CUDAError
            from cuda.core.graph import GraphBuilder

        self._core, self._driver, self._builder = core, driver, GraphBuilder
        self._error = CUDAError  # cuda.core has it nowhere else
        self.cuda_device = core.Device(index)
        self.cuda_device.set_current()
        self._stream = self.cuda_device.create_stream()
        self.memory = self.cuda_device.memory_resource
        self._here = threading.local()  # .places: where this thread's work goes, the last one first
        self._functions: dict[Kernel, Any] = {}
        self.configurations: dict[tuple[Kernel, Dimensions, bool], Any] = {}
        self._loading = threading.Lock()
        self.blas: Blas | None = None
        with suppress(ImportError):
            self.blas = Blas()
        properties, capability = self.cuda_device.properties, self.cuda_device.compute_capability
        major, minor = capability.major, capability.minor
        self._arch = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
        # In a captured graph from CUDA 12.3 on.
        self._programmatic = major >= 9 and driver.cuDriverGetVersion()[1] >= 12030
        self.device = Device(
            self.cuda_device.name,
            (major, minor),
            properties.multiprocessor_count,
            # Rates steer the planner only, so a driver that hides them does no harm.
            1e3 * (properties.clock_rate or 1.5e6),
            # two transfers per clock over the memory bus
            2e3 * (properties.memory_clock_rate or 1e6) * properties.global_memory_bus_width / 8,
            properties.max_shared_memory_per_block_optin,
            self.blas is not None,
        )
        self.device = replace(self.device, clusters=self._clusters())

    def _clusters(self) -> tuple[tuple[int, int], ...]:
        """`Device.clusters`, from the driver: some parts of a chip hold no large cluster."""
        if largest_cluster(self.device) == 1:
            return ()
        kernel = Catalogue(np.dtype(np.float32)).advance()
        probe = self._load(kernel)
        memory = self.device.shared_memory
        attributes = self._driver.CUfunction_attribute
        self._allow(probe, attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, memory)
        self._allow(probe, attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)
        found = []
        for size in CLUSTERS:
            configuration = self._core.LaunchConfig(
                grid=1, cluster=size, block=kernel.block, shmem_size=memory
            )
            count = 0  # of a size that the device does not have
            with suppress(self._error):
                count = probe.occupancy.max_active_clusters(configuration, stream=self._stream)
            found.append((size, count))
        return tuple(found)

    @property
    def library_version(self) -> int:
        """cuBLASLt's version; 0 without it."""
        return 0 if self.blas is None else self.blas.version

    # -- streams ------------------------------------------------------------------

    @property
    def stream(self) -> Any:
        """The stream, or the graph under construction, on which this thread's work is queued."""
        places = getattr(self._here, "places", None)
        return places[-1].stream if places else self._stream

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """This thread's work is queued on another stream.

        `stream` is one of cuda.core, or the address of one, as other libraries tell it.
        """
        if isinstance(stream, int):
            stream = self._core.Stream.from_handle(stream or 1)  # 0 is the default one, 1 too
        place = _Place(stream)
        self._here.places = [*getattr(self._here, "places", ()), place]
        try:
            yield
        finally:
            self._here.places.pop()
            if place.memory:
                self._stream.wait(stream)

    def use(self) -> None:
        """Make the device this thread's current one, which memory and events are made on."""
        self.cuda_device.set_current()

    def synchronize(self) -> None:
        """Wait for all that has been queued."""
        self.stream.sync()

    # -- memory -------------------------------------------------------------------

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> DeviceArray:
        """An array of undefined values."""
        shape = (shape,) if isinstance(shape, int) else tuple(map(int, shape))
        dtype = np.dtype(dtype)
        stream = self.stream
        if isinstance(stream, self._builder):
            raise RuntimeError("memory cannot be made while steps are captured")
        # Memory comes from our own stream and is given back there, since another one's life is not
        # ours to know. What is made for another is kept until `on` has let ours wait for it.
        # No memory has a size of 0.
        size = max(1, math.prod(shape) * dtype.itemsize)
        buffer = self.memory.allocate(size, stream=self._stream)
        if stream is not self._stream:
            stream.wait(self._stream)
            self._here.places[-1].memory.append(buffer)
        return self.borrow(int(buffer.handle), shape, dtype, buffer)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> DeviceArray:
        array = self.empty(shape, dtype)
        self.clear(array)
        return array

    def clear(self, array: DeviceArray) -> None:
        """Set every byte of an array to 0."""
        for each in (array, array.rounded):
            if each is not None and each.size:
                self._buffer(each).fill(0, stream=self.stream)

    def array(self, values: Any, dtype: Any = None) -> DeviceArray:
        """A copy on the device of a host array; one that is already there is returned as it is.

        `values` is anything that NumPy takes, or an array of another library on this device (by
        ``__cuda_array_interface__`` or DLPack): of it a view where the dtype is the same.
        """
        if not isinstance(values, DeviceArray) and is_on_device(values):
            values = self.view(values)
        if isinstance(values, DeviceArray):
            if dtype is None or values.dtype == dtype:
                return values
            found = self.empty(values.shape, dtype)
            self.copy(values, found)
            return found
        host = np.ascontiguousarray(values, dtype)
        array = self.empty(host.shape, host.dtype)
        self.upload(host, array)
        return array

    def view(self, array: Any) -> DeviceArray:
        """Another library's array on this device, without a copy.

        What its library has queued to fill it is waited for, on the device, where the array tells
        on which stream that is.

        Raises
        ------
        ValueError
            If it is not C-contiguous, or on another device.
        """
        if isinstance(array, DeviceArray):
            return array
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is not None:
            shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
            pointer, strides = interface["data"][0], interface.get("strides")
            if interface.get("stream"):
                self._wait(interface["stream"])
        else:
            from cuda.core.utils import StridedMemoryView

            strided = StridedMemoryView.from_dlpack(array, int(self.stream.handle))
            shape, dtype, pointer = tuple(strided.shape), np.dtype(strided.dtype), strided.ptr
            strides = strided.strides and tuple(s * dtype.itemsize for s in strided.strides)
        if strides is not None and not _contiguous(shape, strides, dtype.itemsize):
            raise ValueError(f"a device array must be C-contiguous, got strides {strides}")
        if pointer:  # an array without elements has none
            ordinal = self._driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
            error, index = self._driver.cuPointerGetAttribute(ordinal, pointer)
            self._check((error,))
            if index != self.cuda_device.device_id:
                raise ValueError(
                    f"an array must be on device {self.cuda_device.device_id}, the current one, "
                    f"got one on device {index}"
                )
        return self.borrow(pointer, shape, dtype, array)

    def borrow(
        self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: Any
    ) -> DeviceArray:
        """An array in somebody else's C-contiguous memory, in order with this thread's stream."""
        return DeviceArray(pointer, shape, dtype, owner, lambda: self.stream)

    def _wait(self, handle: int) -> None:
        """What is queued on the stream from now on waits for what another one has queued so far."""
        stream = self.stream
        if handle != int(stream.handle):
            stream.wait(self._core.Stream.from_handle(handle))

    def upload(self, host: np.ndarray, out: DeviceArray) -> None:
        """Copy `host` to the device; it may change as soon as this returns."""
        if host.dtype != out.dtype or host.shape != out.shape or not host.flags.c_contiguous:
            raise ValueError(f"{host.dtype} {host.shape} does not fit {out}")
        if out.size:
            # From memory that is not pinned the driver has read all when this returns.
            self._check(
                self._driver.cuMemcpyHtoDAsync(
                    out.pointer, host.ctypes.data, out.nbytes, self.stream.handle
                )
            )
            self.round(out)

    def to_numpy(self, array: DeviceArray) -> np.ndarray:
        """A copy on the host, once all that was queued before is done."""
        host = np.empty(array.shape, array.dtype)
        if array.size:
            # To memory that is not pinned the driver returns when all is there.
            self._check(
                self._driver.cuMemcpyDtoHAsync(
                    host.ctypes.data, array.pointer, array.nbytes, self.stream.handle
                )
            )
        return host

    def copy(self, source: DeviceArray, out: DeviceArray) -> None:
        """out = source, of the same size and of any dtype."""
        if source.size != out.size:
            raise ValueError(f"{source} does not fit {out}")
        count = source.size
        if count and source.dtype != out.dtype:
            kernel = Catalogue(out.dtype).convert(source.dtype.name)
            self.launch(kernel, (kernel.blocks(count), 1, 1), (source, out, np.int64(count)))
        elif count:
            self._buffer(source).copy_to(self._buffer(out), stream=self.stream)
        self.round(out)

    def round(self, array: DeviceArray, out: DeviceArray | None = None) -> None:
        """The array's numbers in bf16 into its own copy, if it has one, or into `out`."""
        out = array.rounded if out is None else out
        if out is not None and array.size:
            kernel = Catalogue(array.dtype).round()
            grid = (kernel.blocks(array.size), 1, 1)
            self.launch(kernel, grid, (array, out, np.int64(array.size)))

    def _buffer(self, array: DeviceArray) -> Any:
        return self._core.Buffer.from_handle(array.pointer, array.nbytes, owner=array)

    def _check(self, result: tuple[Any, ...]) -> None:
        if int(result[0]):
            raise RuntimeError(f"the CUDA driver: {result[0].name}")

    # -- work ---------------------------------------------------------------------

    def launch(self, kernel: Kernel, grid: Dimensions, arguments: tuple[Any, ...]) -> None:
        """Run a kernel; arrays are passed as pointers, None as a null pointer.

        The grid counts blocks, those of a cluster included.
        """
        function = self._functions.get(kernel) or self._load(kernel)
        # Of several branches of a graph that end, programmatic launches know nothing.
        here = self._here
        programmatic = bool(self._programmatic) and not getattr(here, "branched", False)
        here.branched = False
        key = kernel, grid, programmatic
        configuration = self.configurations.get(key)
        if configuration is None:
            if len(self.configurations) > 4096:  # of ragged shapes there may be any number
                self.configurations.clear()
            configuration = self.configurations[key] = self._core.LaunchConfig(
                grid=grid,
                block=kernel.block,
                shmem_size=kernel.shared_memory,
                is_cooperative=kernel.cooperative,
                programmatic_stream_serialization=kernel.programmatic and programmatic,
            )
        values = [x.pointer if isinstance(x, DeviceArray) else _NOTHING if x is None else x
                  for x in arguments]  # fmt: skip
        self._core.launch(self.stream, configuration, function, *values)

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Compile, several at a time, what is to be launched soon and is not loaded yet."""
        missing = [kernel for kernel in kernels if kernel not in self._functions]
        if len(missing) > 1:
            with (
                announced(len(missing), self._arch),
                ThreadPoolExecutor(min(len(missing), cores())) as pool,
            ):
                found = list(pool.map(lambda k: compile_kernels([k], self._arch), missing))
            for kernel, cubin in zip(missing, found, strict=True):
                self._load(kernel, cubin)

    def _load(self, kernel: Kernel, cubin: Cubin | None = None) -> Any:
        with self._loading:
            if kernel in self._functions:
                return self._functions[kernel]
            if cubin is None:
                with announced(1, self._arch):
                    cubin = compile_kernels([kernel], self._arch)
            code = self._core.ObjectCode.from_cubin(cubin.code)
            function = code.get_kernel(cubin.symbols[kernel.expression])
            driver = self._driver
            attributes = driver.CUfunction_attribute
            if kernel.shared_memory > WITHOUT_ASKING:
                name = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._allow(function, name, kernel.shared_memory)
            # The size of its clusters is compiled into a kernel; beyond 8 blocks it has to be
            # allowed.
            if kernel.cluster > PORTABLE_CLUSTER:
                name = attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
                self._allow(function, name, 1)
            self._functions[kernel] = function
        return function

    def _allow(self, function: Any, attribute: Any, value: int) -> None:
        """Load a kernel on this device: each device's runtime loads and configures its own."""
        index = self.cuda_device.device_id
        self._check(self._driver.cuKernelSetAttribute(attribute, value, function.handle, index))

    def product(
        self, layout: Transposes, a: DeviceArray, b: DeviceArray, out: DeviceArray, scale: float,
        workspace: DeviceArray, **how: Any,
    ) -> None:  # fmt: skip
        """A product by cuBLASLt, as `Blas.product` has it."""
        assert self.blas is not None
        stream = int(self._plain_stream().handle)
        self.blas.product(layout, a, b, out, scale, workspace, stream, **how)

    def algorithm(
        self,
        layout: Transposes,
        m: int,
        n: int,
        k: int,
        dtype: np.dtype[Any],
        precision: str | None = None,
        epilogue: Epilogue = "",
    ) -> str | None:
        """Which of cuBLASLt's algorithms forms an (m, n) product summed over k, if one does."""
        assert self.blas is not None
        self.use()
        found = self.blas.algorithm(layout, m, n, k, dtype, precision, epilogue)
        return None if found is None else f"cuBLASLt's {found}"

    def _plain_stream(self) -> Any:
        stream = self.stream
        return stream.stream if isinstance(stream, self._builder) else stream

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record the launches of a step without running them; the result replays them.

        Whoever keeps the result keeps the arrays that the step names.
        """
        builder = self.cuda_device.create_graph_builder()
        try:
            builder.begin_building("thread_local")
            try:
                with self.on(builder):
                    step()
            finally:
                builder.end_building()
            graph = builder.complete()
        finally:
            builder.close()
        return lambda: graph.launch(self.stream)

    def side_by_side(self, aside: Callable[[], None], work: Callable[[], None]) -> None:
        """Queue two works of which neither needs the other's results.

        While a step is captured they become branches of its graph, which what follows waits for;
        else `aside` comes first.
        """
        here = self._here
        if not hasattr(here, "branch"):
            here.branch = self.cuda_device.create_stream()
        if not isinstance(self.stream, self._builder):
            aside()
            work()
            return
        stream = self._plain_stream()
        here.branch.wait(stream)
        here.branched = True
        with self.on(here.branch):
            aside()
        here.branched = False
        work()
        stream.wait(here.branch)
        here.branched = True

    # -- time ---------------------------------------------------------------------

    def seconds(self, work: Callable[[], None]) -> float:
        """Seconds that the device takes for what `work` queues."""
        options = self._core.EventOptions(timing_enabled=True)
        start = self.stream.record(options=options)
        work()
        end = self.stream.record(options=options)
        end.sync()
        return float(end - start) * 1e-3


class _Place:
    """Where a thread's work is queued, and the memory that was made for it there."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.memory: list[Any] = []


#: Two threads would make two of one device, and import halves of cuda.core.
_making = threading.Lock()
_made = lru_cache(Runtime)


def runtime(index: int = 0) -> Runtime:
    """The device of that number, with the kernels loaded so far."""
    with _making:
        return _made(index)


def forget() -> None:
    """Forget the runtimes: new ones are made from here on; whoever holds an old one keeps it."""
    with _making:
        _made.cache_clear()


def current() -> Runtime:
    """The runtime of this thread's current device; the first device becomes it if there is none."""
    with uninterrupted():
        from cuda.bindings import driver
    driver.cuInit(0)
    error, context = driver.cuCtxGetCurrent()
    if int(error) or not int(context):
        first = runtime(0)
        first.use()  # another thread may have made it
        return first
    error, index = driver.cuCtxGetDevice()
    if int(error):
        raise RuntimeError(f"the current CUDA device cannot be used: {error.name}")
    return runtime(int(index))


def count() -> int:
    """How many devices there are. Creates no context.

    Raises
    ------
    RuntimeError
        If the driver cannot be used, saying why.
    """
    with uninterrupted():
        from cuda.bindings import driver
        from cuda.pathfinder import DynamicLibNotFoundError
    try:
        (error,) = driver.cuInit(0)
    except DynamicLibNotFoundError as reason:
        raise RuntimeError("no CUDA driver is installed") from reason
    found = 0
    if not int(error):
        error, found = driver.cuDeviceGetCount()
    if int(error):
        raise RuntimeError(error.name)
    return int(found)


def is_on_device(array: Any) -> bool:
    """Whether it is an array in device memory, of whatever library."""
    if isinstance(array, np.ndarray | np.generic):
        return False
    if hasattr(type(array), "__cuda_array_interface__"):
        return getattr(array, "__cuda_array_interface__", None) is not None
    if hasattr(array, "__dlpack_device__") and hasattr(array, "__dlpack__"):
        return int(array.__dlpack_device__()[0]) == 2  # kDLCUDA
    return False


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    step = itemsize
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n > 1 and stride != step:
            return False
        step *= n
    return True
