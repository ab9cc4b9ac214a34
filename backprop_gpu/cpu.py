"""The compiled library of `kernels/cpu`: found, loaded, and called by ctypes.

A call lets other Python threads run. The library keeps nothing between two calls but threads that
sleep, and a forked process starts its own.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, addressof, c_char, c_double, c_int32, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from . import costs, kernels, python_functions
from .activations import Activation
from .costs import Cost
from .parameters import Layout, Parameters

#: In the order of `kernels/cpu/maps.h`.
ACTIVATIONS = (
    "sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "identity",
    "exponential", "softmax",
)  # fmt: skip
COSTS = (
    "Quadratic", "BinaryCrossEntropy", "CategoricalCrossEntropy", "Poisson", "AbsoluteError",
    "Huber", "Quantile", "Hinge", "SquaredHinge", "Focal", "CategoricalFocal", "Cosine",
    "GaussianNll",
)  # fmt: skip
RULES = ("sgd", "momentum", "nesterov", "adam", "adamw")
#: Stages of a pass.
READ, FORWARD, BACKWARD, GRADIENTS = range(4)
#: What a job runs: whole steps, or a part of one.
WHOLE, ROWS_OF_STEP, GRADIENT, CHANGE = range(4)

#: What the levels of instructions are called elsewhere.
LEVELS = {
    "v4": "AVX-512",
    "v3": "AVX2 and FMA",
    "v2": "SSE4.2, without fused multiply-add: other bits than machines that have it",
    "neon": "NEON",
}


class AbiLayer(Structure):
    """`AbiLayer` of kernels/cpu/abi.h, which says what each field is; so the next three."""

    _fields_ = (
        ("inputs", c_int32), ("neurons", c_int32), ("sigma", c_int32), ("from_z", c_int32),
        ("w_at", c_int64), ("b_at", c_int64),
        ("value", c_void_p), ("derivative", c_void_p),
    )  # fmt: skip


class AbiNetwork(Structure):
    #: Who runs a user's C.
    called: python_functions.CalledCost | None = None
    #: Whose layers and constants these are.
    kept: AbiNetwork | None = None
    constants_kept: Any = None
    _fields_ = (
        ("itemsize", c_int32), ("stored", c_int32), ("depth", c_int32), ("cost", c_int32),
        ("collapses", c_int32), ("from_z", c_int32), ("low", c_double), ("high", c_double),
        ("constants", c_void_p), ("count", c_int64),
        ("layers", POINTER(AbiLayer)), ("samples", c_void_p), ("gradient", c_void_p),
    )  # fmt: skip


class AbiMember(Structure):
    _fields_ = (
        ("batch", c_int32), ("block", c_int32), ("in_place", c_int32), ("rule", c_int32),
        ("by_inputs", c_int32), ("epochs", c_int32), ("shards", c_int32),
        ("first_shard", c_int32), ("end_shard", c_int32),
        ("rows", c_int64), ("order", c_void_p), ("coefficients", c_void_p),
        ("weights", c_void_p), ("rates", c_void_p), ("keys", c_void_p), ("first_step", c_int64),
        ("clip_value", c_double), ("clip_norm", c_double), ("max_norm", c_double), ("l1", c_double),
        ("d1", c_double), ("d2", c_double), ("epsilon", c_double),
        ("slices", c_void_p), ("p", c_void_p), ("state", c_void_p * 2), ("costs", c_void_p),
        ("squares", c_void_p), ("gradient", c_void_p), ("memory", c_void_p),
    )  # fmt: skip


class AbiJob(Structure):
    _fields_ = (
        ("network", POINTER(AbiNetwork)), ("X", c_void_p), ("Y", c_void_p),
        ("members", POINTER(AbiMember)), ("count", c_int32), ("teams", c_int32),
        ("threads", c_int32), ("every_call", c_int32), ("part", c_int32), ("layer", c_int32),
        ("first", c_int64), ("last", c_int64),
    )  # fmt: skip


class AbiSparse(Structure):
    _fields_ = (("starts", c_void_p), ("columns", c_void_p), ("values", c_void_p))


class AbiPass(Structure):
    #: What `parameters` points to.
    where: Any = None
    _fields_ = (
        ("network", POINTER(AbiNetwork)), ("X", c_void_p), ("Y", c_void_p), ("x_row", c_int64),
        ("parameters", c_void_p), ("inputs_first", c_int32), ("stage", c_int32), ("rows", c_int64),
        ("threads", c_int32), ("block", c_int32), ("in_place", c_int32), ("unused", c_int32),
        ("outputs", c_void_p), ("costs", c_void_p),
        ("weights", c_void_p), ("total", c_double), ("error", c_void_p), ("gradients", c_void_p),
        ("inputs_error", c_void_p), ("memory", c_void_p),
    )  # fmt: skip


class AbiOpenMP(Structure):
    _fields_ = (
        ("GOMP_parallel", c_void_p), ("omp_get_thread_num", c_void_p),
        ("omp_get_num_threads", c_void_p),
    )  # fmt: skip


class NoLibraryError(RuntimeError):
    """There is no library that could run here; the message says why, and what helps."""


class CpuLibrary:
    """The library, and the level of instructions that is used of it.

    Parameters
    ----------
    path : Path
    wanted : str
        A level's name; "" takes the best that the processor has.
    """

    def __init__(self, path: Path, wanted: str = "") -> None:
        try:
            self._functions: Any = ctypes.CDLL(os.fspath(path))
        except OSError as error:
            raise NoLibraryError(f"{path} cannot be loaded: {error}") from None
        self._declare()
        sizes = (c_int64 * 5)()
        self._functions.backprop_cpu_sizes(sizes)
        here = [
            ctypes.sizeof(structure)
            for structure in (AbiLayer, AbiNetwork, AbiMember, AbiPass, AbiJob)
        ]
        if self._functions.backprop_cpu_abi() != _ABI or list(sizes) != here:
            raise NoLibraryError(f"{path} is of another version of backprop_gpu: install it again")
        self._number, self.level = self._choose(wanted)
        self.fma = bool(self._functions.backprop_cpu_fma(self._number))
        self.description = f"{LEVELS[self.level]} ({self.level})"

    def _declare(self) -> None:
        functions = self._functions
        functions.backprop_cpu_level.restype = ctypes.c_char_p
        functions.backprop_cpu_bytes.restype = ctypes.c_size_t
        functions.backprop_cpu_bytes.argtypes = (
            ctypes.c_int, POINTER(AbiNetwork), POINTER(AbiMember), ctypes.c_int,
        )  # fmt: skip
        functions.backprop_cpu_layers.argtypes = ctypes.c_int, POINTER(AbiNetwork), c_void_p
        functions.backprop_cpu_layers.restype = None
        functions.backprop_cpu_train.argtypes = ctypes.c_int, POINTER(AbiJob)
        functions.backprop_cpu_pass_bytes.restype = ctypes.c_size_t
        functions.backprop_cpu_pass_bytes.argtypes = ctypes.c_int, POINTER(AbiPass)
        functions.backprop_cpu_pass.argtypes = ctypes.c_int, POINTER(AbiPass), POINTER(AbiOpenMP)

    def _choose(self, wanted: str) -> tuple[int, str]:
        names = []
        for number in range(len(LEVELS) + 1):
            name = self._functions.backprop_cpu_level(number)
            if name is None:
                break
            names.append(name.decode())
        runs = {
            name: number
            for number, name in enumerate(names)
            if self._functions.backprop_cpu_runs(number)
        }
        if wanted and wanted not in names:
            raise NoLibraryError(
                f"BACKPROP_GPU_CPU={wanted!r} is no level of this library: {', '.join(names)}"
            )
        if wanted and wanted not in runs:
            raise NoLibraryError(
                f"BACKPROP_GPU_CPU={wanted!r}, and this processor has no {LEVELS[wanted]}"
            )
        if not runs:
            raise NoLibraryError(f"this processor has none of {', '.join(names)}")
        name = wanted or next(iter(runs))
        return runs[name], name

    def layers(self, network: AbiNetwork) -> list[int]:
        """Where each layer begins in a gradient in strips, and where the last one ends."""
        starts = (c_int64 * (network.depth + 1))()
        self._functions.backprop_cpu_layers(self._number, network, starts)
        return list(starts)

    def memory(self, network: AbiNetwork, member: AbiMember, threads: int) -> np.ndarray:
        """What a member needs, from call to call of an epoch; it may be used for another's."""
        return aligned(self._functions.backprop_cpu_bytes(self._number, network, member, threads))

    def train(self, job: AbiJob) -> None:
        """Some steps of some members.

        Raises
        ------
        RuntimeError
            If the system has no more threads; nothing has run.
        """
        if self._functions.backprop_cpu_train(self._number, job):
            raise RuntimeError(_NO_THREADS.format(job.teams * job.threads))

    def pass_bytes(self, run: AbiPass) -> int:
        """Bytes of memory that a pass needs, at a multiple of 64."""
        return int(self._functions.backprop_cpu_pass_bytes(self._number, run))

    def run(self, run: AbiPass, openmp: AbiOpenMP | None = None) -> None:
        """A pass over rows, as its stage says, on the library's threads or OpenMP's.

        Raises as `train`.
        """
        if self._functions.backprop_cpu_pass(self._number, run, openmp):
            raise RuntimeError(_NO_THREADS.format(run.threads))


