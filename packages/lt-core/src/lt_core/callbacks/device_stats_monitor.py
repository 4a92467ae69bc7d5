"""Log what the device and the processor are busy with."""

from __future__ import annotations

import os
from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from lt_core.callback import Callback
from lt_core.state.stage import stage_of
from lt_interface.errors import MisconfigurationException, MissingPackageError, Problem

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["DeviceStatsMonitor"]


class DeviceStatsMonitor(Callback):
    """Callback that logs the device's memory and load before and after batches, where steps are logged.

    Names are ``DeviceStatsMonitor.on_train_batch_start/<figure>`` and alike, for each hook around a batch of each
    stage. Figures are those of the accelerator's ``stats`` and of torch's ``memory_stats`` for the device, and of the
    processor ``cpu_percent`` (since the figure before), ``cpu_vm_percent`` and ``cpu_swap_percent`` (in use).

    Args:
        cpu_stats: Whether the processor's figures are logged: None means where it is the device.
        filter_keys: The figures to log, by name; None means all.

    Raises:
        MissingPackageError: If the processor's figures are asked for where neither ``/proc`` nor psutil has them.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.demos import BoringModel
        >>> from lt_core.loggers import CSVLogger
        >>> monitor = DeviceStatsMonitor(cpu_stats=True, filter_keys={"cpu_vm_percent"})
        >>> quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        >>> trainer = Trainer(
        ...     accelerator="cpu", max_steps=2, log_every_n_steps=1, logger=CSVLogger("."), callbacks=[monitor], **quiet
        ... )
        >>> trainer.fit(BoringModel())
        >>> 0 < trainer.logged_metrics["DeviceStatsMonitor.on_train_batch_end/cpu_vm_percent"] <= 100
        tensor(True)
    """

    def __init__(self, cpu_stats: bool | None = None, filter_keys: Collection[str] | None = None) -> None:
        self._cpu_stats = cpu_stats
        self.filter_keys = (
            None if filter_keys is None else {filter_keys} if isinstance(filter_keys, str) else {*filter_keys}
        )
        if cpu_stats and not _knows_processor():
            raise MissingPackageError(
                "DeviceStatsMonitor(cpu_stats=True): the processor's figures need psutil on this system. "
                "Run: pip install psutil"
            )
        self._logged: dict[str, int] = {}
        self._times = (0.0, 0.0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a logger."""
        if not trainer.loggers:
            where, fix = "Trainer(callbacks=[DeviceStatsMonitor()])", "Drop the callback, or pass a logger."
            raise MisconfigurationException(Problem(where, "DeviceStatsMonitor needs a logger", "logger=False", fix))
        self._logged = {}
        self._times = _processor_times()

    def _log(self, trainer: Trainer, hook: str, step: int) -> None:
        """Log the figures, once a step for each hook.

        Args:
            trainer: The trainer.
            hook: The hook that runs.
            step: The count of steps, or of the batches of an evaluation, with the one that runs.
        """
        every = trainer.log_every_n_steps
        if not every or step % every or self._logged.get(hook) == step or trainer.sanity_checking:
            return
        self._logged[hook] = step
        device = trainer.strategy.device
        found: dict[str, Any] = dict(trainer.accelerator.stats(device))
        if device.type != "cpu":
            found |= getattr(torch.get_device_module(device), "memory_stats", lambda _: {})(device)
        elif self._cpu_stats is False:
            return
        if self._cpu_stats or (self._cpu_stats is None and device.type == "cpu" and _knows_processor()):
            found |= self._processor()
        kept = {name: value for name, value in found.items() if self.filter_keys is None or name in self.filter_keys}
        if kept:
            training = hook.startswith("on_train")
            values = {f"{type(self).__qualname__}.{hook}/{name}": float(value) for name, value in kept.items()}
            trainer.log_metrics(values, step - 1 if training else None)

    def _processor(self) -> dict[str, float]:
        """Return how much of the processor was in use since the figure before, and of memory and swap is now."""
        before, self._times = self._times, _processor_times()
        whole = self._times[1] - before[1]
        return {"cpu_percent": 100 * (self._times[0] - before[0]) / whole if whole > 0 else 0.0, **_memory()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log before a step that is logged."""
        self._log(trainer, "on_train_batch_start", trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after a step that is logged."""
        self._log(trainer, "on_train_batch_end", trainer.global_step)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log before every ``log_every_n_steps``-th batch of an evaluation."""
        self._log(trainer, f"on_{_word(trainer)}_batch_start", batch_idx + 1)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log after every ``log_every_n_steps``-th batch of an evaluation."""
        self._log(trainer, f"on_{_word(trainer)}_batch_end", batch_idx + 1)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


def _word(trainer: Trainer) -> str:
    """Return the word of the running evaluation in the names of its hooks."""
    return "validation" if trainer.sanity_checking else stage_of(str(trainer.state.stage)).hook


def _knows_processor() -> bool:
    return os.path.exists("/proc/stat") or find_spec("psutil") is not None


def _processor_times() -> tuple[float, float]:
    """Return the seconds, or ticks, for which all cores were busy, and those of busy and idle together."""
    if os.path.exists("/proc/stat"):
        with open("/proc/stat", encoding="ascii") as stat:
            times = [float(word) for word in stat.readline().split()[1:9]]
        return sum(times) - sum(times[3:5]), sum(times)
    if find_spec("psutil") is None:
        return 0.0, 0.0
    import psutil  # type: ignore[import-untyped]

    now = psutil.cpu_times()
    return sum(now) - now.idle, sum(now)


def _memory() -> dict[str, float]:
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = {name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        swap = sizes.get("SwapTotal", 0.0)
        used = 1 - sizes.get("MemAvailable", sizes["MemFree"]) / sizes["MemTotal"]
        swapped = (swap - sizes.get("SwapFree", 0.0)) / swap if swap else 0.0
        return {"cpu_vm_percent": 100 * used, "cpu_swap_percent": 100 * swapped}
    import psutil

    return {"cpu_vm_percent": psutil.virtual_memory().percent, "cpu_swap_percent": psutil.swap_memory().percent}
