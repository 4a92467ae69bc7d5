"""Test that batches reach a device beside its computing, and that nobody can see it but in time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from late_device import WRONG, LateAccelerator, LateStream
from quiet import QUIET
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from lt_core import LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.checkpoint import load_checkpoint
from lt_core.data.feed import Feed
from lt_core.data.stager import Stager
from lt_core.profilers import PassThroughProfiler
from lt_interface.testing import AcceleratorConformance


class Noisy(Dataset[Any]):
    """Samples with fresh noise at every look."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return torch.full((3,), float(index)) + 0.1 * torch.rand(3)


class Stream(IterableDataset[Any]):
    """As many samples as there are, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return (torch.full((3,), float(index)) for index in range(10))


class Draws:
    """Sampler of the user's own, which draws with each index."""

    def __iter__(self) -> Iterator[int]:
        return (int(torch.randint(10, ())) for _ in range(10))

    def __len__(self) -> int:
        return 10


class Net(LightningModule):
    """Module that draws from the CPU's generator in each step, and notes each batch where it is computed with."""

    def __init__(self, events: list[Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1)
        self.events = [] if events is None else events

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first = batch["a"] if isinstance(batch, dict) else batch
        assert not (first == WRONG).any()
        self.events.append(("step", first.flatten()[0].item()))
        loss: Tensor = (self.layer(first) - torch.rand(())).square().mean()
        self.log("loss", loss, on_epoch=True, batch_size=2)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Validating(Net):
    """Module that validates, too."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert not (batch == WRONG).any()
        self.events.append(("step", batch.flatten()[0].item()))


def numbered(n: int) -> list[Tensor]:
    return [torch.full((2, 3), float(i)) for i in range(n)]


def shuffled(workers: int, **given: Any) -> Any:
    return DataLoader(Noisy(), batch_size=2, num_workers=workers, **({"shuffle": True} | given))


def with_generator() -> Any:
    return shuffled(1, generator=torch.Generator().manual_seed(4))


LOADERS: dict[str, Callable[[], Any]] = {
    "list": lambda: numbered(5),
    "workers": lambda: shuffled(2),
    "persistent": lambda: shuffled(1, persistent_workers=True),
    "generator": with_generator,
    "here": lambda: shuffled(0),
    "sampler": lambda: shuffled(1, shuffle=False, sampler=Draws()),
    "stream": lambda: DataLoader(Stream(), batch_size=2, num_workers=1),
    "stream here": lambda: DataLoader(Stream(), batch_size=2),
    "two": lambda: {"a": shuffled(1), "b": DataLoader(Noisy(), batch_size=3, num_workers=1)},
}
EARLY = {"list", "workers", "persistent", "generator", "stream"}


def fit(loader: Any, folder: Path, accelerator: Any, ckpt: Path | None = None, **flags: Any) -> Trainer:
    """Train two epochs, and keep a file of every step and epoch."""
    torch.manual_seed(3)
    saves = [
        ModelCheckpoint(folder, filename="s{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder, filename="e{epoch}", every_n_epochs=1, save_top_k=-1),
    ]
    usual = {**QUIET, "max_epochs": 2, "enable_checkpointing": True, "callbacks": saves, "default_root_dir": folder}
    trainer = Trainer(**{**usual, "accelerator": accelerator, **flags})
    trainer.fit(Net(), loader, ckpt_path=ckpt)
    return trainer


def bits(value: Any) -> Any:
    """Return values to compare, without wall times and paths."""
    if isinstance(value, Tensor):
        return str(value.dtype), repr(value.tolist())
    if isinstance(value, dict):
        return {str(k): bits(v) for k, v in value.items() if k not in ("journal", "lt_run", "callbacks")}
    return [bits(v) for v in value] if isinstance(value, list | tuple) else value


def files(folder: Path) -> dict[str, Any]:
    return {path.name: bits(load_checkpoint(path)) for path in sorted(folder.glob("*.ckpt"))}


@pytest.mark.filterwarnings("ignore:ModelCheckpoint.*written with:UserWarning", "ignore:Resuming inside an epoch")
@pytest.mark.parametrize("kind", LOADERS)
def test_files_are_those_of_a_run_without_a_side_stream(kind: str, tmp_path: Path) -> None:
    """Whatever was fetched early, the file of each step and epoch is the same to the bit, and a resume from it too."""
    fit(LOADERS[kind](), tmp_path / "plain", "cpu")
    fit(LOADERS[kind](), tmp_path / "late", LateAccelerator())
    plain, late = files(tmp_path / "plain"), files(tmp_path / "late")
    assert len(plain) == 12
    assert late == plain
    middle = tmp_path / "late" / "sstep=3.ckpt"
    fit(LOADERS[kind](), tmp_path / "again", LateAccelerator(), ckpt=middle)
    again = files(tmp_path / "again")
    assert len(again) >= 9
    if kind == "sampler":  # it draws beside the module, so that no resume of it is exact
        fit(LOADERS[kind](), tmp_path / "other", "cpu", ckpt=middle)
        plain = files(tmp_path / "other")
    assert again == {name: plain[name] for name in again}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_batch_is_fetched_early_where_nobody_can_see_it(kind: str, tmp_path: Path) -> None:
    """The copy of the next batch begins before the step of this one, unless fetching it would draw or keeps a place."""
    accelerator = LateAccelerator()
    module = Net(accelerator.events)
    Trainer(**{**QUIET, "max_epochs": 1, "accelerator": accelerator}).fit(module, LOADERS[kind]())
    kinds = [what for what, _ in accelerator.events if what != "join"]
    if kind == "two":
        assert kinds == ["copy", "copy", "step"] * 5
    elif kind in EARLY:
        assert kinds == ["copy", *["copy", "step"] * 4, "step"]
    else:
        assert kinds == ["copy", "step"] * 5
    joins = [value for what, value in accelerator.events if what == "join"]
    steps = [value for what, value in accelerator.events if what == "step"]
    assert [j for j in joins if j in steps] == steps


def test_events_of_a_run_in_order() -> None:
    """A batch is joined when its own step begins, not before; validation goes through the same stream."""
    accelerator = LateAccelerator()
    module = Validating(accelerator.events)
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "num_sanity_val_steps": 0, "accelerator": accelerator})
    trainer.fit(module, numbered(3), [torch.full((2, 3), 9.0)])
    expected = [("copy", 0), ("copy", 1), ("join", 0), ("step", 0), ("copy", 2), ("join", 1), ("step", 1)]
    assert accelerator.events == [*expected, ("join", 2), ("step", 2), ("copy", 9), ("join", 9), ("step", 9)]


@pytest.mark.filterwarnings("ignore:.*saved inside a hook:UserWarning")
def test_a_stop_loses_no_batch(tmp_path: Path) -> None:
    """Training that stopped with the next batch in flight goes on with it."""
    accelerator = LateAccelerator()
    flags = {**QUIET, "max_epochs": 1, "accelerator": accelerator}

    class Stops(Net):
        def on_train_batch_end(self, *args: Any) -> None:
            if self.trainer.global_step == 2:
                self.trainer.save_checkpoint(tmp_path / "stop.ckpt")
                self.trainer.should_stop = True

    Trainer(**flags).fit(Stops(), numbered(5))
    accelerator.events.clear()
    Trainer(**flags).fit(Net(accelerator.events), numbered(5), ckpt_path=tmp_path / "stop.ckpt")
    assert [value for what, value in accelerator.events if what == "step"] == [2, 3, 4]


@pytest.mark.parametrize("owner", ["module", "data module"])
@pytest.mark.parametrize("hook", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"])
def test_transfer_hooks_see_each_batch_in_its_turn(owner: str, hook: str) -> None:
    """Where a transfer hook is overridden, no batch is fetched before the step before it is done."""
    accelerator = LateAccelerator()
    module, data = Net(accelerator.events), LightningDataModule()
    data.train_dataloader = lambda: numbered(3)  # type: ignore[method-assign]

    def noting(batch: Any, *rest: Any) -> Any:
        accelerator.events.append(("hook", batch.flatten()[0].item()))
        return batch

    setattr(module if owner == "module" else data, hook, noting)
    Trainer(**{**QUIET, "max_epochs": 1, "accelerator": accelerator}).fit(module, datamodule=data)
    seen = [event for event in accelerator.events if event[0] in ("hook", "step")]
    assert seen == [(what, i) for i in range(3) for what in ("hook", "step")]


class Graph:
    """Batch that moves itself, as those of graph libraries do."""

    def __init__(self) -> None:
        self.moved = 0

    def to(self, device: torch.device, non_blocking: bool = False) -> Graph:
        self.moved += 1
        return self


def test_what_moves_itself_is_moved_in_its_turn() -> None:
    """Of a nested batch plain tensors take the side stream, and objects with a ``to`` of their own do not."""
    seen: list[Any] = []
    accelerator = LateAccelerator()

    class Keeps(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append(batch)
            return super().training_step(batch["a"], batch_idx)

    packed = pack_sequence([torch.ones(2)])
    graph = Graph()
    batches = [
        {"a": torch.full((2, 3), float(i)), "more": ("text", packed, [torch.ones(1)]), "g": graph} for i in (0, 1)
    ]
    Trainer(**{**QUIET, "max_epochs": 1, "accelerator": accelerator}).fit(Keeps(), batches)
    assert [what for what, _ in accelerator.events] == ["copy"] * 4 + ["join"] * 4
    assert graph.moved == 2
    assert isinstance(seen[0]["more"][1], PackedSequence)
    assert (seen[0]["more"][0], seen[0]["more"][2][0].item()) == ("text", 1.0)


@pytest.mark.parametrize("form", [tuple, list, lambda pair: dict(zip("ab", pair, strict=True)), lambda pair: [pair]])
@pytest.mark.parametrize(("direct", "asked"), [(16, [False, False]), (12, [False, True]), (-1, [True, True])])
def test_a_stream_is_not_asked_for_small_tensors(form: Callable[[Any], Any], direct: int, asked: list[bool]) -> None:
    """Tensors of as many bytes as the stream says are moved without it, whatever else is in the batch."""
    events: list[Any] = []
    stream = LateStream(events)
    stream.direct = direct  # type: ignore[attr-defined]
    small, large = torch.full((3,), 3.0), torch.full((4,), 4.0)
    placed = Stager(stream, torch.device("cpu"))(form((small, large)))
    assert type(placed) is type(form((small, large)))
    assert [("copy", t[0].item()) in events for t in (small, large)] == asked
    assert bits(placed) == bits(form((small, large)))


def test_formats_are_changed_before_the_copy() -> None:
    """A precision that converts batches does so on the host, once a batch."""
    accelerator = LateAccelerator()

    class Doubled(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert batch.dtype == torch.float64
            return super().training_step(batch, batch_idx)

    Trainer(**{**QUIET, "max_epochs": 1, "accelerator": accelerator, "precision": "64-true"}).fit(
        Doubled(accelerator.events), numbered(2)
    )
    assert [what for what, _ in accelerator.events] == ["copy", "copy", "join", "step", "join", "step"]


class Immediate:
    """Side stream with nothing to wait for, which wants small tensors to be moved without it, as a card's does."""

    direct = 1 << 16

    def copy(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def mark(self) -> None:
        return None

    def join(self, mark: Any) -> None:
        raise AssertionError("there is nothing to join")


def test_the_place_is_that_before_an_early_fetch() -> None:
    """The saved place is that of the batch handed out, also where the sampler draws from a generator on the way."""

    def places(stager: Stager | None) -> list[Any]:
        drawn = torch.Generator().manual_seed(4)
        sampler = RandomSampler(range(10), replacement=True, num_samples=96, generator=drawn)  # 32 are drawn at once
        torch.manual_seed(3)
        feed = Feed(shuffled(1, shuffle=False, sampler=sampler), stage="train")
        feed.stager = stager
        found = [(bits(feed.state_dict()), feed.samples) for _ in feed.epoch(0)]
        feed.close()
        return found

    plain = places(None)
    assert len({str(place) for place, _ in plain}) == 48
    assert places(Stager(Immediate(), torch.device("cpu"))) == plain


class Lengthy:
    """Batches of which nothing is known but their number, so that none is fetched early."""

    def __len__(self) -> int:
        return 30

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.ones(2, 3), torch.ones(2, 1)) for _ in range(30)])


