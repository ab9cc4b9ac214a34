"""``backprop-gpu predict``."""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import datasets, tables, validation
from ..costs import Cost, GaussianNLL, Hinge, Quantile
from ..errors import ArgumentError
from ..network import Network
from ..preprocessing import Number, Preprocessing
from ..reading import Budget
from .arguments import (
    add_backend,
    add_header,
    add_max_bytes,
    add_scale,
    refused_as_arguments,
)
from .shown import device_of, goodness


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "predict",
        allow_abbrev=False,
        usage="%(prog)s MODEL [DATA] [options]",
        help="the class of every row, or its number, by a trained model",
        description="The class of every row, or its number, by a trained model, and how good that "
        "is where the data has labels. Data that has test rows of its own is predicted on those.",
    )
    option = parser.add_argument
    option("model", nargs="?", metavar="MODEL", help="a model.safetensors of `train`")
    option(
        "data",
        nargs="?",
        metavar="DATA",
        help="as for `train`; the columns of a table are found by name if it has names, and it "
        "may lack the target; default: the validation rows of the digits",
    )
    option("--model", dest="model_option", metavar="FILE", help="the same as MODEL")
    option("--data", dest="data_option", metavar="PATH", help="the same as DATA")
    option("--out", metavar="FILE", help="a .csv file to write; default: print it")
    option("--outputs", action="store_true", help="also write the outputs a^L of the network")
    option(
        "--verbatim",
        action="store_true",
        help="write the names of classes as they are; default: an apostrophe before those that a "
        "spreadsheet would take for formulas",
    )
    add_scale(parser)
    add_header(parser)
    add_max_bytes(parser)
    add_backend(parser)
    parser.set_defaults(run=_predict)


def _model_and_data(args: argparse.Namespace) -> tuple[str, str | None]:
    """Take each argument by position or by its option."""
    given = [path for path in (args.model, args.data) if path is not None]
    model, data = args.model_option, args.data_option
    if model is None:
        if not given:
            raise ArgumentError("the following arguments are required: MODEL")
        model = given.pop(0)
    if data is None and given:
        data = given.pop(0)
    if given:
        raise ArgumentError(f"unrecognized arguments: {' '.join(given)}")
    return model, data


def _predict(args: argparse.Namespace) -> int:
    model, path = _model_and_data(args)
    try:
        with refused_as_arguments():
            net = Network.load(model, backend=args.backend)
            X, labels, notes = _rows_to_predict(args, path, net)
            outputs = net.predict(X)
    except RuntimeError as error:  # a backend that is not usable here
        raise ArgumentError(str(error)) from error
    header: list[str] = ["row"]
    columns: list[Any] = [range(len(X))]
    target = None if net.preprocessing is None else net.preprocessing.target
    verdict = ""
    if isinstance(target, Number):
        header.append("prediction")
        found = net.cost.predictions(outputs)
        predicted = target.mean + target.deviation * found[:, 0].astype(np.float64)
        columns.append([f"{value:.9g}" for value in predicted])
        more = _more_of_numbers(net.cost, outputs, target)
        header += more
        columns += [[f"{value:.9g}" for value in values] for values in more.values()]
        if labels is not None:
            header.append("label")
            columns.append([f"{value:.9g}" for value in labels])
            y = (labels.reshape(-1, 1) - target.mean) / target.deviation
            verdict = f"{len(X)} rows{goodness(y, found, target)}"
    # Outputs in (0, 1), or of a margin, are read as classes, anything else as numbers.
    elif target is not None or _of_classes(net):
        count = max(outputs.shape[1], 2)
        levels = datasets.numbered(count) if target is None else target.levels
        # The last, by which NO_CLASS counts, is the name of none.
        predicted = np.array([*levels, ""])[validation.predicted(outputs, net.cost.threshold)]
        names = None if labels is None else datasets.names_of(labels)
        header.append("class")
        columns.append(predicted if args.verbatim else _harmless(predicted, notes))
        if names is not None:
            header.append("label")
            columns.append(names if args.verbatim else _harmless(names, notes))
            verdict = f"accuracy: {np.mean(predicted == names):.4f} ({len(X)} rows)"
    if len(header) == 1 or args.outputs:
        header += [f"output_{j}" for j in range(outputs.shape[1])]
        columns += [[f"{value:.6g}" for value in column] for column in outputs.T]
    # What is not a prediction must not mix with predictions that are printed.
    beside = sys.stdout if args.out else sys.stderr
    print(f"device: {device_of(net)}", *notes, sep="\n", file=beside)
    if args.out:
        with refused_as_arguments(), open(args.out, "w", newline="", encoding="utf-8") as file:
            _write_csv(file, header, columns)
        print(f"written: {args.out}", file=beside)
    else:
        _write_csv(sys.stdout, header, columns)
        sys.stdout.flush()
    if verdict:
        print(verdict, file=beside)
    return 0


