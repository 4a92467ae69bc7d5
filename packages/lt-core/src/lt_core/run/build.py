"""Build a run in one rank: the only file where all parts meet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lt_core.builtin.engine import PlainEngine
from lt_core.checkpoint import find, resume
from lt_core.checkpoint.engine_folder import load_folder
from lt_core.checkpoint.parts import restore
from lt_core.checkpoint.runs import RunRecord
from lt_core.checkpoint.save import Saves
from lt_core.data.leaf import is_stateful
from lt_core.data.sources import Feeds
from lt_core.hooks.table import HookTable, layer_hooks, method_of
from lt_core.loops.boundary import Cadence
from lt_core.loops.calls import manual_backward_of
from lt_core.loops.schedule import with_each_step
from lt_core.metrics.results import Metrics, Results
from lt_core.notices import info, warn
from lt_core.optim.parse import check_exchanged, parse_optimizers
from lt_core.optim.states import regroup
from lt_core.optim.wrapper import LightningOptimizer
from lt_core.run.announce import advise, announce
from lt_core.run.select import ordered
from lt_core.state import rng
from lt_core.state.agreement import anywhere, decided_by_rank_zero, heed
from lt_core.state.alike import check_flags
from lt_core.state.loop_state import LoopState
from lt_core.state.run import Resumed, Run
from lt_core.state.signals import SignalWatch
from lt_core.state.stage import stage_of
from lt_core.tracking.opening import Tracking, open_journal, open_loggers, start_deliveries
from lt_core.tracking.outbox import exclusive
from lt_interface import (
    Logger,
    Plan,
    PluginError,
    SupportsSideStream,
    TakesDevice,
    TakesModule,
    World,
    registry,
    set_world,
)

if TYPE_CHECKING:
    from lt_core.run.request import Request
    from lt_core.trainer import Trainer

__all__ = [
    "build_run",
    "merge_callbacks",
    "new_run",
    "rebuild",
    "renew_optimizers",
    "restore_optimizers",
    "returned_run",
    "run_beside",
]


def new_run(request: Request) -> Run:
    """Return the run of a call, with the parts that stand before anything is set up.

    Args:
        request: What the call was given.
    """
    trainer, module = request.trainer, request.module
    run = Run(
        trainer=trainer,
        stage=stage_of(request.fn),
        plan=request.plan,
        module=module,
        datamodule=request.datamodule,
        strategy=trainer.strategy,
        precision=trainer.precision_plugin,
        compiled=request.compiled,
        **_parts_of_a_call(trainer, module, request.sources, request.trusted),
    )
    run.saves.kept = request.rest
    last = trainer._run
    if last is not None and module is last.module:
        run.record = last.record
    if last is not None and not run.fits and module is last.module:
        run.optimizers, run.schedulers = last.optimizers, last.schedulers
    return run


def _parts_of_a_call(trainer: Trainer, module: Any, sources: dict[str, Any], trusted: bool = False) -> dict[str, Any]:
    """Return the parts that no call shares with another one, from what the trainer shows now."""
    return {
        "callbacks": trainer.callbacks,
        "progress": trainer._progress,
        "metrics": Metrics(module, Results(), trainer.barebones, trainer._active_profiler),
        "feeds": Feeds(sources),
        "tracking": Tracking(trainer.loggers),
        "saves": Saves(trainer.checkpoint_io, trusted),
        "cadence": Cadence(),
    }


def run_beside(run: Run, sources: dict[str, Any]) -> Run:
    """Return a run beside one that goes on: with module, optimizers and engine of that one, and all else of its own.

    Args:
        run: The run that goes on.
        sources: Loaders by the stage's word, as a call of the trainer is given them.
    """
    own = _parts_of_a_call(run.trainer, run.module, sources)
    loop, resumed = LoopState(several=run.loop.several), Resumed()
    beside = replace(run, **own, loop=loop, resumed=resumed, schedulers=[], record=None)
    beside.tracking.opened = True
    _connect(beside)
    beside.hooks = _hooks(beside)
    _hand_out(beside)
    return beside


def returned_run(request: Request) -> Run:
    """Return the run of a call whose ranks are gone: of it one process is left, with a plain module on its CPU."""
    run = new_run(request)
    run.metrics.release()
    run.strategy = registry.strategies.get(Plan.strategy)()
    size = request.plan.processes
    run.world = World(size=size, local_size=request.plan.local_processes, data_size=size)
    return run


def restore_optimizers(run: Run, states: list[dict[str, Any]], schedulers: list[dict[str, Any]]) -> None:
    """Make the engine of a returned run, and its optimizers with the groups and states that they had in the ranks."""
    if states:
        with rng.isolate():
            _configure_optimizers(run)
        regroup(run.module, run.optimizers, states)
    build_engine(run)
    own = [config.scheduler for config in run.schedulers if is_stateful(config.scheduler)]
    if len(own) != len(schedulers):  # a hook in the ranks put others in their place, which a file still needs
        run.saves.kept["lr_schedulers"] = schedulers
        schedulers = [scheduler.state_dict() for scheduler in own]
    if states:
        restore(run, {"optimizer_states": states, "lr_schedulers": schedulers}, "optimizers")


def build_run(run: Run, request: Request) -> None:
    """Bring a run from its plan to its first batch, in the order that the architecture page lists."""
    trainer = run.trainer
    trainer.state.stage = run.stage.running
    _set_up_devices(run)
    watch = _watch_signals(run)
    if trainer._active_profiler is not None:
        trainer._active_profiler.setup(str(run.fn), run.world.local_rank, trainer.default_root_dir)
    run.action(_build, "[Trainer]setup")(run, request, watch)


def _kind_of(ckpt_path: Any) -> str:
    """Return a word that is looked up, or that a path was given: its folder may be another one on each machine."""
    return str(ckpt_path) if ckpt_path in (None, *find.WORDS) else "a path"


def _build(run: Run, request: Request, watch: SignalWatch) -> None:
    """Build what comes after the device, all of it in the profiler's sight."""
    trainer, module = run.trainer, run.module
    merge_callbacks(run)
    check_flags(run, **{"the call of the trainer": str(run.fn), "ckpt_path": _kind_of(request.ckpt_path)})
    _prepare_data(run)
    if run.fits and getattr(trainer._cluster, "resumes", False):  # a job that was started again
        run.resumed.path = find.find_checkpoint(run, "auto", request.ordinal)
        request.ckpt_path = request.ckpt_path if run.resumed.path is None else "auto"
    run.resumed.asked = request.ckpt_path is not None
    run.resumed.path = run.resumed.path or find.find_checkpoint(run, request.ckpt_path, request.ordinal)
    header = run.saves.peek(run.resumed.path) if run.resumed.path is not None else None
    if run.fits:
        mark = (header or {}).get("run")
        folders = find.search_folders(trainer)
        run.record = decided_by_rank_zero(run, lambda: RunRecord.begun(request.ordinal, mark, folders))
        trainer._run_id = run.record.mark.id
    open_loggers(run, header, adopt=request.ckpt_path in ("last", "auto"))
    announce(run, header)
    _set_up_users(run)
    _configure_model(run)
    checkpoint = _load(run)
    if run.strategy.shard(module, run.precision, loads_weights=checkpoint is not None) is not module:
        who = f"{type(run.strategy).__name__}.shard"
        raise PluginError(
            f"{who}: it must return the module that it got. Change it in place, or wrap it in the engine."
        )
    if checkpoint is not None:
        restore(run, checkpoint, "weights")
        if run.fits:
            resume.restore_progress(run, checkpoint)
        resume.restore_callbacks(run, checkpoint)
    if run.fits:
        _configure_optimizers(run)
    build_engine(run)
    load_folder(run, checkpoint or {})
    run.hooks = _hooks(run)
    if isinstance(trainer._active_profiler, TakesModule) and not run.compiled:
        trainer._active_profiler.take_module(module)
    open_journal(run, checkpoint)
    heed(run)
    watch.raises = False
    if run.fits:
        _begin_fit(run, checkpoint)
    _show_graph(run)
    start_deliveries(run, _hparams(run))


