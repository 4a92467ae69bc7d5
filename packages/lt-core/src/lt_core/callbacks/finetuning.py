"""Freeze layers before training, and train them from a later epoch on, in parameter groups of their own.

What a checkpoint keeps of it are names: which parameters are trained, and which each group holds. A resumed run has
these before the optimizers' states are loaded, so that it may begin anywhere in training.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lt_core.callback import Callback
from lt_core.checkpoint.format.signature import plain_name
from lt_core.config.parsers import is_whole
from lt_core.hooks.table import layer_hooks
from lt_core.notices import info, warn
from lt_core.optim.states import parameter_names, regroup
from lt_interface.errors import ConfigError, Problem, nearest, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["BackboneFinetuning", "BaseFinetuning", "multiplicative"]

Modules = nn.Module | Iterable[Any]


def multiplicative(epoch: int) -> float:
    """Return by what a learning rate is multiplied in an epoch: always 2."""
    return 2.0


class BaseFinetuning(Callback):
    """Base class of callbacks that freeze layers before training and unfreeze them on the way.

    Subclasses freeze in ``freeze_before_training`` and unfreeze in ``finetune_function``, which runs for each optimizer
    at each epoch's start. Optimizers need not hold what is frozen: `unfreeze_and_add_param_group` gives it to them, and
    learning-rate schedulers go on with the groups that are added.

    Example:
        >>> class HeadFirst(BaseFinetuning):
        ...     def freeze_before_training(self, pl_module):
        ...         self.freeze(pl_module.body)
        ...     def finetune_function(self, pl_module, epoch, optimizer):
        ...         if epoch == 5:
        ...             self.unfreeze_and_add_param_group(pl_module.body, optimizer)
        >>> layer = nn.Linear(2, 2)
        >>> HeadFirst.freeze(layer)
        >>> layer.weight.requires_grad
        False
    """

    _live: tuple[LightningModule, list[Optimizer]] | None = None  # while a fit runs
    _state: dict[str, Any] | None = None

    @abstractmethod
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what is not trained from the beginning; called before the optimizers are made.

        Args:
            pl_module: The module.
        """
        raise NotImplementedError(f"{type(self).__name__}.freeze_before_training: write it, with self.freeze(layers).")

    @abstractmethod
    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze what is trained from this epoch on; called at each epoch's start, for each optimizer.

        Args:
            pl_module: The module.
            epoch: The epoch, counted from 0.
            optimizer: One of the optimizers.
        """
        raise NotImplementedError(f"{type(self).__name__}.finetune_function: write it, to unfreeze layers.")

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """Return the layers in modules: those without parts, and those with parameters of their own.

        Args:
            modules: A module, or a nested collection of them.

        Raises:
            ConfigError: If something in it is no module.
        """
        if isinstance(modules, nn.Module) and not isinstance(modules, (nn.ModuleDict, nn.ModuleList)):
            return [part for part in modules.modules() if part._parameters or not any(part.children())]
        if isinstance(modules, (str, Tensor)) or not isinstance(modules, Iterable):
            where, rule = "BaseFinetuning(modules)", "what is frozen or unfrozen must be modules"
            raise ConfigError(Problem(where, rule, repr(modules), "Pass the layer itself: pl_module.layer."))
        inner = modules.values() if isinstance(modules, (Mapping, nn.ModuleDict)) else modules
        return [part for each in inner for part in BaseFinetuning.flatten_modules(each)]

    @staticmethod
    def filter_params(
        modules: Modules, train_bn: bool = True, requires_grad: bool = True
    ) -> Generator[nn.Parameter, None, None]:
        """Yield the parameters of modules that are trained, or those that are not.

        Args:
            modules: A module, or a nested collection of them.
            train_bn: Whether those of BatchNorm layers are among them.
            requires_grad: Which ones.
        """
        for part in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(part, _BatchNorm):
                yield from (p for p in part.parameters(recurse=False) if p.requires_grad is requires_grad)

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Train all parameters of modules.

        Args:
            modules: A module, or a nested collection of them.
        """
        for part in BaseFinetuning.flatten_modules(modules):
            _set(part, True)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Train none of the parameters that a layer itself has, nor the statistics of a BatchNorm layer.

        Args:
            module: The layer.
        """
        _set(module, False)

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Train no parameter of modules.

        Args:
            modules: A module, or a nested collection of them.
            train_bn: Whether BatchNorm layers are still trained.
        """
        for part in BaseFinetuning.flatten_modules(modules):
            _set(part, train_bn and isinstance(part, _BatchNorm))

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Return those parameters that an optimizer does not hold; warn of others.

        Args:
            optimizer: The optimizer.
            params: The parameters.
        """
        given, held = list(params), {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = [p for p in given if id(p) not in held]
        if len(new) < len(given):
            warn(
                f"BaseFinetuning: the {type(optimizer).__name__} holds {len(given) - len(new)} of these parameters "
                "already; they stay in their groups. Give it trainable ones: filter(lambda p: p.requires_grad, ...)."
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Train modules, and give the optimizer a group with those of their parameters that it does not hold.

        Args:
            modules: A module, or a nested collection of them.
            optimizer: The optimizer.
            lr: The group's learning rate; None means that of the first group over ``initial_denom_lr``.
            initial_denom_lr: By what that is divided.
            train_bn: Whether BatchNorm layers are trained, too, and their parameters belong to the group.
        """
        before = {id(p) for p in BaseFinetuning.filter_params(modules, train_bn)}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for part in BaseFinetuning.flatten_modules(modules):
            _set(part, train_bn or not isinstance(part, _BatchNorm))
        # What was trained all the time, as BatchNorm layers, stays where it is.
        params = [p for p in BaseFinetuning.filter_params(modules, train_bn) if id(p) not in before & held]
        new = BaseFinetuning.filter_on_optimizer(optimizer, params)
        if new:
            rate = float(optimizer.param_groups[0]["lr"]) / initial_denom_lr if lr is None else float(lr)
            number = len(optimizer.param_groups)
            named = [(f"{number}.{i}", p) for i, p in enumerate(new)]  # where the optimizer was given names, too
            optimizer.add_param_group(
                {"params": named if "param_names" in optimizer.param_groups[0] else new, "lr": rate}
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze what is not trained from the beginning; layers of configure_model are there only at the fit's start.

        Raises:
            ConfigError: If a layer is missing.
        """
        if stage == "fit" and not layer_hooks(pl_module):
            with _layers_of(self, pl_module):
                self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the groups of a checkpoint or of an earlier fit.

        Raises:
            ConfigError: If a layer is missing.
        """
        if layer_hooks(pl_module):
            self._freeze_late(trainer, pl_module)
        state, self._state = self._state, None
        if state is not None and trainer.global_step:
            self._restore(trainer, pl_module, state)
        self._live = pl_module, trainer.optimizers

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unfreeze what is trained from this epoch on.

        Raises:
            ConfigError: If a layer is missing.
        """
        before = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        with _layers_of(self, pl_module):
            for optimizer in trainer.optimizers:
                self.finetune_function(pl_module, trainer.current_epoch, optimizer)
        self._extend(trainer, before)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the names that another fit goes on with."""
        if self._live is not None:
            self._state, self._live = self._names(), None

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the parameters that are trained, and those of each optimizer's groups."""
        names = self._names()
        return {} if names is None else {"finetuning": names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._state = state_dict.get("finetuning")

    def _names(self) -> dict[str, Any] | None:
        if self._live is None:
            return self._state
        module, optimizers = self._live
        names = parameter_names(module)
        groups = [[_named(group, names) for group in optimizer.param_groups] for optimizer in optimizers]
        trainable = [plain_name(name) for name, p in module.named_parameters() if p.requires_grad]
        return {"groups": groups, "trainable": trainable, "statistics": [name for name, _ in _counting(module)]}

    def _restore(self, trainer: Trainer, module: LightningModule, state: Mapping[str, Any]) -> None:
        """Train what was trained, and give the optimizers the groups that they had."""
        known = set(parameter_names(module).values())
        trainable, counting = set(_as_now(state["trainable"], known)), set(state["statistics"])
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(plain_name(name) in trainable)
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm):
                layer.track_running_stats = plain_name(name) in counting
        before = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        named = [[{**group, "params": _as_now(group["params"], known)} for group in each] for each in state["groups"]]
        regroup(module, trainer.optimizers, [{"param_groups": groups} for groups in named])
        self._extend(trainer, before)

    def _freeze_late(self, trainer: Trainer, module: LightningModule) -> None:
        """Freeze layers that exist only now, and take them out of the optimizers, as if these had come later."""
        trained = {id(p) for p in module.parameters() if p.requires_grad}
        with _layers_of(self, module):
            self.freeze_before_training(module)
        frozen = trained - {id(p) for p in module.parameters() if p.requires_grad}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in frozen]
            kept = [group for group in optimizer.param_groups if group["params"]]
            if kept:
                optimizer.param_groups[:] = kept

    def _extend(self, trainer: Trainer, before: Sequence[int]) -> None:
        """Let the schedulers go on with groups that were added, at the ratio to the first group that they have now."""
        for optimizer, number in zip(trainer.optimizers, before, strict=True):
            for group in optimizer.param_groups[number:]:
                _join(optimizer.param_groups[0], group)
                for config in trainer.lr_scheduler_configs:
                    if getattr(config.scheduler, "optimizer", None) is optimizer:
                        _add_to(config.scheduler, optimizer.param_groups[0], group)


