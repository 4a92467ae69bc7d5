"""Saving checkpoints: when, under which names, and which are kept."""

import math
import os
from datetime import timedelta

import pytest
import torch
from torch.utils.data import DataLoader

from lt_core import LightningModule, Trainer
from lt_core.callbacks import Callback, ModelCheckpoint
from lt_core.checkpoint import load_checkpoint
from lt_core.demos import BoringModel, RandomDataset
from lt_interface.errors import CheckpointError, ConfigError, MisconfigurationException


class _Model(BoringModel):
    """Module that logs given losses, one a validation, and trains on four batches an epoch."""

    def __init__(self, val_losses=(), train_losses=()):
        super().__init__()
        self.val_losses = list(val_losses)
        self.train_losses = list(train_losses)

    def training_step(self, batch, batch_idx):
        if self.train_losses:
            self.log("train_loss", self.train_losses.pop(0))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        if self.val_losses and not self.trainer.sanity_checking:
            self.log("val_loss", self.val_losses.pop(0))

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 8), batch_size=2)

    def val_dataloader(self):
        return DataLoader(RandomDataset(32, 2), batch_size=2)


def _fit(tmp_path, callbacks, model=None, ckpt_path=None, **flags):
    defaults = {
        "max_epochs": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": tmp_path,
    }
    trainer = Trainer(callbacks=callbacks, **{**defaults, **flags})
    trainer.fit(model or _Model(), ckpt_path=ckpt_path)
    return trainer


def _files(folder):
    return sorted(f for f in os.listdir(folder) if f.endswith(".ckpt")) if os.path.isdir(folder) else []


def _step(path):
    return load_checkpoint(path)["global_step"]


@pytest.mark.parametrize(
    ("k", "losses", "kept"),
    [(2, [0.5, 0.1, 0.9, 0.2], {"best-v1": 0.1, "best": 0.2}), (-1, [0.5, 0.1], {"best": 0.5, "best-v1": 0.1})],
)
def test_a_name_without_fields_serves_for_several(tmp_path, k, losses, kept):
    """A constant file name gets a version where it is taken, and the kept files are those of the best."""
    callback = ModelCheckpoint(tmp_path, "best", monitor="val_loss", save_top_k=k)
    _fit(tmp_path, callback, _Model(losses), max_epochs=len(losses))
    assert {os.path.basename(f): float(v) for f, v in callback.best_k_models.items()} == {
        f"{name}.ckpt": pytest.approx(value) for name, value in kept.items()
    }
    assert _files(tmp_path) == sorted(f"{name}.ckpt" for name in kept)
    found = {name: load_checkpoint(tmp_path / f"{name}.ckpt")["callback_metrics"]["val_loss"] for name in kept}
    assert found == pytest.approx(kept)


def test_the_newest_epoch_is_kept_by_default(tmp_path):
    """Without arguments the last epoch's file lies in the default folder under epoch and step."""
    callback = ModelCheckpoint()
    _fit(tmp_path, callback)
    assert _files(tmp_path / "checkpoints") == ["epoch=2-step=12.ckpt"]
    assert callback.best_model_path == str(tmp_path / "checkpoints" / "epoch=2-step=12.ckpt")
    assert callback.best_model_score is None
    assert load_checkpoint(callback.best_model_path)["epoch"] == 2


@pytest.mark.parametrize(
    ("mode", "k", "kept", "best"),
    [
        ("min", 1, [1], 1),
        ("min", 2, [1, 3], 1),
        ("max", 2, [0, 2], 2),
        ("min", -1, [0, 1, 2, 3], 1),
        ("min", 0, [], None),
    ],
)
def test_the_best_are_kept(tmp_path, mode, k, kept, best):
    """The k best by the metric stay, the others are removed, and the best one is known."""
    callback = ModelCheckpoint(tmp_path, "{epoch}-{val_loss:.1f}", monitor="val_loss", mode=mode, save_top_k=k)
    losses = [0.5, 0.1, 0.9, 0.2]
    _fit(tmp_path, callback, _Model(losses), max_epochs=4)
    assert _files(tmp_path) == [f"epoch={e}-val_loss={losses[e]:.1f}.ckpt" for e in kept]
    assert sorted(map(os.path.basename, callback.best_k_models)) == _files(tmp_path)
    if best is not None:
        assert callback.best_model_path == str(tmp_path / f"epoch={best}-val_loss={losses[best]:.1f}.ckpt")
        assert callback.best_model_score == pytest.approx(losses[best])
        worst = (max if mode == "min" else min)(losses[e] for e in kept)
        assert callback.kth_value == pytest.approx(worst)


