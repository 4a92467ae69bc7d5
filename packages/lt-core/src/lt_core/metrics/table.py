"""Print the metrics that validate and test return."""

from __future__ import annotations

import sys

__all__ = ["print_results"]


def print_results(stage: str, results: list[dict[str, float]]) -> None:
    """Print a table with one row a metric and one column a loader; plain lines where nobody looks."""
    names = list(dict.fromkeys(name for r in results for name in r))
    if not names:
        return
    head = [f"loader {i}" for i in range(len(results))] if len(results) > 1 else ["value"]
    rows = [[name, *(f"{r[name]:.6g}" if name in r else "" for r in results)] for name in names]
    if sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table("metric", *head, title=stage)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    width = max(len(name) for name in names)
    for row in rows:
        print(f"{stage}  {row[0]:<{width}}  {'  '.join(row[1:])}")
