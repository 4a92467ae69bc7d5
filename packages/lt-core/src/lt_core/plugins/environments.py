"""Cluster environments, under the path that users' imports name."""

from typing import Any

from lt_interface import ClusterEnvironment, registry

__all__ = ["ClusterEnvironment"]


def __getattr__(name: str) -> Any:
    return registry.clusters.class_named(name, __name__)
