"""``backprop-gpu train``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from .. import activations, costs, optimizers, validation
from ..communicators import ALONE, Communicator, resolved
from ..datasets import Dataset
from ..errors import ArgumentError
from ..imports import require
from ..network import Network
from ..optimizers import Optimizer
from ..training import Callback, Checkpoint, EarlyStopping, History
from .arguments import (
    add_backend,
    add_data,
    add_max_bytes,
    add_table,
    integers,
    known,
    numbers,
    read_data,
    refused_as_arguments,
    split,
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
from .shown import device_of, goodness
from .weighted_validation import weighted_validation

CHECKPOINT = "checkpoint.safetensors"


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a network; without arguments on handwritten digits",
        description="Train a network, write the model and its learning curve. Without arguments: "
        "[64, 30, 10] on handwritten digits.",
    )
    option = parser.add_argument
    add_data(parser)
    option(
        "--sizes",
        nargs="+",
        metavar="N",
        help="neurons per layer, 784,30,10 or 784 30 10; "
        f"default: the data's features, {HIDDEN}, the data's classes",
    )
    option(
        "--activation",
        nargs="+",
        metavar="NAME",
        help="one name, or one per layer after the "
        f"input: {known(activations.names())}; default sigmoid, with softmax outputs for "
        "categorical_cross_entropy, exponential for poisson and identity for targets that are "
        "not classes",
    )
    option(
        "--cost",
        metavar="NAME",
        help=f"{known(costs.names())}, some with parameters, such as 'huber(delta=2.0)'; default "
        "binary_cross_entropy for classes, else quadratic",
    )
    option("--epochs", type=whole, default=EPOCHS, metavar="N", help="default %(default)s")
    option("--batch-size", type=whole, metavar="M", help=f"default {BATCH_SIZE}")
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
        help=f"{known(optimizers.names())}; default %(default)s",
    )
    option(
        "--l2",
        type=float,
        default=0.0,
        metavar="LAMBDA",
        help="the penalty ½ λ Σw² added to the cost; default none",
    )
    option(
        "--max-norm",
        type=float,
        metavar="NORM",
        help="scale the weights into a neuron down to this norm, after each step; default none",
    )
    option(
        "--dropout",
        nargs="+",
        metavar="RATE",
        help="the share of each hidden layer's activations that a step leaves out, or of one "
        "hidden layer after another, 0.2,0.5 or 0.2 0.5; default none",
    )
    option(
        "--class-weight",
        choices=("balanced",),
        help="let a row count by how rare its class is, so that all classes count alike",
    )
    option(
        "--patience",
        type=whole,
        metavar="N",
        help="stop when the validation loss has not fallen for N epochs, and keep the weights of "
        "the best one",
    )
    option(
        "--dtype", default="float32", metavar="NAME", help="float32 or float64; default %(default)s"
    )
    option(
        "--precision",
        metavar="NAME",
        help="what factors of products are rounded to, float32, tf32 or bf16; default the dtype",
    )
    option(
        "--explain",
        action="store_true",
        help="show what a step would run and why, with its operations, bytes and floor, and end",
    )
    add_backend(parser)
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
    option(
        "--checkpoint-every",
        type=whole,
        metavar="N",
        help="after every N epochs and the last, write all that the training needs to go on to "
        f"{CHECKPOINT} in --out; default: never, with --resume after each",
    )
    option(
        "--resume",
        action="store_true",
        help=f"go on from {CHECKPOINT} in --out, to the same bits as if never stopped; where "
        "there is none, start",
    )
    add_max_bytes(parser)
    add_table(parser)
    parser.set_defaults(run=_train)


class _Announce(Callback):
    """Device and plan, once `fit` has made it and before it trains; then the rest."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self.started = False

    def on_fit_start(self, network: Network) -> None:
        self.started = True
        print(f"device: {device_of(network)}", network.plan, *self.lines, sep="\n", flush=True)


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
    try:
        with resolved("none" if args.explain else "auto") as found:
            return _train_on(found or ALONE, found, args)
    except ImportError as error:  # of mpi4py
        raise ArgumentError(str(error)) from error


