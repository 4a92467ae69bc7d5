"""Build a module or data module from a checkpoint.

The file gives values only. Classes come from the caller: the class that is loaded, and the
annotations of its own ``__init__``. Nothing named in a file is imported or called.
"""

from __future__ import annotations

import ast
import csv
import inspect
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from itertools import takewhile
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from lt_core.data.nested import items_of
from lt_core.model.hparams import PRIVATE_KEYS, AttributeDict
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
    trusted: bool,
    given: dict[str, Any],
) -> LightningModule:
    """Build a module, then load its weights.

    Args:
        cls: The class to build.
        path: The checkpoint.
        map_location: Where to put the weights.
        hparams_file: A file of hyper-parameters to use instead of the checkpoint's, or None.
        trusted: Whether objects in the file may be made, which runs what it says.
        strict: Whether names of weights must match; None means as the module has it.
        given: Arguments that take precedence over the saved ones.

    Raises:
        CheckpointError: If the file, the arguments or the weights do not fit.
        ConfigError: If ``strict`` contradicts the module.
    """
    from lt_core.checkpoint.engine_folder import KEY
    from lt_core.checkpoint.weights import load_weights

    where = f"{cls.__name__}.load_from_checkpoint({str(path)!r})"
    checkpoint = _read(path, map_location, hparams_file, trusted, "")
    module: LightningModule = build(cls, checkpoint, "", given, where)
    if strict is None:
        strict = module.strict_loading
    elif _says_strictness(module) and strict != module.strict_loading:
        rule = "strict must be what the module's own strict_loading is"
        raise ConfigError(Problem(where, rule, f"strict={strict} and {module.strict_loading}", "Leave strict out."))
    module.configure_model()
    module.configure_sharded_model()
    module.on_load_checkpoint(checkpoint)
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


def load_datamodule(
    cls: type, path: Any, map_location: Any, hparams_file: Any, trusted: bool, given: dict[str, Any]
) -> Any:
    """Build a data module from the hyper-parameters in a checkpoint.

    Args:
        cls: The class to build.
        path: The checkpoint.
        map_location: Where to put tensors among them.
        hparams_file: A file of hyper-parameters to use instead of the checkpoint's, or None.
        trusted: Whether objects in the file may be made, which runs what it says.
        given: Arguments that take precedence over the saved ones.

    Raises:
        CheckpointError: If the file or the arguments do not fit.
    """
    where = f"{cls.__name__}.load_from_checkpoint({str(path)!r})"
    checkpoint = _read(path, map_location, hparams_file, trusted, "datamodule_")
    return build(cls, checkpoint, "datamodule_", given, where)


def _read(path: Any, map_location: Any, hparams_file: Any, trusted: bool, prefix: str) -> dict[str, Any]:
    from lt_core.checkpoint.format import reading

    checkpoint = reading.load(path, trusted=trusted, map_location=map_location)
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


def _says_strictness(module: LightningModule) -> bool:
    """Return whether the user set ``strict_loading`` on the object or its class."""
    own = takewhile(lambda c: c.__module__ != "lt_core.module", type(module).__mro__)
    return any("strict_loading" in vars(owner) for owner in (module, *own))


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
        wanted = (required | set(given)) & names
        arguments = {key: value for key, value in values.items() if key in wanted}
        if saved:
            arguments.setdefault(name, {k: v for k, v in values.items() if k not in given or k in saved})
    else:
        arguments = {key: value for key, value in values.items() if accepts_any or key in names}
    _refuse_unkept(arguments, given, where)
    hints = _hints(cls.__init__)  # type: ignore[misc]
    for key in arguments.keys() - given.keys():
        kind = checkpoint.get(f"{prefix}hparams_type") if key == name else None
        arguments[key] = _typed(hints.get(key), arguments[key], kind)
        if key == name and hints.get(key) is not dict and type(arguments[key]) is dict:
            arguments[key] = AttributeDict(arguments[key])
    lacking = sorted(required - set(arguments))
    if lacking:
        hint = ", ".join(f"{key}=..." for key in lacking)
        raise CheckpointError(
            f"{where}: every argument of {cls.__name__}.__init__ without default must be saved or given. "
            f"Got none for {', '.join(lacking)}. Give them: load_from_checkpoint(path, {hint})."
        )
    ignored = [key for key in given if key not in arguments and key not in saved]
    if ignored:
        hint = nearest(ignored[0], names)
        warn(f"{where}: {cls.__name__}.__init__ takes no {', '.join(ignored)}, so it is ignored. {hint}".rstrip())
    return cls(**arguments)


def _refuse_unkept(arguments: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Raise if an argument was a class, function or object, of which the file holds only the text."""
    lost = {k: found for k, v in arguments.items() if k not in given and (found := list(_unkept(v, k)))}
    if lost:
        listed = ", ".join(f"{path} ({text})" for found in lost.values() for path, text in found)
        call = ", ".join(f"{key}=..." for key in lost)
        raise CheckpointError(
            f"{where}: classes, functions and objects are not kept in a checkpoint. Got {listed}. "
            f"Give them: load_from_checkpoint(path, {call})."
        )


def _unkept(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and text of every value that the checkpoint holds only the ``repr`` of."""
    items = vars(value) if isinstance(value, Namespace) else items_of(value) or {}
    if set(items) == {"$repr"}:
        yield path, str(items["$repr"])
        return
    for key, item in items.items():
        yield from _unkept(item, f"{path}[{key}]" if isinstance(value, (list, tuple)) else f"{path}.{key}")


def _hints(obj: Any) -> dict[str, Any]:
    try:
        return get_type_hints(obj)
    except Exception:  # names that exist for type checkers only
        return {}


def _typed(annotation: Any, value: Any, kind: str | None = None) -> Any:
    """Give saved names and values the type that the class's own annotation asks for."""
    if kind == "DictConfig":
        from omegaconf import OmegaConf  # type: ignore[import-not-found, unused-ignore]

        return OmegaConf.create(value)
    if not isinstance(value, (dict, Namespace)) or (isinstance(value, dict) and set(value) == {"$repr"}):
        return value
    items = vars(value) if isinstance(value, Namespace) else value
    for wanted in get_args(annotation) or (annotation,):  # X | None counts as X
        if wanted is Namespace:
            return Namespace(**items)
        if isinstance(wanted, type) and is_dataclass(wanted):
            hints = _hints(wanted)
            known = {f.name for f in fields(wanted) if f.init}
            return wanted(**{key: _typed(hints.get(key), item) for key, item in items.items() if key in known})
    return value
