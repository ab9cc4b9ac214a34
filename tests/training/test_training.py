"""The training loop: update rules, schedules, history, callbacks, repeatability, memory."""

from __future__ import annotations

import copy
import gc
import tracemalloc
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from backprop_gpu import (
    SGD,
    Activation,
    Adam,
    AdamW,
    Callback,
    EarlyStopping,
    History,
    Network,
    Population,
    planning,
    schedules,
)
from backprop_gpu.parameters import Layout
from backprop_gpu.philox import philox
from backprop_gpu.training import session
from backprop_gpu.training.fitting import FitCourse
from backprop_gpu.training.progress import ProgressBar
from reference import backpropagate

ROWS, BATCH, EPOCHS = 11, 4, 3  # 3 batches an epoch, the last of 3 rows
STEPS = -(-ROWS // BATCH)


def problem(dtype="float64", rows=ROWS):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((rows, 3)), rng.standard_normal((rows, 2))
    return X.astype(dtype), Y.astype(dtype)


def network(backend="numpy", dtype="float64", seed=1, **settings):
    settings = {"activation": ["tanh", "identity"]} | settings
    return Network([3, 5, 2], dtype=dtype, backend=backend, seed=seed, **settings)


def flat(net):
    return np.concatenate([array.ravel() for array in (*net.weights, *net.biases)])


# -- the order of the rows, drawn while a device computes ----------------------------------


class Stop(Callback):
    """After the second epoch; keeps a copy of the network as it is then."""

    def on_epoch_end(self, network, history):
        if len(history) == 2:
            self.copy = copy.deepcopy(network)
            return True


class DrawsToo(Callback):
    def on_epoch_end(self, network, history):
        network.generator.permutation(5)


def trained_in_every_way():
    X, Y = problem()
    options = {"batch_size": BATCH, "learning_rate": 0.1}
    stop, stopped, disturbed = Stop(), network(), network()
    stopped.fit(X, Y, epochs=9, callbacks=[stop], **options)
    disturbed.fit(X, Y, epochs=3, callbacks=[DrawsToo()], **options)
    for net in (stopped, stop.copy, disturbed):
        net.fit(X, Y, epochs=2, **options)
    found = Population([3, 5, 2], members=3, seed=2, backend="numpy", dtype="float64")
    found.fit(X, Y, epochs=3, engine="layered", **options)
    return [flat(net) for net in (stopped, stop.copy, disturbed, *found)]


@pytest.mark.parametrize("wave", [1, 2, 3])
def test_drawing_ahead_changes_nothing(monkeypatch, wave):
    monkeypatch.setattr(planning, "members_a_call", lambda rows, steps: wave)
    ahead = trained_in_every_way()
    monkeypatch.setattr(FitCourse, "draw", lambda self, ahead: None)
    for a, b in zip(ahead, trained_in_every_way(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("wave", [1, 2, 3])
def test_every_order_but_the_first_wave_s_first_is_drawn_ahead(monkeypatch, wave):
    monkeypatch.setattr(planning, "members_a_call", lambda rows, steps: wave)
    drawn, (X, Y) = [], problem()
    draw = FitCourse.draw_now
    monkeypatch.setattr(FitCourse, "draw_now", lambda self: drawn.append(self._drawn) or draw(self))
    members = Population([3, 5, 2], members=3, seed=2, backend="numpy", dtype="float64")
    members.fit(X, Y, batch_size=BATCH, learning_rate=0.1, epochs=3, engine="layered")
    assert [entry is not None for entry in drawn] == [False] * wave + [True] * (9 - wave)


# -- the update rules --------------------------------------------------------------------


def order_of(net, epochs, optimizer):
    """The permutations that `fit` is going to draw, and what noise draws from: by the network's own
    generator."""
    rng = copy.deepcopy(net.generator)
    drawn = []
    for _ in range(epochs):
        order = rng.permutation(ROWS)
        key = int(rng.integers(2**64, dtype=np.uint64)) if optimizer.gradient_noise else 0
        drawn.append((order, key))
    return drawn


def noise(size, first, step, key):
    """What stands at `first` and behind it, of N(0, 1)."""
    words = []
    for block in range(first // 4, (first + size + 3) // 4):
        counter = np.array([block]), np.array([0]), np.array([0]), np.array([step])
        words += [float(word[0]) for word in philox(counter, (key & 0xFFFFFFFF, key >> 32))]
    u, v = ((np.array(words[i::2]) + 0.5) / 2**32 for i in (0, 1))
    disc = np.sqrt(-2 * np.log(u)) * np.exp(2j * np.pi * v)
    return np.stack([disc.real, disc.imag], axis=1).ravel()[:size]


RULES = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.8),
    "nesterov": SGD(momentum=0.8, nesterov=True),
    "adam": Adam(beta1=0.85, beta2=0.97, epsilon=1e-6),
    "adamw": AdamW(beta1=0.85, beta2=0.97, epsilon=1e-6, weight_decay=0.3),
}
OPTIONS = {
    "plain": {},
    "l2": {"l2": 0.1},
    "l1": {"l1": 0.05},
    "clip_norm": {"clip_norm": 0.5},
    "clip_value": {"clip_value": 0.05},
    "max_norm": {"max_norm": 0.8},
    "gradient_noise": {"gradient_noise": 0.1, "noise_decay": 0.3},
    "all": {"l1": 0.03, "l2": 0.07, "clip_norm": 0.3, "clip_value": 0.1, "max_norm": 0.9},
}


def train_by_hand(net, X, Y, orders, rates, rule, optimizer):
    """Gradient descent in a few lines, on (w[1], …, b[1], …) as a list of arrays."""
    names = [activation.name for activation in net.activations]
    p = [np.array(array) for array in (*net.weights, *net.biases)]
    layers = len(net.weights)
    v = [np.zeros_like(array) for array in p]
    s = [np.zeros_like(array) for array in p]
    starts = Layout(tuple(net.sizes)).starts
    losses, t = [], 0
    for order, key in orders:
        costs = []
        for start in range(0, ROWS, BATCH):
            rows = order[start : start + BATCH]
            passed = backpropagate(p[:layers], p[layers:], names, net.cost.name, X[rows], Y[rows])
            costs += [passed.cost] * len(rows)
            g = [w for w, _ in passed.gradients] + [b for _, b in passed.gradients]
            if optimizer.gradient_noise:
                sigma = np.sqrt(optimizer.gradient_noise / (1 + t) ** optimizer.noise_decay)
                for i, first in enumerate(starts):
                    n = noise(g[i].size, first, start // BATCH, key)
                    g[i] = g[i] + sigma * n.reshape(g[i].shape)
            if optimizer.clip_value is not None:
                g = [np.clip(x, -optimizer.clip_value, optimizer.clip_value) for x in g]
            if optimizer.clip_norm is not None:
                norm = np.sqrt(sum((x**2).sum() for x in g))
                g = [x * min(1.0, optimizer.clip_norm / norm) for x in g]
            for i in range(layers):
                g[i] = g[i] + optimizer.l2 * p[i] + optimizer.l1 * np.sign(p[i])
            eta, t = rates[t], t + 1
            for i in range(len(p)):
                if rule == "sgd":
                    p[i] = p[i] - eta * g[i]
                elif rule == "momentum":
                    v[i] = optimizer.momentum * v[i] - eta * g[i]
                    p[i] = p[i] + v[i]
                elif rule == "nesterov":
                    v[i] = optimizer.momentum * v[i] - eta * g[i]
                    p[i] = p[i] + optimizer.momentum * v[i] - eta * g[i]
                else:
                    if rule == "adamw" and i < layers:
                        p[i] = p[i] - eta * optimizer.weight_decay * p[i]
                    v[i] = optimizer.beta1 * v[i] + (1 - optimizer.beta1) * g[i]
                    s[i] = optimizer.beta2 * s[i] + (1 - optimizer.beta2) * g[i] ** 2
                    m_hat = v[i] / (1 - optimizer.beta1**t)
                    s_hat = s[i] / (1 - optimizer.beta2**t)
                    p[i] = p[i] - eta * m_hat / (np.sqrt(s_hat) + optimizer.epsilon)
            for w in p[:layers] if optimizer.max_norm is not None else ():
                for row in w:
                    row *= min(1.0, optimizer.max_norm / np.linalg.norm(row))
        losses.append(float(np.mean(costs)))
    return p, losses


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_update_rules(backend, rule, options):
    optimizer = replace(RULES[rule], **OPTIONS[options])
    X, Y = problem()
    net = network(backend)
    schedule = schedules.ExponentialDecay(0.1, 0.5)
    rates = schedule(np.arange(EPOCHS * STEPS) / STEPS)
    orders = order_of(net, EPOCHS, optimizer)
    expected, losses = train_by_hand(net, X, Y, orders, rates, rule, optimizer)
    start = flat(net)
    history = net.fit(
        X, Y, epochs=EPOCHS, batch_size=BATCH, learning_rate=schedule, optimizer=optimizer
    )
    assert np.abs(flat(net) - start).max() > 1e-3
    for got, right in zip((*net.weights, *net.biases), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-11, atol=1e-12)
    assert history.loss == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize("options", ["clip_norm", "clip_value", "max_norm", "gradient_noise"])
def test_options_do_something(options):
    X, Y = problem()
    clipped, plain = network(), network()
    for net, settings in ((clipped, OPTIONS[options]), (plain, {})):
        net.fit(X, Y, epochs=1, batch_size=BATCH, learning_rate=0.1, optimizer=SGD(**settings))
    assert np.abs(flat(clipped) - flat(plain)).max() > 1e-3


def test_clip_norm_of_a_huge_gradient():
    """The norm of a float32 gradient may be beyond float32 when squared."""
    net = Network([1, 1], activation="identity", backend="numpy", seed=1)
    start = flat(net)
    net.fit(
        [[1e14]], [[-1e14]], epochs=1, batch_size=1, learning_rate=1.0, optimizer=SGD(clip_norm=1.0)
    )
    assert np.linalg.norm(flat(net) - start) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("sgd", SGD()),
        ("momentum", SGD(momentum=0.9)),
        ("nesterov", SGD(momentum=0.9, nesterov=True)),
        ("adam", Adam()),
        ("adamw", AdamW()),
    ],
)
def test_named_optimizers(name, optimizer):
    X, Y = problem()
    by_name, by_object = network(), network()
    for net, given in ((by_name, name), (by_object, optimizer)):
        net.fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=0.01, optimizer=given)
    np.testing.assert_array_equal(flat(by_name), flat(by_object))


