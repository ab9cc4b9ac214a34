"""cuBLASLt's matrix product, bound by ctypes.

A binding of our own because what there is costs a second to import, and because a product must be
able to stand in a CUDA graph: cuBLASLt takes stream and workspace with every call and sets nothing
on a handle. What a graph does not allow, to ask which algorithm to take, is asked once per shape
and kept, so a product that has run before can be captured.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..planning import Epilogue, Transposes
from .arrays import DeviceArray

#: Bytes of workspace that a product may use: what NVIDIA recommends on Hopper.
WORKSPACE = 32 << 20

#: What an array of factors in bf16 is declared as: NumPy has no such type.
BF16 = np.dtype(np.uint16)

# Names and numbers of cublasLt.h, the same since CUDA 11.
_R_32F, _R_64F, _R_16BF = 0, 1, 14
#: By precision: of TF32 the library rounds factors of float32 on its way.
_COMPUTE = {"float32": 68, "float64": 70, "bf16": 68, "tf32": 77}
_DESC_TRANSA, _DESC_TRANSB, _DESC_EPILOGUE = 3, 4, 7
_DESC_BIAS_POINTER, _DESC_AUX_POINTER, _DESC_AUX_LD = 8, 11, 12
_EPILOGUES: dict[Epilogue, int] = {
    "": 1, "BIAS": 4, "RELU_BIAS": 6, "RELU_AUX_BIAS": 134, "DRELU_BGRAD": 152, "BGRADB": 512,
}  # fmt: skip
#: Rows of the bits that ReLU leaves are a multiple of so many.
_MASK_BITS = 128
_PREF_MAX_WORKSPACE, _PREF_REDUCTION_SCHEMES = 1, 3
_PREF_ALIGNMENTS = (5, 6, 7, 8)  # of A, B, C and D
_ALGO_ID, _ALGO_TILE, _ALGO_SPLIT_K = 0, 1, 2
#: A split sum is added up in a step of its own, in a fixed order: never in place as parts arrive.
_SPLIT_IN_WORKSPACE = 2
_NORMAL, _TRANSPOSED = 0, 1
_NOT_SUPPORTED = 15


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True)
class _Problem:
    """What tells one product from another for cuBLASLt: C (m, n), a sum over k, how A and B lie."""

    layout: Transposes
    m: int
    n: int
    k: int
    precision: str
    #: Whether all arrays start at multiples of 16 bytes.
    starts_aligned: bool
    epilogue: Epilogue = ""

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Those of A, B and C."""
        m, n, k = self.m, self.n, self.k
        return (
            (k, m) if self.layout == "TN" else (m, k),
            ((n, k) if self.layout == "NT" else (k, n)),
            (m, n),
        )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of a number of A, of B and of C."""
        number = 8 if self.precision == "float64" else 4
        factor = 2 if self.precision == "bf16" else number
        return factor, factor, number

    @property
    def alignments(self) -> tuple[int, int, int]:
        """Of A, B and C 16, where all arrays, and rows, start at multiples of it, else a number."""
        rows = (n * size for (_, n), size in zip(self.shapes, self.sizes, strict=True))
        aligned = self.starts_aligned and not any(row % 16 for row in rows)
        return (16, 16, 16) if aligned else self.sizes


@dataclass(frozen=True)
class _Plan:
    """The descriptors of a problem's product and arrays, and its algorithm."""

    descriptor: ctypes.c_void_p
    a: ctypes.c_void_p
    b: ctypes.c_void_p
    out: ctypes.c_void_p
    algorithm: _Algorithm


