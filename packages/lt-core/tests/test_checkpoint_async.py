"""An asynchronous save writes what was there when it was called, one at a time, and reports its failure once."""

from __future__ import annotations

import copy
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from lt_core.checkpoint import AsyncCheckpointIO, SafetensorsIO, load_checkpoint, save_checkpoint
from lt_interface import CheckpointError, CheckpointIO


class Gate(SafetensorsIO):
    """Write only when let."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.fail: BaseException | None = None
        self.written: list[str] = []

    def write(self, prepared: Any, path: Any) -> None:
        assert self.open.wait(10)
        if self.fail is not None:
            raise self.fail
        super().write(prepared, path)
        self.written.append(str(path))


class Plain:
    """Format of another kind, which keeps trees in memory."""

    collective = False

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def save(self, tree: dict[str, Any], path: str) -> None:
        time.sleep(0.05)
        self.kept[path] = dict(tree)

    def load(self, path: str) -> dict[str, Any]:
        return self.kept[path]  # type: ignore[no-any-return]

    def peek(self, path: str) -> dict[str, Any]:
        return {}

    def verify(self, path: str) -> None:
        return None

    def remove(self, path: str) -> None:
        self.kept.pop(path, None)

    def wait(self) -> None:
        return None


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def odd_tree() -> dict[str, Any]:
    w = torch.randn(40, 30)
    base = torch.arange(100.0)
    return {
        "w": w,
        "t": w.t(),
        "a": base[:60],
        "b": base[50:],
        "e": torch.ones(1).expand(9),
        "d": torch.randn(3, dtype=torch.float64),
        "c": torch.randn(3, 5, dtype=torch.complex64).t(),
        "odd": torch.ones(3, dtype=torch.uint8),
        "bool": torch.tensor(True),
        "empty": torch.empty(0, 3),
        "windows": torch.arange(10.0).unfold(0, 4, 1),
        "big": torch.randn(2_000_000),
        "set": {"x", "y"},
        "list": [1, {"deep": [2]}],
    }


def test_the_file_is_the_same_as_a_direct_saves(tmp_path: pathlib.Path) -> None:
    """Byte for byte, first with fresh and then with reused memory."""
    io, tree = AsyncCheckpointIO(), odd_tree()
    for name in ("1", "2"):
        io.save(tree, tmp_path / f"async{name}.ckpt")
        io.wait()
        save_checkpoint(tree, tmp_path / f"sync{name}.ckpt")
        assert (tmp_path / f"async{name}.ckpt").read_bytes() == (tmp_path / f"sync{name}.ckpt").read_bytes()
        tree["w"].add_(1)
        tree["big"] = torch.randn(10)


def test_what_changes_after_the_call_is_not_written(tmp_path: pathlib.Path, gate: Gate) -> None:
    """Tensors, arrays, lists and dicts may change as soon as the call returns."""
    import numpy as np

    io, tree = AsyncCheckpointIO(gate), odd_tree() | {"array": np.ones(4)}
    expected = copy.deepcopy({key: tree[key] for key in ("w", "b", "c", "list", "big")})
    io.save(tree, tmp_path / "x.ckpt")
    for value in tree.values():
        if isinstance(value, torch.Tensor) and value.stride()[:1] != (0,) and value.dim():
            value.copy_(torch.zeros_like(value))
    tree["array"][:] = 5
    tree["list"][1]["deep"].append(3)
    tree["new"] = 1
    assert io.in_flight
    gate.open.set()
    io.wait()
    found = load_checkpoint(tmp_path / "x.ckpt")
    assert all(torch.equal(found[key], expected[key]) for key in ("w", "b", "c", "big"))
    assert found["list"] == expected["list"]
    assert found["array"].sum() == 4
    assert "new" not in found


def test_no_copy_is_left_in_flight_that_nothing_waits_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is begun without waiting only where the writing thread waits for it: on a device with pinned memory."""
    begun: list[bool] = []
    copy_ = torch.Tensor.copy_

    def noted(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        begun.append(non_blocking)
        return copy_(self, source, non_blocking)

    tree = odd_tree()
    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    io = AsyncCheckpointIO()
    io.save(tree, tmp_path / "x.ckpt")
    io.wait()
    assert begun
    assert not any(begun)


def test_one_save_is_in_flight_at_a_time(tmp_path: pathlib.Path, gate: Gate) -> None:
    """A second save waits for the first to be done."""
    io = AsyncCheckpointIO(gate)
    io.save({"a": 1}, tmp_path / "1.ckpt")
    timer = threading.Timer(0.1, gate.open.set)
    timer.start()
    io.save({"a": 2}, tmp_path / "2.ckpt")
    assert gate.written[:1] == [str(tmp_path / "1.ckpt")]
    io.wait()
    timer.join()
    assert load_checkpoint(tmp_path / "2.ckpt") == {"a": 2}
    assert not io.in_flight


@pytest.mark.parametrize("ask", ["wait", "save"])
def test_a_failure_is_raised_once_at_the_next_call(tmp_path: pathlib.Path, gate: Gate, ask: str) -> None:
    """The error of a background save comes up at the next wait or save, and only there."""
    io = AsyncCheckpointIO(gate)
    gate.fail = OSError(28, "No space left on device")
    gate.open.set()
    io.save({"a": 1}, tmp_path / "1.ckpt")
    with pytest.raises(OSError, match="No space"):
        io.wait() if ask == "wait" else io.save({"a": 2}, tmp_path / "2.ckpt")
    gate.fail = None
    io.save({"a": 3}, tmp_path / "3.ckpt")
    io.wait()
    assert os.listdir(tmp_path) == ["3.ckpt"]


def test_threads_that_share_a_store_take_turns(tmp_path: pathlib.Path) -> None:
    """What each of them saves is what its file holds, though all are staged in one memory."""
    io = AsyncCheckpointIO()

    def save(number: int) -> None:
        for turn in range(8):
            value = number * 100.0 + turn
            io.save({"state_dict": {"x": torch.full((20_000,), value)}}, tmp_path / f"{value:.0f}.ckpt")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save, range(3)))
    io.wait()
    for number in range(3):
        for value in range(number * 100, number * 100 + 8):
            written = load_checkpoint(tmp_path / f"{value}.ckpt")["state_dict"]["x"]
            assert torch.equal(written, torch.full((20_000,), float(value)))


