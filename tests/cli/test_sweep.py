"""``backprop-gpu sweep``: what is printed, what is written, the exit status."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import optuna
import pytest
from distributed import LocalCluster
from optuna.distributions import FloatDistribution, IntDistribution

from backprop_gpu import Network, datasets, sweep
from backprop_gpu.cli import sweep as command
from shell import refused, run

GRID = """
epochs = 3
optimizer = "adam"
backend = "numpy"

[grid]
sizes = [[64, 12, 10], [64, 7, 6, 10]]
learning_rate = [0.003, 0.03]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(GRID, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as made:
        yield made.scheduler_address


def test_a_grid(tmp_path: Path, grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, model = tmp_path / "table.csv", tmp_path / "best.safetensors"
    assert run("sweep", "--grid", grid, "--seeds", 2, "--out", table, "--model", model) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("device: CPU (")
    assert lines[1].startswith("data: handwritten digits")
    assert lines[2] == "sweep: 4 settings, 8 networks"
    assert lines[-2] == f"written: {table}"
    assert "24/24" in printed.err
    data = datasets.load()
    result = sweep(
        data.X, data.y, grid={"sizes": [[64, 12, 10], [64, 7, 6, 10]],
        "learning_rate": [0.003, 0.03]}, seeds=2, seed=0, epochs=3, optimizer="adam",
        batch_size=10, cost="binary_cross_entropy", validation_data=(data.X_val, data.y_val),
        backend="numpy", progress=False,
    )  # fmt: skip
    assert str(result) in printed.out
    assert lines[-1] == f"written: {model}, row {result.ranking[0]}"
    best = Network.load(model, backend="numpy")
    np.testing.assert_array_equal(best.weights[0], result.best.network.weights[0])
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == result.ranking
    for row in rows:
        expected = result.rows[int(row["row"])]
        assert json.loads(row["sizes"]) == expected["sizes"]
        assert float(row["val_loss"]) == expected["val_loss"]
        assert row["failed"] == ""


def test_a_cluster_gives_the_same(
    tmp_path: Path, grid: Path, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    arguments = ["--grid", grid, "--seeds", 2, "--patience", 1]
    assert run("sweep", *arguments, "--out", here) == 0
    shown = capsys.readouterr().out.splitlines()
    assert run("sweep", *arguments, "--out", there, "--scheduler", scheduler) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1:-1] == shown[1:-1]
    assert printed.out.startswith(f"device: 2 workers with 2 threads at {scheduler}\n")
    assert "tasks on 2 workers" in printed.err
    assert there.read_bytes() == here.read_bytes()
    found = json.loads(here.read_text(encoding="utf-8"))
    assert found["metric"] == "val_accuracy"
    assert len(found["rows"]) == 8


def test_what_the_grid_leaves_out_is_as_in_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    X = np.random.default_rng(0).random((40, 3))
    lines = [",".join(map(str, [*row, 100 * row.sum()])) for row in X]
    (tmp_path / "a.csv").write_text("a,b,c,price\n" + "\n".join(lines), encoding="utf-8")
    (tmp_path / "grid.toml").write_text("epochs = 2\n[grid]\nl2 = [0.0, 0.1]\n", encoding="utf-8")
    model = tmp_path / "m.safetensors"
    assert run("sweep", "--grid", tmp_path / "grid.toml", "--data", tmp_path / "a.csv",
               "--backend", "numpy", "--model", model) == 0  # fmt: skip
    assert "target standardised" in capsys.readouterr().out
    net = Network.load(model)
    assert net.sizes == (3, 30, 1)
    assert [sigma.name for sigma in net.activations] == ["sigmoid", "identity"]
    assert net.preprocessing is not None
    assert run("predict", model, tmp_path / "a.csv") == 0
    assert capsys.readouterr().out.startswith("row,prediction,")
    # As deep as each setting is, and by each one's optimizer.
    (tmp_path / "grid.toml").write_text(
        'epochs = 1\n[[grid]]\nsizes = [[3, 1], [3, 4, 1]]\n[[grid]]\noptimizer = ["adam"]\n',
        encoding="utf-8",
    )
    table = tmp_path / "t.json"
    assert run("sweep", "--grid", tmp_path / "grid.toml", "--data", tmp_path / "a.csv",
               "--backend", "numpy", "--out", table) == 0  # fmt: skip
    rows = sorted(json.loads(table.read_text())["rows"], key=lambda row: row["row"])
    assert [row["activation"] for row in rows] == [
        "identity", ["sigmoid", "identity"], ["sigmoid", "identity"],
    ]  # fmt: skip
    assert [row["learning_rate"] for row in rows] == [0.03, 0.03, 0.001]


def test_networks_that_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, table = tmp_path / "grid.toml", tmp_path / "t.json"
    text = 'epochs = 2\nactivation = "identity"\ncost = "quadratic"\ndtype = "float64"\n'
    path.write_text(f"{text}[grid]\nlearning_rate = [1e300, 0.001]\n", encoding="utf-8")
    arguments = ["sweep", "--grid", path, "--backend", "numpy", "--out", table]
    assert run(*arguments) == 0
    assert "note: 1 of 2 networks stopped early" in capsys.readouterr().err
    rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
    assert [row["row"] for row in rows] == [1, 0]
    assert rows[1]["loss"] is None
    assert "the cost became" in rows[1]["failed"]
    table.unlink()
    path.write_text(f"{text}[grid]\nlearning_rate = [1e300]\n", encoding="utf-8")
    assert run(*arguments) == 1
    assert "every network failed. Row 0: the cost" in capsys.readouterr().err
    assert not table.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "has no [grid]"),
        ("epochs = ", "is no TOML"),
        ("lr = 3\n[grid]\nepochs = [1]", "unknown key 'lr'; known: grid, sizes"),
        ("client = 3\n[grid]\nepochs = [1]", "unknown key 'client'"),
        ("[grid]\nlr = [3]", "unknown key 'lr' in grid"),
        ("[grid]\nepochs = 3", "grid must hold a list of values for 'epochs'"),
        ("grid = 3", "grid must be a dict of lists"),
        ("[grid]\nepochs = [0]", "setting 0 (epochs=0): epochs must be >= 1"),
        ("[grid]\nsizes = [3]", "setting 0 (sizes=3): sizes must be"),
        ('[grid]\noptimizer = ["x"]', "unknown optimizer 'x'"),
        ('[grid]\ncost = ["x"]', "unknown cost 'x'"),
    ],
)
def test_a_grid_that_is_wrong(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text, encoding="utf-8")
    assert run("sweep", "--grid", path, "--backend", "numpy") == 2
    assert message in capsys.readouterr().err


