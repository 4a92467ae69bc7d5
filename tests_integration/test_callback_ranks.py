"""Callbacks beside lt-accel: augmentation, predictions, norms of gradients and spikes on two ranks; a loss scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rank_values import on, trainer_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.precision.mixed import MixedPrecision
from lt_core import LightningModule, Trainer
from lt_core.callbacks import (
    BasePredictionWriter,
    BatchTransform,
    GradientAccumulationScheduler,
    GradNorm,
    ModelCheckpoint,
    PredictionWriter,
    RichModelSummary,
    SpikeDetection,
    TQDMProgressBar,
    TrainingSpikeException,
)

DATA = TensorDataset(torch.arange(20.0).reshape(-1, 1), torch.arange(20))


class Net(LightningModule):
    """Module that keeps what it was given, by the index of its samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(1, 1)
        self.seen: dict[tuple[int, ...], list[float]] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen[(self.current_epoch, *y.tolist())] = x.flatten().tolist()
        loss: Tensor = self.layer(x).square().mean()
        return loss

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        found: Tensor = batch[1]
        return found

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def loader(**given: Any) -> DataLoader[Any]:
    return DataLoader(DATA, **{"batch_size": 2, **given})


def noise(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


def fit(size: int, folder: Path, *callbacks: Any, path: Any = None, **flags: Any) -> Any:
    torch.manual_seed(2)
    trainer = trainer_of(size, folder, callbacks=[*callbacks], **flags)
    module = Net()
    trainer.fit(module, loader(), ckpt_path=path)
    return module, trainer


@pytest.mark.filterwarnings("ignore:.*callbacks that are not here")
def test_each_rank_draws_for_itself_and_resumes(tmp_path: Path) -> None:
    """Ranks draw what one process draws for the same batches, no two alike; a resume in mid-epoch changes nothing."""
    alone, _ = fit(1, tmp_path, BatchTransform(noise, keys=0), max_epochs=2)

    def job(rank: int) -> Any:
        whole, _ = fit(2, tmp_path / "whole", BatchTransform(noise, keys=0), max_epochs=2)
        saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)
        flags = {"max_epochs": 2, "enable_checkpointing": True}
        fit(2, tmp_path, BatchTransform(noise, keys=0), saver, max_steps=4, **flags)
        file = tmp_path / "saved" / "epoch=0-step=3.ckpt"
        rest, _ = fit(2, tmp_path, BatchTransform(noise, keys=0), path=file, max_epochs=2)
        return whole.seen, rest.seen, whole.layer.weight.item(), rest.layer.weight.item()

    found = on(2, job)
    together: dict[Any, Any] = {}
    for whole, rest, weight, resumed in found:
        assert resumed == weight == found[0][2]
        assert len(whole) == 10
        assert rest == {key: whole[key] for key in [*whole][3:]}
        together |= whole
    assert together == alone.seen
    drawn = [
        round(x - y, 6) for (_, *indices), values in together.items() for y, x in zip(indices, values, strict=True)
    ]
    assert len(set(drawn)) == 40