def test_nan_is_worst(tmp_path):
    """A loss of NaN takes a free place, and loses it to any number."""
    callback = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss")
    _fit(tmp_path, callback, _Model([math.nan, 5.0, math.nan]))
    assert _files(tmp_path) == ["epoch=1.ckpt"]


def test_a_checkpoint_knows_itself(tmp_path):
    """The callback's state in each file already names that file as newest and best."""
    callback = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=-1, save_last=True)
    _fit(tmp_path, callback, _Model([3.0, 2.0, 1.0]))
    for epoch in range(3):
        state = load_checkpoint(tmp_path / f"epoch={epoch}.ckpt")["callbacks"][callback.state_key]
        assert state["best_model_path"] == str(tmp_path / f"epoch={epoch}.ckpt")
        assert state["best_model_score"] == 3.0 - epoch
        assert state["last_model_path"] == str(tmp_path / "last.ckpt")
        assert len(state["best_k_models"]) == epoch + 1


def test_by_steps(tmp_path):
    """A save each three steps, and each once, whatever the epochs and the accumulation."""
    _fit(tmp_path / "a", ModelCheckpoint(tmp_path / "a", save_top_k=-1, every_n_train_steps=3))
    assert _files(tmp_path / "a") == [f"epoch={e}-step={s}.ckpt" for e, s in ((0, 3), (1, 6), (2, 12), (2, 9))]
    callback = ModelCheckpoint(tmp_path / "b", save_top_k=-1, every_n_train_steps=1)
    _fit(tmp_path / "b", callback, accumulate_grad_batches=2)
    ends = ((0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6))
    assert _files(tmp_path / "b") == [f"epoch={e}-step={s}.ckpt" for e, s in ends]
    assert load_checkpoint(tmp_path / "b" / "epoch=0-step=1.ckpt")["progress"]["batch"] == 2


def test_by_epochs(tmp_path):
    """A save each second epoch."""
    _fit(tmp_path, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=2), max_epochs=5)
    assert _files(tmp_path) == ["epoch=1.ckpt", "epoch=3.ckpt"]


def test_by_time(tmp_path, monkeypatch):
    """A save when so much time passed since the last."""
    from lt_core.callbacks.checkpointing import callback as model_checkpoint

    now = [0.0]
    monkeypatch.setattr(model_checkpoint.time, "monotonic", lambda: now[0])

    class Clock(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            now[0] += 1.0

    callback = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, train_time_interval=timedelta(seconds=5))
    _fit(tmp_path, [Clock(), callback])
    assert _files(tmp_path) == ["step=10.ckpt", "step=5.ckpt"]


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({"val_check_interval": 2}, [2, 4, 6, 8]),
        ({"check_val_every_n_epoch": 2, "max_epochs": 4}, [8, 16]),
        ({"limit_val_batches": 0}, [4, 8]),
        ({"limit_val_batches": 0, "check_val_every_n_epoch": 2}, [4, 8]),
    ],
)
def test_the_epoch_trigger_follows_validation(tmp_path, flags, steps):
    """Where validation runs more or less often than once an epoch, saving follows it."""
    _fit(tmp_path, ModelCheckpoint(tmp_path, "{step}", save_top_k=-1), **{"max_epochs": 2, **flags})
    assert sorted(_step(tmp_path / f) for f in _files(tmp_path)) == steps


