"""`nielsen.mnist_loader` and `nielsen.expand_mnist`: what they read, refuse and write."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import struct
import subprocess
import sys

import numpy as np
import pytest

from backprop_gpu import datasets
from backprop_gpu.nielsen import expand_mnist, mnist_loader, network
from book_pickle import book_pickle
from idx_files import idx

SIDE = 4


def parts(seed=0, counts=(12, 4, 5)):
    rng = np.random.default_rng(seed)
    return tuple(
        ((rng.integers(0, 256, (n, SIDE**2)) / 256).astype(np.float32), rng.integers(0, 10, n))
        for n in counts
    )


def same(found, expected):
    for (X, y), (its_X, its_y) in zip(found, expected, strict=True):
        assert (X.dtype, y.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(X, its_X)
        np.testing.assert_array_equal(y, its_y)


def in_idx(folder, given, packed=False):
    X = np.concatenate([given[0][0], given[1][0]])
    for part, rows, labels in (
        ("train", X, np.concatenate([given[0][1], given[1][1]])),
        ("t10k", *given[2]),
    ):
        images = (rows * 256).astype(np.uint8).reshape(-1, SIDE, SIDE)
        for name, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            data = idx(array)
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data) if packed else data)


# -- what is read -------------------------------------------------------------------------


def test_our_pickle_is_one_as_python_2_wrote_it():
    for (X, y), (its_X, its_y) in zip(
        pickle.loads(book_pickle(parts()), encoding="latin1"), parts(), strict=True
    ):
        np.testing.assert_array_equal(X, its_X)
        np.testing.assert_array_equal(y, its_y)


@pytest.mark.parametrize("protocol", ["book", 3, 4])
@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle(tmp_path, protocol, packed):
    data = book_pickle(parts()) if protocol == "book" else pickle.dumps(parts(), protocol)
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(data) if packed else data)
    same(mnist_loader.load_data(path), parts())
    same(mnist_loader.load_data(tmp_path), parts())  # the folder that it is in


def test_a_pickle_of_other_layouts(tmp_path):
    """Columns first, and numbers with the most significant byte first."""
    given = tuple((np.asfortranarray(X), y.astype(">i2")) for X, y in parts())
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(pickle.dumps(given, 4))
    same(mnist_loader.load_data(path), parts())


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_split_as_the_book_is(tmp_path, packed):
    given = parts(counts=(50, 10, 10))
    in_idx(tmp_path, given, packed)
    same(mnist_loader.load_data(tmp_path), given)


def test_an_npz_of_three_parts_and_of_two(tmp_path):
    given = parts(counts=(50, 10, 10))
    expand_mnist.write(tmp_path / "three.npz", given)
    same(mnist_loader.load_data(tmp_path / "three.npz"), given)
    X = np.concatenate([given[0][0], given[1][0]]) * 256
    np.savez(
        tmp_path / "two.npz",
        x_train=X.astype(np.uint8).reshape(-1, SIDE, SIDE),
        y_train=np.concatenate([given[0][1], given[1][1]]),
        x_test=given[2][0],
        y_test=given[2][1],
    )
    same(mnist_loader.load_data(tmp_path / "two.npz"), given)
    assert datasets.read(tmp_path / "three.npz").X.shape == (50, SIDE**2)  # the command line's


def test_the_wrapper_gives_lists_that_networks_train_on(tmp_path, capsys):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(book_pickle(parts()))
    training, held, test = mnist_loader.load_data_wrapper(path)
    (X, y), *_ = parts()
    assert [type(each) for each in (training, held, test)] == [list, list, list]
    assert [len(each) for each in (training, held, test)] == [12, 4, 5]
    for (x, target), row, label in zip(training, X, y, strict=True):
        assert (x.shape, target.shape) == ((SIDE**2, 1), (10, 1))
        np.testing.assert_array_equal(x[:, 0], row)
        np.testing.assert_array_equal(target[:, 0], np.eye(10)[label])
    assert all(type(label) is int for _, label in held + test)
    net = network.Network([SIDE**2, 3, 10])
    net.SGD(training, 1, 5, 0.1, test_data=test)
    assert capsys.readouterr().out.startswith("Epoch 0 : ")


def test_digits_are_said_to_be_no_mnist():
    with pytest.warns(UserWarning, match=r"8 x 8.*not MNIST") as said:
        training, held, test = mnist_loader.load_data_wrapper("digits")
    assert [each.filename for each in said] == [__file__]
    assert [len(each) for each in (training, held, test)] == [1200, 297, 300]
    assert training[0][0].shape == (64, 1)
    with pytest.warns(UserWarning, match="not MNIST"):
        (X, _), *_ = mnist_loader.load_data("digits")
    assert X.max() == 1.0


# -- where it is looked for ---------------------------------------------------------------


@pytest.mark.parametrize("folder", ["../data", "data", "."])
@pytest.mark.parametrize("kind", ["pickle", "idx"])
def test_the_places_of_the_book(tmp_path, monkeypatch, folder, kind):
    monkeypatch.delenv(mnist_loader.VARIABLE, raising=False)
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path / "src")
    with pytest.raises(FileNotFoundError) as caught:
        mnist_loader.load_data()
    for word in (str(tmp_path / "data"), "mnist.pkl.gz", "IDX", "'digits'", mnist_loader.VARIABLE):
        assert word in str(caught.value)
    given = parts(counts=(50, 10, 10))
    os.makedirs(folder, exist_ok=True)
    if kind == "pickle":
        with open(f"{folder}/mnist.pkl.gz", "wb") as file:
            file.write(gzip.compress(book_pickle(given)))
    else:
        in_idx(tmp_path / "src" / folder, given)
    same(mnist_loader.load_data(), given)


def test_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(mnist_loader.VARIABLE, str(tmp_path / "there.pkl"))
    with pytest.raises(FileNotFoundError, match=mnist_loader.VARIABLE):
        mnist_loader.load_data()
    (tmp_path / "there.pkl").write_bytes(book_pickle(parts()))
    same(mnist_loader.load_data(), parts())
    with pytest.raises(FileNotFoundError, match="no data at elsewhere"):
        mnist_loader.load_data("elsewhere")


# -- what is refused ----------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["top", "images", "beside"])
def test_nothing_in_a_pickle_is_executed(tmp_path, protocol, where):
    mark, path = tmp_path / "executed", tmp_path / "mnist.pkl.gz"
    evil = Payload(os.system, f"touch {mark}")
    (X, y), *others = parts()
    given = {"top": evil, "images": ((evil, y), *others), "beside": ((X, y), *others, evil)}[where]
    path.write_bytes(gzip.compress(pickle.dumps(given, protocol)))
    with pytest.raises(ValueError, match="which data do not need"):
        mnist_loader.load_data(path)
    assert not mark.exists()
    pickle.loads(gzip.decompress(path.read_bytes()))
    assert mark.exists()  # so it was one that does


@pytest.mark.parametrize(
    "function",
    [eval, getattr, np.load, np.frombuffer, np.zeros, bytes, __import__],
    ids=lambda function: function.__name__,
)
def test_other_names_are_refused(tmp_path, function):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(pickle.dumps(Payload(function, "1"), 4))
    with pytest.raises(ValueError, match="it asks for"):
        mnist_loader.load_data(path)


def raw(*pieces):
    return b"\x80\x02" + b"".join(pieces) + b"."


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY, DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cut short|ran out"),
        (b"no pickle at all", "not the book's pickle"),
        (raw(b"K\x01"), "its top is not a tuple of three"),
        (raw(b"K\1K\1K\1\x87"), "a part is not a pair"),
        (raw(b"(K\1K\1K\1tb"), "not the book's pickle"),
        (raw(b"}"), "an instruction that data do not need"),
        (raw(b"\x8f"), "an instruction that data do not need"),  # EMPTY_SET
        (raw(b"\x82\x01"), "an instruction that data do not need"),  # EXT1
        (raw(b"Pname\n"), "an instruction that data do not need"),  # PERSID
        (raw(b"(ios\nsystem\n"), "an instruction that data do not need"),  # INST
        (raw(NDARRAY, b")R"), "its top is not a tuple"),
        (raw(NDARRAY, b"N", b"b"), "not the book's pickle"),
        (raw(DTYPE, b")R", b"(K\3U\1?tb"), "byte order"),
        (raw(RECONSTRUCT, b"(tR" * 2), "not the book's pickle"),
        (raw(b"]" * 20_000), "more instructions"),
        (raw(b"]r\xff\xff\xff\x7f"), "its top"),  # a memo of 2^31 places
        (raw(b"T\xff\xff\xff\x7f"), "more than the|cut short|truncated"),
        (raw(b"\x8a" + b"\xff" * 300), "not the book's pickle"),
        (raw(b"I" + b"9" * 5000 + b"\n"), "not the book's pickle"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".", "more than the"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".", "more than the"),
        (raw(b"K\1") + b"more", "goes on after its end"),
        (b"\x80\x63.", "not the book's pickle"),
    ],
)  # fmt: skip
def test_nonsense(tmp_path, data, why):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=why) as caught:
        mnist_loader.load_data(path)
    assert str(path) in str(caught.value)


def test_every_beginning_and_every_changed_byte_of_a_pickle(tmp_path):
    """Read, or refused in words: never another exception."""
    path = tmp_path / "mnist.pkl.gz"
    data = book_pickle(parts(counts=(1, 1, 1)))
    rng = random.Random(1)
    changed = [data[:n] for n in range(0, len(data), 3)]
    for _ in range(600):
        place = rng.randrange(len(data))
        changed.append(data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :])
    refused = []
    for one in changed:
        path.write_bytes(one)
        try:
            mnist_loader.load_data(path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > len(changed) / 2
    assert all(str(path) in text for text in refused)


def test_a_gzip_that_is_cut_short_or_damaged(tmp_path):
    path = tmp_path / "mnist.pkl.gz"
    data = gzip.compress(book_pickle(parts()))
    for damaged in (data[: len(data) // 2], data[:-6], data[:30] + b"\xff" * 9 + data[39:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a sound gzip"):
            mnist_loader.load_data(path)


def test_what_would_unpack_to_too_much(tmp_path):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(book_pickle(parts())))
    with pytest.raises(ValueError, match="more than the"):
        mnist_loader.load_data(path, max_bytes=1000)
    # One string of a thousand bytes that is the data of any number of arrays.
    shared = parts(counts=(200, 200, 200))
    shared = tuple((shared[0][0], shared[0][1]) for _ in range(3))
    path.write_bytes(pickle.dumps(shared, 4))
    mnist_loader.load_data(path)
    with pytest.raises(ValueError, match="more than the"):
        mnist_loader.load_data(path, max_bytes=2 * shared[0][0].nbytes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda X, y: (X[:, :0], y), "rows of numbers"),
        (lambda X, y: (X[0], y), "rows of numbers"),
        (lambda X, y: (X[:-1], y), "labels must be 11 integers"),
        (lambda X, y: (X[:, :9], y), "differ in size"),
        (lambda X, y: (X, y + 0.5), "labels must be"),
        (lambda X, y: (X, y - 10), "a label is -"),
        (lambda X, y: (X, y + 10**6), "a label is 10000"),
        (lambda X, y: (X * np.float32("nan"), y), "NaN or infinity"),
        (lambda X, y: (X, y[:, None]), "labels must be"),
        (lambda X, y: (X.astype("S3"), y), "plain numbers"),
        (lambda X, y: (X, y.astype(object)), "not the book's pickle|which data do not need"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change, why):
    (X, y), *others = parts()
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(pickle.dumps((change(X, y), *others), 4))
    with pytest.raises(ValueError, match=why) as caught:
        mnist_loader.load_data(path)
    assert str(path) in str(caught.value)


def test_folders_and_archives_that_lack_something(tmp_path):
    with pytest.raises(ValueError, match="holds no MNIST files"):
        mnist_loader.load_data(tmp_path)
    in_idx(tmp_path, parts(counts=(50, 10, 10)))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="both of train and of t10k"):
        mnist_loader.load_data(tmp_path)
    np.savez(tmp_path / "a.npz", x_train=np.zeros((9, 4)), y_train=np.zeros(9, int))
    with pytest.raises(ValueError, match="it holds x_train, y_train"):
        mnist_loader.load_data(tmp_path / "a.npz")
    few = {"x_train": np.zeros((5, 4)), "y_train": np.zeros(5, int)}
    np.savez(tmp_path / "a.npz", **few, x_test=few["x_train"], y_test=few["y_train"])
    with pytest.raises(ValueError, match="too few"):
        mnist_loader.load_data(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        mnist_loader.load_data(tmp_path / "a.npz")


# -- expand_mnist ---------------------------------------------------------------------------


def test_images_are_displaced():
    """By the book's description: rolled by one pixel, the row or column that enters set to 0."""
    (X, y), *_ = parts()
    random.seed(7)
    found, labels = expand_mnist.expand((X, y))
    expected = []
    for x, label in zip(X, y, strict=True):
        image = x.reshape(SIDE, SIDE)
        expected.append((x, label))
        for d, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            moved = np.roll(image, d, axis)
            entering = 0 if d == 1 else SIDE - 1
            if axis == 0:
                moved[entering, :] = 0
            else:
                moved[:, entering] = 0
            expected.append((moved.reshape(-1), label))
    random.seed(7)
    random.shuffle(expected)
    np.testing.assert_array_equal(found, [x for x, _ in expected])
    np.testing.assert_array_equal(labels, [label for _, label in expected])
    assert found.dtype == X.dtype


