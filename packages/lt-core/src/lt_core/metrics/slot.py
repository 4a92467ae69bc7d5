"""Decide once for each logged name where it may be logged, how it is reduced and what it is called."""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor

from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["NamedValues", "Slot", "as_number", "as_weight", "is_metric_object", "key_problem", "open_slot"]

FORBIDDEN, TRAIN_BATCH_START, TRAIN_STEP, TRAIN_BATCH_END, TRAIN_EPOCH_START, TRAIN_EPOCH_END = range(6)
EVAL_BATCH_START, EVAL_STEP, EVAL_BATCH_END, EVAL_EPOCH_START, EVAL_EPOCH_END = range(6, 11)
# A name's arguments hold for one hook, so each hook has a number. Checkpoints hold them: new ones come last.
TRAIN_START, EVAL_START = 11, 12
# Hooks and overridden methods inside a training step.
ZERO_GRAD, BEFORE_BACKWARD, BACKWARD, AFTER_BACKWARD, BEFORE_STEP, CLIP, STEP, BEFORE_ZERO_GRAD = range(13, 21)
SCOPES = 21

# How `Slot.code` adds a value up; 0 keeps no epoch value.
LAST_ONLY, BATCH_MEAN, HOOK_MEAN, SUM, MIN, MAX = range(6)

STEP_SCOPES = frozenset({TRAIN_STEP, *range(ZERO_GRAD, SCOPES)})
_BATCH_SCOPES = STEP_SCOPES | {TRAIN_BATCH_START, TRAIN_BATCH_END}
_EVAL_SCOPES = frozenset({*range(EVAL_BATCH_START, EVAL_EPOCH_END + 1), EVAL_START})
_EPOCH_SCOPES = frozenset(
    {TRAIN_START, TRAIN_EPOCH_START, TRAIN_EPOCH_END, EVAL_START, EVAL_EPOCH_START, EVAL_EPOCH_END}
)
_REDUCTIONS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("mean", ("mean", "avg", torch.mean)),
    ("sum", ("sum", torch.sum, builtins.sum)),
    ("min", ("min", torch.min, builtins.min)),
    ("max", ("max", torch.max, builtins.max)),
)
_CODES = {"mean": BATCH_MEAN, "sum": SUM, "min": MIN, "max": MAX}
_EMPTY = {"min": math.inf, "max": -math.inf}
_SETTINGS = ("step", "epoch", "op", "bar", "logger", "sync", "group", "rank_zero_only", "add_idx")


class NamedValues(Protocol):
    """Values by name: a dict, or a collection of metric objects."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return the pairs."""
        ...


