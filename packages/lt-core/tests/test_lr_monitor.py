"""Logging learning rates."""

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from lt_core import Trainer
from lt_core.callbacks import LearningRateMonitor
from lt_core.demos import BoringModel, ManualOptimBoringModel
from lt_interface import Logger
from lt_interface.errors import ConfigError, MisconfigurationException


class _Memory(Logger):
    """Logger that keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))

    def values(self, key):
        return [(step, metrics[key]) for step, metrics in self.logged if key in metrics]


class _Model(BoringModel):
    def __init__(self, optimizers):
        super().__init__()
        self.make = optimizers

    def configure_optimizers(self):
        return self.make(self.layer)


class _Two(ManualOptimBoringModel):
    def __init__(self, optimizers):
        super().__init__()
        self.make = optimizers

    def configure_optimizers(self):
        return self.make(self.layer)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(self(batch)))
        for optimizer in self.optimizers():
            optimizer.step()


def _fit(monitor, model, **flags):
    logger = _Memory()
    defaults = {
        "max_epochs": 2,
        "limit_train_batches": 6,
        "limit_val_batches": 0,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": logger,
    }
    trainer = Trainer(callbacks=[monitor], **{**defaults, **flags})
    trainer.fit(model)
    return logger, trainer


def _step_lr(layer, **names):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1, 0.5), **names}}


def test_epoch_schedulers_are_logged_by_the_epoch(tmp_path):
    """Without an interval, each optimizer is logged at its scheduler's own."""
    monitor = LearningRateMonitor()
    logger, trainer = _fit(monitor, _Model(_step_lr), default_root_dir=tmp_path)
    assert logger.values("lr-SGD") == [(0, 0.1), (6, 0.05)]
    assert monitor.lrs == {"lr-SGD": [0.1, 0.05]}
    assert trainer.callback_metrics["lr-SGD"] == pytest.approx(0.05)


def test_step_schedulers_are_logged_with_the_training_metrics(tmp_path):
    """By the step, the rate that a logged step used stands at that step."""
    model = _Model(lambda layer: _step_lr(layer, interval="step"))
    logger, _ = _fit(LearningRateMonitor(), model, max_epochs=1, default_root_dir=tmp_path)
    assert logger.values("lr-SGD") == [(1, 0.05), (3, 0.0125), (5, 0.003125)]


@pytest.mark.parametrize(("interval", "steps"), [("step", [1, 3, 5, 7, 9, 11]), ("epoch", [0, 6])])
def test_the_interval_can_be_chosen(tmp_path, interval, steps):
    """A chosen interval holds for all optimizers, with and without scheduler."""
    logger, _ = _fit(
        LearningRateMonitor(logging_interval=interval),
        _Model(lambda layer: torch.optim.Adam(layer.parameters(), lr=0.1)),
        default_root_dir=tmp_path,
    )
    assert [step for step, _ in logger.values("lr-Adam")] == steps


def test_accumulated_batches_log_a_step_once(tmp_path):
    """Several batches of one step do not repeat it."""
    flags = {"max_epochs": 1, "accumulate_grad_batches": 3, "default_root_dir": tmp_path}
    logger, _ = _fit(LearningRateMonitor("step"), _Model(_step_lr), **flags)
    assert [step for step, _ in logger.values("lr-SGD")] == [1]


def test_momentum_and_weight_decay(tmp_path):
    """Momentum, Adam's first beta and weight decay come under the rate's key."""
    monitor = LearningRateMonitor("epoch", log_momentum=True, log_weight_decay=True)
    logger, _ = _fit(
        monitor,
        _Model(lambda layer: torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)),
        max_epochs=1,
        default_root_dir=tmp_path,
    )
    assert logger.values("lr-SGD-momentum") == [(0, 0.9)]
    assert logger.values("lr-SGD-weight_decay") == [(0, 0.01)]
    assert monitor.last_momentum_values == {"lr-SGD-momentum": 0.9}
    monitor = LearningRateMonitor("epoch", log_momentum=True)
    _fit(monitor, _Model(lambda layer: torch.optim.AdamW(layer.parameters(), lr=0.1)), max_epochs=1)
    assert monitor.last_momentum_values == {"lr-AdamW-momentum": 0.9}


def test_an_optimizer_without_momentum_is_told(tmp_path):
    """Asking for momentum where there is none is a warning, and logs 0."""
    monitor = LearningRateMonitor("epoch", log_momentum=True)
    with pytest.warns(UserWarning, match="has no momentum"):
        _fit(monitor, _Model(lambda layer: torch.optim.Adagrad(layer.parameters())), max_epochs=1)
    assert monitor.last_momentum_values == {"lr-Adagrad-momentum": 0.0}


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda m: _step_lr(m, name="mine"), {"mine"}),
        (
            lambda m: torch.optim.SGD([{"params": [m.weight]}, {"params": [m.bias]}], lr=0.1),
            {"lr-SGD/pg1", "lr-SGD/pg2"},
        ),
        (
            lambda m: torch.optim.SGD([{"params": [m.weight], "name": "w"}, {"params": [m.bias]}], lr=0.1),
            {"lr-SGD/w", "lr-SGD/pg2"},
        ),
        (lambda m: torch.optim.SGD([{"params": m.parameters(), "name": "all"}], lr=0.1), {"lr-SGD/all"}),
    ],
)
def test_keys_of_groups_and_schedulers(tmp_path, make, keys):
    """A scheduler's name replaces the optimizer's, and groups are distinguished by number or name."""
    monitor = LearningRateMonitor("epoch", log_key_prefix="opt/")
    _fit(monitor, _Model(make), max_epochs=1, default_root_dir=tmp_path)
    assert set(monitor.lrs) == {f"opt/{key}" for key in keys}


