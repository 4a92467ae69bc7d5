"""Stop where the loss jumps, and note the batches that led there."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import torch

from lt_core.callback import Callback
from lt_core.config.parsers import is_whole
from lt_interface.errors import MisconfigurationException, Problem, choice_problems, raise_problems
from lt_interface.paths import local_path

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["SpikeDetection", "TrainingSpikeException"]

_NAME = "skip_batches.json"


class TrainingSpikeException(RuntimeError):  # noqa: N818 - the familiar name
    """Error for a loss that jumped.

    Args:
        batch_idx: The batch's index in its epoch.
        text: What is known of it.

    Attributes:
        batch_idx: As above.
    """

    def __init__(self, batch_idx: int, text: str = "") -> None:
        super().__init__(text or f"Training spike in batch {batch_idx}.")
        self.batch_idx = batch_idx

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.batch_idx, str(self))


class SpikeDetection(Callback):
    """Callback that ends training with a `TrainingSpikeException` where the loss jumps or is no longer finite.

    The loss of a batch is compared with the mean of the last ``window`` ones; it is the mean over all ranks. One that
    is better than the last is never a spike. The index of the batch and of the one before it, which may be what the
    weights got worse by, are added to a file. Each batch's loss is read, so the host waits for the device.

    Args:
        mode: ``"min"`` or ``"max"``: which way the loss is better.
        window: How many losses the mean is of.
        warmup: How many batches are not judged at the beginning.
        atol: The least distance from the mean that is a spike; None for any.
        rtol: The least distance from the mean that is a spike, as a multiple of the mean; None for any.
        exclude_batches_path: The JSON file for the batches, or its folder; None means ``skip_batches.json`` in the
            trainer's root folder.
        finite_only: Whether a loss that is not finite is a spike; else it is passed over.

    Raises:
        ConfigError: If an argument is out of range; all problems at once.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.callbacks import SpikeDetection
        >>> trainer = Trainer(callbacks=[SpikeDetection(window=20, warmup=100, rtol=3.0)])
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | os.PathLike[str] | None = None,
        finite_only: bool = True,
    ) -> None:
        problems = choice_problems(f"SpikeDetection(mode={mode!r})", mode, ("min", "max"))
        for name, value, least in (("window", window, 1), ("warmup", warmup, 0)):
            if not is_whole(value) or value < least:
                where = f"SpikeDetection({name}={value!r})"
                problems.append(Problem(where, f"must be a whole number of at least {least}"))
        for name, distance in (("atol", atol), ("rtol", rtol)):
            is_number = (
                isinstance(distance, int | float) and not isinstance(distance, bool) and not math.isnan(distance)
            )
            if distance is not None and not is_number:
                problems.append(Problem(f"SpikeDetection({name}={distance!r})", "must be a number, or None"))
        raise_problems(problems)
        self.mode, self.window, self.warmup, self.atol, self.rtol = mode, window, warmup, atol, rtol
        self.finite_only = finite_only
        self.exclude_batches_path: str | None = None
        if exclude_batches_path is not None:
            where = f"SpikeDetection(exclude_batches_path={exclude_batches_path!r})"
            path = local_path(where, exclude_batches_path)
            self.exclude_batches_path = path if path.endswith(".json") else os.path.join(path, _NAME)
        self.bad_batches: list[int] = []
        self._recent: deque[float] = deque(maxlen=window)
        self._seen = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the last losses, how many batches were seen, and the bad ones."""
        return {"recent": list(self._recent), "seen": self._seen, "bad_batches": list(self.bad_batches)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; arguments are this object's own."""
        self._recent = deque(state_dict["recent"], maxlen=self.window)
        self._seen, self.bad_batches = state_dict["seen"], list(state_dict["bad_batches"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the batch's loss.

        Raises:
            TrainingSpikeException: On every rank, if it is a spike.
        """
        loss = self._loss(trainer, pl_module, outputs, batch_idx)
        if loss is None:
            return
        self._seen += 1
        if self._seen > self.warmup and self._is_spike(loss):
            mean = sum(self._recent) / max(len(self._recent), 1)
            self._note(trainer, batch_idx)
            where = f"{type(pl_module).__name__}.training_step, epoch {trainer.current_epoch}, batch {batch_idx}"
            known = f"the mean of the last {len(self._recent)} was {mean:.4g}"
            fix = f"Leave out the batches that {self.exclude_batches_path} lists, and resume from a checkpoint."
            raise TrainingSpikeException(batch_idx, f"{where}: the loss jumped. Got {loss:.4g}; {known}. {fix}")
        if math.isfinite(loss):
            self._recent.append(loss)

    def _loss(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch_idx: int) -> float | None:
        """Return the mean of the ranks' losses as training_step returned them, or None where none did."""
        if outputs and "loss" not in outputs:
            where = f"{type(pl_module).__name__}.training_step"
            rule = 'SpikeDetection needs the loss, as what is returned or under the key "loss"'
            raise MisconfigurationException(Problem(where, rule, f"keys {list(outputs)}", "Return it."))
        device = trainer.root_device
        loss = outputs["loss"].float() if outputs else torch.zeros((), device=device)
        if trainer.world_size > 1:
            count = torch.full((), float(bool(outputs)), device=device)
            loss, count = trainer.collectives.reduce(torch.stack([loss.reshape(()), count]), "sum")
            if not count:
                return None
            loss = loss / count
        elif not outputs:
            return None
        length, size = trainer.accumulate_grad_batches, trainer.num_training_batches
        if pl_module.automatic_optimization:  # a window's last one may be short
            loss = loss * min(length, max(size - batch_idx + batch_idx % length, 1))
        return float(loss)

    def _is_spike(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return self.finite_only
        if not self._recent or (loss <= self._recent[-1] if self.mode == "min" else loss >= self._recent[-1]):
            return False
        mean = sum(self._recent) / len(self._recent)
        distance = abs(loss - mean)
        far = self.atol is None or distance >= abs(self.atol)
        return far and (self.rtol is None or distance >= abs(self.rtol * mean))

    def _note(self, trainer: Trainer, batch_idx: int) -> None:
        """Add the batch and the one before it to the file, on rank 0."""
        if self.exclude_batches_path is None:
            self.exclude_batches_path = os.path.join(trainer.default_root_dir, _NAME)
        path = self.exclude_batches_path
        if trainer.is_global_zero:
            known: Any = []
            with suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
                known = json.load(file)
            self.bad_batches = known if isinstance(known, list) else []
        self.bad_batches += [index for index in (batch_idx - 1, batch_idx) if index >= 0]
        if trainer.is_global_zero:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(f"{path}.tmp", "w", encoding="utf-8") as file:
                json.dump(self.bad_batches, file, indent=4)
            os.replace(f"{path}.tmp", path)