def test_arguments(
    tmp_path: Path, grid: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--grid" in refused(capsys, "sweep")
    assert "none.toml" in refused(capsys, "sweep", "--grid", tmp_path / "none.toml")
    message = refused(capsys, "sweep", "--grid", grid, "--out", tmp_path / "a.txt")
    assert "--out must end in .csv or .json" in message
    message = refused(capsys, "sweep", "--grid", grid, "--out", tmp_path / "no" / "a.csv")
    assert "there is no folder" in message
    assert "is a folder" in refused(capsys, "sweep", "--grid", grid, "--model", tmp_path)
    with dask.config.set({"distributed.comm.timeouts.connect": "500ms"}):
        message = refused(capsys, "sweep", "--grid", grid, "--scheduler", "tcp://127.0.0.1:9")
    assert "--scheduler tcp://127.0.0.1:9: no connection" in message
    message = refused(capsys, "sweep", "--grid", grid, "--scheduler", "nowhere:port:1")
    assert "--scheduler nowhere:port:1: no connection" in message
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    message = refused(capsys, "sweep", "--grid", grid, "--scheduler", "tcp://127.0.0.1:9")
    assert "pip install 'backprop_gpu[dask]'" in message


def test_help_wraps_paragraphs_and_keeps_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  learning_rate = [0.001, 0.003, 0.01]" in lines
    assert max(map(len, lines)) <= 90
    assert command.KEYS[0] == "sizes"


# -- trials ----------------------------------------------------------------------------------------

TRIALS = """
epochs = 4
backend = "numpy"

[grid]
sizes = [[64, 6, 10], [64, 7, 10]]
learning_rate = {low = 1e-3, high = 10, log = true}
batch_size = {low = 16, high = 64, step = 16}
momentum = {low = 0, high = 0.9}
"""


@pytest.mark.filterwarnings("ignore:.*QMCSampler is experimental")
@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [("tpe", "none"), ("random", "hyperband"), ("qmc", "halving"), ("tpe", "median")],
)
def test_trials_go_on_in_a_storage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sampler: str, pruner: str
) -> None:
    path, table = tmp_path / "grid.toml", tmp_path / "table.json"
    path.write_text(TRIALS, encoding="utf-8")
    storage = f"sqlite:///{tmp_path}/trials.db"
    for done in (4, 8):
        assert run(
            "sweep", "--grid", path, "--trials", 4, "--storage", storage, "--study", "digits",
            "--sampler", sampler, "--pruner", pruner, "--out", table, "--at-once", 3,
        ) == 0  # fmt: skip
        assert "sweep: 4 trials" in capsys.readouterr().out
        study = optuna.load_study(study_name="digits", storage=storage)
        assert study.direction.name == "MAXIMIZE"
        assert len(study.trials) == done
        rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
        assert sorted(row["trial"] for row in rows) == list(range(done - 4, done))
    for trial in study.trials:
        assert trial.state.is_finished()
        assert trial.params["batch_size"] in (16, 32, 48, 64)
        assert 1e-3 <= trial.params["learning_rate"] <= 10
    assert isinstance(study.trials[0].distributions["momentum"], FloatDistribution)
    assert isinstance(study.trials[0].distributions["batch_size"], IntDistribution)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "needs --trials"),
        (["--trials", "0"], "--trials"),
        (["--trials", "2", "--seeds", "2"], "--seeds and --trials exclude"),
        (["--trials", "2", "--scheduler", "tcp://x:1"], "--scheduler and --trials exclude"),
        (["--trials", "2", "--study", "x"], "--study needs --storage"),
        (["--trials", "2", "--storage", "nothing"], "--storage nothing"),
        (["--trials", "2", "--sampler", "best"], "--sampler"),
    ],
)
def test_trials_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(TRIALS, encoding="utf-8")
    assert text in refused(capsys, "sweep", "--grid", path, *options)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("learning_rate = {low = 1}", "must have low and high"),
        ("learning_rate = {low = 1, high = 2, base = 2}", "must have low and high"),
        ("learning_rate = {low = 2, high = 1}", "range of learning_rate"),
        ('learning_rate = {low = "a", high = 1}', "low must be"),
        ("learning_rate = {low = 1, high = 2, log = 1}", "log must be"),
        ("batch_size = {low = 1.5, high = 2}", "batch_size takes IntDistribution"),
        ("batch_size = {low = 1, high = 9999}", "batch_size"),
        ("sizes = {low = 1, high = 2}", "sizes takes CategoricalDistribution"),
        ("cost = ['binary_cross_entropy', 'categorical_cross_entropy']", "decides activation"),
    ],
)
def test_ranges_that_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, text: str
) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(f"epochs = 2\n[grid]\n{line}\n", encoding="utf-8")
    assert run("sweep", "--grid", path, "--trials", 2, "--backend", "numpy") == 2
    assert text in capsys.readouterr().err
