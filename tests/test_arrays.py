"""Arrays and tables of other libraries, sparse matrices: what they are here, and what comes back.

PyTorch's tensors are tested in `torch/test_tensors.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tracemalloc
import types
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import sklearn
from pyarrow import parquet

from backprop_gpu import (
    Checkpoint,
    EnsembleClassifier,
    MLPClassifier,
    MLPRegressor,
    Network,
    Population,
    arrays,
    planning,
    validation,
)
from backprop_gpu.cuda import interchange
from backprop_gpu.training import fitting
from machine import device_runtime, without_the_library

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*rows were left out of no member's training:UserWarning"),
]

N, INPUTS, CLASSES = 60, 3, 4
RNG = np.random.default_rng(2)
X = RNG.integers(-50, 50, (N, INPUTS)).astype(np.float32) / 16  # exact in bfloat16 and float16
LABELS = RNG.integers(0, CLASSES, N)
COLUMNS = dict(zip("abc", X.T, strict=True))


def network(dtype: str = "float32", backend: str = "numpy", inputs: int = INPUTS) -> Network:
    return Network(
        [inputs, 5, CLASSES], activation=["tanh", "softmax"], seed=1, dtype=dtype,
        cost="categorical_cross_entropy", backend=backend,
    )  # fmt: skip


def trained(X: Any, Y: Any = LABELS, net: Network | None = None, **changed: Any) -> Network:
    net = net or network()
    net.fit(X, Y, **{"epochs": 2, "batch_size": 8, "learning_rate": 0.3} | changed)
    return net


def bits(net: Network) -> bytes:
    return bytes(net.model.read(net.parameters).tobytes())


def strict(array: np.ndarray) -> Any:
    return array_api_strict.asarray(array)


# -- NumPy's own, in every shape of memory -----------------------------------------------------


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of NumPy's matrix
@pytest.mark.parametrize(
    "made",
    [
        np.asfortranarray,
        lambda x: np.ascontiguousarray(x[::-1])[::-1],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        read_only,
        lambda x: x.astype(">f4"),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.longdouble),
        lambda x: x.tolist(),
        lambda x: np.asmatrix(x),
    ],
    ids=[
        "fortran",
        "reversed",
        "strided",
        "read_only",
        "big_endian",
        "half",
        "double",
        "long",
        "list",
        "matrix",
    ],
)
def test_memory_of_any_kind(made: Callable[[np.ndarray], Any]) -> None:
    found = network().predict(made(X))
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, network().predict(X))
    assert bits(trained(made(X))) == bits(trained(X))


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", ">i4", "i8", "u8"])
def test_whole_numbers(dtype: str) -> None:
    whole = RNG.integers(0, 2, (N, INPUTS)).astype(dtype)
    plain = whole.astype(np.float32)
    np.testing.assert_array_equal(network().predict(whole), network().predict(plain))
    assert bits(trained(whole)) == bits(trained(plain))


# -- other libraries' --------------------------------------------------------------------------


def test_what_is_read_and_given_back_is_not_copied() -> None:
    given = strict(X)
    assert np.shares_memory(arrays.to_numpy("X", given), np.from_dlpack(given))
    ours = np.ones((2, 3), np.float32)
    assert np.shares_memory(np.from_dlpack(arrays.as_given(ours, given)), ours)
    assert arrays.to_numpy("X", ours) is ours
    assert arrays.as_given(ours, X) is ours


def test_every_method_that_reads_gives_back_the_library_of_X() -> None:
    net, plain, given = network(), X, strict(X)
    for call in (
        lambda x: net.predict(x),
        lambda x: net.jacobian(x),
        lambda x: net.laplacian(x),
        lambda x: net.input_gradients(x, output=1),
        lambda x: net.input_gradients(x, LABELS),
        lambda x: net.gradient_norms(x, LABELS),
        lambda x: net.gradient_norms(x, LABELS, of="biases"),
        lambda x: net.gradients(x, LABELS, per_sample=True)[0][0],
        lambda x: Population([INPUTS, 4, 2], members=2, seed=0, backend="numpy").predict(x),
        *(
            lambda x, how=how: Population(
                [INPUTS, 4, 2], members=2, seed=0, backend="numpy"
            ).predict(x, combine=how)
            for how in ("mean", "vote")
        ),
    ):
        found, expected = call(given), call(plain)
        assert type(expected) is np.ndarray
        assert isinstance(found, array_api_strict.asarray(0).__class__)
        np.testing.assert_array_equal(np.from_dlpack(found), expected)
    labels = strict(LABELS)
    assert net.loss(given, labels) == net.loss(plain, LABELS)
    assert net.accuracy(given, labels) == net.accuracy(plain, LABELS)
    assert type(net.gradients(given, labels)[0][0]) is np.ndarray
    assert bits(trained(given, labels)) == bits(trained(X))


def test_an_array_on_another_device_comes_back_there() -> None:
    device = array_api_strict.Device("device1")
    found = network().predict(array_api_strict.asarray(X, device=device))
    assert found.device == device


def test_bytes_of_another_library_stay_bytes() -> None:
    whole = RNG.integers(0, 255, (N, INPUTS)).astype(np.uint8)
    model = network().model
    checked, _ = model.check_data(strict(whole), LABELS, bytes_stay=True)
    assert checked.dtype == np.uint8


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    given = jax.numpy.asarray(X)
    found = network().predict(given)
    assert isinstance(found, jax.Array)
    assert found.devices() == given.devices()
    np.testing.assert_array_equal(np.asarray(found), network().predict(X))
    read = arrays.to_numpy("X", given)
    assert read.ctypes.data == given.unsafe_buffer_pointer()
    half = jax.numpy.asarray(X, jax.numpy.bfloat16)
    np.testing.assert_array_equal(np.asarray(network().predict(half)), network().predict(X))
    assert bits(trained(half, jax.numpy.asarray(LABELS))) == bits(trained(X))
    with pytest.raises(TypeError, match="X is being traced"):
        jax.jit(network().predict)(given)


def test_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in: no CUDA device is needed for what passes through the host."""
    entered: list[int] = []

    class ndarray:
        __cuda_array_interface__ = None

        def __init__(self, array: np.ndarray, number: int = 0) -> None:
            self.array, self.number = array, number

        def get(self) -> np.ndarray:
            return self.array

        @property
        @contextlib.contextmanager
        def device(self) -> Any:
            entered.append(self.number)
            yield

    ndarray.__module__ = "cupy"
    package = types.ModuleType("cupy")
    package.asarray = package.ndarray = ndarray  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", package)
    found = network().predict(ndarray(X, 3))
    assert isinstance(found, ndarray)
    assert entered == [3]
    np.testing.assert_array_equal(found.array, network().predict(X))
    assert bits(trained(ndarray(X), ndarray(LABELS))) == bits(trained(X))


