"""Savers of the user's own: subclasses of Checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quiet import SILENT

from lt_core import Callback, Trainer
from lt_core.callbacks import Checkpoint, ModelCheckpoint
from lt_core.demos import BoringModel


def test_a_saver_of_the_users_own_comes_last_and_is_the_trainers(tmp_path: Path) -> None:
    """A Checkpoint runs after other callbacks, replaces the default saver, and its folder is searched for "last"."""
    order: list[str] = []

    class Saves(Checkpoint):
        def folders(self) -> list[str]:
            return [str(tmp_path)]

        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            order.append("saver")
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    class Other(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            order.append("other")

    flags: Any = {**SILENT, "logger": False, "default_root_dir": tmp_path / "root", "limit_val_batches": 0}
    saver = Saves()
    trainer = Trainer(**flags, max_epochs=2, limit_train_batches=2, callbacks=[saver, Other()])
    trainer.fit(BoringModel())
    assert order == ["other", "saver"] * 2
    assert trainer.checkpoint_callback is saver
    assert not any(isinstance(one, ModelCheckpoint) for one in trainer.callbacks)
    again = Trainer(**flags, max_epochs=3, limit_train_batches=2, callbacks=[Saves()])
    again.fit(BoringModel(), ckpt_path="last")
    assert again.resumed_from == str(tmp_path / "1.ckpt")
    assert again.global_step == 6
