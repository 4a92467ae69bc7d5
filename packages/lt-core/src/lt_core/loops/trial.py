"""Run some steps beside the run, and put everything back: what finds a learning rate or a batch size is made of it.

A trial has loops' state, counters, metrics, hooks and data of its own, and takes module, optimizers and engine of the
run. So what the run knows is never touched, and what both hold is kept before and restored after, an error or a signal
included: weights, gradients, optimizers, all attributes of module and data module, random states, those of samplers and
datasets too. Nothing is validated, logged or saved; of the hooks those of the module and data module alone are
called, up to the last batch's, beside callbacks that change batches.

With several ranks a trial that may run out of memory on one of them exchanges nothing inside a step: behind each step
the ranks agree on whether it went well everywhere.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lt_core.data.leaf import is_stateful, state_of
from lt_core.data.sources import feed_of
from lt_core.data.stream import find_generators, samplers_in
from lt_core.hooks.table import method_of, overrides
from lt_core.loops.batch import SKIPPED, begin_evaluation, build_batch
from lt_core.loops.evaluate import evaluation_modes
from lt_core.loops.step import build_step
from lt_core.metrics import objects
from lt_core.state import rng
from lt_core.state.agreement import anywhere, heed
from lt_core.state.kept import Kept
from lt_core.state.stage import TRAIN, VALIDATE, Stage
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.callback import Callback
    from lt_core.data.feed import Feed
    from lt_core.state.run import Run
    from lt_core.trainer import Trainer

__all__ = ["exchange_loaders", "fits_in_memory", "given_loaders", "loaders_in", "trial", "try_training"]

# What memory that is exhausted is called, by CUDA and its libraries, MPS, the CPU, and torch where a worker was killed.
_MESSAGES = (
    "out of memory",
    "cudnn_status_not_supported",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "is killed by signal: killed",
)
_END: Any = object()


class _FullError(Exception):
    """Memory that was exhausted on some rank."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, says that a device's or this process's memory is exhausted.

    Args:
        error: The error.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("shape"))
        (True, False)
    """
    while error is not None:
        if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError | _FullError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MESSAGES):
            return True
        error = error.__cause__
    return False


@contextmanager
def trial(trainer: Trainer, callbacks: Sequence[Callback] = (), given: Any = None) -> Iterator[Run]:
    """Yield a run of a trial beside the trainer's run; put everything back at the block's end, whatever ends it.

    Args:
        trainer: The trainer, inside a call, from ``on_fit_start`` or the start of an evaluation on.
        callbacks: Whose hooks are called, besides those of the callbacks that change batches.
        given: The loaders for the call's stage; those of the run if None.
    """
    run = trainer._run
    assert run is not None
    owners = [*run.module.modules(), run.datamodule, *run.optimizers, *run.engine.optimizers]
    owners += [config.scheduler for config in run.schedulers]
    with ExitStack() as rest:
        rest.enter_context(torch.inference_mode(False))
        rest.enter_context(torch.set_grad_enabled(run.stage is TRAIN))
        rest.enter_context(torch.autograd.set_detect_anomaly(False))  # large rates are meant to fail
        rest.enter_context(rng.isolate(trainer.accelerator, run.device))
        rest.callback(Kept(owners).restore)
        rest.enter_context(objects.untouched(run.module))
        rest.callback(run.precision.load_state_dict, run.precision.state_dict())
        for callback in run.callbacks:
            # What these do to a batch is part of the step.
            if overrides(callback, "transform_for") and (state := method_of(callback, "state_dict")()):
                rest.callback(method_of(callback, "load_state_dict"), copy.deepcopy(state))
        sources = run.feeds.given if given is None else {**run.feeds.given, run.stage.word: given}
        beside = rest.enter_context(trainer._beside(run, callbacks, sources))
        rest.callback(vars(beside.loop.fit).update, step=None)  # with the last graph
        yield beside


@contextmanager
def _untouched(feed: Feed) -> Iterator[None]:
    """Put loaders, samplers and datasets back as they are now: attributes, generators, and states of their own.

    Raises:
        ConfigError: If a loader gives its batches only once.
    """
    fix = "Give an iterable that begins anew each time, such as a DataLoader or a list."
    where, rule = feed.where, "trials need data that can be read again"
    once = [loader for loader in feed.loaders if hasattr(type(loader), "__next__")]
    if once:
        raise ConfigError([Problem(where, rule, f"an iterator ({type(each).__name__})", fix) for each in once])
    parts = [getattr(loader, name, None) for loader in feed.loaders for name in ("dataset", "sampler", "batch_sampler")]
    owners = [*feed.loaders, *parts, *samplers_in(*parts)]
    kept = Kept(owners, deep=False)
    generators = [(g, rng.generator_state(g)) for g in find_generators(*feed.loaders, *owners)]
    states = [(owner, state_of(owner)) for owner in owners if is_stateful(owner)]
    try:
        yield
    finally:
        kept.restore()
        for generator, state in generators:
            rng.set_generator_state(generator, state)
        for owner, state in states:
            owner.load_state_dict(state)


def _step_together(run: Run, step: Callable[[], Any], alone: bool) -> Any:
    """Return what a step does, after which all ranks heed a signal to any of them.

    Args:
        run: The trial's run.
        step: The step.
        alone: Whether it exchanges nothing with other ranks, so that memory may be exhausted on one of them.

    Raises:
        _FullError: On every rank, if memory was exhausted on any.
        KeyboardInterrupt: As for SystemExit, if a rank has received a signal.
    """
    full, result = False, None
    try:
        result = step()
    except Exception as error:
        if not (alone and is_out_of_memory(error)):
            raise
        full = True
    watch = run.signals
    if anywhere(run, full or (watch is not None and watch.received is not None)):
        heed(run)
        if anywhere(run, full):
            raise _FullError
    return result


def try_training(run: Run, steps: int, over: Callable[[], bool] = lambda: False, alone: bool = False) -> None:
    """Train a trial's run for some steps, taking its data again from the beginning as often as needed.

    Args:
        run: The trial's run.
        steps: How many optimizer steps.
        over: Asked after each of them whether this was the last one.
        alone: Whether each rank steps by itself, so that memory may be exhausted on one of them.

    Raises:
        ConfigError: If there is no batch to train.
    """
    with _untouched(feed_of(run, TRAIN)):
        feed = run.feed
        run.progress.epoch_closed = False
        run.hooks.fire("on_train_start")
        run.hooks.fire("on_train_epoch_start")
        one = build_batch(run, TRAIN, build_step(run, alone))

        def advance(batches: Iterator[Any], i: int) -> bool:
            """Train the next batch; return whether there was one."""
            batch = next(batches, _END)
            return batch is not _END and one(batch, i) is not SKIPPED

        done = 0
        while done < steps and not over():
            before, batches, i = done, iter(feed.epoch(run.progress.epoch)), 0
            while done < steps and not over() and _step_together(run, lambda: advance(batches, i), alone):  # noqa: B023
                run.progress.batch = i = i + 1
                done += not run.window_open(i - 1)
            run.progress.batch = 0
            if done == before and done < steps:
                got = f"{i} batches, and no optimizer step with them"
                raise ConfigError(
                    Problem(feed.where, "a trial needs at least one step in a pass", got, "Check the data.")
                )


def _try_evaluation(run: Run, steps: int) -> None:
    """Run the first batches of each loader of a trial's run through the step of its stage."""
    feed = feed_of(run, run.stage)
    with _untouched(feed), run.metrics.evaluation(), evaluation_modes(run, run.stage):
        feed, one = begin_evaluation(run, run.stage)
        batches = iter(feed.epoch(run.progress.epoch, steps))

        def advance() -> bool:
            taken = next(batches, _END)
            if taken is not _END:
                one(*taken)
            return taken is not _END

        going = True
        while anywhere(run, going):  # ranks may have other numbers of batches
            going = bool(_step_together(run, advance, alone=run.world.size > 1))


