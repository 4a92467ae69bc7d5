"""What the trainer says where something else was meant: each message names the place, the rule and the way out."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import nn

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_core.metrics.absent import names_validation
from lt_interface import ConfigError, MisconfigurationException, registry
from lt_interface.errors import CheckpointError

BATCHES = [torch.ones(1, 1)] * 2


class Net(LightningModule):
    """Module that logs a loss in training, and one in validation if it is asked to."""

    def __init__(self, scheduler: str = "", **logged: Any) -> None:
        super().__init__()
        self.layer, self.scheduler, self.logged = nn.Linear(1, 1), scheduler, logged

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_loss", 1.0)
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.logged:
            self.log("val_loss", 1.0, **self.logged)

    def val_dataloader(self) -> Any:
        return BATCHES

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.scheduler == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        if self.scheduler:
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]
        return optimizer


def fit(net: Any = None, ckpt_path: Any = None, **flags: Any) -> Trainer:
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "num_sanity_val_steps": 0, **flags})
    trainer.fit(Net() if net is None else net, BATCHES, ckpt_path=ckpt_path)
    return trainer


def monitors(tmp_path: Any) -> list[Any]:
    return [EarlyStopping("val_loss"), ModelCheckpoint(tmp_path, monitor="val_loss")]


class TestMonitors:
    """A monitored value that is not there, whoever monitors it."""

    @pytest.mark.parametrize("who", [0, 1, "plateau"])
    def test_logged_by_step_only(self, tmp_path: Any, who: Any) -> None:
        """A value that a validation logs with on_epoch=False is named as that, with what to write."""
        net = Net("plateau" if who == "plateau" else "", on_step=True, on_epoch=False)
        flags = {} if who == "plateau" else {"callbacks": [monitors(tmp_path)[who]], "enable_checkpointing": True}
        with pytest.raises(
            MisconfigurationException, match=r'by step only.*self\.log\("val_loss", value, on_epoch=True\)'
        ):
            fit(net, default_root_dir=tmp_path, **flags)

    @pytest.mark.parametrize("who", [0, 1])
    def test_without_validation(self, tmp_path: Any, who: int) -> None:
        """With limit_val_batches=0 a warning comes before the first batch, and the error names the flag."""
        callback = monitors(tmp_path)[who]
        name = type(callback).__name__
        early = rf"{name}\(monitor='val_loss'\): limit_val_batches=0 turns validation off, so only what training logs"
        late = r"limit_val_batches=0 turns validation off\. Logged are: train_loss\. Leave that out, or monitor"
        with pytest.warns(UserWarning, match=early), pytest.raises(MisconfigurationException, match=late):
            fit(callbacks=[callback], enable_checkpointing=True, limit_val_batches=0, default_root_dir=tmp_path)

    def test_a_plateau_without_validation(self) -> None:
        """A scheduler that waits for a value of validation says so in the same words, with its own way out."""
        with pytest.raises(
            MisconfigurationException,
            match=r"ReduceLROnPlateau, monitor 'val_loss': no metric.*limit_val_batches=0.*\"strict\": False",
        ):
            fit(Net("plateau"), limit_val_batches=0)

    def test_without_a_step(self) -> None:
        """Where there is no validation_step, the error says that nothing is validated."""
        net = Net()
        net.validation_step = None  # type: ignore[method-assign,assignment]
        with (
            pytest.warns(UserWarning, match="no validation_step"),
            pytest.raises(MisconfigurationException, match="nothing is validated, since there is no validation_step"),
        ):
            fit(net, callbacks=[EarlyStopping("val_loss")])

    def test_a_value_of_training_needs_no_validation(self) -> None:
        """A monitor of what training logs works without validation, and nothing is said."""
        assert fit(callbacks=[EarlyStopping("train_loss")], limit_val_batches=0).current_epoch == 1

    @pytest.mark.parametrize(
        ("name", "is_one"),
        [
            ("val_loss", True),
            ("loss/val", True),
            ("valid/acc", True),
            ("Validation-F1", True),
            ("eval", False),
            ("value", False),
            ("train_loss", False),
            ("interval", False),
            (None, False),
            ("val", True),
        ],
    )
    def test_names_of_validation(self, name: Any, is_one: bool) -> None:
        """A name is one of validation if val, valid or validation stands in it as a word."""
        assert names_validation(name) == is_one


class TestResumes:
    @pytest.mark.parametrize(("before", "after"), [("", "step"), ("step", "")])
    def test_other_schedulers(self, tmp_path: Any, before: str, after: str) -> None:
        """A scheduler that was added, or left out, before a resume is named as that, before any optimizer is loaded."""
        path = tmp_path / "a.ckpt"
        fit(Net(before)).save_checkpoint(path)
        got = "Got 1 (StepLR)" if after else "Got 0"
        with pytest.raises(CheckpointError) as refused:
            fit(Net(after), ckpt_path=path, max_epochs=2)
        assert str(refused.value).startswith(f"{path}: it holds the states of {len(before) // 4} schedulers")
        assert got in str(refused.value)
        assert "Net.load_from_checkpoint" in str(refused.value)

    @pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
    def test_a_finished_trainer(self, limit: str) -> None:
        """A trainer that has reached its limit trains nothing when it fits again, and warns with what to write."""
        trainer = fit(**{"max_epochs": -1, limit: 2})
        match = rf"reached {limit}=2 before, so nothing is trained.*trainer\.{limit} = 4; .*make a new Trainer"
        with pytest.warns(UserWarning, match=match):
            trainer.fit(Net(), BATCHES)
        setattr(trainer, limit, 4)
        trainer.fit(Net(), BATCHES)
        assert trainer.current_epoch if limit == "max_epochs" else trainer.global_step == 4

    def test_a_finished_run_that_is_resumed(self, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A program that resumes its finished run, as when it is started again, is not warned; the end says why."""
        fit().save_checkpoint(tmp_path / "a.ckpt")
        with caplog.at_level("INFO", logger="lt_core"):
            fit(ckpt_path=tmp_path / "a.ckpt")
        assert caplog.messages[-1].startswith("`Trainer.fit` stopped: `max_epochs=1` reached.")


