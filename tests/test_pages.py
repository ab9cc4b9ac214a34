"""Every code block of every page runs, in its order, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pages
from machine import ROOT

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
#: tests/torch runs it.
OF_TORCH = "docs/torch.md"


@pytest.mark.parametrize("page", [page for page in PAGES if page != OF_TORCH])
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    pages.run_alone(ROOT / page, tmp_path)


def test_blocks_are_found_and_left_out_for_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- setup\nx = 1\n-->\n```python\ny = x + 1\n```\ntext\n<!-- not run: no GPU -->\n"
        "```bash\nfalse\n```\n```text\nnothing\n```\n```python\nassert y == 2\n```\n"
    )
    found = pages.blocks(page)
    assert [block.language for block in found] == ["python", "python", "bash", "python"]
    assert [block.reason for block in found] == ["", "", "no GPU", ""]
    told: list[str] = []
    pages.run(page, told.append)
    assert told == ["page.md:9 is not run: no GPU"]
    page.write_text("```python\n1 / 0\n```")
    with pytest.raises(ZeroDivisionError):
        pages.run(page)
    page.write_text("```bash\nfalse\n```")
    with pytest.raises(AssertionError, match="ends with status 1"):
        pages.run(page)
    page.write_text("```python\n```\n\n<!-- not run: left over -->\n")
    with pytest.raises(AssertionError, match="nothing follows"):
        pages.run(page)


def test_no_block_is_without_a_language() -> None:
    """One without would be run by nobody."""
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert all(fences[::2]), page
        assert not any(fences[1::2]), page
