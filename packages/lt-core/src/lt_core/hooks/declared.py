"""The hooks of modules and data modules: names, arguments and what they mean.

Bodies are empty or hold the documented default. ``lt_core.hooks`` says who is called in which order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lt_core.callback import declares_hooks
from lt_interface.errors import MisconfigurationException

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["CheckpointHooks", "DataHooks", "DataModuleHooks", "ModelHooks", "ModuleHooks", "missing"]


def missing(owner: object, name: str, call: str = "self") -> MisconfigurationException:
    """Return the error for a method that the trainer needs and the user has not written."""
    return MisconfigurationException(
        f"{type(owner).__name__}.{name}: this method must be implemented. Write: def {name}({call})"
    )


@declares_hooks
class DataHooks:
    """Hooks about data that modules and data modules both have.

    Attributes:
        prepare_data_per_node: Whether ``prepare_data`` runs once on every node (on its local
            rank 0), instead of once in all.
        allow_zero_length_dataloader_with_multiple_devices: Whether a rank may have no batch.
    """

    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False

    def prepare_data(self) -> None:
        """Download and write data to disk; set no attribute here, other processes would lack it."""

    def setup(self, stage: str) -> None:
        """Build what the stage needs, in every process; called each time a stage begins.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    def teardown(self, stage: str) -> None:
        """Release what ``setup`` took; also called after an exception.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    def train_dataloader(self) -> Any:
        """Return the training data: a loader, any iterable of batches, or a list or dict of those."""
        raise missing(self, "train_dataloader")

    def val_dataloader(self) -> Any:
        """Return the validation data: a loader, or a list or dict of loaders."""
        raise missing(self, "val_dataloader")

    def test_dataloader(self) -> Any:
        """Return the test data: a loader, or a list or dict of loaders."""
        raise missing(self, "test_dataloader")

    def predict_dataloader(self) -> Any:
        """Return the data to predict on: a loader, or a list or dict of loaders."""
        raise missing(self, "predict_dataloader")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, changed as you like, before it goes to the device.

        Args:
            batch: What the loader gave.
            dataloader_idx: Which loader gave it; 0 in training.
        """
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on the device; by default tensors at any depth are moved.

        Args:
            batch: What ``on_before_batch_transfer`` returned.
            device: Where the model is.
            dataloader_idx: Which loader gave it; 0 in training.
        """
        from lt_core.data.nested import move_to_device

        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, changed as you like, when it is on the device.

        Args:
            batch: What ``transfer_batch_to_device`` returned.
            dataloader_idx: Which loader gave it; 0 in training.
        """
        return batch


@declares_hooks
class DataModuleHooks(DataHooks):
    """Hooks that data modules alone have."""

    def on_exception(self, exception: BaseException) -> None:
        """Act when anything raised while the trainer ran.

        Args:
            exception: What was raised.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should keep of this object; it is kept under the class's name."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned.

        Args:
            state_dict: The kept state.
        """


