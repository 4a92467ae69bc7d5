"""Launcher of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lt_interface import Outcome, Plan, Problem

__all__ = ["InProcessLauncher"]


class InProcessLauncher:
    """Launcher that starts nothing: the run takes place in this process."""

    name = "in_process"

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Refuse a plan of more than one process."""
        processes = len(plan.devices) * plan.num_nodes
        if processes == 1:
            return []
        return [
            Problem(
                'Trainer(launcher="in_process")',
                "this launcher starts one process only",
                f"{processes} processes",
                "Set devices=1 and num_nodes=1, or leave launcher= out.",
            )
        ]

    def launch(self, main: Callable[[Any], Outcome], payload: Any) -> Outcome:
        """Return ``main(payload)``."""
        return main(payload)
