"""Tables from the shell: columns, what is learned of them, what a model file keeps."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from backprop_gpu import Network, cli, datasets, tables
from backprop_gpu.preprocessing import JSON, Category, Number, Options, Preprocessing
from idx_files import idx
from shell import refused, run

TRAIN = ["--backend", "numpy", "--epochs", "60"]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def csv_of(path: Path, names: list[str], *columns: Any) -> Path:
    rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    return write(path, "\n".join([",".join(names), *rows]) + "\n")


def final(out: str) -> float:
    return float(out.splitlines()[-1].split(":")[1].split(",")[0])


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    """scikit-learn's wine with a header, its rows sorted by class."""
    from sklearn.datasets import load_wine

    data = load_wine()
    return csv_of(
        tmp_path / "wine.csv", [*data.feature_names, "cultivar"], *data.data.T, data.target
    )


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """A target that needs a column of numbers and one of texts."""
    rng = np.random.default_rng(0)
    weight, colour = rng.normal(150, 30, 200).round(1), rng.choice(["red", "green"], 200)
    ripe = np.where((weight > 150) == (colour == "red"), "yes", "no")
    return csv_of(
        tmp_path / "fruit.csv", ["id", "ripe", "weight", "colour"], range(7, 207), ripe, weight,
        colour,
    )  # fmt: skip


# -- training and predicting ------------------------------------------------------------


def test_wine_trains_as_it_is(
    tmp_path: Path, wine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--data", wine, *TRAIN, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert final(out) >= 0.97
    assert "13 features, 3 classes; columns standardised" in out
    assert run("predict", tmp_path / "model.safetensors", wine) == 0
    printed = capsys.readouterr()
    assert float(printed.err.split("accuracy: ")[1].split()[0]) >= 0.97

    # What is predicted does not depend on the other rows of a file, nor on the columns' order.
    header, *rows = wine.read_text().splitlines()
    order = np.random.default_rng(0).permutation(13)
    mixed = [",".join(np.array(line.split(","))[order]) for line in (header, rows[100])]
    write(tmp_path / "one.csv", "\n".join(mixed))
    assert run("predict", tmp_path / "model.safetensors", tmp_path / "one.csv") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"0,{printed.out.splitlines()[101].split(',')[1]}"
    ]


