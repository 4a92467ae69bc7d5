"""Take what ``self.log`` is given: last values and running reductions, nothing that grows with steps.

A value on the CPU is read at once, so that a tensor changed in place later does no harm; one on
another device is copied and read when something is due. Sums run in double precision in the
order of the calls, so that they do not depend on when they were flushed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from lt_core.metric_objects import is_metric, metric_value
from lt_core.notices import warn
from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["MetricStore"]

# Where the loop is: `self.log` takes its defaults and its permission from it.
(
    FORBIDDEN,
    TRAIN_BATCH_START,
    TRAIN_STEP,
    TRAIN_BATCH_END,
    TRAIN_EPOCH_START,
    TRAIN_EPOCH_END,
    EVAL_BATCH_START,
    EVAL_STEP,
    EVAL_BATCH_END,
    EVAL_EPOCH_START,
    EVAL_EPOCH_END,
    SILENT,
) = range(12)

_TRAIN_BATCH = frozenset({TRAIN_BATCH_START, TRAIN_STEP, TRAIN_BATCH_END})
_EVAL_BATCH = frozenset({EVAL_BATCH_START, EVAL_STEP, EVAL_BATCH_END})
_EPOCH_END = frozenset({TRAIN_EPOCH_END, EVAL_EPOCH_END})
_CHUNK = 50
_STATE = ("last", "fresh", "total", "weight", "chunk")


class Slot:
    """Hold one name's last value and its running reduction.

    ``total`` is the weighted sum for a mean, else the sum, minimum or maximum itself.
    """

    __slots__ = (
        "bar", "chunk", "fresh", "graph", "last", "logger", "metric", "name", "on_epoch", "on_step", "options",
        "rank_zero", "reduce", "suffix", "sync", "total", "weight",
    )  # fmt: skip

    def __init__(self, name: str, suffix: str, options: tuple[Any, ...], on_step: bool, on_epoch: bool) -> None:
        self.name, self.suffix, self.options = name, suffix, options
        self.on_step, self.on_epoch = on_step, on_epoch
        self.bar, self.logger, self.rank_zero = bool(options[0]), options[1] is not False, bool(options[9])
        self.reduce = _reduction(name, options[4])
        self.graph, self.sync = bool(options[5]), bool(options[6]) and not self.rank_zero
        self.metric: Any = None
        self.last: Any = None
        self.fresh = False
        self.chunk: list[tuple[Tensor, float]] = []
        self.restart()

    def restart(self) -> None:
        """Begin a new reduction."""
        self.total = {"min": math.inf, "max": -math.inf}.get(self.reduce, 0.0)
        self.weight = 0.0

    @property
    def step_name(self) -> str:
        """Return the name of the step's value."""
        return self.name + ("_step" if self.on_epoch else "") + self.suffix

    @property
    def epoch_name(self) -> str:
        """Return the name of the epoch's value."""
        return self.name + ("_epoch" if self.on_step else "") + self.suffix

    def take(self, value: float, weight: float) -> None:
        """Add a value to the reduction."""
        if self.reduce == "mean":
            self.total += value * weight
        elif self.reduce == "sum":
            self.total += value
        elif math.isnan(value):  # nan wins over every bound
            self.total = value
        else:
            self.total = min(self.total, value) if self.reduce == "min" else max(self.total, value)
        self.weight += weight

    def fold(self) -> None:
        """Read the values that wait on another device, with one transfer."""
        if self.chunk:
            chunk, self.chunk = self.chunk, []
            for value, (_, weight) in zip(torch.stack([t for t, _ in chunk]).tolist(), chunk, strict=True):
                self.take(value, weight)

    def reduced(self) -> float | None:
        """Return the epoch's value on this rank; None if nothing was logged."""
        if self.metric is not None:
            return metric_value(self.metric, self.name)
        self.fold()
        if not self.weight:
            return None
        return self.total / self.weight if self.reduce == "mean" else self.total


