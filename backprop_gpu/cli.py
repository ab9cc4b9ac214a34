"""The command ``backprop-gpu``: train, predict, info, compile, check, bench.

Exit status: 0, or 1 where the work failed (training diverged, a kernel does not compile or takes
what it should not, a check failed, a library could not be timed or got slower), 2 where an argument
or a file it names is wrong, 130 after Ctrl-C, 143 where `train` was told to end by SIGTERM.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import platform
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import (
    __version__,
    activations,
    backends,
    costs,
    datasets,
    optimizers,
    planning,
    tables,
    validation,
)  # fmt: skip
from .arguments import ArgumentError
from .files import write_whole
from .network import Network
from .preprocessing import Category, Number, Options, Preprocessing
from .reading import MAX_BYTES, Budget
from .threads import cores
from .training import Callback, EarlyStopping, History

if TYPE_CHECKING:
    from .cuda.compiler import KernelReport
    from .datasets import Dataset

HIDDEN = 30
EPOCHS = 60
BATCH_SIZE = 10

#: The output activation that goes with a cost where none is named. The quadratic cost's
#: collapsing partner is identity, but the book pairs it with sigmoid.
_OUTPUT = {"categorical_cross_entropy": "softmax", "poisson": "exponential"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} ({self.prog} --help shows what there is)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or with those of the process."""
    name = "backprop-gpu"
    try:
        args = _parser(name).parse_args(argv)
        name = f"{name} {args.command}"
        return int(args.run(args))
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    except ArgumentError as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


@contextmanager
def _arguments() -> Iterator[None]:
    """What the package refuses in here was asked for on the command line."""
    try:
        yield
    except (ValueError, TypeError, OSError, OverflowError) as error:
        raise ArgumentError(str(error)) from error
    except MemoryError as error:
        raise ArgumentError(f"not enough memory: {error}") from error


