"""Follow logged values of every source to loggers, bar and callbacks: when they come, on which axis, and how often."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from logged import logged
from quiet import QUIET, Idle
from torch import Tensor
from torch.utils.data import DataLoader

from lt_core import Callback, LightningModule, Trainer

FLAGS: dict[str, Any] = {**QUIET, "max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
DATA = [torch.full((n, 1), float(v)) for n, v in ((2, 1.0), (2, 2.0), (1, 6.0))]  # batch means 1, 2 and 6
MEAN = 12 / 5


def loader(*batches: Tensor) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class Logging(Idle):
    """Module that logs the batch's mean in training, both ways, and by epoch in validation."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.log("x", batch.mean(), on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", batch.mean())


def fit(module: LightningModule, *val: Any, **flags: Any) -> Trainer:
    trainer = Trainer(**{**FLAGS, **flags})
    trainer.fit(module, DATA, *val)
    return trainer


# ---------------------------------------------------------------- 9 and 10: when, and on which axis


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [3]), (50, []), (0, [])])
def test_steps_that_are_logged(every: int, steps: list[int]) -> None:
    """Step values are delivered each so many steps, counted over epochs; epoch values always."""
    history = logged(fit(Logging(), DATA, log_every_n_steps=every))
    assert history.steps.get("x_step", []) == steps
    assert history.get("x_step", []) == [[1.0, 2.0, 6.0][s % 3] for s in steps]
    assert history["x_epoch"] == history["val"] == [MEAN] * 2
    assert history.steps["x_epoch"] == history.steps["val"] == [2, 5]


def test_a_stop_logs_its_step() -> None:
    """The step at which training stops is delivered, whatever log_every_n_steps says."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.should_stop = batch_idx == 1

    history = logged(fit(Logging(), DATA, log_every_n_steps=50, callbacks=[Stop()]))
    assert (history["x_step"], history.steps["x_step"]) == ([2.0], [1])


def test_a_logged_step_is_the_axis() -> None:
    """A value named step sets the x-axis and is not delivered itself; the epoch is added to each record."""

    class Net(Logging):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("step", 10.0 * self.global_step)
            return super().training_step(batch, batch_idx)

    history = logged(fit(Net(), DATA, check_val_every_n_epoch=5))
    assert history.steps["x_step"] == [0, 10, 20, 30, 40, 50]
    assert "step" not in history
    assert history["epoch"] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_accumulated_batches_share_a_step() -> None:
    """With accumulation the axis counts optimizer steps, and a step has its window's last value."""
    history = logged(fit(Logging(), DATA, accumulate_grad_batches=2))
    assert history["x_step"] == [2.0, 6.0] * 2
    assert history.steps["x_step"] == [0, 1, 2, 3]


def test_evaluation_counts_its_own_batches(tmp_path: Path) -> None:
    """Step values of an evaluation have an axis of their own that goes on over epochs, loaders and a resume."""

    class Net(Idle):
        def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("v", batch.mean(), on_step=True, on_epoch=False)

    loaders: Any = [loader(*DATA), loader(DATA[0])]
    trainer = fit(Net(), loaders)
    assert logged(trainer)["v/dataloader_idx_0"] == [1.0, 2.0, 6.0] * 2
    assert logged(trainer).steps["v/dataloader_idx_0"] == [0, 1, 2, 3, 4, 5]
    assert logged(trainer).steps["v/dataloader_idx_1"] == [0, 1]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Trainer(**{**FLAGS, "max_epochs": 3})
    again.fit(Net(), DATA, loaders, ckpt_path=str(tmp_path / "a.ckpt"))
    assert logged(again).steps["v/dataloader_idx_0"][-3:] == [6, 7, 8]


