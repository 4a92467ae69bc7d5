"""Log values, weights and metric objects of every reasonable form, from hooks and callbacks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from quiet import QUIET, Idle
from torch import Tensor

from lt_core import Callback, LightningModule, Trainer
from lt_interface.errors import MisconfigurationException

FLAGS: dict[str, Any] = {**QUIET, "max_epochs": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
DATA = [torch.full((n, 1), float(v)) for n, v in ((2, 1.0), (2, 2.0), (1, 6.0))]


class Base(Idle):
    """Module that logs nothing by itself."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass


def fit(module: LightningModule, *callbacks: Callback, **flags: Any) -> Trainer:
    trainer = Trainer(**{**FLAGS, "callbacks": list(callbacks), **flags})
    trainer.fit(module, DATA, DATA)
    return trainer


def shown(trainer: Trainer, *names: str) -> list[float]:
    return [float(trainer.callback_metrics[name]) for name in names]


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("stage", ["training", "validation"])
@pytest.mark.parametrize("form", [bool, torch.tensor, np.bool_, lambda v: torch.tensor([v])])
def test_flags_count_as_zero_and_one(stage: str, form: Any) -> None:
    """A true or false value is logged as 1 or 0, and its mean is how often it was true."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            if stage == "training":
                self.log("x", form(batch_idx == 0), on_epoch=True, on_step=True, batch_size=1)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            if stage == "validation":
                self.log_dict({"x": form(batch_idx == 0)}, on_epoch=True, on_step=True, batch_size=1)

    assert shown(fit(Net()), "x", "x_epoch") == pytest.approx([1 / 3] * 2)


@pytest.mark.parametrize("value", [np.float32(2), np.float64(2), np.int64(2), np.array(2.0), torch.tensor([[2]])])
def test_numbers_of_other_libraries(value: Any) -> None:
    """A scalar of another library counts as the number that it is."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", value)
            return super().training_step(batch, batch_idx)

    assert shown(fit(Net()), "x") == [2.0]


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end", "on_train_start"])
def test_a_tensor_is_logged_first_in_a_hook_of_an_epoch(hook: str) -> None:
    """Around the batches a 0-dim tensor is taken, too, and each call counts as one, whatever the batches' sizes."""

    class Net(Base):
        pass

    def log(self: Any) -> None:
        for value in (1.0, 4.0):
            self.log("x", torch.tensor(value, requires_grad=True))

    setattr(Net, hook, log)
    assert shown(fit(Net()), "x") == [2.5]


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_epoch_start", "on_validation_epoch_end"])
def test_a_tensor_is_logged_first_in_a_hook_of_a_validation(hook: str) -> None:
    """The same holds around a validation's batches."""

    class Net(Base):
        pass

    def log(self: Any) -> None:
        for value in (1.0, 4.0):
            self.log("x", torch.tensor(value))

    setattr(Net, hook, log)
    assert shown(fit(Net()), "x") == [2.5]


@pytest.mark.parametrize("again", [False, True])
def test_a_tensor_without_its_memory_is_refused(again: bool) -> None:
    """A tensor whose memory was freed is an error that names the metric, not a number out of nowhere."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            value = torch.tensor(3.0) * 2
            if batch_idx or not again:
                value.untyped_storage().resize_(0)
            self.log("x", value)
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match=r"self\.log\('x'\).*a tensor that cannot be read"):
        fit(Net())


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "form", [int, torch.tensor, lambda n: torch.tensor([n]), np.int64, float, lambda n: torch.tensor(float(n))]
)
def test_batch_sizes_of_every_form(form: Any) -> None:
    """A batch size may be a number or a tensor of one, whether the value lies here or not, in log and log_dict."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", batch.mean(), on_epoch=True, batch_size=form(batch_idx + 1))
            self.log_dict({"y": float(batch.mean())}, on_epoch=True, batch_size=form(batch_idx + 1))
            self.log("s", 1.0, on_step=False, on_epoch=True, reduce_fx="sum", batch_size=form(batch_idx + 1))
            return super().training_step(batch, batch_idx)

    trainer = fit(Net())
    assert shown(trainer, "x_epoch", "y_epoch", "s") == pytest.approx([23 / 6, 23 / 6, 3.0])
    assert all(type(v) is float for v in trainer._results.logged.values())


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (torch.tensor(-2), ValueError),
                                             (float("nan"), ValueError), (True, TypeError), ("2", TypeError),
                                             (torch.ones(2), TypeError)])  # fmt: skip
