"""Epochs of members of one model, for any trainer.

    Session(model, RowsAtOnce(engine, X, Y), courses).run()

A `Course` is one member on its way: it says what the next epoch is (order, rates, rule), hears what
came of it, and says when it is over. Trainers differ in their courses, and in nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from typing import Any, Self

import numpy as np

from .. import planning, validation
from ..arrays import SparseMatrix
from ..engines import Member
from ..model import Model, losses_and_accuracies
from ..parameters import Parameters
from .parts import part_of_member
from .progress import Progress
from .rows import Rows
from .time_spent import TimeSpent

Array = Any


_NOTHING = np.empty(0)


class Course:
    """One member on its way through a training.

    Parameters
    ----------
    parameters : Parameters
        Trained in place.
    good : (length,) backend array, optional
        Takes the parameters at the end of the last whole epoch, and gives them back when an epoch
        fails. Without it they stay as the epoch has left them.

    Attributes
    ----------
    failure : str or None
        Why it ended, where it did not end well.
    """

    failure: str | None = None
    #: What has ended the session while it was on its way, if anything.
    interruption: str | None = None
    #: What the engine has to call after every step, if anything.
    on_step: Callable[[int], None] | None = None
    #: After how many steps `piece_is_over` is to be called; 0: never.
    piece: int = 0
    #: Steps of an epoch.
    steps: int = 1
    #: Rows of an epoch, where they are not those of the session.
    rows: int = 0
    #: How many epochs may be one member.
    at_once: int = 1
    #: Of an epoch that has begun, the costs of its steps so far: where a resumed one goes on.
    begun: np.ndarray = _NOTHING

    def __init__(self, parameters: Parameters, good: Array | None = None) -> None:
        self.parameters, self.good = parameters, good

    def start(self) -> None:
        """Before the first epoch. What is wrong with any of the courses is said here."""

    def withdraw(self, error: BaseException) -> None:
        """It does not train after all, as this was raised by the start of one of the courses."""

    def go_on(self) -> None:
        """Once all have started: take what an earlier training has left, if this resumes one."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing to do from the start: one that is resumed may be over."""
        return False

    def epoch(self) -> Member | None:
        """The next epoch, or several where nothing is asked of this between them.

        None, among other courses, where there is none: `failure` says why.
        """
        raise NotImplementedError

    def begin_again(self) -> None:
        """What `epoch` said last is not to be: say its first epoch alone, which may go wrong."""

    def draw(self, ahead: int) -> None:
        """Draw what an epoch needs, `ahead` epochs from now, while a device works."""

    def piece_is_over(self, step: int) -> None:
        """Steps up to this one, counted from 0 in their epoch, are over, a multiple of `piece`."""

    def steps_are_over(self, steps: int) -> None:
        """All steps of an epoch are over; nobody has looked yet whether they went well."""

    def trouble(self, costs: np.ndarray, finite: bool) -> str | None:
        """What is wrong with an epoch of these costs; `finite` is of the parameters after it."""
        return None

    def end_epoch(self, costs: np.ndarray, seconds: float) -> None:
        """What `epoch` said is over: the mean cost of each mini-batch, before its update."""

    def validated(self, loss: float, accuracy: float) -> None:
        """What the epoch's parameters make of the validation data."""

    def is_over(self) -> bool:
        """Asked after every `end_epoch`."""
        raise NotImplementedError

    def finish(self) -> None:
        """Once, however the course ended."""

    def interrupt(self, error: BaseException) -> None:
        """Finish while it is on its way, as this was raised."""
        self.interruption = ": ".join(filter(None, (type(error).__name__, str(error))))
        self.finish()


