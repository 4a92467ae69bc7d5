"""Let the test files share `quiet.py`, wherever they are run from."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
