"""What the benchmark compares: every peer trains the same, and the counts are right."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from backprop_gpu.benchmarks.peers import DeviceType, PeerTrainer
from backprop_gpu.benchmarks.peers.agreement import BOUND, bound, disagreement
from backprop_gpu.benchmarks.peers.plain_numpy import PlainNumPy, PlainTrainer
from backprop_gpu.benchmarks.peers.registry import DROP_INS, PEERS, get
from backprop_gpu.benchmarks.workloads import WORKLOADS, Arrays, ProblemInstance, Workload, problem
from machine import ROOT

NIELSEN, CLASSIC = (WORKLOADS[name][0] for name in ("nielsen", "classic"))
#: With fewer rows: a stand-in's tensor cores are slow.
TABULAR = replace(WORKLOADS["tabular"][0], batch=32)
POPULATION = next(load for load in WORKLOADS["population"] if load.members == 8)

each_peer = pytest.mark.parametrize("name", [*PEERS, *DROP_INS])
each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)


def by_name(workload: Workload) -> str:
    return workload.name


def skip_where_absent(name: str, workload: Workload, device: DeviceType) -> None:
    reason = get(name).obstacle(workload, device)
    if reason is not None:
        pytest.skip(f"{get(name).label} on {device}: {reason}")


# -- agreement -----------------------------------------------------------------------


@each_device
@each_peer
@pytest.mark.parametrize("workload", [NIELSEN, CLASSIC, TABULAR, POPULATION], ids=by_name)
def test_every_peer_trains_the_same(workload: Workload, name: str, device: DeviceType) -> None:
    """`BOUND` is above what float32 leaves, 1e-6 of the change, and below what TF32 does, 3e-4."""
    skip_where_absent(name, workload, device)
    assert disagreement(get(name), workload, device) < bound(get(name))


@each_device
@each_peer
def test_a_second_run_goes_on_where_the_first_ended(name: str, device: DeviceType) -> None:
    skip_where_absent(name, POPULATION, device)
    load = replace(POPULATION, members=2)
    short = problem(load, steps=4)
    twice = get(name).start(short, device)
    twice.run()
    twice.run()
    once = get(name).start(replace(short, order=np.tile(short.order, (2, 1))), device)
    once.run()
    for got, expected in zip(twice.parameters(), once.parameters(), strict=True):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_ours_on_a_device() -> None:
    for members in (1, 3):
        load = Workload("small", (20, 9, 5), 10, classes=True, members=members)
        assert disagreement(PEERS["ours"], load, "cuda") < BOUND


class Broken(PlainNumPy):
    """A peer that does something else in every step."""

    def __init__(self, trainer: type[PlainTrainer]) -> None:
        self.trainer = trainer

    def start(self, problem: ProblemInstance, device: DeviceType) -> PeerTrainer:
        return self.trainer(problem, np)


class CoarseRows(PlainTrainer):
    """x with the 10 bits of TF32."""

    def step(self, x: np.ndarray, y: np.ndarray) -> None:
        coarse = (x.view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)
        super().step(coarse.view(np.float32), y)


class NoLastBias(PlainTrainer):
    def step(self, x: np.ndarray, y: np.ndarray) -> None:
        kept = self.biases[-1].copy()
        super().step(x, y)
        self.biases[-1][:] = kept


class NaNs(PlainTrainer):
    def step(self, x: np.ndarray, y: np.ndarray) -> None:
        self.weights[0][0, 0] = np.nan


class Flat(PlainTrainer):
    def parameters(self) -> tuple[Arrays, Arrays]:
        weights, biases = super().parameters()
        return [w[0] for w in weights], biases


@pytest.mark.parametrize("workload", [NIELSEN, CLASSIC], ids=by_name)
@pytest.mark.parametrize("trainer", [CoarseRows, NoLastBias, NaNs])
def test_what_trains_something_else_disagrees(
    workload: Workload, trainer: type[PlainTrainer]
) -> None:
    error = disagreement(Broken(trainer), workload, "cpu")
    assert error > BOUND
    assert not np.isnan(error)


def test_parameters_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="plain NumPy: "):
        disagreement(Broken(Flat), NIELSEN, "cpu")


# -- the registry --------------------------------------------------------------------


def test_peers_by_name() -> None:
    assert [peer.name for peer in PEERS.values()] == list(PEERS)
    assert get("numpy") is PEERS["numpy"]
    assert get("ours.torch") is DROP_INS["ours.torch"]
    with pytest.raises(ValueError, match=r"unknown peer 'keras'; known: ours, numpy, .*, cupy"):
        get("keras")


def test_importing_the_peers_imports_no_library() -> None:
    code = (
        "import sys\n"
        "from backprop_gpu.benchmarks.peers import agreement, registry\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    root = ROOT
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "backprop_gpu" in out
    assert not {"torch", "jax", "sklearn", "cupy", "numba"} & set(out)


# -- workloads -----------------------------------------------------------------------


def test_counts_of_nielsens_network_by_hand() -> None:
    assert NIELSEN.weights == 784 * 30 + 30 * 10
    assert NIELSEN.parameters == 23_820 + 40
    # forward 2·10·23,820; BP4 as many; BP2 2·10·300
    assert NIELSEN.flops == 476_400 + 476_400 + 6_000
    rows, parameters = 4 * 10 * (784 + 10), 4 * 23_860
    assert NIELSEN.least_bytes(on_chip=parameters) == rows
    assert NIELSEN.least_bytes(on_chip=parameters - 1) == rows + 2 * parameters
    assert POPULATION.flops == 8 * NIELSEN.flops
    # One by one, each stays on the chip as long as it trains; one that does not fit never does.
    assert POPULATION.least_bytes(on_chip=parameters) == 8 * rows
    assert POPULATION.least_bytes(on_chip=parameters - 1) == 8 * (rows + 2 * parameters)


@pytest.mark.parametrize("load", [TABULAR, POPULATION], ids=by_name)
def test_a_problem_holds_what_its_workload_says(load: Workload) -> None:
    given = problem(load, steps=12)
    assert given.order.shape == (12, load.batch)
    assert given.steps == 12
    whole = given.order.ravel()[: len(given.X)]
    assert sorted(whole) == list(range(len(given.X)))  # all rows before any comes again
    for w, b, k, n in zip(given.weights, given.biases, load.sizes, load.sizes[1:], strict=False):
        assert w.shape == (load.members, n, k)
        assert b.shape == (load.members, n)
    for array in (given.X, given.Y, *given.weights, *given.biases):
        assert array.dtype == np.float32
