"""Log from every place of a run, and find it where it was sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import logged
from quiet import QUIET, Idle
from torch import Tensor

from lt_core import Callback, LightningModule, Trainer
from lt_interface.errors import MisconfigurationException

FLAGS: dict[str, Any] = {**QUIET, "max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
DATA = [torch.full((n, 1), float(v)) for n, v in ((2, 1.0), (2, 2.0), (1, 6.0))]  # batch means 1, 2 and 6
MEAN, MEAN_AGAIN = 12 / 5, 3.0  # by samples and by batches


class Base(Idle):
    """Module whose steps log nothing."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        return None

    def test_step(self, batch: Tensor, batch_idx: int) -> Any:
        return None

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def logging_in(hook: str, value: Callable[..., Any] = lambda *_: 1.0, **flags: Any) -> Base:
    """Return a module that logs ``x`` in one of its hooks and then does what it does there."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.log("x", value(*args), **flags)
        return getattr(super(net, self), hook)(*args, **kwargs)

    net = type("Net", (Base,), {hook: method})
    made: Base = net()
    return made


def fit(module: LightningModule, **flags: Any) -> Trainer:
    trainer = Trainer(**{**FLAGS, **flags})
    trainer.fit(module, DATA, DATA)
    return trainer


# ---------------------------------------------------------------- 1: where, and by which defaults

STEP_HOOKS = ["training_step", "backward", "on_before_zero_grad", "on_before_backward", "on_after_backward"]
STEP_HOOKS += ["on_before_optimizer_step", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"]
STEP_HOOKS += ["on_train_batch_start", "on_train_batch_end"]


@pytest.mark.parametrize("hook", STEP_HOOKS)
def test_hooks_of_a_training_batch(hook: str) -> None:
    """All that runs within a training batch logs by step; with on_epoch=True the epoch's mean too."""
    trainer = fit(logging_in(hook))
    assert logged(trainer)["x"] == [1.0] * 6
    assert logged(trainer).steps["x"] == [0, 1, 2, 3, 4, 5]
    both = logged(fit(logging_in(hook, on_epoch=True, batch_size=1)))
    assert set(both) == {"x_step", "x_epoch", "epoch"}
    assert (both["x_step"], both["x_epoch"]) == ([1.0] * 6, [1.0] * 2)


@pytest.mark.parametrize(
    "hook", ["{}_step", "on_{}_batch_start", "on_{}_batch_end", "on_{}_start", "on_{}_epoch_start", "on_{}_epoch_end"]
)
@pytest.mark.parametrize("stage", ["validation", "test"])
def test_hooks_of_an_evaluation(stage: str, hook: str) -> None:
    """All that runs within an evaluation logs the epoch's value; steps only where there are any and if asked."""
    name = hook.format(stage)
    trainer = Trainer(**FLAGS)
    run = trainer.validate if stage == "validation" else trainer.test
    assert run(logging_in(name), DATA, verbose=False) == [{"x": 1.0}]
    assert logged(trainer)["x"] == [1.0]
    if "batch" in name or name.endswith("_step"):
        assert run(logging_in(name, on_step=True), DATA, verbose=False) == [{"x_epoch": 1.0}]
        assert logged(trainer)["x_step"] == [1.0] * 3
    else:
        with pytest.raises(MisconfigurationException, match=r"self\.log\('x'\): .* no steps .*on_step=True"):
            run(logging_in(name, on_step=True), DATA, verbose=False)


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_start", "on_train_epoch_end"])
def test_hooks_of_a_training_epoch(hook: str) -> None:
    """Hooks around the batches log for the epoch, each call counted alike, and refuse on_step=True."""
    history = logged(fit(logging_in(hook)))
    assert history["x"] == [1.0] * (1 if hook == "on_train_start" else 2)
    assert history.steps["x"] == [2, 5][: len(history["x"])]
    with pytest.raises(MisconfigurationException, match="no steps"):
        fit(logging_in(hook, on_step=True))


