"""Log one name in several stages and hooks, and find its newest value at every moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET, Idle
from torch import Tensor

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint

FLAGS: dict[str, Any] = {**QUIET, "max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
DATA = [torch.ones(2, 1)] * 4
SHARED = pytest.mark.filterwarnings("ignore:.*is monitored, and logged in training as well")


class Net(Idle):
    """Module that logs in training 10, 11, 12, ... under some names, and in validation the epoch's number plus 1."""

    def __init__(self, *shared: str, **names: str) -> None:
        super().__init__()
        self.shared, self.names = shared, names

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        for name, way in self.names.items():
            self.log(name, 10.0 + self.global_step, on_step="s" in way, on_epoch="e" in way)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        for name in ("val", *self.shared):
            self.log(name, 1.0 + self.current_epoch)


class Look(Callback):
    """Callback that notes what it reads in some hooks."""

    def __init__(self, *hooks: str, names: tuple[str, ...] | None = None) -> None:
        self.seen: list[Any] = []
        self.names = names
        for hook in hooks:
            setattr(self, hook, self.look)

    def look(self, trainer: Trainer, *_: Any) -> None:
        found = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.seen.append(found if self.names is None else [found.get(name) for name in self.names])


def fit(module: LightningModule, *callbacks: Callback, **flags: Any) -> Trainer:
    saves = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    ckpt = flags.pop("ckpt_path", None)
    trainer = Trainer(**{**FLAGS, "callbacks": list(callbacks), "enable_checkpointing": saves, **flags})
    trainer.fit(module, DATA, DATA[:1], ckpt_path=ckpt)
    return trainer


# ---------------------------------------------------------------- one name in two stages


def test_a_step_is_covered_by_the_validation_after_it() -> None:
    """The validation's value is the newest until the next step logs, in the epoch's end hook and after the fit too."""
    look = Look("on_train_batch_end", "on_validation_start", "on_validation_end", "on_train_epoch_end", names=("x",))
    trainer = fit(Net("x", x="s"), look, val_check_interval=2, max_epochs=1)
    assert [v for (v,) in look.seen] == [10.0, 11.0, 11.0, 1.0, 12.0, 13.0, 13.0, 1.0, 1.0]
    assert float(trainer.callback_metrics["x"]) == 1.0


@pytest.mark.parametrize(("way", "expected"), [("e", 11.5), ("se", 11.5), ("s", 1.0)])
def test_the_epochs_value_covers_the_validation(way: str, expected: float) -> None:
    """At the epoch's end training's value over the epoch is newer than the validation's; a step's value is not."""
    look = Look("on_train_epoch_end", "on_train_end", names=("x",))
    fit(Net("x", x=way), look, max_epochs=1)
    assert look.seen == [[expected]] * 2


def test_other_names_are_left_alone() -> None:
    """The names by step and by epoch are apart from a validation's plain one."""
    trainer = fit(Net("x", x="se"), max_epochs=1)
    found = {k: float(v) for k, v in trainer.callback_metrics.items()}
    assert found == {"x": 11.5, "x_step": 13.0, "x_epoch": 11.5, "val": 1.0}


def test_sanity_values_never_enter() -> None:
    """After the sanity check nothing of it is left, nor does it make a name that training logs look newer."""
    look = Look("on_train_start", "on_train_batch_end")
    fit(Net("x", x="s"), look, num_sanity_val_steps=1, max_epochs=1)
    assert look.seen == [{}, *({"x": 10.0 + i} for i in range(4))]