def _parser(name: str) -> Parser:
    parser = Parser(
        prog=name,
        description="Train fully connected networks by backpropagation, on a GPU or a CPU.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{name} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for add in (_add_train, _add_predict, _add_info, _add_compile, _add_check, _add_bench):
        add(commands)
    return parser


def _add_bench(commands: Any) -> None:
    from .benchmarks import cli as bench

    bench.add(commands)


def _known(names: Sequence[str]) -> str:
    return ", ".join(names)


# -- train ----------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a network; without arguments on scikit-learn's handwritten digits",
        description="Train a network, write the model and its learning curve. Without arguments: "
        "[64, 30, 10] on scikit-learn's handwritten digits.",
    )
    option = parser.add_argument
    option(
        "--data",
        metavar="PATH",
        help="a table (.csv, .tsv or .parquet, see below), a folder of MNIST's IDX files, or an "
        ".npz with X, y or x_train, y_train, x_test, y_test; default: the digits, in a fixed "
        "random order because their last rows are by other writers",
    )
    option(
        "--task",
        choices=("classification", "regression"),
        help="whether the labels are classes or numbers to fit; default: texts are classes, and "
        "so are whole numbers of which each comes often enough; with poisson, numbers",
    )
    # Its name before there was --task.
    option(
        "--targets", action="store_const", const="regression", dest="task", help=argparse.SUPPRESS
    )
    option(
        "--validation",
        type=float,
        metavar="N",
        help="a share below 1, or a number, of the "
        "rows to keep for validation; default 0.2, or the data's own test rows",
    )
    option(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        help="take the rows for validation at random (by --seed), of each class its share; "
        "default for all but the digits. --no-shuffle: take the last rows",
    )
    _add_scale(parser)
    option(
        "--sizes",
        nargs="+",
        metavar="N",
        help="neurons a layer, 784,30,10 or 784 30 10; "
        f"default: the data's features, {HIDDEN}, the data's classes",
    )
    option(
        "--activation",
        nargs="+",
        metavar="NAME",
        help="one name, or one a layer after the "
        f"input: {_known(activations.names())}; default sigmoid, with softmax outputs for "
        "categorical_cross_entropy, exponential for poisson and identity for targets that are "
        "not classes",
    )
    option(
        "--cost",
        metavar="NAME",
        help=f"{_known(costs.names())}; default binary_cross_entropy for classes, else quadratic",
    )
    option("--epochs", type=_whole, default=EPOCHS, metavar="N", help="default %(default)s")
    option("--batch-size", type=_whole, metavar="M", help=f"default {BATCH_SIZE}")
    option(
        "--learning-rate",
        type=float,
        metavar="ETA",
        help="default, for bounded outputs: 0.5 "
        "(quadratic cost: 3), a tenth of it with momentum, 0.003 with adam and adamw; for "
        "others a hundredth of these, and 0.001",
    )
    option(
        "--optimizer",
        default="sgd",
        metavar="NAME",
        help=f"{_known(optimizers.names())}; default %(default)s",
    )
    option(
        "--l2",
        type=float,
        default=0.0,
        metavar="LAMBDA",
        help="the penalty ½ λ Σw² added to the cost; default none",
    )
    option(
        "--patience",
        type=_whole,
        metavar="N",
        help="stop when the validation loss has not fallen for N epochs, and keep the weights of "
        "the best one",
    )
    option(
        "--dtype", default="float32", metavar="NAME", help="float32 or float64; default %(default)s"
    )
    option(
        "--explain",
        action="store_true",
        help="show what a step would run and why, with its operations, bytes and floor, and end",
    )
    _add_backend(parser)
    option(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the initial weights, of the order of mini-batches and of the rows kept for "
        "validation; default %(default)s",
    )
    option(
        "--out",
        default=".",
        metavar="FOLDER",
        help="where model.safetensors and learning_curve.png go; default: here",
    )
    _add_max_bytes(parser)
    table = parser.add_argument_group(
        "tables (.csv, .tsv, .parquet)",
        "Columns are called by their name, or by their number, counted from 1. Texts become "
        "one-hot, numbers get mean 0 and deviation 1, and so does a target that is numbers; the "
        "model file keeps it all, and predict applies it.",
    )
    option = table.add_argument
    option("--target", metavar="COLUMN", help="what to predict; default: the last column")
    option("--drop", nargs="+", default=[], metavar="COLUMN", help="leave out these columns")
    option(
        "--keep",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="use these although they only count the rows",
    )
    option(
        "--categories",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="take the numbers in these columns as names",
    )
    option(
        "--impute",
        action="store_true",
        help="fill missing cells with the mean of their column, or its most frequent text; "
        "default: they are an error",
    )
    option(
        "--no-standardize",
        dest="standardize",
        action="store_false",
        help="take numbers as they are (--scale multiplies them, in place of standardising)",
    )
    _add_header(table)
    parser.set_defaults(run=_train)


def _add_header(parser: Any) -> None:
    parser.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line has the names of the columns; default: found out",
    )


def _add_max_bytes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bytes",
        type=_bytes,
        default=MAX_BYTES,
        metavar="N",
        help="refuse data that would take more memory, 500M or 4G; default 1G",
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of bytes, such as 4G")
    return int(match[1]) * 1024 ** " KMGT".index(match[2] or " ")


def _add_backend(parser: argparse.ArgumentParser) -> None:
    names = _known(("auto", *backends.names()))
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help=f"{names}; default %(default)s"
    )


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale",
        type=_fraction,
        metavar="FACTOR",
        help="multiply the features by it, 0.1 or 1/255; default 1/255 for uint8, else 1",
    )


def _whole(text: str) -> int:
    """A whole number that NumPy can count to."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
    if abs(value) > sys.maxsize:
        raise argparse.ArgumentTypeError(f"must be at most {sys.maxsize}")
    return value


def _fraction(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if not np.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.1 or 1/255")
    return value


class _Announce(Callback):
    """Device and plan, once `fit` has made it and before it trains; then the rest."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self.started = False

    def on_fit_start(self, network: Network) -> None:
        self.started = True
        print(f"device: {_device(network)}", network.plan, *self.lines, sep="\n", flush=True)


