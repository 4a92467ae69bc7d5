"""Print the list of flags in Markdown: ``python -m lt_core.config``."""

from lt_core.config.flags import TrainerConfig
from lt_core.config.row import page

print(page(TrainerConfig))
