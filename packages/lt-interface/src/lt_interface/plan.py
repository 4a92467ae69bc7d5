"""Plan of a run: what was decided before any process started."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Decisions about a run, made before any process starts; picklable and plain.

    The core makes it from the trainer's flags, asks strategy and launcher for problems with it, and gives it to
    `Strategy.setup` and `Strategy.engine`.

    Attributes:
        stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        accelerator: Kind of the devices: ``"cpu"``, ``"gpu"`` or ``"tpu"``.
        device_type: What torch calls them: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xla"``.
        strategy: Name of the strategy.
        launcher: Name of what starts the ranks.
        devices: Parsed device indices of one node.
        num_nodes: Number of nodes.
        one_process_per_node: Whether one process drives all devices of a node; else there is one for each device.
        accumulate: Batches per optimizer step.
        clip_value: Gradient clipping threshold, or None.
        clip_algorithm: ``"norm"`` or ``"value"``.
        precision: Name of the precision, such as ``"32-true"``.
        seed: The run's seed; in the ranks rank 0's.
        sync_batchnorm: Whether batch statistics are shared between ranks.
        compile: Whether the user passed a compiled module.
        inference_mode: Whether evaluation entry points run under ``torch.inference_mode``.
        max_steps: Optimizer steps after which training stops; -1 for no limit.
        max_epochs: Epochs after which training stops; -1 for no limit.
        deterministic: Whether torch uses deterministic algorithms.
        root: The default root folder.

    Example:
        >>> plan = Plan(devices=(0, 1), accumulate=4, clip_value=1.0)
        >>> plan.stage, plan.processes
        ('fit', 2)
        >>> Plan(devices=(0, 1, 2, 3), num_nodes=2, one_process_per_node=True).processes
        2
    """

    stage: str = "fit"
    accelerator: str = "cpu"
    device_type: str = "cpu"
    strategy: str = "single_device"
    launcher: str = "in_process"
    devices: tuple[int, ...] = (0,)
    num_nodes: int = 1
    one_process_per_node: bool = False
    accumulate: int = 1
    clip_value: float | None = None
    clip_algorithm: str = "norm"
    precision: str = "32-true"
    seed: int = 0
    sync_batchnorm: bool = False
    compile: bool = False
    inference_mode: bool = True
    max_steps: int = -1
    max_epochs: int = -1
    deterministic: bool = False
    root: str = "."

    @property
    def processes(self) -> int:
        """Return the number of processes of all nodes."""
        return self.local_processes * self.num_nodes

    @property
    def local_processes(self) -> int:
        """Return the number of processes of one node."""
        return 1 if self.one_process_per_node else len(self.devices)
