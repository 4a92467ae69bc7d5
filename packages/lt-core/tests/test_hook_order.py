"""Compare the calls that a run makes on callbacks, module and data module with the documented order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from quiet import QUIET
from torch import nn

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.hooks.table import HOOKS, table_markdown

STEPS = ("training_step", "validation_step", "test_step", "predict_step")
OPTIMIZATION = ("optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping", "lr_scheduler_step")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
CHECKPOINT = ("on_save_checkpoint", "on_load_checkpoint", "state_dict", "load_state_dict")
TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def recorded(base: type, tag: str, names: Any, calls: list[str]) -> Any:
    """Return a subclass that notes each call of these methods, and then does what the base does."""

    def wrap(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(f"{tag}.{name}")
            return getattr(super(made, self), name)(*args, **kwargs)

        return method

    made = type(f"Recorded{tag}", (base,), {n: wrap(n) for n in names if hasattr(base, n)})
    return made


class Net(LightningModule):
    manual: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.automatic_optimization = not self.manual

    def forward(self, x: Any) -> Any:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return None

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return None

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class ByHand(Net):
    manual = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.layer(batch).sum())
        optimizer.step()


class Data(LightningDataModule):
    batches: ClassVar[int] = 2

    def train_dataloader(self) -> Any:
        return [torch.ones(4, 2)] * self.batches

    def val_dataloader(self) -> Any:
        return [torch.ones(4, 2)]

    def test_dataloader(self) -> Any:
        return [torch.ones(4, 2)]

    def predict_dataloader(self) -> Any:
        return [torch.ones(4, 2)]


def parts(net: type = Net, extra: tuple[str, ...] = ()) -> tuple[list[str], Any, Any, Any]:
    """Return a list, and a module, data module and callback that note their hooks in it."""
    calls: list[str] = []
    hooks = [n for n in HOOKS if n not in CHECKPOINT and not n.endswith("_model_train")]
    module = recorded(net, "LM", [*(n for n in hooks if n not in TRANSFER), *STEPS, *OPTIMIZATION, *extra], calls)()
    data = recorded(Data, "DM", [*hooks, *LOADERS, *extra], calls)()
    callback = recorded(Callback, "CB", [*hooks, *extra], calls)()
    return calls, module, data, callback


def both(*names: str) -> list[str]:
    return [f"{owner}.{name}" for name in names for owner in ("CB", "LM")]


MOVE = [f"DM.{name}" for name in TRANSFER]
SETUP = ["LM.configure_callbacks", "DM.prepare_data", "LM.prepare_data", "DM.setup", "CB.setup", "LM.setup"]
TEARDOWN = ["DM.teardown", "CB.teardown", "LM.teardown"]


def evaluation(name: str) -> list[str]:
    return [
        f"LM.on_{name}_model_eval",
        *both(f"on_{name}_start", f"on_{name}_epoch_start"),
        *MOVE,
        *both(f"on_{name}_batch_start"),
        f"LM.{name}_step",
        *both(f"on_{name}_batch_end", f"on_{name}_epoch_end", f"on_{name}_end"),
    ]


BACKWARD = [*both("on_before_backward"), "LM.backward", *both("on_after_backward")]
ZERO = [*both("on_before_zero_grad"), "LM.optimizer_zero_grad"]
UPDATE = [*both("on_before_optimizer_step"), "LM.configure_gradient_clipping"]
START_FIT = [*SETUP, "LM.configure_model", "LM.configure_optimizers", *both("on_fit_start")]
END_FIT = [*both("on_train_end", "on_fit_end"), *TEARDOWN]


def test_fit_calls_everything_in_the_documented_order() -> None:
    """One epoch of two batches with a sanity check and a validation makes exactly the documented calls."""
    calls, module, data, callback = parts()
    Trainer(max_epochs=1, num_sanity_val_steps=1, callbacks=[callback], **QUIET).fit(module, datamodule=data)
    step = ["LM.optimizer_step", "LM.training_step", *ZERO, *BACKWARD, *UPDATE]
    assert calls == [
        *START_FIT,
        "DM.val_dataloader",
        "CB.on_sanity_check_start",
        *evaluation("validation"),
        "CB.on_sanity_check_end",
        "DM.train_dataloader",
        *both("on_train_start", "on_train_epoch_start"),
        *[*MOVE, *both("on_train_batch_start"), *step, *both("on_train_batch_end")],
        *[*MOVE, *both("on_train_batch_start"), *step, "LM.lr_scheduler_step", *both("on_train_batch_end")],
        "LM.on_validation_model_zero_grad",
        *evaluation("validation"),
        *both("on_train_epoch_end"),
        *END_FIT,
    ]


def test_the_plain_step_calls_its_hooks_in_the_same_order_as_the_closure_form() -> None:
    """Without an optimizer_step of the module's own the order of all other calls is the same."""

    def run(names: tuple[str, ...]) -> list[str]:
        calls: list[str] = []
        hooks = [n for n in HOOKS if n not in CHECKPOINT and not n.endswith("_model_train")]
        module = recorded(Net, "LM", [*hooks, *STEPS, *names], calls)()
        Trainer(max_epochs=1, **QUIET).fit(module, Data().train_dataloader(), Data().val_dataloader())
        return [c for c in calls if c != "LM.optimizer_step"]

    assert run(OPTIMIZATION[1:]) == run(OPTIMIZATION)


