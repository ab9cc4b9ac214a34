"""Arrays in HDF5 files and Zarr groups, as the command reads them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from backprop_gpu import Network, cli, datasets

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (90, 4, 3)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 90)


def hdf5(path, **arrays):
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def zarr_group(path, **arrays):
    import zarr

    group = zarr.open_group(str(path), mode="w")
    for name, array in arrays.items():
        group.create_array(name, shape=array.shape, dtype=array.dtype)[:] = array
    return path


STORES = [(hdf5, "rows.h5"), (hdf5, "rows.hdf5"), (zarr_group, "rows.zarr")]


@pytest.mark.parametrize(("store", "name"), STORES)
@pytest.mark.parametrize("shuffle", [None, 1])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_rows_are_those_of_an_npz(store, name, shuffle, scale, tmp_path):
    np.savez(tmp_path / "rows.npz", X=IMAGES, y=LABELS)
    path = store(tmp_path / name, X=IMAGES, y=LABELS)
    given = {"shuffle": shuffle, "scale": scale, "validation": 20}
    found, expected = (datasets.load(each, **given) for each in (path, tmp_path / "rows.npz"))
    X = found.X[np.arange(len(found.X))]
    assert X.dtype == expected.X.dtype == found.X.dtype
    for mine, its in (((X, found.y), (expected.X, expected.y)),
                      ((found.X_val, found.y_val), (expected.X_val, expected.y_val))):  # fmt: skip
        rows, others = (sorted(map(tuple, np.column_stack(pair))) for pair in (mine, its))
        assert rows == others
    assert found.classes == expected.classes
    assert "read as it is needed" in found.description
    if shuffle is None:
        assert (expected.X == X).all()


@pytest.mark.parametrize(("store", "name"), STORES)
def test_rows_for_tests_are_kept_apart(store, name, tmp_path):
    path = store(
        tmp_path / name, x_train=IMAGES[:60], y_train=LABELS[:60], x_test=IMAGES[60:],
        y_test=LABELS[60:],
    )  # fmt: skip
    found = datasets.load(path)
    assert len(found.X) == 60
    np.testing.assert_array_equal(found.X_val, IMAGES[60:].reshape(30, 12) * np.float32(1 / 255))
    np.testing.assert_array_equal(found.y_val, LABELS[60:])


@pytest.mark.parametrize(("store", "name"), STORES)
def test_the_command_trains_on_a_store(store, name, tmp_path, capsys):
    path = store(tmp_path / name, X=IMAGES, y=LABELS)
    out = tmp_path / "out"
    arguments = ["train", "--data", str(path), "--epochs", "3", "--out", str(out)]
    assert cli.main(arguments) == 0
    assert "read as it is needed" in capsys.readouterr().out
    assert Network.load(out / "model.safetensors").sizes == (12, 30, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rows": IMAGES}, "needs arrays X and y"),
        ({"X": IMAGES}, "no labels"),
        ({"X": IMAGES, "y": LABELS[1:]}, "90 rows of features, but labels"),
        ({"X": LABELS, "y": LABELS}, "features must have shape"),
    ],
)
@pytest.mark.parametrize(("store", "name"), STORES)
def test_stores_that_do_not_fit(store, name, arrays, message, tmp_path, capsys):
    path = store(tmp_path / name, **arrays)
    assert cli.main(["train", "--data", str(path), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["rows.h5", "rows.zarr"])
def test_what_is_no_store(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"rows")
    assert cli.main(["train", "--data", str(tmp_path / name), "--out", str(tmp_path)]) == 2
    assert "is no" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "name"), [("h5py", "rows.h5"), ("zarr", "rows.zarr")])
def test_without_its_package_it_says_what_to_install(package, name, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_bytes(b"rows")
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["train", "--data", str(tmp_path / name), "--out", str(tmp_path)]) == 2
    assert "install backprop_gpu[data]" in capsys.readouterr().err


def test_rows_for_validation_are_held_to_max_bytes(tmp_path):
    path = hdf5(tmp_path / "rows.h5", X=np.zeros((1000, 100), np.float32), y=np.arange(1000) % 2)
    with pytest.raises(ValueError, match="rows for validation"):
        datasets.load(path, validation=500, max_bytes=100_000)
    assert len(datasets.load(path, validation=50, max_bytes=100_000).X) == 950
