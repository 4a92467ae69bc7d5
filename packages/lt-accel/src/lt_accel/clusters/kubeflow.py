"""Kubeflow: each pod of a PyTorchJob is a rank."""

from __future__ import annotations

import os

from lt_accel.clusters.scheduler import SchedulerCluster

__all__ = ["KubeflowCluster"]

_NEEDED = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


class KubeflowCluster(SchedulerCluster):
    """Pods of a training job, one process each; more of them in a pod are torchrun's."""

    name = "kubeflow"
    priority = -5

    @staticmethod
    def detect() -> bool:
        """Return whether this process is such a pod's, and none that a scheduler in it started."""
        inside = "KUBERNETES_PORT" in os.environ or "KUBERNETES_SERVICE_HOST" in os.environ
        other = any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        return inside and not other and all(name in os.environ for name in _NEEDED)

    def local_rank(self) -> int:
        """Return 0: a pod is a node of its own."""
        return 0

    def local_size(self) -> int:
        """Return 1."""
        return 1

    def node_rank(self) -> int:
        """Return the pod's number."""
        return self.global_rank()

    def advice(self, processes: int, nodes: int) -> str:
        """Return how to start so many processes on each of so many nodes, as the end of a sentence."""
        return f"give the job {nodes} replicas" + (", and start torchrun in each" if processes > 1 else "")