def test_sorted_rows(tmp_path: Path, wine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--data", wine, "--no-shuffle", *TRAIN, "--out", tmp_path) == 0
    kept = capsys.readouterr().out
    assert "to validate (the last)" in kept
    data = datasets.load(wine, shuffle=0)
    shares = np.bincount(data.y_val) / len(data.y_val)
    np.testing.assert_allclose(shares, np.bincount(data.y) / len(data.y), atol=0.03)


def test_only_rows_that_train_are_learned_from(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", ["x", "c", "y"], [1, 3, 1, 3, 900], "aabbz", [0, 1, 0, 1, 1])
    data = datasets.load(path, validation=1)
    assert data.preprocessing is not None
    assert data.preprocessing.columns == (Number("x", 2.0, 1.0), Category("c", ("a", "b")))
    np.testing.assert_array_equal(data.X_val, [[898, 0, 0]])
    assert "line 6, column 'c': 'z' is no category of the rows that trained" in data.description


def test_a_constant_column(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", ["x", "z", "y"], [0.1] * 5, range(0, 10, 2), [0, 1, 0, 1, 1])
    data = datasets.load(path)
    np.testing.assert_array_equal(data.X[:, 0], 0)
    assert np.isfinite(data.X).all()


@pytest.mark.parametrize("factor", [1.0, 1e9])
def test_numbers_train_whatever_their_size(
    tmp_path: Path, factor: float, capsys: pytest.CaptureFixture[str]
) -> None:
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    data.data[:, 2] *= factor
    path = csv_of(
        tmp_path / "d.csv", [*data.feature_names, "progress"], *data.data.T,
        (data.target * factor).astype(int),
    )  # fmt: skip
    assert run("train", "--data", path, *TRAIN, "--out", tmp_path) == 0
    printed = capsys.readouterr()
    assert "taken as numbers to fit; --task classification takes them as classes" in printed.out
    assert "val_accuracy" not in printed.err  # the progress bar
    assert final(printed.out) < 0.35  # half of the variance is to guess the mean
    assert run("predict", tmp_path / "model.safetensors", path) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "row,prediction,label"
    predicted, labels = np.array([line.split(",")[1:] for line in out[1:]], float).T
    np.testing.assert_array_equal(labels, (data.target * factor).astype(int))
    assert np.corrcoef(predicted, labels)[0, 1] > 0.6
    assert abs(predicted.mean() / labels.mean() - 1) < 0.1


def test_no_better_than_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    path = csv_of(tmp_path / "a.csv", ["x", "y"], rng.normal(size=60), rng.normal(size=60))
    assert run("train", "--data", path, "--no-standardize", *TRAIN, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "target standardised" not in out
    assert "no better than to guess their mean" in out.splitlines()[-1]


def test_columns_by_name(tmp_path: Path, fruit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", fruit, "--target", "ripe", "--epochs", 200, "--backend", "numpy"]
    assert run("train", *arguments, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "note: column 'id' only counts the rows and is left out; --keep id uses it" in out
    assert "categories, one-hot: colour (2)" in out
    assert final(out) >= 0.9
    model = tmp_path / "model.safetensors"
    net = Network.load(model)
    assert net.sizes == (3, 30, 2)
    assert net.preprocessing is not None
    assert [column.name for column in net.preprocessing.columns or ()] == ["weight", "colour"]

    new = write(tmp_path / "new.csv", "colour,weight,shop\nred,200,A\ngreen,200,B\nblue,200,C\n")
    assert run("predict", model, new) == 0
    printed = capsys.readouterr()
    assert [line.split(",")[1] for line in printed.out.splitlines()[1:3]] == ["yes", "no"]
    assert "line 4, column 'colour': 'blue' is no category" in printed.err
    write(new, "colour,shop\nred,A\n")
    assert "lacks the column weight" in refused(capsys, "predict", model, new)
    write(new, "colour,weight\nred,200\ngreen,\n")
    message = refused(capsys, "predict", model, new)
    assert "line 3, column 'weight': missing value" in message
    write(new, "colour,weight\nred,200\ngreen,heavy\n")
    assert "line 3, column 'weight': 'heavy' is not a number" in refused(
        capsys, "predict", model, new
    )
    assert "--scale is not for this model" in refused(capsys, "predict", model, fruit, "--scale", 2)
    assert "the model takes a table" in refused(capsys, "predict", model)
    assert "no data at" in refused(capsys, "predict", model, tmp_path / "nowhere.csv")


def test_keep_drop_and_categories(tmp_path: Path, fruit: Path) -> None:
    def names(**options: Any) -> list[str]:
        learned = datasets.load(fruit, table=Options("ripe", **options)).preprocessing
        assert learned is not None
        return [column.name for column in learned.columns or ()]

    assert names(keep=["id"]) == ["id", "weight", "colour"]
    assert names(drop=["4"]) == ["weight"]
    with pytest.raises(ValueError, match="no column 'shape': it has id, ripe, weight, colour"):
        names(drop=["shape"])
    with pytest.raises(ValueError, match="--drop leaves out the target"):
        names(drop=["ripe"])
    with pytest.raises(ValueError, match="--categories 'ripe' is not a feature"):
        names(categories=["ripe"])
    text = "zip,y\n" + "\n".join(f"{1000 + i % 3},{i % 2}" for i in range(12))
    path = write(fruit.parent / "zip.csv", text)
    data = datasets.load(path, table=Options(categories=["zip"]))
    assert data.preprocessing is not None
    assert data.preprocessing.columns == (Category("zip", ("1000", "1001", "1002")),)
    text = "name,x,y\n" + "\n".join(f"n{i},{i * i},{i % 2}" for i in range(40))
    path = write(fruit.parent / "names.csv", text)
    with pytest.raises(ValueError, match=r"32 different texts in 32 rows, too many .*--drop name"):
        datasets.load(path)


@pytest.mark.parametrize(
    ("text", "header", "features"),
    [
        ("a,b,y\n1,2,0\n3,4,1\n", True, 2),
        ("1,2,0\n3,4,1\n", False, 2),
        (",b,y\n0,x,no\n1,z,yes\n2,x,no\n", True, 1),  # pandas: the index has no name
        ("0,7,0\n1,8,1\n2,9,0\n", False, 1),
        ("red,no\nblue,no\nred,yes\n", False, 1),  # texts that come again are cells
        ("colour,ok\nred,no\nblue,no\nred,yes\n", True, 1),
        ("red,3,no\nblue,4,no\n", False, 2),
    ],
)
def test_headers(tmp_path: Path, text: str, header: bool, features: int) -> None:
    frame = tables.read(write(tmp_path / "a.csv", text))
    assert frame.header == header
    assert len(frame) == len(text.split()) - header
    learned = datasets.load(tmp_path / "a.csv", validation=1).preprocessing
    assert learned is not None
    assert len(learned.columns or ()) == features


def test_a_header_of_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "10,11,12\n1,2,0\n3,4,1\n")
    assert len(tables.read(path)) == 3
    frame = tables.read(path, header=True)
    assert frame.names == ("10", "11", "12")
    assert frame.find("10") == 0
    assert frame.find("3") == 2  # no name: the third column


def test_missing_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "age,city,y\n1,A,0\n\n3,,1\nNA,B,0\n4,A,1\n?,A,0\n4,B,1\n"
    path = write(tmp_path / "a.csv", text)
    arguments = ["--data", path, *TRAIN, "--no-shuffle", "--validation", 1, "--out", tmp_path]
    message = refused(capsys, "train", *arguments)
    assert "line 5, column 'age': missing value, the first of 2 in the column" in message
    assert "--impute" in message
    assert run("train", *arguments, "--impute") == 0
    net = Network.load(tmp_path / "model.safetensors")
    assert net.preprocessing is not None
    number, category = net.preprocessing.columns or ()
    assert number.fill == pytest.approx(8 / 3)  # of 1, 3, 4
    assert category.fill == "A"
    new = write(tmp_path / "new.csv", "age,city\n,\n")
    X, notes = net.preprocessing.transform(tables.read(new, known=["age"]))
    np.testing.assert_allclose(X, [[0, 1, 0]], atol=1e-12)
    assert notes == []
    capsys.readouterr()
    write(path, "age,city,y\n,A,0\n,B,1\n,B,1\n")
    assert "column 'age' has no value in the rows that train" in refused(
        capsys, "train", *arguments, "--impute"
    )


def test_no_standardising_and_a_factor(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", ["x", "y"], [10, 30, 40], [0, 1, 1])
    plain = datasets.load(path, table=Options(standardize=False))
    np.testing.assert_array_equal(plain.X, [[10], [30]])
    scaled = datasets.load(path, scale=0.1)
    np.testing.assert_allclose(scaled.X, [[1], [3]])
    assert scaled.preprocessing is not None
    X, _ = scaled.preprocessing.transform(tables.read(path))
    np.testing.assert_allclose(X, [[1], [3], [4]])
    with pytest.raises(ValueError, match="need a --scale above 0"):
        datasets.load(path, scale=-1.0)


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (np.arange(442) % 347, None, False),
        (np.arange(442) % 347, "classification", True),
        (np.arange(400) % 40, None, True),  # 40 faces, ten of each
        (np.arange(400) % 40 * 2, None, False),  # with gaps
        (np.arange(10), None, False),
        (np.arange(20) % 10, None, True),
        ([0, 1], None, True),
        ([0, 1] * 9, "regression", False),
    ],
)
def test_classes_or_numbers(tmp_path: Path, values: Any, task: str | None, classes: bool) -> None:
    np.savez(tmp_path / "a.npz", X=np.ones((len(values), 1)), y=values)
    data = datasets.load(tmp_path / "a.npz", task=task)
    assert (data.classes is not None) == classes
    said = "--task " in data.description
    assert said == (task is None and (not classes or len(np.unique(values)) > 20))


def test_halves_are_no_classes(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", ["x", "y"], range(5, 9), [0, 0.5, 1, 0])
    with pytest.raises(ValueError, match="numbers that are not whole cannot be classes"):
        datasets.load(path, task="classification")


def test_patience_and_l2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    path = csv_of(tmp_path / "a.csv", ["x", "y"], rng.normal(size=60), rng.integers(0, 2, 60))
    arguments = ["--data", path, "--backend", "numpy", "--epochs", 500, "--learning-rate", 3]
    assert run("train", *arguments, "--patience", 3, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "patience 3" in out
    match = re.search(r"the model has the weights after epoch (\d+) of (\d+)$", out, re.M)
    assert match
    assert int(match[2]) == int(match[1]) + 3 < 500
    data = datasets.load(path, shuffle=0)
    net = Network.load(tmp_path / "model.safetensors", backend="numpy")
    assert f"{net.accuracy(data.X_val, data.y_val):.4f}" == f"{final(out):.4f}"
    sums = []
    for l2 in (0, 0.1):
        assert run("train", *arguments[:4], "--epochs", 9, "--l2", l2, "--out", tmp_path) == 0
        weights = Network.load(tmp_path / "model.safetensors", backend="numpy").weights
        sums.append(np.abs(weights[0]).sum())
    assert sums[1] < 0.5 * sums[0]
    assert run("train", *arguments, "--max-norm", 0.3, "--epochs", 9, "--out", tmp_path) == 0
    assert "max-norm 0.3" in capsys.readouterr().out
    weights = Network.load(tmp_path / "model.safetensors", backend="numpy").weights
    assert max(np.linalg.norm(w, axis=1).max() for w in weights) <= 0.3 * (1 + 1e-6)


# -- what each row counts ---------------------------------------------------------------


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """Two kinds of rows that contradict each other: those of weight 0.5 and those of weight 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=160).round(3)
    lies = np.arange(160) % 4 < 2
    label = np.where((x > 0) != lies, "yes", "no")
    return csv_of(tmp_path / "counted.csv", ["x", "label", "n"], x, label, np.where(lies, 0, 0.5))


def test_weights_of_rows(tmp_path: Path, counted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--data", counted, *TRAIN, "--sample-weight", "n", "--out", tmp_path]
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "target: label\nrows count by: n\n" in out  # the last column is not the target
    assert final(out) >= 0.9  # rows that lie count for nothing; all alike it is 0.5
    model = tmp_path / "model.safetensors"
    net = Network.load(model, backend="numpy")
    assert net.preprocessing is not None
    assert net.sizes[0] == 1
    assert [column.name for column in net.preprocessing.columns or ()] == ["x"]

    # The same as from Python, and rows to validate with have their weights, too.
    data = datasets.load(counted, shuffle=0, table=Options(sample_weight="n"))
    assert data.weights is not None
    assert data.weights_val is not None
    again = Network(net.sizes, cost="binary_cross_entropy", backend="numpy", seed=0)
    again.fit(
        data.X, data.y, epochs=60, batch_size=10, learning_rate=0.5, sample_weight=data.weights,
        validation_data=(data.X_val, data.y_val),
    )  # fmt: skip
    np.testing.assert_array_equal(net.weights[0], again.weights[0])
    assert f"{again.accuracy(data.X_val, data.y_val, data.weights_val):.4f}" in out
    assert again.accuracy(data.X_val, data.y_val) < 0.8

    # What is predicted needs no such column, and does not mind one.
    for names in ("x", "n,x", "x,n"):
        cells = {"x": "2", "n": "none"}
        new = write(
            tmp_path / "new.csv", f"{names}\n{','.join(cells[k] for k in names.split(','))}\n"
        )
        assert run("predict", model, new, "--header") == 0
        assert capsys.readouterr().out.splitlines()[1] == "0,yes"


def test_weights_decide_which_epoch_is_best(
    tmp_path: Path, counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By rows alike the loss rises from the first epoch on, by their weights it falls."""
    arguments = ["train", "--data", counted, *TRAIN, "--patience", 5, "--out", tmp_path]
    assert run(*arguments, "--sample-weight", "n") == 0
    match = re.search(r"after epoch (\d+) of", capsys.readouterr().out)
    assert match is None or int(match[1]) > 10
    data = datasets.load(counted, shuffle=0, table=Options(sample_weight="n"))
    net = Network.load(tmp_path / "model.safetensors", backend="numpy")
    assert net.loss(data.X_val, data.y_val, data.weights_val) < 0.4
    assert net.loss(data.X_val, data.y_val) > 0.8


def test_weights_of_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R² and the error at the end are of the weighted rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=200).round(3)
    lies = np.arange(200) % 4 == 0
    y = np.where(lies, 30 - x, x) + 0.01 * np.arange(200) % 0.02
    path = csv_of(tmp_path / "a.csv", ["w", "x", "y"], np.where(lies, 0, 2), x, y)
    arguments = ["train", "--data", path, *TRAIN, "--optimizer", "adam", "--out", tmp_path]
    arguments += ["--learning-rate", 0.01]
    assert run(*arguments, "--sample-weight", "w") == 0
    match = re.search(r"R² (\S+), root mean square error (\S+)$", capsys.readouterr().out.strip())
    assert match
    assert float(match[1]) > 0.9
    assert float(match[2]) < 0.5


def test_weights_in_a_sweep(
    tmp_path: Path, counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write(
        tmp_path / "grid.toml", "epochs = 60\ndropout = 0.1\n[grid]\nlearning_rate = [0.5]\n"
    )
    table = tmp_path / "table.json"
    arguments = ["--data", counted, "--sample-weight", "n", "--backend", "numpy", "--out", table]
    assert run("sweep", "--grid", grid, *arguments) == 0
    capsys.readouterr()
    (row,) = json.loads(table.read_text())["rows"]
    assert row["val_accuracy"] >= 0.9
    data = datasets.load(counted, shuffle=0, table=Options(sample_weight="n"))
    net = Network([1, 30, 2], cost="binary_cross_entropy", backend="numpy", seed=0)
    net.fit(
        data.X, data.y, epochs=60, batch_size=10, learning_rate=0.5, sample_weight=data.weights,
        dropout=0.1,
    )  # fmt: skip
    assert row["val_loss"] == pytest.approx(net.loss(data.X_val, data.y_val, data.weights_val))


@pytest.mark.parametrize(
    ("column", "arguments", "message"),
    [
        ("1", "--sample-weight v", "has no column 'v': it has x, w, y"),
        ("1", "--sample-weight y --target y", "--sample-weight names the target, 'y'"),
        ("1", "--drop w", "--drop leaves out 'w', which --sample-weight names"),
        ("1", "--categories w", "--categories 'w' is not a feature"),
        ("-1", "", "line 2, column 'w', which --sample-weight names: a weight must be at least 0"),
        ("", "", "line 2, column 'w', which --sample-weight names: missing value"),
        ("", "--impute", "line 2, column 'w', which --sample-weight names: missing value"),
        ("heavy", "", "line 2, column 'w': 'heavy' is not a number"),
        ("inf", "", "line 2, column 'w': not a finite number"),
        ("0", "", "column 'w', which --sample-weight names, is 0 in all 8 rows that train"),
    ],
)
def test_weights_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, arguments: str, message: str
) -> None:
    rest = "0" if column == "0" else "2"
    rows = [f"{i * i},{rest if i else column},{i % 2}" for i in range(10)]
    path = write(tmp_path / "a.csv", "x,w,y\n" + "\n".join(rows) + "\n")
    given = ["--sample-weight", "w", *arguments.split()]
    assert message in refused(capsys, "train", "--data", path, *TRAIN, *given, "--out", tmp_path)


def test_rows_to_validate_with_that_count_nothing(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", ["x", "y", "w"], range(0, 10, 2), "ababa", [1, 1, 1, 1, 0])
    options = Options(sample_weight="3")
    with pytest.raises(ValueError, match="is 0 in all 1 rows that validate"):
        datasets.load(path, table=options, validation=1)
    np.testing.assert_array_equal(
        datasets.load(path, table=options, validation=2).weights_val, [1, 0]
    )


# -- tsv and parquet --------------------------------------------------------------------


def test_tsv_and_parquet_are_the_same_table(tmp_path: Path, fruit: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pandas as pd

    table = pd.read_csv(fruit)
    table["fresh"] = np.arange(200) % 3 == 0
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    table.to_csv(tmp_path / "t.tsv.gz", index=False, sep="\t")
    table.astype({"colour": "category"}).to_parquet(tmp_path / "t.parquet")
    first, *others = (
        datasets.load(tmp_path / f"t.{ending}", table=Options("ripe"))
        for ending in ("csv", "tsv", "tsv.gz", "parquet")
    )
    for other in others:
        np.testing.assert_array_equal(other.X, first.X)
        np.testing.assert_array_equal(other.y, first.y)
        assert other.preprocessing == first.preprocessing
        assert other.preprocessing is not None
        X, notes = other.preprocessing.transform(tables.read(tmp_path / "t.csv"))
        np.testing.assert_array_equal(X[:160], first.X)
        assert notes == []

    table["when"] = pd.Timestamp("2020-01-01")
    table.loc[3, "weight"] = None
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="row 4, column 'weight': missing value"):
        datasets.load(tmp_path / "t.parquet", table=Options("ripe"))
    with pytest.raises(ValueError, match=r"'when' is of type timestamp.*--drop when"):
        datasets.load(tmp_path / "t.parquet", table=Options("ripe", impute=True))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "a.parquet", "PAR1")
    with pytest.raises(ValueError, match=r"pip install 'backprop_gpu\[parquet\]'"):
        datasets.load(path)


# -- what a model file keeps ------------------------------------------------------------


def kept() -> Preprocessing:
    columns = (Number("x", 1.5, 2.0, 1.5), Category("c", ("a", "ß"), "a"))
    return Preprocessing(columns, Number("y", 3.0, 4.0), ("x", "c", "y"), True)


def test_preprocessing_comes_back(tmp_path: Path) -> None:
    net = Network([3, 1], activation="identity", backend="numpy", seed=0)
    net.preprocessing = kept()
    net.save(tmp_path / "a.safetensors")
    again = Network.load(tmp_path / "a.safetensors", backend="numpy")
    assert again.preprocessing == kept()
    again.save(tmp_path / "b.safetensors")
    assert Network.load(tmp_path / "b.safetensors").preprocessing == kept()
    Network([3, 1], backend="numpy").save(tmp_path / "c.safetensors")
    assert Network.load(tmp_path / "c.safetensors").preprocessing is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "must be an object of"),
        ({"version": 2}, "version is 2"),
        ({"version": True}, "version is True"),
        ({"more": 1}, "must be an object of"),
        ({"header": 1}, "header must be"),
        ({"columns": {}}, "columns must be a list"),
        ({"columns": []}, "columns of 0 inputs, but the network has 3"),
        ({"file": ["x", "x"]}, "different texts"),
        ({"file": ["x", "c"]}, "target must be another column"),
        ({"file": ["x", "y"]}, "columns must be different ones of file"),
        ({"target": None}, "target must be another column"),
        ({"target": {"name": "y", "levels": ["a", "b", "c"], "fill": None}}, "3 classes, but"),
        ({"target": {"name": "y", "mean": 0.0, "deviation": 0.0, "fill": None}}, "neither"),
        ({"target": {"name": "y", "mean": float("nan"), "deviation": 1.0, "fill": None}}, "neithe"),
        ({"target": {"name": "y", "mean": "0", "deviation": 1.0, "fill": None}}, "neither"),
        ({"target": {"name": ["y"], "levels": ["a", "b"], "fill": None}}, "neither"),
        ({"target": {"name": "y", "levels": ["a", "b"], "fill": ["a"]}}, "neither"),
        (" " * (JSON + 1), "characters, more than"),
    ],
)
def test_damaged_preprocessing(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "a.safetensors"
    net = Network([3, 1], activation="identity", backend="numpy")
    net.preprocessing = kept()
    net.save(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in ("w1", "b1")}
    text = metadata["backprop_gpu.preprocessing"]
    text = change if isinstance(change, str) else json.dumps(json.loads(text) | change)
    metadata["backprop_gpu.preprocessing"] = text
    safetensors.numpy.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"a.safetensors: damaged preprocessing: .*{message}"):
        Network.load(path)


# -- SIGTERM ----------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_writes_what_there_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backprop_gpu", "train", "--backend", "numpy"]
    process = subprocess.Popen(
        [*command, "--epochs", "1000000", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        seen = b""
        while b"val_loss" not in seen:  # in the bar, after the first epoch
            piece = os.read(process.stderr.fileno(), 4096)
            assert piece, seen
            seen += piece
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 143
    assert b"terminated; the model has the weights after epoch" in err
    assert b"Traceback" not in err
    data = datasets.load()
    net = Network.load(tmp_path / "model.safetensors", backend="numpy")
    assert f"{net.accuracy(data.X_val, data.y_val):.4f}" == f"{final(out.decode()):.4f}"


def test_sigterm_while_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = cli.train.draw

    def stub(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        draw(*arguments)

    monkeypatch.setattr(cli.train, "draw", stub)
    before = signal.getsignal(signal.SIGTERM)
    assert run("train", "--backend", "numpy", "--epochs", 1, "--out", tmp_path) == 143
    assert (tmp_path / "learning_curve.png").exists()
    assert signal.getsignal(signal.SIGTERM) is before


# -- formulas ---------------------------------------------------------------------------


def test_names_that_are_formulas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["=cmd|' /C calc'!A0", "@SUM(1)", "-1+1", "+x", "\t=1", "-3", "plain"]
    rows = [f'{i},"{name}"' for i, name in enumerate(names) for _ in range(4)]
    path = write(tmp_path / "a.csv", "x,y\n" + "\n".join(rows))
    assert run("train", "--data", path, *TRAIN, "--out", tmp_path) == 0
    capsys.readouterr()
    out = tmp_path / "p.csv"
    assert run("predict", tmp_path / "model.safetensors", path, "--out", out) == 0
    assert "--verbatim writes them as they are" in capsys.readouterr().out
    cells = {cell for row in tables.csv.reader(out.open()) for cell in row[1:]}
    assert {"'=cmd|' /C calc'!A0", "'@SUM(1)", "'-1+1", "'+x", "-3", "plain"} <= cells
    assert not [cell for cell in cells if cell[0] in "=+-@\t" and cell != "-3"]
    command = ["predict", tmp_path / "model.safetensors", path, "--out", out, "--verbatim"]
    assert run(*command) == 0
    assert "=cmd|' /C calc'!A0" in out.read_text()
    assert "'=cmd" not in out.read_text()


def test_negative_numbers_stay_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.linspace(-1, 1, 50)
    path = csv_of(tmp_path / "a.csv", ["x", "y"], x, -3 - x)
    assert run("train", "--data", path, *TRAIN, "--out", tmp_path) == 0
    capsys.readouterr()
    assert run("predict", tmp_path / "model.safetensors", path) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert all(float(cell) < 0 for row in rows for cell in row.split(",")[1:])


# -- files that would harm --------------------------------------------------------------


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def archive(path: Path, kind: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


def peak(action: Any) -> int:
    """The most bytes that were held at once, beyond what was there before."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_are_refused_before_they_are_read(tmp_path: Path) -> None:
    big = npy(np.zeros((1000, 5000)))  # 40 MB, of which deflate makes 39 kB
    y = npy(np.zeros(1000))
    few = archive(tmp_path / "labels.npz", X=big, y=npy(np.zeros(3)))
    many = archive(tmp_path / "limit.npz", X=big, y=y)
    folder = tmp_path / "mnist"
    folder.mkdir()
    images = gzip.compress(idx(np.zeros((25_000, 1600), "u1")))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(images)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, "u1")))
    one = tmp_path / "idx3-ubyte.gz"
    one.write_bytes(images)
    lines = tmp_path / "lines.csv.gz"
    lines.write_bytes(gzip.compress(b"1,2,0\n" * 5_000_000))
    line = tmp_path / "line.csv.gz"
    line.write_bytes(gzip.compress(b"1" * 100_000_000))
    assert max(path.stat().st_size for path in (few, many, one, lines, line)) < 600_000
    for path, message in (
        (few, "1000 rows of features, but labels of shape"),
        (many, "x would take 40,000,000 bytes, more than the 1,000,000 that --max-bytes allows"),
        (folder, "25000 rows of features, but labels of shape"),
        (one, "would take 40,000,000 bytes"),
        (lines, "more than the 1,000,000 that --max-bytes allows"),
        (line, "line 1: it goes on for more than 16,777,216 characters"),
    ):

        def refuse(path: Path = path, message: str = message) -> None:
            with pytest.raises(ValueError, match=message):
                datasets.load(path, max_bytes=1_000_000)

        assert peak(refuse) < (80_000_000 if path == line else 15_000_000), path


def test_the_limit_can_be_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = archive(tmp_path / "a.npz", X=npy(np.ones((30, 40))), y=npy(np.arange(30) % 2))
    arguments = ["--data", path, "--backend", "numpy", "--epochs", 1, "--out", tmp_path]
    message = refused(capsys, "train", *arguments, "--max-bytes", "9K")
    assert "x would take 9,600 bytes, more than the 9,216 that --max-bytes allows" in message
    assert run("train", *arguments, "--max-bytes", "10k") == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (b"no array", "magic string is not correct"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000000, 9)}"),
         "need 648000000000000 bytes, but 0 are there"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 9)}"), "shape"),
        (npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 9)}"), "Python objects"),
        (npy_header("(" * 5000), "x.npy"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': " + "9" * 5000), "x.npy"),
        (npy(np.eye(3))[:-4], "need 72 bytes, but 68 are there"),
        (npy(np.eye(3)) + b"!", "need 72 bytes, but 73 are there"),
        (b"\x93NUMPY\x09\x00", "we only support format version|format version"),
    ],
)  # fmt: skip
def test_members_that_are_no_arrays(
    tmp_path: Path, x: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive(tmp_path / "a.npz", x=x, y=npy(np.zeros(3)))
    with pytest.raises(ValueError, match=message):
        datasets.load(path)
    assert "cannot be read as .npz: x.npy: " in refused(capsys, "train", "--data", path)


def test_encrypted_and_strangely_packed_members(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive(tmp_path / "a.npz", zipfile.ZIP_STORED, x=npy(np.eye(3)), y=npy(np.zeros(3)))
    whole = path.read_bytes()
    local, central = whole.index(b"PK\x03\x04"), whole.index(b"PK\x01\x02")
    for offset, value, message in ((6, 1, "password"), (8, 77, "compression")):
        data = bytearray(whole)
        data[local + offset] = data[central + offset + 2] = value
        path.write_bytes(data)
        assert message in refused(capsys, "train", "--data", path, "--out", tmp_path)


def test_a_table_too_wide(tmp_path: Path) -> None:
    texts = [f"t{i % 300}" for i in range(900)]
    path = csv_of(tmp_path / "a.csv", ["c", "y"], texts, np.arange(900) % 2)
    with pytest.raises(ValueError, match=r"one-hot, would take .* --max-bytes"):
        datasets.load(path, max_bytes=1_000_000)


def samples(folder: Path) -> dict[str, bytes]:
    """A sound file of each kind."""
    rng = np.random.default_rng(0)
    X, y = rng.random((12, 3)), np.arange(12) % 3
    text = "id,size,colour,kind\n" + "".join(
        f'{i},{X[i, 0]:.2f},{"red" if i % 2 else "blue"},"k{y[i]}"\n' for i in range(12)
    )
    parts = archive(
        folder / "s.npz", x_train=npy(X), y_train=npy(y), x_test=npy(X[:4]), y_test=npy(y[:4])
    )
    stored = archive(
        folder / "t.npz", zipfile.ZIP_STORED, X=npy(X.astype("u1")), y=npy(np.array(["a", "b"] * 6))
    )
    images = idx(rng.integers(0, 255, (12, 2, 2), dtype=np.uint8))
    return {
        "a.csv": text.encode(),
        "b.tsv": text.replace(",", "\t").encode(),
        "c.csv.gz": gzip.compress(text.encode()),
        "d.npz": parts.read_bytes(),
        "e.npz": stored.read_bytes(),
        "f-idx3-ubyte": images,
        "g-idx3-ubyte.gz": gzip.compress(images),
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Changed, cut, doubled or filled somewhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del changed[at : at + rng.choice((1, 2, 30, len(data)))]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.choice((1, 4, 40))]
        elif kind == 3:
            changed[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        elif kind == 4:
            changed[at:at] = rng.choice((b",", b'"', b"\n", b"\0", b"\t", b"1e999", b"nan", b"_"))
        else:
            changed[at : at + 1] = bytes(c ^ 1 << rng.randrange(8) for c in changed[at : at + 1])
        if not changed:
            break
    return bytes(changed)


def test_damaged_files_are_refused_in_words(tmp_path: Path) -> None:
    """Whatever is wrong with a file: it reads, or it raises ValueError, and takes no memory."""
    rng = random.Random(7)
    rounds = int(os.environ.get("BACKPROP_GPU_FUZZ", "150"))
    for name, data in samples(tmp_path).items():
        path = tmp_path / name
        for _ in range(rounds):
            path.write_bytes(mutate(data, rng))
            for attempt in (datasets.load, datasets.read):
                with warnings.catch_warnings(), contextlib.suppress(ValueError):
                    warnings.simplefilter("ignore")
                    attempt(path, max_bytes=2**26)