def test_sanity_check_leaves_nothing() -> None:
    """Values of the sanity check are neither delivered nor kept."""
    trainer = fit(Logging(), DATA, num_sanity_val_steps=2, max_epochs=1)
    assert logged(trainer)["val"] == [MEAN]
    seen: list[set[str]] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(set(trainer.callback_metrics) | set(trainer.logged_metrics))

    fit(Logging(), DATA, num_sanity_val_steps=2, max_epochs=1, callbacks=[Watch()])
    assert seen == [set()]


def test_validation_inside_an_epoch_keeps_the_training_values() -> None:
    """A validation in the middle of an epoch does not touch the means of training."""
    history = logged(fit(Logging(), DATA, val_check_interval=1))
    assert history["x_epoch"] == [MEAN] * 2
    assert history["val"] == [MEAN] * 6
    assert history.steps["val"] == [0, 1, 2, 3, 4, 5]


def test_bar_gets_what_it_should() -> None:
    """progress_bar_metrics hold what was logged with prog_bar=True, and only that, as floats."""

    class Net(Idle):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("shown", batch.mean(), prog_bar=True, logger=False)
            self.log("hidden", batch.mean())
            return super().training_step(batch, batch_idx)

    trainer = fit(Net())
    assert trainer.progress_bar_metrics == {"shown": 6.0}
    assert set(logged(trainer)) == {"hidden", "epoch"}
    assert set(trainer.callback_metrics) == {"shown", "hidden"}


def test_a_closure_logs_once() -> None:
    """An optimizer that looks at a batch many times logs it once."""

    class Net(Logging):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", batch.mean(), on_step=True, on_epoch=True)
            self.log("n", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return (self.layer(batch) - 1).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=5)

    history = logged(fit(Net(), DATA))
    assert (history["n"], history["x_epoch"]) == ([3.0] * 2, [MEAN] * 2)


# ---------------------------------------------------------------- what a step returns


class Returning(Idle):
    """Module of the oldest style: no self.log at all."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.layer(batch).sum() * 0 + batch.mean()
        if not self.automatic_optimization:
            self.optimizers().step()
        return {"loss": loss, "log": {"train_loss": loss, "number": batch_idx, "vector": batch, "text": "a"}}

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = batch.mean()
        return {"val_loss": loss, "val_n": len(batch), "loss": loss, "val_vector": batch, "val_flag": True}

    def test_step(self, batch: Tensor, batch_idx: int) -> Any:
        return {"test_loss": batch.mean(), "log": {"other": 1.0}}


@pytest.mark.parametrize("automatic", [True, False])
def test_modules_of_the_oldest_style(automatic: bool) -> None:
    """Scalars under "log", and val_ and test_ entries of evaluation steps, are reported without one self.log."""
    module = Returning()
    module.automatic_optimization = automatic
    trainer = fit(module, DATA)
    history = logged(trainer)
    assert set(history) == {"train_loss", "number", "val_loss", "val_n", "epoch"}
    assert (history["train_loss"], history["number"]) == ([1.0, 2.0, 6.0] * 2, [0.0, 1.0, 2.0] * 2)
    assert history["val_loss"] == [MEAN] * 2
    assert trainer.callback_metrics["val_loss"] == torch.tensor(MEAN)
    assert trainer.test(module, DATA, verbose=False) == [{"test_loss": MEAN, "other": 1.0}]


def test_what_was_logged_is_not_logged_again() -> None:
    """A key that the module logs itself keeps the module's value and counts once."""

    class Net(Returning):
        def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("val_loss", 7.0, batch_size=1)
            return {"val_loss": batch.mean()}

    assert logged(fit(Net(), DATA))["val_loss"] == [7.0] * 2


def test_returned_values_of_several_loaders() -> None:
    """Values that are returned get the loader's name as logged ones do."""

    class Net(Idle):
        def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int) -> Any:
            return {"val_loss": batch.mean()}

    (first, second) = Trainer(**FLAGS).validate(Net(), {"a": loader(*DATA), "b": loader(DATA[0])}, verbose=False)
    assert (first, second) == ({"val_loss/a": MEAN}, {"val_loss/b": 1.0})


# ---------------------------------------------------------------- metric objects


