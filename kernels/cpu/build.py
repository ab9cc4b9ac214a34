"""Compile the C++ beside this file into one library, which the CPU engine loads with ctypes.

``python -m backprop_gpu.kernels.cpu.build`` (in a clone also ``python kernels/cpu/build.py``)
builds it, unless it is there and made of these sources; ``--show`` says what is there. `ensure`
does so in code. Beside the library, ``build.json`` says what it was made of and by what or, if
there is none, why not. Nothing but the standard library is used: an installation runs this.

The compiler is ``$CXX``, and no other if that is set; else g++, clang++ or c++; else the one in the
package ziglang. ``BACKPROP_GPU_NO_COMPILER=1`` asks for an installation without the library.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent
RECORD = HERE / "build.json"
LEVEL = HERE / "level.cpp"

#: What `build.json` says; the keys are those that `_built` and `_failed` give.
Record = dict[str, Any]

_log = logging.getLogger("backprop_gpu")
_SYSTEM = platform.system()
_SUFFIX = {"Darwin": ".dylib", "Windows": ".dll"}.get(_SYSTEM, ".so")
LIBRARY = f"libbackprop_cpu{_SUFFIX}"

_FLAGS = (
    "-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fno-exceptions", "-fno-rtti", "-fno-asynchronous-unwind-tables", "-fvisibility=hidden",
    "-Wall", "-Wextra", "-Wno-unknown-pragmas", *(() if _SYSTEM == "Windows" else ("-fPIC",)),
)  # fmt: skip
#: The levels of a machine, and what turns on the instructions of each: with g++ or clang, with zig.
#: zig builds for the processor at hand unless it is told another.
_LEVELS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "x86_64": {
        "v2": (("-march=x86-64-v2",), ("-mcpu=x86_64_v2",)),
        "v3": (("-march=x86-64-v3", "-mtune=haswell"), ("-mcpu=x86_64_v3",)),
        "v4": (
            ("-march=x86-64-v4", "-mprefer-vector-width=512"),
            ("-mcpu=x86_64_v4", "-mprefer-vector-width=512"),
        ),
    },
    "aarch64": {"neon": ((), ("-mcpu=generic",))},
}
#: What the other files are compiled for, once.
_BASELINE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "x86_64": (("-march=x86-64",), ("-mcpu=x86_64",)),
    "aarch64": ((), ("-mcpu=generic",)),
}
_STRIPPED = ("-Wl,-x",) if _SYSTEM == "Darwin" else ("-s",)
_DEFINED = ("-Wl,-z,defs",) if _SYSTEM == "Linux" else ()
#: Without the C++ library, the newer way and the older (g++ 12); the first that works is taken.
_LIBRARIES = (
    ("-nostdlib++", "-lm", "-lpthread"),
    ("-nodefaultlibs", "-lm", "-lpthread", "-lc", "-lgcc"),
)
#: g++ on Windows wants libraries of its own beside ours, and clang's has no pthreads.
_NAMES = () if _SYSTEM == "Windows" else ("g++", "clang++", "c++")
_PROBE = """
#include <atomic>
#include <concepts>
#include <math.h>
#include <pthread.h>
static void *work(void *x) { return x; }
template <std::floating_point T> T twice(T x) { return sqrt(x) * 2; }
extern "C" __attribute__((visibility("default"))) int probe(float x) {
  static std::atomic<int> count{0};
  pthread_t thread;
  return pthread_create(&thread, nullptr, work, nullptr) + int(twice(x)) + count.fetch_add(1);
}
"""
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_TIMEOUT = 900  # of one command, s


class BuildError(Exception):
    """There is no library, and the message is for the user."""


@dataclass(frozen=True)
class Compiler:
    """What compiles, as it is called, and what was found out about it."""

    command: tuple[str, ...]
    linker: tuple[str, ...]
    version: str
    libraries: tuple[str, ...]
    zig: bool = False

    @property
    def name(self) -> str:
        return "ziglang" if self.zig else os.path.basename(self.command[0])


# What there is


def read() -> Record:
    """What `build.json` says; an empty record if there is none, or a damaged one."""
    try:
        record = json.loads(RECORD.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def current() -> Record:
    """What the engine loads: the record, after `ensure` where the installation is editable.

    Its "library" is the file's name beside this one or None, and "reason" then says why.
    """
    record = read()
    if record.get("editable"):
        record = ensure()
    if not record:
        return _failed(f"it has not been built yet; {_again()}")
    return record


def ensure(installing: bool = False, editable: bool | None = None) -> Record:
    """Build the library unless it is there, made of these sources.

    When nothing has changed this takes one `stat` a source. Of several processes at once one
    builds, and the others wait for it. A build that failed is not tried again before a source or
    the compilers that are there have changed.

    Parameters
    ----------
    installing : bool
        Look at the compiler, too: a library that another one made is made anew. A failure is
        tried again, and ``BACKPROP_GPU_NO_COMPILER`` is heeded.
    editable : bool, optional
        What the record is to say of it; by default what it said. The engine calls `ensure` when it
        loads an editable installation.

    Returns
    -------
    Record
        What `build.json` says now. It never raises: what went wrong is the record's "reason".
    """
    record = read()
    if not installing and _untouched(record):
        return record
    try:
        with _locked():
            return _renew(installing, editable)
    except OSError as error:
        return _failed(f"{HERE} cannot be written: {error.strerror or error}")


def _renew(installing: bool, editable: bool | None) -> Record:
    """As `ensure`, by the one process that does it."""
    old = read()
    for path in HERE.glob(".build-*"):  # of processes that were killed
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    stats = _stats()  # before the sources are read: who edits one meanwhile has it compiled again
    fingerprint = _fingerprint()
    intact = old.get("sha256") == fingerprint and _intact(old)
    refused = installing and os.environ.get("BACKPROP_GPU_NO_COMPILER", "0") not in ("", "0")
    try:
        if refused:
            raise BuildError(
                "BACKPROP_GPU_NO_COMPILER is set, so none was wanted; without it, install again"
            )
        if installing:
            compiler = find()
            made = intact and (old["compiler"], old["version"]) == (compiler.name, compiler.version)
            new = old if made else _build(compiler)
        elif intact or _hopeless(old, fingerprint):
            new = old
        else:
            _log.warning("compiling the CPU engine, whose sources have changed")
            new = _build(find())
    except BuildError as error:
        new = _failed(str(error), tools=None if refused else _tools())
        if intact and not editable:
            return new  # a wheel is to do without; the library here is as good as it was
        (HERE / LIBRARY).unlink(missing_ok=True)
    kept = old.get("editable", False) if editable is None else editable
    stats |= _stats([HERE / LIBRARY])
    new = new | {"sha256": fingerprint, "editable": kept, "files": stats}
    if new != old:
        _write(new)
    return new


def _untouched(record: Record) -> bool:
    """Whether no file has another size or date than when the record was written."""
    files = record.get("files")
    if not files or any(_stat(KERNELS / name) != was for name, was in files.items()):
        return False
    return bool(record.get("library")) or _same_tools(record)


def _hopeless(record: Record, fingerprint: str) -> bool:
    """Whether a build failed, and would again."""
    if not record.get("reason") or not _same_tools(record):
        return False
    return record.get("tools") is None or record.get("sha256") == fingerprint


def _same_tools(record: Record) -> bool:
    """Whether the compilers are those that failed. None: none was wanted at the installation."""
    return "tools" in record and record["tools"] in (None, _tools())


def _intact(record: Record) -> bool:
    try:
        data = (HERE / LIBRARY).read_bytes()
    except OSError:
        return False
    return bool(record.get("library_sha256") == hashlib.sha256(data).hexdigest())


def _stats(paths: Sequence[Path] = ()) -> dict[str, list[int] | None]:
    paths = paths or [*sources(), Path(__file__).resolve()]
    return {os.path.relpath(path, KERNELS): _stat(path) for path in paths}


def _stat(path: Path) -> list[int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return [info.st_size, info.st_mtime_ns]


def _tools() -> list[str | None]:
    """What decides which compiler is found."""
    found = [shutil.which(name) for name in _NAMES]
    return [os.environ.get("CXX"), *found, str(importlib.util.find_spec("ziglang") is not None)]


def sources() -> list[Path]:
    """What is compiled, and what that includes, each once."""
    found: list[Path] = []
    waiting = [LEVEL, *_once()]
    while waiting:
        path = waiting.pop().resolve()
        if path in found or not path.is_file():
            continue
        found.append(path)
        names = re.findall(r'^\s*#\s*include\s*"(.+?)"', path.read_text("utf-8"), re.MULTILINE)
        for name in names:
            beside = path.parent / name
            waiting.append(beside if beside.is_file() else KERNELS / name)
    return sorted(found)


def _once() -> list[Path]:
    """What is compiled once, and not for each level."""
    return sorted(path for path in HERE.glob("*.cpp") if path != LEVEL)


def _fingerprint() -> str:
    """A hash of all that the library is made of, but for the compiler."""
    libc = "-".join(platform.libc_ver()) if _SYSTEM == "Linux" else ""
    made = [_FLAGS, _LEVELS, _BASELINE, _LIBRARIES, _STRIPPED, sysconfig.get_platform(), libc]
    whole = hashlib.sha256(json.dumps(made).encode())
    for path in sources():
        data = path.read_bytes()
        whole.update(f"\0{os.path.relpath(path, KERNELS)}\0{len(data)}\0".encode() + data)
    return whole.hexdigest()


# The compiler


def machine() -> str:
    """The processors that the library is for, as zig calls them."""
    if struct.calcsize("P") != 8:
        return "a 32-bit processor"
    name = sysconfig.get_platform().rpartition("-")[2].lower()
    if name == "universal2":  # this Python runs on both; the library is for the one at hand
        name = platform.machine()
    return _MACHINES.get(name, name)


def levels() -> tuple[str, ...]:
    return tuple(_LEVELS.get(machine(), ()))


def find() -> Compiler:
    """The compiler to use.

    Raises
    ------
    BuildError
        With what was tried.
    """
    compiler, tried = _found()
    if compiler is not None:
        return compiler
    if not os.environ.get("CXX"):
        if importlib.util.find_spec("ziglang") is not None:
            return _ziglang()
        tried.append("the package ziglang is not installed")
    raise BuildError(f"no C++20 compiler works here: {'; '.join(tried)}. {_advice()}")


def needs_ziglang() -> bool:
    """Whether an installation is to fetch the package: where there is no other compiler."""
    if os.environ.get("BACKPROP_GPU_NO_COMPILER", "0") not in ("", "0") or os.environ.get("CXX"):
        return False
    if not levels() or _SYSTEM not in ("Linux", "Darwin", "Windows"):
        return False
    return _found()[0] is None


def _found() -> tuple[Compiler | None, list[str]]:
    """The first compiler of this system that works, and what is wrong with those before it."""
    if not levels():
        raise BuildError(f"it is for x86-64 and aarch64, and this machine is {machine()}")
    tried: list[str] = []
    if chosen := os.environ.get("CXX"):
        commands = [tuple(shlex.split(chosen, posix=_SYSTEM != "Windows"))]
    else:
        commands = [(name,) for name in _NAMES]
    for command in commands:
        if command and shutil.which(command[0]):
            compiler, obstacle = _probe(command)
            if compiler is not None:
                return compiler, tried
            tried.append(f"{shlex.join(command)} {obstacle}")
        else:
            tried.append(f"{shlex.join(command)} is not there")
    return None, tried


def _probe(command: tuple[str, ...]) -> tuple[Compiler | None, str]:
    """The compiler, if it makes a small library with the flags of the last level; else why not."""
    try:
        version = _run([*command, "--version"], "does not tell its version").partition("\n")[0]
    except BuildError as error:
        return None, str(error)
    obstacle = ""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "probe.cpp"
        source.write_text(_PROBE, encoding="utf-8")
        for libraries in _LIBRARIES:
            compiler = Compiler(command, command, version, libraries)
            flags = _flags(compiler, levels()[-1])
            target = str(Path(name) / f"probe{_SUFFIX}")
            try:
                _run(
                    [*command, *flags, str(source), "-o", target, *_linking(compiler)],
                    "cannot compile C++20 for this machine",
                )
            except BuildError as error:
                obstacle = obstacle or str(error)
            else:
                return compiler, ""
    return None, obstacle


def _ziglang() -> Compiler:
    """The compiler in the package. Its C driver links: that of C++ would first compile a libc++."""
    zig = (sys.executable, "-m", "ziglang")
    from importlib import metadata  # in every process that loads an editable installation

    version = metadata.version("ziglang")
    return Compiler((*zig, "c++"), (*zig, "cc"), version, ("-lm", "-lpthread"), zig=True)


def _flags(compiler: Compiler, level: str | None) -> list[str]:
    """What a file is compiled with, for a level or for every processor."""
    pair = _BASELINE[machine()] if level is None else _LEVELS[machine()][level]
    flags = [*_target(compiler), *_FLAGS, *pair[compiler.zig], f"-I{KERNELS}"]
    if os.environ.get("BACKPROP_GPU_REQUIRE_COMPILERS"):
        flags.append("-Werror")  # for us: a user's compiler may be newer, and warn of more
    return flags if level is None else [*flags, f"-DLEVEL={level}"]


def _target(compiler: Compiler) -> list[str]:
    """The system that is compiled for, where the compiler would not take this one."""
    if compiler.zig:
        system = {"Darwin": "macos", "Windows": "windows-gnu"}.get(_SYSTEM)
        if system is None:
            system = "linux-gnu.2.17" if platform.libc_ver()[0] == "glibc" else "linux-musl"
        return ["-target", f"{machine()}-{system}"]
    if _SYSTEM == "Darwin":
        return ["-arch", {"aarch64": "arm64"}.get(machine(), machine())]
    return []


def _linking(compiler: Compiler) -> list[str]:
    return ["-shared", *_STRIPPED, *_DEFINED, *compiler.libraries]


# The build


def _build(compiler: Compiler) -> Record:
    """Compile, link and put the library in its place, whole."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=HERE) as name:
        folder = Path(name)
        from concurrent.futures import ThreadPoolExecutor

        with _caches(folder) as environment, ThreadPoolExecutor(2) as pool:
            # The widest first: it takes longest.
            files = [
                *((LEVEL, level) for level in reversed(levels())),
                *((x, None) for x in _once()),
            ]
            jobs = [pool.submit(_compile, compiler, *file, folder, environment) for file in files]
            try:
                objects = [job.result() for job in jobs]
            finally:
                for job in jobs:
                    job.cancel()
            built = folder / LIBRARY
            baseline = _BASELINE[machine()][compiler.zig]
            linking = [*compiler.linker, *_target(compiler), *baseline, *objects, "-o", str(built)]
            _run(
                [*linking, *_linking(compiler)],
                f"{compiler.name} could not link the library",
                environment,
            )
        if machine() == _MACHINES.get(platform.machine().lower(), platform.machine()):
            _run(
                [
                    sys.executable,
                    "-I",
                    "-c",
                    "import ctypes, sys; ctypes.CDLL(sys.argv[1])",
                    str(built),
                ],
                f"the library that {compiler.name} made cannot be loaded",
            )
        data = built.read_bytes()
        os.replace(built, HERE / LIBRARY)
    return {
        "library": LIBRARY,
        "reason": None,
        "levels": list(levels()),
        "compiler": compiler.name,
        "version": compiler.version,
        "platform": sysconfig.get_platform(),
        "library_sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _compile(
    compiler: Compiler, source: Path, level: str | None, folder: Path, environment: dict[str, str]
) -> str:
    target = folder / f"{level or source.stem}.o"
    what = f"{compiler.name} could not compile {source.name}" + (f" for {level}" if level else "")
    flags = _flags(compiler, level)
    command = [*compiler.command, *flags, "-c", str(source), "-o", str(target)]
    _run(command, what, environment)
    return str(target)