def test_a_tree_that_can_not_be_kept_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    """The refusal does not wait for the background."""
    with pytest.raises(CheckpointError, match=r"\['f'\]"):
        AsyncCheckpointIO().save({"f": len}, tmp_path / "x.ckpt")


def test_reading_and_removing_wait_for_the_save(tmp_path: pathlib.Path, gate: Gate) -> None:
    """Load, peek, verify and remove see the file that is being written."""
    io = AsyncCheckpointIO(gate)
    for look in (io.load, io.peek, io.verify, io.remove):
        gate.open.clear()
        io.save({"a": torch.ones(3)}, tmp_path / "x.ckpt")
        timer = threading.Timer(0.05, gate.open.set)
        timer.start()
        look(tmp_path / "x.ckpt")
        timer.join()
    assert os.listdir(tmp_path) == []
    io.remove(tmp_path / "x.ckpt")


def test_a_relative_path_means_where_the_process_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """A change of directory after the call does not move the file."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    io = AsyncCheckpointIO(gate)
    io.save({"a": 1}, "x.ckpt")
    monkeypatch.chdir(tmp_path / "sub")
    gate.open.set()
    io.wait()
    assert (tmp_path / "x.ckpt").exists()


def test_any_format_can_be_wrapped() -> None:
    """A format of another kind gets a copy of the tree that nobody else holds."""
    plain = Plain()
    io, x = AsyncCheckpointIO(plain), torch.ones(3)
    io.save({"x": x, "y": [x, (1, None)]}, "/somewhere")
    x.zero_()
    tree = io.load("/somewhere")
    assert tree["x"].sum() == 3
    assert tree["y"][0] is tree["x"]
    assert tree["y"][1] == (1, None)
    assert isinstance(io, CheckpointIO)
    assert io.asynchronous
    assert not io.collective


def test_it_can_be_sent_to_another_process(tmp_path: pathlib.Path) -> None:
    """A pickled copy works and holds no thread or buffer."""
    io = AsyncCheckpointIO()
    io.save({"x": torch.ones(3)}, tmp_path / "x.ckpt")
    other = pickle.loads(pickle.dumps(io))
    other.save({"x": torch.zeros(3)}, tmp_path / "x.ckpt")
    other.wait()
    assert load_checkpoint(tmp_path / "x.ckpt")["x"].sum() == 0


def test_the_process_ends_only_when_the_save_is_done(tmp_path: pathlib.Path) -> None:
    """A script that ends right after a save leaves the whole file."""
    code = """
import sys, torch
from lt_core.checkpoint import AsyncCheckpointIO
AsyncCheckpointIO().save({"x": torch.ones(10_000_000)}, sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.ckpt")], check=True)
    assert load_checkpoint(tmp_path / "x.ckpt")["x"].sum() == 10_000_000