def test_without_validation_data_each_epoch_is_saved(tmp_path):
    """A validation cadence means nothing where there is no validation data."""

    class NoValidation(BoringModel):
        validation_step = LightningModule.validation_step
        val_dataloader = LightningModule.val_dataloader

        def train_dataloader(self):
            return DataLoader(RandomDataset(32, 8), batch_size=2)

    callback = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    _fit(tmp_path, callback, NoValidation(), max_epochs=2, check_val_every_n_epoch=2)
    assert _files(tmp_path) == ["step=4.ckpt", "step=8.ckpt"]


def test_the_place_can_be_chosen(tmp_path):
    """save_on_train_epoch_end saves once an epoch whatever validation does."""
    callback = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=True)
    _fit(tmp_path, callback, max_epochs=2, val_check_interval=2)
    assert sorted(_step(tmp_path / f) for f in _files(tmp_path)) == [4, 8]


def test_a_step_that_lacks_its_metric_waits_for_validation(tmp_path):
    """Before the first validation a step's save waits for it; a step with validation behind it sees the new value."""
    callback = ModelCheckpoint(
        tmp_path, "{step}-{val_loss:.1f}", monitor="val_loss", every_n_train_steps=2, save_top_k=-1
    )
    _fit(tmp_path, callback, _Model([0.5, 0.4]), max_epochs=2)
    assert _files(tmp_path) == ["step=4-val_loss=0.5.ckpt", "step=6-val_loss=0.5.ckpt", "step=8-val_loss=0.4.ckpt"]


def test_names_with_metrics_wait_for_the_validation_of_their_batch(tmp_path):
    """Without a monitor too, a name with a validation metric shows the value of this batch's validation."""
    callback = ModelCheckpoint(tmp_path, "{step}-{val_loss:.1f}", every_n_train_steps=4, save_top_k=-1)
    _fit(tmp_path, callback, _Model([0.5, 0.4]), max_epochs=2)
    assert _files(tmp_path) == ["step=4-val_loss=0.5.ckpt", "step=8-val_loss=0.4.ckpt"]


def test_a_training_metric_can_be_monitored(tmp_path):
    """Without validation, what training logs is there at the step and at the epoch."""
    callback = ModelCheckpoint(tmp_path, "{step}", monitor="train_loss", every_n_train_steps=1)
    model = _Model(train_losses=[4.0, 1.0, 3.0, 2.0])
    _fit(tmp_path, callback, model, max_epochs=1, limit_val_batches=0)
    assert _files(tmp_path) == ["step=2.ckpt"]


def test_epoch_and_step_can_be_monitored(tmp_path):
    """Counters are metrics too."""
    _fit(tmp_path, ModelCheckpoint(tmp_path, "{epoch}", monitor="step", mode="max", save_top_k=2), max_epochs=4)
    assert _files(tmp_path) == ["epoch=2.ckpt", "epoch=3.ckpt"]


def test_a_monitor_that_is_never_logged_lists_what_is(tmp_path):
    """The error names the keys that were logged and the nearest of them."""
    with pytest.raises(MisconfigurationException, match=r'Logged are: val_loss. Did you mean "val_loss"\?'):
        _fit(tmp_path, ModelCheckpoint(tmp_path, monitor="valloss"), _Model([1.0]))
    with pytest.raises(MisconfigurationException, match="Nothing is logged so far"):
        _fit(tmp_path, ModelCheckpoint(tmp_path, monitor="loss"), limit_val_batches=0)


def test_a_monitor_may_come_with_the_first_validation(tmp_path):
    """Before validation has run, a metric that is not there is a warning and no stop."""
    callback = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="no metric of that name was logged"):
        _fit(tmp_path, callback, _Model([1.0]), max_epochs=2, check_val_every_n_epoch=2)
    assert _files(tmp_path) == ["epoch=1.ckpt"]


