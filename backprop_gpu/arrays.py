"""Arrays and tables of other libraries: what NumPy's array of each is, and the way back.

    to_numpy(name, value)      an array on the host, of any dtype; shares memory where it can
    as_given(result, given)    a result of ours in the library, and on the device, of what was given
    SparseMatrix               rows of SciPy's matrices, which come out dense a part at a time

Nothing is imported here that the caller has not: who hands over a tensor has PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

#: dtype.kind of what counts as numbers.
NUMBERS = "biuf"


# -- in ------------------------------------------------------------------------------------------


def to_numpy(name: str, value: Any, missing: bool = False) -> np.ndarray:
    """A value as an array on the host, of whatever dtype.

    No copy is made of an array of NumPy's, nor of one of PyTorch, JAX or any library with
    ``__array_namespace__`` or DLPack that lies in the host's memory. bfloat16, which NumPy has not,
    becomes float32, exactly. Tables (pandas, polars, Arrow, and what has Arrow's or the dataframe
    protocol) become (rows, columns), and their columns (rows,).

    Parameters
    ----------
    name : str
        What the argument is called, for an error.
    value : object
    missing : bool, default False
        Whether a value that is missing in a table becomes NaN, and is not an error.

    Raises
    ------
    TypeError
        For what is no array of numbers, or cannot be read, with what to pass in its place.
    ValueError
        For rows of several lengths, and for a column with missing values, by its name.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; pass {name}.filled(...)")
    if is_sparse(value):
        raise TypeError(f"{name} is a sparse matrix; pass {name}.toarray()")
    package = package_of(value)
    read = _READERS.get(package)
    if read is not None:
        found = read(name, value, missing)
        if found is not None:
            return found
    elif not isinstance(value, np.ndarray | np.generic | list | tuple):
        found = _by_protocol(name, value, missing)
        if found is not None:
            return found
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name} must be an array, with rows of one length: {error}") from error


def package_of(value: Any) -> str:
    """Which of the packages that are known here made a value's class, or a class it is derived
    from; "" for none of them.
    """
    for base in type(value).__mro__:
        package = base.__module__.partition(".")[0]
        package = {"jaxlib": "jax", "numba_cuda": "numba"}.get(package, package)
        if package in _READERS or package in _MAKERS:
            return package
    return ""


def _torch(name: str, value: Any, missing: bool) -> np.ndarray | None:
    torch = sys.modules["torch"]
    data = sys.modules.get("torch.utils.data")
    if data is not None and isinstance(value, (data.DataLoader, data.Dataset)):
        loader = "loader" if isinstance(value, data.DataLoader) else "DataLoader(dataset, 1000)"
        raise TypeError(
            f"{name} must be an array, got a {type(value).__name__}. Its batches as two arrays: "
            f"X, Y = map(torch.cat, zip(*{loader})); then X.flatten(1) in place of X"
        )
    if not isinstance(value, torch.Tensor):
        return None
    if value.requires_grad:
        raise TypeError(
            f"{name} is a tensor that requires grad, and no gradient would flow back to it: pass "
            f"{name}.detach()"
        )
    if value.layout is not torch.strided:
        raise TypeError(f"{name} is a tensor of layout {value.layout}; pass {name}.to_dense()")
    if value.dtype is torch.bfloat16:
        value = value.float()
    try:
        array: np.ndarray = value.cpu().resolve_neg().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise TypeError(f"{name}, a tensor of {value.dtype}, cannot be read: {error}") from error
    return array


def _jax(name: str, value: Any, missing: bool) -> np.ndarray | None:
    core = sys.modules["jax"].core
    if isinstance(value, core.Tracer):
        raise TypeError(
            f"{name} is being traced, by jax.jit, grad or vmap, and has no numbers yet: make the "
            "call outside, or through jax.pure_callback"
        )
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _cupy(name: str, value: Any, missing: bool) -> np.ndarray | None:
    return value.get() if hasattr(value, "get") else None


def _numba(name: str, value: Any, missing: bool) -> np.ndarray | None:
    return value.copy_to_host() if hasattr(value, "copy_to_host") else None


def _pandas(name: str, value: Any, missing: bool) -> np.ndarray | None:
    pandas = sys.modules["pandas"]
    if isinstance(value, pandas.Series):
        return _pandas_column(name, value, missing)
    if not isinstance(value, pandas.DataFrame):
        return None
    kinds = {dtype.kind if isinstance(dtype, np.dtype) else "O" for dtype in value.dtypes}
    if kinds == {"b"} or (kinds and kinds <= set("iuf")):  # of which pandas makes no objects
        found: np.ndarray = value.to_numpy()
        return found
    return _side_by_side(
        _pandas_column(_label(name, label), value.iloc[:, i], missing)
        for i, label in enumerate(value.columns.tolist())
    )