def address(array: Any) -> int:
    """Where an array's numbers begin, or the rows of a `SparseRows`."""
    if type(array) is SparseRows:
        return ctypes.addressof(array.described)
    try:  # NumPy's own way takes four times as long
        return ctypes.addressof(c_char.from_buffer(array))
    except (TypeError, ValueError, BufferError):  # it is read-only, or empty
        return int(array.ctypes.data)


def addresses(parameters: Parameters) -> Any:
    """Where w^1 … w^L and b^1 … b^L begin, as a pass takes them."""
    flat = parameters.flat
    of, found = parameters.__dict__.get("_addresses", (None, None))
    if of is not flat:
        found = addresses_in(parameters.layout, flat)
        parameters.__dict__["_addresses"] = flat, found
    return found


def addresses_in(layout: Layout, flat: Any) -> Any:
    """`addresses`, of a flat array."""
    begin, size = address(flat), flat.itemsize
    return addresses_from([begin + start * size for start in layout.starts])


def addresses_from(numbers: Sequence[int | None]) -> Any:
    """`addresses`, from where the arrays begin; None is one that is not wanted."""
    return (c_void_p * len(numbers))(*numbers)


def addresses_of(arrays: Sequence[Any]) -> Any:
    """`addresses`, of as many arrays, which it keeps."""
    found = (c_void_p * len(arrays))(*map(address, arrays))
    found.arrays = tuple(arrays)  # type: ignore[attr-defined]
    return found


