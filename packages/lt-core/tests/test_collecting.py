"""Test that Python's garbage is collected at chosen steps, and that the collector is left as it was found."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lt_core import LightningModule, Trainer
from lt_core.demos import BoringModel


@pytest.fixture(autouse=True)
def _the_collector_as_it_was() -> Iterator[None]:
    before = gc.isenabled(), gc.get_freeze_count()
    yield
    assert (gc.isenabled(), gc.get_freeze_count()) == before


class Watching(BoringModel):
    """Module that notes before which steps the collector ran, and its state at each."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.enabled: list[bool] = []
        self.frozen: list[bool] = []

    def on_train_start(self) -> None:
        gc.collect()  # so that none comes by itself before the first step
        gc.callbacks.append(self._note)

    def on_train_end(self) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, facts: dict[str, int]) -> None:
        if phase == "stop" and facts["generation"] == 2:
            self.steps.append(self.trainer.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.enabled.append(gc.isenabled())
        self.frozen.append(gc.get_freeze_count() > 0)
        return super().training_step(batch, batch_idx)


class Enabled(Dataset[Tensor]):
    """Set whose samples say whether the collector is on where they are loaded."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((32,), float(gc.isenabled()))


def batches(n: int = 12) -> list[Tensor]:
    return [torch.ones(2, 32) for _ in range(n)]


def fit(module: LightningModule, data: Any = None, **flags: Any) -> None:
    Trainer(**{**QUIET, "max_epochs": 1, "limit_val_batches": 0, **flags}).fit(module, data or batches())


def test_it_is_called_after_the_first_step_and_every_n_steps() -> None:
    """What stands after the first step is frozen, and from then on the collector runs at multiples of n alone."""
    module = Watching()
    fit(module, gc_every_n_steps=4)
    assert module.steps == [1, 4, 8, 12]
    assert module.enabled == [True] + 11 * [False]
    assert module.frozen == [False] + 11 * [True]


def test_steps_are_those_of_the_optimizer() -> None:
    """Under accumulation batches inside a window do not count, and no step is collected at twice."""
    module = Watching()
    fit(module, gc_every_n_steps=2, accumulate_grad_batches=3, log_every_n_steps=1)
    assert module.steps == [1, 2, 4]


def test_without_the_flag_it_is_left_alone() -> None:
    """By default the collector is on throughout, and nothing is frozen."""
    module = Watching()
    fit(module)
    assert (set(module.enabled), set(module.frozen)) == ({True}, {False})


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_is_restored_after_an_error(error: type[BaseException]) -> None:
    """Whatever ends the run, the collector is on again and nothing stays frozen."""

    class Fails(BoringModel):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                assert not gc.isenabled()
                raise error

    with pytest.raises(error):
        fit(Fails(), gc_every_n_steps=2)
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_what_the_user_froze_or_switched_off_stays_so() -> None:
    """A collector that was off stays off, and frozen objects stay frozen."""
    gc.freeze()
    gc.disable()
    try:
        frozen = gc.get_freeze_count()
        fit(BoringModel(), gc_every_n_steps=2)
        assert (gc.isenabled(), gc.get_freeze_count() >= frozen - 50) == (False, True)
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_run_inside_a_run_leaves_the_outer_one_in_control() -> None:
    """A trainer that is used in a hook of another gives the collector back to that one."""

    class Outer(BoringModel):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                fit(BoringModel(), gc_every_n_steps=3)
                assert not gc.isenabled()
                assert gc.get_freeze_count()

    fit(Outer(), gc_every_n_steps=2)


def test_of_runs_in_two_threads_the_last_one_gives_the_collector_back() -> None:
    """Whichever began it, the collector is off while either of them trains, and on when both have ended."""
    begun, ended, off = threading.Event(), threading.Event(), []

    class First(BoringModel):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                begun.set()
                assert ended.wait(60)

    class Second(BoringModel):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                ended.set()
                first.join(60)
                off.append(not gc.isenabled() and gc.get_freeze_count() > 0)

    first = threading.Thread(target=fit, args=(First(),), kwargs={"gc_every_n_steps": 1})
    first.start()
    assert begun.wait(60)
    fit(Second(), gc_every_n_steps=1)
    assert off == [True]


def test_workers_collect_by_themselves() -> None:
    """A worker that is forked while the collector is off has it on."""
    seen: list[float] = []

    class Keeps(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(float(batch.mean()))
            return super().training_step(batch, batch_idx)

    fit(Keeps(), DataLoader(Enabled(), batch_size=2, num_workers=1), gc_every_n_steps=1, max_epochs=2)
    assert seen == [1.0] * 6