@pytest.mark.parametrize("first", [0, 1])
def test_batch_sizes_that_are_none(size: Any, error: type[Exception], first: int) -> None:
    """What is no positive number is refused at the first call and at each later one, and changes nothing."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", 1.0, on_epoch=True, batch_size=size if batch_idx == first else 2)
            return super().training_step(batch, batch_idx)

    with pytest.raises(error, match=r"self\.log\('x', batch_size=\.\.\.\): the batch size must be"):
        fit(Net())


# ---------------------------------------------------------------- metric objects without a value


class Nothing(torchmetrics.Metric):
    """Metric that has no value until it saw three batches."""

    full_state_update = False
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", torch.tensor(0))

    def update(self, batch: Tensor) -> None:
        self.seen += 1

    def compute(self) -> Any:
        return self.seen if self.seen >= 3 else None


@pytest.mark.parametrize("ways", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("data", "value"), [(2, None), (3, 3.0)])
def test_objects_that_compute_none_are_left_out(ways: tuple[bool, bool], data: int, value: float | None) -> None:
    """A metric object without a value is nowhere to be found, and gives one as soon as it has one."""

    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Nothing(), Nothing()

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.a.update(batch)
            self.log("a", self.a, on_step=ways[0], on_epoch=ways[1], prog_bar=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.b.update(batch)
            self.log("b", self.b, on_step=False, on_epoch=True, prog_bar=True)

    trainer = fit(Net(), limit_train_batches=data, limit_val_batches=data)
    found = {name: float(v) for name, v in trainer.callback_metrics.items()}
    assert (found.get("a"), found.get("b")) == (value, value)
    assert {"b"} <= set(trainer.logged_metrics) if value else trainer.logged_metrics == {}
    assert bool(trainer.progress_bar_metrics) == bool(value)


# ---------------------------------------------------------------- the hook is the scope


STEP_HOOKS = ["on_train_batch_start", "on_before_zero_grad", "optimizer_zero_grad", "on_before_backward", "backward"]
STEP_HOOKS += ["on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping", "on_train_batch_end"]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("hook", [*STEP_HOOKS, "optimizer_step"])
def test_one_name_in_two_hooks_of_a_step(hook: str, accumulate: int) -> None:
    """Each hook may log a name in its own way, its mean is its own, and the later hook's value is the newer one."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", 1.0, on_epoch=True)
            self.log("y", 2.0)
            return super().training_step(batch, batch_idx)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = getattr(super(Net, self), hook)(*args, **kwargs)
        self.log("x", 5.0, on_epoch=True, reduce_fx="max", prog_bar=True)
        self.log("y", 7.0, on_step=True, on_epoch=True, batch_size=1)
        return found

    setattr(Net, hook, method)
    trainer = fit(Net(), accumulate_grad_batches=accumulate)
    later = hook != "on_train_batch_start"
    assert shown(trainer, "x_step", "x_epoch", "y_step", "y_epoch") == [*[5.0 if later else 1.0] * 2, 7.0, 7.0]


def test_a_handler_on_a_hook_within_the_step_has_its_own_scope() -> None:
    """Functions that are attached to a hook log in it, too; and a manual step's hooks are apart as well."""

    class Net(Base):
        automatic_optimization = False  # type: ignore[assignment]

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            self.log("x", 1.0, on_epoch=True)
            self.manual_backward(self.layer(batch).sum())
            optimizer.step()
            self.log("x", 3.0, on_epoch=True)

    trainer = Trainer(**FLAGS)
    for event in ("after_backward", "before_optimizer_step"):
        trainer.on(event)(lambda trainer, pl_module: pl_module.log("x", 5.0, on_epoch=True, reduce_fx="sum"))
    trainer.fit(Net(), DATA, DATA)
    assert shown(trainer, "x_step", "x_epoch") == [3.0, 2.0]


