"""Several optimizers as one, each parameter placed by rules.

How: the rules are read once, where the optimizer is made, and give each parameter a set of settings; parameters of
equal settings make a group. An optimizer proper is built for each kind that the rules name, and steps its groups.
`ByRule` holds all groups and all states, the same objects, so that whatever works on ``param_groups`` and ``state``
(schedulers, clipping, loss scales, checkpoints) sees one optimizer. Which part steps a group is written in the group
(``"optimizer"``), and looked up at each step: groups may be added, replaced and loaded. Why so: two optimizers would
need manual optimization, two schedules and two clippings. At the price of a few calls a step.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import signature
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_core.checkpoint.format.signature import plain_name
from lt_core.optim.merge import merge_groups
from lt_core.optim.rule import FACTORS, FORM, WHERE, Place, Rule, form_name, hint, places_of, read_rules
from lt_interface.errors import CheckpointError, ConfigError, Problem, raise_problems

__all__ = ["ByRule", "Rule"]

_SHOWN = 3


class ByRule(Optimizer):
    """Optimizer of several optimizers, among which rules distribute the parameters.

    Each setting of a parameter, its optimizer, its factors and each option, comes from the first rule that means it and
    gives that setting; the optimizer of those that no rule gives one is the default. To the trainer, to schedulers and
    to checkpoints it is one optimizer, its groups those of all: a schedule multiplies each group's own rate. ``print``
    shows which parameters go where.

    Args:
        params: The module, of whose parameters it takes those that are trained. Or parameters, with names as
            ``named_parameters()`` gives them, or groups; it takes all of these.
        rules: The rules, as `Rule` objects or as mappings of what those take.
        default: What makes the optimizer of all other parameters. If None, rules must give all of them one.

    Attributes:
        optimizers: The parts by their names, each with its groups.

    Raises:
        ConfigError: If a rule means no parameter, changes nothing or is none; if a parameter has no optimizer, or an
            optimizer does not take its parameters. All at once.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
        >>> optimizer = ByRule(
        ...     net,
        ...     [
        ...         Rule(dims=2, types=torch.nn.Linear, exclude="2", optimizer=partial(torch.optim.SGD, lr=0.02)),
        ...         Rule(dims=1, weight_decay_factor=0),
        ...     ],
        ...     default=partial(torch.optim.AdamW, lr=1e-3),
        ... )
        >>> print(optimizer)
        ByRule: 5 parameters in 3 groups
          SGD        lr 0.02   weight_decay 0     16 values in 1: 1.weight
          AdamW      lr 0.001  weight_decay 0.01  72 values in 2: 0.weight, 2.weight
          AdamW_wd0  lr 0.001  weight_decay 0     13 values in 2: 1.bias, 2.bias
    """

    #: A step never asks for the loss again: see `lt_interface.decides_by_closure`.
    computes_loss_once = True

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        rules: Sequence[Rule],
        default: Callable[[Iterable[Any]], Optimizer] | None = None,
    ) -> None:
        self._rules, self._given, self._forms = read_rules(rules, default)
        self._has_default = default is not None
        self._options = {key for given in self._given for key in given} - {"optimizer", *FACTORS}
        self._module = weakref.ref(params) if isinstance(params, nn.Module) else None
        self._places: dict[Tensor, Place] = places_of(params) if isinstance(params, nn.Module) else {}
        self.optimizers: dict[str, Optimizer] = {}
        each = [one for group in self._opened(params) for one in self._settled(group)]
        raise_problems(self._problems(self._places if self._module else [one["params"][0] for one in each]))
        groups = merge_groups(each)
        built = [self._built(number, form, groups) for number, form in enumerate(self._forms)]
        raise_problems([problem for problems in built for problem in problems])
        parts = list(self.optimizers.values())
        common = {key: value for key, value in parts[-1].defaults.items() if all(key in p.defaults for p in parts)}
        super().__init__([group for part in parts for group in part.param_groups], common)
        self._join()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parts.

        Args:
            closure: Computes the loss and its gradients; called once, before the first part steps.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._deal()
        for part in self.optimizers.values():
            if part.param_groups:
                part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, each where the rules put it: to as many groups as that makes.

        Args:
            param_group: ``"params"``, by name where the module is not known, and options for all of them: what is given
                here is taken as it is. A group of a saved state goes where it was.

        Raises:
            ConfigError: If the rules give a parameter no optimizer, or do not know its name.
        """
        label = param_group.get("optimizer")
        if label is not None:
            if label not in self.optimizers:
                raise CheckpointError(_other_parts([label], list(self.optimizers)))
            param_group["name"] = self._free_name(param_group)
            super().add_param_group(param_group)
            return
        each = [one for group in self._opened([param_group]) for one in self._settled(group)]
        new = [one["params"][0] for one in each]
        raise_problems(self._nameless(new) or self._loose(new))
        if not {id(p) for group in self.param_groups for p in group["params"]}.isdisjoint(map(id, new)):
            raise ConfigError(Problem(WHERE, "each parameter must be in one group", fix="Leave out those it holds."))
        self._deal()
        labels = list(self.optimizers)
        for group in merge_groups(each):
            group["optimizer"] = label = labels[group["optimizer"]]
            self.optimizers[label].add_param_group(group)
            raise_problems(self._finished(label, [group]))
            self.add_param_group(group)
        self._join()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state: each part loads its own.

        Args:
            state_dict: What ``state_dict`` of an optimizer with the same rules and parameters returned.

        Raises:
            CheckpointError: If the groups are others.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        saved, own = state_dict["param_groups"], self.param_groups
        found, here = ([(group.get("optimizer"), len(group["params"])) for group in groups] for groups in (saved, own))
        if found != here:
            raise CheckpointError(_other_parts(found, here))
        self._deal()
        groups: list[dict[str, Any]] = list(own)
        for label, part in self.optimizers.items():
            numbers = [number for number, group in enumerate(own) if group["optimizer"] == label]
            keys = [key for number in numbers for key in saved[number]["params"]]
            states = {key: state_dict["state"][key] for key in keys if key in state_dict["state"]}
            part.load_state_dict({"state": states, "param_groups": [saved[number] for number in numbers]})
            for number, group in zip(numbers, part.param_groups, strict=True):
                groups[number] = group
        self.param_groups, self.state = groups, defaultdict(dict)
        self._join()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; it knows the names of the parameters that were seen, but no module."""
        own = ("_rules", "_given", "_options", "_forms", "_places", "_has_default", "optimizers")
        return {**super().__getstate__(), **{key: getattr(self, key) for key in own}, "_module": None}

    def __repr__(self) -> str:
        count = sum(len(group["params"]) for group in self.param_groups)
        rows = [self._row(group) for group in self.param_groups]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        lines = ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]
        return "\n  ".join([f"ByRule: {_count(count, 'parameter')} in {_count(len(rows), 'group')}", *lines])

    def _row(self, group: dict[str, Any]) -> tuple[str, ...]:
        params = group["params"]
        names = [(self._places.get(p, Place()).names or (f"one of shape {tuple(p.shape)}",))[0] for p in params]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        rates = [f"{key} {float(group[key]):g}" if key in group else "" for key in FACTORS.values()]
        values = f"{sum(p.numel() for p in params):,} values"
        return group["name"], *rates, f"{values} in {len(names)}: {', '.join(names[:_SHOWN])}{more}"

    def _deal(self) -> None:
        """Give each part its groups, and all the states: either may have been replaced."""
        for label, part in self.optimizers.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == label]

    def _join(self) -> None:
        """Take over the parts' states, and share them."""
        for part in self.optimizers.values():
            self.state.update(part.state)
        self._deal()

    def _opened(self, params: Any) -> list[dict[str, Any]]:
        """Return new groups of bare parameters, their names noted."""
        if isinstance(params, nn.Module):
            return [{"params": [p for p in self._places if p.requires_grad]}]
        groups: list[Any] = [params] if isinstance(params, Tensor) else list(params)
        if not groups or not isinstance(groups[0], Mapping):
            groups = [{"params": groups}]
        opened = []
        for group in groups:
            given = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            bare = [p[1] if isinstance(p, tuple) else p for p in given]
            names = [p[0] for p in given if isinstance(p, tuple)] or group.get("param_names", ())
            self._note(bare, names)
            opened.append({key: value for key, value in group.items() if key != "param_names"} | {"params": bare})
        return opened

    def _note(self, parameters: list[Tensor], names: Sequence[str]) -> None:
        """Note where parameters are: by the module if it has them, else by the names given with them."""
        module = self._module() if self._module is not None else None
        if module is not None and any(p not in self._places for p in parameters):
            self._places.update(places_of(module))
        for parameter, name in zip(parameters, names, strict=False):
            self._places.setdefault(parameter, Place((plain_name(name),)))

    def _met(self, parameter: Tensor) -> list[int]:
        """Return the numbers of the rules that mean a parameter."""
        place = self._places.get(parameter, Place())
        return [number for number, rule in enumerate(self._rules) if rule.means(parameter, place)]

    def _settled(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a group for each parameter: with what the rules give it, unless the given group says otherwise."""
        explicit = {factor: 1.0 for factor, key in FACTORS.items() if key in group}
        for parameter in group["params"]:
            settings: dict[str, Any] = {"optimizer": len(self._forms) - 1, **dict.fromkeys(FACTORS, 1.0)}
            for number in reversed(self._met(parameter)):
                settings.update(self._given[number])
            yield {**settings, **explicit, **group, "params": [parameter]}

    def _built(self, number: int, form: Callable[[Any], Any], groups: list[dict[str, Any]]) -> list[Problem]:
        """Build a part with its groups; return what is wrong with it."""
        own: list[Any] = [group for group in groups if group["optimizer"] == number]
        where = f"{WHERE}, {form_name(form)}"
        try:
            part = form(own or [nn.Parameter(torch.zeros(1, 1))])  # of none now, perhaps of some later
        except Exception as error:
            fix = "Narrow the rule, as by dims=2, or change the optimizer's options."
            return [Problem(where, "the optimizer must take what the rules give it", str(error).rstrip("."), fix)]
        if not isinstance(part, Optimizer):
            return [Problem(where, "this must make an optimizer", repr(part), FORM)]
        closure = signature(type(part).step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            fix = "Use one that steps without a closure."
            return [Problem(where, "an optimizer that decides by a closure cannot be one of several", fix=fix)]
        if not own:
            part.param_groups.clear()
            part.state.clear()
        label = _free(type(part).__name__, self.optimizers)
        for group in part.param_groups:
            group["optimizer"] = label
        self.optimizers[label] = part
        return self._finished(label, part.param_groups)

    def _finished(self, label: str, groups: list[dict[str, Any]]) -> list[Problem]:
        """Multiply the rates of new groups by their factors; return what their optimizer does not know."""
        unknown = {}
        for group in groups:
            for factor, key in FACTORS.items():
                if group[factor] != 1.0 and key in group:
                    group[key] = group[key] * group[factor]
                elif group[factor] != 1.0:
                    unknown[key] = factor
            foreign = self._options - set(self.optimizers[label].defaults)
            unknown |= {key: f"options[{key!r}]" for key in group if key in foreign}
        fix = "Leave it out for its parameters, by a rule of their own."
        return [Problem(WHERE, f"{label} has no {key}", given, fix) for key, given in unknown.items()]

    def _free_name(self, group: dict[str, Any]) -> str:
        """Return a name for a group, as it is logged under, that no other has."""
        factors = zip(("lr", "wd"), FACTORS, strict=True)
        suffix = "".join(f"_{short}{group[factor]:g}" for short, factor in factors if group[factor] != 1.0)
        return _free(group.get("name") or group["optimizer"] + suffix, {other["name"] for other in self.param_groups})

    def _problems(self, parameters: Iterable[Tensor]) -> list[Problem]:
        """Return what is wrong with the rules for these parameters."""
        known = list(parameters)
        if nameless := self._nameless(known):
            return nameless
        met, acts = set[int](), set[int]()
        for parameter in known:
            found: dict[str, Any] = {}
            for number in self._met(parameter):
                met.add(number)
                same = [found.setdefault(key, value) == value for key, value in self._given[number].items()]
                acts |= {number} if any(same) else set()
        problems = []
        for number, rule in enumerate(self._rules):
            where = f"{WHERE}, rules[{number}]"
            if number not in met:
                meant = hint(rule, [(p, self._places.get(p, Place())) for p in known])
                problems.append(Problem(where, "a rule must mean a parameter", repr(rule), meant))
            elif number not in acts:
                said = "rules above it give all that it gives, to each parameter that it means"
                problems.append(Problem(where, said, repr(rule), "Move it up, or drop it."))
        return problems + self._loose([p for p in known if p.requires_grad])

    def _nameless(self, parameters: list[Tensor]) -> list[Problem]:
        """Return the problem of rules that cannot be applied, since not enough is known of parameters."""
        places = [self._places.get(p, Place()) for p in parameters]
        by_name = any(rule.names is not None or rule.exclude is not None for rule in self._rules)
        by_type = any(rule.types is not None for rule in self._rules)
        lacking = "names" if by_name and not all(place.names for place in places) else ""
        lacking = lacking or ("types" if by_type and not all(place.types for place in places) else "")
        rule = f"rules ask for {lacking} that are not known"
        fix = "Give the module itself: ByRule(self, ...)."
        return [Problem(WHERE, rule, f"{_count(len(places), 'parameter')} without a module", fix)] if lacking else []

    def _loose(self, parameters: list[Tensor]) -> list[Problem]:
        """Return the problem of parameters without an optimizer."""
        if self._has_default:
            return []
        loose = [p for p in parameters if not any("optimizer" in self._given[number] for number in self._met(p))]
        names = [self._places.get(p, Place((f"one of shape {tuple(p.shape)}",))).names[0] for p in loose]
        got = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        fix = "Pass default=functools.partial(torch.optim.AdamW, lr=...)."
        return [Problem(WHERE, "each parameter must have an optimizer", f"none for {got}", fix)] if loose else []


def _other_parts(found: list[Any], here: list[Any]) -> Problem:
    rule = "the groups must be those of the same rules"
    fix = "Build the optimizer by the rules, and for the parameters, of that run."
    return Problem(f"{WHERE}.load_state_dict", rule, f"{found} instead of {here}", fix)


def _free(name: str, taken: Iterable[str]) -> str:
    """Return a name, numbered if it is taken."""
    others = set(taken)
    return next(free for free in chain([name], (f"{name}_{number}" for number in count(2))) if free not in others)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
