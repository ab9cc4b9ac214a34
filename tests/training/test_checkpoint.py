"""Checkpoints: a training that was stopped ends in the bits of one that was not."""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import killed
from backprop_gpu import (
    SGD,
    Callback,
    Checkpoint,
    EarlyStopping,
    Network,
    Population,
    model_file,
    schedules,
    sweep,
)
from backprop_gpu.training import RowsAtOnce

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 4))
Y = (X.sum(axis=1) > 0).astype(int)
EPOCHS = 6
SETTINGS = {"batch_size": 8, "learning_rate": 0.1}


class Stopped(Exception):
    pass


def stop_after(epochs):
    def function(network, history):
        if len(history) == epochs:
            raise Stopped

    return function


def network(seed=1, **settings):
    settings = {"cost": "binary_cross_entropy", "backend": "numpy"} | settings
    return Network([4, 7, 1], seed=seed, **settings)


def population(members=3, seed=1, **settings):
    settings = {"cost": "binary_cross_entropy", "backend": "numpy"} | settings
    return Population([4, 7, 1], members=members, seed=seed, **settings)


def fit(trainer, callbacks=(), **settings):
    settings = {"epochs": EPOCHS, "validation_data": (X, Y)} | SETTINGS | settings
    return trainer.fit(X, Y, callbacks=callbacks, **settings)


def state(net):
    """All that a training leaves behind, but for how long it took."""
    history = net.history
    return (
        net.model.read(net.parameters).tobytes(),
        net.generator.bit_generator.state,
        (history.loss, history.val_loss, history.val_accuracy, history.restored),
    )


def stopped(trainer, path, after, callbacks=(), **settings):
    """Train to the end of so many epochs, and leave the checkpoint of the last."""
    # The epoch after them is over, too, but not written.
    with pytest.raises(Stopped):
        fit(trainer, [*callbacks, Checkpoint(path), stop_after(after + 1)], **settings)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("engine", ["layered", "resident"])
def test_resumed_is_as_never_stopped(backend, engine, optimizer, dtype, tmp_path):
    if backend == "numba_cuda" and engine == "resident":
        pytest.skip("numba_cuda has the layered engine alone")
    path = tmp_path / "run"
    settings = {
        "engine": engine,
        "optimizer": optimizer,
        "learning_rate": schedules.ExponentialDecay(0.1, 0.9),
    }
    nets = [network(seed, dtype=dtype, backend=backend) for seed in (1, 1, 2)]
    fit(nets[0], [EarlyStopping(patience=2)], **settings)
    stopped(nets[1], path, 3, [EarlyStopping(patience=2)], **settings)
    callbacks = [EarlyStopping(patience=2), Checkpoint(path)]
    fit(nets[2], callbacks, resume_from=path, **settings)
    assert state(nets[2]) == state(nets[0])
    # The last file is of before the best weights were restored; it is over, and stays so.
    again = network(3, dtype=dtype, backend=backend)
    fit(again, [EarlyStopping(patience=2)], resume_from=path, **settings)
    assert state(again) == state(nets[0])
    assert again.plan == nets[0].plan


class StopsAtStep(Callback):
    def __init__(self, step):
        self.left = step

    def on_batch_end(self, network, batch):
        self.left -= 1
        if self.left == 0:
            raise Stopped


OFTEN = datetime.timedelta(microseconds=1)


