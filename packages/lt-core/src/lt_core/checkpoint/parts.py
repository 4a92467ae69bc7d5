"""The one table of what a checkpoint holds: saving and resuming both go through it.

Each part stands under its key of the tree and is restored at one named moment: weights before the optimizers exist,
counters before ``on_fit_start``, optimizers after it, and data and random states last, so that nothing that a hook
draws moves them. Hyper-parameters and what the user's hooks add stand beside the parts.

With several ranks, what differs by rank stands a second time under ``ranks``, a list by rank, and each takes its own.
For another number of ranks than it was saved by there is no such thing as a rank's own: the place in the data is that
of all ranks together and serves any number, ranks that were not there draw their random states from the seed, and what
an unfinished epoch logged is left out of its means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lt_core.checkpoint.standing import Standing, standing
from lt_core.checkpoint.weights import load_weights, with_plain_names
from lt_core.data.leaf import is_stateful
from lt_core.data.nested import move_to_device
from lt_core.data.sources import feed_of, has_loader
from lt_core.data.stream import batch_seed
from lt_core.hooks.table import method_of
from lt_core.metrics import objects
from lt_core.notices import info, warn
from lt_core.state import rng
from lt_core.state.stage import TRAIN, stage_of
from lt_core.version import __version__
from lt_interface import Stateful

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["ONLY_IN_RANKS", "Part", "gather", "parts", "restore", "state_of", "validation_place"]

# What a process that launched the ranks of a fit has in no other way.
ONLY_IN_RANKS = {"lt_run"} | frozenset(
    ("loops", "rng", "seed", "metrics", "metric_objects", "logged", "schedule", "handlers", "data", "precision")
)

_SKIP: Any = object()


class _Of(NamedTuple):
    """Stateful made of two functions.

    Attributes:
        state_dict: Returns the state.
        load_state_dict: Takes over a state; by default there is nothing to restore.
    """

    state_dict: Callable[[], Any]
    load_state_dict: Callable[[Any], Any] = lambda state: None


@dataclass(frozen=True)
class Part:
    """One entry of a checkpoint's tree.

    Attributes:
        key: Its name in the tree.
        stateful: Returns it, and takes it over.
        when: The moment at which it is restored: weights, progress, data module, callbacks, optimizers, training, data
            or random; empty for what only a reader wants to know.
        per_rank: Whether each rank has its own.
        in_weights: Whether a file of weights alone has it too.
        in_engine: Whether an engine that saves itself writes it, in place of the tree.
        default: What is restored where the tree lacks the key; nothing by default.
        empty: Whether it is kept where it is empty.
    """

    key: str
    stateful: Stateful
    when: str = ""
    per_rank: bool = False
    in_weights: bool = False
    in_engine: bool = False
    default: Any = _SKIP
    empty: bool = True


def parts(run: Run, stand: Standing | None = None) -> list[Part]:
    """Return the table for a run, in the order of the file.

    Args:
        run: The run.
        stand: Where its loop stands; asked for where it is not given.
    """
    stand = stand or standing(run)
    trainer, results, loop = run.trainer, run.metrics.results, run.loop
    table = [
        Part("epoch", _Of(lambda: _epoch(run)), in_weights=True),
        Part("global_step", _Of(lambda: run.progress.step), in_weights=True),
        Part("lt_core_version", _Of(lambda: __version__), in_weights=True),
        Part("lt_run", _Of(lambda: run.record.state_dict() if run.record else {}), in_weights=True, empty=False),
        Part("progress", _progress(run, stand), "progress", in_weights=True),
        Part("state_dict", _weights(run), "weights", in_weights=True, in_engine=True),
        Part("loops", _Of(lambda: _loops(run, stand), loop.evaluation.load_state_dict), "progress", in_weights=True),
        Part("optimizer_states", _optimizers(run), "optimizers", in_engine=True),
        Part("lr_schedulers", _schedulers(run), "optimizers", default=[]),
        Part("callbacks", _callbacks(run), "callbacks", default={}),
        Part("rng", _random(run, stand), "random", per_rank=True),
        Part("seed", _Of(lambda: run.plan.seed)),
        Part("metrics", _metrics(run), "training", per_rank=True),
        Part("metric_objects", _metric_objects(run, stand), "training", per_rank=True),
        Part("callback_metrics", _Of(lambda: dict(trainer.callback_metrics), results.restore_callback), "training"),
        Part("logged", _logged(run), "training", default={}),
        Part("schedule", loop.fit, "training"),
        Part("handlers", _handlers(trainer._handlers), "training"),
        Part("journal", _Of(lambda: _journal_mark(run, stand))),
        Part("data", _data(run, stand), "data", per_rank=True),
        Part("precision", _precision(run), "optimizers", empty=False),
    ]
    if run.datamodule is not None:
        own = _Of(method_of(run.datamodule, "state_dict"), method_of(run.datamodule, "load_state_dict"))
        table.append(Part(type(run.datamodule).__qualname__, own, "data module", empty=False))
    return table


def restore(run: Run, checkpoint: dict[str, Any], *moments: str) -> None:
    """Restore the parts of some moments, one moment after the other.

    Args:
        run: The run.
        checkpoint: The tree.
        moments: As `Part.when` names them.

    Raises:
        CheckpointError: If a part is of another model, optimizer or scheduler.
    """
    table = parts(run)
    by_rank = checkpoint.get("ranks") or [checkpoint]
    same_ranks = len(by_rank) == run.world.size
    run.resumed.waiting -= set(moments)
    for part in (part for moment in moments for part in table if part.when == moment):
        if part.per_rank and not same_ranks and part.when != "data":
            if part.when == "random" and part.key in checkpoint:
                _begin_anew(run, len(by_rank))
                if run.world.rank < len(by_rank):
                    part.stateful.load_state_dict(by_rank[run.world.rank][part.key])
            continue
        state = _own(part, checkpoint, run.world.rank, same_ranks)
        state = part.default if state is None else state
        if state is not _SKIP:
            part.stateful.load_state_dict(state)


def _own(part: Part, tree: dict[str, Any], rank: int, same_ranks: bool) -> Any:
    """Return what a tree holds of a part for a rank, or None."""
    return (tree["ranks"][rank] if part.per_rank and same_ranks and "ranks" in tree else tree).get(part.key)


def state_of(run: Run, part: Part) -> Any:
    """Return a part's state: as in the checkpoint that is being resumed, where it is not restored from that yet."""
    tree = run.resumed.tree
    if tree is not None and part.when in run.resumed.waiting:
        state = _own(part, tree, run.world.rank, len(tree.get("ranks") or [tree]) == run.world.size)
        if state is not None:
            return state
    return part.stateful.state_dict()


