"""Compare what ranks must have alike, before they drift apart and wait for one another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lt_core.config.flags import FLAGS
from lt_interface import ComparesRanks
from lt_interface.errors import ConfigError, Problem, raise_problems

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["check_alike", "check_drift", "check_flags"]

# Flags that may be another one on each rank, such as a folder of its machine.
_OWN = {"callbacks", "default_root_dir", "logger_delivery"}
_CHANGEABLE = [row.name for row in FLAGS.values() if (row.live or row.attribute) and row.name not in _OWN]
_FIXED = ("max_time", "precision", "use_distributed_sampler", "sync_batchnorm")


def check_alike(run: Run, where: str, what: str, count: int | float) -> None:
    """Compare a count over the ranks; each calls it at the same place.

    Args:
        run: The run.
        where: The loader's hook, for the message.
        what: What is counted.
        count: How many this rank has; inf where that is unknown.

    Raises:
        ConfigError: On every rank, if they differ.
    """
    if run.world.size == 1:
        return
    mine = torch.tensor([-1 if count == math.inf else int(count)], device=run.device)
    counts = run.collectives.all_gather(mine).flatten().tolist()
    if len(set(counts)) == 1:
        return
    got = _by_rank(["an unknown number" if n < 0 else str(n) for n in counts])
    fix = "Give each rank loaders alike: one dataset, which the trainer shares out, or limit_train_batches=."
    raise ConfigError(Problem(where, f"every rank must have equally many {what}", got, fix))


def check_flags(run: Run, **more: str) -> None:
    """Compare what decides for all ranks: flags, and callbacks that stop or save; each rank calls it at the same place.

    Other callbacks, such as one that prints, may be one rank's own.

    Args:
        run: The run.
        more: What else to compare, by name.

    Raises:
        ConfigError: On every rank, with all that differs.
    """
    if run.world.size == 1 or run.loop.alone:
        return
    trainer, config = run.trainer, run.trainer._config
    mine = {f"trainer.{name}": _shown(getattr(trainer, name)) for name in _CHANGEABLE}
    mine |= {f"Trainer({name})": _shown(getattr(config, name)) for name in _FIXED}
    deciding = [*trainer.checkpoint_callbacks, *trainer.early_stopping_callbacks]
    mine["trainer.callbacks"] = ", ".join(callback.state_key for callback in deciding) or "none that saves or stops"
    mine |= more
    every = run.collectives.gather_object(mine)
    rule, fix = "every rank must have the same", "Set it without looking at the rank."
    values = {name: [each[name] for each in every] for name in mine}
    raise_problems([Problem(name, rule, _by_rank(had), fix) for name, had in values.items() if len({*had}) > 1])


def check_drift(run: Run) -> None:
    """Compare what hooks of one rank alone may have changed while the ranks trained; each calls it at an epoch's end.

    Args:
        run: The run.

    Raises:
        ConfigError: On every rank, if flags or callbacks that decide for all differ.
        MisconfigurationException: On every rank, if what the strategy compares does.
    """
    check_flags(run)
    if run.world.size > 1 and not run.loop.alone and isinstance(run.strategy, ComparesRanks):
        run.strategy.compare_ranks(run.module, run.optimizers)


def _by_rank(values: list[str]) -> str:
    """Return each value with the ranks that have it, which stand in the order of the values."""
    ranks = {value: [str(rank) for rank, other in enumerate(values) if other == value] for value in values}
    return ", ".join(f"{value} on rank {', '.join(those)}" for value, those in ranks.items())


def _shown(value: object) -> str:
    return str(getattr(value, "name", value))
