"""Check what a trainer shows of itself before, inside and after a run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_core.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lt_interface.errors import MisconfigurationException


def trainer(**flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "max_epochs": 2, **flags})


def loader(n: int) -> DataLoader[Any]:
    return DataLoader(torch.ones(n, 1))  # type: ignore[arg-type]


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Unsized:
    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.ones(1, 1)] * 3)


def look(run: Trainer, events: list[str], show: Any) -> list[Any]:
    """Note what ``show(trainer)`` returns at each of the events."""
    seen: list[Any] = []
    for event in events:
        run.on(event)(lambda trainer: seen.append(show(trainer)))
    return seen


def test_before_any_run() -> None:
    """A new trainer answers every question without a run."""
    run = trainer()
    assert (run.global_step, run.current_epoch, run.max_epochs, run.min_epochs, run.max_steps) == (0, 0, 2, 0, -1)
    assert run.min_steps is None
    assert (run.lightning_module, run.model, run.datamodule, run.train_dataloader) == (None, None, None, None)
    assert (run.val_dataloaders, run.test_dataloaders, run.predict_dataloaders) == (None, None, None)
    assert (run.optimizers, run.lr_scheduler_configs) == ([], [])
    assert run.num_training_batches == float("inf")
    assert run.num_val_batches == run.num_test_batches == run.num_predict_batches == run.num_sanity_val_batches == []
    assert (run.callback_metrics, run.logged_metrics, run.progress_bar_metrics, run.history) == ({}, {}, {}, {})
    flags = ("training", "validating", "testing", "predicting", "sanity_checking", "evaluating", "interrupted")
    assert [f for f in (*flags, "received_sigterm", "should_stop", "is_last_batch") if getattr(run, f)] == []
    assert not run.enable_validation
    assert (str(run.state.status), run.state.fn, run.state.stage) == ("initializing", None, None)


def test_place_in_the_world() -> None:
    """One process on one CPU is rank 0 of 1."""
    run = trainer()
    assert (run.global_rank, run.local_rank, run.node_rank) == (0, 0, 0)
    assert (run.world_size, run.num_nodes, run.num_devices, run.device_ids) == (1, 1, 1, [0])
    assert run.is_global_zero
    assert run.distributed_sampler_kwargs == {"num_replicas": 1, "rank": 0}
    assert (run.accelerator.name, run.precision, run.scaler) == ("cpu", "32-true", None)
    assert type(run.strategy).__name__ == "SingleDeviceStrategy"
    assert run.precision_plugin.name == "32-true"


@pytest.mark.parametrize(("given", "name"), [(64, "64-true"), ("64", "64-true"), ("bf16-true", "bf16-true")])
def test_precision_by_its_full_name(given: Any, name: str) -> None:
    """Short names of a precision are shown in full."""
    assert trainer(precision=given).precision == name


def test_stages() -> None:
    """Inside a run state, stage and the flags for it say what goes on."""
    events = ["sanity_check_start", "train_start", "validation_start", "train_epoch_end", "test_start", "predict_start"]

    def show(run: Trainer) -> Any:
        flags = ("sanity_checking", "training", "validating", "testing", "predicting", "evaluating")
        return str(run.state.fn), str(run.state.stage), [f for f in flags if getattr(run, f)], str(run.state.status)

    run, net = trainer(max_epochs=1), Net()
    seen = look(run, events, show)
    run.fit(net, loader(2), loader(2))
    run.validate(net, loader(1), verbose=False)
    run.test(net, loader(1), verbose=False)
    run.predict(net, loader(1))
    sanity = ("fit", "sanity_check", ["sanity_checking", "evaluating"], "running")
    assert seen == [
        sanity,  # on_sanity_check_start
        sanity,  # its on_validation_start
        ("fit", "train", ["training"], "running"),
        ("fit", "validate", ["validating", "evaluating"], "running"),
        ("fit", "train", ["training"], "running"),
        ("validate", "validate", ["validating", "evaluating"], "running"),
        ("test", "test", ["testing", "evaluating"], "running"),
        ("predict", "predict", ["predicting"], "running"),
    ]
    assert (str(run.state.fn), run.state.stage, str(run.state.status)) == ("predict", None, "finished")


def test_counters() -> None:
    """global_step counts finished steps; current_epoch is the running epoch until its end hooks are over."""
    run = trainer()
    events = [
        "train_batch_start",
        "before_optimizer_step",
        "train_batch_end",
        "train_epoch_end",
        "train_end",
        "fit_end",
    ]
    seen = look(run, events, lambda t: (t.current_epoch, t.global_step))
    net = Net()
    run.fit(net, loader(2), loader(1))
    first = [(0, 0), (0, 0), (0, 1), (0, 1), (0, 1), (0, 2), (0, 2)]
    second = [(1, 2), (1, 2), (1, 3), (1, 3), (1, 3), (1, 4), (1, 4)]
    assert seen == [*first, *second, (2, 4), (2, 4)]
    assert (run.current_epoch, run.global_step) == (net.current_epoch, net.global_step) == (2, 4)


@pytest.mark.parametrize("data", [loader(3), Unsized()])
def test_is_last_batch(data: Any) -> None:
    """is_last_batch is True in the epoch's last batch, whether its length is known or not."""
    run = trainer(max_epochs=1)
    seen = look(run, ["train_batch_start"], lambda t: t.is_last_batch)
    run.fit(Net(), data, loader(1))
    assert seen == [False, False, True]


