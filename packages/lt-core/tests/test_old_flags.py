"""Test that programs written for older versions run: their flags, and what their steps return."""

from __future__ import annotations

import math
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, GradientAccumulationScheduler, GradNorm, ModelSummary, RichProgressBar
from lt_core.config.flags import FLAGS, TrainerConfig
from lt_core.config.flags import parse as parse_flags
from lt_core.run.old_flags import modern
from lt_interface import MisconfigurationException

RENAMED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_nb_epochs": 2}, {"max_epochs": 2}),
    ({"min_nb_epochs": 1}, {"min_epochs": 1}),
    ({"nb_sanity_val_steps": 3}, {"num_sanity_val_steps": 3}),
    ({"nb_gpu_nodes": 2}, {"num_nodes": 2}),
    ({"overfit_pct": 0.5}, {"overfit_batches": 0.5}),
    ({"train_percent_check": 0.5}, {"limit_train_batches": 0.5}),
    ({"val_percent_check": 0.25}, {"limit_val_batches": 0.25}),
    ({"test_percent_check": 0.1}, {"limit_test_batches": 0.1}),
    ({"row_log_interval": 7}, {"log_every_n_steps": 7}),
    ({"add_row_log_interval": 7}, {"log_every_n_steps": 7}),
    ({"default_save_path": "somewhere"}, {"default_root_dir": "somewhere"}),
    ({"show_progress_bar": False}, {"enable_progress_bar": False}),
    ({"progress_bar_refresh_rate": 0}, {"enable_progress_bar": False}),
    ({"weights_summary": None}, {"enable_model_summary": False}),
    ({"replace_sampler_ddp": False}, {"use_distributed_sampler": False}),
    ({"replace_sampler_ddp_default": False}, {"use_distributed_sampler": False}),
    ({"terminate_on_nan": True}, {"detect_anomaly": True}),
    ({"gpus": 0}, {"accelerator": "cpu"}),
    ({"gpus": None}, {"accelerator": "cpu"}),
    ({"tpu_cores": None}, {}),
    ({"num_processes": 2}, {"accelerator": "cpu", "devices": 2}),
    ({"num_processes": 1}, {}),
    ({"distributed_backend": None}, {}),
    ({"use_amp": False}, {}),
    ({"checkpoint_callback": False}, {"enable_checkpointing": False}),
    ({"reload_dataloaders_every_epoch": True}, {"reload_dataloaders_every_n_epochs": 1}),
    ({"max_time": 90}, {"max_time": timedelta(seconds=90)}),
    ({"early_stop_callback": False}, {}),
    ({"profiler": True}, {"profiler": "simple"}),
    ({"profiler": False}, {}),
]
# What these name is in another package.
ELSEWHERE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"gpus": 2}, {"accelerator": "gpu", "devices": 2}),
    ({"gpus": "0,1"}, {"accelerator": "gpu", "devices": "0,1"}),
    ({"gpus": -1}, {"accelerator": "gpu", "devices": -1}),
    ({"distributed_backend": "ddp"}, {"strategy": "ddp"}),
    ({"distributed_backend": "ddp_cpu", "num_processes": 2}, {"accelerator": "cpu", "strategy": "ddp", "devices": 2}),
    ({"use_amp": True}, {"precision": "16-mixed"}),
]
NO_MEANING = {
    "process_position": 1,
    "log_gpu_memory": "all",
    "track_grad_norm": -1,
    "replace_optimizer_ddp": True,
    "replace_lr_scheduler_ddp": True,
    "log_save_interval": 100,
    "save_hparams": True,
    "auto_select_gpus": True,
    "amp_level": "O2",
    "amp_backend": "native",
    "distributed_port": 1234,
    "enable_pl_optimizer": True,
    "amp_batch_size_adjustment": 1,
    "prepare_data_per_node": True,
    "auto_lr_find": False,
    "auto_scale_batch_size": False,
}


def parse(written: dict[str, Any]) -> TrainerConfig:
    old = modern(written)
    found = parse_flags(old.flags, places=old.places, problems=old.problems)
    for message in old.warnings:
        warnings.warn(message, FutureWarning, stacklevel=1)
    return found


def values(config: TrainerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in FLAGS}


def future(seen: pytest.WarningsRecorder) -> list[str]:
    return [str(one.message) for one in seen if one.category is FutureWarning]


@pytest.mark.parametrize(("old", "new"), RENAMED, ids=str)
def test_an_old_flag_is_todays(old: dict[str, Any], new: dict[str, Any]) -> None:
    """An old flag means what today's flags mean, and one warning shows their spelling."""
    with pytest.warns(FutureWarning) as seen:
        found = parse(old)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert values(found) == values(parse(new))
    assert len(future(seen)) == len(old)
    assert future(seen)[0].startswith(f"Trainer({next(iter(old))}=")
    for name in new:
        assert any(f"{name}=" in text for text in future(seen)), name


