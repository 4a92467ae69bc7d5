"""Keep what was once broken working."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint, RichProgressBar
from lt_core.loggers import CSVLogger, Logger
from lt_interface import CheckpointError

WORKERS = """
import sys, time, torch
from lt_core import LightningModule, Trainer

torch.set_num_threads(1)

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 4000

    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.ones(1)

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        print("busy", flush=True)
        return self.layer(batch).sum()

    def teardown(self, stage):
        time.sleep(0.5)  # so that the workers' ends arrive meanwhile
        print("teardown", flush=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

flags = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
loader = torch.utils.data.DataLoader(Slow(), batch_size=4, num_workers=2, multiprocessing_context="fork")
Trainer(max_epochs=1, accelerator="cpu", **flags).fit(Net(), loader)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="process groups and forked workers")
def test_a_signal_to_workers_too_is_one_signal_and_ends_the_run_cleanly() -> None:
    """Ctrl-C in a terminal and a scheduler's SIGTERM reach workers as well: teardown runs, the exit code is right."""
    command = [sys.executable, "-W", "ignore", "-c", WORKERS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    processes = {n: subprocess.Popen(command, **pipes) for n in (signal.SIGINT, signal.SIGTERM)}  # type: ignore[call-overload]
    try:
        for number, process in processes.items():
            for _ in range(3):
                assert process.stdout.readline() == "busy\n"
            os.killpg(process.pid, number)
        for number, process in processes.items():
            out, err = process.communicate(timeout=60)
            assert out.splitlines()[-1:] == ["teardown"], err
            assert process.returncode in ((130, -signal.SIGINT) if number == signal.SIGINT else (143,)), err
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


class Count:
    """A metric object: how many samples were seen."""

    def __init__(self) -> None:
        self.n = 0

    def update(self, n: int) -> None:
        self.n += n

    def compute(self) -> float:
        return float(self.n)

    def reset(self) -> None:
        self.n = 0

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


class Counting(LightningModule):
    """Log a metric object over each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = Count()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.update(len(batch))
        self.log("seen", self.seen, on_step=False, on_epoch=True)
        loss: Tensor = self.layer(batch).sum()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_metric_object_of_an_epoch_whose_batches_are_all_done_survives_a_resume(tmp_path: Path) -> None:
    """A checkpoint behind the last batch, before the epoch's end: the resumed run still reports the epoch's metric."""
    batches = [torch.ones(2, 1)] * 3
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}

    def fit(folder: str, ckpt_path: Path | None) -> Trainer:
        saves = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)
        run = Trainer(default_root_dir=tmp_path / folder, max_epochs=2, callbacks=[saves], **quiet)
        run.fit(Counting(), batches, ckpt_path=ckpt_path)
        return run

    fit("first", None)
    resumed = fit("again", tmp_path / "saved" / "epoch=0-step=3.ckpt")
    assert resumed.history["seen"] == [6.0, 6.0]


class Stream(IterableDataset[Tensor]):
    """Keep the place; begin anew behind the last sample, or never end."""

    def __init__(self, length: int | None) -> None:
        self.length, self.place = length, 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.length is None or self.place < self.length:
            self.place += 1
            yield torch.tensor([float(self.place)])
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Sized(Stream):
    """Say its length too."""

    def __len__(self) -> int:
        assert self.length is not None
        return self.length


class Noting(LightningModule):
    """Log the sum of each batch, and validate."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("sum", batch.sum())
        loss: Tensor = self.layer(batch).sum()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.layer(batch).sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    "dataset", [Stream(5), Stream(6), Sized(5), Sized(6), Stream(None)], ids=lambda d: repr(d.length)
)
def test_a_dataset_that_keeps_its_own_place_resumes_at_the_end_of_an_epoch(dataset: Stream, tmp_path: Path) -> None:
    """Behind an epoch's last batch, and between epochs: no batch and no validation comes twice, none is left out."""

    def fit(folder: str, ckpt_path: Path | None) -> Trainer:
        dataset.place = 0
        saves = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)
        ends = ModelCheckpoint(tmp_path / "ends", every_n_epochs=1, save_top_k=-1)
        run = Trainer(
            default_root_dir=tmp_path / folder,
            max_epochs=3,
            limit_train_batches=3 if dataset.length is None else None,
            log_every_n_steps=1,
            callbacks=[saves, ends],
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        run.fit(Noting(), DataLoader(dataset, batch_size=2), [torch.ones(1, 1)], ckpt_path=ckpt_path)
        return run

    torch.manual_seed(1)
    whole = fit("whole", None).history
    for place in ("saved", "ends"):
        resumed = fit(place + " resumed", tmp_path / place / "epoch=0-step=3.ckpt").history
        assert resumed == whole
        assert resumed.steps == whole.steps


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    """Resuming what SGD trained with Adam tells so, before the first batch."""

    class Other(Noting):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise NotImplementedError

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    flags: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    flags |= {"logger": False, "enable_checkpointing": False}
    run = Trainer(max_epochs=1, **flags)
    data = [torch.ones(1, 1)]
    run.fit(Noting(), data, data)
    run.save_checkpoint(tmp_path / "sgd.ckpt")
    other = Trainer(max_epochs=2, **flags)
    with pytest.raises(CheckpointError, match=r"same kind of optimizer. Got none of the options .*betas.* of Adam"):
        other.fit(Other(), data, data, ckpt_path=tmp_path / "sgd.ckpt")


class Careless(Callback):
    """Raise in one hook."""

    def __init__(self, hook: str) -> None:
        def careless(*args: Any) -> None:
            raise OSError("careless")

        setattr(self, hook, careless)


class Torn(Noting):
    """Fail at the second batch, if asked to, and note the teardown."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails, self.torn = fails, 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.fails and batch_idx:
            raise ZeroDivisionError
        return super().training_step(batch, batch_idx)

    def teardown(self, stage: str) -> None:
        self.torn += 1


@pytest.mark.parametrize("hook", ["on_exception", "teardown"])
@pytest.mark.filterwarnings("ignore:.*after an error. it raised OSError. careless")
def test_a_callback_that_raises_while_a_failed_run_ends_keeps_no_other_part_from_its_turn(
    hook: str, tmp_path: Path
) -> None:
    """The checkpoint of the exception is saved, the module is torn down once, and the first error is the one raised."""
    net, saves = Torn(fails=True), OnExceptionCheckpoint(tmp_path)
    run = Trainer(
        default_root_dir=tmp_path / "run",
        callbacks=[Careless(hook), saves],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )
    data = [torch.ones(1, 1)] * 2
    with pytest.raises(ZeroDivisionError):
        run.fit(net, data, data)
    assert (tmp_path / "on_exception.ckpt").exists()
    assert net.torn == 1


def test_a_teardown_that_raises_after_a_good_run_is_raised_behind_all_others() -> None:
    """A callback's teardown that raises: the module's own runs, once, and the error is raised."""
    net = Torn(fails=False)
    flags: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    run = Trainer(callbacks=[Careless("teardown")], enable_progress_bar=False, accelerator="cpu", max_epochs=1, **flags)
    with pytest.raises(OSError, match="careless"):
        run.fit(net, [torch.ones(1, 1)], [torch.ones(1, 1)])
    assert net.torn == 1


def test_rows_logged_by_the_user_and_by_the_trainer_at_once_are_all_kept(tmp_path: Path) -> None:
    """CSVLogger.log_metrics from two threads: no row is lost, none is written twice."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)

    def write(name: str) -> None:
        for step in range(500):
            logger.log_metrics({name: 1.0}, step)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    logger.save()
    lines = Path(logger.metrics_file_path).read_text().splitlines()
    assert len(lines) == 1001
    assert len(set(lines)) == 1001


def test_a_failed_widening_leaves_rows_and_header_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when a new column comes: later rows still fit the header."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    logger.log_metrics({"a": 1.0}, 0)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space"):
            logger.log_metrics({"b": 2.0}, 1)
    logger.log_metrics({"b": 2.0}, 1)
    assert Path(logger.metrics_file_path).read_text().split() == ["step,a,b", "0,1.0,", "1,,2.0"]


