"""Programs as users of Lightning write them: Hydra's configurations, Hugging Face models, metric collections, timm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lt_core import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class FromHydra(LightningModule):
    """Module whose optimizer and scheduler come as partial functions."""

    def __init__(self, optimizer: Any, scheduler: Any = None, width: int = 1, sizes: Any = ()) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.layer = torch.nn.Linear(2, width)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).pow(2).mean())

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams.optimizer(params=self.parameters())
        if self.hparams.scheduler is None:
            return optimizer
        scheduler = self.hparams.scheduler(optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Ones(LightningDataModule):
    """Data module of ones."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(8, 2), batch_size=self.hparams.batch_size)

    val_dataloader = train_dataloader


HERE = __name__
CONFIG = {
    "model": {
        "_target_": f"{HERE}.FromHydra",
        "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.1},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "_partial_": True, "patience": 1},
        "width": 3,
        "sizes": [1, "${model.width}"],
    },
    "data": {"_target_": f"{HERE}.Ones", "batch_size": 4},
    "trainer": {
        "_target_": "lt_core.Trainer",
        "max_epochs": 2,
        "devices": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "callbacks": [
            {"_target_": "lt_core.callbacks.ModelCheckpoint", "monitor": "val_loss", "filename": "best"},
            {"_target_": "lt_core.callbacks.EarlyStopping", "monitor": "val_loss"},
        ],
        "logger": [{"_target_": "lt_core.loggers.CSVLogger", "save_dir": "${folder}"}],
        "profiler": {"_target_": "lt_core.profilers.PassThroughProfiler"},
        "strategy": {"_target_": "lt_core.strategies.SingleDeviceStrategy"},
        "default_root_dir": "${folder}",
    },
}


@pytest.mark.filterwarnings("ignore:.*a checkpoint keeps only the text of optimizer, scheduler")
@pytest.mark.parametrize("convert", ["none", "all"])
def test_hydra_makes_all_of_it_from_strings(tmp_path: Path, convert: str) -> None:
    """Model, data, trainer, callbacks, loggers and partial optimizers are made from class paths, in its own lists."""
    hydra = pytest.importorskip("hydra.utils")
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({**CONFIG, "folder": str(tmp_path)})
    model, data, trainer = (hydra.instantiate(config[key], _convert_=convert) for key in ("model", "data", "trainer"))
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
    trainer.fit(model, datamodule=data)
    assert (trainer.global_step, type(trainer.optimizers[0]).__name__, len(trainer.callbacks)) == (4, "Adam", 3)
    path = trainer.checkpoint_callback.best_model_path
    trainer.validate(model, datamodule=data, ckpt_path=path, verbose=False)
    again = FromHydra.load_from_checkpoint(path, optimizer=model.hparams.optimizer, scheduler=None)
    assert (again.hparams.width, list(again.hparams.sizes)) == (3, [1, 3])
    assert torch.equal(again.layer.weight, model.layer.weight)


class Warmup:
    """Scheduler with timm's methods: ``step`` by the epoch and ``step_update`` by the update, each with the count."""

    def __init__(self, optimizer: Any, updates: bool, warmup: int = 2, end: int = 10) -> None:
        self.optimizer, self.updates, self.warmup, self.end = optimizer, updates, warmup, end
        self.base = [group["lr"] for group in optimizer.param_groups]
        self._set(0)

    def _set(self, t: int) -> None:
        for base, group in zip(self.base, self.optimizer.param_groups, strict=True):
            falling = 0.5 * (1 + math.cos(math.pi * t / self.end))
            group["lr"] = base * (t / self.warmup if t < self.warmup else falling)

    def step(self, epoch: int, metric: Any = None) -> None:
        if not self.updates:
            self._set(epoch)

    def step_update(self, num_updates: int, metric: Any = None) -> None:
        if self.updates:
            self._set(num_updates)

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Scheduled(LightningModule):
    """Module with such a scheduler, and what its rate was at each step."""

    def __init__(self, make: Any, updates: bool) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.make, self.updates = make, updates
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch).pow(2).mean()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self.updates:
            scheduler.step_update(num_updates=self.global_step)
        else:
            scheduler.step(epoch=self.current_epoch + 1, metric=metric)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        interval = "step" if self.updates else "epoch"
        return [optimizer], [{"scheduler": self.make(optimizer), "interval": interval}]


def timm_cosine(optimizer: Any, updates: bool) -> Any:
    try:
        from timm.scheduler import CosineLRScheduler
    except Exception as error:  # its torchvision must be built for this torch, and raises what it likes if it is not
        pytest.skip(f"timm: {error}")
    return CosineLRScheduler(optimizer, t_initial=10, warmup_t=2, warmup_lr_init=0.0, t_in_epochs=not updates)


@pytest.mark.parametrize("make", [Warmup, timm_cosine])
@pytest.mark.parametrize("updates", [True, False])
def test_a_scheduler_with_counts_steps_by_the_module_s_own_hook(tmp_path: Path, make: Any, updates: bool) -> None:
    """A scheduler whose methods take the epoch or the update steps by lr_scheduler_step, and goes on after a resume."""

    def fit(path: Any = None, **flags: Any) -> Any:
        module = Scheduled(lambda optimizer: make(optimizer, updates), updates)
        trainer = Trainer(**QUIET, max_epochs=3, enable_checkpointing=False, default_root_dir=tmp_path, **flags)
        trainer.fit(module, DataLoader(torch.ones(6, 2), batch_size=2), ckpt_path=path)
        return module.rates, trainer

    rates, _ = fit()
    assert rates[:3] == ([0.0, 0.05, pytest.approx(0.1, rel=0.1)] if updates else [0.0] * 3)
    assert (rates[3] == 0.05) is not updates
    before, trainer = fit(max_steps=5)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert before + fit(tmp_path / "a.ckpt")[0] == rates


