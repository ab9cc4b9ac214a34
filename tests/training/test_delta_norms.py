"""`DeltaNorms` records what the equations give, on every engine, for each network that trains."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Callback, Checkpoint, DeltaNorms, Network, Population, sweep
from backprop_gpu.training.cluster import Cluster
from small_training import skip_without

RNG = np.random.default_rng(1)
X = RNG.normal(size=(50, 5)).astype("f4")
Y = (X[:, 0] > 0).astype(int)
SIZES = [5, 7, 6, 2]
FIT: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 0.5}


class Weights(Callback):
    """Keeps the weights after each epoch."""

    def on_fit_start(self, network: Any) -> None:
        self.kept: list[Network] = []

    def on_epoch_end(self, network: Any, history: Any) -> None:
        self.kept.append(copy.copy(network))


def expected(networks: list[Network], X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """√(mean of δ²) by epoch and layer, from the gradients of single rows in float64."""
    norms = []
    for net in networks:
        double = Network(net.sizes, activation=net.activations, cost=net.cost, dtype="float64")
        double.weights, double.biases = net.weights, net.biases
        deltas = [b for _, b in double.gradients(X, Y, per_sample=True)]
        norms.append([np.sqrt(np.mean(delta**2)) for delta in deltas])
    return np.array(norms)


def network(backend: str = "numpy", **options: Any) -> Network:
    return Network(SIZES, seed=2, backend=backend, **options)


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_they_are_those_of_the_equations(backend: str, engine: str) -> None:
    skip_without(backend)
    net, norms, weights = network(backend), DeltaNorms(rows=20), Weights()
    if backend == "numba_cuda" and engine == "resident":
        with pytest.raises(ValueError, match="cannot run this"):
            net.fit(X, Y, engine=engine, callbacks=[norms], **FIT)
        return
    net.fit(X, Y, engine=engine, callbacks=[norms, weights], **FIT)
    assert net.plan.engine == engine
    assert norms.norms.shape == (3, 3)
    np.testing.assert_allclose(norms.norms, expected(weights.kept, X[:20], Y[:20]), rtol=2e-5)


def test_training_is_the_same_without() -> None:
    plain, watched = network(), network()
    plain.fit(X, Y, **FIT)
    watched.fit(X, Y, callbacks=[DeltaNorms()], **FIT)
    for a, b in zip(plain.weights, watched.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_samples_of_ones_own() -> None:
    norms, weights = DeltaNorms(X[30:].tolist(), Y[30:], rows=7), Weights()
    network().fit(X[:30], Y[:30], callbacks=[norms, weights], **FIT)
    np.testing.assert_allclose(norms.norms, expected(weights.kept, X[30:37], Y[30:37]), rtol=2e-5)
    batches = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    network().fit(batches=batches, callbacks=[norms], **FIT)
    assert norms.norms.shape == (3, 3)


def test_rows_that_stay_on_a_disk_and_rows_of_bytes(tmp_path: Path) -> None:
    numbers = RNG.integers(0, 255, (50, 5), np.uint8)
    np.save(tmp_path / "x.npy", numbers)
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    for rows in (numbers, stored):
        norms, weights = DeltaNorms(rows=9), Weights()
        network().fit(rows, Y, callbacks=[norms, weights], **FIT)
        np.testing.assert_allclose(
            norms.norms, expected(weights.kept, numbers[:9], Y[:9]), rtol=1e-4
        )


def test_they_do_not_keep_all_rows_in_memory() -> None:
    norms, rows = DeltaNorms(rows=4), np.ascontiguousarray(X)
    network().fit(rows, Y, callbacks=[norms], **FIT)
    for samples in norms._samples.values():  # noqa: SLF001
        assert all(each.base is None and len(each) == 4 for each in samples)


def test_deep_networks_of_sigmoids_vanish_below_what_float32_can_square() -> None:
    net = Network([5] + [8] * 32 + [2], seed=0, backend="numpy")
    norms = DeltaNorms()
    net.fit(X, Y, callbacks=[norms], **FIT)
    assert (norms.norms > 0).all()
    assert norms.norms[0, 0] < 1e-23  # whose square is 0
    assert (np.diff(np.log(norms.norms[-1])) > 0).all()


def test_each_member_has_its_own() -> None:
    population = Population(SIZES, members=3, seed=2, backend="numpy")
    norms = DeltaNorms()
    rates = [0.1, 0.5, 2.0]
    population.fit(X, Y, callbacks=[norms], **FIT | {"learning_rate": rates, "epochs": [3, 3, 2]})
    for i, (member, rate) in enumerate(zip(population.members, rates, strict=True)):
        alone = DeltaNorms()
        net = Network(SIZES, seed=2 + i, backend="numpy")
        epochs = 2 if i == 2 else 3
        net.fit(X, Y, callbacks=[alone], **FIT | {"learning_rate": rate, "epochs": epochs})
        np.testing.assert_array_equal(norms.of(member).norms, alone.norms)
    assert norms.norms.shape == (0, 0)
    with pytest.raises(ValueError, match="none of the networks"):
        norms.of(net)


def test_networks_of_a_sweep_have_their_own_whatever_their_shape() -> None:
    norms = DeltaNorms()
    grid = {"sizes": [[5, 3, 2], [5, 4, 4, 3]], "dtype": ["float32", "float64"]}
    found = sweep(X, Y, grid=grid, callbacks=[norms], seed=1, progress=False, **FIT)
    shapes = [norms.of(each).norms.shape for each in found.networks]
    assert shapes == [(3, 2), (3, 2), (3, 3), (3, 3)]


def test_trials_of_different_shapes() -> None:
    pytest.importorskip("optuna", reason="the extra optuna is not installed")
    norms = DeltaNorms()
    grid = {"sizes": [[5, 3, 2], [5, 4, 4, 3]], "dtype": ["float32", "float64"]}
    found = sweep(X, Y, grid=grid, callbacks=[norms], seed=1, progress=False, trials=6, **FIT)
    for each in found.networks:
        assert norms.of(each).norms.shape == (3, len(each.sizes) - 1)


def test_a_training_that_goes_on_has_all_epochs(tmp_path: Path) -> None:
    whole, path = DeltaNorms(), tmp_path / "c.safetensors"
    network().fit(X, Y, callbacks=[whole], **FIT)
    network().fit(X, Y, callbacks=[DeltaNorms(), Checkpoint(path)], **FIT | {"epochs": 2})
    rest = DeltaNorms()
    network().fit(X, Y, callbacks=[rest, Checkpoint(path)], resume_from=path, **FIT)
    np.testing.assert_array_equal(rest.norms, whole.norms)


@pytest.mark.parametrize(
    "state", [{}, {"norms": 1.0}, {"norms": np.ones((2, 4))}, {"norms": np.ones((2, 3), "f4")}]
)
def test_a_state_that_cannot_be(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be of shape \(epochs, 3\)"):
        DeltaNorms().on_resume(network(), state)


def test_a_second_fit_starts_afresh_and_a_pickle_has_the_norms() -> None:
    net, norms = network(), DeltaNorms()
    net.fit(X, Y, callbacks=[norms], **FIT)
    first = norms.norms
    net.fit(X, Y, callbacks=[norms], **FIT)
    assert norms.norms.shape == (3, 3)
    assert not np.array_equal(norms.norms, first)
    for twin in (pickle.loads(pickle.dumps(norms)), copy.deepcopy(norms)):
        np.testing.assert_array_equal(twin.norms, norms.norms)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"X": X}, TypeError, "Y is missing"),
        ({"Y": Y}, TypeError, "X is missing"),
        ({"rows": 0}, ValueError, "rows"),
        ({"rows": 1.5}, TypeError, "rows"),
    ],
)
def test_arguments_that_cannot_be(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        DeltaNorms(**arguments)


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    net = network()
    before = net.weights
    for norms, options, message in (
        (DeltaNorms(X[:, :3], Y), {"X": X, "Y": Y}, "X"),
        (DeltaNorms(X, Y[:3]), {"X": X, "Y": Y}, "Y"),
        (DeltaNorms(X * np.nan, Y), {"X": X, "Y": Y}, "NaN"),
        (DeltaNorms(), {"batches": [(X, Y)]}, r"needs samples, DeltaNorms\(X, Y\)"),
    ):
        with pytest.raises(ValueError, match=message):
            net.fit(**options, callbacks=[norms], **FIT)
    assert net.history is None
    for a, b in zip(before, net.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_workers_of_a_cluster_would_keep_them() -> None:
    cluster = object.__new__(Cluster)
    with pytest.raises(ValueError, match="no DeltaNorms"):
        cluster.check_hooks([DeltaNorms()])


def test_callbacks_may_look_at_the_rows_first() -> None:
    seen: list[Any] = []

    class Looks(Callback):
        def check_rows(self, model: Any, first: Any) -> None:
            seen.append((model.sizes, None if first is None else first(3)))

    network().fit(X, Y, callbacks=[Looks()], **FIT)
    sizes, (x, y) = seen[0]
    assert sizes == tuple(SIZES)
    np.testing.assert_array_equal(x, X[:3])
    assert len(y) == 3
    network().fit(batches=[(X, Y)], callbacks=[Looks()], **FIT)
    assert seen[1][1] is None


def test_norms_are_found_by_the_network() -> None:
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(40, 4)), np.arange(40) % 3
    how: dict[str, Any] = {"epochs": 2, "batch_size": 10, "learning_rate": 0.5}
    norms, net = DeltaNorms(), Network([4, 5, 3], seed=0, backend="numpy")
    net.fit(X, y, callbacks=[norms], **how)
    assert norms.of(net) is norms
    with pytest.raises(ValueError, match="none of the networks"):
        norms.of(Network([4, 5, 3], seed=0, backend="numpy"))
    with pytest.raises(TypeError, match="network must be a Network, got 3"):
        norms.of(3)
    of_members = DeltaNorms()
    population = Population([4, 5, 3], members=2, seed=0, backend="numpy")
    population.fit(X, y, callbacks=[of_members], **how)
    with pytest.raises(ValueError, match=r"of\(network\)\.plot"):
        of_members.plot()
    assert of_members.of(population.members[1]).norms.shape == (2, 2)