def _pandas_column(place: str, column: Any, missing: bool) -> np.ndarray:
    dtype = column.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in NUMBERS:
        array: np.ndarray = column.to_numpy()
        return array
    is_sparse_column = isinstance(dtype, sys.modules["pandas"].SparseDtype)
    inner = dtype.subtype if is_sparse_column else getattr(dtype, "numpy_dtype", None)
    if not isinstance(inner, np.dtype) or inner.kind not in NUMBERS:
        hints = {"object": "; .astype(float) makes some of it", "category": "; .cat.codes has some"}
        hint = hints.get(str(dtype), "")
        raise TypeError(f"{place} must hold real numbers, got dtype {dtype}{hint}")
    gaps = column.isna().to_numpy()
    if is_sparse_column or not gaps.any():  # the gaps of a sparse one are NaN
        return np.asarray(column.to_numpy(inner))
    _check_gaps(place, gaps, missing)
    return np.asarray(column.to_numpy(np.float64, na_value=np.nan))


def _polars(name: str, value: Any, missing: bool) -> np.ndarray | None:
    polars = sys.modules["polars"]
    if isinstance(value, polars.LazyFrame):
        raise TypeError(f"{name} is a LazyFrame; pass {name}.collect()")
    if isinstance(value, polars.Series):
        return _polars_column(name, value, missing)
    if not isinstance(value, polars.DataFrame):
        return None
    return _side_by_side(
        _polars_column(_label(name, column.name), column, missing) for column in value.get_columns()
    )


def _polars_column(place: str, column: Any, missing: bool) -> np.ndarray:
    if column.null_count():
        _check_gaps(place, column.is_null().to_numpy(), missing)
        if column.dtype == sys.modules["polars"].Boolean:
            column = column.cast(int)
    try:
        array = column.to_numpy()
    except Exception as error:  # of theirs: NumPy has no integers of 128 bits, for one
        raise TypeError(f"{place}, {column.dtype}, cannot be read: {error}") from error
    return _numbers(place, array, column.dtype)


def _pyarrow(name: str, value: Any, missing: bool) -> np.ndarray | None:
    arrow = sys.modules["pyarrow"]
    if isinstance(value, arrow.Array | arrow.ChunkedArray):
        return arrow_column(name, value, missing)
    if not isinstance(value, arrow.Table | arrow.RecordBatch):
        return None
    pairs = zip(value.schema.names, value.columns, strict=True)
    return _side_by_side(
        arrow_column(_label(name, label), column, missing) for label, column in pairs
    )


def arrow_column(place: str, column: Any, missing: bool = False, first_row: int = 0) -> np.ndarray:
    """An Array or ChunkedArray of Arrow's as (rows,); `first_row` is the number of its first one.

    Raises
    ------
    ValueError, TypeError
        For missing values, unless they may become NaN, and what is no numbers: in this `place`.
    """
    if column.null_count:
        gaps = np.asarray(column.is_null())
        _check_gaps(place, gaps, missing, first_row)
        if str(column.type) == "bool":
            column = column.cast("int8")
    return _numbers(place, np.asarray(column), column.type)


def _check_gaps(place: str, gaps: np.ndarray, missing: bool, first_row: int = 0) -> None:
    if not missing:
        raise ValueError(
            f"{place} lacks {np.count_nonzero(gaps)} of {len(gaps)} values, the first in row "
            f"{first_row + int(gaps.argmax())}"
        )


