"""Media base: pictures, figures, texts, tables, sounds and videos, converted at the call and sent in their turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lt_interface.versions import NamedLogger, unless_silent
from lt_loggers.encoding import as_list, finite, per_item, pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Media", "Options", "Sends", "named"]

# What a tracker calls later, when the logger's turn comes; each is tried again alone where the tracker is away.
Sends = Iterable[Callable[..., Any]]
Options = Sequence[dict[str, Any]]
T = TypeVar("T")


def named(key: str, things: Sequence[T], separator: str = "/") -> Iterator[tuple[str, T]]:
    """Yield each thing with a name of its own: ``key``, or of several ``key/0``, ``key/1`` and so on."""
    for i, thing in enumerate(things):
        yield (key if len(things) == 1 else f"{key}{separator}{i}"), thing


class Media(NamedLogger):
    """Logger that shows media.

    A tracker gives ``_put_*``, which take the name, what to show, options of each, and the step. They convert
    at once, so that what was given may be changed or closed after the call, and return what sends it.
    Their steps are the run's where none is given, and ``_step_outside`` outside of a run.
    """

    _step_outside: int | None = 0

    _put_images: Callable[[str, Sequence[NDArray[Any]], Options, int | None], Sends]  # pictures (H,W,C) of bytes
    _put_figure: Callable[[str, Any, Mapping[str, Any], int | None], Sends]
    _put_histogram: Callable[[str, NDArray[Any], int, int | None], Sends]  # finite values (n,), and how many bins
    _put_text: Callable[[str, str, int | None], Sends]
    _put_table: Callable[[str, Any, Any, Any, int | None], Sends]  # columns, data and data frame, as of log_table
    _put_audios: Callable[[str, Sequence[Any], Options, int | None], Sends]
    _put_videos: Callable[[str, Sequence[Any], Options, int | None], Sends]

    def _at(self, step: int | None) -> int | None:
        step = self.step_or_current(step)
        return self._step_outside if step is None else step

    def _send(self, sends: Sends, what: str) -> None:
        for send in list(sends):
            self.later(send, what)

    @unless_silent
    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Show a list of pictures.

        Args:
            key: The name they stand under.
            images: Tensors (C,H,W), (H,W) or (H,W,C), arrays, PIL images or paths; floats in 0..1, integers in 0..255.
            step: The step; None takes the run's.
            **kwargs: A list for each option, such as ``caption``, where the tracker has a place for it.

        Raises:
            TypeError: If ``images`` is no list.
            ValueError: If one is no picture, or a list of options has another length.
        """
        options = per_item(len(as_list(key, "images", images)), kwargs)
        self._send(self._put_images(key, pictures(images), options, self._at(step)), f"image {key}")

    @unless_silent
    def log_figure(self, key: str, figure: Any, step: int | None = None, **kwargs: Any) -> None:
        """Show a figure as it is now; it may be closed after the call.

        Args:
            key: The name it stands under.
            figure: Of matplotlib or plotly; where a tracker shows only pictures, one of plotly needs kaleido.
            step: The step; None takes the run's.
            **kwargs: Options, where the tracker has a place for them.

        Raises:
            TypeError: If it is no figure.
        """
        self._send(self._put_figure(key, figure, kwargs, self._at(step)), f"figure {key}")

    @unless_silent
    def log_histogram(self, key: str, values: Any, step: int | None = None, bins: int = 64) -> None:
        """Show how the finite values of a tensor or array are distributed.

        Args:
            key: The name it stands under.
            values: A tensor or array of any shape.
            step: The step; None takes the run's.
            bins: How many bins.
        """
        self._send(self._put_histogram(key, finite(values), bins, self._at(step)), f"histogram {key}")

    def log_text(
        self,
        key: str,
        text: Any = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        columns: list[str] | None = None,
    ) -> None:
        """Show a text, or a table of texts.

        Args:
            key: The name it stands under.
            text: The text, laid out as Markdown where the tracker does so; or the names of a table's columns.
            data: The table's rows.
            dataframe: A data frame in place of both.
            step: The step; None takes the run's.
            columns: The names of the columns, by their own name.
        """
        if data is not None or dataframe is not None:
            self.log_table(key, columns or text, data, dataframe, step)
        else:
            self._log_one_text(key, str(text), step)

    @unless_silent
    def _log_one_text(self, key: str, text: str, step: int | None) -> None:
        self._send(self._put_text(key, text, self._at(step)), f"text {key}")

    @unless_silent
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
            columns: The columns' names.
            data: The rows.
            dataframe: A data frame in place of both.
            step: The step; None takes the run's.
        """
        self._send(self._put_table(key, columns, data, dataframe, self._at(step)), f"table {key}")

    @unless_silent
    def log_audio(self, key: str, audios: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of sounds.

        Args:
            key: The name they stand under.
            audios: Arrays (samples,) or (channels, samples) in -1..1, or paths.
            step: The step; None takes the run's.
            **kwargs: A list for each option, such as ``sample_rate`` (Hz; 44100 if left out) or ``caption``.

        Raises:
            TypeError: If ``audios`` is no list.
            ValueError: If one is no sound, or a list of options has another length.
        """
        options = per_item(len(as_list(key, "audios", audios)), kwargs)
        self._send(self._put_audios(key, audios, options, self._at(step)), f"audio {key}")

    @unless_silent
    def log_video(self, key: str, videos: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of videos.

        Args:
            key: The name they stand under.
            videos: Arrays (T,C,H,W) in 0..255, or paths.
            step: The step; None takes the run's.
            **kwargs: A list for each option, such as ``fps`` (4 if left out) or ``caption``.

        Raises:
            TypeError: If ``videos`` is no list.
            ValueError: If one is no video, or a list of options has another length.
        """
        options = per_item(len(as_list(key, "videos", videos)), kwargs)
        self._send(self._put_videos(key, videos, options, self._at(step)), f"video {key}")