def test_optimizer_starts_afresh_in_every_fit():
    X, Y = problem()
    net = network()
    net.fit(X, Y, epochs=1, batch_size=ROWS, learning_rate=0.1, optimizer="momentum")
    before, (gradient,) = flat(net), [net.gradients(X, Y)]
    net.fit(X, Y, epochs=1, batch_size=ROWS, learning_rate=0.1, optimizer="momentum")
    step = [w for w, _ in gradient] + [b for _, b in gradient]
    expected = before - 0.1 * np.concatenate([array.ravel() for array in step])
    np.testing.assert_allclose(flat(net), expected, rtol=1e-10)


# -- schedules -----------------------------------------------------------------------------


def test_schedules():
    t = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 9.0])
    np.testing.assert_allclose(
        schedules.ExponentialDecay(2.0, 0.25)(t), [2, 1, 0.5, 0.125, 2 * 0.25**4, 2 * 0.25**9]
    )
    np.testing.assert_allclose(
        schedules.StepDecay(1.0, every=2, factor=0.1)(t), [1, 1, 1, 0.1, 0.01, 1e-4]
    )
    np.testing.assert_allclose(
        schedules.CosineDecay(1.0, epochs=4, final=0.2)(t),
        [1.0, 0.2 + 0.4 * (1 + np.cos(np.pi / 8)), 0.2 + 0.4 * (1 + np.sqrt(0.5)), 0.6, 0.2, 0.2],
    )
    np.testing.assert_allclose(schedules.Warmup(2, then=3.0)(t), [0, 0.75, 1.5, 3, 3, 3])
    np.testing.assert_allclose(
        schedules.Warmup(2, then=schedules.StepDecay(1.0, every=4))(t),
        [0, 0.25, 0.5, 1, 0.5, 0.25],
    )


