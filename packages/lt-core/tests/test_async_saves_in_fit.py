"""Test what the loop does with saves that are written behind its back and fail."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
from quiet import SILENT

from lt_core import Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.checkpoint import AsyncCheckpointIO, SafetensorsIO, load_checkpoint
from lt_core.demos import BoringModel


class Full(SafetensorsIO):
    """Store whose disk refuses some files.

    Args:
        names: The beginnings of their names.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def write(self, prepared: Any, path: Any) -> None:
        if os.path.basename(path).startswith(self.names):
            raise OSError(28, "No space left on device")
        super().write(prepared, path)


def saver(folder: pathlib.Path, name: str, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, name + "-{step}", every_n_train_steps=1, **options)


@pytest.mark.parametrize("refused", ["a", "b", "c"])
def test_the_save_that_failed_is_the_one_that_is_reported(refused: str, tmp_path: pathlib.Path) -> None:
    """The others of its boundary are written, and of the one that failed the file before it stays."""
    kinds: dict[str, dict[str, Any]] = {"a": {}, "b": {"save_weights_only": True, "mode": "max"}, "c": {"monitor": "x"}}
    savers = {name: saver(tmp_path, name, **options) for name, options in kinds.items()}

    class Logs(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", -float(batch_idx))
            return super().training_step(batch, batch_idx)

    io = AsyncCheckpointIO(Full(f"{refused}-step=2"))
    trainer = Trainer(
        **{**SILENT, "logger": False, "max_steps": 2, "callbacks": list(savers.values()), "plugins": [io]}
    )
    with pytest.warns(UserWarning, match=rf"{refused}-step=2\.ckpt: not written") as caught:
        trainer.fit(Logs())
    assert len([w for w in caught if "not written" in str(w.message)]) == 1
    steps = {name: 1 if name == refused else 2 for name in kinds}
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == [
        f"{name}-step={step}.ckpt" for name, step in steps.items()
    ]
    for name, step in steps.items():
        assert savers[name].best_model_path == str(tmp_path / f"{name}-step={step}.ckpt")
        assert load_checkpoint(savers[name].best_model_path)["global_step"] == step
