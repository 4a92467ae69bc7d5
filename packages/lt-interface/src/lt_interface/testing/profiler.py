"""Conformance suite of profilers."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from lt_interface.profiler import Profiler
from lt_interface.registry import profilers
from lt_interface.testing.suite import Conformance
from lt_interface.testing.training import Job

__all__ = ["ProfilerConformance"]

STEPS = "[Strategy]SingleDeviceStrategy."


class ProfilerConformance(Conformance, suite=True):
    """Tests of a profiler, by itself and around the core's loop; the latter are skipped without lt-core.

    Attributes:
        measures: Whether it measures anything; False for one that the core leaves out.

    Example:
        ::

            class TestMyProfiler(ProfilerConformance):
                plugin = "mine"

                def read(self, profiler):
                    return {name: len(seconds) for name, seconds in profiler.durations.items()}
    """

    registry = profilers
    measures: ClassVar[bool] = True

    def read(self, profiler: Any) -> dict[str, int]:
        """Return how often the profiler measured each action since it was set up; one that measures overrides this.

        Args:
            profiler: The profiler under test.
        """
        return {}

    def assert_measured(self, profiler: Any, **expected: int) -> None:
        """Compare what was measured, nothing for a profiler that measures nothing, and end the stage.

        Args:
            profiler: The profiler under test.
            **expected: How often each action took place.

        Raises:
            AssertionError: If another number of any action was measured.
        """
        assert dict(self.read(profiler)) == (expected if self.measures else {})
        profiler.describe()
        profiler.teardown("fit")

    @pytest.fixture
    def profiler(self, tmp_path: Any) -> Any:
        """Return a profiler that was set up for a fit."""
        made = self.make()
        made.setup("fit", 0, str(tmp_path))
        return made

    def test_fills_the_protocol(self) -> None:
        """It has every method, and says whether it is to be left out."""
        made = self.make()
        assert isinstance(made, Profiler)
        assert bool(getattr(made, "passes_through", False)) is not self.measures

    def test_actions_nest(self, profiler: Any) -> None:
        """An action inside another one, one of the same name and one after it are measured, each time."""
        with profiler.profile("outer"), profiler.profile("inner"):
            pass
        for _ in range(2):
            with profiler.profile("inner"):
                pass
        self.assert_measured(profiler, outer=1, inner=3)

    def test_an_exception_passes(self, profiler: Any) -> None:
        """An exception inside an action comes out unchanged; this action is measured, and the next of its name."""
        error = KeyError("user's")
        with pytest.raises(KeyError) as caught, profiler.profile("step"):
            raise error
        assert caught.value is error
        with profiler.profile("step"):
            pass
        self.assert_measured(profiler, step=2)

    def test_starts_and_stops(self, profiler: Any) -> None:
        """An action that is given as a start and a stop is measured like one that is given as a context."""
        profiler.start("fetch")
        profiler.stop("fetch")
        with profiler.profile("fetch"):
            pass
        self.assert_measured(profiler, fetch=2)

    def test_can_be_set_up_again(self, profiler: Any, tmp_path: Any) -> None:
        """After teardown, once or twice, the next stage is measured by itself; a report of nothing is no error."""
        with profiler.profile("step"):
            pass
        profiler.teardown("fit")
        profiler.teardown("fit")
        profiler.setup("validate", 0, str(tmp_path))
        profiler.describe()
        assert dict(self.read(profiler)) == {}
        with profiler.profile("step"):
            pass
        self.assert_measured(profiler, step=1)

    def test_leaves_the_training_alone(self) -> None:
        """A profiled run ends at the weights of one that is not, to the bit, the random state included."""
        import torch

        job, ends = Job(epochs=1), []
        for profiler in (None, self.make()):
            torch.manual_seed(7)
            ends.append((job.train(profiler=profiler), torch.rand(3).tolist()))
        assert ends[0] == ends[1]

    def test_sees_the_parts_of_a_run(self) -> None:
        """The core gives it each step, backward pass and update of a fit by name, and each begins and ends."""
        made, seen = self.make(), list[str]()
        profile = made.profile

        def noting(action_name: str) -> Any:
            seen.append(action_name)
            return profile(action_name)

        made.profile = noting
        Job(batches=3, epochs=1).train(profiler=made)
        for part in ("training_step", "backward", "optimizer_step"):
            assert seen.count(STEPS + part) == 3 * self.measures
        assert (
            seen.count("[_TrainingEpochLoop].train_dataloader_next") == 4 * self.measures
        )  # the last one finds the end