@pytest.mark.parametrize(("old", "new"), ELSEWHERE, ids=str)
def test_an_old_flag_names_what_another_package_has(old: dict[str, Any], new: dict[str, Any]) -> None:
    """An old flag for cards, processes or a number format becomes today's flags, whatever is installed."""
    found = modern(old)
    assert found.flags == new
    assert [text.partition("=")[0] for text in found.warnings] == [f"Trainer({name}" for name in old]


@pytest.mark.parametrize("flag", NO_MEANING)
def test_an_old_flag_without_a_meaning_says_so(flag: str) -> None:
    """A flag that nothing answers to any more changes nothing, and one warning says so."""
    with pytest.warns(FutureWarning) as seen:
        found = parse({flag: NO_MEANING[flag]})
    (text,) = future(seen)
    assert text.startswith(f"Trainer({flag}={NO_MEANING[flag]!r}): this has no meaning any more. ")
    assert values(found) == values(parse({}))


@pytest.mark.parametrize(
    ("written", "kind", "check"),
    [
        ({"weights_summary": "full"}, ModelSummary, lambda c: c._max_depth == -1),
        ({"weights_summary": "top"}, ModelSummary, lambda c: c._max_depth == 1),
        ({"progress_bar_refresh_rate": 5}, RichProgressBar, lambda c: c.refresh_rate == 5),
        ({"track_grad_norm": "inf"}, GradNorm, lambda c: (c.norm_type, c.per_parameter) == (math.inf, True)),
        ({"early_stop_callback": True}, EarlyStopping, lambda c: c.monitor == "val_loss"),
        ({"accumulate_grad_batches": {2: 4}}, GradientAccumulationScheduler, lambda c: c.scheduling == {2: 4}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_old_flag_that_is_a_callback_today(written: dict[str, Any], kind: type, check: Any) -> None:
    """What a callback does today is added to the user's callbacks, once."""
    mine = RichProgressBar() if kind is not RichProgressBar else ModelSummary()
    with pytest.warns(FutureWarning, match=rf"callbacks=\[{kind.__name__}\(\.\.\.\)\]"):
        trainer = Trainer(**written, callbacks=[mine], max_epochs=1, logger=False)
    (found,) = [c for c in trainer.callbacks if isinstance(c, kind)]
    assert check(found)
    assert mine in trainer.callbacks


@pytest.mark.parametrize("callbacks", [None, (), [], RichProgressBar()], ids=["None", "tuple", "list", "one"])
def test_an_old_flag_takes_no_callback_away(callbacks: Any) -> None:
    """In whatever form the user's callbacks come, and if there are none, the flag's callback is added to them."""
    found = modern({"callbacks": callbacks, "weights_summary": "top"}).flags["callbacks"]
    own = [callbacks] if isinstance(callbacks, RichProgressBar) else []
    assert found[:-1] == own
    assert isinstance(found[-1], ModelSummary)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"gpus": 1}, {"devices": 1}),
        ({"gpus": 1}, {"accelerator": "cpu"}),
        ({"max_nb_epochs": 1}, {"max_epochs": 1}),
        ({"distributed_backend": "ddp"}, {"strategy": "ddp"}),
        ({"row_log_interval": 1}, {"log_every_n_steps": 2}),
    ],
    ids=str,
)
def test_an_old_flag_beside_todays_is_refused(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Old and new spelling together are one error that shows both."""
    with pytest.raises(MisconfigurationException) as error:
        parse({**old, **new})
    ((a, x), (b, y)) = *old.items(), *new.items()
    assert f"Trainer({a}={x!r}, {b}={y!r}): the first is an old name for the second. " in str(error.value)
    assert f"Leave {a} out." in str(error.value)


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ({"gpus": 2, "num_processes": 2}, "Trainer(gpus=2, num_processes=2)"),
        ({"num_processes": 2, "gpus": 2}, "Trainer(num_processes=2, gpus=2)"),
        ({"tpu_cores": 8, "gpus": 1}, "Trainer(tpu_cores=8, gpus=1)"),
        ({"max_nb_epochs": 2, "row_log_interval": 1, "add_row_log_interval": 2}, "add_row_log_interval=2)"),
        ({"show_progress_bar": True, "progress_bar_refresh_rate": 0}, "progress_bar_refresh_rate=0)"),
        ({"distributed_backend": "ddp_cpu", "gpus": 1}, "Trainer(distributed_backend='ddp_cpu', gpus=1)"),
    ],
    ids=str,
)
def test_old_flags_that_contradict_each_other_are_refused(flags: dict[str, Any], shown: str) -> None:
    """Two old flags that give one flag of today two values are one error that shows both."""
    with pytest.raises(MisconfigurationException, match="contradict each other") as error:
        parse(flags)
    assert shown in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        {"distributed_backend": "ddp_cpu", "num_processes": 2},
        {"gpus": 0, "num_processes": 2},
        {"row_log_interval": 2, "add_row_log_interval": 2},
        {"distributed_backend": "ddp", "num_processes": 2},
        {"gpus": None, "num_processes": 1},
    ],
    ids=str,
)
def test_old_flags_that_agree_are_taken_together(flags: dict[str, Any]) -> None:
    """Two old flags that give one flag of today the same value, or none, are no contradiction."""
    assert not modern(flags).problems


def test_an_error_shows_the_flag_as_it_was_written() -> None:
    """What is wrong with an old flag's value is said of the old flag."""
    with pytest.raises(MisconfigurationException, match=r"^Trainer\(max_nb_epochs=-5\): "):
        parse({"max_nb_epochs": -5})
    with pytest.raises(MisconfigurationException, match=r"^Trainer\(tpu_cores=8\): this accelerator is not in"):
        parse({"tpu_cores": 8})


class Old(LightningModule):
    """Module whose steps return what those of the first versions did."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        return {"loss": loss, "log": {"train_loss": loss}}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        self.seen.append("validation")
        return {"val_loss": nn.functional.mse_loss(self(x), y), "y_hat": self(x), "y": y}

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.seen.append("test")
        return {"test_loss": nn.functional.mse_loss(self(batch[0]), batch[1])}

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1)]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_of_that_age_runs(tmp_path: Path) -> None:
    """A constructor with model, loaders and old flags, and methods without arguments, train, validate and test."""
    x = torch.randn(32, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    model = Old()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data, batch_size=8),
        val_dataloaders=DataLoader(data, batch_size=16),
        test_dataloaders=[DataLoader(data, batch_size=32)],
        max_nb_epochs=3,
        gpus=None,
        default_save_path=str(tmp_path),
        row_log_interval=1,
        progress_bar_refresh_rate=0,
        weights_summary=None,
        nb_sanity_val_steps=0,
        logger="csv",
    )
    before = model.layer.weight.detach().clone()
    trainer.fit()
    assert trainer.current_epoch == 3
    assert trainer.global_step == 12
    assert not torch.equal(before, model.layer.weight)
    assert model.seen == ["validation"] * 6
    assert len(trainer.history["train_loss"]) == 3
    trainer.test()
    assert model.seen[-1] == "test"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_mode_and_a_file_that_the_constructor_was_given(tmp_path: Path) -> None:
    """Loaders side by side end with the shortest where the old mode says so, and fit resumes from the file."""
    data = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
    loaders = {"a": DataLoader(data, batch_size=8), "b": DataLoader(data, batch_size=16)}

    class Two(Old):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"], batch_idx)

    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "weights_summary": None}
    quiet |= {"checkpoint_callback": False, "val_percent_check": 0}
    first = Trainer(multiple_trainloader_mode="min_size", max_epochs=1, **quiet)
    first.fit(Two(), loaders)
    assert first.global_step == 2
    first.save_checkpoint(tmp_path / "a.ckpt")
    second = Trainer(resume_from_checkpoint=tmp_path / "a.ckpt", max_epochs=2, **quiet)
    second.fit(Two(), loaders)
    assert second.global_step == 2 + 4


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("mode", "steps"), [("min_size", 2), ("max_size_cycle", 4), (None, 4)])
@pytest.mark.parametrize("owner", ["module", "data module", "list"])
def test_the_mode_holds_for_loaders_of_a_hook(mode: str | None, steps: int, owner: str) -> None:
    """Loaders that train_dataloader returns are walked in the old mode, whoever has that hook and in whatever form."""
    data = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
    two: Any = {"a": DataLoader(data, batch_size=8), "b": DataLoader(data, batch_size=16)}
    two = list(two.values()) if owner == "list" else two

    class Two(Old):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[0] if owner == "list" else batch["a"], batch_idx)

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return two

    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "weights_summary": None}
    quiet |= {"checkpoint_callback": False, "val_percent_check": 0, "max_epochs": 1}
    trainer, module = Trainer(multiple_trainloader_mode=mode, **quiet), Two()
    module.val_dataloader = None  # type: ignore[assignment, method-assign]
    if owner == "data module":
        trainer.fit(module, datamodule=Data())
    else:
        module.train_dataloader = lambda: two  # type: ignore[method-assign]
        trainer.fit(module)
    assert trainer.global_step == steps


def test_a_mode_that_does_not_exist_is_refused_at_once() -> None:
    """The constructor names the nearest mode."""
    with pytest.raises(MisconfigurationException, match=r"multiple_trainloader_mode.*Did you mean \"min_size\""):
        Trainer(multiple_trainloader_mode="min_sise")


def test_without_a_model_fit_says_what_it_needs() -> None:
    """fit() of a trainer that was given no model is one error, not a Python error about arguments."""
    with pytest.raises(MisconfigurationException, match=r"Trainer\.fit"):
        Trainer(max_epochs=1, logger=False, enable_progress_bar=False).fit()
