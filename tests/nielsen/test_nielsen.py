"""`nielsen.network` and `nielsen.network2`: the book's figures, data, lines, monitors and files."""
# ruff: noqa: NPY002 - the book draws from NumPy's global generator

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import re
import warnings

import numpy as np
import pytest

from backprop_gpu.engines.resident_cpu import ResidentCpuEngine
from backprop_gpu.nielsen import network, network2, samples
from machine import ROOT, without_the_library

REFERENCE = json.loads(
    (ROOT / "tests" / "data" / "nielsen_reference.json").read_text(encoding="utf-8")
)
SIZES = [5, 7, 3]


def digits(rows):
    """scikit-learn's digits in the book's form: (training, the rest)."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    columns = [x.reshape(-1, 1) for x in X / 16]
    training = [
        (x, network2.vectorized_result(int(j)))
        for x, j in zip(columns[:rows], y[:rows], strict=True)
    ]
    return training, list(zip(columns[rows:], y[rows:], strict=True))


def data(n=23, seed=3):
    """(training, evaluation), columns with 3 classes."""
    rng = np.random.default_rng(seed)
    xs, labels = rng.random((n, SIZES[0], 1)), rng.integers(0, SIZES[-1], n)
    ys = [network2.vectorized_result(int(j), SIZES[-1]) for j in labels]
    return list(zip(xs, ys, strict=True)), list(zip(xs, labels, strict=True))


def made(module, seed=1, **settings):
    np.random.seed(seed)
    random.seed(seed)
    return module.Network(SIZES, **settings)


def state(net):
    return [p.copy() for p in (*net.weights, *net.biases)]


def close(one, other, tolerance=1e-9):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def by_hand(net, training, epochs, m, eta, error, lmbda=0.0):
    """The same training sample by sample: the equations of chapter 2, on `net`'s weights now."""
    w, b = [x.copy() for x in net.weights], [x.copy() for x in net.biases]
    order, n = list(training), len(training)
    for _ in range(epochs):
        random.shuffle(order)
        for k in range(0, n, m):
            batch = order[k : k + m]
            dw, db = [0.0 * x for x in w], [0.0 * x for x in b]
            for x, y in batch:
                a = [x]
                for l in range(len(w)):
                    a.append(1 / (1 + np.exp(-(w[l] @ a[-1] + b[l]))))
                delta = error(a[-1], y)
                for l in reversed(range(len(w))):
                    db[l] += delta
                    dw[l] += delta @ a[l].T
                    delta = (w[l].T @ delta) * a[l] * (1 - a[l])
            for l in range(len(w)):
                w[l] = w[l] - eta * lmbda / n * w[l] - eta / len(batch) * dw[l]
                b[l] = b[l] - eta / len(batch) * db[l]
    return [*w, *b]


def quadratic(a, y):
    return (a - y) * a * (1 - a)


def cross_entropy(a, y):
    return a - y


# -- the figures --------------------------------------------------------------------------


@pytest.fixture(params=["layered", "resident"])
def engine(request, monkeypatch):
    """The engine that "auto" takes, with the compiled library and without it."""
    if request.param == "layered":
        without_the_library(monkeypatch)
    return request.param


