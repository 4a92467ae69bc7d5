"""Compare what a run shows with a small model of "the newest value wins", for random programs of log calls."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quiet import QUIET
from torch import Tensor, nn

from lt_core import Callback, LightningModule, Trainer

STEPS = ["on_train_batch_start", "training_step", "on_before_zero_grad", "on_before_backward", "on_after_backward"]
STEPS += ["on_before_optimizer_step", "on_train_batch_end", "validation_step", "on_validation_batch_end"]
EPOCHS = ["on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_validation_start"]
EPOCHS += ["on_validation_epoch_start", "on_validation_epoch_end"]
READS = ["on_train_epoch_start", "on_train_batch_start", "on_after_backward", "on_validation_start"]
READS += ["on_validation_batch_start", "on_validation_end", "on_train_batch_end", "on_train_epoch_end"]


@dataclass(frozen=True)
class Call:
    """One call of ``self.log`` in a program: where, under which name, in which way, and in which batches."""

    hook: str
    name: str
    step: bool
    epoch: bool
    every: int

    @property
    def training(self) -> bool:
        return "validation" not in self.hook


@dataclass
class Model:
    """What callback_metrics must show: the model keeps all values, and knows nothing of slots and clocks."""

    shown: dict[str, float] = field(default_factory=dict)
    training: dict[Call, list[tuple[float, int]]] = field(default_factory=dict)
    evaluation: dict[Call, list[tuple[float, int]]] = field(default_factory=dict)
    at_end: bool = False

    def log(self, call: Call, value: float, weight: int) -> None:
        if call.training and call.step:
            self.show(call.name, f"{call.name}_step" if call.epoch else call.name, value)
        if call.epoch:
            kept = self.training if call.training else self.evaluation
            kept[call] = [*kept.pop(call, []), (value, weight)]  # last in the dict: logged last
            if call.training and self.at_end:
                self.reduce({call: kept[call]})

    def show(self, plain: str, own: str, value: float) -> None:
        self.shown[plain] = self.shown[own] = value

    def reduce(self, kept: dict[Call, list[tuple[float, int]]]) -> None:
        for call, values in kept.items():
            mean = sum(v * w for v, w in values) / sum(w for _, w in values)
            self.show(call.name, f"{call.name}_epoch" if call.step else call.name, mean)

    def validation_begins(self) -> None:
        self.evaluation.clear()
        self.reduce(self.training)

    def validation_ends(self) -> None:
        self.reduce(self.evaluation)

    def epoch_ends(self) -> None:
        self.at_end = True
        self.reduce(self.training)

    def epoch_is_over(self) -> None:
        self.training.clear()
        self.at_end = False


def told(events: list[tuple[Any, ...]]) -> dict[str, float]:
    """Return what the model shows after some events."""
    model = Model()
    for what, *rest in events:
        getattr(model, what)(*rest)
    return model.shown


class Program(LightningModule):
    """Module that logs as a program says, and notes each call."""

    def __init__(self, calls: list[Call], events: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.layer, self.calls, self.events = nn.Linear(1, 1), calls, events

    def run(self, hook: str, batch: Tensor | None = None, index: int = 0) -> None:
        for number, call in enumerate(self.calls):
            moment = self.current_epoch + index
            if call.hook == hook and moment % call.every == 0:
                value = float(1 + number + 16 * index + 128 * self.global_step)
                self.log(call.name, value, on_step=call.step, on_epoch=call.epoch)
                if not self.trainer.sanity_checking:
                    self.events.append(("log", call, value, 1 if batch is None else len(batch)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.place = batch, batch_idx
        self.run("training_step", batch, batch_idx)
        return self.layer(batch).sum() * 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.run("on_train_batch_start", batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.run("on_train_batch_end", batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.run("validation_step", batch, batch_idx)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.run("on_validation_batch_end", batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


for _hook in ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"):
    setattr(Program, _hook, lambda self, *_, hook=_hook: self.run(hook, *self.place))
for _hook in EPOCHS:
    setattr(Program, _hook, lambda self, hook=_hook: self.run(hook))


class Watch(Callback):
    """Callback that notes the moments of a run, reads at some of them, and has a checkpoint written after a step."""

    def __init__(self, module: Program, reads: set[str], save: int, path: str) -> None:
        self.events, self.save, self.path = module.events, save, path
        self.saved: list[tuple[Any, ...]] = []
        for hook in READS:
            setattr(self, hook, lambda trainer, *_, hook=hook: self.at(hook, trainer, hook in reads))

    def at(self, hook: str, trainer: Trainer, reads: bool) -> None:
        if trainer.sanity_checking:
            return
        moments = {"on_validation_start": "validation_begins", "on_validation_end": "validation_ends"}
        moments["on_train_epoch_end"] = "epoch_ends"
        if hook in moments:
            self.events.append((moments[hook],))
        if hook == "on_train_batch_end" and trainer.global_step == self.save:
            trainer.request_checkpoint(self.path, saved=lambda: self.saved.extend(self.events))
        if reads:
            check(trainer, self.events, hook)


class Close(Callback):
    """Callback that reads after the module's end hook of the epoch."""

    monitoring = True

    def __init__(self, events: list[tuple[Any, ...]]) -> None:
        self.events = events

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        check(trainer, self.events, "the end of on_train_epoch_end")
        self.events.append(("epoch_is_over",))


