"""Find what is wrong with a module, its data and the flags before anything starts.

Nothing here touches a device, runs a hook of the user or changes an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lt_core.callback import is_default
from lt_core.hooks.declared import DataModuleHooks, ModuleHooks
from lt_core.hooks.table import HOOKS, bind, layer_hooks, overrides, signature_of
from lt_core.metrics.absent import names_validation
from lt_core.state.stage import STAGES, VALIDATE, stage_of
from lt_interface.errors import Problem, nearest

if TYPE_CHECKING:
    from lt_core.config.flags import TrainerConfig
    from lt_core.trainer import Trainer

__all__ = ["Inputs", "compiled_methods", "module_problems", "module_remarks", "read_inputs", "unwrap"]


_COLLECT = "Keep what the step made in an attribute, and use it in {0}(self)."
REMOVED = {
    "training_epoch_end": _COLLECT.format("on_train_epoch_end"),
    "validation_epoch_end": _COLLECT.format("on_validation_epoch_end"),
    "test_epoch_end": _COLLECT.format("on_test_epoch_end"),
    "predict_epoch_end": _COLLECT.format("on_predict_epoch_end"),
    "training_step_end": "Move its lines to the end of training_step.",
    "validation_step_end": "Move its lines to the end of validation_step.",
    "test_step_end": "Move its lines to the end of test_step.",
    "tbptt_split_batch": "Split the batch in training_step, with self.automatic_optimization = False.",
}
# Names that were hooks once and may be the user's own methods now.
RENAMED = {
    "on_epoch_start": "on_train_epoch_start",
    "on_epoch_end": "on_train_epoch_end",
    "on_batch_start": "on_train_batch_start",
    "on_batch_end": "on_train_batch_end",
    "on_pretrain_routine_start": "on_fit_start",
    "on_pretrain_routine_end": "on_fit_start",
    "on_before_accelerator_backend_setup": "setup",
    "on_hpc_save": "on_save_checkpoint",
    "on_hpc_load": "on_load_checkpoint",
    "configure_sharded_model": "configure_model",
    "tng_dataloader": "train_dataloader",
}
# Hooks of features that are not here, by what does the same; their names may be the user's own methods, too.
_INSTEAD = {
    "Keep what they hold in the state_dict of the module or a callback, which ranks bring back.": (
        "add_to_queue get_from_queue"
    ),
    'Write Trainer(precision="16-mixed").': "amp_scale_loss configure_apex",
    "Subclass the strategy, and pass it: Trainer(strategy=MyStrategy()).": "configure_ddp",
    "Write Trainer(sync_batchnorm=True).": "configure_sync_batchnorm",
    "Override get_metrics of a ProgressBar, and pass that as a callback.": "get_progress_bar_dict get_tqdm_dict",
    "Pass a cluster environment: Trainer(plugins=[MyEnvironment()]).": "init_ddp_connection",
    "Share the parameters in __init__ or configure_model.": "on_post_move_to_device",
    "Use the loader's hook, or that of the stage's start.": (
        "on_train_dataloader on_val_dataloader on_test_dataloader on_predict_dataloader"
    ),
    "Keep what the step made in an attribute, and use it at the epoch's end.": "training_end validation_end test_end",
    "Override transfer_batch_to_device.": "transfer_batch_to_tpu",
}
ABSENT = {name: text for text, names in _INSTEAD.items() for name in names.split()}
_FOREIGN = ("pytorch_lightning", "lightning")


@dataclass(frozen=True)
class Inputs:
    """Arguments of an entry point, each in its own place.

    Attributes:
        module: The LightningModule, out of its ``torch.compile`` wrapper.
        datamodule: The data module, wherever it was given.
        loaders: The stage's loaders, or None.
        val_loaders: For fit, the validation loaders, or None.
        model: What was given as the model: the wrapper, if there is one.
    """

    module: Any
    datamodule: Any = None
    loaders: Any = None
    val_loaders: Any = None
    model: Any = None


def read_inputs(model: Any, loaders: Any = None, val_loaders: Any = None, datamodule: Any = None) -> Inputs:
    """Return the inputs of an entry point, with a data module in the loaders' place put right."""
    if isinstance(loaders, DataModuleHooks) and datamodule is None:
        loaders, datamodule = None, loaders
    return Inputs(unwrap(model), datamodule, loaders, val_loaders, model)


def unwrap(model: Any) -> Any:
    """Return the module inside a ``torch.compile`` wrapper, or the model itself."""
    return model._orig_mod if _is_compiled(model) else model


