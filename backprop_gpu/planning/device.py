"""What the planner knows of a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What the planner needs to know of a CUDA device.

    ``clock`` is in Hz, ``bandwidth`` in bytes/s, ``shared_memory`` in bytes per block.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    clock: float
    bandwidth: float
    shared_memory: int = 48 * 1024
    #: Whether cuBLAS is installed.
    library: bool = True
    #: (blocks of a cluster, such clusters at once) where each block has all of `shared_memory`.
    #: Of sizes that are not listed, as many as the multiprocessors have room for.
    clusters: tuple[tuple[int, int], ...] = ()

    def clusters_at_once(self, size: int) -> int:
        """How many clusters of `size` blocks the device holds, each with a block's whole memory."""
        return dict(self.clusters).get(size, self.multiprocessors // size)

    def rate(self, itemsize: int) -> float:
        """Multiply-adds on the plain cores, in FLOP/s, for 4- or 8-byte floats."""
        major = self.compute_capability[0]
        single, double = _LANES.get(self.compute_capability) or _LANES.get((major, 0), (128, 2))
        lanes = single if itemsize == 4 else double
        return 2.0 * lanes * self.multiprocessors * self.clock

    def library_rate(self, itemsize: int) -> float:
        """What cuBLAS can reach: as `rate`, but float64 has tensor cores on 8.0, 9.0 and 10.0."""
        tensor = itemsize == 8 and self.compute_capability in ((8, 0), (9, 0), (10, 0))
        return self.rate(itemsize) * (2.0 if tensor else 1.0)


#: (float32, float64) lanes per multiprocessor, by compute capability (CUDA C++ Programming
#: Guide, table of arithmetic throughput). An unlisted minor version uses its major's .0,
#: an unlisted major one what most have, (128, 2).
_LANES: dict[tuple[int, int], tuple[int, int]] = {
    (7, 0): (64, 32), (7, 5): (64, 2),
    (8, 0): (64, 32), (8, 6): (128, 2), (8, 9): (128, 2),
    (9, 0): (128, 64), (10, 0): (128, 64), (10, 3): (128, 2), (11, 0): (128, 2),
    (12, 0): (128, 2), (12, 1): (128, 2),
}  # fmt: skip

#: A stand-in for plans on machines without a device.
H200 = Device(
    "NVIDIA H200", (9, 0), 132, 1.98e9, 4.3e12, 227 * 1024,
    clusters=((1, 132), (2, 66), (4, 30), (8, 15), (16, 7)),
)  # fmt: skip
