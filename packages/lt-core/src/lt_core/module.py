"""Define LightningModule: a torch module with its loss and its optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lt_core.callback import declares_hooks
from lt_core.hooks.declared import ModuleHooks, missing
from lt_core.model.from_checkpoint import load_module, not_on_instances
from lt_core.model.hparams import HyperparametersMixin
from lt_core.notices import warn
from lt_core.tracking.fanout import shown_to_all
from lt_interface.errors import MisconfigurationException

if TYPE_CHECKING:
    from os import PathLike

    from torch.nn import Parameter
    from torch.optim import Optimizer
    from typing_extensions import Self

    from lt_core.callback import Callback
    from lt_core.metrics.slot import NamedValues
    from lt_core.metrics.store import MetricStore
    from lt_core.optim.wrapper import LightningOptimizer
    from lt_core.trainer import Trainer

__all__ = ["LightningModule"]

# What belongs to a running trainer, and never goes into a pickle or a copy.
_RUN_STATE = ("_trainer_ref", "_metrics", "_device_mesh", "_toggled", "_exporting")

# What torch.compile must step over: it computes nothing, and tracing it would compile anew for each name.
_UNTRACED = ("log", "log_dict", "print")


@declares_hooks
class LightningModule(ModuleHooks, HyperparametersMixin, nn.Module):
    """Model with its loss and its optimizer: a torch module that the Trainer trains.

    Write ``training_step`` and ``configure_optimizers``; the Trainer calls them. All else is
    optional. ``__init__`` is cooperative: ``class Net(LightningModule, nn.Sequential)`` works.

    Attributes:
        automatic_optimization: Whether the Trainer runs backward, clips, steps and clears
            gradients. Set False to do so in ``training_step``.
        example_input_array: An input of ``forward`` for the summary, graph and export: a tensor,
            or a tuple or dict of arguments.
        strict_loading: Whether a checkpoint's weights must be exactly those of the module.
    """

    #: Key of a checkpoint that holds the hyper-parameters.
    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "hyper_parameters"
    #: Key that holds which argument was saved as a whole.
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "hparams_name"
    #: Key that holds what kind of container they were.
    CHECKPOINT_HYPER_PARAMS_TYPE: ClassVar[str] = "hparams_type"

    # TorchScript compiles all properties but these, which are for Python only.
    __jit_unused_properties__: ClassVar[list[str]] = [
        *("current_epoch", "device", "device_mesh", "dtype", "global_rank", "global_step", "hparams"),
        *("hparams_initial", "local_rank", "logger", "loggers", "on_gpu", "trainer"),
    ]

    # It also wants to know the types of annotated attributes, which ours are not for.
    __jit_ignored_attributes__: ClassVar[list[str]] = [
        *("allow_zero_length_dataloader_with_multiple_devices", "automatic_optimization", "example_input_array"),
        *("prepare_data_per_node", "strict_loading", "_device", "_device_mesh", "_dtype", "_exporting", "_hparams"),
        *("_hparams_initial", "_hparams_name", "_log_hyperparams", "_metrics", "_toggled", "_warned_of_softened"),
        "_trainer_ref",
    ]

    # Defaults on the class: reading them before __init__ works, and never falls into nn.Module.__getattr__.
    automatic_optimization: bool = True
    example_input_array: Any = None
    strict_loading: bool = True
    _trainer_ref: weakref.ref[Trainer] | None = None
    _metrics: MetricStore | None = None
    _device: torch.device | None = None
    _dtype: torch.dtype | None = None
    _device_mesh: Any = None
    _toggled: list[tuple[Parameter, bool]] | None = None
    _exporting: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    # ------------------------------------------------------------ steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of a batch.

        Called by position with ``(batch, batch_idx)``, or ``(batch)`` if it takes one argument.

        Returns:
            Under automatic optimization the loss (a scalar tensor with a graph), a dict with it
            under ``"loss"``, or None to skip the batch; else anything of these, or nothing.
        """
        raise missing(self, "training_step", "self, batch, batch_idx")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch of the validation data.

        Called by position with ``(batch, batch_idx)``, and ``dataloader_idx`` if it takes it;
        with several loaders it must.

        Returns:
            Anything; ``on_validation_batch_end`` gets it.
        """
        raise missing(self, "validation_step", "self, batch, batch_idx")

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch of the test data; called like ``validation_step``.

        Returns:
            Anything; ``on_test_batch_end`` gets it.
        """
        raise missing(self, "test_step", "self, batch, batch_idx")

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict a batch: by default ``self(batch)``; called like ``validation_step``.

        Returns:
            What ``Trainer.predict`` collects.
        """
        return self(args[0] if args else kwargs["batch"])

    # ------------------------------------------------------------ what the Trainer asks for

    def configure_optimizers(self) -> Any:
        """Return what trains the parameters.

        Returns:
            An optimizer; a list of them; ``([optimizers], [schedulers])``; a dict with
            ``"optimizer"`` and maybe ``"lr_scheduler"`` (a scheduler, or a dict with
            ``"scheduler"``, ``"interval"``, ``"frequency"``, ``"monitor"``, ``"strict"``,
            ``"name"``); a list of such dicts; or None to train without optimizer.
        """
        raise missing(self, "configure_optimizers")

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Return callbacks of the module's own; each replaces the trainer's of the same type."""
        return []

    def configure_model(self) -> None:
        """Create large layers here rather than in ``__init__``: on their device, in their precision.

        Called before each fit, validate, test and predict and by ``load_from_checkpoint``, so do
        nothing if the layers exist.
        """

    def configure_sharded_model(self) -> None:
        """Create large layers; the old name of ``configure_model``."""

    # ------------------------------------------------------------ what automatic optimization calls

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass; override it for one of your own.

        Args:
            loss: The loss, divided by the size of the accumulation window.
            args: What was given to ``manual_backward`` besides.
            kwargs: The same, by name.
        """
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step an optimizer; an override must step with the closure, or nothing is computed.

        Args:
            epoch: The running epoch.
            batch_idx: The batch's place in it.
            optimizer: The wrapped optimizer.
            optimizer_closure: Runs training_step, zero_grad and backward.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear gradients.

        Args:
            epoch: The running epoch.
            batch_idx: The batch's place in it.
            optimizer: Whose gradients.
        """
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a learning-rate scheduler.

        Args:
            scheduler: What ``configure_optimizers`` returned.
            metric: The monitored value, or None for a scheduler without one.
        """
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients before a step; override it for a rule of your own.

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: The Trainer's value.
            gradient_clip_algorithm: The Trainer's algorithm.
        """
        self.clip_gradients(
            optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
        )

    def clip_gradients(
        self,
        optimizer: Optimizer | LightningOptimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of an optimizer's parameters; under manual optimization call it yourself.

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: The bound; the Trainer's if None; none at 0.
            gradient_clip_algorithm: ``"norm"`` or ``"value"``; the Trainer's, else ``"norm"``, if None.

        Raises:
            MisconfigurationException: If a value differs from the Trainer's, or is unknown.
        """
        trainer = self.trainer
        value = _agreed("gradient_clip_val", gradient_clip_val, trainer.gradient_clip_val)
        algorithm = _agreed("gradient_clip_algorithm", gradient_clip_algorithm, trainer.gradient_clip_algorithm)
        if not isinstance(algorithm, (str, type(None))) or (algorithm or "norm").lower() not in {"norm", "value"}:
            raise MisconfigurationException(
                "LightningModule.clip_gradients: gradient_clip_algorithm must be one of norm, value. "
                f'Got {gradient_clip_algorithm!r}. Write gradient_clip_algorithm="norm".'
            )
        self._run("clip_gradients").clip(optimizer, value, (algorithm or "norm").lower())

    # ------------------------------------------------------------ logging and printing

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record a value under a name.

        Args:
            name: The name; with several evaluation loaders the loader's is appended.
            value: A number, a tensor of one element, or a metric object.
            prog_bar: Whether the progress bar shows it.
            logger: Whether loggers get it; None means yes.
            on_step: Whether each step's value counts; None means as the hook has it: yes in
                training steps, no elsewhere.
            on_epoch: Whether the value is reduced over the epoch; None means as the hook has it.
            reduce_fx: ``"mean"`` (weighted by batch size), ``"sum"``, ``"min"`` or ``"max"``.
            enable_graph: Whether to keep the graph of the value.
            sync_dist: Whether to reduce over all processes: a step's value after each training step, at a cost of two
                exchanges for all of them, an epoch's at its end.
            sync_dist_group: The process group to do so in.
            add_dataloader_idx: Whether the loader's name may be appended.
            batch_size: The weight of the mean; found in the batch if None.
            metric_attribute: Taken for compatibility; a metric object is found without it.
            rank_zero_only: Whether only rank 0 logs it.

        Raises:
            MisconfigurationException: Where logging has no meaning, such as in ``setup``.
            ValueError: If the value is not a single number.
            TypeError: If the name is not a string.
        """
        store = self._metrics or self._parent_store(name)
        if store is None:
            return
        options = (
            prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
            add_dataloader_idx, metric_attribute, rank_zero_only,
        )  # fmt: skip
        store.add(name, value, options, batch_size)

    def log_dict(
        self,
        dictionary: NamedValues,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record several values under their names.

        Args:
            dictionary: Values by name, or a collection of metric objects.
            prog_bar: As for ``log``.
            logger: As for ``log``.
            on_step: As for ``log``.
            on_epoch: As for ``log``.
            reduce_fx: As for ``log``.
            enable_graph: As for ``log``.
            sync_dist: As for ``log``.
            sync_dist_group: As for ``log``.
            add_dataloader_idx: As for ``log``.
            batch_size: As for ``log``.
            rank_zero_only: As for ``log``.
        """
        store = self._metrics or self._parent_store(", ".join(str(name) for name, _ in dictionary.items()))
        if store is None:
            return
        options = (
            prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
            add_dataloader_idx, None, rank_zero_only,
        )  # fmt: skip
        for name, value in dictionary.items():
            store.add(name, value, options, batch_size)

    def _parent_store(self, name: str) -> MetricStore | None:
        """Return the store of the running module that this one is a part of, or warn that there is none."""
        trainer = self._trainer_or_none()
        root: LightningModule | None = None if trainer is None else trainer.lightning_module
        if root is not None and root is not self and root._metrics is not None:
            return root._metrics
        warn(f"self.log({name!r}): no trainer is running this module, so nothing is logged.")
        return None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0, without disturbing the progress bar.

        Args:
            args: What to print.
            kwargs: As for the built-in ``print``.
        """
        trainer = self._trainer_or_none()
        write = print if trainer is None else trainer.print
        write(*args, **kwargs)

    # ------------------------------------------------------------ manual optimization

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return the optimizer, or the list of several.

        Args:
            use_pl_optimizer: Whether to return them wrapped, so that a step runs the hooks and
                the precision; else as ``configure_optimizers`` returned them.
        """
        run = self._run("optimizers")
        found = run.lightning_optimizers if use_pl_optimizer else run.optimizers
        return found[0] if len(found) == 1 else list(found)

    def lr_schedulers(self) -> Any:
        """Return the scheduler, the list of several, or None."""
        found = [config.scheduler for config in self._run("lr_schedulers").schedulers]
        return found[0] if len(found) == 1 else found or None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass under manual optimization, with its hooks, precision and strategy.

        Args:
            loss: A scalar tensor with a graph.
            args: Given to ``loss.backward``.
            kwargs: Given to ``loss.backward``.

        Raises:
            MisconfigurationException: Under automatic optimization.
        """
        run = self._run("manual_backward")
        if self.automatic_optimization:
            raise MisconfigurationException(
                "LightningModule.manual_backward: the Trainer runs backward under automatic optimization. "
                "Set self.automatic_optimization = False in __init__, or only return the loss."
            )
        if not isinstance(loss, Tensor):
            raise MisconfigurationException(
                f"LightningModule.manual_backward: the loss must be a tensor. Got {type(loss).__name__}."
            )
        run.loop.fit.manual_backward(loss, *args, **kwargs)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Return a context for backward passes whose gradients ranks need not exchange yet.

        It is that of ``trainer.strategy.block_backward_sync``, under the name that ``trainer.model`` has elsewhere.
        """
        strategy: Any = self._run("no_sync").strategy
        found: AbstractContextManager[Any] = strategy.block_backward_sync()
        return found

    def toggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Let only this optimizer's parameters require gradients, until ``untoggle_optimizer``.

        Args:
            optimizer: One of ``self.optimizers()``.
        """
        self._restore_toggled()
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        groups = [group for each in self._run("optimizers").optimizers for group in each.param_groups]
        others = {id(p): p for group in groups for p in group["params"] if id(p) not in mine}
        self._toggled = [(p, p.requires_grad) for p in others.values()]
        for p in others.values():
            p.requires_grad_(False)

    def untoggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Undo ``toggle_optimizer``.

        Args:
            optimizer: The one that was toggled.
        """
        self._restore_toggled()

    @contextmanager
    def toggled_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> Generator[None, None, None]:
        """Return a context in which only this optimizer's parameters require gradients.

        Args:
            optimizer: One of ``self.optimizers()``.
        """
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    def _restore_toggled(self) -> None:
        for p, required in self._toggled or ():
            p.requires_grad_(required)
        self._toggled = None

    # ------------------------------------------------------------ the whole module

    def freeze(self) -> Self:
        """Stop all gradients and switch to evaluation mode; returns the module."""
        for p in self.parameters():
            p.requires_grad_(False)
        return self.eval()

    def unfreeze(self) -> Self:
        """Let all parameters require gradients and switch to training mode; returns the module."""
        for p in self.parameters():
            p.requires_grad_(True)
        return self.train()

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Gather tensors of all processes; every process must call it.

        Args:
            data: A tensor or number, or a dict, list or tuple of them at any depth.
            group: The process group; all that get different data if None.
            sync_grads: Whether gradients flow back to the processes.

        Returns:
            The same structure; with several processes each tensor has a new first dimension
            of their number.
        """
        from lt_core.data.nested import apply_to_collection

        collectives = self._run("all_gather").collectives
        device = self.device

        def gather(x: Any) -> Any:
            x = torch.as_tensor(x, device=device)
            return collectives.all_gather(x, "data" if group is None else group, sync_grads)

        return apply_to_collection(data, (Tensor, int, float), gather)

    def to_onnx(
        self, file_path: str | PathLike[str] | Any | None = None, input_sample: Any = None, **kwargs: Any
    ) -> Any:
        """Export ``forward`` to ONNX, in evaluation mode.

        Args:
            file_path: Where to write; None to get torch's program object only.
            input_sample: Arguments of ``forward``; ``example_input_array`` if None.
            kwargs: Given to ``torch.onnx.export``.

        Returns:
            What ``torch.onnx.export`` returns.

        Raises:
            ConfigError: If there is no input, or ONNX is not installed.
        """
        from lt_core.model.export import to_onnx

        return to_onnx(self, file_path, input_sample, **kwargs)

    def to_torchscript(
        self,
        file_path: str | PathLike[str] | None = None,
        method: str = "script",
        example_inputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Compile ``forward`` to TorchScript, in evaluation mode; torch itself advises against it by now.

        Args:
            file_path: Where to write it too, if given.
            method: ``"script"`` or ``"trace"``.
            example_inputs: Arguments of ``forward`` to trace; ``example_input_array`` if None.
            kwargs: Given to ``torch.jit.script`` or ``torch.jit.trace``.

        Returns:
            The scripted module.

        Raises:
            ConfigError: If there is no input to trace, or no such method.
        """
        from lt_core.model.export import to_torchscript

        return to_torchscript(self, file_path, method, example_inputs, **kwargs)

    @not_on_instances
    def load_from_checkpoint(
        cls,  # noqa: N805 - ruff does not know the decorator
        checkpoint_path: str | PathLike[str],
        map_location: Any = None,
        hparams_file: str | PathLike[str] | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build a module from a checkpoint: hyper-parameters to ``__init__``, then the weights.

        No code runs but your class's own: nothing in the file is imported or executed, unless you consent to it.

        Args:
            checkpoint_path: The file.
            map_location: Where to put the weights, as for ``torch.load``.
            hparams_file: A .yaml or .csv file of hyper-parameters, used instead of the checkpoint's.
            strict: Whether names of weights must match; ``self.strict_loading`` if None.
            weights_only: False consents to make the objects that a file of ``torch.save`` holds, which runs what it
                says; our own files hold none.
            kwargs: Arguments of ``__init__``, which take precedence over the saved ones. Classes, functions
                and objects are not kept in a file and must be given here.

        Returns:
            The module, in training mode.

        Raises:
            CheckpointError: If the file or its weights do not fit, or an argument is missing.
            ValueError: If ``strict`` contradicts the module's own ``strict_loading``.
        """
        trusted = weights_only is False
        return cast("Self", load_module(cls, checkpoint_path, map_location, hparams_file, strict, trusted, kwargs))

    def _keep_logging_out_of_graphs(self) -> None:
        """Hide logging from ``torch.compile``; called when compiled steps are about to run, as it costs a call."""
        for module in self.modules():
            if isinstance(module, LightningModule):
                for name in _UNTRACED:
                    if name not in vars(module):
                        vars(module)[name] = torch.compiler.disable(getattr(module, name))  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------ the trainer, and what it knows

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this module; held weakly.

        Raises:
            RuntimeError: If there is none.
        """
        trainer = self._trainer_or_none()
        if trainer is None and not self._exporting:  # TorchScript reads every attribute
            raise RuntimeError(
                f"{type(self).__name__}.trainer: no trainer is attached. "
                "It is there while fit, validate, test or predict runs, and after it."
            )
        return cast("Trainer", trainer)

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        ref = None if trainer is None else weakref.ref(trainer)
        for module in self.modules():
            if isinstance(module, LightningModule):
                module._trainer_ref = ref

    def _trainer_or_none(self) -> Trainer | None:
        return None if self._trainer_ref is None else self._trainer_ref()

    def _run(self, caller: str) -> Any:
        """Return the parts of the running trainer."""
        run = self.trainer._run
        if run is None:
            raise RuntimeError(f"LightningModule.{caller}: it works only while fit, validate, test or predict runs.")
        return run

    @property
    def device(self) -> torch.device:
        """The device of the module's first tensor; of the last move, if it has none."""
        tensor = self._first_tensor()
        return (self._device or torch.device("cpu")) if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the module's first floating-point tensor, unless set to another."""
        if self._dtype is not None:
            return self._dtype
        tensor = self._first_tensor(floating=True)
        return torch.get_default_dtype() if tensor is None else tensor.dtype

    @dtype.setter
    def dtype(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def _first_tensor(self, floating: bool = False) -> Tensor | None:
        tensors = (t for m in self.modules() for group in (m._parameters, m._buffers) for t in group.values())
        return next((t for t in tensors if t is not None and (not floating or t.is_floating_point())), None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every move and conversion passes here. A module without tensors learns from a probe where it is.
        bare = self._first_tensor() is None
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.device)) if bare else None
        module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._device = None if probe is None else probe.device
        self._dtype = None if probe is None else probe.dtype
        return cast("Self", module)

    @property
    def on_gpu(self) -> bool:
        """Whether the module is on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def device_mesh(self) -> Any:
        """The mesh of devices, with strategies that have one; else None."""
        return self._device_mesh

    @property
    def current_epoch(self) -> int:
        """The number of completed epochs; 0 without a trainer."""
        trainer = self._trainer_or_none()
        return 0 if trainer is None else trainer.current_epoch

    @property
    def global_step(self) -> int:
        """The number of batches in which an optimizer stepped; 0 without a trainer."""
        trainer = self._trainer_or_none()
        return 0 if trainer is None else trainer.global_step

    @property
    def global_rank(self) -> int:
        """This process's place among all; 0 without a trainer."""
        trainer = self._trainer_or_none()
        return 0 if trainer is None else trainer.global_rank

    @property
    def local_rank(self) -> int:
        """This process's place on its node; 0 without a trainer."""
        trainer = self._trainer_or_none()
        return 0 if trainer is None else trainer.local_rank

    @property
    def logger(self) -> Any:
        """The trainer's first logger, or None; ``log_image``, ``log_figure`` and their like reach every logger."""
        trainer = self._trainer_or_none()
        return None if trainer is None or not trainer.loggers else shown_to_all(trainer)

    @property
    def loggers(self) -> list[Any]:
        """The trainer's loggers."""
        trainer = self._trainer_or_none()
        return [] if trainer is None else trainer.loggers

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().items()  # type: ignore[no-untyped-call]
        hidden = [name for name in _UNTRACED if hasattr(vars(self).get(name), "_torchdynamo_disable")]
        return {name: value for name, value in state if name not in _RUN_STATE and name not in hidden}


def _agreed(name: str, given: Any, trainers: Any) -> Any:
    """Return the one value that the call and the Trainer agree on."""
    if given is None:
        return trainers
    a, b = (v.lower() if isinstance(v, str) else v for v in (given, trainers))
    if b is not None and a != b:
        raise MisconfigurationException(
            f"LightningModule.clip_gradients: {name} is specified in both places. Got {given!r} here "
            f"and {trainers!r} in the Trainer. Leave it out of one of them."
        )
    return given
