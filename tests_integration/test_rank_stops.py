"""Stop epochs of two real ranks in their middle and go on, with loaders whose length is wrong, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer
from lt_core.callbacks import EarlyStopping
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher


class Pairs(Sampler[list[int]]):
    """Shuffling batch sampler that gives twelve batches and says another number."""

    def __init__(self, said: int) -> None:
        self.said = said

    def __len__(self) -> int:
        return self.said

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(24).tolist()
        return iter([order[i : i + 2] for i in range(0, 24, 2)])


class Numbers(IterableDataset[torch.Tensor]):
    """Stream of the same numbers on each rank."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(24.0).reshape(-1, 1))


SAMPLES = TensorDataset(torch.arange(24.0).reshape(-1, 1))
LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(SAMPLES, 2, shuffle=True),
    "too few said": lambda: DataLoader(SAMPLES, batch_sampler=Pairs(4)),
    "too many said": lambda: DataLoader(SAMPLES, batch_sampler=Pairs(30)),
    "stream": lambda: DataLoader(Numbers(), 2),
}


class Net(LightningModule):
    """Regression that notes its samples, and at which steps it was validated and its epochs ended."""

    def __init__(self, stops: int = 0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(1, 1)
        self.stops = stops
        self.seen: list[float] = []
        self.validated: list[int] = []
        self.ended: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0] if isinstance(batch, list) else batch
        self.seen += x.flatten().tolist()
        if self.stops and self.global_step + 1 == self.stops and self.global_rank == 1:
            self.trainer.should_stop = True
        self.log("mean", x.mean(), on_step=False, on_epoch=True, sync_dist=True)
        return self.layer(x / 24).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", [1.0, 2.0, 3.0, 0.5, 0.4][self.current_epoch], sync_dist=True)

    def on_validation_end(self) -> None:
        self.validated.append(self.global_step)

    def on_train_epoch_end(self) -> None:
        self.ended.append((self.current_epoch, self.global_step))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(root: Any, **flags: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    given = {"accelerator": "cpu", "devices": 2, "strategy": DDPStrategy(), "launcher": ReferenceLauncher()}
    return Trainer(**{**given, **quiet, "num_sanity_val_steps": 0, "default_root_dir": root, "max_epochs": 2, **flags})


def weights(net: Net) -> list[float]:
    return torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()


VAL = [torch.ones(1, 1)]


@pytest.mark.filterwarnings("ignore:.*Correct its __len__", "ignore:Resuming inside an epoch")
def test_ranks_go_on_in_the_epoch_that_a_stop_left_open(tmp_path: Any) -> None:
    """By a checkpoint or by a second fit: each sample of the epoch once, and the result of a run without the stop."""

    def job(rank: int) -> Any:
        torch.set_num_threads(1)
        found = {}
        for kind, loader in LOADERS.items():
            nets = []
            for way in ("whole", "file", "again"):
                torch.manual_seed(3)
                net, path = Net(), tmp_path / f"{kind}.ckpt"
                trainer = trainer_of(tmp_path, max_steps=-1 if way == "whole" else 4)
                trainer.fit(net, loader(), VAL)
                if way == "file":
                    assert (trainer.current_epoch, trainer.batches_done) == (0, 4)
                    trainer.save_checkpoint(path)
                    trainer = trainer_of(tmp_path)
                    trainer.fit(net, loader(), VAL, ckpt_path=path)
                if way == "again":
                    trainer.max_steps = -1
                    trainer.fit(net, loader(), VAL)
                nets.append((net.seen, net.validated, net.ended, weights(net)))
            found[kind] = nets
        return found

    first, second = run_ranks(job, timeout=180.0)
    for kind in LOADERS:
        whole, file, again = first[kind]
        assert sorted(whole[0][:12] + second[kind][0][0][:12]) == list(map(float, range(24)))
        assert whole[1:3] == ([6, 12], [(0, 6), (1, 12)])
        for other in (file, again):
            assert other[2] == [(0, 4), (0, 6), (1, 12)]
            assert (other[0], other[1], other[3]) == (whole[0], whole[1], whole[3])
        assert [net[3] for net in second[kind]] == [net[3] for net in first[kind]]


def test_a_stop_of_one_rank_validates_once_and_leaves_the_epoch_open(tmp_path: Any) -> None:
    """All ranks stop at one step, whatever decides when validation is due."""

    def job(rank: int) -> Any:
        torch.set_num_threads(1)
        found = []
        intervals: list[dict[str, Any]] = [
            {},
            {"val_check_interval": 5},
            {"val_check_interval": 5, "check_val_every_n_epoch": None},
            {"val_check_interval": "00:01:00:00"},
        ]
        for kind in ("shuffled", "stream"):
            for flags in intervals:
                net = Net(stops=2)
                trainer = trainer_of(tmp_path, **flags)
                trainer.fit(net, LOADERS[kind](), VAL)
                found.append((net.validated, net.ended, trainer.current_epoch, trainer.batches_done))
        return found

    first, second = run_ranks(job, timeout=120.0)
    assert first == second
    for validated, ended, epoch, batches in first:
        assert epoch == 0
        assert batches in (2, 3)  # the other rank hears of it at once or a step later
        assert (validated, ended) == ([batches], [(0, batches)])


def test_ranks_take_back_a_stop_together(tmp_path: Any) -> None:
    """Patience ran out before min_epochs, then the metric improved: all ranks go on to the end."""

    def job(rank: int) -> Any:
        torch.set_num_threads(1)
        trainer = trainer_of(tmp_path, min_epochs=4, max_epochs=5, callbacks=[EarlyStopping("val", patience=2)])
        trainer.fit(Net(), [torch.ones(1, 1)] * 2, VAL)
        return trainer.current_epoch, trainer.should_stop

    assert run_ranks(job, timeout=60.0) == [(5, False)] * 2
