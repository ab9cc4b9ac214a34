"""The compiled CPU engine is built by an installation and, where that is editable, by later use.

In a small tree with sources of a few lines: how they are compiled is asked, not what they compute.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyproject_hooks import BuildBackendHookCaller

from machine import ROOT, needs_compiler

pytestmark = pytest.mark.filterwarnings("ignore:Editable installation")
CPU = Path("backprop_gpu", "kernels", "cpu")
SOURCES = {
    "library.cpp": '#include "exported.h"\nEXPORTED int version() { return 1; }\n',
    "level.cpp": '#include "exported.h"\n#include "../cuda/shared.cuh"\n'
    "#define JOIN(a, b) a##b\n#define NAMED(a, b) JOIN(a, b)\n"
    "EXPORTED int NAMED(level_, LEVEL)() { return SHARED; }\n",
    "exported.h": '#define EXPORTED extern "C" __attribute__((visibility("default")))\n',
    "../cuda/shared.cuh": "#define SHARED 1\n",
    "../cuda/unrelated.cuh": "",
}
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


class Tree:
    """A tree that can be installed, and the environment that it is done in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "kernels" / "cpu"
        self.environment = {key: value for key, value in os.environ.items() if key != "CXX"}

    def call(self, hook: str, out: Path | None = None, **environment: str) -> Any:
        """Call a hook of the backend, as pip does."""

        def run(
            command: list[str],
            cwd: str | None = None,
            extra_environ: Mapping[str, str] | None = None,
        ) -> None:
            variables = self.environment | dict(extra_environ or {}) | environment
            done = subprocess.run(
                command, cwd=cwd, env=variables, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr

        system = re.search(r'build-backend = "(.+)"\nbackend-path = \["(.+)"\]', PROJECT)
        assert system is not None
        caller = BuildBackendHookCaller(self.root, system[1], [system[2]], run)
        return getattr(caller, hook)(*([] if out is None else [out]))

    def wheel(self, out: Path, **environment: str) -> zipfile.ZipFile:
        return zipfile.ZipFile(out / self.call("build_wheel", out, **environment))

    def python(self, code: str, **environment: str) -> str:
        return subprocess.run(
            self.command(code), env=self.environment | environment,
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    def command(self, code: str) -> list[str]:
        before = f"import json, sys; sys.path.insert(0, {str(self.folder)!r}); import build\n"
        return [sys.executable, "-c", before + code]

    def ensure(self, **environment: str) -> dict[str, Any]:
        return json.loads(self.python("print(json.dumps(build.current()))", **environment))

    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "build.json").read_bytes())

    def library(self) -> Path:
        (path,) = self.folder.glob("libbackprop_cpu.*")
        return path

    def leftovers(self) -> list[Path]:
        return list(self.folder.glob(".build-*"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    needs_compiler()
    root = tmp_path / "tree"
    for name in ("cpu", "cuda"):
        (root / "kernels" / name).mkdir(parents=True)
    (root / "backprop_gpu").mkdir()
    (root / "backprop_gpu" / "kernels").symlink_to("../kernels")
    (root / "backprop_gpu" / "__init__.py").touch()
    shutil.copy(ROOT / "kernels" / "__init__.py", root / "kernels")
    for path in (ROOT / "kernels" / "cpu").glob("*.py"):
        shutil.copy(path, root / "kernels" / "cpu")
    for name, text in SOURCES.items():
        (root / "kernels" / "cpu" / name).write_text(text)
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    packages = '"backprop_gpu", "backprop_gpu.kernels", "backprop_gpu.kernels.cpu"'
    listed = re.search(r"\[tool\.setuptools\]\n(?:#.*\n)*packages = (\[[^]]*\])\n", PROJECT)
    assert listed is not None
    project = PROJECT.replace(listed[1], f"[{packages}]")
    (root / "pyproject.toml").write_text(project)
    return Tree(root)


def compiler(folder: Path, before: str) -> str:
    """A compiler that does something else before it is g++."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\n{before}\nexec g++ "$@"\n')
    path.chmod(0o755)
    return str(path)


def counting(folder: Path) -> tuple[str, Path]:
    """A compiler, and the file in which it writes a line for each level that it compiles."""
    log = folder / "compiled"
    log.touch()
    told = f'case "$*" in *level.cpp*) sleep 0.2; echo level >> {log};; esac'
    return compiler(folder, told), log


def inside(wheel: zipfile.ZipFile, name: str) -> bytes:
    return wheel.read((CPU / name).as_posix())


def is_pure(wheel: zipfile.ZipFile) -> bool:
    """Whether it says so, and holds no library."""
    pure = str(wheel.filename).endswith("-py3-none-any.whl")
    assert pure is not any("libbackprop_cpu" in name for name in wheel.namelist())
    return pure


def level_of(library: Path) -> int:
    """What the levels of a library return; in a process of its own, which may load another."""
    code = (
        "import ctypes, json, sys; library = ctypes.CDLL(sys.argv[1])\n"
        "print({getattr(library, 'level_' + name)() for name in json.loads(sys.argv[2])}.pop())"
    )
    levels = json.loads((library.parent / "build.json").read_bytes())["levels"]
    command = [sys.executable, "-c", code, str(library), json.dumps(levels)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def test_a_wheel_holds_the_library_and_is_for_every_python(tree: Tree, tmp_path: Path) -> None:
    assert not any("ziglang" in name for name in tree.call("get_requires_for_build_wheel"))
    wheel = tree.wheel(tmp_path)
    assert not is_pure(wheel)
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", str(wheel.filename))
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
    assert "Root-Is-Purelib: false" in wheel.read(metadata).decode()
    assert not any(".data/" in name for name in wheel.namelist())
    record = json.loads(inside(wheel, "build.json"))
    assert record["reason"] is None
    assert record["editable"] is False
    assert record["compiler"] == "g++"
    assert record["version"]
    assert len(record["sha256"]) == 64
    assert "files" not in record  # dates and places of this machine
    wheel.extractall(tmp_path / "unpacked")
    library = tmp_path / "unpacked" / CPU / record["library"]
    assert level_of(library) == 1
    assert ctypes.CDLL(str(library)).version() == 1
    assert b"libstdc++" not in library.read_bytes()
    assert {"level.cpp", "exported.h", "build.py"} <= set(os.listdir(library.parent))
    assert tree.leftovers() == []


def test_an_sdist_holds_the_sources_and_gives_the_wheel(tree: Tree, tmp_path: Path) -> None:
    tree.wheel(tmp_path)
    name = tree.call("build_sdist", tmp_path)
    with tarfile.open(tmp_path / name) as archive:
        files = {path.partition("/")[2] for path in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    (tmp_path / name.removesuffix(".tar.gz")).rename(tmp_path / "unpacked")
    sources = {"library.cpp", "level.cpp", "exported.h", "build.py", "backend.py"}
    assert {(CPU / source).as_posix() for source in sources} <= files
    assert not any("libbackprop_cpu" in file or file.endswith("build.json") for file in files)
    shared = tmp_path / "unpacked" / CPU.parent / "cuda"
    shared.mkdir()  # this tree has no such package
    (shared / "shared.cuh").write_text(SOURCES["../cuda/shared.cuh"])
    unpacked = Tree(tmp_path / "unpacked")
    assert not is_pure(unpacked.wheel(tmp_path))


def test_without_a_compiler_the_wheel_is_pure_and_says_why(tree: Tree, tmp_path: Path) -> None:
    """Also where an earlier build left a library, in the tree or in setuptools' build folder."""
    assert not is_pure(tree.wheel(tmp_path))
    (stale,) = (tree.root / "build").glob("lib*")
    shutil.copytree(stale, tree.root / "build" / "lib")
    wheel = tree.wheel(tmp_path, CXX="/bin/false")
    assert is_pure(wheel)
    record = json.loads(inside(wheel, "build.json"))
    assert record["library"] is None
    assert "/bin/false" in record["reason"]
    assert "pip install ziglang" in record["reason"]
    # The library in the tree is as good as it was.
    assert tree.record()["library"] == tree.library().name
    # But not for other sources.
    (tree.folder / "exported.h").write_text(SOURCES["exported.h"] + "\n")
    assert is_pure(tree.wheel(tmp_path, CXX="/bin/false"))
    assert tree.record()["library"] is None
    assert not list(tree.folder.glob("libbackprop_cpu.*"))


@pytest.mark.parametrize("chosen", ["g++", "/bin/false"])
def test_pip_installs(tree: Tree, tmp_path: Path, chosen: str) -> None:
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    environment = tree.environment | {"CXX": chosen}
    subprocess.run([*pip, *options, str(tree.root)], env=environment, check=True)
    shown = subprocess.run(
        [sys.executable, str(target / CPU / "build.py"), "--show"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == (chosen != "g++")
    expected = "by g++" if chosen == "g++" else "no C++20 compiler works here"
    assert expected in shown.stdout + shown.stderr


def test_what_the_compiler_says_is_the_reason(tree: Tree, tmp_path: Path) -> None:
    cannot = 'echo "level.cpp:7:1: error: this is not to its taste" >&2; exit 1'
    broken = compiler(tmp_path, f'case "$*" in *level.cpp*) {cannot};; esac')
    wheel = tree.wheel(tmp_path, CXX=broken)
    assert is_pure(wheel)
    reason = json.loads(inside(wheel, "build.json"))["reason"]
    assert "could not compile level.cpp for " in reason
    assert "this is not to its taste" in reason
    assert tree.leftovers() == []


def test_a_compiler_that_is_too_old_is_passed_over(tree: Tree, tmp_path: Path) -> None:
    """The next is taken; and ziglang, where there is none."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    old = bin_folder / "g++"
    old.write_text(
        '#!/bin/sh\n[ "$*" = --version ] && echo g++ 4 && exit\necho "error: c++20?" >&2\nexit 1\n'
    )
    old.chmod(0o755)
    (requirement,) = (
        name
        for name in tree.call("get_requires_for_build_wheel", PATH=str(bin_folder))
        if name.startswith("ziglang")
    )
    assert requirement.startswith("ziglang>=")
    (bin_folder / "c++").symlink_to(str(shutil.which("g++")))
    path = f"{bin_folder}:/usr/bin:/bin"  # where g++ finds its assembler
    command = "print(build.find().command)"
    if not shutil.which("clang++", path=path):
        assert tree.python(command, PATH=path) == "('c++',)\n"
    assert tree.python(command, PATH=path) in ("('clang++',)\n", "('c++',)\n")


def test_none_is_built_where_none_is_wanted(tree: Tree, tmp_path: Path) -> None:
    """And later use does not build it either, though there is a compiler."""
    wish = {"BACKPROP_GPU_NO_COMPILER": "1"}
    required = tree.call("get_requires_for_build_wheel", PATH="/nowhere", **wish)
    assert not any("ziglang" in name for name in required)
    wheel = tree.wheel(tmp_path, **wish)
    assert is_pure(wheel)
    assert "BACKPROP_GPU_NO_COMPILER" in json.loads(inside(wheel, "build.json"))["reason"]
    tree.call("build_editable", tmp_path, **wish)
    (tree.folder / "exported.h").write_text(SOURCES["exported.h"] + "\n")
    assert tree.ensure()["library"] is None


def test_an_editable_installation_follows_the_sources(tree: Tree, tmp_path: Path) -> None:
    tree.call("build_editable", tmp_path)
    assert tree.record()["editable"] is True
    built = tree.library()
    before = built.stat().st_mtime_ns
    assert level_of(built) == 1

    broken = {"CXX": "/bin/false"}  # nothing is compiled
    shared = tree.root / "kernels" / "cuda" / "shared.cuh"
    (shared.parent / "unrelated.cuh").write_text("// not included\n")
    shared.touch()
    assert tree.ensure(**broken)["library"] == built.name
    assert built.stat().st_mtime_ns == before

    shared.write_text("#define SHARED 2\n")
    assert tree.ensure()["library"] == built.name
    assert level_of(built) == 2

    shared.write_text("#define SHARED nothing\n")
    record = tree.ensure()
    assert record["library"] is None
    assert "nothing" in record["reason"]
    assert not built.exists()  # it would be of other sources
    assert tree.record()["editable"] is True

    shared.write_text("#define SHARED 3\n")
    assert tree.ensure()["library"] == built.name
    assert level_of(built) == 3
    built.write_bytes(b"torn")
    tree.ensure()
    assert level_of(built) == 3


def test_a_wheel_from_an_editable_tree_leaves_it_editable(tree: Tree, tmp_path: Path) -> None:
    tree.call("build_editable", tmp_path)
    wheel = tree.wheel(tmp_path)
    assert json.loads(inside(wheel, "build.json"))["editable"] is False
    assert tree.record()["editable"] is True


def test_an_installation_that_is_not_editable_builds_nothing(tree: Tree, tmp_path: Path) -> None:
    assert "not been built yet" in tree.ensure()["reason"]
    tree.wheel(tmp_path)
    (tree.root / "kernels" / "cuda" / "shared.cuh").write_text("#define SHARED 2\n")
    assert tree.ensure()["library"]
    assert level_of(tree.library()) == 1


def test_of_several_processes_one_builds(tree: Tree, tmp_path: Path) -> None:
    tree.call("build_editable", tmp_path)
    (tree.root / "kernels" / "cuda" / "shared.cuh").write_text("#define SHARED 2\n")
    (tree.folder / ".build-abandoned").mkdir()
    chosen, log = counting(tmp_path)
    processes = [
        subprocess.Popen(
            tree.command("print(json.dumps(build.current()))"),
            env=tree.environment | {"CXX": chosen}, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    records = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert records[0]["library"]
    assert records[0] == records[1] == records[2]
    assert log.read_text().split() == ["level"] * len(records[0]["levels"])
    assert level_of(tree.library()) == 2
    assert tree.leftovers() == []


def test_what_failed_is_not_tried_again_in_vain(tree: Tree, tmp_path: Path) -> None:
    tree.call("build_editable", tmp_path)
    shared = tree.root / "kernels" / "cuda" / "shared.cuh"
    shared.write_text("#define SHARED nothing\n")
    chosen, log = counting(tmp_path)
    assert tree.ensure(CXX=chosen)["library"] is None
    tried = log.read_text()
    assert tried
    assert tree.ensure(CXX=chosen)["library"] is None
    shared.touch()
    assert tree.ensure(CXX=chosen)["library"] is None
    assert log.read_text() == tried
    tree.ensure(CXX="/bin/false")  # but with another compiler it is
    assert "/bin/false" in tree.record()["reason"]
    shared.write_text("#define SHARED 2\n")  # and with other sources
    assert tree.ensure(CXX=chosen)["library"]


def test_an_installation_does_not_take_what_another_compiler_made(
    tree: Tree, tmp_path: Path
) -> None:
    tree.wheel(tmp_path)
    chosen, log = counting(tmp_path)
    tree.wheel(tmp_path, CXX=chosen)
    assert tree.record()["compiler"] == "compiler"
    made = log.read_text()
    assert made
    tree.wheel(tmp_path, CXX=chosen)
    assert log.read_text() == made


def test_a_folder_that_cannot_be_written_is_a_reason(tree: Tree, tmp_path: Path) -> None:
    (tree.folder / "build.lock").mkdir()
    wheel = tree.wheel(tmp_path)
    assert is_pure(wheel)
    assert "cannot be written" in json.loads(inside(wheel, "build.json"))["reason"]


def test_ziglang_compiles_where_nothing_else_does(tree: Tree, tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the package ziglang is not installed")
    wheel = tree.wheel(tmp_path, PATH="/nowhere")
    assert not is_pure(wheel)
    assert json.loads(inside(wheel, "build.json"))["compiler"] == "ziglang"
    assert level_of(tree.library()) == 1
    assert b"libc++" not in tree.library().read_bytes()
