"""Several threads at one object: who reads gets what one thread gets, and one at a time trains."""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from backprop_gpu import (
    Activation,
    Callback,
    MLPClassifier,
    Network,
    Population,
    activations,
    equations,
    threads,
)
from backprop_gpu.nielsen import network2

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

READERS = 4
#: Of different sizes, so that scratch memory of one shape does not always serve for all.
ROWS = (64, 61, 300)


@pytest.fixture(autouse=True)
def switches_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def problem(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((rows, 12)).astype(np.float32), rng.integers(0, 5, rows)


def same(got: Any, expected: Any) -> bool:
    if isinstance(expected, (list, tuple)):
        return all(same(g, e) for g, e in zip(got, expected, strict=True))
    return np.array_equal(got, expected)


def count_differing(reads: Sequence[Callable[[], Any]], calls: int) -> int:
    """Of so many calls by each of several threads, those that differ from one thread's."""
    expected = [read() for read in reads]

    def work(thread: int) -> int:
        rng = np.random.default_rng(thread)
        return sum(not same(reads[i](), expected[i]) for i in rng.integers(0, len(reads), calls))

    with ThreadPoolExecutor(READERS) as pool:
        return sum(pool.map(work, range(READERS)))


def reads_of(net: Any) -> list[Callable[[], Any]]:
    X, y = problem()
    found: list[Callable[[], Any]] = []
    for m in ROWS:
        found += [
            partial(net.predict, X[:m]),
            partial(net.loss, X[:m], y[:m]),
            partial(net.accuracy, X[:m], y[:m]),
        ]
        if hasattr(net, "gradients"):
            found.append(partial(net.gradients, X[:m], y[:m]))
    return found


# gelu and silu keep z and use both scratch arrays, softmax works on rows; the pair that does not
# collapse has a gradient of its cost.
@pytest.mark.parametrize("sigma", ["gelu", "silu", "sigmoid"])
def test_one_network_read_by_many(backend: str, sigma: str) -> None:
    calls = 10 if backend != "numpy" else 300
    net = Network(
        [12, 40, 30, 5], activation=[sigma, sigma, "softmax"], cost="quadratic", backend=backend,
        seed=1,
    )  # fmt: skip
    assert count_differing(reads_of(net), calls) == 0


def test_one_population_read_by_many() -> None:
    population = Population([12, 40, 5], members=3, activation="gelu", backend="numpy", seed=1)
    X, _ = problem()
    combined = [partial(population.predict, X, combine) for combine in ("mean", "vote")]
    others = [read for member in population for read in reads_of(member)]
    assert count_differing([*reads_of(population), *combined, *others], 200) == 0


def test_reading_leaves_a_training_alone() -> None:
    """Readers of other sizes come and go while it trains, in its callbacks and beside it."""
    X, y = problem()
    options: dict[str, Any] = {"epochs": 60, "batch_size": 64, "learning_rate": 0.1}

    def trained(watched: bool) -> Network:
        net = Network([12, 40, 5], activation="gelu", backend="numpy", seed=2)
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                net.predict(X[:64])
                net.gradients(X[:64], y[:64])

        others = [threading.Thread(target=read) for _ in range(READERS if watched else 0)]
        for other in others:
            other.start()
        callbacks = [lambda net, _: bool(net.loss(X, y) < 0)] if watched else []
        try:
            net.fit(X, y, callbacks=callbacks, engine="layered", **options)
        finally:
            stop.set()
            for other in others:
                other.join()
        return net

    alone, watched = trained(False), trained(True)
    assert same(alone.weights, watched.weights)


def test_one_estimator_read_by_many(registries: None) -> None:
    X, y = problem()
    for backend in ("numpy", "auto"):
        fitted = MLPClassifier((20,), activation="gelu", max_iter=3, random_state=0)
        fitted.set_params(backend=backend).fit(X, y)
        assert count_differing(
            [partial(fitted.predict_proba, X[:m]) for m in ROWS]
            + [partial(fitted.transform, X), partial(fitted.score, X, y)],
            100,
        ) == 0  # fmt: skip


def test_an_estimators_network_is_made_for_each_call() -> None:
    """What a device would predict with is not what another thread assigns meanwhile."""
    X, y = problem()
    fitted = MLPClassifier((20,), max_iter=3, random_state=0, backend="numpy").fit(X, y)
    model = fitted._model("numpy")  # noqa: SLF001
    first = fitted._parameters(model)  # noqa: SLF001
    before = model.read(first)
    fitted.coefs_ = [2 * w for w in fitted.coefs_]
    assert fitted._model("numpy") is model  # noqa: SLF001
    np.testing.assert_array_equal(model.read(first), before)
    assert not np.array_equal(model.read(fitted._parameters(model)), before)  # noqa: SLF001


def test_one_of_nielsens_networks_read_by_many() -> None:
    rng = np.random.default_rng(0)
    net = network2.Network([6, 8, 3])
    data = [(rng.random((6, 1)), int(label)) for label in rng.integers(0, 3, 50)]
    few = data[:17]
    assert count_differing(
        [lambda: net.accuracy(data), lambda: net.accuracy(few), lambda: net.feedforward(data[0][0]),
         lambda: net.total_cost(few, 0.1, convert=True)], 100,
    ) == 0  # fmt: skip


def test_equations_by_many() -> None:
    X, _ = problem()
    w = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)
    b = np.zeros(5, np.float32)
    reads = [partial(equations.forward, w, b, X[:m], "gelu") for m in ROWS]
    assert count_differing(reads, 200) == 0


