"""Print the table of hooks in Markdown: ``python -m lt_core.hooks``."""

from lt_core.hooks.table import table_markdown

print(table_markdown(), end="")
