"""Judge by the measured actions what a run waited for, and what a person can do about it.

Each second belongs to one phase: that of the innermost action, unless it lies in a validation, a save or the setup,
which count as a whole. Shares are of the time after the setup. A phase other than computing is worth a sentence from a
quarter of the time on; the largest one is the bottleneck, otherwise the computing. Where batches of a few samples are
done in a few milliseconds, most of it is what each batch costs whatever its size, and their size is the bottleneck.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

from lt_core.profilers.tree import Action

__all__ = ["Verdict", "judge"]

TITLES = {
    "data": "waiting for data",
    "transform": "batch hooks",
    "transfer": "transfer",
    "computing": "computing",
    "hooks": "other hooks",
    "logging": "logging",
    "validation": "validation",
    "saving": "saving",
    "other": "the rest",
    "setup": "setup, before",
}
WORTH_IT = 0.25
FEW_SAMPLES, SHORT_STEP, SHORT_WAIT = 8, 0.010, 0.002  # samples a batch, seconds of a step, seconds beside it
_WHOLE = {"setup", "validation", "saving"}
_STEPS = {"training_step", "validation_step", "test_step", "predict_step"}
_PARTS = {
    **dict.fromkeys([*_STEPS, "run_training_batch", "backward", "optimizer_step", "zero_grad"], "computing"),
    **dict.fromkeys(["optimizer_zero_grad", "configure_gradient_clipping", "clip_gradients"], "computing"),
    **dict.fromkeys(["batch_to_device", "transfer_batch_to_device"], "transfer"),
    **dict.fromkeys(["on_before_batch_transfer", "on_after_batch_transfer"], "transform"),
    **dict.fromkeys(["log", "flush_loggers"], "logging"),
    **dict.fromkeys(["save_checkpoint", "wait_for_checkpoint", "on_save_checkpoint"], "saving"),
    **dict.fromkeys(["setup", "prepare_data"], "setup"),
}


class Verdict(dict[str, Any]):
    """Plain values that say what a run waited for; as text a sentence to act on, and the shares below it.

    The keys are ``bottleneck`` (a phase, ``"batch size"`` or ``"nothing"``), ``share`` (0 to 1), ``text``, ``advice``,
    ``seconds``, ``stage``, ``rank``, ``phases`` (by name: ``seconds``, ``share``, ``calls``), ``also`` (texts of
    further phases that are worth a look) and ``facts`` (flags and sizes of the run).
    """

    def __str__(self) -> str:
        lines = [f"Verdict: {self['text']}"]
        shown = sorted(self["phases"].items(), key=lambda item: (item[0] == "setup", -item[1]["seconds"]))
        for name, phase in shown:
            share = "" if name == "setup" else f"{100 * phase['share']:.1f} %"
            each = 1e3 * phase["seconds"] / phase["calls"] if phase["calls"] else 0.0
            calls = f"  {phase['calls']} times, {each:.3g} ms each" if phase["calls"] > 1 else ""
            lines.append(f"  {TITLES[name]:<17} {share:>7}  {phase['seconds']:9.4g} s{calls}")
        return "\n".join([*lines, *(f"  Also: {text}" for text in self["also"])])


def phase_of(action: str, outer: str, fits: bool) -> str:
    """Return the phase of an action.

    Args:
        action: Its name.
        outer: The phase of the action around it.
        fits: Whether the run is a fit, in which a validation counts as a whole.
    """
    if outer in _WHOLE:
        return outer
    kind, _, part = action.rpartition(".")
    part = part.rpartition("]")[2]
    if part in _PARTS:
        return _PARTS[part]
    if part.endswith("_next"):
        return "data"
    if kind.startswith("[Logger]"):
        return "logging"
    if part.startswith("setup_") or part.endswith("_dataloader"):
        return "setup"
    if part == "run_validation" and fits:
        return "validation"
    return "hooks" if kind.startswith(("[Callback]", "[LightningModule]", "[LightningDataModule]")) else outer


def _walk(action: Action, phase: str, fits: bool) -> Iterator[tuple[str, str, Action]]:
    """Yield each action below one with its phase and that of the action around it."""
    for part in action.inside.values():
        its = phase_of(part.name, phase, fits)
        yield its, phase, part
        yield from _walk(part, its, fits)


class _Measured:
    """Seconds of a run by phase, and the figures that sentences name."""

    def __init__(self, root: Action, seconds: float, fits: bool, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.parts: dict[str, dict[str, float]] = {}
        self.durations: dict[str, Any] = {}
        for phase, outer, action in _walk(root, "other", fits):
            self.seconds[phase] = self.seconds.get(phase, 0.0) + action.own
            by_name = self.parts.setdefault(phase, {})
            by_name[action.name] = by_name.get(action.name, 0.0) + action.own
            self.durations[action.name] = action.durations
            if phase != outer:
                self.calls[phase] = max(self.calls.get(phase, 0), len(action.durations))
        rest = seconds - sum(action.seconds for action in root.inside.values())
        self.seconds["other"] = self.seconds.get("other", 0.0) + max(rest, 0.0)
        self.calls.pop("other", None)
        steps = ["run_training_batch", *(f".{name}" for name in sorted(_STEPS - {"training_step"}))]
        self.step = self.median(*(steps[:1] if fits else steps))
        self.whole = max(seconds - self.seconds.get("setup", 0.0), 1e-9)

    def share(self, phase: str) -> float:
        """Return the share of a phase in the time after the setup."""
        return self.seconds.get(phase, 0.0) / self.whole

    def top(self, phase: str) -> str:
        """Return the action of a phase that took longest, without the kind of its owner."""
        parts = self.parts[phase]
        return re.sub(r"\{.*\}", "", max(parts, key=parts.__getitem__).rpartition("]")[2])

    def now(self, *names: str) -> str:
        """Return flags with the values that they have now."""
        return ", ".join(f"{name} (now {self.facts[name]})" if name in self.facts else name for name in names)

    @property
    def is_tiny(self) -> bool:
        """Return whether batches are so small, and all that is done with one so short, that most of it is overhead."""
        size, wait = self.facts.get("batch_size"), self.median("_next")
        batches = max(self.calls.get("computing", 0), 1)
        beside = sum(self.seconds.get(phase, 0.0) for phase in ("transform", "transfer", "hooks")) / batches
        if size is None or size > FEW_SAMPLES or not 0 < self.step < SHORT_STEP:
            return False
        return wait <= min(SHORT_WAIT, 2 * self.step) and beside <= SHORT_WAIT

    def median(self, *ends: str) -> float:
        """Return the median seconds of the actions with one of the names' ends; 0 where there is none."""
        found = [x for name, each in self.durations.items() if name.endswith(ends) for x in each]
        return median(found) if found else 0.0


