"""Show pictures, tables and sounds in a W&B run."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lt_interface import Logger, MisconfigurationException, is_rank_zero
from lt_loggers.checkpoints import stage, staging_folder

__all__ = ["WandbMedia"]


class WandbMedia(Logger):
    """Be the part of `WandbLogger` that shows media.

    All is converted at the call; only the sending waits for its turn.
    """

    _per_rank: bool
    _send_call: Callable[[Mapping[str, Any], int | None], None]
    _name_of: Callable[[str], str]

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Show a list of pictures.

        Args:
            key: The name they stand under.
            images: Tensors (C,H,W), (H,W) or (H,W,C), arrays, PIL images or paths.
            step: The step; None takes the run's, and none outside of a run.
            **kwargs: A list for each argument of ``wandb.Image``, such as ``caption``.
        """
        if self._is_silent():
            return
        import wandb

        from lt_loggers.encoding import as_list, per_item, pictures

        options = per_item(len(as_list("log_image", "images", images)), kwargs)
        shown = [
            _taken(wandb.Image, picture, **extra) for picture, extra in zip(pictures(images), options, strict=True)
        ]
        self._show(key, shown, step)

    def log_figure(self, key: str, figure: Any, step: int | None = None, **kwargs: Any) -> None:
        """Show a figure of matplotlib as a picture, one of plotly as it is; it may be closed after the call."""
        if self._is_silent():
            return
        import wandb

        from lt_loggers.encoding import render

        if type(figure).__module__.partition(".")[0] == "plotly":
            self._show(key, _taken(wandb.Plotly, figure), step)
        else:
            self._show(key, _taken(wandb.Image, render(figure), **kwargs), step)

    def log_histogram(self, key: str, values: Any, step: int | None = None, bins: int = 64) -> None:
        """Show how the finite values of a tensor or array are distributed."""
        if self._is_silent():
            return
        import numpy as np
        import wandb

        from lt_loggers.encoding import finite

        counts = np.histogram(finite(values), bins=bins)
        self._show(key, wandb.Histogram(np_histogram=counts), step)

    def log_text(
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
            step: The step; None takes the run's, and none outside of a run.
        """
        if not isinstance(columns, str):
            self.log_table(key, columns, data, dataframe, step)
        elif not self._is_silent():
            import wandb

            self._show(key, wandb.Html(f'<pre style="white-space: pre-wrap">{html.escape(columns)}</pre>'), step)

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Show rows under column names, or a data frame; cells may be media of wandb.

        Args:
            key: The name it stands under.
            columns: The columns' names.
            data: The rows.
            dataframe: A data frame in place of both.
            step: The step; None takes the run's, and none outside of a run.
        """
        if self._is_silent():
            return
        import wandb

        rows = None if data is None else [list(row) for row in data]
        self._show(key, _taken(wandb.Table, columns=columns, data=rows, dataframe=dataframe), step)

    def log_audio(self, key: str, audios: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of sounds.

        Args:
            key: The name they stand under.
            audios: Arrays (samples,) or (channels, samples) in -1..1, or paths. Several stand under
                ``key/0``, ``key/1`` and so on where the package soundfile is not installed.
            step: The step; None takes the run's, and none outside of a run.
            **kwargs: A list for each of ``sample_rate`` (Hz, 44100 if left out) and ``caption``.
        """
        if self._is_silent():
            return
        import wandb

        from lt_loggers.encoding import as_list, per_item, wav

        sounds = as_list("log_audio", "audios", audios)
        folder = self._staging_folder()
        shown = []
        for index, (sound, extra) in enumerate(zip(sounds, per_item(len(sounds), kwargs), strict=True)):
            rate = extra.pop("sample_rate", None) or 44100
            if isinstance(sound, (str, os.PathLike)):
                path = stage(os.fspath(sound), os.path.join(folder, str(index)))
            else:
                path = os.path.join(folder, f"{index}.wav")
                with open(path, "wb") as file:
                    file.write(wav(sound, int(rate)))
            shown.append(_taken(wandb.Audio, path, sample_rate=int(rate), **extra))
        if find_spec("soundfile"):
            self._show(key, shown, step, folder)
        else:  # wandb takes a list with that package only, and one sound without
            names = [f"{key}/{index}" for index in range(len(shown))] if len(shown) > 1 else [key]
            self._show_all(dict(zip(names, shown, strict=True)), step, folder)

    def log_video(self, key: str, videos: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of videos.

        Args:
            key: The name they stand under.
            videos: Arrays (T,C,H,W) in 0..255, kept as animated pictures, or paths.
            step: The step; None takes the run's, and none outside of a run.
            **kwargs: A list for each of ``fps`` (4 if left out), ``caption`` and ``format``; a format other
                than gif needs wandb's own encoder.
        """
        if self._is_silent():
            return
        import wandb

        from lt_loggers.encoding import as_list, frames, gif, per_item

        films = as_list("log_video", "videos", videos)
        folder = self._staging_folder()
        shown = []
        for index, (film, extra) in enumerate(zip(films, per_item(len(films), kwargs), strict=True)):
            if isinstance(film, (str, os.PathLike)):
                extra.pop("fps", None)  # a file has its own
                path = stage(os.fspath(film), os.path.join(folder, str(index)))
                shown.append(_taken(wandb.Video, path, **extra))
            elif extra.get("format") in (None, "gif"):
                path = os.path.join(folder, f"{index}.gif")
                with open(path, "wb") as file:
                    file.write(gif(film, float(extra.pop("fps", None) or 4)))
                shown.append(_taken(wandb.Video, path, **extra))
            else:
                shown.append(_taken(wandb.Video, frames(film), **extra))
        self._show(key, shown, step, folder)

    def _show(self, key: str, value: Any, step: int | None, folder: str | None = None) -> None:
        self._show_all({key: value}, step, folder)

    def _show_all(self, values: Mapping[str, Any], step: int | None, folder: str | None) -> None:
        row = {self._name_of(key): value for key, value in values.items()}
        step = self.step_or_current(step)

        def send() -> None:
            self._send_call(row, step)
            if folder is not None:  # wandb has its own copies now
                shutil.rmtree(folder, ignore_errors=True)

        self.later(send, f"{', '.join(row)} at step {step}")

    def _staging_folder(self) -> str:
        return staging_folder(self.log_dir or ".")

    def _is_silent(self) -> bool:
        return not (self._per_rank or is_rank_zero())


def _taken(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Make one of wandb's media; what it says against the arguments is said once, in one form."""
    import wandb

    try:
        return kind(*args, **kwargs)
    except (wandb.errors.Error, TypeError, ValueError, AssertionError) as error:
        raise MisconfigurationException(f"WandbLogger: wandb.{kind.__name__} refuses this. {error}") from error
