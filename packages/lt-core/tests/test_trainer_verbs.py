"""Check the verbs by which a user's callback does what the built-in ones do."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import logged
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_core import Callback, LightningModule, Trainer
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_core.checkpoint import load_checkpoint
from lt_core.journal import Journal
from lt_core.loggers import CSVLogger
from lt_interface import PlainCollectives
from lt_interface.errors import MisconfigurationException


class Net(LightningModule):
    """Module that trains on six batches an epoch and validates on two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.dtypes.append(y.dtype)
        return y

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", float(batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(6, 1))  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]


def make(*callbacks: Callback, **flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "max_epochs": 2, **flags}, callbacks=list(callbacks))


class Keeper(Callback):
    """A user's own checkpoints: one after each third step, and only the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: list[str] = []
        self.open: list[list[str]] = []
        self.boundaries: list[bool] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.boundaries.append(trainer.at_boundary)
        if trainer.global_step % 3 == 0:
            path = str(self.folder / f"{trainer.global_step}.ckpt")
            trainer.request_checkpoint(path, saved=lambda: self.keep(trainer, path))
            self.open.append(trainer.requested_checkpoints)

    def keep(self, trainer: Trainer, path: str) -> None:
        self.boundaries.append(trainer.at_boundary)
        self.kept.append(path)
        for old in self.kept[:-2]:
            trainer.remove_checkpoint(old)


def test_a_requested_checkpoint_is_written_at_the_boundary_and_old_ones_removed(tmp_path: Path) -> None:
    """The file is an exact point to resume from, `saved` is called once it is there, and what it removes is gone."""
    keeper = Keeper(tmp_path)
    trainer = make(keeper)
    trainer.fit(Net())
    assert sorted(os.listdir(tmp_path)) == ["12.ckpt", "9.ckpt"]
    assert [Path(path).name for path in keeper.kept] == ["3.ckpt", "6.ckpt", "9.ckpt", "12.ckpt"]
    assert keeper.open == [[path] for path in keeper.kept]
    assert trainer.requested_checkpoints == []
    assert keeper.boundaries.count(True) == len(keeper.kept)  # never in the batch's hook, always where it is written
    checkpoint = load_checkpoint(tmp_path / "9.ckpt")
    assert checkpoint["global_step"] == 9
    assert checkpoint["progress"]["exact"]


def test_a_checkpoint_of_weights_holds_no_optimizer(tmp_path: Path) -> None:
    """`weights_only` leaves out what only a resume needs."""

    class Last(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.request_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    make(Last()).fit(Net())
    checkpoint = load_checkpoint(tmp_path / "weights.ckpt")
    assert "state_dict" in checkpoint
    assert "optimizer_states" not in checkpoint


def test_a_request_that_the_disk_refuses_is_reported_and_training_goes_on(tmp_path: Path) -> None:
    """`failed` gets the error, `saved` is not called, and fit reaches its end."""
    (tmp_path / "file").write_text("no folder")
    errors: list[BaseException] = []

    class Blocked(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            path = tmp_path / "file" / "x.ckpt"
            trainer.request_checkpoint(path, saved=lambda: pytest.fail("nothing was saved"), failed=errors.append)

    trainer = make(Blocked())
    with pytest.warns(UserWarning, match="not written"):
        trainer.fit(Net())
    assert [isinstance(error, OSError) for error in errors] == [True, True]
    assert trainer.global_step == 12


def test_checkpoints_are_requested_inside_fit_alone(tmp_path: Path) -> None:
    """Before, after and outside of fit no loop would write the file, so that the request is refused."""

    class Asks(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.request_checkpoint(tmp_path / "x.ckpt")

    trainer = make()
    with pytest.raises(MisconfigurationException, match="only inside fit"):
        trainer.request_checkpoint(tmp_path / "x.ckpt")
    trainer.fit(Net())
    with pytest.raises(MisconfigurationException, match="only inside fit"):
        trainer.request_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(MisconfigurationException, match="only inside fit"):
        make(Asks()).validate(Net())


def test_a_link_is_removed_and_its_target_stays(tmp_path: Path) -> None:
    """Of a link the link alone goes, also one that leads nowhere, and a file that is not there is no error."""
    trainer = make()
    trainer.fit(Net())
    target, link = tmp_path / "a.ckpt", tmp_path / "last.ckpt"
    trainer.save_checkpoint(target)
    link.symlink_to(target)
    trainer.remove_checkpoint(link)
    assert os.listdir(tmp_path) == ["a.ckpt"]
    link.symlink_to(target)
    trainer.remove_checkpoint(target)
    trainer.remove_checkpoint(target)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    trainer.remove_checkpoint(link)
    assert os.listdir(tmp_path) == []


class Measures(Callback):
    """Callback that logs the batch's index at each batch's end, and a number in validation."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.log_metrics({"index": torch.tensor(float(batch_idx))})

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.log_metrics({"looks": 1.0}, step=100)


