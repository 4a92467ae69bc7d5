"""Measure which functions each action spends its time in."""

from __future__ import annotations

import io
import os
import pstats
from typing import TYPE_CHECKING

from lt_core.notices import warn
from lt_core.profilers.base import MeasuringProfiler
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from cProfile import Profile

__all__ = ["AdvancedProfiler"]


class AdvancedProfiler(MeasuringProfiler):
    """Profiler that lists for each action the Python functions in which its time was spent, by Python's ``cProfile``.

    An action's list leaves out what ran in the actions inside it. ``cProfile`` makes Python code about twice as slow.

    Args:
        dirpath: The folder of the report; None means the trainer's ``default_root_dir``.
        filename: The middle of the report's file name; None and no ``dirpath`` mean that it is printed.
        line_count_restriction: How many lines of each list are shown: a number, or a float up to 1.0 for a share.
        dump_stats: Whether each action's figures are also written to a file ``....prof`` for ``snakeviz`` and alike.

    Attributes:
        profiled_actions: A ``cProfile.Profile`` for each action.

    Raises:
        ConfigError: If the restriction is no such number.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.demos import BoringModel
        >>> quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        >>> profiler = AdvancedProfiler(dirpath="profiles", line_count_restriction=5)
        >>> trainer = Trainer(accelerator="cpu", max_steps=5, logger=False, profiler=profiler, **quiet)
        >>> trainer.fit(BoringModel())
        >>> "[Strategy]SingleDeviceStrategy.training_step" in profiler.profiled_actions
        True
    """

    _word = "advanced"
    _measured = MeasuringProfiler._measured | {"profiled_actions", "_running"}

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        given = line_count_restriction
        number = isinstance(given, int | float) and not isinstance(given, bool)
        if not number or given <= 0 or (isinstance(given, float) and given > 1):
            where = f"AdvancedProfiler(line_count_restriction={given!r})"
            rule = "this must be a number of lines, or a share of them above 0.0 and up to 1.0"
            raise ConfigError(Problem(where, rule, fix="Write 20, or 0.5.", is_type=not number))
        self.line_count_restriction, self.dump_stats = line_count_restriction, dump_stats
        super().__init__(dirpath, filename)

    def _begin(self) -> None:
        self.profiled_actions: dict[str, Profile] = {}
        self._running: list[Profile] = []
        super()._begin()

    def start(self, action_name: str) -> None:
        """Begin an action: what it calls is noted as its own from now on, and no more as that of the one around it."""
        from cProfile import Profile

        super().start(action_name)
        if not self.measures:
            return
        if self._running:
            self._running[-1].disable()
        profile = self.profiled_actions.get(action_name)
        if profile is None:
            profile = self.profiled_actions[action_name] = Profile()
        self._running.append(profile)
        self._resume()

    def stop(self, action_name: str) -> None:
        """End an action, and go on with the one around it."""
        if not self.measures:
            return
        if self._running:
            self._running[-1].disable()
        try:
            super().stop(action_name)
        finally:
            profile = self.profiled_actions.get(action_name)
            if profile in self._running:
                del self._running[len(self._running) - 1 - self._running[::-1].index(profile)]
            self._resume()

    def _resume(self) -> None:
        if self._running:
            try:
                self._running[-1].enable()
            except ValueError as error:  # Python 3.12 and later let one tool at a time look at calls
                raise ValueError(
                    f"AdvancedProfiler: no other profiler may run beside it. Got: {error}. End that one, or write "
                    'profiler="simple".'
                ) from error

    def report(self) -> str:
        """Return the list of each action, those that took longest first."""
        found = [f"{type(self).__name__}: {self._stage or 'no run'}, {self.elapsed:.4g} s"]
        for name in sorted(self.profiled_actions, key=lambda name: -sum(self.recorded_durations[name])):
            profile = self.profiled_actions[name]
            profile.create_stats()
            if not profile.stats:
                continue
            text = io.StringIO()
            pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(self.line_count_restriction)
            found.append(f"Profile stats for: {name}\n{text.getvalue().strip()}\n")
        return "\n".join(found)

    def describe(self) -> None:
        """Report, and write each action's figures if that was asked for."""
        while self._running:
            self._running.pop().disable()
        super().describe()
        if not self.dump_stats:
            return
        try:
            for name, profile in self.profiled_actions.items():
                kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
                profile.dump_stats(self.path(f"-{kept}.prof"))
        except OSError as error:
            warn(f"AdvancedProfiler: the figures were not written to {self._folder}: {error}")

    def teardown(self, stage: str | None) -> None:
        """Stop measuring."""
        super().teardown(stage)
        while self._running:
            self._running.pop().disable()
