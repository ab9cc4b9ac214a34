"""Reading data: IDX, npz, csv, the digits; each kind of damage by name."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from backprop_gpu import datasets
from backprop_gpu.preprocessing import Options
from idx_files import idx

#: The cells as they are.
RAW = Options(standardize=False)


def mnist(folder: Path, part: str, rows: int, zipped: bool = False) -> np.ndarray:
    """A small pair of MNIST files; returns the images."""
    rng = np.random.default_rng(rows)
    images = rng.integers(0, 256, (rows, 3, 2), dtype=np.uint8)
    labels = (np.arange(rows) % 10).astype(np.uint8)
    for name, array in (
        (f"{part}-images-idx3-ubyte", images),
        (f"{part}-labels-idx1-ubyte", labels),
    ):
        data = idx(array)
        path = folder / (name + (".gz" if zipped else ""))
        path.write_bytes(gzip.compress(data) if zipped else data)
    return images


# -- IDX --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_of_every_type_reads_back(tmp_path: Path, dtype: str) -> None:
    array = np.arange(12).reshape(3, 2, 2).astype(dtype)
    (tmp_path / "a-idx3").write_bytes(idx(array))
    (tmp_path / "b-idx3.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("a-idx3", "b-idx3.gz"):
        found = datasets.read_idx(tmp_path / name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_idx_of_known_bytes(tmp_path: Path) -> None:
    # two images of 1 × 3, as a hex editor shows them
    text = "00000803 00000002 00000001 00000003 000102 fdfeff"
    (tmp_path / "x-idx3-ubyte").write_bytes(bytes.fromhex(text))
    found = datasets.read_idx(tmp_path / "x-idx3-ubyte")
    np.testing.assert_array_equal(found, [[[0, 1, 2]], [[253, 254, 255]]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file: it starts with nothing"),
        (b"\x89PNG\r\n", "not an IDX file: it starts with 89 50 4e 47"),
        (b"\0\0\x0a\x01\0\0\0\1x", "not an IDX file"),
        (b"\0\0\x08\0", "not an IDX file"),
        (b"\0\0\x08\x03\0\0\0\x02", "cut short: its header ends after 8 bytes"),
        (idx(np.zeros((4, 5), "u1"))[:-3], r"cut short: \(4, 5\) of uint8 need 20 bytes, but 17"),
        (b"\0\0\x0e\x02" + b"\xff" * 8 + b"12345", "cut short"),  # claims 2⁶⁷ bytes
        (idx(np.zeros((4, 5), "u1")) + b"!", r"goes on after the 20 bytes of its \(4, 5\) array"),
        (gzip.compress(idx(np.zeros((90, 90), "u1")), mtime=0)[:-9], "not a sound gzip"),
        (b"\x1f\x8bnonsense", "cut short or not a sound gzip"),
    ],
)
def test_damaged_idx(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.read_idx(path)
    assert str(path) in str(caught.value)


def test_folder_with_train_and_test_files(tmp_path: Path) -> None:
    train, test = mnist(tmp_path, "train", 30), mnist(tmp_path, "t10k", 10, zipped=True)
    data = datasets.load(tmp_path)
    np.testing.assert_allclose(data.X, train.reshape(30, 6) / 255, rtol=1e-6)
    np.testing.assert_allclose(data.X_val, test.reshape(10, 6) / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y, np.arange(30) % 10)
    assert data.classes == tuple("0123456789")
    assert not data.named
    assert data.n_outputs == 10
    assert "30 rows to train, 10 to validate (its own test rows)" in data.description
    assert "uint8 features scaled by 1/255" in data.description
    with pytest.raises(ValueError, match="a validation share does not apply"):
        datasets.load(tmp_path, validation=0.5)


def test_folder_with_the_test_files_only(tmp_path: Path) -> None:
    images = mnist(tmp_path, "t10k", 50, zipped=True)
    data = datasets.load(tmp_path)
    assert (len(data.X), len(data.X_val)) == (40, 10)
    np.testing.assert_allclose(data.X_val, images[40:].reshape(10, 6) / 255, rtol=1e-6)
    assert len(datasets.load(tmp_path, validation=20).X_val) == 20


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no MNIST files"):
        datasets.load(tmp_path)
    mnist(tmp_path, "t10k", 20)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(19, "u1")))
    with pytest.raises(ValueError, match=r"20 rows of features, but labels of shape \(19,\)"):
        datasets.load(tmp_path)
    labels.unlink()
    assert datasets.read(tmp_path).y is None
    with pytest.raises(ValueError, match="has no labels"):
        datasets.load(tmp_path)


# -- npz --------------------------------------------------------------------------------


def test_npz_of_one_part(tmp_path: Path) -> None:
    X = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
    np.savez(tmp_path / "a.npz", X=X, y=np.arange(10) % 3)
    data = datasets.load(tmp_path / "a.npz")
    np.testing.assert_allclose(data.X, X[:8].reshape(8, 4) / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_val, [2, 0])
    assert data.classes == ("0", "1", "2")
    plain = datasets.load(tmp_path / "a.npz", scale=0.5)
    np.testing.assert_allclose(plain.X, X[:8].reshape(8, 4) / 2)
    assert "scaled by 0.5" in plain.description


def test_npz_with_test_rows_and_names(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        x_train=np.eye(4),
        y_train=np.array(["cat", "ape", "cat", "ape"]),
        x_test=np.ones((2, 4)),
        y_test=np.array([b"bee", b"cat"]),
    )
    data = datasets.load(tmp_path / "a.npz")
    assert data.classes == ("ape", "bee", "cat")
    assert data.named
    np.testing.assert_array_equal(data.y, [2, 0, 2, 0])
    np.testing.assert_array_equal(data.y_val, [1, 2])
    assert "classes, sorted: ape, bee, cat" in data.description
    assert "no training row is of class bee" in data.description


def test_npz_with_targets(tmp_path: Path) -> None:
    X, Y = np.eye(5), np.linspace(0, 1, 10).reshape(5, 2)
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    data = datasets.load(tmp_path / "a.npz")
    assert data.classes is None
    assert data.n_outputs == 2
    np.testing.assert_array_equal(data.y, Y[:4])


class Evil:
    """Would create a file if it were unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_npz_executes_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    np.savez(tmp_path / "a.npz", X=np.eye(2), y=np.array([Evil(str(trap)), 1], object))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Evil(str(trap))))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
            datasets.load(tmp_path / name)
    assert not trap.exists()


