"""Callbacks that keep a log of a training: in files, TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import validation
from .files import write_whole
from .imports import optional
from .training import Callback, History
from .training.callbacks import FitRun

#: What is logged of an epoch: the fields of `History` that have a value for each.
VALUES = ("loss", "val_loss", "val_accuracy", "seconds")
#: What tells apart the networks of one call, see `FitRun.labels`.
LABELS = ("member", "row", "trial", "fold")


class Logger(Callback):
    """What loggers have in common: each epoch is logged once, also where a training is resumed.

    A logger may be given to one `fit` after another; a `Population` or a sweep, whose networks
    train at once, takes one, too. It stands behind all other callbacks, wherever it is in the list.
    What cannot be logged is not passed over: an exception before the first epoch leaves all as it
    was, and one after an epoch ends `fit` with the weights and the history of that epoch.
    """

    keeps_log = True
    #: What it hears of.
    run: FitRun
    #: Whether there are validation data.
    _validated = False
    #: The epoch that is to be logged next.
    _next = 0
    #: Whether its log is open, and nothing has gone wrong there.
    _is_open = False

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        self._validated = validation_data is not None

    def on_run(self, network: Any, run: FitRun) -> None:
        self.run, self._next = run, 0

    def on_fit_start(self, network: Any) -> None:
        if self.run.done is None:
            self._next = self._open({})
            self._is_open = True

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.run.settings["seed"]}

    def on_resume(self, network: Any, state: dict[str, Any]) -> None:
        if "seed" in state:  # the one that the training has begun with
            seed = state["seed"]
            self.run.settings["seed"] = seed if seed is None else validation.seed(seed)
        self._next = self._open(state)
        self._is_open = True

    def on_epoch_end(self, network: Any, history: History) -> None:
        self._log_up_to(history)

    def on_fit_end(self, network: Any, history: History) -> None:
        if self._is_open:
            self._log_up_to(history)  # what another callback's exception has kept from it
            self._is_open = False
            self._close(network, history, is_sound=True)

    def _log_up_to(self, history: History) -> None:
        while self._next < len(history):
            epoch = self._next
            values = {
                name: float(getattr(history, name)[epoch])
                for name in VALUES
                if len(getattr(history, name)) == len(history)
            }
            try:
                self._log(epoch, values)
            except BaseException:
                self._is_open = False
                self._close(network=None, history=history, is_sound=False)
                raise
            self._next += 1

    # -- what each does in its own way --------------------------------------------------

    def _open(self, state: dict[str, Any]) -> int:
        """Begin a log, or go on with that of `state`; the epoch to log next."""
        raise NotImplementedError

    def _log(self, epoch: int, values: dict[str, float]) -> None:
        """Log the values of an epoch, counted from 0."""
        raise NotImplementedError

    def _close(self, network: Any, history: History, is_sound: bool) -> None:
        """End it; unless it `is_sound`, an exception is on its way that is not to be hidden."""
        raise NotImplementedError


def _known(values: dict[str, float]) -> dict[str, float]:
    """Without a val_accuracy where the targets are no classes."""
    return {
        name: value
        for name, value in values.items()
        if name != "val_accuracy" or not math.isnan(value)
    }


def _final(history: History) -> dict[str, float]:
    """``final_loss`` and so on, of the weights that the network has."""
    names = ("loss", "val_loss", "val_accuracy")
    found = {name: history.final(name) for name in names if getattr(history, name)}
    return {f"final_{name}": value for name, value in _known(found).items()}


def _left(history: History) -> dict[str, int | bool]:
    """``restored`` and ``averaged``, where it has not the weights of the last epoch."""
    restored = {} if history.restored is None else {"restored": history.restored}
    return restored | ({"averaged": True} if history.averaged else {})


def _label(run: FitRun, separator: str = " ") -> str:
    """Such as "row 3 fold 1"."""
    return separator.join(f"{name}{separator}{number}" for name, number in run.labels.items())


# -- files --------------------------------------------------------------------------------------


#: The files that are written to.
_in_use: set[str] = set()
_using = threading.Lock()


class _LogFile:
    """The file that the loggers of all networks of one call write to, a line an epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Where the lines of this call begin.
        self.start = 0
        self._lock = threading.Lock()
        self._call: object = None
        self._users, self._name = 0, ""
        #: Where a training is resumed: what is before its lines, and of these
        #: (network, epoch, line).
        self._before: bytes | None = None
        self._lines: list[tuple[tuple[str, ...], int, bytes]] = []
        #: Of each network that is resumed, the first epoch whose line is to go.
        self._ends: dict[tuple[str, ...], int] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of a logger logs another training
        return _LogFile, (self.path,)

    def begin(
        self,
        run: FitRun,
        header: bytes,
        append: bool,
        start: Any,
        parse: Callable[[bytes], dict[str, Any]],
    ) -> int:
        """Join those that write; the epoch to log next."""
        with self._lock:
            if self._users and self._call is not run.call:
                raise RuntimeError(f"the logger of {self.path} is logging another training")
            if not self._users:
                self._take()
            try:
                if self._call is not run.call:
                    if run.done is None:
                        self._begin_new(header, append)
                    else:
                        self._read_old(header, start, parse)
                    self._call = run.call
            except BaseException:
                if not self._users:
                    self._give_back()
                raise
            self._users += 1
            if run.done is None:
                return 0
            network = tuple(map(str, run.labels.values()))
            logged = {epoch for each, epoch, _ in self._lines if each == network}
            end = next(e for e in range(run.done + 1) if e == run.done or e not in logged)
            self._ends[network] = end
            return end

    def _take(self) -> None:
        self._name = os.path.realpath(self.path)
        with _using:
            if self._name in _in_use:
                raise RuntimeError(f"another logger is writing to {self.path}")
            _in_use.add(self._name)

    def _give_back(self) -> None:
        with _using:
            _in_use.discard(self._name)

    def _begin_new(self, header: bytes, append: bool) -> None:
        old = self.path.read_bytes() if append and self.path.exists() else b""
        if old and not old.startswith(header):
            raise ValueError(
                f"{self.path} has other columns than this training, {header.decode().strip()}: "
                "give another path, or append=False"
            )
        if not old:
            self.path.write_bytes(header)
        elif not old.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")
        self.start = self.path.stat().st_size
        self._before, self._lines, self._ends = None, [], {}

    def _read_old(
        self, header: bytes, start: Any, parse: Callable[[bytes], dict[str, Any]]
    ) -> None:
        old = self.path.read_bytes() if self.path.exists() else b""
        if start is None:  # nothing was logged until now
            start = len(header)
        if old and not old.startswith(header):
            raise ValueError(f"{self.path} is not the log of the training that is resumed")
        old = old or header
        start = min(validation.integer("start", start, len(header)), len(old))
        self._lines, self._ends = [], {}
        for line in old[start:].splitlines(keepends=True):
            if not line.endswith(b"\n"):  # cut short as the process ended
                break
            try:
                row = parse(line)
                network = tuple(str(row[name]) for name in LABELS if name in row)
                self._lines.append((network, int(row["epoch"]), line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.path} is not the log of the training that is resumed: {error!r} in "
                    f"{line!r:.80}"
                ) from error
        self.start, self._before = start, old[:start]

    def write(self, line: bytes) -> None:
        """Add a line."""
        with self._lock:
            self._settle()
            try:
                with self.path.open("ab") as file:
                    file.write(line)
            except OSError as error:  # such as a full disk: which path it was
                error.filename = error.filename or str(self.path)
                raise

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._give_back()
            self._settle()

    def _settle(self) -> None:
        """Take out the lines of epochs that are trained again."""
        if self._before is None:
            return
        kept = [
            line
            for network, epoch, line in self._lines
            if epoch < self._ends.get(network, epoch + 1)
        ]
        write_whole(self.path, b"".join([self._before, *kept]))
        self._before, self._lines = None, []


