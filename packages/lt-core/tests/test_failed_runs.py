"""How a run ends after an error: every part gets its turn, the first error is the one raised, and no worker stays."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET, SILENT
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import OnExceptionCheckpoint


class Careless(Callback):
    """Callback that raises in one hook."""

    def __init__(self, hook: str) -> None:
        def careless(*args: Any) -> None:
            raise OSError("careless")

        setattr(self, hook, careless)


class Torn(LightningModule):
    """Module that fails at the second batch, if asked to, and notes the teardown."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.fails, self.torn = fails, 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.fails and batch_idx:
            raise ZeroDivisionError
        loss: Tensor = self.layer(batch).sum()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def teardown(self, stage: str) -> None:
        self.torn += 1


@pytest.mark.parametrize("hook", ["on_exception", "teardown"])
@pytest.mark.filterwarnings("ignore:.*after an error. it raised OSError. careless")
def test_a_callback_that_raises_while_a_failed_run_ends_keeps_no_other_part_from_its_turn(
    hook: str, tmp_path: Path
) -> None:
    """The checkpoint of the exception is saved, the module is torn down once, and the first error is the one raised."""
    net, saves = Torn(fails=True), OnExceptionCheckpoint(tmp_path)
    run = Trainer(
        default_root_dir=tmp_path / "run",
        callbacks=[Careless(hook), saves],
        max_epochs=1,
        **SILENT,
    )
    data = [torch.ones(1, 1)] * 2
    with pytest.raises(ZeroDivisionError):
        run.fit(net, data, data)
    assert (tmp_path / "on_exception.ckpt").exists()
    assert net.torn == 1


def test_a_teardown_that_raises_after_a_good_run_is_raised_behind_all_others() -> None:
    """A callback's teardown that raises: the module's own runs, once, and the error is raised."""
    net = Torn()
    run = Trainer(callbacks=[Careless("teardown")], max_epochs=1, **QUIET)
    with pytest.raises(OSError, match="careless"):
        run.fit(net, [torch.ones(1, 1)], [torch.ones(1, 1)])
    assert net.torn == 1


class Stubborn:
    """Batches, and their own iterator, whose workers cannot be ended.

    Args:
        end: What trying it raises.
    """

    def __init__(self, end: type[BaseException]) -> None:
        self.end, self.ended = end, 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Tensor:
        return torch.ones(1, 1)

    def _shutdown_workers(self) -> None:
        self.ended += 1
        raise self.end("stubborn")


class Beside(Torn):
    """Module whose batches come from two loaders."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch["a"], batch_idx)


@pytest.mark.parametrize("end", [OSError, KeyboardInterrupt])
def test_workers_that_cannot_be_ended_keep_nothing_else_from_being_given_back(
    end: type[BaseException],
) -> None:
    """Other loaders' workers, the collector, signal handlers and the trainer are then as after any failed run."""
    before = gc.isenabled(), gc.get_freeze_count(), signal.getsignal(signal.SIGTERM)
    data = {"a": Stubborn(end), "b": Stubborn(end)}
    run = Trainer(max_steps=2, limit_val_batches=0, gc_every_n_steps=1, **QUIET)
    if end is OSError:
        with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match="closing the loaders.*stubborn"):
            run.fit(Beside(fails=True), data)
    else:
        with pytest.raises(KeyboardInterrupt):
            run.fit(Beside(fails=True), data)
    assert (gc.isenabled(), gc.get_freeze_count(), signal.getsignal(signal.SIGTERM)) == before
    assert [loader.ended for loader in data.values()] == [1, 1]
    assert not run.training


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.filterwarnings("ignore:teardown, after an error. it raised KeyboardInterrupt")
def test_ctrl_c_in_a_teardown_leaves_no_clean_up_out(fails: bool) -> None:
    """The other hooks, the strategy and the loggers get their turn; an error that came first is the one raised."""

    class Interrupted(Callback):
        def teardown(self, *args: Any) -> None:
            raise KeyboardInterrupt

    net, left = Torn(fails), []
    run = Trainer(callbacks=[Interrupted()], max_epochs=1, **QUIET)
    leave = run.strategy.leave
    run.strategy.leave = lambda error: (left.append(type(error)), leave(error))  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError if fails else KeyboardInterrupt):
        run.fit(net, [torch.ones(1, 1)] * 2, [torch.ones(1, 1)])
    assert (net.torn, left) == (1, [ZeroDivisionError if fails else KeyboardInterrupt])
    assert run.interrupted
    assert run.state.stopped
    assert not run.state.finished


class Unreadable(Dataset[Tensor]):
    """Dataset with one sample that cannot be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5:
            raise ValueError("unreadable")
        return torch.ones(1)


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_no_worker_outlives_a_failed_run_while_its_error_is_looked_at(stage: str) -> None:
    """The traceback, which holds the loops' frames, keeps no worker process alive."""
    bad: Any = DataLoader(Unreadable(), num_workers=1)
    good: Any = [torch.ones(1, 1)]
    run = Trainer(max_epochs=1, num_sanity_val_steps=0, **QUIET)
    with pytest.raises(ValueError, match="unreadable") as kept:
        run.fit(Torn(), *((bad, good) if stage == "train" else (good, bad)))
    assert kept.tb is not None
    assert multiprocessing.active_children() == []
