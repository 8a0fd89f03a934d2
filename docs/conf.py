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


def keep_bars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep the bars of absolute values, which reStructuredText takes for a substitution."""
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda found: found[1] or r"\|", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for sources."""
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("config-inited", lambda app, config: write_pages(Path(app.srcdir) / "reference"))
