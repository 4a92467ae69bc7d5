"""Which run "last" and "auto" go on with: real fits, killed, stopped, finished, in folds, beside others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import Callback, EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from lt_core.checkpoint import find_last, load_checkpoint, peek, runs, save_checkpoint
from lt_core.loggers import CSVLogger

pytestmark = pytest.mark.filterwarnings(
    "ignore:The checkpoint folder .* is not empty",
    "ignore:.*it holds the state of callbacks",
    "ignore:Net. there is a val",
    "ignore:ModelCheckpoint.*was written with",
)
FEW = torch.ones(4, 1)


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> None:
    """Catch the lines that say which run is taken."""
    caplog.set_level("INFO", "lt_core")


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process count its fits for the test alone; ``runs._fits.clear()`` is then as if another one began."""
    monkeypatch.setattr(runs, "_fits", runs._fits.__class__())


class StopError(Exception):
    """Error that ends a fit."""


class Net(LightningModule):
    """Module that notes with how many steps it began, and fails or stops at one."""

    def __init__(self, fails_at: int = -1, stops_at: int = -1, width: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(1, width)
        self.fails_at, self.stops_at = fails_at, stops_at
        self.began: int | None = None

    def on_train_start(self) -> None:
        self.began = self.trainer.global_step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.trainer.global_step == self.fails_at:
            raise StopError
        if self.trainer.global_step == self.stops_at:
            self.trainer.should_stop = True
        self.log("loss", 1.0)
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.layer(batch).sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def make(root: Path, epochs: int = 2, *callbacks: Callback, **flags: Any) -> Trainer:
    """Return a trainer whose epochs have 4 steps, and that saves at each step."""
    saver = [ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)] if not callbacks else []
    given: dict[str, Any] = {**SILENT, "default_root_dir": root, "max_epochs": epochs, "num_sanity_val_steps": 0}
    return Trainer(**{**given, "logger": False, "callbacks": [*saver, *callbacks], **flags})


def fit(root: Path, epochs: int = 2, word: Any = None, net: Net | None = None, **flags: Any) -> Net:
    """Fit, whether it fails or not, and return the module."""
    net, callbacks = net or Net(), flags.pop("callbacks", ())
    with suppress(StopError):
        make(root, epochs, *callbacks, **flags).fit(net, FEW.unbind(), FEW[:1].unbind(), ckpt_path=word)
    return net


def killed(root: Path, at: int, word: str = "None", extra: str = "") -> None:
    """Fit in another process that dies at a step, as by SIGKILL."""
    program = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch; torch.set_num_threads(1)
        from test_which_run import *
        class Dies(Net):
            def training_step(self, batch, batch_idx):
                if self.trainer.global_step == {at}:
                    os._exit(9)
                return super().training_step(batch, batch_idx)
        {extra}
        fit(Path({str(root)!r}), 2, {word}, Dies())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 9, done.stderr


def records(folder: Path) -> list[str]:
    """Return how the runs of a folder ended."""
    return sorted(json.loads(path.read_text())["status"] for path in (folder / ".runs").glob("*.json"))


@pytest.mark.parametrize("word", ["last", "auto"])
def test_a_killed_run_is_gone_on_with_though_an_older_one_was_longer(
    tmp_path: Path, word: str, another_process: None
) -> None:
    """Both "last" and "auto" take the run that was begun last, not the one with the most steps."""
    fit(tmp_path, 3)
    killed(tmp_path, 5)
    assert records(tmp_path / "checkpoints") == ["finished", "running"]
    runs._fits.clear()
    assert fit(tmp_path, 2, word).began == 5


def test_a_daily_program_trains_each_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a finished run "auto" begins a new one and names what would train that one further; "last" does."""
    runs_begun: dict[str, int] = {}
    for _ in range(3):
        assert fit(tmp_path, 1, "auto").began == 0
        marks = [peek(path)["run"] for path in (tmp_path / "checkpoints").glob("*.ckpt")]
        runs_begun |= {mark["id"]: mark["ordinal"] for mark in marks}
    assert sorted(runs_begun.values()) == [1, 2, 3]  # which fit of its process each was
    assert 'write ckpt_path="last"' in caplog.text
    assert fit(tmp_path, 2, "last").began == 4


@pytest.mark.parametrize("logged", [False, True])
def test_a_clock_that_was_put_back_hides_no_run(
    tmp_path: Path, logged: bool, another_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that was begun last is the newest, though the clock said later when the one before it began."""

    def flags() -> dict[str, Any]:
        return {"logger": CSVLogger(tmp_path)} if logged else {}

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    fit(tmp_path, 2, **flags())
    monkeypatch.undo()
    fit(tmp_path, 2, None, Net(fails_at=3), **flags())
    assert fit(tmp_path, 2, "auto", Net(fails_at=6), **flags()).began == 3
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert fit(tmp_path, 2, "auto", **flags()).began == 6


