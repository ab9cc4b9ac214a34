"""The installation: setuptools' backend, after the CPU engine's library is built (PEP 517).

The library is loaded with ctypes, so that a wheel with it is a platform's, but any Python's:
``py3-none-<platform>``. Where it cannot be built the installation succeeds without it, and
``build.json`` holds the reason. ``setup.py`` hands the classes below to setuptools.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, build_meta
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

from . import build

Settings = dict[str, Any] | None  # the frontend's `config_settings`

build_sdist = build_meta.build_sdist
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel

_ZIGLANG = "ziglang>=0.17"
#: What the wheel at hand is to hold; a hook that builds none leaves it.
_record: build.Record = {}


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiler()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiler()]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    _build(editable=None)
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    _build(editable=True)
    return str(build_meta.build_editable(wheel_directory, config_settings, metadata_directory))


def _compiler() -> list[str]:
    return [_ZIGLANG] if build.needs_ziglang() else []


def _build(editable: bool | None) -> None:
    print("building the compiled CPU engine", file=sys.stderr, flush=True)
    _record.clear()
    _record.update(build.ensure(installing=True, editable=editable))
    print(build.described(_record), file=sys.stderr, flush=True)


class PlatformDistribution(Distribution):
    """One that belongs to a platform if it has the library: it goes where extensions go."""

    def has_ext_modules(self) -> bool:
        return bool(_record.get("library"))


class PlatformWheel(bdist_wheel):
    """A wheel whose name says that any Python of the platform may have it."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        if not _record.get("library"):
            return python, abi, platform
        # A universal2 Python, but a library for the processor at hand.
        own = {"aarch64": "arm64"}.get(build.machine(), build.machine())
        return "py3", "none", platform.replace("universal2", own)


class BuildWithLibrary(build_py):
    """The modules, and what was built just now: nothing that an earlier build left behind."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "backprop_gpu"), ignore_errors=True)
        super().run()
        if self.editable_mode or not _record:
            return
        target = Path(self.build_lib, "backprop_gpu", "kernels", "cpu")
        if library := _record.get("library"):
            shutil.copy2(build.HERE / library, target)
        record = {key: value for key, value in _record.items() if key not in ("files", "tools")}
        record["editable"] = False
        text = json.dumps(record, indent=1) + "\n"
        (target / build.RECORD.name).write_text(text, encoding="utf-8")
