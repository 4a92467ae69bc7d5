"""A job for the suites that runs in the core's own loop, by one process or by ranks that share its batches."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import pytest

from lt_interface.testing.reference import ReferenceLauncher

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """Training of a small network on fixed batches; each rank is given its own part of each batch.

    The core is imported when a job runs; where it is not installed, the test is skipped.

    Attributes:
        batches: Batches of 16 samples in an epoch.
        epochs: How many epochs.
        accumulate: Batches per optimizer step.
        clip: The largest norm of the gradients, or None.
        buffers: Whether the network has a BatchNorm, whose running means are buffers.
        manual: Whether the network steps its optimizer by hand.
        backward: Whether the network overrides ``backward``.
        scheduler: The interval at which a scheduler steps: ``"step"`` or ``"epoch"``; None without one.
        folder: Where a checkpoint is written after the first epoch, with which another trainer goes on; None trains
            in one go.

    Example:
        >>> job = Job(batches=5, accumulate=2)
        >>> job.steps
        6
        >>> [tuple(t.shape) for t in job.data(0, 2)[0]]
        [(8, 4), (8, 1)]
        >>> job.train(rank=0, size=1)["layers.2.bias"]  # doctest: +SKIP
        [0.12]
        >>> job.trainer(size=2).num_devices  # doctest: +SKIP
        2
    """

    batches: int = 5
    epochs: int = 2
    accumulate: int = 1
    clip: float | None = None
    buffers: bool = False
    manual: bool = False
    backward: bool = False
    scheduler: str | None = None
    folder: str | None = None

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps."""
        return -(-self.batches // self.accumulate) * self.epochs

    def network(self) -> Any:
        """Return the module.

        Returns:
            A LightningModule of the core, with the same weights at every call.
        """
        core = pytest.importorskip("lt_core", reason="the core's loop can be tested only where lt-core is installed")
        import torch
        from torch import nn

        buffers, manual, scheduler = self.buffers, self.manual, self.scheduler

        class Net(core.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                middle = nn.BatchNorm1d(8) if buffers else nn.Tanh()
                self.layers = nn.Sequential(nn.Linear(4, 8), middle, nn.Linear(8, 1))
                self.automatic_optimization = not manual

            def loss(self, batch: Any) -> Any:
                return nn.functional.mse_loss(self.layers(batch[0]), batch[1])

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                if not manual:
                    return self.loss(batch)
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                return optimizer.step()

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("val_loss", self.loss(batch), sync_dist=True)

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
                if scheduler is None:
                    return optimizer
                halving = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
                return [optimizer], [{"scheduler": halving, "interval": scheduler}]

        class WithBackward(Net):
            def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
                loss.backward(*args, **kwargs)

        torch.manual_seed(5)
        return WithBackward() if self.backward else Net()

    def data(self, rank: int, size: int) -> list[Any]:
        """Return a rank's part of the batches.

        Args:
            rank: The rank's number.
            size: How many ranks share a batch of 16 samples.

        Returns:
            Pairs of tensors (16 / size, 4) and (16 / size, 1).
        """
        import torch

        generator = torch.Generator().manual_seed(9)
        x = torch.randn(self.batches, 16, 4, generator=generator)
        return [(part, part.sum(1, keepdim=True)) for part in x[:, rank::size]]

    def trainer(self, size: int = 1, **flags: Any) -> Any:
        """Return a silent trainer for ranks that stand already; what it writes lies in the system's temporary folder.

        Args:
            size: How many ranks.
            **flags: Flags of the trainer, such as ``strategy``.
        """
        core = pytest.importorskip("lt_core", reason="the core's loop can be tested only where lt-core is installed")
        quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        given = {"accelerator": "cpu", "devices": size, "launcher": ReferenceLauncher(), "max_epochs": self.epochs}
        given |= {"accumulate_grad_batches": self.accumulate, "gradient_clip_val": self.clip}
        given |= {"use_distributed_sampler": False, "num_sanity_val_steps": 0, **quiet}
        given["default_root_dir"] = os.path.join(tempfile.gettempdir(), "lt-suites")
        return core.Trainer(**{**given, **flags})

    def train(self, rank: int = 0, size: int = 1, **flags: Any) -> dict[str, Any]:
        """Run the job in this rank.

        Args:
            rank: The rank's number.
            size: How many ranks.
            **flags: Flags of the trainer, such as ``strategy``.

        Returns:
            The trained weights and the last ``"val_loss"`` by name, as lists.
        """
        module, data, path = self.network(), self.data(rank, size), None
        if self.folder is not None:
            path = os.path.join(self.folder, f"after_one_epoch_{size}.ckpt")
            before = self.trainer(size, **{**flags, "max_epochs": 1})
            before.fit(self.network(), data, data[:2])
            before.save_checkpoint(path)
        trainer = self.trainer(size, **flags)
        trainer.fit(module, data, data[:2], ckpt_path=path)
        assert trainer.global_step == self.steps, f"{trainer.global_step} steps were counted, not {self.steps}"
        found = {**module.state_dict(), "val_loss": trainer.callback_metrics["val_loss"]}
        return {name: value.tolist() for name, value in found.items()}

    def fail(self, rank: int = 0, size: int = 1, path: str = "alone.ckpt", **flags: Any) -> str:
        """Run the job until every rank raises an error after its second batch; rank 0 then saves a checkpoint.

        Args:
            rank: The rank's number.
            size: How many ranks.
            path: Where to save.
            **flags: Flags of the trainer, such as ``strategy``.

        Returns:
            What the save raised as text; empty if it went well.

        Example:
            >>> Job().fail()  # doctest: +SKIP
            ''
        """
        core = pytest.importorskip("lt_core", reason="the core's loop can be tested only where lt-core is installed")
        raised: list[str] = []

        class Fails(core.Callback):  # type: ignore[misc, name-defined]
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx == 1:
                    raise ValueError("every rank fails here")

            def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
                if rank == 0:
                    try:
                        trainer.save_checkpoint(path)
                    except Exception as error:
                        raised.append(f"{type(error).__name__}: {error}")

        data = self.data(rank, size)
        with pytest.raises(ValueError, match="every rank fails here"):
            self.trainer(size, callbacks=[Fails()], **flags).fit(self.network(), data, data[:2])
        return "".join(raised)
