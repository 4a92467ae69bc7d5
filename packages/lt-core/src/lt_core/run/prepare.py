"""Check what an entry point was given against the flags, and gather what the ranks need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lt_core.checkpoint.find import WORDS
from lt_core.checkpoint.runs import number_of_fit
from lt_core.config.flags import UNBOUNDED
from lt_core.data.sources import side_by_side
from lt_core.hooks.table import hook_problems
from lt_core.notices import PossibleUserWarning, info, warn
from lt_core.run.checks import module_problems, module_remarks, read_inputs
from lt_core.run.request import Request, process_state
from lt_core.run.select import as_written
from lt_core.state.progress import TrainerFn, TrainerStatus
from lt_core.state.stage import VALIDATE, stage_of
from lt_interface import Plan
from lt_interface.abilities import fact
from lt_interface.accelerator import ChecksPlan
from lt_interface.errors import MisconfigurationException, Problem, raise_problems
from lt_interface.paths import local_path

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["prepare"]


def prepare(
    trainer: Trainer, fn: TrainerFn, model: Any, loaders: Any, datamodule: Any, ckpt_path: Any, val_loaders: Any = None
) -> Request:
    """Check module, data and flags together, and return what the ranks need."""
    if trainer._run is not None and trainer._run.metrics.live:
        rule, got = "a trainer makes one call at a time", f"a call inside {trainer._run.fn}"
        raise MisconfigurationException(
            Problem(f"Trainer.{fn}", rule, got, "Call it afterwards, or use a Trainer of its own.")
        )
    if trainer._given:
        model, loaders, val_loaders, ckpt_path = _given_before(trainer, fn, model, loaders, val_loaders, ckpt_path)
    if model is None and trainer._run is not None:
        model = trainer._run.module
        if ckpt_path is None and trainer._own_ckpt_path is None and fn is not TrainerFn.FITTING:
            ckpt_path = _implied_best(trainer, fn)
        if loaders is None and datamodule is None:
            datamodule = trainer._run.datamodule
    given = read_inputs(model, loaders, val_loaders, datamodule)
    stage = str(fn)
    problems = module_problems(given, stage, trainer)
    if not any(p.is_type for p in problems):
        problems += hook_problems(given.module, given.datamodule, trainer.callbacks)
    plan = _plan(trainer, stage, compiled=given.model is not given.module)
    if fn is TrainerFn.FITTING and not trainer.fast_dev_run:
        problems += [problem for callback in trainer.checkpoint_callbacks for problem in callback.problems()]
    problems += _plugin_problems(trainer, plan, None if any(p.is_type for p in problems) else given.module)
    raise_problems(problems)
    for remark in module_remarks(given, stage, trainer):
        warn(remark)
    if fn is TrainerFn.FITTING and trainer._config.max_epochs is None and trainer.max_epochs == UNBOUNDED:
        warn(
            f"Trainer(max_epochs): nothing says when to stop, so {UNBOUNDED} epochs are run. "
            "Write max_epochs=N, or -1 for no limit.",
            PossibleUserWarning,
        )
    if plan.sync_batchnorm and plan.processes == 1 and fn is TrainerFn.FITTING:
        info("Trainer(sync_batchnorm=True): one process trains, so batch norm is as it is without. Write devices=N.")
    request = Request(trainer, fn, given.model, plan, given.datamodule, passes=trainer._launcher.passes)
    request.sources = {stage_of(fn).word: given.loaders}
    if fn is TrainerFn.FITTING:
        request.sources[VALIDATE.word] = given.val_loaders
    request.ckpt_path = _resolve_path(trainer, fn, ckpt_path)
    last = trainer._last_fit
    if fn is TrainerFn.FITTING and request.ckpt_path is None and last is not None and last.module is given.module:
        request.rest = last.saves.kept
    request.place = _place(trainer)
    request.ordinal = number_of_fit(request.place)
    if request.travels:
        request.process = process_state()
        # until an outcome has come back
        trainer.state.fn, trainer.state.status = fn, TrainerStatus.INTERRUPTED
    return request


def _given_before(
    trainer: Trainer, fn: TrainerFn, model: Any, loaders: Any, val_loaders: Any, ckpt_path: Any
) -> tuple[Any, ...]:
    """Return what a method was given, completed by what an old program gave the constructor."""
    given, fits = trainer._given, fn is TrainerFn.FITTING
    names = {"fit": "train_dataloader", "validate": "val_dataloaders", "test": "test_dataloaders"}
    if loaders is None:
        loaders = given.get(names.get(str(fn), ""))
    if fits and val_loaders is None:
        val_loaders = given.get("val_dataloaders")
    if fits:
        loaders = side_by_side(trainer, loaders)
    if fits and ckpt_path is None:
        ckpt_path = given.get("resume_from_checkpoint")
    return given.get("model") if model is None else model, loaders, val_loaders, ckpt_path


def _plugin_problems(trainer: Trainer, plan: Plan, module: Any) -> list[Problem]:
    """Return what strategy, precision, accelerator and launcher cannot do.

    Args:
        trainer: The trainer.
        plan: What was decided.
        module: The user's module; None where it is none.
    """
    found = [*trainer._strategy.problems(plan, module), *trainer._precision.problems(plan)]
    launcher, cluster, given = trainer._launcher, trainer._cluster, trainer._config.launcher
    if isinstance(trainer.accelerator, ChecksPlan):
        found += trainer.accelerator.problems(plan, launcher.passes == "inherited")
    problems = [as_written(trainer._config, problem) for problem in found]
    if cluster is None or not cluster.creates_processes:
        named = given is not None or trainer._strategy.default_launcher is not None
        # what nobody named is not to be blamed for what the strategy refuses already
        starts = launcher.problems(plan) if named or not problems else []
        return [*problems, *(as_written(trainer._config, problem) for problem in starts)]
    if launcher.passes != "live":
        rule = f"{cluster.name} has started the processes already, so no launcher may start more"
        problems.append(Problem(f"Trainer(launcher={launcher.name!r})", rule, fix="Leave launcher= out."))
    return problems


def _implied_best(trainer: Trainer, fn: TrainerFn) -> str | None:
    callback = trainer.checkpoint_callback
    if trainer.fast_dev_run or callback is None or not callback.best_model_path:
        return None
    warn(
        f"trainer.{fn}(): no model was given, so the last one is taken, with the weights of the best checkpoint. "
        f"To use it as it is, write trainer.{fn}(model)."
    )
    return "best"


def _resolve_path(trainer: Trainer, fn: TrainerFn, ckpt_path: Any) -> Any:
    if ckpt_path is None:
        ckpt_path = trainer._own_ckpt_path
    if ckpt_path is None and fn is TrainerFn.FITTING:
        from lt_core.callbacks import OnExceptionCheckpoint

        if any(isinstance(c, OnExceptionCheckpoint) for c in trainer.callbacks):
            return "auto"
    if ckpt_path is None or ckpt_path in WORDS:
        return ckpt_path
    return local_path(f"Trainer.{fn}(ckpt_path={ckpt_path!r})", ckpt_path)


def _place(trainer: Trainer) -> str:
    """Return where a trainer's fits save to: the first folder that was chosen for it."""
    chosen = [callback.dirpath for callback in trainer.checkpoint_callbacks if callback.folder_is_given]
    chosen += [fact(logger, "save_dir") for logger in trainer.loggers]
    return str(next(filter(None, chosen), trainer.default_root_dir))


def _plan(trainer: Trainer, stage: str, compiled: bool) -> Plan:
    config = trainer._config
    return Plan(
        stage=stage,
        accelerator=trainer._accelerator.kind,
        device_type=trainer._accelerator.device(trainer._devices[0]).type,
        strategy=trainer._strategy.name,
        launcher=trainer._launcher.name,
        devices=trainer._devices,
        num_nodes=trainer.num_nodes,
        one_process_per_node=trainer._strategy.one_process_per_node,
        accumulate=trainer.accumulate_grad_batches,
        clip_value=trainer.gradient_clip_val,
        clip_algorithm=trainer.gradient_clip_algorithm or "norm",
        precision=trainer.precision,
        seed=torch.initial_seed() & 0x7FFF_FFFF,
        sync_batchnorm=config.sync_batchnorm,
        compile=compiled,
        inference_mode=config.inference_mode,
        max_steps=trainer.max_steps,
        max_epochs=trainer.max_epochs,
        deterministic=bool(config.deterministic),
        root=str(trainer.default_root_dir),
    )
