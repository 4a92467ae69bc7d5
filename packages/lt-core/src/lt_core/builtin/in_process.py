"""Launcher of this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from lt_interface import ClusterEnvironment, Outcome, Plan, Problem

__all__ = ["InProcessLauncher"]


class InProcessLauncher:
    """Launcher that starts nothing: the run takes place in this process."""

    name = "in_process"
    passes = "live"

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Refuse a plan of more than one process, unless this is one of so many that the user started by hand."""
        there = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
        if plan.processes == 1 or there == str(plan.processes):
            return []
        return [
            Problem(
                f"Trainer, launcher {self.name}",
                "it starts one process only",
                f"{plan.processes} processes"
                + (f", and WORLD_SIZE={there} in the environment" if there != "1" else ""),
                "Set devices=1 and num_nodes=1, name a launcher that starts them, or start the script with torchrun.",
            )
        ]

    def launch(
        self, main: Callable[[Any], Outcome], request: Any, plan: Plan, cluster: ClusterEnvironment | None
    ) -> Outcome:
        """Return ``main(request)``."""
        return main(request)
