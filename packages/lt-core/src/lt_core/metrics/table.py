"""Print the metrics that validate and test return."""

from __future__ import annotations

from contextlib import suppress

from lt_core.notices import is_terminal, say

__all__ = ["print_results"]


def print_results(stage: str, results: list[dict[str, float]]) -> None:
    """Print a table with one row a metric and one column a loader; plain lines where nobody looks."""
    names = list(dict.fromkeys(name for r in results for name in r))
    if not names:
        return
    head = [f"loader {i}" for i in range(len(results))] if len(results) > 1 else ["value"]
    rows = [[name, *(f"{r[name]:.6g}" if name in r else "" for r in results)] for name in names]
    if is_terminal():
        from rich.console import Console
        from rich.table import Table

        table = Table("metric", *head, title=stage)
        for row in rows:
            table.add_row(*row)
        with suppress(Exception):  # a screen that cannot show it gets the plain lines
            Console().print(table)
            return
    width = max(len(name) for name in names)
    for row in rows:
        say(f"{stage}  {row[0]:<{width}}  {'  '.join(row[1:])}")
