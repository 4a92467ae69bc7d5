"""Resume inside an epoch with another number of real ranks, or another batch size: each sample once, in one order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback, LightningModule, Trainer
from lt_interface import CheckpointError
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher

SECONDS = 400.0
N, BATCH, SAVED = 53, 4, 3  # samples, of a rank's batch before the resume, and after how many batches it was saved


class Net(LightningModule):
    """Regression that notes which samples it trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch = batch["a"] if isinstance(batch, dict) else batch
        self.seen.append((self.current_epoch, batch.tolist()))
        return self.layer(batch.float().reshape(-1, 1) / N).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saving(Callback):
    """A checkpoint in the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, SAVED - 1):
            trainer.save_checkpoint(self.path)


class Stream(IterableDataset[int]):
    """Numbers in their order, the same on each rank."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(48))


class Kept(Stream):
    """The same, whose place is kept."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.at, 48):
            self.at = number + 1
            yield number
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def _mapped(size: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(list(range(N)), size, **options)  # type: ignore[arg-type]


KINDS: dict[str, Callable[[int], Any]] = {
    "in order": _mapped,
    "shuffled": lambda size: _mapped(size, shuffle=True),
    "sampler": lambda size: _mapped(size, sampler=WeightedRandomSampler(torch.ones(N), N, replacement=False)),
    "side by side": lambda size: {"a": _mapped(size, shuffle=True), "b": _mapped(size, shuffle=True)},
    "stream": lambda size: DataLoader(Stream(), size),
    "kept": lambda size: DataLoader(Kept(), size),
    "workers": lambda size: _mapped(size, shuffle=True, num_workers=2),
    "stream, two workers": lambda size: DataLoader(Stream(), size, num_workers=2),
    "stream, workers": lambda size: DataLoader(Stream(), size, num_workers=1),
}


def fit(size: int, root: Path, kind: str, batch: int, resumes: Path | None = None) -> Net:
    """Return the network after three epochs, saved in the second one, or resumed from there."""
    net = Net()
    torch.manual_seed(3)
    trainer = Trainer(
        accelerator="cpu", devices=size, strategy=DDPStrategy() if size > 1 else "auto", launcher=ReferenceLauncher(),
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, callbacks=[] if resumes else [Saving(root / f"{kind}-{size}.ckpt")],
    )  # fmt: skip
    trainer.fit(net, KINDS[kind](batch), ckpt_path=resumes)
    return net


def orders(ranks: list[list[Any]]) -> dict[int, list[int]]:
    """Return the samples of each epoch in their order over the ranks; what only repeats one of its step is left out."""
    found: dict[int, list[int]] = {}
    for step in zip(*ranks, strict=True):
        together: list[int] = []
        for _, samples in step:
            together += [i for i in samples if i not in together]
        found.setdefault(step[0][0], []).extend(together)
    return found


def on(size: int, job: Callable[[], Any]) -> list[Any]:
    """Return what each rank's call gives."""

    def quiet(rank: int) -> Any:
        warnings.simplefilter("ignore")
        return job()

    Net().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(quiet, size, SECONDS)


def check(root: Path, kinds: list[str], before: list[int], after: list[tuple[int, int]]) -> None:
    """Save on some numbers of ranks, resume on others, and compare the order of samples with one process's.

    Args:
        root: Where checkpoints go.
        kinds: Of data.
        before: The numbers of ranks that save.
        after: Of ranks that resume, and samples of their batches.
    """
    wanted = {kind: orders([fit(1, root, kind, BATCH).seen]) for kind in kinds}
    for size in before:
        ranks = on(size, lambda size=size: {kind: fit(size, root, kind, BATCH).seen for kind in kinds})
        assert {kind: orders([rank[kind] for rank in ranks]) for kind in kinds} == wanted
    for size, batch in after:
        saved = [(kind, n) for kind in kinds for n in before if (size, batch) != (n, BATCH)]

        def job(size: int = size, batch: int = batch, saved: list[Any] = saved) -> dict[Any, Any]:
            return {(k, n): fit(size, root, k, batch, root / f"{k}-{n}.ckpt").seen for k, n in saved}

        ranks = on(size, job)
        for kind, n in saved:
            found, place = orders([rank[kind, n] for rank in ranks]), n * BATCH * SAVED
            for epoch, rest in ((1, wanted[kind][1][place:]), (2, wanted[kind][2])):
                assert found.get(epoch, []) == rest, (kind, n, size, batch, epoch)


def test_other_numbers_of_ranks_go_on_in_one_order(tmp_path: Path) -> None:
    """Inside the epoch and in the next one the samples are those of a run without the change, each of them once."""
    check(tmp_path, ["shuffled", "side by side", "kept"], [1, 2], [(1, BATCH), (2, BATCH), (3, BATCH)])


@pytest.mark.slow
def test_any_number_of_ranks_and_batch_size_goes_on_in_one_order(tmp_path: Path) -> None:
    """The same with workers, with samplers of many kinds, and with batches in which the place lies anywhere."""
    again = [(1, 4), (2, 4), (3, 4), (4, 4), (1, 5), (2, 5), (2, 3), (3, 7)]
    check(tmp_path, [kind for kind in KINDS if not kind.startswith("stream")], [1, 2, 4], again)
    check(tmp_path, ["stream", "stream, workers"], [1, 2, 4], [*again[:4], (1, 2), (2, 6), (3, 12)])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("kind", "batch"), [("stream", 5), ("stream, two workers", 6)])
def test_a_stream_whose_batches_do_not_fit_is_refused(size: int, kind: str, batch: int, tmp_path: Path) -> None:
    """A place in data that keeps none, where no whole batch of a worker's ends, is one error on every rank."""
    fit(1, tmp_path, kind, BATCH)

    def job() -> str:
        with pytest.raises(CheckpointError) as caught:
            fit(size, tmp_path, kind, batch, tmp_path / f"{kind}-1.ckpt")
        return str(caught.value)

    for text in on(size, job):
        assert f"passing over whole batches. Got batch_size={batch} for 3 batches of 4. Use batch_size=4" in text
