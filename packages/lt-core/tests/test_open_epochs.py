"""Check what a stop inside an epoch leaves behind, and that a later fit or a resume goes on from there."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint

VAL = [torch.ones(1, 1)]


def batches(n: int) -> list[Tensor]:
    return [torch.full((1, 1), float(i)) for i in range(n)]


def endless(n: int) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(batches(n))


class Net(LightningModule):
    """Module that logs the mean of its batches, and notes what happens."""

    def __init__(self, plateau: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(1, 1)
        self.plateau = plateau
        self.seen: list[tuple[int, float]] = []
        self.validated: list[int] = []
        self.ends: list[tuple[int, int, float, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0] if isinstance(batch, list) else batch
        self.seen.append((self.current_epoch, x.sum().item()))
        self.log("mean", x.mean(), on_step=True, on_epoch=True)
        loss: Tensor = self.layer(x).square().mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", 1.0)

    def on_validation_end(self) -> None:
        self.validated.append(self.global_step)

    def on_train_epoch_end(self) -> None:
        self.log("twice", float(len(self.ends)))
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        mean = self.trainer.callback_metrics["mean_epoch"].item()
        self.ends.append((self.current_epoch, self.global_step, mean, lr))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)
        if self.plateau:
            scheduler: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.1)
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val"}
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def trainer(**flags: Any) -> Trainer:
    return Trainer(**QUIET | {"max_epochs": 2, "num_sanity_val_steps": 0, **flags})


def weights(net: Net) -> list[Tensor]:
    return list(net.state_dict().values())


@pytest.mark.filterwarnings("ignore:Resuming inside an epoch")
@pytest.mark.parametrize("data", [batches, endless])
@pytest.mark.parametrize("way", ["last", "own file", "fit again"])
def test_the_rest_of_the_epoch_follows(data: Any, way: str, tmp_path: Path) -> None:
    """Its next batches, its mean over all of them, one step of its scheduler, and its end hooks once more."""

    def new(**flags: Any) -> Trainer:
        saving = ModelCheckpoint(tmp_path, save_last=True)
        return trainer(callbacks=[saving], enable_checkpointing=True, **flags)

    first, run = Net(), new(max_steps=2)
    run.fit(first, data(5), VAL)
    assert first.seen == [(0, 0.0), (0, 1.0)]
    assert first.ends == [(0, 2, 0.5, 1e-3)]  # as far as it has come; the scheduler waits
    assert (run.current_epoch, run.batches_done, run.global_step) == (0, 2, 2)
    assert run.callback_metrics["mean_epoch"] == 0.5
    net, path = (first if way == "fit again" else Net()), tmp_path / "own.ckpt"
    if way == "own file":
        run.save_checkpoint(path)
    if way == "fit again":
        run.max_steps = -1
        net.seen, net.ends = [], []
    else:
        run = new()
    run.fit(net, data(5), VAL, ckpt_path={"last": "last", "own file": path, "fit again": None}[way])
    assert net.seen == [(0, 2.0), (0, 3.0), (0, 4.0), *((1, float(i)) for i in range(5))]
    assert [end[:3] for end in net.ends] == [(0, 5, 2.0), (1, 10, 2.0)]
    assert net.ends[0][3] == pytest.approx(1e-4)
    assert run.current_epoch == 2
    assert net.validated == [5, 10]
    if way != "fit again":  # which begins with new optimizers
        whole = Net()
        trainer().fit(whole, data(5), VAL)
        assert all(map(torch.equal, weights(whole), weights(net)))


def test_what_end_hooks_log_at_a_stop_does_not_count_at_the_real_end(tmp_path: Path) -> None:
    """The first call's value belongs to the part of the epoch that there was."""
    run, net = trainer(max_steps=1, max_epochs=1), Net()
    run.fit(net, batches(3), VAL)
    assert run.callback_metrics["twice"] == 0.0
    run.max_steps = -1
    run.fit(net, batches(3), VAL)
    assert run.callback_metrics["twice"] == 1.0


def test_the_same_limit_again_does_nothing(tmp_path: Path) -> None:
    """A run that is resumed where it was stopped ends at once, and what it saves goes on as before."""
    run, path = trainer(max_steps=2), tmp_path / "a.ckpt"
    run.fit(Net(), batches(5), VAL)
    run.save_checkpoint(path)
    net, run = Net(), trainer(max_steps=2)
    run.fit(net, batches(5), VAL, ckpt_path=path)
    assert (net.seen, net.ends, net.validated) == ([], [], [])
    run.save_checkpoint(path)
    trainer(max_steps=4).fit(net, batches(5), VAL, ckpt_path=path)
    assert net.seen == [(0, 2.0), (0, 3.0)]


def test_a_shuffled_epoch_is_gone_through_once() -> None:
    """A second fit with the same loader takes the samples that the first one left."""
    loader = DataLoader(TensorDataset(torch.arange(12.0).reshape(-1, 1)), batch_size=2, shuffle=True)
    net, run = Net(), trainer(max_steps=2, max_epochs=1)
    run.fit(net, loader, VAL)
    run.max_steps = 4
    run.fit(net, loader, VAL)
    run.max_steps = -1
    run.fit(net, loader, VAL)
    assert sum(total for _, total in net.seen) == sum(range(12))
    assert len(net.seen) == 6


def test_a_data_module_and_a_validation_between() -> None:
    """Loaders of hooks go on as well, and a call of validate in between changes nothing."""

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return batches(4)

        def val_dataloader(self) -> Any:
            return VAL

    net, run, data = Net(), trainer(max_steps=1, max_epochs=1), Data()
    run.fit(net, datamodule=data)
    run.validate(net, datamodule=data, verbose=False)
    run.max_steps = -1
    run.fit(net, datamodule=data)
    assert [value for _, value in net.seen] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("change", ["module", "data", "loaders", "used up"])
