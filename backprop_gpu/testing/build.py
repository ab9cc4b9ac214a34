"""Compiles a `.cu` with g++ and keeps the result in a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

Sanitizer = Literal["plain", "asan", "tsan"]

EMULATOR = Path(__file__).resolve().parent / "emulator"
DRIVER = Path(__file__).resolve().parent / "driver"

# Two libraries may have a shared variable of the same name, and each keeps its own
# (no-gnu-unique). No thread-local variable has a constructor (no-extern-tls-init).
# Device code reads arrays of T as vectors of T (no-strict-aliasing).
COMMON = (
    "-std=c++17", "-ffp-contract=off", "-fPIC",
    "-fno-gnu-unique", "-fno-extern-tls-init", "-fno-strict-aliasing",
)  # fmt: skip
# The shapes of a test are small, so more time goes to the compiler than to the kernels: less than
# -O2, no more of -g than a report's lines need, and calls in place of AddressSanitizer's checks.
KERNEL: dict[Sanitizer, tuple[str, ...]] = {
    "plain": ("-O1",),
    "asan": (
        "-O1", "-g1", "-fno-sanitize-recover=all",
        "--param=asan-instrumentation-with-call-threshold=0",
    ),
    "tsan": ("-O1", "-g1"),
}  # fmt: skip
SANITIZE: dict[Sanitizer, tuple[str, ...]] = {
    "plain": (),
    "asan": ("-fsanitize=address,undefined",),
    "tsan": ("-fsanitize=thread",),
}
# What is read before it is written is 0xFE bytes every time, and never zero by luck.
INIT = "-ftrivial-auto-var-init=pattern"


class CompilerMissing(RuntimeError):
    """There is no g++ here."""


class BuildFailed(RuntimeError):
    """g++ refused the source; the message is its own."""


class Job(NamedTuple):
    """The arguments of `build`."""

    source: Path
    expressions: Sequence[str]
    sanitizer: Sanitizer = "plain"
    include: Sequence[Path] = ()
    extra_sources: str = ""
    flags: Sequence[str] = ()


def build(
    source: Path,
    expressions: Sequence[str],
    sanitizer: Sanitizer = "plain",
    include: Sequence[Path] = (),
    extra_sources: str = "",
    flags: Sequence[str] = (),
) -> Path:
    """A shared library that launches kernels; one with a sanitizer is for `server`.

    Parameters
    ----------
    source : Path
        The `.cu`, compiled as it is.
    expressions : sequence of str
        What names a ``__global__`` function, e.g. ``forward<float, Sigmoid,
        Tile<64, 64, 16, 4, 4>>``. The library exports ``launch_<i>`` and
        ``parameter_<i>`` for each (`launch.h`).
    include : sequence of Path
        Folders for ``#include "..."``, beside the source's own.
    extra_sources : str
        C++ that comes before the source, for ``#define`` and host twins.
    flags : sequence of str
        For g++, besides the sanitizer's.
    """
    text = "\n".join(
        [
            '#include "cuda_host.h"',
            extra_sources,
            f'#include "{source.resolve()}"',
            '#include "launch.h"',
            *(f"CUDA_HOST_KERNEL({i}, {name})" for i, name in enumerate(expressions)),
            "",
        ]
    )
    scheduler = _scheduler(sanitizer)
    flags = [*COMMON, *KERNEL[sanitizer], *SANITIZE[sanitizer], *flags, "-shared"]
    flags += [INIT] if knows(INIT) else []
    flags += [*(f"-I{folder}" for folder in (EMULATOR, *include)), f"-Wl,-rpath,{scheduler.parent}"]
    inputs = headers(text, source.parent, (EMULATOR, *include))
    return _compile(text, flags, [scheduler], inputs, f"{source.stem}-{sanitizer}", ".so")


def build_all(jobs: Iterable[Job], workers: int = 2) -> list[Path]:
    """Several builds, `workers` at a time."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: build(*job), jobs))


@lru_cache
def server(sanitizer: Sanitizer) -> Path:
    """The program that loads a sanitizer's libraries; `serve.cpp` describes it."""
    path = EMULATOR / "serve.cpp"
    scheduler = _scheduler(sanitizer)
    flags = [*COMMON, "-O2", "-Wall", "-Wextra", f"-I{EMULATOR}", f"-Wl,-rpath,{scheduler.parent}"]
    text, inputs = path.read_text(), [EMULATOR / "fibers.h"]
    link: list[str | Path] = [scheduler, *SANITIZE[sanitizer], "-ldl", "-pthread"]
    return _compile(text, flags, link, inputs, f"{path.stem}-{sanitizer}", "")


