"""Environments of schedulers that are not there."""

from __future__ import annotations

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "ENVIRONMENT")
STARTS = ("SLURM_", "TORCHELASTIC_", "MASTER_", "OMPI_", "PMI", "MPI_", "MV2_", "LSB_", "JSM_", "KUBERNETES_", "PBS_")
