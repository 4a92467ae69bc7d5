"""Pictures, figures, sounds, tables and checkpoints of an MLflow run, kept as artifacts."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lt_loggers.checkpoints import Found, KeepsCheckpoints
from lt_loggers.encoding import gif, png, render, rows_of, wav
from lt_loggers.media import Media, Options, Sends, named
from lt_loggers.mlflow.client import ask
from lt_loggers.mlflow.run import MLFlowRun

__all__ = ["MLFlowMedia"]

# Without a sign of life; metrics wait as long.
_MEDIA_SECONDS = 15.0


class MLFlowMedia(MLFlowRun, Media, KeepsCheckpoints):
    """Artifacts of a run: what ``_put_*`` return is called with the client and the run's id."""

    _aliases: dict[str, list[str]] | None = None  # by the place of each checkpoint

    def _send(self, sends: Sends, what: str) -> None:
        super()._send([partial(self._at_the_server, send) for send in sends], what)

    def _at_the_server(self, send: Callable[[Any, str], Any]) -> None:
        ask(send, self._connected(), str(self._run_id), timeout=_MEDIA_SECONDS)

    def _put_images(self, key: str, arrays: Sequence[Any], options: Options, step: int | None) -> Sends:
        def send(client: Any, run_id: str) -> None:
            for name, array in named(_path(key), arrays, "_"):
                if hasattr(client, "log_image"):
                    shown = array.repeat(3, axis=2) if array.shape[2] == 1 else array
                    client.log_image(run_id, shown, key=name, step=step, synchronous=True)
                else:
                    _put(client, run_id, f"images/{name}/step_{step}.png", png(array))

        return [send]

    def _put_figure(self, key: str, figure: Any, options: Mapping[str, Any], step: int | None) -> Sends:
        """Keep a figure of matplotlib as a PNG, one of plotly as a page."""
        name = f"figures/{_path(key)}/step_{step}"
        if hasattr(figure, "to_html"):
            return [_file(f"{name}.html", figure.to_html().encode())]
        return [_file(f"{name}.png", png(render(figure)))]

    def _put_histogram(self, key: str, values: Any, bins: int, step: int | None) -> Sends:
        """Keep a histogram as JSON: the edges of its bins and how many values lie in each."""
        import numpy as np

        counts, edges = np.histogram(values, bins)
        data = json.dumps({"edges": edges.tolist(), "counts": counts.tolist()})
        return [_file(f"histograms/{_path(key)}/step_{step}.json", data.encode())]

    def _put_text(self, key: str, text: str, step: int | None) -> Sends:
        return [_file(f"text/{_path(key)}/step_{step}.txt", text.encode())]

    def _put_table(self, key: str, columns: Any, data: Any, dataframe: Any, step: int | None) -> Sends:
        """Keep a table as JSON, in the form that MLflow's pages show."""
        names, rows = rows_of(columns, data, dataframe)
        table = json.dumps({"columns": names, "data": rows}, default=str)
        return [_file(f"tables/{_path(key)}/step_{step}.json", table.encode())]

    def _put_audios(self, key: str, audios: Sequence[Any], options: Options, step: int | None) -> Sends:
        """Keep sounds as WAV files, or files as they are."""
        rates = [option.get("sample_rate") for option in options]
        return _files(f"audio/{_path(key)}/step_{step}", audios, ".wav", wav, rates)

    def _put_videos(self, key: str, videos: Sequence[Any], options: Options, step: int | None) -> Sends:
        """Keep files as they are, arrays as animated GIF files."""
        rates = [option.get("fps") for option in options]
        return _files(f"video/{_path(key)}/step_{step}", videos, ".gif", gif, rates)

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


def _file(name: str, data: bytes) -> Callable[[Any, str], None]:
    """Return what puts bytes into an artifact."""
    return partial(_put, name=name, data=data)


def _files(
    name: str, values: Sequence[Any], ending: str, encode: Callable[..., bytes], rates: Sequence[float | None]
) -> Sends:
    """Return what keeps each value as an artifact: a file as it is, an array encoded."""
    made = []
    for i, (value, rate) in enumerate(zip(values, rates, strict=True)):
        if isinstance(value, (str, os.PathLike)):
            with open(value, "rb") as file:
                made.append(_file(f"{name}_{i}{os.path.splitext(os.fspath(value))[1]}", file.read()))
        else:
            made.append(_file(f"{name}_{i}{ending}", encode(value) if rate is None else encode(value, rate)))
    return made


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
