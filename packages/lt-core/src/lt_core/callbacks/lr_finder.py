"""Find a learning rate: train a few steps while it grows, and look where the loss falls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from lt_core.callback import Callback
from lt_core.config.parsers import is_number, is_whole
from lt_core.loops.trial import trial, try_training
from lt_core.model.attribute import Attribute
from lt_core.notices import info, warn
from lt_interface.errors import LTError, Problem, choice_problems, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["LRFinder", "LearningRateFinder"]

Mode = Literal["exponential", "linear"]
Method = Literal["steepest", "valley", "minimum"]
_SMOOTHING = 0.98
# Where optimizers and schedulers keep what is made of the rate.
_IN_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr")
_IN_SCHEDULERS = ("base_lrs", "max_lrs", "_last_lr")


class LRFinder:
    """Losses by learning rate, and the learning rate that they suggest.

    Attributes:
        results: ``{"lr": [...], "loss": [...]}``: each rate that was tried, and the smoothed loss of its step.

    Args:
        mode: How the rates grow: ``"exponential"`` or ``"linear"``.
        lr_min: The lowest rate.
        lr_max: The highest rate.
        num_training: How many rates were to be tried.

    Example:
        >>> found = LRFinder("linear", 0.1, 0.4, 4)
        >>> found.results = {"lr": [0.1, 0.2, 0.3, 0.4], "loss": [1.0, 0.9, 0.4, 0.8]}
        >>> found.suggestion(skip_begin=0, skip_end=0, method="minimum")
        0.03
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        self.mode, self.lr_min, self.lr_max, self.num_training = mode, lr_min, lr_max, num_training
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}

    def rate(self, index: int) -> float:
        """Return the rate of a step.

        Args:
            index: The step, from 0.
        """
        part = index / (self.num_training - 1)
        if self.mode == "linear":
            return self.lr_min + (self.lr_max - self.lr_min) * part
        return float(self.lr_min * (self.lr_max / self.lr_min) ** part)

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1, method: str = "steepest") -> float | None:
        """Return a learning rate; None, with a warning, where too few losses are finite.

        Args:
            skip_begin: How many of the lowest rates are left out.
            skip_end: How many of the highest that were tried.
            method: ``"steepest"``, where the loss falls fastest; ``"valley"``, half-way down its longest fall;
                ``"minimum"``, a tenth of the rate with the lowest loss.

        Raises:
            ConfigError: If there is no such method, or a number to skip is none.
        """
        where = "LRFinder.suggestion"
        problems = choice_problems(f"{where}(method={method!r})", method, get_args(Method))
        for name, value in {"skip_begin": skip_begin, "skip_end": skip_end}.items():
            if not is_whole(value) or value < 0:
                rule = "this must be an integer of at least 0"
                problems.append(Problem(f"{where}({name}={value!r})", rule, fix=f"Leave {name} out."))
        raise_problems(problems)
        lrs, losses = self.results["lr"], self.results["loss"]
        places = [i for i in range(skip_begin, len(losses) - skip_end) if math.isfinite(losses[i])]
        if len(places) < 2:
            warn(
                f"{where}: two finite losses must be left after the first {skip_begin} and the last {skip_end}. Got "
                f"{len(places)}. Try more steps, a lower max_lr, or early_stop_threshold=None."
            )
            return None
        kept = [losses[i] for i in places]
        if method == "minimum":
            return lrs[places[kept.index(min(kept))]] / 10
        if method == "valley":
            return lrs[places[_valley(kept)]]
        rates = torch.tensor([lrs[i] for i in places], dtype=torch.float64)
        if self.mode == "exponential":
            rates = rates.log10()
        slope = torch.gradient(torch.tensor(kept, dtype=torch.float64), spacing=(rates,))[0]
        return lrs[places[int(slope.argmin())]]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None, method: str = "steepest") -> Any:
        """Draw the losses over the learning rates, and return the matplotlib figure.

        Args:
            suggest: Whether to mark the suggestion.
            show: Whether to open a window with it.
            ax: The axes to draw on; a new figure's if None.
            method: As for `suggestion`.

        Raises:
            LTError: If matplotlib is missing; names the command that installs it.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            fix = "Run: pip install 'lt-core[plot]'"
            raise LTError(Problem("LRFinder.plot", "this needs matplotlib", fix=fix)) from None
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        lrs, losses = self.results["lr"], self.results["loss"]
        ax.plot(lrs, losses)
        ax.set(xlabel="learning rate", ylabel="loss", xscale="log" if self.mode == "exponential" else "linear")
        ax.grid(alpha=0.3)
        found = self.suggestion(method=method) if suggest else None
        if found is not None:
            near = min(range(len(lrs)), key=lambda i: abs(lrs[i] - found))
            ax.plot(found, losses[near], "o", color="red", label=f"suggestion: {found:.2e}")
            ax.legend()
        if show:
            plt.show()
        return ax.figure


def _valley(losses: list[float]) -> int:
    """Return the place half-way down the longest sequence of falling losses, as fastai has it."""
    length = [1] * len(losses)
    for i, loss in enumerate(losses):
        length[i] += max((length[j] for j in range(i) if loss < losses[j]), default=0)
    end = max(range(len(losses)), key=length.__getitem__)
    third = length[end] / 3
    return max(end - length[end] + int(third) + int(third / 2), 0)


class _Sweep(Callback):
    """Callback that gives each step of a trial its learning rate, and notes its loss."""

    def __init__(self, found: LRFinder, threshold: float | None, scales: list[float]) -> None:
        self.found, self.threshold, self.scales = found, threshold, scales
        self.mean, self.best, self.noted, self.over = 0.0, math.inf, 0, False
        self.losses: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate of the step that the batch belongs to."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.losses = []
        rate = self.found.rate(len(self.found.results["lr"]))
        groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
        for group, scale in zip(groups, self.scales, strict=True):
            _set_rate(group, rate * scale)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of the step, over all its batches and ranks, once its last batch is done."""
        if outputs and "loss" in outputs:
            self.losses.append(outputs["loss"].detach().float())
        every = trainer.accumulate_grad_batches
        if (batch_idx + 1) % every and batch_idx + 1 != trainer.num_training_batches:
            return
        own = torch.tensor([sum(map(float, self.losses)), len(self.losses)], device=trainer.root_device)
        loss, noted = trainer.collectives.reduce(own).tolist()
        results = self.found.results
        results["lr"].append(self.found.rate(len(results["lr"])))
        if not noted:  # training_step has skipped the step's batches, on all ranks
            results["loss"].append(math.nan)
            return
        self.noted += 1
        self.mean = _SMOOTHING * self.mean + (1 - _SMOOTHING) * loss
        smooth = self.mean / (1 - _SMOOTHING**self.noted)
        results["loss"].append(smooth)
        if self.threshold is not None and self.noted > 2:
            self.over = not smooth <= self.threshold * self.best
        self.best = min(self.best, smooth)


