"""Compare the training loop with a model of it that counts one by one, for loaders of any kind and any length."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lt_core import LightningModule, Trainer

EPOCHS = 3


@dataclass
class Case:
    """One training.

    Attributes:
        kind: The kind of its loader.
        real: How many batches the loader gives in each epoch.
        said: How many it says; None for a loader without a length.
        interval: The trainer's ``val_check_interval``.
        every: The trainer's ``check_val_every_n_epoch``.
        window: How many batches an accumulation window has.
        limit: The trainer's ``limit_train_batches``.
        steps: After how many optimizer steps the first fit ends; -1 for no limit.
        stop: At which batch of the first fit, counted from 1, ``should_stop`` is set; 0 for none.
        saves: After how many batches a checkpoint is asked for each time.
        again: Whether the same trainer goes on, and not a new one with a checkpoint.
    """

    kind: str
    real: list[int]
    said: list[int] | None
    interval: int | float
    every: int | None
    window: int
    limit: int | None
    steps: int
    stop: int
    saves: int
    again: bool


class Sized:
    """Numbers of batches by epoch; the epoch is given by the trainer."""

    def __init__(self, case: Case) -> None:
        self.case, self.epoch = case, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def batches(self) -> int:
        return self.case.real[min(self.epoch, EPOCHS - 1)]

    def length(self) -> int:
        if self.case.said is None:
            raise TypeError("no length")
        return self.case.said[min(self.epoch, EPOCHS - 1)]

    def value(self, index: int) -> Tensor:
        return torch.tensor([1.0 + 0.1 * index + self.epoch])


class Samples(Dataset[Tensor]):
    def __init__(self, sized: Sized) -> None:
        self.sized = sized

    def __len__(self) -> int:
        return 99

    def __getitem__(self, index: int) -> Tensor:
        return self.sized.value(index)


class Sampler(Sized):
    """Batch sampler."""

    def __len__(self) -> int:
        return self.length()

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[i] for i in range(self.batches())])


class Lengthless(Sampler):
    __len__ = None  # type: ignore[assignment]


class Stream(Sized, IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.value(i) for i in range(self.batches())])


class SizedStream(Stream):
    def __len__(self) -> int:
        return self.length()


class Batches(Sized):
    """Iterable of batches."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.value(i).unsqueeze(0) for i in range(self.batches())])


class SizedBatches(Batches):
    def __len__(self) -> int:
        return self.length()


def loader(case: Case) -> Any:
    """Return a training loader of the case's kind."""
    known = case.said is not None
    if case.kind == "list":
        return [Sized(case).value(i).unsqueeze(0) for i in range(case.real[0])]
    if case.kind == "sampler":
        sampler: Any = Sampler(case) if known else Lengthless(case)
        return DataLoader(Samples(sampler), batch_sampler=sampler)
    if case.kind == "stream":
        return DataLoader(SizedStream(case) if known else Stream(case), batch_size=1)
    if case.kind == "several":  # beside a shorter one, which begins again
        return [SizedBatches(case) if known else Batches(case), [torch.ones(1, 1)]]
    return SizedBatches(case) if known else Batches(case)