def check(trainer: Trainer, events: list[tuple[Any, ...]], hook: str) -> None:
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found == pytest.approx(told(events), rel=1e-6), hook


def ways(hook: str) -> st.SearchStrategy[tuple[bool, bool]]:
    if hook in EPOCHS:
        return st.just((False, True))
    return st.sampled_from([(True, False), (False, True), (True, True)])


@st.composite
def programs(draw: st.DrawFn) -> list[Call]:
    places = st.tuples(st.sampled_from(STEPS + EPOCHS), st.sampled_from("ab"))
    drawn = draw(st.lists(places, min_size=1, max_size=6, unique=True))
    usual = [("training_step", "a"), ("validation_step", "a")] if draw(st.booleans()) else []  # one shared step
    calls = []
    for hook, name in dict.fromkeys([*usual, *drawn]):
        calls.append(Call(hook, name, *draw(ways(hook)), draw(st.integers(1, 3))))
    return calls


def fit(
    calls: list[Call], events: list[tuple[Any, ...]], reads: set[str], path: str, ckpt: str | None, **how: Any
) -> Any:
    """Run a program and check what is shown; return the callback that watched it."""
    module = Program(calls, events)
    watch = Watch(module, reads, how.pop("save"), path)
    sizes, validation = how.pop("sizes"), how.pop("validation")
    trainer = Trainer(**QUIET, callbacks=[watch, Close(events)], **how)
    trainer.fit(module, [torch.ones(n, 1) for n in sizes], [torch.ones(n, 1) for n in validation], ckpt_path=ckpt)
    check(trainer, events, "the end")
    return watch


@pytest.mark.filterwarnings("ignore:.*accumulate")
@pytest.mark.parametrize(
    "examples", [pytest.param(50, id="some"), pytest.param(500, id="many", marks=pytest.mark.slow)]
)
def test_the_newest_value_wins(examples: int) -> None:
    """Whatever is logged, read, validated and resumed, each name shows its newest value, at each moment."""

    @settings(deadline=None, max_examples=examples, database=None)
    @given(
        calls=programs(),
        sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
        validation=st.lists(st.integers(1, 3), min_size=1, max_size=2),
        epochs=st.integers(1, 3),
        how=st.fixed_dictionaries(
            {"check_val_every_n_epoch": st.integers(1, 2), "num_sanity_val_steps": st.integers(0, 1)}
        ),
        interval=st.integers(1, 4),
        reads=st.sets(st.sampled_from(READS)),
        save=st.integers(1, 6),
    )
    def holds(
        calls: list[Call], sizes: list[int], validation: list[int], epochs: int, how: Any, interval: int,
        reads: set[str], save: int,
    ) -> None:  # fmt: skip
        how |= {"val_check_interval": min(interval, len(sizes)), "max_epochs": epochs, "sizes": sizes}
        how |= {"validation": validation, "log_every_n_steps": 2}
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/a.ckpt"
            watch = fit(calls, [], reads, path, None, save=save, **how)
            if watch.saved:  # the file is read, and the run goes on from there
                fit(calls, list(watch.saved), reads, f"{folder}/b.ckpt", path, save=-1, **how)

    holds()
