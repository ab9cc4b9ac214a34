"""``backprop-gpu check``."""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..files import write_whole
from ..version import __version__
from .arguments import refused_as_arguments
from .shown import obstacle_of


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
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
    from .. import kernel_checks, self_check, testing
    from ..cuda import runtime

    if args.card is not None and not args.stand_in:
        raise ArgumentError("--card names a card of the stand-in: add --stand-in")
    if args.stand_in:
        try:
            with refused_as_arguments():
                testing.start(args.card or "H100")
        except (ImportError, RuntimeError) as error:
            raise ArgumentError(str(error)) from error
    obstacle = obstacle_of("cuda")
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
    with refused_as_arguments():
        write_whole(args.out, (json.dumps(report, indent=1) + "\n").encode())
    print(
        f"{len(found)} checks in {time.perf_counter() - start:.1f} s, "
        f"{f'{len(failed)} FAILED' if failed else 'all ok'}; {args.out} has the report"
    )
    return 1 if failed else 0
