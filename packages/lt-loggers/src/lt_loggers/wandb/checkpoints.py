"""Checkpoints of a W&B run, and artifacts fetched back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from lt_loggers.checkpoints import Found, KeepsCheckpoints
from lt_loggers.wandb.run import OpenRun

__all__ = ["WandbCheckpoints"]


class WandbCheckpoints(KeepsCheckpoints):
    """Checkpoints of `WandbLogger`, kept as artifacts."""

    _checkpoint_name: str | None
    _add_file_policy: Literal["mutable", "immutable"]
    _opened: Callable[[], OpenRun]

    @property
    def _keeps_staged(self) -> bool:  # type: ignore[override]
        # W&B reads an immutable one where it is when it sends it, which may be long after this run.
        return self._add_file_policy == "immutable"

    def _log_final_checkpoints(self) -> None:
        """Keep what is left at the end of the run."""
        if self._checkpoint_callback is not None:
            for found in self._new_checkpoints(self._checkpoint_callback):
                self._send_checkpoint(found, found.path)

    def _send_checkpoint(self, found: Found, path: str) -> None:
        import wandb

        with self.exclusive():
            opened = self._opened()
            artifact = wandb.Artifact(
                name=self._checkpoint_name or f"model-{self.version}", type="model", metadata=found.metadata
            )
            if os.path.isdir(path):
                artifact.add_dir(path, name=os.path.basename(path), policy=self._add_file_policy)
            else:
                artifact.add_file(path, name="model.ckpt", policy=self._add_file_policy)
            opened.guarded(lambda: opened.run.log_artifact(artifact, aliases=found.aliases))

    @staticmethod
    def download_artifact(
        artifact: str,
        save_dir: str | os.PathLike[str] | None = None,
        artifact_type: str | None = None,
        use_artifact: bool = True,
    ) -> str:
        """Fetch an artifact from the server.

        Args:
            artifact: Its name, such as ``entity/project/model-abc:best``.
            save_dir: Where to put it; None lets wandb choose.
            artifact_type: Its type, such as ``"model"``.
            use_artifact: Whether an active run notes that it uses it.

        Returns:
            The folder it is in.
        """
        import wandb

        if wandb.run is not None and use_artifact:
            found = wandb.run.use_artifact(artifact, type=artifact_type)
        else:
            found = wandb.Api().artifact(artifact, type=artifact_type)
        return str(found.download(root=None if save_dir is None else os.fspath(save_dir)))

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """Note that this run uses an artifact, and return it.

        Args:
            artifact: Its name, such as ``entity/project/data:v3``.
            artifact_type: Its type.
        """
        with self.exclusive():
            return self.experiment.use_artifact(artifact, type=artifact_type)