def _set_up_devices(run: Run) -> None:
    """Join the other ranks, take the device and seed what is not seeded."""
    trainer, plan = run.trainer, run.plan
    run.world = run.strategy.setup(trainer._cluster, trainer.accelerator, plan.devices, plan)
    run.loop.several = run.world.size > 1
    set_world(run.world)
    run.module._device_mesh = run.strategy.mesh
    run.strategy.world, run.strategy.lightning_module, run.strategy.model = run.world, run.module, run.module
    run.strategy.trainer = trainer
    if isinstance(run.precision, TakesDevice):
        run.precision.take_device(run.device)
    _connect(run)
    run.plan = replace(plan, seed=run.collectives.broadcast_object(plan.seed))


def _connect(run: Run) -> None:
    run.metrics.connect(run.collectives, run.device, run.world.rank, run.world.size)


def _watch_signals(run: Run) -> SignalWatch:
    """Watch for signals: one process ends at once while it builds, several ranks after the phase they are in."""
    alone = run.world.size == 1
    run.signals = watch = SignalWatch(run.loop.look_up, heeds_at_once=alone)
    watch.raises = alone
    watch.start()
    return watch


def merge_callbacks(run: Run) -> None:
    """Add the module's own callbacks; one of the same type replaces the trainer's."""
    trainer, module = run.trainer, run.module
    with run.metrics.current.inside("configure_callbacks"):
        configure = run.hook(method_of(module, "configure_callbacks"), module, "configure_callbacks")
        returned = configure() if trainer._trial is None else None
    own = list(returned) if isinstance(returned, (list, tuple)) else [returned] if returned else []
    types = {type(c) for c in own}
    kept = [c for c in trainer.callbacks if type(c) not in types]
    trainer.callbacks = run.callbacks = ordered([*kept, *own])
    run.hooks = _hooks(run)


