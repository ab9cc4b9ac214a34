"""Settings of networks, and grids of them: what they may hold, and how they are shown."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from math import prod
from typing import Any

import numpy as np

from . import backends, costs, initializers, optimizers, validation
from .costs import Cost
from .model import resolve_activations
from .optimizers import Optimizer
from .precision import resolve as resolve_precision
from .training.settings import Data

#: The arguments of `Network` that a setting may hold. Networks that agree in them, the seed
#: aside, form a population.
SHAPE = ("sizes", "activation", "cost", "dtype", "precision", "backend", "initial_weights")
_NETWORK = (*SHAPE, "seed")
_FIT = ("epochs", "batch_size", "learning_rate", "optimizer", "dropout", "mixup")
#: What the optimizers take, named as in their classes.
OPTIMIZER = tuple(dict.fromkeys(field.name for kind in optimizers.KINDS for field in fields(kind)))
#: What a setting may hold.
KEYS = (*_NETWORK, *_FIT, *OPTIMIZER)
NEEDED = ("sizes", "epochs", "batch_size", "learning_rate")

Setting = dict[str, Any]


def table(columns: Mapping[str, Sequence[Any]], ranking: Sequence[int]) -> str:
    """Lines of a table, whose rows are in the order of a ranking, each with its number."""
    cells = [["", *(str(i) for i in ranking)]]
    for name, values in columns.items():
        cells.append([name, *(shown(values[i]) for i in ranking)])
    widths = [max(map(len, column)) for column in cells]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*cells, strict=True)
    )


def given_settings(caller: str, grid: Any, settings: Any, shared: Any) -> list[Setting]:
    """The settings as they were given, or as the grid spans them, none of which lacks a thing.

    Raises
    ------
    ValueError, TypeError
        Naming the setting; `caller` is the function that was called.
    """
    check_keys(shared, "the arguments that all settings share")
    given = _given(caller, grid, settings)
    for i, setting in enumerate(given):
        missing = [name for name in NEEDED if name not in setting and name not in shared]
        if missing:
            raise ValueError(
                f"{named(i, given)} has no {missing[0]}: give it there, or to {caller} for all"
            )
    return given


def _given(caller: str, grid: Any, settings: Any) -> list[Setting]:
    if (grid is None) == (settings is None):
        raise TypeError(f"{caller} needs either a grid or settings, and not both")
    if grid is not None:
        return spanned(grid)
    if isinstance(settings, Mapping) or not validation.is_iterable(settings):
        raise TypeError(f"settings must be a list of dicts, got {settings!r}")
    found = list(settings)
    if not found:
        raise ValueError("settings is empty")
    for i, setting in enumerate(found):
        check_keys(setting, f"settings[{i}]")
    return [dict(setting) for setting in found]


def spanned(grid: Any) -> list[Setting]:
    """The settings of a grid, or of several, as `sweep` takes them."""
    several = not isinstance(grid, Mapping)
    if several and (isinstance(grid, str) or not validation.is_iterable(grid)):
        raise TypeError(f"grid must be a dict of lists of values, or a list of them, got {grid!r}")
    found: list[Setting] = []
    for i, one in enumerate(list(grid) if several else [grid]):
        name = f"grid[{i}]" if several else "grid"
        check_keys(one, name)
        columns = []
        for key, values in one.items():
            if is_distribution(values):
                raise TypeError(
                    f"{name} holds a distribution for {key!r}: values are drawn from it where "
                    "sweep is given trials, how many"
                )
            if isinstance(values, (str, bytes, Mapping)) or not validation.is_iterable(values):
                raise TypeError(
                    f"{name} must hold a list of values for {key!r}, got {values!r}; for one "
                    f"value write [{values!r}]"
                )
            try:
                columns.append(list(values))
            except MemoryError:
                raise MemoryError(f"{name} holds more values for {key!r} than memory can") from None
            if not columns[-1]:
                raise ValueError(f"{name} holds no value for {key!r}")
        validation.room(f"a setting for every combination of {name}", 64 * prod(map(len, columns)))
        found += [dict(zip(one, values, strict=True)) for values in itertools.product(*columns)]
    if not found:
        raise ValueError("grid is empty")
    return found


def is_distribution(value: Any) -> bool:
    """Whether it is one of Optuna's, which is not imported for it."""
    optuna = sys.modules.get("optuna.distributions")
    return optuna is not None and isinstance(value, optuna.BaseDistribution)


def check_metric(
    metric: str | None, validated: bool, classes: bool, costs: Collection[Cost]
) -> None:
    """Before hours of training: whether their results can be ranked.

    Parameters
    ----------
    validated, classes : bool
        Whether there are validation data, and whether all targets of these are classes.
    costs : collection of Cost
        All that there are.
    """
    if metric is not None:
        validation.one_of("metric", metric, ("val_accuracy", "val_loss", "loss"))
    if metric in ("val_loss", "val_accuracy") and not validated:
        raise ValueError(f"metric {metric!r} needs validation_data")
    if metric == "val_accuracy" and not classes:
        raise ValueError("metric 'val_accuracy' needs validation_data whose targets are classes")
    if metric is None and not classes and len(costs) > 1:
        raise ValueError(
            "settings with different costs cannot be ranked by a cost: give validation_data "
            "whose targets are classes, or a metric"
        )


def has_classes(data: Data) -> bool:
    return data.validation is not None and validation.classes_of(data.validation[1]) is not None


def check_keys(setting: Any, name: str) -> None:
    if not isinstance(setting, Mapping):
        raise TypeError(f"{name} must be a dict, got {setting!r}")
    for key in setting:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r} in {name}; known: {', '.join(KEYS)}")


def shape_of(setting: Setting) -> tuple[Any, ...]:
    """What networks of one population have in common, to tell groups by."""
    sizes = validation.sizes(setting["sizes"])
    dtype = validation.dtype(setting.get("dtype", "float32"))
    return (
        sizes,
        resolve_activations(setting.get("activation", "sigmoid"), len(sizes) - 1),
        costs.get(setting.get("cost", "quadratic")),
        dtype,
        resolve_precision(setting.get("precision"), dtype),
        validation.one_of("backend", setting.get("backend", "auto"), ("auto", *backends.names())),
        validation.one_of(
            "initial_weights",
            setting.get("initial_weights", "auto"),
            ("auto", *initializers.names()),
        ),
    )


def optimizer_of(setting: Setting) -> Optimizer:
    """The setting's optimizer, with what the setting says of momentum and the like."""
    optimizer = optimizers.get(setting.get("optimizer", "sgd"))
    changes = {name: setting[name] for name in OPTIMIZER if name in setting}
    known = [field.name for field in fields(optimizer)]
    for name in changes:
        if name not in known:
            raise ValueError(
                f"{name} is no setting of {type(optimizer).__name__}, which takes "
                f"{', '.join(known)}"
            )
    return replace(optimizer, **changes)


def named(number: int, given: Sequence[Setting]) -> str:
    setting = ", ".join(f"{name}={shown(value)}" for name, value in given[number].items())
    return f"setting {number} ({setting})"


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return str(value)