class Average:
    """Metric in the way of ignite: update, compute, reset and plain attributes."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, values: Tensor) -> None:
        self.total += float(values.sum())
        self.count += values.numel()

    def compute(self) -> float:
        return self.total / self.count


class Measuring(Idle):
    """Module that logs metric objects of two libraries in training and validation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torchmetrics.MeanMetric()
        self.val_mean = torchmetrics.MeanMetric()
        self.average, self.val = Average(), {"average": Average()}
        self.both = torchmetrics.MetricCollection(
            {"mae": torchmetrics.MeanAbsoluteError(), "mse": torchmetrics.MeanSquaredError()}
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.mean(batch)
        self.average.update(batch)
        self.log("mean", self.mean, on_step=True, on_epoch=True)
        self.log("average", self.average, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.val_mean.update(batch)
        self.val["average"].update(batch)
        self.both.update(batch, torch.zeros_like(batch))
        self.log("val_mean", self.val_mean)
        self.log("val_average", self.val["average"], metric_attribute="val")
        self.log_dict(self.both)


def test_metric_objects_by_step_and_epoch() -> None:
    """A metric object gives its last forward's value by step and its own total by epoch, and begins each one anew."""
    module = Measuring()
    history = logged(fit(module, DATA, num_sanity_val_steps=1))
    assert history["mean_step"] == [1.0, 2.0, 6.0] * 2
    assert history["mean_epoch"] == pytest.approx([MEAN] * 2)
    assert history["average"] == history["val_average"] == [MEAN] * 2
    assert history["val_mean"] == history["mae"] == pytest.approx([MEAN] * 2)
    assert history["mse"] == pytest.approx([46 / 5] * 2)
    assert (module.average.count, float(module.mean.mean_value)) == (0, 0.0)


class Kill(Callback):
    """Callback that stops a run by an error after one batch of its second epoch, with a checkpoint of that moment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 2:
            raise InterruptedError

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            trainer.request_checkpoint(self.path)


@pytest.mark.parametrize("kind", [Measuring, Logging, Returning])
def test_resuming_goes_on_with_sums_and_objects(kind: type[Idle], tmp_path: Path) -> None:
    """A run that was killed inside an epoch and resumed delivers what the whole one does, by step and epoch."""
    path = tmp_path / "inside.ckpt"
    whole = logged(fit(kind(), DATA, max_epochs=3))
    first = Trainer(**{**FLAGS, "max_epochs": 3}, callbacks=[Kill(path)])
    with pytest.raises(InterruptedError):
        first.fit(kind(), DATA, DATA)
    second = Trainer(**{**FLAGS, "max_epochs": 3})
    second.fit(kind(), DATA, DATA, ckpt_path=str(path))
    begun = logged(first)
    for name, values in whole.items():
        rest = logged(second)[name]
        assert rest == values[-len(rest) :], name
        if name != "epoch":
            assert logged(second).steps[name] == whole.steps[name][-len(rest) :]
            assert begun.get(name, []) == values[: len(begun.get(name, []))]
            assert len(rest) + len(begun.get(name, [])) >= len(values)


# ---------------------------------------------------------------- 11: memory


@pytest.mark.slow
def test_memory_does_not_grow_with_steps() -> None:
    """Five thousand steps with five logs each leave nothing behind but the journal on disk."""
    sizes: dict[int, int] = {}

    class Net(Idle):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            for i in range(5):
                self.log(f"x{i}", loss, on_step=True, on_epoch=True, prog_bar=i == 0)
            if batch_idx in (1000, 4999):
                gc.collect()
                sizes[batch_idx] = tracemalloc.get_traced_memory()[0]
            return loss

    tracemalloc.start()
    try:
        Trainer(**{**FLAGS, "max_epochs": 1, "log_every_n_steps": 10}).fit(Net(), [DATA[0]] * 5000)
    finally:
        tracemalloc.stop()
    assert sizes[4999] - sizes[1000] < 20_000
