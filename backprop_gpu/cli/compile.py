"""``backprop-gpu compile``."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..cuda.compiler import KernelReport
from ..errors import ArgumentError
from .arguments import known, split


def add(commands: Any) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "compile",
        allow_abbrev=False,
        help="compile every kernel, no device needed, and report what each takes",
        description="Compile every CUDA C++ kernel into the cache, with no device present, and "
        "print what each takes of a multiprocessor: registers per thread, bytes of shared memory "
        "per block, bytes of stack and spills per thread, and, by the architecture's limits, the "
        "blocks that it holds at once, the share of its warps that they fill (occupancy) and what "
        "allows no more. Exits with 1 if a kernel spills registers, has a stack frame or does not "
        "fit.",
    )
    parser.add_argument(
        "--arch",
        action="append",
        metavar="sm_90a",
        help="an architecture, or several; may be repeated; default: every generation",
    )
    parser.set_defaults(run=_compile)


def _compile(args: argparse.Namespace) -> int:
    from ..cuda import compiler

    architectures = split(args.arch) if args.arch else list(compiler.ARCHITECTURES)
    for arch in architectures:
        if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
            raise ArgumentError(
                f"--arch takes names like sm_90a, got {arch!r}; "
                f"known: {known(compiler.ARCHITECTURES)}"
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
    """The faults of a kernel: spills, stack, no fit."""
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
