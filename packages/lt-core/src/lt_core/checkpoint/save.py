"""Gather a run's state into one tree and write what was asked for, at a boundary."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lt_core.checkpoint.engine_folder import refuse_alone, remove_folders, write_folder
from lt_core.checkpoint.format import reading
from lt_core.checkpoint.parts import ONLY_IN_RANKS, gather, parts, state_of
from lt_core.checkpoint.preflight import advised
from lt_core.hooks.table import method_of
from lt_core.notices import warn
from lt_core.state.agreement import shared_failure
from lt_interface import KeepsObjects, RefusesValues, SavesItself
from lt_interface.errors import CheckpointError, Problem

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = [
    "SaveRequest",
    "Saves",
    "announce",
    "build_tree",
    "flush_saves",
    "parts_of_ranks",
    "settle_saves",
    "weights_of",
    "write_now",
]


class Saves:
    """Checkpoints that were asked for and are not confirmed yet.

    Args:
        io: The checkpoint format.
        trusted: Whether objects in a file may be made, which runs what it says.

    Attributes:
        queue: Requests that wait for the next boundary.
        in_flight: Requests whose files are being written.
        written: The newest files to resume from, each with its step, the last one at the end.
        kept: Parts that came back from ranks that are gone, or that an earlier fit left; they stand for the run's own.
    """

    def __init__(self, io: Any, trusted: bool = False) -> None:
        self.io, self.trusted = io, trusted
        self.queue: list[SaveRequest] = []
        self.in_flight: list[SaveRequest] = []
        self.kept: dict[str, Any] = {}
        self.written: deque[tuple[str, int]] = deque(maxlen=64)

    def read(self, path: str) -> dict[str, Any]:
        """Return the tree of a checkpoint, of this format or another one that is known here."""
        return reading.load(path, self.io, self.trusted)

    def peek(self, path: str) -> dict[str, Any]:
        """Return the header of a checkpoint, of this format or another one that is known here."""
        return reading.peek(path, self.io)

    def join(self, others: list[tuple[str, bool]]) -> None:
        """Add what another rank asked for and this one did not, so that all ranks write the same files."""
        here = {(request.path, request.weights_only) for request in self.queue}
        self.queue += [SaveRequest(*each) for each in others if each not in here]


@dataclass
class SaveRequest:
    """Request that the loop write a checkpoint at its next boundary.

    Attributes:
        path: Where to.
        weights_only: Whether to leave out all that only a resume needs.
        saved: Called once the file is durable; the place to remove older ones.
        failed: Called with the error if it could not be written.
        folder: What the engine wrote beside it, or an empty string.
        step: How many steps were made when it was written.
    """

    path: str
    weights_only: bool = False
    saved: Callable[[], Any] | None = None
    failed: Callable[[BaseException], Any] | None = None
    folder: str = ""
    step: int = 0


def build_tree(run: Run, weights_only: bool = False) -> dict[str, Any]:
    """Return the familiar checkpoint dict of a run as it is now.

    Args:
        run: The run.
        weights_only: Whether to keep only weights, counters and hyper-parameters.
    """
    from lt_core.model.hparams import checkpoint_entries

    tree: dict[str, Any] = {}
    table = [part for part in parts(run) if part.in_weights or not weights_only]
    if isinstance(run.engine, SavesItself) and not weights_only:
        table = [part for part in table if not part.in_engine]
    kept = run.saves.kept
    for part in table:
        state = kept[part.key] if part.key in kept else state_of(run, part)
        if state or part.empty:
            tree[part.key] = state
    if run.world.size > 1 and not weights_only and not run.loop.alone:
        own = {part.key: tree[part.key] for part in table if part.per_rank}
        tree["ranks"] = kept["ranks"] if "ranks" in kept else gather(run, own)
    store = run.saves.io if isinstance(run.saves.io, KeepsObjects) else None
    tree.update(checkpoint_entries(run.module, store=store))
    if run.datamodule is not None:
        tree.update(checkpoint_entries(run.datamodule, "datamodule_", store))
    with run.metrics.current.inside("on_save_checkpoint"):
        for callback in run.callbacks if not weights_only else (c for c in run.callbacks if c.in_weights):
            save = run.hook(method_of(callback, "on_save_checkpoint"), callback, "on_save_checkpoint")
            save(run.trainer, run.module, tree)
        run.hook(method_of(run.module, "on_save_checkpoint"), run.module, "on_save_checkpoint")(tree)
    return tree


def weights_of(run: Run) -> dict[str, Any]:
    """Return the weights as a checkpoint of the running fit has them; every rank calls it."""
    [part] = [part for part in parts(run) if part.key == "state_dict"]
    tree = {part.key: part.stateful.state_dict()}
    for callback in run.callbacks:
        if callback.in_weights:
            method_of(callback, "on_save_checkpoint")(run.trainer, run.module, tree)
    return tree["state_dict"]


def parts_of_ranks(run: Run) -> dict[str, Any]:
    """Return the parts of a checkpoint that end with the ranks; every rank calls it, at the end of a fit."""
    table = [part for part in parts(run) if part.key in ONLY_IN_RANKS]
    found: dict[str, Any] = {part.key: part.stateful.state_dict() for part in table}
    if run.world.size > 1:
        found["ranks"] = gather(run, {part.key: found[part.key] for part in table if part.per_rank})
    return found


class _RefusedError(CheckpointError):
    """Values that a checkpoint was written without, since its format cannot keep them."""


def write_now(run: Run, path: str, weights_only: bool) -> None:
    """Write a checkpoint and return when it is durable.

    Raises:
        OSError: If the disk refuses, on every rank.
        CheckpointError: If a value cannot be kept, the file then being written without it, or on a rank that is alone
            with its part of the weights.
    """
    if not run.loop.alone:
        run.collectives.barrier("trainer.save_checkpoint")
    settle_saves(run)
    request = SaveRequest(path, weights_only)
    error = run.action(_attempt, "save_checkpoint")(run, request, durable=True)
    _sweep(run, request, error)
    if error is not None:
        raise error


def _attempt(run: Run, request: SaveRequest, durable: bool = False) -> Exception | None:
    """Write, or begin to write, one checkpoint; return the failure of any rank, on all of them.

    Args:
        run: The run.
        request: What was asked for.
        durable: Whether to wait until it is durable.
    """
    error: Exception | None = None
    try:
        if run.strategy.collective_weights:
            refuse_alone(run, request.path)
        request.step = run.progress.step
        _write(run, request, build_tree(run, request.weights_only))
        if durable:
            run.saves.io.wait()
    except (OSError, CheckpointError) as caught:
        error = caught
    return shared_failure(run, error)


def _write(run: Run, request: SaveRequest, tree: dict[str, Any]) -> None:
    """Write a tree through the run's checkpoint format, on the ranks that it needs, behind what the engine writes."""
    io = run.saves.io
    writes_folder = "state_dict" not in tree and isinstance(run.engine, SavesItself)
    if io.collective or writes_folder:
        refuse_alone(run, request.path)
    if writes_folder:
        request.folder = write_folder(run, request.path, tree)
    if not io.collective and not run.world.is_global_zero:
        return
    try:
        io.save(tree, request.path)
    except CheckpointError as error:
        kept, problems = io.without_refused(tree) if isinstance(io, RefusesValues) else ({}, [])
        if not problems:
            raise
        io.save(kept, request.path)
        io.wait()
        where = f"checkpoint {request.path}"
        note = Problem(where, "it is written without these entries, and the run ends, since a resume would lack them")
        raise _RefusedError([*map(advised, problems), note]) from error


