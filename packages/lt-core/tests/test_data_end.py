"""Check that an epoch ends where its data ends, whatever its loader said, with all that belongs to its end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET, Noting
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from lt_core import CombinedLoader, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_interface.errors import ConfigError

SAMPLES = TensorDataset(torch.ones(8, 1))


class Bounded(Sampler[Any]):
    """Sampler of batches or of samples that says another length than it has."""

    def __init__(self, items: list[Any], said: int) -> None:
        self.items, self.said = items, said

    def __len__(self) -> int:
        return self.said

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Stream(IterableDataset[Tensor]):
    """Samples of which one says how many there are."""

    def __init__(self, n: int, said: int) -> None:
        self.n, self.said = n, said

    def __len__(self) -> int:
        return self.said

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(self.n, 1))


class Batches:
    """Iterable of batches that says another length than it has."""

    def __init__(self, n: int, said: int) -> None:
        self.n, self.said = n, said

    def __len__(self) -> int:
        return self.said

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.ones(2, 1)] * self.n)


def endless(n: int) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter([torch.ones(2, 1)] * n)


PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7]]
KINDS: dict[str, Callable[[int], Any]] = {
    "batch sampler": lambda said: DataLoader(SAMPLES, batch_sampler=Bounded(PAIRS, said)),
    "sampler": lambda said: DataLoader(SAMPLES, batch_size=2, sampler=Bounded(list(range(8)), 2 * said)),
    "stream": lambda said: DataLoader(Stream(8, 2 * said), batch_size=2),
    "stream in a worker": lambda said: DataLoader(Stream(8, 2 * said), batch_size=2, num_workers=1),
    "iterable": lambda said: Batches(4, said),
    "several": lambda said: CombinedLoader([Batches(4, said), Batches(2, 2)], "max_size_cycle"),
    "shortest": lambda said: CombinedLoader([Batches(4, said), Batches(9, 9)], "min_size"),
}


class Net(Noting):
    """Module that notes the step of each validation, and the batches of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[int] = []
        self.batches: list[int] = []

    def on_train_epoch_start(self) -> None:
        self.batches.append(0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches[-1] += 1
        loss: Tensor = self.layer(batch[0] if isinstance(batch, list | tuple) else batch).sum()
        return loss

    def on_validation_end(self) -> None:
        self.validated.append(self.global_step)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def fit(loader: Any, **flags: Any) -> tuple[Net, Trainer]:
    net, run = Net(), Trainer(**QUIET | {"max_epochs": 2, "num_sanity_val_steps": 0, **flags})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Correct its __len__")
        warnings.filterwarnings("ignore", "Length of IterableDataset")
        run.fit(net, loader, [torch.ones(1, 1)])
    return net, run


@pytest.mark.parametrize("said", [1, 3, 9])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 3])
def test_a_wrong_length_loses_no_batch_and_nothing_of_the_epochs_end(
    kind: str, said: int, window: int, tmp_path: Path
) -> None:
    """All batches are trained, the open window and schedulers step, validation and saves follow the last batch."""
    saving = ModelCheckpoint(tmp_path, monitor="val", save_top_k=-1, filename="{epoch}-{step}")
    net, run = fit(
        KINDS[kind](said),
        accumulate_grad_batches=window,
        callbacks=[EarlyStopping("val", patience=9), saving],
        enable_checkpointing=True,
    )
    steps = -(-4 // window)
    assert net.batches == [4, 4]
    assert net.validated == [steps, 2 * steps]
    assert run.current_epoch == 2
    assert run.optimizers[0].param_groups[0]["lr"] == 0.25
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == [
        f"epoch=0-step={steps}.ckpt",
        f"epoch=1-step={2 * steps}.ckpt",
    ]


@pytest.mark.parametrize(
    ("flags", "validated"),
    [
        ({}, [4, 8]),
        ({"val_check_interval": 0.5}, [4, 8]),
        ({"val_check_interval": 10}, [4, 8]),
        ({"val_check_interval": 2}, [2, 4, 6, 8]),
        ({"val_check_interval": 3}, [3, 7]),
        ({"check_val_every_n_epoch": 2}, [8]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6]),
    ],
)
def test_a_limit_beyond_the_end_of_a_stream(flags: dict[str, Any], validated: list[int]) -> None:
    """What the last batch within the limit would have brought, the last one that comes brings."""
    net, _ = fit(endless(4), limit_train_batches=10, **flags)
    assert (net.batches, net.validated) == ([4, 4], validated)


