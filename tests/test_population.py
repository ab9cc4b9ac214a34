"""Populations: each member trains as it would alone, to the bit, whatever becomes of the others."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest

from backprop_gpu import (
    SGD,
    Activation,
    Adam,
    Callback,
    Cost,
    EarlyStopping,
    History,
    Network,
    Population,
    planning,
    schedules,
)
from backprop_gpu.backends.numpy import NumpyBackend
from backprop_gpu.engines.layered import LayeredEngine

ROWS = 11
SIZES = [3, 5, 2]
GOOD = {"epochs": 3, "batch_size": 4, "learning_rate": 0.1}


def problem(rows=ROWS, classes=False):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 3))
    return X, (X[:, 0] > 0).astype(int) if classes else rng.uniform(0.1, 0.9, (rows, 2))


def population(members=3, **settings):
    return Population(SIZES, members=members, **({"backend": "numpy", "seed": 5} | settings))


def network(seed, **settings):
    return Network(SIZES, **({"backend": "numpy", "seed": seed} | settings))


def flat(net):
    return np.concatenate([array.ravel() for array in (*net.weights, *net.biases)])


def assert_same(member, alone):
    np.testing.assert_array_equal(flat(member), flat(alone))
    for values in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_array_equal(
            getattr(member.history, values), getattr(alone.history, values)
        )
    assert member.history.restored == alone.history.restored
    assert copy.deepcopy(member.generator).random() == copy.deepcopy(alone.generator).random()


BACKENDS = [
    "numpy",
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=["layered", "resident"])
def engine(request):
    return request.param


# -- a member is what it would be alone -----------------------------------------------------------

#: Of each member; two agree in rule and batch size, and so share buffers.
EACH = {
    "epochs": [3, 1, 4, 2, 3],
    "batch_size": [4, 11, 4, 3, 1],
    "learning_rate": [0.1, 0.5, schedules.ExponentialDecay(0.1, 0.5), 0.01, 0.0],
    "optimizer": ["sgd", Adam(), "sgd", SGD(momentum=0.8, l2=0.1), "adamw"],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_members_train_as_alone(backend, engine, dtype):
    X, labels = problem(classes=True)
    settings = {"dtype": dtype, "backend": backend}
    members = population(5, **settings)
    before = [flat(member) for member in members]
    data = {"validation_data": (X[:6], labels[:6]), "engine": engine}
    histories = members.fit(X, labels, **EACH, **data)
    assert members.plan.engine == engine
    assert not members.failed
    for i, member in enumerate(members):
        alone = network(5 + i, **settings)
        np.testing.assert_array_equal(before[i], flat(alone))
        alone.fit(X, labels, **{key: values[i] for key, values in EACH.items()}, **data)
        assert alone.plan.engine == engine
        assert_same(member, alone)
        assert histories[i] is member.history
        assert len(histories[i]) == EACH["epochs"][i]
        assert member.plan is members.plan
    assert len({flat(member).tobytes() for member in members}) == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_as_alone(backend, engine):
    X, Y = problem()
    members, alone = population(2, backend=backend), network(6, backend=backend)
    members.fit(X, Y, **GOOD, optimizer="adam", engine=engine)
    alone.fit(X, Y, **GOOD, optimizer="adam", engine=engine)
    members.fit(X, Y, **(GOOD | {"batch_size": [3, 5]}), engine=engine)
    alone.fit(X, Y, **(GOOD | {"batch_size": 5}), engine=engine)
    assert_same(members.members[1], alone)
    # A member is an ordinary network: it may be trained by itself, and only it changes.
    neighbour = flat(members.members[0])
    for net in (members.members[1], alone):
        net.fit(X, Y, **GOOD, engine=engine)
    assert_same(members.members[1], alone)
    np.testing.assert_array_equal(flat(members.members[0]), neighbour)


def test_one_value_is_the_same_for_each():
    X, Y = problem()
    one, several = population(), population()
    one.fit(X, Y, **GOOD, optimizer="momentum")
    forms = {
        "epochs": np.array([3, 3, 3]),
        "batch_size": (4, 4, 4),
        "learning_rate": np.array([0.1, 0.1, 0.1]),
        "optimizer": [SGD(momentum=0.9) for _ in range(3)],
    }
    several.fit(X, Y, **forms)
    for a, b in zip(one, several, strict=True):
        assert_same(a, b)


def test_seeds():
    by_first, by_each = population(seed=7), population(seed=[7, 8, 9])
    as_array = population(seed=np.array([7, 8, 9]))
    for i in range(3):
        alone = flat(network(7 + i))
        for members in (by_first, by_each, as_array):
            np.testing.assert_array_equal(flat(members.members[i]), alone)
    same = population(seed=[7, 7, 7])
    assert len({flat(member).tobytes() for member in same}) == 1
    unseeded = [flat(member).tobytes() for _ in range(2) for member in population(seed=None)]
    assert len(set(unseeded)) == 6


@pytest.mark.parametrize("initial_weights", ["auto", "book", "book_large", "xavier", "he"])
def test_initial_weights(initial_weights):
    settings = {"activation": ["relu", "sigmoid"], "initial_weights": initial_weights}
    members = population(2, **settings)
    np.testing.assert_array_equal(flat(members.members[1]), flat(network(6, **settings)))


def test_copies_of_networks():
    X, Y = problem()
    networks = [network(1), network(2, initial_weights="he"), network(1)]
    networks[0].fit(X, Y, **GOOD)
    before = [flat(net) for net in networks]
    members = Population.from_networks(iter(networks))
    assert members.members[0].model.backend is not networks[0].model.backend
    assert [member.history for member in members] == [None] * 3
    members.fit(X, Y, **GOOD, optimizer="adam")
    for net, weights in zip(networks, before, strict=True):
        np.testing.assert_array_equal(flat(net), weights)
    for net, member in zip(networks, members, strict=True):
        net.fit(X, Y, **GOOD, optimizer="adam")
        np.testing.assert_array_equal(flat(net), flat(member))


def test_parameters_are_rows_of_one_array():
    """What an engine needs that runs all members in one launch."""
    members = population()
    whole = members.members[0].parameters.flat.base
    assert whole.shape == (3, members.members[0].model.layout.length)
    for row, member in zip(whole, members, strict=True):
        assert np.shares_memory(row, member.parameters.flat)
    members.members[1].biases = [np.full(5, 3.0), np.full(2, 4.0)]
    assert (whole[1] == 3.0).sum() == 5
    assert not (whole[[0, 2]] == 3.0).any()


@pytest.mark.parametrize("together", [1, 2])
def test_waves_change_no_bits(monkeypatch, together):
    X, Y = problem()
    whole, waves = population(5), population(5)
    whole.fit(X, Y, **GOOD, engine="layered")
    calls = []
    run = LayeredEngine.run_members
    monkeypatch.setattr(planning, "members_a_call", lambda rows, steps: together)
    monkeypatch.setattr(
        LayeredEngine,
        "run_members",
        lambda self, members, *rest: calls.append(len(members)) or run(self, members, *rest),
    )
    waves.fit(X, Y, **GOOD, engine="layered")
    assert calls == ([1] * 15 if together == 1 else [2, 2, 1] * 3)
    for a, b in zip(whole, waves, strict=True):
        assert_same(a, b)


def test_the_host_keeps_a_gibibyte_of_orders_at_most():
    assert planning.members_a_call(50_000, 5_000) == 1917
    assert planning.members_a_call(10**9, 10**8) == 1


def test_members_in_turn_share_their_buffers(monkeypatch):
    X, Y = problem()
    members = population(6)
    make, made = NumpyBackend.epoch, []
    monkeypatch.setattr(
        NumpyBackend,
        "epoch",
        lambda self, rows, batch: made.append(batch) or make(self, rows, batch),
    )
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    members.fit(X, Y, epochs=3, batch_size=4, learning_rate=rates, engine="layered")
    assert made == [4]
    made.clear()
    rules = [SGD(momentum=0.5), "sgd", SGD(momentum=0.5)] * 2
    members.fit(
        X, Y, epochs=3, batch_size=4, learning_rate=rates, optimizer=rules, engine="layered"
    )
    assert made == [4] * 2  # of two rules, kept over three epochs
    made.clear()
    members.fit(X, Y, epochs=2, batch_size=[4, 3] * 3, learning_rate=rates, engine="layered")
    assert made == [4, 3]


def test_the_planner_hears_of_all_members():
    sizes, choice = (784, 30, 10), planning.Choice("numpy", "")
    run = {"rows": 1000, "epochs": 1, "batch_size": 10}
    engines = [
        planning.choose_plan(
            sizes, "float32", choice, None, planning.Run(**run, members=members), cores=4
        ).engine_reason
        for members in (1, 1000)
    ]
    assert "3 threads, blocks of 4 rows" in engines[0]
    assert "a thread per network, 4 at a time" in engines[1]


def test_the_planner_hears_of_the_most_that_a_member_asks(monkeypatch):
    X, Y = problem()
    choose, heard = planning.choose_plan, []
    monkeypatch.setattr(
        planning, "choose_plan", lambda *given: heard.append(given[4]) or choose(*given)
    )
    population().fit(
        X, Y, epochs=[1, 3, 2], batch_size=[2, 3, 7], learning_rate=0.1,
        optimizer=["sgd", "adam", "momentum"],
    )  # fmt: skip
    run = heard[-1]
    assert (run.rows, run.epochs, run.batch_size, run.members, run.slots) == (ROWS, 3, 7, 3, 2)


# -- a member that fails --------------------------------------------------------------------------


def wild_from(epoch):
    return lambda t: np.where(t < epoch - 0.99, 0.1, 1e300)


LINEAR = {"activation": "identity", "dtype": "float64"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_member_that_fails_stops_alone(backend, engine):
    X, Y = problem()
    settings = LINEAR | {"backend": backend}
    members = population(4, **settings)
    rates = [0.1, wild_from(3), 0.2, wild_from(1)]
    with pytest.warns(RuntimeWarning, match=r"^2 of 4 members stopped early. member 1: ") as warned:
        histories = members.fit(
            X, Y, epochs=4, batch_size=4, learning_rate=rates, validation_data=(X, Y), engine=engine
        )
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert [len(history) for history in histories] == [4, 2, 4, 0]
    assert list(members.failed) == [1, 3]
    assert "epoch 3, batch" in members.failed[1]
    assert "epoch 1, batch" in members.failed[3]
    for i, member in enumerate(members):
        alone = network(5 + i, **settings)
        run = {"batch_size": 4, "validation_data": (X, Y), "engine": engine}
        if i in members.failed:
            with pytest.raises(FloatingPointError) as error:
                alone.fit(X, Y, epochs=4, learning_rate=rates[i], **run)
            assert str(error.value) == members.failed[i]
        else:
            alone.fit(X, Y, epochs=4, learning_rate=rates[i], **run)
        assert_same(member, alone)
    # Another fit trains all, from finite weights.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        histories = members.fit(X, Y, **GOOD, engine=engine)
    assert [len(history) for history in histories] == [3] * 4
    assert not members.failed


def test_parameters_that_overflow_in_the_last_batch():
    X, Y = problem()
    members = population(2, **LINEAR)
    with pytest.warns(RuntimeWarning, match="1 of 2"):
        members.fit(X, Y, epochs=2, batch_size=ROWS, learning_rate=[1e308, 0.1])
    assert "a parameter became NaN or infinite in epoch 1" in members.failed[0] or (
        "the cost became" in members.failed[0]
    )
    np.testing.assert_array_equal(flat(members.members[0]), flat(network(5, **LINEAR)))
    alone = network(6, **LINEAR)
    alone.fit(X, Y, epochs=2, batch_size=ROWS, learning_rate=0.1)
    np.testing.assert_array_equal(flat(members.members[1]), flat(alone))


def test_all_members_fail():
    X, Y = problem()
    members = population(**LINEAR)
    before = [flat(member) for member in members]
    with pytest.raises(
        FloatingPointError, match=r"all 3 members stopped early. member 0: the cost"
    ):
        members.fit(X, Y, epochs=4, batch_size=1, learning_rate=1e300)
    assert list(members.failed) == [0, 1, 2]
    for member, weights in zip(members, before, strict=True):
        np.testing.assert_array_equal(flat(member), weights)
    for use in (members.best, lambda: members.predict(X, combine="mean")):
        with pytest.raises(ValueError, match="every member failed"):
            use()
    assert members.predict(X).shape == (3, ROWS, 2)


def test_many_failures_make_a_short_warning():
    X, Y = problem()
    members = population(9, **LINEAR)
    with pytest.warns(RuntimeWarning, match="8 of 9 .*member 4: .*and 3 more") as warned:
        members.fit(X, Y, epochs=1, batch_size=1, learning_rate=[1e300] * 8 + [0.1])
    assert "member 5" not in str(warned[0].message)


def test_a_population_of_one():
    X, Y = problem()
    one, alone = population(1), network(5)
    one.fit(X, Y, **GOOD)
    alone.fit(X, Y, **GOOD)
    assert_same(one.members[0], alone)
    failing = population(1, **LINEAR)
    with pytest.raises(FloatingPointError, match=r"^the cost became"):
        failing.fit(X, Y, epochs=1, batch_size=1, learning_rate=1e300)


# -- callbacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_member_stops_early_for_itself(backend, engine):
    X, labels = problem(rows=30, classes=True)
    run = {
        "epochs": 25,
        "batch_size": 5,
        "validation_data": problem(rows=20, classes=True),
        "engine": engine,
    }
    rates = [3.0, 0.0, 20.0, 1.0]
    stopper = EarlyStopping(patience=3)
    members = population(4, backend=backend)
    histories = members.fit(X, labels, learning_rate=rates, callbacks=[stopper], **run)
    assert not hasattr(stopper, "best")  # a template: its copies have the state
    for i, member in enumerate(members):
        alone = network(5 + i, backend=backend)
        alone.fit(X, labels, learning_rate=rates[i], callbacks=[EarlyStopping(patience=3)], **run)
        assert_same(member, alone)
    lengths = [len(history) for history in histories]
    assert lengths[1] == 4  # with η = 0 nothing improves
    assert len(set(lengths)) > 1


def test_restored_weights_are_known():
    X, Y = problem()
    net = network(1)
    history = net.fit(
        X, Y, **(GOOD | {"learning_rate": 0}), validation_data=(X, Y), callbacks=[EarlyStopping()]
    )
    assert history.restored == 0
    assert network(1).fit(X, Y, **GOOD).restored is None
    assert history.final("val_loss") == history.val_loss[0] == net.loss(X, Y)
    assert np.isnan(History().final("loss"))
    assert History(loss=[3.0, 2.0, 2.5], restored=1).final("loss") == 2.0
    assert History(loss=[3.0, 2.0, 2.5]).final("loss") == 2.5


def test_functions_hear_of_every_member():
    X, Y = problem()
    members, heard = population(), []

    def listen(network, history):
        assert history is network.history
        heard.append((members.members.index(network), len(history)))
        return heard[-1] == (1, 2)

    histories = members.fit(X, Y, **GOOD, callbacks=[listen])
    assert heard == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2), (0, 3), (2, 3)]
    assert [len(history) for history in histories] == [3, 2, 3]


class Counter(Callback):
    """Counts epochs in an attribute, and in a list made before `fit`."""

    def __init__(self):
        self.calls = []

    def on_fit_start(self, network):
        self.count = 0
        self.calls.append("start")

    def on_epoch_end(self, network, history):
        self.count += 1
        assert self.count == len(history)

    def on_fit_end(self, network, history):
        self.calls.append(("end", self.count))


def test_callbacks_are_copied_for_each_member():
    X, Y = problem()
    counter = Counter()
    population().fit(X, Y, **(GOOD | {"epochs": [1, 3, 2]}), callbacks=[counter])
    assert not hasattr(counter, "count")
    assert counter.calls == ["start"] * 3 + [("end", 1), ("end", 2), ("end", 3)]


def test_a_callback_may_be_one_for_all():
    class Shared(Callback):
        epochs = 0

        def for_member(self, network):
            return self

        def on_epoch_end(self, network, history):
            self.epochs += 1

    X, Y = problem()
    shared = Shared()
    population().fit(X, Y, **GOOD, callbacks=[shared])
    assert shared.epochs == 9


class Steps(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, network, batch):
        self.seen.append((batch, flat(network)))
        network.predict(problem()[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_callbacks(backend):
    X, Y = problem()
    steps, step = Steps(), Steps()
    members, alone = population(2, backend=backend), network(6, backend=backend)
    members.fit(X, Y, **GOOD, optimizer="adam", callbacks=[steps])
    alone.fit(X, Y, **GOOD, optimizer="adam", callbacks=[step])
    assert members.plan.engine == ("resident" if backend == "numpy" else "layered")
    assert_same(members.members[1], alone)
    second = [seen for epoch in range(3) for seen in steps.seen[6 * epoch + 3 : 6 * epoch + 6]]
    assert [batch for batch, _ in second] == [0, 1, 2] * 3
    for (_, got), (_, expected) in zip(second, step.seen, strict=True):
        np.testing.assert_array_equal(got, expected)


# -- Ctrl-C ---------------------------------------------------------------------------------------


def check_interrupted(members, saved):
    """Every member is where it was after its last whole epoch, and can go on."""
    for member, weights in zip(members, saved, strict=True):
        np.testing.assert_array_equal(flat(member), weights)
    X, Y = problem()
    assert [len(history) for history in members.fit(X, Y, **GOOD)] == [3] * len(members)


def test_ctrl_c_in_a_callback():
    X, Y = problem()
    members, saved, ended = population(), {}, []

    class Ended(Callback):
        def on_fit_end(self, network, history):
            ended.append(len(history))

    def interrupt(network, history):
        if len(history) == 2 and network is members.members[1]:
            saved.update((i, flat(member)) for i, member in enumerate(members))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        members.fit(X, Y, **GOOD, callbacks=[interrupt, Ended()])
    assert ended == [2, 2, 2] == [len(member.history) for member in members]
    alone = network(7)
    alone.fit(X, Y, **(GOOD | {"epochs": 2}))
    np.testing.assert_array_equal(saved[2], flat(alone))
    check_interrupted(members, saved.values())


@pytest.mark.parametrize("when", [0, 2, 4, 8])
def test_ctrl_c_in_the_middle_of_an_epoch(monkeypatch, when):
    X, Y = problem()
    members = population()
    saved = [flat(member) for member in members]
    run, calls = LayeredEngine.run_epoch, []

    def run_epoch(*arguments, **named):
        calls.append(1)
        result = run(*arguments, **named)
        if len(calls) == when + 1:
            raise KeyboardInterrupt
        return result

    def remember(network, history):
        saved[members.members.index(network)] = flat(network)

    with monkeypatch.context() as patched:
        patched.setattr(LayeredEngine, "run_epoch", run_epoch)
        with pytest.raises(KeyboardInterrupt):
            members.fit(X, Y, **GOOD, optimizer="momentum", callbacks=[remember], engine="layered")
    assert [len(member.history) for member in members] == [when // 3] * 3
    check_interrupted(members, saved)


def test_ctrl_c_with_early_stopping_leaves_the_best():
    X, Y = problem()
    members, best = population(2), {}

    def watch(network, history):
        best.setdefault(network, flat(network))
        network.biases = [b + 5.0 for b in network.biases]
        if len(history) == 3:
            raise KeyboardInterrupt

    stopper = EarlyStopping()
    with pytest.raises(KeyboardInterrupt):
        members.fit(
            X,
            Y,
            epochs=9,
            batch_size=4,
            learning_rate=1e-4,
            validation_data=(X, Y),
            callbacks=[stopper, watch],
        )
    for member in members:
        np.testing.assert_array_equal(flat(member), best[member])


# -- prediction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [4096, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_predictions(backend, chunk, monkeypatch):
    monkeypatch.setattr(planning, "CHUNK_ROWS", chunk)
    X, labels = problem(classes=True)
    members = population(5, backend=backend, dtype="float64")
    each = members.predict(X)
    assert each.shape == (5, ROWS, 2)
    assert each.dtype == np.float64
    for outputs, member in zip(each, members, strict=True):
        np.testing.assert_array_equal(outputs, member.predict(X))
    mean = members.predict(X, combine="mean")
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-14)
    assert mean.dtype == np.float64
    votes = members.predict(X, combine="vote")
    chosen = each.argmax(axis=2)
    np.testing.assert_array_equal(votes, (chosen.sum(axis=0) >= 3).astype(int))
    assert members.loss(X, labels).tolist() == [member.loss(X, labels) for member in members]
    right = [member.accuracy(X, labels) for member in members]
    assert members.accuracy(X, labels).tolist() == right


def constant(members, outputs):
    """Make every member answer with its row of the outputs, whatever it is asked."""
    for member, values in zip(members, outputs, strict=True):
        member.weights = [np.zeros_like(w) for w in member.weights]
        member.biases = [np.zeros_like(member.biases[0]), np.asarray(values, float)]


def test_votes():
    X = problem()[0]
    members = Population(
        [3, 2, 3], members=4, activation="identity", backend="numpy", dtype="float64"
    )
    # Two vote for 2 and two for 1: the lower class.
    constant(members, [[0, 1, 2], [0, 2, 1], [5, 0, 6], [0, 9, 9]])
    assert members.predict(X, combine="vote").tolist() == [1] * ROWS
    np.testing.assert_allclose(members.predict(X, combine="mean"), [[1.25, 3.0, 4.5]] * ROWS)
    members.failed = {1: "of a fit"}
    assert members.predict(X, combine="vote").tolist() == [2] * ROWS
    np.testing.assert_allclose(members.predict(X, combine="mean"), [[5 / 3, 10 / 3, 17 / 3]] * ROWS)
    assert members.predict(X).shape == (4, ROWS, 3)


def test_votes_of_one_output():
    X = problem()[0]
    members = Population([3, 2, 1], members=4, activation="identity", backend="numpy")
    constant(members, [[0.5], [0.49], [0.0], [2.0]])
    votes = members.predict(X, combine="vote")
    assert votes.tolist() == [0] * ROWS  # a tie of two
    constant(members, [[0.5], [0.49], [0.7], [2.0]])
    assert members.predict(X, combine="vote").tolist() == [1] * ROWS
    with pytest.raises(ValueError, match="unknown combine 'median'; known: mean, vote"):
        members.predict(X, combine="median")


# -- the best -------------------------------------------------------------------------------------


def test_ranking_on_data():
    X, labels = problem(rows=40, classes=True)
    members = population(3)
    members.fit(X, labels, epochs=20, batch_size=5, learning_rate=[0.0, 3.0, 0.3])
    by_loss = np.argsort(members.loss(X, labels)).tolist()
    assert members.ranking(X, labels, metric="loss") == by_loss
    assert by_loss[0] == 1
    accuracies = members.accuracy(X, labels)
    ranking = members.ranking(X, labels)
    assert (np.diff(accuracies[ranking]) <= 0).all()
    assert members.best(X, labels) is members.members[ranking[0]]
    # Of equal accuracy the smaller loss, of equal loss the lower number.
    same = Population.from_networks([members.members[0], members.members[1], members.members[1]])
    assert same.ranking(X, labels) == [1, 2, 0]
    # Numbers that are no classes have no accuracy.
    _, Y = problem(rows=40)
    assert members.ranking(X, Y) == np.argsort(members.loss(X, Y)).tolist()


def test_ranking_by_histories():
    members = population(3)
    given = [
        History(loss=[1.0, 3.0], val_loss=[0.5, 0.4], val_accuracy=[0.5, 0.6]),
        History(loss=[2.0, 2.0], val_loss=[0.3, 0.9], val_accuracy=[0.9, 0.6]),
        History(loss=[3.0, 1.0], val_loss=[0.8, 0.7], val_accuracy=[0.1, 0.7]),
    ]
    for member, history in zip(members, given, strict=True):
        member.history = history
    assert members.ranking() == [2, 0, 1]  # the last val_accuracy, then val_loss
    assert members.ranking(metric="val_loss") == [0, 2, 1]
    assert members.ranking(metric="loss") == [2, 1, 0]
    given[1].restored = 0
    assert members.ranking() == [1, 2, 0]
    assert members.best() is members.members[1]
    members.failed = {1: "of a fit"}
    assert members.ranking() == [2, 0]
    for history in given:
        history.val_accuracy = [np.nan, np.nan]
    assert members.ranking() == [0, 2]  # by val_loss
    for history in given:
        history.val_loss, history.val_accuracy = [], []
    assert members.ranking() == [2, 0]  # by loss


def test_a_nan_makes_a_member_the_last_and_no_more():
    members = population(3)
    nan = np.nan
    for member, values in zip(members, ([nan, nan], [0.5, 0.4], [0.3, 0.3]), strict=True):
        member.history = History(loss=[1.0, 1.0], val_loss=values, val_accuracy=[nan, nan])
    assert members.ranking() == members.ranking(metric="val_loss") == [2, 1, 0]
    assert members.best() is members.members[2]
    with pytest.raises(ValueError, match="'val_accuracy' needs a fit with validation_data of cla"):
        members.best(metric="val_accuracy")


def test_a_schedule_that_fails_later_names_the_member():
    X, Y = problem()
    members, alone = population(3), population(3)
    fails = lambda t: np.where((t >= 6) & (t < 7), -1.0, 0.1)  # noqa: E731
    with pytest.raises(ValueError, match=r"^learning_rate\[1\], epoch 7: learning_rate must be"):
        members.fit(X, Y, epochs=1000, batch_size=4, learning_rate=[0.1, fails, 0.1])
    alone.fit(X, Y, epochs=6, batch_size=4, learning_rate=0.1, engine=members.plan.engine)
    for member, other in zip(members, alone, strict=True):
        assert len(member.history) == 6
        np.testing.assert_array_equal(flat(member), flat(other))


def test_ranking_needs_something_to_go_by():
    X, Y = problem()
    members = population()
    with pytest.raises(ValueError, match="have not been trained: give X and Y"):
        members.best()
    members.fit(X, Y, **GOOD)
    assert members.best() in members.members
    with pytest.raises(ValueError, match="'val_loss' needs a fit with validation_data"):
        members.best(metric="val_loss")
    with pytest.raises(ValueError, match="unknown metric 'auc'; known: val_accuracy"):
        members.best(metric="auc")
    with pytest.raises(ValueError, match="unknown metric 'auc'; known: accuracy, loss"):
        members.best(X, Y, metric="auc")
    with pytest.raises(ValueError, match="'accuracy' needs a Y of classes"):
        members.best(X, Y, metric="accuracy")
    with pytest.raises(TypeError, match="Y is missing"):
        members.best(X)
    with pytest.raises(ValueError, match="X does not fit layer 0"):
        members.best(X[:, :2], Y)


# -- as an object ---------------------------------------------------------------------------------


def test_it_is_a_collection_of_networks(tmp_path):
    X, Y = problem()
    members = population(3, activation=["tanh", "sigmoid"])
    assert len(members) == 3
    assert list(members) == list(members.members)
    assert repr(members) == (
        "Population([3, 5, 2], members=3, activation=['tanh', 'sigmoid'], cost='quadratic', "
        "dtype='float32', backend='numpy')"
    )
    assert members.sizes == (3, 5, 2)
    assert members.cost.name == "quadratic"
    assert members.dtype == np.float32
    assert members.backend == "numpy"
    assert [activation.name for activation in members.activations] == ["tanh", "sigmoid"]
    assert "fit" in members.plan.engine_reason
    member = members.members[2]
    assert member.check_gradients(X, Y)
    member.save(tmp_path / "member.safetensors")
    loaded = Network.load(tmp_path / "member.safetensors", backend="numpy")
    np.testing.assert_array_equal(flat(loaded), flat(member))
    copied = pickle.loads(pickle.dumps(member))
    assert copied.model.backend is not member.model.backend
    np.testing.assert_array_equal(flat(copied), flat(member))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_copies(copied):
    X, Y = problem()
    members = population(3, **LINEAR)
    with pytest.warns(RuntimeWarning):
        members.fit(X, Y, epochs=2, batch_size=4, learning_rate=[0.1, 1e300, 0.2])
    other = copied(members)
    assert other.failed == members.failed
    assert [len(member.history) for member in other] == [2, 0, 2]
    before = [(flat(member), copy.deepcopy(member.generator).random()) for member in members]
    assert not {id(each.model.backend) for each in other} & {
        id(each.model.backend) for each in members
    }
    other.fit(X, Y, **GOOD)
    for member, (weights, number) in zip(members, before, strict=True):
        np.testing.assert_array_equal(flat(member), weights)
        assert copy.deepcopy(member.generator).random() == number
    assert [len(member.history) for member in members] == [2, 0, 2]
    members.fit(X, Y, **GOOD)
    for a, b in zip(members, other, strict=True):
        assert_same(a, b)


def test_own_activations_and_costs():
    X, Y = problem()
    settings = {
        "activation": Activation(
            "softsign", lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2
        ),
        "cost": Cost("mine", lambda a, y: ((a - y) ** 2).sum(axis=1), lambda a, y: 2 * (a - y)),
        "dtype": "float64",
    }
    members, alone = population(2, **settings), network(6, **settings)
    members.fit(X, Y, **(GOOD | {"learning_rate": 1e-3}))
    alone.fit(X, Y, **(GOOD | {"learning_rate": 1e-3}))
    assert_same(members.members[1], alone)
    assert members.plan.engine == "resident"


def test_progress_bar(capsys):
    X, Y = problem()
    population().fit(X, Y, **GOOD)
    assert capsys.readouterr() == ("", "")
    members = population(**LINEAR)
    run = {"epochs": [2, 5, 4], "batch_size": 4, "learning_rate": [0.1, 1e300, 0.2]}
    with pytest.warns(RuntimeWarning):
        members.fit(X, Y, **run, validation_data=(X, Y), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "7/7" in err  # all epochs but the four that the second did not train
    assert "best val_loss" in err


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message", "settings"),
    [
        (ValueError, "members must be >= 1, got 0", {"members": 0}),
        (TypeError, "members must be an integer, got 2.0", {"members": 2.0}),
        (ValueError, "members must be in .*an integer of 1329 bits", {"members": 10**400}),
        (MemoryError, r"members=100000000000 of sizes \(3, 5, 2\) needs", {"members": 10**11}),
        (ValueError, r"seed has 2 values for 3 members", {"seed": [1, 2]}),
        (ValueError, r"seed\[1\]: seed must be >= 0, got -1", {"seed": [1, -1, 2]}),
        (TypeError, r"seed must be an integer, got 'a'", {"seed": "a"}),
        (ValueError, "unknown activation 'sigmoids'", {"activation": "sigmoids"}),
        (ValueError, "unknown initial_weights 'heavy'", {"initial_weights": "heavy"}),
        (ValueError, "unknown backend 'cpu'", {"backend": "cpu"}),
        (ValueError, "dtype must be", {"dtype": "int8"}),
    ],
)
def test_arguments_of_the_constructor(kind, message, settings):
    with pytest.raises(kind, match=message):
        population(**settings)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: Network([3, 4, 2], backend="numpy"), r"sizes \(\(3, 5, 2\) and \(3, 4, 2\)\)"),
        (lambda: network(1, activation="tanh"), r"activations .*tanh"),
        (lambda: network(1, cost="binary_cross_entropy"), "cost"),
        (lambda: network(1, dtype="float64"), "dtype"),
        pytest.param(lambda: network(1, backend="cuda"), "backend", marks=pytest.mark.gpu),
    ],
)
def test_networks_of_several_shapes_are_for_sweep(other, what):
    with pytest.raises(
        ValueError, match=rf"networks\[0\] and networks\[1\] differ in {what}.*sweep"
    ):
        Population.from_networks([network(1), other()])


def test_what_is_no_list_of_networks():
    with pytest.raises(ValueError, match="networks is empty"):
        Population.from_networks([])
    with pytest.raises(TypeError, match=r"networks\[1\] must be a Network, got 3"):
        Population.from_networks([network(1), 3])
    with pytest.raises(TypeError, match="networks must be a sequence"):
        Population.from_networks(network(1))
    with pytest.raises(TypeError, match="networks must be a sequence"):
        Population.from_networks(np.array(3))
    with pytest.raises(ValueError, match=r"unknown metric array\(\[3, 4\]\); known"):
        population().best(*problem(), metric=np.array([3, 4]))


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (ValueError, r"epochs has 2 values for 3 members: give one", {"epochs": [1, 2]}),
        (ValueError, r"epochs\[2\]: epochs must be >= 1, got 0", {"epochs": [1, 2, 0]}),
        (TypeError, r"^epochs must be an integer, got 1.5", {"epochs": 1.5}),
        (TypeError, r"epochs\[0\]: epochs must be an integer", {"epochs": np.array([1.0, 2, 3])}),
        (ValueError, r"batch_size has 4 values for 3", {"batch_size": (1, 2, 3, 4)}),
        (ValueError, r"batch_size\[1\]: .* \[1, 11\], got 12", {"batch_size": [1, 12, 3]}),
        (ValueError, r"^batch_size must be in \[1, 11\]", {"batch_size": 12}),
        (ValueError, r"learning_rate has 1 values for 3", {"learning_rate": [0.1]}),
        (ValueError, r"learning_rate\[1\]: .*got -0.1", {"learning_rate": [0.1, -0.1, 0.1]}),
        (ValueError, r"^learning_rate must be finite", {"learning_rate": -1.0}),
        (TypeError, r"learning_rate must be a number", {"learning_rate": np.ones((3, 1))}),
        (
            ValueError,
            r"learning_rate\[2\]: .*at t = 2",
            {"learning_rate": [0.1, 0.1, lambda t: np.where(t < 2, 0.1, -1)]},
        ),
        (
            ValueError,
            r"^learning_rate must .*at t = 2",  # only one member trains so long
            {"learning_rate": lambda t: np.where(t < 2, 0.1, -1), "epochs": [1, 3, 2]},
        ),
        (ValueError, r"optimizer\[0\]: unknown optimizer", {"optimizer": ["x", "sgd", "sgd"]}),
        (TypeError, r"^optimizer must be a name", {"optimizer": {"name": "sgd"}}),
        (ValueError, "needs validation_data", {"callbacks": [EarlyStopping()]}),
        (TypeError, "callbacks must be a list", {"callbacks": 3}),
        (TypeError, r"must be a function \(network, history\)", {"callbacks": [lambda n: None]}),
        (TypeError, "progress must be True or False, got 'x'", {"progress": "x"}),
        (TypeError, "callbacks must be Callback objects", {"callbacks": [EarlyStopping]}),
        (TypeError, "validation_data must be a pair", {"validation_data": 3}),
        (ValueError, "unknown engine 'fast'", {"engine": "fast"}),
        (ValueError, "X has 11 rows but Y has 10", {"Y": np.ones((10, 2))}),
        (ValueError, "X does not fit layer 0", {"X": np.ones((11, 4))}),
    ],
)
def test_arguments_of_fit(kind, message, arguments):
    X, Y = problem()
    members = population()
    before = [
        (flat(member).tobytes(), copy.deepcopy(member.generator).random()) for member in members
    ]
    plan = members.plan
    given = {"X": X, "Y": Y} | GOOD | arguments
    with pytest.raises(kind, match=message):
        members.fit(given.pop("X"), given.pop("Y"), **given)
    after = [
        (flat(member).tobytes(), copy.deepcopy(member.generator).random()) for member in members
    ]
    assert after == before
    assert members.plan is plan
    assert [member.history for member in members] == [None] * 3