def _numbers(place: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    if array.dtype.kind not in NUMBERS or array.ndim != 1:
        raise TypeError(f"{place} must hold real numbers, got {dtype}")
    return array


def _label(name: str, label: Any) -> str:
    return f"{name}: column {label!r}"


def _side_by_side(columns: Iterable[np.ndarray]) -> np.ndarray:
    found = list(columns)
    return np.column_stack(found) if found else np.empty((0, 0))


def column_label(value: Any, number: int) -> Any:
    """What a table calls a column; None for what is no table, or has no such column."""
    package = package_of(value)
    if package == "pyarrow":
        labels = getattr(getattr(value, "schema", None), "names", None)
    else:
        labels = getattr(value, "columns", None) if package in ("pandas", "polars") else None
    return list(labels)[number] if labels is not None and number < len(labels) else None


def _by_protocol(name: str, value: Any, missing: bool) -> np.ndarray | None:
    """What tells of itself by one of the protocols, and not by ``__array__`` alone."""
    if hasattr(value, "__array_namespace__") or (
        hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
    ):
        try:
            return np.from_dlpack(value)
        except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
            reason: Exception = error
        try:
            array = np.asarray(value)
            if array.dtype != object:
                return array
        except Exception as error:  # whatever their library raises
            reason = error
        raise TypeError(
            f"{name}, a {type(value).__name__}, cannot be read where it is; pass a copy in the "
            f"host's memory ({type(reason).__name__}: {reason})"
        ) from reason
    if hasattr(value, "__cuda_array_interface__"):
        if hasattr(value, "copy_to_host"):
            return np.asarray(value.copy_to_host())
        raise TypeError(
            f"{name}, a {type(value).__name__}, lies on a CUDA device, and this is computed on the "
            "CPU; pass a copy in the host's memory"
        )
    if any(hasattr(value, way) for way in _TABLES):
        from .imports import optional

        try:
            arrow = optional("pyarrow", "parquet", f"{name}, a {type(value).__name__}")
        except ImportError:
            if hasattr(value, "__array__"):  # which names no columns, but will do
                return None
            raise
        if hasattr(value, "__arrow_c_stream__") or not hasattr(value, "__dataframe__"):
            is_table = not hasattr(value, "__arrow_c_array__") or hasattr(value, "columns")
            given = arrow.table(value) if is_table else _of_capsule(arrow, value)
        else:
            import pyarrow.interchange

            given = pyarrow.interchange.from_dataframe(value)
        return _pyarrow(name, given, missing)
    return None


_TABLES = ("__arrow_c_stream__", "__arrow_c_array__", "__dataframe__")


def _of_capsule(arrow: Any, value: Any) -> Any:
    """An array of Arrow's, or a batch of records, which is an array of structs."""
    array = arrow.array(value)
    if arrow.types.is_struct(array.type):
        return arrow.RecordBatch.from_struct_array(array)
    return array


_READERS: dict[str, Callable[[str, Any, bool], np.ndarray | None]] = {
    "torch": _torch,
    "jax": _jax,
    "cupy": _cupy,
    "numba": _numba,
    "pandas": _pandas,
    "polars": _polars,
    "pyarrow": _pyarrow,
}


# -- and back ------------------------------------------------------------------------------------


def as_given(result: np.ndarray, given: Any) -> Any:
    """The result as an array of the library, and on the device, of what was given.

    A tensor of PyTorch, an array of JAX, CuPy, Numba's CUDA or another library with
    ``__array_namespace__`` gets its like, which on the CPU is the result's memory under another
    name (JAX takes a copy where that memory does not begin as it wants it to, and without its x64
    makes float32 of float64). For anything else, lists, tables and sparse matrices too, and for
    results that are no numbers, it is the result as it is.
    """
    if type(given) is np.ndarray or result.dtype.kind not in NUMBERS:
        return result
    maker = _MAKERS.get(package_of(given))
    if maker is not None:
        return maker(result, given)
    if is_array(given):
        namespace = given.__array_namespace__()
        try:
            return namespace.from_dlpack(result, device=given.device)
        except (AttributeError, BufferError, NotImplementedError, TypeError):
            return namespace.asarray(result, device=given.device)
    return result


def is_array(value: Any) -> bool:
    """Whether `as_given` gives results of it in its library."""
    return package_of(value) in _MAKERS or (
        hasattr(value, "__array_namespace__") and not isinstance(value, np.ndarray | np.generic)
    )


def _torch_like(result: np.ndarray, given: Any) -> Any:
    torch = sys.modules["torch"]
    if not isinstance(given, torch.Tensor):
        return result
    # Of one that cannot be written to, PyTorch would warn.
    return torch.from_numpy(result if result.flags.writeable else result.copy()).to(given.device)


def _jax_like(result: np.ndarray, given: Any) -> Any:
    jax = sys.modules["jax"]
    found = (jax.numpy.from_dlpack if result.flags.writeable else jax.numpy.asarray)(result)
    devices = given.devices()
    if len(devices) == 1 and devices != found.devices():
        return jax.device_put(found, next(iter(devices)))
    return found


def _cupy_like(result: np.ndarray, given: Any) -> Any:
    cupy = sys.modules["cupy"]
    if not isinstance(given, cupy.ndarray):
        return result
    with given.device:
        return cupy.asarray(result)


def _numba_like(result: np.ndarray, given: Any) -> Any:
    from numba import cuda

    return cuda.to_device(result) if hasattr(given, "copy_to_host") else result


_MAKERS: dict[str, Callable[[np.ndarray, Any], Any]] = {
    "torch": _torch_like,
    "jax": _jax_like,
    "cupy": _cupy_like,
    "numba": _numba_like,
}


# -- sparse matrices -----------------------------------------------------------------------------


def is_sparse(value: Any) -> bool:
    """Whether it is a sparse matrix or array of SciPy, or of CuPy."""
    return hasattr(value, "toarray") and hasattr(value, "tocsr")


class SparseMatrix:
    """A sparse matrix: in brackets, as of an array, rows, which come out dense.

    Parameters
    ----------
    csr : scipy.sparse CSR
        (n, k), of the dtype; its columns in order, none twice.
    """

    ndim = 2

    def __init__(self, csr: Any) -> None:
        self.csr = csr
        self.shape: tuple[int, int] = csr.shape
        self.dtype: np.dtype[Any] = csr.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        found: np.ndarray = self.csr[rows].toarray()
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, dense."""
        return np.asarray(self.csr.toarray(), dtype)

    @property
    def density(self) -> float:
        """The share of its numbers that it stores."""
        return float(self.csr.nnz / max(1, self.shape[0] * self.shape[1]))