def test_a_schedule_sees_the_time_in_epochs():
    seen = []

    def schedule(t):
        seen.append(t.copy())
        return np.full(t.shape, 0.1)

    X, Y = problem()
    network().fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=schedule)
    np.testing.assert_allclose(np.unique(np.concatenate(seen)), np.arange(6) / 3)


def test_a_schedule_is_evaluated_as_training_goes_on():
    """Before the first epoch a few are tried, first and last among them, however many there are."""
    seen = []

    def schedule(t):
        seen.append(t[0])
        return np.full(t.shape, 0.1)

    X, Y = problem()
    before = []
    network().fit(
        X, Y, epochs=10**9, batch_size=BATCH, learning_rate=schedule,
        callbacks=[lambda n, h: before.append(len(seen)) or len(h) == 3],
    )  # fmt: skip
    assert seen[0] == 0
    assert max(seen) == 10**9 - 1
    assert before == [before[0], before[0] + 1, before[0] + 2]
    assert before[0] <= 20


LATE = {
    "negative": (
        lambda t: np.where((t >= 6) & (t < 7), -1.0, 0.1),
        ValueError,
        "got -1.0 at t = 6",
    ),
    "complex": (lambda t: t + 1j if t[0] == 6 else t, TypeError, "real numbers, got dtype complex"),
    "shape": (lambda t: t[:1] if t[0] == 6 else t, ValueError, "one rate a time"),
    "error": (lambda t: {6.0: [][0]} if t[0] == 6 else t, ValueError, "failed: IndexError"),
}


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_a_schedule_that_fails_later(late, engine):
    schedule, kind, message = LATE[late]
    X, Y = problem("float32")
    net, alone, ends = network(dtype="float32"), network(dtype="float32"), []
    settings = {"batch_size": BATCH, "engine": engine}
    recorder = Recorder()
    recorder.on_batch_end = Callback.on_batch_end.__get__(recorder)
    with pytest.raises(kind, match=rf"^epoch 7: .*{message}"):
        net.fit(X, Y, epochs=1000, learning_rate=schedule, callbacks=[recorder], **settings)
    assert len(net.history) == 6
    assert recorder.calls[-2:] == ["epoch 6", "end"]
    alone.fit(
        X, Y, epochs=1000, learning_rate=lambda t: schedule(t) if t[0] < 6 else t * 0,
        callbacks=[lambda n, h: ends.append(flat(n)) or len(h) == 6], **settings,
    )  # fmt: skip
    np.testing.assert_array_equal(flat(net), ends[-1])


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: schedules.ExponentialDecay("a", 0.5), TypeError, "initial must be a number"),
        (
            lambda: schedules.ExponentialDecay(1.0, -0.5),
            ValueError,
            "decay must be finite and >= 0",
        ),
        (lambda: schedules.StepDecay(1.0, every=0), ValueError, "every must be finite and > 0"),
        (lambda: schedules.StepDecay(1.0, 1, factor=np.nan), ValueError, "factor must be finite"),
        (lambda: schedules.CosineDecay(1.0, "9"), TypeError, "epochs must be a number, got '9'"),
        (lambda: schedules.CosineDecay(1.0, 9, -1), ValueError, "final must be finite and >= 0"),
        (lambda: schedules.Warmup(10**400, 0.1), ValueError, "epochs .* an integer of 1329 bits"),
        (lambda: schedules.Warmup(5, "0.1"), TypeError, "then must be a number or a schedule"),
        (lambda: schedules.Warmup(5, -0.1), ValueError, "then must be finite and >= 0"),
    ],
)
def test_schedules_check_their_numbers(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_constant_is_the_constant_schedule():
    X, Y = problem()
    nets = [network() for _ in range(4)]
    rates = (0.1, np.float64(0.1), lambda t: 0.1, lambda t: np.full_like(t, 0.1))
    for net, rate in zip(nets, rates, strict=True):
        net.fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=rate)
        np.testing.assert_array_equal(flat(net), flat(nets[0]))


