"""Fixture for tests of clusters: an environment in which no scheduler has started this process."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

__all__ = ["environment"]

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "ENVIRONMENT")
_STARTS = ("SLURM_", "TORCHELASTIC_", "MASTER_", "OMPI_", "PMI", "MPI_", "MV2_", "LSB_", "JSM_", "KUBERNETES_", "PBS_")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Return a function that sets environment variables, those of schedulers removed.

    Args:
        monkeypatch: Undoes it at the test's end.

    Example:
        In a ``conftest.py``::

            from lt_interface.testing.schedulers import environment
    """
    for name in list(os.environ):
        if name.startswith(_STARTS) or name in _NAMES:
            monkeypatch.delenv(name)

    def put(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put