def test_loaders_and_their_sizes() -> None:
    """Loaders are shown as the user gave them, sizes after the limits, lists where there may be several."""
    run = trainer(limit_train_batches=3, limit_val_batches=0.5, num_sanity_val_steps=1, limit_test_batches=1)
    net, train, val = Net(), loader(5), {"a": loader(4), "b": loader(2)}
    net.validation_step = lambda batch, batch_idx, dataloader_idx: None  # type: ignore[assignment, misc]
    net.test_step = lambda batch, batch_idx, dataloader_idx: None  # type: ignore[assignment, misc]
    run.fit(net, train, val)
    assert run.train_dataloader is train
    assert run.val_dataloaders is val
    assert (run.num_training_batches, run.num_val_batches, run.num_sanity_val_batches) == (3, [2, 1], [1, 1])
    assert run.enable_validation
    run.test(net, [val["a"], train], verbose=False)
    assert run.num_test_batches == [1, 1]
    assert run.test_dataloaders == [val["a"], train]
    run.predict(net, val["a"])
    assert run.num_predict_batches == [4]
    assert run.predict_dataloaders is val["a"]


@pytest.mark.parametrize(
    ("flags", "data", "expected"),
    [
        ({"max_epochs": 3}, loader(5), 15),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, loader(5), 9),
        ({"max_epochs": 3, "max_steps": 7}, loader(5), 7),
        ({"max_epochs": 3, "limit_train_batches": 2}, loader(5), 6),
        ({"max_epochs": -1, "max_steps": 4}, loader(5), 4),
        ({"max_epochs": 1}, Unsized(), float("inf")),
        ({"max_epochs": 1, "max_steps": 2}, Unsized(), 2),
    ],
)
def test_estimated_stepping_batches(flags: dict[str, Any], data: Any, expected: float) -> None:
    """The number of steps is known in configure_optimizers, loading the data if it must."""
    seen: list[Any] = []

    class Asks(Net):
        def configure_optimizers(self) -> Any:
            seen.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    run = trainer(**flags)
    with pytest.raises(MisconfigurationException, match="estimated_stepping_batches: known only inside fit"):
        _ = run.estimated_stepping_batches
    run.fit(Asks(), data, loader(1))
    assert seen == [expected]
    if expected != float("inf"):
        assert run.global_step == expected


def test_the_trainer_is_there_from_setup_on() -> None:
    """module.trainer, max_epochs, world_size and datamodule can be used in setup."""
    seen: list[Any] = []

    class Data(LightningDataModule):
        def setup(self, stage: str) -> None:
            assert self.trainer is not None
            seen.append((stage, self.trainer.max_epochs, self.trainer.lightning_module is net))

        def train_dataloader(self) -> Any:
            return loader(1)

        def val_dataloader(self) -> Any:
            return loader(1)

    class Asks(Net):
        def setup(self, stage: str) -> None:
            seen.append((stage, self.trainer.world_size, self.trainer.datamodule is data))

    net, data, run = Asks(), Data(), trainer()
    run.fit(net, datamodule=data)
    assert seen == [("fit", 2, True), ("fit", 1, True)]
    assert run.datamodule is data
    assert run.lightning_module is net