class SparseRows:
    """Rows of a SciPy matrix as the library reads them: CSR, columns in order, none twice.

    Parameters
    ----------
    matrix : scipy sparse matrix or array
        Stays as it is.
    dtype : numpy dtype
        Of the library's network.
    """

    def __init__(self, matrix: Any, dtype: Any) -> None:
        rows = matrix.tocsr()
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        self.shape: tuple[int, int] = rows.shape
        self.dtype = np.dtype(dtype)
        self._arrays = (
            np.ascontiguousarray(rows.indptr, np.int64),
            np.ascontiguousarray(rows.indices, np.int32),
            np.ascontiguousarray(rows.data, dtype),
        )
        self.described = AbiSparse(*(array.ctypes.data for array in self._arrays))

    def __len__(self) -> int:
        return self.shape[0]


def readable(X: Any, dtype: np.dtype[Any]) -> Any:
    """Rows that the library reads: a C-contiguous array of the dtype, or `SparseRows`."""
    if hasattr(X, "toarray"):
        return SparseRows(X, dtype)
    return np.ascontiguousarray(X, dtype)


_ABI = 8
_NO_THREADS = "the system has no more threads, or no memory for them: {} are needed"


def aligned(size: int) -> np.ndarray:
    """Memory that begins at a cache line."""
    raw = np.empty(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size]


