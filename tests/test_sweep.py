"""Sweeps: settings become populations by shape, and each row is what its network would be alone."""

from __future__ import annotations

import numpy as np
import pytest

from backprop_gpu import (
    SGD,
    Activation,
    Adam,
    EarlyStopping,
    History,
    Network,
    Population,
    SweepResult,
    schedules,
    sweep,
)

ROWS = 40
SHARED = {
    "sizes": [3, 5, 2],
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 0.5,
    "backend": "numpy",
    "seed": 4,
    "progress": False,
}


def problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, 3))
    return X, (X[:, 0] > 0).astype(int)


def run(**arguments):
    return sweep(*problem(), **(SHARED | arguments))


def flat(net):
    return np.concatenate([array.ravel() for array in (*net.weights, *net.biases)])


@pytest.fixture
def populations(monkeypatch):
    """How many members each population has that is made."""
    made = []
    init = Population.__init__

    def counted(self, sizes, *, members, **settings):
        made.append(members)
        init(self, sizes, members=members, **settings)

    monkeypatch.setattr(Population, "__init__", counted)
    return made


# -- settings and networks ------------------------------------------------------------


@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_every_row_is_its_network_alone(engine, populations):
    X, labels = problem()
    settings = [
        {"learning_rate": 0.1},
        {"sizes": (3, 4, 2), "optimizer": "adam", "l2": 0.1, "learning_rate": 0.01},
        {"learning_rate": schedules.StepDecay(1.0, 2), "batch_size": 5, "momentum": 0.5},
        {"cost": "binary_cross_entropy", "epochs": 2},
        {"sizes": [3, 4, 2], "seed": 9, "optimizer": Adam(beta1=0.5), "beta2": 0.9},
        {"activation": ["tanh", "sigmoid"], "initial_weights": "xavier", "dtype": "float64"},
    ]
    data = {"validation_data": (X[:9], labels[:9]), "engine": engine}
    result = run(settings=settings, **data)
    assert populations == [2, 2, 1, 1]
    optimizers = ["sgd", Adam(l2=0.1), SGD(momentum=0.5), "sgd", Adam(beta1=0.5, beta2=0.9), "sgd"]
    assert len(result) == len(result.rows) == len(result.networks) == 6
    for row, net, setting, optimizer in zip(
        result, result.networks, settings, optimizers, strict=True
    ):
        asked = SHARED | setting
        names = ("sizes", "activation", "cost", "dtype", "backend", "initial_weights", "seed")
        alone = Network(**{name: asked[name] for name in names if name in asked})
        alone.fit(
            X,
            labels,
            **{name: asked[name] for name in ("epochs", "batch_size", "learning_rate")},
            optimizer=optimizer,
            **data,
        )
        assert net.plan.engine == engine
        np.testing.assert_array_equal(flat(net), flat(alone))
        assert {name: row[name] for name in setting} == setting
        assert row["seed"] == asked["seed"]
        assert row["loss"] == alone.history.loss[-1]
        assert row["val_loss"] == alone.history.val_loss[-1]
        assert row["val_accuracy"] == alone.history.val_accuracy[-1]
        assert row["epochs_trained"] == asked["epochs"]
        assert row["failed"] is None


@pytest.mark.parametrize(
    "differs",
    [
        {"initial_weights": ["he", "xavier"]},
        {"dtype": ["float32", "float64"]},
        {"cost": ["quadratic", "binary_cross_entropy"]},
        {"activation": ["tanh", ["relu", "sigmoid"]]},
    ],
)
def test_what_one_population_cannot_hold(populations, differs):
    X, labels = problem()
    ((name, values),) = differs.items()
    shared = {"activation": "sigmoid", "metric": "loss"} | {"learning_rate": 0.01}
    result = run(grid=differs, **{key: value for key, value in shared.items() if key != name})
    assert populations == [1, 1]
    for value, net in zip(values, result.networks, strict=True):
        settings = {"activation": "sigmoid", name: value}
        alone = Network([3, 5, 2], backend="numpy", seed=4, **settings)
        alone.fit(X, labels, epochs=3, batch_size=8, learning_rate=0.01)
        np.testing.assert_array_equal(flat(net), flat(alone))


