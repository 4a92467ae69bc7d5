"""Find the checkpoint that ckpt_path means, and put its parts back, each at its moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.notices import info, warn
from lt_core.state.stage import stage_of
from lt_interface.errors import CheckpointError, ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = [
    "find_checkpoint",
    "restore_callbacks",
    "restore_data",
    "restore_optimizers",
    "restore_progress",
    "restore_training",
    "restore_weights",
]


def find_checkpoint(run: Run, ckpt_path: str | os.PathLike[str] | None) -> str | None:
    """Return the file that ``ckpt_path`` means, or None to start without one.

    Raises:
        ConfigError: If ``"best"`` is asked for and there is none.
        CheckpointError: If the path does not exist.
    """
    trainer = run.trainer
    if ckpt_path is None:
        return None
    path = os.fspath(ckpt_path)
    if path == "best":
        return _best(run)
    if path in ("last", "auto"):
        found = _last(run)
        if found is None and path == "last":
            where = ", ".join(str(f) for f in search_folders(run)[:3]) or trainer.default_root_dir
            warn(f'{run.fn}(ckpt_path="last"): no checkpoint was found in {where}; starting from the beginning.')
        if found is not None:
            info(f"resuming from {found}")
        return found
    if path == "hpc":
        return _hpc(run)
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise CheckpointError(_missing(run, path))
    return path


def _missing(run: Run, path: str) -> str:
    folder = os.path.dirname(path) or "."
    there = sorted(f for f in os.listdir(folder) if not f.startswith("."))[:10] if os.path.isdir(folder) else []
    fix = f"In {folder}: {', '.join(there)}." if there else 'Give an existing file, or "last", "best" or "auto".'
    return str(Problem(f"{run.fn}(ckpt_path={path!r})", "this file must exist", "no such file", fix))


def _best(run: Run) -> str:
    trainer = run.trainer
    where = f'{run.fn}(ckpt_path="best")'
    if trainer.fast_dev_run:
        raise ConfigError(
            Problem(where, "fast_dev_run saves no checkpoint, so there is no best one", fix="Pass a path.")
        )
    callback = trainer.checkpoint_callback
    if callback is None:
        raise ConfigError(Problem(where, "this needs a ModelCheckpoint among the callbacks", fix="Pass a path."))
    best: str = getattr(callback, "best_model_path", "")
    if not best:
        raise ConfigError(Problem(where, "no checkpoint has been saved yet", fix="Run fit first, or pass a path."))
    if len(trainer.checkpoint_callbacks) > 1:
        warn(f"{where}: several checkpoint callbacks; the first one's best is taken: {best}")
    return best


def search_folders(run: Run) -> list[Path]:
    """Return where checkpoints of this trainer can lie: the callbacks' own folders, else all versions'."""
    trainer = run.trainer
    folders = [Path(f) for c in trainer.checkpoint_callbacks for f in getattr(c, "folders", list)()]
    default = not folders or any(not getattr(c, "dirpath", None) for c in trainer.checkpoint_callbacks)
    if default:
        for logger in trainer.loggers:
            root = getattr(logger, "root_dir", None)
            if root:
                folders += sorted(Path(root).glob("*/checkpoints"))
        folders.append(Path(trainer.default_root_dir) / "checkpoints")
    unique = dict.fromkeys(f.absolute() for f in folders)
    return [f for f in unique if f.is_dir()]


def _last(run: Run) -> str | None:
    from lt_core.checkpoint.find import find_last
    from lt_core.checkpoint.format.signature import parameter_signature

    state = run.module.state_dict()
    signature = parameter_signature(state) if state else None
    found = find_last(search_folders(run), signature)
    return None if found is None else str(found)


def _hpc(run: Run) -> str:
    import re

    root = Path(run.trainer.default_root_dir)
    numbered = [
        (int(m[1]), p) for p in root.glob("hpc_ckpt_*.ckpt") if (m := re.search(r"hpc_ckpt_(\d+)\.ckpt$", p.name))
    ]
    if not numbered:
        raise CheckpointError(_missing(run, str(root / "hpc_ckpt_1.ckpt")))
    return str(max(numbered)[1])


def restore_weights(run: Run, checkpoint: dict[str, Any]) -> None:
    """Load the weights; names that do not fit are listed."""
    from lt_core.checkpoint.weights import load_weights

    load_weights(run.module, checkpoint["state_dict"], run.module.strict_loading, run.resume_path or "checkpoint")


def restore_callbacks(run: Run, checkpoint: dict[str, Any]) -> None:
    """Give data module and callbacks their state."""
    trainer = run.trainer
    datamodule = run.datamodule
    if datamodule is not None and type(datamodule).__qualname__ in checkpoint:
        datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])
    states = checkpoint.get("callbacks") or {}
    here = {c.state_key for c in run.callbacks}
    gone = [key for key in states if key not in here]
    if gone:
        warn(
            f"{run.resume_path}: it holds the state of callbacks that are not here: {', '.join(gone)}. "
            "Add them to resume them."
        )
    for callback in run.callbacks:
        callback.on_load_checkpoint(trainer, run.module, checkpoint)
    for callback in run.callbacks:
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])


def restore_progress(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take over the counters, so that on_fit_start sees the resumed epoch."""
    progress = checkpoint.get("progress")
    if progress is None:  # an imported or hand-made file
        run.progress.load_state_dict(
            {"epoch": checkpoint.get("epoch", -1) + 1, "step": checkpoint.get("global_step", 0)}
        )
        return
    run.progress.load_state_dict(progress)
    run.trainer._save_counter = progress.get("save_counter", 0)
    run.pending = progress.get("pending")
    run.seen_batches = dict(checkpoint.get("loops", {}).get("seen_batches", {}))
    if not progress.get("exact", True):
        warn(
            f"{run.resume_path}: it was saved inside a hook or after an error, not at a boundary of the loop. "
            "Training goes on, but not bit for bit as without the interruption."
        )


