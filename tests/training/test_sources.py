"""Rows that stay on a disk: the bits of rows in memory, whatever they are stored in."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backprop_gpu import Callback, Checkpoint, Network, Population
from backprop_gpu.sources import is_stored, source
from backprop_gpu.training.settings import check_settings
from rank_threads import on_ranks

N, INPUTS, CLASSES = 530, 7, 4
RNG = np.random.default_rng(5)
X = RNG.standard_normal((N, INPUTS)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, N)
Y = np.eye(CLASSES, dtype=np.float32)[LABELS]


NUMBERS = itertools.count()


class InBrackets:
    """The least that a source can be; counts what is asked of it."""

    def __init__(self, array):
        self.shape, self.dtype, self._array = array.shape, array.dtype, array
        self.asked = []

    def __getitem__(self, rows):
        assert isinstance(rows, np.ndarray)
        assert (np.diff(rows) > 0).all()
        self.asked.append(rows)
        return self._array[rows]


def memmap(folder, array, mode="r"):
    path = folder / f"{next(NUMBERS)}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode=mode)


def hdf5(folder, array):
    import h5py

    file = h5py.File(folder / f"{next(NUMBERS)}.h5", "w")
    return file.create_dataset("rows", data=array, chunks=(64, *array.shape[1:]))


def zarr_array(folder, array):
    import zarr

    path = str(folder / f"{next(NUMBERS)}.zarr")
    stored = zarr.create_array(
        path, shape=array.shape, chunks=(50, *array.shape[1:]), dtype=array.dtype
    )
    stored[:] = array
    return zarr.open_array(path, mode="r")


def dask_array(folder, array):
    import dask.array

    return dask.array.from_array(array, chunks=(77, *array.shape[1:]))


def table(array):
    import pyarrow as pa

    columns = array.reshape(len(array), -1).T
    return pa.table({f"c{i}": column for i, column in enumerate(columns)})


def arrow(folder, array):
    import pyarrow as pa

    path = folder / f"{next(NUMBERS)}.arrow"
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table(array).schema) as writer:
        writer.write_table(table(array), max_chunksize=60)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def parquet(folder, array):
    import pyarrow.parquet

    path = folder / f"{next(NUMBERS)}.parquet"
    pyarrow.parquet.write_table(table(array), path, row_group_size=48)
    return pyarrow.parquet.ParquetFile(path)


def brackets(folder, array):
    return InBrackets(array)


STORES = [memmap, hdf5, zarr_array, dask_array, arrow, parquet, brackets]


def fit(X, Y, **changed):
    net = Network(
        [INPUTS, 9, CLASSES], cost="categorical_cross_entropy", seed=3, backend="numpy",
        activation=["tanh", "softmax"],
    )  # fmt: skip
    arguments = {"epochs": 3, "batch_size": 16, "learning_rate": 0.1, "optimizer": "adam"} | changed
    net.fit(X, Y, **arguments)
    return net


def bits(net):
    return net.parameters.flat.tobytes(), tuple(net.history.loss)


@pytest.mark.parametrize("buffer", [None, N, 16, 100, 333])
@pytest.mark.parametrize("store", STORES)
def test_any_store_has_the_bits_of_rows_in_memory(store, buffer, tmp_path):
    stored = store(tmp_path, X)
    assert is_stored(stored)
    found = fit(stored, LABELS, buffer_rows=buffer)
    assert bits(found) == bits(fit(X, LABELS, buffer_rows=buffer))
    if buffer in (None, N):  # all rows
        assert bits(found) == bits(fit(X, LABELS))
    else:
        assert bits(found) != bits(fit(X, LABELS))


@pytest.mark.parametrize("store", [memmap, hdf5, zarr_array, dask_array, brackets])
def test_labels_and_targets_may_be_stored_too(store, tmp_path):
    expected = bits(fit(X, LABELS, buffer_rows=100))
    labels, targets = store(tmp_path, LABELS), store(tmp_path, Y)
    assert bits(fit(store(tmp_path, X), labels, buffer_rows=100)) == expected
    assert bits(fit(X, targets, buffer_rows=100)) == expected
    assert bits(fit(store(tmp_path, X), targets, buffer_rows=100)) == expected


def test_a_table_of_targets(tmp_path):
    expected = bits(fit(X, LABELS, buffer_rows=100))
    assert bits(fit(parquet(tmp_path, X), arrow(tmp_path, Y), buffer_rows=100)) == expected


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_bytes_and_other_numbers_become_what_they_are_in_memory(engine, tmp_path):
    for dtype in (np.uint8, np.int16, np.float64, np.float16):
        given = (X * 10).astype(dtype)
        kind = {"engine": engine, "buffer_rows": 64}
        found = fit(memmap(tmp_path, given), LABELS, **kind)
        assert bits(found) == bits(fit(given, LABELS, **kind))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.data())
def test_an_order_has_every_row_once_in_blocks(n, data):
    m = data.draw(st.integers(1, n))
    wanted = data.draw(st.integers(m, 2 * n))
    given = check_settings(n, 1, m, 0.1, "sgd", buffer_rows=wanted)
    order = given.draw_order(np.random.default_rng(0))
    assert sorted(order) == list(range(n))
    assert given.buffer == n or given.buffer % m == 0
    if wanted >= n:
        assert (order == np.random.default_rng(0).permutation(n)).all()
    for begin in range(0, n, given.buffer):
        rows = np.sort(order[begin : begin + given.buffer])
        runs = 1 + np.count_nonzero(np.diff(rows) != 1)
        assert runs <= -(-len(rows) // max(1, given.buffer // 16)) + 2


def test_what_is_read_lies_in_runs_and_is_read_once_an_epoch():
    stored = InBrackets(X)
    fit(stored, LABELS, epochs=2, buffer_rows=160)
    sizes = [len(rows) for rows in stored.asked]
    first, *epochs = sizes  # some rows, to check them
    assert first == 256
    assert sum(epochs) == 2 * N
    assert max(epochs) == 160


def test_a_schedule_callbacks_and_validation_see_no_difference(tmp_path):
    seen = {}

    class Watches(Callback):
        def __init__(self, name):
            self.numbers = seen.setdefault(name, [])

        def on_batch_end(self, network, batch):
            self.numbers.append((batch, float(network.parameters.flat.sum())))

    nets = [
        fit(
            rows, LABELS, buffer_rows=96, callbacks=[Watches(name)],
            learning_rate=lambda t: 0.1 / (1 + t), validation_data=(rows, LABELS),
        )
        for name, rows in (("memory", X), ("disk", memmap(tmp_path, X)))
    ]  # fmt: skip
    assert seen["memory"] == seen["disk"]
    assert len(seen["disk"]) == 3 * -(-N // 16)
    assert bits(nets[0]) == bits(nets[1])
    assert nets[0].history.val_loss == nets[1].history.val_loss


@pytest.mark.parametrize("buffer", [N, 100])
def test_ranks_read_their_own_rows(buffer):
    def work(ranks):
        stored = InBrackets(X)
        net = fit(stored, LABELS, communicator=ranks, buffer_rows=buffer, epochs=1)
        return bits(net), np.concatenate(stored.asked[1:])

    (expected, _), *_ = on_ranks(1, work)
    for size in (2, 3):
        found = on_ranks(size, work)
        assert {each for each, _ in found} == {expected}
        read = np.concatenate([rows for _, rows in found])
        assert sorted(read) == list(range(N))


# -- what does not fit --------------------------------------------------------------------------


def unchanged(X, Y, error, match, **changed):
    net = Network([INPUTS, 9, CLASSES], seed=3, backend="numpy")
    before = net.parameters.flat.copy()
    with pytest.raises(error, match=match):
        net.fit(X, Y, **({"epochs": 2, "batch_size": 16, "learning_rate": 0.1} | changed))
    assert (net.parameters.flat == before).all()


def test_a_row_that_is_no_number_is_named(tmp_path):
    bad = X.copy()
    bad[301, 2] = np.nan  # which is none of those that are checked before
    unchanged(memmap(tmp_path, bad), LABELS, ValueError, "rows .*NaN or infinity")


def test_a_label_that_is_too_large_is_named(tmp_path):
    bad = LABELS.copy()
    bad[301] = CLASSES
    unchanged(memmap(tmp_path, X), memmap(tmp_path, bad), ValueError, "rows .*Y")


class Lies(InBrackets):
    def __getitem__(self, rows):
        return super().__getitem__(rows)[:200]


def test_a_source_that_gives_too_little_is_named():
    unchanged(Lies(X), LABELS, ValueError, r"X\[rows\] gave an array of shape \(200, 7\)")


def test_a_source_that_fails_says_so():
    class Fails(InBrackets):
        def __getitem__(self, rows):
            if self.asked:
                raise OSError("the disk is gone")
            return super().__getitem__(rows)

    unchanged(Fails(X), LABELS, OSError, "the disk is gone")
    assert not [t for t in threading.enumerate() if "reading" in t.name]


@pytest.mark.parametrize(
    ("rows", "labels", "error", "match"),
    [
        (InBrackets(X[:, 1:]), LABELS, ValueError, r"X must be \(n, 7\)"),
        (InBrackets(X), LABELS[1:], ValueError, "Y has 529 rows, and X 530"),
        (InBrackets(X[:0]), LABELS[:0], ValueError, "no rows"),
        (InBrackets(X.reshape(N, 7, 1)), LABELS, ValueError, "must be"),
        (InBrackets(X.astype(str)), LABELS, TypeError, "real numbers"),
    ],
)
def test_sources_that_do_not_fit(rows, labels, error, match):
    unchanged(rows, labels, error, match)


@pytest.mark.parametrize("buffer", [0, 15, 1.5, "all"])
def test_a_buffer_holds_a_mini_batch(buffer):
    unchanged(X, LABELS, (ValueError, TypeError), "buffer_rows", buffer_rows=buffer)


def test_a_table_of_texts_is_refused():
    import pyarrow as pa

    rows = pa.table({"name": ["a", "b"], "x": [1.0, 2.0]})
    unchanged(rows, [0, 1], TypeError, "name .string.")


def test_a_population_takes_stored_rows_into_memory(tmp_path):
    expected = Population([INPUTS, 5, CLASSES], members=2, seed=1, backend="numpy")
    found = Population([INPUTS, 5, CLASSES], members=2, seed=1, backend="numpy")
    given = {"epochs": 2, "batch_size": 16, "learning_rate": 0.1}
    expected.fit(X, Y, **given)
    found.fit(hdf5(tmp_path, X), zarr_array(tmp_path, Y), **given)
    for a, b in zip(expected, found, strict=True):
        assert a.parameters.flat.tobytes() == b.parameters.flat.tobytes()


def test_a_copy_on_write_map_keeps_what_was_written(tmp_path):
    rows = memmap(tmp_path, X, "c")
    rows[:] = 2 * X
    assert bits(fit(rows, LABELS, buffer_rows=64)) == bits(fit(2 * X, LABELS, buffer_rows=64))
    assert (rows == 2 * X).all()


def test_a_part_of_a_map(tmp_path):
    rows = memmap(tmp_path, np.repeat(X, 60, axis=0))
    part = rows[601:31000]
    read = source("X", part).read(np.arange(10, 30000))
    assert (read == np.repeat(X, 60, axis=0)[611:30601]).all()
    assert (part[5:] == np.repeat(X, 60, axis=0)[606:31000]).all()


def test_rows_on_a_disk_need_no_more_memory_than_buffers(tmp_path):
    """600 MB of rows, in a process that may have little more than what it has without them."""
    program = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from backprop_gpu import Network

        rows = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, (300_000, 500))
        for begin in range(0, len(rows), 20_000):
            rows[begin : begin + 20_000] = np.random.default_rng(begin).random((20_000, 500))
            rows.flush()
        del rows
        rows = np.load(sys.argv[1], mmap_mode="r")
        labels = np.arange(len(rows)) % 2
        net = Network([500, 4, 2], seed=1, backend="numpy")
        net.fit(rows[:2000], labels[:2000], epochs=1, batch_size=500, learning_rate=0.1)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak so far
        net.fit(rows, labels, epochs=1, batch_size=500, learning_rate=0.1, buffer_rows=10_000)
        text = open("/proc/self/status").read()
        print(int(text.split("VmHWM:")[1].split()[0]) // 1024)
        """
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("it reads /proc")
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "rows.npy")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(found.stdout) < 400, "MB at the peak"