NOWHERE = ["prepare_data", "setup", "configure_model", "configure_optimizers", "configure_callbacks", "on_fit_start"]
NOWHERE += ["on_train_end", "on_fit_end", "on_validation_end", "on_validation_model_eval"]
NOWHERE += ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "lr_scheduler_step"]
NOWHERE += ["on_save_checkpoint", "on_validation_model_zero_grad", "on_validation_model_train"]


@pytest.mark.parametrize("hook", NOWHERE)
def test_places_without_meaning(hook: str, tmp_path: Path) -> None:
    """Everywhere else self.log is an error that names the place."""
    with pytest.raises(MisconfigurationException, match=rf"You can't self\.log\(\) inside `{hook}`"):
        fit(logging_in(hook), enable_checkpointing=hook == "on_save_checkpoint", default_root_dir=tmp_path)


@pytest.mark.filterwarnings("ignore:teardown, after an error")
def test_teardown_does_not_log() -> None:
    """Nor does teardown, which runs once more after that error."""
    with pytest.raises(MisconfigurationException, match=r"inside `teardown`"):
        fit(logging_in("teardown"))


def test_saving_after_a_run() -> None:
    """A checkpoint that is saved when no run is left calls the hooks all the same."""
    import tempfile

    seen: list[int] = []

    class Net(Base):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            seen.append(checkpoint["global_step"])

    trainer = fit(Net())
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_checkpoint(f"{folder}/a.ckpt")
    assert seen == [6]


@pytest.mark.parametrize("hook", ["train_dataloader", "val_dataloader"])
def test_loader_hooks_do_not_log(hook: str) -> None:
    """A loader's hook is such a place, too."""

    class Net(Base):
        def train_dataloader(self) -> Any:
            return self.given("train_dataloader")

        def val_dataloader(self) -> Any:
            return self.given("val_dataloader")

        def given(self, name: str) -> Any:
            if name == hook:
                self.log("x", 1.0)
            return DATA

    with pytest.raises(MisconfigurationException, match=f"inside `{hook}`"):
        Trainer(**FLAGS).fit(Net())


@pytest.mark.parametrize(
    "hook", ["predict_step", "on_predict_start", "on_predict_batch_start", "on_predict_batch_end", "on_predict_end"]
)
def test_predicting_does_not_log(hook: str) -> None:
    """While predicting nothing is logged."""
    with pytest.raises(MisconfigurationException, match=rf"can't self\.log\(\) inside `{hook}`"):
        Trainer(**FLAGS).predict(logging_in(hook), DATA)


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_sanity_check_end"])
def test_callbacks_log_through_the_module(hook: str) -> None:
    """A callback logs with pl_module.log, by the rules of the hook that it is in."""

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            pl_module.log("seen", batch_idx)

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("ended", 3)

    history = logged(fit(Base(), callbacks=[Watch()]))
    assert (history["seen"], history["ended"]) == ([0.0, 1.0, 2.0] * 2, [3.0] * 2)

    class Wrong(Callback):
        pass

    setattr(Wrong, hook, lambda self, trainer, pl_module: pl_module.log("x", 1.0))
    with pytest.raises(MisconfigurationException, match=f"inside `{hook}`"):
        fit(Base(), callbacks=[Wrong()], num_sanity_val_steps=1)


def test_without_a_trainer() -> None:
    """A module that no trainer runs warns and drops what it is given, before and after a run too."""
    module = Base()
    with pytest.warns(UserWarning, match=r"self\.log\('x'\): no trainer is running"):
        module.log("x", 1.0)
    fit(module)
    with pytest.warns(UserWarning, match="no trainer is running"):
        module.log("x", 1.0)
    with pytest.warns(UserWarning, match="no trainer is running"):
        module.log_dict({"x": 1.0, "y": 2.0})