def test_what_a_callback_writes_stays_until_a_newer_value() -> None:
    """A value that a callback writes into callback_metrics is kept while nothing is logged under that name."""

    class Write(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                trainer.callback_metrics["x"] = torch.tensor(5.0)
                trainer.callback_metrics["own"] = torch.tensor(6.0)

    look = Look("on_train_batch_end", names=("x", "own"))
    fit(Net(x="s"), Write(), look, max_epochs=1)
    assert look.seen == [[10.0, None], [5.0, 6.0], [12.0, 6.0], [13.0, 6.0]]


def test_reading_changes_nothing() -> None:
    """Whoever reads, and however often, the values at the end of a run are the same."""
    every = ("on_train_batch_start", "on_before_backward", "on_train_batch_end", "on_validation_start")
    every += ("on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_train_epoch_end")
    often = fit(Net("x", "y", x="se", y="s", z="e"), Look(*every), val_check_interval=3)
    seldom = fit(Net("x", "y", x="se", y="s", z="e"), val_check_interval=3)
    assert dict(often.callback_metrics) == dict(seldom.callback_metrics)


# ---------------------------------------------------------------- training's values in a validation


HOOKS = ["on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end"]
HOOKS += ["on_validation_epoch_end", "on_validation_end"]


@pytest.mark.parametrize("hook", HOOKS)
def test_training_is_current_in_each_hook_of_a_validation(hook: str) -> None:
    """A value by step is the last step's, one by epoch that of the epoch's part up to now, and never an older one."""
    look = Look(hook, names=("s", "b", "b_step", "b_epoch", "e"))
    fit(Net(s="s", b="se", e="e"), look, val_check_interval=2)
    assert look.seen == [
        [11.0, 10.5, 11.0, 10.5, 10.5],
        [13.0, 11.5, 13.0, 11.5, 11.5],
        [15.0, 14.5, 15.0, 14.5, 14.5],
        [17.0, 15.5, 17.0, 15.5, 15.5],
    ]


def test_a_look_inside_the_epoch_does_not_change_its_value() -> None:
    """Values over an epoch are the same with a validation after each batch as without any."""
    often = fit(Net(x="se", y="e"), val_check_interval=1)
    never = fit(Net(x="se", y="e"), limit_val_batches=0)
    for name in ("x", "x_epoch", "y"):
        assert often.callback_metrics[name] == never.callback_metrics[name]


class Counting:
    """Metric object that counts how often it is computed."""

    def __init__(self) -> None:
        self.computed, self.total = 0, 0.0

    def update(self, value: float) -> None:
        self.total += value

    def compute(self) -> float:
        self.computed += 1
        return self.total

    def reset(self) -> None:
        self.total = 0.0


class Measuring(Net):
    """Module that logs a metric object over the epoch in training."""

    def __init__(self, **names: str) -> None:
        super().__init__(**names)
        self.object = Counting()

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.object.update(1.0)
        self.log("object", self.object, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("make", "early"),
    [
        (lambda folder: Callback(), 0),
        (lambda folder: ModelCheckpoint(folder, filename="{object}"), 2),
        (lambda folder: ModelCheckpoint(folder, monitor="object"), 2),
        (lambda folder: EarlyStopping("object", mode="max"), 2),
    ],
)
def test_a_metric_object_is_computed_early_for_who_asks(
    tmp_path: Path, make: Callable[[Path], Callback], early: int
) -> None:
    """In a validation a metric object is computed only if a monitor or a file name asks for it."""
    module = Measuring()
    look = Look("on_validation_end", names=("object",))
    times: list[int] = []
    look.on_train_epoch_end = lambda *_: times.append(module.object.computed)  # type: ignore[method-assign]
    trainer = fit(module, look, make(tmp_path), val_check_interval=2, max_epochs=1)
    assert times == [early]
    assert look.seen == ([[2.0], [4.0]] if early else [[None]] * 2)
    assert float(trainer.callback_metrics["object"]) == 4.0


def test_file_names_are_current(tmp_path: Path) -> None:
    """A training value in a file name is that of the moment, by step and by epoch, from the first validation on."""
    save = ModelCheckpoint(tmp_path, monitor="val", filename="{step}-{s:.1f}-{e:.1f}", save_top_k=-1)
    fit(Net(s="s", e="e"), save, val_check_interval=2)
    names = {path.stem for path in tmp_path.glob("*.ckpt")}
    assert names == {f"step={n}-s={s}-e={e}" for n, s, e in
                     [(2, 11.0, 10.5), (4, 13.0, 11.5), (6, 15.0, 14.5), (8, 17.0, 15.5)]}  # fmt: skip


# ---------------------------------------------------------------- monitors


def test_a_checkpoint_of_an_epochs_value_waits_for_it(tmp_path: Path) -> None:
    """Where validation is the place to save, a monitored training value is looked at when its epoch is over."""
    save = ModelCheckpoint(tmp_path, monitor="x", mode="max", filename="{step}-{x:.1f}", save_top_k=-1)
    fit(Net(x="e"), save, val_check_interval=2)
    assert {path.stem for path in tmp_path.glob("*.ckpt")} == {"step=4-x=11.5", "step=8-x=15.5"}


@pytest.mark.parametrize("way", ["e", "se"])
def test_early_stopping_on_an_epochs_value_waits_for_it(way: str) -> None:
    """EarlyStopping looks at it once an epoch, and its patience counts these looks."""
    stop = EarlyStopping("x", mode="max", patience=2)
    trainer = fit(Net(x=way), stop, val_check_interval=1, max_epochs=3)
    assert (float(stop.best_score), stop.wait_count, trainer.current_epoch) == (19.5, 0, 3)
    stop = EarlyStopping("x", mode="min", patience=2)
    trainer = fit(Net(x=way), stop, val_check_interval=1, max_epochs=5)
    assert (float(stop.best_score), stop.wait_count, trainer.current_epoch) == (11.5, 2, 3)


def test_an_epochs_value_is_not_waited_for_where_nothing_asks(tmp_path: Path) -> None:
    """In epochs without a validation a callback that acts after validation does not act."""
    save = ModelCheckpoint(tmp_path, monitor="x", filename="{step}", save_top_k=-1)
    fit(Net(x="e"), save, check_val_every_n_epoch=2, max_epochs=4)
    assert {path.stem for path in tmp_path.glob("*.ckpt")} == {"step=8", "step=16"}


def test_steps_are_not_waited_for(tmp_path: Path) -> None:
    """A monitored value of a step, and a validation's, is looked at after each validation."""
    for monitor in ("x", "val"):
        save = ModelCheckpoint(tmp_path / monitor, monitor=monitor, filename="{step}", save_top_k=-1)
        fit(Net(x="s"), save, val_check_interval=2)
        assert {path.stem for path in (tmp_path / monitor).glob("*.ckpt")} == {"step=2", "step=4", "step=6", "step=8"}


@SHARED
@pytest.mark.parametrize("flags", [{}, {"val_check_interval": 2}, {"check_val_every_n_epoch": None}])
def test_monitors_see_the_validation_of_a_shared_name(tmp_path: Path, flags: dict[str, Any]) -> None:
    """A step that logs as validation does is older than the validation at which checkpoints and stops are decided."""
    save, stop = ModelCheckpoint(tmp_path, monitor="x", filename="{epoch}"), EarlyStopping("x", patience=1)
    if flags.get("check_val_every_n_epoch", 1) is None:
        flags = {**flags, "val_check_interval": 4}
    fit(Net("x", x="s"), save, stop, max_epochs=4, **flags)
    assert (float(save.best_model_score or 0), float(stop.best_score), Path(save.best_model_path).stem) == (
        1.0,
        1.0,
        "epoch=0",
    )


class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Plateau scheduler that only notes what it is given.

    Args:
        seen: Where it notes it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, seen: list[float]) -> None:
        super().__init__(optimizer)
        self.seen = seen

    def step(self, metrics: Any, epoch: Any = None) -> None:
        self.seen.append(float(metrics))


