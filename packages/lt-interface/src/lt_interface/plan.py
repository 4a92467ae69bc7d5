"""Hold what was decided before any process started."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Plan"]


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
