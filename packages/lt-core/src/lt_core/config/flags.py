"""Hold every flag of a trainer, resolved and checked at once."""

from __future__ import annotations

import os
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from reprlib import Repr
from typing import TYPE_CHECKING, Any

from lt_core.config import parsers as kinds
from lt_core.config import rules as config_rules
from lt_core.config.legacy import advice
from lt_core.notices import PossibleUserWarning, info, warn
from lt_interface import registry
from lt_interface.errors import Problem, nearest, raise_problems

if TYPE_CHECKING:
    from lt_core.callback import Callback
    from lt_interface import Accelerator, Launcher, Precision, Profiler, Strategy
    from lt_interface.logger import SupportsLogging

__all__ = ["TrainerConfig", "parse", "resolve_epochs"]

ENV_PREFIX = "PL_TRAINER_"


@dataclass(frozen=True)
class TrainerConfig:
    """Hold the flags of a trainer with the values that it works with.

    Make one with `parse`, which checks them all. Where a flag's default is None and means
    something, its meaning stands here.

    Attributes:
        accelerator: ``"auto"``, ``"gpu"`` (whichever can be used), an installed name, or an instance.
        strategy: ``"auto"``, an installed name, or an instance.
        devices: ``"auto"``, a count, -1 for all, or a tuple of indices.
        num_nodes: How many machines take part.
        precision: The full name, such as ``"32-true"``, or an instance.
        logger: Names and loggers; ``("csv",)`` for True, empty for False.
        callbacks: What the user gave.
        fast_dev_run: False, True (one batch) or a number of batches; its effects are applied.
        max_epochs: None until `resolve_epochs` knows of timers; -1 means no limit.
        min_epochs: None until `resolve_epochs`.
        max_steps: How often the optimizers may step; -1 means no limit.
        min_steps: How often they must step before an early stop.
        max_time: How long training may take.
        limit_train_batches: Number (integer) or fraction (float) of batches of an epoch.
        limit_val_batches: The same for validation, of each loader.
        limit_test_batches: The same for testing.
        limit_predict_batches: The same for prediction.
        overfit_batches: 0, or the limit of training and validation that is always the first batches.
        val_check_interval: Fraction of an epoch (float), number of batches (integer) or a time.
        check_val_every_n_epoch: Validate in every n-th epoch; None counts batches over epochs.
        num_sanity_val_steps: Validation batches before training; ``inf`` for all.
        log_every_n_steps: Steps between two records for the loggers; 0 for none.
        enable_checkpointing: Whether a ModelCheckpoint is added if there is none.
        enable_progress_bar: Whether a progress bar is added if there is none.
        enable_model_summary: Whether a table of the model is shown.
        accumulate_grad_batches: Batches whose gradients make one step.
        gradient_clip_val: Bound of the gradients; None, 0 and less clip nothing.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.
        deterministic: True, False, ``"warn"``, or None to leave torch as it is.
        benchmark: Whether cuDNN searches the fastest kernels; None leaves torch as it is.
        inference_mode: Whether evaluation runs under ``torch.inference_mode``.
        use_distributed_sampler: Whether each rank gets its share of the samples.
        profiler: None, an installed name, or an instance.
        detect_anomaly: Whether the backward pass looks for nan.
        barebones: Whether all that could cost time is off; its effects are applied.
        plugins: Instances of precision, checkpoint format, cluster environment, layer sync.
        sync_batchnorm: Whether batch norm is taken over all ranks.
        reload_dataloaders_every_n_epochs: Call the loader hooks again every n epochs; 0 for never.
        default_root_dir: Folder or URL of what a run writes.
        enable_autolog_hparams: Whether loggers get the hyper-parameters.
        launcher: None, an installed name, or an instance.
        validate_at_start: Whether to validate before the first step.
        logger_delivery: ``"async"`` feeds each logger from a thread of its own, ``"sync"`` from the loop itself;
            a logger's own ``delivery`` goes before it.
        explicit: Names of the flags that the user gave, as argument or in the environment.
    """

    accelerator: str | Accelerator = "auto"
    strategy: str | Strategy = "auto"
    devices: str | int | tuple[int, ...] = "auto"
    num_nodes: int = 1
    precision: str | Precision = "32-true"
    logger: tuple[str | SupportsLogging, ...] = ("csv",)
    callbacks: tuple[Callback, ...] = ()
    fast_dev_run: bool | int = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: timedelta | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    limit_predict_batches: int | float = 1.0
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | timedelta = 1.0
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | float = 2
    log_every_n_steps: int = 50
    enable_checkpointing: bool = True
    enable_progress_bar: bool = True
    enable_model_summary: bool = True
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str = "norm"
    deterministic: bool | str | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: str | Profiler | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: tuple[Any, ...] = ()
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str = field(default_factory=os.getcwd)
    enable_autolog_hparams: bool = True
    launcher: str | Launcher | None = None
    validate_at_start: bool = False
    logger_delivery: str = "async"
    explicit: frozenset[str] = frozenset()

    def plugin(self, kind: str) -> Any:
        """Return the plugin of a kind that the user gave, or None.

        Args:
            kind: precision, checkpoint_io, cluster or layer_sync.
        """
        return next((p for p in self.plugins if config_rules.plugin_kind(p) == kind), None)