@pytest.mark.parametrize("buffer", [None, 16])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("engine", ["layered", "resident"])
@pytest.mark.parametrize("step", [2, 3, 7, 8, 13, 40])
def test_in_the_midst_of_an_epoch(backend, engine, optimizer, step, buffer, tmp_path, monkeypatch):
    monkeypatch.setattr(RowsAtOnce, "_PIECE", 0.0)  # so each is a step
    if backend == "numba_cuda" and engine == "resident":
        pytest.skip("numba_cuda has the layered engine alone")
    path, settings = tmp_path / "run", {"engine": engine, "optimizer": optimizer}
    settings |= {"buffer_rows": buffer, "learning_rate": schedules.ExponentialDecay(0.1, 0.9)}
    watched = backend != "cuda" or engine != "resident"  # where Python is between steps
    if not watched:
        pytest.skip("nothing can stop it between two steps")
    nets = [network(seed, backend=backend) for seed in (1, 1, 2)]
    hears = [EarlyStopping(patience=5)]
    fit(nets[0], [EarlyStopping(patience=5)], **settings)
    with pytest.raises(Stopped):
        fit(nets[1], [*hears, StopsAtStep(step), Checkpoint(path, every=OFTEN)], **settings)
    with model_file.opened(path, "checkpoint") as file:
        text = json.loads(file.metadata()[model_file.CHECKPOINT])
    (member,) = text["members"]
    assert len(member["history"]["loss"]) * 7 + member["steps"] == step - 1
    fit(nets[2], [EarlyStopping(patience=5)], resume_from=path, **settings)
    assert state(nets[2]) == state(nets[0])


def test_a_disk_in_the_midst_of_an_epoch(tmp_path):
    """Pieces then are buffers, and it goes on with the next, or in memory anywhere."""
    path, rows = tmp_path / "run", tmp_path / "rows.npy"
    np.save(rows, X)
    stored = np.load(rows, mmap_mode="r")
    nets = [network(seed) for seed in (1, 1, 2, 3)]
    given = SETTINGS | {"epochs": EPOCHS, "buffer_rows": 16}
    nets[0].fit(X, Y, **given)
    with pytest.raises(Stopped):
        nets[1].fit(stored, Y, callbacks=[StopsAtStep(13), Checkpoint(path, every=OFTEN)], **given)
    nets[2].fit(stored, Y, resume_from=path, **given)
    nets[3].fit(X, Y, resume_from=path, **given)
    assert state(nets[2]) == state(nets[0]) == state(nets[3])


def test_what_diverges_later_in_the_epoch_has_the_weights_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(RowsAtOnce, "_PIECE", 0.0)
    path = tmp_path / "run"

    def diverges(t):
        return np.where(t < 2.7, 0.1, 1e200)

    nets = [
        network(seed, dtype="float64", activation="identity", cost="quadratic")
        for seed in (1, 1, 2)
    ]
    settings = {"learning_rate": diverges, "validation_data": None}
    with pytest.raises(FloatingPointError) as ends_whole:
        fit(nets[0], **settings)
    with pytest.raises(Stopped):
        fit(nets[1], [StopsAtStep(19), Checkpoint(path, every=OFTEN)], **settings)
    with pytest.raises(FloatingPointError) as ends:
        fit(nets[2], resume_from=path, **settings)
    assert str(ends.value) == str(ends_whole.value)
    assert "epoch 3" in str(ends.value)
    assert state(nets[2])[0] == state(nets[0])[0]


