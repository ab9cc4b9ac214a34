"""What checks the built site notices what it is there for; .ci/run builds the site itself."""

from __future__ import annotations

from pathlib import Path

import pytest

import site_links


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="b.html">', None),
        ('<a href="b.html#place">', None),
        ('<a href="#here"><p id="here">', None),
        ('<a href="https://example.org/">', None),
        ('<link rel="canonical" href="https://example.org/">', None),
        ('<a href="c.html">', "leads to c.html"),
        ('<a href="b.html#nowhere">', "no such place"),
        ('<img src="missing.png">', "leads to missing.png"),
        ('<script src="https://example.org/x.js">', "loads https"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "loads //"),
    ],
)
def test_links(html: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text('<h1 id="place">')
    found = site_links.faults(tmp_path)
    assert len(found) == (fault is not None), found
    assert fault is None or fault in found[0]
    assert site_links.main(str(tmp_path)) == len(found)
