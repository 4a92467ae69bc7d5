"""Show what a model consists of when fit begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lt_core.callback import Callback
from lt_core.callbacks.progress.screen import Screen, detect
from lt_core.model.summary import estimate_memory, plain_table, summarize, totals
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
    _memory: dict[str, float | None]

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        self._max_depth = max_depth
        self._summarize_kwargs = summarize_kwargs
        self._memory = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the summary, on rank 0 only."""
        if not self._max_depth:
            return
        found = summarize(pl_module, self._max_depth, trainer.forward_context())
        if self._has_memory:
            self._memory = estimate_memory(pl_module, trainer.optimizers)
        if trainer.is_global_zero:
            self.summarize(
                list(found.columns().items()),
                found.total_parameters,
                found.trainable_parameters,
                found.model_size,
                found.modes,
                total_flops=found.total_flops,
                **self._summarize_kwargs,
            )

    def summarize(
        self,
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int = 0,
        **summarize_kwargs: Any,
    ) -> None:
        """Write the summary to the screen; override it, as a method or a static one, to write elsewhere.

        Args:
            summary_data: The table's columns: title and cells.
            total_parameters: Numbers in all parameters.
            trainable_parameters: Those of them that are trained.
            model_size: Their size in MB (10^6 bytes).
            total_training_modes: How many submodules are in ``"train"`` and in ``"eval"`` mode.
            total_flops: Floating-point operations of a forward pass of the example; 0 without one.
            **summarize_kwargs: The callback's.
        """
        columns = dict(summary_data)
        flops = total_flops if "FLOPs" in columns else None
        below = totals(total_parameters, trainable_parameters, model_size, total_training_modes, flops, self._memory)
        if self._has_memory or detect() is Screen.TERMINAL:
            _print_table(columns, below, **summarize_kwargs)
        else:
            say(plain_table(columns, below))


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


def _print_table(columns: dict[str, list[str]], below: list[tuple[str, str]], **table_kwargs: Any) -> None:
    """Write a summary as a rich table, and the totals below it; plainly where the screen cannot show that."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(**{"header_style": "bold magenta", **table_kwargs})
    for name in columns:
        right = name in {"Params", "FLOPs"}
        table.add_column(name, justify="right" if right else "left", style="dim" if name == " " else None)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    grid = Table.grid(padding=(0, 2))
    for value, meaning in below:
        grid.add_row(f"[bold]{value}[/]", meaning)
    try:
        console.print(table)
        console.print(grid)
    except Exception:
        say(plain_table(columns, below))