class Session:
    """Epochs of members of one model until the last has ended.

    Parameters
    ----------
    model : Model
    rows : Rows
        What all courses train on, by an engine that is released at the end.
    courses : sequence of Course
        For `run`; others `join` and `leave` between two epochs.
    validation_data : (X, Y), optional
    whole : (array, array), optional
        The arrays of which all ``parameters.flat``, and all ``good``, are the rows: a row is the
        place of one course at a time.
    time_spent : TimeSpent, optional
        Goes on; its time until `run` is that of the data.
    """

    def __init__(
        self,
        model: Model,
        rows: Rows,
        courses: Sequence[Course],
        validation_data: tuple[np.ndarray, np.ndarray] | None = None,
        whole: tuple[Array, Array] | None = None,
        time_spent: TimeSpent | None = None,
    ) -> None:
        self.time_spent = time_spent or TimeSpent()
        self.rows, self.engine, self.passes = rows, rows.engine, model.passes()
        self.backend = self.passes.backend
        self.courses, self.whole = courses, whole
        #: Those that are on their way.
        self.live: list[Course] = []
        #: How many train at once, if all places are taken.
        self.places = len(courses) if whole is None else whole[0].shape[0]
        self._within_epoch: Callable[[], None] = lambda: None
        #: The optimizer's state before several epochs at once, and a copy.
        self._before: list[tuple[Array, Array]] | None = None
        self.validation = None
        if validation_data is not None:
            X_val, Y_val = validation_data
            classes = validation.classes_of(Y_val)
            Y_val = model.cost.prepare(Y_val, model.sizes[-1])
            if not isinstance(X_val, SparseMatrix):
                X_val = self.backend.asarray(X_val)
            self.validation = X_val, self.backend.asarray(Y_val), classes

    def run(
        self,
        progress: Progress | None = None,
        after_epoch: Callable[[Sequence[Course], bool], None] = lambda ran, over: None,
        within_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        """Train; a course that fails says so in its `failure`, and the others go on.

        `after_epoch` hears of those that an epoch went well for, before any of them is finished,
        and whether all are over; `within_epoch` is called between two pieces of one, where a course
        trains alone.

        Whatever ends this early, Ctrl-C or a callback's exception: every member is left at the end
        of its last whole epoch, if its course has kept it.
        """
        progress = progress or Progress()
        self._within_epoch = within_epoch
        with self:
            self.join(self.courses)
            while self.live:
                ran = self.run_epoch(self.live, progress)
                progress.epoch_is_over(ran)
                self.end_round(ran, progress, after_epoch)

    def __enter__(self) -> Self:
        self.time_spent.add("data")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: object
    ) -> None:
        """Finish what is still on its way."""
        try:
            with ExitStack() as last:
                for course in reversed(self.live):
                    end = course.finish if error is None else partial(course.interrupt, error)
                    last.callback(end)
                last.callback(self.engine.release)
        except BaseException as another:
            another.__context__ = another.__context__ or error  # which an ExitStack leaves out
            raise
        if kind is None:
            self.time_spent.add("callbacks")

    def join(self, courses: Sequence[Course]) -> None:
        """Between two epochs: courses that train from now on. None does, if one cannot start."""
        try:
            for course in courses:
                course.start()
        except BaseException as error:
            with ExitStack() as last:
                for course in reversed(courses):
                    last.callback(course.withdraw, error)
            raise
        for course in courses:
            course.go_on()
        self.live = [*self.live, *courses]
        for course in courses:
            if course.ended:
                self.leave(course)

    def leave(self, course: Course) -> None:
        """Between two epochs: finish a course, whose place another may take."""
        course.finish()
        self.live = [each for each in self.live if each is not course]

    def end_round(
        self,
        ran: Sequence[Course],
        progress: Progress,
        after_epoch: Callable[[Sequence[Course], bool], None] = lambda ran, over: None,
    ) -> None:
        """After `run_epoch`: ask those that it went well for whether they are over."""
        over = [course.is_over() for course in ran]
        after_epoch(ran, all(over))
        for course, ends in zip(ran, over, strict=True):
            if ends:
                course.finish()
                progress.ended(course, 0)
        self.live = [course for course, ends in zip(ran, over, strict=True) if not ends]

    def run_epoch(self, live: list[Course], progress: Progress) -> list[Course]:
        """One epoch of each; those that did well are returned, the others back where they were."""
        spent = self.time_spent
        spent.add("callbacks")
        self._keep(live)
        try:
            start = time.perf_counter()
            costs: list[np.ndarray] = []
            waves = list(self._waves(live))
            for wave, upcoming in zip(waves, [*waves[1:], waves[0]], strict=True):
                ahead = int(upcoming is waves[0])  # of the epoch after this one
                costs += self._run_wave(wave, progress, partial(_draw, upcoming, ahead))
            seconds = time.perf_counter() - start
            finite = self._finite(live)
            failures = [
                course.failure or course.trouble(cost, good)
                for course, cost, good in zip(live, costs, finite, strict=True)
            ]
            for course, failure in zip(live, failures, strict=True):
                if failure is not None:
                    self._put_back(course)
            if self._before is not None and any(failures):  # the only course's
                for slot, before in self._before:
                    self.backend.copy(before, slot)
                live[0].begin_again()
                return self.run_epoch(live, progress)
            well = [course for course, failure in zip(live, failures, strict=True) if not failure]
            spent.add("engine")
            scores = self._validate(well)
            spent.add("validation")
        except BaseException:  # Ctrl-C too: a network between two epochs is a usable one
            for course in live:
                self._put_back(course)
            raise
        ran = []
        for course, cost, failure in zip(live, costs, failures, strict=True):
            if failure is None:
                course.end_epoch(cost, seconds)
                if self.validation is not None:
                    course.validated(*next(scores))
                ran.append(course)
                continue
            course.failure = failure
            course.finish()
            progress.ended(course, 1)
        return ran

    def _run_wave(
        self, wave: list[Course], progress: Progress, meanwhile: Callable[[], None]
    ) -> list[np.ndarray]:
        if self.places > 1 and not any(course.on_step for course in wave):
            found = [course.epoch() for course in wave]
            members = [member for member in found if member is not None]
            self.time_spent.add("orders")
            pairs = zip(wave, found, strict=True)
            courses = [course for course, member in pairs if member is not None]
            of_members = iter(self._run_members(courses, members, progress, meanwhile))
            return [_NOTHING if member is None else next(of_members) for member in found]
        costs = []
        for course in wave:
            member = course.epoch()
            assert member is not None
            several = member.epochs > 1 and course.good is not None
            self._before = [(slot, slot.copy()) for slot in member.slots] if several else None
            self.time_spent.add("orders")
            costs.append(self._run_epoch(course, member, meanwhile))
            progress.member_is_over()
        return costs

    def _run_epoch(
        self, course: Course, member: Member, meanwhile: Callable[[], None]
    ) -> np.ndarray:
        pieces: Any = self.rows.run_epoch(
            member, course.on_step, meanwhile, len(course.begun), course.piece
        )
        steps = len(member.hyperparameters.coefficients)
        with closing(pieces):
            for costs in pieces:
                course.begun = np.concatenate([course.begun, costs])
                if course.piece and len(course.begun) % course.piece == 0:
                    course.piece_is_over(len(course.begun) - 1)
                if len(course.begun) < steps:
                    self._within_epoch()
        course.steps_are_over(len(course.begun))
        costs, course.begun = course.begun, _NOTHING
        return costs

    def _run_members(
        self,
        courses: Sequence[Course],
        members: Sequence[Member],
        progress: Progress,
        meanwhile: Callable[[], None],
    ) -> list[np.ndarray]:
        """An epoch of each, side by side: a piece of each, then the next of each."""
        costs: list[list[np.ndarray]] = [[] for _ in members]
        steps = [len(member.hyperparameters.coefficients) for member in members]
        done, on_their_way = [0] * len(members), list(range(len(members)))
        while on_their_way:
            ends = [min(done[i] + (courses[i].piece or steps[i]), steps[i]) for i in on_their_way]
            numbered = list(zip(on_their_way, ends, strict=True))

            def on_member(k: int, numbered: list[tuple[int, int]] = numbered) -> None:
                if numbered[k][1] == steps[numbered[k][0]]:
                    progress.member_is_over()

            parts = [part_of_member(members[i], done[i], end) for i, end in numbered]
            found = self.rows.run_members(parts, on_member, meanwhile)
            for (i, end), of_part in zip(numbered, found, strict=True):
                costs[i].append(of_part)
                done[i] = end
                if courses[i].piece and end % courses[i].piece == 0:
                    courses[i].piece_is_over(end - 1)
                if end == steps[i]:
                    courses[i].steps_are_over(end)
            on_their_way = [i for i, end in numbered if end < steps[i]]
        return [np.concatenate(each) for each in costs]

    def _waves(self, live: list[Course]) -> Iterable[list[Course]]:
        """As many at a time as have room for their orders and coefficients on the host."""
        steps = max(course.steps for course in live)
        rows = max(course.rows or len(self.rows) for course in live)
        at_once = max(course.at_once for course in live)
        size = planning.members_a_call(at_once * rows, at_once * steps)
        return (live[i : i + size] for i in range(0, len(live), size))

    def _keep(self, live: list[Course]) -> None:
        if self.whole is not None and len(live) == self.places:
            self.backend.copy(*self.whole)  # on a device one launch instead of one per member
            return
        for course in live:
            if course.good is not None and not len(course.begun):
                self.backend.copy(course.parameters.flat, course.good)

    def _put_back(self, course: Course) -> None:
        if course.good is not None:
            self.backend.copy(course.good, course.parameters.flat)

    def _finite(self, live: list[Course]) -> list[bool]:
        """Whether the parameters of each are finite; of all at once, where that may be."""
        everyone = self.whole if len(live) == self.places else None
        if everyone is not None and self.backend.all_finite(everyone[0]):
            return [True] * len(live)
        return [
            course.good is None or self.backend.all_finite(course.parameters.flat)
            for course in live
        ]

    def _validate(self, ran: list[Course]) -> Iterator[tuple[float, float]]:
        """(C, accuracy) of each on the validation data, if there is any."""
        if self.validation is None or not ran:
            return iter(())
        with self.engine.between() if self.passes.uses_blas else nullcontext():
            losses, accuracies = losses_and_accuracies(
                self.passes, [course.parameters for course in ran], *self.validation
            )
        return zip(losses.tolist(), accuracies.tolist(), strict=True)


def _draw(courses: Iterable[Course], ahead: int) -> None:
    for course in courses:
        course.draw(ahead)