def _set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a parameter group, into the tensor if it is one, as compiled steps need it."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _scale(trainer: Trainer, rate: float, whole: float) -> None:
    """Bring the optimizer and its schedulers to where they would be had they been made with another rate.

    Args:
        trainer: The trainer.
        rate: The rate.
        whole: The rate in whose place it comes; where it is 0, so are all that are made of it.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):  # stays the same tensor, as compiled steps need it
            return value.mul_(rate / whole) if whole else value.fill_(rate)
        return value * (rate / whole) if whole else rate

    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
        group.update({key: moved(group[key]) for key in _IN_GROUPS if key in group})
    while schedulers:
        scheduler = schedulers.pop()
        schedulers += getattr(scheduler, "_schedulers", ())
        for name in _IN_SCHEDULERS:
            if isinstance(values := getattr(scheduler, name, None), list):
                setattr(scheduler, name, [moved(value) for value in values])


class LearningRateFinder(Callback):
    """Callback that finds a learning rate where fit begins, and goes on with it.

    It trains some steps while the rate grows from ``min_lr`` to ``max_lr``, takes what `LRFinder.suggestion` returns,
    sets the module's attribute and scales the rates of the optimizer and its schedulers; several parameter groups keep
    their ratios. Weights, optimizer, data and random states are afterwards what they were. A run that is resumed goes
    on with what it found.

    A subclass may call `lr_find` in other hooks of training, or override it.

    Args:
        min_lr: The lowest rate.
        max_lr: The highest rate.
        num_training_steps: How many optimizer steps, and so many rates, are tried.
        mode: ``"exponential"``: each rate is a multiple of the one before; ``"linear"``: they grow by equal amounts.
        early_stop_threshold: Ends the search once the smoothed loss is that many times the lowest one; None never does.
        update_attr: Whether to set what was found.
        attr_name: Where the module or data module, or their hparams, hold the rate, such as ``"hparams.optim.lr"``; if
            left out, ``lr`` or ``learning_rate``.
        weights_only: Has no effect: nothing is read from a file.

    Attributes:
        optimal_lr: What was found last, an `LRFinder`; None before.

    Raises:
        ConfigError: If an argument is wrong; all problems at once.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.demos.boring_classes import BoringModel
        >>> class Model(BoringModel):
        ...     lr = 0.5
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=self.lr)
        >>> model, finder = Model(), LearningRateFinder(num_training_steps=30)
        >>> quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        >>> Trainer(max_steps=1, callbacks=[finder], logger=False, **quiet).fit(model)
        >>> model.lr == finder.optimal_lr.suggestion()
        True
    """

    #: What ``mode`` may be.
    SUPPORTED_MODES = get_args(Mode)

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
        weights_only: bool | None = None,
    ) -> None:
        where = type(self).__name__
        problems = choice_problems(f"{where}(mode={mode!r})", mode, get_args(Mode))
        numbers = is_number(min_lr) and is_number(max_lr)
        if not numbers or not 0 <= min_lr < max_lr < math.inf or (min_lr == 0 and mode == "exponential"):
            rule, got = "the rates must grow from min_lr, above 0, to a larger max_lr", f"{min_lr!r} and {max_lr!r}"
            problems.append(Problem(f"{where}(min_lr, max_lr)", rule, got, "Write min_lr=1e-8, max_lr=1."))
        if not is_whole(num_training_steps) or num_training_steps < 3:
            rule = "this must be an integer of at least 3; 100 give a good curve"
            given = f"{where}(num_training_steps={num_training_steps!r})"
            problems.append(Problem(given, rule, fix="Write num_training_steps=100."))
        if early_stop_threshold is not None and not (is_number(early_stop_threshold) and early_stop_threshold > 0):
            given = f"{where}(early_stop_threshold={early_stop_threshold!r})"
            problems.append(Problem(given, "this must be a number above 0, or None", fix="Write 4.0."))
        if not isinstance(attr_name, str):
            rule = "this must be the name of an attribute"
            problems.append(Problem(f"{where}(attr_name={attr_name!r})", rule, fix='Write attr_name="lr".'))
        raise_problems(problems)
        self._arguments = mode, float(min_lr), float(max_lr), num_training_steps
        self._early_stop_threshold, self._update_attr, self._attr_name = early_stop_threshold, update_attr, attr_name
        self.optimal_lr: LRFinder | None = None
        self._found: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the rate that was found and set."""
        return {} if self._found is None else {"lr": self._found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rate that an earlier part of the run found."""
        self._found = state_dict.get("lr")

    def attribute(self, *owners: Any) -> Attribute:
        """Return where the rate is held.

        Args:
            *owners: Module and data module.
        """
        names = [self._attr_name] if self._attr_name else ["lr", "learning_rate"]
        found = [Attribute(name, *owners) for name in names]
        return next((each for each in found if each.found), found[0])

    def problems(self, pl_module: LightningModule, datamodule: Any = None) -> list[Problem]:
        """Return why no rate can be found or set for a module.

        Args:
            pl_module: The module.
            datamodule: Its data module, or None.
        """
        where, found = type(self).__name__, []
        if not pl_module.automatic_optimization:
            rule, got = "manual optimization sets its rates itself", "automatic_optimization=False"
            found.append(Problem(where, rule, got, "Try some rates by hand."))
        if self._update_attr:
            missing = self.attribute(pl_module, datamodule).problem(where, "the rate needs an attribute")
            found += [] if missing is None else [missing]
        return found

    def search(self, trainer: Trainer, pl_module: LightningModule) -> LRFinder:
        """Return the losses by learning rate; nothing is set, and all is as before.

        Args:
            trainer: The trainer, inside fit.
            pl_module: The module.

        Raises:
            ConfigError: If the module has no optimizer to try it with.
        """
        problems = self.problems(pl_module, trainer.datamodule)
        if len(trainer.optimizers) != 1 and pl_module.automatic_optimization:
            rule, got = "one optimizer is needed to try rates with", f"{len(trainer.optimizers)} optimizers"
            problems.append(Problem(type(self).__name__, rule, got, "Return one from configure_optimizers."))
        raise_problems(problems)
        found = LRFinder(*self._arguments)
        sweep = _Sweep(found, self._early_stop_threshold, self._rates(trainer)[1])
        with trial(trainer, [sweep]) as run:
            try_training(run, found.num_training, lambda: sweep.over)
        return found

    def _rates(self, trainer: Trainer) -> tuple[float, list[float]]:
        """Return the rate that stands for all groups, and each group's as a multiple of it.

        It is the attribute's, or the largest one if no group has that. Asked is what a group was made with, not what
        schedulers made of it.
        """
        groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
        rates = [float(group.get("max_lr") or group.get("initial_lr") or group["lr"]) for group in groups]
        given = self.attribute(trainer.lightning_module, trainer.datamodule).get()
        whole = float(given) if is_number(given) and given in rates else max(rates)
        return whole, [rate / whole if whole else 1.0 for rate in rates]

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find a rate and go on with it; call it in hooks of training in which no batch is running.

        Args:
            trainer: The trainer, inside fit.
            pl_module: The module.
        """
        if trainer.fast_dev_run:
            warn(f"{type(self).__name__}: fast_dev_run tries no learning rates.")
            return
        self.optimal_lr = self.search(trainer, pl_module)
        rate = self.optimal_lr.suggestion() if self._update_attr else None
        if rate is not None:
            self._found = rate
            _scale(trainer, rate, self._rates(trainer)[0])
            self.apply(rate, pl_module, trainer.datamodule)

    def apply(self, rate: float, *owners: Any) -> None:
        """Set the attribute.

        Args:
            rate: The rate.
            *owners: Module and data module.
        """
        attribute = self.attribute(*owners)
        attribute.set(rate)
        info(f"{type(self).__name__}: {attribute.name} is {rate:.4g} now.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rate; a run that is resumed has its optimizer's already."""
        if trainer.resumed_from is None:
            self.lr_find(trainer, pl_module)
        elif self._found is not None:
            self.attribute(pl_module, trainer.datamodule).set(self._found)