#: What begins a formula in a spreadsheet (OWASP, CSV Injection), and a number that does not.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_PLAIN_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", re.ASCII | re.IGNORECASE)


def _of_classes(net: Network) -> bool:
    return isinstance(net.cost, Hinge) or net.activations[-1].name in ("sigmoid", "softmax")


def _more_of_numbers(cost: Cost, outputs: np.ndarray, target: Number) -> dict[str, np.ndarray]:
    """What a cost tells of a number besides a prediction, by the names of columns."""
    outputs = outputs.astype(np.float64)
    if isinstance(cost, GaussianNLL):
        return {"deviation": target.deviation * cost.deviations(outputs)[:, 0]}
    if isinstance(cost, Quantile) and len(cost.constants) > 1:
        found = target.mean + target.deviation * outputs
        return {f"quantile_{q:g}": found[:, j] for j, q in enumerate(cost.constants)}
    return {}


def _harmless(names: np.ndarray, notes: list[str]) -> list[str]:
    """The names, none of which a spreadsheet takes for a formula."""
    cells = [
        f"'{name}" if _FORMULA.match(name) and not _PLAIN_NUMBER.fullmatch(name) else name
        for name in names.tolist()
    ]
    note = (
        "note: names that a spreadsheet would take for formulas have an apostrophe before them; "
        "--verbatim writes them as they are"
    )
    if cells != names.tolist() and note not in notes:
        notes.append(note)
    return cells


def _rows_to_predict(
    args: argparse.Namespace, path: str | None, net: Network
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """The network's inputs, what is known of its targets, and what to say about them."""
    preprocessing = net.preprocessing
    if preprocessing is not None and preprocessing.columns is not None:
        return _table_to_predict(args, path, preprocessing)
    if path is None:
        digits = datasets.load()
        what = "the {} rows of the handwritten digits that train keeps for validation"
        return digits.X_val, digits.y_val, [f"data: {what.format(len(digits.X_val))}"]
    table = datasets.read(path, scale=args.scale, features=net.sizes[0], max_bytes=args.max_bytes)
    X, y = (table.X, table.y) if table.test is None else table.test
    which = "" if table.test is None else "test "
    return X, y, [f"data: {table.description}: {len(X)} {which}rows; {table.scaled}"]


def _table_to_predict(
    args: argparse.Namespace, path: str | None, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    wanted = [column.name for column in preprocessing.columns or ()]
    if path is None or not tables.is_table(Path(path)):
        raise ValueError(
            f"the model takes a table (.csv, .tsv, .parquet) with the columns "
            f"{tables.listed(wanted)}; got {'no data' if path is None else path}"
        )
    if args.scale is not None:
        raise ValueError("--scale is not for this model, whose file says how to scale each column")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no data at {path}")
    budget = Budget(Path(path), args.max_bytes)
    frame = tables.read(Path(path), budget, args.header, wanted if preprocessing.header else ())
    budget.take(8 * len(frame) * preprocessing.width, "its columns, the categories one-hot,")
    X, remarks = preprocessing.transform(frame)
    notes = [f"data: {path}: {len(X)} rows", *(f"note: {remark}" for remark in remarks)]
    return X, preprocessing.labels(frame), notes


def _write_csv(file: Any, header: list[str], columns: Sequence[Any]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
