"""Test small facts that users of the familiar trainer rely on, wherever in the code they live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lt_core import Callback, LightningModule, MisconfigurationException, Trainer
from lt_core.demos import BoringModel, RandomDataset
from lt_core.loggers import Logger


def quiet(root: Path, **flags: Any) -> Trainer:
    """Return a trainer that runs two batches and writes nothing."""
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    given = {**off, "enable_model_summary": False, "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0}
    return Trainer(default_root_dir=root, **{**given, **flags})


def test_a_default_that_is_written_out_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A flag in the code wins over its environment variable, also where the code writes the default."""
    monkeypatch.setenv("PL_TRAINER_ACCUMULATE_GRAD_BATCHES", "4")
    monkeypatch.setenv("PL_TRAINER_LOG_EVERY_N_STEPS", "7")
    trainer = quiet(tmp_path, accumulate_grad_batches=1)
    assert (trainer.accumulate_grad_batches, trainer.log_every_n_steps) == (1, 7)


@pytest.mark.parametrize("name", ["training", "validating", "testing", "predicting", "sanity_checking"])
def test_the_stage_can_be_set(name: str, tmp_path: Path) -> None:
    """Setting a stage's flag enters the stage, and clearing it leaves only that one."""
    trainer = quiet(tmp_path)
    setattr(trainer, name, True)
    assert getattr(trainer, name)
    other = "testing" if name != "testing" else "training"
    setattr(trainer, other, False)
    assert getattr(trainer, name)
    setattr(trainer, name, False)
    assert trainer.state.stage is None


class TwoOptimizers(BoringModel):
    """Module with two optimizers under automatic optimization."""

    def configure_optimizers(self) -> Any:
        """Return two."""
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]


class OptimizerIndex(BoringModel):
    """Module that takes the index that nobody gives any more."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        """Never run."""


class NoLoaderIndex(BoringModel):
    """Module with two validation loaders and a step that does not take their index."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Never run."""

    def val_dataloader(self) -> Any:
        """Return two."""
        return [super().val_dataloader(), super().val_dataloader()]


@pytest.mark.parametrize("module", [TwoOptimizers, OptimizerIndex, NoLoaderIndex])
def test_code_that_can_not_run_is_a_runtime_error_too(module: type[LightningModule], tmp_path: Path) -> None:
    """Who catches RuntimeError or MisconfigurationException for code that cannot run gets either."""
    with pytest.raises(MisconfigurationException) as caught:
        quiet(tmp_path, limit_val_batches=1).fit(module())
    assert isinstance(caught.value, RuntimeError)


class Kept(Callback):
    """Callback with a state, under the class's name."""

    def state_dict(self) -> dict[str, Any]:
        """Return something."""
        return {"a": 1}


def test_two_callbacks_of_one_state_key_are_a_runtime_error(tmp_path: Path) -> None:
    """Two callbacks that would share one place in the checkpoint are refused."""
    with pytest.raises(RuntimeError, match="two callbacks keep their state under 'Kept'"):
        quiet(tmp_path, callbacks=[Kept(), Kept()])


def test_a_device_flag_is_shown_once(tmp_path: Path) -> None:
    """The error for a wrong number of devices names the flag once."""
    with pytest.raises(MisconfigurationException) as caught:
        quiet(tmp_path, devices=-1)
    assert str(caught.value).count("Trainer(devices=-1)") == 1


class OwnScheduler:
    """Scheduler that is none of torch's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.calls = optimizer, 0

    def step(self) -> None:
        """Count."""
        self.calls += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the count."""
        self.calls = state["calls"]


class OwnSchedule(BoringModel):
    """Module with a scheduler that is none of torch's."""

    def configure_optimizers(self) -> Any:
        """Return an optimizer and the scheduler."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.own = OwnScheduler(optimizer)
        return [optimizer], [self.own]


class OwnStepping(OwnSchedule):
    """Module that steps the scheduler itself."""

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step it."""
        scheduler.step()


def test_a_scheduler_that_is_none_of_torchs_needs_lr_scheduler_step(tmp_path: Path) -> None:
    """A custom scheduler is refused until the module says how to step it."""
    with pytest.raises(MisconfigurationException, match="lr_scheduler_step"):
        quiet(tmp_path).fit(OwnSchedule())
    module = OwnStepping()
    quiet(tmp_path).fit(module)
    assert module.own.calls == 1


class ByHand(BoringModel):
    """Step with a closure by hand, or through an overridden optimizer_step, and keep what step returns."""

    def __init__(self, automatic: bool) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.returned: list[Any] = []
        self.losses: list[float] = []

    def compute(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch, and keep it."""
        loss: torch.Tensor = self.layer(batch).sum()
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Compute the loss, or step."""
        if self.automatic_optimization:
            return self.compute(batch)
        optimizer = self.optimizers()

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self.compute(batch)
            self.manual_backward(loss)
            return loss

        self.returned.append(optimizer.step(closure=closure))
        return None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Keep what step returns."""
        self.returned.append(optimizer.step(closure=optimizer_closure))


@pytest.mark.parametrize("automatic", [True, False])
def test_a_step_with_a_closure_returns_its_loss(automatic: bool, tmp_path: Path) -> None:
    """The wrapped optimizer's step returns what its closure computed, as torch's own does."""
    module = ByHand(automatic)
    quiet(tmp_path).fit(module, DataLoader(RandomDataset(32, 4), batch_size=2))
    assert [x.item() for x in module.returned] == module.losses
    assert len(module.losses) == 2


def test_ckpt_path_names_what_the_run_began_with(tmp_path: Path) -> None:
    """``trainer.ckpt_path`` is the file that was loaded, and one that is set serves every later run."""
    trainer = quiet(tmp_path)
    trainer.fit(BoringModel())
    assert trainer.ckpt_path is None
    trainer.save_checkpoint(tmp_path / "hpc_ckpt_3.ckpt")
    again = quiet(tmp_path, max_epochs=2)
    again.fit(BoringModel(), ckpt_path="hpc")
    assert again.ckpt_path == str(tmp_path / "hpc_ckpt_3.ckpt")
    assert again.global_step == 4
    again.validate(BoringModel(), verbose=False)
    assert again.ckpt_path is None
    kept = quiet(tmp_path, max_epochs=2)
    kept.ckpt_path = tmp_path / "hpc_ckpt_3.ckpt"
    kept.fit(BoringModel())
    assert kept.global_step == 4
    assert kept.ckpt_path == tmp_path / "hpc_ckpt_3.ckpt"


def test_a_folder_that_takes_no_journal_is_told_before_the_first_batch(tmp_path: Path) -> None:
    """A logger's folder that cannot be written ends the run with an error that says what to choose."""

    class Elsewhere(Logger):
        """Logger whose run lies below a file."""

        @property
        def save_dir(self) -> str:
            """Return the folder."""
            return str(tmp_path / "file" / "run")

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            """Take nothing."""

    (tmp_path / "file").write_text("")
    with pytest.raises(MisconfigurationException, match=r"the journal must be writable there\. Got NotADirectory"):
        quiet(tmp_path, logger=Elsewhere()).fit(BoringModel())
