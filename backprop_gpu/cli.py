"""The command ``backprop-gpu``: train, predict, info, compile, bench.

Exit status: 0, or 1 where the work failed (training diverged, a kernel does not compile or takes
what it should not, a library could not be timed or got slower), 2 where an argument or a file it
names is wrong, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import __version__, activations, backends, costs, datasets, optimizers, planning
from .network import Network
from .threads import cores
from .training import Callback, History

if TYPE_CHECKING:
    from .compiler import KernelReport
    from .datasets import Dataset

HIDDEN = 30
EPOCHS = 60
BATCH_SIZE = 10

#: The output activation that goes with a cost where none is named. The quadratic cost's
#: collapsing partner is identity, but the book pairs it with sigmoid.
_OUTPUT = {"categorical_cross_entropy": "softmax", "poisson": "exponential"}


class ArgumentError(Exception):
    """An argument, or a file that it names, is wrong: one line for the user."""


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
    except (ValueError, TypeError, OSError) as error:
        raise ArgumentError(str(error)) from error


def _parser(name: str) -> Parser:
    parser = Parser(
        prog=name,
        description="Train fully connected networks by backpropagation, on a GPU or a CPU.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{name} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for add in (_add_train, _add_predict, _add_info, _add_compile, _add_bench):
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
        help="a folder of MNIST's IDX files, an .npz with X, y or "
        "x_train, y_train, x_test, y_test, or a .csv whose last column is the label; default: "
        "the digits, in a fixed random order because their last rows are by other writers",
    )
    option(
        "--validation",
        type=float,
        metavar="N",
        help="a share below 1, or a number, of the "
        "last rows to keep for validation; default 0.2, or the data's own test rows",
    )
    option(
        "--shuffle",
        action="store_true",
        help="put the rows in a random order (of --seed) "
        "before the last ones are kept: for files sorted by class",
    )
    option(
        "--targets",
        action="store_true",
        help="the labels are numbers to fit, also where they are whole (always with poisson)",
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
    option("--epochs", type=int, default=EPOCHS, metavar="N", help="default %(default)s")
    option("--batch-size", type=int, metavar="M", help=f"default {BATCH_SIZE}")
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
        help="of the initial weights and of the order of mini-batches; default %(default)s",
    )
    option(
        "--out",
        default=".",
        metavar="FOLDER",
        help="where model.safetensors and learning_curve.png go; default: here",
    )
    parser.set_defaults(run=_train)


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


def _train(args: argparse.Namespace) -> int:
    with _arguments():
        out = Path(args.out)
        if not args.explain:  # which writes nothing
            out.mkdir(parents=True, exist_ok=True)
            if not os.access(out, os.W_OK):
                raise PermissionError(f"cannot write to {out}")
        data = datasets.load(
            args.data,
            validation=args.validation,
            scale=args.scale,
            shuffle=args.seed if args.shuffle else None,
            targets=args.targets or args.cost == "poisson",
        )
    net = _network(args, data)
    optimizer = args.optimizer
    batch_size = min(BATCH_SIZE, len(data.X)) if args.batch_size is None else args.batch_size
    if args.explain:
        with _arguments():
            print(
                net.explain(
                    batch_size=batch_size, optimizer=optimizer, rows=len(data.X), epochs=args.epochs
                )
            )
        return 0
    rate = args.learning_rate
    if rate is None:
        rate = _default_rate(optimizer, net.cost.name, net.activations[-1].name)
    announce = _Announce(
        [
            f"data: {data.description}",
            f"network: {net!r}",
            f"training: {args.epochs} epochs, batch size {batch_size}, learning rate {rate:g}, "
            f"{optimizer}, seed {args.seed}",
        ]
    )
    status, message = 0, ""
    try:
        net.fit(
            data.X,
            data.y,
            epochs=args.epochs,
            batch_size=batch_size,
            learning_rate=rate,
            optimizer=optimizer,
            validation_data=(data.X_val, data.y_val),
            callbacks=[announce],
            progress=True,
        )
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except FloatingPointError as error:
        status, message = 1, str(error)
    except (ValueError, TypeError) as error:
        if announce.started:  # no argument's fault
            raise
        raise ArgumentError(str(error)) from error
    history = net.history
    epochs = 0 if history is None else len(history)
    if message:
        what = f"the model has the weights after epoch {epochs}" if epochs else "nothing is written"
        print(f"backprop-gpu train: {message}; {what}", file=sys.stderr)
    if history is None or not epochs:
        return status
    try:
        for path in _write(net, data, history, out):
            print(f"written: {path}")
    except OSError as error:
        print(f"backprop-gpu train: error: {error}", file=sys.stderr)
        return status or 1
    if history.val_accuracy and not np.isnan(history.val_accuracy[-1]):
        print(f"validation accuracy: {history.val_accuracy[-1]:.4f}")
    elif history.val_loss:
        print(f"validation loss: {history.val_loss[-1]:.6g}")
    return status


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
        return [int(part) for part in _split(values)]
    except ValueError:
        raise ArgumentError(
            f"{name} must be whole numbers such as 784,30,10, got {' '.join(values)!r}"
        ) from None


def _default_rate(optimizer: str, cost: str, output: str) -> float:
    bounded = output in ("sigmoid", "softmax")
    if optimizer in ("adam", "adamw"):
        return 0.003 if bounded else 0.001
    rate = 3.0 if cost == "quadratic" else 0.5
    if optimizer != "sgd":
        rate /= 10.0
    return rate if bounded else rate / 100.0


def _write(net: Network, data: Dataset, history: History, out: Path) -> Iterator[Path]:
    """The files of a training run, each named once it is there."""
    model = out / "model.safetensors"
    names = _names_file(model)
    # A stale list beside a new model would misname its outputs; the other way round is harmless.
    names.unlink(missing_ok=True)
    net.save(model)
    yield model
    if data.named:
        names.write_text(json.dumps(data.classes, ensure_ascii=False) + "\n", encoding="utf-8")
        yield names
    picture = out / "learning_curve.png"
    _draw(net, history, picture)
    yield picture


def _names_file(model: Path) -> Path:
    """Where the names of the classes stand if they are not 0, 1, 2, …"""
    return model.with_suffix(".classes.json")


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
        help="the class of every row, by a trained model",
        description="The class of every row, by a trained model, and the accuracy where the data "
        "has labels. Data that has test rows of its own is predicted on those.",
    )
    option = parser.add_argument
    option("--model", required=True, metavar="FILE", help="a model.safetensors of `train`")
    option(
        "--data",
        metavar="PATH",
        help="as for `train`; a .csv may lack the label column; "
        "default: the validation rows of the digits",
    )
    option("--out", metavar="FILE", help="a .csv file to write; default: print it")
    option("--outputs", action="store_true", help="also write the outputs a^L of the network")
    _add_scale(parser)
    _add_backend(parser)
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> int:
    try:
        with _arguments():
            net = Network.load(args.model, backend=args.backend)
            names = _class_names(Path(args.model), net.sizes[-1])
            X, y, what = _rows_to_predict(args, net.sizes[0])
            outputs = net.predict(X)
    except RuntimeError as error:  # a backend that is not usable here
        raise ArgumentError(str(error)) from error
    header: list[str] = ["row"]
    columns: list[Any] = [range(len(X))]
    labels = None if y is None else datasets.names_of(y)
    verdict = ""
    # Outputs in (0, 1) are read as classes, anything else as numbers.
    if net.activations[-1].name in ("sigmoid", "softmax"):
        single = outputs.shape[1] == 1
        numbers = (outputs[:, 0] >= 0.5).astype(int) if single else outputs.argmax(axis=1)
        predicted = np.array(names)[numbers]
        header.append("class")
        columns.append(predicted)
        if labels is not None:
            header.append("label")
            columns.append(labels)
            verdict = f"accuracy: {np.mean(predicted == labels):.4f} ({len(X)} rows)"
    if len(header) == 1 or args.outputs:
        header += [f"output_{j}" for j in range(outputs.shape[1])]
        columns += [[f"{value:.6g}" for value in column] for column in outputs.T]
    # What is not a prediction must not mix with predictions that are printed.
    notes = sys.stdout if args.out else sys.stderr
    print(f"device: {_device(net)}", f"data: {what}", sep="\n", file=notes)
    if args.out:
        with _arguments(), open(args.out, "w", newline="", encoding="utf-8") as file:
            _write_csv(file, header, columns)
        print(f"written: {args.out}", file=notes)
    else:
        _write_csv(sys.stdout, header, columns)
        sys.stdout.flush()
    if verdict:
        print(verdict, file=notes)
    return 0


def _rows_to_predict(
    args: argparse.Namespace, features: int
) -> tuple[np.ndarray, np.ndarray | None, str]:
    if args.data is None:
        digits = datasets.load()
        return (
            digits.X_val,
            digits.y_val,
            f"the {len(digits.X_val)} rows of scikit-learn's handwritten digits that train keeps "
            "for validation",
        )
    table = datasets.read(args.data, scale=args.scale, features=features)
    X, y = (table.X, table.y) if table.test is None else table.test
    which = "" if table.test is None else "test "
    return X, y, f"{table.description}: {len(X)} {which}rows; {table.scaled}"


def _class_names(model: Path, outputs: int) -> tuple[str, ...]:
    path, count = _names_file(model), max(outputs, 2)
    if not path.exists():
        return datasets.numbered(count)
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not (isinstance(names, list) and len(names) == count and all(map(_is_text, names))):
        raise ValueError(f"{path} must be a list of {count} names, one for each output")
    return tuple(names)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


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
    from . import compiler

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
