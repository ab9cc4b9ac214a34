"""`sweep` with trials of Optuna's."""

import math
import sys

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import GridSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from backprop_gpu import SGD, Adam, Callback, EarlyStopping, Network, cross_validate, sweep
from backprop_gpu.planning.tasks import WorkerCapacity, trials_at_once
from backprop_gpu.training.checkpoint import Checkpoint

optuna.logging.set_verbosity(optuna.logging.WARNING)

ROWS = 40
RATE = FloatDistribution(1e-3, 10.0, log=True)
SHARED = {
    "sizes": [3, 5, 2],
    "epochs": 9,
    "batch_size": 8,
    "backend": "numpy",
    "seed": 4,
    "progress": False,
}


def problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, 3))
    return X, (X[:, 0] + 0.3 * rng.standard_normal(ROWS) > 0).astype(int)


def run(validated=True, **arguments):
    X, labels = problem()
    data = {"validation_data": (X[:15], labels[:15])} if validated else {}
    defaults = {"grid": {"learning_rate": RATE}, "trials": 12, "sampler": RandomSampler(0)}
    if arguments.get("study") is not None:
        del defaults["sampler"]
    return sweep(X, labels, **(SHARED | data | defaults | arguments))


def flat(net):
    return net.model.read(net.parameters)


def alone(row, **arguments):
    """The network of a row, trained by itself for as many epochs."""
    X, labels = problem()
    asked = SHARED | row
    names = ("sizes", "activation", "cost", "dtype", "backend", "seed", "initial_weights")
    network = Network(**{name: asked[name] for name in names if name in asked})
    optimizer = {"sgd": SGD(), "adam": Adam()}[asked.get("optimizer", "sgd")]
    if "momentum" in row:
        optimizer = SGD(momentum=row["momentum"])
    network.fit(
        X, labels, epochs=row["epochs_trained"], batch_size=asked["batch_size"],
        learning_rate=asked["learning_rate"], optimizer=optimizer,
        dropout=asked.get("dropout", 0.0),
        validation_data=(X[:15], labels[:15]), **arguments,
    )  # fmt: skip
    return network


MIXED = {
    "sizes": [[3, 5, 2], [3, 4, 2]],
    "learning_rate": RATE,
    "batch_size": IntDistribution(1, 20),
    "optimizer": CategoricalDistribution(["sgd", "adam"]),
    "epochs": IntDistribution(2, 9),
    "seed": [1, 2],
    "dropout": [0.0, 0.3],
}


# -- what a trial's network is -------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("at_once", [1, 3, None])
def test_every_row_is_its_network_alone(engine, at_once):
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    result = run(grid=MIXED, engine=engine, at_once=at_once, pruner=pruner, trials=15)
    assert len(result) == len(result.networks) == 15
    assert {row["pruned"] for row in result} == {False, True}
    for row, net in zip(result, result.networks, strict=True):
        same = alone(row, engine=engine)
        assert net.plan.engine == engine
        np.testing.assert_array_equal(flat(net), flat(same))
        assert net.history == same.history or net.history.loss == same.history.loss
        assert net.history.val_loss == same.history.val_loss
        assert row["val_accuracy"] == same.history.val_accuracy[-1]
        assert len(net.history) == row["epochs_trained"] >= 1


def test_momentum_of_the_one_before_is_not_the_next_ones():
    """A place's optimizer state begins with zeros."""
    grid = {"learning_rate": [0.3], "momentum": FloatDistribution(0.5, 0.99)}
    result = run(grid=grid, at_once=1, trials=4, epochs=3)
    for row, net in zip(result, result.networks, strict=True):
        np.testing.assert_array_equal(flat(net), flat(alone(row)))


def test_networks_live_on_by_themselves():
    result = run(at_once=2)
    X, _ = problem()
    before = [net.predict(X) for net in result.networks]
    assert len({id(net.parameters) for net in result.networks}) == 12
    result.networks[0].weights = [w * 0 for w in result.networks[0].weights]
    for net, outputs in list(zip(result.networks, before, strict=True))[1:]:
        np.testing.assert_array_equal(net.predict(X), outputs)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["auto", "layered"])
