"""Keep hyper-parameters whose types are the user's own, and give them back.

A checkpoint holds plain values: a dataclass is a Namespace, an enum's member and a named tuple are marked tuples, each
with the name of its class. On the way back that name is looked for where the class that is loaded could name it
itself: in the annotations and defaults of its ``__init__``, and of the dataclasses among these; then in the modules
that define them. Nothing is imported for a name, and none found in a module is called: a dataclass with a
``__post_init__`` is made again only if an annotation names it. The annotation alone decides where the file's name is
not found, as after a class was renamed.
"""

from __future__ import annotations

import copy
import inspect
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import ModuleType, SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from lt_interface.nested import items_of

__all__ = ["Scope", "attributes_of", "config_library", "plain", "unkept"]

_CLASS, _ENUM, _TUPLE = "$class", "$enum", "$namedtuple"
_SPACES = (Namespace, SimpleNamespace)
_Space = dict[str, Any]
_Test = Callable[[Any], bool]


def config_library() -> Any:
    """Return OmegaConf's class if the user imported that library, else None."""
    return getattr(sys.modules.get("omegaconf"), "OmegaConf", None)


def attributes_of(value: Any) -> dict[str, Any] | None:
    """Return the attributes of a namespace or dataclass; None for all else."""
    if isinstance(value, _SPACES):
        return vars(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value) if hasattr(value, f.name)}
    return None


def plain(value: Any, *, named: bool, above: tuple[int, ...] = ()) -> Any:
    """Turn dataclasses and configs, at any depth, into containers that a checkpoint and loggers can keep.

    Args:
        value: The value; one that holds itself is cut where it does.
        named: For a checkpoint: what has a class of the user's keeps its name. Else what has attributes becomes a dict.
        above: What the walk is in.
    """
    config = config_library()
    if config is not None and config.is_config(value):
        return config.to_container(value, resolve=True)
    if id(value) in above:
        return {"$repr": f"the {type(value).__name__} that holds it"}
    above = (*above, id(value))

    def inner(item: Any) -> Any:
        return plain(item, named=named, above=above)

    attributes = attributes_of(value)
    if attributes is not None:
        items = {key: inner(item) for key, item in attributes.items()}
        if not named:
            return items
        return _space(value, items if isinstance(value, _SPACES) else {**items, _CLASS: _name(value)})
    if named and isinstance(value, Enum):
        return _member(value)
    if named and isinstance(value, tuple) and hasattr(value, "_fields"):
        return (_TUPLE, _name(value), tuple(value._fields), tuple(map(inner, value)))
    return _mapped(value, inner, inner)


def _name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _member(value: Enum) -> tuple[Any, ...]:
    """Return an enum's member by its name; flags that are several members, or none, by their number."""
    stored = value.name if value.name in type(value).__members__ else value.value
    mixed = next((base(value.value) for base in (str, int, float) if isinstance(value, base)), None)
    return (_ENUM, _name(value), stored, mixed)


def _space(like: Any, items: _Space) -> Any:
    made = SimpleNamespace() if isinstance(like, SimpleNamespace) else Namespace()
    vars(made).update(items)
    return made


def _mapped(value: Any, key: Callable[[Any], Any], item: Callable[[Any], Any]) -> Any:
    """Return a container with a function applied to its keys and another to its items; all else as it is."""
    kind = type(value)
    if isinstance(value, dict) and (kind is dict or not getattr(value, "__dict__", None)):
        made: Any = copy.copy(value) if kind in (OrderedDict, defaultdict, Counter) else {}
        made.clear()
        for name, held in value.items():
            made[key(name)] = item(held)
        return made
    if kind is deque:
        return deque(map(item, value), value.maxlen)
    return kind(map(item, value)) if kind in (list, tuple, set, frozenset) else value


