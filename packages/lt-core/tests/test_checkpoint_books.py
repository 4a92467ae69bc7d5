"""What a ModelCheckpoint says of its files: it follows the disk, whatever is refused, killed or raised on the way."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quiet import SILENT, Noting

from lt_core import Callback, Trainer
from lt_core.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint
from lt_core.checkpoint import AsyncCheckpointIO, SafetensorsIO, load_checkpoint


class Refusing(SafetensorsIO):
    """Store on a disk that is full at some writes.

    Args:
        full: Which ones: a set of their numbers, or a function of the path.
        seen: Called with each path that was written.
    """

    def __init__(self, full: Any = (), seen: Callable[[str], Any] = lambda path: None) -> None:
        self.full, self.seen, self.count = full, seen, 0

    def write(self, prepared: Any, path: Any) -> None:
        self.count += 1
        if self.full(os.path.basename(path)) if callable(self.full) else self.count in self.full:
            raise OSError(28, "No space left on device")
        super().write(prepared, path)
        self.seen(path)


class Losses(Noting):
    """Module that logs one given loss an epoch."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses

    def on_train_epoch_end(self) -> None:
        self.log("loss", self.losses[self.current_epoch])


def fit(losses: list[float], *callbacks: Callback, ckpt_path: Any = None, **flags: Any) -> Trainer:
    """Train one batch an epoch."""
    flags = {**SILENT, "logger": False, "max_epochs": len(losses), "limit_val_batches": 0, **flags}
    trainer = Trainer(callbacks=list(callbacks), **flags)
    trainer.fit(Losses(losses), torch.utils.data.DataLoader(torch.ones(1, 1)), ckpt_path=ckpt_path)
    return trainer


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.ckpt")}


def named(books: Any, last: bool = True) -> set[str]:
    """Return the names of the files that a callback, or its state in a file, speaks of."""
    books = books if isinstance(books, dict) else {key: getattr(books, key) for key in KEYS}
    paths = {books["best_model_path"], *books["best_k_models"], *([books["last_model_path"]] if last else [])}
    return {os.path.basename(path) for path in paths} - {""}


KEYS = ("best_model_path", "best_k_models", "last_model_path")
ODD = pytest.mark.filterwarnings("ignore:.*not written", "ignore:.*exists and is not empty")


class Model:
    """Plain account of which files there must be, by the losses and by which writes are refused."""

    def __init__(self, k: int, monitored: bool, save_last: Any, full: set[int]) -> None:
        self.k, self.monitored, self.save_last, self.full = k, monitored, save_last, full
        self.kept: dict[int, float] = {}  # epochs with their scores
        self.last: int | None = None
        self.writes = 0

    def epoch(self, epoch: int, loss: float) -> None:
        """Take the decisions of an epoch, and those of its writes that are not refused."""
        accepted = self.k != 0
        if self.monitored and accepted and 0 < self.k <= len(self.kept):
            accepted = loss < max(self.kept.values())
        saved = accepted and self.write()
        if saved:
            while 0 < self.k <= len(self.kept):
                self.kept.pop(max(self.kept, key=lambda e: (self.kept[e] if self.monitored else 0, -e)))
            self.kept[epoch] = loss
        if self.save_last == "link" and accepted:
            self.last = epoch if saved else self.last
        elif self.save_last and self.write():
            self.last = epoch

    def write(self) -> bool:
        self.writes += 1
        return self.writes not in self.full