def test_a_step_save_that_never_found_its_metric_is_told(tmp_path):
    """Training that ends before any validation warns that nothing was saved."""
    callback = ModelCheckpoint(tmp_path, monitor="val_loss", every_n_train_steps=1)
    with pytest.warns(UserWarning, match="Nothing is logged so far"):
        _fit(tmp_path, callback, max_epochs=1, check_val_every_n_epoch=2)
    assert _files(tmp_path) == []


@pytest.mark.parametrize("save_last", [True, "link"])
@pytest.mark.parametrize(("losses", "best", "is_link"), [([3.0, 0.5, 2.0], 1, False), ([3.0, 2.0, 1.0], 2, True)])
def test_last_is_the_newest_moment_at_which_saving_was_due(tmp_path, save_last, losses, best, is_link):
    """last.ckpt is of the last epoch, though another one was best; a link to it only where that one was best."""
    callback = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last=save_last)
    _fit(tmp_path, callback, _Model(losses))
    assert _files(tmp_path) == [f"epoch={best}.ckpt", "last.ckpt"]
    assert callback.last_model_path == str(tmp_path / "last.ckpt")
    assert os.path.islink(tmp_path / "last.ckpt") == (is_link and save_last == "link")
    assert (_step(tmp_path / "last.ckpt"), _step(tmp_path / f"epoch={best}.ckpt")) == (12, 4 * best + 4)


def test_a_link_takes_the_place_of_a_file_and_the_other_way_round(tmp_path):
    """With "link", last.ckpt is a file after an epoch that was not among the best, a link again after one that was."""
    seen = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:
                seen.append((os.path.islink(tmp_path / "last.ckpt"), _step(tmp_path / "last.ckpt")))

    callback = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last="link")
    _fit(tmp_path, [Look(), callback], _Model([3.0, 4.0, 2.0, 5.0, 6.0]), max_epochs=5)
    assert seen == [(True, 4), (False, 8), (True, 12), (False, 16)]
    assert _files(tmp_path) == ["epoch=2.ckpt", "last.ckpt"]


def test_last_is_written_where_the_monitor_is_not_there_yet(tmp_path):
    """An epoch without the monitored metric warns that nothing can be best, and last.ckpt is of it all the same."""
    callback = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True, save_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="no metric of that name"):
        _fit(tmp_path, callback, _Model([1.0]), max_epochs=1, check_val_every_n_epoch=2)
    assert _files(tmp_path) == ["last.ckpt"]


def test_last_by_steps_goes_with_each_trigger(tmp_path):
    """By steps, last.ckpt is written whether or not the step was among the best."""
    callback = ModelCheckpoint(tmp_path, "{step}", monitor="train_loss", every_n_train_steps=1, save_last=True)
    model = _Model(train_losses=[1.0, 2.0, 3.0, 4.0])
    _fit(tmp_path, callback, model, max_epochs=1, limit_val_batches=0)
    assert _files(tmp_path) == ["last.ckpt", "step=1.ckpt"]
    assert _step(tmp_path / "last.ckpt") == 4


def test_last_alone(tmp_path):
    """With save_top_k=0 only last.ckpt is written, at each trigger."""
    seen = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(_files(tmp_path))

    _fit(tmp_path, [Look(), ModelCheckpoint(tmp_path, save_top_k=0, save_last=True)])
    assert seen == [[], ["last.ckpt"], ["last.ckpt"]]
    assert _step(tmp_path / "last.ckpt") == 12


def test_last_as_a_link(tmp_path):
    """The link is relative, names the newest save, and outlives the removal of older ones."""
    callback = ModelCheckpoint(tmp_path / "a", "{epoch}", save_last="link")
    _fit(tmp_path, callback)
    assert _files(tmp_path / "a") == ["epoch=2.ckpt", "last.ckpt"]
    assert os.readlink(tmp_path / "a" / "last.ckpt") == "epoch=2.ckpt"
    assert callback.last_model_path == str(tmp_path / "a" / "last.ckpt")
    state = load_checkpoint(tmp_path / "a" / "last.ckpt")["callbacks"][callback.state_key]
    assert state["last_model_path"] == callback.last_model_path
    os.rename(tmp_path / "a", tmp_path / "b")
    assert _step(tmp_path / "b" / "last.ckpt") == 12


