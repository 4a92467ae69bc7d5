"""What comes back from the processes of a call: made by rank 0, applied in the process that launched them.

It holds the states that users read after a call: weights and buffers, optimizers, callbacks, the data module, loggers,
metrics and counters. Attributes that were set in the ranks beside these do not come back. Optimizers cannot travel,
since they hold the parameters of another process: where users ask for them, the module makes them again, and they get
their states.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import dataclass
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
    weights = _plain(nn.Module.state_dict(run.module)) if changed else None  # also what an override leaves out
    return Outcome(
        value=_large_in_file(_plain(value), run.plan.root),
        weights=weights,
        buffers=_buffers(run.module, weights or {}),
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
    _load_weights(run, outcome.weights, outcome.buffers)
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


def _buffers(module: nn.Module, weights: dict[str, Any]) -> dict[str, tuple[bool, Any]]:
    """Return each buffer of a module, with whether it belongs to its weights: there it is the same tensor."""
    return {
        name: (key not in part._non_persistent_buffers_set, weights.get(name, _plain(tensor)))
        for path, part in module.named_modules()
        for key, tensor in part._buffers.items()
        for name in (f"{path}.{key}" if path else key,)
    }


def _load_weights(run: Run, weights: dict[str, Any] | None, buffers: dict[str, tuple[bool, Any]]) -> None:
    """Load weights into the module, which gets the layers, buffers and formats that it got in the ranks."""
    module, fitted = run.module, weights is not None
    weights = weights or {}
    if set(weights) - set(module.state_dict()) and overrides(module, "configure_model"):
        with rng.isolate():
            module.configure_model()
    for name, tensor in module.named_parameters():
        if name in weights and tensor.dtype != weights[name].dtype:
            tensor.data = tensor.data.to(weights[name].dtype)
    for name, (persistent, value) in buffers.items():
        _set_buffer(module, name, value, persistent, fitted)
    if not fitted:
        return
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


def _set_buffer(module: nn.Module, name: str, value: Tensor | None, persistent: bool, formats: bool) -> None:
    """Give a buffer its value: into the tensor that is here, or anew where a step made it or gave it another shape.

    Args:
        module: The module.
        name: The buffer's name in it.
        value: What the rank has.
        persistent: Whether it belongs to the module's weights.
        formats: Whether the number format is the rank's, too.
    """
    path, _, key = name.rpartition(".")
    try:
        part = module.get_submodule(path)
    except AttributeError:
        return  # a layer that is not here
    here = part._buffers.get(key)
    if here is not None and value is not None and not torch.nn.parameter.is_lazy(here) and not here.is_meta:
        alike = here.shape == value.shape and here.layout is value.layout
        if alike and (here.dtype == value.dtype or not formats):
            here.detach().copy_(value)
            return
    part._buffers.pop(key, None)
    part.__dict__.pop(key, None)
    if key not in part._parameters and key not in part._modules:
        part.register_buffer(key, value, persistent)


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
