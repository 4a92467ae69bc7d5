"""Find the parts that a trainer's flags name, through the registry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lt_core.notices import info
from lt_interface import registry
from lt_interface.errors import ConfigError, MisconfigurationException, Problem, UnknownPluginError

if TYPE_CHECKING:
    from lt_core.callback import Callback
    from lt_core.config.flags import TrainerConfig

__all__ = ["default_callbacks", "find_accelerator", "find_devices", "find_precision", "make_loggers", "ordered"]


def ordered(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks with those that save checkpoints last."""
    from lt_core.callbacks import Checkpoint

    return sorted(callbacks, key=lambda c: isinstance(c, Checkpoint))


def find_precision(config: TrainerConfig) -> Any:
    """Return the precision that the flag or a plugin means."""
    given = config.plugin("precision") or config.precision
    if not isinstance(given, str):
        return given
    return registry.precisions.get(given, f"Trainer(precision={given!r})")()


def find_accelerator(config: TrainerConfig) -> Any:
    """Return the accelerator that the flag means.

    Raises:
        MisconfigurationException: If it is installed but no such device is here.
    """
    given = config.accelerator
    if not isinstance(given, str):
        return given
    if given == "auto":
        known = [registry.accelerators.get(name)() for name in registry.accelerators.names()]
        return max((a for a in known if a.is_available()), key=lambda a: a.priority)
    names = [given] if given != "gpu" else ["mps", "cuda"]
    for name in names:
        try:
            accelerator = registry.accelerators.get(name, f"Trainer(accelerator={given!r})")()
        except UnknownPluginError:
            if name == names[-1]:
                raise
            continue
        if accelerator.is_available():
            return accelerator
    raise MisconfigurationException(
        Problem(f"Trainer(accelerator={given!r})", "no such device can be used here", fix='Write accelerator="auto".')
    )


def find_devices(config: TrainerConfig, accelerator: Any) -> list[int]:
    """Return the device indices that the flag means.

    Raises:
        ConfigError: If the flag names a device that is not there.
    """
    spec = config.devices
    if spec == "auto":
        return list(range(max(accelerator.device_count(), 1)))
    try:
        return list(accelerator.parse_devices(list(spec) if isinstance(spec, tuple) else spec))
    except ValueError as error:
        text = str(error).rstrip(".")
        where = f"Trainer(devices={config.devices!r})"
        raise ConfigError(text + "." if text.startswith("Trainer(") else Problem(where, text)) from error


def default_callbacks(config: TrainerConfig) -> list[Callback]:
    """Return the user's callbacks with those that the flags add."""
    from lt_core.callbacks import Checkpoint, ModelCheckpoint, ModelSummary, ProgressBar, RichProgressBar, Timer

    callbacks = list(config.callbacks)

    def lacks(kind: type) -> bool:
        return not any(isinstance(c, kind) for c in callbacks)

    if config.enable_progress_bar and lacks(ProgressBar):
        callbacks.append(RichProgressBar())
    if config.enable_model_summary and lacks(ModelSummary):
        callbacks.append(ModelSummary())
    if config.max_time is not None:
        if lacks(Timer):
            callbacks.append(Timer(duration=config.max_time, interval="step"))
        else:
            info("Trainer(max_time): a Timer callback is there already, so max_time is ignored.")
    if config.enable_checkpointing and lacks(Checkpoint):
        callbacks.append(ModelCheckpoint())
    return ordered(callbacks)


def make_loggers(config: TrainerConfig) -> list[Any]:
    """Return the loggers, those given by name constructed in the root folder."""
    if config.fast_dev_run and config.logger:
        from lt_core.tracking.dummy import DummyLogger

        return [DummyLogger()]
    made = []
    for item in config.logger:
        if isinstance(item, str):
            made.append(registry.loggers.get(item, f"Trainer(logger={item!r})")(save_dir=config.default_root_dir))
        else:
            made.append(item)
    return made
