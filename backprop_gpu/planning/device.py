"""What the planner knows of a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What the planner needs to know of a CUDA device.

    Parameters
    ----------
    name : str
        As the driver has it.
    compute_capability : (int, int)
        Major and minor.
    multiprocessors : int
        How many there are.
    clock : float
        In Hz.
    bandwidth : float
        Of the device's memory, in bytes/s.
    shared_memory : int
        In bytes per block, the most that a kernel may ask for.
    library : bool
        Whether cuBLAS is installed.
    epilogues : bool
        Whether cuBLAS's products may do more than multiply.
    tensor_cores : bool
        Whether our kernels may use the tensor cores, where there are any.
    clusters : tuple of (int, int)
        Pairs (blocks of a cluster, such clusters at once) where each block has all of
        `shared_memory`. Of sizes that are not listed, as many as the multiprocessors have room for.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    clock: float
    bandwidth: float
    shared_memory: int = 48 * 1024
    #: Whether cuBLAS is installed.
    library: bool = True
    #: Whether cuBLAS's products may do more than multiply.
    epilogues: bool = True
    #: Whether our kernels may use the tensor cores, where there are any.
    tensor_cores: bool = True
    #: (blocks of a cluster, such clusters at once) where each block has all of `shared_memory`.
    #: Of sizes that are not listed, as many as the multiprocessors have room for.
    clusters: tuple[tuple[int, int], ...] = ()

    def clusters_at_once(self, size: int) -> int:
        """Return how many clusters of blocks the device holds, each block with its whole memory.

        Parameters
        ----------
        size : int
            Blocks of a cluster.

        Returns
        -------
        int
            Clusters that run at once.
        """
        return dict(self.clusters).get(size, self.multiprocessors // size)

    def rate(self, itemsize: int) -> float:
        """Compute the rate of multiply-adds on the plain cores.

        Parameters
        ----------
        itemsize : {4, 8}
            Bytes of a number.

        Returns
        -------
        float
            In FLOP/s, two a multiply-add.
        """
        single, double = _of_capability(_LANES, self.compute_capability)
        lanes = single if itemsize == 4 else double
        return 2.0 * lanes * self.multiprocessors * self.clock

    def library_rate(self, itemsize: int, precision: str | None = None) -> float:
        """Compute the rate that cuBLAS can reach.

        As `rate`, but on tensor cores for TF32 and bf16, and for float64, which has them on 8.0,
        9.0 and 10.0.

        Parameters
        ----------
        itemsize : {4, 8}
            Bytes of a number.
        precision : {"float32", "float64", "tf32", "bf16"}, optional
            What factors are rounded to.

        Returns
        -------
        float
            In FLOP/s.
        """
        if precision in _PER_TF32:
            return self._tensor_rate(_of_capability(_TENSOR, self.compute_capability)[1], precision)
        tensor = itemsize == 8 and self.compute_capability in ((8, 0), (9, 0), (10, 0))
        return self.rate(itemsize) * (2.0 if tensor else 1.0)

    def peak_rate(self, itemsize: int, precision: str) -> float:
        """Compute the rate that nothing exceeds.

        Of float32 on tensor cores each product is three of TF32.

        Parameters
        ----------
        itemsize : {4, 8}
            Bytes of a number.
        precision : {"float32", "float64", "tf32", "bf16"}
            What factors are rounded to.

        Returns
        -------
        float
            In FLOP/s.
        """
        peak = self.library_rate(itemsize, precision)
        three = precision == "float32" and self.multiplies_rounded and self.tensor_cores
        return max(peak, self.library_rate(itemsize, "tf32") / 3) if three else peak

    @property
    def multiplies_rounded(self) -> bool:
        """Whether it has cores for TF32 and bf16."""
        return self.compute_capability >= (8, 0)

    def mma_rate(self, precision: str) -> float:
        """Compute the rate of products by mma.sync.

        Parameters
        ----------
        precision : {"float32", "tf32", "bf16"}
            What factors are rounded to; of "float32" each product is three of TF32.

        Returns
        -------
        float
            In FLOP/s.
        """
        return self._tensor_rate(_of_capability(_TENSOR, self.compute_capability)[0], precision)

    def _tensor_rate(self, tf32: int, precision: str) -> float:
        lanes = tf32 * _PER_TF32.get(precision, 1 / 3)
        return 2.0 * lanes * self.multiprocessors * self.clock


def _of_capability(
    table: dict[tuple[int, int], tuple[int, int]], capability: tuple[int, int]
) -> tuple[int, int]:
    found = table.get(capability) or table.get((capability[0], 0))
    return table[12, 0] if found is None else found


#: (float32, float64) lanes per multiprocessor, by compute capability (CUDA C++ Programming
#: Guide, table of arithmetic throughput). An unlisted minor version uses its major's .0,
#: an unlisted major one what most have, that of 12.0.
_LANES: dict[tuple[int, int], tuple[int, int]] = {
    (7, 0): (64, 32), (7, 5): (64, 2),
    (8, 0): (64, 32), (8, 6): (128, 2), (8, 9): (128, 2),
    (9, 0): (128, 64), (10, 0): (128, 64), (10, 3): (128, 2), (11, 0): (128, 2),
    (12, 0): (128, 2), (12, 1): (128, 2),
}  # fmt: skip

#: Multiply-adds of TF32 a cycle and multiprocessor, by mma.sync and by what cuBLAS has: from the
#: peaks in NVIDIA's data sheets. Estimated: mma.sync reaches 0.62 of Hopper's, which has another
#: instruction of its own, and on 10.0 as much as Ampere's.
_TENSOR: dict[tuple[int, int], tuple[int, int]] = {
    (8, 0): (512, 512), (8, 6): (128, 128), (8, 9): (128, 128),
    (9, 0): (635, 1024), (10, 0): (512, 2048), (11, 0): (512, 2048), (12, 0): (128, 128),
}  # fmt: skip
_PER_TF32 = {"tf32": 1.0, "bf16": 2.0}

#: A stand-in for plans on machines without a device.
H200 = Device(
    "NVIDIA H200", (9, 0), 132, 1.98e9, 4.3e12, 227 * 1024,
    clusters=((1, 132), (2, 66), (4, 30), (8, 15), (16, 7)),
)  # fmt: skip