def test_keys_of_several_optimizers(tmp_path):
    """A second optimizer of a class gets a number; one with a scheduler comes first."""

    def make(layer):
        first = torch.optim.SGD([layer.weight], lr=0.1)
        second = torch.optim.SGD([layer.bias], lr=0.2)
        return [first, second], [StepLR(second, 1)]

    monitor = LearningRateMonitor("epoch")
    _fit(monitor, _Two(make), max_epochs=1, default_root_dir=tmp_path)
    assert monitor.lrs == {"lr-SGD": [0.2], "lr-SGD-1": [0.1]}


@pytest.mark.parametrize(
    ("names", "momentum"),
    [(["a", "a"], False), ([1, "1"], False), (["pg2", None], False), (["a", "a-momentum"], True)],
)
def test_two_values_of_one_key_are_refused(tmp_path, names, momentum):
    """Two values that would be logged under one key, whatever makes them alike, are an error that names the key."""
    groups = [{} if name is None else {"name": name} for name in names]
    with pytest.raises(MisconfigurationException, match=f"need different names.*Got twice lr-SGD/{names[0] or 'pg2'}"):
        _fit(
            LearningRateMonitor(log_momentum=momentum),
            _Model(
                lambda m: torch.optim.SGD(
                    [{**g, "params": [p]} for g, p in zip(groups, m.parameters(), strict=True)], lr=0.1
                )
            ),
            default_root_dir=tmp_path,
        )


def test_it_needs_a_logger(tmp_path):
    """Without a logger there is nowhere to log to."""
    with pytest.raises(MisconfigurationException, match="needs a logger"):
        _fit(LearningRateMonitor(), _Model(_step_lr), logger=False, default_root_dir=tmp_path)


def test_an_unknown_interval_suggests_the_nearest():
    """The interval is step, epoch or None."""
    with pytest.raises(ConfigError, match='Did you mean "epoch"'):
        LearningRateMonitor("epochs")


def test_momentum_is_read_where_a_group_has_betas_without_values():
    """A group with momentum and empty betas shows its momentum."""
    from lt_core.callbacks.lr_monitor import _momentum

    assert _momentum({"momentum": 0.9, "betas": None}) == 0.9
    assert _momentum({"momentum": 0.9, "betas": ()}) == 0.9


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("interval", ["step", None])
def test_a_short_epoch_logs_the_rate_of_its_last_step(tmp_path, interval, accumulate):
    """Where no step of an epoch is logged but its last, the rate that this one used stands at that step."""
    model = _Model(lambda layer: _step_lr(layer, interval="step"))
    flags = {"log_every_n_steps": None, "accumulate_grad_batches": accumulate, "default_root_dir": tmp_path}
    logger, _ = _fit(LearningRateMonitor(interval), model, **flags)
    last = 6 // accumulate - 1
    rates = [(step, pytest.approx(0.1 * 0.5**step)) for step in (last, 2 * last + 1)]
    assert logger.values("lr-SGD") == rates


def test_the_last_step_is_logged_only_where_no_other_one_was(tmp_path):
    """An epoch that logged a step does not log its last one, nor does one of a run that says how often; a stop does."""
    model = _Model(lambda layer: _step_lr(layer, interval="step"))
    flags = {"default_root_dir": tmp_path, "max_epochs": 1}
    logger, _ = _fit(LearningRateMonitor("step"), model, limit_train_batches=52, log_every_n_steps=None, **flags)
    assert [step for step, _ in logger.values("lr-SGD")] == [49]
    logger, _ = _fit(LearningRateMonitor("step"), model, log_every_n_steps=50, **flags)
    assert not logger.values("lr-SGD")
    logger, _ = _fit(LearningRateMonitor("step"), model, max_steps=4, log_every_n_steps=None, **flags)
    assert [step for step, _ in logger.values("lr-SGD")] == [3]


def test_a_run_resumed_in_mid_epoch_logs_the_rate_with_the_step(tmp_path):
    """After a resume in the middle of an epoch the rate stands beside the step values, at the same steps."""

    class Logging(_Model):
        def training_step(self, batch, batch_idx):
            self.log("loss", loss := super().training_step(batch, batch_idx)["loss"])
            return loss

    def fit(path=None, **flags):
        logger, monitor = _Memory(), LearningRateMonitor("step")
        flags |= {"max_epochs": 2, "limit_train_batches": 6, "limit_val_batches": 0, "enable_progress_bar": False}
        flags |= {"enable_model_summary": False, "enable_checkpointing": False}
        trainer = Trainer(callbacks=[monitor], logger=logger, **flags)
        trainer.fit(Logging(lambda layer: _step_lr(layer, interval="step")), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        return [step for step, _ in logger.values("lr-SGD")], [step for step, _ in logger.values("loss")]

    rates, losses = fit(max_steps=8, default_root_dir=tmp_path / "1")
    assert rates == losses == [5, 7]
    rates, losses = fit(tmp_path / "a.ckpt", default_root_dir=tmp_path / "2")
    assert rates == losses
