"""Find the checkpoint that ckpt_path means, and put its parts back, each at its moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_core.checkpoint.engine_folder import KEY
from lt_core.checkpoint.parts import restore
from lt_core.hooks.table import method_of
from lt_core.notices import info, warn
from lt_core.state.agreement import decided_by_rank_zero
from lt_interface.abilities import fact
from lt_interface.errors import CheckpointError, ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["find_checkpoint", "restore_callbacks", "restore_progress", "restore_training"]


def find_checkpoint(run: Run, ckpt_path: str | os.PathLike[str] | None) -> str | None:
    """Return the file that ``ckpt_path`` means, or None to start without one; rank 0 looks, for all ranks.

    Raises:
        ConfigError: If ``"best"`` is asked for and there is none.
        CheckpointError: If the path does not exist.
    """
    if ckpt_path is None:
        return None
    return decided_by_rank_zero(run, lambda: _find(run, os.fspath(ckpt_path)))


def _find(run: Run, path: str) -> str | None:
    if path == "best":
        return _best(run)
    if path in ("last", "auto"):
        found = _last(run)
        if found is None and path == "last":
            where = ", ".join(str(f) for f in search_folders(run)[:3]) or run.trainer.default_root_dir
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
        rule = "fast_dev_run saves no checkpoint, so there is no best one"
        raise ConfigError(Problem(where, rule, fix="Pass a path."))
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
    if not folders or any(not getattr(c, "dirpath", None) for c in trainer.checkpoint_callbacks):
        for logger in trainer.loggers:
            if root := fact(logger, "root_dir"):
                folders += sorted(Path(root).glob("*/checkpoints"))
        folders.append(Path(trainer.default_root_dir) / "checkpoints")
    return [f for f in dict.fromkeys(f.absolute() for f in folders) if f.is_dir()]


def _last(run: Run) -> str | None:
    from lt_core.checkpoint.find import find_last
    from lt_core.checkpoint.format.signature import parameter_signature

    state = run.module.state_dict()
    signature = parameter_signature(state) if state else None
    found = find_last(search_folders(run), signature, run.saves.io)
    return None if found is None else str(found)


def _hpc(run: Run) -> str:
    import re

    root = Path(run.trainer.default_root_dir)
    numbered = [(int(m[1]), p) for p in root.glob("hpc_ckpt_*") if (m := re.search(r"hpc_ckpt_(\d+)\.ckpt$", p.name))]
    if not numbered:
        raise CheckpointError(_missing(run, str(root / "hpc_ckpt_1.ckpt")))
    return str(max(numbered)[1])


def restore_callbacks(run: Run, checkpoint: dict[str, Any]) -> None:
    """Let the callbacks look at the checkpoint, and give them and the data module their states."""
    restore(run, checkpoint, "data module")
    here = {c.state_key for c in run.callbacks}
    gone = [key for key in checkpoint.get("callbacks") or {} if key not in here]
    if gone:
        warn(
            f"{run.resumed.path}: it holds the state of callbacks that are not here: {', '.join(gone)}. "
            "Add them to resume them."
        )
    for callback in run.callbacks:
        method_of(callback, "on_load_checkpoint")(run.trainer, run.module, checkpoint)
    restore(run, checkpoint, "callbacks")


def restore_progress(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take over the counters, so that on_fit_start sees the resumed epoch."""
    if "progress" not in checkpoint:  # an imported or hand-made file
        counters = {"epoch": checkpoint.get("epoch", -1) + 1, "step": checkpoint.get("global_step", 0)}
        run.progress.load_state_dict(counters)
        return
    restore(run, checkpoint, "progress")


def restore_training(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take over optimizers, schedulers, precision, metrics and what the loop knows.

    Raises:
        CheckpointError: If the file holds weights only, or the states are of other optimizers or schedulers.
    """
    if "optimizer_states" not in checkpoint and KEY not in checkpoint:
        raise CheckpointError(
            f"{run.resumed.path or 'checkpoint'}: a file saved with weights only cannot be resumed. Load it with "
            f"{type(run.module).__name__}.load_from_checkpoint and call fit without ckpt_path."
        )
    restore(run, checkpoint, "optimizers", "training")