def test_what_cannot_be_expanded():
    with pytest.raises(ValueError, match="square images"):
        expand_mnist.expand((np.zeros((3, 15)), np.zeros(3)))
    with pytest.raises(ValueError, match="a label for each image"):
        expand_mnist.expand((np.zeros((3, 16)), np.zeros(2)))
    for nonsense in (None, [], np.zeros((3, 16))):
        with pytest.raises((TypeError, ValueError)):
            expand_mnist.expand(nonsense)


def test_the_command(tmp_path, capsys):
    source, target = tmp_path / "mnist.pkl.gz", tmp_path / "expanded.npz"
    source.write_bytes(book_pickle(parts()))
    assert expand_mnist.main([str(source), str(target), "--seed", "3"]) == 0
    assert "12 images became 60" in capsys.readouterr().out
    random.seed(3)
    same(mnist_loader.load_data(target), (expand_mnist.expand(parts()[0]), *parts()[1:]))
    with np.load(target) as held:
        assert held["x_train"].dtype == np.uint8
    before = target.read_bytes()
    source.write_bytes(b"nonsense")
    assert expand_mnist.main([str(source), str(target)]) == 1
    assert "not the book's pickle" in capsys.readouterr().err
    assert target.read_bytes() == before
    source.write_bytes(book_pickle(parts()))
    for wrong in (tmp_path / "expanded.pkl.gz", tmp_path / "no" / "folder.npz"):
        assert expand_mnist.main([str(source), str(wrong)]) == 1
        assert not wrong.exists()


def test_the_module_is_a_command():
    found = subprocess.run(
        [sys.executable, "-m", "backprop_gpu.nielsen.expand_mnist", "--help"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "four directions" in found.stdout
    assert not found.stderr
