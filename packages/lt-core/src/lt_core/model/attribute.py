"""Find an attribute by its name where users keep it: at the module, the data module, or in their hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lt_core.config.parsers import is_number
from lt_interface.errors import Problem, nearest

__all__ = ["Attribute"]

_ABSENT: Any = object()


class Attribute:
    """Attribute of a module or data module, or entry of their hyper-parameters, by a name or a dotted path.

    Where several hold one of that name, all are set, so that none is left with an old value.

    Args:
        name: The name, such as ``"lr"`` or ``"optimizer.lr"``.
        *owners: The module and the data module; None is left out.

    Example:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(optim={"lr": 0.1})
        >>> lr = Attribute("optim.lr", model)
        >>> lr.set(0.2)
        >>> lr.get(), model.optim, Attribute("lr", model).found
        (0.2, {'lr': 0.2}, False)
    """

    def __init__(self, name: str, *owners: Any) -> None:
        self.name = name
        self._owners = [owner for owner in owners if owner is not None]
        *path, self._last = name.split(".")
        self._holders: list[Any] = []
        for holder in (_walk(root, path) for root in _roots(self._owners)):
            known = any(holder is other for other in self._holders)
            if holder is not _ABSENT and not known and _step(holder, self._last) is not _ABSENT:
                self._holders.append(holder)

    @property
    def found(self) -> bool:
        """Return whether anything holds it."""
        return bool(self._holders)

    def get(self) -> Any:
        """Return its value; None where nothing holds it."""
        return _step(self._holders[0], self._last) if self._holders else None

    def set(self, value: Any) -> None:
        """Set it wherever it is held; what is computed from it there cannot be set, and need not be.

        Args:
            value: The new value.

        Raises:
            AttributeError: If it can be set nowhere; TypeError, where a mapping cannot change.
        """
        self._put([(holder, value) for holder in self._holders])

    def _put(self, values: list[tuple[Any, Any]]) -> None:
        refused: list[AttributeError | TypeError] = []
        for holder, value in values:
            try:
                if isinstance(holder, Mapping):
                    holder[self._last] = value  # type: ignore[index]
                else:
                    setattr(holder, self._last, value)
            except (AttributeError, TypeError) as error:
                refused.append(error)
        if refused and len(refused) == len(values):
            raise refused[0]

    def problem(self, where: str, why: str) -> Problem | None:
        """Return what is wrong if nothing holds it, with the nearest name that something does, or if none can be set.

        Args:
            where: Who asks for it.
            why: What it is needed for.
        """
        rule = f"{why} {self.name!r}, at the module, its data module or in their hparams"
        kinds = " and ".join(type(owner).__name__ for owner in self._owners)
        if self._holders:
            try:
                self._put([(holder, _step(holder, self._last)) for holder in self._holders])
            except (AttributeError, TypeError) as error:
                return Problem(where, f"{rule}, that can be set", f"{kinds}: {error}", f"Set self.{self._last} itself.")
            return None
        names = {key: None for root in _roots(self._owners) for key in _names(root)}
        fix = nearest(self._last, list(names)) or f"Set self.{self._last} in __init__ and use it."
        return Problem(where, rule, f"{kinds} without it", fix)


def _roots(owners: Iterable[Any]) -> list[Any]:
    return [root for owner in owners for root in (owner, getattr(owner, "hparams", None)) if root is not None]


def _names(root: Any) -> list[str]:
    items = root if isinstance(root, Mapping) else getattr(root, "__dict__", {})
    numbers = [key for key, value in items.items() if value is None or is_number(value)]
    return [key for key in numbers if isinstance(key, str) and not key.startswith("_")]


def _step(holder: Any, key: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(key, _ABSENT)
    return getattr(holder, key, _ABSENT)


def _walk(root: Any, path: list[str]) -> Any:
    for key in path:
        root = _step(root, key)
        if root is _ABSENT or root is None:
            return _ABSENT
    return root