class _FileLogger(Logger):
    """A line of a file for every epoch."""

    def __init__(self, path: Any, append: bool) -> None:
        try:
            self.path = Path(path)
        except TypeError:
            raise TypeError(f"path must be a path, got {path!r}") from None
        self.append = validation.boolean("append", append)
        self._file = _LogFile(self.path)

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        super().check_fit(validation_data)
        name, folder = type(self).__name__, self.path.parent
        if not self.path.name or self.path.is_dir():
            raise IsADirectoryError(f"{name}: {self.path} is a folder, and must be a file")
        if not folder.is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {folder}")
        if not os.access(self.path if self.path.exists() else folder, os.W_OK):
            raise PermissionError(f"{name}: cannot write to {self.path}")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"start": self._file.start}

    def _open(self, state: dict[str, Any]) -> int:
        names = [name for name in VALUES if self._validated or not name.startswith("val_")]
        columns = [*self.run.labels, "epoch", *names, *self.run.settings]
        return self._file.begin(
            self.run, self._header(columns), self.append, state.get("start"), self._parse
        )

    def _log(self, epoch: int, values: dict[str, float]) -> None:
        row = self.run.labels | {"epoch": epoch} | values | self.run.settings
        self._file.write(self._line(row))

    def _close(self, network: Any, history: History, is_sound: bool) -> None:
        with suppress(*() if is_sound else (OSError,)):
            self._file.end()

    def _header(self, columns: Sequence[str]) -> bytes:
        return b""

    def _line(self, row: dict[str, Any]) -> bytes:
        raise NotImplementedError

    def _parse(self, line: bytes) -> dict[str, Any]:
        raise NotImplementedError