def _data(m: _Measured) -> str:
    workers, cores = m.facts.get("num_workers"), m.facts.get("cores") or os.cpu_count() or 1
    if workers is None:
        kind = m.facts.get("loader", "an iterable")
        return f"the batches come from {kind}, in the training process; give a DataLoader with num_workers"
    if not workers:
        return "raise num_workers (now 0): loading and its transforms run in the training process"
    waits = sorted((x for name, each in m.durations.items() if name.endswith("_next") for x in each), reverse=True)
    passes = len(m.durations.get("run_training_epoch", ()))
    if passes > 1 and sum(waits[:passes]) > sum(waits) / 2 and not m.facts.get("persistent_workers"):
        return "most of it at the epochs' starts, where workers are started: set persistent_workers=True"
    if workers < cores:
        return f"raise num_workers (now {workers}, of {cores} cores), or make the dataset's transform cheaper"
    return (
        f"num_workers is {workers} on {cores} cores: make the dataset's __getitem__ and transform cheaper, "
        "or keep on disk what they make"
    )


def _transform(m: _Measured) -> str:
    return (
        f"{m.top('transform')} runs in the training process: move the transform into the dataset, where "
        f"{m.now('num_workers')} run it beside the training"
    )


def _transfer(m: _Measured) -> str:
    if m.top("transfer").endswith("transfer_batch_to_device"):
        return f"most of it in {m.top('transfer')}: do less there, and in the dataset what needs no device"
    return f"set {m.now('pin_memory')} to True, or move smaller numbers, such as uint8 that the device converts"


