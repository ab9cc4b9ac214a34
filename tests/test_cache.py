"""The cache of compiled code: slow at worst, never fatal, and nobody else's."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_gpu import cache

IS_ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path / "cache"))
    cache.warn_once.cache_clear()
    yield tmp_path / "cache"
    cache.warn_once.cache_clear()


# -- entries ----------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def exchange(path: Path) -> None:
    cache.write("another", b"whole, but not this one")
    os.replace(path.with_name("another"), path)


def remove(path: Path) -> None:
    path.unlink()


def hide(path: Path) -> None:
    path.chmod(0)
    if IS_ROOT:  # who reads it all the same
        path.write_bytes(b"")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("target"))
    path.symlink_to("target")


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def give_away(path: Path) -> None:
    if not IS_ROOT:
        pytest.skip("only root gives files to others")
    os.chown(path, 1234, 1234)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = (
    truncate, empty, change, exchange, remove, hide, pipe, link, open_to_all, give_away, directory,
)  # fmt: skip


def test_what_was_written_is_read(folder: Path) -> None:
    assert cache.read("name") is None
    for data in (b"", b"data", bytes(1 << 20)):
        cache.write("name", data)
        assert cache.read("name") == data
    assert cache.read("another") is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_none(
    folder: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache.write("name", b"data" * 100)
    damage(folder / "name")
    assert cache.read("name") is None
    assert not caplog.messages
    cache.write("name", b"new")
    if damage is directory:  # which nobody but a user can have put there
        assert cache.read("name") is None
        assert "Is a directory" in caplog.messages[0]
    else:
        assert cache.read("name") == b"new"
        assert not caplog.messages
        assert stat.S_IMODE((folder / "name").stat().st_mode) == 0o600


# -- the folder -------------------------------------------------------------------------------


def test_the_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BACKPROP_GPU_CACHE", "a/b"), ("XDG_CACHE_HOME", "c/d"), ("HOME", "e")):
        for variable in ("BACKPROP_GPU_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(name, str(tmp_path / value))
        before = os.umask(0)
        try:
            cache.write("name", b"data")
        finally:
            os.umask(before)
        assert cache.read("name") == b"data"
    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    names = sorted(str(path.relative_to(tmp_path)) for path in made)
    assert names == ["a", "a/b", "c", "c/d", "c/d/backprop_gpu", "e", "e/.cache",
                     "e/.cache/backprop_gpu"]  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


@pytest.mark.parametrize("variable", ["BACKPROP_GPU_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_not_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    bits: int,
) -> None:
    monkeypatch.delenv("BACKPROP_GPU_CACHE")
    monkeypatch.setenv(variable, str(tmp_path / "base"))
    cache.write("name", b"data")
    (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
    entry.parent.chmod(bits)
    assert cache.read("name") is None
    cache.write("name", b"other")
    assert [path.name for path in entry.parent.iterdir()] == ["name"]
    (message,) = caplog.messages  # once
    assert f"{entry.parent} may be written by others (mode {bits:04o})" in message
    entry.parent.chmod(0o755)
    assert cache.read("name") == b"data"


@pytest.mark.skipif(not IS_ROOT, reason="only root gives files to others")
def test_a_folder_of_another_users_is_not_used(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write("name", b"data")
    os.chown(folder, 1234, 1234)
    assert cache.read("name") is None
    assert f"{folder} belongs to user 1234, not to 0" in caplog.messages[0]
    os.chown(folder, 0, 0)
    assert cache.read("name") == b"data"

    for way in ("link", "above/cache"):  # someone else's link to what is this user's
        link = tmp_path / way.partition("/")[0]
        link.symlink_to(folder if way == "link" else tmp_path)
        monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path / way))
        assert cache.read("name") == b"data"  # it is this user's link so far
        os.lchown(link, 1234, 1234)
        assert cache.read("name") is None
        assert f"{link} is a symbolic link of user 1234's" in caplog.messages[-1]


def unset_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BACKPROP_GPU_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mkdir(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", mkdir)


def below_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BACKPROP_GPU_CACHE", str(tmp_path / "file" / "cache"))


def a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")


def full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fsync(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (unset_home, "home directory"),
        (read_only, "Read-only file system"),
        (below_a_file, "Not a directory"),
        (a_file, "Not a directory"),
        (full, "No space left on device"),
    ],
)
def test_without_a_cache_it_goes_on_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    obstacle: Callable[..., None], reason: str,
) -> None:  # fmt: skip
    obstacle(monkeypatch, tmp_path)
    for name in ("name", "another"):
        cache.write(name, b"data")
        assert cache.read(name) is None
    (message,) = caplog.messages
    assert reason in message
    assert "BACKPROP_GPU_CACHE" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]


FULL = """
import logging, resource
from backprop_gpu import cache
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
cache.write("large", bytes(10_000))
cache.write("larger", bytes(10_000))
assert cache.read("large") is None
cache.write("small", bytes(1000))
assert cache.read("small") == bytes(1000)
"""


def test_a_file_that_grows_too_large(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL], check=True, capture_output=True, text=True)
    assert done.stderr.count("File too large") == 1
    assert os.listdir(folder) == ["small"]