class Blas:
    """Products of row-major arrays on one device. Several threads may use it.

    Raises
    ------
    ImportError
        If there is no cuBLASLt.
    """

    def __init__(self) -> None:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        try:
            self._library = ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
        except (RuntimeError, OSError) as error:
            raise ImportError(f"no cuBLASLt: {error}") from error
        self._handle = ctypes.c_void_p()
        self._call("cublasLtCreate", ctypes.byref(self._handle))
        self._plans: dict[_Problem, _Plan] = {}
        self._lock = threading.Lock()
        self._made: list[tuple[str, ctypes.c_void_p]] = [("cublasLtDestroy", self._handle)]
        weakref.finalize(self, _destroy, self._library, self._made)

    @property
    def version(self) -> int:
        """The library's version, such as 130100; 0 where it does not say."""
        get = getattr(self._library, "cublasLtGetVersion", None)
        if get is None:
            return 0
        get.restype = ctypes.c_size_t
        return int(get())

    def product(
        self,
        layout: Transposes,
        a: DeviceArray,
        b: DeviceArray,
        out: DeviceArray,
        scale: float,
        workspace: DeviceArray,
        stream: int,
        precision: str | None = None,
        epilogue: Epilogue = "",
        bias: DeviceArray | None = None,
        mask: DeviceArray | None = None,
    ) -> None:
        """out = scale · a bᵀ ("NT"), a b ("NN") or aᵀ b ("TN"), on the stream of that handle.

        Parameters
        ----------
        a, b, out : DeviceArray
            Of float32 or float64; a and b may be of bf16 (`BF16`), and out then is of float32.
        workspace : DeviceArray
            `WORKSPACE` bytes that nothing else uses until the product is done.
        precision : str, optional
            What factors are rounded to, if they are.
        epilogue : str
            What is done to the product before it is written (`planning.Epilogue`). A shape's first
            product, of each epilogue, must not be one that is captured.
        bias : (n,) array
            b, or for a …BGRAD… the sum of ∂C_x/∂b over the rows, which is written.
        mask : (m, mask_bytes(n)) array of uint8
            A bit for each a > 0, which RELU_AUX_BIAS writes and DRELU_BGRAD reads.

        Raises
        ------
        RuntimeError
            With the name of the call that failed.
        """
        assert (precision == "bf16") == (a.dtype == BF16 == b.dtype), (precision, a, b)
        m, n = out.shape
        k = a.shape[0] if layout == "TN" else a.shape[1]
        problem = _Problem(layout, m, n, k, precision or out.dtype.name, True, epilogue)
        arrays = (array for array in (a, b, out, bias, mask) if array is not None)
        if any(array.pointer % 16 for array in arrays):
            problem = replace(problem, starts_aligned=False)
        number = ctypes.c_float if out.dtype == np.float32 else ctypes.c_double
        with self._lock:  # a description is one of all threads', and has pointers in it
            plan = self._plan(problem)
            for attribute, array in ((_DESC_BIAS_POINTER, bias), (_DESC_AUX_POINTER, mask)):
                if array is not None:
                    self._set("cublasLtMatmulDesc", plan.descriptor, attribute, _pointer(array))
            # cuBLASLt counts columns first, so it sees every array transposed: outᵀ = b'ᵀ a'ᵀ.
            self._call(
                "cublasLtMatmul", self._handle, plan.descriptor,
                ctypes.byref(number(scale)), _pointer(b), plan.b, _pointer(a), plan.a,
                ctypes.byref(number(0.0)), _pointer(out), plan.out, _pointer(out), plan.out,
                ctypes.byref(plan.algorithm), _pointer(workspace),
                ctypes.c_size_t(workspace.nbytes), ctypes.c_void_p(stream),
            )  # fmt: skip

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
        """Which algorithm a product of aligned arrays takes, by cuBLASLt's own numbering.

        None where it has none with that epilogue.
        """
        problem = _Problem(layout, m, n, k, precision or dtype.name, True, epilogue)
        with self._lock:
            try:
                plan = self._plan(problem)
            except _NoAlgorithm:
                return None
        values = []
        for attribute in (_ALGO_ID, _ALGO_TILE, _ALGO_SPLIT_K):
            value = ctypes.c_int32()
            self._call(
                "cublasLtMatmulAlgoConfigGetAttribute", ctypes.byref(plan.algorithm), attribute,
                ctypes.byref(value), ctypes.c_size_t(4), None,
            )  # fmt: skip
            values.append(value.value)
        number, tile, splits = values
        return f"algorithm {number}, tile {tile}" + (f", {splits} splits" if splits > 1 else "")

    def _plan(self, problem: _Problem) -> _Plan:
        """Under the lock."""
        if problem not in self._plans:
            self._plans[problem] = self._make_plan(problem)
        return self._plans[problem]

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with status {status}")

    def _create(self, what: str, *arguments: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._call(f"{what}Create", ctypes.byref(made), *arguments)
        self._made.append((f"{what}Destroy", made))
        return made

    def _set(self, what: str, of: ctypes.c_void_p, attribute: int, value: Any) -> None:
        self._call(f"{what}SetAttribute", of, attribute, ctypes.byref(value),
                   ctypes.c_size_t(ctypes.sizeof(value)))  # fmt: skip

    def _make_plan(self, problem: _Problem) -> _Plan:
        """The descriptors of a problem, and the algorithm that cuBLASLt advises."""
        n, layout = problem.n, problem.layout
        kind = _R_64F if problem.precision == "float64" else _R_32F
        factor = _R_16BF if problem.precision == "bf16" else kind
        descriptor = self._create("cublasLtMatmulDesc", _COMPUTE[problem.precision], kind)
        for attribute, transposed in (
            (_DESC_TRANSA, layout == "NT"),
            (_DESC_TRANSB, layout == "TN"),
        ):
            value = ctypes.c_int32(_TRANSPOSED if transposed else _NORMAL)
            self._set("cublasLtMatmulDesc", descriptor, attribute, value)
        if problem.epilogue:
            number = ctypes.c_uint32(_EPILOGUES[problem.epilogue])
            self._set("cublasLtMatmulDesc", descriptor, _DESC_EPILOGUE, number)
            # Of these pointers a heuristic reads how they are aligned, and nothing else.
            aligned = ctypes.c_void_p(problem.alignments[2])
            self._set("cublasLtMatmulDesc", descriptor, _DESC_BIAS_POINTER, aligned)
            if "RELU_AUX" in problem.epilogue or "DRELU" in problem.epilogue:
                aligned = ctypes.c_void_p(16)  # an array of its own
                self._set("cublasLtMatmulDesc", descriptor, _DESC_AUX_POINTER, aligned)
                bits = ctypes.c_int64(8 * mask_bytes(n))
                self._set("cublasLtMatmulDesc", descriptor, _DESC_AUX_LD, bits)
        a, b, out = (
            self._create("cublasLtMatrixLayout", of, ctypes.c_uint64(columns),
                         ctypes.c_uint64(rows), ctypes.c_int64(columns))
            for of, (rows, columns) in zip((factor, factor, kind), problem.shapes, strict=True)
        )  # fmt: skip
        preference = self._create("cublasLtMatmulPreference")
        for attribute, wanted in (
            (_PREF_MAX_WORKSPACE, ctypes.c_uint64(WORKSPACE)),
            (_PREF_REDUCTION_SCHEMES, ctypes.c_uint32(_SPLIT_IN_WORKSPACE)),
            *(
                (attribute, ctypes.c_uint32(alignment))
                for attribute, alignment in zip(
                    _PREF_ALIGNMENTS, (*problem.alignments, problem.alignments[2]), strict=True
                )
            ),
        ):
            self._set("cublasLtMatmulPreference", preference, attribute, wanted)
        found, count = _Heuristic(), ctypes.c_int()
        status = self._library.cublasLtMatmulAlgoGetHeuristic(
            self._handle, descriptor, b, a, out, out, preference, 1, ctypes.byref(found),
            ctypes.byref(count),
        )  # fmt: skip
        if status == _NOT_SUPPORTED or not (status or (count.value and not found.state)):
            raise _NoAlgorithm(f"cuBLASLt has no algorithm for {problem}")
        if status:
            raise RuntimeError(f"cublasLtMatmulAlgoGetHeuristic failed with status {status}")
        return _Plan(descriptor, a, b, out, found.algorithm)


def _destroy(library: Any, made: list[tuple[str, ctypes.c_void_p]]) -> None:
    for name, value in reversed(made):
        getattr(library, name)(value)


def mask_bytes(n: int) -> int:
    """Bytes of a row of ReLU's bits, of n neurons."""
    return -(-n // _MASK_BITS) * (_MASK_BITS // 8)


class _NoAlgorithm(RuntimeError):
    """What cuBLASLt's heuristic finds none for."""


def _pointer(array: DeviceArray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.pointer)