def test_rows_are_their_networks_on_a_device(engine):
    grid = {
        "learning_rate": RATE,
        "batch_size": IntDistribution(3, 9),
        "optimizer": ["sgd", "adam"],
        "sizes": [[3, 5, 2], [3, 4, 2]],
    }
    result = run(grid=grid, backend="cuda", engine=engine, at_once=3, trials=9, epochs=3)
    engines = {(net.sizes, net.plan.engine) for net in result.networks}
    assert len(engines) == 2  # a shape has one, whoever trains
    for row, net in zip(result, result.networks, strict=True):
        same = alone(row | {"backend": "cuda"}, engine=net.plan.engine)
        np.testing.assert_array_equal(flat(net), flat(same))


def test_early_stopping_is_each_members_own():
    result = run(callbacks=[EarlyStopping(patience=1)], epochs=30)
    trained = [row["epochs_trained"] for row in result]
    assert len(set(trained)) > 1
    for row, net, trial in zip(result, result.networks, result.study.trials, strict=True):
        assert trial.state == TrialState.COMPLETE
        assert trial.value == row["val_accuracy"] == net.history.final("val_accuracy")
        same = alone(row | {"epochs_trained": 30}, callbacks=[EarlyStopping(patience=1)])
        np.testing.assert_array_equal(flat(net), flat(same))


# -- the study -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pruner",
    [SuccessiveHalvingPruner(min_resource=1, reduction_factor=3), HyperbandPruner(1, 9, 3)],
)
def test_the_study_has_every_epoch(pruner):
    result = run(pruner=pruner, trials=20)
    states = [trial.state for trial in result.study.trials]
    assert {*states} == {TrialState.COMPLETE, TrialState.PRUNED}
    for row, net, trial in zip(result, result.networks, result.study.trials, strict=True):
        assert row["trial"] == trial.number
        assert row["pruned"] == (trial.state == TrialState.PRUNED)
        assert trial.intermediate_values == dict(enumerate(net.history.val_accuracy))
        assert row["learning_rate"] == trial.params["learning_rate"]
        assert (row["epochs_trained"] < 9) == row["pruned"]
    best = result.study.best_trial
    assert result.best.setting["val_accuracy"] == best.value
    assert not result.best.setting["pruned"]
    pruned = [result.rows[i]["pruned"] for i in result.ranking]
    assert pruned == sorted(pruned)
    assert "pruned" in str(result)


def test_a_place_is_given_on_in_mid_training():
    """Trials begin while others are under way, and never more than there are places."""
    begun = {}

    class Watch(Callback):
        now = 0

        def for_member(self, network):
            return self

        def on_fit_start(self, network):
            begun[id(network)] = self.now

        def on_epoch_end(self, network, history):
            Watch.now = max(self.now, begun[id(network)] + len(history))

    result = run(pruner=HyperbandPruner(1, 9, 3), callbacks=[Watch()], at_once=4, trials=12)
    starts = [begun[id(net)] for net in result.networks]
    assert starts[:4] == [0] * 4
    assert len(set(starts)) > 3
    for now in range(max(starts)):
        spans = zip(starts, (row["epochs_trained"] for row in result), strict=True)
        assert sum(start <= now < start + length for start, length in spans) == 4


def test_the_best_are_asked_about_first():
    """Of those that reached a rung together the best third goes on, whatever their numbers."""
    rates = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 1.0]
    study = optuna.create_study(
        direction="minimize", pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    )
    for rate in rates:
        study.enqueue_trial({"learning_rate": rate})
    result = run(study=study, trials=6, at_once=6, metric="val_loss")
    assert [row["learning_rate"] for row in result] == rates
    second = sorted(result.rows, key=lambda row: row["epochs_trained"])
    assert second[-1]["learning_rate"] == 1.0
    assert [row["epochs_trained"] for row in second][:4] == [2] * 4


def test_same_seed_same_study():
    first, second = (
        run(sampler=None, pruner=HyperbandPruner(1, 9, 3), trials=20) for _ in range(2)
    )
    assert first.rows == second.rows
    assert isinstance(first.study.sampler, TPESampler)


