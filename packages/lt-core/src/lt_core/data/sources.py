"""Find the user's loaders and make feeds of them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lt_core.data.combined import CombinedLoader
from lt_core.data.feed import Feed
from lt_core.data.given import is_empty
from lt_core.hooks.table import overrides
from lt_core.state.agreement import SharedEnd
from lt_core.state.signals import at_once
from lt_core.state.stage import TRAIN, VALIDATE, Stage

if TYPE_CHECKING:
    from lt_core.state.run import Run
    from lt_core.trainer import Trainer

__all__ = ["Feeds", "feed_of", "has_loader", "limit_of", "owner_of", "side_by_side"]


def limit_of(run: Run, stage: Stage) -> int | float:
    """Return the stage's limit as the trainer has it now."""
    limit: int | float = getattr(run.trainer, stage.limit)
    return limit


def owner_of(run: Run, hook: str) -> Any:
    """Return the data module, or else the module, if it overrides a hook of both; None if neither does."""
    owners = (owner for owner in (run.datamodule, run.module) if owner is not None and overrides(owner, hook))
    return next(owners, None)


def has_loader(run: Run, stage: Stage) -> bool:
    """Return whether the stage has data: an argument, or a hook of the data module or module, with a loader in it."""
    if stage.word in run.feeds.made:
        return bool(run.feeds.made[stage.word].loaders)
    given = run.feeds.given.get(stage.word)
    return owner_of(run, stage.loader) is not None if given is None else not is_empty(given)


class Feeds:
    """Feeds of one run, made of the user's loaders when they are first needed.

    Args:
        given: The loaders that the call of the trainer was given, by the stage's word.

    Attributes:
        made: The feeds by the stage's word.
        epochs: For each of them, the epoch in which it was made.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.made: dict[str, Feed] = {}
        self.epochs: dict[str, int] = {}

    def close(self) -> None:
        """End the loaders' workers, those of each feed, whatever fails at another's."""
        with ExitStack() as rest:
            for feed in self.made.values():
                rest.callback(feed.close)


def side_by_side(trainer: Trainer, loaders: Any) -> Any:
    """Return several training loaders in the mode that an old program gave the constructor, if it gave one."""
    mode = trainer._given.get("multiple_trainloader_mode")
    return CombinedLoader(loaders, mode) if mode is not None and isinstance(loaders, list | tuple | dict) else loaders


def _make(run: Run, stage: Stage) -> Feed:
    given = run.feeds.given.get(stage.word)
    where = stage.loader
    if given is None:
        owner = owner_of(run, stage.loader)
        with run.metrics.current.inside(where), at_once(run):
            given = run.hook(getattr(owner, where), owner, where)()
        where = f"{type(owner).__name__}.{where}"
        given = side_by_side(run.trainer, given) if stage is TRAIN else given
    resident = stage is TRAIN and run.trainer._config.data_on_device
    overfit = bool(run.trainer.overfit_batches) and stage in (TRAIN, VALIDATE)
    return Feed(
        given,
        stage=stage.word,
        world=run.world,
        share=run.trainer._config.use_distributed_sampler,
        seed=run.plan.seed,
        limit=limit_of(run, stage),
        sequential=overfit,
        where=where,
        collectives=run.collectives,
        ends=SharedEnd(run) if stage is TRAIN and run.world.size > 1 else None,
        shadows=run.strategy.collective_forward,
        device=run.device if resident else None,
    )


def feed_of(run: Run, stage: Stage) -> Feed:
    """Return a stage's feed: made at the first call, anew where a reload is due, and else with its newest sizes.

    A reload is due once in every so many epochs, counted from the first: where a run was resumed changes nothing.
    """
    feeds, epoch = run.feeds, run.progress.epoch
    every = run.trainer.reload_dataloaders_every_n_epochs
    made = feeds.made.get(stage.word)
    due = every and epoch // every > feeds.epochs.get(stage.word, epoch) // every and not run.sanity_checking
    if made is None or due:
        if made is not None:
            made.close()
        made = feeds.made[stage.word] = run.action(_make, f"setup_{stage.loader}")(run, stage)
        feeds.epochs[stage.word] = epoch
    elif stage is not TRAIN or run.progress.epoch_closed:
        limit = limit_of(run, stage)
        if (type(limit), limit) != (type(made.limit), made.limit):  # the integer 1 is not the fraction 1.0
            made.relimit(limit)
        else:
            made.measure()
    return made
