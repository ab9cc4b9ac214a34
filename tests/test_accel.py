"""`python -m backprop_gpu.accel`: an unchanged script gets our perceptrons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import pickle, sys, warnings
warnings.simplefilter("ignore")
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier, MLPRegressor, BernoulliRBM

X, y = load_iris(return_X_y=True)


class Mine(MLPClassifier):
    def greet(self):
        return "hello"


class Reaching(MLPClassifier):
    def _init_coef(self, fan_in, fan_out, dtype):
        return super()._init_coef(fan_in, fan_out, dtype)


def origin(estimator):
    return next(c.__module__ for c in type(estimator).__mro__ if c.__module__ != "__main__")


kinds = MLPClassifier, Mine, Reaching, MLPRegressor
for est in [kind(hidden_layer_sizes=(4,), max_iter=3, random_state=0) for kind in kinds]:
    est = clone(est).fit(X, y)
    again = pickle.loads(pickle.dumps(est))
    assert (again.predict(X) == est.predict(X)).all()
    assert isinstance(est, (MLPClassifier, MLPRegressor))
    print(type(est).__name__, origin(est), float(est.loss_))
print(Mine().greet(), issubclass(Reaching, MLPClassifier))
print(isinstance(BernoulliRBM(), MLPClassifier))
MLPClassifier((4,), max_iter=2).fit(X, y, sample_weight=y + 1.0)
if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as file:
        old = pickle.load(file)
    print("old", isinstance(old, MLPClassifier), isinstance(old, MLPRegressor))
print(sys.argv[1:], __name__)
"""


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False,
        **options,
    )  # fmt: skip


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_gets_ours_and_the_same_answers(script: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.pickle"
    made = run(
        "-c",
        "import pickle, sys\n"
        "from sklearn.neural_network import MLPClassifier\n"
        "model = MLPClassifier((2,), max_iter=1).fit([[0.], [1.]], [0, 1])\n"
        "pickle.dump(model, open(sys.argv[1], 'wb'))",
        str(old),
    )
    assert made.returncode == 0, made.stderr
    plain = run(str(script), "a", str(old))
    fast = run("-m", "backprop_gpu.accel", str(script), "a", str(old))
    assert plain.returncode == fast.returncode == 0, fast.stderr
    theirs, ours = (out.stdout.splitlines() for out in (plain, fast))
    origins = [line.split()[1].split(".")[0] for line in ours[:4]]
    assert origins == ["backprop_gpu", "backprop_gpu", "sklearn", "backprop_gpu"]
    losses = [[float(line.split()[2]) for line in lines[:3]] for lines in (theirs, ours)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert ours[4:] == theirs[4:]
    assert ours[4:7] == ["hello True", "False", "old True False"]
    assert ours[7] == f"['a', '{old}'] __main__"
    assert "backprop_gpu:" not in fast.stderr


def test_verbose_says_what_was_accelerated_and_what_was_not(script: Path) -> None:
    out = run("-m", "backprop_gpu.accel", "--verbose", str(script))
    assert out.returncode == 0, out.stderr
    assert "MLPClassifier [4, 4, 3]: backend" in out.stderr
    assert "engine resident" in out.stderr
    assert "engine none" not in out.stderr, "samples with weights"
    assert "Reaching is scikit-learn's MLPClassifier: it overrides _init_coef" in out.stderr


def test_a_module_and_a_wrong_name(tmp_path: Path) -> None:
    out = run("-m", "backprop_gpu.accel", "-m", "this")
    assert "Zen of Python" in out.stdout
    missing = run("-m", "backprop_gpu.accel", str(tmp_path / "none.py"))
    assert missing.returncode == 2
    assert "no such script" in missing.stderr
    assert run("-m", "backprop_gpu.accel").returncode == 2


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder full of files named as modules that we import, which must not be."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in (
        "sklearn",
        "numpy",
        "scipy",
        "json",
        "random",
        "typing",
        "argparse",
        "dataclasses",
    ):
        (folder / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')")
    return folder


SAYS = "import sys, neighbour; print(sys.path); print(sys.argv); print(neighbour.__file__)"


@pytest.mark.parametrize("flags", [[], ["-P"]], ids=str)
@pytest.mark.parametrize("kind", ["script", "link", "folder", "module"])
def test_path_and_arguments_are_those_of_python_itself(
    tmp_path: Path, elsewhere: Path, kind: str, flags: list[str]
) -> None:
    """The neighbour is found beside the script, or under -P in the first entry of PYTHONPATH."""
    first, home = tmp_path / "first", tmp_path / "home"
    for folder in (first, home):
        folder.mkdir()
        (folder / "neighbour.py").touch()
        (folder / "program.py").write_text(SAYS)
        (folder / "__main__.py").write_text(SAYS)
    (tmp_path / "link.py").symlink_to(home / "program.py")
    what = {
        "script": [str(home / "program.py")],
        "link": ["../link.py"],
        "folder": [str(home)],
        "module": ["-m", "program"],
    }[kind]
    options = ["--foo", "--verbose", "-h", "-m", "x", "--", "-c"]
    environment = os.environ | {"PYTHONPATH": str(first)}
    cwd = home if kind == "module" else elsewhere
    plain = run(*flags, *what, *options, cwd=cwd, env=environment)
    fast = run(*flags, "-m", "backprop_gpu.accel", *what, *options, cwd=cwd, env=environment)
    assert plain.returncode == fast.returncode == 0, fast.stderr
    assert fast.stdout == plain.stdout
    assert fast.stdout.splitlines()[2] == str(
        (first if flags and kind != "folder" else home) / "neighbour.py"
    )


def test_a_script_may_have_a_neighbour_called_as_one_of_our_imports(elsewhere: Path) -> None:
    (elsewhere / "script.py").write_text("print('ran')")
    out = run("-m", "backprop_gpu.accel", "script.py", cwd=elsewhere)
    assert out.stdout == "ran\n", out.stderr


def test_what_only_a_newer_scikit_learn_knows_is_handed_back() -> None:
    out = run(
        "-c",
        "from backprop_gpu import accel\n"
        "class Newer(accel.genuine.MLPClassifier):\n"
        "    def __init__(self, hidden_layer_sizes=(100,), *, novelty=None):\n"
        "        super().__init__(hidden_layer_sizes)\n"
        "        self.novelty = novelty\n"
        "accel.MLPClassifier._theirs = Newer\n"
        "accel.install(verbose=True)\n"
        "from sklearn.neural_network import MLPClassifier\n"
        "est = MLPClassifier(novelty=3)\n"
        "print(type(est).__name__, isinstance(est, MLPClassifier))\n"
        "print(type(MLPClassifier()).__module__)\n"
        "accel.uninstall()\n"
        "from sklearn.neural_network import MLPClassifier\n"
        "print(MLPClassifier is accel.genuine.MLPClassifier)\n",
    )
    assert out.stdout.split() == ["Newer", "True", "backprop_gpu.accel", "True"], out.stderr
    assert "parameter novelty is newer than this library" in out.stderr


def test_a_private_method_below_one_of_ours_is_warned_of() -> None:
    out = run(
        "-W", "always", "-c",
        "from backprop_gpu import accel\n"
        "class Mine(accel.MLPClassifier): pass\n"
        "class Deeper(Mine):\n"
        "    def _init_coef(self): pass\n",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "Deeper overrides _init_coef" in out.stderr


def test_as_an_extension_of_ipython() -> None:
    out = run(
        "-c",
        "from backprop_gpu import accel\n"
        "accel.load_ipython_extension(None)\n"
        "import sklearn.neural_network as n; print(n.MLPClassifier.__module__)\n"
        "accel.unload_ipython_extension(None); print(n.MLPClassifier.__module__)\n",
    )
    assert out.stdout.split() == [
        "backprop_gpu.accel",
        "sklearn.neural_network._multilayer_perceptron",
    ]


SEARCHES = """
import pickle, sys, warnings
warnings.simplefilter("ignore")
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.experimental import enable_halving_search_cv
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

X, y = load_iris(return_X_y=True)


class Mine(GridSearchCV):
    pass


class Reaching(GridSearchCV):
    def _format_results(self, *arguments):
        return super()._format_results(*arguments)


net = MLPClassifier((5,), max_iter=40, learning_rate_init=0.01, random_state=0)
alphas = {"alpha": [1e-3, 30.0]}
for search in (
    GridSearchCV(net, alphas, cv=3),
    Mine(estimator=net, param_grid=alphas, cv=3),
    Reaching(net, alphas, cv=3),
    RandomizedSearchCV(net, alphas, n_iter=2, cv=3, random_state=0),
    HalvingGridSearchCV(make_pipeline(StandardScaler(), net),
                        {"mlpclassifier__alpha": alphas["alpha"]}, cv=3, random_state=0),
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=3),
):
    search = pickle.loads(pickle.dumps(clone(search).fit(X, y)))
    origin = next(c.__module__ for c in type(search).__mro__ if c.__module__ != "__main__")
    print(type(search).__name__, isinstance(search, GridSearchCV), round(search.best_score_, 2),
          origin.partition(".")[0])
"""


def test_searches_train_their_candidates_together(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SEARCHES)
    plain = run(str(path))
    assert plain.returncode == 0, plain.stderr
    without = run("-m", "backprop_gpu.accel", str(path))
    ours = run("-m", "backprop_gpu.accel", "--search", "--verbose", str(path))
    assert ours.returncode == without.returncode == 0, ours.stderr + without.stderr
    origins = [line.split()[-1] for line in ours.stdout.splitlines()]
    assert origins == ["backprop_gpu"] * 2 + ["sklearn"] + ["backprop_gpu"] * 2 + ["sklearn"]
    for other in (plain, without):
        assert {line.split()[-1] for line in other.stdout.splitlines()} == {"sklearn"}
    answers = [
        [line.split()[:-1] for line in each.stdout.splitlines()] for each in (plain, without, ours)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert "GridSearchCV is scikit-learn's: it is not over one of our perceptrons" in ours.stderr
    assert "Reaching is scikit-learn's GridSearchCV: it overrides _format_results" in ours.stderr