class MetricStore:
    """Collect one stage's logged values.

    Attributes:
        scope: Where the loop is; one of this module's constants, assigned by the loop.
        hook: The hook's name, for errors.
        batch: The running batch, for its size.
        size: The batch's size once it was looked up; the loop clears it with every batch.
        muted: Whether values are ignored, as when a closure is evaluated again.
        suffix: What names the evaluation loader, such as ``/dataloader_idx_1``.
        rank: This process's rank.
        world_size: How many processes share what is logged with ``sync_dist``.
    """

    def __init__(self, *, collectives: Any = None, device: Any = None, rank: int = 0, world_size: int = 1) -> None:
        self.collectives, self.device, self.rank, self.world_size = collectives, device, rank, world_size
        self.scope = FORBIDDEN
        self.hook = ""
        self.batch: Any = None
        self.size: int | None = None
        self.muted = False
        self.suffix = ""
        self._slots: dict[tuple[int, str, str], Slot] = {}
        self._warned: set[str] = set()
        self._synced: dict[str, float] = {}

    # ------------------------------------------------------------ the hot path

    def add(
        self,
        name: str,
        value: Any,
        prog_bar: bool,
        logger: bool | None,
        on_step: bool | None,
        on_epoch: bool | None,
        reduce_fx: str | Callable[..., Any],
        enable_graph: bool,
        sync_dist: bool,
        sync_dist_group: Any,
        add_dataloader_idx: bool,
        batch_size: int | None,
        metric_attribute: str | None,
        rank_zero_only: bool,
    ) -> None:
        """Take one value; the arguments are those of ``LightningModule.log``."""
        slot = self._slots.get((self.scope, name, self.suffix))
        options = (
            prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
            add_dataloader_idx, rank_zero_only,
        )  # fmt: skip
        if slot is None or slot.options != options:
            slot = self._open(name, slot, options)
            if slot is None:
                return None
        if self.muted:
            return None
        if isinstance(value, Tensor) and value.is_cpu and not slot.graph and value.numel() == 1:
            number = value.item()
        elif value.__class__ is float:
            number = value
        else:
            return self._take_other(slot, value, batch_size)
        slot.last = number
        slot.fresh = True
        if slot.on_epoch:
            slot.take(number, self._weight(slot, batch_size))
        return None

    # ------------------------------------------------------------ everything else

    def _open(self, name: str, slot: Slot | None, options: tuple[Any, ...]) -> Slot | None:
        """Check a name's first call in this scope and make its slot; None where nothing is logged."""
        if self.scope == SILENT:
            self._warn_once("silent", "Trainer(barebones=True): self.log() does nothing.")
            return None
        where = f"self.log({name!r})"
        if self.scope == FORBIDDEN:
            raise MisconfigurationException(
                f"You can't self.log() inside `{self.hook or 'this place'}`: {where} has no step or epoch "
                "to belong to. "
                "Log in a step, or in a batch or epoch hook."
            )
        if not isinstance(name, str):
            raise TypeError(str(Problem("self.log", "the name must be a string", repr(name))))
        if options[8] and "/dataloader_idx_" in name:
            raise MisconfigurationException(
                f"{where}: the loader's name is added by itself. "
                "Leave it out of the name, or set add_dataloader_idx=False."
            )
        if slot is not None:
            names = ("prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "enable_graph", "sync_dist",
                     "sync_dist_group", "add_dataloader_idx", "rank_zero_only")  # fmt: skip
            both = zip(names, slot.options, options, strict=True)
            changed = ", ".join(f"{n}={new!r} after {n}={old!r}" for n, old, new in both if old != new)
            raise MisconfigurationException(
                f"{where}: a name must be logged with the same arguments each time. Got {changed}. Use another name."
            )
        on_step, on_epoch = self._flags(where, options[2], options[3])
        slot = Slot(name, self.suffix if options[8] else "", options, on_step, on_epoch)
        self._slots[self.scope, name, self.suffix] = slot
        return slot

    def _flags(self, where: str, on_step: bool | None, on_epoch: bool | None) -> tuple[bool, bool]:
        """Return (on_step, on_epoch) with the scope's defaults."""
        in_batch = self.scope in _TRAIN_BATCH or self.scope in _EVAL_BATCH
        if not in_batch and (on_step or on_epoch is False):
            raise MisconfigurationException(
                f"{where}: in `{self.hook}` there is no step. Got on_step={on_step}, on_epoch={on_epoch}. "
                "Leave both out, or write on_step=False, on_epoch=True."
            )
        default = self.scope in _TRAIN_BATCH
        step = default if on_step is None else bool(on_step)
        epoch = (not default) if on_epoch is None else bool(on_epoch)
        if not step and not epoch:
            raise MisconfigurationException(
                f"{where}: with on_step=False and on_epoch=False it is not useful. Set one of them."
            )
        return step, epoch

    def _take_other(self, slot: Slot, value: Any, batch_size: int | None) -> None:
        """Take a value that is no plain float and no CPU scalar."""
        if slot.rank_zero and self.rank != 0:
            return
        where = f"self.log({slot.name!r})"
        if is_metric(value):
            slot.metric = value
            slot.fresh = True
            if slot.on_step:
                slot.last = metric_value(value, slot.name, of_step=True)
            return
        if isinstance(value, Tensor):
            if value.numel() != 1:
                fix = "Reduce it, for example with .mean()."
                raise ValueError(
                    str(Problem(where, "a tensor must have one element", f"shape {tuple(value.shape)}", fix))
                )
            held = value.reshape(()) if slot.graph else value.detach().reshape(()).clone()
            slot.last = held
            slot.fresh = True
            if slot.on_epoch:
                slot.chunk.append(
                    (held.detach().double() if held.is_cpu else held.detach(), self._weight(slot, batch_size))
                )
                if len(slot.chunk) >= _CHUNK:
                    slot.fold()
            return
        if isinstance(value, (bool, str, Mapping)) or not (isinstance(value, Number) or hasattr(value, "__float__")):
            fix = (
                "Use self.log_dict for a dict."
                if isinstance(value, Mapping)
                else "Log a float, an int, or a scalar tensor."
            )
            raise ValueError(str(Problem(where, "a value must be a single number", type(value).__name__, fix)))
        slot.last = number = float(value)
        slot.fresh = True
        if slot.on_epoch:
            slot.take(number, self._weight(slot, batch_size))

    def _weight(self, slot: Slot, batch_size: int | None) -> float:
        if slot.reduce != "mean":
            return 1
        if batch_size is not None:
            return batch_size
        if self.size is None:
            self.size = self._size_of_batch(slot.name)
        return self.size

    def _size_of_batch(self, name: str) -> int:
        from lt_core.data.batch import batch_size

        if self.batch is None:  # an epoch hook: there is no batch
            return 1
        size, ambiguous = batch_size(self.batch)
        if size is None:
            raise MisconfigurationException(
                f"self.log({name!r}): the mean over an epoch needs the batch's size, and the batch holds no tensor. "
                "Write self.log(..., batch_size=n)."
            )
        if ambiguous:
            self._warn_once(
                "size",
                f"self.log({name!r}): the batch's tensors differ in their first dimension; "
                f"its size is taken to be {size}. "
                "Write self.log(..., batch_size=n).",
            )
        return size

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warn(message)

    def add_returned(self, outputs: Mapping[str, Any]) -> None:
        """Log what a step returned in a dict: its ``"log"`` entries, and in evaluation ``val_``/``test_`` losses."""
        if self.scope == SILENT or self.muted:
            return
        entries = dict(outputs["log"]) if isinstance(outputs.get("log"), Mapping) else {}
        if self.scope in _EVAL_BATCH:
            for key, value in outputs.items():
                if isinstance(key, str) and key.startswith(("val_", "test_")) and _is_scalar(value):
                    entries.setdefault(key, value)
        for key, value in entries.items():
            own = self._slots.get((self.scope, key, self.suffix))
            if not _is_scalar(value) or (own is not None and own.options is not _RETURNED):
                continue
            self.add(key, float(value), False, None, None, None, "mean", False, False, None, True, None, None, False)
            self._slots[self.scope, key, self.suffix].options = _RETURNED

    # ------------------------------------------------------------ delivery

    def take_step(self) -> dict[str, float]:
        """Return the step values logged since the last call, under the names that loggers get."""
        taken: dict[str, float] = {}
        to_sync: dict[str, tuple[str, float]] = {}
        for slot in self._slots.values():
            if slot.fresh and slot.on_step and slot.last is not None:
                slot.fresh = False
                value = slot.last.item() if isinstance(slot.last, Tensor) else slot.last
                if slot.sync and self.world_size > 1:
                    to_sync[slot.step_name] = (slot.reduce, value)
                if slot.logger:
                    taken[slot.step_name] = value
        if self.world_size > 1:
            taken.update({k: v for k, v in self._sync(to_sync).items() if k in taken})
        return taken

    def _reduced(self) -> list[tuple[Slot, float]]:
        """Return each epoch slot with its value, those with sync_dist reduced over the ranks together."""
        found = [(s, v) for s in self._slots.values() if s.on_epoch and (v := s.reduced()) is not None]
        if self.world_size == 1:
            return found
        parts: dict[str, tuple[str, float]] = {}
        for slot, value in found:
            if slot.sync and slot.metric is None:
                mean = slot.reduce == "mean"
                parts[slot.epoch_name] = ("sum" if mean else slot.reduce, slot.total if mean else value)
                if mean:
                    parts[slot.epoch_name + "\0weight"] = ("sum", slot.weight)
        sums = self._sync(parts)
        return [
            (s, sums[s.epoch_name] / sums.get(s.epoch_name + "\0weight", 1.0) if s.epoch_name in sums else v)
            for s, v in found
        ]

    def _sync(self, parts: dict[str, tuple[str, float]]) -> dict[str, float]:
        """Reduce values over the ranks: one collective an operation, after comparing the names."""
        keys = sorted(parts)
        mark = zlib.crc32("\n".join(keys).encode())
        if self.collectives.any(self.collectives.broadcast_object(mark) != mark):
            first = self.collectives.broadcast_object(keys)
            only = sorted(set(keys) ^ set(first)) or ["the same names on this rank and rank 0"]
            raise MisconfigurationException(
                f"self.log(sync_dist=True): every rank must log the same names. Rank {self.rank} and rank 0 differ in "
                f"{', '.join(k.partition(chr(0))[0] for k in only)}. "
                "Log them on every rank, or with rank_zero_only=True."
            )
        reduced: dict[str, float] = {}
        for op in sorted({op for op, _ in parts.values()}):
            names = [k for k in keys if parts[k][0] == op]
            dtype = torch.float32 if str(self.device).startswith("mps") else torch.float64
            tensor = torch.tensor([parts[k][1] for k in names], dtype=dtype, device=self.device)
            reduced.update(zip(names, self.collectives.reduce(tensor, op).tolist(), strict=True))
        return reduced

    def take_epoch(self) -> dict[str, float]:
        """Return the reduced values under the names that loggers get."""
        return {s.epoch_name: v for s, v in self._reduced() if s.logger}

    def epoch_metrics(self) -> dict[str, float]:
        """Return the reduced values whatever their destination, as validate and test return them."""
        found: dict[str, float] = {}
        for slot, value in self._reduced():
            found[slot.name + slot.suffix] = found[slot.epoch_name] = value
        return found

    def callback_metrics(self) -> dict[str, Tensor]:
        """Return what callbacks see: last step values, and at an epoch's end the reduced ones."""
        found: dict[str, Tensor] = {}
        for slot in self._slots.values():
            if slot.on_step and slot.last is not None and self.scope not in _EVAL_BATCH:
                found[slot.name + slot.suffix] = found[slot.step_name] = _tensor(slot.last)
        if self.scope in _EPOCH_END:
            for slot, value in self._reduced():
                found[slot.name + slot.suffix] = found[slot.epoch_name] = _tensor(value)
        return found

    def progress_bar_metrics(self) -> dict[str, float]:
        """Return what the progress bar shows."""
        shown: dict[str, float] = {}
        for slot in self._slots.values():
            if slot.bar and slot.on_step and slot.last is not None:
                shown[slot.step_name] = slot.last.item() if isinstance(slot.last, Tensor) else slot.last
        if self.scope in _EPOCH_END:
            shown.update({s.epoch_name: v for s, v in self._reduced() if s.bar})
        return shown

    def reset(self) -> None:
        """Begin a new epoch: forget all values, and reset the metric objects that were logged over the epoch."""
        for slot in self._slots.values():
            if slot.metric is not None and slot.on_epoch:
                slot.metric.reset()
        self._slots.clear()

    # ------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return all slots with their partial sums, to be gone on with to the bit."""
        slots = []
        for (scope, name, suffix), slot in self._slots.items():
            options = [getattr(o, "__name__", "mean") if callable(o) else o for o in slot.options]
            options[7] = None  # a process group is of its process
            state = {key: getattr(slot, key) for key in _STATE}
            if isinstance(slot.last, Tensor):
                state["last"] = slot.last.detach()
            slots.append(
                {"key": [scope, name, suffix], "options": options, "on": [slot.on_step, slot.on_epoch], **state}
            )
        return {"slots": slots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._slots.clear()
        for saved in state["slots"]:
            scope, name, suffix = saved["key"]
            options = tuple(saved["options"])
            slot = Slot(name, suffix if options[8] else "", options, *saved["on"])
            for key in _STATE:
                setattr(slot, key, saved[key])
            slot.chunk = [(t, w) for t, w in saved["chunk"]]
            self._slots[scope, name, suffix] = slot


# The options of what a step's returned dict logs, with the scope's defaults.
_RETURNED: tuple[Any, ...] = (False, None, None, None, "mean", False, False, None, True, False)


def _reduction(name: str, reduce_fx: str | Callable[..., Any]) -> str:
    known = {"mean": "mean", "avg": "mean", "sum": "sum", "min": "min", "max": "max", "amin": "min", "amax": "max"}
    key = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "")
    if key not in known:
        raise MisconfigurationException(
            f'self.log({name!r}): reduce_fx must be "mean", "sum", "min" or "max". Got {reduce_fx!r}. '
            "For any other reduction log a torchmetrics object."
        )
    return known[key]


def _is_scalar(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