def test_a_grid_is_every_combination(populations):
    result = run(grid={"learning_rate": [0.1, 0.2], "sizes": [[3, 4, 2], (3, 5, 2)]})
    assert [(row["learning_rate"], tuple(row["sizes"])) for row in result] == [
        (0.1, (3, 4, 2)), (0.1, (3, 5, 2)), (0.2, (3, 4, 2)), (0.2, (3, 5, 2)),
    ]  # fmt: skip
    assert populations == [2, 2]
    assert [net.sizes for net in result.networks] == [tuple(row["sizes"]) for row in result]


def test_a_list_of_grids():
    grids = [
        {"optimizer": ["sgd"], "momentum": [0.0, 0.9]},
        {"optimizer": ["adam"], "learning_rate": np.array([0.01])},
    ]
    result = run(grid=grids)
    assert [row["optimizer"] for row in result] == ["sgd", "sgd", "adam"]
    assert result.to_dict()["momentum"] == [0.0, 0.9, None]
    assert result.to_dict()["learning_rate"] == [None, None, 0.01]


def test_a_setting_goes_before_what_is_shared(populations):
    result = run(settings=[{}, {"epochs": 1}])
    assert [row["epochs_trained"] for row in result] == [3, 1]
    assert populations == [2]


def test_seeds(populations):
    result = run(settings=[{"learning_rate": 0.1}, {"learning_rate": 0.2, "seed": 7}], seeds=3)
    assert [row["seed"] for row in result] == [4, 5, 6, 7, 8, 9]
    assert [row["learning_rate"] for row in result] == [0.1] * 3 + [0.2] * 3
    assert populations == [6]


def test_without_a_seed_one_is_drawn_for_all():
    result = run(grid={"learning_rate": [0.0, 0.0]}, seed=None)
    assert result.rows[0]["seed"] == result.rows[1]["seed"]
    np.testing.assert_array_equal(flat(result.networks[0]), flat(result.networks[1]))
    row = result.rows[0]
    alone = Network([3, 5, 2], backend="numpy", seed=row["seed"])
    np.testing.assert_array_equal(flat(result.networks[0]), flat(alone))
    other = run(grid={"learning_rate": [0.0]}, seed=None)
    assert other.rows[0]["seed"] != row["seed"]


def test_callbacks_and_early_stopping():
    X, labels = problem()
    heard = []
    result = run(
        grid={"learning_rate": [0.0, 1.0], "sizes": [[3, 4, 2], [3, 5, 2]]},
        epochs=12,
        validation_data=(X, labels),
        callbacks=iter([EarlyStopping(patience=2), lambda net, history: heard.append(net)]),
    )
    assert [row["epochs_trained"] for row in result][:2] == [3, 3]  # with η = 0 nothing improves
    assert set(heard) == set(result.networks)
    for row, net in zip(result, result.networks, strict=True):
        assert row["val_loss"] == pytest.approx(net.loss(X, labels), rel=1e-6)
    assert result.rows[0]["val_loss"] == result.networks[0].history.val_loss[0]


# -- the result ------------------------------------------------------------


def test_the_best():
    X, labels = problem()
    grid = {"learning_rate": [0.001, 3.0, 0.1]}
    result = run(grid=grid, epochs=20, validation_data=(X, labels))
    assert isinstance(result, SweepResult)
    assert result.metric == "val_accuracy"
    order = sorted(
        range(3), key=lambda i: (-result.rows[i]["val_accuracy"], result.rows[i]["val_loss"])
    )
    assert result.ranking == order
    setting, net = result.best
    assert setting is result.best.setting is result.rows[order[0]]
    assert net is result.best.network is result.networks[order[0]]
    assert setting["learning_rate"] == 3.0
    assert net.accuracy(X, labels) == setting["val_accuracy"]
    by_loss = run(grid=grid, epochs=20, validation_data=(X, labels), metric="val_loss")
    assert by_loss.ranking == np.argsort([row["val_loss"] for row in by_loss]).tolist()
    without = run(grid=grid)
    assert without.metric == "loss"
    assert "val_loss" not in without.rows[0]
    assert without.ranking == np.argsort([row["loss"] for row in without]).tolist()