@lru_cache
def _scheduler(sanitizer: Sanitizer) -> Path:
    """The scheduler, never instrumented: see `fibers.h`.

    Kernels share it, and with it one set of stacks.
    """
    path = EMULATOR / "fibers.cpp"
    flags = [*COMMON, "-O2", "-g1", "-Wall", "-Wextra", "-shared", f"-I{EMULATOR}"]
    flags += [] if sanitizer == "plain" else [f"-DCUDA_HOST_{sanitizer.upper()}"]
    text, inputs = path.read_text(), [EMULATOR / "fibers.h"]
    return _compile(text, flags, ["-pthread"], inputs, f"lib{path.stem}-{sanitizer}", ".so")


@lru_cache
def driver(sanitizer: Sanitizer = "plain") -> Path:
    """The library that stands for the driver, loaded as ``libcuda.so.1``."""
    sources = ("entry_points", "memory", "streams", "capture", "kernels")
    return _stand_in("libcuda.so.1", sources, sanitizer, ["-ldl", "-pthread"])


@lru_cache
def cublaslt(sanitizer: Sanitizer = "plain") -> Path:
    """The library that stands for ``libcublasLt.so.13``, on `driver`'s streams."""
    return _stand_in("libcublasLt.so.13", ["cublaslt"], sanitizer, [driver(sanitizer)])


def _stand_in(
    soname: str, sources: Sequence[str], sanitizer: Sanitizer, link: Sequence[str | Path]
) -> Path:
    # Never instrumented, like the scheduler, but it tells a sanitizer about memory.
    flags = [*COMMON, "-O2", "-g1", "-Wall", "-Wextra", f"-I{DRIVER}", f"-I{EMULATOR}"]
    flags += [] if sanitizer == "plain" else [f"-DCUDA_HOST_{sanitizer.upper()}"]

    def compiled(source: str) -> Path:
        text = (DRIVER / f"{source}.cpp").read_text()
        inputs = headers(text, DRIVER, (EMULATOR,))
        return _compile(text, [*flags, "-c"], [], inputs, f"{source}-{sanitizer}", ".o")

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    name = f"{soname.partition('.')[0]}-{sanitizer}"
    named = [*flags, "-shared", f"-Wl,-soname,{soname}"]
    return _compile("", named, [*objects, *link], [], name, ".so")


def _compile(
    text: str,
    flags: list[str],
    link: Sequence[str | Path],
    inputs: list[Path],
    stem: str,
    suffix: str,
) -> Path:
    compiler, version = _compiler()
    key = hashlib.sha256()
    for part in (version, text, *flags, *map(str, link)):
        key.update(part.encode() + b"\0")
    for path in inputs:
        key.update(path.read_bytes() + b"\0")
    target = cache_folder() / f"{stem}-{key.hexdigest()[:24]}{suffix}"
    if target.exists():
        return target
    # Another process that wants the same waits for this one, or takes over if it dies.
    lock_file = target.with_name(f"{target.name}.lock")
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            source = Path(folder, f"{stem}.cpp")
            source.write_text(text)
            result = Path(folder, target.name)
            command = [compiler, *flags, str(source), *map(str, link), "-o", str(result)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise BuildFailed(f"{' '.join(command)}\n{done.stderr}")
            os.replace(result, target)  # whole, or not at all
            lock_file.unlink(missing_ok=True)
    return target


@lru_cache
def _compiler() -> tuple[str, str]:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise CompilerMissing("running CUDA kernels on the CPU needs g++, and there is none")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return compiler, version.stdout


def compiler_file(name: str) -> str:
    """Where the compiler keeps a library of its own."""
    command = [_compiler()[0], f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@lru_cache
def knows(flag: str) -> bool:
    """Whether g++ has a flag: `INIT` came with version 12."""
    command = [_compiler()[0], "-Werror", flag, "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("HOST_CUDA_CACHE") or Path(base, "backprop_gpu", "host_cuda"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def headers(text: str, folder: Path, include: Sequence[Path]) -> list[Path]:
    """Every file that `text`, as if it lay in `folder`, includes with quotes."""
    found: dict[Path, None] = {}

    def visit(text: str, folder: Path) -> None:
        for name in _INCLUDE.findall(text):
            for place in (folder, *include):
                path = (place / name).resolve()
                if path.is_file():
                    if path not in found:
                        found[path] = None
                        visit(path.read_text(), path.parent)
                    break

    visit(text, folder)
    return list(found)