def test_learning_rate_zero_changes_nothing():
    X, Y = problem()
    net = network()
    before = flat(net)
    net.fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=0)
    np.testing.assert_array_equal(flat(net), before)


# -- history and callbacks -----------------------------------------------------------------


def test_history(backend):
    X, Y = problem()
    net = network(backend)
    history = net.fit(
        X, Y, epochs=3, batch_size=BATCH, learning_rate=0.1, validation_data=(X[:5], Y[:5])
    )
    assert isinstance(history, History)
    assert net.history is history
    assert len(history) == len(history.loss) == len(history.val_loss) == len(history.seconds) == 3
    assert history.loss[2] < history.loss[0]
    assert history.val_loss[-1] == pytest.approx(net.loss(X[:5], Y[:5]), rel=1e-12)
    assert np.isnan(history.val_accuracy).all()  # the targets are not classes
    assert all(isinstance(value, float) for value in history.loss + history.val_loss)
    assert min(history.seconds) > 0
    again = net.fit(X, Y, epochs=1, batch_size=BATCH, learning_rate=0.1)
    assert again is not history
    assert again.val_loss == again.val_accuracy == []


def test_validation_accuracy(backend):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    labels = (X[:, 0] > 0).astype(int)
    net = network(backend, activation=["tanh", "softmax"], cost="categorical_cross_entropy")
    history = net.fit(
        X, labels, epochs=2, batch_size=10, learning_rate=0.5, validation_data=(X, labels)
    )
    assert history.val_accuracy[-1] == net.accuracy(X, labels)
    assert net.accuracy(X, np.eye(2)[labels]) == net.accuracy(X, labels)


def test_loss_is_the_mean_over_rows_and_not_over_batches():
    X, Y = problem()
    net = network()
    # With η = 0 the epoch's loss is the loss, short last batch or not.
    history = net.fit(X, Y, epochs=1, batch_size=BATCH, learning_rate=0)
    assert history.loss == pytest.approx([net.loss(X, Y)], rel=1e-12)


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def on_fit_start(self, network):
        self.calls.append("start")

    def on_batch_end(self, network, batch):
        self.calls.append(batch)

    def on_epoch_end(self, network, history):
        self.calls.append(f"epoch {len(history)}")
        return None

    def on_fit_end(self, network, history):
        self.calls.append("end")


def test_callbacks_are_called_in_order(backend):
    X, Y = problem()
    net, recorder = network(backend), Recorder()
    seen = []
    net.fit(
        X,
        Y,
        epochs=2,
        batch_size=BATCH,
        learning_rate=0.1,
        callbacks=[recorder, lambda network, history: seen.append((network, history.loss[-1]))],
    )
    assert recorder.calls == ["start", 0, 1, 2, "epoch 1", 0, 1, 2, "epoch 2", "end"]
    assert seen == [(net, net.history.loss[0]), (net, net.history.loss[1])]


def test_batch_callbacks_change_no_bits(backend):
    X, Y = problem("float32")
    watched, plain = network(backend, "float32"), network(backend, "float32")
    watched.fit(X, Y, epochs=3, batch_size=BATCH, learning_rate=0.1, callbacks=[Recorder()])
    plain.fit(X, Y, epochs=3, batch_size=BATCH, learning_rate=0.1)
    np.testing.assert_array_equal(flat(watched), flat(plain))


class Curious(Callback):
    """Uses the network while it trains."""

    def on_batch_end(self, network, batch):
        X, Y = problem()
        network.predict(X[:BATCH])
        network.loss(X, Y)
        network.gradients(X[:BATCH], Y[:BATCH])
        network.accuracy(X, np.zeros(ROWS, int))


def test_a_callback_may_use_the_network(backend):
    X, Y = problem()
    watched, plain = network(backend), network(backend)
    watched.fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=0.1, callbacks=[Curious()])
    plain.fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=0.1)
    np.testing.assert_array_equal(flat(watched), flat(plain))


def test_a_callback_may_change_the_weights(backend):
    X, Y = problem()
    net = network(backend)
    zeros = [np.zeros_like(w) for w in net.weights], [np.zeros_like(b) for b in net.biases]

    def reset(network, history):
        network.weights, network.biases = zeros

    net.fit(X, Y, epochs=1, batch_size=BATCH, learning_rate=0.1, callbacks=[reset])
    assert not flat(net).any()


def test_a_callback_may_train_another_network(backend):
    X, Y = problem()
    outer, alone, inner = network(backend), network(backend), []
    settings = {"batch_size": BATCH, "learning_rate": 0.1, "validation_data": (X, Y)}

    def train_another(net, history):
        inner.append(network(backend, seed=2))
        inner[-1].fit(X, Y, epochs=len(history), **settings)

    history = outer.fit(X, Y, epochs=3, callbacks=[train_another], **settings)
    alone.fit(X, Y, epochs=3, **settings)
    assert outer.history is history
    assert (history.loss, history.val_loss) == (alone.history.loss, alone.history.val_loss)
    np.testing.assert_array_equal(flat(outer), flat(alone))
    expected = network(backend, seed=2)
    expected.fit(X, Y, epochs=3, **settings)
    np.testing.assert_array_equal(flat(inner[-1]), flat(expected))