PARSERS: dict[str, kinds.Parser] = {
    "accelerator": kinds.plugin(
        registry.accelerators, kinds.ACCELERATOR_METHODS, auto=True, aliases={"gpu": ("mps", "cuda")}
    ),
    "strategy": kinds.plugin(registry.strategies, kinds.STRATEGY_METHODS, auto=True),
    "devices": kinds.devices,
    "num_nodes": kinds.whole(1),
    "precision": kinds.precision_name,
    "logger": kinds.loggers(registry.loggers),
    "callbacks": kinds.objects,
    "fast_dev_run": kinds.fast_dev_run,
    "max_epochs": kinds.whole(-1, off="no limit"),
    "min_epochs": kinds.whole(0),
    "max_steps": kinds.whole(-1, off="no limit"),
    "min_steps": kinds.whole(0),
    "max_time": kinds.duration,
    "limit_train_batches": kinds.batch_limit,
    "limit_val_batches": kinds.batch_limit,
    "limit_test_batches": kinds.batch_limit,
    "limit_predict_batches": kinds.batch_limit,
    "overfit_batches": kinds.batch_limit,
    "val_check_interval": kinds.val_check_interval,
    "check_val_every_n_epoch": kinds.whole(1),
    "num_sanity_val_steps": kinds.whole(-1, off="all of them"),
    "log_every_n_steps": kinds.whole(0, off="never"),
    "enable_checkpointing": kinds.switch,
    "enable_progress_bar": kinds.switch,
    "enable_model_summary": kinds.switch,
    "accumulate_grad_batches": kinds.whole(1),
    "gradient_clip_val": kinds.clip_value,
    "gradient_clip_algorithm": kinds.choice("norm", "value"),
    "deterministic": kinds.choice(True, False, "warn"),
    "benchmark": kinds.switch,
    "inference_mode": kinds.switch,
    "use_distributed_sampler": kinds.switch,
    "profiler": kinds.plugin(registry.profilers, kinds.PROFILER_METHODS),
    "detect_anomaly": kinds.switch,
    "barebones": kinds.switch,
    "plugins": kinds.objects,
    "sync_batchnorm": kinds.switch,
    "reload_dataloaders_every_n_epochs": kinds.whole(0, off="never"),
    "default_root_dir": kinds.folder,
    "enable_autolog_hparams": kinds.switch,
    "launcher": kinds.plugin(registry.launchers, kinds.LAUNCHER_METHODS),
    "validate_at_start": kinds.switch,
    "logger_delivery": kinds.choice("async", "sync"),
}