class _Termination:
    """Makes SIGTERM end training as Ctrl-C does; once `waits` is true it is only noted."""

    def __init__(self) -> None:
        self.received = self.waits = False

    def __enter__(self) -> _Termination:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:  # which alone hears signals
            self.before = signal.signal(signal.SIGTERM, self.hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if not self.waits:
            self.waits = True
            raise KeyboardInterrupt


def _train(args: argparse.Namespace) -> int:
    with _arguments():
        out = Path(args.out)
        if not args.explain:  # which writes nothing
            out.mkdir(parents=True, exist_ok=True)
            if not os.access(out, os.W_OK):
                raise PermissionError(f"cannot write to {out}")
        optimizer = replace(optimizers.get(args.optimizer), l2=args.l2)
        callbacks: list[Callback] = []
        if args.patience is not None:
            callbacks.append(EarlyStopping(patience=args.patience))
        data = _data(args)
    net = _network(args, data)
    batch_size = min(BATCH_SIZE, len(data.X)) if args.batch_size is None else args.batch_size
    if args.explain:
        with _arguments():
            print(
                net.explain(
                    batch_size=batch_size, optimizer=optimizer, rows=len(data.X), epochs=args.epochs
                )
            )
        return 0
    if args.standardize and _fits_numbers(net, data):
        with _arguments():
            data = data.standardize_target()
    net.preprocessing = data.preprocessing
    rate = args.learning_rate
    if rate is None:
        rate = _default_rate(args.optimizer, net.cost.name, net.activations[-1].name)
    settings = [f"{args.epochs} epochs", f"batch size {batch_size}", f"learning rate {rate:g}"]
    settings += [args.optimizer] + ([f"l2 {args.l2:g}"] if args.l2 else [])
    settings += [f"seed {args.seed}"]
    settings += [] if args.patience is None else [f"patience {args.patience}"]
    announce = _Announce(
        [
            f"data: {data.description}",
            f"network: {net!r}",
            f"training: {', '.join(settings)}",
        ]
    )
    status, message = 0, ""
    with _Termination() as termination:
        try:
            try:
                net.fit(
                    data.X,
                    data.y,
                    epochs=args.epochs,
                    batch_size=batch_size,
                    learning_rate=rate,
                    optimizer=optimizer,
                    validation_data=(data.X_val, data.y_val),
                    callbacks=[announce, *callbacks],
                    progress=True,
                )
            finally:
                termination.waits = True  # until the files are written
        except KeyboardInterrupt:
            status, message = 130, "terminated" if termination.received else "interrupted"
        except FloatingPointError as error:
            status, message = 1, str(error)
        except (ValueError, TypeError, OverflowError, MemoryError):
            if announce.started:  # no argument's fault
                raise
            with _arguments():
                raise
        status = _finish(net, data, out, status, message)
        return 143 if termination.received else status


def _finish(net: Network, data: Dataset, out: Path, status: int, message: str) -> int:
    """Write what training has made and say how good it is; the exit status."""
    history = net.history
    epochs = 0 if history is None else len(history)
    if message:
        what = "nothing is written"
        if history is not None and epochs:
            best = epochs if history.restored is None else history.restored + 1
            what = f"the model has the weights after epoch {best}"
        print(f"backprop-gpu train: {message}; {what}", file=sys.stderr)
    if history is None or not epochs:
        return status
    if not message and history.restored is not None:
        print(f"the model has the weights after epoch {history.restored + 1} of {epochs}")
    try:
        for path in _write(net, history, out):
            print(f"written: {path}")
    except OSError as error:
        print(f"backprop-gpu train: error: {error}", file=sys.stderr)
        return status or 1
    accuracy, loss = history.final("val_accuracy"), history.final("val_loss")
    if data.classes is not None and not np.isnan(accuracy):
        print(f"validation accuracy: {accuracy:.4f}")
    elif history.val_loss:
        fit = ""
        if data.classes is None:
            target = data.preprocessing.target if data.preprocessing else None
            fit = _goodness(data.y_val, net.predict(data.X_val), target)
        print(f"validation loss: {loss:.6g}{fit}")
    return status


def _goodness(y: np.ndarray, outputs: np.ndarray, target: Number | Category | None) -> str:
    """How well numbers are met: in their own units, and beside their mean as a guess."""
    from sklearn.metrics import r2_score

    if len(y) < 2:
        return ""
    unit = target.deviation if isinstance(target, Number) else 1.0
    error = unit * float(np.sqrt(np.mean((y - outputs) ** 2)))
    r2 = float(r2_score(y, outputs))
    worse = ", no better than to guess their mean" if r2 <= 0.0 else ""
    return f", R² {r2:.4f}{worse}, root mean square error {error:.6g}"


def _data(args: argparse.Namespace) -> Dataset:
    shuffle = args.data is not None if args.shuffle is None else args.shuffle
    return datasets.load(
        args.data,
        validation=args.validation,
        scale=args.scale,
        shuffle=args.seed if shuffle else None,
        task="regression" if args.cost == "poisson" else args.task,
        table=Options(
            args.target,
            args.drop,
            args.keep,
            args.categories,
            args.impute,
            args.standardize,
            args.header,
        ),
        max_bytes=args.max_bytes,
    )


def _fits_numbers(net: Network, data: Dataset) -> bool:
    """Whether the target is a table's column of numbers, which outputs without bounds fit."""
    target = data.preprocessing.target if data.preprocessing else None
    output = net.activations[-1].name
    return isinstance(target, Number) and (net.cost.name, output) == ("quadratic", "identity")


def _network(args: argparse.Namespace, data: Dataset) -> Network:
    with _arguments():
        optimizers.get(args.optimizer)
        cost = args.cost or ("quadratic" if data.classes is None else "binary_cross_entropy")
        costs.get(cost)
        sizes = [data.X.shape[1], HIDDEN, data.n_outputs]
        if args.sizes is not None:
            sizes = _integers("--sizes", args.sizes)
            if len(sizes) >= 2 and sizes[0] != data.X.shape[1]:
                raise ValueError(
                    f"--sizes begins with {sizes[0]}, but the data has {data.X.shape[1]} features"
                )
        hidden, layers = "sigmoid", max(len(sizes) - 1, 1)
        output = _OUTPUT.get(cost, "identity" if data.classes is None else "sigmoid")
        chosen: str | list[str] = [hidden] * (layers - 1) + [output]
        if args.activation is not None:
            names = _split(args.activation)
            chosen = names[0] if len(names) == 1 else names
    try:
        with _arguments():
            return Network(
                sizes,
                activation=chosen,
                cost=cost,
                dtype=args.dtype,
                backend=args.backend,
                seed=args.seed,
            )
    except RuntimeError as error:  # a backend that is not usable here
        raise ArgumentError(str(error)) from error


def _split(values: Sequence[str]) -> list[str]:
    return [part for part in re.split(r"[,\s]+", ",".join(values)) if part]


def _integers(name: str, values: Sequence[str]) -> list[int]:
    try:
        return [_whole(part) for part in _split(values)]
    except argparse.ArgumentTypeError as error:
        raise ArgumentError(f"{name} must be whole numbers such as 784,30,10: {error}") from None


def _default_rate(optimizer: str, cost: str, output: str) -> float:
    bounded = output in ("sigmoid", "softmax")
    if optimizer in ("adam", "adamw"):
        return 0.003 if bounded else 0.001
    rate = 3.0 if cost == "quadratic" else 0.5
    if optimizer != "sgd":
        rate /= 10.0
    return rate if bounded else rate / 100.0


def _write(net: Network, history: History, out: Path) -> Iterator[Path]:
    """The files of a training run, each named once it is there."""
    model = out / "model.safetensors"
    net.save(model)
    yield model
    picture = out / "learning_curve.png"
    _draw(net, history, picture)
    yield picture


def _draw(net: Network, history: History, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    classes = not np.isnan(history.val_accuracy).any()
    figure = Figure(figsize=(10.0 if classes else 5.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(1, 2 if classes else 1, squeeze=False)[0])

    def line(axis: Any, values: Sequence[float], color: str, label: str) -> None:
        marker = "o" if len(values) < 3 else None
        axis.plot(
            range(1, len(values) + 1),
            values,
            color=color,
            label=label,
            marker=marker,
            linewidth=1.8,
        )

    line(axes[0], history.loss, "#1f5fa8", "training, during the epoch")
    line(axes[0], history.val_loss, "#d1602b", "validation, after it")
    axes[0].set_ylabel(f"mean cost ({net.cost.name.replace('_', ' ')})")
    axes[0].set_ylim(bottom=min(0.0, *history.loss, *history.val_loss))
    axes[0].legend(frameon=False)
    if classes and history.val_accuracy:
        values = history.val_accuracy
        line(axes[1], values, "#2a8050", "validation")
        axes[1].set_ylabel("validation accuracy")
        axes[1].annotate(
            f"{values[-1]:.4f}",
            (len(values), values[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            color="#2a8050",
        )
        axes[1].set_ylim(top=1.0)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    names = [activation.name for activation in net.activations]
    shown = names[0] if len(set(names)) == 1 else ", ".join(names)
    figure.suptitle(
        f"{list(net.sizes)}, {shown}, {net.cost.name}, {net.backend} {net.dtype.name}", fontsize=11
    )
    figure.savefig(path, dpi=150)


def _device(network: Network) -> str:
    device = getattr(network._backend, "device", None)
    if isinstance(device, planning.Device):
        major, minor = device.compute_capability
        return (
            f"{device.name}, compute capability {major}.{minor}, "
            f"{device.multiprocessors} multiprocessors"
        )
    return _cpu()


def _cpu() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(
                (line.partition(":")[2].strip() for line in file if line.startswith("model name")),
                name,
            )
    except OSError:
        pass
    count = cores()
    return f"CPU ({name}, {count} core{'' if count == 1 else 's'})"


# -- predict --------------------------------------------------------------------------


def _add_predict(commands: Any) -> None:
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
    _add_scale(parser)
    _add_header(parser)
    _add_max_bytes(parser)
    _add_backend(parser)
    parser.set_defaults(run=_predict)


def _model_and_data(args: argparse.Namespace) -> tuple[str, str | None]:
    """Each by position or by its option."""
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
        with _arguments():
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
        predicted = target.mean + target.deviation * outputs[:, 0].astype(np.float64)
        columns.append([f"{value:.9g}" for value in predicted])
        if labels is not None:
            header.append("label")
            columns.append([f"{value:.9g}" for value in labels])
            y = (labels.reshape(-1, 1) - target.mean) / target.deviation
            verdict = f"{len(X)} rows{_goodness(y, outputs, target)}"
    # Outputs in (0, 1) are read as classes, anything else as numbers.
    elif target is not None or net.activations[-1].name in ("sigmoid", "softmax"):
        count = max(outputs.shape[1], 2)
        levels = datasets.numbered(count) if target is None else target.levels
        # The last, by which NO_CLASS counts, is the name of none.
        predicted = np.array([*levels, ""])[validation.predicted(outputs)]
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
    print(f"device: {_device(net)}", *notes, sep="\n", file=beside)
    if args.out:
        with _arguments(), open(args.out, "w", newline="", encoding="utf-8") as file:
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
        what = "the {} rows of scikit-learn's handwritten digits that train keeps for validation"
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


# -- info -----------------------------------------------------------------------------

#: What is looked up: a title and the names of distributions that may provide it.
_PACKAGES = (
    ("numpy", ("numpy",)),
    ("cupy", ("cupy", "cupy-cuda13x", "cupy-cuda12x")),
    ("numba", ("numba",)),
    ("numba-cuda", ("numba-cuda",)),
    ("cuda.core", ("cuda-core",)),
    ("nvrtc", ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")),
    ("safetensors", ("safetensors",)),
)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        allow_abbrev=False,
        help="versions, devices, and which backend is used and why",
        description="Versions, devices, which backends can be used here and which one is taken.",
    )
    parser.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> int:
    version, devices = _driver()
    rows = [
        ("backprop_gpu", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((title, _version(names)) for title, names in _PACKAGES),
        ("CUDA driver", version),
    ]
    _print_aligned(rows)
    print("devices")
    _print_aligned([("CPU", _cpu()[5:-1]), *devices], "  ")
    print("backends")
    obstacles = {name: _obstacle(name) for name in backends.names()}
    _print_aligned(
        [
            (name, "usable" if obstacle is None else f"not usable: {obstacle}")
            for name, obstacle in obstacles.items()
        ],
        "  ",
    )
    choice = planning.choose_backend("auto", obstacles)
    print(f"backend auto takes {choice.backend}: {choice.reason}")
    return 0


def _print_aligned(rows: Sequence[tuple[str, str]], indent: str = "") -> None:
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        print(f"{indent}{title:<{width}}  {text}")


def _version(names: Sequence[str]) -> str:
    for name in names:
        try:
            return metadata.version(name) + ("" if name == names[0] else f" ({name})")
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _obstacle(name: str) -> str | None:
    try:
        return backends.Obstacles()[name]
    except Exception as error:  # an installation may be broken in any way; say so and go on
        return f"{type(error).__name__}: {error}"


_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute


def _driver() -> tuple[str, list[tuple[str, str]]]:
    """The driver's CUDA version and its devices, asked of the driver itself: this needs no
    package and creates no context."""
    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return f"not found (no {library})", []
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = f"supports CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    if status := cuda.cuInit(0):
        return f"{version}, but cuInit fails with error {status}", []
    cuda.cuDeviceGetCount(ctypes.byref(number))
    return version, [(f"GPU {i}", _gpu(cuda, i)) for i in range(number.value)]


def _gpu(cuda: Any, index: int) -> str:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    status = cuda.cuDeviceGet(ctypes.byref(device), index)
    status = status or cuda.cuDeviceGetName(name, len(name), device)
    status = status or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    if status:
        return f"cannot be asked: error {status}"

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    return (
        f"{name.value.decode(errors='replace')}, compute capability "
        f"{attribute(_MAJOR)}.{attribute(_MINOR)}, {attribute(_MULTIPROCESSORS)} multiprocessors, "
        f"{memory.value / 2**30:.1f} GiB"
    )


# -- compile --------------------------------------------------------------------------


def _add_compile(commands: Any) -> None:
    parser = commands.add_parser(
        "compile",
        allow_abbrev=False,
        help="compile every kernel, no device needed, and report what each takes",
        description="Compile every CUDA C++ kernel into the cache, with no device present, and "
        "print what each takes of a multiprocessor: registers a thread, bytes of shared memory a "
        "block, bytes of stack and spills a thread, and, by the architecture's limits, the blocks "
        "that it holds at once, the share of its warps that they fill (occupancy) and what allows "
        "no more. Exits with 1 if a kernel spills registers, has a stack frame or does not fit.",
    )
    parser.add_argument(
        "--arch",
        action="append",
        metavar="sm_90a",
        help="an architecture, or several; may be repeated; default: every generation",
    )
    parser.set_defaults(run=_compile)


def _compile(args: argparse.Namespace) -> int:
    from .cuda import compiler

    architectures = _split(args.arch) if args.arch else list(compiler.ARCHITECTURES)
    for arch in architectures:
        if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
            raise ArgumentError(
                f"--arch must be such as sm_90a, got {arch!r}; "
                f"known: {_known(compiler.ARCHITECTURES)}"
            )
    start = time.perf_counter()
    reports: list[KernelReport] = []
    print(_LEDGER.format(*_LEDGER_HEAD))
    try:
        for arch in architectures:
            for report in compiler.compile_all(arch):
                reports.append(report)
                print(_ledger_line(report), flush=True)
    except ImportError as error:  # its message says how to install the compiler
        raise ArgumentError(str(error)) from error
    except RuntimeError as error:
        print(f"backprop-gpu compile: error: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - start
    by_arch = {arch: [r for r in reports if r.arch == arch] for arch in architectures}
    registers = (f"{arch} {max(r.registers for r in some)}" for arch, some in by_arch.items())
    print(f"most registers: {', '.join(registers)}")
    lowest = (f"{arch} {_least_occupancy(some)}" for arch, some in by_arch.items())
    print(f"least occupancy (kernels): {', '.join(lowest)}")
    faults = Counter(fault for report in reports for fault in _faults(report))
    verdict = ", ".join(f"{n} with {fault}" for fault, n in faults.items())
    print(
        f"{len(reports)} kernels compiled in {seconds:.1f} s; "
        + (verdict or "none with spills, a stack frame or too large a block")
    )
    return 1 if faults else 0


_LEDGER = "{:<8}{:>7} {:>4} {:>6} {:>5} {:>6} {:>6} {:>4} {:<6} {}"
_LEDGER_HEAD = (
    "arch", "threads", "regs", "shared", "stack", "spills", "blocks", "occ.", "limit", "kernel",
)  # fmt: skip
_LEDGER_LIMITS = {"registers": "regs", "shared memory": "shared"}


def _ledger_line(report: KernelReport) -> str:
    held = report.occupancy
    occupancy: tuple[object, ...] = ("?", "?", "?")  # an architecture whose limits are not known
    if held is not None:
        limit = _LEDGER_LIMITS.get(held.limit, held.limit)
        occupancy = (held.blocks, f"{held.share:.0%}", limit)
    taken = (report.threads, report.registers, report.shared_memory, report.stack, report.spills)
    line = _LEDGER.format(report.arch, *taken, *occupancy, report.kernel)
    faults = _faults(report)
    return f"{line}  <-- {', '.join(faults)}" if faults else line


def _faults(report: KernelReport) -> list[str]:
    """What a kernel must not have."""
    found = {
        "spills": report.spills > 0,
        "a stack frame": report.stack > 0,
        "too large a block": report.occupancy is not None and report.occupancy.blocks == 0,
    }
    return [fault for fault, there in found.items() if there]


def _least_occupancy(reports: Sequence[KernelReport]) -> str:
    """The lowest share of warps, and how many kernels have it."""
    shares = [report.occupancy.share for report in reports if report.occupancy is not None]
    return f"{min(shares):.0%} ({shares.count(min(shares))})" if shares else "?"


# -- check ----------------------------------------------------------------------------


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="run every kernel and engine beside NumPy, and write a report",
        description="Run every CUDA kernel, and every engine in each of its forms, in float32 and "
        "float64, on the GPU that is there, and compare with NumPy in float64. Exits with 1 if "
        "one is wrong. The engines' verdicts replace those that the library has kept.",
    )
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="run on the CPU, beneath a driver of our own: it needs g++ and no GPU",
    )
    parser.add_argument("--card", help="of the stand-in: H100 (default), A100, RTX 4090 or T4")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path("backprop-gpu-check.json"),
        help="the report; default: %(default)s",
    )
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from . import kernel_checks, self_check, testing
    from .cuda import runtime

    if args.card is not None and not args.stand_in:
        raise ArgumentError("--card is of a stand-in: give --stand-in, too")
    if args.stand_in:
        try:
            with _arguments():
                testing.start(args.card or "H100")
        except (ImportError, RuntimeError) as error:
            raise ArgumentError(str(error)) from error
    obstacle = _obstacle("cuda")
    if obstacle is not None:
        raise ArgumentError(f"{obstacle}; --stand-in runs the check without a GPU")
    device = runtime.current()
    print(f"{device.device.name}, {__version__}")
    width = 54
    print(f"{'':{width}}{'dtype':9}{'error':>9}{'bound':>9}")
    found, start = [], time.perf_counter()
    for dtype in ("float32", "float64"):
        for result in kernel_checks.results(device, dtype):
            found.append(result)
            verdict = "ok" if result.ok else f"FAILED {result.trouble or ''}".rstrip()
            numbers = f"{result.error:9.1e}{result.bound:9.1e}"
            print(f"{result.name:{width}}{dtype:9}{numbers}  {verdict}", flush=True)
    failed = [result for result in found if not result.ok]
    report = {
        "facts": self_check.facts(device),
        "python": f"{platform.python_version()} on {platform.platform()}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "gpu": asdict(device.device),
        "results": [{**asdict(r), "error": str(r.error), "ok": r.ok} for r in found],
    }
    with _arguments():
        write_whole(args.out, (json.dumps(report, indent=1) + "\n").encode())
    print(
        f"{len(found)} checks in {time.perf_counter() - start:.1f} s, "
        f"{f'{len(failed)} FAILED' if failed else 'all ok'}; {args.out} has the report"
    )
    return 1 if failed else 0
