"""Gather a run's state into one tree and write what was asked for, at a boundary."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lt_core.notices import warn
from lt_core.version import __version__
from lt_interface.errors import CheckpointError

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["SaveRequest", "build_tree", "flush_saves", "settle_saves", "write"]


@dataclass
class SaveRequest:
    """Ask the loop to write a checkpoint at its next boundary.

    Attributes:
        path: Where to.
        weights_only: Whether to leave out all that only a resume needs.
        saved: Called once the file is durable; the place to remove older ones.
        failed: Called with the error if it could not be written.
    """

    path: str
    weights_only: bool = False
    saved: Callable[[], Any] | None = None
    failed: Callable[[BaseException], Any] | None = None


def build_tree(run: Run, weights_only: bool = False) -> dict[str, Any]:
    """Return the familiar checkpoint dict of a run as it is now.

    Args:
        run: The run.
        weights_only: Whether to keep only weights, counters and hyper-parameters.
    """
    from lt_core.model.hparams import checkpoint_entries

    trainer, progress = run.trainer, run.progress
    trainer._save_counter += 1
    run.count_samples()
    tree: dict[str, Any] = {
        "epoch": max(progress.epoch - 1, 0) if progress.epoch_closed else progress.epoch,
        "global_step": progress.step,
        "lt_core_version": __version__,
        "progress": {
            **progress.state_dict(),
            "save_counter": trainer._save_counter,
            "exact": run.at_boundary,
            "pending": run.pending,
        },
        "state_dict": run.engine.model.state_dict(),
        "loops": {
            "fit_loop": {"epoch": progress.epoch, "batch": progress.batch, "global_step": progress.step},
            "seen_batches": dict((run.before_validation or {}).get("seen_batches", run.seen_batches)),
        },
    }
    tree.update(checkpoint_entries(run.module))
    if run.datamodule is not None:
        tree.update(checkpoint_entries(run.datamodule, "datamodule_"))
    if not weights_only:
        tree.update(_resume_parts(run))
    with nullcontext() if run.store is None else run.store.inside("on_save_checkpoint"):  # None: after a run
        for callback in run.callbacks if not weights_only else ():
            callback.on_save_checkpoint(trainer, run.module, tree)
        run.module.on_save_checkpoint(tree)
    return tree


def _resume_parts(run: Run) -> dict[str, Any]:
    """Return all that is needed to go on to the bit."""
    from lt_core.metrics.objects import collect
    from lt_core.state import rng

    trainer = run.trainer
    parts: dict[str, Any] = {
        "optimizer_states": run.engine.optimizer_states(),
        "lr_schedulers": [s.scheduler.state_dict() for s in run.schedulers if hasattr(s.scheduler, "state_dict")],
        "callbacks": callback_states(run),
        "rng": rng.capture(),
        "seed": run.plan.seed,
        "metrics": run.train_metrics.state_dict(),
        "metric_objects": collect(run.module),
        "callback_metrics": dict(trainer._callback_metrics),
        "logged": {"step": run.logged_step, "metrics": dict(trainer._logged_metrics)},
        "schedule": {"epoch_done": run.epoch_schedulers_done, "validated": run.validated_batch},
        "handlers": [h.count for h in trainer._handlers],
    }
    place = run.before_validation or validation_place(run)
    parts["journal"] = _journal_mark(run, **place["journal"])
    parts["data"] = {**place["data"], **({"train": run.feed.state_dict()} if "feed" in run.__dict__ else {})}
    precision = run.precision.state_dict()
    if precision:
        parts["precision"] = {run.precision.name: precision}
    if run.datamodule is not None:
        state = run.datamodule.state_dict()
        if state:
            parts[type(run.datamodule).__qualname__] = state
    return parts


def _journal_mark(run: Run, offset: int, sequence: int) -> dict[str, Any]:
    """Return where the journal is to go on; one without a file is carried whole."""
    mark: dict[str, Any] = {"offset": offset, "sequence": sequence, "file": run.journal_file}
    if run.journal.path is not None:
        run.journal.flush()  # after a crash of the machine the mark must not lie behind its end
    else:
        mark["records"] = torch.frombuffer(bytearray(run.journal.contents()[:offset] or b"\n"), dtype=torch.uint8)
    return mark


def validation_place(run: Run) -> dict[str, Any]:
    """Return all that a validation moves on: a checkpoint that is saved inside one takes what was before it."""
    return {
        "journal": {"offset": run.journal.offset, "sequence": run.journal.sequence},
        "seen_batches": dict(run.seen_batches),
        "data": {stage: feed.state_dict() for stage, feed in run.eval_feeds.items()},
    }


def callback_states(run: Run) -> dict[str, Any]:
    """Return the non-empty states of the callbacks by their keys."""
    states = ((c.state_key, c.state_dict()) for c in run.callbacks)
    return {key: state for key, state in states if state}


def write(run: Run, path: str, tree: dict[str, Any]) -> None:
    """Write a tree through the run's checkpoint format, on the ranks that it needs."""
    io = run.checkpoint_io
    if io.collective or run.world.is_global_zero:
        io.save(tree, os.fspath(path))


def flush_saves(run: Run) -> None:
    """Write what was asked for since the last boundary; a failure is told and training goes on."""
    queue, run.save_queue = run.save_queue, []
    if not queue:
        return
    settle_saves(run)  # one save in flight: the last one is confirmed before the next begins
    trees: dict[bool, dict[str, Any]] = {}
    for request in queue:
        try:
            if request.weights_only not in trees:
                trees[request.weights_only] = build_tree(run, request.weights_only)
            write(run, request.path, trees[request.weights_only])
        except (OSError, CheckpointError) as error:
            _failed(run, request, error)
            continue
        if getattr(run.checkpoint_io, "asynchronous", False):
            run.in_flight.append(request)
        else:
            _saved(run, request)


def settle_saves(run: Run) -> None:
    """Wait for a save in flight and confirm it, or tell its failure."""
    requests, run.in_flight = run.in_flight, []
    if not requests:
        return
    try:
        run.checkpoint_io.wait()
    except (OSError, CheckpointError) as error:
        for request in requests:
            _failed(run, request, error)
        return
    for request in requests:
        _saved(run, request)


def _saved(run: Run, request: SaveRequest) -> None:
    if request.saved is not None:
        request.saved()
    for logger in run.loggers:
        after = getattr(logger, "after_save_checkpoint", None)
        if after is None or run.trainer.checkpoint_callback is None:
            continue
        try:
            after(run.trainer.checkpoint_callback)
        except Exception as error:  # a tracker that is away stops no training
            warn(f"{type(logger).__name__}.after_save_checkpoint: it raised {type(error).__name__}: {error}")


def _failed(run: Run, request: SaveRequest, error: BaseException) -> None:
    warn(
        f"checkpoint {request.path}: not written, training goes on. {type(error).__name__}: {error}. "
        "Older checkpoints stay."
    )
    if request.failed is not None:
        request.failed(error)