def test_the_table():
    result = run(
        settings=[
            {"learning_rate": 0.001},
            {"learning_rate": 3.0, "optimizer": "sgd"},
            {"learning_rate": 0.1, "sizes": [3, 4, 2]},
        ],
        epochs=20,
    )
    assert [int(line.split()[0]) for line in str(result).splitlines()[1:]] == result.ranking
    assert "[3, 4, 2]" in str(result)
    columns = result.to_dict()
    assert list(columns) == [
        "learning_rate", "seed", "optimizer", "sizes", "loss", "epochs_trained", "failed",
    ]  # fmt: skip
    assert all(len(column) == 3 for column in columns.values())
    assert columns["optimizer"] == [None, "sgd", None]
    assert repr(result).startswith("<SweepResult of 3 networks, best loss ")


def test_the_table_is_aligned_and_sorted():
    losses, networks = [0.5, 0.25, 1 / 3], []
    for loss in losses:
        networks.append(Network([1, 1], backend="numpy"))
        networks[-1].history = History(loss=[2.0, loss])
    rows = [
        {"learning_rate": eta, "seed": 1, "loss": loss, "epochs_trained": 2, "failed": None}
        for eta, loss in zip((0.1, 10.0, 0.001), losses, strict=True)
    ]
    rows[1]["optimizer"] = "adam"
    assert str(SweepResult(rows, networks, "loss")) == (
        "   learning_rate  seed  optimizer    loss  epochs_trained\n"
        "1             10     1       adam    0.25               2\n"
        "2          0.001     1             0.3333               2\n"
        "0            0.1     1                0.5               2"
    )


