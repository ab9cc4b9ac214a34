"""Compiles a `.cu` with g++ and keeps the result in a cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

Sanitizer = Literal["plain", "asan", "tsan"]

HERE = Path(__file__).parent

# Two libraries may have a shared variable of the same name, and each keeps its own
# (no-gnu-unique). No thread-local variable has a constructor (no-extern-tls-init).
# Device code reads arrays of T as vectors of T (no-strict-aliasing).
COMMON = (
    "-std=c++17", "-ffp-contract=off",
    "-fno-gnu-unique", "-fno-extern-tls-init", "-fno-strict-aliasing",
)  # fmt: skip
SANITIZE: dict[str, tuple[str, ...]] = {
    "plain": ("-O2",),
    "asan": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "tsan": ("-O1", "-g", "-fsanitize=thread"),
}


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


def build(
    source: Path,
    expressions: Sequence[str],
    sanitizer: Sanitizer = "plain",
    include: Sequence[Path] = (),
    extra_sources: str = "",
) -> Path:
    """A shared library ("plain") or a program ("asan", "tsan") that launches kernels.

    Parameters
    ----------
    source : Path
        The `.cu`, compiled as it is.
    expressions : sequence of str
        What names a ``__global__`` function, e.g. ``forward<float, Sigmoid,
        Tile<64, 64, 16, 4, 4>>``. The library exports ``launch_<i>`` and
        ``parameter_<i>`` for each (`launch.h`); the program is described in
        `run_file.cpp`.
    include : sequence of Path
        Folders for ``#include "..."``, beside the source's own.
    extra_sources : str
        C++ that comes before the source, for ``#define`` and host twins.
    """
    text = "\n".join(
        [
            '#include "cuda_host.h"',
            extra_sources,
            f'#include "{source.resolve()}"',
            '#include "launch.h"',
            *(f"CUDA_HOST_KERNEL({i}, {name})" for i, name in enumerate(expressions)),
            "extern const unsigned cuda_host_entry_count = " + str(len(expressions)) + ";",
            "extern const cuda_host::Entry cuda_host_entries[] = {",
            *(f"    {{parameter_{i}, launch_{i}}}," for i in range(len(expressions))),
            "};",
            "",
        ]
    )
    flags = [*COMMON, *SANITIZE[sanitizer], *(f"-I{folder}" for folder in (HERE, *include))]
    inputs = _headers(text, source.parent, (HERE, *include))
    if sanitizer == "plain":
        support = [_support("fibers.cpp", sanitizer)]
        flags += ["-fPIC", "-shared", f"-Wl,-rpath,{support[0].parent}"]
    else:
        support = [_support("fibers.cpp", sanitizer), _support("run_file.cpp", sanitizer)]
    suffix = ".so" if sanitizer == "plain" else ""
    return _compile(text, flags, support, inputs, f"{source.stem}-{sanitizer}", suffix)


def build_all(jobs: Iterable[Job], workers: int = 2) -> list[Path]:
    """Several builds, `workers` at a time."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: build(*job), jobs))


_building_support = threading.Lock()


def _support(name: str, sanitizer: Sanitizer) -> Path:
    """The scheduler or main(), never instrumented: see `fibers.h`.

    Plain kernels share one scheduler, and with it one set of stacks.
    """
    with _building_support:  # not once for each kernel that is built meanwhile
        return _build_support(name, sanitizer)


@lru_cache
def _build_support(name: str, sanitizer: Sanitizer) -> Path:
    path = HERE / name
    flags = [*COMMON, "-O2", "-Wall", "-Wextra", f"-I{HERE}"]
    flags += ["-fPIC", "-shared"] if sanitizer == "plain" else ["-g", "-c"]
    flags += [] if sanitizer == "plain" else [f"-DCUDA_HOST_{sanitizer.upper()}"]
    text = path.read_text()
    suffix = ".so" if sanitizer == "plain" else ".o"
    inputs = _headers(text, HERE, (HERE,))
    return _compile(text, flags, [], inputs, f"lib{path.stem}-{sanitizer}", suffix)


def _compile(
    text: str, flags: list[str], support: list[Path], inputs: list[Path], stem: str, suffix: str
) -> Path:
    compiler, version = _compiler()
    key = hashlib.sha256()
    for part in (version, text, *flags, *map(str, support)):
        key.update(part.encode() + b"\0")
    for path in inputs:
        key.update(path.read_bytes() + b"\0")
    target = _cache() / f"{stem}-{key.hexdigest()[:24]}{suffix}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source = Path(folder, f"{stem}.cpp")
        source.write_text(text)
        result = Path(folder, target.name)
        command = [compiler, *flags, str(source), *map(str, support), "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildFailed(f"{' '.join(command)}\n{done.stderr}")
        os.replace(result, target)  # another process may be building the same
    return target


@lru_cache
def _compiler() -> tuple[str, str]:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise CompilerMissing("running CUDA kernels on the CPU needs g++, and there is none")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return compiler, version.stdout


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("HOST_CUDA_CACHE") or Path(base, "backprop_gpu", "host_cuda"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def _headers(text: str, folder: Path, include: Sequence[Path]) -> list[Path]:
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
