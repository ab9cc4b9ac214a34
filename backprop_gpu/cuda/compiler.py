"""CUDA C++ sources to cubins, with cuda.core, no device needed; cached on disk (`cache`).

A cubin's name in the cache is a hash of everything that went into it: the source
with its headers, the template arguments, the architecture, the options and the
compiler's version.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from .. import cache, planning
from ..activations import Activation
from ..imports import uninterrupted
from . import catalogue
from .catalogue import Kernel
from .occupancy import LIMITS, Occupancy, capability, occupancy, shared_memory

_asking = threading.Lock()

#: What the tests compile for: every generation that CUDA 13 supports, the newest features of
#: each where they have a suffix.
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_100a", "sm_120a")

#: Kernels that `compile_all` builds together: enough to share the front end's work, few
#: enough to keep all cores busy.
GROUP = 10

INSTALL = "pip install 'backprop_gpu[compile]'"


class CompilerNotFoundError(ImportError):
    """cuda.core or the compiler's library is not installed."""


@dataclass(frozen=True)
class KernelReport:
    """What one kernel takes: threads per block, registers per thread, bytes of the rest.

    ``shared_memory`` is a block's, static and dynamic; ``stack`` and ``spills`` (stores and
    loads) a thread's.
    """

    kernel: str
    arch: str
    threads: int
    registers: int
    shared_memory: int
    stack: int
    spills: int

    @property
    def occupancy(self) -> Occupancy | None:
        """The kernel's occupancy; None where the architecture's limits are not known."""
        found = capability(self.arch)
        if found not in LIMITS:
            return None
        return occupancy(found, self.threads, self.registers, self.shared_memory)


@dataclass(frozen=True)
class Cubin:
    """A compiled file: its code, and for each template-id its symbol and its report."""

    code: bytes = field(repr=False)
    symbols: dict[str, str]
    reports: tuple[KernelReport, ...]


def compile_kernels(kernels: Sequence[Kernel], arch: str) -> Cubin:
    """Compile kernels of one file for one architecture, or take them from the cache.

    Parameters
    ----------
    kernels : sequence of Kernel
        All of one file and with one user activation, or none.
    arch : str
        Such as "sm_90a".

    Raises
    ------
    CompilerNotFoundError
        If cuda.core is not installed, saying how to install it.
    TypeError
        If Numba cannot compile a user's activation, naming it.
    RuntimeError
        If the CUDA compiler refuses a source, with its log, or runs its asynchronous matrix
        instructions one after the other.
    """
    (file,) = {kernel.file for kernel in kernels}
    (activation,) = {kernel.activation for kernel in kernels}
    expressions = tuple(kernel.expression for kernel in kernels)
    linked = () if activation is None else _user_code(activation, arch)
    key = hashlib.sha256()
    launches = (f"{kernel.block} {kernel.shared_memory}" for kernel in kernels)  # in the reports
    text = "\0".join((arch, *expressions, *launches, version()))
    for part in (_sources(file), text.encode(), *linked):
        key.update(hashlib.sha256(part).digest())
    name = f"{Path(file).stem}-{arch}-{key.hexdigest()[:32]}"
    cached = _unpack(cache.read(name), expressions)
    if cached is not None:
        return cached

    code, symbols, log = build(file, expressions, arch, linked)
    refuse_serialised(log, file, arch)
    reports = parse_log(log, {symbols[kernel.expression]: kernel for kernel in kernels}, arch)
    cubin = Cubin(code, symbols, reports)
    cache.write(name, _pack(cubin))
    return cubin


def compile_all(arch: str, jobs: int | None = None) -> Iterator[KernelReport]:
    """Compile every kernel of the catalogue, reporting each as its group is done."""
    groups: dict[str, list[Kernel]] = {}
    device = example(arch)
    for kernel in catalogue.all_of(device):
        groups.setdefault(kernel.file, []).append(kernel)
    parts = [
        kernels[start : start + GROUP]
        for kernels in groups.values()
        for start in range(0, len(kernels), GROUP)
    ]
    version()  # a missing compiler is one clear error, not one per thread
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        for cubin in pool.map(lambda part: compile_kernels(part, arch), parts):
            yield from cubin.reports


def example(arch: str) -> planning.Device:
    """A device of middling size of an architecture, which its kernels have to fit on."""
    found = capability(arch)
    return planning.Device(arch, found, 128, 1.5e9, 1e12, shared_memory(found))


def build(
    file: str, expressions: tuple[str, ...], arch: str, linked: tuple[bytes, ...]
) -> tuple[bytes, dict[str, str], str]:
    """(cubin, symbols, log of the assembler)."""
    from cuda.core import Linker, LinkerOptions, ObjectCode, Program, ProgramOptions

    options = options_of(file, arch)
    source = (folder() / file).read_text(encoding="utf-8")
    log = io.StringIO()
    try:
        if not linked:
            program = Program(source, "c++", ProgramOptions(ptxas_options=["-v"], **options))
            built = program.compile("cubin", name_expressions=expressions, logs=log)
            symbols = built.symbol_mapping
        else:
            options |= {
                "link_time_optimization": True,
                "relocatable_device_code": True,
                "define_macro": "BACKPROP_USER_ACTIVATION",
            }
            program = Program(source, "c++", ProgramOptions(**options))
            part = program.compile("ltoir", name_expressions=expressions, logs=log)
            symbols = part.symbol_mapping
            objects = [part, *(ObjectCode.from_ltoir(code) for code in linked)]
            linker = Linker(
                *objects,
                options=LinkerOptions(
                    arch=arch, link_time_optimization=True, ptxas_options=["-v"], verbose=True
                ),
            )
            built = linker.link("cubin")
            log.write(linker.get_info_log())
    except Exception as error:
        raise RuntimeError(
            f"{file} does not compile for {arch}: {error}\n{log.getvalue()}"
        ) from error
    return (
        bytes(built.code),
        {name: symbol.decode() for name, symbol in symbols.items()},
        log.getvalue(),
    )


