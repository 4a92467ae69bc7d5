"""Logger for TensorBoard event files."""

from __future__ import annotations

import itertools
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lt_interface import ConfigError, MisconfigurationException, Problem, Record
from lt_interface.hyperparameters import flatten, plain_dict
from lt_interface.versions import VersionedLogger, files_are_gone, replace_text, unless_silent
from lt_loggers.arguments import check_choice, check_numbers, check_paths, missing
from lt_loggers.tensorboard import event_files
from lt_loggers.tensorboard.media import TensorBoardMedia

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TensorBoardLogger"]

_opened = itertools.count()


class TensorBoardLogger(VersionedLogger, TensorBoardMedia):
    """Logger that writes metrics, hyper-parameters and the model's graph to ``<save_dir>/<name>/version_N``.

    Args:
        save_dir: The folder below which all experiments lie.
        name: The experiment's name; empty for no folder of its own.
        version: The run's number or folder name; None takes the next number, claimed at the
            first use, so that runs that start at once never share a folder.
        log_graph: Whether to draw the model's graph; it needs ``example_input_array``.
        default_hp_metric: Whether hyper-parameters that are logged without metrics get a
            metric ``hp_metric`` of -1: TensorBoard shows no hyper-parameters without one.
        prefix: Text before each metric's name, followed by ``-``.
        sub_dir: A folder inside the version's for the event files.
        delivery: ``"sync"`` or ``"async"``; None for what the trainer's ``logger_delivery`` says.
        flush_timeout: How many seconds the end of a run, or ``flush``, waits without progress.
        **kwargs: Given to ``SummaryWriter``, such as ``max_queue``, ``flush_secs`` or
            ``filename_suffix``.

    Raises:
        MissingPackageError: If neither TensorBoard with torch nor tensorboardX is installed.
        MisconfigurationException: If ``save_dir`` is a remote address.
    """

    _metric_rule, _metric_got = "a metric must be a number or a dict of numbers", "{kind}"
    _metric_fix = "Log pictures, text and histograms through logger.experiment."

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        *,
        delivery: str | None = None,
        flush_timeout: float = 30.0,
        **kwargs: Any,
    ) -> None:
        _writer_package()
        check_choice("TensorBoardLogger", "delivery", delivery, (None, "sync", "async"))
        check_paths("TensorBoardLogger", save_dir=save_dir, sub_dir=sub_dir)
        check_numbers("TensorBoardLogger", flush_timeout=flush_timeout)
        if save_dir is None:
            raise ConfigError(Problem("TensorBoardLogger(save_dir=None)", "it must be a path", fix="Write '.'."))
        super().__init__(save_dir, name, version, prefix, delivery, flush_timeout)
        self._log_graph, self._default_hp_metric = log_graph, default_hp_metric
        self._sub_dir = None if sub_dir is None else os.path.expanduser(os.path.expandvars(os.fspath(sub_dir)))
        self._kwargs = kwargs
        self.hparams: dict[str, Any] = {}
        self._writer: Any = None
        self._writer_pid = 0
        self._purge_step: int | None = None
        self._shown_again: list[Any] = []  # what the purge takes though it was there at the checkpoint
        self._present: dict[str, int] = {}
        self._known: Counter[tuple[str, int, float]] = Counter()
        self._is_read = self._replaces = False
        self._sequence = -1  # of the last record that was written
        self._event_file: tuple[str, int] | None = None
        self._has_hp_metric = self._has_graph = False

    @property
    def log_dir(self) -> str:
        """Return the folder of this run's event files."""
        folder = super().log_dir
        return folder if self._sub_dir is None else os.path.join(folder, self._sub_dir)

    @property
    def sub_dir(self) -> str | None:
        """Return the folder inside the version's, or None."""
        return self._sub_dir

    def _started(self) -> Any:
        """Return the ``SummaryWriter``."""
        with self.exclusive():
            if self._writer is None or self._writer_pid != os.getpid():  # a forked writer has lost its thread
                is_first = self._writer is None and not self._is_read and not self._replaces
                try:
                    if self._replaces:
                        event_files.check_for_room(self.log_dir)
                        event_files.wait_for_a_later_name(self.log_dir)
                    self._writer = self._open(self.log_dir, self._purge_step)
                    self._event_file = event_files.event_file_of(self._writer)
                except OSError as error:
                    event_files.remove_empty(self.log_dir)
                    raise (self._unwritable(error) if is_first else error) from error
                for event in self._shown_again:
                    self._writer._get_file_writer().event_writer.add_event(event)
                self._writer_pid = os.getpid()
                self._purge_step, self._shown_again = None, []
            return self._writer

    @unless_silent
    def log_records(self, records: Sequence[Record], unsure: bool = False) -> None:
        """Write records as scalars with their own wall time.

        Args:
            records: What to write.
            unsure: Whether some may be there: the event files are read, and what they hold is passed over.

        Raises:
            OSError: If nothing can be written.
        """
        with self.exclusive():
            again = bool(records) and records[0].sequence <= self._sequence
            if unsure and (again or not self._is_read):
                if self._writer is not None and self._writer_pid == os.getpid():
                    self._writer.flush()
                self._known = event_files.scalars(self.log_dir, _event_type())
                self._is_read = True
            self._check_file()
            self._sequence = records[-1].sequence if records else self._sequence
            with self._replaced_after_an_error():
                for record in records:
                    self._write(record)

    def _write(self, record: Record) -> None:
        self._has_hp_metric |= "hp_metric" in record.values
        for key, value in record.values.items():
            name = self._tag_of(key)
            identity = (name, record.step, record.time)
            if self._known and self._known[identity]:
                self._known[identity] -= 1
            else:
                self.experiment.add_scalar(name, float(value), record.step, walltime=record.time)

    def _tag_of(self, key: str) -> str:
        name = self._prefixed(key)
        tag = _tag(name)
        if tag != name:
            renamed = f"it is logged as {tag!r}, and each other name of that kind alike."
            self._warn_once("names", f"TensorBoardLogger: tensorboardX takes no name {name!r}; {renamed}")
        return tag

    @contextmanager
    def _replaced_after_an_error(self) -> Iterator[None]:
        """Drop a writer that failed; the next one reads what is there."""
        try:
            yield
        except OSError:
            self._check_file()
            self._writer, self._is_read, self._replaces = None, False, True
            raise

    @unless_silent
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write scalars.

        Args:
            metrics: Numbers or single-element tensors by name; a dict of them is drawn as
                several curves in one chart.
            step: The step; if left out the run's, or 0 outside of a run. During a run they are written from
                the logger's thread.

        Raises:
            MisconfigurationException: If a value is no number.
        """
        given: dict[str, float | dict[str, float]] = {}
        for key, value in metrics.items():
            name = self._tag_of(key)
            if isinstance(value, Mapping):
                given[name] = {str(inner): self._number(f"{name}/{inner}", entry) for inner, entry in value.items()}
            else:
                given[name] = self._number(name, value)
        at, now = self.step_or_current(step), time.time()
        self._has_hp_metric |= "hp_metric" in metrics
        self.later(lambda: self._write_metrics(given, at, now), "metrics that were logged directly")

    def _write_metrics(self, metrics: Mapping[str, Any], step: int | None, now: float) -> None:
        with self._replaced_after_an_error():
            writer = self.experiment
            for name, value in metrics.items():
                if isinstance(value, dict):
                    writer.add_scalars(name, value, step, walltime=now)
                elif not self._present or (step or 0) > self._present.get(name, -1):
                    writer.add_scalar(name, value, step, walltime=now)

    @unless_silent
    def log_hyperparams(
        self, params: Any, metrics: Mapping[str, Any] | float | None = None, step: int | None = None
    ) -> None:
        """Write hyper-parameters to ``hparams.yaml`` and TensorBoard's table of runs.

        Args:
            params: A dict, namespace or dataclass, of any depth and with any values.
            metrics: What the table shows beside them, or one number for ``hp_metric``.
            step: The step of the metrics, 0 if left out.
        """
        shown: Mapping[str, Any] = {"hp_metric": -1.0} if self._default_hp_metric else {}
        if metrics is not None:
            shown = metrics if isinstance(metrics, Mapping) else {"hp_metric": metrics}
        with self.exclusive():
            self.hparams.update(plain_dict(params))
        self.later(lambda: self._write_table(shown, step, metrics is not None), "hyper-parameters")

    def _write_table(self, shown: Mapping[str, Any], step: int | None, is_given: bool) -> None:
        with self._replaced_after_an_error():
            self._write_hparams()
            if not shown:
                return
            if is_given or not self._has_hp_metric:  # the default hides no true value
                for key, value in shown.items():
                    self.experiment.add_scalar(self._tag_of(key), self._number(key, value), step or 0)
                self._has_hp_metric |= "hp_metric" in shown
            self._add_hparams("_hparams_/session_start_info")

    @unless_silent
    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Draw the graph that an input takes through the model, once a run and only with ``log_graph=True``.

        The model's mode, its buffers and the random state stay as they are. A model that
        cannot be traced costs a warning, not the run.

        Args:
            model: The model.
            input_array: The input; None takes ``model.example_input_array``.
        """
        if not self._log_graph or self._has_graph:
            return
        example = getattr(model, "example_input_array", None) if input_array is None else input_array
        if example is None:
            where = "TensorBoardLogger(log_graph=True)"
            self.tell(f"{where}: the graph needs an input. Set example_input_array on the module.")
            return
        try:
            with self.exclusive(), _undisturbed(model):
                self.experiment.add_graph(model, _placed(model, example))
                self._has_graph = True
        except Exception as error:
            self.tell(f"TensorBoardLogger: the model could not be traced, its graph is left out: {error}")

    def rewind(self, step: int, version: int | str | None) -> bool:
        """Go on in an earlier run: hide what lies after ``step`` and note what is there.

        TensorBoard's files are only ever appended to; a new one begins with a purge step.

        Returns:
            True: the whole history may be sent again, what is there already is passed over.
        """
        with self.exclusive():
            self._close()
            if version is not None:
                self._version = version
            folder = self.log_dir
            # Of a resumed run, what is there already is not written a second time.
            steps, self._has_graph = event_files.shown(folder, _event_type())
            self._present = {tag: min(last, step) for tag, last in steps.items()}
            self._has_hp_metric = any(tag.endswith("hp_metric") for tag in self._present)
            self._known = event_files.scalars(folder, _event_type())
            for identity in [identity for identity in self._known if identity[1] > step]:
                del self._known[identity]
            self._is_read = True
            self._purge_step = step + 1
            # After the last step before the checkpoint `global_step` is one more: where a validation's pictures stand.
            self._shown_again = event_files.media_at(folder, step + 1, _event_type())
            for run in (folder, *event_files.runs_below(folder)):
                event_files.wait_for_a_later_name(run)
            for run in event_files.runs_below(folder):
                self._open(run, step + 1).close()
        return True

    @unless_silent
    def save(self) -> None:
        """Write what is held in memory.

        Raises:
            FileNotFoundError: If the event file is no longer there; its attribute ``lost_all`` is True.
        """
        with self.exclusive():
            if self._writer is not None and self._writer_pid == os.getpid():
                self._check_file()
                with self._replaced_after_an_error():
                    self._writer.flush()
                if not os.path.exists(os.path.join(self.log_dir, "hparams.yaml")):
                    self._write_hparams()

    def _check_file(self) -> None:
        """Start over where somebody removed the files: what was in them has to come again."""
        if self._event_file is None or event_files.is_there(*self._event_file):
            return
        path = self._event_file[0]
        with suppress(OSError):
            self._close()
        self._writer = None
        self._known, self._present, self._is_read, self._event_file = Counter(), {}, True, None
        raise files_are_gone(path)

    @unless_silent
    def finalize(self, status: str) -> None:
        """Write everything, and how the run ended beside its hyper-parameters, and close the files.

        Args:
            status: ``"success"``, ``"failed"`` or ``"interrupted"``.
        """
        with self.exclusive():
            if self.hparams and self._writer is not None:
                self._add_hparams("_hparams_/session_end_info", status)
            self.save()
            self._close()

    def _add_hparams(self, tag: str, status: str = "success") -> None:
        """Write one of the three summaries of hyper-parameters.

        Never the one that lists the metrics of all runs: without it TensorBoard's table shows each run's last values.
        """
        hparams = import_module(f"{_writer_package()}.summary").hparams
        writer = self.experiment._get_file_writer()  # add_hparams would open a run of its own
        for summary in hparams(flatten(self.hparams), {}):
            if any(value.tag == tag for value in summary.value):
                writer.add_summary(summary if status == "success" else event_files.with_status(summary, status))

    def replay_state(self) -> dict[str, Any]:
        """Return what finds this run again."""
        return {
            "save_dir": self._save_dir,
            "name": self._name,
            "version": self.version,
            "prefix": self._prefix,
            "sub_dir": self._sub_dir,
            "default_hp_metric": self._default_hp_metric,
        }

    @classmethod
    def from_replay_state(cls, state: Mapping[str, Any]) -> TensorBoardLogger:
        """Return a logger of the run that `replay_state` described."""
        made = cls(**state)
        event_files.wait_for_a_later_name(made.log_dir)
        return made

    def _close(self) -> None:
        if self._writer is not None and self._writer_pid == os.getpid():
            self._writer.close()
        self._writer = None

    def _open(self, folder: str, purge_step: int | None) -> Any:
        options = dict(self._kwargs)
        if purge_step is not None:
            options["purge_step"] = purge_step
        package = _writer_package()
        if package == "tensorboardX":  # its files of one second have one name and replace one another
            options["filename_suffix"] = f".{os.getpid()}.{next(_opened):06d}{options.get('filename_suffix', '')}"
        try:
            writer = import_module(package).SummaryWriter(log_dir=folder, **options)
        except TypeError as error:
            raise MisconfigurationException(
                f"TensorBoardLogger: SummaryWriter refuses its arguments. {error}"
            ) from None
        return event_files.written_at_once(writer)

    def _write_hparams(self) -> None:
        import yaml

        os.makedirs(self.log_dir, exist_ok=True)
        text = yaml.safe_dump(self.hparams, sort_keys=False, allow_unicode=True)
        replace_text(os.path.join(self.log_dir, "hparams.yaml"), text)

    def __getstate__(self) -> dict[str, Any]:
        _ = self.version  # a copy in another process writes to the same run
        return {**super().__getstate__(), "_writer": None}


