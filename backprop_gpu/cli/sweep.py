"""``backprop-gpu sweep``."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from .. import optimizers, sweeps
from ..datasets import Dataset
from ..errors import ArgumentError
from ..files import write_whole
from ..grids import KEYS, Setting, spanned
from ..imports import optional
from ..sweeps import SweepResult
from ..training import EarlyStopping
from ..tuning import WHOLE, SearchSpace, default_metric, direction_of, optuna_module
from ..validation import boolean, finite, within
from .arguments import (
    add_backend,
    add_data,
    add_max_bytes,
    add_table,
    read_data,
    refused_as_arguments,
    whole,
)
from .defaults import (
    BATCH_SIZE,
    EPOCHS,
    HIDDEN,
    default_activations,
    default_cost,
    default_rate,
    fits_numbers,
)
from .shown import processor
from .weighted_validation import weighted_validation

_GRID = """\
the grid: a TOML file

  epochs = 20                # what all settings share
  optimizer = "adam"

  [grid]                     # every combination of these
  sizes = [[64, 30, 10], [64, 100, 10]]
  learning_rate = [0.001, 0.003, 0.01]

[[grid]] several times is several grids. With --trials Optuna draws values from
lists and from ranges, of whole numbers for epochs, batch_size and seed:

  learning_rate = {{low = 1e-4, high = 1.0, log = true}}
  batch_size = {{low = 8, high = 128, step = 8}}

What may be set:
{keys}.
Without sizes, cost, activation, epochs, batch_size or learning_rate they are as in train.
"""


class GridHelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs, but for what has lines of its own."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "sweep",
        allow_abbrev=False,
        help="train a network for every setting of a grid, here or on a Dask cluster",
        description="Train a network for every setting of a grid, those of one shape at once, and "
        "show them as a table, best first.",
        epilog=_GRID.format(keys=fill(", ".join(KEYS), 78)),
        formatter_class=GridHelpFormatter,
    )
    option = parser.add_argument
    option("--grid", required=True, metavar="FILE", help="the settings, in TOML; see below")
    add_data(parser)
    option(
        "--seeds",
        type=whole,
        default=1,
        metavar="N",
        help="networks a setting, of seeds --seed, --seed + 1, …; default %(default)s",
    )
    option(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the initial weights and the order of mini-batches, unless the grid has one, and "
        "of the rows kept for validation; default %(default)s",
    )
    option(
        "--metric",
        metavar="NAME",
        help="what the table is sorted by: val_accuracy, val_loss or loss; default: the first of "
        "these that there is",
    )
    option(
        "--patience",
        type=whole,
        metavar="N",
        help="stop a network when its validation loss has not fallen for N epochs, and keep the "
        "weights of the best one",
    )
    trials = parser.add_argument_group("trials", "settings that Optuna draws from the grid")
    trials.add_argument("--trials", type=whole, metavar="N", help="how many; default: all settings")
    for name, kinds in (("sampler", _SAMPLERS), ("pruner", _PRUNERS)):
        trials.add_argument(
            f"--{name}",
            choices=kinds,
            metavar="NAME",
            help=f"{', '.join(kinds)}; default {next(iter(kinds))}",
        )
    trials.add_argument(
        "--storage",
        metavar="URL",
        help="keep the study there, sqlite:///trials.db, and go on with it if it is there already; "
        "optuna-dashboard shows it",
    )
    trials.add_argument("--study", metavar="NAME", help="its name in the storage; default sweep")
    trials.add_argument(
        "--at-once", type=whole, metavar="N", help="how many train at once; default: by the cores"
    )
    add_backend(parser)
    option(
        "--scheduler",
        metavar="ADDRESS",
        help="train on the workers of this Dask scheduler, tcp://host:8786; default: here",
    )
    option("--out", metavar="FILE", help="write the table, as .csv or .json; default: not")
    option("--model", metavar="FILE", help="save the best network (.safetensors); default: not")
    add_max_bytes(parser)
    add_table(parser)
    parser.set_defaults(run=_sweep)


def _sweep(args: argparse.Namespace) -> int:
    with refused_as_arguments():
        for path in filter(None, (args.out, args.model)):
            _check_writable(Path(path))
        if args.out and Path(args.out).suffix not in _WRITERS:
            raise ValueError(f"--out must end in {' or '.join(_WRITERS)}, got {args.out!r}")
        grids, shared = _read(Path(args.grid))
        drawn = _drawn(args, grids)
        settings = spanned(grids) if drawn is None else drawn.corners()
        callbacks = [] if args.patience is None else [EarlyStopping(patience=args.patience)]
        named = {(shared | setting).get("cost") for setting in settings}
        data = read_data(args, "poisson" if named == {"poisson"} else None)
        shared = {"seed": args.seed, "backend": args.backend} | shared
        asked = settings
        settings, shared = _completed(settings, shared, data)
        if drawn is not None and settings != asked:
            left_out = ", ".join(key for key in settings[0] if key not in asked[0])
            raise ValueError(f"{args.grid}: what the trials draw decides {left_out}: name it there")
        if args.standardize and all(_fits(shared | setting, data) for setting in settings):
            data = data.standardize_target()
        if drawn is None:
            searched: dict[str, Any] = {"settings": settings}
            what = f"{len(settings)} settings, {len(settings) * args.seeds} networks"
        else:
            searched, what = _trials(args, drawn, data, shared), f"{args.trials} trials"
    with _client(args.scheduler) as client:
        where = processor() if client is None else _described(args.scheduler, client)
        print(
            f"device: {where}",
            f"data: {data.description}",
            f"sweep: {what}",
            sep="\n",
            flush=True,
        )
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", RuntimeWarning)
            try:
                with refused_as_arguments():
                    result = sweeps.sweep(
                        data.X,
                        data.y,
                        seeds=args.seeds,
                        validation_data=(data.X_val, data.y_val),
                        callbacks=[*weighted_validation(data), *callbacks],
                        metric=args.metric,
                        client=client,
                        sample_weight=data.weights,
                        **searched,
                        **shared,
                    )
            except (FloatingPointError, RuntimeError) as error:
                print(f"backprop-gpu sweep: {error}; nothing is written", file=sys.stderr)
                return 1
    for each in found:
        print(f"note: {each.message}", file=sys.stderr)
    print(result)
    return _write(args, result, data)


def _write(args: argparse.Namespace, result: SweepResult, data: Dataset) -> int:
    try:
        if args.out:
            path = Path(args.out)
            write_whole(path, _WRITERS[path.suffix](result).encode())
            print(f"written: {path}")
        if args.model:
            network = result.best.network
            network.preprocessing = data.preprocessing
            network.save(args.model)
            print(f"written: {args.model}, row {result.ranking[0]}")
    except OSError as error:
        print(f"backprop-gpu sweep: error: {error}", file=sys.stderr)
        return 1
    return 0


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and must be a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write to {path.parent}")


# -- the grid -------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Any, Setting]:
    """(grid or grids, what all settings share) of a file."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    if "grid" not in found:
        raise ValueError(f"{path} has no [grid]")
    grid = found.pop("grid")
    for key in found:
        if key not in KEYS:
            raise ValueError(f"{path}: unknown key {key!r}; known: grid, {', '.join(KEYS)}")
    return grid, found


