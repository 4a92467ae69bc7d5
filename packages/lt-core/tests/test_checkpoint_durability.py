"""A save leaves the old file or the new one, whatever fails and whenever the process dies."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lt_core.checkpoint import load_checkpoint, peek, save_checkpoint, verify
from lt_core.checkpoint.format import durable
from lt_interface.errors import ConfigError

OLD: dict[str, Any] = {"epoch": 1, "w": torch.zeros(3000)}
NEW: dict[str, Any] = {"epoch": 2, "w": torch.ones(300_000), "b": {"x": torch.arange(5)}}
CALLS = ("open", "write", "lseek", "fsync", "replace", "close", "stat", "fstat", "unlink", "mkdir", "scandir")


class Shim:
    """Stand-in for `os` that lets a function see every call that reaches the disk."""

    def __init__(self, seen: Callable[[str, tuple[Any, ...]], Any]) -> None:
        for name in CALLS:
            setattr(self, name, self._watch(name, seen))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def _watch(name: str, seen: Callable[[str, tuple[Any, ...]], Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return seen(name, args)

        return call


def real(name: str, args: tuple[Any, ...]) -> Any:
    return getattr(os, name)(*args)


class Faults:
    """Failure of one call: before it is done, or after."""

    def __init__(self, index: int, number: int, before: bool) -> None:
        self.index, self.number, self.before, self.count = index, number, before, 0

    def __call__(self, name: str, args: tuple[Any, ...]) -> Any:
        self.count += 1
        if self.count - 1 != self.index:
            return real(name, args)
        if name == "close" or not self.before:  # a descriptor is closed even where close() reports an error
            done = real(name, args)
            if name == "open":
                os.close(done)
                if args[1] & os.O_CREAT:
                    os.unlink(args[0])
            elif name == "scandir":
                done.close()
        raise OSError(self.number, os.strerror(self.number))


def kill_at(index: int) -> Callable[[str, tuple[Any, ...]], Any]:
    """Kill this process at one call; a write is done in half."""
    left = [index]

    def seen(name: str, args: tuple[Any, ...]) -> Any:
        if left[0] == 0:
            if name == "write":
                os.write(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real(name, args)

    return seen


def same(path: pathlib.Path, tree: dict[str, Any]) -> bool:
    verify(path)
    return bool(load_checkpoint(path)["epoch"] == tree["epoch"]) and torch.equal(load_checkpoint(path)["w"], tree["w"])


@pytest.fixture
def target(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    path = tmp_path / "last.ckpt"
    save_checkpoint(OLD, path)
    yield path
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt"]


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EINTR"])
@pytest.mark.parametrize("before", [True, False], ids=["refused", "refused-after"])
def test_an_error_at_any_call_leaves_old_or_new(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: str, before: bool
) -> None:
    """An error of the system at every single call leaves a whole checkpoint and no other file."""
    number = getattr(errno, code)
    errors: list[OSError] = []
    for index in range(1000):
        faults = Faults(index, number, before)
        monkeypatch.setattr(durable, "os", Shim(faults))
        try:
            save_checkpoint(NEW, target)
        except OSError as error:
            errors.append(error)
        monkeypatch.setattr(durable, "os", os)
        assert same(target, OLD) or same(target, NEW)
        assert os.listdir(target.parent) == ["last.ckpt"]
        if faults.count <= index:
            break
        save_checkpoint(OLD, target)
    assert len(errors) >= 8
    assert {error.errno for error in errors} == {number}
    assert same(target, NEW)
    if code == "ENOSPC":
        said = [re.search(r"needs (\d+) bytes, (\d+) are free", str(error)) for error in errors]
        assert any(match and int(match[1]) > NEW["w"].nbytes and int(match[2]) > 0 for match in said)


def test_an_interrupt_inside_a_save_leaves_no_stray_file(target: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C inside a write leaves the old checkpoint and nothing else."""

    def seen(name: str, args: tuple[Any, ...]) -> Any:
        if name == "write":
            raise KeyboardInterrupt
        return real(name, args)

    monkeypatch.setattr(durable, "os", Shim(seen))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(NEW, target)
    assert same(target, OLD)