def test_progress_bar(capsys):
    run(grid={"learning_rate": [0.1, 0.2], "sizes": [[3, 4, 2], [3, 5, 2]]}, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "12/12" in err
    assert "shape 2 of 2, 3-5-2" in err


# -- networks that fail ------------------------------------------------------------

WILD = {"activation": "identity", "dtype": "float64", "batch_size": 1}


def test_networks_that_fail():
    settings = [
        {"learning_rate": 1e300},
        {"learning_rate": 0.01},
        {"learning_rate": 1e300, "sizes": [3, 4, 2]},  # all of its population fail
    ]
    with pytest.warns(RuntimeWarning, match=r"2 of 3 networks .*Row 0: the cost") as warned:
        result = run(settings=settings, **WILD)
    assert warned[0].filename == __file__
    assert result.ranking == [1, 0, 2]
    assert "epoch 1" in result.rows[0]["failed"]
    assert result.rows[1]["failed"] is None
    assert result.rows[2]["epochs_trained"] == 0
    assert np.isnan(result.rows[2]["loss"])
    assert "the cost became" in str(result)
    alone = Network([3, 5, 2], activation="identity", dtype="float64", backend="numpy", seed=4)
    alone.fit(*problem(), epochs=3, batch_size=1, learning_rate=0.01)
    np.testing.assert_array_equal(flat(result.networks[1]), flat(alone))


def test_all_networks_fail():
    with pytest.raises(FloatingPointError, match=r"every network failed. Row 0: the cost"):
        run(grid={"learning_rate": [1e300], "sizes": [[3, 4, 2], [3, 5, 2]]}, **WILD)


def test_a_schedule_that_fails_later_names_the_setting():
    fails = lambda t: np.where((t >= 6) & (t < 7), -1.0, 0.1)  # noqa: E731
    with pytest.raises(ValueError, match=r"^setting 1 .*, epoch 7: learning_rate must be finite"):
        run(settings=[{}, {"learning_rate": fails}], epochs=1000)


def test_a_nan_makes_a_row_the_last_and_no_more():
    """Weights that are finite may all the same give a NaN on data that was never trained on."""
    X, labels = problem()

    def measure(network, history):
        history.val_loss[-1] = np.nan if network.sizes[1] == 5 else float(network.sizes[1])

    result = run(
        grid={"sizes": [[3, 5, 2], [3, 7, 2], [3, 4, 2]]}, validation_data=(X, labels),
        callbacks=[measure], metric="val_loss",
    )  # fmt: skip
    assert result.ranking == [2, 1, 0]
    result = run(
        grid={"sizes": [[3, 5, 2], [3, 7, 2], [3, 4, 2]]},
        validation_data=(X, np.eye(2)[labels] * 0.9),
        callbacks=[measure],
    )
    assert result.metric == "val_loss"
    assert result.ranking == [2, 1, 0]


# -- bad input ------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (TypeError, "either a grid or settings", {}),
        (TypeError, "either a grid or settings", {"grid": {}, "settings": []}),
        (
            ValueError,
            "unknown key 'lr' in grid; known: sizes, .*learning_rate",
            {"grid": {"lr": [1]}},
        ),
        (ValueError, r"unknown key 'lr' in grid\[1\]", {"grid": [{}, {"lr": [1]}]}),
        (ValueError, r"unknown key 'lr' in settings\[1\]", {"settings": [{}, {"lr": 1}]}),
        (ValueError, "unknown key 'lr' in the arguments", {"settings": [{}], "lr": 1}),
        (ValueError, "settings is empty", {"settings": []}),
        (ValueError, "grid is empty", {"grid": []}),
        (TypeError, "settings must be a list of dicts", {"settings": {"epochs": 1}}),
        (TypeError, r"settings\[0\] must be a dict, got 3", {"settings": [3]}),
        (TypeError, "grid must be a dict of lists", {"grid": "sgd"}),
        (
            TypeError,
            r"a list of values for 'learning_rate', got 0.1; for one value write \[0.1\]",
            {"grid": {"learning_rate": 0.1}},
        ),
        (TypeError, "a list of values for 'optimizer'", {"grid": {"optimizer": "sgd"}}),
        (ValueError, "grid holds no value for 'epochs'", {"grid": {"epochs": []}}),
        (
            ValueError,
            r"setting 1 \(learning_rate=-1\): learning_rate must be finite and >= 0",
            {"grid": {"learning_rate": [1, -1]}},
        ),
        (ValueError, r"setting 0 \(batch_size=41\): batch_size", {"grid": {"batch_size": [41]}}),
        (
            ValueError,
            r"setting 0 \(sizes=\[4, 2\]\): X does not fit",
            {"grid": {"sizes": [[4, 2]]}},
        ),
        (TypeError, r"setting 0 \(sizes=3\): sizes must be a seq", {"grid": {"sizes": [3, 5, 2]}}),
        (
            ValueError,
            r"setting 0 \(optimizer=adam, momentum=0.9\): momentum is no setting of Adam",
            {"settings": [{"optimizer": "adam", "momentum": 0.9}]},
        ),
        (ValueError, r"setting 0 .*momentum must be in", {"settings": [{"momentum": 2.0}]}),
        (ValueError, r"setting 0 .*seed must be >= 0", {"settings": [{"seed": -1}]}),
        (ValueError, r"setting 0 .*unknown cost", {"settings": [{"cost": "x"}]}),
        (ValueError, r"setting 0 .*unknown backend 'x'", {"settings": [{"backend": "x"}]}),
        (
            ValueError,
            r"setting 0 .*unknown initial_weights",
            {"settings": [{"initial_weights": "x"}]},
        ),
        (ValueError, r"setting 0 .*unknown backend \[3\]", {"settings": [{"backend": [3]}]}),
        (TypeError, "settings must be a list of dicts", {"settings": np.array(3)}),
        (TypeError, "grid must hold a list of values", {"grid": {"seed": np.array(3)}}),
        (ValueError, "unknown metric 3; known", {"settings": [{}], "metric": 3}),
        (ValueError, "seeds must be >= 1", {"settings": [{}], "seeds": 0}),
        (MemoryError, r"^seeds=1000000000000 of sizes", {"settings": [{}], "seeds": 10**12}),
        (MemoryError, "^grid holds more values for 'seed'", {"grid": {"seed": range(10**15)}}),
        (
            MemoryError,
            "^a setting for every combination of grid needs",
            {"grid": {"seed": range(10**5), "epochs": range(10**5), "l2": range(10**4)}},
        ),
        (TypeError, "progress must be True or False, got 1", {"settings": [{}], "progress": 1}),
        (TypeError, "nesterov must be True", {"settings": [{"nesterov": 1, "momentum": 0.5}]}),
        (ValueError, "unknown metric 'auc'", {"settings": [{}], "metric": "auc"}),
        (ValueError, "needs validation_data", {"settings": [{}], "metric": "val_loss"}),
        (ValueError, "needs validation_data", {"settings": [{}], "callbacks": [EarlyStopping()]}),
        (
            ValueError,
            "different costs cannot be ranked",
            {"grid": {"cost": ["quadratic", "binary_cross_entropy"]}},
        ),
        (ValueError, "unknown engine 'fast'", {"settings": [{}], "engine": "fast"}),
    ],
)
def test_bad_input(monkeypatch, kind, message, arguments):
    monkeypatch.setattr(Population, "train", lambda *_: pytest.fail("trains"))
    with pytest.raises(kind, match=message):
        run(**arguments)


