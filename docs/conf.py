"""Settings of the documentation."""

import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
version_file = root / "packages/lt-core/src/lt_core/version.py"
found = re.search(r'"([^"]+)"', version_file.read_text(encoding="utf-8").split("__version__", 1)[1])

project = "lt"
author = "the authors of lt"
release = version = found.group(1) if found else ""
extensions = ["myst_parser", "sphinx_design"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "A trainer for PyTorch"
html_show_copyright = False
maximum_signature_line_length = 88
# Each page would copy all entries into its navigation; pages of classes begin with a table instead.
toc_object_entries = False
# An annotation in the reference is a bare name, which two modules may have.
suppress_warnings = ["myst.xref_missing", "ref.python"]


def setup(app):
    """Write the pages of the API reference before Sphinx looks for pages."""
    sys.path.insert(0, str(root / "ci"))
    import api_reference

    app.connect("builder-inited", lambda app: api_reference.write(Path(app.srcdir) / "api"))