def test_a_callback_stops_training():
    X, Y = problem()
    net = network()
    after = []
    history = net.fit(
        X,
        Y,
        epochs=10,
        batch_size=BATCH,
        learning_rate=0.1,
        callbacks=[lambda network, history: len(history) == 4, lambda n, h: after.append(1)],
    )
    assert len(history) == 4
    assert len(after) == 4  # every callback hears of the last epoch


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy", "loss"])
def test_early_stopping_restores_the_best(backend, monitor):
    X, Y = problem()
    if monitor == "val_accuracy":
        Y = np.eye(2)[(X[:, 0] > 0).astype(int)]
    net = network(backend)
    saved = []

    def spoil(network, history):
        saved.append(flat(network))
        if len(history) >= 3:  # from here on it only gets worse
            network.biases = [b + 3.0 * (-1) ** np.arange(len(b)) for b in network.biases]

    stopper = EarlyStopping(monitor, patience=2)
    history = net.fit(
        X,
        Y,
        epochs=50,
        batch_size=BATCH,
        learning_rate=0.05,
        validation_data=(X, Y),
        callbacks=[spoil, stopper],
    )
    values = np.array(getattr(history, monitor))
    best = int(np.argmax(values)) if monitor == "val_accuracy" else int(np.argmin(values))
    assert stopper.best_epoch == best
    assert len(history) == best + 1 + 2
    if best < 2:
        np.testing.assert_array_equal(flat(net), saved[best])
    assert not np.array_equal(flat(net), saved[-1])


def test_early_stopping_details():
    X, Y = problem()
    settings = {"batch_size": BATCH, "validation_data": (X, Y)}
    # With η = 0 nothing improves: patience epochs after the first one.
    history = network().fit(
        X, Y, epochs=50, learning_rate=0, callbacks=[EarlyStopping(patience=4)], **settings
    )
    assert len(history) == 5
    # A large min_delta makes a small improvement none.
    history = network().fit(
        X,
        Y,
        epochs=50,
        learning_rate=1e-3,
        callbacks=[EarlyStopping(patience=3, min_delta=1e3)],
        **settings,
    )
    assert len(history) == 4
    # The weights are the last ones where restoring is not wanted.
    last = []
    net = network()
    net.fit(
        X,
        Y,
        epochs=9,
        learning_rate=1.5,
        callbacks=[
            lambda n, h: last.append(flat(n)),
            EarlyStopping(patience=2, restore_best=False),
        ],
        **settings,
    )
    np.testing.assert_array_equal(flat(net), last[-1])
    # One object serves several fits.
    stopper = EarlyStopping(patience=4)
    for _ in range(2):
        history = network().fit(X, Y, epochs=50, learning_rate=0, callbacks=[stopper], **settings)
        assert len(history) == 5


@pytest.mark.parametrize("keywords", [{"monitor": "val_acc"}, {"patience": -1}, {"min_delta": -1}])
def test_early_stopping_arguments(keywords):
    with pytest.raises(ValueError, match=next(iter(keywords))):
        EarlyStopping(**keywords)


def test_early_stopping_takes_only_flags():
    with pytest.raises(TypeError, match="restore_best must be True or False, got 'no'"):
        EarlyStopping(restore_best="no")


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy", "loss"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("pattern", "best"),  # of values that improve, b being a bad one
    [("b123", 3), ("b1bb", 1), ("1bb", 0), ("1b2bb", 2), ("bb", None)],
)
def test_nan_is_no_improvement(monitor, bad, pattern, best):
    X, Y = problem()
    if monitor == "val_accuracy":
        Y = np.eye(2)[(X[:, 0] > 0).astype(int)]
    sign, saved = -1 if monitor == "val_accuracy" else 1, []

    def measure(network, history):
        found = pattern[len(history) - 1]
        getattr(history, monitor)[-1] = sign * (bad if found == "b" else 5.0 - float(found))
        saved.append(flat(network))

    net = network()
    history = net.fit(
        X, Y, epochs=len(pattern) if best == 3 else 50, batch_size=BATCH, learning_rate=0.05,
        validation_data=(X, Y), callbacks=[measure, EarlyStopping(monitor, patience=2)],
    )  # fmt: skip
    assert len(history) == len(pattern)
    assert history.restored == (None if best in (None, 3) else best)
    np.testing.assert_array_equal(flat(net), saved[-1 if best is None else best])


def test_the_bar_shows_a_number_where_there_is_one():
    courses = [SimpleNamespace(history=History(loss=[loss])) for loss in (np.nan, 2.0, 1.0, np.nan)]
    with ProgressBar(1, True, members=4) as shown:
        seen = []
        shown.bar.set_postfix = lambda values, refresh: seen.append(values["best loss"])
        shown.epoch_is_over(courses)
    assert seen == ["1.0000"]


