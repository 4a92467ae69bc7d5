"""Remember what a module or data module was built with."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import is_dataclass
from reprlib import recursive_repr
from types import CodeType, FrameType
from typing import Any

from lt_core.model.typed import attributes_of, config_library, plain, unkept
from lt_core.notices import warn
from lt_interface.errors import ConfigTypeError, MisconfigurationException, Problem, nearest

__all__ = ["AttributeDict", "HyperparametersMixin", "checkpoint_entries", "merged_hparams"]

#: Keys that tools write for themselves; loggers do not get them.
PRIVATE_KEYS = frozenset({"_class_path", "_class_name", "_instantiator"})

_VALUE_TYPES = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, type(None))


class AttributeDict(dict[str, Any]):
    """Dict whose items are attributes too.

    >>> AttributeDict(lr=0.1).lr
    0.1
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            hint = nearest(name, [key for key in self if isinstance(key, str)])
            raise AttributeError(f'No hyper-parameter "{name}". {hint}'.rstrip()) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f'No hyper-parameter "{name}".') from None

    @recursive_repr()
    def __repr__(self) -> str:
        width = max((len(str(key)) for key in self), default=0) + 2
        return "\n".join(f"{f'{key}:':{width}}{self[key]}" for key in sorted(self, key=str))

    def __deepcopy__(self, memo: dict[int, Any]) -> AttributeDict:
        twin = type(self)()
        memo[id(self)] = twin
        twin.update({copy.deepcopy(key, memo): copy.deepcopy(value, memo) for key, value in self.items()})
        return twin


