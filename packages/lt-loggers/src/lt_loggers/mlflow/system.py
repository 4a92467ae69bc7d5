"""Sample what the machine is doing, for an MLflow run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lt_interface import MissingPackageError

__all__ = ["SystemMetrics"]

SECONDS = 10.0


class SystemMetrics:
    """Monitor of CPU, memory, disk, network and GPUs every ten seconds, under MLflow's own names, ``system/...``.

    MLflow's own monitor ends at the first request that fails; here they wait for the server as all metrics do.

    Args:
        log: Takes the metrics.

    Raises:
        MissingPackageError: If psutil is not installed.
    """

    def __init__(self, log: Callable[[dict[str, Any]], None]) -> None:
        if find_spec("psutil") is None:
            raise MissingPackageError(
                "MLFlowLogger(log_system_metrics=True): this needs psutil. Run: pip install psutil"
            )
        self._log = log
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="lt-system-metrics", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        monitors = _monitors()
        while not self._ends.wait(SECONDS):
            found: dict[str, Any] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                found.update({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()})
                monitor.clear_metrics()
            if not self._ends.is_set():
                self._log(found)

    def end(self) -> None:
        """Begin no more samples; one that is being sent still may be."""
        self._ends.set()


def _monitors() -> list[Any]:
    """Return MLflow's monitors of what this machine has."""
    made = []
    for kind in ("cpu", "disk", "network", "gpu"):
        module = import_module(f"mlflow.system_metrics.metrics.{kind}_monitor")
        name = kind.upper() if kind in ("cpu", "gpu") else kind.title()
        try:
            made.append(getattr(module, f"{name}Monitor")())
        except Exception:  # no GPU, or no package that reads one
            continue
    return made
