"""Arrays in device memory: a pointer, a shape and a dtype, C-contiguous."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np


class DeviceArray:
    """A C-contiguous array in the memory of a CUDA device.

    It gives itself to other libraries by ``__cuda_array_interface__`` and by DLPack, in order with
    what its `Runtime` has queued. Indexing the first axis and `reshape` give views.

    Parameters
    ----------
    pointer : int
        The device address of the first element.
    memory : object
        Owns the memory, and is kept for as long as this array or a view of it.
    ready : callable
        Gives the stream, of cuda.core, on which the array's values come to be.
    base : DeviceArray, optional
        Whose view this is.
    rounded : DeviceArray, optional
        A copy of its numbers in bf16, as bits in uint16, of the same shape. Whoever writes the
        array writes both.
    """

    __slots__ = ("__weakref__", "_ready", "base", "dtype", "memory", "pointer", "rounded", "shape")

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        memory: Any,
        ready: Callable[[], Any],
        base: DeviceArray | None = None,
        rounded: DeviceArray | None = None,
    ) -> None:
        self.pointer, self.shape, self.dtype = pointer, shape, dtype
        self.memory, self._ready, self.base = memory, ready, base
        self.rounded = rounded

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name})"

    def _view(self, offset: int, shape: tuple[int, ...]) -> DeviceArray:
        """A view of `shape` that begins `offset` elements further on."""
        pointer = self.pointer + offset * self.dtype.itemsize
        base = self if self.base is None else self.base
        rounded = None if self.rounded is None else self.rounded._view(offset, shape)  # noqa: SLF001
        return DeviceArray(pointer, shape, self.dtype, self.memory, self._ready, base, rounded)

    def beside(self, rounded: DeviceArray) -> DeviceArray:
        """The same array, with a copy in bf16 that is yet to be written."""
        return DeviceArray(
            self.pointer, self.shape, self.dtype, self.memory, self._ready, self.base, rounded
        )

    def __getitem__(self, index: int | slice) -> DeviceArray:
        """Row `index`, or rows `index` without a step, as a view."""
        row = prod(self.shape[1:])
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError(f"a device array is sliced without a step, got {index}")
            return self._view(start * row, (max(0, stop - start), *self.shape[1:]))
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._view(index % len(self) * row, self.shape[1:])

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view of another shape with as many elements."""
        wanted = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if -1 in wanted:
            rest = prod(n for n in wanted if n != -1)
            wanted = tuple(self.size // max(1, rest) if n == -1 else n for n in wanted)
        if prod(wanted) != self.size:
            raise ValueError(f"cannot reshape {self.shape} into {shape}")
        return self._view(0, wanted)

    # -- for other libraries ---------------------------------------------------------

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.size else 0, False),
            "strides": None,
            "version": 3,
            "stream": int(self._ready().handle),  # which a consumer waits for
        }

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        from cuda.core import Stream

        if stream != -1:  # -1: the consumer orders by itself
            consumer = Stream.from_handle(1 if stream is None else stream)
            consumer.wait(self._ready())
        return self._strided().__dlpack__(stream=-1, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._strided().__dlpack_device__()
        return device

    def _strided(self) -> Any:
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        buffer = Buffer.from_handle(self.pointer, self.nbytes, owner=self)
        return StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype)
