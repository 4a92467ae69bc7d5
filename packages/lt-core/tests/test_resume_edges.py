"""Resume at the edges of an epoch, and from a validation that was cut short: nothing comes twice, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import logged
from quiet import QUIET, SILENT, Noting
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lt_core.state.loop_state import FitState
from lt_interface import CheckpointError


class Count:
    """A metric object: how many samples were seen."""

    def __init__(self) -> None:
        self.n = 0

    def update(self, n: int) -> None:
        self.n += n

    def compute(self) -> float:
        return float(self.n)

    def reset(self) -> None:
        self.n = 0

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


class Counting(LightningModule):
    """Module that logs a metric object over each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = Count()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.update(len(batch))
        self.log("seen", self.seen, on_step=False, on_epoch=True)
        loss: Tensor = self.layer(batch).sum()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_metric_object_of_an_epoch_whose_batches_are_all_done_survives_a_resume(tmp_path: Path) -> None:
    """A checkpoint behind the last batch, before the epoch's end: the resumed run still reports the epoch's metric."""
    batches = [torch.ones(2, 1)] * 3

    def fit(folder: str, ckpt_path: Path | None) -> Trainer:
        saves = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)
        run = Trainer(default_root_dir=tmp_path / folder, max_epochs=2, callbacks=[saves], **SILENT)
        run.fit(Counting(), batches, ckpt_path=ckpt_path)
        return run

    fit("first", None)
    resumed = fit("again", tmp_path / "saved" / "epoch=0-step=3.ckpt")
    assert logged(resumed)["seen"] == [6.0, 6.0]


class Stream(IterableDataset[Tensor]):
    """Stream that keeps its place; it begins anew behind the last sample, or never ends."""

    def __init__(self, length: int | None) -> None:
        self.length, self.place = length, 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.length is None or self.place < self.length:
            self.place += 1
            yield torch.tensor([float(self.place)])
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Sized(Stream):
    """Stream of known length."""

    def __len__(self) -> int:
        assert self.length is not None
        return self.length


@pytest.mark.parametrize(
    "dataset", [Stream(5), Stream(6), Sized(5), Sized(6), Stream(None)], ids=lambda d: repr(d.length)
)
def test_a_dataset_that_keeps_its_own_place_resumes_at_the_end_of_an_epoch(dataset: Stream, tmp_path: Path) -> None:
    """Behind an epoch's last batch, and between epochs: no batch and no validation comes twice, none is left out."""

    def fit(folder: str, ckpt_path: Path | None) -> Trainer:
        dataset.place = 0
        saves = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)
        ends = ModelCheckpoint(tmp_path / "ends", every_n_epochs=1, save_top_k=-1)
        run = Trainer(
            default_root_dir=tmp_path / folder,
            max_epochs=3,
            limit_train_batches=3 if dataset.length is None else None,
            log_every_n_steps=1,
            callbacks=[saves, ends],
            **SILENT,
        )
        run.fit(Noting(), DataLoader(dataset, batch_size=2), [torch.ones(1, 1)], ckpt_path=ckpt_path)
        return run

    torch.manual_seed(1)
    whole = logged(fit("whole", None))
    for place in ("saved", "ends"):
        resumed = logged(fit(place + " resumed", tmp_path / place / "epoch=0-step=3.ckpt"))
        assert resumed == whole
        assert resumed.steps == whole.steps


class Stopped(Noting):
    """Module that logs each validation batch, and fails at the so-many-th if asked to."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.fails_at, self.seen = fails_at, 0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen += 1
        if self.seen == self.fails_at:
            raise ZeroDivisionError
        self.log("val", self.layer(batch).sum(), on_step=True, on_epoch=True)


@pytest.mark.filterwarnings("ignore:val_dataloader. the loader shuffles")
@pytest.mark.parametrize("fails_at", [2, 5])
def test_a_validation_that_was_cut_short_is_repeated_from_its_own_start(fails_at: int, tmp_path: Path) -> None:
    """Its first half is not in the history twice, its x-axis does not jump, its loader shuffles as it did."""

    def fit(folder: str, fails_at: int = 0, ckpt_path: Path | None = None) -> Trainer:
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        samples: Any = torch.arange(3.0).reshape(3, 1)
        loader: DataLoader[Tensor] = DataLoader(samples, shuffle=True, generator=generator)
        run = Trainer(
            default_root_dir=tmp_path / folder,
            max_epochs=3,
            num_sanity_val_steps=0,
            callbacks=[OnExceptionCheckpoint(tmp_path / "saved")],
            **SILENT,
        )
        run.fit(Stopped(fails_at), [torch.ones(1, 1)] * 2, loader, ckpt_path=ckpt_path)
        return run

    whole = logged(fit("whole"))
    with pytest.raises(ZeroDivisionError):
        fit("cut", fails_at)
    resumed = logged(fit("resumed", 0, tmp_path / "saved" / "on_exception.ckpt"))
    assert resumed == whole
    assert resumed.steps == whole.steps


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    """Resuming what SGD trained with Adam is refused, before the first batch."""

    class Other(Noting):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise NotImplementedError

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    run = Trainer(max_epochs=1, **QUIET)
    data = [torch.ones(1, 1)]
    run.fit(Noting(), data, data)
    run.save_checkpoint(tmp_path / "sgd.ckpt")
    other = Trainer(max_epochs=2, **QUIET)
    with pytest.raises(CheckpointError, match=r"same kind of optimizer. Got none of the options .*betas.* of Adam"):
        other.fit(Other(), data, data, ckpt_path=tmp_path / "sgd.ckpt")


class Marked(IterableDataset[Tensor]):
    """Samples that begin anew with each iteration, but for the one that follows `load_state_dict`."""

    at, begin = 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        begin, self.begin = self.begin, 0
        for self.at in range(begin + 1, 11):
            yield torch.tensor([float(self.at)])

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["at"]


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_a_limit_below_a_streams_length_is_resumed(tmp_path: Path) -> None:
    """Epochs that `limit_train_batches` ends begin anew behind a resume as they do without one, whatever is resumed."""

    def fit(path: Path | None = None) -> list[float]:
        saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        run = Trainer(**QUIET | {"enable_checkpointing": True}, max_epochs=3, limit_train_batches=3, callbacks=[saves])
        net = Seeing()
        run.fit(net, DataLoader(Marked()), ckpt_path=path)
        return net.batches

    class Seeing(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[float] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.batches.append(batch.item())
            return super().training_step(batch, batch_idx)

    whole = fit()
    assert whole == [1.0, 2.0, 3.0] * 3
    for step in range(1, 9):
        assert fit(tmp_path / f"step={step}.ckpt") == whole[step:]


def test_what_an_older_file_lacks_of_an_epoch_is_not_yet_done() -> None:
    """A checkpoint without the newer counts resumes as one of an epoch in which nothing was due so far."""
    state = FitState(schedulers_done=True, validated_batch=4, settled=4, left=4, first_step=9)
    state.load_state_dict({})
    assert state == FitState()
    state.load_state_dict({"validated": 3})
    assert state == FitState(validated_batch=3, settled=3)
    kept = FitState(schedulers_done=True, validated_batch=4, settled=5, left=3, first_step=9)
    state.load_state_dict(kept.state_dict())
    assert state == kept
