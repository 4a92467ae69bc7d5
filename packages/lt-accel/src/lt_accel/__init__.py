"""Train beyond 32 bits on one CPU: precisions, strategies and clusters, each found by its name."""

from lt_accel.clusters.environment import EnvironmentCluster as LightningEnvironment
from lt_accel.clusters.kubeflow import KubeflowCluster as KubeflowEnvironment
from lt_accel.clusters.lsf import LSFCluster as LSFEnvironment
from lt_accel.clusters.mpi import MPICluster as MPIEnvironment
from lt_accel.clusters.slurm import SlurmCluster as SLURMEnvironment
from lt_accel.clusters.torchrun import TorchrunCluster as TorchElasticEnvironment
from lt_accel.precision.float8 import Float8Precision
from lt_accel.precision.mixed import BFloat16MixedPrecision, Float16MixedPrecision, MixedPrecision
from lt_accel.precision.quantized import BitsandbytesPrecision
from lt_accel.precision.transformer_engine import TransformerEnginePrecision
from lt_accel.version import __version__

__all__ = [
    "BFloat16MixedPrecision",
    "BitsandbytesPrecision",
    "Float8Precision",
    "Float16MixedPrecision",
    "KubeflowEnvironment",
    "LSFEnvironment",
    "LightningEnvironment",
    "MPIEnvironment",
    "MixedPrecision",
    "SLURMEnvironment",
    "TorchElasticEnvironment",
    "TransformerEnginePrecision",
    "__version__",
]