def fits_in_memory(trainer: Trainer, steps: int, given: Any = None) -> bool:
    """Return whether some steps of the running call's stage fit into memory, on all ranks.

    Args:
        trainer: The trainer.
        steps: How many.
        given: Loaders in place of those that the call was given, or None.
    """
    full = False
    try:
        with trial(trainer, given=given) as run:
            if run.stage is TRAIN:
                try_training(run, steps, alone=run.world.size > 1)
            else:
                _try_evaluation(run, steps)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        full = True
    device: Any = getattr(torch, trainer.strategy.device.type, None)
    if full or hasattr(device, "empty_cache"):
        gc.collect()
    if hasattr(device, "empty_cache"):
        device.empty_cache()
    return not full


def loaders_in(run: Run) -> tuple[list[Any], str]:
    """Return the loaders of a trial's stage, and how errors name their source."""
    feed = feed_of(run, run.stage)
    return feed.loaders, feed.where


def given_loaders(trainer: Trainer) -> Any:
    """Return the loaders that the running call was given for its stage; None where hooks make them."""
    run = trainer._run
    return None if run is None else run.feeds.given.get(run.stage.word)


def exchange_loaders(trainer: Trainer, given: Any = None) -> None:
    """Make the data of the running call anew, since its batch size is another one.

    Args:
        trainer: The trainer.
        given: The loaders that stand for those that the call was given; None where hooks make them.
    """
    run = trainer._run
    assert run is not None
    if given is not None:
        run.feeds.given[run.stage.word] = given
    stages: tuple[Stage, ...] = (TRAIN, VALIDATE) if run.fits else (run.stage,)
    for stage in stages:
        made = run.feeds.made.pop(stage.word, None)
        if made is not None:
            made.close()
            with torch.inference_mode(False), rng.isolate(trainer.accelerator, run.device):
                feed_of(run, stage)