def gather(run: Run, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what every rank gives, by rank, on the CPU; all ranks call it at the same place."""
    return run.collectives.gather_object(move_to_device(own, "cpu"))


def _begin_anew(run: Run, saved_by: int) -> None:
    """Draw a new rank's random state from the seed, its number and the step, and report it."""
    rng.seed_process(batch_seed(run.plan.seed, run.progress.epoch, run.world.rank, 0, run.progress.step))
    rest = "" if run.progress.epoch_closed else ", and what its unfinished epoch has logged is left out of its means"
    info(
        f"{run.resumed.path}: it was saved by {saved_by} processes and is resumed by {run.world.size}. "
        f"Random states of further ranks are drawn from the seed{rest}."
    )


def validation_place(run: Run) -> dict[str, Any]:
    """Return all that a validation moves on: a checkpoint that is saved inside one takes what was before it."""
    return {
        "journal": _journal_place(run),
        **run.loop.evaluation.state_dict(),
        "data": _evaluation_data(run),
        "rng": rng.capture(run.trainer.accelerator, run.device),
        "metric_objects": objects.collect(run.module),
    }


def _journal_place(run: Run) -> dict[str, int]:
    journal = run.tracking.journal
    return {"offset": journal.offset, "sequence": journal.sequence}


def _evaluation_data(run: Run) -> dict[str, Any]:
    return {word: feed.state_dict() for word, feed in run.feeds.made.items() if word != TRAIN.word}


def _as_before(stand: Standing, key: str, now: Callable[[], Any]) -> Any:
    """Return what was before the running validation, where that is repeated; else what is now."""
    return stand.before[key] if stand.before is not None and key in stand.before else now()


def _epoch(run: Run) -> int:
    progress = run.progress
    return max(progress.epoch - 1, 0) if progress.epoch_closed else progress.epoch


def _progress(run: Run, stand: Standing) -> Stateful:
    trainer, progress, loop = run.trainer, run.progress, run.loop

    def take() -> dict[str, Any]:
        trainer._save_counter += 1
        run.count_samples()
        return {**stand.counters(run), "save_counter": trainer._save_counter}

    def give(state: dict[str, Any]) -> None:
        progress.load_state_dict(state)
        loop.load_state_dict(state)
        trainer._save_counter = state.get("save_counter", 0)
        if not state.get("exact", True):
            warn(
                f"{run.resumed.path}: it was saved inside a hook or after an error, not at a boundary of the loop. "
                "Training goes on, but not bit for bit as without the interruption."
            )

    return _Of(take, give)


def _weights(run: Run) -> Stateful:
    def give(state: dict[str, Any]) -> None:  # before there is an engine
        weights = run.strategy.weights(run.module)
        load_weights(
            run.module, state, run.module.strict_loading is not False, run.resumed.path or "checkpoint", weights
        )

    return _Of(lambda: with_plain_names(run.strategy.weights(run.module).state_dict()), give)


def _loops(run: Run, stand: Standing) -> dict[str, Any]:
    """Return the counters for readers of the file, and what the evaluation loops count."""
    progress = run.progress
    counters = {"epoch": progress.epoch, "batch": stand.batch, "global_step": progress.step}
    seen = _as_before(stand, "seen_batches", lambda: dict(run.loop.evaluation.seen_batches))
    return {"fit_loop": counters, "seen_batches": seen}


def _optimizers(run: Run) -> Stateful:
    def take() -> Any:
        return run.engine.optimizer_states()

    def give(states: list[dict[str, Any]]) -> None:
        run.engine.load_optimizer_states(states)

    return _Of(take, give)


def _schedulers(run: Run) -> Stateful:
    schedulers = [s.scheduler for s in run.schedulers if is_stateful(s.scheduler)]

    def give(states: list[dict[str, Any]]) -> None:
        for scheduler, state in zip(schedulers, states, strict=True):
            scheduler.load_state_dict(state)

    return _Of(lambda: [scheduler.state_dict() for scheduler in schedulers], give)


def _callbacks(run: Run) -> Stateful:
    def give(states: dict[str, Any]) -> None:
        for callback in run.callbacks:
            if callback.state_key in states:
                method_of(callback, "load_state_dict")(states[callback.state_key])

    return _Of(lambda: {c.state_key: state for c in run.callbacks if (state := method_of(c, "state_dict")())}, give)


def _metrics(run: Run) -> Stateful:
    metrics, fit = run.metrics, run.loop.fit
    return _Of(lambda: fit.kept["metrics"] if fit.kept else metrics.state_dict(), metrics.load_state_dict)


def _metric_objects(run: Run, stand: Standing) -> Stateful:
    module, fit = run.module, run.loop.fit
    kept = fit.kept["objects"] if fit.kept else None
    take = partial(_as_before, stand, "metric_objects", lambda: objects.collect(module) if kept is None else kept)
    return _Of(take, lambda states: objects.restore(module, states))


def _random(run: Run, stand: Standing) -> Stateful:
    where = run.trainer.accelerator, run.device
    return _Of(partial(_as_before, stand, "rng", lambda: rng.capture(*where)), lambda state: rng.restore(state, *where))


def _logged(run: Run) -> Stateful:
    fit, results = run.loop.fit, run.metrics.results

    def give(state: dict[str, Any]) -> None:
        fit.logged_step = state.get("step", run.progress.step)
        results.note_logged(state.get("metrics") or {})

    return _Of(lambda: {"step": fit.logged_step, "metrics": dict(results.logged)}, give)


def _handlers(handlers: list[Any]) -> Stateful:
    def give(counts: list[int]) -> None:
        for handler, count in zip(handlers, counts, strict=False):
            handler.count = count

    return _Of(lambda: [handler.count for handler in handlers], give)


def _precision(run: Run) -> Stateful:
    precision = run.precision

    def give(states: dict[str, Any]) -> None:
        if precision.name in states:
            precision.load_state_dict(states[precision.name])

    return _Of(lambda: {precision.name: state} if (state := precision.state_dict()) else {}, give)


def _journal_mark(run: Run, stand: Standing) -> dict[str, Any]:
    """Return where the journal is to go on; one without a file is carried whole."""
    journal = run.tracking.journal
    mark = {**_as_before(stand, "journal", lambda: _journal_place(run)), "file": run.tracking.journal_file}
    if journal.path is not None:
        journal.flush()  # after a crash of the machine the mark must not lie behind its end
    else:
        kept = journal.contents(mark["offset"]) or b"\n"
        mark["records"] = torch.frombuffer(bytearray(kept), dtype=torch.uint8)
    return mark


def _data(run: Run, stand: Standing) -> Stateful:
    made = run.feeds.made

    def take() -> dict[str, Any]:
        train = {TRAIN.word: stand.data or made[TRAIN.word].state_dict()} if TRAIN.word in made else {}
        return {**_as_before(stand, "data", lambda: _evaluation_data(run)), **train}

    def give(states: dict[str, Any]) -> None:
        for word, state in states.items():
            stage = stage_of(word)
            if stage is TRAIN or has_loader(run, stage):
                feed_of(run, stage).load_state_dict(state)

    return _Of(take, give)
