"""``backprop-gpu import``."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

from .. import costs, formats
from ..errors import ArgumentError
from .arguments import known, refused_as_arguments


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "import",
        allow_abbrev=False,
        usage="%(prog)s FILE --out MODEL [options]",
        help="a model of ONNX's or Keras' for predict",
        description="Read a chain of dense layers from ONNX or a file of Keras'; nothing in it is "
        "executed. Other layers are refused, by their names.",
    )
    option = parser.add_argument
    option("file", metavar="FILE", help="an .onnx, a .keras or an .h5, by its name")
    option("--out", required=True, metavar="MODEL", help="the model.safetensors to write")
    option("--output", metavar="NAME", help="of ONNX: which output; default: the first of numbers")
    option(
        "--cost",
        metavar="NAME",
        help=f"{known(costs.names())}; default: that which suits the last activation",
    )
    parser.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> int:
    suffix = Path(args.file).suffix.lower()
    if suffix not in (".onnx", ".keras", ".h5", ".hdf5"):
        raise ArgumentError(f"FILE must end with .onnx, .keras or .h5, got {args.file}")
    if args.output is not None and suffix != ".onnx":
        raise ArgumentError(f"--output is for .onnx files, and FILE is {args.file}")
    with refused_as_arguments(), warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always", UserWarning)
        if suffix == ".onnx":
            net = formats.from_onnx(args.file, output=args.output, cost=args.cost, backend="numpy")
        else:
            net = formats.from_keras(args.file, cost=args.cost, backend="numpy")
        net.save(args.out)
    layers = ", ".join(
        f"{n} {sigma.name}" for n, sigma in zip(net.sizes[1:], net.activations, strict=True)
    )
    print(f"network: {net.sizes[0]} inputs, {layers}; cost {net.cost.name}, {net.dtype.name}")
    print(f"written: {args.out}")
    for note in noted:
        print(f"note: {note.message}")
    return 0
