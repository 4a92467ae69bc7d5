"""Write predictions while they are made, or when all are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import torch

from lt_core.callback import Callback
from lt_core.data.nested import move_to_device
from lt_core.notices import warn
from lt_interface.errors import ConfigError, Problem, nearest
from lt_interface.paths import local_path

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["BasePredictionWriter", "PredictionWriter", "WriteInterval"]


class WriteInterval(str, Enum):
    """Moments at which predictions are written."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    __str__ = str.__str__

    @property
    def on_batch(self) -> bool:
        """Return whether each batch's are written on their own."""
        return self is not WriteInterval.EPOCH

    @property
    def on_epoch(self) -> bool:
        """Return whether all are written at the end."""
        return self is not WriteInterval.BATCH


class BasePredictionWriter(Callback):
    """Base of callbacks that write predictions: override ``write_on_batch_end``, ``write_on_epoch_end``, or both.

    Each rank writes its own. With ``"batch"`` nothing is kept; pass ``return_predictions=False`` to ``predict``, too,
    and memory does not grow with the data.

    Args:
        write_interval: ``"batch"``, ``"epoch"`` or ``"batch_and_epoch"``: which of the two methods are called.

    Raises:
        ConfigError: If the interval is none of these; before the first batch, if a method that it asks for is not
            overridden.

    Example:
        >>> from lt_core.callbacks import BasePredictionWriter
        >>> class Prints(BasePredictionWriter):
        ...     def write_on_batch_end(
        ...         self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
        ...     ):
        ...         print(dict(zip(batch_indices, prediction.tolist())))
        >>> writer = Prints(write_interval="batch")
    """

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        known = [each.value for each in WriteInterval]
        if write_interval not in known:
            where = f"{type(self).__name__}(write_interval={write_interval!r})"
            fix = nearest(str(write_interval), known)
            raise ConfigError(Problem(where, 'must be "batch", "epoch" or "batch_and_epoch"', fix=fix))
        self.interval = WriteInterval(write_interval)

    @property
    def keeps_predictions(self) -> bool:  # type: ignore[override]
        """Return whether all predictions are needed at the end."""
        return self.interval.on_epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, before a prediction, that something is written.

        Raises:
            ConfigError: If a method that the interval asks for is not overridden.
        """
        kind, base = type(self), BasePredictionWriter
        asked = {"batch": self.interval.on_batch, "epoch": self.interval.on_epoch}
        for word in (word for word, is_due in asked.items() if is_due and stage == "predict"):
            method, hook = f"write_on_{word}_end", f"on_predict_{word}_end"
            if getattr(kind, method) is getattr(base, method) and getattr(kind, hook) is getattr(base, hook):
                where = f"{kind.__name__}(write_interval={str(self.interval)!r})"
                rule = f"this interval needs {method}, and it is not overridden: nothing says where predictions go"
                fix = 'Override it, or use PredictionWriter("a/folder").'
                raise ConfigError(Problem(where, rule, fix=fix))

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write what predict_step returned for a batch.

        Args:
            trainer: The trainer.
            pl_module: The module.
            prediction: What predict_step returned.
            batch_indices: The places of the batch's samples in the dataset; empty where they are unknown, as of an
                iterable dataset.
            batch: The batch.
            batch_idx: Its number in its loader, on this rank.
            dataloader_idx: The loader's number.
        """
        raise NotImplementedError

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write all predictions of this rank.

        Args:
            trainer: The trainer.
            pl_module: The module.
            predictions: What predict_step returned for each batch, on the CPU; of several loaders, a list for each.
            batch_indices: For each loader, of one too, the list of its batches' ``batch_indices``.
        """
        raise NotImplementedError

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Have the batch's predictions written, if they are to be."""
        if self.interval.on_batch:
            indices = trainer.predict_loop.current_batch_indices
            if not indices and batch_idx == 0:
                warn(f"{type(self).__name__}: the indices of loader {dataloader_idx} are unknown, and given as [].")
            self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have all predictions written, if they are to be."""
        if self.interval.on_epoch:
            loop = trainer.predict_loop
            self.write_on_epoch_end(trainer, pl_module, loop.predictions, loop.epoch_batch_indices)


class PredictionWriter(BasePredictionWriter):
    """Callback that writes predictions to files for ``torch.load``, each with the indices of its samples.

    Files are named after rank, loader and batch, ``rank0-loader0-batch000000.pt``, and ``rank0.pt`` for all at the end.
    Each holds a dict of ``predictions`` and ``indices``. A file of that name that is there is replaced.

    Args:
        dirpath: The folder.
        write_interval: As for `BasePredictionWriter`.

    Raises:
        ConfigError: If there is no folder, or the interval is none.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.callbacks import PredictionWriter
        >>> trainer = Trainer(callbacks=[PredictionWriter("predictions", write_interval="batch")])
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch",
    ) -> None:
        super().__init__(write_interval)
        where = f"PredictionWriter(dirpath={dirpath!r})"
        if dirpath is None or not os.fspath(dirpath):
            raise ConfigError(Problem(where, "it needs the folder that predictions are written to"))
        self.dirpath = local_path(where, dirpath)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder, before a prediction."""
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            os.makedirs(self.dirpath, exist_ok=True)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch's file."""
        name = f"rank{trainer.global_rank}-loader{dataloader_idx}-batch{batch_idx:06}.pt"
        self._write(name, move_to_device(prediction, "cpu"), batch_indices)

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write the file of all."""
        self._write(f"rank{trainer.global_rank}.pt", predictions, batch_indices)

    def _write(self, name: str, predictions: Any, indices: Any) -> None:
        path = os.path.join(self.dirpath, name)
        torch.save({"predictions": predictions, "indices": indices}, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)  # so that whoever reads meanwhile finds whole files
