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
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..planning import Transposes
from .arrays import DeviceArray

#: Bytes of workspace that a product may use: what NVIDIA recommends on Hopper.
WORKSPACE = 32 << 20

# Names and numbers of cublasLt.h, the same since CUDA 11.
_R_32F, _R_64F = 0, 1
#: By precision: of float32 matrices, whose factors the library rounds on its way.
_COMPUTE = {"float32": 68, "float64": 70, "bf16": 75, "tf32": 77}
_DESC_TRANSA, _DESC_TRANSB = 3, 4
_PREF_MAX_WORKSPACE, _PREF_REDUCTION_SCHEMES = 1, 3
_PREF_ALIGNMENTS = (5, 6, 7, 8)  # of A, B, C and D
_ALGO_ID, _ALGO_TILE, _ALGO_SPLIT_K = 0, 1, 2
#: A split sum is added up in a step of its own, in a fixed order: never in place as parts arrive.
_SPLIT_IN_WORKSPACE = 2
_NORMAL, _TRANSPOSED = 0, 1


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
    alignment: int

    @property
    def single(self) -> bool:
        return self.precision != "float64"


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
    ) -> None:
        """out = scale · a bᵀ ("NT"), a b ("NN") or aᵀ b ("TN"), on the stream of that handle.

        `workspace` are `WORKSPACE` bytes that nothing else uses until the product is done. A
        shape's first product must not be one that is captured. `precision` is what factors are
        rounded to, if they are.

        Raises
        ------
        RuntimeError
            With the name of the call that failed.
        """
        m, n = out.shape
        k = a.shape[0] if layout == "TN" else a.shape[1]
        plan = self._plan(layout, m, n, k, out.dtype, precision, (a, b, out))
        number = ctypes.c_float if out.dtype == np.float32 else ctypes.c_double
        # cuBLASLt counts columns first, so it sees every array transposed: outᵀ = b'ᵀ a'ᵀ.
        self._call(
            "cublasLtMatmul", self._handle, plan.descriptor,
            ctypes.byref(number(scale)), _pointer(b), plan.b, _pointer(a), plan.a,
            ctypes.byref(number(0.0)), _pointer(out), plan.out, _pointer(out), plan.out,
            ctypes.byref(plan.algorithm), _pointer(workspace), ctypes.c_size_t(workspace.nbytes),
            ctypes.c_void_p(stream),
        )  # fmt: skip

    def algorithm(
        self,
        layout: Transposes,
        m: int,
        n: int,
        k: int,
        dtype: np.dtype[Any],
        precision: str | None = None,
    ) -> str:
        """Which algorithm a product of aligned arrays takes, by cuBLASLt's own numbering."""
        plan = self._plan(layout, m, n, k, dtype, precision, ())
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

    def _plan(
        self,
        layout: Transposes,
        m: int,
        n: int,
        k: int,
        dtype: np.dtype[Any],
        precision: str | None,
        arrays: tuple[DeviceArray, ...],
    ) -> _Plan:
        alignment = _alignment(arrays, dtype.itemsize)
        problem = _Problem(layout, m, n, k, precision or dtype.name, alignment)
        with self._lock:
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
        m, n, k, layout = problem.m, problem.n, problem.k, problem.layout
        kind = _R_32F if problem.single else _R_64F
        descriptor = self._create("cublasLtMatmulDesc", _COMPUTE[problem.precision], kind)
        for attribute, transposed in (
            (_DESC_TRANSA, layout == "NT"),
            (_DESC_TRANSB, layout == "TN"),
        ):
            value = ctypes.c_int32(_TRANSPOSED if transposed else _NORMAL)
            self._set("cublasLtMatmulDesc", descriptor, attribute, value)
        a, b, out = (
            self._create("cublasLtMatrixLayout", kind, ctypes.c_uint64(columns),
                         ctypes.c_uint64(rows), ctypes.c_int64(columns))
            for rows, columns in (
                (k, m) if layout == "TN" else (m, k), (n, k) if layout == "NT" else (k, n), (m, n)
            )
        )  # fmt: skip
        preference = self._create("cublasLtMatmulPreference")
        for attribute, number in (
            (_PREF_MAX_WORKSPACE, ctypes.c_uint64(WORKSPACE)),
            (_PREF_REDUCTION_SCHEMES, ctypes.c_uint32(_SPLIT_IN_WORKSPACE)),
            *((attribute, ctypes.c_uint32(problem.alignment)) for attribute in _PREF_ALIGNMENTS),
        ):
            self._set("cublasLtMatmulPreference", preference, attribute, number)
        found, count = _Heuristic(), ctypes.c_int()
        self._call("cublasLtMatmulAlgoGetHeuristic", self._handle, descriptor, b, a, out, out,
                   preference, 1, ctypes.byref(found), ctypes.byref(count))  # fmt: skip
        if not count.value or found.state:
            raise RuntimeError(f"cuBLASLt has no algorithm for {problem}")
        return _Plan(descriptor, a, b, out, found.algorithm)


def _destroy(library: Any, made: list[tuple[str, ctypes.c_void_p]]) -> None:
    for name, value in reversed(made):
        getattr(library, name)(value)


def _alignment(arrays: tuple[DeviceArray, ...], itemsize: int) -> int:
    """16 where all arrays and rows start at multiples of 16 bytes, else a number's own size."""
    starts = (x.pointer | x.shape[-1] * itemsize for x in arrays)
    return itemsize if any(start % 16 for start in starts) else 16


def _pointer(array: DeviceArray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.pointer)
