"""Checkpoints: a training in a file, and what goes on from there to the same bits.

A file holds what an epoch begins with, and nothing that the arguments of `fit` say: parameters,
the optimizer's state, the generator's, the history, what callbacks remember, and the plan. Of the
arguments and the data it keeps enough to refuse others.
"""

from __future__ import annotations

import json
import os
import re
import signal
import string
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import model_file, validation
from ..communicators import ALONE, Communicator
from ..model import Model
from ..planning import Plan
from ..planning.restore import restored
from ..preprocessing import Preprocessing
from .callbacks import Callback, is_needed
from .history import History
from .settings import Data, Settings, StoredData, checksum

if TYPE_CHECKING:
    from .fitting import FitCourse

VERSION = 4
#: The exit status of a process that SIGTERM ends, as of one that has no handler for it.
TERMINATED = 128 + signal.SIGTERM
_GENERATORS = ("PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937")


class Checkpoint(Callback):
    """Keep the training in a file, so that ``fit(…, resume_from=path)`` can go on from there.

    The file is replaced whole or not at all: whoever reads it, even after a crash or a power cut,
    finds an epoch's end. Resumed with the same arguments and data, on a machine of the same kind,
    a training ends in the same bits as one that was never stopped. A network's is also a model
    file: `Network.load` reads it.

    Between two epochs SIGTERM, by which schedulers warn of the end, makes `fit` write the file and
    do what SIGTERM did before: by default, end the process with exit status 143. This needs
    Python's main thread, and waits for the epoch to be over.

    Parameters
    ----------
    path : path
        It may hold the epoch's number, as in "net-{epoch}.safetensors" or
        "net-{epoch:05d}.safetensors": then the newest `keep` files stay.
    every : int or datetime.timedelta, default 1
        Write after so many epochs, or so long after the last writing; and after the last epoch. A
        network is written in the midst of an epoch, too, if that is due by the time: about every
        second is looked whether it is, or each time that rows have been read from a disk. A
        population, and ranks whose rows are in memory, are written between two epochs alone.
    keep : int, default 1
        How many files stay.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from backprop_gpu import Checkpoint, Network
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]); Y = np.array([0, 1, 1, 0])
    >>> def train(path, epochs, resume_from=None):
    ...     net = Network([2, 8, 1], seed=1, backend="numpy")
    ...     net.fit(
    ...         X, Y, epochs=epochs, batch_size=2, learning_rate=1.0,
    ...         callbacks=[Checkpoint(path)], resume_from=resume_from,
    ...     )
    ...     return net
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "net.safetensors")
    ...     _ = train(path, 10)
    ...     resumed = train(path, 30, resume_from=path)
    ...     whole = train(Path(folder, "whole.safetensors"), 30)
    >>> len(resumed.history), bool((resumed.weights[0] == whole.weights[0]).all())
    (30, True)
    """

    def __init__(self, path: Any, *, every: int | timedelta = 1, keep: int = 1) -> None:
        self.path = Path(path)
        self._name = _FileName(self.path)
        if not isinstance(every, timedelta):
            every = validation.integer("every", every, 1)
        elif every <= timedelta(0):
            raise ValueError(f"every must be a time > 0, got {every!r}")
        self.every = every
        self.keep = validation.integer("keep", keep, 1)
        if self.keep > 1 and not self._name.numbered:
            raise ValueError(f"keep={keep} needs a path with {{epoch}}, got {str(path)!r}")

    def for_member(self, network: Any) -> Checkpoint:
        return self  # one file has all members

    def check_fit(self, validation_data: tuple[np.ndarray, np.ndarray] | None) -> None:
        folder = self.path.parent
        if not self.path.name or self.path.is_dir():
            raise IsADirectoryError(f"Checkpoint: {self.path} is a folder, and must be a file")
        if not folder.is_dir():
            raise FileNotFoundError(f"Checkpoint: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"Checkpoint: cannot write to {folder}")

    def check_new(self) -> None:
        """Refuse to start a training beside the files of another, which would be the newest.

        Raises
        ------
        FileExistsError
            Where the path holds the epoch's number, and there is such a file.
        """
        files = self._name.files() if self._name.numbered else {}
        if files:
            raise FileExistsError(
                f"Checkpoint: {files[max(files)]} is of an earlier training: give resume_from to "
                "go on with it, or remove it"
            )

    def is_due(self, epoch: int, since: float) -> bool:
        """Tell whether to write after this epoch.

        Parameters
        ----------
        epoch : int
            How many epochs there were.
        since : float
            Seconds since the last writing.

        Returns
        -------
        bool
            Whether it is time, by `every`.
        """
        if isinstance(self.every, timedelta):
            return since >= self.every.total_seconds()
        return epoch % self.every == 0

    def is_due_within(self, since: float) -> bool:
        """Tell whether to write in the midst of an epoch.

        Parameters
        ----------
        since : float
            Seconds since the last writing.

        Returns
        -------
        bool
            Whether it is time; never where `every` counts epochs.
        """
        return isinstance(self.every, timedelta) and since >= self.every.total_seconds()

    def write(self, tensors: dict[str, np.ndarray], metadata: dict[str, str], epoch: int) -> None:
        """Write the file of this epoch, and remove those that are too many.

        Parameters
        ----------
        tensors : dict of str to array
            What the file holds.
        metadata : dict of str to str
            What its header holds.
        epoch : int
            How many epochs there were, for a path that holds their number.

        Raises
        ------
        OSError
            If the file cannot be written; an older one is then as it was.
        """
        model_file.write(self._name.of(epoch), tensors, metadata)
        if self._name.numbered:
            files = self._name.files()
            for number in sorted(n for n in files if n <= epoch)[: -self.keep]:
                files[number].unlink(missing_ok=True)


class _FileName:
    """A path that may hold the epoch's number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            parts = list(string.Formatter().parse(path.name))
            fields = [field for _, field, _, _ in parts if field is not None]
            pattern = "".join(
                re.escape(text) + ("" if field is None else "([0-9]+)") for text, field, *_ in parts
            )
            self.numbered, self._pattern = bool(fields), re.compile(pattern)
            if fields not in ([], ["epoch"]) or not self._pattern.fullmatch(self.of(1234567).name):
                raise ValueError
        except (ValueError, KeyError, IndexError, AttributeError):
            raise ValueError(
                "a checkpoint's file name may hold {epoch}, or {epoch:05d}, once, and no other "
                f"braces; got {str(path)!r}"
            ) from None

    def of(self, epoch: int) -> Path:
        return Path(self.path.parent, self.path.name.format(epoch=epoch))

    def files(self) -> dict[int, Path]:
        """Those there are, by their epochs."""
        found = {}
        for path in self.path.parent.iterdir() if self.path.parent.is_dir() else ():
            match = self._pattern.fullmatch(path.name)
            if match is not None:
                found[int(match[1])] = path
        return found


def newest(path: Any) -> Path:
    """The checkpoint of the last epoch, where the path holds the epoch's number; else the path."""
    try:
        given = Path(path)
    except TypeError:
        raise TypeError(f"resume_from must be a path, got {path!r}") from None
    if given.is_file():
        return given
    name = _FileName(given)
    files = name.files() if name.numbered else {}
    return files[max(files)] if files else given


# -- what a file holds ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MemberState:
    """One network between two epochs, on the host."""

    parameters: np.ndarray
    slots: tuple[np.ndarray, ...]
    history: History
    #: Of its bit generator.
    generator: Mapping[str, Any]
    #: Whether a callback has ended it.
    stopped: bool
    failure: str | None
    #: (class, state) of the callbacks that have any.
    callbacks: tuple[tuple[str, dict[str, Any]], ...]
    #: Of the epoch that has begun, the costs of its steps so far, and the parameters before it: the
    #: generator's state is that before it drew the order.
    begun: np.ndarray
    good: np.ndarray | None
    #: As `callbacks`, of those that keep a log.
    logs: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class CallbackText:
    """A callback's state: JSON, and the names of its arrays, which are tensors."""

    kind: str
    values: str
    arrays: tuple[str, ...]


@dataclass(frozen=True)
class HistoryText:
    """A `History` in the header."""

    loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    seconds: tuple[float, ...]
    restored: int | None
    averaged: bool

    @classmethod
    def of(cls, history: History) -> HistoryText:
        return cls(
            tuple(history.loss),
            tuple(history.val_loss),
            tuple(history.val_accuracy),
            tuple(history.seconds),
            history.restored,
            history.averaged,
        )

    def history(self) -> History:
        found = History(
            list(self.loss),
            list(self.val_loss),
            list(self.val_accuracy),
            list(self.seconds),
            self.restored,
            self.averaged,
        )
        lists = found.val_loss, found.val_accuracy, found.seconds
        if any(len(values) not in (len(found), 0) for values in lists):
            raise ValueError("damaged checkpoint: its histories are of different lengths")
        return found


@dataclass(frozen=True)
class MemberText:
    """A member in the header. What is compared with the arguments of `fit` comes first."""

    batch_size: int
    optimizer: str
    learning_rate: str
    history: HistoryText
    generator: str
    buffer: int
    steps: int
    stopped: bool
    failure: str | None
    callbacks: tuple[CallbackText, ...]
    #: The checksum of the numbers of its own rows; "" where it has all.
    numbers: str = ""
    dropout: tuple[float, ...] = ()
    mixup: float = 0.0
    #: Of callbacks that keep a log, which a training may be resumed without.
    logs: tuple[CallbackText, ...] = ()


@dataclass(frozen=True)
class TrainingText:
    """A training in the header."""

    version: int
    rows: int
    data: str
    validated: bool
    population: bool
    plan: str
    members: tuple[MemberText, ...]


def rates_of(settings: Settings, epochs: int) -> str:
    """η, or what a schedule makes of the last of these epochs."""
    rate = settings.rates.learning_rate
    if not callable(rate):
        return repr(float(rate))
    rates = settings.rates.of(max(epochs - 1, 0))
    return f"a schedule ({sha256(rates.tobytes()).hexdigest()[:16]})"


def _checksum_of_numbers(settings: Settings) -> str:
    return "" if settings.numbers is None else checksum(settings.numbers)


def _prefix(i: int, population: bool) -> str:
    return f"{i}." if population else ""


def to_file(
    model: Model,
    plan: Plan,
    data: Data | StoredData,
    settings: Sequence[Settings],
    states: Sequence[MemberState],
    population: bool,
    preprocessing: Preprocessing | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors, metadata) of a checkpoint."""
    tensors: dict[str, np.ndarray] = {}
    members = []
    for i, (state, given) in enumerate(zip(states, settings, strict=True)):
        prefix = _prefix(i, population)
        tensors |= model_file.tensors_of(model.layout, state.parameters, prefix)
        own = f"{model_file.TRAINING}{prefix}"
        for k, slot in enumerate(state.slots):
            tensors |= model_file.tensors_of(model.layout, slot, f"{own}slot{k}.")
        texts = []
        for k, (kind, values) in enumerate(state.callbacks):
            arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
            tensors |= {f"{own}callback{k}.{key}": value for key, value in arrays.items()}
            rest = {key: value for key, value in values.items() if key not in arrays}
            texts.append(
                CallbackText(kind, json.dumps(rest, default=np.generic.item), tuple(arrays))
            )
        if state.good is not None:
            tensors |= model_file.tensors_of(model.layout, state.good, f"{own}good.")
            tensors[f"{own}costs"] = state.begun
        history = state.history
        members.append(
            MemberText(
                given.batch_size,
                repr(given.optimizer),
                rates_of(given, len(history)),
                HistoryText.of(history),
                json.dumps(state.generator, default=np.ndarray.tolist),  # some hold arrays
                given.buffer,
                len(state.begun),
                state.stopped,
                state.failure,
                tuple(texts),
                _checksum_of_numbers(given),
                given.dropout,
                given.mixup,
                tuple(
                    CallbackText(kind, json.dumps(values, default=np.generic.item), ())
                    for kind, values in state.logs
                ),
            )
        )
    training = TrainingText(
        VERSION, len(data.X), data.fingerprint, data.validation is not None, population,
        plan.to_json(), tuple(members),
    )  # fmt: skip
    metadata = model_file.metadata_of(model, preprocessing)
    return tensors, metadata | {model_file.CHECKPOINT: json.dumps(asdict(training))}


def load(
    path: Any,
    model: Model,
    data: Data | StoredData,
    settings: Sequence[Settings],
    hooks: Sequence[Callback],
    population: bool,
) -> tuple[Plan, tuple[MemberState, ...]]:
    """The plan and the members of a checkpoint, if it is of the training that `fit` was called for.

    Raises
    ------
    FileNotFoundError
    ValueError
        For a file that is no such, or is damaged; for an argument that differs, naming it.
    """
    with model_file.opened(newest(path), "checkpoint") as file:
        metadata = file.metadata() or {}
        if model_file.CHECKPOINT not in metadata:
            raise ValueError("no checkpoint: nothing in it says how the training went")
        found = _object(metadata[model_file.CHECKPOINT])
        version = found.get("version")
        if type(version) is not int or version != VERSION:
            raise ValueError(
                f"checkpoint version {version!r}; this backprop_gpu reads version {VERSION}"
            )
        text = restored(TrainingText, found, "the checkpoint")
        own, ours = model_file.FORMAT, model_file.metadata_of(model, None)
        _same("network", metadata.get(own), ours[own])
        _same("training of a population", text.population, population)
        _same("number of members", len(text.members), len(settings))
        _same("number of rows", text.rows, len(data.X))
        _same("fingerprint of X and Y", text.data, data.fingerprint)
        _same("use of validation_data", text.validated, data.validation is not None)
        kinds = [type(hook).__qualname__ for hook in hooks if is_needed(hook)]
        states = []
        for i, (member, given) in enumerate(zip(text.members, settings, strict=True)):
            with validation.within(f"member {i}") if population else nullcontext():
                _same("batch_size", member.batch_size, given.batch_size)
                _same("optimizer", member.optimizer, repr(given.optimizer))
                _same("list of callbacks", [each.kind for each in member.callbacks], kinds)
                epochs = len(member.history.loss)
                if epochs > given.epochs:
                    raise ValueError(f"it has run {epochs} epochs, and epochs={given.epochs}")
                _same("learning_rate", member.learning_rate, rates_of(given, epochs))
                _same("checksum of its rows", member.numbers, _checksum_of_numbers(given))
                _same("buffer_rows", member.buffer, given.buffer)
                _same("dropout", tuple(member.dropout), given.dropout)
                _same("mixup", member.mixup, given.mixup)
                if not 0 <= member.steps < given.rates.steps or (member.steps and population):
                    raise ValueError(f"damaged checkpoint: it is at step {member.steps}")
                states.append(_state(file, model, member, given, _prefix(i, population)))
        return Plan.from_json(text.plan), tuple(states)


def _same(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(f"another {what}: the checkpoint has {found!r}, fit {expected!r}")


def _state(
    file: Any, model: Model, member: MemberText, settings: Settings, prefix: str
) -> MemberState:
    layout, dtype = model.layout, model.dtype
    own = f"{model_file.TRAINING}{prefix}"

    def flat(start: str) -> np.ndarray:
        shapes = model_file.shapes_of(layout, start)
        tensors = list(model_file.read_tensors(file, shapes, dtype).values())
        return layout.flat(tensors[::2], tensors[1::2], dtype)

    begun, good = np.empty(0), None
    if member.steps:
        good, begun = flat(f"{own}good."), model_file.read_tensor(file, f"{own}costs")
        if begun.shape != (member.steps,) or begun.dtype != np.float64:
            raise ValueError("damaged checkpoint: its costs are not those of its steps")
    callbacks = []
    for k, each in enumerate(member.callbacks):
        values = _object(each.values)
        for key in each.arrays:
            values[key] = model_file.read_tensor(file, f"{own}callback{k}.{key}")
        callbacks.append((each.kind, values))
    logs = tuple((each.kind, _object(each.values)) for each in member.logs)
    return MemberState(
        flat(prefix),
        tuple(flat(f"{own}slot{k}.") for k in range(settings.optimizer.slots)),
        member.history.history(),
        _checked_generator(member.generator),
        member.stopped,
        member.failure,
        tuple(callbacks),
        begun,
        good,
        logs,
    )


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged checkpoint: {error!r}") from error
    if not isinstance(found, dict):
        raise ValueError("damaged checkpoint: a state is no object")
    return found


def _checked_generator(text: str) -> dict[str, Any]:
    state = _object(text)
    try:
        generator_of(state)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"damaged checkpoint: no generator's state: {error!r}") from error
    return state


def generator_of(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator that goes on from the state of a bit generator, one of NumPy's own."""
    if state["bit_generator"] not in _GENERATORS:
        raise ValueError(f"unknown bit generator {state['bit_generator']!r}")
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = _like(bits.state, state)
    return np.random.Generator(bits)


def _like(pattern: Any, value: Any) -> Any:
    """Lists of JSON as arrays, where the pattern has them."""
    if isinstance(pattern, dict):
        return {key: _like(each, value[key]) for key, each in pattern.items()}
    if isinstance(pattern, np.ndarray):
        return np.array(value, pattern.dtype).reshape(pattern.shape)
    return value


# -- writing them -----------------------------------------------------------------------------


class CheckpointWriter:
    """Writes the checkpoints of one session, and hears SIGTERM for them.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        Perhaps none.
    make : callable
        (tensors, metadata) of these states.
    courses : sequence of FitCourse
    communicator : Communicator
        Of whose ranks the first writes, and all end when any of them hears SIGTERM.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        make: Callable[[Sequence[MemberState]], tuple[dict[str, np.ndarray], dict[str, str]]],
        courses: Sequence[FitCourse],
        communicator: Communicator = ALONE,
    ) -> None:
        self._communicator = communicator
        self.checkpoints, self._make, self._courses = checkpoints, make, courses
        self._ended: dict[int, MemberState] = {}
        self._written = [time.monotonic()] * len(checkpoints)
        self._terminated = False
        self._before: Any = None

    def __enter__(self) -> CheckpointWriter:
        for course in self._courses if self.checkpoints else ():
            kind = type(course.network.generator.bit_generator).__name__
            if kind not in _GENERATORS:
                raise ValueError(f"Checkpoint: a generator of {kind}, which is none of NumPy's")
        if self.checkpoints and threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGTERM)
            if before not in (signal.SIG_IGN, None):  # None: a handler that is not Python's
                self._before = before
                signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminated:
            self._end()
        elif self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True

    def _end(self) -> None:
        """Do what SIGTERM did before."""
        before, self._before, self._terminated = self._before, None, False
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if before in (None, signal.SIG_DFL):  # None: another rank has heard it
            raise SystemExit(TERMINATED)
        before(signal.SIGTERM, None)

    def after_epoch(self, ran: Sequence[Any], over: bool) -> None:
        """Write what is due, once callbacks have heard of the epoch.

        Parameters
        ----------
        ran : sequence of FitCourse
            Those that it went well for.
        over : bool
            Whether all have ended.
        """
        # It may come while a file is written.
        terminated = self._terminated = self._communicator.any(self._terminated)
        epoch, now = max((len(course.history) for course in ran), default=0), time.monotonic()
        due = [
            i
            for i, checkpoint in enumerate(self.checkpoints)
            if ran and (over or terminated or checkpoint.is_due(epoch, now - self._written[i]))
        ]
        self._write(due, epoch)
        if terminated:
            self._part()

    def within_epoch(self) -> None:
        """Write what is due by the time, or for SIGTERM, in the midst of the only one's epoch."""
        now = time.monotonic()
        terminated = self._terminated = self._communicator.any(self._terminated)
        due = [
            i
            for i, checkpoint in enumerate(self.checkpoints)
            if terminated or checkpoint.is_due_within(now - self._written[i])
        ]
        self._write(due, len(self._courses[0].history))
        if terminated:
            self._part()

    def _write(self, due: Sequence[int], epoch: int) -> None:
        if due and self._communicator.rank == 0:
            contents = self._make([self._state(i) for i in range(len(self._courses))])
            for i in due:
                self.checkpoints[i].write(*contents, epoch)
                self._written[i] = time.monotonic()
        self._communicator.barrier()

    def _part(self) -> None:
        """End, on all ranks."""
        if self._communicator.size > 1:
            self._communicator.parting = True
        self._end()

    def _state(self, i: int) -> MemberState:
        if i not in self._ended:
            course = self._courses[i]
            state = course.state()
            if not course.ended:
                return state
            self._ended[i] = state
        return self._ended[i]
