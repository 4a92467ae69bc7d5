"""Measure torch's operations, on the device too, and write traces of them."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from lt_core.notices import warn
from lt_core.profilers.base import MeasuringProfiler
from lt_interface.errors import Problem, choice_problems, nearest, raise_problems

if TYPE_CHECKING:
    from torch import nn
    from torch.autograd.profiler import record_function
    from torch.utils.hooks import RemovableHandle

__all__ = ["PyTorchProfiler"]

FIRST_STEPS = 5
SORT_KEYS = {
    f"{own}{where}_{what}"
    for own in ("", "self_")
    for where in ("cpu", "cuda", "device")
    for what in ("time", "time_total", "memory_usage")
} | {"count"}
_EVALUATION = ("validation_step", "test_step", "predict_step")


class PyTorchProfiler(MeasuringProfiler):
    """Profiler that measures torch's operations by ``torch.profiler``, and writes traces for Perfetto or TensorBoard.

    A step of its schedule is a training batch, or outside of fit a batch of the evaluation. Without a ``schedule`` the
    first five steps are traced, the first one with what is done once.

    Args:
        dirpath: The folder of report and traces; None means the trainer's ``default_root_dir``.
        filename: The middle of the files' names; None and no ``dirpath`` mean that the report is printed.
        group_by_input_shapes: Whether the report has a row for each shape of an operation's inputs.
        emit_nvtx: Whether ranges are marked for ``nvprof`` or Nsight, in place of tracing. Needs a CUDA device.
        export_to_chrome: Whether each trace is written to ``<stage>-<filename>-<rank>.<number>.pt.trace.json``.
        row_limit: How many rows the report has; -1 means all.
        sort_by_key: What it is sorted by, such as ``"self_cpu_time_total"``; None: by the device's total time.
        record_module_names: Whether each submodule's forward pass is marked by its name.
        table_kwargs: More arguments of torch's ``table``.
        profiler_kwargs: Arguments of ``torch.profiler.profile``: ``schedule``, ``activities``, ``on_trace_ready``,
            ``record_shapes``, ``profile_memory``, ``with_stack``, ``with_flops`` and alike.

    Attributes:
        function_events: The newest trace's operations; None before there is one.

    Raises:
        ConfigError: If an argument is unknown, or not of its kind; all problems at once.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.demos import BoringModel
        >>> from torch.profiler import schedule
        >>> quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        >>> profiler = PyTorchProfiler(dirpath="profiles", schedule=schedule(wait=1, warmup=1, active=2, repeat=1))
        >>> trainer = Trainer(accelerator="cpu", max_steps=5, logger=False, profiler=profiler, **quiet)
        >>> trainer.fit(BoringModel())
        >>> any(event.name == "aten::linear" for event in profiler.function_events)
        True
    """

    _word = "pytorch"
    _measured = MeasuringProfiler._measured | {
        "_profile",
        "_nvtx",
        "_ranges",
        "_handles",
        "_averages",
        "function_events",
    }

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: Mapping[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        raise_problems(_problems(emit_nvtx, sort_by_key, table_kwargs or {}, profiler_kwargs))
        self._group_by_input_shapes = group_by_input_shapes
        self._emit_nvtx, self._export_to_chrome = emit_nvtx, export_to_chrome
        self._row_limit, self._sort_by_key = row_limit, sort_by_key
        self._record_module_names, self._table_kwargs = record_module_names, dict(table_kwargs or {})
        self._profiler_kwargs = {"schedule": _first_steps, **profiler_kwargs}
        if group_by_input_shapes:
            self._profiler_kwargs.setdefault("record_shapes", True)
        super().__init__(dirpath, filename)

    def _begin(self) -> None:
        self._profile: Any = None
        self._nvtx: Any = None
        self._ranges: list[record_function] = []
        self._handles: list[RemovableHandle] = []
        self._averages: Any = None
        self.function_events: Any = None
        self._steps, self._traced = 0, False
        super()._begin()

    def take_module(self, module: nn.Module) -> None:
        """Mark the forward pass of each submodule in traces."""
        for name, part in module.named_modules() if self._record_module_names else ():
            if name:
                marks = _Marks(f"[module]{type(part).__module__}.{type(part).__name__}: {name}")
                self._handles.append(part.register_forward_pre_hook(marks.begin))
                self._handles.append(part.register_forward_hook(marks.end, always_call=True))

    def start(self, action_name: str) -> None:
        """Begin an action, and before the first batch the tracing."""
        fits = self._stage == "fit"
        if not self.measures:
            return
        if action_name == "run_training_epoch" if fits else action_name.endswith("_next"):
            self._trace()
        super().start(action_name)
        if action_name != "run_training_epoch":
            self._ranges.append(torch.profiler.record_function(action_name))
            self._ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    def stop(self, action_name: str) -> None:
        """End an action, and with a batch's last one the schedule's step."""
        if not self.measures:
            return
        if self._ranges and self._ranges[-1].name == action_name:
            self._ranges.pop().__exit__(None, None, None)
        super().stop(action_name)
        fits = self._stage == "fit"
        if action_name == "run_training_batch" if fits else action_name.endswith(_EVALUATION):
            self._steps += 1
            profile, self._profile = self._profile, None
            if profile is not None:
                with warnings.catch_warnings():  # each trace is kept where it is ready
                    warnings.filterwarnings("ignore", message=".*Profiler clears events at the end of each cycle")
                    profile.step()
                self._profile = profile  # where the step raised, torch cannot stop it any more

    def _trace(self) -> None:
        """Begin to trace, unless that was done."""
        if self._traced:
            return
        self._traced = True
        if self._emit_nvtx:
            self._nvtx = torch.autograd.profiler.emit_nvtx()  # type: ignore[no-untyped-call]
            self._nvtx.__enter__()
            return
        own = self._profiler_kwargs.get("on_trace_ready")

        def ready(profile: Any) -> None:
            self._averages = profile.key_averages(group_by_input_shape=self._group_by_input_shapes)
            self.function_events = profile.events()
            if own is not None:
                own(profile)
            elif self._export_to_chrome:
                try:
                    folder, name = os.path.split(self.path(""))
                    torch.profiler.tensorboard_trace_handler(folder, name)(profile)
                except (OSError, RuntimeError) as error:  # a trace is not worth a run
                    warn(f"PyTorchProfiler: the trace was not written to {self._folder}: {error}")

        self._profile = torch.profiler.profile(**{**self._profiler_kwargs, "on_trace_ready": ready})
        self._profile.start()

    def _end(self) -> None:
        """End tracing; what is being traced is complete by it."""
        profile, self._profile = self._profile, None
        nvtx, self._nvtx = self._nvtx, None
        while self._handles:
            self._handles.pop().remove()
        while self._ranges:
            self._ranges.pop().__exit__(None, None, None)
        if profile is not None:
            profile.stop()
        if nvtx is not None:
            nvtx.__exit__(None, None, None)

    def report(self) -> str:
        """Return torch's table of the newest trace."""
        title = f"{type(self).__name__}: {self._stage or 'no run'}, {self.elapsed:.4g} s, {self._steps} steps"
        if self._averages is None:
            why = "the ranges are in nvprof's own trace" if self._emit_nvtx else "the schedule traces later steps"
            return f"{title}\nNo step was traced: {why}."
        where = "device" if any(event.device_time_total for event in self._averages) else "cpu"
        key = (self._sort_by_key or f"{where}_time_total").replace("cuda", "device")
        arguments = {"sort_by": key, "row_limit": self._row_limit, **self._table_kwargs}
        return f"{title}\n{self._averages.table(**arguments)}"

    def describe(self) -> None:
        """End tracing, and report."""
        self._end()
        super().describe()

    def teardown(self, stage: str | None) -> None:
        """End tracing, and take the marks out of the model."""
        super().teardown(stage)
        self._end()


