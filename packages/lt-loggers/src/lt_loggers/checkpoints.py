"""Checkpoints that a callback saved anew, held until they are sent."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from glob import escape, glob
from typing import Any

from lt_interface.hyperparameters import number, plain
from lt_interface.versions import NamedLogger, unless_silent

__all__ = ["Found", "KeepsCheckpoints", "new_checkpoints", "stage", "staging_folder"]

_STAGED = ".staged-"
_cleaned: set[str] = set()  # the runs' folders that this process has looked through

# What is read of a checkpoint callback, where it has it.
_SETTINGS = ["monitor", "mode", "save_last", "save_top_k", "save_weights_only"]
_SETTINGS += ["_every_n_train_steps", "_every_n_epochs", "_train_time_interval"]


@dataclass
class Found:
    """One checkpoint of a callback, and what is known of it."""

    path: str
    stamp: tuple[int, int]
    aliases: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)


class KeepsCheckpoints(NamedLogger):
    """Logger that keeps checkpoints, by `_send_checkpoint`."""

    _log_model: bool | str
    _keeps_staged = False  # whether what was staged is still needed when it was sent
    _sent_checkpoints: dict[str, tuple[int, int]] | None = None
    _checkpoint_callback: Any = None

    @unless_silent
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Keep the callback's new checkpoints, at once or at the end, as ``log_model`` says.

        A checkpoint is held by a hard link or a copy until it is sent: it may be removed after the call.

        Args:
            checkpoint_callback: A callback that names paths and scores, as `ModelCheckpoint` does.
        """
        if not self._log_model:
            return
        if self._log_model == "all" or getattr(checkpoint_callback, "save_top_k", 1) == -1:
            for found in self._new_checkpoints(checkpoint_callback):
                self._hold_and_send(found)
        else:
            self._checkpoint_callback = checkpoint_callback

    def _new_checkpoints(self, callback: Any) -> list[Found]:
        self._sent_checkpoints = {} if self._sent_checkpoints is None else self._sent_checkpoints
        return new_checkpoints(callback, self._sent_checkpoints)

    def _hold_and_send(self, found: Found) -> None:
        folder = staging_folder(self.log_dir or ".", keeps=self._keeps_staged)
        held = stage(found.path, folder)

        def send() -> None:
            self._send_checkpoint(found, held)
            if not self._keeps_staged:
                shutil.rmtree(folder, ignore_errors=True)

        self.later(send, f"checkpoint {os.path.basename(found.path)}")

    def _send_checkpoint(self, found: Found, path: str) -> None:
        raise NotImplementedError


def new_checkpoints(callback: Any, sent: dict[str, tuple[int, int]]) -> list[Found]:
    """Return a callback's checkpoints that were not sent yet, the oldest first, and count them as sent.

    Args:
        callback: A callback that names paths and scores, as `ModelCheckpoint` does.
        sent: What was sent: the time and size of each path; it is added to.
    """
    best, last = getattr(callback, "best_model_path", ""), getattr(callback, "last_model_path", "")
    scores: dict[str, Any] = dict(getattr(callback, "best_k_models", None) or {})
    if best:
        scores.setdefault(best, getattr(callback, "best_model_score", None))
    if last:
        scores.setdefault(last, getattr(callback, "current_score", None))
    settings = {key.lstrip("_"): getattr(callback, key) for key in _SETTINGS if hasattr(callback, key)}
    found = []
    for path, score in scores.items():
        try:
            stat = os.stat(path)
        except OSError:  # top-k removed it, or it is not written yet
            continue
        stamp = (stat.st_mtime_ns, stat.st_size)
        if sent.get(path) == stamp:
            continue
        aliases = ["latest"]
        if path == best:
            aliases.append("best")
        if path == last:
            aliases.append("last")
        step = re.search(r"(?:^|[^a-z])step[=_-]?(\d+)", os.path.basename(os.path.realpath(path)))
        if step:
            aliases.append(f"step-{int(step[1])}")
        metadata = {
            "score": _score(score),
            "original_filename": os.path.basename(os.path.normpath(path)),
            type(callback).__name__: plain(settings),
        }
        found.append(Found(path, stamp, aliases, metadata))
    found.sort(key=lambda entry: entry.stamp)
    sent.update({entry.path: entry.stamp for entry in found})
    return found


def stage(path: str, folder: str) -> str:
    """Keep a file or folder as it is now, by hard links where that works; return where it is kept.

    Args:
        path: What to keep.
        folder: Where; it is made.
    """
    os.makedirs(folder, exist_ok=True)
    target = os.path.join(folder, os.path.basename(os.path.normpath(path)))
    source = os.path.realpath(path)
    if os.path.isdir(source):
        shutil.copytree(source, target, copy_function=_link)
    else:
        _link(source, target)
    return target


def staging_folder(home: str, keeps: bool = False) -> str:
    """Make and return a folder in which something waits to be sent; the first removes what a killed process left.

    Args:
        home: Where.
        keeps: Whether it is to outlive this process.
    """
    if home not in _cleaned:
        _cleaned.add(home)
        for path in glob(os.path.join(escape(home), f"{_STAGED}*")):
            shutil.rmtree(path, ignore_errors=True)
    os.makedirs(home, exist_ok=True)
    return tempfile.mkdtemp(prefix=".kept-" if keeps else _STAGED, dir=home)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
    return target


def _score(value: Any) -> float | None:
    with suppress(TypeError):  # None, or no number
        return number(value)
    return None