def _validation(m: _Measured) -> str:
    flags = m.now("check_val_every_n_epoch", "val_check_interval", "limit_val_batches")
    parts = m.parts["validation"]
    waits = sum(seconds for name, seconds in parts.items() if name.endswith("_next"))
    of_it = waits / max(m.seconds["validation"], 1e-9)
    more = f"; {100 * of_it:.0f} % of it is waiting for data: raise num_workers of its loader" if of_it > 0.5 else ""
    return f"validate less often, or fewer batches: {flags}{more}"


def _logging(m: _Measured) -> str:
    if m.top("logging").endswith("flush_loggers"):
        most = "the loggers are slower than the loop"
    else:
        most = f"most of it in {m.top('logging')}"
    often = f"raise {m.now('log_every_n_steps')}, or " if "log_every_n_steps" in m.facts else ""
    return f"{most}: {often}log fewer and smaller values"


def _saving(m: _Measured) -> str:
    top = m.top("saving")
    of = f"most of it in {top}; " if top.endswith("on_save_checkpoint") else ""
    return (
        f"{of}save less often (every_n_train_steps, every_n_epochs, train_time_interval of ModelCheckpoint), "
        "or beside the training: plugins=AsyncCheckpointIO()"
    )


_ADVICE: dict[str, Callable[[_Measured], str]] = {
    "data": _data,
    "transform": _transform,
    "transfer": _transfer,
    "hooks": lambda m: f"most of it in {m.top('hooks')}: do less there, or not after each batch",
    "logging": _logging,
    "validation": _validation,
    "saving": _saving,
}
_WHAT = {
    "data": "waiting for data",
    "transform": "in batch hooks",
    "transfer": "moving batches to the device",
    "hooks": "in hooks",
    "logging": "logging",
    "validation": "in validation",
    "saving": "saving checkpoints",
}


def _computing(m: _Measured) -> tuple[str, str]:
    """Return the bottleneck and its sentence where no other phase is."""
    if m.is_tiny:
        size = m.facts["batch_size"]
        return "batch size", (
            f"tiny batches: a step of {size:g} samples takes {1e3 * m.step:.2g} ms, most of which each step costs "
            f"whatever its size: raise batch_size (now {size:g})"
        )
    parts = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
    for action, seconds in m.parts.get("computing", {}).items():
        part = action.rpartition(".")[2]
        name = "forward" if part in _STEPS else part.removesuffix("_step")
        parts[name] = parts.get(name, 0.0) + seconds
    shares = ", ".join(f"{name} {100 * parts[name] / m.whole:.0f} %" for name in ("forward", "backward", "optimizer"))
    return "computing", (
        f"{100 * m.share('computing'):.0f} % of the time computing ({shares}): no other part of the loop holds it up; "
        "lower precision, torch.compile or larger batches make a sample cheaper"
    )


def judge(root: Action, seconds: float, stage: str, rank: int, facts: Mapping[str, Any]) -> Verdict:
    """Return the verdict on a run.

    Args:
        root: The run, its actions inside.
        seconds: How long it took.
        stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        rank: Whose figures these are.
        facts: What `lt_interface.TakesFacts` gives.
    """
    m = _Measured(root, seconds, stage == "fit", facts)
    phases = {
        name: {"seconds": m.seconds[name], "share": m.share(name), "calls": m.calls.get(name, 0)}
        for name in TITLES
        if m.seconds.get(name, 0.0) > 0
    }
    texts = {
        name: f"{100 * m.share(name):.0f} % of the time {_WHAT[name]}: {_ADVICE[name](m)}"
        for name in sorted(_ADVICE, key=m.share, reverse=True)
        if m.share(name) >= WORTH_IT
    }
    found, share = next(iter(texts), ""), m.share("computing")
    if not stage or not root.inside:  # as in the process that has launched the ranks
        found, text, share = "nothing", "nothing was measured", 0.0
    elif not found or (m.is_tiny and all(share > m.share(phase) for phase in ("logging", "validation", "saving"))):
        found, text = _computing(m)
    else:
        text, share = texts.pop(found), m.share(found)
    return Verdict(
        bottleneck=found,
        share=share,
        text=f"{text}.",
        advice=text.partition(": ")[2],
        seconds=seconds,
        stage=stage,
        rank=rank,
        phases=phases,
        also=[f"{text}." for text in texts.values()],
        facts=dict(facts),
    )
