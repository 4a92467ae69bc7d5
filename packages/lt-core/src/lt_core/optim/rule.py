"""Rules on which parameters get which optimizer and rates: written, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_core.checkpoint.format.signature import plain_name
from lt_core.optim.merge import option_key
from lt_interface.errors import Problem, nearest, raise_problems

__all__ = ["FACTORS", "FORM", "WHERE", "Place", "Rule", "form_name", "hint", "places_of", "read_rules"]

FACTORS = {"lr_factor": "lr", "weight_decay_factor": "weight_decay"}
WHERE = "lt_core.optim.ByRule"
FORM = 'Write optimizer=functools.partial(torch.optim.AdamW, lr=1e-3), or {"class_path": ..., "init_args": {...}}.'


@dataclass(frozen=True, eq=False)
class Rule:
    """Rule on which parameters are meant, by all of its conditions at once, and what they get.

    A pattern has ``*``, ``?`` and ``[...]`` as those of file names have, and alternatives between ``|``. It fits a
    parameter if it fits its whole name or that of a module that it is in: ``"encoder"`` means all of ``self.encoder``.

    Args:
        names: Pattern, or several; all names if None.
        exclude: Pattern, or several, of those that are not meant.
        dims: The number of a parameter's dimensions, or several: 2 for matrices.
        types: Type of a module that the parameter is in, at any depth, or several. By its name, too.
        optimizer: What makes an optimizer from parameters: a class, or a ``functools.partial`` of one with its options.
        lr_factor: By what the optimizer's learning rate is multiplied.
        weight_decay_factor: By what its weight decay is multiplied; 0 for none.
        options: Other options of the group, such as ``{"betas": (0.9, 0.95)}``, as they are.

    Example:
        >>> Rule("encoder", exclude="*.bias|*.norm*", lr_factor=0.1)
        Rule('encoder', exclude='*.bias|*.norm*', lr_factor=0.1)
    """

    names: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    dims: int | Sequence[int] | None = None
    types: str | type | Sequence[str | type] | None = None
    optimizer: Callable[[Iterable[Any]], Optimizer] | None = None
    lr_factor: float | None = None
    weight_decay_factor: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in (None, {})}
        shown = {key: form_name(value) if key == "optimizer" else repr(value) for key, value in given.items()}
        return f"Rule({', '.join(text if key == 'names' else f'{key}={text}' for key, text in shown.items())})"

    def means(self, parameter: Tensor, place: Place) -> bool:
        """Return whether the rule means a parameter.

        Args:
            parameter: The parameter.
            place: Its names, and the types of the modules that it is in.
        """
        if self.dims is not None and parameter.ndim not in _several(self.dims):
            return False
        if self.types is not None and not any(
            _is_a(owner, kind) for kind in _several(self.types) for owner in place.types
        ):
            return False
        return (self.names is None or place.fits(self.names)) and not (self.exclude and place.fits(self.exclude))


@dataclass(frozen=True)
class Place:
    """Where a parameter is.

    Attributes:
        names: All names that it has: shared ones have several.
        types: The types of the modules that it is in.
    """

    names: tuple[str, ...] = ()
    types: tuple[type, ...] = ()

    def fits(self, patterns: str | Sequence[str]) -> bool:
        """Return whether a pattern fits a name or that of a module around it."""
        wholes = {name[:end] for name in self.names for end in _ends(name)}
        return any(fnmatchcase(whole, each) for each in _patterns(patterns) for whole in wholes)


def read_rules(rules: Any, default: Any) -> tuple[list[Rule], list[dict[str, Any]], list[Callable[[Any], Any]]]:
    """Return the rules, what each gives, an optimizer by its number, and what makes these, the default last.

    Raises:
        ConfigError: If something is no rule, or no optimizer's form. All at once.
    """
    problems: list[Problem] = []
    read = [_rule(one, f"{WHERE}, rules[{number}]", problems) for number, one in enumerate(_several(rules))]
    wanted = [rule.optimizer for rule in read] + ([default] if default is not None else [])
    made = [None if one is None else _form(one, problems) for one in wanted]
    raise_problems(problems)
    forms = {_form_key(form): form for form in made if form is not None}
    if default is not None:  # comes last, also where a rule names the same
        forms[_form_key(made[-1])] = forms.pop(_form_key(made[-1]))
    given = []
    numbers = list(forms)
    for rule, form in zip(read, made, strict=False):
        factors = {name: float(value) for name in FACTORS if (value := getattr(rule, name)) is not None}
        choice = {} if form is None else {"optimizer": numbers.index(_form_key(form))}
        given.append({**choice, **factors, **rule.options})
    return read, given, list(forms.values())


def _rule(given: Any, where: str, problems: list[Problem]) -> Rule:
    """Return a rule, also from a mapping of what it takes; what is wrong with it is added to the problems."""
    if isinstance(given, Mapping):
        known = [f.name for f in fields(Rule)]
        unknown = [key for key in given if key not in known]
        problems += [Problem(where, f"a rule has no {key!r}", fix=nearest(key, known), is_type=True) for key in unknown]
        given = Rule(**{key: value for key, value in given.items() if key in known})
    if not isinstance(given, Rule):
        problems.append(Problem(where, "this must be a Rule", repr(given), "Write Rule(names=...).", is_type=True))
        return Rule()
    for key, (good, what) in _CHECKS.items():
        value = getattr(given, key)
        if value is not None and not good(value):
            problems.append(Problem(f"{where}.{key}", f"this must be {what}", repr(value)))
    if all(getattr(given, key) in (None, {}) for key in ("optimizer", *FACTORS, "options")):
        fix = "Give it an optimizer, lr_factor, weight_decay_factor or options."
        problems.append(Problem(where, "a rule must give something", repr(given), fix))
    return given


def _all(value: Any, good: Callable[[Any], Any]) -> bool:
    return bool(_several(value)) and all(map(good, _several(value)))


def _is_factor(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value >= 0


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "names": (lambda value: _all(value, lambda each: isinstance(each, str) and each), "a pattern, or several"),
    "exclude": (lambda value: _all(value, lambda each: isinstance(each, str) and each), "a pattern, or several"),
    "dims": (lambda value: _all(value, lambda each: type(each) is int and each >= 0), "a whole number, or several"),
    "types": (lambda value: _all(value, lambda each: isinstance(each, (str, type))), "a type or its name, or several"),
    "lr_factor": (_is_factor, "a number of at least 0"),
    "weight_decay_factor": (_is_factor, "a number of at least 0"),
    "options": (
        lambda value: isinstance(value, Mapping) and not {"params", "param_names", "optimizer", "name"} & set(value),
        "a mapping of an optimizer's options",
    ),
}


def _several(value: Any) -> tuple[Any, ...]:
    """Return one value, or several, as several."""
    return tuple(value) if isinstance(value, (list, tuple, range)) else (value,)


def _patterns(patterns: str | Sequence[str]) -> list[str]:
    return [each.strip() for pattern in _several(patterns) for each in pattern.split("|")]


def _ends(name: str) -> list[int]:
    """Return where the name of a parameter, and those of the modules that it is in, end."""
    return [at for at, letter in enumerate(name) if letter == "."] + [len(name)]


def places_of(module: nn.Module) -> dict[Tensor, Place]:
    """Return where each parameter of a module is."""
    owners = {plain_name(name): type(owner) for name, owner in module.named_modules(remove_duplicate=False)}
    found: dict[Tensor, Place] = {}
    for full, parameter in module.named_parameters(remove_duplicate=False):
        name = plain_name(full)
        types = [owners.get(name[:end]) for end in (0, *_ends(name)[:-1])]
        seen = found.get(parameter, Place())
        own = tuple(kind for kind in types if kind is not None and kind not in seen.types)
        found[parameter] = Place((*seen.names, name), (*seen.types, *own))
    return found


def _is_a(owner: type, kind: str | type) -> bool:
    """Return whether a module's type is one that a rule asks for, by the name of the class too."""
    if isinstance(kind, type):
        return issubclass(owner, kind)
    path, _, name = kind.rpartition(".")  # torch.nn.Linear is torch.nn.modules.linear.Linear
    package = path.partition(".")[0] + "." * bool(path)
    return any(base.__name__ == name and f"{base.__module__}.".startswith(package) for base in owner.__mro__)


