"""`training.Session`: epochs in the course's order, Σ w² before every step, clipped costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from backprop_gpu import Network, Population, optimizers, planning
from backprop_gpu.engines import Engine, Hyperparameters, Member
from backprop_gpu.engines.layered import LayeredEngine
from backprop_gpu.estimators.perceptron import LogisticLogLoss, SoftmaxLogLoss
from backprop_gpu.optimizers import Optimizer
from backprop_gpu.training import Course, RowsAtOnce, Session
from backprop_gpu.training.progress import Progress

ROWS, SIZES = 61, (5, 9, 4)


class Given(Course):
    """Epochs of given orders, a part each, at a rate or rates."""

    def __init__(
        self, net: Network, orders: Sequence[Any], batch: int, rates: Any, optimizer: Optimizer,
        squares: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        super().__init__(net.parameters)
        self.orders, self.batch, self.rates = list(orders), batch, rates
        self.optimizer, self.squares, self.step = optimizer, squares, 0
        self.slots = tuple(
            net.model.backend.zeros((net.model.layout.length,)) for _ in range(optimizer.slots)
        )
        self.costs: list[np.ndarray] = []

    def epoch(self) -> Member:
        order = np.asarray(self.orders.pop(0))
        steps = -(-len(order) // self.batch)
        rates = np.broadcast_to(np.asarray(self.rates, np.float64), (steps,))
        coefficients = self.optimizer.coefficients(rates, self.step)
        self.step += steps
        settings = Hyperparameters(self.batch, self.optimizer, coefficients, self.squares)
        return self.member(order, settings)

    def member(self, order: np.ndarray, settings: Hyperparameters) -> Member:
        return Member(self.parameters, self.slots, order, settings)

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        self.costs.append(costs)

    def is_over(self) -> bool:
        return not self.orders


def trained(
    net: Network, X: Any, Y: Any, orders: Sequence[Any], batch: int, rates: Any,
    optimizer: Optimizer, engine: str, squares: np.ndarray | None = None,
) -> Given:  # fmt: skip
    run = planning.Run(
        len(X), 10**6, batch, engine, slots=optimizer.slots, squares=squares is not None,
        rules=frozenset([optimizer.rule]),
    )  # fmt: skip
    course = Given(net, orders, batch, rates, optimizer, squares)
    Session(net.model, RowsAtOnce(net.model.engine(net.model.plan(run)), X, Y), [course]).run()
    return course


def problem(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    X = rng.random((ROWS, SIZES[0])).astype(dtype)
    return X, np.eye(SIZES[-1], dtype=dtype)[rng.integers(0, SIZES[-1], ROWS)]


def network(dtype: Any, backend: str, output: str = "softmax", scale: float = 1.0) -> Network:
    cost = SoftmaxLogLoss() if output == "softmax" else LogisticLogLoss()
    net = Network(
        SIZES, activation=["tanh", output], cost=cost, dtype=dtype, backend=backend, seed=2
    )
    net.weights = [w * scale for w in net.weights]
    return net


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("batch", [7, 61])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_the_squares_of_the_weights_before_each_step(engine: str, batch: int, rule: str) -> None:
    X, Y = problem("float64")
    net, followed = network("float64", "numpy"), network("float64", "numpy")
    optimizer, steps = optimizers.get(rule), -(-ROWS // batch)
    order = np.random.default_rng(0).permutation(ROWS)
    squares = np.full(steps, np.nan)
    trained(net, X, Y, [order], batch, 0.1, optimizer, engine, squares)
    # The same, a step an epoch.
    expected = []

    class Watched(Given):
        def epoch(self) -> Member:
            expected.append(sum(float((w**2).sum()) for w in followed.weights))
            return super().epoch()

    parts = [order[begin : begin + batch] for begin in range(0, ROWS, batch)]
    run = planning.Run(ROWS, 1, batch, "layered", slots=optimizer.slots)
    engine_of = followed.model.engine(followed.model.plan(run))
    watched = Watched(followed, parts, batch, 0.1, optimizer)
    Session(followed.model, RowsAtOnce(engine_of, X, Y), [watched]).run()
    np.testing.assert_allclose(squares, expected, rtol=1e-13)
    got, wanted = (each.model.read(each.parameters) for each in (net, followed))
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_clipped_cost_is_scikit_learns(engine: str, dtype: str, output: str) -> None:
    from sklearn.metrics import log_loss

    X, Y = problem(dtype)
    net = network(dtype, "numpy", output, scale=300.0)  # so that outputs are 0 and 1
    a = net.predict(X)
    assert ((a < np.finfo(dtype).eps).any(axis=1) & (a > 0.5).any(axis=1)).any()
    (found,) = trained(
        net, X, Y, [np.arange(ROWS)], ROWS, 0.01, optimizers.get("sgd"), engine
    ).costs
    if output == "softmax":
        expected = log_loss(Y.argmax(axis=1), a.astype(dtype))
    else:
        expected = sum(log_loss(y, p, labels=[0, 1]) for y, p in zip(Y.T, a.T, strict=True))
    np.testing.assert_allclose(found, [expected], rtol=200 * float(np.finfo(dtype).eps))


def test_orders_and_penalties_are_the_courses() -> None:
    X, Y = problem("float64")
    found = {}
    for name, order, l2 in (
        ("there", np.arange(20), 0.0),
        ("and back", np.arange(20)[::-1], 0.0),
        ("penalised", np.arange(20), 0.5),
    ):
        net = network("float64", "numpy")
        course = trained(
            net, X, Y, [order], 10, np.array([0.1, 0.2]), optimizers.SGD(l2=l2), "resident"
        )
        assert course.step == 2
        found[name] = course.costs[0], net.weights[1]
    assert found["there"][0][0] != found["and back"][0][0]
    # One step with l2 more takes η l2 w more away; the second starts from there.
    assert np.abs(found["penalised"][1]).sum() < np.abs(found["there"][1]).sum()


@pytest.mark.parametrize("backend", ["numpy", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_a_penalty_on_the_sum_weighs_more_in_a_short_batch(engine: str, backend: str) -> None:
    X, Y = problem("float64")
    order, rates = np.random.default_rng(0).permutation(ROWS), 0.1

    class Summed(Given):
        def member(self, order: np.ndarray, settings: Hyperparameters) -> Member:
            settings.coefficients[:, 4] += 0.7 / np.array([25, 25, ROWS - 50])
            return super().member(order, settings)

    net = network("float64", backend)
    run = planning.Run(ROWS, 10**6, 25, engine, slots=1, rules=frozenset(["momentum"]))
    momentum = optimizers.SGD(momentum=0.9, l2=0.01)
    course = Summed(net, [order, order], 25, rates, momentum)
    Session(net.model, RowsAtOnce(net.model.engine(net.model.plan(run)), X, Y), [course]).run()

    # A step an epoch, by an optimizer with the penalty of so many rows.
    other = network("float64", "numpy")
    slots = None
    for part in [order[:25], order[25:50], order[50:]] * 2:
        alone = optimizers.SGD(momentum=0.9, l2=0.01 + 0.7 / len(part))
        step = Given(other, [part], len(part), rates, alone)
        if slots is not None:
            step.slots = slots
        run = planning.Run(len(part), 1, len(part), "layered", slots=1)
        Session(
            other.model, RowsAtOnce(other.model.engine(other.model.plan(run)), X, Y), [step]
        ).run()
        slots = step.slots
    got, wanted = (each.model.read(each.parameters) for each in (net, other))
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("backend", ["numpy", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_adams_moments_keep_the_digits_of_float32(engine: str, backend: str) -> None:
    """1 - β2 must not be taken from a rounded β2: it would be off by 1.3e-5."""
    X, Y = problem("float32")
    net = network("float32", backend)
    g = net.gradients(X, Y)
    course = trained(net, X, Y, [np.arange(ROWS)], ROWS, 1e-3, optimizers.get("adam"), engine)
    m, v = (net.model.layout.views(net.model.backend.to_numpy(slot))[0] for slot in course.slots)
    for l, (gradient, _) in enumerate(g):
        np.testing.assert_allclose(m[l], 0.1 * gradient, rtol=2e-6, atol=1e-9)
        large = np.abs(gradient) > 1e-3  # of the others the gradient's own rounding is seen
        np.testing.assert_allclose(v[l][large], 0.001 * np.float64(gradient[large]) ** 2, rtol=6e-6)


def test_members_of_an_engine_that_trains_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new engine need not write."""
    X, Y = problem("float64")
    both = []
    for run_members in (LayeredEngine.run_members, Engine.run_members):
        monkeypatch.setattr(LayeredEngine, "run_members", run_members)
        members = Population(SIZES, members=3, seed=2, dtype="float64", backend="numpy")
        members.fit(X, Y, epochs=2, batch_size=7, learning_rate=0.1, engine="layered")
        both.append([member.weights[0] for member in members])
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_courses_join_and_leave(engine: str) -> None:
    """A course in a row that another has left, at any epoch, gets the bits that it gets alone."""
    X, Y = problem("float64")
    rng, adam = np.random.default_rng(0), optimizers.get("adam")
    orders = [[rng.permutation(ROWS) for _ in range(4)] for _ in range(3)]
    halves = orders[0][:2]
    nets = [network("float64", "numpy", scale=i + 1.0) for i in range(3)]
    alone = [network("float64", "numpy", scale=i + 1.0) for i in range(3)]
    for net, given in zip(alone, orders, strict=True):
        trained(net, X, Y, given, 7, 0.1, adam, engine)
    model = nets[0].model
    plan = model.plan(planning.Run(ROWS, 4, 7, engine, members=2, slots=2, rules=frozenset("adam")))
    rows = np.zeros((2, model.layout.length))
    finished: list[Course] = []

    class Finished(Given):
        def finish(self) -> None:
            finished.append(self)

    def course(number: int, place: int) -> Given:
        flat = model.read(nets[number].parameters)
        nets[number].parameters = model.parameters(rows[place])
        model.write(flat, nets[number].parameters)
        return Finished(nets[number], orders[number], 7, 0.1, adam)

    def result(number: int) -> np.ndarray:
        return model.read(nets[number].parameters)

    session = Session(
        model, RowsAtOnce(model.engine(plan), X, Y), [], whole=(rows, np.zeros_like(rows))
    )
    with session:
        first, second = course(0, 0), course(1, 1)
        session.join([first, second])
        for _ in range(2):
            session.end_round(session.run_epoch(session.live, Progress()), Progress())
        session.leave(first)
        assert finished == [first]
        assert session.live == [second]
        half = result(0)
        third = course(2, 0)
        session.join([third])
        for _ in range(2):
            session.end_round(session.run_epoch(session.live, Progress()), Progress())
        assert session.live == [third]
        assert finished == [first, second]
        for _ in range(2):
            session.end_round(session.run_epoch(session.live, Progress()), Progress())
        assert session.live == []
    assert finished == [first, second, third]
    for number in (1, 2):
        expected = alone[number].model.read(alone[number].parameters)
        np.testing.assert_array_equal(result(number), expected)
    shorter = network("float64", "numpy")
    trained(shorter, X, Y, halves, 7, 0.1, adam, engine)
    np.testing.assert_array_equal(half, shorter.model.read(shorter.parameters))
