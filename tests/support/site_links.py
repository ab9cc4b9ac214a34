"""Every link within the built site leads somewhere, and no page needs the network.

``python tests/support/site_links.py build/site`` prints what is wrong, and exits 1 then.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: What a page loads, not what it leads to.
_LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}
#: Of <link>, which load nothing.
_NAMES = {"canonical", "next", "prev", "index", "search", "alternate", "author"}


class Page(HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := values.get(key))}
        for key in ("href", "src"):
            value = values.get(key)
            if value is None:
                continue
            named = tag == "link" and set((values.get("rel") or "").split()) & _NAMES
            (self.loads if (tag, key) in _LOADS and not named else self.links).append(value)


def faults(site: Path) -> list[str]:
    """What is wrong, a line each."""
    pages = {
        path: Page(path)
        for path in sorted(site.resolve().rglob("*.html"))
        if "_static" not in path.parts  # the theme's templates
    }
    found = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        for link in (*page.loads, *page.links):
            parts = urlsplit(link)
            if parts.scheme in ("data", "mailto"):
                continue
            if parts.scheme or parts.netloc:
                if link in page.loads:
                    found.append(f"{where} loads {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                found.append(f"{where} leads to {link}, which is not there")
            elif parts.fragment and target in pages and where.parts[0] != "_modules":
                # viewcode leads from a source to the right page, but knows one name a module
                anchor = unquote(parts.fragment)
                if anchor not in pages[target].anchors:
                    found.append(f"{where} leads to {link}: there is no such place on that page")
    return found


def main(site: str) -> int:
    """Print the faults of a site."""
    found = faults(Path(site))
    print(*found, f"{len(found)} faults in the links of {site}", sep="\n")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