def test_a_study_in_a_storage_goes_on(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    settings = {"storage": storage, "study_name": "it", "direction": "maximize"}
    grid = {"sizes": [[3, 5, 2], (3, 4, 2)], "learning_rate": RATE, "optimizer": ["sgd", Adam()]}
    for done in (3, 6):
        study = optuna.create_study(
            **settings, load_if_exists=True, sampler=RandomSampler(done), pruner=NopPruner()
        )
        result = run(study=study, grid=grid, trials=3, epochs=2)
        assert result.study is study
        assert [row["trial"] for row in result] == list(range(done - 3, done))
        assert len(optuna.load_study(study_name="it", storage=storage).trials) == done
    assert set(study.trials[0].distributions["sizes"].choices) == {"[3, 5, 2]", "(3, 4, 2)"}
    assert all(
        tuple(row["sizes"]) == net.sizes for row, net in zip(result, result.networks, strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "metric", "direction"),
    [
        ({}, "val_accuracy", "MAXIMIZE"),
        ({"metric": "val_loss"}, "val_loss", "MINIMIZE"),
        ({"validated": False}, "loss", "MINIMIZE"),
        ({"validated": False, "metric": "loss", "pruner": HyperbandPruner(1, 9)},
         "loss", "MINIMIZE"),
    ],
)  # fmt: skip
def test_the_direction_is_the_metrics(arguments, metric, direction):
    result = run(**arguments)
    assert result.metric == metric
    assert result.study.direction.name == direction
    assert result.study.best_value == result.best.setting[metric]


def test_a_sampler_that_has_nothing_left():
    sampler = GridSampler({"learning_rate": [0.1, 0.2, 0.3]})
    result = run(sampler=sampler, trials=50, at_once=2)
    assert {row["learning_rate"] for row in result} == {0.1, 0.2, 0.3}
    assert len(result) < 7
    assert all(trial.state.is_finished() for trial in result.study.trials)


def test_how_many_at_once():
    machine, device = WorkerCapacity(6), WorkerCapacity(6, 132)
    assert trials_at_once(machine, learns=True, size=1000) == 24
    assert trials_at_once(machine, learns=False, size=1000) == 384
    assert trials_at_once(machine, learns=True, size=1 << 27) == 8
    assert trials_at_once(machine, learns=True, size=1 << 33) == 6
    assert trials_at_once(device, learns=True, size=1000) == 132
    assert trials_at_once(device, learns=True, size=1 << 33) == 1


@pytest.mark.parametrize(("sampler", "share"), [(TPESampler(seed=0), 4), (RandomSampler(0), 64)])
def test_a_sampler_that_learns_hears_of_the_first(sampler, share, monkeypatch):
    monkeypatch.setattr("backprop_gpu.threads.cores", lambda: 1)
    running = []

    def watch(network, history):
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        running.append(states.count(TrialState.RUNNING))

    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=NopPruner())
    run(study=study, trials=9, epochs=2, callbacks=[watch])
    assert max(running) == min(share, 9)


# -- failures ------------------------------------------------------------------------------------


def test_a_trial_that_fails():
    grid = {"learning_rate": [0.1, 1e30], "seed": IntDistribution(0, 9)}
    with pytest.warns(RuntimeWarning, match="networks stopped early"):
        result = run(grid=grid, activation="identity", at_once=3, dtype="float32")
    for row, trial in zip(result, result.study.trials, strict=True):
        failed = row["learning_rate"] == 1e30
        assert trial.state == (TrialState.FAIL if failed else TrialState.COMPLETE)
        assert (row["failed"] is not None) == failed
        assert trial.user_attrs.get("failed") == row["failed"]
    assert result.rows[result.ranking[-1]]["failed"]


