"""Kinds of devices: which there are, and which of them a run uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from lt_interface.errors import Problem
    from lt_interface.plan import Plan

__all__ = ["Accelerator", "ChecksPlan", "DescribesDevices", "ExplainsErrors"]


@runtime_checkable
class Accelerator(Protocol):
    """One kind of device.

    ``is_available``, ``device_count``, ``parse_devices`` and ``default_strategy`` are called when a trainer is
    constructed, in the parent process, and must create no device context, so that a later fork works.
    ``device``, ``setup`` and ``teardown`` are called by the strategy, in each rank. An accelerator must pickle.

    Attributes:
        name: The name users pass, such as ``"cpu"``.
        kind: ``"cpu"``, ``"gpu"`` or ``"tpu"``: what ``accelerator="gpu"`` and a plan mean by it.
        priority: ``accelerator="auto"`` picks the available one with the highest priority.

    Example:
        >>> class Board:
        ...     name, kind, priority = "board", "tpu", 5
        ...     def is_available(self):
        ...         return True
        ...     def device_count(self):
        ...         return 2
        ...     def parse_devices(self, spec):
        ...         spec = self.device_count() if spec == "auto" else spec
        ...         indices = list(range(int(spec))) if isinstance(spec, (int, str)) else list(spec)
        ...         if not indices or not set(indices) <= {0, 1}:
        ...             raise ValueError(f"Trainer(devices={spec!r}): this board has devices 0 and 1. Write devices=2.")
        ...         return indices
        ...     def default_strategy(self, devices, nodes):
        ...         return "single_device" if devices * nodes == 1 else "ddp"
        ...     def device(self, index):
        ...         return torch.device("board", index)
        ...     def setup(self, device):
        ...         pass
        ...     def stats(self, device):
        ...         return {"memory_used_bytes": 0}
        ...     def rng_state(self, device):
        ...         return None
        ...     def set_rng_state(self, device, state):
        ...         pass
        ...     def teardown(self):
        ...         pass
        >>> board = Board()
        >>> isinstance(board, Accelerator), board.parse_devices("auto"), board.parse_devices([1])
        (True, [0, 1], [1])
    """

    name: str
    kind: str
    priority: int

    def is_available(self) -> bool:
        """Return whether a device of this kind can be used here."""

    def device_count(self) -> int:
        """Return how many devices ``devices="auto"`` means: at least 1 where one is available."""

    def parse_devices(self, spec: int | str | Sequence[int]) -> list[int]:
        """Return the indices of the devices that a ``devices=`` flag means.

        Args:
            spec: A number of devices, such a number as text, -1 for all, ``"auto"``, a sequence of indices, or a text
                with a hyphen whose meaning is the accelerator's own, such as a UUID.

        Returns:
            Distinct indices from 0, at least one.

        Raises:
            ValueError: If the flag names no device, one that is not there, or one twice; the message shows the flag.
        """

    def default_strategy(self, devices: int, nodes: int) -> str:
        """Return the name of the strategy that ``strategy="auto"`` means.

        Args:
            devices: The number of devices on each node.
            nodes: The number of nodes.
        """

    def device(self, index: int) -> torch.device:
        """Return the torch device of one index.

        Args:
            index: One of the indices that ``parse_devices`` returned.
        """

    def setup(self, device: torch.device) -> None:
        """Prepare a device in the process that uses it; it may be called again after ``teardown``.

        Args:
            device: The device of this rank.

        Raises:
            ValueError: If the device is of another kind.
        """

    def stats(self, device: torch.device) -> dict[str, Any]:
        """Return figures of a device by name, the unit in the name, such as ``memory_used_bytes``.

        Args:
            device: The device of this rank, after ``setup``.
        """

    def rng_state(self, device: torch.device) -> Any:
        """Return the random state of a device as a tree of plain values and tensors, or None where it has none.

        Args:
            device: The device of this rank, after ``setup``.
        """

    def set_rng_state(self, device: torch.device, state: Any) -> None:
        """Take over a random state of a device.

        Args:
            device: The device of this rank, after ``setup``.
            state: What ``rng_state`` returned, perhaps for another device of this kind; not None.
        """

    def teardown(self) -> None:
        """Free what ``setup`` took; a second call does nothing."""


@runtime_checkable
class ChecksPlan(Protocol):
    """Accelerator that cannot do every plan; the core asks it with the strategy and the precision.

    Example:
        >>> from lt_interface import Plan, Problem
        >>> class Board:
        ...     def problems(self, plan, forks):
        ...         wide = plan.precision == "64-true"
        ...         return [Problem("Trainer(precision='64-true')", "this board has 32 bits")] if wide else []
        >>> isinstance(Board(), ChecksPlan), [str(p) for p in Board().problems(Plan(precision="64-true"), False)]
        (True, ["Trainer(precision='64-true'): this board has 32 bits."])
    """

    def problems(self, plan: Plan, forks: bool) -> Sequence[Problem]:
        """Return what devices of this kind cannot do; called in the parent, it creates no device context.

        Args:
            plan: What was decided.
            forks: Whether the launcher forks this process.
        """


@runtime_checkable
class DescribesDevices(Protocol):
    """Accelerator whose devices have names, for the line at the start of a run.

    Example:
        >>> class Board:
        ...     def describe(self, index):
        ...         return f"board:{index} (8 GB)"
        ...     def missing(self):
        ...         return None
        ...     def advice(self, device, plan):
        ...         return []
        >>> isinstance(Board(), DescribesDevices), Board().describe(1)
        (True, 'board:1 (8 GB)')
    """

    def describe(self, index: int) -> str:
        """Return the name of a device; it creates no device context, but may use one that is there.

        Args:
            index: Of a device that is there.
        """

    def missing(self) -> Problem | None:
        """Return why no device can be used though the machine has one; None where it has none, or all is well."""

    def advice(self, device: torch.device, plan: Plan) -> Sequence[str]:
        """Return whole sentences on what would serve this run better; each is shown once.

        Args:
            device: The device of this rank, after ``setup``.
            plan: What was decided.
        """


@runtime_checkable
class ExplainsErrors(Protocol):
    """Accelerator that knows more of an error than its message says, such as what fills the memory.

    Example:
        >>> class Board:
        ...     def explain(self, error, device, owners):
        ...         return ", ".join(owners) if isinstance(error, MemoryError) else ""
        >>> isinstance(Board(), ExplainsErrors), Board().explain(MemoryError(), None, {"parameters": {}})
        (True, 'parameters')
    """

    def explain(
        self, error: BaseException, device: torch.device, owners: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> str:
        """Return what the core adds to the message of an error that ends a run; empty where there is nothing to add.

        Args:
            error: What ended the run, before anything of it is released.
            device: The device of this rank.
            owners: Tensors that the run keeps, by name, under ``"parameters"``, ``"buffers"``, ``"gradients"`` and
                ``"optimizer states"``, on whatever device they are.
        """
