"""Run a batch as the loop of its stage does: to the device, then the step and the hooks round it.

The loop over training batches, `run_epoch`, has the same lines in its own body, which saves each step a frame; a trial
takes them from here, as evaluation and prediction do, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from lt_core.data.to_device import build_place
from lt_core.hooks.table import HOOKS, signature_of
from lt_core.loops.calls import between, bound_step
from lt_core.metrics.objects import untouched
from lt_core.metrics.store import EVAL_STEP, FORBIDDEN, TRAIN_STEP
from lt_core.state.agreement import refusal
from lt_core.state.stage import PREDICT, TRAIN, Stage
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.data.feed import Feed
    from lt_core.state.run import Run

__all__ = ["SKIPPED", "begin_evaluation", "build_batch", "lone_step", "suffixes"]

#: What stands for the output of a batch whose hooks did not all run.
SKIPPED: Any = object()


def build_batch(run: Run, stage: Stage, step: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs one batch of a stage, each call in its scope of ``self.log``.

    Args:
        run: The run.
        stage: Whose hooks are called round the step.
        step: Takes the arguments of ``stage.args``, as the function does that is returned.

    Returns:
        A function that returns what the step returned; `SKIPPED` where the module's first hook refused the batch, and
        where an evaluation's batch repeats another rank's samples: so that ranks run forward equally often, and know
        the same names, its step runs without hooks, what it logs does not count, and metric objects are as before.
    """
    start, end = f"on_{stage.hook}_batch_start", f"on_{stage.hook}_batch_end"
    hooks, store, feed = run.hooks, run.metrics.current, run.feeds.made[stage.word]
    trains, logs = stage is TRAIN, stage is not TRAIN and stage is not PREDICT
    inside = TRAIN_STEP if trains else EVAL_STEP if logs else FORBIDDEN
    before, after = HOOKS[start].scope, HOOKS[end].scope
    first, last, place = getattr(hooks, start), getattr(hooks, end), build_place(run, stage)
    refuses = refusal(run, hooks.module_train_batch_start) if trains else None

    def stepped(batch: Any, *where: int) -> Any:
        store.scope, store.hook = inside, stage.step
        output = step(batch, *where)
        if logs and isinstance(output, Mapping):
            store.add_returned(output)
        return output

    def one(batch: Any, *where: int) -> Any:
        if place is not None:
            batch = place(batch, where[1] if len(where) > 1 else 0)
        store.batch, store.size = batch, None
        if not trains and not feed.weight:
            with store.mute(), untouched(run.module):
                stepped(batch, *where)
            return SKIPPED
        store.scope, store.hook = before, start
        for f in first:
            f(batch, *where)
        if refuses is not None and refuses(batch, *where) == -1:
            return SKIPPED
        output = stepped(batch, *where)
        store.scope, store.hook = after, end
        for f in last:
            f(output, batch, *where)
        return output

    return one


def begin_evaluation(run: Run, stage: Stage) -> tuple[Feed, Callable[[Any, int, int], Any]]:
    """Run the first hooks of an evaluation or a prediction; return its feed, and what runs one batch.

    Raises:
        ConfigError: If loaders come one after another and the step takes no ``dataloader_idx``.
    """
    run.hooks.fire(f"on_{stage.hook}_start")
    run.hooks.fire(f"on_{stage.hook}_epoch_start")
    feed = run.feeds.made[stage.word]  # a hook may have exchanged it
    return feed, build_batch(run, stage, lone_step(run, stage, len(suffixes(feed)) > 1))


def suffixes(feed: Feed) -> list[str]:
    """Return each loader's metric suffix; loaders that run side by side are as one."""
    return feed.names if feed.mode == "sequential" else [""]


def lone_step(run: Run, stage: Stage, several: bool = False) -> Callable[..., Any]:
    """Return the user's step without a backward pass, the engine's calls around it.

    Args:
        run: The run.
        stage: Whose step it is.
        several: Whether its loaders come one after another.

    Returns:
        A function of the batch, its number and, but for training, that of its loader.

    Raises:
        ConfigError: If the step must take the loader's number and does not.
    """
    try:
        kinds = [p.kind for p in signature_of(run.engine.call[stage.step]).parameters.values()]
    except (TypeError, ValueError):  # a builtin or a mock: trust it
        kinds = [Parameter.VAR_POSITIONAL]
    takes_any = Parameter.VAR_POSITIONAL in kinds
    if several and not takes_any and len(kinds) - kinds.count(Parameter.VAR_KEYWORD) < 3:
        where = f"{type(run.module).__name__}.{stage.step}"
        rule = "with several loaders this step must take the loader's index"
        fix = f"Write: def {stage.step}(self, batch, batch_idx, dataloader_idx=0)"
        raise ConfigError(Problem(where, rule, fix=fix))
    args = stage.args if several or not takes_any else stage.args[:2]
    engine, bound = run.engine, bound_step(run, stage, args)
    step = between(engine.before_forward, bound, engine.boundary)
    return step if args == stage.args else lambda batch, i, loader: step(batch, i)
