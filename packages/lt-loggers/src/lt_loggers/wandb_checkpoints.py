"""Keep checkpoints with a W&B run, and fetch them back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

from lt_interface import Logger, is_rank_zero
from lt_loggers.checkpoints import Found, new_checkpoints, stage, staging_folder

__all__ = ["WandbCheckpoints"]


class WandbCheckpoints(Logger):
    """Be the part of `WandbLogger` that keeps checkpoints as artifacts."""

    _per_rank: bool
    _log_model: bool | str
    _checkpoint_name: str | None
    _add_file_policy: Literal["mutable", "immutable"]
    _guarded: Callable[[Callable[[], Any]], None]
    _sent_checkpoints: dict[str, tuple[int, int]] | None = None
    _checkpoint_callback: Any = None

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Keep the callback's new checkpoints, at once or at the end, as ``log_model`` says.

        A checkpoint is held by a hard link or a copy until it is sent: it may be removed after the call.

        Args:
            checkpoint_callback: It tells paths and scores, as `ModelCheckpoint` does.
        """
        if not self._log_model or not (self._per_rank or is_rank_zero()):
            return
        if self._log_model == "all" or getattr(checkpoint_callback, "save_top_k", 1) == -1:
            for found in self._new_checkpoints(checkpoint_callback):
                self._hold_and_send(found)
        else:
            self._checkpoint_callback = checkpoint_callback

    def _log_final_checkpoints(self) -> None:
        """Keep what is left at the end of the run."""
        if self._checkpoint_callback is not None:
            for found in self._new_checkpoints(self._checkpoint_callback):
                self._log_artifact(found, found.path)

    def _new_checkpoints(self, callback: Any) -> list[Found]:
        self._sent_checkpoints = {} if self._sent_checkpoints is None else self._sent_checkpoints
        return new_checkpoints(callback, self._sent_checkpoints)

    def _hold_and_send(self, found: Found) -> None:
        # W&B reads an immutable one where it is when it sends it, which may be long after this run.
        folder = staging_folder(self.log_dir or ".", keeps=self._add_file_policy == "immutable")
        held = stage(found.path, folder)

        def send() -> None:
            self._log_artifact(found, held)
            if self._add_file_policy == "mutable":
                shutil.rmtree(folder, ignore_errors=True)

        self.later(send, f"checkpoint {os.path.basename(found.path)}")

    def _log_artifact(self, found: Found, path: str) -> None:
        import wandb

        with self.exclusive():
            run = self.experiment
            artifact = wandb.Artifact(
                name=self._checkpoint_name or f"model-{self.version}", type="model", metadata=found.metadata
            )
            if os.path.isdir(path):
                artifact.add_dir(path, name=os.path.basename(path), policy=self._add_file_policy)
            else:
                artifact.add_file(path, name="model.ckpt", policy=self._add_file_policy)
            self._guarded(lambda: run.log_artifact(artifact, aliases=found.aliases))

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
