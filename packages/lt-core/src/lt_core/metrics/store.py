"""Take what `self.log` is given: last values and running sums, with nothing that grows with steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lt_core.metrics.outlets import Outlets, reset
from lt_core.metrics.reading import AT_DEMAND, floats, fold
from lt_core.metrics.slot import (
    BATCH_MEAN,
    EVAL_BATCH_END,
    EVAL_BATCH_START,
    EVAL_EPOCH_END,
    EVAL_EPOCH_START,
    EVAL_START,
    EVAL_STEP,
    FORBIDDEN,
    HOOK_MEAN,
    MIN,
    SCOPES,
    SUM,
    TRAIN_BATCH_END,
    TRAIN_BATCH_START,
    TRAIN_EPOCH_END,
    TRAIN_EPOCH_START,
    TRAIN_START,
    TRAIN_STEP,
    Slot,
    as_number,
    as_weight,
    is_metric_object,
    key_problem,
    open_slot,
)
from lt_core.notices import PossibleUserWarning, warn
from lt_interface.errors import MisconfigurationException, Problem

__all__ = ["FORBIDDEN", "MetricStore", "Options", "SilentStore"]
__all__ += ["EVAL_BATCH_END", "EVAL_BATCH_START", "EVAL_EPOCH_END", "EVAL_EPOCH_START", "EVAL_START", "EVAL_STEP"]
__all__ += ["TRAIN_BATCH_END", "TRAIN_BATCH_START", "TRAIN_EPOCH_END", "TRAIN_EPOCH_START", "TRAIN_START", "TRAIN_STEP"]

_FOLD_EVERY = 1000  # values of a name on a device; where steps are logged all are read with these
# prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
# add_dataloader_idx, metric_attribute, rank_zero_only
Options = tuple[bool, bool | None, bool | None, bool | None, Any, bool, bool, Any, bool, str | None, bool]
_DEFAULTS: Options = (False, None, None, None, "mean", False, False, None, True, None, False)
_SYNCED: Options = (False, None, None, None, "mean", False, True, None, True, None, False)


class MetricStore(Outlets):
    """What one training, or one evaluation, logs: last values and running sums.

    Args:
        collectives: The exchange between ranks; None for one process.
        device: Where tensors for that exchange are made.
        rank: This process's number.
        world_size: How many processes there are.

    Attributes:
        hook: The name of that place, for errors.
        batch: The running batch.
        size: Its size, or None if nobody needed it yet.
        muted: Whether values are ignored: a closure looks at the same batch again.
        suffix: What distinguishes the running loader from the others in a metric's name.
        module: Where restored metric objects are looked up, and the names of those to save.
        doubles: Names whose values callbacks get in double precision.
    """

    def __init__(self, *, collectives: Any = None, device: Any = None, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(collectives, device, world_size)
        self.rank = rank
        self.hook: str = "__init__"
        self.batch: Any = None
        self.size: int | None = None
        self.muted: bool = False
        self.suffix: str = ""
        self.module: Any = None
        self.doubles: set[str] = set()
        # One table a scope, so that a look-up needs no key of two parts. A table may hold a slot under
        # more than one key: with add_dataloader_idx=False, under one for each loader.
        self._tables: list[dict[str, Slot]] = [{} for _ in range(SCOPES)]
        self._warned: set[str] = set()

    # ------------------------------------------------------------ taking values

    def add(self, name: str, value: Any, options: Options, batch_size: float | None = None) -> None:
        """Take one value, as ``self.log`` does.

        A tensor is read at once if that waits for nothing, else copied: no graph is kept, whatever
        ``enable_graph`` says, and a later change in place is not seen.

        Args:
            name: The metric's name.
            value: A number, a tensor of one element, or a metric object.
            options: The other arguments of ``self.log`` but the batch size, in their order.
            batch_size: The weight of the mean; found in the batch if None.

        Raises:
            MisconfigurationException: Where logging has no meaning, or if the arguments cannot be
                meant or differ from those that the same name was logged with before.
            ValueError: If the value is not a single number, or the batch size not positive.
            TypeError: If the name is not a string, or the batch size no number.
        """
        # This is the one place of the trainer that users run many times a step. A plain value costs
        # no further call, however it is reduced; that is why so much is written out here.
        if batch_size is not None and (type(batch_size) is not int or batch_size <= 0):
            batch_size = as_weight(name, batch_size)
        try:
            slot = self._tables[self.scope][name + self.suffix if self.suffix else name]
        except (KeyError, TypeError):
            slot = None
        if slot is None or slot.options != options:
            slot = self._slot(name, value, options)
            if slot is None:
                return
        if self.muted:
            if is_metric_object(value):  # which all ranks compute, at the epoch's end or with this step
                if self.size == 0:
                    self._other(slot, value, 0)
                slot.metric = value
            return
        if slot.host and type(value) is Tensor:
            try:
                number = value.item()
            except RuntimeError:
                number = as_number(name, value)
        elif slot.chunk is None and (type(value) is float or type(value) is int):
            number = value
        else:
            self._other(slot, value, batch_size)
            return
        code = slot.code
        if code == BATCH_MEAN:
            weight = self.size if batch_size is None else batch_size
            if weight is None:
                batch = self.batch
                kind = type(batch)
                # The usual batches: a tensor, or a flat collection of tensors of one length.
                for part in batch if kind is tuple or kind is list else batch.values() if kind is dict else (batch,):
                    length = part.size(0) if type(part) is Tensor and part.ndim else None
                    if length is None or (weight is not None and length != weight):
                        weight = None
                        break
                    weight = length
                self.size = weight = self._search_batch_size(slot) if weight is None else weight
            slot.total += number * weight
            slot.weight += weight
            slot.share = weight
        elif code:
            weight = 1 if batch_size is None or code != HOOK_MEAN else batch_size
            if code <= SUM:
                slot.total += number * weight
            elif (number < slot.total if code == MIN else number > slot.total) or number != number:  # noqa: PLR0124 - nan stays
                slot.total = number
            slot.weight += weight
        slot.last = number
        slot.time = self.time = self.time + 1

    @contextmanager
    def inside(self, hook: str, scope: int = FORBIDDEN) -> Iterator[None]:
        """Name the hook that runs in the block, and what it may log: nothing, unless a scope is given."""
        before = self.scope, self.hook
        self.scope, self.hook = scope, hook
        try:
            yield
        finally:
            self.scope, self.hook = before

    @contextmanager
    def mute(self) -> Iterator[None]:
        """Ignore what is logged in the block, which looks at a batch that counts elsewhere."""
        before, self.muted = self.muted, True
        try:
            yield
        finally:
            self.muted = before

    def _slot(self, name: Any, value: Any, options: Options) -> Slot | None:
        """Return the slot for a first call, or for one whose arguments look unlike the last; None drops the value.

        Raises:
            MisconfigurationException: If nothing may be logged here, or not like this.
            TypeError: If the name is not a string.
        """
        problem = key_problem(name, bool(options[8]))
        if problem is not None:
            raise (TypeError if problem.is_type else MisconfigurationException)(str(problem))
        if self.scope == FORBIDDEN:
            fix = "Log in a step, or in a hook of a batch or of an epoch."
            raise MisconfigurationException(
                Problem(f"self.log({name!r})", f"You can't self.log() inside `{self.hook}`", fix=fix)
            )
        metric = is_metric_object(value) and not hasattr(value, "items")
        new = open_slot(name, self.scope, self.suffix, options, metric)
        if new.rank_zero_only and self.rank != 0:
            return None
        slot = self._slots.get(new.key)
        if slot is None:
            if not metric and (not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex()):
                as_number(name, value)  # a value that is refused leaves no slot behind
            slot = self._slots[new.key] = new
            self.syncs = self.syncs or (new.sync and new.step)
            format_ = value.dtype if isinstance(value, Tensor) else torch.get_default_dtype()
            slot.double = not metric and format_ == torch.float64
            if slot.double:
                self.doubles.update(slot.names)
            self._advise(slot, metric)
        else:
            _check_same(slot, new)
        slot.options = options
        self._tables[self.scope][name + self.suffix] = slot
        return slot

    def _advise(self, slot: Slot, metric: bool) -> None:
        several = self.world_size > 1
        if several and slot.evaluating and slot.epoch and not (metric or slot.sync or slot.rank_zero_only):
            self._warn_once(
                "sync",
                f"self.log({slot.name!r}): each process reports the mean of its own samples, of this name and of all "
                "that are logged alike. Set sync_dist=True for the mean of all.",
                PossibleUserWarning,
            )

    def _other(self, slot: Slot, value: Any, batch_size: float | None) -> None:
        """Take a value that is neither a float nor a plain tensor known to lie in the host's memory."""
        if isinstance(value, Tensor) and not value.is_cpu:
            if value.numel() != 1 or value.is_complex():
                as_number(slot.name, value)
            if value.requires_grad:
                value = value.detach()
            value = (value.reshape(()) if value.ndim else value).clone()
            slot.last, slot.host = value, False
            slot.time = self.time = self.time + 1
            slot.share = self._weight(slot, batch_size)
            if slot.code:
                if slot.chunk is None:
                    slot.chunk = []
                slot.chunk.append((value, slot.share))
                if len(slot.chunk) >= _FOLD_EVERY:
                    floats([], self._slots.values())
            return
        if is_metric_object(value) and not hasattr(value, "items"):
            slot.metric, slot.result = value, None
            slot.time = self.time = self.time + 1
            slot.last = _step_result(slot) if slot.step else None
            return
        number = as_number(slot.name, value)
        slot.host = slot.host or isinstance(value, Tensor)
        fold(slot)  # what came before is added before
        slot.last = number
        slot.time = self.time = self.time + 1
        slot.share = self._weight(slot, batch_size)
        if slot.code:
            slot.accumulate(number, slot.share)

    def _weight(self, slot: Slot, batch_size: float | None) -> float:
        if slot.code not in (BATCH_MEAN, HOOK_MEAN):
            return 1
        if batch_size is not None or slot.code == HOOK_MEAN:
            return 1 if batch_size is None else batch_size
        if self.size is None:
            self.size = self._search_batch_size(slot)
        return self.size

    def _search_batch_size(self, slot: Slot) -> int:
        """Find the size of the running batch; without a batch, or a size that an epoch needs, each value counts as one.

        Raises:
            MisconfigurationException: If the batch holds no tensor.
        """
        from lt_core.data.nested import batch_size

        if self.batch is None:
            return 1
        size, ambiguous = batch_size(self.batch)
        where = f"self.log({slot.name!r})"
        if not slot.epoch:
            return size or 1
        if size is None:
            rule = "the mean over an epoch weighs each value by its batch's size, and this batch holds no tensor"
            fix = "Pass batch_size=."
            raise MisconfigurationException(Problem(where, rule, f"a batch of {type(self.batch).__name__}", fix))
        if ambiguous:
            self._warn_once(
                "size",
                f"{where}: the tensors of the batch differ in their first dimension; the first one's, {size}, "
                "is taken for the batch's size. Pass batch_size= to say which.",
            )
        return size

    def _warn_once(self, topic: str, message: str, category: type[Warning] = UserWarning) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warn(message, category)

    def add_returned(self, outputs: Mapping[str, Any]) -> None:
        """Log what a step returned for logging and did not log itself.

        Scalars under ``outputs["log"]`` are logged as ``self.log`` would with no further argument.
        In an evaluation so are those whose keys begin with ``val_`` or ``test_``, averaged over all ranks.
        """
        entries = outputs.get("log")
        if isinstance(entries, Mapping):
            for name, value in entries.items():
                self._add_returned(name, value, _DEFAULTS)
        if self.scope >= EVAL_BATCH_START:
            for name, value in outputs.items():
                if isinstance(name, str) and name.startswith(("val_", "test_")):
                    self._add_returned(name, value, _SYNCED)

    def _add_returned(self, name: Any, value: Any, options: Options) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(name, str) or not (number or (isinstance(value, Tensor) and value.ndim == 0)):
            return
        key = name + self.suffix
        before = TRAIN_BATCH_START if self.scope == TRAIN_STEP else EVAL_BATCH_START
        for table in (self._tables[before], self._tables[self.scope]):
            if key in table and not table[key].returned:
                return
        self.add(name, value, options)
        if key in self._tables[self.scope]:
            self._tables[self.scope][key].returned = True

    # ------------------------------------------------------------ epochs and checkpoints

    def reset(self) -> None:
        """Begin a new epoch: forget all values, and reset the metric objects that were logged for the epoch."""
        objects = {id(s.metric): s.metric for s in self._slots.values() if s.metric is not None and s.epoch}
        if not self._closed:  # else take_epoch did
            reset(objects.values())
        self._slots.clear()
        for table in self._tables:
            table.clear()
        self._closed = False

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on inside the epoch; the objects' own state is not part of it."""
        paths = {id(metric): path for path, metric in self._objects().items()}
        slots = []
        lasts = floats([s for s in self._slots.values() if self._last(s) is not None], self._slots.values())
        for slot in self._slots.values():
            settings = slot.settings()
            settings["group"] = None  # a process group belongs to its process; the next call names it again
            path = slot.path if slot.metric is None else paths.get(id(slot.metric))
            place = {"name": slot.name, "scope": slot.scope, "suffix": slot.suffix, "settings": settings}
            value = {"last": lasts.get(slot.key), "total": slot.total, "weight": slot.weight, "share": slot.share}
            times = {"fresh": slot.time > slot.taken, "time": slot.time, "double": slot.double}
            times["pending"] = slot.time > slot.shared
            slots.append({**place, **value, **times, "returned": slot.returned, "metric": path})
        return {"slots": slots, "time": self.time, "reduced_at": self.reduced_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned; metric objects are found again in ``module``."""
        self.reset()
        self.time, self.reduced_at = state.get("time", 0), state.get("reduced_at", 0)
        objects = self._objects()
        for kept in state.get("slots", ()):
            slot = Slot(kept["name"], kept["scope"], kept["suffix"], kept["settings"])
            slot.total, slot.weight, slot.returned = kept["total"], kept["weight"], kept["returned"]
            slot.last, slot.time, slot.double = kept["last"], kept.get("time", 0), kept.get("double", False)
            slot.taken, slot.share = slot.time - kept["fresh"], kept.get("share", 1)
            slot.shared = slot.time - kept.get("pending", True)
            slot.path, slot.metric = kept["metric"], objects.get(kept["metric"])
            self._slots[slot.key] = slot
            self.syncs = self.syncs or (slot.sync and slot.step)

    def _objects(self) -> dict[str, Any]:
        """Return the module's metric objects by path."""
        from lt_core.metrics.objects import find

        return {} if self.module is None else find(self.module)


class SilentStore(MetricStore):
    """Store that drops what it is given, with one warning: that of a trainer with ``barebones``."""

    def add(self, name: str, value: Any, options: Options, batch_size: float | None = None) -> None:
        """Drop a value."""
        self._warn_once("silent", "Trainer(barebones=True): self.log is switched off, and what it is given is dropped.")

    def add_returned(self, outputs: Mapping[str, Any]) -> None:
        """Drop what a step returned for logging."""


def _check_same(slot: Slot, new: Slot) -> None:
    """Refuse other arguments for a name that was logged before in the same place.

    Raises:
        MisconfigurationException: With what differs.
    """
    old, wanted = slot.settings(), new.settings()
    if slot.options is None:
        wanted["group"] = old["group"]
        slot.group = new.group
    differ = [key for key in wanted if wanted[key] is not old[key] and wanted[key] != old[key]]
    if differ:
        spelled = {"step": "on_step", "epoch": "on_epoch", "op": "reduce_fx", "bar": "prog_bar", "sync": "sync_dist"}
        spelled |= {"group": "sync_dist_group", "add_idx": "add_dataloader_idx"}
        got = ", ".join(f"{spelled.get(k, k)}={wanted[k]!r} after {old[k]!r}" for k in differ)
        rule = "a name that is logged again in the same hook must have the same arguments"
        raise MisconfigurationException(Problem(f"self.log({slot.name!r})", rule, got, "Use another name."))


def _step_result(slot: Slot) -> Any:
    """Return a metric object's value of this step: torchmetrics keeps that of its last forward."""
    found = getattr(slot.metric, "_forward_cache", None)
    if found is None:
        return AT_DEMAND
    if isinstance(found, Tensor) and found.device.type != "cpu" and found.numel() == 1:
        return found.detach().reshape(())
    return as_number(slot.name, found)
