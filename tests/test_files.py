"""Files written whole: the old one or the new one, with its permissions, and nothing beside it."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from backprop_gpu import Network, nielsen
from backprop_gpu.files import write_whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets this process's umask, which nothing else may do."""
    setter, before = os.umask, os.umask(0o022)
    monkeypatch.setattr(os, "umask", lambda value: pytest.fail("the process's umask was changed"))
    yield setter
    setter(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000, 0o027])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: Any, mask: int):
    umask(mask)
    Network([2, 1], backend="numpy").save(tmp_path / "net")
    assert mode(tmp_path / "net") == 0o666 & ~mask


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o666, 0o755, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(
    tmp_path: Path, umask: Any, monkeypatch: pytest.MonkeyPatch, bits: int
):
    path = tmp_path / "net"
    path.write_bytes(b"old")
    path.chmod(bits)
    seen = []
    change = os.fchmod
    monkeypatch.setattr(
        os, "fchmod", lambda fd, m: (seen.append(stat.S_IMODE(os.fstat(fd).st_mode)), change(fd, m))
    )
    Network([2, 1], backend="numpy").save(path)
    assert mode(path) == bits
    assert seen == [0o600]  # nobody else could read it before
    assert path.read_bytes() != b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "net"
    path.write_bytes(b"old")
    os.chown(path, 1234, 5678)
    path.chmod(0o660)
    write_whole(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (1234, 5678, 0o660)

    def fail(fd: int, user: int, group: int) -> None:
        raise PermissionError(errno.EPERM, "not yours to give")

    monkeypatch.setattr(os, "fchown", fail)
    write_whole(path, b"newer")
    assert path.stat().st_uid == os.geteuid()
    assert mode(path) == 0o600  # what was that group's is not another's


def test_a_symbolic_link_stays(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    target, link = tmp_path / "there" / "net", tmp_path / "here" / "link"
    link.symlink_to(Path("..", "there", "net"))
    chained = tmp_path / "chained"
    chained.symlink_to(link)
    for content in (b"first", b"second"):  # the link leads nowhere at first
        write_whole(chained, content)
        assert target.read_bytes() == content
    assert link.is_symlink()
    assert chained.is_symlink()
    assert not target.is_symlink()
    assert os.listdir(tmp_path / "there") == ["net"]
    assert os.listdir(tmp_path / "here") == ["link"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop") as error:
        write_whole(tmp_path / "loop", b"")
    assert error.value.errno == errno.ELOOP


def test_a_pipe_is_written_to(tmp_path: Path):
    """As /dev/stdout is; a device must not be replaced by a file."""
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", b"through")
    reader.join(20)
    assert read == [b"through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, ".net", "-", "a\nb"])
def test_any_name_that_a_file_can_have(tmp_path: Path, name: str):
    for _ in range(2):
        write_whole(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("path", ["missing/net", "folder", "file/net", "n" * 256])
def test_errors_name_the_path_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_bytes(b"")
    for save in (Network([2, 1], backend="numpy").save, nielsen.network2.Network([2, 1]).save):
        with pytest.raises(OSError, match=r"folder|missing|file|nnn") as error:
            save(path)
        assert error.value.filename == path
        assert str(error.value).endswith(f": {path!r}")
    assert sorted(os.listdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as error:
        write_whole(tmp_path / "net", b"")
    assert error.value.filename == str(tmp_path / "net")


KILLED = """
import os, signal, sys
from pathlib import Path
from backprop_gpu import files
step, path = sys.argv[1:]
setattr(os, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
files.write_whole(Path(path), bytes(1000))
"""


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_a_kill_left_is_removed_by_the_next_write(tmp_path: Path, step: str):
    path = tmp_path / ("n" * 240)
    path.write_bytes(b"old")
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", KILLED, step, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2  # that of the last: each removed the one before
    write_whole(tmp_path / "another", b"")
    assert len(os.listdir(tmp_path)) == 3
    write_whole(path, b"new")
    assert sorted(os.listdir(tmp_path)) == ["another", path.name]
    assert path.read_bytes() == b"new"


WRITERS = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from backprop_gpu.files import write_whole
def write(i):
    write_whole(Path(sys.argv[1]), json.dumps([i] * 20_000).encode())
with ThreadPoolExecutor(4) as pool:
    list(pool.map(write, range(100)))
"""


def test_writers_of_one_file_do_not_meet(tmp_path: Path):
    """Threads and processes that save the same file at once: each reader finds one of them."""
    path = tmp_path / "net"
    path.write_bytes(b"[-1, -1]")
    done = Event()

    def watch() -> int:
        read = 0
        while not done.is_set():
            values = json.loads(path.read_bytes())
            assert len(set(values)) == 1
            read += 1
        return read

    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch)
        command = [sys.executable, "-c", WRITERS, str(path)]
        try:
            runs = [subprocess.Popen(command) for _ in range(3)]
            assert [run.wait(120) for run in runs] == [0, 0, 0]
        finally:
            done.set()
        read = watched.result(60)
    assert read > 10
    assert os.listdir(tmp_path) == ["net"]
