"""Files written whole: whoever reads one, even after a crash, finds the old one or the new one."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def write_whole(path: str | os.PathLike[str], data: bytes, mode: int | None = None) -> None:
    """Write to a temporary file beside the target, then rename it.

    A symbolic link stays, and its target is written. What a killed process left of an earlier
    write to the same target is removed. A device or a pipe is written to as it is.

    Parameters
    ----------
    path : path
    data : bytes
    mode : int, optional
        The file's permissions. By default those of the file that it replaces, with its owner
        and group as far as this user may set them; those of a new one are left to the umask.

    Raises
    ------
    OSError
        With `path` as its filename; an older file is then as it was.
    """
    try:
        try:
            old = os.stat(path)
        except FileNotFoundError:
            old = None
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if old is not None and not stat.S_ISREG(old.st_mode):
            Path(path).write_bytes(data)
            return
        _replace(Path(os.path.realpath(path)), data, old, mode)
    except OSError as error:
        error.filename = os.fspath(path)
        del error.filename2
        raise


def _replace(target: Path, data: bytes, old: os.stat_result | None, mode: int | None) -> None:
    # Not the target's name and more: that may be as long as a name can be.
    prefix = f".backprop_gpu-{sha256(os.fsencode(target.name)).hexdigest()[:16]}-"
    _remove_abandoned(target.parent, prefix)
    # One that is to have other permissions than a new file's has none for others until then.
    created = 0o666 if old is None and mode is None else 0o600
    with _temporary(target.parent, prefix, created) as (handle, temporary):
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        if mode is not None:
            os.fchmod(handle, mode)
        elif old is not None:
            _inherit(handle, old)
        os.fsync(handle)
        os.replace(temporary, target)
    with suppress(OSError):  # not every file system can; the file is whole without it
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the new name outlasts a power cut, too
        finally:
            os.close(folder)


def _inherit(handle: int, old: os.stat_result) -> None:
    mode = stat.S_IMODE(old.st_mode)
    try:
        os.fchown(handle, old.st_uid, old.st_gid)
    except OSError:
        try:
            os.fchown(handle, -1, old.st_gid)
        except OSError:  # another group has no right to what was that group's
            mode &= ~0o070
    os.fchmod(handle, mode)


@contextmanager
def _temporary(folder: Path, prefix: str, mode: int) -> Iterator[tuple[int, Path]]:
    """A new file, open and locked, which is removed unless it is renamed."""
    while True:
        path = folder / f"{prefix}{secrets.token_hex(8)}"
        handle = os.open(path, _NEW, mode)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # it was taken for an abandoned one
                continue
            except OSError:  # no locks here: what is abandoned stays, and no harm is done
                pass
            if os.fstat(handle).st_nlink == 0:
                continue
            yield handle, path
            return
        finally:
            with suppress(OSError):  # renamed
                os.unlink(path)
            os.close(handle)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove what killed processes left: nobody holds its lock any more."""
    with suppress(OSError):  # a folder that may be written but not listed
        for name in os.listdir(folder):
            if name.startswith(prefix):
                with suppress(OSError):
                    _remove_unlocked(folder / name)


def _remove_unlocked(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(handle)
