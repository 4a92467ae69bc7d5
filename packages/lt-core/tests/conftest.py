"""Let the test files share `quiet.py`, wherever they are run from, and no property depend on how busy a machine is."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.append(str(Path(__file__).parent))
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
