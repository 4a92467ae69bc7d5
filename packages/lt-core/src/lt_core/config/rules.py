"""Check flags against one another and apply the flags that set others."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from lt_core.callback import Callback
from lt_core.config.parsers import PRECISION_METHODS, is_whole, provides
from lt_interface import registry
from lt_interface.errors import Problem

__all__ = ["Draft", "apply", "plugin_kind"]

LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")
PLUGIN_METHODS = (  # the last two are Lightning's
    ("precision", PRECISION_METHODS),
    ("checkpoint_io", ("save", "load", "peek", "remove")),
    ("cluster", ("detect", "world")),
    ("layer_sync", ("apply", "revert")),
    ("checkpoint_io", ("save_checkpoint", "load_checkpoint", "remove_checkpoint")),
    ("cluster", ("global_rank", "local_rank", "world_size")),
)


@dataclass
class Draft:
    """Flags while they are checked.

    Attributes:
        values: The resolved value of each flag.
        barebones: The value that barebones makes of a flag, for those that it excludes.
        places: For each flag that the user gave, how they wrote it.
        written: For each flag that was taken, the value as the user wrote it.
        refused: Flags whose value was refused; they hold their default.
        problems: What is wrong so far.
        warnings: What to warn of when nothing is wrong.
        infos: Lines of information for when nothing is wrong.
    """

    values: dict[str, Any]
    barebones: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    infos: list[str] = field(default_factory=list)

    def where(self, *names: str) -> str:
        """Return these flags as the user wrote them."""
        places = [self.places.get(name, f"Trainer({name})") for name in names]
        if all(place.startswith("Trainer(") for place in places):
            return f"Trainer({', '.join(place[len('Trainer(') : -1] for place in places)})"
        return ", ".join(places)

    def refuse(self, where: str, rule: str, fix: str = "", *, is_type: bool = False) -> None:
        """Note a problem."""
        self.problems.append(Problem(where, rule, fix=fix, is_type=is_type))


def apply(draft: Draft) -> None:
    """Run every rule over the draft, in the order in which they build on one another."""
    checks = (_plugins, _precision, _order_of_limits, _validation, _callbacks, _one_or_all)
    for rule in (*checks, _determinism, _overfit, _barebones, _fast_dev_run):
        rule(draft)


def plugin_kind(plugin: object) -> str | None:
    """Return precision, checkpoint_io, cluster or layer_sync, or None if the object is none of them."""
    return next((kind for kind, methods in PLUGIN_METHODS if provides(plugin, methods)), None)


def _plugins(draft: Draft) -> None:
    """Take at most one instance of each kind, and let a precision among them be the precision."""
    seen: dict[str, Any] = {}
    for plugin in draft.values["plugins"]:
        kind = plugin_kind(plugin)
        name = plugin.__name__ if isinstance(plugin, type) else type(plugin).__name__
        if kind is None:
            known = "a Precision, CheckpointIO, ClusterEnvironment or layer sync"
            fix = f"Pass an instance: {name}(...)." if isinstance(plugin, type) else ""
            rule = f"each plugin must be an instance of {known}, and {name} is none"
            draft.refuse(draft.where("plugins"), rule, fix, is_type=True)
        elif kind in seen:
            rule = f"only one plugin of a kind can be used, and two are {kind}: {type(seen[kind]).__name__}, {name}"
            draft.refuse(draft.where("plugins"), rule, "Leave one of them out.")
        seen.setdefault(kind or "", plugin)
    if "precision" in seen:
        if "precision" in draft.places:
            rule = "the precision is given twice, as a flag and as a plugin"
            draft.refuse(draft.where("precision", "plugins"), rule, "Leave one of them out.")
        draft.values["precision"] = seen["precision"]


def _precision(draft: Draft) -> None:
    """Check that the precision is installed."""
    name, written = draft.values["precision"], draft.written.get("precision")
    if not isinstance(name, str):
        return
    where = draft.where("precision")
    if str(written) in {"16", "bf16"}:
        draft.warnings.append(f'{where}: this is taken as "{name}". Write precision="{name}".')
    problem = registry.precisions.problem(name, where)
    if problem is not None:
        draft.problems.append(problem)


def _order_of_limits(draft: Draft) -> None:
    """Refuse a least that is more than the most."""
    for low, high in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        least, most = draft.values[low], draft.values[high]
        if least is not None and most is not None and -1 != most < least:
            draft.refuse(draft.where(low, high), f"{low} must not be more than {high}", f"Write {high}={least}.")


def _validation(draft: Draft) -> None:
    """Refuse intervals of validation that cannot be counted."""
    by_fraction = isinstance(draft.values["val_check_interval"], float) and "val_check_interval" not in draft.refused
    if draft.values["check_val_every_n_epoch"] is None and by_fraction:
        where = draft.where("check_val_every_n_epoch", "val_check_interval")
        rule = "without epochs to count, validation needs a number of batches or a time"
        draft.refuse(where, rule, "Write val_check_interval=N (integer) or a time.")
    if draft.values["validate_at_start"] and draft.values["limit_val_batches"] == 0:
        where = draft.where("validate_at_start", "limit_val_batches")
        draft.refuse(where, "there is no validation to run at the start", "Leave one of them out.")


def _callbacks(draft: Draft) -> None:
    """Check each callback and what two of them, or one and a flag, exclude."""
    given = draft.values["callbacks"]
    known = [c for c in given if isinstance(c, Callback)]
    for other in given:
        if not isinstance(other, Callback):
            name = other.__name__ if isinstance(other, type) else type(other).__name__
            rule = f"each callback must be an instance of lt_core.Callback, and {name} is none"
            draft.refuse(draft.where("callbacks"), rule, _callback_fix(other, name), is_type=True)
    for flag, role in (("enable_checkpointing", "checkpoint"), ("enable_progress_bar", "progress bar")):
        names = _of_role(known, role)
        if names and draft.values[flag] is False:
            rule = f"{flag} is off, and callbacks holds {names[0]}"
            draft.refuse(draft.where(flag), rule, f"Leave out {flag} or the callback.")
    bars = _of_role(known, "progress bar")
    if len(bars) > 1:
        rule = f"only one progress bar can be shown, and callbacks holds {', '.join(bars)}"
        draft.refuse(draft.where("callbacks"), rule, "Leave one of them out.")
    _state_keys(draft, known)
    if draft.values["max_time"] is not None and _of_role(known, "timer"):
        draft.infos.append(f"{draft.where('max_time')}: ignored, because callbacks holds a Timer.")
        draft.values["max_time"] = None


def _of_role(callbacks: list[Callback], role: str) -> list[str]:
    """Return the class names of the callbacks that have a role."""
    return [type(c).__name__ for c in callbacks if type(c).role == role]


def _callback_fix(other: Any, name: str) -> str:
    if isinstance(other, type):
        return f"Pass an instance: {name}(...)."
    origin = next((c.__module__ for c in type(other).__mro__ if c.__name__ == "Callback"), "")
    if origin.split(".")[0] in {"lightning", "pytorch_lightning"}:
        return "It is one of PyTorch Lightning: import it from lt_core.callbacks."
    return "Subclass lt_core.Callback."


def _state_keys(draft: Draft, callbacks: list[Callback]) -> None:
    """Refuse two callbacks that would keep their state under one name."""
    seen: dict[str, Any] = {}
    for callback in callbacks:
        if type(callback).state_dict is Callback.state_dict:
            continue
        key = callback.state_key
        if key in seen:
            same = seen[key] is callback
            rule = "the same callback is given twice" if same else f"two callbacks keep their state under {key!r}"
            fix = "Leave one of them out." if same else "Give each its own state_key."
            draft.refuse(draft.where("callbacks"), rule, fix)
        seen[key] = callback


def _one_or_all(draft: Draft) -> None:
    """Report what 1 and 1.0 mean, where they differ and are easily taken for each other."""
    for name in (*LIMITS, "overfit_batches", "val_check_interval"):
        value = draft.values[name]
        if name not in draft.written or isinstance(value, timedelta) or value != 1:
            continue
        interval = name == "val_check_interval"
        one, every = ("after every batch", "once an epoch") if interval else ("one batch", "all of them")
        meant, other = (one, f"1.0 means {every}") if is_whole(value) else (every, f"1 means {one}")
        draft.infos.append(f"{draft.where(name)}: {meant}. {other}.")


def _determinism(draft: Draft) -> None:
    """Keep cuDNN from choosing kernels by time when results must repeat."""
    if draft.values["deterministic"] and draft.values["benchmark"] is None:
        draft.values["benchmark"] = False


def _overfit(draft: Draft) -> None:
    """Limit training and validation to the same number of batches."""
    amount = draft.values["overfit_batches"]
    if amount == 0:
        return
    for name in ("limit_train_batches", "limit_val_batches"):
        if name in draft.written:
            where = draft.where(name, "overfit_batches")
            draft.warnings.append(f"{where}: overfit_batches decides, {name} is ignored.")
        draft.values[name] = amount


def _fast_dev_run(draft: Draft) -> None:
    """Run everything once, over a few batches."""
    amount = int(draft.values["fast_dev_run"])
    if amount == 0:
        return
    draft.values |= dict.fromkeys(LIMITS, amount)
    draft.values |= {"max_steps": amount, "max_epochs": 1, "num_sanity_val_steps": 0}
    draft.values |= {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}
    where = draft.where("fast_dev_run")
    draft.infos.append(f"{where}: runs {amount} batch(es) of each stage; nothing is logged or kept.")


def _barebones(draft: Draft) -> None:
    """Turn off all that could cost time; refuse flags that ask for it."""
    if not draft.values["barebones"]:
        return
    for name, value in draft.barebones.items():
        if name in draft.places and name not in draft.refused and draft.values[name] != value:
            rule = f"barebones turns {name} off"
            draft.refuse(draft.where("barebones", name), rule, "Leave one of them out.")
        draft.values[name] = value
