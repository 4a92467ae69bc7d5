"""Load weights into a module, or list exactly what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import nn

from lt_core.checkpoint.format.signature import plain_name
from lt_interface.errors import CheckpointError

__all__ = ["load_weights", "with_plain_names"]

MOST_LISTED = 20


def with_plain_names(state_dict: Any) -> Any:
    """Return a module's state by the names that it has where none of its parts is compiled."""
    if not any(plain_name(name) != name for name in state_dict):
        return state_dict
    plain = type(state_dict)((plain_name(name), value) for name, value in state_dict.items())
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:  # a wrapper's own entry comes before that of what it wraps
        plain._metadata = {plain_name(f"{name}.")[:-1]: value for name, value in metadata.items()}
    return plain


def _with_names_of(module: nn.Module, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state whose names are the module's own, whichever parts are compiled here or were when it was saved."""
    tensors = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    own = {plain_name(name): name for name, _ in tensors}
    if not any("_orig_mod." in name for name in chain(own.values(), state_dict)):
        return state_dict
    return {own.get(plain_name(name), name): value for name, value in state_dict.items()}


def load_weights(
    module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, where: str = "", weights: Any = None
) -> None:
    """Load ``state_dict`` into ``module`` through the module's own ``load_state_dict``.

    Parameters on the meta device take the loaded tensors over, since nothing can be copied to them.

    Args:
        module: The module; its overrides and hooks of ``load_state_dict`` are honoured.
        state_dict: The weights by name.
        strict: Whether missing and unexpected names are an error. Wrong shapes always are.
        where: The file's name, for the error.
        weights: What a strategy's ``weights`` returned, to load through in place of the module.

    Raises:
        CheckpointError: If the weights do not fit. It lists at most 20 names.
    """
    state_dict = _with_names_of(module, state_dict)
    options = {"assign": True} if any(p.is_meta for p in module.parameters()) else {}
    try:
        (module if weights is None else weights).load_state_dict(state_dict, strict=strict, **options)
    except RuntimeError as error:
        raise CheckpointError(_explain(module, state_dict, strict, where, str(error))) from error


def _explain(module: nn.Module, state_dict: Mapping[str, Any], strict: bool, where: str, message: str) -> str:
    start = f"{where}: " if where else ""
    own = module.state_dict()
    # Hooks may rename keys while loading, so only what torch itself complained of is listed.
    missing = [key for key in own if key not in state_dict and f'"{key}"' in message]
    unexpected = [key for key in state_dict if key not in own and f'"{key}"' in message]
    misshaped = [
        f"{key} (file {tuple(state_dict[key].shape)}, model {tuple(value.shape)})"
        for key, value in own.items()
        if key in state_dict and hasattr(value, "shape") and f"size mismatch for {key}:" in message
    ]
    parts = _listed({"missing in the file": missing, "not in the model": unexpected, "of another shape": misshaped})
    if not parts:
        return f"{start}the weights do not fit {type(module).__name__}. {message}"
    fix = "Load it into the model that it was saved from"
    if strict and not misshaped:
        fix += ", or pass strict=False (in a module: self.strict_loading = False)"
    return f"{start}the weights do not fit {type(module).__name__}. Got {'; '.join(parts)}. {fix}."


def _listed(found: Mapping[str, list[str]]) -> list[str]:
    """Share the lines that may be listed between the groups, at least one each."""
    groups = [(title, names) for title, names in found.items() if names]
    left = MOST_LISTED
    parts = []
    for i, (title, names) in enumerate(groups):
        shown = names[: max(1, left - (len(groups) - 1 - i))]
        left -= len(shown)
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        parts.append(f"{len(names)} {title}: {', '.join(shown)}{more}")
    return parts