def test_npz_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"

    def refused(message: str, **arrays: np.ndarray) -> None:
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            datasets.load(path)

    refused("needs arrays X and y, .*it holds images", images=np.eye(2))
    refused("has no labels", X=np.eye(2))
    refused("3 rows of features, but labels of shape", X=np.eye(3), y=np.arange(2))
    refused("features must have shape", X=np.arange(3), y=np.arange(3))
    refused("features must be numbers", X=np.array([["a"]]), y=np.arange(1))
    refused("labels must be numbers or strings", X=np.eye(2), y=np.zeros(2, complex))
    parts = {"x_train": np.eye(3), "y_train": np.arange(3)}
    refused(
        "training rows have 3 features, test rows 2", **parts, x_test=np.eye(2), y_test=np.arange(2)
    )
    refused("but not for the test rows", **parts, x_test=np.eye(3))
    refused("test labels", **parts, x_test=np.eye(3), y_test=np.array(["a", "b", "c"]))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        datasets.load(path)
    with open(path, "wb") as file:
        np.save(file, np.eye(3))
    with pytest.raises(ValueError, match="one array, not named ones"):
        datasets.load(path)


# -- csv --------------------------------------------------------------------------------


def csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("header", ["", "width,height,kind\n", "\ufeffwidth,height,kind\n"])
def test_csv_with_and_without_header(tmp_path: Path, header: str) -> None:
    text = header + "1,2.5,0\n-3,4e1,1\n\n5,6,1\n7,8,0\n9,10,1\n"
    data = datasets.load(csv(tmp_path, text), table=RAW)
    np.testing.assert_array_equal(data.X, [[1, 2.5], [-3, 40], [5, 6], [7, 8]])
    np.testing.assert_array_equal(data.y, [0, 1, 1, 0])
    np.testing.assert_array_equal(data.X_val, [[9, 10]])
    assert ("without its header" in data.description) == bool(header)


def test_csv_with_names(tmp_path: Path) -> None:
    text = '1,2, virginica\n3,4,"setosa, small"\n5,6,virginica\n'
    data = datasets.load(csv(tmp_path, text), validation=1)
    assert data.classes == ("setosa, small", "virginica")
    np.testing.assert_array_equal(data.y, [1, 0])
    # scikit-learn's iris.csv begins with a line of counts and class names
    text = "150,4,setosa,virginica\n5,3,1,0\n4,3,1,1\n"
    assert len(datasets.load(csv(tmp_path, text)).X) == 1


def test_csv_with_targets_and_without_labels(tmp_path: Path) -> None:
    data = datasets.load(csv(tmp_path, "1,2,0.5\n3,4,1.5\n"))
    assert data.classes is None
    np.testing.assert_array_equal(data.y, [[0.5]])
    table = datasets.read(csv(tmp_path, "1,2\n3,4\n"), features=2)
    assert table.y is None
    np.testing.assert_array_equal(table.X, [[1, 2], [3, 4]])


