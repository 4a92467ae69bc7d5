"""The newest valid checkpoint is found by the counters in the files."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
import torch

from lt_core.checkpoint import find_last, parameter_signature, save_checkpoint

STATE = {"w": torch.ones(3)}


def make(path: pathlib.Path, *, state: dict[str, Any] = STATE, **progress: int) -> pathlib.Path:
    save_checkpoint({"progress": progress, "state_dict": state}, path)
    return path


def test_the_largest_counters_win_whatever_names_and_dates_say(tmp_path: pathlib.Path) -> None:
    """Steps count first, then epochs, then batches, then the counter of saves."""
    make(tmp_path / "z.ckpt", step=5, epoch=1, batch=0, save_counter=9)
    late = make(tmp_path / "a.ckpt", step=10, epoch=1, batch=0, save_counter=1)
    make(tmp_path / "b.ckpt", step=10, epoch=0, batch=10, save_counter=2)
    os.utime(late, (0, 0))
    assert find_last([tmp_path]) == late
    later = make(tmp_path / "0.ckpt", step=10, epoch=1, batch=0, save_counter=3)
    assert find_last([tmp_path]) == later
    latest = make(tmp_path / "sub" / "x.ckpt", step=10, epoch=1, batch=1)
    assert find_last([tmp_path]) == later
    assert find_last([tmp_path, tmp_path / "sub", tmp_path / "missing"]) == latest


def test_damaged_files_are_named_in_one_warning_and_passed_over(tmp_path: pathlib.Path) -> None:
    """Truncated, flipped and foreign files do not stop the search."""
    good = make(tmp_path / "good.ckpt", step=1)
    flipped, cut = make(tmp_path / "flipped.ckpt", step=3), make(tmp_path / "cut.ckpt", step=2)
    raw = bytearray(flipped.read_bytes())
    raw[-1] ^= 1
    flipped.write_bytes(raw)
    cut.write_bytes(cut.read_bytes()[:-1])
    (tmp_path / "foreign.ckpt").write_bytes(b"PK\x03\x04" * 20)
    with pytest.warns(UserWarning, match="passed over") as caught:
        assert find_last([tmp_path]) == good
    assert len(caught) == 1
    message = str(caught[0].message)
    assert all(name in message for name in ("flipped.ckpt", "cut.ckpt", "foreign.ckpt", "good.ckpt"))


def test_nothing_valid_gives_none(tmp_path: pathlib.Path) -> None:
    """No folder, no file and only bad files give None."""
    assert find_last([]) is None
    assert find_last([tmp_path, tmp_path / "no"]) is None
    (tmp_path / "x.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="No valid one"):
        assert find_last([tmp_path]) is None


def test_checkpoints_of_another_model_do_not_count(tmp_path: pathlib.Path) -> None:
    """With a signature given, only files with the same parameters count."""
    mine = make(tmp_path / "mine.ckpt", step=1)
    make(tmp_path / "other.ckpt", step=2, state={"w": torch.ones(4)})
    assert find_last([tmp_path], parameter_signature(STATE)) == mine


def test_hidden_temporary_and_other_files_are_left_alone(tmp_path: pathlib.Path) -> None:
    """Only .ckpt and .safetensors files are looked at; dangling links are passed over silently."""
    (tmp_path / ".x.ckpt.0.h.lt-tmp").write_bytes(b"x")
    (tmp_path / ".hidden.ckpt").write_bytes(b"x")
    (tmp_path / "metrics.csv").write_bytes(b"x")
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "last.ckpt").symlink_to("gone.ckpt")
    assert find_last([tmp_path]) is None
    real = make(tmp_path / "epoch=1.safetensors", step=1)
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").symlink_to(real.name)
    assert find_last([tmp_path]) == real


def test_a_file_without_counters_counts_by_its_familiar_keys(tmp_path: pathlib.Path) -> None:
    """A hand-made tree with epoch and global_step is ordered by them."""
    for step in (3, 12, 7):
        save_checkpoint({"epoch": 0, "global_step": step}, tmp_path / f"{step}.ckpt")
    assert find_last([tmp_path]) == tmp_path / "12.ckpt"
