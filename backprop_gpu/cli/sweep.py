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
from collections.abc import Iterator, Mapping, Sequence
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
from ..sweeps import SweepResult
from ..training import EarlyStopping
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

_GRID = """\
the grid: a TOML file

  epochs = 20                # what all settings share
  optimizer = "adam"

  [grid]                     # every combination of these
  sizes = [[64, 30, 10], [64, 100, 10]]
  learning_rate = [0.001, 0.003, 0.01]

[[grid]] several times is several grids. What may be set:
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
        settings = spanned(grids)
        callbacks = [] if args.patience is None else [EarlyStopping(patience=args.patience)]
        named = {(shared | setting).get("cost") for setting in settings}
        data = read_data(args, "poisson" if named == {"poisson"} else None)
        shared = {"seed": args.seed, "backend": args.backend} | shared
        settings, shared = _completed(settings, shared, data)
        if args.standardize and all(_fits(shared | setting, data) for setting in settings):
            data = data.standardize_target()
        networks = len(settings) * args.seeds
    with _client(args.scheduler) as client:
        where = processor() if client is None else _described(args.scheduler, client)
        print(
            f"device: {where}",
            f"data: {data.description}",
            f"sweep: {len(settings)} settings, {networks} networks",
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
                        settings=settings,
                        seeds=args.seeds,
                        validation_data=(data.X_val, data.y_val),
                        callbacks=callbacks,
                        metric=args.metric,
                        client=client,
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
        from distributed import Client
    except ImportError:
        raise ArgumentError(
            "--scheduler needs Dask, which is not installed: pip install 'backprop_gpu[dask]'"
        ) from None
    try:
        client = Client(address)
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
