"""Cluster environments, under the path that users' imports name."""

from functools import partial

from lt_interface import ClusterEnvironment, registry

__all__ = ["ClusterEnvironment"]

__getattr__ = partial(registry.clusters.class_named, module=__name__)