def _writer_package() -> str:
    """Return which package has the SummaryWriter, looking without importing."""
    torch = find_spec("torch") is not None
    if torch and find_spec("tensorboard") is not None:
        return "torch.utils.tensorboard"
    if find_spec("tensorboardX") is not None:
        return "tensorboardX"
    extra = "tensorboard" if torch else "tensorboardx"  # TensorBoard's own package has no SummaryWriter
    raise missing("TensorBoardLogger", extra)


def _tag(name: str) -> str:
    """Return the name under which the event files keep a metric: tensorboardX takes letters, digits and ``-/_.`` only.

    No two names become one: what looks like an escape is escaped itself.
    """
    if _writer_package() != "tensorboardX":
        return name
    return re.sub(r"^/|_(?=u[0-9a-f]*(?:_|[^-/\w.]))|[^-/\w.]", lambda match: f"_u{ord(match[0]):x}_", name)


def _event_type() -> Any:
    home = "tensorboardX.proto" if _writer_package() == "tensorboardX" else "tensorboard.compat.proto"
    return import_module(f"{home}.event_pb2").Event


def _placed(model: nn.Module, example: Any) -> Any:
    """Return the example where the model lies, in its format; a dict or a list of tensors as the writer takes it."""
    import torch

    first = next(model.parameters(), None)
    if first is None:
        return example
    formats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    own = formats.pop() if len(formats) == 1 and torch.get_default_dtype() not in formats else None
    if isinstance(example, torch.Tensor):
        return example.to(first.device, own if example.is_floating_point() else None)
    if isinstance(example, Mapping):
        return {key: _placed(model, value) for key, value in example.items()}
    if isinstance(example, (list, tuple)):
        return tuple(_placed(model, value) for value in example)
    return example


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Trace in evaluation mode, without gradients, and put modes and the random state back."""
    import torch

    modes = {module: module.training for module in model.modules()}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's remarks on shapes and on itself
            for module in modes:
                module.training = False
            yield
    finally:
        for module, training in modes.items():
            module.training = training
