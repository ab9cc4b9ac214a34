"""The wheel holds every module and every kernel source, and puts nothing beside backprop_gpu."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from machine import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # From a copy, so that a build folder left in the tree cannot lend the wheel its files.
    source = tmp_path_factory.mktemp("source")
    for name in ("backprop_gpu", "benchmarks", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", "libbackprop_cpu.*", "build.json")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
        # tests/test_native_build.py builds with one
        env=os.environ | {"BACKPROP_GPU_NO_COMPILER": "1"},
    )
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_source(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.css", "*.js", "py.typed")
        for path in (ROOT / "backprop_gpu").rglob(pattern)
    }
    expected |= {
        f"backprop_gpu/{path.relative_to(ROOT).as_posix()}"
        for folder in ("kernels", "benchmarks")
        for pattern in ("*.py", "*.cu", "*.cuh", "*.cpp", "*.h", "README.md", "*.jsonl")
        for path in (ROOT / folder).rglob(pattern)
    }
    assert expected <= set(wheel.namelist()), expected - set(wheel.namelist())
    assert "backprop_gpu/kernels/cpu/level.cpp" in expected
    assert "backprop_gpu/kernels/cuda/gemm.cuh" in expected
    assert "backprop_gpu/benchmarks/peers/__init__.py" in expected
    assert "backprop_gpu/benchmarks/results/bench.jsonl" in expected


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    version = PROJECT["project"]["version"]
    assert tops == {"backprop_gpu", f"backprop_gpu-{version}.dist-info"}


def test_the_versions_agree() -> None:
    import backprop_gpu

    assert backprop_gpu.__version__ == PROJECT["project"]["version"]


def test_tables_of_readme_come_from_the_records() -> None:
    from backprop_gpu import records
    from backprop_gpu.benchmarks import report

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = records.read(records.RESULTS / records.BENCH)
    assert report.markdown(found) in readme
    found = records.read(records.RESULTS / records.GPU)
    steps = [record for record in found if record.get("op") == "training"]
    assert report.markdown(steps, "python -m backprop_gpu.benchmarks.gpu_record") in readme


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "kernels/README.md"])
def test_a_page_names_places_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:backprop_gpu|benchmarks|docs|kernels|tests)/[\w./-]*)`", text))
    assert named
    assert [place for place in sorted(named) if not (ROOT / place).exists()] == []
