"""The command ``backprop-gpu``: train, sweep, predict, export, import, info, compile, check, bench.

Exit status: 0, or 1 where the work failed (training diverged, a kernel does not compile or takes
what it should not, a check failed, a library could not be timed or got slower), 2 where an argument
or a file it names is wrong, 130 after Ctrl-C, 143 where `train` was told to end by SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from ..benchmarks import cli as bench
from ..communicators import launched_rank
from ..errors import ArgumentError
from ..version import __version__
from . import check, compile, export, import_, info, predict, sweep, train
from .arguments import Parser

_FIRST_STEPS = f"""\
backprop_gpu {__version__} trains fully connected networks by backpropagation, on a GPU or a CPU.

  backprop-gpu info                              what is here, and which backend is taken
  backprop-gpu train                             train on handwritten digits, in a second
  backprop-gpu train --data rows.csv             on a table of yours; the last column is the target
  backprop-gpu predict model.safetensors rows.csv
  backprop-gpu --help                            all commands; each has a --help of its own

In Python: from backprop_gpu import Network; help(Network)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or with those of the process.

    Parameters
    ----------
    argv : sequence of str, optional
        In place of those of the process.

    Returns
    -------
    int
        The exit status, as the module's documentation lists it.
    """
    name = "backprop-gpu"
    if not launched_rank():
        return _run(name, argv)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return _run(name, argv)  # the first rank of an MPI job speaks for all


def _run(name: str, argv: Sequence[str] | None) -> int:
    if not (sys.argv[1:] if argv is None else argv):
        print(_FIRST_STEPS)
        return 0
    try:
        args = _parser(name).parse_args(argv)
        name = f"{name} {args.command}"
        return int(args.run(args))
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    except ArgumentError as error:
        if not launched_rank():
            print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not launched_rank():
            print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(name: str) -> Parser:
    parser = Parser(
        prog=name,
        description="Train fully connected networks by backpropagation, on a GPU or a CPU.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{name} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for command in (train, sweep, predict, export, import_, info, compile, check, bench):
        command.add(commands)
    return parser
