"""Name what a logger can do beyond metrics: small protocols, each asked for on its own.

A logger has an ability by having its method; `Logger` itself has none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "MEDIA",
    "Record",
    "SupportsAudio",
    "SupportsCheckpoints",
    "SupportsFigures",
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
]

# What a module can show with one call to all loggers, and what that is called.
MEDIA = {
    "log_image": "images",
    "log_figure": "figures",
    "log_histogram": "histograms",
    "log_text": "text",
    "log_table": "tables",
    "log_audio": "audio",
    "log_video": "video",
}


@dataclass(frozen=True)
class Record:
    """Hold what was logged at one moment.

    Attributes:
        sequence: The record's number in its run, from 0, without a gap.
        stage: ``"train"``, ``"validate"`` or ``"test"``.
        axis: What the record belongs to: ``"step"``, ``"epoch"`` (values of a whole epoch; ``step`` is the last
            step's), or ``"batch"`` (``step`` counts the batches of that stage).
        step: The x-axis value.
        time: Wall time in seconds since 1970; the same however often the record is sent.
        values: Numbers by name.
    """

    sequence: int
    stage: str
    axis: str
    step: int
    time: float
    values: Mapping[str, float]


@runtime_checkable
class SupportsRecords(Protocol):
    """Take many records in one call, each with its own wall time.

    The core counts records as delivered when the logger's next ``save`` has returned; where that raises, all that
    came since the last one that returned come again, ``unsure``. After the death of a process it goes on behind
    those delivered. A logger that finds out itself which ones its tracker has, at
    any distance, sets ``knows_all = True`` and is then given all records from the first.
    """

    def log_records(self, records: Sequence[Record], unsure: bool = False) -> None:
        """Return when the tracker has all of these records, in their order.

        Args:
            records: What to send.
            unsure: Whether the tracker may have some of them already, because a reply was lost or
                the process that sent them died: then the tracker is asked first, and gets what it lacks.

        Raises:
            OSError: If the tracker can not be reached; the same records come again later. Where all that it
                had is gone, as with files that somebody removed, the error's attribute ``lost_all`` is True, and
                all records come again from the first.
        """
        ...


@runtime_checkable
class SupportsRewind(Protocol):
    """Forget what was logged after the point that a resumed run starts from."""

    def rewind(self, step: int, version: int | str | None) -> bool:
        """Go on in the run ``version`` and drop what lies after ``step``.

        Returns:
            True if the whole history is to be sent again, because the logger forgot it or
            knows what it already has; False if it must get nothing a second time.
        """
        ...


@runtime_checkable
class SupportsJoin(Protocol):
    """Go on in an earlier run of a tracker that can not forget."""

    def join(self, version: int | str) -> None:
        """Make what comes part of the run ``version``; called before anything is logged."""
        ...


@runtime_checkable
class SupportsSharedVersion(Protocol):
    """Write into the version folder of another logger of the same trainer."""

    def share_version(self, version: int | str) -> None:
        """Take this version, unless one was given or claimed already."""
        ...


@runtime_checkable
class SupportsReplay(Protocol):
    """Be made again in another process, to send what a dead one could not."""

    def replay_state(self) -> dict[str, Any]:
        """Return plain JSON values from which this logger's run is found again; no secret is among them."""
        ...

    @classmethod
    def from_replay_state(cls, state: Mapping[str, Any]) -> Any:
        """Return a logger of the run that `replay_state` described."""
        ...


@runtime_checkable
class SupportsGraph(Protocol):
    """Show the model's graph."""

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Draw the graph that ``input_array`` takes through the model."""
        ...


@runtime_checkable
class SupportsCheckpoints(Protocol):
    """Keep checkpoints with the run."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Look at a checkpoint callback after it saved."""
        ...


@runtime_checkable
class SupportsWatch(Protocol):
    """Follow a model's gradients or parameters."""

    def watch(self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100) -> None:
        """Log histograms of gradients, parameters or ``"all"`` every ``log_freq`` batches."""
        ...


@runtime_checkable
class SupportsImages(Protocol):
    """Show pictures."""

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Show a list of pictures: tensors (C,H,W), (H,W) or (H,W,C), arrays, PIL images or paths.

        Args:
            key: The name they stand under.
            images: The pictures; floats are in 0..1, integers in 0..255.
            step: The step; the trainer's if None.
            **kwargs: A list for each, such as ``caption``.
        """
        ...


@runtime_checkable
class SupportsFigures(Protocol):
    """Show figures of matplotlib or plotly."""

    def log_figure(self, key: str, figure: Any, step: int | None = None, **kwargs: Any) -> None:
        """Show a figure as it is now; it may be closed after the call."""
        ...


@runtime_checkable
class SupportsHistograms(Protocol):
    """Show how values are distributed."""

    def log_histogram(self, key: str, values: Any, step: int | None = None, bins: int = 64) -> None:
        """Show a histogram of a tensor's or array's values."""
        ...


@runtime_checkable
class SupportsText(Protocol):
    """Show text."""

    def log_text(self, key: str, text: Any = None, *args: Any, step: int | None = None, **kwargs: Any) -> None:
        """Show a text."""
        ...


@runtime_checkable
class SupportsTables(Protocol):
    """Show tables."""

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Show rows under column names, or a data frame."""
        ...


@runtime_checkable
class SupportsAudio(Protocol):
    """Play sounds."""

    def log_audio(self, key: str, audios: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of sounds: arrays (samples,) or (channels, samples) in -1..1, or paths.

        Args:
            key: The name they stand under.
            audios: The sounds.
            step: The step; the trainer's if None.
            **kwargs: A list for each, such as ``sample_rate`` (Hz) or ``caption``.
        """
        ...


@runtime_checkable
class SupportsVideo(Protocol):
    """Play videos."""

    def log_video(self, key: str, videos: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of videos: arrays (T,C,H,W) in 0..255, or paths.

        Args:
            key: The name they stand under.
            videos: The videos.
            step: The step; the trainer's if None.
            **kwargs: A list for each, such as ``fps`` or ``caption``.
        """
        ...