class Away(Logger):
    """Lose the server when a checkpoint is uploaded."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        raise ConnectionError("no route")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass


def test_a_logger_that_can_not_take_a_checkpoint_stops_no_training(tmp_path: Path) -> None:
    """after_save_checkpoint that raises is a warning."""
    flags: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = Trainer(default_root_dir=tmp_path, max_epochs=1, logger=Away(), **flags)
    with pytest.warns(UserWarning, match="Away.after_save_checkpoint: it raised ConnectionError: no route"):
        run.fit(Noting(), [torch.ones(1, 1)], [torch.ones(1, 1)])
    assert run.global_step == 1


def test_metrics_leave_the_bar_its_counts_and_times() -> None:
    """On a terminal of 100 columns the usual metrics go on below instead of cutting counts, times and speed."""
    screen = io.StringIO()
    bar = RichProgressBar(console_kwargs={"file": screen, "width": 100, "force_terminal": True, "color_system": None})

    class Usual(Noting):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            for name in ("train_loss", "train_accuracy", "learning_rate"):
                self.log(name, loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

    data = [torch.ones(1, 1)] * 3
    run = Trainer(max_epochs=2, callbacks=[bar], logger=False, enable_checkpointing=False, enable_model_summary=False)
    run.fit(Usual(), data, data)
    last = [line for line in screen.getvalue().splitlines() if "Epoch 1/1" in line][-1]
    assert " 3/3 " in last
    assert "0:00 left, run 0:00 left" in last
    assert "it/s" in last
    assert "learning_rate_epoch=" in screen.getvalue()


def test_what_verbose_asks_for_is_seen_without_configured_logging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """EarlyStopping(verbose=True) speaks on stderr; a level set for the logger silences it."""
    monkeypatch.setattr(logging.getLogger("lt_core"), "hasHandlers", lambda: False)
    data = [torch.ones(1, 1)]
    flags: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}

    def said() -> str:
        stopping = EarlyStopping("val", verbose=True)
        Trainer(max_epochs=1, callbacks=[stopping], enable_progress_bar=False, **flags).fit(Noting(), data, data)
        return capsys.readouterr().err

    assert "val improved" in said()
    monkeypatch.setattr(logging.getLogger("lt_core"), "level", logging.WARNING)
    assert "improved" not in said()


class Stopped(Noting):
    """Log each validation batch; fail at the so-many-th, if asked to."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.fails_at, self.seen = fails_at, 0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen += 1
        if self.seen == self.fails_at:
            raise ZeroDivisionError
        self.log("val", self.layer(batch).sum(), on_step=True, on_epoch=True)


