"""What loggers have logged is what `History` holds, read back with the packages' own readers."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import pickle
import struct
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from backprop_gpu import (
    Adam,
    Callback,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    JSONLogger,
    MLflowLogger,
    MLPClassifier,
    Network,
    Population,
    TensorBoardLogger,
    WandbLogger,
    cross_validate,
    schedules,
    sweep,
)
from backprop_gpu.loggers import LABELS, VALUES
from rank_threads import on_ranks

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3))
Y = (X.sum(axis=1) > 0).astype(int)
FIT = {"epochs": 4, "batch_size": 8, "learning_rate": 0.5, "validation_data": (X, Y)}
KINDS = ("csv", "json", "tensorboard", "mlflow", "wandb")
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


def network(seed=3, **settings):
    return Network([3, 4, 1], backend="numpy", seed=seed, cost="binary_cross_entropy", **settings)


def population(members=3, seed=3):
    return Population(
        [3, 4, 1], members=members, backend="numpy", seed=seed, cost="binary_cross_entropy"
    )


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


class Place:
    """A logger of a kind, and what has been logged by it: a dict of columns for each run."""

    def __init__(self, kind, folder, tracking):
        self.kind, self.folder, self.tracking = kind, folder, tracking
        self.experiment = f"{folder.name}"

    def logger(self, **how):
        match self.kind:
            case "csv":
                return CSVLogger(self.folder / "log.csv", **how)
            case "json":
                return JSONLogger(self.folder / "log.jsonl")
            case "tensorboard":
                return TensorBoardLogger(self.folder / "tb")
            case "mlflow":
                return MLflowLogger(tracking_uri=self.tracking, experiment=self.experiment, **how)
        return WandbLogger(dir=str(self.folder), settings={"silent": True})

    def runs(self):
        """By their labels, as a tuple."""
        return getattr(self, f"_{self.kind}")()

    def _csv(self):
        with (self.folder / "log.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return _of_rows([{k: _number(v) for k, v in row.items()} for row in rows])

    def _json(self):
        lines = (self.folder / "log.jsonl").read_text().splitlines()
        return _of_rows([json.loads(line) for line in lines])

    def _tensorboard(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import metadata

        found = {}
        for folder in {path.parent for path in (self.folder / "tb").rglob("*tfevents*")}:
            events = EventAccumulator(str(folder))
            events.Reload()
            run = {"steps": [each.step for each in events.Scalars("loss")]}
            for tag in events.Tags()["scalars"]:
                run[tag] = [each.value for each in events.Scalars(tag)]
            plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data
            given = metadata.parse_session_start_info_plugin_data(plugin.content).hparams
            run["settings"] = {
                name: getattr(value, value.WhichOneof("kind")) for name, value in given.items()
            }
            found[_labels(run["settings"])] = run
        return found

    def _mlflow(self):
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking)
        experiment = client.get_experiment_by_name(self.experiment).experiment_id
        found = {}
        for each in client.search_runs([experiment]):
            run = {"settings": each.data.params, "status": each.info.status}
            run |= {"tags": each.data.tags, "id": each.info.run_id}
            for name in each.data.metrics:
                values = client.get_metric_history(each.info.run_id, name)
                values = sorted(values, key=lambda each: each.step)
                run[name] = [value.value for value in values]
                if name == "loss":
                    run["steps"] = [value.step for value in values]
            found[_labels(each.data.params)] = run
        return found

    def _wandb(self):
        found = {}
        for path in sorted((self.folder / "wandb").glob("offline-run-*/*.wandb")):
            run = {"settings": {}, "steps": []}
            for record in _whole_wandb_file(path):
                kind = record.WhichOneof("record_type")
                if kind == "run":
                    run["id"] = record.run.run_id
                if kind in ("run", "config"):
                    config = record.run.config if kind == "run" else record.config
                    run["settings"] |= {
                        each.key: json.loads(each.value_json) for each in config.update
                    }
                if kind == "history":
                    for item in record.history.item:
                        name = item.key or item.nested_key[0]
                        value = json.loads(item.value_json)
                        if name == "_step":
                            run["steps"].append(value)
                        else:
                            run.setdefault(name, []).append(value)
                if kind == "summary":
                    for item in record.summary.update:
                        name = item.key or item.nested_key[0]
                        run.setdefault("summary", {})[name] = json.loads(item.value_json)
                if kind == "exit":
                    run["exit"] = record.exit.exit_code
            found[_labels(run["settings"])] = run
        return found


def _number(text):
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


def _labels(settings):
    return tuple(int(settings[name]) for name in LABELS if name in settings)


def _of_rows(rows):
    found = {}
    for row in rows:
        run = found.setdefault(_labels(row), {"settings": {}, "steps": []})
        run["steps"].append(row.pop("epoch"))
        for name in VALUES:
            if name in row:
                run.setdefault(name, []).append(row.pop(name))
        run["settings"] = row
    return found


def _whole_wandb_file(path):
    """The records, once all are there: ``finish`` does not wait for what writes them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = list(_wandb_records(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.02)
    raise AssertionError(f"{path} does not end")


def _wandb_records(path):
    """The records of a file: a log of LevelDB's, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


@pytest.fixture(params=KINDS)
def place(request, tmp_path, tracking):
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param], reason=f"{request.param} is not installed")
    return Place(request.param, tmp_path, tracking)


def agrees(run, history):
    """Each value is there once, and is that of the history to the bit."""
    single = "final_loss" in run and "id" not in run  # TensorBoard has float32
    assert run["steps"] == list(range(len(history)))
    for name in VALUES:
        values = getattr(history, name)
        if values and not math.isnan(values[0]):
            assert run[name] == ([float(np.float32(v)) for v in values] if single else values)


def setting(run, name):
    value = run["settings"][name]
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def test_a_network(place):
    net = network()
    history = net.fit(
        X, Y, **FIT, optimizer=Adam(l2=0.01), callbacks=[place.logger()], dropout=0.25
    )
    ((labels, run),) = place.runs().items()
    assert labels == ()
    agrees(run, history)
    expected = {"sizes": [3, 4, 1], "activation": "sigmoid", "cost": "binary_cross_entropy",
                "dtype": "float32", "precision": "float32", "backend": "numpy", "seed": 3,
                "engine": net.plan.engine, "rows": 40, "epochs": 4, "batch_size": 8,
                "learning_rate": 0.5, "optimizer": "Adam(l2=0.01)", "dropout": 0.25,
                "mixup": 0.0}  # fmt: skip
    assert {name: setting(run, name) for name in expected} == expected
    if place.kind in ("csv", "json"):
        assert set(run["settings"]) == set(expected)


def test_final_values_are_those_of_the_weights_that_are_left(place):
    net = network()
    stopping = EarlyStopping(patience=1, min_delta=1.0)
    # Before it in the list, and yet after it.
    history = net.fit(X, Y, **FIT, callbacks=[place.logger(), stopping])
    assert history.restored == 0
    run = place.runs()[()]
    agrees(run, history)
    if place.kind in ("tensorboard", "mlflow"):
        assert run["final_val_loss"] == [run["val_loss"][0]]
    if place.kind == "wandb":
        assert run["summary"]["final_val_loss"] == history.val_loss[0]
        assert run["summary"]["restored"] == 0
    if place.kind == "mlflow":
        assert (run["tags"]["restored"], run["status"]) == ("0", "FINISHED")


def test_without_validation_and_with_targets_that_are_no_classes(place):
    net = Network([3, 1], activation="identity", backend="numpy", seed=0)
    history = net.fit(X, X[:, :1], epochs=2, batch_size=8, learning_rate=0.1,
                            callbacks=[place.logger()])  # fmt: skip
    run = place.runs()[()]
    agrees(run, history)
    assert "val_loss" not in run
    assert "val_accuracy" not in run


def test_a_val_accuracy_that_is_not_there(place):
    net = Network([3, 1], activation="identity", backend="numpy", seed=0)
    history = net.fit(X, X[:, :1], epochs=2, batch_size=8, learning_rate=0.1,
                      validation_data=(X, X[:, :1]), callbacks=[place.logger()])  # fmt: skip
    run = place.runs()[()]
    agrees(run, history)
    if place.kind == "csv":
        assert all(map(math.isnan, run["val_accuracy"]))
    elif place.kind == "json":
        assert run["val_accuracy"] == [None, None]
    else:
        assert "val_accuracy" not in run


def test_batches_and_a_network_without_a_seed(tmp_path):
    path = tmp_path / "log.jsonl"
    chunks = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    network(None).fit(
        batches=chunks, epochs=2, batch_size=8, learning_rate=lambda t: 0.1 + 0 * t,
        callbacks=[JSONLogger(path)],
    )  # fmt: skip
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["rows"], row["seed"]) for row in rows] == [(None, None)] * 2
    assert "0x" not in rows[0]["learning_rate"]


def test_a_population(place):
    members = population()
    histories = members.fit(
        X, Y, **FIT | {"epochs": [2, 4, 3], "learning_rate": [0.1, 0.2, 0.3]},
        callbacks=[place.logger()],
    )  # fmt: skip
    runs = place.runs()
    assert sorted(runs) == [(0,), (1,), (2,)]
    for i, history in enumerate(histories):
        agrees(runs[i,], history)
        assert setting(runs[i,], "learning_rate") == [0.1, 0.2, 0.3][i]
        assert setting(runs[i,], "seed") == 3 + i


def test_a_sweep_of_several_shapes(place):
    found = sweep(
        X, Y, grid=[{"sizes": [[3, 2, 1], [3, 4, 1]], "momentum": [0.5], "optimizer": ["momentum"]},
                    {"sizes": [[3, 2, 1]], "learning_rate": [schedules.StepDecay(0.5, 2)]}],
        **{name: FIT[name] for name in FIT}, backend="numpy", progress=False, seed=2,
        callbacks=[place.logger()],
    )  # fmt: skip
    runs = place.runs()
    assert sorted(runs) == [(0,), (1,), (2,)]
    for i, net in enumerate(found.networks):
        agrees(runs[i,], net.history)
        assert setting(runs[i,], "sizes") == found.rows[i]["sizes"]
        assert setting(runs[i,], "seed") == found.rows[i]["seed"]
    assert setting(runs[0,], "momentum") == 0.5
    assert "StepDecay" in setting(runs[2,], "learning_rate")


def test_trials(place):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    found = sweep(
        X, Y, grid={"learning_rate": optuna.distributions.FloatDistribution(0.01, 1.0)},
        sizes=[3, 2, 1], epochs=4, batch_size=8, validation_data=(X, Y), backend="numpy", seed=1,
        trials=5, at_once=2, pruner=pruner, progress=False, callbacks=[place.logger()],
    )  # fmt: skip
    runs = place.runs()
    assert sorted(runs) == [(i, i) for i in range(5)]
    for i, net in enumerate(found.networks):
        agrees(runs[i, i], net.history)
        assert setting(runs[i, i], "learning_rate") == found.rows[i]["learning_rate"]
    assert {row["epochs_trained"] for row in found.rows} != {4}


def test_folds(place):
    found = cross_validate(
        X, Y, cv=2, settings=[{"learning_rate": 0.1}, {"learning_rate": 0.2}], sizes=[3, 2, 1],
        epochs=2, batch_size=8, backend="numpy", callbacks=[place.logger()],
    )  # fmt: skip
    runs = place.runs()
    assert sorted(runs) == [(s, k) for s in range(2) for k in range(2)]
    for s in range(2):
        for k in range(2):
            agrees(runs[s, k], found.histories[s][k])
            assert setting(runs[s, k], "learning_rate") == [0.1, 0.2][s]


class Stop(Exception):
    pass


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_fit_end(self, network, history):
        pass

    def on_epoch_end(self, network, history):
        if len(history) == self.epochs:
            raise Stop


@pytest.mark.parametrize("make", [network, population])
def test_nothing_is_logged_twice_where_a_training_is_resumed(place, tmp_path, make):
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        make().fit(X, Y, **FIT, callbacks=[place.logger(), Checkpoint(path, every=2), _killer(4)])
    if place.kind in ("csv", "json"):  # nobody has taken out what the checkpoint does not know
        assert len(place.runs()) in (1, 3)
    trainer = make(seed=9)
    settings = FIT | {"epochs": 6}
    histories = trainer.fit(
        X, Y, **settings, callbacks=[place.logger(), Checkpoint(path)], resume_from=path
    )
    runs = place.runs()
    several = list(trainer) if make is population else [trainer]
    assert len(runs) == len(several)
    for i, (labels, run) in enumerate(sorted(runs.items())):
        assert labels == ((i,) if make is population else ())
        history = several[i].history
        assert len(history) == 6
        assert history in (histories, *(histories if isinstance(histories, list) else ()))
        if place.kind == "wandb":  # a second folder of the same run
            assert run["steps"] == [2, 3, 4, 5]
            assert run["loss"] == history.loss[2:]
            continue
        if place.kind == "mlflow":  # the third's was measured when it was trained first
            run["seconds"][2] = history.seconds[2]
        agrees(run, history)
        assert setting(run, "seed") == 3 + i


def _killer(epochs):
    """Ends the training after an epoch that loggers have logged, and no checkpoint knows of."""

    class Killer(StopAfter):
        keeps_log = True  # behind the loggers

        def on_resume(self, network, state):
            pass

    return Killer(epochs - 1)


def test_a_training_may_be_resumed_with_another_logger(place, tmp_path):
    path = tmp_path / "run.safetensors"
    network().fit(X, Y, **FIT | {"epochs": 2}, callbacks=[Checkpoint(path)])
    history = network().fit(X, Y, **FIT, callbacks=[place.logger()], resume_from=path)
    agrees(place.runs()[()], history)  # with the epochs before
    network().fit(X, Y, **FIT, resume_from=path)


def test_what_ends_a_training_leaves_a_log_of_its_epochs(place):
    net = network()
    with pytest.raises(Stop):
        net.fit(X, Y, **FIT, callbacks=[place.logger(), StopAfter(3)])
    run = place.runs()[()]
    # The other callback hears of an epoch first.
    assert run["steps"] == [0, 1, 2]
    agrees(run, net.history)
    if place.kind == "mlflow":
        assert run["status"] == "FAILED"
        assert run["tags"]["failure"] == "Stop"
    if place.kind == "wandb":
        assert run["exit"] == 1
        assert run["summary"]["failure"] == "Stop"


def test_a_member_that_fails(place):
    members = Population([3, 1], members=2, activation="identity", backend="numpy", seed=0)
    rates = FIT | {"learning_rate": [0.1, 300.0], "epochs": 20}
    with pytest.warns(RuntimeWarning, match="stopped early"):
        members.fit(X, Y, **rates, callbacks=[place.logger()])
    assert list(members.failed) == [1]
    runs = place.runs()
    agrees(runs[0,], members.members[0].history)
    assert runs[1,]["steps"] == list(range(len(members.members[1].history))) != []
    if place.kind == "mlflow":
        assert runs[1,]["status"] == "FAILED"
        assert "learning_rate" in runs[1,]["tags"]["failure"]


def test_a_logger_may_be_used_again(place):
    logger = place.logger()
    network().fit(X, Y, **FIT, callbacks=[logger])
    history = network(5).fit(X, Y, **FIT | {"epochs": 2}, callbacks=[logger])
    if place.kind in ("csv", "json", "tensorboard"):  # in place of the first
        agrees(place.runs()[()], history)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_file_has_each_epoch_when_it_is_over(kind, tmp_path):
    place, seen = Place(kind, tmp_path, None), []

    class After(Callback):
        keeps_log = True

        def on_resume(self, network, state):
            pass

        def on_epoch_end(self, network, history):
            agrees(place.runs()[()], history)
            seen.append(len(history))

    network().fit(X, Y, **FIT, callbacks=[After(), place.logger()][::-1])
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_line_that_was_cut_short_is_written_again(kind, tmp_path):
    place, path = Place(kind, tmp_path, None), tmp_path / "run.safetensors"
    network().fit(X, Y, **FIT | {"epochs": 3}, callbacks=[place.logger(), Checkpoint(path)])
    log = next(tmp_path.glob("log.*"))
    log.write_bytes(log.read_bytes()[:-5])
    history = network().fit(X, Y, **FIT, callbacks=[place.logger()], resume_from=path)
    agrees(place.runs()[()], history)


def test_csv_goes_on_behind_what_is_there(tmp_path):
    path, checkpoint = tmp_path / "log.csv", tmp_path / "run"
    for seed in (1, 2):
        network(seed).fit(X, Y, **FIT, callbacks=[CSVLogger(path, append=True)])
    callbacks = [CSVLogger(path, append=True), Checkpoint(checkpoint, every=2), _killer(4)]
    with pytest.raises(Stop):
        network(3).fit(X, Y, **FIT, callbacks=callbacks)
    network().fit(X, Y, **FIT, callbacks=[CSVLogger(path, append=True)], resume_from=checkpoint)
    rows = list(csv.DictReader(path.open(newline="")))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3] * 3
    assert [int(row["seed"]) for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    before = path.read_bytes()
    with pytest.raises(ValueError, match="other columns"):
        population(2).fit(X, Y, **FIT, callbacks=[CSVLogger(path, append=True)])
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore:The 'float_precision' argument")  # once needed, from 3.1 not
def test_pandas_reads_both_files(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    loggers = [CSVLogger(tmp_path / "é.csv"), JSONLogger(tmp_path / "é.jsonl")]
    history = network().fit(X, Y, **FIT, callbacks=loggers)
    for table in (
        pandas.read_csv(tmp_path / "é.csv", float_precision="round_trip"),
        pandas.read_json(tmp_path / "é.jsonl", lines=True, precise_float=True),
    ):
        assert table["val_loss"].tolist() == history.val_loss
        assert table["seconds"].tolist() == history.seconds


@pytest.mark.parametrize("kind", [CSVLogger, JSONLogger])
def test_paths_that_cannot_be_written_change_nothing(kind, tmp_path):
    net = network()
    before = net.model.read(net.parameters).tobytes()
    (tmp_path / "file").write_text("")
    for path, error in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "none" / "log", FileNotFoundError),
        (tmp_path / "file" / "log", FileNotFoundError),
    ):
        with pytest.raises(error, match=kind.__name__):
            net.fit(X, Y, **FIT, callbacks=[kind(path)])
    with pytest.raises(TypeError, match="path must be a path"):
        kind(3.5)
    assert net.history is None
    assert net.model.read(net.parameters).tobytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_full_disk_ends_training_with_a_whole_epoch(kind, stops, tmp_path):
    logger, net, twin = Place(kind, tmp_path, None).logger(), network(), network()

    class Fill(Callback):
        def on_epoch_end(self, network, history):
            if len(history) == 3:
                logger.path.unlink()
                logger.path.symlink_to("/dev/full")
                if stops:  # so that the logger hears of the epoch at the end alone
                    raise Stop

    with pytest.raises(OSError, match="No space left") as raised:
        net.fit(X, Y, **FIT, callbacks=[logger, Fill()])
    assert isinstance(raised.value.__context__, Stop) == stops
    assert raised.value.filename == str(logger.path)  # of several logs: which
    twin.fit(X, Y, **FIT | {"epochs": 3})
    assert net.history.loss == twin.history.loss
    assert net.model.read(net.parameters).tobytes() == twin.model.read(twin.parameters).tobytes()
    logger.path.unlink()
    net.fit(X, Y, **FIT, callbacks=[logger])  # it may be used again


def test_a_member_that_cannot_begin_ends_the_others_logs(tmp_path, tracking):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    place = Place("mlflow", tmp_path, tracking)

    class Refuse(Callback):
        keeps_log = True

        def on_fit_start(self, network):
            if self.run.labels["member"] == 2:
                raise Stop

        def on_run(self, network, run):
            self.run = run

    members = population()
    before = [each.model.read(each.parameters).tobytes() for each in members]
    with pytest.raises(Stop):
        members.fit(X, Y, **FIT, callbacks=[place.logger(), Refuse()])
    assert [each.model.read(each.parameters).tobytes() for each in members] == before
    assert {run["status"] for run in place.runs().values()} == {"FAILED"}


def test_two_trainings_at_once_need_two_loggers(tmp_path):
    logger = CSVLogger(tmp_path / "log.csv")

    class Inner(Callback):
        def on_epoch_end(self, net, history):
            network().fit(X, Y, **FIT, callbacks=[logger])

    with pytest.raises(RuntimeError, match="is logging another training"):
        network().fit(X, Y, **FIT, callbacks=[logger, Inner()])
    with pytest.raises(RuntimeError, match="another logger is writing"):
        network().fit(X, Y, **FIT, callbacks=[logger, CSVLogger(logger.path)])
    for each in (logger, copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        network().fit(X, Y, **FIT, callbacks=[each])


def test_a_log_of_another_training_is_refused(tmp_path):
    path, log = tmp_path / "run", tmp_path / "log.jsonl"
    network().fit(X, Y, **FIT | {"epochs": 2}, callbacks=[JSONLogger(log), Checkpoint(path)])
    for text in ("[]\n", "nonsense\n", '{"epoch": "x"}\n'):
        log.write_text(text)
        with pytest.raises(ValueError, match="is not the log of the training"):
            network().fit(X, Y, **FIT, callbacks=[JSONLogger(log)], resume_from=path)
        assert log.read_text() == text
    log.unlink()  # it begins a new one, with all epochs
    history = network().fit(X, Y, **FIT, callbacks=[JSONLogger(log)], resume_from=path)
    assert [json.loads(line)["loss"] for line in log.read_text().splitlines()] == history.loss


# -- MLflow -----------------------------------------------------------------------------------


def test_mlflow_logs_the_model(tmp_path, tracking):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    place, net = Place("mlflow", tmp_path, tracking), network()
    client = mlflow.MlflowClient(tracking)
    client.create_experiment(place.experiment, artifact_location=(tmp_path / "a").as_uri())
    net.fit(X, Y, **FIT, callbacks=[place.logger(log_model=True), EarlyStopping(patience=1)])
    run = place.runs()[()]
    path = client.download_artifacts(run["id"], "model.safetensors", str(tmp_path))
    assert np.array_equal(Network.load(path).predict(X), net.predict(X))


def test_mlflow_logs_to_the_active_run_and_below_it(tmp_path, tracking):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking)
    try:
        mlflow.set_experiment(tmp_path.name)
        with mlflow.start_run() as active:
            history = network().fit(X, Y, **FIT, callbacks=[MLflowLogger()])
            population(2).fit(X, Y, **FIT, callbacks=[MLflowLogger()])
            again = network()
            with pytest.raises(ValueError, match="holds a training already"):
                again.fit(X, Y, **FIT, callbacks=[MLflowLogger()])
            assert len(again.history) == 0
        own = mlflow.get_run(active.info.run_id)
        assert own.info.status == "FINISHED"
        assert own.data.metrics["loss"] == history.loss[-1]
        network().fit(X, Y, **FIT, callbacks=[MLflowLogger()])
        runs = mlflow.search_runs(output_format="list")
        parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
        assert sorted(map(str, parents)) == sorted(["None", "None", *[active.info.run_id] * 2])
        assert {run.info.run_name for run in runs} >= {"member 0", "member 1"}
        # A run of the user's own, by its object.
        mine = mlflow.MlflowClient().create_run(own.info.experiment_id)
        network().fit(X, Y, **FIT, callbacks=[MLflowLogger(mine)])
        mine = mlflow.get_run(mine.info.run_id)
        assert mine.info.status == "RUNNING"
        assert len(mine.data.params) == 15
    finally:
        mlflow.set_tracking_uri(before)


def test_mlflow_without_a_server_says_so_before_training(tmp_path, tracking):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    net = network()
    with pytest.raises(mlflow.exceptions.MlflowException):
        net.fit(X, Y, **FIT, callbacks=[MLflowLogger("0" * 32, tracking_uri=tracking)])
    assert net.history is None
    for how in ({"run": 3}, {"experiment": ""}, {"tracking_uri": 5}, {"log_model": 1},
                {"run": "a", "experiment": "b"}):  # fmt: skip
        with pytest.raises(TypeError):
            MLflowLogger(**how)


# -- others -----------------------------------------------------------------------------------


def test_tensorboard_wants_a_folder(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        network().fit(X, Y, **FIT, callbacks=[TensorBoardLogger(tmp_path / "file")])
    with pytest.raises(TypeError, match="log_dir must be a path"):
        TensorBoardLogger(None)


def test_wandb_takes_what_its_init_takes():
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("id", "resume", "reinit", "nonsense"):
        with pytest.raises(TypeError, match=f"takes no '{name}'"):
            WandbLogger(**{name: "x"})
    with pytest.raises(TypeError, match="config must be a dict"):
        WandbLogger(config=3)
    with pytest.raises(ValueError, match="unknown mode"):
        WandbLogger(mode="dryrun")


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (lambda: TensorBoardLogger("x"), "tensorboard"),
        (MLflowLogger, "mlflow"),
        (WandbLogger, "wandb"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(make, package, monkeypatch):
    for name in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'backprop_gpu\[{package}\]'"):
        make()


def test_the_first_of_several_ranks_logs(tmp_path):
    def work(ranks):
        logger = CSVLogger(tmp_path / "log.csv")
        return network().fit(X, Y, **FIT, callbacks=[logger], communicator=ranks)

    first, _ = on_ranks(2, work)
    agrees(Place("csv", tmp_path, None).runs()[()], first)


def test_loggers_are_of_this_process(tmp_path):
    """Refused where networks train on a cluster's workers."""
    from backprop_gpu.training.cluster import Cluster

    with pytest.raises(ValueError, match="CSVLogger keeps its log in this process"):
        Cluster.check_hooks(None, [CSVLogger(tmp_path / "log.csv")])
    assert not Path(tmp_path / "log.csv").exists()


# -- the estimators, by scikit-learn's own ----------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*Maximum iterations")
def test_scikit_learns_own_callbacks_hear_of_epochs(capsys):
    callback = pytest.importorskip(
        "sklearn.callback", reason="scikit-learn has no callbacks before 1.9"
    )
    pytest.importorskip("rich", reason="scikit-learn's ProgressBar needs rich")
    monitor = callback.ScoringMonitor(scoring="accuracy")
    est = MLPClassifier(hidden_layer_sizes=(4,), max_iter=5, random_state=0)
    est.set_callbacks(monitor, callback.ProgressBar()).fit(X, Y)
    rows = [each for each in monitor.get_logs().data if each["task_name"] == "epoch"]
    assert len(rows) == 5
    for i, row in enumerate(rows):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = MLPClassifier(hidden_layer_sizes=(4,), max_iter=i + 1, random_state=0)
            assert row["accuracy"] == twin.fit(X, Y).score(X, Y)
    assert "MLPClassifier - fit" in capsys.readouterr().out