def test_barebones_drops_with_one_warning() -> None:
    """With barebones=True any call is dropped, in any hook, and one warning says so."""
    trainer = Trainer(barebones=True, accelerator="cpu", max_epochs=2)
    with pytest.warns(UserWarning, match="barebones") as warned:
        trainer.fit(logging_in("training_step"), DATA, DATA)
    assert sum("self.log is switched off" in str(w.message) for w in warned) == 1
    assert trainer.callback_metrics == {}
    assert logged(trainer) == {}


def test_submodules_log_for_the_whole() -> None:
    """A LightningModule that is a part of the running one logs as that does."""

    class Outer(Base):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Base()

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.inner.log("inner", 2.0)
            return super().training_step(batch, batch_idx)

    assert logged(fit(Outer()))["inner"] == [2.0] * 6


# ---------------------------------------------------------------- 2 to 4: flags, values, keys


@pytest.mark.parametrize("hook", ["training_step", "validation_step"])
def test_flags_that_keep_nothing(hook: str) -> None:
    """Neither by step nor by epoch is refused as not useful."""
    with pytest.raises(MisconfigurationException, match="not useful"):
        fit(logging_in(hook, on_step=False, on_epoch=False))


def test_neither_logger_nor_bar() -> None:
    """A value for neither logger nor bar is there for callbacks."""
    trainer = fit(logging_in("training_step", logger=False, on_epoch=True))
    assert logged(trainer) == {}
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == {"x": 1.0, "x_step": 1.0, "x_epoch": 1.0}


@pytest.mark.parametrize(
    "value", [torch.zeros(2), "1.0", {"a": 1.0}, None, [1.0], object()], ids=lambda v: type(v).__name__
)
def test_values_that_are_no_number(value: Any) -> None:
    """A value must be one number; the error names the key and says what to write."""
    with pytest.raises(ValueError, match=r"self\.log\('x'\): the value must be one number"):
        fit(logging_in("training_step", lambda *_: value))


@pytest.mark.parametrize("value", [2, 2.0, torch.tensor([2.0]), torch.tensor(2), torch.tensor(2.0).half()])
def test_values_are_delivered_as_floats(value: Any) -> None:
    """Numbers of any kind arrive as floats, and for those who read them from the trainer as 0-dim float32 tensors."""
    trainer = fit(logging_in("training_step", lambda *_: value))
    assert logged(trainer)["x"] == [2.0] * 6
    for metric in (trainer.logged_metrics["x"], trainer.callback_metrics["x"]):
        assert (metric.shape, metric.dtype, float(metric)) == ((), torch.float32, 2.0)


def test_names_are_strings() -> None:
    """A name of another type is a TypeError."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log(batch_idx, 1.0)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=r"the name must be a string\. Got 0 of type int"):
        fit(Net())


def test_one_name_with_two_sets_of_arguments() -> None:
    """Within a hook a name keeps its arguments; another hook may use it in its own way."""

    class Net(Base):
        twice = True

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", 1.0)
            if self.twice:
                self.log("x", 1.0, prog_bar=True)
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.log("x", 5.0, prog_bar=True)

    with pytest.raises(MisconfigurationException, match="prog_bar=True after False"):
        fit(Net())
    module = Net()
    module.twice = False
    assert logged(fit(module))["x"] == [5.0] * 6


def test_one_name_twice_in_a_step() -> None:
    """The step's value is the last, and the epoch's mean has both."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", 1.0, on_epoch=True)
            self.log("x", 4.0, on_epoch=True)
            return super().training_step(batch, batch_idx)

    history = logged(fit(Net()))
    assert (history["x_step"], history["x_epoch"]) == ([4.0] * 6, [2.5] * 2)


# ---------------------------------------------------------------- 5 to 8: names, reductions, weights