@pytest.mark.parametrize(("early", "allowed"), [(False, 8), (True, 12)])
def test_a_staged_batch_costs_few_calls(early: bool, allowed: int) -> None:
    """A step with a batch of two tensors through a side stream makes a known number of Python calls of ours."""
    counts: list[int] = []
    calls = 0

    class Counts(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            nonlocal calls
            counts.append(calls)
            calls = 0
            loss: Tensor = self.layer(batch[0]).sum()
            return loss

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and "/lt_core/" in frame.f_code.co_filename.replace("\\", "/")

    accelerator = LateAccelerator()
    accelerator.side_stream = lambda device: Immediate()  # type: ignore[assignment,method-assign]
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "accelerator": accelerator})
    batches = Lengthy()
    sys.setprofile(count)
    try:
        trainer.fit(Counts(), list(batches) if early else batches)
    finally:
        sys.setprofile(None)
    assert sorted(counts)[len(counts) // 2] <= allowed


class TestLateAccelerator(AcceleratorConformance):
    """The device of these tests keeps the interface's rules."""

    def make(self) -> Any:
        return LateAccelerator()


def test_a_profiler_sees_each_batch_put_on_the_device() -> None:
    """Beginning a copy is the same action for a profiler as moving a batch, once a batch."""
    put: list[str] = []

    class Noting(PassThroughProfiler):
        passes_through = False

        @contextmanager
        def profile(self, action_name: str) -> Iterator[str]:
            put.extend([action_name] * action_name.endswith("batch_to_device"))
            yield action_name

    flags = {**QUIET, "max_epochs": 1, "accelerator": LateAccelerator(), "profiler": Noting()}
    Trainer(**flags).fit(Net(), numbered(3))
    assert put == ["[Strategy]SingleDeviceStrategy.batch_to_device"] * 3


def test_prediction_goes_through_the_side_stream() -> None:
    """Batches of prediction are joined before their step, too."""
    accelerator = LateAccelerator()
    module = Net()
    module.predict_step = lambda batch, batch_idx: batch.sum()  # type: ignore[method-assign]
    found = Trainer(**{**QUIET, "max_epochs": 1, "accelerator": accelerator}).predict(module, numbered(3))
    assert found == [0.0, 6.0, 12.0]
    assert [what for what, _ in accelerator.events] == ["copy", "join"] * 3


class Broken(Noisy):
    """Samples of which one cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise OSError("unreadable")
        return super().__getitem__(index)


class Unsized:
    """Batches of unknown number, of which the second cannot be read."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from numbered(1)
        raise OSError("unreadable")


FAILING: dict[str, tuple[Callable[[], Any], int]] = {
    "workers": (lambda: DataLoader(Broken(), batch_size=2, num_workers=2), 3),
    "two": (lambda: {"a": DataLoader(Broken(), batch_size=2, num_workers=1), "b": shuffled(0)}, 3),
    "unsized": (Unsized, 1),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("late", [False, True], ids=["plain", "late"])
@pytest.mark.parametrize("kind", FAILING)
def test_what_fails_when_it_is_fetched_early_fails_in_its_turn(kind: str, late: bool, accumulate: int) -> None:
    """All batches before one that cannot be read are trained with, on whatever device and in windows of any length."""
    make, good = FAILING[kind]
    accelerator = LateAccelerator() if late else "cpu"
    module = Net()
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "accelerator": accelerator, "accumulate_grad_batches": accumulate})
    with pytest.raises(OSError, match="unreadable"):
        trainer.fit(module, make())
    assert len(module.events) == good
    assert trainer.global_step == good // accumulate
