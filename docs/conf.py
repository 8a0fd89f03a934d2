"""Sphinx configuration: ``make docs`` builds the pages and fails on a broken link or a missing reference."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from cutmix import __version__  # noqa: E402
from reference import write_pages  # noqa: E402

project = "cutmix"
author = copyright = "the cutmix contributors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = f"cutmix {release}"
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True

# A reference in a text has to resolve; the types in a signature may be other projects', which are not fetched.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:.*", r"(?!cutmix\b)\w+\..*")]


def as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep what reStructuredText would read otherwise: bars of absolute values, and indented equations and code."""
    kept, literal = [], False
    for number, line in enumerate(lines):
        if line.startswith("    ") and number > 1 and not lines[number - 1] and lines[number - 2][:1].strip():
            kept, literal = [*kept, "::", ""], True
        elif line[:1].strip():
            literal = False
        kept.append(line if literal else re.sub(r"(``.*?``)|\|", lambda found: found[1] or r"\|", line))
    lines[:] = kept


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for sources."""
    app.connect("autodoc-process-docstring", as_written, priority=400)  # before napoleon
    app.connect("config-inited", lambda app, config: write_pages(Path(app.srcdir) / "reference"))