# Flags that do not take None. For all others it means the default, or, for the cadence of validation, none by epochs.
NEVER_NONE = frozenset(
    {
        "accelerator",
        "strategy",
        "devices",
        "num_nodes",
        "fast_dev_run",
        "max_steps",
        "overfit_batches",
        "accumulate_grad_batches",
        "inference_mode",
        "use_distributed_sampler",
        "detect_anomaly",
        "barebones",
        "sync_batchnorm",
        "reload_dataloaders_every_n_epochs",
        "enable_autolog_hparams",
        "validate_at_start",
    }
)


def parse(explicit: Mapping[str, Any]) -> TrainerConfig:
    """Return the checked and resolved flags.

    Args:
        explicit: The keyword arguments that the user wrote. What is not among them is taken
            from the environment (``PL_TRAINER_MAX_EPOCHS=3``), else from the defaults.

    Raises:
        ConfigTypeError: If a value has the wrong type or a flag is unknown; lists every problem.
        ConfigError: If values are out of range or exclude each other; lists every problem.
    """
    draft = config_rules.Draft(values={f.name: _default(f) for f in fields(TrainerConfig) if f.name != "explicit"})
    for name, value in explicit.items():
        if name in PARSERS:
            _take(draft, name, value, f"Trainer({name}={shown(value)})")
        else:
            draft.problems.append(_unknown(name, value))
    _take_environment(draft, explicit)
    config_rules.apply(draft)
    raise_problems(draft.problems)
    for message in draft.warnings:
        warn(message)
    for message in draft.infos:
        info(message)
    return TrainerConfig(**draft.values, explicit=frozenset(draft.places))


def resolve_epochs(config: TrainerConfig, has_timer: bool) -> tuple[int, int]:
    """Return (max_epochs, min_epochs), with a warning where nothing says when to stop.

    Args:
        config: The flags.
        has_timer: Whether a Timer callback stops the run.
    """
    max_epochs = config.max_epochs
    if max_epochs is None:
        if config.max_steps == -1 and config.max_time is None and not has_timer:
            warn(
                "Trainer(max_epochs): nothing says when to stop, so 1000 epochs are run. "
                "Write max_epochs=N, or -1 for no limit.",
                PossibleUserWarning,
            )
            max_epochs = 1000
        else:
            max_epochs = -1
    min_epochs = config.min_epochs
    if min_epochs is None:
        min_epochs = 1 if config.min_steps is not None else 0
    return max_epochs, min_epochs


def shown(value: Any) -> str:
    """Return a short text of a value for a message; it never raises."""
    short = Repr()
    short.maxstring = short.maxother = 60
    return " ".join(short.repr(value).split())


def _default(flag: Any) -> Any:
    return flag.default_factory() if callable(flag.default_factory) else flag.default


def _take(draft: config_rules.Draft, name: str, value: Any, where: str) -> None:
    """Parse one value into the draft; a refused one leaves the default, so that the other checks go on."""
    if value is None and name not in NEVER_NONE:
        if name == "check_val_every_n_epoch":
            draft.values[name] = None
            draft.places[name] = where
        return
    draft.places[name] = where
    try:
        draft.values[name] = PARSERS[name](value)
    except kinds.FlagError as refused:
        draft.problems.append(refused.problem(where))
        draft.refused.add(name)
    else:
        draft.written[name] = value


def _take_environment(draft: config_rules.Draft, explicit: Mapping[str, Any]) -> None:
    """Fill in what the environment says and the user's code does not."""
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable[len(ENV_PREFIX) :].lower()
        if name not in PARSERS:
            hint = advice(name) or nearest(name, PARSERS)
            draft.warnings.append(f"{variable}: the Trainer has no flag {name!r}, so this is ignored. {hint}".strip())
        elif name not in explicit:
            _take(draft, name, _literal(text), f"{variable}={shown(text)}")


def _literal(text: str) -> Any:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _unknown(name: str, value: Any) -> Problem:
    """Say what to write for a name that is no flag."""
    fix = advice(name) or nearest(name, PARSERS) or "The flags are listed in the documentation of lt_core.Trainer."
    return Problem(f"Trainer({name}={shown(value)})", f"the Trainer has no flag {name!r}", fix=fix, is_type=True)