def hint(rule: Rule, known: list[tuple[Tensor, Place]]) -> str:
    """Return what may have been meant by a rule that means nothing."""
    if rule.names is not None and not any(place.fits(rule.names) for _, place in known):
        whole = {name[:end] for _, place in known for name in place.names for end in _ends(name)}
        words = {word for name in whole for word in name.split(".")}
        hints = (nearest(pattern.strip("*."), sorted(whole | words)) for pattern in _patterns(rule.names))
        return next(filter(None, hints), f"There are {', '.join(sorted(words)[:10])}.")
    if rule.types is not None and not any(_is_a(o, k) for k in _several(rule.types) for _, p in known for o in p.types):
        types = sorted({owner.__name__ for _, place in known for owner in place.types})
        asked = (kind if isinstance(kind, str) else kind.__name__ for kind in _several(rule.types))
        return next(filter(None, (nearest(name, types) for name in asked)), f"There are {', '.join(types[:10])}.")
    dims = sorted({parameter.ndim for parameter, _ in known})
    if rule.dims is not None and not set(dims) & set(_several(rule.dims)):
        return f"There are parameters of {', '.join(map(str, dims))} dimensions."
    return "Each of its conditions is met, but not all by one parameter."


def _form(given: Any, problems: list[Problem]) -> Callable[[Any], Any]:
    """Return what makes an optimizer, also from class path and arguments; what is wrong is added to the problems."""
    if isinstance(given, Mapping) and "class_path" in given:
        module, _, name = str(given["class_path"]).rpartition(".")
        try:
            return partial(getattr(import_module(module or "torch.optim"), name), **(given.get("init_args") or {}))
        except (ImportError, AttributeError, TypeError) as error:
            problems.append(Problem(WHERE, "class_path must name an optimizer", repr(given["class_path"]), f"{error}."))
    elif not callable(given) or isinstance(given, Optimizer):
        problems.append(Problem(WHERE, "an optimizer is given by what makes it", repr(given), FORM, is_type=True))
    return torch.optim.SGD if not callable(given) else given


def _form_key(form: Any) -> Any:
    return option_key((form.func, form.args, form.keywords) if isinstance(form, partial) else form)


def form_name(form: Any) -> str:
    """Return an optimizer's form as users wrote it, but for the path of its class."""
    if isinstance(form, partial):
        return f"{form_name(form.func)}({', '.join(f'{key}={value!r}' for key, value in form.keywords.items())})"
    return getattr(form, "__name__", repr(form))