def _sweep(run: Run, request: SaveRequest, error: BaseException | None) -> None:
    """Remove the engine's folder of a failed save, or those of the files that a save has replaced."""
    if run.world.is_global_zero:
        if error is None or isinstance(error, _RefusedError):
            run.saves.written += [] if request.weights_only else [(request.path, request.step)]
            remove_folders(request.path, keep=request.folder)
        elif request.folder:
            shutil.rmtree(request.folder, ignore_errors=True)


def flush_saves(run: Run) -> None:
    """Write what was asked for since the last boundary; where the disk refuses, it is reported and training goes on.

    Raises:
        CheckpointError: On every rank, once all is written, if a value cannot be kept.
    """
    errors = []
    for _ in range(len(run.saves.queue)):
        errors += _settled(run)  # one save in flight: the last one is confirmed, or reported, before the next begins
        request = run.saves.queue.pop(0)
        error = run.action(_attempt, "save_checkpoint")(run, request)
        if error is None and getattr(run.saves.io, "asynchronous", False):
            run.saves.in_flight.append(request)
        else:
            errors += _ended(run, request, error)
    if errors:
        _settled(run)
        raise errors[0]


def settle_saves(run: Run) -> None:
    """Wait for a save in flight and confirm it, or report its failure.

    Raises:
        CheckpointError: On every rank, if a value cannot be kept.
    """
    errors = _settled(run)
    if errors:
        raise errors[0]


def _settled(run: Run) -> list[Exception]:
    """Do what `settle_saves` does, and return the failures that no training goes on after."""
    requests, run.saves.in_flight = run.saves.in_flight, []
    if not requests:
        return []
    error: Exception | None = None
    try:
        run.action(run.saves.io.wait, "[Trainer]wait_for_checkpoint")()
    except (OSError, CheckpointError) as caught:
        error = caught
    error = shared_failure(run, error)
    return [each for request in requests for each in _ended(run, request, error)]


def _ended(run: Run, request: SaveRequest, error: Exception | None) -> list[Exception]:
    """Confirm a save or report its failure; return the failure if no training goes on after it."""
    if error is None or isinstance(error, _RefusedError):
        _saved(run, request)
    else:
        _failed(run, request, error)
    return [] if error is None or isinstance(error, OSError) else [error]


def _saved(run: Run, request: SaveRequest) -> None:
    _sweep(run, request, None)
    if request.saved is not None:
        request.saved()
    if run.trainer.checkpoint_callback is not None:
        announce(run.tracking.loggers, run.trainer.checkpoint_callback)


def announce(loggers: Iterable[Any], callback: Any) -> None:
    """Let the loggers know that a checkpoint callback's file is safe on the disk."""
    for logger in loggers:
        after = getattr(logger, "after_save_checkpoint", None)
        if after is None:
            continue
        try:
            after(callback)
        except Exception as error:  # a tracker that is away stops no training
            warn(f"{type(logger).__name__}.after_save_checkpoint: it raised {type(error).__name__}: {error}")


def _failed(run: Run, request: SaveRequest, error: BaseException) -> None:
    _sweep(run, request, error)
    goes_on = "training goes on. " if isinstance(error, OSError) else ""
    warn(f"checkpoint {request.path}: not written, {goes_on}{type(error).__name__}: {error}. Older checkpoints stay.")
    if request.failed is not None:
        request.failed(error)