def test_what_only_a_device_has_is_refused_by_name() -> None:
    class Foreign:
        __cuda_array_interface__ = None

    with pytest.raises(TypeError, match="X, a Foreign, lies on a CUDA device"):
        network().predict(Foreign())

    class Elsewhere:
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("not on this machine")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with pytest.raises(TypeError, match=r"X, a Elsewhere, cannot be read.*not on this machine"):
        network().predict(Elsewhere())


def test_an_array_of_an_unknown_library() -> None:
    class Unknown:
        def __init__(self, array: np.ndarray) -> None:
            self._array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self._array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self._array.__dlpack_device__()

    found = network().predict(Unknown(X))
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, network().predict(X))


# -- on a device -------------------------------------------------------------------------------


class Foreign:
    """An array of some other library on the device."""

    def __init__(self, host: np.ndarray, strides: Any = None) -> None:
        self.ours = device_runtime().array(host)
        self.shape, self.dtype, self._strides = host.shape, host.dtype, strides

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.ours.__cuda_array_interface__ | {"strides": self._strides}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_on_the_device_stay_there(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, net = device_runtime(), network(backend="cuda")
    expected = net.predict(X)
    uploads: list[int] = []
    upload = type(runtime).upload
    monkeypatch.setattr(
        type(runtime), "upload",
        lambda self, host, out: (uploads.append(host.size), upload(self, host, out)),
    )  # fmt: skip
    given = X.astype(dtype)
    for array in (runtime.array(given), Foreign(given)):
        uploads.clear()
        found = net.predict(array)
        assert not uploads
        assert found.shape == (N, CLASSES)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(runtime.to_numpy(found), expected)


@pytest.mark.gpu
def test_what_was_written_last_is_read() -> None:
    runtime, net = device_runtime(), network(backend="cuda")
    for scale in (0.5, 2.0):
        net.weights = [w * scale for w in net.weights]
        found = net.predict(runtime.array(X))
        np.testing.assert_array_equal(runtime.to_numpy(found), net.predict(X))


class Theirs(Foreign):
    """One of a library that has arrays to write to, and a stream of its own."""


Theirs.__module__ = "theirs"


@pytest.mark.gpu
def test_work_is_done_on_the_stream_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, net = device_runtime(), network(backend="cuda")
    other = runtime.cuda_device.create_stream()
    library = interchange.Library(
        lambda array: int(other.handle),
        lambda array, shape, dtype: Theirs(np.zeros(shape, dtype)),
        lambda array: array,
        lambda ours: pytest.fail("it has an array of its own"),
    )
    monkeypatch.setitem(interchange._LIBRARIES, "theirs", library)  # noqa: SLF001
    given = Theirs(X)
    for scale in (0.5, 2.0):  # written on the runtime's stream
        net.weights = [w * scale for w in net.weights]
        found = net.predict(given)
        assert type(found) is Theirs
        other.sync()
        np.testing.assert_array_equal(runtime.to_numpy(found.ours), net.predict(X))


@pytest.mark.gpu
def test_more_rows_on_the_device_than_a_chunk() -> None:
    runtime, net = device_runtime(), network(backend="cuda")
    many = np.resize(X, (planning.CHUNK_ROWS + 7, INPUTS))
    found = runtime.to_numpy(net.predict(runtime.array(many)))
    np.testing.assert_array_equal(found, net.predict(many))


@pytest.mark.gpu
def test_rows_on_the_device_that_do_not_fit() -> None:
    runtime, net = device_runtime(), network(backend="cuda")
    for wrong, message in (
        (X[:, :2], r"X does not fit layer 0: expected shape \(n, 3\)"),
        (X[0], r"one sample is X.reshape\(1, -1\)"),
        (X * np.nan, "X contains NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            net.predict(runtime.array(np.ascontiguousarray(wrong)))
    whole = runtime.array(RNG.integers(0, 9, (N, INPUTS)))  # through the host
    np.testing.assert_array_equal(net.predict(whole), net.predict(runtime.to_numpy(whole)))
    with pytest.raises(TypeError, match=r"X, a Foreign, .*pass a copy in the host's memory"):
        net.predict(Foreign(X, strides=(4, 4 * N)))


@pytest.mark.gpu
def test_rows_on_the_device_are_trained_on_and_compared() -> None:
    runtime = device_runtime()
    on_device = runtime.array(X), runtime.array(LABELS)
    net, plain = network(backend="cuda"), network(backend="cuda")
    trained(*on_device, net)
    trained(X, LABELS, plain)
    assert bits(net) == bits(plain)
    assert net.loss(*on_device) == plain.loss(X, LABELS)
    assert net.accuracy(*on_device) == plain.accuracy(X, LABELS)


# -- tables ------------------------------------------------------------------------------------


class Capsules:
    """A table, or a column, of which only some protocols are seen."""

    def __init__(self, table: Any, *names: str) -> None:
        self._table, self._names = table, names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name in self._names:
            return getattr(self._table, name)
        raise AttributeError(name)


TABLES = {
    "pandas": lambda c: pd.DataFrame(c),
    "pandas, of several kinds": lambda c: pd.DataFrame(c).astype({"a": float, "b": np.float16}),
    "pandas, with its own numbers": lambda c: pd.DataFrame(c).astype({"a": "Float64"}),
    "pandas, with Arrow's": lambda c: pd.DataFrame(c).astype({"b": "float[pyarrow]"}),
    "pandas, sparse": lambda c: pd.DataFrame(c).astype({"c": pd.SparseDtype("float32", 0)}),
    "pandas, of two columns of one name": lambda c: pd.DataFrame(X, columns=list("aab")),
    "polars": lambda c: pl.DataFrame(c),
    "polars, of several kinds": lambda c: pl.DataFrame(c).cast({"b": pl.Float64}),
    "Arrow": lambda c: pa.table(c),
    "Arrow, in chunks": lambda c: pa.concat_tables([pa.table(c)[:11], pa.table(c)[11:]]),
    "Arrow, a batch": lambda c: pa.record_batch(c),
    "a stream of capsules": lambda c: Capsules(pa.table(c), "__arrow_c_stream__"),
    "a capsule": lambda c: Capsules(pa.record_batch(c), "__arrow_c_array__"),
    "the dataframe protocol": lambda c: Capsules(pa.table(c), "__dataframe__"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(kind: str) -> None:
    table = TABLES[kind](COLUMNS)
    found = network().predict(table)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, network().predict(X))
    assert bits(trained(table)) == bits(trained(X))


def test_a_table_of_a_protocol_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame(COLUMNS)
    either = Capsules(table, "__arrow_c_stream__", "__array__")
    only = Capsules(table, "__arrow_c_stream__")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    np.testing.assert_array_equal(network().predict(either), network().predict(X))
    with pytest.raises(ImportError, match=r"X, a Capsules: .*pyarrow .*backprop_gpu\[parquet\]"):
        network().predict(only)


def test_flags_beside_numbers() -> None:
    flags = X[:, 0] > 0
    expected = network().predict(np.column_stack([flags, X[:, 1:]]))
    columns = {"a": flags, "b": X[:, 1], "c": X[:, 2]}
    for table in (pd.DataFrame(columns), pl.DataFrame(columns), pa.table(columns)):
        np.testing.assert_array_equal(network().predict(table), expected)
    all_flags = pd.DataFrame({name: flags for name in "abc"})
    np.testing.assert_array_equal(
        network().predict(all_flags), network().predict(all_flags.to_numpy().astype(float))
    )


@pytest.mark.parametrize(
    "made",
    [
        pd.Series, lambda y: pd.Series(y).astype("Int64"), pl.Series, pa.array,
        lambda y: pa.chunked_array([y[:7], y[7:]]),
        lambda y: Capsules(pa.array(y), "__arrow_c_array__"),
    ],
)  # fmt: skip
def test_a_column_of_labels(made: Callable[[np.ndarray], Any]) -> None:
    assert bits(trained(X, made(LABELS))) == bits(trained(X))
    assert network().accuracy(X, made(LABELS)) == network().accuracy(X, LABELS)


WITH_GAPS = {
    "a": [*X[:4, 0].tolist(), None, *X[5:-1, 0].tolist(), None],
    "b": X[:, 1],
    "c": X[:, 2],
}


@pytest.mark.parametrize(
    "table",
    [
        lambda: pl.DataFrame(WITH_GAPS),
        lambda: pa.table(WITH_GAPS),
        lambda: pa.record_batch(WITH_GAPS),
        lambda: pd.DataFrame(COLUMNS).assign(a=pd.array(WITH_GAPS["a"], dtype="Float64")),
    ],
    ids=["polars", "arrow", "batch", "pandas"],
)
def test_missing_values_are_named(table: Callable[[], Any]) -> None:
    message = r"X: column 'a' lacks 2 of 60 values, the first in row 4"
    for call in (network().predict, trained, lambda x: network().loss(x, LABELS)):
        with pytest.raises(ValueError, match=message):
            call(table())


def test_missing_values_of_a_file_are_named(tmp_path: Any) -> None:
    gaps = {"a": [*X[:41, 0].tolist(), None, *X[42:, 0].tolist()], "b": X[:, 1], "c": X[:, 2]}
    parquet.write_table(pa.table(gaps), tmp_path / "rows.parquet", row_group_size=16)
    with pytest.raises(ValueError, match="X: column 'a' lacks 1 of 16 values, the first in row 41"):
        trained(parquet.ParquetFile(tmp_path / "rows.parquet"), buffer_rows=8)


def test_NaN_is_found_in_its_column() -> None:
    table = pd.DataFrame(WITH_GAPS)
    for each in (table, pl.from_pandas(table, nan_to_null=False)):
        with pytest.raises(
            ValueError, match=r"NaN or infinity, first at index \(4, 0\), column 'a'"
        ):
            network().predict(each)
    with pytest.raises(ValueError, match=r"does not fit float32: 1e\+39 at index .*column 'b'"):
        network().predict(pd.DataFrame(COLUMNS).assign(b=1e39))


def test_a_missing_class_is_named_with_what_to_do() -> None:
    labels = np.array([0.0, 1.0, np.nan, 2.0])
    net = Network([2, 3], seed=0, backend="numpy")
    with pytest.raises(ValueError, match=r"^Y lacks the label of row 2: leave .* one-hot rows"):
        net.fit(np.ones((4, 2)), labels, epochs=1, batch_size=2, learning_rate=0.1)


def test_what_is_missing_in_Y_is_a_missing_label() -> None:
    numbers = RNG.standard_normal(N)
    numbers[3] = np.nan
    columns = [None if np.isnan(y) else y for y in numbers]
    expected = Network([INPUTS, 4, 1], seed=1, backend="numpy")
    trained(X, numbers, expected)
    for Y in (pl.Series(columns), pa.array(columns), pd.Series(columns, dtype="Float64")):
        assert bits(trained(X, Y, Network([INPUTS, 4, 1], seed=1, backend="numpy"))) == bits(
            expected
        )
    table = pa.table({"y": columns})
    assert bits(trained(X, table, Network([INPUTS, 4, 1], seed=1, backend="numpy"))) == bits(
        expected
    )
    with pytest.raises(ValueError, match="Y contains infinity"):
        trained(X, pl.Series([np.inf, *columns[1:]]), Network([INPUTS, 4, 1], backend="numpy"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: pd.DataFrame(COLUMNS).assign(b="x"), r"column 'b' must hold real .*dtype str"),
        (
            lambda: pd.DataFrame(COLUMNS).assign(b=pd.Categorical(["x"] * N)),
            r"category; \.cat\.codes",
        ),
        (lambda: pd.DataFrame(COLUMNS).assign(b=1j), r"column 'b' must hold .*complex"),
        (lambda: pd.DataFrame(COLUMNS).assign(b=pd.Timestamp(0)), r"column 'b' .*datetime64"),
        (lambda: pl.DataFrame(COLUMNS).with_columns(b=pl.lit("x")), r"column 'b' .*String"),
        (lambda: pl.DataFrame(COLUMNS).with_columns(b=pl.lit([1.0])), r"column 'b' .*List"),
        (lambda: pd.DataFrame(COLUMNS).astype({"b": object}), r"object; \.astype\(float\)"),
        (lambda: pd.DataFrame(COLUMNS).assign(b=pd.interval_range(0, N)), "'b' .*interval"),
        (
            lambda: pl.DataFrame(COLUMNS).cast({"b": pl.Int128}),
            "column 'b', Int128, cannot be read",
        ),
        (lambda: pl.DataFrame(COLUMNS).lazy(), r"X is a LazyFrame; pass X.collect\(\)"),
        (lambda: pa.record_batch(COLUMNS | {"b": ["x"] * N}), r"X.*b.*string"),
        (lambda: pd.DataFrame(index=range(N)), r"expected shape \(n, 3\)"),
        (lambda: pl.DataFrame(), "X does not fit layer 0"),
    ],
)
def test_columns_that_hold_no_numbers(table: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        network().predict(table())
    with pytest.raises((TypeError, ValueError), match=message):
        trained(table())


def test_categories_are_no_labels_of_a_network() -> None:
    with pytest.raises(
        TypeError, match=r"Y must hold real numbers, got dtype category; .cat.codes"
    ):
        trained(X, pd.Series(LABELS).astype("category"))


# -- sparse ------------------------------------------------------------------------------------

WIDE = 90
SPARSE = scipy.sparse.random_array((N, WIDE), density=0.02, format="csr", rng=RNG)
DENSE = SPARSE.toarray()
THICK = scipy.sparse.random_array((N, WIDE), density=0.5, format="csr", rng=RNG)
FORMATS = [
    scipy.sparse.csr_matrix, scipy.sparse.csr_array, scipy.sparse.csc_array, scipy.sparse.coo_array,
    scipy.sparse.lil_matrix, scipy.sparse.dok_array, scipy.sparse.bsr_array, scipy.sparse.dia_array,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")  # of DIA
@pytest.mark.parametrize("form", FORMATS)
def test_sparse_rows_of_any_form(form: Any) -> None:
    matrix, net = form(SPARSE), network(inputs=WIDE)
    found = net.predict(matrix)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, net.predict(DENSE))
    assert bits(trained(matrix, net=network(inputs=WIDE))) == bits(
        trained(DENSE, net=network(inputs=WIDE))
    )


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("matrix", [SPARSE, THICK], ids=["thin", "thick"])
@pytest.mark.parametrize("engine", ["auto", "layered"])
@pytest.mark.parametrize("piece", [None, 8 * 4 * WIDE * 2])
def test_a_sparse_X_trains_to_the_bits_of_a_dense_one(
    engine: str, matrix: Any, library: bool, piece: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library:
        without_the_library(monkeypatch)
    if piece is not None:
        monkeypatch.setattr(fitting, "BUFFER_BYTES", piece)
    held_out = matrix[:9]
    arguments: dict[str, Any] = {"engine": engine, "optimizer": "adam", "dropout": 0.2}
    weights = RNG.random(N)
    dense, sparse = (
        trained(
            x, net=network(inputs=WIDE), validation_data=(v, LABELS[:9]), sample_weight=weights,
            **arguments,
        )
        for x, v in ((matrix.toarray(), held_out.toarray()), (matrix, held_out))
    )  # fmt: skip
    assert bits(sparse) == bits(dense)
    assert sparse.history.loss == dense.history.loss
    assert sparse.history.val_loss == dense.history.val_loss
    stays = library and engine == "auto" and matrix is SPARSE
    note = "read as it is" if stays else "made dense, some rows at a time"
    assert sparse.plan.notes == (f"a sparse X is {note}",)


@pytest.mark.parametrize("matrix", [SPARSE, THICK], ids=["thin", "thick"])
def test_epochs_that_nobody_looks_at(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of the CPU then makes several in one call, of rows that all lie there."""
    monkeypatch.setattr(fitting, "BUFFER_BYTES", 8 * 4 * WIDE * 2)
    nets = [trained(x, net=network(inputs=WIDE), epochs=4) for x in (matrix, matrix.toarray())]
    assert bits(nets[0]) == bits(nets[1])
    assert nets[0].history.loss == nets[1].history.loss


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("piece", [None, 8 * 4 * WIDE * 2])
def test_a_sparse_X_on_a_device(
    engine: str, piece: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_runtime()
    if piece is not None:
        monkeypatch.setattr(fitting, "BUFFER_BYTES", piece)
    dense, sparse = (
        trained(x, net=network(backend="cuda", inputs=WIDE), engine=engine) for x in (DENSE, SPARSE)
    )
    assert bits(sparse) == bits(dense)
    assert "a sparse X is made dense, some rows at a time" in sparse.plan.notes
    np.testing.assert_array_equal(sparse.predict(SPARSE), sparse.predict(DENSE))


def test_a_sparse_X_beside_a_stored_Y(tmp_path: Any) -> None:
    np.save(tmp_path / "labels.npy", LABELS)
    stored = np.load(tmp_path / "labels.npy", mmap_mode="r")
    expected = bits(trained(DENSE, net=network(inputs=WIDE)))
    assert bits(trained(SPARSE, stored, network(inputs=WIDE))) == expected


@pytest.mark.parametrize("library", [True, False])
def test_methods_that_read_sparse_rows(library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not library:
        without_the_library(monkeypatch)
    monkeypatch.setattr(planning.plan, "_DENSE_BYTES", 7 * 4 * WIDE)
    net, same = network(inputs=WIDE), {"rtol": 1e-5, "atol": 1e-7}
    for call in (
        net.predict,
        net.jacobian,
        net.laplacian,
        lambda x: net.loss(x, LABELS),
        lambda x: net.accuracy(x, LABELS),
        lambda x: net.gradient_norms(x, LABELS),
        lambda x: net.input_gradients(x, LABELS),
        lambda x: net.gradients(x, LABELS)[0][0],
        lambda x: net.gradients(x, LABELS, per_sample=True)[0][0],
        lambda x: Population([WIDE, 4, 2], members=2, seed=0, backend="numpy").predict(x),
        lambda x: Population([WIDE, 4, 2], members=2, seed=0, backend="numpy").loss(x, LABELS % 2),
    ):
        np.testing.assert_allclose(call(SPARSE), call(DENSE), **same)


def test_a_sparse_X_stays_as_it_was() -> None:
    data, columns = np.ones(4, np.float32), np.array([2, 0, 0, 1], np.int32)
    matrix = scipy.sparse.csr_array((data, columns, [0, 3, 4]), shape=(2, 3))  # one twice, jumbled
    expected = network().predict(np.array([[2, 0, 1], [0, 1, 0]]))
    np.testing.assert_array_equal(network().predict(matrix), expected)
    assert matrix.indices.tolist() == [2, 0, 0, 1]
    assert matrix.nnz == 4


def test_memory_is_that_of_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(planning.plan, "_DENSE_BYTES", 1 << 20)
    rows, inputs = 4000, 4000  # 64 MB
    matrix = scipy.sparse.random_array((rows, inputs), density=1e-3, format="csr", rng=RNG)
    labels = np.arange(rows) % 2
    without_the_library(monkeypatch)
    net = Network([inputs, 2, 2], seed=0, backend="numpy")
    tracemalloc.start()
    try:
        net.fit(
            matrix, labels, epochs=1, batch_size=20, learning_rate=0.1,
            validation_data=(matrix, labels),
        )  # fmt: skip
        net.predict(matrix)
        net.loss(matrix, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16e6


def test_sparse_rows_in_what_trains_many() -> None:
    def population(x: Any) -> bytes:
        made = Population([WIDE, 4, CLASSES], members=2, seed=0, backend="numpy")
        made.fit(x, LABELS, epochs=1, batch_size=8, learning_rate=0.1, validation_data=(x, LABELS))
        return b"".join(bits(member) for member in made)

    assert population(SPARSE) == population(DENSE)
    dense, sparse = (trained(x, net=network(inputs=WIDE), mixup=0.3) for x in (DENSE, SPARSE))
    assert bits(sparse) == bits(dense)
    chunks = [(SPARSE[:30], LABELS[:30]), (SPARSE[30:], LABELS[30:])]
    plain = [(x.toarray(), y) for x, y in chunks]
    both = [network(inputs=WIDE) for _ in range(2)]
    for net, batches in zip(both, (chunks, plain), strict=True):
        net.fit(batches=batches, epochs=2, batch_size=8, learning_rate=0.1)
    assert bits(both[0]) == bits(both[1])


def test_more_than_can_be_had_is_refused_at_once() -> None:
    matrix = scipy.sparse.csr_array((1 << 20, 1 << 28))
    with pytest.raises(MemoryError, match=r"X, made dense, needs 1,048,576\.0 GiB"):
        validation.inputs(matrix, 1 << 28, np.dtype(np.float32))


def test_sparse_rows_resume_to_the_bits_of_dense_ones(tmp_path: Any) -> None:
    path = tmp_path / "run.safetensors"
    trained(SPARSE, net=network(inputs=WIDE), epochs=1, callbacks=[Checkpoint(path)])
    again = trained(DENSE, net=network(inputs=WIDE), epochs=3, resume_from=path)
    assert bits(again) == bits(trained(SPARSE, net=network(inputs=WIDE), epochs=3))


# -- estimators --------------------------------------------------------------------------------


@pytest.fixture
def dispatch(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    with sklearn.config_context(array_api_dispatch=True):
        yield


ESTIMATORS = {
    "MLPClassifier": lambda: MLPClassifier((5,), max_iter=3, random_state=0, backend="numpy"),
    "MLPRegressor": lambda: MLPRegressor(
        hidden_layer_sizes=(5,), max_iter=3, random_state=0, backend="numpy"
    ),
    "EnsembleClassifier": lambda: EnsembleClassifier(
        2, (5,), batch_size=20, max_iter=2, random_state=0, backend="numpy"
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_dispatch_gives_back_the_namespace_of_X(name: str, dispatch: Any) -> None:
    made = ESTIMATORS[name]
    est = made().fit(strict(X), strict(LABELS), sample_weight=strict(np.ones(N, np.float32)))
    plain = made().fit(X, LABELS, sample_weight=np.ones(N, np.float32))
    for method in ("predict", "predict_proba", "predict_log_proba", "transform"):
        if hasattr(est, method):
            found, expected = getattr(est, method)(strict(X)), getattr(plain, method)(X)
            assert type(expected) is np.ndarray
            assert found.__array_namespace__() is array_api_strict
            np.testing.assert_array_equal(np.from_dlpack(found), expected)
    assert type(est.predict(X)) is np.ndarray
    assert est.score(strict(X), strict(LABELS)) == pytest.approx(plain.score(X, LABELS))


def test_dispatch_of_texts_and_of_steps(dispatch: Any) -> None:
    texts = np.array(list("uvwx"))[LABELS]
    found = ESTIMATORS["MLPClassifier"]().fit(strict(X), texts).predict(strict(X))
    assert type(found) is np.ndarray  # there are no texts elsewhere
    est, plain = ESTIMATORS["MLPClassifier"](), ESTIMATORS["MLPClassifier"]()
    est.partial_fit(strict(X), strict(LABELS), classes=strict(np.arange(CLASSES)))
    plain.partial_fit(X, LABELS, classes=np.arange(CLASSES))
    assert est.loss_ == plain.loss_


@pytest.mark.parametrize("name", ESTIMATORS)
def test_without_dispatch_estimators_give_NumPy(name: str) -> None:
    est = ESTIMATORS[name]().fit(strict(X), strict(LABELS))
    assert type(est.predict(strict(X))) is np.ndarray


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(ESTIMATORS, ["pandas", "polars"])])
def test_estimators_know_the_columns_of_a_table(name: str, kind: str) -> None:
    table = TABLES[kind](COLUMNS)
    est = ESTIMATORS[name]().fit(table, LABELS)
    assert est.feature_names_in_.tolist() == ["a", "b", "c"]
    assert type(est.predict(table)) is np.ndarray
    other = TABLES[kind]({"a": X[:, 0], "c": X[:, 2], "b": X[:, 1]})
    with pytest.raises(ValueError, match="feature names"):
        est.predict(other)


@pytest.mark.parametrize(
    "made",
    [
        lambda y: pd.Series(y), lambda y: pd.Series(y).astype("category"), lambda y: pl.Series(y),
        lambda y: pl.Series(y).cast(pl.Categorical), lambda y: pa.array(y),
        lambda y: pa.array(y).dictionary_encode(),
    ],
)  # fmt: skip
def test_classifiers_take_columns_of_labels(made: Callable[[Any], Any]) -> None:
    texts = np.array(list("uvwx"))[LABELS]
    for name in ("MLPClassifier", "EnsembleClassifier"):
        est = ESTIMATORS[name]().fit(X, made(texts.tolist()))
        assert est.classes_.tolist() == list("uvwx")
        np.testing.assert_array_equal(est.predict(X), ESTIMATORS[name]().fit(X, texts).predict(X))