@ODD
@pytest.mark.parametrize(
    "examples", [pytest.param(50, id="some"), pytest.param(500, id="many", marks=pytest.mark.slow)]
)
def test_what_is_said_is_what_is_there(examples: int) -> None:
    """Whatever is kept, named, written at once or behind, and refused: files and books agree with a plain account."""

    @settings(deadline=None, max_examples=examples, database=None)
    @given(
        losses=st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=6),
        full=st.sets(st.integers(1, 9), max_size=4),
        choice=st.sampled_from([(None, 1), (None, -1), (None, 0), ("loss", 1), ("loss", 3), ("loss", -1), ("loss", 0)]),
        save_last=st.sampled_from([None, True, "link"]),
        filename=st.sampled_from(["{epoch}", "same"]),
        behind=st.booleans(),
    )
    def holds(losses: list[float], full: set[int], choice: Any, save_last: Any, filename: str, behind: bool) -> None:
        monitor, k = choice
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)

            def itself(path: str) -> None:
                books = load_checkpoint(path)["callbacks"][saver.state_key]
                assert os.path.basename(path) in named(books) or save_last == "link"
                assert named(books, last=False) <= names(folder)

            class Look(Callback):
                def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
                    if not behind:
                        check(trainer.current_epoch)

            def count(epochs: int) -> None:
                while seen[0] < epochs:
                    account.epoch(seen[0], losses[seen[0]])
                    seen[0] += 1

            def check(epochs: int) -> None:
                count(epochs)
                said = named(saver)
                kept = names(folder) if monitor or k == 1 else said
                assert said == kept
                assert said <= names(folder)
                scores = {load_checkpoint(p)["epoch"]: float(s) for p, s in saver.best_k_models.items()}
                assert scores == {epoch: losses[epoch] for epoch in scores}
                if not behind:
                    assert scores == (account.kept if monitor else {})
                    there = {load_checkpoint(folder / name)["epoch"] for name in names(folder)}
                    assert there == {*account.kept, *([] if account.last is None else [account.last])}

            seen, account = [0], Model(k, monitor is not None, save_last, full)
            saver = ModelCheckpoint(folder, filename, monitor, save_last=save_last, save_top_k=k)
            store = Refusing(full, itself)
            fit(losses, Look(), saver, plugins=[AsyncCheckpointIO(store) if behind else store])
            count(len(losses))
            if save_last and account.last is None:
                return  # one more try at the end, which the account leaves out
            check(len(losses))

    holds()


@ODD
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("refused", ["a", "b", "last"])
def test_no_file_speaks_of_one_that_was_refused(tmp_path: Path, refused: str, behind: bool) -> None:
    """On a disk that fills up in the middle of a boundary, what was written knows nothing of what was not."""
    kinds = {"a": {"save_last": True}, "b": {"mode": "max"}}
    savers = {name: ModelCheckpoint(tmp_path, name + "{epoch}", "loss", **kinds[name]) for name in kinds}
    store = Refusing(lambda name: name.startswith(refused) and store.count > 3)
    fit([2.0, 1.0], *savers.values(), plugins=[AsyncCheckpointIO(store) if behind else store])
    for path in tmp_path.glob("*.ckpt"):
        tree = load_checkpoint(path)
        for name, saver in savers.items():
            said = named(tree["callbacks"][saver.state_key])
            assert f"{refused}epoch=1.ckpt" not in said, path.name
            assert tree["epoch"] == 0 or said <= names(tmp_path), (path.name, name)
    assert set().union(*map(named, savers.values())) == names(tmp_path)


@ODD
def test_a_run_resumed_after_a_full_disk_keeps_its_best(tmp_path: Path) -> None:
    """The best file of a second callback, whose better one was refused, is the best after a resume as well."""

    def savers() -> tuple[ModelCheckpoint, ModelCheckpoint]:
        return ModelCheckpoint(tmp_path, "new{epoch}"), ModelCheckpoint(tmp_path, "best{epoch}", "loss")

    fit([2.0, 1.0], *savers(), plugins=[Refusing({4})])
    assert names(tmp_path) == {"bestepoch=0.ckpt", "newepoch=1.ckpt"}
    newest, best = savers()
    fit([2.0, 1.0, 3.0], newest, best, ckpt_path="last")
    assert named(best) == {"bestepoch=0.ckpt"}
    assert best.best_model_score == 2.0
    assert names(tmp_path) == {"bestepoch=0.ckpt", "newepoch=1.ckpt", "newepoch=2.ckpt"}  # resumed from the second


