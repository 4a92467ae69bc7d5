"""Saving when a run fails."""

import os

import pytest

from lt_core import Trainer
from lt_core.callbacks import OnExceptionCheckpoint
from lt_core.checkpoint import load_checkpoint
from lt_core.demos import BoringModel
from lt_interface.errors import ConfigError


class _Broken(BoringModel):
    def __init__(self, at=3):
        super().__init__()
        self.at = at

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.at:
            raise ValueError("mine")
        return super().training_step(batch, batch_idx)


def _trainer(tmp_path, **flags):
    return Trainer(
        callbacks=[OnExceptionCheckpoint(tmp_path / "saved")],
        logger=False,
        max_epochs=1,
        limit_train_batches=6,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **flags,
    )


def test_a_failed_fit_is_saved_and_gone_on_with(tmp_path):
    """The file holds the steps that were done; the next fit goes on there without being asked, and removes it."""
    path = tmp_path / "saved" / "on_exception.ckpt"
    with pytest.raises(ValueError, match="mine"):
        _trainer(tmp_path).fit(_Broken())
    assert load_checkpoint(path)["global_step"] == 3
    trainer = _trainer(tmp_path)
    seen = []
    trainer.on("fit_start")(lambda trainer: seen.append(trainer.global_step))
    with pytest.warns(UserWarning, match="not at a boundary"):
        trainer.fit(_Broken(at=-1))
    assert seen == [3]
    assert trainer.current_epoch == 1
    assert not path.exists()


def test_a_fit_that_succeeds_leaves_nothing(tmp_path):
    """Without a failure there is no file."""
    _trainer(tmp_path).fit(BoringModel())
    assert not os.path.exists(tmp_path / "saved" / "on_exception.ckpt")


def test_a_try_saves_nothing(tmp_path):
    """fast_dev_run has nothing worth keeping."""
    with pytest.raises(ValueError, match="mine"):
        _trainer(tmp_path, fast_dev_run=4).fit(_Broken())
    assert not os.path.exists(tmp_path / "saved")


def test_a_save_that_fails_hides_no_error(tmp_path, monkeypatch):
    """Where the disk refuses, the run's own error is what is raised."""
    from lt_core.checkpoint.format.safetensors_io import SafetensorsIO

    def refuse(self, tree, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetensorsIO, "save", refuse)
    with pytest.warns(UserWarning, match="was not saved"), pytest.raises(ValueError, match="mine"):
        _trainer(tmp_path).fit(_Broken())


def test_the_name_can_be_chosen(tmp_path):
    """Folder and name make the path; an empty name is refused."""
    callback = OnExceptionCheckpoint(tmp_path, "oops")
    assert callback.ckpt_path == str(tmp_path / "oops.ckpt")
    assert callback.folders() == [str(tmp_path)]
    with pytest.raises(ConfigError, match="needs a name"):
        OnExceptionCheckpoint(tmp_path, "")