@pytest.mark.filterwarnings("ignore:.*callbacks that are not here")
def test_windows_grow_on_all_ranks_alike(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two ranks accumulate and step as one process does, resumed inside a window too; rank 0 alone shows the model."""

    def run(size: int, name: str, *callbacks: Any, path: Any = None, **flags: Any) -> Any:
        schedule = GradientAccumulationScheduler({0: 1, 1: 3})
        trainer = trainer_of(size, tmp_path / name, callbacks=[schedule, *callbacks], max_epochs=2, **flags)
        module = Net()
        trainer.fit(module, loader(batch_size=4 // size), ckpt_path=path)
        return trainer.global_step, [module.layer.weight.item(), module.layer.bias.item()]

    steps, weights = run(1, "alone")
    assert steps == 5 + 2

    def job(rank: int) -> Any:
        whole = run(2, "whole", RichModelSummary(), enable_model_summary=True)
        saver = ModelCheckpoint(tmp_path / "inside", every_n_train_steps=1, save_top_k=-1)
        run(2, "cut", saver, max_steps=6, enable_checkpointing=True)
        return whole, run(2, "rest", path=tmp_path / "inside" / "epoch=1-step=6.ckpt")

    capfd.readouterr()
    for whole, rest in on(2, job):
        assert whole == rest
        assert (whole[0], whole[1]) == (steps, pytest.approx(weights, rel=1e-6))
    assert capfd.readouterr().out.count("Total params") == 1


class Writer(BasePredictionWriter):
    """Writer that keeps what it was given."""

    def write_on_batch_end(self, *given: Any) -> None:
        _, _, prediction, indices, _, batch_idx, loader_idx = given
        assert prediction.tolist() == indices
        self.batches = [*getattr(self, "batches", []), (batch_idx, loader_idx, indices)]

    def write_on_epoch_end(self, trainer: Trainer, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.whole = [[p.tolist() for p in each] for each in predictions], batch_indices


@pytest.mark.filterwarnings("ignore:.*the loader shuffles")
def test_each_rank_writes_its_own_predictions(tmp_path: Path) -> None:
    """Shuffled, of several loaders and where a rank has fewer, each sample is written once, with its index."""

    def job(rank: int) -> Any:
        writer = Writer("batch_and_epoch")
        torch.manual_seed(rank)
        loaders = [loader(batch_size=3, shuffle=True), DataLoader(DATA, batch_size=4), DataLoader(DATA, 19)]
        trainer = trainer_of(2, tmp_path, callbacks=[writer, PredictionWriter(tmp_path / "files")])
        trainer.predict(Net(), loaders, return_predictions=False)
        assert writer.whole[0] == writer.whole[1]
        return writer.batches

    found = on(2, job)
    for number in range(3):
        indices = [i for batches in found for _, of, each in batches if of == number for i in each]
        assert sorted(indices) == list(range(20))
    files = [torch.load(path) for path in (tmp_path / "files").iterdir()]
    assert len(files) == sum(map(len, found))
    assert all(one["predictions"].tolist() == one["indices"] for one in files)


def test_norms_are_of_the_ranks_mean(tmp_path: Path) -> None:
    """The norm is that of the gradients of the global batch, the same on every rank, and behind a window."""

    def job(rank: int) -> Any:
        _, trainer = fit(2, tmp_path, GradNorm(), logger=True, log_every_n_steps=1, accumulate_grad_batches=2)
        return list(trainer.history.steps["grad_2.0_norm_total"].values())

    torch.manual_seed(2)
    trainer = trainer_of(1, tmp_path, callbacks=[GradNorm()], logger=True, log_every_n_steps=1)
    trainer.fit(Net(), loader(batch_size=8))
    expected = list(trainer.history.steps["grad_2.0_norm_total"].values())
    for norms in on(2, job):
        assert norms == pytest.approx(expected, rel=1e-4)


def test_a_spike_on_one_rank_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The ranks judge their mean, all end at the same batch, the first writes the file; a bar is the first's alone."""

    class Jumps(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.layer(batch[0]).sum() * 0 + (9.0 if self.global_rank == 1 and batch_idx == 3 else 1.0)

    def job(rank: int) -> Any:
        bar = TQDMProgressBar() if rank_has_tqdm else None
        watch = SpikeDetection(exclude_batches_path=tmp_path / "skip.json")
        flags = {"enable_progress_bar": bar is not None}
        trainer = trainer_of(2, tmp_path, callbacks=[watch, *([bar] if bar else [])], **flags)
        with pytest.raises(TrainingSpikeException, match="Got 5; the mean of the last 3 was 1") as error:
            trainer.fit(Jumps(), loader())
        return error.value.batch_idx

    from importlib.util import find_spec

    rank_has_tqdm = find_spec("tqdm") is not None
    assert on(2, job) == [3, 3]
    assert json.loads((tmp_path / "skip.json").read_text()) == [2, 3]
    assert capfd.readouterr().out.count("Epoch 0/0:   0%") == rank_has_tqdm


@pytest.mark.parametrize("window", [1, 2])
def test_norms_have_no_loss_scale(window: int, tmp_path: Path) -> None:
    """With a loss scale of 8 the norm is that of bf16-mixed, within its rounding, behind a window, too."""
    norms, scaler = [], torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    for precision in ("bf16-mixed", MixedPrecision("16-mixed", "cpu", scaler)):
        flags = {"logger": True, "log_every_n_steps": 1, "accumulate_grad_batches": window}
        _, trainer = fit(1, tmp_path / str(precision), GradNorm(), precision=precision, **flags)
        norms.append(list(trainer.history.steps["grad_2.0_norm_total"].values()))
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