def _hooks(run: Run) -> HookTable:
    """Compile the hooks of everybody who has some."""
    trainer = run.trainer
    run.callbacks = trainer.callbacks
    return HookTable(
        trainer,
        run.module,
        run.datamodule,
        run.callbacks,
        trainer._handlers,
        trainer._active_profiler,
        metrics=run.metrics,
    )


def _prepare_data(run: Run) -> None:
    """Call prepare_data once a node, or once in all."""
    for owner in (run.datamodule, run.module):
        if owner is None:
            continue
        once = run.world.local_rank if getattr(owner, "prepare_data_per_node", True) else run.world.rank
        if once == 0:
            with run.metrics.current.inside("prepare_data"):
                run.hook(method_of(owner, "prepare_data"), owner, "prepare_data")()
    run.collectives.barrier("prepare_data")
    heed(run)


def _set_up_users(run: Run) -> None:
    run.collectives.barrier("pre_setup")
    run.hooks.fire("setup", str(run.fn))
    run.collectives.barrier("post_setup")
    heed(run)


def _configure_model(run: Run) -> None:
    """Call the module's configure_model under the right device and format."""
    for name in layer_hooks(run.module):
        with run.strategy.init_context(), run.precision.init_context(), run.metrics.current.inside(name):
            run.hook(getattr(run.module, name), run.module, name)()


def _load(run: Run) -> dict[str, Any] | None:
    """Read and check the checkpoint, and let the module look at it."""
    if run.resumed.path is None:
        return None
    checkpoint: dict[str, Any] = run.saves.read(run.resumed.path)
    run.resumed.counts = {key: checkpoint[key] for key in ("epoch", "global_step") if key in checkpoint}
    if checkpoint.get("seed") is not None:
        run.plan = replace(run.plan, seed=checkpoint["seed"])
    with run.metrics.current.inside("on_load_checkpoint"):
        run.hook(method_of(run.module, "on_load_checkpoint"), run.module, "on_load_checkpoint")(checkpoint)
    return checkpoint


def _configure_optimizers(run: Run) -> None:
    run.optimizers, run.schedulers = _configured(run)


def _configured(run: Run) -> tuple[list[Any], list[Any]]:
    with run.metrics.current.inside("configure_optimizers"):
        returned = run.hook(run.module.configure_optimizers, run.module, "configure_optimizers")()
    return parse_optimizers(returned, run.module)


def renew_optimizers(run: Run) -> None:
    """Put what configure_optimizers returns now in the place of the run's optimizers and schedulers."""
    run.optimizers[:], run.schedulers[:] = _configured(run)
    run.loop.look_up()


def build_engine(run: Run) -> None:
    """Build the engine over the run's optimizers; the one before undoes what it did to the module first."""
    if run.engine is not None:
        run.engine.close()
    accelerator = run.trainer.accelerator
    stream = accelerator.side_stream(run.device) if isinstance(accelerator, SupportsSideStream) else None
    default: Any = partial(PlainEngine, device=run.device, stream=stream)
    with _steps_on_instance(run.module, run.compiled):
        run.engine = run.strategy.engine(
            run.module, run.optimizers, with_each_step(run), run.precision, run.plan, default=default
        )
    run.loop.fit.engine_inputs = _engine_inputs(run)  # an engine may exchange parameters as it is built
    run.strategy.model = run.engine.model
    _hand_out(run)


def _hand_out(run: Run) -> None:
    """Make what lets users step by hand: it is put together with the engine."""
    run.loop.fit.manual_backward = manual_backward_of(run)
    run.lightning_optimizers = [LightningOptimizer(o, i, run) for i, o in enumerate(run.engine.optimizers)]


def rebuild(run: Run) -> bool:
    """Bring a run in line with what users changed since the last look; return whether anything changed.

    Hooks are compiled anew, and the engine where what it was built for was exchanged.
    """
    trainer, fit = run.trainer, run.loop.fit
    seen = _changeable(run)
    if not anywhere(run, seen != fit.seen):  # what is built anew may be compared over the ranks
        return False
    run.plan = replace(
        run.plan,
        accumulate=trainer.accumulate_grad_batches,
        clip_value=trainer.gradient_clip_val,
        clip_algorithm=trainer.gradient_clip_algorithm or "norm",
        max_steps=trainer.max_steps,
        max_epochs=trainer.max_epochs,
    )
    _renew_engine(run)
    run.hooks = _hooks(run)
    fit.seen = seen
    return True