def test_a_limit_counts_where_the_length_is_wrong() -> None:
    """A whole number of batches ends the epoch, a fraction is one of what the loader says."""
    assert fit(Batches(9, 4), limit_train_batches=6)[0].batches == [6, 6]
    assert fit(Batches(9, 4), limit_train_batches=0.5)[0].batches == [2, 2]


class Buckets(Sampler[list[int]]):
    """Batch sampler whose batches differ from epoch to epoch, as those of buckets by length."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def size(self) -> int:
        return [2, 4, 1][self.epoch]

    def __len__(self) -> int:
        return (8 + self.size() - 1) // self.size()

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(range(i, min(8, i + self.size()))) for i in range(0, 8, self.size())])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("window", [1, 3])
def test_sizes_are_asked_anew_each_epoch(workers: int, window: int) -> None:
    """An epoch may have fewer or more batches than the one before, and is validated at its own end."""
    loader = DataLoader(SAMPLES, batch_sampler=Buckets(), num_workers=workers)
    sizes: list[Any] = []
    net, run = (
        Net(),
        Trainer(**QUIET, max_epochs=3, num_sanity_val_steps=0, accumulate_grad_batches=window, log_every_n_steps=0),
    )
    run.on("train_batch_start", every=1)(lambda trainer: sizes.append(trainer.num_training_batches))
    run.fit(net, loader, [torch.ones(1, 1)])
    assert net.batches == [4, 2, 8]
    assert list(dict.fromkeys(sizes)) == [4, 2, 8]
    ends = [-(-n // window) for n in (4, 2, 8)]
    assert net.validated == [sum(ends[: i + 1]) for i in range(3)]


def test_a_dataset_that_grows_between_epochs_is_trained_whole() -> None:
    """Torch's own samplers are asked for their length each epoch, too."""
    samples = [torch.ones(1)] * 2
    run, net = Trainer(**QUIET, max_epochs=3, num_sanity_val_steps=0), Net()
    run.on("train_epoch_end")(lambda: samples.extend([torch.ones(1)] * 2))
    run.fit(net, DataLoader(samples, batch_size=2, shuffle=True), [torch.ones(1, 1)])  # type: ignore[arg-type]
    assert net.batches == [1, 2, 3]
    assert net.validated == [1, 3, 6]


def test_an_interval_beyond_a_later_epochs_end_is_no_error() -> None:
    """Only the first epoch's size, where it is known, can show that an interval was a mistake."""
    samples = [torch.ones(1)] * 3
    run, net = Trainer(**QUIET, max_epochs=2, num_sanity_val_steps=0, val_check_interval=3), Net()
    run.on("train_epoch_end")(lambda: samples.pop(0))
    run.fit(net, DataLoader(samples), [torch.ones(1, 1)])  # type: ignore[arg-type]
    assert net.validated == [3]
    with pytest.raises(ConfigError, match="at most the 2 training batches"):
        fit([torch.ones(1, 1)] * 2, val_check_interval=3)


def test_a_window_longer_than_was_said_weighs_its_batches_alike() -> None:
    """Three batches where two were said, or two where three were: the step is that of their mean."""
    results = []
    for loader in (Batches(3, 2), Batches(3, 3), Batches(3, 9), [torch.ones(2, 1)] * 3):
        torch.manual_seed(1)
        net, _ = fit(loader, accumulate_grad_batches=4, max_epochs=1)
        results.append(net.layer.weight.item())
    assert results[1] == results[3]  # to the bit where the length is right
    torch.testing.assert_close(torch.tensor(results), torch.tensor([results[3]] * 4))


def test_an_evaluation_takes_all_that_a_loader_gives() -> None:
    """Its length is no limit there either, and may differ from call to call."""
    run, net, seen = Trainer(**QUIET, max_epochs=1), Noting(), []
    run.on("validation_batch_end")(lambda batch_idx: seen.extend([batch_idx]))
    run.validate(net, Batches(4, 2), verbose=False)
    assert seen == [0, 1, 2, 3]
