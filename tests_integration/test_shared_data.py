"""Share data among real ranks: what they train on together is what one process trains on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gathering import Gathering
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer, seed_everything
from lt_core.callbacks import ModelCheckpoint
from lt_core.data import CombinedLoader
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher


class Net(LightningModule):
    """Regression that remembers the samples it saw."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        index, x = batch
        self.seen.append(index.tolist())
        loss = nn.functional.mse_loss(self.layers(x), x.sum(1, keepdim=True))
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def samples(n: int) -> TensorDataset:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(9))
    return TensorDataset(torch.arange(n), x)


def trainer_of(size: int, root: Any, **flags: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    strategy = {"strategy": DDPStrategy()} if size > 1 and "strategy" not in flags else {}
    given = {"accelerator": "cpu", "devices": size, "launcher": ReferenceLauncher(), "num_sanity_val_steps": 0, **quiet}
    return Trainer(**{**given, **strategy, "default_root_dir": root, **flags})


def weights(module: nn.Module) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).tolist()


def train(size: int, root: Any, n: int, kind: type[Net] = Net, **flags: Any) -> Callable[[int], Any]:
    """Return the job of a rank: two epochs over shuffled samples, 16 of them in a global batch."""

    def job(rank: int) -> Any:
        net = kind()
        seed_everything(3 + rank, verbose=False)
        trainer = trainer_of(size, root, max_epochs=2, **flags)
        trainer.fit(net, DataLoader(samples(n), 16 // size, shuffle=True))
        return weights(net), net.seen, float(trainer.callback_metrics["loss"])

    return job


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("n", [33, 37])
def test_ranks_train_as_one_process_where_batches_are_uneven(n: int, accumulate: int, tmp_path: Any) -> None:
    """Each sample counts the same, in a short last batch and a short last window too; each epoch has a new order."""
    flags = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 1.0}
    first, second = run_ranks(train(2, tmp_path, n, **flags), timeout=60)
    (one,) = run_ranks(train(1, tmp_path, n, **flags), size=1)
    assert first[0] == second[0]
    assert first[0] == pytest.approx(one[0], abs=1e-6)
    assert first[2] == pytest.approx(one[2], abs=1e-6)
    together = [a + [i for i in b if i not in a] for a, b in zip(first[1], second[1], strict=True)]
    assert together == one[1]
    steps = len(together) // 2
    assert together[:steps] != together[steps:]


class Cycled(Net):
    """The same over two loaders, that remembers which samples of the shorter one it saw."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step([batch["short"][0], batch["long"][1]], batch_idx)


def test_a_loader_that_begins_anew_in_an_epoch_keeps_its_order_on_any_number_of_ranks(tmp_path: Any) -> None:
    """The second pass of a shuffled loader goes over its samples as in one process, as does the next epoch."""

    def job(size: int) -> Callable[[int], Any]:
        def run(rank: int) -> Any:
            net = Cycled()
            seed_everything(3 + rank, verbose=False)
            loaders = {"long": DataLoader(samples(32), 8 // size), "short": DataLoader(samples(16), 8 // size, True)}
            combined = CombinedLoader(loaders, "max_size_cycle")
            trainer_of(size, tmp_path, max_epochs=2).fit(net, combined)
            return net.seen

        return run

    first, second = run_ranks(job(2), timeout=60)
    (one,) = run_ranks(job(1), size=1)
    together = [a + b for a, b in zip(first, second, strict=True)]
    assert together == one
    assert [sorted(one[i] + one[i + 1]) for i in range(0, 8, 2)] == [list(range(16))] * 4
    assert one[:2] != one[2:4]


class Manual(Net):
    """The same regression, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class ManualWithOwnBackward(Manual):
    """The same with a backward of its own."""

    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)


@pytest.mark.parametrize("kind", [Manual, ManualWithOwnBackward])
@pytest.mark.parametrize("n", [32, 33, 37])
def test_ranks_step_by_hand_as_one_process_does(n: int, kind: type[Net], tmp_path: Any) -> None:
    """Under manual optimization each sample counts the same too, in a short last batch and one that a rank lacks."""
    first, second = run_ranks(train(2, tmp_path, n, kind), timeout=60)
    (one,) = run_ranks(train(1, tmp_path, n, kind), size=1)
    assert first[0] == second[0]
    assert first[0] == pytest.approx(one[0], abs=1e-6)


