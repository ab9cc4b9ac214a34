"""The code blocks of docs/torch.md run; tests/test_pages.py runs those of the other pages."""

from __future__ import annotations

from pathlib import Path

import pytest

import pages
from machine import ROOT

pytest.importorskip(
    "torch", reason="docs/torch.md needs PyTorch: pip install 'backprop_gpu[torch]'"
)


def test_the_page_runs(tmp_path: Path) -> None:
    pages.run_alone(ROOT / "docs" / "torch.md", tmp_path)
