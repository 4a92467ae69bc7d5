"""A checkpoint saved in any hook, or after an error, goes on as the run that it was saved in would have gone on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import OnExceptionCheckpoint
from lt_core.checkpoint import load_checkpoint

EARLY = ["on_train_batch_start", "training_step", "on_before_zero_grad", "on_before_backward", "on_after_backward"]
EARLY += ["on_before_optimizer_step"]
VALIDATION = ["on_validation_start", "on_validation_batch_start", "validation_step", "on_validation_batch_end"]
VALIDATION += ["on_validation_epoch_end", "on_validation_end"]
OTHERS = ["on_fit_start", "on_sanity_check_start", "on_train_start", "on_train_epoch_start", "on_train_epoch_end"]
OTHERS += ["on_train_end", "on_fit_end"]
SET = TensorDataset(torch.arange(12.0).reshape(12, 1) / 12, torch.arange(12))
HELD_OUT = [(torch.ones(2, 1), torch.zeros(2))] * 2


class StoppedError(Exception):
    """What a hook raises."""


class Net(LightningModule):
    """Module that notes its batches and validations, and draws random numbers in validation."""

    def __init__(self, act: Callable[[str], None] = lambda hook: None, manual: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.1)
        self.act, self.automatic_optimization = act, not manual
        self.batches: list[tuple[int, ...]] = []
        self.validations: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = batch["a"] if isinstance(batch, dict) else batch
        self.batches.append((self.current_epoch, batch_idx, *batch[1].tolist()))
        self.act("training_step")
        loss: Tensor = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(1)
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())
        self.act("validation_step")

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validations.append(self.global_step)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        if not self.automatic_optimization:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        by_step = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9)
        return [optimizer], [{"scheduler": plateau, "monitor": "val_loss"}, {"scheduler": by_step, "interval": "step"}]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([SET[i] for i in range(12)])


class Keeping(Stream):
    """A stream that keeps its own place."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < 12:
            self.at += 1
            yield SET[self.at - 1]
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(SET, batch_size=2, shuffle=True),
    "generator": lambda: DataLoader(SET, 2, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "uneven": lambda: DataLoader(SET, batch_sampler=[[0], [1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]),
    "list": lambda: [SET[i : i + 2] for i in range(0, 12, 2)],
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "two": lambda: {"a": DataLoader(SET, batch_size=2), "b": DataLoader(SET, batch_size=2, shuffle=True)},
}


class Acting(Callback):
    """Callback that acts in one hook, at one of its calls."""

    def __init__(self, act: Callable[[str], None]) -> None:
        for hook in (*EARLY, *VALIDATION, *OTHERS, "on_train_batch_end"):
            if hook.startswith("on_"):
                setattr(self, hook, lambda *args, _hook=hook: act(_hook))


class Counts(Callback):
    """Callback whose state is how often it was called."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def _count(self, hook: str) -> None:
        self.calls[hook] = self.calls.get(hook, 0) + 1

    def on_train_batch_end(self, *args: Any) -> None:
        self._count("batch")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._count("validation")

    def on_train_epoch_end(self, *args: Any) -> None:
        self._count("epoch")

    def state_dict(self) -> dict[str, Any]:
        return dict(self.calls)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = dict(state)


class Job:
    """One run, which may save or raise in a hook.

    Args:
        folder: Where to save.
        hook: The hook.
        call: At which of its calls.
        data: The kind of loader.
        raises: Whether to raise there; then the file is saved after the error.
        manual: Whether the module optimizes by itself.
        flags: The trainer's.
    """

    def __init__(
        self,
        folder: Path,
        hook: str = "",
        call: int = 1,
        data: str = "shuffled",
        raises: bool = False,
        manual: bool = False,
        resume: Path | None = None,
        last: bool = True,
        **flags: Any,
    ) -> None:
        self.path, self.hook, self.left, self.raises = folder / "x.ckpt", hook, call, raises
        torch.manual_seed(1 if resume is None else 99)
        self.net, self.counts = Net(self.act, manual), Counts()
        own = [self.counts, Acting(self.act)]
        savers = [OnExceptionCheckpoint(folder, "x")] if raises else []
        options = {**QUIET, "max_epochs": 2, "num_sanity_val_steps": 1, **flags, "enable_checkpointing": raises}
        self.trainer = Trainer(**options, callbacks=[*(own if last else own[::-1]), *savers])
        try:
            self.trainer.fit(self.net, LOADERS[data](), HELD_OUT, ckpt_path=resume)
        except StoppedError:
            assert raises

    def act(self, hook: str) -> None:
        """Save or raise, if it is the moment."""
        if hook == self.hook:
            self.left -= 1
            if self.left == 0 and self.raises:
                raise StoppedError
            if self.left == 0:
                self.net.trainer.save_checkpoint(self.path)


def assert_goes_on(whole: Job, path: Path, **flags: Any) -> dict[str, Any]:
    """Resume from a file, compare with the whole run, and return the counters in the file."""
    progress: dict[str, Any] = load_checkpoint(path)["progress"]
    rest = Job(path.parent, resume=path, **flags)
    assert rest.net.batches == whole.net.batches[len(whole.net.batches) - len(rest.net.batches) :]
    assert rest.net.validations == whole.net.validations[len(whole.net.validations) - len(rest.net.validations) :]
    assert rest.trainer.global_step == whole.trainer.global_step
    assert rest.trainer._progress.state_dict() == whole.trainer._progress.state_dict()
    for mine, other in zip(rest.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(mine, other)
    if progress["exact"]:
        assert rest.counts.calls == whole.counts.calls
        if rest.net.batches:
            assert rest.trainer.callback_metrics == whole.trainer.callback_metrics
    return progress


pytestmark = pytest.mark.filterwarnings("ignore:.*saved inside a hook", "ignore:.*log_every", "ignore:Resuming inside")


@pytest.mark.parametrize("data", LOADERS)
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"])
def test_a_batch_is_done_from_its_end_hook_on(tmp_path: Path, hook: str, data: str) -> None:
    """Saved before it, the batch is trained again with its own index; saved there, the next comes: of any loader."""
    whole = Job(tmp_path, hook, 8, data)
    progress = assert_goes_on(whole, whole.path, data=data)
    done = hook == "on_train_batch_end"
    assert (progress["epoch"], progress["batch"], progress["exact"]) == (1, 2 if done else 1, done)


@pytest.mark.parametrize("hook", [*EARLY, *VALIDATION, *OTHERS])
def test_every_hook_has_its_place(tmp_path: Path, hook: str) -> None:
    """From whatever hook the file is, nothing comes twice and nothing is left out, validations included."""
    whole = Job(tmp_path, hook, 1, val_check_interval=3)
    assert_goes_on(whole, whole.path, val_check_interval=3)


@pytest.mark.parametrize(("hook", "call"), [("on_train_batch_end", 8), ("training_step", 9), ("on_validation_end", 3)])
@pytest.mark.parametrize("data", ["shuffled", "generator", "uneven", "stream"])
def test_an_open_window_is_trained_again_as_a_whole(tmp_path: Path, hook: str, call: int, data: str) -> None:
    """No gradients are kept: the file of an open window begins with its first batch, and says that it is inexact."""
    whole = Job(tmp_path, hook, call, data, accumulate_grad_batches=4)
    progress = assert_goes_on(whole, whole.path, data=data, accumulate_grad_batches=4)
    if hook != "on_validation_end":
        assert (progress["epoch"], progress["batch"], progress["exact"]) == (1, 0, False)


def test_a_batch_of_manual_optimization_is_closed(tmp_path: Path) -> None:
    """Under manual optimization no window is open after a batch."""
    whole = Job(tmp_path, "on_train_batch_end", 8, manual=True)
    assert assert_goes_on(whole, whole.path, manual=True)["exact"]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_a_file_is_exact_if_no_later_hook_was_left(tmp_path: Path, hook: str) -> None:
    """Saved by the last callback the file is exact; saved by an earlier one it says that it is not."""
    assert load_checkpoint(Job(tmp_path, hook, 2).path)["progress"]["exact"]
    assert not load_checkpoint(Job(tmp_path, hook, 2, last=False).path)["progress"]["exact"]


@pytest.mark.parametrize(
    ("hook", "call"),
    [(h, 8) for h in (*EARLY, "on_train_batch_end")]
    + [(h, 2) for h in ("validation_step", "on_train_epoch_start", "on_train_epoch_end")],
)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_after_an_error_the_interrupted_batch_comes_again(
    tmp_path: Path, hook: str, call: int, accumulate: int
) -> None:
    """A file saved in on_exception begins with the batch that raised, its window or its validation: none is lost."""
    flags: dict[str, Any] = {"accumulate_grad_batches": accumulate, "num_sanity_val_steps": 0}
    whole = Job(tmp_path, **flags)
    each_window = hook in ("on_before_optimizer_step", "on_before_zero_grad")
    Job(tmp_path, hook, min(call, 3) if each_window else call, raises=True, **flags)
    assert assert_goes_on(whole, tmp_path / "x.ckpt", **flags)["exact"] == (hook == "validation_step")


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_validation_end", "on_train_batch_start"])
def test_a_resumed_run_saves_what_it_has_not_restored_yet(tmp_path: Path, hook: str) -> None:
    """A file saved in the first hooks of a resumed run is as good as the one that it was resumed from."""
    whole = Job(tmp_path, "on_train_batch_end", 3, val_check_interval=3)
    again = tmp_path / "again"
    again.mkdir()
    second = Job(again, hook, resume=whole.path, val_check_interval=3)
    assert second.path.exists()
    assert_goes_on(whole, second.path, val_check_interval=3)


def test_data_that_cannot_go_back_goes_on_with_a_warning(tmp_path: Path) -> None:
    """A stream that keeps its own place passes over the batch that was not trained to its end; indices stay right."""
    LOADERS["keeping"] = lambda: DataLoader(Keeping(), batch_size=2)
    with pytest.warns(UserWarning, match="it keeps its own place, which cannot go back"):
        whole = Job(tmp_path, "on_train_batch_start", 8, "keeping")
    rest = Job(tmp_path, resume=whole.path, data="keeping")
    assert rest.net.batches == whole.net.batches[8:]


@pytest.mark.parametrize("hook", ["on_validation_start", "validation_step", "on_validation_end"])
def test_a_run_that_resumes_with_a_validation_saves_in_it_and_loses_no_batch(tmp_path: Path, hook: str) -> None:
    """A stream that keeps its own place gives every batch once, to the run that saves and to the one that follows."""
    LOADERS["keeping"] = lambda: DataLoader(Keeping(), batch_size=2)
    flags: dict[str, Any] = {"data": "keeping", "val_check_interval": 2}
    whole = Job(tmp_path, "on_train_batch_end", 2, **flags)
    again = tmp_path / "again"
    again.mkdir()
    second = Job(again, hook, resume=whole.path, **flags)
    third = Job(again, resume=second.path, **flags)
    assert second.net.batches == third.net.batches == whole.net.batches[2:]


def test_an_epoch_that_a_refused_batch_ended_is_over(tmp_path: Path) -> None:
    """Saved in on_train_epoch_end, after on_train_batch_start returned -1: a resumed run begins the next epoch."""

    class Short(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if (self.current_epoch, batch_idx) == (0, 2) else None

        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 0:
                self.trainer.save_checkpoint(tmp_path / "short.ckpt")

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = [(torch.ones(2, 1), torch.zeros(2))] * 4
    for path, epochs in ((None, [0, 0, 1, 1, 1, 1]), (tmp_path / "short.ckpt", [1, 1, 1, 1])):
        net = Short()
        Trainer(**QUIET | {"max_epochs": 2}).fit(net, data, HELD_OUT, ckpt_path=path)
        assert [batch[0] for batch in net.batches] == epochs


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_batch_end"])
def test_a_second_fit_saves_in_the_epoch_that_it_takes_up(tmp_path: Path, hook: str) -> None:
    """Saved in the first hooks of a fit that goes on in an open epoch, a file goes on in that epoch, too."""
    path, data = tmp_path / "second.ckpt", [(torch.ones(2, 1), torch.full((2,), i)) for i in range(4)]

    class Saving(Net):
        hook = ""

        def setup(self, stage: str) -> None:
            self.done = False

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.trainer.should_stop = not self.hook and batch_idx == 1
            self.save("on_train_batch_end")

        def on_fit_start(self) -> None:
            self.save("on_fit_start")

        def on_train_start(self) -> None:
            self.save("on_train_start")

        def save(self, hook: str) -> None:
            if hook == self.hook and not self.done:
                self.done = True
                self.trainer.save_checkpoint(path)

    net, trainer = Saving(), Trainer(**QUIET | {"max_epochs": 1, "num_sanity_val_steps": 0})
    trainer.fit(net, data, HELD_OUT)
    net.hook = hook
    trainer.fit(net, data, HELD_OUT)
    assert [batch[1] for batch in net.batches] == [0, 1, 2, 3]
    rest = Net()
    Trainer(**QUIET | {"max_epochs": 1}).fit(rest, data, HELD_OUT, ckpt_path=path)
    assert rest.batches == net.batches[3 if hook == "on_train_batch_end" else 2 :]


def test_a_look_at_the_file_does_not_change_the_run(tmp_path: Path) -> None:
    """A run that saves in every hook trains as one that saves in none."""
    whole = Job(tmp_path)
    for hook in ("on_train_batch_start", "on_validation_batch_end", "on_train_epoch_start"):
        other = Job(tmp_path, hook, 2)
        assert other.net.batches == whole.net.batches
        assert other.trainer._progress == whole.trainer._progress
