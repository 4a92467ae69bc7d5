"""Share with the tests what reads trackers back."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
