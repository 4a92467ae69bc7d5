"""Keep every due metric in one append-only file, and send from it what a dead process could not.

``python -m lt_core.journal replay RUN_DIR`` sends what is still spooled.
"""

from lt_core.tracking.history import History
from lt_core.tracking.journal import Journal, Record

__all__ = ["History", "Journal", "Record"]
