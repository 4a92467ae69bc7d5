"""Put the parts of a checkpoint back, each at its moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lt_core.checkpoint.engine_folder import KEY
from lt_core.checkpoint.parts import restore
from lt_core.data.leaf import is_stateful
from lt_core.hooks.table import method_of
from lt_core.notices import warn
from lt_interface.errors import CheckpointError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["restore_callbacks", "restore_progress", "restore_training"]


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
        load = run.hook(method_of(callback, "on_load_checkpoint"), callback, "on_load_checkpoint")
        load(run.trainer, run.module, checkpoint)
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
    _check_schedulers(run, checkpoint.get("lr_schedulers"))
    restore(run, checkpoint, "optimizers", "training")


def _check_schedulers(run: Run, states: Any) -> None:
    """Refuse other schedulers than the file has, before an optimizer's state shows that something is amiss."""
    here = [type(s.scheduler).__name__ for s in run.schedulers if is_stateful(s.scheduler)]
    if not isinstance(states, list) or len(states) == len(here):
        return
    rule = f"it holds the states of {len(states)} schedulers, and configure_optimizers must return as many"
    got = f"{len(here)}" + (f" ({', '.join(here)})" if here else "")
    fix = (
        "Return the same ones; to train on with others, load the weights with "
        f"{type(run.module).__name__}.load_from_checkpoint and call fit without ckpt_path."
    )
    raise CheckpointError(Problem(run.resumed.path or "checkpoint", rule, got, fix))