def test_a_batch_hook_set_on_an_object():
    X, Y = problem()
    callback, batches = Callback(), []
    callback.on_batch_end = lambda net, batch: batches.append(batch)
    network().fit(
        X, Y, epochs=2, batch_size=BATCH, learning_rate=0.1, callbacks=[Callback(), callback]
    )
    steps = -(-len(X) // BATCH)
    assert batches == [*range(steps)] * 2


def test_schedules_take_no_memory_for_epochs_to_come():
    X, Y = np.zeros((1000, 1)), np.zeros(1000)
    net = Network([1, 1], backend="numpy", seed=1)
    tracemalloc.start()
    try:
        net.fit(
            X,
            Y,
            epochs=2000,  # 16 MB of rates
            batch_size=1,
            learning_rate=lambda t: 0.1 / (1 + t),
            callbacks=[lambda n, h: True],
            engine="layered",  # loading Numba takes memory of its own
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000  # what is imported takes up to five


def test_early_stopping_needs_its_values_before_anything_changes():
    X, Y = problem()
    net = network()
    before = flat(net)
    settings = {"epochs": 3, "batch_size": BATCH, "learning_rate": 0.1}
    with pytest.raises(ValueError, match="validation_data"):
        net.fit(X, Y, callbacks=[EarlyStopping()], **settings)
    np.testing.assert_array_equal(flat(net), before)
    # An accuracy that is NaN, because the targets are no classes, can be no guide either.
    with pytest.raises(ValueError, match="val_accuracy"):
        net.fit(X, Y, callbacks=[EarlyStopping("val_accuracy")], validation_data=(X, Y), **settings)
    np.testing.assert_array_equal(flat(net), before)


# -- repeatability -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_same_seed_same_bits(backend, dtype, optimizer):
    X, Y = problem(rows=37)

    def train(seed):
        net = network(backend, dtype, seed)
        results = [flat(net)]
        for batch_size in (5, 8):  # the shuffling goes on from fit to fit
            history = net.fit(
                X, Y, epochs=2, batch_size=batch_size, learning_rate=0.05, optimizer=optimizer
            )
            results += [flat(net), np.array(history.loss)]
        return results

    first, second, other = train(3), train(3), train(4)
    for a, b, c in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_trains_on_independently(backend, copied):
    X, Y = problem()
    settings = {"epochs": 2, "batch_size": BATCH, "learning_rate": 0.1}
    net, alone = network(backend), network(backend)
    taken = []
    for each in (net, alone):
        each.fit(
            X, Y, callbacks=[lambda n, h: taken.append((copied(n), flat(n), len(h)))], **settings
        )
    for other, weights, epochs in taken:  # as they were
        assert len(other.history) == epochs
        np.testing.assert_array_equal(flat(other), weights)
    other = copied(net)
    other.fit(X, Y, **settings)
    net.fit(X, Y, **settings)
    alone.fit(X, Y, **settings)
    np.testing.assert_array_equal(flat(net), flat(alone))
    np.testing.assert_array_equal(flat(other), flat(alone))
    assert other.history is not net.history


def test_a_shallow_copy_keeps_activations_and_cost():
    own = Activation("own", lambda z: z, lambda z: z * 0 + 1)
    net = network(activation=["tanh", own])
    assert copy.copy(net).activations == net.activations


def test_no_seed_differs():
    assert not np.array_equal(flat(network(seed=None)), flat(network(seed=None)))


def test_every_epoch_has_its_own_order():
    X, Y = problem()
    net = network()
    seen = []

    class Weights(Callback):
        def on_batch_end(self, network, batch):
            seen.append(flat(network))

    net.fit(X, Y, epochs=2, batch_size=1, learning_rate=1e-6, callbacks=[Weights()])
    steps = np.diff(np.array(seen), axis=0)
    first, second = steps[: ROWS - 1], steps[ROWS:]
    # One row's step is told from another's by its direction: the same set, another order.
    assert not np.allclose(first, second, rtol=1e-2, atol=1e-12)


def test_every_row_is_used_once_an_epoch():
    X, Y = problem()
    net = network()
    # So small a step that the gradients of an epoch are those at its start: they add up.
    start, gradient = flat(net), net.gradients(X, Y)
    net.fit(X, Y, epochs=1, batch_size=1, learning_rate=1e-7)
    total = np.concatenate(
        [array.ravel() for array in (*(w for w, _ in gradient), *(b for _, b in gradient))]
    )
    np.testing.assert_allclose((start - flat(net)) / 1e-7 / ROWS, total, rtol=1e-4, atol=1e-6)


def test_labels_and_one_hot_rows_give_the_same_bits(backend):
    X, _ = problem()
    labels = np.arange(ROWS) % 2
    nets = [network(backend, activation=["tanh", "sigmoid"]) for _ in range(5)]
    forms = (labels, np.eye(2)[labels], labels.tolist(), labels.astype(np.uint8), labels == 1)
    for net, Y in zip(nets, forms, strict=True):
        net.fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=0.5)
        np.testing.assert_array_equal(flat(net), flat(nets[0]))
        assert net.loss(X, Y) == nets[0].loss(X, labels)


def test_binary_labels_for_one_output(backend):
    X, _ = problem()
    labels = np.arange(ROWS) % 2
    nets = [
        Network([3, 4, 1], cost="binary_cross_entropy", backend=backend, seed=1) for _ in range(3)
    ]
    forms = (labels, labels[:, None].astype(float), labels.astype(bool))
    for net, Y in zip(nets, forms, strict=True):
        net.fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=0.5)
        np.testing.assert_array_equal(flat(net), flat(nets[0]))


