"""Keep an average of the weights beside those that are trained.

The average is torch's `AveragedModel` of all parameters and buffers by their names, made when it is first updated. Of
the module itself nothing is copied, so that it may hold what cannot be, and names of layers never change. While the
average stands in the module, for a validation or since training has ended, the trained values are kept aside: files
and later fits go on with them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lt_core.callback import Callback
from lt_core.checkpoint.format.signature import plain_name
from lt_core.checkpoint.weights import load_weights
from lt_core.config.parsers import is_whole
from lt_core.notices import warn
from lt_core.state.progress import TrainerFn
from lt_interface.errors import Problem, nearest, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["Averager", "EMAWeightAveraging", "WeightAveraging"]

_OPTIONS = ("avg_fn", "multi_avg_fn")
_PREFIX = "module."


def _names(module: nn.Module) -> dict[str, str]:
    """Return the name in the average of each parameter and buffer, by its plain names: tied ones share one."""
    first: dict[int, str] = {}
    return {
        plain_name(name): first.setdefault(id(tensor), plain_name(name))
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(remove_duplicate=False)
    }


def _over(state: Any, names: Mapping[str, str], values: Mapping[str, Tensor]) -> Any:
    """Return a copy of a state with other values under the names that these have."""
    changed = copy.copy(state)  # with its metadata
    changed.update({name: values[names[name]] for name in state if names.get(name) in values})
    return changed


def _ema(decay: float, averages: list[Tensor], current: list[Tensor], number: Any) -> None:
    """Move averages towards the current values, as torch's ``get_ema_multi_avg_fn``, whose function cannot travel."""
    if averages[0].is_floating_point() or averages[0].is_complex():
        torch._foreach_lerp_(averages, current, 1 - decay)
    else:
        for average, value in zip(averages, current, strict=True):
            average.copy_(average * decay + value * (1 - decay))


def _mean(averages: list[Tensor], current: list[Tensor], number: Any) -> None:
    """Let all values weigh the same: as torch's default, which takes one parameter after the other on a CPU."""
    count = int(number) + 1
    if averages[0].is_floating_point() or averages[0].is_complex():
        steps = torch._foreach_sub(current, averages)
        torch._foreach_div_(steps, count)
        torch._foreach_add_(averages, steps)
    else:
        for average, value in zip(averages, current, strict=True):
            average.copy_(average + (value - average) / count)