@SHARED
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_plateau_scheduler_sees_the_newest_value(interval: str) -> None:
    """A plateau scheduler gets the validation's value of a shared name after it, the step's by step before it."""
    seen: list[float] = []

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [{"scheduler": Plateau(optimizer, seen), "monitor": "x", "interval": interval}]

    fit(Scheduled("x", x="s"))
    assert seen == ([1.0, 2.0] if interval == "epoch" else [10.0, 11.0, 12.0, 1.0, 14.0, 15.0, 16.0, 2.0])


def test_a_plateau_scheduler_by_step_waits_for_an_epochs_value() -> None:
    """What is over a part of an epoch is nothing to step by, as it is nothing to save or stop by."""
    seen: list[float] = []

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            config = {"scheduler": Plateau(optimizer, seen), "monitor": "x", "interval": "step", "strict": False}
            return [optimizer], [config]

    with pytest.warns(UserWarning, match="Plateau, monitor 'x': no metric of that name was logged"):
        fit(Scheduled(x="e"), val_check_interval=2)
    assert seen == [11.5]  # the first epoch's, until the second one's validation


def test_one_warning_for_a_monitored_name_of_two_stages() -> None:
    """A monitored name that training and validation log is warned of once, whoever monitors it and for however long."""
    stops = EarlyStopping("x", patience=9), EarlyStopping("x", mode="max")
    with pytest.warns(UserWarning, match="'x' is monitored, and logged in training as well as in validation") as given:
        fit(Net("x", "y", x="s", y="s"), *stops, val_check_interval=1)
    assert len(given) == 1
    fit(Net("x", x="s"), EarlyStopping("val"))  # any warning would be an error