def test_last_is_written_at_the_end_where_nothing_was(tmp_path):
    """A run too short for its trigger still leaves last.ckpt."""
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=100, save_last=True)
    _fit(tmp_path, callback, max_epochs=1)
    assert _files(tmp_path) == ["last.ckpt"]


def test_lasts_name_is_a_template(tmp_path):
    """A subclass gives last.ckpt another name, and the older one is removed."""

    class Own(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-newest"

    _fit(tmp_path, Own(tmp_path, "{step}", save_last=True))
    assert _files(tmp_path) == ["epoch=2-newest.ckpt", "step=12.ckpt"]


def test_taken_names_get_a_version(tmp_path):
    """Another run's files are never overwritten, unless the counter is off."""
    (tmp_path / "one.ckpt").write_text("mine")
    (tmp_path / "last.ckpt").write_text("mine")
    with pytest.warns(UserWarning, match="exists and is not empty"):
        _fit(tmp_path, ModelCheckpoint(tmp_path, "one", save_last=True), max_epochs=2)
    assert _files(tmp_path) == ["last-v1.ckpt", "last.ckpt", "one-v1.ckpt", "one.ckpt"]
    assert (tmp_path / "one.ckpt").read_text() == (tmp_path / "last.ckpt").read_text() == "mine"
    with pytest.warns(UserWarning, match="exists and is not empty"):
        _fit(tmp_path, ModelCheckpoint(tmp_path, "one", enable_version_counter=False), max_epochs=1)
    assert _step(tmp_path / "one.ckpt") == 4


@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (-1, {"same.ckpt": 4, "same-v1.ckpt": 8, "same-v2.ckpt": 12, "same-v3.ckpt": 16, "same-v4.ckpt": 20}),
        (2, {"same.ckpt": 20, "same-v1.ckpt": 8}),
        (3, {"same.ckpt": 4, "same-v1.ckpt": 8, "same-v2.ckpt": 20}),
    ],
)
def test_a_name_without_fields_keeps_as_many_as_are_asked_for(tmp_path, k, kept):
    """Under one constant name each kept checkpoint has a version of its own, and one that leaves gives its name on."""
    callback = ModelCheckpoint(tmp_path, "same", monitor="val_loss", save_top_k=k)
    _fit(tmp_path, callback, _Model([3.0, 1.0, 4.0, 5.0, 2.0]), max_epochs=5)
    assert {name: _step(tmp_path / name) for name in _files(tmp_path)} == kept
    assert sorted(map(os.path.basename, callback.best_k_models)) == sorted(kept)
    assert callback.best_model_path == str(tmp_path / "same-v1.ckpt")


@pytest.mark.parametrize("k", [-1, 1])
def test_a_name_without_fields_and_monitor(tmp_path, k):
    """All are kept under versions of the name, or the newest alone under the name itself."""
    callback = ModelCheckpoint(tmp_path, "same", save_top_k=k)
    _fit(tmp_path, callback)
    expected = {"same.ckpt": 4, "same-v1.ckpt": 8, "same-v2.ckpt": 12} if k == -1 else {"same.ckpt": 12}
    assert {name: _step(tmp_path / name) for name in _files(tmp_path)} == expected
    assert _step(callback.best_model_path) == 12


def test_two_callbacks_do_not_share_a_name(tmp_path):
    """Two callbacks that would write one file at one boundary get two."""
    callbacks = [ModelCheckpoint(tmp_path, save_top_k=-1), ModelCheckpoint(tmp_path, monitor="step", save_top_k=-1)]
    _fit(tmp_path, callbacks, max_epochs=1)
    assert _files(tmp_path) == ["epoch=0-step=4-v1.ckpt", "epoch=0-step=4.ckpt"]


