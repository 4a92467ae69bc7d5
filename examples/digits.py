"""Train a small convolutional network on real hand-written digits.

The data set comes with scikit-learn (1,797 pictures of 8 x 8 pixels, from the UCI repository): nothing is downloaded.
`python examples/digits.py` trains; kill it at any moment, and `python examples/digits.py --resume` ends just the same.
"""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from lt_core import LightningDataModule, LightningModule, Trainer, seed_everything
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_core.loggers import CSVLogger

Batch = tuple[Tensor, Tensor]
DEFAULT_FOLDER = Path("quickstart_run")
EPOCHS, GOAL = 25, 0.97


class Digits(LightningDataModule):
    """Split the pictures into three parts: 1,257 to train, 180 to validate, 360 to test."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        pictures, numbers = load_digits(return_X_y=True)
        images = torch.as_tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        everything = TensorDataset(images, torch.as_tensor(numbers, dtype=torch.long))
        split = torch.Generator().manual_seed(0)
        self.train_part, self.val_part, self.test_part = random_split(everything, [1257, 180, 360], generator=split)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self.loader(self.train_part, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loader(self.val_part)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.loader(self.test_part)

    def loader(self, part: Dataset[tuple[Tensor, ...]], shuffle: bool = False) -> DataLoader[Batch]:
        return DataLoader(part, self.batch_size, shuffle=shuffle)  # type: ignore[arg-type]


class SmallNet(LightningModule):
    """Network that recognises the ten digits with two convolutions."""

    def __init__(self, channels: int = 32, rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * channels, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, numbers = batch
        loss = nn.functional.cross_entropy(self(images), numbers)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.judge(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.judge(batch, "test")

    def judge(self, batch: Batch, part: str) -> None:
        images, numbers = batch
        scores = self(images)
        loss = nn.functional.cross_entropy(scores, numbers)
        right = (scores.argmax(1) == numbers).float().mean()
        self.log_dict({f"{part}_loss": loss, f"{part}_accuracy": right}, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.rate, weight_decay=0.01)


def train(folder: Path, epochs: int, resume: bool) -> float:
    """Train, test, leave a picture, and return the accuracy on the test part."""
    seed_everything(1)
    best = ModelCheckpoint(monitor="val_loss", mode="min", save_last=True, filename="best-{epoch}")
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=CSVLogger(folder, name="digits"),
        callbacks=[best, EarlyStopping(monitor="val_loss", mode="min", patience=8)],
        log_every_n_steps=10,
    )
    digits = Digits()
    start = time.perf_counter()
    trainer.fit(SmallNet(), datamodule=digits, ckpt_path="last" if resume else None)
    seconds = time.perf_counter() - start
    accuracy = float(trainer.test(ckpt_path="best", datamodule=digits, verbose=False)[0]["test_accuracy"])

    logs = Path(trainer.log_dir or folder)
    picture = logs / "learning_curve.png"
    trainer.history.plot(picture, keys=["train_loss", "val_loss", "val_accuracy"])
    print(f"\nTrained {trainer.current_epoch} epochs in {seconds:.1f} s; accuracy on the test part: {accuracy:.2%}")
    print(f"  learning curve  {picture}")
    print(f"  metrics         {logs / 'metrics.csv'}")
    print(f"  checkpoint      {best.best_model_path}")
    where = "" if folder == DEFAULT_FOLDER.resolve() else f" --folder {shlex.quote(str(folder))}"
    print("To go on where a run ended or was killed, with the same last weights as if nothing had happened:")
    print(f"  bash ci/quickstart --resume --epochs {2 * max(epochs, trainer.current_epoch)}{where}")
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where everything is written")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"how many epochs at most ({EPOCHS})")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    given = parser.parse_args()
    if given.epochs < 0:
        parser.error(f"argument --epochs: must be at least 0, and is {given.epochs}")
    if given.epochs == 0:
        print("Nothing is trained: --epochs 0.")
        return
    # Threads that share out so little work wait for one another longer than they work.
    torch.set_num_threads(1)
    accuracy = train(given.folder.resolve(), given.epochs, given.resume)
    if accuracy < GOAL and given.epochs >= EPOCHS:
        raise SystemExit(f"The network learned less than it should have ({GOAL:.0%}).")


if __name__ == "__main__":
    main()
