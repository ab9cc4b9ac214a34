"""Data and networks at the edges of what the CPU's compiled engine takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import SGD, Network, planning
from backprop_gpu.engines import Hyperparameters, Member
from backprop_gpu.parameters import Parameters

FIT: dict[str, Any] = {"epochs": 2, "learning_rate": 0.05}


def both(X: np.ndarray, Y: np.ndarray, sizes: tuple[int, ...], batch: int, **options: Any) -> None:
    """Layered and resident train to the same numbers, and read the same."""
    results = []
    for engine in ("layered", "resident"):
        net = Network(sizes, backend="numpy", dtype="float64", seed=3, **options)
        net.fit(X, Y, batch_size=batch, engine=engine, **FIT)
        assert net.plan.engine == engine
        results.append([*net.weights, *net.biases, net.predict(X)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "sizes", "batch"),
    [
        (1, (3, 4, 2), 1),
        (1, (1, 1), 1),
        (9, (1, 1, 1, 1), 4),
        (9, (5, 1, 3), 1),
        (7, (3, *[5] * 50, 2), 3),
        (3, (2, 40_000, 1), 2),
        (3, (40_000, 2), 2),
        (2, (2, 40_000), 2),
    ],
)
def test_few_rows_and_narrow_wide_and_deep_layers(
    rows: int, sizes: tuple[int, ...], batch: int
) -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((rows, sizes[0])), rng.uniform(0.1, 0.9, (rows, sizes[-1]))
    both(X, Y, sizes, batch, activation=["tanh"] * (len(sizes) - 2) + ["sigmoid"])


def test_no_rows_are_refused() -> None:
    net = Network([3, 2], backend="numpy", seed=0)
    with pytest.raises(ValueError, match="X is empty"):
        net.fit(np.ones((0, 3)), np.ones((0, 2)), batch_size=1, engine="resident", **FIT)
    with pytest.raises(ValueError, match="X is empty"):
        net.predict(np.ones((0, 3)))


def test_a_batch_of_more_than_all_rows_is_refused() -> None:
    net = Network([3, 2], backend="numpy", seed=0)
    with pytest.raises(ValueError, match=r"batch_size must be in \[1, 5\], got 6"):
        net.fit(np.ones((5, 3)), np.ones((5, 2)), batch_size=6, engine="resident", **FIT)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("form", ["fortran", "strided", "reversed", "read-only", "unaligned"])
def test_X_may_lie_in_memory_in_any_way(form: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    plain = rng.integers(0, 9, (50, 7)).astype(dtype)
    given = plain.copy()
    if form == "fortran":
        given = np.asfortranarray(plain)
    elif form == "strided":
        given = np.repeat(np.repeat(plain, 2, axis=0), 3, axis=1)[::2, ::3]
    elif form == "reversed":
        given = np.ascontiguousarray(plain[::-1, ::-1])[::-1, ::-1]
    elif form == "unaligned":
        raw = np.frombuffer(b"x" + plain.tobytes(), np.uint8)[1:]
        given = raw.view(dtype).reshape(plain.shape)
    if form == "read-only":
        given.flags.writeable = False
    results = []
    for X in (plain, given):
        net = Network([7, 20, 3], backend="numpy", seed=0)
        net.fit(X, np.arange(50) % 3, batch_size=8, engine="resident", **FIT)
        results.append([*net.weights, net.predict(X)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(other, one)
    np.testing.assert_array_equal(given, plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_and_nothing_is_changed(bad: float) -> None:
    X = np.ones((6, 3), np.float32)
    X[4, 1] = bad
    net = Network([3, 4, 2], backend="numpy", seed=0)
    before = net.weights
    with pytest.raises(ValueError, match=r"X contains NaN or infinity, first at index \(4, 1\)"):
        net.fit(X, np.zeros(6, int), batch_size=2, engine="resident", **FIT)
    for one, other in zip(net.weights, before, strict=True):
        np.testing.assert_array_equal(one, other)


def member_of(net: Network, order: np.ndarray, batch: int) -> Member:
    steps = -(-len(order) // batch)
    settings = Hyperparameters(batch, SGD(), SGD().coefficients(np.full(steps, 0.1), 0))
    parameters = Parameters(net.model.layout, net.model.read(net.parameters))
    return Member(parameters, (), order, settings)


@pytest.mark.skipif(sys.platform != "linux", reason="files with holes are asked of Linux")
@pytest.mark.parametrize(
    ("dtype", "works"),
    [
        ("uint8", "rows copied"),
        ("float32", "rows copied"),
        ("float32", "rows in place"),
        ("float32", "by inputs"),
    ],
)
def test_rows_beyond_two_to_the_31_numbers(
    dtype: str, works: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that is all hole but for its last rows: hardly any memory."""
    width, count, last = 64, 10, 2**31 // 64 + 10
    work = planning.CpuWork(2, 2, works != "rows copied", works == "by inputs")
    monkeypatch.setattr(planning.plan, "cpu_work", lambda *_: work)
    X = np.memmap(tmp_path / "X", dtype, "w+", shape=(last + 1, width))
    rows = np.arange(last - count, last)
    small = np.random.default_rng(0).integers(0, 3, (count, width)).astype(dtype)
    X[rows] = small
    Y = np.zeros((last + 1, 3), np.float32)  # pages of zeros, which nobody writes
    net = Network([width, 20, 3], backend="numpy", seed=0)
    run = planning.Run(count, 1, 5, "resident", bytes=dtype == "uint8")
    engine = net.model.engine(net.model.plan(run))
    far, near = member_of(net, rows, 5), member_of(net, np.arange(count), 5)
    costs = engine.run_epoch(far, X, Y)
    np.testing.assert_array_equal(costs, engine.run_epoch(near, small, Y[:count]))
    np.testing.assert_array_equal(far.parameters.flat, near.parameters.flat)
    engine.release()