def _named(group: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Return a group's plain options, and the names of its parameters."""
    options = {
        key: value for key, value in group.items() if value is None or isinstance(value, (bool, int, float, str))
    }
    return {**options, "params": [names[id(p)] for p in group["params"] if id(p) in names]}


def _as_now(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the names that parameters have now: those that are pruned have a longer one."""
    forms = ((name, f"{name}_orig", name.removesuffix("_orig")) for name in names)
    return [next((form for form in each if form in known), each[0]) for each in forms]


def _set(layer: nn.Module, trained: bool) -> None:
    if isinstance(layer, _BatchNorm):
        layer.track_running_stats = trained
    for parameter in layer.parameters(recurse=False):
        parameter.requires_grad_(trained)


def _counting(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the BatchNorm layers that keep statistics, by their names."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            yield plain_name(name), layer


def _ratio(first: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    """Return a group's learning rate over the first group's; 1 where that says nothing."""
    return float(group["lr"]) / float(first["lr"]) if float(first["lr"]) else 1.0


def _join(first: Mapping[str, Any], group: dict[str, Any]) -> None:
    """Give a group what a scheduler keeps in the groups themselves."""
    for key in first.keys() - group.keys() - {"name"}:
        group[key] = first[key] * _ratio(first, group) if key.endswith("_lr") else first[key]


def _add_to(scheduler: Any, first: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """Add a group to the lists that a scheduler keeps by group, and to those of the schedulers in it."""
    for inner in getattr(scheduler, "_schedulers", ()):
        _add_to(inner, first, group)
    for key in ("base_lrs", "max_lrs", "min_lrs", "_last_lr"):
        if isinstance(listed := getattr(scheduler, key, None), list) and listed:
            listed.append(listed[0] * _ratio(first, group))
    for key in ("lr_lambdas", "base_momentums", "max_momentums"):
        if isinstance(listed := getattr(scheduler, key, None), list) and listed:
            listed.append(listed[0])


@contextmanager
def _layers_of(callback: BaseFinetuning, module: nn.Module) -> Iterator[None]:
    """Explain an AttributeError of a layer that the module does not have.

    Raises:
        ConfigError: If there was one.
    """
    try:
        yield
    except AttributeError as error:
        found = re.match(rf"'{type(module).__name__}' object has no attribute '(\w+)'", str(error))
        if found is None:
            raise
        raise ConfigError(_missing(callback, module, found[1])) from error


def _missing(callback: BaseFinetuning, module: nn.Module, name: str) -> Problem:
    layers = [layer for layer, _ in module.named_children()]
    near = nearest(name, layers)
    fix = f"{near} It has: {', '.join(layers)}.".strip() if layers else "It has no layers."
    return Problem(f"{type(callback).__name__}", f"{type(module).__name__} must have the layer {name!r}", fix=fix)


class BackboneFinetuning(BaseFinetuning):
    """Callback that trains the module's ``backbone`` from a later epoch on, with a learning rate that rises.

    Args:
        unfreeze_backbone_at_epoch: The epoch from which on the backbone is trained.
        lambda_func: Returns by what its learning rate is multiplied in an epoch.
        backbone_initial_ratio_lr: Its first learning rate over that of the optimizer's first group.
        backbone_initial_lr: Its first learning rate, in the place of a ratio.
        should_align: Whether its learning rate stays at that of the first group once it would be more.
        initial_denom_lr: Of no effect here, where the first learning rate is given or a ratio.
        train_bn: Whether its BatchNorm layers are trained: before, too, and in its group.
        verbose: Whether the learning rates of both are reported at each epoch.
        rounding: To how many places.

    Raises:
        ConfigError: If an argument is out of range; all problems at once.

    Example:
        >>> BackboneFinetuning(unfreeze_backbone_at_epoch=3, backbone_initial_lr=1e-4).unfreeze_backbone_at_epoch
        3
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        name, problems, at = type(self).__name__, list[Problem](), unfreeze_backbone_at_epoch
        if not is_whole(at) or at < 0:
            where, fix = f"{name}(unfreeze_backbone_at_epoch={at!r})", "Write unfreeze_backbone_at_epoch=10."
            problems.append(Problem(where, "this must be an integer of at least 0", fix=fix))
        if not callable(lambda_func):
            where = f"{name}(lambda_func={lambda_func!r})"
            problems.append(Problem(where, "this must be a function of the epoch", fix="Write lambda epoch: 2."))
        rates = {"backbone_initial_ratio_lr": backbone_initial_ratio_lr, "initial_denom_lr": initial_denom_lr}
        rates |= {} if backbone_initial_lr is None else {"backbone_initial_lr": backbone_initial_lr}
        for key, rate in rates.items():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0:
                problems.append(
                    Problem(f"{name}({key}={rate!r})", "this must be a positive number", fix=f"Write {key}=0.1.")
                )
        raise_problems(problems)
        self.unfreeze_backbone_at_epoch, self.lambda_func = at, lambda_func
        self.backbone_initial_ratio_lr, self.backbone_initial_lr = backbone_initial_ratio_lr, backbone_initial_lr
        self.should_align, self.initial_denom_lr, self.train_bn = should_align, initial_denom_lr, train_bn
        self.verbose, self.rounding = verbose, rounding
        self.previous_backbone_lr: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the names of what is trained, and the backbone's learning rate."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        super().load_state_dict(state_dict)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze the backbone.

        Raises:
            ConfigError: If the module has none.
        """
        if not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise ConfigError(_missing(self, pl_module, "backbone"))
        self.freeze(pl_module.backbone, train_bn=self.train_bn)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze the backbone at its epoch, and raise its learning rate afterwards."""
        backbone: Any = pl_module.backbone
        first = float(optimizer.param_groups[0]["lr"])
        if epoch == self.unfreeze_backbone_at_epoch:
            given = self.backbone_initial_lr
            rate = first * self.backbone_initial_ratio_lr if given is None else given
            self.unfreeze_and_add_param_group(backbone, optimizer, rate, self.initial_denom_lr, self.train_bn)
        elif epoch > self.unfreeze_backbone_at_epoch and self.previous_backbone_lr is not None:
            rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            rate = first if self.should_align and rate > first else rate
            group, own = optimizer.param_groups[-1], {id(p) for p in backbone.parameters()}
            if all(id(p) in own for p in group["params"]):  # else the optimizer had the backbone from the beginning
                group["lr"] = rate
        else:
            return
        self.previous_backbone_lr = rate
        if self.verbose:
            now, other = round(first, self.rounding), round(rate, self.rounding)
            info(f"{type(self).__name__}: in epoch {epoch} the learning rate is {now}, that of the backbone {other}.")
