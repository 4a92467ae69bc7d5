"""Cluster environments, under the path that users' imports name."""

from lt_core.names import finder
from lt_interface import ClusterEnvironment, registry

__all__ = ["ClusterEnvironment"]

__getattr__ = finder(__name__, registry.clusters)
