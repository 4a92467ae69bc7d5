"""Show how far a run is: on a terminal, in a notebook, in a log file."""

from lt_core.callbacks.progress.progress_bar import ProgressBar
from lt_core.callbacks.progress.rich_progress import RichProgressBar, RichProgressBarTheme
from lt_core.callbacks.progress.tqdm_progress import TQDMProgressBar

__all__ = ["ProgressBar", "RichProgressBar", "RichProgressBarTheme", "TQDMProgressBar"]