def unkept(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and text of every value that the checkpoint holds only the ``repr`` of."""
    items = vars(value) if isinstance(value, _SPACES) else items_of(value) or {}
    if set(items) == {"$repr"}:
        yield path, str(items["$repr"])
        return
    for key, item in items.items():
        yield from unkept(item, f"{path}[{key}]" if isinstance(value, (list, tuple)) else f"{path}.{key}")


class Scope:
    """Types that a class can name by itself: those of its arguments, and what its modules hold.

    Attributes:
        hints: The type of each annotated argument, those of base classes too.
    """

    def __init__(self, cls: type) -> None:
        self.hints: dict[str, Any] = {}
        self._known: dict[type, None] = {}
        self._spaces: list[_Space] = []
        for owner in reversed(cls.__mro__):
            if owner.__module__.partition(".")[0] not in {"builtins", "torch", "lt_core"}:
                self._spaces.append(_module(owner))
                self._learn_from(inspect.unwrap(vars(owner).get("__init__", owner)))
        for hint in self.hints.values():
            self._learn(hint)

    def _learn_from(self, function: Any) -> None:
        """Take what a function can name: annotations, its module, what it encloses and the types of its defaults."""
        self.hints |= {} if isinstance(function, type) else _hints(function)
        self._spaces.append(getattr(function, "__globals__", {}))
        for cell in getattr(function, "__closure__", None) or ():
            with suppress(ValueError):  # still empty
                self._learn(cell.cell_contents)
        defaults = getattr(function, "__defaults__", None) or ()
        for default in (*defaults, *(getattr(function, "__kwdefaults__", None) or {}).values()):
            self._learn(type(default))

    def _learn(self, annotation: Any) -> None:
        """Take the types in an annotation, and those in the annotations of the dataclasses among them."""
        if annotation is None:
            return
        for part in (get_origin(annotation), *get_args(annotation)):
            self._learn(part)
        if not isinstance(annotation, type) or get_args(annotation) or annotation in self._known:
            return
        self._known[annotation] = None
        if is_dataclass(annotation) or any(hasattr(annotation, name) for name in ("_fields", "__total__")):
            self._spaces.append(_module(annotation))
            for hint in (*_hints(annotation).values(), *type.__subclasses__(annotation)):
                self._learn(hint)

    def _find(self, name: str, fits: _Test) -> type | None:
        """Return the type that a file names: one of the module that it names, else one of an annotation, else any."""
        module, _, path = name.partition(":")
        spaces = [*self._spaces, *(vars(m) for s in self._spaces for m in s.values() if isinstance(m, ModuleType))]
        seen = [_looked_up(space, path.split(".")) for space in spaces]
        silent = [k for k in seen if not any(hasattr(k, hook) for hook in ("__post_init__", "__del__"))]
        found = [k for k in (*self._known, *silent) if isinstance(k, type) and k.__qualname__ == path and fits(k)]
        return next((k for k in found if k.__module__ == module), found[0] if found else None)

    def _pick(self, wanted: list[Any], name: str | None, fits: _Test, holds: _Test) -> Any:
        """Return the type of a value, or None.

        Args:
            wanted: The types of the annotation; one of these that holds the value comes before any other.
            name: What the file names.
            fits: Whether a type is of the right kind.
            holds: Whether such a type can take what the file has.
        """
        found = self._find(name, fits) if name else None
        asked = [kind for kind in wanted if isinstance(kind, type) and not get_args(kind) and fits(kind)]
        if found is not None and (not asked or issubclass(found, tuple(asked))):
            return found
        return next((kind for kind in (*filter(holds, asked), found, *asked) if kind is not None), None)

    def restore(self, value: Any, annotation: Any = None) -> Any:
        """Return a value as it was before `plain`, by the types that are known here.

        Args:
            value: What a checkpoint holds; where no type is known for it, it stays so, or becomes its ``repr``.
            annotation: The type that is asked for, if any.

        Raises:
            ValueError, TypeError, ...: If a type refuses what the file holds.
        """
        wanted = list(_alternatives(annotation))
        if type(value) is tuple and len(value) == 4 and value[0] == _ENUM:
            return self._restore_member(wanted, *value[1:])
        if type(value) is tuple and len(value) == 4 and value[0] == _TUPLE:
            return self._restore_tuple(wanted, *value[1:])
        if isinstance(value, _SPACES) or (isinstance(value, dict) and dict not in wanted):
            made = self._restore_attributes(wanted, value)
            if made is not None:
                return made
        if type(value) is tuple:
            return tuple(self.restore(item, _item_type(wanted, at=index)) for index, item in enumerate(value))
        key, item = _item_type(wanted, keys=True), _item_type(wanted)
        return _mapped(value, lambda k: self.restore(k, key), lambda v: self.restore(v, item))

    def _restore_member(self, wanted: list[Any], name: str, stored: Any, mixed: Any) -> Any:
        kind = self._pick(wanted, name, lambda k: issubclass(k, Enum), lambda k: stored in k.__members__)
        if kind is None:
            return _unnamed(name, f".{stored}") if mixed is None else mixed
        if not isinstance(stored, str):
            return kind(stored)
        if stored not in kind.__members__:
            raise ValueError(f"{kind.__qualname__} has no member {stored}")
        return kind[stored]

    def _restore_tuple(self, wanted: list[Any], name: str, names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
        kind = self._pick(wanted, name, _is_named_tuple, lambda k: set(names) <= set(k._fields))
        if kind is None:
            return _unnamed(name, repr(values))
        hints, items = _hints(kind), dict(kind._field_defaults)
        items |= {key: self.restore(item, hints.get(key)) for key, item in zip(names, values, strict=True)}
        lacking = [key for key in kind._fields if key not in items]
        if lacking:
            raise ValueError(f"the file lacks fields of {kind.__qualname__}: {', '.join(lacking)}")
        return tuple.__new__(kind, [items[key] for key in kind._fields])

    def _restore_attributes(self, wanted: list[Any], value: Any) -> Any:
        """Return a dataclass or namespace; None for a dict that is to stay one."""
        items = dict(value if isinstance(value, dict) else vars(value))
        name = None if isinstance(value, dict) else items.pop(_CLASS, None)
        kind = (
            None
            if "$repr" in items
            else self._pick(wanted, name, is_dataclass, lambda k: items.keys() <= {f.name for f in fields(k)})
        )
        if kind is None and isinstance(value, dict) and (Namespace not in wanted or "$repr" in items):
            return None
        hints = _hints(kind) if kind else {}
        items = {key: self.restore(item, hints.get(key)) for key, item in items.items()}
        if kind is None or next(unkept(items), None):
            return _space(value, items)
        return _made(kind, items, called=kind in self._known)


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def _unnamed(name: str, text: str) -> dict[str, str]:
    return {"$repr": f"{name.partition(':')[2]}{text}, whose class no annotation of __init__ names"}


def _made(kind: Any, items: _Space, *, called: bool) -> Any:
    """Return a dataclass with the saved fields; those that are new have their defaults."""
    own = fields(kind)
    if called:
        made = kind(**{f.name: items[f.name] for f in own if f.init and f.name in items})
    else:
        made = object.__new__(kind)
        new = {f.name: f for f in own if f.name not in items}
        items |= {name: f.default for name, f in new.items() if f.default is not MISSING}
        items |= {name: f.default_factory() for name, f in new.items() if f.default_factory is not MISSING}
    for name in (f.name for f in own if f.name in items):
        object.__setattr__(made, name, items[name])  # also what __post_init__ would change a second time
    return made


# ---------------------------------------------------------------- annotations


def _module(kind: type) -> _Space:
    return getattr(sys.modules.get(kind.__module__), "__dict__", {})


def _looked_up(space: _Space, path: list[str]) -> Any:
    found: Any = space.get(path[0])
    for name in path[1:]:
        found = getattr(found, "__dict__", {}).get(name)
    return found


def _hints(owner: Any) -> dict[str, Any]:
    """Return the annotations of a function or class that can be resolved."""
    found: dict[str, Any] = {}
    for part in reversed(owner.__mro__) if isinstance(owner, type) else (owner,):
        space = _module(part) if isinstance(part, type) else getattr(part, "__globals__", {})
        with suppress(Exception):
            for name, annotation in inspect.get_annotations(part).items():
                with suppress(Exception):
                    one = SimpleNamespace(__annotations__={name: annotation})
                    found |= get_type_hints(one, space, dict(vars(part)))
    return found


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows: of ``X | None`` both, of ``Box[int]`` also ``Box``."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _alternatives(part)
        return
    yield from (annotation, origin)


def _item_type(wanted: Iterable[Any], *, at: int = 0, keys: bool = False) -> Any:
    """Return the annotation of what a container holds: of its keys, or of its items, in a tuple of one of them."""
    for kind in wanted:
        origin, args = get_origin(kind), get_args(kind)
        if not isinstance(origin, type) or not args:
            continue
        if issubclass(origin, Mapping):
            return args[0 if keys or len(args) == 1 else 1]
        if issubclass(origin, tuple) and args[-1] is not Ellipsis:
            return args[at] if at < len(args) else None
        if issubclass(origin, Iterable):
            return args[0]
    return None
