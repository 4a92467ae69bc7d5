"""Train with every strategy, precision and logger that is installed, together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import LightningModule, Trainer
from lt_core.checkpoint import load_checkpoint
from lt_interface import MissingPackageError, Plan, registry

# Other names of the same class say how ranks are started, which one process does without.
STRATEGIES = {type(registry.strategies.get(name)()): name for name in reversed(registry.strategies.names())}.values()
LOGGERS = registry.loggers.names()


def works_here(name: str) -> bool:
    """Return whether a precision's packages are installed and it has no problem with a CPU."""
    try:
        return not registry.precisions.get(name)().problems(Plan(precision=name))
    except MissingPackageError:
        return False


PRECISIONS = [name for name in registry.precisions.names() if works_here(name)]


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.seen: set[torch.dtype] = set()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        out = self.layers(x)
        self.seen.add(out.dtype)
        return nn.functional.mse_loss(out, y.to(out.dtype))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def make_loader() -> DataLoader[tuple[Tensor, ...]]:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)


def make_trainer(strategy: str, precision: str, logger: str, folder: Path, epochs: int) -> Trainer:
    made = registry.loggers.get(logger)(save_dir=folder / "logs")
    flags = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2}
    return Trainer(
        strategy=strategy,
        precision=precision,
        logger=made,
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        **flags,
    )


@pytest.fixture(autouse=True)
def _trackers_without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_train_validate_save_and_resume(strategy: str, precision: str, logger: str, tmp_path: Path) -> None:
    """Any strategy, precision and logger train, validate, leave logs and a checkpoint, and resume."""
    torch.manual_seed(0)
    net = Net()
    trainer = make_trainer(strategy, precision, logger, tmp_path, epochs=2)
    trainer.fit(net, make_loader(), make_loader())
    assert trainer.global_step == 16
    assert torch.isfinite(trainer.callback_metrics["val_loss"])
    losses = trainer.history["val_loss"]
    assert len(losses) == 2
    assert losses[1] < losses[0]

    wanted = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
    assert net.seen == {wanted[precision.split("-", maxsplit=1)[0]]}
    saved = trainer.checkpoint_callback.best_model_path
    assert load_checkpoint(saved)["global_step"] == 16
    assert [p for p in (tmp_path / "logs").rglob("*") if p.is_file()]

    again = make_trainer(strategy, precision, logger, tmp_path, epochs=3)
    again.fit(Net(), make_loader(), make_loader(), ckpt_path="last")
    assert again.global_step == 24
    assert again.history["val_loss"][:2] == losses
    assert again.history["val_loss"][2] < losses[1]


def test_every_kind_of_plugin_is_installed() -> None:
    """The packages together bring at least these plugins, so that the matrix is not empty by mistake."""
    assert "single_device" in STRATEGIES
    assert {"32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"} <= set(PRECISIONS)
    assert {"csv", "tensorboard", "wandb", "mlflow"} <= set(LOGGERS)