class TestHooks:
    @pytest.mark.parametrize("name", ["training_epoch_end", "test_epoch_end", "tbptt_split_batch", "training_step_end"])
    def test_what_would_never_run(self, name: str) -> None:
        """A hook of a feature that is not here ends the call before anything starts, with what to do instead."""
        net = type("Mine", (Net,), {name: lambda self, *arguments: None})()
        with pytest.raises(ConfigError, match=rf"^Mine\.{name}: this hook is not in this version, and would never run"):
            fit(net)

    @pytest.mark.parametrize(
        ("name", "instead"),
        [
            ("configure_ddp", "Subclass the strategy"),
            ("get_progress_bar_dict", "get_metrics of a ProgressBar"),
            ("add_to_queue", "state_dict"),
            ("validation_end", "Keep what the step made"),
            ("configure_apex", "16-mixed"),
        ],
    )
    def test_what_may_be_the_users_own(self, name: str, instead: str) -> None:
        """A name that was a hook once, and may be the user's own method, is one warning with what to do instead."""
        net = type("Mine", (Net,), {name: lambda self, *arguments: None})()
        with pytest.warns(UserWarning, match=rf"Mine\.{name}: this hook is not in this version.*{instead}"):
            fit(net)

    @pytest.mark.parametrize(
        ("name", "near"), [("on_epoch_end", "on_train_epoch_end"), ("on_train_batch_ends", "on_train_batch_end")]
    )
    def test_hooks_of_callbacks(self, name: str, near: str) -> None:
        """A callback's method that looks like a hook and is none is named, as a module's is."""
        callback = type("Mine", (Callback,), {name: lambda self, *arguments: None})()
        with pytest.warns(UserWarning, match=rf"Mine\.{name}: the trainer never calls this.*{near}"):
            fit(callbacks=[callback])


