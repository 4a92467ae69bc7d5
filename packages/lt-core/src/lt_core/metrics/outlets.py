"""Give what is logged: to loggers, callbacks and the bar; steps as they come, an epoch once it is reduced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from lt_core.metrics.reading import AT_DEMAND, computed, floats, fold
from lt_core.metrics.slot import EVAL_BATCH_START, EVAL_EPOCH_END, FORBIDDEN, TRAIN_EPOCH_END, Slot
from lt_core.metrics.sync import NEUTRAL, Part, sync_parts
from lt_interface.errors import MisconfigurationException

__all__ = ["Newest", "Outlets", "as_tensor", "reset"]

Newest = dict[str, tuple[int, Tensor]]  # times and values by name


class Outlets:
    """What a store gives: to each who asks, in the form and at the moment that they need.

    Args:
        collectives: The exchange between ranks; None for one process.
        device: Where tensors for that exchange are made.
        world_size: How many processes there are.

    Attributes:
        scope: The place of the code that runs now; sets defaults and what is allowed.
        time: The clock: how many values were logged and reduced.
        reduced_at: When an epoch's values were reduced last, by the clock.
        evaluates: Whether this is an evaluation's store.
        syncs: Whether a step value was ever logged here with ``sync_dist``.
        shares: Whether one was on any rank, as far as all ranks know; None before they first asked.
    """

    def __init__(self, collectives: Any, device: Any, world_size: int) -> None:
        self.collectives, self.device, self.world_size = collectives, device, world_size
        self.scope: int = FORBIDDEN
        self.time = self.reduced_at = 0
        self.evaluates = self.syncs = False
        self.shares: bool | None = None
        self._slots: dict[tuple[int, str], Slot] = {}
        self._shown: dict[tuple[int, str], float] = {}  # step values as they were last read
        self._closed = False

    def _by_time(self) -> list[Slot]:
        """Return the slots in an order in which a later one's value covers an earlier one's of the same name."""
        return sorted(self._slots.values(), key=attrgetter("time"))

    def take_step(self) -> dict[str, float]:
        """Return each step value that was logged for the loggers since the last call."""
        due = self._due()
        if self.world_size <= 1:
            values = floats(due, self._slots.values())
        elif self.scope >= EVAL_BATCH_START:
            # Ranks may differ in their number of evaluation batches, so each keeps its own values and exchanges none.
            due = [s for s in due if s.last is not AT_DEMAND]
            values = floats(due)
        else:
            objects = [s for s in due if s.last is AT_DEMAND]
            self._share([], objects)
            for slot in objects:
                slot.last = computed(slot)
            due = self._due()
            values = floats(due, self._slots.values())
        for slot in due:
            slot.taken = slot.time
        self._shown.update(values)
        return {s.step_name: values[s.key] for s in due if s.logger and s.key in values}

    def _due(self) -> list[Slot]:
        return [s for s in self._by_time() if s.time > s.taken and s.step]

    def share(self) -> None:
        """Reduce step values with ``sync_dist`` that were not yet, where ranks know that there are any.

        Every rank must call it. What is found takes the place of the rank's own value, for whoever reads it.
        """
        if self.shares:
            self._share([], ())

    def _share(self, parts: list[Part], objects: Iterable[Slot]) -> dict[str, float]:
        """Exchange pending step values together with other parts; return what is found for all of them."""
        slots = [] if self.evaluates else [s for s in self._slots.values() if s.sync and s.step]
        pending = {s.key: s for s in slots if s.time > s.shared}
        values = floats(pending.values(), self._slots.values())
        # A name that is known takes part without a value too, so that ranks that log it at times have the same names.
        mine = [(s, values[s.key] * s.share, s.share) if s.key in values and s.share else (s, 0, 0) for s in slots]
        found = self._exchange([*(_part(s, s.step_name, *m) for s, *m in mine), *parts], objects)
        for slot in self._by_time():  # also one without a value here, which takes the others'
            if slot.step and (key := f"{slot.scope}:{slot.step_name}") in found:
                slot.last, slot.time = found[key], self.time + 1  # newer than what was read before
                slot.shared = self.time = slot.time
        return found

    def _exchange(self, parts: list[Part], objects: Iterable[Slot]) -> dict[str, float]:
        names = [f"{s.scope}:{s.plain_name}" for s in objects]
        found, lacking = sync_parts(parts, self.collectives, self.device, names)
        for slot in (Slot(*place) for place in lacking):
            self._slots.setdefault(slot.key, slot)
        return found

    def sync(self, among: Iterable[Slot] | None = None) -> None:
        """Reduce the epoch's values: let the ranks agree on those logged with ``sync_dist``; every rank must call it.

        Metric objects are computed, since they exchange values by themselves: reading them later never does.

        Args:
            among: The slots whose values are reduced; all if None.
        """
        self.time = self.reduced_at = self.time + 1
        if self.world_size <= 1:
            return
        among = list(self._slots.values() if among is None else among)
        slots = [s for s in among if s.sync and s.epoch]
        for slot in slots:
            fold(slot)
        due = {s.key: s for s in slots if s.weight and (s.synced is None or s.synced[1] != (s.total, s.weight))}
        objects = [s for s in among if s.epoch and s.metric is not None and s.result is None]
        parts = [_part(s, s.epoch_name, s.total, s.weight) for s in due.values()]
        found = self._share(parts, objects)
        self.time = self.reduced_at = self.time + 1
        for slot in self._slots.values():  # a rank without values takes the others'
            if slot.epoch and (key := f"{slot.scope}:{slot.epoch_name}") in found:
                slot.synced = found[key], (slot.total, slot.weight)
        for slot in objects:
            slot.result = computed(slot)

    def so_far(self, watched: Set[str]) -> Newest:
        """Return the epoch's values so far, over all ranks those logged with ``sync_dist``; every rank must call it.

        Metric objects that not all ranks have by now are left out; by the epoch's end they must have them.

        Args:
            watched: The names that somebody looks at: only for these metric objects are computed.
        """
        floats([], self._slots.values())
        slots = [s for s in self._by_time() if s.epoch and (s.metric is None or not watched.isdisjoint(s.names))]
        try:
            self.sync(slots)
        except MisconfigurationException:  # raised on every rank
            own = {s.key for s in slots if s.sync or s.metric is not None}
            missing = own - set.intersection(*self.collectives.gather_object(own))
            slots = [s for s in slots if s.key not in missing]
            self.sync(slots)
        found: Newest = {}
        for slot in slots + [s for s in self._slots.values() if s.synced and s not in slots]:
            if (value := self._epoch_value(slot)) is not None:
                found[slot.plain_name] = found[slot.epoch_name] = self.reduced_at, as_tensor(value, slot.double)
            slot.synced = slot.result = None  # the epoch's end reduces anew
        return found

    def take_epoch(self) -> dict[str, float]:
        """Return the epoch's values for the loggers, and reset the metric objects that they came from."""
        self.sync()
        slots = [s for s in self._by_time() if s.epoch]
        values = {s.key: self._epoch_value(s) for s in slots}
        self._closed = True
        objects = {}
        for slot in slots:
            if slot.metric is not None:
                slot.result = values[slot.key]
                slot.last = slot.result if slot.last is AT_DEMAND else slot.last
                objects[id(slot.metric)] = slot.metric
        reset(objects.values())  # after all were computed: one may stand under two names
        return {s.epoch_name: v for s in slots if s.logger and (v := values[s.key]) is not None}

    def _epoch_value(self, slot: Slot) -> float | None:
        if slot.metric is not None:
            # With several ranks `sync` computed it: here it would wait for ranks that may not read at all. Once the
            # epoch is closed the object is reset.
            known = slot.result is not None or self.world_size > 1 or self._closed
            return slot.result if known else computed(slot)
        fold(slot)
        return slot.reduced()

    def _last(self, slot: Slot) -> Any:
        """Return a slot's newest step value, None if there is none that one rank can find alone."""
        if slot.last is AT_DEMAND:
            return computed(slot) if self.world_size <= 1 else None
        return slot.last

    def _at_end(self) -> bool:
        return self._closed or self.scope in (TRAIN_EPOCH_END, EVAL_EPOCH_END)

    def callback_metrics(self) -> dict[str, Tensor]:
        """Return the newest values as 0-dim tensors, whatever their destination.

        Within an epoch these are the last step's; from its end hook on, the epoch's too. Of an
        evaluation only the epoch's. A step's value that lies on a device stays there.
        """
        return {name: value for name, (_, value) in self.newest({}).items()}

    def logger_names(self) -> list[str]:
        """Return the names under which loggers get what was logged, in the order of logging."""
        slots = [s for s in self._by_time() if s.logger]
        return [s.step_name for s in slots if s.step] + [s.epoch_name for s in slots if s.epoch]

    def newest(self, known: Mapping[str, int]) -> Newest:
        """Return what `callback_metrics` returns with the time of each value: its step's, or its reduction's.

        Args:
            known: The times of values that are known already; what is not newer is left out.
        """
        out: Newest = {}
        slots = self._by_time()
        for slot in slots:
            new = slot.time > known.get(slot.step_name, -1)
            if new and slot.step and not slot.evaluating and (last := self._last(slot)) is not None:
                out[slot.plain_name] = out[slot.step_name] = slot.time, as_tensor(last, slot.double)
        for slot in slots if self._at_end() else ():
            time = max(self.reduced_at, slot.time)
            new = time > known.get(slot.epoch_name, -1)
            if new and slot.epoch and (value := self._epoch_value(slot)) is not None:
                out[slot.plain_name] = out[slot.epoch_name] = time, as_tensor(value, slot.double)
        return out

    def progress_bar_metrics(self, wait: bool = True) -> dict[str, float]:
        """Return what was logged with ``prog_bar``: the last step's values, at an epoch's end the epoch's too.

        Args:
            wait: Whether to wait for values on a device. Else each is waited for once, and then is the one that
                was read last.
        """
        bars = [s for s in self._by_time() if s.bar]
        steps = [s for s in bars if s.step and self._last(s) is not None]
        known = {} if wait else {s.key: self._shown[s.key] for s in steps if s.waits and s.key in self._shown}
        values = known | floats([s for s in steps if s.key not in known])
        self._shown.update(values)
        out = {s.step_name: values[s.key] for s in steps if s.key in values}
        if self._at_end():
            out.update({s.epoch_name: v for s in bars if s.epoch and (v := self._epoch_value(s)) is not None})
        return out

    def epoch_metrics(self) -> dict[str, float]:
        """Return every epoch value under the name it is delivered by, whatever its destination."""
        slots = [s for s in self._by_time() if s.epoch]
        return {s.epoch_name: v for s in slots if (v := self._epoch_value(s)) is not None}


def _part(slot: Slot, name: str, total: float, weight: float) -> Part:
    total = total if weight else NEUTRAL[slot.op]
    return Part(f"{slot.scope}:{name}", slot.op, slot.group, total, weight, slot.place())


def reset(metrics: Iterable[Any]) -> None:
    """Reset metric objects."""
    with torch.inference_mode(False):  # states made within it could not be updated in training
        for metric in metrics:
            metric.reset()


def as_tensor(value: Any, double: bool) -> Tensor:
    """Return a value as a 0-dim tensor in single or double precision; one that is a tensor stays where it is."""
    if isinstance(value, Tensor):
        return value if value.dtype in (torch.float32, torch.float64) else value.to(torch.float32)
    return torch.tensor(float(value), dtype=torch.float64 if double else torch.float32)