def _train_on(ranks: Communicator, given: Communicator | None, args: argparse.Namespace) -> int:
    """The command, on these ranks, if any are given."""
    try:
        out, optimizer, callbacks, data = ranks.agree(lambda: _read(args, ranks.rank == 0))
    except RuntimeError as error:  # another rank's
        raise ArgumentError(str(error)) from error
    resume_from = out / CHECKPOINT if args.resume and (out / CHECKPOINT).exists() else None
    net = _network(args, data)
    rates = _dropout(args, net)
    batch_size = min(BATCH_SIZE, len(data.X)) if args.batch_size is None else args.batch_size
    if args.explain:
        with refused_as_arguments():
            print(
                net.explain(
                    batch_size=batch_size,
                    optimizer=optimizer,
                    rows=len(data.X),
                    epochs=args.epochs,
                    dropout=rates or 0.0,
                )
            )
        return 0
    if args.standardize and fits_numbers(data, net.cost.name, net.activations[-1].name):
        with refused_as_arguments():
            data = data.standardize_target()
    net.preprocessing = data.preprocessing
    rate = args.learning_rate
    if rate is None:
        rate = default_rate(args.optimizer, net.cost.name, net.activations[-1].name)
    settings = [f"{args.epochs} epochs", f"batch size {batch_size}", f"learning rate {rate:g}"]
    settings += [args.optimizer] + ([f"l2 {args.l2:g}"] if args.l2 else [])
    settings += [] if args.max_norm is None else [f"max-norm {args.max_norm:g}"]
    settings += [f"dropout {' '.join(f'{each:g}' for each in rates)}"] if rates else []
    settings += [f"classes {args.class_weight}"] if args.class_weight else []
    settings += [f"seed {args.seed}"]
    settings += [] if args.patience is None else [f"patience {args.patience}"]
    settings += [] if resume_from is None else [f"resumed from {resume_from}"]
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
                    callbacks=[announce, *weighted_validation(data), *callbacks],
                    progress=True,
                    resume_from=resume_from,
                    communicator=given or "none",
                    sample_weight=data.weights,
                    class_weight=args.class_weight,
                    dropout=rates or 0.0,
                )
            finally:
                termination.waits = True  # until the files are written
        except KeyboardInterrupt:
            status, message = 130, "terminated" if termination.received else "interrupted"
        except FloatingPointError as error:
            status, message = 1, str(error)
        except OSError as error:  # of a checkpoint
            if not announce.started:
                raise ArgumentError(str(error)) from error
            status, message = 1, str(error)
        except (ValueError, TypeError, OverflowError, MemoryError):
            if announce.started:  # no argument's fault
                raise
            with refused_as_arguments():
                raise
        if ranks.rank == 0:
            status = _finish(net, data, out, status, message)
        return 143 if termination.received else status


def _read(
    args: argparse.Namespace, writes: bool
) -> tuple[Path, Optimizer, list[Callback], Dataset]:
    """What the arguments name. `writes`: the folder is made, if it is not there."""
    with refused_as_arguments():
        out = Path(args.out)
        if writes and not args.explain:  # which writes nothing
            out.mkdir(parents=True, exist_ok=True)
            if not os.access(out, os.W_OK):
                raise PermissionError(f"cannot write to {out}")
        optimizer = replace(optimizers.get(args.optimizer), l2=args.l2, max_norm=args.max_norm)
        callbacks: list[Callback] = []
        if args.patience is not None:
            callbacks.append(EarlyStopping(patience=args.patience))
        if args.checkpoint_every is not None or args.resume:
            every = 1 if args.checkpoint_every is None else args.checkpoint_every
            callbacks.append(Checkpoint(out / CHECKPOINT, every=every))
        return out, optimizer, callbacks, read_data(args, args.cost)


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
            found = net.cost.predictions(net.predict(data.X_val))
            fit = goodness(data.y_val, found, target, data.weights_val)
        print(f"validation loss: {loss:.6g}{fit}")
    return status


def _network(args: argparse.Namespace, data: Dataset) -> Network:
    with refused_as_arguments():
        optimizers.get(args.optimizer)
        cost = args.cost or default_cost(data)
        sizes = [data.X.shape[1], HIDDEN, costs.get(cost).outputs_of(data.n_outputs)]
        if args.sizes is not None:
            sizes = integers("--sizes", args.sizes)
            if len(sizes) >= 2 and sizes[0] != data.X.shape[1]:
                raise ValueError(
                    f"--sizes begins with {sizes[0]}, but the data has {data.X.shape[1]} features"
                )
        chosen: str | list[str] = default_activations(data, cost, len(sizes) - 1)
        if args.activation is not None:
            names = split(args.activation)
            chosen = names[0] if len(names) == 1 else names
    try:
        with refused_as_arguments():
            return Network(
                sizes,
                activation=chosen,
                cost=cost,
                dtype=args.dtype,
                precision=args.precision,
                backend=args.backend,
                seed=args.seed,
            )
    except RuntimeError as error:  # a backend that is not usable here
        raise ArgumentError(str(error)) from error


def _dropout(args: argparse.Namespace, net: Network) -> tuple[float, ...]:
    """Rates of the hidden layers; () where none drops out."""
    if args.dropout is None:
        return ()
    given = numbers("--dropout", args.dropout)
    with refused_as_arguments():
        return validation.dropout(given[0] if len(given) == 1 else given, len(net.sizes) - 2)


def _write(net: Network, history: History, out: Path) -> Iterator[Path]:
    """The files of a training run, each named once it is there."""
    model = out / "model.safetensors"
    net.save(model)
    yield model
    try:
        require("matplotlib", "plot", "no learning_curve.png")
    except ImportError as error:
        print(error)
        return
    picture = out / "learning_curve.png"
    draw(net, history, picture)
    yield picture


def draw(net: Network, history: History, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = 2 if np.isfinite(history.val_accuracy).any() else 1
    figure = Figure(figsize=(10.0 if count == 2 else 5.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    history.plot(axes)
    axes[0].set_ylabel(f"mean cost C ({net.cost.name.replace('_', ' ')})")
    names = [activation.name for activation in net.activations]
    shown = names[0] if len(set(names)) == 1 else ", ".join(names)
    figure.suptitle(
        f"{list(net.sizes)}, {shown}, {net.cost.name}, {net.backend} {net.dtype.name}", fontsize=11
    )
    figure.savefig(path, dpi=150)
