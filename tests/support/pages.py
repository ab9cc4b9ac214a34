"""The code blocks of a Markdown page, run in their order as a reader would.

Python blocks share one namespace, bash blocks one folder with them. What a reader has at hand (X,
y, a file of rows) comes from a comment that no page shows:

    <!-- setup
    X = ...
    -->

and a block that cannot run where tests do is left out by ``<!-- not run: why -->`` before it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PART = re.compile(
    r"^(?:<!-- setup\n(?P<setup>.*?)\n-->|<!-- not run: (?P<reason>[^\n]+?) -->"
    r"|```(?P<language>[\w-]+)\n(?P<code>.*?)\n```)$",
    re.MULTILINE | re.DOTALL,
)
#: Blocks that nothing could run: what a command prints, files of other programs.
SHOWN = ("text", "toml", "csv", "json", "yaml")


@dataclass(frozen=True)
class Block:
    """A piece of a page's code."""

    language: str
    code: str
    line: int
    reason: str = ""  # not to run it


def blocks(path: Path) -> list[Block]:
    """Of a page, its setup among them."""
    text = path.read_text(encoding="utf-8")
    found, reason = [], ""
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["reason"]:
            reason = part["reason"]
        elif part["setup"]:
            found.append(Block("python", part["setup"], line))
        elif part["language"] not in SHOWN:
            found.append(Block(part["language"], part["code"], line, reason))
            reason = ""
    assert not reason, f"{path.name}: nothing follows 'not run: {reason}'"
    return found


def run(path: Path, skipped: Any = print) -> None:
    """Run a page in the current folder; `skipped` is told of what is not run."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(path):
        place = f"{path.name}:{block.line}"
        if block.reason:
            skipped(f"{place} is not run: {block.reason}")
        elif block.language == "python":
            # At its line of the page, for tracebacks.
            code = compile("\n" * block.line + block.code, str(path), "exec")
            exec(code, namespace)
        elif block.language in ("bash", "sh"):
            _run_shell(block.code, place)
        elif block.language == "c":
            if shutil.which("cc") is None:
                skipped(f"{place} is not run: there is no C compiler")
                continue
            Path("program.c").write_text(block.code, encoding="utf-8")
            _run_shell("cc -std=c99 -Wall -Werror program.c -o program -lm && ./program", place)
        else:
            raise AssertionError(f"{place}: nothing runs {block.language}")


def run_alone(path: Path, folder: Path) -> None:
    """Run a page in a process of its own, in a folder."""
    environment = os.environ | {"MPLBACKEND": "agg", "MPLCONFIGDIR": str(folder / "mpl")}
    done = subprocess.run(
        [sys.executable, __file__, path],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def _run_shell(code: str, place: str) -> None:
    folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env=os.environ | {"PATH": folder + os.pathsep + os.environ["PATH"]},
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{place} ends with status {done.returncode}"


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