def test_accumulation_steps_only_at_the_end_of_a_window() -> None:
    """Gradients are cleared in a window's first batch; the step's hooks run in its last, a short one included."""
    calls, module, data, callback = parts()
    data.batches = 3
    trainer = Trainer(max_epochs=1, accumulate_grad_batches=2, limit_val_batches=0, callbacks=[callback], **QUIET)
    trainer.fit(module, datamodule=data)
    start = [*MOVE, *both("on_train_batch_start")]
    first = ["LM.training_step", *ZERO, *BACKWARD]
    last = ["LM.optimizer_step", "LM.training_step", *BACKWARD, *UPDATE]
    alone = ["LM.optimizer_step", *first, *UPDATE, "LM.lr_scheduler_step"]
    assert calls == [
        *START_FIT,
        "DM.train_dataloader",
        *both("on_train_start", "on_train_epoch_start"),
        *[*start, *first, *both("on_train_batch_end")],
        *[*start, *last, *both("on_train_batch_end")],
        *[*start, *alone, *both("on_train_batch_end")],
        *both("on_train_epoch_end"),
        *END_FIT,
    ]
    assert trainer.global_step == 2


def test_manual_optimization_clears_clips_and_schedules_nothing_by_itself() -> None:
    """Under manual optimization only the hooks around the user's own backward and step run."""
    calls, module, data, callback = parts(ByHand)
    data.batches = 1
    Trainer(max_epochs=1, limit_val_batches=0, callbacks=[callback], **QUIET).fit(module, datamodule=data)
    assert calls == [
        *START_FIT,
        "DM.train_dataloader",
        *both("on_train_start", "on_train_epoch_start"),
        *[*MOVE, *both("on_train_batch_start"), "LM.training_step", *BACKWARD, *both("on_before_optimizer_step")],
        *both("on_train_batch_end", "on_train_epoch_end"),
        *END_FIT,
    ]


@pytest.mark.parametrize(("stage", "name"), [("validate", "validation"), ("test", "test"), ("predict", "predict")])
def test_evaluation_entry_points(stage: str, name: str) -> None:
    """Validate, test and predict set up, run their loop once and tear down, with no hook of fit."""
    calls, module, data, callback = parts()
    trainer = Trainer(callbacks=[callback], max_epochs=1, **QUIET)
    getattr(trainer, stage)(module, datamodule=data)
    loader = {"validate": "val"}.get(stage, stage)
    expected = [*SETUP, "LM.configure_model", f"DM.{loader}_dataloader", *evaluation(name), *TEARDOWN]
    assert calls == expected


def test_an_exception_is_told_and_everything_is_torn_down() -> None:
    """Callbacks and data module hear of the error, then all tear down; no end hook runs."""

    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("broken")

    calls, module, data, callback = parts(Broken)
    trainer = Trainer(max_epochs=1, limit_val_batches=0, callbacks=[callback], **QUIET)
    with pytest.raises(RuntimeError, match=r"^broken$"):
        trainer.fit(module, datamodule=data)
    assert calls[calls.index("LM.training_step") + 1 :] == ["CB.on_exception", "DM.on_exception", *TEARDOWN]
    assert str(trainer.state.status) == "interrupted"


def test_an_error_in_a_clean_up_hook_does_not_hide_the_first() -> None:
    """What teardown raises after an error is warned of, and the first error is the one that is raised."""

    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("first")

        def teardown(self, stage: str) -> None:
            raise ValueError("second")

    trainer = Trainer(max_epochs=1, limit_val_batches=0, **QUIET)
    with pytest.raises(RuntimeError, match=r"^first$"), pytest.warns(UserWarning, match="ValueError: second"):
        trainer.fit(Broken(), [torch.ones(4, 2)])