class Slot:
    """One name's settings and what was logged under it since the epoch began.

    Attributes:
        options: The arguments of the last call as they were given, so that the next call with the
            same ones needs no second look; None for a slot that comes out of a checkpoint.
        code: How values are added up.
        total: The sum of weighted values, or the smallest or largest value.
        weight: The sum of the weights, or the number of values.
        share: The weight of the newest value among those of other ranks; a sum, least or greatest has none.
        last: The newest value: a float, or a 0-dim tensor that still lies on its device.
        time: When a value was logged last, by the store's clock.
        taken: The time of the value that the loggers were given last.
        shared: The time of the newest value that is one of all ranks, where step values are reduced over them.
        double: Whether callbacks get this name in double precision, as it was logged.
        host: Whether tensors logged here lie in the host's memory, so that reading one waits for nothing.
        chunk: Values on a device, with their weights, that are not added up yet.
        metric: The metric object, for a slot of one.
        path: Where in the module a restored metric object is to be found.
        result: The metric object's value of the epoch, once it is computed.
        synced: What the ranks agreed on, and the (total, weight) that it was made of.
        returned: Whether the values come from what a step returned, not from ``self.log``.
    """

    __slots__ = (
        "add_idx", "bar", "chunk", "code", "double", "epoch", "epoch_name", "group", "host", "last", "logger", "metric",
        "name", "op", "options", "path", "plain_name", "rank_zero_only", "result", "returned", "scope", "share",
        "shared", "step", "step_name", "suffix", "sync", "synced", "taken", "time", "total", "weight",
    )  # fmt: skip

    def __init__(self, name: str, scope: int, suffix: str, settings: dict[str, Any]) -> None:
        self.name, self.scope = name, scope
        self.step: bool = settings["step"]
        self.epoch: bool = settings["epoch"]
        self.op: str = settings["op"]
        self.bar: bool = settings["bar"]
        self.logger: bool = settings["logger"]
        self.sync: bool = settings["sync"]
        self.group: Any = settings["group"]
        self.rank_zero_only: bool = settings["rank_zero_only"]
        self.add_idx: bool = settings["add_idx"]
        self.suffix = suffix if self.add_idx else ""
        self.plain_name = name + self.suffix
        self.step_name = f"{name}_step{self.suffix}" if self.epoch else self.plain_name
        self.epoch_name = f"{name}_epoch{self.suffix}" if self.step else self.plain_name
        self.code = LAST_ONLY
        if self.epoch or (self.sync and self.op == "mean"):  # whose newest value has a weight, too
            self.code = HOOK_MEAN if scope in _EPOCH_SCOPES and self.op == "mean" else _CODES[self.op]
        self.options: tuple[Any, ...] | None = None
        self.total: float = _EMPTY.get(self.op, 0.0)
        self.weight: float = 0
        self.share: float = 1
        self.last: Any = None
        self.host = self.returned = self.double = False
        self.time = self.taken = self.shared = 0
        self.chunk: list[tuple[Tensor, float]] | None = None
        self.metric: Any = None
        self.path: str | None = None
        self.result: float | None = None
        self.synced: tuple[float, tuple[float, float]] | None = None

    @property
    def key(self) -> tuple[int, str]:
        """Return what distinguishes this slot from all others of a store."""
        return self.scope, self.plain_name

    @property
    def evaluating(self) -> bool:
        """Return whether the slot belongs to an evaluation."""
        return self.scope in _EVAL_SCOPES

    @property
    def names(self) -> tuple[str, str, str]:
        """Return the names under which values of this slot are read."""
        return self.plain_name, self.step_name, self.epoch_name

    @property
    def waits(self) -> bool:
        """Return whether the newest value lies on a device, so that reading it waits."""
        return isinstance(self.last, Tensor) and self.last.device.type != "cpu"

    def settings(self) -> dict[str, Any]:
        """Return the settings, apart from name and place."""
        return {key: getattr(self, key) for key in _SETTINGS}

    def place(self) -> tuple[str, int, str, dict[str, Any]]:
        """Return what makes a slot like this one, without a value, in another process."""
        return self.name, self.scope, self.suffix, {**self.settings(), "group": None}

    def accumulate(self, number: float, weight: float) -> None:
        """Add one value to the epoch's."""
        code = self.code
        if code in (BATCH_MEAN, HOOK_MEAN):
            self.total += number * weight
            self.weight += weight
            return
        self.weight += 1
        if code == SUM:
            self.total += number
        elif math.isnan(number) or (number < self.total if code == MIN else number > self.total):
            self.total = number  # nan stays: no comparison with it is true

    def reduced(self) -> float | None:
        """Return the epoch's value so far, None if there is none; of all ranks where they agreed on it."""
        if self.metric is not None or not self.code:
            return self.result
        if self.synced is not None and self.synced[1] == (self.total, self.weight):
            return self.synced[0]
        if self.code in (BATCH_MEAN, HOOK_MEAN):
            return self.total / self.weight if self.weight else None
        return float(self.total) if self.weight else None


def is_metric_object(value: Any) -> bool:
    """Return whether a value has ``update``, ``compute`` and ``reset``, as torchmetrics' and ignite's metrics do."""
    return all(callable(getattr(value, name, None)) for name in ("update", "compute", "reset"))


