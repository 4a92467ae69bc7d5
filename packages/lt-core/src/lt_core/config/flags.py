"""Define every flag of a trainer, resolved and checked at once: one row a flag.

Annotations are evaluated here, since the trainer's signature is made of them.
"""

import math
import os
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Protocol

from lt_core.callback import Callback
from lt_core.config import parsers as kinds
from lt_core.config import rules as config_rules
from lt_core.config.legacy import ADVICE
from lt_core.config.row import UNTOUCHED, Parsed, Row, flag, rows
from lt_core.notices import info, warn
from lt_interface import registry
from lt_interface.accelerator import Accelerator
from lt_interface.checkpoint import CheckpointIO
from lt_interface.cluster import ClusterEnvironment
from lt_interface.errors import MissingPackageError, Problem, nearest, raise_problems
from lt_interface.launcher import Launcher
from lt_interface.logger import SupportsLogging
from lt_interface.precision import Precision
from lt_interface.profiler import Profiler
from lt_interface.strategy import Strategy

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["FLAGS", "UNBOUNDED", "TrainerConfig", "parse", "resolve_epochs"]

UNBOUNDED = 1000  # epochs, where nothing says when to stop

ENV_PREFIX = "PL_TRAINER_"


class LayerSync(Protocol):
    """Layers that compute over all ranks, in place of those that do not."""

    def apply(self, model: "Module") -> "Module":
        """Return the model with such layers."""
        ...

    def revert(self, model: "Module") -> "Module":
        """Return the model as it was."""
        ...