def test_sigterm_in_the_midst_of_a_long_epoch(tmp_path):
    """An epoch of a minute: it ends within seconds, and goes on from there."""
    path, program = (
        tmp_path / "run",
        textwrap.dedent(
            """
        import sys
        import numpy as np
        from backprop_gpu import Checkpoint, Network

        rows = np.random.default_rng(0).random((1_000_000, 100), np.float32)
        net = Network([100, 300, 300, 1], seed=1, backend="numpy")
        print("begins", flush=True)
        net.fit(
            rows, rows[:, :1], epochs=1, batch_size=100, learning_rate=0.1,
            callbacks=[Checkpoint(sys.argv[1])],
        )
        """
        ),
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begins\n"
    time.sleep(2.5)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert process.wait(timeout=60) == 143
    assert time.monotonic() - begin < 15
    with model_file.opened(path, "checkpoint") as file:
        (member,) = json.loads(file.metadata()[model_file.CHECKPOINT])["members"]
    assert member["history"]["loss"] == []
    assert 0 < member["steps"] < 10_000


@pytest.mark.parametrize("engine", ["fused", "persistent"])
@pytest.mark.gpu
def test_engines_of_a_gpu(engine, tmp_path):
    path = tmp_path / "run"
    settings = {"cost": "quadratic", "backend": "cuda", "dtype": "float32"}
    nets = [Network([16, 32, 32, 16], seed=seed, **settings) for seed in (1, 1, 2)]
    rows = RNG.standard_normal((300, 16))
    for net, epochs, resume in zip(nets, (4, 2, 4), (None, None, path), strict=True):
        net.fit(
            rows, np.tanh(rows), epochs=epochs, batch_size=128, learning_rate=0.1,
            optimizer="adam", engine=engine, callbacks=[Checkpoint(path)], resume_from=resume,
        )  # fmt: skip
    assert state(nets[2]) == state(nets[0])


def test_a_population(backend, tmp_path):
    """Some members are over when it is stopped, one with its best weights; one fails later."""
    path = tmp_path / "run"
    shape = {"activation": ["tanh", "identity"], "cost": "quadratic", "backend": backend}
    settings = {
        "epochs": [2, 6, 6, 6, 6],
        "optimizer": ["sgd", "adam", "momentum", "sgd", "sgd"],
        "learning_rate": [0.1, 9.0, 0.01, 1e9, lambda t: np.where(t < 4, 0.01, 1e9)],
    }

    def callbacks():
        return [EarlyStopping(patience=2, min_delta=0.001)]

    whole, cut, resumed = (population(5, seed, **shape) for seed in (1, 1, 9))
    with pytest.warns(RuntimeWarning, match=r"2 of .*member 3.*member 4"):
        fit(whole, callbacks(), **settings)
    stopped(cut, path, 3, callbacks(), **settings)
    with pytest.warns(RuntimeWarning, match=r"2 of .*member 3.*member 4"):
        fit(resumed, [*callbacks(), Checkpoint(path)], resume_from=path, **settings)
    assert [state(net) for net in resumed] == [state(net) for net in whole]
    assert resumed.failed == whole.failed
    assert [len(net.history) for net in whole][:1] == [2]
    assert whole.members[1].history.restored is not None
    with pytest.raises(ValueError, match=r"a checkpoint of a population, for Population\.fit"):
        Network.load(path)


def test_more_epochs(tmp_path):
    """Also where the first part has restored its best weights: the file has those before."""
    path = tmp_path / "run"
    nets = [network(seed) for seed in (1, 1, 2)]
    fit(nets[0], [EarlyStopping(patience=90)], learning_rate=4.0)
    fit(nets[1], [EarlyStopping(patience=90), Checkpoint(path)], epochs=3, learning_rate=4.0)
    fit(nets[2], [EarlyStopping(patience=90)], learning_rate=4.0, resume_from=path)
    assert state(nets[2]) == state(nets[0])


def test_more_epochs_of_a_member_that_was_over(tmp_path):
    """Its part of the file is of its own last epoch, before its best weights were restored."""
    path = tmp_path / "run"
    shape = {"activation": ["tanh", "identity"], "cost": "quadratic"}
    settings = {"optimizer": "adam", "learning_rate": [9.0, 0.1]}
    whole, cut, resumed = (population(2, seed, **shape) for seed in (1, 1, 9))
    fit(whole, [EarlyStopping(patience=90)], **settings)
    fit(cut, [EarlyStopping(patience=90), Checkpoint(path)], epochs=[2, 4], **settings)
    assert cut.members[0].history.restored == 0
    fit(resumed, [EarlyStopping(patience=90)], resume_from=path, **settings)
    assert [state(net) for net in resumed] == [state(net) for net in whole]


def test_epochs_that_run_together(tmp_path):
    """Without callbacks the resident engine runs several epochs a call, also after resuming."""
    path = tmp_path / "run"
    nets = [network(seed) for seed in (1, 1, 2)]
    fit(nets[0], epochs=40, validation_data=None)
    fit(nets[1], [Checkpoint(path)], epochs=7, validation_data=None)
    fit(nets[2], epochs=40, validation_data=None, resume_from=path)
    assert state(nets[2]) == state(nets[0])


def test_the_file_is_a_model(tmp_path):
    path = tmp_path / "run"
    net = network()
    fit(net, [Checkpoint(path)], optimizer="adam")
    loaded = Network.load(path, backend="numpy")
    assert loaded.predict(X).tobytes() == net.predict(X).tobytes()


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"])
def test_any_generator_of_numpy(kind, tmp_path):
    path = tmp_path / "run"
    nets = [network() for _ in range(3)]
    for net in nets[:2]:
        net.generator = np.random.Generator(getattr(np.random, kind)(5))
    fit(nets[0])
    stopped(nets[1], path, 3)
    fit(nets[2], resume_from=path)
    assert repr(state(nets[2])) == repr(state(nets[0]))


# -- when, and which ------------------------------------------------------------------------


def test_every_so_many_epochs(tmp_path):
    path = tmp_path / "{epoch}"
    fit(network(), [Checkpoint(path, every=4, keep=9)])
    assert sorted(os.listdir(tmp_path)) == ["4", "6"]  # and the last


def test_every_so_much_time(tmp_path):
    def slow(net, history):
        time.sleep(0.1 * (len(history) == 2))

    every = datetime.timedelta(seconds=0.1)
    fit(network(), [slow, Checkpoint(tmp_path / "{epoch}", every=every, keep=9)])
    # On a machine that is busy others may be late, too.
    assert {"2", "6"} <= set(os.listdir(tmp_path))


def test_the_newest_stay(tmp_path):
    (tmp_path / "other-1").touch()
    path = tmp_path / "net-{epoch:03d}.safetensors"
    fit(network(), [Checkpoint(path, keep=2)])
    files = ["net-005.safetensors", "net-006.safetensors", "other-1"]
    assert sorted(os.listdir(tmp_path)) == files
    net = network(2)
    fit(net, [Checkpoint(path, keep=2)], epochs=7, resume_from=path)
    assert len(net.history) == 7
    assert sorted(os.listdir(tmp_path)) == [files[1], "net-007.safetensors", "other-1"]
    with pytest.raises(FileExistsError, match=r"net-007.safetensors is of an earlier training"):
        fit(network(), [Checkpoint(path, keep=2)])


def test_files_of_later_epochs_are_left_alone(tmp_path):
    """They are of the same training, which goes on from an earlier one here."""
    path = tmp_path / "{epoch}"
    fit(network(), [Checkpoint(path, keep=4)])
    assert sorted(os.listdir(tmp_path)) == ["3", "4", "5", "6"]
    with pytest.raises(Stopped):
        fit(network(2), [Checkpoint(path, keep=1), stop_after(5)], resume_from=tmp_path / "3")
    assert sorted(os.listdir(tmp_path)) == ["4", "5", "6"]


def test_one_for_several_and_several_for_one(tmp_path):
    both = [Checkpoint(tmp_path / "one"), Checkpoint(tmp_path / "two", every=3)]
    with pytest.raises(Stopped):
        fit(network(), [*both, stop_after(5)])
    nets = [network(2), network(3), network()]
    for net, name in zip(nets, ("one", "two", None), strict=True):
        fit(net, resume_from=name and tmp_path / name)
    assert state(nets[0]) == state(nets[1]) == state(nets[2])


# -- what callbacks remember ------------------------------------------------------------------


class Counts(Callback):
    def on_fit_start(self, network):
        self.seen, self.last = 0, None

    def on_epoch_end(self, network, history):
        self.seen, self.last = self.seen + 1, np.array([self.seen, 0.5])

    def state_dict(self):
        return {"seen": self.seen, "last": self.last}

    def on_resume(self, network, state):
        self.seen, self.last = state["seen"], state["last"]


def test_a_callback_of_ones_own(tmp_path):
    stopped(network(), tmp_path / "run", 3, [Counts()])
    counts = Counts()
    fit(network(), [counts], resume_from=tmp_path / "run")
    assert counts.seen == EPOCHS
    np.testing.assert_array_equal(counts.last, [EPOCHS - 1, 0.5])


def test_a_state_that_an_object_has_by_itself(tmp_path):
    class Plain(Callback):
        pass

    hooks = [Plain(), Plain()]
    for hook in hooks:
        hook.state_dict = lambda: {"answer": np.int64(42)}
    hooks[1].on_resume = lambda network, state: hooks.append(state)
    stopped(network(), tmp_path / "run", 3, hooks[:1])
    fit(network(), hooks[1:2], resume_from=tmp_path / "run")
    assert hooks[2] == {"answer": 42}


def test_early_stopping_refuses_what_it_cannot_be():
    net, stopping = network(), EarlyStopping()
    good = {"best": 1.0, "best_epoch": 2, "best_parameters": None}
    stopping.on_resume(net, good)
    length = net.model.layout.length
    for wrong in (
        {"best": "1"}, {"best": float("nan")}, {"best_epoch": 1.5}, {"best_epoch": None},
        {"best_parameters": np.zeros(length + 1, "float32")},
        {"best_parameters": np.full(length, np.nan, "float32")},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="best"):
            stopping.on_resume(net, good | wrong)


# -- what does not fit ------------------------------------------------------------------------


def test_other_arguments_are_refused_before_anything_changes(tmp_path):
    path = tmp_path / "run"
    stopped(network(), path, 3, [EarlyStopping()], optimizer="momentum")
    stops = [EarlyStopping()]

    def refused(words, trainer=None, callbacks=stops, data=(X, Y), **settings):
        net = network(2) if trainer is None else trainer
        before = net.model.read(net.parameters).tobytes(), net.generator.bit_generator.state
        settings = (
            {"epochs": EPOCHS, "validation_data": (X, Y), "optimizer": "momentum"}
            | SETTINGS
            | {"resume_from": path}
            | settings
        )
        with pytest.raises((ValueError, OSError), match=words):
            net.fit(*data, callbacks=callbacks, **settings)
        after = net.model.read(net.parameters).tobytes(), net.generator.bit_generator.state
        assert after == before

    refused("another network", network(dtype="float64"))
    refused("another network", network(activation=["tanh", "sigmoid"]))
    refused("another number of rows", data=(X[:-1], Y[:-1]))
    refused("another fingerprint", data=(X[::-1], Y[::-1]))
    refused("another fingerprint", data=(X, 1 - Y))
    refused("another use of validation_data", validation_data=None, callbacks=())
    refused("another batch_size", batch_size=9)
    refused("another learning_rate", learning_rate=0.2)
    refused(r"another optimizer.*SGD\(momentum=0.8\)", optimizer=SGD(momentum=0.8))
    refused("another list of callbacks", callbacks=())
    refused("another list of callbacks", callbacks=[Counts(), *stops])
    refused("has run 3 epochs, and epochs=2", epochs=2)
    refused("engine='layered', but the checkpoint's training runs on 'resident'", engine="layered")
    other = network()
    fit(other, engine="layered")
    refused("plan is not that of the checkpoint", plan=other.plan)
    refused("no checkpoint at", resume_from=tmp_path / "none")
    refused("no checkpoint at", resume_from=tmp_path / "none-{epoch}")
    refused("there is no folder", callbacks=[*stops, Checkpoint(tmp_path / "none" / "run")])
    refused("is a folder", callbacks=[*stops, Checkpoint(tmp_path)])
    refused("is a folder", callbacks=[*stops, Checkpoint("")])
    other.save(tmp_path / "model")
    refused("no checkpoint: nothing in it", resume_from=tmp_path / "model")
    refused("cut short or not", resume_from=Path(__file__))
    with pytest.raises(ValueError, match="another training of a population"):
        fit(population(1), resume_from=path, optimizer="momentum")
    with pytest.raises(TypeError, match="resume_from must be a path, got 5"):
        fit(network(), resume_from=5)
    fit(population(2), [Checkpoint(tmp_path / "two")])
    with pytest.raises(ValueError, match="another number of members"):
        fit(population(3), resume_from=tmp_path / "two")
    with pytest.raises(ValueError, match="member 1: another batch_size"):
        fit(population(2), resume_from=tmp_path / "two", batch_size=[8, 9])


def test_arguments_of_a_checkpoint(tmp_path):
    for path, settings, words in (
        ("a", {"every": 0}, "every must be >= 1"),
        ("a", {"every": datetime.timedelta(0)}, "every must be a time > 0"),
        ("a", {"keep": 0}, "keep must be >= 1"),
        ("a", {"keep": 2}, "needs a path with {epoch}"),
        ("{step}", {}, "no other braces"),
        ("{epoch}{epoch}", {}, "no other braces"),
        ("{epoch", {}, "no other braces"),
        ("{}", {}, "no other braces"),
        ("{epoch:x}", {}, "no other braces"),
        ("{epoch.real}", {}, "no other braces"),
    ):
        with pytest.raises(ValueError, match=words):
            Checkpoint(path, **settings)
    with pytest.raises(TypeError):
        Checkpoint("a", every=1.5)
    with pytest.raises(ValueError, match="sweep keeps no Checkpoint"):
        sweep(X, Y, grid={"learning_rate": [0.1, 0.2]}, sizes=[4, 1], epochs=1, batch_size=5,
              callbacks=[Checkpoint(tmp_path / "a")])  # fmt: skip


def _damage(text, rng):
    """Another description: a value replaced, left out or doubled, wherever it stands."""
    found = json.loads(text)
    place, key = None, None
    value = found
    while isinstance(value, dict | list) and value:
        place = value
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        value = place[key]
        if rng.random() < 0.3:
            break
    choice = rng.randrange(3)
    if choice == 0 or place is None:
        place[key] = rng.choice([None, -1, 1e308, "x", [], {}, [[]], True, 2**70, "\0", "{}"])
    elif choice == 1:
        del place[key]
    elif isinstance(place, list):
        place.append(value)
    else:
        place["x"] = value
    return json.dumps(found)


def test_a_damaged_file(tmp_path):
    """Every description that is refused says so as ValueError, and nothing has changed."""
    path, rng = tmp_path / "run", random.Random(0)
    stopped(network(), path, 3, [EarlyStopping()], optimizer="adam")
    whole = path.read_bytes()
    with model_file.opened(path, "checkpoint") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    net = network(2)
    before = net.model.read(net.parameters).tobytes()

    def tried(data):
        path.write_bytes(data)
        try:
            fit(net, [EarlyStopping()], optimizer="adam", resume_from=path)
        except ValueError:
            assert net.model.read(net.parameters).tobytes() == before
            return 1
        except FloatingPointError:  # that of the file, which may be any text
            pass
        net.model.write(np.frombuffer(before, "float32"), net.parameters)
        return 0

    refused = 0
    for _ in range(150):
        damaged = metadata | {model_file.CHECKPOINT: _damage(metadata[model_file.CHECKPOINT], rng)}
        refused += tried(safetensors.numpy.save(tensors, damaged))
    assert refused > 75
    for name in tensors:
        without = {key: value for key, value in tensors.items() if key != name}
        assert tried(safetensors.numpy.save(without, metadata))
        assert tried(safetensors.numpy.save(tensors | {name: tensors[name][..., None]}, metadata))
        other = tensors | {name: tensors[name].astype("float64")}
        tried(safetensors.numpy.save(other, metadata))
    for _ in range(50):
        cut = rng.randrange(len(whole))
        assert tried(whole[:cut])


def test_a_member_that_is_damaged_leaves_the_others_as_they_were(tmp_path):
    path = tmp_path / "run"
    fit(population(2), [EarlyStopping(), Checkpoint(path)], epochs=3)
    with model_file.opened(path, "checkpoint") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = json.loads(metadata[model_file.CHECKPOINT])
    text["members"][1]["callbacks"][0]["values"] = '{"best": null, "best_epoch": 1}'
    metadata[model_file.CHECKPOINT] = json.dumps(text)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    members = population(2, seed=9)
    before = [net.model.read(net.parameters).tobytes() for net in members]
    with pytest.raises(ValueError, match="EarlyStopping's best must be a number"):
        fit(members, [EarlyStopping()], resume_from=path)
    assert [net.model.read(net.parameters).tobytes() for net in members] == before


def test_a_generator_that_could_not_be_made_again(tmp_path):
    class Own(np.random.PCG64):
        pass

    net = network()
    net.generator = np.random.Generator(Own(1))
    before = net.model.read(net.parameters).tobytes()
    with pytest.raises(ValueError, match="a generator of Own, which is none of NumPy's"):
        fit(net, [Checkpoint(tmp_path / "run")])
    assert net.model.read(net.parameters).tobytes() == before


def test_the_bar_begins_where_the_training_does(tmp_path, capsys):
    path = tmp_path / "run"
    fit(population(2), [Checkpoint(path)], epochs=[2, 4])
    fit(population(2), epochs=[2, 6], resume_from=path, progress=True)
    bar = capsys.readouterr().err
    assert "6/8" in bar  # where it begins
    assert "8/8" in bar


# -- SIGTERM, and SIGKILL at any moment -------------------------------------------------------


def python(text, *arguments, **settings):
    here = os.pathsep.join([str(Path(killed.__file__).parent), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": here}, **settings,
    )  # fmt: skip


TERMINATED = """
    import signal, sys, time
    import numpy as np
    from backprop_gpu import Checkpoint, Network

    def told(network, history):
        if len(history) == 3:
            print("third", flush=True)
            time.sleep(0.2)

    if sys.argv[2] == "handled":
        signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
    elif sys.argv[2] == "ignored":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    X = np.random.default_rng(0).standard_normal((50, 4))
    net = Network([4, 7, 1], seed=1, backend="numpy")
    net.fit(X, X[:, :1], epochs=6, batch_size=8, learning_rate=0.1,
            callbacks=[told, Checkpoint(sys.argv[1], every=100)])
    print(len(net.history), signal.getsignal(signal.SIGTERM).__class__.__name__)
"""


@pytest.mark.parametrize(
    ("how", "status", "said", "epoch"),
    [
        ("default", 143, "third\n", 3),
        ("handled", 0, "third\nheard\n6 function\n", 6),
        ("ignored", 0, "third\n6 Handlers\n", 6),
    ],
)
def test_sigterm(how, status, said, epoch, tmp_path):
    path = tmp_path / "run"
    process = python(TERMINATED, path, how)
    assert process.stdout.readline() == "third\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, "third\n" + out, err) == (status, said, "")
    text = json.loads(safetensors.safe_open(path, "numpy").metadata()[model_file.CHECKPOINT])
    assert len(text["members"][0]["history"]["loss"]) == epoch


def test_the_handler_is_put_back(tmp_path):
    handlers = []

    def note(network, history):
        handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    fit(network(), [note, Checkpoint(tmp_path / "run")])
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Stopped):
        fit(network(), [stop_after(2), Checkpoint(tmp_path / "run")])
    assert signal.getsignal(signal.SIGTERM) is before
    assert handlers.count(before) == 0


def test_another_thread_hears_no_signal(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=fit, args=(network(), [Checkpoint(tmp_path / "run")]))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "run").is_file()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize(
    ("kind", "engine"),
    [("network", "layered"), ("network", "resident"), ("population", "resident")],
)
def test_killed_at_any_moment(kind, engine, optimizer, tmp_path):
    """Ten times here; a hundred with tests/support/killed.py."""
    process = python(
        "import killed, pathlib, sys; killed.main(*sys.argv[1:4], 10, pathlib.Path(sys.argv[4]))",
        kind, engine, optimizer, tmp_path,
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.startswith("10 kills")
