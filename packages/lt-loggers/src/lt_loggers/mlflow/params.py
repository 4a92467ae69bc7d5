"""Hyper-parameters of MLflow runs: it keeps the first value of each and only so many letters of it."""

from __future__ import annotations

from typing import Any

from lt_interface.hyperparameters import flatten, plain_dict
from lt_interface.versions import unless_silent
from lt_loggers.mlflow.client import ask
from lt_loggers.mlflow.run import MLFlowRun

__all__ = ["MLFlowParams"]

# So many in one request; the longest value that new, older and very old servers take.
_PARAMS, _LONGEST_VALUES = 100, (6000, 500, 250)


class MLFlowParams(MLFlowRun):
    """Hyper-parameters of a run."""

    @unless_silent
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Write hyper-parameters, nested ones as ``outer/inner``; the same ones again change nothing.

        Args:
            params: A dict, namespace or dataclass, of any depth and with any values.
            *args: Ignored; other loggers take more.
            **kwargs: Ignored, too.

        Raises:
            ConnectionError: If the server is away.
        """
        named = {self._accepted(key): _text(value) for key, value in flatten(plain_dict(params)).items()}
        self.later(lambda: self._send_new_params(named), "hyper-parameters")

    def _send_new_params(self, params: dict[str, str]) -> None:
        client = self._connected()
        there = ask(client.get_run, self._run_id).data.params
        changed = [key for key, value in params.items() if key in there and not _is_kept(there[key], value)]
        if changed:
            names = ", ".join(changed[:5])
            self._warn_once("changed", f"MLFlowLogger: MLflow keeps the first value of a parameter; not new: {names}.")
        self._send_params(client, {key: value for key, value in params.items() if key not in there})

    def _send_params(self, client: Any, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        items = list(params.items())
        for start in range(0, len(items), _PARAMS):
            for longest in _LONGEST_VALUES:
                part = items[start : start + _PARAMS]
                try:
                    ask(client.log_batch, self._run_id, params=[Param(key, value[:longest]) for key, value in part])
                except ValueError:
                    if longest == _LONGEST_VALUES[-1]:
                        raise
                    continue
                for key, value in part:
                    if len(value) > longest:
                        self._warn_once(
                            "long",
                            f"MLFlowLogger: parameter {key!r} has {len(value)} letters; the first {longest} are kept, "
                            "and of each other that is longer alike.",
                        )
                break


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


def _is_kept(kept: str, value: str) -> bool:
    """Return whether a parameter has this value, as far as MLflow kept it."""
    return kept == value or (len(kept) in _LONGEST_VALUES and value.startswith(kept))
