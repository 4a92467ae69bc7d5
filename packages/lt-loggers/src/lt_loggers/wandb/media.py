"""Pictures, tables and sounds in a W&B run."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lt_interface import MisconfigurationException
from lt_loggers.checkpoints import stage, staging_folder
from lt_loggers.encoding import frames, gif, render, wav
from lt_loggers.media import Media, Options, Sends, named

__all__ = ["WandbMedia", "made"]


class WandbMedia(Media):
    """Media of `WandbLogger`; its rows have no step outside of a run."""

    _step_outside = None
    _send_call: Callable[[Mapping[str, Any], int | None], None]
    _name_of: Callable[[str], str]

    def _put_images(self, key: str, arrays: Sequence[Any], options: Options, step: int | None) -> Sends:
        shown = [made("Image", array, **option) for array, option in zip(arrays, options, strict=True)]
        return [self._row({key: shown}, step)]

    def _put_figure(self, key: str, figure: Any, options: Mapping[str, Any], step: int | None) -> Sends:
        """Show a figure of matplotlib as a picture, one of plotly as it is."""
        if type(figure).__module__.partition(".")[0] == "plotly":
            return [self._row({key: made("Plotly", figure)}, step)]
        return [self._row({key: made("Image", render(figure), **options)}, step)]

    def _put_histogram(self, key: str, values: Any, bins: int, step: int | None) -> Sends:
        import numpy as np

        return [self._row({key: made("Histogram", np_histogram=np.histogram(values, bins=bins))}, step)]

    def log_text(  # type: ignore[override]
        self,
        key: str,
        columns: Any = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Show a text, or a table of texts.

        Args:
            key: The name it stands under.
            columns: A text to show as it is; or the names of a table's columns.
            data: The table's rows.
            dataframe: A data frame in place of both.
            step: The step; None takes the run's.
        """
        if isinstance(columns, str):
            self._log_one_text(key, columns, step)
        else:
            self.log_table(key, columns, data, dataframe, step)

    def _put_text(self, key: str, text: str, step: int | None) -> Sends:
        shown = made("Html", f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>')
        return [self._row({key: shown}, step)]

    def _put_table(self, key: str, columns: Any, data: Any, dataframe: Any, step: int | None) -> Sends:
        """Show a table, whose cells may be media of wandb."""
        rows = None if data is None else [list(row) for row in data]
        return [self._row({key: made("Table", columns=columns, data=rows, dataframe=dataframe)}, step)]

    def _put_audios(self, key: str, audios: Sequence[Any], options: Options, step: int | None) -> Sends:
        """Keep sounds; several stand under ``key/0``, ``key/1`` and so on where soundfile is not installed."""
        folder = staging_folder(self.log_dir or ".")
        shown = []
        for index, (sound, option) in enumerate(zip(audios, options, strict=True)):
            rate = int(option.pop("sample_rate", None) or 44100)
            path = _file(folder, index, sound, ".wav", wav, rate)
            shown.append(made("Audio", path, sample_rate=rate, **option))
        # wandb takes a list with that package only, and one sound without
        row = {key: shown} if find_spec("soundfile") else dict(named(key, shown))
        return [self._row(row, step, folder)]

    def _put_videos(self, key: str, videos: Sequence[Any], options: Options, step: int | None) -> Sends:
        """Keep arrays as animated pictures; a format other than gif needs wandb's own encoder."""
        folder = staging_folder(self.log_dir or ".")
        shown = []
        for index, (video, option) in enumerate(zip(videos, options, strict=True)):
            if _is_file(video) or option.get("format") in (None, "gif"):
                fps = float(option.pop("fps", None) or 4)  # a file has its own
                kept: Any = _file(folder, index, video, ".gif", gif, fps)
            else:
                kept = frames(video)
            shown.append(made("Video", kept, **option))
        return [self._row({key: shown}, step, folder)]

    def _row(self, values: Mapping[str, Any], step: int | None, folder: str | None = None) -> Callable[[], None]:
        """Return what sends one row.

        Args:
            values: Media of wandb by name.
            step: The step, or None.
            folder: What their files lie in; removed when they are sent.
        """
        row = {self._name_of(key): value for key, value in values.items()}

        def send() -> None:
            self._send_call(row, step)
            if folder is not None:  # wandb has its own copies now
                shutil.rmtree(folder, ignore_errors=True)

        return send


def made(kind: str, *args: Any, **kwargs: Any) -> Any:
    """Return one of wandb's media.

    Args:
        kind: Its class, such as ``"Image"``.
        *args: What that class takes.
        **kwargs: What that class takes.

    Raises:
        MisconfigurationException: If it refuses them.
    """
    import wandb

    try:
        return getattr(wandb, kind)(*args, **kwargs)
    except (wandb.errors.Error, TypeError, ValueError, AssertionError) as error:
        raise MisconfigurationException(f"WandbLogger: wandb.{kind} refuses this. {error}") from error


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _file(folder: str, index: int, value: Any, ending: str, encode: Callable[[Any, Any], bytes], rate: float) -> str:
    """Keep a file as it is now, or an array encoded, in a staging folder; return its path."""
    if _is_file(value):
        return stage(os.fspath(value), os.path.join(folder, str(index)))
    path = os.path.join(folder, f"{index}{ending}")
    with open(path, "wb") as file:
        file.write(encode(value, rate))
    return path