def test_each_fold_begins_anew_and_knows_its_own_run(tmp_path: Path, another_process: None) -> None:
    """In one folder each fold is a run of its own; a program that was killed in its second fold resumes that there."""
    folds = "fit(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT), 1, 'auto')"
    killed(tmp_path, 3, "'auto'", f"ROOT = {str(tmp_path)!r}; {folds}")
    assert records(tmp_path / "checkpoints") == ["finished", "running"]
    runs._fits.clear()
    assert [fit(tmp_path, 1, "auto").began for _ in range(3)] == [0, 3, 0]


@pytest.mark.parametrize(
    ("net", "flags", "status"),
    [
        (Net(), {}, "finished"),
        (Net(), {"max_steps": 3}, "finished"),
        (Net(stops_at=2), {}, "finished"),
        (Net(), {"callbacks": [EarlyStopping("loss", patience=1), ModelCheckpoint()], "epochs": 9}, "finished"),
        (Net(), {"max_time": timedelta(microseconds=1), "epochs": 9}, "stopped"),
        (Net(fails_at=3), {}, "stopped"),
    ],
    ids=["epochs", "steps", "should_stop", "early stopping", "time", "error"],
)
def test_the_record_says_how_a_run_ended(tmp_path: Path, net: Net, flags: dict[str, Any], status: str) -> None:
    """Limits and stops that were wanted finish a run; a lack of time and an error leave it to be gone on with."""
    fit(tmp_path, net=net, **flags)
    assert records(tmp_path / "checkpoints") == [status]


def test_an_interrupted_run_is_stopped(tmp_path: Path) -> None:
    """An error that is no Exception, as by a signal, stops the run, and "auto" goes on with it under its id."""

    class Interrupted(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if self.trainer.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, net=Interrupted())
    assert records(tmp_path / "checkpoints") == ["stopped"]
    assert fit(tmp_path, 1, "auto").began == 3
    assert records(tmp_path / "checkpoints") == ["finished"]


def test_the_header_names_the_run(tmp_path: Path) -> None:
    """A resumed run keeps its id and its first start; when it was begun last, and with how many steps, is noted."""
    fit(tmp_path, 1)
    (first,) = [peek(path)["run"] for path in (tmp_path / "checkpoints").glob("*step=4.ckpt")]
    fit(tmp_path, 2, "last")
    (second,) = [peek(path)["run"] for path in (tmp_path / "checkpoints").glob("*step=8.ckpt")]
    assert second["id"] == first["id"]
    assert second["first_start"] == first["first_start"] == first["newest_start"]
    assert second["newest_start"] > first["newest_start"]
    assert (first["from_step"], second["from_step"]) == (0, 4)


def test_a_run_that_was_brought_back_goes_on_from_there(tmp_path: Path) -> None:
    """Steps behind the place that a run was resumed from by a path do not count any more, even before it saves."""
    fit(tmp_path, 2)
    (early,) = (tmp_path / "checkpoints").glob("*step=3.ckpt")
    fit(tmp_path, 2, early, Net(fails_at=3))
    assert fit(tmp_path, 2, "last", Net(fails_at=5)).began == 3
    assert fit(tmp_path, 2, "last").began == 5


def test_a_file_that_is_replaced_while_a_run_begins_is_taken_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many steps a resumed run began with is what was loaded, though the file said less when it was found."""
    fit(tmp_path, 1, callbacks=[ModelCheckpoint(tmp_path / "c", "same", every_n_train_steps=1)])
    shutil.copy(tmp_path / "c" / "same.ckpt", tmp_path / "early.ckpt")
    fit(tmp_path, 2, "last", callbacks=[ModelCheckpoint(tmp_path / "c", "same", every_n_train_steps=1)])
    shutil.copy(tmp_path / "c" / "same.ckpt", tmp_path / "late.ckpt")
    shutil.copy(tmp_path / "early.ckpt", tmp_path / "c" / "same.ckpt")

    class Late(Net):
        def setup(self, stage: str) -> None:
            shutil.copy(tmp_path / "late.ckpt", tmp_path / "c" / "same.ckpt")

    net = fit(tmp_path, 3, tmp_path / "c" / "same.ckpt", Late(fails_at=8))
    assert net.began == 8
    (record,) = [json.loads(p.read_text()) for p in (tmp_path / "checkpoints" / ".runs").glob("*.json")]
    assert record["from_step"] == 8


def test_files_with_weights_only_serve_all_but_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both words pass over them in fit, and take them in validate, where they are the newest."""
    full = ModelCheckpoint(tmp_path / "c", "{step}", every_n_train_steps=3, save_top_k=-1)
    bare = ModelCheckpoint(tmp_path / "c", "w{step}", every_n_train_steps=1, save_top_k=-1, save_weights_only=True)
    for word in ("last", "auto"):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        fit(tmp_path, 2, None, Net(fails_at=5), callbacks=[full, bare])
        assert fit(tmp_path, 2, word, callbacks=[full]).began == 3
        assert "with weights only" in caplog.text
    fit(tmp_path, 2, None, Net(fails_at=5), callbacks=[full, bare])
    trainer = make(tmp_path, 1, full)
    trainer.validate(Net(), FEW.unbind(), ckpt_path="last", verbose=False)
    assert load_checkpoint(str(trainer.ckpt_path))["global_step"] == 5


