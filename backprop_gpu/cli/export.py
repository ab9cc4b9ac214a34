"""``backprop-gpu export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import formats
from ..errors import ArgumentError
from ..network import Network
from .arguments import refused_as_arguments, whole


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "export",
        allow_abbrev=False,
        usage="%(prog)s MODEL --out FILE [options]",
        help="a trained model as ONNX, or as a C header",
        description="Write a trained model for other programs. An .onnx takes the columns of a "
        "table as they are, and standardises them itself; a .h is C without any dependency, for "
        "one row at a time.",
    )
    option = parser.add_argument
    option("model", metavar="MODEL", help="a model.safetensors of `train`")
    option(
        "--out", required=True, metavar="FILE", help="what to write: an .onnx or a .h, by its name"
    )
    option("--opset", type=whole, metavar="N", help="of ONNX, from 13 on; default 17")
    option(
        "--no-preprocessing",
        dest="preprocessing",
        action="store_false",
        help="of a model for a table: ONNX that takes what stands behind the preprocessing",
    )
    option(
        "--name",
        metavar="NAME",
        help="of a .h: how its names begin; default network",
    )
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    suffix = Path(args.out).suffix.lower()
    suffix = ".h" if suffix == ".c" else suffix
    if suffix not in (".onnx", ".h"):
        raise ArgumentError(f"--out must end with .onnx or .h, got {args.out}")
    for option, given, of in (
        ("--opset", args.opset is not None, ".onnx"),
        ("--no-preprocessing", not args.preprocessing, ".onnx"),
        ("--name", args.name is not None, ".h"),
    ):
        if given and suffix != of:
            raise ArgumentError(f"{option} is for {of} files, and --out is {args.out}")
    with refused_as_arguments():
        net = Network.load(args.model, backend="numpy")
        if suffix == ".h":
            formats.to_c(net, args.out, name=args.name or "network")
            if net.preprocessing is not None:
                print("note: the header takes what stands behind the table's preprocessing")
        else:
            formats.to_onnx(net, args.out, opset=args.opset, preprocessing=args.preprocessing)
    print(f"written: {args.out}")
    return 0