@pytest.mark.filterwarnings("ignore:val_dataloader. the loader shuffles")
@pytest.mark.parametrize("fails_at", [2, 5])
def test_a_validation_that_was_cut_short_is_repeated_from_its_own_start(fails_at: int, tmp_path: Path) -> None:
    """Its first half is not in the history twice, its x-axis does not jump, its loader shuffles as it did."""

    def fit(folder: str, fails_at: int = 0, ckpt_path: Path | None = None) -> Trainer:
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        samples: Any = torch.arange(3.0).reshape(3, 1)
        loader: DataLoader[Tensor] = DataLoader(samples, shuffle=True, generator=generator)
        run = Trainer(
            default_root_dir=tmp_path / folder,
            max_epochs=3,
            num_sanity_val_steps=0,
            callbacks=[OnExceptionCheckpoint(tmp_path / "saved")],
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        run.fit(Stopped(fails_at), [torch.ones(1, 1)] * 2, loader, ckpt_path=ckpt_path)
        return run

    whole = fit("whole").history
    with pytest.raises(ZeroDivisionError):
        fit("cut", fails_at)
    resumed = fit("resumed", 0, tmp_path / "saved" / "on_exception.ckpt").history
    assert resumed == whole
    assert resumed.steps == whole.steps


class Unreadable(Dataset[Tensor]):
    """Hold one sample that can not be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5:
            raise ValueError("unreadable")
        return torch.ones(1)


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_no_worker_outlives_a_failed_run_while_its_error_is_looked_at(stage: str) -> None:
    """The traceback, which holds the loops' frames, keeps no worker process alive."""
    bad: Any = DataLoader(Unreadable(), num_workers=1)
    good: Any = [torch.ones(1, 1)]
    flags: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    run = Trainer(max_epochs=1, num_sanity_val_steps=0, enable_progress_bar=False, accelerator="cpu", **flags)
    with pytest.raises(ValueError, match="unreadable") as kept:
        run.fit(Noting(), *((bad, good) if stage == "train" else (good, bad)))
    assert kept.tb is not None
    assert multiprocessing.active_children() == []