def test_other_data_or_another_module_begin_an_epoch_of_their_own(change: str) -> None:
    """Where there is nothing to go on with, the counters stay and the epoch begins anew."""
    net, run, used = Net(), trainer(max_steps=2, max_epochs=1), iter(batches(9))
    run.fit(net, used if change == "used up" else batches(5), VAL)
    run.max_steps = -1
    net = Net() if change == "module" else net
    net.seen = []
    data: Any = {"module": batches(5), "data": batches(3), "loaders": [batches(5), batches(5)], "used up": used}[change]
    if change == "loaders":
        data = [DataLoader(TensorDataset(torch.ones(3, 1))), DataLoader(TensorDataset(torch.ones(3, 1)))]
        net.training_step = lambda batch, i: net.seen.append((0, float(i))) or net.layer(batch[0][0]).sum()  # type: ignore[method-assign, func-returns-value]
        net.on_train_epoch_end = lambda: None  # type: ignore[method-assign]
    run.fit(net, data, VAL)
    expected = {"module": range(5), "data": range(3), "loaders": range(3), "used up": range(3, 9)}[change]
    assert [value for _, value in net.seen][-len(expected) :] == list(map(float, expected))
    assert run.current_epoch == 1


STOPS: dict[str, dict[str, Any]] = {
    "epoch": {},
    "batches": {"val_check_interval": 5},
    "fraction": {"val_check_interval": 0.5},
    "across": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "time": {"val_check_interval": datetime.timedelta(hours=1)},
    "time across": {"val_check_interval": datetime.timedelta(hours=1), "check_val_every_n_epoch": None},
}


@pytest.mark.parametrize("data", [batches, endless])
@pytest.mark.parametrize("interval", STOPS)
@pytest.mark.parametrize("how", ["step", "start hook", "end hook", "max_time"])
def test_a_stop_validates_first(data: Any, interval: str, how: str) -> None:
    """Whatever decides when validation is due, and wherever the stop was asked for, it runs once before the stop."""
    if data is endless and interval == "fraction":
        pytest.skip("a fraction needs a length")
    net, run = Net(), trainer(**STOPS[interval], **({"max_time": {"microseconds": 1}} if how == "max_time" else {}))
    hook = {"start hook": "train_batch_start", "end hook": "train_batch_end"}.get(how)
    if hook is not None:
        run.on(hook, once=3)(lambda trainer: setattr(trainer, "should_stop", True))
    if how == "step":
        step = net.training_step
        net.training_step = lambda batch, batch_idx: (  # type: ignore[method-assign]
            setattr(run, "should_stop", batch_idx == 2),
            step(batch, batch_idx),
        )[1]
    run.fit(net, data(12), VAL)
    stopped = 1 if how == "max_time" else 3
    assert net.validated == [stopped]
    assert [end[:2] for end in net.ends] == [(0, stopped)]
    assert (run.current_epoch, run.batches_done) == (0, stopped)


def test_a_stop_that_validation_asked_for_is_not_validated_twice() -> None:
    """The step was validated already, and the epoch stays open."""
    net, run = Net(), trainer(val_check_interval=2)
    run.on("validation_end")(lambda trainer: setattr(trainer, "should_stop", True))
    run.fit(net, batches(6), VAL)
    assert (net.validated, run.batches_done) == ([2], 2)


def test_a_stop_in_an_epoch_that_does_not_validate() -> None:
    """check_val_every_n_epoch says which epochs validate, for a stop too."""
    net, run = Net(), trainer(check_val_every_n_epoch=2)
    run.on("train_batch_end", once=2)(lambda trainer: setattr(trainer, "should_stop", True))
    run.fit(net, batches(6), VAL)
    assert (net.validated, run.batches_done) == ([], 2)


@pytest.mark.parametrize("data", [batches, endless])
def test_a_stop_at_the_last_batch_closes_the_epoch(data: Any) -> None:
    """Nothing of it is left, so its scheduler steps and it counts."""
    net, run = Net(), trainer(max_steps=3)
    run.fit(net, data(3), VAL)
    assert (run.current_epoch, run.batches_done) == (1, 0)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)
    assert net.validated == [3]


def test_a_plateau_scheduler_waits_for_the_real_end() -> None:
    """A metric of part of an epoch does not count as one of a whole one."""
    net, run = Net(plateau=True), trainer(max_steps=5, val_check_interval=1)
    run.fit(net, batches(3), VAL)  # a second look without improvement would come at the stop
    assert run.optimizers[0].param_groups[0]["lr"] == 1e-3
    run = trainer(val_check_interval=1)
    run.fit(Net(plateau=True), batches(3), VAL)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_a_file_of_the_middle_counts_its_samples(tmp_path: Path) -> None:
    """The progress holds the samples of the batches so far, and goes on from there."""
    saved: dict[str, Any] = {}

    class Looks(Callback):
        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            saved.update(checkpoint["progress"])

    loader = DataLoader(TensorDataset(torch.ones(10, 1)), batch_size=2)
    net, run, path = Net(), trainer(max_steps=3, callbacks=[Looks()]), tmp_path / "a.ckpt"
    run.fit(net, loader, VAL)
    run.save_checkpoint(path)
    assert (saved["samples"], saved["batch"]) == (6, 3)
    run = trainer(callbacks=[Looks()], max_epochs=1)
    run.fit(Net(), loader, VAL, ckpt_path=path)
    run.save_checkpoint(path)
    assert (saved["samples"], saved["batch"]) == (10, 0)