class HyperparametersMixin:
    """Mixin with ``save_hyperparameters`` and ``hparams``."""

    _hparams: MutableMapping[str, Any] | None = None
    _hparams_initial: MutableMapping[str, Any] | None = None
    _hparams_name: str | None = None
    _log_hyperparams: bool = False
    _warned_of_softened: bool = False

    def save_hyperparameters(
        self, *args: Any, ignore: str | Iterable[str] | None = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Remember the arguments of ``__init__``; call it there.

        Checkpoints keep them, so that ``load_from_checkpoint`` can build the object again, and
        loggers get them. Call it as often as you like: later values are added to earlier ones.
        Nothing fails for classes, functions or objects: a checkpoint keeps their ``repr``.

        Args:
            args: Nothing, for every argument of ``__init__``, of subclasses too; or names of
                some; or one object that holds the values: a dict, a ``Namespace``, a dataclass,
                or a config of OmegaConf. Only the first two look at the caller's frame for
                values.
            ignore: Names to leave out.
            frame: The frame of the ``__init__``, if a function between calls this.
            logger: Whether loggers get the values.

        Raises:
            ConfigTypeError: For a name that is no argument, or a value that holds no names.
        """
        self._log_hyperparams = logger
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        frame = frame or sys._getframe(1)
        if len(args) == 1 and not isinstance(args[0], str):
            self._set_hparams(_from_object(args[0], self), ignored, _name_of(args[0], frame, self) or "kwargs")
            return
        found = AttributeDict()
        for arguments in _init_arguments(frame, self):
            found.update(arguments)
        self._set_hparams(_only(args, found, type(self).__name__) if args else found, ignored, "kwargs")

    def _set_hparams(self, values: MutableMapping[str, Any], ignored: set[str], name: str) -> None:
        for key in ignored & {key for key in values if isinstance(key, str)}:
            del values[key]
        _warn_of_modules(values, type(self).__name__)
        if not self._hparams:
            self._hparams, self._hparams_name = values, name
        else:
            self._hparams.update(values)
            if self._hparams_name in (None, "kwargs"):
                self._hparams_name = name
        if self._hparams_initial is None:
            self._hparams_initial = _frozen(self._hparams)  # what was set by hand before is saved with the first
        else:
            self._hparams_initial.update(_frozen(values))

    @property
    def hparams(self) -> Any:
        """The saved hyper-parameters, readable and writable by key and as attributes.

        Assigning a dict, ``Namespace`` or dataclass saves its values.
        """
        if self._hparams is None:
            self._hparams = AttributeDict()
        return self._hparams

    @hparams.setter
    def hparams(self, value: Any) -> None:
        self.save_hyperparameters(value, frame=sys._getframe(1))

    @property
    def hparams_initial(self) -> Any:
        """A copy of the hyper-parameters as they were when they were saved."""
        return AttributeDict() if self._hparams_initial is None else _frozen(self._hparams_initial)

    def remove_ignored_hparams(self, ignore_list: Iterable[str]) -> None:
        """Forget some hyper-parameters.

        Args:
            ignore_list: Their names; those that were never saved are passed over.
        """
        for name in ignore_list:
            for saved in filter(None, (self._hparams, self._hparams_initial)):
                saved.pop(name, None)


def checkpoint_entries(owner: HyperparametersMixin, prefix: str = "", store: Any = None) -> dict[str, Any]:
    """Return what a checkpoint holds of an object's hyper-parameters.

    Classes, functions and objects are replaced by their ``repr``, with one warning an object.

    Args:
        owner: The module or data module.
        prefix: Put before each key: ``"datamodule_"`` for a data module.
        store: The checkpoint's format, if it keeps objects, too; what even that one refuses is replaced.
    """
    from lt_core.checkpoint.format.tree import soften

    if not owner._hparams:
        return {}
    entries: dict[str, Any] = {f"{prefix}hparams_name": owner._hparams_name}
    config = config_library()
    if config is not None and config.is_config(owner._hparams):
        values = config.to_container(owner._hparams, resolve=True)
        entries[f"{prefix}hparams_type"] = "DictConfig"
    else:
        values = dict(owner._hparams)
    refusal: Any = getattr(store, "without_refused", None if store is None else lambda each: (each, []))
    bad = {k: v for k, v in values.items() if refusal is None or refusal({k: v})[1]}
    bad = soften({k: plain(v, named=True) for k, v in bad.items()})[0]
    entries[f"{prefix}hyper_parameters"] = {k: bad.get(k, v) for k, v in values.items()}
    softened = [path[1:] for path, _ in unkept(bad)]
    if softened and not owner._warned_of_softened:
        owner._warned_of_softened = True
        warn(
            f"{type(owner).__name__}.save_hyperparameters: a checkpoint keeps only the text of {', '.join(softened)}. "
            "Give them to load_from_checkpoint by keyword."
        )
    return entries


def merged_hparams(module: HyperparametersMixin, datamodule: HyperparametersMixin | None = None) -> dict[str, Any]:
    """Return the initial hyper-parameters that loggers get, of both objects.

    Raises:
        MisconfigurationException: If both have the same name with different values.
    """
    sources = [s for s in (module, datamodule) if s is not None and s._log_hyperparams]
    merged: dict[str, Any] = {}
    clashes: list[str] = []
    for source in sources:
        values = {k: plain(v, named=False) for k, v in source.hparams_initial.items() if k not in PRIVATE_KEYS}
        both = [key for key in values if key in merged and not _same(merged[key], values[key])]
        clashes += [f"{key} ({merged[key]!r} and {values[key]!r})" for key in both]
        merged.update(values)
    if clashes:
        raise MisconfigurationException(
            f"save_hyperparameters: the module and the data module give different values to {', '.join(clashes)}. "
            "Rename one, or leave it out with save_hyperparameters(ignore=[...])."
        )
    return merged


# ---------------------------------------------------------------- where the values come from


def _init_arguments(frame: FrameType | None, obj: object) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each running ``__init__`` of ``obj``, the innermost class first: a subclass's win."""
    while frame is not None:
        code = frame.f_code
        is_init = code.co_name in {"__init__", "__post_init__"} and code.co_argcount > 0
        if is_init and frame.f_locals.get(code.co_varnames[0]) is obj:
            yield _arguments(code, frame.f_locals)
        frame = frame.f_back


def _arguments(code: CodeType, values: Mapping[str, Any]) -> dict[str, Any]:
    count = code.co_argcount + code.co_kwonlyargcount
    found = {name: values[name] for name in code.co_varnames[1:count] if name in values}
    if code.co_flags & inspect.CO_VARKEYWORDS:
        star = count + bool(code.co_flags & inspect.CO_VARARGS)
        found.update(values.get(code.co_varnames[star], {}))
    return found


def _only(names: tuple[Any, ...], found: dict[str, Any], owner: str) -> AttributeDict:
    where, rule = f"{owner}.save_hyperparameters", "every name must be an argument of __init__"
    problems = []
    for name in names:
        if not isinstance(name, str) or name not in found:
            other = "Give names, or one object that holds all values."
            fix = nearest(name, found) if isinstance(name, str) else other
            problems.append(Problem(where, rule, repr(name), fix, is_type=True))
    if problems:
        raise ConfigTypeError(problems)
    return AttributeDict({name: found[name] for name in names})


def _name_of(value: Any, frame: FrameType, obj: object) -> str | None:
    """Return which argument of ``__init__`` holds ``value``, so that loading can hand it back."""
    name = None
    for arguments in _init_arguments(frame, obj):  # the outermost class is the one that loading calls
        name = next((n for n, v in arguments.items() if _holds(v, value)), name)
    return name


def _holds(argument: Any, value: Any) -> bool:
    """Return whether ``value`` is the argument or, as ``vars(argument)`` gives it, its dict."""
    return argument is value or (isinstance(value, dict) and getattr(argument, "__dict__", None) is value)


def _from_object(value: Any, owner: object) -> MutableMapping[str, Any]:
    config = config_library()
    if config is not None and config.is_config(value) and isinstance(value, MutableMapping):
        return copy.deepcopy(value)  # the user's own must not change when values are ignored or added
    named = value if isinstance(value, Mapping) and not is_dataclass(value) else attributes_of(value)
    if named is not None:
        return AttributeDict(named)
    if isinstance(value, _VALUE_TYPES) or not hasattr(value, "__dict__") or isinstance(value, type):
        where, got = f"{type(owner).__name__}.save_hyperparameters", f"{type(value).__name__}: {value!r}"
        fix = 'Give a dict, Namespace or dataclass, or the argument\'s name: save_hyperparameters("name").'
        raise ConfigTypeError(Problem(where, "a single object must hold names and values", got, fix, is_type=True))
    return AttributeDict({k: v for k, v in vars(value).items() if not k.startswith("_")})


# ---------------------------------------------------------------- what becomes of them


def _frozen(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Copy containers, so that later changes do not reach the copy; keep all other objects.

    Args:
        value: The value; it may hold itself.
        memo: The copies made so far, by the id of what was copied.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    config = config_library()
    if config is not None and config.is_config(value):
        return copy.deepcopy(value)
    if isinstance(value, AttributeDict) or type(value) is dict:
        memo[id(value)] = twin = type(value)()
        twin.update({key: _frozen(item, memo) for key, item in value.items()})
        return twin
    if type(value) is list:
        memo[id(value)] = made = []
        made += [_frozen(item, memo) for item in value]
        return made
    if type(value) is tuple:
        return tuple(_frozen(item, memo) for item in value)
    if type(value) is set:
        return set(value)
    named = attributes_of(value)
    if named is None:
        return value
    memo[id(value)] = other = copy.copy(value)
    for name, item in named.items():
        object.__setattr__(other, name, _frozen(item, memo))
    return other


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:  # tensors and arrays have no single truth
        return repr(a) == repr(b)


def _warn_of_modules(values: Mapping[str, Any], owner: str) -> None:
    from torch.nn import Module

    names = [key for key, value in values.items() if isinstance(value, Module)]
    if names:
        warn(
            f"{owner}.save_hyperparameters: {', '.join(names)} is an nn.Module, whose weights are in the checkpoint "
            f"already. Leave it out: save_hyperparameters(ignore={names!r})."
        )