class CSVLogger(_FileLogger):
    """A row of a CSV file for every epoch, there as soon as the epoch is over.

    The columns are ``epoch``, counted from 0, the values of `History`, and what the training was
    asked for; of several networks that train at once ``member``, ``row``, ``trial`` or ``fold``
    comes first. Numbers are written such that reading them gives `History`'s, to the last bit.

    Parameters
    ----------
    path : path
        A resumed training goes on there: rows of epochs that are trained again are taken out.
    append : bool, default False
        Write behind what is there, whose columns must be the same, rather than replace it.
    """

    def __init__(self, path: Any, *, append: bool = False) -> None:
        super().__init__(path, append)

    def _header(self, columns: Sequence[str]) -> bytes:
        self._columns = list(columns)
        return _csv_line(columns)

    def _line(self, row: dict[str, Any]) -> bytes:
        values = (row.get(name) for name in self._columns)
        return _csv_line(["" if value is None else value for value in values])

    def _parse(self, line: bytes) -> dict[str, Any]:
        (cells,) = csv.reader([line.decode()])
        return dict(zip(self._columns, cells, strict=True))


def _csv_line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(
        [repr(each) if isinstance(each, float) else each for each in cells]
    )
    return text.getvalue().replace("\r", " ").replace("\n", " ").encode() + b"\n"


class JSONLogger(_FileLogger):
    """A line of JSON for every epoch, there as soon as the epoch is over (JSON Lines).

    An object has what a row of a `CSVLogger` has. A value that is NaN or infinite is null, as JSON
    has neither. ``pandas.read_json(path, lines=True)`` reads the file.

    Parameters
    ----------
    path : path
        Replaced where a training begins; a resumed one goes on there, see `CSVLogger`.
    """

    def __init__(self, path: Any) -> None:
        super().__init__(path, append=False)

    def _line(self, row: dict[str, Any]) -> bytes:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        return json.dumps(finite, ensure_ascii=False).encode() + b"\n"

    def _parse(self, line: bytes) -> dict[str, Any]:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("no object")
        return row


# -- TensorBoard --------------------------------------------------------------------------------