def _failed(reason: str, tools: list[str | None] | None = None) -> Record:
    return {
        "library": None,
        "reason": f"the compiled CPU engine is not there: {reason}",
        "levels": [],
        "platform": sysconfig.get_platform(),
        "tools": tools,
    }


def _advice() -> str:
    return f"Install g++ 11 or clang++ 14, or newer, or `pip install ziglang`; then {_again()}"


def _again() -> str:
    return "run `python -m backprop_gpu.kernels.cpu.build`"


def _run(command: Sequence[str], what: str, environment: dict[str, str] | None = None) -> str:
    """What a command prints.

    Raises
    ------
    BuildError
        If it fails: `what`, and its first error.
    """
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{what}: {error}") from error
    if done.returncode == 0:
        return done.stdout
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
    raise BuildError(f"{what}: {first or f'it exits with {done.returncode}'}"[:600])


@contextmanager
def _caches(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a compiler. zig keeps what it compiles, C's library say: not in HOME."""
    cache = str(folder / "zig")
    yield os.environ | {
        "LC_ALL": "C",
        "ZIG_GLOBAL_CACHE_DIR": cache,
        "ZIG_LOCAL_CACHE_DIR": cache,
    }


@contextmanager
def _locked() -> Iterator[None]:
    """Around the work of one process; the others wait. A killed process holds nothing."""
    with open(HERE / "build.lock", "a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            while True:
                with suppress(OSError):  # it gives up after ten seconds
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
            try:
                yield
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _write(record: Record) -> None:
    temporary = HERE / f".build-{os.getpid()}.json"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, RECORD)


def described(record: Record) -> str:
    """A record in a line."""
    if not record["library"]:
        return str(record["reason"])
    return (
        f"{HERE / record['library']}: {', '.join(record['levels'])}, by {record['compiler']} "
        f"({record['version']}) in {record['seconds']} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the compiled CPU engine's library.")
    parser.add_argument("--show", action="store_true", help="say what is there, and build nothing")
    if parser.parse_args().show:
        record = current()
    else:
        record = ensure(installing=True, editable=read().get("editable", True))
    print(described(record), file=sys.stdout if record["library"] else sys.stderr)
    return 0 if record["library"] else 1


if __name__ == "__main__":
    sys.exit(main())