@pytest.mark.parametrize("name", ["sizes", "epochs", "batch_size", "learning_rate"])
def test_what_is_missing_is_named(name):
    shared = {key: value for key, value in SHARED.items() if key != name}
    with pytest.raises(ValueError, match=rf"setting 1 \(seed=3\) has no {name}: give it there"):
        sweep(*problem(), settings=[{name: SHARED[name]}, {"seed": 3}], **shared)


def test_an_engine_that_cannot_run_one_setting_is_refused_for_all():
    half = Activation("half", lambda z: z.astype(z.dtype) / 2, lambda z: 0 * z + 0.5)
    with pytest.raises(ValueError, match=r"setting 1 \(activation=.*'resident' cannot run this"):
        run(settings=[{}, {"activation": half}], seeds=3, engine="resident")


def test_accuracy_as_metric_needs_classes():
    X, _ = problem()
    Y = np.full((ROWS, 2), 0.3)
    with pytest.raises(ValueError, match="'val_accuracy' needs validation_data whose targets"):
        sweep(X, Y, settings=[{}], validation_data=(X, Y), metric="val_accuracy", **SHARED)


def test_costs_are_compared_by_accuracy():
    result = run(grid={"cost": ["quadratic", "binary_cross_entropy"]}, validation_data=problem())
    assert result.metric == "val_accuracy"


def test_each_population_has_a_plan_of_its_own():
    mine = Activation("half", lambda z: z.astype(z.dtype) / 2, lambda z: 0 * z + 0.5)  # of arrays
    result = run(grid={"activation": ["sigmoid", mine]}, engine="auto")
    assert [net.plan.engine for net in result.networks] == ["resident", "layered"]


def test_a_table_has_accuracies_of_classes_alone() -> None:
    rng = np.random.default_rng(0)
    X, numbers, labels = rng.random((30, 3)), rng.random(30), np.arange(30) % 2
    for y, shown in ((numbers, False), (labels, True)):
        result = sweep(
            X, y, grid={"sizes": [[3, 1]], "learning_rate": [0.1, 0.2]}, epochs=1, batch_size=10,
            validation_data=(X, y), seed=0,
        )  # fmt: skip
        assert "val_loss" in str(result)
        assert ("val_accuracy" in str(result)) is shown
