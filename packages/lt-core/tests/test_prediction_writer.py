"""Write predictions: with the right indices, and without keeping what nobody asked for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import BasePredictionWriter, PredictionWriter
from lt_interface.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*the loader shuffles")
DATA = TensorDataset(torch.arange(11))


class Echo(LightningModule):
    """Module that predicts its samples: the same numbers as their indices."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        found: Tensor = batch[0].clone()
        return found


class Writer(BasePredictionWriter):
    """Writer that keeps what it was given."""

    def __init__(self, write_interval: Any) -> None:
        super().__init__(write_interval)
        self.batches: list[tuple[Any, Any, int, int]] = []
        self.epochs: list[tuple[Any, Any]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert torch.equal(batch[0], prediction)
        self.batches.append((prediction.reshape(-1).tolist(), batch_indices, batch_idx, dataloader_idx))

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        self.epochs.append((predictions, batch_indices))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(4))


def predict(writer: Any, data: Any, **given: Any) -> Any:
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[writer])
    return trainer.predict(Echo(), data, **given)


LOADERS: dict[str, Any] = {
    "plain": {"batch_size": 4},
    "shuffled": {"batch_size": 4, "shuffle": True},
    "workers": {"batch_size": 4, "shuffle": True, "num_workers": 2},
    "repeating": {"batch_size": 3, "sampler": WeightedRandomSampler([1.0] * 11, 17)},
    "batch sampler": {"batch_sampler": BatchSampler(WeightedRandomSampler([1.0] * 11, 9), 2, True)},
    "unbatched": {"batch_size": None},
    "batches as samples": {"batch_size": None, "sampler": BatchSampler(WeightedRandomSampler([1.0] * 11, 9), 2, True)},
    "tensors": {"batch_sampler": [torch.tensor([3, 1]), torch.tensor([10, 0])]},
}


@pytest.mark.parametrize("kind", LOADERS)
def test_indices_are_those_of_the_samples(kind: str) -> None:
    """Whatever the sampler, shuffled or with workers, each batch comes with the indices of its samples."""
    writer = Writer("batch_and_epoch")
    returned = predict(writer, DataLoader(DATA, **LOADERS[kind]))
    assert all(values == indices for values, indices, _, _ in writer.batches)
    assert [i for _, _, i, _ in writer.batches] == list(range(len(writer.batches)))
    ((predictions, indices),) = writer.epochs
    assert [p.reshape(-1).tolist() for p in predictions] == indices[0] == [one[1] for one in writer.batches]
    assert [p.tolist() for p in returned] == [p.tolist() for p in predictions]


def test_several_loaders_have_their_own() -> None:
    """With several loaders batches come with their loader's number, and the end has a list for each of them."""
    writer = Writer("batch_and_epoch")
    loaders = [DataLoader(DATA, batch_size=4, shuffle=True), DataLoader(DATA, batch_size=6)]
    assert predict(writer, loaders, return_predictions=False) is None
    assert [one[2:] for one in writer.batches] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    ((predictions, indices),) = writer.epochs
    assert [[p.tolist() for p in each] for each in predictions] == indices
    assert [len(each) for each in indices] == [3, 2]
    assert all(values == known for values, known, _, _ in writer.batches)


@pytest.mark.parametrize("data", [DataLoader(Stream(), batch_size=2), [[torch.arange(2)], [torch.arange(2)]]])
def test_unknown_indices_are_empty(data: Any) -> None:
    """An iterable dataset and a list of batches have no indices: the list is empty, with a warning."""
    writer = Writer("batch_and_epoch")

    class Net(Echo):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
            return batch[0] if batch[0].ndim else batch[:1][0]

    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[writer])
    with pytest.warns(UserWarning, match="the indices of loader 0 are unknown"):
        trainer.predict(Net(), data)
    assert [one[1] for one in writer.batches] == [[], []]
    assert writer.epochs[0][1] == [[[], []]]


@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_what_nobody_asks_for_is_not_kept(interval: str) -> None:
    """With the interval "batch" and no returned predictions each one can go at once; with "epoch" all are there."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Net(Echo):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
            alive.append(sum(one() is not None for one in made))
            found: Tensor = batch[0].clone()
            made.append(weakref.ref(found))
            return found

    writer = Writer(interval)
    writer.write_on_batch_end = lambda *a: None  # type: ignore[method-assign]
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[writer])
    trainer.predict(Net(), DataLoader(DATA), return_predictions=False)
    assert max(alive) <= 1 if interval == "batch" else alive[-1] == 10
    assert trainer.predict_loop.predictions == trainer.predict_loop.epoch_batch_indices == []


def test_any_callback_reads_the_running_indices() -> None:
    """The view of the predict loop has the running batch's indices, without a writer, and no sizes are lost."""
    seen: list[Any] = []

    class Reads(Callback):
        def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, i: int) -> None:
            loop = trainer.predict_loop
            seen.append((loop.current_batch_indices, loop.epoch_batch_indices, loop.max_batches, loop.predictions))

    predict(Reads(), DataLoader(DATA, batch_size=6), return_predictions=False)
    assert seen == [([0, 1, 2, 3, 4, 5], [], [2], []), ([6, 7, 8, 9, 10], [], [2], [])]


def test_files_hold_predictions_and_indices(tmp_path: Path) -> None:
    """The ready writer makes its folder, a file a batch and one at the end; fit and validate write nothing."""
    writer = PredictionWriter(tmp_path / "a" / "b", "batch_and_epoch")
    predict(writer, DataLoader(DATA, batch_size=6))
    names = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert names == ["rank0-loader0-batch000000.pt", "rank0-loader0-batch000001.pt", "rank0.pt"]
    second, whole = (torch.load(tmp_path / "a" / "b" / name) for name in names[1:])
    assert second["predictions"].tolist() == second["indices"] == [6, 7, 8, 9, 10]
    assert [p.tolist() for p in whole["predictions"]] == whole["indices"][0]


def test_what_would_write_nothing_is_refused() -> None:
    """No folder, an unknown interval, and a method that is not overridden are errors before the first batch."""
    for folder in (None, ""):
        with pytest.raises(ConfigError, match="needs the folder"):
            PredictionWriter(folder)
    with pytest.raises(ConfigError, match='Did you mean "batch"'):
        Writer("bacth")

    class Half(BasePredictionWriter):
        def write_on_batch_end(self, *args: Any) -> None:
            raise AssertionError

    class Hooked(BasePredictionWriter):
        def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """Do without the method."""

    for kind, interval in ((BasePredictionWriter, "batch"), (Half, "epoch"), (Half, "batch_and_epoch")):
        with pytest.raises(ConfigError, match=r"needs write_on_(batch|epoch)_end, and it is not overridden"):
            predict(kind(interval), DataLoader(DATA))  # type: ignore[arg-type]
    predict(Hooked("epoch"), DataLoader(DATA))