class Net(LightningModule):
    """Module that writes down what happens, and what each optimizer step was made of."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.layer = nn.Linear(1, 1)
        nn.init.ones_(self.layer.weight)
        self.events: list[tuple[Any, ...]] = []
        self.count = 0
        self.stops = case.stop

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.count += 1
        self.events.append(("batch", self.current_epoch, batch_idx))
        if self.count == self.stops:
            self.trainer.should_stop = True
        if self.count % self.case.saves == 0:
            self.trainer.request_checkpoint(Path(self.trainer.default_root_dir) / "save.ckpt", saved=self.saved)
        batch = batch[0] if isinstance(batch, list) else batch
        loss: Tensor = self.layer(batch).pow(2).mean()
        return loss

    def saved(self) -> None:
        self.events.append(("save", self.global_step))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append(("step",))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append(("validation", self.count))

    def on_train_epoch_end(self) -> None:
        self.events.append(("end", self.current_epoch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


@dataclass
class Model:
    """Model of the loop: what must happen, counted one by one, and the weights of a loop written by hand."""

    case: Case
    epoch: int = 0
    batch: int = 0
    total: int = 0
    steps: int = 0
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layer = nn.Linear(1, 1)
        self.lr = 0.01

    def weigh(self, net: Net) -> None:
        self.layer.load_state_dict(net.layer.state_dict())

    def run(self, max_steps: int, stop: int) -> None:
        """Count a fit."""
        case, asked, stopped = self.case, 0, False
        while self.epoch < EPOCHS and not stopped and self.steps != max_steps:
            size = min(case.real[self.epoch], case.limit or math.inf)
            said = min(math.inf if case.said is None else case.said[self.epoch], case.limit or math.inf)
            opened, losses = self.batch, [Tensor()] * 0
            while self.batch < size:
                self.events.append(("batch", self.epoch, self.batch))
                item = Sized(case)
                item.epoch = self.epoch if case.kind != "list" else 0
                losses.append(self.layer(item.value(self.batch).unsqueeze(0)).pow(2).mean())
                self.batch += 1
                self.total += 1
                stopped = stopped or self.total == stop
                asked += self.total % case.saves == 0
                last = self.batch == size
                if self.batch % case.window and not last:
                    continue
                self.step(losses)
                if last:
                    self.lr *= 0.5
                if self.validates(opened, said, last) or (stopped and self.may_validate()):
                    self.events.append(("validation", self.total))
                self.events += [("save", self.steps)] * asked
                opened, losses, asked = self.batch, [], 0
                if stopped or self.steps == max_steps:
                    break
            self.events.append(("end", self.epoch))
            if self.batch == size:
                self.epoch, self.batch = self.epoch + 1, 0

    def step(self, losses: list[Tensor]) -> None:
        self.steps += 1
        self.events.append(("step",))
        self.layer.zero_grad()
        torch.stack(losses).mean().backward()
        with torch.no_grad():
            for p in self.layer.parameters():
                p -= self.lr * p.grad  # type: ignore[operator]

    def may_validate(self) -> bool:
        return self.case.every is None or (self.epoch + 1) % self.case.every == 0

    def validates(self, opened: int, said: float, last: bool) -> bool:
        """Return whether validation was due in the window that closes now."""
        case, check = self.case, self.case.interval
        if not self.may_validate():
            return False
        if check == 1.0 and isinstance(check, float):
            return last
        if isinstance(check, float):
            check = max(1, int(said * check))
        before = self.total - self.batch if case.every is None else 0
        due = any((before + done) % check == 0 for done in range(opened + 1, self.batch + 1))
        return due or (last and case.every is not None and said != math.inf and said % check == 0)


@st.composite
def cases(draw: Any) -> Case:
    kind = draw(st.sampled_from(["list", "sampler", "stream", "several", "batches"]))
    real = [draw(st.integers(1, 7)) for _ in range(EPOCHS)]
    said: list[int] | None = list(real)
    if kind == "list":
        real = said = [real[0]] * EPOCHS
    elif draw(st.booleans()):
        said = None
    elif draw(st.booleans()):
        said = [draw(st.integers(1, 9)) for _ in range(EPOCHS)]
    limit = draw(st.one_of(st.none(), st.integers(1, 9)))
    every = draw(st.sampled_from([1, 1, 2, None]))
    fractions = st.sampled_from([1.0, 0.5] if said is not None or limit else [1.0])
    most = min(real[0], limit or 9) if kind == "list" else 9
    whole = st.integers(1, most if every is not None else 9)
    interval = draw(whole if every is None else st.one_of(fractions, whole))
    first = draw(st.sampled_from(["steps", "stop", "nothing"]))
    return Case(
        kind,
        real,
        said,
        interval,
        every,
        window=draw(st.integers(1, 4)),
        limit=limit,
        steps=draw(st.integers(1, 12)) if first == "steps" else -1,
        stop=draw(st.integers(1, 20)) if first == "stop" else 0,
        saves=draw(st.integers(1, 9)),
        again=draw(st.booleans()),
    )


def check(case: Case) -> None:
    """Train in two fits, the second one without a stop, and compare both with the model."""
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags: dict[str, Any] = {
            "max_epochs": EPOCHS,
            "val_check_interval": case.interval,
            "check_val_every_n_epoch": case.every,
            "accumulate_grad_batches": case.window,
            "limit_train_batches": case.limit or 1.0,
            "num_sanity_val_steps": 0,
            "default_root_dir": root,
        }
        net, model = Net(case), Model(case)
        model.weigh(net)
        val = [torch.ones(1, 1)]
        trainer = Trainer(**QUIET | flags, max_steps=case.steps)
        trainer.fit(net, loader(case), val)
        model.run(case.steps, case.stop)
        assert net.events == model.events
        assert (trainer.current_epoch, trainer.batches_done) == (model.epoch, model.batch)
        path = Path(root) / "end.ckpt"
        trainer.save_checkpoint(path)
        net.stops = 0
        if case.again:
            trainer.max_steps, model.lr = -1, 0.01  # with optimizers of its own
        else:
            trainer = Trainer(**QUIET | flags)
        trainer.fit(net, loader(case), val, ckpt_path=None if case.again else path)
        model.run(-1, 0)
        assert net.events == model.events
        assert (trainer.current_epoch, trainer.batches_done) == (EPOCHS, 0)
        torch.testing.assert_close(net.layer.state_dict(), model.layer.state_dict())


# A validation that becomes due in an open window, which does not end where the loader says.
LATE = Case("sampler", [1, 2, 5], [1, 1, 3], 2, None, window=2, limit=None, steps=1, stop=0, saves=4, again=False)


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(cases())
@example(LATE)
def test_the_loop_does_what_counting_one_by_one_says(case: Case) -> None:
    """Batches, steps, validations, saves and epoch ends come as in the model, over a stop and what follows it."""
    check(case)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, database=None)
@given(cases())
def test_the_loop_does_what_counting_one_by_one_says_500_times(case: Case) -> None:
    """The same for 500 trainings, other ones each time."""
    check(case)
