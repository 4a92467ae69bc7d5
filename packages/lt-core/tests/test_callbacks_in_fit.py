"""The built-in callbacks at work in real runs."""

import io
import logging
import os
import re
import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
from quiet import Noting
from torch import Tensor
from torch.utils.data import DataLoader

from lt_core import Trainer
from lt_core.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint, RichProgressBar, Timer
from lt_core.checkpoint import load_checkpoint
from lt_core.demos import BoringModel, RandomDataset


class _Model(BoringModel):
    """Module that logs one given validation loss an epoch."""

    def __init__(self, losses=()):
        super().__init__()
        self.losses = list(losses)

    def training_step(self, batch, batch_idx):
        self.log("a", 1.5, prog_bar=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking and self.losses:
            self.log("val_loss", self.losses[self.current_epoch], prog_bar=True)

    def on_train_epoch_end(self):
        self.log("at_end", float(self.current_epoch), prog_bar=True)

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 8), batch_size=2)

    def val_dataloader(self):
        return DataLoader(RandomDataset(32, 4), batch_size=2)


def _trainer(tmp_path, callbacks, **flags):
    defaults = {
        "max_epochs": 10,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": any(isinstance(c, RichProgressBar) for c in callbacks),
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return Trainer(callbacks=callbacks, **{**defaults, **flags})


def test_early_stopping_ends_the_run(tmp_path):
    """The run ends after the epoch whose look exhausted the patience."""
    stopper = EarlyStopping("val_loss", patience=2)
    trainer = _trainer(tmp_path, [stopper])
    trainer.fit(_Model([5.0, 4.0, 4.5, 4.2, 1.0, 1.0]))
    assert trainer.current_epoch == 4
    assert stopper.stopped_epoch == 3
    assert stopper.best_score == 4.0


def test_min_epochs_comes_first(tmp_path):
    """A stop waits for the least number of epochs."""
    trainer = _trainer(tmp_path, [EarlyStopping("val_loss", patience=1)], min_epochs=5)
    trainer.fit(_Model([float(i) for i in range(10)]))
    assert trainer.current_epoch == 5


def test_a_missing_metric_stops_the_run_with_its_name(tmp_path):
    """The error of a run lists what was logged."""
    with pytest.raises(RuntimeError, match="Logged are: a, at_end, val_loss"):
        _trainer(tmp_path, [EarlyStopping("loss")]).fit(_Model([1.0] * 10))


def test_patience_survives_a_resume(tmp_path):
    """A run in two parts stops where one run stops."""
    losses = [5.0, 6.0, 6.0, 6.0, 6.0, 6.0]

    def parts():
        return [EarlyStopping("val_loss", patience=3), ModelCheckpoint(tmp_path / "x", save_last=True)]

    _trainer(tmp_path, parts(), max_epochs=2).fit(_Model(losses))
    trainer = _trainer(tmp_path, parts())
    trainer.fit(_Model(losses), ckpt_path="last")
    assert trainer.current_epoch == 4


def test_max_time_ends_the_run(tmp_path):
    """The trainer's flag is a Timer; one among the callbacks takes its place."""
    trainer = _trainer(tmp_path, [], max_epochs=-1, max_time={"milliseconds": 1})
    trainer.fit(_Model())
    assert trainer.current_epoch <= 1
    timer = Timer(timedelta(seconds=0), interval="epoch")
    trainer = _trainer(tmp_path, [timer], max_epochs=-1)
    trainer.fit(_Model())
    assert trainer.current_epoch <= 1
    assert timer.time_elapsed("train") >= 0


def test_functions_run_as_hooks(tmp_path):
    """A LambdaCallback's functions get the trainer, the module and the hook's own arguments."""
    seen = []
    callback = LambdaCallback(
        on_train_batch_end=lambda trainer, module, outputs, batch, i: seen.append((trainer.global_step, i)),
        on_train_end=lambda trainer, module: seen.append(type(module).__name__),
    )
    _trainer(tmp_path, [callback], max_epochs=1).fit(_Model())
    assert seen == [(1, 0), (2, 1), (3, 2), (4, 3), "_Model"]


def test_lines_of_a_run(tmp_path, capsys):
    """In a file each epoch leaves one line, with what was logged at its very end."""
    _trainer(tmp_path, [RichProgressBar()], max_epochs=2).fit(_Model([0.25, 0.125]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Epoch 0/1: 4/4 batches in ")
    assert lines[2].startswith("Training took ")
    for epoch, val_loss in enumerate(("0.250", "0.125")):
        assert {"a=1.500", f"val_loss={val_loss}", f"at_end={epoch}.000"} <= set(lines[epoch].split())


def test_bars_of_a_run(tmp_path):
    """On a terminal the bars show the epoch, validation inside it, and what the user prints above them."""

    class Tty(io.StringIO):
        def isatty(self):
            return True

    screen = Tty()
    bar = RichProgressBar(console_kwargs={"file": screen, "width": 150, "force_terminal": True})
    bar._clock = iter(range(10**6)).__next__  # a second passes at each look, so that every drawing is due

    class Talk(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.print("hello from epoch", trainer.current_epoch)

    trainer = _trainer(tmp_path, [bar, Talk()], max_epochs=2)
    trainer.fit(_Model([0.25, 0.125]))
    trainer.validate(_Model([0.25] * 3))
    text = screen.getvalue()
    for words in ("Sanity check", "Epoch 1/1", "Validation", "4/4", "hello from epoch 1", "val_loss=0.125", "s/it"):
        assert words in text
    assert bar._display is None


@pytest.mark.parametrize("every", [1, 3])
def test_resumed_from_any_save_a_run_ends_the_same(tmp_path, every):
    """From each of its saves, inside and between epochs, a run ends with the same weights and the same files."""

    def parts(folder):
        saver = ModelCheckpoint(folder, "{step}", "val_loss", save_top_k=2, every_n_train_steps=every, save_last=True)
        return [EarlyStopping("val_loss", patience=9), saver]

    def run(folder, **fit):
        torch.manual_seed(0)
        model = _Model([0.5, 0.4, 0.3])
        trainer = _trainer(tmp_path, parts(folder), max_epochs=3)
        trainer.fit(model, **fit)
        return {k: v.clone() for k, v in model.state_dict().items()}, trainer

    keep = ModelCheckpoint(tmp_path / "all", "{step}", save_top_k=-1, every_n_train_steps=every)
    torch.manual_seed(0)
    _trainer(tmp_path, [*parts(tmp_path / "x"), keep], max_epochs=3).fit(_Model([0.5, 0.4, 0.3]))
    whole, trainer = run(tmp_path / "whole")
    for path in sorted((tmp_path / "all").glob("*.ckpt")):
        if load_checkpoint(path)["global_step"] > 8:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another folder, and a callback that is not there
            again, resumed = run(tmp_path / f"again-{path.name}", ckpt_path=path)
        assert all(torch.equal(whole[k], again[k]) for k in whole)
        assert resumed.early_stopping_callback.best_score == trainer.early_stopping_callback.best_score


def test_the_default_folder_is_the_loggers(tmp_path):
    """With the CSV logger, checkpoints lie in its version's folder, and a second run has its own."""
    for version in (0, 1):
        saver = ModelCheckpoint()
        _trainer(tmp_path, [saver], logger=True, max_epochs=1).fit(_Model())
        assert saver.dirpath.endswith(os.path.join(f"version_{version}", "checkpoints"))
        assert os.path.dirname(saver.best_model_path) == saver.dirpath
        assert os.path.exists(saver.best_model_path)


def test_asynchronous_saves_keep_the_same_files(tmp_path):
    """Written in the background, the same files stay."""
    from lt_core.checkpoint.format.async_io import AsyncCheckpointIO

    saver = ModelCheckpoint(tmp_path / "c", "{epoch}", monitor="val_loss", save_top_k=2, save_last="link")
    _trainer(tmp_path, [saver], max_epochs=4, plugins=[AsyncCheckpointIO()]).fit(_Model([0.5, 0.7, 0.4, 0.3]))
    assert sorted(p.name for p in (tmp_path / "c").glob("*.ckpt")) == ["epoch=2.ckpt", "epoch=3.ckpt", "last.ckpt"]
    assert os.readlink(tmp_path / "c" / "last.ckpt") == "epoch=3.ckpt"
    assert load_checkpoint(tmp_path / "c" / "last.ckpt")["global_step"] == 16


def test_metrics_leave_the_bar_its_counts_and_times() -> None:
    """On a terminal of 100 columns the usual metrics go on below instead of cutting counts, times and speed."""
    screen = io.StringIO()
    terminal = {"file": screen, "width": 100, "force_terminal": True, "color_system": None}
    bar = RichProgressBar(leave=False, console_kwargs=terminal)

    class Usual(Noting):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            for name in ("train_loss", "train_accuracy", "learning_rate"):
                self.log(name, loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

    data = [torch.ones(1, 1)] * 3
    run = Trainer(max_epochs=2, callbacks=[bar], logger=False, enable_checkpointing=False, enable_model_summary=False)
    run.fit(Usual(), data, data)
    last = [line for line in screen.getvalue().splitlines() if "Epoch 1/1" in line][-1]
    assert " 3/3 " in last
    assert re.search(r" in \d+(\.\d+ s| ms) \d+\.\d it/s$", last.rstrip())
    assert "learning_rate_epoch=" in screen.getvalue()


def test_what_verbose_asks_for_is_seen_without_configured_logging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """EarlyStopping(verbose=True) speaks on stderr; a level set for the logger silences it."""
    monkeypatch.setattr(logging.getLogger("lt_core"), "hasHandlers", lambda: False)
    data = [torch.ones(1, 1)]
    flags: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}

    def said() -> str:
        stopping = EarlyStopping("val", verbose=True)
        Trainer(max_epochs=1, callbacks=[stopping], enable_progress_bar=False, **flags).fit(Noting(), data, data)
        return capsys.readouterr().err

    assert "val improved" in said()
    monkeypatch.setattr(logging.getLogger("lt_core"), "level", logging.WARNING)
    assert "improved" not in said()