@pytest.mark.parametrize("flags", [{"fast_dev_run": True}])
def test_a_try_saves_nothing(tmp_path, flags):
    """fast_dev_run makes the callback rest."""
    _fit(tmp_path, ModelCheckpoint(tmp_path, save_last=True), **flags)
    assert _files(tmp_path) == []


def test_weights_only(tmp_path):
    """A file of weights alone holds no optimizer and no callback."""
    callback = ModelCheckpoint(tmp_path, save_weights_only=True)
    _fit(tmp_path, callback, max_epochs=1)
    tree = load_checkpoint(callback.best_model_path)
    assert "optimizer_states" not in tree
    assert "callbacks" not in tree
    assert set(tree["state_dict"]) == {"layer.weight", "layer.bias"}


def test_a_failure_is_saved_on_request(tmp_path):
    """save_on_exception keeps what was trained since the last save, and the error stays the user's."""

    class Broken(_Model):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 6:
                raise ValueError("mine")
            return super().training_step(batch, batch_idx)

    for folder, on in (("a", True), ("b", False)):
        callback = ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, save_on_exception=on, save_last=True)
        with pytest.raises(ValueError, match="mine"):
            _fit(tmp_path, callback, Broken())
    assert _files(tmp_path / "a") == ["last.ckpt", "step=4.ckpt", "step=6.ckpt"]
    assert _step(tmp_path / "a" / "last.ckpt") == 6
    assert _files(tmp_path / "b") == ["last.ckpt", "step=4.ckpt"]


def test_a_resumed_run_goes_on_with_its_files(tmp_path):
    """Scores and paths come back: the resumed run removes and keeps what one run would have."""

    def run(name, **flags):
        callback = ModelCheckpoint(tmp_path / name, "{epoch}", monitor="val_loss", save_top_k=2, save_last=True)
        return callback, _fit(tmp_path, callback, **flags)

    losses = [0.5, 0.4, 0.9, 0.3]
    whole, _ = run("whole", model=_Model(losses), max_epochs=4)
    run("parts", model=_Model(losses[:2]), max_epochs=2)
    parts, _ = run("parts", model=_Model(losses[2:]), max_epochs=4, ckpt_path="last")
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole") == ["epoch=1.ckpt", "epoch=3.ckpt", "last.ckpt"]
    assert parts.best_model_path == str(tmp_path / "parts" / "epoch=3.ckpt")
    assert parts.best_model_score == whole.best_model_score