# -- what goes wrong on the way --------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_nan_cost_names_epoch_and_batch_and_keeps_the_weights(backend):
    X, Y = problem()
    saved = []

    def rate(t):
        return np.where(t < 2 + 0.5 / STEPS, 0.1, 1e300)  # wild from epoch 3, batch 2 on

    net = network(backend, activation=["identity", "identity"])
    with pytest.raises(FloatingPointError, match=r"epoch 3, batch 3 of 3") as error:
        net.fit(
            X,
            Y,
            epochs=5,
            batch_size=BATCH,
            learning_rate=rate,
            callbacks=[lambda n, h: saved.append(flat(n))],
        )
    assert "learning_rate" in str(error.value)
    assert len(saved) == 2
    np.testing.assert_array_equal(flat(net), saved[-1])
    assert len(net.history) == 2
    net.fit(X, Y, epochs=1, batch_size=BATCH, learning_rate=0.1)
    assert np.isfinite(flat(net)).all()


def test_parameters_that_overflow_in_the_last_batch():
    X, Y = problem()
    net = network(activation=["identity", "identity"])
    before = flat(net)
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch 1 of 1"):
        net.fit(X, Y * 1e10, epochs=1, batch_size=ROWS, learning_rate=1e300)
    np.testing.assert_array_equal(flat(net), before)


class Interrupt(Callback):
    def __init__(self, epoch, batch):
        self.epoch, self.batch = epoch, batch
        self.ends = 0

    def on_batch_end(self, network, batch):
        if len(network.history) == self.epoch and batch == self.batch:
            raise KeyboardInterrupt

    def on_fit_end(self, network, history):
        self.ends += 1


@pytest.mark.parametrize("epoch", [0, 2])
def test_ctrl_c_leaves_the_last_whole_epoch(backend, epoch):
    X, Y = problem()
    net, saved = network(backend), []
    saved.append(flat(net))
    interrupt = Interrupt(epoch, 1)
    with pytest.raises(KeyboardInterrupt):
        net.fit(
            X,
            Y,
            epochs=9,
            batch_size=BATCH,
            learning_rate=0.1,
            optimizer="momentum",
            callbacks=[lambda n, h: saved.append(flat(n)), interrupt],
        )
    np.testing.assert_array_equal(flat(net), saved[-1])
    assert len(net.history) == epoch == len(saved) - 1
    assert interrupt.ends == 1
    net.fit(X, Y, epochs=1, batch_size=BATCH, learning_rate=0.1)
    assert net.predict(X).shape == (ROWS, 2)


def test_ctrl_c_while_it_validates_leaves_the_last_whole_epoch(monkeypatch):
    """The weights are those of the last figures in the history."""
    X, Y = problem()
    net, saved, calls = network(), [], []
    judge = session.losses_and_accuracies

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(session, "losses_and_accuracies", interrupted)
    with pytest.raises(KeyboardInterrupt):
        net.fit(
            X, Y, epochs=9, batch_size=BATCH, learning_rate=0.1, validation_data=(X, Y),
            callbacks=[lambda n, h: saved.append(flat(n))],
        )  # fmt: skip
    assert len(net.history.loss) == len(net.history.val_loss) == len(saved) == 2
    np.testing.assert_array_equal(flat(net), saved[-1])


def test_ctrl_c_with_early_stopping_leaves_the_best():
    X, Y = problem()
    net, saved = network(), []

    def watch(network, history):
        saved.append(flat(network))
        network.biases = [b + 5.0 for b in network.biases]
        if len(history) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        net.fit(
            X,
            Y,
            epochs=9,
            batch_size=BATCH,
            learning_rate=1e-4,
            validation_data=(X, Y),
            callbacks=[EarlyStopping(), watch],
        )
    np.testing.assert_array_equal(flat(net), saved[0])


def test_an_exception_in_a_callback_leaves_a_usable_network(backend):
    X, Y = problem()
    net = network(backend)

    def fail(network, history):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        net.fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=0.1, callbacks=[fail])
    assert np.isfinite(flat(net)).all()
    net.fit(X, Y, epochs=1, batch_size=BATCH, learning_rate=0.1)


@pytest.mark.parametrize("activation", ["sigmoid", "silu", "elu", "softplus", "gelu", "tanh"])
def test_no_warning_from_saturated_neurons(activation):
    X, Y = problem("float32")
    net = network(dtype="float32", activation=[activation, "sigmoid"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.fit(X * 1e4, Y, epochs=2, batch_size=BATCH, learning_rate=0.1)
        net.predict(X * 1e6)
        net.loss(X * 1e6, Y)
        net.gradients(X * 1e6, Y)


def test_no_warning_from_saturated_costs():
    X, _ = problem("float32")
    labels = np.arange(ROWS) % 2
    for output, cost in (
        ("sigmoid", "binary_cross_entropy"),
        ("softmax", "categorical_cross_entropy"),
        ("softmax", "quadratic"),
        ("sigmoid", "quadratic"),
        ("softmax", "binary_cross_entropy"),
    ):
        net = network(dtype="float32", activation=["identity", output], cost=cost)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isfinite(net.loss(X * 1e4, labels))
            assert all(np.isfinite(w).all() for w, _ in net.gradients(X * 1e4, labels))
            net.fit(X * 1e3, labels, epochs=2, batch_size=BATCH, learning_rate=0.1)


# -- memory --------------------------------------------------------------------------------


class Memory(Callback):
    """The traced peak of every epoch above the level at its first batch's end."""

    def __init__(self):
        self.grown = []

    def on_batch_end(self, network, batch):
        if batch == 0:
            tracemalloc.reset_peak()
            self.level = tracemalloc.get_traced_memory()[0]
        else:
            self.grown.append(tracemalloc.get_traced_memory()[1] - self.level)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("activation", ["sigmoid", "gelu", "leaky_relu"])
def test_a_step_allocates_nothing_after_the_first(activation, optimizer):
    rows, batch = 2560, 512
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 64)).astype(np.float32)
    Y = rng.integers(0, 10, rows)
    net = Network(
        [64, 256, 10],
        activation=[activation, "softmax"],
        cost="categorical_cross_entropy",
        backend="numpy",
        seed=1,
    )
    memory = Memory()
    # NumPy casts and broadcasts through buffers of its own, at most this many elements long.
    buffer_size = np.setbufsize(512)
    tracemalloc.start()
    try:
        net.fit(
            X,
            Y,
            epochs=3,
            batch_size=batch,
            learning_rate=1e-3,
            optimizer=optimizer,
            callbacks=[memory],
        )
    finally:
        tracemalloc.stop()
        np.setbufsize(buffer_size)
    # The hidden layer's activations are 512 KiB, the output layer's 20 KiB.
    assert max(memory.grown) < 16 * 1024, f"{max(memory.grown)} bytes"