def test_a_data_module_in_the_place_of_loaders() -> None:
    """fit(model, datamodule) without the keyword is understood."""

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(1)

        def val_dataloader(self) -> Any:
            return loader(1)

    run, data = trainer(), Data()
    run.fit(Net(), data)
    assert run.datamodule is data
    assert run.global_step == 2


def test_callbacks_by_their_kind(tmp_path: Path) -> None:
    """The first and all callbacks of the known kinds are found."""
    stops = [EarlyStopping("x"), EarlyStopping("y")]
    saves = [ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path, monitor="x")]
    bar = RichProgressBar()
    run = trainer(callbacks=[*saves, bar, *stops], enable_checkpointing=True, enable_progress_bar=True)
    assert run.early_stopping_callbacks == stops
    assert run.early_stopping_callback is stops[0]
    assert run.checkpoint_callbacks == saves
    assert run.checkpoint_callback is saves[0]
    assert run.progress_bar_callback is bar
    none = trainer()
    assert (none.early_stopping_callback, none.checkpoint_callback, none.progress_bar_callback) == (None, None, None)


def test_default_callbacks_follow_the_flags(tmp_path: Path) -> None:
    """Progress bar, summary and checkpoints are added unless they are there or switched off."""
    run = Trainer(max_epochs=1, default_root_dir=tmp_path, logger=False, accelerator="cpu")
    assert [type(c).__name__ for c in run.callbacks] == ["RichProgressBar", "ModelSummary", "ModelCheckpoint"]
    assert trainer().callbacks == []
    assert [type(c).__name__ for c in trainer(max_time="00:01:00:00").callbacks] == ["Timer"]


def test_loggers_and_folders(tmp_path: Path) -> None:
    """log_dir is the logger's, else the root folder; logger is the first of loggers, and both can be set."""
    from lt_core.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="mine", version=3)
    run = trainer(logger=[logger, CSVLogger(tmp_path, name="other")], default_root_dir=tmp_path)
    assert run.logger is logger
    assert run.log_dir == str(tmp_path / "mine" / "version_3")
    run.logger = None
    assert run.loggers == []
    assert run.log_dir == run.default_root_dir == str(tmp_path)
    run.logger = logger
    assert run.loggers == [logger]


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    """One batch of each stage with a logger that keeps nothing, and no checkpoint."""
    from lt_core.loggers import DummyLogger

    run = Trainer(fast_dev_run=True, default_root_dir=tmp_path, enable_progress_bar=False, accelerator="cpu")
    run.fit(Net(), loader(3), loader(3))
    assert isinstance(run.logger, DummyLogger)
    assert (run.global_step, run.max_steps, run.max_epochs) == (1, 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_barebones_turns_everything_off(tmp_path: Path) -> None:
    """With barebones it trains without loggers, callbacks, sanity check or values of self.log."""

    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 1.0)
            return super().training_step(batch, batch_idx)

    run = Trainer(barebones=True, max_epochs=1, default_root_dir=tmp_path, accelerator="cpu")
    seen = look(run, ["sanity_check_start"], lambda t: t)
    with pytest.warns(UserWarning, match=r"self\.log.*barebones|barebones.*self\.log") as given:
        run.fit(Logs(), loader(3), loader(1))
    assert len(given) == 1
    assert (seen, run.callbacks, run.loggers, dict(run.callback_metrics)) == ([], [], [], {})
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_there() -> None:
    """An unknown attribute suggests the nearest one."""
    with pytest.raises(AttributeError, match=r"no attribute .golbal_step.\. Did you mean .global_step.\?"):
        _ = trainer().golbal_step
    assert not hasattr(trainer(), "_nothing_of_that_name")


def test_saving_needs_a_model(tmp_path: Path) -> None:
    """save_checkpoint before any run says what to do first."""
    with pytest.raises(AttributeError, match=r"no model is attached yet. Call fit"):
        trainer().save_checkpoint(tmp_path / "x.ckpt")


def test_print_goes_through_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """trainer.print prints; with a progress bar, above it."""
    trainer().print("hello", 3)
    assert capsys.readouterr().out == "hello 3\n"
    printed: list[Any] = []

    class Bar(RichProgressBar):
        def print(self, *args: Any, **kwargs: Any) -> None:
            printed.append(args)

    trainer(callbacks=[Bar()], enable_progress_bar=True).print("hello", 3)
    assert printed == [("hello", 3)]


