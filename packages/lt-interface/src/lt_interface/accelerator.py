"""Say what kind of device a run uses and which of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

__all__ = ["Accelerator"]


@runtime_checkable
class Accelerator(Protocol):
    """Know one kind of device.

    ``is_available``, ``device_count`` and ``parse_devices`` run in the parent process and
    create no device context.

    Attributes:
        name: The name users pass, such as ``"cpu"``.
        priority: The larger, the sooner ``accelerator="auto"`` takes it.
    """

    name: str
    priority: int

    def is_available(self) -> bool:
        """Return whether a device of this kind can be used here."""
        ...

    def device_count(self) -> int:
        """Return how many devices ``devices="auto"`` means."""
        ...

    def parse_devices(self, spec: int | str | Sequence[int]) -> list[int]:
        """Return the indices that a ``devices=`` flag means.

        Raises:
            ValueError: If the flag names no device or one that is not there.
        """
        ...

    def default_strategy(self, devices: int, nodes: int) -> str:
        """Return the name of the strategy that ``strategy="auto"`` means."""
        ...

    def device(self, index: int) -> torch.device:
        """Return the torch device of one index."""
        ...

    def setup(self, device: torch.device) -> None:
        """Prepare a device in the process that uses it."""
        ...

    def stats(self, device: torch.device) -> dict[str, Any]:
        """Return figures of the device, such as memory in bytes."""
        ...

    def teardown(self) -> None:
        """Free what ``setup`` took."""
        ...