def test_with_nothing_but_weights_a_fit_begins_anew(tmp_path: Path) -> None:
    """Where no file can be resumed, "last" warns and "auto" says so; neither raises."""
    bare = ModelCheckpoint(tmp_path / "c", save_weights_only=True)
    fit(tmp_path, 1, callbacks=[bare])
    assert fit(tmp_path, 1, "auto", callbacks=[bare]).began == 0
    with pytest.warns(UserWarning, match=r"no checkpoint was found.*with weights only"):
        assert fit(tmp_path, 1, "last", callbacks=[bare]).began == 0


def test_a_run_that_goes_on_is_passed_over(tmp_path: Path) -> None:
    """While one process trains a run, "auto" of another takes the next older one, and training that one is refused."""
    fit(tmp_path, 2, None, Net(fails_at=2))
    fit(tmp_path, 2, None, Net(fails_at=6))
    (newest,) = (tmp_path / "checkpoints").glob("*step=6.ckpt")
    record = runs.RunRecord.begun(1, peek(newest)["run"])
    record.keep([str(tmp_path / "checkpoints")])
    try:
        assert fit(tmp_path, 1, "auto").began == 2
        with pytest.raises(Exception, match="two processes must not train one run"):
            fit(tmp_path, 2, newest)
    finally:
        record.end("stopped")


def test_a_job_that_is_started_again_goes_on_with_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another job began later, finished or not; and a job that had saved nothing begins anew."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    fit(tmp_path, 2, "auto", Net(fails_at=3))
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    fit(tmp_path, 2, None, Net(fails_at=5))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for word in ("auto", "last"):
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        assert fit(tmp_path, 2, word, Net(fails_at=3)).began == 3
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    assert fit(tmp_path, 2, "auto", Net(fails_at=1)).began == 0
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    fit(tmp_path, 2, None, Net(fails_at=2))
    fit(tmp_path, 2, "last", Net(fails_at=7))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert fit(tmp_path, 2, "auto").began == 7


def test_a_job_whose_run_is_finished_does_not_train_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_process: None
) -> None:
    """What a started-again job had finished is loaded and left as it is, so that the program goes on behind it."""
    monkeypatch.setenv("LT_JOB_ID", "a")
    fit(tmp_path, 1, "auto")
    runs._fits.clear()
    monkeypatch.setenv("LT_RESTART_COUNT", "1")
    trainer = make(tmp_path, 1)
    trainer.fit(Net(), FEW.unbind(), ckpt_path="auto")
    assert (trainer.global_step, trainer.resumed_from is not None) == (4, True)


def test_files_without_an_id_are_one_run_a_folder(tmp_path: Path) -> None:
    """Of two folders of older files the one that was begun later counts, though the other has more steps."""
    fit(tmp_path, 2, logger=CSVLogger(tmp_path, name="n"))
    fit(tmp_path, 1, logger=CSVLogger(tmp_path, name="n"))
    for number, version in enumerate(sorted((tmp_path / "n").iterdir())):
        shutil.rmtree(version / "checkpoints" / ".runs")
        for path in (version / "checkpoints").iterdir():
            tree = load_checkpoint(path)
            del tree["lt_run"]
            save_checkpoint(tree, path)
            os.utime(path, (1000 * number + tree["global_step"],) * 2)
    assert fit(tmp_path, 2, "last", logger=CSVLogger(tmp_path, name="n")).began == 4
    assert len(list((tmp_path / "n").iterdir())) == 2


