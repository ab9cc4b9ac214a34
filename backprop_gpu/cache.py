"""Compiled code, kept on disk from one process to the next.

In ``$BACKPROP_GPU_CACHE``, else in ``$XDG_CACHE_HOME/backprop_gpu``, else in
``~/.cache/backprop_gpu``. What others could have put there would run as this user, so the folder
is used only if it is this user's own and nobody else may write to it. More could not be checked:
who can write in its stead could write any key or signature, too.

A cache may be slow, never fatal. Where there is none or an entry is damaged, `read` finds nothing;
where nothing can be kept, `write` does nothing; and the logger ``backprop_gpu`` says why, once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from .files import write_whole

_log = logging.getLogger("backprop_gpu")
#: An entry begins with a hash of its name and the rest.
_HASH = hashlib.sha256
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read(name: str) -> bytes | None:
    """What was last written under this name; None if nothing was, or if it is damaged."""
    try:
        with _opened() as folder:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=folder), "rb") as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode) or _whose(info):
                    return None
                entry = file.read()
    except _NotUsableError as reason:
        warn_once(str(reason))
        return None
    except (OSError, MemoryError):
        return None
    size = _HASH().digest_size
    data = entry[size:]
    return data if entry[:size] == _digest(name, data) else None


def folder() -> Path | None:
    """Where entries are; None where there can be none."""
    try:
        path = _path()
        with suppress(FileNotFoundError), _opened():  # it is made when something is kept
            pass
    except (_NotUsableError, OSError):
        return None
    return path


def write(name: str, data: bytes) -> None:
    """Write `data` under this name, if that is possible."""
    try:
        path = _path()
        try:
            _make(path)
            with _opened():
                _discard(path / name)
                write_whole(path / name, _digest(name, data) + data, 0o600)
        except OSError as error:
            raise _NotUsableError(f"{path}: {error.strerror}") from error
    except _NotUsableError as reason:
        warn_once(str(reason))


def _discard(entry: Path) -> None:
    """Remove what would be written through, not replaced: a link, a pipe."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(entry).st_mode):
            entry.unlink()


class _NotUsableError(Exception):
    """Say once why there is no cache."""


@lru_cache(maxsize=32)  # once
def warn_once(reason: str) -> None:
    _log.warning(
        "compiled code is not kept on disk, so every process compiles its own: %s; "
        "BACKPROP_GPU_CACHE may name another folder",
        reason,
    )


def _digest(name: str, data: bytes) -> bytes:
    return _HASH(name.encode() + b"\0" + data).digest()


def _path() -> Path:
    if chosen := os.environ.get("BACKPROP_GPU_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "backprop_gpu"
    except RuntimeError as error:
        raise _NotUsableError(str(error)) from error


def _make(path: Path) -> None:
    """Make the folder and its parents, for this user alone, whatever the umask."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            with suppress(FileExistsError):
                folder.mkdir(0o700)


@contextmanager
def _opened() -> Iterator[int]:
    """The folder, open, so that nobody can put another in its place once it is checked."""
    path = _path()
    for link in (path, *path.parents):
        with suppress(FileNotFoundError):
            info = os.lstat(link)
            if stat.S_ISLNK(info.st_mode) and info.st_uid not in (0, os.geteuid()):
                raise _NotUsableError(f"{link} is a symbolic link of user {info.st_uid}'s")
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if whose := _whose(os.fstat(folder)):
            raise _NotUsableError(f"{path} {whose}")
        yield folder
    finally:
        os.close(folder)


def _whose(info: os.stat_result) -> str | None:
    """Why a folder with this owner or mode cannot be trusted, if it cannot."""
    if info.st_uid != os.geteuid():
        return f"belongs to user {info.st_uid}, not to {os.geteuid()}"
    if info.st_mode & _OTHERS_MAY_WRITE:
        return f"may be written by others (mode {stat.S_IMODE(info.st_mode):04o})"
    return None