def killed(job: Callable[[], Any]) -> None:
    """Run a job in a process of its own, which must kill itself."""
    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("save_last", [None, True, "link"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("number", range(2, 6))
def test_a_kill_between_a_file_and_the_books_leaves_nothing_behind(
    tmp_path: Path, number: int, k: int, save_last: Any
) -> None:
    """A process that dies when a file is safe and nothing follows from it yet: the resumed run ends as a whole one."""
    losses = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]

    def saver(name: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / name, "{epoch}", "loss", save_top_k=k, save_last=save_last)

    def die(path: str) -> None:
        if store.count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Refusing(seen=die)
    killed(lambda: fit(losses, saver("parts"), plugins=[store], default_root_dir=tmp_path))
    whole, parts = saver("whole"), saver("parts")
    fit(losses, whole, default_root_dir=tmp_path)
    trainer = fit(losses, parts, ckpt_path="last", default_root_dir=tmp_path)
    begun = {os.path.basename(trainer.resumed_from or "")}  # is spared
    assert names(tmp_path / "parts") - begun == names(tmp_path / "whole") - begun
    assert named(parts) == named(whole)


def test_saves_in_hooks_speak_of_what_is_there(tmp_path: Path) -> None:
    """A file that a hook writes while others are asked for does not speak of those: they may never come."""
    saver, said = ModelCheckpoint(tmp_path, "{epoch}", "loss", save_last=True), []

    class Saves(Checkpoint):  # after the saver
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            assert len(trainer.requested_checkpoints) == 2
            trainer.save_checkpoint(tmp_path / "own" / "file.ckpt")
            said.append(named(load_checkpoint(tmp_path / "own" / "file.ckpt")["callbacks"][saver.state_key]))

    fit([2.0, 1.0], saver, Saves())
    assert said == [set(), {"epoch=0.ckpt", "last.ckpt"}]
    assert named(saver) == names(tmp_path) == {"epoch=1.ckpt", "last.ckpt"}


@pytest.mark.parametrize("behind", [False, True])
def test_last_of_an_exception_names_itself(tmp_path: Path, behind: bool) -> None:
    """A ``last`` checkpoint that is saved after an error says that it is the last, and the one before it goes."""

    class Own(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{step}-newest"

    class Raises(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                raise ValueError("mine")

    saver = Own(tmp_path, "{step}", save_last=True, every_n_train_steps=2, save_on_exception=True)
    ends = OnExceptionCheckpoint(tmp_path / "ends")
    plugins = [AsyncCheckpointIO() if behind else SafetensorsIO()]
    with pytest.raises(ValueError, match="mine"):
        fit([1.0] * 4, saver, ends, Raises(), plugins=plugins)
    assert names(tmp_path) == {"step=2.ckpt", "step=3.ckpt", "step=3-newest.ckpt"}
    assert os.path.basename(saver.last_model_path) == "step=3-newest.ckpt"
    for path in (saver.last_model_path, ends.ckpt_path):
        books = load_checkpoint(path)["callbacks"][saver.state_key]
        assert named(books) == {"step=2.ckpt", "step=3-newest.ckpt"}


@pytest.mark.parametrize("behind", [False, True])
def test_the_last_hooks_know_the_best_file(tmp_path: Path, behind: bool) -> None:
    """When training ends, saves that are written behind it are waited for: on_train_end finds the last one's file."""
    found = []

    class Look(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            found.append(os.path.basename(trainer.checkpoint_callback.best_model_path))

    plugins = [AsyncCheckpointIO() if behind else SafetensorsIO()]
    fit([2.0, 1.0], Look(), ModelCheckpoint(tmp_path, "{epoch}", "loss"), plugins=plugins)
    assert found == ["epoch=1.ckpt"]


@pytest.mark.filterwarnings("ignore:.*could not be linked")
def test_a_link_that_is_refused_is_not_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither a link nor a copy can be made, the file is kept, the run goes on, and no ``last`` is named."""

    def refuse(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(shutil, "copy", refuse)
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_last="link")
    fit([2.0, 1.0], saver)
    assert named(saver) == names(tmp_path) == {"epoch=1.ckpt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".runs", "epoch=1.ckpt"]


def test_the_books_can_be_set(tmp_path: Path) -> None:
    """A hook that clears the kept scores begins a new ranking: the next file is the best one whatever its score."""

    class Clears(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                saver.best_k_models, saver.best_model_path, saver.best_model_score = {}, "", None

    saver = ModelCheckpoint(tmp_path, "{epoch}", "loss")
    fit([1.0, 3.0, 2.0], Clears(), saver)
    assert names(tmp_path) == {"epoch=0.ckpt", "epoch=2.ckpt"}
    assert saver.best_model_score == 2.0
