"""The order in which journal and checkpoint reach the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT, Noting

from lt_core import Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.checkpoint import AsyncCheckpointIO

DATA = torch.ones(6, 1).unbind()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="descriptors are looked up in /proc")
@pytest.mark.parametrize("plugins", [[], [AsyncCheckpointIO()]], ids=["at once", "in the background"])
@pytest.mark.parametrize("filename", ["{step}", "same"], ids=["new files", "one that is replaced"])
def test_the_journal_is_durable_before_a_checkpoint_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: list[Any], filename: str
) -> None:
    """Between a checkpoint and the one before it all that the journal got is synced: no mark lies behind its end."""
    seen: list[tuple[str, str]] = []
    fsync, replace, write = os.fsync, os.replace, os.write

    def note(kind: str, fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        if ".journal" in os.path.basename(name) and not name.endswith((".ack", ".lock", ".logger")):
            seen.append((kind, os.path.basename(name)))

    def noting_fsync(fd: int) -> None:
        fsync(fd)
        note("sync", fd)

    def noting_replace(source: Any, target: Any, **kwargs: Any) -> None:
        replace(source, target, **kwargs)
        if str(target).endswith(".ckpt"):
            seen.append(("checkpoint", os.path.basename(target)))

    def noting_write(fd: int, data: Any) -> int:
        written = write(fd, data)
        note("write", fd)
        return written

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    monkeypatch.setattr(os, "write", noting_write)
    saver = ModelCheckpoint(tmp_path / "c", filename, every_n_train_steps=2, save_top_k=-1 if "{" in filename else 1)
    trainer = Trainer(
        **SILENT,
        default_root_dir=tmp_path,
        max_epochs=1,
        log_every_n_steps=1,
        callbacks=[saver],
        plugins=plugins,
        num_sanity_val_steps=0,
    )
    trainer.fit(Noting(), DATA, DATA[:1])
    places = [i for i, (kind, _) in enumerate(seen) if kind == "checkpoint"]
    assert len(places) == 3
    for begin, end in zip([0, *places], places, strict=False):
        kinds = [kind for kind, _ in seen[begin:end]]
        assert "sync" in kinds, seen
