"""Pictures, figures, text and sounds in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lt_loggers.encoding import frames, mono, render, rows_of
from lt_loggers.media import Media, Options, Sends, named

__all__ = ["TensorBoardMedia"]


class TensorBoardMedia(Media):
    """Media of `TensorBoardLogger`, each under a tag; several things get the tags ``key/0``, ``key/1`` and so on."""

    def _add_images(self, key: str, arrays: Sequence[Any], step: int | None) -> None:
        for tag, array in named(key, arrays):
            self.experiment.add_image(tag, array, step, dataformats="HWC")

    def _put_images(self, key: str, arrays: Sequence[Any], options: Options, step: int | None) -> Sends:
        return [partial(self._add_images, key, arrays, step)]

    def _put_figure(self, key: str, figure: Any, options: Mapping[str, Any], step: int | None) -> Sends:
        return [partial(self._add_images, key, [render(figure)], step)]

    def _put_histogram(self, key: str, values: Any, bins: int, step: int | None) -> Sends:
        if not values.size:
            return []
        return [lambda: self.experiment.add_histogram(key, values, step, bins="auto", max_bins=bins)]

    def _put_text(self, key: str, text: str, step: int | None) -> Sends:
        return [lambda: self.experiment.add_text(key, text, step)]

    def _put_table(self, key: str, columns: Any, data: Any, dataframe: Any, step: int | None) -> Sends:
        """Show a table as text laid out in Markdown."""
        names, cells = rows_of(columns, data, dataframe)
        rows = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
        head = names or [""] * max(map(len, rows), default=1)
        lines = [head, ["---"] * len(head), *rows]
        return self._put_text(key, "\n".join("| " + " | ".join(line) + " |" for line in lines), step)

    def _put_audios(self, key: str, audios: Sequence[Any], options: Options, step: int | None) -> Sends:
        sounds = [mono(sound, option.get("sample_rate")) for sound, option in zip(audios, options, strict=True)]

        def write() -> None:
            for tag, (array, rate) in named(key, sounds):
                self.experiment.add_audio(tag, array, step, sample_rate=rate)

        return [write]

    def _put_videos(self, key: str, videos: Sequence[Any], options: Options, step: int | None) -> Sends:
        """Show the frames of each video side by side: moving ones need a package that TensorBoard does not bring."""
        # (T, C, H, W) to (H, T * W, C)
        strips = [f.transpose(2, 0, 3, 1).reshape(f.shape[2], -1, f.shape[1]) for f in map(frames, videos)]
        return [partial(self._add_images, key, strips, step)]