def test_hooks_at_the_same_moment_are_two_scopes() -> None:
    """The hooks that open a training, an epoch and a validation may use one name in their own ways."""

    class Net(Base):
        def on_train_start(self) -> None:
            self.log("x", 1.0)

        def on_train_epoch_start(self) -> None:
            self.log("x", 2.0, prog_bar=True)

        def on_train_epoch_end(self) -> None:
            self.log("x", 3.0, reduce_fx="max")

        def on_validation_start(self) -> None:
            self.log("v", 1.0)

        def on_validation_epoch_start(self) -> None:
            self.log("v", 2.0, prog_bar=True)

    trainer = fit(Net())
    assert shown(trainer, "x", "v") == [3.0, 2.0]
    assert (float(trainer.logged_metrics["x"]), trainer.progress_bar_metrics) == (3.0, {"x": 2.0, "v": 2.0})


# ---------------------------------------------------------------- callbacks


class Logs(Callback):
    """Callback that logs by itself."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("a", batch.mean(), on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"b": batch_idx, "c": torch.tensor(3.0)}, False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.log("end", 4.0)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("val", batch.mean())


def test_callbacks_log_by_themselves() -> None:
    """Callback.log and log_dict do in each hook what the module's do, with all arguments, by position too."""
    trainer = fit(Base(), Logs())
    assert shown(trainer, "a", "a_step", "b", "c", "end", "val") == pytest.approx([2.4, 6.0, 2.0, 3.0, 4.0, 2.4])
    assert set(trainer.progress_bar_metrics) == {"a_step", "a_epoch"}
    assert [type(c) for c in (copy.deepcopy(Logs()), pickle.loads(pickle.dumps(Logs())))] == [Logs] * 2