# -- batches ------------------------------------------------------------------------------------


def chunks(size):
    return [(X[i : i + size], LABELS[i : i + size]) for i in range(0, N, size)]


def train(batches, **changed):
    net = Network([INPUTS, 9, CLASSES], seed=3, backend=changed.pop("backend", "numpy"))
    given = {"epochs": 2, "batch_size": 16, "learning_rate": 0.1, "optimizer": "adam"} | changed
    net.fit(batches=batches, **given)
    return net


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_one_chunk_is_fit(engine):
    found = train([(X, LABELS)], engine=engine)
    expected = Network([INPUTS, 9, CLASSES], seed=3, backend="numpy")
    expected.fit(
        X, LABELS, epochs=2, batch_size=16, learning_rate=0.1, optimizer="adam", engine=engine
    )
    assert bits(found) == bits(expected)


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_chunks_are_trained_one_after_the_other(engine):
    """As by a fit of each, but for Adam's moments: so by the plain rule."""
    found = train(chunks(100), engine=engine, optimizer="sgd", epochs=2)
    expected = Network([INPUTS, 9, CLASSES], seed=3, backend="numpy")
    losses = []
    for _ in range(2):
        costs = 0.0
        for rows, labels in chunks(100):
            history = expected.fit(
                rows, labels, epochs=1, batch_size=16, learning_rate=0.1, engine=engine
            )
            costs += history.loss[0] * len(rows)
        losses.append(costs / N)
    assert found.parameters.flat.tobytes() == expected.parameters.flat.tobytes()
    np.testing.assert_allclose(found.history.loss, losses, rtol=1e-12)