def _renew_engine(run: Run) -> None:
    """Build the engine anew where what it was built for was exchanged, on any rank."""
    if anywhere(run, _engine_inputs(run) != run.loop.fit.engine_inputs):
        check_exchanged(run.optimizers, run.schedulers, run.module)
        build_engine(run)


def _changeable(run: Run) -> tuple[Any, ...]:
    """Return what users may change between epochs, to be compared with the last look."""
    return (
        *run.trainer._changeable(),
        run.trainer.max_steps,
        run.trainer.max_epochs,
        *_engine_inputs(run),
        tuple(map(id, run.schedulers)),
        run.module.automatic_optimization,
    )


def _engine_inputs(run: Run) -> tuple[Any, ...]:
    """Return what an engine is built for: it is built anew when any of it changes, and kept otherwise."""
    module, plan, owns = run.module, run.plan, run.engine.owns
    trainable = tuple(id(p) for p in module.parameters() if p.requires_grad)
    groups = (group for optimizer in run.optimizers for group in getattr(optimizer, "param_groups", ()))
    held = tuple(id(p) for group in groups for p in group["params"])
    own = (
        plan.accumulate if "accumulate" in owns else None,
        (plan.clip_value, plan.clip_algorithm) if "clip" in owns else None,
        tuple(map(id, with_each_step(run))) if "schedule" in owns else None,
    )
    return tuple(map(id, run.optimizers)), held, trainable, module.__dict__.get("training_step"), own


@contextmanager
def _steps_on_instance(module: Any, compiled: dict[str, Any]) -> Iterator[None]:
    """Put compiled steps on the module's instance, so that an engine wraps these, its precision around them."""
    if compiled:
        module._keep_logging_out_of_graphs()
    own = {name: module.__dict__[name] for name in compiled if name in module.__dict__}
    module.__dict__.update(compiled)
    try:
        yield
    finally:
        for name in compiled:
            module.__dict__.pop(name, None)
        module.__dict__.update(own)


def _begin_fit(run: Run, checkpoint: dict[str, Any] | None) -> None:
    """Run on_fit_start between the restored weights and the restored optimizers, and try what saving needs."""
    from lt_core.checkpoint.preflight import check_saving

    if checkpoint is not None:
        run.resumed.tree, run.resumed.waiting = checkpoint, {"optimizers", "training", "data", "random"}
    run.hooks.fire("on_fit_start")
    if run.trainer.callbacks is not run.callbacks:
        run.hooks = _hooks(run)
    if checkpoint is not None:
        _renew_engine(run)  # a hook may have wrapped the optimizers whose states these are
        resume.restore_training(run, checkpoint)
    check_saving(run)
    advise(run)
    assert run.record is not None  # of a fit
    run.record.starts_from(run.progress.step)
    if run.world.is_global_zero and not run.trainer.fast_dev_run:
        callbacks = run.trainer.checkpoint_callbacks
        run.record.keep(callback.folders()[0] for callback in callbacks if callback.folders())
    run.loop.fit.validated_at = time.monotonic()


def _hparams(run: Run) -> dict[str, Any] | None:
    """Return the hyper-parameters for the loggers: those of module and data module, where a fit begins."""
    from lt_core.model.hparams import merged_hparams

    if not run.fits or not run.trainer.enable_autolog_hparams:
        return None
    return merged_hparams(run.module, run.datamodule) or None


def _draws(logger: Any) -> bool:
    graph = getattr(logger, "log_graph", None)
    return graph is not None and getattr(graph, "__func__", None) is not Logger.log_graph


def _show_graph(run: Run) -> None:
    """Give the model to the loggers that draw its graph, before the first step."""
    if not run.fits or not run.world.is_global_zero:
        return
    drawing = [logger for logger in run.tracking.loggers if id(logger) not in run.tracking.late and _draws(logger)]
    if drawing and run.world.size > 1 and run.strategy.collective_forward:
        names = ", ".join(type(logger).__name__ for logger in drawing)
        info(f"{names}: no graph is drawn, since it takes a forward pass that every rank would have to run.")
        return
    for logger in drawing:
        try:
            with exclusive(logger):
                logger.log_graph(run.module)
        except Exception as error:  # a picture is not worth a run
            warn(f"{type(logger).__name__}.log_graph: it raised {type(error).__name__}: {error}")