def _completed(
    settings: Sequence[Setting], shared: Setting, data: Dataset
) -> tuple[list[Setting], Setting]:
    """Settings and what they share, with what they leave out as `train` would have it."""
    shared = {
        "sizes": [data.X.shape[1], HIDDEN, data.n_outputs],
        "epochs": EPOCHS,
        "batch_size": min(BATCH_SIZE, len(data.X)),
        "cost": default_cost(data),
    } | shared
    added = [_missing(shared | setting, data) for setting in settings]
    if all(each == added[0] for each in added):  # no column of the table
        return list(settings), added[0] | shared
    return [setting | each for setting, each in zip(settings, added, strict=True)], shared


def _missing(setting: Setting, data: Dataset) -> Setting:
    """What depends on the rest of a setting; `sweep` says what is wrong with that."""
    found: Setting = {}
    sizes = setting["sizes"]
    layers = len(sizes) - 1 if isinstance(sizes, list) else 1
    if "activation" not in setting:
        names = default_activations(data, setting["cost"], layers)
        found["activation"] = names[0] if len(set(names)) == 1 else names
    if "learning_rate" not in setting:
        optimizer = setting.get("optimizer", "sgd")
        optimizers.get(optimizer)
        output = _output((setting | found)["activation"])
        found["learning_rate"] = default_rate(optimizer, setting["cost"], output)
    return found


# -- trials ---------------------------------------------------------------------------------------

#: By the option's value, the default first: (Optuna, seed) -> sampler, (Optuna, epochs) -> pruner.
_SAMPLERS: dict[str, Callable[[Any, int], Any]] = {
    "tpe": lambda optuna, seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
    "random": lambda optuna, seed: optuna.samplers.RandomSampler(seed),
    "qmc": lambda optuna, seed: optuna.samplers.QMCSampler(seed=seed),
}
_PRUNERS: dict[str, Callable[[Any, int], Any]] = {
    "none": lambda optuna, epochs: optuna.pruners.NopPruner(),
    "hyperband": lambda optuna, epochs: optuna.pruners.HyperbandPruner(1, epochs, 3),
    "halving": lambda optuna, epochs: optuna.pruners.SuccessiveHalvingPruner(1, reduction_factor=3),
    "median": lambda optuna, epochs: optuna.pruners.MedianPruner(),
}
_OF_TRIALS = ("sampler", "pruner", "storage", "study", "at_once")


