"""Build a module or data module from a checkpoint.

The file gives values only. Classes come from the caller: the class that is loaded, and the
annotations of its own ``__init__``. Nothing named in a file is imported or called.
"""

from __future__ import annotations

import ast
import csv
import inspect
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from types import MethodType
from typing import TYPE_CHECKING, Any

from lt_core.hooks.table import layer_hooks, method_of
from lt_core.model.hparams import PRIVATE_KEYS, AttributeDict
from lt_core.model.typed import Scope, unkept
from lt_core.notices import warn
from lt_interface.errors import CheckpointError, ConfigError, ConfigTypeError, Problem, nearest

__all__ = ["build", "load_datamodule", "load_module", "not_on_instances", "read_hparams_file"]

if TYPE_CHECKING:
    from lt_core.module import LightningModule

    not_on_instances = classmethod
else:

    class not_on_instances:  # noqa: N801 - a decorator
        """Class method that refuses to be called on an instance, which it would not change."""

        def __init__(self, function):
            self._function = function
            self.__doc__ = function.__doc__

        def __get__(self, instance, owner):
            bound = MethodType(self._function, owner)
            if instance is None:
                return bound

            @wraps(bound)
            def refuse(*args, **kwargs):
                where = f"{owner.__name__}.{self._function.__name__}"
                rule = "it builds a new object, so it must be called on the class"
                got, fix = f"an instance of {owner.__name__}", f"Write: model = {where}(...)"
                raise ConfigTypeError(Problem(where, rule, got, fix, is_type=True))

            return refuse


def load_module(
    cls: type[LightningModule],
    path: Any,
    map_location: Any,
    hparams_file: Any,
    strict: bool | None,
    given: dict[str, Any],
) -> LightningModule:
    """Build a module, then load its weights.

    Args:
        cls: The class to build.
        path: The checkpoint, or a binary file that is open for reading.
        map_location: Where to put the weights.
        hparams_file: A file of hyper-parameters to use instead of the checkpoint's, or None.
        strict: Whether names of weights must match; None means as the module has it.
        given: Arguments that take precedence over the saved ones.

    Raises:
        CheckpointError: If the file, the arguments or the weights do not fit.
        ConfigError: If ``strict`` contradicts the module.
    """
    from lt_core.checkpoint.engine_folder import KEY
    from lt_core.checkpoint.weights import load_weights

    where = _where(cls, path)
    checkpoint = _read(path, map_location, hparams_file, "")
    module: LightningModule = build(cls, checkpoint, "", given, where)
    own = vars(module).get("strict_loading")  # as the instance has it: what a class says is a default
    if strict is None:
        strict = module.strict_loading is not False
    elif own is not None and strict != own:
        rule = "strict must be what the module's own strict_loading is"
        raise ConfigError(Problem(where, rule, f"strict={strict} and {own}", "Leave strict out."))
    for name in layer_hooks(module):
        getattr(module, name)()
    method_of(module, "on_load_checkpoint")(checkpoint)
    weights = checkpoint.get("state_dict") or {}
    if not weights and KEY in checkpoint:
        raise CheckpointError(
            f"{where}: the file must hold weights. Got those of an engine's own form in {checkpoint[KEY]}. Save with "
            "weights_only=True, or give the file to validate, test or predict of a trainer with that strategy."
        )
    if not weights and not strict and module.state_dict():
        warn(f"{where}: the checkpoint holds no weights, so the module keeps those it was built with.")
    load_weights(module, weights, strict, where)
    device = next((t.device for t in weights.values() if hasattr(t, "device")), module.device)
    return module if module.device == device else module.to(device)


def load_datamodule(cls: type, path: Any, map_location: Any, hparams_file: Any, given: dict[str, Any]) -> Any:
    """Build a data module from the hyper-parameters in a checkpoint.

    Args:
        cls: The class to build.
        path: The checkpoint, or a binary file that is open for reading.
        map_location: Where to put tensors among them.
        hparams_file: A file of hyper-parameters to use instead of the checkpoint's, or None.
        given: Arguments that take precedence over the saved ones.

    Raises:
        CheckpointError: If the file or the arguments do not fit.
    """
    where = _where(cls, path)
    return build(cls, _read(path, map_location, hparams_file, "datamodule_"), "datamodule_", given, where)


def _where(cls: type, path: Any) -> str:
    name = getattr(path, "name", type(path).__name__) if hasattr(path, "read") else path
    return f"{cls.__name__}.load_from_checkpoint({str(name)!r})"


def _read(path: Any, map_location: Any, hparams_file: Any, prefix: str) -> dict[str, Any]:
    from lt_core.checkpoint import load_checkpoint

    with TemporaryDirectory() if hasattr(path, "read") else nullcontext() as folder:
        if folder is not None:
            source, path = path, Path(folder, "checkpoint")
            with path.open("wb") as copy:
                copyfileobj(source, copy)
        checkpoint = dict(load_checkpoint(path, map_location=map_location))
    if hparams_file is not None:
        checkpoint[f"{prefix}hyper_parameters"] = read_hparams_file(hparams_file)
    return checkpoint


