"""What comes back from the processes of a call: made by rank 0, applied in the process that launched them.

It holds the states that users read after a call: weights, optimizers, callbacks, the data module, loggers, metrics and
counters. Attributes that were set in the ranks beside these do not come back. Optimizers cannot travel, since they hold
the parameters of another process: where users ask for them, the module makes them again, and they get their states.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lt_core.checkpoint.weights import load_weights
from lt_core.data.leaf import is_stateful
from lt_core.data.nested import apply_to_collection, leaves
from lt_core.hooks.table import method_of, overrides
from lt_core.notices import warn
from lt_core.optim.states import named_states
from lt_core.run.build import merge_callbacks, returned_run
from lt_core.run.request import unpicklable
from lt_core.state import rng
from lt_core.state.progress import TrainerStatus
from lt_core.tracking.journal import Journal
from lt_interface import Logger, Outcome

if TYPE_CHECKING:
    from lt_core.run.request import Request
    from lt_core.state.run import Run

__all__ = ["make_outcome", "receive"]

LARGE_BYTES = 64 << 20


@dataclass
class _InFile:
    """Value too large to travel, left in a file."""

    path: str


def make_outcome(run: Run, value: Any) -> Outcome:
    """Return what goes back to the launching process, from a run that is over; only rank 0 has something.

    Args:
        run: The run; its module and optimizers are plain again.
        value: What the call returns.
    """
    if not run.world.is_global_zero:
        return Outcome()
    trainer, results, journal = run.trainer, run.metrics.results, run.tracking.journal
    changed = run.fits or run.resumed.path is not None
    states = {c.state_key: state for c in run.callbacks if (state := method_of(c, "state_dict")())}
    data_state = {} if run.datamodule is None else method_of(run.datamodule, "state_dict")()
    own = {f"{run.stage.step}, what it returned": value, "callbacks": states, "datamodule.state_dict()": data_state}
    if refusal := unpicklable(f"Trainer.{run.fn}, from its ranks", own.items()):
        raise refusal
    metrics = {"callback": results.callback, "logged": results.logged, "progress_bar": results.bar}
    return Outcome(
        value=_large_in_file(_plain(value), run.plan.root),
        weights=_plain(nn.Module.state_dict(run.module)) if changed else None,  # also what an override leaves out
        optimizer_states=_plain(named_states(run.module, run.optimizers)) if run.fits else [],
        scheduler_states=[s.scheduler.state_dict() for s in run.schedulers if run.fits and is_stateful(s.scheduler)],
        callback_states=_plain(states),
        datamodule_state=_plain(data_state),
        logger_states=[logger.__getstate__() if isinstance(logger, Logger) else {} for logger in trainer.loggers],
        metrics=_plain({name: dict(values) for name, values in metrics.items()}),
        progress={
            **run.progress.state_dict(),
            "save_counter": trainer._save_counter,
            "resumed_from": run.resumed.path,
            "should_stop": trainer.should_stop,
        },
        stop_reason=trainer.stop_reason,
        journal=run.tracking.journal_file,
        records=journal.contents() if journal.path is None else b"",
        checkpoint_parts=_plain(run.saves.kept),
    )


def receive(request: Request, outcome: Outcome) -> Any:
    """Bring the launching process to where the ranks ended, and return what the call returns.

    Args:
        request: What the ranks were given.
        outcome: What the launcher returned; where the run took place in this process there is nothing to do.
    """
    if not request.travels:
        return outcome.value
    trainer = request.trainer
    last, earlier = trainer._run, trainer._returned
    trainer._begin(run := returned_run(request))
    with rng.isolate():
        merge_callbacks(run)
    run.resumed.path = outcome.progress.get("resumed_from")
    run.saves.kept = outcome.checkpoint_parts
    trainer._run_id = outcome.checkpoint_parts.get("lt_run", {}).get("id", trainer._run_id)
    trainer._save_counter = outcome.progress.get("save_counter", trainer._save_counter)
    run.progress.load_state_dict(outcome.progress)
    trainer._should_stop = outcome.progress.get("should_stop", False)
    trainer._stop_reason = outcome.stop_reason
    if outcome.weights is not None:
        _load_weights(run, outcome.weights)
    for callback in run.callbacks:
        if callback.state_key in outcome.callback_states:
            method_of(callback, "load_state_dict")(outcome.callback_states[callback.state_key])
    if outcome.datamodule_state:
        method_of(run.datamodule, "load_state_dict")(outcome.datamodule_state)
    for logger, state in zip(trainer.loggers, outcome.logger_states, strict=False):
        vars(logger).update(state)
    results, shown = run.metrics.results, outcome.metrics
    results.restore_callback(shown.get("callback", {}))
    results.note_logged(shown.get("logged", {}))
    results.bar.update(shown.get("progress_bar", {}))
    _take_journal(run, outcome)
    # A call that trains nothing leaves the optimizers of the module's fit as they are, made here already or not.
    kept = earlier is not None and last is not None and last.module is run.module and not run.fits
    trainer._returned = earlier if kept else outcome
    trainer.state.status = TrainerStatus.FINISHED
    trainer._end(run)
    return _from_file(outcome.value)


def _load_weights(run: Run, weights: dict[str, Any]) -> None:
    """Load weights into the module, which gets the layers and the formats that it got in the ranks."""
    module = run.module
    if set(weights) - set(module.state_dict()) and overrides(module, "configure_model"):
        with rng.isolate():
            module.configure_model()
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if name in weights and tensor.dtype != weights[name].dtype:
            tensor.data = tensor.data.to(weights[name].dtype)
    own = nn.Module.state_dict(module)
    lazy = torch.nn.parameter.is_lazy
    here = {
        k: v
        for k, v in weights.items()
        if k in own and (lazy(own[k]) or getattr(own[k], "shape", None) == getattr(v, "shape", None))
    }
    load_weights(module, here, strict=False, where=f"Trainer.{run.fn}, from the ranks")
    if lost := [name for name in weights if name not in here]:
        warn(
            f"Trainer.{run.fn}: the module here lacks what it got in the ranks, so these weights did not come back: "
            f"{', '.join(lost[:20])}. Make them in __init__ or configure_model, or load them from a checkpoint."
        )


def _take_journal(run: Run, outcome: Outcome) -> None:
    if outcome.journal is not None:
        journal = Journal(outcome.journal, read_only=True)
    else:
        journal = Journal(None)
        journal.fill(outcome.records)
    run.trainer._journal = run.tracking.journal = journal


def _plain(value: Any) -> Any:
    """Return a value whose tensors are on the CPU and hold no more than themselves."""

    def alone(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        if tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > tensor.nbytes:
            return tensor.clone()  # a view would take along all that it is a view of
        return tensor

    return apply_to_collection(value, Tensor, alone)


def _large_in_file(value: Any, root: str) -> Any:
    """Return a value as it is, or where its tensors are large, the file below the root folder that holds it."""
    if sum(leaf.nbytes for _, leaf in leaves(value) if isinstance(leaf, Tensor)) <= LARGE_BYTES:
        return value
    os.makedirs(root, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".predictions-", dir=root, delete=False) as file:
        pickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)
    return _InFile(file.name)


def _from_file(value: Any) -> Any:
    """Return a value, out of its file if it was left in one; the file is removed."""
    if not isinstance(value, _InFile):
        return value
    with open(value.path, "rb") as file:
        value_read = pickle.load(file)
    os.unlink(value.path)
    return value_read
