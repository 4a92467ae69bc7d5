"""Parameters that submodules share."""

from __future__ import annotations

from torch import nn

__all__ = ["find_shared_parameters", "set_shared_parameters"]


def find_shared_parameters(module: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several.

    Args:
        module: The module.

    Example:
        >>> tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> tied[1].weight = tied[0].weight
        >>> find_shared_parameters(tied)
        [['0.weight', '1.weight']]
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def set_shared_parameters(module: nn.Module, shared_params: list[list[str]]) -> nn.Module:
    """Make the parameters of each group of names one again, the first one's.

    Args:
        module: The module.
        shared_params: What `find_shared_parameters` returned.

    Returns:
        The module.
    """
    for first, *others in shared_params:
        for name in others:
            path, _, last = name.rpartition(".")
            setattr(module.get_submodule(path), last, module.get_parameter(first))
    return module