def test_callbacks_keep_the_rules_of_a_hook() -> None:
    """Where the module may not log, a callback may not; outside of a run one warning says that nothing is logged."""

    class Early(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.log("x", 1.0)

    with pytest.raises(MisconfigurationException, match="inside `on_fit_start`"):
        fit(Base(), Early())
    callback = Logs()
    fit(Base(), callback)
    with pytest.warns(UserWarning, match=r"Logs\.log\('x'\): no trainer is running"):
        callback.log("x", 1.0)
    with pytest.warns(UserWarning, match=r"Logs\.log_dict: no trainer is running"):
        callback.log_dict({"x": 1.0})


def test_callbacks_log_into_the_run_that_calls_them() -> None:
    """Where a hook runs another trainer, callbacks of both log into their own, before, inside and after."""

    class Outer(Callback):
        inner: Trainer

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.log("before", 1.0)
            if batch_idx == 0:
                self.inner = fit(Base(), Logs())
            self.log("after", 1.0)

    outer = Outer()
    trainer = fit(Base(), outer)
    assert set(trainer.callback_metrics) == {"before", "after"}
    assert set(outer.inner.callback_metrics) == {"a", "a_step", "a_epoch", "b", "c", "end", "val"}


def test_a_callback_may_have_a_log_of_its_own() -> None:
    """An attribute or a method of that name is the callback's own affair."""

    class Own(Callback):
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.log = self.lines.append  # type: ignore[method-assign, assignment]

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.log("done")  # type: ignore[call-arg]

    own = Own()
    fit(Base(), own)
    assert own.lines == ["done"]


# ---------------------------------------------------------------- what the trainer shows


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1.5, torch.float32), (torch.tensor(1.5), torch.float32), (torch.tensor(2), torch.float32),
     (torch.tensor(1.5).half(), torch.float32), (torch.tensor(1.5).bfloat16(), torch.float32),
     (torch.tensor(1.5, dtype=torch.float64), torch.float64), (True, torch.float32)],
)  # fmt: skip
def test_metrics_are_shown_in_the_formats_of_their_values(value: Any, kind: torch.dtype) -> None:
    """callback_metrics and logged_metrics hold 0-dim float32 tensors, and float64 where such a tensor was logged."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", value, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("v", value, on_step=True, on_epoch=True)

    trainer = fit(Net())
    for found in (trainer.callback_metrics, trainer.logged_metrics):
        assert {(v.shape, v.dtype) for v in found.values()} == {(torch.Size([]), kind)}
    assert set(trainer.callback_metrics) == {"x", "x_step", "x_epoch", "v", "v_epoch"}
    assert set(trainer.logged_metrics) == {"x_step", "x_epoch", "v_step", "v_epoch"}


def test_the_epoch_is_shown_where_it_was_logged() -> None:
    """logged_metrics hold no epoch, unless the module logs a value of that name."""

    class Net(Base):
        def on_train_epoch_end(self) -> None:
            self.log("epoch", 7.0)

    assert fit(Net()).logged_metrics == {"epoch": torch.tensor(7.0)}


# ---------------------------------------------------------------- when steps are logged


@pytest.mark.parametrize(
    ("flags", "axis"),
    [({}, [2, 5]), ({"log_every_n_steps": None}, [2, 5]), ({"log_every_n_steps": 50}, []),
     ({"log_every_n_steps": 0}, []), ({"log_every_n_steps": 4}, [3]), ({"limit_train_batches": 30}, [29, 49])],
)  # fmt: skip
def test_the_last_step_of_an_epoch_without_a_logged_one(flags: dict[str, Any], axis: list[int]) -> None:
    """Without an interval every 50th step is logged, and the last one of an epoch that has no such step."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", 1.0)
            return super().training_step(batch, batch_idx)

    data = DATA * 10 if "limit_train_batches" in flags else DATA
    trainer = Trainer(**{k: v for k, v in FLAGS.items() if k != "log_every_n_steps"} | {"max_epochs": 2} | flags)
    trainer.fit(Net(), data, DATA)
    assert [record.step for record in trainer._journal.read()] == axis


@pytest.mark.parametrize("stream", [False, True])
def test_the_last_step_of_a_stream_and_of_a_stop(stream: bool) -> None:
    """It is logged once where nobody knew that it was the last one; max_steps inside an epoch counts as its end."""

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", float(batch_idx))
            return super().training_step(batch, batch_idx)

    flags = {k: v for k, v in FLAGS.items() if k != "log_every_n_steps"}
    trainer = Trainer(**flags | {"max_epochs": 3, "max_steps": 8})
    loader = torch.utils.data.DataLoader(_Stream(), batch_size=1) if stream else DATA
    trainer.fit(Net(), loader, DATA)
    assert [record.step for record in trainer._journal.read()] == [2, 5, 7]


class _Stream(torch.utils.data.IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.ones(3, 1))


def test_logged_metrics_are_those_of_now() -> None:
    """In each hook logged_metrics has the newest values for loggers, due for them or not: a history may read them."""
    seen: dict[str, dict[str, float]] = {}

    def look(trainer: Trainer, hook: str) -> None:
        seen[hook] = {name: float(value) for name, value in trainer.logged_metrics.items()}

    class Looks(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            look(trainer, "batch")

        def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            look(trainer, "validation")

        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            look(trainer, "epoch")

    class Net(Base):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("x", batch.mean(), on_epoch=True)
            self.log("hidden", 1.0, logger=False)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("v", batch.mean())

    fit(Net(), Looks(), log_every_n_steps=50)
    mean = pytest.approx(12 / 5)
    assert seen["batch"] == {"x_step": 6.0}
    assert seen["validation"]["v"] == mean
    assert seen["epoch"] == {"x_step": 6.0, "x_epoch": mean, "v": mean}
