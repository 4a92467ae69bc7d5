"""Log how fast the loops work through batches, samples and floating-point operations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from lt_core.callback import Callback
from lt_core.config.parsers import is_number
from lt_core.model.throughput import Throughput, get_available_flops
from lt_interface.errors import MisconfigurationException, Problem, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["ThroughputMonitor"]


class ThroughputMonitor(Callback):
    """Callback that logs batches, samples, items and floating-point operations a second.

    Names are ``<stage>/device/batches_per_sec``, ``samples_per_sec``, ``items_per_sec``, ``flops_per_sec`` and ``mfu``,
    without ``device/`` those of all ranks together where there are several; and ``<stage>/time``, ``batches``,
    ``samples`` and ``lengths`` so far, which a resumed training goes on with. They are logged with the trainer's
    ``log_every_n_steps``; the time of validations is left out of the training's.

    The operations of a training batch are the module's ``flops_per_batch`` if it has that, else they are counted once,
    in the first batch that has a loss: matrix products, convolutions and attention, forward and backward; what
    ``torch.compile`` has made faster runs as it was written in that batch.

    Args:
        batch_size_fn: Returns the number of samples in a batch.
        length_fn: Returns the number of items in a batch, such as tokens.
        available_flops: Floating-point operations a second of one device at most; None: those of known cards.
        window_size: Over how many batches the rates go.
        separator: What stands between the parts of a name.

    Raises:
        ConfigTypeError: If something is no function, or no number of operations.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.demos import BoringModel
        >>> quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        >>> monitor = ThroughputMonitor(batch_size_fn=len)
        >>> trainer = Trainer(
        ...     accelerator="cpu", max_steps=4, log_every_n_steps=2, logger=False, callbacks=[monitor], **quiet
        ... )
        >>> trainer.fit(BoringModel())
        >>> int(trainer.callback_metrics["train/batches"]), monitor.flops_per_batch
        (4, 256)
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int],
        length_fn: Callable[[Any], int] | None = None,
        available_flops: float | None = None,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        given = {"batch_size_fn": batch_size_fn, "length_fn": length_fn or len}
        problems = [
            Problem(
                f"ThroughputMonitor({name}={value!r})",
                "this must be a function of a batch",
                fix=f"Write {name}=lambda batch: len(batch[0]).",
                is_type=True,
            )
            for name, value in given.items()
            if not callable(value)
        ]
        if available_flops is not None and not (is_number(available_flops) and available_flops > 0):
            where, rule = f"ThroughputMonitor(available_flops={available_flops!r})", "this must be a number above 0"
            problems.append(Problem(where, rule, fix="Write 312e12, or leave it out.", is_type=True))
        raise_problems(problems)
        self.batch_size_fn, self.length_fn, self.available_flops = batch_size_fn, length_fn, available_flops
        self.flops_per_batch: int | None = None
        self._window, self._separator = window_size, separator
        self._throughput = {"train": Throughput(window_size=window_size, separator=separator)}
        self._counts: dict[str, list[int]] = {}
        self._begun: dict[str, float] = {}
        self._spent = 0.0  # seconds of training before this fit
        self._counter: Any = None
        self._logged = -1

    def _start(self, trainer: Trainer, stage: str) -> None:
        dtype = torch.float64 if "64" in trainer.precision else torch.float32
        dtype = torch.bfloat16 if "16" in trainer.precision else dtype
        known = self.available_flops or get_available_flops(trainer.strategy.device, dtype)
        self._throughput[stage] = Throughput(known, trainer.world_size, self._window, self._separator)
        if stage != "train":
            self._counts[stage] = [0, 0, 0]
        self._begun[stage] = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure a training; the counts of a resumed one go on."""
        self._start(trainer, "train")
        self._counts.setdefault("train", [0, 0, 0])
        self._begun["train"] -= self._spent
        self._logged = -1
        self.flops_per_batch = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the operations of the first batch while it is trained."""
        own = getattr(pl_module, "flops_per_batch", None)
        if own is not None:
            self.flops_per_batch = own
        elif self.flops_per_batch is None and self._counter is None:
            from torch.utils.flop_counter import FlopCounterMode

            counter: Any = FlopCounterMode(display=False)
            self._counter = counter
            counter.__enter__()

    def _end_count(self, counts: bool = True) -> None:
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)
            if counts:
                self.flops_per_batch = int(counter.get_total_flops())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and log where steps are logged."""
        self._end_count(counts=bool(outputs) or not pl_module.automatic_optimization)  # a skipped batch has no backward
        step, every = trainer.global_step, trainer.log_every_n_steps
        due = bool(every) and step % every == 0 and step != self._logged
        self._update(trainer, "train", batch, due)
        if due:
            self._logged = step
            self._log(trainer, "train")

    def _update(self, trainer: Trainer, stage: str, batch: Any, due: bool) -> None:
        """Count a batch; before what is logged the device comes to its end."""
        device = trainer.strategy.device
        if due and device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        now = time.perf_counter()
        counts = self._counts[stage]
        counts[0] += 1
        counts[1] += _whole(self.batch_size_fn(batch), "batch_size_fn")
        if self.length_fn is not None:
            counts[2] += _whole(self.length_fn(batch), "length_fn")
        self._throughput[stage].update(
            time=now - self._begun[stage],
            batches=counts[0],
            samples=counts[1],
            lengths=None if self.length_fn is None else counts[2],
            flops=self.flops_per_batch if stage == "train" else None,
        )

    def _log(self, trainer: Trainer, stage: str) -> None:
        found = self._throughput[stage].compute()
        values = {f"{stage}{self._separator}{name}": value for name, value in found.items()}
        trainer.log_metrics(values)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the time of this training for a later fit."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End what is being counted, and keep the time of the training for a later fit."""
        self._end_count(counts=False)
        self._stop()

    def _stop(self) -> None:
        self._spent = self._time()
        self._begun.pop("train", None)

    def _time(self) -> float:
        """Return the seconds of training so far."""
        begun = self._begun.get("train")
        return self._spent if begun is None else time.perf_counter() - begun

    # -- evaluation --

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure an evaluation, whose time is not the training's."""
        if not trainer.sanity_checking:
            self._start(trainer, str(trainer.state.stage))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch of an evaluation."""
        if not trainer.sanity_checking:
            self._update(trainer, str(trainer.state.stage), batch, due=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how fast an evaluation was."""
        stage = str(trainer.state.stage)
        if trainer.sanity_checking:
            return
        if self._counts[stage][0]:
            self._log(trainer, stage)
        if "train" in self._begun:
            self._begun["train"] += time.perf_counter() - self._begun[stage]

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end

    def state_dict(self) -> dict[str, Any]:
        """Return the training's counts and its time so far."""
        if "train" not in self._counts:
            return {}
        return {"counts": list(self._counts["train"]), "time": self._time()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._counts["train"], self._spent = list(state_dict["counts"]), state_dict["time"]


def _whole(value: Any, name: str) -> int:
    """Return a count of a batch.

    Raises:
        MisconfigurationException: If it is no whole number.
    """
    try:
        if int(value) == value and value >= 0:
            return int(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    rule = "it must return a whole number for a batch"
    raise MisconfigurationException(
        Problem(f"ThroughputMonitor({name}=...)", rule, repr(value), "Return len(batch[0]).")
    )