def test_csv_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"1,2,0\n3,4,1\n"))
    assert len(datasets.load(path).X) == 1
    path.write_bytes(gzip.compress(b"1,2,0\n" * 1000)[:-12])
    with pytest.raises(ValueError, match=r"a\.csv\.gz"):
        datasets.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,b,c\n", "no rows after the header"),
        ("1;2;0\n3;4;1\n", "the first line is '1;2;0', and cells must be separated by commas"),
        ("1,2,0\n3,x,1\n", r"line 2, column 2: 'x' is not a number, as others .*--categories 2"),
        ("1,2,0\n3,,1\n", "line 2, column 2: missing value, the first of 1 .*--impute"),
        ("1,,0\n3,2,1\n", "line 1, column 2: missing value"),  # a gap is not a header
        ("1,2,0\n3,1\n", "line 2: 2 cells, but the first line has 3"),
        ("1,2,0\n3,4,\n", "line 2, column 3, which is the target: missing value"),
        ("a,b,c\n\n1,2,0\n\n3,inf,1\n", "line 5, column 'b': not a finite number"),
        ("a,b,c\n1,2,0\n1,1e400,0\n", "line 3, column 'b': not a finite number"),
        ("a,b,a\n1,2,0\n", "two columns are called 'a'"),
        ('1,2,0\n3,"4,1\n', "line 2: unexpected end of data"),
        ("1,2,0\n" + "3" * 200_000 + ",4,1\n", "line 2: field larger than field limit"),
        ("1," * 10_000_000, "line 1: it goes on for more than 16,777,216 characters"),
        ('"\n",' * 5_000_000, "line 1: it goes on for more than 16,777,216 characters"),
    ],
)
def test_damaged_csv(tmp_path: Path, text: str, message: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.load(path)
    assert str(path) in str(caught.value)


def test_csv_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"1,2,\xff\xfe\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        datasets.load(path)


def test_a_hint_where_features_are_large(tmp_path: Path) -> None:
    data = datasets.load(csv(tmp_path, "0,255,0\n255,0,1\n"), table=RAW)
    assert "the largest is 255: consider --scale" in data.description


# -- splitting and labels -----------------------------------------------------------------


def test_the_digits() -> None:
    data = datasets.load()
    assert data.X.shape == (1438, 64)
    assert data.X_val.shape == (359, 64)
    assert data.X.max() == 1.0
    assert data.n_outputs == 10
    np.testing.assert_array_equal(data.X, datasets.load().X)


def test_shuffled_rows_stay_with_their_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(20.0).reshape(20, 1), y=np.arange(20) // 10)
    data = datasets.load(tmp_path / "a.npz", shuffle=3)
    assert set(data.y_val) == {0, 1}
    np.testing.assert_array_equal(data.X[:, 0] // 10, data.y)
    assert sorted([*data.X[:, 0], *data.X_val[:, 0]]) == list(range(20))


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (0, "a share below 1 or a number of rows"),
        (-3, "a share below 1 or a number of rows"),
        (float("nan"), "a share below 1 or a number of rows"),
        (2.5, "a whole number of rows"),
        (10, "leave none to train on"),
    ],
)
def test_bad_validation(tmp_path: Path, validation: float, message: str) -> None:
    np.savez(tmp_path / "a.npz", X=np.eye(10), y=np.arange(10))
    with pytest.raises(ValueError, match=message):
        datasets.load(tmp_path / "a.npz", validation=validation)


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        ([0, 2, 1], [0, 2, 1], "0 1 2"),
        ([1, 2, 3], [1, 2, 3], "0 1 2 3"),
        ([1.0, 0.0], [1, 0], "0 1"),
        ([True, False], [1, 0], "0 1"),
        ([0, 0], [0, 0], "0 1"),
        ([-1, 1], [0, 1], "-1 1"),
        ([2000, 1000, 2000], [1, 0, 1], "1000 2000"),
        (["b", "a"], [1, 0], "a b"),
        ([[2], [1]], [2, 1], "0 1 2"),
        ([[0, 1], [1, 0]], [1, 0], "0 1"),
    ],
)
def test_encode(labels: list[object], numbers: list[int], classes: str) -> None:
    found, names = datasets.encode(np.array(labels))
    np.testing.assert_array_equal(found, numbers)
    assert names == tuple(classes.split())


def test_targets_are_not_classes() -> None:
    for array in (np.array([0.5, 1.0]), np.array([0.0, np.nan]), np.array([1e300, 0.0])):
        found, names = datasets.encode(array)
        assert names is None
        assert found.shape == (2, 1)
    assert datasets.encode(np.array([[1, 1], [0, 1]]))[1] is None
    with pytest.raises(ValueError, match="labels must have shape"):
        datasets.encode(np.zeros((2, 2, 2)))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data at"):
        datasets.load(tmp_path / "nothing.csv")
    (tmp_path / "a.txt").write_text("1,2")
    with pytest.raises(ValueError, match="it must be a folder of IDX files"):
        datasets.load(tmp_path / "a.txt")