Plugin = Precision | CheckpointIO | ClusterEnvironment | LayerSync
Limit = Parsed[int | float | None, int | float]
Switch = Parsed[bool | None, bool]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Flags of a trainer, with the values that it works with.

    `parse` makes one of what a user wrote, and checks it. Each row holds the type or types, the default, the parser
    (which knows the range), what the flag does, whether it is a plain attribute of the trainer, when a change of that
    counts, and what barebones makes of it. What flags exclude beside that is in `lt_core.config.rules`.

    Attributes:
        explicit: Names of the flags that the user gave, as argument or in the environment; no flag itself.
    """

    accelerator: str | Accelerator = flag(
        "auto",
        kinds.plugin(registry.accelerators, kinds.ACCELERATOR_METHODS, auto=True),
        'Kind of device; ``"gpu"`` is whichever kind of GPU can be used.',
    )
    strategy: str | Strategy = flag(
        "auto",
        kinds.plugin(registry.strategies, kinds.STRATEGY_METHODS, auto=True),
        "How the model is spread over the devices.",
    )
    devices: Parsed[int | Sequence[int] | str, int | tuple[int, ...] | str] = flag(
        "auto", kinds.devices, "Which devices of each machine are used; on the CPU how many processes."
    )
    num_nodes: int = flag(1, kinds.whole(1), "How many machines take part.")
    precision: Parsed[int | str | Precision | None, str | Precision] = flag(
        "32-true", kinds.precision_name, 'Number formats to compute in; 16, 32, 64 and ``"bf16"`` are short names.'
    )
    logger: Parsed[
        bool | str | SupportsLogging | Iterable[str | SupportsLogging] | None, tuple[str | SupportsLogging, ...]
    ] = flag(("csv",), kinds.loggers(registry.loggers), "Where metrics go.", barebones=())
    callbacks: Parsed[Callback | Sequence[Callback] | None, tuple[Callback, ...]] = flag(
        (), kinds.objects, "What is done besides training.", live="epoch"
    )
    fast_dev_run: bool | int = flag(
        False,
        kinds.fast_dev_run,
        "Run so many batches of each stage, once, and log and keep nothing; it sets limits, steps, epochs and cadence.",
        attribute=True,
        barebones=False,
    )
    max_epochs: int | None = flag(
        None,
        kinds.whole(-1, off="no limit"),
        "After how many epochs training stops. None is 1000, or no limit where something else says when to stop.",
        live="step",
    )
    min_epochs: int | None = flag(
        None, kinds.whole(0), "Before how many epochs no early stop is followed; not more than max_epochs."
    )
    max_steps: int = flag(
        -1, kinds.whole(-1, off="no limit"), "After how many optimizer steps training stops.", live="step"
    )
    min_steps: int | None = flag(
        None,
        kinds.whole(0),
        "Before how many optimizer steps no early stop is followed; not more than max_steps.",
        attribute=True,
    )
    max_time: Parsed[str | timedelta | Mapping[str, float] | None, timedelta | None] = flag(
        None, kinds.duration, "How long training may take; ignored where callbacks holds a Timer."
    )
    limit_train_batches: Limit = flag(1.0, kinds.batch_limit, "How much of each training epoch is run.", attribute=True)
    limit_val_batches: Limit = flag(
        1.0, kinds.batch_limit, "How much of each validation loader is run.", attribute=True
    )
    limit_test_batches: Limit = flag(1.0, kinds.batch_limit, "How much of each test loader is run.", attribute=True)
    limit_predict_batches: Limit = flag(1.0, kinds.batch_limit, "How much of each loader is predicted.", attribute=True)
    overfit_batches: int | float = flag(
        0.0,
        kinds.batch_limit,
        "Train and validate on the same first batches in each epoch; sets limit_train_batches and limit_val_batches.",
        attribute=True,
    )
    val_check_interval: Parsed[int | float | str | timedelta | Mapping[str, float] | None, int | float | timedelta] = (
        flag(1.0, kinds.val_check_interval, "How often an epoch is interrupted for validation.", attribute=True)
    )
    check_val_every_n_epoch: int | None = flag(
        1,
        kinds.whole(1),
        "Validate in every n-th epoch; None counts batches over epochs, and excludes fractions.",
        attribute=True,
    )
    num_sanity_val_steps: Parsed[int | None, int | float] = flag(
        2,
        kinds.whole(-1, off="all of them", lowest=math.inf),
        "Validation batches that are tried before training.",
        attribute=True,
        barebones=0,
    )
    log_every_n_steps: Parsed[int | None, int] = flag(
        50,
        kinds.whole(0, off="never"),
        "Optimizer steps between two logger records; unset, an epoch's last one if no other was due.",
        attribute=True,
        barebones=0,
    )
    enable_checkpointing: Switch = flag(
        True, kinds.switch, "Add a ModelCheckpoint if callbacks holds none; False excludes one there.", barebones=False
    )
    enable_progress_bar: Switch = flag(
        True, kinds.switch, "Add a progress bar if callbacks holds none; False excludes one there.", barebones=False
    )
    enable_model_summary: Switch = flag(True, kinds.switch, "Show a table of the model's layers.", barebones=False)
    accumulate_grad_batches: int = flag(
        1, kinds.whole(1), "Batches whose gradients make one optimizer step.", attribute=True, live="epoch"
    )
    gradient_clip_val: int | float | None = flag(
        None, kinds.clip_value, "Bound of the gradients.", attribute=True, live="epoch"
    )
    gradient_clip_algorithm: Parsed[str | None, str] = flag(
        "norm",
        kinds.choice("norm", "value"),
        "Whether the norm of all gradients is bounded or each value.",
        attribute=True,
        live="epoch",
    )
    deterministic: bool | str | None = flag(
        None,
        kinds.choice(True, False, "warn"),
        'Use, or with ``"warn"`` prefer, algorithms that give the same result each time; None leaves torch as it is.',
    )
    benchmark: bool | None = flag(
        None, kinds.switch, "Let cuDNN search the fastest kernels; None leaves torch as is, unless deterministic is on."
    )
    inference_mode: bool = flag(
        True, kinds.switch, "Evaluate under ``torch.inference_mode`` instead of ``torch.no_grad``."
    )
    use_distributed_sampler: bool = flag(True, kinds.switch, "Give each rank its share of the samples.")
    data_on_device: bool = flag(
        False,
        kinds.switch,
        "Keep the training set on the device, copied once; for sets of tensors (``TensorDataset``) that fit there.",
    )
    profiler: str | Profiler | None = flag(
        None, kinds.plugin(registry.profilers, kinds.PROFILER_METHODS), "What measures a run's parts.", barebones=None
    )
    detect_anomaly: bool = flag(
        False, kinds.switch, "Look for nan in every backward pass.", attribute=True, live="epoch", barebones=False
    )
    barebones: bool = flag(False, kinds.switch, "Turn off all that could cost time.", attribute=True)
    plugins: Parsed[Plugin | Sequence[Plugin] | None, tuple[Plugin, ...]] = flag(
        (), kinds.objects, "Instances of a precision, checkpoint format, cluster environment or layer sync, one a kind."
    )
    sync_batchnorm: bool = flag(False, kinds.switch, "Take batch norm over all ranks.")
    reload_dataloaders_every_n_epochs: int = flag(
        0, kinds.whole(0, off="never"), "Call the loader hooks again after so many epochs.", attribute=True
    )
    gc_every_n_steps: int | None = flag(
        None,
        kinds.whole(1),
        "Freeze what stands after the first step, and collect Python's garbage only at every so many optimizer steps, "
        "on all ranks at once; None leaves the collector alone.",
        attribute=True,
    )
    default_root_dir: Parsed[str | os.PathLike[str] | None, str] = flag(
        os.getcwd, kinds.folder, "Folder for what has no other place; None is the working folder.", attribute=True
    )
    enable_autolog_hparams: bool = flag(True, kinds.switch, "Send hyper-parameters to the loggers.", attribute=True)
    launcher: str | Launcher | None = flag(
        None,
        kinds.plugin(registry.launchers, kinds.LAUNCHER_METHODS),
        "What starts the processes; None leaves it to the strategy.",
    )
    validate_at_start: bool = flag(
        False, kinds.switch, "Validate before the first step; excludes limit_val_batches=0.", attribute=True
    )
    logger_delivery: Parsed[str | None, str] = flag(
        "async",
        kinds.choice("async", "sync"),
        "Feed each logger from a thread of its own, or from the loop; a logger's own ``delivery`` has precedence.",
        attribute=True,
    )
    # No argument: the trainer's signature is that of this class.
    explicit: frozenset[str] = field(default=frozenset(), init=False)

    def plugin(self, kind: str) -> Any:
        """Return the plugin of a kind that the user gave, or None.

        Args:
            kind: precision, checkpoint_io, cluster or layer_sync.
        """
        return next((p for p in self.plugins if config_rules.plugin_kind(p) == kind), None)


FLAGS = rows(TrainerConfig)


def _missing(precision: Any) -> Iterable[Problem]:
    """Return what lacks for a precision of a known name, which is made after the flags are read."""
    try:
        if precision in registry.precisions.names():
            registry.precisions.get(precision)()
    except MissingPackageError as error:
        return error.problems
    return ()


def parse(
    written: Mapping[str, Any],
    config: type[TrainerConfig] = TrainerConfig,
    places: Mapping[str, str] | None = None,
    problems: Iterable[Problem] = (),
) -> TrainerConfig:
    """Return the checked and resolved flags.

    Args:
        written: The keyword arguments that the user wrote. What is not among them is taken
            from the environment (``PL_TRAINER_MAX_EPOCHS=3``), else from the defaults.
        config: The class whose rows are the flags.
        places: How the user wrote a flag, where that is another way than by its name.
        problems: What is wrong already.

    Raises:
        ConfigTypeError: If a value has the wrong type or a flag is unknown; lists every problem.
        ConfigError: If values are out of range or exclude each other; lists every problem.
    """
    table = rows(config)
    draft = config_rules.Draft(
        values={name: row.default() if callable(row.default) else row.default for name, row in table.items()},
        barebones={name: row.barebones for name, row in table.items() if row.barebones is not UNTOUCHED},
    )
    for name, value in written.items():
        where = (places or {}).get(name, f"Trainer({name}={shown(value)})")
        if name in table:
            _take(draft, table[name], value, where)
        else:
            listed = "The flags are listed in the documentation of lt_core.Trainer."
            draft.refuse(where, f"the Trainer has no flag {name!r}", _instead(name, table) or listed, is_type=True)
    draft.problems += problems
    _take_environment(draft, written, table)
    config_rules.apply(draft)
    raise_problems([*draft.problems, *(_missing(draft.values["precision"]) if draft.problems else ())])
    for message in draft.warnings:
        warn(message)
    for message in draft.infos:
        info(message)
    parsed = config(**draft.values)
    object.__setattr__(parsed, "explicit", frozenset(draft.places))
    return parsed


def resolve_epochs(config: TrainerConfig, has_timer: bool) -> tuple[int, int]:
    """Return (max_epochs, min_epochs); `UNBOUNDED` where nothing says when to stop.

    Args:
        config: The flags.
        has_timer: Whether a Timer callback stops the run.
    """
    max_epochs = config.max_epochs
    if max_epochs is None:
        endless = config.max_steps == -1 and config.max_time is None and not has_timer
        max_epochs = UNBOUNDED if endless else -1
    if config.min_epochs is not None:
        return max_epochs, config.min_epochs
    return max_epochs, 0 if config.min_steps is None else 1


def shown(value: Any) -> str:
    """Return a short text of a value for a message; it never raises."""
    short = Repr()
    short.maxstring = short.maxother = 60
    return " ".join(short.repr(value).split())


def _take(draft: config_rules.Draft, row: Row, value: Any, where: str) -> None:
    """Parse one value into the draft; a refused one leaves the default, so that the other checks go on."""
    name = row.name
    if value is None and row.takes_none:
        if row.keeps_none and row.default is not None:
            draft.values[name] = None
            draft.places[name] = where
        return
    draft.places[name] = where
    try:
        draft.values[name] = row.parse(value)
    except kinds.FlagError as refused:
        draft.problems.append(refused.problem(where))
        draft.refused.add(name)
    else:
        draft.written[name] = value


def _take_environment(draft: config_rules.Draft, written: Mapping[str, Any], table: Mapping[str, Row]) -> None:
    """Fill in what the environment says and the user's code does not."""
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable.startswith(f"{ENV_PREFIX}_"):
            continue  # with two of them it is for a command line
        name = variable[len(ENV_PREFIX) :].lower()
        if name not in table:
            ignored = f"{variable}: the Trainer has no flag {name!r}, so this is ignored. {_instead(name, table)}"
            draft.warnings.append(ignored.strip())
        elif name not in written:
            _take(draft, table[name], _literal(text), f"{variable}={shown(text)}")


def _literal(text: str) -> Any:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _instead(name: str, table: Mapping[str, Row]) -> str:
    """Return what to write instead of a name that is no flag, as far as that is known."""
    return ADVICE.get(name) or nearest(name, table)