def test_training_leaves_nothing_behind():
    X, Y = problem(rows=300)
    net = network()
    net.fit(X, Y, epochs=1, batch_size=7, learning_rate=0.1)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for batch_size in range(1, 40):
            net.fit(X, Y, epochs=1, batch_size=batch_size, learning_rate=0.1)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 32 * 1024, f"{grown} bytes"


@pytest.mark.parametrize("method", ["predict", "loss", "gradients"])
def test_using_a_network_does_not_grow_it(method):
    """Requests of ever other sizes, as a server gets them, must not pile up scratch memory."""
    net = Network([8, 64, 2], backend="numpy", seed=1)
    X, Y = np.zeros((120, 8), np.float32), np.zeros((120, 2), np.float32)

    def use(rows):
        getattr(net, method)(*((X[:rows],) if method == "predict" else (X[:rows], Y[:rows])))

    use(1)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for rows in range(1, 121):
            use(rows)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # The scratch of the largest request alone is 60 KiB; of all together it would be 3.7 MiB.
    assert grown < 256 * 1024, f"{grown} bytes"


@pytest.mark.parametrize("rows", [6, 7, 8, 14, 20])
def test_many_rows_go_through_in_parts(backend, monkeypatch, rows):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((rows, 3)), rng.standard_normal((rows, 2))
    net = network(backend)
    whole, loss = net.predict(X), net.loss(X, Y)
    monkeypatch.setattr(planning, "CHUNK_ROWS", 7)
    np.testing.assert_allclose(net.predict(X), whole, rtol=1e-13)
    assert net.loss(X, Y) == pytest.approx(loss, rel=1e-13)
    assert loss == pytest.approx(0.5 * ((whole - Y) ** 2).sum() / rows, rel=1e-13)


# -- on real data -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    X, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, labels = X[order] / 16.0, labels[order]
    return (X[:1437], labels[:1437]), (X[1437:], labels[1437:])


def test_digits(backend, digits):
    (X, labels), held_out = digits
    net = Network([64, 30, 10], cost="binary_cross_entropy", backend=backend, seed=1)
    history = net.fit(
        X, labels, epochs=15, batch_size=10, learning_rate=0.5, validation_data=held_out
    )
    assert history.val_accuracy[-1] >= 0.95
    assert net.accuracy(*held_out) == history.val_accuracy[-1]
    assert history.loss[-1] < 0.2 * history.loss[0]


def test_xor(backend):
    X, Y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    net = Network([2, 8, 1], cost="binary_cross_entropy", backend=backend, seed=1)
    net.fit(X, Y, epochs=500, batch_size=4, learning_rate=2.0)
    assert net.accuracy(X, Y) == 1.0


def test_progress_bar(capsys):
    X, Y = problem()
    network().fit(X, Y, epochs=2, batch_size=BATCH, learning_rate=0.1)
    assert capsys.readouterr() == ("", "")
    network().fit(
        X, Y, epochs=2, batch_size=BATCH, learning_rate=0.1, progress=True, validation_data=(X, Y)
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err
    assert "val_loss" in err


@pytest.mark.parametrize(
    "wrong",
    [
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"nesterov": True},
        {"l1": -1.0},
        {"l2": 10**400},
        {"momentum": 10**400},
        {"l2": float("nan")},
        {"l2": float("inf")},
        {"clip_norm": 0.0},
        {"clip_value": -1.0},
    ],
)
def test_optimizer_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SGD(**wrong)


@pytest.mark.parametrize("wrong", ["no", 1, None])
def test_nesterov_is_a_flag(wrong):
    with pytest.raises(TypeError, match=f"nesterov must be True or False, got {wrong!r}"):
        SGD(momentum=0.9, nesterov=wrong)
    assert SGD(momentum=0.9, nesterov=np.True_).rule == "nesterov"


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Adam, {"beta1": 1.0}),
        (Adam, {"beta2": -0.5}),
        (Adam, {"epsilon": 0.0}),
        (AdamW, {"weight_decay": -1.0}),
    ],
)
def test_adam_settings_are_checked(make, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)
    with pytest.raises(TypeError, match="must be a number"):
        make(**dict.fromkeys(wrong, "0.1"))