def test_short_writes_are_carried_on(target: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that takes only some bytes of a write gets the rest."""

    def seen(name: str, args: tuple[Any, ...]) -> Any:
        return os.write(args[0], args[1][: max(1, len(args[1]) // 3)]) if name == "write" else real(name, args)

    monkeypatch.setattr(durable, "os", Shim(seen))
    save_checkpoint(NEW, target)
    assert same(target, NEW)


def record(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, skip: str = "") -> list[tuple[Any, ...]]:
    """Save NEW and return what reached the disk; calls of the kind ``skip`` do nothing."""
    log: list[tuple[Any, ...]] = []
    kinds: dict[int, str] = {}

    def seen(name: str, args: tuple[Any, ...]) -> Any:
        if name == "fsync":
            kind = f"fsync {kinds[args[0]]}"
            if kind != skip:
                log.append((kind,))
            return None
        done = real(name, args)
        if name == "open":
            kinds[done] = "folder" if os.path.isdir(args[0]) else "file"
        elif name == "lseek":
            log.append(("seek", args[1]))
        elif name == "write":
            log.append(("write", bytes(args[1])))
        elif name == "replace":
            log.append(("replace",))
        return done

    monkeypatch.setattr(durable, "os", Shim(seen))
    save_checkpoint(NEW, path)
    monkeypatch.setattr(durable, "os", os)
    return log


def crash_states(log: list[tuple[Any, ...]], old: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yield every content the target may have after a crash, and whether the save had returned by then.

    The model: what was written but not synced may be there, be gone, or be there in part, in any order; a rename
    that was not synced may be there or not, and may be there before the data.
    """
    for end in range(len(log) + 1):
        content, synced, position = bytearray(), b"", 0
        writes: list[tuple[int, bytes]] = []
        renamed = durable_rename = False
        for step in log[:end]:
            if step[0] == "write":
                content[position : position + len(step[1])] = step[1]
                writes.append((position, step[1]))
                position += len(step[1])
            elif step[0] == "seek":
                position = step[1]
            elif step[0] == "fsync file":
                synced, writes = bytes(content), []
            elif step[0] == "replace":
                renamed = True
            elif step[0] == "fsync folder":
                durable_rename = renamed
        if not durable_rename:
            yield end == len(log), old
        if renamed:
            yield end == len(log), bytes(content)
            for index in range(len(writes)):
                for torn in (0, 1, len(writes[index][1]) // 2):
                    partial = bytearray(synced)
                    for other, (start, data) in enumerate(writes):
                        kept = data[:torn] if other == index else data
                        partial[start : start + len(kept)] = kept
                    yield end == len(log), bytes(partial)


def outcome(content: bytes, folder: pathlib.Path) -> str:
    path = folder / "state.ckpt"
    path.write_bytes(content)
    try:
        return "old" if same(path, OLD) else "new" if same(path, NEW) else "mix"
    except Exception as error:
        return f"error {type(error).__name__}"


def test_every_crash_point_leaves_old_or_new(
    target: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every crash point, with unsynced bytes lost or torn, the target loads as the old or the new checkpoint."""
    old, folder = target.read_bytes(), tmp_path_factory.mktemp("state")
    log = record(target, monkeypatch)
    assert [step[0] for step in log[-3:]] == ["fsync file", "replace", "fsync folder"]
    states = set(crash_states(log, old))
    found = {(returned, outcome(content, folder)) for returned, content in states}
    assert found == {(False, "old"), (False, "new"), (True, "new")}


@pytest.mark.parametrize("skip", ["fsync file", "fsync folder"])
def test_both_syncs_are_needed(
    target: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, skip: str
) -> None:
    """Without the sync of the file or of the folder the same check finds a lost checkpoint."""
    old, folder = target.read_bytes(), tmp_path_factory.mktemp("state")
    log = record(target, monkeypatch, skip)
    found = {(returned, outcome(content, folder)) for returned, content in set(crash_states(log, old))}
    assert found - {(False, "old"), (False, "new"), (True, "new")}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_call_leaves_old_or_new(target: pathlib.Path) -> None:
    """A process killed at any call leaves a whole checkpoint, and the next save removes its stray file."""
    index, strays = 0, 0
    while True:
        child = os.fork()
        if child == 0:
            vars(durable)["os"] = Shim(kill_at(index))
            try:
                save_checkpoint(NEW, target)
            except BaseException:
                os._exit(7)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        strays += len(os.listdir(target.parent)) - 1
        assert same(target, OLD) or same(target, NEW)
        save_checkpoint(OLD, target)
        assert os.listdir(target.parent) == ["last.ckpt"]
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        index += 1
    assert index > 10
    assert strays > 3


@pytest.mark.slow
def test_a_kill_at_random_moments_leaves_a_whole_file(target: pathlib.Path) -> None:
    """A process that saves without pause and is killed leaves a whole checkpoint, time after time."""
    code = """
import sys, torch
from lt_core.checkpoint import save_checkpoint
print("ready", flush=True)
for i in range(10**6):
    save_checkpoint({"epoch": i, "w": torch.full((1_000_000,), float(i))}, sys.argv[1])
"""
    for trial in range(12):
        child = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.05 + 0.037 * trial)
        child.kill()
        child.wait()
        child.stdout.close()
        tree = load_checkpoint(target)
        assert bool((tree["w"] == tree["epoch"]).all()) or same(target, OLD)
    save_checkpoint(OLD, target)


def test_a_live_writers_file_is_not_taken_for_a_stray(target: pathlib.Path) -> None:
    """A save in the same folder leaves alone the hidden file of a save that is still going on."""
    with durable.AtomicFile(str(target.parent / "other.ckpt")) as file:
        file.write(b"abc")
        save_checkpoint(NEW, target)
    assert (target.parent / "other.ckpt").read_bytes() == b"abc"
    os.unlink(target.parent / "other.ckpt")


def test_only_our_own_stray_files_are_removed(target: pathlib.Path) -> None:
    """Files of others, and young ones of another machine, stay."""
    folder = target.parent
    others = [folder / ".x.tmp", folder / "x.lt-tmp", folder / ".x.ckpt.00000000.elsewhere.lt-tmp"]
    for path in others:
        path.write_bytes(b"")
    (folder / ".link.lt-tmp").symlink_to(others[0])
    save_checkpoint(NEW, target)
    assert all(path.exists() for path in others)
    os.utime(others[2], (0, 0))
    save_checkpoint(NEW, target)
    assert not others[2].exists()
    for path in [*others[:2], folder / ".link.lt-tmp"]:
        path.unlink()


def test_a_link_is_replaced_and_what_it_points_at_stays(tmp_path: pathlib.Path) -> None:
    """Saving over a symbolic link leaves the file behind it alone."""
    save_checkpoint(OLD, tmp_path / "a.ckpt")
    (tmp_path / "last.ckpt").symlink_to("a.ckpt")
    save_checkpoint(NEW, tmp_path / "last.ckpt")
    assert same(tmp_path / "a.ckpt", OLD)
    assert same(tmp_path / "last.ckpt", NEW)


def test_folders_above_are_made_and_odd_names_work(tmp_path: pathlib.Path) -> None:
    """Missing folders are made; names of 255 bytes, with blanks, newlines or no ASCII work."""
    for name in ["a" * 250 + ".ckpt", "é" * 120 + ".ckpt", "new\nline=%s.ckpt", "😀 .ckpt"]:
        save_checkpoint(OLD, tmp_path / "deep" / "er" / name)
        assert same(tmp_path / "deep" / "er" / name, OLD)


def test_who_may_read_a_checkpoint_is_what_the_umask_leaves(tmp_path: pathlib.Path) -> None:
    """A checkpoint has the rights of any file that the user makes, and is no program."""
    before = os.umask(0o002)
    try:
        save_checkpoint(OLD, tmp_path / "a.ckpt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.ckpt").stat().st_mode) == 0o664


def test_a_folder_in_the_way_is_an_error(tmp_path: pathlib.Path) -> None:
    """A folder of the target's name, and a name that no disk takes, stop the save before anything is written."""
    (tmp_path / "x.ckpt").mkdir()
    with pytest.raises(IsADirectoryError):
        save_checkpoint(OLD, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="at most 255 bytes"):
        save_checkpoint(OLD, tmp_path / "x.ckpt" / ".." / "y" / ("z" * 300))
    assert os.listdir(tmp_path) == ["x.ckpt"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_limit_on_file_size_leaves_the_old_one(target: pathlib.Path) -> None:
    """Where the system allows no file so large, the error says what was needed and the old file stays."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_checkpoint(NEW, target)
        except OSError as error:
            os._exit(42 if error.errno == errno.EFBIG and "the checkpoint needs" in str(error) else 43)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert same(target, OLD)


def test_a_full_disk_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    """On real small file systems of many sizes a save works or leaves the old file, and nothing else."""
    disk = tmp_path / "disk"
    disk.mkdir()
    found: list[int | None] = []
    for size in range(16, 3000, 93):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a file system")
        try:
            save_checkpoint(OLD, disk / "x.ckpt")
            try:
                save_checkpoint(NEW, disk / "x.ckpt")
            except OSError as error:
                found.append(error.errno)
                assert same(disk / "x.ckpt", OLD)
            else:
                found.append(None)
                assert same(disk / "x.ckpt", NEW)
            assert os.listdir(disk) == ["x.ckpt"]
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    assert len(found) == 33
    assert found.count(errno.ENOSPC) > 5
    assert found.count(None) == 33 - found.count(errno.ENOSPC) > 5


@pytest.mark.skipif(sys.platform != "linux", reason="a full device that every Linux has")
@pytest.mark.parametrize("host", ["a/b", "node-1.example", "ü", ""])
def test_a_machine_may_have_any_name(host: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the temporary file is named after breaks no path, and its folder holds the one file afterwards."""
    monkeypatch.setattr("socket.gethostname", lambda: host)
    save_checkpoint({"a": 1}, tmp_path / "x.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
    assert load_checkpoint(tmp_path / "x.ckpt")["a"] == 1


def test_a_read_only_folder_is_an_error(tmp_path: pathlib.Path) -> None:
    """A folder that takes no new file gives an error and not a silent success."""
    with pytest.raises(OSError):
        save_checkpoint(OLD, "/proc/x.ckpt")


def test_many_small_tensors_make_few_writes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand small tensors are written in a handful of calls."""
    calls = []

    def seen(name: str, args: tuple[Any, ...]) -> Any:
        calls.append(name)
        return real(name, args)

    monkeypatch.setattr(durable, "os", Shim(seen))
    save_checkpoint({str(i): torch.full((10,), i) for i in range(1000)}, tmp_path / "x.ckpt")
    assert calls.count("write") < 6
    monkeypatch.setattr(durable, "os", os)
    assert len(peek(tmp_path / "x.ckpt")["tensors"]) == 1000
