"""Run one call of the trainer in one rank: build, loop, and always tear down."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lt_core.checkpoint.runs import STOPPED
from lt_core.checkpoint.save import flush_saves, parts_of_ranks, settle_saves
from lt_core.loops.evaluate import evaluate
from lt_core.loops.fit import run_fit
from lt_core.loops.predict import run_predict
from lt_core.notices import warn
from lt_core.run.announce import explain
from lt_core.run.build import build_run, new_run, rebuild
from lt_core.run.ending import conclude
from lt_core.run.facts import facts_of
from lt_core.run.request import Request, restore_process
from lt_core.state.agreement import heed, report
from lt_core.state.progress import TrainerStatus
from lt_core.state.signals import lost_to_signal
from lt_core.state.stage import PREDICT
from lt_core.tracking.opening import stop_deliveries
from lt_interface import Outcome, TakesFacts, set_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from lt_core.state.run import Run

__all__ = ["main"]


def main(request: Request | bytes) -> Outcome:
    """Run a stage from first to last in this rank.

    Args:
        request: What the call was given, or its bytes where this is another process.

    Returns:
        The value that the call returns, with what the launching process needs if it is another one.
    """
    if isinstance(request, bytes):
        request = Request.from_bytes(request)
    if request.travels:
        restore_process(request.process)
    trainer = request.trainer
    run = new_run(request)
    trainer._begin(run)
    value: Any = None
    anomaly = torch.autograd.set_detect_anomaly(True) if trainer.detect_anomaly and run.fits else None
    try:
        build_run(run, request)
        if trainer._trial is not None:
            value = trainer._trial(trainer, run.module)
        elif run.fits:
            run_fit(run, rebuild)
        elif run.stage is PREDICT:
            value = run_predict(run, request.keep, request.began_alone)
        else:
            value = evaluate(run, run.stage)
        heed(run)
    except BaseException as error:
        cause = _fail(run, lost_to_signal(run, error) or error)
        if cause is not error:
            raise cause from error
        raise
    else:
        _finish(run, request.travels)
    finally:
        if anomaly is not None:
            anomaly.__exit__(None, None, None)
        _release(run)
    if request.travels:
        from lt_core.run.outcome import make_outcome

        return make_outcome(run, value)
    return Outcome(value=value)


def _finish(run: Run, travels: bool) -> None:
    """End a run that went well: last saves, devices, hooks, loggers.

    Args:
        run: The run.
        travels: Whether another process goes on with what it leaves.
    """
    trainer = run.trainer
    try:
        settle_saves(run)
        _give_back(run)
        if run.fits:
            run.hooks.fire("on_fit_end")
            run.saves.kept = parts_of_ranks(run) if travels or not run.progress.epoch_closed else {}
    except BaseException as error:
        cause = _fail(run, error, devices=False)
        if cause is not error:
            raise cause from error
        raise
    errors = run.hooks.fire_each("teardown", str(run.fn))
    if not errors:
        try:
            run.collectives.barrier("the end of the run")
        except Exception as error:
            errors.append(error)
    if errors:
        raise _fail(run, errors[0], devices=False, teardown=False) from errors[0].__cause__
    run.strategy.leave(None)
    run.action(stop_deliveries, "[Trainer]flush_loggers")(run, "success")
    trainer.state.status = TrainerStatus.FINISHED
    status = conclude(run)
    if run.fits and run.record is not None:
        run.record.end(status)
    _end_profiling(run)


def _end_profiling(run: Run) -> None:
    """Report what was measured, and let the profiler close its files."""
    profiler = run.trainer._active_profiler
    if profiler is not None:
        if isinstance(profiler, TakesFacts):
            profiler.take_facts(facts_of(run))
        profiler.describe()
        profiler.teardown(str(run.fn))


def _fail(run: Run, error: BaseException, devices: bool = True, teardown: bool = True) -> BaseException:
    """Tear down after an error: every part is given its chance; return the error to raise.

    It is the given one, unless that only follows from the failure of another rank.
    """
    trainer = run.trainer
    trainer.state.status = TrainerStatus.INTERRUPTED
    run.metrics.current.batch, run.loop.broke_in = None, run.metrics.train.scope
    error = report(run, error)
    stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
    _attempt("explaining", lambda: explain(run, error))
    if run.hooks is not None:
        _warn_of("on_exception", run.hooks.fire_each("on_exception", error))
        if run.loop.at_boundary:
            _attempt("saving", lambda: flush_saves(run))
        _attempt("saving", lambda: settle_saves(run))
        if devices:
            _attempt("release", lambda: _give_back(run, alone=run.loop.alone))
        if teardown:
            _warn_of("teardown", run.hooks.fire_each("teardown", str(run.fn)))
        _attempt("profiler", lambda: _end_profiling(run))
    _attempt("closing the loaders", run.feeds.close)
    _attempt("leaving the other ranks", lambda: run.strategy.leave(error))
    _attempt("the last line", partial(conclude, run, error))
    if run.fits and run.record is not None:
        _attempt("recording", partial(run.record.end, STOPPED))
    stop_deliveries(run, "interrupted" if stopped else "failed", timeout=10.0)
    return error


def _attempt(what: str, call: Callable[[], Any]) -> None:
    """Call a part of the clean-up; what it raises is a warning and does not hide the first error."""
    try:
        call()
    except Exception as error:
        _warn_of(what, [error])


def _warn_of(what: str, errors: list[BaseException]) -> None:
    for error in errors:
        warn(f"{what}, after an error: it raised {type(error).__name__}: {error}")


def _give_back(run: Run, alone: bool = False) -> None:
    """Make the module and the optimizers' states plain again, on the CPU.

    Args:
        run: The run.
        alone: Whether the other ranks cannot be met any more; then what lies on several of them stays there.
    """
    run.loop.fit.step = None  # with the last step's graph, so that leaving the device frees its memory
    if not (alone and run.strategy.collective_weights):
        run.strategy.release(run.module, run.optimizers)
    if run.engine is not None:
        run.engine.close()


def _release(run: Run) -> None:
    """Give back what the run took, all of it, whatever fails on the way: what is pushed last comes first."""
    with ExitStack() as rest:
        rest.callback(run.trainer._end, run)
        rest.callback(set_world, None)
        rest.callback(run.metrics.release)
        if run.signals is not None:
            rest.callback(run.signals.stop)
        if run.loop.collecting is not None:
            rest.callback(run.loop.collecting.restore)
        run.loop.fit.step = None  # the last graph
        run.feeds.close()  # the workers
