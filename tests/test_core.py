"""With the core's dependencies alone: what trains, trains; what an extra brings is named."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from backprop_gpu import datasets, preprocessing
from backprop_gpu.cli import main, shown
from machine import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]}

#: No package can be imported but the core's and ours.
_ALONE = f"""\
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {CORE | {"backprop_gpu"}!r}:
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=top)
sys.meta_path.insert(0, Refuse())
import importlib.util
genuine = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return genuine(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
"""


def alone(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _ALONE + code], cwd=cwd,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_is_small() -> None:
    assert sorted(CORE) == ["numpy", "safetensors", "threadpoolctl", "tqdm"]


def test_the_command_trains_with_the_core_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours, sizes = rng.choice(["red", "blue"], 200), rng.normal(size=200)
    prices = sizes * 2 + (colours == "red") + 0.1 * rng.normal(size=200)
    rows = "\n".join(f"{a},{b},{c}" for a, b, c in zip(colours, sizes, prices, strict=True))
    (tmp_path / "houses.csv").write_text(f"colour,size,price\n{rows}\n")
    (tmp_path / "grid.toml").write_text("[grid]\nlearning_rate = [0.01, 0.1]\nepochs = [2]\n")
    out = alone(
        "from backprop_gpu.cli import main\n"
        "assert main(['train', '--epochs', '2', '--out', 'digits']) == 0\n"
        "assert main(['train', '--data', 'houses.csv', '--epochs', '20', '--out', 'houses']) == 0\n"
        "assert main(['predict', 'houses/model.safetensors', 'houses.csv']) == 0\n"
        "assert main(['sweep', '--grid', 'grid.toml', '--data', 'houses.csv']) == 0\n"
        "assert main(['info']) == 0\n",
        tmp_path,
    )
    assert "target standardised" in out
    assert "no learning_curve.png: the package matplotlib is not installed" in out
    assert re.search(r"R² 0\.\d", out)


def test_the_library_trains_with_the_core_alone(tmp_path: Path) -> None:
    out = alone(
        "import numpy as np\n"
        "import backprop_gpu as b, backprop_gpu.nielsen.network2 as book\n"
        "from backprop_gpu import datasets\n"
        "X, y = datasets.digits()\n"
        "X = X / 16\n"
        "how = dict(epochs=2, batch_size=10, learning_rate=0.5)\n"
        "for name in b.activations.names():\n"
        "    if name in ('gelu', 'softmax'): continue\n"
        "    net = b.Network([64, 30, 10], activation=[name, 'softmax'])\n"
        "    net.fit(X, y, **how | dict(learning_rate=0.01))\n"
        "net.check_gradients(X[:5], y[:5])\n"
        "net.save('net.safetensors'); b.Network.load('net.safetensors').predict(X)\n"
        "b.Population([64, 30, 10], members=3).fit(X, y, **how)\n"
        "print(b.sweep(X, y, grid={'sizes': [[64, 10]], 'learning_rate': [0.1, 0.5]}, epochs=2,\n"
        "              batch_size=10))\n"
        "b.cross_validate(X, y, sizes=[64, 10], cv=3, **how)\n"
        "net = book.Network([64, 30, 10])\n"
        "net.SGD([(x[:, None], book.vectorized_result(d)) for x, d in zip(X, y)], 1, 10, 0.5)\n",
        tmp_path,
    )  # fmt: skip
    assert "0.5" in out


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("backprop_gpu.MLPClassifier", "sklearn"),
        ("backprop_gpu.PopulationSearchCV", "sklearn"),
        ("backprop_gpu.Network([2, 1], activation='gelu')", "sklearn"),
        ("import backprop_gpu.torch", "torch"),
        ("backprop_gpu.sweep([[1.0]], [0], trials=2, space={'learning_rate': (0.1, 1.0)},"
         " sizes=[1, 1], epochs=1, batch_size=1)", "optuna"),
        ("backprop_gpu.Population([1, 1], members=2).fit([[1.0]], [0], epochs=1, batch_size=1,"
         " learning_rate=1.0, client=object())", "dask"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_extra(code: str, extra: str, tmp_path: Path) -> None:
    assert extra in PROJECT["optional-dependencies"]
    out = alone(
        f"import backprop_gpu\ntry: exec({code!r})\nexcept ImportError as error: print(error)\n",
        tmp_path,
    )
    assert out.strip().endswith(f"is not installed: pip install 'backprop_gpu[{extra}]'")


def test_all_is_all_that_goes_together() -> None:
    extras = PROJECT["optional-dependencies"]
    (line,) = extras["all"]
    named = set(line.partition("[")[2].rstrip("]").split(","))
    apart = {"all", "docs", "test", "cu12", "cu13", "compile", "mpi", "nccl"}
    assert named == set(extras) - apart


def test_without_arguments_the_command_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    for command in re.findall(r"^  backprop-gpu (\w+)", out, re.MULTILINE):
        assert main([command, "--help"]) == 0


def test_the_digits_are_scikit_learns() -> None:
    X, y = datasets.digits()
    expected = load_digits(return_X_y=True)
    np.testing.assert_array_equal(X, expected[0])
    np.testing.assert_array_equal(y, expected[1])


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 1e9])
def test_moments_are_standard_scalers(scale: float) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(3.0, 1.0, (500, 7)) * scale
    X[:, 1] = 0.1 * scale  # its mean is not, to the last digit
    X[:, 2] = 0.0
    X[::3, 3] = np.nan
    X[:, 4] = 1e6 * scale + X[:, 4]
    scaler = StandardScaler().fit(X)
    means, deviations = preprocessing.moments(X)
    np.testing.assert_allclose(means, scaler.mean_, rtol=1e-14)
    np.testing.assert_allclose(deviations, scaler.scale_, rtol=1e-12)
    assert deviations[1] == deviations[2] == 1.0


def test_moments_that_overflow_are_not_finite() -> None:
    means, deviations = preprocessing.moments(np.array([[1e308], [1e308], [-1e308]]))
    assert not np.isfinite([*means, *deviations]).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_goodness_is_r2_score(weighted: bool) -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(size=(50, 3))
    y[:, 2] = 1.0
    outputs = y + 0.3 * rng.normal(size=y.shape)
    weights = rng.uniform(size=50) if weighted else None
    for columns in ([0], [0, 1], [0, 2]):
        r2 = r2_score(y[:, columns], outputs[:, columns], sample_weight=weights)
        assert f"R² {r2:.4f}" in shown.goodness(y[:, columns], outputs[:, columns], None, weights)


@pytest.mark.parametrize("count", [3, 40, 97])
def test_shuffled_rows_are_of_each_class_its_share(count: int) -> None:
    y = np.repeat([0, 1, 2], [60, 30, 10])
    train, kept = datasets._share_of_classes(y, count, np.random.default_rng(3))  # noqa: SLF001
    assert sorted([*train, *kept]) == list(range(100))
    assert len(kept) == count
    shares = np.bincount(y[kept], minlength=3)
    assert (shares >= 1).all()  # no class is left without a row on either side
    assert (np.bincount(y[train], minlength=3) >= 1).all()
    expected = np.array([0.6, 0.3, 0.1]) * count
    assert np.abs(shares - np.clip(expected, 1, [59, 29, 9])).max() <= 1.0
    assert len(train) < 10 or (train != np.sort(train)).any()