def options_of(file: str, arch: str) -> dict[str, Any]:
    """What the front end is told for a file, whatever is to come out.

    With a user's function the linker makes the code, and it fuses as it likes: cuda.core hands it
    its ``fma`` in words that it refuses.
    """
    return {
        "arch": arch,
        "std": "c++17",
        "name": file,
        "include_path": [str(folder())],
        "lineinfo": True,
        "fma": file not in catalogue.ROUNDED,
    }


def _user_code(activation: Activation, arch: str) -> tuple[bytes, ...]:
    """A user's σ and σ' for both dtypes, compiled by Numba to what the linker can inline."""
    try:
        with uninterrupted():
            from numba import cuda, types

            from ..kernels.numba_cuda.activations import translated
    except ImportError as error:
        raise CompilerNotFoundError(
            f"activation {activation.name!r} on the cuda backend is compiled by numba-cuda: "
            "pip install 'backprop_gpu[cu13]'"
        ) from error
    code = []
    for role, function in (("value", activation.function), ("derivative", activation.derivative)):
        for scalar in (types.float32, types.float64):
            try:
                compiled, _ = cuda.compile(  # type: ignore[attr-defined]
                    translated(function),
                    scalar(scalar),
                    device=True,
                    abi="c",
                    abi_info={"abi_name": f"backprop_user_{role}_{scalar}"},
                    cc=capability(arch),
                    output="ltoir",
                )
            except Exception as error:
                raise TypeError(
                    f"Numba cannot compile the {role} of activation {activation.name!r} for a "
                    f"device; write it for one number with arithmetic and math: {error}"
                ) from error
            code.append(compiled)
    return tuple(code)


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
# C7510, C7515 and others, by cause: a wgmma that waits for the one before it.
_SERIALISED = re.compile(r"\(C\d+\) Potential Performance Loss: .* serialized .*")


def refuse_serialised(log: str, file: str, arch: str) -> None:
    warnings = [match[0] for match in _SERIALISED.finditer(log)]
    if warnings:
        raise RuntimeError(f"{file} for {arch}: " + "\n".join(warnings))


def parse_log(log: str, kernels: dict[str, Kernel], arch: str) -> tuple[KernelReport, ...]:
    """The assembler's account of each entry function."""
    reports: list[KernelReport] = []
    symbol, stack, spills = "", 0, 0
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            symbol = match[1]
        elif match := _STACK.search(line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif (match := _USED.search(line)) and symbol in kernels:
            kernel, registers, shared = kernels[symbol], int(match[1]), int(match[2] or 0)
            shared += kernel.shared_memory
            reports.append(
                KernelReport(
                    kernel.expression, arch, kernel.threads, registers, shared, stack, spills
                )
            )
            symbol = ""
    missing = {kernel.expression for kernel in kernels.values()} - {r.kernel for r in reports}
    if missing:
        raise RuntimeError(f"the assembler's log does not mention {sorted(missing)}:\n{log}")
    return tuple(reports)


def folder() -> Path:
    """The folder of the sources."""
    return Path(str(resources.files("backprop_gpu.kernels.cuda")))


@lru_cache
def _sources(file: str) -> bytes:
    """The file and all headers: more than it includes, but never less."""
    headers = sorted(folder().rglob("*.cuh"))
    return b"\0".join(path.read_bytes() for path in (folder() / file, *headers))


def version() -> str:
    """Of cuda.core and NVRTC.

    Raises
    ------
    CompilerNotFoundError
    """
    # Of two threads, the second would find cuda.core half imported.
    with _asking:
        return _ask_version()


@lru_cache
def _ask_version() -> str:
    try:
        with uninterrupted():
            import cuda.core
            from cuda.bindings import nvrtc

        error, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as reason:
        raise CompilerNotFoundError(f"no CUDA compiler ({reason}): {INSTALL}") from reason
    if int(error):
        raise CompilerNotFoundError(f"the CUDA compiler does not start ({error}): {INSTALL}")
    return f"cuda.core {cuda.core.__version__}, nvrtc {major}.{minor}"


def _pack(cubin: Cubin) -> bytes:
    """The bytes of a compiled file: a line of JSON, then the code."""
    reports = [asdict(report) for report in cubin.reports]
    return json.dumps({"symbols": cubin.symbols, "reports": reports}).encode() + b"\n" + cubin.code


def _unpack(entry: bytes | None, expressions: Sequence[str]) -> Cubin | None:
    if entry is None:
        return None
    head, _, code = entry.partition(b"\n")
    try:
        description = json.loads(head)
        symbols = {expression: description["symbols"][expression] for expression in expressions}
        reports = tuple(KernelReport(**report) for report in description["reports"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # another version's: compile again
    return Cubin(code, symbols, reports) if all(type(s) is str for s in symbols.values()) else None