def as_number(name: str, value: Any) -> float:
    """Return a value as a Python float.

    Raises:
        ValueError: If it is not one real number.
    """
    where = f"self.log({name!r})"
    rule = "the value must be one number, a tensor of one element, or a metric object"
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            got = f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
            raise ValueError(str(Problem(where, rule, got, "Reduce it, for example with value.mean().")))
        try:
            return float(value.item())
        except RuntimeError as error:
            got, fix = "a tensor that cannot be read", "Log it while its memory is there."
            raise ValueError(str(Problem(where, rule, got, fix))) from error
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = value.item()  # an array or a scalar of another library
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, dict) or hasattr(value, "items"):
        raise ValueError(str(Problem(where, rule, type(value).__name__, "Use self.log_dict, without nested dicts.")))
    fix = f"Write float(value), as in self.log({name!r}, float(value))."
    raise ValueError(str(Problem(where, rule, f"{value!r:.80} of type {type(value).__name__}", fix)))


def key_problem(name: Any, add_idx: bool) -> Problem | None:
    """Return what is wrong with a metric's name."""
    if not isinstance(name, str):
        return Problem(
            "self.log", "the name must be a string", f"{name!r:.80} of type {type(name).__name__}", is_type=True
        )
    if add_idx and "/dataloader_idx_" in name:
        fix = "Use another name, or add_dataloader_idx=False."
        return Problem(f"self.log({name!r})", "the trainer itself adds /dataloader_idx_N to a name", fix=fix)
    return None


def open_slot(name: str, scope: int, suffix: str, options: tuple[Any, ...], is_metric: bool) -> Slot:
    """Return a new slot for one set of arguments.

    Args:
        name: The metric's name.
        scope: The place that it is logged from.
        suffix: What distinguishes the running loader from the others.
        options: ``prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
            add_dataloader_idx, metric_attribute, rank_zero_only`` as they were given.
        is_metric: Whether the value is a metric object, which reduces itself.

    Raises:
        MisconfigurationException: If the arguments cannot be meant, in this place or anywhere.
    """
    bar, logger, on_step, on_epoch, reduce_fx, _, sync, group, add_idx, _, rank_zero_only = options
    where = f"self.log({name!r})"
    by_epoch = scope in _EPOCH_SCOPES
    training_batch = scope in _BATCH_SCOPES
    step = training_batch if on_step is None else bool(on_step)
    epoch = not training_batch if on_epoch is None else bool(on_epoch)
    if by_epoch and step:
        rule = "a hook of a whole epoch has no steps to log on"
        raise MisconfigurationException(Problem(where, rule, "on_step=True", "Leave on_step out."))
    if not step and not epoch:
        rule = "on_step and on_epoch cannot both be False: nothing would be kept, so the call is not useful"
        raise MisconfigurationException(Problem(where, rule, fix="Set one of them to True."))
    settings = {
        "step": step, "epoch": epoch, "op": "mean" if is_metric else _reduction(where, reduce_fx), "bar": bool(bar),
        "logger": logger is None or bool(logger), "sync": bool(sync) and not rank_zero_only and not is_metric,
        "group": group, "rank_zero_only": bool(rank_zero_only), "add_idx": bool(add_idx),
    }  # fmt: skip
    return Slot(name, scope, suffix, settings)


def _reduction(where: str, reduce_fx: Any) -> str:
    wanted = reduce_fx.lower() if isinstance(reduce_fx, str) else reduce_fx
    for op, spellings in _REDUCTIONS:
        if any(wanted is s or (isinstance(wanted, str) and wanted == s) for s in spellings):
            return op
    got = repr(reduce_fx) if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", repr(reduce_fx))
    fix = "For any other reduction log a metric object, with update, compute and reset."
    raise MisconfigurationException(Problem(where, "reduce_fx must be mean, sum, min or max", got, fix))


def as_weight(name: str, size: Any) -> float:
    """Return a given batch size as a Python number.

    Raises:
        TypeError: If it is not one real number.
        ValueError: If it is not positive.
    """
    where = f"self.log({name!r}, batch_size=...)"
    number = size.item() if getattr(size, "shape", None) in ((), (1,)) and hasattr(size, "item") else size
    if isinstance(number, bool) or not isinstance(number, int | Integral | float):
        problem = Problem(where, "the batch size must be one number", f"{size!r:.80}", is_type=True)
        raise TypeError(str(problem))
    if not 0 < float(number) < math.inf:
        fix = "A mean weighs each value by it: leave out a value that counts for nothing."
        raise ValueError(str(Problem(where, "the batch size must be positive", repr(number), fix)))
    return int(number) if isinstance(number, Integral) else float(number)
