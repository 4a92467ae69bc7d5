"""A profiler sees each part of a run under its name, and a run without one pays nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT
from torch import Tensor

from lt_core import Trainer
from lt_core.demos import BoringModel, ManualOptimBoringModel
from lt_core.profilers import PassThroughProfiler
from lt_core.state.timing import timed, timed_items
from lt_interface.testing import ProfilerConformance


class Counting(PassThroughProfiler):
    """Profiler that counts its actions, and those that were open when each began."""

    passes_through = False

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.open: list[str] = []
        self.inside: set[tuple[str, str]] = set()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        self.counts.clear()

    def start(self, action_name: str) -> None:
        self.counts[action_name] += 1
        self.inside.update((outer, action_name) for outer in self.open)
        self.open.append(action_name)

    def stop(self, action_name: str) -> None:
        assert self.open.pop() == action_name


class Moves(BoringModel):
    """Module with a transfer hook, which logs."""

    def on_before_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss["loss"])
        return loss


def counts_of(module: Any, folder: Path, **flags: Any) -> Counting:
    profiler = Counting()
    Trainer(
        **{**SILENT, "max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 2, "num_sanity_val_steps": 0},
        **{"profiler": profiler, "default_root_dir": folder, "log_every_n_steps": 2, **flags},
    ).fit(module)
    return profiler


def test_every_part_of_a_fit_is_an_action(tmp_path: Path) -> None:
    """Fetching, moving, steps, backward, optimizer steps, logging and saving are counted under their names."""
    counts = counts_of(Moves(), tmp_path).counts
    strategy = "[Strategy]SingleDeviceStrategy."
    assert counts["[_TrainingEpochLoop].train_dataloader_next"] == 5  # the last one finds the end
    assert counts["[_EvaluationLoop].val_next"] == 3
    assert counts[strategy + "batch_to_device"] == 6
    assert counts[strategy + "training_step"] == 4
    assert counts[strategy + "validation_step"] == 2
    assert counts[strategy + "backward"] == 4
    assert counts[strategy + "optimizer_step"] == 4
    assert counts["save_checkpoint"] == 1
    assert counts["[Trainer]log"] >= 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_windows_step_once(tmp_path: Path, accumulate: int) -> None:
    """An accumulated window has one optimizer step and a backward for each of its batches."""
    counts = counts_of(Moves(), tmp_path, accumulate_grad_batches=accumulate).counts
    assert counts["[Strategy]SingleDeviceStrategy.optimizer_step"] == 4 // accumulate
    assert counts["[Strategy]SingleDeviceStrategy.backward"] == 4


def test_manual_parts_lie_inside_the_step(tmp_path: Path) -> None:
    """Under manual optimization backward and the optimizer's step are actions inside training_step."""
    profiler = counts_of(ManualOptimBoringModel(), tmp_path)
    strategy = "[Strategy]SingleDeviceStrategy."
    for part in ("backward", "optimizer_step"):
        assert profiler.counts[strategy + part] == 4
        assert (strategy + "training_step", strategy + part) in profiler.inside


def test_without_a_profiler_nothing_is_wrapped() -> None:
    """Function and iterable come back themselves where there is no profiler."""
    items = [1, 2]
    assert timed(None, torch.add, "add") is torch.add
    assert timed_items(None, items, "next") is items


class TestPassThrough(ProfilerConformance):
    plugin = "passthrough"
    measures = False


class TestCounting(ProfilerConformance):
    def make(self) -> Any:
        return Counting()

    def read(self, profiler: Any) -> dict[str, int]:
        return dict(profiler.counts)


class Swallows(Counting):
    """Profiler that lets an exception vanish."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        with suppress(KeyError):
            yield action_name


class Draws(Counting):
    """Profiler that draws from the user's random state."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        torch.rand(1)
        yield action_name


class Once(Counting):
    """Profiler that refuses an action of the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        if action_name in self.seen:
            raise ValueError(action_name)
        self.seen.add(action_name)
        yield action_name


class Outermost(Counting):
    """Profiler that measures no action inside another one."""

    def start(self, action_name: str) -> None:
        self.counts[action_name] += not self.open
        self.open.append(action_name)


class Whole(Counting):
    """Profiler that measures only what went well."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        yield action_name
        self.counts[action_name] += 1


class Contexts(Counting):
    """Profiler that ignores a start and a stop."""

    def start(self, action_name: str) -> None:
        pass

    stop = start

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        self.counts[action_name] += 1
        yield action_name


class Hoards(Counting):
    """Profiler that mixes one stage with the next."""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Outermost, "test_actions_nest"),
        (Whole, "test_an_exception_passes"),
        (Contexts, "test_starts_and_stops"),
        (Hoards, "test_can_be_set_up_again"),
        (Swallows, "test_an_exception_passes"),
        (Draws, "test_leaves_the_training_alone"),
        (Once, "test_actions_nest"),
        (PassThroughProfiler, "test_fills_the_protocol"),
        (PassThroughProfiler, "test_sees_the_parts_of_a_run"),
    ],
)
def test_bad_profilers_are_caught(kind: Any, test: str, tmp_path: Path) -> None:
    """Each rule for profilers fails one that breaks it."""
    ways = {"make": lambda self: kind(), "read": lambda self, profiler: dict(profiler.counts)}
    suite = type("TestBad", (ProfilerConformance,), ways)()
    alone = ("test_fills_the_protocol", "test_leaves_the_training_alone", "test_sees_the_parts_of_a_run")
    given = [] if test in alone else [kind()]
    given += [tmp_path] if test == "test_can_be_set_up_again" else []
    with pytest.raises((AssertionError, ValueError, RuntimeError, pytest.fail.Exception)):
        getattr(suite, test)(*given)


class Ends(Counting):
    """Profiler that notes when it is set up and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("setup")

    def describe(self) -> None:
        self.calls.append("describe")

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("teardown")


@pytest.mark.parametrize("hook", ["setup", "on_train_batch_end", "on_fit_end"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_profiler_is_ended_after_an_error_too(tmp_path: Path, hook: str, error: type[BaseException]) -> None:
    """Whatever ends a fit and wherever, the profiler reports what it measured, and is torn down once."""

    class Fails(BoringModel):
        pass

    def fail(self: Any, *args: Any) -> None:
        raise error

    setattr(Fails, hook, fail)
    profiler = Ends()
    with pytest.raises(error):
        Trainer(**SILENT, max_epochs=1, profiler=profiler, default_root_dir=tmp_path, logger=False).fit(Fails())
    assert profiler.calls == ["setup", "describe", "teardown"]