def _drawn(args: argparse.Namespace, grid: Any) -> SearchSpace | None:
    """What the trials that are asked for draw from."""
    if args.trials is None:
        for name in _OF_TRIALS:
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs --trials")
        if isinstance(grid, dict) and any(isinstance(each, dict) for each in grid.values()):
            raise ValueError("a range in the grid needs --trials: how many are drawn from it")
        return None
    if args.trials < 1:
        raise ValueError("--trials must be at least 1")
    if args.seeds > 1:
        raise ValueError("--seeds and --trials exclude each other")
    if args.scheduler is not None:
        raise ValueError("--scheduler and --trials exclude each other")
    if args.study is not None and args.storage is None:
        raise ValueError("--study needs --storage")
    if not isinstance(grid, dict):
        raise ValueError("with --trials there is one [grid]")
    optuna_module()
    return SearchSpace({key: _distribution(key, values) for key, values in grid.items()})


def _distribution(key: str, values: Any) -> Any:
    """A range of the grid as Optuna has it; a list as it is."""
    if not isinstance(values, dict):
        return values
    kinds = optuna_module().distributions
    unknown = [name for name in values if name not in ("low", "high", "log", "step")]
    if unknown or not {"low", "high"} <= values.keys():
        raise ValueError(
            f"grid: the range of {key} must have low and high, and may have log and step, got "
            f"{', '.join(values) or 'nothing'}"
        )
    with within(f"grid: the range of {key}"):
        for name, value in values.items():
            if name == "log":
                boolean("log", value)
            else:
                finite(name, value)
        whole_numbers = key in WHOLE and all(isinstance(each, int) for each in values.values())
        if whole_numbers:
            return kinds.IntDistribution(**values)
        return kinds.FloatDistribution(**values)


def _trials(
    args: argparse.Namespace, space: SearchSpace, data: Dataset, shared: Setting
) -> dict[str, Any]:
    """What `sweep` is given for trials."""
    optuna = optuna_module()
    epochs = max((shared | corner)["epochs"] for corner in space.corners())
    found: dict[str, Any] = {
        "grid": space.grid, "trials": args.trials, "at_once": args.at_once,
        "sampler": _SAMPLERS[args.sampler or "tpe"](optuna, args.seed % 2**32),
        "pruner": _PRUNERS[args.pruner or "none"](optuna, epochs),
    }  # fmt: skip
    if args.storage is None:
        return found
    metric = args.metric or default_metric(True, data.classes is not None)
    try:
        found["study"] = optuna.create_study(
            study_name=args.study or "sweep", storage=args.storage, load_if_exists=True,
            direction=direction_of(metric), sampler=found.pop("sampler"),
            pruner=found.pop("pruner"),
        )  # fmt: skip
    except Exception as error:  # of any database, or its missing driver
        raise ValueError(f"--storage {args.storage}: {error}") from error
    return found


def _output(activation: Any) -> str:
    """The name of the outputs' σ."""
    if isinstance(activation, list) and activation:
        activation = activation[-1]
    return str(activation)


def _fits(setting: Mapping[str, Any], data: Dataset) -> bool:
    return fits_numbers(data, setting["cost"], _output(setting["activation"]))


# -- Dask -----------------------------------------------------------------------------------------


@contextmanager
def _client(address: str | None) -> Iterator[Any]:
    """A client of the scheduler there; None without an address."""
    if address is None:
        yield None
        return
    try:
        distributed = optional("distributed", "dask", "--scheduler")
    except ImportError as error:
        raise ArgumentError(str(error)) from None
    try:
        client = distributed.Client(address)
    except (OSError, ValueError, TypeError) as error:  # TimeoutError is an OSError
        raise ArgumentError(f"--scheduler {address}: no connection: {error}") from error
    with client:
        yield client


def _described(address: str, client: Any) -> str:
    threads = client.nthreads().values()
    return f"{len(threads)} workers with {sum(threads)} threads at {address}"


# -- the table ------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A cell as JSON has it: what is not a number is null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _csv(result: SweepResult) -> str:
    columns = result.to_dict()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", *columns])
    for i in result.ranking:
        cells = [_plain(values[i]) for values in columns.values()]
        writer.writerow([i, *("" if cell is None else cell for cell in cells)])
    return file.getvalue()


def _json(result: SweepResult) -> str:
    rows = [
        {"row": i} | {key: _plain(value) for key, value in result.rows[i].items()}
        for i in result.ranking
    ]
    return json.dumps({"metric": result.metric, "rows": rows}, indent=2) + "\n"


#: By the file's name.
_WRITERS = {".csv": _csv, ".json": _json}