class Noisy(Net):
    """Network whose dropout, and whose partial metrics, differ by rank."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.mine = Mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("own", loss, on_step=False, on_epoch=True)
        self.mine.update(float(loss.detach()))
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mine", self.mine.compute())
        self.mine.reset()


class Mean:
    """Metric object of plain Python."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    def compute(self) -> float:
        return self.total / max(self.count, 1)


def noisy(path: str, size: int, root: Any, resumes: bool = False) -> Callable[[int], Any]:
    """Return the job of a rank: two epochs, a checkpoint saved in the middle of the second or resumed from."""

    def job(rank: int) -> Any:
        net = Noisy()
        seed_everything(3 + rank, verbose=False)
        saver = ModelCheckpoint(root, "{step}", every_n_train_steps=7, save_top_k=-1)
        trainer = trainer_of(size, root, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
        trainer.fit(net, DataLoader(samples(77), 16 // size, shuffle=True), ckpt_path=path if resumes else None)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return weights(net), metrics, net.seen, torch.rand(()).item()

    return job


def test_ranks_resume_inside_an_epoch_to_the_bit(tmp_path: Any) -> None:
    """Weights, each rank's partial metrics, batches and random numbers are those of the uninterrupted run."""
    path = str(tmp_path / "step=7.ckpt")
    whole = run_ranks(noisy(path, 2, tmp_path), timeout=60)
    again = run_ranks(noisy(path, 2, tmp_path, resumes=True), timeout=60)
    for one, other in zip(whole, again, strict=True):
        assert other[0] == one[0]
        assert other[1] == one[1]
        assert 0 < len(other[2]) < 4
        assert other[2] == one[2][-len(other[2]) :]
        assert other[3] == one[3]
    assert whole[0][1]["own"] != whole[1][1]["own"]
    assert whole[0][1]["mine"] != whole[1][1]["mine"]
    assert whole[0][3] != whole[1][3]
    (one,) = run_ranks(noisy(path, 1, tmp_path, resumes=True), size=1)
    together = [a + [i for i in b if i not in a] for a, b in zip(again[0][2], again[1][2], strict=True)]
    assert one[2] == together
    assert again[0][0] != one[0]


class Evaluated(Net):
    """Network with a value, a metric object and a hook in its evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.gathering = Gathering()
        self.forwards = 0
        self.hooked: list[int] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.forwards += 1
        index, x = batch
        self.log("mean", x.sum(1).mean(), sync_dist=True)
        self.log("most", index.max().float(), sync_dist=True, reduce_fx="max")
        self.gathering.update(index.tolist())
        self.log("object", self.gathering)

    def on_validation_batch_end(self, outputs: Any, batch: Any, *_: Any) -> None:
        self.hooked.extend(batch[0].tolist())
        self.log("hook", float(len(batch[0])), sync_dist=True, reduce_fx="sum")


class Meeting(DDPStrategy):
    """Strategy whose forward is collective: each one meets the other ranks'."""

    collective_forward = True

    def engine(self, *args: Any, **kwargs: Any) -> Any:
        engine: Any = super().engine(*args, **kwargs)
        engine.before_forward = lambda: self.collectives.any(False)
        return engine


def evaluation(strategy: Any, size: int, root: Any, n: int) -> Callable[[int], Any]:
    def job(rank: int) -> Any:
        net = Evaluated()
        flags = {} if strategy is None else {"strategy": strategy()}
        trainer = trainer_of(size, root, max_epochs=1, **flags)
        (found,) = trainer.validate(net, DataLoader(samples(n), 8 // size), verbose=False)
        return {name: pytest.approx(value) for name, value in found.items()}, net.hooked, net.forwards

    return job


@pytest.mark.parametrize("strategy", [DDPStrategy, Meeting])
def test_ranks_evaluate_each_sample_once(strategy: Any, tmp_path: Any) -> None:
    """A rank without a batch of its own ends with the others, and all report what one process reports."""

    def jobs(rank: int) -> Any:
        return [evaluation(strategy, 2, tmp_path, n)(rank) for n in (1, 9, 12)]

    for n, first, second in zip((1, 9, 12), *run_ranks(jobs, timeout=60), strict=True):
        wanted = evaluation(None, 1, tmp_path, n)(0)
        assert first[0] == {**wanted[0], "hook": pytest.approx(n)}
        assert second[0] == first[0]  # what only the others' hooks log, too
        assert sorted(first[1] + second[1]) == list(range(n))
        assert strategy is DDPStrategy or first[2] == second[2]
