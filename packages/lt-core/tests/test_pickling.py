"""Trainers, loggers and optimizers that were used can be pickled and copied, and keep nothing else alive."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import logged
from processes import ForkLauncher, SpawnLauncher
from quiet import SILENT, Noting

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.loggers import CSVLogger
from lt_interface.errors import MisconfigurationException

BATCHES = [torch.ones(2, 1) * i for i in range(4)]
COPIES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda x: pickle.loads(pickle.dumps(x)), id="pickle"),
]


class Holding(Noting):
    """Module that holds a trainer of its own accord."""

    def __init__(self) -> None:
        super().__init__()
        self.boss: Trainer | None = None


def used(folder: Path, **flags: Any) -> tuple[Trainer, Holding]:
    """Return a trainer that has trained, and its module."""
    trainer = Trainer(max_epochs=2, default_root_dir=folder, log_every_n_steps=1, **{**SILENT, **flags})
    module = Holding()
    trainer.fit(module, BATCHES, BATCHES)
    return trainer, module


@pytest.mark.parametrize("again", COPIES)
@pytest.mark.parametrize("shown", [False, True])
def test_a_used_trainer_is_copied_without_its_run(tmp_path: Path, again: Any, shown: bool) -> None:
    """A copy of a used trainer has counters, metrics, history and callbacks, but no module, and it can train on."""
    trainer, module = used(tmp_path, enable_progress_bar=shown, enable_model_summary=shown)
    twin = again(trainer)
    assert twin.lightning_module is None
    assert twin.strategy.lightning_module is None
    assert (twin.current_epoch, twin.global_step) == (2, 8)
    assert twin.callback_metrics == trainer.callback_metrics
    assert dict(logged(twin)) == dict(logged(trainer))
    assert twin.checkpoint_callback.best_model_path == trainer.checkpoint_callback.best_model_path
    assert twin.log_dir == trainer.log_dir
    assert module.trainer is trainer
    twin.max_epochs = 3
    twin.fit(Noting(), BATCHES, BATCHES)
    assert (twin.global_step, trainer.global_step) == (12, 8)
    assert len(logged(twin)["sum"]) == 12


@pytest.mark.parametrize("again", COPIES)
def test_a_module_that_holds_a_trainer_is_copied(tmp_path: Path, again: Any) -> None:
    """A module may hold its trainer strongly and still be pickled and copied."""
    trainer, module = used(tmp_path)
    module.boss = trainer
    twin = again(module)
    assert twin.boss.global_step == 8
    assert torch.equal(twin.layer.weight, module.layer.weight)


@pytest.mark.parametrize("again", COPIES)
def test_a_copied_optimizer_is_the_plain_one(tmp_path: Path, again: Any) -> None:
    """A copy of what ``self.optimizers()`` gives is the wrapped optimizer's: it belongs to no run."""
    _, module = used(tmp_path)
    wrapped = module.optimizers()
    twin = again(wrapped)
    assert type(twin) is torch.optim.SGD
    assert twin.param_groups[0]["lr"] == 0.01
    assert twin.param_groups[0]["params"][0] is not module.layer.weight
    twin.step()


@pytest.mark.parametrize("again", COPIES)
def test_a_used_logger_is_copied(tmp_path: Path, again: Any) -> None:
    """A CSVLogger that a run has fed is copied with its version."""
    logger = CSVLogger(tmp_path)
    used(tmp_path, logger=logger)
    assert again(logger).log_dir == logger.log_dir


def test_a_kept_logger_keeps_no_module_alive(tmp_path: Path) -> None:
    """Who keeps a CSVLogger keeps neither trainer nor module nor data."""
    logger = CSVLogger(tmp_path)
    trainer, module = used(tmp_path, logger=logger)
    seen = weakref.ref(module), weakref.ref(trainer)
    del trainer, module
    gc.collect()
    assert [ref() for ref in seen] == [None, None]
    assert logger.version == 0


class Tricky(Noting):
    """Module with a function that pickle refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.activation = lambda x: x  # type: ignore[assignment]


class Remembering(Callback):
    """Callback that holds a function."""

    def __init__(self) -> None:
        self.notes = {"what": [lambda: None]}


class OpenData(LightningDataModule):
    """Data module that holds a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = (row for row in BATCHES)

    def train_dataloader(self) -> Any:
        return BATCHES

    val_dataloader = train_dataloader


@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("module", "Tricky.layer.activation"),
        ("datamodule", "OpenData.rows"),
        ("callback", "Remembering.notes['what'][0]"),
        ("handler", "trainer.on('on_train_batch_end').function"),
        ("loader", "train_dataloaders[0]"),
    ],
)
def test_what_cannot_travel_is_named(tmp_path: Path, what: str, path: str) -> None:
    """A launcher that needs bytes gets one error with the path of what cannot be pickled, and pickle's own words."""
    callbacks = [Remembering()] if what == "callback" else []
    trainer = Trainer(
        max_epochs=1, default_root_dir=tmp_path, launcher=SpawnLauncher(), callbacks=callbacks, logger=False, **SILENT
    )
    module: LightningModule = Tricky() if what == "module" else Noting()
    if what == "handler":
        trainer.on("train_batch_end")(lambda: None)
    data: dict[str, Any] = {
        "train_dataloaders": [lambda: None] if what == "loader" else BATCHES,
        "val_dataloaders": BATCHES,
    }
    if what == "datamodule":
        data = {"datamodule": OpenData()}
    with pytest.raises(MisconfigurationException, match=r"must be picklable\. Got ") as caught:
        trainer.fit(module, **data)
    assert str(caught.value).startswith(f"Trainer.fit, launcher 'test_spawn': {path}: ")
    assert "lambda" in str(caught.value) or "generator" in str(caught.value)


class Staying:
    """Part of a module that can only be made in the process that it was first made in."""

    def __init__(self) -> None:
        self.process = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["process"] != os.getpid():
            raise AttributeError("no class of this name here")
        vars(self).update(state)


class ByBytes(ForkLauncher):
    """Launcher of a forked rank that gets the request as bytes."""

    name, passes = "test_bytes", "bytes"
    instead_of_pickling = "Or stay here."


def test_what_a_rank_cannot_make_is_an_error(tmp_path: Path) -> None:
    """What was pickled here, and cannot be made from that in a rank, is one error with the ways out."""
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, launcher=ByBytes(), logger=False, **SILENT)
    module = Noting()
    module.part = Staying()  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException) as caught:
        trainer.fit(module, BATCHES, BATCHES)
    assert str(caught.value) == (
        "Trainer.fit, launcher 'test_bytes': other processes must be able to make what they are given, classes and "
        "functions by their names. Got AttributeError: no class of this name here. Define functions and classes at the "
        "top level of a module, or of the script above its main guard. Or stay here."
    )