class TensorBoardLogger(Logger):
    """Curves and hyperparameters for TensorBoard (extra ``tensorboard``; TensorFlow is not needed).

    Tags are the names of `History`'s fields, steps the epochs, counted from 0, and values float32,
    as TensorBoard has them.
    At the end ``final_loss`` and so on are those of the weights that the network has, see
    `History.final`. The tab "HPARAMS" has what each training was asked for.

    Parameters
    ----------
    log_dir : path
        Made where it is missing. Of several networks each has a folder in it, such as "member_3".
        Where a training has been logged there before, TensorBoard shows the new one in its place.
    """

    def __init__(self, log_dir: Any) -> None:
        try:
            self.log_dir = Path(log_dir)
        except TypeError:
            raise TypeError(f"log_dir must be a path, got {log_dir!r}") from None
        for module in _TENSORBOARD:
            optional(module, "tensorboard", "TensorBoardLogger")

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        super().check_fit(validation_data)
        there = next(
            each for each in (self.log_dir, *self.log_dir.absolute().parents) if each.exists()
        )
        if not there.is_dir():
            raise NotADirectoryError(f"TensorBoardLogger: {there} is a file, and must be a folder")
        if not os.access(there, os.W_OK):
            raise PermissionError(f"TensorBoardLogger: cannot write to {there}")

    def _open(self, state: dict[str, Any]) -> int:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        folder = self.log_dir / _label(self.run, "_") if self.run.labels else self.log_dir
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.time()
        # Files are read in the order of their names, and of one second there may be several.
        name = f"events.out.tfevents.{begun:017.6f}.{platform.node()}.{os.getpid()}"
        self._path = folder / name
        next_epoch = (self.run.done or 0) if state else 0
        settings = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in (self.run.labels | self.run.settings).items()
        }
        self._write(
            Event(wall_time=begun, file_version="brain.Event:2"),
            # What was logged from this step on is not shown any more.
            Event(
                wall_time=begun,
                step=next_epoch,
                session_log=SessionLog(status=SessionLog.START),
            ),
            Event(
                wall_time=begun,
                step=next_epoch,
                summary=hparams_pb(settings, trial_id=str(folder), start_time_secs=begun),
            ),
        )
        return next_epoch

    def _log(self, epoch: int, values: dict[str, float]) -> None:
        self._write_scalars(epoch, _known(values))

    def _close(self, network: Any, history: History, is_sound: bool) -> None:
        if not is_sound:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        step, now = max(0, len(history) - 1), time.time()
        if len(history):
            self._write_scalars(step, _final(history))
        status = "STATUS_SUCCESS" if self.run.failure is None else "STATUS_FAILURE"
        # What `plugins.hparams.summary` has for this imports TensorFlow.
        end = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(
                status=api_pb2.Status.Value(status), end_time_secs=now
            )
        )
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(end),
            tensor=metadata.NULL_TENSOR,
        )
        self._write(Event(wall_time=now, step=step, summary=Summary(value=[value])))

    def _write_scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        # TensorBoard's data server passes over scalars of float64.
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _write(self, *events: Any) -> None:
        """Add events; the file is closed between two epochs, as members may be many."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(event.SerializeToString())
        with self._path.open("ab") as file:
            file.write(records.getvalue())


#: What it uses of the package.
_TENSORBOARD = (
    "tensorboard.compat.proto.event_pb2", "tensorboard.plugins.hparams.summary_v2",
    "tensorboard.summary.writer.record_writer",
)  # fmt: skip


# -- MLflow -------------------------------------------------------------------------------------


class MLflowLogger(Logger):
    """Runs of MLflow (extra ``mlflow``): params, metrics by epoch, and perhaps the model's file.

    Metrics are named as `History`'s fields, and steps are epochs, counted from 0; at the end come
    ``final_loss`` and so on, of the weights that the network has, see `History.final`. Of several
    networks that train at once each has a run of its own, a child of `run` or of the active one.

    Parameters
    ----------
    run : mlflow.entities.Run or str, optional
        A run, or its id, to log to; it is not ended. By default that which is active, if there is
        one, and neither `tracking_uri` nor `experiment` is given; else a new one.
    tracking_uri : str, optional
        By default that of ``mlflow.set_tracking_uri``.
    experiment : str, optional
        The name of one, made where it is missing. By default that of ``mlflow.set_experiment``.
    log_model : bool, default False
        At the end log the network as the artifact "model.safetensors", for `Network.load`.

    Notes
    -----
    A resumed training goes on in the run that it began. Epochs that the run has already, because
    it had gone on after the checkpoint, are not logged again: their values are the same, but for
    ``seconds``.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        log_model: bool = False,
    ) -> None:
        self._mlflow = optional("mlflow", "mlflow", "MLflowLogger")
        run_id = getattr(getattr(run, "info", None), "run_id", run)
        for name, value in (
            ("run", run_id), ("tracking_uri", tracking_uri), ("experiment", experiment)
        ):  # fmt: skip
            if value is not None and not (isinstance(value, str) and value):
                kind = "an mlflow run or its id" if name == "run" else "a str"
                raise TypeError(f"{name} must be {kind}, got {value!r}")
        if run_id is not None and experiment is not None:
            raise TypeError("run and experiment exclude each other: a run is of an experiment")
        self.run_id, self.tracking_uri, self.experiment = run_id, tracking_uri, experiment
        self.log_model = validation.boolean("log_model", log_model)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_mlflow"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._mlflow = optional("mlflow", "mlflow", "MLflowLogger")

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        super().check_fit(validation_data)
        client = self._client()  # whether there is one, and it answers
        if self.run_id is not None:
            client.get_run(self.run_id)
        else:
            client.search_experiments(max_results=1)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"run_id": self._own}

    def _client(self) -> Any:
        return self._mlflow.MlflowClient(self.tracking_uri)

    def _open(self, state: dict[str, Any]) -> int:
        from mlflow.entities import Param

        client, given = self._client(), self.run_id
        if given is None and self.tracking_uri is None and self.experiment is None:
            active = self._mlflow.active_run()
            given = None if active is None else active.info.run_id
        #: Whether the run is somebody else's, who ends it.
        self._is_given = given is not None and not self.run.labels
        found = given if self._is_given else state.get("run_id")
        if found is None:
            self._own = self._new_run(client, given)
        elif isinstance(found, str):
            self._own = found
            if not self._is_given:
                client.update_run(found, status="RUNNING")
        else:
            raise ValueError(f"MLflowLogger's run_id must be a str, got {found!r}")
        if state.get("run_id") == self._own:
            logged = client.get_metric_history(self._own, "loss")
            return 1 + max((metric.step for metric in logged), default=-1)
        if self._is_given and client.get_metric_history(self._own, "loss"):
            raise ValueError(
                f"MLflowLogger: run {self._own} holds a training already: give each its own run, "
                "a nested one for example (mlflow.start_run(nested=True))"
            )
        params = [
            Param(name, str(value)) for name, value in (self.run.labels | self.run.settings).items()
        ]
        client.log_batch(self._own, params=params)
        return 0

    def _new_run(self, client: Any, parent: str | None) -> str:
        from mlflow.tracking.context import registry

        tags = registry.resolve_tags()
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
            experiment = client.get_run(parent).info.experiment_id
        elif self.experiment is not None:
            known = client.get_experiment_by_name(self.experiment)
            experiment = (
                client.create_experiment(self.experiment) if known is None else known.experiment_id
            )
        elif self.tracking_uri is not None:
            experiment = client.get_experiment_by_name("Default").experiment_id
        else:
            from mlflow.tracking.fluent import _get_experiment_id

            experiment = _get_experiment_id()
        name = _label(self.run) or None
        return str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)

    def _log(self, epoch: int, values: dict[str, float]) -> None:
        self._log_metrics(epoch, _known(values))

    def _log_metrics(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client().log_batch(self._own, metrics=metrics)

    def _close(self, network: Any, history: History, is_sound: bool) -> None:
        client, failure = self._client(), self.run.failure
        if not is_sound:
            with suppress(Exception):  # the server may be gone
                if not self._is_given:
                    client.set_terminated(self._own, "FAILED")
            return
        if len(history):
            self._log_metrics(len(history) - 1, _final(history))
        for name, value in _left(history).items():
            client.set_tag(self._own, name, value)
        if failure is not None:
            client.set_tag(self._own, "failure", failure)
        elif self.log_model:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.safetensors"
                network.save(path)
                client.log_artifact(self._own, str(path))
        if not self._is_given:
            status = "FINISHED" if failure is None else "FAILED"
            if failure is not None and failure.startswith("KeyboardInterrupt"):
                status = "KILLED"
            client.set_terminated(self._own, status)


# -- Weights & Biases ---------------------------------------------------------------------------


class WandbLogger(Logger):
    """Runs of Weights & Biases (extra ``wandb``): config, values by epoch, and a summary.

    Names are those of `History`'s fields, and steps the epochs, counted from 0; the summary has
    ``final_loss`` and so on, of the weights that the network has, see `History.final`. Of several
    networks that train at once each has a run of its own, named "member 3", say.

    Parameters
    ----------
    project : str, optional
        The runs' project; by default what wandb's own settings say.
    mode : {"offline", "online", "shared", "disabled"}, default "offline"
        Nothing is sent to a server but with "online" or "shared"; ``wandb sync`` sends later what
        was logged offline.
    **init
        More for ``wandb.init``: ``entity``, ``group``, ``tags``, ``dir``, …; its ``config`` is
        added to what is logged.

    Notes
    -----
    A resumed training goes on in the run of the same id. Offline that is a second folder of it,
    and epochs that had been trained after the checkpoint are in both.
    """

    def __init__(self, project: str | None = None, *, mode: str = "offline", **init: Any) -> None:
        self._wandb = optional("wandb", "wandb", "WandbLogger")
        modes = ("offline", "online", "shared", "disabled")
        self.project, self.mode = project, validation.one_of("mode", mode, modes)
        known = inspect.signature(self._wandb.init).parameters
        for name in init:
            if name not in known or name in ("id", "resume", "reinit"):
                raise TypeError(f"WandbLogger takes no {name!r} for wandb.init")
        if not isinstance(init.get("config") or {}, Mapping):
            raise TypeError(f"config must be a dict, got {init['config']!r}")
        self.init = init

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_wandb", "_own")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._wandb = optional("wandb", "wandb", "WandbLogger")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"id": self._own.id}

    def _open(self, state: dict[str, Any]) -> int:
        number = state.get("id")
        if number is not None and not isinstance(number, str):
            raise ValueError(f"WandbLogger's id must be a str, got {number!r}")
        given: dict[str, Any] = {"name": _label(self.run) or None} | self.init
        given["config"] = self.run.labels | self.run.settings | dict(given.get("config") or {})
        if number is not None:
            given |= {"id": number} | ({} if self.mode == "offline" else {"resume": "allow"})
        self._own = self._wandb.init(
            project=self.project, mode=self.mode, reinit="create_new", **given
        )
        if number is None:
            return 0
        return max(self.run.done or 0, int(self._own.step))

    def _log(self, epoch: int, values: dict[str, float]) -> None:
        self._own.log(_known(values), step=epoch)

    def _close(self, network: Any, history: History, is_sound: bool) -> None:
        failed = not is_sound or self.run.failure is not None
        if is_sound:
            self._own.summary.update(_final(history) | _left(history))
            if self.run.failure is not None:
                self._own.summary["failure"] = self.run.failure
        self._own.finish(exit_code=int(failed))