def read_hparams_file(path: Any) -> dict[str, Any]:
    """Return the hyper-parameters of a .yaml, .yml or .csv (columns key, value) file.

    Raises:
        ConfigError: If it is missing, of another kind, or holds no names.
    """
    file = Path(path)
    where = f"hparams_file={str(path)!r}"
    if file.suffix not in {".yaml", ".yml", ".csv"}:
        raise ConfigError(Problem(where, "it must be a .yaml, .yml or .csv file"))
    if not file.is_file():
        raise ConfigError(Problem(where, "there is no such file"))
    if file.suffix == ".csv":
        with file.open(newline="") as lines:
            return {row["key"]: _literal(row["value"]) for row in csv.DictReader(lines)}
    import yaml

    values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ConfigError(Problem(where, "it must map names to values", type(values).__name__))
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def build(cls: type, checkpoint: dict[str, Any], prefix: str, given: dict[str, Any], where: str) -> Any:
    """Call a class with the hyper-parameters of a checkpoint.

    Args:
        cls: The class.
        checkpoint: The familiar dict; its hyper-parameters are brought up to date with ``given``.
        prefix: Before the keys of the hyper-parameters.
        given: Arguments that take precedence over the saved ones.
        where: The call, for errors.

    Raises:
        CheckpointError: If an argument is neither saved nor given.
    """
    saved = checkpoint.get(f"{prefix}hyper_parameters") or {}
    name = checkpoint.get(f"{prefix}hparams_name")
    values = {key: value for key, value in saved.items() if key not in PRIVATE_KEYS}
    values.update(given)
    if f"{prefix}hyper_parameters" in checkpoint:
        checkpoint[f"{prefix}hyper_parameters"] = values
    parameters = inspect.signature(cls).parameters.values()
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names, required = {p.name for p in named}, {p.name for p in named if p.default is p.empty}
    if name in names:  # one argument held all values; others can be among them only if they have no default
        taken = given.keys() if accepts_any else given.keys() & names
        arguments = {key: value for key, value in values.items() if key in taken or key in required}
        if saved:
            arguments.setdefault(name, {k: v for k, v in values.items() if k not in given or k in saved})
    else:
        arguments = {key: value for key, value in values.items() if accepts_any or key in names}
    _refuse_unkept(arguments, given, where)
    kinds = {name: checkpoint.get(f"{prefix}hparams_type")}
    arguments |= _restored(cls, {k: v for k, v in arguments.items() if k not in given}, kinds, where)
    _refuse_unkept(arguments, given, where)
    lacking = sorted(required - set(arguments))
    if lacking:
        raise CheckpointError(
            f"{where}: every argument of {cls.__name__}.__init__ without default must be saved or given. "
            f"Got none for {', '.join(lacking)}. Give them: {_call(lacking)}."
        )
    ignored = [key for key in given if key not in arguments and key not in saved]
    if ignored:
        hint = nearest(ignored[0], names)
        warn(f"{where}: {cls.__name__}.__init__ takes no {', '.join(ignored)}, so it is ignored. {hint}".rstrip())
    return _called(cls, arguments)


def _restored(cls: type, arguments: dict[str, Any], kinds: dict[Any, Any], where: str) -> dict[str, Any]:
    """Give saved arguments the types that the class itself can name.

    Args:
        cls: The class.
        arguments: What the file holds.
        kinds: For the argument that held all values, None or ``"DictConfig"``.
        where: The call, for errors.

    Raises:
        CheckpointError: If a type refuses what the file holds.
    """
    scope, made, failed = Scope(cls), {}, {}
    for key, value in arguments.items():
        if kinds.get(key) == "DictConfig":
            from omegaconf import OmegaConf  # type: ignore[import-not-found, unused-ignore]

            made[key] = OmegaConf.create(value)
            continue
        try:
            made[key] = scope.restore(value, scope.hints.get(key))
        except Exception as error:  # of the user's own class
            failed[key] = f"{type(error).__name__}: {str(error).rstrip('.')}"
        else:
            if key in kinds and scope.hints.get(key) is not dict and type(made[key]) is dict:
                made[key] = AttributeDict(made[key])
    if failed:
        listed = "; ".join(f"{key} ({text})" for key, text in failed.items())
        raise CheckpointError(
            f"{where}: the types of its arguments must take what was saved. Got {listed}. Give them: {_call(failed)}."
        )
    return made


def _refuse_unkept(arguments: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Raise if an argument was a class, function or object, of which the file holds only the text."""
    lost = {k: found for k, v in arguments.items() if k not in given and (found := list(unkept(v, k)))}
    if lost:
        listed = ", ".join(f"{path} ({text})" for found in lost.values() for path, text in found)
        raise CheckpointError(
            f"{where}: classes, functions and objects are not kept in a checkpoint. Got {listed}. "
            f"Give them: {_call(lost)}."
        )


def _call(names: Iterable[str]) -> str:
    return f"load_from_checkpoint(path, {', '.join(f'{name}=...' for name in names)})"


def _called(cls: type, arguments: dict[str, Any]) -> Any:
    """Call a class with arguments by name, those that it takes by position alone in their order."""
    first: list[Any] = []
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            first.append(arguments.pop(parameter.name, parameter.default))
    return cls(*first, **arguments)
