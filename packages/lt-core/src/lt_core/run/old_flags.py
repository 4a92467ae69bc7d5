"""Take the Trainer flags of older versions: each becomes today's flags, or is said to have no meaning.

A row is a function from the old value to today's flags, by name. What it leaves out has no meaning any more; what it
cannot express is refused, with `lt_core.config.legacy.ADVICE`. Callbacks are added to those that the user gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

from lt_core.config.legacy import ADVICE
from lt_core.config.parsers import is_number, objects
from lt_core.data.combined import Mode
from lt_interface.errors import Problem, choice_problems

__all__ = ["GIVEN", "OLD", "Modern", "modern"]

Flags = dict[str, Any]
# What the methods take today: kept for them.
GIVEN = {"model", "train_dataloader", "val_dataloaders", "test_dataloaders", "multiple_trainloader_mode"}
GIVEN |= {"resume_from_checkpoint"}
_TUNED = {"auto_lr_find", "auto_scale_batch_size"}  # for ``trainer.tune``, where they ask for something


def _renamed(new: str) -> Callable[[Any], Flags]:
    return lambda value: {} if value is None else {new: value}


def _nothing(value: Any) -> Flags:
    return {}


def _only_off(value: Any) -> Flags | None:
    """Return no flags for a value that asks for nothing, and None, a refusal, for one that does."""
    return {} if value is None or value is False or value == 0 else None


def _gpus(value: Any) -> Flags:
    none = value is None or value in (0, "0", "")
    return {"accelerator": "cpu"} if none else {"accelerator": "gpu", "devices": value}


def _devices(accelerator: str, least: int) -> Callable[[Any], Flags]:
    def of(value: Any) -> Flags:
        asks = value is not None and not (isinstance(value, int) and value < least)
        return {"accelerator": accelerator, "devices": value} if asks else {}

    return of


def _backend(value: Any) -> Flags:
    if value is None:
        return {}
    return {"accelerator": "cpu", "strategy": "ddp"} if value == "ddp_cpu" else {"strategy": value}


def _summary(value: Any) -> Flags:
    from lt_core.callbacks import ModelSummary

    if value is None:
        return {"enable_model_summary": False}
    return {"callbacks": [ModelSummary(max_depth=-1 if value == "full" else 1)]}


def _refresh(value: Any) -> Flags:
    from lt_core.callbacks import RichProgressBar

    if value is None:
        return {}
    return {"callbacks": [RichProgressBar(refresh_rate=value)]} if value else {"enable_progress_bar": False}


def _early_stopping(value: Any) -> Flags:
    from lt_core.callbacks import EarlyStopping

    if value in (None, False):
        return {}
    return {"callbacks": [EarlyStopping(monitor="val_loss") if value is True else value]}


def _checkpoints(value: Any) -> Flags:
    return (
        {"enable_checkpointing": value} if isinstance(value, bool) else {} if value is None else {"callbacks": [value]}
    )


def _accumulation(value: Any) -> Flags | None:
    from lt_core.callbacks import GradientAccumulationScheduler

    return {"callbacks": [GradientAccumulationScheduler(value)]} if isinstance(value, Mapping) else None


def _grad_norm(value: Any) -> Flags | None:
    from lt_core.callbacks import GradNorm

    if value is None or value is False or (is_number(value) and value <= 0):  # -1 was the default
        return {}
    return {"callbacks": [GradNorm(value, per_parameter=True)]} if is_number(value) or value == "inf" else None


@dataclass(frozen=True)
class Modern:
    """What flags of any age say today.

    Attributes:
        flags: Today's flags.
        given: What the methods take today, by the name that the constructor had for it, and what ``tune`` does.
        places: How the user wrote those flags that stand for old ones.
        warnings: What to warn of.
        problems: Old and new flags that contradict one another.
    """

    flags: Flags
    given: Flags
    places: dict[str, str]
    warnings: list[str]
    problems: list[Problem]


_RENAMED = {
    "max_epochs": "max_nb_epochs",
    "min_epochs": "min_nb_epochs",
    "num_sanity_val_steps": "nb_sanity_val_steps",
    "num_nodes": "nb_gpu_nodes num_gpu_nodes",
    "overfit_batches": "overfit_pct",
    "limit_train_batches": "train_percent_check",
    "limit_val_batches": "val_percent_check",
    "limit_test_batches": "test_percent_check",
    "log_every_n_steps": "row_log_interval add_row_log_interval",
    "default_root_dir": "default_save_path weights_save_path",
    "enable_progress_bar": "show_progress_bar",
    "use_distributed_sampler": "replace_sampler_ddp replace_sampler_ddp_default",
    "detect_anomaly": "terminate_on_nan print_nan_grads",
    "gradient_clip_val": "gradient_clip",
}
_NO_MEANING = (
    "process_position log_gpu_memory replace_optimizer_ddp replace_lr_scheduler_ddp log_save_interval "
    "save_hparams auto_select_gpus amp_level amp_backend amp_type distributed_port enable_pl_optimizer "
    "amp_batch_size_adjustment prepare_data_per_node move_metrics_to_cpu flush_logs_every_n_steps"
)
_ONLY_OFF = "truncated_bptt_steps stochastic_weight_avg " + " ".join(_TUNED)

OLD: dict[str, Callable[[Any], Flags | None]] = {
    **{old: _renamed(new) for new, names in _RENAMED.items() for old in names.split()},
    **dict.fromkeys(_NO_MEANING.split(), _nothing),
    **dict.fromkeys(_ONLY_OFF.split(), _only_off),
    "gpus": _gpus,
    "tpu_cores": _devices("tpu", 1),
    "num_tpu_cores": _devices("tpu", 1),
    "ipus": _devices("ipu", 1),
    "hpus": _devices("hpu", 1),
    "num_processes": _devices("cpu", 2),
    "distributed_backend": _backend,
    "use_amp": lambda value: {"precision": "16-mixed"} if value else {},
    "weights_summary": _summary,
    "progress_bar_refresh_rate": _refresh,
    "checkpoint_callback": _checkpoints,
    "early_stop_callback": _early_stopping,
    "track_grad_norm": _grad_norm,
    "reload_dataloaders_every_epoch": lambda value: {"reload_dataloaders_every_n_epochs": int(bool(value))},
}
# Flags of today that took other values.
_VALUES: dict[str, Callable[[Any], Flags | None]] = {
    "max_time": lambda value: {"max_time": timedelta(seconds=float(value))} if is_number(value) else None,
    "accumulate_grad_batches": _accumulation,
    "profiler": lambda value: ({"profiler": "simple"} if value else {}) if isinstance(value, bool) else None,
}


def modern(written: Mapping[str, Any]) -> Modern:
    """Return today's flags for what was written.

    Args:
        written: The keyword arguments as the user wrote them.
    """
    given = GIVEN | {name for name in _TUNED if written.get(name)}
    flags: Flags = {name: value for name, value in written.items() if name not in given}
    warnings = [
        f"Trainer({name}): {ADVICE[name]}" for name, value in written.items() if name in given and value is not None
    ]
    mode = written.get("multiple_trainloader_mode")
    where = f"Trainer(multiple_trainloader_mode={mode!r})"
    problems = [] if mode is None else choice_problems(where, mode, get_args(Mode))
    places: dict[str, str] = {}
    for old, value in [(old, value) for old, value in written.items() if old not in given]:
        found = OLD[old](value) if old in OLD else _VALUES[old](value) if old in _VALUES else None
        if found is None:
            continue
        del flags[old]
        for name, new in found.items():
            if name == "callbacks":
                own = () if flags.get(name) is None else flags[name]
                flags[name] = [*objects(own), *new]
            elif name in places and flags[name] != new:
                where = f"{places[name][:-1]}, {old}={value!r})"
                problems.append(Problem(where, f"these stand for one flag of today, {name}, and contradict each other"))
            elif name in written and name != old:
                where = f"Trainer({old}={value!r}, {name}={written[name]!r})"
                fix = f"Leave {old} out."
                problems.append(Problem(where, "the first is an old name for the second", "both", fix))
            else:
                flags[name], places[name] = new, f"Trainer({old}={value!r})"
        warnings.append(f"Trainer({old}={value!r}): {_today(old, found)}")
    return Modern(flags, {name: written[name] for name in given & written.keys()}, places, warnings, problems)


def _today(old: str, found: Flags) -> str:
    if not found:
        advice = ADVICE.get(old, "Leave it out.")
        return f"this has no meaning any more. {advice}"
    shown = ", ".join(
        f"{name}={value!r}" if name != "callbacks" else _callback(value[-1]) for name, value in found.items()
    )
    return f"this is written {shown} today."


def _callback(callback: Any) -> str:
    return f"callbacks=[{type(callback).__name__}(...)]"