# -- one training at a time --------------------------------------------------------------------


class Waits(Callback):
    """Holds a training in its first epoch until it may go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def on_epoch_end(self, network: Network, history: Any) -> None:
        self.begun.set()
        assert self.go_on.wait(60)

    def for_member(self, network: Network) -> Callback:
        return self


FIT: dict[str, Any] = {"epochs": 2, "batch_size": 32, "learning_rate": 0.1}


def test_a_second_training_is_refused_at_once() -> None:
    X, y = problem()
    net = Network([12, 4, 5], backend="numpy", seed=0)
    alone = copy.deepcopy(net)
    waits = Waits()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(net.fit, X, y, callbacks=[waits], **FIT)
        try:
            assert waits.begun.wait(60)
            with pytest.raises(RuntimeError, match="this network is being trained already"):
                net.fit(X, y, **FIT)
            copy.deepcopy(net).fit(X, y, **FIT)
        finally:
            waits.go_on.set()
        history = first.result()
    assert history is net.history
    alone.fit(X, y, **FIT)
    assert same(net.weights, alone.weights)
    net.fit(X, y, **FIT)  # and afterwards it may be trained again


def test_a_member_is_part_of_its_population() -> None:
    X, y = problem()
    population = Population([12, 4, 5], members=2, backend="numpy", seed=0)
    waits = Waits()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(population.fit, X, y, callbacks=[waits], **FIT)
        try:
            assert waits.begun.wait(60)
            with pytest.raises(RuntimeError, match="this population is being"):
                population.fit(X, y, **FIT)
            with pytest.raises(RuntimeError, match="this network is being"):
                population.members[1].fit(X, y, **FIT)
        finally:
            waits.go_on.set()
        first.result()
    population.members[1].fit(X, y, **FIT)


def test_a_fit_within_its_own_callback_is_refused() -> None:
    X, y = problem()
    net = Network([12, 4, 5], backend="numpy", seed=0)
    with pytest.raises(RuntimeError, match="by the call whose callback this is"):
        net.fit(X, y, callbacks=[lambda net, _: net.fit(X, y, **FIT) is None], **FIT)
    assert net.history is not None
    assert len(net.history) == 1  # the outer one's
    net.fit(X, y, **FIT)


def test_members_of_a_population_may_train_beside_each_other() -> None:
    X, y = problem()
    for engine in ("layered", "resident"):
        one, other = (Population([12, 30, 5], members=2, backend="numpy", seed=4) for _ in range(2))
        for member in one:
            member.fit(X, y, engine=engine, **FIT)
        with ThreadPoolExecutor(2) as pool:
            trainings = [pool.submit(net.fit, X, y, engine=engine, **FIT) for net in other]
        assert all(training.result() for training in trainings)
        assert same([m.weights for m in one], [m.weights for m in other])


def test_estimators_and_nielsens_networks_are_trained_by_one() -> None:
    X, y = problem()
    estimator = MLPClassifier((4,), max_iter=2, random_state=0)
    with (
        threads.alone("estimator", estimator),
        pytest.raises(RuntimeError, match="this estimator is being"),
    ):
        estimator.fit(X, y)
    assert not hasattr(estimator, "coefs_")
    net = network2.Network([2, 2])
    data = [(np.zeros((2, 1)), np.zeros((2, 1)))]
    with threads.alone("network", net), pytest.raises(RuntimeError, match="this network is being"):
        net.SGD(data, 1, 1, 0.1)
    estimator.fit(X, y)
    net.SGD(data, 1, 1, 0.1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not on this platform")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_forgets_what_its_parents_threads_train() -> None:
    X, y = problem()
    net = Network([12, 4, 5], backend="numpy", seed=0)
    before = blas_threads()
    with threads.alone("network", net), threads.one_blas_thread:
        child = os.fork()
        if not child:
            code = 1
            try:
                net.fit(X, y, engine="layered", **FIT)
                with threads.one_blas_thread:
                    pass
                code = int(blas_threads() != before)
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0


# -- BLAS ----------------------------------------------------------------------------------------


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threads.blas().info() if info["user_api"] == "blas"}


def test_blas_gets_its_threads_back_however_users_overlap() -> None:
    before = blas_threads()
    if before == {1}:
        pytest.skip("BLAS has one thread here, so none could be lost")
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with threads.one_blas_thread:
            first_in.set()
            assert second_in.wait(60)
        first_out.set()

    def second() -> None:
        assert first_in.wait(60)
        with threads.one_blas_thread:
            second_in.set()
            assert first_out.wait(60)
            assert blas_threads() == {1}  # one still needs it

    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(first), pool.submit(second)]:
                done.result()
        assert blas_threads() == before
        for event in (first_in, second_in, first_out):
            event.clear()


def test_validated_fits_beside_each_other_leave_blas_as_it_was() -> None:
    X, y = problem()
    before = blas_threads()
    nets = [Network([12, 30, 5], backend="numpy", seed=i) for i in range(2)]
    fit = FIT | {"epochs": 30, "validation_data": (X, y), "engine": "resident"}
    with ThreadPoolExecutor(2) as pool:
        trainings = [pool.submit(net.fit, X, y, **fit) for net in nets]
    assert all(training.result() for training in trainings)
    assert blas_threads() == before


# -- outputs that are no numbers -------------------------------------------------------------------


def test_a_row_of_nan_is_of_no_class(registries: None) -> None:
    X = np.zeros((6, 3), np.float32)
    X[2:4] = 3e38
    y = np.zeros(6, int)
    net = Network([3, 4, 2], activation=["relu", "softmax"], backend="numpy", seed=0)
    net.weights, net.biases = [np.ones((4, 3)), np.ones((2, 4))], [np.zeros(4), np.zeros(2)]
    with pytest.warns(RuntimeWarning, match=r"of 2 of 6 rows are NaN, first of row 2: z overflow"):
        outputs = net.predict(X)
    assert np.isnan(outputs[2:4]).all()
    assert net.accuracy(X, y) == pytest.approx(4 / 6)
    population = Population.from_networks([net, net])
    with pytest.warns(RuntimeWarning, match="first of row 2"):
        population.predict(X)
    with pytest.warns(RuntimeWarning, match="first of row 2"):
        population.predict(X, combine="mean")
    np.testing.assert_array_equal(population.predict(X, combine="vote"), [0, 0, -1, -1, 0, 0])
    np.testing.assert_allclose(population.accuracy(X, y), 4 / 6)


def test_one_output_of_nan_is_not_zero(registries: None) -> None:
    odd = activations.register(Activation("odd", lambda z: z * np.nan, lambda z: z * 0))
    net = Network([3, 1], activation=odd.name, backend="numpy", seed=0)
    assert net.accuracy(np.ones((4, 3)), np.zeros(4, int)) == 0.0


def test_threadpoolctls_limits_are_the_librarys() -> None:
    import threadpoolctl

    net = Network([50, 200, 10], seed=0, backend="numpy")
    X, Y = np.zeros((400, 50), "float32"), np.zeros((400, 10), "float32")
    given = threads.cores()
    net.predict(X)  # it is loaded
    others = []
    with threadpoolctl.threadpool_limits(1):
        assert threads.cores() == 1
        net.fit(X, Y, epochs=1, batch_size=200, learning_rate=0.1, engine="resident")
        assert net.plan.work(200).threads == 1
        thread = threading.Thread(target=lambda: others.append(threads.cores()))
        thread.start()
        thread.join()
    assert others == [given]
    assert threads.cores() == given
    with threadpoolctl.threadpool_limits(given + 5):
        assert threads.cores() == given
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert threads.cores() == given


def test_work_that_is_shared_out_comes_back_in_order() -> None:
    started = threading.Barrier(2, timeout=20)

    def work(i: int) -> int:
        if i < 2 and threads.cores() > 1:
            started.wait()  # two threads are at it at once
        return i * i

    assert threads.shared_out(work, range(7)) == [i * i for i in range(7)]
    assert threads.shared_out(work, range(0)) == []
    with threads.at_most(1):
        names = threads.shared_out(lambda i: threading.current_thread().name, range(3))
    assert set(names) == {threading.current_thread().name}

    def fail(i: int) -> None:
        if i == 3:
            raise ValueError("of the third")

    with pytest.raises(ValueError, match="of the third"):
        threads.shared_out(fail, range(5))


def test_derivatives_by_several_threads_at_once() -> None:
    X, y = problem()
    net = Network([12, 8, 5], activation=["tanh", "softmax"], seed=0, backend="numpy")
    v = net.gradients(X, y)
    reads: list[Callable[[], Any]] = [
        partial(call, X[:rows], y[:rows])
        for rows in ROWS
        for call in (net.gradient_norms, net.input_gradients)
    ]
    reads += [partial(net.laplacian, X[:rows]) for rows in ROWS]
    reads += [lambda: [w for w, _ in net.hessian_vector_product(X, y, v)]]
    assert count_differing(reads, 20) == 0