def test_the_callbacks_own_folder_and_a_given_version_are_where_it_looks(tmp_path: Path) -> None:
    """A trainer that writes to one folder or one version takes no run of another one."""

    def own(name: str) -> list[Callback]:
        return [ModelCheckpoint(tmp_path / name, every_n_train_steps=1, save_top_k=-1)]

    fit(tmp_path, 2, None, Net(fails_at=3), callbacks=own("a"))
    fit(tmp_path, 2, None, Net(fails_at=5), callbacks=own("b"))
    assert fit(tmp_path, 2, "auto", callbacks=own("a")).began == 3
    for version, at in (("x", 3), ("y", 5)):
        fit(tmp_path, 2, None, Net(fails_at=at), logger=CSVLogger(tmp_path, version=version))
    assert fit(tmp_path, 2, "auto", logger=CSVLogger(tmp_path, version="x")).began == 3
    with pytest.warns(UserWarning, match="no checkpoint was found"):
        fit(tmp_path, 1, "last", logger=CSVLogger(tmp_path, version="z"))


def test_a_version_that_was_looked_at_narrows_nothing(tmp_path: Path) -> None:
    """A logger whose next free version was asked for before the fit still goes on with the newest of all versions."""
    fit(tmp_path, 2, None, Net(fails_at=3), logger=CSVLogger(tmp_path))
    logger = CSVLogger(tmp_path)
    assert logger.version == 1
    assert fit(tmp_path, 2, "last", logger=logger).began == 3


def test_a_trainers_own_run_comes_before_later_ones_of_others(tmp_path: Path) -> None:
    """After fit, "last" is what this trainer trained, whoever began to save in that folder since."""
    trainer = make(tmp_path, 1)
    trainer.fit(Net(), FEW.unbind())
    fit(tmp_path, 2)
    trainer.validate(Net(), FEW.unbind(), ckpt_path="last", verbose=False)
    assert load_checkpoint(str(trainer.ckpt_path))["global_step"] == 4


def test_runs_of_another_model_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest run whose parameters fit counts, and the line says how many files did not."""
    fit(tmp_path, 2, None, Net(fails_at=3))
    fit(tmp_path, 2, None, Net(fails_at=5, width=2))
    assert fit(tmp_path, 2, "auto").began == 3
    assert "5 of another model" in caplog.text


def test_a_callback_for_errors_means_auto(tmp_path: Path) -> None:
    """With OnExceptionCheckpoint a fit that failed is gone on with unasked, and one that finished is not trained on."""

    def callbacks() -> list[Callback]:
        return [OnExceptionCheckpoint(tmp_path / "e"), ModelCheckpoint(tmp_path / "c")]

    fit(tmp_path, 2, None, Net(fails_at=6), callbacks=callbacks())
    with pytest.warns(UserWarning, match="not at a boundary"):
        assert fit(tmp_path, 2, callbacks=callbacks()).began == 6
    assert not (tmp_path / "e" / "on_exception.ckpt").exists()
    assert fit(tmp_path, 2, callbacks=callbacks()).began == 0


def test_at_equal_counters_the_exact_file_comes_first(tmp_path: Path) -> None:
    """A later save inside a hook does not cover the exact one of the same step."""
    exact = {"step": 3, "epoch": 0, "batch": 3, "save_counter": 1, "exact": True}
    save_checkpoint({"progress": exact}, tmp_path / "a.ckpt")
    save_checkpoint({"progress": {**exact, "save_counter": 2, "exact": False}}, tmp_path / "b.ckpt")
    assert find_last([tmp_path]) == tmp_path / "a.ckpt"


def test_a_name_in_a_header_leads_nowhere_else(tmp_path: Path) -> None:
    """An id that is none, as in a file from somebody else, is no part of a path: the file counts as without one."""
    mark = {"id": "../../x", "first_start": 1.0, "newest_start": 9e12, "from_step": 0, "ordinal": 1}
    fit(tmp_path, 1)
    (path,) = (tmp_path / "checkpoints").glob("*step=4.ckpt")
    save_checkpoint({**load_checkpoint(path), "lt_run": mark}, path)
    assert fit(tmp_path, 2, path).began == 4
    assert not (tmp_path.parent / "x.json").exists()


def test_slashes_in_a_template_are_folders_that_are_searched_and_go_when_they_are_empty(tmp_path: Path) -> None:
    """A metric's slash is replaced; the template's own makes folders, in which "last" finds the newest file."""
    saver = ModelCheckpoint(tmp_path / "c", "e{epoch}/{train/loss:.1f}")

    class Slashed(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("train/loss", 0.5)
            return super().training_step(batch, batch_idx)

    fit(tmp_path, 2, None, Slashed(), callbacks=[saver])
    found = sorted(str(path.relative_to(tmp_path / "c")) for path in (tmp_path / "c").rglob("[!.]*"))
    assert [name for name in found if ".runs" not in name] == ["eepoch=1", "eepoch=1/train_loss=0.5.ckpt"]
    again = ModelCheckpoint(tmp_path / "c", "e{epoch}/{train/loss:.1f}")
    assert fit(tmp_path, 3, "last", Slashed(), callbacks=[again]).began == 8