def test_the_file_resumed_from_is_spared(tmp_path):
    """The checkpoint that the run began with stays, although a newer one took its place."""
    _fit(tmp_path, ModelCheckpoint(tmp_path, "{epoch}"), max_epochs=1)
    _fit(tmp_path, ModelCheckpoint(tmp_path, "{epoch}"), max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert _files(tmp_path) == ["epoch=0.ckpt", "epoch=2.ckpt"]


def test_another_folder_begins_anew(tmp_path):
    """In another folder only the best path is taken over, with a warning, and old files stay."""
    _fit(tmp_path, ModelCheckpoint(tmp_path / "a", "{epoch}", monitor="val_loss"), _Model([0.1]), max_epochs=1)
    old = tmp_path / "a" / "epoch=0.ckpt"
    callback = ModelCheckpoint(tmp_path / "b", "{epoch}", monitor="val_loss")
    with pytest.warns(UserWarning, match="Only best_model_path is taken over"):
        _fit(tmp_path, callback, _Model([0.9]), max_epochs=2, ckpt_path=old)
    assert _files(tmp_path / "a") == ["epoch=0.ckpt"]
    assert _files(tmp_path / "b") == ["epoch=1.ckpt"]
    assert callback.best_model_score == pytest.approx(0.9)


def test_a_save_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    """Where the disk refuses once, training goes on, the older file stays the best and the next save replaces it."""
    from lt_core.checkpoint.format.safetensors_io import SafetensorsIO

    save, calls = SafetensorsIO.save, []

    def failing(self, tree, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(self, tree, path)

    monkeypatch.setattr(SafetensorsIO, "save", failing)
    seen = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append((_files(tmp_path), os.path.basename(callback.best_model_path)))

    callback = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss")
    with pytest.warns(UserWarning, match="No space left"):
        _fit(tmp_path, [Look(), callback], _Model([0.5, 0.4, 0.3]))
    assert seen == [([], ""), (["epoch=0.ckpt"], "epoch=0.ckpt"), (["epoch=0.ckpt"], "epoch=0.ckpt")]
    assert _files(tmp_path) == ["epoch=2.ckpt"]
    assert callback.best_model_score == pytest.approx(0.3)


def test_what_a_killed_run_did_not_remove_is_removed_later(tmp_path):
    """A file that was superseded but not yet removed when the process died goes with the next save."""
    callback = ModelCheckpoint(tmp_path, "{epoch}")
    _fit(tmp_path, callback, max_epochs=2)
    tree = load_checkpoint(tmp_path / "epoch=1.ckpt")
    stale = tmp_path / "epoch=0.ckpt"
    assert tree["callbacks"][callback.state_key]["superseded"] == [str(stale)]
    stale.write_text("left behind")
    _fit(tmp_path, ModelCheckpoint(tmp_path, "{epoch}"), max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert _files(tmp_path) == ["epoch=1.ckpt", "epoch=2.ckpt"]


def test_a_folder_that_can_not_be_written_is_refused_before_training(tmp_path):
    """A file in the folder's way is reported before the first batch."""
    (tmp_path / "file").write_text("")
    model = _Model(train_losses=[1.0])
    with pytest.raises((ConfigError, CheckpointError), match="checkpoints must be writable there"):
        _fit(tmp_path, ModelCheckpoint(tmp_path / "file" / "sub"), model)
    assert model.train_losses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_train_steps": 1, "every_n_epochs": 1}, "only one of these can be given"),
        ({"every_n_train_steps": 1, "train_time_interval": timedelta(1)}, "only one of these can be given"),
        ({"save_top_k": 3}, "without a monitor there is no best"),
        ({"save_top_k": -2}, "at least -1"),
        ({"every_n_epochs": -1}, "at least 0"),
        ({"every_n_train_steps": 1.5}, "whole number"),
        ({"mode": "mini"}, 'Did you mean "min"'),
        ({"save_last": "lnk"}, 'must be True, False, None or "link"'),
        ({"train_time_interval": 5}, "must be a timedelta"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    """Each argument is checked where the callback is made."""
    with pytest.raises(MisconfigurationException, match=message):
        ModelCheckpoint(**arguments)


def test_all_wrong_arguments_are_told_at_once():
    """Several problems make one report."""
    with pytest.raises(ConfigError, match="3 problems"):
        ModelCheckpoint(mode="x", save_top_k=-5, filename="{")


def test_kept_scores_can_be_written_as_yaml(tmp_path):
    """to_yaml writes each kept path with its score."""
    import yaml

    callback = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=2)
    _fit(tmp_path, callback, _Model([0.5, 0.25, 1.0]))
    callback.to_yaml()
    written = yaml.safe_load((tmp_path / "best_k_models.yaml").read_text())
    assert written == {str(tmp_path / "epoch=0.ckpt"): 0.5, str(tmp_path / "epoch=1.ckpt"): 0.25}


def test_home_is_expanded(monkeypatch, tmp_path):
    """A folder may begin with a tilde."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ModelCheckpoint("~/x").dirpath == str(tmp_path / "x")


def test_keys_tell_callbacks_apart():
    """Monitor, mode and triggers are part of the state's key."""
    keys = {
        ModelCheckpoint().state_key,
        ModelCheckpoint(monitor="a").state_key,
        ModelCheckpoint(mode="max").state_key,
        ModelCheckpoint(every_n_epochs=2).state_key,
        ModelCheckpoint(every_n_train_steps=2).state_key,
        ModelCheckpoint(train_time_interval=timedelta(1)).state_key,
    }
    assert len(keys) == 6
    assert torch.isinf(ModelCheckpoint().kth_value)