def test_all_fail():
    study = optuna.create_study(direction="maximize", pruner=NopPruner())
    with pytest.raises(FloatingPointError, match="every network failed"):
        run(grid={"learning_rate": [1e30]}, activation="identity", study=study, trials=3)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_ends_it_early(error):
    study = optuna.create_study(direction="maximize", pruner=NopPruner())
    ended = []

    def stop(network, history):
        if len(history) == 9:
            ended.append(network)
        if len(ended) == 4:
            raise error

    class Finish(Callback):
        open = 0

        def for_member(self, network):
            return self

        def on_fit_start(self, network):
            Finish.open += 1

        def on_fit_end(self, network, history):
            Finish.open -= 1

    with pytest.raises(error):
        run(study=study, callbacks=[Finish(), stop], at_once=3)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.FAIL] * 3
    assert Finish.open == 0


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"trials": 0}, ValueError, "trials"),
        ({"trials": 2.5}, TypeError, "trials"),
        ({"trials": None}, TypeError, "needs trials"),
        ({"at_once": 0}, ValueError, "at_once"),
        ({"sampler": "tpe"}, TypeError, r"sampler must be one of Optuna's.*TPESampler\(\)"),
        ({"sampler": TPESampler}, TypeError, "sampler must be"),
        ({"pruner": RandomSampler()}, TypeError, "pruner must be one of Optuna's"),
        ({"study": 3}, TypeError, "study must be an optuna.Study"),
        ({"validated": False, "pruner": HyperbandPruner()}, ValueError, "pruner needs validation"),
        ({"validated": False, "metric": "val_loss"}, ValueError, "needs validation_data"),
        ({"grid": {"batch_size": FloatDistribution(1, 9)}, "learning_rate": 1.0}, TypeError,
         "batch_size takes IntDistribution or CategoricalDistribution"),
        ({"grid": {"sizes": IntDistribution(1, 9)}, "learning_rate": 1.0}, TypeError,
         "sizes takes CategoricalDistribution"),
        ({"grid": {"batch_size": IntDistribution(1, 999)}, "learning_rate": 1.0}, ValueError,
         "batch_size=999.*batch_size must be in"),
        ({"grid": {"learning_rate": FloatDistribution(-1, 1)}}, ValueError, "learning_rate=-1"),
        ({"grid": {"learning_rate": RATE, "beta1": [0.9]}}, ValueError,
         "beta1 is no setting of SGD"),
        ({"grid": {"learning_rate": RATE, "sizes": [[3, 2], [4, 2]]}}, ValueError, "4"),
        ({"grid": {"rate": RATE}}, ValueError, "unknown key 'rate'"),
        ({"grid": {"learning_rate": []}}, ValueError, "no value"),
        ({"grid": {"learning_rate": 0.1}}, TypeError, "distribution or a list of values"),
        ({"grid": {"learning_rate": [0.1, 0.1]}}, ValueError, "twice"),
        ({"grid": {"learning_rate": [1, 1.0]}}, ValueError, "twice"),
        ({"grid": {"momentum": [0.1]}}, ValueError, "has no learning_rate"),
        ({"grid": {}}, ValueError, "grid is empty"),
        ({"grid": [{"learning_rate": RATE}]}, TypeError, "one dict"),
        ({"grid": None}, TypeError, "needs a grid"),
        ({"learning_rate": RATE, "grid": {"momentum": [0.1]}}, TypeError, "belongs in the grid"),
        ({"settings": [{}]}, TypeError, "settings exclude each other"),
        ({"seeds": 2}, TypeError, "seeds exclude each other"),
        ({"callbacks": [Checkpoint("x")]}, ValueError, "keeps no Checkpoint"),
        ({"callbacks": [3]}, TypeError, "callbacks"),
        ({"engine": "warp"}, ValueError, "engine"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(arguments, error, text, monkeypatch):
    asked = []
    monkeypatch.setattr(optuna.Study, "ask", lambda *_: asked.append(1))
    with pytest.raises(error, match=text):
        run(**arguments)
    assert not asked


def test_studies_that_do_not_fit():
    with pytest.raises(ValueError, match="study must maximize val_accuracy"):
        run(study=optuna.create_study())
    with pytest.raises(ValueError, match="2 objectives"):
        run(study=optuna.create_study(directions=["maximize", "minimize"]))
    study = optuna.create_study(direction="maximize")
    with pytest.raises(TypeError, match="study and sampler exclude"):
        run(study=study, sampler=RandomSampler())
    assert not study.trials


def test_a_distribution_without_trials():
    X, labels = problem()
    for search in (sweep, cross_validate):
        with pytest.raises(TypeError, match=r"holds a distribution for 'learning_rate'.*trials"):
            search(X, labels, grid={"learning_rate": RATE}, **SHARED)


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'backprop_gpu\[optuna\]'"):
        run(sampler=None)
    assert len(run(sampler=None, trials=None, grid={"learning_rate": [0.1]})) == 1


def test_nan_is_a_failure():
    """A trial must have a value: one whose validation loss is NaN has none."""
    study = optuna.create_study(direction="minimize", pruner=NopPruner())
    grid = {"learning_rate": [0.1]}

    def spoil(network, history):
        history.val_loss[-1] = math.nan

    with pytest.raises(FloatingPointError, match="val_loss is NaN"):
        run(study=study, grid=grid, trials=2, metric="val_loss", callbacks=[spoil])
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2