class Measured(LightningModule):
    """Module that measures with collections: as objects and as values, one a validation loader."""

    def __init__(self) -> None:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        both = MetricCollection({"acc": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3)})
        self.of_training = both.clone(prefix="train/")
        self.of_validation = torch.nn.ModuleList(both.clone(prefix=f"val{i}/") for i in range(2))
        self.by_hand = both.clone(prefix="hand/", postfix="_all")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        scores = self.layer(batch[0])
        self.of_training(scores, batch[1])
        self.log_dict(self.of_training, on_step=True, on_epoch=True)
        return torch.nn.functional.cross_entropy(scores, batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        scores = self.layer(batch[0])
        self.of_validation[dataloader_idx].update(scores, batch[1])
        self.log_dict(self.of_validation[dataloader_idx], add_dataloader_idx=False)
        self.by_hand.update(scores, batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.by_hand.compute())
        self.by_hand.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:self.log.'hand")
@pytest.mark.parametrize("ranks", [1, 2])
def test_collections_of_torchmetrics_are_logged_as_objects_and_as_values(tmp_path: Path, ranks: int) -> None:
    """Clones with prefixes are logged by log_dict, for several loaders and ranks; values are of all samples."""
    pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(2, generator=generator), i % 3) for i in range(24)]
    loaders = [DataLoader(data, batch_size=4), DataLoader(data[:12], batch_size=4), DataLoader(data[12:], batch_size=4)]
    flags = {} if ranks == 1 else {"devices": 2, "strategy": "ddp_fork"}
    seed_everything(1, verbose=False)
    module = Measured()
    trainer = Trainer(**QUIET, max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path, **flags)
    trainer.fit(module, loaders[0], loaders[1:])

    def accuracy(samples: Any) -> float:
        right = [int(module.layer(x).argmax()) == y for x, y in samples]
        return sum(right) / len(right)

    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {f"train/{n}{s}" for n in ("acc", "f1") for s in ("", "_step", "_epoch")} <= set(found)
    expected = {"train/acc_epoch": data, "val0/acc": data[:12], "val1/acc": data[12:], "hand/acc_all": data}
    for name, samples in expected.items():
        assert found[name] == pytest.approx(accuracy(samples)), name


class Tiny(LightningModule):
    """Module around a tiny Bert with random weights."""

    def __init__(self, lr: float = 1e-2) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        self.save_hyperparameters()
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        self.model = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=8, **sizes))
        self.seen: list[str] = []

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(type(batch).__name__)
        output = self(**batch)
        self.log("train_loss", output.loss, on_step=True, on_epoch=True)
        return output

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss, _ = self(**batch)[:2]
        self.log("val_loss", loss, sync_dist=True)
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(**batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.model.save_pretrained(Path(self.trainer.default_root_dir) / "pretrained")

    def configure_optimizers(self) -> Any:
        from transformers import get_linear_schedule_with_warmup

        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        total = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": get_linear_schedule_with_warmup(optimizer, 2, total), "interval": "step"}]


def encoded(shuffle: bool = False, labels: bool = True) -> Any:
    """Return a loader of BatchEncodings."""
    from transformers import BatchEncoding

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 30, (16, 6), generator=generator)

    def collate(indices: list[int]) -> Any:
        ids = rows[indices]
        more = {"labels": torch.tensor(indices) % 2} if labels else {}
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids), **more})

    return DataLoader(range(16), batch_size=4, shuffle=shuffle, collate_fn=collate)


class SavesAndStops(Callback):
    """Callback that saves in the middle of the second epoch and ends the run there, with its schedule as it was."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "cut.ckpt")
            trainer.should_stop = True


def test_a_hugging_face_model_trains_saves_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encodings move and train as they are, a step may return the model's output, and a resume is exact to the bit."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()

    def fit(path: Any = None, **flags: Any) -> Any:
        seed_everything(1, verbose=False)
        module = Tiny()
        trainer = Trainer(**QUIET, max_epochs=2, enable_checkpointing=False, default_root_dir=tmp_path, **flags)
        trainer.fit(module, encoded(shuffle=True), encoded(), ckpt_path=path)
        return module, trainer

    module, trainer = fit()
    assert set(module.seen) == {"BatchEncoding"}
    outputs = trainer.predict(module, encoded(labels=False))
    assert [tuple(output.logits.shape) for output in outputs] == [(4, 2)] * 4
    fit(callbacks=[SavesAndStops()])
    resumed, _ = fit(tmp_path / "cut.ckpt")
    assert len(resumed.seen) == 2
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    pretrained = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "pretrained")
    loaded = Tiny.load_from_checkpoint(tmp_path / "cut.ckpt")
    assert loaded.hparams.lr == 1e-2
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, pretrained.state_dict()[name]), name