def test_logged_metrics_reach_the_journal_at_their_step() -> None:
    """Values are kept whatever log_every_n_steps says, at the last step or a given one; the sanity check's are not."""
    trainer = make(Measures(), max_epochs=1, log_every_n_steps=50)
    trainer.fit(Net())
    assert logged(trainer)["index"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert logged(trainer).steps["index"] == [0, 1, 2, 3, 4, 5]
    assert logged(trainer)["looks"] == [1.0]
    assert logged(trainer).steps["looks"] == [100]
    assert trainer.logged_metrics["looks"] == 1.0


def test_metrics_are_logged_inside_a_run_alone() -> None:
    """Before the journal is open, and after the run, logging is an error that names the moment."""

    class TooEarly(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            trainer.log_metrics({"x": 1.0})

    trainer = make()
    with pytest.raises(MisconfigurationException, match="from on_fit_start on"):
        trainer.log_metrics({"x": 1.0})
    trainer.fit(Net())
    with pytest.raises(MisconfigurationException, match="from on_fit_start on"):
        trainer.log_metrics({"x": 1.0})
    with pytest.raises(MisconfigurationException, match="from on_fit_start on"):
        make(TooEarly()).fit(Net())


class Foresees(Callback):
    """Compare what is said ahead of validation with what comes."""

    def __init__(self) -> None:
        self.foretold: list[int] = []
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.validates_after(batch_idx):
            self.foretold.append(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({}, [6, 12]),
        ({"val_check_interval": 2}, [2, 4, 6, 8, 10, 12]),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 8, 12]),
        ({"check_val_every_n_epoch": 2}, [12]),
        ({"limit_val_batches": 0}, []),
    ],
)
def test_validation_is_known_ahead(flags: dict[str, Any], steps: list[int]) -> None:
    """`validates_after` is true at exactly the batches after which validation runs."""
    callback = Foresees()
    trainer = make(callback, **flags)
    assert not trainer.validates_after(5)
    trainer.fit(Net())
    assert callback.foretold == callback.validated == steps


def test_a_clock_says_nothing_ahead() -> None:
    """With a time as the interval validation is never foretold."""
    callback = Foresees()
    make(callback, val_check_interval=timedelta(seconds=0.001), check_val_every_n_epoch=None).fit(Net())
    assert callback.validated
    assert callback.foretold == []


class Places(Callback):
    """Callback that notes where each start of training stands, and stops in the second epoch."""

    def __init__(self, folder: Path, stop_at: int = -1) -> None:
        self.folder, self.stop_at = folder, stop_at
        self.starts: list[tuple[int, str | None]] = []
        self.done: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.starts.append((trainer.batches_done, trainer.resumed_from))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.done.append(trainer.batches_done)
        if trainer.global_step == self.stop_at:
            trainer.request_checkpoint(self.folder / "inside.ckpt")

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.done.append(100 + trainer.batches_done)


def test_a_callback_knows_where_a_run_begins(tmp_path: Path) -> None:
    """`batches_done` counts the running epoch, and a resumed run begins where its checkpoint, `resumed_from`, ended."""
    first, path = Places(tmp_path, stop_at=8), str(tmp_path / "inside.ckpt")
    trainer = make(first, num_sanity_val_steps=0)
    assert (trainer.batches_done, trainer.resumed_from, trainer.at_boundary) == (0, None, False)
    trainer.fit(Net())
    assert first.starts == [(0, None)]
    assert first.done == [0, 1, 2, 3, 4, 5, 106] * 2
    assert trainer.batches_done == 0
    second = Places(tmp_path)
    trainer = make(second, num_sanity_val_steps=0)
    trainer.fit(Net(), ckpt_path=path)
    assert second.starts == [(2, path)]
    assert second.done == [2, 3, 4, 5, 106]
    assert trainer.resumed_from == path


class OtherRankIsFull(PlainCollectives):
    """Two ranks, as this one sees them: the other one's flag is set from the third question on."""

    def __init__(self) -> None:
        self.questions: list[bool] = []

    def any(self, flag: bool) -> bool:
        self.questions.append(flag)
        return flag or len(self.questions) >= 3


class StopsTogether(Callback):
    """Callback that stops training on every rank as soon as one has no room left."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.collectives.any(False):
            trainer.should_stop = True


def test_ranks_decide_alike_by_the_trainers_collectives() -> None:
    """What a callback asks goes through the strategy's exchange, so that another rank's flag stops this one."""
    strategy = SingleDeviceStrategy()
    strategy.collectives = OtherRankIsFull()
    trainer = make(StopsTogether(), strategy=strategy)
    trainer.fit(Net())
    assert trainer.collectives is strategy.collectives
    assert strategy.collectives.questions == [False] * 3
    assert trainer.global_step == 3


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_forward_runs_in_the_trainers_precision(precision: str, dtype: torch.dtype) -> None:
    """Inside `forward_context` a callback's own forward computes as a step does."""

    class Looks(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.dtypes.clear()
            with torch.no_grad(), trainer.forward_context():
                pl_module(torch.ones(1, 1))

    model = Net()
    make(Looks(), precision=precision).fit(model)
    assert model.dtypes == [dtype]


def test_what_a_callback_logs_belongs_to_the_stage_that_runs(tmp_path: Path) -> None:
    """A value of trainer.log_metrics is recorded for training, validation or test, by where the call is."""

    class Measures(Callback):
        def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
            trainer.log_metrics({"memory": 1.0})

        def on_validation_end(self, trainer: Trainer, *rest: Any) -> None:
            trainer.log_metrics({"memory": 2.0})

        def on_test_end(self, trainer: Trainer, *rest: Any) -> None:
            trainer.log_metrics({"memory": 3.0}, step=9)

    class Tested(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            pass

    logger = CSVLogger(tmp_path)
    trainer = make(Measures(), logger=logger, max_epochs=1, limit_train_batches=2)
    trainer.fit(Tested())
    trainer.test(Tested(), DataLoader(torch.ones(2, 1)))  # type: ignore[arg-type]
    records = Journal(Path(logger.log_dir) / "metrics.journal", read_only=True).read()
    found = [(r.stage, r.step, r.values["memory"]) for r in records if "memory" in r.values]
    assert found == [("train", 0, 1.0), ("train", 1, 1.0), ("validate", 1, 2.0), ("test", 9, 3.0)]
