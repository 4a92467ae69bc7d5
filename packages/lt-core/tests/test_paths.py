"""Paths that users write: remote, relative, too long, of bytes that are no text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT, Noting

from lt_core import Trainer
from lt_core.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from lt_core.checkpoint import find_last, load_checkpoint, save_checkpoint
from lt_core.loggers import CSVLogger
from lt_interface.errors import CheckpointError, ConfigError

DATA = torch.ones(4, 1).unbind()
URLS = ["s3://bucket/x", "gs://b", "hdfs://host:9000/x", "file:///tmp/x", "abfs://c@a/x", "memory://x", "S3://b/x"]
FEW: dict[str, Any] = {**SILENT, "num_sanity_val_steps": 0, "max_epochs": 1}


def fitted(tmp_path: Path) -> Trainer:
    """Return a trainer that has fitted."""
    trainer = Trainer(**FEW, default_root_dir=tmp_path, logger=False, enable_checkpointing=False)
    trainer.fit(Noting(), DATA, DATA)
    return trainer


PLACES: dict[str, Any] = {
    "dirpath": lambda url, trainer: ModelCheckpoint(dirpath=url),
    "dirpath of errors": lambda url, trainer: OnExceptionCheckpoint(dirpath=url),
    "default_root_dir": lambda url, trainer: Trainer(default_root_dir=url),
    "save_dir": lambda url, trainer: CSVLogger(save_dir=url),
    "save_checkpoint": lambda url, trainer: trainer.save_checkpoint(url),
    "ckpt_path": lambda url, trainer: trainer.validate(Noting(), DATA, ckpt_path=url),
    "ckpt_path of fit": lambda url, trainer: trainer.fit(Noting(), DATA, DATA, ckpt_path=url),
    "load_from_checkpoint": lambda url, trainer: Noting.load_from_checkpoint(url),
    "a tree's path": lambda url, trainer: save_checkpoint({}, url),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_remote_address_is_refused_wherever_a_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """One error names the place and the address, and nothing of that name is made here."""
    trainer = fitted(tmp_path)
    monkeypatch.chdir(tmp_path)
    there = sorted(os.listdir(tmp_path))
    for url in [*URLS, Path("s3://bucket/x"), Path("file:///x")]:
        with pytest.raises((ConfigError, CheckpointError), match="remote addresses are not supported") as caught:
            PLACES[place](url, trainer)
        assert str(url)[:3] in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == there


def test_local_names_that_look_nearly_like_addresses_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A colon in a name makes no address of it."""
    monkeypatch.chdir(tmp_path)
    for name in ("run:1", "lr=0.1:x/y", "a:/b", "x:y"):
        assert ModelCheckpoint(dirpath=name).dirpath == os.path.join(tmp_path, name)


def test_relative_folders_are_those_of_the_moment_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a hook or the program makes the working folder later, all files of a run lie together."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    class Moves(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            os.chdir(tmp_path / "there")

    saver = ModelCheckpoint(dirpath="saved", save_last=True)
    trainer = Trainer(**FEW, default_root_dir="root", logger=CSVLogger("logs"), callbacks=[saver, Moves()])
    os.chdir(tmp_path)
    trainer.fit(Noting(), DATA, DATA)
    trainer.validate(ckpt_path="last", dataloaders=DATA, verbose=False)
    os.chdir(tmp_path / "here")
    trainer.fit(Noting(), DATA, DATA, ckpt_path="saved/last.ckpt")
    assert list((tmp_path / "there").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["logs", "saved"]
    assert trainer.default_root_dir == str(tmp_path / "here" / "root")
    assert trainer.log_dir == str(tmp_path / "here" / "logs" / "lightning_logs" / "version_0")


def test_a_folder_that_is_set_later_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """callback.dirpath may be written up to the fit, relative too, and a default one is chosen anew for each run."""
    monkeypatch.chdir(tmp_path)
    saver = ModelCheckpoint()
    for version in (0, 1):
        Trainer(**FEW, default_root_dir="root", callbacks=[saver]).fit(Noting(), DATA, DATA)
        assert saver.dirpath == str(tmp_path / "root" / "lightning_logs" / f"version_{version}" / "checkpoints")
    saver.dirpath = "mine"
    Trainer(**FEW, default_root_dir="root", callbacks=[saver]).fit(Noting(), DATA, DATA)
    assert saver.dirpath == str(tmp_path / "mine")
    assert find_last([tmp_path / "mine"]) is not None


@pytest.mark.parametrize(
    ("template", "fits"),
    [
        ("z" * 300, False),
        ("z" * 240, True),
        ("ü" * 130, False),
        ("{epoch}-{" + "v" * 230 + "}", False),
        ("{val}" + "w" * 230, False),
        ("{val:.2f}" + "w" * 230, True),
        ("sub" * 50 + "/" + "x" * 200, True),
    ],
)
def test_names_that_no_disk_takes_are_refused_before_the_start(tmp_path: Path, template: str, fits: bool) -> None:
    """A file name with over 255 bytes is an error of fit, its numbers taken as long as they may get."""
    saver = ModelCheckpoint(tmp_path / "c", filename=template)
    trainer = Trainer(**FEW, default_root_dir=tmp_path, logger=False, callbacks=[saver])
    if fits:
        trainer.fit(Noting(), DATA, DATA)
        assert Path(saver.best_model_path).exists()
        return
    with pytest.raises(ConfigError, match="has at most 255 bytes"):
        trainer.fit(Noting(), DATA, DATA)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="has at most 255 bytes"):
        OnExceptionCheckpoint(tmp_path, filename="z" * 300)


@pytest.mark.parametrize("where", ["name", "version"])
def test_a_loggers_folders_are_refused_when_it_is_made(tmp_path: Path, where: str) -> None:
    """A name or version that no disk takes as a folder is one error of the logger, before anything is made."""
    with pytest.raises(ConfigError, match=rf"CSVLogger\({where}='nn.*has at most 255 bytes"):
        CSVLogger(tmp_path, **{where: "n" * 300})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="paths are bytes on POSIX only")
def test_a_path_of_bytes_that_are_no_text_works(tmp_path: Path) -> None:
    """Folders and file names in another encoding are written, logged to, found and resumed."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")

    def make(epochs: int) -> Trainer:
        saver = ModelCheckpoint(filename=os.fsdecode(b"\xe9{epoch}"), save_last=True, verbose=True)
        given: dict[str, Any] = {**FEW, "max_epochs": epochs}
        return Trainer(**given, default_root_dir=os.fsencode(folder), callbacks=[saver])

    trainer = make(1)
    trainer.fit(Noting(), DATA, DATA)
    assert len(list(Path(folder).rglob("metrics.csv"))) == 1
    again = make(2)
    again.fit(Noting(), DATA, DATA, ckpt_path="last")
    assert again.resumed_from is not None
    assert load_checkpoint(again.checkpoint_callback.last_model_path)["global_step"] == 8
