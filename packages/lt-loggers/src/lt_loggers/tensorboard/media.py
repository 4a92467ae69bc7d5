"""Show pictures, figures, text and sounds in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lt_interface import is_rank_zero
from lt_loggers.texts import TextsAndTables

__all__ = ["TensorBoardMedia"]


class TensorBoardMedia(TextsAndTables):
    """Be the part of `TensorBoardLogger` that shows media: prepared at once, written behind the caller's back."""

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Show a list of pictures under a tag; several get ``/0``, ``/1``, ...

        Args:
            key: The tag.
            images: Tensors, arrays, PIL images or paths.
            step: The step; None takes the run's, or 0 outside of a run.
            **kwargs: Lists such as ``caption``; TensorBoard has no place for them.
        """
        from lt_loggers.encoding import as_list, per_item, pictures

        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        arrays = pictures(as_list(key, "images", images))
        per_item(len(arrays), kwargs)

        def write() -> None:
            for i, array in enumerate(arrays):
                tag = key if len(arrays) == 1 else f"{key}/{i}"
                self.experiment.add_image(tag, array, at, dataformats="HWC")

        self.later(write, f"image {key}")

    def log_figure(self, key: str, figure: Any, step: int | None = None, **kwargs: Any) -> None:
        """Show a figure as it is now.

        Args:
            key: The tag.
            figure: Of matplotlib, or of plotly where kaleido is installed; it may be closed after the call.
            step: The step; None takes the run's, or 0 outside of a run.
            **kwargs: Taken for other loggers' sake.
        """
        from lt_loggers.encoding import render

        if is_rank_zero():
            at = self.step_or_current(step) or 0
            array = render(figure)
            self.later(lambda: self.experiment.add_image(key, array, at, dataformats="HWC"), f"figure {key}")

    def log_histogram(self, key: str, values: Any, step: int | None = None, bins: int = 64) -> None:
        """Show a histogram.

        Args:
            key: The tag.
            values: A tensor or array; what is not finite is left out.
            step: The step; None takes the run's, or 0 outside of a run.
            bins: How many bins.
        """
        from lt_loggers.encoding import finite

        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        array = finite(values)
        if array.size:
            self.later(
                lambda: self.experiment.add_histogram(key, array, at, bins="auto", max_bins=bins),
                f"histogram {key}",
            )

    def _show_text(self, key: str, text: str, step: int) -> None:
        self.later(lambda: self.experiment.add_text(key, text, step), f"text {key}")

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Show a table as text laid out in Markdown.

        Args:
            key: The tag.
            columns: Names of the columns.
            data: Rows.
            dataframe: A data frame instead of both.
            step: The step; None takes the run's, or 0 outside of a run.
        """
        from lt_loggers.encoding import rows_of

        names, cells = rows_of(columns, data, dataframe)
        rows = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
        head = names or [""] * max(map(len, rows), default=1)
        lines = [head, ["---"] * len(head), *rows]
        self.log_text(key, "\n".join("| " + " | ".join(line) + " |" for line in lines), step=step)

    def log_audio(self, key: str, audios: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Let a list of sounds be played; several get ``/0``, ``/1``, ...

        Args:
            key: The tag.
            audios: Arrays (samples,) or (channels, samples) in -1..1, or paths of WAV files of 16 bits.
            step: The step; None takes the run's, or 0 outside of a run.
            **kwargs: Lists such as ``sample_rate`` (Hz; 44100 if left out).
        """
        from lt_loggers.encoding import as_list, mono, per_item

        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        given = as_list(key, "audios", audios)
        options = per_item(len(given), kwargs)
        sounds = [mono(sound, option.get("sample_rate")) for sound, option in zip(given, options, strict=True)]

        def write() -> None:
            for i, (array, rate) in enumerate(sounds):
                tag = key if len(sounds) == 1 else f"{key}/{i}"
                self.experiment.add_audio(tag, array, at, sample_rate=rate)

        self.later(write, f"audio {key}")

    def log_video(self, key: str, videos: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Show the frames of each video side by side: moving ones need a package that TensorBoard does not bring.

        Args:
            key: The tag.
            videos: Arrays (T, C, H, W) in 0..255, or paths of animated pictures.
            step: The step; None takes the run's, or 0 outside of a run.
            **kwargs: Lists such as ``fps``; there is no place for them.
        """
        from lt_loggers.encoding import as_list, frames, per_item

        if not is_rank_zero():
            return
        given = as_list(key, "videos", videos)
        per_item(len(given), kwargs)
        # (T, C, H, W) to (H, T * W, C)
        strips = [f.transpose(2, 0, 3, 1).reshape(f.shape[2], -1, f.shape[1]) for f in map(frames, given)]
        self.log_image(key, strips, step)
