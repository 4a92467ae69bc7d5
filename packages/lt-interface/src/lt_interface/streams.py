"""Copies to a device that run beside its computing: an ability of accelerators, asked for once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["SideStream", "SupportsSideStream"]


@runtime_checkable
class SideStream(Protocol):
    """Queue of copies from the host to one device, which the device works off beside its computing.

    A copy may be read, and its memory given back, once `join` has returned for the mark behind it, or where that mark
    is None. A copy that is never joined may be given back at any time.

    A stream may say by a number ``direct`` up to how many bytes a tensor is better moved by its own ``to``, on the
    computing stream and without waiting: then it is not asked for that copy.

    Example:
        >>> class Immediate:
        ...     def copy(self, tensor):
        ...         return list(tensor)
        ...     def mark(self):
        ...         return None
        ...     def join(self, mark):
        ...         pass
        >>> stream = Immediate()
        >>> isinstance(stream, SideStream), stream.copy([1, 2])
        (True, [1, 2])
    """

    def copy(self, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor, without waiting for the device.

        The host's tensor may be given back at once; whoever writes into it may change the copy.

        Args:
            tensor: A strided tensor in the host's memory, pinned or not.

        Returns:
            The copy, on the device.
        """

    def mark(self) -> Any:
        """Return a mark behind the copies that were begun since the last one, or None where nothing is to be joined."""

    def join(self, mark: Any) -> None:
        """Let what is computed from now on wait for a mark's copies, which belong to the computing from then on.

        The host does not wait.

        Args:
            mark: What `mark` returned, other than None.
        """


@runtime_checkable
class SupportsSideStream(Protocol):
    """Accelerator on whose devices copies run beside the computing.

    Example:
        >>> class Board:
        ...     def side_stream(self, device):
        ...         return None
        >>> isinstance(Board(), SupportsSideStream)
        True
    """

    def side_stream(self, device: torch.device) -> SideStream | None:
        """Return a new side stream of a device, or None where the device is not one of this kind.

        Args:
            device: The device of this rank, after ``setup``.
        """
