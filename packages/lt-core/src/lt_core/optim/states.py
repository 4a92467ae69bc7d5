"""Save and load optimizers' states by the names of their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lt_core.checkpoint.format.signature import plain_name
from lt_interface import CheckpointError, Problem

__all__ = ["load_named_states", "named_states", "parameter_names", "regroup"]


def named_states(module: nn.Module, optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    """Return each optimizer's ``state_dict``, its parameters by name instead of by number."""
    names = parameter_names(module)
    return [_named_state(optimizer, names) for optimizer in optimizers]


def load_named_states(module: nn.Module, optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Load states that ``named_states`` returned, or torch's own numbered ones.

    Args:
        module: The module whose parameters are named.
        optimizers: The optimizers, in the user's order.
        states: One state each, in the same order.

    Raises:
        CheckpointError: If they are of other optimizers or parameters.
    """
    if len(states) != len(optimizers):
        raise CheckpointError(
            f"optimizer_states: the checkpoint must hold one state for each optimizer. "
            f"Got {len(states)} for {len(optimizers)}. Return the same optimizers from configure_optimizers."
        )
    names = parameter_names(module)
    for index, (optimizer, state) in enumerate(zip(optimizers, states, strict=True)):
        _load_named_state(optimizer, state, names, f"optimizer_states[{index}]")


def regroup(module: nn.Module, optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Give new optimizers the groups that their states name: some may have been added since the first were made.

    Args:
        module: The module whose parameters are named.
        optimizers: The optimizers, without any state yet.
        states: What ``named_states`` returned, in the same order.
    """
    names = parameter_names(module)
    parameters = {names[id(p)]: p for p in module.parameters()}
    for optimizer, state in zip(optimizers, states, strict=False):
        saved = state["param_groups"]
        if [group["params"] for group in saved] == _group_names(optimizer, names):
            continue
        if all(name in parameters for group in saved for name in group["params"]):
            optimizer.param_groups.clear()
            for group in saved:
                optimizer.add_param_group({**group, "params": [parameters[name] for name in group["params"]]})


def parameter_names(module: nn.Module) -> dict[int, str]:
    """Return the first name of each parameter by the parameter's ``id``."""
    return {id(parameter): plain_name(name) for name, parameter in module.named_parameters()}


def _group_names(optimizer: Optimizer, names: Mapping[int, str]) -> list[list[str]]:
    """Return the names of each group's parameters; one that the module does not hold gets its place as a name."""
    return [
        [names.get(id(p), f"<group {g}, parameter {i}>") for i, p in enumerate(group["params"])]
        for g, group in enumerate(optimizer.param_groups)
    ]


def _is_of_own_form(state: Mapping[str, Any]) -> bool:
    """Return whether a state is of a form of the optimizer's own, as wrappers' may be: it is kept as it is."""
    return not (state.keys() >= {"state", "param_groups"})


def _named_state(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    state = optimizer.state_dict()
    if _is_of_own_form(state):
        return state
    groups = list(zip(state["param_groups"], _group_names(optimizer, names), strict=True))
    by_number = {number: name for saved, group in groups for number, name in zip(saved["params"], group, strict=True)}
    formats = _other_formats(optimizer, names)
    return {
        **state,
        **({"other_formats": formats} if formats else {}),
        "state": {by_number.get(key, key): value for key, value in state["state"].items()},
        "param_groups": [{**saved, "params": group} for saved, group in groups],
    }


def _load_named_state(optimizer: Optimizer, state: dict[str, Any], names: Mapping[int, str], where: str) -> None:
    if _is_of_own_form(state):
        if not _is_of_own_form(optimizer.state_dict()):
            rule = "the checkpoint must be of the same kind of optimizer"
            got, fix = ", ".join(map(str, state)), "Wrap the optimizer as it was when the checkpoint was written."
            raise CheckpointError(Problem(where, rule, f"a state of a wrapper's own form ({got})", fix))
        optimizer.load_state_dict(state)
        return
    state = _plain_names(state)
    saved_groups, groups = state["param_groups"], _group_names(optimizer, names)
    if len(saved_groups) != len(groups):
        raise CheckpointError(
            f"{where}: the optimizer must have as many parameter groups as in the checkpoint. "
            f"Got {len(groups)} instead of {len(saved_groups)}. Build the same groups in configure_optimizers."
        )
    numbers: dict[Any, int] = {}
    packed_groups: list[dict[str, Any]] = []
    for g, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        order: list[Any] = group
        if all(isinstance(key, int) for key in saved["params"]):  # torch's own form: by place
            order = list(saved["params"])
            if len(order) != len(group):
                raise _other_parameters(f"{where}.param_groups[{g}]", [f"{len(order)} parameters"], group)
            _check_places(f"{where}.param_groups[{g}]", state["state"], order, optimizer.param_groups[g]["params"])
        elif set(saved["params"]) != set(group):
            raise _other_parameters(f"{where}.param_groups[{g}]", saved["params"], group)
        elif group != list(saved["params"]):  # sums over a group depend on its order
            own_parameters = optimizer.param_groups[g]["params"]
            by_name = dict(zip(group, own_parameters, strict=True))
            order = list(saved["params"])
            own_parameters[:] = [by_name[name] for name in order]
        start = len(numbers)
        numbers.update({key: start + i for i, key in enumerate(order)})
        packed_groups.append({**saved, "params": list(range(start, start + len(order)))})
    packed = {numbers.get(key, key): value for key, value in state["state"].items()}
    rest = {key: value for key, value in state.items() if key != "other_formats"}
    own = [set(group) for group in optimizer.param_groups]
    optimizer.load_state_dict({**rest, "state": packed, "param_groups": packed_groups})
    for g, options in enumerate(optimizer.param_groups):
        lacking = sorted(own[g] - set(options))  # what older versions of torch lacked is filled in
        if lacking:
            raise CheckpointError(
                f"{where}.param_groups[{g}]: the checkpoint must be of the same kind of optimizer. "
                f"Got none of the options {', '.join(lacking)} of {type(optimizer).__name__}. "
                "Return the same optimizer from configure_optimizers."
            )
    _restore_formats(optimizer, state, numbers)


def _check_places(where: str, states: Mapping[Any, Any], order: list[Any], parameters: Sequence[Tensor]) -> None:
    """Refuse states by place that cannot be of the parameters there: an average has its parameter's shape."""
    for place, (key, parameter) in enumerate(zip(order, parameters, strict=True)):
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            value = (states.get(key) or {}).get(name)
            if isinstance(value, Tensor) and value.shape != parameter.shape:
                rule = "the parameters must come in the checkpoint's order, since it does not name them"
                got = f"shape {tuple(value.shape)} for number {place}, which has {tuple(parameter.shape)}"
                raise CheckpointError(Problem(where, rule, got, "Build the same groups in configure_optimizers."))


def _plain_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with plain names, as files of earlier releases may lack for modules that are compiled in part."""

    def plain(entries: Mapping[Any, Any]) -> dict[Any, Any]:
        return {plain_name(key) if isinstance(key, str) else key: value for key, value in entries.items()}

    groups = [{**group, "params": list(plain(dict.fromkeys(group["params"])))} for group in state["param_groups"]]
    formats = {"other_formats": plain(state["other_formats"])} if "other_formats" in state else {}
    return {**state, **formats, "state": plain(state["state"]), "param_groups": groups}


def _other_formats(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, list[str]]:
    """Return the entries, by parameter, that an optimizer keeps in another format than the parameter's.

    ``Optimizer.load_state_dict`` casts them to the parameter's format, which loses bits
    where 32-bit averages stand beside 16-bit parameters. It leaves ``step`` alone.
    """
    found: dict[str, list[str]] = {}
    for parameter, entries in optimizer.state.items():
        if not isinstance(parameter, Tensor) or not parameter.is_floating_point() or not isinstance(entries, dict):
            continue
        keys = [k for k, v in entries.items() if k != "step" and isinstance(v, Tensor) and v.dtype != parameter.dtype]
        if keys and id(parameter) in names:
            found[names[id(parameter)]] = keys
    return found


def _restore_formats(optimizer: Optimizer, state: dict[str, Any], numbers: Mapping[Any, int]) -> None:
    """Give the entries that ``_other_formats`` noted their own format back."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, keys in state.get("other_formats", {}).items():
        own = optimizer.state[parameters[numbers[name]]]
        for key in keys:
            own[key] = state["state"][name][key].to(own[key].device)


def _other_parameters(where: str, saved: Sequence[str], own: Sequence[str]) -> CheckpointError:
    missing = [name for name in own if name not in set(saved)][:20]
    unexpected = [name for name in saved if name not in set(own)][:20]
    return CheckpointError(
        f"{where}: the group must hold the same parameters as in the checkpoint. "
        f"Got {', '.join(unexpected) or 'none'} in the checkpoint only and {', '.join(missing) or 'none'} in the "
        "optimizer only. Build the same groups in configure_optimizers."
    )
