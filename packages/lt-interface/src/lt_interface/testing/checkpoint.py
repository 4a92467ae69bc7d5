"""Conformance suite of checkpoint formats."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lt_interface.checkpoint import CheckpointIO
from lt_interface.errors import CheckpointError
from lt_interface.registry import checkpoint_ios
from lt_interface.testing.suite import Conformance
from lt_interface.testing.trees import assert_same, plain_tree, tensor_tree

__all__ = ["CheckpointIOConformance"]


class _Opaque:
    """Value that no checkpoint can keep: it cannot be pickled either."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise pickle.PicklingError("this is not to be pickled")


class _Bomb:
    """Value that makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


class CheckpointIOConformance(Conformance, suite=True):
    """Tests of a checkpoint format in one process.

    Example:
        ::

            class TestJson(CheckpointIOConformance):
                plugin = "json"
    """

    registry = checkpoint_ios

    @pytest.fixture
    def io(self) -> Iterator[CheckpointIO]:
        """Return a new format and wait for its last save after the test."""
        made: CheckpointIO = self.make()
        yield made
        made.wait()

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """Return where the test's checkpoint goes."""
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        return str(folder / "a.ckpt")

    def tree(self) -> dict[str, Any]:
        """Return a tree shaped as the trainer's, with values of every kind."""
        return {
            "epoch": 1,
            "global_step": 10,
            "progress": {"epoch": 1, "batch": 2, "step": 10, "samples": 320, "epoch_closed": False, "save_counter": 3},
            "state_dict": tensor_tree(),
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": ["a.b"]}]}],
            "callbacks": {"x": plain_tree()},
        }

    def save(self, io: CheckpointIO, tree: dict[str, Any], path: str) -> None:
        """Save a tree and wait until it is durable.

        Args:
            io: The format under test.
            tree: What to save.
            path: Where to.
        """
        io.save(tree, path)
        io.wait()

    def test_fills_the_protocol(self, io: CheckpointIO) -> None:
        """It has every method and attribute."""
        assert isinstance(io, CheckpointIO)
        assert isinstance(io.collective, bool)

    def test_tree_comes_back(self, io: CheckpointIO, path: str) -> None:
        """Every value returns with its type, order and bits."""
        self.save(io, self.tree(), path)
        io.verify(path)
        loaded = io.load(path)
        for key, value in self.tree().items():
            assert_same(loaded[key], value, key)

    def test_empty_tree(self, io: CheckpointIO, path: str) -> None:
        """A tree without tensors can be saved."""
        self.save(io, {"a": {}}, path)
        assert io.load(path)["a"] == {}

    def test_shared_memory_keeps_its_values(self, io: CheckpointIO, path: str) -> None:
        """Tensors that share or overlap in memory return each with its values."""
        import torch

        base = torch.arange(10.0)
        tree = {"state_dict": {"all": base, "tied": base, "head": base[:5], "mid": base[3:8], "one": base[4]}}
        self.save(io, tree, path)
        assert_same(io.load(path)["state_dict"], tree["state_dict"])

    def test_save_is_a_snapshot(self, io: CheckpointIO, path: str) -> None:
        """What changes after save returned does not reach the file."""
        import torch

        tree: dict[str, Any] = {"state_dict": {"w": torch.zeros(200_000)}, "callbacks": {"best": [1.0]}}
        io.save(tree, path)
        tree["state_dict"]["w"].fill_(1.0)
        tree["callbacks"]["best"].append(2.0)
        io.wait()
        loaded = io.load(path)
        assert loaded["state_dict"]["w"].abs().sum() == 0
        assert loaded["callbacks"]["best"] == [1.0]

    def test_loaded_tensors_are_free(self, io: CheckpointIO, path: str) -> None:
        """Changing a loaded tensor changes neither the file nor another load."""
        self.save(io, self.tree(), path)
        loaded = io.load(path)
        loaded["state_dict"]["float32"].zero_()
        io.verify(path)
        assert_same(io.load(path)["state_dict"], tensor_tree())

    def test_last_save_wins(self, io: CheckpointIO, path: str) -> None:
        """Saves one after another to one path leave the last, and nothing else in the folder."""
        for step in range(4):
            io.save({"global_step": step}, path)
        io.wait()
        assert io.load(path)["global_step"] == 3
        assert [entry.name for entry in Path(path).parent.iterdir()] == [Path(path).name]

    def test_peek_reads_progress(self, io: CheckpointIO, path: str) -> None:
        """The header has the progress that was saved."""
        self.save(io, self.tree(), path)
        assert io.peek(path)["progress"] == self.tree()["progress"]

    def test_failed_save_keeps_the_old(self, io: CheckpointIO, path: str) -> None:
        """A value that cannot be kept is named by its path, and what was there before stays alone in the folder."""
        self.save(io, {"global_step": 1}, path)
        with pytest.raises(CheckpointError, match="culprit"):
            self.save(io, {"global_step": 2, "callbacks": {"x": [0, {"culprit": _Opaque()}]}}, path)
        assert io.load(path)["global_step"] == 1
        assert [entry.name for entry in Path(path).parent.iterdir()] == [Path(path).name]
        self.save(io, {"global_step": 3}, path)
        assert io.load(path)["global_step"] == 3

    def test_disk_errors_surface_once(self, io: CheckpointIO, tmp_path: Path) -> None:
        """A place that cannot be written raises OSError by the end of wait, and the next save works."""
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError):
            self.save(io, {"global_step": 1}, str(tmp_path / "file" / "a.ckpt"))
        io.wait()
        self.save(io, {"global_step": 2}, str(tmp_path / "b.ckpt"))
        assert io.load(str(tmp_path / "b.ckpt"))["global_step"] == 2

    def test_missing_is_an_error(self, io: CheckpointIO, path: str) -> None:
        """Load, peek and verify of nothing name the path."""
        for read in (io.load, io.peek, io.verify):
            with pytest.raises(CheckpointError, match=r"a\.ckpt"):
                read(path)

    def test_damage_is_found(self, io: CheckpointIO, path: str) -> None:
        """A flipped bit anywhere and a missing end are a CheckpointError of verify, nothing else."""
        self.save(io, self.tree(), path)
        for file in _files(path):
            whole = file.read_bytes()
            spots = sorted({0, 4, 8, 9, 40, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1})
            broken = [whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :] for i in spots if 0 <= i < len(whole)]
            broken += [whole[:i] for i in (0, 1, 8, len(whole) // 2, len(whole) - 1)]
            for number, content in enumerate(broken):
                file.write_bytes(content)
                try:
                    io.verify(path)
                except CheckpointError:
                    continue
                pytest.fail(f"{file.name}: damage {number} of {len(broken)} passed verify")
            file.write_bytes(whole)
        io.verify(path)

    def test_pickles_are_not_run(self, io: CheckpointIO, path: str, tmp_path: Path) -> None:
        """A pickle in the checkpoint's place is refused and never executed."""
        marker = tmp_path / "executed"
        self.save(io, {"global_step": 1}, path)
        for file in _files(path):
            file.write_bytes(pickle.dumps({"state_dict": _Bomb(str(marker))}))
        for read in (io.load, io.verify, io.peek):
            with pytest.raises(CheckpointError):
                read(path)
        assert not marker.exists()

    def test_remove(self, io: CheckpointIO, path: str) -> None:
        """A removed checkpoint is gone; removing it again is no error."""
        self.save(io, self.tree(), path)
        io.remove(path)
        io.remove(path)
        assert not Path(path).exists()

    def test_leaves_the_random_state(self, io: CheckpointIO, path: str) -> None:
        """Saving and loading draw no random number."""
        import random

        import torch

        before = (torch.get_rng_state().clone(), random.getstate())
        self.save(io, self.tree(), path)
        io.load(path)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]


def _files(path: str) -> list[Path]:
    """Return the files of a checkpoint, which may be one file or a folder."""
    place = Path(path)
    return [p for p in sorted(place.rglob("*")) if p.is_file()] if place.is_dir() else [place]
