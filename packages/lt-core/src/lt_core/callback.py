"""Define the base class of callbacks: what to do besides training, in a place of its own."""

from __future__ import annotations

from contextvars import ContextVar
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lt_core.notices import warn

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["RUNNING", "Callback", "declares_hooks", "is_default"]

RUNNING: ContextVar[LightningModule | None] = ContextVar("RUNNING", default=None)  # the module that a trainer runs
C = TypeVar("C", bound=type)


def declares_hooks(cls: C) -> C:
    """Mark the methods of a class as defaults, which `is_default` recognizes wherever they are inherited.

    The mark is the method's own code: a wrapper that copies the attributes of a default is an override.
    """
    for function in vars(cls).values():
        if isinstance(function, FunctionType):
            function._default_code = function.__code__  # type: ignore[attr-defined]
    return cls


def is_default(function: object) -> bool:
    """Return whether a method is a default that `declares_hooks` marked, bound or not."""
    code = getattr(function, "__code__", None)
    return code is not None and getattr(function, "_default_code", None) is code


@declares_hooks
class Callback:
    """Base class of what runs at named moments of a run, apart from the model.

    Override any hook; one that is not overridden costs nothing. The order of all hooks is
    in the documentation's hook table.

    Each hook gets the ``trainer`` and the module that it runs, ``pl_module``. Some get more: the ``batch`` with its
    number, ``batch_idx``, and that of its loader, ``dataloader_idx``; the step's ``outputs``; the ``optimizer``; the
    ``loss``; the ``exception``; or the ``checkpoint``, a dict that is about to be written or has been read.

    Attributes:
        monitoring: Whether ``on_train_epoch_end`` runs after the module's own, so that the
            callback sees what the module logs there.
        role: What flags may exclude: ``"checkpoint"``, ``"progress bar"`` or ``"timer"``; empty for all others.
        keeps_predictions: Whether ``on_predict_epoch_end`` finds all predictions and their indices in
            ``trainer.predict_loop``.
        in_weights: Whether ``on_save_checkpoint`` has its say in files of weights alone, too.
        monitor: The metric that it looks at, None for none: it is kept ready where the callback looks.
        time_is_up: Whether it has ended the running fit for want of time, or the last one.
    """

    monitoring: ClassVar[bool] = False
    role: ClassVar[str] = ""
    keeps_predictions: bool = False
    in_weights: ClassVar[bool] = False
    monitor: str | None = None
    time_is_up: bool = False

    @property
    def state_key(self) -> str:
        """Return the name under which a checkpoint keeps this callback's state."""
        return type(self).__qualname__

    def _named(self) -> set[str]:
        """Return the metrics that this callback reads after a validation, besides its ``monitor``."""
        return set()

    def _generate_state_key(self, **kwargs: Any) -> str:
        """Return a key that differs between instances with different arguments."""
        return f"{type(self).__qualname__}{kwargs!r}"

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Record a value under a name, as ``pl_module.log`` does in the hook that runs.

        Args:
            name: The name.
            value: A number, a tensor of one element, or a metric object.
            *args: As for ``LightningModule.log``.
            **options: As for ``LightningModule.log``.
        """
        module = RUNNING.get()
        if module is None:
            warn(f"{type(self).__name__}.log({name!r}): no trainer is running, so nothing is logged.")
        else:
            module.log(name, value, *args, **options)

    def log_dict(self, dictionary: Any, *args: Any, **options: Any) -> None:
        """Record several values under their names, as ``pl_module.log_dict`` does.

        Args:
            dictionary: Values by name, or a collection of metric objects.
            *args: As for ``LightningModule.log_dict``.
            **options: As for ``LightningModule.log_dict``.
        """
        module = RUNNING.get()
        if module is None:
            warn(f"{type(self).__name__}.log_dict: no trainer is running, so nothing is logged.")
        else:
            module.log_dict(dictionary, *args, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare for a stage: fit, validate, test or predict."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clean up after a stage, also when it failed."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when everything is built and before the sanity check."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when fit is over and the model is back on the CPU."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run before the validation batches that only prove that validation works."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run after the sanity check."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run before a training step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Run after a training step; ``outputs`` is what it returned, detached."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when the train loop begins."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when the train loop is over."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when an epoch of the train loop begins."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when an epoch of the train loop is over."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when the validation loop begins."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when the validation loop is over."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when an epoch of the validation loop begins."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when an epoch of the validation loop is over."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when the test loop begins."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when the test loop is over."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when an epoch of the test loop begins."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when an epoch of the test loop is over."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when the predict loop begins."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when the predict loop is over."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when an epoch of the predict loop begins."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run when an epoch of the predict loop is over."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Run before a validation step."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Run after a validation step."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Run before a test step."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Run after a test step."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Run before a predict step."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Run after a predict step."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Run before gradients are cleared; those of the last step are still there."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Run before the backward pass."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run after the backward pass and before clipping."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Run before the optimizer steps; gradients are unscaled and not clipped."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Run when anything raised, KeyboardInterrupt too."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint that is about to be written."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read from a checkpoint before this callback's own state is loaded."""

    def transform_for(self, stage: str, device: torch.device) -> Callable[[Any, int], Any] | None:
        """Return what changes the batches of a pass over a stage's data, or None if nothing does.

        Args:
            stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
            device: Where the batches are.

        Returns:
            A function of a batch and of its seed that returns the batch. The process's random generators are seeded
            with it, and are as before afterwards.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep for this callback; plain values and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
