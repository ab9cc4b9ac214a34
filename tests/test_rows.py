"""`Population.fit(rows=…)`: each member trains on its own rows of one X, as alone on a copy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from backprop_gpu import SGD, Checkpoint, EarlyStopping, Network, Population, schedules
from backprop_gpu.training import RowsAtOnce

N = 30
SIZES = [3, 5, 2]


def problem(classes: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, 3))
    return X, (X[:, 0] > 0).astype(int) if classes else rng.uniform(0.1, 0.9, (N, 2))


RNG = np.random.default_rng(1)
#: A fold, a bootstrap longer than X, the steps of a learning curve, a mask, one row.
ROWS = [
    np.delete(np.arange(N), np.s_[::3]),
    RNG.integers(0, N, 41),
    RNG.permutation(N)[:9],
    np.arange(N) % 2 == 0,
    [4],
    RNG.integers(0, N, 41).astype(np.uint8),
]
EACH: dict[str, Any] = {
    "epochs": [3, 1, 4, 2, 3, 2],
    "batch_size": [4, 11, 4, 3, 1, 11],
    "learning_rate": [0.1, 0.5, schedules.ExponentialDecay(0.1, 0.5), 0.01, 0.2, 0.5],
    "optimizer": ["sgd", "adam", "sgd", SGD(momentum=0.8, l2=0.1), "adamw", "adam"],
}


def population(members: int = len(ROWS), **settings: Any) -> Population:
    return Population(SIZES, members=members, **({"backend": "numpy", "seed": 5} | settings))


def flat(net: Network) -> np.ndarray:
    return np.concatenate([array.ravel() for array in (*net.weights, *net.biases)])


def assert_as_alone(members: Population, X: Any, Y: Any, rows: Any, **settings: Any) -> None:
    options = {k: settings.pop(k) for k in ("dtype", "backend") if k in settings}
    for i, member in enumerate(members):
        alone = Network(SIZES, **({"backend": "numpy"} | options), seed=5 + i)
        numbers = np.asarray(rows[i])
        alone.fit(
            X[numbers], Y[numbers],
            **{k: v[i] if isinstance(v, list) else v for k, v in settings.items()},
        )  # fmt: skip
        assert alone.plan.engine == member.plan.engine
        np.testing.assert_array_equal(flat(member), flat(alone), f"member {i}")
        for name in ("loss", "val_loss", "val_accuracy"):
            assert getattr(member.history, name) == getattr(alone.history, name)
        assert member.history.restored == alone.history.restored
        states = [copy.deepcopy(net.generator).random() for net in (member, alone)]
        assert states[0] == states[1]


@pytest.mark.parametrize(
    ("backend", "engine"),
    [
        ("numpy", "layered"),
        ("numpy", "resident"),
        pytest.param("cuda", "layered", marks=pytest.mark.gpu),
        pytest.param("cuda", "resident", marks=pytest.mark.gpu),
        pytest.param("cuda", "fused", marks=pytest.mark.gpu),
        pytest.param("cuda", "persistent", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_members_train_as_alone(backend: str, engine: str, dtype: str) -> None:
    if dtype == "float64" and engine in ("fused", "persistent"):
        return  # which compute in float32
    X, y = problem()
    settings = EACH | {"engine": engine, "validation_data": (X[:6], y[:6])}
    members = population(dtype=dtype, backend=backend)
    members.fit(X, y, rows=ROWS, **settings)
    assert members.plan.engine == engine
    assert_as_alone(members, X, y, ROWS, dtype=dtype, backend=backend, **settings)
    assert len({flat(member).tobytes() for member in members}) == len(ROWS)


def test_targets_that_are_numbers_and_an_x_of_bytes() -> None:
    X, Y = problem(classes=False)
    X = (X * 40 + 120).astype(np.uint8)
    members = population()
    members.fit(X, Y, rows=ROWS, **EACH)
    assert_as_alone(members, X, Y, ROWS, **EACH)


def test_all_members_read_one_x(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = (np.ascontiguousarray(a, np.float32) for a in problem(classes=False))
    read = []
    run = RowsAtOnce.run_members

    def watched(self: Any, *arguments: Any) -> Any:
        read.append(self.X)
        return run(self, *arguments)

    monkeypatch.setattr(RowsAtOnce, "run_members", watched)
    population().fit(X, y, rows=ROWS, **EACH)
    assert len(read) == 4
    assert all(np.shares_memory(each, X) for each in read)


def test_early_stopping_is_each_members_own() -> None:
    X, y = problem()
    settings = {
        "epochs": 40, "batch_size": 4, "learning_rate": 2.0, "validation_data": (X[:8], y[:8]),
        "callbacks": (EarlyStopping(patience=2),),
    }  # fmt: skip
    rows = [ROWS[i] for i in (0, 1, 2)]
    members = population(3)
    histories = members.fit(X, y, rows=rows, **settings)
    assert len({len(history) for history in histories}) > 1
    assert_as_alone(members, X, y, rows, **settings)


def test_a_member_that_fails_leaves_the_others() -> None:
    X, Y = problem(classes=False)
    X[29] = 1e18
    rows = [range(29), range(30), range(10, 29)]
    settings = {"epochs": 3, "batch_size": 5, "learning_rate": [0.1, 1e38, 0.1]}
    members = Population([3, 2], members=3, activation="identity", seed=5, backend="numpy")
    with pytest.warns(RuntimeWarning, match="member 1"):
        members.fit(X, Y, rows=rows, **settings)
    assert list(members.failed) == [1]
    for i in (0, 2):
        alone = Network([3, 2], activation="identity", seed=5 + i, backend="numpy")
        alone.fit(X[rows[i]], Y[rows[i]], epochs=3, batch_size=5, learning_rate=0.1)
        np.testing.assert_array_equal(flat(members.members[i]), flat(alone))


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_resumed(tmp_path: Path, engine: str) -> None:
    X, y = problem()
    settings = EACH | {"engine": engine}
    whole = population()
    whole.fit(X, y, rows=ROWS, **settings)
    path = tmp_path / "half.safetensors"
    half = population()
    short = settings | {"epochs": [2, 1, 2, 1, 2, 1]}
    half.fit(X, y, rows=ROWS, callbacks=[Checkpoint(path)], **short)
    rest = population()
    rest.fit(X, y, rows=ROWS, callbacks=[Checkpoint(path)], resume_from=path, **settings)
    for a, b in zip(whole, rest, strict=True):
        np.testing.assert_array_equal(flat(a), flat(b))
        assert a.history.loss == b.history.loss
    others = [*ROWS[:-1], ROWS[-1][::-1]]
    for rows in (None, others):
        kept = settings | ({} if rows else {"epochs": 4})
        with pytest.raises(ValueError, match=r"another checksum of its rows"):
            population().fit(X, y, rows=rows, resume_from=path, **kept)


def test_on_a_cluster() -> None:
    X, y = problem()
    here = population()
    here.fit(X, y, rows=ROWS, **EACH, engine="resident")
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0",
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        there = population()
        there.fit(X, y, rows=ROWS, **EACH, engine="resident", client=client)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(flat(a), flat(b))


GOOD: dict[str, Any] = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("rows", "kind", "match"),
    [
        ([[0, 1]], ValueError, r"rows has 1 entries for 2 members"),
        ([[0, 1]] * 3, ValueError, r"rows has 3 entries for 2 members"),
        ([[0, 1], [0, N]], ValueError, rf"rows\[1\] names row {N}, and X has rows 0 to {N - 1}"),
        ([[0, 1], [0, -1]], ValueError, r"rows\[1\] names row -1"),
        ([[0, 1], []], ValueError, r"rows\[1\] is empty"),
        ([[0, 1], np.zeros(N, bool)], ValueError, r"rows\[1\] is empty"),
        ([[0, 1], np.ones(5, bool)], ValueError, r"rows\[1\] is a mask of 5 rows, and X has 30"),
        ([[0, 1], [0.0, 1.0]], TypeError, r"rows\[1\] must be whole numbers .* float64"),
        ([[0, 1], ["a", "b"]], TypeError, r"rows\[1\] must be whole numbers"),
        ([[0, 1], [None, 1]], TypeError, r"rows\[1\] must be whole numbers"),
        ([[0, 1], [[0, 1]]], ValueError, r"rows\[1\] must be numbers of rows, \(k,\), got shape"),
        ([[0, 1], 3], ValueError, r"rows\[1\] must be numbers of rows, \(k,\), got shape \(\)"),
        ([[0, 1], None], ValueError, r"rows\[1\] must be numbers of rows"),
        ([[0, 1], np.array([2**63, 1], np.uint64)], ValueError, r"rows\[1\] names row 92233720"),
        ([[0, 1], [5]], ValueError, r"batch_size must be in \[1, 1\], as many as rows\[1\] has"),
        ({0: [0, 1], 1: [0, 1]}, TypeError, "rows must be a sequence"),
        ({(0, 1), (1, 2)}, TypeError, "rows must be a sequence"),
        ("ab", TypeError, "rows must be a sequence"),
        (3, TypeError, "rows must be a sequence"),
        (np.array([0, 1]), ValueError, r"rows\[0\] must be numbers of rows"),
    ],
)  # fmt: skip
def test_rows_that_are_refused(rows: Any, kind: type[Exception], match: str) -> None:
    members = population(2)
    before = [flat(member) for member in members]
    with pytest.raises(kind, match=match):
        members.fit(*problem(), rows=rows, **GOOD)
    for member, weights in zip(members, before, strict=True):
        np.testing.assert_array_equal(flat(member), weights)
        assert member.history is None


def test_rows_in_one_array_or_of_one_object() -> None:
    X, y = problem()
    rows = np.arange(20).reshape(2, 10)
    shared = rows[0]
    for given in (rows, rows.tolist(), (rows[0], rows[1]), [shared, shared]):
        members = population(2)
        members.fit(X, y, rows=given, **GOOD)
        assert_as_alone(members, X, y, given, **GOOD)


def test_batch_sizes_up_to_each_members_rows() -> None:
    X, y = problem()
    settings = GOOD | {"batch_size": [2, 45]}
    rows = [[0, 1], np.arange(45) % N]
    members = population(2)
    members.fit(X, y, rows=rows, **settings)
    assert_as_alone(members, X, y, rows, **settings)


def test_a_schedule_is_tried_over_each_members_steps() -> None:
    """Before anything changes: an epoch of the second member is longer."""
    X, y = problem()
    members = population(2)
    before = flat(members.members[0])
    with pytest.raises(ValueError, match="learning_rate"):
        members.fit(
            X, y, rows=[[0, 1], np.arange(20)], epochs=2, batch_size=2,
            learning_rate=lambda t: np.where(t % 1 > 0.6, -1.0, 0.1),
        )  # fmt: skip
    np.testing.assert_array_equal(flat(members.members[0]), before)
    assert members.members[0].history is None
