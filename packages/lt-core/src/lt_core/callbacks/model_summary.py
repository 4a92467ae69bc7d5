"""Show what a model consists of when fit begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lt_core.callback import Callback
from lt_core.callbacks.progress.screen import Screen, detect
from lt_core.model.summary import ModuleSummary, estimate_memory, summarize
from lt_core.notices import say

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["ModelSummary", "RichModelSummary"]


class ModelSummary(Callback):
    """Callback that shows layers, parameters and modes, and with ``example_input_array`` sizes and FLOPs.

    A terminal gets a table in colour, anything else plain text.

    Args:
        max_depth: How deep submodules are listed; -1 all, 0 shows nothing.
        **summarize_kwargs: Passed on to `summarize`: for a rich table, arguments of ``rich.table.Table``.
    """

    _has_memory = False

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        self._max_depth = max_depth
        self._summarize_kwargs = summarize_kwargs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the summary, on rank 0 only."""
        if not self._max_depth:
            return
        summary = summarize(pl_module, self._max_depth, trainer.forward_context())
        if self._has_memory:
            summary.memory = estimate_memory(pl_module, trainer.optimizers)
        if trainer.is_global_zero:
            self.summarize(summary, **self._summarize_kwargs)

    def summarize(self, summary: ModuleSummary, **kwargs: Any) -> None:
        """Write the summary to the screen; override it to write elsewhere.

        Args:
            summary: What was counted.
            **kwargs: The callback's ``summarize_kwargs``.
        """
        if detect() is Screen.TERMINAL:
            print_table(summary, **kwargs)
        else:
            say(str(summary))


class RichModelSummary(ModelSummary):
    """Summary as a rich table, whatever the screen is, with the memory that training will take besides activations.

    With ``example_input_array`` it has the FLOPs of a forward pass, too: of each layer and of all.

    Args:
        max_depth: How deep submodules are listed; -1 all, 0 shows nothing.
        **summarize_kwargs: Arguments of ``rich.table.Table``.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.callbacks import RichModelSummary
        >>> trainer = Trainer(callbacks=[RichModelSummary(max_depth=2)])
    """

    _has_memory = True

    def summarize(self, summary: ModuleSummary, **kwargs: Any) -> None:
        """Write the table."""
        print_table(summary, **kwargs)


def print_table(summary: ModuleSummary, **table_kwargs: Any) -> None:
    """Write a summary as a rich table, and the totals below it; plainly where the screen cannot show that."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(**{"header_style": "bold magenta", **table_kwargs})
    for name in (columns := summary.columns()):
        right = name in {"Params", "FLOPs"}
        table.add_column(name, justify="right" if right else "left", style="dim" if name == " " else None)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    totals = Table.grid(padding=(0, 2))
    for value, meaning in summary.totals():
        totals.add_row(f"[bold]{value}[/]", meaning)
    try:
        console.print(table)
        console.print(totals)
    except Exception:
        say(str(summary))
