"""Test a training set that is kept on the device: the same batches in the same order, or one clear refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Subset, TensorDataset

from lt_core import LightningModule, Trainer
from lt_interface.errors import ConfigError

X, Y = torch.randn(11, 3), torch.arange(11)


class Net(LightningModule):
    """Module that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1)
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch["a"][0] if isinstance(batch, dict) else batch[0]
        self.seen.append(batch)
        loss: Tensor = self.layer(x).square().mean() + torch.rand(())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Moved(TensorDataset):
    """Set that changes its samples."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(t + torch.rand(()) for t in super().__getitem__(index))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


def pairs() -> TensorDataset:
    return TensorDataset(X, Y)


def loader(dataset: Any = None, **given: Any) -> Any:
    return DataLoader(pairs() if dataset is None else dataset, **({"batch_size": 2, "shuffle": True} | given))


def batch_sampler() -> Any:
    return BatchSampler(RandomSampler(range(11), replacement=True), 4, False)


LOADERS = {
    "shuffled": loader,
    "in order, last dropped": lambda: loader(shuffle=False, drop_last=True),
    "workers": lambda: loader(num_workers=1, prefetch_factor=3, timeout=30),
    "generator": lambda: loader(generator=torch.Generator().manual_seed(4)),
    "batch sampler": lambda: DataLoader(pairs(), batch_sampler=batch_sampler()),
    "subset of a subset": lambda: loader(Subset(Subset(pairs(), range(9)), [7, 3, 8, 0, -1])),
    "two": lambda: {"a": loader(), "b": loader(batch_size=3)},
}


def fit(given: Any, **flags: Any) -> Net:
    torch.manual_seed(5)
    module = Net()
    Trainer(**{**QUIET, "max_epochs": 2, **flags}).fit(module, given)
    return module


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    return bool(torch.equal(a, b)) and a.dtype == b.dtype and a.is_contiguous() == b.is_contiguous()


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_and_weights_are_those_of_the_loader(kind: str) -> None:
    """Two epochs see the same batches in the same order, under the same random state, and give the same weights."""
    plain, kept = fit(LOADERS[kind]()), fit(LOADERS[kind](), data_on_device=True)
    assert len(plain.seen) > 4
    assert same(plain.seen, kept.seen)
    assert torch.equal(plain.layer.weight, kept.layer.weight)


@pytest.mark.filterwarnings("ignore:overfit_batches takes the first batches of a fixed order")
def test_overfitting_takes_the_first_batches_of_a_kept_set() -> None:
    """A fixed order in the place of a shuffled one holds for a set that is kept on the device, too."""
    seen = fit(loader(), data_on_device=True, overfit_batches=2).seen
    assert same(seen, [[X[:2], Y[:2]], [X[2:4], Y[2:4]]] * 2)


def test_a_resume_goes_on_in_the_same_order(tmp_path: Path) -> None:
    """A run that keeps its set on the device goes on with the checkpoint of one that did not."""
    flags = {"max_epochs": 1}

    class Saves(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                self.trainer.request_checkpoint(tmp_path / "middle.ckpt")

    torch.manual_seed(5)
    whole = Saves()
    Trainer(**{**QUIET, **flags}).fit(whole, loader())
    rest = Net()
    Trainer(**{**QUIET, **flags, "data_on_device": True}).fit(rest, loader(), ckpt_path=tmp_path / "middle.ckpt")
    assert same(whole.seen[3:], rest.seen)
    assert torch.equal(whole.layer.weight, rest.layer.weight)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (lambda: loader(Moved(X)), "a dataset of type Moved"),
        (lambda: loader(Subset(Moved(X), [0, 1])), "a dataset of type Subset"),
        (lambda: loader(list(X)), "a dataset of type list"),
        (lambda: DataLoader(Stream(), batch_size=2), "a dataset of type Stream"),
        (lambda: loader(batch_size=None, shuffle=False), "batch_size=None"),
        (lambda: loader(collate_fn=lambda items: torch.stack([x for x, _ in items])), "a collate_fn of its own"),
        (lambda: [X], "list"),
    ],
)
def test_what_computes_for_each_sample_is_refused(given: Any, got: str) -> None:
    """A set that may give another sample each time is one error, which says why."""
    with pytest.raises(ConfigError, match="would be frozen") as caught:
        fit(given(), data_on_device=True)
    assert got in str(caught.value)


def test_all_loaders_are_refused_at_once() -> None:
    """Each loader that cannot be kept is named in one report; loaders of validation are left alone."""
    with pytest.raises(ConfigError) as caught:
        fit({"a": loader(), "b": loader(Moved(X)), "c": [X]}, data_on_device=True)
    assert [name in str(caught.value) for name in ("/a", "/b", "/c")] == [False, True, True]