def test_a_stream_trains_once_with_callbacks_schedule_and_validation():
    seen, batches = [], []

    class Watches(Callback):
        def on_batch_end(self, network, batch):
            batches.append(batch)

        def on_epoch_end(self, network, history):
            seen.append(len(history))

    def rate(t):
        return 0.1 / (1 + t)

    net = train(
        iter(chunks(100)), epochs=1, callbacks=[Watches()], learning_rate=rate,
        validation_data=(X, LABELS),
    )  # fmt: skip
    assert seen == [1]
    assert batches == list(range(5 * 7 + 2))
    assert len(net.history.val_loss) == 1


def test_the_iterable_is_gone_through_on_one_thread():
    idents = set()

    class Stream:
        def __iter__(self):
            idents.add(threading.get_ident())
            for chunk in chunks(200):
                idents.add(threading.get_ident())
                yield chunk

    train(Stream(), epochs=1)
    assert len(idents) == 1
    assert threading.get_ident() not in idents


@pytest.mark.parametrize(
    ("batches", "error", "match"),
    [
        (3, TypeError, "batches must be an iterable"),
        (iter([(X, Y)]), ValueError, "an iterator, which can be gone through once"),
        ([], ValueError, "batches gave nothing"),
        ([(X, LABELS), X], TypeError, r"chunk 1: .*pair"),
        ([(X, LABELS), (X[:, 1:], LABELS)], ValueError, "chunk 1: .*X"),
        ([(X, LABELS), (X, LABELS + 9)], ValueError, "chunk 1: .*Y"),
    ],
)
def test_batches_that_do_not_fit(batches, error, match):
    net = Network([INPUTS, 9, CLASSES], seed=3, backend="numpy")
    before = net.parameters.flat.copy()
    with pytest.raises(error, match=match):
        net.fit(batches=batches, epochs=2, batch_size=16, learning_rate=0.1)
    assert (net.parameters.flat == before).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"buffer_rows": 100},
        {"resume_from": "here"},
        {"callbacks": [Checkpoint("here")]},
        {"X": X},
        {"Y": LABELS},
    ],
)
def test_what_does_not_go_with_batches(changed):
    net = Network([INPUTS, 9, CLASSES], seed=3, backend="numpy")
    given = {"batches": [(X, LABELS)], "epochs": 2, "batch_size": 16, "learning_rate": 0.1}
    with pytest.raises((TypeError, ValueError), match="batches"):
        net.fit(**(given | changed))
    with pytest.raises(TypeError, match="batches"):
        net.fit(epochs=2, batch_size=16, learning_rate=0.1)


def test_what_one_buffer_holds_is_read_once():
    stored = InBrackets(X)
    found = fit(stored, LABELS, epochs=3)
    assert [len(rows) for rows in stored.asked] == [256, N]
    assert bits(found) == bits(fit(X, LABELS, epochs=3))
