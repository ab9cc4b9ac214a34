"""The site: ``python -m sphinx -W docs build/site`` in an environment with the extra ``docs``.

Beside the guides it shows what is made here of the library itself: the gallery, the book's figures
and the notes, which run; the reference, of the names in reference.toml; and the benchmarks, of the
records.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import backprop_gpu
from backprop_gpu import records
from backprop_gpu.benchmarks import report

os.environ["TQDM_DISABLE"] = "1"  # bars are not for pages
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
import public_names  # noqa: E402

MADE = HERE / "made"  # all that is written here; git does not have it

project = "backprop_gpu"
version = release = backprop_gpu.__version__
copyright = "the authors of backprop_gpu, MIT licence"

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["book/*", "gallery/*", "notes/*", "templates/*", "**/GALLERY_HEADER.rst"]
suppress_warnings = ["config.cache"]  # sphinx_gallery_conf holds a function

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# -- the reference --------------------------------------------------------------------

autosummary_generate = False  # a page of each name is written below
autodoc_typehints = "none"  # numpydoc's sections have them
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
default_role = "code"

#: scikit-learn's docstrings, where they are ours, too, point to pages of its own.
_THEIRS = re.compile(r":(?:ref|term):`~?([^`<]+?)(?:\s*<[^>]*>)?`")


def plain(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Of a docstring: |x| and (n, *shape) are as they stand."""
    lines[:] = [
        _THEIRS.sub(r"\1", line).replace("|", r"\|").replace(", *", r", \*") for line in lines
    ]


def write_reference() -> None:
    """A page for each section of reference.toml, and one for each of its names."""
    lines = ["# Reference", "", "```{toctree}", ":maxdepth: 1", ""]
    listed = tomllib.loads((HERE / "reference.toml").read_text(encoding="utf-8"))
    for section in listed["section"]:
        title: str = section["title"]
        page = title.lower().replace(" ", "-").replace(",", "")
        lines.append(page)
        names = "\n".join(f"   {name}" for name in section["names"])
        write(
            MADE / "reference" / f"{page}.rst",
            f"{title}\n{'=' * len(title)}\n\n"
            f".. autosummary::\n   :toctree: names\n   :nosignatures:\n\n{names}\n",
        )
        for name in section["names"]:
            write(MADE / "reference" / "names" / f"{name}.rst", page_of(name))
    write(MADE / "reference" / "index.md", "\n".join([*lines, "```", ""]))


def page_of(name: str) -> str:
    """The page of a name: of a class with all members that are documented."""
    found = public_names.find(name)
    short = name.rpartition(".")[2]
    if not inspect.isclass(found):
        directive = f".. autofunction:: {name}\n"
    else:
        members = ", ".join(public_names.members(found))
        directive = f".. autoclass:: {name}\n" + (f"   :members: {members}\n" if members else "")
    return f"{short}\n{'=' * len(short)}\n\n{directive}"


# -- the benchmarks -------------------------------------------------------------------


def write_benchmarks() -> None:
    """The tables of README, of all records, and the page of plots that `bench report` writes."""
    found = records.read(records.RESULTS / records.BENCH)
    gpu = records.read(records.RESULTS / records.GPU)
    steps = [record for record in gpu if record.get("op") == "training"]
    text = (HERE / "templates" / "benchmarks.md").read_text(encoding="utf-8")
    text = text.replace("{{cpu}}", report.markdown(found))
    text = text.replace(
        "{{gpu}}", report.markdown(steps, "python -m backprop_gpu.benchmarks.gpu_record")
    )
    write(MADE / "benchmarks.md", text)
    (MADE / "extra").mkdir(parents=True, exist_ok=True)
    write(MADE / "extra" / "plots.html", report.page([*found, *steps]))


def write(path: Path, text: str) -> None:
    """Only where it changes something, for Sphinx builds anew what is newer."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


write_reference()
write_benchmarks()
html_extra_path = ["made/extra"]

# -- the gallery, the book's figures and the notes -------------------------------------


def quiet(*_: Any) -> None:
    """Before an example: what a warning says is for those who run it."""
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
    warnings.filterwarnings("ignore", message="these are scikit-learn's digits")


sphinx_gallery_conf = {
    "examples_dirs": ["gallery", "book", "notes"],
    "gallery_dirs": ["made/gallery", "made/book", "made/notes"],
    "filename_pattern": r"/[a-z]\w*\.py$",  # each runs
    "ignore_pattern": r"/_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "plot_gallery": True,
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib", "seaborn", quiet),
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
    "min_reported_time": 0,
    "show_signature": False,
    "write_computation_times": False,
    "capture_repr": ("_repr_html_", "__repr__"),
    "nested_sections": False,
}

# -- how it looks ---------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "backprop_gpu"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}  # light or dark as the reader has it
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": []}


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", plain, priority=300)  # before numpydoc's
