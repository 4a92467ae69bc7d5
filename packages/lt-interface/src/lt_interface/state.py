"""Name the small frozen facts that every part shares: who I am, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

__all__ = ["Plan", "Stateful", "World"]


@runtime_checkable
class Stateful(Protocol):
    """Be saved and restored, in the shape that torch already uses."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a tree of plain values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over a state that ``state_dict`` returned."""
        ...


@dataclass(frozen=True)
class World:
    """Say who this process is among its peers.

    ``data_rank`` and ``data_size`` count who receives *different samples*: peers of one
    tensor-parallel group share them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node_rank: int = 0
    data_rank: int = 0
    data_size: int = 1

    @property
    def is_global_zero(self) -> bool:
        """Return whether this is rank 0 of all processes."""
        return self.rank == 0


@dataclass(frozen=True)
class Plan:
    """Hold what was decided before any process started; picklable and plain.

    Attributes:
        stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        devices: Parsed device indices of one node.
        num_nodes: Number of nodes.
        accumulate: Batches per optimizer step.
        clip_value: Gradient clipping threshold, or None.
        clip_algorithm: ``"norm"`` or ``"value"``.
        micro_batch: Samples per micro-batch, or None for whole batches.
        precision: Name of the precision, such as ``"32-true"``.
        seed: The run's seed, or None before it is drawn.
        sync_batchnorm: Whether batch statistics are shared between ranks.
        compile: Whether the module was handed over compiled.
        inference_mode: Whether evaluation entry points run under ``torch.inference_mode``.
        root: The default root folder.
    """

    stage: str = "fit"
    devices: tuple[int, ...] = (0,)
    num_nodes: int = 1
    accumulate: int = 1
    clip_value: float | None = None
    clip_algorithm: str = "norm"
    micro_batch: int | None = None
    precision: str = "32-true"
    seed: int | None = None
    sync_batchnorm: bool = False
    compile: bool = False
    inference_mode: bool = True
    root: str = "."