def compiled_methods(model: Any, names: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """Return the compiled form of these methods of a ``torch.compile``d module; empty for any other."""
    if not _is_compiled(model):
        return {}
    return {
        name: model.dynamo_ctx(getattr(model._orig_mod, name)) for name in names if getattr(model._orig_mod, name, None)
    }


def _is_compiled(model: Any) -> bool:
    # Asked by name: importing torch._dynamo takes a second.
    return type(model).__module__.startswith("torch._dynamo") and isinstance(model, nn.Module)


def module_problems(given: Inputs, stage: str, config: TrainerConfig | Trainer) -> list[Problem]:
    """Return every problem of a module and its data for one entry point.

    Args:
        given: What the call of the trainer was given.
        stage: The entry point: fit, validate, test or predict.
        config: The flags; a trainer has them as well, as they are now.
    """
    stage = str(stage)
    problems = _data_problems(given, stage)
    if not isinstance(given.module, ModuleHooks):
        return [_not_a_module(given.module, stage), *problems]
    has_data = not problems
    problems += _removed_problems(given.module)
    problems += _step_problems(given, stage, config)
    if has_data:
        problems += _loader_problems(given, stage, config)
    if stage == "fit":
        problems += _fit_problems(given.module, config)
    return problems


def _comes_along(module: Any, step: str) -> bool:
    """Return whether a ready module has the step, which the user did not write."""
    return str(getattr(getattr(module, step, None), "__module__", "")).startswith("lt_core.tasks.")


def module_remarks(given: Inputs, stage: str, config: TrainerConfig | Trainer) -> list[str]:
    """Return what may be meant otherwise, one sentence each, for a module without problems.

    Takes what `module_problems` takes.
    """
    remarks = []
    if str(stage) == "fit" and config.limit_val_batches != 0:
        name = type(given.module).__name__
        has_loader, has_step = _has_data(given, "validate", given.val_loaders), _has_step(given.module, "validate")
        if has_loader and not has_step:
            remarks.append(f"{name}: there are validation loaders but no validation_step, so nothing is validated.")
        elif has_step and not has_loader and not _comes_along(given.module, "validation_step"):
            remarks.append(f"{name}: there is a validation_step but no val_dataloader, so nothing is validated.")
    for source in (given.loaders, given.val_loaders):
        if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            remarks.append(
                f"Trainer.{stage}: a dataset was given, so each of its samples is taken as a batch. "
                "Wrap it: DataLoader(dataset, batch_size=...)."
            )
    if str(stage) == "fit" and config.limit_val_batches == 0:
        remarks += [
            f"{type(one).__name__}(monitor={one.monitor!r}): limit_val_batches=0 turns validation off, so only what "
            "training logs can be monitored."
            for one in config.callbacks
            if names_validation(one.monitor)
        ]
    owners = [owner for owner in (given.module, given.datamodule, *config.callbacks) if owner is not None]
    return remarks + _shadowed_hooks(given) + [remark for owner in owners for remark in _idle_hooks(owner)]


def _shadowed_hooks(given: Inputs) -> list[str]:
    """Return a sentence for each transfer hook that both define: the data module's is called, the module's is not."""
    module, data = given.module, given.datamodule
    return [
        f"{type(module).__name__}.{name}: {type(data).__name__} defines this hook too, and only its is called. "
        "Leave one of them out."
        for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        if data is not None and overrides(data, name) and overrides(module, name)
    ]


def _not_a_module(module: Any, stage: str) -> Problem:
    """Return what the model should have been."""
    kind = module if isinstance(module, type) else type(module)
    where = f"Trainer.{stage}({kind.__name__ if module is not None else 'None'})"
    rule = "the model must be an instance of lt_core.LightningModule"
    foreign = _foreign(kind, "LightningModule")
    if module is None:
        fix = f"Write trainer.{stage}(model, ...)."
    elif isinstance(module, DataModuleHooks):
        fix = f"It is a data module: write trainer.{stage}(model, datamodule=...)."
    elif foreign:
        fix = f"It is a module of {foreign}: write `from lt_core import LightningModule` instead."
    elif isinstance(module, type) and issubclass(module, ModuleHooks):
        fix = f"Pass an instance: {kind.__name__}(...)."
    elif isinstance(module, nn.Module):
        fix = "It is a plain torch module: put it into a LightningModule with training_step and configure_optimizers."
    else:
        fix = "Subclass it: `from lt_core import LightningModule`."
    return Problem(where, rule, fix=fix, is_type=True)


def _foreign(kind: type, name: str) -> str:
    """Return the package of another LightningModule or LightningDataModule that a class derives from."""
    modules = (base.__module__ for base in kind.__mro__ if base.__name__ == name)
    return next((m for m in modules if m.split(".")[0] in _FOREIGN), "")


def _data_problems(given: Inputs, stage: str) -> list[Problem]:
    """Check what was given as data, whatever the module is."""
    data, problems = given.datamodule, []
    names = ("train_dataloaders", "val_dataloaders") if stage == "fit" else ("dataloaders", "")
    sources = ((names[0], given.loaders), (names[1], given.val_loaders))
    used = [name for name, source in sources if source is not None]
    if data is not None and used:
        rule = "loaders and a data module exclude each other"
        where = f"Trainer.{stage}({', '.join(used)}, datamodule)"
        problems.append(Problem(where, rule, fix=f"Leave out {' and '.join(used)}, or datamodule."))
    if data is not None and not isinstance(data, DataModuleHooks):
        kind = data if isinstance(data, type) else type(data)
        foreign = _foreign(kind, "LightningDataModule")
        if foreign:
            fix = f"It is one of {foreign}: write `from lt_core import LightningDataModule` instead."
        elif isinstance(data, type) and issubclass(data, DataModuleHooks):
            fix = f"Pass an instance: {kind.__name__}(...)."
        else:
            fix = f"Give loaders by trainer.{stage}(model, {names[0]}=...)."
        rule = "a data module must be an instance of lt_core.LightningDataModule"
        problems.append(Problem(f"Trainer.{stage}(datamodule={kind.__name__})", rule, fix=fix, is_type=True))
    for name, source in sources:
        if isinstance(source, (type, str, bytes, int, float)) or _foreign(type(source), "LightningDataModule"):
            shown = source.__name__ if isinstance(source, type) else type(source).__name__
            where = f"Trainer.{stage}({name}={shown})"
            fix = "Give a DataLoader, several of them in a list or dict, or any iterable of batches."
            problems.append(Problem(where, "this is no source of batches", fix=fix, is_type=True))
    return problems


def _removed_problems(module: Any) -> list[Problem]:
    """Refuse hooks that no version calls any more: they would silently never run."""
    name = type(module).__name__
    found = [
        Problem(f"{name}.{hook}", "this hook is not in this version, and would never run", fix=fix)
        for hook, fix in REMOVED.items()
        if overrides(module, hook)
    ]
    both = layer_hooks(module)
    own = [kind for kind in type(module).__mro__ if not any(is_default(vars(kind).get(hook)) for hook in both)]
    if len(both) == 2 and any(vars(kind).keys() >= set(both) for kind in own):
        rule = "this is the old name of configure_model, and both are defined"
        found.append(Problem(f"{name}.configure_sharded_model", rule, fix="Keep configure_model alone."))
    return found


def _has_step(module: Any, stage: str) -> bool:
    """Return whether the module has the step of a stage; for predict, forward will do."""
    if overrides(module, stage_of(stage).step):
        return True
    return stage == "predict" and ("forward" in vars(module) or type(module).forward is not nn.Module.forward)


def _step_problems(given: Inputs, stage: str, config: Any) -> list[Problem]:
    """Check that the stage's step is there and can be called as the loop calls it."""
    module, step = given.module, stage_of(stage).step
    name = type(module).__name__
    if not _has_step(module, stage):
        write = f"Write: def {step}({', '.join(('self', *stage_of(stage).args[:2]))})"
        write += ", or def forward(self, batch)." if stage == "predict" else "."
        near = nearest(step, _strange_names(module))
        return [
            Problem(f"{name}.{step}", f"Trainer.{stage} needs it, and it is not defined", fix=f"{near} {write}".strip())
        ]
    problems = _signature_problems(given, stage, given.loaders)
    if stage == "fit" and _has_step(module, "validate") and config.limit_val_batches != 0:
        problems += _signature_problems(given, "validate", given.val_loaders)
    return problems


def _signature_problems(given: Inputs, stage: str, loaders: Any) -> list[Problem]:
    """Check one step's parameters against the arguments of our call."""
    module, needs = given.module, stage_of(stage)
    if not overrides(module, needs.step):
        return []
    where, function = f"{type(module).__name__}.{needs.step}", getattr(module, needs.step)
    write = f"Write: def {needs.step}({', '.join(('self', *needs.args))})."
    if not callable(function):
        return [Problem(where, "a step must be a method", type(function).__name__, write, is_type=True)]
    try:
        parameters = signature_of(function).parameters
    except (TypeError, ValueError):  # a builtin or a mock: trust it
        return []
    got = f"def {needs.step}({', '.join(['self', *(str(p) for p in parameters.values())])})"
    if "optimizer_idx" in parameters:
        fix = "Set self.automatic_optimization = False and step each of self.optimizers() in training_step."
        return [Problem(where, "a step is not called once for each optimizer any more", got, fix)]
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    if bind(function, needs.args) is None or not (positional or takes_any):
        return [Problem(where, "the trainer cannot call this step with its arguments", got, write)]
    takes_index = takes_any or len(positional) > 2 or "dataloader_idx" in parameters
    if _several(loaders) and len(needs.args) == 3 and not takes_index:
        return [Problem(where, "with several loaders a step must take dataloader_idx", got, write)]
    return []


def _several(loaders: Any) -> bool:
    """Return whether this is plainly a collection of several loaders, not one of batches."""
    leaves = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
    return isinstance(leaves, (list, tuple)) and len(leaves) > 1 and all(isinstance(x, DataLoader) for x in leaves)


def _has_data(given: Inputs, stage: str, loaders: Any) -> bool:
    """Return whether an argument or a hook of the data module or the module gives loaders."""
    hook = stage_of(stage).loader
    if loaders is not None or overrides(given.module, hook):
        return True
    return given.datamodule is not None and overrides(given.datamodule, hook)


def _loader_problems(given: Inputs, stage: str, config: Any) -> list[Problem]:
    """Check that the stage has data, and that its hooks can be called."""
    needs = stage_of(stage)
    if getattr(config, needs.limit) == 0:
        return []
    if not _has_data(given, stage, given.loaders):
        argument = "train_dataloaders" if stage == "fit" else "dataloaders"
        fix = (
            f"Write trainer.{stage}(model, {argument}=...), give a datamodule with {needs.loader}, "
            f"or define {needs.loader}(self) in the module."
        )
        owner = given.datamodule if given.datamodule is not None else given.module
        near = nearest(needs.loader, _strange_names(owner))
        return [Problem(f"Trainer.{stage}", f"there is no {needs.loader}", fix=f"{near} {fix}".strip())]
    problems = []
    used = [(needs.loader, given.loaders)]
    if stage == "fit":
        used.append((VALIDATE.loader, given.val_loaders))
    for hook, loaders in used:
        for owner in (given.datamodule, given.module):
            if loaders is None and owner is not None and overrides(owner, hook):
                problems += _argless(owner, hook)
                break
    return problems


def _argless(owner: Any, name: str) -> list[Problem]:
    """Check that a method can be called without arguments."""
    function = getattr(owner, name)
    if callable(function) and bind(function, ()) is not None:
        return []
    where = f"{type(owner).__name__}.{name}"
    return [Problem(where, "the trainer calls this without arguments", fix=f"Write: def {name}(self).")]


def _fit_problems(module: Any, config: Any) -> list[Problem]:
    """Check what only training needs."""
    name = type(module).__name__
    problems = []
    if not overrides(module, "configure_optimizers"):
        near = nearest("configure_optimizers", _strange_names(module))
        fix = f"{near} Write: def configure_optimizers(self): return torch.optim.Adam(self.parameters()).".strip()
        rule = "Trainer.fit needs it, and it is not defined"
        problems.append(Problem(f"{name}.configure_optimizers", rule, fix=fix))
    else:
        problems += _argless(module, "configure_optimizers")
    if module.automatic_optimization:
        return problems
    rule = f"{name} optimizes by hand (automatic_optimization is False), so this flag has no effect"
    if config.accumulate_grad_batches != 1:
        many = config.accumulate_grad_batches
        fix = f"Step the optimizer every {many} batches in training_step."
        problems.append(Problem(f"Trainer(accumulate_grad_batches={many})", rule, fix=fix))
    if (config.gradient_clip_val or 0) > 0:
        value = config.gradient_clip_val
        fix = f"Call self.clip_gradients(optimizer, gradient_clip_val={value}) in training_step."
        problems.append(Problem(f"Trainer(gradient_clip_val={value})", rule, fix=fix))
    return problems


def _strange_names(obj: Any) -> list[str]:
    """Return the methods of the user's own classes whose names mean nothing to the trainer."""
    own = [c for c in type(obj).__mro__ if c.__module__.split(".")[0] not in {"lt_core", "torch", "builtins"}]
    names = {name for c in own for name, value in vars(c).items() if callable(value) and name[0] != "_"}
    inherited = {name for base in type(obj).__mro__ if base not in own for name in vars(base)}
    known = {*inherited, *dir(ModuleHooks), *dir(DataModuleHooks), *HOOKS, *REMOVED, *(s.step for s in STAGES)}
    return sorted(names - known)


def _idle_hooks(module: Any) -> list[str]:
    """Name methods of a module, a data module or a callback that look like hooks and never run."""
    remarks, name = [], type(module).__name__
    for own in _strange_names(module):
        if own in RENAMED:
            remarks.append(f"{name}.{own}: the trainer never calls this; the hook is {RENAMED[own]} today.")
        elif own in ABSENT:
            remarks.append(f"{name}.{own}: this hook is not in this version, and never runs. {ABSENT[own]}")
        elif own.startswith("on_") and (near := get_close_matches(own, HOOKS, n=1, cutoff=0.8)):
            remarks.append(f'{name}.{own}: the trainer never calls this. Did you mean "{near[0]}"?')
    return remarks