@lru_cache(maxsize=1)
def library() -> CpuLibrary:
    """The library of this installation.

    Raises
    ------
    NoLibraryError
        Where there is none, or none that could run here.
    """
    folder = Path(kernels.__file__).parent / "cpu"
    try:
        record = json.loads((folder / "build.json").read_bytes())
        editable = record["editable"] or "library" not in record
    except (OSError, ValueError, LookupError, TypeError):
        editable = True
    if editable:  # its sources may have changed
        from .kernels.cpu import build

        record = build.current()
    if record["library"] is None:
        raise NoLibraryError(record["reason"])
    path = folder / record["library"]
    # The system maps a file that was cut off, and the process dies where it reads beyond the end.
    if path.is_file() and path.stat().st_size < record.get("size", 0):
        raise NoLibraryError(
            f"{path} is damaged, since it is too short: install backprop_gpu again"
        )
    return CpuLibrary(path, os.environ.get("BACKPROP_GPU_CPU", ""))


def obstacle(activations: Sequence[Activation], dtype: np.dtype[Any]) -> str | None:
    """Why the library cannot compute a network with these, if it cannot."""
    try:
        library()
        for activation in activations:
            if not activation.builtin:
                python_functions.activation(activation, dtype)
    except (NoLibraryError, python_functions.NotCompiledError) as error:
        return str(error)
    return None


def describe(
    sizes: Sequence[int], activations: Sequence[Activation], cost: Cost, dtype: np.dtype[Any]
) -> AbiNetwork:
    """A model as the library takes it, for which `obstacle` has found nothing."""
    if isinstance(cost, costs.BuiltinCost) and all(sigma.builtin for sigma in activations):
        of_many = _described_once(tuple(sizes), tuple(activations), cost, dtype)
        return stored_as(of_many, dtype.itemsize)
    return _described(sizes, activations, cost, dtype)


@lru_cache(maxsize=64)
def _described_once(*model: Any) -> AbiNetwork:
    return _described(*model)


def _described(
    sizes: Sequence[int], activations: Sequence[Activation], cost: Cost, dtype: np.dtype[Any]
) -> AbiNetwork:
    layout = Layout(tuple(sizes))
    layers = (AbiLayer * len(activations))()
    for l, activation in enumerate(activations):
        layers[l] = AbiLayer(
            sizes[l], sizes[l + 1],
            ACTIVATIONS.index(activation.name) if activation.builtin else -1,
            activation.derivative_from == "z",
            layout.weight_starts[l], layout.bias_starts[l],
            *(() if activation.builtin else python_functions.activation(activation, dtype)),
        )  # fmt: skip
    if not isinstance(cost, costs.BuiltinCost):
        called = python_functions.CalledCost(cost, dtype)
        network = AbiNetwork(
            dtype.itemsize, dtype.itemsize, len(layers), -1, False, False, 0.0, 0.0, None, 0,
            layers, *called.addresses,
        )  # fmt: skip
        network.called = called
        return network
    collapses = costs.collapses(activations[-1], cost)
    constants = (c_double * len(cost.constants))(*cost.constants)
    network = AbiNetwork(
        dtype.itemsize, dtype.itemsize, len(layers), COSTS.index(cost.kernel), collapses,
        collapses and cost.from_z, *cost.limits(dtype), addressof(constants), len(constants),
        layers,
    )  # fmt: skip
    network.constants_kept = constants
    return network


def stored_as(network: AbiNetwork, stored: int) -> AbiNetwork:
    """The network of rows whose numbers are stored in so many bytes; 0 of sparse ones."""
    other = AbiNetwork.from_buffer_copy(network)
    other.stored, other.called = stored, network.called
    other.kept = network  # whose layers it shares
    return other