class _Marks:
    """Ranges around the forward passes of one submodule, which may call itself.

    Args:
        name: What they are called.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.open: list[record_function] = []

    def begin(self, *args: Any) -> None:
        """Begin a range."""
        self.open.append(torch.profiler.record_function(self.name))
        self.open[-1].__enter__()  # type: ignore[no-untyped-call]

    def end(self, *args: Any) -> None:
        """End the newest range."""
        if self.open:
            self.open.pop().__exit__(None, None, None)


def _first_steps(step: int) -> Any:
    """Return torch's action for a step where no schedule was given."""
    action = torch.profiler.ProfilerAction
    if step >= FIRST_STEPS:
        return action.NONE
    return action.RECORD if step < FIRST_STEPS - 1 else action.RECORD_AND_SAVE


def _problems(nvtx: bool, key: Any, table: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the arguments of a `PyTorchProfiler`."""
    found = []
    if nvtx and not torch.cuda.is_available():
        found.append(
            Problem(
                "PyTorchProfiler(emit_nvtx=True)", "marking ranges for nvprof needs a CUDA device", fix="Leave it out."
            )
        )
    if key is not None:
        found += choice_problems(f"PyTorchProfiler(sort_by_key={key!r})", key, sorted(SORT_KEYS))
    for name in sorted({"sort_by", "row_limit"} & set(table)):
        own = "sort_by_key" if name == "sort_by" else name
        found.append(
            Problem(
                f"PyTorchProfiler(table_kwargs={{{name!r}: ...}})",
                "this has an argument of its own",
                fix=f"Write {own}=....",
            )
        )
    known: list[Callable[..., Any]] = [torch.profiler.profile.__init__, torch.autograd.profiler_util.EventList.table]
    for names, function, shown in ((given, known[0], "{}=..."), (table, known[1], "table_kwargs={{'{}': ...}}")):
        takes = set(inspect.signature(function).parameters) - {"self"}
        for name in sorted(set(names) - takes):
            fix = nearest(name, takes) or f"Those are: {', '.join(sorted(takes))}."
            where = f"PyTorchProfiler({shown.format(name)})"
            found.append(Problem(where, "torch's profiler takes no such argument", fix=fix, is_type=True))
    if (ready := given.get("on_trace_ready")) is not None and not callable(ready):
        rule = "this must be a function that takes the profiler"
        found.append(Problem(f"PyTorchProfiler(on_trace_ready={ready!r})", rule, fix="Pass a function.", is_type=True))
    if (schedule := given.get("schedule")) is not None:
        action = schedule(0) if callable(schedule) else schedule
        if not isinstance(action, torch.profiler.ProfilerAction):
            where = f"PyTorchProfiler(schedule={schedule!r})"
            rule = "this must be a function that returns a torch.profiler.ProfilerAction for a step"
            fix = "Write torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1)."
            found.append(Problem(where, rule, f"{action!r} for step 0", fix, is_type=True))
    return found