@declares_hooks
class CheckpointHooks:
    """Hooks of a module about checkpoints."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to, or change, a checkpoint that is about to be written.

        Args:
            checkpoint: The dict that ``lt_core.checkpoint.load_checkpoint`` returns later.
        """

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read, or change, a checkpoint before anything is restored from it.

        Args:
            checkpoint: The dict that ``on_save_checkpoint`` has seen.
        """


@declares_hooks
class ModelHooks:
    """Hooks of a module at the moments of a run."""

    def on_fit_start(self) -> None:
        """Act when all is built and weights, callbacks and counters are restored."""

    def on_fit_end(self) -> None:
        """Act when fitting is over and the model is back on the CPU."""

    def on_train_start(self) -> None:
        """Act when training begins, after the sanity check."""

    def on_train_end(self) -> None:
        """Act when training is over."""

    def on_train_epoch_start(self) -> None:
        """Act when a training epoch begins; not when a run resumes inside it."""

    def on_train_epoch_end(self) -> None:
        """Act when all batches of the epoch, and its validation, are done."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Act before a training step.

        Args:
            batch: The batch, on the device.
            batch_idx: Its place in the epoch.

        Returns:
            -1 to skip the rest of the epoch.
        """
        return None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Act after a training step and its optimizer step.

        Args:
            outputs: What ``training_step`` returned, detached.
            batch: The batch, on the device.
            batch_idx: Its place in the epoch.
        """

    def on_validation_model_eval(self) -> None:
        """Put the module in evaluation mode for validation."""
        self.eval()  # type: ignore[attr-defined]

    def on_validation_model_train(self) -> None:
        """Put the module back after validation; if not overridden, every submodule's own mode returns."""
        self.train()  # type: ignore[attr-defined]

    def on_validation_model_zero_grad(self) -> None:
        """Free gradients before validation inside fit; not called in an open accumulation window."""
        self.zero_grad()  # type: ignore[attr-defined]

    def on_validation_start(self) -> None:
        """Act when validation begins."""

    def on_validation_end(self) -> None:
        """Act when validation is over and its metrics are logged."""

    def on_validation_epoch_start(self) -> None:
        """Act when the validation epoch begins."""

    def on_validation_epoch_end(self) -> None:
        """Act when all validation batches are done; what is logged here is logged with the epoch."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Act before a validation step.

        Args:
            batch: The batch, on the device.
            batch_idx: Its place in its loader.
            dataloader_idx: Which loader gave it.
        """

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Act after a validation step.

        Args:
            outputs: What ``validation_step`` returned.
            batch: The batch, on the device.
            batch_idx: Its place in its loader.
            dataloader_idx: Which loader gave it.
        """

    def on_test_model_eval(self) -> None:
        """Put the module in evaluation mode for the test."""
        self.eval()  # type: ignore[attr-defined]

    def on_test_model_train(self) -> None:
        """Put the module back after the test; if not overridden, every submodule's own mode returns."""
        self.train()  # type: ignore[attr-defined]

    def on_test_start(self) -> None:
        """Act when the test begins."""

    def on_test_end(self) -> None:
        """Act when the test is over and its metrics are logged."""

    def on_test_epoch_start(self) -> None:
        """Act when the test epoch begins."""

    def on_test_epoch_end(self) -> None:
        """Act when all test batches are done; what is logged here is logged with the epoch."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Act before a test step.

        Args:
            batch: The batch, on the device.
            batch_idx: Its place in its loader.
            dataloader_idx: Which loader gave it.
        """

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Act after a test step.

        Args:
            outputs: What ``test_step`` returned.
            batch: The batch, on the device.
            batch_idx: Its place in its loader.
            dataloader_idx: Which loader gave it.
        """

    def on_predict_model_eval(self) -> None:
        """Put the module in evaluation mode for prediction."""
        self.eval()  # type: ignore[attr-defined]

    def on_predict_start(self) -> None:
        """Act when prediction begins."""

    def on_predict_end(self) -> None:
        """Act when prediction is over."""

    def on_predict_epoch_start(self) -> None:
        """Act when the prediction epoch begins."""

    def on_predict_epoch_end(self) -> None:
        """Act when all batches are predicted."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Act before a prediction step.

        Args:
            batch: The batch, on the device.
            batch_idx: Its place in its loader.
            dataloader_idx: Which loader gave it.
        """

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Act after a prediction step.

        Args:
            outputs: What ``predict_step`` returned.
            batch: The batch, on the device.
            batch_idx: Its place in its loader.
            dataloader_idx: Which loader gave it.
        """

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Act after ``training_step``, before gradients are cleared: those of the last step are still there.

        Args:
            optimizer: Whose gradients.
        """

    def on_before_backward(self, loss: Tensor) -> None:
        """Act before the backward pass.

        Args:
            loss: The loss, divided by the size of the accumulation window.
        """

    def on_after_backward(self) -> None:
        """Act after the backward pass; with gradient scaling, gradients are still scaled."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Act when gradients are complete and unscaled, before they are clipped.

        Args:
            optimizer: The one that will step.
        """


class ModuleHooks(ModelHooks, DataHooks, CheckpointHooks):
    """All hooks of a module; `lt_core.LightningModule` is the only class that derives from it."""
