"""Settings of the documentation."""

import re
from pathlib import Path

root = Path(__file__).resolve().parents[1]
version_file = root / "packages/lt-core/src/lt_core/version.py"
found = re.search(r'"([^"]+)"', version_file.read_text(encoding="utf-8").split("__version__", 1)[1])

project = "lt"
author = "the authors of lt"
release = version = found.group(1) if found else ""
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "A trainer for PyTorch"
autodoc_typehints = "none"
suppress_warnings = ["myst.xref_missing"]