def test_names_by_step_and_epoch() -> None:
    """Two ways of one name are kept apart; callbacks find the plain name too, after the epoch its value."""
    seen: list[dict[str, float]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    module = logging_in("training_step", lambda batch, _: batch.mean(), on_epoch=True, prog_bar=True)
    trainer = fit(module, callbacks=[Watch()], max_epochs=1)
    assert seen[:3] == [{"x": v, "x_step": v} for v in (1.0, 2.0, 6.0)]
    assert seen[3] == pytest.approx({"x": MEAN, "x_step": 6.0, "x_epoch": MEAN})
    assert trainer.progress_bar_metrics == {"x_step": 6.0, "x_epoch": MEAN}
    assert logged(trainer)["x_epoch"] == [MEAN]


@pytest.mark.parametrize(
    ("op", "expected"),
    [("mean", MEAN), (torch.mean, MEAN), ("sum", 9.0), (torch.sum, 9.0), ("min", 1.0), (min, 1.0), ("max", 6.0)],
)
def test_reductions(op: Any, expected: float) -> None:
    """An epoch's value is the mean by samples, the sum, the least or the greatest."""
    module = logging_in("validation_step", lambda batch, _: batch.mean(), reduce_fx=op)
    assert Trainer(**FLAGS).validate(module, DATA, verbose=False) == [{"x": expected}]


def test_other_reductions_are_refused() -> None:
    """Any other function is refused, with what to use instead."""
    with pytest.raises(MisconfigurationException, match=r"reduce_fx must be mean, sum, min or max\. Got median"):
        fit(logging_in("training_step", on_epoch=True, reduce_fx=torch.median))


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "validation_step", "on_validation_batch_end"])
def test_means_know_the_batch_in_each_hook(hook: str) -> None:
    """The batch weighs the mean in every hook that has it."""
    module = logging_in(hook, lambda *args: next(a for a in args if isinstance(a, Tensor)).mean())
    assert Trainer(**FLAGS).validate(module, DATA, verbose=False) == [{"x": MEAN}]


def test_batch_size_given() -> None:
    """An explicit batch_size is the weight."""
    module = logging_in("validation_step", lambda batch, _: batch.mean(), batch_size=1)
    assert Trainer(**FLAGS).validate(module, DATA, verbose=False) == [{"x": MEAN_AGAIN}]


def test_batch_without_a_size() -> None:
    """A mean over batches that hold no tensor asks for batch_size; values of steps do not need it."""
    batches: Any = [{"name": "a"}, {"name": "b"}]
    with pytest.raises(MisconfigurationException, match=r"Got a batch of dict. Pass batch_size="):
        Trainer(**FLAGS).validate(logging_in("validation_step"), batches, verbose=False)
    step = logging_in("validation_step", on_step=True, on_epoch=False)
    trainer = Trainer(**FLAGS)
    trainer.validate(step, batches, verbose=False)
    assert logged(trainer)["x"] == [1.0, 1.0]


def test_batch_of_two_sizes() -> None:
    """Where tensors differ in length one warning names the one that was taken."""
    batches = [(torch.zeros(3, 1), torch.zeros(2))] * 2
    with pytest.warns(UserWarning, match="the first one's, 3, is taken") as warned:
        Trainer(**FLAGS).validate(logging_in("validation_step"), batches, verbose=False)
    assert len([w for w in warned if "first dimension" in str(w.message)]) == 1


def test_log_dict() -> None:
    """A dict of values goes under its names by the same rules; a dict within is refused."""

    class Net(Base):
        values: dict[str, Any] = {"a": 1.0, "b": torch.tensor(2.0)}

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log_dict(self.values, on_step=True, on_epoch=True, batch_size=1)

    (found,) = Trainer(**FLAGS).validate(Net(), DATA, verbose=False)
    assert found == {"a_epoch": 1.0, "b_epoch": 2.0}
    module = Net()
    module.values = {"a": {"b": 1.0}}
    with pytest.raises(ValueError, match=r"'a'.*without nested dicts"):
        Trainer(**FLAGS).validate(module, DATA, verbose=False)
