"""Log step values with sync_dist on several ranks: every rank reads the same, wherever and whenever it reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rank_values import loader, on, trainer_of

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint

NOISE = {0: 10.0, 1: 2.0, 2: 6.0}  # what a rank adds to what it logs


class Logs(LightningModule):
    """Module of one weight whose ranks log different values."""

    ways: dict[str, Any] = {}
    returns_none = logs_from = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[dict[str, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        rank, (x,) = self.global_rank, batch
        if self.returns_none and rank == 1 and batch_idx % 2:
            return None
        if batch_idx >= self.logs_from:
            self.log("x", NOISE[rank] + batch_idx, sync_dist=True, **self.ways)
        self.log("own", float(rank))
        return (self.weight * x).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Reads(Callback):
    """Callback that reads a value after each batch, on some ranks."""

    def __init__(self, ranks: tuple[int, ...] = (0, 1, 2), name: str = "x") -> None:
        self.ranks, self.name = ranks, name
        self.found: list[float] = []
        self.bars: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank in self.ranks:
            self.found.append(float(trainer.callback_metrics[self.name]))
            self.bars.append(float(trainer.progress_bar_metrics.get(self.name, -1.0)))


def test_every_rank_reads_the_synced_value_after_each_batch(tmp_path: Path) -> None:
    """callback_metrics, bar and loggers have the mean over ranks from the first batch on, on every rank."""

    def job(rank: int) -> Any:
        found = []
        for ways in ({"on_step": True}, {"prog_bar": True}, {"prog_bar": True, "on_epoch": True}):
            module, reads = Logs(), Reads(name="x_step" if "on_epoch" in ways else "x")
            module.ways = ways
            trainer = trainer_of(2, tmp_path, max_epochs=2, callbacks=[reads], log_every_n_steps=2, logger=True)
            trainer.fit(module, loader(12, 2))
            found.append((reads.found, reads.bars, trainer.logged_metrics[reads.name].item()))
            assert trainer.callback_metrics["own"].item() == rank
        return found

    wanted = [6.0, 7.0, 8.0] * 2
    for step, bar, both in on(2, job):
        assert step[0] == bar[0] == both[0] == wanted
        assert bar[1] == both[1] == wanted
        assert step[2] == bar[2] == both[2] in (7.0, 8.0)


@pytest.mark.parametrize(("op", "wanted"), [("mean", 6.0), ("sum", 12.0), ("min", 2.0), ("max", 10.0)])
def test_each_reduction_is_over_the_ranks(op: str, wanted: float, tmp_path: Path) -> None:
    """A sum, mean, least or greatest is that of all ranks, once, whether loggers take each step's or not."""

    class Net(Logs):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for name, value in (("x", torch.tensor(NOISE[self.global_rank])), ("y", NOISE[self.global_rank])):
                self.log(name, value, sync_dist=True, reduce_fx=op, batch_size=2, on_step=True, on_epoch=name == "y")
            return self.weight.sum()

    def job(rank: int) -> Any:
        found = []
        for every in (1, 3):
            reads, others = Reads(), Reads(name="y_step")
            trainer = trainer_of(2, tmp_path, callbacks=[reads, others], log_every_n_steps=every, logger=True)
            trainer.fit(Net(), loader(12, 2))
            found += [*reads.found, *others.found, float(trainer.logged_metrics["x"])]
        return found

    for found in on(2, job):
        assert found == [wanted] * 14


def test_ranks_that_log_nothing_on_some_steps_take_the_others_value(tmp_path: Path) -> None:
    """Where a step returns None on a rank, or its samples are fewer, the value is that of the others' samples."""

    def job(rank: int) -> Any:
        module, reads = Logs(), Reads()
        module.returns_none = 1
        trainer_of(3, tmp_path, callbacks=[reads]).fit(module, loader(13, 2))  # the last sample is rank 0's
        return reads.found

    for found in on(3, job):
        assert found == [6.0, pytest.approx((11 + 7) / 2), pytest.approx(12.0)]


@pytest.mark.parametrize("start", [0, 1, 3])
def test_one_rank_alone_reads(start: int, tmp_path: Path) -> None:
    """Reading on one rank waits for no other one; values first logged in mid-fit are in line two batches later."""

    def job(rank: int) -> Any:
        module, reads = Logs(), Reads((1,))
        module.logs_from = start

        class Late(Reads):
            def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
                if args[-1] >= start:
                    super().on_train_batch_end(trainer, *args)

        reads = Late((1,))
        trainer_of(2, tmp_path, callbacks=[reads]).fit(module, loader(32, 2))
        return reads.found

    _, found = on(2, job)
    wanted = [6.0 + i for i in range(start, 8)]
    assert found[0 if start == 0 else 2 :] == wanted[0 if start == 0 else 2 :]


