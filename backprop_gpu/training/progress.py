"""The bar that a training run shows, and the table of a sweep's best settings above it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import numpy as np

from .. import validation
from ..imports import uninterrupted
from .history import History

#: How many settings the table has.
BEST = 5


class Progress:
    """Hears how far a session is; shows nothing."""

    def member_is_over(self) -> None:
        """A member's epoch is over."""

    def epoch_is_over(self, ran: Sequence[Any]) -> None:
        """An epoch of all members is over: the courses that it went well for."""

    def ended(self, course: Any, lost: int) -> None:
        """A course has ended; `lost` epochs have run that it does not count."""


class ProgressBar(Progress):
    """The bar of a training run: an epoch of one network is a step of it.

    Parameters
    ----------
    epochs : int
        Of all networks together.
    shown : bool
    members : int
        How many networks train at once.
    done : int
        Of the epochs, where a training is resumed.
    """

    def __init__(self, epochs: int, shown: bool, members: int = 1, done: int = 0) -> None:
        self._many = members > 1
        #: Of those that trained elsewhere.
        self._best = History()
        self.bar: Any = None
        if not shown:
            return
        self.bar = self._make_bar(epochs, "member epoch" if self._many else "epoch", done)

    def _make_bar(self, total: int, unit: str, done: int) -> Any:
        with uninterrupted():
            if "IPython" in sys.modules:  # a notebook has a bar of its own
                from tqdm.auto import tqdm
            else:
                from tqdm import tqdm
        return tqdm(total=total, unit=unit, initial=done)

    def __enter__(self) -> Self:
        if self.bar is not None:
            from ..cuda.announcement import hearers

            hearers.append(self._write)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            from ..cuda.announcement import hearers

            hearers.remove(self._write)
            self.bar.close()

    def _write(self, line: str) -> None:
        """Show a line above the bar."""
        self.bar.write(line, file=sys.stderr)

    def describe(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_description(text, refresh=False)

    def member_is_over(self) -> None:
        if self.bar is not None and self._many:  # its epoch ends long before the others'
            self.bar.update()

    def epoch_is_over(self, ran: Sequence[Any]) -> None:
        if self.bar is None or not ran:
            return
        history = min((course.history for course in ran), key=_last_cost)
        values = self._values(history)
        if self._many:
            values["training"] = str(len(ran))
        self.bar.set_postfix(values, refresh=False)
        if not self._many:
            self.bar.update(len(history.loss) - self.bar.n)

    def members_are_over(self, histories: Sequence[History], epochs: Sequence[int]) -> None:
        """Members that trained elsewhere are ready; each was to have so many epochs."""
        if self.bar is None:
            return
        measured = [history for history in (*histories, self._best) if history.loss]
        if measured:
            self._best = min(measured, key=_last_cost)
            self.bar.set_postfix(self._values(self._best), refresh=False)
        trained = sum(map(len, histories))
        self._expect(trained - sum(epochs))
        self.bar.update(trained)

    def _values(self, history: History) -> dict[str, str]:
        """What a history has come to, as the bar shows it."""
        values = {"loss": f"{history.loss[-1]:.4f}"}
        if history.val_loss:
            values["val_loss"] = f"{history.val_loss[-1]:.4f}"
            if not np.isnan(history.val_accuracy[-1]):  # the targets are classes
                values["val_accuracy"] = f"{history.val_accuracy[-1]:.4f}"
        if self._many:
            values = {f"best {name}": value for name, value in values.items()}
        return values

    def expect(self, epochs: int) -> None:
        """So many more epochs are to come than were known of, or fewer, where it is negative."""
        if self.bar is not None and epochs:
            self._expect(epochs)
            self.bar.refresh()

    def _expect(self, epochs: int) -> None:
        self.bar.total += epochs
        container = getattr(self.bar, "container", None)
        if container is not None:  # a notebook's, whose length tqdm sets once
            container.children[1].max = self.bar.total

    def ended(self, course: Any, lost: int) -> None:
        left = course.settings.epochs - len(course.history) - lost
        # Of one that failed alone it is seen how far it came.
        if self.bar is not None and left and (self._many or course.failure is None):
            self._expect(-left)
            self.bar.refresh()


class SweepProgress(ProgressBar):
    """The bar of a sweep, and which settings are the best so far.

    In a terminal or a notebook with rich installed they are a table above the bar; else the best
    one stands beside it.

    Parameters
    ----------
    epochs, shown, members : see `ProgressBar`
    names : sequence of str
        What tells settings apart.
    metric : {"val_accuracy", "val_loss", "loss"}
        By which they are compared.
    settings : callable
        The setting of the network with a number (`FitRun.labels`, "row").
    """

    def __init__(
        self,
        epochs: int,
        shown: bool,
        members: int,
        names: Sequence[str],
        metric: str,
        settings: Callable[[int], Mapping[str, Any]],
    ) -> None:
        self._names, self._metric, self._settings = list(names), metric, settings
        #: Of each network by its row: what it has come to, smallest first, and how it is shown.
        self._found: dict[int, tuple[tuple[float, float], list[str]]] = {}
        super().__init__(epochs, shown, members)
        self._many = True  # also of one

    def _make_bar(self, total: int, unit: str, done: int) -> Any:
        table = _table(["row", *self._names, self._metric, "epoch"], total)
        return super()._make_bar(total, unit, done) if table is None else table

    def _write(self, line: str) -> None:
        if isinstance(self.bar, _LiveTable):
            self.bar.write(line)
        else:
            super()._write(line)

    def epoch_is_over(self, ran: Sequence[Any]) -> None:
        if self.bar is not None and ran:
            for course in ran:
                self._note(course)
            self._show(len(ran))

    def ended(self, course: Any, lost: int) -> None:
        if self.bar is not None:
            self._note(course)  # EarlyStopping may have restored the best weights
            self._show(None)
        super().ended(course, lost)

    def _note(self, course: Any) -> None:
        row, history = course.run.labels["row"], course.history
        if course.failure is not None or not history.loss:
            self._found.pop(row, None)
            return
        value, loss = history.final(self._metric), history.final("val_loss")
        key = validation.nan_last(-value if self._metric == "val_accuracy" else value)
        setting = self._settings(row)
        cells = [_cell(setting.get(name)) for name in self._names]
        self._found[row] = (
            (key, validation.nan_last(loss)),
            [str(row), *cells, f"{value:.4g}", f"{len(history)}/{course.settings.epochs}"],
        )

    def _show(self, training: int | None) -> None:
        best = sorted(self._found.items(), key=lambda item: (item[1][0], item[0]))[:BEST]
        rows = [cells for _, (_, cells) in best]
        if isinstance(self.bar, _LiveTable):
            self.bar.show(rows, training)
            return
        if rows:
            _, *cells, value, _ = rows[0]
            values = {f"best {self._metric}": value} | dict(zip(self._names, cells, strict=True))
            self.bar.set_postfix(
                values | ({} if training is None else {"training": str(training)}), refresh=False
            )


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    text = "" if value is None else str(getattr(value, "name", value))
    return text if len(text) <= 32 else f"{text[:31]}…"


def _table(columns: Sequence[str], total: int) -> _LiveTable | None:
    """A table of rich's, where it is installed and somebody looks; a log gets the plain bar."""
    is_terminal = getattr(sys.stderr, "isatty", lambda: False)  # there may be no stderr
    if "ipykernel" not in sys.modules and not is_terminal():
        return None
    try:
        with uninterrupted():
            from rich.errors import LiveError
    except ImportError:
        return None
    with suppress(LiveError):  # the caller shows something of its own
        return _LiveTable(columns, total)
    return None


class _LiveTable:
    """What `ProgressBar` asks of tqdm's bar, by rich, below a table."""

    def __init__(self, columns: Sequence[str], total: int) -> None:
        from rich import progress
        from rich.console import Console
        from rich.live import Live

        self.total, self.n = total, 0
        self._columns, self._rows = list(columns), list[list[str]]()
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("member epochs"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("<"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[training]}"),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=total, training="")
        self._live = Live(
            console=Console(stderr=True), get_renderable=self._render, refresh_per_second=4
        )
        self._live.start()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        if not self._rows:
            return self._bar
        table = Table(title="best so far", title_justify="left")
        for name in self._columns:
            table.add_column(name, justify="right")
        for row in self._rows:
            table.add_row(*row)
        return Group(table, self._bar)

    def show(self, rows: list[list[str]], training: int | None) -> None:
        self._rows = rows
        if training is not None:
            self._bar.update(self._task, training=f"{training} training")

    def write(self, line: str) -> None:
        self._live.console.print(line, highlight=False, markup=False)

    def update(self, count: int = 1) -> None:
        self.n += count
        self._bar.update(self._task, completed=self.n)

    def refresh(self) -> None:
        self._bar.update(self._task, total=self.total)

    def set_description(self, text: str, refresh: bool = True) -> None:
        self._bar.update(self._task, description=text)

    def close(self) -> None:
        self._bar.update(self._task, total=self.total, completed=self.n, training="")
        self._live.stop()


def _last_cost(history: History) -> Any:
    return validation.nan_last((history.val_loss or history.loss)[-1])