@pytest.mark.parametrize("monitor", ["v", "w_step"])
def test_a_monitor_of_a_validations_steps_is_refused_with_the_reason(tmp_path: Path, monitor: str) -> None:
    """What a validation logs by step only cannot be monitored; the error says why and what to write."""

    class Steps(Net):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("v", 1.0, on_step=True, on_epoch=False)
            self.log("w", 1.0, on_step=True, on_epoch=True)

    for callback in (ModelCheckpoint(tmp_path, monitor=monitor), EarlyStopping(monitor)):
        with pytest.raises(RuntimeError, match=rf"by step only.*self\.log\(\"{monitor}\", value, on_epoch=True\)"):
            fit(Steps(), callback)


# ---------------------------------------------------------------- resuming


@pytest.mark.filterwarnings("ignore:.*it holds the state of callbacks that are not here")
@pytest.mark.parametrize("when", [1, 2, 3, 4, 6])
def test_times_are_saved(tmp_path: Path, when: int) -> None:
    """A resumed run finds at each moment what the unbroken one finds, though a step's value lies in the file too."""
    hooks = ("on_train_batch_start", "on_validation_start", "on_validation_end", "on_train_epoch_end")
    names = ("x", "y", "y_epoch", "z")
    whole, rest = Look(*hooks, names=names), Look(*hooks, names=names)
    save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(Net("x", "y", "z", x="s", y="se", z="e"), whole, save, val_check_interval=2)
    file = str(tmp_path / f"step={when}.ckpt")
    fit(Net("x", "y", "z", x="s", y="se", z="e"), rest, val_check_interval=2, ckpt_path=file)
    assert rest.seen == whole.seen[-len(rest.seen) :]
    assert len(rest.seen) >= 5


def test_files_without_times_are_taken(tmp_path: Path) -> None:
    """A checkpoint of an earlier release, whose values have no times, gives its values until newer ones are logged."""
    from lt_core.metrics.results import Metrics, Results

    module = Net()
    metrics = Metrics(module, Results(), silent=False)
    slot = {"name": "x", "scope": 2, "suffix": "", "last": 3.0, "fresh": True, "total": 3.0, "weight": 1}
    slot |= {"returned": False, "metric": None, "settings": {
        "step": True, "epoch": False, "op": "mean", "bar": False, "logger": True, "sync": False, "group": None,
        "rank_zero_only": False, "add_idx": True}}  # fmt: skip
    metrics.load_state_dict({"slots": [slot]})
    metrics.results.restore_callback({"x": torch.tensor(1.0), "val": torch.tensor(2.0)})
    found = metrics.results.read_callback(metrics.train)
    assert {k: float(v) for k, v in found.items()} == {"x": 3.0, "val": 2.0}
    assert metrics.train.take_step() == {"x": 3.0}
    metrics.release()
