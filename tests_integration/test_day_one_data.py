"""Data as users of Lightning bring it: graphs, streams of shards, loaders that know their place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lt_core import LightningDataModule, LightningModule, Trainer, seed_everything
from lt_interface.testing.ranks import run_ranks

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Seeing(LightningModule):
    """Module that keeps the values it was trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[float] = []
        self.validated: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += batch.flatten().tolist()
        loss = self.layer(batch).pow(2).mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += batch.flatten().tolist()
        self.log("val", batch.mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-5, momentum=0.9)


def train(folder: Path, make: Any, *more: Any, path: Any = None, **flags: Any) -> tuple[Any, Trainer]:
    """Return module and trainer after a fit of two epochs."""
    seed_everything(3, verbose=False)
    module = Seeing()
    if not more:
        module.validation_step = None  # type: ignore[assignment, method-assign]
    flags = {**QUIET, "max_epochs": 2, "enable_checkpointing": False, "default_root_dir": folder, **flags}
    trainer = Trainer(**flags)
    trainer.fit(module, make(), *more, ckpt_path=path)
    return module, trainer


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Stream of 24 numbers that its workers share and that knows its place."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Any:
        worker = get_worker_info()
        count, index = (worker.num_workers, worker.id) if worker else (1, 0)
        while (value := self.given * count + index) < 24:
            self.given += 1
            yield torch.tensor([float(value)])
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


DATA = torch.arange(24.0)[:, None]


@pytest.mark.parametrize("kind", ["shuffled", "generator", "stream", "stream in workers"])
@pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning")
def test_a_stateful_loader_of_torchdata_resumes_in_mid_epoch(tmp_path: Path, kind: str) -> None:
    """A run that was cut and resumed sees each sample as the whole one does, and ends with its weights."""
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make() -> Any:
        if kind == "generator":
            return loader(DATA, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(5))
        if kind == "shuffled":
            return loader(DATA, batch_size=2, shuffle=True)
        return loader(Stream(), batch_size=2, num_workers=2 * (kind != "stream"))

    whole, _ = train(tmp_path, make)
    cut, trainer = train(tmp_path, make, max_steps=17)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rest, _ = train(tmp_path, make, path=tmp_path / "a.ckpt")
    assert sorted(whole.seen) == sorted(2 * DATA.flatten().tolist())
    assert cut.seen + rest.seen == whole.seen
    assert torch.equal(rest.layer.weight, whole.layer.weight)


def shards(folder: Path) -> str:
    """Return the address of four shards with six numbers each."""
    wds = pytest.importorskip("webdataset")
    for shard in range(4):
        with wds.TarWriter(f"{folder}/s-{shard}.tar") as writer:
            for i in range(shard * 6, shard * 6 + 6):
                writer.write({"__key__": f"{i:04d}", "json": {"value": i}})
    return f"{folder}/s-{{0..3}}.tar"


def web(address: str, size: int = 2) -> Any:
    """Return batches of a dataset whose shards go to ranks and workers."""
    import webdataset as wds

    dataset = wds.WebDataset(
        address, nodesplitter=wds.split_by_node, workersplitter=wds.split_by_worker, shardshuffle=False
    )
    numbers = dataset.decode().to_tuple("json").map(lambda item: (torch.tensor([float(item[0]["value"])]),))
    return numbers.batched(size).map(lambda batch: torch.as_tensor(batch[0]).reshape(-1, 1))


# webdataset leaves the files of its shards to the garbage collector.
closing = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
LENGTH = pytest.mark.filterwarnings("ignore:.*only sets the value of __len__:UserWarning")


@closing
@LENGTH
@pytest.mark.parametrize("kind", ["plain", "workers", "length", "epoch"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_of_shards_gives_each_sample_once_an_epoch(tmp_path: Path, kind: str) -> None:
    """Pipelines of webdataset train alone and in workers; with_length is believed as a length, with_epoch cuts."""
    address = shards(tmp_path)
    import webdataset as wds

    loaders = {
        "plain": lambda: DataLoader(web(address), batch_size=None),
        "workers": lambda: wds.WebLoader(web(address), batch_size=None, num_workers=2),
        "length": lambda: wds.WebLoader(web(address), batch_size=None).with_length(12),
        "epoch": lambda: wds.WebLoader(web(address).repeat(), batch_size=None).with_epoch(5),
    }
    module, trainer = train(
        tmp_path, loaders[kind], DataLoader(web(address, 3), batch_size=None), num_sanity_val_steps=0
    )
    batches = 5 if kind == "epoch" else 12
    assert trainer.global_step == 2 * batches
    if kind != "epoch":
        assert sorted(module.seen) == sorted(2 * DATA.flatten().tolist())
    assert sorted(module.validated) == sorted(2 * DATA.flatten().tolist())
    assert trainer.num_training_batches == (12 if kind == "length" else float("inf"))


@closing
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ranks_share_the_shards_of_a_stream(tmp_path: Path) -> None:
    """Where the dataset splits its shards by node, no rank drops any and none is seen twice."""
    address = shards(tmp_path)

    def job(rank: int) -> list[float]:
        warnings.simplefilter("ignore", ResourceWarning)
        flags = {"devices": 2, "strategy": "ddp", "max_epochs": 1}
        return train(tmp_path, lambda: DataLoader(web(address), batch_size=None), **flags)[0].seen

    first, second = run_ranks(job, timeout=120)
    assert len(first) == len(second) == 12
    assert sorted(first + second) == DATA.flatten().tolist()


class Graphs(LightningDataModule):
    """Data module of small graphs, for training alone."""

    def train_dataloader(self) -> Any:
        from torch_geometric.data import Data
        from torch_geometric.loader import DataLoader as GraphLoader

        generator = torch.Generator().manual_seed(0)
        edges = torch.tensor([[0, 1], [1, 2]])
        graphs = [
            Data(x=torch.randn(3 + i % 3, 2, generator=generator), edge_index=edges, y=torch.tensor([i % 2]))
            for i in range(10)
        ]
        return GraphLoader(graphs, batch_size=4, shuffle=True)


class OfGraphs(LightningModule):
    """Module that classifies graphs, and logs how many are in a batch."""

    def __init__(self) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.convolution, self.head = GCNConv(2, 8), torch.nn.Linear(8, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        from torch_geometric.nn import global_mean_pool

        nodes = self.convolution(batch.x, batch.edge_index).relu()
        loss = torch.nn.functional.cross_entropy(self.head(global_mean_pool(nodes, batch.batch)), batch.y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("graphs", float(batch.num_graphs), on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_graphs_train_without_validation(tmp_path: Path) -> None:
    """Batches of torch_geometric move by their own method, count as many samples as they have graphs, and resume."""
    pytest.importorskip("torch_geometric")

    def fit(path: Any = None, **flags: Any) -> Any:
        seed_everything(3, verbose=False)
        module = OfGraphs()
        trainer = Trainer(**QUIET, max_epochs=2, enable_checkpointing=False, default_root_dir=tmp_path, **flags)
        trainer.fit(module, datamodule=Graphs(), ckpt_path=path)
        return module, trainer

    whole, trainer = fit()
    assert float(trainer.callback_metrics["graphs"]) == pytest.approx((4 * 4 + 4 * 4 + 2 * 2) / 10)
    _, cut = fit(max_steps=4)
    cut.save_checkpoint(tmp_path / "a.ckpt")
    resumed, _ = fit(tmp_path / "a.ckpt")
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
