"""Check what an entry point was given against the flags, and gather what the ranks need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lt_core.hooks.table import hook_problems
from lt_core.notices import warn
from lt_core.run.checks import compiled_methods, module_problems, module_remarks, read_inputs
from lt_core.run.main import Payload
from lt_core.state.progress import TrainerFn
from lt_core.state.stage import STAGES, VALIDATE, stage_of
from lt_interface import Plan
from lt_interface.errors import raise_problems

if TYPE_CHECKING:
    from lt_core.trainer import Trainer

__all__ = ["prepare"]


def prepare(
    trainer: Trainer, fn: TrainerFn, model: Any, loaders: Any, datamodule: Any, ckpt_path: Any, val_loaders: Any = None
) -> Payload:
    """Check module, data and flags together, and return what the ranks need."""
    if model is None and trainer._run is not None:
        model = trainer._run.module
        if ckpt_path is None and trainer._own_ckpt_path is None and fn is not TrainerFn.FITTING:
            ckpt_path = _implied_best(trainer, fn)
        if loaders is None and datamodule is None:
            datamodule = trainer._run.datamodule
    given = read_inputs(model, loaders, val_loaders, datamodule)
    stage = str(fn)
    problems = module_problems(model, datamodule, stage, loaders, trainer, val_loaders=val_loaders)
    if not any(p.is_type for p in problems):
        problems += hook_problems(given.module, given.datamodule, trainer.callbacks)
    plan = _plan(trainer, stage, compiled=given.model is not given.module)
    problems += trainer._strategy.problems(plan)
    raise_problems(problems)
    for remark in module_remarks(model, datamodule, stage, loaders, trainer, val_loaders=val_loaders):
        warn(remark)
    payload = Payload(trainer, fn, given.module, plan, given.datamodule)
    payload.sources = {stage_of(fn).word: given.loaders}
    if fn is TrainerFn.FITTING:
        payload.sources[VALIDATE.word] = given.val_loaders
    payload.ckpt_path = _resolve_path(trainer, fn, ckpt_path)
    payload.compiled = compiled_methods(given.model, [s.step for s in STAGES])
    return payload


def _implied_best(trainer: Trainer, fn: TrainerFn) -> str | None:
    callback = trainer.checkpoint_callback
    if trainer.fast_dev_run or callback is None or not getattr(callback, "best_model_path", ""):
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
    return ckpt_path


def _plan(trainer: Trainer, stage: str, compiled: bool) -> Plan:
    config = trainer._config
    return Plan(
        stage=stage,
        devices=trainer._devices,
        num_nodes=config.num_nodes,
        accumulate=trainer.accumulate_grad_batches,
        clip_value=trainer.gradient_clip_val,
        clip_algorithm=trainer.gradient_clip_algorithm or "norm",
        precision=trainer.precision,
        sync_batchnorm=config.sync_batchnorm,
        compile=compiled,
        inference_mode=config.inference_mode,
        root=str(trainer.default_root_dir),
    )