def test_modules_made_inside_init_module_have_the_precision() -> None:
    """init_module constructs in the trainer's number format."""
    with trainer(precision="64-true").init_module():
        assert nn.Linear(1, 1).weight.dtype == torch.float64
    assert nn.Linear(1, 1).weight.dtype == torch.float32


def test_torch_flags() -> None:
    """The flags deterministic and benchmark set torch's switches; None leaves them."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        trainer(deterministic="warn", benchmark=True)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.benchmark
        trainer(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark
        trainer()
        assert torch.are_deterministic_algorithms_enabled()
        trainer(deterministic=False)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def test_detect_anomaly_is_on_only_inside_fit() -> None:
    """Torch's own anomaly mode holds during fit and is put back after it."""
    run = trainer(detect_anomaly=True)
    seen = look(run, ["train_batch_start"], lambda t: torch.is_anomaly_enabled())
    run.fit(Net(), loader(1), loader(1))
    assert seen == [True, True]
    assert not torch.is_anomaly_enabled()


def test_the_trainer_lets_go_of_the_module() -> None:
    """Module and data module hold their trainer weakly, so that nothing lives longer than its owner."""
    import gc
    import weakref

    net, run = Net(), trainer(callbacks=[Callback()])
    run.fit(net, loader(1), loader(1))
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match="trainer"):
        _ = net.trainer


def test_a_strategy_shows_what_users_read_there(tmp_path: Path) -> None:
    """What belongs to the trainer is read from its strategy, too, before, inside and after a run."""
    seen: list[tuple[Any, ...]] = []
    boss = trainer(default_root_dir=tmp_path)
    strategy: Any = boss.strategy

    def look() -> None:
        place = strategy.strategy_name, strategy.num_nodes, strategy.parallel_devices, strategy.launcher
        assert place == ("single_device", 1, [torch.device("cpu")], None)
        assert strategy.accelerator is boss.accelerator
        assert strategy.precision_plugin is boss.precision_plugin
        assert strategy.cluster_environment is None
        assert strategy.distributed_sampler_kwargs == {"num_replicas": 1, "rank": 0}
        seen.append((list(strategy.optimizers), list(strategy.lr_scheduler_configs)))

    class Looking(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            look()
            with self.no_sync(), strategy.block_backward_sync():
                return super().training_step(batch, batch_idx)

    look()
    boss.fit(Looking(), loader(2), loader(1))
    look()
    assert seen[0] == ([], [])
    assert all(shown[0] == boss.optimizers for shown in seen[1:])


def test_a_strategys_checkpoint_verbs_use_the_trainers_store(tmp_path: Path) -> None:
    """A tree that is saved by the strategy's verb is loaded and removed by its others."""
    strategy: Any = trainer(default_root_dir=tmp_path).strategy
    path = tmp_path / "tree.ckpt"
    strategy.save_checkpoint({"weights": torch.arange(3.0), "epoch": 2}, path)
    found = strategy.load_checkpoint(path)
    assert found["weights"].tolist() == [0.0, 1.0, 2.0]
    assert found["epoch"] == 2
    strategy.remove_checkpoint(path)
    assert not path.exists()
    with pytest.raises(TypeError, match="storage_options"):
        strategy.save_checkpoint({}, path, storage_options={"a": 1})


def test_names_without_a_meaning_say_what_to_write() -> None:
    """A name that other trainers' strategies have, and ours do not, is an error with what to write instead."""
    strategy: Any = trainer().strategy
    for name, instead in {"optimizer_step": "optimizer.step()", "no_backward_sync": "block_backward_sync()"}.items():
        assert not hasattr(strategy, name)
        with pytest.raises(AttributeError, match=re.escape(instead)):
            getattr(strategy, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = strategy.nothing


def test_a_strategy_before_its_trainer_says_so() -> None:
    """A strategy that no trainer has yet has nothing of a trainer's to show."""
    strategy: Any = SingleDeviceStrategy()
    with pytest.raises(AttributeError, match="no trainer yet"):
        _ = strategy.accelerator
    boss = trainer(strategy=strategy)
    assert strategy.accelerator is boss.accelerator
    assert pickle.loads(pickle.dumps(strategy)).trainer is None
