"""Sphinx's configuration: scripts/docs.sh. Pages are the repository's own Markdown files, where they lie."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HAS_PACKAGE = bool(os.environ["CPNSA_PYTHON_PATH"])
sys.path.insert(0, os.environ["CPNSA_PYTHON_PATH"])

project = "cpnsa"
author = copyright = "The cpnsa maintainers"
release = version = re.search(r'"(.*)"', (ROOT / "python/cpnsa/version.py").read_text(encoding="utf-8")).group(1)

extensions = ["breathe", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "examples/**.md", "python/README.md", "bench/README.md"]
exclude_patterns = ["build", ".*", "docs/site/contents.md"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = f"cpnsa {version}"
html_extra_path = ["html"]
html_copy_source = False

myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
myst_update_mathjax = False
suppress_warnings = ["misc.highlighting_failure"]  # pictures in text and shell sessions

breathe_projects = {"cpnsa": os.environ["CPNSA_DOXYGEN_XML"]}
breathe_default_project = "cpnsa"
breathe_default_members = ("members",)
breathe_domain_by_extension = {"hpp": "cpp", "h": "c"}

autodoc_mock_imports = os.environ["CPNSA_MOCK"].split()
autodoc_member_order = "bysource"
autodoc_typehints = "none"

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def link_to_pages(app, docname, source):
    """A link to a folder becomes one to its README.md, a link to any other file that is no page becomes its path. A
    link to nothing stays, and is Sphinx's warning."""
    folder = (ROOT / docname).parent

    def replaced(match):
        text, target, anchor = match.groups()
        path = (folder / target).resolve()
        if path.is_dir() and (path / "README.md").exists():
            return f"[{text}]({target.rstrip('/')}/README.md{anchor or ''})"
        if path.exists() and path.suffix != ".md":
            name = path.relative_to(ROOT).as_posix()
            return text if name in text else f"{text} (`{name}`)"
        return match.group(0)

    source[0] = LINK.sub(replaced, source[0])


def add_contents(app, docname, source):
    """The site's contents, below the first page."""
    if docname == root_doc:
        source[0] += (ROOT / "docs/site/contents.md").read_text(encoding="utf-8")


def leave_out_package(app, docname, source):
    """Without the built package its reference is a remark."""
    if docname == "docs/site/reference_python" and not HAS_PACKAGE:
        source[0] = "# Python reference\n\nThis site was built without the Python package, which has the reference.\n"


def escape_stars(app, what, name, obj, options, lines):
    """Docstrings are plain text, where *args is no emphasis."""
    lines[:] = [line.replace("*", "\\*") for line in lines]


def setup(app):
    app.connect("source-read", leave_out_package)
    app.connect("autodoc-process-docstring", escape_stars)
    app.connect("source-read", add_contents)
    app.connect("source-read", link_to_pages)