class Averager(Callback):
    """Base of the callbacks that keep an average of the weights; a trainer takes one of them.

    Args:
        device: Where the average lies; None where the module does.
        use_buffers: Whether buffers are averaged too; else those of the module count.
        **options: ``avg_fn`` or ``multi_avg_fn`` of torch's `AveragedModel`.
    """

    def __init__(self, device: Any, use_buffers: bool, **options: Any) -> None:
        self._device, self._use_buffers, self._options = device, use_buffers, options
        self._source = nn.Module()
        self._average: AveragedModel | None = None
        self._raw: dict[str, Tensor] | None = None  # the trained values, while the module holds the average
        self._ended = False
        self._kept: dict[str, Any] | None = None  # of a fit that is over: its average, and the trained values

    def _problems(self, trainer: Trainer) -> list[Problem]:
        """Return what is wrong with this callback in a trainer's fit."""
        name, problems = type(self).__name__, []
        several = [type(one).__name__ for one in trainer.callbacks if isinstance(one, Averager)]
        if len(several) > 1:
            fix = "Keep one of them."
            problems.append(Problem(name, "one callback averages the weights", " and ".join(several), fix))
        if trainer.strategy.collective_weights:
            rule, got = "the weights must lie on each rank as a whole", f"strategy {trainer.strategy.name!r}"
            problems.append(Problem(name, rule, got, 'Use strategy="ddp".'))
        try:
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as error:  # torch's answers to a device that is none, or is not there
            rule, got = "the average needs a device of this machine", str(error).splitlines()[0]
            problems.append(Problem(f"{name}(device={self._device!r})", rule, got, 'Write device="cpu".'))
        return problems

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that a fit can be averaged.

        Raises:
            ConfigError: If another callback averages too, or an argument does not fit the trainer; all problems.
        """
        self._average, self._raw, self._ended, self._source = None, None, False, nn.Module()
        if stage == "fit":
            raise_problems(self._problems(trainer))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where an earlier fit of the trainer left off, if the module still holds what that left."""
        kept, self._kept = self._kept, None
        if self._average is None and kept is not None and trainer.global_step and self._is_own(pl_module, kept):
            self._take(trainer, pl_module, kept)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module."""
        if self._average is not None:
            self._show(pl_module, everything=True)
            self._ended = True
        elif trainer.global_step and not trainer.fast_dev_run:
            warn(f"{type(self).__name__}: no update was due, so the module keeps the weights that were trained.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back, if a validation was left."""
        if not self._ended:
            self._hide(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep on the CPU what a later fit or a file needs."""
        if self._average is not None:
            self._kept = self._snapshot()
            self._average, self._raw, self._source = None, None, nn.Module()

    def _snapshot(self) -> dict[str, Any] | None:
        """Return copies of the average and of the trained values beside it, None where the module has those."""
        if self._average is None:
            return self._kept
        average = {name: _copied(value) for name, value in self._average.state_dict().items()}
        raw = None if self._raw is None else {name: _copied(value) for name, value in self._raw.items()}
        return {"average": average, "raw": raw}

    def _is_own(self, module: nn.Module, kept: Mapping[str, Any]) -> bool:
        """Return whether the module holds the average of a fit that is over, or has its trained values anyway."""
        if kept["raw"] is None:
            return True
        average = kept["average"]
        return all(
            _PREFIX + name in average and torch.equal(own.detach().cpu(), average[_PREFIX + name])
            for name, own in _parameters(module).items()
        )

    def _take(self, trainer: Trainer, module: LightningModule, state: Mapping[str, Any]) -> None:
        """Go on with an average and, if they are given, with the trained values."""
        if state["raw"]:
            where = trainer.resumed_from or type(self).__name__
            load_weights(module, state["raw"], False, where, trainer.strategy.weights(module))
        self._make(module)
        assert self._average is not None
        own = self._average.state_dict()
        for name, value in state["average"].items():
            if name in own:
                own[name].copy_(value)

    def _make(self, module: nn.Module) -> None:
        self._source = _flat(module)
        self._average = AveragedModel(
            self._source, device=self._device, use_buffers=self._use_buffers, **self._options
        ).requires_grad_(False)

    def _update(self, module: nn.Module) -> None:
        if self._average is None:
            self._make(module)
        self._refresh(module)
        assert self._average is not None
        self._average.update_parameters(self._source)

    def _refresh(self, module: nn.Module) -> None:
        """Look up buffers anew, in whose place a forward may put others."""
        known = self._source._buffers
        if known:
            known.update({name: buffer for name, buffer in _buffers(module).items() if name in known})

    def _averaged(self) -> dict[str, Tensor]:
        """Return the tensors of the average that stand for the module's own, by name."""
        assert self._average is not None
        module: Any = self._average.module
        return {**module._parameters, **(module._buffers if self._use_buffers else {})}

    @torch.no_grad()
    def _show(self, module: nn.Module, everything: bool = False) -> None:
        """Put the average into the module.

        Args:
            module: The module.
            everything: Whether buffers that are not averaged are kept aside, too, since they may be made anew.
        """
        if self._average is None or self._raw is not None:
            return
        self._refresh(module)
        own: dict[str, Any] = {**self._source._parameters, **self._source._buffers}
        averaged = self._averaged()
        self._raw = {name: own[name].detach().clone() for name in (own if everything else averaged)}
        for name, value in averaged.items():
            own[name].copy_(value)

    @torch.no_grad()
    def _hide(self, module: nn.Module) -> None:
        """Put the trained values back."""
        if self._raw is not None:
            self._refresh(module)
            own: dict[str, Any] = {**self._source._parameters, **self._source._buffers}
            for name, value in self._raw.items():
                own[name].copy_(value)
            self._raw = None


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's buffers by name, without masks: of true and false there is no average."""
    named = module.named_buffers()
    return {plain_name(name): buffer.detach() for name, buffer in named if buffer.dtype != torch.bool}


def _flat(module: nn.Module) -> nn.Module:
    """Return a module without parts that holds another one's parameters and buffers by their names."""
    flat = nn.Module()
    flat._parameters.update(_parameters(module))
    flat._buffers.update(_buffers(module))
    saved = {
        id(part._buffers[key])
        for part in module.modules()
        for key in part._buffers.keys() - part._non_persistent_buffers_set
    }
    flat._non_persistent_buffers_set.update(
        plain_name(name) for name, buffer in module.named_buffers() if id(buffer) not in saved
    )
    return flat


class WeightAveraging(Averager):
    """Callback that keeps an average of the weights, which is what is validated, saved and left in the module.

    Validation in a fit runs on the average, and the trained weights come back after it. A checkpoint has the average
    as its ``state_dict``, so that whatever loads it has that, and ``current_model_state`` and ``averaging_state``
    beside it, with which a resumed run goes on to the bit. At the end of a fit the module holds the average. Until
    the first update, all of that is with the trained weights.

    Args:
        device: Where the average lies; None where the module does.
        use_buffers: Whether buffers are averaged too; else those of the module count.
        **kwargs: ``avg_fn`` or ``multi_avg_fn`` of torch's `AveragedModel`; by default all updates weigh the same.

    Raises:
        ConfigError: If there is another keyword, both functions are given, or one is no function.

    Example:
        >>> class FromStepHundred(WeightAveraging):
        ...     def should_update(self, step_idx=None, epoch_idx=None):
        ...         return step_idx is not None and step_idx >= 100
        >>> FromStepHundred().should_update(step_idx=99)
        False
    """

    in_weights: ClassVar[bool] = True

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        name = type(self).__name__
        problems = [
            Problem(f"{name}({key}=...)", "there is no such argument", fix=nearest(key, (*_OPTIONS, "use_buffers")))
            for key in kwargs
            if key not in _OPTIONS
        ]
        given = [key for key in _OPTIONS if kwargs.get(key) is not None]
        if len(given) > 1:
            problems.append(Problem(f"{name}(avg_fn, multi_avg_fn)", "these exclude each other", fix="Keep one."))
        problems += [
            Problem(f"{name}({key}={kwargs[key]!r})", "this must be a function", fix=f"Write {key}=a_function.")
            for key in given
            if not callable(kwargs[key])
        ]
        raise_problems(problems)
        super().__init__(device, use_buffers, **(kwargs if given else {"multi_avg_fn": _mean}))
        self._latest_update_step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the average is updated now; by default it is after every optimizer step.

        Args:
            step_idx: The index of the optimizer step that was just made; None at an epoch's end.
            epoch_idx: The index of the epoch that ends; None after a step.
        """
        return step_idx is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last update, and after a fit what another one goes on with."""
        kept = {} if self._kept is None else {"kept": self._kept}
        return {"latest_update_step": self._latest_update_step, **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._latest_update_step, self._kept = state_dict["latest_update_step"], state_dict.get("kept")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where an earlier fit of the trainer left off."""
        super().on_fit_start(trainer, pl_module)
        step = trainer.global_step
        self._latest_update_step = min(self._latest_update_step, step)  # this may be a new training
        if self._average is not None and step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._update(pl_module)  # the file was written in a hook that came before this callback's
            self._latest_update_step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average, if the optimizer stepped and an update is due."""
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._update(pl_module)
            self._latest_update_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the average, if an update is due at the end of this epoch."""
        if trainer.epoch_is_over and self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module for a validation of a fit."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._show(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        if not self._ended:
            self._hide(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the weights, and beside it what a resumed run needs."""
        own = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if "kept" in own:  # it is in the other entries
            checkpoint["callbacks"][self.state_key] = {k: v for k, v in own.items() if k != "kept"}
        kept = self._kept
        if self._average is not None:
            kept = {"average": self._average.state_dict(), "raw": self._raw}
        elif kept is None or not self._is_own(pl_module, kept):  # the module got other weights since then
            return
        names, state = _names(pl_module), checkpoint["state_dict"]
        averaged = {name: name.removeprefix(_PREFIX) for name in kept["average"] if name.startswith(_PREFIX)}
        average = {own: kept["average"][name] for name, own in averaged.items()}
        if not self._use_buffers:
            average = {name: average[name] for name in _parameters(pl_module)}
        checkpoint["state_dict"] = _over(state, names, average)
        if "callbacks" in checkpoint:  # not in a file of weights alone
            checkpoint["current_model_state"] = _over(state, names, kept["raw"] or {})
            there = {names[name] for name in state if name in names}
            checkpoint["averaging_state"] = {
                name: value for name, value in kept["average"].items() if averaged.get(name) not in there
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the average and the trained weights, where training goes on."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._kept = None
        if "averaging_state" in checkpoint:
            average = {_PREFIX + name: value for name, value in checkpoint["state_dict"].items()}
            state = {"average": {**average, **checkpoint["averaging_state"]}, "raw": checkpoint["current_model_state"]}
            self._take(trainer, pl_module, state)
        elif self.state_key not in (checkpoint.get("callbacks") or {}):
            who = f"{trainer.resumed_from}: it was saved without {type(self).__name__}"
            warn(f"{who}, so the average begins with the weights of its next update.")


class EMAWeightAveraging(WeightAveraging):
    """Callback that keeps an exponential moving average of the weights.

    It does with the average what `WeightAveraging` does.

    Args:
        device: Where the average lies; None where the module does.
        use_buffers: Whether buffers are averaged too; else those of the module count.
        decay: How much of the average an update keeps, from 0 to 1.
        update_every_n_steps: Update after steps whose index is a multiple of this; 0 never does by steps.
        update_starting_at_step: The first step, counted from 0, after which to update; None from the first on.
        update_starting_at_epoch: The first epoch, counted from 0, at whose end to update, too; None at no epoch's.
        **kwargs: None that are known; torch's functions of averages belong to `WeightAveraging`.

    Raises:
        ConfigError: If an argument is out of range; all problems at once.

    Example:
        >>> EMAWeightAveraging(decay=0.99, update_every_n_steps=10).should_update(step_idx=20)
        True
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        starts = {"step": update_starting_at_step, "epoch": update_starting_at_epoch}
        rule = "this must be an integer of at least 0"
        whole = {"update_every_n_steps": update_every_n_steps}
        whole |= {f"update_starting_at_{each}": start for each, start in starts.items() if start is not None}
        name = type(self).__name__
        problems = [
            Problem(f"{name}({key}={n!r})", rule, fix=f"Write {key}=10.")
            for key, n in whole.items()
            if not is_whole(n) or n < 0
        ]
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay <= 1:
            problems.append(Problem(f"{name}(decay={decay!r})", "this must be from 0 to 1", fix="Write decay=0.999."))
        raise_problems(problems)
        average: Callable[..., None] = partial(_ema, decay)
        super().__init__(device, use_buffers, **{"multi_avg_fn": average, **kwargs})
        self.decay, self.update_every_n_steps = decay, update_every_n_steps
        self.update_starting_at_step, self.update_starting_at_epoch = starts["step"], starts["epoch"]

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the average is updated now.

        Args:
            step_idx: The index of the optimizer step that was just made; None at an epoch's end.
            epoch_idx: The index of the epoch that ends; None after a step.
        """
        if step_idx is not None:
            begun = self.update_starting_at_step is None or step_idx >= self.update_starting_at_step
            return begun and self.update_every_n_steps > 0 and step_idx % self.update_every_n_steps == 0
        first = self.update_starting_at_epoch
        return first is not None and epoch_idx is not None and epoch_idx >= first
