"""What a trainer's journal holds: every value that was due, of fits and evaluations, in its order."""

from __future__ import annotations

from lt_core import Trainer


class Logged(dict[str, list[float]]):
    """Values of each metric in the order they were logged, and in ``steps`` the x-axis value of each."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int]] = {}


def logged(trainer: Trainer) -> Logged:
    """Return every value that a trainer's loggers were due to get."""
    found = Logged()
    for record in trainer._journal.read() if trainer._journal is not None else ():
        for name, value in record.values.items():
            found.setdefault(name, []).append(value)
            found.steps.setdefault(name, []).append(record.step)
    return found
