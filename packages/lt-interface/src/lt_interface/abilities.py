"""Abilities of a logger beyond metrics: small protocols, each asked for on its own.

A logger has an ability by having its method; `Logger` itself has none of them, but draws no graph and keeps no
checkpoint where it is asked to. The core calls each
one on rank 0 alone, inside ``logger.exclusive()``.

Example:
    >>> class Printer:
    ...     def log_text(self, key, text=None, *args, step=None, **kwargs):
    ...         print(f"{key} at {step}: {text}")
    >>> isinstance(Printer(), SupportsText), isinstance(Printer(), SupportsImages)
    (True, False)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import getattr_static
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "MEDIA",
    "Record",
    "SupportsAudio",
    "SupportsCheckpoints",
    "SupportsFigures",
    "SupportsForget",
    "SupportsGraph",
    "SupportsHistograms",
    "SupportsImages",
    "SupportsJoin",
    "SupportsRecords",
    "SupportsReplay",
    "SupportsRewind",
    "SupportsSharedVersion",
    "SupportsTables",
    "SupportsText",
    "SupportsVideo",
    "SupportsWatch",
    "ability",
    "fact",
    "takes_records",
]

# What a module can show with one call to all loggers, and the word for it in messages.
MEDIA = {
    "log_image": "images",
    "log_figure": "figures",
    "log_histogram": "histograms",
    "log_text": "text",
    "log_table": "tables",
    "log_audio": "audio",
    "log_video": "video",
}


def ability(logger: Any, name: str) -> Callable[..., Any] | None:
    """Return a method that a logger or its class really has; None for one that only answers to any name, as mocks do.

    Args:
        logger: The logger.
        name: The method's name.

    Example:
        >>> from unittest.mock import MagicMock
        >>> class Remote:
        ...     def join(self, version):
        ...         print("joined", version)
        >>> ability(Remote(), "join")("a1b2")
        joined a1b2
        >>> ability(Remote(), "rewind") is None, ability(MagicMock(), "join") is None
        (True, True)
    """
    if getattr_static(logger, name, None) is None:
        return None
    found = getattr(logger, name, None)
    return found if callable(found) else None


def fact(logger: Any, name: str, default: Any = None) -> Any:
    """Return what a logger says of itself: a text, a path or a number; what is neither counts as unsaid.

    Args:
        logger: The logger.
        name: The attribute's name.
        default: What is returned where it says nothing.

    Example:
        >>> from unittest.mock import MagicMock
        >>> class Remote:
        ...     version = "a1b2"
        >>> fact(Remote(), "version"), fact(Remote(), "log_dir"), fact(MagicMock(), "flush_timeout", 30.0)
        ('a1b2', None, 30.0)
    """
    found = getattr(logger, name, None)
    return found if issubclass(type(found), (str, PurePath, int, float)) else default  # a mock may claim to be one


def takes_records(logger: Any) -> bool:
    """Return whether a logger is to be given records; not where its ``log_metrics`` was overridden or replaced later.

    Args:
        logger: The logger.

    Example:
        >>> class Lines:
        ...     def log_records(self, records, unsure=False): ...
        ...     def log_metrics(self, metrics, step=None): ...
        >>> class Filtered(Lines):
        ...     def log_metrics(self, metrics, step=None): ...
        >>> takes_records(Lines()), takes_records(Filtered())
        (True, False)
    """
    own = getattr(logger, "__dict__", {})
    for names in (own, *(vars(kind) for kind in type(logger).__mro__)):
        if "log_records" in names:
            plain = names.get("log_metrics")
            home = getattr(plain, "__module__", None)  # of one that a program put in its place: elsewhere
            return plain is None or home == names.get("__module__", home)
        if "log_metrics" in names:
            return False
    return False


@dataclass(frozen=True)
class Record:
    """Values that were logged at one moment.

    Attributes:
        sequence: The record's number in its run, from 0, without a gap.
        stage: ``"train"``, ``"validate"`` or ``"test"``.
        axis: What the record belongs to: ``"step"``, ``"epoch"`` (values of a whole epoch; ``step`` is the last
            step's), or ``"batch"`` (``step`` counts the batches of that stage).
        step: The x-axis value.
        time: Wall time in seconds since 1970; the same however often the record is sent.
        values: Numbers by name.

    Example:
        >>> record = Record(sequence=0, stage="train", axis="step", step=49, time=1.7e9, values={"loss": 0.5})
        >>> record.values["loss"]
        0.5
    """

    sequence: int
    stage: str
    axis: str
    step: int
    time: float
    values: Mapping[str, float]


@runtime_checkable
class SupportsRecords(Protocol):
    """Logger that takes many records in one call, each with its own wall time.

    The core counts records as delivered when the logger's next ``save`` has returned; where that raises, all that
    came since the last one that returned come again, ``unsure``. After the death of a process, sending resumes behind
    those delivered. A logger that finds out itself which ones its tracker has, at
    any distance, sets ``knows_all = True`` and is then given all records from the first.

    Example:
        >>> class ListLogger:
        ...     def __init__(self):
        ...         self.rows = []
        ...     def log_records(self, records, unsure=False):
        ...         known = {row.sequence for row in self.rows} if unsure else set()
        ...         self.rows += [record for record in records if record.sequence not in known]
        >>> logger = ListLogger()
        >>> first = Record(0, "train", "step", 0, 1.7e9, {"loss": 1.0})
        >>> logger.log_records([first])
        >>> logger.log_records([first], unsure=True)
        >>> len(logger.rows), isinstance(logger, SupportsRecords)
        (1, True)
    """

    def log_records(self, records: Sequence[Record], unsure: bool = False) -> None:
        """Send records, and return when the tracker has all of them, in their order.

        Args:
            records: Records of one run, their ``sequence`` ascending.
            unsure: Whether the tracker may have some of them already, because a reply was lost or
                the process that sent them died: ask the tracker first, and send what it lacks.

        Raises:
            OSError: If the tracker cannot be reached; the same records come again later. Where all that it
                had is gone, as with files that somebody removed, the error's attribute ``lost_all`` is True, and
                all records come again from the first.
        """


@runtime_checkable
class SupportsRewind(Protocol):
    """Logger that can drop what was logged after the point from which a run is resumed.

    Example:
        >>> class DictLogger:
        ...     version, rows = 0, {0: 1.0, 50: 0.5, 100: 0.4}
        ...     def rewind(self, step, version):
        ...         self.version = version if version is not None else self.version
        ...         self.rows = {at: row for at, row in self.rows.items() if at <= step}
        ...         return False
        >>> logger = DictLogger()
        >>> logger.rewind(50, 3)
        False
        >>> logger.version, logger.rows
        (3, {0: 1.0, 50: 0.5})
    """

    def rewind(self, step: int, version: int | str | None) -> bool:
        """Continue in an earlier run, without what lies after a step.

        The core calls it once, before anything is logged, when a fit resumes a checkpoint of that run.

        Args:
            step: The last optimizer step, counted from 0, whose values stay.
            version: The run's version; None for the logger's own.

        Returns:
            True if the whole history is to be sent again, because the logger forgot it or
            knows what it already has; False if it must get nothing a second time.

        Raises:
            OSError: If the tracker cannot be read or written.
        """


@runtime_checkable
class SupportsForget(Protocol):
    """Logger that can take back what it was given, record by record, and knows whether it still has the rest.

    Example:
        >>> class ListLogger:
        ...     def __init__(self):
        ...         self.rows = []
        ...     def log_records(self, records, unsure=False):
        ...         self.rows += records
        ...     def forget(self, records, step):
        ...         self.rows = [row for row in self.rows if row not in records]
        >>> logger, first = ListLogger(), Record(0, "train", "step", 0, 1.7e9, {"loss": 1.0})
        >>> logger.log_records([first])
        >>> logger.forget([first], step=0)
        >>> logger.rows
        []
    """

    def forget(self, records: Sequence[Record], step: int | None) -> None:
        """Drop what was logged of some records, and nothing of any other run.

        The core calls it once before it sends anything to a logger that has records of the same run: with those that
        the run has abandoned since it was resumed, some of which may never have arrived, or with none.

        Args:
            records: The records, in their order.
            step: The optimizer step from which the run is resumed; None where it was not.

        Raises:
            OSError: If nothing can be written. Where all that the logger had is gone, the error's attribute
                ``lost_all`` is True, and all records come again from the first.
        """


@runtime_checkable
class SupportsJoin(Protocol):
    """Logger that can continue an earlier run, of a tracker that cannot drop values.

    Example:
        >>> class Remote:
        ...     version = None
        ...     def join(self, version):
        ...         self.version = version
        >>> logger = Remote()
        >>> logger.join("a1b2c3")
        >>> logger.version
        'a1b2c3'
    """

    def join(self, version: int | str) -> None:
        """Make what follows part of an earlier run.

        The core calls it once, before anything is logged, when a fit resumes a checkpoint of that run
        and the logger has no ``rewind``.

        Args:
            version: The run's version.
        """


@runtime_checkable
class SupportsSharedVersion(Protocol):
    """Logger that can write into the version folder of another logger of the same trainer.

    Example:
        >>> class FileLogger:
        ...     version = None
        ...     def share_version(self, version):
        ...         if self.version is None:
        ...             self.version = version
        >>> logger = FileLogger()
        >>> logger.share_version(4)
        >>> logger.share_version(5)
        >>> logger.version
        4
    """

    def share_version(self, version: int | str) -> None:
        """Adopt a version, unless one was given or claimed already.

        The core calls it before the tracker starts, where an earlier logger of the trainer has the same ``root_dir``.

        Args:
            version: The version of that logger.
        """


@runtime_checkable
class SupportsReplay(Protocol):
    """Logger that can be made again in another process, to send what a dead one could not.

    Example:
        >>> class Remote:
        ...     def __init__(self, url, run):
        ...         self.url, self.run = url, run
        ...     def replay_state(self):
        ...         return {"url": self.url, "run": self.run}
        ...     @classmethod
        ...     def from_replay_state(cls, state):
        ...         return cls(**state)
        >>> again = Remote.from_replay_state(Remote("https://tracker", "a1b2").replay_state())
        >>> again.run, isinstance(again, SupportsReplay)
        ('a1b2', True)
    """

    def replay_state(self) -> dict[str, Any]:
        """Return plain JSON values from which this logger's run is found again; no secret is among them.

        The core asks when sending starts, and keeps the answer in a file beside the journal.
        """

    @classmethod
    def from_replay_state(cls, state: Mapping[str, Any]) -> Any:
        """Return a logger of the run that `replay_state` described.

        Args:
            state: What `replay_state` returned, after a trip through JSON.
        """


@runtime_checkable
class SupportsGraph(Protocol):
    """Logger that can show the model's graph.

    Example:
        >>> class Printer:
        ...     def log_graph(self, model, input_array=None):
        ...         print(type(model).__name__)
        >>> isinstance(Printer(), SupportsGraph)
        True
    """

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Draw the graph of a model; the core calls it before the first step, and survives an exception with a warning.

        Args:
            model: The model, on its device.
            input_array: A batch to trace it with; the module's ``example_input_array`` if None.
        """


@runtime_checkable
class SupportsCheckpoints(Protocol):
    """Logger that keeps checkpoints with the run.

    Example:
        >>> class Uploader:
        ...     def after_save_checkpoint(self, checkpoint_callback):
        ...         print("upload", checkpoint_callback.best_model_path)
        >>> isinstance(Uploader(), SupportsCheckpoints)
        True
    """

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Take note of new checkpoints; an exception becomes a warning.

        Args:
            checkpoint_callback: The callback that saved, with ``best_model_path``, ``best_k_models`` and
                ``last_model_path``.
        """


@runtime_checkable
class SupportsWatch(Protocol):
    """Logger that can follow a model's gradients or parameters; users call it.

    Example:
        >>> class Watcher:
        ...     def watch(self, model, log="gradients", log_freq=100):
        ...         print(f"{log} every {log_freq} batches")
        >>> Watcher().watch(None, log_freq=10)
        gradients every 10 batches
    """

    def watch(self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100) -> None:
        """Log histograms of a model's tensors while it trains.

        Args:
            model: The model to follow.
            log: ``"gradients"``, ``"parameters"``, ``"all"``, or None for the graph alone.
            log_freq: Log every so many batches.
        """


@runtime_checkable
class SupportsImages(Protocol):
    """Logger that can show pictures.

    Example:
        >>> class Counter:
        ...     def log_image(self, key, images, step=None, **kwargs):
        ...         print(f"{key}: {len(images)} pictures, caption {kwargs['caption'][0]!r}")
        >>> Counter().log_image("samples", ["cat.png"], step=10, caption=["a cat"])
        samples: 1 pictures, caption 'a cat'
    """

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Show a list of pictures: tensors (C,H,W), (H,W) or (H,W,C), arrays, PIL images or paths.

        Args:
            key: The name they stand under.
            images: The pictures; floats are in 0..1, integers in 0..255.
            step: The optimizer step; the trainer's if None.
            **kwargs: A list for each, one entry a picture, such as ``caption``.

        Raises:
            TypeError: If ``images`` is not a list.
            ValueError: If an entry cannot be shown, or a list in ``kwargs`` has another length.
        """


@runtime_checkable
class SupportsFigures(Protocol):
    """Logger that can show figures of matplotlib or plotly.

    Example:
        >>> class Saver:
        ...     def log_figure(self, key, figure, step=None, **kwargs):
        ...         figure.savefig(f"{key}-{step}.png")
        >>> isinstance(Saver(), SupportsFigures)
        True
    """

    def log_figure(self, key: str, figure: Any, step: int | None = None, **kwargs: Any) -> None:
        """Show a figure as it is now; the caller may close it after the call.

        Args:
            key: The name it stands under.
            figure: A figure of matplotlib or plotly.
            step: The optimizer step; the trainer's if None.
            **kwargs: What the tracker takes beside it.

        Raises:
            TypeError: If it is no such figure.
        """


@runtime_checkable
class SupportsHistograms(Protocol):
    """Logger that can show how values are distributed.

    Example:
        >>> class Range:
        ...     def log_histogram(self, key, values, step=None, bins=64):
        ...         print(f"{key}: {min(values)} to {max(values)}")
        >>> Range().log_histogram("weights", [0.5, -1.0, 2.0])
        weights: -1.0 to 2.0
    """

    def log_histogram(self, key: str, values: Any, step: int | None = None, bins: int = 64) -> None:
        """Show a histogram.

        Args:
            key: The name it stands under.
            values: A tensor or array of any shape.
            step: The optimizer step; the trainer's if None.
            bins: The number of intervals between the smallest and the largest value.
        """


@runtime_checkable
class SupportsText(Protocol):
    """Logger that can show text.

    Example:
        >>> class Printer:
        ...     def log_text(self, key, text=None, *args, step=None, **kwargs):
        ...         print(f"{key}: {text}")
        >>> Printer().log_text("sample", "once upon a time", step=10)
        sample: once upon a time
    """

    def log_text(self, key: str, text: Any = None, *args: Any, step: int | None = None, **kwargs: Any) -> None:
        """Show a text.

        Args:
            key: The name it stands under.
            text: The text; Markdown where the tracker shows it so.
            *args: What the tracker takes beside it by place.
            step: The optimizer step; the trainer's if None.
            **kwargs: What the tracker takes beside it by name.
        """


@runtime_checkable
class SupportsTables(Protocol):
    """Logger that can show tables.

    Example:
        >>> class Printer:
        ...     def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        ...         print(*columns, *data[0])
        >>> Printer().log_table("answers", ["question", "answer"], [["6 x 7", 42]])
        question answer 6 x 7 42
    """

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Show rows under column names, or a data frame.

        Args:
            key: The name it stands under.
            columns: The columns' names; left out with a data frame.
            data: The rows, each as long as ``columns``; left out with a data frame.
            dataframe: A pandas data frame in their place.
            step: The optimizer step; the trainer's if None.
        """


@runtime_checkable
class SupportsAudio(Protocol):
    """Logger that can play sounds.

    Example:
        >>> class Length:
        ...     def log_audio(self, key, audios, step=None, **kwargs):
        ...         print(f"{key}: {len(audios[0]) / kwargs['sample_rate'][0]} s")
        >>> Length().log_audio("beep", [[0.0] * 4000], sample_rate=[8000])
        beep: 0.5 s
    """

    def log_audio(self, key: str, audios: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of sounds: arrays (samples,) or (channels, samples) in -1..1, or paths.

        Args:
            key: The name they stand under.
            audios: The sounds.
            step: The optimizer step; the trainer's if None.
            **kwargs: A list for each, one entry a sound, such as ``sample_rate`` (Hz) or ``caption``.

        Raises:
            TypeError: If ``audios`` is not a list.
            ValueError: If an entry cannot be played, or a list in ``kwargs`` has another length.
        """


@runtime_checkable
class SupportsVideo(Protocol):
    """Logger that can play videos.

    Example:
        >>> class Counter:
        ...     def log_video(self, key, videos, step=None, **kwargs):
        ...         print(f"{key}: {len(videos)} at {kwargs['fps'][0]} frames a second")
        >>> Counter().log_video("rollout", ["rollout.mp4"], fps=[25])
        rollout: 1 at 25 frames a second
    """

    def log_video(self, key: str, videos: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of videos: arrays (T,C,H,W) in 0..255, or paths.

        Args:
            key: The name they stand under.
            videos: The videos.
            step: The optimizer step; the trainer's if None.
            **kwargs: A list for each, one entry a video, such as ``fps`` (frames a second) or ``caption``.

        Raises:
            TypeError: If ``videos`` is not a list.
            ValueError: If an entry cannot be played, or a list in ``kwargs`` has another length.
        """