def restore_optimizers(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take over optimizer, scheduler and precision state."""
    where = run.resume_path or "checkpoint"
    if "optimizer_states" not in checkpoint:
        raise CheckpointError(
            f"{where}: a file saved with weights only can not be resumed. Load it with "
            f"{type(run.module).__name__}.load_from_checkpoint and call fit without ckpt_path."
        )
    run.engine.load_optimizer_states(checkpoint["optimizer_states"])
    states = checkpoint.get("lr_schedulers") or []
    schedulers = [s.scheduler for s in run.schedulers if hasattr(s.scheduler, "load_state_dict")]
    if len(states) != len(schedulers):
        raise CheckpointError(
            f"{where}: it holds {len(states)} scheduler states. Got {len(schedulers)} schedulers. "
            "Return the same schedulers from configure_optimizers."
        )
    for scheduler, state in zip(schedulers, states, strict=True):
        scheduler.load_state_dict(state)
    saved = checkpoint.get("precision") or {}
    if run.precision.name in saved:
        run.precision.load_state_dict(saved[run.precision.name])


def restore_training(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take over what the loop itself holds: metrics, data position, cadence."""
    from lt_core.metrics.objects import restore

    trainer = run.trainer
    if "metrics" in checkpoint:
        run.train_metrics.load_state_dict(checkpoint["metrics"])
    if "metric_objects" in checkpoint:
        restore(run.module, checkpoint["metric_objects"])
    trainer._callback_metrics.update(checkpoint.get("callback_metrics") or {})
    logged = checkpoint.get("logged") or {}
    run.logged_step = logged.get("step", run.progress.step)
    trainer._logged_metrics.update(logged.get("metrics") or {})
    schedule = checkpoint.get("schedule") or {}
    run.epoch_schedulers_done = schedule.get("epoch_done", False)
    run.validated_batch = schedule.get("validated", -1)
    for handler, count in zip(trainer._handlers, checkpoint.get("handlers") or [], strict=False):
        handler.count = count


def restore_data(run: Run, checkpoint: dict[str, Any]) -> None:
    """Give the feeds their place, after all that must not draw from a resumed loader's generator."""
    from lt_core.data.sources import eval_feed, has_loader, train_feed

    for stage, state in (checkpoint.get("data") or {}).items():
        if stage == "train":
            train_feed(run).load_state_dict(state)
        elif has_loader(run, stage_of(stage)):
            eval_feed(run, stage_of(stage)).load_state_dict(state)
