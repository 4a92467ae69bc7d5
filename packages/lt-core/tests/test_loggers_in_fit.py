"""Train with loggers of every kind: small ones, slow ones, broken ones, and ones of no base."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import SILENT, Sized
from torch import Tensor
from torch.utils.data import DataLoader

from lt_core import Callback, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.loggers import CSVLogger, Logger
from lt_core.tracking import sender as delivery_module
from lt_interface.versions import VersionedLogger

QUIET: dict[str, Any] = {**SILENT, "enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1}
DATA = [torch.full((1, 1), float(v)) for v in range(8)]


class Bare:
    """Logger without our base: three methods and nothing else."""

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.params: Any = None
        self.ended: list[str] = []
        self.threads: set[str] = set()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))
        self.threads.add(threading.current_thread().name)

    def log_hyperparams(self, params: Any) -> None:
        self.params = dict(params)

    def finalize(self, status: str) -> None:
        self.ended.append(status)


class JSONLogger(Logger):
    """Third party's logger that keeps lines in a file: all that one must write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    def experiment(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / "lines.txt"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with open(self.experiment, "a", encoding="utf-8") as file:
            file.write(f"{step} {metrics['x']}\n")

    def steps(self) -> list[int]:
        return [int(line.split()[0]) for line in self.experiment.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(delivery_module, "FIRST_RETRY_SECONDS", 0.01)


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    """Return the warnings of every thread."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lt-")]


def test_a_logger_without_our_base(tmp_path: Path) -> None:
    """Anything with log_metrics, log_hyperparams and finalize is a logger; its thread ends with the run."""
    logger = Bare()
    Trainer(**QUIET, logger=logger, default_root_dir=tmp_path).fit(Sized(), DATA)
    assert logger.rows == [(i, {"x": float(i), "epoch": 0}) for i in range(8)]
    assert (logger.params, logger.ended) == ({"width": 1}, ["success"])
    assert logger.threads == {"lt-Bare"}
    assert ours() == []


def test_two_loggers_get_the_same(tmp_path: Path) -> None:
    """Every logger of a list gets all values, and trainer.logger is the first."""
    first, second = Bare(), JSONLogger(tmp_path / "lines")
    trainer = Trainer(**QUIET, logger=[first, second], default_root_dir=tmp_path)
    trainer.fit(Sized(), DATA)
    assert trainer.logger is first
    assert [step for step, _ in first.rows] == second.steps() == list(range(8))


def test_further_stages_send_only_their_own(tmp_path: Path) -> None:
    """A test after fit, with the same trainer, sends its values and none of fit's again."""

    class Tested(Sized):
        def test_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("x", batch.mean())

    for logger in (Bare(), JSONLogger(tmp_path / "lines")):
        trainer = Trainer(**QUIET, logger=logger, default_root_dir=tmp_path)
        module = Tested()
        trainer.fit(module, DATA)
        trainer.test(module, DATA, verbose=False)
        sent = [step for step, _ in logger.rows] if isinstance(logger, Bare) else logger.steps()
        assert sent == [*range(8), 8]


def test_a_broken_logger_stops_nothing(
    tmp_path: Path, warned: list[warnings.WarningMessage], caplog: pytest.LogCaptureFixture
) -> None:
    """One that fails for a while is reported once, gets all in order when it works again, and the others wait not."""

    class Broken(Bare):
        failures = 2

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("no route to host")
            super().log_metrics(metrics, step)

    caplog.set_level("INFO", "lt_core")
    broken, fine = Broken(), Bare()
    trainer = Trainer(**QUIET, logger=[broken, fine], default_root_dir=tmp_path)
    trainer.fit(Sized(), DATA)
    assert trainer.global_step == 8
    assert [s for s, _ in broken.rows] == [s for s, _ in fine.rows] == list(range(8))
    messages = [str(w.message) for w in warned if "Broken" in str(w.message)]
    assert ["no route to host" in message for message in messages] == [True]
    assert sum("Broken: works again" in message for message in caplog.messages) == 1


def test_a_logger_that_hangs_slows_nothing(tmp_path: Path, warned: list[warnings.WarningMessage]) -> None:
    """While a logger hangs, training runs on to its end, with workers and checkpoints, in its own time."""
    gate = threading.Event()

    class Hanging(JSONLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            gate.wait(60)
            super().log_metrics(metrics, step)

    ends: list[float] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            ends.append(time.monotonic())

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            ends.append(time.monotonic())
            assert logger.steps() == [] if logger.experiment.exists() else True
            gate.set()

    logger = Hanging(tmp_path / "lines")
    flags = {**QUIET, "enable_checkpointing": True}
    loader: DataLoader[Any] = DataLoader(torch.arange(8.0).view(8, 1), num_workers=2)  # type: ignore[arg-type]
    Trainer(**flags, logger=logger, default_root_dir=tmp_path, callbacks=[Watch()]).fit(Sized(), loader)
    assert ends[1] - ends[0] < 30
    assert logger.steps() == list(range(8))
    assert ours() == []


def test_workers_of_a_loader_deliver_nothing(tmp_path: Path) -> None:
    """Forked workers of two epochs neither hang nor send: each value comes once, from the first process."""

    class Where(JSONLogger):
        pids: set[int] = set()

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.pids.add(os.getpid())
            super().log_metrics(metrics, step)

    logger = Where(tmp_path / "lines")
    loader: DataLoader[Any] = DataLoader(torch.arange(8.0).view(8, 1), num_workers=2)  # type: ignore[arg-type]
    Trainer(**{**QUIET, "max_epochs": 3}, logger=logger, default_root_dir=tmp_path).fit(Sized(), loader)
    assert logger.steps() == list(range(24))
    assert logger.pids == {os.getpid()}


def test_users_write_under_the_same_lock(tmp_path: Path) -> None:
    """Calls of the user in a hook, grouped by exclusive(), are not interleaved with the trainer's."""

    class Order(JSONLogger):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.order: list[str] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.order.append("user" if step is None else "trainer")

    class Writing(Sized):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            with self.logger.exclusive() as logger:
                for _ in range(3):
                    logger.log_metrics({"x": 1.0})
                    time.sleep(0.004)
            return super().training_step(batch, batch_idx)

    logger = Order(tmp_path / "lines")
    Trainer(**QUIET, logger=logger, default_root_dir=tmp_path).fit(Writing(), DATA)
    assert (logger.order.count("user"), logger.order.count("trainer")) == (24, 8)
    text = "".join(word[0] for word in logger.order)
    assert text.replace("uuu", "").replace("t", "") == ""


def test_what_follows_a_run_is_sent_at_once(tmp_path: Path) -> None:
    """A call that waits its turn in a run is made at once after it, in the thread that asks."""
    logger, calls = JSONLogger(tmp_path / "lines"), []

    class Asking(Sized):
        def on_train_end(self) -> None:
            logger.later(lambda: calls.append(threading.current_thread().name), "in the run")

    Trainer(**QUIET, logger=logger, default_root_dir=tmp_path).fit(Asking(), DATA)
    assert calls == ["lt-JSONLogger"]
    logger.later(lambda: calls.append(threading.current_thread().name), "after it")
    assert calls == ["lt-JSONLogger", threading.current_thread().name]


def test_what_is_set_on_the_modules_logger_is_the_first_loggers(tmp_path: Path) -> None:
    """With several loggers self.logger reads, writes, compares and shows itself as the first one."""
    first, second = JSONLogger(tmp_path / "a"), JSONLogger(tmp_path / "b")
    found: list[Any] = []

    class Setting(Sized):
        def on_fit_start(self) -> None:
            own = self.logger
            own.note = "of the first"
            found.extend([own.note, own == first, own == second, hash(own), repr(own), isinstance(own, JSONLogger)])

    Trainer(**QUIET, logger=[first, second], default_root_dir=tmp_path).fit(Setting(), DATA)
    assert vars(first)["note"] == "of the first"
    assert "note" not in vars(second)
    assert found == ["of the first", True, False, hash(first), repr(first), True]


class Crash(Callback):
    """Callback that stops a run before one of its batches, by an error."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.after:
            raise InterruptedError


@pytest.mark.parametrize("missed", [99, 1], ids=["all sent", "nothing after step 1 sent"])
@pytest.mark.parametrize(
    ("saves", "logs", "crash", "expected"),
    [(4, 1, 6, list(range(8))), (2, 3, 3, [2, 5])],
    ids=["saved between records", "saved before the first record"],
)
def test_resuming_sends_nothing_twice_and_loses_nothing(
    tmp_path: Path, missed: int, saves: int, logs: int, crash: int, expected: list[int]
) -> None:
    """A logger that cannot rewind has each step once after a crash and a resume, whatever it had before."""

    class Deaf(JSONLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if step is not None and step > missed:
                raise ConnectionError
            super().log_metrics(metrics, step)

    flags = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path, "log_every_n_steps": logs}
    keep: dict[str, Any] = {"dirpath": tmp_path / "ckpt", "every_n_train_steps": saves}
    first = Trainer(**flags, logger=Deaf(tmp_path / "lines"), callbacks=[ModelCheckpoint(**keep), Crash(crash)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InterruptedError):
            first.fit(Sized(), DATA)
    again = JSONLogger(tmp_path / "lines")
    Trainer(**flags, logger=again, callbacks=[ModelCheckpoint(**keep)]).fit(Sized(), DATA, ckpt_path="last")
    assert again.steps() == expected


@pytest.mark.parametrize("rewinds", [True, False])
def test_loggers_that_rewind(tmp_path: Path, rewinds: bool) -> None:
    """One that forgets what came after the checkpoint gets just that again; one that forgets all gets all."""

    class Rewinding(JSONLogger):
        @property
        def version(self) -> int:
            return 0

        @property
        def log_dir(self) -> str:
            return str(self.folder / "version_0")

        def rewind(self, step: int, version: int | str | None) -> bool:
            lines = [] if rewinds else self.experiment.read_text(encoding="utf-8").splitlines()[: step + 1]
            self.experiment.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            return rewinds

    flags = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path}
    keep: dict[str, Any] = {"every_n_train_steps": 4, "dirpath": tmp_path / "version_0" / "ckpt"}
    first = Trainer(**flags, logger=Rewinding(tmp_path), callbacks=[ModelCheckpoint(**keep), Crash(6)])
    with pytest.raises(InterruptedError):
        first.fit(Sized(), DATA)
    again = Rewinding(tmp_path)
    assert again.steps() == list(range(6))
    Trainer(**flags, logger=again, callbacks=[ModelCheckpoint(**keep)]).fit(Sized(), DATA, ckpt_path="last")
    assert again.steps() == list(range(8))


def test_csv_is_what_an_uninterrupted_run_writes(tmp_path: Path) -> None:
    """After a crash and a resume metrics.csv is that of a run that never stopped, in one version folder."""

    def run(folder: Path, *callbacks: Callback, **fit: Any) -> None:
        flags = {**QUIET, "enable_checkpointing": True, "default_root_dir": folder}
        save = ModelCheckpoint(every_n_train_steps=4)
        Trainer(**flags, logger=CSVLogger(folder), callbacks=[save, *callbacks]).fit(Sized(), DATA, **fit)

    run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", Crash(6))
    run(tmp_path / "cut", ckpt_path="last")
    found = {name: sorted((tmp_path / name).rglob("metrics.csv")) for name in ("whole", "cut")}
    assert [len(paths) for paths in found.values()] == [1, 1]
    assert found["cut"][0].read_text() == found["whole"][0].read_text()


class Away(Logger):
    """Logger that loses the server when a checkpoint is uploaded."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        raise ConnectionError("no route")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass


def test_a_logger_that_can_not_take_a_checkpoint_stops_no_training(tmp_path: Path) -> None:
    """after_save_checkpoint that raises is a warning."""
    flags: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = Trainer(default_root_dir=tmp_path, max_epochs=1, logger=Away(), **flags)
    with pytest.warns(UserWarning, match="Away.after_save_checkpoint: it raised ConnectionError: no route"):
        run.fit(Sized(), DATA[:1])
    assert run.global_step == 1


class Beside(VersionedLogger):
    """Logger whose runs lie in versions' folders, as those of a CSVLogger do."""

    def __init__(self, save_dir: Path) -> None:
        super().__init__(save_dir, "lightning_logs", None, "", None)

    def _started(self) -> Any:
        Path(self.log_dir).mkdir(parents=True, exist_ok=True)
        return self

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        (Path(self.log_dir) / "beside.txt").write_text(str(step))


@pytest.mark.filterwarnings("ignore:ModelCheckpoint.*was written with")
@pytest.mark.parametrize("second", [None, "last", "path"])
def test_loggers_below_one_root_share_a_versions_folder(tmp_path: Path, second: str | None) -> None:
    """A run of two such loggers has one folder, a run that begins anew one of its own, whichever logger is first."""
    flags = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path}
    for number in range(2):
        loggers = [CSVLogger(tmp_path), Beside(tmp_path)][:: 1 if number else -1]
        run = Trainer(**{**flags, "max_epochs": number + 1}, logger=loggers, callbacks=[ModelCheckpoint()])
        path = second
        if number and second == "path":
            (path,) = map(str, tmp_path.rglob("*.ckpt"))
        run.fit(Sized(), DATA, ckpt_path=path if number else None)
    versions = sorted((tmp_path / "lightning_logs").iterdir())
    assert [path.name for path in versions] == ["version_0", "version_1"][: 1 if second == "last" else 2]
    assert all((path / "metrics.csv").exists() and (path / "beside.txt").exists() for path in versions)
