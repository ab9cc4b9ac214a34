"""The command line, called within this process."""

from __future__ import annotations

import pytest

from backprop_gpu import cli


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that exits with 2 and prints nothing else."""
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("backprop-gpu")
    assert ": error: " in printed.err
    return printed.err
