"""Keep pictures, figures, sounds, tables and checkpoints with an MLflow run, as artifacts."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from lt_interface import is_rank_zero
from lt_loggers.checkpoints import Found, KeepsCheckpoints
from lt_loggers.mlflow.client import calling
from lt_loggers.texts import TextsAndTables

__all__ = ["MLFlowMedia"]

# Without a sign of life; metrics wait as long.
_MEDIA_SECONDS = 15.0


class MLFlowMedia(TextsAndTables, KeepsCheckpoints):
    """Be the part of `MLFlowLogger` that keeps artifacts: all of it is sent behind the caller's back."""

    _run_id: str | None
    _made_client: Callable[[], Any]
    _connect: Callable[..., None]
    _aliases: dict[str, list[str]] | None = None  # by the place of each checkpoint

    def _later(self, send: Callable[[Any, str], Any], what: str) -> None:
        """Call ``send(client, run_id)`` when the server is there."""
        self.later(lambda: self._at_the_server(send), what)

    def _at_the_server(self, send: Callable[[Any, str], Any]) -> None:
        _ = self.version
        self._connect()
        with calling(_MEDIA_SECONDS):
            send(self._made_client(), str(self._run_id))

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Show a list of pictures under a name.

        Args:
            key: The name.
            images: Tensors, arrays, PIL images or paths.
            step: The step; None takes the run's, or 0 outside of a run.
            **kwargs: Lists such as ``caption``; MLflow has no place for them.
        """
        from lt_loggers.encoding import as_list, per_item, pictures, png

        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        arrays = pictures(as_list(key, "images", images))
        per_item(len(arrays), kwargs)

        def send(client: Any, run_id: str) -> None:
            for i, array in enumerate(arrays):
                name = _path(key) if len(arrays) == 1 else f"{_path(key)}_{i}"
                if hasattr(client, "log_image"):
                    shown = array.repeat(3, axis=2) if array.shape[2] == 1 else array
                    client.log_image(run_id, shown, key=name, step=at, synchronous=True)
                else:
                    _put(client, run_id, f"images/{name}/step_{at}.png", png(array))

        self._later(send, f"image {key}")

    def log_figure(self, key: str, figure: Any, step: int | None = None, **kwargs: Any) -> None:
        """Keep a figure as it is now: of matplotlib as a PNG, of plotly as a page.

        Args:
            key: The name.
            figure: The figure; it may be closed after the call.
            step: The step; None takes the run's, or 0 outside of a run.
            **kwargs: Taken for other loggers' sake.
        """
        from lt_loggers.encoding import png, render

        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        if hasattr(figure, "to_html"):
            name, data = f"figures/{_path(key)}/step_{at}.html", figure.to_html().encode()
        else:
            name, data = f"figures/{_path(key)}/step_{at}.png", png(render(figure))
        self._later(lambda client, run_id: _put(client, run_id, name, data), f"figure {key}")

    def log_histogram(self, key: str, values: Any, step: int | None = None, bins: int = 64) -> None:
        """Keep a histogram as JSON: the edges of its bins and how many values lie in each.

        Args:
            key: The name.
            values: A tensor or array.
            step: The step; None takes the run's, or 0 outside of a run.
            bins: How many bins.
        """
        import numpy as np

        from lt_loggers.encoding import finite

        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        counts, edges = np.histogram(finite(values), bins)
        data = json.dumps({"edges": edges.tolist(), "counts": counts.tolist()}).encode()
        name = f"histograms/{_path(key)}/step_{at}.json"
        self._later(lambda client, run_id: _put(client, run_id, name, data), f"histogram {key}")

    def _show_text(self, key: str, text: str, step: int) -> None:
        name = f"text/{_path(key)}/step_{step}.txt"
        self._later(lambda client, run_id: _put(client, run_id, name, text.encode()), f"text {key}")

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Keep a table as JSON, in the form that MLflow's pages show.

        Args:
            key: The name.
            columns: Names of the columns.
            data: Rows.
            dataframe: A data frame instead of both.
            step: The step; None takes the run's, or 0 outside of a run.
        """
        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        from lt_loggers.encoding import rows_of

        names, rows = rows_of(columns, data, dataframe)
        table = json.dumps({"columns": names, "data": rows}, default=str).encode()
        name = f"tables/{_path(key)}/step_{at}.json"
        self._later(lambda client, run_id: _put(client, run_id, name, table), f"table {key}")

    def log_audio(self, key: str, audios: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of sounds as WAV files, or files as they are.

        Args:
            key: The name.
            audios: Arrays (samples,) or (channels, samples) in -1..1, or paths.
            step: The step; None takes the run's, or 0 outside of a run.
            **kwargs: Lists such as ``sample_rate`` (Hz; 44100 if left out).
        """
        from lt_loggers.encoding import as_list, per_item, wav

        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        sounds = as_list(key, "audios", audios)
        for i, (sound, given) in enumerate(zip(sounds, per_item(len(sounds), kwargs), strict=True)):
            self._keep_file(f"audio/{_path(key)}/step_{at}_{i}", sound, ".wav", wav, given.get("sample_rate"))

    def log_video(self, key: str, videos: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep a list of videos: files as they are, arrays as animated GIF files.

        Args:
            key: The name.
            videos: Arrays (T, C, H, W) in 0..255, or paths.
            step: The step; None takes the run's, or 0 outside of a run.
            **kwargs: Lists such as ``fps`` (4 if left out).
        """
        from lt_loggers.encoding import as_list, gif, per_item

        if not is_rank_zero():
            return
        at = self.step_or_current(step) or 0
        given = as_list(key, "videos", videos)
        for i, (video, options) in enumerate(zip(given, per_item(len(given), kwargs), strict=True)):
            self._keep_file(f"video/{_path(key)}/step_{at}_{i}", video, ".gif", gif, options.get("fps"))

    def _keep_file(self, name: str, value: Any, ending: str, encode: Callable[..., bytes], option: Any) -> None:
        if isinstance(value, (str, os.PathLike)):
            ending = os.path.splitext(os.fspath(value))[1]
            with open(value, "rb") as file:
                data = file.read()
        else:
            data = encode(value) if option is None else encode(value, option)
        self._later(lambda client, run_id: _put(client, run_id, name + ending, data), name)

    # ------------------------------------------------------------ checkpoints

    def _send_final_checkpoints(self) -> None:
        """Keep what is left at the end of the run."""
        callback = self._checkpoint_callback
        for found in self._new_checkpoints(callback) if callback is not None else ():
            try:
                self._send_checkpoint(found, found.path)
            except (ConnectionError, ValueError) as error:
                self._sent_checkpoints = None
                raise ConnectionError(f"checkpoint {found.path} was not sent. {error}") from None
            self.progressed()
        self._checkpoint_callback = None

    def _held_aliases(self, client: Any, run_id: str) -> dict[str, list[str]]:
        """Return the aliases by checkpoint; of a run that goes on, as an earlier process left them."""
        if self._aliases is None:
            places = [entry.path for entry in client.list_artifacts(run_id, "checkpoints") if entry.is_dir]
            found = {place: _read(client, run_id, f"{place}/aliases.txt") for place in places}
            self._aliases = {place: aliases for place, aliases in found.items() if isinstance(aliases, list)}
        return self._aliases

    def _send_checkpoint(self, found: Found, path: str) -> None:
        self._at_the_server(lambda client, run_id: self._put_checkpoint(client, run_id, found, path))

    def _put_checkpoint(self, client: Any, run_id: str, found: Found, path: str) -> None:
        """Put a checkpoint into ``checkpoints/<name>``, with what is known of it and its aliases, which others lose."""
        place = f"checkpoints/{_path(os.path.splitext(os.path.basename(found.path))[0])}"
        if os.path.isdir(path):
            client.log_artifacts(run_id, path, f"{place}/{os.path.basename(path)}")
        else:
            client.log_artifact(run_id, path, place)
        _put(client, run_id, f"{place}/metadata.json", json.dumps(found.metadata, default=str).encode())
        held = self._held_aliases(client, run_id)
        changed = {other: [a for a in aliases if a not in found.aliases] for other, aliases in held.items()}
        changed[place] = found.aliases
        for other, aliases in changed.items():
            if aliases != held.get(other):
                _put(client, run_id, f"{other}/aliases.txt", json.dumps(aliases).encode())
        self._aliases = changed


def _read(client: Any, run_id: str, name: str) -> Any:
    """Return what an artifact of JSON holds, None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with open(client.download_artifacts(run_id, name, folder), encoding="utf-8") as file:
                return json.load(file)
        except Exception:  # each store has its own error for what is not there
            return None


def _put(client: Any, run_id: str, name: str, data: bytes) -> None:
    """Put bytes into an artifact."""
    place, base = os.path.split(name)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, base)
        with open(path, "wb") as file:
            file.write(data)
        client.log_artifact(run_id, path, place)


def _path(key: str) -> str:
    """Return a name as a path below the run's artifacts that leads nowhere else."""
    parts = [re.sub(r"[^\w.\-]", "_", part) for part in key.split("/")]
    return "/".join(part for part in parts if part.strip(".")) or f"unnamed_{int(time.time())}"