def test_monitoring_callbacks_come_after_the_module_at_the_epochs_end() -> None:
    """on_train_epoch_end goes callbacks, module, then the callbacks that monitor, whatever their places."""
    calls: list[str] = []

    class Plain(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            calls.append("plain")

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            calls.append("plain start")

    class Monitor(Callback):
        monitoring = True

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            calls.append("monitor")

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            calls.append("monitor start")

    class Noting(Net):
        def on_train_epoch_end(self) -> None:
            calls.append("module")

    Trainer(max_epochs=1, limit_val_batches=0, callbacks=[Monitor(), Plain()], **QUIET).fit(
        Noting(), [torch.ones(4, 2)]
    )
    assert calls == ["monitor start", "plain start", "plain", "module", "monitor"]


def test_order_of_saving_and_loading(tmp_path: Path) -> None:
    """Saving asks states, then hooks; loading calls the module first, then data module and callbacks."""

    class State:
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {"kept": 1}

        def load_state_dict(self, state: Any) -> None:
            assert state == {"kept": 1}

    calls: list[str] = []
    module = recorded(Net, "LM", CHECKPOINT[:2], calls)()
    data = recorded(type("Data", (State, Data), {}), "DM", CHECKPOINT[2:], calls)()
    callback = recorded(type("Call", (State, Callback), {}), "CB", CHECKPOINT, calls)()
    trainer = Trainer(max_epochs=1, limit_val_batches=0, callbacks=[callback], **QUIET)
    trainer.fit(module, datamodule=data)
    calls.clear()
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert calls == ["CB.state_dict", "DM.state_dict", "CB.on_save_checkpoint", "LM.on_save_checkpoint"]
    calls.clear()
    trainer = Trainer(max_epochs=2, limit_val_batches=0, callbacks=[callback], **QUIET)
    trainer.fit(module, datamodule=data, ckpt_path=tmp_path / "x.ckpt")
    assert calls == ["LM.on_load_checkpoint", "DM.load_state_dict", "CB.on_load_checkpoint", "CB.load_state_dict"]


def test_callbacks_of_the_module_replace_those_of_the_same_type() -> None:
    """configure_callbacks adds to the trainer's callbacks, and takes the place of one of the same type."""

    class First(Callback):
        pass

    class Second(Callback):
        pass

    own = First(), Second()

    class Choosy(Net):
        def configure_callbacks(self) -> Any:
            return list(own)

    given = First(), Callback()
    trainer = Trainer(max_epochs=1, limit_val_batches=0, callbacks=list(given), **QUIET)
    trainer.fit(Choosy(), [torch.ones(4, 2)])
    assert trainer.callbacks == [given[1], *own]


def test_checkpoint_callbacks_are_last() -> None:
    """A callback that saves comes after all others, so that it sees what they did."""
    from lt_core.callbacks import ModelCheckpoint

    saving, other = ModelCheckpoint(), Callback()
    trainer = Trainer(max_epochs=1, callbacks=[saving, other], **{**QUIET, "enable_checkpointing": True})
    assert trainer.callbacks == [other, saving]


def test_older_and_shorter_signatures_are_called_as_they_are() -> None:
    """A hook that takes fewer arguments than we pass gets those that it names."""
    seen: dict[str, Any] = {}

    class Short(Net):
        def on_train_batch_start(self, batch_idx: int) -> None:  # type: ignore[override]
            seen["start"] = batch_idx

        def on_train_batch_end(self, outputs: Any) -> None:  # type: ignore[override]
            seen["end"] = outputs

        def transfer_batch_to_device(self, batch: Any, device: Any) -> Any:  # type: ignore[override]
            seen["device"] = device
            return batch

    class ShortCallback(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any) -> None:  # type: ignore[override]
            seen["callback"] = pl_module

    module = Short()
    Trainer(max_epochs=1, limit_val_batches=0, callbacks=[ShortCallback()], **QUIET).fit(module, [torch.ones(4, 2)])
    assert seen["start"] == 0
    assert set(seen["end"]) == {"loss"}
    assert seen["device"] == torch.device("cpu")
    assert seen["callback"] is module


def test_the_data_modules_transfer_hook_wins() -> None:
    """Where both define a transfer hook, the data module's is called and the module's is not, with a warning."""

    class Moving(Net):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            raise AssertionError("the data module's comes first")

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch * 2  # only here: used

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert batch.unique().item() == 6
            return super().training_step(batch, batch_idx)

    class MovingData(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch * 3

    with pytest.warns(UserWarning, match=r"Moving\.on_after_batch_transfer: MovingData defines this hook too"):
        Trainer(max_epochs=1, limit_val_batches=0, **QUIET).fit(Moving(), datamodule=MovingData())


def test_the_page_of_hooks_is_the_table() -> None:
    """docs/hooks.md ends with the table as `python -m lt_core.hooks` prints it."""
    page = Path(__file__).resolve().parents[3] / "docs" / "hooks.md"
    assert page.read_text(encoding="utf-8").endswith(table_markdown())


def test_every_hook_of_the_classes_is_in_the_table() -> None:
    """The table knows each hook of callbacks, modules and data modules by its name."""
    for base in (Callback, LightningModule, LightningDataModule):
        hooks = {n for n in dir(base) if n.startswith("on_") and n != "on_gpu"} | {"setup", "teardown"}
        assert hooks <= set(HOOKS)
