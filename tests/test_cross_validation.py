"""`cross_validate`: each network is what it would be alone, and so are the scores."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, RepeatedStratifiedKFold, StratifiedKFold

from backprop_gpu import (
    CrossValidation,
    EarlyStopping,
    Network,
    Population,
    cross_validate,
    cross_validation,
)

N = 40
SHARED: dict[str, Any] = {
    "sizes": [3, 5, 2], "epochs": 3, "batch_size": 8, "learning_rate": 0.5, "backend": "numpy",
    "seed": 4,
}  # fmt: skip
GRID = {"sizes": [[3, 4, 2], [3, 6, 2]], "learning_rate": [0.1, 2.0]}


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, 3))
    return X, (X[:, 0] > 0.4).astype(int)


def run(**arguments: Any) -> CrossValidation:
    return cross_validate(*problem(), **(SHARED | arguments))


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_every_network_is_what_it_would_be_alone(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    train = Population.train
    monkeypatch.setattr(
        Population, "train", lambda self, *a: made.append(len(self)) or train(self, *a)
    )
    X, y = problem()
    found = run(cv=4, grid=GRID, engine=engine)
    assert made == [8, 8]
    assert (len(found), len(found.folds)) == (4, 4)
    assert found.predictions.shape == (4, N, 2)
    assert found.metric == "accuracy"
    for s, row in enumerate(found):
        for k, (train_rows, test) in enumerate(found.folds):
            alone = Network(row["sizes"], backend="numpy", seed=row["seed"])
            history = alone.fit(
                X[train_rows], y[train_rows], epochs=3, batch_size=8,
                learning_rate=row["learning_rate"], engine=engine,
            )  # fmt: skip
            assert found.histories[s][k].loss == history.loss
            assert found.networks[s][k].history is found.histories[s][k]
            assert found.losses[s, k] == alone.loss(X[test], y[test])
            assert found.accuracies[s, k] == alone.accuracy(X[test], y[test])
            np.testing.assert_array_equal(found.predictions[s, test], alone.predict(X[test]))
        assert row["loss"] == found.losses[s].mean()
        assert row["accuracy_std"] == found.accuracies[s].std()
    best = found.ranking[0]
    assert found.rows[best]["accuracy"] == max(row["accuracy"] for row in found)
    assert found.best.setting is found.rows[best]
    assert str(found).splitlines()[1].startswith(str(best))
    assert "4 settings in 4 folds" in repr(found)
    assert list(found.to_dict())[-3:] == ["accuracy", "accuracy_std", "failed"]


def test_folds_of_a_number() -> None:
    _, y = problem()
    folds = run(cv=5).folds
    tests = np.concatenate([fold.test for fold in folds])
    np.testing.assert_array_equal(np.sort(tests), np.arange(N))
    for train, test in folds:
        np.testing.assert_array_equal(np.setdiff1d(np.arange(N), test), train)
        assert len(test) == 8
        assert abs(y[test].sum() - y.sum() / 5) <= 1
    same, other = run(cv=5).folds, run(cv=5, seed=5).folds
    np.testing.assert_array_equal(folds[0].test, same[0].test)
    assert not np.array_equal(folds[0].test, other[0].test)
    assert not np.array_equal(folds[0].test, np.sort(folds[0].test)[::-1])


@pytest.mark.parametrize("n", [7, 10, 23])
@pytest.mark.parametrize("classes", [None, 2, 5])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_random_folds(n: int, classes: int | None, count: int) -> None:
    rng = np.random.default_rng(n)
    labels = None if classes is None else rng.integers(0, classes, n)
    folds = cross_validation.random_folds(count, n, labels, 1)
    sizes = [len(fold.test) for fold in folds]
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1
    for label in range(classes or 0):
        of_class = [int((labels[fold.test] == label).sum()) for fold in folds]
        assert max(of_class) - min(of_class) <= 1


def test_splitters() -> None:
    X, y = problem()
    splitter = StratifiedKFold(3, shuffle=True, random_state=2)
    for Y in (y, np.eye(2)[y]):
        found = cross_validate(X, Y, cv=splitter, **SHARED)
        for fold, (train, test) in zip(found.folds, splitter.split(X, y), strict=True):
            np.testing.assert_array_equal(fold.train, train)
            np.testing.assert_array_equal(fold.test, test)
    groups = np.arange(N) // 10
    found = run(cv=GroupKFold(4), groups=groups)
    assert [set(groups[fold.test]) for fold in found.folds] == [{3}, {2}, {1}, {0}] or len(
        {groups[fold.test][0] for fold in found.folds}
    ) == 4
    pairs = [(np.arange(20), [30, 31]), (np.arange(N) < 10, np.arange(N) >= 35)]
    found = run(cv=iter(pairs))
    np.testing.assert_array_equal(found.folds[1].test, np.arange(35, N))
    tested = np.isfinite(found.predictions[0]).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(tested), [30, 31, *range(35, N)])


def test_rows_that_are_tested_twice_get_the_mean() -> None:
    X, _ = problem()
    cv = RepeatedStratifiedKFold(n_splits=2, n_repeats=3, random_state=0)
    found = run(cv=cv)
    expected = np.zeros((N, 2))
    for network, (_, test) in zip(found.networks[0], found.folds, strict=True):
        expected[test] += network.predict(X[test]).astype(float) / 3
    np.testing.assert_allclose(found.predictions[0], expected, rtol=1e-6)


def test_numbers_as_targets() -> None:
    X, _ = problem()
    Y = np.stack([X[:, 0], X[:, 1] * X[:, 2]], axis=1)
    found = cross_validate(X, Y, cv=3, activation="identity", **SHARED | {"learning_rate": 0.01})
    assert found.metric == "loss"
    assert "accuracy" not in found.rows[0]
    assert np.isnan(found.accuracies).all()
    with pytest.raises(ValueError, match="needs a Y of classes"):
        cross_validate(X, Y, metric="accuracy", activation="identity", **SHARED)
    grid = {"cost": ["quadratic", "poisson"]}
    with pytest.raises(ValueError, match="different costs"):
        cross_validate(X, Y**2, grid=grid, activation="exponential", **SHARED)


def test_validation_data_and_early_stopping() -> None:
    X, y = problem()
    found = run(
        cv=3, epochs=60, learning_rate=3.0, validation_data=(X[:9], y[:9]),
        callbacks=[EarlyStopping(patience=2)],
    )  # fmt: skip
    lengths = {len(history) for history in found.histories[0]}
    assert max(lengths) < 60
    assert all(len(h.val_loss) == len(h.loss) for h in found.histories[0])


def test_a_setting_that_fails_comes_last() -> None:
    X, _ = problem()
    Y = X[:, :2]
    with pytest.warns(RuntimeWarning, match=r"3 of 6 networks stopped early.*Row 0, fold 0"):
        found = cross_validate(
            X, Y, cv=3, grid={"learning_rate": [1e30, 0.01]}, activation="identity",
            **{k: v for k, v in SHARED.items() if k != "learning_rate"},
        )  # fmt: skip
    assert found.ranking == [1, 0]
    assert found.rows[0]["failed"].startswith("fold 0: ")
    assert np.isnan(found.losses[0]).all()
    assert np.isnan(found.predictions[0]).all()
    assert np.isfinite(found.predictions[1]).all()
    with pytest.raises(FloatingPointError):
        cross_validate(X, Y, cv=3, activation="identity", **SHARED | {"learning_rate": 1e30})


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ({"cv": 1}, ValueError, r"cv must be in \[2, 40\]"),
        ({"cv": N + 1}, ValueError, r"cv must be in \[2, 40\]"),
        ({"cv": True}, TypeError, "cv must be an integer"),
        ({"cv": 2.5}, TypeError, "cv must be a number of folds"),
        ({"cv": "5"}, TypeError, "cv must be a number of folds"),
        ({"cv": []}, ValueError, "cv gave no folds"),
        ({"cv": [3]}, TypeError, r"cv\[0\] must be a pair"),
        ({"cv": [([0, 1], [2], [3])]}, TypeError, r"cv\[0\] must be a pair"),
        ({"cv": [(range(20), [])]}, ValueError, r"cv\[0\], test is empty"),
        ({"cv": [(range(20), [1.5])]}, TypeError, r"cv\[0\], test must be whole numbers"),
        ({"cv": [(range(20), [0]), ([N], [0])]}, ValueError, r"cv\[1\], train names row 40"),
        ({"cv": [(range(4), [5])]}, ValueError, r"setting 0 .*batch_size must be in \[1, 4\]"),
        ({"groups": np.zeros(N)}, ValueError, "groups are for a splitter"),
        ({"metric": "val_loss"}, ValueError, "unknown metric"),
        ({"sizes": None}, TypeError, "sizes"),
        ({"grid": {"nothing": [1]}}, ValueError, "unknown key 'nothing'"),
        ({"grid": GRID, "settings": [{}]}, TypeError, "cross_validate needs either"),
    ],
)
def test_arguments_that_are_refused(
    arguments: dict[str, Any], kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        run(**arguments)


def test_a_number_of_folds_needs_no_scikit_learn() -> None:
    program = (
        "import sys, numpy as np; from backprop_gpu import cross_validate;"
        "X = np.random.default_rng(0).random((20, 2));"
        "print(len(cross_validate(X, (X[:, 0] > .5).astype(int), cv=2, sizes=[2, 2], epochs=1,"
        " batch_size=5, learning_rate=.1, backend='numpy').folds));"
        "assert 'sklearn' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