@pytest.mark.parametrize("name", list(REFERENCE))
def test_the_reference(name, engine, capsys):
    figures = REFERENCE[name]
    training, rest = digits(figures["n_train"])
    random.seed(figures["seed"])
    np.random.seed(figures["seed"])
    settings = [figures["epochs"], figures["mini_batch_size"], figures["eta"]]
    if figures["module"] == "network":
        net = network.Network(figures["sizes"], backend="numpy")
        returned = net.SGD(training, *settings, test_data=rest)
        assert returned is None
    else:
        cost = {"CrossEntropyCost": network2.CrossEntropyCost}[figures["cost"]]
        net = network2.Network(figures["sizes"], cost=cost, backend="numpy")
        returned = net.SGD(training, *settings, figures["lmbda"], rest, True, True, True, True)
        for found, expected in zip(returned, figures["returned"], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert net.plan.engine == engine
    close(net.weights, [np.array(w) for w in figures["weights"]])
    close(net.biases, [np.reshape(b, (-1, 1)) for b in figures["biases"]])
    # The same lines; of the costs in them the last digits may differ, as sums are taken in
    # another order. The blank line after an epoch is the book's, not the port's.
    cost_line = re.compile(r"(Cost on \w+ data: )(\S+)")
    lines = capsys.readouterr().out.splitlines()
    if figures["module"] == "network2":
        an_epoch = len(figures["printed"]) // figures["epochs"] + 1
        assert set(lines[an_epoch - 1 :: an_epoch]) == {""}
        del lines[an_epoch - 1 :: an_epoch]
    for line, expected in zip(lines, figures["printed"], strict=True):
        if cost := cost_line.fullmatch(expected):
            shown = cost_line.fullmatch(line)
            assert shown[1] == cost[1]
            assert float(shown[2]) == pytest.approx(float(cost[2]), rel=1e-9)
        else:
            assert line == expected


@pytest.mark.parametrize("m", [4, 23, 10**13])  # a short last batch; one batch; fewer rows than m
@pytest.mark.parametrize("kind", ["network", "quadratic", "cross-entropy"])
def test_three_classes_and_a_short_last_batch(kind, m, engine):
    training, evaluation = data()
    if kind == "network":
        net, error, rest = made(network, backend="numpy"), quadratic, {}
    else:
        cost = network2.QuadraticCost if kind == "quadratic" else network2.CrossEntropyCost
        error = quadratic if kind == "quadratic" else cross_entropy
        net, rest = made(network2, cost=cost, backend="numpy"), {"lmbda": 2.0}
    random.seed(8)
    expected = by_hand(net, training, 3, m, 0.7, error, **rest)
    random.seed(8)
    net.SGD(training, 3, m, 0.7, **rest)
    assert net.plan.engine == engine
    close(state(net), expected, 1e-12)
    hits = sum(int(np.argmax(net.feedforward(x)) == j) for x, j in evaluation)
    assert (net.evaluate if kind == "network" else net.accuracy)(evaluation) == hits


def test_an_epoch_is_one_engine_call(monkeypatch, capsys):
    calls, closed, stacked = [], [], []
    kind = ResidentCpuEngine
    run, release, stack = kind.run_epoch, kind.release, samples.stack

    def counted(self, member, *arguments, **keywords):
        calls.append(sorted(member.order))
        return run(self, member, *arguments, **keywords)

    monkeypatch.setattr(kind, "run_epoch", counted)
    monkeypatch.setattr(kind, "release", lambda self: closed.append(release(self)))
    monkeypatch.setattr(
        samples, "stack", lambda *given: stacked.append(given[1:3]) or stack(*given)
    )
    made(network).SGD(data()[0], 3, 4, 0.5, test_data=data()[1])
    assert calls == [list(range(23))] * 3
    assert closed == [None]
    assert sorted(stacked) == [("test_data", "x"), ("training_data", "x"), ("training_data", "y")]
    assert len(capsys.readouterr().out.splitlines()) == 3
    made(network).SGD(data()[0], 2, 4, 0.5)
    assert capsys.readouterr().out == "Epoch 0 complete\nEpoch 1 complete\n"


@pytest.mark.parametrize("module", [network, network2])
def test_whole_epochs_may_be_floats(module, capsys):
    """As ``epochs=1500000 / size`` is in Python 3."""
    made(module).SGD(data()[0], 6 / 3, 4, 0.5)
    assert capsys.readouterr().out.count("Epoch") == 2
    made(module).SGD(data()[0], np.float32(2.0), 4, 0.5)
    assert capsys.readouterr().out.count("Epoch") == 2


def test_every_backend(backend):
    training, _ = data()
    net = made(network2, backend=backend)
    expected = by_hand(net, training, 2, 5, 0.5, cross_entropy, 1.0)
    random.seed(1)
    assert net.backend == backend
    net = made(network2, backend=backend)
    net.SGD(training, 2, 5, 0.5, lmbda=1.0)
    close(state(net), expected)


def test_the_draws_are_the_books():
    for module, scale in ((network, 1.0), (network2, np.sqrt([[5.0], [7.0]]))):
        net = made(module, seed=4)
        np.random.seed(4)
        biases = [np.random.randn(n, 1) for n in (7, 3)]
        weights = [np.random.randn(7, 5), np.random.randn(3, 7)]
        for b, drawn in zip(net.biases, biases, strict=True):
            np.testing.assert_array_equal(b, drawn)
        for w, drawn, s in zip(net.weights, weights, np.broadcast_to(scale, (2, 1)), strict=True):
            np.testing.assert_array_equal(w, drawn / s)
    np.random.seed(4)
    net.large_weight_initializer()
    np.testing.assert_array_equal(net.weights[1], weights[1])
    np.random.seed(4)
    net.default_weight_initializer()
    np.testing.assert_array_equal(net.weights[1], weights[1] / np.sqrt(7))


# -- data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [network, network2])
def test_an_iterator_gives_what_a_list_gives(module, capsys):
    training, evaluation = data()
    name = "test_data" if module is network else "evaluation_data"
    flags = {} if module is network else {"monitor_evaluation_accuracy": True}
    nets, outputs = [], []
    for form in (list, lambda pairs: zip(*map(list, zip(*pairs, strict=True)), strict=True), iter):
        net = made(module)
        net.SGD(form(training), 2, 4, 0.5, **{name: form(evaluation)}, **flags)
        nets.append(state(net))
        outputs.append(capsys.readouterr().out)
    for other in nets[1:]:
        close(nets[0], other, 0)
    assert outputs[0].count("/ 23") == 2
    assert len(set(outputs)) == 1


def test_the_callers_list_is_left_shuffled():
    training, _ = data()
    expected = list(training)
    random.seed(6)
    for _ in range(2):
        random.shuffle(expected)
    net = made(network)
    random.seed(6)
    net.SGD(training, 2, 4, 0.5)
    assert all(a is b for a, b in zip(training, expected, strict=True))
    fixed = tuple(training)
    net.SGD(fixed, 1, 4, 0.5)  # what cannot be shuffled is not
    net.SGD(training, 0, 4, 0.5)
    assert all(a is b for a, b in zip(training, fixed, strict=True))


def test_other_dtypes_and_any_real_target():
    training, _ = data()
    narrow = [(x.astype(np.float32), y.astype(int)) for x, y in training]
    wide = [(x.astype(np.float64), y.astype(np.float64)) for x, y in narrow]
    one, other = made(network2), made(network2)
    for net, pairs in ((one, narrow), (other, wide)):
        random.seed(2)
        net.SGD(pairs, 1, 4, 0.5)
    close(state(one), state(other), 0)
    unusual = [(x, y * 1.5 - 0.25) for x, y in training]
    net = made(network)
    random.seed(2)
    expected = by_hand(net, unusual, 1, 4, 0.5, quadratic)
    random.seed(2)
    net.SGD(unusual, 1, 4, 0.5)
    close(state(net), expected, 1e-12)


def test_one_output():
    np.random.seed(0)
    net = network.Network([2, 1])
    pairs = [(np.array([[0.0], [1.0]]), 1.0), (np.array([[1.0], [0.0]]), np.array([[0.0]]))]
    random.seed(1)
    expected = by_hand(net, [(x, np.reshape(y, (1, 1))) for x, y in pairs], 2, 1, 1.0, quadratic)
    random.seed(1)
    net.SGD(pairs, 2, 1, 1.0)
    close(state(net), expected, 1e-12)


# -- weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [network, network2])
def test_changed_weights_are_used(module):
    training, evaluation = data()
    net = made(module)
    net.SGD(training, 1, 4, 0.5)
    error = quadratic if module is network else cross_entropy
    net.weights[0][2, 3] += 4.0
    net.biases[1] -= 2.0  # in place
    net.weights[1] = np.zeros((3, 7)).tolist()  # assigned
    net.weights[1] = np.asarray(net.weights[1])
    random.seed(5)
    order = list(training)
    expected = by_hand(net, order, 1, 4, 0.5, error)
    random.seed(5)
    net.SGD(training, 1, 4, 0.5)
    close(state(net), expected, 1e-12)
    count = net.evaluate if module is network else net.accuracy
    net.weights = [np.zeros((7, 5)), np.zeros((3, 7))]
    net.biases = [np.zeros((7, 1)), np.array([[0.0], [1.0], [0.0]])]
    assert count(evaluation) == sum(int(j == 1) for _, j in evaluation)


def test_weights_from_before_are_left_alone():
    """The book binds new arrays, so a list kept by the caller keeps its numbers."""
    net = made(network)
    kept, before = net.weights, [w.copy() for w in net.weights]
    net.SGD(data()[0], 1, 4, 0.5)
    close(kept, before, 0)
    net.weights[0][0, 0] = 1.0  # and the new ones may be written


@pytest.mark.parametrize("module", [network, network2])
def test_the_methods_of_a_step(module):
    training, _ = data()
    error = quadratic if module is network else cross_entropy
    net = made(module)
    assert (net.num_layers, net.sizes) == (3, SIZES)
    x, y = training[0]
    nabla_b, nabla_w = net.backprop(x, y)
    stepped = by_hand(net, [(x, y)], 1, 1, 1.0, error)
    close([*nabla_w, *nabla_b], [a - b for a, b in zip(state(net), stepped, strict=True)], 1e-12)
    assert isinstance(nabla_b, list)
    assert [g.shape for g in nabla_b] == [(7, 1), (3, 1)]
    more = () if module is network else (2.0, 23)
    lmbda = {} if module is network else {"lmbda": 2.0 * 5 / 23}  # by_hand divides by 5
    expected = by_hand(net, training[:5], 1, 5, 0.5, error, **lmbda)
    net.update_mini_batch(iter(training[:5]), 0.5, *more)
    close(state(net), expected, 1e-12)


def test_feedforward():
    net = made(network)
    x = data()[0][0][0]
    by_layer = x
    for w, b in zip(net.weights, net.biases, strict=True):
        by_layer = network.sigmoid(w @ by_layer + b)
    np.testing.assert_allclose(net.feedforward(x), by_layer, rtol=1e-14)
    two = np.hstack([x, 2 * x])
    np.testing.assert_allclose(net.feedforward(two)[:, [1]], net.feedforward(2 * x), rtol=1e-14)
    with pytest.raises(ValueError, match=r"column of shape \(5, 1\), got \(5,\)"):
        net.feedforward(x[:, 0])


def test_functions():
    assert network.sigmoid(0.0) == 0.5
    assert network2.sigmoid_prime(np.zeros((2, 1))).tolist() == [[0.25], [0.25]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert network.sigmoid(-1000.0) == 0.0
    assert network2.vectorized_result(3).tolist() == [[0.0]] * 3 + [[1.0]] + [[0.0]] * 6
    assert network2.vectorized_result(1, 3).tolist() == [[0.0], [1.0], [0.0]]
    with pytest.raises(ValueError, match=r"j must be in \[0, 2\], got 3"):
        network2.vectorized_result(3, 3)
    a, y = np.array([[0.25], [0.5]]), np.array([[1.0], [0.0]])
    assert network2.QuadraticCost.fn(a, y) == pytest.approx(0.5 * (0.75**2 + 0.5**2))
    assert network2.CrossEntropyCost.fn(a, y) == pytest.approx(-np.log(0.25) - np.log(0.5))
    assert network2.CrossEntropyCost.fn(np.array([[1.0]]), np.array([[1.0]])) == 0.0
    assert network2.QuadraticCost.delta(0.0, a, y).tolist() == [[-0.1875], [0.125]]
    assert network2.CrossEntropyCost.delta(0.0, a, y).tolist() == [[-0.75], [0.5]]
    assert made(network).cost_derivative(a, y).tolist() == [[-0.75], [0.5]]


# -- monitors -----------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [network2.QuadraticCost, network2.CrossEntropyCost])
@pytest.mark.parametrize("penalty", ["port", "book"])
def test_total_cost(cost, penalty):
    training, evaluation = data()
    net = made(network2, cost=cost, penalty=penalty)
    mean = np.mean([cost.fn(net.feedforward(x), y) for x, y in training])
    added = 0.5 * 3.0 * sum((w**2).sum() for w in net.weights) / (1 if penalty == "port" else 23)
    assert net.total_cost(training, 3.0) == pytest.approx(mean + added, rel=1e-13)
    assert net.total_cost(iter(evaluation), 3.0, convert=True) == net.total_cost(training, 3.0)
    assert net.accuracy(training, convert=True) == net.accuracy(evaluation)


def test_a_saturated_cross_entropy_is_the_books():
    net = made(network2)
    net.weights = [w * 0 for w in net.weights]
    net.biases = [net.biases[0], np.array([[1000.0], [-1000.0], [0.0]])]  # a = 1, 0, ½
    (x, _), *_ = data()[0]
    right = np.array([[1.0], [0.0], [1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert net.total_cost([(x, right)], 0.0) == pytest.approx(np.log(2))
        wrong = net.total_cost([(x, 1 - right)] * 4, 0.0)  # ln 0 is finite, but 2 of them are not
    assert wrong == network2.CrossEntropyCost.fn(net.feedforward(x), 1 - right) == np.inf


def test_monitors_are_lists_of_what_was_asked_for(capsys):
    training, evaluation = data()
    net = made(network2)
    assert net.SGD(training, 2, 4, 0.5) == ([], [], [], [])
    printed = "Epoch 0 training complete\n\nEpoch 1 training complete\n\n"
    assert capsys.readouterr().out == printed
    found = net.SGD(
        training, 2, 4, 0.5, 1.0, evaluation, monitor_evaluation_cost=True,
        monitor_training_accuracy=True,
    )  # fmt: skip
    assert [len(values) for values in found] == [2, 0, 0, 2]
    assert found[0][1] == pytest.approx(net.total_cost(evaluation, 1.0, convert=True), rel=1e-13)
    assert found[3][1] == net.accuracy(training, convert=True)
    assert f"Cost on evaluation data: {found[0][1]}\n" in capsys.readouterr().out


def test_early_stopping(monkeypatch):
    training, evaluation = data()
    accuracies = iter([3, 5, 5, 4, 6, 6, 6, 6, 9])
    monkeypatch.setattr(network2.Network, "_hits", lambda self, found: next(accuracies))
    net = made(network2)
    found = net.SGD(
        training, 9, 4, 0.5, evaluation_data=evaluation, monitor_evaluation_accuracy=True,
        early_stopping_n=3,
    )  # fmt: skip
    assert found[1] == [3, 5, 5, 4, 6, 6, 6, 6]
    with pytest.raises(ValueError, match="early_stopping_n needs an accuracy"):
        net.SGD(training, 9, 4, 0.5, early_stopping_n=3)


# -- users' own parts ------------------------------------------------------------------------


class Halved:
    """Cross-entropy's δ for one column and no more, at half the size."""

    @staticmethod
    def fn(a, y):
        assert a.shape == y.shape == (3, 1)
        return 0.5 * network2.CrossEntropyCost.fn(a, y)

    @staticmethod
    def delta(z, a, y):
        assert z.shape == a.shape == y.shape == (3, 1)
        return 0.5 * (a - y)


def test_a_users_cost():
    training, evaluation = data()
    net = made(network2, cost=Halved)
    random.seed(3)
    expected = by_hand(net, training, 2, 4, 0.5, lambda a, y: 0.5 * (a - y), 2.0)
    random.seed(3)
    with pytest.warns(UserWarning, match="Python loop.*cost Halved is neither") as caught:
        net.SGD(
            training, 2, 4, 0.5, lmbda=2.0, evaluation_data=evaluation, monitor_evaluation_cost=True
        )
    assert caught[0].filename == __file__
    close(state(net), expected, 1e-12)
    same = made(network2)
    same.weights, same.biases = net.weights, net.biases
    assert net.total_cost(training, 0.0) == pytest.approx(same.total_cost(training, 0.0) / 2)
    assert net.accuracy(evaluation) == same.accuracy(evaluation)


def test_a_cost_assigned_later_is_used():
    training, _ = data()
    net = made(network2)
    net.cost = network2.QuadraticCost
    random.seed(3)
    expected = by_hand(net, training, 1, 4, 0.5, quadratic)
    random.seed(3)
    net.SGD(training, 1, 4, 0.5)
    close(state(net), expected, 1e-12)


def test_a_failing_cost_leaves_the_epoch_before():
    class Failing(Halved):
        calls = 0

        @staticmethod
        def delta(z, a, y):
            Failing.calls += 1
            if Failing.calls > 30:  # in the second epoch
                raise RuntimeError("no more")
            return a - y

    training, _ = data()
    net = made(network2, cost=Failing)
    random.seed(3)
    expected = by_hand(net, training, 1, 4, 0.5, cross_entropy)
    random.seed(3)
    with pytest.warns(UserWarning, match="loop"), pytest.raises(RuntimeError, match="no more"):
        net.SGD(training, 2, 4, 0.5)
    close(state(net), expected, 1e-12)

    class Narrow(Halved):
        @staticmethod
        def delta(z, a, y):
            return (a - y)[:, 0]

    with pytest.raises(ValueError, match=r"delta must be a column of shape \(3, 1\), got \(3,\)"):
        made(network2, cost=Narrow).backprop(*training[0])


def test_overridden_methods_are_honoured():
    training, evaluation = data()

    class Cubic(network.Network):
        def cost_derivative(self, output_activations, y):
            assert y.shape == (3, 1)
            return (output_activations - y) ** 3

    class Clipped(network.Network):
        def backprop(self, x, y):
            nabla_b, nabla_w = super().backprop(x, y)
            return [0 * g for g in nabla_b], nabla_w

        def evaluate(self, test_data):
            return 100 + super().evaluate(test_data)

    np.random.seed(1)
    net = Cubic(SIZES)
    random.seed(3)
    expected = by_hand(net, training, 1, 4, 0.5, lambda a, y: (a - y) ** 3 * a * (1 - a))
    random.seed(3)
    with pytest.warns(UserWarning, match="cost_derivative is not the library's"):
        net.SGD(training, 1, 4, 0.5)
    close(state(net), expected, 1e-12)

    net = Clipped(SIZES)
    before = state(net)
    with pytest.warns(UserWarning, match="backprop is not the library's"):
        net.SGD(training, 1, 4, 0.5)
    close(state(net)[2:], before[2:], 0)
    assert np.abs(net.weights[0] - before[0]).max() > 1e-6
    assert net.evaluate(evaluation) >= 100


def test_an_overridden_feedforward_is_what_counts():
    _, evaluation = data()

    class Second(network2.Network):
        def feedforward(self, a):
            assert a.shape == (5, 1)
            return np.array([[0.0], [1.0], [0.0]])

    right = sum(int(j == 1) for _, j in evaluation)
    assert Second(SIZES).accuracy(evaluation) == right
    assert 0 < right < 23


def test_weights_changed_between_epochs_are_used():
    training, evaluation = data()

    class Emptied(network.Network):
        def evaluate(self, test_data):
            count = super().evaluate(test_data)
            self.weights[0][:] = 0.0
            return count

    np.random.seed(1)
    net = Emptied(SIZES)
    other = made(network)
    random.seed(3)
    net.SGD(list(training), 2, 4, 0.5, test_data=evaluation)
    random.seed(3)
    order = list(training)
    other.SGD(order, 1, 4, 0.5)
    other.weights[0][:] = 0.0
    other.SGD(order, 1, 4, 0.5)
    close(net.biases, other.biases, 1e-12)


# -- files --------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [network2.QuadraticCost, network2.CrossEntropyCost])
def test_round_trip(cost, tmp_path):
    net = made(network2, cost=cost)
    net.SGD(data()[0], 1, 4, 0.5)
    net.save(tmp_path / "net.json")
    written = json.loads((tmp_path / "net.json").read_text())
    assert list(written) == ["sizes", "weights", "biases", "cost"]
    assert written["sizes"] == SIZES
    assert written["cost"] == cost.__name__
    assert np.shape(written["biases"][0]) == (7, 1)
    loaded = network2.load(str(tmp_path / "net.json"))
    assert loaded.cost is cost
    assert loaded.sizes == SIZES
    close(state(loaded), state(net), 0)
    random.seed(1)
    loaded.SGD(data()[0], 1, 4, 0.5)
    random.seed(1)
    net.SGD(data()[0], 1, 4, 0.5)
    close(state(loaded), state(net), 0)


def test_a_file_with_a_users_cost(tmp_path):
    path = tmp_path / "net"
    made(network2, cost=Halved).save(path)
    with pytest.raises(ValueError, match="names cost 'Halved'; known: QuadraticCost, Cross"):
        network2.load(path)
    assert network2.load(path, cost=Halved).cost is Halved
    made(network2).save(path)
    with pytest.raises(ValueError, match="saved with cost 'CrossEntropyCost', not 'Halved'"):
        network2.load(path, cost=Halved)


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net"
    made(network2).save(path)
    old = path.read_bytes()
    net = made(network2, seed=2)
    net.weights[0] = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"weights\[0\] does not fit layer 1"):
        net.save(path)

    def fail(*arguments):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        made(network2, seed=2).save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["net"]


def nested(value, depth=100_000):
    return "[" * depth + json.dumps(value) + "]" * depth


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": "load"}, "names cost 'load'; known: QuadraticCost, CrossEntropyCost"),
        ({"cost": "json"}, "names cost 'json'"),
        ({"cost": "Network"}, "names cost 'Network'"),
        ({"cost": ["QuadraticCost"]}, "names cost"),
        ({"cost": None}, "names cost None"),
        ({"sizes": [5, 7.0, 3]}, "sizes must be an integer"),
        ({"sizes": "573"}, "sizes must be a sequence"),
        ({"sizes": [5]}, "sizes must name an input and an output"),
        ({"sizes": [5, 1_000_000_000, 3]}, r"weights\[0\] does not fit layer 1"),
        ({"sizes": [5, 7, 3, 3]}, "weights must be a list of 3 arrays"),
        ({"weights": 3}, "weights must be a list of 2"),
        ({"weights": [[[0.0] * 5] * 7, [[0.0] * 7] * 2]}, "layer 2: expected 3 rows of 7"),
        ({"weights": [[[0.0] * 5] * 7, [[0.0] * 7, [0.0] * 6, [0.0] * 7]]}, "layer 2: expected 3"),
        ({"weights": [[["0.5"] * 5] * 7, [[0.0] * 7] * 3]}, "must hold finite numbers, got '0.5'"),
        ({"weights": [[[True] * 5] * 7, [[0.0] * 7] * 3]}, "finite numbers, got 'True'"),
        ({"weights": [[[None] * 5] * 7, [[0.0] * 7] * 3]}, "finite numbers, got 'None'"),
        ({"biases": [[[float("nan")]] * 7, [[0.0]] * 3]}, "finite numbers, got 'nan'"),
        ({"biases": [[[float("inf")]] * 7, [[0.0]] * 3]}, "finite numbers, got 'inf'"),
        ({"biases": [[[10**400]] * 7, [[0.0]] * 3]}, "finite numbers, got '1000"),
        (
            {"biases": [[0.0] * 7, [0.0] * 3]},
            "biases.0. does not fit layer 1: expected 7 rows of 1",
        ),
    ],
)
def test_a_damaged_file(change, message, tmp_path):
    path = tmp_path / "some_net"
    made(network2).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    drawn = np.random.get_state()[2]
    with pytest.raises(ValueError, match=message) as error:
        network2.load(path)
    assert "some_net" in str(error.value)
    assert np.random.get_state()[2] == drawn


def test_a_file_that_is_something_else(tmp_path):
    path = tmp_path / "some_net"
    made(network2).save(path)
    text = path.read_text()
    for other in (text[:-1], text[: len(text) // 2], "", "\x00\xff", nested(1)):
        path.write_text(other)
        with pytest.raises(ValueError, match="some_net is cut short or not JSON"):
            network2.load(path)
    for other in ("[1]", "3", '"cost"', "null", '{"sizes": [1, 2]}'):
        path.write_text(other)
        with pytest.raises(ValueError, match="some_net should hold an object with sizes, weights"):
            network2.load(path)
    with pytest.raises(FileNotFoundError, match=r"no model file at .*absent"):
        network2.load(tmp_path / "absent")


def test_copies():
    net = made(network2)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        close(state(other), state(net), 0)
        before = state(net)
        other.SGD(data()[0], 1, 4, 0.5)
        close(state(net), before, 0)


# -- what is refused ------------------------------------------------------------------------


GOOD = data()[0]
X0, Y0 = GOOD[0]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ([], "training_data is empty"),
        (iter([]), "training_data is empty"),
        (None, "training_data must be .x, y. pairs"),
        ([3], r"training_data\[0\] must be a pair \(x, y\), got 3"),
        ([*GOOD, (X0,)], r"training_data\[23\] must be a pair"),
        ([*GOOD, (X0[:4], Y0)], r"x of training_data\[23\] .* \(5, 1\), got shape \(4, 1\)"),
        ([(X0[:, 0], Y0)], r"got shape \(5,\): give it as .reshape\(-1, 1\)"),
        ([(X0, Y0.T)], r"y of training_data\[0\] .* \(3, 1\), got shape \(1, 3\)"),
        ([(X0, 2)], r"y of training_data\[0\] .* the number 2: network2.vectorized_result"),
        ([(X0, network2.vectorized_result(2))], r"\(3, 1\), got shape \(10, 1\)"),
        ([(X0.astype(str), Y0)], "x of training_data must hold real numbers"),
        ([GOOD[1], (X0 * np.nan, Y0)], r"x of training_data\[1\] contains NaN"),
        ([GOOD[1], GOOD[2], (X0, Y0 + np.inf)], r"y of training_data\[2\] contains NaN or inf"),
    ],
)
@pytest.mark.parametrize("module", [network, network2])
def test_training_data_that_do_not_fit(module, training, message):
    net = made(module)
    before, drawn = state(net), random.getstate()
    with pytest.raises((ValueError, TypeError), match=message):
        net.SGD(training, 2, 4, 0.5)
    close(state(net), before, 0)
    assert random.getstate() == drawn


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ([], "data is empty"),
        (
            [(X0, 3)],
            r"y of \w+_data\[0\] must be an integer label in \[0, 2\], got 3; .* 3 neurons",
        ),
        ([(X0, 1), (X0, -1)], r"y of \w+_data\[1\] must be an integer label in \[0, 2\], got -1"),
        ([(X0, 1.5)], "integer label .*, got 1.5"),
        ([(X0, float("nan"))], "integer label .*, got nan"),
        ([(X0, "1")], "integer label .*, got '1'"),
        ([(X0, Y0)], r"integer label in \[0, 2\], got shape \(3, 1\)"),
        ([(X0[1:], 1)], r"x of \w+_data\[0\] must be a column of shape \(5, 1\)"),
    ],
)
@pytest.mark.parametrize("module", [network, network2])
def test_evaluation_data_that_do_not_fit(module, evaluation, message):
    net = made(module)
    before, training = state(net), list(GOOD)
    name = "test_data" if module is network else "evaluation_data"
    with pytest.raises(ValueError, match=message):
        net.SGD(training, 2, 4, 0.5, **{name: evaluation})
    with pytest.raises(ValueError, match=message.replace(r"\w+_data", r"\w*data")):
        (net.evaluate if module is network else net.accuracy)(evaluation)
    close(state(net), before, 0)
    assert all(a is b for a, b in zip(training, GOOD, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 0, 0.5), "mini_batch_size must be >= 1, got 0"),
        ((2, -3, 0.5), "mini_batch_size must be >= 1"),
        ((2, 4.0, 0.5), "mini_batch_size must be an integer"),
        ((-1, 4, 0.5), "epochs must be >= 0"),
        ((30.5, 4, 0.5), "epochs must be an integer, got 30.5"),
        ((float("inf"), 4, 0.5), "epochs must be an integer, got inf"),
        ((2, 4, "fast"), "eta must be a number"),
        ((2, 4, float("nan")), "eta must be finite"),
        ((2, 4, 0.5, -1.0), "lmbda must be finite and >= 0"),
    ],
)
def test_numbers_that_do_not_fit(arguments, message):
    net = made(network2)
    before = state(net)
    with pytest.raises((ValueError, TypeError), match=message):
        net.SGD(list(GOOD), *arguments)
    if len(arguments) == 3:
        with pytest.raises((ValueError, TypeError), match=message):
            made(network).SGD(list(GOOD), *arguments)
    close(state(net), before, 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", [np.zeros((7, 5))], "weights must be 2 arrays"),
        ("weights", None, "weights must be a list of arrays"),
        ("weights", [np.zeros((5, 7)), np.zeros((3, 7))], r"layer 1: expected shape \(7, 5\), got"),
        ("biases", [np.zeros(7), np.zeros(3)], r"layer 1: expected shape \(7, 1\), got \(7,\)"),
        ("biases", [np.zeros((7, 1)), np.full((3, 1), np.nan)], r"biases\[1\] contains NaN"),
    ],
)
def test_weights_that_do_not_fit(name, value, message):
    net = made(network)
    setattr(net, name, value)
    for use in (
        lambda: net.SGD(list(GOOD), 1, 4, 0.5),
        lambda: net.feedforward(X0),
        lambda: net.backprop(X0, Y0),
        lambda: net.update_mini_batch(GOOD[:2], 0.5),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            use()


def test_networks_that_are_none():
    drawn = np.random.get_state()[2]
    for module in (network, network2):
        for sizes, message in (([3], "sizes must name"), ([3, 0], ">= 1"), ("32", "sequence")):
            with pytest.raises((ValueError, TypeError), match=message):
                module.Network(sizes)
        with pytest.raises(ValueError, match="unknown backend 'gpu'"):
            module.Network(SIZES, backend="gpu")
    for cost in ("quadratic", None, object):
        with pytest.raises(TypeError, match="cost must be QuadraticCost, CrossEntropyCost or"):
            network2.Network(SIZES, cost)
    with pytest.raises(ValueError, match="penalty must be one of port, book"):
        network2.Network(SIZES, penalty="none")
    assert np.random.get_state()[2] == drawn


def test_monitors_without_evaluation_data():
    with pytest.raises(ValueError, match="evaluation_data, which is None"):
        made(network2).SGD(list(GOOD), 1, 4, 0.5, monitor_evaluation_cost=True)


def test_divergence_keeps_the_epoch_before(engine):
    net = made(network2, backend="numpy")
    random.seed(1)
    first = made(network2, backend="numpy")
    settings = {"mini_batch_size": 23, "eta": 1e200, "lmbda": 23.0}
    first.SGD(list(GOOD), 1, **settings)
    random.seed(1)
    with pytest.raises(FloatingPointError, match="NaN or infinite in epoch 1"):
        net.SGD(list(GOOD), 3, **settings)
    close(state(net), state(first), 0)