def test_decisions_follow_the_value_of_all_ranks(tmp_path: Path) -> None:
    """Files and learning rates are chosen by the mean over ranks, where rank 0's own value says otherwise."""
    own = {0: [4.0, 3.0, 2.0, 1.0], 1: [0.0, 5.0, 3.0, 9.0]}  # the mean is least after the first step
    late = {0: [1.0, 2.0, 3.0, 4.0], 1: [9.0, 4.0, 0.0, 3.0]}  # after the third

    class Net(Logs):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", own[self.global_rank][batch_idx], sync_dist=True)
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return [optimizer], [{"scheduler": plateau, "monitor": "x", "interval": "step"}]

    class LogsLate(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            pl_module.log("late", late[trainer.global_rank][batch_idx], sync_dist=True, on_step=True)

    def job(rank: int) -> Any:
        saves = [
            ModelCheckpoint(tmp_path / name, monitor=name, every_n_train_steps=1, filename="{step}")
            for name in ("x", "late")
        ]
        trainer = trainer_of(2, tmp_path, callbacks=[LogsLate(), *saves], enable_checkpointing=True)
        trainer.fit(Net(), loader(16, 2))
        scores = [(float(save.best_model_score), Path(save.best_model_path).stem) for save in saves]
        return scores, trainer.optimizers[0].param_groups[0]["lr"]

    for scores, rate in on(2, job):
        assert scores == [(2.0, "step=1"), (1.5, "step=3")]
        assert rate == 0.125


class Hook(Reads):
    """Callback that stops the first fit after the second batch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == 2:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "file.ckpt")


def test_a_resumed_run_reduces_no_value_twice(tmp_path: Path) -> None:
    """A sum in a checkpoint is one of all ranks: what resumes from it shows and logs it as it was."""

    def job(rank: int) -> Any:
        module = Logs()
        module.ways = {"reduce_fx": "sum", "on_step": True, "on_epoch": True}
        first = trainer_of(2, tmp_path, callbacks=[Hook(name="x_step")], log_every_n_steps=3, logger=True)
        first.fit(module, loader(12, 2))
        module, reads = Logs(), Reads(name="x_step")
        module.ways = {"reduce_fx": "sum", "on_step": True, "on_epoch": True}

        class Looks(Callback):
            def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
                reads.found.append(float(trainer.callback_metrics["x_step"]))

        again = trainer_of(2, tmp_path, callbacks=[Looks(), reads], log_every_n_steps=3, logger=True)
        again.fit(module, loader(12, 2), ckpt_path=tmp_path / "file.ckpt")
        return reads.found, [float(t.callback_metrics["x_epoch"]) for t in (first, again)]

    for found, epochs in on(2, job):
        assert found == [14.0, 16.0]
        assert epochs == [42.0, 42.0]


class Counts(Callback):
    """Callback that counts the exchanges of this rank between two batches, the loop's own."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.counted: list[dict[str, int]] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        exchange = trainer.strategy.collectives
        for name in ("all_gather", "reduce", "gather_object", "broadcast_object", "any", "barrier"):
            setattr(exchange, name, self._counted(name, getattr(exchange, name)))

    def _counted(self, name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return call(*args, **kwargs)

        return counted

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.counted.append(dict(self.calls))
        self.calls.clear()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_costs_two_exchanges_where_something_is_synced(accumulate: int, tmp_path: Path) -> None:
    """Five synced values cost two exchanges a batch, none logs nothing with sync_dist and costs none."""

    class Five(Logs):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for i in range(5):
                self.log(f"v{i}", float(i), on_step=True, sync_dist=True, reduce_fx=("mean", "sum")[i % 2])
            return self.weight.sum()

    class Plain(Logs):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("v", 1.0)
            self.log("e", 1.0, on_step=False, on_epoch=True, sync_dist=True)
            return self.weight.sum()

    def job(rank: int) -> Any:
        found = []
        for module in (Five(), Plain()):
            counts = Counts()
            trainer = trainer_of(2, tmp_path, callbacks=[counts], accumulate_grad_batches=accumulate)
            trainer.fit(module, loader(16, 2))
            found.append(counts.counted[2:])
        return found

    for five, plain in on(2, job):
        assert five == [{"reduce": 1, "all_gather": 1}] * 2
        assert plain == [{}] * 2