class TestKeywords:
    @pytest.mark.parametrize(
        ("method", "name", "meant"),
        [
            ("fit", "val_dataloader", '"val_dataloaders"'),
            ("fit", "train_dataloader", '"train_dataloaders"'),
            ("fit", "train_loader", '"train_dataloaders"'),
            ("fit", "data_module", '"datamodule"'),
            ("fit", "dm", '"datamodule"'),
            ("fit", "checkpoint", '"ckpt_path"'),
            ("fit", "resume_from_checkpoint", '"ckpt_path"'),
            ("fit", "max_epochs", r"Trainer\(max_epochs=\.\.\.\)"),
            ("fit", "gpus", 'accelerator="gpu"'),
            ("fit", "batch_size", "It takes model, train_dataloaders, val_dataloaders, datamodule, ckpt_path"),
            ("validate", "val_dataloaders", '"dataloaders"'),
            ("validate", "loader", '"dataloaders"'),
            ("test", "test_dataloaders", '"dataloaders"'),
            ("test", "checkpoint_path", '"ckpt_path"'),
            ("predict", "predict_dataloaders", '"dataloaders"'),
            ("predict", "return_prediction", '"return_predictions"'),
        ],
    )
    def test_a_keyword_that_is_none(self, method: str, name: str, meant: str) -> None:
        """A keyword that a method does not have is a TypeError with the name that was meant."""
        call = getattr(Trainer(**QUIET, max_epochs=1), method)
        with pytest.raises(TypeError, match=rf"^Trainer\.{method}\({name}=\.\.\.\): there is no argument.*{meant}"):
            call(Net(), **{name: None})

    def test_all_at_once(self) -> None:
        """Several of them are one error."""
        with pytest.raises(TypeError, match="2 problems"):
            Trainer(**QUIET, max_epochs=1).fit(Net(), val_dataloader=1, train_dataloader=2)  # type: ignore[arg-type]

    @pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
    def test_what_a_signature_shows(self, method: str) -> None:
        """Tools see a method's own parameters and no more."""
        shown = inspect.signature(getattr(Trainer, method)).parameters
        assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in shown.values())
        assert "unknown" not in getattr(Trainer, method).__annotations__


class TestNames:
    @pytest.mark.parametrize(
        ("flag", "name", "instead"),
        [
            ("accelerator", "tpu", "Leave accelerator out"),
            ("accelerator", "TPU", "Leave accelerator out"),
            ("accelerator", "hpu", "Leave accelerator out"),
            ("strategy", "fsdp", 'strategy="ddp"'),
            ("strategy", "deepspeed_stage_3_offload", 'strategy="ddp"'),
            ("strategy", "dp", 'strategy="ddp"'),
            ("logger", "comet", 'logger="csv"'),
            ("profiler", "xla", 'profiler="simple"'),
        ],
    )
    def test_what_nothing_here_brings(self, flag: str, name: str, instead: str) -> None:
        """A name that Lightning has and nothing here brings is not in this version; no near name is suggested."""
        with pytest.raises(ConfigError, match="is not in this version") as refused:
            Trainer(**{**QUIET, "max_epochs": 1, flag: name})
        assert instead in str(refused.value)
        assert "Did you mean" not in str(refused.value)

    def test_a_package_may_bring_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a package brings such a name, it is taken."""
        points = registry._scan()["lt.profilers"]["passthrough"]
        monkeypatch.setitem(registry._scan()["lt.profilers"], "xla", points)
        assert Trainer(**QUIET, max_epochs=1, profiler="xla").profiler is not None


class TestDevices:
    @pytest.mark.parametrize(
        ("flags", "where"),
        [
            ({"devices": 2}, "Trainer(devices=2)"),
            ({"num_nodes": 2}, "Trainer(num_nodes=2)"),
            ({"strategy": "ddp", "devices": 2}, "Trainer(strategy='ddp')"),
        ],
    )
    def test_the_strategy_is_named_by_who_wrote_it(
        self, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], where: str
    ) -> None:
        """Where several processes need a package that is not here, the error names the flags that the user wrote."""
        only = {name: point for name, point in registry._scan()["lt.strategies"].items() if name == "single_device"}
        monkeypatch.setitem(registry._scan(), "lt.strategies", only)
        with pytest.raises(ConfigError) as refused:
            Trainer(**QUIET, max_epochs=1, **flags)
        assert str(refused.value).startswith(f"{where}: ")
        assert "lt-accel" in str(refused.value)

    def test_batch_norm_of_one(self, caplog: pytest.LogCaptureFixture) -> None:
        """sync_batchnorm with one process has no effect, and says so."""
        with caplog.at_level("INFO", logger="lt_core"):
            fit(sync_batchnorm=True)
        assert caplog.messages[0].startswith("Trainer(sync_batchnorm=True): one process trains")
